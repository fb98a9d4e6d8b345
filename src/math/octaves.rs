//! Exponentials relative to an integer.
//!
//! With N steps an octave, `L = N·log₂ e` and an integer c, `exp x = 2^(c/N) · 2^((x·L − c)/N)`. Rounded to an integer n and
//! the rest f, |f| ≤ ½, `x·L − c` gives `2^(n/N)·2^(f/N)`: a look-up and a shift, and `2^(f/N) = 1 + f·p(f)`.
//!
//! n is what adding 1.5·2^23 − c (1.5·2^52 − c) to x·L rounds to, and f is `x·L − (c + n)`, of which a fused multiply-add
//! rounds the result alone. So no error grows with the distance from the reference c, which need not be near the maximum:
//! any c will do from which no x is more than [`REACH`] octaves up, and where one is, a higher c.
//!
//! Logits that are divided by a temperature T are multiplied by L / T. That is rounded. In f64 what it lacks is multiplied and
//! added, too. In f32 what is summed is `exp(x·(1 − ε))`, ε = 0.22 u for T = 1, less than u / 2 for all ([`Scale::shortfall`]):
//! logarithms get `1 + ε` back, and less than `ε·ln C` is left, or ε of the gap for a small loss.
//!
//! Powers are boosted as those of [`Real::exp`]: a class that is 191 octaves (in f64 1535) below c counts exactly 0.

use fearless_simd::{Simd, f64x8, prelude::*, u64x8};

use super::{Real, is_fused, polynomial, polynomials};

/// Steps an octave, and the polynomial of the rest.
pub struct Octaves<R: 'static> {
    /// N.
    pub(super) steps: u32,
    /// p of `2^(f/N) = 1 + f·p(f)`, highest power first.
    pub(super) p: &'static [R],
}

/// So many octaves above the reference, 22 nats, a row's logits may be; powers are right up to 55 octaves. Beyond it gradients
/// would be multiplied by numbers so small that they are no normal ones.
pub const REACH: u32 = 32;

/// By so many octaves, 620 nats, references are raised at most: f64 holds the quotient of the powers still.
const MOST_OCTAVES: f64 = 900.0;

/// What logits are multiplied by: L over the temperature.
#[derive(Clone, Copy, Debug)]
pub struct Scale<R> {
    /// As a sum of two; the second is left out where it need not be multiplied.
    parts: [R; 2],
    /// How many steps an octave has.
    steps: u32,
    /// Up to here logits can be references.
    largest_reference: f64,
    /// ε: by which part of themselves products are smaller than they should be.
    shortfall: f64,
}

/// Temperatures from the inverse of this up to it are divided by here.
const MODERATE: f64 = 1_099_511_627_776.0;

impl<R: Real> Scale<R> {
    /// That of a level, for a temperature that [`Self::suits`].
    #[inline(always)]
    pub fn new<S: Simd>(temperature: f64) -> Self {
        let steps = R::octaves::<S>().steps;
        let [high, low] = R::EIGHTHS.map(
            #[inline(always)]
            |part| part.to_f64() * (f64::from(steps) / 8.0),
        );
        let first = R::from_f64((high + low) / temperature).to_f64();
        let rest = ((-first).mul_add(temperature, high) + low) / temperature;
        Self {
            parts: [R::from_f64(first), R::from_f64(rest)],
            steps,
            largest_reference: R::LARGEST_REFERENCE * temperature,
            shortfall: if R::WHOLE_EIGHTHS { 0.0 } else { rest / first },
        }
    }

    /// The scale of numbers that are multiplied by the second in f32 before they are rounded: then nothing is lacking.
    #[inline(always)]
    pub fn of_products<S: Simd>(temperature: f64) -> (Self, f64) {
        if R::WHOLE_EIGHTHS {
            return (Self::new::<S>(temperature), 1.0);
        }
        let scale = Self::new::<S>(1.0);
        (Self { shortfall: 0.0, ..scale }, (1.0 + scale.shortfall) / temperature)
    }

    /// Whether no product overflows that need not.
    pub fn suits(temperature: f64) -> bool {
        (MODERATE.recip()..=MODERATE).contains(&temperature)
    }

    /// By which part of themselves logarithms are too small.
    pub fn shortfall(&self) -> f64 {
        self.shortfall
    }

    /// Below it logits can be references.
    pub fn largest_reference(&self) -> f64 {
        self.largest_reference
    }
}

