//! The vertical twin of the row kernels: rows across lanes.
//!
//! A row of ten classes fills ten of a vector's 16 lanes once, and the work around it (horizontal sums, padding) takes
//! ten times as long as its exponentials. A [`Tile`] is as many rows as there are lanes, lane by lane next to each
//! other: either because they are so in memory (an inner class axis), or because they were transposed into a scratch.
//! Then nothing is horizontal and nothing is padded.
//!
//! 262144 × 10 float32 on a busy machine: the loss took 26 ms by rows and takes 6.2 ms by tiles, with the gradient 40
//! and 9.3 ms. What is left is a logarithm of libm a row. A target's entry of the gradient is taken by lanes, but for
//! that of a confident leader: with an exponential of libm a row more, loss and gradient took 20.3 ms on one thread
//! instead of 16.4.

use std::any::Any;
use std::mem::MaybeUninit;

use fearless_simd::{Simd, prelude::*};
use half::{bf16, f16};

use super::companion::{Companion, Nothing, Term, Uniform, Weighted, Weights};
use super::map::{can_boost, difference_of, share, take_back, variance_of};
use super::target::Spread;
use super::transform::{CAPPED, Capped, Exponentials, PLAIN, SCALED, Scale, Value, with_mode, with_uncapped_mode};
use super::{BLOCK, LogSumExp, RowLoss, Target, Transform};
use crate::element::Element;
use crate::math::{Boost, Real, Total};
use crate::view::{Row, View};

/// The most lanes that a type has.
pub const MOST_LANES: usize = 16;

/// Up to this many classes rows are worth transposing.
pub const MOST_CLASSES: usize = 64;

/// Classes are counted in lanes, which is exact up to here in f32.
pub const COUNTABLE_CLASSES: usize = 1 << 24;

/// A number for each lane.
pub type PerLane<T> = [T; MOST_LANES];

/// Rows across lanes: `lanes` neighbouring values for each class.
#[derive(Clone, Copy)]
pub struct Tile<E> {
    base: *mut E,
    /// Bytes from the values of a class to those of the next.
    stride: isize,
    classes: usize,
}

/// Room for the rows of a tile, transposed.
pub struct Transposed<E> {
    values: [MaybeUninit<E>; MOST_CLASSES * MOST_LANES],
}

impl<E: Element> Transposed<E> {
    /// Room that holds nothing yet.
    #[inline(always)]
    pub fn uninit() -> Self {
        Self { values: [MaybeUninit::uninit(); MOST_CLASSES * MOST_LANES] }
    }

    /// The room as a tile of `classes` classes.
    #[inline(always)]
    pub fn tile(&mut self, classes: usize) -> Tile<E> {
        assert!(classes <= MOST_CLASSES);
        let stride = (E::Real::LANES * size_of::<E>()) as isize;
        Tile { base: self.values.as_mut_ptr().cast(), stride, classes }
    }

    /// The rows of `view` from `first` on, `count` of them, and masked classes in the lanes that are left.
    #[inline(always)]
    pub fn load(&mut self, view: &View<E>, first: usize, count: usize) -> Tile<E> {
        let (classes, lanes) = (view.classes(), E::Real::LANES);
        let values = &mut self.values[..classes * lanes];
        if count < lanes {
            values.fill(MaybeUninit::new(E::MASKED));
        }
        for lane in 0..count {
            let lane_values = &mut values[lane..];
            view.row(first + lane).for_each(
                #[inline(always)]
                |class, value| {
                    lane_values[class * lanes].write(value);
                },
            );
        }
        self.tile(classes)
    }

    /// Write row number `lane` of the tile to a row of an output.
    ///
    /// # Safety
    /// As for [`Row::set`]; the tile was written.
    #[inline(always)]
    pub unsafe fn store(&self, lane: usize, row: Row<E>) {
        assert!(row.classes() <= MOST_CLASSES && lane < E::Real::LANES);
        // SAFETY: the tile was written, and the rest holds, by the caller's promise.
        unsafe {
            row.set_each(
                #[inline(always)]
                |class| self.values[class * E::Real::LANES + lane].assume_init(),
            );
        }
    }
}

