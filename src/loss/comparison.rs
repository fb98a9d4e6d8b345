//! How two models' logits of the same rows compare, row by row, in one pass over the memory of both.
//!
//! Some rows at a time, which stay in the second cache: what is known of each model's (`distribution.rs`), then how far apart
//! they are ([`crate::kernel::divergence`]).

use std::ops::Range;

use fearless_simd::{Simd, f64x8, prelude::*};

use super::distribution::{Reading, Use};
use super::labels::Labels;
use super::{Check, Chunks};
use crate::array::{Array, ArrayMut, RowsMut};
use crate::element::Element;
use crate::error::Result;
use crate::kernel::divergence::{self, Compared};
use crate::kernel::finish::{HALF, MOST_LANES, PerLane};
use crate::math::{Boost, Real, two_sum};
use crate::parallel::map_chunks;
use crate::row::{Statistics, Transform};
use crate::rows::BLOCK;
use crate::simd::{self, Kernel};

/// Two models, and what they should have said.
#[derive(Clone, Debug)]
pub struct Comparison<'a> {
    /// The logits of the reference and of the candidate.
    pub models: [Array<'a>; 2],
    /// What becomes of logits first.
    pub transform: Transform,
    /// The targets, if there are any.
    pub labels: Option<Labels>,
    /// A weight of each row; those of weight 0 do not count.
    pub sample_weight: Option<Vec<f64>>,
}

/// The figures of a row, in this order.
#[derive(Clone, Copy, Debug, Default)]
pub struct Figures {
    /// 1 for a row that counts; all others have nothing else.
    pub counts: f64,
    /// KL(reference || candidate), in nats; NaN in a row with a NaN or +∞, or of only −∞.
    pub kl: f64,
    /// KL(candidate || reference).
    pub reverse_kl: f64,
    /// The Jensen-Shannon divergence.
    pub js: f64,
    /// Whether the largest logits are those of the same class, the first of equals; not in a row whose divergences are NaN.
    pub same_top: f64,
    /// Those of each model.
    pub models: [OfModel; 2],
}

/// The figures of a row of a model, in this order.
#[derive(Clone, Copy, Debug, Default)]
pub struct OfModel {
    /// The negative log-probability of the target, in nats; 0 without targets.
    pub loss: f64,
    /// The entropy of the softmax, in nats.
    pub entropy: f64,
    /// The probability of the largest logit.
    pub max_probability: f64,
    /// Whether the target has the largest logit.
    pub hit: f64,
}

/// How many figures a row has.
pub const FIGURES: usize = size_of::<Figures>() / size_of::<f64>();

impl Figures {
    fn to_array(self) -> [f64; FIGURES] {
        let Self { counts, kl, reverse_kl, js, same_top, models: [a, b] } = self;
        let [a, b] = [a, b].map(|of| [of.loss, of.entropy, of.max_probability, of.hit]);
        [counts, kl, reverse_kl, js, same_top, a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3]]
    }
}

/// Write the [`Figures`] of every row, as the classes of `figures`.
///
/// # Errors
/// What `check` returned.
///
/// # Panics
/// If the arrays do not fit.
pub fn compare(comparison: &Comparison, figures: &mut ArrayMut, check: Check) -> Result<()> {
    let Comparison { models: [reference, candidate], labels, sample_weight, .. } = comparison;
    let (rows, classes) = (reference.rows(), reference.classes());
    assert_eq!((candidate.rows(), candidate.classes()), (rows, classes));
    assert_eq!((figures.rows(), figures.classes()), (rows, FIGURES));
    assert!(labels.as_ref().is_none_or(|labels| labels.rows() == rows));
    assert!(sample_weight.as_ref().is_none_or(|weight| weight.len() == rows));
    let chunks = Chunks::of_rows(reference);
    let figures = figures.parts(chunks.ranges());
    let level = simd::level();
    let bytes = reference.dtype().size() + candidate.dtype().size();
    map_chunks(chunks.count(), chunks.bytes(classes, bytes), check, |chunk| {
        level.run(Rows { range: chunks.rows_of(chunk), comparison, figures: figures.take(chunk) });
    })
    .map(|_| ())
}

impl Comparison<'_> {
    /// The targets of some rows, no more than there are lanes.
    #[inline(always)]
    fn classes_of(&self, rows: Range<usize>) -> PerLane<Option<usize>> {
        let mut classes = [None; MOST_LANES];
        if let Some(labels) = &self.labels {
            for (class, row) in classes.iter_mut().zip(rows) {
                *class = labels.class(row).filter(|_| self.counts(row));
            }
        }
        classes
    }

    #[inline(always)]
    fn counts(&self, row: usize) -> bool {
        self.labels.as_ref().is_none_or(|labels| labels.class(row).is_some())
            && self.sample_weight.as_ref().is_none_or(|weight| weight[row] != 0.0)
    }
}

/// The work on a chunk of rows.
struct Rows<'a> {
    range: Range<usize>,
    comparison: &'a Comparison<'a>,
    figures: RowsMut<'a>,
}

/// So many bytes of both models' rows are read twice.
const BYTES: usize = 1 << 19;

