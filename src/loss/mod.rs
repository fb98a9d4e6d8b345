//! One driver a loss: it hands out chunks of rows, knows the targets, and decides what is written where.

pub mod bandwidth;
pub mod binary;
pub mod cross_entropy;
pub mod evaluation;
pub mod labels;
pub mod softmax;
pub mod statistics;
pub mod targets;

use fearless_simd::Simd;

use crate::element::Element;
use crate::math::{Real, precise_sum};
use crate::numbers::Numbers;
use crate::row::Stores;
use crate::row::tile::most_classes;
use crate::view::View;

/// Asked from time to time whether to go on; see [`crate::parallel::map_chunks`].
pub type Check<'a> = &'a dyn Fn() -> crate::error::Result<()>;

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

/// A target that cannot be one: its number in C order, the classes last.
///
/// Targets are looked at as they are read, so it is found while results are being written; those are worth nothing then.
/// Only where they would go to memory of the caller's, which an error must leave as it is, all targets are read before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadTarget(pub usize);

/// A result, unless a target is bad.
pub type Found<T> = std::result::Result<T, BadTarget>;

/// By what the gradient is multiplied.
#[derive(Clone, Debug)]
pub enum GradOutput {
    /// One number for all losses.
    Scalar(f64),
    /// One number a loss, in the order of the losses.
    Each(Numbers),
}

impl GradOutput {
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
}

impl Chunks {
    /// Chunks of so many of these rows.
    fn of(rows: usize, rows_a_chunk: usize) -> Self {
        Self { rows, run: rows.max(1), rows_a_chunk }
    }

    /// Chunks of elements that are no rows.
    fn of_elements(count: usize) -> Self {
        Self::of(count, CHUNK_ELEMENTS)
    }

    /// Chunks of rows. Where rows are long and lie lane by lane in memory, each chunk is tiles from its first row on:
    /// rows that fill no tile are gathered one by one, which takes several times as long.
    fn of_rows<E: Element>(view: &View<E>) -> Self {
        let (rows, classes) = (view.rows(), view.classes());
        let rows_a_chunk = (CHUNK_ELEMENTS / classes.max(1)).max(1);
        let neighbours = if rows == 0 { None } else { view.neighbours_from(0) };
        match neighbours.filter(|_| classes > most_classes::<E::Real>()) {
            None => Self::of(rows, rows_a_chunk),
            Some(run) if run <= rows_a_chunk => Self::of(rows, rows_a_chunk / run * run),
            Some(run) => Self { rows, run, rows_a_chunk: rows_a_chunk.next_multiple_of(<E::Real as Real>::LANES) },
        }
    }

    /// How many chunks a run is.
    fn pieces(self) -> usize {
        self.run.div_ceil(self.rows_a_chunk)
    }

    fn count(self) -> usize {
        self.rows / self.run * self.pieces()
    }

    fn rows_of(self, chunk: usize) -> std::ops::Range<usize> {
        let first = chunk / self.pieces() * self.run;
        let start = first + chunk % self.pieces() * self.rows_a_chunk;
        start..(start + self.rows_a_chunk).min(first + self.run)
    }

    /// Bytes that a chunk moves when each of its elements moves `bytes`.
    fn bytes(self, classes: usize, bytes: usize) -> usize {
        self.rows_a_chunk.saturating_mul(classes).saturating_mul(bytes)
    }
}

/// How to store results of `out`'s size made from `logits`: streaming if they are large and do not overwrite them.
fn stores<E: Element, O: Element>(logits: &View<E>, out: &View<O>) -> Stores {
    let in_place = logits.rows() > 0 && logits.row(0).is_at(out.row(0));
    if in_place || out.bytes() < STREAMING_BYTES { Stores::Cached } else { Stores::Streaming }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::Axes;

    /// How rows are cut that lie lane by lane on their last axis.
    fn cut<E: Element>(outer: usize, run: usize, classes: usize) -> Vec<std::ops::Range<usize>> {
        let size = size_of::<E>() as isize;
        let axes = Axes::new([(outer, (classes * run) as isize * size), (run, size)]);
        // SAFETY: nothing is read.
        let view = unsafe { View::<E>::new(std::ptr::null_mut(), axes, classes, run as isize * size, false) };
        let chunks = Chunks::of_rows(&view);
        let cut: Vec<_> = (0..chunks.count()).map(|chunk| chunks.rows_of(chunk)).collect();
        let all: Vec<_> = cut.iter().cloned().flatten().collect();
        assert_eq!(all, (0..outer * run).collect::<Vec<_>>(), "each row once, in order: {outer} {run} {classes}");
        cut
    }

    #[test]
    fn rows_that_lie_lane_by_lane_are_cut_in_whole_tiles() {
        for classes in [300, 1000, 1100, 4096, 4100, 8200, 32_000, 200_000] {
            for (outer, run) in [(1, 1024), (1, 1000), (7, 49), (3, 5), (5, 1), (0, 3), (2, 100_000)] {
                for (cut, lanes) in [(cut::<f32>(outer, run, classes), 16), (cut::<f64>(outer, run, classes), 8)] {
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
