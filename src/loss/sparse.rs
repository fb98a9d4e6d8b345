//! Targets that list some classes of each row, read once.

use std::ops::Range;

use fearless_simd::Simd;

use super::{Check, Chunks};
use crate::array::Array;
use crate::dtype::{Dtype, Integer, Number, with_integer};
use crate::error::{Error, Result};
use crate::kernel::listed::{ListedPart, ListedRows, sum_of_logs};
use crate::math::{precise_sum, two_sum};
use crate::row::product;
use crate::simd::{self, Kernel};

/// What becomes of the classes that a row does not list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rest {
    /// They weigh nothing.
    Zero,
    /// They weigh nothing, and what is listed is divided by its sum.
    Renormalize,
    /// They weigh together what is missing to 1, as one class.
    Tail,
}

impl Rest {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Zero, Self::Renormalize, Self::Tail];

    /// The name under which users ask for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Zero => "zero",
            Self::Renormalize => "renormalize",
            Self::Tail => "tail",
        }
    }
}

/// The caller's arrays.
#[derive(Clone, Debug)]
pub struct SparseTargets<'a> {
    /// What the targets are called.
    pub name: &'static str,
    /// Classes, integers; −1 is none.
    pub index: Array<'a>,
    /// Their probabilities.
    pub probability: Array<'a>,
    /// What becomes of the classes that are not listed.
    pub rest: Rest,
    /// Whether the loss is a divergence, rather than a cross-entropy.
    pub is_divergence: bool,
}

/// How much the rows and classes of the targets count.
#[derive(Clone, Copy, Debug)]
pub struct Counts<'a> {
    /// How many rows and classes there are.
    pub shape: [usize; 2],
    /// A weight for each class.
    pub weight: Option<&'a [f64]>,
    /// A weight for each row.
    pub sample_weight: Option<&'a [f64]>,
}

/// Entries of a part: enough to make handing it out cheap.
const PART: usize = 1 << 12;

impl SparseTargets<'_> {
    /// Read and check all rows: a class that is listed twice weighs the sum.
    ///
    /// # Errors
    /// [`Error::Index`] for an index that is neither a class nor −1; [`Error::Value`], in a row whose weight is not 0, for a probability
    /// that is none, and for those that add up to what cannot be; [`Error::Memory`] if there is no room for the copy; what `check`
    /// returned.
    ///
    /// # Panics
    /// If the arrays have not the same number of elements for each row.
    pub fn read(&self, counts: Counts, check: Check) -> Result<ListedRows> {
        let [rows, _] = counts.shape;
        let entries = self.index.count();
        assert!(entries == self.probability.count() && entries.checked_rem(rows).unwrap_or(entries) == 0);
        let width = entries.checked_div(rows).unwrap_or(0);
        let chunks = Chunks::of(rows, (PART / width.max(1)).max(1));
        let bytes = self.index.dtype().size() + self.probability.dtype().size() + 2 * size_of::<usize>();
        let level = simd::level();
        let parts = chunks.map(width * bytes, check, |chunk| {
            level.run(Read { targets: self, counts, width, rows: chunks.rows_of(chunk) })
        })?;
        let parts = parts.into_iter().collect::<std::result::Result<Vec<_>, Wrong>>();
        let parts = parts.map_err(|wrong| self.error(wrong, width, counts.shape[1]))?;
        // Without what is not listed it is none, and may be negative.
        let least = if self.rest == Rest::Zero { f64::NEG_INFINITY } else { 0.0 };
        let divergence = self.is_divergence.then_some(least);
        Ok(ListedRows::new(parts, chunks.rows_of(0).len().max(1), divergence))
    }

    fn error(&self, wrong: Wrong, width: usize, classes: usize) -> Error {
        let name = self.name;
        match wrong {
            Wrong::Index(entry) => {
                let (position, value) = (self.index.position(entry), self.index.text(entry));
                Error::Index(format!("{name}.index{position} is {value}; expected 0 to {}, or -1 to pad", classes - 1))
            }
            Wrong::Probability(entry) => {
                let (position, value) = (self.probability.position(entry), self.probability.text(entry));
                let expected = "expected a finite number, at least 0";
                Error::Value(format!("{name}.probability{position} is {value}; {expected}"))
            }
            Wrong::Sum(row, sum) => {
                let position = self.probability.position(row * width);
                let position = position.rsplit_once(", ").map_or(String::new(), |(rows, _)| format!("{rows}]"));
                let expected = match self.rest {
                    Rest::Tail => "at most 1, since all other classes have what is left",
                    Rest::Zero | Rest::Renormalize => "a positive finite number, to divide by",
                };
                Error::Value(format!("{name}.probability{position} adds up to {}; expected {expected}", sum.text()))
            }
            Wrong::Memory => Error::Memory(format!("no memory for a copy of {name}")),
        }
    }
}

