//! What a row should be: its target, the loss of not being it, and the gradient of that loss.
//!
//! A target is a weight for every class, the sum of three parts: one for all classes (`uniform`), one for each
//! (`dense`) and one for a single class (`point`). With `mass` the sum of all weights t,
//!
//! ```text
//! loss = Σ t·(lse − z) + z_loss·lse²        gradient = (mass + 2·z_loss·lse)·softmax(z) − t, times dz/dx
//! ```
//!
//! | target | uniform | dense | point |
//! |---|---|---|---|
//! | class y | | | (y, 1) |
//! | with label smoothing ε | ε/C | | (y, 1 − ε) |
//! | and class weights w | | (ε/C)·w | (y, (1 − ε)·w_y) |
//! | probabilities p, smoothed and weighted | | w·((1 − ε)·p + ε/C) | |
//! | the same, of a few listed classes | | the same, p being 0 elsewhere | |
//! | a teacher's softmax, the loss less its entropy | | p | |

use fearless_simd::Simd;

use super::batch::{self, Losses, Points, Slopes, Spreads, Targets};
use super::companion::{Nothing, Uniform, Weighted};
use super::dense::RowWeights;
use super::log_sum_exp::{LogSumExps, pass};
use super::map::{self, Exponential, Offset};
use super::{Dense, LogSumExp, Transform};
use crate::array::Array;
use crate::element::Element;
use crate::kernel::finish::MOST_LANES;
use crate::math::Real;
use crate::parallel::in_pieces;
use crate::rows::{Row, RowMut, StorePolicy};

/// What a row should be.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    /// The weight of every class.
    pub uniform: f64,
    /// The weights of each class.
    pub dense: Option<Dense<'a>>,
    /// A class and its own weight.
    pub point: Option<(usize, f64)>,
    /// The factor of lse².
    pub z_loss: f64,
}

/// What the second derivatives of the loss of a row need.
#[derive(Clone, Copy, Debug)]
pub struct RowLoss {
    /// The log-sum-exp of the row.
    pub log_sum_exp: LogSumExp,
    /// The weight of all classes.
    pub(super) mass: f64,
}

impl<'a> Targets<'a> {
    /// The target of row number `lane`; `None` if the row is ignored.
    #[inline(always)]
    pub fn get(&self, lane: usize) -> Option<Target<'a>> {
        let dense = self.dense.map(|dense| dense.skip(lane));
        let point = self.names_classes.then(|| (self.points.class[lane], self.points.weight[lane]));
        (self.counts[lane] != 0.0).then_some(Target { uniform: self.uniform, dense, point, z_loss: self.z_loss })
    }
}

impl Losses<'_> {
    /// What the derivatives of row number `lane` need.
    #[inline(always)]
    pub fn get(&self, lane: usize, targets: &Targets) -> RowLoss {
        RowLoss { log_sum_exp: self.log_sum_exps.get(lane), mass: targets.points.weight[lane] + self.spread[lane] }
    }
}

