//! The softmax losses, cross-entropy and divergence, and their gradients.

use fearless_simd::Simd;

use super::targets::Problem;
use super::{Check, Chunks, GradOutput, Reduction, mean, stores};
use crate::element::Element;
use crate::error::Result;
use crate::math::Real;
use crate::parallel::map_chunks;
use crate::row::tile::{self, PerLane, Tile, Transposed};
use crate::row::{RowLoss, Stores, Target, fill, product, rounded};
use crate::simd::{self, Kernel};
use crate::view::{Column, View};

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
}

/// The reduced loss (the sum, if there is no reduction), with each row's loss and the derivatives written where asked.
///
/// An ignored row has loss 0 and derivatives 0 and is not read. `denominator` replaces the divisor of the mean.
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
) -> Result<f64> {
    let (rows, classes) = (logits.rows(), logits.classes());
    problem.assert_fits(rows, classes);
    let divisor = reduction.divisor(denominator, || problem.weight_sum(rows));
    if let Some(derivatives) = derivatives {
        for out in [Some(&derivatives.gradient), derivatives.hessian.as_ref()].into_iter().flatten() {
            assert_eq!((rows, classes), (out.rows(), out.classes()));
        }
        derivatives.grad_output.assert_fits(rows);
    }
    let chunks = Chunks::new(rows, classes);
    let outputs = derivatives.map_or(0, |derivatives| 1 + usize::from(derivatives.hessian.is_some()));
    let traffic = size_of::<E>() + outputs * 2 * size_of::<O>();
    let stores = derivatives.map_or([Stores::Cached; 2], |derivatives| {
        let hessian = derivatives.hessian.as_ref().map_or(Stores::Cached, |hessian| stores(logits, hessian));
        [stores(logits, &derivatives.gradient), hessian]
    });
    let level = simd::level();
    let sums = map_chunks(chunks.count(), chunks.bytes(classes, traffic), check, |chunk| {
        level.run(Rows { range: chunks.rows_of(chunk), logits, problem, divisor, losses, derivatives, stores })
    })?;
    Ok(mean(sums, divisor))
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
    type Output = f64;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> f64 {
        let mut sum = 0.0;
        let mut scratch = (Transposed::uninit(), Transposed::uninit());
        let mut index = self.range.start;
        while index < self.range.end {
            let count = E::Real::LANES.min(self.range.end - index);
            if self.logits.classes() <= tile::MOST_CLASSES || self.are_neighbours(index, count) {
                sum += self.tile(simd, index, count, &mut scratch);
                index += count;
            } else {
                sum += self.row(simd, index);
                index += 1;
            }
        }
        if self.stores.contains(&Stores::Streaming) {
            simd::store_fence();
        }
        sum
    }
}