/// What the exponentials of each lane are relative to.
#[derive(Clone, Copy)]
pub struct Reference<S: Simd, R: Real> {
    /// [`Scale`]'s.
    parts: [R; 2],
    /// 1.5·2^23 (1.5·2^52), the boost, and minus the integer c.
    shift: R::Lanes<S>,
    /// Where powers are 0.
    lowest: R::Lanes<S>,
}

/// The exponential of x as `(1 + f·p)·power`, and `n` as it was rounded: larger where x is.
pub struct Terms<S: Simd, R: Real, const K: usize> {
    p: [R::Lanes<S>; K],
    f: [R::Lanes<S>; K],
    /// `2^(n/N)`, boosted.
    pub power: [R::Lanes<S>; K],
    /// n beside the shift.
    pub rounded: [R::Lanes<S>; K],
}

impl<S: Simd, R: Real, const K: usize> Terms<S, R, K> {
    /// An exponential, rounded once.
    #[inline(always)]
    pub fn exp(&self, k: usize) -> R::Lanes<S> {
        (self.p[k] * self.f[k]).mul_add(self.power[k], self.power[k])
    }

    /// `sum` and an exponential.
    #[inline(always)]
    pub fn add_to(&self, simd: S, k: usize, sum: R::Lanes<S>) -> R::Lanes<S> {
        self.p[k].mul_add(self.f[k], R::splat(simd, 1.0)).mul_add(self.power[k], sum)
    }
}

/// What is added to n, and at which n − that powers are 0.
#[inline(always)]
fn offsets<R: Real>(steps: u32) -> [f64; 2] {
    let (boost, bias) = (f64::from(R::BOOST_EXPONENT), f64::from(R::EXPONENT_BIAS));
    let steps_of = |octaves: f64| octaves * f64::from(steps);
    // Without a table the power is n in the exponent's place.
    [if steps == 1 { boost + bias } else { steps_of(boost) }, steps_of(boost + bias)]
}

impl<S: Simd, R: Real> Reference<S, R> {
    /// The integers next to `x·L`, and `c − x·L`.
    #[inline(always)]
    pub fn next_to(simd: S, x: R::Lanes<S>, scale: Scale<R>) -> (Self, R::Lanes<S>) {
        let lanes = |value: f64| R::splat(simd, value);
        let l = R::Lanes::<S>::simd_from(simd, scale.parts[0]);
        let [offset, zero] = offsets::<R>(scale.steps);
        let magic = lanes(R::ROUNDING.to_f64());
        let c = x.mul_add(l, magic) - magic;
        let shift = lanes(R::ROUNDING.to_f64() + offset) - c;
        let lowest = (c - lanes(zero)) * lanes(1.0 / scale.parts[0].to_f64());
        (Self { parts: scale.parts, shift, lowest }, -fused::<S, R>(simd, scale.parts, x, -c))
    }

    /// The integer 0, for numbers that are at most 2.
    #[inline(always)]
    pub fn zero(simd: S, scale: Scale<R>) -> Self {
        let lanes = |value: f64| R::splat(simd, value);
        let [offset, zero] = offsets::<R>(scale.steps);
        let (shift, lowest) = (lanes(R::ROUNDING.to_f64() + offset), lanes(-zero / scale.parts[0].to_f64()));
        Self { parts: scale.parts, shift, lowest }
    }

    /// The exponentials of some vectors, the same step of each in turn. NaN passes.
    #[inline(always)]
    pub fn terms<const K: usize>(&self, simd: S, x: [R::Lanes<S>; K]) -> Terms<S, R, K> {
        if const { is_fused::<S>() } { self.terms_here(simd, x) } else { self.terms_apart(simd, x) }
    }

    /// [`Self::terms`] as a function: without fused multiply-adds they are several times as long, in each of a hundred places.
    #[inline(never)]
    fn terms_apart<const K: usize>(&self, simd: S, x: [R::Lanes<S>; K]) -> Terms<S, R, K> {
        self.terms_here(simd, x)
    }

    #[inline(always)]
    fn terms_here<const K: usize>(&self, simd: S, mut x: [R::Lanes<S>; K]) -> Terms<S, R, K> {
        let Octaves { steps, p: coefficients } = R::octaves::<S>();
        let l = R::Lanes::<S>::simd_from(simd, self.parts[0]);
        // The order matters: on x86 `a.max(b)` is b when either is NaN.
        for k in 0..K {
            x[k] = self.lowest.max(x[k]);
        }
        let (mut rounded, mut power, mut f) = (x, x, x);
        for k in 0..K {
            rounded[k] = x[k].mul_add(l, self.shift);
        }
        for k in 0..K {
            power[k] = R::power(simd, rounded[k], steps);
        }
        for k in 0..K {
            f[k] = fused::<S, R>(simd, self.parts, x[k], self.shift - rounded[k]);
        }
        let p = polynomials(simd, coefficients, f);
        Terms { p, f, power, rounded }
    }

