//! The first verb: one pass over a row's logits, for its log-sum-exp and for what else is summed on the way.

use fearless_simd::{Simd, f64x8, prelude::*};

use super::companion::{Companion, Nothing, Raise, Term};
use super::transform::{CAPPED, Capped, Factors, PLAIN, SCALED, Scale, Value, with_mode};
use super::{Transform, batch};
use crate::element::Element;
use crate::math::{Boost, Real, Total, argument_of_sums, exp, regrow, shrinkage, with_vectors_at_a_time};
use crate::rows::{BLOCK, Row, Scratch};
use crate::simd::prefetch_ahead;

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

    /// Its logarithm, in which others that are far fewer keep their digits.
    #[inline]
    pub fn log_total<S: Simd>(self, simd: S) -> f64 {
        let [own, others] = [self.own(), self.others];
        simd.vectorize(
            #[inline(always)]
            || {
                let lanes = |value: f64| f64x8::splat(simd, value);
                batch::log_total(simd, lanes(own), lanes(others)).as_slice()[0]
            },
        )
    }
}

/// `log Σ exp z` over the classes of a row.
#[inline(always)]
pub fn log_sum_exp<S: Simd, E: Element>(simd: S, row: Row, transform: Transform) -> LogSumExp {
    pass::<S, E, _>(simd, row, transform, Nothing).0
}

/// [`log_sum_exp`], and what a companion saw on the way: in place where logits are not capped.
#[inline(always)]
pub(super) fn pass<S: Simd, E: Element, C: Companion<S, E::Real>>(
    simd: S,
    row: Row,
    transform: Transform,
    companion: C,
) -> (LogSumExp, C) {
    match transform.mode() {
        PLAIN => pass_in_place::<S, E, C, PLAIN>(simd, row, transform, companion),
        SCALED => pass_in_place::<S, E, C, SCALED>(simd, row, transform, companion),
        _ => pass_by_blocks::<S, E::Real, C, CAPPED>(simd, row, transform, companion),
    }
}

/// [`pass`] by blocks, for companions that are worth no kernel for each storage type.
#[inline(always)]
pub(super) fn any_pass<S: Simd, R: Real + Element<Real = R>, C: Companion<S, R>>(
    simd: S,
    row: Row,
    transform: Transform,
    companion: C,
) -> (LogSumExp, C) {
    with_mode!(transform, MODE => pass_by_blocks::<S, R, C, MODE>(simd, row, transform, companion))
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

    #[inline(always)]
    fn finish(self) -> LogSumExp {
        LogSumExp::new(self.reference, regrow::<S, R>(self.sum.value() / R::BOOST))
    }
}

/// The pass over the caller's memory: a function of its own, so that it is compiled once and not into every driver.
#[inline(never)]
fn pass_in_place<S: Simd, E: Element, C: Companion<S, E::Real>, const MODE: u8>(
    simd: S,
    row: Row,
    transform: Transform,
    mut companion: C,
) -> (LogSumExp, C) {
    assert_eq!(row.dtype(), E::DTYPE);
    simd.vectorize(
        #[inline(always)]
        || {
            let mut sums = Sums::new(simd);
            let scale = Scale::new(simd, transform);
            let mut scratch = Scratch::<E>::new();
            for start in (0..row.classes()).step_by(BLOCK) {
                let length = (row.classes() - start).min(BLOCK);
                prefetch_ahead(row.pointer::<E>(start).cast(), BLOCK * size_of::<E>());
                let block = Block { transform, scale, start, length };
                let logits = if length == BLOCK && row.is_contiguous() {
                    InPlace(row.pointer::<E>(start))
                } else {
                    InPlace(scratch.fill(simd, row, start, length, block.vectors() * E::Real::LANES).as_ptr())
                };
                companion.begin(simd, start, length);
                block.add_all::<_, C, MODE>(simd, &logits, &mut sums, &mut companion);
            }
            (sums.finish(), companion)
        },
    )
}

