//! Some rows together, one a lane: what is done once a row (logarithms, quotients, the loss) is done for all of them at
//! once.
//!
//! Logarithms of libm, row by row, took a third of the time at ten classes. Besides, libm's last bits are those of the
//! machine; these are ours.

use fearless_simd::{Simd, f64x8, prelude::*};

use super::log_sum_exp::LogSumExps;
use super::transform::Capped;
use super::{Dense, Transform};
use crate::kernel::finish::{HALF, MOST_LANES, PerLane, difference_and, load, quotient, store};
use crate::kernel::focus::Focus;
use crate::math::{Boost, Real, UNIT};

/// The sum of all lanes, in a fixed order.
pub fn sum_of_lanes(lanes: &PerLane<f64>) -> f64 {
    let mut sums = *lanes;
    for half in [8, 4, 2, 1] {
        for lane in 0..half {
            sums[lane] += sums[lane + half];
        }
    }
    sums[0]
}

/// What some rows should be.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub struct Targets<'a> {
    /// 1 for the rows that count; an ignored one loses nothing, and its derivatives are 0.
    pub counts: PerLane<f64>,
    /// Target class of each row. For dense targets: the argmax, with weight 0, where its probability may be close to 1.
    pub points: Points,
    /// How many rows there are.
    pub rows: usize,
    /// Whether they name classes.
    pub names_classes: bool,
    /// The weight of every class.
    pub uniform: f64,
    /// The weights of each class, if they have such.
    pub dense: Option<Dense<'a>>,
    /// The factor of lse².
    pub z_loss: f64,
    /// What becomes of the losses of the named classes.
    pub focus: Option<Focus>,
}

/// A class of each row.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub struct Points {
    /// The class.
    pub class: PerLane<usize>,
    /// Its weight.
    pub weight: PerLane<f64>,
    /// Its logit.
    pub logit: PerLane<f64>,
    /// Its dense weight.
    pub(super) rest: PerLane<f64>,
}

impl Default for Points {
    /// The first class, for nothing.
    #[inline(always)]
    fn default() -> Self {
        let nothing = [0.0; MOST_LANES];
        Self { class: [0; MOST_LANES], weight: nothing, logit: nothing, rest: nothing }
    }
}

impl<'a> Targets<'a> {
    /// Targets of `rows` rows, none of which counts yet, with this dense part.
    #[inline(always)]
    pub fn none(rows: usize, dense: Option<Dense<'a>>) -> Self {
        Self {
            rows,
            counts: [0.0; MOST_LANES],
            names_classes: false,
            points: Points::default(),
            uniform: 0.0,
            dense,
            z_loss: 0.0,
            focus: None,
        }
    }
}

/// What passes summed for the uniform or the dense parts of targets.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub struct Spreads {
    /// `Σ t`.
    pub(super) mass: PerLane<f64>,
    /// `Σ t·(v − v(reference))` in units of [`UNIT`], v being the logits, capped if they are.
    pub(super) sum: PerLane<f64>,
    /// What [`Dense::fill`] returned: the same over a teacher's own logits, or whether probabilities are such.
    pub(super) teacher: PerLane<f64>,
}

impl Spreads {
    /// Those of rows whose targets have `mass` in the uniform or the dense part, for what needs no loss.
    #[inline(always)]
    pub fn of_mass(mass: f64) -> Self {
        Self { mass: [mass; MOST_LANES], ..Self::default() }
    }

    /// Whether passes over probabilities read a number that is none, in one of these rows or beside them.
    #[inline(always)]
    pub fn have_bad_probabilities(&self) -> bool {
        self.teacher.iter().any(|sum| sum.is_nan())
    }
}

impl Default for Spreads {
    /// Nothing.
    #[inline(always)]
    fn default() -> Self {
        Self { mass: [0.0; MOST_LANES], sum: [0.0; MOST_LANES], teacher: [0.0; MOST_LANES] }
    }
}

