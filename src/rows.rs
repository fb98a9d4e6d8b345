//! A row of an array: its elements where they lie, or a block of them converted to the type that is computed in.
//!
//! A row is walked in blocks of [`BLOCK`] elements. One that lies in memory as it is computed with is read in place; any other (a
//! strided or byte-swapped row, another dtype) is copied to a block on the stack first and padded with masked classes, as is a short
//! one, for whoever takes only whole vectors. A long one is looked through, and written, in pieces ([`in_pieces`]).

use std::any::Any;
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ops::Range;

use fearless_simd::{Simd, prelude::*};

use crate::dtype::{Dtype, Number, with_dtype, with_element};
use crate::element::{Element, Lanes};
use crate::math::Real;
use crate::parallel::{in_pieces, pieces};
use crate::simd::{self, prefetch_ahead};

/// Elements of a block: 16 vectors of f32, 32 of f64.
pub const BLOCK: usize = 256;

/// How results go to memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StorePolicy {
    /// Through the cache: for results that are small, or that overwrite their input.
    Cached,
    /// Past the cache: for results larger than it, which would be read only to be overwritten.
    NonTemporal,
}

/// One row of an array.
#[derive(Clone, Copy, Debug)]
pub struct Row<'a> {
    base: *mut u8,
    dtype: Dtype,
    swapped: bool,
    classes: usize,
    stride: isize,
    memory: PhantomData<&'a [u8]>,
}

// SAFETY: it is readable by the promise made to `Row::new`, from any thread; what is written, is written through a `RowMut`, which has
// its elements for itself by the promise made to `RowMut::new`, on whichever thread it is.
unsafe impl Send for Row<'_> {}
// SAFETY: as above.
unsafe impl Sync for Row<'_> {}

