//! Rows whose storage type is known at run time alone, read and written a block at a time.
//!
//! What most calls do, losses of classes, statistics and gradients of classes, is compiled for the rows of every storage
//! type, and of tiles the log-sum-exp: that reads the caller's memory in place. Everything else goes through blocks of the
//! type computed in, on the stack and in L1: for a load and a store more a vector, one kernel serves all storage types.
//! Compiled for each of them, in every combination with transforms, targets and outputs, the release build took more than
//! ten minutes; now it takes two.

use std::any::Any;
use std::ops::Range;

use fearless_simd::{Simd, prelude::*};
use half::{bf16, f16};

use super::map::Stores;
use super::tile::{AnyTile, Transposed, most_classes};
use super::{BLOCK, Scratch};
use crate::element::Element;
use crate::math::Real;
use crate::simd::prefetch_ahead;
use crate::view::{Row, View};

/// Logits of any storage type.
#[derive(Clone, Debug)]
#[allow(missing_docs)] // their names say it
pub enum AnyView {
    F16(View<f16>),
    Bf16(View<bf16>),
    F32(View<f32>),
    F64(View<f64>),
}

impl AnyView {
    /// The numbers of rows and of classes.
    pub fn shape(&self) -> (usize, usize) {
        match self {
            Self::F16(view) => (view.rows(), view.classes()),
            Self::Bf16(view) => (view.rows(), view.classes()),
            Self::F32(view) => (view.rows(), view.classes()),
            Self::F64(view) => (view.rows(), view.classes()),
        }
    }

    /// A row.
    #[inline]
    pub(super) fn row(&self, index: usize) -> AnyRow {
        match self {
            Self::F16(view) => AnyRow::F16(view.row(index)),
            Self::Bf16(view) => AnyRow::Bf16(view.row(index)),
            Self::F32(view) => AnyRow::F32(view.row(index)),
            Self::F64(view) => AnyRow::F64(view.row(index)),
        }
    }

    /// Whether the rows compute in f64.
    pub(super) fn is_double(&self) -> bool {
        matches!(self, Self::F64(_))
    }

    /// Some rows across lanes, if they compute in `R` and have few enough classes.
    #[inline(always)]
    pub(super) fn transpose<S: Simd, R: Real + Element<Real = R>>(
        &self,
        simd: S,
        rows: Range<usize>,
        room: &mut Transposed<R>,
    ) -> Option<AnyTile> {
        let (_, classes) = self.shape();
        if self.is_double() != (R::LANES == f64::LANES) || classes > most_classes::<R>() {
            return None;
        }
        {
            let room: &mut dyn Any = room;
            match self {
                Self::F16(view) => load(simd, view, rows, room.downcast_mut()?),
                Self::Bf16(view) => load(simd, view, rows, room.downcast_mut()?),
                Self::F32(view) => load(simd, view, rows, room.downcast_mut()?),
                Self::F64(view) => load(simd, view, rows, room.downcast_mut()?),
            }
        }
        Some(AnyTile::of(room.tile(classes)))
    }
}

/// A row of any storage type.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)] // their names say it
pub enum AnyRow {
    F16(Row<f16>),
    Bf16(Row<bf16>),
    F32(Row<f32>),
    F64(Row<f64>),
}

/// Run `$body` with `$row` set to the row of its own type.
macro_rules! with_row {
    ($any:expr, $row:ident => $body:expr) => {
        match $any {
            AnyRow::F16($row) => $body,
            AnyRow::Bf16($row) => $body,
            AnyRow::F32($row) => $body,
            AnyRow::F64($row) => $body,
        }
    };
}

impl AnyRow {
    /// From a row of one of the four types.
    #[inline(always)]
    pub fn of<E: Element>(row: Row<E>) -> Self {
        let row: &dyn Any = &row;
        let f16 = row.downcast_ref().copied().map(Self::F16);
        let bf16 = row.downcast_ref().copied().map(Self::Bf16);
        let f32 = row.downcast_ref().copied().map(Self::F32);
        let f64 = row.downcast_ref().copied().map(Self::F64);
        f16.or(bf16).or(f32).or(f64).expect("there are four storage types")
    }

