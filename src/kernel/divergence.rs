//! How far apart two distributions of the same classes are: the divergences of a candidate q from a reference p.
//!
//! With `d = ln q − ln p`, a class adds `p·φ(d)` to KL(p || q), `q·φ(−d)` to KL(q || p), with `φ(d) = e^d − 1 − d`, and to the
//! Jensen-Shannon divergence `(p + q)/2·γ(d/2)`, with `γ(h) = h·tanh h − ln cosh h`. No term is negative, and all are 0 where d is;
//! `e^d − 1`, which the divergences as they are usually written lack, adds up to `Σ q − Σ p = 0`. What is wrong with d, because the
//! log-sum-exps are rounded, is multiplied by `q − p`, and so next to nothing where p and q are nearly the same: there
//! `Σ p·(ln p − ln q)` has no right digit.
//!
//! Near 0 `φ(±d) = d²·(E(d²) ± d·O(d²))` and `γ(d/2)/2 = d²·G(d²)` with polynomials E, O and G, and q is `p + p·(d + φ(d))`.
//! Elsewhere `p·φ(d) = (q − p) − p·d`, and, with `e = exp(−|d|)`, `(1 + e)·γ(d/2) = (1 + e)·(ln 2 − log1p e) − |d|·e`; the smaller
//! of p and q is the larger one times e.

use std::ops::Range;

use fearless_simd::{Simd, prelude::*};

use super::cap::Cap;
use super::finish::{MOST_LANES, PerLane};
use super::shares::Leader;
use super::vertical::{Block, Mask};
use crate::element::Element;
use crate::math::{Boost, Real, Total, polynomial};
use crate::parallel::in_pieces;
use crate::rows::{BLOCK, Row};

/// What pairs of rows tell, one pair a lane.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C, align(64))]
pub struct Compared {
    /// KL(reference || candidate), in nats.
    pub kl: PerLane<f64>,
    /// KL(candidate || reference).
    pub reverse_kl: PerLane<f64>,
    /// The Jensen-Shannon divergence.
    pub js: PerLane<f64>,
    /// What each row tells by itself.
    pub models: [Distributions; 2],
}

/// What rows tell of their distributions, one row a lane.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C, align(64))]
pub struct Distributions {
    /// The entropy, in nats.
    pub entropy: PerLane<f64>,
    /// The largest logit.
    pub top: PerLane<f64>,
    /// The first class that has it.
    pub leader: PerLane<usize>,
    /// How many classes rank above the other model's leader: a larger logit, or the same at a lower index.
    pub above: PerLane<usize>,
}

/// What is known of pairs of rows, one pair a lane: sums of two.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C, align(64))]
pub struct Levels {
    /// The log-sum-exps.
    pub of: [[PerLane<f64>; 2]; 2],
    /// By how much the candidate's is above the reference's.
    pub shift: [PerLane<f64>; 2],
}

/// E, highest power first, for d up to 1.
// scripts/polynomials.py even_f32: relative error 2^-27.59.
const EVEN_F32: [f32; 4] = [2.533_280_35e-5, 0.001_388_582_98, 0.041_666_716_3, 0.5];
// scripts/polynomials.py even_f64: relative error 2^-56.16.
const EVEN_F64: [f64; 7] = [
    1.163_670_831_780_272_1e-11,
    2.087_451_526_315_457_8e-9,
    2.755_733_409_165_012_1e-7,
    2.480_158_725_180_395_7e-5,
    0.001_388_888_888_896_541_2,
    0.041_666_666_666_666_276,
    0.5,
];

/// O, highest power first, for d up to 1.
// scripts/polynomials.py odd_f32: relative error 2^-24.99.
const ODD_F32: [f32; 4] = [2.642_655_77e-6, 0.000_198_626_949, 0.008_333_247_15, 0.166_666_672];
// scripts/polynomials.py odd_f64: relative error 2^-54.00.
const ODD_F64: [f64; 7] = [
    7.552_885_305_153_282_8e-13,
    1.606_348_839_287_702e-10,
    2.505_205_221_984_925_9e-8,
    2.755_731_953_165_874_8e-6,
    0.000_198_412_698_405_244_85,
    0.008_333_333_333_333_987_2,
    0.166_666_666_666_666_66,
];

