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
    let (boost, factor) = if factor.abs() >= E::Real::SMALLEST_NORMAL * E::Real::BOOST {
        (Boost::Full, factor / E::Real::BOOST)
    } else {
        (Boost::None, factor)
    };
    simd.vectorize(
        #[inline(always)]
        || {
            let scale = Scale::<S, E::Real>::new(simd, temperature);
            let splat = |value| <E::Real as Real>::Lanes::<S>::simd_from(simd, E::Real::from_f64(value));
            let (reference, factor) = (splat(reference), splat(factor));
            // SAFETY: the caller's promise.
            unsafe {
                if temperature.is_one() {
                    map(simd, row, out, stores, |x| scale.exp::<false>(simd, x - reference, boost).0 * factor);
                } else {
                    map(simd, row, out, stores, |x| scale.exp::<true>(simd, x - reference, boost).0 * factor);
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
            let scale = Scale::<S, E::Real>::new(simd, temperature);
            let splat = |value| <E::Real as Real>::Lanes::<S>::simd_from(simd, E::Real::from_f64(value));
            let (reference, log_sum) = (splat(reference), splat(log_sum));
            let (zero, lowest) = (splat(0.0), splat(E::Real::LOWEST.to_f64()));
            // SAFETY: the caller's promise.
            unsafe {
                if temperature.is_one() {
                    map(simd, row, out, stores, |x| (x - reference) - log_sum);
                } else {
                    map(simd, row, out, stores, |x| {
                        let d = x - reference;
                        let z = d * scale.high;
                        let rest = d.mul_sub(scale.high, z) + d * scale.low;
                        // −∞ has no rest.
                        (z - log_sum) + d.simd_ge(lowest).select(rest, zero)
                    });
                }
            }
        },
    );
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

/// Write `f(x)` for the lanes x of a row.
///
/// # Safety
/// As for [`probabilities`].
#[inline(always)]
unsafe fn map<S: Simd, E: Element, O: Element<Real = E::Real>>(
    simd: S,
    row: Row<E>,
    out: Row<O>,
    stores: Stores,
    f: impl Fn(<E::Real as Real>::Lanes<S>) -> <E::Real as Real>::Lanes<S>,
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
        // SAFETY: `vector` stays below the vectors of a block: all of them in `source`, and in the row if it is full.
        let value = |vector: usize| f(unsafe { E::load(simd, input.add(vector * E::Real::LANES)) });
        if full && out.is_contiguous() {
            let output = out.pointer(start);
            for vector in (0..BLOCK / E::Real::LANES).step_by(4) {
                let values = [value(vector), value(vector + 1), value(vector + 2), value(vector + 3)];
                // SAFETY: the block lies inside the row, writeable and exclusive by the caller's promise; `lead`
                // elements brought it to a 64-byte boundary, and four vectors are whole lines.
                unsafe {
                    let output = output.add(vector * E::Real::LANES);
                    if streaming {
                        O::stream(simd, output, values);
                    } else {
                        for (chain, values) in values.into_iter().enumerate() {
                            O::store(simd, output.add(chain * E::Real::LANES), values);
                        }
                    }
                }
            }
        } else {
            for vector in 0..length.div_ceil(E::Real::LANES) {
                // SAFETY: `result` holds a block, and `vector` stays below its vectors.
                unsafe { O::store(simd, result.pointer().add(vector * E::Real::LANES), value(vector)) }
            }
            // SAFETY: the loop wrote `length` elements; the rest is the caller's promise.
            unsafe { out.scatter(start, result.written(length)) }
        }
        start += length;
    }
}
