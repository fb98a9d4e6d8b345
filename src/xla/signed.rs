//! Rows whose targets are no probabilities: numbers below 0, or NaN.
//!
//! A loss is linear in its targets, and so is its gradient: of any numbers they are those of the numbers above 0, less those of the
//! numbers below 0 without their signs. Rows are copied for that, a block at a time, and computed with in f64.

use std::ops::Range;

use super::drive;
use crate::array::{Array, ArrayMut, RowsMut};
use crate::dtype::{Number, with_element};
use crate::error::{Error, Result};
use crate::loss::targets::{Problem, Targets};

/// Logits of a block, unless a row has more: enough for all threads, and few enough for the cache.
const BLOCK: usize = 1 << 17;

/// Rows that count and whose targets are no probabilities.
#[derive(Debug, Default)]
pub(super) struct Rows {
    /// Those with numbers below 0, and without NaN.
    pub(super) below_0: Vec<usize>,
    /// Those with NaN.
    pub(super) nan: Vec<usize>,
}

impl Rows {
    /// Look for them. A row whose weight is 0 does not count.
    pub(super) fn of(targets: &Array, weights: Option<&[f64]>) -> Result<Self> {
        let (mut found, classes) = (Self::default(), targets.classes());
        for row in (0..targets.rows()).filter(|row| weights.is_none_or(|weights| weights[*row] != 0.0)) {
            let (mut below_0, mut nan) = (false, false);
            read(targets, row * classes..(row + 1) * classes, |_, number| {
                below_0 |= number < 0.0;
                nan |= number.is_nan();
            });
            if below_0 || nan {
                let rows = if nan { &mut found.nan } else { &mut found.below_0 };
                rows.try_reserve(1).map_err(|_| Error::Memory("no memory for the numbers of rows".into()))?;
                rows.push(row);
            }
        }
        Ok(found)
    }
}

/// Write the losses of some rows, which have no NaN among their targets, or their gradients if there are cotangents.
pub(super) fn write(
    rows: &[usize],
    logits: &Array,
    targets: &Array,
    cotangents: Option<&Array>,
    out: &mut RowsMut,
) -> Result<()> {
    let classes = logits.classes();
    let results = if cotangents.is_some() { classes } else { 1 };
    let most = rows.len().min((BLOCK / classes).max(1));
    let (mut z, mut above, mut below) = (zeros(most, classes)?, zeros(most, classes)?, zeros(most, classes)?);
    let (mut of_above, mut of_below) = (zeros(most, results)?, zeros(most, results)?);
    let mut scales = zeros(most, 1)?;
    for rows in rows.chunks(most.max(1)) {
        for (index, &row) in rows.iter().enumerate() {
            let (elements, place) = (row * classes..(row + 1) * classes, index * classes);
            read(logits, elements.clone(), |class, logit| z[place + class] = logit);
            read(targets, elements, |class, number| {
                (above[place + class], below[place + class]) = (number.max(0.0), (-number).max(0.0));
            });
            scales[index] = cotangents.map_or(1.0, |cotangents| cotangents.number(row));
        }
        let (count, z) = (rows.len(), Array::of(&z[..rows.len() * classes], classes));
        let scales = cotangents.map(|_| Array::of(&scales[..count], 1));
        for (part, of_part) in [(&above, &mut of_above), (&below, &mut of_below)] {
            let part = Array::of(&part[..count * classes], classes);
            let out = ArrayMut::of(&mut of_part[..count * results], results);
            drive(&z, &Problem::new(Targets::Probabilities(part)), scales.as_ref(), out)?;
        }
        for (above, below) in of_above.iter_mut().zip(&of_below) {
            *above -= below;
        }
        for (row, of_row) in rows.iter().zip(of_above.chunks(results)) {
            out.set(row * results, of_row);
        }
    }
    Ok(())
}

/// Call `f` with each of these elements of one row, by its class.
fn read(array: &Array, elements: Range<usize>, mut f: impl FnMut(usize, f64)) {
    let first = elements.start;
    with_element!(array.dtype(), T => array.for_each::<T>(elements, |index, number| f(index - first, number.to_f64())));
}

/// Room for the numbers of so many rows.
fn zeros(rows: usize, numbers: usize) -> Result<Vec<f64>> {
    let (mut zeros, count) = (Vec::new(), rows * numbers);
    zeros
        .try_reserve_exact(count)
        .map_err(|_| Error::Memory(format!("no memory for a copy of {count} numbers of rows with targets below 0")))?;
    zeros.resize(count, 0.0);
    Ok(zeros)
}