impl Target<'_> {
    /// A class, for all of its weight.
    pub fn class(class: usize) -> Self {
        Self { uniform: 0.0, dense: None, point: Some((class, 1.0)), z_loss: 0.0 }
    }

    /// The loss of a row by itself: for tests and benchmarks, since drivers work on batches.
    #[inline(always)]
    pub fn loss<S: Simd, E: Element>(&self, simd: S, row: Row, transform: Transform) -> f64 {
        let targets = self.alone(row);
        let (mut found, mut spreads) = (LogSumExps::default(), Spreads::default());
        self.pass::<S, E::Real>(simd, row, transform, 0, &mut found, &mut spreads);
        batch::losses(simd, &found, &targets, &spreads, transform).loss[0]
    }

    /// The loss of a row by itself, with its gradient written to `out`.
    #[inline(always)]
    pub fn loss_and_gradient<S: Simd, E: Element, O: Element<Real = E::Real>>(
        &self,
        simd: S,
        row: Row,
        out: RowMut,
        transform: Transform,
        stores: StorePolicy,
    ) -> f64 {
        let mut targets = self.alone(row);
        let (mut found, mut spreads) = (LogSumExps::default(), Spreads::default());
        self.pass::<S, E::Real>(simd, row, transform, 0, &mut found, &mut spreads);
        find_point::<S, E::Real>(simd, 0, row, &found, &mut targets);
        let losses = batch::losses(simd, &found, &targets, &spreads, transform);
        let scales = [1.0; MOST_LANES];
        let slopes = batch::slopes(simd, &losses, &targets, &scales, transform);
        gradient::<S, E::Real>(simd, 0, row, out, &targets, &slopes, transform, stores);
        losses.loss[0]
    }

    /// Read a row for its log-sum-exp, and for what its target needs to be summed: row number `lane` of some.
    #[inline(always)]
    pub fn pass<S: Simd, R: Real + Element<Real = R>>(
        &self,
        simd: S,
        row: Row,
        transform: Transform,
        lane: usize,
        found: &mut LogSumExps,
        spreads: &mut Spreads,
    ) {
        let log_sum_exp = if let Some(dense) = self.dense {
            let weighted = || Weighted::new(simd, RowWeights { dense, sum: 0.0 });
            let (found, weighted) = pass::<S, R, _>(simd, row, transform, weighted);
            spreads.mass[lane] = weighted.mass.value();
            spreads.sum[lane] = weighted.sum.value();
            spreads.teacher[lane] = weighted.weights.sum;
            found
        } else if self.uniform != 0.0 {
            let (found, uniform) = pass::<S, R, _>(simd, row, transform, || Uniform::new(simd));
            spreads.mass[lane] = self.uniform * row.classes() as f64;
            spreads.sum[lane] = self.uniform * uniform.sum.value();
            found
        } else {
            pass::<S, R, _>(simd, row, transform, || Nothing).0
        };
        found.set(lane, log_sum_exp);
    }

    /// The weight of a class.
    fn weight<S: Simd>(&self, simd: S, class: usize) -> f64 {
        let dense = self.dense.map_or(0.0, |dense| dense.at(simd, class));
        let point = self.point.filter(|(own, _)| *own == class).map_or(0.0, |(_, weight)| weight);
        self.uniform + dense + point
    }

    /// The loss of a row from its formula, class by class.
    #[cold]
    fn loss_by_class<S: Simd>(&self, simd: S, row: Row, found: LogSumExp, transform: Transform) -> f64 {
        let [log_total, _] = found.log_total(simd);
        let missed = |logit: f64| transform.difference(simd, found.reference, logit)[0] + log_total;
        let of_class = |class: usize| product(self.weight(simd, class), missed(row.get(class)));
        let losses = in_pieces(row.classes(), |part| part.map(of_class).sum::<f64>(), |all, next| *all += next);
        losses + self.z_loss * missed(0.0).powi(2)
    }

    /// The target as that of the only row of some.
    fn alone(&self, row: Row) -> Targets<'_> {
        let first = |value: f64| std::array::from_fn(|lane| if lane == 0 { value } else { 0.0 });
        let (class, weight) = self.point.unwrap_or((0, 0.0));
        let logit = if self.point.is_some() { row.get(class) } else { 0.0 };
        Targets {
            rows: 1,
            counts: first(1.0),
            names_classes: self.point.is_some(),
            points: Points {
                class: [class; MOST_LANES],
                weight: first(weight),
                logit: first(logit),
                ..Points::default()
            },
            uniform: self.uniform,
            dense: self.dense,
            z_loss: self.z_loss,
            focus: None,
        }
    }
}

/// For dense targets, find the argmax of row number `lane` if its probability may be close to 1: its gradient cancels, and is
/// computed in f64 by [`batch::slopes`]. Of every target, look up the weight of the class that is.
#[inline(always)]
pub fn find_point<S: Simd, R: Real + Element<Real = R>>(
    simd: S,
    lane: usize,
    row: Row,
    found: &LogSumExps,
    targets: &mut Targets,
) {
    if !targets.names_classes {
        if !found.is_led(lane) {
            return;
        }
        let reference = found.reference[lane];
        let leader = row.find(simd, <R as Real>::from_f64(reference));
        // There is one, unless somebody has written to the row meanwhile.
        targets.points.class[lane] = leader.unwrap_or(0);
        targets.points.logit[lane] = reference;
    }
    if let Some(dense) = targets.dense {
        targets.points.rest[lane] = dense.skip(lane).at(simd, targets.points.class[lane]);
    }
}

/// Take losses that are NaN because weights are infinite once more: an infinite weight times what its class misses is
/// infinite, but it has no differences of such.
#[inline(always)]
pub fn weigh_infinities<S: Simd>(
    simd: S,
    logits: &Array,
    first: usize,
    targets: &Targets,
    transform: Transform,
    losses: &mut Losses,
) {
    for lane in 0..if targets.dense.is_some() { targets.rows } else { 0 } {
        if losses.loss[lane].is_nan()
            && losses.spread[lane].is_infinite()
            && let Some(target) = targets.get(lane)
        {
            let found = losses.log_sum_exps.get(lane);
            losses.loss[lane] = target.loss_by_class(simd, logits.row(first + lane), found, transform);
        }
    }
}

