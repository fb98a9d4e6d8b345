//! Sums without rounding: of the same numbers in any order, cut in any way, the same bits.
//!
//! Every finite f64 is a whole number of 2^-1074. A sum of them is a whole number, too, kept here in digits of 32 bits, each in an
//! i64, so that carries can wait. A number falls upon three digits, which takes some nanoseconds.
//!
//! Most come faster, eight at a time. `(v + M) − M`, with `M = 1.5·2^52·u`, rounds v to a multiple of the unit u; the rest is exact,
//! and is rounded to a multiple of a smaller unit in turn. Sums of multiples of u are exact in f64 as long as they are below
//! 2^53·u. With units of 2^-20, 2^-60, 2^-100 and 2^-140 nothing is left of numbers below 2^20 whose last bit is above 2^-141, and
//! 2^12 of them can be summed before the sums go to the digits. Others go there at once. Of most numbers nothing is left after two units,
//! and what a rounded square lacks needs the last three.

use fearless_simd::{Simd, f64x8, prelude::*};

/// What numbers are rounded to, one after the other.
const UNITS: [f64; 4] = [
    1.0 / (1u64 << 20) as f64,
    1.0 / (1u64 << 60) as f64,
    1.0 / (1u64 << 50) as f64 / (1u64 << 50) as f64,
    1.0 / (1u64 << 50) as f64 / (1u64 << 50) as f64 / (1u64 << 40) as f64,
];

/// Numbers below this are rounded so.
const LARGEST: f64 = (1 << 20) as f64;

/// So many vectors are summed before their sums go to the digits.
const MOST_VECTORS: u32 = 1 << 12;

/// The digits of a number with 2098 bits, and two for carries.
const DIGITS: usize = 68;

/// So many numbers fit into digits of an i64 between two carries.
const MOST_NUMBERS: u32 = 1 << 30;

/// The sum of some numbers.
#[derive(Clone, Debug)]
pub struct ExactSum {
    /// Sums of multiples of each unit, lane by lane.
    lanes: [[f64; 8]; 4],
    /// How many vectors they are of.
    vectors: u32,
    /// In units of 2^-1074, 32 bits each, the lowest first.
    digits: [i64; DIGITS],
    /// How many numbers they are of, since the last carry.
    numbers: u32,
    /// The sum of what is not finite.
    not_finite: f64,
}

impl Default for ExactSum {
    fn default() -> Self {
        Self { lanes: [[0.0; 8]; 4], vectors: 0, digits: [0; DIGITS], numbers: 0, not_finite: 0.0 }
    }
}

impl ExactSum {
    /// Add vectors of eight numbers.
    #[inline(always)]
    pub fn add_lanes<S: Simd, const N: usize>(&mut self, simd: S, numbers: [f64x8<S>; N]) {
        if !self.add_parts::<S, N, 0>(simd, &numbers) {
            self.add_each(&numbers);
        }
    }

    /// Add the products of pairs of numbers, each as a sum of two; what is below 2^-1022 of the second is lost.
    #[inline(always)]
    pub fn add_products<S: Simd, const N: usize>(&mut self, simd: S, a: [f64x8<S>; N], b: [f64x8<S>; N]) {
        let (mut products, mut lost) = (a, a);
        for vector in 0..N {
            products[vector] = a[vector] * b[vector];
            lost[vector] = a[vector].mul_sub_precise(b[vector], products[vector]);
        }
        if !self.add_parts::<S, N, 0>(simd, &products) {
            self.add_each(&products);
            for (lost, product) in lost.iter_mut().zip(products) {
                *lost = product.is_finite().select(*lost, f64x8::splat(simd, 0.0));
            }
        }
        if !self.add_parts::<S, N, 1>(simd, &lost) {
            self.add_each(&lost);
        }
    }

