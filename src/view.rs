//! An n-dimensional array in foreign memory, seen as rows of classes.
//!
//! Any strides, any alignment, either byte order: a row that lies in memory as it is computed with (`is_contiguous`)
//! is used in place, any other is gathered and scattered a block at a time, so nothing the size of a row is copied.

use std::marker::PhantomData;
use std::mem::MaybeUninit;

use fearless_simd::Simd;

use crate::element::Element;
use crate::math::Real;
use crate::simd;

/// The lengths and byte strides of some axes, in C order, with neighbours that form one axis merged.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Axes {
    axes: Vec<(usize, isize)>,
}

impl Axes {
    /// From (length, stride in bytes) pairs, outermost first.
    pub fn new(axes: impl IntoIterator<Item = (usize, isize)>) -> Self {
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
    pub fn count(&self) -> usize {
        self.axes.iter().map(|(length, _)| length).product()
    }

    /// The byte offset of index tuple number `index` in C order.
    #[inline]
    pub fn offset(&self, mut index: usize) -> isize {
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

impl Axes {
    /// Call `f` with (how many index tuples came before, how many these are, their first offset, their step) for each
    /// run of equal steps among the `count` index tuples from number `first` on.
    #[inline(always)]
    pub fn for_each_run(&self, first: usize, count: usize, mut f: impl FnMut(usize, usize, isize, isize)) {
        let (length, step) = self.axes.last().copied().unwrap_or((1, 0));
        let mut done = 0;
        while done < count {
            let run = (length - (first + done) % length).min(count - done);
            f(done, run, self.offset(first + done), step);
            done += run;
        }
    }

    /// Whether the `count` index tuples from number `first` on lie `step` bytes apart.
    #[inline]
    pub fn are_neighbours(&self, first: usize, count: usize, step: isize) -> bool {
        self.axes.last().is_some_and(|&(length, stride)| stride == step && first % length + count <= length)
    }
}

/// An array of `E`, seen as rows of classes.
#[derive(Clone, Debug)]
pub struct View<E> {
    base: *mut u8,
    rows: Axes,
    row_count: usize,
    classes: usize,
    class_stride: isize,
    swapped: bool,
    element: PhantomData<E>,
}

// SAFETY: `View::new`'s caller promises memory that stays valid; rows are read by any thread, and a row of an output
// is written by the one thread that computes it.
unsafe impl<E: Element> Send for View<E> {}
// SAFETY: as above.
unsafe impl<E: Element> Sync for View<E> {}

impl<E: Element> View<E> {
    /// The array at `base` with `rows` as its row axes, and `classes` values `class_stride` bytes apart in a row.
    ///
    /// # Safety
    /// As long as the view or a row of it lives, every element so described is readable, and, if the view is used
    /// as an output, writeable, with distinct elements apart from each other.
    pub unsafe fn new(base: *mut u8, rows: Axes, classes: usize, class_stride: isize, swapped: bool) -> Self {
        let row_count = rows.count();
        Self { base, rows, row_count, classes, class_stride, swapped, element: PhantomData }
    }

    /// The number of rows.
    pub fn rows(&self) -> usize {
        self.row_count
    }

    /// The number of classes.
    pub fn classes(&self) -> usize {
        self.classes
    }

    /// The bytes of all elements.
    pub fn bytes(&self) -> usize {
        self.row_count.saturating_mul(self.classes).saturating_mul(size_of::<E>())
    }

    /// Where the first class of row `first` lies and how many bytes the next class is away, if the `count` rows from
    /// `first` on lie side by side, class by class, as the CPU reads them.
    #[inline]
    pub fn neighbours(&self, first: usize, count: usize) -> Option<(*mut E, isize)> {
        let adjacent = !self.swapped && self.rows.are_neighbours(first, count, size_of::<E>() as isize);
        adjacent.then(|| (self.row(first).pointer(0), self.class_stride))
    }

    /// Where the first classes of the `places.len()` rows from `first` on lie.
    ///
    /// # Panics
    /// If there are no such rows.
    #[inline(always)]
    pub fn places(&self, first: usize, places: &mut [*mut E]) {
        let count = places.len();
        assert!(first + count <= self.row_count, "rows {first} to {} of {}", first + count, self.row_count);
        self.rows.for_each_run(
            first,
            count,
            #[inline(always)]
            |done, count, offset, step| {
                for (index, place) in places[done..done + count].iter_mut().enumerate() {
                    *place = self.base.wrapping_offset(offset + index as isize * step).cast();
                }
            },
        );
    }

    /// How many rows from `first` on have neighbours for the same class, until the innermost axis of rows ends.
    #[inline(always)]
    pub fn neighbours_from(&self, first: usize) -> Option<usize> {
        let &(length, stride) = self.rows.axes.last()?;
        (stride == size_of::<E>() as isize).then(|| length - first % length)
    }

    /// Whether the classes of a row lie side by side, as the CPU reads them.
    #[inline(always)]
    pub fn is_contiguous(&self) -> bool {
        self.class_stride == size_of::<E>() as isize && !self.swapped
    }

    /// Row number `index`, in C order of the row axes.
    ///
    /// # Panics
    /// If there is no such row.
    #[inline]
    pub fn row(&self, index: usize) -> Row<E> {
        assert!(index < self.row_count, "row {index} of {}", self.row_count);
        Row {
            base: self.base.wrapping_offset(self.rows.offset(index)),
            classes: self.classes,
            stride: self.class_stride,
            swapped: self.swapped,
            element: PhantomData,
        }
    }
}

/// One row of a [`View`]: its elements are readable (an output's writeable) by the promise made to [`View::new`].
#[derive(Clone, Copy, Debug)]
pub struct Row<E> {
    base: *mut u8,
    classes: usize,
    stride: isize,
    swapped: bool,
    element: PhantomData<E>,
}

impl<E: Element> Row<E> {
    /// The number of classes.
    #[inline(always)]
    pub fn classes(&self) -> usize {
        self.classes
    }

    /// Whether the elements lie side by side, as the CPU reads them.
    #[inline(always)]
    pub fn is_contiguous(&self) -> bool {
        self.stride == size_of::<E>() as isize && !self.swapped
    }

    /// Whether this row begins where another does: outputs are the logits' rows themselves or apart from them.
    #[inline(always)]
    pub fn is_at<O: Copy>(&self, other: Row<O>) -> bool {
        self.base == other.base
    }

    /// Where element `index` lies; in bounds for `index` up to the number of classes.
    #[inline(always)]
    pub fn pointer(&self, index: usize) -> *mut E {
        debug_assert!(index <= self.classes);
        self.base.wrapping_offset(index as isize * self.stride).cast()
    }

    /// Element `index`.
    ///
    /// # Panics
    /// If there is no such element.
    #[inline(always)]
    pub fn get(&self, index: usize) -> E {
        assert!(index < self.classes, "class {index} of {}", self.classes);
        // SAFETY: the element is readable by the promise made to `View::new`; the read asks for no alignment.
        let value = unsafe { self.pointer(index).read_unaligned() };
        if self.swapped { value.swap_bytes() } else { value }
    }

    /// Write element `index` of an output.
    ///
    /// # Safety
    /// The view was made as an output, and this thread alone works on the row.
    ///
    /// # Panics
    /// If there is no such element.
    #[inline(always)]
    pub unsafe fn set(&self, index: usize, value: E) {
        assert!(index < self.classes, "class {index} of {}", self.classes);
        let value = if self.swapped { value.swap_bytes() } else { value };
        // SAFETY: the element is writeable by the promise made to `View::new`, and nothing else accesses it.
        unsafe { self.pointer(index).write_unaligned(value) }
    }

    /// Copy the elements from `start` on into `block`, all of it.
    #[inline(always)]
    pub fn gather(&self, start: usize, block: &mut [MaybeUninit<E>]) {
        if self.is_contiguous() {
            assert!(start + block.len() <= self.classes, "block past the row");
            // SAFETY: the elements are readable by the promise made to `View::new` and lie side by side; `block` is
            // memory of ours, so they do not overlap. Copied as bytes: a copy asks for no alignment.
            unsafe {
                let source = self.pointer(start).cast::<u8>();
                source.copy_to_nonoverlapping(block.as_mut_ptr().cast(), size_of_val(block));
            }
        } else {
            for (offset, value) in block.iter_mut().enumerate() {
                value.write(self.get(start + offset));
            }
        }
    }

    /// Copy `block` over the elements of an output from `start` on.
    ///
    /// # Safety
    /// As for [`Self::set`].
    #[inline(always)]
    pub unsafe fn scatter(&self, start: usize, block: &[E]) {
        if self.is_contiguous() {
            assert!(start + block.len() <= self.classes, "block past the row");
            // SAFETY: the elements are writeable by the promise made to `View::new`, nothing else accesses them, and
            // they lie side by side; `block` is memory of ours.
            unsafe {
                let destination = self.pointer(start).cast::<u8>();
                destination.copy_from_nonoverlapping(block.as_ptr().cast(), size_of_val(block));
            }
        } else {
            for (offset, value) in block.iter().enumerate() {
                // SAFETY: the caller's promise.
                unsafe { self.set(start + offset, *value) }
            }
        }
    }
}

/// An output of any shape, written in C order.
#[derive(Clone, Debug)]
pub struct Elements<O> {
    base: *mut u8,
    axes: Axes,
    count: usize,
    element: PhantomData<O>,
}

// SAFETY: `Elements::new`'s caller promises memory that stays valid, and each element is written by one thread.
unsafe impl<O: Element> Send for Elements<O> {}
// SAFETY: as above.
unsafe impl<O: Element> Sync for Elements<O> {}

impl<O: Element> Elements<O> {
    /// The elements at `base` that `axes` describe.
    ///
    /// # Safety
    /// As long as the value lives, they are writeable and apart from each other.
    pub unsafe fn new(base: *mut u8, axes: Axes) -> Self {
        let count = axes.count();
        Self { base, axes, count, element: PhantomData }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Where the first of them lies.
    pub fn base(&self) -> *const u8 {
        self.base
    }

    /// Write the elements from number `first` on, each rounded once; if `streaming`, whole lines past the cache.
    ///
    /// # Safety
    /// This thread alone works on them.
    ///
    /// # Panics
    /// If there are no such elements.
    #[inline(always)]
    pub unsafe fn write<S: Simd>(&self, simd: S, first: usize, values: &[O::Real], streaming: bool) {
        assert!(first + values.len() <= self.count, "elements {first} to {} of {}", first + values.len(), self.count);
        self.axes.for_each_run(
            first,
            values.len(),
            #[inline(always)]
            |done, count, offset, step| {
                let (place, values) = (self.base.wrapping_offset(offset), &values[done..done + count]);
                // SAFETY: the run's elements are writeable by the promise made to `Elements::new`, and this thread's by
                // the caller's.
                unsafe {
                    if step == size_of::<O>() as isize {
                        write_adjacent::<S, O>(simd, place.cast(), values, streaming);
                    } else {
                        write_apart::<S, O>(simd, place, step, values);
                    }
                }
            },
        );
    }
}

/// Write numbers side by side, each rounded once; if `streaming`, whole lines past the cache.
///
/// # Safety
/// Their places are writeable, at any alignment, and nothing else accesses them.
#[inline(always)]
unsafe fn write_adjacent<S: Simd, O: Element>(simd: S, place: *mut O, values: &[O::Real], streaming: bool) {
    let (lanes, line) = (<O::Real as Real>::LANES, 64 / size_of::<O>());
    let aligned = streaming && place.is_aligned();
    let lead = if aligned { place.align_offset(64).min(values.len()) } else { values.len() };
    // SAFETY: as many numbers are read as there are, and written to as many places, which are the caller's promise; the
    // lines begin on boundaries, and each vector of a line lies in the room for one.
    unsafe {
        write_cached(simd, place, &values[..lead]);
        let mut start = lead;
        while start + line <= values.len() {
            let mut rounded = [MaybeUninit::<O>::uninit(); 32];
            for index in (0..line).step_by(lanes) {
                let vector = Element::load(simd, values[start + index..].as_ptr());
                O::store(simd, rounded[index..].as_mut_ptr().cast(), vector);
            }
            simd::stream(simd, place.add(start).cast(), &rounded.as_ptr().cast::<[u8; 64]>().read());
            start += line;
        }
        write_cached(simd, place.add(start), &values[start..]);
    }
}

/// Write numbers `step` bytes apart, each rounded once.
///
/// # Safety
/// As for [`write_adjacent`].
#[inline(always)]
unsafe fn write_apart<S: Simd, O: Element>(simd: S, place: *mut u8, step: isize, values: &[O::Real]) {
    let lanes = <O::Real as Real>::LANES;
    for (index, part) in values.chunks(lanes).enumerate() {
        let mut rounded = [MaybeUninit::<O>::uninit(); 16];
        // SAFETY: as many numbers are read as the part has; there is room for the lanes of any type.
        unsafe { O::store(simd, rounded.as_mut_ptr().cast(), Element::load_part(simd, part.as_ptr(), part.len())) }
        for (lane, value) in rounded[..part.len()].iter().enumerate() {
            let place = place.wrapping_offset((index * lanes + lane) as isize * step);
            // SAFETY: writeable by the caller's promise; the store wrote a whole vector.
            unsafe { place.cast::<O>().write_unaligned(value.assume_init()) }
        }
    }
}

/// [`write_adjacent`] through the cache.
///
/// # Safety
/// As there.
#[inline(always)]
unsafe fn write_cached<S: Simd, O: Element>(simd: S, place: *mut O, values: &[O::Real]) {
    let lanes = <O::Real as Real>::LANES;
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

/// How the numbers of a [`Column`] are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // their names say it
pub enum Stored {
    F32,
    F64,
    I64,
}

/// An output of one number a row, side by side.
#[derive(Clone, Copy, Debug)]
pub struct Column {
    base: *mut u8,
    rows: usize,
    stored: Stored,
}

// SAFETY: `Column::new`'s caller promises memory that stays valid, and each number is written by one thread.
unsafe impl Send for Column {}
// SAFETY: as above.
unsafe impl Sync for Column {}

impl Column {
    /// The `rows` numbers at `base`.
    ///
    /// # Safety
    /// As long as the column lives, they are writeable, and nothing else accesses them.
    pub unsafe fn new(base: *mut u8, rows: usize, stored: Stored) -> Self {
        Self { base, rows, stored }
    }

    /// Write the numbers of the rows from `first` on.
    ///
    /// # Safety
    /// This thread alone works on the rows.
    ///
    /// # Panics
    /// If there are no such rows.
    #[inline(always)]
    pub unsafe fn set(&self, first: usize, values: &[f64]) {
        assert!(first + values.len() <= self.rows, "rows {first} to {} of {}", first + values.len(), self.rows);
        // SAFETY: the numbers are writeable by the promise made to `Column::new`, and this thread's by the caller's.
        unsafe {
            match self.stored {
                Stored::F32 => write_all(self.base.cast::<f32>().add(first), values, |value| value as f32),
                Stored::F64 => write_all(self.base.cast::<f64>().add(first), values, |value| value),
                Stored::I64 => write_all(self.base.cast::<i64>().add(first), values, |value| value as i64),
            }
        }
    }
}

/// A loop of which the compiler makes vectors.
///
/// # Safety
/// As many places as there are values are writeable, at any alignment, and nothing else accesses them.
#[inline(always)]
unsafe fn write_all<T>(places: *mut T, values: &[f64], convert: impl Fn(f64) -> T) {
    for (index, value) in values.iter().enumerate() {
        // SAFETY: writeable by the caller's promise.
        unsafe { places.add(index).write_unaligned(convert(*value)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::{Kernel, Level};

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

    struct Write<'a, O: Element>(&'a Elements<O>, usize, &'a [O::Real], bool);

    impl<O: Element> Kernel for Write<'_, O> {
        type Output = ();

        #[inline(always)]
        fn run<S: Simd>(self, simd: S) {
            // SAFETY: the test has the elements for itself.
            unsafe { self.0.write(simd, self.1, self.2, self.3) }
            simd::store_fence();
        }
    }

    /// Every number in its place and no other place touched, at all alignments and with all strides.
    fn writes<O: Element<Real = f32>>() {
        const MOST: usize = 300;
        let values: Vec<f32> = (0..MOST).map(|i| (i % 100) as f32).collect();
        for &level in Level::available() {
            for (offset, count) in [(0, 300), (1, 300), (2, 257), (7, 64), (31, 33), (33, 100), (64, 5), (6, 15)] {
                for (step, streaming) in [(1, true), (1, false), (3, true), (-1, true)] {
                    let untouched = O::from_f64(-7.0);
                    let mut room = vec![untouched; 3 * MOST + 128];
                    let start = if step < 0 { offset + count } else { offset };
                    let place = |index: usize| (start as isize + step * index as isize) as usize;
                    let base = room.as_mut_ptr().wrapping_add(start).cast();
                    let axes = Axes::new([(count + 1, step * size_of::<O>() as isize)]);
                    // SAFETY: `room` has all of these places.
                    let elements = unsafe { Elements::<O>::new(base, axes) };
                    level.run(Write(&elements, 1, &values[..count], streaming));
                    for index in 1..=count {
                        assert_eq!(
                            room[place(index)].to_f64(),
                            f64::from(values[index - 1]),
                            "{offset} {count} {step}"
                        );
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
}
