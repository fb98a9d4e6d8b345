//! The operations that the vector types of `fearless_simd` do not have: streaming stores, prefetches, parts of vectors,
//! lookups, and the conversion of half-precision floats. Each is a plain function with the best instructions per level
//! inside.

use std::mem::MaybeUninit;

use fearless_simd::{Simd, f32x16, f64x8, prelude::*, u16x16, u32x16, u64x8};
#[cfg(target_arch = "x86_64")]
use fearless_simd::{f32x8, f64x4, u32x8, u64x4};
use half::f16;

#[cfg(target_arch = "x86_64")]
use fearless_simd::Level;

/// A cache line, on the boundary that streaming stores need.
#[repr(C, align(64))]
pub(crate) struct Line([u8; 64]);

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{Line, MaybeUninit};
    use core::arch::x86_64 as arch;

    use fearless_simd::x86::{Avx2, Avx512};
    use fearless_simd::{f32x8, f32x16, f64x4, f64x8, prelude::*, u16x16, u32x8, u32x16, u64x4, u64x8};

    fearless_simd::kernel!(
        #[inline(always)]
        pub(super) fn stream_avx512(avx512: Avx512, line: &mut MaybeUninit<Line>, bytes: &[u8; 64]) {
            // SAFETY: `line` and `bytes` are 64 bytes each, and `line` is aligned to 64.
            unsafe {
                arch::_mm512_stream_si512(line.as_mut_ptr().cast(), arch::_mm512_loadu_si512(bytes.as_ptr().cast()));
            }
        }
    );
    fearless_simd::kernel!(
        #[inline(always)]
        pub(super) fn stream_avx2(avx2: Avx2, line: &mut MaybeUninit<Line>, bytes: &[u8; 64]) {
            for half in [0, 32] {
                // SAFETY: both halves lie inside the 64 bytes, and `line` is aligned to 64.
                unsafe {
                    let value = arch::_mm256_loadu_si256(bytes.as_ptr().add(half).cast());
                    arch::_mm256_stream_si256(line.as_mut_ptr().cast::<u8>().add(half).cast(), value);
                }
            }
        }
    );
    fearless_simd::kernel!(
        #[inline(always)]
        pub(super) fn stream_sse2(sse2: Sse2, line: &mut MaybeUninit<Line>, bytes: &[u8; 64]) {
            for quarter in [0, 16, 32, 48] {
                // SAFETY: the quarters lie inside the 64 bytes, and `line` is aligned to 64.
                unsafe {
                    let value = arch::_mm_loadu_si128(bytes.as_ptr().add(quarter).cast());
                    arch::_mm_stream_si128(line.as_mut_ptr().cast::<u8>().add(quarter).cast(), value);
                }
            }
        }
    );
    fearless_simd::kernel!(
        #[inline(always)]
        pub(super) fn f16_to_f32_avx512(avx512: Avx512, bits: [u16; 16]) -> [f32; 16] {
            let mut out = [0.0; 16];
            // SAFETY: 16 values of 2 bytes are read, 16 of 4 bytes are written.
            unsafe {
                let bits = arch::_mm256_loadu_si256(bits.as_ptr().cast());
                arch::_mm512_storeu_ps(out.as_mut_ptr(), arch::_mm512_cvtph_ps(bits));
            }
            out
        }
    );
    fearless_simd::kernel!(
        #[inline(always)]
        pub(super) fn f16_to_f32_avx2(avx2: Avx2, bits: [u16; 16]) -> [f32; 16] {
            let mut out = [0.0; 16];
            for half in [0, 8] {
                // SAFETY: both halves of 8 values lie inside the arrays of 16.
                unsafe {
                    let bits = arch::_mm_loadu_si128(bits.as_ptr().add(half).cast());
                    arch::_mm256_storeu_ps(out.as_mut_ptr().add(half), arch::_mm256_cvtph_ps(bits));
                }
            }
            out
        }
    );
    fearless_simd::kernel!(
        #[inline(always)]
        pub(super) fn f16_from_f32_avx512(avx512: Avx512, values: [f32; 16]) -> [u16; 16] {
            let mut out = [0; 16];
            // SAFETY: 16 values of 4 bytes are read, 16 of 2 bytes are written.
            unsafe {
                let values = arch::_mm512_loadu_ps(values.as_ptr());
                let bits =
                    arch::_mm512_cvtps_ph::<{ arch::_MM_FROUND_TO_NEAREST_INT | arch::_MM_FROUND_NO_EXC }>(values);
                arch::_mm256_storeu_si256(out.as_mut_ptr().cast(), bits);
            }
            out
        }
    );
    fearless_simd::kernel!(
        #[inline(always)]
        pub(super) fn f16_from_f32_avx2(avx2: Avx2, values: [f32; 16]) -> [u16; 16] {
            let mut out = [0; 16];
            for half in [0, 8] {
                // SAFETY: both halves of 8 values lie inside the arrays of 16.
                unsafe {
                    let values = arch::_mm256_loadu_ps(values.as_ptr().add(half));
                    let bits = arch::_mm256_cvtps_ph::<{ arch::_MM_FROUND_TO_NEAREST_INT }>(values);
                    arch::_mm_storeu_si128(out.as_mut_ptr().add(half).cast(), bits);
                }
            }
            out
        }
    );
    fearless_simd::kernel!(
        #[inline(always)]
        pub(super) fn look_up_u32_avx512(avx512: Avx512, table: &[u32; 8], index: u32x16<Avx512>) -> u32x16<Avx512> {
            // SAFETY: the table is read whole. The instruction looks at four bits of an index, so it is there twice.
            let table = unsafe { arch::_mm512_broadcast_i64x4(arch::_mm256_loadu_si256(table.as_ptr().cast())) };
            arch::_mm512_permutexvar_epi32(index.into(), table).simd_into(avx512)
        }
    );
    fearless_simd::kernel!(
        #[inline(always)]
        pub(super) fn look_up_u32_avx2(avx2: Avx2, table: &[u32; 8], index: u32x8<Avx2>) -> u32x8<Avx2> {
            // SAFETY: the table is read whole.
            let table = unsafe { arch::_mm256_loadu_si256(table.as_ptr().cast()) };
            arch::_mm256_permutevar8x32_epi32(table, index.into()).simd_into(avx2)
        }
    );
    fearless_simd::kernel!(
        #[inline(always)]
        pub(super) fn look_up_u64_avx512(avx512: Avx512, table: &[u64; 8], index: u64x8<Avx512>) -> u64x8<Avx512> {
            // SAFETY: the table is read whole.
            let table = unsafe { arch::_mm512_loadu_si512(table.as_ptr().cast()) };
            arch::_mm512_permutexvar_epi64(index.into(), table).simd_into(avx512)
        }
    );
    fearless_simd::kernel!(
        #[inline(always)]
        pub(super) fn look_up_u64_avx2(avx2: Avx2, low: &[u32; 8], high: &[u32; 8], index: u64x4<Avx2>) -> u64x4<Avx2> {
            // SAFETY: the tables are read whole.
            let (low, high) = unsafe {
                (arch::_mm256_loadu_si256(low.as_ptr().cast()), arch::_mm256_loadu_si256(high.as_ptr().cast()))
            };
            let index = index.into();
            // There is an instruction for 32 bits alone: the upper halves move to where they belong.
            let low = arch::_mm256_permutevar8x32_epi32(low, index);
            let high = arch::_mm256_slli_epi64::<32>(arch::_mm256_permutevar8x32_epi32(high, index));
            arch::_mm256_blend_epi32::<0b1010_1010>(low, high).simd_into(avx2)
        }
    );
    /// Four by four within each 128 bits.
    macro_rules! turned {
        ($rows:ident, $low:ident, $high:ident, $shuffle:ident) => {{
            let [a, b, c, d] = $rows;
            let (ab, cd) = ([arch::$low(a, b), arch::$high(a, b)], [arch::$low(c, d), arch::$high(c, d)]);
            [
                arch::$shuffle::<0b0100_0100>(ab[0], cd[0]),
                arch::$shuffle::<0b1110_1110>(ab[0], cd[0]),
                arch::$shuffle::<0b0100_0100>(ab[1], cd[1]),
                arch::$shuffle::<0b1110_1110>(ab[1], cd[1]),
            ]
        }};
    }
    fearless_simd::kernel!(
        #[inline(always)]
        pub(super) fn load_columns_avx2(avx2: Avx2, rows: [*const f32; 8]) -> [f32x8<Avx2>; 4] {
            let mut pairs = [arch::_mm256_setzero_ps(); 4];
            for row in 0..4 {
                // SAFETY: the caller of `load_columns` promised that four values of each row are readable.
                pairs[row] = unsafe { arch::_mm256_loadu2_m128(rows[row + 4], rows[row]) };
            }
            let [a, b, c, d] = turned!(pairs, _mm256_unpacklo_ps, _mm256_unpackhi_ps, _mm256_shuffle_ps);
            [a.simd_into(avx2), b.simd_into(avx2), c.simd_into(avx2), d.simd_into(avx2)]
        }
    );
    fearless_simd::kernel!(
        #[inline(always)]
        pub(super) fn store_columns_avx2(avx2: Avx2, rows: [*mut f32; 8], columns: [f32x8<Avx2>; 4]) {
            let [a, b, c, d] = columns;
            let columns = [a.into(), b.into(), c.into(), d.into()];
            let turned = turned!(columns, _mm256_unpacklo_ps, _mm256_unpackhi_ps, _mm256_shuffle_ps);
            for row in 0..4 {
                // SAFETY: the caller of `store_columns` promised that four values of each row are writeable.
                unsafe { arch::_mm256_storeu2_m128(rows[row + 4], rows[row], turned[row]) }
            }
        }
    );
    fearless_simd::kernel!(
        #[inline(always)]
        pub(super) fn load_columns_avx512(avx512: Avx512, rows: [*const f32; 16]) -> [f32x16<Avx512>; 4] {
            let mut fours = [arch::_mm512_setzero_ps(); 4];
            for row in 0..4 {
                // SAFETY: the caller of `load_columns` promised that four values of each row are readable.
                unsafe {
                    let low = arch::_mm256_loadu2_m128(rows[row + 4], rows[row]);
                    let high = arch::_mm256_loadu2_m128(rows[row + 12], rows[row + 8]);
                    fours[row] = arch::_mm512_insertf32x8::<1>(arch::_mm512_castps256_ps512(low), high);
                }
            }
            let [a, b, c, d] = turned!(fours, _mm512_unpacklo_ps, _mm512_unpackhi_ps, _mm512_shuffle_ps);
            [a.simd_into(avx512), b.simd_into(avx512), c.simd_into(avx512), d.simd_into(avx512)]
        }
    );
    fearless_simd::kernel!(
        #[inline(always)]
        pub(super) fn store_columns_avx512(avx512: Avx512, rows: [*mut f32; 16], columns: [f32x16<Avx512>; 4]) {
            let [a, b, c, d] = columns;
            let columns = [a.into(), b.into(), c.into(), d.into()];
            let turned = turned!(columns, _mm512_unpacklo_ps, _mm512_unpackhi_ps, _mm512_shuffle_ps);
            for row in 0..4 {
                let high = arch::_mm512_extractf32x8_ps::<1>(turned[row]);
                // SAFETY: the caller of `store_columns` promised that four values of each row are writeable.
                unsafe {
                    arch::_mm256_storeu2_m128(rows[row + 4], rows[row], arch::_mm512_castps512_ps256(turned[row]));
                    arch::_mm256_storeu2_m128(rows[row + 12], rows[row + 8], high);
                }
            }
        }
    );
    macro_rules! parts {
        ($load:ident, $store:ident, $value:ty, $lanes:ty, $mask:ty, $masked_load:ident, $masked_store:ident) => {
            fearless_simd::kernel!(
                #[inline(always)]
                pub(super) fn $load(avx512: Avx512, source: *const $value, count: usize, rest: $lanes) -> $lanes {
                    let mask = <$mask>::MAX.unbounded_shl(count as u32);
                    // SAFETY: the caller of `load_part` promised that `count` values are readable; no other is read.
                    unsafe { arch::$masked_load(rest.into(), !mask, source.cast()).simd_into(avx512) }
                }
            );
            fearless_simd::kernel!(
                #[inline(always)]
                pub(super) fn $store(avx512: Avx512, destination: *mut $value, count: usize, lanes: $lanes) {
                    // What the compiler knows of a count it may turn into a store that is too wide: of one 16-bit value
                    // it made one of 4 bytes.
                    let count = std::hint::black_box(count);
                    let mask = <$mask>::MAX.unbounded_shl(count as u32);
                    // SAFETY: the caller of `store_part` promised that `count` values are writeable; no other is
                    // written.
                    unsafe { arch::$masked_store(destination.cast(), !mask, lanes.into()) }
                }
            );
        };
    }
    fearless_simd::kernel!(
        #[inline(always)]
        pub(super) fn load_4_avx2(avx2: Avx2, source: *const f32, count: usize, rest: f32x8<Avx2>) -> f32x8<Avx2> {
            let lanes = arch::_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
            let mask = arch::_mm256_cmpgt_epi32(arch::_mm256_set1_epi32(count.min(8) as i32), lanes);
            // SAFETY: the caller of `load_part` promised that `count` values are readable; no other is read.
            let values = unsafe { arch::_mm256_maskload_ps(source, mask) };
            arch::_mm256_blendv_ps(rest.into(), values, arch::_mm256_castsi256_ps(mask)).simd_into(avx2)
        }
    );
    fearless_simd::kernel!(
        #[inline(always)]
        pub(super) fn load_8_avx2(avx2: Avx2, source: *const f64, count: usize, rest: f64x4<Avx2>) -> f64x4<Avx2> {
            let lanes = arch::_mm256_setr_epi64x(0, 1, 2, 3);
            let mask = arch::_mm256_cmpgt_epi64(arch::_mm256_set1_epi64x(count.min(4) as i64), lanes);
            // SAFETY: the caller of `load_part` promised that `count` values are readable; no other is read.
            let values = unsafe { arch::_mm256_maskload_pd(source, mask) };
            arch::_mm256_blendv_pd(rest.into(), values, arch::_mm256_castsi256_pd(mask)).simd_into(avx2)
        }
    );
    parts!(load_4, store_4, f32, f32x16<Avx512>, u16, _mm512_mask_loadu_ps, _mm512_mask_storeu_ps);
    parts!(load_8, store_8, f64, f64x8<Avx512>, u8, _mm512_mask_loadu_pd, _mm512_mask_storeu_pd);
    parts!(load_2, store_2, u16, u16x16<Avx512>, u16, _mm256_mask_loadu_epi16, _mm256_mask_storeu_epi16);
}

