//! Hessians of the softmax losses times vectors, which no Hessian is written for.
//!
//! With p the softmax of `z = x / T` and S what all classes of a row are multiplied by, the Hessian of the row's loss by its logits is
//! `[(S + 2·z_loss·lse)·(diag p − p·pᵀ) + 2·z_loss·p·pᵀ] / T²`. Of the targets it knows S alone.

use std::ops::Range;

use fearless_simd::Simd;

use super::options::lead;
use super::plan::lanes_of;
use super::rows::scales;
use super::targets::Problem;
use super::ways::{Way, bring_in_all, is_strip, most_tiles, strip_mut_of, strip_of, tiles_of};
use super::{Check, Chunks, Derivatives, GradOutput, Reduction, store_policy};
use crate::array::{Array, RowsMut};
use crate::element::Element;
use crate::error::Result;
use crate::kernel::finish::{self, MOST_LANES, Own, PerLane, Sums};
use crate::kernel::horizontal::{Gradient, leader};
use crate::kernel::moment::{self, Moment, Products};
use crate::kernel::stage::Stage;
use crate::kernel::vertical::{self, Strip, Tiles};
use crate::math::{Real, Scale, Total};
use crate::parallel::in_pieces;
use crate::row::{Dense, Teacher, product};
use crate::rows::{BLOCK, StorePolicy};
use crate::simd::{self, Kernel};

/// Write the Hessian of the reduced loss times a vector, which has the logits' shape, as its gradient has.
///
/// # Errors
/// [`crate::error::Error::Value`] for a probability that is none in a row that counts; nothing was written then. What `check`
/// returned.
///
/// # Panics
/// If the arrays do not fit, or if the logits are capped.
pub fn hessian_product(
    logits: &Array,
    vector: &Array,
    problem: &Problem,
    reduction: Reduction,
    denominator: Option<f64>,
    products: &mut Derivatives,
    check: Check,
) -> Result<()> {
    let (rows, classes) = (logits.rows(), logits.classes());
    problem.assert_fits(rows, classes);
    assert_eq!((vector.rows(), vector.classes()), (rows, classes));
    assert!(problem.transform.softcap().is_none() && problem.focus.is_none());
    let divisor = reduction.divisor(denominator, || problem.weight_sum(rows));
    let chunks = Chunks::of_rows(logits);
    problem.look_at_all(&chunks, classes, check)?;
    let dtype = products.gradient.dtype();
    let (out, _, grad_output) = products.open([rows, classes], rows, dtype);
    let (Some(out), Some(grad_output)) = (out, grad_output) else { unreachable!("there is a result") };
    let store = store_policy(logits, out);
    let parts = out.parts(chunks.ranges());
    let bytes = logits.dtype().size() + vector.dtype().size() + 2 * dtype.size();
    let (level, weight_sum) = (simd::level(), problem.share_weight_sum());
    chunks.map(bytes, check, |chunk| {
        let (range, out) = (chunks.rows_of(chunk), parts.take(chunk));
        level.run(Work { range, logits, vector, problem, weight_sum, divisor, grad_output, out, store });
    })?;
    Ok(())
}

/// The work on a chunk of rows.
struct Work<'a> {
    range: Range<usize>,
    logits: &'a Array<'a>,
    vector: &'a Array<'a>,
    problem: &'a Problem<'a>,
    /// The sum of the class weights, if shares are multiplied by them.
    weight_sum: Option<f64>,
    divisor: f64,
    grad_output: &'a GradOutput<'a>,
    out: RowsMut<'a>,
    store: StorePolicy,
}

/// What is known of some tiles.
struct Known<S: Simd, R: Real> {
    own: Tiles<Own>,
    rows: Tiles<vertical::Rows<S, R>>,
    /// The largest logits, and the numbers of their classes.
    tops: Tiles<[PerLane<f64>; 2]>,
    moments: Tiles<Moment<S, R>>,
    products: Tiles<Products>,
}

/// What was summed of some rows, one a lane.
struct Found {
    /// The largest logits.
    top: PerLane<f64>,
    /// The numbers of their classes.
    number: PerLane<f64>,
    sums: Sums,
    moments: PerLane<f64>,
}

impl<S: Simd, R: Real> Known<S, R> {
    #[inline(always)]
    fn nothing() -> Self {
        Self {
            own: Tiles::none(),
            rows: Tiles::none(),
            tops: Tiles::none(),
            moments: Tiles::none(),
            products: Tiles::none(),
        }
    }
}

impl Kernel for Work<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        if self.logits.dtype().is_double() {
            self.batches::<S, f64>(simd);
        } else {
            self.batches::<S, f32>(simd);
        }
        if self.store == StorePolicy::NonTemporal {
            simd::store_fence();
        }
    }
}

