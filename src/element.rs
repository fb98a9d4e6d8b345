//! Storage types: what logits and gradients are made of. Each names the [`Real`] that it computes in, and knows how
//! to become lanes of it and back. Memory is read and written through raw pointers: it belongs to the caller's arrays.

use fearless_simd::{Simd, f32x16, f64x8, prelude::*, u16x16, u32x16};
use half::{bf16, f16};

use crate::math::Real;
use crate::simd;

/// The storage types, as a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dtype {
    /// IEEE half precision.
    F16,
    /// The upper half of an f32.
    Bf16,
    /// Single precision.
    F32,
    /// Double precision.
    F64,
}

impl Dtype {
    /// The name in NumPy.
    pub fn name(self) -> &'static str {
        match self {
            Self::F16 => "float16",
            Self::Bf16 => "bfloat16",
            Self::F32 => "float32",
            Self::F64 => "float64",
        }
    }

    /// Whether the type computes in f64.
    pub fn is_double(self) -> bool {
        self == Self::F64
    }
}

/// A type that logits and gradients are stored in.
pub trait Element: Copy + Send + Sync + 'static {
    /// The type to compute in, which is one to store, too.
    type Real: Real + Element<Real = Self::Real>;
    /// The name of this type as a value.
    const DTYPE: Dtype;
    /// Minus infinity: the logit of a class that is not there.
    const MASKED: Self;

    /// Load [`Real::LANES`] values.
    ///
    /// # Safety
    /// They are readable at `source`, at any alignment.
    unsafe fn load<S: Simd>(simd: S, source: *const Self) -> <Self::Real as Real>::Lanes<S>;

    /// Round [`Real::LANES`] values to this type and store them.
    ///
    /// # Safety
    /// They are writeable at `destination`, at any alignment.
    unsafe fn store<S: Simd>(simd: S, destination: *mut Self, lanes: <Self::Real as Real>::Lanes<S>);

    /// Load `count` values, no more than [`Real::LANES`], and masked classes behind them.
    ///
    /// # Safety
    /// They are readable at `source`, at any alignment.
    unsafe fn load_part<S: Simd>(simd: S, source: *const Self, count: usize) -> <Self::Real as Real>::Lanes<S>;

    /// Round the first `count` values to this type and store them.
    ///
    /// # Safety
    /// They are writeable at `destination`, at any alignment.
    unsafe fn store_part<S: Simd>(simd: S, destination: *mut Self, count: usize, lanes: <Self::Real as Real>::Lanes<S>);

    /// Round four vectors to this type and store them past the cache.
    ///
    /// # Safety
    /// They are writeable at `destination`, which is aligned to 64 bytes.
    unsafe fn stream<S: Simd>(simd: S, destination: *mut Self, lanes: [<Self::Real as Real>::Lanes<S>; 4]);

    /// Rounded from f64: for 16-bit types through f32, as the lanes are.
    fn from_f64(value: f64) -> Self;
    /// As f64, exactly.
    fn to_f64(self) -> f64;
    /// With the bytes in the other order.
    #[must_use]
    fn swap_bytes(self) -> Self;
}

#[cfg(feature = "python")]
/// Run `$body` with the type alias `$element` set to the storage type that `$dtype` names.
macro_rules! with_element {
    ($dtype:expr, $element:ident => $body:expr) => {
        match $dtype {
            $crate::element::Dtype::F16 => {
                type $element = ::half::f16;
                $body
            }
            $crate::element::Dtype::Bf16 => {
                type $element = ::half::bf16;
                $body
            }
            $crate::element::Dtype::F32 => {
                type $element = f32;
                $body
            }
            $crate::element::Dtype::F64 => {
                type $element = f64;
                $body
            }
        }
    };
}

#[cfg(feature = "python")]
/// Run `$body` with `$element` and `$out` set to the types that two dtypes name; both compute in the same type.
macro_rules! with_elements {
    ($dtype:expr, $out_dtype:expr, $element:ident, $out:ident => $body:expr) => {
        match $dtype {
            $crate::element::Dtype::F16 => {
                type $element = ::half::f16;
                $crate::element::with_elements!(@out $out_dtype, $out => $body)
            }
            $crate::element::Dtype::Bf16 => {
                type $element = ::half::bf16;
                $crate::element::with_elements!(@out $out_dtype, $out => $body)
            }
            $crate::element::Dtype::F32 => {
                type $element = f32;
                $crate::element::with_elements!(@out $out_dtype, $out => $body)
            }
            $crate::element::Dtype::F64 => {
                assert_eq!($out_dtype, $crate::element::Dtype::F64);
                type $element = f64;
                type $out = f64;
                $body
            }
        }
    };
    (@out $out_dtype:expr, $out:ident => $body:expr) => {
        match $out_dtype {
            $crate::element::Dtype::F16 => {
                type $out = ::half::f16;
                $body
            }
            $crate::element::Dtype::Bf16 => {
                type $out = ::half::bf16;
                $body
            }
            $crate::element::Dtype::F32 => {
                type $out = f32;
                $body
            }
            $crate::element::Dtype::F64 => panic!("float64 results of logits that compute in float32"),
        }
    };
}
#[cfg(feature = "python")]
pub(crate) use {with_element, with_elements};

