//! Targets that give every class of a row its own weight: probabilities, smoothed or weighted, or the softmax of a
//! teacher's logits. Kernels know no more of them than a block of weights in f64, written where they ask for it.

use std::ops::Range;

use fearless_simd::{Simd, f64x8, prelude::*};

use super::companion::{Companion, Weighted, Weights};
use super::log_sum_exp::{LogSumExps, log_sum_exp, log_totals};
use super::transform::{CAPPED, Capped, Scale, Value, with_mode, with_uncapped_mode};
use super::{LogSumExp, Transform, per_mass};
use crate::array::Array;
use crate::element::Element;
use crate::kernel::finish::PerLane;
use crate::kernel::listed::ListedRows;
use crate::math::{Boost, Real, Total, Twice, UNIT, precise_sum, with_vectors_at_a_time};
use crate::parallel::in_pieces;
use crate::rows::{BLOCK, Row};

/// `weight·(keep·p + uniform)` for every class of row number `row`, p being the source's, and, by [`Self::skip`], of the
/// rows after it.
#[derive(Clone, Copy, Debug)]
pub struct Dense<'a> {
    /// The probabilities p.
    pub source: Source<'a>,
    /// The row.
    pub row: usize,
    /// How many classes a row has.
    pub classes: usize,
    /// What is left of the probabilities.
    pub keep: f64,
    /// What every class gets instead.
    pub uniform: f64,
    /// A weight for every class.
    pub weight: Option<&'a [f64]>,
}

/// Where the probabilities of all rows come from.
#[derive(Clone, Copy, Debug)]
pub enum Source<'a> {
    /// There are none.
    Nothing,
    /// Numbers, row after row.
    Numbers(&'a Array<'a>),
    /// A few of each row; of the others 0.
    Listed(&'a ListedRows),
    /// The softmax of logits.
    Softmax(&'a Teacher<'a>),
}

/// Some rows of logits whose softmax is the target.
#[derive(Debug)]
pub struct Teacher<'a> {
    array: &'a Array<'a>,
    /// The first of the rows.
    first: usize,
    log_sum_exps: LogSumExps,
    log_totals: PerLane<f64>,
    transform: Transform,
    /// Whether it computes in f64: it does if its own logits or those of its pupil do.
    double: bool,
}

impl<'a> Teacher<'a> {
    /// The softmax of rows of the teacher, for logits that compute in `R`.
    #[inline(never)]
    pub fn new<S: Simd, R: Real>(simd: S, array: &'a Array<'a>, rows: Range<usize>, transform: Transform) -> Self {
        let double = R::LANES == f64::LANES || array.dtype().is_double();
        let mut found = LogSumExps::default();
        for (lane, row) in rows.clone().enumerate() {
            let row = array.row(row);
            let of_row = if double {
                log_sum_exp::<S, f64>(simd, row, transform)
            } else {
                log_sum_exp::<S, f32>(simd, row, transform)
            };
            found.set(lane, of_row);
        }
        let log_totals = log_totals(simd, &found, rows.len());
        Self { array, first: rows.start, log_sum_exps: found, log_totals, transform, double }
    }

    /// What is known of its first row.
    #[inline(always)]
    pub fn first(&self) -> (LogSumExp, f64) {
        (self.log_sum_exps.get(0), self.log_totals[0])
    }
}

impl<'a> Dense<'a> {
    /// The softmax of a teacher's logits, from its first row on.
    #[inline(always)]
    pub fn of_teacher(teacher: &'a Teacher) -> Self {
        let classes = teacher.array.classes();
        Self { source: Source::Softmax(teacher), row: teacher.first, classes, keep: 1.0, uniform: 0.0, weight: None }
    }

    /// The row `count` further on, and those after it.
    #[inline(always)]
    #[must_use]
    pub fn skip(self, count: usize) -> Self {
        Self { row: self.row + count, ..self }
    }

