//! Targets that list a few classes of each row: what they weigh, what is summed of their logits, and their gradients.
//!
//! With the own class the one that has the largest logit of those that a row lists, every `z(own) − z` is at least 0, and so is
//! `lse − z(own)`: the loss, `Σ t·(z(own) − z) + Σ t·(lse − z(own))`, is a sum of what is not negative, and no digits are lost. The
//! pass over the row is that of a class target. The rest is done in f64 for eight listed classes at a time.
//!
//! # One more class for all that are not listed
//!
//! Let P be what is listed of the target and Q the model's share of the same classes. One class more holds the rest of both:
//! the divergence gets `(1 − P)·log((1 − P) / (1 − Q))`, and the gradient of a class that is not listed is
//! `q·(1 − (1 − P) / (1 − Q))`. For a confident model 1 − Q would be a difference of equal numbers, so that the listed classes are
//! left out of the pass instead: it sums what they leave, and they are added to it afterwards (`Losses::join` of `finish.rs`).

use fearless_simd::{Simd, f64x8, prelude::*};

use super::finish::{LARGEST_RATIO, quotient};
use crate::math::{Boost, Real, Twice, log_one_plus, two_sum};

/// The classes that the target of a row lists.
#[derive(Clone, Copy, Debug)]
pub struct Listed<'a> {
    /// The classes, each once, in ascending order; none if the row does not count.
    pub classes: &'a [usize],
    /// What each of them weighs.
    pub shares: &'a [f64],
    /// The sum of that.
    pub mass: f64,
    /// What the other classes weigh together.
    pub left: f64,
    /// `Σ t·log t` of all these, of a divergence.
    pub offset: f64,
}

impl Listed<'_> {
    /// Write the shares of the classes from `start` on, all that `block` has room for.
    #[inline(always)]
    pub fn fill(&self, start: usize, block: &mut [f64]) {
        block.fill(0.0);
        let first = self.classes.partition_point(|class| *class < start);
        for (class, share) in self.classes[first..].iter().zip(&self.shares[first..]) {
            let Some(place) = block.get_mut(class - start) else { break };
            *place = *share;
        }
    }
}

/// What is known of a row of a [`ListedPart`].
#[derive(Clone, Copy, Debug)]
struct Head {
    /// Where its classes end; they begin where those of the row before end.
    end: usize,
    mass: f64,
    left: f64,
    offset: f64,
}

/// The listed classes of some rows, one row after the other.
#[derive(Clone, Debug, Default)]
pub struct ListedPart {
    classes: Vec<usize>,
    shares: Vec<f64>,
    heads: Vec<Head>,
}

impl ListedPart {
    /// Room for so many rows and classes, if there is memory for it.
    pub fn with_room(rows: usize, classes: usize) -> Option<Self> {
        let mut part = Self::default();
        part.classes.try_reserve_exact(classes).ok()?;
        part.shares.try_reserve_exact(classes).ok()?;
        part.heads.try_reserve_exact(rows).ok()?;
        Some(part)
    }

    /// Add a class to the row that comes next.
    #[inline(always)]
    pub fn push(&mut self, class: usize, share: f64) {
        self.classes.push(class);
        self.shares.push(share);
    }

    /// The classes and shares of the row that comes next.
    #[inline(always)]
    pub fn open(&mut self) -> (&[usize], &mut [f64]) {
        let start = self.end();
        (&self.classes[start..], &mut self.shares[start..])
    }

    /// The row that comes next is at its end.
    #[inline(always)]
    pub fn close(&mut self, mass: f64, left: f64, offset: f64) {
        self.heads.push(Head { end: self.classes.len(), mass, left, offset });
    }

    #[inline(always)]
    fn end(&self) -> usize {
        self.heads.last().map_or(0, |head| head.end)
    }

    #[inline(always)]
    fn row(&self, row: usize) -> Listed<'_> {
        let Head { end, mass, left, offset } = self.heads[row];
        let start = row.checked_sub(1).map_or(0, |before| self.heads[before].end);
        Listed { classes: &self.classes[start..end], shares: &self.shares[start..end], mass, left, offset }
    }
}

/// The listed classes of all rows.
#[derive(Clone, Debug)]
pub struct ListedRows {
    parts: Vec<ListedPart>,
    rows_a_part: usize,
    rows: usize,
    counted: usize,
    /// Whether other classes weigh something in any of them.
    has_tails: bool,
    /// If the loss is a divergence: the least that it is.
    divergence: Option<f64>,
}

impl ListedRows {
    /// Rows in parts of so many, but for the last; for a divergence that is at least this, if it is one.
    ///
    /// # Panics
    /// If they are not.
    pub fn new(parts: Vec<ListedPart>, rows_a_part: usize, divergence: Option<f64>) -> Self {
        assert!(parts.iter().rev().skip(1).all(|part| part.heads.len() == rows_a_part));
        let rows = parts.iter().map(|part| part.heads.len()).sum();
        let heads = || parts.iter().flat_map(|part| &part.heads);
        let has_tails = heads().any(|head| head.left > 0.0);
        let mut all = Self { parts, rows_a_part, rows, counted: 0, has_tails, divergence };
        all.counted = (0..rows).filter(|&row| !all.row(row).classes.is_empty()).count();
        all
    }

