//! Classes across lanes: a row at a time, block by block, and long ones in pieces (`parallel/pieces.rs`): relative to the same logit,
//! what was summed of the pieces adds up.

use std::ops::Range;

use fearless_simd::{Simd, f64x8, prelude::*};

use super::cap::{self, Cap, Capped, Softcap, relative};
use super::finish::{MOST_LANES, Sum, bits};
use super::shares::{Divergence, Given, Shares, Weighed, moved_lanes, unit};
use super::vertical::{Beside, Block, Rows, Strip};
use crate::array::Array;
use crate::dtype::{Number, with_element};
use crate::element::{Element, Lanes};
use crate::math::{Real, Reference, Scale, Total, Twice, with_vectors_at_a_time};
use crate::parallel::in_pieces;
use crate::rows::{BLOCK, Row, RowMut, Scratch, StorePolicy, same, same_mut};
use crate::simd::prefetch_ahead;

/// Vectors that a loop takes at a time; blocks are padded to so many.
pub(super) const TOGETHER: usize = 4;

/// The vectors of a group from a place on, of `left` values and masked classes behind them.
///
/// # Safety
/// So many values are readable.
#[inline(always)]
unsafe fn load_group<S: Simd, E: Element>(simd: S, place: *const E, left: usize) -> [Lanes<S, E>; TOGETHER] {
    let mut vectors = [E::Real::splat(simd, f64::NEG_INFINITY); TOGETHER];
    for (index, vector) in vectors.iter_mut().enumerate() {
        let (first, lanes) = (index * E::Real::LANES, E::Real::LANES);
        // SAFETY: whole vectors of what is readable, by the caller's promise, or what is left of it.
        unsafe {
            if first + lanes <= left {
                *vector = E::load(simd, place.add(first));
            } else if first < left {
                *vector = E::load_part(simd, place.add(first), left - first);
            }
        }
    }
    vectors
}

/// Write the vectors of a group to a place that has room for `left` values.
///
/// # Safety
/// So many values are writeable.
#[inline(always)]
unsafe fn store_group<S: Simd, E: Element>(simd: S, place: *mut E, left: usize, vectors: [Lanes<S, E>; TOGETHER]) {
    for (index, vector) in vectors.into_iter().enumerate() {
        let (first, lanes) = (index * E::Real::LANES, E::Real::LANES);
        // SAFETY: whole vectors of what is writeable, by the caller's promise, or what is left of it.
        unsafe {
            if first + lanes <= left {
                E::store(simd, place.add(first), vector);
            } else if first < left {
                E::store_part(simd, place.add(first), left - first, vector);
            }
        }
    }
}

/// The numbers of the lanes, as those of classes are compared.
#[inline(always)]
fn numbers<S: Simd, R: Real>(simd: S) -> R::Lanes<S> {
    R::classes(simd, &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15])
}

/// Sum the exponentials of a row but for the classes `apart`, in ascending order, relative to that of one of them which has this
/// logit; if others are out of reach, once more relative to the largest. Without such the logit is that of any class, whose
/// exponential is subtracted: that costs the digits of others that are far fewer.
#[inline(always)]
pub fn sum<S: Simd, R: Real + Element<Real = R>>(simd: S, row: Row, apart: &[usize], logit: R, scale: Scale<R>) -> Sum {
    let of_piece = |part| sum_piece(simd, row, part, apart, logit, scale);
    let (mut sum, exp) = in_pieces(row.classes(), of_piece, |all: &mut (Sum, f64), next| {
        if next.0.octaves > all.0.octaves {
            all.1 = next.1;
        }
        all.0.merge(next.0);
    });
    if apart.is_empty() {
        // NaN stays what it is.
        sum.others = if sum.others < exp { 0.0 } else { sum.others - exp };
    }
    sum
}

/// [`sum`] of some classes, and the exponential of the logit that it is relative to as it was added.
#[inline(never)]
fn sum_piece<S: Simd, R: Real + Element<Real = R>>(
    simd: S,
    row: Row,
    part: Range<usize>,
    apart: &[usize],
    logit: R,
    scale: Scale<R>,
) -> (Sum, f64) {
    simd.vectorize(
        #[inline(always)]
        || {
            let logits = R::Lanes::<S>::simd_from(simd, logit);
            let (mut reference, rest) = Reference::<S, R>::next_to(simd, logits, scale);
            let suits = Number::to_f64(logit).abs() < scale.largest_reference();
            let (mut others, largest) = sum_from::<S, R>(simd, row, part.clone(), apart, &reference);
            let mut largest = R::Lanes::<S>::simd_from(simd, R::largest(largest));
            let octaves = Reference::<S, R>::octaves_to(simd, largest);
            let of_lane = Number::to_f64(octaves.as_slice()[0]);
            if suits && of_lane > 0.0 {
                reference = reference.raised(simd, octaves);
                (others, largest) = sum_from::<S, R>(simd, row, part, apart, &reference);
            }
            let exp = if apart.is_empty() {
                let exp = reference.terms(simd, [logits]).add_to(simd, 0, R::splat(simd, 0.0));
                Number::to_f64(exp.as_slice()[0])
            } else {
                0.0
            };
            let reach = bits::<S, _>(Reference::<S, R>::within_reach(simd, largest));
            let suits = suits && reach == u32::MAX >> (32 - R::LANES);
            (Sum { others, lost: 0.0, octaves: of_lane, rest: Number::to_f64(rest.as_slice()[0]), suits }, exp)
        },
    )
}

