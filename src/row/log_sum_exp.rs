//! The first verb: one pass over a row's logits, for the loss and for what else can be known of the row.

use fearless_simd::{Simd, prelude::*};

use super::temperature::sum_of_three;
use super::{BLOCK, Scale, Scratch, Temperature};
use crate::element::Element;
use crate::math::{Boost, Real, Total};
use crate::simd::prefetch;
use crate::view::Row;

/// How far ahead of the block in work the next ones are asked for, in bytes (see [`crate::simd`] for the figures).
const PREFETCH: usize = 8192;

/// `log Σ exp(x / T)` in two parts: it is `reference / T + ln sum`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LogSumExp {
    /// A logit: that of a class, or the lowest finite number.
    pub reference: f64,
    /// `Σ exp((x − reference) / T)`.
    pub sum: f64,
}

impl LogSumExp {
    /// The log-sum-exp; −∞ for a row of only −∞.
    pub fn value(self, temperature: Temperature) -> f64 {
        let [high, low] = temperature.difference(self.reference, 0.0);
        sum_of_three(high, self.sum.ln(), low)
    }
}

/// What one pass can tell of a row beside its log-sum-exp.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Statistics {
    /// The log-sum-exp.
    pub log_sum_exp: LogSumExp,
    /// `Σ z·exp z` with `z = (x − reference) / T`; a masked class counts 0.
    pub weighted: f64,
    /// How many classes rank above the left-out one: a larger logit, or the same one at a lower index.
    pub above: f64,
}

/// `log Σ exp(x / T)` over the classes of a row, less the class `left_out`.
#[inline(always)]
pub fn log_sum_exp<S: Simd, E: Element>(
    simd: S,
    row: Row<E>,
    left_out: Option<usize>,
    temperature: Temperature,
) -> LogSumExp {
    let statistics = if temperature.is_one() {
        pass::<S, E, false, false>(simd, row, left_out, temperature)
    } else {
        pass::<S, E, true, false>(simd, row, left_out, temperature)
    };
    statistics.log_sum_exp
}

/// [`log_sum_exp`] with [`Statistics`].
#[inline(always)]
pub fn statistics<S: Simd, E: Element>(
    simd: S,
    row: Row<E>,
    left_out: Option<usize>,
    temperature: Temperature,
) -> Statistics {
    if temperature.is_one() {
        pass::<S, E, false, true>(simd, row, left_out, temperature)
    } else {
        pass::<S, E, true, true>(simd, row, left_out, temperature)
    }
}

/// What the pass carries from block to block.
struct Sums<S: Simd, R> {
    reference: R,
    sum: Total<S>,
    weighted: Total<S>,
    above: Total<S>,
}

/// The pass as a function of its own, so that each is compiled once and not into every driver.
#[inline(never)]
fn pass<S: Simd, E: Element, const SCALED: bool, const STATISTICS: bool>(
    simd: S,
    row: Row<E>,
    left_out: Option<usize>,
    temperature: Temperature,
) -> Statistics {
    simd.vectorize(
        #[inline(always)]
        || inlined_pass::<S, E, SCALED, STATISTICS>(simd, row, left_out, temperature),
    )
}

#[inline(always)]
fn inlined_pass<S: Simd, E: Element, const SCALED: bool, const STATISTICS: bool>(
    simd: S,
    row: Row<E>,
    left_out: Option<usize>,
    temperature: Temperature,
) -> Statistics {
    let zero = Total::zero(simd);
    let mut sums = Sums { reference: E::Real::LOWEST, sum: zero, weighted: zero, above: zero };
    let scale = Scale::<S, E::Real>::new(simd, temperature);
    let rival = left_out.map_or(E::Real::LOWEST, |class| E::Real::from_f64(row.get(class).to_f64()));
    let mut scratch = Scratch::new();
    let mut start = 0;
    while start < row.classes() {
        let length = (row.classes() - start).min(BLOCK);
        let inside = left_out.filter(|class| (start..start + length).contains(class));
        // Before the left-out class an equal logit ranks above it, after it only a larger one does.
        let ties = left_out.is_some_and(|class| start + length <= class);
        let block = Block { temperature, scale, rival, ties, ahead: row.pointer(start).cast_const().cast() };
        if length == BLOCK && inside.is_none() && row.is_contiguous() {
            // SAFETY: the block lies inside the row, whose elements are readable and side by side.
            unsafe { block.add::<E, SCALED, STATISTICS>(simd, row.pointer(start), BLOCK / E::Real::LANES, &mut sums) }
        } else {
            let vectors = length.div_ceil(4 * E::Real::LANES) * 4;
            let scratch = scratch.fill(row, start, length, vectors * E::Real::LANES);
            if let Some(class) = inside {
                if STATISTICS {
                    let ties = scratch[..class - start].iter().filter(|x| x.to_f64() == rival.to_f64()).count();
                    sums.above.add_scalar(ties as f64);
                }
                scratch[class - start] = E::MASKED;
            }
            // SAFETY: `scratch` holds `vectors` vectors.
            unsafe { block.add::<E, SCALED, STATISTICS>(simd, scratch.as_ptr(), vectors, &mut sums) }
        }
        start += length;
    }
    Statistics {
        log_sum_exp: LogSumExp { reference: sums.reference.to_f64(), sum: sums.sum.value() },
        weighted: sums.weighted.value(),
        above: sums.above.value(),
    }
}

