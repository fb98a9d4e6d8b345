//! Cross-entropy of softmax(logits) with class-index targets, and its gradient.

use fearless_simd::Simd;

use super::{Check, Chunks, labels::Labels, stores};
use crate::element::Element;
use crate::error::Result;
use crate::math::Real;
use crate::parallel::map_chunks;
use crate::row::tile::{self, Tile, Transposed};
use crate::row::{ClassLoss, Stores, Temperature, fill, rounded};
use crate::simd::{self, Kernel};
use crate::view::{Column, View};

/// What becomes of the losses of the rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reduction {
    /// Each row's loss is a result.
    None,
    /// Their sum over the number of rows that are not ignored.
    Mean,
    /// Their sum.
    Sum,
}

/// The options of the loss.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// The divisor of the logits.
    pub temperature: Temperature,
    /// What becomes of the losses of the rows.
    pub reduction: Reduction,
    /// Replaces the divisor of the mean.
    pub denominator: Option<f64>,
}

/// By what the gradient is multiplied.
#[derive(Clone, Debug)]
pub enum GradOutput {
    /// One number for all rows.
    Scalar(f64),
    /// One number a row.
    Rows(Vec<f64>),
}

/// Where the gradient goes.
#[derive(Clone, Debug)]
pub struct Gradient<O> {
    /// An output of the logits' shape: the logits themselves or apart from them.
    pub out: View<O>,
    /// By what it is multiplied.
    pub grad_output: GradOutput,
}

/// The reduced loss (the sum, if there is no reduction), with each row's loss and the gradient written where asked.
///
/// An ignored row has loss 0 and gradient 0 and is not read.
///
/// # Errors
/// What `check` returned.
///
/// # Safety
/// `gradient`'s view was made for an output: writeable, its rows the logits' rows themselves or apart from them, and
/// nothing else accesses them during the call.
pub unsafe fn cross_entropy<E: Element, O: Element<Real = E::Real>>(
    logits: &View<E>,
    labels: &Labels,
    options: Options,
    losses: Option<Column>,
    gradient: Option<&Gradient<O>>,
    check: Check,
) -> Result<f64> {
    assert_eq!(logits.rows(), labels.rows());
    let divisor = match options.reduction {
        Reduction::Mean => options.denominator.unwrap_or(labels.counted() as f64),
        Reduction::None | Reduction::Sum => 1.0,
    };
    if let Some(gradient) = gradient {
        assert_eq!((logits.rows(), logits.classes()), (gradient.out.rows(), gradient.out.classes()));
        if let GradOutput::Rows(rows) = &gradient.grad_output {
            assert_eq!(logits.rows(), rows.len());
        }
    }
    let chunks = Chunks::new(logits.rows(), logits.classes());
    let traffic = size_of::<E>() + gradient.map_or(0, |_| 2 * size_of::<O>());
    let stores = gradient.map_or(Stores::Cached, |gradient| stores(logits, &gradient.out));
    let level = simd::level();
    let sums = map_chunks(chunks.count(), chunks.bytes(logits.classes(), traffic), check, |chunk| {
        level.run(Rows { range: chunks.rows_of(chunk), logits, labels, options, divisor, losses, gradient, stores })
    })?;
    Ok(sums.into_iter().fold(0.0, |total, sum| total + sum) / divisor)
}

/// The work on a chunk of rows.
struct Rows<'a, E, O> {
    range: std::ops::Range<usize>,
    logits: &'a View<E>,
    labels: &'a Labels,
    options: Options,
    divisor: f64,
    losses: Option<Column>,
    gradient: Option<&'a Gradient<O>>,
    stores: Stores,
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
        if self.stores == Stores::Streaming {
            simd::store_fence();
        }
        sum
    }
}

