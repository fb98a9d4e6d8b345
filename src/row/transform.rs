//! What becomes of the logits before the softmax, `z = softcap · tanh(x / softcap) / T`, and the differences
//! `z − z(reference)` that go into exponentials and logarithms.
//!
//! Neither may cost accuracy: a difference of 100 that is off by one more ulp doubles the error of its exponential, and
//! a cap of 30 that is off by an ulp is as bad. So a capped logit has twice the precision of the lanes, and a difference
//! divided by T is a sum of two: the rounded product with 1 / T, and what the roundings of the difference, of 1 / T and
//! of the product lost.
//!
//! Logits of f32 are capped in lanes of f64 ([`half_tanh`]), a block at a time, and so are the differences taken and
//! divided. In L2 on AVX-512, 16 of them take 5.6 ns, and 8.8 with the slope, of which the divisions are 2.2; in sums
//! of two f32 the loss took 21.8 ns and the gradient with it 42.9, now 9.7 and 24.2 (without a cap 1.4 and 2.7). What it
//! is bound by are 50 operations for two chains of 85 cycles, more than the scheduler holds. Neither a quotient of f32
//! and a Newton step (2.9 ns more, for the conversions), nor two or four vectors in turn, nor one division for two
//! numbers, nor tanh of |y| gave anything; nor did capping where the exponentials are taken (10.6 ns: the registers do
//! not suffice).
//!
//! Those of f64 are sums of two. `tanh y = F / (F + 2)` with `F = exp(2y) − 1`, for y of either sign from that of |y|;
//! its derivative is `q·(2 − q)` with `q = 2 / (F + 2)`, accurate however close to saturation.

use fearless_simd::{Simd, f64x8, prelude::*};

use super::batch::MOST_LANES;
use crate::math::{Argument, Boost, Real, Twice, exp_minus_one, half_tanh, two_sum};

/// Logits as they are.
pub(super) const PLAIN: u8 = 0;
/// Divided.
pub(super) const SCALED: u8 = 1;
/// Capped, then divided.
pub(super) const CAPPED: u8 = 2;

/// What becomes of the logits before the softmax.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Transform {
    temperature: f64,
    softcap: Option<f64>,
}

/// Run `$body` with the constant `$mode` set to the mode of a transform.
macro_rules! with_mode {
    ($transform:expr, $mode:ident => $body:expr) => {
        match $transform.mode() {
            $crate::row::transform::PLAIN => {
                const $mode: u8 = $crate::row::transform::PLAIN;
                $body
            }
            $crate::row::transform::SCALED => {
                const $mode: u8 = $crate::row::transform::SCALED;
                $body
            }
            _ => {
                const $mode: u8 = $crate::row::transform::CAPPED;
                $body
            }
        }
    };
}
pub(super) use with_mode;

/// [`with_mode`] for transforms that do not cap.
macro_rules! with_uncapped_mode {
    ($transform:expr, $mode:ident => $body:expr) => {
        match $transform.mode() {
            $crate::row::transform::PLAIN => {
                const $mode: u8 = $crate::row::transform::PLAIN;
                $body
            }
            $crate::row::transform::SCALED => {
                const $mode: u8 = $crate::row::transform::SCALED;
                $body
            }
            _ => panic!("a cap where there is none"),
        }
    };
}
pub(super) use with_uncapped_mode;

impl Transform {
    /// Logits as they are.
    pub const NONE: Self = Self { temperature: 1.0, softcap: None };

    /// Divided by `temperature` and, before that, capped: both positive finite numbers.
    pub fn new(temperature: f64, softcap: Option<f64>) -> Self {
        Self { temperature, softcap }
    }

    /// Divided by `temperature`, a positive finite number.
    pub fn divided_by(temperature: f64) -> Self {
        Self::new(temperature, None)
    }

    /// Whether there is a cap.
    #[inline(always)]
    pub fn caps(self) -> bool {
        self.softcap.is_some()
    }

