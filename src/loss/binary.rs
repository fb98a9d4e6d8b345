//! Binary cross-entropy of sigmoid(logits), elementwise, and its gradient.

use fearless_simd::Simd;

use super::{Check, Chunks, GradOutput, Reduction, mean};
use crate::element::Element;
use crate::error::Result;
use crate::math::Real;
use crate::numbers::Numbers;
use crate::parallel::map_chunks;
use crate::row::BLOCK;
use crate::row::binary::{Block, losses};
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
    /// The share of the target that is replaced by one half.
    pub label_smoothing: f64,
}

/// Where the gradient goes, and by what it is multiplied.
#[derive(Clone, Debug)]
pub struct Gradient<O> {
    /// An output of the logits' shape: the logits themselves or apart from them.
    pub out: Elements<O>,
    /// By what it is multiplied.
    pub grad_output: GradOutput,
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

    /// How many elements count.
    fn counted(&self, check: Check) -> Result<f64> {
        let Some(ignored) = self.ignore else { return Ok(self.count() as f64) };
        let chunks = Chunks::new(self.count(), 1);
        let level = simd::level();
        let counts = map_chunks(chunks.count(), chunks.bytes(1, 8), check, |chunk| {
            level.run(Count { range: chunks.rows_of(chunk), targets: &self.targets, ignored })
        })?;
        Ok(counts.into_iter().sum::<usize>() as f64)
    }
}

/// The reduced loss (the sum, if there is no reduction), with each element's loss and the gradient written where asked.
///
/// # Errors
/// What `check` returned.
///
/// # Safety
/// The output of `gradient` is writeable, the logits themselves or apart from all inputs, and nothing else accesses it
/// during the call.
pub unsafe fn binary_cross_entropy<O: Element>(
    problem: &Binary,
    reduction: Reduction,
    denominator: Option<f64>,
    losses: Option<Column>,
    gradient: Option<&Gradient<O>>,
    check: Check,
) -> Result<f64> {
    problem.assert_fits();
    let counted = if reduction == Reduction::Mean && denominator.is_none() { problem.counted(check)? } else { 1.0 };
    let divisor = reduction.divisor(denominator, || counted);
    if let Some(gradient) = gradient {
        assert_eq!(gradient.out.count(), problem.count());
        gradient.grad_output.assert_fits(problem.count());
    }
    let chunks = Chunks::new(problem.count(), 1);
    let level = simd::level();
    let sums = map_chunks(chunks.count(), chunks.bytes(1, 16), check, |chunk| {
        level.run(Elementwise { range: chunks.rows_of(chunk), problem, divisor, losses, gradient })
    })?;
    Ok(mean(sums, divisor))
}

struct Count<'a> {
    range: std::ops::Range<usize>,
    targets: &'a Numbers,
    ignored: f64,
}

impl Kernel for Count<'_> {
    type Output = usize;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> usize {
        let mut block = [0.0; BLOCK];
        let mut counted = 0;
        for start in self.range.clone().step_by(BLOCK) {
            let block = &mut block[..BLOCK.min(self.range.end - start)];
            self.targets.read(simd, start, block);
            counted += block.iter().filter(|target| **target != self.ignored).count();
        }
        counted
    }
}

/// The work on a chunk of elements.
struct Elementwise<'a, O> {
    range: std::ops::Range<usize>,
    problem: &'a Binary,
    divisor: f64,
    losses: Option<Column>,
    gradient: Option<&'a Gradient<O>>,
}

impl<O: Element> Kernel for Elementwise<'_, O> {
    type Output = f64;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> f64 {
        let mut block = Block::<O::Real>::new();
        let mut sum = 0.0;
        let smoothing = self.problem.label_smoothing;
        for start in self.range.clone().step_by(BLOCK) {
            let length = BLOCK.min(self.range.end - start);
            self.fill(simd, start, length, &mut block);
            sum += if let Some(gradient) = self.gradient {
                let sum = losses::<S, O::Real, true>(simd, &mut block, length, smoothing);
                // SAFETY: the promise made to `binary_cross_entropy`, and this chunk alone works on its elements.
                unsafe { gradient.out.write(simd, start, &block.gradients[..length]) }
                sum
            } else {
                losses::<S, O::Real, false>(simd, &mut block, length, smoothing)
            };
            if let Some(column) = self.losses {
                // SAFETY: this chunk alone works on its elements.
                unsafe { column.set_all(start, &block.losses[..length]) }
            }
        }
        sum
    }
}

impl<O: Element> Elementwise<'_, O> {
    /// Read a block of all inputs.
    #[inline(always)]
    fn fill<S: Simd>(&self, simd: S, start: usize, length: usize, block: &mut Block<O::Real>) {
        let Binary { logits, targets, weight, pos_weight, ignore, .. } = self.problem;
        let padded = length.next_multiple_of(O::Real::LANES);
        logits.read(simd, start, &mut block.logits[..length]);
        targets.read(simd, start, &mut block.targets[..length]);
        if let Some(weight) = weight {
            weight.read(simd, start, &mut block.weights[..length]);
        } else {
            block.weights[..length].fill(1.0);
        }
        if let Some(pos_weight) = pos_weight {
            pos_weight.read(simd, start, &mut block.positive[..length]);
        }
        if let Some(gradient) = self.gradient {
            gradient.grad_output.read(simd, start, &mut block.scales[..length]);
            for scale in &mut block.scales[..length] {
                *scale /= self.divisor;
            }
        }
        if let Some(ignored) = ignore {
            for index in 0..length {
                if block.targets[index] == *ignored {
                    (block.logits[index], block.targets[index]) = (O::Real::default(), 0.0);
                    (block.weights[index], block.positive[index], block.scales[index]) = (0.0, 0.0, 0.0);
                } else if pos_weight.is_none() {
                    block.positive[index] = 1.0;
                }
            }
        }
        block.logits[length..padded].fill(O::Real::default());
        block.weights[length..padded].fill(0.0);
    }
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
            label_smoothing: 0.1,
        };
        let mut out = vec![f64::NAN; 700];
        // SAFETY: one axis of values side by side, used by this test alone.
        let view = unsafe { Elements::new(out.as_mut_ptr().cast(), Axes::new([(700, 8)])) };
        let gradient = Gradient { out: view, grad_output: GradOutput::Scalar(2.0) };
        // SAFETY: the output is a vector of its own.
        let found =
            unsafe { binary_cross_entropy::<f64>(&problem, Reduction::Mean, None, None, Some(&gradient), &|| Ok(())) };
        let mut expected = 0.0;
        for (index, &x) in logits.iter().enumerate() {
            let (w, t) = (f64::from(weights[index]), f64::from(targets[index]) * 0.9 + 0.05);
            let counts = targets[index] >= 0;
            let loss = w * ((1.0 - t) * x + (-x).exp().ln_1p());
            let slope = w * (1.0 / (1.0 + (-x).exp()) - t);
            expected += if counts { loss / 560.0 } else { 0.0 };
            let slope = if counts { slope * 2.0 / 560.0 } else { 0.0 };
            assert!((out[index] - slope).abs() < 1e-15, "{index}: {} {slope}", out[index]);
        }
        assert!((found.unwrap() - expected).abs() < 1e-13);
    }
}
