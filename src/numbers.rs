//! Real numbers of any dtype in foreign memory, beside the logits: probabilities, weights, binary targets.
//!
//! They are read a block at a time in C order, each converted to the type that computes with it; weights of classes and
//! of rows are copied once ([`Numbers::copy`]).

use fearless_simd::Simd;
use half::{bf16, f16};

use crate::element::{Dtype, Element};
use crate::error::{Error, Result};
use crate::math::Real;
use crate::simd::{self, Kernel, f16_to_f32, prefetch_ahead};
use crate::view::Axes;

/// The dtypes of numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // their names say it
pub enum Kind {
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

/// Run `$body` with `$type` set to the Rust type of a kind; a bool is a byte that is not 0.
macro_rules! with_kind {
    ($kind:expr, $type:ident => $body:expr) => {
        with_kind!(@arms $kind, $type => $body;
            Bool bool8, I8 i8, I16 i16, I32 i32, I64 i64, U8 u8, U16 u16, U32 u32, U64 u64,
            F16 f16, Bf16 bf16, F32 f32, F64 f64)
    };
    (@arms $kind:expr, $type:ident => $body:expr; $($variant:ident $rust:ident),*) => {
        match $kind {
            $(Kind::$variant => {
                type $type = $rust;
                $body
            })*
        }
    };
}

/// A number as it lies in memory.
trait Number: Copy {
    fn to_f64(self) -> f64;
    #[must_use]
    fn swap_bytes(self) -> Self;
}

macro_rules! numbers {
    ($($number:ty),*) => { $(
        impl Number for $number {
            #[inline(always)]
            #[allow(clippy::cast_lossless)] // not for 64 bits
            fn to_f64(self) -> f64 {
                self as f64
            }

            #[inline(always)]
            fn swap_bytes(self) -> Self {
                <$number>::swap_bytes(self)
            }
        }
    )* };
    (floats: $($number:ty),*) => { $(
        impl Number for $number {
            #[inline(always)]
            fn to_f64(self) -> f64 {
                Element::to_f64(self)
            }

            #[inline(always)]
            fn swap_bytes(self) -> Self {
                Element::swap_bytes(self)
            }
        }
    )* };
}
numbers!(i8, i16, i32, i64, u8, u16, u32, u64);
numbers!(floats: f16, bf16, f32, f64);

/// A NumPy bool: any byte but 0 is true.
#[allow(non_camel_case_types)] // named like the primitive types beside it
#[derive(Clone, Copy)]
#[repr(transparent)]
struct bool8(u8);

impl Number for bool8 {
    #[inline(always)]
    fn to_f64(self) -> f64 {
        f64::from(u8::from(self.0 != 0))
    }

