//! Binary cross-entropy of sigmoid(logits), elementwise, and its gradient.

use std::marker::PhantomData;
use std::ops::Range;

use fearless_simd::Simd;

use super::{BadTarget, Check, Chunks, Derivatives, Found, GradOutput, Reduction, mean, store_policy};
use crate::array::{Array, ArrayMut, RowsMut};
use crate::dtype::{Dtype, Number, with_element};
use crate::element::Element;
use crate::error::Result;
use crate::kernel::binary::{self, Results};
use crate::math::{Real, Total};
use crate::row::binary::{Room, Weighted, losses};
use crate::rows::{BLOCK, StorePolicy};
use crate::simd::{self, Kernel};

/// A problem: arrays of the logits' shape, in C order; what was broadcast has steps of 0.
#[derive(Clone, Debug)]
pub struct Binary<'a> {
    /// The logits.
    pub logits: Array<'a>,
    /// The targets, probabilities of the positive class.
    pub targets: Array<'a>,
    /// A weight of every element.
    pub weight: Option<Array<'a>>,
    /// A weight of its positive part.
    pub pos_weight: Option<Array<'a>>,
    /// Elements with this target do not count. Targets that are integers are 0, 1 or this.
    pub ignore_index: Option<i128>,
    /// The share of the target that is replaced by one half.
    pub label_smoothing: f64,
    /// Losses are multiplied by this power of what the probability of the target lacks of 1.
    pub focal_gamma: f64,
}

impl Binary<'_> {
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
        let Self { targets, weight, pos_weight, ignore_index, label_smoothing, focal_gamma, .. } = self;
        targets.dtype().fits_into(R::DTYPE)
            && weight.is_none()
            && pos_weight.is_none()
            && ignore_index.is_none()
            && *label_smoothing == 0.0
            && *focal_gamma == 0.0
    }

    /// The target of elements that do not count; beyond 2^53 that and its neighbours.
    fn ignored(&self) -> Option<f64> {
        self.ignore_index.map(|index| index as f64)
    }

    /// What was found, or the error for the bad target that was.
    fn checked<T>(&self, found: Found<T>) -> Result<T> {
        found.map_err(|bad| {
            let ignored = self.ignore_index.map_or_else(String::new, |index| format!(", or ignore_index {index}"));
            bad.error(&self.targets, &format!("0 or 1{ignored}"))
        })
    }

    /// How many elements count, after a look at all targets.
    fn counted(&self, check: Check) -> Result<f64> {
        let chunks = Chunks::of_elements(self.count());
        let level = simd::level();
        let counts = chunks.map(8, check, |chunk| level.run(Count { range: chunks.rows_of(chunk), problem: self }))?;
        Ok(self.checked(counts.into_iter().sum::<Found<usize>>())? as f64)
    }

    /// Look at the targets from number `start` on.
    #[inline(always)]
    fn look_at<R: Real>(&self, start: usize, targets: &[R]) -> Found<()> {
        if !self.targets.dtype().is_integer() {
            return Ok(());
        }
        let [zero, one, ignored] = [0.0, 1.0, self.ignored().unwrap_or(0.0)].map(R::from_f64);
        let is_fine = |target: &R| *target == zero || *target == one || *target == ignored;
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
/// [`crate::error::Error::Value`] for an integer target that is neither 0 nor 1 nor ignored; nothing of the caller's was
/// written then. What `check` returned.
///
/// # Panics
/// If the arrays do not fit.
pub fn binary_cross_entropy(
    problem: &Binary,
    reduction: Reduction,
    denominator: Option<f64>,
    losses: Option<&mut ArrayMut>,
    derivatives: Option<&mut Derivatives>,
    check: Check,
) -> Result<f64> {
    // Without derivatives, what matters of the dtype is what it computes in.
    let computed = if problem.logits.dtype().is_double() { Dtype::F64 } else { Dtype::F32 };
    let dtype = derivatives.as_ref().map_or(computed, |derivatives| derivatives.gradient.dtype());
    with_element!(dtype, O => drive::<O>(problem, reduction, denominator, losses, derivatives, check))
}

/// [`binary_cross_entropy`] with derivatives, if there are any, that are `O`s.
fn drive<O: Element>(
    problem: &Binary,
    reduction: Reduction,
    denominator: Option<f64>,
    losses: Option<&mut ArrayMut>,
    derivatives: Option<&mut Derivatives>,
    check: Check,
) -> Result<f64> {
    problem.assert_fits();
    let given = derivatives.as_ref().is_some_and(|derivatives| derivatives.given);
    let counts = reduction == Reduction::Mean && denominator.is_none() && problem.ignore_index.is_some();
    let looks = given && problem.targets.dtype().is_integer();
    let counted = if counts || looks { problem.counted(check)? } else { problem.count() as f64 };
    let divisor = reduction.divisor(denominator, || counted);
    let count = problem.count();
    let (gradient, hessian, grad_output) =
        derivatives.map_or((None, None, None), |derivatives| derivatives.open([count, 1], count, O::DTYPE));
    let store = [gradient.as_deref(), hessian.as_deref()]
        .map(|out| out.map_or(StorePolicy::Cached, |out| store_policy(&problem.logits, out)));
    let chunks = Chunks::of_elements(problem.count());
    let losses = losses.map(|out| out.parts(chunks.ranges()));
    let gradient = gradient.map(|out| out.parts(chunks.ranges()));
    let hessian = hessian.map(|out| out.parts(chunks.ranges()));
    let level = simd::level();
    let sums = chunks.map(16, check, |chunk| {
        level.run(Elementwise::<O> {
            range: chunks.rows_of(chunk),
            problem,
            divisor,
            losses: losses.as_ref().map(|parts| parts.take(chunk)),
            gradient: gradient.as_ref().map(|parts| parts.take(chunk)),
            hessian: hessian.as_ref().map(|parts| parts.take(chunk)),
            grad_output,
            store,
            element: PhantomData,
        })
    })?;
    Ok(mean(problem.checked(sums.into_iter().collect::<Found<_>>())?, divisor))
}

struct Count<'a> {
    range: Range<usize>,
    problem: &'a Binary<'a>,
}

