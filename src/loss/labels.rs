//! Class-index targets, read once.

use fearless_simd::Simd;

use super::{Check, Chunks};
use crate::error::{Error, Result};
use crate::parallel::map_chunks;
use crate::simd::{self, Kernel};
use crate::view::Axes;

/// Marks an ignored row; no array has that many classes.
const IGNORED: usize = usize::MAX;

/// The targets of all rows, checked: each is a class or marks an ignored row.
///
/// They are a private copy: somebody who writes to the targets' array meanwhile cannot turn a checked index into one
/// past the row.
#[derive(Clone, Debug)]
pub struct Labels {
    classes: Vec<usize>,
    counted: usize,
}

/// The integer types that targets come in.
pub trait Integer: Copy + PartialEq + TryFrom<i128> + Into<i128> + Send + Sync {
    /// As an index: of a negative number one that no array has.
    fn to_index(self) -> usize;

    /// With the bytes in the other order.
    #[must_use]
    fn swap_bytes(self) -> Self;
}

macro_rules! integers {
    ($($integer:ty),*) => { $(
        impl Integer for $integer {
            #[inline(always)]
            #[allow(clippy::cast_lossless, irrefutable_let_patterns)] // for all types alike
            fn to_index(self) -> usize {
                // Negative numbers become larger ones than any array has elements. So do those beyond 32 bits on a
                // machine that has no more.
                if let Ok(index) = usize::try_from(self as i64 as u64) { index } else { usize::MAX }
            }

            fn swap_bytes(self) -> Self {
                self.swap_bytes()
            }
        }
    )* };
}
integers!(i8, i16, i32, i64, u8, u16, u32, u64);

/// An array of integers in foreign memory.
#[derive(Clone, Debug)]
pub struct Integers {
    base: *const u8,
    axes: Axes,
    shape: Vec<usize>,
    swapped: bool,
}

// SAFETY: `Integers::new`'s caller promises memory that stays valid, and it is only read.
unsafe impl Send for Integers {}
// SAFETY: as above.
unsafe impl Sync for Integers {}

impl Integers {
    /// The array at `base` with these lengths and strides in bytes.
    ///
    /// # Safety
    /// As long as the value lives, every element so described is readable.
    pub unsafe fn new(base: *const u8, shape: &[usize], strides: &[isize], swapped: bool) -> Self {
        let axes = Axes::new(shape.iter().copied().zip(strides.iter().copied()));
        Self { base, axes, shape: shape.to_vec(), swapped }
    }

    /// Element number `index` in C order, below the number of elements.
    #[inline(always)]
    fn get<T: Integer>(&self, index: usize) -> T {
        // SAFETY: readable by the promise made to `Integers::new`; the read asks for no alignment.
        let value = unsafe { self.base.wrapping_offset(self.axes.offset(index)).cast::<T>().read_unaligned() };
        if self.swapped { value.swap_bytes() } else { value }
    }
}

impl Integers {
    /// Call `f` with some indices and their elements.
    #[inline(always)]
    fn for_each<T: Integer>(&self, range: std::ops::Range<usize>, mut f: impl FnMut(usize, T)) {
        self.axes.for_each_run(
            range.start,
            range.len(),
            #[inline(always)]
            |done, count, offset, step| {
                let first = self.base.wrapping_offset(offset);
                let numbers = range.start + done..range.start + done + count;
                // SAFETY: readable by the promise made to `Integers::new`; the reads ask for no alignment.
                unsafe {
                    if step == size_of::<T>() as isize && !self.swapped {
                        for (place, index) in numbers.enumerate() {
                            f(index, first.cast::<T>().wrapping_add(place).read_unaligned());
                        }
                        return;
                    }
                    for (place, index) in numbers.enumerate() {
                        let value = first.wrapping_offset(place as isize * step).cast::<T>().read_unaligned();
                        f(index, if self.swapped { value.swap_bytes() } else { value });
                    }
                }
            },
        );
    }
}

/// Targets of a chunk: enough to make handing it out cheap.
const CHUNK: usize = 1 << 16;

/// The checked targets of one chunk go here.
#[derive(Clone, Copy)]
struct Destination(*mut usize);

// SAFETY: chunks write to places apart from each other.
unsafe impl Sync for Destination {}

impl Labels {
    /// Read and check targets of type `T`, in C order.
    ///
    /// # Errors
    /// [`Error::Index`] for a target that is neither in `0..classes` nor `ignore_index`, which calls the targets `name`;
    /// [`Error::Memory`] if there is no room for the copy; what `check` returned.
    pub fn read<T: Integer>(
        name: &str,
        targets: &Integers,
        classes: usize,
        ignore_index: Option<i128>,
        check: Check,
    ) -> Result<Self> {
        let ignored = ignore_index.and_then(|index| T::try_from(index).ok());
        let rows = targets.axes.count();
        let mut checked: Vec<usize> = Vec::new();
        checked.try_reserve_exact(rows).map_err(|_| Error::Memory(format!("no memory for a copy of {rows} {name}")))?;
        let destination = Destination(checked.as_mut_ptr());
        let chunks = Chunks::of(rows, CHUNK);
        let level = simd::level();
        let found = map_chunks(chunks.count(), CHUNK * (size_of::<T>() + size_of::<usize>()), check, |chunk| {
            let range = chunks.rows_of(chunk);
            level.run(Read { range, targets, classes, ignored, destination })
        })?;
        let mut counted = 0;
        for found in found {
            counted += found.map_err(|index| {
                let value: T = targets.get(index);
                out_of_range(name, index, value.into(), &targets.shape, classes, ignore_index)
            })?;
        }
        // SAFETY: there is room for `rows` elements, and the chunks, which all came to their end, wrote each of them.
        unsafe { checked.set_len(rows) }
        Ok(Self { classes: checked, counted })
    }

