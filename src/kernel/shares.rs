//! Targets that give every class of a row its share, and teachers: what is summed of them, and what gradients are less.

use std::ops::Range;

use fearless_simd::{Simd, f64x8, prelude::*};

use super::cap::{Cap, Capped, reference, relative};
use super::finish::{Coefficients, HALF, MOST_LANES, Own, PerLane, bits, load, store};
use super::vertical::{Beside, Block, Offset, Rows, Strip, StripMut, Tiles, for_each_group, lane_mask};
use crate::element::Element;
use crate::math::{Real, Scale, Total, Twice, UNIT, two_sum};

/// Numbers that are given for each class of some rows, one row a lane.
#[derive(Clone, Copy, Debug)]
pub enum Given<'a> {
    /// Each is 0.
    Nothing,
    /// Tiles of f32.
    Single(Strip<'a, f32>),
    /// Tiles of f64.
    Double(Strip<'a, f64>),
}

/// The shares of all classes: `weight·(keep·given + uniform)`.
#[derive(Clone, Copy, Debug)]
pub struct Shares<'a> {
    /// What is given.
    pub given: Given<'a>,
    /// What is left of it.
    pub keep: f64,
    /// What every class gets instead.
    pub uniform: f64,
    /// A weight for each class.
    pub weight: Option<&'a [f64]>,
}

/// Which of its parts shares are made of.
#[derive(Clone, Copy, PartialEq)]
enum Parts {
    Uniform,
    OfClass,
    Given,
    All,
}

impl Shares<'_> {
    #[inline(always)]
    fn parts(&self) -> Parts {
        match (self.given, self.weight) {
            (Given::Nothing, None) => Parts::Uniform,
            (Given::Nothing, Some(_)) => Parts::OfClass,
            (_, None) if self.keep == 1.0 && self.uniform == 0.0 => Parts::Given,
            _ => Parts::All,
        }
    }

    /// What is given to a class by the rows of tile number `tile` of those that compute in `R`.
    #[inline(always)]
    fn given<S: Simd, R: Real>(&self, simd: S, tile: usize, class: usize) -> Twice<S> {
        let (first, mut halves) = (tile * R::LANES, [f64x8::splat(simd, 0.0); 2]);
        match self.given {
            Given::Nothing => {}
            Given::Single(strip) if R::LANES == f32::LANES => {
                let [lanes] = strip.tile(tile).load::<S, 1>(simd, class);
                halves = f32::twice(lanes);
            }
            Given::Single(strip) => {
                let block = strip.tile(first / f32::LANES);
                let mut numbers = [0.0; HALF];
                for (lane, number) in numbers.iter_mut().enumerate() {
                    *number = f64::from(block.get(class, first % f32::LANES + lane));
                }
                halves[0] = numbers.simd_into(simd);
            }
            Given::Double(strip) => {
                for half in 0..R::LANES / HALF {
                    [halves[half]] = strip.tile(first / HALF + half).load::<S, 1>(simd, class);
                }
            }
        }
        halves
    }

    /// What the uniform part of a class weighs.
    #[inline(always)]
    fn of_class(&self, class: usize) -> f64 {
        self.uniform * self.weight.map_or(1.0, |weight| weight[class])
    }

    /// The share of a class to which this is given.
    #[inline(always)]
    fn of<S: Simd, R: Real>(&self, simd: S, parts: Parts, given: Twice<S>, class: usize) -> Twice<S> {
        let lanes = |value: f64| f64x8::splat(simd, value);
        let mut shares = given;
        match parts {
            Parts::Given => {}
            Parts::Uniform | Parts::OfClass => shares[..R::LANES / HALF].fill(lanes(self.of_class(class))),
            Parts::All => {
                let weight = lanes(self.weight.map_or(1.0, |weight| weight[class]));
                let (keep, uniform) = (lanes(self.keep), lanes(self.uniform));
                for share in &mut shares[..R::LANES / HALF] {
                    *share = share.mul_add(keep, uniform) * weight;
                }
            }
        }
        shares
    }

    /// The share of a class times `scales`, rounded once.
    #[inline(always)]
    pub(super) fn scaled<S: Simd, R: Real>(&self, simd: S, tile: usize, class: usize, scales: Twice<S>) -> R::Lanes<S> {
        let parts = self.parts();
        let varies = matches!(parts, Parts::Given | Parts::All);
        let given = if varies { self.given::<S, R>(simd, tile, class) } else { [f64x8::splat(simd, 0.0); 2] };
        let [low, high] = self.of::<S, R>(simd, parts, given, class);
        R::once([low * scales[0], high * scales[1]])
    }

    /// What is given to a class in the lanes that compute, if it is such.
    #[inline(always)]
    fn single<S: Simd, R: Real + Element<Real = R>>(
        &self,
        simd: S,
        tile: usize,
        class: usize,
    ) -> Option<[R::Lanes<S>; 1]> {
        let strip = match self.given {
            Given::Single(strip) => strip.of::<R>(),
            _ => None,
        };
        strip.map(|strip| strip.tile(tile).load::<S, 1>(simd, class))
    }

    /// The share of a class of each lane.
    #[inline(never)]
    pub fn pick<R: Real>(&self, tile: usize, classes: &PerLane<usize>) -> PerLane<f64> {
        let mut shares = [0.0; MOST_LANES];
        for lane in 0..R::LANES {
            let row = tile * R::LANES + lane;
            let given = match self.given {
                Given::Nothing => 0.0,
                Given::Single(strip) => f64::from(strip.tile(row / f32::LANES).get(classes[lane], row % f32::LANES)),
                Given::Double(strip) => strip.tile(row / HALF).get(classes[lane], row % HALF),
            };
            let weight = self.weight.map_or(1.0, |weight| weight[classes[lane]]);
            shares[lane] = (given * self.keep + self.uniform) * weight;
        }
        shares
    }
}

