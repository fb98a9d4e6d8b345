//! What else is summed while a row, or a tile of rows, is read for its log-sum-exp.
//!
//! The target's share of the loss is `Σ t·(lse − z) = mass·ln total − Σ t·(z − z(reference))`, so a pass that knows the
//! targets sums the second part on its way. Sums are kept in units of the (capped) logits, before any division by T.

use std::ops::Range;

use fearless_simd::{Simd, f64x8, prelude::*};

use super::transform::Value;
use crate::element::Element;
use crate::math::{Real, Total, Twice, UNIT, lane_numbers};
use crate::rows::{BLOCK, Row};

/// A vector of the pass.
pub(super) struct Term<S: Simd, R: Real> {
    /// The logits.
    pub(super) x: R::Lanes<S>,
    /// `exp(z − z(reference))`, boosted, in rows of the shrunk argument; 0 for the reference's own class.
    pub(super) exp: R::Lanes<S>,
    /// `z − z(reference)`, clamped to where its exponential is 0.
    pub(super) z: R::Lanes<S>,
}

/// The pass changes its reference.
pub(super) struct Raise {
    /// The capped logits, each a sum of two.
    pub(super) from: [f64; 2],
    pub(super) to: [f64; 2],
    /// `z(from) − z(to)`.
    pub(super) moved: f64,
    /// Its exponential.
    pub(super) factor: f64,
    /// The sum of boosted exponentials so far, all classes counted.
    pub(super) sum: f64,
}

impl Raise {
    /// What is to be added to `value − reference`, in units of [`UNIT`].
    fn step(&self) -> f64 {
        (self.from[0] / UNIT - self.to[0] / UNIT) + (self.from[1] - self.to[1]) / UNIT
    }
}

/// Accumulates extra sums during the log-sum-exp pass.
pub(super) trait Companion<S: Simd, R: Real>: Sized {
    /// A block of `length` classes from `start` on comes.
    #[inline(always)]
    fn begin(&mut self, _simd: S, _start: usize, _length: usize) {}
    /// The largest logits, lane by lane, of the block from `start` on.
    #[inline(always)]
    fn largest(&mut self, _simd: S, _largest: R::Lanes<S>, _start: usize) {}
    /// The reference changes.
    #[inline(always)]
    fn raise(&mut self, _raise: impl FnOnce() -> Raise) {}
    /// Take in what was summed of another piece of the row, relative to the same reference.
    #[inline(always)]
    fn merge(&mut self, _other: Self) {}
    /// Sums of a block begin.
    #[inline(always)]
    fn begin_sums(&mut self, _simd: S) {}
    /// Vector number `vector` of the block, in one of four chains.
    #[inline(always)]
    fn add(&mut self, _simd: S, _vector: usize, _chain: usize, _term: Term<S, R>) {}
    /// Sums of the block end.
    #[inline(always)]
    fn end_sums(&mut self) {}
    /// Called after the exponential loop, in its own loop, to keep register pressure low. Of the lanes of the block the
    /// first `count` count.
    #[inline(always)]
    fn values(
        &mut self,
        _simd: S,
        _vectors: Range<usize>,
        _count: usize,
        _value: impl Fn(usize) -> Value<S, R>,
        _reference: Value<S, R>,
    ) {
    }
}

/// Accumulates nothing.
pub(super) struct Nothing;

impl<S: Simd, R: Real> Companion<S, R> for Nothing {}

/// `Σ value − reference` over all classes. Below 2⁻¹⁰¹² f64 logits in units of [`UNIT`] lose bits.
///
/// In twice the precision: of a few classes, roundings of the differences would be as large as those of the loss, and of
/// many, roundings of their sum.
pub(super) struct Uniform<S: Simd> {
    /// In units of [`UNIT`].
    pub(super) sum: Total<S>,
    /// Of f32 the sum of the values of the block that came so far: f64 holds it.
    block: Twice<S>,
    vectors: usize,
    /// The reference of the block.
    reference: Twice<S>,
    /// How many classes came before the block.
    before: usize,
}

impl<S: Simd> Uniform<S> {
    #[inline(always)]
    pub(super) fn new(simd: S) -> Self {
        let zero = [f64x8::splat(simd, 0.0); 2];
        Self { sum: Total::zero(simd), block: zero, vectors: 0, reference: zero, before: 0 }
    }

