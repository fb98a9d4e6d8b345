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
use crate::math::precise_sum;
use crate::numbers::Numbers;
use crate::row::Stores;
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

/// How the rows of a problem are cut into chunks: by its shape alone.
#[derive(Clone, Copy, Debug)]
struct Chunks {
    rows: usize,
    rows_a_chunk: usize,
}

impl Chunks {
    fn new(rows: usize, classes: usize) -> Self {
        Self { rows, rows_a_chunk: (CHUNK_ELEMENTS / classes.max(1)).max(1) }
    }

    fn count(self) -> usize {
        self.rows.div_ceil(self.rows_a_chunk)
    }

    fn rows_of(self, chunk: usize) -> std::ops::Range<usize> {
        let start = chunk * self.rows_a_chunk;
        start..(start + self.rows_a_chunk).min(self.rows)
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
