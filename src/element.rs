//! Storage types: what logits and gradients are made of. Each names the [`Real`] that it computes in, and knows how
//! to become lanes of it and back. Memory is read and written through raw pointers: it belongs to the caller's arrays.

use fearless_simd::{Simd, f32x16, f64x8, prelude::*, u16x16, u32x16};
use half::{bf16, f16};

use crate::dtype::Number;
use crate::math::Real;
use crate::simd;

/// A type that logits and gradients are stored in.
pub trait Element: Number {
    /// The type to compute in, which is one to store, too.
    type Real: Real + Element<Real = Self::Real>;
    /// [`Real::LANES`] elements side by side in memory.
    type Array: Copy;
    /// The same in registers.
    type Vector<S: Simd>: simd::Parts<S, Element = Self::Bits>;
    /// An element of a [`Self::Vector`], which has the size of this type.
    type Bits;
    /// The cache lines that four vectors fill.
    type Lines: AsRef<[[u8; 64]]>;
    /// Minus infinity: the logit of a class that is not there.
    const MASKED: Self;

    /// From memory to registers.
    fn vector<S: Simd>(simd: S, array: Self::Array) -> Self::Vector<S>;
    /// From registers to memory.
    fn array<S: Simd>(vector: Self::Vector<S>) -> Self::Array;
    /// [`Self::MASKED`] in all places.
    fn masked<S: Simd>(simd: S) -> Self::Vector<S>;
    /// The values, exactly.
    fn to_lanes<S: Simd>(simd: S, vector: Self::Vector<S>) -> Lanes<S, Self>;
    /// Values rounded to this type, to nearest and even.
    fn of_lanes<S: Simd>(simd: S, lanes: Lanes<S, Self>) -> Self::Vector<S>;
    /// Four vectors rounded to this type, as bytes.
    fn lines<S: Simd>(simd: S, lanes: [Lanes<S, Self>; 4]) -> Self::Lines;

    /// Load [`Real::LANES`] values.
    ///
    /// # Safety
    /// They are readable at `source`, at any alignment.
    #[inline(always)]
    unsafe fn load<S: Simd>(simd: S, source: *const Self) -> Lanes<S, Self> {
        // SAFETY: readable by the caller's promise; the read asks for no alignment.
        Self::to_lanes(simd, Self::vector(simd, unsafe { source.cast::<Self::Array>().read_unaligned() }))
    }

    /// Round [`Real::LANES`] values to this type and store them.
    ///
    /// # Safety
    /// They are writeable at `destination`, at any alignment.
    #[inline(always)]
    unsafe fn store<S: Simd>(simd: S, destination: *mut Self, lanes: Lanes<S, Self>) {
        // SAFETY: writeable by the caller's promise; the write asks for no alignment.
        unsafe { destination.cast::<Self::Array>().write_unaligned(Self::array(Self::of_lanes(simd, lanes))) }
    }

    /// Load `count` values, no more than [`Real::LANES`], and masked classes behind them.
    ///
    /// # Safety
    /// They are readable at `source`, at any alignment.
    #[inline(always)]
    unsafe fn load_part<S: Simd>(simd: S, source: *const Self, count: usize) -> Lanes<S, Self> {
        // SAFETY: readable by the caller's promise.
        Self::to_lanes(simd, unsafe { simd::load_part(simd, source.cast(), count, Self::masked(simd)) })
    }

    /// Round the first `count` values to this type and store them.
    ///
    /// # Safety
    /// They are writeable at `destination`, at any alignment.
    #[inline(always)]
    unsafe fn store_part<S: Simd>(simd: S, destination: *mut Self, count: usize, lanes: Lanes<S, Self>) {
        // SAFETY: writeable by the caller's promise.
        unsafe { simd::store_part(simd, destination.cast(), count, Self::of_lanes(simd, lanes)) }
    }

    /// Round four vectors to this type and store them past the cache.
    ///
    /// # Safety
    /// They are writeable at `destination`, which is aligned to 64 bytes.
    #[inline(always)]
    unsafe fn stream<S: Simd>(simd: S, destination: *mut Self, lanes: [Lanes<S, Self>; 4]) {
        for (index, line) in Self::lines(simd, lanes).as_ref().iter().enumerate() {
            // SAFETY: the lines are the four vectors' bytes, writeable and aligned by the caller's promise.
            unsafe { simd::stream(simd, destination.cast::<u8>().add(64 * index), line) }
        }
    }
}

/// The vector of the type that an element is computed with in.
pub type Lanes<S, E> = <<E as Element>::Real as Real>::Lanes<S>;

