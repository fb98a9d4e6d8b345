//! Arrays in foreign memory, seen as rows of classes: of any dtype, with any strides, at any alignment, in either byte
//! order.
//!
//! The lifetime is that of the memory. Reading is safe from then on: whoever makes an [`Array`] has promised that its
//! elements are readable. Writing is safe, too: an [`ArrayMut`] hands out each part of its rows once ([`Parts`]), and who
//! has a part has its rows for himself.
//!
//! Memory of the caller's arrays is read and written through raw pointers and never borrowed as a slice: another thread
//! of the caller may write to an array meanwhile, which then has a wrong result and nothing worse.

use std::marker::PhantomData;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use fearless_simd::Simd;
use half::{bf16, f16};

use crate::dtype::{Dtype, Number, with_dtype};
use crate::element::Element;
use crate::error::{Error, Result};
use crate::math::Real;
use crate::rows::{Row, RowMut, StorePolicy};
use crate::simd::{self, Kernel, f16_to_f32, prefetch_ahead};

/// The lengths and byte strides of some axes, in C order, with neighbours that form one axis merged.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Axes {
    axes: Vec<(usize, isize)>,
}

impl Axes {
    /// From (length, stride in bytes) pairs, outermost first.
    fn new(axes: impl IntoIterator<Item = (usize, isize)>) -> Self {
        let mut merged: Vec<(usize, isize)> = Vec::new();
        for (length, stride) in axes {
            match merged.last_mut() {
                _ if length == 1 => {}
                Some((outer, outer_stride)) if *outer_stride == stride.wrapping_mul(length as isize) => {
                    (*outer, *outer_stride) = (*outer * length, stride);
                }
                _ => merged.push((length, stride)),
            }
        }
        Self { axes: merged }
    }

    /// The number of index tuples.
    fn count(&self) -> usize {
        self.axes.iter().map(|(length, _)| length).product()
    }

    /// The length and the stride of the innermost axis.
    #[inline(always)]
    fn innermost(&self) -> (usize, isize) {
        self.axes.last().copied().unwrap_or((1, 0))
    }

    /// The byte offset of index tuple number `index` in C order.
    #[inline]
    fn offset(&self, mut index: usize) -> isize {
        if let [(_, stride)] = self.axes[..] {
            return index as isize * stride;
        }
        let mut offset = 0;
        for (length, stride) in self.axes.iter().rev() {
            offset += (index % length) as isize * stride;
            index /= length;
        }
        offset
    }
}

/// Where the elements of an array lie.
#[derive(Clone, Copy, Debug)]
pub struct Layout<'a> {
    /// Where the first element lies.
    pub base: *mut u8,
    /// What the elements are.
    pub dtype: Dtype,
    /// Whether their bytes are in the order of other CPUs.
    pub swapped: bool,
    /// The lengths of the axes.
    pub shape: &'a [usize],
    /// The bytes from an element to the next along each axis.
    pub strides: &'a [isize],
}

/// A strided array that is read, as rows of classes.
#[derive(Clone, Debug)]
pub struct Array<'a> {
    base: *mut u8,
    dtype: Dtype,
    swapped: bool,
    /// All axes but the classes.
    rows: Axes,
    row_count: usize,
    classes: usize,
    class_stride: isize,
    /// The lengths of all axes, and which of them are the classes.
    shape: Box<[usize]>,
    axis: Option<usize>,
    memory: PhantomData<&'a [u8]>,
}

// SAFETY: `Array::new`'s caller promises memory that stays valid, whichever thread reads it.
unsafe impl Send for Array<'_> {}
// SAFETY: as above.
unsafe impl Sync for Array<'_> {}

/// What follows `done` elements: `count` of them, the first at `place`, each `step` bytes from the next.
#[derive(Clone, Copy, Debug)]
struct Run {
    done: usize,
    count: usize,
    place: *mut u8,
    step: isize,
}