/// G, highest power first, for d up to 1.
// scripts/polynomials.py jensen_shannon_f32: relative error 2^-25.09.
const GAMMA_F32: [f32; 5] = [7.538_136_74e-6, -9.057_369_61e-5, 0.000_867_517_956, -0.007_812_445_05, 0.0625];
/// G, highest power first, for d up to ¼.
// scripts/polynomials.py jensen_shannon_f64: relative error 2^-54.11.
const GAMMA_F64: [f64; 6] = [
    -9.732_399_230_617_761_6e-7,
    9.609_349_302_304_060_2e-6,
    -9.223_086_346_146_144_6e-5,
    0.000_868_055_555_022_137_15,
    -0.007_812_499_999_997_648_6,
    0.0625,
];

/// The last coefficients are those of f32, if that is computed in.
fn coefficients<R: Real, const N: usize, const M: usize>(single: [f32; N], double: [f64; M]) -> [R; M] {
    let mut numbers = double.map(R::from_f64);
    if R::LANES == f32::LANES {
        for (number, coefficient) in numbers[M - N..].iter_mut().zip(single) {
            *number = R::from_f64(f64::from(coefficient));
        }
    }
    numbers
}

/// `φ(d) = e^d − 1 − d` over lanes.
pub(super) struct Phi<R> {
    even: [R; 7],
    odd: [R; 7],
}

impl<R: Real> Phi<R> {
    #[inline(always)]
    pub(super) fn new() -> Self {
        Self { even: coefficients(EVEN_F32, EVEN_F64), odd: coefficients(ODD_F32, ODD_F64) }
    }

    /// `φ(±d)`, for d up to 1.
    #[inline(always)]
    pub(super) fn near<S: Simd>(&self, simd: S, d: R::Lanes<S>) -> [R::Lanes<S>; 2] {
        let (square, first) = (d * d, if R::LANES == f32::LANES { 3 } else { 0 });
        let even = polynomial::<S, R>(simd, &self.even[first..], square);
        let odd = polynomial::<S, R>(simd, &self.odd[first..], square) * d;
        [square * (even + odd), square * (even - odd)]
    }

    /// `weight·φ(d)`, what a class adds to the divergence from a distribution that has `excess = weight·(e^d − 1)` more of it.
    #[inline(always)]
    pub(super) fn weighed<S: Simd>(
        &self,
        simd: S,
        weight: R::Lanes<S>,
        excess: R::Lanes<S>,
        d: R::Lanes<S>,
    ) -> R::Lanes<S> {
        let [near, _] = self.near(simd, d);
        d.abs().simd_le(R::splat(simd, 1.0)).select(weight * near, excess - weight * d)
    }
}

/// What is known of some classes of a pair of rows.
#[derive(Clone, Copy)]
struct Pair<S: Simd, R> {
    totals: [Total<S>; TERMS],
    /// The largest logits, and where the first blocks begin that have them.
    tops: [R; 2],
    firsts: [usize; 2],
    are_equal: bool,
}

impl<S: Simd, R: Real> Pair<S, R> {
    /// Take in what is known of classes behind these.
    fn merge(&mut self, next: Self) {
        for (total, next) in self.totals.iter_mut().zip(next.totals) {
            total.add::<R>(next);
        }
        for model in 0..2 {
            if next.tops[model] > self.tops[model] {
                (self.tops[model], self.firsts[model]) = (next.tops[model], next.firsts[model]);
            }
        }
        self.are_equal &= next.are_equal;
    }
}

/// Compare the softmaxes of the rows of a lane. Equal rows have divergences of 0.
///
/// A class that only the reference has makes the first divergence infinite, one that only the candidate has the second.
pub fn compare_row<S: Simd, R: Real + Element<Real = R>>(
    simd: S,
    rows: [Row; 2],
    (levels, lane): (&Levels, usize),
    softened: (f64, Option<f64>),
    to: &mut Compared,
) {
    let classes = rows[0].classes();
    assert_eq!(classes, rows[1].classes());
    let of_piece = |part| compare_piece::<S, R>(simd, rows, part, (levels, lane), softened);
    let Pair { totals, tops, firsts, are_equal } = in_pieces(classes, of_piece, Pair::merge);
    let [kl, reverse_kl, js, entropies @ ..] = totals.each_ref().map(|total| R::sum_of_lanes(total));
    if !are_equal {
        (to.kl[lane], to.reverse_kl[lane], to.js[lane]) = (kl, reverse_kl, js);
    }
    for (model, of) in to.models.iter_mut().enumerate() {
        let (first, top) = (firsts[model], tops[model]);
        let (_, leader) = rows[model].equal_to(simd, first, BLOCK.min(classes - first), top);
        (of.entropy[lane], of.top[lane]) = (-entropies[model], Real::to_f64(top));
        of.leader[lane] = leader.unwrap_or(first);
    }
    let leaders = to.models.each_ref().map(|of| of.leader[lane]);
    for (model, of) in to.models.iter_mut().enumerate() {
        let agrees = leaders[0] == leaders[1];
        of.above[lane] = if agrees { 0 } else { rows[model].above::<S, R>(simd, leaders[1 - model]) };
    }
}