/// What is wrong.
#[derive(Clone, Copy)]
enum Wrong {
    /// The index of an entry.
    Index(usize),
    /// The probability of an entry.
    Probability(usize),
    /// The sum of a row.
    Sum(usize, f64),
    /// There is no room.
    Memory,
}

/// No class; no array has that many.
const PAD: usize = usize::MAX;

/// Reads and checks some rows.
struct Read<'a> {
    targets: &'a SparseTargets<'a>,
    counts: Counts<'a>,
    width: usize,
    rows: Range<usize>,
}

impl Kernel for Read<'_> {
    type Output = std::result::Result<ListedPart, Wrong>;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> Self::Output {
        let entries = self.rows.start * self.width..self.rows.end * self.width;
        let bits = usize::BITS - self.width.leading_zeros();
        if self.counts.shape[1].leading_zeros() < bits {
            // So many are in no memory.
            return Err(Wrong::Memory);
        }
        let classes = self.classes(entries.clone())?;
        let mut probabilities = room::<f64>(entries.len())?;
        probabilities.resize(entries.len(), 0.0);
        self.targets.probability.read(simd, entries.start, &mut probabilities);
        let mut part = ListedPart::with_room(self.rows.len(), entries.len()).ok_or(Wrong::Memory)?;
        let mut keys = room::<usize>(self.width)?;
        for (number, row) in self.rows.clone().enumerate() {
            let first = number * self.width;
            keys.clear();
            if self.counts.sample_weight.is_none_or(|weight| weight[row] != 0.0) {
                for place in 0..self.width {
                    let (class, probability) = (classes[first + place], probabilities[first + place]);
                    if class == PAD {
                        continue;
                    }
                    if !(probability >= 0.0 && probability.is_finite()) {
                        return Err(Wrong::Probability(entries.start + first + place));
                    }
                    keys.push(class << bits | place);
                }
            }
            self.add(simd, row, (&mut keys, bits), &probabilities[first..first + self.width], &mut part)?;
        }
        Ok(part)
    }
}

impl Read<'_> {
    /// The classes of some entries, [`PAD`] for those that have none.
    fn classes(&self, entries: Range<usize>) -> std::result::Result<Vec<usize>, Wrong> {
        let index = &self.targets.index;
        let mut classes = room(entries.len())?;
        with_integer!(index.dtype(), T => {
            // Of a type without a sign the largest number is no −1.
            let most = if T::SIGNED { PAD } else { PAD - 1 };
            index.for_each::<T>(entries.clone(), |_, value| classes.push(value.to_index().min(most)));
        });
        let most = self.counts.shape[1];
        match classes.iter().position(|class| *class >= most && *class != PAD) {
            Some(wrong) => Err(Wrong::Index(entries.start + wrong)),
            None => Ok(classes),
        }
    }

    /// Add a row: its keys are classes and, in their lowest bits, the places of their probabilities: numbers that are fast to sort.
    #[inline(always)]
    fn add<S: Simd>(
        &self,
        simd: S,
        row: usize,
        (keys, bits): (&mut [usize], u32),
        probabilities: &[f64],
        part: &mut ListedPart,
    ) -> std::result::Result<(), Wrong> {
        if !keys.is_sorted() {
            keys.sort_unstable();
        }
        let mut before = PAD;
        for &key in &*keys {
            let (class, place) = (key >> bits, key & ((1 << bits) - 1));
            if class == before {
                let (_, shares) = part.open();
                *shares.last_mut().expect("one was added before") += probabilities[place];
            } else {
                part.push(class, probabilities[place]);
            }
            before = class;
        }
        let (classes, shares) = part.open();
        let SparseTargets { rest, is_divergence, ref probability, .. } = *self.targets;
        let (mut mass, mut left, mut offset) = (0.0, 0.0, 0.0);
        if !classes.is_empty() {
            if rest != Rest::Zero {
                let [high, low] = twice_sum(shares);
                let has_tail = rest == Rest::Tail;
                if has_tail && high > 1.0 + slack(probability.dtype()) {
                    return Err(Wrong::Sum(row, high));
                }
                if has_tail && classes.len() < self.counts.shape[1] {
                    left = ((1.0 - high) - low).max(0.0);
                } else if high > 0.0 && high.is_finite() {
                    // Where all classes are listed there is none to have what is left.
                    for share in &mut *shares {
                        *share /= high;
                    }
                } else if !has_tail {
                    return Err(Wrong::Sum(row, high));
                }
            }
            if is_divergence {
                offset = sum_of_logs(simd, shares) + sum_of_logs(simd, &[left]);
            }
            if let Some(weight) = self.counts.weight {
                for (share, class) in shares.iter_mut().zip(classes) {
                    *share = product(*share, weight[*class]);
                }
            }
            mass = precise_sum(shares.iter().copied());
        }
        part.close(mass, left, offset);
        Ok(())
    }
}

