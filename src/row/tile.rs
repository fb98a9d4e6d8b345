//! The vertical twin of the row kernels: rows across lanes.
//!
//! A row of ten classes fills ten of a vector's 16 lanes once, and the work around it (horizontal sums, padding) takes
//! ten times as long as its exponentials. A [`Tile`] is as many rows as there are lanes, lane by lane next to each
//! other: either because they are so in memory (an inner class axis), or because they were transposed into a scratch.
//! Then nothing is horizontal and nothing is padded.
//!
//! 262144 × 10 float32 on a busy machine: the loss took 26 ms by rows and takes 6.2 ms by tiles, with the gradient 40 and
//! 9.3 ms. What is left is two calls of libm a row, for the loss of each.

use std::mem::MaybeUninit;

use fearless_simd::{Simd, prelude::*};

use super::map::{can_boost, splat, take_back};
use super::temperature::Scale;
use super::{ClassLoss, LogSumExp, Temperature};
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

/// For each lane the log-sum-exp of its row without the class that `left_out` names (none, if negative).
///
/// # Safety
/// The tile's values are readable.
#[inline(never)]
pub unsafe fn log_sum_exps<S: Simd, E: Element>(
    simd: S,
    tile: Tile<E>,
    left_out: &PerLane<f64>,
    temperature: Temperature,
) -> PerLane<LogSumExp> {
    simd.vectorize(
        #[inline(always)]
        || {
            // SAFETY: the caller's promise.
            unsafe {
                if temperature.is_one() {
                    inlined_log_sum_exps::<S, E, false>(simd, tile, left_out, temperature)
                } else {
                    inlined_log_sum_exps::<S, E, true>(simd, tile, left_out, temperature)
                }
            }
        },
    )
}

/// # Safety
/// As for [`log_sum_exps`].
#[inline(always)]
unsafe fn inlined_log_sum_exps<S: Simd, E: Element, const SCALED: bool>(
    simd: S,
    tile: Tile<E>,
    left_out: &PerLane<f64>,
    temperature: Temperature,
) -> PerLane<LogSumExp> {
    let scale = Scale::<S, E::Real>::new(simd, temperature);
    let left_out = lanes::<S, E::Real>(simd, left_out);
    let masked = splat::<S, E::Real>(simd, f64::NEG_INFINITY);
    let mut reference = splat::<S, E::Real>(simd, E::Real::LOWEST.to_f64());
    let mut number = splat::<S, E::Real>(simd, 0.0);
    let one = splat::<S, E::Real>(simd, 1.0);
    for class in 0..tile.classes {
        // SAFETY: readable by the caller's promise.
        let x = unsafe { E::load(simd, tile.pointer(class)) };
        // NaN is found again by the sum: `a.max(b)` is b when either is NaN, here the old reference.
        reference = left_out.simd_eq(number).select(masked, x).max(reference);
        number += one;
    }
    let mut sum = Total::zero(simd);
    number = splat::<S, E::Real>(simd, 0.0);
    for class in 0..tile.classes {
        // SAFETY: readable by the caller's promise.
        let x = unsafe { E::load(simd, tile.pointer(class)) };
        let x = left_out.simd_eq(number).select(masked, x);
        E::Real::add_to(&mut sum, scale.exp::<SCALED>(x, reference, Boost::None).0);
        number += one;
    }
    let mut sums = [0.0; MOST_LANES];
    E::Real::lane_totals(&sum, &mut sums);
    let mut found = [LogSumExp { reference: 0.0, sum: 0.0 }; MOST_LANES];
    for ((found, reference), sum) in found.iter_mut().zip(reference.as_slice()).zip(sums) {
        *found = LogSumExp { reference: reference.to_f64(), sum };
    }
    found
}

/// For each lane the gradient of its row, `scale · (softmax(x / T) − target) / T`, into `out`: but the entries of the
/// targets, which [`ClassLoss::own_gradient`] has. Lanes without a loss get zeros.
///
/// Nothing is written, and the result is false, if some lanes need the boost of [`Real::exp`] and others must do
/// without it, which is so when the scales differ by 18 orders of magnitude.
///
/// # Safety
/// The values of `tile` are readable, those of `out` writeable, and `out` is `tile` itself or apart from it.
#[inline(never)]
pub unsafe fn gradients<S: Simd, E: Element, O: Element<Real = E::Real>>(
    simd: S,
    tile: Tile<E>,
    out: Tile<O>,
    losses: &PerLane<Option<ClassLoss>>,
    scales: &PerLane<f64>,
    temperature: Temperature,
) -> bool {
    simd.vectorize(
        #[inline(always)]
        || {
            // SAFETY: the caller's promise.
            unsafe {
                if temperature.is_one() {
                    inlined_gradients::<S, E, O, false>(simd, tile, out, losses, scales, temperature)
                } else {
                    inlined_gradients::<S, E, O, true>(simd, tile, out, losses, scales, temperature)
                }
            }
        },
    )
}

/// # Safety
/// As for [`gradients`].
#[inline(always)]
unsafe fn inlined_gradients<S: Simd, E: Element, O: Element<Real = E::Real>, const SCALED: bool>(
    simd: S,
    tile: Tile<E>,
    out: Tile<O>,
    losses: &PerLane<Option<ClassLoss>>,
    scales: &PerLane<f64>,
    temperature: Temperature,
) -> bool {
    let scale = Scale::<S, E::Real>::new(simd, temperature);
    let (mut references, mut factors, mut counts) = ([0.0; MOST_LANES], [0.0; MOST_LANES], [0.0; MOST_LANES]);
    for (lane, loss) in losses.iter().enumerate() {
        if let Some(loss) = loss {
            let softmax = loss.scaled_softmax(scales[lane], temperature);
            (references[lane], factors[lane]) = (softmax.reference, softmax.factor);
            counts[lane] = 1.0;
        }
    }
    let boostable = |factor: &f64| *factor == 0.0 || factor.is_nan() || can_boost::<E::Real>(*factor);
    let boost = if factors.iter().all(boostable) {
        Boost::Full
    } else if factors.iter().any(|factor| can_boost::<E::Real>(*factor)) {
        return false;
    } else {
        Boost::None
    };
    let factors = factors.map(|factor| take_back::<E::Real>(factor, boost));
    let reference = lanes::<S, E::Real>(simd, &references);
    let factor = lanes::<S, E::Real>(simd, &factors);
    let zero = splat::<S, E::Real>(simd, 0.0);
    let counts = lanes::<S, E::Real>(simd, &counts).simd_gt(zero);
    for class in 0..tile.classes {
        // SAFETY: the caller's promise.
        unsafe {
            let x = E::load(simd, tile.pointer(class));
            let probability = scale.exp::<SCALED>(x, reference, boost).0 * factor;
            O::store(simd, out.pointer(class), counts.select(probability, zero));
        }
    }
    true
}

/// The first numbers of `values` as lanes.
#[inline(always)]
fn lanes<S: Simd, R: Real>(simd: S, values: &PerLane<f64>) -> R::Lanes<S> {
    let mut lanes = splat::<S, R>(simd, 0.0);
    for (lane, value) in lanes.as_mut_slice().iter_mut().zip(values) {
        *lane = R::from_f64(*value);
    }
    lanes
}
