//! The gradient of rows of which a shard of the classes is here: from the log-sum-exps over all classes, which the shards found
//! together.
//!
//! With `p = exp(z − lse)` a gradient needs nothing of the other shards but lse, and one pass. The exponentials are relative to a
//! logit whose z is lse, or a little less; where the target's own class holds much of the mass, to that one's, so that what is
//! missing to one is `exp(lse − z) − 1` over `exp(lse − z)` and no difference.

use std::ops::Range;

use fearless_simd::Simd;

use super::rows::scales;
use super::targets::Problem;
use super::{Check, Chunks, Derivatives, GradOutput, Reduction, store_policy};
use crate::array::{Array, RowsMut};
use crate::element::Element;
use crate::error::Result;
use crate::kernel::finish::{HALF, MOST_LANES, PerLane, load, store};
use crate::math::{Real, exp_minus_one, two_sum};
use crate::row::batch::{self, Spreads, Targets};
use crate::row::{Dense, LogSumExps, Source, find_point, gradient, log_sum_exp};
use crate::rows::StorePolicy;
use crate::simd::{self, Kernel};

/// `exp(lse − z)` is taken as no more than that of this: of classes that are less likely nothing is left.
const FARTHEST: f64 = 682.0;

/// What its rounding makes of lse at most, as a share.
const ROUNDING: f64 = f64::EPSILON / 2.0;

/// From here on that is more than the digits of a probability in float32.
const LARGE: f64 = 1e8;

/// What is known of rows of which there is a shard.
#[derive(Debug)]
pub struct Shard<'a> {
    /// The problem of all classes, whose targets are classes.
    pub problem: Problem<'a>,
    /// How many classes there are in all shards.
    pub classes: usize,
    /// The first class of this one.
    pub offset: usize,
    /// `lse` of each row, over all classes.
    pub log_sum_exps: Vec<f64>,
}

/// Write the gradient of the reduced loss with respect to the logits of a shard.
///
/// # Errors
/// What `check` returned.
///
/// # Panics
/// If the arrays do not fit.
pub fn shard_gradient(
    logits: &Array,
    shard: &Shard,
    reduction: Reduction,
    denominator: Option<f64>,
    derivatives: &mut Derivatives,
    check: Check,
) -> Result<()> {
    let (rows, classes) = (logits.rows(), logits.classes());
    let problem = &shard.problem;
    problem.assert_fits(rows, shard.classes);
    assert!(classes <= shard.classes && shard.offset <= shard.classes - classes);
    assert_eq!(shard.log_sum_exps.len(), rows);
    let divisor = reduction.divisor(denominator, || problem.weight_sum(rows));
    // The shares of all classes, which targets with label smoothing have.
    let weights = problem.share_weight_sum().unwrap_or(shard.classes as f64);
    let spread = problem.label_smoothing / shard.classes as f64 * weights;
    let chunks = Chunks::of_rows(logits);
    let dtype = derivatives.gradient.dtype();
    let (out, _, grad_output) = derivatives.open([rows, classes], rows, dtype);
    let (Some(out), Some(grad_output)) = (out, grad_output) else { unreachable!("there is a gradient") };
    let stores = store_policy(logits, out);
    let parts = out.parts(chunks.ranges());
    let level = simd::level();
    chunks.map(logits.dtype().size() + 2 * dtype.size(), check, |chunk| {
        let (range, out) = (chunks.rows_of(chunk), parts.take(chunk));
        level.run(Work { range, logits, shard, divisor, spread, grad_output, out, stores });
    })?;
    Ok(())
}

/// The work on a chunk of rows.
struct Work<'a> {
    range: Range<usize>,
    logits: &'a Array<'a>,
    shard: &'a Shard<'a>,
    divisor: f64,
    /// What all classes together have of a target beside its own class.
    spread: f64,
    grad_output: &'a GradOutput<'a>,
    out: RowsMut<'a>,
    stores: StorePolicy,
}

impl Kernel for Work<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        let is_double = self.logits.dtype().is_double();
        for first in self.range.clone().step_by(MOST_LANES) {
            let rows = first..self.range.end.min(first + MOST_LANES);
            if is_double { self.batch::<S, f64>(simd, rows) } else { self.batch::<S, f32>(simd, rows) }
        }
        if self.stores == StorePolicy::NonTemporal {
            simd::store_fence();
        }
    }
}

impl<'a> Work<'a> {
    /// The gradients of some rows, no more than there are lanes, that compute in `R`.
    #[inline(never)]
    fn batch<S: Simd, R: Real + Element<Real = R>>(&mut self, simd: S, rows: Range<usize>) {
        simd.vectorize(
            #[inline(always)]
            || {
                let shard: &'a Shard = self.shard;
                let Shard { problem, classes, .. } = shard;
                let first = rows.start;
                let mut targets = Targets::none(rows.len(), self.dense(first));
                problem.set(first, *classes, &mut targets);
                if self.divisor == 0.0 {
                    targets.counts = [0.0; MOST_LANES];
                }
                let found = self.log_sum_exps::<S, R>(simd, first, &mut targets);
                let spreads = Spreads::of_mass(self.spread);
                let losses = batch::losses(simd, &found, &targets, &spreads, problem.transform);
                let scales = scales(simd, problem, self.grad_output, self.divisor, rows.clone());
                let slopes = batch::slopes(simd, &losses, &targets, &scales, problem.transform);
                for (lane, number) in rows.enumerate() {
                    let (row, out) = (self.logits.row(number), self.out.row(number));
                    gradient::<S, R>(simd, lane, row, out, &targets, &slopes, problem.transform, self.stores);
                }
            },
        );
    }