/// What `load_part` and `store_part` move.
pub trait Parts<S: Simd>: SimdBase<S> {
    /// The first `count` values at `source`, and `rest` behind them, with the level's masked load if it has one.
    ///
    /// # Safety
    /// As for `load_part`.
    unsafe fn masked_load(simd: S, source: *const Self::Element, count: usize, rest: Self) -> Option<Self>;

    /// Write the first `count` values with the level's masked store; whether it has one.
    ///
    /// # Safety
    /// As for `store_part`.
    unsafe fn masked_store(self, simd: S, destination: *mut Self::Element, count: usize) -> bool;
}

macro_rules! parts {
    ($lanes:ident, $load:ident, $store:ident $(, $half:ident, $load_avx2:ident)?) => {
        // Only levels of x86-64 have masked loads and stores.
        #[cfg_attr(not(target_arch = "x86_64"), allow(unused_variables))]
        impl<S: Simd> Parts<S> for $lanes<S> {
            #[inline(always)]
            unsafe fn masked_load(simd: S, source: *const Self::Element, count: usize, rest: Self) -> Option<Self> {
                match simd.level() {
                    #[cfg(target_arch = "x86_64")]
                    Level::Avx512(avx512) => {
                        let rest = rest.to_array().simd_into(avx512);
                        Some(x86::$load(avx512, source, count, rest).to_array().simd_into(simd))
                    }
                    $(
                        #[cfg(target_arch = "x86_64")]
                        Level::Avx2(avx2) => {
                            let (low, high) = rest.split();
                            let (low, high) = (low.to_array().simd_into(avx2), high.to_array().simd_into(avx2));
                            let (place, beyond) = (source.wrapping_add(Self::LEN / 2), count.saturating_sub(Self::LEN / 2));
                            let low = x86::$load_avx2(avx2, source, count, low).to_array();
                            let high = x86::$load_avx2(avx2, place, beyond, high).to_array();
                            let (low, high): ($half<S>, $half<S>) = (low.simd_into(simd), high.simd_into(simd));
                            Some(low.combine(high))
                        }
                    )?
                    _ => None,
                }
            }

            #[inline(always)]
            unsafe fn masked_store(self, simd: S, destination: *mut Self::Element, count: usize) -> bool {
                match simd.level() {
                    #[cfg(target_arch = "x86_64")]
                    Level::Avx512(avx512) => {
                        x86::$store(avx512, destination, count, self.to_array().simd_into(avx512));
                        true
                    }
                    _ => false,
                }
            }
        }
    };
}
parts!(f32x16, load_4, store_4, f32x8, load_4_avx2);
parts!(f64x8, load_8, store_8, f64x4, load_8_avx2);
parts!(u16x16, load_2, store_2);

