//! The second verb: a pass that writes a value for each class, reading the row from cache.

use std::ops::Range;

use fearless_simd::{Simd, f64x8, prelude::*};

use super::transform::{CAPPED, Capped, Scale, Value, with_mode, with_uncapped_mode};
use super::{Dense, Transform};
use crate::element::Element;
use crate::math::{Boost, Real, with_vectors_at_a_time};
use crate::rows::{BLOCK, Row, RowMut, StorePolicy};

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
pub fn probabilities<S: Simd, R: Real + Element<Real = R>>(
    simd: S,
    row: Row,
    out: RowMut,
    of: Exponential,
    stores: StorePolicy,
) {
    exponentials::<S, R>(simd, row, out, of, stores, None);
}

/// Write an [`Exponential`], but for the class that is an exception, which gets its own value.
#[inline(always)]
fn exponentials<S: Simd, R: Real>(
    simd: S,
    row: Row,
    out: RowMut,
    of: Exponential,
    stores: StorePolicy,
    exception: Option<(usize, f64)>,
) {
    out.in_pieces(|part, out| exponentials_of::<S, R>(simd, row, part, out, of, stores, exception));
}

/// [`exponentials`] of some classes.
#[inline(never)]
fn exponentials_of<S: Simd, R: Real>(
    simd: S,
    row: Row,
    part: Range<usize>,
    out: RowMut,
    of: Exponential,
    stores: StorePolicy,
    exception: Option<(usize, f64)>,
) {
    simd.vectorize(
        #[inline(always)]
        || {
            with_uncapped_mode!(of.transform, MODE => {
                let terms = Terms::<S, R, MODE>::new(simd, of);
                map_vectors::<S, R>(simd, row, part, out, stores, exception, #[inline(always)] |x| terms.exp(Value::plain(x)) * terms.factor);
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
        exponentials::<S, R>(simd, row, out, of, stores, exception);
    } else {
        with_mode!(of.transform, MODE => {
            out.in_pieces(|part, out| difference::<S, R, MODE>(simd, row, part, out, of, offset, stores, exception));
        });
    }
}

/// [`gradient`] of some classes by blocks.
#[inline(never)]
#[allow(clippy::too_many_arguments)] // some classes, where their gradients go, and what these are made of
fn difference<S: Simd, R: Real, const MODE: u8>(
    simd: S,
    row: Row,
    part: Range<usize>,
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
                part,
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
#[inline(always)]
pub(super) fn variance<S: Simd, R: Real>(
    simd: S,
    row: Row,
    out: RowMut,
    of: Exponential,
    scale: f64,
    stores: StorePolicy,
    exception: Option<(usize, f64)>,
) {
    out.in_pieces(|part, out| variance_of::<S, R>(simd, row, part, out, of, scale, stores, exception));
}

/// [`variance`] of some classes.
#[inline(never)]
#[allow(clippy::too_many_arguments)] // some classes, where their variances go, and what these are made of
fn variance_of<S: Simd, R: Real>(
    simd: S,
    row: Row,
    part: Range<usize>,
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
                map_vectors::<S, R>(simd, row, part, out, stores, exception, #[inline(always)] |x| {
                    let p = terms.exp(Value::plain(x)) * terms.factor;
                    p * (R::splat(simd, 1.0) - p) * scale
                });
            });
        },
    );
}

/// Write what `f` makes of each block of a part of a row: it gets where the block starts, how long it is, and its logits.
#[inline(always)]
fn map_blocks<S: Simd, R: Real>(
    simd: S,
    row: Row,
    part: Range<usize>,
    mut out: RowMut,
    stores: StorePolicy,
    exception: Option<(usize, f64)>,
    mut f: impl FnMut(usize, usize, &mut [R; BLOCK]),
) {
    let mut block = [R::default(); BLOCK];
    // A first short block brings the streaming stores to the boundary that they need, if there is one.
    let lead = out.peel(stores);
    let mut start = part.start;
    while start < part.end {
        let written = start - part.start;
        let most = if written == 0 { lead.filter(|lead| *lead > 0).unwrap_or(BLOCK) } else { BLOCK };
        let length = most.min(part.end - start);
        row.read(simd, start, length, &mut block);
        f(start, length, &mut block);
        if let Some((class, value)) = exception.filter(|(class, _)| (start..start + length).contains(class)) {
            block[class - start] = R::from_f64(value);
        }
        out.write(simd, written, length, &block, lead.is_some_and(|lead| written >= lead));
        start += length;
    }
}

/// Write what `f` makes of each vector of a part of a row.
#[inline(always)]
fn map_vectors<S: Simd, R: Real>(
    simd: S,
    row: Row,
    part: Range<usize>,
    out: RowMut,
    stores: StorePolicy,
    exception: Option<(usize, f64)>,
    f: impl Fn(R::Lanes<S>) -> R::Lanes<S>,
) {
    map_blocks(
        simd,
        row,
        part,
        out,
        stores,
        exception,
        #[inline(always)]
        |_, length: usize, block: &mut [R; BLOCK]| {
            for part in block[..length.next_multiple_of(R::LANES)].chunks_exact_mut(R::LANES) {
                f(R::Lanes::<S>::from_slice(simd, part)).store_slice(part);
            }
        },
    );
}

/// Write `z − z(reference) − log_sum`.
#[inline(always)]
pub fn log_probabilities<S: Simd, R: Real>(
    simd: S,
    row: Row,
    out: RowMut,
    reference: f64,
    log_sum: f64,
    transform: Transform,
    stores: StorePolicy,
) {
    out.in_pieces(|part, out| {
        log_probabilities_of::<S, R>(simd, row, part, out, [reference, log_sum], transform, stores);
    });
}

/// [`log_probabilities`] of some classes.
#[inline(never)]
fn log_probabilities_of<S: Simd, R: Real>(
    simd: S,
    row: Row,
    part: Range<usize>,
    out: RowMut,
    [reference, log_sum]: [f64; 2],
    transform: Transform,
    stores: StorePolicy,
) {
    simd.vectorize(
        #[inline(always)]
        || {
            let rounded = R::from_f64(log_sum).to_f64();
            let low = if rounded.is_finite() { log_sum - rounded } else { 0.0 };
            let log_sum = [R::splat(simd, rounded), R::splat(simd, low)];
            with_uncapped_mode!(transform, MODE => {
                let of = Exponential { reference, factor: 1.0, transform };
                let terms = Terms::<S, R, MODE>::new(simd, of);
                map_vectors::<S, R>(simd, row, part, out, stores, None, #[inline(always)] |x| terms.scale.log::<MODE>(Value::plain(x), terms.reference, log_sum));
            });
        },
    );
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
}
