//! What AVX-512, AVX2 and SSE2 have for the operations.

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
            let bits = arch::_mm512_cvtps_ph::<{ arch::_MM_FROUND_TO_NEAREST_INT | arch::_MM_FROUND_NO_EXC }>(values);
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
        let (low, high) =
            unsafe { (arch::_mm256_loadu_si256(low.as_ptr().cast()), arch::_mm256_loadu_si256(high.as_ptr().cast())) };
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
