//! What is once a row, for as many rows as there are lanes: losses, and what gradients need.

use fearless_simd::{Simd, f64x8, prelude::*};

use super::focus::Focus;
use crate::math::{Boost, Real, power_of_rest, quick_sum, two_sum};

/// The most lanes that a type has.
pub const MOST_LANES: usize = 16;

/// Lanes of f64.
pub const HALF: usize = 8;

/// One value a lane. Such fields come first in structs that begin on a boundary of cache lines, so that no load crosses one.
pub type PerLane<T> = [T; MOST_LANES];

/// What some rows should be, one a lane.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub struct Own {
    /// 1 for the rows that count, 0 for others.
    pub counts: PerLane<f64>,
    /// The class of each row; any of them for rows that do not count.
    pub class: PerLane<usize>,
}

impl Own {
    /// A bit for each row that counts.
    #[inline(always)]
    pub fn counted<S: Simd>(&self, simd: S) -> u32 {
        let mut counted = 0;
        for half in [0, HALF] {
            counted |= bits::<S, _>(load(simd, &self.counts, half).simd_gt(f64x8::splat(simd, 0.0))) << half;
        }
        counted
    }
}

/// What is known of a row once it was read.
#[derive(Clone, Copy, Debug)]
pub struct Sum {
    /// The exponentials of all classes but the own one, boosted, and what their rounding lost.
    pub others: f64,
    pub(super) lost: f64,
    /// By how many whole octaves the reference was raised.
    pub octaves: f64,
    /// By how many steps of an octave, at most half of one, it was above the own logit before.
    pub rest: f64,
    /// Whether all logits are within reach of the reference.
    pub suits: bool,
}

impl Sum {
    /// Take in what is known of another piece of the row, relative to the same logit.
    pub(super) fn merge(&mut self, mut other: Self) {
        let octaves = self.octaves.max(other.octaves);
        for part in [&mut *self, &mut other] {
            // A power of two; there are no more than a thousand octaves.
            let factor = f64::from_bits(((part.octaves - octaves + 1023.0) as u64) << 52);
            (part.others, part.lost, part.octaves) = (part.others * factor, part.lost * factor, octaves);
        }
        let [others, lost] = two_sum(self.others, other.others);
        self.others = others;
        // What an infinity lost is NaN.
        self.lost = if others.is_finite() { self.lost + other.lost + lost } else { 0.0 };
        self.suits &= other.suits;
    }
}

/// What is known of some rows once they were read, one a lane.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub struct Sums {
    /// The exponentials of the classes that are not a row's own, boosted, and what their rounding lost.
    pub others: PerLane<f64>,
    pub(super) others_lost: PerLane<f64>,
    /// By how many whole octaves the reference was raised.
    pub octaves: PerLane<f64>,
    /// By how many steps of an octave, at most half of one, it was above the own logit before.
    pub rest: PerLane<f64>,
    /// A bit for each row that counts.
    pub counts: u32,
    /// A bit for each row whose logits are within reach of the reference.
    pub suits: u32,
}

impl Sums {
    /// Of no row.
    #[inline(always)]
    pub fn none() -> Self {
        let nothing = [0.0; MOST_LANES];
        Self { others: nothing, others_lost: nothing, octaves: nothing, rest: nothing, counts: 0, suits: 0 }
    }

    /// Set those of a row that counts.
    #[inline(always)]
    pub fn set(&mut self, lane: usize, of_row: &Sum) {
        (self.others[lane], self.others_lost[lane]) = (of_row.others, of_row.lost);
        (self.octaves[lane], self.rest[lane]) = (of_row.octaves, of_row.rest);
        self.counts |= 1 << lane;
        self.suits |= u32::from(of_row.suits) << lane;
    }
}

