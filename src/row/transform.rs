//! What becomes of the logits before the softmax, `z = softcap · tanh(x / softcap) / T`, and the differences
//! `z − z(reference)` that go into exponentials and logarithms.
//!
//! Neither may cost accuracy: a difference of 100 that is off by one more ulp doubles the error of its exponential, and
//! a cap of 30 that is off by an ulp is as bad. So a capped logit is a sum of two numbers, and a difference divided by
//! T as well: the rounded product with 1 / T, and what the roundings of the difference, of 1 / T and of the product
//! lost. `tanh y = F / (F + 2)` with `F = exp(2y) − 1`, for y of either sign from that of |y|; its derivative is
//! `q·(2 − q)` with `q = 2 / (F + 2)`, accurate however close to saturation.

use fearless_simd::{Simd, prelude::*};

use crate::math::{Argument, Boost, Real, two_sum};

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
        let capped = self.cap_one(simd, x);
        [capped.high[0], capped.low[0]]
    }

    /// dz/dx at a logit, times the temperature.
    #[inline]
    pub(super) fn slope<S: Simd>(self, simd: S, x: f64) -> f64 {
        if self.softcap.is_none() { 1.0 } else { self.cap_one(simd, x).slope[0] }
    }

    fn cap_one<S: Simd>(self, simd: S, x: f64) -> Capped<f64, 8> {
        let mut capped = Capped::default();
        self.cap(simd, &[x; 8], &mut capped);
        capped
    }

    /// Cap whole vectors of logits; infinities stay what they are, NaN passes.
    #[inline(never)]
    pub(super) fn cap<S: Simd, R: Real, const N: usize>(self, simd: S, logits: &[R], capped: &mut Capped<R, N>) {
        simd.vectorize(
            #[inline(always)]
            || {
                let cap = Cap::<S, R>::new(simd, self.softcap.expect("asked for where there is one"));
                for start in (0..logits.len()).step_by(R::LANES) {
                    let here = start..start + R::LANES;
                    let [high, low, slope] = cap.of(R::Lanes::<S>::from_slice(simd, &logits[here.clone()]));
                    high.store_slice(&mut capped.high[here.clone()]);
                    low.store_slice(&mut capped.low[here.clone()]);
                    slope.store_slice(&mut capped.slope[here]);
                }
            },
        );
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

/// By how much caps near the largest number are shrunk.
const SHRINK: f64 = 281_474_976_710_656.0;

/// A softcap over lanes.
#[derive(Clone, Copy)]
struct Cap<S: Simd, R: Real> {
    simd: S,
    /// The cap as a sum of two.
    value: [R::Lanes<S>; 2],
    /// 2 / cap as a sum of two.
    factor: [R::Lanes<S>; 2],
    /// Beyond it tanh is 1.
    limit: R::Lanes<S>,
    /// Whether there is nothing to cap.
    none: bool,
    /// Powers of two: the cap above is that much smaller than it is.
    shrink: R::Lanes<S>,
    grow: R::Lanes<S>,
}

/// Capped logits, each a sum of two, and the slopes of the cap.
pub(super) struct Capped<R, const N: usize> {
    pub(super) high: [R; N],
    pub(super) low: [R; N],
    /// `1 − tanh²`.
    pub(super) slope: [R; N],
}

impl<R: Real, const N: usize> Default for Capped<R, N> {
    fn default() -> Self {
        let zero = [R::default(); N];
        Self { high: zero, low: zero, slope: zero }
    }
}

impl<S: Simd, R: Real> Cap<S, R> {
    #[inline(always)]
    fn new(simd: S, softcap: f64) -> Self {
        let largest = -R::LOWEST.to_f64();
        // Near the largest number caps and logits are shrunk first, so that the products below are finite. Far above it,
        // a cap is none; below 2e-37 (in f32) it is taken as that.
        let [shrink, grow] = if softcap > largest / 64.0 { [1.0 / SHRINK, SHRINK] } else { [1.0, 1.0] };
        let none = softcap / 16_777_216.0 > largest;
        let cap = if none { 1.0 } else { softcap.max(R::SMALLEST_NORMAL * 16.0) * shrink };
        let parts = |value: f64, rest: f64| {
            let high = R::from_f64(value);
            [high, R::from_f64((value - high.to_f64()) + rest)].map(|part| R::Lanes::<S>::simd_from(simd, part))
        };
        let factor = 2.0 / cap;
        let splat = |value| R::splat(simd, value);
        let limit = splat(-R::UNDERFLOW * 0.31 * cap);
        let factor = parts(factor, (-factor).mul_add(cap, 2.0) / cap);
        Self { simd, value: parts(cap, 0.0), factor, limit, none, shrink: splat(shrink), grow: splat(grow) }
    }

    /// The capped logits as a sum of two, and the slopes.
    #[inline(always)]
    fn of(&self, x: R::Lanes<S>) -> [R::Lanes<S>; 3] {
        let zero = R::splat(self.simd, 0.0);
        let size = x.abs();
        // NaN passes: on x86 `a.min(b)` is b when either is NaN.
        let clamped = self.limit.min(size * self.shrink);
        let [factor, rest] = self.factor;
        let high = clamped * factor;
        let low = clamped.mul_add(rest, clamped.mul_sub_precise(factor, high));
        let [f, f_low] = R::exp_minus_one(self.simd, [high, low]);
        let [sum, lost] = two_sum(f, R::splat(self.simd, 2.0));
        let lost = lost + f_low;
        let inverse = R::splat(self.simd, 1.0) / sum;
        let tanh = f * inverse;
        let tanh_low = (f_low - tanh.mul_sub_precise(sum, f) - tanh * lost) * inverse;
        let [cap, cap_low] = self.value;
        let value = cap * tanh;
        let value_low = cap.mul_sub_precise(tanh, value) + cap.mul_add(tanh_low, cap_low * tanh);
        let negative = x.simd_lt(zero);
        let finite = size.simd_lt(R::splat(self.simd, f64::INFINITY));
        let (high, low) = (finite.select(value * self.grow, size), finite.select(value_low * self.grow, zero));
        let q = inverse + inverse;
        let slope = q * (R::splat(self.simd, 2.0) - q);
        if self.none {
            return [x, zero, R::splat(self.simd, 1.0)];
        }
        [negative.select(-high, high), negative.select(-low, low), slope]
    }
}

/// Up to this temperature, and down to its inverse, nothing on the way overflows or is lost in f32.
const MODERATE: f64 = 18_446_744_073_709_551_616.0;

/// [`Transform`] over lanes of `R`.
///
/// But for `PLAIN` logits, differences are those of the halves and the factors those of 2 / T: nothing overflows on
/// the way to a quotient that does not.
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
}

