//! What the rows of a softmax loss should be, and how much each of them counts.

use fearless_simd::Simd;
use half::{bf16, f16};

use super::labels::Labels;
use crate::element::Element;
use crate::math::precise_sum;
use crate::numbers::Numbers;
use crate::row::batch::{self, MOST_LANES};
use crate::row::{AnyRow, Dense, Source, Teacher, Transform};
use crate::view::View;

/// The targets of all rows.
#[derive(Clone, Debug)]
pub enum Targets {
    /// A class each.
    Classes(Labels),
    /// A probability for every class, in C order with the classes last.
    Probabilities(Numbers),
    /// The softmax of a teacher's logits; the loss is the divergence from it.
    Teacher(AnyView),
}

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
    fn shape(&self) -> (usize, usize) {
        match self {
            Self::F16(view) => (view.rows(), view.classes()),
            Self::Bf16(view) => (view.rows(), view.classes()),
            Self::F32(view) => (view.rows(), view.classes()),
            Self::F64(view) => (view.rows(), view.classes()),
        }
    }

    fn row(&self, index: usize) -> AnyRow {
        match self {
            Self::F16(view) => AnyRow::F16(view.row(index)),
            Self::Bf16(view) => AnyRow::Bf16(view.row(index)),
            Self::F32(view) => AnyRow::F32(view.row(index)),
            Self::F64(view) => AnyRow::F64(view.row(index)),
        }
    }
}

/// A problem but for its logits: the targets, and the options that change the loss of a row.
#[derive(Clone, Debug)]
pub struct Problem {
    /// What the rows should be.
    pub targets: Targets,
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
}

impl Problem {
    /// Targets without any option.
    pub fn new(targets: Targets) -> Self {
        Self {
            targets,
            transform: Transform::NONE,
            weight: None,
            sample_weight: None,
            label_smoothing: 0.0,
            z_loss: 0.0,
        }
    }

    /// Check that there are `rows` targets for `classes` classes.
    ///
    /// # Panics
    /// If there are not.
    pub(super) fn assert_fits(&self, rows: usize, classes: usize) {
        match &self.targets {
            Targets::Classes(labels) => assert_eq!(labels.rows(), rows),
            Targets::Probabilities(numbers) => assert_eq!(numbers.count(), rows * classes),
            Targets::Teacher(view) => assert_eq!(view.shape(), (rows, classes)),
        }
        assert!(self.weight.as_ref().is_none_or(|weight| weight.len() == classes));
        assert!(self.sample_weight.as_ref().is_none_or(|weight| weight.len() == rows));
    }

    /// How much a row counts.
    #[inline(always)]
    pub(super) fn sample_weight(&self, index: usize) -> f64 {
        self.sample_weight.as_ref().map_or(1.0, |weight| weight[index])
    }

    /// What the mean divides by: the weights of the samples, and, for classes, those of their classes too.
    pub fn weight_sum(&self, rows: usize) -> f64 {
        match (&self.targets, &self.weight) {
            (Targets::Classes(labels), None) if self.sample_weight.is_none() => labels.counted() as f64,
            (Targets::Classes(labels), weight) => {
                let of_class = |class: usize| weight.as_ref().map_or(1.0, |weight| weight[class]);
                let counted = (0..rows).filter_map(|row| Some((row, labels.class(row)?)));
                precise_sum(counted.map(|(row, class)| self.sample_weight(row) * of_class(class)))
            }
            _ => self.sample_weight.as_ref().map_or(rows as f64, |weight| precise_sum(weight.iter().copied())),
        }
    }

    /// Whether rows have weights of each class.
    fn is_dense(&self) -> bool {
        !matches!(self.targets, Targets::Classes(_)) || (self.weight.is_some() && self.label_smoothing != 0.0)
    }

    /// The weights of each class of a row of `logits`, if the problem has such.
    #[inline]
    fn dense<S: Simd, E: Element>(&self, simd: S, index: usize, logits: &View<E>) -> Option<Dense<'_>> {
        let classes = logits.classes();
        let (keep, uniform) = (1.0 - self.label_smoothing, self.label_smoothing / classes as f64);
        let weight = self.weight.as_deref();
        match &self.targets {
            Targets::Classes(labels) if weight.is_some() && uniform != 0.0 => {
                labels.class(index)?;
                Some(Dense { source: Source::Nothing, keep: 0.0, uniform, weight })
            }
            Targets::Classes(_) => None,
            Targets::Probabilities(numbers) => {
                Some(Dense { source: Source::Numbers(numbers, index * classes), keep, uniform, weight })
            }
            Targets::Teacher(view) => {
                let teacher = Teacher::new(simd, view.row(index), self.transform, E::DTYPE.is_double());
                Some(Dense { source: Source::Softmax(teacher), keep: 1.0, uniform: 0.0, weight: None })
            }
        }
    }

    /// The weights of each class of some rows from `first` on; none if the problem has none.
    #[inline(always)]
    pub(super) fn denses<'a, 'b, S: Simd, E: Element>(
        &'a self,
        simd: S,
        first: usize,
        rows: usize,
        logits: &View<E>,
        room: &'b mut [Option<Dense<'a>>; MOST_LANES],
    ) -> &'b [Option<Dense<'a>>] {
        if !self.is_dense() {
            return &[];
        }
        for (lane, dense) in room[..rows].iter_mut().enumerate() {
            *dense = self.dense(simd, first + lane, logits);
        }
        &room[..rows]
    }

    /// Make `targets` those of the rows of `classes` classes from `first` on, but for their dense parts; the logits of the
    /// points are still to come.
    ///
    /// In place: returned, they would be copied, which takes 6 % of the time of ten classes.
    #[inline(always)]
    pub(super) fn set(&self, first: usize, classes: usize, targets: &mut batch::Targets) {
        targets.z_loss = self.z_loss;
        let Targets::Classes(labels) = &self.targets else {
            targets.counts[..targets.rows].fill(1.0);
            return;
        };
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