/// The first `count` values at `source`, no more than there are lanes, and `rest` behind them.
///
/// # Safety
/// They are readable, at any alignment.
#[inline(always)]
pub(crate) unsafe fn load_part<S: Simd, L: Parts<S>>(simd: S, source: *const L::Element, count: usize, rest: L) -> L {
    assert!(count <= L::LEN);
    // SAFETY: the caller's promise.
    if let Some(lanes) = unsafe { L::masked_load(simd, source, count, rest) } {
        return lanes;
    }
    let mut lanes = rest;
    // SAFETY: readable by the caller's promise, and no more than the lanes; copied as bytes, which asks for no
    // alignment.
    unsafe {
        let bytes = count * size_of::<L::Element>();
        source.cast::<u8>().copy_to_nonoverlapping(lanes.as_mut_slice().as_mut_ptr().cast(), bytes);
    }
    lanes
}

/// Write the first `count` lanes.
///
/// # Safety
/// Their places at `destination` are writeable, at any alignment.
#[inline(always)]
pub(crate) unsafe fn store_part<S: Simd, L: Parts<S>>(simd: S, destination: *mut L::Element, count: usize, lanes: L) {
    assert!(count <= L::LEN);
    // SAFETY: the caller's promise; copied as bytes, which asks for no alignment.
    unsafe {
        if !lanes.masked_store(simd, destination, count) {
            let bytes = count * size_of::<L::Element>();
            destination.cast::<u8>().copy_from_nonoverlapping(lanes.as_slice().as_ptr().cast(), bytes);
        }
    }
}

