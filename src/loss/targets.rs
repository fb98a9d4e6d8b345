//! What the rows of a softmax loss should be, and how much each of them counts.

use std::ops::Range;

use fearless_simd::Simd;

use super::labels::Labels;
use super::{BadTarget, Check, Chunks, Found};
use crate::array::Array;
use crate::error::{Error, Result};
use crate::kernel::finish::{MOST_LANES, PerLane};
use crate::kernel::focus::Focus;
use crate::kernel::kinds::Kind;
use crate::kernel::listed::ListedRows;
use crate::math::{Real, precise_sum};
use crate::parallel::in_pieces;
use crate::row::batch;
use crate::row::{Dense, Source, Teacher, Transform, are_probabilities, is_probability, product};
use crate::rows::BLOCK;
use crate::simd::{self, Kernel};

/// The targets of all rows.
#[derive(Clone, Debug)]
pub enum Targets<'a> {
    /// A class each.
    Classes(Labels),
    /// A probability for every class.
    Probabilities(Array<'a>),
    /// A few classes each, with what they weigh.
    Listed(ListedRows),
    /// The softmax of a teacher's logits; the loss is the divergence from it.
    Teacher(Array<'a>),
    /// A teacher's logits; the loss is another divergence.
    Divergence(Array<'a>, Kind),
}

/// A problem but for its logits: the targets, and the options that change the loss of a row.
#[derive(Clone, Debug)]
pub struct Problem<'a> {
    /// What the rows should be.
    pub targets: Targets<'a>,
    /// What becomes of the logits.
    pub transform: Transform,
    /// A weight for each class.
    pub weight: Option<Vec<f64>>,
    /// A weight for each row.
    pub sample_weight: Option<Vec<f64>>,
    /// The share of the target that is spread over all classes.
    pub label_smoothing: f64,
    /// The factor of lse².
    pub z_loss: f64,
    /// What becomes of the losses of classes; none with label smoothing or other targets.
    pub focus: Option<Focus>,
    /// If bits must not depend on where rows are cut into batches: whether the classes of rows lie apart.
    pub settled: Option<bool>,
}

impl<'p> Problem<'p> {
    /// Targets without any option.
    pub fn new(targets: Targets<'p>) -> Self {
        Self {
            targets,
            transform: Transform::NONE,
            weight: None,
            sample_weight: None,
            label_smoothing: 0.0,
            z_loss: 0.0,
            focus: None,
            settled: None,
        }
    }

    /// Check that there are `rows` targets for `classes` classes.
    ///
    /// # Panics
    /// If there are not.
    pub(super) fn assert_fits(&self, rows: usize, classes: usize) {
        match &self.targets {
            Targets::Classes(labels) => assert_eq!(labels.rows(), rows),
            Targets::Listed(listed) => assert_eq!(listed.rows(), rows),
            Targets::Probabilities(array) | Targets::Teacher(array) | Targets::Divergence(array, _) => {
                assert_eq!((array.rows(), array.classes()), (rows, classes));
            }
        }
        assert!(self.weight.as_ref().is_none_or(|weight| weight.len() == classes));
        assert!(self.sample_weight.as_ref().is_none_or(|weight| weight.len() == rows));
    }

    /// How much a row counts.
    #[inline(always)]
    pub(super) fn sample_weight(&self, index: usize) -> f64 {
        self.sample_weight.as_ref().map_or(1.0, |weight| weight[index])
    }

    /// The classes of some rows, no more than there are lanes: `None` for those that do not count, or have none.
    #[inline(always)]
    pub(super) fn classes_of(&self, rows: Range<usize>) -> PerLane<Option<usize>> {
        let mut classes = [None; MOST_LANES];
        let Targets::Classes(labels) = &self.targets else { return classes };
        for (class, row) in classes.iter_mut().zip(rows) {
            *class = labels.class(row).filter(|_| self.sample_weight(row) != 0.0);
        }
        classes
    }

    /// Whether a row counts: one that is ignored, or whose sample weight is 0, is never read into a result.
    pub(super) fn counts(&self, row: usize) -> bool {
        let is_ignored = match &self.targets {
            Targets::Classes(labels) => labels.class(row).is_none(),
            Targets::Listed(listed) => listed.row(row).classes.is_empty(),
            Targets::Probabilities(_) | Targets::Teacher(_) | Targets::Divergence(..) => false,
        };
        !is_ignored && self.sample_weight(row) != 0.0
    }

    /// The rows without a class that are not left out on purpose, by their sample weight.
    pub fn rows_without_class(&self) -> Vec<usize> {
        match &self.targets {
            Targets::Classes(labels) if labels.counted() < labels.rows() => (0..labels.rows())
                .filter(|&row| labels.class(row).is_none() && self.sample_weight(row) != 0.0)
                .collect(),
            _ => Vec::new(),
        }
    }

    /// Leave out some of `rows` rows.
    ///
    /// # Errors
    /// [`Error::Memory`] if there is no room for the weights of all rows.
    pub fn leave_out(&mut self, rows: usize, left_out: &[usize]) -> Result<()> {
        let weights = self.sample_weight.get_or_insert_default();
        let missing = rows - weights.len();
        weights.try_reserve_exact(missing).map_err(|_| Error::Memory(format!("no memory for {rows} weights")))?;
        weights.resize(rows, 1.0);
        for &row in left_out {
            weights[row] = 0.0;
        }
        Ok(())
    }

    /// How many of the rows count.
    pub fn counted(&self, rows: usize) -> usize {
        match &self.targets {
            Targets::Classes(labels) if self.sample_weight.is_none() => labels.counted(),
            Targets::Listed(listed) if self.sample_weight.is_none() => listed.counted(),
            _ => (0..rows).filter(|&row| self.counts(row)).count(),
        }
    }

    /// What a row adds to what the mean divides by.
    pub(super) fn mean_weight(&self, row: usize) -> f64 {
        let of_class = match (&self.targets, &self.weight) {
            (Targets::Classes(labels), Some(weight)) => labels.class(row).map_or(0.0, |class| weight[class]),
            _ => 1.0,
        };
        if self.counts(row) { self.sample_weight(row) * of_class } else { 0.0 }
    }

    /// What the mean divides by: the weights of the samples, and, for classes, those of their classes too.
    pub fn weight_sum(&self, rows: usize) -> f64 {
        match (&self.targets, &self.weight) {
            (Targets::Classes(labels), None) if self.sample_weight.is_none() => labels.counted() as f64,
            (Targets::Listed(listed), _) if self.sample_weight.is_none() => listed.counted() as f64,
            (Targets::Listed(_), _) => {
                precise_sum((0..rows).filter(|&row| self.counts(row)).map(|row| self.sample_weight(row)))
            }
            (Targets::Classes(labels), weight) => {
                let of_class = |class: usize| weight.as_ref().map_or(1.0, |weight| weight[class]);
                let counted = (0..rows).filter(|&row| self.counts(row));
                let counted = counted.filter_map(|row| Some((row, labels.class(row)?)));
                precise_sum(counted.map(|(row, class)| self.sample_weight(row) * of_class(class)))
            }
            _ => self.sample_weight.as_ref().map_or(rows as f64, |weight| precise_sum(weight.iter().copied())),
        }
    }

    /// The sum of the class weights, if shares of all classes are multiplied by them.
    pub(super) fn share_weight_sum(&self) -> Option<f64> {
        let has_shares = self.label_smoothing != 0.0 || matches!(self.targets, Targets::Probabilities(_));
        let weight = self.weight.as_ref().filter(|_| has_shares);
        weight.map(|weight| precise_sum(weight.iter().copied()))
    }

    /// What all classes of a row together are multiplied by, `weight_sum` being that of [`Self::share_weight_sum`].
    pub(super) fn mass<S: Simd>(&self, simd: S, row: usize, classes: usize, weight_sum: Option<f64>) -> f64 {
        match &self.targets {
            Targets::Teacher(_) | Targets::Divergence(..) => 1.0,
            Targets::Classes(labels) => {
                let weight = self.weight.as_ref().zip(labels.class(row)).map_or(1.0, |(weight, class)| weight[class]);
                let spread = weight_sum.map_or(1.0, |sum| sum / classes as f64);
                product(1.0 - self.label_smoothing, weight) + product(self.label_smoothing, spread)
            }
            Targets::Listed(listed) if self.label_smoothing == 0.0 => listed.row(row).mass,
            Targets::Listed(_) | Targets::Probabilities(_) => {
                self.dense(row, classes, None).map_or(0.0, |dense| dense.mass(simd))
            }
        }
    }

    /// Look at all targets, without any other work.
    ///
    /// # Errors
    /// [`crate::error::Error::Value`] for the first probability that is none in a row that counts; what `check` returned.
    pub(super) fn look_at_all(&self, chunks: &Chunks, classes: usize, check: Check) -> Result<()> {
        if !matches!(self.targets, Targets::Probabilities(_)) {
            return Ok(());
        }
        let level = simd::level();
        let found =
            chunks.map(8, check, |chunk| level.run(Look { problem: self, rows: chunks.rows_of(chunk), classes }))?;
        self.checked(found.into_iter().collect())
    }

    /// Look for a probability that is none, in those of these rows that count.
    #[inline(never)]
    pub(super) fn look_at<S: Simd>(&self, simd: S, rows: Range<usize>, classes: usize) -> Found<()> {
        let Targets::Probabilities(numbers) = &self.targets else { return Ok(()) };
        if are_all_probabilities(simd, numbers, rows.clone()) {
            return Ok(());
        }
        for row in rows.filter(|&row| self.counts(row)) {
            let bad_of = |part: Range<usize>| {
                let mut block = [0.0; BLOCK];
                part.clone().step_by(BLOCK).find_map(|start| {
                    let (first, block) = (row * classes + start, &mut block[..BLOCK.min(part.end - start)]);
                    numbers.read(simd, first, block);
                    block.iter().position(|value| !is_probability(*value)).map(|bad| first + bad)
                })
            };
            if let Some(bad) = in_pieces(classes, bad_of, |found, next| *found = found.or(next)) {
                return Err(BadTarget(bad));
            }
        }
        Ok(())
    }

    /// What was found, or the error for the bad target that was.
    pub(super) fn checked<T>(&self, found: Found<T>) -> Result<T> {
        found.map_err(|bad| match &self.targets {
            Targets::Probabilities(numbers) => bad.error(numbers, "a probability, at least 0"),
            Targets::Classes(_) | Targets::Listed(_) | Targets::Teacher(_) | Targets::Divergence(..) => {
                unreachable!("other targets are not looked at")
            }
        })
    }

    /// The teacher of some rows of logits that compute in `R`, if the problem has one.
    #[inline(always)]
    pub(super) fn teacher<S: Simd, R: Real>(&self, simd: S, rows: Range<usize>) -> Option<Teacher<'_>> {
        let Targets::Teacher(logits) = &self.targets else { return None };
        Some(Teacher::new::<S, R>(simd, logits, rows, self.transform))
    }

    /// The weights of each class of the rows of `classes` classes from `first` on, if the problem has such.
    #[inline(always)]
    pub(super) fn dense<'a>(&'a self, first: usize, classes: usize, teacher: Option<&'a Teacher>) -> Option<Dense<'a>> {
        let source = match &self.targets {
            Targets::Classes(_) if self.weight.is_some() && self.label_smoothing != 0.0 => Source::Nothing,
            Targets::Classes(_) | Targets::Divergence(..) => return None,
            Targets::Probabilities(numbers) => Source::Numbers(numbers),
            Targets::Listed(listed) => Source::Listed(listed),
            Targets::Teacher(_) => {
                return Some(Dense::of_teacher(teacher.expect("a divergence has a teacher")));
            }
        };
        // What is listed is weighted where it is read, unless it is smoothed.
        let is_weighted = self.label_smoothing == 0.0 && matches!(self.targets, Targets::Listed(_));
        Some(Dense {
            source,
            row: first,
            classes,
            keep: 1.0 - self.label_smoothing,
            uniform: self.label_smoothing / classes as f64,
            weight: self.weight.as_deref().filter(|_| !is_weighted),
        })
    }

    /// Make `targets` those of the rows of `classes` classes from `first` on, but for their dense parts; the logits of the
    /// points are still to come.
    ///
    /// In place: returned, they would be copied, which takes time with few classes.
    #[inline(always)]
    pub(super) fn set(&self, first: usize, classes: usize, targets: &mut batch::Targets) {
        (targets.z_loss, targets.focus) = (self.z_loss, self.focus);
        if let Targets::Classes(labels) = &self.targets {
            self.set_classes(labels, first, classes, targets);
        } else if let Targets::Listed(listed) = &self.targets {
            for (counts, row) in targets.counts[..targets.rows].iter_mut().zip(first..) {
                *counts = f64::from(u8::from(!listed.row(row).classes.is_empty()));
            }
        } else {
            targets.counts[..targets.rows].fill(1.0);
        }
        if let Some(weight) = &self.sample_weight {
            for (counts, weight) in targets.counts[..targets.rows].iter_mut().zip(&weight[first..]) {
                *counts = if *weight == 0.0 { 0.0 } else { *counts };
            }
        }
    }

    /// [`Self::set`] of the parts that classes have.
    #[inline(always)]
    fn set_classes(&self, labels: &Labels, first: usize, classes: usize, targets: &mut batch::Targets) {
        targets.names_classes = true;
        targets.uniform = if self.weight.is_none() { self.label_smoothing / classes as f64 } else { 0.0 };
        let points = &mut targets.points;
        points.weight = [1.0 - self.label_smoothing; MOST_LANES];
        labels.read_into(first, targets.rows, &mut targets.counts, &mut points.class);
        if let Some(weight) = &self.weight {
            for (own, class) in points.weight.iter_mut().zip(&points.class) {
                *own *= weight[*class];
            }
        }
    }
}

