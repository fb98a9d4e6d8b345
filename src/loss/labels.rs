//! Class-index targets, read once.

use std::marker::PhantomData;
use std::ops::Range;

use fearless_simd::Simd;

use super::{Check, Chunks};
use crate::array::Array;
use crate::dtype::{Integer, with_integer};
use crate::error::{Error, Result};
use crate::simd::{self, Kernel};

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

/// Targets of a chunk: enough to make handing it out cheap.
const CHUNK: usize = 1 << 16;

/// The checked targets of one chunk go here.
#[derive(Clone, Copy)]
struct Destination(*mut usize);

// SAFETY: chunks write to places apart from each other.
unsafe impl Sync for Destination {}

impl Labels {
    /// Read and check integers, in C order.
    ///
    /// # Errors
    /// [`Error::Index`] for a target that is neither in `0..classes` nor `ignore_index`, which calls the targets `name`;
    /// [`Error::Memory`] if there is no room for the copy; what `check` returned.
    ///
    /// # Panics
    /// If the targets are no integers.
    pub fn read(name: &str, targets: &Array, classes: usize, ignore_index: Option<i128>, check: Check) -> Result<Self> {
        with_integer!(targets.dtype(), T => Self::read_as::<T>(name, targets, classes, ignore_index, check))
    }

    /// Read integers, in C order: negative ones count from the last class, as indices do in Python, and rows whose integer is no
    /// class are ignored.
    ///
    /// # Errors
    /// [`Error::Memory`] if there is no room for the copy; what `check` returned.
    ///
    /// # Panics
    /// If the targets are no integers.
    pub fn read_or_leave_out(targets: &Array, classes: usize, check: Check) -> Result<Self> {
        let rows = targets.count();
        let found = with_integer!(targets.dtype(), T => Self::of_chunks("targets", rows, size_of::<T>(), check, |range, to| {
            let wrap = if T::SIGNED { classes } else { 0 };
            simd::level().run(ReadOrLeaveOut::<T> { range, targets, classes, wrap, destination: to, integer: PhantomData })
        }))?;
        Ok(found.unwrap_or_else(|_| unreachable!("none is bad")))
    }

    fn read_as<T: Integer>(
        name: &str,
        targets: &Array,
        classes: usize,
        ignore_index: Option<i128>,
        check: Check,
    ) -> Result<Self> {
        let ignored = ignore_index.and_then(|index| T::try_from(index).ok());
        let found = Self::of_chunks(name, targets.count(), size_of::<T>(), check, |range, destination| {
            simd::level().run(Read { range, targets, classes, ignored, destination })
        })?;
        found.map_err(|index| {
            let (position, value) = (targets.position(index), targets.get::<T>(index).into());
            let ignored = ignore_index.map_or_else(String::new, |index| format!(", or ignore_index {index}"));
            Error::Index(format!("{name}{position} is {value}; expected 0 to {}{ignored}", classes - 1))
        })
    }