/// Store 64 bytes without reading the line into the cache first.
///
/// # Safety
/// `destination` is valid for writing 64 bytes, aligned to 64, and nothing else accesses them meanwhile.
#[inline(always)]
pub(crate) unsafe fn stream<S: Simd>(simd: S, destination: *mut u8, bytes: &[u8; 64]) {
    debug_assert_eq!(destination.align_offset(64), 0);
    // SAFETY: valid, aligned and exclusive by the caller's promise; `Line` is 64 plain bytes.
    let line = unsafe { &mut *destination.cast::<MaybeUninit<Line>>() };
    match simd.level() {
        #[cfg(target_arch = "x86_64")]
        Level::Avx512(simd) => x86::stream_avx512(simd, line, bytes),
        #[cfg(target_arch = "x86_64")]
        Level::Avx2(simd) => x86::stream_avx2(simd, line, bytes),
        #[cfg(target_arch = "x86_64")]
        Level::Sse2(simd) => x86::stream_sse2(simd, line, bytes),
        _ => *line = MaybeUninit::new(Line(*bytes)),
    }
}

/// Make the streaming stores of this thread visible before any later store of it.
#[inline(always)]
pub(crate) fn store_fence() {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: SSE is part of the x86-64 baseline.
    unsafe {
        core::arch::x86_64::_mm_sfence();
    }
}

