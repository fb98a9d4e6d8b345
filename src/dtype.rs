//! What an array in foreign memory holds: the numbers that NumPy stores, as a value ([`Dtype`]) and as types ([`Number`]).

use half::{bf16, f16};

/// The type of an array's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // their names say it
pub enum Dtype {
    Bool,
    I8,
    I16,
    I32,
    I64,
    U8,
    U16,
    U32,
    U64,
    F16,
    Bf16,
    F32,
    F64,
}

impl Dtype {
    /// The name in NumPy.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bool => "bool",
            Self::I8 => "int8",
            Self::I16 => "int16",
            Self::I32 => "int32",
            Self::I64 => "int64",
            Self::U8 => "uint8",
            Self::U16 => "uint16",
            Self::U32 => "uint32",
            Self::U64 => "uint64",
            Self::F16 => "float16",
            Self::Bf16 => "bfloat16",
            Self::F32 => "float32",
            Self::F64 => "float64",
        }
    }

    /// The bytes of an element.
    #[inline(always)]
    pub const fn size(self) -> usize {
        match self {
            Self::Bool | Self::I8 | Self::U8 => 1,
            Self::I16 | Self::U16 | Self::F16 | Self::Bf16 => 2,
            Self::I32 | Self::U32 | Self::F32 => 4,
            Self::I64 | Self::U64 | Self::F64 => 8,
        }
    }

    /// Whether the elements are floating-point numbers, and so can be logits.
    #[inline(always)]
    pub fn is_floating(self) -> bool {
        matches!(self, Self::F16 | Self::Bf16 | Self::F32 | Self::F64)
    }

    /// Whether the elements are integers, and so can be class indices.
    #[inline(always)]
    pub fn is_integer(self) -> bool {
        !self.is_floating() && self != Self::Bool
    }

    /// Whether logits of this type are computed with in f64; all others are in f32.
    pub fn is_double(self) -> bool {
        self == Self::F64
    }

    /// Whether every element is a number of `real`, [`Dtype::F32`] or [`Dtype::F64`], or rounds to the same one from f64.
    pub fn fits_into(self, real: Self) -> bool {
        real == Self::F64 || !matches!(self, Self::I32 | Self::I64 | Self::U32 | Self::U64 | Self::F64)
    }
}

/// Run `$body` with the type alias `$type` set to the Rust type that `$dtype` names.
///
/// The lists of types are in this file and nowhere else: `with_integer` and `with_element` are the parts for integers and for
/// floating-point numbers, and panic for others.
macro_rules! with_dtype {
    ($dtype:expr, $type:ident => $body:expr) => {
        match $dtype {
            $crate::dtype::Dtype::Bool => {
                #[allow(dead_code)]
                type $type = $crate::dtype::Bool;
                $body
            }
            dtype if dtype.is_integer() => $crate::dtype::with_integer!(dtype, $type => $body),
            dtype => $crate::dtype::with_element!(dtype, $type => $body),
        }
    };
    (@arms $dtype:expr, $type:ident => $body:expr; $expected:literal; $($variant:ident $rust:ty),*) => {
        match $dtype {
            $($crate::dtype::Dtype::$variant => {
                #[allow(dead_code)]
                type $type = $rust;
                $body
            })*
            other => $crate::dtype::unexpected(other, $expected),
        }
    };
}

macro_rules! with_integer {
    ($dtype:expr, $type:ident => $body:expr) => {
        $crate::dtype::with_dtype!(@arms $dtype, $type => $body; "integers";
            I8 i8, I16 i16, I32 i32, I64 i64, U8 u8, U16 u16, U32 u32, U64 u64)
    };
}

#[cfg(not(javascript))]
macro_rules! with_element {
    ($dtype:expr, $type:ident => $body:expr) => {
        $crate::dtype::with_dtype!(@arms $dtype, $type => $body; "floating-point numbers";
            F16 ::half::f16, Bf16 ::half::bf16, F32 f32, F64 f64)
    };
}

