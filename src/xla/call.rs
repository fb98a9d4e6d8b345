//! A call as XLA makes it, seen as arrays: what was handed over, and whether it goes together.

use std::marker::PhantomData;

use super::abi::{self, Buffer, CallFrame};
use super::pages::ask_for_huge_pages;
use crate::array::{Array, ArrayMut, Layout};
use crate::dtype::Dtype;
use crate::error::{Error, Result};

/// The arguments and results of a call.
#[derive(Debug)]
pub(super) struct Call<'a> {
    pub(super) arguments: Vec<Operand<'a>>,
    pub(super) results: Vec<Operand<'a>>,
}

/// Numbers in C order.
#[derive(Debug)]
pub(super) struct Operand<'a> {
    base: *mut u8,
    dtype: Dtype,
    shape: Vec<usize>,
    memory: PhantomData<&'a [u8]>,
}

impl<'a> Call<'a> {
    /// The operands of a call.
    ///
    /// # Errors
    /// [`Error::Type`] for one that is no buffer, or of a dtype that is not read.
    ///
    /// # Safety
    /// During `'a` the frame and all that it points to are what XLA's interface says, and nobody else writes there.
    pub(super) unsafe fn new(frame: &'a CallFrame) -> Result<Self> {
        let (args, rets) = (&frame.args, &frame.rets);
        // SAFETY: by the promise made to this function, both lists have so many operands, of these types.
        unsafe {
            Ok(Self {
                arguments: operands(args.size, args.types, abi::XLA_FFI_ArgType_BUFFER, args.args)?,
                results: operands(rets.size, rets.types, abi::XLA_FFI_RetType_BUFFER, rets.rets)?,
            })
        }
    }
}

/// The operands in a list of `size`.
///
/// # Safety
/// As for [`Call::new`].
unsafe fn operands<'a>(
    size: i64,
    types: *const std::ffi::c_int,
    buffer: std::ffi::c_int,
    places: *const *mut std::ffi::c_void,
) -> Result<Vec<Operand<'a>>> {
    let size = usize::try_from(size).unwrap_or(0);
    let operand = |index| {
        // SAFETY: the lists have `size` elements; one whose type is that of buffers points to a buffer, which has `rank`
        // lengths.
        unsafe {
            if *types.add(index) != buffer {
                return Err(Error::Type(format!("operand {index} is no array; expected one")));
            }
            let Buffer { dtype, data, rank, dims, .. } = &*(*places.add(index)).cast::<Buffer>();
            let length = |axis| usize::try_from(*dims.add(axis)).unwrap_or(0);
            let (base, dtype) = (data.cast(), dtype_of(*dtype, index)?);
            let shape: Vec<usize> = (0..usize::try_from(*rank).unwrap_or(0)).map(length).collect();
            let some = shape.iter().filter(|length| **length > 0);
            let bytes = some.copied().try_fold(dtype.size(), usize::checked_mul);
            if bytes.is_none_or(|bytes| bytes > isize::MAX as usize) {
                return Err(Error::Value(format!("operand {index} has shape {shape:?}, more than fits into memory")));
            }
            Ok(Operand { base, dtype, shape, memory: PhantomData })
        }
    };
    (0..size).map(operand).collect()
}