impl<E: Element, O: Element<Real = E::Real>> Rows<'_, E, O> {
    /// By what the gradient of a row is multiplied.
    #[inline(always)]
    fn scale(&self, gradient: &Gradient<O>, index: usize) -> f64 {
        let grad_output = match &gradient.grad_output {
            GradOutput::Scalar(scale) => *scale,
            GradOutput::Rows(rows) => rows[index],
        };
        grad_output / self.divisor
    }

    #[inline(always)]
    fn write_loss(&self, index: usize, loss: f64) {
        if let Some(losses) = self.losses {
            // SAFETY: this chunk alone works on its rows.
            unsafe { losses.set(index, loss) }
        }
    }

    /// The loss of one row, its classes across lanes, and its gradient if that is asked for.
    #[inline(always)]
    fn row<S: Simd>(&self, simd: S, index: usize) -> f64 {
        let row = self.logits.row(index);
        let temperature = self.options.temperature;
        let loss = self.labels.class(index).map(|class| ClassLoss::of_row(simd, row, class, temperature));
        self.write_row_gradient(simd, index, loss);
        let loss = loss.map_or(0.0, |loss| loss.loss);
        self.write_loss(index, loss);
        loss
    }

    /// Write the gradient of a row with this loss, zeros if it is ignored.
    #[inline(always)]
    fn write_row_gradient<S: Simd>(&self, simd: S, index: usize, loss: Option<ClassLoss>) {
        let Some(gradient) = self.gradient else { return };
        let (row, out) = (self.logits.row(index), gradient.out.row(index));
        let scale = self.scale(gradient, index);
        // SAFETY: the promise made to `cross_entropy`, and this chunk alone works on its rows.
        unsafe {
            match loss {
                Some(loss) => loss.gradient(simd, row, out, scale, self.options.temperature, self.stores),
                None => fill(out, O::from_f64(0.0)),
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

    /// The losses of `count` rows across lanes, and their gradients if they are asked for: the sum of the losses.
    #[inline(always)]
    fn tile<S: Simd>(&self, simd: S, first: usize, count: usize, scratch: &mut (Transposed<E>, Transposed<O>)) -> f64 {
        let temperature = self.options.temperature;
        let full = count == E::Real::LANES;
        let tile = full.then(|| Tile::in_place(self.logits, first)).flatten();
        let tile = tile.unwrap_or_else(|| scratch.0.load(self.logits, first, count));
        let mut left_out = [-1.0; tile::MOST_LANES];
        for (lane, left_out) in left_out[..count].iter_mut().enumerate() {
            *left_out = self.labels.class(first + lane).map_or(-1.0, |class| class as f64);
        }
        // SAFETY: the tile's values are the view's, or were loaded into the scratch.
        let rest = unsafe { tile::log_sum_exps(simd, tile, &left_out, temperature) };
        let mut losses = [None; tile::MOST_LANES];
        let mut sum = 0.0;
        for lane in 0..count {
            let index = first + lane;
            losses[lane] = self.labels.class(index).map(|class| {
                let logit = self.logits.row(index).get(class).to_f64();
                ClassLoss::new(class, logit, rest[lane], temperature)
            });
            let loss = losses[lane].map_or(0.0, |loss: ClassLoss| loss.loss);
            self.write_loss(index, loss);
            sum += loss;
        }
        if let Some(gradient) = self.gradient {
            let mut scales = [0.0; tile::MOST_LANES];
            for (lane, scale) in scales[..count].iter_mut().enumerate() {
                *scale = self.scale(gradient, first + lane);
            }
            let in_place = full.then(|| Tile::in_place(&gradient.out, first)).flatten();
            let room = tile.classes() <= tile::MOST_CLASSES;
            let out = in_place.or_else(|| room.then(|| scratch.1.tile(tile.classes())));
            // SAFETY: `out` is the scratch, or rows of an output that this chunk alone works on: the logits' rows
            // themselves or apart from them.
            let gradients = |out| unsafe { tile::gradients(simd, tile, out, &losses, &scales, temperature) };
            let written = out.is_some_and(gradients);
            for lane in 0..count {
                let index = first + lane;
                if !written {
                    self.write_row_gradient(simd, index, losses[lane]);
                    continue;
                }
                let row = gradient.out.row(index);
                // SAFETY: the scratch was written if it was used, and this chunk alone works on its rows.
                unsafe {
                    if in_place.is_none() {
                        scratch.1.store(lane, row);
                    }
                    if let Some(loss) = losses[lane] {
                        row.set(loss.class(), rounded(loss.own_gradient(scales[lane], temperature)));
                    }
                }
            }
        }
        sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loss::labels::Integers;
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
            let labels = Labels::read::<i64>(&integers, classes, -100, &|| Ok(())).unwrap();
            for in_place in [false, true] {
                let (mut input, mut output) = (logits.clone(), vec![f64::NAN; rows * classes]);
                let out = view(if in_place { &mut input } else { &mut output }, rows, classes, across);
                let gradient = Gradient { out, grad_output: GradOutput::Scalar(3.0) };
                let options =
                    Options { temperature: Temperature::new(0.5), reduction: Reduction::Sum, denominator: None };
                let source = view(&mut input, rows, classes, across);
                // SAFETY: the gradient is written over the logits or to a vector of its own.
                let loss =
                    unsafe { cross_entropy(&source, &labels, options, None, Some(&gradient), &|| Ok(())) }.unwrap();
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