/// JavaScript has no arrays of 16-bit floats: without the kernels for them its module has half the size.
#[cfg(javascript)]
macro_rules! with_element {
    ($dtype:expr, $type:ident => $body:expr) => {
        $crate::dtype::with_dtype!(@arms $dtype, $type => $body; "floating-point numbers"; F32 f32, F64 f64)
    };
}

pub(crate) use {with_dtype, with_element, with_integer};

/// Panic: who made the array checked for something else.
#[cold]
pub(crate) fn unexpected(found: Dtype, expected: &str) -> ! {
    panic!("{} numbers where {expected} were checked for", found.name())
}

mod sealed {
    /// What only this file can be: `unsafe` code trusts that a type has the size of its [`Dtype`](super::Dtype).
    pub trait Sealed {}
}

/// A number as it lies in memory.
pub trait Number: sealed::Sealed + Copy + Send + Sync + 'static {
    /// The name of this type as a value.
    const DTYPE: Dtype;

    /// As f64: exactly, but for integers of more than 53 bits.
    fn to_f64(self) -> f64;
    /// Rounded from f64: for 16-bit types through f32, as vectors are.
    fn from_f64(value: f64) -> Self;
    /// With the bytes in the other order.
    #[must_use]
    fn swap_bytes(self) -> Self;
    /// As Python writes it.
    fn text(self) -> String;
}

/// A class index as it lies in memory.
pub trait Integer: Number + PartialEq + TryFrom<i128> + Into<i128> {
    /// Whether there are negative ones.
    const SIGNED: bool;

    /// As an index: of a negative number one that no array has.
    fn to_index(self) -> usize;
}

/// A NumPy bool: any byte but 0 is true.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub struct Bool(u8);

impl sealed::Sealed for Bool {}

impl Number for Bool {
    const DTYPE: Dtype = Dtype::Bool;

    #[inline(always)]
    fn to_f64(self) -> f64 {
        f64::from(u8::from(self.0 != 0))
    }

    #[inline(always)]
    fn from_f64(value: f64) -> Self {
        Self(u8::from(value != 0.0))
    }

    #[inline(always)]
    fn swap_bytes(self) -> Self {
        self
    }

    fn text(self) -> String {
        String::from(if self.0 == 0 { "False" } else { "True" })
    }
}

macro_rules! integers {
    ($($integer:ty: $dtype:ident),*) => { $(
        impl sealed::Sealed for $integer {}

        impl Number for $integer {
            const DTYPE: Dtype = Dtype::$dtype;

            #[inline(always)]
            #[allow(clippy::cast_lossless)] // not for 64 bits
            fn to_f64(self) -> f64 {
                self as f64
            }

            #[inline(always)]
            fn from_f64(value: f64) -> Self {
                value as Self
            }

            #[inline(always)]
            fn swap_bytes(self) -> Self {
                <$integer>::swap_bytes(self)
            }

            fn text(self) -> String {
                self.to_string()
            }
        }

        impl Integer for $integer {
            const SIGNED: bool = <$integer>::MIN != 0;

            #[inline(always)]
            #[allow(clippy::cast_lossless)] // for all types alike
            fn to_index(self) -> usize {
                // Negative numbers become larger ones than any array has elements, -1 the largest. So do those that an
                // address of 32 bits cannot hold.
                let index = self as i64 as usize;
                if index as isize as i64 == self as i64 { index } else { isize::MIN as usize }
            }
        }
    )* };
}
integers!(i8: I8, i16: I16, i32: I32, i64: I64, u8: U8, u16: U16, u32: U32, u64: U64);

/// A float as Python writes it: with an exponent, of two digits or more, from 1e16 on and below 1e-4.
fn python_text(value: f64) -> String {
    let scientific = format!("{value:e}");
    let parts = scientific.split_once('e').and_then(|(digits, exponent)| Some((digits, exponent.parse().ok()?)));
    match parts {
        Some((digits, exponent @ (..-4 | 16..))) => format!("{digits}e{exponent:+03}"),
        _ => format!("{value:?}"),
    }
}

