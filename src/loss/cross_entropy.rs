//! The softmax losses, cross-entropy and divergence, and their gradients.

use fearless_simd::Simd;

use super::targets::Problem;
use super::{Check, Chunks, Found, GradOutput, Reduction, mean, stores};
use crate::element::Element;
use crate::error::Result;
use crate::math::Real;
use crate::parallel::map_chunks;
use crate::row::batch::{self, LogSumExps, Losses, MOST_LANES, PerLane, Slopes, Spreads, Targets, sum_of_lanes};
use crate::row::tile::{self, AnyTile, Output, Transposed, WeightRoom, batches};
use crate::row::{Stores, fill, find_point, gradient, product, weigh_infinities};
use crate::simd::{self, Kernel};
use crate::view::{Column, Row, View};

/// Where the derivatives go: outputs of the logits' shape, each the logits themselves or apart from them and from each
/// other.
#[derive(Clone, Debug)]
pub struct Derivatives<O> {
    /// The gradient.
    pub gradient: View<O>,
    /// The diagonal of the Hessian, if it is wanted.
    pub hessian: Option<View<O>>,
    /// By what they are multiplied.
    pub grad_output: GradOutput,
    /// Whether one of them is the caller's own memory.
    pub given: bool,
}

/// The reduced loss (the sum, if there is no reduction), with each row's loss and the derivatives written where asked.
///
/// An ignored row has loss 0 and derivatives 0, whatever it holds. `denominator` replaces the divisor of the mean.
///
/// # Errors
/// What `check` returned.
///
/// # Safety
/// The views of `derivatives` were made for outputs: writeable, their rows the logits' rows themselves or apart from
/// them, and nothing else accesses them during the call.
pub unsafe fn cross_entropy<E: Element, O: Element<Real = E::Real>>(
    logits: &View<E>,
    problem: &Problem,
    reduction: Reduction,
    denominator: Option<f64>,
    losses: Option<Column>,
    derivatives: Option<&Derivatives<O>>,
    check: Check,
) -> Result<Found<f64>> {
    let (rows, classes) = (logits.rows(), logits.classes());
    problem.assert_fits(rows, classes);
    let divisor = reduction.divisor(denominator, || problem.weight_sum(rows));
    if let Some(derivatives) = derivatives {
        for out in [Some(&derivatives.gradient), derivatives.hessian.as_ref()].into_iter().flatten() {
            assert_eq!((rows, classes), (out.rows(), out.classes()));
        }
        derivatives.grad_output.assert_fits(rows);
    }
    let chunks = Chunks::of_rows(logits);
    let outputs = derivatives.map_or(0, |derivatives| 1 + usize::from(derivatives.hessian.is_some()));
    let traffic = size_of::<E>() + outputs * 2 * size_of::<O>();
    let stores = derivatives.map_or([Stores::Cached; 2], |derivatives| {
        let hessian = derivatives.hessian.as_ref().map_or(Stores::Cached, |hessian| stores(logits, hessian));
        [stores(logits, &derivatives.gradient), hessian]
    });
    if derivatives.is_some_and(|derivatives| derivatives.given)
        && let Err(bad) = problem.look_at_all(chunks, classes, check)?
    {
        return Ok(Err(bad));
    }
    let level = simd::level();
    let sums = map_chunks(chunks.count(), chunks.bytes(classes, traffic), check, |chunk| {
        level.run(Rows { range: chunks.rows_of(chunk), logits, problem, divisor, losses, derivatives, stores })
    })?;
    Ok(sums.into_iter().collect::<Found<Vec<_>>>().map(|sums| mean(sums, divisor)))
}

/// What the work on a tile needs besides the tile.
struct Room<R: Real> {
    /// For its results.
    results: Transposed<R>,
    weights: Option<WeightRoom>,
}

impl<R: Real + Element<Real = R>> Room<R> {
    fn new() -> Self {
        Self { results: Transposed::uninit(), weights: None }
    }
}