/// [`compare_row`] of some classes.
#[inline(never)]
fn compare_piece<S: Simd, R: Real + Element<Real = R>>(
    simd: S,
    rows: [Row; 2],
    part: Range<usize>,
    (levels, lane): (&Levels, usize),
    (temperature, softcap): (f64, Option<f64>),
) -> Pair<S, R> {
    simd.vectorize(
        #[inline(always)]
        || {
            let of_lane = |[number, rest]: &[PerLane<f64>; 2]| [[number[lane]; MOST_LANES], [rest[lane]; MOST_LANES]];
            let levels = Levels { of: levels.of.each_ref().map(of_lane), shift: of_lane(&levels.shift) };
            let between = Between::<S, R>::new(simd, &levels, (temperature, softcap));
            let lowest = R::splat(simd, f64::NEG_INFINITY);
            let (mut totals, mut tops, mut firsts) = ([Total::zero(simd); TERMS], [lowest; 2], [part.start; 2]);
            let mut blocks = [[R::default(); BLOCK]; 2];
            let mut are_equal = true;
            for start in part.clone().step_by(BLOCK) {
                let length = BLOCK.min(part.end - start);
                let [first, second] = &mut blocks;
                let (first, second) =
                    (rows[0].lend(simd, start, length, first), rows[1].lend(simd, start, length, second));
                // SAFETY: so many vectors are readable: of the row, or of the padded copy.
                let load = |vector: usize| unsafe {
                    [R::load(simd, first.add(vector * R::LANES)), R::load(simd, second.add(vector * R::LANES))]
                };
                let vectors = length.div_ceil(R::LANES);
                are_equal = are_equal
                    && (0..vectors).all(|vector| {
                        let [first, second] = load(vector);
                        first.simd_eq(second).all_true()
                    });
                let (mut sums, mut largest) = ([R::splat(simd, 0.0); TERMS], tops);
                for vector in 0..vectors {
                    let logits = load(vector);
                    for model in 0..2 {
                        largest[model] = logits[model].max(largest[model]);
                    }
                    between.add_together(logits, &mut sums);
                }
                for model in 0..2 {
                    if largest[model].simd_gt(tops[model]).any_true() {
                        (tops[model], firsts[model]) =
                            (R::Lanes::<S>::simd_from(simd, R::largest(largest[model])), start);
                    }
                }
                for (total, sum) in totals.iter_mut().zip(sums) {
                    R::add_to(total, sum);
                }
            }
            Pair { totals, tops: tops.map(|tops| tops.as_slice()[0]), firsts, are_equal }
        },
    )
}

