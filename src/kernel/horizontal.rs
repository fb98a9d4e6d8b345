//! Classes across lanes: a row at a time, block by block.

use fearless_simd::{Simd, prelude::*};

use super::finish::{MOST_LANES, bits};
use crate::dtype::Number;
use crate::element::Element;
use crate::math::{Real, Reference, Total, with_vectors_at_a_time};
use crate::rows::{BLOCK, Row, RowMut, StorePolicy};

/// Vectors that a loop takes at a time; blocks are padded to so many.
const TOGETHER: usize = 4;

/// What is known of a row once it was read.
#[derive(Clone, Copy, Debug)]
pub struct Sum {
    /// The exponentials of all classes but the own one, boosted.
    pub others: f64,
    /// By how many whole octaves the reference was raised.
    pub octaves: f64,
    /// By how many steps of an octave, at most half of one, it was above the own logit before.
    pub rest: f64,
    /// Whether all logits are within reach of the reference.
    pub suits: bool,
}

/// The vectors of a block in which the own class is looked for: in its lane the number of its vector, in others none.
#[inline(always)]
fn own_lanes<S: Simd, R: Real>(simd: S, own: usize) -> R::Lanes<S> {
    let mut vectors = [u32::MAX as usize; MOST_LANES];
    vectors[own % R::LANES] = own % BLOCK / R::LANES;
    R::classes(simd, &vectors)
}

/// Sum the exponentials of a row relative to that of its own class, which has this logit; if others are out of reach, once more
/// relative to the largest.
#[inline(never)]
pub fn sum<S: Simd, R: Real + Element<Real = R>>(simd: S, row: Row, own: usize, logit: R) -> Sum {
    simd.vectorize(
        #[inline(always)]
        || {
            let logits = R::Lanes::<S>::simd_from(simd, logit);
            let (reference, rest) = Reference::<S, R>::next_to(simd, logits);
            let suits = Number::to_f64(logit).abs() < R::LARGEST_REFERENCE;
            let (mut others, largest) = sum_from::<S, R>(simd, row, own, reference);
            let mut largest = R::Lanes::<S>::simd_from(simd, R::largest(largest));
            let octaves = Reference::<S, R>::octaves_to(simd, largest);
            let of_lane = Number::to_f64(octaves.as_slice()[0]);
            if suits && of_lane > 0.0 {
                (others, largest) = sum_from::<S, R>(simd, row, own, reference.raised(simd, octaves));
            }
            let reach = bits::<S, _>(Reference::<S, R>::within_reach(simd, largest));
            let suits = suits && reach == u32::MAX >> (32 - R::LANES);
            Sum { others, octaves: of_lane, rest: Number::to_f64(rest.as_slice()[0]), suits }
        },
    )
}

/// [`sum`] from a reference: the sum, and what was largest of `rounded` in each lane.
#[inline(never)]
fn sum_from<S: Simd, R: Real + Element<Real = R>>(
    simd: S,
    row: Row,
    own: usize,
    reference: Reference<S, R>,
) -> (f64, R::Lanes<S>) {
    simd.vectorize(
        #[inline(always)]
        || {
            let zero = R::splat(simd, 0.0);
            let own_lanes = own_lanes::<S, R>(simd, own);
            let mut block = [R::default(); BLOCK];
            let mut largest = zero;
            let mut total = Total::zero(simd);
            for start in (0..row.classes()).step_by(BLOCK) {
                let length = BLOCK.min(row.classes() - start);
                let place = row.lend(simd, start, length, &mut block);
                let vectors = length.div_ceil(TOGETHER * R::LANES) * TOGETHER;
                let block = Vectors { place, count: vectors, own: own_lanes };
                let mut sums = [zero; TOGETHER];
                if own / BLOCK == start / BLOCK {
                    block.add::<true>(simd, &reference, &mut sums, &mut largest);
                } else {
                    block.add::<false>(simd, &reference, &mut sums, &mut largest);
                }
                let sum = if R::CHAINS == 2 { sums[0] + sums[1] } else { (sums[0] + sums[1]) + (sums[2] + sums[3]) };
                R::add_to(&mut total, sum);
            }
            (total.value(), largest)
        },
    )
}

/// The vectors of a block, and where the own class would be in it.
struct Vectors<S: Simd, R: Real> {
    place: *const R,
    count: usize,
    own: R::Lanes<S>,
}

