//! Rows whose targets are classes and nothing else, across lanes: by the kernels that need no maximum, and the rows that these
//! do not suit one by one.
//!
//! Rows of few classes come on a stage, some tiles at a time, and each step is done for all of them before the next, so that
//! no chain of operations is waited for. Where the rows lie lane by lane in memory (an inner class axis) the tiles are worked on
//! in place, a strip of them at a time and eight classes of each: so memory is read in eight streams, page by page.

use std::ops::Range;

use fearless_simd::Simd;

use super::Found;
use super::cross_entropy::Rows;
use super::labels::Labels;
use super::targets::Targets;
use crate::dtype::Number;
use crate::element::Element;
use crate::kernel::stage::{Stage, most_classes};
use crate::kernel::vertical::{
    Block, Coefficients, MOST_LANES, MOST_TILES, Own, PerLane, Strip, StripMut, Sums, Tiles,
};
use crate::math::Real;
use crate::row::{Transform, product};

impl<'a, E: Element, O: Element<Real = E::Real>> Rows<'a, E, O> {
    /// The classes that the rows should be, if that is all that is asked for.
    #[inline(always)]
    fn class_targets(&self) -> Option<&'a Labels> {
        let problem = self.problem;
        let Targets::Classes(labels) = &problem.targets else { return None };
        let plain = problem.label_smoothing == 0.0 && problem.z_loss == 0.0;
        (plain && problem.transform == Transform::NONE).then_some(labels)
    }

    /// Work on rows from `first` on, as many as suit the kernels, and say how many these were.
    #[inline(always)]
    pub(super) fn class_target_rows<S: Simd>(&mut self, simd: S, first: usize, sum: &mut PerLane<f64>) -> Found<usize> {
        let Some(labels) = self.class_targets() else { return Ok(0) };
        let (lanes, left) = (E::Real::LANES, self.range.end - first);
        let run = self.logits.neighbours_from(first).map_or(0, |run| run.min(left));
        let tiles = (run / lanes).min(MOST_TILES);
        let in_place = tiles > 0 && self.is_strip(first, tiles * lanes);
        let classes = self.logits.classes();
        if !in_place && classes > most_classes::<E::Real>() {
            return Ok(0);
        }
        // Rows that lie lane by lane are as many as the run has left.
        let staged = if run > 0 && !self.logits.is_contiguous() { run } else { left };
        let count = if in_place { tiles * lanes } else { (Stage::<E::Real>::tiles(classes) * lanes).min(staged) };
        let rows = first..first + count;
        // What overwrites the logits is written last.
        if self.gradient_last {
            self.hessians(simd, rows.clone())?;
        }
        if in_place {
            self.strip(simd, labels, first, tiles, sum);
        } else {
            self.staged(simd, labels, rows.clone(), sum);
        }
        if !self.gradient_last {
            self.hessians(simd, rows)?;
        }
        Ok(count)
    }

    /// Write the diagonals of the Hessians of some rows, if they are wanted.
    #[inline(always)]
    fn hessians<S: Simd>(&mut self, simd: S, rows: Range<usize>) -> Found<()> {
        if self.hessian.is_none() {
            return Ok(());
        }
        let (losses, gradient) = (self.losses.take(), self.gradient.take());
        let found = self.careful_batches(simd, rows, &mut [0.0; MOST_LANES]);
        (self.losses, self.gradient) = (losses, gradient);
        found
    }

    /// Whether so many rows can be worked on where they lie.
    #[inline(always)]
    fn is_strip(&mut self, first: usize, rows: usize) -> bool {
        E::DTYPE == E::Real::DTYPE
            && self.logits.neighbours(first, rows).is_some()
            && self.gradient.as_mut().is_none_or(
                #[inline(always)]
                |out| O::DTYPE == E::Real::DTYPE && out.neighbours(first, rows).is_some(),
            )
    }

    /// The targets of some rows; what is left of the tile does not count.
    #[inline(always)]
    fn own(&self, labels: &Labels, rows: Range<usize>) -> Own {
        let mut own = Own { counts: [0.0; MOST_LANES], class: [0; MOST_LANES] };
        labels.read_into(rows.start, rows.len(), &mut own.counts, &mut own.class);
        if let Some(weight) = &self.problem.sample_weight {
            for (counts, weight) in own.counts.iter_mut().zip(&weight[rows]) {
                *counts = if *weight == 0.0 { 0.0 } else { *counts };
            }
        }
        own
    }

    /// Work on rows of few classes.
    #[inline(always)]
    fn staged<S: Simd>(&mut self, simd: S, labels: &Labels, rows: Range<usize>, sum: &mut PerLane<f64>) {
        let (lanes, classes) = (E::Real::LANES, self.logits.classes());
        let (mut stage, mut wings) = (Stage::<E::Real>::empty(), Stage::<E::Real>::empty());
        let mut tiles = Tiles::<Sums<S, E::Real>>::none();
        let of_tile = |tile: usize| rows.start + tile * lanes..rows.end.min(rows.start + (tile + 1) * lanes);
        let count = rows.len().div_ceil(lanes);
        for tile in 0..count {
            stage.bring_in::<S, E>(simd, tile, self.logits, of_tile(tile), &mut wings);
        }
        // SAFETY: they were all brought in.
        let mut strip = unsafe { stage.strip(classes) };
        for tile in 0..count {
            tiles.begin(simd, &strip.tile(tile).read(), &self.own(labels, of_tile(tile)));
        }
        // What comes next, if the rows lie so.
        let bytes = lanes * size_of::<E>();
        let ahead = self.logits.row(rows.start).pointer::<E>(0).wrapping_byte_add(count * classes * bytes).cast();
        if self.gradient.is_some() {
            tiles.add_by_tile::<true>(simd, &mut strip, ahead, bytes);
        } else {
            tiles.add_by_tile::<false>(simd, &mut strip, ahead, bytes);
        }
        for (tile, sums) in tiles.all().iter().enumerate() {
            let rows = of_tile(tile);
            let own = self.own(labels, rows.clone());
            let Some(of) = self.finish_tile(simd, rows.clone(), &own, sums, sum) else { continue };
            // SAFETY: as above.
            let mut strip = unsafe { stage.strip(classes) };
            let mut block = strip.tile(tile);
            sums.scale_kept(simd, &of, &mut block);
            of.write_own(&own, &mut block);
            // What overwrites logits must leave those for the careful path.
            for lane in lanes_of(of.careful) {
                let row = self.logits.row(rows.start + lane);
                for class in 0..classes {
                    block.set(class, lane, Real::from_f64(row.get(class)));
                }
            }
            if let Some(out) = &mut self.gradient {
                // SAFETY: as above.
                unsafe { stage.bring_out::<S, O>(simd, tile, out, rows.clone(), &mut wings, self.store[0]) }
            }
            self.careful_gradients(simd, rows.start, of.careful);
        }
    }

    /// Work on `count` tiles of rows that lie lane by lane in memory.
    #[inline(always)]
    fn strip<S: Simd>(&mut self, simd: S, labels: &Labels, first: usize, count: usize, sum: &mut PerLane<f64>) {
        let (lanes, classes) = (E::Real::LANES, self.logits.classes());
        let of_tile = |tile: usize| first + tile * lanes..first + (tile + 1) * lanes;
        let (base, step) = self.logits.neighbours(first, count * lanes).expect("asked before");
        // SAFETY: the neighbours of each class are elements of the array, readable by the promise made to `Array::new`.
        let strip = unsafe { Strip::new(Block::new(base.cast::<E::Real>(), step, classes), lanes) };
        let mut tiles = Tiles::<Sums<S, E::Real>>::none();
        for tile in 0..count {
            tiles.begin(simd, &strip.tile(tile), &self.own(labels, of_tile(tile)));
        }
        tiles.add_by_class(simd, &strip);
        let mut coefficients = Tiles::<Coefficients<S, E::Real>>::none();
        for (tile, sums) in tiles.all().iter().enumerate() {
            let own = self.own(labels, of_tile(tile));
            if let Some(of) = self.finish_tile(simd, of_tile(tile), &own, sums, sum) {
                coefficients.push(of);
            }
        }
        let Some(out) = &mut self.gradient else { return };
        let (place, step) = out.neighbours(first, count * lanes).expect("asked before");
        // SAFETY: the neighbours of each class are elements of rows that this thread has for itself.
        let mut out = unsafe { StripMut::new(Strip::new(Block::new(place.cast::<E::Real>(), step, classes), lanes)) };
        tiles.write(simd, coefficients.all(), &strip, &mut out);
        for (tile, of) in coefficients.all().iter().enumerate() {
            of.write_own(&self.own(labels, of_tile(tile)), &mut out.tile(tile));
        }
        for (tile, of) in coefficients.all().iter().enumerate() {
            self.careful_gradients(simd, of_tile(tile).start, of.careful);
        }
    }

    /// Take the losses of a tile of rows to where they go, and find out what their gradients need, if these are asked for.
    #[inline(never)]
    fn finish_tile<S: Simd>(
        &mut self,
        simd: S,
        rows: Range<usize>,
        own: &Own,
        sums: &Sums<S, E::Real>,
        sum: &mut PerLane<f64>,
    ) -> Option<Coefficients<S, E::Real>> {
        simd.vectorize(
            #[inline(always)]
            || {
                let (problem, first) = (self.problem, rows.start);
                let mut losses = sums.losses(simd);
                let mut weights = [1.0; MOST_LANES];
                if let Some(weight) = &problem.weight {
                    for ((of_row, class), lane) in weights.iter_mut().zip(&own.class).zip(0..) {
                        *of_row = weight[*class];
                        // What is infinite times what is 0 is for the careful path.
                        losses.careful |= u32::from(own.counts[lane] != 0.0 && !of_row.is_finite()) << lane;
                    }
                }
                let coefficients = self.grad_output.map(
                    #[inline(always)]
                    |grad_output| {
                        let mut scales = self.scales(simd, grad_output, first, rows.len());
                        for (scale, weight) in scales.iter_mut().zip(&weights) {
                            *scale *= weight;
                        }
                        sums.coefficients(simd, &losses, &scales)
                    },
                );
                let mut loss = [0.0; MOST_LANES];
                for lane in 0..MOST_LANES {
                    let weighted = weights[lane] * losses.loss[lane];
                    loss[lane] = if own.counts[lane] == 0.0 { 0.0 } else { weighted };
                }
                if problem.sample_weight.is_some() {
                    for lane in (0..rows.len()).filter(|&lane| own.counts[lane] != 0.0) {
                        loss[lane] = product(problem.sample_weight(first + lane), loss[lane]);
                    }
                }
                for lane in lanes_of(losses.careful) {
                    loss[lane] = self.careful_row(simd, first + lane, false);
                }
                if let Some(out) = &mut self.losses {
                    out.set(first, &loss[..rows.len()]);
                }
                // By the number of the row, wherever its tile begins, so that the layout changes no bit.
                let place = (first - self.range.start) % MOST_LANES;
                let beside = &mut sum[place..];
                if beside.len() >= E::Real::LANES {
                    for (sum, loss) in beside.iter_mut().zip(&loss[..E::Real::LANES]) {
                        *sum += loss;
                    }
                } else {
                    for (lane, loss) in loss[..rows.len()].iter().enumerate() {
                        sum[(place + lane) % MOST_LANES] += loss;
                    }
                }
                coefficients
            },
        )
    }

    /// Write the gradients of the careful ones of some rows.
    #[inline(never)]
    fn careful_gradients<S: Simd>(&mut self, simd: S, first: usize, careful: u32) {
        for lane in lanes_of(careful) {
            let losses = self.losses.take();
            self.careful_row(simd, first + lane, true);
            self.losses = losses;
        }
    }

    /// The loss of a row by the kernels that look for the maximum first, and, if asked for, its gradient written.
    #[inline(never)]
    fn careful_row<S: Simd>(&mut self, simd: S, row: usize, gradient: bool) -> f64 {
        let mut loss = [0.0; MOST_LANES];
        let (grad_output, hessian) = (self.grad_output, self.hessian.take());
        self.grad_output = grad_output.filter(|_| gradient);
        let found = self.careful_batches(simd, row..row + 1, &mut loss);
        (self.grad_output, self.hessian) = (grad_output, hessian);
        // Every other place is 0. Classes cannot be bad: they were looked at when they were read.
        found.map_or(f64::NAN, |()| loss.iter().sum())
    }
}

/// The lanes of bits.
#[inline(always)]
fn lanes_of(bits: u32) -> impl Iterator<Item = usize> {
    (0..MOST_LANES).filter(move |lane| bits >> lane & 1 != 0)
}
