//! The second verb: a pass that writes a value for each class, reading the row from cache.

use fearless_simd::{Simd, prelude::*};

use super::{BLOCK, Scale, Scratch, Temperature};
use crate::element::Element;
use crate::math::{Boost, Real};
use crate::view::Row;

/// How results go to memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stores {
    /// Through the cache: for results that are small, or that overwrite their input.
    Cached,
    /// Past the cache: for results larger than it, which would be read only to be overwritten.
    Streaming,
}

/// Whether a factor can take the boost of [`Real::exp`] back and stay a normal number.
#[inline(always)]
pub(super) fn can_boost<R: Real>(factor: f64) -> bool {
    factor.abs() >= R::SMALLEST_NORMAL * R::BOOST
}

/// Write `factor · exp((x − reference) / T)`.
///
/// Each is within u·(|x − reference| / T + 4) of its value, u being half an ulp of one: the exponentials are boosted
/// by a power of two that the factor takes back, so that a subnormal result is rounded once.
///
/// # Safety
/// As for [`Row::set`], with `out`; `out` is `row` itself or apart from it.
#[inline(never)]
pub unsafe fn probabilities<S: Simd, E: Element, O: Element<Real = E::Real>>(
    simd: S,
    row: Row<E>,
    out: Row<O>,
    reference: f64,
    factor: f64,
    temperature: Temperature,
    stores: Stores,
) {
    let (boost, factor) =
        if can_boost::<E::Real>(factor) { (Boost::Full, factor / E::Real::BOOST) } else { (Boost::None, factor) };
    simd.vectorize(
        #[inline(always)]
        || {
            let scale = Scale::new(simd, temperature);
            let (reference, factor) = (splat::<S, E::Real>(simd, reference), splat::<S, E::Real>(simd, factor));
            // SAFETY: the caller's promise.
            unsafe {
                if temperature.is_one() {
                    let f = Probability::<S, E::Real, false> { scale, boost, reference, factor };
                    map(simd, row, out, stores, &f);
                } else {
                    let f = Probability::<S, E::Real, true> { scale, boost, reference, factor };
                    map(simd, row, out, stores, &f);
                }
            }
        },
    );
}

/// Write `(x − reference) / T − log_sum`.
///
/// # Safety
/// As for [`probabilities`].
#[inline(never)]
pub unsafe fn log_probabilities<S: Simd, E: Element, O: Element<Real = E::Real>>(
    simd: S,
    row: Row<E>,
    out: Row<O>,
    reference: f64,
    log_sum: f64,
    temperature: Temperature,
    stores: Stores,
) {
    simd.vectorize(
        #[inline(always)]
        || {
            let scale = Scale::new(simd, temperature);
            let (reference, log_sum) = (splat::<S, E::Real>(simd, reference), splat::<S, E::Real>(simd, log_sum));
            // SAFETY: the caller's promise.
            unsafe {
                if temperature.is_one() {
                    map(simd, row, out, stores, &LogProbability::<S, E::Real, false> { scale, reference, log_sum });
                } else {
                    map(simd, row, out, stores, &LogProbability::<S, E::Real, true> { scale, reference, log_sum });
                }
            }
        },
    );
}

#[inline(always)]
fn splat<S: Simd, R: Real>(simd: S, value: f64) -> R::Lanes<S> {
    R::Lanes::<S>::simd_from(simd, R::from_f64(value))
}

/// A function of lanes. A trait and not a closure, since a closure that the compiler does not inline runs without the
/// level's instructions: the gradient took 30 times as long.
trait Function<S: Simd, R: Real> {
    fn of(&self, x: R::Lanes<S>) -> R::Lanes<S>;
}

struct Probability<S: Simd, R: Real, const SCALED: bool> {
    scale: Scale<S, R>,
    boost: Boost,
    reference: R::Lanes<S>,
    factor: R::Lanes<S>,
}

