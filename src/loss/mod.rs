//! One driver a loss: it hands out chunks of rows, knows the targets, and decides what is written where.

pub mod bandwidth;
pub mod cross_entropy;
pub mod evaluation;
pub mod labels;
pub mod softmax;

use crate::element::Element;
use crate::row::Stores;
use crate::view::View;

/// Asked from time to time whether to go on; see [`crate::parallel::map_chunks`].
pub type Check<'a> = &'a dyn Fn() -> crate::error::Result<()>;

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
    let in_place = logits.rows() > 0 && logits.row(0).pointer(0).cast::<u8>() == out.row(0).pointer(0).cast::<u8>();
    if in_place || out.bytes() < STREAMING_BYTES { Stores::Cached } else { Stores::Streaming }
}