impl<'a> Array<'a> {
    /// The array as rows of the classes along `axis`; without an axis every element is a row of one class.
    ///
    /// # Safety
    /// During `'a` every element that `layout` describes is readable. Another thread of this crate writes to an element
    /// only if it is also the one that reads it.
    ///
    /// # Panics
    /// If there is no such axis.
    pub unsafe fn new(layout: &Layout, axis: Option<usize>) -> Self {
        let Layout { base, dtype, swapped, shape, strides } = *layout;
        assert_eq!(shape.len(), strides.len());
        let axes = shape.iter().copied().zip(strides.iter().copied()).enumerate();
        let rows = Axes::new(axes.filter(|(index, _)| Some(*index) != axis).map(|(_, axis)| axis));
        let (classes, class_stride) = axis.map_or((1, dtype.size() as isize), |axis| (shape[axis], strides[axis]));
        let row_count = rows.count();
        Self {
            base,
            dtype,
            swapped,
            rows,
            row_count,
            classes,
            class_stride,
            shape: shape.into(),
            axis,
            memory: PhantomData,
        }
    }

    /// Numbers side by side, as rows of `classes` classes.
    ///
    /// # Panics
    /// If they do not fill the rows.
    pub fn of<T: Number>(values: &'a [T], classes: usize) -> Self {
        // SAFETY: so many elements lie there, and are borrowed for `'a`.
        unsafe { Self::of_place(values.as_ptr().cast_mut(), values.len(), classes) }
    }

    /// `count` numbers side by side, as rows of `classes` classes.
    ///
    /// # Safety
    /// As for [`Self::new`].
    unsafe fn of_place<T: Number>(place: *mut T, count: usize, classes: usize) -> Self {
        assert!(count.is_multiple_of(classes));
        let (shape, size) = ([count / classes, classes], size_of::<T>());
        let strides = [(classes * size) as isize, size as isize];
        let layout = Layout { base: place.cast(), dtype: T::DTYPE, swapped: false, shape: &shape, strides: &strides };
        // SAFETY: the caller's promise, for the elements that the layout describes.
        unsafe { Self::new(&layout, Some(1)) }
    }

    /// What the elements are.
    #[inline(always)]
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// The number of rows.
    #[inline(always)]
    pub fn rows(&self) -> usize {
        self.row_count
    }

    /// The number of classes.
    #[inline(always)]
    pub fn classes(&self) -> usize {
        self.classes
    }

    /// The number of elements.
    #[inline(always)]
    pub fn count(&self) -> usize {
        self.row_count * self.classes
    }

    /// The bytes of all elements.
    pub fn bytes(&self) -> usize {
        self.row_count.saturating_mul(self.classes).saturating_mul(self.dtype.size())
    }

    /// Whether the classes of a row lie side by side, as the CPU reads them.
    #[inline(always)]
    pub fn is_contiguous(&self) -> bool {
        self.class_stride == self.dtype.size() as isize && !self.swapped
    }

    /// Whether the classes of a row lie apart: which rows the array has does not matter.
    #[inline(always)]
    pub fn lies_across(&self) -> bool {
        self.class_stride != self.dtype.size() as isize
    }

