//! Two models' logits of the same rows: some rows at a time, which stay in the second cache, what is known of each model's
//! (`distribution.rs`), then what is made of both.

use std::ops::Range;

use fearless_simd::Simd;

use super::distribution::{Reading, Use};
use crate::array::Array;
use crate::element::Element;
use crate::kernel::finish::{MOST_LANES, PerLane};
use crate::kernel::stage::{MOST_STAGED, Stage, most_classes};
use crate::math::Real;
use crate::row::{Statistics, Transform};
use crate::rows::BLOCK;

/// Two models.
#[derive(Clone, Copy)]
pub(super) struct Models<'a> {
    pub(super) logits: [&'a Array<'a>; 2],
    /// Whether the classes of a row lie apart in one of them: then all rows go by the kernels for such.
    pub(super) lies_across: bool,
    pub(super) transform: Transform,
    /// Whether log-sum-exps are computed in the type that both compute in together, rather than in each model's own.
    pub(super) together: bool,
}

/// What is known of a row of a model.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct OfRow {
    /// The negative log-probability of the target.
    pub(super) loss: f64,
    /// A logit that none exceeds by much, and by how much the log-sum-exp is above it, as a sum of two.
    pub(super) reference: f64,
    pub(super) log: [f64; 2],
    /// Whether the log-sum-exp is a number.
    pub(super) is_finite: bool,
}

/// What becomes of some rows of both models.
pub(super) trait Pairs {
    /// Whether log-sum-exps are relative to the largest logits: else to what all rows that are read together allow, so that garbage
    /// in one that does not count may change the last bits of others.
    const LEADS: bool;

    /// The targets of some rows, no more than there are lanes, if there are any.
    #[inline(always)]
    fn targets(&self, _rows: Range<usize>) -> Option<PerLane<Option<usize>>> {
        None
    }

    /// Take some rows as tiles on a stage; whether there was memory for it.
    fn staged<S: Simd, R: Real + Element<Real = R>>(&mut self, simd: S, rows: Range<usize>, known: &Known) -> bool;

    /// Take some rows one by one.
    fn one_by_one<S: Simd, R: Real + Element<Real = R>>(&mut self, simd: S, rows: Range<usize>, known: &Known);
}

/// So many bytes of both models' rows are read twice.
const BYTES: usize = 1 << 19;

impl Models<'_> {
    /// Whether rows come on a stage: those of few classes, and those whose classes lie apart, if both models' logits compute in
    /// the same type.
    #[inline(always)]
    fn is_staged<R: Real + Element<Real = R>>(&self) -> bool {
        let classes = self.logits[0].classes();
        let is_alike = self.logits.iter().all(|logits| computes_in::<R>(logits));
        is_alike && (classes <= most_classes::<R>() || classes <= MOST_STAGED && self.lies_across)
    }

    /// Take some rows, which compute in `R` together.
    #[inline(always)]
    pub(super) fn take<S: Simd, R: Real + Element<Real = R>, P: Pairs>(
        &self,
        simd: S,
        range: Range<usize>,
        pairs: &mut P,
    ) {
        let [reference, candidate] = self.logits;
        let bytes = reference.classes().saturating_mul(reference.dtype().size() + candidate.dtype().size());
        let together = (BYTES / bytes).clamp(1, BLOCK);
        let is_staged = self.is_staged::<R>();
        let together = if is_staged { together.next_multiple_of(R::LANES) } else { together };
        let mut known = Known { first: 0, rows: [Vec::new(), Vec::new()] };
        for first in range.clone().step_by(together) {
            let rows = first..range.end.min(first + together);
            known.first = rows.start;
            for (logits, of_model) in self.logits.into_iter().zip(&mut known.rows) {
                of_model.resize(rows.len(), OfRow::default());
                let (transform, first) = (self.transform, rows.start);
                let mut reader = Reader { pairs: &*pairs, logits, transform, first, rows: of_model };
                if self.together && !computes_in::<R>(logits) {
                    reader.read_carefully::<S, R>(simd, rows.clone());
                } else {
                    let settled = Some(self.lies_across);
                    Reading { range: rows.clone(), logits, transform, normalized: None, settled }
                        .run(simd, &mut reader);
                }
            }
            let at_a_time = if is_staged { Stage::<R>::tiles(reference.classes()) * R::LANES } else { R::LANES };
            for first in rows.clone().step_by(at_a_time) {
                let some = first..rows.end.min(first + at_a_time);
                if !is_staged || !pairs.staged::<S, R>(simd, some.clone(), &known) {
                    pairs.one_by_one::<S, R>(simd, some, &known);
                }
            }
        }
    }
}