/// [`sum`] from a reference: the sum, and what was largest of `rounded` in each lane.
///
/// For each type that is stored in a loop of its own: converted first, rows of 16-bit logits took a fifth longer.
#[inline(always)]
fn sum_from<S: Simd, R: Real + Element<Real = R>>(
    simd: S,
    row: Row,
    part: Range<usize>,
    apart: &[usize],
    reference: &Reference<S, R>,
) -> (f64, R::Lanes<S>) {
    let mut largest = [R::default(); MOST_LANES];
    let apart = &apart[apart.partition_point(|class| *class < part.start)..];
    let total = with_element!(row.dtype(), E => {
        sum_stored::<S, E>(simd, row, part, apart, same(reference), same_mut(&mut largest))
    });
    (total, R::Lanes::<S>::from_slice(simd, &largest[..R::LANES]))
}

#[inline(never)]
fn sum_stored<S: Simd, E: Element>(
    simd: S,
    row: Row,
    part: Range<usize>,
    mut apart: &[usize],
    reference: &Reference<S, E::Real>,
    largest_of_lanes: &mut [E::Real; MOST_LANES],
) -> f64 {
    simd.vectorize(
        #[inline(always)]
        || {
            let (zero, group) = (E::Real::splat(simd, 0.0), TOGETHER * E::Real::LANES);
            let mut stored = Stored::<E>::new();
            let mut largest = zero;
            let mut total = Total::zero(simd);
            for start in part.clone().step_by(BLOCK) {
                let length = BLOCK.min(part.end - start);
                let place = stored.lend(simd, row, start, length);
                let (mut sums, mut sum) = ([zero; TOGETHER], zero);
                for first in (0..length).step_by(group) {
                    let (here, left) = (start + first, length - first);
                    let mut of_group: &[usize] = &[];
                    if apart.first().is_some_and(|class| *class < here + group) {
                        (of_group, apart) = apart.split_at(apart.partition_point(|class| *class < here + group));
                    }
                    // SAFETY: what is left of the row's block, or of a scratch that has as much, from a group on.
                    unsafe {
                        let place = place.add(first);
                        if !of_group.is_empty() || left < group {
                            let x = load_group::<S, E>(simd, place, left);
                            add_group::<S, E::Real, true>(
                                simd,
                                reference,
                                #[inline(always)]
                                |k| x[k],
                                (of_group, here),
                                &mut sums,
                                &mut largest,
                            );
                        } else {
                            add_group::<S, E::Real, false>(
                                simd,
                                reference,
                                #[inline(always)]
                                |k| E::load(simd, place.add(k * E::Real::LANES)),
                                (of_group, here),
                                &mut sums,
                                &mut largest,
                            );
                        }
                    }
                    // Into a sum of few terms: a large one, once it is there, is rounded with each that comes after it.
                    if first / group % 2 == 1 || first + group >= length {
                        let two = E::Real::CHAINS == 2;
                        sum += if two { sums[0] + sums[1] } else { (sums[0] + sums[1]) + (sums[2] + sums[3]) };
                        sums = [zero; TOGETHER];
                    }
                }
                E::Real::add_to(&mut total, sum);
            }
            largest.store_slice(&mut largest_of_lanes[..E::Real::LANES]);
            E::Real::sum_of_lanes(&total)
        },
    )
}

/// Add the exponentials of a group that begins with this class, but for some of its classes if there are such (`APART`).
#[inline(always)]
fn add_group<S: Simd, R: Real, const APART: bool>(
    simd: S,
    reference: &Reference<S, R>,
    load: impl Fn(usize) -> R::Lanes<S>,
    (apart, first): (&[usize], usize),
    sums: &mut [R::Lanes<S>; TOGETHER],
    largest: &mut R::Lanes<S>,
) {
    with_vectors_at_a_time!(S, K => {
        for k in (0..TOGETHER).step_by(K) {
            let mut x = [*largest; K];
            for (index, x) in x.iter_mut().enumerate() {
                *x = load(k + index);
            }
            let mut terms = reference.terms(simd, x);
            for class in if APART { apart } else { &[] } {
                for index in 0..K {
                    let place = (class - first).wrapping_sub((k + index) * R::LANES);
                    let power = terms.power[index];
                    terms.power[index] = R::replace(simd, power, numbers::<S, R>(simd), place, R::splat(simd, 0.0));
                }
            }
            for index in 0..K {
                *largest = R::larger::<S>(terms.rounded[index], *largest);
                let chain = (k + index) % R::CHAINS;
                sums[chain] = terms.add_to(simd, index, sums[chain]);
            }
        }
    });
}

/// A row as rows across lanes which are all the same: number v·lanes + l of its classes is class v of lane l.
#[inline(always)]
pub(super) fn across<S: Simd, R: Real + Element<Real = R>>(
    simd: S,
    own: usize,
    logit: R,
    scale: Scale<R>,
) -> Rows<S, R> {
    let [nowhere, vector] = [u32::MAX as usize, own / R::LANES].map(
        #[inline(always)]
        |number| R::class(simd, number),
    );
    let vectors = R::replace(simd, nowhere, numbers::<S, R>(simd), own % R::LANES, vector);
    let zero = R::splat(simd, 0.0);
    let logits = R::Lanes::<S>::simd_from(simd, logit);
    Rows::relative_to(simd, logits, vectors, zero.simd_eq(zero), scale)
}

/// Vectors side by side.
///
/// # Safety
/// [`Block::new`]'s.
#[inline(always)]
pub(super) unsafe fn side_by_side<'a, R: Real + Element<Real = R>>(place: *const R, vectors: usize) -> Block<'a, R> {
    // SAFETY: the caller's promise.
    unsafe { Block::new(place, (R::LANES * size_of::<R>()) as isize, vectors) }
}

/// Call `f` for each block of a part of a row: with the number of its first class, how many it has, and its vectors.
#[inline(always)]
pub(super) fn for_each_block<S: Simd, R: Real + Element<Real = R>>(
    simd: S,
    row: Row,
    part: Range<usize>,
    mut f: impl FnMut(usize, usize, &Block<R>),
) {
    let mut copy = [R::default(); BLOCK];
    for start in part.clone().step_by(BLOCK) {
        let length = BLOCK.min(part.end - start);
        let place = row.lend(simd, start, length, &mut copy);
        // SAFETY: so many vectors are readable: of the row, or of the padded copy.
        f(start, length, &unsafe { side_by_side(place, length.div_ceil(R::LANES)) });
    }
}

