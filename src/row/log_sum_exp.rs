//! The first verb: one pass over a row's logits, for its log-sum-exp and for what else is summed on the way.

use std::ops::Range;

use fearless_simd::{Simd, f64x8, prelude::*};

use super::Transform;
use super::companion::{Companion, Nothing, Raise, Term};
use super::transform::{CAPPED, Capped, Factors, Scale, Value, with_mode};
use crate::element::Element;
use crate::kernel::finish::{HALF, MOST_LANES, PerLane, load, store};
use crate::math::{
    Boost, Real, Total, Twice, argument_of_sums, exp, log_one_plus, regrow, shrinkage, with_vectors_at_a_time,
};
use crate::parallel::in_pieces;
use crate::rows::{BLOCK, Row};

/// `log Σ exp z` in parts: it is `z(reference) + ln(own + others)`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LogSumExp {
    /// A logit: that of a class, or the lowest finite number if all are masked.
    pub reference: f64,
    /// `Σ exp(z − z(reference))` over all classes except one that attains the reference.
    pub others: f64,
    /// Whether every class is masked.
    pub masked: bool,
}

impl LogSumExp {
    /// From the largest logit that served as the reference, −∞ if there was none.
    #[inline(always)]
    pub(super) fn new<R: Real>(reference: R, others: f64) -> Self {
        let reference = reference.to_f64();
        Self { reference: reference.max(R::LOWEST.to_f64()), others, masked: reference == f64::NEG_INFINITY }
    }

    /// The sum's own term: 1, nothing if all classes are masked, and NaN for a logit of +∞.
    pub fn own(self) -> f64 {
        match self {
            Self { masked: true, .. } => 0.0,
            Self { reference, .. } if reference.is_finite() => 1.0,
            _ => f64::NAN,
        }
    }

    /// `Σ exp(z − z(reference))` over all classes.
    pub fn total(self) -> f64 {
        self.own() + self.others
    }

    /// Whether the reference's class may hold so much of the mass that lanes cannot tell the rest.
    #[inline(always)]
    pub(super) fn is_led(self) -> bool {
        self.others < 0.5 && !self.masked
    }

    /// Its logarithm, in which others that are far fewer keep their digits, as a sum of two.
    #[inline]
    pub fn log_total<S: Simd>(self, simd: S) -> [f64; 2] {
        let [own, others] = [self.own(), self.others];
        simd.vectorize(
            #[inline(always)]
            || {
                let lanes = |value: f64| f64x8::splat(simd, value);
                let [log, lost] = log_total(simd, lanes(own), lanes(others));
                [log.as_slice()[0], lost.as_slice()[0]]
            },
        )
    }
}

/// The log-sum-exps of some rows, in the parts of [`LogSumExp`].
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub struct LogSumExps {
    /// Logits, close to the largest of each row.
    pub reference: PerLane<f64>,
    /// The terms of the references: 1, 0 in a row without mass, NaN in a row with a logit of +∞.
    pub own: PerLane<f64>,
    /// The sums of all other terms.
    pub others: PerLane<f64>,
}

impl Default for LogSumExps {
    /// Rows of a single class.
    #[inline(always)]
    fn default() -> Self {
        Self { reference: [0.0; MOST_LANES], own: [1.0; MOST_LANES], others: [0.0; MOST_LANES] }
    }
}

impl LogSumExps {
    /// Row number `lane`.
    #[inline(always)]
    pub fn get(&self, lane: usize) -> LogSumExp {
        LogSumExp { reference: self.reference[lane], others: self.others[lane], masked: self.own[lane] == 0.0 }
    }

    /// Set row number `lane`.
    #[inline(always)]
    pub fn set(&mut self, lane: usize, found: LogSumExp) {
        (self.reference[lane], self.own[lane], self.others[lane]) = (found.reference, found.own(), found.others);
    }

    /// [`LogSumExp::is_led`] of row number `lane`.
    #[inline(always)]
    pub(super) fn is_led(&self, lane: usize) -> bool {
        self.get(lane).is_led()
    }

