//! The second verb: a pass that writes a value for each class, reading the row from cache.

use fearless_simd::{Simd, prelude::*};

use super::{BLOCK, Scale, Scratch, Temperature};
use crate::element::Element;
use crate::math::{Boost, Real};
use crate::simd;
use crate::view::Row;

/// How results go to memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stores {
    /// Through the cache: for results that are small, or that overwrite their input.
    Cached,
    /// Past the cache: for results larger than it, which would be read only to be overwritten.
    Streaming,
}

/// The function `factor · exp((x − reference) / temperature)`.
#[derive(Clone, Copy, Debug)]
pub struct Exponential {
    /// A logit that none exceeds by much.
    pub reference: f64,
    /// What the exponentials are multiplied by.
    pub factor: f64,
    /// The divisor of the logits.
    pub temperature: Temperature,
}

/// Whether a factor can take the boost of [`Real::exp`] back and stay a normal number.
#[inline(always)]
pub(super) fn can_boost<R: Real>(factor: f64) -> bool {
    factor.abs() >= R::SMALLEST_NORMAL * R::BOOST
}

/// The factor that takes the boost back. An infinite one becomes the largest number, lest 0 times it be NaN.
#[inline(always)]
pub(super) fn take_back<R: Real>(factor: f64, boost: Boost) -> f64 {
    let taken = if boost == Boost::Full { factor / R::BOOST } else { factor };
    let largest = -R::LOWEST.to_f64();
    taken.clamp(-largest, largest)
}

/// Write an [`Exponential`] of the logits of a row, but for the class that is an exception, which gets its own value.
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
    of: Exponential,
    stores: Stores,
    exception: Option<(usize, O)>,
) {
    let Exponential { reference, factor, temperature } = of;
    let boost = if can_boost::<E::Real>(factor) { Boost::Full } else { Boost::None };
    let factor = take_back::<E::Real>(factor, boost);
    simd.vectorize(
        #[inline(always)]
        || {
            let scale = Scale::new(simd, temperature);
            let (reference, factor) = (splat::<S, E::Real>(simd, reference), splat::<S, E::Real>(simd, factor));
            // SAFETY: the caller's promise.
            unsafe {
                if temperature.is_one() {
                    let f = Probability::<S, E::Real, false> { scale, boost, reference, factor };
                    map(simd, row, out, stores, &f, exception);
                } else {
                    let f = Probability::<S, E::Real, true> { scale, boost, reference, factor };
                    map(simd, row, out, stores, &f, exception);
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
                    let f = LogProbability::<S, E::Real, false> { scale, reference, log_sum };
                    map(simd, row, out, stores, &f, None);
                } else {
                    let f = LogProbability::<S, E::Real, true> { scale, reference, log_sum };
                    map(simd, row, out, stores, &f, None);
                }
            }
        },
    );
}

/// The number in all lanes.
#[inline(always)]
pub(super) fn splat<S: Simd, R: Real>(simd: S, value: f64) -> R::Lanes<S> {
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

/// Write `f` of the lanes of a row, but for the class that is an exception, which gets its own value.
///
/// The exception is written with its neighbours, not over them: a store to a line that was just streamed waits for
/// memory, and all later stores wait for it. Loss and gradient of 16384 × 1000 float32 took 11.5 ms with such a store
/// a row and take 9.0 ms without (6.3 and 4.7 ms with two threads).
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
    exception: Option<(usize, O)>,
) {
    debug_assert_eq!(row.classes(), out.classes());
    let lanes = E::Real::LANES;
    // Four vectors, whole lines of the output, are read and written in place; what is left goes through scratches.
    let group = 4 * lanes;
    let in_place = row.is_contiguous() && out.is_contiguous();
    let streaming = in_place && stores == Stores::Streaming;
    // A first short piece brings the streaming stores to the boundary that they need, if there is one.
    let lead = if streaming { out.pointer(0).cast::<u8>().align_offset(64) / size_of::<O>() } else { 0 };
    let streaming = streaming && out.pointer(lead.min(out.classes())).cast::<u8>().align_offset(64) == 0;
    let (mut source, mut result) = (Scratch::new(), Scratch::<O>::new());
    let mut start = 0;
    while start < row.classes() {
        let rest = row.classes() - start;
        if in_place && start >= lead && rest >= group {
            let length = rest / group * group;
            let (input, output) = (row.pointer(start).cast_const(), out.pointer(start));
            for index in (0..length).step_by(group) {
                // SAFETY: the groups lie inside the row, and inside that of the output, writeable and exclusive by the
                // caller's promise. Streamed groups begin on a 64-byte boundary: `lead` elements brought the first to
                // it, and groups are whole lines. `result` holds a block, which is more than a group.
                unsafe {
                    let values = [
                        f.of(E::load(simd, input.add(index))),
                        f.of(E::load(simd, input.add(index + lanes))),
                        f.of(E::load(simd, input.add(index + 2 * lanes))),
                        f.of(E::load(simd, input.add(index + 3 * lanes))),
                    ];
                    let here = start + index..start + index + group;
                    let exception = exception.filter(|(class, _)| here.contains(class));
                    if streaming && exception.is_none() {
                        O::stream(simd, output.add(index), values);
                        continue;
                    }
                    let cached = if streaming { result.pointer() } else { output.add(index) };
                    for (chain, values) in values.into_iter().enumerate() {
                        O::store(simd, cached.add(chain * lanes), values);
                    }
                    if let Some((class, value)) = exception {
                        cached.add(class - here.start).write_unaligned(value);
                    }
                    if streaming {
                        let lines = std::slice::from_raw_parts(cached.cast::<[u8; 64]>(), group * size_of::<O>() / 64);
                        for (line, bytes) in lines.iter().enumerate() {
                            simd::stream(simd, output.add(index).cast::<u8>().add(64 * line), bytes);
                        }
                    }
                }
            }
            start += length;
        } else {
            let length = if start < lead { lead.min(rest) } else { BLOCK.min(rest) };
            let input = source.fill(row, start, length, length.next_multiple_of(lanes));
            for index in (0..length).step_by(lanes) {
                // SAFETY: `input` holds whole vectors, and `result` a block of them.
                unsafe { O::store(simd, result.pointer().add(index), f.of(E::load(simd, input.as_ptr().add(index)))) }
            }
            if let Some((class, value)) = exception.filter(|(class, _)| (start..start + length).contains(class)) {
                // SAFETY: the class is one of the `length` elements.
                unsafe { result.pointer().add(class - start).write(value) }
            }
            // SAFETY: the loop wrote `length` elements; the rest is the caller's promise.
            unsafe { out.scatter(start, result.written(length)) }
            start += length;
        }
    }
}
