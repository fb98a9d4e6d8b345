//! The softmax of rows, its logarithm, and what is known of them: the driver of all that is no loss.
//!
//! Exponentials are relative to the largest logit, which takes a look at the rows first, or to one of the first where that will do.
//! What is found is that of [`Statistics`], in the same three ways as losses ([`super::ways`]), or, for rows that those kernels do
//! not suit, by the ones that look for the maximum as they go.

use std::ops::Range;

use fearless_simd::Simd;

use super::plan::lanes_of;
use super::ways::{BATCH_BYTES, Way, bring_in_all, is_strip, most_tiles, strip_mut_of, strip_of, tiles_of};
use crate::array::{Array, RowsMut};
use crate::element::Element;
use crate::kernel::finish::{self, Coefficients, Losses, MOST_LANES, PerLane, Sum, Sums};
use crate::kernel::horizontal::{self, Gradient, Less};
use crate::kernel::log_softmax::{self, Levels};
use crate::kernel::shape::{self, Shape, Shapes};
use crate::kernel::shares::{Aim, Leader};
use crate::kernel::stage::Stage;
use crate::kernel::vertical::{self, Strip, StripMut, Tiles};
use crate::math::{Real, Scale};
use crate::row::{Exponential, Statistics, Transform, log_probabilities, log_sum_exp, per_mass, probabilities};
use crate::rows::{BLOCK, Row, StorePolicy};
use crate::simd;

/// What becomes of what is known of rows.
pub(super) trait Use {
    /// Whether it takes log-probabilities, which are right to their last digits for a confident leader.
    const LEADERS: bool;
    /// Whether it takes more than that: leaders, entropies and ranks.
    const SHAPES: bool;

    /// The class that is ranked in each of some rows, no more than there are lanes.
    #[inline(always)]
    fn ranked(&self, _rows: Range<usize>) -> PerLane<Option<usize>> {
        [None; MOST_LANES]
    }

    /// The only class of each of some rows that is asked for, no more rows than there are lanes: then exponentials can be relative to
    /// it.
    #[inline(always)]
    fn own(&self, _rows: Range<usize>) -> Option<PerLane<usize>> {
        None
    }

    /// Take what is known of some rows, no more than there are lanes.
    fn take<S: Simd>(&mut self, simd: S, rows: Range<usize>, known: &Statistics);
}

/// Where the softmax goes, or its logarithm.
pub(super) struct Normalized<'a> {
    pub(super) out: RowsMut<'a>,
    pub(super) log: bool,
    pub(super) store: StorePolicy,
}

/// The work on a chunk of rows.
pub(super) struct Reading<'a> {
    pub(super) range: Range<usize>,
    pub(super) logits: &'a Array<'a>,
    pub(super) transform: Transform,
    pub(super) normalized: Option<Normalized<'a>>,
    /// If bits must not depend on where rows are cut into batches: whether the classes of rows lie apart.
    pub(super) settled: Option<bool>,
}

/// What the softmax of some tiles needs, and its logarithm.
struct Known<S: Simd, R: Real> {
    rows: Tiles<vertical::Rows<S, R>>,
    coefficients: Tiles<Coefficients>,
    levels: Tiles<Levels>,
}

/// Vectors are counted in lanes for ranks, which is exact up to here in f32.
const COUNTABLE_CLASSES: usize = 1 << 24;

/// So many classes are looked at for one that the others are not far above.
const ENOUGH: usize = 16;

