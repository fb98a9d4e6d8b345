//! What can be told of some rows beside their losses, and how it is read of a row that needs the kernels that look for the maximum.

use fearless_simd::Simd;

use super::Transform;
use super::batch::{missed, probabilities};
use super::companion::Shape;
use super::log_sum_exp::{LogSumExps, log_sum_exp, pass};
use crate::element::Element;
use crate::kernel::finish::{HALF, MOST_LANES, PerLane, load, store};
use crate::math::Real;
use crate::rows::{BLOCK, Row};

/// The distributions of some rows, and the places of classes in them.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub struct Statistics {
    /// The log-sum-exps.
    pub log_sum_exps: LogSumExps,
    /// `lse − z(reference)`, a sum of two.
    pub logs: [PerLane<f64>; 2],
    /// The lowest index of the largest logit; 0 for a row of only −∞, and, if there is a NaN, that of the first one.
    pub leader: PerLane<usize>,
    /// The largest logit.
    pub top: PerLane<f64>,
    /// How many classes rank above the one asked for: a larger logit, or the same one at a lower index.
    pub above: PerLane<f64>,
    /// `Σ (z − z(reference))·exp(z − z(reference))`.
    pub weighted: PerLane<f64>,
}

impl Default for Statistics {
    /// Rows of a single class.
    #[inline(always)]
    fn default() -> Self {
        Self {
            log_sum_exps: LogSumExps::default(),
            logs: [[0.0; MOST_LANES]; 2],
            leader: [0; MOST_LANES],
            top: [0.0; MOST_LANES],
            above: [0.0; MOST_LANES],
            weighted: [0.0; MOST_LANES],
        }
    }
}

impl Statistics {
    /// Read the log-sum-exp of a row as number `lane`.
    #[inline(never)]
    pub fn read_log_sum_exp<S: Simd, R: Real + Element<Real = R>>(
        &mut self,
        simd: S,
        lane: usize,
        row: Row,
        transform: Transform,
    ) {
        let found = log_sum_exp::<S, R>(simd, row, transform);
        self.log_sum_exps.set(lane, found);
        [self.logs[0][lane], self.logs[1][lane]] = found.log_total(simd);
    }

    /// Read a row as number `lane`, and rank the class `ranked` in it.
    #[inline(never)]
    pub fn read<S: Simd, R: Real + Element<Real = R>>(
        &mut self,
        simd: S,
        lane: usize,
        row: Row,
        ranked: Option<usize>,
        transform: Transform,
    ) {
        let (found, shape) = pass::<S, R, _>(simd, row, transform, || Shape::new(simd, row, ranked));
        let (top, start) = shape.top;
        let (_, leader) = row.equal_to(simd, start, (row.classes() - start).min(BLOCK), top);
        self.log_sum_exps.set(lane, found);
        [self.logs[0][lane], self.logs[1][lane]] = found.log_total(simd);
        self.leader[lane] = leader.unwrap_or(0);
        self.top[lane] = Real::to_f64(top);
        self.weighted[lane] = shape.weighted.value() / R::BOOST;
        self.above[lane] = shape.above.value();
        if found.total().is_nan() {
            self.leader[lane] = row.find_nan().unwrap_or(self.leader[lane]);
        }
    }

    /// The entropies of the softmax, in nats: `ln total − Σ p·(z − z(reference))`, neither of which is negative where
    /// the reference leads.
    #[inline(never)]
    pub fn entropies<S: Simd>(&self, simd: S, rows: usize) -> PerLane<f64> {
        simd.vectorize(
            #[inline(always)]
            || {
                let mut entropies = [0.0; MOST_LANES];
                for half in (0..rows).step_by(HALF) {
                    let found = &self.log_sum_exps;
                    let total = load(simd, &found.own, half) + load(simd, &found.others, half);
                    let distance = load(simd, &self.weighted, half) / total;
                    store(load(simd, &self.logs[0], half) - distance, &mut entropies, half);
                }
                entropies
            },
        )
    }

    /// `lse − z` for a logit of each row; for 0 the log-sum-exps, −∞ of a row of only −∞.
    #[inline(always)]
    pub fn missed<S: Simd>(&self, simd: S, logits: &PerLane<f64>, rows: usize, transform: Transform) -> PerLane<f64> {
        missed(simd, &self.log_sum_exps.reference, &self.logs, logits, rows, transform)
    }

    /// The probabilities of the largest logits: not `exp(z − lse)`, since of thousands of likely classes lse is 8 or more, and
    /// rounded so.
    #[inline(always)]
    pub fn largest_probabilities<S: Simd>(&self, simd: S, rows: usize, transform: Transform) -> PerLane<f64> {
        probabilities(simd, &self.log_sum_exps, &self.top, rows, transform)
    }
}