impl<E: Element> Tile<E> {
    /// The rows of `view` from `first` on, if they lie lane by lane in memory.
    #[inline(always)]
    pub fn in_place(view: &View<E>, first: usize) -> Option<Self> {
        let (base, stride) = view.neighbours(first, E::Real::LANES)?;
        Some(Self { base, stride, classes: view.classes() })
    }

    /// The number of classes.
    pub fn classes(&self) -> usize {
        self.classes
    }

    /// The values of a class.
    #[inline(always)]
    fn pointer(&self, class: usize) -> *mut E {
        debug_assert!(class < self.classes);
        self.base.wrapping_byte_offset(class as isize * self.stride)
    }
}

/// For each lane the log-sum-exp of its row, and what its target needs to be summed.
///
/// # Safety
/// The tile's values are readable.
#[inline(always)]
pub unsafe fn losses<S: Simd, E: Element>(
    simd: S,
    tile: Tile<E>,
    targets: &PerLane<Option<Target>>,
    logits: &PerLane<f64>,
    transform: Transform,
) -> PerLane<Option<RowLoss>> {
    let mut sums = [[0.0; MOST_LANES]; 2];
    let mut teachers = [0.0; MOST_LANES];
    let lanes = E::Real::LANES;
    // SAFETY: the caller's promise.
    let found = unsafe {
        let any = AnyTile::of(tile);
        if targets.iter().flatten().any(|target| target.dense.is_some()) {
            let weights = TileWeights { targets, lanes, sums: [0.0; MOST_LANES], row: [0.0; BLOCK] };
            let mut block = [0.0; BLOCK];
            let (found, weighted) =
                any_pass::<S, E::Real, _>(simd, any, transform, Weighted::new(simd, weights, &mut block));
            E::Real::lane_totals(&weighted.mass, &mut sums[0]);
            E::Real::lane_totals(&weighted.sum, &mut sums[1]);
            teachers = weighted.weights.sums;
            found
        } else if targets.iter().flatten().any(|target| target.uniform != 0.0) {
            let (found, uniform) = any_pass::<S, E::Real, _>(simd, any, transform, Uniform::new(simd));
            E::Real::lane_totals(&uniform.sum, &mut sums[1]);
            found
        } else {
            match transform.mode() {
                PLAIN => pass::<S, E::Real, _, _, PLAIN>(simd, tile, transform, Nothing).0,
                SCALED => pass::<S, E::Real, _, _, SCALED>(simd, tile, transform, Nothing).0,
                _ => pass::<S, E::Real, _, _, CAPPED>(simd, any, transform, Nothing).0,
            }
        }
    };
    let mut losses = [None; MOST_LANES];
    for (lane, loss) in losses[..lanes].iter_mut().enumerate() {
        *loss = targets[lane].map(|target| {
            let spread = if target.dense.is_some() {
                Spread { mass: sums[0][lane], sum: sums[1][lane], teacher_sum: teachers[lane] }
            } else {
                target.uniform_spread(sums[1][lane], tile.classes)
            };
            let Found { log_sum_exp, class } = found[lane];
            target.loss_of(simd, logits[lane], log_sum_exp, spread, transform).with_leader(|_| class)
        });
    }
    losses
}

/// The weights of each lane's target, a few classes at a time.
struct TileWeights<'a> {
    targets: &'a PerLane<Option<Target<'a>>>,
    lanes: usize,
    /// What [`super::Dense::fill`] returned, summed.
    sums: PerLane<f64>,
    row: [f64; BLOCK],
}

impl<S: Simd> Weights<S> for TileWeights<'_> {
    #[inline(always)]
    fn fill(&mut self, simd: S, start: usize, length: usize, block: &mut [f64]) {
        for lane in 0..self.lanes {
            let row = &mut self.row[..length];
            row.fill(0.0);
            if let Some(dense) = self.targets[lane].and_then(|target| target.dense) {
                self.sums[lane] += dense.fill(simd, start, length, row);
            }
            for (class, weight) in row.iter().enumerate() {
                block[class * self.lanes + lane] = *weight;
            }
        }
    }
}