/// Write the gradient of row number `lane` to `out`, reading the logits again; zeros if the row is ignored.
#[inline(always)]
#[allow(clippy::too_many_arguments)] // a row of some, and how its gradient is written
pub fn gradient<S: Simd, R: Real + Element<Real = R>>(
    simd: S,
    lane: usize,
    row: Row,
    mut out: RowMut,
    targets: &Targets,
    slopes: &Slopes,
    transform: Transform,
    stores: StorePolicy,
) {
    let Some(target) = targets.get(lane) else {
        return out.fill(0.0);
    };
    if slopes.factor[lane].is_infinite() {
        // Infinite but for the classes that weigh so themselves, where it is a difference of infinities, and the masked.
        return out.in_pieces(|part, mut out| {
            for (index, class) in part.enumerate() {
                let masked = row.get(class) == f64::NEG_INFINITY;
                let weight = target.weight(simd, class);
                // If no weight is infinite, but what they are multiplied by, the target's own part is known.
                let overflows = target.dense.is_none() && weight.is_finite();
                let own = slopes.own(lane).filter(|(own, _)| *own == class && overflows);
                let difference = own.map_or_else(
                    #[inline(always)]
                    || slopes.factor[lane] - map::share(slopes.scale[lane], weight),
                    |(_, own)| own,
                );
                out.set_rounded(index, if masked { 0.0 } else { difference });
            }
        });
    }
    let of = Exponential { reference: slopes.reference[lane], factor: slopes.factor[lane], transform };
    let offset = Offset { scale: slopes.scale[lane], uniform: target.uniform, dense: target.dense };
    map::gradient::<S, R>(simd, row, out, of, offset, stores, slopes.own(lane));
}

/// A weight times what it weighs: 0 if a weight of 0 weighs an infinity.
pub fn product(weight: f64, loss: f64) -> f64 {
    if weight == 0.0 && loss.is_infinite() { 0.0 } else { weight * loss }
}

impl RowLoss {
    /// The entry of the Hessian's diagonal of the reference's class, times `scale`: of the others' share too.
    #[inline(always)]
    pub(super) fn own_variance(&self, scale: f64, transform: Transform) -> f64 {
        let found = self.log_sum_exp;
        let variance = found.own() / found.total() * (found.others / found.total());
        product(variance, self.variance_scale(scale, transform))
    }

    /// The Hessian's factor of `p·(1 − p)`.
    #[inline(always)]
    pub(super) fn variance_scale(&self, scale: f64, transform: Transform) -> f64 {
        scale / transform.temperature() / transform.temperature() * self.mass
    }

    /// The softmax as a function of the logits.
    #[inline(always)]
    pub(super) fn softmax(&self, transform: Transform) -> Exponential {
        let factor = per_mass(1.0, self.log_sum_exp.total());
        Exponential { reference: self.log_sum_exp.reference, factor, transform }
    }

    /// Write `scale` times the diagonal of the Hessian, `mass·p·(1 − p) / T²`, to `out`.
    #[inline(always)]
    pub fn hessian<S: Simd, R: Real + Element<Real = R>>(
        &self,
        simd: S,
        row: Row,
        out: RowMut,
        scale: f64,
        transform: Transform,
        stores: StorePolicy,
    ) {
        let reference = <R as Real>::from_f64(self.log_sum_exp.reference);
        let leader = self.log_sum_exp.is_led().then(|| row.find(simd, reference)).flatten();
        let own = leader.map(|leader| (leader, self.own_variance(scale, transform)));
        let scale = self.variance_scale(scale, transform);
        map::variance::<S, R>(simd, row, out, self.softmax(transform), scale, stores, own);
    }
}

/// `scale / total`, and NaN for a row without mass, all of whose classes are masked.
#[inline(always)]
pub fn per_mass(scale: f64, total: f64) -> f64 {
    if total == 0.0 { f64::NAN } else { scale / total }
}

/// A number as the lanes round it: to the type computed in, then to the one stored.
#[inline(always)]
pub fn rounded<O: Element>(value: f64) -> O {
    O::from_f64(Real::to_f64(<O::Real as Real>::from_f64(value)))
}
