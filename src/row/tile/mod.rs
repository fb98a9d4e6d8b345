//! The vertical twin of the row kernels: rows across lanes.
//!
//! A row of ten classes fills ten of a vector's 16 lanes once, and the work around it (horizontal sums, padding) takes
//! ten times as long as its exponentials. A [`Tile`] is as many rows as there are lanes, lane by lane next to each
//! other: either because they are so in memory (an inner class axis), or because they were transposed into a room of
//! their own (`transposed.rs`). Then nothing is horizontal and nothing is padded, and what is once a row is done for
//! all of them at once (`batch.rs`).
//!
//! 262144 × 10 float32, one thread in one run: by tiles that were filled value by value, with a logarithm of libm a
//! row, the loss took 15.6 ms, and now 4.4; with the gradient 25.4 and now 9.1. Of that, asking for the next rows 8 KiB
//! ahead gave 5.7 → 2.6 in a quieter run: rows shorter than a line hide from the prefetcher. What is left is mostly the
//! same for any number of classes: in cache ten classes take 8.8 ns a row, and took 9.3 when targets and their weights
//! were copied from place to place.

mod any;
mod gradient;
mod transposed;

use std::marker::PhantomData;

use fearless_simd::{Simd, f64x8, prelude::*};

pub use self::any::AnyTile;
pub use self::gradient::{gradients, probabilities, variances};
pub use self::transposed::{Output, Transposed};
use super::batch::{LogSumExps, MOST_LANES, PerLane, Spreads, Targets};
use super::companion::{Companion, Nothing, Term, Uniform, Weighted, Weights};
use super::transform::{CAPPED, Factors, PLAIN, SCALED, Scale, Value, with_mode};
use super::{Dense, Source, Transform};
use crate::element::Element;
use crate::math::{Argument, Boost, Real, Total, with_vectors_at_a_time};
use crate::view::View;

/// Up to this many classes rows are worth transposing: those of less than 1 KiB. At 1 KiB a row by itself is faster
/// (256 classes in f32, in L2: 60 ns against 73; 128: 79 against 39; in f64 as many bytes).
pub const fn most_classes<R: Real>() -> usize {
    MOST_BYTES / size_of::<R>()
}

/// The bytes of a row of [`most_classes`].
const MOST_BYTES: usize = 1023;

/// Classes are counted in lanes, which is exact up to here in f32.
pub const COUNTABLE_CLASSES: usize = 1 << 24;

/// Rows across lanes: `lanes` neighbouring values for each class.
#[derive(Clone, Copy, Debug)]
pub struct Tile<E> {
    base: *mut E,
    /// Bytes from the values of a class to those of the next.
    stride: isize,
    classes: usize,
}

impl<E: Element> Tile<E> {
    /// The `rows` rows of `view` from `first` on, if they fill the lanes and lie lane by lane in memory.
    #[inline(always)]
    pub fn in_place(view: &View<E>, first: usize, rows: usize) -> Option<Self> {
        if rows != E::Real::LANES || view.classes() > COUNTABLE_CLASSES {
            return None;
        }
        let (base, stride) = view.neighbours(first, rows)?;
        Some(Self { base, stride, classes: view.classes() })
    }

    /// [`AnyTile::pick`].
    #[inline(always)]
    unsafe fn pick(&self, classes: &PerLane<usize>) -> PerLane<f64> {
        let mut values = [0.0; MOST_LANES];
        for lane in 0..E::Real::LANES {
            assert!(classes[lane] < self.classes, "class {} of {}", classes[lane], self.classes);
            // SAFETY: one of the tile's values, readable by the caller's promise; the read asks for no alignment.
            values[lane] = Element::to_f64(unsafe { self.pointer(classes[lane]).add(lane).read_unaligned() });
        }
        values
    }

    /// The values of a class.
    #[inline(always)]
    fn pointer(&self, class: usize) -> *mut E {
        debug_assert!(class < self.classes);
        self.base.wrapping_byte_offset(class as isize * self.stride)
    }
}

