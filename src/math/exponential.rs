//! The exponential over lanes, as [`Real`] takes it, and what is made of it.
//!
//! `exp x = 2^(n/N) · exp r` with `n = round(N·x / ln 2)` and `r = x − n·ln 2/N` in two steps (Cody and Waite),
//! |r| ≤ ln 2 / 2N, and `exp r = 1 + r·(1 + r·q(r))` by Horner's rule; `1 + (r + r²·q(r))` takes an operation more and
//! was worse (with N = 1 1.008 ulp, not 0.943). Rounding to `n` is done by adding 1.5·2^23 (1.5·2^52), which leaves `n` in
//! the low bits of the sum; a shift moves them to where exponents are.
//!
//! N is 8 where a level has an instruction that looks a number up in eight, and q minimax and short then: linear in f32
//! (relative error 0.43 u), of degree 5 in f64 (0.03 u), in place of 4 (0.14 u) and 9 (0.31 u) with N = 1. What binds is
//! the number of operations.
//!
//! | | worst error | domain | below it |
//! |---|---|---|---|
//! | f32 | 1.148 ulp, 1.88 u of itself; with N = 1 and no fused multiply-add 1.209 ulp (every float tested) | −87.3 ≤ x ≤ 2 | exactly 0 from −88 |
//! | f64 | 1 ulp (a sample tested) | −708 ≤ x ≤ 2 | exactly 0 from −709.1 |
//!
//! `exp 0 = 1`, `exp −∞ = 0`, NaN passes. [`Real::exp`] can return `exp(x)·2^k` for k ≥ 0, which moves the domain down
//! by k·ln 2: the gradient takes k = 64 (512) and multiplies by a factor that holds 2^−k, so that probabilities below
//! 2^−126 round once, to the right subnormal.
//!
//! The f32 nearest to ln 2 is so near that one step with it does in sums: fused, its product with n is subtracted without
//! a rounding, and what is summed is `exp(x·(1 − ε))` with ε = 2.7e-9, u/22. A sum S far below 1, whose x are all close to
//! ln S, gets that back as a factor `1 + ε·ln S` ([`regrow`]).

use fearless_simd::{Simd, f64x8, prelude::*, u64x8};

use super::{Real, is_fused, polynomial, quick_sum, two_sum};

/// A power of two by which [`Real::exp`] multiplies its result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Boost {
    /// 2⁰.
    None,
    /// [`Real::BOOST`].
    Full,
}

/// How `exp x = 2^(n/N) · exp r` is taken.
pub struct Method<R: 'static> {
    /// N.
    pub(super) steps: u32,
    /// q of `exp r = 1 + r·(1 + r·q(r))`, highest power first.
    pub(super) q: &'static [R],
}

/// What [`Real::factors`] takes the exponential of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Argument {
    /// x.
    Exact,
    /// x, but for one part in [`Real::SHRINKAGE`]: an operation less.
    Shrunk,
}

/// The exponential of a number up to 2, subnormal results included.
#[inline(always)]
pub fn exp<S: Simd>(simd: S, x: f64) -> f64 {
    // The caller may not be compiled for the level.
    simd.vectorize(
        #[inline(always)]
        || {
            let exp = <f64 as Real>::exp(simd, f64x8::splat(simd, x), Boost::Full);
            exp.as_slice()[0] / f64::BOOST
        },
    )
}

/// What sums take the exponential of: without a fused multiply-add, the one step would round.
pub const fn argument_of_sums<S: Simd>() -> Argument {
    if const { is_fused::<S>() } { Argument::Shrunk } else { Argument::Exact }
}

/// By which part of itself their argument is smaller.
#[inline(always)]
pub fn shrinkage<S: Simd, R: Real>() -> f64 {
    if argument_of_sums::<S>() == Argument::Shrunk { R::SHRINKAGE } else { 0.0 }
}

/// A sum of exponentials of [`argument_of_sums`], as good as one of exact ones: within u/22 of itself times the entropy
/// of its terms.
#[inline(always)]
pub fn regrow<S: Simd, R: Real>(sum: f64) -> f64 {
    // log₂ of the sum to within 1, from its exponent field: 1 counts for u/32.
    let log = (sum.to_bits() >> 52) as f64 - 1023.0;
    sum * (shrinkage::<S, R>() * std::f64::consts::LN_2).mul_add(log.min(0.0), 1.0)
}

/// `2^(j/8)` for j from 0 to 7.
// scripts/polynomials.py eighths: relative error 2^-53.70.
pub(super) const EIGHTHS: [f64; 8] = [
    1.0,
    1.090_507_732_665_257_7,
    1.189_207_115_002_721,
    1.296_839_554_651_009_6,
    std::f64::consts::SQRT_2,
    1.542_210_825_407_940_7,
    1.681_792_830_507_429,
    1.834_008_086_409_342_4,
];

