//! The work on a chunk of rows of a softmax loss: what it needs, and how it is done row by row by the kernels that look for the
//! maximum. What goes by the kernels that do not is in `class_targets.rs` and `options.rs`.

use std::ops::Range;

use fearless_simd::Simd;

use super::listed::{Batch, Others};
use super::plan::Plan;
use super::targets::{self, Problem};
use super::ways::BATCH_BYTES;
use super::{Found, GradOutput};
use crate::array::{Array, RowsMut};
use crate::element::Element;
use crate::kernel::finish::{MOST_LANES, PerLane};
use crate::math::Real;
use crate::row::batch::{self, Losses, Slopes, Spreads, Targets, sum_of_lanes};
use crate::row::{LogSumExps, find_point, gradient, product, weigh_infinities};
use crate::rows::StorePolicy;
use crate::simd::{self, Kernel};

/// Add the losses of the rows from number `first` of a chunk on: by these numbers, wherever a batch begins, so that the layout
/// changes no bit.
#[inline(always)]
pub(super) fn add_by_row(sum: &mut PerLane<f64>, first: usize, losses: &[f64]) {
    let first = first % MOST_LANES;
    if let (0, Ok(losses)) = (first, <&PerLane<f64>>::try_from(losses)) {
        for (sum, loss) in sum.iter_mut().zip(losses) {
            *sum += loss;
        }
        return;
    }
    for (lane, loss) in losses.iter().enumerate() {
        sum[(first + lane) % MOST_LANES] += loss;
    }
}

/// By what the derivatives of some rows are multiplied; if that were divided by 0, by 0.
#[inline(never)]
pub(super) fn scales<S: Simd>(
    simd: S,
    problem: &Problem,
    grad_output: &GradOutput,
    divisor: f64,
    rows: Range<usize>,
) -> PerLane<f64> {
    simd.vectorize(
        #[inline(always)]
        || {
            let mut scales = [0.0; MOST_LANES];
            if divisor == 0.0 {
                return scales;
            }
            if let (GradOutput::Scalar(scale), None) = (grad_output, &problem.sample_weight) {
                scales[..rows.len()].fill(scale / divisor);
                return scales;
            }
            grad_output.read(simd, rows.start, &mut scales[..rows.len()]);
            if let Some(weight) = &problem.sample_weight {
                for (scale, weight) in scales.iter_mut().zip(&weight[rows]) {
                    *scale *= weight;
                }
            }
            for scale in &mut scales {
                *scale /= divisor;
            }
            scales
        },
    )
}

/// The work on a chunk of rows.
pub(super) struct Rows<'a> {
    pub(super) range: Range<usize>,
    pub(super) logits: &'a Array<'a>,
    pub(super) problem: &'a Problem<'a>,
    pub(super) divisor: f64,
    /// The sum of the class weights, if shares are multiplied by them.
    pub(super) weight_sum: Option<f64>,
    pub(super) losses: Option<RowsMut<'a>>,
    pub(super) gradient: Option<RowsMut<'a>>,
    pub(super) hessian: Option<RowsMut<'a>>,
    pub(super) grad_output: Option<&'a GradOutput<'a>>,
    /// Whether the gradient is written over the logits, and so after the Hessian.
    pub(super) gradient_last: bool,
    /// How the gradient and the Hessian are stored.
    pub(super) store: [StorePolicy; 2],
    /// The classes that the targets of a batch list.
    pub(super) listed: Batch<'a>,
}

impl Kernel for Rows<'_> {
    type Output = Found<f64>;

    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) -> Found<f64> {
        let is_double = self.logits.dtype().is_double();
        let sum = if let targets::Targets::Divergence(teacher, kind) = &self.problem.targets {
            let mut sum = [0.0; MOST_LANES];
            self.divergences(simd, teacher, *kind, &mut sum);
            Ok(sum_of_lanes(&sum))
        } else if is_double {
            self.batches::<S, f64>(simd)
        } else {
            self.batches::<S, f32>(simd)
        };
        if self.store.contains(&StorePolicy::NonTemporal) {
            simd::store_fence();
        }
        sum
    }
}

