//! The binary twin: every logit a problem of its own.
//!
//! With ε of the target replaced by one half, `a = w·((1 − ε)(1 − t) + ε/2)` and `b = w·P·((1 − ε)t + ε/2)`, the loss
//! is `a·softplus(x) + b·softplus(−x)`, and with `E = exp(−|x|)` that is `(a + b)·log1p E + |x|·(a where x > 0, else
//! b)`: no term is a difference. The gradient `a·σ(x) − b·σ(−x)` is `(a − b·E) / (1 + E)` for x > 0 and `(a·E − b) / (1
//! + E)` otherwise.

use fearless_simd::{Simd, f64x8, prelude::*};

use super::BLOCK;
use crate::math::{Boost, Real, Total};

/// A block of logits and what is wanted of them, side by side. Whoever fills a part of it pads that to whole vectors
/// with logits and weights of 0.
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
    let (keep, half_smoothing) = (1.0 - label_smoothing, label_smoothing / 2.0);
    simd.vectorize(
        #[inline(always)]
        || {
            let mut sum = Total::zero(simd);
            for start in (0..length).step_by(R::LANES) {
                let here = start..start + R::LANES;
                let x = R::Lanes::<S>::from_slice(simd, &block.logits[here.clone()]);
                let exp = R::exp(simd, -x.abs(), Boost::Full);
                let log = R::log_1p(simd, exp * R::splat(simd, 1.0 / R::BOOST));
                let [mut x_lanes, mut exp_lanes, mut log_lanes, mut gradients] = [[0.0; 16]; 4];
                R::widen(x, &mut x_lanes);
                R::widen(exp, &mut exp_lanes);
                R::widen(log, &mut log_lanes);
                for half in (0..R::LANES).step_by(8) {
                    let lanes = |value: f64| f64x8::splat(simd, value);
                    let load = |values: &[f64]| f64x8::from_slice(simd, &values[half..half + 8]);
                    let block_of = |values: &[f64; BLOCK]| load(&values[here.clone()]);
                    let (zero, one) = (lanes(0.0), lanes(1.0));
                    let (x, exp) = (load(&x_lanes), load(&exp_lanes) * lanes(1.0 / R::BOOST));
                    // Where E is too small for the lanes, it is its own log1p.
                    let log = exp.simd_lt(lanes(1e-20)).select(exp, load(&log_lanes));
                    let (t, w, positive) =
                        (block_of(&block.targets), block_of(&block.weights), block_of(&block.positive));
                    let a = w * (lanes(keep) * (one - t) + lanes(half_smoothing));
                    let b = w * (positive * (lanes(keep) * t + lanes(half_smoothing)));
                    let above = x.simd_gt(zero);
                    let slope = above.select(a, b);
                    // The right answer is worth every confidence: 0·∞ is 0.
                    let linear = slope.simd_eq(zero).select(zero, slope * x.abs());
                    ((a + b) * log + linear).store_slice(&mut block.losses[here.clone()][half..half + 8]);
                    if GRADIENT {
                        let share = above.select(a - b * exp, a * exp - b) / (one + exp);
                        (block_of(&block.scales) * share).store_slice(&mut gradients[half..half + 8]);
                    }
                }
                if GRADIENT {
                    for (gradient, value) in block.gradients[here.clone()].iter_mut().zip(gradients) {
                        *gradient = R::from_f64(value);
                    }
                }
                R::add_numbers(simd, &mut sum, &block.losses[here]);
            }
            sum.value()
        },
    )
}
