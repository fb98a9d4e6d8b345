//! How two models' logits of the same rows compare, row by row, in one pass over the memory of both.
//!
//! Some rows at a time, which stay in the second cache: what is known of each model's (`distribution.rs`), then how far apart
//! they are ([`crate::kernel::divergence`]).

use std::ops::Range;

use fearless_simd::{Simd, f64x8, prelude::*};

use super::labels::Labels;
use super::models::{Known, Models, OfRow, Pairs};
use super::ways::{bring_in_all, tiles_of};
use super::{Check, Chunks};
use crate::array::{Array, ArrayMut, RowsMut};
use crate::element::Element;
use crate::error::Result;
use crate::kernel::divergence::{self, Compared, Levels};
use crate::kernel::finish::{HALF, MOST_LANES, PerLane};
use crate::kernel::stage::Stage;
use crate::math::{Boost, Real, two_sum};
use crate::row::Transform;
use crate::simd::{self, Kernel};

/// Two models, and what they should have said.
#[derive(Clone, Debug)]
pub struct Comparison<'a> {
    /// The logits of the reference and of the candidate.
    pub models: [Array<'a>; 2],
    /// Whether the classes of a row lie apart in one of them: then all rows go by the kernels for such.
    pub lies_across: bool,
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
    /// How many classes of this model rank above the other model's largest: a larger logit, or the same at a lower index; −1 in a row
    /// whose divergences are NaN.
    pub rank: f64,
}

/// How many figures a row has.
pub const FIGURES: usize = size_of::<Figures>() / size_of::<f64>();

impl Figures {
    fn to_array(self) -> [f64; FIGURES] {
        let Self { counts, kl, reverse_kl, js, models: [a, b] } = self;
        let [a, b] = [a, b].map(|of| [of.loss, of.entropy, of.max_probability, of.hit, of.rank]);
        [counts, kl, reverse_kl, js, a[0], a[1], a[2], a[3], a[4], b[0], b[1], b[2], b[3], b[4]]
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
    let run = |chunk| level.run(Rows { range: chunks.rows_of(chunk), comparison, figures: figures.take(chunk) });
    chunks.map(bytes, check, run).map(|_| ())
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

    /// The temperature and the softcap.
    #[inline(always)]
    fn softened(&self) -> (f64, Option<f64>) {
        (self.transform.temperature(), self.transform.softcap())
    }

    /// The log-sum-exps of some rows, and by how much they are apart.
    #[inline(never)]
    fn levels<S: Simd>(&self, simd: S, known: &[&[OfRow]; 2]) -> Levels {
        simd.vectorize(
            #[inline(always)]
            || {
                let mut levels = Levels::default();
                for (lane, (reference, candidate)) in known[0].iter().zip(known[1]).enumerate() {
                    for (of, known) in levels.of.iter_mut().zip([reference, candidate]) {
                        [of[0][lane], of[1][lane]] = above_zero(simd, self.transform, *known);
                    }
                    let apart = self.transform.difference(simd, candidate.reference, reference.reference);
                    for part in 0..2 {
                        levels.shift[part][lane] = apart[part] + (candidate.log[part] - reference.log[part]);
                    }
                }
                levels
            },
        )
    }

    /// The probabilities of the largest logits of some rows, of both models.
    #[inline(never)]
    fn largest_probabilities<S: Simd>(&self, simd: S, levels: &Levels, apart: &Compared) -> [PerLane<f64>; 2] {
        simd.vectorize(
            #[inline(always)]
            || {
                let mut largest = [[0.0; MOST_LANES]; 2];
                for (model, largest) in largest.iter_mut().enumerate() {
                    for lane in 0..MOST_LANES {
                        let [logit, rest] = self.transform.difference(simd, apart.models[model].top[lane], 0.0);
                        largest[lane] = (logit - levels.of[model][0][lane]) + (rest - levels.of[model][1][lane]);
                    }
                    for half in largest.chunks_exact_mut(HALF) {
                        <f64 as Real>::exp(simd, f64x8::from_slice(simd, half), Boost::None).store_slice(half);
                    }
                }
                largest
            },
        )
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

impl Kernel for Rows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        let Comparison { models: [reference, candidate], lies_across, transform, .. } = self.comparison;
        let models = Models {
            logits: [reference, candidate],
            lies_across: *lies_across,
            transform: *transform,
            together: false,
        };
        let range = self.range.clone();
        if models.logits.iter().any(|logits| logits.dtype().is_double()) {
            models.take::<S, f64, _>(simd, range, &mut self);
        } else {
            models.take::<S, f32, _>(simd, range, &mut self);
        }
    }
}

impl Pairs for Rows<'_> {
    const LEADS: bool = false;