/// The largest logits, one a lane, and the first classes that have them.
#[derive(Clone, Copy)]
pub struct Leader<S: Simd, R: Real> {
    pub(super) top: R::Lanes<S>,
    /// As [`Real::classes`] has them.
    pub(super) class: R::Lanes<S>,
}

impl<S: Simd, R: Real + Element<Real = R>> Leader<S, R> {
    /// Of no class.
    #[inline(always)]
    pub(super) fn none(simd: S) -> Self {
        Self { top: R::splat(simd, f64::NEG_INFINITY), class: R::class(simd, 0) }
    }

    /// These classes, with these logits.
    #[inline(never)]
    pub fn given(simd: S, logits: &PerLane<f64>, classes: &PerLane<usize>) -> Self {
        simd.vectorize(
            #[inline(always)]
            || Self { top: R::narrow(simd, logits), class: R::classes(simd, classes) },
        )
    }

    /// Look at some classes of a block.
    #[inline(always)]
    pub(super) fn look_at(&mut self, simd: S, block: &Block<R>, classes: Range<usize>) {
        // In variables of its own: otherwise the compiler makes stores in part of the selections.
        let Self { mut top, class: mut leader } = *self;
        for class in classes {
            let [x] = block.load::<S, 1>(simd, class);
            let larger = x.simd_gt(top);
            top = larger.select(x, top);
            leader = larger.select(R::class(simd, class), leader);
        }
        *self = Self { top, class: leader };
    }

    /// The classes.
    #[inline(always)]
    pub fn classes(&self) -> PerLane<usize> {
        let mut classes = [0; MOST_LANES];
        R::class_numbers(self.class, &mut classes);
        classes
    }

    /// The logits.
    #[inline(always)]
    pub fn logits(&self) -> PerLane<f64> {
        let mut logits = [0.0; MOST_LANES];
        R::widen(self.top, &mut logits);
        logits
    }
}

/// What shares weigh, class by class.
pub(super) trait Values<S: Simd> {
    /// Those of a class in twice the precision.
    fn twice(&self, simd: S, class: usize) -> Twice<S>;
}