/// Whether logits compute in `R`.
#[inline(always)]
fn computes_in<R: Real>(logits: &Array) -> bool {
    logits.dtype().is_double() == (R::LANES == f64::LANES)
}

/// What is known of some rows of both models.
pub(super) struct Known {
    first: usize,
    rows: [Vec<OfRow>; 2],
}

impl Known {
    /// What is known of some of the rows.
    #[inline(always)]
    pub(super) fn of(&self, rows: Range<usize>) -> [&[OfRow]; 2] {
        let here = rows.start - self.first..rows.end - self.first;
        [&self.rows[0][here.clone()], &self.rows[1][here]]
    }
}

/// Reads some rows of a model.
struct Reader<'a, P> {
    pairs: &'a P,
    logits: &'a Array<'a>,
    transform: Transform,
    first: usize,
    rows: &'a mut [OfRow],
}

impl<P: Pairs> Reader<'_, P> {
    /// Read rows by the kernels that look for the maximum, which compute in `R` whatever the logits are.
    #[inline(never)]
    fn read_carefully<S: Simd, R: Real + Element<Real = R>>(&mut self, simd: S, rows: Range<usize>) {
        for first in rows.clone().step_by(MOST_LANES) {
            let (some, mut known) = (first..rows.end.min(first + MOST_LANES), Statistics::default());
            for (lane, row) in some.clone().enumerate() {
                known.read_log_sum_exp::<S, R>(simd, lane, self.logits.row(row), self.transform);
            }
            self.take(simd, some, &known);
        }
    }
}

impl<P: Pairs> Use for Reader<'_, P> {
    const LEADERS: bool = P::LEADS;
    const SHAPES: bool = false;

    /// Relative to the target's exponential, its log-probability is right to the last digits.
    #[inline(always)]
    fn own(&self, rows: Range<usize>) -> Option<PerLane<usize>> {
        let mut own = [0; MOST_LANES];
        for (own, class) in own.iter_mut().zip(self.pairs.targets(rows)?) {
            *own = class.unwrap_or(0);
        }
        Some(own)
    }

    #[inline(always)]
    fn take<S: Simd>(&mut self, simd: S, rows: Range<usize>, known: &Statistics) {
        let (targets, count) = (self.pairs.targets(rows.clone()), rows.len());
        let classes = targets.unwrap_or([None; MOST_LANES]);
        let mut of_targets = [0.0; MOST_LANES];
        for (lane, class) in classes.iter().enumerate() {
            if let Some(class) = class {
                of_targets[lane] = self.logits.row(rows.start + lane).get(*class);
            }
        }
        let missed =
            if targets.is_some() { known.missed(simd, &of_targets, count, self.transform) } else { [0.0; MOST_LANES] };
        let to = &mut self.rows[rows.start - self.first..rows.end - self.first];
        for (lane, to) in to.iter_mut().enumerate() {
            let found = known.log_sum_exps.get(lane);
            *to = OfRow {
                loss: if classes[lane].is_some() { missed[lane] } else { 0.0 },
                reference: found.reference,
                log: [known.logs[0][lane], known.logs[1][lane]],
                is_finite: found.total() > 0.0 && found.total().is_finite(),
            };
        }
    }
}