/// The dtype that XLA calls `code`.
fn dtype_of(code: std::ffi::c_int, index: usize) -> Result<Dtype> {
    Ok(match code {
        abi::XLA_FFI_DataType_PRED => Dtype::Bool,
        abi::XLA_FFI_DataType_S8 => Dtype::I8,
        abi::XLA_FFI_DataType_S16 => Dtype::I16,
        abi::XLA_FFI_DataType_S32 => Dtype::I32,
        abi::XLA_FFI_DataType_S64 => Dtype::I64,
        abi::XLA_FFI_DataType_U8 => Dtype::U8,
        abi::XLA_FFI_DataType_U16 => Dtype::U16,
        abi::XLA_FFI_DataType_U32 => Dtype::U32,
        abi::XLA_FFI_DataType_U64 => Dtype::U64,
        abi::XLA_FFI_DataType_F16 => Dtype::F16,
        abi::XLA_FFI_DataType_BF16 => Dtype::Bf16,
        abi::XLA_FFI_DataType_F32 => Dtype::F32,
        abi::XLA_FFI_DataType_F64 => Dtype::F64,
        code => {
            let expected = "bool, integers of 8 to 64 bits, float16, bfloat16, float32 or float64";
            return Err(Error::Type(format!("operand {index} has XLA's dtype {code}; expected {expected}")));
        }
    })
}

impl<'a> Operand<'a> {
    pub(super) fn dtype(&self) -> Dtype {
        self.dtype
    }

    pub(super) fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Check that the elements are floating-point numbers.
    pub(super) fn check_floating(&self, name: &str) -> Result<()> {
        if self.dtype.is_floating() {
            return Ok(());
        }
        Err(Error::Type(format!("{name} have dtype {}; expected a floating dtype", self.dtype.name())))
    }

    /// Check that the elements are bool.
    pub(super) fn check_bool(&self, name: &str) -> Result<()> {
        if self.dtype == Dtype::Bool {
            return Ok(());
        }
        Err(Error::Type(format!("{name} have dtype {}; expected bool", self.dtype.name())))
    }

    /// The array, broadcast to `shape`: axes of length 1 are repeated. So are handed over labels that broadcast, and what a `vmap`
    /// does not map.
    pub(super) fn read(&self, name: &str, shape: &[usize], axis: Option<usize>) -> Result<Array<'a>> {
        let fits = |(own, length): (&usize, &usize)| own == length || *own == 1;
        if self.shape.len() != shape.len() || !self.shape.iter().zip(shape).all(fits) {
            return Err(Error::Value(format!("{name} have shape {:?}; expected {shape:?}", self.shape)));
        }
        let mut strides = strides(&self.shape, self.dtype);
        for (stride, (own, length)) in strides.iter_mut().zip(self.shape.iter().zip(shape)) {
            *stride = if own == length { *stride } else { 0 };
        }
        let layout = Layout { base: self.base, dtype: self.dtype, swapped: false, shape, strides: &strides };
        // SAFETY: the buffer has its elements in C order, and is readable during `'a`, by the promise made to `Call::new`;
        // of what is broadcast no other element is named. Nobody writes to it: results are buffers of their own, as no
        // handler is registered with operands that may share memory.
        Ok(unsafe { Array::new(&layout, axis) })
    }

    /// The array that is written, of this shape.
    pub(super) fn write(&mut self, name: &str, shape: &[usize], axis: Option<usize>) -> Result<ArrayMut<'_>> {
        if self.shape != shape {
            return Err(Error::Value(format!("{name} have shape {:?}; expected {shape:?}", self.shape)));
        }
        let strides = strides(shape, self.dtype);
        let bytes = shape.iter().product::<usize>() * self.dtype.size();
        // SAFETY: the buffer has so many bytes, by the promise made to `Call::new`.
        unsafe { ask_for_huge_pages(self.base, bytes) };
        let layout = Layout { base: self.base, dtype: self.dtype, swapped: false, shape, strides: &strides };
        // SAFETY: the buffer has its elements in C order and is for this call to write, by the promise made to `Call::new`;
        // nobody else has it while it is borrowed.
        Ok(unsafe { ArrayMut::new(&layout, axis) })
    }
}

/// The bytes from an element to the next, in C order.
fn strides(shape: &[usize], dtype: Dtype) -> Vec<isize> {
    let mut strides = vec![dtype.size() as isize; shape.len()];
    for axis in (1..shape.len()).rev() {
        strides[axis - 1] = strides[axis] * shape[axis] as isize;
    }
    strides
}
