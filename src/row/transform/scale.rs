//! Differences of logits over lanes, divided by T: what exponentials and logarithms are taken of.

use fearless_simd::{Simd, f64x8, prelude::*};

use super::{CAPPED, Cap, Capped, PLAIN, SCALED, Transform};
use crate::math::{Argument, Boost, Real, Twice, two_sum};

/// Up to this temperature, and down to its inverse, nothing on the way overflows or is lost in f32.
const MODERATE: f64 = 18_446_744_073_709_551_616.0;

/// [`Transform`] over lanes of `R`.
///
/// Where T is not moderate, and for caps of f64, differences are those of the halves and the factors those of 2 / T:
/// nothing overflows on the way to a quotient that does not.
#[derive(Clone, Copy)]
pub(in crate::row) struct Scale<S: Simd, R: Real> {
    simd: S,
    /// 2 / T, and what its rounding lost.
    factor: [R::Lanes<S>; 2],
    /// Differences below this one have an exponential of 0; clamped to it, infinities stay out of the products.
    floor: R::Lanes<S>,
    /// Whether 2 / T overflows; the factor is the largest finite number then.
    steep: bool,
    /// Whether T is nowhere near the ends of the numbers.
    moderate: bool,
    /// 1 / T.
    inverse: f64x8<S>,
    /// The cap, if there is one.
    cap: Option<Cap<S>>,
}

/// A logit of each lane, as differences are taken of it.
#[derive(Clone, Copy)]
pub(in crate::row) struct Value<S: Simd, R: Real> {
    logit: R::Lanes<S>,
    /// The capped one, if there is a cap.
    capped: Option<Twice<S>>,
}

/// Exponentials of some vectors, as [`Real::factors`] returns them, and what they are exponentials of.
pub(in crate::row) struct Factors<S: Simd, R: Real, const K: usize> {
    pub(in crate::row) exp: [R::Lanes<S>; K],
    pub(in crate::row) power: [R::Lanes<S>; K],
    /// `z − z(reference)`, clamped to where its exponential is 0.
    pub(in crate::row) z: [R::Lanes<S>; K],
}

/// What exponentials are taken of.
struct Arguments<S: Simd, R: Real, const K: usize> {
    x: [R::Lanes<S>; K],
    /// What is to be added to that, where it is not nothing.
    rest: Option<[R::Lanes<S>; K]>,
    /// Lanes whose exponential must be exactly 0, if there can be any.
    below: Option<[<R::Lanes<S> as SimdBase<S>>::Mask; K]>,
    /// [`Factors::z`].
    z: [R::Lanes<S>; K],
}

impl<S: Simd, R: Real, const K: usize> Arguments<S, R, K> {
    /// Make the exponentials of x those of all.
    #[inline(always)]
    fn complete(&self, exp: &mut [R::Lanes<S>; K]) {
        if let Some(rest) = self.rest {
            for k in 0..K {
                exp[k] = exp[k].mul_add(rest[k], exp[k]);
            }
        }
        if let Some(below) = self.below {
            for k in 0..K {
                exp[k] = below[k].select(R::splat(exp[k].token(), 0.0), exp[k]);
            }
        }
    }
}

impl<S: Simd, R: Real> Value<S, R> {
    /// Logits that are not capped.
    #[inline(always)]
    pub(in crate::row) fn plain(x: R::Lanes<S>) -> Self {
        Self { logit: x, capped: None }
    }

    /// Vector number `vector` of capped logits.
    #[inline(always)]
    pub(in crate::row) fn capped<const N: usize>(simd: S, capped: &Capped<R, N>, vector: usize) -> Self {
        let load = |part: usize| f64x8::from_slice(simd, &capped.values[part][8 * vector..8 * vector + 8]);
        Self { logit: R::splat(simd, 0.0), capped: Some([load(0), load(1)]) }
    }

    /// In twice the precision.
    #[inline(always)]
    pub(in crate::row) fn twice(self) -> Twice<S> {
        self.capped.unwrap_or_else(
            #[inline(always)]
            || R::twice(self.logit),
        )
    }
}