/// A logit of each lane, as differences are taken of it.
#[derive(Clone, Copy)]
pub(super) struct Value<S: Simd, R: Real> {
    pub(super) high: R::Lanes<S>,
    /// What it is more than that, if it is capped.
    pub(super) low: Option<R::Lanes<S>>,
}

/// Exponentials of some vectors, as [`Real::exps`] returns them, and what they are exponentials of.
pub(super) struct Exponentials<S: Simd, R: Real, const K: usize> {
    pub(super) exp: [R::Lanes<S>; K],
    /// Powers of two to multiply them with.
    pub(super) power: [R::Lanes<S>; K],
    /// `z − z(reference)`, clamped to where its exponential is 0.
    pub(super) z: [R::Lanes<S>; K],
}

impl<S: Simd, R: Real> Value<S, R> {
    /// Logits that are not capped.
    #[inline(always)]
    pub(super) fn plain(x: R::Lanes<S>) -> Self {
        Self { high: x, low: None }
    }

    /// The lanes of capped logits from `index` on.
    #[inline(always)]
    pub(super) fn capped<const N: usize>(simd: S, capped: &Capped<R, N>, index: usize) -> Self {
        let load = |values: &[R; N]| R::Lanes::<S>::from_slice(simd, &values[index..index + R::LANES]);
        Self { high: load(&capped.high), low: Some(load(&capped.low)) }
    }

