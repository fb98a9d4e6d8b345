//! What can be told of the distribution of a row beside its log-sum-exp: its entropy, and how many classes rank above one.

use std::ops::Range;

use fearless_simd::{Simd, prelude::*};

use super::finish::{MOST_LANES, PerLane, Sum};
use super::horizontal::{across, add, for_each_block};
use super::shares::Leader;
use super::vertical::{Beside, Block, Rows, Strip, Tiles, for_each_group};
use crate::element::Element;
use crate::math::{Real, Scale, Total};
use crate::parallel::in_pieces;
use crate::rows::{BLOCK, Row};

/// What is summed of distributions while their exponentials are, relative to the largest logits.
#[derive(Clone, Copy)]
pub struct Shape<S: Simd, R: Real> {
    /// The largest logits.
    top: R::Lanes<S>,
    /// What ranks above is at least so large: the logit of the class that is ranked in vectors before number `place`, the next
    /// larger number in others; +∞ where none is ranked.
    least: [R::Lanes<S>; 2],
    place: R::Lanes<S>,
    /// The number of the next vector.
    number: R::Lanes<S>,
    /// `Σ exp·(x − top)`.
    weighed: Total<S>,
    /// How many classes rank above.
    above: R::Lanes<S>,
}

/// [`Shape`], one row a lane.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub struct Shapes {
    /// `Σ exp·(x − top)`, boosted.
    pub weighed: PerLane<f64>,
    /// How many classes rank above the one that is ranked: a larger logit, or the same at a lower index.
    pub above: PerLane<f64>,
}

impl<S: Simd, R: Real> Shape<S, R> {
    /// Nothing yet, of rows with these largest logits.
    #[inline(always)]
    fn none(simd: S, top: R::Lanes<S>, ranked: &PerLane<f64>, places: &PerLane<f64>) -> Self {
        let (mut larger, zero) = ([R::default(); MOST_LANES], R::splat(simd, 0.0));
        for (larger, ranked) in larger.iter_mut().zip(ranked) {
            *larger = R::from_f64(*ranked).next_larger();
        }
        Self {
            top,
            least: [R::narrow(simd, ranked), R::Lanes::<S>::from_slice(simd, &larger[..R::LANES])],
            place: R::narrow(simd, places),
            number: zero,
            weighed: Total::zero(simd),
            above: zero,
        }
    }

    /// Nothing yet, of rows with these leaders; of classes that are ranked their logits, and the numbers of the vectors in which they
    /// are.
    #[inline(never)]
    pub fn of_leader(simd: S, leader: &Leader<S, R>, ranked: &PerLane<f64>, places: &PerLane<f64>) -> Self {
        simd.vectorize(
            #[inline(always)]
            || Self::none(simd, leader.top, ranked, places),
        )
    }

    /// What was found.
    #[inline(never)]
    pub fn found(&self, simd: S) -> Shapes {
        simd.vectorize(
            #[inline(always)]
            || {
                let mut found = Shapes { weighed: [0.0; MOST_LANES], above: [0.0; MOST_LANES] };
                R::lane_totals(&self.weighed, &mut found.weighed);
                R::widen(self.above, &mut found.above);
                found
            },
        )
    }
}

/// Exponentials of some vectors that are kept: what is summed of them besides has a loop of its own, for want of registers.
pub(super) struct Kept<R> {
    pub(super) exps: [R; BLOCK],
    /// The number of the first of the vectors.
    pub(super) first: usize,
}

impl<R: Real> Kept<R> {
    #[inline(always)]
    pub(super) fn nothing() -> Self {
        Self { exps: [R::default(); BLOCK], first: 0 }
    }
}

impl<S: Simd, R: Real> Beside<S, R> for Kept<R> {
    const SEES: bool = true;

    #[inline(always)]
    fn add(&mut self, _: S, vector: usize, _: R::Lanes<S>, exp: R::Lanes<S>) {
        exp.store_slice(&mut self.exps[(vector - self.first) * R::LANES..][..R::LANES]);
    }
}