/// [`compare_row`] of all rows of two tiles.
#[inline(never)]
pub fn compare_tiles<S: Simd, R: Real + Element<Real = R>>(
    simd: S,
    tiles: [Block<R>; 2],
    levels: &Levels,
    (temperature, softcap): (f64, Option<f64>),
) -> Compared {
    simd.vectorize(
        #[inline(always)]
        || {
            let classes = tiles[0].classes();
            assert_eq!(classes, tiles[1].classes());
            let between = Between::<S, R>::new(simd, levels, (temperature, softcap));
            let mut leaders = [Leader::none(simd); 2];
            let (mut totals, zero) = ([Total::zero(simd); TERMS], R::splat(simd, 0.0));
            let mut are_equal = zero.simd_eq(zero);
            for start in (0..classes).step_by(MOST_LANES) {
                let here = start..classes.min(start + MOST_LANES);
                let mut sums = [zero; TERMS];
                for class in here.clone() {
                    let [[first], [second]] = tiles.map(|tile| tile.load::<S, 1>(simd, class));
                    are_equal &= first.simd_eq(second);
                    between.add([first, second], &mut sums);
                }
                for (leader, tile) in leaders.iter_mut().zip(&tiles) {
                    leader.look_at(simd, tile, here.clone());
                }
                for (total, sum) in totals.iter_mut().zip(sums) {
                    R::add_to(total, sum);
                }
            }
            let mut sums = [[0.0; MOST_LANES]; TERMS];
            for (total, sums) in totals.iter().zip(&mut sums) {
                R::lane_totals(total, sums);
            }
            let differs = are_equal.select(zero, R::splat(simd, 1.0));
            let mut found = Compared::default();
            for lane in 0..R::LANES {
                if differs.as_slice()[lane] != R::default() {
                    (found.kl[lane], found.reverse_kl[lane], found.js[lane]) =
                        (sums[0][lane], sums[1][lane], sums[2][lane]);
                }
            }
            for (model, of) in found.models.iter_mut().enumerate() {
                of.entropy = sums[3 + model].map(|sum| -sum);
                (of.top, of.leader) = (leaders[model].logits(), leaders[model].classes());
            }
            if found.models[0].leader != found.models[1].leader {
                for (model, tile) in tiles.iter().enumerate() {
                    found.models[model].above = above(simd, tile, &found.models[1 - model].leader);
                }
            }
            found
        },
    )
}

/// How many classes of a tile rank above one of each lane.
#[inline(always)]
fn above<S: Simd, R: Real + Element<Real = R>>(simd: S, tile: &Block<R>, classes: &PerLane<usize>) -> PerLane<usize> {
    let logit = R::narrow(simd, &tile.pick(classes));
    let mut places = [0.0; MOST_LANES];
    for (place, class) in places.iter_mut().zip(classes) {
        *place = *class as f64;
    }
    let (place, zero, one) = (R::narrow(simd, &places), R::splat(simd, 0.0), R::splat(simd, 1.0));
    let (mut above, mut number) = (zero, zero);
    for class in 0..tile.classes() {
        let [x] = tile.load::<S, 1>(simd, class);
        let is_above = x.simd_gt(logit) | (x.simd_eq(logit) & number.simd_lt(place));
        above += is_above.select(one, zero);
        number += one;
    }
    let (mut numbers, mut counts) = ([0.0; MOST_LANES], [0; MOST_LANES]);
    R::widen(above, &mut numbers);
    for (count, number) in counts.iter_mut().zip(numbers) {
        *count = number as usize;
    }
    counts
}

/// What is summed of pairs of rows: of each divergence, and `p·ln p` and `q·ln q`.
const TERMS: usize = 5;

/// A sum of two, the second of which has what the first has no room for.
#[inline(always)]
pub(super) fn parts<S: Simd, R: Real>(simd: S, [numbers, rests]: &[PerLane<f64>; 2]) -> [R::Lanes<S>; 2] {
    let rounded = R::narrow(simd, numbers);
    let mut lost = [0.0; MOST_LANES];
    R::widen(rounded, &mut lost);
    for lane in 0..MOST_LANES {
        lost[lane] = (numbers[lane] - lost[lane]) + rests[lane];
    }
    [rounded, R::narrow(simd, &lost)]
}

/// Pairs of distributions.
struct Between<S: Simd, R: Real> {
    simd: S,
    cap: Option<Cap<S>>,
    /// `1 / T`.
    unit: R::Lanes<S>,
    /// As sums of two.
    levels: [[R::Lanes<S>; 2]; 2],
    shift: [R::Lanes<S>; 2],
    phi: Phi<R>,
    gamma: [R; 6],
}

impl<S: Simd, R: Real> Between<S, R> {
    const IS_SINGLE: bool = R::LANES == f32::LANES;
    /// Up to here γ is `d²·G(d²)`.
    const NEAR: f64 = if Self::IS_SINGLE { 1.0 } else { 0.25 };

    #[inline(always)]
    fn new(simd: S, levels: &Levels, (temperature, softcap): (f64, Option<f64>)) -> Self {
        Self {
            simd,
            cap: softcap.map(
                #[inline(always)]
                |height| Cap::new::<R>(simd, height),
            ),
            unit: R::splat(simd, 1.0 / temperature),
            levels: [parts::<S, R>(simd, &levels.of[0]), parts::<S, R>(simd, &levels.of[1])],
            shift: parts::<S, R>(simd, &levels.shift),
            phi: Phi::new(),
            gamma: coefficients(GAMMA_F32, GAMMA_F64),
        }
    }

