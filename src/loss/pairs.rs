//! Rows of two classes, one of which is the target, without weights: each is one binary logit, the difference of the two.

use std::ops::Range;

use fearless_simd::{Simd, prelude::*};

use super::labels::Labels;
use super::plan::Plan;
use super::rows::Rows;
use super::{Found, GradOutput};
use crate::array::Array;
use crate::dtype::{Number, with_element};
use crate::element::Element;
use crate::kernel::binary::{self, Pairs, Results};
use crate::kernel::finish::PerLane;
use crate::math::{Real, Total, is_fused};
use crate::rows::{BLOCK, RowMut, StorePolicy, same};
use crate::simd::prefetch_ahead;

/// Room for a block of rows.
struct Block<R> {
    /// What the logits' differences, the second less the first, are multiplied by: 1 if the target is the first class, −1 if it is
    /// the second, and 0 where the row does not count.
    signs: [R; BLOCK],
    /// The differences as sums of two, then the gradients of each class.
    parts: [[R; BLOCK]; 2],
    results: Results<R>,
    /// Logits that do not lie as they are computed with, then the gradients row by row.
    pairs: [R; 2 * BLOCK],
}

impl Rows<'_> {
    /// What gradients are multiplied by, if rows of two classes are all that is asked for; 0 if there are none.
    #[inline(always)]
    pub(super) fn scale_of_pairs<S: Simd, R: Real + Number>(&self, plan: &Plan<R>) -> Option<f64> {
        let scale = match self.grad_output {
            None => 0.0,
            Some(GradOutput::Scalar(scale)) => scale / self.divisor,
            Some(GradOutput::Each(_)) => return None,
        };
        let suits = is_fused::<S>()
            && self.logits.classes() == 2
            && plan.plain().is_some()
            && self.problem.focus.is_none()
            && plan.temperature == 1.0
            && self.problem.weight.is_none()
            && self.problem.sample_weight.is_none()
            && self.divisor != 0.0
            && self.losses.as_ref().is_none_or(|losses| losses.dtype() == R::DTYPE)
            && binary::suits::<R>(scale);
        suits.then_some(scale)
    }

    /// Work on rows of two classes.
    #[inline(always)]
    pub(super) fn pairs<S: Simd, R: Real + Element<Real = R>>(
        &mut self,
        simd: S,
        plan: &Plan<R>,
        labels: &Labels,
        scale: f64,
        sum: &mut PerLane<f64>,
    ) -> Found<()> {
        // What overwrites the logits is written last.
        if self.gradient_last {
            self.hessians(simd, plan, self.range.clone())?;
        }
        let zero = R::default();
        let mut block = Block {
            signs: [zero; BLOCK],
            parts: [[zero; BLOCK]; 2],
            results: Results::default(),
            pairs: [zero; 2 * BLOCK],
        };
        let mut total = Total::zero(simd);
        let [first, second] = [1.0, -1.0].map(<R as Real>::from_f64);
        for start in self.range.clone().step_by(BLOCK) {
            let rows = start..self.range.end.min(start + BLOCK);
            block.signs[rows.len()..].fill(zero);
            labels.map_into(start, &mut block.signs[..rows.len()], |class| match class {
                None => zero,
                Some(0) => first,
                Some(_) => second,
            });
            if !self.pairs_block::<S, R>(simd, rows.clone(), scale, &mut block, &mut total) {
                self.careful_pairs::<S, R>(simd, rows, scale, &mut block, &mut total, sum);
            }
        }
        sum[0] += total.value();
        if self.gradient_last { Ok(()) } else { self.hessians(simd, plan, self.range.clone()) }
    }

    /// Work on a block; false, and nothing done, if the sum of its losses is not finite.
    #[inline(always)]
    fn pairs_block<S: Simd, R: Real + Element<Real = R>>(
        &mut self,
        simd: S,
        rows: Range<usize>,
        scale: f64,
        block: &mut Block<R>,
        total: &mut Total<S>,
    ) -> bool {
        let Block { signs, parts, results, pairs } = block;
        let (start, count) = (rows.start, rows.len());
        // SAFETY: `lend` gives a block of pairs, in the array or in `pairs`; both parts of the differences are blocks.
        let done = unsafe {
            binary::differences(simd, lend(simd, self.logits, rows, pairs), signs, count, parts);
            let parts = [parts[0].as_ptr(), parts[1].as_ptr()];
            match (&self.losses, &self.gradient) {
                (None, None) => {
                    binary::losses::<S, R, false, false, false, true>(simd, parts, count, scale, total, results)
                }
                (None, Some(_)) => {
                    binary::losses::<S, R, false, true, false, true>(simd, parts, count, scale, total, results)
                }
                (Some(_), None) => {
                    binary::losses::<S, R, true, false, false, true>(simd, parts, count, scale, total, results)
                }
                (Some(_), Some(_)) => {
                    binary::losses::<S, R, true, true, false, true>(simd, parts, count, scale, total, results)
                }
            }
        };
        if !done {
            return false;
        }
        if let Some(out) = &mut self.losses {
            out.write::<S, R>(simd, start, &results.losses[..count], StorePolicy::Cached);
        }
        if let Some(out) = &mut self.gradient {
            let apart = if out.is_contiguous() { None } else { out.neighbours(start, count) };
            block.share_gradients(simd, count, apart.is_none());
            with_element!(out.dtype(), O => {
                if let Some((place, step)) = apart {
                    for (class, values) in (0isize..).zip(&block.parts) {
                        let values = &same::<_, [<O as Element>::Real; BLOCK]>(values)[..count];
                        // SAFETY: so many gradients of a class lie side by side there, as `neighbours` said, which asserted that
                        // the rows are this thread's.
                        let mut run = unsafe {
                            RowMut::of_run::<O>(place.wrapping_offset(class * step), count, size_of::<O>() as isize)
                        };
                        run.write_values::<S, O>(simd, values, self.store[0]);
                    }
                } else {
                    let values = &same::<_, [<O as Element>::Real; 2 * BLOCK]>(&block.pairs)[..2 * count];
                    out.write::<S, O>(simd, 2 * start, values, self.store[0]);
                }
            });
        }
        true
    }

    /// Work on a block whose losses have no finite sum: rows that are to blame one by one.
    #[inline(never)]
    fn careful_pairs<S: Simd, R: Real + Element<Real = R>>(
        &mut self,
        simd: S,
        rows: Range<usize>,
        scale: f64,
        block: &mut Block<R>,
        total: &mut Total<S>,
        sum: &mut PerLane<f64>,
    ) {
        let parts = [block.parts[0].as_ptr(), block.parts[1].as_ptr()];
        // SAFETY: both parts are blocks; they hold the differences still, for nothing was done.
        unsafe {
            let (count, mut ignored) = (rows.len(), Total::zero(simd));
            binary::losses::<S, R, true, false, false, true>(simd, parts, count, 0.0, &mut ignored, &mut block.results);
        }
        // Of smaller ones a block has a finite sum.
        let small = -Real::to_f64(R::LOWEST) / (4 * BLOCK) as f64;
        let mut others = Vec::new();
        for (index, row) in rows.clone().enumerate() {
            let loss = Real::to_f64(block.results.losses[index]);
            if loss.is_nan() || loss >= small {
                block.signs[index] = R::default();
                others.push((row, [0, 1].map(|class| self.logits.row(row).get(class))));
            }
        }
        let done = self.pairs_block(simd, rows, scale, block, total);
        assert!(done, "what is large is left out");
        for (row, logits) in others {
            if self.gradient_last
                && let Some(out) = &mut self.gradient
            {
                // Zeros were written over them.
                for (class, logit) in logits.into_iter().enumerate() {
                    out.row(row).set_rounded(class, logit);
                }
            }
            let loss = self.careful_row(simd, row, false);
            if let Some(out) = &mut self.losses {
                out.set(row, &[loss]);
            }
            sum[(row - self.range.start) % sum.len()] += loss;
            if self.gradient.is_some() {
                self.careful_row(simd, row, true);
            }
        }
    }
}

