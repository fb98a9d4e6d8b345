//! How far apart two distributions of the same classes are: the divergences of a candidate q from a reference p.
//!
//! With `d = ln q − ln p`, a class adds `p·φ(d)` to KL(p || q), `q·φ(−d)` to KL(q || p), with `φ(d) = e^d − 1 − d`, and to the
//! Jensen-Shannon divergence `(p + q)/2·γ(d/2)`, with `γ(h) = h·tanh h − ln cosh h`. No term is negative, and all are 0 where d is;
//! `e^d − 1`, which the divergences as they are usually written lack, adds up to `Σ q − Σ p = 0`. What is wrong with d, because the
//! log-sum-exps are rounded, is multiplied by `q − p`, and so next to nothing where p and q are nearly the same: there
//! `Σ p·(ln p − ln q)` has no right digit.
//!
//! Near 0 φ is its series, `φ(±d) = d²·(E(d²) ± d·O(d²))` with `E = 1/2! + d²/4! + …` and `O = 1/3! + d²/5! + …`, and
//! `γ(h) = h²·G(h²)` with a polynomial G. Elsewhere `p·φ(d) = (q − p) − p·d`, and, with `e = exp(−|d|)`,
//! `γ(d/2) = ln 2 − |d|·e/(1 + e) − log1p e`.

use fearless_simd::{Simd, prelude::*};

use super::cap::Cap;
use crate::element::Element;
use crate::math::{Boost, Real, Total, polynomial};
use crate::rows::{BLOCK, Row};

/// What two rows tell.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Compared {
    /// KL(reference || candidate), in nats.
    pub kl: f64,
    /// KL(candidate || reference).
    pub reverse_kl: f64,
    /// The Jensen-Shannon divergence.
    pub js: f64,
    /// What each row tells by itself.
    pub rows: [Shape; 2],
}

/// What a row tells of its distribution.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Shape {
    /// The entropy, in nats.
    pub entropy: f64,
    /// The first class with the largest logit, and that.
    pub top: (usize, f64),
}

/// Of φ: `1/(2k + 2)!` and `1/(2k + 3)!`, highest k first.
const EVEN: [f64; 9] = reciprocal_factorials(2);
const ODD: [f64; 9] = reciprocal_factorials(3);

const fn reciprocal_factorials(first: u32) -> [f64; 9] {
    let mut numbers = [0.0; 9];
    let mut k = 0;
    while k < 9 {
        let (mut factorial, mut factor) = (1.0, 1);
        while factor <= first + 2 * k as u32 {
            factorial *= factor as f64;
            factor += 1;
        }
        numbers[8 - k] = 1.0 / factorial;
        k += 1;
    }
    numbers
}

/// G, highest power first, for d up to 1.
// scripts/polynomials.py jensen_shannon_f32: relative error 2^-25.09.
const GAMMA_F32: [f32; 5] = [0.015_438_104, -0.046_373_732_4, 0.111_042_298, -0.249_998_242, 0.5];

/// G, highest power first, for d up to ¼.
// scripts/polynomials.py jensen_shannon_f64: relative error 2^-54.11.
const GAMMA_F64: [f64; 6] = [
    -0.007_972_781_449_722_070_3,
    0.019_679_947_371_118_715,
    -0.047_222_202_092_268_26,
    0.111_111_111_042_833_55,
    -0.249_999_999_999_924_75,
    0.5,
];

