//! The divergences of a model from its teacher other than KL(teacher || model): rows of both, read together.

use std::ops::Range;

use fearless_simd::Simd;

use super::models::{Known, Models, OfRow, Pairs};
use super::rows::{Rows, add_by_row, scales};
use super::ways::{bring_in_all, tiles_of};
use crate::array::Array;
use crate::element::Element;
use crate::kernel::finish::{MOST_LANES, PerLane};
use crate::kernel::kinds::{self, Found, Kind, Levels, Measure};
use crate::kernel::stage::Stage;
use crate::math::{Real, Scale};
use crate::row::product;

impl<'a> Rows<'a> {
    /// Work on rows whose divergence from a teacher is of this kind.
    #[inline(always)]
    pub(super) fn divergences<S: Simd>(&mut self, simd: S, teacher: &'a Array<'a>, kind: Kind, sum: &mut PerLane<f64>) {
        let (transform, logits) = (self.problem.transform, [teacher, self.logits]);
        let models =
            Models { logits, lies_across: logits.iter().any(|logits| logits.lies_across()), transform, together: true };
        let measure = Measure::new(simd, kind, transform.temperature());
        let is_double = logits.iter().any(|logits| logits.dtype().is_double());
        let (range, mut work) = (self.range.clone(), Work { rows: self, teacher, measure, sum });
        if is_double || !Scale::<f32>::suits(transform.temperature()) {
            models.take::<S, f64, _>(simd, range, &mut work);
        } else {
            models.take::<S, f32, _>(simd, range, &mut work);
        }
    }
}

/// The work on a chunk of rows.
struct Work<'r, 'a> {
    rows: &'r mut Rows<'a>,
    teacher: &'a Array<'a>,
    measure: Measure,
    sum: &'r mut PerLane<f64>,
}

/// What the derivatives of some rows are multiplied by, one row a lane; NaN for rows that have none.
struct Scales {
    scales: PerLane<f64>,
    /// Whether the row counts: the derivatives of others are 0.
    counts: [bool; MOST_LANES],
}

impl Pairs for Work<'_, '_> {
    const LEADS: bool = true;

    #[inline(never)]
    fn staged<S: Simd, R: Real + Element<Real = R>>(&mut self, simd: S, rows: Range<usize>, known: &Known) -> bool {
        let classes = self.teacher.classes();
        let (mut first, mut second, mut wings) = (Stage::<R>::empty(), Stage::<R>::empty(), Stage::<R>::empty());
        if !wings.reserve(R::LANES, classes)
            || !bring_in_all(simd, &mut first, self.teacher, rows.clone(), R::LANES, true)
            || !bring_in_all(simd, &mut second, self.rows.logits, rows.clone(), R::LANES, true)
        {
            return false;
        }
        let of_tile = tiles_of::<R>(rows.clone());
        // SAFETY: all tiles were brought in.
        let teachers = unsafe { first.strip(classes) };
        for tile in 0..rows.len().div_ceil(R::LANES) {
            let some = of_tile(tile);
            // SAFETY: as above.
            let mut models = unsafe { second.strip(classes) };
            let (teacher, mut model) = (teachers.read().tile(tile), models.tile(tile));
            let known = known.of(some.clone());
            let levels = levels_of(known);
            let mut found = kinds::sum_tiles(simd, &self.measure, [teacher, model.read()], &levels);
            let Some(Scales { scales, counts }) = self.finish(simd, some.clone(), known, &mut found) else { continue };
            kinds::write_tile(simd, &self.measure, (teacher, &mut model), (&levels, &found), &scales);
            for lane in (0..some.len()).filter(|lane| !counts[*lane]) {
                for class in 0..classes {
                    model.set(class, lane, R::default());
                }
            }
            let Some(out) = &mut self.rows.gradient else { continue };
            // SAFETY: the tile was brought in, and written over.
            unsafe { second.bring_out(simd, tile, out, some, &mut wings, self.rows.store[0]) }
        }
        true
    }

