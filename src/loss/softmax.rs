//! Log-sum-exp, softmax and log-softmax of rows, all of it or of some classes.

use std::marker::PhantomData;

use fearless_simd::Simd;

use super::{Check, Chunks, labels::Labels, store_policy};
use crate::array::{Array, ArrayMut, Parts, RowsMut};
use crate::dtype::{with_element, with_elements};
use crate::element::Element;
use crate::error::Result;
use crate::parallel::map_chunks;
use crate::row::batch::{self, MOST_LANES, PerLane};
use crate::row::tile::{self, Batch, Output, Tile, Transposed, batches};
use crate::row::{Exponential, Transform, log_probabilities, log_sum_exp, per_mass, probabilities};
use crate::rows::StorePolicy;
use crate::simd::{self, Kernel};

/// Write `log Σ exp(x / T)` of each row.
///
/// # Errors
/// What `check` returned.
pub fn log_sum_exps(logits: &Array, transform: Transform, out: &mut ArrayMut, check: Check) -> Result<()> {
    with_element!(logits.dtype(), E => run(logits, out, logits.dtype().size(), check, |range, out| {
        LogSumExps::<E> { range, logits, transform, out, element: PhantomData }
    }))
}

/// Write the softmax of each row, or its logarithm, over the logits or apart from them.
///
/// # Errors
/// What `check` returned.
pub fn softmax(logits: &Array, transform: Transform, log: bool, out: &mut ArrayMut, check: Check) -> Result<()> {
    assert_eq!(logits.classes(), out.classes());
    let store = store_policy(logits, out);
    let traffic = logits.dtype().size() + 2 * out.dtype().size();
    with_elements!(logits.dtype(), out.dtype(), E, O => run(logits, out, traffic, check, |range, out| {
        Softmax::<E, O> { range, logits, transform, log, out, store, types: PhantomData }
    }))
}

/// Write the log-softmax of the classes that `index` names, the same number for each row.
///
/// # Errors
/// What `check` returned.
pub fn selected_log_softmax(
    logits: &Array,
    transform: Transform,
    index: &Labels,
    out: &mut ArrayMut,
    check: Check,
) -> Result<()> {
    assert_eq!(index.rows(), logits.rows() * out.classes());
    if index.rows() == 0 {
        return Ok(());
    }
    with_element!(logits.dtype(), E => run(logits, out, logits.dtype().size(), check, |range, out| {
        Selected::<E> { range, logits, transform, index, out, element: PhantomData }
    }))
}

/// Run the work on every chunk of rows.
fn run<'a, K: Kernel<Output = ()>>(
    logits: &'a Array,
    out: &'a mut ArrayMut,
    traffic: usize,
    check: Check,
    work: impl Fn(std::ops::Range<usize>, RowsMut<'a>) -> K + Sync,
) -> Result<()> {
    assert_eq!(logits.rows(), out.rows());
    let chunks = Chunks::of_rows(logits);
    let parts: Parts<'a> = out.parts(chunks.ranges());
    let level = simd::level();
    let bytes = chunks.bytes(logits.classes(), traffic);
    map_chunks(chunks.count(), bytes, check, |chunk| level.run(work(chunks.rows_of(chunk), parts.take(chunk))))
        .map(|_| ())
}

/// The log-sum-exps of a batch of rows: of `tile`, if they are across lanes.
#[inline(always)]
fn found<S: Simd, E: Element>(simd: S, batch: &Batch, tile: Option<Tile>, transform: Transform) -> batch::LogSumExps {
    if let Some(tile) = tile {
        return tile::log_sum_exps::<S, E>(simd, tile, transform);
    }
    let mut found = batch::LogSumExps::default();
    for lane in 0..batch.rows {
        found.set(lane, log_sum_exp::<S, E>(simd, batch.array.row(batch.first + lane), transform));
    }
    found
}

struct LogSumExps<'a, E> {
    range: std::ops::Range<usize>,
    logits: &'a Array<'a>,
    transform: Transform,
    out: RowsMut<'a>,
    element: PhantomData<E>,
}

impl<E: Element> Kernel for LogSumExps<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        let mut room = Transposed::uninit();
        for batch in batches::<E>(self.logits, self.range) {
            let tile = batch.tile::<S, E>(simd, self.transform, &mut room);
            let found = found::<S, E>(simd, &batch, tile, self.transform);
            let mut values = batch::values(simd, &found, batch.rows, self.transform);
            batch.find_infinite(&found, &mut values);
            self.out.set(batch.first, &values[..batch.rows]);
        }
    }
}