    #[inline(always)]
    pub(super) fn mode(self) -> u8 {
        match self {
            Self { softcap: Some(_), .. } => CAPPED,
            Self { temperature: 1.0, .. } => PLAIN,
            _ => SCALED,
        }
    }

    /// The divisor.
    pub fn temperature(self) -> f64 {
        self.temperature
    }

    /// A logit, capped if there is a cap, as a sum of two.
    #[inline]
    pub(super) fn capped<S: Simd>(self, simd: S, x: f64) -> [f64; 2] {
        if self.softcap.is_none() {
            return [x, 0.0];
        }
        let [high, low] = self.cap_one(simd, x).values;
        [high[0], low[0]]
    }

    /// dz/dx at a logit, times the temperature.
    #[inline]
    pub(super) fn slope<S: Simd>(self, simd: S, x: f64) -> f64 {
        if self.softcap.is_none() { 1.0 } else { self.cap_one(simd, x).slopes[0] }
    }

    fn cap_one<S: Simd>(self, simd: S, x: f64) -> Capped<f64, 8> {
        let mut capped = Capped::default();
        if let Some(cap) = self.cap::<S, f64>(simd) {
            cap.fill::<f64, 8, true>(simd, &[x; 8], &mut capped);
        }
        capped
    }

    /// The cap, if there is one.
    #[inline(always)]
    pub(super) fn cap<S: Simd, R: Real>(self, simd: S) -> Option<Cap<S>> {
        let softcap = self.softcap?;
        Some(if R::LANES == f32::LANES {
            Cap::Single(SingleCap::new(simd, softcap))
        } else {
            Cap::Double(DoubleCap::new(simd, softcap))
        })
    }

    /// `z(a) − z(b)` in twice the precision of f64, as a sum of two, the second 0 if the first is not finite.
    #[inline]
    pub fn difference<S: Simd>(self, simd: S, a: f64, b: f64) -> [f64; 2] {
        let ([a, a_low], [b, b_low]) = (self.capped(simd, a), self.capped(simd, b));
        let low = if self.softcap.is_some() { a_low - b_low } else { 0.0 };
        self.quotient(a, b, low)
    }

    /// `(a − b + low) / T`, as a sum of two, for a `low` that is far smaller than `a` or `b`.
    #[inline]
    fn quotient(self, a: f64, b: f64, low: f64) -> [f64; 2] {
        // Halves, if the difference of finite numbers overflows.
        let (a, b, divisor) = if (a - b).is_infinite() && a.is_finite() && b.is_finite() {
            (a / 2.0, b / 2.0, self.temperature / 2.0)
        } else {
            (a, b, self.temperature)
        };
        let [high, lost] = two_sum(a, -b);
        let [high, low] = if high.is_finite() { two_sum(high, lost + low) } else { [high, 0.0] };
        let quotient = if divisor == 1.0 { high } else { high / divisor };
        if !quotient.is_finite() {
            return [quotient, 0.0];
        }
        if divisor == 1.0 {
            return [quotient, low];
        }
        [quotient, ((-quotient).mul_add(divisor, high) + low) / divisor]
    }
}

/// Capped logits in twice their precision, vector by vector, and the slopes of the cap; on a boundary of cache lines.
#[repr(align(64))]
pub(super) struct Capped<R, const N: usize> {
    pub(super) values: [[f64; N]; 2],
    /// `1 − tanh²`.
    pub(super) slopes: [R; N],
}

impl<R: Real, const N: usize> Default for Capped<R, N> {
    fn default() -> Self {
        Self { values: [[0.0; N]; 2], slopes: [R::default(); N] }
    }
}

impl<R: Real, const N: usize> Capped<R, N> {
    /// The slopes of vector number `vector`.
    #[inline(always)]
    pub(super) fn slope<S: Simd>(&self, simd: S, vector: usize) -> R::Lanes<S> {
        R::Lanes::<S>::from_slice(simd, &self.slopes[vector * R::LANES..(vector + 1) * R::LANES])
    }
}

