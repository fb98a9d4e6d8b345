//! What an evaluation reports of a model's logits: loss, hits among the top k, entropy, in one pass over memory.

use std::marker::PhantomData;
use std::sync::atomic::{AtomicU64, Ordering};

use fearless_simd::Simd;

use super::statistics::read;
use super::targets::{Problem, Targets};
use super::{Check, Chunks};
use crate::array::Array;
use crate::dtype::with_element;
use crate::element::Element;
use crate::error::Result;
use crate::math::precise_sum;
use crate::parallel::map_chunks;
use crate::row::batch::{self, LogSumExps, MOST_LANES, Spreads};
use crate::row::tile::{Batch, Transposed, batches};
use crate::row::{product, weigh_infinities};
use crate::simd::{self, Kernel};

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
pub fn tally(logits: &Array, problem: &Problem, top_k: &[usize], check: Check) -> Result<Tally> {
    problem.assert_fits(logits.rows(), logits.classes());
    assert!(matches!(problem.targets, Targets::Classes(_)));
    let chunks = Chunks::of_rows(logits);
    let level = simd::level();
    // Counts may be added in any order; the sums come back in that of the chunks.
    let hits: Vec<AtomicU64> = top_k.iter().map(|_| AtomicU64::new(0)).collect();
    let hits = &hits[..];
    let sums = with_element!(logits.dtype(), E => {
        map_chunks(chunks.count(), chunks.bytes(logits.classes(), size_of::<E>()), check, |chunk| {
            let element = PhantomData;
            level.run(Rows::<E> { range: chunks.rows_of(chunk), logits, problem, top_k, hits, element })
        })
    })?;
    let [loss, entropy] = [0, 1].map(|part| precise_sum(sums.iter().map(|sums| sums[part])));
    Ok(Tally { loss, entropy, hits: hits.iter().map(|hits| hits.load(Ordering::Relaxed)).collect() })
}

/// The work on a chunk of rows: the sums of their losses and entropies.
struct Rows<'a, E> {
    range: std::ops::Range<usize>,
    logits: &'a Array<'a>,
    problem: &'a Problem<'a>,
    top_k: &'a [usize],
    hits: &'a [AtomicU64],
    element: PhantomData<E>,
}

impl<E: Element> Kernel for Rows<'_, E> {
    type Output = [f64; 2];

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> [f64; 2] {
        let mut sums = [0.0, 0.0];
        let mut hits = vec![0; self.top_k.len()];
        let transform = self.problem.transform;
        let mut room = Transposed::uninit();
        for batch in batches::<E>(self.logits, self.range.clone()) {
            let (first, rows) = (batch.first, batch.rows);
            let classes = self.logits.classes();
            let mut targets = batch::Targets::none(rows, self.problem.dense(first, classes, None));
            self.problem.set(first, classes, &mut targets);
            let mut ranked = [None; MOST_LANES];
            for lane in 0..rows {
                if targets.counts[lane] != 0.0 {
                    let class = targets.points.class[lane];
                    ranked[lane] = Some(class);
                    targets.points.logit[lane] = self.logits.row(first + lane).get(class);
                }
            }
            let tile = batch.tile::<S, E>(simd, transform, &mut room);
            let found = read::<S, E>(simd, &batch, tile, &ranked, transform);
            let (log_sum_exps, spreads) = self.spreads(simd, &batch, &targets, &found.log_sum_exps);
            let mut losses = batch::losses(simd, &log_sum_exps, &targets, &spreads, transform);
            weigh_infinities(simd, self.logits, first, &targets, transform, &mut losses);
            let entropies = found.entropies(simd, rows);
            for lane in (0..rows).filter(|&lane| targets.counts[lane] != 0.0) {
                sums[0] += product(self.problem.sample_weight(first + lane), losses.loss[lane]);
                sums[1] += entropies[lane];
                // A row with a NaN, or of masked classes alone, hits nothing.
                if found.log_sum_exps.get(lane).total() > 0.0 {
                    for (hits, &k) in hits.iter_mut().zip(self.top_k) {
                        *hits += u64::from(found.above[lane] < k as f64);
                    }
                }
            }
        }
        for (all, hits) in self.hits.iter().zip(hits) {
            all.fetch_add(hits, Ordering::Relaxed);
        }
        sums
    }
}

impl<E: Element> Rows<'_, E> {
    /// What the targets of a batch have to be summed, and the log-sum-exps that this is relative to: a second pass only if there is
    /// something.
    #[inline(always)]
    fn spreads<S: Simd>(
        &self,
        simd: S,
        batch: &Batch,
        targets: &batch::Targets,
        found: &LogSumExps,
    ) -> (LogSumExps, Spreads) {
        if targets.uniform == 0.0 && targets.dense.is_none() {
            return (*found, Spreads::default());
        }
        let transform = self.problem.transform;
        let (mut found, mut spreads) = (LogSumExps::default(), Spreads::default());
        for lane in 0..batch.rows {
            if let Some(target) = targets.get(lane) {
                let row = self.logits.row(batch.first + lane);
                target.pass::<S, E::Real>(simd, row, transform, lane, &mut found, &mut spreads);
            }
        }
        (found, spreads)
    }
}
