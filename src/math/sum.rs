//! Sums that keep their accuracy.
//!
//! A block of exponentials is summed in lanes, four chains of a few terms each, then added to a [`Total`], which has
//! twice the precision: two f64 vectors that widen the f32 lanes, or that hold the f64 lanes and what they lost.
//! Plain f32 lanes over a row of 262144 would be wrong by 3e-5.

use fearless_simd::{Simd, f64x8, prelude::*};

use super::{Real, Twice};

/// A sum over lanes in twice their precision.
#[derive(Clone, Copy)]
pub struct Total<S: Simd> {
    pub(super) parts: Twice<S>,
}

impl<S: Simd> Total<S> {
    /// The empty sum.
    #[inline(always)]
    pub fn zero(simd: S) -> Self {
        Self { parts: [f64x8::splat(simd, 0.0); 2] }
    }

    /// Add the products of lanes of f32 in twice their precision.
    #[inline(always)]
    pub fn add_products(&mut self, a: Twice<S>, b: Twice<S>) {
        self.parts[0] = a[0].mul_add(b[0], self.parts[0]);
        self.parts[1] = a[1].mul_add(b[1], self.parts[1]);
    }

    /// Add another total of numbers of this type.
    #[inline(always)]
    pub fn add<R: Real>(&mut self, other: Self) {
        R::add_twice(self, other.parts);
    }

    /// Add a single number.
    #[inline(always)]
    pub fn add_scalar(&mut self, value: f64) {
        self.parts[1].as_mut_slice()[0] += value;
    }

    /// The sum of all lanes, in a fixed order.
    #[inline(always)]
    pub fn value(self) -> f64 {
        let lanes: [f64; 8] = (self.parts[0] + self.parts[1]).into();
        ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6])) + ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]))
    }
}

/// `a + b`, and what the rounding lost.
#[inline(always)]
pub fn two_sum<L: Copy + std::ops::Add<Output = L> + std::ops::Sub<Output = L>>(a: L, b: L) -> [L; 2] {
    let sum = a + b;
    let of_b = sum - a;
    [sum, (a - (sum - of_b)) + (b - of_b)]
}

/// `a + b`, and what the rounding lost, for a `b` that is no larger than `a`.
#[inline(always)]
pub fn quick_sum<L: Copy + std::ops::Add<Output = L> + std::ops::Sub<Output = L>>(a: L, b: L) -> [L; 2] {
    let sum = a + b;
    [sum, b - (sum - a)]
}

/// The sum of numbers in twice their precision.
pub fn precise_sum(numbers: impl IntoIterator<Item = f64>) -> f64 {
    let (sum, lost) = numbers.into_iter().fold((0.0, 0.0), |(sum, lost), number| {
        let [sum, rest] = two_sum(sum, number);
        (sum, lost + rest)
    });
    // What an infinity lost is NaN.
    if sum.is_finite() { sum + lost } else { sum }
}

#[cfg(test)]
mod tests {
    use fearless_simd::f32x16;

    use super::*;
    use crate::simd::{Kernel, Level};

    #[test]
    fn totals_keep_what_lanes_would_lose() {
        struct Sum;
        impl Kernel for Sum {
            type Output = [f64; 2];
            #[inline(always)]
            fn run<S: Simd>(self, simd: S) -> [f64; 2] {
                let (mut single, mut double) = (Total::zero(simd), Total::zero(simd));
                for value in [1e8, 1.0, -1e8, 1e-3] {
                    f32::add_to(&mut single, f32x16::splat(simd, value as f32));
                }
                for value in [1e16, 1.0, -1e16, 1e-3] {
                    f64::add_to(&mut double, f64x8::splat(simd, value));
                }
                [single.value() / 16.0, double.value() / 8.0]
            }
        }
        for &level in Level::available() {
            let [single, double] = level.run(Sum);
            assert!((single - (1.0 + f64::from(1e-3f32))).abs() < 1e-7, "{single}");
            assert!((double - 1.001).abs() < 1e-12, "{double}");
        }
    }
}
