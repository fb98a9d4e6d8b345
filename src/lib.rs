//! Softmax cross-entropy and its gradient on the CPU, at the speed of the memory.
//!
//! # The one idea
//!
//! With `z = x / temperature`, `lse = log Σ exp z` and a target `t` over the classes of a row, every loss of the
//! softmax family is `mass·lse − <t, z>` and its gradient `scale·(mass·softmax(z) − t)`. Three nouns carry it:
//!
//! * [`element::Element`]: what is stored (f16, bf16, f32, f64); it names the [`math::Real`] it computes in;
//! * [`row::ClassLoss`]: what the row should be (a class, so far), its loss, and what its gradient needs;
//! * a SIMD token: what the CPU can do ([`simd`]).
//!
//! A row knows two verbs: its loss, from one pass over the logits ([`row::log_sum_exp`], then [`row::ClassLoss`]),
//! and its gradient, a second pass while the row is still in cache ([`row::probabilities`]).
//!
//! # The layers, top down; each imports only from those below it
//!
//! | room | what lives there |
//! |---|---|
//! | [`python`] | the only place that knows Python and NumPy: dtypes, strides, validation, exceptions |
//! | [`loss`] | one driver a loss: targets, `ignore_index`, reduction, what is written where |
//! | [`parallel`] | the only place that knows threads: chunks of rows, the pool, fork, interruption |
//! | [`row`] | the kernels on one row |
//! | [`view`] | an n-dimensional array in foreign memory, seen as rows of classes |
//! | [`element`] | storage types: load and store as lanes |
//! | [`math`] | the two compute types: exp over lanes, sums that keep their accuracy |
//! | [`simd`] | which instruction set runs, and the few operations that need an intrinsic |
//! | [`error`] | one enum; its `Display` is the text users read |
//!
//! # Where something new goes
//!
//! * **a dtype**: an `impl Element` and an arm of [`element::Dtype`] and of the two `with_element` macros beside it;
//!   how NumPy calls it is `storage_type` in `python/arrays.rs`;
//! * **a loss**: a driver in [`loss`], a binding beside the others in [`python`], a function in
//!   `python/xent_rs/_functional.py`; another kind of target for the softmax losses is a sibling of
//!   [`row::ClassLoss`] in `row/target.rs`, used by the driver for rows and for tiles;
//! * **an instruction set**: a variant of [`simd::Level`] with its arms there, and, where it has better ones, its
//!   instructions in `simd/operations.rs`.

#![deny(missing_docs)]

pub mod element;
pub mod error;
pub mod loss;
pub mod math;
pub mod parallel;
#[cfg(feature = "python")]
pub mod python;
pub mod row;
pub mod simd;
pub mod view;