impl<S: Simd, R: Real + Element<Real = R>> Shape<S, R> {
    /// Add some vectors of a block, whose exponentials were kept. Some of them come before the class that is ranked in a lane, and some
    /// after it (`MIXED`), or all before.
    #[inline(always)]
    fn add<const MIXED: bool>(&mut self, simd: S, block: &Block<R>, kept: &Kept<R>, vectors: Range<usize>) {
        let (zero, one, lowest) = (R::splat(simd, 0.0), R::splat(simd, 1.0), R::Lanes::<S>::simd_from(simd, R::LOWEST));
        let (mut some, mut above, mut number) = (zero, zero, self.number);
        let [before, after] = self.least;
        for (vector, exp) in vectors.zip(kept.exps.chunks_exact(R::LANES)) {
            let ([x], exp) = (block.load::<S, 1>(simd, vector), R::Lanes::<S>::from_slice(simd, exp));
            // A masked class is finitely far away, so that it counts 0.
            some = lowest.max(x - self.top).mul_add(exp, some);
            let least = if MIXED { self.place.simd_gt(number).select(before, after) } else { before };
            above += x.simd_ge(least).select(one, zero);
            if MIXED {
                number += one;
            }
        }
        R::add_to(&mut self.weighed, some);
        (self.above, self.number) = (self.above + above, number);
    }
}

impl<S: Simd, R: Real + Element<Real = R>> Tiles<Rows<S, R>> {
    /// Add the exponentials of all classes of all tiles, and what their shapes are.
    #[inline(never)]
    pub fn add_shapes(&mut self, simd: S, strip: &Strip<R>, shapes: &mut Tiles<Shape<S, R>>) {
        simd.vectorize(
            #[inline(always)]
            || {
                let count = self.all().len();
                let mut kept = Kept::nothing();
                for_each_group!(strip.classes(), 0..count, |tile, classes| {
                    let (block, mut shape) = (strip.tile(tile), shapes.all()[tile]);
                    let (first, count) = (classes.start, classes.len());
                    kept.first = first;
                    self.all_mut()[tile].add::<_, true>(simd, &block, &mut kept, first, first, count);
                    shape.add::<true>(simd, &block, &kept, classes);
                    shapes.all_mut()[tile] = shape;
                });
            },
        );
    }
}

/// [`super::horizontal::sum`] of a row relative to `top`, its largest logit, that of class `own`, and its shape: `Σ exp·(x − top)`, boosted,
/// and how many classes rank above the one that is ranked.
#[inline(always)]
pub fn sum<S: Simd, R: Real + Element<Real = R>>(
    simd: S,
    row: Row,
    (own, top): (usize, R),
    ranked: Option<usize>,
    scale: Scale<R>,
) -> (Sum, [f64; 2]) {
    let of_piece = |part| sum_piece(simd, row, part, (own, top), ranked, scale);
    let (sum, weighed, above) = in_pieces(row.classes(), of_piece, |all: &mut (Sum, Total<S>, f64), next| {
        all.0.merge(next.0);
        all.1.add::<R>(next.1);
        all.2 += next.2;
    });
    (sum, [weighed.value(), above])
}

/// [`sum`] of some classes.
#[inline(never)]
fn sum_piece<S: Simd, R: Real + Element<Real = R>>(
    simd: S,
    row: Row,
    part: Range<usize>,
    (own, top): (usize, R),
    ranked: Option<usize>,
    scale: Scale<R>,
) -> (Sum, Total<S>, f64) {
    simd.vectorize(
        #[inline(always)]
        || {
            let mut rows = across(simd, own, top, scale);
            let (mut places, class) = ([0.0; MOST_LANES], ranked.unwrap_or(0));
            let logit = ranked.map_or(f64::INFINITY, |class| row.get(class));
            for (lane, place) in places.iter_mut().enumerate().take(R::LANES) {
                // How many vectors of the block that it is in have a class before it in this lane.
                *place = ((class % BLOCK + R::LANES - 1 - lane) / R::LANES) as f64;
            }
            let tops = R::Lanes::<S>::simd_from(simd, top);
            let mut shape = Shape::<S, R>::none(simd, tops, &[logit; MOST_LANES], &places);
            if class < part.start {
                shape.least[0] = shape.least[1];
            }
            let mut kept = Kept::nothing();
            for_each_block(
                simd,
                row,
                part,
                #[inline(always)]
                |start, length, block| {
                    add(simd, &mut rows, block, &mut kept, start, own);
                    if (start..start + length).contains(&class) {
                        shape.add::<true>(simd, block, &kept, 0..block.classes());
                        // From here on an equal logit ranks below.
                        shape.least[0] = shape.least[1];
                    } else {
                        shape.add::<false>(simd, block, &kept, 0..block.classes());
                    }
                },
            );
            let mut above = [0.0; MOST_LANES];
            R::widen(shape.above, &mut above);
            (rows.together(simd), shape.weighed, above.iter().sum())
        },
    )
}