/// Four neighbouring values of each of 16 rows, as four vectors with a lane a row.
///
/// # Safety
/// They are readable, at any alignment.
#[inline(always)]
pub(crate) unsafe fn load_columns<S: Simd>(simd: S, rows: &[*const f32; 16]) -> [f32x16<S>; 4] {
    match simd.level() {
        #[cfg(target_arch = "x86_64")]
        Level::Avx512(avx512) => {
            let [a, b, c, d] = x86::load_columns_avx512(avx512, *rows);
            [a, b, c, d].map(
                #[inline(always)]
                |column| column.to_array().simd_into(simd),
            )
        }
        #[cfg(target_arch = "x86_64")]
        Level::Avx2(avx2) => {
            let (low, high): ([_; 8], [_; 8]) =
                (std::array::from_fn(|row| rows[row]), std::array::from_fn(|row| rows[row + 8]));
            let (low, high) = (x86::load_columns_avx2(avx2, low), x86::load_columns_avx2(avx2, high));
            std::array::from_fn(
                #[inline(always)]
                |column| {
                    let low: f32x8<S> = low[column].to_array().simd_into(simd);
                    let high: f32x8<S> = high[column].to_array().simd_into(simd);
                    low.combine(high)
                },
            )
        }
        _ => {
            let mut columns = [[0.0; 16]; 4];
            for (lane, row) in rows.iter().enumerate() {
                for (offset, column) in columns.iter_mut().enumerate() {
                    // SAFETY: the caller's promise.
                    column[lane] = unsafe { row.add(offset).read_unaligned() };
                }
            }
            columns.map(
                #[inline(always)]
                |column| column.simd_into(simd),
            )
        }
    }
}

