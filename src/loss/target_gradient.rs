//! Derivatives of the cross-entropy by targets that are probabilities: minus log-probabilities, weighted.

use std::ops::Range;

use fearless_simd::Simd;

use super::distribution::{Reading, Use};
use super::rows::scales;
use super::targets::Problem;
use super::{Check, Chunks, Derivatives, GradOutput, Reduction, store_policy};
use crate::array::{Array, RowsMut};
use crate::element::Element;
use crate::error::Result;
use crate::kernel::finish::MOST_LANES;
use crate::kernel::log_softmax::{self, Factors};
use crate::math::{Real, Scale};
use crate::row::{Statistics, product};
use crate::rows::StorePolicy;
use crate::simd::{self, Kernel};

/// Write the derivatives of the reduced loss by the probabilities that are its targets.
///
/// # Errors
/// [`crate::error::Error::Value`] for a probability that is none in a row that counts; nothing was written then. What `check`
/// returned.
///
/// # Panics
/// If the arrays do not fit, or if the logits are capped.
pub fn target_gradient(
    logits: &Array,
    problem: &Problem,
    reduction: Reduction,
    denominator: Option<f64>,
    derivatives: &mut Derivatives,
    check: Check,
) -> Result<()> {
    let (rows, classes) = (logits.rows(), logits.classes());
    problem.assert_fits(rows, classes);
    assert!(problem.transform.softcap().is_none() && problem.focus.is_none());
    let divisor = reduction.divisor(denominator, || problem.weight_sum(rows));
    let chunks = Chunks::of_rows(logits);
    problem.look_at_all(&chunks, classes, check)?;
    let dtype = derivatives.gradient.dtype();
    let (out, _, grad_output) = derivatives.open([rows, classes], rows, dtype);
    let (Some(out), Some(grad_output)) = (out, grad_output) else { unreachable!("there is a result") };
    let store = store_policy(logits, out);
    let parts = out.parts(chunks.ranges());
    let bytes = logits.dtype().size() + 2 * dtype.size();
    let level = simd::level();
    chunks.map(bytes, check, |chunk| {
        let (range, out) = (chunks.rows_of(chunk), parts.take(chunk));
        level.run(Rows { range, logits, problem, divisor, grad_output, out, store });
    })?;
    Ok(())
}

/// The work on a chunk of rows.
struct Rows<'a> {
    range: Range<usize>,
    logits: &'a Array<'a>,
    problem: &'a Problem<'a>,
    divisor: f64,
    grad_output: &'a GradOutput<'a>,
    out: RowsMut<'a>,
    store: StorePolicy,
}

impl Kernel for Rows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        let (range, logits, transform) = (self.range.clone(), self.logits, self.problem.transform);
        let store = self.store;
        Reading { range, logits, transform, normalized: None, settled: None }.run(simd, &mut self);
        if store == StorePolicy::NonTemporal {
            simd::store_fence();
        }
    }
}

impl Use for Rows<'_> {
    const LEADERS: bool = true;
    const SHAPES: bool = false;

    #[inline(always)]
    fn take<S: Simd>(&mut self, simd: S, rows: Range<usize>, known: &Statistics) {
        let mut scales = scales(simd, self.problem, self.grad_output, self.divisor, rows.clone());
        for scale in &mut scales[..MOST_LANES] {
            *scale *= 1.0 - self.problem.label_smoothing;
        }
        for (lane, row) in rows.enumerate() {
            if !self.problem.counts(row) || self.divisor == 0.0 {
                self.out.row(row).fill(0.0);
            } else if self.logits.dtype().is_double() {
                self.write::<S, f64>(simd, row, lane, scales[lane], known);
            } else {
                self.write::<S, f32>(simd, row, lane, scales[lane], known);
            }
        }
    }
}

impl Rows<'_> {
    /// Write the derivatives of a row, which is number `lane` of those that are known.
    #[inline(never)]
    fn write<S: Simd, R: Real + Element<Real = R>>(
        &mut self,
        simd: S,
        row: usize,
        lane: usize,
        scale: f64,
        known: &Statistics,
    ) {
        let (logits, out, transform) = (self.logits.row(row), self.out.row(row), self.problem.transform);
        let (weight, temperature) = (self.problem.weight.as_deref(), transform.temperature());
        let (found, log) = (known.log_sum_exps.get(lane), [known.logs[0][lane], known.logs[1][lane]]);
        let is_normal = scale == 0.0 || (R::SMALLEST_NORMAL..=-Real::to_f64(R::LOWEST)).contains(&scale.abs());
        let suits = Scale::<R>::suits(temperature)
            && found.reference.abs() < Scale::<R>::new::<S>(temperature).largest_reference();
        if is_normal && suits && log[0].is_finite() {
            let factors = Factors { scale, weight };
            log_softmax::write_missed(simd, logits, out, found.reference, log, temperature, factors, self.store);
            return;
        }
        out.in_pieces(|part, mut out| {
            for class in part.clone() {
                let missed = transform.difference(simd, found.reference, logits.get(class))[0] + log[0];
                let factor = scale * weight.map_or(1.0, |weight| weight[class]);
                out.set_rounded(class - part.start, product(factor, missed));
            }
        });
    }
}
