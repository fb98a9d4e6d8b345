//! Targets that give every class of a row its share, and teachers: what is summed of them, and what gradients are less.

use std::ops::Range;

use fearless_simd::{Simd, f64x8, prelude::*};

use super::finish::{Coefficients, HALF, MOST_LANES, PerLane, load};
use super::vertical::{Beside, Block, Offset, Rows, STREAMS, Strip, StripMut, Tiles};
use crate::element::Element;
use crate::math::{Real, Total, Twice, UNIT, two_sum};

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

impl Shares<'_> {
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

    /// The share of a class.
    #[inline(always)]
    fn of<S: Simd, R: Real>(&self, simd: S, given: Twice<S>, class: usize) -> Twice<S> {
        let lanes = |value: f64| f64x8::splat(simd, value);
        let weight = lanes(self.weight.map_or(1.0, |weight| weight[class]));
        let (keep, uniform) = (lanes(self.keep), lanes(self.uniform));
        let mut shares = given;
        for share in &mut shares[..R::LANES / HALF] {
            *share = share.mul_add(keep, uniform) * weight;
        }
        shares
    }

    /// The share of a class of each lane.
    #[inline(never)]
    pub fn pick<S: Simd, R: Real>(&self, simd: S, tile: usize, classes: &PerLane<usize>) -> PerLane<f64> {
        simd.vectorize(
            #[inline(always)]
            || {
                let mut shares = [0.0; MOST_LANES];
                for lane in 0..R::LANES {
                    let row = tile * R::LANES + lane;
                    let given = match self.given {
                        Given::Nothing => 0.0,
                        Given::Single(strip) => {
                            f64::from(strip.tile(row / f32::LANES).get(classes[lane], row % f32::LANES))
                        }
                        Given::Double(strip) => strip.tile(row / HALF).get(classes[lane], row % HALF),
                    };
                    let weight = self.weight.map_or(1.0, |weight| weight[classes[lane]]);
                    shares[lane] = given.mul_add(self.keep, self.uniform) * weight;
                }
                shares
            },
        )
    }
}

/// The classes with the largest logits, one a lane.
#[derive(Clone, Copy)]
pub struct Leader<S: Simd, R: Real> {
    top: R::Lanes<S>,
    class: R::Lanes<S>,
}

impl<S: Simd, R: Real + Element<Real = R>> Leader<S, R> {
    /// Of no class.
    #[inline(always)]
    pub(super) fn none(simd: S) -> Self {
        Self { top: R::splat(simd, f64::NEG_INFINITY), class: R::splat(simd, 0.0) }
    }

    /// Look at some vectors of a block, of the classes from `class` on.
    #[inline(always)]
    pub(super) fn look_at(&mut self, simd: S, block: &Block<R>, vectors: Range<usize>, class: usize) {
        let one = R::splat(simd, 1.0);
        let mut number = R::splat(simd, class as f64);
        for vector in vectors {
            let [x] = block.load::<S, 1>(simd, vector);
            let larger = x.simd_gt(self.top);
            self.top = larger.select(x, self.top);
            self.class = larger.select(number, self.class);
            number += one;
        }
    }

    /// The first of the classes with the largest logit in each lane.
    #[inline(always)]
    pub fn classes(&self) -> PerLane<usize> {
        let mut numbers = [0.0; MOST_LANES];
        R::widen(self.class, &mut numbers);
        numbers.map(
            #[inline(always)]
            |number| number as usize,
        )
    }

    /// The first with the largest of all lanes, if these are those of one row.
    #[inline(always)]
    pub(super) fn of_all(&self) -> usize {
        let (mut tops, classes) = ([0.0; MOST_LANES], self.classes());
        R::widen(self.top, &mut tops);
        let mut best = (f64::NEG_INFINITY, 0);
        for lane in 0..R::LANES {
            let (top, class) = (tops[lane], classes[lane] * R::LANES + lane);
            if top > best.0 || top == best.0 && class < best.1 {
                best = (top, class);
            }
        }
        best.1
    }
}

/// What is summed of shares.
#[derive(Clone, Copy)]
pub struct Weighed<S: Simd> {
    /// `Σ t`.
    mass: Total<S>,
    /// `Σ t·(x − x(own))`, in units of [`UNIT`].
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
    /// A bit for each row to which something was given that is less than 0, or NaN.
    pub bad: u32,
}

impl<S: Simd> Weighed<S> {
    /// Nothing, of rows with these logits.
    #[inline(always)]
    pub fn none<R: Real>(simd: S, own: &PerLane<f64>) -> Self {
        let zero = Total::zero(simd);
        Self { mass: zero, sum: zero, least: [f64x8::splat(simd, 0.0); 2], own: R::twice(R::narrow(simd, own)) }
    }