/// Losses of rows, one a lane.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub struct Losses {
    /// `log(1 + ratio)`, and what its rounding lost.
    pub loss: PerLane<f64>,
    pub(crate) lost: PerLane<f64>,
    /// The other exponentials over the own one, and, in f64, what their rounding lost.
    ratio: PerLane<f64>,
    ratio_lost: PerLane<f64>,
    /// One over the own exponential and over [`Real::BOOST`], likewise.
    inverse: PerLane<f64>,
    inverse_lost: PerLane<f64>,
    /// A bit for each row that counts.
    counts: u32,
    /// A bit for each row that counts and needs the careful path.
    pub careful: u32,
}

/// The largest number of which a logarithm of one more is taken, 2¹⁰⁰⁰.
pub const LARGEST_RATIO: f64 = f64::from_bits(2023 << 52);

/// Exponentials in the lanes keep their digits as long as their sum is so many times what the smallest normal number is, boosted.
const SPARE: f64 = (1u64 << 40) as f64;

impl Losses {
    /// Make of the losses what `focus` makes of them, and write the slopes.
    #[inline(never)]
    pub fn focus<S: Simd>(&mut self, simd: S, focus: Focus, slopes: &mut PerLane<f64>) {
        simd.vectorize(
            #[inline(always)]
            || {
                for half in (0..MOST_LANES).step_by(HALF) {
                    let losses = [load(simd, &self.loss, half), load(simd, &self.lost, half)];
                    let [loss, slope] = focus.of(simd, losses);
                    store(loss, &mut self.loss, half);
                    store(slope, slopes, half);
                }
            },
        );
    }

    /// Take in the exponentials of listed classes over the own one, which were left out: what is returned is the logarithm of the
    /// sum of all over the others, and what listed ones, the own one too, are over these.
    #[inline(never)]
    fn join<S: Simd, R: Real>(&mut self, simd: S, listed: &PerLane<f64>, shortfall: f64) -> [PerLane<f64>; 2] {
        let [mut logs, mut all_odds] = [[0.0; MOST_LANES]; 2];
        simd.vectorize(
            #[inline(always)]
            || {
                let lanes = |value: f64| f64x8::splat(simd, value);
                for half in (0..R::LANES).step_by(HALF) {
                    let (others, others_lost) = (load(simd, &self.ratio, half), load(simd, &self.ratio_lost, half));
                    let listed = load(simd, listed, half);
                    let odds = (listed + lanes(1.0)) / others;
                    // NaN passes: on x86 `a.min(b)` is b when either is NaN.
                    let [log, lost] = R::log_one_plus(simd, lanes(LARGEST_RATIO).min(odds));
                    let log = log + lost;
                    store(log.mul_add(lanes(shortfall), log), &mut logs, half);
                    store(odds, &mut all_odds, half);
                    let [ratio, lost] = two_sum(others, listed);
                    let of_ratio = others_lost + lost;
                    let [mut loss, mut lost] = R::log_one_plus(simd, ratio);
                    if R::LANES < f32::LANES {
                        [loss, lost] = quick_sum(loss, lost + of_ratio / (ratio + lanes(1.0)));
                    }
                    store(loss.mul_add(lanes(shortfall), loss), &mut self.loss, half);
                    store(lost, &mut self.lost, half);
                    store(ratio, &mut self.ratio, half);
                    store(of_ratio, &mut self.ratio_lost, half);
                }
            },
        );
        [logs, all_odds]
    }

    /// The other exponentials over the own one.
    #[inline(always)]
    pub fn ratio(&self) -> &PerLane<f64> {
        &self.ratio
    }

    /// What boosted exponentials are multiplied by to be relative to the own one.
    #[inline(always)]
    pub fn inverse(&self) -> &PerLane<f64> {
        &self.inverse
    }

    /// What the softmax of rows needs, that of their own classes like all others.
    #[inline(never)]
    pub fn softmax<S: Simd, R: Real>(&self, simd: S) -> Coefficients {
        let mut of = Coefficients { factor: [0.0; MOST_LANES], own: [0.0; MOST_LANES], careful: self.careful };
        simd.vectorize(
            #[inline(always)]
            || {
                for half in (0..R::LANES).step_by(HALF) {
                    let [_, factor, _] = self.share::<S, R>(simd, half, f64x8::splat(simd, 1.0));
                    store(factor, &mut of.factor, half);
                }
            },
        );
        of
    }