    /// The reference's value, more accurate than a lane's, where `same` says that it is the reference.
    #[inline(always)]
    pub(super) fn same_as(self, reference: Self, same: <R::Lanes<S> as SimdBase<S>>::Mask) -> Self {
        let low = self.low.zip(reference.low).map(|(low, exact)| same.select(exact, low));
        Self { high: same.select(reference.high, self.high), low }
    }

    /// How much more than its first part a value exceeds the reference's.
    #[inline(always)]
    pub(super) fn low_difference(self, reference: Self) -> Option<R::Lanes<S>> {
        Some(self.low? - reference.low?)
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
        Self { simd, factor: [splat(high), splat(low)], floor: splat(floor), steep: factor > largest, moderate }
    }

    /// The value of a logit in all lanes.
    #[inline(always)]
    pub(super) fn reference<const MODE: u8>(&self, transform: Transform, x: f64) -> Value<S, R> {
        if MODE != CAPPED {
            return Value::plain(R::splat(self.simd, x));
        }
        let [high, low] = transform.capped(self.simd, x);
        let rounded = R::from_f64(high).to_f64();
        let low = if high.is_finite() { (high - rounded) + low } else { 0.0 };
        Value { high: R::splat(self.simd, rounded), low: Some(R::splat(self.simd, low)) }
    }

    /// The value of each lane's own logit, like [`Self::reference`].
    #[inline(always)]
    pub(super) fn references<const MODE: u8>(&self, transform: Transform, x: R::Lanes<S>) -> Value<S, R> {
        if MODE != CAPPED {
            return Value::plain(x);
        }
        let [mut high, mut low] = [x; 2];
        for lane in 0..R::LANES {
            let value = self.reference::<MODE>(transform, x.as_slice()[lane].to_f64());
            high.as_mut_slice()[lane] = value.high.as_slice()[lane];
            low.as_mut_slice()[lane] = value.low.map_or(R::default(), |low| low.as_slice()[lane]);
        }
        Value { high, low: Some(low) }
    }

    /// Value − reference, halved unless `PLAIN`, and what its rounding lost: NaN if it is not finite.
    #[inline(always)]
    fn difference<const MODE: u8>(&self, value: Value<S, R>, reference: Value<S, R>) -> [R::Lanes<S>; 2] {
        let half = R::splat(self.simd, 0.5);
        let halved = |x: R::Lanes<S>| if MODE == PLAIN { x } else { x * half };
        let [difference, lost] = two_sum(halved(value.high), -halved(reference.high));
        // Where the cap is reached, the second parts are all of the difference.
        let Some(low) = value.low_difference(reference) else { return [difference, lost] };
        let [sum, rest] = two_sum(difference, lost + halved(low));
        let finite = difference.is_finite();
        [finite.select(sum, difference), finite.select(rest, lost)]
    }

    /// `exp(z − z(reference))` of a vector.
    #[inline(always)]
    pub(super) fn exp<const MODE: u8>(&self, value: Value<S, R>, reference: Value<S, R>, boost: Boost) -> R::Lanes<S> {
        let Exponentials { exp: [exp], power: [power], .. } =
            self.exps::<MODE, 1>([value], reference, boost, Argument::Exact);
        exp * power
    }

