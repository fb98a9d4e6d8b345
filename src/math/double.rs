//! f64, in 8 lanes.

use fearless_simd::{Simd, f64x4, f64x8, prelude::*, u64x8};

use super::exponential::EIGHTHS;
use super::logarithm::{LOG_OF_QUOTIENT_F64, log_one_plus, logs_of_quotient};
use super::{Boost, Method, Octaves, Real, Total, Twice, UNIT, is_fused, precise_sum, two_sum};
use crate::simd::{Table64, look_up_u64, turned};

/// The bits of `2^(j/8)`, less those of j, as in f32.
const TABLE: Table64 = {
    let mut numbers = [0; 8];
    let mut j = 0;
    while j < 8 {
        numbers[j] = EIGHTHS[j].to_bits() - ((j as u64) << 49);
        j += 1;
    }
    Table64::new(numbers)
};

impl Real for f64 {
    type Lanes<S: Simd> = f64x8<S>;
    const LANES: usize = 8;
    const LOWEST: Self = f64::MIN;
    const UNDERFLOW: f64 = -1100.0;
    const SMALLEST_NORMAL: f64 = f64::MIN_POSITIVE;
    const BOOST: f64 = 1.340_780_792_994_259_7e154;
    const LOG2_E: Self = std::f64::consts::LOG2_E;
    // scripts/polynomials.py ln_2_f64: relative error 2^-88.77.
    const LN_2: [Self; 2] = [0.693_147_180_485_539_1, 7.440_617_110_012_397e-11];
    const ROUNDED_LN_2: &'static [Self] = &Self::LN_2;
    const LOG_OF_QUOTIENT: &'static [Self] = &LOG_OF_QUOTIENT_F64;
    const SHRINKAGE: f64 = 0.0;

    // scripts/polynomials.py eighths_f64: relative error 2^-110.07.
    const EIGHTHS: [Self; 2] = [11.541_560_327_111_707, 1.628_421_899_274_482_6e-16];
    const WHOLE_EIGHTHS: bool = true;
    const ROUNDING: Self = 6_755_399_441_055_744.0;
    const BOOST_EXPONENT: u32 = 512;
    const EXPONENT_BIAS: u32 = 1023;
    const SPLITTER: Self = ((1 << 27) + 1) as Self;
    const CHAINS: usize = 4;
    const LARGEST_REFERENCE: f64 = 70_368_744_177_664.0;

    #[inline(always)]
    #[allow(clippy::approx_constant)] // the last coefficients are derived, as the others
    fn octaves<S: Simd>() -> Octaves<Self> {
        if const { is_fused::<S>() } {
            Octaves {
                steps: 8,
                // scripts/polynomials.py octaves_f64_by_eighths: relative error 2^-58.22.
                p: &[
                    7.273_260_548_247_923e-12,
                    5.876_355_680_574_139e-10,
                    4.069_079_016_307_09e-8,
                    2.348_176_046_311_04e-6,
                    0.000_108_406_462_236_009_9,
                    0.003_753_539_171_236_162_6,
                    0.086_643_397_569_993_16,
                ],
            }
        } else {
            Octaves {
                steps: 1,
                // scripts/polynomials.py octaves_f64: relative error 2^-57.76.
                p: &[
                    4.439_525_669_096_293e-10,
                    7.073_301_694_994_246e-9,
                    1.017_815_530_899_609_6e-7,
                    1.321_543_841_697_760_6e-6,
                    0.000_015_252_733_646_539_238,
                    0.000_154_035_304_499_515_7,
                    0.001_333_355_814_653_170_3,
                    0.009_618_129_107_600_759,
                    0.055_504_108_664_821_784,
                    0.240_226_506_959_101_1,
                    0.693_147_180_559_945_3,
                ],
            }
        }
    }

    #[inline(always)]
    fn power<S: Simd>(simd: S, rounded: f64x8<S>, steps: u32) -> f64x8<S> {
        let bits: u64x8<S> = rounded.bitcast();
        if steps == 1 { (bits << 52).bitcast() } else { (look_up_u64(simd, &TABLE, bits) + (bits << 49)).bitcast() }
    }

    #[inline(always)]
    fn classes<S: Simd>(simd: S, classes: &[usize; 16]) -> f64x8<S> {
        let numbers: [u64; 8] = std::array::from_fn(
            #[inline(always)]
            |lane| classes[lane] as u64,
        );
        let numbers: u64x8<S> = numbers.simd_into(simd);
        numbers.bitcast()
    }

    #[inline(always)]
    fn class<S: Simd>(simd: S, class: usize) -> f64x8<S> {
        u64x8::splat(simd, class as u64).bitcast()
    }

