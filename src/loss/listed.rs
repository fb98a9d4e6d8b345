//! Rows whose targets list some classes. On the ways of `options.rs` their logits are looked up before a batch is read, and their
//! gradients written in their places. On the careful path they are shares of all classes ([`crate::row::Source`]); what a divergence
//! has besides is here, too.

use std::ops::Range;

use fearless_simd::{Simd, f64x8, prelude::*};

use super::plan::lanes_of;
use crate::array::Array;
use crate::dtype::{Number, with_element};
use crate::element::Element;
use crate::kernel::finish::{Asked, Coefficients, FromListed, LARGEST_RATIO, MOST_LANES, Own, PerLane};
use crate::kernel::listed::{self, Listed, ListedRows};
use crate::kernel::vertical::BlockMut;
use crate::math::{Real, exp};
use crate::row::{Exponential, Transform, log_sum_exp, probabilities};
use crate::rows::{Row, RowMut, StorePolicy};

/// A batch of rows whose targets list classes, with the logits of these.
#[derive(Debug, Default)]
pub(super) struct Batch<'a> {
    rows: Option<&'a ListedRows>,
    /// The first row.
    first: usize,
    logits: Vec<f64>,
    /// Of each row, where its logits end, and which of its classes is the own one.
    heads: Vec<(usize, usize)>,
    /// What is written of a row.
    gradients: Vec<f64>,
    entries: Vec<(usize, f64)>,
}

/// A row of a [`Batch`].
#[derive(Clone, Copy)]
struct ListedRow<'a> {
    of: Listed<'a>,
    logits: &'a [f64],
    /// The number, among the listed classes, of the first with the largest logit.
    own: usize,
}

impl<'a> Batch<'a> {
    /// Look up the logits of the classes that some rows list; false if there is no memory for them.
    #[inline(never)]
    pub(super) fn look_up(&mut self, logits: &Array, listed: &'a ListedRows, rows: Range<usize>) -> bool {
        (self.rows, self.first) = (Some(listed), rows.start);
        self.logits.clear();
        self.heads.clear();
        let (mut count, mut most) = (0, 0);
        for row in rows.clone() {
            let of_row = listed.row(row).classes.len();
            (count, most) = (count + of_row, most.max(of_row));
        }
        self.entries.clear();
        if self.logits.try_reserve(count).is_err()
            || self.heads.try_reserve(rows.len()).is_err()
            || self.gradients.try_reserve(most.saturating_sub(self.gradients.len())).is_err()
            || self.entries.try_reserve(most).is_err()
        {
            return false;
        }
        for number in rows {
            let (row, start) = (logits.row(number), self.logits.len());
            let classes = listed.row(number).classes;
            with_element!(row.dtype(), E => {
                self.logits.extend(classes.iter().map(|class| Number::to_f64(row.get_as::<E>(*class))));
            });
            let (mut own, mut largest) = (0, f64::NEG_INFINITY);
            for (index, &logit) in self.logits[start..].iter().enumerate() {
                if logit > largest {
                    (own, largest) = (index, logit);
                }
            }
            self.heads.push((self.logits.len(), own));
        }
        true
    }