impl<S: Simd, R: Real> Scale<S, R> {
    #[inline(always)]
    pub(in crate::row) fn new(simd: S, transform: Transform) -> Self {
        let divisor = transform.temperature;
        let factor = 2.0 / divisor;
        let largest = -R::LOWEST.to_f64();
        let high = R::from_f64(factor.min(largest));
        let rest = (factor - high.to_f64()) + (-factor).mul_add(divisor, 2.0) / divisor;
        let low = if factor < largest { R::from_f64(rest) } else { R::default() };
        let half = if transform.mode() == PLAIN { 1.0 } else { 2.0 };
        let floor = R::from_f64((R::UNDERFLOW * divisor / half).max(-largest));
        let moderate = (MODERATE.recip()..=MODERATE).contains(&divisor);
        let splat = |value| R::Lanes::<S>::simd_from(simd, value);
        Self {
            simd,
            factor: [splat(high), splat(low)],
            floor: splat(floor),
            steep: factor > largest,
            moderate,
            inverse: f64x8::splat(simd, divisor.recip().min(f64::MAX)),
            cap: transform.cap::<S, R>(simd),
        }
    }

    /// The cap, in the mode that has one.
    #[inline(always)]
    pub(in crate::row) fn cap<const MODE: u8>(&self) -> Option<&Cap<S>> {
        self.cap.as_ref().filter(|_| MODE == CAPPED)
    }

    /// The value of a vector of logits.
    #[inline(always)]
    pub(in crate::row) fn value<const MODE: u8>(&self, x: R::Lanes<S>) -> Value<S, R> {
        let capped = self.cap::<MODE>().map(|cap| cap.of::<R>(self.simd, x).0);
        Value { logit: x, capped }
    }

    /// Value − reference, halved unless `PLAIN`, and what its rounding lost: NaN if it is not finite.
    #[inline(always)]
    fn difference<const MODE: u8>(&self, value: Value<S, R>, reference: Value<S, R>) -> [R::Lanes<S>; 2] {
        let half = R::splat(self.simd, 0.5);
        let halved = |x: R::Lanes<S>| if MODE == PLAIN { x } else { x * half };
        let (Some(value), Some(reference)) = (value.capped, reference.capped) else {
            return two_sum(halved(value.logit), -halved(reference.logit));
        };
        // In f64 alone: where the cap is reached, the second parts are all of the difference.
        let part = |twice: Twice<S>, part: usize| R::once([twice[part], f64x8::splat(self.simd, 0.0)]);
        let [difference, lost] = two_sum(halved(part(value, 0)), -halved(part(reference, 0)));
        let low = part(value, 1) - part(reference, 1);
        let [sum, rest] = two_sum(difference, lost + halved(low));
        let finite = difference.is_finite();
        [finite.select(sum, difference), finite.select(rest, lost)]
    }

    /// `exp(z − z(reference))` of a vector.
    #[inline(always)]
    pub(in crate::row) fn exp<const MODE: u8>(
        &self,
        value: Value<S, R>,
        reference: Value<S, R>,
        boost: Boost,
    ) -> R::Lanes<S> {
        let [exp] = self.exps::<MODE, 1>([value], reference, boost);
        exp
    }

    /// `exp(z − z(reference))` of some vectors.
    #[inline(always)]
    pub(in crate::row) fn exps<const MODE: u8, const K: usize>(
        &self,
        values: [Value<S, R>; K],
        reference: Value<S, R>,
        boost: Boost,
    ) -> [R::Lanes<S>; K] {
        let arguments = self.arguments::<MODE, K>(values, reference);
        let mut exp = R::exps(self.simd, arguments.x, boost);
        arguments.complete(&mut exp);
        exp
    }

    /// The same, each as two factors.
    #[inline(always)]
    pub(in crate::row) fn factors<const MODE: u8, const K: usize>(
        &self,
        values: [Value<S, R>; K],
        reference: Value<S, R>,
        boost: Boost,
        argument: Argument,
    ) -> Factors<S, R, K> {
        let arguments = self.arguments::<MODE, K>(values, reference);
        let [mut exp, power] = R::factors(self.simd, arguments.x, boost, argument);
        // Where they are 0, x is clamped, and the powers are finite.
        arguments.complete(&mut exp);
        Factors { exp, power, z: arguments.z }
    }

