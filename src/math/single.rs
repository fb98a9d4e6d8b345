//! f32, in 16 lanes.

use fearless_simd::{Simd, f32x16, f64x8, prelude::*, u32x16};

use super::exponential::EIGHTHS;
use super::logarithm::{LOG_1P, LOG_OF_QUOTIENT_F32, log_one_plus_for_f32};
use super::{Boost, Method, Octaves, Real, Total, Twice, UNIT, is_fused, polynomials};
use crate::simd::{load_columns, look_up_u32, store_columns};

/// The bits of `2^(j/8)`, less those of j three places above the exponent's lowest.
///
/// With n = 8·k + j, `2^(n/8)` is one of these, and n, shifted so that k meets the exponent: j needs no mask.
const TABLE: [u32; 8] = {
    let mut numbers = [0; 8];
    let mut j = 0;
    while j < 8 {
        numbers[j] = (EIGHTHS[j] as f32).to_bits() - ((j as u32) << 20);
        j += 1;
    }
    numbers
};

impl Real for f32 {
    type Lanes<S: Simd> = f32x16<S>;
    const LANES: usize = 16;
    const LOWEST: Self = f32::MIN;
    const UNDERFLOW: f64 = -140.0;
    const SMALLEST_NORMAL: f64 = f32::MIN_POSITIVE as f64;
    const BOOST: f64 = 18_446_744_073_709_551_616.0;
    const LOG2_E: Self = std::f32::consts::LOG2_E;
    // scripts/polynomials.py ln_2_f32: relative error 2^-43.52.
    const LN_2: [Self; 2] = [0.693_145_75, 1.428_606_8e-6];
    const ROUNDED_LN_2: &'static [Self] = &[std::f32::consts::LN_2];
    const LOG_OF_QUOTIENT: &'static [Self] = &LOG_OF_QUOTIENT_F32;
    const SHRINKAGE: f64 = std::f32::consts::LN_2 as f64 / std::f64::consts::LN_2 - 1.0;

    // scripts/polynomials.py eighths_f32: relative error 2^-51.60.
    const EIGHTHS: [Self; 2] = [11.541_56, 1.540_770_4e-7];
    const WHOLE_EIGHTHS: bool = false;
    const ROUNDING: Self = 12_582_912.0;
    const BOOST_EXPONENT: u32 = 64;
    const EXPONENT_BIAS: u32 = 127;
    const SPLITTER: Self = 4097.0;
    const CHAINS: usize = 2;
    const LARGEST_REFERENCE: f64 = 131_072.0;

    #[inline(always)]
    #[allow(clippy::approx_constant)] // the last coefficients are derived, as the others
    fn octaves<S: Simd>() -> Octaves<Self> {
        if const { is_fused::<S>() } {
            // scripts/polynomials.py octaves_f32_by_eighths: relative error 2^-25.21.
            Octaves { steps: 8, p: &[0.000_108_377_06, 0.003_754_024_6, 0.086_643_405] }
        } else {
            // scripts/polynomials.py octaves_f32: relative error 2^-28.31.
            Octaves {
                steps: 1,
                p: &[0.000_153_280_39, 0.001_339_100_8, 0.009_618_503, 0.055_503_596, 0.240_226_48, 0.693_147_2],
            }
        }
    }

    #[inline(always)]
    fn power<S: Simd>(simd: S, rounded: f32x16<S>, steps: u32) -> f32x16<S> {
        let bits: u32x16<S> = rounded.bitcast();
        // The numbers lack what the shift adds of j.
        if steps == 1 { (bits << 23).bitcast() } else { (look_up_u32(simd, &TABLE, bits) + (bits << 20)).bitcast() }
    }

    #[inline(always)]
    fn classes<S: Simd>(simd: S, classes: &[usize; 16]) -> f32x16<S> {
        let numbers: u32x16<S> = classes
            .map(
                #[inline(always)]
                |class| class as u32,
            )
            .simd_into(simd);
        numbers.bitcast()
    }

    #[inline(always)]
    fn class<S: Simd>(simd: S, class: usize) -> f32x16<S> {
        u32x16::splat(simd, class as u32).bitcast()
    }

    #[inline(always)]
    fn class_numbers<S: Simd>(classes: f32x16<S>, numbers: &mut [usize; 16]) {
        let classes: u32x16<S> = classes.bitcast();
        for (number, class) in numbers.iter_mut().zip(classes.as_slice()) {
            *number = *class as usize;
        }
    }

    #[inline(always)]
    fn replace<S: Simd>(simd: S, lanes: f32x16<S>, own: f32x16<S>, class: usize, value: f32x16<S>) -> f32x16<S> {
        let own: u32x16<S> = own.bitcast();
        own.simd_eq(u32x16::splat(simd, class as u32)).select(value, lanes)
    }

    /// As integers, in whose order NaN is largest.
    #[inline(always)]
    fn larger<S: Simd>(a: f32x16<S>, b: f32x16<S>) -> f32x16<S> {
        let (a, b): (u32x16<S>, u32x16<S>) = (a.bitcast(), b.bitcast());
        a.max(b).bitcast()
    }

    #[inline(always)]
    unsafe fn load_columns<S: Simd>(simd: S, rows: &[*const f32; 16]) -> [f32x16<S>; 4] {
        // SAFETY: the caller's promise.
        unsafe { load_columns(simd, rows) }
    }

    #[inline(always)]
    unsafe fn store_columns<S: Simd>(simd: S, rows: &[*mut f32; 16], columns: [f32x16<S>; 4]) {
        // SAFETY: the caller's promise.
        unsafe { store_columns(simd, rows, columns) }
    }