impl Work<'_> {
    /// The work on logits that compute in `R`, batch by batch.
    #[inline(always)]
    fn batches<S: Simd, R: Real + Element<Real = R>>(&mut self, simd: S) {
        let (logits, vector, classes) = (self.logits, self.vector, self.logits.classes());
        let temperature = self.problem.transform.temperature();
        let suits = Scale::<R>::suits(temperature)
            && u32::try_from(classes).is_ok()
            && vector.dtype().is_double() == logits.dtype().is_double();
        let scale = suits.then(|| Scale::<R>::new::<S>(temperature));
        let Range { start: mut first, end } = self.range;
        while first < end {
            let Some(scale) = scale else {
                self.careful::<S, R>(simd, first);
                first += 1;
                continue;
            };
            let lies_alike = |rows| vector.dtype() == R::DTYPE && vector.neighbours(first, rows).is_some();
            let (most, out) = (most_tiles(classes, 4), Some(&mut self.out));
            let fits = |rows| is_strip::<R>(out, first, rows);
            let way = Way::of::<R>(logits, first, end - first, most, None, lies_alike, fits);
            let rows = first..first + way.rows::<R>();
            match way {
                Way::Strip(_) => self.strip(simd, scale, rows.clone()),
                Way::Staged(_) => self.staged(simd, scale, rows.clone()),
                Way::OneByOne(_) => self.one_by_one(simd, scale, rows.clone()),
            }
            first = rows.end;
        }
    }

    /// Work on tiles where they lie.
    #[inline(always)]
    fn strip<S: Simd, R: Real + Element<Real = R>>(&mut self, simd: S, scale: Scale<R>, rows: Range<usize>) {
        let (logits, numbers) = (strip_of::<R>(self.logits, &rows), strip_of::<R>(self.vector, &rows));
        let mut known = Known::nothing();
        self.begin(simd, scale, rows.clone(), &logits, &numbers, &mut known);
        known.rows.add_moments(simd, &logits, &numbers, &mut known.moments);
        self.finish(simd, scale, rows.clone(), &mut known);
        let mut out = strip_mut_of::<R>(&mut self.out, &rows);
        known.rows.write_products(simd, known.products.all(), &logits, &numbers, &mut out);
        for (tile, products) in known.products.all().iter().enumerate() {
            out.tile(tile).write_own(&known.own.all()[tile], &products.of);
        }
        self.careful_of::<S, R>(simd, rows, &known.products);
    }

    /// Work on rows on a stage.
    #[inline(always)]
    fn staged<S: Simd, R: Real + Element<Real = R>>(&mut self, simd: S, scale: Scale<R>, rows: Range<usize>) {
        let classes = self.logits.classes();
        let (mut stage, mut numbers, mut wings) = (Stage::<R>::empty(), Stage::<R>::empty(), Stage::<R>::empty());
        let roomy = wings.reserve(R::LANES, classes)
            && bring_in_all(simd, &mut stage, self.logits, rows.clone(), R::LANES, true)
            && bring_in_all(simd, &mut numbers, self.vector, rows.clone(), R::LANES, true);
        if !roomy {
            for first in rows.clone().step_by(R::LANES) {
                self.one_by_one(simd, scale, first..rows.end.min(first + R::LANES));
            }
            return;
        }
        // SAFETY: all tiles were brought in.
        let (mut strip, numbers) = unsafe { (stage.strip(classes), numbers.strip(classes)) };
        let (numbers, of_tile) = (numbers.written(), tiles_of::<R>(rows.clone()));
        let mut known = Known::nothing();
        self.begin(simd, scale, rows.clone(), &strip.read(), &numbers, &mut known);
        known.rows.keep_moments(simd, &mut strip, &numbers, &mut known.moments);
        self.finish(simd, scale, rows.clone(), &mut known);
        known.rows.write_kept_products(simd, known.products.all(), &numbers, &mut strip);
        for (tile, products) in known.products.all().iter().enumerate() {
            let mut block = strip.tile(tile);
            block.write_own(&known.own.all()[tile], &products.of);
            // What overwrites logits must leave those for the careful path.
            for lane in lanes_of(products.of.careful) {
                let row = self.logits.row(of_tile(tile).start + lane);
                for class in 0..classes {
                    block.set(class, lane, Real::from_f64(row.get(class)));
                }
            }
        }
        for tile in 0..known.products.all().len() {
            // SAFETY: its results were written.
            unsafe { stage.bring_out(simd, tile, &mut self.out, of_tile(tile), &mut wings, self.store) }
        }
        self.careful_of::<S, R>(simd, rows, &known.products);
    }

    /// What is known of some tiles before their exponentials are summed.
    #[inline(always)]
    fn begin<S: Simd, R: Real + Element<Real = R>>(
        &self,
        simd: S,
        scale: Scale<R>,
        rows: Range<usize>,
        logits: &Strip<R>,
        numbers: &Strip<R>,
        known: &mut Known<S, R>,
    ) {
        let of_tile = tiles_of::<R>(rows.clone());
        for tile in 0..rows.len().div_ceil(R::LANES) {
            known.own.push(self.counted(of_tile(tile)));
        }
        lead::<S, R>(simd, logits, &mut known.own);
        for (tile, own) in known.own.all().iter().enumerate() {
            let [logits, numbers] = [logits.tile(tile), numbers.tile(tile)];
            let top = [logits.pick(&own.class), numbers.pick(&own.class)];
            known.rows.begin(simd, &logits, own, scale);
            known.moments.push(Moment::relative_to(simd, &top[1]));
            known.tops.push(top);
        }
    }

    /// What the products of some tiles need, whose exponentials were summed.
    #[inline(always)]
    fn finish<S: Simd, R: Real + Element<Real = R>>(
        &self,
        simd: S,
        scale: Scale<R>,
        rows: Range<usize>,
        known: &mut Known<S, R>,
    ) {
        let of_tile = tiles_of::<R>(rows);
        for (tile, [top, number]) in known.tops.all().iter().enumerate() {
            let (sums, moments) = (known.rows.all()[tile].found(simd), known.moments.all()[tile].found(simd));
            let found = Found { top: *top, number: *number, sums, moments };
            known.products.push(self.products(simd, scale, of_tile(tile), &found));
        }
    }

    /// The rows of a tile that count; what is left of the tile does not.
    fn counted(&self, rows: Range<usize>) -> Own {
        let mut own = Own { counts: [0.0; MOST_LANES], class: [0; MOST_LANES] };
        for (counts, row) in own.counts.iter_mut().zip(rows) {
            *counts = f64::from(u8::from(self.problem.counts(row)));
        }
        own
    }

    /// Work on rows one by one, no more than there are lanes, with what is once a row for all of them.
    #[inline(never)]
    fn one_by_one<S: Simd, R: Real + Element<Real = R>>(&mut self, simd: S, scale: Scale<R>, rows: Range<usize>) {
        let own = self.counted(rows.clone());
        let nothing = [0.0; MOST_LANES];
        let mut found = Found { top: nothing, number: nothing, sums: Sums::none(), moments: nothing };
        for (lane, number) in rows.clone().enumerate().filter(|(lane, _)| own.counts[*lane] != 0.0) {
            let (row, numbers) = (self.logits.row(number), self.vector.row(number));
            let (class, logit) = leader::<S, R>(simd, row);
            (found.top[lane], found.number[lane]) = (Real::to_f64(logit), numbers.get(class));
            let (of_row, moment) = moment::sum(simd, [row, numbers], (class, logit), found.number[lane], scale);
            found.sums.set(lane, &of_row);
            found.moments[lane] = moment;
        }
        let products = self.products(simd, scale, rows.clone(), &found);
        for (lane, number) in rows.enumerate() {
            if own.counts[lane] == 0.0 {
                self.out.row(number).fill(0.0);
            } else if products.of.careful >> lane & 1 == 1 {
                self.careful::<S, R>(simd, number);
            } else {
                let of = Gradient {
                    logit: <R as Real>::from_f64(found.top[lane]),
                    octaves: 0.0,
                    factor: products.of.factor[lane],
                    scale,
                    softcap: None,
                    store: self.store,
                };
                let rows = [self.logits.row(number), self.vector.row(number)];
                moment::write(simd, rows, self.out.row(number), &of, [products.own[lane], products.level[lane]]);
            }
        }
    }

    /// What the products of some rows need, no more rows than there are lanes.
    #[inline(never)]
    fn products<S: Simd, R: Real>(&self, simd: S, scale: Scale<R>, rows: Range<usize>, found: &Found) -> Products {
        let temperature = self.problem.transform.temperature();
        let losses = finish::losses::<S, R>(simd, &found.sums, scale.shortfall());
        let [shares, inverse] = losses.softmax_factors();
        let mut scales = scales(simd, self.problem, self.grad_output, self.divisor, rows.clone());
        let (mut level, mut careful) = ([0.0; MOST_LANES], 0);
        for (lane, row) in rows.enumerate().filter(|(lane, _)| found.sums.counts >> lane & 1 == 1) {
            let mean = found.moments[lane] * inverse[lane] * shares[lane];
            let lse = found.top[lane] / temperature + losses.loss[lane];
            let [mass, share] = self.masses(simd, row, lse);
            scales[lane] = scales[lane] * mass / temperature / temperature;
            level[lane] = share * (found.number[lane] + mean) - mean;
            // A product of a factor and a level that f64 has may be 0 or infinite in the lanes.
            let normal = R::SMALLEST_NORMAL..=-Real::to_f64(R::LOWEST);
            let fits = |number: f64| number == 0.0 || normal.contains(&number.abs());
            let is_level = fits(level[lane]) || R::LANES < f32::LANES && level[lane].is_finite();
            careful |= u32::from(!is_level || !fits(scales[lane])) << lane;
        }
        let mut of = finish::coefficients::<S, R>(simd, &losses, &scales);
        of.careful |= careful;
        for lane in 0..MOST_LANES {
            of.own[lane] = scales[lane] * shares[lane] * level[lane];
        }
        Products { own: found.number, level, of }
    }

    /// `S + 2·z_loss·lse` of a row, and `2·z_loss` over that.
    fn masses<S: Simd>(&self, simd: S, row: usize, lse: f64) -> [f64; 2] {
        let mass = self.problem.mass(simd, row, self.logits.classes(), self.weight_sum);
        if self.problem.z_loss == 0.0 {
            return [mass, 0.0];
        }
        let pull = 2.0 * self.problem.z_loss;
        [mass + pull * lse, pull / (mass + pull * lse)]
    }

    /// [`Self::careful`] of those of some tiles that need it.
    #[inline(always)]
    fn careful_of<S: Simd, R: Real + Element<Real = R>>(
        &mut self,
        simd: S,
        rows: Range<usize>,
        products: &Tiles<Products>,
    ) {
        let of_tile = tiles_of::<R>(rows);
        for (tile, products) in products.all().iter().enumerate() {
            for lane in lanes_of(products.of.careful) {
                self.careful::<S, R>(simd, of_tile(tile).start + lane);
            }
        }
    }

    /// Write the product of a row whose probabilities are found by the kernels that look for the maximum as they go, in f64.
    #[inline(never)]
    fn careful<S: Simd, R: Real + Element<Real = R>>(&mut self, simd: S, number: usize) {
        if !self.problem.counts(number) || self.divisor == 0.0 {
            return self.out.row(number).fill(0.0);
        }
        let transform = self.problem.transform;
        let (row, numbers) = (self.logits.row(number), self.vector.row(number));
        let softmax = Teacher::new::<S, R>(simd, self.logits, number..number + 1, transform);
        let probabilities = Dense::of_teacher(&softmax);
        let (found, log_total) = softmax.first();
        // The class whose logit that is; any, if all are masked or one is NaN.
        let own = row.find(simd, <R as Real>::from_f64(found.reference)).unwrap_or(0);
        let (own, first) = (numbers.get(own), number * row.classes());
        let vector = self.vector;
        // By how much numbers are above that of the class; that of a masked class counts 0, whatever it is.
        let above = |start: usize, weights: &[f64], block: &mut [f64; BLOCK]| {
            vector.read(simd, first + start, &mut block[..weights.len()]);
            block[weights.len()..].fill(0.0);
            for (number, p) in block.iter_mut().zip(weights) {
                *number = if *p == 0.0 { 0.0 } else { *number - own };
            }
        };
        let mean_of = |part| {
            let (mut mean, mut block) = (Total::zero(simd), [0.0; BLOCK]);
            probabilities.for_each_block(simd, part, |start, weights| {
                above(start, weights, &mut block);
                for (number, p) in block.iter_mut().zip(weights) {
                    *number *= p;
                }
                for terms in block.chunks_exact(f64::LANES) {
                    f64::add_numbers(simd, &mut mean, terms);
                }
            });
            mean
        };
        let mean = in_pieces(row.classes(), mean_of, |mean: &mut Total<S>, next| mean.add::<f64>(next)).value();
        let lse = transform.difference(simd, found.reference, 0.0)[0] + log_total;
        let mass = self.problem.mass(simd, number, row.classes(), self.weight_sum);
        let [scale, ..] = scales(simd, self.problem, self.grad_output, self.divisor, number..number + 1);
        let [mut of_distance, mut of_mean] = [mass, 0.0];
        if self.problem.z_loss != 0.0 {
            let pull = 2.0 * self.problem.z_loss;
            [of_distance, of_mean] = [mass + pull * lse, pull * (own + mean)];
        }
        let [of_distance, of_mean] = [of_distance, of_mean]
            .map(|factor| product(scale, factor) / transform.temperature() / transform.temperature());
        self.out.row(number).in_pieces(|part, mut out| {
            let (mut results, mut block) = ([<R as Real>::from_f64(0.0); BLOCK], [0.0; BLOCK]);
            probabilities.for_each_block(simd, part.clone(), |start, weights| {
                above(start, weights, &mut block);
                for ((result, number), p) in results.iter_mut().zip(&block).zip(weights) {
                    let entry = product(p * (number - mean), of_distance) + product(*p, of_mean);
                    *result = <R as Real>::from_f64(if *p == 0.0 { 0.0 } else { entry });
                }
                out.write(simd, start - part.start, weights.len(), &results, false);
            });
        });
    }
}
