//! The softmax losses, cross-entropy and divergence, and their gradients.

use std::ops::Range;

use fearless_simd::Simd;

use super::options::Plan;
use super::targets::Problem;
use super::{Check, Chunks, Derivatives, Found, GradOutput, Reduction, mean, store_policy};
use crate::array::{Array, ArrayMut, RowsMut};
use crate::element::Element;
use crate::error::Result;
use crate::math::Real;
use crate::parallel::map_chunks;
use crate::row::batch::{self, LogSumExps, Losses, MOST_LANES, PerLane, Slopes, Spreads, Targets, sum_of_lanes};
use crate::row::tile::BATCH_BYTES;
use crate::row::{find_point, gradient, product, weigh_infinities};
use crate::rows::StorePolicy;
use crate::simd::{self, Kernel};

/// The reduced loss (the sum, if there is no reduction), with each row's loss and the derivatives written where asked.
///
/// An ignored row has loss 0 and derivatives 0, whatever it holds. `denominator` replaces the divisor of the mean.
///
/// # Errors
/// [`crate::error::Error::Value`] for a probability that is none in a row that counts; nothing of the caller's was written
/// then. What `check` returned.
///
/// # Panics
/// If the arrays do not fit.
pub fn cross_entropy(
    logits: &Array,
    problem: &Problem,
    reduction: Reduction,
    denominator: Option<f64>,
    losses: Option<&mut ArrayMut>,
    derivatives: Option<&mut Derivatives>,
    check: Check,
) -> Result<f64> {
    let (rows, classes) = (logits.rows(), logits.classes());
    problem.assert_fits(rows, classes);
    let divisor = reduction.divisor(denominator, || problem.weight_sum(rows));
    let chunks = Chunks::of_rows(logits);
    if derivatives.as_ref().is_some_and(|derivatives| derivatives.given) {
        problem.look_at_all(&chunks, classes, check)?;
    }
    let out_dtype = derivatives.as_ref().map_or(logits.dtype(), |derivatives| derivatives.gradient.dtype());
    let (gradient, hessian, grad_output) =
        derivatives.map_or((None, None, None), |derivatives| derivatives.open([rows, classes], rows, out_dtype));
    let outputs = usize::from(gradient.is_some()) + usize::from(hessian.is_some());
    let traffic = logits.dtype().size() + outputs * 2 * out_dtype.size();
    let store = [gradient.as_deref(), hessian.as_deref()]
        .map(|out| out.map_or(StorePolicy::Cached, |out| store_policy(logits, out)));
    let gradient_last = gradient.as_ref().is_some_and(|gradient| gradient.begins_with(logits));
    let losses = losses.map(|out| out.parts(chunks.ranges()));
    let gradient = gradient.map(|out| out.parts(chunks.ranges()));
    let hessian = hessian.map(|out| out.parts(chunks.ranges()));
    let level = simd::level();
    let sums = map_chunks(chunks.count(), chunks.bytes(classes, traffic), check, |chunk| {
        level.run(Rows {
            range: chunks.rows_of(chunk),
            logits,
            problem,
            divisor,
            losses: losses.as_ref().map(|parts| parts.take(chunk)),
            gradient: gradient.as_ref().map(|parts| parts.take(chunk)),
            hessian: hessian.as_ref().map(|parts| parts.take(chunk)),
            grad_output,
            gradient_last,
            store,
        })
    })?;
    Ok(mean(problem.checked(sums.into_iter().collect::<Found<_>>())?, divisor))
}

/// Add the losses of the rows from number `first` of a chunk on: by these numbers, wherever a batch begins, so that the layout
/// changes no bit.
#[inline(always)]
pub(super) fn add_by_row(sum: &mut PerLane<f64>, first: usize, losses: &[f64]) {
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
    pub(super) losses: Option<RowsMut<'a>>,
    pub(super) gradient: Option<RowsMut<'a>>,
    pub(super) hessian: Option<RowsMut<'a>>,
    pub(super) grad_output: Option<&'a GradOutput<'a>>,
    /// Whether the gradient is written over the logits, and so after the Hessian.
    pub(super) gradient_last: bool,
    /// How the gradient and the Hessian are stored.
    pub(super) store: [StorePolicy; 2],
}

