//! The softcap over lanes, in twice the precision of what it caps.
//!
//! Logits of f32 are capped in lanes of f64 ([`half_tanh`]), and so are the differences taken: twice as fast as sums of two f32. It
//! is bound by 50 operations for two chains of 85 cycles, more than the scheduler holds.
//!
//! Those of f64 are sums of two. `tanh y = F / (F + 2)` with `F = exp(2y) − 1`, for y of either sign from that of |y|;
//! its derivative is `q·(2 − q)` with `q = 2 / (F + 2)`, accurate however close to saturation.

use fearless_simd::{Simd, f64x8, prelude::*};

use crate::math::{Real, Twice, exp_minus_one, half_tanh, two_sum};

/// A softcap, and the unit of what its values are above others.
#[derive(Clone, Copy, Debug)]
pub struct Softcap {
    /// Where logits end.
    pub height: f64,
    /// What differences are multiplied by in f32 before they are rounded: the inverse of the temperature, and what exponentials will
    /// lack. So there is one rounding.
    pub unit: f64,
}

/// Capped logits in twice their precision, vector by vector, and the slopes of the cap; on a boundary of cache lines.
#[repr(align(64))]
pub(crate) struct Capped<R, const N: usize> {
    pub(crate) values: [[f64; N]; 2],
    /// `1 − tanh²`.
    pub(crate) slopes: [R; N],
}

impl<R: Real, const N: usize> Default for Capped<R, N> {
    fn default() -> Self {
        Self { values: [[0.0; N]; 2], slopes: [R::default(); N] }
    }
}

impl<R: Real, const N: usize> Capped<R, N> {
    /// The values of vector number `vector`.
    #[inline(always)]
    pub(crate) fn value<S: Simd>(&self, simd: S, vector: usize) -> Twice<S> {
        let load = |part: &[f64; N]| f64x8::from_slice(simd, &part[8 * vector..8 * vector + 8]);
        [load(&self.values[0]), load(&self.values[1])]
    }

    /// Set vector number `vector`.
    #[inline(always)]
    pub(crate) fn set<S: Simd>(&mut self, vector: usize, value: Twice<S>, slope: R::Lanes<S>) {
        for (part, value) in self.values.iter_mut().zip(value) {
            value.store_slice(&mut part[8 * vector..8 * vector + 8]);
        }
        slope.store_slice(&mut self.slopes[vector * R::LANES..(vector + 1) * R::LANES]);
    }

    /// The slopes of vector number `vector`.
    #[inline(always)]
    pub(crate) fn slope<S: Simd>(&self, simd: S, vector: usize) -> R::Lanes<S> {
        R::Lanes::<S>::from_slice(simd, &self.slopes[vector * R::LANES..(vector + 1) * R::LANES])
    }
}

/// A softcap over lanes.
#[derive(Clone, Copy)]
pub(crate) enum Cap<S: Simd> {
    /// Of f32.
    Single(SingleCap<S>),
    /// Of f64.
    Double(DoubleCap<S>),
}

impl<S: Simd> Cap<S> {
    /// A cap of logits that are computed with in `R`.
    #[inline(always)]
    pub(crate) fn new<R: Real>(simd: S, softcap: f64) -> Self {
        if R::LANES == f32::LANES {
            Self::Single(SingleCap::new(simd, softcap))
        } else {
            Self::Double(DoubleCap::new(simd, softcap))
        }
    }

    /// Cap whole vectors of logits, with the `SLOPES` too if asked: a function of its own, so that it is compiled once.
    #[inline(never)]
    pub(crate) fn fill<R: Real, const N: usize, const SLOPES: bool>(
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
    pub(crate) fn of<R: Real>(&self, simd: S, x: R::Lanes<S>) -> (Twice<S>, R::Lanes<S>) {
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

/// The capped logits that others are relative to: NaN for infinite ones, which a cap does not make finite.
#[inline(always)]
pub(crate) fn reference<S: Simd, R: Real>(cap: &Cap<S>, simd: S, x: R::Lanes<S>) -> Twice<S> {
    let nothing = x.is_finite().select(R::splat(simd, 0.0), R::splat(simd, f64::NAN));
    cap.of::<R>(simd, x + nothing).0
}

/// Differences of capped logits, rounded once; in f32 times `unit`.
#[inline(always)]
pub(crate) fn relative<S: Simd, R: Real>(value: Twice<S>, reference: Twice<S>, unit: f64) -> R::Lanes<S> {
    if R::LANES == f32::LANES {
        let unit = f64x8::splat(value[0].token(), unit);
        return R::once([(value[0] - reference[0]) * unit, (value[1] - reference[1]) * unit]);
    }
    let [difference, lost] = two_sum(value[0], -reference[0]);
    let sum = difference + (lost + (value[1] - reference[1]));
    R::once([difference.is_finite().select(sum, difference), f64x8::splat(sum.token(), 0.0)])
}

/// A softcap of f32 in lanes of f64.
#[derive(Clone, Copy)]
pub(crate) struct SingleCap<S: Simd> {
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
pub(crate) struct DoubleCap<S: Simd> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::{Kernel, Level};

    struct Caps<'a>(&'a [f32], f64);

    impl Kernel for Caps<'_> {
        type Output = Vec<[f64; 2]>;

        #[inline(always)]
        fn run<S: Simd>(self, simd: S) -> Vec<[f64; 2]> {
            let cap = Cap::new::<f32>(simd, self.1);
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
