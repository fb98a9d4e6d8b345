//! What is once a row, for as many rows as there are lanes: losses, and what gradients need.

use fearless_simd::{Simd, f64x8, prelude::*};

use crate::math::{Real, power_of_rest, shortfall};

/// The most lanes that a type has.
pub const MOST_LANES: usize = 16;

/// Lanes of f64.
pub const HALF: usize = 8;

/// One value a lane. Such fields come first in structs that begin on a boundary of cache lines, so that no load crosses one.
pub type PerLane<T> = [T; MOST_LANES];

/// What some rows should be, one a lane.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub struct Own {
    /// 1 for the rows that count, 0 for others.
    pub counts: PerLane<f64>,
    /// The class of each row; any of them for rows that do not count.
    pub class: PerLane<usize>,
}

/// What is known of some rows once they were read, one a lane.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub struct Sums {
    /// The exponentials of the classes that are not a row's own, boosted.
    pub others: PerLane<f64>,
    /// By how many whole octaves the reference was raised.
    pub octaves: PerLane<f64>,
    /// By how many steps of an octave, at most half of one, it was above the own logit before.
    pub rest: PerLane<f64>,
    /// A bit for each row that counts.
    pub counts: u32,
    /// A bit for each row whose logits are within reach of the reference.
    pub suits: u32,
}

impl Sums {
    /// Of no row.
    #[inline(always)]
    pub fn none() -> Self {
        let nothing = [0.0; MOST_LANES];
        Self { others: nothing, octaves: nothing, rest: nothing, counts: 0, suits: 0 }
    }
}

/// Losses of rows, one a lane.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub struct Losses {
    /// `log(1 + ratio)`.
    pub loss: PerLane<f64>,
    /// The other exponentials over the own one.
    ratio: PerLane<f64>,
    /// One over the own exponential and over [`Real::BOOST`].
    inverse: PerLane<f64>,
    /// A bit for each row that counts.
    counts: u32,
    /// A bit for each row that counts and needs the careful path.
    pub careful: u32,
}

/// What gradients of rows need, one a lane.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub struct Coefficients {
    /// What exponentials are multiplied by.
    pub factor: PerLane<f64>,
    /// The gradient of the own class.
    pub own: PerLane<f64>,
    /// A bit for each row that counts and needs the careful path.
    pub careful: u32,
}

/// The lanes of a mask as bits.
#[inline(always)]
pub(super) fn bits<S: Simd, M: SimdMask<S>>(mask: M) -> u32 {
    mask.to_bitmask() as u32
}

/// Eight lanes from number `half` on.
#[inline(always)]
pub fn load<S: Simd>(simd: S, numbers: &PerLane<f64>, half: usize) -> f64x8<S> {
    f64x8::from_slice(simd, &numbers[half..half + HALF])
}

/// The other way.
#[inline(always)]
pub fn store<S: Simd>(lanes: f64x8<S>, numbers: &mut PerLane<f64>, half: usize) {
    lanes.store_slice(&mut numbers[half..half + HALF]);
}

/// The losses of rows of logits that are computed with in `R`.
#[inline(never)]
pub fn losses<S: Simd, R: Real>(simd: S, sums: &Sums) -> Losses {
    simd.vectorize(
        #[inline(always)]
        || {
            let nothing = [0.0; MOST_LANES];
            let mut found = Losses { loss: nothing, ratio: nothing, inverse: nothing, counts: sums.counts, careful: 0 };
            let lanes = |value: f64| f64x8::splat(simd, value);
            let mut finite = 0;
            for half in (0..R::LANES).step_by(HALF) {
                let inverse = power_of_rest(simd, load(simd, &sums.octaves, half), load(simd, &sums.rest, half));
                let inverse = inverse * lanes(1.0 / R::BOOST);
                let ratio = load(simd, &sums.others, half) * inverse;
                let loss = R::log_one_plus(simd, ratio);
                store(loss.mul_add(lanes(shortfall::<R>()), loss), &mut found.loss, half);
                store(ratio, &mut found.ratio, half);
                store(inverse, &mut found.inverse, half);
                // NaN is not less than anything.
                finite |= bits::<S, _>(ratio.simd_lt(lanes(f64::INFINITY))) << half;
            }
            found.careful = sums.counts & !(sums.suits & finite);
            found
        },
    )
}

/// What gradients need that are multiplied by `scales`.
#[inline(never)]
pub fn coefficients<S: Simd, R: Real>(simd: S, losses: &Losses, scales: &PerLane<f64>) -> Coefficients {
    simd.vectorize(
        #[inline(always)]
        || {
            let mut of = Coefficients { factor: [0.0; MOST_LANES], own: [0.0; MOST_LANES], careful: 0 };
            let mut finite = 0;
            for half in (0..R::LANES).step_by(HALF) {
                let ratio = load(simd, &losses.ratio, half);
                let share = load(simd, scales, half) / (ratio + f64x8::splat(simd, 1.0));
                store(share * load(simd, &losses.inverse, half), &mut of.factor, half);
                // An infinite share of a ratio of 0 is no number.
                finite |= bits::<S, _>(share.is_finite()) << half;
                store(f64x8::splat(simd, 0.0) - share * ratio, &mut of.own, half);
            }
            let size = R::narrow(simd, &of.factor).abs();
            let lanes = |value: f64| R::splat(simd, value);
            let normal = size.simd_ge(lanes(R::SMALLEST_NORMAL)) & size.simd_lt(lanes(f64::INFINITY));
            let nothing = R::narrow(simd, scales).simd_eq(lanes(0.0));
            of.careful = losses.careful | losses.counts & !(bits::<S, _>(normal | nothing) & finite);
            of
        },
    )
}
