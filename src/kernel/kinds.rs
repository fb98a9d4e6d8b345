//! The divergences of a model q from its teacher p other than KL(p || q), and their derivatives by the model's logits.
//!
//! With `d = ln q − ln p` a class adds `q·φ(−d)` to KL(q || p) ([`super::divergence`]). To the Jensen-Shannon divergence with the
//! mixture `m = β·p + (1 − β)·q` it adds `β·p·φ(ln m − ln p) + (1 − β)·q·φ(ln m − ln q)`. No term is negative.
//!
//! Of p and q let the one with the smaller weight c in the mixture be the light one, and δ how far its logarithm is above that of the
//! heavy one. Then `ln m − ln heavy = log(1 + c·(e^δ − 1))`, which is near 0 wherever m is near the heavy one, and `ln m − ln light`
//! is δ less. Away from 0 these are `log(1 − c) + log(1 + e^t)` and `log c + log(1 + e^−t)` with `t = δ + log(c / (1 − c))`.
//!
//! The derivative is `q·(v − Σ q·v) / T` with `v = d`, or `v = (1 − β)·(ln q − ln m)`. What is wrong with all v alike, because the
//! log-sum-exps are rounded, takes no part in it. Of a class that has most of q it is made of what the others have.
//!
//! d is the exact difference of the logits, less that of two logits which the log-sum-exps are relative to: neither a large logit in
//! all classes nor models that are nearly the same cost it digits.

use std::ops::Range;

use fearless_simd::{Simd, f64x8, prelude::*};

use super::divergence::{Phi, parts};
use super::finish::{LARGEST_RATIO, MOST_LANES, PerLane};
use super::vertical::{Block, BlockMut, Mask};
use crate::element::Element;
use crate::math::{Boost, Real, Total, log_one_plus, logs_of_quotient, two_sum};
use crate::parallel::in_pieces;
use crate::rows::{BLOCK, Row, RowMut, StorePolicy};

/// Which divergence.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// KL(q || p).
    Reverse,
    /// `β·KL(p || m) + (1 − β)·KL(q || m)` with this β between 0 and 1.
    JensenShannon(f64),
}

/// Which divergence it is, and of which logits.
#[derive(Clone, Copy, Debug)]
pub struct Measure {
    /// `1 / T`, as a sum of two.
    unit: [f64; 2],
    /// How the distributions are mixed, if they are.
    is_mixed: bool,
    /// What the teacher weighs, and the model.
    weights: [f64; 2],
    /// Whether the model is the light one.
    is_model_light: bool,
    light: f64,
    heavy: f64,
    log_light: f64,
    log_heavy: f64,
}

/// What the log-sum-exps of pairs of rows are, the teacher's first, one pair a lane.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C, align(64))]
pub struct Levels {
    /// Logits that none exceeds by much.
    pub references: [PerLane<f64>; 2],
    /// By how much the log-sum-exps are above them, as sums of two.
    pub logs: [[PerLane<f64>; 2]; 2],
}

/// What is summed of pairs of rows, one pair a lane.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C, align(64))]
pub struct Found {
    /// The divergence.
    pub divergence: PerLane<f64>,
    /// What the derivative is relative to: `Σ q·v`, and `v − Σ q·v` of the class that has most of q.
    pub mean: PerLane<f64>,
    /// Likewise.
    pub top: PerLane<f64>,
    /// 0 where the rows are equal, and so are their derivatives, else 1.
    pub slope: PerLane<f64>,
}

/// A class has most of q if it has more than this: no two have.
const MOST: f64 = 0.75;

/// What logarithms of masked classes differ by from others: their exponentials are 0, and so are what these are multiplied by.
const FAR: f64 = 3000.0;

/// What is summed: two divergences, or one, then q, `q·v` and v, the last of a class that has most of q, the others of all others.
const TERMS: usize = 5;