    /// Whether the row computes in f64.
    pub(super) fn is_double(&self) -> bool {
        matches!(self, Self::F64(_))
    }

    /// The number of classes.
    #[inline]
    pub(super) fn classes(&self) -> usize {
        with_row!(self, row => row.classes())
    }

    /// A logit.
    #[inline]
    pub(super) fn get(&self, class: usize) -> f64 {
        with_row!(self, row => Element::to_f64(row.get(class)))
    }

    /// Read `length` classes from `start` on, and masked classes up to the next multiple of four vectors.
    ///
    /// # Panics
    /// If the row computes in f64 and `R` is f32.
    #[inline]
    pub(super) fn read<S: Simd, R: Real>(&self, simd: S, start: usize, length: usize, block: &mut [R; BLOCK]) {
        // A teacher may be narrower than its pupil.
        if !self.is_double() && R::LANES != f32::LANES {
            let mut narrow = [0.0f32; BLOCK];
            self.read(simd, start, length, &mut narrow);
            for (number, value) in block.iter_mut().zip(narrow) {
                *number = R::from_f64(f64::from(value));
            }
            return;
        }
        let block: &mut dyn Any = block;
        with_row!(*self, row => read(simd, row, start, length, block.downcast_mut().expect("the row's own type")));
    }

    /// Like [`Self::read`], but where the row itself has a whole block of `R`s, they stay there.
    #[inline(always)]
    pub(super) fn lend<S: Simd, R: Real + Element>(
        &self,
        simd: S,
        start: usize,
        length: usize,
        block: &mut [R; BLOCK],
    ) -> *const R {
        assert!(start + length <= self.classes());
        let row: &dyn Any = with_row!(self, row => row);
        if let Some(row) = row.downcast_ref::<Row<R>>()
            && length == BLOCK
            && row.is_contiguous()
        {
            let place = row.pointer(start).cast_const();
            prefetch_ahead(place.cast(), BLOCK * size_of::<R>());
            return place;
        }
        self.read(simd, start, length, block);
        block.as_ptr()
    }

    /// How many of `length` classes from `start` on, a block at most, have this logit, and the first that has.
    #[inline(never)]
    pub(super) fn equal_to<S: Simd, R: Real + Element<Real = R>>(
        &self,
        simd: S,
        start: usize,
        length: usize,
        logit: R,
    ) -> (u32, Option<usize>) {
        simd.vectorize(
            #[inline(always)]
            || {
                let mut copy = [R::default(); BLOCK];
                let logits = self.lend(simd, start, length, &mut copy);
                let logit = R::Lanes::<S>::simd_from(simd, logit);
                let (mut count, mut first) = (0, None);
                for index in (0..length).step_by(R::LANES) {
                    // SAFETY: whole vectors of what was lent, which lies inside the row or was padded to a multiple.
                    let found = unsafe { R::load(simd, logits.add(index)) }.simd_eq(logit).to_bitmask();
                    // What was padded does not count.
                    let found = found & (u64::MAX >> (64 - (length - index).min(R::LANES)));
                    if found != 0 {
                        first = first.or(Some(start + index + found.trailing_zeros() as usize));
                        count += found.count_ones();
                    }
                }
                (count, first)
            },
        )
    }

    /// The first class with this logit.
    pub(super) fn find<S: Simd, R: Real + Element<Real = R>>(&self, simd: S, logit: R) -> Option<usize> {
        let classes = self.classes();
        (0..classes).step_by(BLOCK).find_map(|start| self.equal_to(simd, start, (classes - start).min(BLOCK), logit).1)
    }

    /// How many elements come before the first that streaming stores can write, if that is how results are stored.
    pub(super) fn lead(&self, stores: Stores) -> Option<usize> {
        with_row!(self, row => lead(*row, stores))
    }