/// The work on a chunk of rows.
struct Rows<'a, E, O> {
    range: std::ops::Range<usize>,
    logits: &'a View<E>,
    problem: &'a Problem,
    divisor: f64,
    losses: Option<Column>,
    derivatives: Option<&'a Derivatives<O>>,
    /// How the gradient and the Hessian are stored.
    stores: [Stores; 2],
}

impl<E: Element, O: Element<Real = E::Real>> Kernel for Rows<'_, E, O> {
    type Output = Found<f64>;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> Found<f64> {
        let sum = self.batches(simd);
        if self.stores.contains(&Stores::Streaming) {
            simd::store_fence();
        }
        sum
    }
}

impl<E: Element, O: Element<Real = E::Real>> Rows<'_, E, O> {
    /// The work, batch by batch.
    #[inline(always)]
    fn batches<S: Simd>(&self, simd: S) -> Found<f64> {
        let mut sum = [0.0; MOST_LANES];
        let (mut loaded, mut teachers, mut room) = (Transposed::uninit(), Transposed::uninit(), Room::new());
        for batch in batches(self.logits, self.range.clone()) {
            let classes = self.logits.classes();
            let teacher = self.problem.teacher(simd, &batch, &mut teachers);
            let mut targets = Targets::none(batch.rows, self.problem.dense(batch.first, classes, teacher.as_ref()));
            self.problem.set(batch.first, classes, &mut targets);
            let losses = match batch.tile(simd, &mut loaded) {
                // SAFETY: the room is not used again for this batch.
                Some(tile) => unsafe { self.tile(simd, batch.first, tile, &mut targets, &mut room)? },
                None => self.rows(simd, batch.first, &mut targets)?,
            };
            // By the number of the row, wherever its batch begins, so that the layout changes no bit.
            let first = batch.first - self.range.start;
            for (lane, loss) in losses[..batch.rows].iter().enumerate() {
                sum[(first + lane) % MOST_LANES] += loss;
            }
        }
        Ok(sum_of_lanes(&sum))
    }

    /// The losses of rows across lanes, and their derivatives if they are asked for.
    ///
    /// # Safety
    /// `tile` is what [`tile::Batch::tile`] returned, and its room has not been used since.
    #[inline(always)]
    unsafe fn tile<S: Simd>(
        &self,
        simd: S,
        first: usize,
        tile: AnyTile,
        targets: &mut Targets,
        room: &mut Room<E::Real>,
    ) -> Found<PerLane<f64>> {
        let transform = self.problem.transform;
        // SAFETY: its values are readable by the caller's promise.
        let (found, spreads) = unsafe {
            if targets.names_classes {
                targets.points.logit = tile.pick::<E>(&targets.points.class);
            }
            tile::pass::<S, E>(simd, tile, targets, transform, &mut room.weights)
        };
        self.look_at(simd, first, targets, &spreads)?;
        let mut losses = batch::losses(simd, &found, targets, &spreads, transform);
        weigh_infinities(simd, self.logits, first, targets, transform, &mut losses);
        if let Some(derivatives) = self.derivatives {
            let scales = self.scales(simd, derivatives, first, targets);
            let over_logits = self.logits.row(first).is_at(derivatives.gradient.row(first));
            // SAFETY: as above. What overwrites the tile is written last.
            unsafe {
                tile::find_points::<S, E::Real>(simd, tile, &found, targets, room.weights.as_ref());
                for is_gradient in [!over_logits, over_logits] {
                    self.write_tile(simd, derivatives, first, tile, targets, &losses, &scales, is_gradient, room);
                }
            }
        }
        Ok(self.finish(first, targets, losses.loss))
    }

    /// The losses of rows, each with its classes across lanes, and their derivatives if they are asked for.
    #[inline(always)]
    fn rows<S: Simd>(&self, simd: S, first: usize, targets: &mut Targets) -> Found<PerLane<f64>> {
        let transform = self.problem.transform;
        let (mut found, mut spreads) = (LogSumExps::default(), Spreads::default());
        for lane in 0..targets.rows {
            let Some(target) = targets.get(lane) else { continue };
            let row = self.logits.row(first + lane);
            if targets.names_classes {
                targets.points.logit[lane] = row.get(targets.points.class[lane]).to_f64();
            }
            target.pass(simd, row, transform, lane, &mut found, &mut spreads);
        }
        self.look_at(simd, first, targets, &spreads)?;
        let mut losses = batch::losses(simd, &found, targets, &spreads, transform);
        weigh_infinities(simd, self.logits, first, targets, transform, &mut losses);
        if let Some(derivatives) = self.derivatives {
            let scales = self.scales(simd, derivatives, first, targets);
            for lane in 0..targets.rows {
                if targets.counts[lane] != 0.0 {
                    find_point(simd, lane, self.logits.row(first + lane), &found, targets);
                }
            }
            let slopes = batch::slopes(simd, &losses, targets, &scales, transform);
            for lane in 0..targets.rows {
                self.write_row(simd, derivatives, first, lane, targets, &losses, &slopes, scales[lane]);
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

    /// By what the derivatives of some rows are multiplied. If that were divided by 0, none of the rows counts any more.
    #[inline(always)]
    fn scales<S: Simd>(
        &self,
        simd: S,
        derivatives: &Derivatives<O>,
        first: usize,
        targets: &mut Targets,
    ) -> PerLane<f64> {
        let (rows, mut scales) = (targets.rows, [0.0; MOST_LANES]);
        if self.divisor == 0.0 {
            targets.counts = scales;
            return scales;
        }
        derivatives.grad_output.read(simd, first, &mut scales[..rows]);
        if let Some(weight) = &self.problem.sample_weight {
            for (scale, weight) in scales[..rows].iter_mut().zip(&weight[first..]) {
                *scale *= weight;
            }
        }
        for scale in &mut scales {
            *scale /= self.divisor;
        }
        scales
    }

    /// The losses of some rows, weighted and written.
    #[inline(always)]
    fn finish(&self, first: usize, targets: &Targets, mut losses: PerLane<f64>) -> PerLane<f64> {
        let rows = targets.rows;
        if self.problem.sample_weight.is_some() {
            for (lane, loss) in losses[..rows].iter_mut().enumerate() {
                // What the weight of an ignored row is does not matter.
                if targets.counts[lane] != 0.0 {
                    *loss = product(self.problem.sample_weight(first + lane), *loss);
                }
            }
        }
        if let Some(column) = self.losses {
            // SAFETY: this chunk alone works on its rows.
            unsafe { column.set(first, &losses[..rows]) }
        }
        losses
    }

    /// Write the derivatives of row number `lane`, zeros if it is ignored.
    #[inline(always)]
    #[allow(clippy::too_many_arguments)] // what `rows` has found
    fn write_row<S: Simd>(
        &self,
        simd: S,
        derivatives: &Derivatives<O>,
        first: usize,
        lane: usize,
        targets: &Targets,
        losses: &Losses,
        slopes: &Slopes,
        scale: f64,
    ) {
        let (row, out) = (self.logits.row(first + lane), derivatives.gradient.row(first + lane));
        let hessian = derivatives.hessian.as_ref().map(|hessian| hessian.row(first + lane));
        let transform = self.problem.transform;
        // SAFETY: the promise made to `cross_entropy`, and this chunk alone works on its rows. What overwrites the row
        // is written last.
        unsafe {
            for is_gradient in [!row.is_at(out), row.is_at(out)] {
                if is_gradient {
                    gradient(simd, lane, row, out, targets, slopes, transform, self.stores[0]);
                } else if let Some(hessian) = hessian {
                    self.write_hessian(simd, lane, row, hessian, targets, losses, scale);
                }
            }
        }
    }

    /// Write the diagonal of the Hessian of row number `lane`, zeros if it is ignored.
    ///
    /// # Safety
    /// As for [`gradient`].
    #[inline(always)]
    #[allow(clippy::too_many_arguments)] // a row of some, and how its Hessian is written
    unsafe fn write_hessian<S: Simd>(
        &self,
        simd: S,
        lane: usize,
        row: Row<E>,
        out: Row<O>,
        targets: &Targets,
        losses: &Losses,
        scale: f64,
    ) {
        // SAFETY: the caller's promise.
        unsafe {
            if targets.counts[lane] == 0.0 {
                fill(out, O::from_f64(0.0));
                return;
            }
            losses.get(lane, targets).hessian(simd, row, out, scale, self.problem.transform, self.stores[1]);
        }
    }

    /// Write the gradients of a tile of rows, or the diagonals of their Hessians.
    ///
    /// # Safety
    /// The tile's values are readable, until they are overwritten by what is written.
    #[inline(always)]
    #[allow(clippy::too_many_arguments)] // what `tile` has found
    unsafe fn write_tile<S: Simd>(
        &self,
        simd: S,
        derivatives: &Derivatives<O>,
        first: usize,
        tile: AnyTile,
        targets: &Targets,
        losses: &Losses,
        scales: &PerLane<f64>,
        is_gradient: bool,
        room: &mut Room<E::Real>,
    ) {
        let view = if is_gradient { Some(&derivatives.gradient) } else { derivatives.hessian.as_ref() };
        let Some(view) = view else { return };
        let (rows, transform) = (targets.rows, self.problem.transform);
        let stores = self.stores[usize::from(!is_gradient)];
        let slopes = batch::slopes(simd, losses, targets, scales, transform);
        // SAFETY: what is written are rows of an output that this chunk alone works on, the logits' rows themselves or
        // apart from them, or the room, which is stored once it was written.
        unsafe {
            if let Some(mut out) = Output::new(view, first, rows, stores, &mut room.results) {
                let written = if is_gradient {
                    let weights = &mut room.weights;
                    tile::gradients::<S, E::Real>(simd, tile, out.tile(), targets, &slopes, transform, weights)
                } else {
                    tile::variances::<S, E::Real>(simd, tile, out.tile(), targets, losses, scales, transform);
                    true
                };
                if written {
                    out.store(simd);
                    return;
                }
            }
            for (lane, scale) in scales[..rows].iter().enumerate() {
                let row = view.row(first + lane);
                let logits = self.logits.row(first + lane);
                if is_gradient {
                    gradient(simd, lane, logits, row, targets, &slopes, transform, stores);
                } else {
                    self.write_hessian(simd, lane, logits, row, targets, losses, *scale);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loss::labels::{Integers, Labels};
    use crate::loss::targets::Targets;
    use crate::row::Transform;
    use crate::view::Axes;

    /// A view of `rows` rows of `classes` classes, the classes side by side or the rows.
    fn view(values: &mut [f64], rows: usize, classes: usize, across: bool) -> View<f64> {
        let (row_step, class_step) = if across { (1, rows) } else { (classes, 1) };
        let axes = Axes::new([(rows, 8 * row_step as isize)]);
        // SAFETY: the axes describe `values`, which outlive the view and are this thread's.
        unsafe { View::new(values.as_mut_ptr().cast(), axes, classes, 8 * class_step as isize, false) }
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
            // SAFETY: one axis of i64, 8 bytes apart, which outlives the call.
            let integers = unsafe { Integers::new(targets.as_ptr().cast(), &[rows], &[8], false) };
            let labels = Labels::read::<i64>("targets", &integers, classes, Some(-100), &|| Ok(())).unwrap();
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
                    let out = view(if in_place { &mut input } else { &mut output }, rows, classes, across);
                    let grad_output = GradOutput::Scalar(3.0);
                    let derivatives = Derivatives { gradient: out, hessian: None, grad_output, given: true };
                    let source = view(&mut input, rows, classes, across);
                    // SAFETY: the gradient is written over the logits or to a vector of its own.
                    let loss = unsafe {
                        cross_entropy(&source, &problem, Reduction::Sum, None, None, Some(&derivatives), &|| Ok(()))
                    }
                    .unwrap()
                    .unwrap();
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