impl Kernel for Count<'_> {
    type Output = Found<usize>;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> Found<usize> {
        // Nothing equals NaN.
        let ignored = self.problem.ignored().unwrap_or(f64::NAN);
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
    problem: &'a Binary<'a>,
    divisor: f64,
    losses: Option<RowsMut<'a>>,
    gradient: Option<RowsMut<'a>>,
    hessian: Option<RowsMut<'a>>,
    grad_output: Option<&'a GradOutput<'a>>,
    /// How the gradient and the Hessian are stored.
    store: [StorePolicy; 2],
    element: PhantomData<O>,
}

impl<O: Element> Kernel for Elementwise<'_, O> {
    type Output = Found<f64>;

    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) -> Found<f64> {
        let mut total = Total::zero(simd);
        let scale = match self.grad_output {
            None => Some(0.0),
            Some(GradOutput::Scalar(scale)) => Some(scale / self.divisor),
            Some(GradOutput::Each(_)) => None,
        };
        let found = match scale {
            Some(scale) if self.problem.is_plain::<O::Real>() && self.divisor != 0.0 => {
                self.plain(simd, scale, &mut total)
            }
            _ => self.weighted(simd, self.range.clone(), scale.unwrap_or_default(), &mut total),
        };
        if self.store.contains(&StorePolicy::NonTemporal) {
            simd::store_fence();
        }
        found.map(|()| total.value())
    }
}