    /// A row, unless it does not count.
    #[inline(always)]
    fn row(&self, row: usize) -> Option<ListedRow<'_>> {
        let number = row - self.first;
        let (end, own) = self.heads[number];
        let start = number.checked_sub(1).map_or(0, |before| self.heads[before].0);
        let of = self.rows?.row(row);
        (start < end).then_some(ListedRow { of, logits: &self.logits[start..end], own })
    }

    /// Those of some rows, no more than there are lanes, that count.
    #[inline(always)]
    fn lanes(&self, rows: Range<usize>) -> impl Iterator<Item = (usize, ListedRow<'_>)> {
        rows.enumerate().filter_map(|(lane, row)| Some((lane, self.row(row)?)))
    }

    /// The rows of a tile that count, each with the class that has the largest of the listed logits.
    #[inline(never)]
    pub(super) fn own(&self, rows: Range<usize>) -> Own {
        let mut own = Own { counts: [0.0; MOST_LANES], class: [0; MOST_LANES] };
        for (lane, row) in self.lanes(rows) {
            (own.counts[lane], own.class[lane]) = (1.0, row.of.classes[row.own]);
        }
        own
    }

    /// The classes of a row that its pass leaves out: all that are listed if what others have is asked for, else the own one.
    #[inline(always)]
    pub(super) fn apart(&self, row: usize) -> &[usize] {
        let Some(ListedRow { of, own, .. }) = self.row(row) else { return &[] };
        if self.has_tails() { of.classes } else { &of.classes[own..=own] }
    }

    /// Whether the classes that are not listed weigh something in any row.
    #[inline(always)]
    pub(super) fn has_tails(&self) -> bool {
        self.rows.is_some_and(ListedRows::has_tails)
    }

    /// Mask the listed classes of some rows but for the own ones.
    #[inline(never)]
    pub(super) fn mask<R: Real + Element<Real = R>>(&self, rows: Range<usize>, block: &mut BlockMut<R>) {
        for (lane, row) in self.lanes(rows) {
            for class in row.of.classes.iter().enumerate().filter(|(index, _)| *index != row.own) {
                block.set(*class.1, lane, Real::from_f64(f64::NEG_INFINITY));
            }
        }
    }

    /// What is asked for of some rows, and, of a divergence, what more.
    #[inline(never)]
    pub(super) fn ask<S: Simd>(
        &self,
        simd: S,
        rows: Range<usize>,
        temperature: f64,
        asked: &mut Asked,
    ) -> Option<FromListed> {
        let divergence = self.rows.and_then(ListedRows::divergence);
        let mut from = FromListed::none(divergence.unwrap_or(0.0));
        for (lane, ListedRow { of, logits, own }) in self.lanes(rows) {
            let [above, exps] = listed::sum(simd, logits, of.shares, own, temperature, self.has_tails());
            (asked.mass[lane], asked.sum[lane], asked.here[0][lane]) = (of.mass, -above, of.shares[own]);
            (from.others[lane], from.exps[lane]) = (of.mass, exps);
            (from.left[lane], from.offset[lane]) = (of.left, of.offset);
        }
        divergence.map(|_| from)
    }

    /// The gradients of the listed classes of a row, in ascending order: that of the own one, and of others `mass` times their
    /// exponentials over the own one, less `scale` times what they weigh.
    #[inline(never)]
    pub(super) fn gradients<S: Simd>(
        &mut self,
        simd: S,
        row: usize,
        temperature: f64,
        of_own: f64,
        [mass, scale]: [f64; 2],
    ) -> &[(usize, f64)] {
        let (mut gradients, mut entries) = (std::mem::take(&mut self.gradients), std::mem::take(&mut self.entries));
        entries.clear();
        if let Some(ListedRow { of, logits, own }) = self.row(row) {
            gradients.resize(logits.len(), 0.0);
            listed::gradients(simd, logits, of.shares, own, temperature, [mass, scale], &mut gradients);
            gradients[own] = of_own;
            entries.extend(of.classes.iter().copied().zip(gradients.iter().copied()));
        }
        (self.gradients, self.entries) = (gradients, entries);
        &self.entries
    }

    /// Write the gradients of the listed classes of a tile of rows; where a row needs the careful path, its logits.
    /// `masses` and `scales` are [`Self::gradients`]'.
    #[inline(never)]
    #[allow(clippy::too_many_arguments)] // some rows, and all that their gradients are made of
    pub(super) fn write_tile<S: Simd, R: Real + Element<Real = R>>(
        &mut self,
        simd: S,
        rows: Range<usize>,
        temperature: f64,
        of: &Coefficients,
        masses: &PerLane<f64>,
        scales: &PerLane<f64>,
        block: &mut BlockMut<R>,
    ) {
        for (lane, number) in rows.clone().enumerate().filter(|(lane, _)| of.careful >> lane & 1 == 0) {
            for &(class, gradient) in
                self.gradients(simd, number, temperature, of.own[lane], [masses[lane], scales[lane]])
            {
                block.set(class, lane, Real::from_f64(gradient));
            }
        }
        for lane in lanes_of(of.careful).filter(|lane| *lane < rows.len()) {
            let Some(ListedRow { of, logits, .. }) = self.row(rows.start + lane) else { continue };
            for (class, logit) in of.classes.iter().zip(logits) {
                block.set(*class, lane, Real::from_f64(*logit));
            }
        }
    }
}

