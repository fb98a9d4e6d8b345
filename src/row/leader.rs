//! Where the largest logit of a row is.

use fearless_simd::{Simd, prelude::*};

use super::{BLOCK, Scratch};
use crate::element::Element;
use crate::math::Real;
use crate::view::Row;

/// The lowest index of the largest logit, and 0 for a row of only −∞; unspecified if there is a NaN.
#[inline(never)]
pub fn leader<S: Simd, E: Element>(simd: S, row: Row<E>) -> usize {
    simd.vectorize(
        #[inline(always)]
        || inlined_leader(simd, row),
    )
}

#[inline(always)]
fn inlined_leader<S: Simd, E: Element>(simd: S, row: Row<E>) -> usize {
    let mut best = (f64::NEG_INFINITY, 0);
    let mut scratch = Scratch::new();
    for start in (0..row.classes()).step_by(BLOCK) {
        let largest = largest_of_block(simd, row, start, &mut scratch);
        if largest > best.0 {
            best = (largest, start);
        }
    }
    let (largest, start) = best;
    let length = (row.classes() - start).min(BLOCK);
    (start..start + length).find(|&class| row.get(class).to_f64() == largest).unwrap_or(0)
}

/// The largest element of the block that begins at `start`.
#[inline(always)]
fn largest_of_block<S: Simd, E: Element>(simd: S, row: Row<E>, start: usize, scratch: &mut Scratch<E>) -> f64 {
    let length = (row.classes() - start).min(BLOCK);
    let block = scratch.fill(row, start, length, BLOCK);
    // SAFETY: `vector` stays below the vectors of a block.
    let load = |vector: usize| unsafe { E::load(simd, block.as_ptr().add(vector * E::Real::LANES)) };
    let mut largest = load(0);
    for vector in 1..BLOCK / E::Real::LANES {
        largest = largest.max(load(vector));
    }
    E::Real::largest(largest).to_f64()
}