    /// The number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The number of rows that list a class.
    pub fn counted(&self) -> usize {
        self.counted
    }

    /// Whether other classes weigh something in any row.
    #[inline(always)]
    pub fn has_tails(&self) -> bool {
        self.has_tails
    }

    /// The least that a loss is, if it is a divergence.
    #[inline(always)]
    pub fn divergence(&self) -> Option<f64> {
        self.divergence
    }

    /// What a row lists.
    ///
    /// # Panics
    /// If there is no such row.
    #[inline(always)]
    pub fn row(&self, row: usize) -> Listed<'_> {
        self.parts[row / self.rows_a_part].row(row % self.rows_a_part)
    }
}

/// Numbers from `start` on, as many as a vector has; behind the last of them `rest`.
#[inline(always)]
fn part<S: Simd>(simd: S, numbers: &[f64], start: usize, rest: f64) -> f64x8<S> {
    if let Some(numbers) = numbers.get(start..start + 8) {
        return f64x8::from_slice(simd, numbers);
    }
    let mut padded = [rest; 8];
    padded[..numbers.len() - start].copy_from_slice(&numbers[start..]);
    f64x8::from_slice(simd, &padded)
}

/// By how much the own logit is above some, over the temperature, as a sum of two.
#[inline(always)]
fn above<S: Simd>(own: f64x8<S>, logits: f64x8<S>, temperature: f64) -> Twice<S> {
    quotient(own.token(), own, logits, f64x8::splat(own.token(), 0.0), temperature)
}

/// The exponential of minus that.
#[inline(always)]
fn exp_of_minus<S: Simd>([above, lost]: Twice<S>) -> f64x8<S> {
    let simd = above.token();
    // What is infinitely far has none.
    let bounded = f64x8::splat(simd, -f64::UNDERFLOW).min(above);
    let exp = <f64 as Real>::exp(simd, -bounded, Boost::Full) * f64x8::splat(simd, 1.0 / f64::BOOST);
    exp - exp * lost
}

/// `Σ t·(z(own) − z)` over listed classes of which the own one has number `own`, and, if asked for, the exponentials of the others
/// over the own one.
#[inline(never)]
pub fn sum<S: Simd>(
    simd: S,
    logits: &[f64],
    shares: &[f64],
    own: usize,
    temperature: f64,
    exponentials: bool,
) -> [f64; 2] {
    simd.vectorize(
        #[inline(always)]
        || {
            let zero = f64x8::splat(simd, 0.0);
            let own_logit = f64x8::splat(simd, logits[own]);
            let ([mut sum, mut lost], [mut others, mut others_lost]) = ([zero; 2], [zero; 2]);
            for start in (0..logits.len()).step_by(8) {
                let share = part(simd, shares, start, 0.0);
                let above = above(own_logit, part(simd, logits, start, f64::NEG_INFINITY), temperature);
                // A masked class that weighs nothing costs nothing.
                let term = share.simd_eq(zero).select(zero, share * above[0]);
                let [rounded, rest] = two_sum(sum, term);
                (sum, lost) = (rounded, lost + rest);
                if exponentials {
                    let mut exps = exp_of_minus(above);
                    if own / 8 == start / 8 {
                        exps.as_mut_slice()[own % 8] = 0.0;
                    }
                    let [rounded, rest] = two_sum(others, exps);
                    (others, others_lost) = (rounded, others_lost + rest);
                }
            }
            [total(sum, lost), total(others, others_lost)]
        },
    )
}

/// The sum of all lanes, in a fixed order, and of what they lost.
#[inline(always)]
fn total<S: Simd>(sum: f64x8<S>, lost: f64x8<S>) -> f64 {
    let (mut sum, mut lost): ([f64; 8], [f64; 8]) = (sum.into(), lost.into());
    for half in [4, 2, 1] {
        for lane in 0..half {
            let [rounded, rest] = two_sum(sum[lane], sum[lane + half]);
            (sum[lane], lost[lane]) = (rounded, (lost[lane] + lost[lane + half]) + rest);
        }
    }
    // What an infinity lost is NaN.
    if sum[0].is_finite() { sum[0] + lost[0] } else { sum[0] }
}