/// Compare the softmaxes of two rows with these log-sum-exps, as sums of two, the candidate's being `shift` above the reference's.
/// Equal rows have divergences of 0.
///
/// A class that only the reference has makes the first divergence infinite, one that only the candidate has the second.
#[inline(never)]
pub fn compare<S: Simd, R: Real + Element<Real = R>>(
    simd: S,
    rows: [Row; 2],
    levels: [[f64; 2]; 2],
    shift: [f64; 2],
    (temperature, softcap): (f64, Option<f64>),
) -> Compared {
    simd.vectorize(
        #[inline(always)]
        || {
            let classes = rows[0].classes();
            assert_eq!(classes, rows[1].classes());
            let between = Between::<S, R>::new(simd, levels, shift, (temperature, softcap));
            let (zero, lowest) = (R::splat(simd, 0.0), R::splat(simd, f64::NEG_INFINITY));
            let (mut totals, mut tops, mut places) = ([Total::zero(simd); 5], [lowest; 2], [zero; 2]);
            let mut blocks = [[R::default(); BLOCK]; 2];
            let mut are_equal = true;
            for start in (0..classes).step_by(BLOCK) {
                let length = BLOCK.min(classes - start);
                let [first, second] = &mut blocks;
                let (first, second) =
                    (rows[0].lend(simd, start, length, first), rows[1].lend(simd, start, length, second));
                let mut sums = [zero; 5];
                for vector in 0..length.div_ceil(R::LANES) {
                    // SAFETY: what was lent is a block, or the vectors that the row has a part of.
                    let logits = unsafe {
                        [R::load(simd, first.add(vector * R::LANES)), R::load(simd, second.add(vector * R::LANES))]
                    };
                    are_equal &= logits[0].simd_eq(logits[1]).all_true();
                    let terms = between.terms(logits);
                    for part in 0..5 {
                        sums[part] += terms[part];
                    }
                    let number = R::splat(simd, (start / R::LANES + vector) as f64);
                    for model in 0..2 {
                        let is_larger = logits[model].simd_gt(tops[model]);
                        tops[model] = is_larger.select(logits[model], tops[model]);
                        places[model] = is_larger.select(number, places[model]);
                    }
                }
                for part in 0..5 {
                    R::add_to(&mut totals[part], sums[part]);
                }
            }
            let mut found = Compared::default();
            for model in 0..2 {
                found.rows[model].entropy = R::sum_of_lanes(&totals[3 + model]);
                found.rows[model].top = first_of::<S, R>(tops[model], places[model]);
            }
            if !are_equal {
                found.kl = R::sum_of_lanes(&totals[0]);
                found.reverse_kl = R::sum_of_lanes(&totals[1]);
                found.js = R::sum_of_lanes(&totals[2]);
            }
            found
        },
    )
}

/// The class of the largest of each lane's largest logits, which is in that lane of a vector with this number; the first of equals.
#[inline(always)]
fn first_of<S: Simd, R: Real>(tops: R::Lanes<S>, numbers: R::Lanes<S>) -> (usize, f64) {
    let (top, mut first) = (R::largest(tops), usize::MAX);
    let mut lanes = tops.simd_eq(R::Lanes::<S>::simd_from(tops.token(), top)).to_bitmask();
    while lanes != 0 {
        let lane = lanes.trailing_zeros() as usize;
        first = first.min(numbers.as_slice()[lane].to_f64() as usize * R::LANES + lane);
        lanes &= lanes - 1;
    }
    (first, top.to_f64())
}

/// A sum of two in all lanes, the second of which has what the first has no room for.
#[inline(always)]
fn parts<S: Simd, R: Real>(simd: S, [number, rest]: [f64; 2]) -> [R::Lanes<S>; 2] {
    let rounded = R::from_f64(number).to_f64();
    [R::splat(simd, rounded), R::splat(simd, (number - rounded) + rest)]
}

/// Two distributions.
struct Between<S: Simd, R: Real> {
    simd: S,
    cap: Option<Cap<S>>,
    /// `1 / T`.
    unit: R::Lanes<S>,
    /// The log-sum-exps, as sums of two.
    levels: [[R::Lanes<S>; 2]; 2],
    shift: [R::Lanes<S>; 2],
    even: [R; 9],
    odd: [R; 9],
    gamma: [R; 6],
}

impl<S: Simd, R: Real> Between<S, R> {
    const IS_SINGLE: bool = R::LANES == f32::LANES;
    /// So many coefficients of φ are enough.
    const TERMS: usize = if Self::IS_SINGLE { 5 } else { 9 };
    /// Up to here γ is `h²·G(h²)`.
    const NEAR: f64 = if Self::IS_SINGLE { 1.0 } else { 0.25 };

