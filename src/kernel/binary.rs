//! Binary losses of targets alone: every logit a problem of its own.
//!
//! With `E = exp(−|x|)` the loss is `max(x, 0) − t·x + log1p E`, and the gradient `σ(x) − t`: with `q = E / (1 + E)` and a slope,
//! which is `1 − t` where x > 0 and else −t, it is `slope ∓ q`; the second derivative is `q·(1 − q)`. No term of a loss whose
//! target is right is a difference: there the first two terms cancel exactly. Where t is no integer, their product and difference
//! are sums of two, so that a loss is rounded once.
//!
//! E is relative to the integer 0 ([`crate::math::Reference`]). For 16 elements of f32 it is a chain of 13 operations, then log1p
//! one of 10 and the rest one of 9, of 32 in all. A CPU looks ahead over no more than some hundred operations: so E is a loop of
//! its own over the block, its results in L1, and both loops take a few vectors at a time. (In cache, AVX-512 and AVX2: 0.50 and
//! 0.84 ns an element in one loop, 0.43 and 0.60 in two; a third for gradients gains nothing.) Losses of four vectors are summed
//! before they become f64.
//!
//! Two classes are one such logit: with d the difference of the other's from the target's, their loss is `max(d, 0) + log1p E`, and
//! `σ(d)` the gradient by the other's logit, minus that by the target's. d is a sum of two, since logits of 30 and −30 round it by
//! more than the loss may be wrong by: what d lost, r, is added where d > 0, and E multiplied by `1 ∓ r`.
//!
//! What is not finite or has weights is the work of [`crate::row::binary`], and of the kernels of all numbers of classes.

use std::ops::Range;

use fearless_simd::{Simd, prelude::*};

use crate::element::Element;
use crate::math::{Real, Reference, Scale, Total, is_fused, two_sum, with_vectors_at_a_time};
use crate::rows::BLOCK;

/// The results of a block.
pub struct Results<R> {
    /// The losses, if they are kept.
    pub losses: [R; BLOCK],
    /// The gradients, if there are to be any.
    pub gradients: [R; BLOCK],
    /// The second derivatives, if there are to be any.
    pub hessians: [R; BLOCK],
    /// E.
    exps: [R; BLOCK],
}

impl<R: Real> Default for Results<R> {
    fn default() -> Self {
        let block = [R::default(); BLOCK];
        Self { losses: block, gradients: block, hessians: block, exps: block }
    }
}

/// Whether gradients can be multiplied by this number in the type that computes.
pub fn suits<R: Real>(scale: f64) -> bool {
    scale == 0.0 || (R::SMALLEST_NORMAL..=-R::LOWEST.to_f64()).contains(&scale.abs())
}

/// Add the losses of the first `length` logits to a total; with `KEEP`, write them; with `GRADIENT`, write `scale` times their
/// gradients, and with `HESSIAN` their second derivatives besides. `seconds` are targets, or, with `DIFFERENCES`, the second parts
/// of logits whose targets are 0. Four vectors are worked on as a whole: what follows the logits is any finite number, and what
/// follows the seconds 0.
///
/// Returns false, and leaves the total as it was, if the losses are not finite, or the level has no fused multiply-add.
///
/// # Safety
/// A block of logits and of seconds is readable.
#[inline(never)]
pub unsafe fn losses<
    S: Simd,
    R: Real + Element<Real = R>,
    const KEEP: bool,
    const GRADIENT: bool,
    const HESSIAN: bool,
    const DIFFERENCES: bool,