    /// Row number `index`, in C order of the row axes.
    ///
    /// # Panics
    /// If there is no such row.
    #[inline]
    pub fn row(&self, index: usize) -> Row<'a> {
        assert!(index < self.row_count, "row {index} of {}", self.row_count);
        let base = self.base.wrapping_offset(self.rows.offset(index));
        // SAFETY: the elements of a row are elements of the array, readable by the promise made to `Array::new`.
        unsafe { Row::new(base, self.dtype, self.swapped, self.classes, self.class_stride) }
    }

    /// Whether both begin at the same place: a result is written over the logits, element by element, or apart from them.
    pub fn begins_with(&self, other: &Array) -> bool {
        self.base == other.base && self.count() > 0
    }

    /// The index of element number `index`, the classes innermost, as Python writes it: `[2, 1]`, or nothing for an array
    /// without axes.
    pub fn position(&self, mut index: usize) -> String {
        let mut order: Vec<usize> = (0..self.shape.len()).filter(|axis| Some(*axis) != self.axis).collect();
        order.extend(self.axis);
        let mut position = vec![0; self.shape.len()];
        for axis in order.into_iter().rev() {
            position[axis] = index % self.shape[axis];
            index /= self.shape[axis];
        }
        let position: Vec<_> = position.iter().map(usize::to_string).collect();
        if position.is_empty() { String::new() } else { format!("[{}]", position.join(", ")) }
    }

    /// Element number `index`, the classes innermost, as Python writes it.
    pub fn text(&self, index: usize) -> String {
        with_dtype!(self.dtype, T => self.get::<T>(index).text())
    }

    /// How many rows from `first` on have neighbours for the same class, until the innermost axis of rows ends.
    #[inline(always)]
    pub fn neighbours_from(&self, first: usize) -> Option<usize> {
        let &(length, stride) = self.rows.axes.last()?;
        (stride == self.dtype.size() as isize && length > 0).then(|| length - first % length)
    }

    /// Where the first class of row `first` lies and how many bytes the next class is away, if the `count` rows from
    /// `first` on lie side by side, class by class, as the CPU reads them.
    #[inline(always)]
    pub(crate) fn neighbours(&self, first: usize, count: usize) -> Option<(*mut u8, isize)> {
        let beside = !self.swapped && self.neighbours_from(first).is_some_and(|length| count <= length);
        (beside && first + count <= self.row_count)
            .then(|| (self.base.wrapping_offset(self.rows.offset(first)), self.class_stride))
    }

    /// `count` rows from `first` on, if they lie side by side, class by class: an array with a row for each class.
    pub(crate) fn across(&self, first: usize, count: usize) -> Option<Array<'a>> {
        let (base, step) = self.neighbours(first, count)?;
        let strides = [step, self.dtype.size() as isize];
        let layout =
            Layout { base, dtype: self.dtype, swapped: false, shape: &[self.classes, count], strides: &strides };
        // SAFETY: its elements are some of this array's.
        Some(unsafe { Array::new(&layout, Some(1)) })
    }

    /// Where the first classes of the `places.len()` rows from `first` on lie.
    ///
    /// # Panics
    /// If there are no such rows.
    #[inline(always)]
    pub(crate) fn places<E: Number>(&self, first: usize, places: &mut [*mut E]) {
        assert!(
            first + places.len() <= self.row_count,
            "rows {first} to {} of {}",
            first + places.len(),
            self.row_count
        );
        let (length, step) = self.rows.innermost();
        let mut done = 0;
        while done < places.len() {
            let row = first + done;
            let count = (length - row % length).min(places.len() - done);
            let start = self.base.wrapping_offset(self.rows.offset(row));
            for (index, place) in places[done..done + count].iter_mut().enumerate() {
                *place = start.wrapping_offset(index as isize * step).cast();
            }
            done += count;
        }
    }

    /// Ask for the cache lines that these rows, once they are read, will be followed by, if classes lie side by side.
    #[inline(always)]
    pub(crate) fn prefetch_ahead(&self, rows: Range<usize>) {
        if self.is_contiguous() {
            let mut place = [std::ptr::null_mut::<u8>()];
            self.places(rows.start, &mut place);
            prefetch_ahead(place[0], rows.len() * self.classes * self.dtype.size());
        }
    }

    /// Where the `count` rows from `first` on lie, if all rows lie one behind the other, as `E`s.
    #[inline(always)]
    pub(crate) fn in_a_row<E: Number>(&self, first: usize, count: usize) -> Option<*mut E> {
        let [(_, step)] = self.rows.axes[..] else { return None };
        let lie_so = self.dtype == E::DTYPE
            && self.is_contiguous()
            && step == (self.classes * size_of::<E>()) as isize
            && first + count <= self.row_count;
        lie_so.then(
            #[inline(always)]
            || self.base.wrapping_offset(first as isize * step).cast(),
        )
    }

    /// Call `f` for each run of equal steps among the `count` elements from number `first` on, the classes innermost.
    #[inline(always)]
    fn for_each_run(&self, first: usize, count: usize, mut f: impl FnMut(Run)) {
        let (rows, row_stride) = self.rows.innermost();
        // Rows that follow each other as their classes do, or that have but one, are one run.
        let (length, step) = if self.classes == 1 {
            (rows, row_stride)
        } else if row_stride == self.class_stride.wrapping_mul(self.classes as isize) {
            (rows * self.classes, self.class_stride)
        } else {
            (self.classes, self.class_stride)
        };
        let mut done = 0;
        while done < count {
            let index = first + done;
            let run = (length - index % length).min(count - done);
            let (row, class) =
                if self.classes == 1 { (index, 0) } else { (index / self.classes, index % self.classes) };
            let offset = self.rows.offset(row) + class as isize * self.class_stride;
            f(Run { done, count: run, place: self.base.wrapping_offset(offset), step });
            done += run;
        }
    }

    /// Where the `count` elements from number `first` on lie, if they lie side by side as `T`s, at any alignment; what
    /// follows is asked for ahead.
    #[inline(always)]
    pub(crate) fn lend<T: Number>(&self, first: usize, count: usize) -> Option<*const T> {
        if self.dtype != T::DTYPE || self.swapped || count == 0 || first + count > self.count() {
            return None;
        }
        let mut place = None;
        self.for_each_run(first, count, |run| {
            if run.count == count && (count == 1 || run.step == size_of::<T>() as isize) {
                place = Some(run.place.cast_const());
            }
        });
        let place = place?;
        prefetch_ahead(place, count * size_of::<T>());
        Some(place.cast())
    }

    /// Where `length` elements from number `first` on are, the classes innermost, and `rest` behind them: in the array itself, if
    /// as many as `block` has room for lie there as `R`s, else in `block`.
    ///
    /// # Panics
    /// If there are not that many, or no room for them.
    #[inline(always)]
    pub(crate) fn block<S: Simd, R: Real + Number>(
        &self,
        simd: S,
        first: usize,
        length: usize,
        block: &mut [R],
        rest: R,
    ) -> *const R {
        if length == block.len()
            && let Some(place) = self.lend(first, length)
        {
            return place;
        }
        self.read(simd, first, &mut block[..length]);
        block[length..].fill(rest);
        block.as_ptr()
    }

    /// Call `f` with the number of each element of some, the classes innermost, and the element.
    ///
    /// # Panics
    /// If there are no such elements, or if they are no `T`s.
    #[inline(always)]
    pub fn for_each<T: Number>(&self, elements: Range<usize>, mut f: impl FnMut(usize, T)) {
        assert!(elements.end <= self.count() && self.dtype == T::DTYPE);
        self.for_each_run(
            elements.start,
            elements.len(),
            #[inline(always)]
            |run| {
                let numbers = elements.start + run.done..elements.start + run.done + run.count;
                // SAFETY: the run is part of the array, readable by the promise made to `Array::new`; the reads ask for
                // no alignment.
                unsafe {
                    if run.step == size_of::<T>() as isize && !self.swapped {
                        for (place, index) in numbers.enumerate() {
                            f(index, run.place.cast::<T>().wrapping_add(place).read_unaligned());
                        }
                        return;
                    }
                    for (place, index) in numbers.enumerate() {
                        let value = run.place.wrapping_offset(place as isize * run.step).cast::<T>().read_unaligned();
                        f(index, if self.swapped { value.swap_bytes() } else { value });
                    }
                }
            },
        );
    }

    /// Element number `index`, the classes innermost, as f64.
    ///
    /// # Panics
    /// If there is no such element.
    pub fn number(&self, index: usize) -> f64 {
        with_dtype!(self.dtype, T => Number::to_f64(self.get::<T>(index)))
    }

    /// Element number `index`, the classes innermost.
    ///
    /// # Panics
    /// If there is no such element, or if it is no `T`.
    #[inline]
    pub fn get<T: Number>(&self, index: usize) -> T {
        let mut found = None;
        self.for_each(index..index + 1, |_, value| found = Some(value));
        found.expect("one element was asked for")
    }

    /// The elements from number `first` on, the classes innermost, all that `block` has room for, rounded to its type.
    ///
    /// # Panics
    /// If there are not that many.
    #[inline(never)]
    pub fn read<S: Simd, R: Real>(&self, simd: S, first: usize, block: &mut [R]) {
        assert!(first + block.len() <= self.count(), "elements {first} to {} of {}", first + block.len(), self.count());
        simd.vectorize(
            #[inline(always)]
            || {
                self.for_each_run(
                    first,
                    block.len(),
                    #[inline(always)]
                    |run| self.read_run(simd, run, &mut block[run.done..run.done + run.count]),
                );
            },
        );
    }

    /// A run of this array's elements, as many as `block` has room for.
    #[inline(always)]
    fn read_run<S: Simd, R: Real>(&self, simd: S, run: Run, block: &mut [R]) {
        let Run { place: source, step, .. } = run;
        prefetch_ahead(source, block.len() * step.unsigned_abs().min(8));
        if self.dtype == Dtype::F16 && step == 2 && !self.swapped {
            let mut bits = [0u16; 16];
            for (index, part) in block.chunks_mut(16).enumerate() {
                // SAFETY: the run is part of the array, readable by the promise made to `Array::new`.
                unsafe {
                    let source = source.add(32 * index);
                    source.copy_to_nonoverlapping(bits.as_mut_ptr().cast(), 2 * part.len());
                }
                let values: [f32; 16] = f16_to_f32(simd, bits).into();
                for (number, value) in part.iter_mut().zip(values) {
                    *number = R::from_f64(f64::from(value));
                }
            }
            return;
        }
        with_dtype!(self.dtype, T => {
            if step == size_of::<T>() as isize && !self.swapped {
                for (index, number) in block.iter_mut().enumerate() {
                    // SAFETY: as above; the read asks for no alignment.
                    let value = unsafe { source.cast::<T>().add(index).read_unaligned() };
                    *number = R::from_f64(Number::to_f64(value));
                }
            } else {
                for (index, number) in block.iter_mut().enumerate() {
                    // SAFETY: as above.
                    let value = unsafe { source.wrapping_offset(index as isize * step).cast::<T>().read_unaligned() };
                    let value = if self.swapped { Number::swap_bytes(value) } else { value };
                    *number = R::from_f64(Number::to_f64(value));
                }
            }
        });
    }

    /// A copy of all elements, the classes innermost; `name` is for the error.
    ///
    /// # Errors
    /// [`Error::Memory`] if there is no room for it; what `check` returned, asked from time to time whether to go on.
    pub fn copy(&self, name: &str, check: &dyn Fn() -> Result<()>) -> Result<Vec<f64>> {
        let (mut copy, count) = (Vec::new(), self.count());
        let refused = |_| Error::Memory(format!("no memory for a copy of {count} numbers of {name}"));
        copy.try_reserve_exact(count).map_err(refused)?;
        copy.resize(count, 0.0);
        for (index, part) in copy.chunks_mut(BATCH).enumerate() {
            if index > 0 {
                check()?;
            }
            simd::level().run(Reading { array: self, first: index * BATCH, part });
        }
        Ok(copy)
    }
}