/// What is summed of some classes of a pair of rows, and whether these are equal.
type Piece<S> = ([Total<S>; TERMS], bool);

/// Read a pair of rows as number `lane`.
pub fn sum_rows<S: Simd, R: Real + Element<Real = R>>(
    simd: S,
    measure: &Measure,
    rows: [Row; 2],
    (levels, lane): (&Levels, usize),
    to: &mut Found,
) {
    let classes = rows[0].classes();
    assert_eq!(classes, rows[1].classes());
    let of_piece = |part| sum_piece::<S, R>(simd, measure, rows, part, (levels, lane));
    let merge = |(totals, are_equal): &mut Piece<S>, (next, are_next): Piece<S>| {
        for (total, next) in totals.iter_mut().zip(next) {
            total.add::<R>(next);
        }
        *are_equal &= are_next;
    };
    let (totals, are_equal) = in_pieces(classes, of_piece, merge);
    let mut sums = [0.0; TERMS];
    for (sum, total) in sums.iter_mut().zip(&totals) {
        *sum = R::sum_of_lanes(total);
    }
    measure.finish(sums, are_equal, lane, to);
}

/// [`sum_rows`] of some classes.
#[inline(never)]
fn sum_piece<S: Simd, R: Real + Element<Real = R>>(
    simd: S,
    measure: &Measure,
    rows: [Row; 2],
    part: Range<usize>,
    (levels, lane): (&Levels, usize),
) -> Piece<S> {
    simd.vectorize(
        #[inline(always)]
        || {
            let pairs = Pairs::<S, R>::new(simd, measure, &levels.of_lane(lane));
            if measure.is_mixed { pairs.sum_rows::<true>(rows, part) } else { pairs.sum_rows::<false>(rows, part) }
        },
    )
}

/// [`sum_rows`] of all rows of two tiles.
#[inline(never)]
pub fn sum_tiles<S: Simd, R: Real + Element<Real = R>>(
    simd: S,
    measure: &Measure,
    tiles: [Block<R>; 2],
    levels: &Levels,
) -> Found {
    simd.vectorize(
        #[inline(always)]
        || {
            let pairs = Pairs::<S, R>::new(simd, measure, levels);
            if measure.is_mixed {
                pairs.sum_tiles::<true>(measure, tiles)
            } else {
                pairs.sum_tiles::<false>(measure, tiles)
            }
        },
    )
}

/// Write the derivative of what was found of a pair of rows, multiplied by `scale`; it may go over the model's row.
#[allow(clippy::too_many_arguments)] // a pair of rows, what is known of it, and where its derivative goes
pub fn write_row<S: Simd, R: Real + Element<Real = R>>(
    simd: S,
    measure: &Measure,
    rows: [Row; 2],
    of: (&Levels, &Found, usize),
    scale: f64,
    out: RowMut,
    store: StorePolicy,
) {
    let classes = rows[0].classes();
    assert!(classes == rows[1].classes() && classes == out.classes());
    out.in_pieces(|part, out| write_piece::<S, R>(simd, measure, rows, part, of, scale, out, store));
}

/// [`write_row`] of some classes.
#[inline(never)]
#[allow(clippy::too_many_arguments)] // as above
fn write_piece<S: Simd, R: Real + Element<Real = R>>(
    simd: S,
    measure: &Measure,
    rows: [Row; 2],
    part: Range<usize>,
    (levels, found, lane): (&Levels, &Found, usize),
    scale: f64,
    out: RowMut,
    store: StorePolicy,
) {
    simd.vectorize(
        #[inline(always)]
        || {
            let of_lane = |numbers: &PerLane<f64>| [numbers[lane]; MOST_LANES];
            let found = Found { mean: of_lane(&found.mean), top: of_lane(&found.top), ..Found::default() };
            let pairs = Pairs::<S, R>::new(simd, measure, &levels.of_lane(lane));
            let slopes = pairs.slopes(&found, &[scale; MOST_LANES]);
            if measure.is_mixed {
                pairs.write_row::<true>(rows, part, &slopes, out, store);
            } else {
                pairs.write_row::<false>(rows, part, &slopes, out, store);
            }
        },
    );
}