/// Write `mass·exp(z − z(own)) − scale·t` for the listed classes.
#[inline(never)]
pub fn gradients<S: Simd>(
    simd: S,
    logits: &[f64],
    shares: &[f64],
    own: usize,
    temperature: f64,
    [mass, scale]: [f64; 2],
    out: &mut [f64],
) {
    simd.vectorize(
        #[inline(always)]
        || {
            let own_logit = f64x8::splat(simd, logits[own]);
            let [mass, scale] = [f64x8::splat(simd, mass), f64x8::splat(simd, scale)];
            for (start, out) in (0..logits.len()).step_by(8).zip(out.chunks_mut(8)) {
                let above = above(own_logit, part(simd, logits, start, f64::NEG_INFINITY), temperature);
                let less = scale * part(simd, shares, start, 0.0);
                let gradients: [f64; 8] = exp_of_minus(above).mul_sub(mass, less).into();
                out.copy_from_slice(&gradients[..out.len()]);
            }
        },
    );
}

/// `Σ t·log t` of numbers that are at least 0.
#[inline(never)]
pub fn sum_of_logs<S: Simd>(simd: S, shares: &[f64]) -> f64 {
    simd.vectorize(
        #[inline(always)]
        || {
            let lanes = |value: f64| f64x8::splat(simd, value);
            let (zero, one) = (lanes(0.0), lanes(1.0));
            let [mut sum, mut lost] = [zero; 2];
            for start in (0..shares.len()).step_by(8) {
                let share = part(simd, shares, start, 0.0);
                // log t = log(1 + (t − 1)) = −log(1 + (1 − t) / t), of which the one is used that takes no negative number. Smaller
                // shares than the inverse of what it takes count as that: their product with the logarithm is nothing.
                let is_large = share.simd_gt(one);
                let inverse = lanes(LARGEST_RATIO).min((one - share) / share);
                let [log, rest] = log_one_plus(simd, is_large.select(lanes(LARGEST_RATIO).min(share - one), inverse));
                let log = log + rest;
                let term = share * is_large.select(log, -log);
                let term = share.simd_eq(zero).select(zero, term);
                let [rounded, rest] = two_sum(sum, term);
                (sum, lost) = (rounded, lost + rest);
            }
            total(sum, lost)
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::{Kernel, Level};

    struct All<'a> {
        logits: &'a [f64],
        shares: &'a [f64],
        own: usize,
    }

    impl Kernel for All<'_> {
        type Output = ([f64; 2], f64, Vec<f64>);

        #[inline(always)]
        fn run<S: Simd>(self, simd: S) -> Self::Output {
            let Self { logits, shares, own } = self;
            let mut out = vec![f64::NAN; logits.len()];
            gradients(simd, logits, shares, own, 2.0, [3.0, 0.5], &mut out);
            (sum(simd, logits, shares, own, 2.0, true), sum_of_logs(simd, shares), out)
        }
    }

    #[test]
    fn sums_and_gradients_agree_with_the_formulas() {
        for count in [1, 2, 7, 8, 9, 16, 31, 64] {
            let logits: Vec<f64> = (0..count).map(|i| f64::from((i * 37) % 23) / 3.0 - 4.0).collect();
            let shares: Vec<f64> = (0..count).map(|i| [0.0, 1e-320, 1e-9, 0.25, 1.0, 3.5][i as usize % 6]).collect();
            let own = (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b])).unwrap();
            let exp = |logit: f64| ((logit - logits[own]) / 2.0).exp();
            let close = |found: f64, expected: f64| (found - expected).abs() <= 1e-14 * expected.abs().max(1.0);
            for &level in Level::available() {
                let ([above, others], logs, out) = level.run(All { logits: &logits, shares: &shares, own });
                let pairs = || logits.iter().zip(&shares);
                assert!(close(above, pairs().map(|(z, t)| t * (logits[own] - z) / 2.0).sum()));
                assert!(close(others, logits.iter().map(|z| exp(*z)).sum::<f64>() - 1.0));
                assert!(close(logs, shares.iter().filter(|t| **t > 0.0).map(|t| t * t.ln()).sum()));
                for (found, (z, t)) in out.iter().zip(pairs()) {
                    assert!(close(*found, 3.0 * exp(*z) - 0.5 * t));
                }
            }
        }
    }

    #[test]
    fn masked_classes_cost_nothing_or_infinity() {
        for &level in Level::available() {
            let ([above, others], _, out) =
                level.run(All { logits: &[1.0, f64::NEG_INFINITY], shares: &[1.0, 0.0], own: 0 });
            assert_eq!((above, others, out), (0.0, 0.0, vec![2.5, 0.0]), "{}", level.name());
            let ([above, _], ..) = level.run(All { logits: &[1.0, f64::NEG_INFINITY], shares: &[0.5, 0.5], own: 0 });
            assert_eq!(above, f64::INFINITY, "{}", level.name());
        }
    }

    #[test]
    fn shares_are_found_in_any_block() {
        let listed = Listed { classes: &[2, 7, 8], shares: &[0.5, 0.25, 0.125], mass: 0.875, left: 0.0, offset: 0.0 };
        for (start, expected) in [(0, [0.0, 0.0, 0.5, 0.0]), (5, [0.0, 0.0, 0.25, 0.125]), (9, [0.0; 4])] {
            let mut block = [f64::NAN; 4];
            listed.fill(start, &mut block);
            assert_eq!(block, expected);
        }
    }
}
