//! What a row should be: its target, the loss of not being it, and the gradient of that loss.

use fearless_simd::Simd;

use super::temperature::sum_of_three;
use super::{Exponential, LogSumExp, Stores, Temperature, log_sum_exp, map};
use crate::element::Element;
use crate::math::Real;
use crate::view::Row;

/// The loss of a row whose target is a class.
#[derive(Clone, Copy, Debug)]
pub struct ClassLoss {
    /// The loss, in nats.
    pub loss: f64,
    class: usize,
    /// The larger of the target's logit and the others' reference.
    reference: f64,
    /// `Σ exp((x − reference) / T)` over the other classes.
    others: f64,
    /// The same over all classes.
    total: f64,
    /// Whether the target is a class that is not there.
    masked: bool,
}

impl ClassLoss {
    /// The loss of a row, `−log softmax(x / T)` of `class`, and what its gradient needs.
    #[inline(always)]
    pub fn of_row<S: Simd, E: Element>(simd: S, row: Row<E>, class: usize, temperature: Temperature) -> Self {
        let rest = log_sum_exp(simd, row, Some(class), temperature);
        Self::new(class, row.get(class).to_f64(), rest, temperature)
    }

    /// From the target's logit and the log-sum-exp of the other classes.
    ///
    /// Where the target leads, the loss is `log1p(others)`: relative accuracy however confident the row. Elsewhere
    /// it is `(reference − logit) / T + ln total`, the difference taken in twice the precision, rounded once.
    pub fn new(class: usize, logit: f64, rest: LogSumExp, temperature: Temperature) -> Self {
        let [high, low] = temperature.difference(rest.reference, logit);
        let masked = logit == f64::NEG_INFINITY;
        if high <= 0.0 {
            let others = rest.sum * (high + low).exp();
            // 1, or NaN for a logit of +∞.
            let own = if logit < f64::INFINITY { 1.0 } else { f64::NAN };
            return Self { loss: others.ln_1p() * own, class, reference: logit, others, total: others + own, masked };
        }
        let total = rest.sum + (-(high + low)).exp();
        Self {
            loss: sum_of_three(high, total.ln(), low),
            class,
            reference: rest.reference,
            others: rest.sum,
            total,
            masked,
        }
    }

    /// `Σ softmax·log softmax` and with it the entropy follow from `weighted`, `Σ z·exp z` over the other classes
    /// relative to `rest`: the entropy of the softmax, in nats.
    pub fn entropy(&self, logit: f64, rest: LogSumExp, weighted: f64, temperature: Temperature) -> f64 {
        let moved = |x: f64| {
            let [high, low] = temperature.difference(x, self.reference);
            high + low
        };
        let shift = moved(rest.reference);
        let own = moved(logit);
        let product = |a: f64, b: f64| if b == 0.0 { 0.0 } else { a * b };
        let weighted = product(weighted, shift.exp()) + product(shift, self.others) + product(own, own.exp());
        let others = self.others;
        let log_total = if self.reference == logit { others.ln_1p() } else { self.total.ln() };
        log_total - weighted / self.total
    }

    /// The target.
    pub fn class(&self) -> usize {
        self.class
    }

    /// `scale · softmax(x / T) / T` as a function of the logits.
    #[inline(always)]
    pub fn scaled_softmax(&self, scale: f64, temperature: Temperature) -> Exponential {
        let factor = per_mass(scale / temperature.value(), self.total);
        Exponential { reference: self.reference, factor, temperature }
    }

    /// The gradient's entry for the target, `scale · (softmax(x / T) − 1) / T`.
    ///
    /// It is minus the others' share, never a difference. A masked class has 0, the target too.
    #[inline(always)]
    pub fn own_gradient(&self, scale: f64, temperature: Temperature) -> f64 {
        // A row without mass, or with a NaN, is NaN throughout; a factor that overflowed is not multiplied by 0.
        let share = self.others / self.total;
        if share == 0.0 || (self.masked && share == 1.0) { 0.0 } else { -(scale / temperature.value()) * share }
    }

    /// Write `scale · (softmax(x / T) − target) / T` to `out`, reading the logits again.
    ///
    /// # Safety
    /// As for [`Row::set`], with `out`; `out` is the row of the logits itself or apart from it.
    #[inline(always)]
    pub unsafe fn gradient<S: Simd, E: Element, O: Element<Real = E::Real>>(
        &self,
        simd: S,
        row: Row<E>,
        out: Row<O>,
        scale: f64,
        temperature: Temperature,
        stores: Stores,
    ) {
        let softmax = self.scaled_softmax(scale, temperature);
        let own = (self.class, rounded::<O>(self.own_gradient(scale, temperature)));
        // SAFETY: the caller's promise.
        unsafe { map::probabilities(simd, row, out, softmax, stores, Some(own)) }
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
    O::from_f64(O::Real::from_f64(value).to_f64())
}
