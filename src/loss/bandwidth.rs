//! The roofs: how fast this machine reads memory, and how fast it copies it. Every figure of speed is a fraction of
//! one of them, measured in the same run on the same arrays.

use fearless_simd::{Simd, f32x16, prelude::*, u32x16};

use super::{Check, Chunks};
use crate::array::{Array, ArrayMut, RowsMut};
use crate::element::Element;
use crate::error::Result;
use crate::simd::{self, Kernel};

/// Values that a piece of the work spans.
const PIECE: usize = 1 << 16;

/// Read all of `array`, f32 values side by side, each a row of one class, and return the wrapping sum of their bits, which
/// makes the reads real.
///
/// # Errors
/// What `check` returned.
///
/// # Panics
/// If they are something else.
pub fn read(array: &Array, check: Check) -> Result<u32> {
    let chunks = Chunks::of(array.rows(), PIECE);
    let level = simd::level();
    let sums = chunks.map(4, check, |chunk| level.run(Read { range: chunks.rows_of(chunk), array }))?;
    Ok(sums.into_iter().fold(0, u32::wrapping_add))
}

/// Write half of each value of `array` to `out`, both f32 values side by side as [`read`] takes them, with non-temporal
/// stores.
///
/// # Errors
/// What `check` returned.
///
/// # Panics
/// If they are something else, or not as many.
pub fn copy(array: &Array, out: &mut ArrayMut, check: Check) -> Result<()> {
    assert_eq!(array.rows(), out.rows());
    let chunks = Chunks::of(array.rows(), PIECE);
    let parts = out.parts(chunks.ranges());
    let level = simd::level();
    chunks
        .map(8, check, |chunk| {
            level.run(Copy { range: chunks.rows_of(chunk), array, out: parts.take(chunk) });
        })
        .map(|_| ())
}

struct Read<'a> {
    range: std::ops::Range<usize>,
    array: &'a Array<'a>,
}

impl Kernel for Read<'_> {
    type Output = u32;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> u32 {
        let place = self.array.lend::<f32>(self.range.start, self.range.len()).expect("values side by side");
        let mut sums = [u32x16::splat(simd, 0); 8];
        let vectors = self.range.len() / 16;
        for vector in (0..vectors / 8 * 8).step_by(8) {
            for (chain, sum) in sums.iter_mut().enumerate() {
                // SAFETY: the vector lies inside what was lent.
                let values = unsafe { f32::load(simd, place.add(16 * (vector + chain))) };
                *sum += values.bitcast::<u32x16<S>>();
            }
        }
        let mut total = 0u32;
        for sum in sums {
            total = sum.as_slice().iter().fold(total, |total, value| total.wrapping_add(*value));
        }
        for index in self.range.start + vectors / 8 * 128..self.range.end {
            total = total.wrapping_add(self.array.get::<f32>(index).to_bits());
        }
        total
    }
}

struct Copy<'a> {
    range: std::ops::Range<usize>,
    array: &'a Array<'a>,
    out: RowsMut<'a>,
}

impl Kernel for Copy<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        let (start, count) = (self.range.start, self.range.len());
        let source = self.array.lend::<f32>(start, count).expect("values side by side");
        let mut places = [std::ptr::null_mut::<f32>()];
        self.out.places(start, &mut places);
        let [place] = places;
        assert!(self.out.is_adjacent(start, count) && place.is_aligned());
        let half = f32x16::splat(simd, 0.5);
        let peel = place.align_offset(64).min(count);
        let streamed = peel..peel + (count - peel) / 64 * 64;
        // SAFETY: `count` values were lent, and as many places lie side by side in rows that are this piece's alone; where
        // 64 of them are streamed, the first was brought to a boundary of 64 bytes.
        unsafe {
            for index in (0..streamed.start).chain(streamed.end..count) {
                place.add(index).write(source.add(index).read_unaligned() * 0.5);
            }
            for index in streamed.step_by(64) {
                let load = |vector: usize| f32::load(simd, source.add(index + 16 * vector)) * half;
                f32::stream(simd, place.add(index), [load(0), load(1), load(2), load(3)]);
            }
        }
        simd::store_fence();
    }
}
