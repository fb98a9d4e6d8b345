//! How the rows of a softmax loss are worked on by the kernels that need no maximum: what is asked for of all of them, and of some.

use std::ops::Range;

use fearless_simd::Simd;

use super::labels::Labels;
use super::targets::{Problem, Targets};
use crate::array::Array;
use crate::element::Element;
use crate::kernel::cap::{Cap, Capped, Softcap};
use crate::kernel::finish::{self, Asked, Coefficients, MOST_LANES, Own, PerLane, Sums};
use crate::kernel::horizontal::RowShares;
use crate::kernel::listed::ListedRows;
use crate::kernel::shares::{self, CappedTiles, Given, Shares};
use crate::kernel::vertical::Strip;
use crate::math::{Real, Scale};

/// What is asked for of all rows of a problem.
#[derive(Clone, Copy)]
pub(super) struct Plan<'a, R> {
    pub(super) scale: Scale<R>,
    pub(super) temperature: f64,
    pub(super) softcap: Option<Softcap>,
    /// The shares of all classes are `weight·(keep·number + uniform)`.
    keep: f64,
    uniform: f64,
    weight: Option<&'a [f64]>,
    /// Their sum, if it is the same for all rows.
    pub(super) total: Option<f64>,
    /// Whether there is nothing but classes.
    pub(super) is_plain: bool,
    pub(super) labels: Option<&'a Labels>,
    /// Whether exponentials are relative to the largest logit.
    pub(super) leads: bool,
    pub(super) goal: Goal<'a>,
}

/// What rows should be like, besides their classes.
#[derive(Clone, Copy)]
pub(super) enum Goal<'a> {
    /// Nothing.
    Own,
    /// These shares: of numbers, if there are such.
    Shares(Option<&'a Array<'a>>),
    /// Some classes, listed.
    Listed(&'a ListedRows),
    /// These logits.
    Teacher(&'a Array<'a>),
}

impl<'a, R: Real> Plan<'a, R> {
    /// That of a problem whose shares are multiplied by class weights of this sum; `None` if the kernels that look for the maximum
    /// first are for it.
    pub(super) fn new<S: Simd>(problem: &'a Problem, classes: usize, weight_sum: Option<f64>) -> Option<Self> {
        let temperature = problem.transform.temperature();
        if !Scale::<R>::suits(temperature) || u32::try_from(classes).is_err() {
            return None;
        }
        let softcap = problem.transform.softcap();
        let smoothed = problem.label_smoothing != 0.0;
        let (labels, goal) = match &problem.targets {
            Targets::Classes(labels) if smoothed => (Some(labels), Goal::Shares(None)),
            Targets::Classes(labels) => (Some(labels), Goal::Own),
            Targets::Probabilities(numbers) => (None, Goal::Shares(Some(numbers))),
            Targets::Listed(listed) => (None, Goal::Listed(listed)),
            Targets::Teacher(logits) => (None, Goal::Teacher(logits)),
            Targets::Divergence(..) => return None,
        };
        let suits = match goal {
            Goal::Own => true,
            // If a weight is not finite, the sum is not either.
            Goal::Shares(_) => weight_sum.is_none_or(f64::is_finite),
            // Relative to a listed class lse² has not all digits of f64.
            Goal::Listed(_) => !smoothed && softcap.is_none() && (problem.z_loss == 0.0 || R::LANES == f32::LANES),
            Goal::Teacher(logits) => {
                let alike = logits.dtype().is_double() == (R::LANES == f64::LANES);
                alike && softcap.is_none() && problem.z_loss == 0.0
            }
        };
        let is_plain = matches!(goal, Goal::Own) && problem.z_loss == 0.0 && softcap.is_none();
        let is_led = labels.is_none() || R::LANES == f64::LANES || softcap.is_some();
        let leads = is_led && !is_plain && !matches!(goal, Goal::Listed(_));
        let (mut scale, mut capped) = (Scale::new::<S>(temperature), None);
        if let Some(height) = softcap {
            let (of_products, unit) = Scale::of_products::<S>(temperature);
            (scale, capped) = (of_products, Some(Softcap { height, unit }));
        }
        let plan = Self {
            scale,
            temperature,
            softcap: capped,
            keep: 1.0 - problem.label_smoothing,
            uniform: problem.label_smoothing / classes as f64,
            weight: problem.weight.as_deref(),
            total: matches!(goal, Goal::Shares(None))
                .then_some(problem.label_smoothing * weight_sum.map_or(1.0, |sum| sum / classes as f64)),
            is_plain,
            labels,
            leads,
            goal,
        };
        suits.then_some(plan)
    }

