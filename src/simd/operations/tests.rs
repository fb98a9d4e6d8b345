//! The operations of every level against plain code.

use super::*;
use crate::simd::{Kernel, Level as Levels};

/// Load and store the first values of vectors of one kind, at each level, with numbers that tell their elements apart.
macro_rules! part {
    ($lanes:ident, $element:ty, $number:expr) => {
        struct Parted;

        impl Kernel for Parted {
            type Output = ();

            #[inline(always)]
            fn run<S: Simd>(self, simd: S) {
                let number: fn(usize) -> $element = $number;
                let behind = $lanes::from_fn(simd, |lane| number(100 + lane));
                for count in 0..=$lanes::<S>::LEN {
                    // Of just this size, so that tools that watch memory see what lies beyond it.
                    let source: Vec<$element> = (0..count).map(number).collect();
                    // SAFETY: the vector has so many values.
                    let lanes = unsafe { load_part(simd, source.as_ptr(), count, behind) };
                    let expected: Vec<_> = (0..$lanes::<S>::LEN)
                        .map(|lane| number(if lane < count { lane } else { 100 + lane }))
                        .collect();
                    assert_eq!(lanes.as_slice(), expected, "{count}");
                    let mut beyond: Vec<_> = (0..=$lanes::<S>::LEN + 1).map(|place| number(50 + place)).collect();
                    let untouched = beyond.clone();
                    // SAFETY: the vector has as many and two more.
                    unsafe { store_part(simd, beyond.as_mut_ptr().add(1), count, lanes) };
                    assert_eq!(beyond[1..=count], expected[..count], "{count}");
                    assert_eq!((beyond[0], &beyond[1 + count..]), (untouched[0], &untouched[1 + count..]), "{count}");
                }
            }
        }

        for level in Levels::available() {
            level.run(Parted);
        }
    };
}

#[test]
fn parts_of_f32() {
    part!(f32x16, f32, |index| index as f32 + 0.1);
}

#[test]
fn parts_of_f64() {
    part!(f64x8, f64, |index| index as f64 + 0.1);
}

#[test]
fn parts_of_u16() {
    part!(u16x16, u16, |index| 3001u16.wrapping_mul(index as u16));
}

struct LookUp<'a>(&'a [u64; 8]);

impl Kernel for LookUp<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let (whole, singles) = (self.0, self.0.map(|number| number as u32));
        let table = Table64::new(*whole);
        for turn in 0..64u64 {
            // Whatever stands in front of the three bits.
            let index = |lane: usize| (turn + lane as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let found = look_up_u32(simd, &singles, u32x16::from_fn(simd, |lane| index(lane) as u32));
            assert_eq!(found.to_array(), std::array::from_fn(|lane| singles[(index(lane) & 7) as usize]));
            let found = look_up_u64(simd, &table, u64x8::from_fn(simd, index));
            assert_eq!(found.to_array(), std::array::from_fn(|lane| whole[(index(lane) & 7) as usize]));
        }
    }
}

#[test]
fn numbers_are_looked_up_by_three_bits() {
    let table = std::array::from_fn(|number| 0x0123_4567_89ab_cdef_u64.rotate_left(7 * number as u32));
    for level in Levels::available() {
        level.run(LookUp(&table));
    }
}

struct Columns;

impl Kernel for Columns {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let numbers: Vec<f32> = (0..16 * 7).map(|number| number as f32).collect();
        let rows = std::array::from_fn(|row| numbers[7 * row + 2..].as_ptr());
        // SAFETY: four values from the third on are each row's, which has seven.
        let columns = unsafe { load_columns(simd, &rows) };
        for (column, lanes) in columns.iter().enumerate() {
            assert_eq!(lanes.to_array(), std::array::from_fn(|row| (7 * row + 2 + column) as f32));
        }
        let mut copy = vec![-1.0f32; numbers.len()];
        let base = copy.as_mut_ptr();
        // SAFETY: as above.
        unsafe { store_columns(simd, &std::array::from_fn(|row| base.add(7 * row + 2)), columns) };
        for (place, number) in copy.into_iter().enumerate() {
            assert_eq!(number, if (2..6).contains(&(place % 7)) { place as f32 } else { -1.0 });
        }
    }
}

#[test]
fn columns_are_read_and_written() {
    for level in Levels::available() {
        level.run(Columns);
    }
}

struct Halves;

impl Kernel for Halves {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let same = |found: f32, exact: f32| found.to_bits() == exact.to_bits() || found.is_nan() && exact.is_nan();
        for first in (0..=u16::MAX).step_by(16) {
            let bits = std::array::from_fn(|lane| first + lane as u16);
            let found = f16_to_f32(simd, bits);
            for (bits, found) in bits.into_iter().zip(found.to_array()) {
                assert!(same(found, f16::from_bits(bits).to_f32()), "{bits:x}: {found}");
            }
            // What is halfway to the next, and its neighbours.
            for step in [-1i32, 0, 1] {
                let between =
                    found.to_array().map(|half| f32::from_bits((half.to_bits() + 0x1000).wrapping_add_signed(step)));
                for (found, value) in f16_from_f32(simd, between.simd_into(simd)).into_iter().zip(between) {
                    let (found, exact) = (f16::from_bits(found), f16::from_f32(value));
                    assert!(found == exact || found.is_nan() && exact.is_nan(), "{value}: {found} {exact}");
                }
            }
        }
    }
}

#[test]
fn halves_are_converted_as_by_plain_code() {
    for level in Levels::available() {
        level.run(Halves);
    }
}