    /// Add a vector: of f32 to the sum of the block, of f64 to that of all.
    #[inline(always)]
    fn add_to<R: Real>(sum: &mut Total<S>, block: &mut Twice<S>, value: Twice<S>, reference: Twice<S>) {
        if R::LANES == f32::LANES {
            *block = [block[0] + value[0], block[1] + value[1]];
        } else {
            let unit = f64x8::splat(value[0].token(), 1.0 / UNIT);
            let high = value[0].mul_sub(unit, reference[0] * unit);
            let low = value[1].mul_sub(unit, reference[1] * unit);
            R::add_twice(sum, [high, low]);
        }
    }
}

impl<S: Simd, R: Real> Companion<S, R> for Uniform<S> {
    #[inline(always)]
    fn raise(&mut self, raise: impl FnOnce() -> Raise) {
        let raise = raise();
        self.sum.add_scalar(self.before as f64 * raise.step());
    }

    #[inline(always)]
    fn merge(&mut self, other: Self) {
        self.sum.add::<R>(other.sum);
        self.before += other.before;
    }

    #[inline(always)]
    fn begin_sums(&mut self, simd: S) {
        self.block = [f64x8::splat(simd, 0.0); 2];
        self.vectors = 0;
    }

    /// One after the other, so that it does not matter how many come at a time.
    #[inline(always)]
    fn values(
        &mut self,
        simd: S,
        vectors: Range<usize>,
        count: usize,
        value: impl Fn(usize) -> Value<S, R>,
        reference: Value<S, R>,
    ) {
        // Sums of its own, in registers.
        let (mut sum, mut block) = (self.sum, self.block);
        self.reference = reference.twice();
        let whole = vectors.end.min(count / R::LANES);
        for vector in vectors.start..whole {
            Self::add_to::<R>(&mut sum, &mut block, value(vector).twice(), self.reference);
        }
        let rest = count - whole * R::LANES;
        if rest > 0 {
            // Lanes that do not count differ by nothing.
            let mut value = value(whole).twice();
            for part in 0..2 {
                // Both parts of f64 are those of the same lanes.
                let first = if R::LANES == f32::LANES { 8 * part } else { 0 };
                let counts = lane_numbers(simd).simd_lt(f64x8::splat(simd, rest as f64 - first as f64));
                value[part] = counts.select(value[part], self.reference[part]);
            }
            Self::add_to::<R>(&mut sum, &mut block, value, self.reference);
        }
        self.vectors += whole - vectors.start + usize::from(rest > 0);
        (self.sum, self.block) = (sum, block);
        self.before += count;
    }

    #[inline(always)]
    fn end_sums(&mut self) {
        if R::LANES == f32::LANES {
            for part in 0..2 {
                let lanes = |value: f64| f64x8::splat(self.block[part].token(), value);
                let difference = (-self.reference[part]).mul_add(lanes(self.vectors as f64), self.block[part]);
                self.block[part] = difference * lanes(1.0 / UNIT);
            }
            R::add_twice(&mut self.sum, self.block);
        }
    }
}

/// Where weights of classes come from.
pub(super) trait Weights<S: Simd>: Sized {
    /// Write the weights of the classes of a block, and 0 behind them.
    fn fill(&mut self, simd: S, start: usize, length: usize, block: &mut [f64]);
    /// Take in what was found of other classes.
    fn merge(&mut self, other: Self);
}

/// `Σ weight·(value − reference)`, in units of [`UNIT`], and `Σ weight`.
pub(super) struct Weighted<S: Simd, W> {
    pub(super) weights: W,
    block: [f64; BLOCK],
    pub(super) sum: Total<S>,
    pub(super) mass: Total<S>,
}

impl<S: Simd, W> Weighted<S, W> {
    #[inline(always)]
    pub(super) fn new(simd: S, weights: W) -> Self {
        Self { weights, block: [0.0; BLOCK], sum: Total::zero(simd), mass: Total::zero(simd) }
    }
}

impl<S: Simd, R: Real, W: Weights<S>> Companion<S, R> for Weighted<S, W> {
    #[inline(always)]
    fn begin(&mut self, simd: S, start: usize, length: usize) {
        self.weights.fill(simd, start, length, &mut self.block);
    }

    #[inline(always)]
    fn merge(&mut self, other: Self) {
        self.sum.add::<R>(other.sum);
        self.mass.add::<R>(other.mass);
        self.weights.merge(other.weights);
    }

    #[inline(always)]
    fn raise(&mut self, raise: impl FnOnce() -> Raise) {
        let raise = raise();
        let mass = self.mass.value();
        if mass != 0.0 {
            self.sum.add_scalar(mass * raise.step());
        }
    }