impl Row<'_> {
    /// `classes` elements `stride` bytes apart.
    ///
    /// # Safety
    /// During the row's lifetime they are readable.
    #[inline(always)]
    pub(crate) unsafe fn new(base: *mut u8, dtype: Dtype, swapped: bool, classes: usize, stride: isize) -> Self {
        Self { base, dtype, swapped, classes, stride, memory: PhantomData }
    }

    /// Some of its classes as a row.
    ///
    /// # Panics
    /// If it does not have them.
    #[inline(always)]
    pub(crate) fn part(&self, classes: Range<usize>) -> Self {
        assert!(classes.start <= classes.end && classes.end <= self.classes);
        Self { base: self.place(classes.start), classes: classes.len(), ..*self }
    }

    /// The number of classes.
    #[inline(always)]
    pub fn classes(&self) -> usize {
        self.classes
    }

    /// What the elements are.
    #[inline(always)]
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Whether the elements lie side by side, as the CPU reads them.
    #[inline(always)]
    pub fn is_contiguous(&self) -> bool {
        self.stride == self.dtype.size() as isize && !self.swapped
    }

    /// Where element `index` of a row of `E`s lies; in bounds for `index` up to the number of classes.
    #[inline(always)]
    pub(crate) fn pointer<E: Number>(&self, index: usize) -> *const E {
        debug_assert!(index <= self.classes && self.dtype == E::DTYPE);
        self.place(index).cast_const().cast()
    }

    /// Where element `index` lies; in bounds for `index` up to the number of classes.
    #[inline(always)]
    pub(crate) fn place(&self, index: usize) -> *mut u8 {
        self.base.wrapping_offset(index as isize * self.stride)
    }

    /// Element `index`.
    ///
    /// # Panics
    /// If there is no such element.
    #[inline(never)]
    pub fn get(&self, index: usize) -> f64 {
        with_dtype!(self.dtype, T => Number::to_f64(self.get_as::<T>(index)))
    }

    /// Element `index` of a row of `T`s.
    ///
    /// # Panics
    /// If there is no such element, or if it is no `T`.
    #[inline(always)]
    pub fn get_as<T: Number>(&self, index: usize) -> T {
        assert!(index < self.classes && self.dtype == T::DTYPE, "class {index} of {}", self.classes);
        // SAFETY: the element is readable by the promise made to `Row::new`; the read asks for no alignment.
        let value = unsafe { self.place(index).cast::<T>().read_unaligned() };
        if self.swapped { value.swap_bytes() } else { value }
    }

    /// Copy the elements of a row of `E`s from `start` on into `block`, all of it.
    ///
    /// # Panics
    /// If there are no such elements, or if they are no `E`s.
    #[inline(always)]
    fn gather<E: Number>(&self, start: usize, block: &mut [MaybeUninit<E>]) {
        if self.is_contiguous() {
            assert!(start + block.len() <= self.classes && self.dtype == E::DTYPE, "block past the row");
            // SAFETY: the elements are readable by the promise made to `Row::new` and lie side by side; `block` is memory
            // of ours, so they do not overlap. Copied as bytes: a copy asks for no alignment.
            unsafe { self.place(start).copy_to_nonoverlapping(block.as_mut_ptr().cast(), size_of_val(block)) }
        } else {
            for (offset, value) in block.iter_mut().enumerate() {
                value.write(self.get_as(start + offset));
            }
        }
    }

    /// Read `length` classes from `start` on, and masked classes up to the next multiple of four vectors.
    ///
    /// # Panics
    /// If there are no such classes, or if they are f64 and `R` is f32.
    #[inline]
    pub(crate) fn read<S: Simd, R: Real>(&self, simd: S, start: usize, length: usize, block: &mut [R; BLOCK]) {
        // A teacher may be narrower than its pupil.
        if !self.dtype.is_double() && R::LANES != f32::LANES {
            let mut narrow = [0.0f32; BLOCK];
            self.read(simd, start, length, &mut narrow);
            for (number, value) in block.iter_mut().zip(narrow) {
                *number = R::from_f64(f64::from(value));
            }
            return;
        }
        with_element!(self.dtype, E => read_as::<S, E>(simd, *self, start, length, same_mut(block)));
    }

    /// Like [`Self::read`], but where the row itself has a whole block of `R`s, they stay there.
    #[inline(always)]
    pub(crate) fn lend<S: Simd, R: Real + Element<Real = R>>(
        &self,
        simd: S,
        start: usize,
        length: usize,
        block: &mut [R; BLOCK],
    ) -> *const R {
        assert!(start + length <= self.classes);
        if self.dtype == R::DTYPE && length == BLOCK && self.is_contiguous() {
            let place = self.pointer::<R>(start);
            prefetch_ahead(place.cast(), BLOCK * size_of::<R>());
            return place;
        }
        if self.dtype == R::DTYPE && self.is_contiguous() {
            pad(simd, *self, start, length, block);
        } else {
            self.read(simd, start, length, block);
        }
        block.as_ptr()
    }

    /// Like [`Self::lend`], but shorter blocks stay there, too; with how many values may be read from there on.
    #[inline(always)]
    pub(crate) fn lend_part<S: Simd, R: Real + Element<Real = R>>(
        &self,
        simd: S,
        start: usize,
        length: usize,
        block: &mut [R; BLOCK],
    ) -> (*const R, usize) {
        assert!(start + length <= self.classes && length <= BLOCK);
        if self.dtype == R::DTYPE && self.is_contiguous() {
            let place = self.pointer::<R>(start);
            prefetch_ahead(place.cast(), BLOCK * size_of::<R>());
            return (place, length);
        }
        self.read(simd, start, length, block);
        (block.as_ptr(), length.next_multiple_of(4 * R::LANES))
    }

    /// How many of `length` classes from `start` on, a block at most, have this logit, and the first that has.
    #[inline(never)]
    pub(crate) fn equal_to<S: Simd, R: Real + Element<Real = R>>(
        &self,
        simd: S,
        start: usize,
        length: usize,
        logit: R,
    ) -> (u32, Option<usize>) {
        simd.vectorize(
            #[inline(always)]
            || {
                let logit = R::Lanes::<S>::simd_from(simd, logit);
                let (mut count, mut first) = (0, None);
                self.for_each_vector::<S, R>(
                    simd,
                    (start, length),
                    #[inline(always)]
                    |index, some, counts| {
                        let found = some.simd_eq(logit).to_bitmask() & counts;
                        if found != 0 {
                            first = first.or(Some(start + index + found.trailing_zeros() as usize));
                            count += found.count_ones();
                        }
                    },
                );
                (count, first)
            },
        )
    }

    /// How many classes rank above one: those with a larger logit, or with the same at a lower index.
    ///
    /// # Panics
    /// If there is no such class.
    #[inline(always)]
    pub(crate) fn above<S: Simd, R: Real + Element<Real = R>>(&self, simd: S, class: usize) -> usize {
        let logit = <R as Real>::from_f64(self.get(class));
        let of_piece = |part| self.above_in::<S, R>(simd, part, class, logit);
        in_pieces(self.classes, of_piece, |above, next| *above += next)
    }

    /// How many of some classes rank above one that has this logit.
    #[inline(never)]
    fn above_in<S: Simd, R: Real + Element<Real = R>>(
        &self,
        simd: S,
        part: Range<usize>,
        class: usize,
        logit: R,
    ) -> usize {
        simd.vectorize(
            #[inline(always)]
            || {
                let logit = R::Lanes::<S>::simd_from(simd, logit);
                let middle = class.clamp(part.start, part.end);
                let mut above = 0;
                for start in (part.start..middle).step_by(BLOCK) {
                    self.for_each_vector::<S, R>(
                        simd,
                        (start, BLOCK.min(middle - start)),
                        #[inline(always)]
                        |_, some, counts| above += (some.simd_ge(logit).to_bitmask() & counts).count_ones() as usize,
                    );
                }
                for start in (middle..part.end).step_by(BLOCK) {
                    self.for_each_vector::<S, R>(
                        simd,
                        (start, BLOCK.min(part.end - start)),
                        #[inline(always)]
                        |_, some, counts| above += (some.simd_gt(logit).to_bitmask() & counts).count_ones() as usize,
                    );
                }
                above
            },
        )
    }

    /// See the vectors of `length` classes from `start` on, a block at most: each with the number of its first class from there, and a
    /// bit for each lane that is one of these classes.
    #[inline(always)]
    fn for_each_vector<S: Simd, R: Real + Element<Real = R>>(
        &self,
        simd: S,
        (start, length): (usize, usize),
        mut see: impl FnMut(usize, R::Lanes<S>, u64),
    ) {
        let mut copy = [R::default(); BLOCK];
        let (logits, readable) = self.lend_part(simd, start, length, &mut copy);
        for index in (0..length).step_by(R::LANES) {
            let left = readable - index;
            // SAFETY: what was lent, the last vector in part if there is no more.
            let some = unsafe {
                let place = logits.add(index);
                if left >= R::LANES { R::load(simd, place) } else { R::load_part(simd, place, left) }
            };
            // What was padded does not count.
            see(index, some, u64::MAX >> (64 - (length - index).min(R::LANES)));
        }
    }

    /// The first class with this logit.
    pub(crate) fn find<S: Simd, R: Real + Element<Real = R>>(&self, simd: S, logit: R) -> Option<usize> {
        let first_of = |part: Range<usize>| {
            let mut starts = part.clone().step_by(BLOCK);
            starts.find_map(|start| self.equal_to(simd, start, (part.end - start).min(BLOCK), logit).1)
        };
        in_pieces(self.classes, first_of, |found, next| *found = found.or(next))
    }

    /// The first class whose logit is NaN.
    pub(crate) fn find_nan(&self) -> Option<usize> {
        let first_of = |mut part: Range<usize>| part.find(|class| self.get(*class).is_nan());
        in_pieces(self.classes, first_of, |found, next| *found = found.or(next))
    }
}