    /// `ln total` of each row as a sum of two, so accurate that it need not be close to zero where others are few.
    #[inline(always)]
    pub(super) fn log_total<S: Simd>(&self, simd: S, half: usize) -> Twice<S> {
        log_total(simd, load(simd, &self.own, half), load(simd, &self.others, half))
    }
}

/// `ln(own + others)` as a sum of two, for an own term of 1, 0 or NaN.
#[inline(always)]
fn log_total<S: Simd>(simd: S, own: f64x8<S>, others: f64x8<S>) -> Twice<S> {
    let lanes = |value: f64| f64x8::splat(simd, value);
    // Beside no own term there are no others, but for a NaN.
    let nothing = own.simd_eq(lanes(0.0)).select(lanes(f64::NEG_INFINITY) + others, own);
    let ([log, lost], one) = (log_one_plus(simd, others), own.simd_eq(lanes(1.0)));
    [one.select(log, nothing), one.select(lost, lanes(0.0))]
}

/// `ln total` of each row.
#[inline(never)]
pub(super) fn log_totals<S: Simd>(simd: S, found: &LogSumExps, rows: usize) -> PerLane<f64> {
    simd.vectorize(
        #[inline(always)]
        || {
            let mut logs = [0.0; MOST_LANES];
            for half in (0..rows).step_by(HALF) {
                store(found.log_total(simd, half)[0], &mut logs, half);
            }
            logs
        },
    )
}

/// `log Σ exp z` over the classes of a row.
#[inline(always)]
pub fn log_sum_exp<S: Simd, R: Real + Element<Real = R>>(simd: S, row: Row, transform: Transform) -> LogSumExp {
    pass::<S, R, _>(simd, row, transform, || Nothing).0
}

/// [`log_sum_exp`], and what a companion saw on the way; each piece of a long row has its own.
#[inline(always)]
pub(super) fn pass<S: Simd, R: Real + Element<Real = R>, C: Companion<S, R> + Send + Sync>(
    simd: S,
    row: Row,
    transform: Transform,
    companion: impl Fn() -> C + Sync,
) -> (LogSumExp, C) {
    let of_piece = |part: Range<usize>| with_mode!(transform, MODE => pass_by_blocks::<S, R, C, MODE>(simd, row, part.clone(), transform, companion()));
    let (sums, companion) = in_pieces(row.classes(), of_piece, |(sums, companion), next| {
        sums.merge(simd, transform, companion, next);
    });
    (sums.finish(), companion)
}

/// What the pass carries from block to block. Exponentials are boosted, so that a leader's distant followers count.
struct Sums<S: Simd, R: Real> {
    /// −∞ as long as there are only masked classes.
    reference: R,
    /// The reference, capped, once that is known.
    capped: Option<Value<S, R>>,
    /// The reference's own class does not count.
    sum: Total<S>,
}

impl<S: Simd, R: Real> Sums<S, R> {
    #[inline(always)]
    fn new(simd: S) -> Self {
        Self { reference: R::from_f64(f64::NEG_INFINITY), capped: None, sum: Total::zero(simd) }
    }

    /// What no logit may exceed: a slack of one above the reference, in units of x, since a cap only brings logits closer.
    #[inline(always)]
    fn limit(&self, transform: Transform) -> R {
        let (reference, slack) = (self.reference.to_f64(), transform.temperature());
        let limit = R::from_f64(reference + slack);
        if limit.to_f64() - reference > slack { limit.next_smaller() } else { limit }
    }

    /// Make another logit the reference, whose own term is not among these.
    #[inline(always)]
    fn refer_to<C: Companion<S, R>>(&mut self, simd: S, transform: Transform, to: R, companion: &mut C) {
        let from = self.reference.to_f64();
        // Before the first there is nothing to rescale.
        if from > f64::NEG_INFINITY {
            let [high, low] = transform.difference(simd, from, to.to_f64());
            let moved = high + low;
            let factor = exp(simd, moved * (1.0 - shrinkage::<S, R>()));
            self.sum.add_scalar(R::BOOST);
            companion.raise(|| {
                let [from, to] = [from, to.to_f64()].map(|x| transform.capped(simd, x));
                Raise { from, to, moved, factor, sum: self.sum.value() }
            });
            R::scale(&mut self.sum, factor);
        }
        (self.reference, self.capped) = (to, None);
    }