impl Reading<'_> {
    /// Whether exponentials have to be relative to the largest logit: one that is not far below will do where nothing must be right to
    /// the last digits of a small number.
    #[inline(always)]
    fn leads<U: Use>(&self) -> bool {
        U::LEADERS || U::SHAPES || self.normalized.as_ref().is_some_and(|normalized| normalized.log)
    }

    /// Let `user` take what is known of all rows.
    #[inline(always)]
    pub(super) fn run<S: Simd, U: Use>(mut self, simd: S, user: &mut U) {
        if self.logits.dtype().is_double() {
            self.batches::<S, f64, U>(simd, user);
        } else {
            self.batches::<S, f32, U>(simd, user);
        }
        if self.normalized.is_some_and(|normalized| normalized.store == StorePolicy::NonTemporal) {
            simd::store_fence();
        }
    }

    /// The work on logits that compute in `R`, batch by batch.
    #[inline(always)]
    fn batches<S: Simd, R: Real + Element<Real = R>, U: Use>(&mut self, simd: S, user: &mut U) {
        let (classes, temperature) = (self.logits.classes(), self.transform.temperature());
        let countable = classes <= if U::SHAPES { COUNTABLE_CLASSES } else { u32::MAX as usize };
        let suits = self.transform.softcap().is_none() && Scale::<R>::suits(temperature) && countable;
        let scale = suits.then(|| Scale::<R>::new::<S>(temperature));
        let Range { start: mut first, end } = self.range;
        while first < end {
            let Some(scale) = scale else {
                let bytes = classes.saturating_mul(self.logits.dtype().size());
                let rows = first..end.min(first + (BATCH_BYTES / bytes.max(1)).clamp(1, MOST_LANES));
                self.careful::<S, R, U>(simd, rows.clone(), user);
                first = rows.end;
                continue;
            };
            let most = most_tiles(classes, 2);
            let out = self.normalized.as_mut().map(|normalized| &mut normalized.out);
            let fits = |rows| is_strip::<R>(out, first, rows);
            let way = Way::of::<R>(self.logits, first, end - first, most, self.settled, |_| true, fits);
            let rows = first..first + way.rows::<R>();
            match way {
                Way::Strip(_) => self.strip(simd, scale, rows.clone(), user),
                Way::Staged(_) => self.staged(simd, scale, rows.clone(), user),
                Way::OneByOne(_) => self.one_by_one(simd, scale, rows.clone(), user),
            }
            first = rows.end;
        }
    }

    /// Work on tiles where they lie.
    #[inline(always)]
    fn strip<S: Simd, R: Real + Element<Real = R>, U: Use>(
        &mut self,
        simd: S,
        scale: Scale<R>,
        rows: Range<usize>,
        user: &mut U,
    ) {
        let logits = self.logits;
        let strip = strip_of::<R>(logits, &rows);
        let mut known = Known::nothing();
        self.tiles(simd, scale, rows.clone(), &strip, &mut known, user);
        let Some(normalized) = &mut self.normalized else { return };
        let mut out = strip_mut_of::<R>(&mut normalized.out, &rows);
        known.write(simd, self.transform.temperature(), normalized.log, Some(&strip), &mut out);
        self.normalize_some(simd, rows, &known);
    }

    /// Write the softmax of those of some rows that need the careful path, or its logarithm.
    #[inline(always)]
    fn normalize_some<S: Simd, R: Real + Element<Real = R>>(
        &mut self,
        simd: S,
        rows: Range<usize>,
        known: &Known<S, R>,
    ) {
        let log = self.normalized.as_ref().is_some_and(|normalized| normalized.log);
        let of_tile = tiles_of::<R>(rows);
        for tile in 0..known.rows.all().len() {
            for lane in lanes_of(known.careful(tile, log)) {
                self.normalize_careful::<S, R>(simd, of_tile(tile).start + lane);
            }
        }
    }

    /// Work on rows on a stage.
    #[inline(always)]
    fn staged<S: Simd, R: Real + Element<Real = R>, U: Use>(
        &mut self,
        simd: S,
        scale: Scale<R>,
        rows: Range<usize>,
        user: &mut U,
    ) {
        let classes = self.logits.classes();
        let (mut stage, mut wings) = (Stage::<R>::empty(), Stage::<R>::empty());
        if !wings.reserve(R::LANES, classes)
            || !bring_in_all(simd, &mut stage, self.logits, rows.clone(), R::LANES, false)
        {
            for first in rows.clone().step_by(R::LANES) {
                self.one_by_one(simd, scale, first..rows.end.min(first + R::LANES), user);
            }
            return;
        }
        let mut known = Known::nothing();
        // SAFETY: all tiles were brought in.
        let mut strip = unsafe { stage.strip(classes) };
        self.tiles(simd, scale, rows.clone(), &strip.read(), &mut known, user);
        let Some(normalized) = &mut self.normalized else { return };
        known.write(simd, self.transform.temperature(), normalized.log, None, &mut strip);
        let of_tile = tiles_of::<R>(rows.clone());
        for tile in 0..known.rows.all().len() {
            // SAFETY: its results were written.
            unsafe {
                stage.bring_out(simd, tile, &mut normalized.out, of_tile(tile), &mut wings, normalized.store);
            }
        }
        self.normalize_some(simd, rows, &known);
    }

    /// What is known of some tiles, handed over.
    #[inline(always)]
    fn tiles<S: Simd, R: Real + Element<Real = R>, U: Use>(
        &self,
        simd: S,
        scale: Scale<R>,
        rows: Range<usize>,
        strip: &Strip<R>,
        known: &mut Known<S, R>,
        user: &mut U,
    ) {
        let of_tile = tiles_of::<R>(rows.clone());
        let count = rows.len().div_ceil(R::LANES);
        let mut leaders = Tiles::<Leader<S, R>>::none();
        for tile in 0..count {
            let Some(own) = user.own(of_tile(tile)) else { break };
            leaders.push(Leader::given(simd, &strip.tile(tile).pick(&own), &own));
        }
        let given = !leaders.all().is_empty();
        let leads = self.leads::<U>() || R::LANES < f32::LANES;
        let mut classes = if leads || given { strip.classes() } else { strip.classes().min(ENOUGH) };
        let mut shapes = Tiles::<Shape<S, R>>::none();
        loop {
            if !given {
                leaders.clear();
                leaders.find(simd, strip, count, classes);
            }
            known.rows.clear();
            known.rows.begin_led(simd, &leaders, |tile| of_tile(tile).len(), scale);
            if U::SHAPES {
                for (tile, leader) in leaders.all().iter().enumerate() {
                    shapes.push(shape_of(simd, leader, &user.ranked(of_tile(tile)), |classes| {
                        strip.tile(tile).pick(classes)
                    }));
                }
                known.rows.add_shapes(simd, strip, &mut shapes);
                break;
            }
            known.rows.add(simd, 0..count, strip);
            for tile in 0..count {
                if known.rows.all_mut()[tile].raise(simd) {
                    known.rows.add(simd, tile..tile + 1, strip);
                }
            }
            // Where the first classes are masked, the largest logit may be too far above.
            let suits = |rows: &vertical::Rows<S, R>| rows.suits(simd);
            if classes == strip.classes() || known.rows.all().iter().all(suits) {
                break;
            }
            classes = strip.classes();
        }
        for tile in 0..count {
            let leader = &leaders.all()[tile];
            let (top, class) = (leader.logits(), if U::SHAPES { leader.classes() } else { [0; MOST_LANES] });
            let found = known.rows.all()[tile].found(simd);
            let shapes = U::SHAPES.then(|| shapes.all()[tile].found(simd));
            let losses = self.hand_over(simd, scale, of_tile(tile), &class, &top, &found, shapes.as_ref(), user);
            match &self.normalized {
                Some(normalized) if normalized.log => {
                    known.levels.push(Levels { top, log: [losses.loss, losses.lost], careful: losses.careful });
                }
                Some(_) => known.coefficients.push(losses.softmax::<S, R>(simd)),
                None => (),
            }
        }
    }

    /// Hand over what was found of some rows, no more than there are lanes.
    #[inline(always)]
    #[allow(clippy::too_many_arguments)] // some rows, and all that was found of them
    fn hand_over<S: Simd, R: Real + Element<Real = R>, U: Use>(
        &self,
        simd: S,
        scale: Scale<R>,
        rows: Range<usize>,
        leader: &PerLane<usize>,
        top: &PerLane<f64>,
        found: &Sums,
        shapes: Option<&Shapes>,
        user: &mut U,
    ) -> Losses {
        let shortfall = scale.shortfall();
        let losses = finish::losses::<S, R>(simd, found, if U::SHAPES { 0.0 } else { shortfall });
        let mut known = Statistics::default();
        known.log_sum_exps.reference = *top;
        known.log_sum_exps.others = *losses.ratio();
        known.logs = [losses.loss, losses.lost];
        if let Some(shapes) = shapes {
            (known.leader, known.top, known.above) = (*leader, *top, shapes.above);
            for (lane, weighted) in known.weighted.iter_mut().enumerate() {
                *weighted = shapes.weighed[lane] * losses.inverse()[lane] / self.transform.temperature();
                // What is summed is exp(z·(1 − ε)): its logarithm is off by ε times the mean of the distances.
                known.logs[0][lane] += shortfall * *weighted / (1.0 + losses.ratio()[lane]);
            }
        }
        let ranked = if U::SHAPES { user.ranked(rows.clone()) } else { [None; MOST_LANES] };
        for lane in lanes_of(losses.careful) {
            self.read_careful::<S, R>(simd, rows.start + lane, lane, ranked[lane], U::SHAPES, &mut known);
        }
        user.take(simd, rows, &known);
        losses
    }

    /// Work on rows one by one, no more than there are lanes, with what is once a row for all of them.
    #[inline(never)]
    fn one_by_one<S: Simd, R: Real + Element<Real = R>, U: Use>(
        &mut self,
        simd: S,
        scale: Scale<R>,
        rows: Range<usize>,
        user: &mut U,
    ) {
        let (mut leader, mut top) = ([0; MOST_LANES], [0.0; MOST_LANES]);
        let mut found = Sums::none();
        let mut shapes = Shapes { weighed: [0.0; MOST_LANES], above: [0.0; MOST_LANES] };
        let ranked = if U::SHAPES { user.ranked(rows.clone()) } else { [None; MOST_LANES] };
        let (own, leads) = (user.own(rows.clone()), self.leads::<U>());
        for (lane, number) in rows.clone().enumerate() {
            let row = self.logits.row(number);
            let (class, logit) = match &own {
                Some(own) => (own[lane], <R as Real>::from_f64(row.get(own[lane]))),
                None if leads => horizontal::leader::<S, R>(simd, row),
                None => {
                    let (of_row, logit) = nearly_led(simd, row, scale);
                    found.set(lane, &of_row);
                    top[lane] = Real::to_f64(logit);
                    continue;
                }
            };
            (leader[lane], top[lane]) = (class, Real::to_f64(logit));
            if U::SHAPES {
                let (of_row, of_shape) = shape::sum(simd, row, (class, logit), ranked[lane], scale);
                found.set(lane, &of_row);
                [shapes.weighed[lane], shapes.above[lane]] = of_shape;
            } else {
                found.set(lane, &horizontal::sum(simd, row, &[class], logit, scale));
            }
        }
        let shapes = U::SHAPES.then_some(&shapes);
        let losses = self.hand_over(simd, scale, rows.clone(), &leader, &top, &found, shapes, user);
        let Some(normalized) = &mut self.normalized else { return };
        let (softmax, divisor) = (losses.softmax::<S, R>(simd), self.transform.temperature());
        for (lane, number) in rows.clone().enumerate().filter(|(lane, _)| losses.careful >> lane & 1 == 0) {
            let (row, out) = (self.logits.row(number), normalized.out.row(number));
            if normalized.log {
                let log = [losses.loss[lane], losses.lost[lane]];
                log_softmax::write(simd, row, out, top[lane], log, divisor, normalized.store);
                continue;
            }
            let of = Gradient {
                logit: <R as Real>::from_f64(top[lane]),
                octaves: found.octaves[lane],
                factor: softmax.factor[lane],
                scale,
                softcap: None,
                store: normalized.store,
            };
            horizontal::write(simd, row, out, &of, &[], &Less::Nothing);
        }
        for lane in lanes_of(losses.careful) {
            self.normalize_careful::<S, R>(simd, rows.start + lane);
        }
    }

    /// Work on rows, no more than there are lanes, by the kernels that look for the maximum as they go.
    #[inline(never)]
    fn careful<S: Simd, R: Real + Element<Real = R>, U: Use>(&mut self, simd: S, rows: Range<usize>, user: &mut U) {
        let ranked = user.ranked(rows.clone());
        let mut known = Statistics::default();
        for (lane, row) in rows.clone().enumerate() {
            self.read_careful::<S, R>(simd, row, lane, ranked[lane], U::SHAPES, &mut known);
        }
        user.take(simd, rows.clone(), &known);
        for row in rows {
            self.normalize_careful::<S, R>(simd, row);
        }
    }

    /// What is known of a row by the kernels that look for the maximum as they go.
    #[inline(never)]
    fn read_careful<S: Simd, R: Real + Element<Real = R>>(
        &self,
        simd: S,
        number: usize,
        lane: usize,
        ranked: Option<usize>,
        shapes: bool,
        known: &mut Statistics,
    ) {
        let row = self.logits.row(number);
        if shapes {
            known.read::<S, R>(simd, lane, row, ranked, self.transform);
        } else {
            known.read_log_sum_exp::<S, R>(simd, lane, row, self.transform);
        }
    }

    /// Write the softmax of a row, or its logarithm, by the kernels that look for the maximum as they go.
    #[inline(never)]
    fn normalize_careful<S: Simd, R: Real + Element<Real = R>>(&mut self, simd: S, number: usize) {
        let Some(normalized) = &mut self.normalized else { return };
        let (row, out, transform) = (self.logits.row(number), normalized.out.row(number), self.transform);
        let found = log_sum_exp::<S, R>(simd, row, transform);
        let reference = found.reference;
        if normalized.log {
            log_probabilities::<S, R>(simd, row, out, reference, found.log_total(simd)[0], transform, normalized.store);
        } else {
            let softmax = Exponential { reference, factor: per_mass(1.0, found.total()), transform };
            probabilities::<S, R>(simd, row, out, softmax, normalized.store);
        }
    }
}