/// Write the derivatives of what was found of two tiles, each row's multiplied by its scale, over the model's.
#[inline(never)]
pub fn write_tile<S: Simd, R: Real + Element<Real = R>>(
    simd: S,
    measure: &Measure,
    (teacher, model): (Block<R>, &mut BlockMut<R>),
    (levels, found): (&Levels, &Found),
    scales: &PerLane<f64>,
) {
    simd.vectorize(
        #[inline(always)]
        || {
            let pairs = Pairs::<S, R>::new(simd, measure, levels);
            let slopes = pairs.slopes(found, scales);
            if measure.is_mixed {
                pairs.write_tile::<true>(teacher, model, &slopes);
            } else {
                pairs.write_tile::<false>(teacher, model, &slopes);
            }
        },
    );
}

impl Measure {
    /// A divergence at a temperature.
    #[inline(always)]
    pub fn new<S: Simd>(simd: S, kind: Kind, temperature: f64) -> Self {
        let unit = 1.0 / temperature;
        let rest = if unit.is_finite() { (-temperature).mul_add(unit, 1.0) / temperature } else { 0.0 };
        let (is_mixed, beta) = match kind {
            Kind::Reverse => (false, 0.5),
            Kind::JensenShannon(beta) => (true, beta),
        };
        let light = beta.min(1.0 - beta);
        let heavy = 1.0 - light;
        // Where the first is more than a logarithm can be taken of, the light one has no part in any sum.
        let [more, less] = [(heavy / light).min(LARGEST_RATIO), light / heavy];
        let log = |ratio| {
            let [log, _] = log_one_plus(simd, f64x8::splat(simd, ratio));
            -log.as_slice()[0]
        };
        Self {
            unit: [unit.min(f64::MAX), rest],
            is_mixed,
            weights: [beta, 1.0 - beta],
            is_model_light: beta > 0.5,
            light,
            heavy,
            log_light: log(more),
            log_heavy: log(less),
        }
    }

    /// What the derivatives are multiplied by.
    #[inline(always)]
    pub fn factor(&self) -> f64 {
        if self.is_mixed { self.weights[1] } else { 1.0 }
    }

    /// What sums tell of a pair of rows.
    #[inline(always)]
    fn finish(&self, sums: [f64; TERMS], are_equal: bool, lane: usize, to: &mut Found) {
        let [first, second, others, moment, of_top] = sums;
        let [of_teacher, of_model] = self.weights;
        to.slope[lane] = f64::from(u8::from(!are_equal));
        to.divergence[lane] = match (are_equal, self.is_mixed) {
            (true, _) => 0.0,
            (false, false) => first,
            (false, true) => of_teacher * first + of_model * second,
        };
        // The others have next to all, or less than a quarter.
        (to.mean[lane], to.top[lane]) = if others > 0.5 {
            (moment / others, 0.0)
        } else {
            (moment + (1.0 - others) * of_top, others * of_top - moment)
        };
    }
}

impl Levels {
    /// Those of a lane, in all lanes.
    #[inline(always)]
    fn of_lane(&self, lane: usize) -> Self {
        let of_lane = |numbers: &PerLane<f64>| [numbers[lane]; MOST_LANES];
        let [[p, p_rest], [q, q_rest]] = &self.logs;
        Self {
            references: [of_lane(&self.references[0]), of_lane(&self.references[1])],
            logs: [[of_lane(p), of_lane(p_rest)], [of_lane(q), of_lane(q_rest)]],
        }
    }
}