/// Logits.
impl<S: Simd, R: Real + Element<Real = R>> Values<S> for Block<'_, R> {
    #[inline(always)]
    fn twice(&self, simd: S, class: usize) -> Twice<S> {
        let [x] = self.load::<S, 1>(simd, class);
        R::twice(x)
    }
}

/// Logits under a cap.
impl<S: Simd, R: Real + Element<Real = R>> Values<S> for (&Cap<S>, Block<'_, R>) {
    #[inline(always)]
    fn twice(&self, simd: S, class: usize) -> Twice<S> {
        let [x] = self.1.load::<S, 1>(simd, class);
        self.0.of::<R>(simd, x).0
    }
}

/// Logits that were capped.
impl<S: Simd, R: Real, const N: usize> Values<S> for Capped<R, N> {
    #[inline(always)]
    fn twice(&self, simd: S, vector: usize) -> Twice<S> {
        self.value(simd, vector)
    }
}

/// What is summed of shares.
#[derive(Clone, Copy)]
pub struct Weighed<S: Simd> {
    /// `Σ t`, but of shares that are the same for all rows.
    mass: Total<S>,
    /// `Σ t·x`, in f64 `Σ t·(x − x(own))` in units of [`UNIT`].
    sum: Total<S>,
    /// The least of what was given.
    least: Twice<S>,
    /// The own logits.
    own: Twice<S>,
}

/// [`Weighed`], one row a lane, in units of one.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub struct Found {
    /// `Σ t`.
    pub mass: PerLane<f64>,
    /// `Σ t·(x − x(own))`.
    pub sum: PerLane<f64>,
}

impl<S: Simd> Weighed<S> {
    /// Nothing, of the rows of a block with these own classes.
    #[inline(always)]
    pub fn none<R: Real + Element<Real = R>>(simd: S, block: &Block<R>, own: &Own) -> Self {
        Self::relative_to(simd, R::twice(block.of_classes(simd, &own.class)))
    }

    /// Nothing, of rows with these own logits, capped ones if there is a cap.
    #[inline(always)]
    pub(super) fn relative_to(simd: S, own: Twice<S>) -> Self {
        let zero = Total::zero(simd);
        Self { mass: zero, sum: zero, least: [f64x8::splat(simd, 0.0); 2], own }
    }

    /// Take in what was summed of other classes, relative to the same logits.
    #[inline(always)]
    pub(super) fn merge<R: Real>(&mut self, other: &Self) {
        self.mass.add::<R>(other.mass);
        self.sum.add::<R>(other.sum);
        for (least, other) in self.least.iter_mut().zip(other.least) {
            *least = least.min(other);
        }
    }

    /// Add the shares of some classes of a tile, whose capped logits are `values`.
    #[inline(always)]
    pub(super) fn add_capped<R: Real + Element<Real = R>>(
        &mut self,
        simd: S,
        values: &impl Values<S>,
        shares: &Shares,
        tile: usize,
        classes: Range<usize>,
    ) {
        self.add_parts::<R, _, true>(simd, values, shares, Parts::All, tile, classes);
    }

    /// Add the shares of some classes of a tile. Without `MASKED` a share of nothing of a masked class makes the sum NaN.
    #[inline(always)]
    pub(super) fn add<R: Real + Element<Real = R>, const MASKED: bool>(
        &mut self,
        simd: S,
        block: &Block<R>,
        shares: &Shares,
        tile: usize,
        classes: Range<usize>,
    ) {
        // A loop for each, so that none asks class by class.
        match shares.parts() {
            Parts::Uniform => self.add_parts::<R, _, MASKED>(simd, block, shares, Parts::Uniform, tile, classes),
            Parts::OfClass => self.add_parts::<R, _, MASKED>(simd, block, shares, Parts::OfClass, tile, classes),
            Parts::Given => self.add_parts::<R, _, MASKED>(simd, block, shares, Parts::Given, tile, classes),
            Parts::All => self.add_parts::<R, _, MASKED>(simd, block, shares, Parts::All, tile, classes),
        }
    }