    /// The references so many whole octaves higher.
    #[inline(always)]
    #[must_use]
    pub fn raised(self, simd: S, octaves: R::Lanes<S>) -> Self {
        let steps = octaves * R::splat(simd, f64::from(R::octaves::<S>().steps));
        let lowest = steps.mul_add(R::splat(simd, 1.0 / self.parts[0].to_f64()), self.lowest);
        Self { shift: self.shift - steps, lowest, ..self }
    }

    /// By how many octaves references had better be raised to be next to what was `largest` of `rounded`: 0 for lanes that are
    /// within reach, and for those that would not be even then. (From 31.5 on they are raised.)
    #[inline(always)]
    pub fn octaves_to(simd: S, largest: R::Lanes<S>) -> R::Lanes<S> {
        let steps = R::octaves::<S>().steps;
        let (zero, magic) = (R::splat(simd, 0.0), R::splat(simd, R::ROUNDING.to_f64()));
        let above = largest - R::splat(simd, R::ROUNDING.to_f64() + offsets::<R>(steps)[0]);
        let octaves = above.mul_add(R::splat(simd, 1.0 / f64::from(steps)), magic) - magic;
        // NaN is neither.
        let raised =
            octaves.simd_gt(R::splat(simd, f64::from(REACH - 1))) & octaves.simd_le(R::splat(simd, MOST_OCTAVES));
        raised.select(octaves, zero)
    }

    /// Whether no `rounded` of a lane is more than [`REACH`] octaves above the reference, or NaN (in f64 that may be lost: then
    /// the sum is NaN).
    #[inline(always)]
    pub fn within_reach(simd: S, largest: R::Lanes<S>) -> <R::Lanes<S> as SimdBase<S>>::Mask {
        let steps = R::octaves::<S>().steps;
        largest.simd_le(R::splat(simd, R::ROUNDING.to_f64() + offsets::<R>(steps)[0] + f64::from(REACH * steps)))
    }
}

/// `2^(octaves + rest/N)` in f64, for up to 1000 octaves, as `(1 + t)·2^octaves`: t, and the power.
#[inline(always)]
pub fn power_of_rest<S: Simd>(simd: S, octaves: f64x8<S>, rest: f64x8<S>) -> [f64x8<S>; 2] {
    let p = polynomial::<S, f64>(simd, f64::octaves::<S>().p, rest);
    // The number that is an integer in the lowest bits of its sum with 2^52, and from there in the exponent's place.
    let sum = octaves + f64x8::splat(simd, 4_503_599_627_370_496.0 + f64::from(f64::EXPONENT_BIAS));
    let bits: u64x8<S> = sum.bitcast();
    let power: f64x8<S> = (bits << 52).bitcast();
    [p * rest, power]
}

