//! What one pass can tell of rows beside their losses.

use fearless_simd::Simd;

use super::Transform;
use super::batch::{HALF, LogSumExps, MOST_LANES, PerLane, load, missed, probabilities, store};
use super::companion::{LaneShape, Shape};
use super::log_sum_exp::pass;
use super::tile::{Tile, pass_with};
use crate::element::Element;
use crate::math::Real;
use crate::rows::{BLOCK, Row};

/// The distributions of some rows, and the places of classes in them.
#[derive(Clone, Copy, Debug)]
pub struct Statistics {
    /// The log-sum-exps.
    pub log_sum_exps: LogSumExps,
    /// The lowest index of the largest logit; 0 for a row of only −∞, and, if there is a NaN, that of the first one.
    pub leader: PerLane<usize>,
    /// How many classes rank above the one asked for: a larger logit, or the same one at a lower index.
    pub above: PerLane<f64>,
    /// The largest logit.
    top: PerLane<f64>,
    /// `Σ (z − z(reference))·exp(z − z(reference))`.
    weighted: PerLane<f64>,
}

impl Default for Statistics {
    /// Rows of a single class.
    fn default() -> Self {
        Self {
            log_sum_exps: LogSumExps::default(),
            leader: [0; MOST_LANES],
            above: [0.0; MOST_LANES],
            top: [0.0; MOST_LANES],
            weighted: [0.0; MOST_LANES],
        }
    }
}

impl Statistics {
    /// Read a row as number `lane`, and rank the class `ranked` in it.
    #[inline(always)]
    pub fn read<S: Simd, E: Element>(
        &mut self,
        simd: S,
        lane: usize,
        row: Row,
        ranked: Option<usize>,
        transform: Transform,
    ) {
        let (found, shape) = pass::<S, E, _>(simd, row, transform, Shape::new(simd, row, ranked));
        let (top, start) = shape.top;
        let (_, leader) = row.equal_to(simd, start, (row.classes() - start).min(BLOCK), top);
        self.log_sum_exps.set(lane, found);
        self.leader[lane] = leader.unwrap_or(0);
        self.top[lane] = Real::to_f64(top);
        self.weighted[lane] = shape.weighted.value() / E::Real::BOOST;
        self.above[lane] = shape.above.value();
        self.find_nan(lane, row);
    }

    /// Read the rows of a tile of an array of `E`s, and rank a class in each.
    #[inline(always)]
    pub fn of_tile<S: Simd, E: Element>(
        simd: S,
        tile: Tile,
        ranked: &PerLane<Option<usize>>,
        transform: Transform,
    ) -> Self {
        let mut found = Self::default();
        let (mut rivals, mut logits) = ([-1.0; MOST_LANES], [f64::INFINITY; MOST_LANES]);
        let mut classes = [0; MOST_LANES];
        for (own, class) in classes.iter_mut().zip(ranked) {
            *own = class.unwrap_or(0);
        }
        let values = tile.pick(&classes);
        for lane in 0..MOST_LANES {
            if let Some(class) = ranked[lane] {
                (rivals[lane], logits[lane]) = (class as f64, values[lane]);
            }
        }
        let shape = LaneShape::<S, E::Real>::new(simd, &rivals, &logits);
        let (log_sum_exps, shape) = pass_with(simd, tile, transform, shape);
        found.log_sum_exps = log_sum_exps;
        E::Real::lane_totals(&shape.weighted, &mut found.weighted);
        E::Real::widen(shape.above, &mut found.above);
        E::Real::widen(shape.top, &mut found.top);
        let mut leaders = [0.0; MOST_LANES];
        E::Real::widen(shape.leader, &mut leaders);
        for (lane, leader) in leaders[..E::Real::LANES].iter().enumerate() {
            found.leader[lane] = *leader as usize;
            found.weighted[lane] /= E::Real::BOOST;
        }
        found
    }

    /// If the row has a NaN, the first one leads.
    #[inline(always)]
    pub fn find_nan(&mut self, lane: usize, row: Row) {
        if self.log_sum_exps.get(lane).total().is_nan() {
            let is_nan = |class: &usize| row.get(*class).is_nan();
            self.leader[lane] = (0..row.classes()).find(is_nan).unwrap_or(self.leader[lane]);
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
                    store(found.log_total(simd, half) - distance, &mut entropies, half);
                }
                entropies
            },
        )
    }

    /// The log-sum-exps, `lse − z` for a logit of each row, and the probabilities of the largest logits.
    #[inline(always)]
    pub fn columns<S: Simd>(
        &self,
        simd: S,
        logits: &PerLane<f64>,
        rows: usize,
        transform: Transform,
    ) -> [PerLane<f64>; 3] {
        let found = &self.log_sum_exps;
        let [values, missed] = missed(simd, found, [&[0.0; MOST_LANES], logits], rows, transform);
        // Not `exp(z − lse)`: of thousands of likely classes lse is 8 or more, and rounded so.
        let leaders = probabilities(simd, found, &self.top, rows, transform);
        [values, missed, leaders]
    }
}
