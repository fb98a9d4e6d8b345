//! Derivatives of the cross-entropy by the temperature.
//!
//! With `z = x / T` (x capped if there is a cap) and t what the loss multiplies `lse − z` by, of sum S, a row's is
//! `[Σ t·z − (S + 2·z_loss·lse)·Σ p·z] / T`. All z are taken less that of the reference of the row, so that nothing is a difference of
//! numbers as large as logits are: of a confident row it is as small as the others' probabilities.

use std::ops::Range;

use fearless_simd::Simd;

use super::distribution::{Reading, Use};
use super::rows::add_by_row;
use super::targets::{Problem, Targets};
use super::{Check, Chunks, Reduction, mean};
use crate::array::{Array, ArrayMut, RowsMut};
use crate::element::Element;
use crate::error::Result;
use crate::kernel::finish::{MOST_LANES, PerLane};
use crate::math::Real;
use crate::row::batch::sum_of_lanes;
use crate::row::{Dense, Source, Statistics, product};
use crate::simd::{self, Kernel};

/// The derivative of the reduced loss by the temperature (of the sum, if there is no reduction), with each row's written where asked.
///
/// # Errors
/// [`crate::error::Error::Value`] for a probability that is none in a row that counts; what `check` returned.
///
/// # Panics
/// If the arrays do not fit.
pub fn temperature_gradient(
    logits: &Array,
    problem: &Problem,
    reduction: Reduction,
    denominator: Option<f64>,
    of_rows: Option<&mut ArrayMut>,
    check: Check,
) -> Result<f64> {
    let (rows, classes) = (logits.rows(), logits.classes());
    problem.assert_fits(rows, classes);
    assert!(problem.focus.is_none());
    let divisor = reduction.divisor(denominator, || problem.weight_sum(rows));
    let chunks = Chunks::of_rows(logits);
    problem.look_at_all(&chunks, classes, check)?;
    let of_rows = of_rows.map(|out| out.parts(chunks.ranges()));
    let level = simd::level();
    let sums = chunks.map(2 * logits.dtype().size(), check, |chunk| {
        let (range, out) = (chunks.rows_of(chunk), of_rows.as_ref().map(|parts| parts.take(chunk)));
        level.run(Rows { range, logits, problem, out, sum: [0.0; MOST_LANES] })
    })?;
    // A derivative, which the mean of nothing has: 0.
    Ok(if divisor == 0.0 { 0.0 } else { mean(sums, divisor) })
}

/// The work on a chunk of rows.
struct Rows<'a> {
    range: Range<usize>,
    logits: &'a Array<'a>,
    problem: &'a Problem<'a>,
    out: Option<RowsMut<'a>>,
    sum: PerLane<f64>,
}

impl Kernel for Rows<'_> {
    type Output = f64;

    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) -> f64 {
        let (range, logits, transform) = (self.range.clone(), self.logits, self.problem.transform);
        Reading { range, logits, transform, normalized: None, settled: None }.run(simd, &mut self);
        sum_of_lanes(&self.sum)
    }
}

impl Use for Rows<'_> {
    const LEADERS: bool = true;
    const SHAPES: bool = true;

    #[inline(always)]
    fn take<S: Simd>(&mut self, simd: S, rows: Range<usize>, known: &Statistics) {
        let mut derivatives = [0.0; MOST_LANES];
        for (lane, row) in rows.clone().enumerate().filter(|(_, row)| self.problem.counts(*row)) {
            derivatives[lane] = self.derivative(simd, row, lane, known);
        }
        if let Some(out) = &mut self.out {
            out.set(rows.start, &derivatives[..rows.len()]);
        }
        add_by_row(&mut self.sum, rows.start - self.range.start, &derivatives[..rows.len()]);
    }
}

impl Rows<'_> {
    /// The derivative of a row, which is number `lane` of those that are known.
    #[inline(never)]
    fn derivative<S: Simd>(&self, simd: S, row: usize, lane: usize, known: &Statistics) -> f64 {
        let (problem, transform) = (self.problem, self.problem.transform);
        let found = known.log_sum_exps.get(lane);
        let distance = known.weighted[lane] / found.total();
        let reference = transform.difference(simd, found.reference, 0.0)[0];
        let pull = product(2.0 * problem.z_loss, reference + known.logs[0][lane]);
        let [mass, of_targets] = if self.logits.dtype().is_double() {
            self.weigh::<S, f64>(simd, row, found.reference)
        } else {
            self.weigh::<S, f32>(simd, row, found.reference)
        };
        // A distance of 0 is right, however much it weighs.
        let of_model = product(distance, mass + pull) + product(pull, reference);
        product(problem.sample_weight(row), (of_targets - of_model) / transform.temperature())
    }

    /// `Σ t` and `Σ t·(z − z(reference))` of a row.
    #[inline(always)]
    fn weigh<S: Simd, R: Real + Element<Real = R>>(&self, simd: S, row: usize, reference: f64) -> [f64; 2] {
        let (problem, transform, logits) = (self.problem, self.problem.transform, self.logits.row(row));
        let (classes, smoothing) = (logits.classes(), problem.label_smoothing);
        let uniform = smoothing / classes as f64;
        let spread = Dense { source: Source::Nothing, row, classes, keep: 1.0, uniform, weight: None };
        let dense = problem.dense(row, classes, None).or((smoothing != 0.0).then_some(spread));
        let weighed = dense.map(|dense| dense.weigh::<S, R>(simd, logits, reference, transform));
        let [mut mass, mut sum] = weighed.unwrap_or_default();
        if let Targets::Classes(labels) = &problem.targets
            && let Some(class) = labels.class(row)
        {
            let weight = (1.0 - smoothing) * problem.weight.as_ref().map_or(1.0, |weight| weight[class]);
            mass += weight;
            sum += product(weight, transform.difference(simd, logits.get(class), reference)[0]);
        }
        [mass, sum]
    }
}