/// The losses of some rows, and what their derivatives need.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub struct Losses<'a> {
    /// In nats.
    pub loss: PerLane<f64>,
    /// The weights of the points, times the slopes of what becomes of their losses.
    pub(super) point: PerLane<f64>,
    /// `2·z_loss·lse`.
    pub(super) pull: PerLane<f64>,
    pub(super) log_sum_exps: &'a LogSumExps,
    /// The weights of all but the point.
    pub(super) spread: &'a PerLane<f64>,
}

/// Logits, capped if there is a cap, as sums of two, and the slopes of the cap.
struct Values<'a> {
    logits: &'a PerLane<f64>,
    capped: Option<Capped<f64, MOST_LANES>>,
}

impl<'a> Values<'a> {
    #[inline(always)]
    fn new<S: Simd, const SLOPES: bool>(simd: S, logits: &'a PerLane<f64>, transform: Transform) -> Self {
        let capped = transform.cap::<S, f64>(simd).map(|cap| {
            let mut capped = Capped::default();
            cap.fill::<_, _, SLOPES>(simd, logits, &mut capped);
            capped
        });
        Self { logits, capped }
    }

    #[inline(always)]
    fn load<S: Simd>(&self, simd: S, half: usize) -> [f64x8<S>; 2] {
        match &self.capped {
            Some(Capped { values: [high, low], .. }) => [load(simd, high, half), load(simd, low, half)],
            None => [load(simd, self.logits, half), f64x8::splat(simd, 0.0)],
        }
    }

    #[inline(always)]
    fn slopes<S: Simd>(&self, simd: S, half: usize) -> Option<f64x8<S>> {
        self.capped.as_ref().map(|capped| load(simd, &capped.slopes, half))
    }
}

/// `lse − z` for a logit of each row: minus the log-probability. `logs` are `lse − z(reference)`, sums of two.
#[inline(never)]
pub fn missed<S: Simd>(
    simd: S,
    references: &PerLane<f64>,
    logs: &[PerLane<f64>; 2],
    logits: &PerLane<f64>,
    rows: usize,
    transform: Transform,
) -> PerLane<f64> {
    simd.vectorize(
        #[inline(always)]
        || {
            let references = Values::new::<S, false>(simd, references, transform);
            let logits = Values::new::<S, false>(simd, logits, transform);
            let mut missed = [0.0; MOST_LANES];
            for half in (0..rows).step_by(HALF) {
                let (reference, logits) = (references.load(simd, half), logits.load(simd, half));
                let log = [load(simd, &logs[0], half), load(simd, &logs[1], half)];
                store(difference_and(simd, reference, logits, log, transform.temperature()), &mut missed, half);
            }
            missed
        },
    )
}

/// The probabilities of some logits, one of each row; NaN in a row without mass.
#[inline(never)]
pub(super) fn probabilities<S: Simd>(
    simd: S,
    found: &LogSumExps,
    logits: &PerLane<f64>,
    rows: usize,
    transform: Transform,
) -> PerLane<f64> {
    simd.vectorize(
        #[inline(always)]
        || {
            let references = Values::new::<S, false>(simd, &found.reference, transform);
            let logits = Values::new::<S, false>(simd, logits, transform);
            let mut probabilities = [0.0; MOST_LANES];
            for half in (0..rows).step_by(HALF) {
                let [share, _] = probability(simd, found, &references, &logits, half, transform);
                store(share, &mut probabilities, half);
            }
            probabilities
        },
    )
}

/// The probability of a logit of each row, and what is missing to one, neither a difference where it is small.
#[inline(always)]
fn probability<S: Simd>(
    simd: S,
    found: &LogSumExps,
    references: &Values,
    logits: &Values,
    half: usize,
    transform: Transform,
) -> [f64x8<S>; 2] {
    let lanes = |value: f64| f64x8::splat(simd, value);
    let (own, others) = (load(simd, &found.own, half), load(simd, &found.others, half));
    let total = own + others;
    let (logit, reference) = (load(simd, logits.logits, half), load(simd, references.logits, half));
    let leads = logit.simd_eq(reference);
    let ([a, a_low], [b, b_low]) = (logits.load(simd, half), references.load(simd, half));
    let [high, low] = quotient(simd, a, b, a_low - b_low, transform.temperature());
    // Subnormal probabilities too.
    let exp = <f64 as Real>::exp(simd, high + low, Boost::Full) * lanes(1.0 / f64::BOOST);
    let exp = leads.select(own, exp);
    [exp / total, leads.select(others, total - exp) / total]
}

