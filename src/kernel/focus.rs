//! Losses that look at hard rows: functions of the probability p that a row gives its target.
//!
//! The loss `L = −log p` becomes `(1 − p)^γ·L + ε·(1 − p)`: the focal loss (T.-Y. Lin et al., "Focal loss for dense object
//! detection", ICCV 2017) and the first term of `PolyLoss` (Z. Leng et al., ICLR 2022). Since it depends on the logits through L
//! alone, its gradient is that of L times its slope by L.
//!
//! With the odds `O = p / (1 − p) = 1 / (e^L − 1)`, the power is `(1 − p)^γ = exp(−γ·log1p O)` and the slope
//! `(1 − p)^γ·(1 + γ·L·O) + ε·p`. Nothing is a difference, so that confident rows keep their digits.

use fearless_simd::{Simd, f64x8, prelude::*};

use crate::math::{Boost, Real, Twice, exp_minus_one, log_one_plus};

/// What becomes of the losses of classes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Focus {
    /// γ, at least 0.
    pub gamma: f64,
    /// ε.
    pub epsilon: f64,
}

/// From it on p is taken as 0: it is less than 10⁻²⁹⁵.
const LARGEST_LOSS: f64 = 680.0;

/// 2^1000, and what is left of 1 beyond them taken as that of these.
const LARGEST_ODDS: f64 = f64::from_bits(2023 << 52);

impl Focus {
    /// What becomes of losses that are sums of two, and the slopes. An infinite one stays, with a slope of 1; NaN passes.
    #[inline(always)]
    pub fn of<S: Simd>(&self, simd: S, [loss, lost]: Twice<S>) -> [f64x8<S>; 2] {
        let lanes = |value: f64| f64x8::splat(simd, value);
        let (zero, one) = (lanes(0.0), lanes(1.0));
        // NaN passes: on x86 `a.min(b)` is b when either is NaN.
        let bounded = lanes(LARGEST_LOSS).min(loss);
        let [inverse_odds, _] = exp_minus_one(simd, [bounded, loss.simd_eq(bounded).select(lost, zero)]);
        // However large γ is, a p of 0 has a power of 1.
        let odds = loss.simd_lt(lanes(LARGEST_LOSS)).select(one / inverse_odds, zero);
        let power = focal_power(simd, self.gamma, odds);
        // L·O goes to 1 with L.
        let share = inverse_odds.simd_eq(zero).select(one, bounded / inverse_odds);
        let (p, missing) = (one / (one + inverse_odds), inverse_odds / (one + inverse_odds));
        let slope = power.mul_add(lanes(self.gamma).mul_add(share, one), lanes(self.epsilon) * p);
        [power.mul_add(loss, lanes(self.epsilon) * missing), slope]
    }
}

/// `(1 − p)^γ` of probabilities with these odds, `p / (1 − p)`: 0 to the power of 0 is 1.
#[inline(always)]
pub fn focal_power<S: Simd>(simd: S, gamma: f64, odds: f64x8<S>) -> f64x8<S> {
    let lanes = |value: f64| f64x8::splat(simd, value);
    if gamma == 0.0 {
        return lanes(1.0);
    }
    let gamma = lanes(gamma);
    let [log, rest] = log_one_plus(simd, lanes(LARGEST_ODDS).min(odds));
    let high = log * gamma;
    let low = log.mul_sub_precise(gamma, high) + rest * gamma;
    let exp = <f64 as Real>::exp(simd, -high, Boost::None);
    // What is infinite has no rest.
    high.simd_eq(lanes(f64::INFINITY)).select(lanes(0.0), exp - exp * low)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::{Kernel, Level};

    const HALF: usize = 8;

    struct Of([f64; HALF], Focus);

    impl Kernel for Of {
        type Output = [[f64; HALF]; 2];

        #[inline(always)]
        fn run<S: Simd>(self, simd: S) -> Self::Output {
            let losses = f64x8::from_slice(simd, &self.0);
            let mut found = [[0.0; HALF]; 2];
            for (found, lanes) in found.iter_mut().zip(self.1.of(simd, [losses, f64x8::splat(simd, 0.0)])) {
                lanes.store_slice(found);
            }
            found
        }
    }

    #[test]
    fn focal_and_poly_losses_are_their_formulas() {
        let losses = [1e-18, 1e-9, 0.001, 0.3, 1.0, 5.0, 40.0, 1e4];
        for &level in Level::available() {
            for (gamma, epsilon) in [(0.0, 0.0), (2.0, 0.0), (0.5, 1.0), (0.0, -0.5), (5.0, 2.0), (1.0, 0.0)] {
                let [found, slopes] = level.run(Of(losses, Focus { gamma, epsilon }));
                for (lane, loss) in losses.into_iter().enumerate() {
                    let missing = -(-loss).exp_m1();
                    let (power, poly) = (missing.powf(gamma), epsilon * missing);
                    let bound = |size: f64| 2e-15 * (1.0 + gamma) * size;
                    let expected = power * loss + poly;
                    let error = (found[lane] - expected).abs();
                    assert!(error <= bound(power * loss + poly.abs()), "{} {gamma} {loss}", level.name());
                    let share = loss * (-loss).exp() / missing;
                    let expected = power * (1.0 + gamma * share) + epsilon * (-loss).exp();
                    assert!((slopes[lane] - expected).abs() <= bound(expected.abs() + epsilon.abs()), "{gamma} {loss}");
                }
            }
        }
    }

    #[test]
    fn ends_are_what_they_should_be() {
        let ends = [0.0, f64::INFINITY, f64::NAN, 1e-320, 700.0, 0.0, 0.0, 0.0];
        for &level in Level::available() {
            let [found, slopes] = level.run(Of(ends, Focus { gamma: 2.0, epsilon: 1.0 }));
            assert!(found[0] == 0.0 && (slopes[0] - 1.0).abs() < 1e-15, "{} {slopes:?}", level.name());
            assert_eq!((found[1], slopes[1]), (f64::INFINITY, 1.0));
            assert!(found[2].is_nan() && slopes[2].is_nan());
            assert!(found[3] <= 1e-320 && (slopes[3] - 1.0).abs() < 1e-15);
            assert_eq!((found[4], slopes[4]), (701.0, 1.0));
            assert_eq!(level.run(Of(ends, Focus { gamma: 1e100, epsilon: 0.0 }))[0][4], 700.0);
            let [found, slopes] = level.run(Of(ends, Focus { gamma: 0.0, epsilon: 0.0 }));
            assert_eq!((found[0], slopes[0], found[1]), (0.0, 1.0, f64::INFINITY));
        }
    }
}
