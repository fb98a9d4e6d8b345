//! What an evaluation reports of a model's logits: loss, hits among the top k, entropy, in one pass over memory.

use std::sync::atomic::{AtomicU64, Ordering};

use fearless_simd::Simd;

use super::targets::{Problem, Targets};
use super::{Check, Chunks};
use crate::element::Element;
use crate::error::Result;
use crate::math::precise_sum;
use crate::parallel::map_chunks;
use crate::row::{product, statistics};
use crate::simd::{self, Kernel};
use crate::view::View;

/// Sums over the rows that are not ignored.
#[derive(Clone, Debug, PartialEq)]
pub struct Tally {
    /// Of the weighted losses, in nats.
    pub loss: f64,
    /// Of the entropies of the softmax, in nats.
    pub entropy: f64,
    /// For each k, how many rows have their target among the k largest logits.
    pub hits: Vec<u64>,
}

/// Sum up what an evaluation reports of logits whose targets are classes.
///
/// Of equal logits the one at the lower index ranks higher; a row with a NaN, or of only −∞, hits nothing.
///
/// # Errors
/// What `check` returned.
pub fn tally<E: Element>(logits: &View<E>, problem: &Problem, top_k: &[usize], check: Check) -> Result<Tally> {
    problem.assert_fits(logits.rows(), logits.classes());
    assert!(matches!(problem.targets, Targets::Classes(_)));
    let chunks = Chunks::new(logits.rows(), logits.classes());
    let level = simd::level();
    // Counts may be added in any order; the sums come back in that of the chunks.
    let hits: Vec<AtomicU64> = top_k.iter().map(|_| AtomicU64::new(0)).collect();
    let hits = &hits[..];
    let sums = map_chunks(chunks.count(), chunks.bytes(logits.classes(), size_of::<E>()), check, |chunk| {
        level.run(Rows { range: chunks.rows_of(chunk), logits, problem, top_k, hits })
    })?;
    let [loss, entropy] = [0, 1].map(|part| precise_sum(sums.iter().map(|sums| sums[part])));
    Ok(Tally { loss, entropy, hits: hits.iter().map(|hits| hits.load(Ordering::Relaxed)).collect() })
}

/// The work on a chunk of rows: the sums of their losses and entropies.
struct Rows<'a, E> {
    range: std::ops::Range<usize>,
    logits: &'a View<E>,
    problem: &'a Problem,
    top_k: &'a [usize],
    hits: &'a [AtomicU64],
}

impl<E: Element> Kernel for Rows<'_, E> {
    type Output = [f64; 2];

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> [f64; 2] {
        let mut sums = [0.0, 0.0];
        for index in self.range {
            let row = self.logits.row(index);
            let dense = self.problem.dense(simd, index, self.logits);
            let Some(target) = self.problem.target(index, row.classes(), dense.as_ref()) else { continue };
            let transform = self.problem.transform;
            let found = statistics(simd, row, target.point.map(|(class, _)| class), transform);
            let loss = target.loss_after(simd, row, found.log_sum_exp, transform).loss;
            sums[0] += product(self.problem.sample_weight(index), loss);
            sums[1] += found.entropy;
            // A row with a NaN, or of masked classes alone, hits nothing.
            if found.log_sum_exp.total() > 0.0 {
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