/// The pass over blocks that were read, and capped, before.
#[inline(never)]
fn pass_by_blocks<S: Simd, R: Real + Element<Real = R>, C: Companion<S, R>, const MODE: u8>(
    simd: S,
    row: Row,
    transform: Transform,
    mut companion: C,
) -> (LogSumExp, C) {
    simd.vectorize(
        #[inline(always)]
        || {
            let mut sums = Sums::new(simd);
            let scale = Scale::new(simd, transform);
            let mut copy = Aligned([R::default(); BLOCK]);
            let mut capped = Capped::default();
            for start in (0..row.classes()).step_by(BLOCK) {
                let length = (row.classes() - start).min(BLOCK);
                let block = Block { transform, scale, start, length };
                let logits = if let Some(cap) = scale.cap::<MODE>() {
                    row.read(simd, start, length, &mut copy.0);
                    cap.fill::<_, _, false>(simd, &copy.0[..block.vectors() * R::LANES], &mut capped);
                    copy.0.as_ptr()
                } else {
                    row.lend(simd, start, length, &mut copy.0)
                };
                let logits = Lent { logits: InPlace(logits), capped: &capped };
                companion.begin(simd, start, length);
                block.add_all::<_, C, MODE>(simd, &logits, &mut sums, &mut companion);
            }
            (sums.finish(), companion)
        },
    )
}

/// Where the vectors of a block are.
trait Logits<S: Simd, R: Real> {
    /// A vector of the logits as they came.
    fn load(&self, simd: S, vector: usize) -> R::Lanes<S>;

    /// The same, capped if they are.
    fn value<const MODE: u8>(&self, simd: S, vector: usize) -> Value<S, R>;
}

/// In memory, the caller's or a copy: its maker saw to it that the vectors of the block are readable, the last padded with
/// masked classes.
struct InPlace<E>(*const E);

impl<S: Simd, E: Element> Logits<S, E::Real> for InPlace<E> {
    #[inline(always)]
    fn load(&self, simd: S, vector: usize) -> <E::Real as Real>::Lanes<S> {
        // SAFETY: `vector` stays below the block's vectors, which are readable by the maker's promise.
        unsafe { E::load(simd, self.0.add(vector * E::Real::LANES)) }
    }

    #[inline(always)]
    fn value<const MODE: u8>(&self, simd: S, vector: usize) -> Value<S, E::Real> {
        Value::plain(self.load(simd, vector))
    }
}

/// In memory or in a copy, and capped where they are.
struct Lent<'a, R> {
    logits: InPlace<R>,
    capped: &'a Capped<R, BLOCK>,
}

/// On a boundary of cache lines.
#[repr(align(64))]
struct Aligned<T>(T);