    #[inline(always)]
    fn add_parts<R: Real + Element<Real = R>, V: Values<S>, const MASKED: bool>(
        &mut self,
        simd: S,
        values: &V,
        shares: &Shares,
        parts: Parts,
        tile: usize,
        classes: Range<usize>,
    ) {
        let zero = f64x8::splat(simd, 0.0);
        let (mut mass, mut sum, mut least) = (self.mass, self.sum, self.least);
        for class in classes {
            let mut x = values.twice(simd, class);
            let varies = matches!(parts, Parts::Given | Parts::All);
            let given = if varies { shares.given::<S, R>(simd, tile, class) } else { [zero; 2] };
            let share = shares.of::<S, R>(simd, parts, given, class);
            if varies {
                for half in 0..R::LANES / HALF {
                    // A NaN may get lost here; it is in the mass.
                    least[half] = least[half].min(given[half]);
                }
                R::add_twice(&mut mass, share);
            }
            if R::LANES == f32::LANES {
                // f64 holds the products, so that it does not matter what they are relative to.
                if MASKED {
                    for half in 0..2 {
                        x[half] = share[half].simd_eq(zero).select(zero, x[half]);
                    }
                }
                sum.add_products(x, share);
            } else {
                R::add_weighted(simd, &mut sum, share, x, self.own);
            }
        }
        (self.mass, self.sum, self.least) = (mass, sum, least);
    }

    /// The mass, `total` for shares that are the same for all rows, and the sum in lanes that are those of one row; whether
    /// something was given that is less than 0, or NaN.
    #[inline(always)]
    pub(super) fn of_all<R: Real>(&self, total: Option<f64>) -> ([f64; 2], bool) {
        let [mass, own] = [total.unwrap_or(self.mass.value()), self.own[0].as_slice()[0]];
        let mut bad = mass.is_nan();
        for half in &self.least[..R::LANES / HALF] {
            bad |= half.as_slice().iter().any(|least| *least < 0.0);
        }
        let sum = self.sum.value();
        ([mass, if R::LANES == f32::LANES { sum - mass * own } else { sum * UNIT }], bad)
    }

    /// A bit for each row to which something was given that is less than 0, or NaN.
    #[inline(never)]
    pub fn bad<R: Real>(&self, simd: S) -> u32 {
        simd.vectorize(
            #[inline(always)]
            || {
                let mut mass = [0.0; MOST_LANES];
                R::lane_totals(&self.mass, &mut mass);
                let mut fine = 0;
                for half in 0..R::LANES / HALF {
                    let mass = load(simd, &mass, half * HALF);
                    let least = self.least[half].simd_ge(f64x8::splat(simd, 0.0));
                    fine |= bits::<S, _>(mass.simd_eq(mass) & least) << (half * HALF);
                }
                !fine & u32::MAX >> (32 - R::LANES)
            },
        )
    }

    /// A bit for each row whose sum is finite: not where a masked class is, or where something given is NaN.
    #[inline(never)]
    pub fn finite<R: Real>(&self, simd: S) -> u32 {
        simd.vectorize(
            #[inline(always)]
            || {
                let mut sums = [0.0; MOST_LANES];
                R::lane_totals(&self.sum, &mut sums);
                let mut finite = 0;
                for half in 0..R::LANES / HALF {
                    let sum = load(simd, &sums, half * HALF);
                    finite |= bits::<S, _>(sum.is_finite() & self.own[half].is_finite()) << (half * HALF);
                }
                finite
            },
        )
    }