/// Rows of a view that are worked on together.
#[derive(Clone, Copy)]
pub struct Batch<'a, E> {
    /// The view.
    pub view: &'a View<E>,
    /// The first row.
    pub first: usize,
    /// How many there are, no more than there are lanes.
    pub rows: usize,
    /// How the rows become lanes; `None` if the classes do.
    across: Option<Across<E>>,
}

/// How rows become lanes.
#[derive(Clone, Copy)]
enum Across<E> {
    /// They lie so.
    InPlace(Tile<E>),
    /// They are transposed.
    Transposed,
}

impl<E: Element> Batch<'_, E> {
    /// The rows across lanes, if that is how they are worked on: those of the view, or a copy in the room. Its values are
    /// readable until the room is used again.
    #[inline(always)]
    pub fn tile<S: Simd>(&self, simd: S, room: &mut Transposed<E::Real>) -> Option<AnyTile> {
        Some(match self.across? {
            Across::InPlace(tile) => AnyTile::of(tile),
            Across::Transposed => AnyTile::of(room.load(simd, self.view, self.first, self.rows)),
        })
    }
}

impl<E: Element> Batch<'_, E> {
    /// Make the log-sum-exps of rows with a logit of +∞ and no NaN infinite; their losses stay NaN.
    #[inline(always)]
    pub fn find_infinite(&self, found: &LogSumExps, values: &mut PerLane<f64>) {
        for lane in (0..self.rows).filter(|&lane| found.reference[lane] == f64::INFINITY) {
            let row = self.view.row(self.first + lane);
            if !(0..row.classes()).any(|class| row.get(class).to_f64().is_nan()) {
                values[lane] = f64::INFINITY;
            }
        }
    }
}

/// Rows that are read twice are worked on together as long as they stay in a corner of the L2 cache.
const BATCH_BYTES: usize = 1 << 17;

/// Cut some rows of a view into batches: by its shape and layout alone. Where results go does not count, lest the losses
/// depend on it.
#[inline(always)]
pub fn batches<E: Element>(view: &View<E>, rows: std::ops::Range<usize>) -> impl Iterator<Item = Batch<'_, E>> {
    let lanes = E::Real::LANES;
    let classes = view.classes();
    let together = (BATCH_BYTES / (classes.saturating_mul(size_of::<E>())).max(1)).clamp(1, lanes);
    let mut first = rows.start;
    std::iter::from_fn(
        #[inline(always)]
        move || {
            let left = rows.end - first;
            if left == 0 {
                return None;
            }
            let in_place = Tile::in_place(view, first, left.min(lanes)).map(Across::InPlace);
            let across = in_place.or((classes <= most_classes::<E::Real>()).then_some(Across::Transposed));
            // The next batch begins where neighbours do.
            let left = left.min(view.neighbours_from(first).unwrap_or(left));
            let batch = Batch { view, first, rows: left.min(if across.is_some() { lanes } else { together }), across };
            first += batch.rows;
            Some(batch)
        },
    )
}

/// The log-sum-exps of the rows of a view of `E`s, and what their targets need to be summed.
///
/// # Safety
/// The tile's values are readable.
#[inline(always)]
pub unsafe fn pass<S: Simd, E: Element>(
    simd: S,
    tile: AnyTile,
    targets: &Targets,
    transform: Transform,
    weights: &mut Option<WeightRoom>,
) -> (LogSumExps, Spreads) {
    let mut spreads = Spreads::default();
    // SAFETY: the caller's promise.
    let found = unsafe {
        if let Some(dense) = targets.dense {
            let WeightRoom { rows, block, whole } = weights.get_or_insert_default();
            let weighted = Weighted::new(simd, TileWeights::<E::Real>::new(dense, targets.rows, rows), block);
            let (found, weighted) = pass_with::<S, E::Real, _>(simd, tile, transform, weighted);
            *whole = (tile.classes() <= TOGETHER).then_some(dense.row);
            E::Real::lane_totals(&weighted.mass, &mut spreads.mass);
            E::Real::lane_totals(&weighted.sum, &mut spreads.sum);
            spreads.teacher = weighted.weights.sums;
            found
        } else if targets.uniform != 0.0 {
            let (found, uniform) = pass_with::<S, E::Real, _>(simd, tile, transform, Uniform::new(simd));
            E::Real::lane_totals(&uniform.sum, &mut spreads.sum);
            for sum in &mut spreads.sum {
                *sum *= targets.uniform;
            }
            spreads.mass = [targets.uniform * tile.classes() as f64; MOST_LANES];
            found
        } else {
            log_sum_exps::<S, E>(simd, tile, transform)
        }
    };
    (found, spreads)
}