/// c of `exp r − 1 = r + r²/2 + r³·c(r)`, highest power first.
// scripts/polynomials.py exp_minus_one: relative error 2^-58.09.
const EXP_MINUS_ONE: [f64; 10] = [
    2.091_143_704_598_424_6e-9,
    2.510_066_614_291_837_4e-8,
    2.755_728_254_697_946e-7,
    2.755_726_786_826_200_7e-6,
    2.480_158_731_741_724_6e-5,
    0.000_198_412_698_634_355_5,
    0.001_388_888_888_888_649_8,
    0.008_333_333_333_329_985,
    0.041_666_666_666_666_664,
    0.166_666_666_666_666_69,
];

/// `exp(x) − 1` as a sum of two, with a relative error of u/12, for `x = high + low` from 0 to 682.
#[inline(always)]
pub fn exp_minus_one<S: Simd>(simd: S, [high, low]: [f64x8<S>; 2]) -> [f64x8<S>; 2] {
    let lanes = |value: f64| f64x8::splat(simd, value);
    let [[high], [n], [power]] = f64::exponents(simd, [high], Boost::None, 1);
    let first = n.mul_add(-lanes(f64::LN_2[0]), high);
    let [r, lost] = quick_sum(first, n.mul_add(-lanes(f64::LN_2[1]), low));
    // exp(r + lost) − 1 = (r + r²/2) + (lost + r·lost + r³·c(r)).
    let square = r * r;
    let cubic = polynomial::<S, f64>(simd, &EXP_MINUS_ONE, r);
    let tail = (square * r).mul_add(cubic, r.mul_add(lost, lost));
    let half = lanes(0.5);
    let tail = half.mul_add(r.mul_sub_precise(r, square), tail);
    let [exp, rest] = quick_sum(r, half * square);
    let [sum, lost] = two_sum(power - lanes(1.0), power * exp);
    quick_sum(sum, power.mul_add(rest + tail, lost))
}

/// h of `tanh(r·ln 2 / 2) = r·h(r²)` for |r| ≤ ½, highest power first.
// scripts/polynomials.py half_tanh: relative error 2^-32.78.
const HALF_TANH: [f64; 4] =
    [-3.163_637_285_978_073e-5, 0.000_666_557_353_215_246_4, -0.013_876_021_152_554_341, 0.346_573_590_233_031];

