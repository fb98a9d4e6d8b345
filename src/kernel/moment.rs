//! Hessians of softmax losses times vectors: `p·(v − Σ p·v)`. The exponentials are summed, each times its number, and written
//! times what the sum leaves of that.
//!
//! Numbers are taken less that of the own class, which is the one with the largest logit. So nothing cancels in the sum where that
//! class has almost all of the mass: its own entry is `−p·Σ p·(v − v(own))`, and equal numbers give exactly 0.

use std::ops::Range;

use fearless_simd::{Simd, prelude::*};

use super::finish::{Coefficients, MOST_LANES, PerLane, Sum};
use super::horizontal::{
    Entries, Exponentials, Gradient, Group, TOGETHER, across, add, for_each_block, side_by_side, write_entries,
};
use super::shape::Kept;
use super::vertical::{Block, Offset, Rows, Strip, StripMut, Tiles, for_each_group};
use crate::dtype::with_element;
use crate::element::{Element, Lanes};
use crate::math::{Real, Scale, Total};
use crate::parallel::in_pieces;
use crate::rows::{BLOCK, Row, RowMut, same};

/// `Σ exp·(v − v(own))`, boosted.
#[derive(Clone, Copy)]
pub struct Moment<S: Simd, R: Real> {
    own: R::Lanes<S>,
    sum: Total<S>,
}

impl<S: Simd, R: Real + Element<Real = R>> Moment<S, R> {
    /// Nothing yet, of rows whose own classes have these numbers.
    #[inline(never)]
    pub fn relative_to(simd: S, own: &PerLane<f64>) -> Self {
        simd.vectorize(
            #[inline(always)]
            || Self { own: R::narrow(simd, own), sum: Total::zero(simd) },
        )
    }

    /// Add some vectors of a block, whose exponentials were kept. A masked class with a number that is not finite makes the sum NaN.
    #[inline(always)]
    fn add(&mut self, simd: S, numbers: &Block<R>, kept: &Kept<R>, vectors: Range<usize>) {
        let first = vectors.start;
        self.add_products(
            simd,
            vectors,
            #[inline(always)]
            |vector, own| numbers.load::<S, 1>(simd, vector)[0] - own,
            #[inline(always)]
            |vector| R::Lanes::<S>::from_slice(simd, &kept.exps[(vector - first) * R::LANES..][..R::LANES]),
        );
    }

    /// Add some vectors: by how much their numbers are above own ones, and their exponentials.
    #[inline(always)]
    fn add_products(
        &mut self,
        simd: S,
        vectors: Range<usize>,
        above: impl Fn(usize, R::Lanes<S>) -> R::Lanes<S>,
        exp: impl Fn(usize) -> R::Lanes<S>,
    ) {
        let mut sums = [R::splat(simd, 0.0); 4];
        for (index, vector) in vectors.enumerate() {
            sums[index % 4] = above(vector, self.own).mul_add(exp(vector), sums[index % 4]);
        }
        R::add_to(&mut self.sum, (sums[0] + sums[1]) + (sums[2] + sums[3]));
    }

    /// What was summed, one row a lane.
    #[inline(never)]
    pub fn found(&self, simd: S) -> PerLane<f64> {
        let mut found = [0.0; MOST_LANES];
        simd.vectorize(
            #[inline(always)]
            || R::lane_totals(&self.sum, &mut found),
        );
        found
    }
}

/// What products of rows need, one a lane: `factor·exp·(v − v(own) + level)`.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub struct Products {
    /// The numbers of the own classes.
    pub own: PerLane<f64>,
    /// What is added to all numbers less that.
    pub level: PerLane<f64>,
    /// The factors, and the products of the own classes.
    pub of: Coefficients,
}

impl Products {
    /// What exponentials of a tile are multiplied by.
    #[inline(always)]
    fn times<'a, S: Simd, R: Real>(&self, simd: S, numbers: Block<'a, R>) -> Times<'a, S, R> {
        Times { numbers, own: R::narrow(simd, &self.own), level: R::narrow(simd, &self.level) }
    }
}

/// Numbers of a tile that exponentials are multiplied by.
struct Times<'a, S: Simd, R: Real> {
    numbers: Block<'a, R>,
    own: R::Lanes<S>,
    level: R::Lanes<S>,
}

impl<S: Simd, R: Real + Element<Real = R>> Offset<S, R> for Times<'_, S, R> {
    #[inline(always)]
    fn less(&self, simd: S, class: usize, exp: R::Lanes<S>) -> R::Lanes<S> {
        let [v] = self.numbers.load::<S, 1>(simd, class);
        times::<S, R>(simd, exp, (v - self.own) + self.level)
    }
}