/// Add the exponentials of a block from class `start` on, in which the own class may be.
#[inline(always)]
pub(super) fn add<S: Simd, R: Real + Element<Real = R>, B: Beside<S, R>>(
    simd: S,
    rows: &mut Rows<S, R>,
    block: &Block<R>,
    beside: &mut B,
    start: usize,
    own: usize,
) {
    let vectors = block.classes();
    if start <= own && own < start + BLOCK {
        rows.add::<B, true>(simd, block, beside, start / R::LANES, 0, vectors);
    } else {
        rows.add::<B, false>(simd, block, beside, start / R::LANES, 0, vectors);
    }
}

/// The first class with the largest logit of a row, and what that is.
#[inline(always)]
pub fn leader<S: Simd, R: Real + Element<Real = R>>(simd: S, row: Row) -> (usize, R) {
    let (first, top) = top(simd, row, row.classes());
    let (_, leader) = row.equal_to(simd, first, BLOCK.min(row.classes() - first), top);
    (leader.unwrap_or(first), top)
}

/// The largest logit among the first `classes` of a row, and where the first block begins that has it.
#[inline(always)]
pub fn top<S: Simd, R: Real + Element<Real = R>>(simd: S, row: Row, classes: usize) -> (usize, R) {
    let of_piece = |part: Range<usize>| {
        let mut top = <R as Real>::from_f64(f64::NEG_INFINITY);
        let first = with_element!(row.dtype(), E => {
            block_of_leader::<S, E>(simd, row, part.clone(), same_mut(&mut top))
        });
        (first, top)
    };
    in_pieces(classes, of_piece, |all, next| {
        if next.1 > all.1 {
            *all = next;
        }
    })
}

/// Where the first block of a part begins that has the largest logit.
#[inline(never)]
fn block_of_leader<S: Simd, E: Element>(simd: S, row: Row, part: Range<usize>, top: &mut E::Real) -> usize {
    simd.vectorize(
        #[inline(always)]
        || {
            let lowest = E::Real::splat(simd, f64::NEG_INFINITY);
            let (mut first, mut tops, group) = (part.start, lowest, TOGETHER * E::Real::LANES);
            let mut stored = Stored::<E>::new();
            for start in part.clone().step_by(BLOCK) {
                let length = BLOCK.min(part.end - start);
                let place = stored.lend(simd, row, start, length);
                let mut largest = [lowest; TOGETHER];
                for index in (0..length).step_by(group) {
                    // SAFETY: what is left of the row's block, or of a scratch that has as much, from a group on.
                    let group = unsafe { Group::new(simd, place.add(index), length - index) };
                    for (k, largest) in largest.iter_mut().enumerate() {
                        // NaN is left out: on x86 `a.max(b)` is b when either is NaN.
                        *largest = group.load(simd, k).max(*largest);
                    }
                }
                let largest = largest[0].max(largest[1]).max(largest[2].max(largest[3]));
                // Few blocks are led by a larger one than those before.
                if largest.simd_gt(tops).any_true() {
                    (*top, first) = (E::Real::largest(largest), start);
                    tops = Lanes::<S, E>::simd_from(simd, *top);
                }
            }
            first
        },
    )
}

/// The shares of the classes of a row: `weight·(keep·number + uniform)`.
#[derive(Clone, Copy, Debug)]
pub struct RowShares<'a> {
    /// The numbers of all rows, and the row.
    pub numbers: Option<(&'a Array<'a>, usize)>,
    /// What is left of them.
    pub keep: f64,
    /// What every class gets instead.
    pub uniform: f64,
    /// A weight for each class.
    pub weight: Option<&'a [f64]>,
}

impl<'a> RowShares<'a> {
    /// Whether shares are the numbers.
    #[inline(always)]
    fn are_numbers(&self) -> bool {
        self.weight.is_none() && self.keep == 1.0 && self.uniform == 0.0
    }

    /// The shares of a whole block of numbers of f32 from class `start` on that lie side by side and are shares.
    #[inline(always)]
    fn lend(&self, start: usize, length: usize) -> Option<Block<'a, f32>> {
        let (numbers, row) = self.numbers.filter(|_| length == BLOCK && self.are_numbers())?;
        let place = numbers.lend::<f32>(row * numbers.classes() + start, BLOCK)?;
        // SAFETY: so many numbers are the array's, which is readable for `'a`.
        Some(unsafe { side_by_side(place, BLOCK / f32::LANES) })
    }

    /// Write the shares of `length` classes from `start` on, and 0 behind them; whether all numbers are at least 0.
    #[inline(always)]
    fn fill<S: Simd>(&self, simd: S, start: usize, length: usize, block: &mut [f64; BLOCK]) -> bool {
        let (block, rest) = block.split_at_mut(length);
        rest.fill(0.0);
        let mut fine = true;
        if let Some((numbers, row)) = self.numbers {
            numbers.read(simd, row * numbers.classes() + start, block);
            // Without a way out of the loop, so that it is done in vectors.
            for number in &mut *block {
                fine &= *number >= 0.0;
            }
            if !self.are_numbers() {
                for number in &mut *block {
                    *number = *number * self.keep + self.uniform;
                }
            }
        } else {
            block.fill(self.uniform);
        }
        if let Some(weight) = self.weight {
            for (share, weight) in block.iter_mut().zip(&weight[start..]) {
                *share *= weight;
            }
        }
        fine
    }

    /// The share of a class.
    #[inline(never)]
    pub fn of<S: Simd>(&self, simd: S, class: usize) -> f64 {
        let mut block = [0.0; BLOCK];
        self.fill(simd, class, 1, &mut block);
        block[0]
    }

    /// Call `f` with the shares of `length` classes from `start` on as those of tile 0, and with whether all numbers are at least 0,
    /// as far as that is not found by the shares' sum.
    #[inline(always)]
    fn with<S: Simd, R: Real>(
        &self,
        simd: S,
        start: usize,
        length: usize,
        room: &mut [f64; BLOCK],
        f: impl FnOnce(&Shares, bool),
    ) {
        let given = Shares { given: Given::Nothing, keep: 1.0, uniform: 0.0, weight: None };
        if self.numbers.is_none() && self.weight.is_none() && length == BLOCK {
            return f(&Shares { uniform: self.uniform, ..given }, true);
        }
        if let Some(block) = self.lend(start, length).filter(|_| R::LANES == f32::LANES) {
            // SAFETY: it is the only tile.
            return f(&Shares { given: Given::Single(unsafe { Strip::new(block, f32::LANES) }), ..given }, true);
        }
        if let (None, Some(weight), true) = (self.numbers, self.weight, length == BLOCK) {
            let weight: &[f64; BLOCK] = weight[start..start + BLOCK].try_into().expect("a block of them");
            return f(&Shares { given: lanes_of::<R>(weight), keep: self.uniform, ..given }, true);
        }
        let fine = self.fill(simd, start, length, room);
        f(&Shares { given: lanes_of::<R>(room), ..given }, fine);
    }
}