/// What is summed of the shapes of rows with these leaders, and how the classes that are ranked in them are found: `pick` is for their
/// logits.
#[inline(always)]
fn shape_of<S: Simd, R: Real + Element<Real = R>>(
    simd: S,
    leader: &Leader<S, R>,
    ranked: &PerLane<Option<usize>>,
    pick: impl FnOnce(&PerLane<usize>) -> PerLane<f64>,
) -> Shape<S, R> {
    let (mut classes, mut places) = ([0; MOST_LANES], [0.0; MOST_LANES]);
    for (lane, class) in ranked.iter().enumerate() {
        classes[lane] = class.unwrap_or(0);
        places[lane] = classes[lane] as f64;
    }
    let mut logits = pick(&classes);
    for (logit, class) in logits.iter_mut().zip(ranked) {
        *logit = if class.is_some() { *logit } else { f64::INFINITY };
    }
    Shape::of_leader(simd, leader, &logits, &places)
}

/// The exponentials of a row relative to one that is not far below the largest: in f32 that of the first classes, unless the others are
/// out of its reach; in f64 the largest. And the logit.
#[inline(always)]
fn nearly_led<S: Simd, R: Real + Element<Real = R>>(simd: S, row: Row, scale: Scale<R>) -> (Sum, R) {
    let some = if R::LANES < f32::LANES { row.classes() } else { row.classes().min(BLOCK) };
    let (_, mut top) = horizontal::top::<S, R>(simd, row, some);
    let mut sum = horizontal::sum(simd, row, &[], top, scale);
    if !sum.suits && some < row.classes() {
        (_, top) = horizontal::top(simd, row, row.classes());
        sum = horizontal::sum(simd, row, &[], top, scale);
    }
    (sum, top)
}

impl<S: Simd, R: Real + Element<Real = R>> Known<S, R> {
    #[inline(always)]
    fn nothing() -> Self {
        Self { rows: Tiles::none(), coefficients: Tiles::none(), levels: Tiles::none() }
    }

    /// Write the softmax of all tiles, or its logarithm, of logits that lie elsewhere or where it goes; logits for rows that need the
    /// careful path.
    #[inline(always)]
    fn write(&self, simd: S, divisor: f64, log: bool, logits: Option<&Strip<R>>, out: &mut StripMut<R>) {
        if log {
            log_softmax::write_tiles(simd, self.levels.all(), divisor, logits, out);
            return;
        }
        self.rows.write_less(simd, self.coefficients.all(), &[], logits, &Aim::Own, out);
    }

    /// A bit for each row of a tile that needs the careful path.
    #[inline(always)]
    fn careful(&self, tile: usize, log: bool) -> u32 {
        if log { self.levels.all()[tile].careful } else { self.coefficients.all()[tile].careful }
    }
}