/// A product, that of nothing and a number below 0 being 0, not −0.
#[inline(always)]
fn times<S: Simd, R: Real>(simd: S, exp: R::Lanes<S>, number: R::Lanes<S>) -> R::Lanes<S> {
    exp.mul_add(number, R::splat(simd, 0.0))
}

impl<S: Simd, R: Real + Element<Real = R>> Tiles<Rows<S, R>> {
    /// Add the exponentials of all classes of all tiles, and their moments.
    #[inline(never)]
    pub fn add_moments(&mut self, simd: S, logits: &Strip<R>, numbers: &Strip<R>, moments: &mut Tiles<Moment<S, R>>) {
        simd.vectorize(
            #[inline(always)]
            || {
                let tiles = self.all().len();
                let mut kept = Kept::nothing();
                for_each_group!(logits.classes(), 0..tiles, |tile, classes| {
                    let (block, numbers, mut moment) = (logits.tile(tile), numbers.tile(tile), moments.all()[tile]);
                    kept.first = classes.start;
                    self.all_mut()[tile].add::<_, true>(
                        simd,
                        &block,
                        &mut kept,
                        classes.start,
                        classes.start,
                        classes.len(),
                    );
                    moment.add(simd, &numbers, &kept, classes);
                    moments.all_mut()[tile] = moment;
                });
            },
        );
    }

    /// Write the products of all classes of tiles that lie elsewhere or where these go; logits where a row needs the careful path.
    #[inline(never)]
    pub fn write_products(
        &self,
        simd: S,
        products: &[Products],
        logits: &Strip<R>,
        numbers: &Strip<R>,
        out: &mut StripMut<R>,
    ) {
        simd.vectorize(
            #[inline(always)]
            || {
                for_each_group!(logits.classes(), 0..products.len(), |tile, classes| {
                    let (rows, products, block) = (&self.all()[tile], &products[tile], logits.tile(tile));
                    let times = products.times::<S, R>(simd, numbers.tile(tile));
                    rows.write::<_, true>(simd, &products.of, &block, &mut out.tile(tile), &times, classes);
                });
            },
        );
    }

    /// [`Self::add_moments`], the exponentials written over the logits: those of own classes are 0.
    #[inline(never)]
    pub fn keep_moments(
        &mut self,
        simd: S,
        stage: &mut StripMut<R>,
        numbers: &Strip<R>,
        moments: &mut Tiles<Moment<S, R>>,
    ) {
        simd.vectorize(
            #[inline(always)]
            || {
                let tiles = self.all().len();
                for_each_group!(numbers.classes(), 0..tiles, |tile, classes| {
                    let (block, numbers) = (stage.strip.tile(tile), numbers.tile(tile));
                    let (first, count, mut moment) = (classes.start, classes.len(), moments.all()[tile]);
                    self.all_mut()[tile].add::<_, true>(simd, &block, &mut stage.tile(tile), first, first, count);
                    moment.add_products(
                        simd,
                        classes,
                        #[inline(always)]
                        |class, own| numbers.load::<S, 1>(simd, class)[0] - own,
                        #[inline(always)]
                        |class| block.load::<S, 1>(simd, class)[0],
                    );
                    moments.all_mut()[tile] = moment;
                });
            },
        );
    }

    /// Write the products of all classes but the own ones over exponentials that were kept.
    #[inline(never)]
    pub fn write_kept_products(&self, simd: S, products: &[Products], numbers: &Strip<R>, kept: &mut StripMut<R>) {
        simd.vectorize(
            #[inline(always)]
            || {
                for (tile, (rows, products)) in self.all().iter().zip(products).enumerate() {
                    let times = products.times::<S, R>(simd, numbers.tile(tile));
                    rows.write_kept(simd, &products.of, &mut kept.tile(tile), &times);
                }
            },
        );
    }
}

/// The exponentials of a row but for its own class, whose logit is the largest, and its moment; `number` is that of the own class.
#[inline(always)]
pub fn sum<S: Simd, R: Real + Element<Real = R>>(
    simd: S,
    rows: [Row; 2],
    own: (usize, R),
    number: f64,
    scale: Scale<R>,
) -> (Sum, f64) {
    let of_piece = |part| sum_piece::<S, R>(simd, rows, part, own, number, scale);
    let (sum, moment) = in_pieces(rows[0].classes(), of_piece, |all: &mut (Sum, Total<S>), next| {
        all.0.merge(next.0);
        all.1.add::<R>(next.1);
    });
    (sum, R::sum_of_lanes(&moment))
}

