//! Log-probabilities of all classes, `(x − top) / T − log`, where `log = lse − top / T` is never negative and small where the
//! leader is confident.

use std::ops::Range;

use fearless_simd::{Simd, f64x8, prelude::*};

use super::finish::{HALF, MOST_LANES, PerLane, load};
use super::horizontal::{Entries, Group, Stored, TOGETHER, write_entries};
use super::vertical::{Strip, StripMut, for_each_group, lane_mask};
use crate::dtype::with_element;
use crate::element::{Element, Lanes};
use crate::math::{Real, Twice, two_sum};
use crate::rows::{BLOCK, Row, RowMut, StorePolicy};

/// What log-probabilities of some rows need, one a lane.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub struct Levels {
    /// The largest logits.
    pub top: PerLane<f64>,
    /// `lse − top / T`, a sum of two.
    pub log: [PerLane<f64>; 2],
    /// A bit for each row that needs the careful path.
    pub careful: u32,
}

/// Log-probabilities of rows across lanes, or of one row.
struct LogProbabilities<S: Simd> {
    top: Twice<S>,
    log: Twice<S>,
    /// What is to be added to the logarithms of eight lanes; that of sixteen, f64 has in any case.
    log_low: f64x8<S>,
    /// 1 / T as a sum of two.
    inverse: Twice<S>,
}

impl<S: Simd> LogProbabilities<S> {
    /// Those of lanes with these largest logits; of eight lanes the second halves are not looked at.
    #[inline(always)]
    fn new(simd: S, top: &PerLane<f64>, log: &[PerLane<f64>; 2], inverse: [f64; 2]) -> Self {
        let log_low = load(simd, &log[1], 0);
        let [top, log] = [top, &log[0]].map(
            #[inline(always)]
            |lanes| [load(simd, lanes, 0), load(simd, lanes, HALF)],
        );
        Self { top, log, log_low, inverse: [f64x8::splat(simd, inverse[0]), f64x8::splat(simd, inverse[1])] }
    }

    #[inline(always)]
    fn of<R: Real>(&self, simd: S, x: R::Lanes<S>) -> R::Lanes<S> {
        let (mut x, [inverse, rest]) = (R::twice(x), self.inverse);
        if R::LANES == f32::LANES {
            // f64 holds the difference.
            for half in 0..2 {
                x[half] = (x[half] - self.top[half]).mul_sub(inverse, self.log[half]);
            }
            return R::once(x);
        }
        // The difference, its product with 1 / T and the sum, each with what its rounding lost; it does not overflow, since the
        // largest logit is no large number.
        let [difference, lost] = two_sum(x[0], -self.top[0]);
        let product = difference * inverse;
        let low = lost.mul_add(inverse, difference.mul_add(rest, difference.mul_sub_precise(inverse, product)));
        let [sum, lost] = two_sum(product, -self.log[0]);
        // What an infinity lost is NaN.
        R::once([sum.is_finite().select(sum + (lost + (low - self.log_low)), sum), f64x8::splat(simd, 0.0)])
    }
}

/// `1 / divisor` as a sum of two.
fn inverse_of(divisor: f64) -> [f64; 2] {
    let inverse = 1.0 / divisor;
    [inverse, (-inverse).mul_add(divisor, 1.0) / divisor]
}

/// Write the log-probabilities of tiles of logits that lie elsewhere or where these go; logits where a row needs the careful path.
#[inline(never)]
pub fn write_tiles<S: Simd, R: Real + Element<Real = R>>(
    simd: S,
    levels: &[Levels],
    divisor: f64,
    logits: Option<&Strip<R>>,
    out: &mut StripMut<R>,
) {
    simd.vectorize(
        #[inline(always)]
        || {
            let (strip, inverse) = (*logits.unwrap_or(&out.strip), inverse_of(divisor));
            for_each_group!(strip.classes(), 0..levels.len(), |tile, classes| {
                let (block, mut out, levels) = (strip.tile(tile), out.tile(tile), &levels[tile]);
                let of = LogProbabilities::new(simd, &levels.top, &levels.log, inverse);
                let spared = lane_mask::<S, R>(simd, levels.careful);
                for class in classes {
                    let [x] = block.load::<S, 1>(simd, class);
                    out.store(simd, class, spared.select(x, of.of::<R>(simd, x)));
                }
            });
        },
    );
}

/// Write the log-probabilities of a row with this largest logit, whose `lse − top / T` is `log`, a sum of two.
#[inline(always)]
pub fn write<S: Simd>(simd: S, row: Row, out: RowMut, top: f64, log: [f64; 2], divisor: f64, store: StorePolicy) {
    out.in_pieces(|part, out| {
        with_element!(row.dtype(), E => write_stored::<S, E>(simd, row, part, out, top, log, divisor, store));
    });
}