/// A softcap over lanes.
#[derive(Clone, Copy)]
pub(super) enum Cap<S: Simd> {
    /// Of f32.
    Single(SingleCap<S>),
    /// Of f64.
    Double(DoubleCap<S>),
}

impl<S: Simd> Cap<S> {
    /// Cap whole vectors of logits, with the `SLOPES` too if asked: a function of its own, so that it is compiled once.
    #[inline(never)]
    pub(super) fn fill<R: Real, const N: usize, const SLOPES: bool>(
        &self,
        simd: S,
        logits: &[R],
        capped: &mut Capped<R, N>,
    ) {
        simd.vectorize(
            #[inline(always)]
            || {
                // Copied, so that no store may change it.
                let cap = *self;
                let [first, second] = capped.values.each_mut().map(|part| part.chunks_exact_mut(8));
                let slopes = capped.slopes.chunks_exact_mut(R::LANES);
                for (((x, first), second), slope) in logits.chunks_exact(R::LANES).zip(first).zip(second).zip(slopes) {
                    let ([a, b], of_cap) = cap.of::<R>(simd, R::Lanes::<S>::from_slice(simd, x));
                    a.store_slice(first);
                    b.store_slice(second);
                    if SLOPES {
                        of_cap.store_slice(slope);
                    }
                }
            },
        );
    }

    /// The capped logits, and the slopes of the cap; masked classes stay what they are, NaN passes.
    #[inline(always)]
    fn of<R: Real>(&self, simd: S, x: R::Lanes<S>) -> (Twice<S>, R::Lanes<S>) {
        let [first, second] = R::twice(x);
        match self {
            Self::Single(cap) => {
                let ([first, slope], [second, other]) = (cap.of(simd, first), cap.of(simd, second));
                ([first, second], R::once([slope, other]))
            }
            Self::Double(cap) => {
                let [high, low, slope] = cap.of(first);
                ([high, low], R::once([slope, second]))
            }
        }
    }
}

/// A softcap of f32 in lanes of f64.
#[derive(Clone, Copy)]
pub(super) struct SingleCap<S: Simd> {
    value: f64x8<S>,
    /// 2 / cap, and the same in units of ln 2.
    inverse: f64x8<S>,
    factor: f64x8<S>,
}

impl<S: Simd> SingleCap<S> {
    #[inline(always)]
    fn new(simd: S, softcap: f64) -> Self {
        // Far above the largest f32 a cap is none; far below the smallest, all but 0 reaches it.
        let softcap = softcap.clamp(1e-60, 1e60);
        let factor = 2.0 * std::f64::consts::LOG2_E / softcap;
        let lanes = |value| f64x8::splat(simd, value);
        Self { value: lanes(softcap), inverse: lanes(2.0 / softcap), factor: lanes(factor) }
    }

    /// The capped logits, and the slopes, which end at 2⁻¹²⁴.
    #[inline(always)]
    fn of(&self, simd: S, x: f64x8<S>) -> [f64x8<S>; 2] {
        let most = f64x8::splat(simd, 126.0);
        // NaN passes: on x86 `a.min(b)` is b when either is NaN.
        let y = (-most).max(most.min(x * self.factor));
        let [numerator, denominator, derivative] = half_tanh(simd, y);
        let quotient = self.value / denominator;
        let masked = f64x8::splat(simd, f64::NEG_INFINITY);
        let share = quotient * self.inverse;
        [x.simd_eq(masked).select(masked, numerator * quotient), derivative * share * share]
    }
}

/// By how much caps near the largest number are shrunk.
const SHRINK: f64 = 281_474_976_710_656.0;

/// A softcap of f64 in sums of two.
#[derive(Clone, Copy)]
pub(super) struct DoubleCap<S: Simd> {
    simd: S,
    /// The cap.
    value: f64x8<S>,
    /// 2 / cap as a sum of two.
    factor: Twice<S>,
    /// Beyond it tanh is 1.
    limit: f64x8<S>,
    /// Powers of two: the cap above is that much smaller than it is.
    shrink: f64x8<S>,
    grow: f64x8<S>,
}