/// Pairs of distributions.
struct Pairs<S: Simd, R: Real> {
    simd: S,
    phi: Phi<R>,
    /// `1 / T`; this and what follows as sums of two.
    unit: [R::Lanes<S>; 2],
    /// Logits so far below their reference have a probability of 0, with room for the logarithm. Times the unit, as the largest
    /// number is not for small temperatures, it is finite.
    lowest: R::Lanes<S>,
    references: [R::Lanes<S>; 2],
    logs: [[R::Lanes<S>; 2]; 2],
    /// By how much the model's are above the teacher's.
    apart: [R::Lanes<S>; 2],
    shift: [R::Lanes<S>; 2],
    mixed: Mixed<S, R>,
}

/// What there is of a mixture in lanes.
struct Mixed<S: Simd, R: Real> {
    is_model_light: bool,
    light: R::Lanes<S>,
    heavy: R::Lanes<S>,
    log_light: R::Lanes<S>,
    log_heavy: R::Lanes<S>,
    /// By how much the first logarithm is above the second.
    odds: R::Lanes<S>,
}

/// What derivatives are made of.
struct Slopes<S: Simd, R: Real> {
    mean: R::Lanes<S>,
    top: R::Lanes<S>,
    scale: R::Lanes<S>,
}

/// A class of each lane.
struct Class<S: Simd, R: Real> {
    q: R::Lanes<S>,
    v: R::Lanes<S>,
    /// What it adds to the divergences.
    terms: [R::Lanes<S>; 2],
}

impl<S: Simd, R: Real> Pairs<S, R> {
    #[inline(always)]
    fn new(simd: S, measure: &Measure, levels: &Levels) -> Self {
        let rounded: R = Real::from_f64(measure.unit[0]);
        let rest = (measure.unit[0] - Real::to_f64(rounded)) + measure.unit[1];
        let [of_p, of_q] = &levels.logs;
        let (mut apart, mut shift) = ([[0.0; MOST_LANES]; 2], [[0.0; MOST_LANES]; 2]);
        for lane in 0..MOST_LANES {
            [apart[0][lane], apart[1][lane]] = two_sum(levels.references[1][lane], -levels.references[0][lane]);
            let [sum, lost] = two_sum(of_q[0][lane], -of_p[0][lane]);
            (shift[0][lane], shift[1][lane]) = (sum, lost + (of_q[1][lane] - of_p[1][lane]));
        }
        Self {
            simd,
            phi: Phi::new(),
            unit: [R::splat(simd, measure.unit[0]), R::splat(simd, rest)],
            lowest: R::splat(simd, Real::to_f64(R::LOWEST).max(2.0 * R::UNDERFLOW / measure.unit[0])),
            references: [R::narrow(simd, &levels.references[0]), R::narrow(simd, &levels.references[1])],
            logs: [parts::<S, R>(simd, of_p), parts::<S, R>(simd, of_q)],
            apart: parts::<S, R>(simd, &apart),
            shift: parts::<S, R>(simd, &shift),
            mixed: Mixed {
                is_model_light: measure.is_model_light,
                light: R::splat(simd, measure.light),
                heavy: R::splat(simd, measure.heavy),
                log_light: R::splat(simd, measure.log_light),
                log_heavy: R::splat(simd, measure.log_heavy),
                odds: R::splat(simd, measure.log_light - measure.log_heavy),
            },
        }
    }

    #[inline(always)]
    fn slopes(&self, found: &Found, scales: &PerLane<f64>) -> Slopes<S, R> {
        let narrow = |numbers| R::narrow(self.simd, numbers);
        Slopes { mean: narrow(&found.mean), top: narrow(&found.top), scale: narrow(scales) }
    }

    /// `number / T`, less a level.
    #[inline(always)]
    fn above(&self, number: R::Lanes<S>, [level, rest]: [R::Lanes<S>; 2]) -> R::Lanes<S> {
        number.mul_sub(self.unit[0], level) + number.mul_sub(self.unit[1], rest)
    }

