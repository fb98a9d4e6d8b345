//! The careful path: kernels that look for the maximum, on one row with its classes across lanes, for rows and options that those of
//! [`crate::kernel`] do not suit. They are compiled once for each type that is computed in; other dtypes are converted block by block.
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
//! minus that share for the gradient) free of cancellation, whatever the target.
//!
//! What the target needs beside the log-sum-exp, a companion sums on the way (`companion.rs`); what becomes of the
//! logits first is a `Transform`.
//!
//! # What is once a row
//!
//! A logarithm, some quotients and the loss itself are once a row; one by one they took as long as 45 vectors of
//! exponentials. So drivers work on batches of rows ([`batch`]), as many as there are lanes, and do all of that in lanes.
//!
//! # A second pass for the gradient
//!
//! `map.rs` reads the row again, from cache, and recomputes the exponentials: cheaper than keeping them.
//! Outputs larger than the cache are written with streaming stores.
//!
//! The row is not written while the next one is read: that gave next to nothing (docs/performance.md, "Decisions").

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
mod transform;

pub use dense::{Dense, Source, Teacher, are_probabilities, is_probability};
pub use log_sum_exp::{LogSumExp, LogSumExps, log_sum_exp};
pub use map::{Exponential, log_probabilities, probabilities};
pub use statistics::Statistics;
pub use target::{RowLoss, Target, find_point, gradient, per_mass, product, rounded, weigh_infinities};
pub use transform::Transform;