    /// Take in the sums of another piece, and what its companion saw.
    #[inline(never)]
    fn merge<C: Companion<S, R>>(
        &mut self,
        simd: S,
        transform: Transform,
        companion: &mut C,
        (mut other, mut seen): (Self, C),
    ) {
        simd.vectorize(
            #[inline(always)]
            || {
                if other.reference > self.limit(transform) {
                    self.refer_to(simd, transform, other.reference, companion);
                } else {
                    other.refer_to(simd, transform, self.reference, &mut seen);
                }
                self.sum.add::<R>(other.sum);
                companion.merge(seen);
            },
        );
    }

    #[inline(always)]
    fn finish(self) -> LogSumExp {
        LogSumExp::new(self.reference, regrow::<S, R>(self.sum.value() / R::BOOST))
    }
}

/// The pass over blocks of a part, that were read, and capped, before.
#[inline(never)]
fn pass_by_blocks<S: Simd, R: Real + Element<Real = R>, C: Companion<S, R>, const MODE: u8>(
    simd: S,
    row: Row,
    part: Range<usize>,
    transform: Transform,
    mut companion: C,
) -> (Sums<S, R>, C) {
    simd.vectorize(
        #[inline(always)]
        || {
            let mut sums = Sums::new(simd);
            let scale = Scale::new(simd, transform);
            let mut copy = Aligned([R::default(); BLOCK]);
            let mut capped = Capped::default();
            for start in part.clone().step_by(BLOCK) {
                let length = (part.end - start).min(BLOCK);
                let block = Block { transform, scale, start, length };
                let logits = if let Some(cap) = scale.cap::<MODE>() {
                    row.read(simd, start, length, &mut copy.0);
                    cap.fill::<_, _, false>(simd, &copy.0[..block.vectors() * R::LANES], &mut capped);
                    copy.0.as_ptr()
                } else {
                    row.lend(simd, start, length, &mut copy.0)
                };
                let logits = Lent { place: logits, capped: &capped };
                companion.begin(simd, start, length);
                let raised = block.raise(simd, &logits, &mut sums, &mut companion);
                block.add::<C, MODE>(simd, &logits, raised, &mut sums, &mut companion);
            }
            (sums, companion)
        },
    )
}

/// On a boundary of cache lines.
#[repr(align(64))]
struct Aligned<T>(T);

/// The logits of a block where they were lent, padded with masked classes, and capped where they are.
struct Lent<'a, R> {
    place: *const R,
    capped: &'a Capped<R, BLOCK>,
}

impl<R: Real + Element<Real = R>> Lent<'_, R> {
    /// A vector of the logits as they came.
    #[inline(always)]
    fn load<S: Simd>(&self, simd: S, vector: usize) -> R::Lanes<S> {
        // SAFETY: `vector` stays below the block's vectors, all of which were lent.
        unsafe { Element::load(simd, self.place.add(vector * R::LANES)) }
    }

    /// The same, capped if they are.
    #[inline(always)]
    fn value<S: Simd, const MODE: u8>(&self, simd: S, vector: usize) -> Value<S, R> {
        if MODE == CAPPED { Value::capped(simd, self.capped, vector) } else { Value::plain(self.load(simd, vector)) }
    }
}

/// What a block needs to know.
struct Block<S: Simd, R: Real> {
    transform: Transform,
    scale: Scale<S, R>,
    start: usize,
    length: usize,
}

impl<S: Simd, R: Real + Element<Real = R>> Block<S, R> {
    /// The vectors of the block, padded to a multiple of four.
    #[inline(always)]
    fn vectors(&self) -> usize {
        self.length.div_ceil(4 * R::LANES) * 4
    }

