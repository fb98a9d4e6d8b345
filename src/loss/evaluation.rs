//! What an evaluation reports of a model's logits: loss, hits among the top k, entropy, in one pass over memory.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use fearless_simd::{Simd, f64x8, prelude::*};

use super::cross_entropy::cross_entropy;
use super::distribution::{Reading, Use};
use super::targets::{Problem, Targets};
use super::{Check, Chunks, Reduction};
use crate::array::{Array, ArrayMut};
use crate::error::{Error, Result};
use crate::kernel::finish::{HALF, MOST_LANES, PerLane, load};
use crate::math::ExactSum;
use crate::row::{Statistics, product};
use crate::rows::BLOCK;
use crate::simd::{self, Kernel};

/// Sums over the rows that count, without rounding: the same however they are cut into batches.
#[derive(Clone, Debug, Default)]
pub struct Sums {
    /// Of the weighted losses, in nats.
    pub loss: ExactSum,
    /// Of their squares.
    pub squared_loss: ExactSum,
    /// Of the entropies of the softmax, in nats.
    pub entropy: ExactSum,
    /// Of the weights by which losses were multiplied, of their squares, and of their products with the weighted losses; if there
    /// are no weights, nothing.
    pub weights: [ExactSum; 3],
    /// How many of the rows have a loss or an entropy that is NaN.
    pub nan_rows: usize,
}

impl Sums {
    fn merge(&mut self, other: Self) {
        self.loss.merge(other.loss);
        self.squared_loss.merge(other.squared_loss);
        self.entropy.merge(other.entropy);
        for (to, from) in self.weights.iter_mut().zip(other.weights) {
            to.merge(from);
        }
        self.nan_rows += other.nan_rows;
    }
}

/// What was counted over the rows that count.
#[derive(Clone, Debug)]
pub struct Tally {
    /// The sums.
    pub sums: Sums,
    /// For each k, how many rows have their target among the k largest logits.
    pub hits: Vec<u64>,
}

/// Sum up what an evaluation reports of logits whose targets are classes.
///
/// Of equal logits the one at the lower index ranks higher; a row with a NaN or +∞, or of only −∞, hits nothing.
///
/// # Errors
/// [`Error::Memory`] if there is no room for losses that other sums of a row do not tell; what `check` returned.
pub fn tally(logits: &Array, problem: &Problem, top_k: &[usize], check: Check) -> Result<Tally> {
    problem.assert_fits(logits.rows(), logits.classes());
    assert!(matches!(problem.targets, Targets::Classes(_)));
    let losses = losses_of(logits, problem, check)?;
    let chunks = Chunks::of_rows(logits);
    let level = simd::level();
    // Counts may be added in any order, as exact sums.
    let hits: Vec<AtomicU64> = top_k.iter().map(|_| AtomicU64::new(0)).collect();
    let (all, losses) = (&hits[..], losses.as_deref());
    let found = chunks.map(logits.dtype().size(), check, |chunk| {
        let found = vec![0; top_k.len()];
        level.run(Rows { range: chunks.rows_of(chunk), logits, problem, top_k, losses, found, all })
    })?;
    let mut sums = Sums::default();
    for part in found {
        sums.merge(*part);
    }
    Ok(Tally { sums, hits: hits.iter().map(|hits| hits.load(Ordering::Relaxed)).collect() })
}

/// The weighted losses of all rows, if what is known of their distributions does not tell them: it does if a weight of the target's
/// class is all there is besides.
fn losses_of(logits: &Array, problem: &Problem, check: Check) -> Result<Option<Vec<f64>>> {
    if problem.label_smoothing == 0.0 && problem.z_loss == 0.0 && problem.focus.is_none() {
        return Ok(None);
    }
    unrounded_losses(logits, problem, check).map(Some)
}

/// The weighted losses of all rows that [`cross_entropy`] rounds and adds up.
fn unrounded_losses(logits: &Array, problem: &Problem, check: Check) -> Result<Vec<f64>> {
    let (rows, mut losses) = (logits.rows(), Vec::new());
    losses.try_reserve_exact(rows).map_err(|_| Error::Memory(format!("no memory for the losses of {rows} rows")))?;
    losses.resize(rows, 0.0);
    cross_entropy(logits, problem, Reduction::None, None, Some(&mut ArrayMut::of(&mut losses, 1)), None, check)?;
    Ok(losses)
}

/// The sums of the weighted losses that [`cross_entropy`] adds up, and of the weights that their mean divides by.
///
/// # Errors
/// [`Error::Memory`] if there is no room for the losses; what [`cross_entropy`] returned.
pub fn loss_sums(logits: &Array, problem: &Problem, check: Check) -> Result<[ExactSum; 2]> {
    let (rows, mut weights) = (logits.rows(), ExactSum::default());
    let losses = unrounded_losses(logits, problem, check)?;
    if problem.weight.is_none() && problem.sample_weight.is_none() {
        weights.add(problem.weight_sum(rows));
    } else {
        (0..rows).for_each(|row| weights.add(problem.mean_weight(row)));
    }
    Ok([sum_of(&Array::of(&losses, 1), check)?, weights])
}