/// Room for so many, if there is memory for it.
fn room<T>(count: usize) -> std::result::Result<Vec<T>, Wrong> {
    let mut room = Vec::new();
    room.try_reserve_exact(count).map_err(|_| Wrong::Memory)?;
    Ok(room)
}

/// The sum of numbers as a sum of two.
fn twice_sum(numbers: &[f64]) -> [f64; 2] {
    let [sum, lost] = numbers.iter().fold([0.0; 2], |[sum, lost], number| {
        let [sum, rest] = two_sum(sum, *number);
        [sum, lost + rest]
    });
    // What an infinity lost is NaN.
    if sum.is_finite() { two_sum(sum, lost) } else { [sum, 0.0] }
}

/// By how much probabilities may add up to more than 1: each is rounded, and so was what they were made of.
fn slack(dtype: Dtype) -> f64 {
    if dtype == Dtype::Bf16 { 1.0 / 128.0 } else { 1.0 / 1024.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read<T: Integer>(index: &[T], probability: &[f64], classes: usize, rest: Rest) -> Result<ListedRows> {
        let targets = SparseTargets {
            name: "targets",
            index: Array::of(index, 1),
            probability: Array::of(probability, 1),
            rest,
            is_divergence: true,
        };
        targets.read(Counts { shape: [2, classes], weight: None, sample_weight: None }, &|| Ok(()))
    }

    #[test]
    fn duplicates_add_up_pads_do_not_count_and_classes_ascend() {
        let index = [3i16, 0, 3, -1, -1, -1, -1, -1];
        let probability = [0.25, 0.125, 0.5, f64::NAN, f64::NAN, -1.0, 0.5, f64::INFINITY];
        let listed = read(&index, &probability, 4, Rest::Tail).unwrap();
        let row = listed.row(0);
        assert_eq!((row.classes, row.shares, row.mass, row.left), (&[0, 3][..], &[0.125, 0.75][..], 0.875, 0.125));
        let expected = 2.0 * 0.125 * 0.125f64.ln() + 0.75 * 0.75f64.ln();
        assert!((row.offset - expected).abs() < 1e-15, "{} {expected}", row.offset);
        assert!(listed.row(1).classes.is_empty());
        assert_eq!((listed.rows(), listed.counted(), listed.has_tails()), (2, 1, true));
    }

    #[test]
    fn what_is_left_belongs_to_other_classes_if_there_are_such() {
        let listed = read(&[0u8, 1, 0, 1], &[0.75, 0.0, 0.5, 0.25], 2, Rest::Tail).unwrap();
        assert_eq!((listed.has_tails(), listed.row(0).shares), (false, &[1.0, 0.0][..]));
        let listed = read(&[0u8, 1, 0, 1], &[0.5, 0.5001, 0.5, 0.25], 3, Rest::Tail).unwrap();
        assert_eq!((listed.row(0).left, listed.row(1).left), (0.0, 0.25));
    }

    #[test]
    fn what_is_renormalized_adds_up_to_one() {
        let listed = read(&[0, 1, 0, 1], &[3.0, 1.0, 0.0, 1e-300], 2, Rest::Renormalize).unwrap();
        assert_eq!((listed.row(0).shares, listed.row(0).mass), (&[0.75, 0.25][..], 1.0));
        assert_eq!(listed.row(1).shares, [0.0, 1.0]);
    }

    #[test]
    fn the_text_says_what_is_wrong() {
        let text =
            |index: &[i64], probability: &[f64], rest| read(index, probability, 9, rest).unwrap_err().to_string();
        let fine = [0.5; 4];
        assert_eq!(text(&[0, 1, 9, 2], &fine, Rest::Zero), "targets.index[2, 0] is 9; expected 0 to 8, or -1 to pad");
        assert_eq!(text(&[0, 1, -2, 2], &fine, Rest::Zero), "targets.index[2, 0] is -2; expected 0 to 8, or -1 to pad");
        let largest = read(&[0u64, 1, 2, u64::MAX], &fine, 9, Rest::Zero).unwrap_err().to_string();
        assert!(largest.contains(&u64::MAX.to_string()), "{largest}");
        let expected = "expected a finite number, at least 0";
        let negative = text(&[0, 1, 2, 3], &[0.5, -0.5, 0.0, 0.0], Rest::Zero);
        assert_eq!(negative, format!("targets.probability[1, 0] is -0.5; {expected}"));
        assert!(text(&[0, 1, 2, 3], &[0.0; 4], Rest::Renormalize).contains("adds up to 0.0"));
        assert!(text(&[0, 1, 2, 3], &[0.5, 0.5, 0.5, 0.6], Rest::Tail).contains("adds up to 1.1"));
    }
}