    #[inline(always)]
    fn swap_bytes(self) -> Self {
        self
    }
}

/// An array of numbers in foreign memory, in C order.
#[derive(Clone, Debug)]
pub struct Numbers {
    base: *const u8,
    axes: Axes,
    count: usize,
    kind: Kind,
    swapped: bool,
}

// SAFETY: `Numbers::new`'s caller promises memory that stays valid, and it is only read.
unsafe impl Send for Numbers {}
// SAFETY: as above.
unsafe impl Sync for Numbers {}

impl Numbers {
    /// The numbers at `base` that `axes` describe.
    ///
    /// # Safety
    /// As long as the value lives, every element so described is readable.
    pub unsafe fn new(base: *const u8, axes: Axes, kind: Kind, swapped: bool) -> Self {
        let count = axes.count();
        Self { base, axes, count, kind, swapped }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Where the first of them lies.
    pub fn base(&self) -> *const u8 {
        self.base
    }

    /// Whether [`Self::read`] rounds no number to an `R` that it would not round to an f64.
    pub fn fit_into<R: Element>(&self) -> bool {
        R::DTYPE == Dtype::F64 || !matches!(self.kind, Kind::I32 | Kind::I64 | Kind::U32 | Kind::U64 | Kind::F64)
    }

    /// Where the `count` numbers from number `first` on lie, if they lie side by side as `R`s, at any alignment; what
    /// follows is asked for ahead, as in [`Self::read`].
    #[inline(always)]
    pub fn neighbours<R: Element>(&self, first: usize, count: usize) -> Option<*const R> {
        let kind = match R::DTYPE {
            Dtype::F16 => Kind::F16,
            Dtype::Bf16 => Kind::Bf16,
            Dtype::F32 => Kind::F32,
            Dtype::F64 => Kind::F64,
        };
        let here = self.kind == kind && !self.swapped && first + count <= self.count;
        if !here || !self.axes.are_neighbours(first, count, size_of::<R>() as isize) {
            return None;
        }
        let place = self.base.wrapping_offset(self.axes.offset(first));
        prefetch_ahead(place, count * size_of::<R>());
        Some(place.cast())
    }

    /// The numbers from number `first` on, all that `block` has room for, rounded to the block's type.
    ///
    /// # Panics
    /// If there are not that many.
    #[inline(never)]
    pub fn read<S: Simd, R: Real>(&self, simd: S, first: usize, block: &mut [R]) {
        assert!(first + block.len() <= self.count, "numbers {first} to {} of {}", first + block.len(), self.count);
        simd.vectorize(
            #[inline(always)]
            || {
                self.axes.for_each_run(
                    first,
                    block.len(),
                    #[inline(always)]
                    |done, count, offset, step| {
                        // SAFETY: the run is part of the array, readable by the promise made to `Numbers::new`.
                        unsafe {
                            self.read_run(
                                simd,
                                self.base.wrapping_offset(offset),
                                step,
                                &mut block[done..done + count],
                            );
                        }
                    },
                );
            },
        );
    }

    /// Numbers that lie `step` bytes apart.
    ///
    /// # Safety
    /// Those that `block` has room for are readable at `source`.
    #[inline(always)]
    unsafe fn read_run<S: Simd, R: Real>(&self, simd: S, source: *const u8, step: isize, block: &mut [R]) {
        prefetch_ahead(source, block.len() * step.unsigned_abs().min(8));
        if self.kind == Kind::F16 && step == 2 && !self.swapped {
            let mut bits = [0u16; 16];
            for (index, part) in block.chunks_mut(16).enumerate() {
                // SAFETY: the part's halves are readable by the caller's promise.
                unsafe {
                    let source = source.add(32 * index);
                    source.copy_to_nonoverlapping(bits.as_mut_ptr().cast(), 2 * part.len());
                }
                let values: [f32; 16] = f16_to_f32(simd, bits).into();
                for (number, value) in part.iter_mut().zip(values) {
                    *number = R::from_f64(f64::from(value));
                }
            }
            return;
        }
        with_kind!(self.kind, N => {
            // SAFETY: the caller's promise.
            unsafe {
                if step == size_of::<N>() as isize && !self.swapped {
                    read_adjacent::<N, R>(source.cast(), block);
                } else {
                    for (index, number) in block.iter_mut().enumerate() {
                        let value = source.wrapping_offset(index as isize * step).cast::<N>().read_unaligned();
                        let value = if self.swapped { Number::swap_bytes(value) } else { value };
                        *number = R::from_f64(Number::to_f64(value));
                    }
                }
            }
        });
    }

    /// A copy of all numbers; `name` is for the error.
    ///
    /// # Errors
    /// [`Error::Memory`] if there is no room for it; what `check` returned, asked from time to time whether to go on.
    pub fn copy(&self, name: &str, check: &dyn Fn() -> Result<()>) -> Result<Vec<f64>> {
        let mut copy = Vec::new();
        let refused = |_| Error::Memory(format!("no memory for a copy of {} numbers of {name}", self.count));
        copy.try_reserve_exact(self.count).map_err(refused)?;
        copy.resize(self.count, 0.0);
        for (index, part) in copy.chunks_mut(BATCH).enumerate() {
            if index > 0 {
                check()?;
            }
            simd::level().run(Reading { numbers: self, first: index * BATCH, part });
        }
        Ok(copy)
    }
}

/// A loop of which the compiler makes vectors.
///
/// # Safety
/// As many numbers as `block` has room for are readable at `source`, at any alignment.
#[inline(always)]
unsafe fn read_adjacent<N: Number, R: Real>(source: *const N, block: &mut [R]) {
    for (index, number) in block.iter_mut().enumerate() {
        // SAFETY: readable by the caller's promise.
        *number = R::from_f64(Number::to_f64(unsafe { source.add(index).read_unaligned() }));
    }
}

/// Numbers read between two questions whether to go on.
const BATCH: usize = 1 << 22;

struct Reading<'a> {
    numbers: &'a Numbers,
    first: usize,
    part: &'a mut [f64],
}

impl Kernel for Reading<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        self.numbers.read(simd, self.first, self.part);
    }
}