/// Tiles that kernels read and write a vector at a time.
trait Tiled<S: Simd, R: Real>: Copy {
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

/// A tile of any storage type, for the kernels that are worth none for each; see [`super::any`].
#[derive(Clone, Copy)]
enum AnyTile {
    F16(Tile<f16>),
    Bf16(Tile<bf16>),
    F32(Tile<f32>),
    F64(Tile<f64>),
}

impl AnyTile {
    #[inline(always)]
    fn of<E: Element>(tile: Tile<E>) -> Self {
        let tile: &dyn Any = &tile;
        let f16 = tile.downcast_ref().copied().map(Self::F16);
        let bf16 = tile.downcast_ref().copied().map(Self::Bf16);
        let f32 = tile.downcast_ref().copied().map(Self::F32);
        let f64 = tile.downcast_ref().copied().map(Self::F64);
        f16.or(bf16).or(f32).or(f64).expect("there are four storage types")
    }
}

macro_rules! with_tile {
    ($any:expr, $tile:ident => $body:expr) => {
        match $any {
            AnyTile::F16($tile) => $body,
            AnyTile::Bf16($tile) => $body,
            AnyTile::F32($tile) => $body,
            AnyTile::F64($tile) => $body,
        }
    };
}

impl<S: Simd, R: Real> Tiled<S, R> for AnyTile {
    #[inline(always)]
    fn classes(&self) -> usize {
        with_tile!(self, tile => tile.classes)
    }

    #[inline(always)]
    unsafe fn load(&self, simd: S, class: usize) -> R::Lanes<S> {
        let mut values = [R::default(); MOST_LANES];
        {
            let values: &mut dyn Any = &mut values;
            // SAFETY: the caller's promise.
            with_tile!(*self, tile => unsafe {
                load_vector(simd, tile, class, values.downcast_mut().expect("its own type"));
            });
        }
        R::Lanes::<S>::from_slice(simd, &values[..R::LANES])
    }

