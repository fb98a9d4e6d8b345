//! The vertical twin of the row kernels: rows across lanes.
//!
//! A row of ten classes fills ten of a vector's 16 lanes once, and the work around it (horizontal sums, padding) takes
//! ten times as long as its exponentials. A [`Tile`] is as many rows as there are lanes, lane by lane next to each
//! other: either because they are so in memory (an inner class axis), or because they were transposed into a room of
//! their own (`transposed.rs`). Then nothing is horizontal and nothing is padded, and what is once a row is done for
//! all of them at once (`batch.rs`).
//!
//! Rows shorter than a line hide from the prefetcher: they are asked for 8 KiB ahead.

mod lanes;
mod softmax;
mod transposed;

use fearless_simd::{Simd, prelude::*};

pub use crate::kernel::stage::most_classes;

pub use self::lanes::{Tile, TileMut};
pub(super) use self::lanes::{Tiled, TiledMut};
pub use self::softmax::probabilities;
pub use self::transposed::{Output, Transposed};
use super::Transform;
use super::batch::{LogSumExps, MOST_LANES, PerLane};
use super::companion::{Companion, Nothing, Term};
use super::transform::{Factors, Scale, Value, with_uncapped_mode};
use crate::array::Array;
use crate::element::Element;
use crate::math::{Argument, Boost, Real, Total, with_vectors_at_a_time};

/// Rows of an array that are worked on together.
#[derive(Clone, Copy)]
pub struct Batch<'a> {
    /// The array.
    pub array: &'a Array<'a>,
    /// The first row.
    pub first: usize,
    /// How many there are, no more than there are lanes.
    pub rows: usize,
    /// How the rows become lanes; `None` if the classes do.
    across: Option<Across<'a>>,
}

/// How rows become lanes.
#[derive(Clone, Copy)]
enum Across<'a> {
    /// They lie so.
    InPlace(Tile<'a>),
    /// They are transposed.
    Transposed,
}

impl<'a> Batch<'a> {
    /// The tile (in place or copied to `scratch`), or `None` if the rows are worked on one by one: under a cap, too.
    #[inline(always)]
    pub fn tile<'b, S: Simd, E: Element>(
        &self,
        simd: S,
        transform: Transform,
        scratch: &'b mut Transposed<E::Real>,
    ) -> Option<Tile<'b>>
    where
        'a: 'b,
    {
        if transform.softcap().is_some() {
            return None;
        }
        Some(match self.across? {
            Across::InPlace(tile) => tile,
            Across::Transposed => scratch.load::<S, E>(simd, self.array, self.first, self.rows),
        })
    }

    /// Make the log-sum-exps of rows with a logit of +∞ and no NaN infinite; their losses stay NaN.
    #[inline(always)]
    pub fn find_infinite(&self, found: &LogSumExps, values: &mut PerLane<f64>) {
        for lane in (0..self.rows).filter(|&lane| found.reference[lane] == f64::INFINITY) {
            let row = self.array.row(self.first + lane);
            if !(0..row.classes()).any(|class| row.get(class).is_nan()) {
                values[lane] = f64::INFINITY;
            }
        }
    }
}

/// Rows that are read twice are worked on together as long as they stay in a corner of the L2 cache.
pub const BATCH_BYTES: usize = 1 << 17;

/// Cut some rows of an array of `E`s into batches: by its shape and layout alone. Where results go does not count, so that
/// the losses do not depend on it.
#[inline(always)]
pub fn batches<'a, E: Element>(
    array: &'a Array<'a>,
    rows: std::ops::Range<usize>,
) -> impl Iterator<Item = Batch<'a>> + use<'a, E> {
    let lanes = E::Real::LANES;
    let classes = array.classes();
    let together = (BATCH_BYTES / (classes.saturating_mul(size_of::<E>())).max(1)).clamp(1, lanes);
    let mut first = rows.start;
    std::iter::from_fn(
        #[inline(always)]
        move || {
            let left = rows.end - first;
            if left == 0 {
                return None;
            }
            let in_place = Tile::in_place::<E>(array, first, left.min(lanes)).map(Across::InPlace);
            let across = in_place.or((classes <= most_classes::<E::Real>()).then_some(Across::Transposed));
            // The next batch begins where neighbours do.
            let left = left.min(array.neighbours_from(first).unwrap_or(left));
            let rows = left.min(if across.is_some() { lanes } else { together });
            let batch = Batch { array, first, rows, across };
            first += rows;
            Some(batch)
        },
    )
}

/// The log-sum-exps of the rows of an array of `E`s.
#[inline(always)]
pub fn log_sum_exps<S: Simd, E: Element>(simd: S, tile: Tile, transform: Transform) -> LogSumExps {
    let (found, _) = match tile.stored_as::<E::Real>() {
        Some(tile) => typed_pass(simd, tile, transform, Nothing),
        None => typed_pass(simd, tile.stored_as::<E>().expect("a tile of the array"), transform, Nothing),
    };
    found
}

/// [`pass_of`] a tile with a companion: one that is stored in the type that is computed in is read in place.
#[inline(always)]
pub(super) fn pass_with<S: Simd, R: Real + Element<Real = R>, C: Companion<S, R>>(
    simd: S,
    tile: Tile,
    transform: Transform,
    companion: C,
) -> (LogSumExps, C) {
    match tile.stored_as::<R>() {
        Some(tile) => typed_pass(simd, tile, transform, companion),
        None => any_pass::<S, R, C>(simd, tile, transform, companion),
    }
}