/// The losses from what passes found.
///
/// Where the point leads, its loss is `log1p(others)`: relative accuracy however confident the row. Elsewhere it is
/// `(z(reference) − z) + ln total`, the difference taken in twice the precision, rounded once.
#[inline(never)]
pub fn losses<'a, S: Simd>(
    simd: S,
    found: &'a LogSumExps,
    targets: &Targets,
    spreads: &'a Spreads,
    transform: Transform,
) -> Losses<'a> {
    simd.vectorize(
        #[inline(always)]
        || {
            let rows = targets.rows;
            let zero = f64x8::splat(simd, 0.0);
            let lanes = |value: f64| f64x8::splat(simd, value);
            let references = Values::new::<S, false>(simd, &found.reference, transform);
            let logits = Values::new::<S, false>(simd, &targets.points.logit, transform);
            let divisor = transform.temperature();
            let teacher = targets.dense.as_ref().and_then(Dense::log_totals);
            let mut losses = Losses {
                loss: [0.0; MOST_LANES],
                log_sum_exps: found,
                spread: &spreads.mass,
                point: targets.points.weight,
                pull: [0.0; MOST_LANES],
            };
            for half in (0..rows).step_by(HALF) {
                let reference = references.load(simd, half);
                let log_total = found.log_total(simd, half);
                let mut loss = zero;
                if targets.names_classes {
                    let missed = difference_and(simd, reference, logits.load(simd, half), log_total, divisor);
                    let weight = load(simd, &targets.points.weight, half);
                    loss = product_of(weight, missed);
                    if let Some(focus) = targets.focus {
                        let [focused, slope] = focus.of(simd, [missed, zero]);
                        loss = product_of(weight, focused);
                        store(weight * slope, &mut losses.point, half);
                    }
                }
                let (mass, sum) = (load(simd, &spreads.mass, half), load(simd, &spreads.sum, half));
                let distance = |sum: f64x8<S>| sum / lanes(transform.temperature()) * lanes(UNIT);
                if let Some(teacher) = teacher {
                    let distance = distance(sum - load(simd, &spreads.teacher, half));
                    let divergence = mass * (log_total[0] - load(simd, teacher, half)) - distance;
                    // What rounding leaves of no divergence.
                    loss += divergence.simd_lt(zero).select(zero, divergence);
                } else if targets.dense.is_some() || targets.uniform != 0.0 {
                    loss += mass * log_total[0] - distance(sum);
                }
                if targets.z_loss != 0.0 {
                    let lse = difference_and(simd, reference, [zero; 2], log_total, divisor);
                    loss += lanes(targets.z_loss) * lse * lse;
                    store(lanes(2.0 * targets.z_loss) * lse, &mut losses.pull, half);
                }
                let counts = load(simd, &targets.counts, half).simd_gt(zero);
                store(counts.select(loss, zero), &mut losses.loss, half);
            }
            losses
        },
    )
}

/// A weight times what it weighs: 0 if a weight of 0 weighs an infinity.
#[inline(always)]
pub(super) fn product_of<S: Simd>(weight: f64x8<S>, loss: f64x8<S>) -> f64x8<S> {
    let simd = weight.token();
    let zero = f64x8::splat(simd, 0.0);
    let infinite = loss.abs().simd_eq(f64x8::splat(simd, f64::INFINITY));
    (weight.simd_eq(zero) & infinite).select(zero, weight * loss)
}

/// The derivatives of some losses as functions of the logits: `factor·exp(z − z(reference))` less what the target has,
/// all of it times the rows' scales.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub struct Slopes {
    pub(super) reference: PerLane<f64>,
    pub(super) factor: PerLane<f64>,
    /// What the scale of the row is, divided by the temperature.
    pub(super) scale: PerLane<f64>,
    /// What is subtracted from every class.
    pub(super) uniform: PerLane<f64>,
    /// The class whose gradient is computed separately (−1: none), and that gradient.
    pub(super) class: PerLane<f64>,
    pub(super) own: PerLane<f64>,
}