/// f32 and f64: lanes are stored as they are, a vector a line.
macro_rules! plain {
    ($real:ty, $lanes:ident, $dtype:expr) => {
        impl Element for $real {
            type Real = $real;
            const DTYPE: Dtype = $dtype;
            const MASKED: Self = <$real>::NEG_INFINITY;

            #[inline(always)]
            unsafe fn load<S: Simd>(simd: S, source: *const Self) -> $lanes<S> {
                // SAFETY: readable by the caller's promise; the read asks for no alignment.
                unsafe { source.cast::<[$real; <$real as Real>::LANES]>().read_unaligned() }.simd_into(simd)
            }

            #[inline(always)]
            unsafe fn store<S: Simd>(_: S, destination: *mut Self, lanes: $lanes<S>) {
                // SAFETY: writeable by the caller's promise; the write asks for no alignment.
                unsafe { destination.cast::<[$real; <$real as Real>::LANES]>().write_unaligned(lanes.into()) }
            }

            #[inline(always)]
            unsafe fn load_part<S: Simd>(simd: S, source: *const Self, count: usize) -> $lanes<S> {
                // SAFETY: the caller's promise.
                unsafe { simd::load_part(simd, source, count, $lanes::splat(simd, Self::MASKED)) }
            }

            #[inline(always)]
            unsafe fn store_part<S: Simd>(simd: S, destination: *mut Self, count: usize, lanes: $lanes<S>) {
                // SAFETY: the caller's promise.
                unsafe { simd::store_part(simd, destination, count, lanes) }
            }

            #[inline(always)]
            unsafe fn stream<S: Simd>(simd: S, destination: *mut Self, lanes: [$lanes<S>; 4]) {
                for (index, lanes) in lanes.into_iter().enumerate() {
                    // SAFETY: the four vectors fill four lines, writeable and aligned by the caller's promise.
                    unsafe { simd::stream(simd, destination.cast::<u8>().add(64 * index), &lanes.to_bytes().into()) }
                }
            }

            #[inline(always)]
            fn from_f64(value: f64) -> Self {
                Real::from_f64(value)
            }

            #[inline(always)]
            fn to_f64(self) -> f64 {
                Real::to_f64(self)
            }

            #[inline(always)]
            fn swap_bytes(self) -> Self {
                Self::from_bits(self.to_bits().swap_bytes())
            }
        }
    };
}

plain!(f32, f32x16, Dtype::F32);
plain!(f64, f64x8, Dtype::F64);

/// The 16-bit types: lanes of f32, rounded to nearest even on the way out; two vectors a line.
macro_rules! sixteen_bit {
    ($element:ty, $dtype:expr, $to_lanes:expr, $from_lanes:expr) => {
        impl Element for $element {
            type Real = f32;
            const DTYPE: Dtype = $dtype;
            const MASKED: Self = <$element>::NEG_INFINITY;

            #[inline(always)]
            unsafe fn load<S: Simd>(simd: S, source: *const Self) -> f32x16<S> {
                // SAFETY: readable by the caller's promise; the read asks for no alignment.
                let bits = unsafe { source.cast::<[u16; 16]>().read_unaligned() };
                $to_lanes(simd, bits)
            }

            #[inline(always)]
            unsafe fn store<S: Simd>(simd: S, destination: *mut Self, lanes: f32x16<S>) {
                let bits: [u16; 16] = $from_lanes(simd, lanes);
                // SAFETY: writeable by the caller's promise; the write asks for no alignment.
                unsafe { destination.cast::<[u16; 16]>().write_unaligned(bits) }
            }

            #[inline(always)]
            unsafe fn load_part<S: Simd>(simd: S, source: *const Self, count: usize) -> f32x16<S> {
                let masked = u16x16::splat(simd, Self::MASKED.to_bits());
                // SAFETY: the caller's promise.
                let bits = unsafe { simd::load_part(simd, source.cast(), count, masked) };
                $to_lanes(simd, bits.into())
            }

            #[inline(always)]
            unsafe fn store_part<S: Simd>(simd: S, destination: *mut Self, count: usize, lanes: f32x16<S>) {
                let bits: [u16; 16] = $from_lanes(simd, lanes);
                let bits: u16x16<S> = bits.simd_into(simd);
                // SAFETY: the caller's promise.
                unsafe { simd::store_part(simd, destination.cast(), count, bits) }
            }

            #[inline(always)]
            unsafe fn stream<S: Simd>(simd: S, destination: *mut Self, lanes: [f32x16<S>; 4]) {
                for line in 0..2 {
                    let low: u16x16<S> = $from_lanes(simd, lanes[2 * line]).simd_into(simd);
                    let high: u16x16<S> = $from_lanes(simd, lanes[2 * line + 1]).simd_into(simd);
                    let bytes = low.combine(high).to_bytes();
                    // SAFETY: four vectors fill two lines, writeable and aligned by the caller's promise.
                    unsafe { simd::stream(simd, destination.cast::<u8>().add(64 * line), &bytes.into()) }
                }
            }

            #[inline(always)]
            fn from_f64(value: f64) -> Self {
                Self::from_f32(value as f32)
            }

            #[inline(always)]
            fn to_f64(self) -> f64 {
                f64::from(self.to_f32())
            }

            #[inline(always)]
            fn swap_bytes(self) -> Self {
                Self::from_bits(self.to_bits().swap_bytes())
            }
        }
    };
}

sixteen_bit!(f16, Dtype::F16, simd::f16_to_f32, simd::f16_from_f32);
sixteen_bit!(bf16, Dtype::Bf16, bf16_to_f32, bf16_from_f32);

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