    #[inline(always)]
    fn class_numbers<S: Simd>(classes: f64x8<S>, numbers: &mut [usize; 16]) {
        let classes: u64x8<S> = classes.bitcast();
        for (number, class) in numbers.iter_mut().zip(classes.as_slice()) {
            *number = *class as usize;
        }
    }

    #[inline(always)]
    fn replace<S: Simd>(simd: S, lanes: f64x8<S>, own: f64x8<S>, class: usize, value: f64x8<S>) -> f64x8<S> {
        let own: u64x8<S> = own.bitcast();
        own.simd_eq(u64x8::splat(simd, class as u64)).select(value, lanes)
    }

    /// NaN may get lost.
    #[inline(always)]
    fn larger<S: Simd>(a: f64x8<S>, b: f64x8<S>) -> f64x8<S> {
        a.max(b)
    }

    #[inline(always)]
    unsafe fn load_columns<S: Simd>(simd: S, rows: &[*const f64; 16]) -> [f64x8<S>; 4] {
        let mut fours = [f64x4::splat(simd, 0.0); 8];
        for (four, row) in fours.iter_mut().zip(rows) {
            // SAFETY: four values of the row, readable by the caller's promise.
            *four = unsafe { row.cast::<[f64; 4]>().read_unaligned() }.simd_into(simd);
        }
        let [low, high] =
            [turned([fours[0], fours[1], fours[2], fours[3]]), turned([fours[4], fours[5], fours[6], fours[7]])];
        [low[0].combine(high[0]), low[1].combine(high[1]), low[2].combine(high[2]), low[3].combine(high[3])]
    }

    #[inline(always)]
    unsafe fn store_columns<S: Simd>(_: S, rows: &[*mut f64; 16], [a, b, c, d]: [f64x8<S>; 4]) {
        let ([a, a_high], [b, b_high]) = (<[_; 2]>::from(a.split()), <[_; 2]>::from(b.split()));
        let ([c, c_high], [d, d_high]) = (<[_; 2]>::from(c.split()), <[_; 2]>::from(d.split()));
        let fours = turned([a, b, c, d]).into_iter().chain(turned([a_high, b_high, c_high, d_high]));
        for (four, row) in fours.zip(rows) {
            // SAFETY: four values of the row, writeable by the caller's promise.
            unsafe { row.cast::<[f64; 4]>().write_unaligned(four.into()) }
        }
    }

    #[inline(always)]
    fn log_one_plus<S: Simd>(simd: S, y: f64x8<S>) -> Twice<S> {
        log_one_plus(simd, y)
    }

    #[inline(always)]
    fn method<S: Simd>() -> Method<Self> {
        if const { is_fused::<S>() } {
            Method {
                steps: 8,
                // scripts/polynomials.py exp_f64_by_eighths: relative error 2^-58.26.
                q: &[
                    0.000_198_405_641_993_281_7,
                    0.001_388_978_227_522_131_5,
                    0.008_333_333_371_271_533,
                    0.041_666_666_569_726_37,
                    0.166_666_666_666_637_07,
                    0.500_000_000_000_029_8,
                ],
            }
        } else {
            Method {
                steps: 1,
                // scripts/polynomials.py exp_f64: relative error 2^-54.70.
                q: &[
                    2.510_042_415_700_506_7e-8,
                    2.762_013_871_973_399_4e-7,
                    2.755_726_837_868_419_2e-6,
                    2.480_152_119_021_773e-5,
                    0.000_198_412_698_631_059_68,
                    0.001_388_888_891_728_179_4,
                    0.008_333_333_333_330_051,
                    0.041_666_666_666_623_99,
                    0.166_666_666_666_666_69,
                    0.5,
                ],
            }
        }
    }

    #[inline(always)]
    fn exponents<S: Simd, const K: usize>(
        simd: S,
        mut x: [f64x8<S>; K],
        boost: Boost,
        steps: u32,
    ) -> [[f64x8<S>; K]; 3] {
        // Where n/N is −1023 (−1023 − 512), as in f32.
        let (offset, lowest) = match boost {
            Boost::None => (0, -709.09),
            Boost::Full => (512, -1063.98),
        };
        let offset = if steps == 1 { offset + 1023 } else { offset * steps };
        let magic = f64x8::splat(simd, 6_755_399_441_055_744.0 + f64::from(offset));
        // NaN passes, as in f32.
        let lowest = f64x8::splat(simd, lowest);
        for k in 0..K {
            x[k] = lowest.max(x[k]);
        }
        let (mut n, mut power) = (x, x);
        for k in 0..K {
            n[k] = x[k].mul_add(f64x8::splat(simd, Self::LOG2_E * f64::from(steps)), magic);
        }
        for k in 0..K {
            power[k] = Self::power(simd, n[k], steps);
        }
        for k in 0..K {
            n[k] -= magic;
        }
        [x, n, power]
    }