    /// d, and where it is one of two classes that are not masked and not infinitely far apart.
    #[inline(always)]
    fn log_ratio(&self, [p, q]: [R::Lanes<S>; 2]) -> (R::Lanes<S>, Mask<S, R>) {
        let lanes = |value| R::splat(self.simd, value);
        let [difference, lost] = two_sum(q, -p);
        let d = self.above((difference - self.apart[0]) + (lost - self.apart[1]), self.shift);
        let is_finite = d.abs().simd_lt(lanes(f64::INFINITY));
        if is_finite.all_true() {
            return (d, is_finite);
        }
        // Of classes that are masked in both nothing counts.
        let far = q.simd_gt(p).select(lanes(FAR), q.simd_lt(p).select(lanes(-FAR), lanes(0.0)));
        (is_finite.select(d, far), is_finite)
    }

    /// The probability of a logit in the model (1) or its teacher (0).
    #[inline(always)]
    fn probability(&self, logit: R::Lanes<S>, of: usize) -> R::Lanes<S> {
        let simd = self.simd;
        // A masked class has a probability of 0 and no logarithm.
        let below = self.lowest.max(logit - self.references[of]);
        let log = R::splat(simd, R::UNDERFLOW).max(self.above(below, self.logs[of]));
        // Subnormal probabilities too.
        R::exp(simd, log, Boost::Full) * R::splat(simd, 1.0 / R::BOOST)
    }

    /// A class of each lane. The bits of a lane are its own, whichever ways are taken for others' sake.
    #[inline(always)]
    fn class<const MIXED: bool>(&self, logits: [R::Lanes<S>; 2]) -> Class<S, R> {
        let simd = self.simd;
        let (d, is_finite) = self.log_ratio(logits);
        let q = self.probability(logits[1], 1);
        let is_near = d.abs().simd_le(R::splat(simd, 1.0));
        // φ(±d): e^−d − 1 is the second less d.
        let [above, below] = self.phi.near(simd, d);
        let mut p = (below - d).mul_add(q, q);
        if !is_near.all_true() {
            p = is_near.select(p, self.probability(logits[0], 0));
        }
        if MIXED {
            return self.mixed([p, q], d, [above, below], is_near);
        }
        let mut term = self.phi.weighed(simd, q, p - q, -d);
        if !is_finite.all_true() {
            term = self.not_masked(logits, q, term, is_finite);
        }
        Class { q, v: d, terms: [term, R::splat(simd, 0.0)] }
    }

    /// What classes add to KL(q || p) where `is_finite` does not say that this is right: more than anything if only the teacher's are
    /// masked.
    #[inline(always)]
    fn not_masked(
        &self,
        [p, q]: [R::Lanes<S>; 2],
        probability: R::Lanes<S>,
        term: R::Lanes<S>,
        is_finite: Mask<S, R>,
    ) -> R::Lanes<S> {
        let lanes = |value| R::splat(self.simd, value);
        let is_masked = p.simd_eq(lanes(f64::NEG_INFINITY)) | probability.simd_gt(lanes(0.0));
        let infinite = (q.simd_gt(p) & is_masked).select(lanes(f64::INFINITY), term);
        is_finite.select(term, infinite)
    }