/// The sum of numbers as f64.
///
/// # Errors
/// What `check` returned.
pub fn sum_of(numbers: &Array, check: Check) -> Result<ExactSum> {
    let chunks = Chunks::of_elements(numbers.count());
    let level = simd::level();
    let found = chunks.map(8, check, |chunk| level.run(SumOf { numbers, range: chunks.rows_of(chunk) }))?;
    let mut sum = ExactSum::default();
    for part in found {
        sum.merge(*part);
    }
    Ok(sum)
}

/// The work on a chunk of numbers.
struct SumOf<'a> {
    numbers: &'a Array<'a>,
    range: Range<usize>,
}

impl Kernel for SumOf<'_> {
    type Output = Box<ExactSum>;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> Box<ExactSum> {
        let (mut sum, mut block) = (Box::<ExactSum>::default(), [0.0; BLOCK]);
        for start in self.range.clone().step_by(BLOCK) {
            let length = BLOCK.min(self.range.end - start);
            self.numbers.read(simd, start, &mut block[..length]);
            block[length..].fill(0.0);
            for numbers in block[..length.next_multiple_of(MOST_LANES)].chunks_exact(MOST_LANES) {
                let (first, second) = numbers.split_at(HALF);
                sum.add_lanes(simd, [f64x8::from_slice(simd, first), f64x8::from_slice(simd, second)]);
            }
        }
        sum
    }
}

/// The work on a chunk of rows.
struct Rows<'a> {
    range: Range<usize>,
    logits: &'a Array<'a>,
    problem: &'a Problem<'a>,
    top_k: &'a [usize],
    /// The losses of all rows, if they are known.
    losses: Option<&'a [f64]>,
    found: Vec<u64>,
    all: &'a [AtomicU64],
}

impl Kernel for Rows<'_> {
    /// In a box: it is large.
    type Output = Box<Sums>;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> Box<Sums> {
        let (range, logits) = (self.range.clone(), self.logits);
        let Problem { transform, settled, .. } = *self.problem;
        let mut summing = Summing { of: self, sums: Box::default() };
        Reading { range, logits, transform, normalized: None, settled }.run(simd, &mut summing);
        for (all, hits) in summing.of.all.iter().zip(&summing.of.found) {
            all.fetch_add(*hits, Ordering::Relaxed);
        }
        summing.sums
    }
}

/// The work on a chunk of rows, and the sums so far.
struct Summing<'a> {
    of: Rows<'a>,
    sums: Box<Sums>,
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
        let Rows { logits, problem, top_k, losses, found, .. } = &mut self.of;
        let classes = problem.classes_of(rows.clone());
        let mut of_targets = [0.0; MOST_LANES];
        for (lane, class) in classes.iter().enumerate() {
            if let Some(class) = class {
                of_targets[lane] = logits.row(rows.start + lane).get(*class);
            }
        }
        let missed = known.missed(simd, &of_targets, rows.len(), problem.transform);
        let of_all = known.entropies(simd, rows.len());
        let has_weights = problem.weight.is_some() || problem.sample_weight.is_some();
        let (mut weighted, mut weights, mut entropies) = ([0.0; MOST_LANES], [0.0; MOST_LANES], [0.0; MOST_LANES]);
        for (lane, row) in rows.enumerate() {
            let Some(class) = classes[lane] else { continue };
            entropies[lane] = of_all[lane];
            weighted[lane] = missed[lane];
            if has_weights {
                let of_class = problem.weight.as_ref().map_or(1.0, |weight| weight[class]);
                weights[lane] = problem.sample_weight(row) * of_class;
                weighted[lane] = product(problem.sample_weight(row), product(of_class, missed[lane]));
            }
            if let Some(losses) = losses {
                weighted[lane] = losses[row];
            }
            // A row with a NaN or +∞, or of masked classes alone, hits nothing.
            if known.log_sum_exps.get(lane).total() > 0.0 {
                for (hits, &k) in found.iter_mut().zip(*top_k) {
                    *hits += u64::from(known.above[lane] < k as f64);
                }
            }
        }
        let Sums { loss, squared_loss, entropy, weights: of_weights, nan_rows } = &mut *self.sums;
        let weighted = [load(simd, &weighted, 0), load(simd, &weighted, HALF)];
        let weight = [load(simd, &weights, 0), load(simd, &weights, HALF)];
        let entropies = [load(simd, &entropies, 0), load(simd, &entropies, HALF)];
        loss.add_lanes(simd, weighted);
        squared_loss.add_products(simd, weighted, weighted);
        entropy.add_lanes(simd, entropies);
        if has_weights {
            let [of_weight, of_square, of_product] = &mut *of_weights;
            of_weight.add_lanes(simd, weight);
            of_square.add_products(simd, weight, weight);
            of_product.add_products(simd, weight, weighted);
        }
        for (weighted, entropies) in weighted.into_iter().zip(entropies) {
            let are_numbers = weighted.simd_eq(weighted) & entropies.simd_eq(entropies);
            *nan_rows += HALF - are_numbers.to_bitmask().count_ones() as usize;
        }
    }
}
