//! Binary cross-entropy of sigmoid(logits), elementwise, and its gradient.

use std::ops::Range;

use fearless_simd::Simd;

use super::{BadTarget, Check, Chunks, Found, GradOutput, Reduction, STREAMING_BYTES, mean};
use crate::element::Element;
use crate::error::Result;
use crate::math::{Real, Total};
use crate::numbers::Numbers;
use crate::parallel::map_chunks;
use crate::row::BLOCK;
use crate::row::binary::{Plain, Room, Weighing, Weighted, losses};
use crate::simd::{self, Kernel};
use crate::view::{Column, Elements};

/// A problem: arrays of the logits' shape, in C order; what was broadcast has steps of 0.
#[derive(Clone, Debug)]
pub struct Binary {
    /// The logits.
    pub logits: Numbers,
    /// The targets, probabilities of the positive class.
    pub targets: Numbers,
    /// A weight of every element.
    pub weight: Option<Numbers>,
    /// A weight of its positive part.
    pub pos_weight: Option<Numbers>,
    /// Elements with this target do not count.
    pub ignore: Option<f64>,
    /// Whether the targets are integers: each is 0, 1 or `ignore` then.
    pub labels: bool,
    /// The share of the target that is replaced by one half.
    pub label_smoothing: f64,
}

/// Where the derivatives go: outputs of the logits' shape, each the logits themselves or apart from them and from each
/// other.
#[derive(Clone, Debug)]
pub struct Derivatives<O> {
    /// The gradient.
    pub gradient: Elements<O>,
    /// The diagonal of the Hessian, which has nothing else, if it is wanted.
    pub hessian: Option<Elements<O>>,
    /// By what they are multiplied.
    pub grad_output: GradOutput,
    /// Whether one of them is the caller's own memory.
    pub given: bool,
}

impl Binary {
    /// How many elements there are.
    fn count(&self) -> usize {
        self.logits.count()
    }

    fn assert_fits(&self) {
        let others = [Some(&self.targets), self.weight.as_ref(), self.pos_weight.as_ref()];
        for numbers in others.into_iter().flatten() {
            assert_eq!(numbers.count(), self.count());
        }
    }

    /// Whether there are targets alone, which fit into `R`.
    fn is_plain<R: Element>(&self) -> bool {
        let Self { targets, weight, pos_weight, ignore, label_smoothing, .. } = self;
        targets.fit_into::<R>()
            && weight.is_none()
            && pos_weight.is_none()
            && ignore.is_none()
            && *label_smoothing == 0.0
    }

    /// How many elements count, after a look at all targets.
    fn counted(&self, check: Check) -> Result<Found<f64>> {
        let chunks = Chunks::of_elements(self.count());
        let level = simd::level();
        let counts = map_chunks(chunks.count(), chunks.bytes(1, 8), check, |chunk| {
            level.run(Count { range: chunks.rows_of(chunk), problem: self })
        })?;
        Ok(counts.into_iter().sum::<Found<usize>>().map(|count| count as f64))
    }

    /// Look at the targets from number `start` on.
    #[inline(always)]
    fn look_at<R: Real>(&self, start: usize, targets: &[R]) -> Found<()> {
        if !self.labels {
            return Ok(());
        }
        let ignored = self.ignore.unwrap_or(0.0);
        let is_fine = |target: &R| {
            let target = target.to_f64();
            target == 0.0 || target == 1.0 || target == ignored
        };
        // Without a way out of the loop, so that it is done in vectors.
        let mut fine = true;
        for target in targets {
            fine &= is_fine(target);
        }
        if fine { Ok(()) } else { Err(BadTarget(start + targets.iter().position(|t| !is_fine(t)).unwrap_or_default())) }
    }
}