impl<S: Simd> DoubleCap<S> {
    #[inline(always)]
    fn new(simd: S, softcap: f64) -> Self {
        // Near the largest number caps and logits are shrunk first, so that the products below are finite; one far
        // below the smallest is taken as larger than it is.
        let [shrink, grow] = if softcap > f64::MAX / 64.0 { [1.0 / SHRINK, SHRINK] } else { [1.0, 1.0] };
        let cap = softcap.max(f64::MIN_POSITIVE * 16.0) * shrink;
        let factor = 2.0 / cap;
        let rest = (-factor).mul_add(cap, 2.0) / cap;
        let lanes = |value| f64x8::splat(simd, value);
        Self {
            simd,
            value: lanes(cap),
            factor: [lanes(factor), lanes(rest)],
            limit: lanes(-f64::UNDERFLOW * 0.31 * cap),
            shrink: lanes(shrink),
            grow: lanes(grow),
        }
    }

    /// The capped logits as a sum of two, and the slopes.
    #[inline(always)]
    fn of(&self, x: f64x8<S>) -> [f64x8<S>; 3] {
        let lanes = |value: f64| f64x8::splat(self.simd, value);
        let zero = lanes(0.0);
        let size = x.abs();
        // NaN passes: on x86 `a.min(b)` is b when either is NaN.
        let clamped = self.limit.min(size * self.shrink);
        let [factor, rest] = self.factor;
        let high = clamped * factor;
        let low = clamped.mul_add(rest, clamped.mul_sub_precise(factor, high));
        let [f, f_low] = exp_minus_one(self.simd, [high, low]);
        let [sum, lost] = two_sum(f, lanes(2.0));
        let lost = lost + f_low;
        let inverse = lanes(1.0) / sum;
        let tanh = f * inverse;
        let tanh_low = (f_low - tanh.mul_sub_precise(sum, f) - tanh * lost) * inverse;
        let value = self.value * tanh;
        let value_low = self.value.mul_sub_precise(tanh, value) + self.value * tanh_low;
        let negative = x.simd_lt(zero);
        let finite = size.simd_lt(lanes(f64::INFINITY));
        let (high, low) = (finite.select(value * self.grow, size), finite.select(value_low * self.grow, zero));
        let q = inverse + inverse;
        let slope = q * (lanes(2.0) - q);
        [negative.select(-high, high), negative.select(-low, low), slope]
    }
}

/// Up to this temperature, and down to its inverse, nothing on the way overflows or is lost in f32.
const MODERATE: f64 = 18_446_744_073_709_551_616.0;

/// [`Transform`] over lanes of `R`.
///
/// Where T is not moderate, and for caps of f64, differences are those of the halves and the factors those of 2 / T:
/// nothing overflows on the way to a quotient that does not.
#[derive(Clone, Copy)]
pub(super) struct Scale<S: Simd, R: Real> {
    simd: S,
    /// 2 / T, and what its rounding lost.
    factor: [R::Lanes<S>; 2],
    /// Differences below this one have an exponential of 0; clamped to it, infinities stay out of the products.
    floor: R::Lanes<S>,
    /// Whether 2 / T overflows; the factor is the largest finite number then.
    steep: bool,
    /// Whether T is nowhere near the ends of the numbers.
    moderate: bool,
    /// 1 / T.
    inverse: f64x8<S>,
    /// The cap, if there is one.
    pub(super) cap: Option<Cap<S>>,
}

/// A logit of each lane, as differences are taken of it.
#[derive(Clone, Copy)]
pub(super) struct Value<S: Simd, R: Real> {
    logit: R::Lanes<S>,
    /// The capped one, if there is a cap.
    capped: Option<Twice<S>>,
}

/// Exponentials of some vectors, as [`Real::factors`] returns them, and what they are exponentials of.
pub(super) struct Factors<S: Simd, R: Real, const K: usize> {
    pub(super) exp: [R::Lanes<S>; K],
    pub(super) power: [R::Lanes<S>; K],
    /// `z − z(reference)`, clamped to where its exponential is 0.
    pub(super) z: [R::Lanes<S>; K],
}