/// Numbers of a block as those of tile 0.
#[inline(always)]
fn lanes_of<R: Real>(block: &[f64; BLOCK]) -> Given<'_> {
    let step = (R::LANES * size_of::<f64>()) as isize;
    // SAFETY: so many vectors are the block, each of one tile of f64, or of two that are side by side.
    Given::Double(unsafe { Strip::new(Block::new(block.as_ptr(), step, BLOCK / R::LANES), f64::LANES) })
}

/// What is known of a row besides.
#[derive(Clone, Copy, Debug)]
pub struct Weight {
    /// The shares.
    pub mass: f64,
    /// `Σ t·(x − x(own))`; beside a teacher `Σ exp·((x − x(own')) − (x' − x'(own')))`.
    pub sum: f64,
    /// Whether a number was none that is at least 0.
    pub bad: bool,
}

/// What is known of a piece, what was summed of shares, and whether all numbers are at least 0, as far as that is not found by the
/// shares' sum.
type Piece<S> = (Sum, Weighed<S>, bool);

#[inline(always)]
fn merge<S: Simd, R: Real>(all: &mut Piece<S>, (sum, weighed, fine): Piece<S>) {
    all.0.merge(sum);
    all.1.merge::<R>(&weighed);
    all.2 &= fine;
}

/// [`sum`], and the shares; `total` is the mass of shares that are the same for all rows.
#[inline(always)]
pub fn sum_shares<S: Simd, R: Real + Element<Real = R>>(
    simd: S,
    row: Row,
    own: usize,
    logit: R,
    shares: Option<(&RowShares, Option<f64>)>,
    scale: Scale<R>,
) -> (Sum, Weight) {
    let all = shares.map(|(shares, _)| shares);
    let of_piece = |part| sum_shares_of::<S, R>(simd, row, part, (own, logit), all, scale);
    let piece = in_pieces(row.classes(), of_piece, merge::<S, R>);
    let (sum, mut weight) = weigh::<S, R>(simd, &piece, shares);
    let Some((shares, total)) = shares else { return (sum, weight) };
    if !weight.sum.is_finite() && !weight.bad {
        // Perhaps for masked classes.
        let of_piece = |part| sum_masked::<S, R>(simd, row, part, logit, shares);
        let weighed = in_pieces(row.classes(), of_piece, |all, next| all.merge::<R>(&next));
        weight.sum = weigh::<S, R>(simd, &(sum, weighed, true), Some((shares, total))).1.sum;
    }
    (sum, weight)
}

/// What is known of a row, and of its shares if it has such.
#[inline(never)]
fn weigh<S: Simd, R: Real>(
    simd: S,
    (sum, weighed, fine): &Piece<S>,
    shares: Option<(&RowShares, Option<f64>)>,
) -> (Sum, Weight) {
    simd.vectorize(
        #[inline(always)]
        || {
            let Some((_, total)) = shares else { return (*sum, Weight { mass: 0.0, sum: 0.0, bad: false }) };
            let ([mass, of_all], bad) = weighed.of_all::<R>(total);
            (*sum, Weight { mass, sum: of_all, bad: bad || !fine })
        },
    )
}

/// [`sum_shares`] of some classes.
#[inline(never)]
fn sum_shares_of<S: Simd, R: Real + Element<Real = R>>(
    simd: S,
    row: Row,
    part: Range<usize>,
    (own, logit): (usize, R),
    shares: Option<&RowShares>,
    scale: Scale<R>,
) -> Piece<S> {
    simd.vectorize(
        #[inline(always)]
        || {
            let mut rows = across(simd, own, logit, scale);
            let mut weighed = Weighed::relative_to(simd, R::twice(R::Lanes::<S>::simd_from(simd, logit)));
            let (mut numbers, mut all_fine) = ([0.0; BLOCK], true);
            for_each_block(
                simd,
                row,
                part.clone(),
                #[inline(always)]
                |start, length, block| {
                    add(simd, &mut rows, block, &mut (), start, own);
                    let Some(shares) = shares else { return };
                    shares.with::<S, R>(
                        simd,
                        start,
                        length,
                        &mut numbers,
                        #[inline(always)]
                        |shares, fine| {
                            all_fine &= fine;
                            if length == BLOCK {
                                weighed.add::<R, false>(simd, block, shares, 0, 0..block.classes());
                            } else {
                                weighed.add::<R, true>(simd, block, shares, 0, 0..block.classes());
                            }
                        },
                    );
                },
            );
            if rows.raise_together(simd) {
                for_each_block(
                    simd,
                    row,
                    part,
                    #[inline(always)]
                    |start, _, block| add(simd, &mut rows, block, &mut (), start, own),
                );
            }
            (rows.together(simd), weighed, all_fine)
        },
    )
}