/// `x·L + addend`, rounded once; with what L lacks, if that is added.
#[inline(always)]
fn fused<S: Simd, R: Real>(simd: S, parts: [R; 2], x: R::Lanes<S>, addend: R::Lanes<S>) -> R::Lanes<S> {
    let lanes = |value| R::Lanes::<S>::simd_from(simd, value);
    let [l, rest] = [lanes(parts[0]), lanes(parts[1])];
    if const { is_fused::<S>() } {
        let sum = x.mul_add(l, addend);
        return if R::WHOLE_EIGHTHS { x.mul_add(rest, sum) } else { sum };
    }
    // Without a fused multiply-add: the product as a sum of two (Dekker). The addend cancels all of the first.
    let splitter = lanes(R::SPLITTER);
    let halves = |number: R::Lanes<S>| {
        let shifted = number * splitter;
        let high = shifted - (shifted - number);
        [high, number - high]
    };
    let ([l_high, l_low], [high, low]) = (halves(l), halves(x));
    let product = x * l;
    let lost = ((high * l_high - product) + high * l_low + low * l_high) + low * l_low;
    (product + addend) + if R::WHOLE_EIGHTHS { lost + x * rest } else { lost }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::{Kernel, Level};

    /// Exponentials of numbers relative to the integer next to another, and whether each is within reach.
    struct Exps<'a, R> {
        numbers: &'a [R],
        reference: R,
    }

    impl<R: Real> Kernel for Exps<'_, R> {
        /// c, N, and each exponential with its flag.
        type Output = (f64, f64, Vec<(R, bool)>);

        #[inline(always)]
        fn run<S: Simd>(self, simd: S) -> Self::Output {
            let lanes = |value| R::Lanes::<S>::simd_from(simd, value);
            let scale = Scale::<R>::new::<S>(1.0);
            let (steps, l) = (scale.steps, scale.parts[0].to_f64());
            let (reference, rest) = Reference::<S, R>::next_to(simd, lanes(self.reference), scale);
            let exact = self.reference.to_f64() * l;
            let c = (exact + rest.as_slice()[0].to_f64()).round();
            let exps = self.numbers.iter().map(|&x| {
                let terms = reference.terms(simd, [lanes(x)]);
                let reach =
                    Reference::<S, R>::within_reach(simd, R::larger::<S>(terms.rounded[0], lanes(R::from_f64(0.0))));
                (terms.exp(0).as_slice()[0], reach.to_bitmask() & 1 != 0)
            });
            (c, f64::from(steps), exps.collect())
        }
    }

    /// Numbers of a size at which references are made, dense around 0.
    fn numbers(largest: f64) -> Vec<f64> {
        let dense = (0..1 << 17).map(|i| f64::from(i - (1 << 16)) * (1.0 / f64::from(1 << 17)));
        let wide = (0..1 << 12).map(|i| 21.0 - f64::from(i) * 0.03);
        dense.chain(wide).chain([largest, -largest]).collect()
    }

    #[test]
    fn exponentials_of_f32_are_near_from_any_reference() {
        for &level in Level::available() {
            for reference in [0.0f32, 1.0, -0.7, 30.0, -100.0, 1000.5, -65_000.25, 131_000.0] {
                let numbers: Vec<f32> = numbers(0.0).iter().map(|x| (x + f64::from(reference)) as f32).collect();
                let (c, steps, exps) = level.run(Exps { numbers: &numbers, reference });
                for (&x, (exp, within)) in numbers.iter().zip(exps) {
                    // x·L is exact in f64, as is its difference from c.
                    let exact =
                        ((f64::from(x) * f64::from(f32::EIGHTHS[0]) * (steps / 8.0) - c) / steps).exp2() * f32::BOOST;
                    let error = (f64::from(exp) / exact - 1.0).abs() / 2f64.powi(-24);
                    assert!(within && error < 2.0, "{}: {error} u at {x} from {reference}", level.name());
                }
            }
        }
    }

    #[test]
    fn exponentials_of_f64_are_near_from_any_reference() {
        for &level in Level::available() {
            for reference in [0.0f64, 1.0, -0.7, 30.0, -100.0] {
                let numbers: Vec<f64> = numbers(0.0).iter().map(|x| x + reference).collect();
                let (c, steps, exps) = level.run(Exps { numbers: &numbers, reference });
                // Relative to another exponential of the same, for which libm will do.
                let own = (c * std::f64::consts::LN_2 / steps - reference).exp();
                for (&x, (exp, within)) in numbers.iter().zip(exps) {
                    let exact = (x - reference).exp() / own;
                    let error = (exp / f64::BOOST / exact - 1.0).abs() / 2f64.powi(-53);
                    assert!(within && error < 300.0, "{}: {error} u at {x} from {reference}", level.name());
                }
            }
        }
    }

    #[test]
    fn ends_and_special_numbers() {
        fn check<R: Real>(level: Level) {
            for reference in [0.0, 20.0, -3.0] {
                let numbers = [f64::NEG_INFINITY, -1e30, R::LOWEST.to_f64(), f64::NAN, f64::INFINITY, reference + 39.0]
                    .map(R::from_f64);
                let (_, _, exps) = level.run(Exps { numbers: &numbers, reference: R::from_f64(reference) });
                for (exp, within) in &exps[..3] {
                    assert!(exp.to_f64() == 0.0 && *within, "{}", level.name());
                }
                assert!(exps[3].0.to_f64().is_nan(), "{}", level.name());
                assert!(!exps[4].1 && !exps[5].1, "{}", level.name());
            }
        }
        for &level in Level::available() {
            check::<f32>(level);
            check::<f64>(level);
        }
    }
}