/// Numbers read between two questions whether to go on.
const BATCH: usize = 1 << 22;

struct Reading<'a> {
    array: &'a Array<'a>,
    first: usize,
    part: &'a mut [f64],
}

impl Kernel for Reading<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        self.array.read(simd, self.first, self.part);
    }
}

/// A strided array that is written, as rows of classes: the exclusive twin of [`Array`].
#[derive(Debug)]
pub struct ArrayMut<'a> {
    array: Array<'a>,
    memory: PhantomData<&'a mut [u8]>,
}

impl<'a> ArrayMut<'a> {
    /// The array as rows of the classes along `axis`; without an axis every element is a row of one class.
    ///
    /// # Safety
    /// During `'a` every element that `layout` describes is writeable, no two of them share memory, and nothing else
    /// accesses them but an [`Array`] that is read by the thread that writes: the logits, if a result overwrites them.
    ///
    /// # Panics
    /// If there is no such axis, or if the bytes are to be in the order of other CPUs.
    pub unsafe fn new(layout: &Layout, axis: Option<usize>) -> Self {
        assert!(!layout.swapped);
        // SAFETY: what is writeable is readable.
        Self { array: unsafe { Array::new(layout, axis) }, memory: PhantomData }
    }

    /// Numbers side by side, as rows of `classes` classes.
    ///
    /// # Panics
    /// If they do not fill the rows.
    pub fn of<T: Number>(values: &'a mut [T], classes: usize) -> Self {
        // SAFETY: so many elements lie there, and are borrowed exclusively for `'a`.
        Self { array: unsafe { Array::of_place(values.as_mut_ptr(), values.len(), classes) }, memory: PhantomData }
    }