    #[inline(always)]
    fn values(
        &mut self,
        simd: S,
        vectors: Range<usize>,
        _count: usize,
        value: impl Fn(usize) -> Value<S, R>,
        reference: Value<S, R>,
    ) {
        // Sums of its own, in registers.
        let (mut sum, mut mass) = (self.sum, self.mass);
        let reference = reference.twice();
        for vector in vectors {
            let weights = &self.block[vector * R::LANES..(vector + 1) * R::LANES];
            R::add_weighted(simd, &mut sum, R::halves(simd, weights), value(vector).twice(), reference);
            R::add_numbers(simd, &mut mass, weights);
        }
        (self.sum, self.mass) = (sum, mass);
    }
}

/// What can be told of a row beside its log-sum-exp.
pub(super) struct Shape<'a, S: Simd, R: Real> {
    row: Row<'a>,
    /// The class that is ranked, if one is, and its logit.
    rival: Option<usize>,
    logit: R,
    /// Whether an equal logit ranks above: it does at a lower index.
    ties: bool,
    /// `Σ z·exp z`, boosted, with `z` relative to the reference; a masked class counts 0.
    pub(super) weighted: Total<S>,
    /// How many classes rank above the rival.
    pub(super) above: Total<S>,
    /// The largest logit, and where the first block that has it starts.
    pub(super) top: (R, usize),
    block: [[R::Lanes<S>; 4]; 2],
}

impl<'a, S: Simd, R: Real> Shape<'a, S, R> {
    #[inline(always)]
    pub(super) fn new(simd: S, row: Row<'a>, rival: Option<usize>) -> Self {
        let logit = rival.map_or(f64::INFINITY, |class| row.get(class));
        Self {
            row,
            rival,
            logit: R::from_f64(logit),
            ties: false,
            weighted: Total::zero(simd),
            above: Total::zero(simd),
            top: (R::from_f64(f64::NEG_INFINITY), 0),
            block: [[R::splat(simd, 0.0); 4]; 2],
        }
    }
}

impl<S: Simd, R: Real + Element<Real = R>> Companion<S, R> for Shape<'_, S, R> {
    #[inline(always)]
    fn begin(&mut self, simd: S, start: usize, length: usize) {
        let Some(class) = self.rival else { return };
        self.ties = start + length <= class;
        if (start..start + length).contains(&class) {
            let (ties, _) = self.row.equal_to(simd, start, class - start, self.logit);
            self.above.add_scalar(f64::from(ties));
        }
    }

    #[inline(always)]
    fn largest(&mut self, simd: S, largest: R::Lanes<S>, start: usize) {
        if largest.simd_gt(R::Lanes::<S>::simd_from(simd, self.top.0)).any_true() {
            self.top = (R::largest(largest), start);
        }
    }

    /// `Σ (z + δ)·e^(z + δ) = e^δ·(Σ z·e^z + δ·Σ e^z)`, and 0 for a δ of −∞.
    #[inline(always)]
    fn raise(&mut self, raise: impl FnOnce() -> Raise) {
        let Raise { moved, factor, sum, .. } = raise();
        R::scale(&mut self.weighted, factor);
        self.weighted.add_scalar(if factor == 0.0 { 0.0 } else { factor * moved * sum });
    }

    #[inline(always)]
    fn merge(&mut self, other: Self) {
        self.weighted.add::<R>(other.weighted);
        self.above.add::<R>(other.above);
        if other.top.0 > self.top.0 {
            self.top = other.top;
        }
    }

    #[inline(always)]
    fn begin_sums(&mut self, simd: S) {
        self.block = [[R::splat(simd, 0.0); 4]; 2];
    }

    #[inline(always)]
    fn add(&mut self, simd: S, _vector: usize, chain: usize, term: Term<S, R>) {
        let [weighted, above] = &mut self.block;
        weighted[chain] = term.z.mul_add(term.exp, weighted[chain]);
        let logit = R::Lanes::<S>::simd_from(simd, self.logit);
        let ahead = if self.ties { term.x.simd_ge(logit) } else { term.x.simd_gt(logit) };
        above[chain] += ahead.select(R::splat(simd, 1.0), R::splat(simd, 0.0));
    }

    #[inline(always)]
    fn end_sums(&mut self) {
        // Written out: `map` of an array is not always inlined, and then runs without the level's instructions.
        let [[a, b, c, d], [e, f, g, h]] = self.block;
        R::add_to(&mut self.weighted, (a + b) + (c + d));
        R::add_to(&mut self.above, (e + f) + (g + h));
    }
}