    /// What exponentials are taken of.
    #[inline(always)]
    fn arguments<const MODE: u8, const K: usize>(
        &self,
        values: [Value<S, R>; K],
        reference: Value<S, R>,
    ) -> Arguments<S, R, K> {
        let zero = R::splat(self.simd, 0.0);
        let (mut difference, mut lost) = ([zero; K], [zero; K]);
        if MODE == SCALED && self.moderate {
            // No overflow needs halves, and what the difference's rounding loses is an ulp of it, as without T.
            let [high, low] = [self.factor[0] * R::splat(self.simd, 0.5), self.factor[1] * R::splat(self.simd, 0.5)];
            let floor = self.floor + self.floor;
            for k in 0..K {
                difference[k] = floor.max(values[k].logit - reference.logit);
            }
            let (mut quotient, mut rest) = (difference, difference);
            for k in 0..K {
                quotient[k] = difference[k] * high;
            }
            for k in 0..K {
                rest[k] = difference[k].mul_add(low, difference[k].mul_sub_precise(high, quotient[k]));
            }
            return Arguments { x: quotient, rest: Some(rest), below: None, z: quotient };
        }
        if MODE == CAPPED && R::LANES == f32::LANES {
            // f64 has room for the differences and quotients of f32. NaN passes, as below.
            let floor = R::splat(self.simd, R::UNDERFLOW);
            let [c, d] = reference.twice();
            for k in 0..K {
                let [a, b] = values[k].twice();
                difference[k] = floor.max(R::once([(a - c) * self.inverse, (b - d) * self.inverse]));
            }
            return Arguments { x: difference, rest: None, below: None, z: difference };
        }
        for k in 0..K {
            [difference[k], lost[k]] = self.difference::<MODE>(values[k], reference);
        }
        // NaN passes: on x86 `a.max(b)` is b when either is NaN.
        let mut z = difference;
        for k in 0..K {
            z[k] = self.floor.max(z[k]);
        }
        if MODE == PLAIN {
            return Arguments { x: difference, rest: None, below: None, z };
        }
        let [high, low] = self.factor;
        let mut quotient = z;
        for k in 0..K {
            quotient[k] = z[k] * high;
        }
        let mut rest = z;
        for k in 0..K {
            rest[k] = z[k].mul_sub_precise(high, quotient[k]) + z[k].mul_add(low, lost[k] * high);
        }
        // Below `floor` the exponential is 0. The rounding error is ignored there, since it may be NaN, and 0 is forced:
        // for a huge T `floor` is the lowest finite number, whose exponential is not 0.
        let mut below = [zero.simd_eq(zero); K];
        for k in 0..K {
            below[k] = difference[k].simd_lt(self.floor);
            z[k] = quotient[k] + below[k].select(zero, rest[k]);
        }
        Arguments { x: quotient, rest: Some(rest), below: Some(below), z }
    }

    /// `z − z(reference) − log_sum`, the last as a sum of two.
    #[inline(always)]
    pub(in crate::row) fn log<const MODE: u8>(
        &self,
        value: Value<S, R>,
        reference: Value<S, R>,
        [log_sum, log_sum_low]: [R::Lanes<S>; 2],
    ) -> R::Lanes<S> {
        let lanes = |value: f64| R::splat(self.simd, value);
        let zero = lanes(0.0);
        let [difference, lost] = self.difference::<MODE>(value, reference);
        let (quotient, rest) = if MODE == PLAIN {
            (difference, lost)
        } else {
            let [high, low] = self.factor;
            let product = difference * high;
            let rest = difference.mul_sub_precise(high, product) + difference.mul_add(low, lost * high);
            // −∞ stays what it is, also where 2 / T is 0; where it is infinite, what is not 0 becomes so.
            let infinite = lanes(f64::NEG_INFINITY);
            let product = if self.steep { difference.simd_lt(zero).select(infinite, product) } else { product };
            (difference.simd_ge(lanes(R::LOWEST.to_f64())).select(product, difference), rest)
        };
        let [sum, lost] = two_sum(quotient, -log_sum);
        // What an infinity lost is NaN.
        sum + quotient.simd_ge(lanes(R::LOWEST.to_f64())).select(rest + (lost - log_sum_low), zero)
    }
}