    /// `scale` times the shares of the own classes, that over their boosted exponentials, and `scale` times what others have: in f64
    /// each of the last two rounded once or twice.
    #[inline(always)]
    fn share<S: Simd, R: Real>(&self, simd: S, half: usize, scale: f64x8<S>) -> [f64x8<S>; 3] {
        let (one, ratio) = (f64x8::splat(simd, 1.0), load(simd, &self.ratio, half));
        let inverse = load(simd, &self.inverse, half);
        if R::LANES == f32::LANES {
            let share = scale / (ratio + one);
            return [share, share * inverse, share * ratio];
        }
        let [sum, lost] = two_sum(ratio, one);
        let (lost, share) = (lost + load(simd, &self.ratio_lost, half), one / sum);
        // What the quotient lacks.
        let rest = -(share.mul_sub_precise(sum, one) + share * lost) * share;
        let factor = share * inverse;
        let of_factor =
            share.mul_sub_precise(inverse, factor) + (share * load(simd, &self.inverse_lost, half) + rest * inverse);
        let missing = share * ratio;
        let of_missing =
            share.mul_sub_precise(ratio, missing) + (share * load(simd, &self.ratio_lost, half) + rest * ratio);
        [scale * share, scale.mul_add(factor, scale * of_factor), scale.mul_add(missing, scale * of_missing)]
    }

    /// What boosted exponentials are multiplied by to be probabilities: by the one, then by the other.
    #[inline(always)]
    pub fn softmax_factors(&self) -> [PerLane<f64>; 2] {
        let mut shares = self.ratio;
        for share in &mut shares {
            *share = 1.0 / (*share + 1.0);
        }
        [shares, self.inverse]
    }
}

/// What gradients of rows, or their softmax, need, one a lane.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub struct Coefficients {
    /// What exponentials are multiplied by.
    pub factor: PerLane<f64>,
    /// The gradient of the own class, if it has one of its own.
    pub own: PerLane<f64>,
    /// A bit for each row that counts and needs the careful path.
    pub careful: u32,
}

/// The lanes of a mask as bits.
#[inline(always)]
pub(super) fn bits<S: Simd, M: SimdMask<S>>(mask: M) -> u32 {
    mask.to_bitmask() as u32
}

/// Eight lanes from number `half` on.
#[inline(always)]
pub fn load<S: Simd>(simd: S, numbers: &PerLane<f64>, half: usize) -> f64x8<S> {
    f64x8::from_slice(simd, &numbers[half..half + HALF])
}

/// The other way.
#[inline(always)]
pub fn store<S: Simd>(lanes: f64x8<S>, numbers: &mut PerLane<f64>, half: usize) {
    lanes.store_slice(&mut numbers[half..half + HALF]);
}