    /// Raise the reference, if the block needs that; whether it did.
    #[inline(always)]
    fn raise<C: Companion<S, R>>(&self, simd: S, logits: &Lent<R>, sums: &mut Sums<S, R>, companion: &mut C) -> bool {
        let splat = |value| R::Lanes::<S>::simd_from(simd, value);
        let load = |vector| logits.load(simd, vector);
        let mut largest = [load(0), load(1), load(2), load(3)];
        for vector in (4..self.vectors()).step_by(4) {
            for (chain, largest) in largest.iter_mut().enumerate() {
                *largest = largest.max(load(vector + chain));
            }
        }
        let largest = largest[0].max(largest[1]).max(largest[2].max(largest[3]));
        companion.largest(simd, largest, self.start);
        // The first logit that is not masked is a reference at once.
        if !largest.simd_gt(splat(sums.limit(self.transform))).any_true() {
            return false;
        }
        sums.refer_to(simd, self.transform, R::largest(largest), companion);
        true
    }

    /// Add the exponentials. If the reference was just `raised`, its own term, and that of every logit equal to it, is counted
    /// apart.
    #[inline(always)]
    fn add<C: Companion<S, R>, const MODE: u8>(
        &self,
        simd: S,
        logits: &Lent<R>,
        raised: bool,
        sums: &mut Sums<S, R>,
        companion: &mut C,
    ) {
        with_vectors_at_a_time!(S, K => self.add_vectors::<C, MODE, K>(simd, logits, raised, sums, companion));
    }

    /// [`Self::add`], `K` vectors at a time; the order of the sums is the same for each `K`.
    #[inline(always)]
    fn add_vectors<C: Companion<S, R>, const MODE: u8, const K: usize>(
        &self,
        simd: S,
        logits: &Lent<R>,
        raised: bool,
        sums: &mut Sums<S, R>,
        companion: &mut C,
    ) {
        let found = Real::to_f64(sums.reference);
        // Of masked classes alone the lowest number, so that it can be subtracted.
        let subtracted = found.max(Real::to_f64(R::LOWEST));
        let reference = R::splat(simd, subtracted);
        // A cap takes its time.
        let reference = if MODE == CAPPED {
            *sums.capped.get_or_insert_with(
                #[inline(always)]
                || self.scale.value::<MODE>(reference),
            )
        } else {
            Value::plain(reference)
        };
        let zero = R::splat(simd, 0.0);
        // Nothing is equal to NaN.
        let own = R::splat(simd, if raised { found } else { f64::NAN });
        let (mut sum, mut equal) = ([zero; 4], 0);
        companion.begin_sums(simd);
        let vectors = self.vectors();
        for start in (0..vectors).step_by(K) {
            let mut x = [zero; K];
            let mut values = [Value::plain(zero); K];
            // Asked before the exponentials: they need the registers.
            let mut is_own = [zero.simd_eq(own); K];
            for k in 0..K {
                x[k] = logits.load(simd, start + k);
                values[k] = logits.value::<S, MODE>(simd, start + k);
            }
            // Counted together: one by one the compiler makes vectors of the counts.
            let mut bits = 0;
            for k in 0..K {
                is_own[k] = x[k].simd_eq(own);
                bits |= is_own[k].to_bitmask() << (k * R::LANES);
            }
            equal += bits.count_ones();
            let Factors { exp, mut power, z } =
                self.scale.factors::<MODE, K>(values, reference, Boost::Full, argument_of_sums::<S>());
            for k in 0..K {
                power[k] = is_own[k].select(zero, power[k]);
                let chain = (start + k) % 4;
                sum[chain] = exp[k].mul_add(power[k], sum[chain]);
                let term = Term { x: x[k], exp: exp[k] * power[k], z: z[k] };
                companion.add(simd, start + k, chain, term);
            }
        }
        R::add_to(&mut sums.sum, (sum[0] + sum[1]) + (sum[2] + sum[3]));
        if raised {
            sums.sum.add_scalar((f64::from(equal) - 1.0) * R::BOOST);
        }
        companion.values(
            simd,
            0..vectors,
            self.length,
            #[inline(always)]
            |vector| logits.value::<S, MODE>(simd, vector),
            reference,
        );
        companion.end_sums();
    }
}