/// What exponentials are taken of.
struct Arguments<S: Simd, R: Real, const K: usize> {
    x: [R::Lanes<S>; K],
    /// What is to be added to that, where it is not nothing.
    rest: Option<[R::Lanes<S>; K]>,
    /// Where the exponential is 0, whatever else is said, if that can be.
    below: Option<[<R::Lanes<S> as SimdBase<S>>::Mask; K]>,
    /// [`Factors::z`].
    z: [R::Lanes<S>; K],
}

impl<S: Simd, R: Real, const K: usize> Arguments<S, R, K> {
    /// Make the exponentials of x those of all.
    #[inline(always)]
    fn complete(&self, exp: &mut [R::Lanes<S>; K]) {
        if let Some(rest) = self.rest {
            for k in 0..K {
                exp[k] = exp[k].mul_add(rest[k], exp[k]);
            }
        }
        if let Some(below) = self.below {
            for k in 0..K {
                exp[k] = below[k].select(R::splat(exp[k].token(), 0.0), exp[k]);
            }
        }
    }
}

impl<S: Simd, R: Real> Value<S, R> {
    /// Logits that are not capped.
    #[inline(always)]
    pub(super) fn plain(x: R::Lanes<S>) -> Self {
        Self { logit: x, capped: None }
    }

    /// Vector number `vector` of capped logits.
    #[inline(always)]
    pub(super) fn capped<const N: usize>(simd: S, capped: &Capped<R, N>, vector: usize) -> Self {
        let load = |part: usize| f64x8::from_slice(simd, &capped.values[part][8 * vector..8 * vector + 8]);
        Self { logit: R::splat(simd, 0.0), capped: Some([load(0), load(1)]) }
    }

    /// In twice the precision.
    #[inline(always)]
    pub(super) fn twice(self) -> Twice<S> {
        self.capped.unwrap_or_else(
            #[inline(always)]
            || R::twice(self.logit),
        )
    }
}

impl<S: Simd, R: Real> Scale<S, R> {
    #[inline(always)]
    pub(super) fn new(simd: S, transform: Transform) -> Self {
        let divisor = transform.temperature;
        let factor = 2.0 / divisor;
        let largest = -R::LOWEST.to_f64();
        let high = R::from_f64(factor.min(largest));
        let rest = (factor - high.to_f64()) + (-factor).mul_add(divisor, 2.0) / divisor;
        let low = if factor < largest { R::from_f64(rest) } else { R::default() };
        let half = if transform.mode() == PLAIN { 1.0 } else { 2.0 };
        let floor = R::from_f64((R::UNDERFLOW * divisor / half).max(-largest));
        let moderate = (MODERATE.recip()..=MODERATE).contains(&divisor);
        let splat = |value| R::Lanes::<S>::simd_from(simd, value);
        Self {
            simd,
            factor: [splat(high), splat(low)],
            floor: splat(floor),
            steep: factor > largest,
            moderate,
            inverse: f64x8::splat(simd, divisor.recip().min(f64::MAX)),
            cap: transform.cap::<S, R>(simd),
        }
    }

    /// The value of a vector of logits.
    #[inline(always)]
    pub(super) fn value<const MODE: u8>(&self, x: R::Lanes<S>) -> Value<S, R> {
        let [(value, _)] = self.values::<MODE, false, 1>([x]);
        value
    }

