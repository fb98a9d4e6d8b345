//! The logarithm of `1 + y` over lanes.

use fearless_simd::{Simd, f64x8, prelude::*, u64x8};

use super::{Real, Twice, polynomial, polynomials, quick_sum, two_sum};

/// Coefficients of `R(z) = atanh(s)·2/s − 2` over `z = s²`, over z, for |s| up to that of √2.
// scripts/polynomials.py log: relative error 2^-57.59.
const LOG: [f64; 7] = [
    0.146_164_510_424_341_67,
    0.153_317_214_907_386_43,
    0.181_828_891_285_655_09,
    0.222_222_111_347_497_35,
    0.285_714_286_259_757_63,
    0.399_999_999_998_995_04,
    0.666_666_666_666_666_97,
];

/// `log(1 + y)` for y from 0 to 2¹⁰⁰⁰, and ∞, within a fifth of an ulp as a sum of two, however small y is; NaN passes.
///
/// `1 + y = 2^e·m` with m from √½ to √2 and `f = m − 1`; `log m = f − (f²/2 − s·(f²/2 + R(s²)))` with `s = f / (2 + f)`,
/// and what `1 + y` lost is a derivative's worth of it.
#[inline(always)]
pub fn log_one_plus<S: Simd>(simd: S, y: f64x8<S>) -> Twice<S> {
    let lanes = |value: f64| f64x8::splat(simd, value);
    let integers = |value: u64| u64x8::splat(simd, value);
    let one = lanes(1.0);
    let [sum, lost] = two_sum(y, one);
    let bits: u64x8<S> = sum.bitcast();
    let exponent = (bits - integers(std::f64::consts::FRAC_1_SQRT_2.to_bits())) >> 52;
    let mantissa: f64x8<S> = (bits - (exponent << 52)).bitcast();
    let inverse: f64x8<S> = ((integers(1023) - exponent) << 52).bitcast();
    let two_to_52 = 4_503_599_627_370_496f64;
    let number: f64x8<S> = (exponent | integers(two_to_52.to_bits())).bitcast();
    let number = number - lanes(two_to_52);
    let f = mantissa - one;
    let s = f / (f + lanes(2.0));
    let z = s * s;
    let rest = polynomial::<S, f64>(simd, &LOG, z) * z;
    let half_square = lanes(0.5) * f * f;
    // 1 / m is near enough to 1 − f + f².
    let correction = lost * inverse * (f * f - f + one);
    let low = number.mul_add(lanes(<f64 as Real>::LN_2[1]), correction);
    // The product is exact, and so is its sum with f, as two; what is subtracted of these is small.
    let [high, lost] = two_sum(number * lanes(<f64 as Real>::LN_2[0]), f);
    let [log, lost] = quick_sum(high, lost - (half_square - (s * (half_square + rest) + low)));
    let finite = y.simd_lt(lanes(f64::INFINITY));
    [finite.select(log, y), finite.select(lost, lanes(0.0))]
}

/// P of `log(1 + f) = f + f²·P(f)` over f from √½ − 1 to √2 − 1, highest power first.
// scripts/polynomials.py log_for_f32: relative error 2^-32.15.
const LOG_FOR_F32: [f64; 11] = [
    -0.060_209_564_994_966_54,
    0.105_898_819_694_433_07,
    -0.107_694_724_283_950_56,
    0.110_376_892_583_026_41,
    -0.124_322_680_592_847_9,
    0.142_856_249_899_072_17,
    -0.166_690_063_072_041_82,
    0.200_000_573_882_576_19,
    -0.249_999_716_981_403_27,
    0.333_333_327_929_992_04,
    -0.500_000_000_554_516_54,
];

