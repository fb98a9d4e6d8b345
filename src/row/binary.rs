//! The binary twin: every logit a problem of its own.
//!
//! With ε of the target replaced by one half, a = w·((1 − ε)(1 − t) + ε/2) and b = w·P·((1 − ε)t + ε/2), the loss is `a·softplus(x) + b·softplus(−x)`, and with `E = exp(−|x|)` that is
//! `(a + b)·log1p E + |x|·(a where x > 0, else b)`: no term is a difference. The gradient `a·σ(x) − b·σ(−x)` is
//! `(a − b·E) / (1 + E)` for x > 0 and `(a·E − b) / (1 + E)` otherwise.

use fearless_simd::{Simd, prelude::*};

use super::BLOCK;
use crate::math::{Boost, Real, Total};

/// A block of logits and what is wanted of them, side by side. Whoever fills a part of it pads that to whole vectors with
/// logits and weights of 0.
pub struct Block<R> {
    /// The logits.
    pub logits: [R; BLOCK],
    /// The targets t.
    pub targets: [f64; BLOCK],
    /// The weights w; 0 where the element does not count.
    pub weights: [f64; BLOCK],
    /// The weights P of the positive part.
    pub positive: [f64; BLOCK],
    /// By what the gradients are multiplied.
    pub scales: [f64; BLOCK],
    /// Room for the losses.
    pub losses: [f64; BLOCK],
    /// Room for the gradients.
    pub gradients: [R; BLOCK],
}

impl<R: Real> Block<R> {
    /// Logits and targets of 0, weights of 1.
    pub fn new() -> Self {
        Self {
            logits: [R::default(); BLOCK],
            targets: [0.0; BLOCK],
            weights: [1.0; BLOCK],
            positive: [1.0; BLOCK],
            scales: [1.0; BLOCK],
            losses: [0.0; BLOCK],
            gradients: [R::default(); BLOCK],
        }
    }
}

impl<R: Real> Default for Block<R> {
    fn default() -> Self {
        Self::new()
    }
}

/// The losses of the first `length` logits of a block, and their sum; with `GRADIENT`, their gradients too.
///
/// exp and log are those of the lanes; the coefficients are f64, lest a weight of 50 take its rounding along.
#[inline(never)]
pub fn losses<S: Simd, R: Real, const GRADIENT: bool>(
    simd: S,
    block: &mut Block<R>,
    length: usize,
    label_smoothing: f64,
) -> f64 {
    let (keep, half) = (1.0 - label_smoothing, label_smoothing / 2.0);
    simd.vectorize(
        #[inline(always)]
        || {
            let mut sum = Total::zero(simd);
            for start in (0..length).step_by(R::LANES) {
                let here = start..start + R::LANES;
                let x = R::Lanes::<S>::from_slice(simd, &block.logits[here.clone()]);
                let exp = R::exp(simd, -x.abs(), Boost::Full);
                let log = R::log_1p(simd, exp * R::splat(simd, 1.0 / R::BOOST));
                let [mut x_lanes, mut exp_lanes, mut log_lanes] = [[0.0; 16]; 3];
                R::widen(x, &mut x_lanes);
                R::widen(exp, &mut exp_lanes);
                R::widen(log, &mut log_lanes);
                let (targets, weights, positive) =
                    (&block.targets[here.clone()], &block.weights[here.clone()], &block.positive[here.clone()]);
                let (losses, gradients) = (&mut block.losses[here.clone()], &mut block.gradients[here.clone()]);
                for lane in 0..R::LANES {
                    let (x, exp) = (x_lanes[lane], exp_lanes[lane] / R::BOOST);
                    // Where E is too small for the lanes, it is its own log1p.
                    let log = if exp < 1e-20 { exp } else { log_lanes[lane] };
                    let (t, w, positive) = (targets[lane], weights[lane], positive[lane]);
                    let (a, b) = (w * (keep * (1.0 - t) + half), w * (positive * (keep * t + half)));
                    let slope = if x > 0.0 { a } else { b };
                    // The right answer is worth every confidence: 0·∞ is 0.
                    let linear = if slope == 0.0 { 0.0 } else { slope * x.abs() };
                    losses[lane] = (a + b) * log + linear;
                    if GRADIENT {
                        let share = if x > 0.0 { a - b * exp } else { a * exp - b };
                        gradients[lane] = R::from_f64(block.scales[start + lane] * (share / (1.0 + exp)));
                    }
                }
                R::add_numbers(simd, &mut sum, losses);
            }
            sum.value()
        },
    )
}