/// The losses of rows of logits that are computed with in `R`; `shortfall` is [`crate::math::Scale`]'s.
#[inline(never)]
pub fn losses<S: Simd, R: Real>(simd: S, sums: &Sums, shortfall: f64) -> Losses {
    simd.vectorize(
        #[inline(always)]
        || {
            let nothing = [0.0; MOST_LANES];
            let mut found = Losses {
                loss: nothing,
                lost: nothing,
                ratio: nothing,
                ratio_lost: nothing,
                inverse: nothing,
                inverse_lost: nothing,
                counts: sums.counts,
                careful: 0,
            };
            let lanes = |value: f64| f64x8::splat(simd, value);
            let mut finite = 0;
            for half in (0..R::LANES).step_by(HALF) {
                let [t, power] = power_of_rest(simd, load(simd, &sums.octaves, half), load(simd, &sums.rest, half));
                let (power, others) = (power * lanes(1.0 / R::BOOST), load(simd, &sums.others, half));
                let mut inverse = t.mul_add(power, power);
                let mut ratio = others * inverse;
                let mut of_rest = lanes(0.0);
                if R::LANES < f32::LANES {
                    // f64 has no digits to spare: in twice the precision. The products with the power are exact.
                    let (scaled, inverse_lost);
                    [inverse, inverse_lost] = quick_sum(power, t * power);
                    scaled = others * power;
                    [ratio, of_rest] = two_sum(scaled, scaled * t);
                    of_rest += load(simd, &sums.others_lost, half) * inverse;
                    store(inverse_lost, &mut found.inverse_lost, half);
                    store(of_rest, &mut found.ratio_lost, half);
                }
                let [mut loss, mut lost] = R::log_one_plus(simd, ratio);
                if R::LANES < f32::LANES {
                    [loss, lost] = quick_sum(loss, lost + of_rest / (ratio + lanes(1.0)));
                }
                store(loss.mul_add(lanes(shortfall), loss), &mut found.loss, half);
                store(lost, &mut found.lost, half);
                store(ratio, &mut found.ratio, half);
                store(inverse, &mut found.inverse, half);
                // NaN is not less than anything.
                finite |= bits::<S, _>(ratio.simd_lt(lanes(f64::INFINITY))) << half;
            }
            found.careful = sums.counts & !(sums.suits & finite);
            found
        },
    )
}

/// What gradients need that are multiplied by `scales`.
#[inline(never)]
pub fn coefficients<S: Simd, R: Real>(simd: S, losses: &Losses, scales: &PerLane<f64>) -> Coefficients {
    simd.vectorize(
        #[inline(always)]
        || {
            let mut of = Coefficients { factor: [0.0; MOST_LANES], own: [0.0; MOST_LANES], careful: 0 };
            let mut finite = 0;
            for half in (0..R::LANES).step_by(HALF) {
                let scale = load(simd, scales, half);
                let [share, factor, missing] = losses.share::<S, R>(simd, half, scale);
                store(factor, &mut of.factor, half);
                // An infinite share of a ratio of 0 is no number.
                finite |= bits::<S, _>(share.is_finite()) << half;
                store(f64x8::splat(simd, 0.0) - missing, &mut of.own, half);
            }
            let nothing = R::narrow(simd, scales).simd_eq(R::splat(simd, 0.0));
            let fine = bits::<S, _>(is_normal::<S, R>(simd, &of.factor) | nothing) & finite;
            of.careful = losses.careful | losses.counts & !fine;
            of
        },
    )
}

/// Whether factors are normal numbers in the lanes.
#[inline(always)]
fn is_normal<S: Simd, R: Real>(simd: S, factors: &PerLane<f64>) -> <R::Lanes<S> as SimdBase<S>>::Mask {
    let size = R::narrow(simd, factors).abs();
    size.simd_ge(R::splat(simd, R::SMALLEST_NORMAL)) & size.simd_lt(R::splat(simd, f64::INFINITY))
}

/// `(a − b) / divisor + log` for numbers that are each a sum of two, rounded once.
#[inline(always)]
pub fn difference_and<S: Simd>(
    simd: S,
    [a, a_low]: [f64x8<S>; 2],
    [b, b_low]: [f64x8<S>; 2],
    [log, log_low]: [f64x8<S>; 2],
    divisor: f64,
) -> f64x8<S> {
    let [high, low] = quotient(simd, a, b, a_low - b_low, divisor);
    let [sum, lost] = two_sum(high, log);
    sum.is_finite().select(sum + (lost + (low + log_low)), sum)
}