    /// What was summed; `total` is the mass of shares that are the same for all rows.
    #[inline(never)]
    pub fn found<R: Real>(&self, simd: S, total: Option<f64>) -> Found {
        simd.vectorize(
            #[inline(always)]
            || {
                let mut found = Found { mass: [0.0; MOST_LANES], sum: [0.0; MOST_LANES] };
                R::lane_totals(&self.mass, &mut found.mass);
                R::lane_totals(&self.sum, &mut found.sum);
                for half in 0..R::LANES / HALF {
                    let place = half * HALF;
                    let (given, sum) = (load(simd, &found.mass, place), load(simd, &found.sum, place));
                    let mass = total.map_or(given, |total| f64x8::splat(simd, total));
                    let sum = if R::LANES == f32::LANES { sum - mass * self.own[half] } else { sum * UNIT };
                    store(mass, &mut found.mass, place);
                    store(sum, &mut found.sum, place);
                }
                found
            },
        )
    }
}

/// A pupil beside its teacher, whose exponentials are added: `Σ exp·((x − x(own')) − (x' − x'(own')))`, where primes are the
/// teacher's, and own' is the class of its own exponentials. Without `MASKED` a masked class makes it NaN.
pub(super) struct Divergence<'a, S: Simd, R, const MASKED: bool> {
    pub(super) pupil: Block<'a, R>,
    /// `x(own') − x'(own')` in twice the precision.
    pub(super) moved: Twice<S>,
    /// In f64 in units of [`UNIT`].
    pub(super) sum: Total<S>,
}

impl<S: Simd, R: Real + Element<Real = R>, const MASKED: bool> Beside<S, R> for Divergence<'_, S, R, MASKED> {
    const SEES: bool = true;

    #[inline(always)]
    fn add(&mut self, simd: S, vector: usize, teacher: R::Lanes<S>, exp: R::Lanes<S>) {
        let [pupil] = self.pupil.load::<S, 1>(simd, vector);
        let exp = if MASKED || R::LANES < f32::LANES {
            let lowest = R::Lanes::<S>::simd_from(simd, R::LOWEST);
            // A masked class is infinitely far from one that is not, however little that weighs.
            let apart = pupil.simd_lt(lowest) & teacher.simd_ge(lowest);
            R::twice(apart.select(R::splat(simd, 1.0), exp))
        } else {
            R::twice(exp)
        };
        let (pupil, teacher) = (R::twice(pupil), R::twice(teacher));
        if R::LANES < f32::LANES {
            let [high, low] = two_sum(teacher[0], self.moved[0]);
            R::add_weighted(simd, &mut self.sum, exp, pupil, [high, low + self.moved[1]]);
            return;
        }
        // As good as exact in f64.
        let (mut difference, zero) = (pupil, f64x8::splat(simd, 0.0));
        for half in 0..2 {
            difference[half] -= teacher[half] + self.moved[half];
            if MASKED {
                difference[half] = exp[half].simd_eq(zero).select(zero, difference[half]);
            }
        }
        self.sum.add_products(difference, exp);
    }
}

/// A difference of logits, a sum of two, in twice the precision of the lanes.
#[inline(always)]
pub(super) fn moved_lanes<S: Simd, R: Real>(simd: S, [high, low]: &[PerLane<f64>; 2]) -> Twice<S> {
    [load(simd, high, 0), if R::LANES == f32::LANES { load(simd, high, HALF) } else { load(simd, low, 0) }]
}

/// The unit that sums beside a teacher are in.
#[inline(always)]
pub(super) fn unit<R: Real>() -> f64 {
    if R::LANES == f32::LANES { 1.0 } else { UNIT }
}

/// Shares, as gradients are less by them: a product is rounded once.
struct OfShares<'a, S: Simd, R: Real> {
    shares: Shares<'a>,
    tile: usize,
    scales: Twice<S>,
    /// The same as a sum of two.
    parts: [R::Lanes<S>; 2],
    /// What the uniform part of any class is less.
    uniform: R::Lanes<S>,
}