/// [`sum`] of some classes.
#[inline(never)]
fn sum_piece<S: Simd, R: Real + Element<Real = R>>(
    simd: S,
    [row, numbers]: [Row; 2],
    part: Range<usize>,
    (own, logit): (usize, R),
    number: f64,
    scale: Scale<R>,
) -> (Sum, Total<S>) {
    simd.vectorize(
        #[inline(always)]
        || {
            let mut rows = across(simd, own, logit, scale);
            let mut moment = Moment::<S, R> { own: R::splat(simd, number), sum: Total::zero(simd) };
            let (mut kept, mut copy) = (Kept::nothing(), [R::default(); BLOCK]);
            for_each_block(
                simd,
                row,
                part,
                #[inline(always)]
                |start, length, block| {
                    let mut place = numbers.lend(simd, start, length, &mut copy);
                    if length < BLOCK {
                        // A short block was copied. What it is padded with is 0 above the own number.
                        copy[length..].fill(<R as Real>::from_f64(number));
                        place = copy.as_ptr();
                    }
                    // SAFETY: so many vectors are readable: of the row, or of the padded copy.
                    let numbers = unsafe { side_by_side(place, block.classes()) };
                    add(simd, &mut rows, block, &mut kept, start, own);
                    moment.add(simd, &numbers, &kept, 0..block.classes());
                },
            );
            (rows.together(simd), moment.sum)
        },
    )
}

/// Write the products of a row: the exponentials of its gradient times what numbers are above `own`, and `level`.
#[inline(always)]
pub fn write<S: Simd, R: Real + Element<Real = R>>(
    simd: S,
    rows: [Row; 2],
    out: RowMut,
    of: &Gradient<R>,
    parts: [f64; 2],
) {
    out.in_pieces(|part, out| {
        with_element!(rows[0].dtype(), E => write_stored::<S, E>(simd, rows, part, out, same(of), parts));
    });
}

#[inline(never)]
fn write_stored<S: Simd, E: Element>(
    simd: S,
    [row, numbers]: [Row; 2],
    part: Range<usize>,
    out: RowMut,
    of: &Gradient<E::Real>,
    [own, level]: [f64; 2],
) {
    simd.vectorize(
        #[inline(always)]
        || {
            let mut products = OfRow::<S, E> {
                exponentials: Exponentials::new(simd, of),
                numbers,
                own: E::Real::splat(simd, own),
                level: E::Real::splat(simd, level),
                copy: [E::Real::default(); BLOCK],
                above: [E::Real::default(); BLOCK],
            };
            write_entries(simd, row, part, out, of.store, &[], &mut products);
        },
    );
}

/// The products of one row.
struct OfRow<'a, S: Simd, E: Element> {
    exponentials: Exponentials<S, E>,
    numbers: Row<'a>,
    own: Lanes<S, E>,
    level: Lanes<S, E>,
    copy: [E::Real; BLOCK],
    above: [E::Real; BLOCK],
}

// SAFETY: so many numbers were lent.
unsafe impl<S: Simd, E: Element> Entries<S, E> for OfRow<'_, S, E> {
    #[inline(always)]
    fn begin(&mut self, simd: S, row: Row, start: usize, length: usize) -> (*const E, usize) {
        let place = self.numbers.lend(simd, start, length, &mut self.copy);
        let vectors = length.div_ceil(E::Real::LANES);
        // SAFETY: so many vectors are readable: of the row, or of the padded copy.
        let block = unsafe { side_by_side(place, vectors) };
        for (vector, above) in self.above.chunks_exact_mut(E::Real::LANES).enumerate().take(vectors) {
            let [v] = block.load::<S, 1>(simd, vector);
            ((v - self.own) + self.level).store_slice(above);
        }
        self.exponentials.begin(simd, row, start, length)
    }

    #[inline(always)]
    fn of(&self, simd: S, first: usize, group: &Group<S, E>) -> [Lanes<S, E>; TOGETHER] {
        let mut products = self.exponentials.of(simd, first, group);
        for (product, vector) in products.iter_mut().zip(first..) {
            let place = vector * E::Real::LANES..(vector + 1) * E::Real::LANES;
            *product = times::<S, E::Real>(simd, *product, Lanes::<S, E>::from_slice(simd, &self.above[place]));
        }
        products
    }
}