    /// A class of two distributions and their mixture; `phi` are φ(±d), where d is near 0.
    #[inline(always)]
    fn mixed(
        &self,
        [p, q]: [R::Lanes<S>; 2],
        d: R::Lanes<S>,
        phi: [R::Lanes<S>; 2],
        is_near: Mask<S, R>,
    ) -> Class<S, R> {
        let (simd, mixture) = (self.simd, &self.mixed);
        let zero = R::splat(simd, 0.0);
        let (heavy, light, delta, phi) = if mixture.is_model_light { (p, q, d, phi[0]) } else { (q, p, -d, phi[1]) };
        let mut y = (delta + phi) * mixture.light;
        let mut offsets = [zero, -delta];
        if !is_near.all_true() {
            let t = delta + mixture.odds;
            y = is_near.select(y, R::exp(simd, -t.abs(), Boost::None));
            let above = [t.max(zero) + mixture.log_heavy, (-t).max(zero) + mixture.log_light];
            offsets = [is_near.select(offsets[0], above[0]), is_near.select(offsets[1], above[1])];
        }
        let [log] = logs_of_quotient::<S, R, 1>(simd, [y]);
        // The mixture's logarithms less the heavy one's, and less the light one's.
        let [over_heavy, over_light] = [offsets[0] + log, offsets[1] + log];
        let more = light - heavy;
        let of_heavy = self.phi.weighed(simd, heavy, mixture.light * more, over_heavy);
        let of_light = self.phi.weighed(simd, light, -(mixture.heavy * more), over_light);
        if mixture.is_model_light {
            Class { q, v: -over_light, terms: [of_heavy, of_light] }
        } else {
            Class { q, v: -over_heavy, terms: [of_light, of_heavy] }
        }
    }

    /// Add a class to what is summed.
    #[inline(always)]
    fn add<const MIXED: bool>(&self, logits: [R::Lanes<S>; 2], sums: &mut [R::Lanes<S>; TERMS]) {
        let Class { q, v, terms } = self.class::<MIXED>(logits);
        let (zero, is_most) = (R::splat(self.simd, 0.0), q.simd_gt(R::splat(self.simd, MOST)));
        let others = is_most.select(zero, q);
        sums[0] += terms[0];
        if MIXED {
            sums[1] += terms[1];
        }
        sums[2] += others;
        sums[3] = others.mul_add(v, sums[3]);
        sums[4] += is_most.select(v, zero);
    }

    /// The derivative of a class.
    #[inline(always)]
    fn slope<const MIXED: bool>(&self, logits: [R::Lanes<S>; 2], slopes: &Slopes<S, R>) -> R::Lanes<S> {
        let lanes = |value| R::splat(self.simd, value);
        let Class { q, v, .. } = self.class::<MIXED>(logits);
        let above = q.simd_gt(lanes(MOST)).select(slopes.top, v - slopes.mean);
        let slope = q * above;
        let slope = logits[1].simd_eq(lanes(f64::NEG_INFINITY)).select(lanes(0.0), slope);
        // A scale that is infinite is not multiplied by 0, but one that is NaN is.
        let is_nothing = slope.simd_eq(lanes(0.0)) & slopes.scale.simd_eq(slopes.scale);
        is_nothing.select(lanes(0.0), slope * slopes.scale)
    }
}

impl<S: Simd, R: Real + Element<Real = R>> Pairs<S, R> {
    #[inline(always)]
    fn sum_rows<const MIXED: bool>(&self, rows: [Row; 2], part: Range<usize>) -> Piece<S> {
        let simd = self.simd;
        let mut totals = [Total::zero(simd); TERMS];
        let mut blocks = [[R::default(); BLOCK]; 2];
        let mut are_equal = true;
        for start in part.clone().step_by(BLOCK) {
            let length = BLOCK.min(part.end - start);
            let [first, second] = &mut blocks;
            let (first, second) = (rows[0].lend(simd, start, length, first), rows[1].lend(simd, start, length, second));
            let mut sums = [R::splat(simd, 0.0); TERMS];
            for vector in 0..length.div_ceil(R::LANES) {
                // SAFETY: so many vectors are readable: of the row, or of the padded copy.
                let logits = unsafe {
                    [R::load(simd, first.add(vector * R::LANES)), R::load(simd, second.add(vector * R::LANES))]
                };
                are_equal = are_equal && logits[0].simd_eq(logits[1]).all_true();
                self.add::<MIXED>(logits, &mut sums);
            }
            for (total, sum) in totals.iter_mut().zip(sums) {
                R::add_to(total, sum);
            }
        }
        (totals, are_equal)
    }