/// What is known, by the careful path, of the classes that a row does not list.
#[derive(Clone, Copy, Debug)]
pub(super) struct Others {
    /// Their largest logit; −∞ if they are all masked.
    reference: f64,
    /// The sum of their exponentials relative to it.
    total: f64,
    /// The sum of listed ones over it.
    odds: f64,
    /// `lse − lse(others)`.
    pub(super) missed: f64,
}

impl Others {
    #[inline(never)]
    pub(super) fn of<S: Simd, R: Real + Element<Real = R>>(
        simd: S,
        row: Row,
        listed: &Listed,
        transform: Transform,
    ) -> Self {
        let exp_of = |above: f64| exp(simd, above / transform.temperature());
        let (mut reference, mut total, mut start) = (f64::NEG_INFINITY, 0.0, 0);
        for end in listed.classes.iter().copied().chain([row.classes()]) {
            if start < end {
                let found = log_sum_exp::<S, R>(simd, row.part(start..end), transform);
                let part = found.total();
                if total == 0.0 {
                    (reference, total) = (if found.masked { reference } else { found.reference }, part);
                } else if found.reference > reference && !found.masked {
                    (total, reference) = (total * exp_of(reference - found.reference) + part, found.reference);
                } else if !found.masked {
                    total += part * exp_of(found.reference - reference);
                } else {
                    // Of masked classes 0, or NaN.
                    total += part;
                }
            }
            start = end + 1;
        }
        let largest = listed.classes.iter().map(|class| row.get(*class)).fold(reference, f64::max);
        let sum: f64 = listed.classes.iter().map(|class| exp_of(row.get(*class) - largest)).sum();
        let odds = sum / (total * exp_of(reference - largest));
        let log = |number: f64| {
            let [log, _] = R::log_one_plus(simd, f64x8::splat(simd, number));
            log.as_slice()[0]
        };
        let missed = if odds > LARGEST_RATIO {
            (largest - reference) / transform.temperature() + log(sum - 1.0) - log(total - 1.0)
        } else {
            log(odds)
        };
        let missed = if total == 0.0 { f64::INFINITY } else { missed };
        Self { reference, total, odds, missed }
    }

    /// Write `scale·(mass·p − t)`, where t is what a listed class weighs, and of the others their share of what they weigh together.
    #[allow(clippy::too_many_arguments)] // a row, what is known of it, and where its gradient goes
    pub(super) fn write_gradient<S: Simd, R: Real + Element<Real = R>>(
        &self,
        simd: S,
        row: Row,
        mut out: RowMut,
        listed: &Listed,
        scale: f64,
        transform: Transform,
        store: StorePolicy,
    ) {
        let Self { reference, total, odds, missed } = *self;
        // Before anything is written: that may be over the logits.
        let logits: Vec<f64> = listed.classes.iter().map(|class| row.get(*class)).collect();
        let largest = logits.iter().copied().fold(reference, f64::max);
        let exp_of = |logit: f64| exp(simd, (logit - largest) / transform.temperature());
        let exps: Vec<f64> = logits.iter().map(|logit| exp_of(*logit)).collect();
        let others = if total == 0.0 { 0.0 } else { total * exp_of(reference) };
        let (listed_sum, mass) = (exps.iter().sum::<f64>(), listed.mass + listed.left);
        let sum = listed_sum + others;
        if sum.is_nan() || missed.is_nan() {
            out.fill(f64::NAN);
            return;
        }
        if total == 0.0 {
            out.fill(0.0);
        } else {
            let weight =
                if odds > LARGEST_RATIO { -listed.left } else { (listed.mass - listed.left * odds) / (1.0 + odds) };
            let of = Exponential { reference, factor: scale * weight / total, transform };
            probabilities::<S, R>(simd, row, out.reborrow(), of, store);
        }
        for (index, (class, share)) in listed.classes.iter().zip(listed.shares).enumerate() {
            let p = exps[index] / sum;
            let gradient = if p > 0.5 {
                let rest = exps[..index].iter().chain(&exps[index + 1..]).sum::<f64>() + others;
                (mass - share) - mass * (rest / sum)
            } else {
                mass * p - share
            };
            let is_masked = logits[index] == f64::NEG_INFINITY;
            out.set_rounded(*class, if is_masked { 0.0 } else { scale * gradient });
        }
    }
}
