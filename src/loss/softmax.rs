//! Log-sum-exp, softmax and log-softmax of rows, all of it or of some classes.

use std::ops::Range;

use fearless_simd::Simd;

use super::distribution::{Normalized, Reading, Use};
use super::{Check, Chunks, labels::Labels, store_policy};
use crate::array::{Array, ArrayMut, RowsMut};
use crate::error::Result;
use crate::kernel::finish::{MOST_LANES, PerLane};
use crate::row::{Statistics, Transform, batch};
use crate::simd::{self, Kernel};

/// Write `log Σ exp(x / T)` of each row.
///
/// # Errors
/// What `check` returned.
pub fn log_sum_exps(logits: &Array, transform: Transform, out: &mut ArrayMut, check: Check) -> Result<()> {
    run(logits, out, logits.dtype().size(), check, |range, out| {
        let reading = Reading { range, logits, transform, normalized: None, settled: None };
        Work { reading, user: LogSumExps { logits, transform, out } }
    })
}

/// Write the softmax of each row, or its logarithm, over the logits or apart from them.
///
/// # Errors
/// What `check` returned.
pub fn softmax(logits: &Array, transform: Transform, log: bool, out: &mut ArrayMut, check: Check) -> Result<()> {
    assert_eq!(logits.classes(), out.classes());
    let store = store_policy(logits, out);
    let traffic = logits.dtype().size() + 2 * out.dtype().size();
    run(logits, out, traffic, check, |range, out| {
        let normalized = Some(Normalized { out, log, store });
        Work { reading: Reading { range, logits, transform, normalized, settled: None }, user: Nobody }
    })
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
    run(logits, out, logits.dtype().size(), check, |range, out| {
        let reading = Reading { range, logits, transform, normalized: None, settled: None };
        Work { reading, user: Selected { logits, transform, index, out } }
    })
}

/// Run the work on every chunk of rows.
fn run<'a, U: Use>(
    logits: &'a Array,
    out: &'a mut ArrayMut,
    traffic: usize,
    check: Check,
    work: impl Fn(Range<usize>, RowsMut<'a>) -> Work<'a, U> + Sync,
) -> Result<()> {
    assert_eq!(logits.rows(), out.rows());
    let chunks = Chunks::of_rows(logits);
    let parts = out.parts(chunks.ranges());
    let level = simd::level();
    chunks.map(traffic, check, |chunk| level.run(work(chunks.rows_of(chunk), parts.take(chunk)))).map(|_| ())
}

/// The work on a chunk of rows, for somebody.
struct Work<'a, U> {
    reading: Reading<'a>,
    user: U,
}

impl<U: Use> Kernel for Work<'_, U> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        self.reading.run(simd, &mut self.user);
    }
}

/// Takes nothing.
struct Nobody;

impl Use for Nobody {
    const LEADERS: bool = false;
    const SHAPES: bool = false;

    #[inline(always)]
    fn take<S: Simd>(&mut self, _: S, _: Range<usize>, _: &Statistics) {}
}

struct LogSumExps<'a> {
    logits: &'a Array<'a>,
    transform: Transform,
    out: RowsMut<'a>,
}

impl Use for LogSumExps<'_> {
    const LEADERS: bool = false;
    const SHAPES: bool = false;

    #[inline(always)]
    fn take<S: Simd>(&mut self, simd: S, rows: Range<usize>, known: &Statistics) {
        let values = log_sum_exps_of(simd, self.logits, rows.clone(), known, self.transform);
        self.out.set(rows.start, &values[..rows.len()]);
    }
}

/// The log-sum-exps of some rows. Those with a logit of +∞ and no NaN are infinite; their losses stay NaN.
#[inline(always)]
pub(super) fn log_sum_exps_of<S: Simd>(
    simd: S,
    logits: &Array,
    rows: Range<usize>,
    known: &Statistics,
    transform: Transform,
) -> PerLane<f64> {
    let mut values = known.missed(simd, &[0.0; MOST_LANES], rows.len(), transform);
    for (lane, number) in rows.enumerate().filter(|(lane, _)| known.log_sum_exps.reference[*lane] == f64::INFINITY) {
        if logits.row(number).find_nan().is_none() {
            values[lane] = f64::INFINITY;
        }
    }
    values
}

struct Selected<'a> {
    logits: &'a Array<'a>,
    transform: Transform,
    index: &'a Labels,
    out: RowsMut<'a>,
}

impl Use for Selected<'_> {
    const LEADERS: bool = true;
    const SHAPES: bool = false;

    #[inline(always)]
    fn own(&self, rows: Range<usize>) -> Option<PerLane<usize>> {
        if self.index.rows() != self.logits.rows() {
            return None;
        }
        let mut classes = [0; MOST_LANES];
        for (class, row) in classes.iter_mut().zip(rows) {
            *class = self.index.class(row).expect("no index is ignored");
        }
        Some(classes)
    }

    #[inline(always)]
    fn take<S: Simd>(&mut self, simd: S, rows: Range<usize>, known: &Statistics) {
        let chosen = self.index.rows() / self.logits.rows();
        // As many choices at a time as there are lanes, be they of one row or of several.
        let numbers = rows.start * chosen..rows.end * chosen;
        for first in numbers.clone().step_by(MOST_LANES) {
            let count = MOST_LANES.min(numbers.end - first);
            let (mut references, mut logits) = ([0.0; MOST_LANES], [0.0; MOST_LANES]);
            let mut logs = [[0.0; MOST_LANES]; 2];
            for (lane, number) in (first..first + count).enumerate() {
                let row = number / chosen;
                let class = self.index.class(number).expect("no index is ignored");
                logits[lane] = self.logits.row(row).get(class);
                references[lane] = known.log_sum_exps.reference[row - rows.start];
                for (log, of_row) in logs.iter_mut().zip(&known.logs) {
                    log[lane] = of_row[row - rows.start];
                }
            }
            let mut missed = batch::missed(simd, &references, &logs, &logits, count, self.transform);
            for missed in &mut missed {
                *missed = 0.0 - *missed;
            }
            self.out.set(first, &missed[..count]);
        }
    }
}