    /// The number of rows.
    pub fn rows(&self) -> usize {
        self.classes.len()
    }

    /// The number of rows that are not ignored.
    pub fn counted(&self) -> usize {
        self.counted
    }

    /// The targets of `rows` rows from `first` on, no more than there is room for: 1 and the class for those that count, 0
    /// and 0 for others.
    #[inline(always)]
    pub fn read_into(&self, first: usize, rows: usize, counts: &mut [f64], classes: &mut [usize]) {
        let labels = &self.classes[first..first + rows];
        for ((&label, counts), class) in labels.iter().zip(counts).zip(classes) {
            let is_counted = label != IGNORED;
            (*counts, *class) = (f64::from(u8::from(is_counted)), if is_counted { label } else { 0 });
        }
    }

    /// The target of a row; `None` if the row is ignored.
    #[inline(always)]
    pub fn class(&self, row: usize) -> Option<usize> {
        Some(self.classes[row]).filter(|&class| class != IGNORED)
    }
}

/// Reads and checks a chunk: how many targets count, or the index of the first bad one.
struct Read<'a, T> {
    range: std::ops::Range<usize>,
    targets: &'a Integers,
    classes: usize,
    ignored: Option<T>,
    destination: Destination,
}

impl<T: Integer> Kernel for Read<'_, T> {
    type Output = std::result::Result<usize, usize>;

    #[inline(always)]
    fn run<S: Simd>(self, _simd: S) -> Self::Output {
        let Self { range, targets, classes, ignored, destination } = self;
        let (mut bad, mut counted) = (false, 0);
        // Without a way out of the loop, so that it is done in vectors.
        targets.for_each::<T>(
            range.clone(),
            #[inline(always)]
            |index, value| {
                let is_ignored = Some(value) == ignored;
                let class = value.to_index();
                bad |= !is_ignored && class >= classes;
                counted += usize::from(!is_ignored);
                // SAFETY: the chunk's own place, for which there is room.
                unsafe { destination.0.add(index).write(if is_ignored { IGNORED } else { class }) }
            },
        );
        if !bad {
            return Ok(counted);
        }
        let is_bad = |&index: &usize| {
            let value: T = targets.get(index);
            Some(value) != ignored && value.to_index() >= classes
        };
        Err(range.clone().find(is_bad).unwrap_or(range.start))
    }
}

fn out_of_range(
    name: &str,
    mut index: usize,
    value: i128,
    shape: &[usize],
    classes: usize,
    ignore_index: Option<i128>,
) -> Error {
    let mut position = Vec::new();
    for length in shape.iter().rev() {
        position.push((index % length).to_string());
        index /= length;
    }
    position.reverse();
    let position = if position.is_empty() { String::new() } else { format!("[{}]", position.join(", ")) };
    let ignored = ignore_index.map_or_else(String::new, |index| format!(", or ignore_index {index}"));
    Error::Index(format!("{name}{position} is {value}; expected 0 to {}{ignored}", classes - 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read<T: Integer>(values: &[T], shape: &[usize], classes: usize) -> Result<Labels> {
        let mut strides = vec![size_of::<T>() as isize; shape.len()];
        for axis in (1..shape.len()).rev() {
            strides[axis - 1] = strides[axis] * shape[axis] as isize;
        }
        // SAFETY: shape and strides describe `values`.
        let targets = unsafe { Integers::new(values.as_ptr().cast(), shape, &strides, false) };
        Labels::read::<T>("targets", &targets, classes, Some(-100), &|| Ok(()))
    }

    #[test]
    fn classes_are_kept_and_ignored_rows_are_not_counted() {
        let labels = read(&[3i16, -100, 0], &[3], 4).unwrap();
        assert_eq!((0..3).map(|row| labels.class(row)).collect::<Vec<_>>(), [Some(3), None, Some(0)]);
        assert_eq!((labels.rows(), labels.counted()), (3, 2));
    }

    #[test]
    fn the_text_names_position_value_and_range() {
        let text = |result: Result<Labels>| result.unwrap_err().to_string();
        assert_eq!(
            text(read(&[0i64, 1, 9, 0], &[2, 2], 9)),
            "targets[1, 0] is 9; expected 0 to 8, or ignore_index -100"
        );
        assert_eq!(text(read(&[-1i8], &[], 9)), "targets is -1; expected 0 to 8, or ignore_index -100");
        let large = read(&[u64::MAX], &[1], 9);
        assert_eq!(text(large), format!("targets[0] is {}; expected 0 to 8, or ignore_index -100", u64::MAX));
    }
}