    /// Write the weights of `length` classes from `start` on and 0 behind them: returns `Σ p·(x − reference)` over a
    /// teacher's logits in units of [`crate::math::UNIT`], 0 for other sources, and NaN for numbers that are not all
    /// probabilities.
    #[inline(never)]
    pub(super) fn fill<S: Simd>(&self, simd: S, start: usize, length: usize, block: &mut [f64]) -> f64 {
        simd.vectorize(
            #[inline(always)]
            || self.inlined_fill(simd, start, length, block),
        )
    }

    #[inline(always)]
    fn inlined_fill<S: Simd>(&self, simd: S, start: usize, length: usize, block: &mut [f64]) -> f64 {
        let (block, rest) = block.split_at_mut(length);
        rest.fill(0.0);
        let mut sum = 0.0;
        match self.source {
            Source::Nothing => {
                if let Some(weights) = self.weight {
                    for (weight, factor) in block.iter_mut().zip(&weights[start..]) {
                        *weight = self.uniform * factor;
                    }
                    return sum;
                }
                block.fill(self.uniform);
            }
            Source::Numbers(numbers) => {
                numbers.read(simd, self.row * self.classes + start, block);
                sum = if are_probabilities(block) { 0.0 } else { f64::NAN };
                self.smooth(block);
            }
            Source::Listed(listed) => {
                listed.row(self.row).fill(start, block);
                self.smooth(block);
            }
            Source::Softmax(teacher) => {
                let lane = self.row - teacher.first;
                sum = if teacher.double {
                    softmax::<S, f64>(simd, teacher, lane, start, block)
                } else {
                    softmax::<S, f32>(simd, teacher, lane, start, block)
                };
            }
        }
        if let Some(weights) = self.weight {
            for (weight, factor) in block.iter_mut().zip(&weights[start..]) {
                *weight *= factor;
            }
        }
        sum
    }

    /// From probabilities to what is left of them and what every class gets instead.
    #[inline(always)]
    fn smooth(&self, block: &mut [f64]) {
        if self.keep != 1.0 || self.uniform != 0.0 {
            for weight in block {
                *weight = self.keep * *weight + self.uniform;
            }
        }
    }

    /// The weight of one class.
    #[inline(always)]
    pub(super) fn at<S: Simd>(&self, simd: S, class: usize) -> f64 {
        let mut weight = [0.0];
        self.fill(simd, class, 1, &mut weight);
        weight[0]
    }

    /// The sum of the weights of all classes.
    #[inline(always)]
    pub fn mass<S: Simd>(&self, simd: S) -> f64 {
        let of_piece = |part| self.mass_of(simd, part);
        in_pieces(self.classes, of_piece, |mass: &mut Total<S>, next| mass.add::<f64>(next)).value()
    }

    #[inline(never)]
    fn mass_of<S: Simd>(&self, simd: S, part: Range<usize>) -> Total<S> {
        simd.vectorize(
            #[inline(always)]
            || {
                let mut mass = Total::zero(simd);
                self.for_each_block(
                    simd,
                    part,
                    #[inline(always)]
                    |_, weights| {
                        let (whole, rest) = weights.as_chunks::<{ f64::LANES }>();
                        for numbers in whole {
                            f64::add_numbers(simd, &mut mass, numbers);
                        }
                        mass.add_scalar(precise_sum(rest.iter().copied()));
                    },
                );
                mass
            },
        )
    }

    /// The sum of the weights t of all classes, and `Σ t·(z − z(reference))` over the logits of a row.
    #[inline(always)]
    pub fn weigh<S: Simd, R: Real + Element<Real = R>>(
        &self,
        simd: S,
        row: Row,
        reference: f64,
        transform: Transform,
    ) -> [f64; 2] {
        let of_piece = |part: Range<usize>| with_mode!(transform, MODE => self.weigh_in_mode::<S, R, MODE>(simd, row, part, reference, transform));
        let [mass, sum] = in_pieces(self.classes, of_piece, |[mass, sum]: &mut [Total<S>; 2], next| {
            mass.add::<f64>(next[0]);
            sum.add::<R>(next[1]);
        });
        [mass.value(), sum.value() / transform.temperature() * UNIT]
    }

