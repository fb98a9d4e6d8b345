//! The two compute types, f32 and f64: their lanes, the exponential over lanes, and sums that keep their accuracy.
//!
//! # The exponential
//!
//! `exp x = 2^(n/N) · exp r` with `n = round(N·x / ln 2)` and `r = x − n·ln 2/N` in two steps (Cody and Waite),
//! |r| ≤ ln 2 / 2N, and `exp r = 1 + r·(1 + r·q(r))` by Horner's rule; `1 + (r + r²·q(r))` takes an operation more and
//! was worse (with N = 1 1.008 ulp, not 0.943). Rounding to `n` is done by adding 1.5·2^23 (1.5·2^52), which leaves `n` in
//! the low bits of the sum; a shift moves them to where exponents are.
//!
//! N is 8 where a level has an instruction that looks a number up in eight, and q minimax and short then: linear in f32
//! (relative error 0.43 u), of degree 5 in f64 (0.03 u), in place of 4 (0.11 u) and 9 (0.15 u) with N = 1. In a spike, 16
//! f32 logits in L2 took 1.25 instead of 1.48 ns with AVX-512, and 3.23 instead of 4.23 with AVX2. A table of 16 with the
//! same q was no faster, and on AVX2, where it takes two lookups, slower (3.84); so was leaving the reduction and the power
//! to `vreduceps` and `vscalefps` (1.32). What binds is the number of operations: taking any one of them away was worth
//! 0.1 ns.
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
//!
//! # Sums
//!
//! A block of exponentials is summed in lanes, four chains of a few terms each, then added to a [`Total`], which has
//! twice the precision: two f64 vectors that widen the f32 lanes, or that hold the f64 lanes and what they lost.
//! Plain f32 lanes over a row of 262144 would be wrong by 3e-5.

use fearless_simd::{Simd, SimdFloat, SimdFloatElement, f32x16, f64x8, prelude::*, u32x16, u64x8};

use crate::simd::{Table64, look_up_u32, look_up_u64};

/// Lanes in twice their precision: those of f32 as f64, in two halves; those of f64 as a sum of two.
pub type Twice<S> = [f64x8<S>; 2];

/// A sum over lanes in twice their precision.
#[derive(Clone, Copy)]
pub struct Total<S: Simd> {
    parts: Twice<S>,
}

impl<S: Simd> Total<S> {
    /// The empty sum.
    #[inline(always)]
    pub fn zero(simd: S) -> Self {
        Self { parts: [f64x8::splat(simd, 0.0); 2] }
    }

    /// Add a single number.
    #[inline(always)]
    pub fn add_scalar(&mut self, value: f64) {
        self.parts[1].as_mut_slice()[0] += value;
    }

    /// The sum of all lanes, in a fixed order.
    #[inline(always)]
    pub fn value(self) -> f64 {
        let lanes: [f64; 8] = (self.parts[0] + self.parts[1]).into();
        ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6])) + ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]))
    }
}

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
    steps: u32,
    /// q of `exp r = 1 + r·(1 + r·q(r))`, highest power first.
    q: &'static [R],
}

/// What [`Real::factors`] takes the exponential of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Argument {
    /// x.
    Exact,
    /// x, but for one part in [`Real::SHRINKAGE`]: an operation less.
    Shrunk,
}

/// Weighted differences are summed in units of this power of two, so that a difference of any two logits is finite, and
/// the sum of a block of them.
pub const UNIT: f64 = 1024.0;