    /// What the elements are.
    pub fn dtype(&self) -> Dtype {
        self.array.dtype
    }

    /// The number of rows.
    pub fn rows(&self) -> usize {
        self.array.rows()
    }

    /// The number of classes.
    pub fn classes(&self) -> usize {
        self.array.classes()
    }

    /// The bytes of all elements.
    pub fn bytes(&self) -> usize {
        self.array.bytes()
    }

    /// Whether it is written over `other`.
    pub fn begins_with(&self, other: &Array) -> bool {
        self.array.begins_with(other)
    }

    /// All rows, for a single thread.
    pub fn all(&mut self) -> RowsMut<'_> {
        RowsMut { array: &self.array, rows: 0..self.array.rows() }
    }

    /// These ranges of rows, to be taken by the threads that work on them.
    ///
    /// # Panics
    /// If a range begins before the one before it ends, or ends beyond the rows.
    pub fn parts(&mut self, ranges: impl Iterator<Item = Range<usize>>) -> Parts<'_> {
        let mut end = 0;
        let part = |rows: Range<usize>| {
            assert!(end <= rows.start && rows.start <= rows.end && rows.end <= self.array.rows());
            end = rows.end;
            Part { rows, taken: AtomicBool::new(false) }
        };
        Parts { parts: ranges.map(part).collect(), array: &self.array }
    }
}

