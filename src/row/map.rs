//! The second verb: a pass that writes a value for each class, reading the row from cache.

use fearless_simd::{Simd, f64x8, prelude::*};

use super::transform::{CAPPED, Capped, Scale, Value, with_mode, with_uncapped_mode};
use super::{Dense, Transform, rounded};
use crate::dtype::with_elements;
use crate::element::Element;
use crate::math::{Boost, Real, vectors_at_a_time, with_vectors_at_a_time};
use crate::rows::{BLOCK, Row, RowMut, Scratch, StorePolicy};
use crate::simd;

/// The function `factor · exp(z − z(reference))`.
#[derive(Clone, Copy, Debug)]
pub struct Exponential {
    /// A logit that none exceeds by much.
    pub reference: f64,
    /// What the exponentials are multiplied by.
    pub factor: f64,
    /// What becomes of the logits first.
    pub transform: Transform,
}

impl Exponential {
    /// The boost of the exponentials, and the factor that takes it back.
    #[inline(always)]
    pub(super) fn boosted<R: Real>(&self) -> (Boost, f64) {
        let boost = if can_boost::<R>(self.factor) { Boost::Full } else { Boost::None };
        (boost, take_back::<R>(self.factor, boost))
    }
}

/// What is subtracted: `scale` times the uniform or the dense part of a target.
#[derive(Clone, Copy, Debug)]
pub(super) struct Offset<'a> {
    pub(super) scale: f64,
    pub(super) uniform: f64,
    pub(super) dense: Option<Dense<'a>>,
}

/// What a weight subtracts: nothing if it is 0, whatever the scale.
#[inline(always)]
pub(super) fn share(scale: f64, weight: f64) -> f64 {
    if weight == 0.0 { 0.0 } else { scale * weight }
}