macro_rules! floats {
    ($($float:ty: $dtype:ident, $to_f64:expr, $from_f64:expr;)*) => { $(
        impl sealed::Sealed for $float {}

        impl Number for $float {
            const DTYPE: Dtype = Dtype::$dtype;

            #[inline(always)]
            fn to_f64(self) -> f64 {
                $to_f64(self)
            }

            #[inline(always)]
            fn from_f64(value: f64) -> Self {
                $from_f64(value)
            }

            #[inline(always)]
            fn swap_bytes(self) -> Self {
                Self::from_bits(self.to_bits().swap_bytes())
            }

            fn text(self) -> String {
                let value = Number::to_f64(self);
                if value.is_nan() {
                    return "nan".into();
                }
                // The fewest digits that name this number of its type.
                let digits = (0..17).map(|digits| format!("{value:.digits$e}"));
                let mut numbers = digits.filter_map(|text| text.parse::<f64>().ok());
                let shortest = numbers.find(|number| Number::to_f64(Self::from_f64(*number)) == value);
                python_text(shortest.unwrap_or(value))
            }
        }
    )* };
}
floats! {
    f16: F16, |value: f16| f64::from(value.to_f32()), |value| f16::from_f32(value as f32);
    bf16: Bf16, |value: bf16| f64::from(value.to_f32()), |value| bf16::from_f32(value as f32);
    f32: F32, f64::from, |value| value as f32;
    f64: F64, |value| value, |value| value;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_names_its_type() {
        let all = [
            Dtype::Bool,
            Dtype::I8,
            Dtype::I16,
            Dtype::I32,
            Dtype::I64,
            Dtype::U8,
            Dtype::U16,
            Dtype::U32,
            Dtype::U64,
            Dtype::F16,
            Dtype::Bf16,
            Dtype::F32,
            Dtype::F64,
        ];
        for dtype in all {
            assert_eq!(with_dtype!(dtype, T => <T as Number>::DTYPE), dtype);
            let digits = dtype.name().trim_start_matches(|letter: char| !letter.is_ascii_digit());
            assert_eq!(8 * dtype.size(), if dtype == Dtype::Bool { 8 } else { digits.parse().unwrap() });
            assert_eq!(with_dtype!(dtype, T => size_of::<T>()), dtype.size());
            assert_eq!(with_dtype!(dtype, T => T::from_f64(1.0).swap_bytes().swap_bytes().to_f64()), 1.0);
        }
    }

    #[test]
    fn numbers_are_written_as_python_does() {
        assert_eq!([0.1f32.text(), (-1f32).text(), (-1e-40f32).text()], ["0.1", "-1.0", "-1e-40"]);
        assert_eq!(
            [1e-5f64.text(), 1e-4f64.text(), 2e16f64.text(), 1e15f64.text()],
            ["1e-05", "0.0001", "2e+16", "1000000000000000.0"]
        );
        assert_eq!([f16::from_f64(0.1).text(), bf16::from_f64(-1.23).text()], ["0.1", "-1.23"]);
        assert_eq!([f64::NAN.text(), f64::NEG_INFINITY.text(), 255u8.text()], ["nan", "-inf", "255"]);
        assert_eq!([Bool(1).text(), (0.1f64 + 0.2).text()], ["True", "0.30000000000000004"]);
    }

    #[test]
    fn negative_indices_are_beyond_every_array() {
        assert_eq!(3i8.to_index(), 3);
        assert!((-1i8).to_index() > isize::MAX as usize);
        for beyond in [u64::MAX, 1 << 63, (1 << 63) + 3] {
            assert!(beyond.to_index() > isize::MAX as usize);
        }
        assert_eq!([(-1i64).to_index(), (-4i64).to_index()], [usize::MAX, usize::MAX - 3]);
    }
}
