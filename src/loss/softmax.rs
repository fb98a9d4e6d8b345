//! Log-sum-exp, softmax and log-softmax of rows.

use fearless_simd::Simd;

use super::{Check, Chunks, stores};
use crate::element::Element;
use crate::error::Result;
use crate::parallel::map_chunks;
use crate::row::{
    ClassLoss, Exponential, Stores, Temperature, leader, log_probabilities, log_sum_exp, per_mass, probabilities,
};
use crate::simd::{self, Kernel};
use crate::view::{Column, Row, View};

/// Write `log Σ exp(x / T)` of each row.
///
/// # Errors
/// What `check` returned.
pub fn log_sum_exps<E: Element>(logits: &View<E>, temperature: Temperature, out: Column, check: Check) -> Result<()> {
    let work = |range| LogSumExps { range, logits, temperature, out };
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
    temperature: Temperature,
    log: bool,
    out: &View<O>,
    check: Check,
) -> Result<()> {
    assert_eq!((logits.rows(), logits.classes()), (out.rows(), out.classes()));
    let stores = stores(logits, out);
    let work = |range| Softmax { range, logits, temperature, log, out, stores };
    run(logits, size_of::<E>() + 2 * size_of::<O>(), check, work)
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
    temperature: Temperature,
    out: Column,
}

impl<E: Element> Kernel for LogSumExps<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        for index in self.range {
            let value = log_sum_exp(simd, self.logits.row(index), None, self.temperature).value(self.temperature);
            // SAFETY: this chunk alone works on its rows.
            unsafe { self.out.set(index, value) }
        }
    }
}

struct Softmax<'a, E, O> {
    range: std::ops::Range<usize>,
    logits: &'a View<E>,
    temperature: Temperature,
    log: bool,
    out: &'a View<O>,
    stores: Stores,
}

impl<E: Element, O: Element<Real = E::Real>> Kernel for Softmax<'_, E, O> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let temperature = self.temperature;
        for index in self.range {
            let (row, out) = (self.logits.row(index), self.out.row(index));
            // SAFETY: the promise made to `softmax`, and this chunk alone works on its rows.
            unsafe {
                if self.log {
                    let (reference, log_sum) = normalizer(simd, row, temperature);
                    log_probabilities(simd, row, out, reference, log_sum, temperature, self.stores);
                } else {
                    let lse = log_sum_exp(simd, row, None, temperature);
                    let softmax = Exponential { reference: lse.reference, factor: per_mass(1.0, lse.sum), temperature };
                    probabilities(simd, row, out, softmax, self.stores, None);
                }
            }
        }
        if self.stores == Stores::Streaming {
            simd::store_fence();
        }
    }
}

/// The log-sum-exp of a row as a logit and the rest. Where one class leads the rest is `log1p` of the others' share,
/// so that its log-probability keeps relative accuracy.
#[inline(always)]
fn normalizer<S: Simd, E: Element>(simd: S, row: Row<E>, temperature: Temperature) -> (f64, f64) {
    let lse = log_sum_exp(simd, row, None, temperature);
    // The largest logit is at most one above the reference, in units of T, or two, where adding one rounds up. A leader
    // with half of the mass then has a sum of at most 2·e².
    if lse.sum > 15.0 || lse.sum == 0.0 {
        return (lse.reference, lse.sum.ln());
    }
    let class = leader(simd, row);
    let logit = row.get(class).to_f64();
    let others = log_sum_exp(simd, row, Some(class), temperature);
    (logit, ClassLoss::new(class, logit, others, temperature).loss)
}