/// What a block needs to know.
struct Block<S: Simd, R: Real> {
    temperature: Temperature,
    scale: Scale<S, R>,
    /// Logits larger than this one are counted, and those equal to it if `ties` says so.
    rival: R,
    ties: bool,
    /// Where the block lies in the caller's memory.
    ahead: *const u8,
}

impl<S: Simd, R: Real> Block<S, R> {
    /// Add `vectors` vectors, a multiple of four, to the sums.
    ///
    /// # Safety
    /// They are readable at `source`.
    #[inline(always)]
    unsafe fn add<E: Element<Real = R>, const SCALED: bool, const STATISTICS: bool>(
        &self,
        simd: S,
        source: *const E,
        vectors: usize,
        sums: &mut Sums<S, R>,
    ) {
        for line in 0..BLOCK * size_of::<E>() / 64 {
            prefetch(self.ahead.wrapping_add(PREFETCH + 64 * line));
        }
        // SAFETY: `vector` stays below `vectors`, which are readable by the caller's promise.
        let load = |vector: usize| unsafe { E::load(simd, source.add(vector * R::LANES)) };
        let splat = |value| R::Lanes::<S>::simd_from(simd, value);

        let mut largest = [load(0), load(1), load(2), load(3)];
        for vector in (4..vectors).step_by(4) {
            for (chain, largest) in largest.iter_mut().enumerate() {
                *largest = largest.max(load(vector + chain));
            }
        }
        let largest = largest[0].max(largest[1]).max(largest[2].max(largest[3]));
        // The slack of one, in units of x.
        let limit = R::from_f64(sums.reference.to_f64() + self.temperature.value());
        if largest.simd_gt(splat(limit)).any_true() {
            let raised = R::largest(largest);
            // The lowest number is the reference of no more than masked classes: there is nothing to rescale.
            if sums.reference > R::LOWEST {
                let [high, low] = self.temperature.difference(sums.reference.to_f64(), raised.to_f64());
                let (moved, factor) = (high + low, (high + low).exp());
                R::scale(&mut sums.sum, factor);
                if STATISTICS {
                    // Σ (z + δ)·e^(z + δ) = e^δ·(Σ z·e^z + δ·Σ e^z), and 0 for a δ of −∞.
                    R::scale(&mut sums.weighted, factor);
                    sums.weighted.add_scalar(if factor == 0.0 { 0.0 } else { moved * sums.sum.value() });
                }
            }
            sums.reference = raised;
        }

        let reference = splat(sums.reference);
        let zero = splat(R::default());
        let (mut sum, mut weighted, mut above) = ([zero; 4], [zero; 4], [zero; 4]);
        for vector in (0..vectors).step_by(4) {
            for chain in 0..4 {
                let x = load(vector + chain);
                let (exp, z) = self.scale.exp::<SCALED>(x, reference, Boost::None);
                sum[chain] += exp;
                if STATISTICS {
                    weighted[chain] += z * exp;
                    let rival = splat(self.rival);
                    let ahead = if self.ties { x.simd_ge(rival) } else { x.simd_gt(rival) };
                    above[chain] += ahead.select(splat(R::from_f64(1.0)), zero);
                }
            }
        }
        R::add_to(&mut sums.sum, (sum[0] + sum[1]) + (sum[2] + sum[3]));
        if STATISTICS {
            R::add_to(&mut sums.weighted, (weighted[0] + weighted[1]) + (weighted[2] + weighted[3]));
            R::add_to(&mut sums.above, (above[0] + above[1]) + (above[2] + above[3]));
        }
    }
}