/// What is summed of shares of some classes that may be masked.
#[inline(never)]
fn sum_masked<S: Simd, R: Real + Element<Real = R>>(
    simd: S,
    row: Row,
    part: Range<usize>,
    logit: R,
    shares: &RowShares,
) -> Weighed<S> {
    simd.vectorize(
        #[inline(always)]
        || {
            let mut weighed = Weighed::relative_to(simd, R::twice(R::Lanes::<S>::simd_from(simd, logit)));
            let mut numbers = [0.0; BLOCK];
            for_each_block(
                simd,
                row,
                part,
                #[inline(always)]
                |start, length, block| {
                    shares.with::<S, R>(
                        simd,
                        start,
                        length,
                        &mut numbers,
                        #[inline(always)]
                        |shares, _| weighed.add::<R, true>(simd, block, shares, 0, 0..block.classes()),
                    );
                },
            );
            weighed
        },
    )
}

/// [`sum_shares`] of a row under a cap, relative to the largest logit.
#[inline(always)]
pub fn sum_capped<S: Simd, R: Real + Element<Real = R>>(
    simd: S,
    row: Row,
    own: usize,
    logit: R,
    shares: Option<(&RowShares, Option<f64>)>,
    scale: Scale<R>,
    softcap: Softcap,
) -> (Sum, Weight) {
    let all = shares.map(|(shares, _)| shares);
    let of_piece = |part| sum_capped_of::<S, R>(simd, row, part, (own, logit), all, scale, softcap);
    weigh::<S, R>(simd, &in_pieces(row.classes(), of_piece, merge::<S, R>), shares)
}

/// [`sum_capped`] of some classes.
#[inline(never)]
fn sum_capped_of<S: Simd, R: Real + Element<Real = R>>(
    simd: S,
    row: Row,
    part: Range<usize>,
    (own, logit): (usize, R),
    shares: Option<&RowShares>,
    scale: Scale<R>,
    softcap: Softcap,
) -> Piece<S> {
    simd.vectorize(
        #[inline(always)]
        || {
            let cap = Cap::new::<R>(simd, softcap.height);
            let reference = cap::reference::<S, R>(&cap, simd, R::Lanes::<S>::simd_from(simd, logit));
            let mut rows = across(simd, own, R::default(), scale);
            let mut weighed = Weighed::relative_to(simd, reference);
            let (mut numbers, mut all_fine) = ([0.0; BLOCK], true);
            let (mut capped, mut above) = (Capped::<R, BLOCK>::default(), [R::default(); BLOCK]);
            for_each_block(
                simd,
                row,
                part,
                #[inline(always)]
                |start, length, block| {
                    let vectors = block.classes();
                    let above = cap_block(simd, (&cap, softcap.unit), block, reference, &mut capped, &mut above);
                    add(simd, &mut rows, &above, &mut (), start, own);
                    let Some(shares) = shares else { return };
                    shares.with::<S, R>(
                        simd,
                        start,
                        length,
                        &mut numbers,
                        #[inline(always)]
                        |shares, fine| {
                            all_fine &= fine;
                            weighed.add_capped::<R>(simd, &capped, shares, 0, 0..vectors);
                        },
                    );
                },
            );
            (rows.together(simd), weighed, all_fine)
        },
    )
}

/// By how much the capped logits of a block are above a reference; their values and the cap's slopes are in `capped`.
#[inline(always)]
fn cap_block<'a, S: Simd, R: Real + Element<Real = R>>(
    simd: S,
    (cap, unit): (&Cap<S>, f64),
    block: &Block<R>,
    reference: Twice<S>,
    capped: &mut Capped<R, BLOCK>,
    above: &'a mut [R; BLOCK],
) -> Block<'a, R> {
    let vectors = block.classes();
    for (vector, above) in above[..vectors * R::LANES].chunks_exact_mut(R::LANES).enumerate() {
        let [x] = block.load::<S, 1>(simd, vector);
        let (value, slope) = cap.of::<R>(simd, x);
        capped.set(vector, value, slope);
        relative::<S, R>(value, reference, unit).store_slice(above);
    }
    // SAFETY: so many vectors were written.
    unsafe { side_by_side(above.as_ptr(), vectors) }
}

/// [`sum`] of a teacher, and what is summed of its pupil; `moved` is by how much the pupil's logit of the teacher's own class is
/// above it, as a sum of two.
#[inline(always)]
pub fn sum_beside<S: Simd, R: Real + Element<Real = R>>(
    simd: S,
    rows: [Row; 2],
    own: usize,
    logit: R,
    moved: [f64; 2],
    scale: Scale<R>,
) -> (Sum, f64) {
    let merge = |all: &mut (Sum, Total<S>), (sum, beside)| {
        all.0.merge(sum);
        all.1.add::<R>(beside);
    };
    let of_piece = |part| sum_beside_of::<S, R, false>(simd, rows, part, (own, logit), moved, scale);
    let (of_teacher, sum) = in_pieces(rows[0].classes(), of_piece, merge);
    let sum = sum.value() * unit::<R>();
    if sum.is_finite() {
        return (of_teacher, sum);
    }
    // Perhaps for masked classes.
    let of_piece = |part| sum_beside_of::<S, R, true>(simd, rows, part, (own, logit), moved, scale);
    (of_teacher, in_pieces(rows[0].classes(), of_piece, merge).1.value() * unit::<R>())
}