    /// Two-sum: the second part collects what the first one's rounding loses, which is NaN for an infinity.
    #[inline(always)]
    fn add_to<S: Simd>(total: &mut Total<S>, lanes: f64x8<S>) {
        let [sum, lost] = two_sum(total.parts[0], lanes);
        total.parts[0] = sum;
        total.parts[1] += sum.is_finite().select(lost, f64x8::splat(sum.token(), 0.0));
    }

    #[inline(always)]
    fn add_weighted<S: Simd>(simd: S, total: &mut Total<S>, weights: Twice<S>, value: Twice<S>, reference: Twice<S>) {
        let zero = f64x8::splat(simd, 0.0);
        let [weights, _] = weights;
        let [difference, lost] = two_sum(value[0] * (1.0 / UNIT), -(reference[0] * (1.0 / UNIT)));
        let lost = (value[1] - reference[1]).mul_add(f64x8::splat(simd, 1.0 / UNIT), lost);
        let nothing = weights.simd_eq(zero);
        let (difference, lost) = (nothing.select(zero, difference), nothing.select(zero, lost));
        let product = weights * difference;
        let rest = weights.mul_sub_precise(difference, product) + weights * lost;
        Self::add_to(total, product);
        total.parts[1] += product.is_finite().select(rest, zero);
    }

    /// `2s·(1 + s²·P(s²))` with `s = y / (2 + y)`: a polynomial in y would have twice the terms.
    #[inline(always)]
    fn logs_1p<S: Simd, const K: usize>(simd: S, y: [f64x8<S>; K]) -> [f64x8<S>; K] {
        logs_of_quotient::<S, f64, K>(simd, y)
    }

    #[inline(always)]
    fn add_twice<S: Simd>(total: &mut Total<S>, [lanes, rest]: Twice<S>) {
        Self::add_to(total, lanes);
        total.parts[1] += rest;
    }

    #[inline(always)]
    fn twice<S: Simd>(lanes: f64x8<S>) -> Twice<S> {
        [lanes, f64x8::splat(lanes.token(), 0.0)]
    }

    #[inline(always)]
    fn once<S: Simd>([sum, rest]: Twice<S>) -> f64x8<S> {
        sum + rest
    }

    #[inline(always)]
    fn widen<S: Simd>(lanes: f64x8<S>, numbers: &mut [f64; 16]) {
        numbers[..8].copy_from_slice(lanes.as_slice());
    }

    #[inline(always)]
    fn narrow<S: Simd>(simd: S, numbers: &[f64]) -> f64x8<S> {
        f64x8::from_slice(simd, &numbers[..8])
    }

    #[inline(always)]
    fn add_numbers<S: Simd>(simd: S, total: &mut Total<S>, numbers: &[f64]) {
        Self::add_to(total, f64x8::from_slice(simd, numbers));
    }

    #[inline(always)]
    fn scale<S: Simd>(total: &mut Total<S>, factor: f64) {
        let [sum, lost] = total.parts;
        let factor = f64x8::splat(sum.token(), factor);
        let product = sum * factor;
        total.parts[0] = product;
        total.parts[1] = lost.mul_add(factor, sum.mul_sub_precise(factor, product));
    }

    #[inline(always)]
    fn lane_totals<S: Simd>(total: &Total<S>, lanes: &mut [f64]) {
        lanes[..8].copy_from_slice((total.parts[0] + total.parts[1]).as_slice());
    }

    #[inline(always)]
    fn lost_of_lanes<S: Simd>(total: &Total<S>, lanes: &mut [f64]) {
        let [_, lost] = two_sum(total.parts[0], total.parts[1]);
        lanes[..8].copy_from_slice(lost.as_slice());
    }

    #[inline(always)]
    fn sum_of_lanes<S: Simd>(total: &Total<S>) -> f64 {
        let [sums, lost] = total.parts;
        precise_sum(sums.as_slice().iter().chain(lost.as_slice()).copied())
    }

    #[inline(always)]
    fn largest<S: Simd>(lanes: f64x8<S>) -> f64 {
        lanes.token().reduce_max_f64x8(lanes)
    }

    #[inline(always)]
    fn from_f64(value: f64) -> Self {
        value
    }

    #[inline(always)]
    fn next_smaller(self) -> Self {
        self.next_down()
    }

    #[inline(always)]
    fn next_larger(self) -> Self {
        self.next_up()
    }

    #[inline(always)]
    fn to_f64(self) -> f64 {
        self
    }
}