/// The reduced loss (the sum, if there is no reduction), with each element's loss and the derivatives written where
/// asked.
///
/// # Errors
/// What `check` returned.
///
/// # Safety
/// The outputs of `derivatives` are writeable, the logits themselves or apart from all inputs and each other, and nothing
/// else accesses them during the call.
pub unsafe fn binary_cross_entropy<O: Element>(
    problem: &Binary,
    reduction: Reduction,
    denominator: Option<f64>,
    losses: Option<Column>,
    derivatives: Option<&Derivatives<O>>,
    check: Check,
) -> Result<Found<f64>> {
    problem.assert_fits();
    let given = derivatives.is_some_and(|derivatives| derivatives.given);
    let counts = reduction == Reduction::Mean && denominator.is_none() && problem.ignore.is_some();
    let counted = if counts || (given && problem.labels) {
        match problem.counted(check)? {
            Ok(counted) => counted,
            Err(bad) => return Ok(Err(bad)),
        }
    } else {
        problem.count() as f64
    };
    let divisor = reduction.divisor(denominator, || counted);
    if let Some(derivatives) = derivatives {
        for out in [Some(&derivatives.gradient), derivatives.hessian.as_ref()].into_iter().flatten() {
            assert_eq!(out.count(), problem.count());
        }
        derivatives.grad_output.assert_fits(problem.count());
    }
    let streams = |out: &Elements<O>| {
        let in_place = out.base() == problem.logits.base();
        !in_place && out.count().saturating_mul(size_of::<O>()) >= STREAMING_BYTES
    };
    let streaming = derivatives.map_or([false; 2], |derivatives| {
        [streams(&derivatives.gradient), derivatives.hessian.as_ref().is_some_and(streams)]
    });
    let chunks = Chunks::of_elements(problem.count());
    let level = simd::level();
    let sums = map_chunks(chunks.count(), chunks.bytes(1, 16), check, |chunk| {
        level.run(Elementwise { range: chunks.rows_of(chunk), problem, divisor, losses, derivatives, streaming })
    })?;
    Ok(sums.into_iter().collect::<Found<Vec<_>>>().map(|sums| mean(sums, divisor)))
}

struct Count<'a> {
    range: Range<usize>,
    problem: &'a Binary,
}

impl Kernel for Count<'_> {
    type Output = Found<usize>;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> Found<usize> {
        // Nothing equals NaN.
        let ignored = self.problem.ignore.unwrap_or(f64::NAN);
        let mut block = [0.0; BLOCK];
        let mut counted = 0;
        for start in self.range.clone().step_by(BLOCK) {
            let block = &mut block[..BLOCK.min(self.range.end - start)];
            self.problem.targets.read(simd, start, block);
            self.problem.look_at(start, block)?;
            counted += block.iter().filter(|target| **target != ignored).count();
        }
        Ok(counted)
    }
}

/// The work on a chunk of elements.
struct Elementwise<'a, O> {
    range: Range<usize>,
    problem: &'a Binary,
    divisor: f64,
    losses: Option<Column>,
    derivatives: Option<&'a Derivatives<O>>,
    /// Whether the gradient and the Hessian are written past the cache.
    streaming: [bool; 2],
}

impl<O: Element> Kernel for Elementwise<'_, O> {
    type Output = Found<f64>;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> Found<f64> {
        let mut total = Total::zero(simd);
        let scale = match self.derivatives.map(|derivatives| &derivatives.grad_output) {
            None => Some(0.0),
            Some(GradOutput::Scalar(scale)) => Some(scale / self.divisor),
            Some(GradOutput::Each(_)) => None,
        };
        let found = match scale {
            Some(scale) if self.problem.is_plain::<O::Real>() && self.divisor != 0.0 => {
                self.plain(simd, scale, &mut total)
            }
            _ => self.weighted(simd, scale.unwrap_or_default(), &mut total),
        };
        if self.streaming.contains(&true) {
            simd::store_fence();
        }
        found.map(|()| total.value())
    }
}