/// [`log_one_plus`] within 2^-32 of itself, for y up to 2¹⁰⁰⁰: without a quotient, and in pairs of terms (Estrin), as what
/// binds is the chain.
#[inline(always)]
pub(super) fn log_one_plus_for_f32<S: Simd>(simd: S, y: f64x8<S>) -> f64x8<S> {
    let lanes = |value: f64| f64x8::splat(simd, value);
    let integers = |value: u64| u64x8::splat(simd, value);
    let sum = y + lanes(1.0);
    let bits: u64x8<S> = sum.bitcast();
    let exponent = (bits - integers(std::f64::consts::FRAC_1_SQRT_2.to_bits())) >> 52;
    let mantissa: f64x8<S> = (bits - (exponent << 52)).bitcast();
    let two_to_52 = 4_503_599_627_370_496f64;
    let number: f64x8<S> = (exponent | integers(two_to_52.to_bits())).bitcast();
    let number = number - lanes(two_to_52);
    // What 1 + y loses counts where y is small.
    let f = y.simd_lt(lanes(0.41)).select(y, mantissa - lanes(1.0));
    let square = f * f;
    let fourth = square * square;
    // Terms of powers 0 to 3, 4 to 7, and 8 to 10.
    let pair = |index: usize| lanes(LOG_FOR_F32[index]).mul_add(f, lanes(LOG_FOR_F32[index + 1]));
    let low = pair(7).mul_add(square, pair(9));
    let middle = pair(3).mul_add(square, pair(5));
    let high = lanes(LOG_FOR_F32[0]).mul_add(square, pair(1));
    let p = high.mul_add(fourth, middle).mul_add(fourth, low);
    number.mul_add(lanes(std::f64::consts::LN_2), p.mul_add(square, f))
}

/// P of `log(1 + y) = y·P(y)` over y from 0 to 1, highest power first: minimax.
// scripts/polynomials.py log_1p_f32: relative error 2^-27.50.
pub(super) const LOG_1P: [f32; 10] = [
    -0.003_290_468_6,
    0.020_086_242,
    -0.057_457_23,
    0.106_611_28,
    -0.153_448_8,
    0.196_921_02,
    -0.249_580_19,
    0.333_304_64,
    -0.499_999_3,
    1.0,
];

/// P of `log(1 + y) = 2s·(1 + s²·P(s²))` with `s = y / (2 + y)`, for y from −½ to 1, highest power first.
// scripts/polynomials.py quotient_f32: relative error 2^-27.73.
pub(super) const LOG_OF_QUOTIENT_F32: [f32; 4] = [0.140_033_901, 0.140_015_125, 0.200_107_187, 0.333_332_092];
// scripts/polynomials.py quotient_f64: relative error 2^-58.73.
pub(super) const LOG_OF_QUOTIENT_F64: [f64; 11] = [
    0.078_152_889_004_614_26,
    0.037_460_718_977_753_83,
    0.054_225_891_974_400_07,
    0.058_671_395_306_515_99,
    0.066_675_893_157_246_29,
    0.076_922_719_824_302_75,
    0.090_909_099_489_813_57,
    0.111_111_110_991_183_86,
    0.142_857_142_858_000_5,
    0.199_999_999_999_997_62,
    0.333_333_333_333_333_3,
];