    #[inline(always)]
    fn new(simd: S, levels: [[f64; 2]; 2], shift: [f64; 2], (temperature, softcap): (f64, Option<f64>)) -> Self {
        let mut gamma = GAMMA_F64.map(R::from_f64);
        if Self::IS_SINGLE {
            gamma[0] = R::default();
            for (number, coefficient) in gamma[1..].iter_mut().zip(GAMMA_F32) {
                *number = R::from_f64(f64::from(coefficient));
            }
        }
        Self {
            simd,
            cap: softcap.map(
                #[inline(always)]
                |height| Cap::new::<R>(simd, height),
            ),
            unit: R::splat(simd, 1.0 / temperature),
            levels: [parts::<S, R>(simd, levels[0]), parts::<S, R>(simd, levels[1])],
            shift: parts::<S, R>(simd, shift),
            even: EVEN.map(R::from_f64),
            odd: ODD.map(R::from_f64),
            gamma,
        }
    }

    /// What the classes of these logits add to each divergence, and to the entropies.
    #[inline(always)]
    fn terms(&self, logits: [R::Lanes<S>; 2]) -> [R::Lanes<S>; 5] {
        let simd = self.simd;
        let lanes = |value: f64| R::splat(simd, value);
        let (one, half, lowest) = (lanes(1.0), lanes(0.5), lanes(R::UNDERFLOW));
        let (mut values, mut logs) = (logits, logits);
        for model in 0..2 {
            if let Some(cap) = &self.cap {
                values[model] = R::once(cap.of::<R>(simd, logits[model]).0);
            }
            let [level, rest] = self.levels[model];
            // A masked class has a probability of 0 and no logarithm.
            logs[model] = lowest.max(values[model].mul_sub(self.unit, level) - rest);
        }
        let [p, q] = R::exps(simd, logs, Boost::None);
        let d = ((values[1] - values[0]) * self.unit - self.shift[0]) - self.shift[1];
        let (size, square) = (d.abs(), d * d);
        let even = polynomial::<S, R>(simd, &self.even[9 - Self::TERMS..], square);
        let odd = polynomial::<S, R>(simd, &self.odd[9 - Self::TERMS..], square) * d;
        let is_near = size.simd_le(one);
        let (excess, sum) = (q - p, p + q);
        let kl = is_near.select(p * (square * (even + odd)), excess - p * d);
        let reverse = is_near.select(q * (square * (even - odd)), q * d - excess);
        let quarter = square * lanes(0.25);
        let mut gamma = quarter * polynomial::<S, R>(simd, &self.gamma[usize::from(Self::IS_SINGLE)..], quarter);
        let entropies = [-(p * logs[0]), -(q * logs[1])];
        // NaN is not near.
        let is_series = size.simd_le(lanes(Self::NEAR));
        if !is_series.all_true() {
            let [exp] = R::exps(simd, [-size], Boost::None);
            let [log] = R::logs_1p(simd, [exp]);
            let elsewhere = (lanes(std::f64::consts::LN_2) - size * (exp / (one + exp))) - log;
            gamma = is_series.select(gamma, elsewhere);
            if !size.simd_lt(lanes(f64::INFINITY)).all_true() {
                let [kl, reverse, js] = self.masked(values, [p, q], [kl, reverse, half * sum * gamma]);
                return [kl, reverse, js, entropies[0], entropies[1]];
            }
        }
        [kl, reverse, half * sum * gamma, entropies[0], entropies[1]]
    }

    /// The terms where some classes are masked, in one of the rows or in both.
    #[inline(always)]
    fn masked(
        &self,
        values: [R::Lanes<S>; 2],
        [p, q]: [R::Lanes<S>; 2],
        [kl, reverse, js]: [R::Lanes<S>; 3],
    ) -> [R::Lanes<S>; 3] {
        let lanes = |value: f64| R::splat(self.simd, value);
        let (zero, infinite, masked) = (lanes(0.0), lanes(f64::INFINITY), lanes(f64::NEG_INFINITY));
        let (first, second) = (values[0].simd_eq(masked), values[1].simd_eq(masked));
        // γ is ln 2 at most.
        let largest = lanes(std::f64::consts::LN_2 / 2.0) * (p + q);
        [
            first.select(second.select(zero, q), second.select(infinite, kl)),
            first.select(second.select(zero, infinite), second.select(p, reverse)),
            first.select(second.select(zero, largest), second.select(largest, js)),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::array::Array;
    use crate::simd::{Kernel, Level as SimdLevel};

    struct Of<'a, T>([&'a [T]; 2], [f64; 2]);