impl<O: Element> Elementwise<'_, O> {
    /// The work, with targets alone.
    #[inline(always)]
    fn plain<S: Simd>(&self, simd: S, scale: f64, total: &mut Total<S>) -> Found<()> {
        let mut logits = [<O::Real>::MASKED; BLOCK];
        let mut copied = [O::Real::default(); BLOCK];
        let mut room = Room::default();
        for start in self.range.clone().step_by(BLOCK) {
            let length = BLOCK.min(self.range.end - start);
            let logits = lend(simd, &self.problem.logits, start, length, &mut logits, <O::Real>::MASKED);
            let targets = lend(simd, &self.problem.targets, start, length, &mut copied, O::Real::default());
            // Integers are never lent as they are.
            self.problem.look_at(start, &copied[..length])?;
            // SAFETY: both are blocks.
            unsafe { self.block(simd, start..start + length, logits, &Plain { targets, scale }, &mut room, total) }
        }
        Ok(())
    }

    /// The work, with everything; `scale` is for all gradients, unless each has its own.
    #[inline(always)]
    fn weighted<S: Simd>(&self, simd: S, scale: f64, total: &mut Total<S>) -> Found<()> {
        let Binary { logits, targets, weight, pos_weight, ignore, label_smoothing, .. } = self.problem;
        let each = match self.derivatives.map(|derivatives| &derivatives.grad_output) {
            Some(GradOutput::Each(numbers)) => Some(numbers),
            _ => None,
        };
        let mut block = [<O::Real>::MASKED; BLOCK];
        let mut weighted = Weighted {
            targets: [0.0; BLOCK],
            weights: [1.0; BLOCK],
            positive: [1.0; BLOCK],
            scales: [scale; BLOCK],
            label_smoothing: *label_smoothing,
        };
        let mut room = Room::default();
        for start in self.range.clone().step_by(BLOCK) {
            let length = BLOCK.min(self.range.end - start);
            let Weighted { targets: t, weights: w, positive, scales, .. } = &mut weighted;
            targets.read(simd, start, &mut t[..length]);
            self.problem.look_at(start, &t[..length])?;
            if let Some(weight) = weight {
                weight.read(simd, start, &mut w[..length]);
            }
            if let Some(pos_weight) = pos_weight {
                pos_weight.read(simd, start, &mut positive[..length]);
            }
            if let Some(each) = each {
                each.read(simd, start, &mut scales[..length]);
                if self.divisor != 1.0 {
                    for scale in &mut scales[..length] {
                        *scale /= self.divisor;
                    }
                }
            }
            let logits = if ignore.is_some() || weight.is_some() || self.divisor == 0.0 {
                logits.read(simd, start, &mut block[..length]);
                block[length..].fill(<O::Real>::MASKED);
                // Nothing equals NaN. Of a mean that divides by 0 no gradient counts, and no loss is asked for.
                let (ignored, all) = (ignore.unwrap_or(f64::NAN), self.divisor != 0.0);
                for index in 0..length {
                    // Whatever else it holds, an element that does not count weighs nothing.
                    let own = if weight.is_some() { w[index] } else { 1.0 };
                    let counts = all && t[index] != ignored && own != 0.0;
                    let kept = |value: f64| if counts { value } else { 0.0 };
                    block[index] = if counts { block[index] } else { O::Real::default() };
                    t[index] = kept(t[index]);
                    w[index] = kept(own);
                    positive[index] = kept(if pos_weight.is_some() { positive[index] } else { 1.0 });
                    scales[index] = kept(if each.is_some() { scales[index] } else { scale });
                }
                block.as_ptr()
            } else {
                lend(simd, logits, start, length, &mut block, <O::Real>::MASKED)
            };
            // Nothing counts behind the last element, not even what the block before had there.
            for numbers in [t, w, positive] {
                numbers[length..].fill(0.0);
            }
            // SAFETY: these are blocks.
            unsafe { self.block(simd, start..start + length, logits, &weighted, &mut room, total) }
        }
        Ok(())
    }

    /// The work on a block.
    ///
    /// # Safety
    /// `logits` and what `weighing` has are readable for a block.
    #[inline(always)]
    unsafe fn block<S: Simd, W: Weighing<S, O::Real>>(
        &self,
        simd: S,
        here: Range<usize>,
        logits: *const O::Real,
        weighing: &W,
        room: &mut Room<O::Real>,
        total: &mut Total<S>,
    ) {
        let (start, length) = (here.start, here.len());
        // SAFETY: the blocks by the caller's promise; the output by that made to `binary_cross_entropy`, and this chunk
        // alone works on its elements.
        unsafe {
            let hessian = self.derivatives.and_then(|derivatives| derivatives.hessian.as_ref());
            match (self.losses, self.derivatives) {
                _ if hessian.is_some() => {
                    losses::<S, _, W, true, true, true>(simd, logits, weighing, length, total, room);
                }
                (None, None) => losses::<S, _, W, false, false, false>(simd, logits, weighing, length, total, room),
                (None, Some(_)) => losses::<S, _, W, false, true, false>(simd, logits, weighing, length, total, room),
                (Some(_), None) => losses::<S, _, W, true, false, false>(simd, logits, weighing, length, total, room),
                (Some(_), Some(_)) => {
                    losses::<S, _, W, true, true, false>(simd, logits, weighing, length, total, room);
                }
            }
            if let Some(column) = self.losses {
                column.set(start, &room.losses[..length]);
            }
            if let Some(derivatives) = self.derivatives {
                derivatives.gradient.write(simd, start, &room.gradients[..length], self.streaming[0]);
            }
            if let Some(hessian) = hessian {
                hessian.write(simd, start, &room.hessians[..length], self.streaming[1]);
            }
        }
    }
}