struct Softmax<'a, E, O> {
    range: std::ops::Range<usize>,
    logits: &'a Array<'a>,
    transform: Transform,
    log: bool,
    out: RowsMut<'a>,
    store: StorePolicy,
    types: PhantomData<(E, O)>,
}

impl<E: Element, O: Element<Real = E::Real>> Kernel for Softmax<'_, E, O> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        let transform = self.transform;
        let (mut room, mut result) = (Transposed::uninit(), Transposed::uninit());
        for batch in batches::<E>(self.logits, self.range.clone()) {
            let tile = batch.tile::<S, E>(simd, self.transform, &mut room);
            let found = found::<S, E>(simd, &batch, tile, transform);
            let logs = if self.log { batch::log_totals(simd, &found, batch.rows) } else { [0.0; MOST_LANES] };
            match tile {
                Some(tile) => self.tile(simd, &batch, tile, &found, &logs, &mut result),
                None => self.rows(simd, &batch, &found, &logs),
            }
        }
        if self.store == StorePolicy::NonTemporal {
            simd::store_fence();
        }
    }
}

impl<E: Element, O: Element<Real = E::Real>> Softmax<'_, E, O> {
    /// Write rows, one after the other.
    #[inline(always)]
    fn rows<S: Simd>(&mut self, simd: S, batch: &Batch, found: &batch::LogSumExps, logs: &PerLane<f64>) {
        let (transform, store) = (self.transform, self.store);
        for lane in 0..batch.rows {
            let (row, out) = (self.logits.row(batch.first + lane), self.out.row(batch.first + lane));
            let reference = found.reference[lane];
            if self.log {
                log_probabilities::<S, E, O>(simd, row, out, reference, logs[lane], transform, store);
            } else {
                let softmax = Exponential { reference, factor: per_mass(1.0, found.get(lane).total()), transform };
                probabilities::<S, E, O>(simd, row, out, softmax, store);
            }
        }
    }

    /// Write a tile of rows.
    #[inline(always)]
    fn tile<S: Simd>(
        &mut self,
        simd: S,
        batch: &Batch,
        tile: Tile,
        found: &batch::LogSumExps,
        logs: &PerLane<f64>,
        result: &mut Transposed<E::Real>,
    ) {
        let Some(mut out) = Output::<O>::new(&mut self.out, batch.first, batch.rows, self.store, result) else {
            return self.rows(simd, batch, found, logs);
        };
        let logs = self.log.then_some(logs);
        tile::probabilities::<S, E::Real>(simd, tile, out.tile(), found, logs, self.transform);
        // SAFETY: `probabilities` wrote all of the tile.
        unsafe { out.store(simd) }
    }
}

struct Selected<'a, E> {
    range: std::ops::Range<usize>,
    logits: &'a Array<'a>,
    transform: Transform,
    index: &'a Labels,
    out: RowsMut<'a>,
    element: PhantomData<E>,
}

impl<E: Element> Kernel for Selected<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        let chosen = self.index.rows() / self.logits.rows();
        let mut room = Transposed::uninit();
        for batch in batches::<E>(self.logits, self.range.clone()) {
            let tile = batch.tile::<S, E>(simd, self.transform, &mut room);
            let found = found::<S, E>(simd, &batch, tile, self.transform);
            // As many choices at a time as there are lanes, be they of one row or of several.
            let numbers = batch.first * chosen..(batch.first + batch.rows) * chosen;
            for first in numbers.clone().step_by(MOST_LANES) {
                let count = MOST_LANES.min(numbers.end - first);
                let (mut rows, mut logits) = (batch::LogSumExps::default(), [0.0; MOST_LANES]);
                for (lane, number) in (first..first + count).enumerate() {
                    let row = number / chosen;
                    let class = self.index.class(number).expect("no index is ignored");
                    logits[lane] = self.logits.row(row).get(class);
                    rows.set(lane, found.get(row - batch.first));
                }
                let [mut missed] = batch::missed(simd, &rows, [&logits], count, self.transform);
                for missed in &mut missed {
                    *missed = 0.0 - *missed;
                }
                self.out.set(first, &missed[..count]);
            }
        }
    }
}
