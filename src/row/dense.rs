//! Targets that give every class of a row its own weight: probabilities, smoothed or weighted, or the softmax of a
//! teacher's logits. Kernels know no more of them than a block of weights in f64, written where they ask for it.

use fearless_simd::{Simd, f64x8, prelude::*};

use super::companion::{Nothing, Weights};
use super::log_sum_exp::any_pass;
use super::transform::{Scale, Value, with_uncapped_mode};
use super::{AnyRow, BLOCK, LogSumExp, Transform};
use crate::math::{Boost, Real, Total, vectors_at_a_time};
use crate::numbers::Numbers;

/// `weight·(keep·p + uniform)` for every class of a row, p being the source's.
#[derive(Clone, Copy, Debug)]
pub struct Dense<'a> {
    /// The probabilities p.
    pub source: Source<'a>,
    /// What is left of them.
    pub keep: f64,
    /// What every class gets instead.
    pub uniform: f64,
    /// A weight for every class.
    pub weight: Option<&'a [f64]>,
}

/// Where the probabilities of a row come from.
#[derive(Clone, Copy, Debug)]
pub enum Source<'a> {
    /// There are none.
    Nothing,
    /// Numbers, from this one on.
    Numbers(&'a Numbers, usize),
    /// The softmax of logits.
    Softmax(Teacher),
}

/// A row of logits whose softmax is the target.
#[derive(Clone, Copy, Debug)]
pub struct Teacher {
    row: AnyRow,
    log_sum_exp: LogSumExp,
    log_total: f64,
    transform: Transform,
    /// Whether it computes in f64.
    double: bool,
}

impl Teacher {
    /// The softmax of a row of logits, computed in f64 if they or those of its pupil are.
    #[inline]
    pub fn new<S: Simd>(simd: S, row: AnyRow, transform: Transform, double: bool) -> Self {
        let double = double || row.is_double();
        let log_sum_exp = if double {
            any_pass::<S, f64, _>(simd, row, transform, Nothing).0
        } else {
            any_pass::<S, f32, _>(simd, row, transform, Nothing).0
        };
        Self { row, log_sum_exp, log_total: log_sum_exp.log_total(simd), transform, double }
    }

    /// `ln Σ exp(z − z(reference))` of the teacher.
    pub fn log_total(&self) -> f64 {
        self.log_total
    }
}

impl Dense<'_> {
    /// Write the weights of `length` classes from `start` on and 0 behind them: returns `Σ p·(x − reference)` over a
    /// teacher's logits in units of [`crate::math::UNIT`], 0 for other sources.
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
            Source::Numbers(numbers, first) => {
                numbers.read(simd, first + start, block);
                if self.keep != 1.0 || self.uniform != 0.0 {
                    for weight in &mut *block {
                        *weight = self.keep * *weight + self.uniform;
                    }
                }
            }
            Source::Softmax(teacher) if teacher.double => sum = softmax::<S, f64>(simd, &teacher, start, block),
            Source::Softmax(teacher) => sum = softmax::<S, f32>(simd, &teacher, start, block),
        }
        if let Some(weights) = self.weight {
            for (weight, factor) in block.iter_mut().zip(&weights[start..]) {
                *weight *= factor;
            }
        }
        sum
    }

    /// Whether the probabilities of these rows, of one problem, lie one row after the other, each `length` long and
    /// unweighted: then one read from the first on has them all.
    #[inline(always)]
    pub(super) fn are_neighbours(targets: &[Option<Self>], start: usize, length: usize) -> bool {
        let Some(Some(Self { source: Source::Numbers(_, first), weight: None, .. })) = targets.first() else {
            return false;
        };
        let is_next = |(lane, target): (usize, &Option<Self>)| matches!(target, Some(Self { source: Source::Numbers(_, at), .. }) if *at == first + lane * length);
        start == 0 && targets.iter().enumerate().all(is_next)
    }

    /// The weight of one class.
    #[inline(always)]
    pub(super) fn at<S: Simd>(&self, simd: S, class: usize) -> f64 {
        let mut weight = [0.0];
        self.fill(simd, class, 1, &mut weight);
        weight[0]
    }

    /// `ln Σ exp` of the teacher, 0 for other sources: with [`Self::fill`]'s sums, minus the entropy of the target.
    pub(super) fn log_total(&self) -> f64 {
        if let Source::Softmax(teacher) = self.source { teacher.log_total() } else { 0.0 }
    }

    /// Whether the loss is a divergence, which is never negative.
    pub(super) fn is_softmax(&self) -> bool {
        matches!(self.source, Source::Softmax(_))
    }
}

/// The softmax of some classes of a teacher's row; returns `Σ p·(x − reference)` in units of [`crate::math::UNIT`].
#[inline(never)]
fn softmax<S: Simd, R: Real>(simd: S, teacher: &Teacher, start: usize, block: &mut [f64]) -> f64 {
    let Teacher { row, log_sum_exp, transform, .. } = *teacher;
    simd.vectorize(
        #[inline(always)]
        || {
            let scale = Scale::<S, R>::new(simd, transform);
            let share = super::per_mass(1.0, log_sum_exp.total()) / R::BOOST;
            let (mut logits, mut weights) = ([R::default(); BLOCK], [0.0; BLOCK]);
            row.read(simd, start, block.len(), &mut logits);
            let reference = Value::plain(R::splat(simd, log_sum_exp.reference));
            // Some vectors at a time, past the last class too: those are masked.
            let vectors = block.len().div_ceil(4 * R::LANES) * 4;
            let at_a_time = vectors_at_a_time::<S>();
            for first in (0..vectors).step_by(at_a_time) {
                with_uncapped_mode!(transform, MODE => match at_a_time {
                    4 => shares::<S, R, MODE, 4>(simd, &scale, &logits, first, reference, share, &mut weights),
                    2 => shares::<S, R, MODE, 2>(simd, &scale, &logits, first, reference, share, &mut weights),
                    _ => shares::<S, R, MODE, 1>(simd, &scale, &logits, first, reference, share, &mut weights),
                });
            }
            let mut sum = Total::zero(simd);
            for (weights, logits) in weights.chunks_exact(R::LANES).zip(logits.chunks_exact(R::LANES)).take(vectors) {
                let value = R::twice(R::Lanes::<S>::from_slice(simd, logits));
                R::add_weighted(simd, &mut sum, weights, value, reference.twice());
            }
            block.copy_from_slice(&weights[..block.len()]);
            sum.value()
        },
    )
}

/// Write `exp(z − z(reference))·share` of `K` vectors of logits from number `first` on.
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
    let lanes = |value: f64| f64x8::splat(simd, value);
    let mut x = [R::splat(simd, 0.0); K];
    let mut values = [reference; K];
    for k in 0..K {
        let start = (first + k) * R::LANES;
        x[k] = R::Lanes::<S>::from_slice(simd, &logits[start..start + R::LANES]);
        values[k] = Value::plain(x[k]);
    }
    let exp = scale.exps::<MODE, K>(values, reference, Boost::Full);
    for k in 0..K {
        let (exp, logit) = (R::twice(exp[k]), R::twice(x[k]));
        for half in 0..R::LANES / 8 {
            let weight = exp[half] * lanes(share);
            // Too small for the lanes, but not nothing: it is infinitely far from a masked class.
            let tiny = weight.simd_eq(lanes(0.0)) & logit[half].simd_gt(lanes(f64::NEG_INFINITY));
            let start = (first + k) * R::LANES + 8 * half;
            tiny.select(lanes(f64::from_bits(1)), weight).store_slice(&mut weights[start..start + 8]);
        }
    }
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
}