    /// Add the shares of some vectors of a tile, of the classes from `class` on.
    #[inline(always)]
    pub(super) fn add<R: Real + Element<Real = R>>(
        &mut self,
        simd: S,
        block: &Block<R>,
        shares: &Shares,
        tile: usize,
        vectors: Range<usize>,
    ) {
        let (mut mass, mut sum, mut least) = (self.mass, self.sum, self.least);
        for vector in vectors {
            let [x] = block.load::<S, 1>(simd, vector);
            let given = shares.given::<S, R>(simd, tile, vector);
            for half in 0..R::LANES / HALF {
                // A NaN may get lost here; it is in the mass.
                least[half] = least[half].min(given[half]);
            }
            let share = shares.of::<S, R>(simd, given, vector);
            R::add_weighted(simd, &mut sum, share, R::twice(x), self.own);
            R::add_twice(&mut mass, share);
        }
        (self.mass, self.sum, self.least) = (mass, sum, least);
    }

    /// The mass and the sum in lanes that are those of one row.
    #[inline(always)]
    pub(super) fn of_all(&self) -> [f64; 2] {
        [self.mass.value(), self.sum.value() * UNIT]
    }

    /// What was summed.
    #[inline(never)]
    pub fn found<R: Real>(&self, simd: S) -> Found {
        simd.vectorize(
            #[inline(always)]
            || {
                let mut found = Found { mass: [0.0; MOST_LANES], sum: [0.0; MOST_LANES], bad: 0 };
                R::lane_totals(&self.mass, &mut found.mass);
                R::lane_totals(&self.sum, &mut found.sum);
                let mut least = [0.0; MOST_LANES];
                for half in 0..R::LANES / HALF {
                    self.least[half].store_slice(&mut least[half * HALF..(half + 1) * HALF]);
                }
                for lane in 0..R::LANES {
                    found.sum[lane] *= UNIT;
                    found.bad |= u32::from(least[lane] < 0.0 || found.mass[lane].is_nan()) << lane;
                }
                found
            },
        )
    }
}

/// A pupil beside its teacher, whose exponentials are added: `Σ exp·((x − x(own')) − (x' − x'(own')))`, where primes are the
/// teacher's, and own' is the class of its own exponentials.
pub(super) struct Divergence<'a, S: Simd, R> {
    pub(super) pupil: Block<'a, R>,
    /// `x(own') − x'(own')` in twice the precision.
    pub(super) moved: Twice<S>,
    /// In units of [`UNIT`].
    pub(super) sum: Total<S>,
}

impl<S: Simd, R: Real + Element<Real = R>> Beside<S, R> for Divergence<'_, S, R> {
    const SEES: bool = true;

    #[inline(always)]
    fn add(&mut self, simd: S, vector: usize, teacher: R::Lanes<S>, exp: R::Lanes<S>) {
        let [pupil] = self.pupil.load::<S, 1>(simd, vector);
        let lowest = R::Lanes::<S>::simd_from(simd, R::LOWEST);
        // A masked class is infinitely far from one that is not, however little that weighs.
        let apart = pupil.simd_lt(lowest) & teacher.simd_ge(lowest);
        let exp = apart.select(R::splat(simd, 1.0), exp);
        let teacher = R::twice(teacher);
        let reference = if R::LANES == f32::LANES {
            [teacher[0] + self.moved[0], teacher[1] + self.moved[1]]
        } else {
            let [high, low] = two_sum(teacher[0], self.moved[0]);
            [high, low + self.moved[1]]
        };
        R::add_weighted(simd, &mut self.sum, R::twice(exp), R::twice(pupil), reference);
    }
}

/// A difference of logits, a sum of two, in twice the precision of the lanes.
#[inline(always)]
pub(super) fn moved_lanes<S: Simd, R: Real>(simd: S, [high, low]: &[PerLane<f64>; 2]) -> Twice<S> {
    [load(simd, high, 0), if R::LANES == f32::LANES { load(simd, high, HALF) } else { load(simd, low, 0) }]
}

/// Shares, as gradients are less by them.
struct OfShares<'a, S: Simd> {
    shares: Shares<'a>,
    tile: usize,
    scales: Twice<S>,
}

