//! Which rows go by which of the kernels that need no maximum; those whose targets are classes and nothing else; and the rows
//! that these kernels do not suit, one by one.

use std::ops::Range;

use fearless_simd::Simd;

use super::Found;
use super::labels::Labels;
use super::plan::{Goal, Plan, RowGradients, lanes_of, targets_of};
use super::rows::{Rows, add_by_row, scales};
use super::targets::{Problem, Targets};
use super::ways::{Way, is_strip, most_tiles, strip_mut_of, strip_of, tiles_of};
use crate::element::Element;
use crate::kernel::finish::{self, Coefficients, Losses, MOST_LANES, Own, PerLane, Sums};
use crate::kernel::horizontal;
use crate::kernel::shares::Aim;
use crate::kernel::stage::{Stage, most_classes};
use crate::kernel::vertical::{self, Tiles};
use crate::math::Real;
use crate::row::product;

impl Rows<'_> {
    /// Work on rows from `first` on, as many as go by the same kernel, and say how many these were.
    #[inline(always)]
    pub(super) fn planned_rows<S: Simd, R: Real + Element<Real = R>>(
        &mut self,
        simd: S,
        plan: &Plan<R>,
        first: usize,
        sum: &mut PerLane<f64>,
    ) -> Found<usize> {
        let most = most_tiles(self.logits.classes(), plan.passes());
        let (logits, gradient) = (self.logits, self.gradient.as_mut());
        let lies_alike = |rows| plan.lies_alike(first, rows);
        let fits = |rows| is_strip::<R>(gradient, first, rows);
        let way = Way::of::<R>(logits, first, self.range.end - first, most, self.problem.settled, lies_alike, fits);
        let rows = first..first + way.rows::<R>();
        if !self.look_up_listed(plan, rows.clone()) {
            self.careful_any(simd, rows.clone(), sum)?;
            return Ok(rows.len());
        }
        // What overwrites the logits is written last.
        if self.gradient_last {
            self.hessians(simd, plan, rows.clone())?;
        }
        match (way, plan.plain()) {
            (Way::Strip(_), Some(labels)) => self.strip(simd, plan, labels, rows.clone(), sum),
            (Way::Strip(_), None) => self.strip_options(simd, plan, rows.clone(), sum)?,
            (Way::Staged(_), Some(labels)) => self.staged(simd, plan, labels, rows.clone(), sum),
            (Way::Staged(_), None) => self.staged_options(simd, plan, rows.clone(), sum)?,
            (Way::OneByOne(_), Some(labels)) => self.long(simd, plan, labels, rows.clone(), sum),
            (Way::OneByOne(_), None) => self.long_options(simd, plan, rows.clone(), sum)?,
        }
        if !self.gradient_last {
            self.hessians(simd, plan, rows.clone())?;
        }
        Ok(rows.len())
    }

    /// Look up the logits of the classes that the next rows list, if they do; false if there is no memory for them.
    #[inline(always)]
    fn look_up_listed<R: Real>(&mut self, plan: &Plan<R>, rows: Range<usize>) -> bool {
        let (Goal::Listed(_), Targets::Listed(listed)) = (plan.goal, &self.problem.targets) else { return true };
        self.listed.look_up(self.logits, listed, rows)
    }

    /// Write the diagonals of the Hessians of some rows, if they are wanted.
    #[inline(always)]
    pub(super) fn hessians<S: Simd, R: Real + Element<Real = R>>(
        &mut self,
        simd: S,
        plan: &Plan<R>,
        rows: Range<usize>,
    ) -> Found<()> {
        let classes = self.logits.classes();
        if self.hessian.is_none() {
            return Ok(());
        }
        if classes <= most_classes::<R>() {
            let together = Stage::<R>::tiles(classes) * R::LANES;
            let mut done = true;
            for first in rows.clone().step_by(together) {
                done &= self.staged_hessians(simd, plan, first..rows.end.min(first + together))?;
            }
            if done {
                return Ok(());
            }
        }
        self.careful_hessians(simd, rows)
    }

    /// [`Self::hessians`] by the kernels that look for the maximum first.
    #[inline(never)]
    pub(super) fn careful_hessians<S: Simd>(&mut self, simd: S, rows: Range<usize>) -> Found<()> {
        let (losses, gradient) = (self.losses.take(), self.gradient.take());
        let found = self.careful_any(simd, rows, &mut [0.0; MOST_LANES]);
        (self.losses, self.gradient) = (losses, gradient);
        found
    }

    /// Work on rows of few classes.
    #[inline(always)]
    fn staged<S: Simd, R: Real + Element<Real = R>>(
        &mut self,
        simd: S,
        plan: &Plan<R>,
        labels: &Labels,
        rows: Range<usize>,
        sum: &mut PerLane<f64>,
    ) {
        let (lanes, classes) = (R::LANES, self.logits.classes());
        let (mut stage, mut wings) = (Stage::<R>::empty(), Stage::<R>::empty());
        if !stage.reserve(rows.len(), classes) || !wings.reserve(lanes, classes) {
            for first in rows.clone().step_by(lanes) {
                self.long(simd, plan, labels, first..rows.end.min(first + lanes), sum);
            }
            return;
        }
        let mut tiles = Tiles::<vertical::Rows<S, R>>::none();
        let of_tile = tiles_of::<R>(rows.clone());
        let count = rows.len().div_ceil(lanes);
        for tile in 0..count {
            stage.bring_in(simd, tile, self.logits, of_tile(tile), &mut wings);
        }
        // SAFETY: they were all brought in.
        let mut strip = unsafe { stage.strip(classes) };
        for tile in 0..count {
            tiles.begin(
                simd,
                &strip.tile(tile).read(),
                &targets_of(simd, self.problem, labels, of_tile(tile)),
                plan.scale,
            );
        }
        // What comes next, where rows lie one behind the other.
        let bytes = if self.logits.is_contiguous() { lanes * self.logits.dtype().size() } else { 0 };
        let ahead = self.logits.row(rows.start).place(0).wrapping_byte_add(count * classes * bytes);
        if self.gradient.is_some() {
            tiles.add_by_tile::<true>(simd, 0..count, &mut strip, ahead, bytes);
        } else {
            tiles.add_by_tile::<false>(simd, 0..count, &mut strip, ahead, bytes);
        }
        for tile in 0..count {
            if !tiles.all_mut()[tile].raise(simd) {
                continue;
            }
            stage.bring_in(simd, tile, self.logits, of_tile(tile), &mut wings);
            // SAFETY: as above.
            let mut strip = unsafe { stage.strip(classes) };
            if self.gradient.is_some() {
                tiles.add_by_tile::<true>(simd, tile..tile + 1, &mut strip, ahead, 0);
            } else {
                tiles.add_by_tile::<false>(simd, tile..tile + 1, &mut strip, ahead, 0);
            }
        }
        for (tile, of_rows) in tiles.all().iter().enumerate() {
            let rows = of_tile(tile);
            let own = targets_of(simd, self.problem, labels, rows.clone());
            let found = of_rows.found(simd);
            let Some(of) = self.finish_rows(simd, plan, rows.clone(), &own, &found, sum) else { continue };
            // SAFETY: as above.
            let mut strip = unsafe { stage.strip(classes) };
            let mut block = strip.tile(tile);
            of_rows.scale_kept(simd, &of, &mut block);
            block.write_own(&own, &of);
            // What overwrites logits must leave those for the careful path.
            for lane in lanes_of(of.careful) {
                let row = self.logits.row(rows.start + lane);
                for class in 0..classes {
                    block.set(class, lane, Real::from_f64(row.get(class)));
                }
            }
            if let Some(out) = &mut self.gradient {
                // SAFETY: as above.
                unsafe { stage.bring_out(simd, tile, out, rows.clone(), &mut wings, self.store[0]) }
            }
            self.careful_gradients(simd, rows.start, of.careful);
        }
    }

    /// Work on tiles of rows that lie lane by lane in memory.
    #[inline(always)]
    fn strip<S: Simd, R: Real + Element<Real = R>>(
        &mut self,
        simd: S,
        plan: &Plan<R>,
        labels: &Labels,
        rows: Range<usize>,
        sum: &mut PerLane<f64>,
    ) {
        let (logits, of_tile, count) = (self.logits, tiles_of::<R>(rows.clone()), rows.len() / R::LANES);
        let strip = strip_of::<R>(logits, &rows);
        let mut tiles = Tiles::<vertical::Rows<S, R>>::none();
        for tile in 0..count {
            tiles.begin(simd, &strip.tile(tile), &targets_of(simd, self.problem, labels, of_tile(tile)), plan.scale);
        }
        tiles.add(simd, 0..count, &strip);
        for tile in 0..count {
            if tiles.all_mut()[tile].raise(simd) {
                tiles.add(simd, tile..tile + 1, &strip);
            }
        }
        let mut coefficients = Tiles::<Coefficients>::none();
        for (tile, of_rows) in tiles.all().iter().enumerate() {
            let own = targets_of(simd, self.problem, labels, of_tile(tile));
            if let Some(of) = self.finish_rows(simd, plan, of_tile(tile), &own, &of_rows.found(simd), sum) {
                coefficients.push(of);
            }
        }
        let Some(out) = &mut self.gradient else { return };
        let mut out = strip_mut_of::<R>(out, &rows);
        tiles.write_less(simd, coefficients.all(), &[], Some(&strip), &Aim::Own, &mut out);
        for (tile, of) in coefficients.all().iter().enumerate() {
            out.tile(tile).write_own(&targets_of(simd, self.problem, labels, of_tile(tile)), of);
        }
        for (tile, of) in coefficients.all().iter().enumerate() {
            self.careful_gradients(simd, of_tile(tile).start, of.careful);
        }
    }

    /// Work on rows one by one, no more than there are lanes, with what is once a row for all of them.
    #[inline(never)]
    fn long<S: Simd, R: Real + Element<Real = R>>(
        &mut self,
        simd: S,
        plan: &Plan<R>,
        labels: &Labels,
        rows: Range<usize>,
        sum: &mut PerLane<f64>,
    ) {
        let own = targets_of(simd, self.problem, labels, rows.clone());
        let mut found = Sums::none();
        for (lane, row) in rows.clone().enumerate().filter(|(lane, _)| own.counts[*lane] != 0.0) {
            let row = self.logits.row(row);
            let logit = <R as Real>::from_f64(row.get(own.class[lane]));
            let of_row = horizontal::sum::<S, R>(simd, row, &own.class[lane..=lane], logit, plan.scale);
            found.set(lane, &of_row);
        }
        let Some(of) = self.finish_rows(simd, plan, rows.clone(), &own, &found, sum) else { return };
        self.write_row_by_row(simd, plan, rows, &RowGradients::of_classes(&own, &found.octaves, &of));
    }

    /// Take the losses of some rows to where they go, and find out what their gradients need, if these are asked for.
    #[inline(always)]
    fn finish_rows<S: Simd, R: Real + Element<Real = R>>(
        &mut self,
        simd: S,
        plan: &Plan<R>,
        rows: Range<usize>,
        own: &Own,
        found: &Sums,
        sum: &mut PerLane<f64>,
    ) -> Option<Coefficients> {
        let mut losses = finish::losses::<S, R>(simd, found, plan.scale.shortfall());
        let (mut loss, mut weights) = ([0.0; MOST_LANES], [1.0; MOST_LANES]);
        weigh(simd, self.problem, rows.clone(), own, &mut losses, &mut weights, &mut loss);
        for lane in lanes_of(losses.careful) {
            loss[lane] = self.careful_row(simd, rows.start + lane, false);
        }
        if let Some(out) = &mut self.losses {
            out.set(rows.start, &loss[..rows.len()]);
        }
        add_by_row(sum, rows.start - self.range.start, &loss[..rows.len()]);
        let mut scales = scales(simd, self.problem, self.grad_output?, self.divisor, rows);
        for (scale, weight) in scales.iter_mut().zip(&weights) {
            *scale *= weight / plan.temperature;
        }
        Some(finish::coefficients::<S, R>(simd, &losses, &scales))
    }

    /// Write the gradients of the careful ones of some rows.
    #[inline(never)]
    pub(super) fn careful_gradients<S: Simd>(&mut self, simd: S, first: usize, careful: u32) {
        for lane in lanes_of(careful) {
            self.careful_row(simd, first + lane, true);
        }
    }

    /// The loss of a row by the kernels that look for the maximum first, and, if asked for, its gradient written.
    #[inline(never)]
    pub(super) fn careful_row<S: Simd>(&mut self, simd: S, row: usize, gradient: bool) -> f64 {
        let mut loss = [0.0; MOST_LANES];
        let (losses, grad_output, hessian) = (self.losses.take(), self.grad_output, self.hessian.take());
        self.grad_output = grad_output.filter(|_| gradient);
        let found = self.careful_any(simd, row..row + 1, &mut loss);
        (self.losses, self.grad_output, self.hessian) = (losses, grad_output, hessian);
        // Every other place is 0. Targets cannot be bad: they were looked at before.
        found.map_or(f64::NAN, |()| loss.iter().sum())
    }
}