/// `(a − b + low) / divisor` as a sum of two, the second 0 if the first is not finite, for a `low` that is far smaller
/// than `a` or `b`.
#[inline(always)]
pub fn quotient<S: Simd>(simd: S, a: f64x8<S>, b: f64x8<S>, low: f64x8<S>, divisor: f64) -> [f64x8<S>; 2] {
    let zero = f64x8::splat(simd, 0.0);
    // Halves, if the difference of finite numbers overflows.
    let size = (a - b).abs();
    let overflows = size.simd_eq(f64x8::splat(simd, f64::INFINITY)) & a.is_finite() & b.is_finite();
    // A quotient takes as long as ten other operations.
    let by_one = divisor == 1.0 && !overflows.any_true();
    let divisor = f64x8::splat(simd, divisor);
    let share = overflows.select(f64x8::splat(simd, 0.5), f64x8::splat(simd, 1.0));
    let (a, b, divisor) = (a * share, b * share, divisor * share);
    let [high, lost] = two_sum(a, -b);
    let [sum, rest] = two_sum(high, lost + low);
    let finite = high.is_finite();
    let (high, low) = (finite.select(sum, high), finite.select(rest, zero));
    if by_one {
        return [high, low];
    }
    let quotient = high / divisor;
    let rest = (low - quotient.mul_sub_precise(divisor, high)) / divisor;
    [quotient, quotient.is_finite().select(rest, zero)]
}

/// What targets and options ask for of some rows, one a lane, with z the logits over the temperature: the loss is
/// `point·(lse − z(target)) + Σ t·(lse − z) + z_loss·lse²`, and for a divergence from a teacher the second part less its entropy;
/// `lse − z(target)` may become something else ([`Focus`]).
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub struct Asked {
    /// The weight of the target's class.
    pub point: PerLane<f64>,
    /// `z(own) − z(target)`.
    pub above: PerLane<f64>,
    /// 1 where the target is another class than the own one.
    pub apart: PerLane<f64>,
    /// `Σ t`.
    pub mass: PerLane<f64>,
    /// `Σ t·(z − z(own))`, and for a teacher `Σ t·((z − z(own)) − (z' − z'(own)))`.
    pub sum: PerLane<f64>,
    /// What the own class has of the mass, and what the target has.
    pub here: [PerLane<f64>; 2],
    /// `z(own)`.
    pub level: PerLane<f64>,
    /// The slopes of the cap at the own logit and at the target's, if there is one.
    pub slopes: [PerLane<f64>; 2],
    /// `lse' − z'(own)` of a teacher.
    pub teacher: Option<PerLane<f64>>,
    /// The factor of lse².
    pub z_loss: f64,
    /// What becomes of `lse − z(target)`, if it does not stay what it is.
    pub focus: Option<Focus>,
}

/// What a divergence from targets that list classes asks for, one row a lane; `t` is what all other classes weigh together.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub struct FromListed {
    /// The exponentials of the listed classes over the own one, which are not among the others, without it.
    pub exps: PerLane<f64>,
    /// t.
    pub left: PerLane<f64>,
    /// `Σ t·log t` over listed classes and the others as one.
    pub offset: PerLane<f64>,
    /// `t·(lse − lse(others))`.
    pub loss: PerLane<f64>,
    /// What the softmax of the others is multiplied by, in place of the mass.
    pub others: PerLane<f64>,
    /// No loss is less.
    pub least: f64,
}

impl FromListed {
    /// Of no row, for divergences of at least this.
    #[inline(always)]
    pub fn none(least: f64) -> Self {
        let nothing = [0.0; MOST_LANES];
        Self { exps: nothing, left: nothing, offset: nothing, loss: nothing, others: nothing, least }
    }

    /// The divergences of rows with these cross-entropies with their listed classes.
    #[inline(always)]
    fn divergence<S: Simd>(&self, simd: S, loss: f64x8<S>, half: usize) -> f64x8<S> {
        let divergence = loss + (load(simd, &self.offset, half) + load(simd, &self.loss, half));
        let least = f64x8::splat(simd, self.least);
        divergence.simd_lt(least).select(least, divergence)
    }