impl<'a, S: Simd, R: Real> OfShares<'a, S, R> {
    #[inline(always)]
    fn new(simd: S, shares: &Shares<'a>, tile: usize, scales: &PerLane<f64>) -> Self {
        let high = R::narrow(simd, scales);
        let (mut rest, mut uniform) = ([0.0; MOST_LANES], *scales);
        R::widen(high, &mut rest);
        for lane in 0..MOST_LANES {
            rest[lane] = scales[lane] - rest[lane];
            uniform[lane] *= shares.uniform;
        }
        Self {
            shares: *shares,
            tile,
            scales: R::halves(simd, scales),
            parts: [high, R::narrow(simd, &rest)],
            uniform: R::narrow(simd, &uniform),
        }
    }
}

impl<S: Simd, R: Real + Element<Real = R>> Offset<S, R> for OfShares<'_, S, R> {
    #[inline(always)]
    fn less(&self, simd: S, class: usize, gradient: R::Lanes<S>) -> R::Lanes<S> {
        let parts = self.shares.parts();
        if parts == Parts::Uniform {
            return gradient - self.uniform;
        }
        if let (Parts::Given, Some([lanes])) = (parts, self.shares.single::<S, R>(simd, self.tile, class)) {
            let [high, low] = self.parts;
            return (-lanes).mul_add(high, (-lanes).mul_add(low, gradient));
        }
        gradient - self.shares.scaled::<S, R>(simd, self.tile, class, self.scales)
    }
}

/// A teacher, as gradients are less by it.
struct OfTeacher<'a, S: Simd, R: Real> {
    rows: &'a Rows<S, R>,
    block: Block<'a, R>,
    factor: R::Lanes<S>,
}

impl<S: Simd, R: Real + Element<Real = R>> Offset<S, R> for OfTeacher<'_, S, R> {
    #[inline(always)]
    fn less(&self, simd: S, class: usize, gradient: R::Lanes<S>) -> R::Lanes<S> {
        let [x] = self.block.load::<S, 1>(simd, class);
        gradient - self.rows.exp(simd, x) * self.factor
    }
}

/// What rows are to be like.
#[derive(Clone, Copy)]
pub enum Aim<'a, S: Simd, R: Real> {
    /// What was said of their own classes.
    Own,
    /// Shares of all classes.
    Shares(Shares<'a>),
    /// The softmax of a teacher's logits, and what is known of those.
    Teacher(&'a Tiles<Rows<S, R>>, Strip<'a, R>),
}

impl<S: Simd> Tiles<Weighed<S>> {
    /// The shares of all classes of a tile once more, if there are masked classes that have none.
    #[inline(never)]
    pub fn add_masked<R: Real + Element<Real = R>>(&mut self, simd: S, strip: &Strip<R>, shares: &Shares, tile: usize) {
        simd.vectorize(
            #[inline(always)]
            || {
                let weighed = &mut self.all_mut()[tile];
                (weighed.mass, weighed.sum) = (Total::zero(simd), Total::zero(simd));
                weighed.add::<R, true>(simd, &strip.tile(tile), shares, tile, 0..strip.block.classes());
            },
        );
    }
}

/// Rows of few classes under a cap.
pub struct CappedTiles<'a, S: Simd, R> {
    /// The cap.
    pub(crate) cap: Cap<S>,
    /// [`super::cap::Softcap`]'s.
    pub unit: f64,
    /// The logits.
    pub logits: Strip<'a, R>,
}