/// A type to compute in: its lanes and what the kernels need of them.
pub trait Real: SimdFloatElement + Send + Sync + 'static {
    /// The virtual lanes: the same number on every level.
    type Lanes<S: Simd>: SimdFloat<S, Element = Self> + std::ops::Neg<Output = Self::Lanes<S>>;
    /// How many there are.
    const LANES: usize;
    /// The smallest finite value.
    const LOWEST: Self;
    /// Where exponentials are 0 for certain, boosted or not.
    const UNDERFLOW: f64;
    /// The smallest positive normal number.
    const SMALLEST_NORMAL: f64;
    /// The power of two of [`Boost::Full`].
    const BOOST: f64;
    /// log₂ e.
    const LOG2_E: Self;
    /// ln 2 in two parts: the first has so few bits that its product with an exponent is exact.
    const LN_2: [Self; 2];
    /// ln 2 as precise as [`Argument::Shrunk`] needs it.
    const ROUNDED_LN_2: &'static [Self];
    /// By which part of itself the argument is smaller then.
    const SHRINKAGE: f64;

    /// How a level takes exponentials.
    fn method<S: Simd>() -> Method<Self>;
    /// x, `n = round(N·x / ln 2)` for N = 1 or 8 steps, and 2^(n/N), times [`Self::BOOST`] if asked: x is clamped to where
    /// that is 0, too small for an exponent field.
    fn exponents<S: Simd, const K: usize>(
        simd: S,
        x: [Self::Lanes<S>; K],
        boost: Boost,
        steps: u32,
    ) -> [[Self::Lanes<S>; K]; 3];
    /// Add a vector to a total.
    fn add_to<S: Simd>(total: &mut Total<S>, lanes: Self::Lanes<S>);
    /// Add `weight·(value − reference)` of each lane to a total, in units of [`UNIT`], where the weights are
    /// [`Self::LANES`] numbers. A weight of 0 counts 0, whatever it weighs.
    fn add_weighted<S: Simd>(simd: S, total: &mut Total<S>, weights: &[f64], value: Twice<S>, reference: Twice<S>);
    /// The lanes in twice their precision.
    fn twice<S: Simd>(lanes: Self::Lanes<S>) -> Twice<S>;
    /// What [`Self::twice`] made of lanes, rounded.
    fn once<S: Simd>(twice: Twice<S>) -> Self::Lanes<S>;
    /// Add to a total what [`Self::twice`] could have made.
    fn add_twice<S: Simd>(total: &mut Total<S>, twice: Twice<S>);
    /// `log(1 + y)` for y from 0 to 1, within 2 ulp.
    fn log_1p<S: Simd>(simd: S, y: Self::Lanes<S>) -> Self::Lanes<S>;
    /// The lanes as f64, the first [`Self::LANES`] of `numbers`.
    fn widen<S: Simd>(lanes: Self::Lanes<S>, numbers: &mut [f64; 16]);
    /// The first [`Self::LANES`] of `numbers`, each rounded once.
    fn narrow<S: Simd>(simd: S, numbers: &[f64]) -> Self::Lanes<S>;
    /// The first [`Self::LANES`] vectors as rows of a square, transposed.
    fn transpose<S: Simd>(simd: S, rows: [Self::Lanes<S>; 16]) -> [Self::Lanes<S>; 16];
    /// Add [`Self::LANES`] numbers to a total.
    fn add_numbers<S: Simd>(simd: S, total: &mut Total<S>, numbers: &[f64]);
    /// Multiply a total by `factor`.
    fn scale<S: Simd>(total: &mut Total<S>, factor: f64);
    /// The sum of each lane.
    fn lane_totals<S: Simd>(total: &Total<S>, lanes: &mut [f64]);
    /// The largest lane; what NaN lanes do to it is unspecified.
    fn largest<S: Simd>(lanes: Self::Lanes<S>) -> Self;
    /// Rounded from f64.
    fn from_f64(value: f64) -> Self;
    /// The next smaller number.
    #[must_use]
    fn next_smaller(self) -> Self;
    /// As f64, exactly.
    fn to_f64(self) -> f64;

    /// The number in all lanes.
    #[inline(always)]
    fn splat<S: Simd>(simd: S, value: f64) -> Self::Lanes<S> {
        Self::Lanes::<S>::simd_from(simd, Self::from_f64(value))
    }

    /// `exp(x)`, times [`Self::BOOST`] if asked. `x` is at most 2.
    #[inline(always)]
    fn exp<S: Simd>(simd: S, x: Self::Lanes<S>, boost: Boost) -> Self::Lanes<S> {
        let [exp] = Self::exps(simd, [x], boost);
        exp
    }

    /// [`Self::exp`] of some vectors, the same step of each in turn.
    #[inline(always)]
    fn exps<S: Simd, const K: usize>(simd: S, x: [Self::Lanes<S>; K], boost: Boost) -> [Self::Lanes<S>; K] {
        let [mut exp, r, power] = Self::reduced(simd, x, boost, Argument::Exact);
        if Self::method::<S>().steps == 1 {
            // The product with a power of two is exact.
            for k in 0..K {
                exp[k] = exp[k].mul_add(r[k], Self::splat(simd, 1.0));
            }
            for k in 0..K {
                exp[k] *= power[k];
            }
        } else {
            // Rounded once.
            for k in 0..K {
                exp[k] *= r[k];
            }
            for k in 0..K {
                exp[k] = exp[k].mul_add(power[k], power[k]);
            }
        }
        exp
    }

    /// [`Self::exps`] as two factors: a sum of products takes an operation less than one of exponentials.
    #[inline(always)]
    fn factors<S: Simd, const K: usize>(
        simd: S,
        x: [Self::Lanes<S>; K],
        boost: Boost,
        argument: Argument,
    ) -> [[Self::Lanes<S>; K]; 2] {
        let [mut exp, r, power] = Self::reduced(simd, x, boost, argument);
        for k in 0..K {
            exp[k] = exp[k].mul_add(r[k], Self::splat(simd, 1.0));
        }
        [exp, power]
    }

    /// `1 + r·q(r)`, r and 2^(n/N).
    #[inline(always)]
    fn reduced<S: Simd, const K: usize>(
        simd: S,
        x: [Self::Lanes<S>; K],
        boost: Boost,
        argument: Argument,
    ) -> [[Self::Lanes<S>; K]; 3] {
        let lanes = |value| Self::Lanes::<S>::simd_from(simd, value);
        let Method { steps, q } = Self::method::<S>();
        let [mut r, n, power] = Self::exponents(simd, x, boost, steps);
        let ln_2 = if argument == Argument::Exact { &Self::LN_2 } else { Self::ROUNDED_LN_2 };
        for part in ln_2 {
            let part = Self::splat(simd, -part.to_f64() / f64::from(steps));
            for k in 0..K {
                r[k] = n[k].mul_add(part, r[k]);
            }
        }
        let mut exp = [lanes(q[0]); K];
        for &coefficient in &q[1..] {
            for k in 0..K {
                exp[k] = exp[k].mul_add(r[k], lanes(coefficient));
            }
        }
        for k in 0..K {
            exp[k] = exp[k].mul_add(r[k], Self::splat(simd, 1.0));
        }
        [exp, r, power]
    }
}