/// The log-sum-exps of the rows of a view of `E`s.
///
/// # Safety
/// The tile's values are readable.
#[inline(always)]
pub unsafe fn log_sum_exps<S: Simd, E: Element>(simd: S, tile: AnyTile, transform: Transform) -> LogSumExps {
    // SAFETY: the caller's promise.
    unsafe {
        let (found, _) = match tile.stored_as::<E::Real>() {
            Some(tile) => typed_pass(simd, tile, transform, Nothing),
            None => typed_pass(simd, tile.stored_as::<E>().expect("a tile of the view"), transform, Nothing),
        };
        found
    }
}

/// [`pass_of`] a tile with a companion: one that is stored in the type that is computed in is read in place.
///
/// # Safety
/// The tile's values are readable.
#[inline(always)]
pub(super) unsafe fn pass_with<S: Simd, R: Real + Element<Real = R>, C: Companion<S, R>>(
    simd: S,
    tile: AnyTile,
    transform: Transform,
    companion: C,
) -> (LogSumExps, C) {
    // SAFETY: the caller's promise.
    unsafe {
        match tile.stored_as::<R>() {
            Some(tile) => typed_pass(simd, tile, transform, companion),
            None => any_pass::<S, R, C>(simd, tile, transform, companion),
        }
    }
}

/// [`pass_of`] a tile whose type is known; logits that are capped are read as those of any type are.
///
/// # Safety
/// The tile's values are readable.
#[inline(always)]
unsafe fn typed_pass<S: Simd, E: Element, C: Companion<S, E::Real>>(
    simd: S,
    tile: Tile<E>,
    transform: Transform,
    companion: C,
) -> (LogSumExps, C) {
    // SAFETY: the caller's promise.
    unsafe {
        match transform.mode() {
            PLAIN => pass_of::<S, E::Real, C, _, PLAIN>(simd, tile, transform, companion),
            SCALED => pass_of::<S, E::Real, C, _, SCALED>(simd, tile, transform, companion),
            _ => pass_of::<S, E::Real, C, _, CAPPED>(simd, AnyTile::of(tile), transform, companion),
        }
    }
}

/// Classes whose weights are read together.
const TOGETHER: usize = 64;

/// Room for the weights of a tile's targets, from one tile to the next.
#[repr(align(64))]
pub struct WeightRoom {
    /// Those of the rows, one after the other, and room to read a vector more.
    rows: [f64; TOGETHER * MOST_LANES + 8],
    /// The same, transposed.
    block: [f64; TOGETHER * MOST_LANES],
    /// The first of the rows whose weights the block has, if those are the weights of all classes.
    whole: Option<usize>,
}

impl Default for WeightRoom {
    fn default() -> Self {
        Self { rows: [0.0; TOGETHER * MOST_LANES + 8], block: [0.0; TOGETHER * MOST_LANES], whole: None }
    }
}

/// The weights of each lane's target, some classes at a time.
struct TileWeights<'a, R> {
    /// Those of the first lane's row, and of the rows that follow it.
    dense: Dense<'a>,
    /// How many of the lanes are rows.
    count: usize,
    /// What [`Dense::fill`] returned, summed.
    sums: PerLane<f64>,
    /// [`WeightRoom::rows`].
    rows: &'a mut [f64],
    /// The type of the lanes.
    lanes: PhantomData<R>,
}

impl<'a, R: Real + Element<Real = R>> TileWeights<'a, R> {
    #[inline(always)]
    fn new(dense: Dense<'a>, count: usize, rows: &'a mut [f64]) -> Self {
        Self { dense, count, sums: [0.0; MOST_LANES], rows, lanes: PhantomData }
    }