/// Write four vectors, with a lane a row, to neighbouring places of 16 rows.
///
/// # Safety
/// These are writeable, at any alignment.
#[inline(always)]
pub(crate) unsafe fn store_columns<S: Simd>(simd: S, rows: &[*mut f32; 16], columns: [f32x16<S>; 4]) {
    match simd.level() {
        #[cfg(target_arch = "x86_64")]
        Level::Avx512(avx512) => {
            let columns = columns.map(
                #[inline(always)]
                |column| column.to_array().simd_into(avx512),
            );
            x86::store_columns_avx512(avx512, *rows, columns);
        }
        #[cfg(target_arch = "x86_64")]
        Level::Avx2(avx2) => {
            for half in [0, 8] {
                let rows = std::array::from_fn(|row| rows[half + row]);
                let columns = columns.map(
                    #[inline(always)]
                    |column| {
                        let (low, high) = column.split();
                        (if half == 0 { low } else { high }).to_array().simd_into(avx2)
                    },
                );
                x86::store_columns_avx2(avx2, rows, columns);
            }
        }
        _ => {
            for (offset, column) in columns.iter().enumerate() {
                for (value, row) in column.as_slice().iter().zip(rows) {
                    // SAFETY: the caller's promise.
                    unsafe { row.add(offset).write_unaligned(*value) }
                }
            }
        }
    }
}