    /// Take listed classes into the losses, and find out what follows for the others; `mass` is what listed ones weigh.
    #[inline(never)]
    pub fn join<S: Simd, R: Real>(&mut self, simd: S, losses: &mut Losses, mass: &PerLane<f64>, shortfall: f64) {
        let [logs, odds] = losses.join::<S, R>(simd, &self.exps, shortfall);
        let largest = (R::BOOST / SPARE / R::SMALLEST_NORMAL).min(LARGEST_RATIO);
        for lane in 0..MOST_LANES {
            let left = self.left[lane];
            if left != 0.0 {
                self.loss[lane] = left * logs[lane];
                // (t + mass) − t·(1 + odds), in which nothing cancels that is not one.
                self.others[lane] = mass[lane] - left * odds[lane];
                let fine = odds[lane] <= largest;
                losses.careful |= losses.counts & u32::from(!fine) << lane;
            }
        }
    }
}

impl Asked {
    /// Nothing.
    #[inline(always)]
    pub fn nothing(z_loss: f64, focus: Option<Focus>) -> Self {
        let nothing = [0.0; MOST_LANES];
        Self {
            point: nothing,
            above: nothing,
            apart: nothing,
            mass: nothing,
            sum: nothing,
            here: [nothing; 2],
            level: nothing,
            slopes: [nothing; 2],
            teacher: None,
            z_loss,
            focus,
        }
    }

    /// The losses of the targets and their slopes by these, both times the weights of their classes.
    #[inline(always)]
    fn of_targets<S: Simd>(&self, simd: S, losses: &Losses, half: usize) -> [f64x8<S>; 2] {
        let (point, above) = (load(simd, &self.point, half), load(simd, &self.above, half));
        let log = load(simd, &losses.loss, half);
        let Some(focus) = self.focus else { return [point * (above + log), point] };
        let [loss, lost] = two_sum(above, log);
        let [loss, slope] = focus.of(simd, [loss, lost + load(simd, &losses.lost, half)]);
        [point * loss, point * slope]
    }
}

/// The losses of rows with all that is asked for, and a bit for each that counts and needs the careful path.
#[inline(never)]
pub fn losses_asked<S: Simd>(
    simd: S,
    losses: &Losses,
    asked: &Asked,
    listed: Option<&FromListed>,
) -> (PerLane<f64>, u32) {
    simd.vectorize(
        #[inline(always)]
        || {
            let (mut all, mut finite) = ([0.0; MOST_LANES], 0);
            for half in (0..MOST_LANES).step_by(HALF) {
                let log = load(simd, &losses.loss, half);
                let (mass, sum) = (load(simd, &asked.mass, half), load(simd, &asked.sum, half));
                let [point, _] = asked.of_targets(simd, losses, half);
                let spread = match &asked.teacher {
                    // What rounding leaves of no divergence is less than nothing.
                    Some(teacher) => {
                        let divergence = mass * (log - load(simd, teacher, half)) - sum;
                        let zero = f64x8::splat(simd, 0.0);
                        divergence.simd_lt(zero).select(zero, divergence)
                    }
                    None => mass * log - sum,
                };
                let spread = listed.map_or(
                    spread,
                    #[inline(always)]
                    |listed| listed.divergence(simd, spread, half),
                );
                let lse = load(simd, &asked.level, half) + log;
                let loss = point + spread + f64x8::splat(simd, asked.z_loss) * lse * lse;
                finite |= bits::<S, _>(loss.is_finite()) << half;
                store(loss, &mut all, half);
            }
            (all, losses.careful | losses.counts & !finite)
        },
    )
}