/// `tanh(y·ln 2 / 2)` as a numerator and a denominator, and a quarter of the numerator of `1 − tanh²` over the square of
/// that, for y from −126 to 126: relative error 2⁻³².
///
/// With `n = round(y)`, `t = tanh((y − n)·ln 2 / 2)` and `P = 2ⁿ`, `exp(y·ln 2) = P·(1 + t) / (1 − t)`, so that tanh is
/// `((P + 1)·t + (P − 1)) / ((P − 1)·t + (P + 1))`, small where y is, and `1 − tanh²` is `4·P·(1 − t²)` over the square
/// of the denominator, accurate however close to saturation.
#[inline(always)]
pub fn half_tanh<S: Simd>(simd: S, y: f64x8<S>) -> [f64x8<S>; 3] {
    let lanes = |value: f64| f64x8::splat(simd, value);
    // As in `exponents`, with N = 1.
    let magic = lanes(6_755_399_441_055_744.0 + 1023.0);
    let sum = y + magic;
    let bits: u64x8<S> = sum.bitcast();
    let power: f64x8<S> = (bits << 52).bitcast();
    let r = y - (sum - magic);
    let t = r * polynomial::<S, f64>(simd, &HALF_TANH, r * r);
    let (less, more) = (power - lanes(1.0), power + lanes(1.0));
    [more.mul_add(t, less), less.mul_add(t, more), power * (-t).mul_add(t, lanes(1.0))]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::{Kernel, Level};

    /// `exp` of many numbers at one level.
    struct Exp<'a, R>(&'a [R], Boost);

    impl<R: Real> Kernel for Exp<'_, R> {
        type Output = Vec<R>;

        #[inline(always)]
        fn run<S: Simd>(self, simd: S) -> Vec<R> {
            let mut results = Vec::with_capacity(self.0.len());
            for chunk in self.0.chunks(R::LANES) {
                let mut lanes = R::Lanes::<S>::simd_from(simd, R::default());
                lanes.as_mut_slice()[..chunk.len()].copy_from_slice(chunk);
                results.extend_from_slice(&R::exp(simd, lanes, self.1).as_slice()[..chunk.len()]);
            }
            results
        }
    }

    /// The largest error of f32 results in ulps, at one level.
    fn worst(level: Level, numbers: &[f32]) -> (f64, f32) {
        let results = level.run(Exp(numbers, Boost::None));
        numbers.iter().zip(results).fold((0.0, 0.0), |worst, (&x, result)| {
            let exact = f64::from(x).exp();
            let ulp = f64::from((exact as f32).next_up() - exact as f32);
            let error = (f64::from(result) - exact).abs() / ulp;
            if error > worst.0 { (error, x) } else { worst }
        })
    }

    /// The worst error of the exponential of f32 in ulps.
    fn bound(level: Level) -> f64 {
        if matches!(level.name(), "portable" | "simd128") { 1.21 } else { 1.15 }
    }

    #[test]
    fn exp_of_f32_is_within_its_bound() {
        let numbers: Vec<f32> = (0..1 << 20).map(|i| -87.3 * (i as f32 / (1 << 20) as f32)).collect();
        let positive: Vec<f32> = (0..1 << 18).map(|i| 2.0 * (i as f32 / (1 << 18) as f32)).collect();
        let tiny: Vec<f32> = (0..1 << 16).map(|i| -f32::from_bits(i * 16_000)).filter(|x| *x > -87.0).collect();
        for &level in Level::available() {
            for numbers in [&numbers, &tiny, &positive] {
                let (error, x) = worst(level, numbers);
                println!("{}: {error:.3} ulp at {x:e}", level.name());
                assert!(error <= bound(level), "{}: {error} ulp at {x:e}", level.name());
            }
        }
    }

    #[test]
    #[ignore = "every float in the domain: a minute in release"]
    fn exp_of_every_f32_is_within_its_bound() {
        for &level in Level::available() {
            let mut found = (0.0, 0.0);
            for (first, last) in [(0.0f32, 2.0f32), (-0.0, -87.3)] {
                for start in (first.to_bits()..=last.to_bits()).step_by(1 << 20) {
                    let end = (start + (1 << 20)).min(last.to_bits() + 1);
                    let of_chunk = worst(level, &(start..end).map(f32::from_bits).collect::<Vec<_>>());
                    if of_chunk.0 > found.0 {
                        found = of_chunk;
                    }
                }
            }
            println!("{}: {:.4} ulp at {:e}", level.name(), found.0, found.1);
            assert!(found.0 <= bound(level));
        }
    }

    #[test]
    fn exp_of_f64_is_within_one_ulp() {
        let numbers: Vec<f64> =
            (0..1 << 20).map(|i| 2.0 - 710.0 * (f64::from(i) / f64::from(1 << 20)).powi(3)).collect();
        for &level in Level::available() {
            for (x, result) in numbers.iter().zip(level.run(Exp(&numbers, Boost::None))) {
                let exact = x.exp();
                assert!((result - exact).abs() <= exact.next_up() - exact, "{}: exp({x:e}) = {result:e}", level.name());
            }
        }
    }

    #[test]
    fn exp_of_special_numbers() {
        fn of<R: Real>(level: Level, x: f64, boost: Boost) -> f64 {
            level.run(Exp(&[R::from_f64(x)], boost))[0].to_f64()
        }
        for &level in Level::available() {
            for boost in [Boost::None, Boost::Full] {
                let one = |boosted: f64| if boost == Boost::Full { boosted } else { 1.0 };
                assert_eq!(of::<f32>(level, 0.0, boost), one(f32::BOOST));
                assert_eq!(of::<f64>(level, 0.0, boost), one(f64::BOOST));
                for x in [f64::NEG_INFINITY, -1e30, -2000.0] {
                    assert_eq!(of::<f32>(level, x, boost), 0.0, "{x}");
                    assert_eq!(of::<f64>(level, x, boost), 0.0, "{x}");
                }
                // Where the promise of 0 begins.
                let [single, double] = if boost == Boost::Full { [-132.5, -1064.0] } else { [-88.0, -709.1] };
                assert_eq!(of::<f32>(level, single, boost), 0.0);
                assert_eq!(of::<f64>(level, double, boost), 0.0);
                assert!(of::<f32>(level, f64::NAN, boost).is_nan(), "{}", level.name());
                assert!(of::<f64>(level, f64::NAN, boost).is_nan(), "{}", level.name());
            }
            // What would be subnormal is there when boosted.
            let tiny = of::<f32>(level, -100.0, Boost::Full) / f32::BOOST;
            assert!((tiny / (-100f64).exp() - 1.0).abs() < 1e-6);
        }
    }

    #[test]
    fn the_boost_is_the_power_of_two_in_the_exponent() {
        assert_eq!(f32::BOOST, 2f64.powi(64));
        assert_eq!(f64::BOOST, 2f64.powi(512));
    }
}