/// [`sum_beside`] of some classes.
#[inline(never)]
fn sum_beside_of<S: Simd, R: Real + Element<Real = R>, const MASKED: bool>(
    simd: S,
    [teacher, pupil]: [Row; 2],
    part: Range<usize>,
    (own, logit): (usize, R),
    moved: [f64; 2],
    scale: Scale<R>,
) -> (Sum, Total<S>) {
    simd.vectorize(
        #[inline(always)]
        || {
            let mut rows = across(simd, own, logit, scale);
            let mut copy = [R::default(); BLOCK];
            let moved = moved.map(
                #[inline(always)]
                |part| [part; MOST_LANES],
            );
            let (moved, mut sum) = (moved_lanes::<S, R>(simd, &moved), Total::zero(simd));
            for_each_block(
                simd,
                teacher,
                part,
                #[inline(always)]
                |start, length, block| {
                    let place = pupil.lend(simd, start, length, &mut copy);
                    // SAFETY: so many vectors are readable: of the row, or of the padded copy.
                    let pupil = unsafe { side_by_side(place, block.classes()) };
                    if MASKED || length < BLOCK {
                        let mut beside = Divergence::<_, _, true> { pupil, moved, sum };
                        add(simd, &mut rows, block, &mut beside, start, own);
                        sum = beside.sum;
                    } else {
                        let mut beside = Divergence::<_, _, false> { pupil, moved, sum };
                        add(simd, &mut rows, block, &mut beside, start, own);
                        sum = beside.sum;
                    }
                },
            );
            (rows.together(simd), sum)
        },
    )
}

/// What the gradient of a row is: a factor times the exponentials relative to a logit, with classes that have their own values.
#[derive(Clone, Copy, Debug)]
pub struct Gradient<R> {
    /// The logit.
    pub logit: R,
    /// By how many octaves the reference was raised.
    pub octaves: f64,
    /// The factor.
    pub factor: f64,
    /// What logits are multiplied by.
    pub scale: Scale<R>,
    /// The cap of the logits, if there is one.
    pub softcap: Option<Softcap>,
    /// How it is stored.
    pub store: StorePolicy,
}