    /// Add what the classes of these logits tell. The bits of a lane are its own.
    #[inline(always)]
    fn add(&self, logits: [R::Lanes<S>; 2], sums: &mut [R::Lanes<S>; TERMS]) {
        let (values, d) = self.values(logits);
        self.add_far(values, d, self.phi.near(self.simd, d), sums);
    }

    /// [`Self::add`], in half the time where no class is far apart; which way is taken depends on all lanes.
    #[inline(always)]
    fn add_together(&self, logits: [R::Lanes<S>; 2], sums: &mut [R::Lanes<S>; TERMS]) {
        let simd = self.simd;
        let (values, d) = self.values(logits);
        let series = self.phi.near(simd, d);
        // NaN is not near.
        if !d.abs().simd_le(R::splat(simd, Self::NEAR)).all_true() {
            return self.add_far(values, d, series, sums);
        }
        // A masked class is not near, but what both models have at the end of the numbers is.
        let log = R::splat(simd, R::UNDERFLOW).max(self.log(values[0], 0));
        let [p] = R::exps(simd, [log], Boost::None);
        let q = p.mul_add(d + series[0], p);
        sums[0] = p.mul_add(series[0], sums[0]);
        sums[1] = q.mul_add(series[1], sums[1]);
        sums[2] = (p + q).mul_add(self.half_gamma(d * d), sums[2]);
        sums[3] = p.mul_add(log, sums[3]);
        sums[4] = q.mul_add(log + d, sums[4]);
    }

    /// What the logits are under the cap, and d.
    #[inline(always)]
    fn values(&self, mut values: [R::Lanes<S>; 2]) -> ([R::Lanes<S>; 2], R::Lanes<S>) {
        if let Some(cap) = &self.cap {
            for value in &mut values {
                *value = R::once(cap.of::<R>(self.simd, *value).0);
            }
        }
        (values, (values[1] - values[0]).mul_sub(self.unit, self.shift[0]) - self.shift[1])
    }

    /// `ln p` of a model.
    #[inline(always)]
    fn log(&self, value: R::Lanes<S>, model: usize) -> R::Lanes<S> {
        let [level, rest] = self.levels[model];
        value.mul_sub(self.unit, level) - rest
    }

    /// `γ(d/2)/2` near 0, of d².
    #[inline(always)]
    fn half_gamma(&self, square: R::Lanes<S>) -> R::Lanes<S> {
        let simd = self.simd;
        polynomial::<S, R>(simd, &self.gamma[usize::from(Self::IS_SINGLE)..], square) * square
    }

    /// [`Self::add`], of classes that may be far apart, or masked; `series` are φ(±d) near 0.
    #[inline(always)]
    fn add_far(
        &self,
        values: [R::Lanes<S>; 2],
        d: R::Lanes<S>,
        series: [R::Lanes<S>; 2],
        sums: &mut [R::Lanes<S>; TERMS],
    ) {
        let simd = self.simd;
        let lanes = |value: f64| R::splat(simd, value);
        let (one, half, lowest) = (lanes(1.0), lanes(0.5), lanes(R::UNDERFLOW));
        // A masked class has a probability of 0 and no logarithm.
        let logs = [lowest.max(self.log(values[0], 0)), lowest.max(self.log(values[1], 1))];
        let size = d.abs();
        // Of p and q the larger one, and e^−|d|; NaN where both are masked.
        let [larger, exp] = R::exps(simd, [logs[0].max(logs[1]), -size], Boost::None);
        let (smaller, is_q) = (larger * exp, d.simd_ge(lanes(0.0)));
        let [p, q] = [is_q.select(smaller, larger), is_q.select(larger, smaller)];
        let (excess, is_near) = (q - p, size.simd_le(one));
        let kl = is_near.select(p * series[0], excess - p * d);
        let reverse = is_near.select(q * series[1], q * d - excess);
        let [log] = R::logs_1p(simd, [exp]);
        let elsewhere = (half * larger) * (one + exp).mul_sub(lanes(std::f64::consts::LN_2) - log, size * exp);
        let js = size.simd_le(lanes(Self::NEAR)).select((p + q) * self.half_gamma(d * d), elsewhere);
        let mut terms = [kl, reverse, js, p * logs[0], q * logs[1]];
        let is_finite = size.simd_lt(lanes(f64::INFINITY));
        if !is_finite.all_true() {
            terms = self.masked(values, (d, logs), terms, is_finite);
        }
        for (sum, term) in sums.iter_mut().zip(terms) {
            *sum += term;
        }
    }

