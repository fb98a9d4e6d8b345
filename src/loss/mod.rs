//! One driver a loss: it hands out chunks of rows, knows the targets, and decides what is written where.

pub mod bandwidth;
pub mod binary;
#[cfg(test)]
mod bits;
mod class_targets;
pub mod comparison;
pub mod cross_entropy;
mod distribution;
pub mod evaluation;
pub mod hessian;
mod kinds;
pub mod labels;
mod listed;
mod models;
mod options;
mod pairs;
mod plan;
mod rows;
pub mod shard;
pub mod softmax;
pub mod sparse;
pub mod statistics;
pub mod target_gradient;
pub mod targets;
pub mod temperature;
mod ways;

use fearless_simd::Simd;

use crate::array::{Array, ArrayMut};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::kernel::stage::most_classes;
use crate::math::{Real, precise_sum};
use crate::parallel;
use crate::rows::StorePolicy;

/// Asked from time to time whether to go on; see [`crate::parallel::map_chunks`].
pub type Check<'a> = &'a dyn Fn() -> Result<()>;

/// What becomes of the losses of the rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reduction {
    /// Each row's loss is a result.
    None,
    /// Their sum over the sum of their weights.
    Mean,
    /// Their sum.
    Sum,
}

impl Reduction {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Mean, Self::Sum, Self::None];

    /// The name under which users ask for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Mean => "mean",
            Self::Sum => "sum",
        }
    }

    /// What the sum of the losses is divided by.
    fn divisor(self, denominator: Option<f64>, weight_sum: impl FnOnce() -> f64) -> f64 {
        match self {
            Self::Mean => denominator.unwrap_or_else(weight_sum),
            Self::None | Self::Sum => 1.0,
        }
    }
}

/// The sum of all sums over the divisor: NaN if that is 0, as the mean of nothing.
fn mean(sums: Vec<f64>, divisor: f64) -> f64 {
    let sum = precise_sum(sums);
    if divisor == 0.0 { f64::NAN } else { sum / divisor }
}

/// A target that cannot be one: its number in C order, the classes innermost.
///
/// Targets are looked at as they are read, so it is found while results are being written; those are worth nothing then.
/// Only where they would go to memory of the caller's, which an error must leave as it is, all targets are read before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct BadTarget(usize);

impl BadTarget {
    /// The error, if it is one of `targets`.
    fn error(self, targets: &Array, expected: &str) -> Error {
        let (position, value) = (targets.position(self.0), targets.text(self.0));
        Error::Value(format!("targets{position} is {value}; expected {expected}"))
    }
}

/// A result, unless a target is bad.
type Found<T> = std::result::Result<T, BadTarget>;

/// By what the gradient is multiplied.
#[derive(Clone, Debug)]
pub enum GradOutput<'a> {
    /// One number for all losses.
    Scalar(f64),
    /// One number a loss, in the order of the losses.
    Each(Array<'a>),
}

impl GradOutput<'_> {
    /// Write those of the losses from number `first` on.
    #[inline(always)]
    fn read<S: Simd>(&self, simd: S, first: usize, scales: &mut [f64]) {
        match self {
            Self::Scalar(scale) => scales.fill(*scale),
            Self::Each(numbers) => numbers.read(simd, first, scales),
        }
    }

    fn assert_fits(&self, losses: usize) {
        if let Self::Each(numbers) = self {
            assert_eq!(numbers.count(), losses);
        }
    }
}

/// Elements of a chunk of rows: enough to make handing it out cheap, and few enough to share the work evenly.
const CHUNK_ELEMENTS: usize = 1 << 16;

/// Results of at least this many bytes are larger than what the caches keep for us.
const STREAMING_BYTES: usize = 1 << 24;

/// How the rows of a problem are cut into chunks: by its shape and layout alone.
#[derive(Clone, Copy, Debug)]
struct Chunks {
    rows: usize,
    /// No chunk goes on past a multiple of this many rows.
    run: usize,
    rows_a_chunk: usize,
    /// How many elements a row has.
    classes: usize,
    /// In how many pieces rows can be worked on.
    pieces: usize,
}

impl Chunks {
    /// Chunks of so many of these rows.
    fn of(rows: usize, rows_a_chunk: usize) -> Self {
        Self { rows, run: rows.max(1), rows_a_chunk, classes: 1, pieces: 1 }
    }

    /// Chunks of elements that are no rows.
    fn of_elements(count: usize) -> Self {
        Self::of(count, CHUNK_ELEMENTS)
    }

    /// Chunks of rows. Where rows are long and lie lane by lane in memory, each chunk is tiles from its first row on:
    /// rows that fill no tile are gathered one by one, which takes several times as long.
    fn of_rows(array: &Array) -> Self {
        let (rows, classes) = (array.rows(), array.classes());
        let is_double = array.dtype().is_double();
        let [few, lanes] =
            if is_double { [most_classes::<f64>(), f64::LANES] } else { [most_classes::<f32>(), f32::LANES] };
        let rows_a_chunk = (CHUNK_ELEMENTS / classes.max(1)).max(1);
        let neighbours = if rows == 0 { None } else { array.neighbours_from(0) };
        // Tiles are worked on as a whole.
        let pieces = if neighbours.is_some_and(|run| run >= lanes) { 1 } else { parallel::pieces(classes) };
        let chunks = Self { classes, pieces, ..Self::of(rows, rows_a_chunk) };
        match neighbours.filter(|_| classes > few) {
            None => chunks,
            Some(run) if run <= rows_a_chunk => Self { rows_a_chunk: rows_a_chunk / run * run, ..chunks },
            Some(run) => Self { run, rows_a_chunk: rows_a_chunk.next_multiple_of(lanes), ..chunks },
        }
    }

