//! Softmax cross-entropy and its gradient on the CPU, at the speed of the memory.
//!
//! # The one idea
//!
//! With `z = softcap·tanh(x / softcap) / temperature`, `lse = log Σ exp z` and a target `t`, a weight for every class
//! of a row, every loss of the softmax family is `Σ t·(lse − z) + z_loss·lse²` and its gradient `(Σt +
//! 2·z_loss·lse)·softmax(z) − t`, times dz/dx; a divergence is that less the entropy of t.
//!
//! # From the array to the register and back
//!
//! A caller's array is an [`array::Array`]: a [`dtype::Dtype`], strides, and a lifetime, seen as rows of classes. What is
//! written is an [`array::ArrayMut`], which hands each part of its rows to one thread. A [`loss`] cuts the rows into chunks,
//! which the threads of [`parallel`] take; [`simd::Level::run`] compiles the work on a chunk for what the CPU has. The kernels of
//! [`kernel`] take exponentials relative to an integer near one logit of each row: of a row whose classes are across lanes, or of
//! as many rows as there are lanes. Those of [`row`] look for the maximum first: for what the others do not suit. What is once a row (logarithms, quotients, the loss) is done in lanes for some rows;
//! derivatives are a second pass, while the rows are in cache.
//!
//! # The layers, top down; each imports only from those below it (`.ci/check_imports.py` checks that)
//!
//! | module | what lives there |
//! |---|---|
//! | [`python`] | the only place that knows Python and NumPy: options, dtypes, shapes, exceptions, the memory of results |
//! | `javascript` | the only place that knows JavaScript: what it calls in a WebAssembly module; built by `scripts/wasm.py` |
//! | [`xla`] | the only place that knows XLA: its interface in C, its buffers, the handlers that it calls without Python |
//! | [`loss`] | one driver a loss: targets, `ignore_index`, reduction, what is written where |
//! | [`row`] | the careful path: kernels that look for the maximum first, row by row, and what is once a row |
//! | [`kernel`] | the kernels relative to an integer: class targets, shares of all classes, teachers, caps, log-probabilities, shapes of distributions |
//! | [`mod@array`] | strided arrays in foreign memory: [`array::Array`] is read, [`array::ArrayMut`] is written |
//! | [`rows`] | one row of them: where it lies, or a block of it converted |
//! | [`element`] | the dtypes that logits have: how they become vectors and back |
//! | [`math`] | the two types that are computed with: exp, log and sums over lanes, with their errors |
//! | [`dtype`] | what an array holds, as a value and as types |
//! | [`parallel`] | the only place that knows threads: the pool, fork, interruption, one row on all threads |
//! | [`simd`] | which instruction set runs, the few operations that need an intrinsic, and the floating-point environment |
//! | [`error`] | one enum; its `Display` is the text users read |
//!
//! # Where something new goes
//!
//! * **a dtype**: a variant of [`dtype::Dtype`], its `Number` and its place in the lists of `with_dtype` in `dtype.rs`; if
//!   logits have it, its `impl` in `element.rs`. What NumPy calls it is `dtype_of` in `python/arrays.rs`.
//! * **a target**: a variant of [`loss::targets::Targets`], where it is read, checked and weighted, and what rows should be like in
//!   `loss/plan.rs`; if it gives every class of a row a share of its own, what is given in [`kernel::shares`], and a
//!   [`row::Source`], with an arm that writes the weights block by block in `row/dense.rs`.
//! * **an instruction set**: a variant of [`simd::Level`] with its arms there; what it does better in
//!   `simd/operations/`, and how it takes exponentials in [`math`].
//! * **a loss**: a driver in [`loss`], a binding beside the others in [`python`], a file in `python/xent_rs/`.
//! * **an option**: its declaration in `python/xent_rs/_options.py`, a field in `python/options.rs`; of the softmax losses, a
//!   part of [`loss::targets::Problem`], asked for in [`kernel::finish::Asked`] and counted in [`row::batch`], or of
//!   [`row::Transform`].
//! * **something else to know of a row**: what is summed of it in [`kernel::shape`], and on the careful path in `row/companion.rs`;
//!   both go to [`row::Statistics`].

#![deny(missing_docs)]

pub mod array;
pub mod dtype;
pub mod element;
pub mod error;
#[cfg(javascript)]
pub mod javascript;
pub mod kernel;
pub mod loss;
pub mod math;
pub mod parallel;
#[cfg(feature = "python")]
pub mod python;
pub mod row;
pub mod rows;
pub mod simd;
pub mod xla;

// The memory of results belongs to the binding and is no layer of the core; its tests need no Python.
#[cfg(all(test, not(feature = "python"), not(target_family = "wasm")))]
#[path = "python/memory/store.rs"]
mod store;