/// `log(1 + y)` for y from −½ to 1, within 3 ulp, however small y is, of some vectors, the same step of each in turn.
#[inline(always)]
pub fn logs_of_quotient<S: Simd, R: Real, const K: usize>(simd: S, y: [R::Lanes<S>; K]) -> [R::Lanes<S>; K] {
    let (mut s, mut square) = (y, y);
    for k in 0..K {
        s[k] = y[k] / (y[k] + R::splat(simd, 2.0));
        square[k] = s[k] * s[k];
    }
    let mut logs = polynomials::<S, R, K>(simd, R::LOG_OF_QUOTIENT, square);
    for k in 0..K {
        let double = s[k] + s[k];
        logs[k] = (logs[k] * square[k]).mul_add(double, double);
    }
    logs
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::{Kernel, Level};

    struct Logs<'a>(&'a [f64]);

    impl Kernel for Logs<'_> {
        type Output = Vec<f64>;
        #[inline(always)]
        fn run<S: Simd>(self, simd: S) -> Vec<f64> {
            self.0.iter().map(|&y| log_one_plus(simd, f64x8::splat(simd, y))[0].as_slice()[0]).collect()
        }
    }

    #[test]
    fn log_one_plus_is_within_an_ulp() {
        let sqrt = std::f64::consts::SQRT_2;
        let mut numbers = vec![0.0, 5e-324, 1e-300, 1e-17, sqrt - 1.0, 0.5, 1.0, 1e15, 1e300];
        numbers.extend((0..60).map(|power| 2f64.powi(power) * sqrt - 1.0));
        numbers.extend((1..2000).map(|i| f64::from(i) * 0.00137));
        numbers.extend((1..200).map(|i| 1.31f64.powi(i - 150)));
        for level in Level::available() {
            for (&y, log) in numbers.iter().zip(level.run(Logs(&numbers))) {
                let exact = y.ln_1p();
                // Libm's own result may be the one that is off by one.
                let ulp = exact.next_up() - exact;
                assert!((log - exact).abs() <= 1.5 * ulp, "{}: log(1 + {y:e}) = {log:e}, not {exact:e}", level.name());
            }
            let special = level.run(Logs(&[f64::INFINITY, f64::NAN]));
            assert!(special[0] == f64::INFINITY && special[1].is_nan());
        }
    }

    struct LogsForF32<'a>(&'a [f64]);

    impl Kernel for LogsForF32<'_> {
        type Output = Vec<f64>;
        #[inline(always)]
        fn run<S: Simd>(self, simd: S) -> Vec<f64> {
            let log = |&y: &f64| log_one_plus_for_f32(simd, f64x8::splat(simd, y)).as_slice()[0];
            self.0.iter().map(log).collect()
        }
    }

    #[test]
    fn log_one_plus_for_f32_is_near() {
        let mut numbers = vec![0.0, 5e-324, 1e-300, 1e-17, 0.41, 0.5, 1.0, 1e15, 1e300];
        numbers.extend((1..40_000).map(|i| f64::from(i) * 0.000_137));
        numbers.extend((1..200).map(|i| 1.31f64.powi(i - 150)));
        for level in Level::available() {
            for (&y, log) in numbers.iter().zip(level.run(LogsForF32(&numbers))) {
                let exact = y.ln_1p();
                assert!((log - exact).abs() <= exact * 2f64.powi(-32), "{}: log(1 + {y:e}) = {log:e}", level.name());
            }
        }
    }

    struct Log1p<'a, R>(&'a [R]);

    impl<R: Real> Kernel for Log1p<'_, R> {
        type Output = [Vec<f64>; 2];
        #[inline(always)]
        fn run<S: Simd>(self, simd: S) -> [Vec<f64>; 2] {
            let lanes = |y: R| R::Lanes::<S>::simd_from(simd, y);
            let first = |lanes: R::Lanes<S>| lanes.as_slice()[0].to_f64();
            let from_0 = self.0.iter().map(|y| first(R::logs_1p(simd, [lanes(*y)])[0]));
            let of_quotient = self.0.iter().map(|y| first(logs_of_quotient::<S, R, 1>(simd, [lanes(*y)])[0]));
            [from_0.collect(), of_quotient.collect()]
        }
    }

    /// The largest error in ulps, of logarithms from 0 on and of all.
    fn worst<R: Real>(numbers: &[R], level: Level, ulp: impl Fn(f64) -> f64) -> [f64; 2] {
        let mut worst = [0.0f64; 2];
        for (way, logs) in level.run(Log1p(numbers)).into_iter().enumerate() {
            for (&y, log) in numbers.iter().zip(logs).filter(|(y, _)| way == 1 || y.to_f64() >= 0.0) {
                let exact = y.to_f64().ln_1p();
                worst[way] = worst[way].max((log - exact).abs() / ulp(exact.abs()));
            }
        }
        worst
    }

    #[test]
    fn log_1p_is_within_two_ulps_and_that_of_a_quotient_within_three() {
        let numbers: Vec<f64> = (-(1 << 13)..=1 << 14)
            .map(|i| f64::from(i) / f64::from(1 << 14))
            .chain((1..140).flat_map(|i| [0.7, -0.7].map(|y| y * 0.5f64.powi(i))))
            .collect();
        let singles: Vec<f32> = numbers.iter().map(|&y| y as f32).collect();
        for &level in Level::available() {
            let of_f32 = worst(&singles, level, |exact| f64::from((exact as f32).next_up() - exact as f32));
            let of_f64 = worst(&numbers, level, |exact| exact.next_up() - exact);
            println!("{}: {of_f32:?} {of_f64:?} ulp", level.name());
            for [from_0, of_quotient] in [of_f32, of_f64] {
                assert!(from_0 <= 2.0 && of_quotient <= 3.0, "{}: {from_0} {of_quotient} ulp", level.name());
            }
            let of_nan = [level.run(Log1p(&[f32::NAN])), level.run(Log1p(&[f64::NAN]))];
            assert!(of_nan.iter().flatten().all(|log| log[0].is_nan()));
        }
    }
}
