//! Tensors of other frameworks, read where they lie: the consumer of [DLPack](https://dmlc.github.io/dlpack), whose
//! structures up to version 1 are below.
//!
//! NumPy has such a consumer, but it knows no bfloat16.

use std::ffi::{CStr, c_int, c_void};
use std::ptr::{NonNull, null_mut};
use std::slice;

use numpy::npyffi::PY_ARRAY_API;
use numpy::{PyArrayDescr, PyArrayDescrMethods, PyUntypedArray};
use pyo3::exceptions::{PyBufferError, PyImportError, PyTypeError};
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyCapsule, PyDict};
use pyo3::{PyTypeInfo, ffi, intern, prelude::*};

/// The kinds of device whose memory the CPU reads: its own, and host memory that a CUDA device reaches.
pub(super) const READABLE_DEVICES: [i64; 2] = [1, 3];

#[repr(C)]
struct Tensor {
    data: *mut u8,
    device_type: i32,
    device_id: i32,
    axes: i32,
    code: u8,
    bits: u8,
    lanes: u16,
    shape: *const i64,
    /// In elements; null for C order.
    strides: *const i64,
    byte_offset: u64,
}

/// Of a managed tensor of either kind.
type Deleter = unsafe extern "C" fn(*mut c_void);

/// What a capsule called `dltensor` points to.
#[repr(C)]
struct Managed {
    tensor: Tensor,
    context: *mut c_void,
    deleter: Option<Deleter>,
}

/// What a capsule called `dltensor_versioned` points to. Another major version has the same first four fields.
#[repr(C)]
struct Versioned {
    major: u32,
    minor: u32,
    context: *mut c_void,
    deleter: Option<Deleter>,
    /// Whether it is read-only, a copy, or padded: all the same to a reader of whole bytes.
    flags: u64,
    tensor: Tensor,
}

/// The version that we ask for, and the only major one that we read.
const VERSION: (u32, u32) = (1, 0);

/// A managed tensor that is ours to delete.
struct Owned {
    managed: NonNull<c_void>,
    deleter: Option<Deleter>,
    /// Valid as long as this lives, of a version that we know.
    tensor: NonNull<Tensor>,
}

// SAFETY: DLPack's tensors belong to no thread, and their deleters may run on any.
unsafe impl Send for Owned {}

impl Drop for Owned {
    fn drop(&mut self) {
        let Some(deleter) = self.deleter else { return };
        let (mut kind, mut value, mut traceback) = (null_mut(), null_mut(), null_mut());
        // SAFETY: this is dropped where the interpreter is attached: in `take` and `array`, and in the destructor of the
        // capsule that `array` makes. An exception may be on its way there, and a deleter may run Python: it is set aside
        // meanwhile. The deleter is the producer's for this tensor, and nobody calls it again: `take` renamed the capsule.
        unsafe {
            ffi::PyErr_Fetch(&raw mut kind, &raw mut value, &raw mut traceback);
            deleter(self.managed.as_ptr());
            ffi::PyErr_Restore(kind, value, traceback);
        }
    }
}