    #[inline(always)]
    fn sum_tiles<const MIXED: bool>(&self, measure: &Measure, tiles: [Block<R>; 2]) -> Found {
        let simd = self.simd;
        let classes = tiles[0].classes();
        assert_eq!(classes, tiles[1].classes());
        let (mut totals, zero) = ([Total::zero(simd); TERMS], R::splat(simd, 0.0));
        let mut are_equal = zero.simd_eq(zero);
        for start in (0..classes).step_by(MOST_LANES) {
            let mut sums = [zero; TERMS];
            for class in start..classes.min(start + MOST_LANES) {
                let [[first], [second]] = tiles.map(
                    #[inline(always)]
                    |tile| tile.load::<S, 1>(simd, class),
                );
                are_equal &= first.simd_eq(second);
                self.add::<MIXED>([first, second], &mut sums);
            }
            for (total, sum) in totals.iter_mut().zip(sums) {
                R::add_to(total, sum);
            }
        }
        let mut of_lanes = [[0.0; MOST_LANES]; TERMS];
        for (total, sums) in totals.iter().zip(&mut of_lanes) {
            R::lane_totals(total, sums);
        }
        let differs = are_equal.select(zero, R::splat(simd, 1.0));
        let mut found = Found::default();
        for lane in 0..R::LANES {
            let mut sums = [0.0; TERMS];
            for (sum, of_lanes) in sums.iter_mut().zip(&of_lanes) {
                *sum = of_lanes[lane];
            }
            measure.finish(sums, differs.as_slice()[lane] == R::default(), lane, &mut found);
        }
        found
    }

    #[inline(always)]
    fn write_row<const MIXED: bool>(
        &self,
        rows: [Row; 2],
        part: Range<usize>,
        slopes: &Slopes<S, R>,
        mut out: RowMut,
        store: StorePolicy,
    ) {
        let simd = self.simd;
        let (mut blocks, mut values) = ([[R::default(); BLOCK]; 2], [R::default(); BLOCK]);
        // A first short block brings the streaming stores to the boundary that they need, if there is one.
        let lead = out.peel(store);
        let mut start = part.start;
        while start < part.end {
            let written = start - part.start;
            let most = if written == 0 { lead.filter(|lead| *lead > 0).unwrap_or(BLOCK) } else { BLOCK };
            let length = most.min(part.end - start);
            let [first, second] = &mut blocks;
            let (first, second) = (rows[0].lend(simd, start, length, first), rows[1].lend(simd, start, length, second));
            for (vector, values) in values[..length.next_multiple_of(R::LANES)].chunks_exact_mut(R::LANES).enumerate() {
                // SAFETY: so many vectors are readable: of the row, or of the padded copy.
                let logits = unsafe {
                    [R::load(simd, first.add(vector * R::LANES)), R::load(simd, second.add(vector * R::LANES))]
                };
                self.slope::<MIXED>(logits, slopes).store_slice(values);
            }
            let past_cache = lead.is_some_and(|lead| written >= lead);
            if out.dtype().is_double() == (R::LANES == f64::LANES) {
                out.write(simd, written, length, &values, past_cache);
            } else {
                // A model that is narrower than its teacher.
                let mut narrow = [0.0; BLOCK];
                for (narrow, value) in narrow.iter_mut().zip(values) {
                    *narrow = Real::to_f64(value) as f32;
                }
                out.write(simd, written, length, &narrow, past_cache);
            }
            start += length;
        }
    }

    #[inline(always)]
    fn write_tile<const MIXED: bool>(&self, teacher: Block<R>, model: &mut BlockMut<R>, slopes: &Slopes<S, R>) {
        let simd = self.simd;
        for class in 0..teacher.classes() {
            let ([first], [second]) = (teacher.load::<S, 1>(simd, class), model.read().load::<S, 1>(simd, class));
            model.store(simd, class, self.slope::<MIXED>([first, second], slopes));
        }
    }
}
