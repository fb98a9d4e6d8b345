//! What can be told of every row in one pass: log-sum-exp, leader, entropy, and where the target stands.

use fearless_simd::Simd;

use super::{Check, Chunks, labels::Labels};
use crate::element::Element;
use crate::error::Result;
use crate::parallel::map_chunks;
use crate::row::batch::{MOST_LANES, PerLane};
use crate::row::tile::{AnyTile, Batch, Transposed, batches};
use crate::row::{Statistics, Transform};
use crate::simd::{self, Kernel};
use crate::view::{Column, View};

/// The results, a number a row each.
#[derive(Clone, Copy, Debug)]
pub struct Columns {
    /// The log-sum-exp.
    pub log_sum_exp: Column,
    /// The class of the largest logit.
    pub argmax: Column,
    /// Its probability.
    pub max_probability: Column,
    /// The entropy of the softmax, in nats.
    pub entropy: Column,
    /// The log-probability of the target, and how many classes rank above it.
    pub target: Option<(Column, Column)>,
}

/// Write the statistics of every row. An ignored target has log-probability 0 and rank −1; one in a row with a NaN or
/// +∞, or of only −∞, has rank −1.
///
/// # Errors
/// What `check` returned.
pub fn row_statistics<E: Element>(
    logits: &View<E>,
    labels: Option<&Labels>,
    transform: Transform,
    columns: Columns,
    check: Check,
) -> Result<()> {
    assert!(labels.is_none_or(|labels| labels.rows() == logits.rows()));
    let chunks = Chunks::of_rows(logits);
    let level = simd::level();
    map_chunks(chunks.count(), chunks.bytes(logits.classes(), size_of::<E>()), check, |chunk| {
        level.run(Rows { range: chunks.rows_of(chunk), logits, labels, transform, columns });
    })
    .map(|_| ())
}

struct Rows<'a, E> {
    range: std::ops::Range<usize>,
    logits: &'a View<E>,
    labels: Option<&'a Labels>,
    transform: Transform,
    columns: Columns,
}

impl<E: Element> Kernel for Rows<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Columns { log_sum_exp, argmax, max_probability, entropy, target } = self.columns;
        let mut room = Transposed::uninit();
        for batch in batches(self.logits, self.range.clone()) {
            let (first, rows) = (batch.first, batch.rows);
            let (mut classes, mut logits) = ([None; MOST_LANES], [0.0; MOST_LANES]);
            for lane in 0..rows {
                classes[lane] = self.labels.and_then(|labels| labels.class(first + lane));
                if let Some(class) = classes[lane] {
                    logits[lane] = self.logits.row(first + lane).get(class).to_f64();
                }
            }
            let tile = batch.tile(simd, &mut room);
            // SAFETY: the room is not used again for this batch.
            let found = unsafe { read(simd, &batch, tile, &classes, self.transform) };
            let [mut values, mut missed, probabilities] = found.columns(simd, &logits, rows, self.transform);
            batch.find_infinite(&found.log_sum_exps, &mut values);
            let entropies = found.entropies(simd, rows);
            let (mut leaders, mut ranks) = ([0.0; MOST_LANES], [-1.0; MOST_LANES]);
            for lane in 0..rows {
                leaders[lane] = found.leader[lane] as f64;
                let counts = classes[lane].is_some();
                missed[lane] = if counts { 0.0 - missed[lane] } else { 0.0 };
                if counts && found.log_sum_exps.get(lane).total() > 0.0 {
                    ranks[lane] = found.above[lane];
                }
            }
            // SAFETY: this chunk alone works on its rows.
            unsafe {
                log_sum_exp.set(first, &values[..rows]);
                argmax.set(first, &leaders[..rows]);
                max_probability.set(first, &probabilities[..rows]);
                entropy.set(first, &entropies[..rows]);
                if let Some((log_probability, rank)) = target {
                    log_probability.set(first, &missed[..rows]);
                    rank.set(first, &ranks[..rows]);
                }
            }
        }
    }
}

/// The statistics of a batch of rows, those of `tile` if they are across lanes, and the rank of a class in each.
///
/// # Safety
/// `tile` is what [`Batch::tile`] returned, and its room has not been used since.
#[inline(always)]
pub(super) unsafe fn read<S: Simd, E: Element>(
    simd: S,
    batch: &Batch<E>,
    tile: Option<AnyTile>,
    ranked: &PerLane<Option<usize>>,
    transform: Transform,
) -> Statistics {
    let Some(tile) = tile else {
        let mut found = Statistics::default();
        for lane in 0..batch.rows {
            found.read(simd, lane, batch.view.row(batch.first + lane), ranked[lane], transform);
        }
        return found;
    };
    // SAFETY: its values are readable by the caller's promise.
    let mut found = unsafe { Statistics::of_tile::<S, E>(simd, tile, ranked, transform) };
    for lane in 0..batch.rows {
        found.find_nan(lane, batch.view.row(batch.first + lane));
    }
    found
}
