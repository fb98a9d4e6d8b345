//! The divisor of the logits, and the differences `(x − reference) / T` that go into exponentials and logarithms.
//!
//! Dividing must cost no accuracy: a difference of 100 that is off by one more ulp doubles the error of its exponential.
//! So a difference divided by T is a sum of two numbers: the rounded product with 1 / T, and what the roundings of the
//! difference, of 1 / T and of the product lost.

use fearless_simd::{Simd, prelude::*};

use crate::math::{Boost, Real};

/// The divisor of the logits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Temperature(f64);

impl Temperature {
    /// No division.
    pub const ONE: Self = Self(1.0);

    /// From a positive finite number.
    pub fn new(value: f64) -> Self {
        Self(value)
    }

    /// Whether dividing changes anything.
    pub fn is_one(self) -> bool {
        self == Self::ONE
    }

    /// The divisor.
    pub fn value(self) -> f64 {
        self.0
    }

    /// `(a − b) / T` in twice the precision of f64, as a sum of two, the second 0 if the first is not finite.
    pub fn difference(self, a: f64, b: f64) -> [f64; 2] {
        // Halves, if the difference of finite numbers overflows.
        let (a, b, divisor) = if (a - b).is_infinite() && a.is_finite() && b.is_finite() {
            (a / 2.0, b / 2.0, self.0 / 2.0)
        } else {
            (a, b, self.0)
        };
        let high = a - b;
        let rounded_b = a - high;
        let low = (a - (high + rounded_b)) + (rounded_b - b);
        let quotient = if divisor == 1.0 { high } else { high / divisor };
        if !quotient.is_finite() {
            return [quotient, 0.0];
        }
        if divisor == 1.0 {
            return [quotient, low];
        }
        [quotient, ((-quotient).mul_add(divisor, high) + low) / divisor]
    }
}

/// `a + b + c` rounded once, for a `c` smaller than an ulp of `a`.
pub(super) fn sum_of_three(a: f64, b: f64, c: f64) -> f64 {
    let sum = a + b;
    if !sum.is_finite() {
        return sum;
    }
    let rounded_b = sum - a;
    sum + ((a - (sum - rounded_b)) + (b - rounded_b) + c)
}

/// [`Temperature`] over lanes of `R`.
///
/// With `SCALED`, differences are those of the halves and the factors those of 2 / T: nothing overflows on the way to
/// a quotient that does not.
#[derive(Clone, Copy)]
pub(super) struct Scale<S: Simd, R: Real> {
    simd: S,
    /// 2 / T, and what its rounding lost.
    factor: [R::Lanes<S>; 2],
    /// Differences below this one have an exponential of 0; clamped to it, infinities stay out of the products.
    floor: R::Lanes<S>,
    /// Whether 2 / T overflows; the factor is the largest finite number then.
    steep: bool,
}

impl<S: Simd, R: Real> Scale<S, R> {
    #[inline(always)]
    pub(super) fn new(simd: S, temperature: Temperature) -> Self {
        let divisor = temperature.0;
        let factor = 2.0 / divisor;
        let largest = -R::LOWEST.to_f64();
        let high = R::from_f64(factor.min(largest));
        let rest = (factor - high.to_f64()) + (-factor).mul_add(divisor, 2.0) / divisor;
        let low = if factor < largest { R::from_f64(rest) } else { R::default() };
        let floor = R::from_f64((R::UNDERFLOW * divisor / if temperature.is_one() { 1.0 } else { 2.0 }).max(-largest));
        let splat = |value| R::Lanes::<S>::simd_from(simd, value);
        Self { simd, factor: [splat(high), splat(low)], floor: splat(floor), steep: factor > largest }
    }

    /// `x − reference`, halved if `SCALED`, and what its rounding lost: NaN if it is not finite.
    #[inline(always)]
    fn difference<const SCALED: bool>(&self, x: R::Lanes<S>, reference: R::Lanes<S>) -> [R::Lanes<S>; 2] {
        let half = R::Lanes::<S>::simd_from(self.simd, R::from_f64(0.5));
        let (x, reference) = if SCALED { (x * half, reference * half) } else { (x, reference) };
        let difference = x - reference;
        let rounded = x - difference;
        [difference, (x - (difference + rounded)) + (rounded - reference)]
    }