/// One row of an array that is written, by the only thread that has it.
#[derive(Debug)]
pub struct RowMut<'a> {
    row: Row<'a>,
    memory: PhantomData<&'a mut [u8]>,
}

impl<'a> RowMut<'a> {
    /// A row to write to.
    ///
    /// # Safety
    /// During `'a` its elements are writeable, and nothing else accesses them but a [`Row`] that this thread reads.
    #[inline(always)]
    pub(crate) unsafe fn new(row: Row<'a>) -> Self {
        Self { row, memory: PhantomData }
    }

    /// `count` elements `step` bytes apart.
    ///
    /// # Safety
    /// As for [`Self::new`].
    #[inline(always)]
    pub(crate) unsafe fn of_run<O: Number>(place: *mut u8, count: usize, step: isize) -> Self {
        // SAFETY: the caller's promise.
        unsafe { Self::new(Row::new(place, O::DTYPE, false, count, step)) }
    }

    /// The same row, for a while.
    #[inline(always)]
    pub fn reborrow(&mut self) -> RowMut<'_> {
        RowMut { row: self.row, memory: PhantomData }
    }

    /// Let `write` write all of it, or each piece of a long row: it gets which classes these are, and where they go.
    #[inline(always)]
    pub(crate) fn in_pieces(self, write: impl Fn(Range<usize>, RowMut) + Sync) {
        let row = self.row;
        let write_part = |part: Range<usize>| {
            // SAFETY: these elements are writeable by the promise made to `RowMut::new`, and nothing else accesses them: pieces do not
            // overlap, each is one thread's at a time, and nobody else has the row, which was given to this function.
            write(part.clone(), unsafe { RowMut::new(row.part(part)) });
            // Other threads' stores past the cache are theirs to wait for.
            if pieces(row.classes) > 1 {
                simd::store_fence();
            }
        };
        in_pieces(row.classes, write_part, |(), ()| ());
    }

    /// The number of classes.
    #[inline(always)]
    pub fn classes(&self) -> usize {
        self.row.classes
    }

    /// What the elements are.
    #[inline(always)]
    pub fn dtype(&self) -> Dtype {
        self.row.dtype
    }

    /// Whether the elements lie side by side.
    #[inline(always)]
    pub fn is_contiguous(&self) -> bool {
        self.row.is_contiguous()
    }

    /// Where element `index` of a row of `O`s lies; in bounds for `index` up to the number of classes.
    #[inline(always)]
    pub(crate) fn pointer<O: Number>(&mut self, index: usize) -> *mut O {
        self.row.pointer::<O>(index).cast_mut()
    }

    /// Write element `index` of a row of `O`s.
    ///
    /// # Panics
    /// If there is no such element, or if it is no `O`.
    #[inline(always)]
    pub fn set<O: Number>(&mut self, index: usize, value: O) {
        assert!(index < self.row.classes && self.row.dtype == O::DTYPE, "class {index} of {}", self.row.classes);
        // SAFETY: the element is writeable by the promise made to `RowMut::new`; the write asks for no alignment.
        unsafe { self.row.place(index).cast::<O>().write_unaligned(value) }
    }

    /// Write element `index`, rounded.
    ///
    /// # Panics
    /// If there is no such element.
    pub(crate) fn set_rounded(&mut self, index: usize, value: f64) {
        with_element!(self.row.dtype, O => self.set(index, <O as Number>::from_f64(value)));
    }

    /// Copy `block` over the elements of a row of `O`s from `start` on.
    ///
    /// # Panics
    /// If there are no such elements, or if they are no `O`s.
    #[inline(always)]
    pub(crate) fn scatter<O: Number>(&mut self, start: usize, block: &[O]) {
        if self.is_contiguous() {
            assert!(start + block.len() <= self.row.classes && self.row.dtype == O::DTYPE, "block past the row");
            // SAFETY: the elements are writeable by the promise made to `RowMut::new` and lie side by side; `block` is
            // memory of ours. Copied as bytes: a copy asks for no alignment.
            unsafe { self.row.place(start).copy_from_nonoverlapping(block.as_ptr().cast(), size_of_val(block)) }
        } else {
            for (offset, value) in block.iter().enumerate() {
                self.set(start + offset, *value);
            }
        }
    }

    /// Write `value` everywhere, rounded to what the elements are.
    pub fn fill(&mut self, value: f64) {
        self.reborrow().in_pieces(|_, mut out| {
            with_element!(out.row.dtype, O => {
                let block = [<O as Number>::from_f64(value); BLOCK];
                for start in (0..out.classes()).step_by(BLOCK) {
                    let length = (out.classes() - start).min(BLOCK);
                    out.scatter(start, &block[..length]);
                }
            });
        });
    }

    /// How many elements come before the first that non-temporal stores can write, if that is how results are stored.
    #[inline(always)]
    pub(crate) fn peel(&self, store: StorePolicy) -> Option<usize> {
        if store != StorePolicy::NonTemporal || !self.is_contiguous() {
            return None;
        }
        let peel = self.row.place(0).align_offset(64) / self.row.dtype.size();
        let first = self.row.place(peel.min(self.row.classes));
        (first.align_offset(64) == 0).then_some(peel)
    }

    /// Write the first `length` values of a block from class `start` on, each rounded once; past the cache, if
    /// `non_temporal` and where `start` is on a boundary of 64 bytes.
    ///
    /// # Panics
    /// If there are no such classes, or if they are not computed with in `R`.
    #[inline(always)]
    pub(crate) fn write<S: Simd, R: Real>(
        &mut self,
        simd: S,
        start: usize,
        length: usize,
        block: &[R; BLOCK],
        non_temporal: bool,
    ) {
        with_element!(self.row.dtype, O => {
            write_as::<S, O>(simd, self.reborrow(), start, length, same(block), non_temporal);
        });
    }

    /// Write a value for each element of a row of `O`s, each rounded once; whole lines go where `store` says.
    ///
    /// # Panics
    /// If there are not as many values as elements, or if those are no `O`s.
    #[inline(always)]
    pub(crate) fn write_values<S: Simd, O: Element>(&mut self, simd: S, values: &[O::Real], store: StorePolicy) {
        assert!(values.len() == self.classes() && self.row.dtype == O::DTYPE);
        let lanes = O::Real::LANES;
        if !self.is_contiguous() {
            for (index, part) in values.chunks(lanes).enumerate() {
                let mut rounded = Scratch::<O>::new();
                // SAFETY: as many numbers are read as the part has; a block has room for a vector.
                unsafe {
                    O::store(simd, rounded.pointer(), Element::load_part(simd, part.as_ptr(), part.len()));
                    self.scatter(index * lanes, rounded.written(part.len()));
                }
            }
            return;
        }
        let (place, line) = (self.pointer::<O>(0), 64 / size_of::<O>());
        let aligned = store == StorePolicy::NonTemporal && place.is_aligned();
        let peel = if aligned { place.align_offset(64).min(values.len()) } else { values.len() };
        // SAFETY: as many numbers are read as there are, and written to as many places, which are this row's; the lines
        // begin on boundaries, and each vector of a line lies in the block.
        unsafe {
            write_cached(simd, place, &values[..peel]);
            let mut start = peel;
            while start + line <= values.len() {
                let mut rounded = Scratch::<O>::new();
                for index in (0..line).step_by(lanes) {
                    let vector = Element::load(simd, values[start + index..].as_ptr());
                    O::store(simd, rounded.pointer().add(index), vector);
                }
                simd::stream(simd, place.add(start).cast(), &rounded.pointer().cast::<[u8; 64]>().read());
                start += line;
            }
            write_cached(simd, place.add(start), &values[start..]);
        }
    }
}