impl<S: Simd, R: Real + Element<Real = R>> Vectors<S, R> {
    /// Add the exponentials of all of them, but for the own class if it is in this block (`OWN`).
    #[inline(always)]
    fn add<const OWN: bool>(
        &self,
        simd: S,
        reference: &Reference<S, R>,
        sums: &mut [R::Lanes<S>; TOGETHER],
        largest: &mut R::Lanes<S>,
    ) {
        for vector in (0..self.count).step_by(TOGETHER) {
            with_vectors_at_a_time!(S, K => {
                for k in (0..TOGETHER).step_by(K) {
                    let mut x = [*largest; K];
                    for (index, x) in x.iter_mut().enumerate() {
                        // SAFETY: a vector of what was lent: of the row, or of the padded block.
                        *x = unsafe { Element::load(simd, self.place.add((vector + k + index) * R::LANES)) };
                    }
                    let mut terms = reference.terms(simd, x);
                    if OWN {
                        for index in 0..K {
                            let number = vector + k + index;
                            terms.power[index] = R::except(simd, terms.power[index], self.own, number);
                        }
                    }
                    for index in 0..K {
                        *largest = R::larger::<S>(terms.rounded[index], *largest);
                        let chain = (k + index) % R::CHAINS;
                        sums[chain] = terms.add_to(simd, index, sums[chain]);
                    }
                }
            });
        }
    }
}

/// Write the gradient of a row: `factor` times the exponentials, and its own value for the own class, which has this logit.
#[inline(never)]
#[allow(clippy::too_many_arguments)] // a row, and how its gradient is written
pub fn write<S: Simd, R: Real + Element<Real = R>>(
    simd: S,
    row: Row,
    mut out: RowMut,
    own: usize,
    logit: R,
    octaves: f64,
    factor: f64,
    own_gradient: f64,
    store: StorePolicy,
) {
    simd.vectorize(
        #[inline(always)]
        || {
            let (reference, _) = Reference::<S, R>::next_to(simd, R::Lanes::<S>::simd_from(simd, logit));
            let reference = reference.raised(simd, R::splat(simd, octaves));
            let factor = R::splat(simd, factor);
            let (mut logits, mut results) = ([R::default(); BLOCK], [R::default(); BLOCK]);
            // A first short block brings the non-temporal stores to the boundary that they need, if there is one.
            let peel = out.peel(store);
            let as_computed = out.dtype() == R::DTYPE && out.is_contiguous();
            let mut start = 0;
            while start < row.classes() {
                let most = if start == 0 { peel.filter(|peel| *peel > 0).unwrap_or(BLOCK) } else { BLOCK };
                let length = most.min(row.classes() - start);
                let place = row.lend(simd, start, length, &mut logits);
                let non_temporal = peel.is_some_and(|peel| start >= peel);
                let here = start..start + length;
                // A block that is written where it belongs: whole, and without the own class.
                let direct = as_computed && length == BLOCK && !here.contains(&own);
                let results_place = if direct { out.pointer::<R>(start) } else { results.as_mut_ptr() };
                let vectors = length.div_ceil(TOGETHER * R::LANES) * TOGETHER;
                for vector in (0..vectors).step_by(TOGETHER) {
                    let mut gradients = [factor; TOGETHER];
                    with_vectors_at_a_time!(S, K => {
                        for k in (0..TOGETHER).step_by(K) {
                            let mut x = [factor; K];
                            for (index, x) in x.iter_mut().enumerate() {
                                // SAFETY: a vector of what was lent: of the row, or of the padded block.
                                *x = unsafe { Element::load(simd, place.add((vector + k + index) * R::LANES)) };
                            }
                            let terms = reference.terms(simd, x);
                            for index in 0..K {
                                gradients[k + index] = terms.exp(index) * factor;
                            }
                        }
                    });
                    // SAFETY: four vectors of a whole block of the row's own, or of ours. Past the cache only from a boundary of
                    // lines on, as `peel` found it; blocks and vectors are whole lines.
                    unsafe {
                        let place = results_place.add(vector * R::LANES);
                        if direct && non_temporal {
                            R::stream(simd, place, gradients);
                        } else {
                            for (index, gradient) in gradients.into_iter().enumerate() {
                                Element::store(simd, place.add(index * R::LANES), gradient);
                            }
                        }
                    }
                }
                if !direct {
                    if here.contains(&own) {
                        results[own - start] = Real::from_f64(own_gradient);
                    }
                    out.write(simd, start, length, &results, non_temporal);
                }
                start += length;
            }
        },
    );
}