impl<O: Element> Elementwise<'_, O> {
    /// The work, with targets alone.
    #[inline(always)]
    fn plain<S: Simd>(&mut self, simd: S, scale: f64, total: &mut Total<S>) -> Found<()> {
        let kept = self.losses.as_ref().is_none_or(|losses| losses.dtype() == <O::Real>::DTYPE);
        if !kept || !binary::suits::<O::Real>(scale) {
            return self.weighted(simd, self.range.clone(), scale, total);
        }
        let mut logits = [<O::Real>::LOWEST; BLOCK];
        let mut copied = [O::Real::default(); BLOCK];
        let mut results = Results::default();
        for start in self.range.clone().step_by(BLOCK) {
            let length = BLOCK.min(self.range.end - start);
            let logits = self.problem.logits.block(simd, start, length, &mut logits, <O::Real>::LOWEST);
            let targets = self.problem.targets.block(simd, start, length, &mut copied, O::Real::default());
            // Integers are never lent as they are.
            self.problem.look_at(start, &copied[..length])?;
            let here = start..start + length;
            // SAFETY: both are blocks.
            if !unsafe { self.plain_block(simd, here.clone(), [logits, targets], scale, &mut results, total) } {
                self.weighted(simd, here, scale, total)?;
            }
        }
        Ok(())
    }

    /// The work on a block, with targets alone; false, and nothing done, if its losses are not finite.
    ///
    /// # Safety
    /// Logits and targets are readable for a block.
    #[inline(always)]
    unsafe fn plain_block<S: Simd>(
        &mut self,
        simd: S,
        here: Range<usize>,
        pair: [*const O::Real; 2],
        scale: f64,
        results: &mut Results<O::Real>,
        total: &mut Total<S>,
    ) -> bool {
        let (start, length) = (here.start, here.len());
        // SAFETY: the caller's promise.
        let done = unsafe {
            match (&self.losses, &self.gradient) {
                _ if self.hessian.is_some() => {
                    binary::losses::<S, _, true, true, true, false>(simd, pair, length, scale, total, results)
                }
                (None, None) => {
                    binary::losses::<S, _, false, false, false, false>(simd, pair, length, scale, total, results)
                }
                (None, Some(_)) => {
                    binary::losses::<S, _, false, true, false, false>(simd, pair, length, scale, total, results)
                }
                (Some(_), None) => {
                    binary::losses::<S, _, true, false, false, false>(simd, pair, length, scale, total, results)
                }
                (Some(_), Some(_)) => {
                    binary::losses::<S, _, true, true, false, false>(simd, pair, length, scale, total, results)
                }
            }
        };
        if done {
            if let Some(out) = &mut self.losses {
                out.write::<S, O::Real>(simd, start, &results.losses[..length], StorePolicy::Cached);
            }
            if let Some(out) = &mut self.gradient {
                out.write::<S, O>(simd, start, &results.gradients[..length], self.store[0]);
            }
            if let Some(out) = &mut self.hessian {
                out.write::<S, O>(simd, start, &results.hessians[..length], self.store[1]);
            }
        }
        done
    }

    /// The work on some elements, with everything; `scale` is for all gradients, unless each has its own.
    #[inline(always)]
    fn weighted<S: Simd>(&mut self, simd: S, range: Range<usize>, scale: f64, total: &mut Total<S>) -> Found<()> {
        let Binary { logits, targets, weight, pos_weight, label_smoothing, focal_gamma, .. } = self.problem;
        let ignore = self.problem.ignored();
        let each = match self.grad_output {
            Some(GradOutput::Each(numbers)) => Some(numbers),
            _ => None,
        };
        let mut block = [<O::Real>::LOWEST; BLOCK];
        let mut weighted = Weighted {
            targets: [0.0; BLOCK],
            weights: [1.0; BLOCK],
            positive: [1.0; BLOCK],
            scales: [scale; BLOCK],
            label_smoothing: *label_smoothing,
            focal_gamma: *focal_gamma,
        };
        let mut room = Room::default();
        let mut cleaned = false;
        for start in range.clone().step_by(BLOCK) {
            let length = BLOCK.min(range.end - start);
            let Weighted { targets: t, weights: w, positive, scales, .. } = &mut weighted;
            if cleaned {
                (*positive, *scales) = ([1.0; BLOCK], [scale; BLOCK]);
            }
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
            cleaned = ignore.is_some() || self.divisor == 0.0 || weight.is_some() && w[..length].contains(&0.0);
            let logits = if cleaned {
                logits.read(simd, start, &mut block[..length]);
                block[length..].fill(<O::Real>::LOWEST);
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
                logits.block(simd, start, length, &mut block, <O::Real>::LOWEST)
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

    /// The work on a block, with everything.
    ///
    /// # Safety
    /// `logits` are readable for a block.
    #[inline(always)]
    unsafe fn block<S: Simd>(
        &mut self,
        simd: S,
        here: Range<usize>,
        logits: *const O::Real,
        weighted: &Weighted,
        room: &mut Room<O::Real>,
        total: &mut Total<S>,
    ) {
        let (start, length) = (here.start, here.len());
        // SAFETY: the blocks are readable by the caller's promise.
        unsafe {
            match (&self.losses, &self.gradient) {
                _ if self.hessian.is_some() => {
                    losses::<S, _, true, true, true>(simd, logits, weighted, length, total, room);
                }
                (None, None) => losses::<S, _, false, false, false>(simd, logits, weighted, length, total, room),
                (None, Some(_)) => losses::<S, _, false, true, false>(simd, logits, weighted, length, total, room),
                (Some(_), None) => losses::<S, _, true, false, false>(simd, logits, weighted, length, total, room),
                (Some(_), Some(_)) => {
                    losses::<S, _, true, true, false>(simd, logits, weighted, length, total, room);
                }
            }
        }
        if let Some(out) = &mut self.losses {
            out.set(start, &room.losses[..length]);
        }
        if let Some(out) = &mut self.gradient {
            out.write::<S, O>(simd, start, &room.gradients[..length], self.store[0]);
        }
        if let Some(out) = &mut self.hessian {
            out.write::<S, O>(simd, start, &room.hessians[..length], self.store[1]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::array::Layout;

    #[test]
    fn losses_and_gradients_agree_with_the_formula() {
        let logits: Vec<f64> = (0..700).map(|i| f64::from(i - 350) / 9.0).collect();
        let targets: Vec<i8> = (0..700).map(|i| [0, 1, -1, 1, 0][i % 5]).collect();
        let weights: Vec<f32> = (0..700).map(|i| (i % 3) as f32).collect();
        let problem = Binary {
            logits: Array::of(&logits, 1),
            targets: Array::of(&targets, 1),
            weight: Some(Array::of(&weights, 1)),
            pos_weight: None,
            ignore_index: Some(-1),
            label_smoothing: 0.1,
            focal_gamma: 0.0,
        };
        let mut out = vec![f64::NAN; 700];
        let mut second = vec![f64::NAN; 700];
        let mut derivatives = Derivatives {
            gradient: ArrayMut::of(&mut out, 1),
            hessian: Some(ArrayMut::of(&mut second, 1)),
            grad_output: GradOutput::Scalar(2.0),
            given: true,
        };
        let found = binary_cross_entropy(&problem, Reduction::Mean, None, None, Some(&mut derivatives), &|| Ok(()));
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
        assert!((found.unwrap() - expected).abs() < 1e-13);
    }

    /// Loss and gradient of problems with a scalar to multiply the gradient with.
    fn solved(problem: &Binary, gradient: ArrayMut) -> f64 {
        let mut derivatives =
            Derivatives { gradient, hessian: None, grad_output: GradOutput::Scalar(1.5), given: true };
        binary_cross_entropy(problem, Reduction::Sum, None, None, Some(&mut derivatives), &|| Ok(())).unwrap()
    }

    /// Read in place or not, with weights of 1 or without, written in place or not: the lengths end blocks and vectors
    /// everywhere.
    #[test]
    fn targets_alone_are_near_targets_with_weights_of_one() {
        for length in [1, 7, 8, 16, 17, 255, 256, 257, 700] {
            let logits: Vec<f32> = (0..length).map(|i| (i as f32 * 0.7).sin() * 12.0).collect();
            let labels: Vec<u8> = (0..length).map(|i| u8::from(i % 3 == 0)).collect();
            let floats: Vec<f32> = labels.iter().map(|&target| f32::from(target)).collect();
            let ones = vec![1i8; length];
            let problem = |targets| Binary {
                logits: Array::of(&logits, 1),
                targets,
                weight: None,
                pos_weight: None,
                ignore_index: None,
                label_smoothing: 0.0,
                focal_gamma: 0.0,
            };
            let mut outs = [vec![f32::NAN; length], vec![f32::NAN; length], vec![f32::NAN; length]];
            let plain = problem(Array::of(&floats, 1));
            assert!(plain.is_plain::<f32>());
            let losses = [
                solved(&plain, ArrayMut::of(&mut outs[0], 1)),
                solved(&problem(Array::of(&labels, 1)), ArrayMut::of(&mut outs[1], 1)),
                solved(&Binary { weight: Some(Array::of(&ones, 1)), ..plain.clone() }, ArrayMut::of(&mut outs[2], 1)),
            ];
            assert_eq!(losses[0], losses[1], "{length}");
            assert_eq!(outs[0], outs[1], "{length}");
            // With weights another kernel computes them, in float64.
            assert!((losses[2] / losses[0] - 1.0).abs() < 1e-6, "{length}: {losses:?}");
            for (gradient, other) in outs[0].iter().zip(&outs[2]) {
                assert!((gradient - other).abs() <= 4e-7 * other.abs(), "{length}: {gradient} {other}");
            }
            let expected: f64 = logits.iter().zip(&floats).map(|(&x, &t)| softplus(f64::from(x), f64::from(t))).sum();
            assert!((losses[0] - expected).abs() < 1e-6 * expected, "{length}: {} {expected}", losses[0]);
            let mut in_place = logits.clone();
            let base = in_place.as_mut_ptr().cast();
            let layout = Layout { base, dtype: Dtype::F32, swapped: false, shape: &[length], strides: &[4] };
            // SAFETY: the layout is that of a vector of this test, which the gradient is written over.
            let (logits, out) = unsafe { (Array::new(&layout, None), ArrayMut::new(&layout, None)) };
            assert_eq!(solved(&Binary { logits, ..plain }, out), losses[0]);
            assert_eq!(in_place, outs[0], "{length}");
        }
    }

    fn softplus(x: f64, target: f64) -> f64 {
        (-x.abs()).exp().ln_1p() + x.max(0.0) - target * x
    }
}