/// Write numbers side by side through the cache, each rounded once.
///
/// # Safety
/// Their places are writeable, at any alignment, and nothing else accesses them.
#[inline(always)]
unsafe fn write_cached<S: Simd, O: Element>(simd: S, place: *mut O, values: &[O::Real]) {
    let lanes = O::Real::LANES;
    for (index, part) in values.chunks(lanes).enumerate() {
        // SAFETY: as many numbers are read as the part has, and written to as many places, the caller's promise.
        unsafe {
            let place = place.add(index * lanes);
            if part.len() == lanes {
                O::store(simd, place, Element::load(simd, part.as_ptr()));
            } else {
                O::store_part(simd, place, part.len(), Element::load_part(simd, part.as_ptr(), part.len()));
            }
        }
    }
}

/// What is of the type that a dtype computes in, which is the type that a generic function computes in.
///
/// # Panics
/// If it is another.
#[inline(always)]
pub(crate) fn same<A: 'static, B: 'static>(block: &A) -> &B {
    (block as &dyn Any).downcast_ref().expect("the type that is computed in")
}

/// [`same`], to write to.
#[inline(always)]
pub(crate) fn same_mut<A: 'static, B: 'static>(block: &mut A) -> &mut B {
    (block as &mut dyn Any).downcast_mut().expect("the type that is computed in")
}