    #[inline(never)]
    fn weigh_in_mode<S: Simd, R: Real + Element<Real = R>, const MODE: u8>(
        &self,
        simd: S,
        row: Row,
        part: Range<usize>,
        reference: f64,
        transform: Transform,
    ) -> [Total<S>; 2] {
        simd.vectorize(
            #[inline(always)]
            || {
                let scale = Scale::<S, R>::new(simd, transform);
                let reference = scale.value::<MODE>(R::splat(simd, reference));
                let mut logits = [R::default(); BLOCK];
                let mut capped = Capped::<R, BLOCK>::default();
                let mut weighted = Weighted::new(simd, RowWeights { dense: *self, sum: 0.0 });
                for start in part.clone().step_by(BLOCK) {
                    let length = BLOCK.min(part.end - start);
                    let vectors = length.div_ceil(4 * R::LANES) * 4;
                    Companion::<S, R>::begin(&mut weighted, simd, start, length);
                    row.read(simd, start, length, &mut logits);
                    if let Some(cap) = scale.cap::<MODE>() {
                        cap.fill::<_, _, false>(simd, &logits[..vectors * R::LANES], &mut capped);
                    }
                    let value = |vector: usize| {
                        let logits = &logits[vector * R::LANES..][..R::LANES];
                        if MODE == CAPPED {
                            Value::capped(simd, &capped, vector)
                        } else {
                            Value::plain(R::Lanes::<S>::from_slice(simd, logits))
                        }
                    };
                    Companion::<S, R>::values(&mut weighted, simd, 0..vectors, length, value, reference);
                }
                [weighted.mass, weighted.sum]
            },
        )
    }

    /// Call `f` for each block of a part of the classes with the first of them and their weights.
    #[inline(always)]
    pub fn for_each_block<S: Simd>(&self, simd: S, part: Range<usize>, mut f: impl FnMut(usize, &[f64])) {
        let mut block = [0.0; BLOCK];
        for start in part.clone().step_by(BLOCK) {
            let length = BLOCK.min(part.end - start);
            self.fill(simd, start, length, &mut block);
            f(start, &block[..length]);
        }
    }

    /// `ln Σ exp(z − z(reference))` of the teacher's rows, if the loss is a divergence from one: it is never negative.
    pub(super) fn log_totals(&self) -> Option<&PerLane<f64>> {
        let Source::Softmax(teacher) = self.source else { return None };
        assert_eq!(self.row, teacher.first, "the first row is that of the first lane");
        Some(&teacher.log_totals)
    }
}

/// Whether a target can be a probability: those of a row need not add up to 1, but none is below 0 or NaN.
#[inline(always)]
pub fn is_probability(value: f64) -> bool {
    value >= 0.0
}

/// [`is_probability`] of all of some.
#[inline(always)]
pub fn are_probabilities(values: &[f64]) -> bool {
    // Without a way out of the loop, so that it is done in vectors.
    let mut fine = true;
    for value in values {
        fine &= is_probability(*value);
    }
    fine
}