impl<S: Simd, R: Real + Element<Real = R>> CappedTiles<'_, S, R> {
    /// The capped logits of the own classes.
    #[inline(always)]
    fn own(&self, simd: S, tile: usize, own: &Own) -> Twice<S> {
        let logits = self.logits.tile(tile).pick(&own.class);
        reference::<S, R>(&self.cap, simd, R::narrow(simd, &logits))
    }

    /// Write by how much the capped logits of each class are above those of the own ones, in that unit.
    #[inline(never)]
    pub fn write(&self, simd: S, own: &[Own], out: &mut StripMut<R>) {
        simd.vectorize(
            #[inline(always)]
            || {
                for (tile, own) in own.iter().enumerate() {
                    let (block, mut out, own) = (self.logits.tile(tile), out.tile(tile), self.own(simd, tile, own));
                    for class in 0..block.classes() {
                        let [x] = block.load::<S, 1>(simd, class);
                        out.store(simd, class, relative::<S, R>(self.cap.of::<R>(simd, x).0, own, self.unit));
                    }
                }
            },
        );
    }

    /// Add the shares of all classes of the tiles.
    #[inline(never)]
    pub fn shares(&self, simd: S, own: &[Own], shares: &Shares, all: &mut Tiles<Weighed<S>>) {
        simd.vectorize(
            #[inline(always)]
            || {
                for (tile, own) in own.iter().enumerate() {
                    let block = self.logits.tile(tile);
                    let mut weighed = Weighed::relative_to(simd, self.own(simd, tile, own));
                    weighed.add_capped::<R>(simd, &(&self.cap, block), shares, tile, 0..block.classes());
                    all.push(weighed);
                }
            },
        );
    }

    /// Multiply gradients by the slopes of the cap; write the logits of rows that need the careful path.
    #[inline(never)]
    pub fn slope(&self, simd: S, coefficients: &[Coefficients], out: &mut StripMut<R>) {
        simd.vectorize(
            #[inline(always)]
            || {
                for (tile, of) in coefficients.iter().enumerate() {
                    let (block, mut out) = (self.logits.tile(tile), out.tile(tile));
                    let spared = lane_mask::<S, R>(simd, of.careful);
                    for class in 0..block.classes() {
                        let [x] = block.load::<S, 1>(simd, class);
                        let [gradient] = out.read().load::<S, 1>(simd, class);
                        let (_, slope) = self.cap.of::<R>(simd, x);
                        // Of rows that do not count the logits may be NaN.
                        let zero = R::splat(simd, 0.0);
                        let gradient = gradient.simd_eq(zero).select(zero, gradient * slope);
                        out.store(simd, class, spared.select(x, gradient));
                    }
                }
            },
        );
    }
}

impl<S: Simd, R: Real + Element<Real = R>> Tiles<Leader<S, R>> {
    /// Find the leaders of `count` tiles among their first `classes`.
    ///
    /// # Panics
    /// If they have not so many.
    #[inline(never)]
    pub fn find(&mut self, simd: S, strip: &Strip<R>, count: usize, classes: usize) {
        simd.vectorize(
            #[inline(always)]
            || {
                for _ in 0..count {
                    self.push(Leader::none(simd));
                }
                for_each_group!(classes, 0..count, |tile, classes| {
                    self.all_mut()[tile].look_at(simd, &strip.tile(tile), classes);
                });
            },
        );
    }
}

impl<S: Simd, R: Real + Element<Real = R>> Tiles<Rows<S, R>> {
    /// Begin with tiles whose own classes are the leaders; `counts` says how many rows each has.
    #[inline(never)]
    pub fn begin_led(
        &mut self,
        simd: S,
        leaders: &Tiles<Leader<S, R>>,
        counts: impl Fn(usize) -> usize,
        scale: Scale<R>,
    ) {
        simd.vectorize(
            #[inline(always)]
            || {
                for (tile, leader) in leaders.all().iter().enumerate() {
                    let counts = lane_mask::<S, R>(simd, u32::MAX >> (32 - counts(tile)));
                    self.push(Rows::relative_to(simd, leader.top, leader.class, counts, scale));
                }
            },
        );
    }

    /// Add the exponentials of all classes of some tiles.
    #[inline(never)]
    pub fn add(&mut self, simd: S, tiles: Range<usize>, strip: &Strip<R>) {
        simd.vectorize(
            #[inline(always)]
            || {
                for_each_group!(strip.classes(), tiles.clone(), |tile, classes| {
                    let count = classes.len();
                    self.all_mut()[tile].add::<_, true>(
                        simd,
                        &strip.tile(tile),
                        &mut (),
                        classes.start,
                        classes.start,
                        count,
                    );
                });
            },
        );
    }