    #[inline(never)]
    fn one_by_one<S: Simd, R: Real + Element<Real = R>>(&mut self, simd: S, rows: Range<usize>, known: &Known) {
        for first in rows.clone().step_by(R::LANES) {
            let some = first..rows.end.min(first + R::LANES);
            let known = known.of(some.clone());
            let (levels, mut found) = (levels_of(known), Found::default());
            let pair = |row| [self.teacher.row(row), self.rows.logits.row(row)];
            for (lane, row) in some.clone().enumerate().filter(|(lane, _)| are_finite(known, *lane)) {
                kinds::sum_rows::<S, R>(simd, &self.measure, pair(row), (&levels, lane), &mut found);
            }
            let Some(Scales { scales, counts }) = self.finish(simd, some.clone(), known, &mut found) else { continue };
            for (lane, row) in some.enumerate() {
                let pair = [self.teacher.row(row), self.rows.logits.row(row)];
                let (store, Some(out)) = (self.rows.store[0], &mut self.rows.gradient) else { continue };
                let mut out = out.row(row);
                if !counts[lane] || scales[lane].is_nan() {
                    out.fill(if counts[lane] { f64::NAN } else { 0.0 });
                    continue;
                }
                let of = (&levels, &found, lane);
                kinds::write_row::<S, R>(simd, &self.measure, pair, of, scales[lane], out, store);
            }
        }
    }
}

impl Work<'_, '_> {
    /// Take the losses of some rows, no more than there are lanes, to where they go; what their derivatives are multiplied by, if these
    /// are asked for.
    #[inline(never)]
    fn finish<S: Simd>(
        &mut self,
        simd: S,
        rows: Range<usize>,
        known: [&[OfRow]; 2],
        found: &mut Found,
    ) -> Option<Scales> {
        let (problem, divisor) = (self.rows.problem, self.rows.divisor);
        let (mut losses, mut counts) = ([0.0; MOST_LANES], [false; MOST_LANES]);
        for (lane, row) in rows.clone().enumerate() {
            let weight = problem.sample_weight(row);
            counts[lane] = weight != 0.0;
            if counts[lane] {
                let divergence = if are_finite(known, lane) { found.divergence[lane] } else { f64::NAN };
                losses[lane] = product(weight, divergence);
            }
            // What is infinite has no derivative.
            if found.divergence[lane] == f64::INFINITY {
                (found.mean[lane], found.top[lane]) = (f64::NAN, f64::NAN);
            }
        }
        if let Some(out) = &mut self.rows.losses {
            out.set(rows.start, &losses[..rows.len()]);
        }
        add_by_row(self.sum, rows.start - self.rows.range.start, &losses[..rows.len()]);
        let mut scales = scales(simd, problem, self.rows.grad_output?, divisor, rows.clone());
        for lane in 0..rows.len() {
            counts[lane] &= divisor != 0.0;
            let is_number = are_finite(known, lane);
            let scale = scales[lane] * self.measure.factor() / problem.transform.temperature();
            scales[lane] = if is_number { product(found.slope[lane], scale) } else { f64::NAN };
        }
        Some(Scales { scales, counts })
    }
}

/// Whether both models' log-sum-exps of a row are numbers.
#[inline(always)]
fn are_finite(known: [&[OfRow]; 2], lane: usize) -> bool {
    known[0][lane].is_finite && known[1][lane].is_finite
}

/// The log-sum-exps of some rows, no more than there are lanes.
#[inline(always)]
fn levels_of(known: [&[OfRow]; 2]) -> Levels {
    let mut levels = Levels::default();
    for (model, of_model) in known.into_iter().enumerate() {
        for (lane, of) in of_model.iter().enumerate() {
            levels.references[model][lane] = of.reference;
            (levels.logs[model][0][lane], levels.logs[model][1][lane]) = (of.log[0], of.log[1]);
        }
    }
    levels
}
