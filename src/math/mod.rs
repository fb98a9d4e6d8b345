//! The two compute types, f32 and f64: their lanes, exponentials and logarithms, and sums that keep their accuracy.

mod double;
mod exact;
mod exponential;
mod logarithm;
mod octaves;
mod real;
mod single;
mod sum;

pub use exact::ExactSum;
pub use exponential::{Argument, Boost, Method, argument_of_sums, exp, exp_minus_one, half_tanh, regrow, shrinkage};
pub use logarithm::{log_one_plus, logs_of_quotient};
pub use octaves::{Octaves, REACH, Reference, Scale, Terms, power_of_rest};
pub use real::Real;
pub use sum::{Total, precise_sum, quick_sum, two_sum};

use fearless_simd::{Simd, f64x8, prelude::*};

/// Lanes in twice their precision: those of f32 as f64, in two halves; those of f64 as a sum of two.
pub type Twice<S> = [f64x8<S>; 2];

/// Weighted differences are summed in units of this power of two, so that a difference of any two logits is finite, and
/// the sum of a block of them.
pub const UNIT: f64 = 1024.0;

/// Whether a level has fused multiply-adds, and an instruction that looks a number up in eight: AVX-512, AVX2 and NEON do.
pub const fn is_fused<S: Simd>() -> bool {
    // NEON is AArch64's only level.
    cfg!(target_arch = "aarch64") || <S::f32s as SimdBase<S>>::LEN >= 8
}

/// How many vectors a loop should work on at a time, the same step of each in turn.
///
/// An exponential is a chain of a dozen operations. One after the other they fill the scheduler with operations that
/// wait for each other. The lanes of the levels below AVX-512 are several registers each, which is as good; with more of
/// them at a time they would not fit.
pub const fn vectors_at_a_time<S: Simd>() -> usize {
    match <S::f32s as SimdBase<S>>::LEN {
        16 => 4,
        8 => 2,
        _ => 1,
    }
}

/// Run `$body` with the constant `$count` set to [`vectors_at_a_time`] of the level `$simd`.
macro_rules! with_vectors_at_a_time {
    ($simd:ty, $count:ident => $body:expr) => {
        match const { $crate::math::vectors_at_a_time::<$simd>() } {
            4 => {
                const $count: usize = 4;
                $body
            }
            2 => {
                const $count: usize = 2;
                $body
            }
            _ => {
                const $count: usize = 1;
                $body
            }
        }
    };
}
pub(crate) use with_vectors_at_a_time;

/// The numbers of the lanes.
#[inline(always)]
pub fn lane_numbers<S: Simd>(simd: S) -> f64x8<S> {
    [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0].simd_into(simd)
}

/// A polynomial by Horner's rule, highest power first.
#[inline(always)]
pub fn polynomial<S: Simd, R: Real>(simd: S, coefficients: &[R], x: R::Lanes<S>) -> R::Lanes<S> {
    let [sum] = polynomials(simd, coefficients, [x]);
    sum
}

/// [`polynomial`] of some vectors, the same step of each in turn.
#[inline(always)]
fn polynomials<S: Simd, R: Real, const K: usize>(simd: S, coefficients: &[R], x: [R::Lanes<S>; K]) -> [R::Lanes<S>; K] {
    let lanes = |value| R::Lanes::<S>::simd_from(simd, value);
    let mut sums = [lanes(coefficients[0]); K];
    for &coefficient in &coefficients[1..] {
        for k in 0..K {
            sums[k] = sums[k].mul_add(x[k], lanes(coefficient));
        }
    }
    sums
}