    /// `exp((x − reference) / T)`, and the quotient that went into it, clamped to where the exponential is 0.
    #[inline(always)]
    pub(super) fn exp<const SCALED: bool>(
        &self,
        x: R::Lanes<S>,
        reference: R::Lanes<S>,
        boost: Boost,
    ) -> (R::Lanes<S>, R::Lanes<S>) {
        let [difference, lost] = self.difference::<SCALED>(x, reference);
        // NaN passes: on x86 `a.max(b)` is b when either is NaN.
        let clamped = self.floor.max(difference);
        if !SCALED {
            return (R::exp(self.simd, difference, boost), clamped);
        }
        let [high, low] = self.factor;
        let quotient = clamped * high;
        let rest = clamped.mul_sub_precise(high, quotient) + clamped.mul_add(low, lost * high);
        let exp = R::exp(self.simd, quotient, boost);
        let exp = exp.mul_add(rest, exp);
        // Below the floor what was lost is NaN or not worth its name; with an enormous T the floor is the lowest finite
        // number, whose exponential is not 0, but that of −∞ is.
        let zero = R::Lanes::<S>::simd_from(self.simd, R::default());
        (difference.simd_lt(self.floor).select(zero, exp), quotient)
    }

    /// `(x − reference) / T − log_sum`.
    #[inline(always)]
    pub(super) fn log<const SCALED: bool>(
        &self,
        x: R::Lanes<S>,
        reference: R::Lanes<S>,
        log_sum: R::Lanes<S>,
    ) -> R::Lanes<S> {
        let lanes = |value: f64| R::Lanes::<S>::simd_from(self.simd, R::from_f64(value));
        let zero = lanes(0.0);
        let [difference, lost] = self.difference::<SCALED>(x, reference);
        let (quotient, rest) = if SCALED {
            let [high, low] = self.factor;
            let product = difference * high;
            let rest = difference.mul_sub_precise(high, product) + difference.mul_add(low, lost * high);
            // −∞ stays what it is, also where 2 / T is 0; where it is infinite, what is not 0 becomes so.
            let infinite = lanes(f64::NEG_INFINITY);
            let product = if self.steep { difference.simd_lt(zero).select(infinite, product) } else { product };
            (difference.simd_ge(lanes(R::LOWEST.to_f64())).select(product, difference), rest)
        } else {
            (difference, lost)
        };
        let sum = quotient - log_sum;
        let rounded = quotient - sum;
        let rest = rest + ((quotient - (sum + rounded)) + (rounded - log_sum));
        // What an infinity lost is NaN.
        sum + quotient.simd_ge(lanes(R::LOWEST.to_f64())).select(rest, zero)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_exact_and_do_not_overflow() {
        let half_ulp = 2f64.powi(-53);
        assert_eq!(Temperature::ONE.difference(1.0, half_ulp / 2.0), [1.0, -half_ulp / 2.0]);
        let [high, low] = Temperature::new(3.0).difference(1.0, 0.0);
        assert_eq!(high, 1.0 / 3.0);
        assert_eq!(low, (-3.0f64).mul_add(high, 1.0) / 3.0);
        assert_ne!(low, 0.0);
        assert_eq!(Temperature::new(100.0).difference(1.5e308, -1.5e308)[0], 3e306);
        assert_eq!(Temperature::new(5e-324).difference(2.0, 2.0), [0.0, 0.0]);
        assert_eq!(Temperature::new(5e-324).difference(1.0, 2.0), [f64::NEG_INFINITY, 0.0]);
        assert_eq!(Temperature::ONE.difference(f64::NEG_INFINITY, 2.0), [f64::NEG_INFINITY, 0.0]);
        assert!(Temperature::ONE.difference(f64::INFINITY, f64::INFINITY)[0].is_nan());
    }
}
