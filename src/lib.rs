//! Softmax cross-entropy and its gradient on the CPU, at the speed of the memory.
//!
//! # The one idea
//!
//! With `z = softcap·tanh(x / softcap) / temperature`, `lse = log Σ exp z` and a target `t`, a weight for every class
//! of a row, every loss of the softmax family is `Σ t·(lse − z) + z_loss·lse²` and its gradient `(Σt +
//! 2·z_loss·lse)·softmax(z) − t`, times dz/dx; a divergence is that less the entropy of t. Four nouns carry it:
//!
//! * [`element::Element`]: what is stored (f16, bf16, f32, f64); it names the [`math::Real`] it computes in;
//! * [`row::Transform`]: what becomes of the logits before the softmax;
//! * [`row::Target`]: what the row should be, a sum of at most three parts (all classes alike, each its own, one);
//! * a SIMD token: what the CPU can do ([`simd`]).
//!
//! Rows are worked on in batches of as many as a vector has lanes. Three verbs: a pass over the logits, row by row
//! ([`row::Target::pass`]) or across lanes ([`row::tile::pass`]); what is once a row, in lanes ([`row::batch`]); and, for
//! the derivatives, a second pass while the rows are still in cache ([`row::gradient`], [`row::tile::gradients`]).
//!
//! # The layers, top down; each imports only from those below it
//!
//! | room | what lives there |
//! |---|---|
//! | [`python`] | the only place that knows Python and NumPy: dtypes, strides, validation, exceptions |
//! | [`loss`] | one driver a loss: targets, `ignore_index`, reduction, what is written where |
//! | [`parallel`] | the only place that knows threads: chunks of rows, the pool, where it runs, fork, interruption |
//! | [`row`] | the kernels: on one row, on a tile of rows across lanes, and what is once a row for a batch of them |
//! | [`numbers`] | weights and probabilities in foreign memory, of any dtype |
//! | [`view`] | an n-dimensional array in foreign memory, seen as rows of classes |
//! | [`element`] | storage types: load and store as lanes |
//! | [`math`] | the two compute types: exp over lanes, sums that keep their accuracy |
//! | [`simd`] | which instruction set runs, and the few operations that need an intrinsic |
//! | [`error`] | one enum; its `Display` is the text users read |
//!
//! # Where something new goes
//!
//! * **a dtype**: an `impl Element`, an arm of [`element::Dtype`] and of the two `with_element` macros beside it, and
//!   one of each enum over storage types ([`row::AnyRow`], [`row::AnyView`], [`row::tile::AnyTile`], [`numbers::Kind`]);
//!   how NumPy calls it is `storage_type` in `python/arrays.rs`;
//! * **an option of the softmax losses**: a part of [`row::batch::Targets`] or of [`row::Transform`], filled in
//!   [`loss::targets`] and counted in [`row::batch`]; no kernel;
//! * **a source of targets**: a [`row::Source`], with an arm that writes its weights block by block in [`row::Dense`], one for
//!   tiles in `TileWeights`, and where it comes from in [`loss::targets`];
//! * **a loss**: a driver in [`loss`], a binding beside the others in [`python`], a file in `python/xent_rs/`;
//! * **something else to know of a row**: a companion of its pass in `row/companion.rs`;
//! * **an instruction set**: a variant of [`simd::Level`] with its arms there, where it has better ones, its instructions
//!   in `simd/operations.rs`, and in [`math`] how it takes exponentials and how many vectors at a time.

#![deny(missing_docs)]

pub mod element;
pub mod error;
pub mod loss;
pub mod math;
pub mod numbers;
pub mod parallel;
#[cfg(feature = "python")]
pub mod python;
pub mod row;
pub mod simd;
pub mod view;

// The memory of results belongs to the binding and is no layer of the core; its tests need no Python.
#[cfg(all(test, not(feature = "python")))]
#[path = "python/memory/store.rs"]
mod store;