impl Kernel for Rows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        let (comparison, range) = (self.comparison, self.range.clone());
        let [reference, candidate] = &comparison.models;
        let bytes = reference.classes().saturating_mul(reference.dtype().size() + candidate.dtype().size());
        let together = (BYTES / bytes).clamp(1, BLOCK);
        let is_double = reference.dtype().is_double() || candidate.dtype().is_double();
        let mut known =
            comparison.models.each_ref().map(|logits| Known { comparison, logits, first: 0, rows: Vec::new() });
        for first in range.clone().step_by(together) {
            let rows = first..range.end.min(first + together);
            for of in &mut known {
                of.first = rows.start;
                of.rows.resize(rows.len(), OfRow::default());
                let (logits, transform) = (of.logits, comparison.transform);
                Reading { range: rows.clone(), logits, transform, normalized: None }.run(simd, of);
            }
            for (index, row) in rows.enumerate() {
                let mut figures = Figures::default();
                if comparison.counts(row) {
                    let of = known.each_ref().map(|of| of.rows[index]);
                    figures = if is_double {
                        figures_of::<S, f64>(simd, comparison, row, of)
                    } else {
                        figures_of::<S, f32>(simd, comparison, row, of)
                    };
                }
                self.figures.row(row).scatter(0, &figures.to_array());
            }
        }
    }
}

/// What is known of a row of a model.
#[derive(Clone, Copy, Debug, Default)]
struct OfRow {
    /// The negative log-probability of the target.
    loss: f64,
    /// A logit that none exceeds by much, and by how much the log-sum-exp is above it, as a sum of two.
    reference: f64,
    log: [f64; 2],
    /// Whether the log-sum-exp is a number.
    is_finite: bool,
}

/// What is known of some rows of a model.
struct Known<'a> {
    comparison: &'a Comparison<'a>,
    logits: &'a Array<'a>,
    first: usize,
    rows: Vec<OfRow>,
}

impl Use for Known<'_> {
    const LEADERS: bool = false;
    const SHAPES: bool = false;

    /// Relative to the target's exponential, its log-probability is right to the last digits.
    #[inline(always)]
    fn own(&self, rows: Range<usize>) -> Option<PerLane<usize>> {
        self.comparison.labels.as_ref()?;
        let mut own = [0; MOST_LANES];
        for (own, class) in own.iter_mut().zip(self.comparison.classes_of(rows)) {
            *own = class.unwrap_or(0);
        }
        Some(own)
    }

    #[inline(always)]
    fn take<S: Simd>(&mut self, simd: S, rows: Range<usize>, known: &Statistics) {
        let (classes, count) = (self.comparison.classes_of(rows.clone()), rows.len());
        let mut of_targets = [0.0; MOST_LANES];
        for (lane, class) in classes.iter().enumerate() {
            if let Some(class) = class {
                of_targets[lane] = self.logits.row(rows.start + lane).get(*class);
            }
        }
        let missed = known.missed(simd, &of_targets, count, self.comparison.transform);
        let to = &mut self.rows[rows.start - self.first..rows.end - self.first];
        for (lane, to) in to.iter_mut().enumerate() {
            let found = known.log_sum_exps.get(lane);
            *to = OfRow {
                loss: if classes[lane].is_some() { missed[lane] } else { 0.0 },
                reference: found.reference,
                log: [known.logs[0][lane], known.logs[1][lane]],
                is_finite: found.total() > 0.0 && found.total().is_finite(),
            };
        }
    }
}

/// The figures of a row that counts.
#[inline(never)]
fn figures_of<S: Simd, R: Real + Element<Real = R>>(
    simd: S,
    comparison: &Comparison,
    row: usize,
    of: [OfRow; 2],
) -> Figures {
    simd.vectorize(
        #[inline(always)]
        || {
            let (transform, [reference, candidate]) = (comparison.transform, of);
            let levels = [above_zero(simd, transform, reference), above_zero(simd, transform, candidate)];
            let apart = transform.difference(simd, candidate.reference, reference.reference);
            let shift =
                [apart[0] + (candidate.log[0] - reference.log[0]), apart[1] + (candidate.log[1] - reference.log[1])];
            let rows = [comparison.models[0].row(row), comparison.models[1].row(row)];
            let softened = (transform.temperature(), transform.softcap());
            let Compared { mut kl, mut reverse_kl, mut js, rows: shapes } =
                divergence::compare::<S, R>(simd, rows, levels, shift, softened);
            // The probabilities of the largest logits, of both models at once.
            let mut largest = [0.0; HALF];
            for (index, log) in largest.iter_mut().enumerate().take(2) {
                let [logit, rest] = transform.difference(simd, shapes[index].top.1, 0.0);
                *log = (logit - levels[index][0]) + (rest - levels[index][1]);
            }
            let largest = <f64 as Real>::exp(simd, f64x8::from_slice(simd, &largest), Boost::None);
            let class = comparison.labels.as_ref().and_then(|labels| labels.class(row));
            let mut models = [OfModel::default(); 2];
            for (index, to) in models.iter_mut().enumerate() {
                let is_hit = of[index].is_finite && class == Some(shapes[index].top.0);
                to.loss = of[index].loss;
                (to.entropy, to.max_probability) = (shapes[index].entropy, largest.as_slice()[index]);
                to.hit = f64::from(u8::from(is_hit));
                if !of[index].is_finite {
                    (kl, reverse_kl, js) = (f64::NAN, f64::NAN, f64::NAN);
                    (to.entropy, to.max_probability) = (f64::NAN, f64::NAN);
                }
            }
            let is_same = of.iter().all(|of| of.is_finite) && shapes[0].top.0 == shapes[1].top.0;
            let same_top = f64::from(u8::from(is_same));
            Figures { counts: 1.0, kl, reverse_kl, js, same_top, models }
        },
    )
}

/// The log-sum-exp of a row, as a sum of two.
#[inline(always)]
fn above_zero<S: Simd>(simd: S, transform: Transform, of: OfRow) -> [f64; 2] {
    let [logit, rest] = transform.difference(simd, of.reference, 0.0);
    let [level, lost] = two_sum(logit, of.log[0]);
    [level, lost + (rest + of.log[1])]
}