/// Copy classes of a row of `R`s that lie side by side to a block, and masked classes behind them up to the next multiple of four
/// vectors.
///
/// # Panics
/// If there are no such classes, or if the block has no room for them.
#[inline(never)]
fn pad<S: Simd, R: Real + Element<Real = R>>(simd: S, row: Row, start: usize, length: usize, block: &mut [R; BLOCK]) {
    simd.vectorize(
        #[inline(always)]
        || {
            assert!(start + length <= row.classes() && row.dtype() == R::DTYPE && row.is_contiguous());
            let (place, padded) = (row.pointer::<R>(start), length.next_multiple_of(4 * R::LANES));
            for (index, part) in block[..padded].chunks_exact_mut(R::LANES).enumerate() {
                let left = length.saturating_sub(index * R::LANES).min(R::LANES);
                // SAFETY: as many numbers are the row's, side by side, readable by the promise made to `Row::new`; a place past the last is
                // not read.
                let values = unsafe {
                    let place = place.wrapping_add(index * R::LANES);
                    if left == R::LANES { R::load(simd, place) } else { R::load_part(simd, place, left) }
                };
                values.store_slice(part);
            }
        },
    );
}

/// [`Row::read`] of a row of `E`s.
#[inline(never)]
fn read_as<S: Simd, E: Element>(simd: S, row: Row, start: usize, length: usize, block: &mut [E::Real; BLOCK]) {
    simd.vectorize(
        #[inline(always)]
        || {
            let lanes = E::Real::LANES;
            assert!(start + length <= row.classes());
            prefetch_ahead(row.pointer::<E>(start).cast(), BLOCK * size_of::<E>());
            let mut scratch = Scratch::<E>::new();
            let source = if length == BLOCK && row.is_contiguous() {
                row.pointer::<E>(start)
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

/// [`RowMut::write`] to a row of `O`s.
#[inline(never)]
fn write_as<S: Simd, O: Element>(
    simd: S,
    mut row: RowMut,
    start: usize,
    length: usize,
    block: &[O::Real; BLOCK],
    non_temporal: bool,
) {
    simd.vectorize(
        #[inline(always)]
        || {
            let lanes = O::Real::LANES;
            assert!(start + length <= row.classes() && length <= BLOCK);
            let load = |index: usize| Lanes::<S, O>::from_slice(simd, &block[index..index + lanes]);
            let on_line = row.pointer::<O>(start).cast::<u8>().align_offset(64) == 0;
            let streamed = if non_temporal && on_line { length / (4 * lanes) * (4 * lanes) } else { 0 };
            for index in (0..streamed).step_by(4 * lanes) {
                let values = [load(index), load(index + lanes), load(index + 2 * lanes), load(index + 3 * lanes)];
                // SAFETY: four vectors inside the row, which this thread has for itself; each four are whole lines, so
                // they begin on a boundary as the first do.
                unsafe { O::stream(simd, row.pointer(start + index), values) }
            }
            let mut scratch = Scratch::<O>::new();
            for index in (streamed..length).step_by(lanes) {
                // SAFETY: the scratch holds a block of whole vectors.
                unsafe { O::store(simd, scratch.pointer().add(index - streamed), load(index)) }
            }
            // SAFETY: the loop wrote them.
            row.scatter(start + streamed, unsafe { scratch.written(length - streamed) });
        },
    );
}

/// Room for a block on the stack, and no more work than its elements are worth.
pub(crate) struct Scratch<E> {
    block: [MaybeUninit<E>; BLOCK],
}

impl<E: Element> Scratch<E> {
    #[inline(always)]
    pub(crate) fn new() -> Self {
        Self { block: [MaybeUninit::uninit(); BLOCK] }
    }

    /// Where to write results.
    #[inline(always)]
    pub(crate) fn pointer(&mut self) -> *mut E {
        self.block.as_mut_ptr().cast()
    }

    /// The first `length` results.
    ///
    /// # Safety
    /// They were written.
    #[inline(always)]
    pub(crate) unsafe fn written(&self, length: usize) -> &[E] {
        // SAFETY: initialised by the caller's promise.
        unsafe { &*(std::ptr::from_ref(&self.block[..length]) as *const [E]) }
    }

    /// `length` elements of the row from `start` on, then masked classes, `padded` in all: whole vectors.
    #[inline(always)]
    pub(crate) fn fill<S: Simd>(&mut self, simd: S, row: Row, start: usize, length: usize, padded: usize) -> &mut [E] {
        let lanes = E::Real::LANES;
        assert!(start + length <= row.classes() && length <= padded && padded.is_multiple_of(lanes));
        assert_eq!(row.dtype, E::DTYPE);
        let block = &mut self.block[..padded];
        if row.is_contiguous() {
            // A vector at a time, as it is read again: what was written in other pieces is not yet there to be read.
            for (index, part) in block.chunks_exact_mut(lanes).enumerate() {
                let count = length.saturating_sub(index * lanes).min(lanes);
                let source = row.pointer::<E>(start + (index * lanes).min(length));
                // SAFETY: the elements are the row's, readable by the promise made to `Row::new`; `part` has room for a
                // vector.
                unsafe {
                    let values = if count == lanes { E::load(simd, source) } else { E::load_part(simd, source, count) };
                    E::store(simd, part.as_mut_ptr().cast(), values);
                }
            }
        } else {
            block[length..].fill(MaybeUninit::new(E::MASKED));
            row.gather(start, &mut block[..length]);
        }
        // SAFETY: all of it was written: the vectors of a contiguous row, or what was gathered and the rest.
        unsafe { &mut *(std::ptr::from_mut(block) as *mut [E]) }
    }
}