#[inline(never)]
#[allow(clippy::too_many_arguments)] // some classes, where their log-probabilities go, and what these are made of
fn write_stored<S: Simd, E: Element>(
    simd: S,
    row: Row,
    part: Range<usize>,
    out: RowMut,
    top: f64,
    log: [f64; 2],
    divisor: f64,
    store: StorePolicy,
) {
    simd.vectorize(
        #[inline(always)]
        || {
            let mut entries = OfRow::<S, E>::new(simd, top, log, divisor);
            write_entries(simd, row, part, out, store, &[], &mut entries);
        },
    );
}

/// What minus the log-probabilities of a row are multiplied by, class by class.
#[derive(Clone, Copy, Debug)]
pub struct Factors<'a> {
    /// One number for all.
    pub scale: f64,
    /// One for each.
    pub weight: Option<&'a [f64]>,
}

/// [`write()`], of minus the log-probabilities times factors; 0 where the factor of a masked class is 0.
#[inline(always)]
#[allow(clippy::too_many_arguments)] // a row, where it goes, and what that is
pub fn write_missed<S: Simd>(
    simd: S,
    row: Row,
    out: RowMut,
    top: f64,
    log: [f64; 2],
    divisor: f64,
    factors: Factors,
    store: StorePolicy,
) {
    out.in_pieces(|part, out| {
        with_element!(row.dtype(), E => {
            write_missed_stored::<S, E>(simd, row, part, out, top, log, divisor, factors, store);
        });
    });
}

#[inline(never)]
#[allow(clippy::too_many_arguments)] // as above
fn write_missed_stored<S: Simd, E: Element>(
    simd: S,
    row: Row,
    part: Range<usize>,
    out: RowMut,
    top: f64,
    log: [f64; 2],
    divisor: f64,
    factors: Factors,
    store: StorePolicy,
) {
    simd.vectorize(
        #[inline(always)]
        || {
            let block = [E::Real::from_f64(-factors.scale); BLOCK];
            let mut entries = MissedOfRow { of: OfRow::<S, E>::new(simd, top, log, divisor), factors, block };
            write_entries(simd, row, part, out, store, &[], &mut entries);
        },
    );
}

/// Log-probabilities of one row times factors.
struct MissedOfRow<'a, S: Simd, E: Element> {
    of: OfRow<S, E>,
    factors: Factors<'a>,
    /// Minus the factors of a block.
    block: [E::Real; BLOCK],
}

// SAFETY: so many numbers were lent.
unsafe impl<S: Simd, E: Element> Entries<S, E> for MissedOfRow<'_, S, E> {
    #[inline(always)]
    fn begin(&mut self, simd: S, row: Row, start: usize, length: usize) -> (*const E, usize) {
        if let Some(weight) = self.factors.weight {
            for (factor, weight) in self.block.iter_mut().zip(&weight[start..start + length]) {
                *factor = E::Real::from_f64(-self.factors.scale * weight);
            }
        }
        self.of.begin(simd, row, start, length)
    }

    #[inline(always)]
    fn of(&self, simd: S, first: usize, group: &Group<S, E>) -> [Lanes<S, E>; TOGETHER] {
        let mut entries = self.of.of(simd, first, group);
        let (zero, infinite) = (E::Real::splat(simd, 0.0), E::Real::splat(simd, f64::NEG_INFINITY));
        for (entry, vector) in entries.iter_mut().zip(first..) {
            let place = vector * E::Real::LANES..(vector + 1) * E::Real::LANES;
            let factor = Lanes::<S, E>::from_slice(simd, &self.block[place]);
            let nothing = factor.simd_eq(zero) & entry.simd_eq(infinite);
            // Of a probability of 1 it is 0, not −0.
            *entry = nothing.select(zero, entry.mul_add(factor, zero));
        }
        entries
    }
}

/// Log-probabilities of one row.
struct OfRow<S: Simd, E: Element> {
    of: LogProbabilities<S>,
    stored: Stored<E>,
}

impl<S: Simd, E: Element> OfRow<S, E> {
    /// Those of a row with this largest logit, whose `lse − top / T` is `log`.
    #[inline(always)]
    fn new(simd: S, top: f64, log: [f64; 2], divisor: f64) -> Self {
        let log = log.map(
            #[inline(always)]
            |part| [part; MOST_LANES],
        );
        Self { of: LogProbabilities::new(simd, &[top; MOST_LANES], &log, inverse_of(divisor)), stored: Stored::new() }
    }
}

// SAFETY: so many numbers were lent.
unsafe impl<S: Simd, E: Element> Entries<S, E> for OfRow<S, E> {
    #[inline(always)]
    fn begin(&mut self, simd: S, row: Row, start: usize, length: usize) -> (*const E, usize) {
        (self.stored.lend(simd, row, start, length), length)
    }

    #[inline(always)]
    fn of(&self, simd: S, _: usize, group: &Group<S, E>) -> [Lanes<S, E>; TOGETHER] {
        let mut entries = group.apart;
        for (k, entry) in entries.iter_mut().enumerate() {
            *entry = self.of.of::<E::Real>(simd, group.load(simd, k));
        }
        entries
    }
}