/// Where `length` numbers from `start` on are, and `rest` up to a block: in the array itself, if a whole block of them
/// lies there as `R`s, else in `block`.
#[inline(always)]
fn lend<S: Simd, R: Real + Element>(
    simd: S,
    numbers: &Numbers,
    start: usize,
    length: usize,
    block: &mut [R; BLOCK],
    rest: R,
) -> *const R {
    if length == BLOCK
        && let Some(place) = numbers.neighbours(start, length)
    {
        return place;
    }
    numbers.read(simd, start, &mut block[..length]);
    block[length..].fill(rest);
    block.as_ptr()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::numbers::Kind;
    use crate::view::Axes;

    fn numbers<T>(values: &[T], kind: Kind) -> Numbers {
        // SAFETY: one axis of values side by side, which outlive the numbers.
        unsafe {
            Numbers::new(values.as_ptr().cast(), Axes::new([(values.len(), size_of::<T>() as isize)]), kind, false)
        }
    }

    #[test]
    fn losses_and_gradients_agree_with_the_formula() {
        let logits: Vec<f64> = (0..700).map(|i| f64::from(i - 350) / 9.0).collect();
        let targets: Vec<i8> = (0..700).map(|i| [0, 1, -1, 1, 0][i % 5]).collect();
        let weights: Vec<f32> = (0..700).map(|i| (i % 3) as f32).collect();
        let problem = Binary {
            logits: numbers(&logits, Kind::F64),
            targets: numbers(&targets, Kind::I8),
            weight: Some(numbers(&weights, Kind::F32)),
            pos_weight: None,
            ignore: Some(-1.0),
            labels: true,
            label_smoothing: 0.1,
        };
        let mut out = vec![f64::NAN; 700];
        // SAFETY: one axis of values side by side, used by this test alone.
        let view = unsafe { Elements::new(out.as_mut_ptr().cast(), Axes::new([(700, 8)])) };
        let mut second = vec![f64::NAN; 700];
        // SAFETY: as above.
        let hessian = unsafe { Elements::new(second.as_mut_ptr().cast(), Axes::new([(700, 8)])) };
        let derivatives =
            Derivatives { gradient: view, hessian: Some(hessian), grad_output: GradOutput::Scalar(2.0), given: true };
        // SAFETY: the outputs are vectors of their own.
        let found = unsafe {
            binary_cross_entropy::<f64>(&problem, Reduction::Mean, None, None, Some(&derivatives), &|| Ok(()))
        };
        let mut expected = 0.0;
        for (index, &x) in logits.iter().enumerate() {
            let (w, t) = (f64::from(weights[index]), f64::from(targets[index]) * 0.9 + 0.05);
            let counts = targets[index] >= 0;
            let loss = w * ((1.0 - t) * x + (-x).exp().ln_1p());
            let slope = w * (1.0 / (1.0 + (-x).exp()) - t);
            expected += if counts { loss / 560.0 } else { 0.0 };
            let slope = if counts { slope * 2.0 / 560.0 } else { 0.0 };
            assert!((out[index] - slope).abs() < 1e-15, "{index}: {} {slope}", out[index]);
            let likely = 1.0 / (1.0 + (-x.abs()).exp());
            let bend = if counts { w * likely * likely * (-x.abs()).exp() * 2.0 / 560.0 } else { 0.0 };
            assert!((second[index] - bend).abs() <= 1e-14 * bend, "{index}: {} {bend}", second[index]);
        }
        assert!((found.unwrap().unwrap() - expected).abs() < 1e-13);
    }

    /// Loss and gradient of problems with a scalar to multiply the gradient with.
    fn solved(problem: &Binary, out: &mut [f32]) -> f64 {
        // SAFETY: one axis of values side by side, used by this test alone.
        let view = unsafe { Elements::new(out.as_mut_ptr().cast(), Axes::new([(out.len(), 4)])) };
        let derivatives =
            Derivatives { gradient: view, hessian: None, grad_output: GradOutput::Scalar(1.5), given: true };
        // SAFETY: the output is a vector of its own, or the logits.
        unsafe { binary_cross_entropy::<f32>(problem, Reduction::Sum, None, None, Some(&derivatives), &|| Ok(())) }
            .unwrap()
            .unwrap()
    }

    /// Read in place or not, with weights of 1 or without, written in place or not: the lengths end blocks and vectors
    /// everywhere.
    #[test]
    fn targets_alone_are_targets_with_weights_of_one() {
        for length in [1, 7, 8, 16, 17, 255, 256, 257, 700] {
            let logits: Vec<f32> = (0..length).map(|i| (i as f32 * 0.7).sin() * 12.0).collect();
            let bools: Vec<u8> = (0..length).map(|i| u8::from(i % 3 == 0)).collect();
            let floats: Vec<f32> = bools.iter().map(|&target| f32::from(target)).collect();
            let ones = vec![1i8; length];
            let problem = |targets| Binary {
                logits: numbers(&logits, Kind::F32),
                targets,
                weight: None,
                pos_weight: None,
                ignore: None,
                labels: false,
                label_smoothing: 0.0,
            };
            let mut outs = [vec![f32::NAN; length], vec![f32::NAN; length], vec![f32::NAN; length]];
            let plain = problem(numbers(&floats, Kind::F32));
            assert!(plain.is_plain::<f32>());
            let losses = [
                solved(&plain, &mut outs[0]),
                solved(&problem(numbers(&bools, Kind::Bool)), &mut outs[1]),
                solved(&Binary { weight: Some(numbers(&ones, Kind::I8)), ..plain.clone() }, &mut outs[2]),
            ];
            assert_eq!(losses, [losses[0]; 3], "{length}");
            assert_eq!(outs[0], outs[1], "{length}");
            assert_eq!(outs[0], outs[2], "{length}");
            let expected: f64 = logits.iter().zip(&floats).map(|(&x, &t)| softplus(f64::from(x), f64::from(t))).sum();
            assert!((losses[0] - expected).abs() < 1e-6 * expected, "{length}: {} {expected}", losses[0]);
            let mut in_place = logits.clone();
            let logits = numbers(&in_place, Kind::F32);
            assert_eq!(solved(&Binary { logits, ..plain }, &mut in_place), losses[0]);
            assert_eq!(in_place, outs[0], "{length}");
        }
    }

    fn softplus(x: f64, target: f64) -> f64 {
        (-x.abs()).exp().ln_1p() + x.max(0.0) - target * x
    }
}