    /// Write the weights of the rows' own classes across lanes.
    #[inline(always)]
    fn transpose<S: Simd>(&mut self, simd: S, start: usize, length: usize, block: &mut [f64]) {
        // Without those that all rows share.
        let dense = Dense { weight: None, ..self.dense };
        let step = if length == dense.classes && matches!(dense.source, Source::Numbers(_)) {
            // All rows are one.
            let count = self.count * length;
            let sum = dense.fill(simd, 0, count, &mut self.rows[..R::LANES * length]);
            for own in &mut self.sums {
                *own += sum;
            }
            length
        } else {
            for (lane, row) in self.rows.chunks_exact_mut(TOGETHER).take(R::LANES).enumerate() {
                if lane < self.count {
                    self.sums[lane] += dense.skip(lane).fill(simd, start, length, row);
                } else {
                    row.fill(0.0);
                }
            }
            TOGETHER
        };
        // A square at a time.
        for first in (0..R::LANES).step_by(8) {
            for class in (0..length).step_by(8) {
                let mut square = [f64x8::splat(simd, 0.0); 16];
                for (number, lanes) in square[..8].iter_mut().enumerate() {
                    let start = (first + number) * step + class;
                    *lanes = f64x8::from_slice(simd, &self.rows[start..start + 8]);
                }
                let square = <f64 as Real>::transpose(square);
                for (lanes, weights) in square[..8].iter().zip(block[class * R::LANES..].chunks_exact_mut(R::LANES)) {
                    lanes.store_slice(&mut weights[first..first + 8]);
                }
            }
        }
    }
}

impl<S: Simd, R: Real + Element<Real = R>> Weights<S> for TileWeights<'_, R> {
    #[inline(always)]
    fn fill(&mut self, simd: S, start: usize, length: usize, block: &mut [f64]) {
        let block = &mut block[..length * R::LANES];
        match self.dense.source {
            Source::Nothing => block.fill(self.dense.uniform),
            Source::Numbers(_) => self.transpose(simd, start, length, block),
            Source::Softmax(teacher) => match teacher.fill::<S, R>(simd, start, block) {
                Some(sums) => {
                    for (all, sum) in self.sums.iter_mut().zip(sums) {
                        *all += sum;
                    }
                }
                None => self.transpose(simd, start, length, block),
            },
        }
        let Some(factors) = self.dense.weight else { return };
        for (weights, factor) in block.chunks_exact_mut(R::LANES).zip(&factors[start..]) {
            for lanes in weights.chunks_exact_mut(8) {
                (f64x8::from_slice(simd, lanes) * f64x8::splat(simd, *factor)).store_slice(lanes);
            }
        }
    }
}

/// [`crate::row::find_point`] of the rows of a tile, after their [`pass`].
///
/// # Safety
/// The tile's values are readable.
#[inline(always)]
pub unsafe fn find_points<S: Simd, R: Real + Element<Real = R>>(
    simd: S,
    tile: AnyTile,
    found: &LogSumExps,
    targets: &mut Targets,
    weights: Option<&WeightRoom>,
) {
    let points = &mut targets.points;
    if !targets.names_classes {
        // SAFETY: the caller's promise.
        points.class = unsafe {
            match tile.stored_as::<R>() {
                Some(tile) => leaders::<S, R, _>(simd, tile, &found.reference),
                None => leaders::<S, R, _>(simd, tile, &found.reference),
            }
        };
        points.logit = found.reference;
    }
    let Some(dense) = targets.dense else { return };
    let whole = weights.filter(|weights| weights.whole == Some(dense.row));
    for lane in 0..targets.rows {
        let class = points.class[lane];
        if let Some(WeightRoom { block, .. }) = whole {
            points.rest[lane] = block[class * R::LANES + lane];
        } else if targets.names_classes || found.is_led(lane) {
            points.rest[lane] = dense.skip(lane).at(simd, class);
        }
    }
}

