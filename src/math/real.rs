//! What f32 and f64 have in common, and how both take exponentials.

use fearless_simd::{Simd, SimdFloat, SimdFloatElement, f64x8, prelude::*};

use super::{Argument, Boost, Method, Octaves, Total, Twice, is_fused, polynomials};

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

    /// 8·log₂ e as a sum of two.
    const EIGHTHS: [Self; 2];
    /// Whether the second is multiplied, too; else logarithms get back what is lost.
    const WHOLE_EIGHTHS: bool;
    /// 1.5 times the power of two next to which numbers are integers.
    const ROUNDING: Self;
    /// The exponent of [`Self::BOOST`].
    const BOOST_EXPONENT: u32;
    /// What is added to exponents where they are stored.
    const EXPONENT_BIAS: u32;
    /// Multiplied by it, a number shows its upper half.
    const SPLITTER: Self;
    /// Logits below this can be references.
    const LARGEST_REFERENCE: f64;

    /// The coefficients of [`super::logs_of_quotient`].
    const LOG_OF_QUOTIENT: &'static [Self];

    /// How many sums of exponentials a row is read into: so many that few terms come into each between two additions to a total.
    const CHAINS: usize;

    /// How a level takes exponentials relative to an integer.
    fn octaves<S: Simd>() -> Octaves<Self>;
    /// 2^(n/N) of n in the lowest bits of the lanes.
    fn power<S: Simd>(simd: S, rounded: Self::Lanes<S>, steps: u32) -> Self::Lanes<S>;
    /// Numbers of classes as they are compared.
    fn classes<S: Simd>(simd: S, classes: &[usize; 16]) -> Self::Lanes<S>;
    /// The number of a class in all lanes, as [`Self::classes`] has them.
    fn class<S: Simd>(simd: S, class: usize) -> Self::Lanes<S>;
    /// [`Self::classes`], the other way.
    fn class_numbers<S: Simd>(classes: Self::Lanes<S>, numbers: &mut [usize; 16]);
    /// Another value in the lanes whose own class this is.
    fn replace<S: Simd>(
        simd: S,
        lanes: Self::Lanes<S>,
        own: Self::Lanes<S>,
        class: usize,
        value: Self::Lanes<S>,
    ) -> Self::Lanes<S>;
    /// `log(1 + y)` for y from 0 to 2¹⁰⁰⁰, as accurate as losses of this type need it, as a sum of two.
    fn log_one_plus<S: Simd>(simd: S, y: f64x8<S>) -> Twice<S>;
    /// The larger ones of positive numbers.
    fn larger<S: Simd>(a: Self::Lanes<S>, b: Self::Lanes<S>) -> Self::Lanes<S>;

    /// Four neighbouring values of each of [`Self::LANES`] rows, as four vectors with a lane a row.
    ///
    /// # Safety
    /// They are readable, at any alignment.
    unsafe fn load_columns<S: Simd>(simd: S, rows: &[*const Self; 16]) -> [Self::Lanes<S>; 4];
    /// Write four vectors, with a lane a row, to neighbouring places of [`Self::LANES`] rows.
    ///
    /// # Safety
    /// These are writeable, at any alignment.
    unsafe fn store_columns<S: Simd>(simd: S, rows: &[*mut Self; 16], columns: [Self::Lanes<S>; 4]);

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
    /// Add `weight·(value − reference)` of each lane to a total, in units of [`super::UNIT`], of whose
    /// weights only the first part counts if the values' second parts are the same lanes'. A weight of 0 counts 0, whatever it weighs.
    fn add_weighted<S: Simd>(simd: S, total: &mut Total<S>, weights: Twice<S>, value: Twice<S>, reference: Twice<S>);
    /// The lanes in twice their precision.
    fn twice<S: Simd>(lanes: Self::Lanes<S>) -> Twice<S>;
    /// What [`Self::twice`] made of lanes, rounded.
    fn once<S: Simd>(twice: Twice<S>) -> Self::Lanes<S>;
    /// Add to a total what [`Self::twice`] could have made.
    fn add_twice<S: Simd>(total: &mut Total<S>, twice: Twice<S>);
    /// `log(1 + y)` for y from 0 to 1, within 2 ulp, of some vectors, the same step of each in turn.
    fn logs_1p<S: Simd, const K: usize>(simd: S, y: [Self::Lanes<S>; K]) -> [Self::Lanes<S>; K];
    /// The lanes as f64, the first [`Self::LANES`] of `numbers`.
    fn widen<S: Simd>(lanes: Self::Lanes<S>, numbers: &mut [f64; 16]);
    /// The first [`Self::LANES`] of `numbers`, each rounded once.
    fn narrow<S: Simd>(simd: S, numbers: &[f64]) -> Self::Lanes<S>;
    /// Add [`Self::LANES`] numbers to a total.
    fn add_numbers<S: Simd>(simd: S, total: &mut Total<S>, numbers: &[f64]);
    /// Multiply a total by `factor`.
    fn scale<S: Simd>(total: &mut Total<S>, factor: f64);
    /// The sum of each lane.
    fn lane_totals<S: Simd>(total: &Total<S>, lanes: &mut [f64]);
    /// What their rounding lost, if f64 has no room for them.
    fn lost_of_lanes<S: Simd>(total: &Total<S>, lanes: &mut [f64]);
    /// The sum of all lanes, rounded once.
    fn sum_of_lanes<S: Simd>(total: &Total<S>) -> f64;
    /// The largest lane; what NaN lanes do to it is unspecified.
    fn largest<S: Simd>(lanes: Self::Lanes<S>) -> Self;
    /// Rounded from f64.
    fn from_f64(value: f64) -> Self;
    /// The next smaller number.
    #[must_use]
    fn next_smaller(self) -> Self;
    /// The next larger number.
    #[must_use]
    fn next_larger(self) -> Self;
    /// As f64, exactly.
    fn to_f64(self) -> f64;

    /// The number in all lanes.
    #[inline(always)]
    fn splat<S: Simd>(simd: S, value: f64) -> Self::Lanes<S> {
        Self::Lanes::<S>::simd_from(simd, Self::from_f64(value))
    }

    /// [`Self::LANES`] numbers as lanes, in halves; of eight the second is 0.
    #[inline(always)]
    fn halves<S: Simd>(simd: S, numbers: &[f64]) -> Twice<S> {
        let second = if Self::LANES == 8 { f64x8::splat(simd, 0.0) } else { f64x8::from_slice(simd, &numbers[8..16]) };
        [f64x8::from_slice(simd, &numbers[..8]), second]
    }

    /// The first [`Self::LANES`] vectors as rows of a square, transposed.
    ///
    /// Each round interleaves the two halves, which turns the digits of (row, lane) by one: after log₂ of the lanes they
    /// have changed places.
    #[inline(always)]
    fn transpose<S: Simd>(mut rows: [Self::Lanes<S>; 16]) -> [Self::Lanes<S>; 16] {
        for _ in 0..Self::LANES.ilog2() {
            let mut turned = rows;
            for row in 0..Self::LANES / 2 {
                (turned[2 * row], turned[2 * row + 1]) = rows[row].interleave(rows[row + Self::LANES / 2]);
            }
            rows = turned;
        }
        rows
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
        if const { is_fused::<S>() } {
            Self::reduced_here(simd, x, boost, argument)
        } else {
            Self::reduced_apart(simd, x, boost, argument)
        }
    }

    /// [`Self::reduced`] as a function, as [`super::Reference::terms`] are one on such levels.
    #[inline(never)]
    fn reduced_apart<S: Simd, const K: usize>(
        simd: S,
        x: [Self::Lanes<S>; K],
        boost: Boost,
        argument: Argument,
    ) -> [[Self::Lanes<S>; K]; 3] {
        Self::reduced_here(simd, x, boost, argument)
    }

    /// [`Self::reduced`] where it stands.
    #[inline(always)]
    fn reduced_here<S: Simd, const K: usize>(
        simd: S,
        x: [Self::Lanes<S>; K],
        boost: Boost,
        argument: Argument,
    ) -> [[Self::Lanes<S>; K]; 3] {
        let Method { steps, q } = Self::method::<S>();
        let [mut r, n, power] = Self::exponents(simd, x, boost, steps);
        let ln_2 = if argument == Argument::Exact { &Self::LN_2 } else { Self::ROUNDED_LN_2 };
        for part in ln_2 {
            let part = Self::splat(simd, -part.to_f64() / f64::from(steps));
            for k in 0..K {
                r[k] = n[k].mul_add(part, r[k]);
            }
        }
        let mut exp = polynomials(simd, q, r);
        for k in 0..K {
            exp[k] = exp[k].mul_add(r[k], Self::splat(simd, 1.0));
        }
        [exp, r, power]
    }
}
