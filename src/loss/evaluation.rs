//! What an evaluation reports of a model's logits: loss, hits among the top k, entropy, in one pass over memory.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use fearless_simd::Simd;

use super::distribution::{Reading, Use};
use super::targets::{Problem, Targets};
use super::{Check, Chunks, rows};
use crate::array::Array;
use crate::error::Result;
use crate::kernel::finish::{MOST_LANES, PerLane};
use crate::math::precise_sum;
use crate::parallel::map_chunks;
use crate::row::{Statistics, product};
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
/// Of equal logits the one at the lower index ranks higher; a row with a NaN or +∞, or of only −∞, hits nothing.
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
    // Of what a weight of the row's class is all there is besides, what is known of the row tells the loss.
    let is_known = problem.label_smoothing == 0.0 && problem.z_loss == 0.0;
    let weight_sum = problem.share_weight_sum();
    let sums = map_chunks(chunks.count(), chunks.bytes(logits.classes(), logits.dtype().size()), check, |chunk| {
        let range = chunks.rows_of(chunk);
        let found = vec![0; top_k.len()];
        let [mut loss, entropy] = level.run(Rows { range: range.clone(), logits, problem, top_k, found, all: hits });
        if !is_known {
            let of_losses = rows::Rows::of_losses(range, logits, problem, weight_sum);
            loss = level.run(of_losses).expect("a class is no bad target");
        }
        [loss, entropy]
    })?;
    let [loss, entropy] = [0, 1].map(|part| precise_sum(sums.iter().map(|sums| sums[part])));
    Ok(Tally { loss, entropy, hits: hits.iter().map(|hits| hits.load(Ordering::Relaxed)).collect() })
}

/// The work on a chunk of rows: the sums of their losses, but for what all classes have of them, and of their entropies.
struct Rows<'a> {
    range: Range<usize>,
    logits: &'a Array<'a>,
    problem: &'a Problem<'a>,
    top_k: &'a [usize],
    found: Vec<u64>,
    all: &'a [AtomicU64],
}

impl Kernel for Rows<'_> {
    type Output = [f64; 2];

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> [f64; 2] {
        let (range, logits, transform) = (self.range.clone(), self.logits, self.problem.transform);
        let mut summing = Summing { of: self, sums: [0.0; 2] };
        Reading { range, logits, transform, normalized: None }.run(simd, &mut summing);
        for (all, hits) in summing.of.all.iter().zip(&summing.of.found) {
            all.fetch_add(*hits, Ordering::Relaxed);
        }
        summing.sums
    }
}

/// The work on a chunk of rows, and the sums so far.
struct Summing<'a> {
    of: Rows<'a>,
    sums: [f64; 2],
}

impl Use for Summing<'_> {
    const LEADERS: bool = true;
    const SHAPES: bool = true;

    #[inline(always)]
    fn ranked(&self, rows: Range<usize>) -> PerLane<Option<usize>> {
        self.of.problem.classes_of(rows)
    }

    #[inline(always)]
    fn take<S: Simd>(&mut self, simd: S, rows: Range<usize>, known: &Statistics) {
        let Rows { logits, problem, top_k, found, .. } = &mut self.of;
        let classes = problem.classes_of(rows.clone());
        let mut of_targets = [0.0; MOST_LANES];
        for (lane, class) in classes.iter().enumerate() {
            if let Some(class) = class {
                of_targets[lane] = logits.row(rows.start + lane).get(*class);
            }
        }
        let missed = known.missed(simd, &of_targets, rows.len(), problem.transform);
        let entropies = known.entropies(simd, rows.len());
        for (lane, row) in rows.enumerate() {
            let Some(class) = classes[lane] else { continue };
            let weight = problem.weight.as_ref().map_or(1.0, |weight| weight[class]);
            self.sums[0] += product(problem.sample_weight(row), product(weight, missed[lane]));
            self.sums[1] += entropies[lane];
            // A row with a NaN or +∞, or of masked classes alone, hits nothing.
            if known.log_sum_exps.get(lane).total() > 0.0 {
                for (hits, &k) in found.iter_mut().zip(*top_k) {
                    *hits += u64::from(known.above[lane] < k as f64);
                }
            }
        }
    }
}