/// What the gradient of a row is less.
#[derive(Clone, Copy, Debug)]
pub enum Less<'a, R> {
    /// Nothing.
    Nothing,
    /// Shares, multiplied by this.
    Shares(RowShares<'a>, f64),
    /// The exponentials of a teacher relative to a logit, multiplied by this.
    Teacher(Row<'a>, R, f64),
}

/// Write the gradient of a row, but for classes that have their own, in ascending order.
#[inline(always)]
pub fn write<S: Simd, R: Real + Element<Real = R>>(
    simd: S,
    row: Row,
    out: RowMut,
    of: &Gradient<R>,
    exceptions: &[(usize, f64)],
    less: &Less<R>,
) {
    out.in_pieces(|part, out| write_piece(simd, row, part, out, of, exceptions, less));
}

/// [`write`] that of some classes.
#[inline(never)]
fn write_piece<S: Simd, R: Real + Element<Real = R>>(
    simd: S,
    row: Row,
    part: Range<usize>,
    out: RowMut,
    of: &Gradient<R>,
    exceptions: &[(usize, f64)],
    less: &Less<R>,
) {
    let nothing = RowShares { numbers: None, keep: 1.0, uniform: 0.0, weight: None };
    match less {
        Less::Nothing if of.softcap.is_some() => {
            write_less::<S, R, _, true>(simd, row, part, out, of, exceptions, &(nothing, 0.0));
        }
        // For each type that is stored: converted first and last, rows of 16-bit logits took a third longer.
        Less::Nothing => {
            with_element!(row.dtype(), E => write_exponentials::<S, E>(simd, row, part, out, same(of), exceptions));
        }
        Less::Shares(shares, scale) if of.softcap.is_some() => {
            write_less::<S, R, _, true>(simd, row, part, out, of, exceptions, &(*shares, *scale));
        }
        Less::Shares(shares, scale) => {
            write_less::<S, R, _, false>(simd, row, part, out, of, exceptions, &(*shares, *scale));
        }
        Less::Teacher(teacher, logit, factor) => {
            let reference = Reference::<S, R>::next_to(simd, R::Lanes::<S>::simd_from(simd, *logit), of.scale).0;
            write_less::<S, R, _, false>(simd, row, part, out, of, exceptions, &(*teacher, reference, *factor));
        }
    }
}

/// What blocks of gradients are less.
trait BlockOffset<S: Simd, R: Real> {
    /// Write that of `length` classes from `start` on.
    fn fill(&self, simd: S, start: usize, length: usize, offsets: &mut [R; BLOCK]);
}

impl<S: Simd, R: Real + Element<Real = R>> BlockOffset<S, R> for (RowShares<'_>, f64) {
    #[inline(always)]
    fn fill(&self, simd: S, start: usize, length: usize, offsets: &mut [R; BLOCK]) {
        let (mut numbers, scales) = ([0.0; BLOCK], [f64x8::splat(simd, self.1); 2]);
        self.0.with::<S, R>(
            simd,
            start,
            length,
            &mut numbers,
            #[inline(always)]
            |shares, _| {
                for (vector, offsets) in offsets.chunks_exact_mut(R::LANES).enumerate() {
                    shares.scaled::<S, R>(simd, 0, vector, scales).store_slice(offsets);
                }
            },
        );
    }
}

impl<S: Simd, R: Real + Element<Real = R>> BlockOffset<S, R> for (Row<'_>, Reference<S, R>, f64) {
    #[inline(always)]
    fn fill(&self, simd: S, start: usize, length: usize, offsets: &mut [R; BLOCK]) {
        let mut copy = [R::default(); BLOCK];
        let place = self.0.lend(simd, start, length, &mut copy);
        let factor = R::splat(simd, self.2);
        for (vector, offset) in offsets[..length.next_multiple_of(R::LANES)].chunks_exact_mut(R::LANES).enumerate() {
            // SAFETY: a vector of what was lent: of the row, or of the padded block.
            let x = unsafe { Element::load(simd, place.add(vector * R::LANES)) };
            (self.1.terms(simd, [x]).exp(0) * factor).store_slice(offset);
        }
    }
}

/// What the entries of a row of results are made of, block by block, from numbers that are stored as `E`.
///
/// # Safety
/// As many numbers as [`Self::begin`] says are readable from where it says until it is called again, and at least `length`.
pub(super) unsafe trait Entries<S: Simd, E: Element> {
    /// Make ready for `length` classes of the row from number `start` on; where the numbers are that groups are loaded from, and how
    /// many of them may be read.
    fn begin(&mut self, simd: S, row: Row, start: usize, length: usize) -> (*const E, usize);

    /// The entries of a group, from this vector of the block on.
    fn of(&self, simd: S, vector: usize, group: &Group<S, E>) -> [Lanes<S, E>; TOGETHER];
}

/// Where the numbers of a row are, a block at a time: where they lie, or in a scratch if they do not lie side by side.
pub(super) struct Stored<E>(Scratch<E>);

impl<E: Element> Stored<E> {
    #[inline(always)]
    pub(super) fn new() -> Self {
        Self(Scratch::new())
    }

    /// `length` numbers from class `start` on; as many may be read.
    #[inline(always)]
    pub(super) fn lend<S: Simd>(&mut self, simd: S, row: Row, start: usize, length: usize) -> *const E {
        assert!(start + length <= row.classes() && row.dtype() == E::DTYPE && length <= BLOCK);
        if row.is_contiguous() {
            prefetch_ahead(row.pointer::<E>(start).cast(), BLOCK * size_of::<E>());
            row.pointer::<E>(start)
        } else {
            self.0.fill(simd, row, start, length, length.next_multiple_of(E::Real::LANES)).as_ptr()
        }
    }
}

/// A few vectors of numbers: where they lie, or apart if some of them do not.
pub(super) struct Group<S: Simd, E: Element> {
    place: *const E,
    lies: bool,
    pub(super) apart: [Lanes<S, E>; TOGETHER],
}

impl<S: Simd, E: Element> Group<S, E> {
    /// The vectors from a place on, of which `left` values may be read; behind them masked classes.
    ///
    /// # Safety
    /// So many values are readable as long as the group lives.
    #[inline(always)]
    unsafe fn new(simd: S, place: *const E, left: usize) -> Self {
        let lies = left >= TOGETHER * E::Real::LANES;
        // SAFETY: the caller's promise.
        let apart = if lies { [E::Real::splat(simd, 0.0); TOGETHER] } else { unsafe { load_group(simd, place, left) } };
        Self { place, lies, apart }
    }

    /// Vector number `k`.
    #[inline(always)]
    pub(super) fn load(&self, simd: S, k: usize) -> Lanes<S, E> {
        assert!(k < TOGETHER);
        // SAFETY: one of the vectors, all of which are readable by the promise made to `new`.
        if self.lies { unsafe { E::load(simd, self.place.add(k * E::Real::LANES)) } } else { self.apart[k] }
    }

    /// The exponentials of all vectors, times a factor.
    #[inline(always)]
    fn exps(&self, simd: S, reference: &Reference<S, E::Real>, factor: Lanes<S, E>) -> [Lanes<S, E>; TOGETHER] {
        let mut exps = [factor; TOGETHER];
        with_vectors_at_a_time!(S, K => {
            for k in (0..TOGETHER).step_by(K) {
                let mut x = [factor; K];
                for (index, x) in x.iter_mut().enumerate() {
                    *x = self.load(simd, k + index);
                }
                let terms = reference.terms(simd, x);
                for index in 0..K {
                    exps[k + index] = terms.exp(index) * factor;
                }
            }
        });
        exps
    }
}

/// Write the entries of a part of a row, but for classes that have their own values, in ascending order: with their neighbours, not over them, since a store to a
/// line that was just written past the cache waits for memory, and all later stores wait for it.
#[inline(always)]
pub(super) fn write_entries<S: Simd, E: Element, T: Entries<S, E>>(
    simd: S,
    row: Row,
    part: Range<usize>,
    mut out: RowMut,
    store: StorePolicy,
    exceptions: &[(usize, f64)],
    entries: &mut T,
) {
    assert_eq!(part.len(), out.classes());
    let mut exceptions = exceptions.iter().copied();
    let mut next_exception = || exceptions.find(|(class, _)| part.contains(class));
    let (mut exception, mut value) = next_exception().unwrap_or((usize::MAX, 0.0));
    // A first short block brings the non-temporal stores to the boundary that they need, if there is one.
    let peel = out.peel(store);
    let direct = out.dtype() == E::DTYPE && out.is_contiguous();
    let (lanes, group) = (E::Real::LANES, TOGETHER * E::Real::LANES);
    let mut results = [E::Real::default(); BLOCK];
    let mut start = part.start;
    while start < part.end {
        let written = start - part.start;
        let most = if written == 0 { peel.filter(|peel| *peel > 0).unwrap_or(BLOCK) } else { BLOCK };
        let length = most.min(part.end - start);
        let non_temporal = peel.is_some_and(|peel| written >= peel);
        let (place, readable) = entries.begin(simd, row, start, length);
        for first in (0..length).step_by(group) {
            // SAFETY: what `begin` said, by the promise of `Entries`, from a group on.
            let numbers_here = unsafe { Group::new(simd, place.add(first), readable - first) };
            let mut here = entries.of(simd, first / lanes, &numbers_here);
            let end = start + length.min(first + group);
            while exception < end {
                for (index, entry) in here.iter_mut().enumerate() {
                    let lane = (exception - start - first).wrapping_sub(index * lanes);
                    let value = E::Real::splat(simd, value);
                    *entry = E::Real::replace(simd, *entry, numbers::<S, E::Real>(simd), lane, value);
                }
                (exception, value) = next_exception().unwrap_or((usize::MAX, 0.0));
            }
            // SAFETY: what is left of the output's row, which has as many classes, as was asserted, or a group of a block of ours.
            // Past the cache only from a boundary of lines on, as `peel` found it; blocks and groups are whole lines.
            unsafe {
                if !direct {
                    store_group(simd, results[first..].as_mut_ptr(), group, here);
                    continue;
                }
                let (place, rest) = (out.pointer::<E>(written).add(first), length - first);
                if non_temporal && rest >= group {
                    E::stream(simd, place, here);
                } else {
                    store_group(simd, place, rest, here);
                }
            }
        }
        if !direct {
            out.write(simd, written, length, &results, non_temporal);
        }
        start += length;
    }
}

/// The exponentials of a row times a factor: its softmax, or a gradient.
pub(super) struct Exponentials<S: Simd, E: Element> {
    reference: Reference<S, E::Real>,
    factor: Lanes<S, E>,
    stored: Stored<E>,
}

impl<S: Simd, E: Element> Exponentials<S, E> {
    /// Those of a row whose gradient is this.
    #[inline(always)]
    pub(super) fn new(simd: S, of: &Gradient<E::Real>) -> Self {
        let (reference, _) = Reference::next_to(simd, Lanes::<S, E>::simd_from(simd, of.logit), of.scale);
        Self {
            reference: reference.raised(simd, E::Real::splat(simd, of.octaves)),
            factor: E::Real::splat(simd, of.factor),
            stored: Stored::new(),
        }
    }
}

// SAFETY: so many numbers were lent.
unsafe impl<S: Simd, E: Element> Entries<S, E> for Exponentials<S, E> {
    #[inline(always)]
    fn begin(&mut self, simd: S, row: Row, start: usize, length: usize) -> (*const E, usize) {
        (self.stored.lend(simd, row, start, length), length)
    }

    #[inline(always)]
    fn of(&self, simd: S, _: usize, group: &Group<S, E>) -> [Lanes<S, E>; TOGETHER] {
        group.exps(simd, &self.reference, self.factor)
    }
}

/// Write the exponentials of some classes times a factor.
#[inline(never)]
fn write_exponentials<S: Simd, E: Element>(
    simd: S,
    row: Row,
    part: Range<usize>,
    out: RowMut,
    of: &Gradient<E::Real>,
    exceptions: &[(usize, f64)],
) {
    simd.vectorize(
        #[inline(always)]
        || {
            write_entries(simd, row, part, out, of.store, exceptions, &mut Exponentials::<S, E>::new(simd, of));
        },
    );
}

/// The gradients of a row.
struct Differences<'a, S: Simd, R: Real, O, const CAPPED: bool> {
    reference: Reference<S, R>,
    factor: R::Lanes<S>,
    less: &'a O,
    logits: [R; BLOCK],
    offsets: [R; BLOCK],
    /// The cap, its unit, and the capped own logit.
    cap: Option<(Cap<S>, f64, Twice<S>)>,
    capped: Capped<R, BLOCK>,
    above: [R; BLOCK],
}

