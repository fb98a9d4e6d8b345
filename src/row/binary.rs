//! The binary twin: every logit a problem of its own, with weights, smoothing, second derivatives, and losses that are not finite.
//! Finite losses of targets alone are the work of [`crate::kernel::binary`].
//!
//! With ε of the target replaced by one half, `a = w·((1 − ε)(1 − t) + ε/2)` and `b = w·P·((1 − ε)t + ε/2)`, the loss
//! is `a·softplus(x) + b·softplus(−x)` and the gradient `a·σ(x) − b·σ(−x)`. With `E = exp(−|x|)`, a slope d, which is a
//! where x > 0 and else −b, and a mass `a + b`, they are `d·x + (a + b)·log1p E` and `d ∓ (a + b)·E / (1 + E)`. No term of
//! the loss is a difference, and what the quotient is off by is a share of σ(−|x|), the smaller side. The second
//! derivative is `(a + b)·σ(x)·σ(−x)`, that quotient times what is left of 1, which is no less than a half.
//!
//! A focal loss is that times `(1 − p)^γ`, p being the probability `t·σ(x) + (1 − t)·σ(−x)` of the target, after the smoothing:
//! `1 − p = t·σ(−x) + (1 − t)·σ(x)`, and its derivative `(1 − 2t)·σ(x)·σ(−x)`.
//!
//! exp, log1p and the quotient are those of the lanes, E being rounded to them, where it is subnormal too; slope and mass are f64,
//! lest 1 − t and a weight of 50 take their rounding along.
//!
//! # Three loops
//!
//! For 16 elements of f32, AVX-512 takes 15 operations for E, 10 for its log1p and 26 for the rest, in halves of f64 (34
//! with a gradient): more than a dozen cycles, if none waited. But they are one chain of some 30, and a CPU looks ahead
//! over no more than a few such chains. So each step is a loop of its own over the block, with its results in L1.

use fearless_simd::{Simd, f64x8, prelude::*};

use crate::element::Element;
use crate::kernel::focus::focal_power;
use crate::math::{Boost, Real, Total};
use crate::rows::BLOCK;

/// Lanes of f64 that say yes or no.
type Mask<S> = <f64x8<S> as SimdBase<S>>::Mask;

/// Targets with weights: a block of everything.
pub struct Weighted {
    /// The targets t.
    pub targets: [f64; BLOCK],
    /// The weights w; 0 where the element does not count.
    pub weights: [f64; BLOCK],
    /// The weights P of the positive part.
    pub positive: [f64; BLOCK],
    /// By what the gradients are multiplied.
    pub scales: [f64; BLOCK],
    /// ε.
    pub label_smoothing: f64,
    /// γ.
    pub focal_gamma: f64,
}

/// What the two sides of eight elements weigh.
struct Sides<S: Simd> {
    /// a where the logit is above 0, else −b.
    slope: f64x8<S>,
    /// a + b.
    mass: f64x8<S>,
    /// By what the gradient is multiplied.
    scale: f64x8<S>,
}

impl Weighted {
    /// The sides of the eight elements from `start` on.
    #[inline(always)]
    fn sides<S: Simd>(&self, simd: S, start: usize, above: Mask<S>) -> Sides<S> {
        let lanes = |value: f64| f64x8::splat(simd, value);
        let load = |values: &[f64; BLOCK]| f64x8::from_slice(simd, &values[start..start + 8]);
        let (keep, half_smoothing) = (lanes(1.0 - self.label_smoothing), lanes(self.label_smoothing / 2.0));
        let (t, w) = (load(&self.targets), load(&self.weights));
        // Of a side that has no share of the target an infinite weight makes nothing.
        let weighed = |share: f64x8<S>, product| share.simd_eq(lanes(0.0)).select(share, product);
        let (no, yes) = (keep * (lanes(1.0) - t) + half_smoothing, keep * t + half_smoothing);
        let (a, b) = (weighed(no, w * no), weighed(yes, w * (load(&self.positive) * yes)));
        Sides { slope: above.select(a, -b), mass: a + b, scale: load(&self.scales) }
    }

    /// What becomes of the losses and gradients of the eight elements from `start` on if hard ones count more; `rarer` is σ(−|x|).
    #[inline(always)]
    fn focused<S: Simd>(
        &self,
        simd: S,
        start: usize,
        above: Mask<S>,
        rarer: f64x8<S>,
        [loss, gradient]: [f64x8<S>; 2],
    ) -> [f64x8<S>; 2] {
        let lanes = |value: f64| f64x8::splat(simd, value);
        let (zero, one, t) = (lanes(0.0), lanes(1.0), f64x8::from_slice(simd, &self.targets[start..start + 8]));
        let yes = t.mul_add(lanes(1.0 - self.label_smoothing), lanes(self.label_smoothing / 2.0));
        let no = one - yes;
        let likelier = one - rarer;
        // The probabilities of yes and of no, none a difference where it is small.
        let (of_yes, of_no) = (above.select(likelier, rarer), above.select(rarer, likelier));
        let (missing, right) = (yes.mul_add(of_no, no * of_yes), yes.mul_add(of_yes, no * of_no));
        let power = focal_power(simd, self.focal_gamma, right / missing);
        let slope = (no - yes) * (rarer * likelier);
        // Of an infinite logit there is nothing, whatever it is multiplied by.
        let of_power = slope.simd_eq(zero).select(zero, lanes(self.focal_gamma) * (loss / missing) * slope);
        // Of an infinite loss there is no part, however small the power.
        let infinite = loss.simd_eq(lanes(f64::INFINITY));
        [infinite.select(loss, power * loss), power * (gradient + of_power)]
    }
}