impl<S: Simd, R: Real, const SCALED: bool> Function<S, R> for Probability<S, R, SCALED> {
    #[inline(always)]
    fn of(&self, x: R::Lanes<S>) -> R::Lanes<S> {
        self.scale.exp::<SCALED>(x, self.reference, self.boost).0 * self.factor
    }
}

struct LogProbability<S: Simd, R: Real, const SCALED: bool> {
    scale: Scale<S, R>,
    reference: R::Lanes<S>,
    log_sum: R::Lanes<S>,
}

impl<S: Simd, R: Real, const SCALED: bool> Function<S, R> for LogProbability<S, R, SCALED> {
    #[inline(always)]
    fn of(&self, x: R::Lanes<S>) -> R::Lanes<S> {
        self.scale.log::<SCALED>(x, self.reference, self.log_sum)
    }
}

/// Write `value` everywhere.
///
/// # Safety
/// As for [`Row::set`].
#[inline(always)]
pub unsafe fn fill<O: Element>(out: Row<O>, value: O) {
    let block = [value; BLOCK];
    for start in (0..out.classes()).step_by(BLOCK) {
        let length = (out.classes() - start).min(BLOCK);
        // SAFETY: the caller's promise.
        unsafe { out.scatter(start, &block[..length]) }
    }
}

/// Write `f` of the lanes of a row.
///
/// # Safety
/// As for [`probabilities`].
#[inline(always)]
unsafe fn map<S: Simd, E: Element, O: Element<Real = E::Real>>(
    simd: S,
    row: Row<E>,
    out: Row<O>,
    stores: Stores,
    f: &impl Function<S, E::Real>,
) {
    debug_assert_eq!(row.classes(), out.classes());
    let streaming = stores == Stores::Streaming && out.is_contiguous();
    // A first short block brings the streaming stores to the boundary that they need.
    let lead = if streaming { out.pointer(0).cast::<u8>().align_offset(64) / size_of::<O>() } else { 0 };
    let streaming = streaming && out.pointer(lead.min(out.classes())).cast::<u8>().align_offset(64) == 0;
    let (mut source, mut result) = (Scratch::new(), Scratch::<O>::new());
    let mut start = 0;
    while start < row.classes() {
        let longest = if start < lead { lead } else { BLOCK };
        let length = (row.classes() - start).min(longest);
        let full = length == BLOCK;
        let input = if full && row.is_contiguous() {
            row.pointer(start).cast_const()
        } else {
            source.fill(row, start, length, length.next_multiple_of(E::Real::LANES)).as_ptr()
        };
        // SAFETY: the first `length` elements are in `source` (rounded up to vectors) or in the row. Results go to the row,
        // writeable and exclusive by the caller's promise, or to `result`, which holds a block. Streamed results are
        // full blocks on a 64-byte boundary, to which `lead` elements brought the row.
        unsafe {
            if full && out.is_contiguous() {
                let output = out.pointer(start);
                for vector in (0..BLOCK / E::Real::LANES).step_by(4) {
                    let index = vector * E::Real::LANES;
                    let values = [
                        f.of(E::load(simd, input.add(index))),
                        f.of(E::load(simd, input.add(index + E::Real::LANES))),
                        f.of(E::load(simd, input.add(index + 2 * E::Real::LANES))),
                        f.of(E::load(simd, input.add(index + 3 * E::Real::LANES))),
                    ];
                    if streaming {
                        O::stream(simd, output.add(index), values);
                    } else {
                        for (chain, values) in values.into_iter().enumerate() {
                            O::store(simd, output.add(index + chain * E::Real::LANES), values);
                        }
                    }
                }
            } else {
                for index in (0..length).step_by(E::Real::LANES) {
                    let values = f.of(E::load(simd, input.add(index)));
                    O::store(simd, result.pointer().add(index), values);
                }
                out.scatter(start, result.written(length));
            }
        }
        start += length;
    }
}