/// Ask for the cache lines of `bytes` bytes from `address` on; any are fine, mapped or not.
#[inline(always)]
pub(crate) fn prefetch(address: *const u8, bytes: usize) {
    for line in (0..bytes).step_by(64) {
        let address = address.wrapping_add(line);
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a prefetch is a hint that never faults, and SSE is part of the x86-64 baseline.
        unsafe {
            core::arch::x86_64::_mm_prefetch::<{ core::arch::x86_64::_MM_HINT_T0 }>(address.cast());
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = address;
    }
}

/// How far ahead of what is read the next cache lines are asked for, in bytes (see [`crate::simd`] for the figures).
const AHEAD: usize = 8192;

/// Ask for the cache lines that `bytes` bytes from `source` on, once they are read, will be followed by.
#[inline(always)]
pub(crate) fn prefetch_ahead(source: *const u8, bytes: usize) {
    prefetch(source.wrapping_add(AHEAD), bytes);
}

/// Of each lane the number that its three lowest bits are the index of.
#[inline(always)]
pub(crate) fn look_up_u32<S: Simd>(simd: S, table: &[u32; 8], index: u32x16<S>) -> u32x16<S> {
    match simd.level() {
        #[cfg(target_arch = "x86_64")]
        Level::Avx512(avx512) => {
            let index = index.to_array().simd_into(avx512);
            x86::look_up_u32_avx512(avx512, table, index).to_array().simd_into(simd)
        }
        #[cfg(target_arch = "x86_64")]
        Level::Avx2(avx2) => {
            let (low, high) = index.split();
            let low = x86::look_up_u32_avx2(avx2, table, low.to_array().simd_into(avx2));
            let high = x86::look_up_u32_avx2(avx2, table, high.to_array().simd_into(avx2));
            let (low, high): (u32x8<S>, u32x8<S>) = (low.to_array().simd_into(simd), high.to_array().simd_into(simd));
            low.combine(high)
        }
        _ => {
            let numbers = index.to_array().map(
                #[inline(always)]
                |index| table[(index & 7) as usize],
            );
            numbers.simd_into(simd)
        }
    }
}

/// What [`look_up_u64`] looks up, whole and in halves.
pub(crate) struct Table64 {
    whole: [u64; 8],
    #[cfg(target_arch = "x86_64")]
    low: [u32; 8],
    #[cfg(target_arch = "x86_64")]
    high: [u32; 8],
}

impl Table64 {
    pub(crate) const fn new(whole: [u64; 8]) -> Self {
        let (mut low, mut high) = ([0; 8], [0; 8]);
        let mut number = 0;
        while number < 8 {
            (low[number], high[number]) = (whole[number] as u32, (whole[number] >> 32) as u32);
            number += 1;
        }
        Self {
            whole,
            #[cfg(target_arch = "x86_64")]
            low,
            #[cfg(target_arch = "x86_64")]
            high,
        }
    }
}

/// [`look_up_u32`] of numbers of 64 bits.
#[inline(always)]
pub(crate) fn look_up_u64<S: Simd>(simd: S, table: &Table64, index: u64x8<S>) -> u64x8<S> {
    match simd.level() {
        #[cfg(target_arch = "x86_64")]
        Level::Avx512(avx512) => {
            let index = index.to_array().simd_into(avx512);
            x86::look_up_u64_avx512(avx512, &table.whole, index).to_array().simd_into(simd)
        }
        #[cfg(target_arch = "x86_64")]
        Level::Avx2(avx2) => {
            let (low, high) = index.split();
            let low = x86::look_up_u64_avx2(avx2, &table.low, &table.high, low.to_array().simd_into(avx2));
            let high = x86::look_up_u64_avx2(avx2, &table.low, &table.high, high.to_array().simd_into(avx2));
            let (low, high): (u64x4<S>, u64x4<S>) = (low.to_array().simd_into(simd), high.to_array().simd_into(simd));
            low.combine(high)
        }
        _ => {
            let numbers = index.to_array().map(
                #[inline(always)]
                |index| table.whole[(index & 7) as usize],
            );
            numbers.simd_into(simd)
        }
    }
}

/// Sixteen half-precision floats as single precision; exact.
#[inline(always)]
pub(crate) fn f16_to_f32<S: Simd>(simd: S, bits: [u16; 16]) -> f32x16<S> {
    let values = match simd.level() {
        #[cfg(target_arch = "x86_64")]
        Level::Avx512(simd) => x86::f16_to_f32_avx512(simd, bits),
        #[cfg(target_arch = "x86_64")]
        Level::Avx2(simd) => x86::f16_to_f32_avx2(simd, bits),
        _ => bits.map(|bits| f16::from_bits(bits).to_f32()),
    };
    values.simd_into(simd)
}

/// Sixteen single-precision floats rounded to half precision, ties to even.
#[inline(always)]
pub(crate) fn f16_from_f32<S: Simd>(simd: S, values: f32x16<S>) -> [u16; 16] {
    let values: [f32; 16] = values.into();
    match simd.level() {
        #[cfg(target_arch = "x86_64")]
        Level::Avx512(simd) => x86::f16_from_f32_avx512(simd, values),
        #[cfg(target_arch = "x86_64")]
        Level::Avx2(simd) => x86::f16_from_f32_avx2(simd, values),
        _ => values.map(|value| f16::from_f32(value).to_bits()),
    }
}
