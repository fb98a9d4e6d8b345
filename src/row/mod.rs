//! The kernels: on one row with its classes across lanes, and in [`tile`] on as many rows as there are lanes.
//!
//! # How a row is read
//!
//! A row is walked in blocks of [`BLOCK`] elements. A full block that lies in memory as it is computed with is read in
//! place; any other (the tail, a strided or byte-swapped row) is copied to a block on the stack first and padded with
//! masked classes. So there is one loop and no masked load.
//!
//! # One pass for the loss
//!
//! [`log_sum_exp()`] keeps a reference, close to the largest logit seen, and sums `exp(z − z(reference))`. Only when a
//! block's maximum exceeds the reference by more than T does it raise the reference and rescale the sums: for logits
//! in random order about ln(blocks) times a row, so the branch is predicted and the pass costs its exponentials.
//! A slack of one, not the 30 that float32 would bear: the rounding of `x − reference` grows with it, and the promise
//! on accuracy with it would break.
//!
//! The reference is the logit of a class, whose own term is 1: it is left out of the sum and added at the end in f64.
//! That keeps what a confident row has beside its leader (`log1p` of the others' share, however small, for the loss;
//! minus that share for the gradient) free of cancellation, whatever the target. It costs another copy of the loop,
//! for the blocks in which the reference rises; one more knows how long a whole block is (4 % of 32000 classes).
//!
//! What the target needs beside the log-sum-exp, a companion sums on the way (`companion.rs`); what becomes of the
//! logits first is a `Transform`.
//!
//! # What is once a row
//!
//! A logarithm, some quotients and the loss itself are once a row; one by one they took some 90 ns, as long as 45 vectors
//! of exponentials. So drivers work
//! on batches of rows ([`batch`]), as many as there are lanes, and do all of that in lanes. Up to [`tile::most_classes`]
//! classes the rows are in lanes from the beginning ([`tile`]).
//!
//! # A second pass for the gradient
//!
//! `map.rs` reads the row again, from cache, and recomputes the exponentials: cheaper than keeping them.
//! Outputs larger than the cache are written with streaming stores.
//!
//! A thread that reads leaves to the other threads what it does not write, and the other way round, but not all of it:
//! reading each row and then copying it from cache, with no arithmetic at all, takes 12.3 ms at 512 × 128256 where one
//! streaming copy takes 10.7 (two threads; a spike). Loss and gradient take 13 to 14. Writing the gradient of one row
//! while the next is read, 256 to 4096 classes at a time, should have closed that gap: it gave 2 % here and at 2048 ×
//! 32000 (14.29 → 14.06 and 14.93 → 14.65 ms, medians of 41 interleaved runs), not enough for what it takes. Asking for
//! the next row while the gradient of this one is written gave nothing.

mod any;
pub mod batch;
pub mod binary;
mod companion;
mod dense;
mod log_sum_exp;
mod map;
mod statistics;
mod target;
#[cfg(test)]
mod tests;
pub mod tile;
mod transform;

pub use any::{AnyRow, AnyView};
pub use dense::{Dense, Source, Teacher, are_probabilities, is_probability};
pub use log_sum_exp::{LogSumExp, log_sum_exp};
pub use map::{Exponential, Stores, fill, log_probabilities, probabilities};
pub use statistics::Statistics;
pub use target::{RowLoss, Target, find_point, gradient, per_mass, product, rounded, weigh_infinities};
pub use transform::Transform;

use std::mem::MaybeUninit;

use fearless_simd::Simd;

use crate::element::Element;
use crate::math::Real;
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

    /// `length` elements of the row from `start` on, then masked classes, `padded` in all: whole vectors.
    #[inline(always)]
    fn fill<S: Simd>(&mut self, simd: S, row: Row<E>, start: usize, length: usize, padded: usize) -> &mut [E] {
        let lanes = E::Real::LANES;
        assert!(start + length <= row.classes() && length <= padded && padded.is_multiple_of(lanes));
        let block = &mut self.block[..padded];
        if row.is_contiguous() {
            // A vector at a time, as it is read again: what was written in other pieces is not yet there to be read.
            for (index, part) in block.chunks_exact_mut(lanes).enumerate() {
                let count = length.saturating_sub(index * lanes).min(lanes);
                let source = row.pointer(start + (index * lanes).min(length)).cast_const();
                // SAFETY: the elements are the row's, readable by the promise made to `View::new`; `part` has room for
                // a vector.
                unsafe {
                    let values = if count == lanes { E::load(simd, source) } else { E::load_part(simd, source, count) };
                    E::store(simd, part.as_mut_ptr().cast(), values);
                }
            }
        } else {
            block[length..].fill(MaybeUninit::new(E::MASKED));
            row.gather(start, &mut block[..length]);
        }
        // SAFETY: all of it was written: the vectors of a contiguous row, or what was gathered and the rest.
        unsafe { &mut *(std::ptr::from_mut(block) as *mut [E]) }
    }
}
