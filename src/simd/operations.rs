//! The operations that the vector types of `fearless_simd` do not have: streaming stores, prefetches, parts of vectors,
//! lookups, and the conversion of half-precision floats. Each is a plain function with the best instructions per level
//! inside.

use std::mem::MaybeUninit;

#[cfg(not(target_arch = "wasm32"))]
use fearless_simd::Level;
use fearless_simd::{Simd, f32x4, f32x16, f64x8, prelude::*, u16x16, u32x16, u64x8};
#[cfg(target_arch = "x86_64")]
use fearless_simd::{f32x8, f64x4, u32x8, u64x4};
use half::f16;

/// A cache line, on the boundary that streaming stores need.
#[repr(C, align(64))]
pub(crate) struct Line([u8; 64]);

#[cfg(target_arch = "aarch64")]
mod neon;
#[cfg(test)]
mod tests;
#[cfg(target_arch = "x86_64")]
mod x86;

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
    ($lanes:ident, $load:ident, $store:ident, $load_neon:ident, $store_neon:ident $(, $half:ident, $load_avx2:ident)?) => {
        // WebAssembly has no loads and stores of a part.
        #[cfg_attr(target_arch = "wasm32", allow(unused_variables))]
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
                    #[cfg(target_arch = "aarch64")]
                    Level::Neon(neon) => {
                        let rest = rest.to_bytes().into();
                        let bytes = neon::$load_neon(neon, source.cast(), count * size_of::<Self::Element>(), rest);
                        Some(Self::from_bytes(bytes.simd_into(simd)))
                    }
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
                    #[cfg(target_arch = "aarch64")]
                    Level::Neon(neon) => {
                        let (bytes, count) = (self.to_bytes().into(), count * size_of::<Self::Element>());
                        neon::$store_neon(neon, destination.cast(), count, bytes);
                        true
                    }
                    _ => false,
                }
            }
        }
    };
}
parts!(f32x16, load_4, store_4, load_64, store_64, f32x8, load_4_avx2);
parts!(f64x8, load_8, store_8, load_64, store_64, f64x4, load_8_avx2);
parts!(u16x16, load_2, store_2, load_32, store_32);

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

/// A square of four by four, transposed.
#[inline(always)]
pub(crate) fn turned<S: Simd, V: SimdBase<S>>([a, b, c, d]: [V; 4]) -> [V; 4] {
    let [even, odd] = [[a.zip_low(c), a.zip_high(c)], [b.zip_low(d), b.zip_high(d)]];
    [even[0].zip_low(odd[0]), even[0].zip_high(odd[0]), even[1].zip_low(odd[1]), even[1].zip_high(odd[1])]
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
            let [a, b, c, d] = [0, 4, 8, 12].map(
                #[inline(always)]
                |first| {
                    turned(std::array::from_fn(
                        #[inline(always)]
                        |row| {
                            // SAFETY: the caller's promise.
                            let four = unsafe { rows[first + row].cast::<[f32; 4]>().read_unaligned() };
                            f32x4::simd_from(simd, four)
                        },
                    ))
                },
            );
            std::array::from_fn(
                #[inline(always)]
                |column| a[column].combine(b[column]).combine(c[column].combine(d[column])),
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
            let halves = columns.map(
                #[inline(always)]
                |column| <[_; 2]>::from(column.split()),
            );
            for half in 0..2 {
                let quarters = halves.map(
                    #[inline(always)]
                    |halves| <[_; 2]>::from(halves[half].split()),
                );
                for quarter in 0..2 {
                    let fours = turned(quarters.map(
                        #[inline(always)]
                        |quarters| quarters[quarter],
                    ));
                    for (row, four) in fours.into_iter().enumerate() {
                        let place = rows[8 * half + 4 * quarter + row].cast::<[f32; 4]>();
                        // SAFETY: the caller's promise.
                        unsafe { place.write_unaligned(four.into()) }
                    }
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
        #[cfg(target_arch = "aarch64")]
        Level::Neon(neon) => neon::look_up_u32(neon, table, index.to_array()).simd_into(simd),
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
        #[cfg(target_arch = "x86_64")]
        {
            let (mut low, mut high) = ([0; 8], [0; 8]);
            let mut number = 0;
            while number < 8 {
                (low[number], high[number]) = (whole[number] as u32, (whole[number] >> 32) as u32);
                number += 1;
            }
            Self { whole, low, high }
        }
        #[cfg(not(target_arch = "x86_64"))]
        Self { whole }
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
        #[cfg(target_arch = "aarch64")]
        Level::Neon(neon) => neon::look_up_u64(neon, &table.whole, index.to_array()).simd_into(simd),
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
        #[cfg(target_arch = "aarch64")]
        Level::Neon(simd) => neon::f16_to_f32(simd, bits),
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
        #[cfg(target_arch = "aarch64")]
        Level::Neon(simd) => neon::f16_from_f32(simd, values),
        _ => values.map(|value| f16::from_f32(value).to_bits()),
    }
}