/// Whether a level has fused multiply-adds, and looks eight numbers up at once: AVX-512 and AVX2 do.
const fn is_wide<S: Simd>() -> bool {
    <S::f32s as SimdBase<S>>::LEN >= 8
}

/// How many vectors a loop should work on at a time, the same step of each in turn.
///
/// An exponential is a chain of a dozen operations. One after the other they fill the scheduler with operations that
/// wait for each other: in a spike on AVX-512, rows in L2 took 2.9 ns a vector, and 1.9 ns four at a time (1.4 would be
/// two multiplications a cycle); here, two rows of 32000 took 9.4 µs, and 8.1, before the table. The lanes of the levels
/// below are several registers each, which is as good; with more of them at a time they would not fit.
pub const fn vectors_at_a_time<S: Simd>() -> usize {
    match <S::f32s as SimdBase<S>>::LEN {
        16 => 4,
        8 => 2,
        _ => 1,
    }
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
    if is_wide::<S>() { Argument::Shrunk } else { Argument::Exact }
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

/// c of `exp r − 1 = r + r²/2 + r³·c(r)`, highest power first.
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

/// `exp(x) − 1` as a sum of two, with a relative error of u/16, for `x = high + low` from 0 to 682.
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

/// h of `tanh(r·ln 2 / 2) = r·h(r²)` for |r| ≤ ½, highest power first: relative error 2⁻³².⁸.
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

/// Coefficients of `R(z) = atanh(s)·2/s − 2` over `z = s²`, over z, for |s| up to that of √2: relative error 2⁻⁵⁷.
const LOG: [f64; 7] = [
    0.146_164_510_424_341_67,
    0.153_317_214_907_386_43,
    0.181_828_891_285_655_09,
    0.222_222_111_347_497_35,
    0.285_714_286_259_757_63,
    0.399_999_999_998_995_04,
    0.666_666_666_666_666_97,
];

/// `log(1 + y)` for y from 0 to 2¹⁰⁰⁰, and ∞, within an ulp, however small y is; NaN passes.
///
/// `1 + y = 2^e·m` with m from √½ to √2 and `f = m − 1`; `log m = f − (f²/2 − s·(f²/2 + R(s²)))` with `s = f / (2 + f)`,
/// and what `1 + y` lost is a derivative's worth of it.
#[inline(always)]
pub fn log_one_plus<S: Simd>(simd: S, y: f64x8<S>) -> f64x8<S> {
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
    let log = number * lanes(<f64 as Real>::LN_2[0]) - ((half_square - (s * (half_square + rest) + low)) - f);
    y.simd_lt(lanes(f64::INFINITY)).select(log, y)
}

/// The bits of `2^(j/8)` for j from 0 to 7, less those of j three places above the exponent's lowest.
///
/// With n = 8·k + j, `2^(n/8)` is one of these, and n, shifted so that k meets the exponent: j needs no mask.
const EIGHTHS_F32: [u32; 8] = {
    let mut numbers: [u32; 8] = [
        1f32.to_bits(),
        1.090_507_7f32.to_bits(),
        1.189_207_1f32.to_bits(),
        1.296_839_6f32.to_bits(),
        std::f32::consts::SQRT_2.to_bits(),
        1.542_210_8f32.to_bits(),
        1.681_792_9f32.to_bits(),
        1.834_008_1f32.to_bits(),
    ];
    let mut j = 0;
    while j < 8 {
        numbers[j] -= (j as u32) << 20;
        j += 1;
    }
    numbers
};

/// The same of f64.
const EIGHTHS_F64: Table64 = {
    let mut numbers: [u64; 8] = [
        1f64.to_bits(),
        1.090_507_732_665_257_7f64.to_bits(),
        1.189_207_115_002_721f64.to_bits(),
        1.296_839_554_651_009_6f64.to_bits(),
        std::f64::consts::SQRT_2.to_bits(),
        1.542_210_825_407_940_7f64.to_bits(),
        1.681_792_830_507_429f64.to_bits(),
        1.834_008_086_409_342_4f64.to_bits(),
    ];
    let mut j = 0;
    while j < 8 {
        numbers[j] -= (j as u64) << 49;
        j += 1;
    }
    Table64::new(numbers)
};

/// The numbers of the lanes.
#[inline(always)]
pub fn lane_numbers<S: Simd>(simd: S) -> f64x8<S> {
    [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0].simd_into(simd)
}

/// A polynomial by Horner's rule, highest power first.
#[inline(always)]
fn polynomial<S: Simd, R: Real>(simd: S, coefficients: &[R], x: R::Lanes<S>) -> R::Lanes<S> {
    let lanes = |value| R::Lanes::<S>::simd_from(simd, value);
    let mut sum = lanes(coefficients[0]);
    for &coefficient in &coefficients[1..] {
        sum = sum.mul_add(x, lanes(coefficient));
    }
    sum
}

/// `a + b`, and what the rounding lost.
#[inline(always)]
pub fn two_sum<L: Copy + std::ops::Add<Output = L> + std::ops::Sub<Output = L>>(a: L, b: L) -> [L; 2] {
    let sum = a + b;
    let of_b = sum - a;
    [sum, (a - (sum - of_b)) + (b - of_b)]
}

/// The sum of numbers in twice their precision.
pub fn precise_sum(numbers: impl IntoIterator<Item = f64>) -> f64 {
    let (sum, lost) = numbers.into_iter().fold((0.0, 0.0), |(sum, lost), number| {
        let [sum, rest] = two_sum(sum, number);
        (sum, lost + rest)
    });
    // What an infinity lost is NaN.
    if sum.is_finite() { sum + lost } else { sum }
}

/// `a + b`, and what the rounding lost, for a `b` that is no larger than `a`.
#[inline(always)]
pub fn quick_sum<L: Copy + std::ops::Add<Output = L> + std::ops::Sub<Output = L>>(a: L, b: L) -> [L; 2] {
    let sum = a + b;
    [sum, b - (sum - a)]
}

/// P of `log(1 + y) = y·P(y)` over y from 0 to 1, highest power first: minimax, relative error 0.09 u of f32.
const LOG_1P: [f32; 10] = [
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

/// P of `log(1 + y) = 2s·(1 + s²·P(s²))` with `s = y / (2 + y)`, highest power first.
const LOG_1P_OF_QUOTIENT: [f64; 11] = [
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

impl Real for f32 {
    type Lanes<S: Simd> = f32x16<S>;
    const LANES: usize = 16;
    const LOWEST: Self = f32::MIN;
    const UNDERFLOW: f64 = -140.0;
    const SMALLEST_NORMAL: f64 = f32::MIN_POSITIVE as f64;
    const BOOST: f64 = 18_446_744_073_709_551_616.0;
    const LOG2_E: Self = std::f32::consts::LOG2_E;
    const LN_2: [Self; 2] = [0.693_145_75, 1.428_606_8e-6];
    const ROUNDED_LN_2: &'static [Self] = &[std::f32::consts::LN_2];
    const SHRINKAGE: f64 = std::f32::consts::LN_2 as f64 / std::f64::consts::LN_2 - 1.0;

    #[inline(always)]
    fn method<S: Simd>() -> Method<Self> {
        if is_wide::<S>() {
            Method { steps: 8, q: &[0.166_668_88, 0.500_064_6] }
        } else {
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
            let bits: u32x16<S> = n[k].bitcast();
            // The numbers lack what the shift adds of j.
            power[k] = if steps == 1 {
                (bits << 23).bitcast()
            } else {
                (look_up_u32(simd, &EIGHTHS_F32, bits) + (bits << 20)).bitcast()
            };
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
    fn add_weighted<S: Simd>(simd: S, total: &mut Total<S>, weights: &[f64], value: Twice<S>, reference: Twice<S>) {
        let zero = f64x8::splat(simd, 0.0);
        for half in 0..2 {
            let weights = f64x8::from_slice(simd, &weights[8 * half..8 * half + 8]);
            let unit = f64x8::splat(simd, 1.0 / UNIT);
            let difference = value[half].mul_sub(unit, reference[half] * unit);
            let difference = weights.simd_eq(zero).select(zero, difference);
            total.parts[half] = weights.mul_add(difference, total.parts[half]);
        }
    }

    /// `y·P(y)`: an operation more than with a quotient, and no quotient.
    #[inline(always)]
    fn log_1p<S: Simd>(simd: S, y: f32x16<S>) -> f32x16<S> {
        polynomial::<S, f32>(simd, &LOG_1P, y) * y
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

    /// Each round interleaves the two halves, which turns the digits of (row, lane) by one: after log₂ of the lanes
    /// they have changed places.
    #[inline(always)]
    fn transpose<S: Simd>(_simd: S, mut rows: [f32x16<S>; 16]) -> [f32x16<S>; 16] {
        for _ in 0..Self::LANES.ilog2() {
            let mut turned = rows;
            for row in 0..Self::LANES / 2 {
                (turned[2 * row], turned[2 * row + 1]) = rows[row].interleave(rows[row + Self::LANES / 2]);
            }
            rows = turned;
        }
        rows
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
    fn to_f64(self) -> f64 {
        f64::from(self)
    }
}

impl Real for f64 {
    type Lanes<S: Simd> = f64x8<S>;
    const LANES: usize = 8;
    const LOWEST: Self = f64::MIN;
    const UNDERFLOW: f64 = -1100.0;
    const SMALLEST_NORMAL: f64 = f64::MIN_POSITIVE;
    const BOOST: f64 = 1.340_780_792_994_259_7e154;
    const LOG2_E: Self = std::f64::consts::LOG2_E;
    const LN_2: [Self; 2] = [0.693_147_180_485_539_1, 7.440_617_110_012_397e-11];
    const ROUNDED_LN_2: &'static [Self] = &Self::LN_2;
    const SHRINKAGE: f64 = 0.0;

    #[inline(always)]
    fn method<S: Simd>() -> Method<Self> {
        if is_wide::<S>() {
            Method {
                steps: 8,
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
            let bits: u64x8<S> = n[k].bitcast();
            power[k] = if steps == 1 {
                (bits << 52).bitcast()
            } else {
                (look_up_u64(simd, &EIGHTHS_F64, bits) + (bits << 49)).bitcast()
            };
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
    fn add_weighted<S: Simd>(simd: S, total: &mut Total<S>, weights: &[f64], value: Twice<S>, reference: Twice<S>) {
        let zero = f64x8::splat(simd, 0.0);
        let weights = f64x8::from_slice(simd, weights);
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
    fn log_1p<S: Simd>(simd: S, y: f64x8<S>) -> f64x8<S> {
        let s = y / (y + f64x8::splat(simd, 2.0));
        let square = s * s;
        let double = s + s;
        (polynomial::<S, f64>(simd, &LOG_1P_OF_QUOTIENT, square) * square).mul_add(double, double)
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

    /// Each round interleaves the two halves, which turns the digits of (row, lane) by one: after log₂ of the lanes
    /// they have changed places.
    #[inline(always)]
    fn transpose<S: Simd>(_simd: S, mut rows: [f64x8<S>; 16]) -> [f64x8<S>; 16] {
        for _ in 0..Self::LANES.ilog2() {
            let mut turned = rows;
            for row in 0..Self::LANES / 2 {
                (turned[2 * row], turned[2 * row + 1]) = rows[row].interleave(rows[row + Self::LANES / 2]);
            }
            rows = turned;
        }
        rows
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
    fn to_f64(self) -> f64 {
        self
    }
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
        if level.name() == "portable" { 1.21 } else { 1.15 }
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

    struct Logs<'a>(&'a [f64]);

    impl Kernel for Logs<'_> {
        type Output = Vec<f64>;
        #[inline(always)]
        fn run<S: Simd>(self, simd: S) -> Vec<f64> {
            self.0.iter().map(|&y| log_one_plus(simd, f64x8::splat(simd, y)).as_slice()[0]).collect()
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

    struct Log1p<'a, R>(&'a [R]);

    impl<R: Real> Kernel for Log1p<'_, R> {
        type Output = Vec<f64>;
        #[inline(always)]
        fn run<S: Simd>(self, simd: S) -> Vec<f64> {
            let lanes = |&y: &R| R::Lanes::<S>::simd_from(simd, y);
            self.0.iter().map(|y| R::log_1p(simd, lanes(y)).as_slice()[0].to_f64()).collect()
        }
    }

    #[test]
    fn log_1p_is_within_two_ulps() {
        let numbers: Vec<f64> = (0..=1 << 14)
            .map(|i| f64::from(i) / f64::from(1 << 14))
            .chain((1..140).map(|i| 0.7 * 0.5f64.powi(i)))
            .collect();
        let singles: Vec<f32> = numbers.iter().map(|&y| y as f32).collect();
        for level in Level::available() {
            let mut worst = [0.0f64; 2];
            for (&y, log) in singles.iter().zip(level.run(Log1p(&singles))) {
                let exact = f64::from(y).ln_1p();
                let ulp = f64::from((exact as f32).next_up() - exact as f32);
                worst[0] = worst[0].max((log - exact).abs() / ulp);
            }
            for (&y, log) in numbers.iter().zip(level.run(Log1p(&numbers))) {
                let exact = y.ln_1p();
                worst[1] = worst[1].max((log - exact).abs() / (exact.next_up() - exact));
            }
            println!("{}: {worst:?} ulp", level.name());
            assert!(worst.iter().all(|worst| *worst <= 2.0), "{}: {worst:?} ulp", level.name());
            assert!(level.run(Log1p(&[f32::NAN]))[0].is_nan() && level.run(Log1p(&[f64::NAN]))[0].is_nan());
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

    #[test]
    fn totals_keep_what_lanes_would_lose() {
        struct Sum;
        impl Kernel for Sum {
            type Output = [f64; 2];
            #[inline(always)]
            fn run<S: Simd>(self, simd: S) -> [f64; 2] {
                let (mut single, mut double) = (Total::zero(simd), Total::zero(simd));
                for value in [1e8, 1.0, -1e8, 1e-3] {
                    f32::add_to(&mut single, f32x16::splat(simd, value as f32));
                }
                for value in [1e16, 1.0, -1e16, 1e-3] {
                    f64::add_to(&mut double, f64x8::splat(simd, value));
                }
                [single.value() / 16.0, double.value() / 8.0]
            }
        }
        for &level in Level::available() {
            let [single, double] = level.run(Sum);
            assert!((single - (1.0 + f64::from(1e-3f32))).abs() < 1e-7, "{single}");
            assert!((double - 1.001).abs() < 1e-12, "{double}");
        }
    }
}