    /// Add the exponentials of all classes of some tiles, and their shares.
    #[inline(never)]
    pub fn add_shares(&mut self, simd: S, strip: &Strip<R>, shares: &Shares, weighed: &mut Tiles<Weighed<S>>) {
        simd.vectorize(
            #[inline(always)]
            || {
                let count = self.all().len();
                for_each_group!(strip.classes(), 0..count, |tile, classes| {
                    let (block, count) = (strip.tile(tile), classes.len());
                    self.all_mut()[tile].add::<_, true>(simd, &block, &mut (), classes.start, classes.start, count);
                    weighed.all_mut()[tile].add::<R, false>(simd, &block, shares, tile, classes);
                });
            },
        );
    }

    /// Add the exponentials of all classes of some of a teacher's tiles, beside those of a pupil; `moved` is by how much the
    /// pupil's logits of the own classes are above the teacher's, as a sum of two. The sums are
    /// `Σ exp·((x − x(own')) − (x' − x'(own')))`; without `MASKED` a masked class makes them NaN.
    #[inline(never)]
    pub fn add_beside<const MASKED: bool>(
        &mut self,
        simd: S,
        tiles: Range<usize>,
        teacher: &Strip<R>,
        pupil: &Strip<R>,
        moved: &[[PerLane<f64>; 2]],
        sums: &mut Tiles<PerLane<f64>>,
    ) {
        simd.vectorize(
            #[inline(always)]
            || {
                let mut totals = Tiles::<Total<S>>::none();
                for _ in tiles.clone() {
                    totals.push(Total::zero(simd));
                }
                for_each_group!(teacher.classes(), tiles.clone(), |tile, classes| {
                    let sum = totals.all()[tile - tiles.start];
                    let moved = moved_lanes::<S, R>(simd, &moved[tile]);
                    let mut beside = Divergence::<_, _, MASKED> { pupil: pupil.tile(tile), moved, sum };
                    let (first, count) = (classes.start, classes.len());
                    self.all_mut()[tile].add::<_, true>(simd, &teacher.tile(tile), &mut beside, first, first, count);
                    totals.all_mut()[tile - tiles.start] = beside.sum;
                });
                for total in totals.all() {
                    let mut of_tile = [0.0; MOST_LANES];
                    R::lane_totals(total, &mut of_tile);
                    for sum in &mut of_tile {
                        *sum *= unit::<R>();
                    }
                    sums.push(of_tile);
                }
            },
        );
    }

    /// Write the gradients of all classes, of logits that lie elsewhere or where these go, less what the rows are to be like;
    /// logits where a row needs the careful path.
    /// `scales` are what shares, or the teacher's exponentials, are multiplied by.
    #[inline(never)]
    pub fn write_less(
        &self,
        simd: S,
        coefficients: &[Coefficients],
        scales: &[PerLane<f64>],
        logits: Option<&Strip<R>>,
        aim: &Aim<S, R>,
        out: &mut StripMut<R>,
    ) {
        simd.vectorize(
            #[inline(always)]
            || {
                let strip = *logits.unwrap_or(&out.strip);
                for_each_group!(strip.classes(), 0..coefficients.len(), |tile, classes| {
                    let (rows, of, block) = (&self.all()[tile], &coefficients[tile], strip.tile(tile));
                    let mut out = out.tile(tile);
                    let scales = scales.get(tile).unwrap_or(&[0.0; MOST_LANES]);
                    match aim {
                        Aim::Own => rows.write::<_, true>(simd, of, &block, &mut out, &(), classes),
                        Aim::Shares(shares) => {
                            let offset = OfShares::<S, R>::new(simd, shares, tile, scales);
                            rows.write::<_, true>(simd, of, &block, &mut out, &offset, classes);
                        }
                        Aim::Teacher(teachers, strip) => {
                            let (teacher, beside) = (&teachers.all()[tile], strip.tile(tile));
                            let factor = R::narrow(simd, scales);
                            let offset = OfTeacher { rows: teacher, block: beside, factor };
                            rows.write::<_, true>(simd, of, &block, &mut out, &offset, classes);
                        }
                    }
                });
            },
        );
    }
}