    /// The classes, if there is nothing else.
    #[inline(always)]
    pub(super) fn plain(&self) -> Option<&'a Labels> {
        self.labels.filter(|_| self.is_plain)
    }

    /// Whether another array of the logits' size is read besides.
    pub(super) fn reads_two(&self) -> bool {
        matches!(self.goal, Goal::Shares(Some(_)) | Goal::Teacher(_))
    }

    /// How many passes over arrays of the logits' size are made before gradients.
    pub(super) fn passes(&self) -> usize {
        let arrays = if self.reads_two() { 2 } else { 1 };
        if self.leads { 2 * arrays } else { 1 }
    }
}

impl<'a, R: Real + Element<Real = R>> Plan<'a, R> {
    /// The shares of tiles, if there are such.
    #[inline(always)]
    pub(super) fn shares<'b>(&'b self, given: Given<'b>) -> Option<Shares<'b>> {
        let Goal::Shares(_) = self.goal else { return None };
        Some(Shares { given, keep: self.keep, uniform: self.uniform, weight: self.weight })
    }

    /// The shares of a row, if there are such.
    #[inline(always)]
    pub(super) fn row_shares(&self, row: usize) -> Option<RowShares<'a>> {
        let Goal::Shares(numbers) = self.goal else { return None };
        let numbers = numbers.map(|numbers| (numbers, row));
        Some(RowShares { numbers, keep: self.keep, uniform: self.uniform, weight: self.weight })
    }

    /// Tiles under the cap, if there is one.
    #[inline(always)]
    pub(super) fn capped_tiles<'b, S: Simd>(&self, simd: S, logits: &Strip<'b, R>) -> Option<CappedTiles<'b, S, R>> {
        self.softcap.map(|Softcap { height, unit }| CappedTiles {
            cap: Cap::new::<R>(simd, height),
            unit,
            logits: *logits,
        })
    }

    /// The rows of a tile that count, with their targets if they have such.
    #[inline(always)]
    pub(super) fn counted<S: Simd>(&self, simd: S, problem: &Problem, rows: Range<usize>) -> Own {
        match self.labels {
            Some(labels) => targets_of(simd, problem, labels, rows),
            None => all(problem, rows),
        }
    }
}

/// Rows whose targets are no classes; what is left of the tile does not count.
#[inline(always)]
fn all(problem: &Problem, rows: Range<usize>) -> Own {
    let mut own = Own { counts: [0.0; MOST_LANES], class: [0; MOST_LANES] };
    match &problem.sample_weight {
        None => own.counts[..rows.len()].fill(1.0),
        Some(weights) => {
            for (counts, weight) in own.counts.iter_mut().zip(&weights[rows]) {
                *counts = f64::from(u8::from(*weight != 0.0));
            }
        }
    }
    own
}

/// What is known of the teachers of some rows.
#[derive(Clone, Copy)]
pub(super) struct Teacher {
    /// Exponentials times both are probabilities.
    pub(super) factors: [PerLane<f64>; 2],
    /// A bit for each that needs the careful path.
    pub(super) careful: u32,
}