/// The rows of an [`ArrayMut`] in parts, each of which is handed out once.
#[derive(Debug)]
pub struct Parts<'a> {
    array: &'a Array<'a>,
    parts: Box<[Part]>,
}

#[derive(Debug)]
struct Part {
    rows: Range<usize>,
    taken: AtomicBool,
}

impl<'a> Parts<'a> {
    /// Part number `part`.
    ///
    /// # Panics
    /// If there is no such part, or if it was taken before.
    #[inline]
    pub fn take(&self, part: usize) -> RowsMut<'a> {
        let Part { rows, taken } = &self.parts[part];
        assert!(!taken.swap(true, Ordering::Relaxed), "part {part} was taken before");
        RowsMut { array: self.array, rows: rows.clone() }
    }
}

/// Rows of an [`ArrayMut`] that nobody else has.
#[derive(Debug)]
pub struct RowsMut<'a> {
    array: &'a Array<'a>,
    rows: Range<usize>,
}

impl RowsMut<'_> {
    /// What the elements are.
    #[inline(always)]
    pub fn dtype(&self) -> Dtype {
        self.array.dtype
    }

    /// The number of classes.
    #[inline(always)]
    pub fn classes(&self) -> usize {
        self.array.classes
    }

    /// Whether the classes of a row lie side by side.
    #[inline(always)]
    pub fn is_contiguous(&self) -> bool {
        self.array.is_contiguous()
    }

    #[inline(always)]
    fn assert_has(&self, first: usize, count: usize) {
        let here = first >= self.rows.start && first + count <= self.rows.end;
        assert!(here, "rows {first} to {} of {:?}", first + count, self.rows);
    }

    /// Row number `index` of the array.
    ///
    /// # Panics
    /// If it is none of these.
    #[inline]
    pub fn row(&mut self, index: usize) -> RowMut<'_> {
        self.assert_has(index, 1);
        // SAFETY: the row's elements are writeable, by the promise made to `ArrayMut::new`, and nobody else has them:
        // `Parts` handed these rows out once, and they are borrowed from here.
        unsafe { RowMut::new(self.array.row(index)) }
    }

    /// [`Array::neighbours`] of some of the rows.
    ///
    /// # Panics
    /// If they are none of these.
    #[inline(always)]
    pub(crate) fn neighbours(&mut self, first: usize, count: usize) -> Option<(*mut u8, isize)> {
        self.assert_has(first, count);
        self.array.neighbours(first, count)
    }

    /// [`Array::places`] of some of the rows.
    ///
    /// # Panics
    /// If they are none of these, or no `E`s.
    #[inline(always)]
    pub(crate) fn places<E: Number>(&mut self, first: usize, places: &mut [*mut E]) {
        self.assert_has(first, places.len());
        assert_eq!(self.array.dtype, E::DTYPE);
        self.array.places(first, places);
    }

    /// [`Array::in_a_row`] of some of the rows.
    ///
    /// # Panics
    /// If they are none of these.
    #[inline(always)]
    pub(crate) fn in_a_row<E: Number>(&mut self, first: usize, count: usize) -> Option<*mut E> {
        self.assert_has(first, count);
        self.array.in_a_row(first, count)
    }

    /// Whether the `count` elements from number `first` on, the classes innermost, lie side by side.
    ///
    /// # Panics
    /// If they are not of these rows.
    pub(crate) fn is_adjacent(&mut self, first: usize, count: usize) -> bool {
        let (mut runs, size) = (0, self.array.dtype.size() as isize);
        self.for_each_run(first, count, |run| runs += if run.count == 1 || run.step == size { 1 } else { 2 });
        runs <= 1
    }

    /// Write numbers to the elements from number `first` on, the classes innermost, rounded to what they are: floating-point
    /// numbers or i64.
    ///
    /// # Panics
    /// If there are no such elements in these rows, or if they are something else.
    #[inline(never)]
    pub fn set(&mut self, first: usize, values: &[f64]) {
        match self.array.dtype {
            Dtype::F32 => self.set_all::<f32>(first, values),
            Dtype::F64 => self.set_all::<f64>(first, values),
            Dtype::F16 => self.set_all::<f16>(first, values),
            Dtype::Bf16 => self.set_all::<bf16>(first, values),
            Dtype::I64 => self.set_all::<i64>(first, values),
            other => panic!("no result of a row is stored as {}", other.name()),
        }
    }

    /// [`Self::set`] of a known type: a loop of which the compiler makes vectors.
    #[inline(always)]
    fn set_all<T: Number>(&mut self, first: usize, values: &[f64]) {
        self.for_each_run(
            first,
            values.len(),
            #[inline(always)]
            |run| {
                let values = &values[run.done..run.done + run.count];
                // SAFETY: the run's elements are writeable by the promise made to `ArrayMut::new`, and nobody else has
                // them; the writes ask for no alignment.
                unsafe {
                    if run.step == size_of::<T>() as isize {
                        for (index, value) in values.iter().enumerate() {
                            run.place.cast::<T>().add(index).write_unaligned(T::from_f64(*value));
                        }
                        return;
                    }
                    for (index, value) in values.iter().enumerate() {
                        let place = run.place.wrapping_offset(index as isize * run.step).cast::<T>();
                        place.write_unaligned(T::from_f64(*value));
                    }
                }
            },
        );
    }

    /// Write the elements from number `first` on, the classes innermost, each rounded once; those of long runs go where
    /// `store` says.
    ///
    /// # Panics
    /// If there are no such elements in these rows, or if they are no `O`s.
    #[inline(always)]
    pub fn write<S: Simd, O: Element>(&mut self, simd: S, first: usize, values: &[O::Real], store: StorePolicy) {
        assert_eq!(self.array.dtype, O::DTYPE);
        self.for_each_run(
            first,
            values.len(),
            #[inline(always)]
            |run| {
                let values = &values[run.done..run.done + run.count];
                // SAFETY: the run is of these rows, which nobody else has, and writeable by the promise made to
                // `ArrayMut::new`.
                let mut run = unsafe { RowMut::of_run::<O>(run.place, run.count, run.step) };
                run.write_values::<S, O>(simd, values, store);
            },
        );
    }

    #[inline(always)]
    fn for_each_run(&mut self, first: usize, count: usize, f: impl FnMut(Run)) {
        let classes = self.array.classes;
        let elements = self.rows.start * classes..self.rows.end * classes;
        let here = first >= elements.start && first + count <= elements.end;
        assert!(here, "elements {first} to {} of {elements:?}", first + count);
        self.array.for_each_run(first, count, f);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::Level;

    fn layout<'a>(base: *mut u8, dtype: Dtype, shape: &'a [usize], strides: &'a [isize]) -> Layout<'a> {
        Layout { base, dtype, swapped: false, shape, strides }
    }

    #[test]
    fn neighbouring_axes_merge_and_offsets_follow_c_order() {
        let shape = [2, 3, 1, 4];
        for strides in [[96, 32, 7, 8], [8, 16, 5, 48], [-96, 32, 0, 8], [0, 0, 0, 8]] {
            let axes = Axes::new(shape.into_iter().zip(strides));
            assert_eq!(axes.count(), 24);
            let mut index = 0;
            for a in 0..2 {
                for b in 0..3 {
                    for d in 0..4 {
                        assert_eq!(axes.offset(index), a * strides[0] + b * strides[1] + d * strides[3]);
                        index += 1;
                    }
                }
            }
        }
        assert_eq!(Axes::new([(2, 24), (3, 8)]).axes, [(6, 8)]);
        assert_eq!(Axes::new([]).count(), 1);
        assert_eq!(Axes::new([(0, 8), (3, 8)]).count(), 0);
    }

    /// Elements come with the classes innermost, whichever axis they are, and know where they are in the array.
    #[test]
    fn elements_are_read_with_the_classes_innermost() {
        let values: Vec<i32> = (0..24).collect();
        let base = values.as_ptr().cast_mut().cast();
        let shape = [2, 3, 4];
        for strides in [[48, 16, 4], [4, 8, 24]] {
            let at =
                |index: [usize; 3]| values[(0..3).map(|axis| index[axis] * strides[axis] as usize / 4).sum::<usize>()];
            for axis in [None, Some(0), Some(1), Some(2)] {
                // SAFETY: shape and strides describe `values`.
                let array = unsafe { Array::new(&layout(base, Dtype::I32, &shape, &strides), axis) };
                let mut order: Vec<usize> = (0..3).filter(|other| Some(*other) != axis).collect();
                order.extend(axis);
                let mut block = [0.0f64; 24];
                Level::available()[0].run(Reading { array: &array, first: 0, part: &mut block });
                for number in 0..24 {
                    let (mut index, mut rest) = ([0; 3], number);
                    for &axis in order.iter().rev() {
                        index[axis] = rest % shape[axis];
                        rest /= shape[axis];
                    }
                    assert_eq!(array.position(number), format!("{index:?}"));
                    assert_eq!(array.get::<i32>(number), at(index));
                    assert_eq!(block[number], f64::from(at(index)));
                    if let Some(axis) = axis {
                        let row = array.row(number / shape[axis]);
                        assert_eq!(row.get_as::<i32>(number % shape[axis]), at(index));
                    }
                }
            }
        }
    }

    struct Write<'a, O: Element>(&'a mut RowsMut<'a>, usize, &'a [O::Real], StorePolicy);

    impl<O: Element> Kernel for Write<'_, O> {
        type Output = ();

        #[inline(always)]
        fn run<S: Simd>(self, simd: S) {
            self.0.write::<S, O>(simd, self.1, self.2, self.3);
            simd::store_fence();
        }
    }

    /// Every number in its place and no other place touched, at all alignments and with all strides.
    fn writes<O: Element<Real = f32>>() {
        const MOST: usize = 300;
        let values: Vec<f32> = (0..MOST).map(|i| (i % 100) as f32).collect();
        for &level in Level::available() {
            for (offset, count) in [(0, 300), (1, 300), (2, 257), (7, 64), (31, 33), (33, 100), (64, 5), (6, 15)] {
                for (step, store) in [
                    (1, StorePolicy::NonTemporal),
                    (1, StorePolicy::Cached),
                    (3, StorePolicy::NonTemporal),
                    (-1, StorePolicy::NonTemporal),
                ] {
                    let untouched = O::from_f64(-7.0);
                    let mut room = vec![untouched; 3 * MOST + 128];
                    let start = if step < 0 { offset + count } else { offset };
                    let place = |index: usize| (start as isize + step * index as isize) as usize;
                    let base = room.as_mut_ptr().wrapping_add(start).cast();
                    let strides = [step * size_of::<O>() as isize];
                    // SAFETY: `room` has all of these places, and is this test's own.
                    let mut array = unsafe { ArrayMut::new(&layout(base, O::DTYPE, &[count + 1], &strides), None) };
                    level.run(Write::<O>(&mut array.all(), 1, &values[..count], store));
                    for index in 1..=count {
                        let found = room[place(index)].to_f64();
                        assert_eq!(found, f64::from(values[index - 1]), "{offset} {count} {step}");
                        room[place(index)] = untouched;
                    }
                    assert!(room.iter().all(|value| value.to_f64() == -7.0), "{offset} {count} {step}");
                }
            }
        }
    }

    #[test]
    fn elements_are_written_where_they_belong() {
        writes::<f32>();
        writes::<half::f16>();
        writes::<half::bf16>();
    }

    #[test]
    #[cfg_attr(target_family = "wasm", ignore = "a panic ends the program there")]
    fn a_part_is_handed_out_once() {
        let mut values = [0.0f32; 35];
        let mut array = ArrayMut::of(&mut values, 5);
        let parts = array.parts([0..3, 3..6, 6..7].into_iter());
        let (mut first, mut last) = (parts.take(0), parts.take(2));
        first.set(0, &[1.0; 15]);
        last.set(30, &[2.0; 5]);
        let again = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| parts.take(2)));
        assert!(again.is_err());
        let beyond = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| first.set(15, &[3.0])));
        assert!(beyond.is_err());
        assert_eq!(values[..16], [[1.0; 15].as_slice(), &[0.0]].concat());
        assert_eq!(values[29..], [0.0, 2.0, 2.0, 2.0, 2.0, 2.0]);
    }
}