    impl<T: Real + Element<Real = T>> Kernel for Of<'_, T> {
        type Output = Compared;

        #[inline(always)]
        fn run<S: Simd>(self, simd: S) -> Compared {
            let Of([p, q], [first, second]) = self;
            let arrays = [Array::of(p, p.len()), Array::of(q, q.len())];
            let rows = [arrays[0].row(0), arrays[1].row(0)];
            let levels = [[first.ln(), 0.0], [second.ln(), 0.0]];
            compare::<S, T>(simd, rows, levels, [(second / first).ln(), 0.0], (1.0, None))
        }
    }

    fn check<T: Real + Element<Real = T>>(distance: f64, tolerance: f64) {
        let numbers = |shift: f64| -> Vec<T> {
            (0..700).map(|i| <T as Real>::from_f64(-f64::from(i % 61) / 4.0 + shift * f64::from(i % 7 - 3))).collect()
        };
        let rows = [numbers(0.0), numbers(distance)];
        let exps = rows.each_ref().map(|row| row.iter().map(|x| Real::to_f64(*x).exp()).collect::<Vec<_>>());
        let totals = exps.each_ref().map(|exps| exps.iter().sum::<f64>());
        let (mut kl, mut reverse, mut js) = (0.0, 0.0, 0.0);
        for (a, b) in rows[0].iter().zip(&rows[1]) {
            let [a, b] = [*a, *b].map(Real::to_f64);
            let d = (b - a) - (totals[1] / totals[0]).ln();
            let p = a.exp() / totals[0];
            kl += p * (d.exp_m1() - d);
            reverse += p * d.exp() * ((-d).exp_m1() + d);
            let h = d / 2.0;
            let series = h * h * (0.5 - h * h * (0.25 - h * h * (1.0 / 9.0 - h * h * (17.0 / 360.0))));
            let gamma = if h.abs() < 0.02 { series } else { h * h.tanh() - h.cosh().ln() };
            js += p.midpoint(p * d.exp()) * gamma;
        }
        for &level in SimdLevel::available() {
            let found = level.run(Of([&rows[0], &rows[1]], totals));
            for (found, expected) in [(found.kl, kl), (found.reverse_kl, reverse), (found.js, js)] {
                assert!((found - expected).abs() <= tolerance * expected, "{}: {found:e} {expected:e}", level.name());
            }
            for (row, (exps, total)) in exps.iter().zip(totals).enumerate() {
                let entropy: f64 = exps.iter().map(|exp| -exp / total * (exp / total).ln()).sum();
                assert!((found.rows[row].entropy / entropy - 1.0).abs() < tolerance, "{}", level.name());
                let top = (0..700).max_by(|a, b| exps[*a].total_cmp(&exps[*b]).then(b.cmp(a))).unwrap();
                assert_eq!(found.rows[row].top, (top, Real::to_f64(rows[row][top])), "{}", level.name());
            }
            let same = level.run(Of([&rows[0], &rows[0]], [totals[0]; 2]));
            assert_eq!([same.kl, same.reverse_kl, same.js], [0.0; 3]);
        }
    }

    #[test]
    fn divergences_agree_with_the_formula_however_small_they_are() {
        for distance in [1e-3, 0.02, 0.2, 0.5, 1.0, 3.0] {
            check::<f32>(distance, 2e-5);
            check::<f64>(distance, 1e-9);
        }
    }

    #[test]
    fn masked_classes_are_nothing_or_infinitely_far() {
        let infinite = f32::NEG_INFINITY;
        let (both, one) = ([0.0, 0.0, infinite], [0.0, infinite, infinite]);
        for &level in SimdLevel::available() {
            let found = level.run(Of([&both[..], &one[..]], [2.0, 1.0]));
            assert!(found.kl == f64::INFINITY && (found.reverse_kl - std::f64::consts::LN_2).abs() < 1e-6);
            let exact = 0.5 * (0.5 * (0.5f64 / 0.75).ln() + 0.5 * (0.5f64 / 0.25).ln()) + 0.5 * (1.0f64 / 0.75).ln();
            assert!((found.js - exact).abs() < 1e-6, "{} {exact}", found.js);
        }
    }
}
