//! Class-index targets, read once.

use fearless_simd::Simd;

use super::{Check, Chunks};
use crate::array::Array;
use crate::dtype::{Integer, with_integer};
use crate::error::{Error, Result};
use crate::parallel::map_chunks;
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

    fn read_as<T: Integer>(
        name: &str,
        targets: &Array,
        classes: usize,
        ignore_index: Option<i128>,
        check: Check,
    ) -> Result<Self> {
        let ignored = ignore_index.and_then(|index| T::try_from(index).ok());
        let rows = targets.count();
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
                let (position, value) = (targets.position(index), targets.get::<T>(index).into());
                let ignored = ignore_index.map_or_else(String::new, |index| format!(", or ignore_index {index}"));
                Error::Index(format!("{name}{position} is {value}; expected 0 to {}{ignored}", classes - 1))
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
