//! Binary losses of targets alone: every logit a problem of its own.
//!
//! With `E = exp(−|x|)` the loss is `max(x, 0) − t·x + log1p E`, and the gradient `σ(x) − t`: with `q = E / (1 + E)` and a slope,
//! which is `1 − t` where x > 0 and else −t, it is `slope ∓ q`. No term of a loss whose target is right is a difference: there the
//! first two terms cancel exactly. Where t is no integer, their product and difference are sums of two, so that a loss is rounded
//! once.
//!
//! E is relative to the integer 0 ([`crate::math::Reference`]). For 16 elements of f32 that is a chain of 13 operations, and log1p
//! one of 10; a few vectors at a time keep the CPU busy meanwhile. Losses of four vectors are summed before they become f64.
//!
//! What is not finite, with weights or a second derivative is the work of [`crate::row::binary`].

use fearless_simd::{Simd, prelude::*};

use crate::element::Element;
use crate::math::{Real, Reference, Scale, Total, is_wide, with_vectors_at_a_time};
use crate::rows::BLOCK;

/// The results of a block.
pub struct Results<R> {
    /// The losses, if they are kept.
    pub losses: [R; BLOCK],
    /// The gradients, if there are to be any.
    pub gradients: [R; BLOCK],
}

impl<R: Real> Default for Results<R> {
    fn default() -> Self {
        Self { losses: [R::default(); BLOCK], gradients: [R::default(); BLOCK] }
    }
}

/// Whether gradients can be multiplied by this number in the type that computes.
pub fn suits<R: Real>(scale: f64) -> bool {
    scale == 0.0 || (R::SMALLEST_NORMAL..=-R::LOWEST.to_f64()).contains(&scale.abs())
}

/// Add the losses of the first `length` logits to a total; with `KEEP`, write them; with `GRADIENT`, write `scale` times their
/// gradients. Four vectors are worked on as a whole: what follows the logits is any finite number, and what follows the targets 0.
///
/// Returns false if this is not for them: losses that are not finite, and levels without a fused multiply-add. Then the total is as
/// it was.
///
/// # Safety
/// A block of logits and of targets is readable.
#[inline(never)]
pub unsafe fn losses<S: Simd, R: Real + Element<Real = R>, const KEEP: bool, const GRADIENT: bool>(
    simd: S,
    [logits, targets]: [*const R; 2],
    length: usize,
    scale: f64,
    total: &mut Total<S>,
    results: &mut Results<R>,
) -> bool {
    if const { !is_wide::<S>() } {
        return false;
    }
    simd.vectorize(
        #[inline(always)]
        || {
            let lanes = |value: f64| R::splat(simd, value);
            let (zero, one, unboost) = (lanes(0.0), lanes(1.0), lanes(1.0 / R::BOOST));
            let reference = Reference::zero(simd, Scale::<R>::new::<S>(1.0));
            let scale = lanes(scale);
            let groups = length.div_ceil(4 * R::LANES);
            let Results { losses, gradients } = results;
            let (losses, gradients) = (&mut losses[..4 * R::LANES * groups], &mut gradients[..4 * R::LANES * groups]);
            let mut sum = Total::zero(simd);
            with_vectors_at_a_time!(S, K => {
                for start in (0..groups * 4).step_by(K) {
                    let mut exps = [zero; K];
                    for k in 0..K {
                        let place = (start + k) * R::LANES;
                        assert!(place + R::LANES <= BLOCK);
                        // SAFETY: a vector of the block, readable by the caller's promise.
                        exps[k] = -unsafe { R::load(simd, logits.add(place)) }.abs();
                    }
                    let terms = reference.terms(simd, exps);
                    for k in 0..K {
                        let place = (start + k) * R::LANES;
                        (terms.exp(k) * unboost).store_slice(&mut losses[place..place + R::LANES]);
                    }
                }
                for group in 0..groups {
                    let mut sums = [zero; 4];
                    for first in (0..4).step_by(K) {
                        let (mut exps, mut places) = ([zero; K], [0; K]);
                        for k in 0..K {
                            places[k] = (4 * group + first + k) * R::LANES;
                            exps[k] = R::Lanes::<S>::from_slice(simd, &losses[places[k]..places[k] + R::LANES]);
                        }
                        let logs = R::logs_1p(simd, exps);
                        for k in 0..K {
                            assert!(places[k] + R::LANES <= BLOCK);
                            // SAFETY: as above.
                            let (x, t) = unsafe { (R::load(simd, logits.add(places[k])), R::load(simd, targets.add(places[k]))) };
                            let product = t * x;
                            let product_lost = t.mul_sub(x, product);
                            let above = x.max(zero);
                            let linear = above - product;
                            let lost = (above - linear) - product;
                            sums[first + k] = linear + (logs[k] + (lost - product_lost));
                            let here = places[k]..places[k] + R::LANES;
                            if KEEP {
                                sums[first + k].store_slice(&mut losses[here.clone()]);
                            }
                            if GRADIENT {
                                let share = exps[k] / (exps[k] + one);
                                let above = x.simd_gt(zero);
                                let gradient = (above.select(one, zero) - t) + above.select(-share, share);
                                (gradient * scale).store_slice(&mut gradients[here]);
                            }
                        }
                    }
                    let [a, b, c, d] = sums;
                    R::add_to(&mut sum, (a + b) + (c + d));
                }
            });
            // Of f64 what the first part lost is 0 where that is infinite.
            if !sum.value().is_finite() {
                return false;
            }
            total.add::<R>(sum);
            true
        },
    )
}