>(
    simd: S,
    [logits, seconds]: [*const R; 2],
    length: usize,
    scale: f64,
    total: &mut Total<S>,
    results: &mut Results<R>,
) -> bool {
    if const { !is_fused::<S>() } {
        return false;
    }
    simd.vectorize(
        #[inline(always)]
        || {
            let vectors = length.div_ceil(4 * R::LANES) * 4;
            assert!(vectors * R::LANES <= BLOCK);
            // SAFETY: vectors of a block, which is readable by the caller's promise.
            let load = |numbers: *const R, vector: usize| unsafe { R::load(simd, numbers.add(vector * R::LANES)) };
            let (zero, one) = (R::splat(simd, 0.0), R::splat(simd, 1.0));
            let (unboost, scale) = (R::splat(simd, 1.0 / R::BOOST), R::splat(simd, scale));
            let reference = Reference::zero(simd, Scale::<R>::new::<S>(1.0));
            let mut sum = Total::zero(simd);
            with_vectors_at_a_time!(S, K => {
                for first in (0..vectors).step_by(K) {
                    let mut x = [zero; K];
                    for k in 0..K {
                        x[k] = -load(logits, first + k).abs();
                    }
                    let terms = reference.terms(simd, x);
                    for k in 0..K {
                        let mut exp = terms.exp(k) * unboost;
                        if DIFFERENCES {
                            let (x, rest) = (load(logits, first + k), load(seconds, first + k));
                            exp = exp.mul_add(x.simd_gt(zero).select(-rest, rest), exp);
                        }
                        exp.store_slice(&mut results.exps[place::<R>(first + k)]);
                    }
                }
                for group in (0..vectors).step_by(4) {
                    let mut losses = [zero; 4];
                    for first in (0..4).step_by(K) {
                        let mut exps = [zero; K];
                        for k in 0..K {
                            exps[k] = R::Lanes::<S>::from_slice(simd, &results.exps[place::<R>(group + first + k)]);
                        }
                        let logs = R::logs_1p(simd, exps);
                        for k in 0..K {
                            let vector = group + first + k;
                            let (x, second, here) = (load(logits, vector), load(seconds, vector), place::<R>(vector));
                            let (is_above, above) = (x.simd_gt(zero), x.max(zero));
                            losses[first + k] = if DIFFERENCES {
                                above + (logs[k] + is_above.select(second, zero))
                            } else {
                                let product = second * x;
                                let linear = above - product;
                                // What the difference lost, and the product.
                                let lost = ((above - linear) - product) - second.mul_sub(x, product);
                                linear + (logs[k] + lost)
                            };
                            if KEEP {
                                losses[first + k].store_slice(&mut results.losses[here.clone()]);
                            }
                            if GRADIENT {
                                let share = exps[k] / (exps[k] + one);
                                let slope = is_above.select(one, zero);
                                let slope = if DIFFERENCES { slope } else { slope - second };
                                let gradient = slope + is_above.select(-share, share);
                                (gradient * scale).store_slice(&mut results.gradients[here.clone()]);
                                if HESSIAN {
                                    (share * (one - share) * scale).store_slice(&mut results.hessians[here]);
                                }
                            }
                        }
                    }
                    let [a, b, c, d] = losses;
                    R::add_to(&mut sum, (a + b) + (c + d));
                }
            });
            let is_finite = sum.value().is_finite();
            if is_finite {
                total.add::<R>(sum);
            }
            is_finite
        },
    )
}

/// Where a vector of a block lies.
#[inline(always)]
fn place<R: Real>(vector: usize) -> Range<usize> {
    vector * R::LANES..(vector + 1) * R::LANES
}

/// Where the logits of a block of rows of two classes lie.
#[derive(Clone, Copy)]
pub enum Pairs<R> {
    /// Row by row.
    Beside(*const R),
    /// Each class for itself.
    Apart([*const R; 2]),
}

/// The differences of the first `length` pairs of logits, the second less the first, as sums of two, each times a sign; those of a
/// sign of 0 are as small as there are. Four vectors are worked on as a whole.
///
/// # Safety
/// A block of pairs is readable.
#[inline(never)]
pub unsafe fn differences<S: Simd, R: Real + Element<Real = R>>(
    simd: S,
    pairs: Pairs<R>,
    signs: &[R; BLOCK],
    length: usize,
    [sums, rests]: &mut [[R; BLOCK]; 2],
) {
    simd.vectorize(
        #[inline(always)]
        || {
            let (zero, lowest) = (R::splat(simd, 0.0), R::Lanes::<S>::simd_from(simd, R::LOWEST));
            let vectors = length.div_ceil(4 * R::LANES) * 4;
            assert!(vectors * R::LANES <= BLOCK);
            for vector in 0..vectors {
                let here = place::<R>(vector);
                // SAFETY: vectors of the block, which is readable by the caller's promise.
                let (first, second) = unsafe {
                    match pairs {
                        Pairs::Beside(place) => {
                            let place = place.add(2 * here.start);
                            R::load(simd, place).deinterleave(R::load(simd, place.add(R::LANES)))
                        }
                        Pairs::Apart(places) => {
                            (R::load(simd, places[0].add(here.start)), R::load(simd, places[1].add(here.start)))
                        }
                    }
                };
                let sign = R::Lanes::<S>::from_slice(simd, &signs[here.clone()]);
                let ([sum, rest], nothing) = (two_sum(second, -first), sign.simd_eq(zero));
                nothing.select(lowest, sum * sign).store_slice(&mut sums[here.clone()]);
                nothing.select(zero, rest * sign).store_slice(&mut rests[here]);
            }
        },
    );
}