    /// The values of up to four vectors of logits, and, if asked, the `SLOPES` of the cap if there is one.
    #[inline(always)]
    pub(super) fn values<const MODE: u8, const SLOPES: bool, const K: usize>(
        &self,
        x: [R::Lanes<S>; K],
    ) -> [(Value<S, R>, R::Lanes<S>); K] {
        let zero = R::splat(self.simd, 0.0);
        let mut values = [(Value::plain(zero), zero); K];
        for k in 0..K {
            values[k].0 = Value::plain(x[k]);
        }
        let Some(cap) = self.cap.as_ref().filter(|_| MODE == CAPPED) else { return values };
        let (mut logits, mut capped) = ([R::default(); 4 * MOST_LANES], Capped::<R, { 4 * MOST_LANES }>::default());
        for k in 0..K {
            x[k].store_slice(&mut logits[k * R::LANES..(k + 1) * R::LANES]);
        }
        cap.fill::<_, _, SLOPES>(self.simd, &logits[..K * R::LANES], &mut capped);
        for k in 0..K {
            values[k] = (Value::capped(self.simd, &capped, k), capped.slope(self.simd, k));
        }
        values
    }

    /// Value − reference, halved unless `PLAIN`, and what its rounding lost: NaN if it is not finite.
    #[inline(always)]
    fn difference<const MODE: u8>(&self, value: Value<S, R>, reference: Value<S, R>) -> [R::Lanes<S>; 2] {
        let half = R::splat(self.simd, 0.5);
        let halved = |x: R::Lanes<S>| if MODE == PLAIN { x } else { x * half };
        let (Some(value), Some(reference)) = (value.capped, reference.capped) else {
            return two_sum(halved(value.logit), -halved(reference.logit));
        };
        // In f64 alone: where the cap is reached, the second parts are all of the difference.
        let part = |twice: Twice<S>, part: usize| R::once([twice[part], f64x8::splat(self.simd, 0.0)]);
        let [difference, lost] = two_sum(halved(part(value, 0)), -halved(part(reference, 0)));
        let low = part(value, 1) - part(reference, 1);
        let [sum, rest] = two_sum(difference, lost + halved(low));
        let finite = difference.is_finite();
        [finite.select(sum, difference), finite.select(rest, lost)]
    }

    /// `exp(z − z(reference))` of a vector.
    #[inline(always)]
    pub(super) fn exp<const MODE: u8>(&self, value: Value<S, R>, reference: Value<S, R>, boost: Boost) -> R::Lanes<S> {
        let [exp] = self.exps::<MODE, 1>([value], reference, boost);
        exp
    }

    /// `exp(z − z(reference))` of some vectors.
    #[inline(always)]
    pub(super) fn exps<const MODE: u8, const K: usize>(
        &self,
        values: [Value<S, R>; K],
        reference: Value<S, R>,
        boost: Boost,
    ) -> [R::Lanes<S>; K] {
        let arguments = self.arguments::<MODE, K>(values, reference);
        let mut exp = R::exps(self.simd, arguments.x, boost);
        arguments.complete(&mut exp);
        exp
    }

    /// The same, each as two factors.
    #[inline(always)]
    pub(super) fn factors<const MODE: u8, const K: usize>(
        &self,
        values: [Value<S, R>; K],
        reference: Value<S, R>,
        boost: Boost,
        argument: Argument,
    ) -> Factors<S, R, K> {
        let arguments = self.arguments::<MODE, K>(values, reference);
        let [mut exp, power] = R::factors(self.simd, arguments.x, boost, argument);
        // Where they are 0, x is clamped, and the powers are finite.
        arguments.complete(&mut exp);
        Factors { exp, power, z: arguments.z }
    }

