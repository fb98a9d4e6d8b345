//! Log-sum-exp, softmax and log-softmax of rows, all of it or of some classes.

use fearless_simd::Simd;

use super::{Check, Chunks, labels::Labels, stores};
use crate::element::Element;
use crate::error::Result;
use crate::parallel::map_chunks;
use crate::row::{Exponential, Stores, Transform, log_probabilities, log_sum_exp, per_mass, probabilities};
use crate::simd::{self, Kernel};
use crate::view::{Column, View};

/// Write `log Σ exp(x / T)` of each row.
///
/// # Errors
/// What `check` returned.
pub fn log_sum_exps<E: Element>(logits: &View<E>, transform: Transform, out: Column, check: Check) -> Result<()> {
    let work = |range| LogSumExps { range, logits, transform, out };
    run(logits, size_of::<E>(), check, work)
}

/// Write the softmax of each row, or its logarithm.
///
/// # Errors
/// What `check` returned.
///
/// # Safety
/// `out` was made for an output: writeable, its rows the logits' rows themselves or apart from them, and nothing else
/// accesses them during the call.
pub unsafe fn softmax<E: Element, O: Element<Real = E::Real>>(
    logits: &View<E>,
    transform: Transform,
    log: bool,
    out: &View<O>,
    check: Check,
) -> Result<()> {
    assert_eq!((logits.rows(), logits.classes()), (out.rows(), out.classes()));
    let stores = stores(logits, out);
    let work = |range| Softmax { range, logits, transform, log, out, stores };
    run(logits, size_of::<E>() + 2 * size_of::<O>(), check, work)
}

/// Write the log-softmax of the classes that `index` names, the same number for each row.
///
/// # Errors
/// What `check` returned.
pub fn selected_log_softmax<E: Element>(
    logits: &View<E>,
    transform: Transform,
    index: &Labels,
    out: Column,
    check: Check,
) -> Result<()> {
    assert!(index.rows() == 0 || index.rows().is_multiple_of(logits.rows()));
    if index.rows() == 0 {
        return Ok(());
    }
    let work = |range| Selected { range, logits, transform, index, out };
    run(logits, size_of::<E>(), check, work)
}

/// Run the work on every chunk of rows.
fn run<E: Element, K: Kernel<Output = ()>>(
    logits: &View<E>,
    traffic: usize,
    check: Check,
    work: impl Fn(std::ops::Range<usize>) -> K + Sync,
) -> Result<()> {
    let chunks = Chunks::new(logits.rows(), logits.classes());
    let level = simd::level();
    let bytes = chunks.bytes(logits.classes(), traffic);
    map_chunks(chunks.count(), bytes, check, |chunk| level.run(work(chunks.rows_of(chunk)))).map(|_| ())
}

struct LogSumExps<'a, E> {
    range: std::ops::Range<usize>,
    logits: &'a View<E>,
    transform: Transform,
    out: Column,
}

impl<E: Element> Kernel for LogSumExps<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        for index in self.range {
            let value = log_sum_exp(simd, self.logits.row(index), self.transform).value(simd, self.transform);
            // SAFETY: this chunk alone works on its rows.
            unsafe { self.out.set(index, value) }
        }
    }
}

struct Softmax<'a, E, O> {
    range: std::ops::Range<usize>,
    logits: &'a View<E>,
    transform: Transform,
    log: bool,
    out: &'a View<O>,
    stores: Stores,
}

impl<E: Element, O: Element<Real = E::Real>> Kernel for Softmax<'_, E, O> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let transform = self.transform;
        for index in self.range {
            let (row, out) = (self.logits.row(index), self.out.row(index));
            // SAFETY: the promise made to `softmax`, and this chunk alone works on its rows.
            unsafe {
                let found = log_sum_exp(simd, row, transform);
                let reference = found.reference;
                if self.log {
                    log_probabilities(simd, row, out, reference, found.log_total(), transform, self.stores);
                } else {
                    let softmax = Exponential { reference, factor: per_mass(1.0, found.total()), transform };
                    probabilities(simd, row, out, softmax, self.stores);
                }
            }
        }
        if self.stores == Stores::Streaming {
            simd::store_fence();
        }
    }
}

struct Selected<'a, E> {
    range: std::ops::Range<usize>,
    logits: &'a View<E>,
    transform: Transform,
    index: &'a Labels,
    out: Column,
}

impl<E: Element> Kernel for Selected<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let chosen = self.index.rows() / self.logits.rows();
        for index in self.range {
            let row = self.logits.row(index);
            let found = log_sum_exp(simd, row, self.transform);
            for number in index * chosen..(index + 1) * chosen {
                let class = self.index.class(number).expect("no index is ignored");
                let missed = found.above(simd, row.get(class).to_f64(), self.transform);
                // SAFETY: this chunk alone works on its rows.
                unsafe { self.out.set(number, 0.0 - missed) }
            }
        }
    }
}