/// Weigh the losses of some rows: by the `weights` of their classes, which become those of the gradients, and by those of the rows.
/// Where they are: returned, they would be copied, which takes time with few classes.
#[inline(never)]
fn weigh<S: Simd>(
    simd: S,
    problem: &Problem,
    rows: Range<usize>,
    own: &Own,
    losses: &mut Losses,
    weights: &mut PerLane<f64>,
    loss: &mut PerLane<f64>,
) {
    simd.vectorize(
        #[inline(always)]
        || {
            if let Some(weight) = &problem.weight {
                for ((of_row, class), lane) in weights.iter_mut().zip(&own.class).zip(0..) {
                    *of_row = weight[*class];
                    // What is infinite times what is 0 is for the careful path.
                    losses.careful |= u32::from(own.counts[lane] != 0.0 && !of_row.is_finite()) << lane;
                }
            }
            let mut slopes = [1.0; MOST_LANES];
            if let Some(focus) = problem.focus {
                losses.focus(simd, focus, &mut slopes);
            }
            for lane in 0..MOST_LANES {
                let weighted = weights[lane] * losses.loss[lane];
                loss[lane] = if own.counts[lane] == 0.0 { 0.0 } else { weighted };
            }
            if problem.focus.is_some() {
                for (weight, slope) in weights.iter_mut().zip(&slopes) {
                    *weight *= slope;
                }
            }
            if problem.sample_weight.is_some() {
                for (lane, row) in rows.enumerate().filter(|(lane, _)| own.counts[*lane] != 0.0) {
                    loss[lane] = product(problem.sample_weight(row), loss[lane]);
                }
            }
        },
    );
}