/// The last class of each row that has this logit, where [`LogSumExps::is_led`] the only one; 0 if there is none.
///
/// # Safety
/// The tile's values are readable.
#[inline(never)]
unsafe fn leaders<S: Simd, R: Real, T: Tiled<S, R>>(simd: S, tile: T, logits: &PerLane<f64>) -> PerLane<usize> {
    let mut leaders = [0; MOST_LANES];
    simd.vectorize(
        #[inline(always)]
        || {
            let logits = R::narrow(simd, logits);
            let mut classes = R::splat(simd, 0.0);
            for class in 0..tile.classes() {
                // SAFETY: the caller's promise.
                let x = unsafe { tile.load(simd, class) };
                classes = x.simd_eq(logits).select(R::splat(simd, class as f64), classes);
            }
            let mut numbers = [0.0; MOST_LANES];
            R::widen(classes, &mut numbers);
            for (leader, number) in leaders.iter_mut().zip(numbers) {
                *leader = number as usize;
            }
        },
    );
    leaders
}

/// Tiles that kernels read and write a vector at a time.
pub(super) trait Tiled<S: Simd, R: Real>: Copy {
    fn classes(&self) -> usize;

    /// # Safety
    /// The tile's values are readable.
    unsafe fn load(&self, simd: S, class: usize) -> R::Lanes<S>;

    /// # Safety
    /// The tile's values are writeable.
    unsafe fn store(&self, simd: S, class: usize, lanes: R::Lanes<S>);
}

impl<S: Simd, E: Element> Tiled<S, E::Real> for Tile<E> {
    #[inline(always)]
    fn classes(&self) -> usize {
        self.classes
    }

    #[inline(always)]
    unsafe fn load(&self, simd: S, class: usize) -> <E::Real as Real>::Lanes<S> {
        // SAFETY: the caller's promise.
        unsafe { E::load(simd, self.pointer(class)) }
    }

    #[inline(always)]
    unsafe fn store(&self, simd: S, class: usize, lanes: <E::Real as Real>::Lanes<S>) {
        // SAFETY: the caller's promise.
        unsafe { E::store(simd, self.pointer(class), lanes) }
    }
}

/// [`pass_of`] for companions that are worth no kernel for each storage type.
///
/// # Safety
/// The tile's values are readable.
#[inline(always)]
unsafe fn any_pass<S: Simd, R: Real, C: Companion<S, R>>(
    simd: S,
    tile: AnyTile,
    transform: Transform,
    companion: C,
) -> (LogSumExps, C) {
    // SAFETY: the caller's promise.
    with_mode!(transform, MODE => unsafe { pass_of::<S, R, C, _, MODE>(simd, tile, transform, companion) })
}

/// Exponentials are summed a few at a time, as their lanes can.
const GROUP: usize = 4;

/// The log-sum-exps of the rows, and a companion's sums.
///
/// # Safety
/// The tile's values are readable.
#[inline(never)]
unsafe fn pass_of<S: Simd, R: Real, C: Companion<S, R>, T: Tiled<S, R>, const MODE: u8>(
    simd: S,
    tile: T,
    transform: Transform,
    mut companion: C,
) -> (LogSumExps, C) {
    simd.vectorize(
        #[inline(always)]
        || {
            let classes = tile.classes();
            let mut largest = [R::splat(simd, f64::NEG_INFINITY); GROUP];
            for start in (0..classes).step_by(GROUP) {
                for (chain, largest) in largest.iter_mut().enumerate() {
                    // SAFETY: readable by the caller's promise; past the last class it is read again.
                    let x = unsafe { tile.load(simd, (start + chain).min(classes - 1)) };
                    // NaN is found again by the sum.
                    *largest = x.max(*largest);
                }
            }
            let reference = largest[0].max(largest[1]).max(largest[2].max(largest[3]));
            // Of masked classes alone the lowest number, so that it can be subtracted.
            let scale = Scale::<S, R>::new(simd, transform);
            let subtracted = R::splat(simd, R::LOWEST.to_f64()).max(reference);
            let mut sums = LaneSums {
                scale,
                subtracted,
                reference: scale.value::<MODE>(subtracted),
                sum: Total::zero(simd),
                equal: R::splat(simd, 0.0),
            };
            for start in (0..classes).step_by(GROUP) {
                if start % TOGETHER == 0 {
                    companion.begin(simd, start, TOGETHER.min(classes - start));
                }
                // SAFETY: readable by the caller's promise.
                unsafe {
                    if classes - start < GROUP {
                        sums.add::<_, C, MODE, 1>(simd, &tile, start..classes, &mut companion);
                        continue;
                    }
                    let group = start..start + GROUP;
                    with_vectors_at_a_time!(S, K => sums.add::<_, C, MODE, K>(simd, &tile, group, &mut companion));
                }
            }
            (sums.finish(simd, reference), companion)
        },
    )
}