/// [`pass_of`] a tile whose type is known.
#[inline(always)]
fn typed_pass<S: Simd, E: Element, C: Companion<S, E::Real>>(
    simd: S,
    tile: lanes::Typed<E>,
    transform: Transform,
    companion: C,
) -> (LogSumExps, C) {
    with_uncapped_mode!(transform, MODE => pass_of::<S, E::Real, C, _, MODE>(simd, tile, transform, companion))
}

/// [`pass_of`] for companions that are worth no kernel for each storage type.
#[inline(always)]
fn any_pass<S: Simd, R: Real, C: Companion<S, R>>(
    simd: S,
    tile: Tile,
    transform: Transform,
    companion: C,
) -> (LogSumExps, C) {
    with_uncapped_mode!(transform, MODE => pass_of::<S, R, C, _, MODE>(simd, tile, transform, companion))
}

/// Exponentials are summed a few at a time, as their lanes can.
const GROUP: usize = 4;

/// The log-sum-exps of the rows, and a companion's sums.
#[inline(never)]
fn pass_of<S: Simd, R: Real, C: Companion<S, R>, T: Tiled<S, R>, const MODE: u8>(
    simd: S,
    tile: T,
    transform: Transform,
    mut companion: C,
) -> (LogSumExps, C) {
    simd.vectorize(
        #[inline(always)]
        || {
            let classes = tile.classes();
            let mut largest = [R::splat(simd, f64::NEG_INFINITY); GROUP];
            for start in (0..classes).step_by(GROUP) {
                for (chain, largest) in largest.iter_mut().enumerate() {
                    let x = tile.load(simd, (start + chain).min(classes - 1));
                    // NaN is found again by the sum.
                    *largest = x.max(*largest);
                }
            }
            let reference = largest[0].max(largest[1]).max(largest[2].max(largest[3]));
            // Of masked classes alone the lowest number, so that it can be subtracted.
            let scale = Scale::<S, R>::new(simd, transform);
            let subtracted = R::splat(simd, R::LOWEST.to_f64()).max(reference);
            let mut sums = LaneSums {
                scale,
                subtracted,
                reference: Value::plain(subtracted),
                sum: Total::zero(simd),
                equal: R::splat(simd, 0.0),
            };
            for start in (0..classes).step_by(GROUP) {
                if classes - start < GROUP {
                    sums.add::<_, C, MODE, 1>(simd, &tile, start..classes, &mut companion);
                    continue;
                }
                let group = start..start + GROUP;
                with_vectors_at_a_time!(S, K => sums.add::<_, C, MODE, K>(simd, &tile, group, &mut companion));
            }
            (sums.finish(simd, reference), companion)
        },
    )
}

/// What a pass knows and sums.
struct LaneSums<S: Simd, R: Real> {
    scale: Scale<S, R>,
    /// The references as they are subtracted, and their values.
    subtracted: R::Lanes<S>,
    reference: Value<S, R>,
    /// Exponentials, boosted, of what is not equal to the reference.
    sum: Total<S>,
    /// How many are equal to it.
    equal: R::Lanes<S>,
}

impl<S: Simd, R: Real> LaneSums<S, R> {
    /// Add the exponentials of some classes, `K` at a time.
    #[inline(always)]
    fn add<T: Tiled<S, R>, C: Companion<S, R>, const MODE: u8, const K: usize>(
        &mut self,
        simd: S,
        tile: &T,
        classes: std::ops::Range<usize>,
        companion: &mut C,
    ) {
        let (zero, one) = (R::splat(simd, 0.0), R::splat(simd, 1.0));
        let mut sum = zero;
        companion.begin_sums(simd);
        for start in classes.step_by(K) {
            let mut x = [zero; K];
            let mut is_own = [zero.simd_eq(zero); K];
            for k in 0..K {
                x[k] = tile.load(simd, start + k);
                is_own[k] = x[k].simd_eq(self.subtracted);
            }
            let values = x.map(
                #[inline(always)]
                |x| Value::plain(x),
            );
            let Factors { exp, mut power, z } =
                self.scale.factors::<MODE, K>(values, self.reference, Boost::Full, Argument::Exact);
            for k in 0..K {
                power[k] = is_own[k].select(zero, power[k]);
                self.equal += is_own[k].select(one, zero);
                sum = exp[k].mul_add(power[k], sum);
                let exp = exp[k] * power[k];
                let term = Term { x: x[k], exp, z: z[k] };
                companion.add(simd, start + k, 0, term);
            }
        }
        R::add_to(&mut self.sum, sum);
        companion.end_sums();
    }

    #[inline(always)]
    fn finish(self, simd: S, reference: R::Lanes<S>) -> LogSumExps {
        let mut found = LogSumExps::default();
        R::widen(self.subtracted, &mut found.reference);
        R::lane_totals(&self.sum, &mut found.others);
        // Beside the reference itself others may be equal to it; where there is none, all is masked.
        let [mut equal, mut own] = [[0.0; MOST_LANES]; 2];
        R::widen(self.equal, &mut equal);
        let (zero, one) = (R::splat(simd, 0.0), R::splat(simd, 1.0));
        let own_term = self.subtracted.is_finite().select(one, R::splat(simd, f64::NAN));
        R::widen(reference.simd_eq(R::splat(simd, f64::NEG_INFINITY)).select(zero, own_term), &mut own);
        found.own = own;
        for (lane, others) in found.others[..R::LANES].iter_mut().enumerate() {
            *others = *others / R::BOOST + (equal[lane] - 1.0).max(0.0);
        }
        found
    }
}
