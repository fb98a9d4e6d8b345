//! The kernels on one row: classes across lanes.
//!
//! # How a row is read
//!
//! A row is walked in blocks of [`BLOCK`] elements. A full block that lies in memory as it is computed with is read in
//! place; any other (the tail, a strided or byte-swapped row, the block that holds the target) is copied to a block
//! on the stack first, where the classes that do not count are masked. So there is one loop and no masked load.
//!
//! # One pass for the loss
//!
//! [`log_sum_exp`] keeps a reference, close to the largest logit seen, and sums `exp((x − reference) / T)`. Only when a
//! block's maximum exceeds the reference by more than T does it raise the reference and rescale the sums: for logits
//! in random order about ln(blocks) times a row, so the branch is predicted and the pass costs its exponentials.
//! A slack of one, not the 30 that float32 would bear: the rounding of `x − reference` grows with it, and the promise
//! on accuracy with it would break.
//!
//! The target's class is left out of the sum and added at the end in f64. That keeps the loss of confident rows
//! (`log1p` of the others' share, however small) and the target's entry of the gradient (minus the others' share)
//! free of cancellation, and costs one copied block a row.
//!
//! # A second pass for the gradient
//!
//! [`map`] reads the row again, from cache, and recomputes the exponentials: cheaper than keeping them. Outputs larger
//! than the cache are written with streaming stores.

mod leader;
mod log_sum_exp;
mod map;
mod target;

pub use leader::leader;
pub use log_sum_exp::{LogSumExp, Statistics, log_sum_exp, statistics};
pub use map::{Stores, fill, log_probabilities, probabilities};
pub use target::{ClassLoss, Target};

use std::mem::MaybeUninit;

use fearless_simd::{Simd, prelude::*};

use crate::element::Element;
use crate::math::{Boost, Real};
use crate::view::Row;

/// Elements of a block: 16 vectors of f32, 32 of f64.
pub const BLOCK: usize = 256;

/// Room for a block on the stack, and no more work than its elements are worth.
struct Scratch<E> {
    block: [MaybeUninit<E>; BLOCK],
}

impl<E: Element> Scratch<E> {
    #[inline(always)]
    fn new() -> Self {
        Self { block: [MaybeUninit::uninit(); BLOCK] }
    }

    /// Where to write results.
    #[inline(always)]
    fn pointer(&mut self) -> *mut E {
        self.block.as_mut_ptr().cast()
    }

    /// The first `length` results.
    ///
    /// # Safety
    /// They were written.
    #[inline(always)]
    unsafe fn written(&self, length: usize) -> &[E] {
        // SAFETY: initialised by the caller's promise.
        unsafe { &*(std::ptr::from_ref(&self.block[..length]) as *const [E]) }
    }

    /// `length` elements of the row from `start` on, then masked classes, `padded` in all.
    #[inline(always)]
    fn fill(&mut self, row: Row<E>, start: usize, length: usize, padded: usize) -> &mut [E] {
        let block = &mut self.block[..padded];
        block[length..].fill(MaybeUninit::new(E::MASKED));
        row.gather(start, &mut block[..length]);
        // SAFETY: the first `length` were gathered and the rest filled: all `padded` are initialised.
        unsafe { &mut *(std::ptr::from_mut(block) as *mut [E]) }
    }
}

/// The divisor of the logits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Temperature {
    value: f64,
    /// 1 / value, and what its rounding lost.
    inverse: [f64; 2],
}

impl Temperature {
    /// No division.
    pub const ONE: Self = Self { value: 1.0, inverse: [1.0, 0.0] };

    /// From a positive finite number.
    pub fn new(value: f64) -> Self {
        let inverse = 1.0 / value;
        Self { value, inverse: [inverse, (-inverse).mul_add(value, 1.0) / value] }
    }

    /// Whether dividing changes anything.
    pub fn is_one(self) -> bool {
        self.value == 1.0
    }

    /// The divisor.
    pub fn value(self) -> f64 {
        self.value
    }

    /// `(a − b) / T` in twice the precision of f64, as a sum of two.
    pub fn difference(self, a: f64, b: f64) -> [f64; 2] {
        let high = a - b;
        if !high.is_finite() {
            return [high, 0.0];
        }
        let of_b = a - high;
        let low = (a - (high + of_b)) + (of_b - b);
        let quotient = high * self.inverse[0];
        if !quotient.is_finite() {
            return [quotient, 0.0];
        }
        let rest = high.mul_add(self.inverse[0], -quotient) + (low * self.inverse[0] + high * self.inverse[1]);
        [quotient, rest]
    }
}

/// [`Temperature`] over lanes of `R`.
#[derive(Clone, Copy)]
struct Scale<S: Simd, R: Real> {
    high: R::Lanes<S>,
    low: R::Lanes<S>,
    /// Differences below this one have an exponential of 0; clamped to it, infinities stay out of the products.
    floor: R::Lanes<S>,
}

impl<S: Simd, R: Real> Scale<S, R> {
    #[inline(always)]
    fn new(simd: S, temperature: Temperature) -> Self {
        let [inverse, rest] = temperature.inverse;
        let high = R::from_f64(inverse);
        let low = R::from_f64((inverse - high.to_f64()) + rest);
        let floor = (R::UNDERFLOW * temperature.value).max(R::LOWEST.to_f64());
        let splat = |value| R::Lanes::<S>::simd_from(simd, value);
        Self { high: splat(high), low: splat(low), floor: splat(R::from_f64(floor)) }
    }

    /// `exp(d / T)`, and the `d / T` that went into it, clamped to where the exponential is 0.
    ///
    /// The quotient's low part multiplies the exponential, so that dividing costs no accuracy.
    #[inline(always)]
    fn exp<const SCALED: bool>(&self, simd: S, d: R::Lanes<S>, boost: Boost) -> (R::Lanes<S>, R::Lanes<S>) {
        // NaN passes: on x86 `a.max(b)` is b when either is NaN.
        let clamped = self.floor.max(d);
        if !SCALED {
            return (R::exp(simd, d, boost), clamped);
        }
        let z = clamped * self.high;
        let rest = clamped.mul_sub(self.high, z) + clamped * self.low;
        let exp = R::exp(simd, z, boost);
        let exp = exp.mul_add(rest, exp);
        // With an enormous T the floor is the lowest finite number, whose exponential is not 0; that of −∞ is.
        let zero = R::Lanes::<S>::simd_from(simd, R::default());
        (d.simd_lt(self.floor).select(zero, exp), z)
    }
}
