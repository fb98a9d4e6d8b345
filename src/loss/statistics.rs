//! What can be told of every row in one pass: log-sum-exp, leader, entropy, and where the target stands.

use fearless_simd::Simd;

use super::{Check, Chunks, labels::Labels};
use crate::element::Element;
use crate::error::Result;
use crate::parallel::map_chunks;
use crate::row::{Transform, statistics};
use crate::simd::{self, Kernel};
use crate::view::{Column, View};

/// The results, a number a row each.
#[derive(Clone, Copy, Debug)]
pub struct Columns {
    /// The log-sum-exp.
    pub log_sum_exp: Column,
    /// The class of the largest logit.
    pub argmax: Column,
    /// Its probability.
    pub max_probability: Column,
    /// The entropy of the softmax, in nats.
    pub entropy: Column,
    /// The log-probability of the target, and how many classes rank above it.
    pub target: Option<(Column, Column)>,
}

/// Write the statistics of every row. An ignored target has log-probability 0 and rank −1; one in a row with a NaN or
/// +∞, or of only −∞, has rank −1.
///
/// # Errors
/// What `check` returned.
pub fn row_statistics<E: Element>(
    logits: &View<E>,
    labels: Option<&Labels>,
    transform: Transform,
    columns: Columns,
    check: Check,
) -> Result<()> {
    assert!(labels.is_none_or(|labels| labels.rows() == logits.rows()));
    let chunks = Chunks::new(logits.rows(), logits.classes());
    let level = simd::level();
    map_chunks(chunks.count(), chunks.bytes(logits.classes(), size_of::<E>()), check, |chunk| {
        level.run(Rows { range: chunks.rows_of(chunk), logits, labels, transform, columns });
    })
    .map(|_| ())
}

struct Rows<'a, E> {
    range: std::ops::Range<usize>,
    logits: &'a View<E>,
    labels: Option<&'a Labels>,
    transform: Transform,
    columns: Columns,
}

impl<E: Element> Kernel for Rows<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Columns { log_sum_exp, argmax, max_probability, entropy, target } = self.columns;
        for index in self.range {
            let row = self.logits.row(index);
            let class = self.labels.and_then(|labels| labels.class(index));
            let found = statistics(simd, row, class, self.transform);
            // SAFETY: this chunk alone works on its rows.
            unsafe {
                log_sum_exp.set(index, found.log_sum_exp.value(simd, self.transform));
                argmax.set(index, found.leader as f64);
                max_probability.set(index, found.leader_probability);
                entropy.set(index, found.entropy);
                if let Some((log_probability, rank)) = target {
                    let missed = |class| found.log_sum_exp.above(simd, row.get(class).to_f64(), self.transform);
                    log_probability.set(index, 0.0 - class.map_or(0.0, missed));
                    let ranked = class.is_some() && found.log_sum_exp.total() > 0.0;
                    rank.set(index, if ranked { found.above } else { -1.0 });
                }
            }
        }
    }
}
