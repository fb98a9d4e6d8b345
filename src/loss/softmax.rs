//! Log-sum-exp, softmax and log-softmax of rows, all of it or of some classes.

use fearless_simd::Simd;

use super::{Check, Chunks, labels::Labels, stores};
use crate::element::Element;
use crate::error::Result;
use crate::parallel::map_chunks;
use crate::row::batch::{self, MOST_LANES, PerLane};
use crate::row::tile::{self, AnyTile, Batch, Output, Transposed, batches};
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
    let chunks = Chunks::of_rows(logits);
    let level = simd::level();
    let bytes = chunks.bytes(logits.classes(), traffic);
    map_chunks(chunks.count(), bytes, check, |chunk| level.run(work(chunks.rows_of(chunk)))).map(|_| ())
}

/// The log-sum-exps of a batch of rows: of `tile`, if they are across lanes.
///
/// # Safety
/// `tile` is what [`Batch::tile`] returned, and its room has not been used since.
#[inline(always)]
unsafe fn found<S: Simd, E: Element>(
    simd: S,
    batch: &Batch<E>,
    tile: Option<AnyTile>,
    transform: Transform,
) -> batch::LogSumExps {
    if let Some(tile) = tile {
        // SAFETY: its values are readable by the caller's promise.
        return unsafe { tile::log_sum_exps::<S, E>(simd, tile, transform) };
    }
    let mut found = batch::LogSumExps::default();
    for lane in 0..batch.rows {
        found.set(lane, log_sum_exp(simd, batch.view.row(batch.first + lane), transform));
    }
    found
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
        let mut room = Transposed::uninit();
        for batch in batches(self.logits, self.range.clone()) {
            let tile = batch.tile(simd, &mut room);
            // SAFETY: the room is not used again for this batch.
            let found = unsafe { found(simd, &batch, tile, self.transform) };
            let mut values = batch::values(simd, &found, batch.rows, self.transform);
            batch.find_infinite(&found, &mut values);
            // SAFETY: this chunk alone works on its rows.
            unsafe { self.out.set(batch.first, &values[..batch.rows]) }
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
        let (mut room, mut result) = (Transposed::uninit(), Transposed::uninit());
        for batch in batches(self.logits, self.range.clone()) {
            let tile = batch.tile(simd, &mut room);
            // SAFETY: the room is not used again for this batch.
            let found = unsafe { found(simd, &batch, tile, transform) };
            let logs = if self.log { batch::log_totals(simd, &found, batch.rows) } else { [0.0; MOST_LANES] };
            // SAFETY: the promise made to `softmax`, and this chunk alone works on its rows; the room is not used again for
            // this batch.
            unsafe {
                match tile {
                    Some(tile) => self.tile(simd, &batch, tile, &found, &logs, &mut result),
                    None => self.rows(simd, &batch, &found, &logs),
                }
            }
        }
        if self.stores == Stores::Streaming {
            simd::store_fence();
        }
    }
}

impl<E: Element, O: Element<Real = E::Real>> Softmax<'_, E, O> {
    /// Write rows, one after the other.
    ///
    /// # Safety
    /// As for [`softmax`], and this thread alone works on the rows.
    #[inline(always)]
    unsafe fn rows<S: Simd>(&self, simd: S, batch: &Batch<E>, found: &batch::LogSumExps, logs: &PerLane<f64>) {
        let transform = self.transform;
        for lane in 0..batch.rows {
            let (row, out) = (self.logits.row(batch.first + lane), self.out.row(batch.first + lane));
            let reference = found.reference[lane];
            // SAFETY: the caller's promise.
            unsafe {
                if self.log {
                    log_probabilities(simd, row, out, reference, logs[lane], transform, self.stores);
                } else {
                    let softmax = Exponential { reference, factor: per_mass(1.0, found.get(lane).total()), transform };
                    probabilities(simd, row, out, softmax, self.stores);
                }
            }
        }
    }

    /// Write a tile of rows.
    ///
    /// # Safety
    /// As for [`softmax`], and this thread alone works on the rows; the tile's values are readable.
    #[inline(always)]
    unsafe fn tile<S: Simd>(
        &self,
        simd: S,
        batch: &Batch<E>,
        tile: AnyTile,
        found: &batch::LogSumExps,
        logs: &PerLane<f64>,
        result: &mut Transposed<E::Real>,
    ) {
        // SAFETY: the caller's promise; the room is stored once it was written.
        unsafe {
            let Some(mut out) = Output::new(self.out, batch.first, batch.rows, self.stores, result) else {
                return self.rows(simd, batch, found, logs);
            };
            let logs = self.log.then_some(logs);
            tile::probabilities::<S, E::Real>(simd, tile, out.tile(), found, logs, self.transform);
            out.store(simd);
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
        let mut room = Transposed::uninit();
        for batch in batches(self.logits, self.range.clone()) {
            let tile = batch.tile(simd, &mut room);
            // SAFETY: the room is not used again for this batch.
            let found = unsafe { found(simd, &batch, tile, self.transform) };
            // As many choices at a time as there are lanes, be they of one row or of several.
            let numbers = batch.first * chosen..(batch.first + batch.rows) * chosen;
            for first in numbers.clone().step_by(MOST_LANES) {
                let count = MOST_LANES.min(numbers.end - first);
                let (mut rows, mut logits) = (batch::LogSumExps::default(), [0.0; MOST_LANES]);
                for (lane, number) in (first..first + count).enumerate() {
                    let row = number / chosen;
                    let class = self.index.class(number).expect("no index is ignored");
                    logits[lane] = self.logits.row(row).get(class).to_f64();
                    rows.set(lane, found.get(row - batch.first));
                }
                let [mut missed] = batch::missed(simd, &rows, [&logits], count, self.transform);
                for missed in &mut missed {
                    *missed = 0.0 - *missed;
                }
                // SAFETY: this chunk alone works on its rows.
                unsafe { self.out.set(first, &missed[..count]) }
            }
        }
    }
}
