//! What becomes of the logits before the softmax, `z = softcap · tanh(x / softcap) / T`, and the differences
//! `z − z(reference)` that go into exponentials and logarithms.
//!
//! Neither may cost accuracy: a difference of 100 that is off by one more ulp doubles the error of its exponential, and
//! a cap of 30 that is off by an ulp is as bad. So a capped logit has twice the precision of the lanes, and a difference
//! divided by T is a sum of two: the rounded product with 1 / T, and what the roundings of the difference, of 1 / T and
//! of the product lost.

mod scale;

pub(super) use crate::kernel::cap::{Cap, Capped};
pub(super) use scale::{Factors, Scale, Value};

use fearless_simd::Simd;

use crate::math::{Real, two_sum};

/// Logits as they are.
pub(super) const PLAIN: u8 = 0;
/// Divided.
pub(super) const SCALED: u8 = 1;
/// Capped, then divided.
pub(super) const CAPPED: u8 = 2;

/// What becomes of the logits before the softmax.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Transform {
    temperature: f64,
    softcap: Option<f64>,
}

/// Run `$body` with the constant `$mode` set to the mode of a transform.
macro_rules! with_mode {
    ($transform:expr, $mode:ident => $body:expr) => {
        match $transform.mode() {
            $crate::row::transform::PLAIN => {
                const $mode: u8 = $crate::row::transform::PLAIN;
                $body
            }
            $crate::row::transform::SCALED => {
                const $mode: u8 = $crate::row::transform::SCALED;
                $body
            }
            _ => {
                const $mode: u8 = $crate::row::transform::CAPPED;
                $body
            }
        }
    };
}
pub(super) use with_mode;

/// [`with_mode`] for transforms that do not cap.
macro_rules! with_uncapped_mode {
    ($transform:expr, $mode:ident => $body:expr) => {
        match $transform.mode() {
            $crate::row::transform::PLAIN => {
                const $mode: u8 = $crate::row::transform::PLAIN;
                $body
            }
            $crate::row::transform::SCALED => {
                const $mode: u8 = $crate::row::transform::SCALED;
                $body
            }
            _ => panic!("a cap where there is none"),
        }
    };
}
pub(super) use with_uncapped_mode;

impl Transform {
    /// Logits as they are.
    pub const NONE: Self = Self { temperature: 1.0, softcap: None };

    /// Divided by `temperature` and, before that, capped: both positive finite numbers.
    pub fn new(temperature: f64, softcap: Option<f64>) -> Self {
        Self { temperature, softcap }
    }

    /// Divided by `temperature`, a positive finite number.
    pub fn divided_by(temperature: f64) -> Self {
        Self::new(temperature, None)
    }

    #[inline(always)]
    pub(super) fn mode(self) -> u8 {
        match self {
            Self { softcap: Some(_), .. } => CAPPED,
            Self { temperature: 1.0, .. } => PLAIN,
            _ => SCALED,
        }
    }

    /// The cap's height, if there is one.
    pub fn softcap(self) -> Option<f64> {
        self.softcap
    }

    /// The divisor.
    pub fn temperature(self) -> f64 {
        self.temperature
    }

    /// A logit, capped if there is a cap, as a sum of two.
    #[inline]
    pub(super) fn capped<S: Simd>(self, simd: S, x: f64) -> [f64; 2] {
        if self.softcap.is_none() {
            return [x, 0.0];
        }
        let mut capped = Capped::default();
        if let Some(cap) = self.cap::<S, f64>(simd) {
            cap.fill::<f64, 8, false>(simd, &[x; 8], &mut capped);
        }
        let [high, low] = capped.values;
        [high[0], low[0]]
    }

    /// The cap, if there is one.
    #[inline(always)]
    pub(super) fn cap<S: Simd, R: Real>(self, simd: S) -> Option<Cap<S>> {
        let softcap = self.softcap?;
        Some(Cap::new::<R>(simd, softcap))
    }

    /// `z(a) − z(b)` in twice the precision of f64, as a sum of two, the second 0 if the first is not finite.
    #[inline]
    pub fn difference<S: Simd>(self, simd: S, a: f64, b: f64) -> [f64; 2] {
        let ([a, a_low], [b, b_low]) = (self.capped(simd, a), self.capped(simd, b));
        let low = if self.softcap.is_some() { a_low - b_low } else { 0.0 };
        self.quotient(a, b, low)
    }

    /// `(a − b + low) / T`, as a sum of two, for a `low` that is far smaller than `a` or `b`.
    #[inline]
    fn quotient(self, a: f64, b: f64, low: f64) -> [f64; 2] {
        // Halves, if the difference of finite numbers overflows.
        let (a, b, divisor) = if (a - b).is_infinite() && a.is_finite() && b.is_finite() {
            (a / 2.0, b / 2.0, self.temperature / 2.0)
        } else {
            (a, b, self.temperature)
        };
        let [high, lost] = two_sum(a, -b);
        let [high, low] = if high.is_finite() { two_sum(high, lost + low) } else { [high, 0.0] };
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::{Kernel, Level};

    struct Difference(Transform, f64, f64);

    impl Kernel for Difference {
        type Output = [f64; 2];

        #[inline(always)]
        fn run<S: Simd>(self, simd: S) -> [f64; 2] {
            self.0.difference(simd, self.1, self.2)
        }
    }

    #[test]
    fn differences_are_exact_and_do_not_overflow() {
        let one = |a, b| Level::available()[0].run(Difference(Transform::NONE, a, b));
        let by = |temperature, a, b| Level::available()[0].run(Difference(Transform::divided_by(temperature), a, b));
        let half_ulp = 2f64.powi(-53);
        assert_eq!(one(1.0, half_ulp / 2.0), [1.0, -half_ulp / 2.0]);
        let [high, low] = by(3.0, 1.0, 0.0);
        assert_eq!(high, 1.0 / 3.0);
        assert_eq!(low, (-3.0f64).mul_add(high, 1.0) / 3.0);
        assert_ne!(low, 0.0);
        assert_eq!(by(100.0, 1.5e308, -1.5e308)[0], 3e306);
        assert_eq!(by(5e-324, 2.0, 2.0), [0.0, 0.0]);
        assert_eq!(by(5e-324, 1.0, 2.0), [f64::NEG_INFINITY, 0.0]);
        assert_eq!(one(f64::NEG_INFINITY, 2.0), [f64::NEG_INFINITY, 0.0]);
        assert!(one(f64::INFINITY, f64::INFINITY)[0].is_nan());
    }
}