    /// What exponentials are taken of.
    #[inline(always)]
    fn arguments<const MODE: u8, const K: usize>(
        &self,
        values: [Value<S, R>; K],
        reference: Value<S, R>,
    ) -> Arguments<S, R, K> {
        let zero = R::splat(self.simd, 0.0);
        let (mut difference, mut lost) = ([zero; K], [zero; K]);
        if MODE == SCALED && self.moderate {
            // No overflow needs halves, and what the difference's rounding loses is an ulp of it, as without T.
            let [high, low] = [self.factor[0] * R::splat(self.simd, 0.5), self.factor[1] * R::splat(self.simd, 0.5)];
            let floor = self.floor + self.floor;
            for k in 0..K {
                difference[k] = floor.max(values[k].logit - reference.logit);
            }
            let (mut quotient, mut rest) = (difference, difference);
            for k in 0..K {
                quotient[k] = difference[k] * high;
            }
            for k in 0..K {
                rest[k] = difference[k].mul_add(low, difference[k].mul_sub_precise(high, quotient[k]));
            }
            return Arguments { x: quotient, rest: Some(rest), below: None, z: quotient };
        }
        if MODE == CAPPED && R::LANES == f32::LANES {
            // f64 has room for the differences and quotients of f32. NaN passes, as below.
            let floor = R::splat(self.simd, R::UNDERFLOW);
            let [c, d] = reference.twice();
            for k in 0..K {
                let [a, b] = values[k].twice();
                difference[k] = floor.max(R::once([(a - c) * self.inverse, (b - d) * self.inverse]));
            }
            return Arguments { x: difference, rest: None, below: None, z: difference };
        }
        for k in 0..K {
            [difference[k], lost[k]] = self.difference::<MODE>(values[k], reference);
        }
        // NaN passes: on x86 `a.max(b)` is b when either is NaN.
        let mut z = difference;
        for k in 0..K {
            z[k] = self.floor.max(z[k]);
        }
        if MODE == PLAIN {
            return Arguments { x: difference, rest: None, below: None, z };
        }
        let [high, low] = self.factor;
        let mut quotient = z;
        for k in 0..K {
            quotient[k] = z[k] * high;
        }
        let mut rest = z;
        for k in 0..K {
            rest[k] = z[k].mul_sub_precise(high, quotient[k]) + z[k].mul_add(low, lost[k] * high);
        }
        // Below the floor what was lost is NaN or not worth its name; with an enormous T the floor is the lowest finite
        // number, whose exponential is not 0, but that of −∞ is.
        let mut below = [zero.simd_eq(zero); K];
        for k in 0..K {
            below[k] = difference[k].simd_lt(self.floor);
            z[k] = quotient[k] + below[k].select(zero, rest[k]);
        }
        Arguments { x: quotient, rest: Some(rest), below: Some(below), z }
    }

    /// `z − z(reference) − log_sum`, the last as a sum of two.
    #[inline(always)]
    pub(super) fn log<const MODE: u8>(
        &self,
        value: Value<S, R>,
        reference: Value<S, R>,
        [log_sum, log_sum_low]: [R::Lanes<S>; 2],
    ) -> R::Lanes<S> {
        let lanes = |value: f64| R::splat(self.simd, value);
        let zero = lanes(0.0);
        let [difference, lost] = self.difference::<MODE>(value, reference);
        let (quotient, rest) = if MODE == PLAIN {
            (difference, lost)
        } else {
            let [high, low] = self.factor;
            let product = difference * high;
            let rest = difference.mul_sub_precise(high, product) + difference.mul_add(low, lost * high);
            // −∞ stays what it is, also where 2 / T is 0; where it is infinite, what is not 0 becomes so.
            let infinite = lanes(f64::NEG_INFINITY);
            let product = if self.steep { difference.simd_lt(zero).select(infinite, product) } else { product };
            (difference.simd_ge(lanes(R::LOWEST.to_f64())).select(product, difference), rest)
        };
        let [sum, lost] = two_sum(quotient, -log_sum);
        // What an infinity lost is NaN.
        sum + quotient.simd_ge(lanes(R::LOWEST.to_f64())).select(rest + (lost - log_sum_low), zero)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::{Kernel, Level};

    struct Difference(Transform, f64, f64);

    impl Kernel for Difference {
        type Output = [f64; 2];

        #[inline(always)]
        fn run<S: Simd>(self, simd: S) -> [f64; 2] {
            self.0.difference(simd, self.1, self.2)
        }
    }

    #[test]
    fn differences_are_exact_and_do_not_overflow() {
        let one = |a, b| Level::available()[0].run(Difference(Transform::NONE, a, b));
        let by = |temperature, a, b| Level::available()[0].run(Difference(Transform::divided_by(temperature), a, b));
        let half_ulp = 2f64.powi(-53);
        assert_eq!(one(1.0, half_ulp / 2.0), [1.0, -half_ulp / 2.0]);
        let [high, low] = by(3.0, 1.0, 0.0);
        assert_eq!(high, 1.0 / 3.0);
        assert_eq!(low, (-3.0f64).mul_add(high, 1.0) / 3.0);
        assert_ne!(low, 0.0);
        assert_eq!(by(100.0, 1.5e308, -1.5e308)[0], 3e306);
        assert_eq!(by(5e-324, 2.0, 2.0), [0.0, 0.0]);
        assert_eq!(by(5e-324, 1.0, 2.0), [f64::NEG_INFINITY, 0.0]);
        assert_eq!(one(f64::NEG_INFINITY, 2.0), [f64::NEG_INFINITY, 0.0]);
        assert!(one(f64::INFINITY, f64::INFINITY)[0].is_nan());
    }

    struct Caps<'a>(&'a [f32], f64);