    /// [`parallel::map_rows`] of all chunks, whose elements move `bytes` each.
    fn map<T: Send + Sync>(self, bytes: usize, check: Check, work: impl Fn(usize) -> T + Sync) -> Result<Vec<T>> {
        let bytes = self.rows_a_chunk.saturating_mul(self.classes).saturating_mul(bytes);
        parallel::map_rows(self.count(), bytes, self.pieces, check, work)
    }

    /// How many chunks a run is.
    fn of_run(self) -> usize {
        self.run.div_ceil(self.rows_a_chunk)
    }

    fn count(self) -> usize {
        self.rows / self.run * self.of_run()
    }

    fn rows_of(self, chunk: usize) -> std::ops::Range<usize> {
        let first = chunk / self.of_run() * self.run;
        let start = first + chunk % self.of_run() * self.rows_a_chunk;
        start..(start + self.rows_a_chunk).min(first + self.run)
    }

    /// The rows of all chunks.
    fn ranges(self) -> impl Iterator<Item = std::ops::Range<usize>> {
        (0..self.count()).map(move |chunk| self.rows_of(chunk))
    }
}

/// Where the derivatives go: arrays of the logits' shape and of one dtype, each the logits themselves or apart from them and
/// from each other.
#[derive(Debug)]
pub struct Derivatives<'a> {
    /// The gradient.
    pub gradient: ArrayMut<'a>,
    /// The diagonal of the Hessian (of a binary loss there is nothing else), if it is wanted.
    pub hessian: Option<ArrayMut<'a>>,
    /// By what they are multiplied.
    pub grad_output: GradOutput<'a>,
    /// Whether one of them is the caller's own memory.
    pub given: bool,
}

impl<'a> Derivatives<'a> {
    /// The gradient, the Hessian and what multiplies them.
    ///
    /// # Panics
    /// If they do not have the shape of rows and classes and the dtype that is given, or `grad_output` is not for so many
    /// losses.
    #[allow(clippy::type_complexity)] // three things, named where they are taken
    fn open<'b>(
        &'b mut self,
        shape: [usize; 2],
        losses: usize,
        dtype: Dtype,
    ) -> (Option<&'b mut ArrayMut<'a>>, Option<&'b mut ArrayMut<'a>>, Option<&'b GradOutput<'a>>) {
        let Self { gradient, hessian, grad_output, .. } = self;
        for out in [Some(&*gradient), hessian.as_ref()].into_iter().flatten() {
            assert_eq!((shape, dtype), ([out.rows(), out.classes()], out.dtype()));
        }
        grad_output.assert_fits(losses);
        (Some(gradient), hessian.as_mut(), Some(grad_output))
    }
}

/// How to store results of `out`'s size made from `logits`: past the cache if they are large and do not overwrite them.
fn store_policy(logits: &Array, out: &ArrayMut) -> StorePolicy {
    if out.begins_with(logits) || out.bytes() < STREAMING_BYTES {
        StorePolicy::Cached
    } else {
        StorePolicy::NonTemporal
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::array::Layout;

    /// How rows are cut that lie lane by lane on their last axis.
    fn cut(dtype: Dtype, outer: usize, run: usize, classes: usize) -> Vec<std::ops::Range<usize>> {
        let size = dtype.size() as isize;
        let shape = [outer, classes, run];
        let strides = [(classes * run) as isize * size, run as isize * size, size];
        let layout = Layout { base: std::ptr::null_mut(), dtype, swapped: false, shape: &shape, strides: &strides };
        // SAFETY: nothing is read.
        let array = unsafe { Array::new(&layout, Some(1)) };
        let chunks = Chunks::of_rows(&array);
        let cut: Vec<_> = (0..chunks.count()).map(|chunk| chunks.rows_of(chunk)).collect();
        let all: Vec<_> = cut.iter().cloned().flatten().collect();
        assert_eq!(all, (0..outer * run).collect::<Vec<_>>(), "each row once, in order: {outer} {run} {classes}");
        cut
    }

    #[test]
    fn rows_that_lie_lane_by_lane_are_cut_in_whole_tiles() {
        for classes in [300, 1000, 1100, 4096, 4100, 8200, 32_000, 200_000] {
            for (outer, run) in [(1, 1024), (1, 1000), (7, 49), (3, 5), (5, 1), (0, 3), (2, 100_000)] {
                // An address may have 32 bits.
                if isize::try_from(outer as u64 * classes as u64 * run as u64 * 8).is_err() {
                    continue;
                }
                for (cut, lanes) in
                    [(cut(Dtype::F32, outer, run, classes), 16), (cut(Dtype::F64, outer, run, classes), 8)]
                {
                    let tiles: usize = cut
                        .iter()
                        .map(|rows| {
                            // As batches do: a tile ends with its run.
                            let runs = (rows.start / run..rows.end.div_ceil(run)).map(|number| {
                                let (first, last) = (rows.start.max(number * run), rows.end.min((number + 1) * run));
                                (last - first) / lanes
                            });
                            runs.sum::<usize>()
                        })
                        .sum();
                    assert_eq!(tiles, outer * (run / lanes), "{outer} x {run} rows of {classes}");
                }
            }
        }
    }
}