/// f32 and f64: lanes are stored as they are, a vector a line.
macro_rules! plain {
    ($real:ty, $lanes:ident) => {
        impl Element for $real {
            type Real = $real;
            type Array = [$real; <$real as Real>::LANES];
            type Vector<S: Simd> = $lanes<S>;
            type Bits = $real;
            type Lines = [[u8; 64]; 4];
            const MASKED: Self = <$real>::NEG_INFINITY;

            #[inline(always)]
            fn vector<S: Simd>(simd: S, array: Self::Array) -> $lanes<S> {
                array.simd_into(simd)
            }

            #[inline(always)]
            fn array<S: Simd>(vector: $lanes<S>) -> Self::Array {
                vector.into()
            }

            #[inline(always)]
            fn masked<S: Simd>(simd: S) -> $lanes<S> {
                $lanes::splat(simd, Self::MASKED)
            }

            #[inline(always)]
            fn to_lanes<S: Simd>(_: S, vector: $lanes<S>) -> $lanes<S> {
                vector
            }

            #[inline(always)]
            fn of_lanes<S: Simd>(_: S, lanes: $lanes<S>) -> $lanes<S> {
                lanes
            }

            #[inline(always)]
            fn lines<S: Simd>(_: S, [a, b, c, d]: [$lanes<S>; 4]) -> Self::Lines {
                [a.to_bytes().into(), b.to_bytes().into(), c.to_bytes().into(), d.to_bytes().into()]
            }
        }
    };
}

plain!(f32, f32x16);
plain!(f64, f64x8);

/// The 16-bit types: lanes of f32, rounded to nearest even on the way out; two vectors a line.
macro_rules! sixteen_bit {
    ($element:ty, $to_lanes:expr, $from_lanes:expr) => {
        impl Element for $element {
            type Real = f32;
            type Array = [u16; 16];
            type Vector<S: Simd> = u16x16<S>;
            type Bits = u16;
            type Lines = [[u8; 64]; 2];
            const MASKED: Self = <$element>::NEG_INFINITY;

            #[inline(always)]
            fn vector<S: Simd>(simd: S, array: [u16; 16]) -> u16x16<S> {
                array.simd_into(simd)
            }

            #[inline(always)]
            fn array<S: Simd>(vector: u16x16<S>) -> [u16; 16] {
                vector.into()
            }

            #[inline(always)]
            fn masked<S: Simd>(simd: S) -> u16x16<S> {
                u16x16::splat(simd, Self::MASKED.to_bits())
            }

            #[inline(always)]
            fn to_lanes<S: Simd>(simd: S, vector: u16x16<S>) -> f32x16<S> {
                $to_lanes(simd, vector.into())
            }

            #[inline(always)]
            fn of_lanes<S: Simd>(simd: S, lanes: f32x16<S>) -> u16x16<S> {
                $from_lanes(simd, lanes).simd_into(simd)
            }

            #[inline(always)]
            fn lines<S: Simd>(simd: S, [a, b, c, d]: [f32x16<S>; 4]) -> Self::Lines {
                let (low, high) = (Self::of_lanes(simd, a).combine(Self::of_lanes(simd, b)), Self::of_lanes(simd, c));
                [low.to_bytes().into(), high.combine(Self::of_lanes(simd, d)).to_bytes().into()]
            }
        }
    };
}

sixteen_bit!(f16, simd::f16_to_f32, simd::f16_from_f32);
sixteen_bit!(bf16, bf16_to_f32, bf16_from_f32);

/// A bfloat16 is the upper half of an f32.
#[inline(always)]
fn bf16_to_f32<S: Simd>(simd: S, bits: [u16; 16]) -> f32x16<S> {
    let bits: u16x16<S> = bits.simd_into(simd);
    let (low, high) = bits.widen();
    (low.combine(high) << 16).bitcast()
}

/// Add just under half of what is dropped, and one more if the kept part is odd: ties go to even. A NaN keeps its
/// upper half and becomes quiet, lest the carry make it an infinity.
#[inline(always)]
fn bf16_from_f32<S: Simd>(simd: S, values: f32x16<S>) -> [u16; 16] {
    let bits: u32x16<S> = values.bitcast();
    let upper = bits >> 16;
    let odd = upper & u32x16::splat(simd, 1);
    let rounded = (bits + odd + u32x16::splat(simd, 0x7fff)) >> 16;
    let quiet = upper | u32x16::splat(simd, 0x40);
    let (low, high) = values.simd_eq(values).select(rounded, quiet).split();
    low.narrow(high).into()
}