    #[inline(always)]
    unsafe fn store(&self, simd: S, class: usize, lanes: R::Lanes<S>) {
        let mut values = [R::default(); MOST_LANES];
        lanes.store_slice(&mut values[..R::LANES]);
        let values: &dyn Any = &values;
        // SAFETY: the caller's promise.
        with_tile!(*self, tile => unsafe {
            store_vector(simd, tile, class, values.downcast_ref().expect("its own type"));
        });
    }
}

/// # Safety
/// The tile's values are readable.
#[inline(never)]
unsafe fn load_vector<S: Simd, E: Element>(simd: S, tile: Tile<E>, class: usize, values: &mut PerLane<E::Real>) {
    simd.vectorize(
        #[inline(always)]
        // SAFETY: the caller's promise.
        || unsafe { E::load(simd, tile.pointer(class)) }.store_slice(&mut values[..E::Real::LANES]),
    );
}

/// # Safety
/// The tile's values are writeable.
#[inline(never)]
unsafe fn store_vector<S: Simd, E: Element>(simd: S, tile: Tile<E>, class: usize, values: &PerLane<E::Real>) {
    simd.vectorize(
        #[inline(always)]
        || {
            let lanes = <E::Real as Real>::Lanes::<S>::from_slice(simd, &values[..E::Real::LANES]);
            // SAFETY: the caller's promise.
            unsafe { E::store(simd, tile.pointer(class), lanes) }
        },
    );
}

/// The value of a vector of logits, and, if they are capped, the slope of the cap.
#[inline(always)]
fn value_of<S: Simd, R: Real, const MODE: u8>(
    simd: S,
    transform: Transform,
    x: R::Lanes<S>,
) -> (Value<S, R>, Option<R::Lanes<S>>) {
    if MODE != CAPPED {
        return (Value::plain(x), None);
    }
    let (mut logits, mut capped) = ([R::default(); MOST_LANES], Capped::<R, MOST_LANES>::default());
    x.store_slice(&mut logits[..R::LANES]);
    transform.cap(simd, &logits[..R::LANES], &mut capped);
    (Value::capped(simd, &capped, 0), Some(R::Lanes::<S>::from_slice(simd, &capped.slope[..R::LANES])))
}

/// [`pass`] for companions that are worth no kernel for each storage type.
///
/// # Safety
/// The tile's values are readable.
#[inline(always)]
unsafe fn any_pass<S: Simd, R: Real, C: Companion<S, R>>(
    simd: S,
    tile: AnyTile,
    transform: Transform,
    companion: C,
) -> (PerLane<Found>, C) {
    // SAFETY: the caller's promise.
    with_mode!(transform, MODE => unsafe { pass::<S, R, C, _, MODE>(simd, tile, transform, companion) })
}

/// For each lane the log-sum-exp of its row, and a companion's sums.
///
/// # Safety
/// The tile's values are readable.
#[inline(never)]
unsafe fn pass<S: Simd, R: Real, C: Companion<S, R>, T: Tiled<S, R>, const MODE: u8>(
    simd: S,
    tile: T,
    transform: Transform,
    mut companion: C,
) -> (PerLane<Found>, C) {
    simd.vectorize(
        #[inline(always)]
        || {
            let scale = Scale::<S, R>::new(simd, transform);
            let splat = |value| R::splat(simd, value);
            let (one, zero) = (splat(1.0), splat(0.0));
            let mut reference = splat(f64::NEG_INFINITY);
            let (mut class, mut number) = (splat(-1.0), zero);
            for index in 0..tile.classes() {
                // SAFETY: readable by the caller's promise.
                let x = unsafe { tile.load(simd, index) };
                let larger = x.simd_gt(reference);
                class = larger.select(number, class);
                // NaN is found again by the sum.
                reference = larger.select(x, reference);
                number += one;
            }
            // Of masked classes alone the lowest number, so that it can be subtracted.
            let subtracted = splat(R::LOWEST.to_f64()).max(reference);
            let value_of_reference = scale.references::<MODE>(transform, subtracted);
            let mut sum = Total::zero(simd);
            number = zero;
            let step = BLOCK / R::LANES;
            for index in 0..tile.classes() {
                if index % step == 0 {
                    companion.begin(simd, index, step.min(tile.classes() - index));
                }
                // SAFETY: readable by the caller's promise.
                let x = unsafe { tile.load(simd, index) };
                let (mut value, _) = value_of::<S, R, MODE>(simd, transform, x);
                if MODE == CAPPED {
                    value = value.same_as(value_of_reference, x.simd_eq(subtracted));
                }
                let Exponentials { exp: [exp], power: [power], z: [z] } =
                    scale.exps::<MODE, 1>([value], value_of_reference, Boost::Full);
                let exp = class.simd_eq(number).select(zero, exp * power);
                R::add_to(&mut sum, exp);
                companion.begin_sums(simd);
                let term = Term { x, value, reference: value_of_reference, exp, z, counts: None };
                companion.add(simd, index % step, 0, term);
                companion.end_sums();
                number += one;
            }
            let mut sums = [0.0; MOST_LANES];
            R::lane_totals(&sum, &mut sums);
            let mut found = [Found { log_sum_exp: LogSumExp::new(R::LOWEST, 0.0), class: None }; MOST_LANES];
            for (lane, found) in found[..R::LANES].iter_mut().enumerate() {
                let class = class.as_slice()[lane].to_f64();
                found.class = (class >= 0.0).then_some(class as usize);
                found.log_sum_exp = LogSumExp::new(reference.as_slice()[lane], sums[lane] / R::BOOST);
            }
            (found, companion)
        },
    )
}

/// What a pass found in a lane.
#[derive(Clone, Copy)]
struct Found {
    log_sum_exp: LogSumExp,
    /// The class whose logit is the reference.
    class: Option<usize>,
}

/// For each lane `scale` times the gradient of its row, into `out`; lanes without a loss get zeros.
///
/// The entry of a leader that holds most of the mass is left to [`RowLoss::own_gradient`]: here it is a difference.
/// Nothing is written, and the result is false, if some lanes need the boost of [`Real::exp`] and others must do
/// without it, which is so when the scales differ by 18 orders of magnitude.
///
/// # Safety
/// The values of `tile` are readable, those of `out` writeable, and `out` is `tile` itself or apart from it.
#[inline(always)]
pub unsafe fn gradients<S: Simd, E: Element, O: Element<Real = E::Real>>(
    simd: S,
    tile: Tile<E>,
    out: Tile<O>,
    targets: &PerLane<Option<Target>>,
    losses: &PerLane<Option<RowLoss>>,
    scales: &PerLane<f64>,
    transform: Transform,
) -> bool {
    let dense = targets.iter().flatten().any(|target| target.dense.is_some());
    let (any, any_out) = (AnyTile::of(tile), AnyTile::of(out));
    // SAFETY: the caller's promise.
    unsafe {
        match transform.mode() {
            PLAIN if !dense => {
                gradients_of::<S, E::Real, _, _, PLAIN, false>(simd, tile, out, targets, losses, scales, transform)
            }
            SCALED if !dense => {
                gradients_of::<S, E::Real, _, _, SCALED, false>(simd, tile, out, targets, losses, scales, transform)
            }
            _ => with_mode!(transform, MODE => {
                gradients_of::<S, E::Real, _, _, MODE, true>(simd, any, any_out, targets, losses, scales, transform)
            }),
        }
    }
}

/// [`gradients`] of tiles of one kind, with `DENSE` of targets that have a weight for each class.
///
/// # Safety
/// As for [`gradients`].
#[inline(never)]
unsafe fn gradients_of<S: Simd, R: Real, T: Tiled<S, R>, O: Tiled<S, R>, const MODE: u8, const DENSE: bool>(
    simd: S,
    tile: T,
    out: O,
    targets: &PerLane<Option<Target>>,
    losses: &PerLane<Option<RowLoss>>,
    scales: &PerLane<f64>,
    transform: Transform,
) -> bool {
    let [mut references, mut factors, mut counts, mut uniforms, mut offset_scales] = [[0.0; MOST_LANES]; 5];
    let (mut classes, mut points) = ([-1.0; MOST_LANES], [0.0; MOST_LANES]);
    for (lane, (target, loss)) in targets.iter().zip(losses).enumerate() {
        if let (Some(target), Some(loss)) = (target, loss) {
            let softmax = loss.scaled_softmax(scales[lane], transform);
            (references[lane], factors[lane], counts[lane]) = (softmax.reference, softmax.factor, 1.0);
            offset_scales[lane] = scales[lane] / transform.temperature();
            uniforms[lane] = share(offset_scales[lane], target.uniform);
            if let Some((class, weight)) = target.point {
                (classes[lane], points[lane]) = (class as f64, share(offset_scales[lane], weight));
            }
        }
    }
    let boostable = |factor: &f64| *factor == 0.0 || factor.is_nan() || can_boost::<R>(*factor);
    let boost = if factors.iter().all(boostable) {
        Boost::Full
    } else if factors.iter().any(|factor| can_boost::<R>(*factor)) {
        return false;
    } else {
        Boost::None
    };
    let factors = factors.map(|factor| take_back::<R>(factor, boost));
    let dense = DENSE && targets.iter().flatten().any(|target| target.dense.is_some());
    simd.vectorize(
        #[inline(always)]
        || {
            let scale = Scale::<S, R>::new(simd, transform);
            let [references, factor, counts, classes, point] =
                [&references, &factors, &counts, &classes, &points].map(|values| lanes::<S, R>(simd, values));
            let reference = scale.references::<MODE>(transform, references);
            let (zero, one) = (R::splat(simd, 0.0), R::splat(simd, 1.0));
            let counts = counts.simd_gt(zero);
            let mut offset = lanes::<S, R>(simd, &uniforms);
            let mut number = zero;
            // Zeros for 4 KiB take as long as a tile of ten classes.
            let mut scratch = dense.then(|| {
                let weights = TileWeights { targets, lanes: R::LANES, sums: [0.0; MOST_LANES], row: [0.0; BLOCK] };
                (weights, [0.0; BLOCK])
            });
            let step = BLOCK / R::LANES;
            for index in 0..tile.classes() {
                if let Some((weights, block)) = &mut scratch {
                    if index % step == 0 {
                        weights.fill(simd, index, step.min(tile.classes() - index), block);
                    }
                    let here = &block[index % step * R::LANES..][..R::LANES];
                    for ((lane, weight), scale) in offset.as_mut_slice().iter_mut().zip(here).zip(&offset_scales) {
                        *lane = R::from_f64(share(*scale, *weight));
                    }
                }
                // SAFETY: the caller's promise.
                unsafe {
                    let x = tile.load(simd, index);
                    let (value, slope) = value_of::<S, R, MODE>(simd, transform, x);
                    let exp = scale.exp::<MODE>(value, reference, boost);
                    let offset = classes.simd_eq(number).select(offset + point, offset);
                    let gradient = difference_of::<S, R>(x, exp, factor, offset);
                    let gradient = slope.map_or(gradient, |slope| gradient * slope);
                    out.store(simd, index, counts.select(gradient, zero));
                }
                number += one;
            }
        },
    );
    true
}

/// For each lane `scale` times the diagonal of the Hessian of its row, but for the entry of the reference's class,
/// which [`RowLoss::own_variance`] has.
///
/// # Safety
/// As for [`gradients`].
#[inline(always)]
pub unsafe fn variances<S: Simd, E: Element, O: Element<Real = E::Real>>(
    simd: S,
    tile: Tile<E>,
    out: Tile<O>,
    losses: &PerLane<Option<RowLoss>>,
    scales: &PerLane<f64>,
    transform: Transform,
) {
    let (tile, out) = (AnyTile::of(tile), AnyTile::of(out));
    // SAFETY: the caller's promise.
    unsafe { variances_of::<S, E::Real>(simd, tile, out, losses, scales, transform) }
}

/// # Safety
/// As for [`gradients`].
#[inline(never)]
unsafe fn variances_of<S: Simd, R: Real>(
    simd: S,
    tile: AnyTile,
    out: AnyTile,
    losses: &PerLane<Option<RowLoss>>,
    scales: &PerLane<f64>,
    transform: Transform,
) {
    let [mut references, mut factors, mut variance_scales, mut counts] = [[0.0; MOST_LANES]; 4];
    for (lane, loss) in losses.iter().enumerate() {
        if let Some(loss) = loss {
            let softmax = loss.softmax(transform);
            (references[lane], factors[lane]) = (softmax.reference, take_back::<R>(softmax.factor, Boost::Full));
            variance_scales[lane] = take_back::<R>(loss.variance_scale(scales[lane], transform), Boost::None);
            counts[lane] = 1.0;
        }
    }
    simd.vectorize(
        #[inline(always)]
        || {
            with_uncapped_mode!(transform, MODE => {
                let scale = Scale::<S, R>::new(simd, transform);
                let reference = Value::plain(lanes::<S, R>(simd, &references));
                let factor = lanes::<S, R>(simd, &factors);
                let variance_scale = lanes::<S, R>(simd, &variance_scales);
                let zero = R::splat(simd, 0.0);
                let counts = lanes::<S, R>(simd, &counts).simd_gt(zero);
                for index in 0..Tiled::<S, R>::classes(&tile) {
                    // SAFETY: the caller's promise.
                    unsafe {
                        let x: R::Lanes<S> = Tiled::<S, R>::load(&tile, simd, index);
                        let exp = scale.exp::<MODE>(Value::plain(x), reference, Boost::Full);
                        let variance = variance_of::<S, R>(exp * factor, variance_scale);
                        Tiled::<S, R>::store(&out, simd, index, counts.select(variance, zero));
                    }
                }
            });
        },
    );
}

/// The first numbers of `values` as lanes.
#[inline(always)]
fn lanes<S: Simd, R: Real>(simd: S, values: &PerLane<f64>) -> R::Lanes<S> {
    let mut lanes = R::splat(simd, 0.0);
    for (lane, value) in lanes.as_mut_slice().iter_mut().zip(values) {
        *lane = R::from_f64(*value);
    }
    lanes
}