impl Slopes {
    /// The class of row number `lane` whose derivative is known, and that.
    #[inline(always)]
    pub(super) fn own(&self, lane: usize) -> Option<(usize, f64)> {
        (self.class[lane] >= 0.0).then(|| (self.class[lane] as usize, self.own[lane]))
    }
}

/// [`Slopes`] of rows whose losses are multiplied by `scales`.
///
/// The derivative of the class that the target names, or that may hold all of the mass, is made of the others' share,
/// never a difference from one: lanes cannot get it right. A masked class has 0, the target too.
#[inline(never)]
pub fn slopes<S: Simd>(
    simd: S,
    losses: &Losses,
    targets: &Targets,
    scales: &PerLane<f64>,
    transform: Transform,
) -> Slopes {
    simd.vectorize(
        #[inline(always)]
        || {
            let nothing = [0.0; MOST_LANES];
            let found = losses.log_sum_exps;
            let mut slopes = Slopes {
                reference: found.reference,
                factor: nothing,
                scale: nothing,
                uniform: nothing,
                class: [-1.0; MOST_LANES],
                own: nothing,
            };
            let lanes = |value: f64| f64x8::splat(simd, value);
            let zero = lanes(0.0);
            let points = &targets.points;
            for (number, class) in slopes.class.iter_mut().zip(&points.class[..targets.rows]) {
                *number = *class as f64;
            }
            if !targets.names_classes {
                for lane in (0..targets.rows).filter(|&lane| !found.is_led(lane)) {
                    slopes.class[lane] = -1.0;
                }
            }
            let references = Values::new::<S, false>(simd, &found.reference, transform);
            let logits = Values::new::<S, true>(simd, &points.logit, transform);
            for half in (0..targets.rows).step_by(HALF) {
                let (own, others) = (load(simd, &found.own, half), load(simd, &found.others, half));
                let total = own + others;
                let scale = load(simd, scales, half);
                let scale = if transform.temperature() == 1.0 { scale } else { scale / lanes(transform.temperature()) };
                let (spread, pull) = (load(simd, losses.spread, half), load(simd, &losses.pull, half));
                let point = load(simd, &losses.point, half);
                let mass = product_of(scale, (point + spread) + pull);
                let factor = total.simd_eq(zero).select(lanes(f64::NAN), mass / total);
                // Rows that do not count must not count where all lanes are asked.
                let counts = load(simd, &targets.counts, half).simd_gt(zero);
                store(counts.select(factor, zero), &mut slopes.factor, half);
                store(scale, &mut slopes.scale, half);
                // Nothing if a weight is 0, whatever the scale.
                let uniform = lanes(targets.uniform);
                store(uniform.simd_eq(zero).select(zero, scale * uniform), &mut slopes.uniform, half);
                let logit = load(simd, &points.logit, half);
                let [share, missing] = probability(simd, found, &references, &logits, half, transform);
                let here = if targets.dense.is_some() { load(simd, &points.rest, half) } else { uniform };
                // Neither part is a difference where it is small.
                let of_spread =
                    share.simd_gt(lanes(0.5)).select((spread - here) - spread * missing, spread * share - here);
                // Either may be infinite beside the other's 0.
                let of_pull = (pull.simd_eq(zero) | share.simd_eq(zero)).select(zero, pull * share);
                let gradient = of_spread - point * missing + of_pull;
                let gradient = logits.slopes(simd, half).map_or(gradient, |slopes| gradient * slopes);
                // A factor that overflowed is not multiplied by 0.
                let gradient = gradient.simd_eq(zero).select(zero, product_of(scale, gradient));
                // A row without mass, or with a NaN, is NaN throughout.
                let masked = logit.simd_eq(lanes(f64::NEG_INFINITY));
                store(masked.select(zero * missing, gradient), &mut slopes.own, half);
            }
            slopes
        },
    )
}