/// The results of a block, and room for what is made of them on the way.
pub struct Room<R> {
    /// The losses, if they are kept.
    pub losses: [f64; BLOCK],
    /// E, then `E / (1 + E)`, then the gradients, if there are to be any.
    pub gradients: [R; BLOCK],
    /// The second derivatives, if there are to be any.
    pub hessians: [R; BLOCK],
    /// log1p E.
    logs: [R; BLOCK],
}

impl<R: Real> Default for Room<R> {
    fn default() -> Self {
        let block = [R::default(); BLOCK];
        Self { losses: [0.0; BLOCK], gradients: block, hessians: block, logs: block }
    }
}

/// Add the losses of the first `length` logits to a total; with `KEEP`, write them; with `GRADIENT`, write their
/// gradients, and with `HESSIAN` their second derivatives besides. The last vector is worked on as a whole.
///
/// # Safety
/// A block of logits is readable.
#[inline(never)]
pub unsafe fn losses<
    S: Simd,
    R: Real + Element<Real = R>,
    const KEEP: bool,
    const GRADIENT: bool,
    const HESSIAN: bool,
>(
    simd: S,
    logits: *const R,
    weighted: &Weighted,
    length: usize,
    total: &mut Total<S>,
    room: &mut Room<R>,
) {
    simd.vectorize(
        #[inline(always)]
        || {
            let (lanes, padded) = (R::LANES, length.next_multiple_of(R::LANES));
            let Room { losses, gradients, hessians, logs } = room;
            let (gradients, logs) = (&mut gradients[..padded], &mut logs[..padded]);
            let focal = weighted.focal_gamma != 0.0;
            for (vector, part) in gradients.chunks_exact_mut(lanes).enumerate() {
                // SAFETY: a vector of the block, readable by the caller's promise.
                let x = unsafe { R::load(simd, logits.add(vector * lanes)) };
                let exp = R::exp(simd, -x.abs(), Boost::Full);
                (exp * R::splat(simd, 1.0 / R::BOOST)).store_slice(part);
            }
            for (part, logs) in gradients.chunks_exact_mut(lanes).zip(logs.chunks_exact_mut(lanes)) {
                let exp = R::Lanes::<S>::from_slice(simd, part);
                R::logs_1p(simd, [exp])[0].store_slice(logs);
                if GRADIENT || focal {
                    (exp / (exp + R::splat(simd, 1.0))).store_slice(part);
                }
            }
            let (zero, one, none) = (f64x8::splat(simd, 0.0), f64x8::splat(simd, 1.0), R::splat(simd, 0.0));
            let mut sum = *total;
            for (vector, (part, logs)) in gradients.chunks_exact_mut(lanes).zip(logs.chunks_exact(lanes)).enumerate() {
                // SAFETY: as above.
                let x = unsafe { R::load(simd, logits.add(vector * lanes)) };
                let share = R::Lanes::<S>::from_slice(simd, part);
                let rarer = R::twice(share);
                // What a mass of 1 adds to the slope.
                let share = R::twice(x.simd_gt(none).select(-share, share));
                let (x, log) = (R::twice(x), R::twice(R::Lanes::<S>::from_slice(simd, logs)));
                let (mut loss, mut gradient, mut hessian) = ([zero; 2], [zero; 2], [zero; 2]);
                for half in 0..lanes / 8 {
                    let sides = weighted.sides(simd, vector * lanes + 8 * half, x[half].simd_gt(zero));
                    // The right answer is worth every confidence: 0·∞ is 0.
                    let linear = sides.slope.simd_eq(zero).select(zero, sides.slope * x[half]);
                    loss[half] = sides.mass.mul_add(log[half], linear);
                    gradient[half] = sides.mass.mul_add(share[half], sides.slope);
                    if focal {
                        let start = vector * lanes + 8 * half;
                        let plain = [loss[half], gradient[half]];
                        [loss[half], gradient[half]] =
                            weighted.focused(simd, start, x[half].simd_gt(zero), rarer[half], plain);
                    }
                    gradient[half] *= sides.scale;
                    if HESSIAN {
                        let variance = rarer[half] * (one - rarer[half]);
                        hessian[half] = sides.mass * variance * sides.scale;
                    }
                    if KEEP {
                        let start = vector * lanes + 8 * half;
                        loss[half].store_slice(&mut losses[start..start + 8]);
                    }
                }
                R::add_twice(&mut sum, loss);
                if GRADIENT {
                    R::once(gradient).store_slice(part);
                }
                if HESSIAN {
                    R::once(hessian).store_slice(&mut hessians[vector * lanes..(vector + 1) * lanes]);
                }
            }
            *total = sum;
        },
    );
}