impl Rows<'_> {
    /// The work on logits that compute in `R`, batch by batch.
    #[inline(always)]
    fn batches<S: Simd, R: Real + Element<Real = R>>(&mut self, simd: S) -> Found<f64> {
        let mut sum = [0.0; MOST_LANES];
        let Range { start: mut first, end } = self.range;
        match Plan::<R>::new::<S>(self.problem, self.logits.classes(), self.weight_sum) {
            Some(plan) => {
                if let (Some(labels), Some(scale)) = (plan.plain(), self.scale_of_pairs::<S, R>(&plan)) {
                    self.pairs(simd, &plan, labels, scale, &mut sum)?;
                    return Ok(sum_of_lanes(&sum));
                }
                while first < end {
                    first += self.planned_rows(simd, &plan, first, &mut sum)?;
                }
            }
            None => self.careful_batches::<S, R>(simd, first..end, &mut sum)?,
        }
        Ok(sum_of_lanes(&sum))
    }

    /// [`Self::careful_batches`] of any logits.
    #[inline(always)]
    pub(super) fn careful_any<S: Simd>(&mut self, simd: S, rows: Range<usize>, sum: &mut PerLane<f64>) -> Found<()> {
        if self.logits.dtype().is_double() {
            self.careful_batches::<S, f64>(simd, rows, sum)
        } else {
            self.careful_batches::<S, f32>(simd, rows, sum)
        }
    }

    /// Work on rows of logits that compute in `R` by the kernels that look for the maximum first.
    #[inline(never)]
    pub(super) fn careful_batches<S: Simd, R: Real + Element<Real = R>>(
        &mut self,
        simd: S,
        rows: Range<usize>,
        sum: &mut PerLane<f64>,
    ) -> Found<()> {
        let classes = self.logits.classes();
        let row_bytes = classes.saturating_mul(self.logits.dtype().size());
        let together = (BATCH_BYTES / row_bytes.max(1)).clamp(1, R::LANES);
        simd.vectorize(
            #[inline(always)]
            || {
                for first in rows.clone().step_by(together) {
                    let count = together.min(rows.end - first);
                    let teacher = self.problem.teacher::<S, R>(simd, first..first + count);
                    let dense = self.problem.dense(first, classes, teacher.as_ref());
                    let mut targets = Targets::none(count, dense);
                    self.problem.set(first, classes, &mut targets);
                    let losses = self.rows::<S, R>(simd, first, &mut targets)?;
                    add_by_row(sum, first - self.range.start, &losses[..count]);
                }
                Ok(())
            },
        )
    }

    /// The losses of rows, each with its classes across lanes, and their derivatives if they are asked for.
    #[inline(always)]
    fn rows<S: Simd, R: Real + Element<Real = R>>(
        &mut self,
        simd: S,
        first: usize,
        targets: &mut Targets,
    ) -> Found<PerLane<f64>> {
        let transform = self.problem.transform;
        let (mut found, mut spreads) = (LogSumExps::default(), Spreads::default());
        for lane in 0..targets.rows {
            let Some(target) = targets.get(lane) else { continue };
            let row = self.logits.row(first + lane);
            if targets.names_classes {
                targets.points.logit[lane] = row.get(targets.points.class[lane]);
            }
            target.pass::<S, R>(simd, row, transform, lane, &mut found, &mut spreads);
        }
        self.look_at(simd, first, targets, &spreads)?;
        let mut losses = batch::losses(simd, &found, targets, &spreads, transform);
        weigh_infinities(simd, self.logits, first, targets, transform, &mut losses);
        let counts = &targets.counts[..targets.rows];
        let others = self.careful_divergences::<S, R>(simd, first, counts, &mut losses.loss);
        if let Some(grad_output) = self.grad_output {
            let scales = self.counted_scales(simd, grad_output, first, targets);
            for lane in 0..targets.rows {
                if targets.counts[lane] != 0.0 {
                    find_point::<S, R>(simd, lane, self.logits.row(first + lane), &found, targets);
                }
            }
            let slopes = batch::slopes(simd, &losses, targets, &scales, transform);
            for lane in 0..targets.rows {
                if let Some(others) = others[lane].filter(|_| targets.counts[lane] != 0.0) {
                    self.write_listed_gradient::<S, R>(simd, first + lane, &others, scales[lane]);
                    continue;
                }
                // What overwrites the row is written last.
                if !self.gradient_last {
                    self.write_gradient::<S, R>(simd, first, lane, targets, &slopes);
                }
                self.write_hessian::<S, R>(simd, first, lane, targets, &losses, scales[lane]);
                if self.gradient_last {
                    self.write_gradient::<S, R>(simd, first, lane, targets, &slopes);
                }
            }
        }
        Ok(self.finish(first, targets, losses.loss))
    }

    /// Make divergences of the cross-entropies of rows from `first` on with their listed classes, for those that count; what is
    /// known of the classes that are not listed, where these weigh something.
    #[inline(never)]
    fn careful_divergences<S: Simd, R: Real + Element<Real = R>>(
        &self,
        simd: S,
        first: usize,
        counts: &[f64],
        losses: &mut PerLane<f64>,
    ) -> PerLane<Option<Others>> {
        let mut others = [None; MOST_LANES];
        let targets::Targets::Listed(listed) = &self.problem.targets else { return others };
        let Some(least) = listed.divergence() else { return others };
        for (lane, _) in counts.iter().enumerate().filter(|(_, counts)| **counts != 0.0) {
            let of = listed.row(first + lane);
            let mut loss = losses[lane] + of.offset;
            if of.left > 0.0 {
                let row = self.logits.row(first + lane);
                let found = Others::of::<S, R>(simd, row, &of, self.problem.transform);
                loss += product(of.left, found.missed);
                others[lane] = Some(found);
            }
            losses[lane] = if loss < least { least } else { loss };
        }
        others
    }

    /// Write the gradient of a row in which the classes that are not listed weigh something.
    #[inline(never)]
    fn write_listed_gradient<S: Simd, R: Real + Element<Real = R>>(
        &mut self,
        simd: S,
        row: usize,
        others: &Others,
        scale: f64,
    ) {
        let (Some(out), targets::Targets::Listed(listed)) = (&mut self.gradient, &self.problem.targets) else { return };
        let (logits, transform) = (self.logits.row(row), self.problem.transform);
        let scale = scale / transform.temperature();
        others.write_gradient::<S, R>(simd, logits, out.row(row), &listed.row(row), scale, transform, self.store[0]);
    }

    /// Look for a bad probability, if the pass over some rows read one: it may be in a row that does not count.
    #[inline(always)]
    fn look_at<S: Simd>(&self, simd: S, first: usize, targets: &Targets, spreads: &Spreads) -> Found<()> {
        if spreads.have_bad_probabilities() {
            return self.problem.look_at(simd, first..first + targets.rows, self.logits.classes());
        }
        Ok(())
    }

    /// [`scales`] of rows, of which none counts any more if these are divided by 0.
    #[inline(always)]
    fn counted_scales<S: Simd>(
        &self,
        simd: S,
        grad_output: &GradOutput,
        first: usize,
        targets: &mut Targets,
    ) -> PerLane<f64> {
        if self.divisor == 0.0 {
            targets.counts = [0.0; MOST_LANES];
        }
        scales(simd, self.problem, grad_output, self.divisor, first..first + targets.rows)
    }

    /// The losses of some rows, weighted and written.
    #[inline(always)]
    fn finish(&mut self, first: usize, targets: &Targets, mut losses: PerLane<f64>) -> PerLane<f64> {
        let rows = targets.rows;
        if self.problem.sample_weight.is_some() {
            for (lane, loss) in losses[..rows].iter_mut().enumerate() {
                // What the weight of an ignored row is does not matter.
                if targets.counts[lane] != 0.0 {
                    *loss = product(self.problem.sample_weight(first + lane), *loss);
                }
            }
        }
        if let Some(out) = &mut self.losses {
            out.set(first, &losses[..rows]);
        }
        losses
    }

    /// Write the gradient of row number `lane`, zeros if it is ignored.
    #[inline(never)]
    fn write_gradient<S: Simd, R: Real + Element<Real = R>>(
        &mut self,
        simd: S,
        first: usize,
        lane: usize,
        targets: &Targets,
        slopes: &Slopes,
    ) {
        simd.vectorize(
            #[inline(always)]
            || {
                let Some(out) = &mut self.gradient else { return };
                let (row, transform) = (self.logits.row(first + lane), self.problem.transform);
                gradient::<S, R>(simd, lane, row, out.row(first + lane), targets, slopes, transform, self.store[0]);
            },
        );
    }

    /// Write the diagonal of the Hessian of row number `lane`, if it is wanted; zeros if the row is ignored.
    #[inline(never)]
    fn write_hessian<S: Simd, R: Real + Element<Real = R>>(
        &mut self,
        simd: S,
        first: usize,
        lane: usize,
        targets: &Targets,
        losses: &Losses,
        scale: f64,
    ) {
        simd.vectorize(
            #[inline(always)]
            || {
                let Some(out) = &mut self.hessian else { return };
                let mut out = out.row(first + lane);
                if targets.counts[lane] == 0.0 {
                    return out.fill(0.0);
                }
                let (row, transform) = (self.logits.row(first + lane), self.problem.transform);
                losses.get(lane, targets).hessian::<S, R>(simd, row, out, scale, transform, self.store[1]);
            },
        );
    }
}