/// What a pass knows and sums.
struct LaneSums<S: Simd, R: Real> {
    scale: Scale<S, R>,
    /// The references as they are subtracted, and their values.
    subtracted: R::Lanes<S>,
    reference: Value<S, R>,
    /// Exponentials, boosted, of what is not equal to the reference.
    sum: Total<S>,
    /// How many are equal to it.
    equal: R::Lanes<S>,
}

impl<S: Simd, R: Real> LaneSums<S, R> {
    /// Add the exponentials of some classes, `K` at a time.
    ///
    /// # Safety
    /// The tile's values are readable.
    #[inline(always)]
    unsafe fn add<T: Tiled<S, R>, C: Companion<S, R>, const MODE: u8, const K: usize>(
        &mut self,
        simd: S,
        tile: &T,
        classes: std::ops::Range<usize>,
        companion: &mut C,
    ) {
        let (zero, one) = (R::splat(simd, 0.0), R::splat(simd, 1.0));
        let mut sum = zero;
        companion.begin_sums(simd);
        for start in classes.step_by(K) {
            let mut x = [zero; K];
            let mut is_own = [zero.simd_eq(zero); K];
            for k in 0..K {
                // SAFETY: readable by the caller's promise.
                x[k] = unsafe { tile.load(simd, start + k) };
                is_own[k] = x[k].simd_eq(self.subtracted);
            }
            let values = self.scale.values::<MODE, false, K>(x).map(
                #[inline(always)]
                |(value, _)| value,
            );
            let Factors { exp, mut power, z } =
                self.scale.factors::<MODE, K>(values, self.reference, Boost::Full, Argument::Exact);
            for k in 0..K {
                power[k] = is_own[k].select(zero, power[k]);
                self.equal += is_own[k].select(one, zero);
                sum = exp[k].mul_add(power[k], sum);
                let exp = exp[k] * power[k];
                let term = Term { x: x[k], exp, z: z[k] };
                companion.add(simd, (start + k) % TOGETHER, 0, term);
            }
            let first = start % TOGETHER;
            companion.values(
                simd,
                first..first + K,
                (first + K) * R::LANES,
                #[inline(always)]
                |vector| values[vector - first],
                self.reference,
            );
        }
        R::add_to(&mut self.sum, sum);
        companion.end_sums();
    }

    #[inline(always)]
    fn finish(self, simd: S, reference: R::Lanes<S>) -> LogSumExps {
        let mut found = LogSumExps::default();
        R::widen(self.subtracted, &mut found.reference);
        R::lane_totals(&self.sum, &mut found.others);
        // Beside the reference itself others may be equal to it; where there is none, all is masked.
        let [mut equal, mut own] = [[0.0; MOST_LANES]; 2];
        R::widen(self.equal, &mut equal);
        let (zero, one) = (R::splat(simd, 0.0), R::splat(simd, 1.0));
        let own_term = self.subtracted.is_finite().select(one, R::splat(simd, f64::NAN));
        R::widen(reference.simd_eq(R::splat(simd, f64::NEG_INFINITY)).select(zero, own_term), &mut own);
        found.own = own;
        for (lane, others) in found.others[..R::LANES].iter_mut().enumerate() {
            *others = *others / R::BOOST + (equal[lane] - 1.0).max(0.0);
        }
        found
    }
}