    /// Add what vectors are rounded to, from unit number `FIRST` on, if nothing is left of them then; whether it was added.
    #[inline(always)]
    fn add_parts<S: Simd, const N: usize, const FIRST: usize>(&mut self, simd: S, numbers: &[f64x8<S>; N]) -> bool {
        let (zero, mut largest) = (f64x8::splat(simd, 0.0), numbers[0].abs());
        let mut sums = [zero; UNITS.len()];
        let (mut rest, mut unit) = (*numbers, FIRST);
        loop {
            let magic = f64x8::splat(simd, 6_755_399_441_055_744.0 * UNITS[unit]);
            for rest in &mut rest {
                let part = (*rest + magic) - magic;
                *rest -= part;
                // Like the sums, a sum of a few parts is exact.
                sums[unit] += part;
            }
            unit += 1;
            if unit == 2 || unit == UNITS.len() {
                let mut left = rest[0].simd_eq(zero);
                for rest in &rest[1..] {
                    left &= rest.simd_eq(zero);
                }
                // NaN is never 0.
                if left.all_true() {
                    break;
                }
                if unit == UNITS.len() {
                    return false;
                }
            }
        }
        for number in &numbers[1..] {
            largest = largest.max(number.abs());
        }
        let most = if FIRST == 0 { LARGEST } else { UNITS[FIRST - 1] / 2.0 };
        if !largest.simd_le(f64x8::splat(simd, most)).all_true() {
            return false;
        }
        for (to, sum) in self.lanes[FIRST..unit].iter_mut().zip(&sums[FIRST..unit]) {
            (f64x8::from_slice(simd, &to[..]) + *sum).store_slice(&mut to[..]);
        }
        self.vectors += N as u32;
        if self.vectors >= MOST_VECTORS {
            self.settle();
        }
        true
    }

    /// Add the numbers of vectors one by one.
    #[inline(never)]
    fn add_each<S: Simd>(&mut self, numbers: &[f64x8<S>]) {
        for vector in numbers {
            for number in <[f64; 8]>::from(*vector) {
                self.add(number);
            }
        }
    }

    /// Add a number.
    #[inline(never)]
    pub fn add(&mut self, number: f64) {
        if !number.is_finite() {
            self.not_finite += number;
            return;
        }
        let bits = number.to_bits();
        let (exponent, fraction) = ((bits >> 52) & 0x7ff, bits & ((1 << 52) - 1));
        // Subnormal numbers have the exponent of the smallest normal ones, and no bit before the point.
        let (place, whole) = if exponent == 0 { (0, fraction) } else { (exponent - 1, fraction | 1 << 52) };
        let (digit, shifted) = ((place / 32) as usize, u128::from(whole) << (place % 32));
        for (part, to) in self.digits[digit..digit + 3].iter_mut().enumerate() {
            let value = i64::from((shifted >> (32 * part)) as u32);
            *to += if number < 0.0 { -value } else { value };
        }
        self.numbers += 1;
        if self.numbers == MOST_NUMBERS {
            self.carry();
        }
    }

    /// Add another sum.
    pub fn merge(&mut self, mut other: Self) {
        other.settle();
        other.carry();
        self.carry();
        for (to, from) in self.digits.iter_mut().zip(other.digits) {
            *to += from;
        }
        self.not_finite += other.not_finite;
        self.numbers = 2;
    }

    /// The sum of the finite numbers in units of 2^-1074, in two's complement, the lowest byte first; and that of the others.
    pub fn to_bytes(mut self) -> ([u8; 4 * DIGITS], f64) {
        self.settle();
        self.carry();
        let mut bytes = [0; 4 * DIGITS];
        for (to, digit) in bytes.chunks_exact_mut(4).zip(self.digits) {
            to.copy_from_slice(&(digit as u32).to_le_bytes());
        }
        (bytes, self.not_finite)
    }

    /// Take the lanes' sums to the digits.
    #[inline(never)]
    fn settle(&mut self) {
        if self.vectors == 0 {
            return;
        }
        for sum in self.lanes.as_flattened().to_owned() {
            if sum != 0.0 {
                self.add(sum);
            }
        }
        (self.lanes, self.vectors) = ([[0.0; 8]; 4], 0);
    }