/// [`share`] of a vector of weights, in their place.
#[inline(always)]
pub(super) fn share_lanes<S: Simd>(simd: S, scales: f64x8<S>, weights: &mut [f64]) {
    let (zero, lanes) = (f64x8::splat(simd, 0.0), f64x8::from_slice(simd, weights));
    lanes.simd_eq(zero).select(zero, scales * lanes).store_slice(weights);
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

/// Write the softmax of a row, an [`Exponential`] of its logits.
///
/// Each is within u·(|z − z(reference)| + 4) of its value, u being half an ulp of one: the exponentials are boosted
/// by a power of two that the factor takes back, so that a subnormal result is rounded once.
#[inline(always)]
pub fn probabilities<S: Simd, E: Element, O: Element<Real = E::Real>>(
    simd: S,
    row: Row,
    out: RowMut,
    of: Exponential,
    stores: StorePolicy,
) {
    exponentials::<S, E, O>(simd, row, out, of, stores, None);
}

/// Write an [`Exponential`], but for the class that is an exception, which gets its own value.
#[inline(never)]
fn exponentials<S: Simd, E: Element, O: Element<Real = E::Real>>(
    simd: S,
    row: Row,
    out: RowMut,
    of: Exponential,
    stores: StorePolicy,
    exception: Option<(usize, O)>,
) {
    simd.vectorize(
        #[inline(always)]
        || {
            with_uncapped_mode!(of.transform, MODE => {
                let terms = Terms::<S, E::Real, MODE>::new(simd, of);
                map::<S, E, O, _>(simd, row, out, stores, &terms, exception);
            });
        },
    );
}

/// Write `(exponential − offset)·dz/dx·T`, and 0 for masked classes, but for the class that is an exception.
#[inline(always)]
pub(super) fn gradient<S: Simd, R: Real + Element<Real = R>>(
    simd: S,
    row: Row,
    out: RowMut,
    of: Exponential,
    offset: Offset,
    stores: StorePolicy,
    exception: Option<(usize, f64)>,
) {
    let nothing = offset.dense.is_none() && share(offset.scale, offset.uniform) == 0.0;
    if nothing && of.transform.mode() != CAPPED {
        // The kernels of the softmax, which are compiled for all types.
        with_elements!(row.dtype(), out.dtype(), E, O => {
            let exception = exception.map(|(class, value)| (class, rounded::<O>(value)));
            exponentials::<S, E, O>(simd, row, out, of, stores, exception);
        });
    } else {
        with_mode!(of.transform, MODE => {
            difference::<S, R, MODE>(simd, row, out, of, offset, stores, exception);
        });
    }
}

/// [`gradient`] by blocks.
#[inline(never)]
fn difference<S: Simd, R: Real, const MODE: u8>(
    simd: S,
    row: Row,
    out: RowMut,
    of: Exponential,
    offset: Offset,
    stores: StorePolicy,
    exception: Option<(usize, f64)>,
) {
    simd.vectorize(
        #[inline(always)]
        || {
            let terms = Terms::<S, R, MODE>::new(simd, of);
            let mut capped = Capped::<R, BLOCK>::default();
            let uniform = share(offset.scale, offset.uniform);
            let (mut numbers, mut offsets) = ([0.0; BLOCK], [R::from_f64(uniform); BLOCK]);
            map_blocks(
                simd,
                row,
                out,
                stores,
                exception,
                #[inline(always)]
                |start: usize, length: usize, block: &mut [R; BLOCK]| {
                    let padded = length.next_multiple_of(R::LANES);
                    if let Some(dense) = offset.dense {
                        dense.fill(simd, start, length, &mut numbers);
                        for weights in numbers[..padded].chunks_exact_mut(8) {
                            share_lanes(simd, f64x8::splat(simd, offset.scale), weights);
                        }
                        for index in (0..padded).step_by(R::LANES) {
                            let numbers = &numbers[index..index + R::LANES];
                            R::narrow(simd, numbers).store_slice(&mut offsets[index..index + R::LANES]);
                        }
                    }
                    // Some vectors at a time, past the last class too.
                    let vectors = length.div_ceil(4 * R::LANES) * 4;
                    if let Some(cap) = terms.scale.cap::<MODE>() {
                        cap.fill::<_, _, true>(simd, &block[..vectors * R::LANES], &mut capped);
                    }
                    with_vectors_at_a_time!(S, K => {
                        for vector in (0..vectors).step_by(K) {
                            replace::<S, R, MODE, K>(&terms, &capped, &offsets, block, vector);
                        }
                    });
                },
            );
        },
    );
}

/// Replace `K` vectors of logits by their gradients.
#[inline(always)]
fn replace<S: Simd, R: Real, const MODE: u8, const K: usize>(
    terms: &Terms<S, R, MODE>,
    capped: &Capped<R, BLOCK>,
    offsets: &[R; BLOCK],
    block: &mut [R; BLOCK],
    first: usize,
) {
    let simd = terms.factor.token();
    let place = |k: usize| (first + k) * R::LANES..(first + k + 1) * R::LANES;
    let load = |numbers: &[R; BLOCK], k: usize| R::Lanes::<S>::from_slice(simd, &numbers[place(k)]);
    let mut values = [terms.reference; K];
    for k in 0..K {
        values[k] = if MODE == CAPPED { Value::capped(simd, capped, first + k) } else { Value::plain(load(block, k)) };
    }
    let exp = terms.scale.exps::<MODE, K>(values, terms.reference, terms.boost);
    for k in 0..K {
        let offset = load(offsets, k);
        let gradient = difference_of::<S, R>(load(block, k), exp[k], terms.factor, offset);
        // A masked class has a slope, and a gradient of 0, or NaN.
        let gradient = if MODE == CAPPED { gradient * capped.slope(simd, first + k) } else { gradient };
        gradient.store_slice(&mut block[place(k)]);
    }
}

/// `exp·factor − offset`, 0 for a masked class, or NaN in a row that is.
#[inline(always)]
pub(super) fn difference_of<S: Simd, R: Real>(
    x: R::Lanes<S>,
    exp: R::Lanes<S>,
    factor: R::Lanes<S>,
    offset: R::Lanes<S>,
) -> R::Lanes<S> {
    let simd = x.token();
    let masked = x.simd_eq(R::splat(simd, f64::NEG_INFINITY));
    exp.mul_sub(factor, masked.select(R::splat(simd, 0.0), offset))
}

/// Write `scale·p·(1 − p)`, p being the exponential, but for the class that is an exception.
#[inline(never)]
pub(super) fn variance<S: Simd, R: Real>(
    simd: S,
    row: Row,
    out: RowMut,
    of: Exponential,
    scale: f64,
    stores: StorePolicy,
    exception: Option<(usize, f64)>,
) {
    simd.vectorize(
        #[inline(always)]
        || {
            let scale = R::splat(simd, take_back::<R>(scale, Boost::None));
            with_uncapped_mode!(of.transform, MODE => {
                let terms = Terms::<S, R, MODE>::new(simd, of);
                map_blocks(
                    simd,
                    row,
                    out,
                    stores,
                    exception,
                    #[inline(always)]
                    |_, length: usize, block: &mut [R; BLOCK]| {
                        for part in block[..length.next_multiple_of(R::LANES)].chunks_exact_mut(R::LANES) {
                            let x = R::Lanes::<S>::from_slice(simd, part);
                            let p = terms.exp(Value::plain(x)) * terms.factor;
                            variance_of::<S, R>(p, scale).store_slice(part);
                        }
                    },
                );
            });
        },
    );
}

/// `scale·p·(1 − p)`.
#[inline(always)]
pub(super) fn variance_of<S: Simd, R: Real>(p: R::Lanes<S>, scale: R::Lanes<S>) -> R::Lanes<S> {
    p * (R::splat(p.token(), 1.0) - p) * scale
}

/// Write what `f` makes of each block of a row: it gets where the block starts, how long it is, and its logits.
#[inline(always)]
fn map_blocks<S: Simd, R: Real>(
    simd: S,
    row: Row,
    mut out: RowMut,
    stores: StorePolicy,
    exception: Option<(usize, f64)>,
    mut f: impl FnMut(usize, usize, &mut [R; BLOCK]),
) {
    let mut block = [R::default(); BLOCK];
    // A first short block brings the streaming stores to the boundary that they need, if there is one.
    let lead = out.peel(stores);
    let mut start = 0;
    while start < row.classes() {
        let most = if start == 0 { lead.filter(|lead| *lead > 0).unwrap_or(BLOCK) } else { BLOCK };
        let length = most.min(row.classes() - start);
        row.read(simd, start, length, &mut block);
        f(start, length, &mut block);
        if let Some((class, value)) = exception.filter(|(class, _)| (start..start + length).contains(class)) {
            block[class - start] = R::from_f64(value);
        }
        out.write(simd, start, length, &block, lead.is_some_and(|lead| start >= lead));
        start += length;
    }
}

/// Write `z − z(reference) − log_sum`.
#[inline(never)]
pub fn log_probabilities<S: Simd, E: Element, O: Element<Real = E::Real>>(
    simd: S,
    row: Row,
    out: RowMut,
    reference: f64,
    log_sum: f64,
    transform: Transform,
    stores: StorePolicy,
) {
    simd.vectorize(
        #[inline(always)]
        || {
            let rounded = Real::to_f64(<E::Real as Real>::from_f64(log_sum));
            let low = if rounded.is_finite() { log_sum - rounded } else { 0.0 };
            let log_sum = [rounded, low].map(|part| E::Real::splat(simd, part));
            with_uncapped_mode!(transform, MODE => {
                let of = Exponential { reference, factor: 1.0, transform };
                let f = LogProbability { terms: Terms::<S, E::Real, MODE>::new(simd, of), log_sum };
                map::<S, E, O, _>(simd, row, out, stores, &f, None);
            });
        },
    );
}

/// A function of lanes. A trait and not a closure, since a closure that the compiler does not inline runs without the
/// level's instructions: the gradient took 30 times as long.
trait Function<S: Simd, R: Real> {
    /// The function of some vectors of logits.
    fn of<const K: usize>(&self, x: [R::Lanes<S>; K]) -> [R::Lanes<S>; K];
}

/// A function of four vectors, as many at a time as is best.
#[inline(always)]
fn of_four<S: Simd, R: Real, F: Function<S, R>>(f: &F, mut x: [R::Lanes<S>; 4]) -> [R::Lanes<S>; 4] {
    match vectors_at_a_time::<S>() {
        4 => f.of(x),
        2 => {
            let [a, b, c, d] = x;
            let ([a, b], [c, d]) = (f.of([a, b]), f.of([c, d]));
            [a, b, c, d]
        }
        // A loop: at the portable level an exponential is a lot of code.
        _ => {
            for x in &mut x {
                [*x] = f.of([*x]);
            }
            x
        }
    }
}

/// The exponentials of logits.
struct Terms<S: Simd, R: Real, const MODE: u8> {
    scale: Scale<S, R>,
    boost: Boost,
    reference: Value<S, R>,
    factor: R::Lanes<S>,
}

impl<S: Simd, R: Real, const MODE: u8> Terms<S, R, MODE> {
    #[inline(always)]
    fn new(simd: S, of: Exponential) -> Self {
        let scale = Scale::new(simd, of.transform);
        let (boost, factor) = of.boosted::<R>();
        Self {
            scale,
            boost,
            reference: scale.value::<MODE>(R::splat(simd, of.reference)),
            factor: R::splat(simd, factor),
        }
    }

    #[inline(always)]
    fn exp(&self, value: Value<S, R>) -> R::Lanes<S> {
        self.scale.exp::<MODE>(value, self.reference, self.boost)
    }

    #[inline(always)]
    fn exps<const K: usize>(&self, x: [R::Lanes<S>; K]) -> [R::Lanes<S>; K] {
        let values = x.map(
            #[inline(always)]
            |x| Value::plain(x),
        );
        self.scale.exps::<MODE, K>(values, self.reference, self.boost)
    }
}

/// Times the factor.
impl<S: Simd, R: Real, const MODE: u8> Function<S, R> for Terms<S, R, MODE> {
    #[inline(always)]
    fn of<const K: usize>(&self, x: [R::Lanes<S>; K]) -> [R::Lanes<S>; K] {
        let mut result = self.exps(x);
        for result in &mut result {
            *result *= self.factor;
        }
        result
    }
}

struct LogProbability<S: Simd, R: Real, const MODE: u8> {
    terms: Terms<S, R, MODE>,
    log_sum: [R::Lanes<S>; 2],
}

impl<S: Simd, R: Real, const MODE: u8> Function<S, R> for LogProbability<S, R, MODE> {
    #[inline(always)]
    fn of<const K: usize>(&self, mut x: [R::Lanes<S>; K]) -> [R::Lanes<S>; K] {
        for x in &mut x {
            *x = self.terms.scale.log::<MODE>(Value::plain(*x), self.terms.reference, self.log_sum);
        }
        x
    }
}

/// Write `f` of the lanes of a row, but for the class that is an exception, which gets its own value.
///
/// The exception is written with its neighbours, not over them: a store to a line that was just written past the cache
/// waits for memory, and all later stores wait for it.
#[inline(always)]
fn map<S: Simd, E: Element, O: Element<Real = E::Real>, F: Function<S, E::Real>>(
    simd: S,
    row: Row,
    mut out: RowMut,
    stores: StorePolicy,
    f: &F,
    exception: Option<(usize, O)>,
) {
    assert!(row.classes() == out.classes() && row.dtype() == E::DTYPE && out.dtype() == O::DTYPE);
    let lanes = E::Real::LANES;
    // Four vectors, whole lines of the output, are read and written in place; what is left goes through scratches.
    let group = 4 * lanes;
    let in_place = row.is_contiguous() && out.is_contiguous();
    // A first short piece brings the streaming stores to the boundary that they need, if there is one.
    let lead = in_place.then(|| out.peel(stores)).flatten();
    let (streaming, lead) = (lead.is_some(), lead.unwrap_or(0));
    let (mut source, mut result) = (Scratch::<E>::new(), Scratch::<O>::new());
    let mut start = 0;
    while start < row.classes() {
        let rest = row.classes() - start;
        if in_place && start >= lead && rest >= group {
            let length = rest / group * group;
            let (input, output) = (row.pointer::<E>(start), out.pointer::<O>(start));
            for index in (0..length).step_by(group) {
                // SAFETY: the groups lie inside the row, and inside that of the output, which this thread has for itself.
                // Streamed groups begin on a 64-byte boundary: `lead` elements brought the first to
                // it, and groups are whole lines. `result` holds a block, which is more than a group.
                unsafe {
                    let load = |vector: usize| E::load(simd, input.add(index + vector * lanes));
                    let values = of_four(f, [load(0), load(1), load(2), load(3)]);
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
            let input = source.fill(simd, row, start, length, length.next_multiple_of(lanes));
            for index in (0..length).step_by(lanes) {
                // SAFETY: `input` holds whole vectors, and `result` a block of them.
                unsafe {
                    let [values] = f.of([E::load(simd, input.as_ptr().add(index))]);
                    O::store(simd, result.pointer().add(index), values);
                }
            }
            if let Some((class, value)) = exception.filter(|(class, _)| (start..start + length).contains(class)) {
                // SAFETY: the class is one of the `length` elements.
                unsafe { result.pointer().add(class - start).write(value) }
            }
            // SAFETY: the loop wrote `length` elements.
            out.scatter(start, unsafe { result.written(length) });
            start += length;
        }
    }
}
