//! What one pass can tell of a row beside its loss.

use fearless_simd::Simd;

use super::companion::Shape;
use super::log_sum_exp::pass;
use super::{AnyRow, LogSumExp, Transform};
use crate::element::Element;
use crate::math::Real;
use crate::view::Row;

/// A row's distribution and the place of a class in it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Statistics {
    /// The log-sum-exp.
    pub log_sum_exp: LogSumExp,
    /// The lowest index of the largest logit; 0 for a row of only −∞, and, if there is a NaN, that of the first one.
    pub leader: usize,
    /// The probability of the largest logit.
    pub leader_probability: f64,
    /// The entropy of the softmax, in nats.
    pub entropy: f64,
    /// How many classes rank above the one asked for: a larger logit, or the same one at a lower index.
    pub above: f64,
}

/// The statistics of a row, and the rank of the class `ranked` in it.
#[inline(always)]
pub fn statistics<S: Simd, E: Element>(
    simd: S,
    row: Row<E>,
    ranked: Option<usize>,
    transform: Transform,
) -> Statistics {
    let (log_sum_exp, shape) = pass(simd, row, transform, Shape::new(simd, AnyRow::of(row), ranked));
    let total = log_sum_exp.total();
    let (top, start) = shape.top;
    let is_nan = |class: &usize| row.get(*class).to_f64().is_nan();
    let is_top = |class: &usize| row.get(*class).to_f64() == Real::to_f64(top);
    let nan = if total.is_nan() { (0..row.classes()).find(is_nan) } else { None };
    let leader = nan.or_else(|| (start..row.classes()).find(is_top)).unwrap_or(0);
    let mut leader_probability = f64::NAN;
    if total > 0.0 {
        let [high, low] = transform.difference(simd, row.get(leader).to_f64(), log_sum_exp.reference);
        leader_probability = (high + low).exp() / total;
    }
    // ln total − Σ p·(z − z(reference)): neither is negative where the reference leads.
    let entropy = log_sum_exp.log_total() - shape.weighted.value() / E::Real::BOOST / total;
    Statistics { log_sum_exp, leader, leader_probability, entropy, above: shape.above.value() }
}