    #[inline(always)]
    fn targets(&self, rows: Range<usize>) -> Option<PerLane<Option<usize>>> {
        self.comparison.labels.as_ref()?;
        Some(self.comparison.classes_of(rows))
    }

    /// Compare some rows as tiles on a stage; whether there was memory for it.
    #[inline(never)]
    fn staged<S: Simd, R: Real + Element<Real = R>>(&mut self, simd: S, rows: Range<usize>, known: &Known) -> bool {
        let comparison = self.comparison;
        let [reference, candidate] = &comparison.models;
        let (mut first, mut second) = (Stage::<R>::empty(), Stage::<R>::empty());
        if !bring_in_all(simd, &mut first, reference, rows.clone(), R::LANES, true)
            || !bring_in_all(simd, &mut second, candidate, rows.clone(), R::LANES, true)
        {
            return false;
        }
        // SAFETY: all tiles were brought in.
        let strips = unsafe { [first.strip(reference.classes()), second.strip(candidate.classes())] };
        let of_tile = tiles_of::<R>(rows.clone());
        for tile in 0..rows.len().div_ceil(R::LANES) {
            let known = known.of(of_tile(tile));
            let levels = comparison.levels(simd, &known);
            let tiles = strips.each_ref().map(|strip| strip.read().tile(tile));
            let apart = divergence::compare_tiles(simd, tiles, &levels, comparison.softened());
            self.write(simd, of_tile(tile), known, &levels, &apart);
        }
        true
    }

    /// Compare some rows one by one.
    #[inline(never)]
    fn one_by_one<S: Simd, R: Real + Element<Real = R>>(&mut self, simd: S, rows: Range<usize>, known: &Known) {
        let comparison = self.comparison;
        for first in rows.clone().step_by(R::LANES) {
            let some = first..rows.end.min(first + R::LANES);
            let known = known.of(some.clone());
            let (levels, mut apart) = (comparison.levels(simd, &known), Compared::default());
            for (lane, row) in some.clone().enumerate().filter(|(_, row)| comparison.counts(*row)) {
                let rows = comparison.models.each_ref().map(|logits| logits.row(row));
                divergence::compare_row::<S, R>(simd, rows, (&levels, lane), comparison.softened(), &mut apart);
            }
            self.write(simd, some, known, &levels, &apart);
        }
    }
}

impl Rows<'_> {
    /// Write the figures of some rows, no more than there are lanes.
    #[inline(never)]
    fn write<S: Simd>(&mut self, simd: S, rows: Range<usize>, known: [&[OfRow]; 2], levels: &Levels, apart: &Compared) {
        let (comparison, classes) = (self.comparison, self.comparison.classes_of(rows.clone()));
        let largest = comparison.largest_probabilities(simd, levels, apart);
        for (lane, row) in rows.enumerate() {
            let mut figures = Figures::default();
            if comparison.counts(row) {
                let of = known.map(|known| known[lane]);
                let is_finite = of.iter().all(|of| of.is_finite);
                let leaders = apart.models.each_ref().map(|of| of.leader[lane]);
                figures.counts = 1.0;
                let of_both = [apart.kl[lane], apart.reverse_kl[lane], apart.js[lane]];
                [figures.kl, figures.reverse_kl, figures.js] = if is_finite { of_both } else { [f64::NAN; 3] };
                for (model, to) in figures.models.iter_mut().enumerate() {
                    let (of, numbers) = (of[model], [apart.models[model].entropy[lane], largest[model][lane]]);
                    to.loss = of.loss;
                    [to.entropy, to.max_probability] = if of.is_finite { numbers } else { [f64::NAN; 2] };
                    to.hit = f64::from(u8::from(of.is_finite && classes[lane] == Some(leaders[model])));
                    to.rank = if is_finite { apart.models[model].above[lane] as f64 } else { -1.0 };
                }
            }
            self.figures.row(row).scatter(0, &figures.to_array());
        }
    }
}

/// The log-sum-exp of a row, as a sum of two.
#[inline(always)]
fn above_zero<S: Simd>(simd: S, transform: Transform, of: OfRow) -> [f64; 2] {
    let [logit, rest] = transform.difference(simd, of.reference, 0.0);
    let [level, lost] = two_sum(logit, of.log[0]);
    [level, lost + (rest + of.log[1])]
}