    /// Make digits smaller than 2^32, all but the last positive.
    fn carry(&mut self) {
        let mut carried = 0;
        for digit in &mut self.digits[..DIGITS - 1] {
            let sum = *digit + carried;
            *digit = sum & 0xffff_ffff;
            carried = sum >> 32;
        }
        self.digits[DIGITS - 1] += carried;
        self.numbers = 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::{Kernel, Level};

    struct Sum<'a>(&'a [f64]);

    impl Kernel for Sum<'_> {
        type Output = ExactSum;

        #[inline(always)]
        fn run<S: Simd>(self, simd: S) -> ExactSum {
            let mut sum = ExactSum::default();
            let (vectors, rest) = self.0.as_chunks::<8>();
            // Two vectors at a time, and the last by itself.
            for pair in vectors.chunks(2) {
                match pair {
                    [a, b] => sum.add_lanes(simd, [f64x8::from_slice(simd, a), f64x8::from_slice(simd, b)]),
                    _ => sum.add_lanes(simd, [f64x8::from_slice(simd, &pair[0])]),
                }
            }
            for number in rest {
                sum.add(*number);
            }
            sum
        }
    }

    /// Numbers of all sizes, each with its negative somewhere, and 5.
    fn numbers(count: usize) -> Vec<f64> {
        let mut bits = 0x9e37_79b9_7f4a_7c15_u64;
        let mut numbers: Vec<f64> = (0..count)
            .flat_map(|index| {
                bits ^= bits << 13;
                bits ^= bits >> 7;
                bits ^= bits << 17;
                let number = if index % 3 == 0 { f64::from_bits(bits) } else { (bits as f64).sqrt() * 1e-9 };
                let number = if number.is_finite() { number } else { 1.0 / 3.0 };
                [number, -number]
            })
            .collect();
        numbers.push(5.0);
        let length = numbers.len();
        for index in 0..length {
            numbers.swap(index, (index * 7919 + 13) % length);
        }
        numbers
    }

    #[test]
    fn what_cancels_leaves_nothing_in_any_order() {
        let numbers = numbers(20_000);
        let mut five = ExactSum::default();
        five.add(5.0);
        let expected = five.to_bytes();
        for &level in Level::available() {
            assert_eq!(level.run(Sum(&numbers)).to_bytes(), expected, "{}", level.name());
            let mut merged = ExactSum::default();
            for part in numbers.chunks(1023).rev() {
                merged.merge(level.run(Sum(part)));
            }
            assert_eq!(merged.to_bytes(), expected, "{}", level.name());
        }
    }

    #[test]
    fn vectors_have_the_sum_of_their_numbers() {
        // More than fit into lanes, all of them as large as lanes take, and with bits in each unit.
        let numbers: Vec<f64> = (0..1 << 16).map(|index| LARGEST - f64::from(index) * 2f64.powi(-31)).collect();
        let mut expected = ExactSum::default();
        for number in &numbers {
            expected.add(*number);
        }
        let expected = expected.to_bytes();
        for &level in Level::available() {
            assert_eq!(level.run(Sum(&numbers)).to_bytes(), expected, "{}", level.name());
            let small: Vec<f64> = numbers.iter().map(|number| -(number - LARGEST + 1e-9) / 3.0).collect();
            let mut one_by_one = ExactSum::default();
            for number in &small {
                one_by_one.add(*number);
            }
            assert_eq!(level.run(Sum(&small)).to_bytes(), one_by_one.to_bytes(), "{}", level.name());
        }
    }

    struct Products([f64; 8]);

    impl Kernel for Products {
        type Output = ExactSum;

        #[inline(always)]
        fn run<S: Simd>(self, simd: S) -> ExactSum {
            let mut sum = ExactSum::default();
            let numbers: f64x8<S> = self.0.simd_into(simd);
            sum.add_products(simd, [numbers], [-numbers]);
            sum
        }
    }

    #[test]
    fn products_are_exact() {
        // (1 ± 2^-40)² = 1 ± 2^-39 + 2^-80.
        let (above, below) = (1.0 + 2f64.powi(-40), 1.0 - 2f64.powi(-40));
        let mut expected = ExactSum::default();
        for number in [-1.0, -2f64.powi(-39), -2f64.powi(-80), -1.0, 2f64.powi(-39), -2f64.powi(-80)] {
            expected.add(number);
        }
        for &level in Level::available() {
            let found = level.run(Products([above, below, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]));
            assert_eq!(found.to_bytes(), expected.clone().to_bytes(), "{}", level.name());
        }
    }

    struct PairsOfProducts<'a>(&'a [f64], &'a [f64]);

    impl Kernel for PairsOfProducts<'_> {
        type Output = ExactSum;

        #[inline(always)]
        fn run<S: Simd>(self, simd: S) -> ExactSum {
            let mut sum = ExactSum::default();
            for (a, b) in self.0.chunks_exact(16).zip(self.1.chunks_exact(16)) {
                let vectors =
                    |numbers: &[f64]| [f64x8::from_slice(simd, &numbers[..8]), f64x8::from_slice(simd, &numbers[8..])];
                sum.add_products(simd, vectors(a), vectors(b));
            }
            sum
        }
    }

    #[test]
    fn products_of_all_sizes_have_the_sum_of_both_parts() {
        // Losses as they are, large ones, confident ones, and what no unit holds.
        let scales = [1.0, 1e-3, 1e-9, 1e5, 1e-30, 1e-160, 1e160];
        for (first, second) in scales.iter().flat_map(|first| scales.iter().map(move |second| (first, second))) {
            if first * second < 1e-250 {
                continue;
            }
            let numbers = |seed: u64, scale: f64| -> Vec<f64> {
                let number = |index: u64| ((index * 7919 + seed) % 104_729) as f64 / 3.0 / 104_729.0;
                (0..64).map(|index| scale * number(index)).collect()
            };
            let (a, mut b) = (numbers(13, *first), numbers(5, *second));
            b[20] *= 1e12;
            let mut expected = ExactSum::default();
            for (a, b) in a.iter().zip(&b) {
                let product = a * b;
                expected.add(product);
                if product.is_finite() {
                    expected.add(a.mul_add(*b, -product));
                }
            }
            let expected = expected.to_bytes();
            for &level in Level::available() {
                let found = level.run(PairsOfProducts(&a, &b)).to_bytes();
                assert_eq!(found, expected, "{} {first} {second}", level.name());
            }
        }
    }

    #[test]
    fn units_are_the_smallest_number() {
        let mut sum = ExactSum::default();
        for number in [5e-324, 5e-324, -5e-324, 5e-324] {
            sum.add(number);
        }
        assert_eq!(sum.to_bytes().0[..2], [2, 0]);
        let mut sum = ExactSum::default();
        sum.add(-5e-324);
        assert!(sum.to_bytes().0.iter().all(|byte| *byte == 0xff));
        let mut sum = ExactSum::default();
        sum.add(1.0);
        let (bytes, _) = sum.to_bytes();
        assert!(bytes[1074 / 8] == 1 << (1074 % 8) && bytes.iter().filter(|byte| **byte != 0).count() == 1);
    }

    #[test]
    fn what_is_not_finite_is_summed_apart() {
        let (lowest, one) = (f64::NEG_INFINITY, [1.0; 7]);
        for &level in Level::available() {
            let mut sum = level.run(Sum(&[lowest, one[0], one[1], one[2], one[3], one[4], one[5], one[6]]));
            assert_eq!(sum.clone().to_bytes().1, lowest);
            sum.add(f64::INFINITY);
            let (bytes, not_finite) = sum.to_bytes();
            assert!(not_finite.is_nan());
            let mut seven = ExactSum::default();
            seven.add(7.0);
            assert_eq!(bytes, seven.to_bytes().0);
        }
    }
}
