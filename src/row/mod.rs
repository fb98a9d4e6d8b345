//! The kernels: on one row with its classes across lanes, and in [`tile`] on as many rows as there are lanes.
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
//! [`probabilities`] reads the row again, from cache, and recomputes the exponentials: cheaper than keeping them.
//! Outputs larger than the cache are written with streaming stores.

mod leader;
mod log_sum_exp;
mod map;
mod target;
mod temperature;
#[cfg(test)]
mod tests;
pub mod tile;

pub use leader::leader;
pub use log_sum_exp::{LogSumExp, Statistics, log_sum_exp, statistics};
pub use map::{Exponential, Stores, fill, log_probabilities, probabilities};
pub use target::{ClassLoss, per_mass, rounded};
pub use temperature::Temperature;

use temperature::Scale;

use std::mem::MaybeUninit;

use crate::element::Element;
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