    #[inline(always)]
    fn log_one_plus<S: Simd>(simd: S, y: f64x8<S>) -> Twice<S> {
        [log_one_plus_for_f32(simd, y), f64x8::splat(simd, 0.0)]
    }

    #[inline(always)]
    fn method<S: Simd>() -> Method<Self> {
        if const { is_fused::<S>() } {
            // scripts/polynomials.py exp_f32_by_eighths: relative error 2^-25.21.
            Method { steps: 8, q: &[0.166_668_88, 0.500_064_6] }
        } else {
            // scripts/polynomials.py exp_f32: relative error 2^-26.88.
            Method { steps: 1, q: &[0.001_390_502, 0.008_366_278, 0.041_666_863, 0.166_665_45, 0.5] }
        }
    }

    #[inline(always)]
    fn exponents<S: Simd, const K: usize>(
        simd: S,
        mut x: [f32x16<S>; K],
        boost: Boost,
        steps: u32,
    ) -> [[f32x16<S>; K]; 3] {
        // Where n/N is −127 (−127 − 64): the exponent field, and with it the power of two, is zero. Between that and −126
        // the power is a smaller subnormal than it should be.
        let (offset, lowest) = match boost {
            Boost::None => (0, -88.0),
            Boost::Full => (64, -132.4),
        };
        let offset = if steps == 1 { offset + 127 } else { offset * steps };
        let magic = f32x16::splat(simd, 12_582_912.0 + offset as f32);
        // The order matters: on x86 `a.max(b)` is b when either is NaN, so NaN passes.
        let lowest = f32x16::splat(simd, lowest);
        for k in 0..K {
            x[k] = lowest.max(x[k]);
        }
        let (mut n, mut power) = (x, x);
        for k in 0..K {
            n[k] = x[k].mul_add(f32x16::splat(simd, Self::LOG2_E * steps as f32), magic);
        }
        for k in 0..K {
            power[k] = Self::power(simd, n[k], steps);
        }
        for k in 0..K {
            n[k] -= magic;
        }
        [x, n, power]
    }

    #[inline(always)]
    fn add_to<S: Simd>(total: &mut Total<S>, lanes: f32x16<S>) {
        let (low, high) = lanes.widen();
        total.parts[0] += low;
        total.parts[1] += high;
    }

    /// Differences of 24-bit numbers are as good as exact in f64.
    #[inline(always)]
    fn add_weighted<S: Simd>(simd: S, total: &mut Total<S>, weights: Twice<S>, value: Twice<S>, reference: Twice<S>) {
        let zero = f64x8::splat(simd, 0.0);
        for half in 0..2 {
            let weights = weights[half];
            let unit = f64x8::splat(simd, 1.0 / UNIT);
            let difference = value[half].mul_sub(unit, reference[half] * unit);
            let difference = weights.simd_eq(zero).select(zero, difference);
            total.parts[half] = weights.mul_add(difference, total.parts[half]);
        }
    }

    /// `y·P(y)`: an operation more than with a quotient, and no quotient.
    #[inline(always)]
    fn logs_1p<S: Simd, const K: usize>(simd: S, y: [f32x16<S>; K]) -> [f32x16<S>; K] {
        let mut logs = polynomials::<S, f32, K>(simd, &LOG_1P, y);
        for k in 0..K {
            logs[k] *= y[k];
        }
        logs
    }

    #[inline(always)]
    fn add_twice<S: Simd>(total: &mut Total<S>, [low, high]: Twice<S>) {
        total.parts[0] += low;
        total.parts[1] += high;
    }

    #[inline(always)]
    fn twice<S: Simd>(lanes: f32x16<S>) -> Twice<S> {
        let (low, high) = lanes.widen();
        [low, high]
    }

    #[inline(always)]
    fn once<S: Simd>([low, high]: Twice<S>) -> f32x16<S> {
        low.narrow(high)
    }

    #[inline(always)]
    fn widen<S: Simd>(lanes: f32x16<S>, numbers: &mut [f64; 16]) {
        let (low, high) = lanes.widen();
        numbers[..8].copy_from_slice(low.as_slice());
        numbers[8..].copy_from_slice(high.as_slice());
    }

    #[inline(always)]
    fn narrow<S: Simd>(simd: S, numbers: &[f64]) -> f32x16<S> {
        let (low, high) = (f64x8::from_slice(simd, &numbers[..8]), f64x8::from_slice(simd, &numbers[8..16]));
        low.narrow(high)
    }

    #[inline(always)]
    fn add_numbers<S: Simd>(simd: S, total: &mut Total<S>, numbers: &[f64]) {
        total.parts[0] += f64x8::from_slice(simd, &numbers[..8]);
        total.parts[1] += f64x8::from_slice(simd, &numbers[8..16]);
    }

    #[inline(always)]
    fn scale<S: Simd>(total: &mut Total<S>, factor: f64) {
        total.parts[0] *= factor;
        total.parts[1] *= factor;
    }

    #[inline(always)]
    fn lane_totals<S: Simd>(total: &Total<S>, lanes: &mut [f64]) {
        let [low, high] = total.parts;
        lanes[..8].copy_from_slice(low.as_slice());
        lanes[8..16].copy_from_slice(high.as_slice());
    }

    #[inline(always)]
    fn lost_of_lanes<S: Simd>(_: &Total<S>, _: &mut [f64]) {}

    #[inline(always)]
    fn sum_of_lanes<S: Simd>(total: &Total<S>) -> f64 {
        total.value()
    }

    #[inline(always)]
    fn largest<S: Simd>(lanes: f32x16<S>) -> f32 {
        lanes.token().reduce_max_f32x16(lanes)
    }

    #[inline(always)]
    fn from_f64(value: f64) -> Self {
        value as f32
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
        f64::from(self)
    }
}