    /// Write the first `length` values of a block from class `start` on, each rounded once.
    ///
    /// # Safety
    /// As for [`Row::set`]; if `streaming`, the place of `start` is on a boundary of 64 bytes.
    ///
    /// # Panics
    /// If the row does not compute in `R`.
    #[inline(always)]
    pub(super) unsafe fn write<S: Simd, R: Real>(
        &self,
        simd: S,
        start: usize,
        length: usize,
        block: &[R; BLOCK],
        streaming: bool,
    ) {
        let block: &dyn Any = block;
        // SAFETY: the caller's promise.
        unsafe {
            with_row!(*self, row => {
                write(simd, row, start, length, block.downcast_ref().expect("the row's own type"), streaming);
            });
        }
    }
}

#[inline(always)]
fn load<S: Simd, E: Element>(simd: S, view: &View<E>, rows: Range<usize>, room: &mut Transposed<E::Real>) {
    room.load(simd, view, rows.start, rows.len());
}

#[inline(never)]
fn read<S: Simd, E: Element>(simd: S, row: Row<E>, start: usize, length: usize, block: &mut [E::Real; BLOCK]) {
    simd.vectorize(
        #[inline(always)]
        || {
            let lanes = E::Real::LANES;
            assert!(start + length <= row.classes());
            prefetch_ahead(row.pointer(start).cast_const().cast(), BLOCK * size_of::<E>());
            let mut scratch = Scratch::new();
            let source = if length == BLOCK && row.is_contiguous() {
                row.pointer(start).cast_const()
            } else {
                scratch.fill(simd, row, start, length, length.next_multiple_of(4 * lanes)).as_ptr()
            };
            for (index, part) in block[..length.next_multiple_of(4 * lanes)].chunks_exact_mut(lanes).enumerate() {
                // SAFETY: the block lies inside the row, whose elements are readable, or in a scratch of that length.
                unsafe { E::load(simd, source.add(index * lanes)) }.store_slice(part);
            }
        },
    );
}

/// [`AnyRow::lead`] of a row whose type is known.
pub(super) fn lead<O: Element>(row: Row<O>, stores: Stores) -> Option<usize> {
    if stores != Stores::Streaming || !row.is_contiguous() {
        return None;
    }
    let lead = row.pointer(0).cast::<u8>().align_offset(64) / size_of::<O>();
    let first = row.pointer(lead.min(row.classes())).cast::<u8>();
    (first.align_offset(64) == 0).then_some(lead)
}

/// # Safety
/// As for [`AnyRow::write`].
#[inline(never)]
unsafe fn write<S: Simd, O: Element>(
    simd: S,
    row: Row<O>,
    start: usize,
    length: usize,
    block: &[O::Real; BLOCK],
    streaming: bool,
) {
    simd.vectorize(
        #[inline(always)]
        || {
            let lanes = O::Real::LANES;
            let load = |index: usize| <O::Real as Real>::Lanes::<S>::from_slice(simd, &block[index..index + lanes]);
            let streamed = if streaming { length / (4 * lanes) * (4 * lanes) } else { 0 };
            for index in (0..streamed).step_by(4 * lanes) {
                let values = [load(index), load(index + lanes), load(index + 2 * lanes), load(index + 3 * lanes)];
                // SAFETY: four vectors inside the row, writeable by the caller's promise; each four are whole lines, so
                // they begin on the boundary that the first is on.
                unsafe { O::stream(simd, row.pointer(start + index), values) }
            }
            let mut scratch = Scratch::<O>::new();
            for index in (streamed..length).step_by(lanes) {
                // SAFETY: the scratch holds a block of whole vectors.
                unsafe { O::store(simd, scratch.pointer().add(index - streamed), load(index)) }
            }
            // SAFETY: the loop wrote them; the rest is the caller's promise.
            unsafe { row.scatter(start + streamed, scratch.written(length - streamed)) }
        },
    );
}
