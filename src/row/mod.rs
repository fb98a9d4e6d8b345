//! The kernels: on one row with its classes across lanes, and in [`tile`] on as many rows as there are lanes.
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

pub use dense::{Dense, Source, Teacher};
pub use log_sum_exp::{LogSumExp, log_sum_exp};
pub use map::{Exponential, log_probabilities, probabilities};
pub use statistics::Statistics;
pub use target::{RowLoss, Target, find_point, gradient, per_mass, product, rounded};
pub use transform::Transform;