impl<S: Simd, R: Real + Element<Real = R>> Logits<S, R> for Lent<'_, R> {
    #[inline(always)]
    fn load(&self, simd: S, vector: usize) -> R::Lanes<S> {
        self.logits.load(simd, vector)
    }

    #[inline(always)]
    fn value<const MODE: u8>(&self, simd: S, vector: usize) -> Value<S, R> {
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

impl<S: Simd, R: Real> Block<S, R> {
    /// The vectors of the block, padded to a multiple of four.
    #[inline(always)]
    fn vectors(&self) -> usize {
        self.length.div_ceil(4 * R::LANES) * 4
    }

    /// Raise the reference, if the block needs that; whether it did.
    #[inline(always)]
    fn raise<L: Logits<S, R>, C: Companion<S, R>>(
        &self,
        simd: S,
        logits: &L,
        sums: &mut Sums<S, R>,
        companion: &mut C,
    ) -> bool {
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
        // The slack of one, in units of x: a cap only brings logits closer. The first logit that is not masked is a
        // reference at once.
        let (reference, slack) = (sums.reference.to_f64(), self.transform.temperature());
        let limit = R::from_f64(reference + slack);
        let limit = if limit.to_f64() - reference > slack { limit.next_smaller() } else { limit };
        if !largest.simd_gt(splat(limit)).any_true() {
            return false;
        }
        let raised = R::largest(largest);
        // Before the first there is nothing to rescale.
        if sums.reference.to_f64() > f64::NEG_INFINITY {
            let [high, low] = self.transform.difference(simd, sums.reference.to_f64(), raised.to_f64());
            let moved = high + low;
            let factor = exp(simd, moved * (1.0 - shrinkage::<S, R>()));
            sums.sum.add_scalar(R::BOOST);
            companion.raise(|| {
                let [from, to] = [sums.reference, raised].map(|x| self.transform.capped(simd, x.to_f64()));
                Raise { from, to, moved, factor, sum: sums.sum.value() }
            });
            R::scale(&mut sums.sum, factor);
        }
        (sums.reference, sums.capped) = (raised, None);
        true
    }

    /// Raise the reference if need be, and add the exponentials: in most blocks every element counts alike.
    #[inline(always)]
    fn add_all<L: Logits<S, R>, C: Companion<S, R>, const MODE: u8>(
        &self,
        simd: S,
        logits: &L,
        sums: &mut Sums<S, R>,
        companion: &mut C,
    ) {
        if self.raise(simd, logits, sums, companion) {
            self.add::<L, C, MODE, true, false>(simd, logits, sums, companion);
        } else if self.length == BLOCK {
            self.add::<L, C, MODE, false, true>(simd, logits, sums, companion);
        } else {
            self.add::<L, C, MODE, false, false>(simd, logits, sums, companion);
        }
    }

    /// Add the exponentials. If the reference was just `RAISED`, its own term, and that of every logit equal to it, is
    /// counted apart. A `WHOLE` block has as many vectors as the compiler knows.
    #[inline(always)]
    fn add<L: Logits<S, R>, C: Companion<S, R>, const MODE: u8, const RAISED: bool, const WHOLE: bool>(
        &self,
        simd: S,
        logits: &L,
        sums: &mut Sums<S, R>,
        companion: &mut C,
    ) {
        with_vectors_at_a_time!(S, K => {
            self.add_groups::<L, C, MODE, RAISED, WHOLE, K>(simd, logits, sums, companion);
        });
    }

    /// [`Self::add`], `K` vectors at a time; the order of the sums is the same for each `K`.
    #[inline(always)]
    fn add_groups<
        L: Logits<S, R>,
        C: Companion<S, R>,
        const MODE: u8,
        const RAISED: bool,
        const WHOLE: bool,
        const K: usize,
    >(
        &self,
        simd: S,
        logits: &L,
        sums: &mut Sums<S, R>,
        companion: &mut C,
    ) {
        let found = sums.reference.to_f64();
        // Of masked classes alone the lowest number, so that it can be subtracted.
        let subtracted = found.max(R::LOWEST.to_f64());
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
        let own = R::splat(simd, found);
        let (mut sum, mut equal) = ([zero; 4], 0);
        companion.begin_sums(simd);
        let vectors = if WHOLE { BLOCK / R::LANES } else { self.vectors() };
        for start in (0..vectors).step_by(K) {
            let mut x = [zero; K];
            let mut values = [Value::plain(zero); K];
            // Asked before the exponentials: they need the registers.
            let mut is_own = [zero.simd_eq(own); K];
            for k in 0..K {
                x[k] = logits.load(simd, start + k);
                values[k] = logits.value::<MODE>(simd, start + k);
            }
            if RAISED {
                // Counted together: one by one the compiler makes vectors of the counts.
                let mut bits = 0;
                for k in 0..K {
                    is_own[k] = x[k].simd_eq(own);
                    bits |= is_own[k].to_bitmask() << (k * R::LANES);
                }
                equal += bits.count_ones();
            }
            let Factors { exp, mut power, z } =
                self.scale.factors::<MODE, K>(values, reference, Boost::Full, argument_of_sums::<S>());
            for k in 0..K {
                if RAISED {
                    power[k] = is_own[k].select(zero, power[k]);
                }
                let chain = (start + k) % 4;
                sum[chain] = exp[k].mul_add(power[k], sum[chain]);
                let term = Term { x: x[k], exp: exp[k] * power[k], z: z[k] };
                companion.add(simd, start + k, chain, term);
            }
        }
        R::add_to(&mut sums.sum, (sum[0] + sum[1]) + (sum[2] + sum[3]));
        if RAISED {
            sums.sum.add_scalar((f64::from(equal) - 1.0) * R::BOOST);
        }
        companion.values(
            simd,
            0..vectors,
            if WHOLE { BLOCK } else { self.length },
            #[inline(always)]
            |vector| logits.value::<MODE>(simd, vector),
            reference,
        );
        companion.end_sums();
    }
}