/// [`coefficients`] of losses with all that is asked for, and the gradients of the targets' classes, for those that are not the
/// own ones. `scales` are divided by the temperature.
#[inline(never)]
pub fn coefficients_asked<S: Simd, R: Real>(
    simd: S,
    losses: &Losses,
    asked: &Asked,
    listed: Option<&FromListed>,
    scales: &PerLane<f64>,
) -> (Coefficients, PerLane<f64>) {
    simd.vectorize(
        #[inline(always)]
        || {
            let lanes = |value: f64| f64x8::splat(simd, value);
            let (zero, one) = (lanes(0.0), lanes(1.0));
            let mut of = Coefficients { factor: [0.0; MOST_LANES], own: [0.0; MOST_LANES], careful: 0 };
            let mut targets = [0.0; MOST_LANES];
            let mut finite = 0;
            for half in (0..R::LANES).step_by(HALF) {
                let ratio = load(simd, &losses.ratio, half);
                let share = one / (ratio + one);
                let missing = ratio * share;
                let lse = load(simd, &asked.level, half) + load(simd, &losses.loss, half);
                let pull = lanes(2.0 * asked.z_loss) * lse;
                let ([_, point], mass) = (asked.of_targets(simd, losses, half), load(simd, &asked.mass, half));
                let [here, there] = [load(simd, &asked.here[0], half), load(simd, &asked.here[1], half)];
                let (scale, above) = (load(simd, scales, half), load(simd, &asked.above, half));
                let (mut mass, mut others) = (mass, (point + mass) + pull);
                if let Some(listed) = listed {
                    mass += load(simd, &listed.left, half);
                    others = load(simd, &listed.others, half);
                }
                let all = (point + mass) + pull;
                let factor = scale * others * share;
                let boosted = if R::LANES == f32::LANES {
                    factor * load(simd, &losses.inverse, half)
                } else {
                    let [_, boosted, _] = losses.share::<S, R>(simd, half, scale * others);
                    boosted
                };
                store(boosted, &mut of.factor, half);
                // Neither part is a difference where it is small.
                let spread = share.simd_gt(lanes(0.5)).select((mass - here) - mass * missing, mass * share - here);
                let of_point = load(simd, &asked.apart, half).simd_eq(zero).select(-(point * missing), point * share);
                let own = scale * (spread + of_point + pull * share);
                store(own, &mut of.own, half);
                let exp = <f64 as Real>::exp(simd, -above, Boost::Full) * lanes(1.0 / f64::BOOST);
                let target = scale * (all * (exp * share) - point - there);
                store(target, &mut targets, half);
                finite |= bits::<S, _>(factor.is_finite() & own.is_finite() & target.is_finite()) << half;
            }
            let nothing = R::narrow(simd, &of.factor).simd_eq(R::splat(simd, 0.0));
            // A factor of exactly 0 is right; one that is 0 in the lanes alone is not.
            let mut zeros = 0;
            for (lane, factor) in of.factor.iter().enumerate() {
                zeros |= u32::from(*factor == 0.0) << lane;
            }
            let fine = (bits::<S, _>(is_normal::<S, R>(simd, &of.factor)) | bits::<S, _>(nothing) & zeros) & finite;
            of.careful = losses.careful | losses.counts & !fine;
            (of, targets)
        },
    )
}

/// What the diagonals of Hessians need that are multiplied by `scales`, from losses relative to the largest logits.
#[inline(never)]
pub fn variances<S: Simd, R: Real>(simd: S, losses: &Losses, scales: &PerLane<f64>) -> Coefficients {
    let [shares, inverse] = losses.softmax_factors();
    let mut of = Coefficients { factor: inverse, own: [0.0; MOST_LANES], careful: losses.careful };
    for lane in 0..MOST_LANES {
        let share = shares[lane];
        of.factor[lane] *= share;
        of.own[lane] = scales[lane] * (share * (losses.ratio[lane] * share));
        let fine = of.own[lane].is_finite() && R::from_f64(scales[lane]).to_f64().is_finite();
        of.careful |= losses.counts & u32::from(!fine) << lane;
    }
    simd.vectorize(
        #[inline(always)]
        || of.careful |= losses.counts & !bits::<S, _>(is_normal::<S, R>(simd, &of.factor)),
    );
    of
}