/// Whether all numbers of some rows are probabilities: as they lie in memory, side by side if they do.
#[inline(never)]
fn are_all_probabilities<S: Simd>(simd: S, numbers: &Array, rows: Range<usize>) -> bool {
    let are_fine = |numbers: &Array, elements: Range<usize>| {
        let of_part = |part: Range<usize>| {
            let mut block = [0.0; BLOCK];
            part.clone().step_by(BLOCK).all(|first| {
                let block = &mut block[..BLOCK.min(part.end - first)];
                numbers.read(simd, elements.start + first, block);
                are_probabilities(block)
            })
        };
        in_pieces(elements.len(), of_part, |fine, next| *fine &= next)
    };
    let mut first = rows.start;
    while first < rows.end {
        let count = numbers.neighbours_from(first).unwrap_or(rows.len()).min(rows.end - first);
        let fine = match numbers.across(first, count).filter(|_| count > 1 && !numbers.is_contiguous()) {
            Some(across) => (0..numbers.classes()).all(|class| are_fine(&across, class * count..(class + 1) * count)),
            None => are_fine(numbers, first * numbers.classes()..(first + count) * numbers.classes()),
        };
        if !fine {
            return false;
        }
        first += count;
    }
    true
}

struct Look<'a> {
    problem: &'a Problem<'a>,
    rows: Range<usize>,
    classes: usize,
}

impl Kernel for Look<'_> {
    type Output = Found<()>;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> Found<()> {
        self.problem.look_at(simd, self.rows, self.classes)
    }
}