/// The memory of `object`, which has `__dlpack__`, as a read-only array; nothing is copied.
///
/// # Errors
/// What the producer raised; `TypeError` or `BufferError` for what is no tensor of numbers that the CPU can read.
pub(super) fn array<'py>(object: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyUntypedArray>> {
    let py = object.py();
    let owned = take(&exported(object)?)?;
    // SAFETY: `take` found a tensor there, which `owned` keeps.
    let tensor = unsafe { owned.tensor.as_ref() };
    if !READABLE_DEVICES.contains(&i64::from(tensor.device_type)) {
        return Err(PyBufferError::new_err(format!("its memory is on device type {}", tensor.device_type)));
    }
    let descriptor = descriptor(py, tensor)?;
    let itemsize = descriptor.itemsize() as isize;
    let impossible = || PyBufferError::new_err("its DLPack tensor has an impossible shape");
    let axes = usize::try_from(tensor.axes).map_err(|_| impossible())?;
    // SAFETY: by DLPack as many numbers lie there; for no axes the pointer is not looked at.
    let numbers = |first: *const i64| unsafe { if axes == 0 { &[] } else { slice::from_raw_parts(first, axes) } };
    if axes > 0 && tensor.shape.is_null() {
        return Err(impossible());
    }
    let length = |&length: &i64| isize::try_from(length).ok().filter(|length| *length >= 0);
    let mut shape = numbers(tensor.shape).iter().map(length).collect::<Option<Vec<_>>>().ok_or_else(impossible)?;
    // Without elements, addresses say nothing, and NumPy gives the array memory of its own.
    let empty = shape.contains(&0);
    let mut strides = Vec::new();
    if !empty && !tensor.strides.is_null() {
        let stride = |&stride: &i64| isize::try_from(stride).ok()?.checked_mul(itemsize);
        strides = numbers(tensor.strides).iter().map(stride).collect::<Option<Vec<_>>>().ok_or_else(impossible)?;
    }
    let data = if empty { null_mut() } else { tensor.data.wrapping_add(tensor.byte_offset as usize) };
    if data.is_null() && !empty {
        return Err(PyBufferError::new_err("its DLPack tensor has no memory"));
    }
    let axes = c_int::try_from(axes).map_err(|_| impossible())?;
    let owner = PyCapsule::new_with_value(py, owned, c"xent_rs.dlpack")?;
    // SAFETY: shape and strides are those of the producer's memory, which `owner` keeps; neither flag nor object is given.
    // The calls take over a reference to the descriptor and one to the owner, and check the number of axes and the size.
    unsafe {
        let array = PY_ARRAY_API.PyArray_NewFromDescr(
            py,
            PyUntypedArray::type_object_raw(py),
            descriptor.into_dtype_ptr(),
            axes,
            shape.as_mut_ptr(),
            if strides.is_empty() { null_mut() } else { strides.as_mut_ptr() },
            data.cast(),
            0,
            null_mut(),
        );
        let array = Bound::from_owned_ptr_or_err(py, array)?;
        if PY_ARRAY_API.PyArray_SetBaseObject(py, array.as_ptr().cast(), owner.into_ptr()) < 0 {
            return Err(PyErr::fetch(py));
        }
        Ok(array.cast_into_unchecked())
    }
}

/// The capsule that `object` exports.
fn exported<'py>(object: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyCapsule>> {
    let py = object.py();
    let options = PyDict::new(py);
    options.set_item(intern!(py, "max_version"), VERSION)?;
    let export = intern!(py, "__dlpack__");
    let capsule = object.call_method(export, (), Some(&options)).or_else(|error| {
        // Producers of before version 1 know no such argument.
        if error.is_instance_of::<PyTypeError>(py) { object.call_method0(export) } else { Err(error) }
    })?;
    let found = capsule.get_type();
    capsule.cast_into().map_err(|_| match found.name() {
        Ok(name) => PyTypeError::new_err(format!("its __dlpack__ returned a {name}; expected a capsule")),
        Err(error) => error,
    })
}