/// The softmax of some classes of a teacher's row; returns `Σ p·(x − reference)` in units of [`crate::math::UNIT`].
#[inline(never)]
fn softmax<S: Simd, R: Real>(simd: S, teacher: &Teacher, lane: usize, start: usize, block: &mut [f64]) -> f64 {
    let (row, log_sum_exp) = (teacher.array.row(teacher.first + lane), teacher.log_sum_exps.get(lane));
    let transform = teacher.transform;
    simd.vectorize(
        #[inline(always)]
        || {
            let scale = Scale::<S, R>::new(simd, transform);
            let share = per_mass(1.0, log_sum_exp.total()) / R::BOOST;
            let (mut logits, mut weights) = ([R::default(); BLOCK], [0.0; BLOCK]);
            row.read(simd, start, block.len(), &mut logits);
            let reference = Value::plain(R::splat(simd, log_sum_exp.reference));
            // Some vectors at a time, past the last class too: those are masked.
            let vectors = block.len().div_ceil(4 * R::LANES) * 4;
            with_uncapped_mode!(transform, MODE => with_vectors_at_a_time!(S, K => {
                for first in (0..vectors).step_by(K) {
                    shares::<S, R, MODE, K>(simd, &scale, &logits, first, reference, share, &mut weights);
                }
            }));
            let mut sum = Total::zero(simd);
            for (weights, logits) in weights.chunks_exact(R::LANES).zip(logits.chunks_exact(R::LANES)).take(vectors) {
                let value = R::twice(R::Lanes::<S>::from_slice(simd, logits));
                R::add_weighted(simd, &mut sum, R::halves(simd, weights), value, reference.twice());
            }
            block.copy_from_slice(&weights[..block.len()]);
            sum.value()
        },
    )
}

/// Write [`shares_of`] `K` vectors of logits from number `first` on.
#[inline(always)]
fn shares<S: Simd, R: Real, const MODE: u8, const K: usize>(
    simd: S,
    scale: &Scale<S, R>,
    logits: &[R; BLOCK],
    first: usize,
    reference: Value<S, R>,
    share: f64,
    weights: &mut [f64; BLOCK],
) {
    let mut x = [R::splat(simd, 0.0); K];
    for k in 0..K {
        x[k] = R::Lanes::<S>::from_slice(simd, &logits[(first + k) * R::LANES..][..R::LANES]);
    }
    let of_all = shares_of::<S, R, MODE, K>(simd, scale, x, reference, [f64x8::splat(simd, share); 2]);
    for k in 0..K {
        let weights = &mut weights[(first + k) * R::LANES..][..R::LANES];
        for (lanes, part) in weights.chunks_exact_mut(8).zip(of_all[k]) {
            part.store_slice(lanes);
        }
    }
}

/// `exp(z − z(reference))·share` of some vectors of logits, as f64; of f64 the second halves are nothing.
#[inline(always)]
fn shares_of<S: Simd, R: Real, const MODE: u8, const K: usize>(
    simd: S,
    scale: &Scale<S, R>,
    x: [R::Lanes<S>; K],
    reference: Value<S, R>,
    share: Twice<S>,
) -> [Twice<S>; K] {
    let lanes = |value: f64| f64x8::splat(simd, value);
    let mut values = [reference; K];
    for k in 0..K {
        values[k] = Value::plain(x[k]);
    }
    let exp = scale.exps::<MODE, K>(values, reference, Boost::Full);
    let mut shares = [share; K];
    for k in 0..K {
        let (exp, logit) = (R::twice(exp[k]), R::twice(x[k]));
        for half in 0..R::LANES / 8 {
            let weight = exp[half] * share[half];
            // Too small for the lanes, but not nothing: it is infinitely far from a masked class.
            let tiny = weight.simd_eq(lanes(0.0)) & logit[half].simd_gt(lanes(f64::NEG_INFINITY));
            shares[k][half] = tiny.select(lanes(f64::from_bits(1)), weight);
        }
    }
    shares
}

/// The weights of a row as its pass asks for them.
pub(super) struct RowWeights<'a> {
    pub(super) dense: Dense<'a>,
    /// Sum of what [`Dense::fill`] returned.
    pub(super) sum: f64,
}

impl<S: Simd> Weights<S> for RowWeights<'_> {
    #[inline(always)]
    fn fill(&mut self, simd: S, start: usize, length: usize, block: &mut [f64]) {
        self.sum += self.dense.fill(simd, start, length, block);
    }

    #[inline(always)]
    fn merge(&mut self, other: Self) {
        self.sum += other.sum;
    }
}