    /// `exp(z − z(reference))` of some vectors.
    #[inline(always)]
    pub(super) fn exps<const MODE: u8, const K: usize>(
        &self,
        values: [Value<S, R>; K],
        reference: Value<S, R>,
        boost: Boost,
        argument: Argument,
    ) -> Exponentials<S, R, K> {
        let zero = R::splat(self.simd, 0.0);
        let (mut difference, mut lost) = ([zero; K], [zero; K]);
        if MODE == SCALED && self.moderate {
            // No overflow needs halves, and what the difference's rounding loses is an ulp of it, as without T.
            let [high, low] = [self.factor[0] * R::splat(self.simd, 0.5), self.factor[1] * R::splat(self.simd, 0.5)];
            let floor = self.floor + self.floor;
            for k in 0..K {
                difference[k] = floor.max(values[k].high - reference.high);
            }
            let (mut quotient, mut rest) = (difference, difference);
            for k in 0..K {
                quotient[k] = difference[k] * high;
            }
            for k in 0..K {
                rest[k] = difference[k].mul_add(low, difference[k].mul_sub_precise(high, quotient[k]));
            }
            let [mut exp, power] = R::exps(self.simd, quotient, boost, argument);
            for k in 0..K {
                exp[k] = exp[k].mul_add(rest[k], exp[k]);
            }
            return Exponentials { exp, power, z: quotient };
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
            let [exp, power] = R::exps(self.simd, difference, boost, argument);
            return Exponentials { exp, power, z };
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
        let [mut exp, mut power] = R::exps(self.simd, quotient, boost, argument);
        for k in 0..K {
            exp[k] = exp[k].mul_add(rest[k], exp[k]);
        }
        // Below the floor what was lost is NaN or not worth its name; with an enormous T the floor is the lowest finite
        // number, whose exponential is not 0, but that of −∞ is.
        for k in 0..K {
            let below = difference[k].simd_lt(self.floor);
            (exp[k], power[k]) = (below.select(zero, exp[k]), below.select(zero, power[k]));
            z[k] = quotient[k] + below.select(zero, rest[k]);
        }
        Exponentials { exp, power, z }
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

    struct Caps<'a, R>(&'a [R], f64);

    impl<R: Real> Kernel for Caps<'_, R> {
        type Output = Vec<[f64; 3]>;

        #[inline(always)]
        fn run<S: Simd>(self, simd: S) -> Vec<[f64; 3]> {
            let cap = Cap::<S, R>::new(simd, self.1);
            let of = |&x: &R| cap.of(R::Lanes::<S>::simd_from(simd, x)).map(|lanes| lanes.as_slice()[0].to_f64());
            self.0.iter().map(of).collect()
        }
    }

    /// In f32 against f64: a capped logit is off by less than an eighth of 2⁻²⁴ of itself.
    #[test]
    fn capped_logits_are_sums_of_two() {
        for softcap in [1e-3, 1.0, 5.0, 30.0, 50.1, 1e4, 1e20, 1e37, 1e38] {
            let numbers: Vec<f32> = (-4000..=4000)
                .map(|i| (f64::from(i) * softcap / 1000.0) as f32)
                .chain((-60..6).flat_map(|power| [1.3f64, -1.7].map(|x| (x * softcap * 2f64.powi(power)) as f32)))
                .filter(|x| x.is_finite())
                .collect();
            for level in Level::available() {
                let mut worst = [0.0f64; 2];
                for (&x, [high, low, slope]) in numbers.iter().zip(level.run(Caps(&numbers, softcap))) {
                    let y = f64::from(x) / softcap;
                    let exact = softcap * y.tanh();
                    let unit = 2f64.powi(-24);
                    worst[0] = worst[0].max((high + low - exact).abs() / (unit * exact.abs().max(1e-30 * softcap)));
                    let cosh = y.cosh();
                    // Beyond, the slope is clamped to what is next to nothing.
                    if y.abs() < 30.0 {
                        worst[1] = worst[1].max((slope * cosh * cosh - 1.0).abs() / unit);
                    }
                }
                println!("{} {softcap}: value {:.3} u, slope {:.3} u", level.name(), worst[0], worst[1]);
                assert!(worst[0] < 0.125 && worst[1] < 16.0, "{} {softcap}: {worst:?}", level.name());
            }
        }
        for level in Level::available() {
            let found = level.run(Caps(&[f32::NEG_INFINITY, f32::INFINITY, f32::NAN, 1e30], 30.0));
            assert_eq!([found[0][0], found[1][0], found[3][0]], [f64::NEG_INFINITY, f64::INFINITY, 30.0]);
            assert!(found[2][0].is_nan() && found[0][1] == 0.0);
            // A cap far above all numbers caps nothing; a masked class has a slope.
            let numbers = [f32::NEG_INFINITY, 3e38, -1.0];
            for (found, x) in level.run(Caps(&numbers, 1e300)).iter().zip(numbers) {
                assert_eq!(found[0], f64::from(x));
            }
            assert!(level.run(Caps(&numbers, 1e38)).iter().all(|found| !found[2].is_nan()));
        }
    }
}