    /// The terms where some classes are masked, in one of the rows or in both, or where d overflows, or where one of them is NaN;
    /// `is_finite` says of which classes the terms are right.
    #[inline(always)]
    fn masked(
        &self,
        values: [R::Lanes<S>; 2],
        (d, logs): (R::Lanes<S>, [R::Lanes<S>; 2]),
        [kl, reverse, js, entropies @ ..]: [R::Lanes<S>; TERMS],
        is_finite: Mask<S, R>,
    ) -> [R::Lanes<S>; TERMS] {
        let lanes = |value: f64| R::splat(self.simd, value);
        let (zero, infinite, masked) = (lanes(0.0), lanes(f64::INFINITY), lanes(f64::NEG_INFINITY));
        let (first, second) = (values[0].simd_eq(masked), values[1].simd_eq(masked));
        let [p, q] = R::exps(self.simd, logs, Boost::None);
        // γ is ln 2 at most.
        let largest = lanes(std::f64::consts::LN_2 / 2.0) * (p + q);
        // Of a finite class that is so far away that d is infinite there is as little in one model as of a masked one; in the other
        // it weighs nothing, or more than anything.
        let overflows = d.abs().simd_eq(infinite);
        let weighed = |weight: R::Lanes<S>, other| weight.simd_eq(zero).select(other, infinite);
        let [kl, reverse] = [overflows.select(weighed(p, q), kl), overflows.select(weighed(q, p), reverse)];
        let js = overflows.select(largest, js);
        [
            first.select(second.select(zero, q), second.select(infinite, kl)),
            first.select(second.select(zero, infinite), second.select(p, reverse)),
            first.select(second.select(zero, largest), second.select(largest, js)),
            is_finite.select(entropies[0], p * logs[0]),
            is_finite.select(entropies[1], q * logs[1]),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::array::Array;
    use crate::kernel::vertical::Strip;
    use crate::simd::{Kernel, Level as SimdLevel};

    /// What is found of a pair of rows, by itself and in each lane of tiles.
    struct Of<'a, T>([&'a [T]; 2]);

    impl<T: Real + Element<Real = T>> Kernel for Of<'_, T> {
        type Output = Vec<[f64; 11]>;