impl<E: Element, O: Element<Real = E::Real>> Rows<'_, E, O> {
    /// By what the derivatives of a row are multiplied.
    #[inline(always)]
    fn scale<S: Simd>(&self, simd: S, derivatives: &Derivatives<O>, index: usize) -> f64 {
        let mut scale = [1.0];
        derivatives.grad_output.read(simd, index, &mut scale);
        scale[0] * self.problem.sample_weight(index) / self.divisor
    }

    /// The loss of a row, weighted and written.
    #[inline(always)]
    fn finish_loss(&self, index: usize, loss: Option<f64>) -> f64 {
        let loss = loss.map_or(0.0, |loss| product(self.problem.sample_weight(index), loss));
        if let Some(losses) = self.losses {
            // SAFETY: this chunk alone works on its rows.
            unsafe { losses.set(index, loss) }
        }
        loss
    }

    /// The loss of one row, its classes across lanes, and its derivatives if they are asked for.
    #[inline(always)]
    fn row<S: Simd>(&self, simd: S, index: usize) -> f64 {
        let row = self.logits.row(index);
        let dense = self.problem.dense(simd, index, self.logits);
        let target = self.problem.target(index, row.classes(), dense.as_ref());
        let loss = target.map(|target| (target, target.loss(simd, row, self.problem.transform)));
        self.write_row(simd, index, loss);
        self.finish_loss(index, loss.map(|(_, loss)| loss.loss))
    }

    /// Write the derivatives of a row with this loss, zeros if it is ignored.
    #[inline(always)]
    fn write_row<S: Simd>(&self, simd: S, index: usize, loss: Option<(Target, RowLoss)>) {
        let Some(derivatives) = self.derivatives else { return };
        let (row, out) = (self.logits.row(index), derivatives.gradient.row(index));
        let hessian = derivatives.hessian.as_ref().map(|hessian| hessian.row(index));
        let scale = self.scale(simd, derivatives, index);
        let transform = self.problem.transform;
        // SAFETY: the promise made to `cross_entropy`, and this chunk alone works on its rows. What overwrites the row
        // is written last.
        unsafe {
            let write_hessian = |loss: RowLoss| {
                if let Some(hessian) = hessian {
                    loss.hessian(simd, row, hessian, scale, transform, self.stores[1]);
                }
            };
            match loss {
                Some((target, loss)) => {
                    let last = row.is_at(out);
                    if last {
                        write_hessian(loss);
                    }
                    loss.gradient(simd, &target, row, out, scale, transform, self.stores[0]);
                    if !last {
                        write_hessian(loss);
                    }
                }
                None => {
                    for out in [Some(out), hessian].into_iter().flatten() {
                        fill(out, O::from_f64(0.0));
                    }
                }
            }
        }
    }

    /// Whether `count` rows fill the lanes and lie lane by lane in memory. Where the gradient goes does not count, lest
    /// the loss depend on it.
    #[inline(always)]
    fn are_neighbours(&self, index: usize, count: usize) -> bool {
        count == E::Real::LANES
            && self.logits.classes() <= tile::COUNTABLE_CLASSES
            && self.logits.neighbours(index, count).is_some()
    }

    /// The losses of `count` rows across lanes, and their derivatives if they are asked for: the sum of the losses.
    #[inline(always)]
    fn tile<S: Simd>(&self, simd: S, first: usize, count: usize, scratch: &mut (Transposed<E>, Transposed<O>)) -> f64 {
        let transform = self.problem.transform;
        let full = count == E::Real::LANES;
        let tile = full.then(|| Tile::in_place(self.logits, first)).flatten();
        let tile = tile.unwrap_or_else(|| scratch.0.load(self.logits, first, count));
        let mut targets = [None; tile::MOST_LANES];
        let mut logits = [0.0; tile::MOST_LANES];
        let mut dense = [None; tile::MOST_LANES];
        if self.problem.is_dense() {
            for (lane, dense) in dense[..count].iter_mut().enumerate() {
                *dense = self.problem.dense(simd, first + lane, self.logits);
            }
        }
        for lane in 0..count {
            targets[lane] = self.problem.target(first + lane, tile.classes(), dense[lane].as_ref());
            if let Some(Target { point: Some((class, _)), .. }) = targets[lane] {
                logits[lane] = self.logits.row(first + lane).get(class).to_f64();
            }
        }
        // SAFETY: the tile's values are the view's, or were loaded into the scratch.
        let found = unsafe { tile::losses(simd, tile, &targets, &logits, transform) };
        let mut sum = 0.0;
        for (lane, loss) in found[..count].iter().enumerate() {
            sum += self.finish_loss(first + lane, loss.map(|loss| loss.loss));
        }
        if let Some(derivatives) = self.derivatives {
            let mut scales = [0.0; tile::MOST_LANES];
            for (lane, scale) in scales[..count].iter_mut().enumerate() {
                *scale = self.scale(simd, derivatives, first + lane);
            }
            let in_place = self.logits.row(first).is_at(derivatives.gradient.row(first));
            // What overwrites the tile is written last.
            for gradient in [!in_place, in_place] {
                self.write_tile(simd, tile, first, count, &targets, &found, &scales, gradient, &mut scratch.1);
            }
        }
        sum
    }

    /// Write the gradients of a tile of rows, or the diagonals of their Hessians.
    #[inline(always)]
    #[allow(clippy::too_many_arguments)] // what `tile` has found
    fn write_tile<S: Simd>(
        &self,
        simd: S,
        tile: Tile<E>,
        first: usize,
        count: usize,
        targets: &PerLane<Option<Target>>,
        losses: &PerLane<Option<RowLoss>>,
        scales: &PerLane<f64>,
        gradient: bool,
        scratch: &mut Transposed<O>,
    ) {
        let Some(derivatives) = self.derivatives else { return };
        let view = if gradient { Some(&derivatives.gradient) } else { derivatives.hessian.as_ref() };
        let Some(view) = view else { return };
        let transform = self.problem.transform;
        let in_place = (count == E::Real::LANES).then(|| Tile::in_place(view, first)).flatten();
        let room = tile.classes() <= tile::MOST_CLASSES;
        let out = in_place.or_else(|| room.then(|| scratch.tile(tile.classes())));
        // SAFETY: `out` is the scratch, or rows of an output that this chunk alone works on: the logits' rows
        // themselves or apart from them.
        let written = out.is_some_and(|out| unsafe {
            if gradient {
                tile::gradients(simd, tile, out, targets, losses, scales, transform)
            } else {
                tile::variances(simd, tile, out, losses, scales, transform);
                true
            }
        });
        for lane in 0..count {
            let (row, index) = (view.row(first + lane), first + lane);
            // SAFETY: as above; the scratch was written if it was used.
            unsafe {
                if written && in_place.is_none() {
                    scratch.store(lane, row);
                }
                let own = match targets[lane].zip(losses[lane]) {
                    Some((target, loss)) if written => {
                        if !gradient {
                            loss.own_variance(scales[lane], transform)
                        } else if loss.has_own_gradient(&target) {
                            loss.own_gradient(simd, &target, scales[lane], transform)
                        } else {
                            None
                        }
                    }
                    None if written => None,
                    Some((target, loss)) if gradient => {
                        let stores = self.stores[0];
                        loss.gradient(simd, &target, self.logits.row(index), row, scales[lane], transform, stores);
                        None
                    }
                    Some((_, loss)) => {
                        loss.hessian(simd, self.logits.row(index), row, scales[lane], transform, self.stores[1]);
                        None
                    }
                    None => {
                        fill(row, O::from_f64(0.0));
                        None
                    }
                };
                if let Some((class, own)) = own {
                    row.set(class, rounded(own));
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
        for (classes, across) in [(1, false), (2, false), (10, false), (64, true), (65, false), (65, true), (300, true)]
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
            let problem = Problem { transform: Transform::divided_by(0.5), ..Problem::new(Targets::Classes(labels)) };
            for in_place in [false, true] {
                let (mut input, mut output) = (logits.clone(), vec![f64::NAN; rows * classes]);
                let out = view(if in_place { &mut input } else { &mut output }, rows, classes, across);
                let derivatives = Derivatives { gradient: out, hessian: None, grad_output: GradOutput::Scalar(3.0) };
                let source = view(&mut input, rows, classes, across);
                // SAFETY: the gradient is written over the logits or to a vector of its own.
                let loss = unsafe {
                    cross_entropy(&source, &problem, Reduction::Sum, None, None, Some(&derivatives), &|| Ok(()))
                }
                .unwrap();
                let found = if in_place { &input } else { &output };
                let mut expected = 0.0;
                for (row, &target) in targets.iter().enumerate() {
                    let z: Vec<f64> = (0..classes).map(|class| logit(row, class) / 0.5).collect();
                    let log_sum = z.iter().map(|z| z.exp()).sum::<f64>().ln();
                    let class = usize::try_from(target).ok();
                    expected += class.map_or(0.0, |class| log_sum - z[class]);
                    for (other, z) in z.iter().enumerate() {
                        let probability = (z - log_sum).exp() - f64::from(class == Some(other));
                        let expected = if class.is_none() { 0.0 } else { 3.0 * probability / 0.5 };
                        let found = found[place(row, other)];
                        assert!((found - expected).abs() < 1e-13, "{classes} {across} row {row}: {found} {expected}");
                    }
                }
                assert!((loss - expected).abs() < 1e-11, "{classes} {across}: {loss} {expected}");
            }
        }
    }
}
