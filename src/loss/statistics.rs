//! What can be told of every row in one pass: log-sum-exp, leader, entropy, and where the target stands.

use std::marker::PhantomData;

use fearless_simd::Simd;

use super::{Check, Chunks, labels::Labels};
use crate::array::{Array, ArrayMut, Parts, RowsMut};
use crate::dtype::with_element;
use crate::element::Element;
use crate::error::Result;
use crate::parallel::map_chunks;
use crate::row::batch::{MOST_LANES, PerLane};
use crate::row::tile::{Batch, Tile, Transposed, batches};
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
    with_element!(logits.dtype(), E => {
        map_chunks(chunks.count(), chunks.bytes(logits.classes(), size_of::<E>()), check, |chunk| {
            let columns = columns.each().map(|parts: &Parts| parts.take(chunk));
            let element = PhantomData;
            level.run(Rows::<E> { range: chunks.rows_of(chunk), logits, labels, transform, columns, element });
        })
        .map(|_| ())
    })
}

struct Rows<'a, E> {
    range: std::ops::Range<usize>,
    logits: &'a Array<'a>,
    labels: Option<&'a Labels>,
    transform: Transform,
    columns: Columns<RowsMut<'a>>,
    element: PhantomData<E>,
}

impl<E: Element> Kernel for Rows<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Columns { mut log_sum_exp, mut argmax, mut max_probability, mut entropy, mut target } = self.columns;
        let mut room = Transposed::uninit();
        for batch in batches::<E>(self.logits, self.range.clone()) {
            let (first, rows) = (batch.first, batch.rows);
            let (mut classes, mut logits) = ([None; MOST_LANES], [0.0; MOST_LANES]);
            for lane in 0..rows {
                classes[lane] = self.labels.and_then(|labels| labels.class(first + lane));
                if let Some(class) = classes[lane] {
                    logits[lane] = self.logits.row(first + lane).get(class);
                }
            }
            let tile = batch.tile::<S, E>(simd, self.transform, &mut room);
            let found = read::<S, E>(simd, &batch, tile, &classes, self.transform);
            let [mut values, mut missed, probabilities] = found.columns(simd, &logits, rows, self.transform);
            batch.find_infinite(&found.log_sum_exps, &mut values);
            let entropies = found.entropies(simd, rows);
            let (mut leaders, mut ranks) = ([0.0; MOST_LANES], [-1.0; MOST_LANES]);
            for lane in 0..rows {
                leaders[lane] = found.leader[lane] as f64;
                let counts = classes[lane].is_some();
                missed[lane] = if counts { 0.0 - missed[lane] } else { 0.0 };
                if counts && found.log_sum_exps.get(lane).total() > 0.0 {
                    ranks[lane] = found.above[lane];
                }
            }
            log_sum_exp.set(first, &values[..rows]);
            argmax.set(first, &leaders[..rows]);
            max_probability.set(first, &probabilities[..rows]);
            entropy.set(first, &entropies[..rows]);
            if let Some((log_probability, rank)) = &mut target {
                log_probability.set(first, &missed[..rows]);
                rank.set(first, &ranks[..rows]);
            }
        }
    }
}

/// The statistics of a batch of rows, those of `tile` if they are across lanes, and the rank of a class in each.
#[inline(always)]
pub(super) fn read<S: Simd, E: Element>(
    simd: S,
    batch: &Batch,
    tile: Option<Tile>,
    ranked: &PerLane<Option<usize>>,
    transform: Transform,
) -> Statistics {
    let Some(tile) = tile else {
        let mut found = Statistics::default();
        for lane in 0..batch.rows {
            found.read::<S, E>(simd, lane, batch.array.row(batch.first + lane), ranked[lane], transform);
        }
        return found;
    };
    let mut found = Statistics::of_tile::<S, E>(simd, tile, ranked, transform);
    for lane in 0..batch.rows {
        found.find_nan(lane, batch.array.row(batch.first + lane));
    }
    found
}