        #[inline(always)]
        fn run<S: Simd>(self, simd: S) -> Self::Output {
            let Of(rows) = self;
            let mut levels = Levels::default();
            let logs = rows.map(|row| row.iter().map(|x| Real::to_f64(*x).exp()).sum::<f64>().ln());
            for lane in 0..MOST_LANES {
                (levels.of[0][0][lane], levels.of[1][0][lane]) = (logs[0], logs[1]);
                levels.shift[0][lane] = logs[1] - logs[0];
            }
            let arrays = rows.map(|row| Array::of(row, row.len()));
            let mut of_row = Compared::default();
            let last = T::LANES - 1;
            let pair = [arrays[0].row(0), arrays[1].row(0)];
            compare_row::<S, T>(simd, pair, (&levels, last), (1.0, None), &mut of_row);
            let across = rows.map(|row| row.iter().flat_map(|x| vec![*x; T::LANES]).collect::<Vec<_>>());
            let step = (T::LANES * size_of::<T>()) as isize;
            let tiles = across.each_ref().map(|tile| {
                // SAFETY: so many vectors are those of the tile.
                unsafe { Strip::new(Block::new(tile.as_ptr(), step, tile.len() / T::LANES), T::LANES) }.tile(0)
            });
            let of_tile = compare_tiles::<S, T>(simd, tiles, &levels, (1.0, None));
            let numbers = |of: &Compared, lane: usize| {
                let model = |of: &Distributions| {
                    [of.entropy[lane], of.top[lane], of.leader[lane] as f64, of.above[lane] as f64]
                };
                let ([a, b, c, d], [e, f, g, h]) = (model(&of.models[0]), model(&of.models[1]));
                [of.kl[lane], of.reverse_kl[lane], of.js[lane], a, b, c, d, e, f, g, h]
            };
            [(&of_row, last), (&of_tile, 0), (&of_tile, last)].map(|(of, lane)| numbers(of, lane)).to_vec()
        }
    }

    fn check<T: Real + Element<Real = T>>(distance: f64, tolerance: f64) {
        let numbers = |shift: f64| -> Vec<T> {
            (0..700).map(|i| <T as Real>::from_f64(-f64::from(i % 61) / 4.0 + shift * f64::from(i % 7 - 3))).collect()
        };
        let rows = [numbers(0.0), numbers(distance)];
        let exps = rows.each_ref().map(|row| row.iter().map(|x| Real::to_f64(*x).exp()).collect::<Vec<_>>());
        let totals = exps.each_ref().map(|exps| exps.iter().sum::<f64>());
        let (mut kl, mut reverse, mut js) = (0.0, 0.0, 0.0);
        for (a, b) in rows[0].iter().zip(&rows[1]) {
            let [a, b] = [*a, *b].map(Real::to_f64);
            let d = (b - a) - (totals[1] / totals[0]).ln();
            let p = a.exp() / totals[0];
            kl += p * (d.exp_m1() - d);
            reverse += p * d.exp() * ((-d).exp_m1() + d);
            let h = d / 2.0;
            let series = h * h * (0.5 - h * h * (0.25 - h * h * (1.0 / 9.0 - h * h * (17.0 / 360.0))));
            let gamma = if h.abs() < 0.02 { series } else { h * h.tanh() - h.cosh().ln() };
            js += p.midpoint(p * d.exp()) * gamma;
        }
        for &level in SimdLevel::available() {
            for found in level.run(Of([&rows[0], &rows[1]])) {
                for (found, expected) in found.into_iter().zip([kl, reverse, js]) {
                    let error = (found - expected).abs();
                    assert!(error <= tolerance * expected, "{} {distance}: {found:e} {expected:e}", level.name());
                }
                let tops = exps
                    .each_ref()
                    .map(|exps| (0..700).max_by(|a, b| exps[*a].total_cmp(&exps[*b]).then(b.cmp(a))).unwrap());
                for (row, (exps, total)) in exps.iter().zip(totals).enumerate() {
                    let logits = rows[row].iter().copied().map(Real::to_f64).collect::<Vec<_>>();
                    let [found_entropy, found_top, leader, found_above] =
                        [0, 1, 2, 3].map(|place| found[3 + 4 * row + place]);
                    let entropy: f64 = exps.iter().map(|exp| -exp / total * (exp / total).ln()).sum();
                    assert!((found_entropy / entropy - 1.0).abs() < tolerance, "{}", level.name());
                    let top = tops[row];
                    assert_eq!((leader as usize, found_top), (top, logits[top]), "{}", level.name());
                    // By the logits: those that differ by an ulp have the same exponential.
                    let other = (logits[tops[1 - row]], tops[1 - row]);
                    let ranks_above =
                        |class: &usize| logits[*class] > other.0 || logits[*class] == other.0 && *class < other.1;
                    let above = (0..700).filter(ranks_above).count();
                    assert_eq!(found_above as usize, above, "{} {distance}", level.name());
                }
            }
            for same in level.run(Of([&rows[0], &rows[0]])) {
                assert_eq!(same[..3], [0.0; 3]);
            }
        }
    }

    #[test]
    fn divergences_agree_with_the_formula_however_small_they_are() {
        for distance in [1e-3, 0.02, 0.2, 0.3, 0.34, 0.5, 1.0, 3.0] {
            check::<f32>(distance, 2e-5);
            check::<f64>(distance, 1e-9);
        }
    }

    #[test]
    fn masked_classes_are_nothing_or_infinitely_far() {
        let infinite = f32::NEG_INFINITY;
        let (both, one) = ([0.0, 0.0, infinite], [0.0, infinite, infinite]);
        let exact = 0.5 * (0.5 * (0.5f64 / 0.75).ln() + 0.5 * (0.5f64 / 0.25).ln()) + 0.5 * (1.0f64 / 0.75).ln();
        for &level in SimdLevel::available() {
            for [kl, reverse_kl, js, first, .., second, _, _, _] in level.run(Of([&both[..], &one[..]])) {
                assert!(kl == f64::INFINITY && (reverse_kl - std::f64::consts::LN_2).abs() < 1e-6);
                assert!((js - exact).abs() < 1e-6, "{js} {exact}");
                assert!((first - std::f64::consts::LN_2).abs() < 1e-6 && second.abs() < 1e-6, "{first} {second}");
            }
        }
    }
}