// SAFETY: so many numbers were lent, or are those of the capped block.
unsafe impl<S: Simd, R: Real + Element<Real = R>, O: BlockOffset<S, R>, const CAPPED: bool> Entries<S, R>
    for Differences<'_, S, R, O, CAPPED>
{
    #[inline(always)]
    fn begin(&mut self, simd: S, row: Row, start: usize, length: usize) -> (*const R, usize) {
        self.less.fill(simd, start, length, &mut self.offsets);
        let Some((cap, unit, own)) = self.cap.as_ref().filter(|_| CAPPED) else {
            return row.lend_part(simd, start, length, &mut self.logits);
        };
        let padded = length.next_multiple_of(TOGETHER * R::LANES);
        let place = row.lend(simd, start, length, &mut self.logits);
        // SAFETY: so many vectors are readable: of the row, or of the padded block.
        let block = unsafe { side_by_side(place, padded / R::LANES) };
        (cap_block(simd, (cap, *unit), &block, *own, &mut self.capped, &mut self.above).place(0), padded)
    }

    #[inline(always)]
    fn of(&self, simd: S, first: usize, group: &Group<S, R>) -> [R::Lanes<S>; TOGETHER] {
        let mut gradients = group.exps(simd, &self.reference, self.factor);
        for (gradient, vector) in gradients.iter_mut().zip(first..) {
            *gradient -= R::Lanes::<S>::from_slice(simd, &self.offsets[vector * R::LANES..(vector + 1) * R::LANES]);
            if CAPPED {
                *gradient *= self.capped.slope(simd, vector);
            }
        }
        gradients
    }
}

#[inline(always)]
fn write_less<S: Simd, R: Real + Element<Real = R>, O: BlockOffset<S, R>, const CAPPED: bool>(
    simd: S,
    row: Row,
    part: Range<usize>,
    out: RowMut,
    of: &Gradient<R>,
    exceptions: &[(usize, f64)],
    less: &O,
) {
    simd.vectorize(
        #[inline(always)]
        || {
            let own = R::Lanes::<S>::simd_from(simd, of.logit);
            let cap = of.softcap.filter(|_| CAPPED).map(
                #[inline(always)]
                |softcap| {
                    let cap = Cap::new::<R>(simd, softcap.height);
                    let own = cap::reference::<S, R>(&cap, simd, own);
                    (cap, softcap.unit, own)
                },
            );
            let own = if CAPPED { R::splat(simd, 0.0) } else { own };
            let (reference, _) = Reference::next_to(simd, own, of.scale);
            let mut differences = Differences::<S, R, O, CAPPED> {
                reference: reference.raised(simd, R::splat(simd, of.octaves)),
                factor: R::splat(simd, of.factor),
                less,
                logits: [R::default(); BLOCK],
                offsets: [R::default(); BLOCK],
                cap,
                capped: Capped::default(),
                above: [R::default(); BLOCK],
            };
            write_entries(simd, row, part, out, of.store, exceptions, &mut differences);
        },
    );
}
