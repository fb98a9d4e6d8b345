//! What can be told of every row in one pass: log-sum-exp, leader, entropy, and where the target stands.

use std::ops::Range;

use fearless_simd::Simd;

use super::distribution::{Reading, Use};
use super::softmax::log_sum_exps_of;
use super::{Check, Chunks, labels::Labels};
use crate::array::{Array, ArrayMut, Parts, RowsMut};
use crate::error::Result;
use crate::kernel::finish::{MOST_LANES, PerLane};
use crate::row::{Statistics, Transform};
use crate::simd::{self, Kernel};

/// The results, a number a row each: arrays, or what a thread has of them.
#[derive(Clone, Copy, Debug)]
pub struct Columns<T> {
    /// The log-sum-exp.
    pub log_sum_exp: T,
    /// The class of the largest logit.
    pub argmax: T,
    /// Its probability.
    pub max_probability: T,
    /// The entropy of the softmax, in nats.
    pub entropy: T,
    /// The log-probability of the target, and how many classes rank above it.
    pub target: Option<(T, T)>,
}

impl<T> Columns<T> {
    fn map<U>(self, mut f: impl FnMut(T) -> U) -> Columns<U> {
        Columns {
            log_sum_exp: f(self.log_sum_exp),
            argmax: f(self.argmax),
            max_probability: f(self.max_probability),
            entropy: f(self.entropy),
            target: self.target.map(|(log_probability, rank)| (f(log_probability), f(rank))),
        }
    }

    fn each(&self) -> Columns<&T> {
        let Self { log_sum_exp, argmax, max_probability, entropy, target } = self;
        let target = target.as_ref().map(|(log_probability, rank)| (log_probability, rank));
        Columns { log_sum_exp, argmax, max_probability, entropy, target }
    }
}

/// Write the statistics of every row. An ignored target has log-probability 0 and rank −1; one in a row with a NaN or
/// +∞, or of only −∞, has rank −1.
///
/// # Errors
/// What `check` returned.
pub fn row_statistics(
    logits: &Array,
    labels: Option<&Labels>,
    transform: Transform,
    columns: Columns<&mut ArrayMut>,
    check: Check,
) -> Result<()> {
    assert!(labels.is_none_or(|labels| labels.rows() == logits.rows()));
    let chunks = Chunks::of_rows(logits);
    let columns = columns.map(|out| {
        assert_eq!(out.rows(), logits.rows());
        out.parts(chunks.ranges())
    });
    let level = simd::level();
    let run = |chunk| {
        let columns = columns.each().map(|parts: &Parts| parts.take(chunk));
        level.run(Rows { range: chunks.rows_of(chunk), logits, labels, transform, columns });
    };
    chunks.map(logits.dtype().size(), check, run).map(|_| ())
}

struct Rows<'a> {
    range: Range<usize>,
    logits: &'a Array<'a>,
    labels: Option<&'a Labels>,
    transform: Transform,
    columns: Columns<RowsMut<'a>>,
}

impl Kernel for Rows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        let (range, logits, transform) = (self.range.clone(), self.logits, self.transform);
        Reading { range, logits, transform, normalized: None, settled: None }.run(simd, &mut self);
    }
}

impl Use for Rows<'_> {
    const LEADERS: bool = true;
    const SHAPES: bool = true;

    #[inline(always)]
    fn ranked(&self, rows: Range<usize>) -> PerLane<Option<usize>> {
        let mut classes = [None; MOST_LANES];
        if let Some(labels) = self.labels {
            for (class, row) in classes.iter_mut().zip(rows) {
                *class = labels.class(row);
            }
        }
        classes
    }

    #[inline(always)]
    fn take<S: Simd>(&mut self, simd: S, rows: Range<usize>, known: &Statistics) {
        let (first, count, classes) = (rows.start, rows.len(), self.ranked(rows.clone()));
        let Columns { log_sum_exp, argmax, max_probability, entropy, target } = &mut self.columns;
        log_sum_exp.set(first, &log_sum_exps_of(simd, self.logits, rows.clone(), known, self.transform)[..count]);
        let mut leaders = [0.0; MOST_LANES];
        for (leader, class) in leaders.iter_mut().zip(&known.leader) {
            *leader = *class as f64;
        }
        argmax.set(first, &leaders[..count]);
        max_probability.set(first, &known.largest_probabilities(simd, count, self.transform)[..count]);
        entropy.set(first, &known.entropies(simd, count)[..count]);
        let Some((log_probability, rank)) = target else { return };
        let (mut logits, mut ranks) = ([0.0; MOST_LANES], [-1.0; MOST_LANES]);
        for (lane, class) in classes.iter().enumerate() {
            if let Some(class) = class {
                logits[lane] = self.logits.row(first + lane).get(*class);
            }
        }
        let mut missed = known.missed(simd, &logits, count, self.transform);
        for (lane, class) in classes.iter().enumerate() {
            missed[lane] = if class.is_some() { 0.0 - missed[lane] } else { 0.0 };
            // A row with a NaN or +∞, or of masked classes alone, ranks nothing.
            if class.is_some() && known.log_sum_exps.get(lane).total() > 0.0 {
                ranks[lane] = known.above[lane];
            }
        }
        log_probability.set(first, &missed[..count]);
        rank.set(first, &ranks[..count]);
    }
}