    impl Kernel for Caps<'_> {
        type Output = Vec<[f64; 2]>;

        #[inline(always)]
        fn run<S: Simd>(self, simd: S) -> Vec<[f64; 2]> {
            let cap = Transform::new(1.0, Some(self.1)).cap::<S, f32>(simd).unwrap();
            let of = |&x: &f32| {
                let mut capped = Capped::<f32, 16>::default();
                cap.fill::<_, _, true>(simd, &[x; 16], &mut capped);
                assert_eq!(capped.values[0][0].to_bits(), capped.values[1][7].to_bits());
                [capped.values[0][0], f64::from(capped.slopes[15])]
            };
            self.0.iter().map(of).collect()
        }
    }

    /// In f32 against f64: a capped logit is off by less than a hundredth of 2⁻²⁴ of itself.
    #[test]
    fn capped_logits_are_accurate() {
        for softcap in [1e-40, 1e-37, 1e-3, 1.0, 5.0, 30.0, 50.1, 1e4, 1e20, 1e37, 1e38, 1e45] {
            let numbers: Vec<f32> = (-4000..=4000)
                .map(|i| (f64::from(i) * softcap / 1000.0) as f32)
                .chain((-60..6).flat_map(|power| [1.3f64, -1.7].map(|x| (x * softcap * 2f64.powi(power)) as f32)))
                .filter(|x| x.is_finite())
                .collect();
            for level in Level::available() {
                let mut worst = [0.0f64; 2];
                for (&x, [value, slope]) in numbers.iter().zip(level.run(Caps(&numbers, softcap))) {
                    let y = f64::from(x) / softcap;
                    let exact = softcap * y.tanh();
                    let unit = 2f64.powi(-24);
                    worst[0] = worst[0].max((value - exact).abs() / (unit * exact.abs().max(1e-30 * softcap)));
                    let cosh = y.cosh();
                    // Beyond, the slope is clamped to what is next to nothing.
                    if y.abs() < 30.0 {
                        worst[1] = worst[1].max((slope * cosh * cosh - 1.0).abs() / unit);
                    }
                }
                println!("{} {softcap}: value {:.4} u, slope {:.3} u", level.name(), worst[0], worst[1]);
                assert!(worst[0] < 0.01 && worst[1] < 1.1, "{} {softcap}: {worst:?}", level.name());
            }
        }
        for level in Level::available() {
            let found = level.run(Caps(&[f32::NEG_INFINITY, f32::NAN, 1e30, -3e38], 30.0));
            assert_eq!([found[0][0], found[2][0], found[3][0]], [f64::NEG_INFINITY, 30.0, -30.0]);
            assert!(found[1][0].is_nan());
            // A cap far above all numbers caps nothing; a masked class has a slope.
            let numbers = [f32::NEG_INFINITY, 3e38, -1.0];
            for (found, x) in level.run(Caps(&numbers, 1e300)).iter().zip(numbers) {
                assert_eq!(found[0] as f32, x);
            }
            assert!(level.run(Caps(&numbers, 1e38)).iter().all(|found| !found[1].is_nan()));
        }
    }
}
