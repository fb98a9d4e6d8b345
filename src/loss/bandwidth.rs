//! The roofs: how fast this machine reads memory, and how fast it copies it. Every figure of speed is a fraction of
//! one of them, measured in the same run on the same arrays.

use fearless_simd::{Simd, f32x16, prelude::*, u32x16};

use super::{Check, Chunks};
use crate::element::Element;
use crate::error::Result;
use crate::parallel::map_chunks;
use crate::simd::{self, Kernel};
use crate::view::View;

/// Values that a piece of the work spans.
const PIECE: usize = 1 << 16;

/// Read all of `array`, one row of 4-byte values, and return the wrapping sum of their bits, which makes the reads real.
///
/// # Errors
/// What `check` returned.
pub fn read(array: &View<f32>, check: Check) -> Result<u32> {
    let chunks = Chunks::of(array.classes(), PIECE);
    let level = simd::level();
    let sums = map_chunks(chunks.count(), chunks.bytes(1, 4), check, |chunk| {
        level.run(Read { range: chunks.rows_of(chunk), array })
    })?;
    Ok(sums.into_iter().fold(0, u32::wrapping_add))
}

/// Write half of each value of `array` to `out`, both one row side by side, with streaming stores.
///
/// # Errors
/// What `check` returned.
///
/// # Safety
/// `out` was made for an output, apart from `array`, and nothing else accesses it during the call.
pub unsafe fn copy(array: &View<f32>, out: &View<f32>, check: Check) -> Result<()> {
    assert_eq!(array.classes(), out.classes());
    assert!(out.row(0).pointer(0).is_aligned());
    let chunks = Chunks::of(array.classes(), PIECE);
    let level = simd::level();
    map_chunks(chunks.count(), chunks.bytes(1, 8), check, |chunk| {
        level.run(Copy { range: chunks.rows_of(chunk), array, out });
    })
    .map(|_| ())
}

struct Read<'a> {
    range: std::ops::Range<usize>,
    array: &'a View<f32>,
}

impl Kernel for Read<'_> {
    type Output = u32;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> u32 {
        let row = self.array.row(0);
        let mut sums = [u32x16::splat(simd, 0); 8];
        let vectors = self.range.len() / 16;
        for vector in (0..vectors / 8 * 8).step_by(8) {
            for (chain, sum) in sums.iter_mut().enumerate() {
                let source = row.pointer(self.range.start + 16 * (vector + chain));
                // SAFETY: the vector lies inside the range, a part of the row.
                let values = unsafe { f32::load(simd, source) };
                *sum += values.bitcast::<u32x16<S>>();
            }
        }
        let mut total = 0u32;
        for sum in sums {
            total = sum.as_slice().iter().fold(total, |total, value| total.wrapping_add(*value));
        }
        for index in self.range.start + vectors / 8 * 128..self.range.end {
            total = total.wrapping_add(row.get(index).to_bits());
        }
        total
    }
}

struct Copy<'a> {
    range: std::ops::Range<usize>,
    array: &'a View<f32>,
    out: &'a View<f32>,
}

impl Kernel for Copy<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let (row, out) = (self.array.row(0), self.out.row(0));
        let half = f32x16::splat(simd, 0.5);
        let lead = (out.pointer(self.range.start).cast::<u8>().align_offset(64) / 4).min(self.range.len());
        let lines = (self.range.len() - lead) / 64 * 64;
        let streamed = self.range.start + lead..self.range.start + lead + lines;
        for index in (self.range.start..streamed.start).chain(streamed.end..self.range.end) {
            // SAFETY: `out` is an output, and this piece alone works on its range.
            unsafe { out.set(index, row.get(index) * 0.5) }
        }
        for index in streamed.step_by(64) {
            // SAFETY: 64 values from `index` on lie inside the range; those of `out`, 4-byte aligned by the caller,
            // were brought to a 64-byte boundary, and this piece alone works on them.
            unsafe {
                let load = |vector: usize| f32::load(simd, row.pointer(index + 16 * vector)) * half;
                f32::stream(simd, out.pointer(index), [load(0), load(1), load(2), load(3)]);
            }
        }
        simd::store_fence();
    }
}