impl<R: Real> Plan<'_, R> {
    /// Find out what is asked for of some rows but for shares; `pick` is for their logits of classes.
    #[inline(always)]
    pub(super) fn ask<S: Simd>(
        &self,
        simd: S,
        problem: &Problem,
        rows: Range<usize>,
        own: &Own,
        pick: impl Fn(&PerLane<usize>) -> PerLane<f64>,
        asked: &mut Asked,
    ) {
        let needs_logits = problem.z_loss != 0.0 || self.leads && self.labels.is_some() || self.softcap.is_some();
        let (logits, slopes) = if needs_logits { self.capped(simd, &pick(&own.class)) } else { Default::default() };
        asked.slopes[0] = slopes;
        if problem.z_loss != 0.0 {
            for (level, logit) in asked.level.iter_mut().zip(&logits[0]) {
                *level = logit / self.temperature;
            }
        }
        let Some(labels) = self.labels else { return };
        let targets = targets_of(simd, problem, labels, rows);
        for (lane, class) in targets.class.iter().enumerate() {
            let weight = problem.weight.as_ref().map_or(1.0, |weight| weight[*class]);
            asked.point[lane] = weight * (1.0 - problem.label_smoothing);
        }
        if self.leads {
            let (of_targets, slopes) = self.capped(simd, &pick(&targets.class));
            asked.slopes[1] = slopes;
            for lane in 0..MOST_LANES {
                let above = (logits[0][lane] - of_targets[0][lane]) + (logits[1][lane] - of_targets[1][lane]);
                asked.above[lane] = above / self.temperature;
                asked.apart[lane] = f64::from(u8::from(targets.class[lane] != own.class[lane]));
            }
        }
    }

    /// Logits, capped if there is a cap, as sums of two, and its slopes.
    #[inline(always)]
    fn capped<S: Simd>(&self, simd: S, logits: &PerLane<f64>) -> ([PerLane<f64>; 2], PerLane<f64>) {
        let Some(Softcap { height, .. }) = self.softcap else {
            return ([*logits, [0.0; MOST_LANES]], [1.0; MOST_LANES]);
        };
        let mut capped = Capped::default();
        Cap::new::<f64>(simd, height).fill::<f64, MOST_LANES, true>(simd, logits, &mut capped);
        (capped.values, capped.slopes)
    }

    /// What losses need of the shares of some rows.
    #[inline(always)]
    pub(super) fn weigh(&self, found: &shares::Found, asked: &mut Asked) {
        asked.mass = found.mass;
        asked.sum = found.sum;
        divide(&mut asked.sum, self.temperature);
    }

    /// What gradients need besides; `pick` is for the shares of classes.
    #[inline(always)]
    pub(super) fn pick_shares<S: Simd>(
        &self,
        simd: S,
        problem: &Problem,
        rows: Range<usize>,
        own: &Own,
        pick: impl Fn(&PerLane<usize>) -> PerLane<f64>,
        asked: &mut Asked,
    ) {
        asked.here[0] = pick(&own.class);
        if let Some(labels) = self.labels.filter(|_| self.leads) {
            asked.here[1] = pick(&targets_of(simd, problem, labels, rows).class);
        }
    }

    /// What a divergence from teachers asks for: of `sums`, and of `apart`, by how much the pupils' logits of the teachers' own
    /// classes are above those of theirs.
    #[inline(always)]
    pub(super) fn of_teacher<S: Simd>(
        &self,
        simd: S,
        found: &Sums,
        sums: &PerLane<f64>,
        apart: &PerLane<f64>,
        asked: &mut Asked,
    ) -> Teacher {
        let losses = finish::losses::<S, R>(simd, found, self.scale.shortfall());
        let factors = losses.softmax_factors();
        asked.mass = [1.0; MOST_LANES];
        asked.teacher = Some(losses.loss);
        for lane in 0..MOST_LANES {
            asked.sum[lane] = (sums[lane] * factors[0][lane]).mul_add(factors[1][lane], apart[lane]) / self.temperature;
        }
        Teacher { factors, careful: losses.careful }
    }
}

/// Divide numbers by a temperature: a dozen of them take as long as all else that is once a row of few classes.
#[inline(always)]
pub(super) fn divide(numbers: &mut PerLane<f64>, temperature: f64) {
    if temperature != 1.0 {
        for number in numbers {
            *number /= temperature;
        }
    }
}

/// The targets of some rows; what is left of the tile does not count.
#[inline(always)]
pub(super) fn targets_of<S: Simd>(simd: S, problem: &Problem, labels: &Labels, rows: Range<usize>) -> Own {
    // Filled where it stays: returned by a function that is called, it would be copied.
    let mut own = Own { counts: [0.0; MOST_LANES], class: [0; MOST_LANES] };
    read_targets(simd, problem, labels, rows, &mut own);
    own
}

#[inline(never)]
fn read_targets<S: Simd>(simd: S, problem: &Problem, labels: &Labels, rows: Range<usize>, own: &mut Own) {
    simd.vectorize(
        #[inline(always)]
        || {
            labels.read_into(rows.start, rows.len(), &mut own.counts, &mut own.class);
            if let Some(weight) = &problem.sample_weight {
                for (counts, weight) in own.counts.iter_mut().zip(&weight[rows]) {
                    *counts = if *weight == 0.0 { 0.0 } else { *counts };
                }
            }
        },
    );
}

/// What gradients that are written row by row are made of, one row a lane.
#[derive(Clone, Copy)]
pub(super) struct RowGradients<'a> {
    pub(super) own: &'a Own,
    /// By how many octaves references were raised.
    pub(super) octaves: &'a PerLane<f64>,
    pub(super) of: &'a Coefficients,
    /// What shares, or teachers' exponentials, are multiplied by.
    pub(super) scales: &'a PerLane<f64>,
    /// The gradients of the targets' classes, for those that are not the own ones.
    pub(super) targets: &'a PerLane<f64>,
    /// The classes that teachers' exponentials are relative to.
    pub(super) teachers: &'a PerLane<usize>,
}

impl<'a> RowGradients<'a> {
    /// Those of rows of which nothing but classes is asked.
    #[inline(always)]
    pub(super) fn of_classes(own: &'a Own, octaves: &'a PerLane<f64>, of: &'a Coefficients) -> Self {
        Self { own, octaves, of, scales: &[0.0; MOST_LANES], targets: &[0.0; MOST_LANES], teachers: &[0; MOST_LANES] }
    }
}

/// The lanes of bits.
#[inline(always)]
pub(super) fn lanes_of(mut bits: u32) -> impl Iterator<Item = usize> {
    std::iter::from_fn(
        #[inline(always)]
        move || {
            let lane = bits.trailing_zeros();
            bits &= bits.wrapping_sub(1);
            (lane < u32::BITS).then_some(lane as usize)
        },
    )
}