    /// What label smoothing gives the classes of the shard, if their weights differ.
    fn dense(&self, first: usize) -> Option<Dense<'a>> {
        let shard: &'a Shard = self.shard;
        let Shard { problem, classes, offset, .. } = shard;
        let weight = problem.weight.as_ref().filter(|_| problem.label_smoothing != 0.0)?;
        let here = self.logits.classes();
        Some(Dense {
            source: Source::Nothing,
            row: first,
            classes: here,
            keep: 1.0 - problem.label_smoothing,
            uniform: problem.label_smoothing / *classes as f64,
            weight: Some(&weight[*offset..offset + here]),
        })
    }

    /// The log-sum-exps of some rows over all classes, as parts of which exponentials are made; the classes of the targets become
    /// those of the shard, and none where they are elsewhere.
    #[inline(always)]
    fn log_sum_exps<S: Simd, R: Real + Element<Real = R>>(
        &self,
        simd: S,
        first: usize,
        targets: &mut Targets,
    ) -> LogSumExps {
        let mut found = LogSumExps::default();
        let mut distances: [PerLane<f64>; 2] = [[0.0; MOST_LANES]; 2];
        for lane in 0..targets.rows {
            if targets.counts[lane] == 0.0 {
                continue;
            }
            let row = self.logits.row(first + lane);
            let here = targets.points.class[lane].checked_sub(self.shard.offset).filter(|own| *own < row.classes());
            let own = here.map(|own| row.get(own));
            targets.points.logit[lane] = own.unwrap_or(0.0);
            let lse = self.shard.log_sum_exps[first + lane];
            let distance = |logit: f64| self.distance(simd, lse, logit);
            let reference = own.filter(|logit| distance(*logit)[0] < 1.0);
            let reference = reference.unwrap_or_else(|| self.reference::<S, R>(simd, first + lane, lse));
            let [high, low] = distance(reference);
            found.reference[lane] = reference;
            // Of a row without mass, or with a NaN or +∞, everything is NaN.
            found.own[lane] = if lse.is_finite() { 1.0 } else { f64::NAN };
            let is_far = !(0.0..FARTHEST).contains(&high);
            distances[0][lane] = high.clamp(0.0, FARTHEST);
            distances[1][lane] = if is_far { 0.0 } else { low };
            // No class is that one.
            targets.points.class[lane] = here.unwrap_or(usize::MAX);
            if here.is_some() {
                find_point::<S, R>(simd, lane, row, &found, targets);
            }
        }
        for half in (0..targets.rows).step_by(HALF) {
            let [others, _] = exp_minus_one(simd, distances.each_ref().map(|parts| load(simd, parts, half)));
            store(others, &mut found.others, half);
        }
        found
    }

    /// `lse − z` of a logit as a sum of two; 0 where lse is so large that its own rounding is all that it is.
    #[inline(always)]
    fn distance<S: Simd>(&self, simd: S, lse: f64, logit: f64) -> [f64; 2] {
        let [high, low] = self.shard.problem.transform.difference(simd, logit, 0.0);
        let [distance, lost] = two_sum(lse, -high);
        if !distance.is_finite() {
            return [distance, 0.0];
        }
        let distance = two_sum(distance, lost - low);
        let is_nothing = lse.abs() > LARGE && distance[0].abs() <= lse.abs() * ROUNDING;
        if is_nothing { [0.0; 2] } else { distance }
    }

    /// A logit that none of a row exceeds by much, whose z is lse or a little less.
    fn reference<S: Simd, R: Real + Element<Real = R>>(&self, simd: S, row: usize, lse: f64) -> f64 {
        let transform = self.shard.problem.transform;
        if transform.softcap().is_some() || lse.abs() > LARGE {
            // No logit has a z above the cap, and a logit that is near lse may be far from every one: the largest one here.
            return log_sum_exp::<S, R>(simd, self.logits.row(row), transform).reference;
        }
        let largest = -Real::to_f64(R::LOWEST);
        let wanted = (lse * transform.temperature()).clamp(-largest, largest);
        let nearest = Real::to_f64(<R as Real>::from_f64(wanted));
        if nearest <= wanted + wanted.abs() * 4.0 * ROUNDING || wanted.is_nan() {
            return nearest;
        }
        if R::LANES == f32::LANES { f64::from((nearest as f32).next_down()) } else { nearest.next_down() }
    }
}
