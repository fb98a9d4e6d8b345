//! What an evaluation reports of a model's logits, in one pass: loss, hits among the top k, entropy.

use std::sync::atomic::{AtomicU64, Ordering};

use fearless_simd::Simd;

use super::{Check, Chunks, labels::Labels};
use crate::element::Element;
use crate::error::Result;
use crate::parallel::map_chunks;
use crate::row::{ClassLoss, Temperature, statistics};
use crate::simd::{self, Kernel};
use crate::view::View;

/// Sums over the rows that are not ignored.
#[derive(Clone, Debug, PartialEq)]
pub struct Tally {
    /// Of the losses, in nats.
    pub loss: f64,
    /// Of the entropies of the softmax, in nats.
    pub entropy: f64,
    /// For each k, how many rows have their target among the k largest logits.
    pub hits: Vec<u64>,
}

/// Sum up what an evaluation reports.
///
/// Of equal logits the one at the lower index ranks higher; a row with a NaN, or of only −∞, hits nothing.
///
/// # Errors
/// What `check` returned.
pub fn tally<E: Element>(
    logits: &View<E>,
    labels: &Labels,
    temperature: Temperature,
    top_k: &[usize],
    check: Check,
) -> Result<Tally> {
    assert_eq!(logits.rows(), labels.rows());
    let chunks = Chunks::new(logits.rows(), logits.classes());
    let level = simd::level();
    // Counts may be added in any order; the sums come back in that of the chunks.
    let hits: Vec<AtomicU64> = top_k.iter().map(|_| AtomicU64::new(0)).collect();
    let hits = &hits[..];
    let sums = map_chunks(chunks.count(), chunks.bytes(logits.classes(), size_of::<E>()), check, |chunk| {
        level.run(Rows { range: chunks.rows_of(chunk), logits, labels, temperature, top_k, hits })
    })?;
    let [loss, entropy] = sums.into_iter().fold([0.0, 0.0], |total, sums| [total[0] + sums[0], total[1] + sums[1]]);
    Ok(Tally { loss, entropy, hits: hits.iter().map(|hits| hits.load(Ordering::Relaxed)).collect() })
}

/// The work on a chunk of rows: the sums of their losses and entropies.
struct Rows<'a, E> {
    range: std::ops::Range<usize>,
    logits: &'a View<E>,
    labels: &'a Labels,
    temperature: Temperature,
    top_k: &'a [usize],
    hits: &'a [AtomicU64],
}

impl<E: Element> Kernel for Rows<'_, E> {
    type Output = [f64; 2];

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> [f64; 2] {
        let mut sums = [0.0, 0.0];
        for index in self.range {
            let Some(class) = self.labels.class(index) else { continue };
            let row = self.logits.row(index);
            let logit = row.get(class).to_f64();
            let found = statistics(simd, row, Some(class), self.temperature);
            let row_loss = ClassLoss::new(class, logit, found.log_sum_exp, self.temperature);
            sums[0] += row_loss.loss;
            sums[1] += row_loss.entropy(logit, found.log_sum_exp, found.weighted, self.temperature);
            if !row_loss.loss.is_nan() {
                for (hits, &k) in self.hits.iter().zip(self.top_k) {
                    if found.above < k as f64 {
                        hits.fetch_add(1, Ordering::Relaxed);
                    }
                }
            }
        }
        sums
    }
}