impl Kernel for Rows<'_> {
    type Output = Found<f64>;

    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) -> Found<f64> {
        let is_double = self.logits.dtype().is_double();
        let sum = if is_double { self.batches::<S, f64>(simd) } else { self.batches::<S, f32>(simd) };
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
        match Plan::<R>::new::<S>(self.problem, self.logits.classes()) {
            Some(plan) => {
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
        if let Some(grad_output) = self.grad_output {
            let scales = self.counted_scales(simd, grad_output, first, targets);
            for lane in 0..targets.rows {
                if targets.counts[lane] != 0.0 {
                    find_point::<S, R>(simd, lane, self.logits.row(first + lane), &found, targets);
                }
            }
            let slopes = batch::slopes(simd, &losses, targets, &scales, transform);
            for lane in 0..targets.rows {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::array::Layout;
    use crate::dtype::Dtype;
    use crate::loss::labels::Labels;
    use crate::loss::targets::Targets;
    use crate::row::Transform;

    /// Where `rows` rows of `classes` classes lie, the classes side by side or the rows, and their class axis.
    fn strides(rows: usize, classes: usize, across: bool) -> [isize; 2] {
        if across { [8, 8 * rows as isize] } else { [8 * classes as isize, 8] }
    }

    /// By rows, by tiles that are transposed, by tiles in place, with rows left over, in place and apart.
    #[test]
    fn rows_and_tiles_agree_with_the_formula() {
        let rows = 37;
        for (classes, across) in
            [(1, false), (2, false), (10, false), (127, true), (128, false), (128, true), (300, true)]
        {
            let logit = |row: usize, class: usize| ((row * 31 + class * 17) % 23) as f64 / 3.0 - 4.0;
            let place = |row: usize, class: usize| if across { class * rows + row } else { row * classes + class };
            let mut logits = vec![0.0; rows * classes];
            for row in 0..rows {
                for class in 0..classes {
                    logits[place(row, class)] = logit(row, class);
                }
            }
            let targets: Vec<i64> =
                (0..rows).map(|row| if row % 7 == 3 { -100 } else { (row * 5 % classes) as i64 }).collect();
            let labels = Labels::read("targets", &Array::of(&targets, 1), classes, Some(-100), &|| Ok(())).unwrap();
            let weights: Vec<f64> = (0..classes).map(|class| 0.5 + (class % 3) as f64).collect();
            for (softcap, weight, smoothing) in [
                (None, false, 0.0),
                (Some(3.0), false, 0.0),
                (None, true, 0.2),
                (Some(3.0), true, 0.2),
                (None, false, 0.2),
            ] {
                let problem = Problem {
                    transform: Transform::new(0.5, softcap),
                    weight: weight.then(|| weights.clone()),
                    label_smoothing: smoothing,
                    ..Problem::new(Targets::Classes(labels.clone()))
                };
                let case = format!("C={classes} {across} {softcap:?} {weight} {smoothing}");
                let capped = |x: f64| softcap.map_or(x, |cap: f64| cap * (x / cap).tanh());
                let slope = |x: f64| softcap.map_or(1.0, |cap: f64| 1.0 - (x / cap).tanh().powi(2)) / 0.5;
                for in_place in [false, true] {
                    let (mut input, mut output) = (logits.clone(), vec![f64::NAN; rows * classes]);
                    let (shape, strides) = ([rows, classes], strides(rows, classes, across));
                    let layout = |values: &mut Vec<f64>| {
                        let base = values.as_mut_ptr().cast();
                        Layout { base, dtype: Dtype::F64, swapped: false, shape: &shape, strides: &strides }
                    };
                    let source = layout(&mut input);
                    let out = if in_place { source } else { layout(&mut output) };
                    // SAFETY: the layouts are those of vectors of this test; the gradient is written over the logits or to
                    // a vector of its own.
                    let (source, gradient) = unsafe { (Array::new(&source, Some(1)), ArrayMut::new(&out, Some(1))) };
                    let mut derivatives =
                        Derivatives { gradient, hessian: None, grad_output: GradOutput::Scalar(3.0), given: true };
                    let derivatives = Some(&mut derivatives);
                    let loss =
                        cross_entropy(&source, &problem, Reduction::Sum, None, None, derivatives, &|| Ok(())).unwrap();
                    let found = if in_place { &input } else { &output };
                    let mut expected = 0.0;
                    for (row, &target) in targets.iter().enumerate() {
                        let z: Vec<f64> = (0..classes).map(|class| capped(logit(row, class)) / 0.5).collect();
                        let log_sum = z.iter().map(|z| z.exp()).sum::<f64>().ln();
                        let class = usize::try_from(target).ok();
                        let share = |other: usize| {
                            let point = if class == Some(other) { 1.0 - smoothing } else { 0.0 };
                            (point + smoothing / classes as f64) * if weight { weights[other] } else { 1.0 }
                        };
                        let mass: f64 = (0..classes).map(share).sum();
                        for (other, z) in z.iter().enumerate() {
                            let counts = f64::from(class.is_some());
                            expected += counts * share(other) * (log_sum - z);
                            let gradient = mass * (z - log_sum).exp() - share(other);
                            let expected = counts * 3.0 * gradient * slope(logit(row, other));
                            let found = found[place(row, other)];
                            assert!((found - expected).abs() < 1e-12, "{case} row {row}: {found} {expected}");
                        }
                    }
                    assert!((loss - expected).abs() < 1e-10, "{case}: {loss} {expected}");
                }
            }
        }
    }
}