impl<R: Real> Block<R> {
    /// From the gradients by the logits of the other classes to those by both: row by row, or each class for itself.
    #[inline(always)]
    fn share_gradients<S: Simd>(&mut self, simd: S, count: usize, beside: bool) {
        simd.vectorize(
            #[inline(always)]
            || {
                for vector in 0..count.div_ceil(R::LANES) {
                    let here = vector * R::LANES..(vector + 1) * R::LANES;
                    let load = |numbers: &[R; BLOCK]| R::Lanes::<S>::from_slice(simd, &numbers[here.clone()]);
                    let second = load(&self.results.gradients) * load(&self.signs);
                    // Of an ignored row 0, which is not −0.
                    let first = R::splat(simd, 0.0) - second;
                    if beside {
                        let (low, high) = first.interleave(second);
                        let (lows, highs) = self.pairs[2 * here.start..2 * here.end].split_at_mut(R::LANES);
                        low.store_slice(lows);
                        high.store_slice(highs);
                    } else {
                        first.store_slice(&mut self.parts[0][here.clone()]);
                        second.store_slice(&mut self.parts[1][here.clone()]);
                    }
                }
            },
        );
    }
}

/// A block of pairs, of which these rows are the first: where they lie, if they do as a whole, else in `pairs`.
#[inline(always)]
fn lend<S: Simd, R: Real + Element<Real = R>>(
    simd: S,
    logits: &Array,
    rows: Range<usize>,
    pairs: &mut [R; 2 * BLOCK],
) -> Pairs<R> {
    let (start, count) = (rows.start, rows.len());
    if !logits.is_contiguous()
        && let Some((place, step)) = logits.neighbours(start, count)
    {
        let places = [place, place.wrapping_offset(step)];
        if count == BLOCK && logits.dtype() == R::DTYPE {
            for place in places {
                prefetch_ahead(place, BLOCK * size_of::<R>());
            }
            return Pairs::Apart(places.map(|place| place.cast_const().cast()));
        }
        let planes = logits.across(start, count).expect("neighbours");
        let (first, second) = pairs.split_at_mut(BLOCK);
        planes.read(simd, 0, &mut first[..count]);
        planes.read(simd, count, &mut second[..count]);
        return Pairs::Apart([first.as_ptr(), second.as_ptr()]);
    }
    Pairs::Beside(logits.block(simd, 2 * start, 2 * count, pairs, R::default()))
}