impl<S: Simd, R: Real> Offset<S, R> for OfShares<'_, S> {
    #[inline(always)]
    fn less(&self, simd: S, class: usize, gradient: R::Lanes<S>) -> R::Lanes<S> {
        let given = self.shares.given::<S, R>(simd, self.tile, class);
        let [low, high] = self.shares.of::<S, R>(simd, given, class);
        gradient - R::once([low * self.scales[0], high * self.scales[1]])
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

/// Run `$body` for eight classes of all tiles of `$strip` after the other, with their `$tile`s' numbers.
macro_rules! for_each_group {
    ($strip:expr, $tiles:expr, |$tile:ident, $classes:ident| $body:expr) => {
        for start in (0..$strip.block.classes()).step_by(STREAMS) {
            let $classes = start..$strip.block.classes().min(start + STREAMS);
            for $tile in $tiles {
                let $classes = $classes.clone();
                $body
            }
        }
    };
}

impl<S: Simd, R: Real + Element<Real = R>> Tiles<Leader<S, R>> {
    /// The leaders of some tiles.
    #[inline(never)]
    pub fn of(simd: S, strip: &Strip<R>, count: usize) -> Self {
        simd.vectorize(
            #[inline(always)]
            || {
                let mut leaders = Self::none();
                for _ in 0..count {
                    leaders.push(Leader::none(simd));
                }
                for_each_group!(strip, 0..count, |tile, classes| {
                    let first = classes.start;
                    leaders.all_mut()[tile].look_at(simd, &strip.tile(tile), classes, first);
                });
                leaders
            },
        )
    }
}

impl<S: Simd, R: Real + Element<Real = R>> Tiles<Rows<S, R>> {
    /// Add the exponentials of all classes of some tiles.
    #[inline(never)]
    pub fn add(&mut self, simd: S, tiles: Range<usize>, strip: &Strip<R>) {
        simd.vectorize(
            #[inline(always)]
            || {
                for_each_group!(strip, tiles.clone(), |tile, classes| {
                    let count = classes.len();
                    self.all_mut()[tile].add(simd, &strip.tile(tile), &mut (), classes.start, classes.start, count);
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
                for_each_group!(strip, 0..count, |tile, classes| {
                    let (block, count) = (strip.tile(tile), classes.len());
                    self.all_mut()[tile].add(simd, &block, &mut (), classes.start, classes.start, count);
                    weighed.all_mut()[tile].add::<R>(simd, &block, shares, tile, classes);
                });
            },
        );
    }

    /// Add the exponentials of all classes of a teacher's tiles, beside those of a pupil; `moved` is by how much the pupil's
    /// logits of the own classes are above the teacher's, as a sum of two. Returns `Σ exp·((x − x(own')) − (x' − x'(own')))`.
    #[inline(never)]
    pub fn add_beside(
        &mut self,
        simd: S,
        teacher: &Strip<R>,
        pupil: &Strip<R>,
        moved: &[[PerLane<f64>; 2]],
    ) -> Tiles<PerLane<f64>> {
        simd.vectorize(
            #[inline(always)]
            || {
                let count = self.all().len();
                let mut totals = Tiles::<Total<S>>::none();
                for _ in 0..count {
                    totals.push(Total::zero(simd));
                }
                for_each_group!(teacher, 0..count, |tile, classes| {
                    let halves = moved_lanes::<S, R>(simd, &moved[tile]);
                    let sum = totals.all()[tile];
                    let mut beside = Divergence { pupil: pupil.tile(tile), moved: halves, sum };
                    let (first, count) = (classes.start, classes.len());
                    self.all_mut()[tile].add(simd, &teacher.tile(tile), &mut beside, first, first, count);
                    totals.all_mut()[tile] = beside.sum;
                });
                let mut sums = Tiles::none();
                for total in totals.all() {
                    let mut of_tile = [0.0; MOST_LANES];
                    R::lane_totals(total, &mut of_tile);
                    for sum in &mut of_tile {
                        *sum *= UNIT;
                    }
                    sums.push(of_tile);
                }
                sums
            },
        )
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
                for_each_group!(strip, 0..coefficients.len(), |tile, classes| {
                    let (rows, of, block) = (&self.all()[tile], &coefficients[tile], strip.tile(tile));
                    let mut out = out.tile(tile);
                    let halves = [load(simd, &scales[tile], 0), load(simd, &scales[tile], HALF)];
                    match aim {
                        Aim::Own => rows.write::<_, true>(simd, of, &block, &mut out, &(), classes),
                        Aim::Shares(shares) => {
                            let offset = OfShares { shares: *shares, tile, scales: halves };
                            rows.write::<_, true>(simd, of, &block, &mut out, &offset, classes);
                        }
                        Aim::Teacher(teachers, strip) => {
                            let factor = R::narrow(simd, &scales[tile]);
                            let offset = OfTeacher { rows: &teachers.all()[tile], block: strip.tile(tile), factor };
                            rows.write::<_, true>(simd, of, &block, &mut out, &offset, classes);
                        }
                    }
                });
            },
        );
    }
}