    /// Targets that `read` writes chunk by chunk, each all of its own unless it returns the index of a bad one; it returns how many
    /// are not ignored.
    fn of_chunks(
        name: &str,
        rows: usize,
        bytes: usize,
        check: Check,
        read: impl Fn(Range<usize>, Destination) -> std::result::Result<usize, usize> + Sync,
    ) -> Result<std::result::Result<Self, usize>> {
        let mut checked: Vec<usize> = Vec::new();
        checked.try_reserve_exact(rows).map_err(|_| Error::Memory(format!("no memory for a copy of {rows} {name}")))?;
        let destination = Destination(checked.as_mut_ptr());
        let chunks = Chunks::of(rows, CHUNK);
        let found = chunks.map(bytes + size_of::<usize>(), check, |chunk| read(chunks.rows_of(chunk), destination))?;
        let counted = match found.into_iter().sum() {
            Ok(counted) => counted,
            Err(bad) => return Ok(Err(bad)),
        };
        // SAFETY: there is room for `rows` elements, and the chunks, which all came to their end, wrote each of them.
        unsafe { checked.set_len(rows) }
        Ok(Ok(Self { classes: checked, counted }))
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

    /// A number for each target from row `first` on, as many as there is room for.
    #[inline(always)]
    pub fn map_into<T>(&self, first: usize, numbers: &mut [T], number: impl Fn(Option<usize>) -> T) {
        let labels = &self.classes[first..first + numbers.len()];
        for (to, &label) in numbers.iter_mut().zip(labels) {
            *to = number((label != IGNORED).then_some(label));
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
    range: Range<usize>,
    targets: &'a Array<'a>,
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

/// Reads a chunk, in which whatever is no class is ignored: how many targets count.
struct ReadOrLeaveOut<'a, T> {
    range: Range<usize>,
    targets: &'a Array<'a>,
    classes: usize,
    /// What is added to an index beyond the classes: a negative one is then one of them, if it counts from the last.
    wrap: usize,
    destination: Destination,
    integer: PhantomData<T>,
}

impl<T: Integer> Kernel for ReadOrLeaveOut<'_, T> {
    type Output = std::result::Result<usize, usize>;

    #[inline(always)]
    fn run<S: Simd>(self, _simd: S) -> Self::Output {
        let Self { range, targets, classes, wrap, destination, .. } = self;
        let mut counted = 0;
        targets.for_each::<T>(
            range,
            #[inline(always)]
            |index, value| {
                let class = value.to_index();
                let class = if class < classes { class } else { class.wrapping_add(wrap) };
                let counts = class < classes;
                counted += usize::from(counts);
                // SAFETY: the chunk's own place, for which there is room.
                unsafe { destination.0.add(index).write(if counts { class } else { IGNORED }) }
            },
        );
        Ok(counted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::array::Layout;

    fn read<T: Integer>(values: &[T], shape: &[usize], classes: usize) -> Result<Labels> {
        let mut strides = vec![size_of::<T>() as isize; shape.len()];
        for axis in (1..shape.len()).rev() {
            strides[axis - 1] = strides[axis] * shape[axis] as isize;
        }
        let base = values.as_ptr().cast_mut().cast();
        let layout = Layout { base, dtype: T::DTYPE, swapped: false, shape, strides: &strides };
        // SAFETY: shape and strides describe `values`, which outlive the array.
        let targets = unsafe { Array::new(&layout, None) };
        Labels::read("targets", &targets, classes, Some(-100), &|| Ok(()))
    }

    #[test]
    fn classes_are_kept_and_ignored_rows_are_not_counted() {
        let labels = read(&[3i16, -100, 0], &[3], 4).unwrap();
        assert_eq!((0..3).map(|row| labels.class(row)).collect::<Vec<_>>(), [Some(3), None, Some(0)]);
        assert_eq!((labels.rows(), labels.counted()), (3, 2));
    }

    fn kept<T: Integer>(values: &[T], classes: usize) -> Vec<Option<usize>> {
        let labels = Labels::read_or_leave_out(&Array::of(values, 1), classes, &|| Ok(())).unwrap();
        let kept: Vec<_> = (0..labels.rows()).map(|row| labels.class(row)).collect();
        assert_eq!(labels.counted(), kept.iter().flatten().count());
        kept
    }

    #[test]
    fn what_is_no_class_is_left_out_and_negative_ones_count_from_the_last() {
        let expected = [Some(0), Some(3), None, Some(3), Some(0), None];
        assert_eq!(kept(&[0i8, 3, 4, -1, -4, -5], 4), expected);
        assert_eq!(kept(&[0i64, 3, 4, -1, -4, -5], 4), expected);
        assert_eq!(kept(&[i64::MIN, i64::MAX], 4), [None, None]);
        assert_eq!(kept(&[3u8, 4, 255, 252], 4), [Some(3), None, None, None]);
        assert_eq!(kept(&[u64::MAX, 3], 4), [None, Some(3)]);
        assert_eq!(kept(&[0i32, -1], 0), [None, None]);
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