/// Take the tensor out of a capsule, which says so in its name from here on.
fn take(capsule: &Bound<'_, PyCapsule>) -> PyResult<Owned> {
    const PLAIN: (&CStr, &CStr) = (c"dltensor", c"used_dltensor");
    const VERSIONED: (&CStr, &CStr) = (c"dltensor_versioned", c"used_dltensor_versioned");
    let renamed = |(name, used): (&CStr, &'static CStr)| -> PyResult<NonNull<c_void>> {
        let managed = capsule.pointer_checked(Some(name))?;
        // SAFETY: the capsule is live, and the name lives as long as the process.
        match unsafe { ffi::PyCapsule_SetName(capsule.as_ptr(), used.as_ptr()) } {
            0 => Ok(managed),
            _ => Err(PyErr::fetch(capsule.py())),
        }
    };
    if capsule.is_valid_checked(Some(VERSIONED.0)) {
        let managed = renamed(VERSIONED)?;
        let versioned = managed.cast::<Versioned>();
        // SAFETY: DLPack's promise for a capsule of that name, which nobody has taken. Up to `deleter` all versions are
        // the same; where the tensor lies is only computed.
        let (major, deleter, tensor) = unsafe {
            let pointer = versioned.as_ptr();
            let tensor = NonNull::new_unchecked(&raw mut (*pointer).tensor);
            ((*pointer).major, (*pointer).deleter, tensor)
        };
        let owned = Owned { managed, deleter, tensor };
        if major != VERSION.0 {
            let text = format!("it exports version {major} of DLPack; expected version {}", VERSION.0);
            return Err(PyBufferError::new_err(text));
        }
        return Ok(owned);
    }
    if capsule.is_valid_checked(Some(PLAIN.0)) {
        let managed = renamed(PLAIN)?;
        // SAFETY: as above.
        let (deleter, tensor) = unsafe {
            let pointer = managed.cast::<Managed>().as_ptr();
            ((*pointer).deleter, NonNull::new_unchecked(&raw mut (*pointer).tensor))
        };
        return Ok(Owned { managed, deleter, tensor });
    }
    Err(PyBufferError::new_err("its DLPack capsule holds no tensor, or somebody took it before"))
}

/// NumPy's dtype for a tensor's.
fn descriptor<'py>(py: Python<'py>, tensor: &Tensor) -> PyResult<Bound<'py, PyArrayDescr>> {
    let Tensor { code, bits, lanes, .. } = *tensor;
    let unknown = || {
        let text =
            format!("its DLPack dtype has code {code}, {bits} bits and {lanes} lanes, which NumPy does not know");
        PyTypeError::new_err(text)
    };
    let kind = match code {
        _ if lanes != 1 || !bits.is_multiple_of(8) => return Err(unknown()),
        0 => 'i',
        1 => 'u',
        2 => 'f',
        4 if bits == 16 => return bfloat16(py),
        5 => 'c',
        6 => 'b',
        _ => return Err(unknown()),
    };
    PyArrayDescr::new(py, format!("{kind}{}", bits / 8)).map_err(|_| unknown())
}

/// The field that says what two bytes are.
const BFLOAT16: &str = "bfloat16";

/// The dtype of bfloat16: that of `ml_dtypes`, or, where it is not installed, two bytes in a field of that name.
fn bfloat16(py: Python<'_>) -> PyResult<Bound<'_, PyArrayDescr>> {
    static DESCRIPTOR: PyOnceLock<Py<PyArrayDescr>> = PyOnceLock::new();
    let make = || match py.import(intern!(py, "ml_dtypes")) {
        Ok(module) => PyArrayDescr::new(py, module.getattr(intern!(py, BFLOAT16))?).map(Bound::unbind),
        Err(error) if error.is_instance_of::<PyImportError>(py) => {
            PyArrayDescr::new(py, vec![(BFLOAT16, "=u2")]).map(Bound::unbind)
        }
        Err(error) => Err(error),
    };
    Ok(DESCRIPTOR.get_or_try_init(py, make)?.bind(py).clone())
}

/// Whether a dtype is bfloat16 without `ml_dtypes`: memory that the kernels read, and that NumPy cannot compute with.
pub(super) fn is_bare_bfloat16(descriptor: &Bound<'_, PyArrayDescr>) -> bool {
    descriptor.kind() == b'V'
        && descriptor.itemsize() == 2
        && descriptor.names().is_some_and(|names| names == [BFLOAT16])
        && descriptor.get_field(BFLOAT16).is_ok_and(|(field, _)| field.kind() == b'u' && field.byteorder() == b'=')
}
