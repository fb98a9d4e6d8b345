//! NumPy arrays in and out: what they hold, where it lies, and whether that is what a function can take.

use std::os::raw::c_int;

use numpy::npyffi::{self, NPY_ORDER, PY_ARRAY_API, flags};
use numpy::{PyArray1, PyArrayDescr, PyArrayDescrMethods, PyArrayMethods, PyUntypedArray, PyUntypedArrayMethods};
use pyo3::PyTypeInfo;
use pyo3::exceptions::{PyOverflowError, PyTypeError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;

use super::detached;
use crate::element::{Dtype, Element};
use crate::error::Error;
use crate::loss::labels::{Integers, Labels};
use crate::row::Temperature;
use crate::view::{Axes, Column, View};

/// A shape, as Python writes it.
pub(super) fn shape_text(shape: &[usize]) -> String {
    let lengths: Vec<_> = shape.iter().map(usize::to_string).collect();
    let comma = if shape.len() == 1 { "," } else { "" };
    format!("({}{comma})", lengths.join(", "))
}

/// A number, as Python writes it.
fn number_text(value: f64) -> String {
    if value.is_nan() { "nan".into() } else { format!("{value:?}") }
}

/// `numpy`, imported once.
fn numpy(py: Python<'_>) -> PyResult<&Bound<'_, PyModule>> {
    static NUMPY: PyOnceLock<Py<PyModule>> = PyOnceLock::new();
    Ok(NUMPY.get_or_try_init(py, || py.import("numpy").map(Bound::unbind))?.bind(py))
}

/// An array of ours on the memory of `array`.
///
/// Python code that runs later in the call, and other threads, can give the caller's object another dtype, shape or
/// strides; nobody can do that to this one. It also keeps the caller's from being resized, and is a plain
/// `numpy.ndarray` whatever the caller's class does.
fn private_view<'py>(array: &Bound<'py, PyUntypedArray>) -> PyResult<Bound<'py, PyUntypedArray>> {
    let py = array.py();
    // SAFETY: the array is live; no new dtype is asked for; the type object is NumPy's own. The call returns a new
    // reference, or null with an exception set.
    unsafe {
        let plain = PyUntypedArray::type_object_raw(py);
        let view = PY_ARRAY_API.PyArray_View(py, array.as_array_ptr(), std::ptr::null_mut(), plain);
        Ok(Bound::from_owned_ptr_or_err(py, view)?.cast_into_unchecked())
    }
}

fn is_masked(array: &Bound<'_, PyUntypedArray>) -> PyResult<bool> {
    let py = array.py();
    if array.is_exact_instance_of::<PyUntypedArray>() {
        return Ok(false);
    }
    array.is_instance(&numpy(py)?.getattr(intern!(py, "ma"))?.getattr(intern!(py, "MaskedArray"))?)
}

/// `object` as an array: a view of it, or, for lists and other frameworks' tensors in CPU memory, what `numpy.asarray`
/// makes of it.
pub(super) fn as_array<'py>(object: &Bound<'py, PyAny>, name: &str) -> PyResult<Bound<'py, PyUntypedArray>> {
    let py = object.py();
    if let Ok(array) = object.cast::<PyUntypedArray>() {
        if is_masked(array)? {
            return Err(masked_array(name));
        }
        return private_view(array);
    }
    if object.hasattr(intern!(py, "__dlpack_device__"))? {
        let device = object.call_method0(intern!(py, "__dlpack_device__"))?.get_item(0)?;
        let device: i64 = device.call_method0(intern!(py, "__int__"))?.extract()?;
        // 1 is the CPU, 3 host memory that a GPU can reach.
        if device != 1 && device != 3 {
            let text = format!("{name} {} on device type {device}; expected CPU memory (device type 1)", verb(name));
            return Err(Error::Type(text).into());
        }
    }
    // What speaks DLPack alone is taken that way; the rest of the world knows `__array__`.
    let dlpack = object.hasattr(intern!(py, "__dlpack__"))? && !object.hasattr(intern!(py, "__array__"))?;
    let convert = if dlpack { intern!(py, "from_dlpack") } else { intern!(py, "asarray") };
    let array = numpy(py)?.call_method1(convert, (object,))?.cast_into()?;
    if is_masked(&array)? {
        return Err(masked_array(name));
    }
    private_view(&array)
}

/// `logits` and `targets` are many, `grad_output` is one.
fn verb(name: &str) -> &'static str {
    if name.ends_with('s') { "are" } else { "is" }
}

fn masked_array(name: &str) -> PyErr {
    let hint = if name == "logits" { " (mark masked classes with -inf)" } else { "" };
    Error::Type(format!("{name} {} a masked array; expected a plain array{hint}", verb(name))).into()
}

/// The storage type that a dtype is, if it is one; in either byte order.
fn storage_type(descriptor: &Bound<'_, PyArrayDescr>) -> Option<Dtype> {
    use npyffi::NPY_TYPES as types;
    const HALF: c_int = types::NPY_HALF as c_int;
    const FLOAT: c_int = types::NPY_FLOAT as c_int;
    const DOUBLE: c_int = types::NPY_DOUBLE as c_int;
    match descriptor.num() {
        HALF => Some(Dtype::F16),
        FLOAT => Some(Dtype::F32),
        DOUBLE => Some(Dtype::F64),
        // `ml_dtypes` registers its types when it is imported, so their numbers are not known before.
        _ => {
            let name = descriptor.typeobj().name().ok()?;
            (descriptor.itemsize() == 2 && name == "bfloat16").then_some(Dtype::Bf16)
        }
    }
}

fn is_swapped(descriptor: &Bound<'_, PyArrayDescr>) -> bool {
    descriptor.byteorder() == if cfg!(target_endian = "little") { b'>' } else { b'<' }
}

fn base(array: &Bound<'_, PyUntypedArray>) -> *mut u8 {
    // SAFETY: the pointer is to a live array object, and the `Bound` shows that the interpreter is attached.
    unsafe { (*npyffi::_PyArray_GET_ITEM_DATA(array.as_array_ptr())).data.cast() }
}

fn is_writeable(array: &Bound<'_, PyUntypedArray>) -> bool {
    // SAFETY: as in `base`.
    unsafe { (*npyffi::_PyArray_GET_ITEM_DATA(array.as_array_ptr())).flags & flags::NPY_ARRAY_WRITEABLE != 0 }
}

/// The addresses of the first and past the last byte of an array's elements; equal if it has none.
fn extent(array: &Bound<'_, PyUntypedArray>) -> (usize, usize) {
    let start = base(array) as usize;
    if array.is_empty() {
        return (start, start);
    }
    let (mut low, mut high) = (start, start + array.dtype().itemsize());
    for (length, stride) in array.shape().iter().zip(array.strides()) {
        let reach = stride.unsigned_abs() * (length - 1);
        if *stride < 0 { low -= reach } else { high += reach }
    }
    (low, high)
}

/// Logits: an array and which of its axes are the classes.
pub(super) struct Logits<'py> {
    pub(super) array: Bound<'py, PyUntypedArray>,
    pub(super) dtype: Dtype,
    axis: usize,
    swapped: bool,
}

impl<'py> Logits<'py> {
    pub(super) fn new(array: Bound<'py, PyUntypedArray>, axis: &Bound<'py, PyAny>) -> PyResult<Self> {
        let descriptor = array.dtype();
        let Some(dtype) = storage_type(&descriptor) else {
            let names = "float16, bfloat16, float32 or float64";
            let mut text = format!("logits have dtype {descriptor}; expected {names}");
            if descriptor.kind() == b'V' && descriptor.itemsize() == 2 {
                text.push_str(" (if these are bfloat16, view them as ml_dtypes.bfloat16)");
            }
            return Err(Error::Type(text).into());
        };
        let swapped = is_swapped(&descriptor);
        let shape = array.shape();
        let axes = shape.len() as i128;
        if axes == 0 {
            return Err(Error::Value("logits have shape (); expected at least one axis, the classes".into()).into());
        }
        let number = integer("axis", axis)?;
        if !(-axes..axes).contains(&number) {
            let text =
                format!("axis is {axis}; expected {} to {} for logits of shape {}", -axes, axes - 1, shape_text(shape));
            return Err(Error::Value(text).into());
        }
        let index = number.rem_euclid(axes) as usize;
        if shape[index] == 0 {
            let text =
                format!("logits have shape {}; expected at least one class along axis {axis}", shape_text(shape));
            return Err(Error::Value(text).into());
        }
        Ok(Self { array, dtype, axis: index, swapped })
    }

    pub(super) fn classes(&self) -> usize {
        self.array.shape()[self.axis]
    }

    /// The shape without the classes.
    pub(super) fn row_shape(&self) -> Vec<usize> {
        let mut shape = self.array.shape().to_vec();
        shape.remove(self.axis);
        shape
    }

    /// The shape with one class, as results with `keepdims` have.
    pub(super) fn shape_with_one_class(&self) -> Vec<usize> {
        let mut shape = self.array.shape().to_vec();
        shape[self.axis] = 1;
        shape
    }

    /// The array as rows of `E`, which is what it holds.
    ///
    /// The view is good as long as `self` lives.
    pub(super) fn view<E: Element>(&self) -> View<E> {
        assert_eq!(E::DTYPE, self.dtype);
        rows(&self.array, self.axis, self.swapped)
    }

    /// An array of the logits' shape, layout and dtype, in native byte order, not initialised.
    pub(super) fn new_like(&self) -> PyResult<Bound<'py, PyUntypedArray>> {
        let py = self.array.py();
        let mut descriptor = self.array.dtype();
        if self.swapped {
            descriptor = descriptor.call_method1(intern!(py, "newbyteorder"), ("=",))?.cast_into()?;
        }
        // SAFETY: the prototype is a live array; the call takes over the reference to the descriptor that `into_ptr`
        // gives up, and returns a new reference or null with an exception set.
        unsafe {
            let array = PY_ARRAY_API.PyArray_NewLikeArray(
                py,
                self.array.as_array_ptr(),
                NPY_ORDER::NPY_KEEPORDER,
                descriptor.into_ptr().cast(),
                0,
            );
            Ok(Bound::from_owned_ptr_or_err(py, array)?.cast_into_unchecked())
        }
    }

    /// The result array `out`, checked, or a new one.
    pub(super) fn result(
        &self,
        out: Option<&Bound<'py, PyAny>>,
        inputs: &[(&str, &Bound<'py, PyUntypedArray>)],
    ) -> PyResult<Output<'py>> {
        let (result, array) = if let Some(out) = out {
            (out.clone(), self.checked_out(out, inputs)?)
        } else {
            let array = self.new_like()?;
            (array.clone().into_any(), array)
        };
        let dtype = storage_type(&array.dtype()).expect("checked, or the logits' own");
        Ok(Output { result, array, dtype, axis: self.axis })
    }

    fn checked_out(
        &self,
        out: &Bound<'py, PyAny>,
        inputs: &[(&str, &Bound<'py, PyUntypedArray>)],
    ) -> PyResult<Bound<'py, PyUntypedArray>> {
        let value_error = |text: String| -> PyErr { Error::Value(text).into() };
        let Ok(array) = out.cast::<PyUntypedArray>() else {
            let text = format!("out is a {}; expected a numpy.ndarray", out.get_type().name()?);
            return Err(Error::Type(text).into());
        };
        if is_masked(array)? {
            return Err(masked_array("out"));
        }
        let array = private_view(array)?;
        let descriptor = array.dtype();
        let dtype = storage_type(&descriptor)
            .filter(|dtype| !is_swapped(&descriptor) && dtype.is_double() == self.dtype.is_double());
        if dtype.is_none() {
            let expected = if self.dtype.is_double() { "float64" } else { "float32, float16 or bfloat16" };
            return Err(value_error(format!(
                "out has dtype {descriptor}; expected {expected} for {} logits",
                self.dtype.name()
            )));
        }
        if array.shape() != self.array.shape() {
            let (found, expected) = (shape_text(array.shape()), shape_text(self.array.shape()));
            return Err(value_error(format!("out has shape {found}; expected {expected}")));
        }
        if !is_writeable(&array) {
            return Err(value_error("out is read-only; expected a writeable array".into()));
        }
        if overlaps_itself(&array) {
            return Err(value_error(
                "out has elements that share memory; expected an array without internal overlap".into(),
            ));
        }
        let expected = "expected the logits array itself or memory that no input uses";
        if !self.is_same_array(&array) && overlap(&array, &self.array)? {
            return Err(value_error(format!("out overlaps logits; {expected}")));
        }
        for (name, input) in inputs {
            if overlap(&array, input)? {
                return Err(value_error(format!("out overlaps {name}; {expected}")));
            }
        }
        Ok(array)
    }

    /// Whether `array`, of the same shape, is the same elements in the same places.
    fn is_same_array(&self, array: &Bound<'_, PyUntypedArray>) -> bool {
        let same_steps = || {
            let steps = self.array.strides().iter().zip(array.strides());
            array.shape().iter().zip(steps).all(|(&length, (ours, theirs))| length <= 1 || ours == theirs)
        };
        base(array) == base(&self.array) && array.dtype().is_equiv_to(&self.array.dtype()) && same_steps()
    }
}

/// An array to write to: new, or given and checked.
pub(super) struct Output<'py> {
    /// What the caller gets: its own object, or the new array.
    pub(super) result: Bound<'py, PyAny>,
    array: Bound<'py, PyUntypedArray>,
    pub(super) dtype: Dtype,
    axis: usize,
}

impl Output<'_> {
    /// The array as rows of `O`, which is what it holds. As with [`Logits::view`], good as long as `self` lives.
    pub(super) fn view<O: Element>(&self) -> View<O> {
        assert_eq!(O::DTYPE, self.dtype);
        rows(&self.array, self.axis, false)
    }
}

fn rows<E: Element>(array: &Bound<'_, PyUntypedArray>, axis: usize, swapped: bool) -> View<E> {
    let (shape, strides) = (array.shape(), array.strides());
    let axes = shape.iter().copied().zip(strides.iter().copied());
    let row_axes = Axes::new(axes.enumerate().filter(|(index, _)| *index != axis).map(|(_, axis)| axis));
    // SAFETY: base, shape and strides are those of a NumPy array of `E` which nobody else can change (`private_view`),
    // and which the caller keeps alive; outputs are new or passed `Logits::checked_out`: writeable, without internal
    // overlap.
    unsafe { View::new(base(array), row_axes, shape[axis], strides[axis], swapped) }
}

/// Whether two elements of an array may share memory: some axis steps by less than the smaller axes span.
fn overlaps_itself(array: &Bound<'_, PyUntypedArray>) -> bool {
    if array.is_empty() {
        return false;
    }
    let axes = array.shape().iter().zip(array.strides()).filter(|(length, _)| **length > 1);
    let mut axes: Vec<_> = axes.map(|(length, stride)| (stride.unsigned_abs(), length - 1)).collect();
    axes.sort_unstable();
    let mut span = array.dtype().itemsize();
    axes.into_iter().any(|(stride, steps)| {
        let overlaps = stride < span;
        span += stride * steps;
        overlaps
    })
}

/// How hard `numpy.shares_memory` may try: milliseconds.
const SEARCH_EFFORT: i64 = 100_000;

/// Whether two arrays share memory; when that is too hard to tell, they do.
fn overlap(a: &Bound<'_, PyUntypedArray>, b: &Bound<'_, PyUntypedArray>) -> PyResult<bool> {
    let ((a_low, a_high), (b_low, b_high)) = (extent(a), extent(b));
    if a_high <= b_low || b_high <= a_low || a_low == a_high || b_low == b_high {
        return Ok(false);
    }
    let py = a.py();
    match numpy(py)?.call_method1(intern!(py, "shares_memory"), (a, b, SEARCH_EFFORT)) {
        Ok(shared) => shared.extract(),
        Err(error) if error.is_instance_of::<pyo3::exceptions::PyRuntimeError>(py) => Ok(true),
        Err(error) => Err(error),
    }
}

/// Targets as an array: of integers, if they are an empty list, which `numpy.asarray` makes an array of floats.
pub(super) fn target_array<'py>(targets: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyUntypedArray>> {
    let array = as_array(targets, "targets")?;
    if array.is_empty() && !targets.is_instance_of::<PyUntypedArray>() {
        let py = targets.py();
        return Ok(array.call_method1(intern!(py, "astype"), (intern!(py, "int64"),))?.cast_into()?);
    }
    Ok(array)
}

/// The targets of `logits`, read and checked.
pub(super) fn labels(
    array: &Bound<'_, PyUntypedArray>,
    logits: &Logits<'_>,
    axis: &Bound<'_, PyAny>,
    ignore_index: i128,
) -> PyResult<Labels> {
    let descriptor = array.dtype();
    let kind = descriptor.kind();
    if !matches!(kind, b'i' | b'u') {
        let text = format!("targets have dtype {descriptor}; expected an integer dtype (class indices)");
        return Err(Error::Type(text).into());
    }
    let expected = logits.row_shape();
    if array.shape() != expected {
        let text = format!(
            "targets have shape {}; expected {}, the shape of logits {} without axis {axis}",
            shape_text(array.shape()),
            shape_text(&expected),
            shape_text(logits.array.shape())
        );
        return Err(Error::Value(text).into());
    }
    // SAFETY: base, shape and strides are those of an array of integers which nobody else can change
    // (`private_view`) and which outlives the value.
    let integers = unsafe { Integers::new(base(array), array.shape(), array.strides(), is_swapped(&descriptor)) };
    let (size, classes) = (descriptor.itemsize(), logits.classes());
    detached(array.py(), move |check| match (kind, size) {
        (b'i', 1) => Labels::read::<i8>(&integers, classes, ignore_index, check),
        (b'i', 2) => Labels::read::<i16>(&integers, classes, ignore_index, check),
        (b'i', 4) => Labels::read::<i32>(&integers, classes, ignore_index, check),
        (b'i', _) => Labels::read::<i64>(&integers, classes, ignore_index, check),
        (_, 1) => Labels::read::<u8>(&integers, classes, ignore_index, check),
        (_, 2) => Labels::read::<u16>(&integers, classes, ignore_index, check),
        (_, 4) => Labels::read::<u32>(&integers, classes, ignore_index, check),
        _ => Labels::read::<u64>(&integers, classes, ignore_index, check),
    })
}

/// A number a row, in an array of f32 or f64, and the column to write it through.
pub(super) struct RowResult<'py> {
    array: Bound<'py, PyAny>,
    pub(super) column: Column,
}

impl<'py> RowResult<'py> {
    /// A new array of `shape`.
    pub(super) fn new(py: Python<'py>, shape: &[usize], double: bool) -> PyResult<Self> {
        let dtype = if double { intern!(py, "float64") } else { intern!(py, "float32") };
        let array = numpy(py)?.call_method1(intern!(py, "empty"), (shape, dtype))?;
        let numbers = array.cast::<PyUntypedArray>()?;
        // SAFETY: the array is new, nobody else has it, and it lives in `self` beside the column.
        let column = unsafe { Column::new(base(numbers), numbers.len(), double) };
        Ok(Self { array, column })
    }

    /// The array; a NumPy scalar if it has no axes.
    pub(super) fn finish(self) -> PyResult<Bound<'py, PyAny>> {
        let scalar = self.array.cast::<PyUntypedArray>()?.ndim() == 0;
        if scalar { self.array.get_item(()) } else { Ok(self.array) }
    }
}

/// The bytes of a contiguous array of floats as one row of 4-byte values, for the roofs, and the array that keeps it.
pub(super) fn flat_view<'py>(object: &Bound<'py, PyAny>) -> PyResult<(Bound<'py, PyUntypedArray>, View<f32>)> {
    let array = private_view(object.cast()?)?;
    let bytes = array.len() * array.dtype().itemsize();
    let aligned = (base(&array) as usize).is_multiple_of(4);
    let floats = storage_type(&array.dtype()).is_some();
    if !array.is_c_contiguous() || !is_writeable(&array) || bytes == 0 || !aligned || !floats {
        let text = "expected a contiguous, aligned, writeable array of floats that is not empty";
        return Err(Error::Value(text.into()).into());
    }
    // SAFETY: the array's bytes lie side by side, are writeable floats, and the caller keeps the array alive.
    let view = unsafe { View::new(base(&array), Axes::default(), bytes / 4, 4, false) };
    Ok((array, view))
}

/// A number that must be positive and finite.
pub(super) fn positive(name: &str, object: &Bound<'_, PyAny>) -> PyResult<f64> {
    let expected = "expected a positive finite number";
    match object.extract::<f64>() {
        Ok(value) if value > 0.0 && value.is_finite() => Ok(value),
        Ok(value) => Err(Error::Value(format!("{name} is {}; {expected}", number_text(value))).into()),
        Err(error) if error.is_instance_of::<PyOverflowError>(object.py()) => {
            Err(Error::Value(format!("{name} is too large; {expected}")).into())
        }
        Err(error) if error.is_instance_of::<PyTypeError>(object.py()) => {
            Err(Error::Type(format!("{name} is {}; {expected}", object.repr()?)).into())
        }
        Err(error) => Err(error),
    }
}

pub(super) fn temperature(object: &Bound<'_, PyAny>) -> PyResult<Temperature> {
    positive("temperature", object).map(Temperature::new)
}

/// The numbers of `grad_output`, in C order, as f64.
pub(super) fn grad_output_values(array: &Bound<'_, PyUntypedArray>) -> PyResult<Vec<f64>> {
    let py = array.py();
    let descriptor = array.dtype();
    if !matches!(descriptor.kind(), b'f' | b'i' | b'u') && storage_type(&descriptor).is_none() {
        return Err(Error::Type(format!("grad_output has dtype {descriptor}; expected real numbers")).into());
    }
    let array = array.call_method1(intern!(py, "astype"), (intern!(py, "float64"),))?;
    let flat = array.call_method0(intern!(py, "ravel"))?.cast_into::<PyArray1<f64>>()?;
    let flat = flat.try_readonly()?;
    let mut values = Vec::new();
    let refused = |_| Error::Memory(format!("no memory for a copy of {} numbers of grad_output", flat.len()));
    values.try_reserve_exact(flat.len()).map_err(refused)?;
    values.extend_from_slice(flat.as_slice()?);
    Ok(values)
}

/// An integer argument; if it is beyond 128 bits, the largest of those.
pub(super) fn integer(name: &str, object: &Bound<'_, PyAny>) -> PyResult<i128> {
    let py = object.py();
    let wide = |error: PyErr| if error.is_instance_of::<PyOverflowError>(py) { Ok(i128::MAX) } else { Err(error) };
    match object.extract::<i64>() {
        Ok(value) => Ok(i128::from(value)),
        Err(error) if error.is_instance_of::<PyOverflowError>(py) => object.extract::<i128>().or_else(wide),
        Err(error) if error.is_instance_of::<PyTypeError>(py) => {
            Err(Error::Type(format!("{name} is {}; expected an integer", object.repr()?)).into())
        }
        Err(error) => Err(error),
    }
}
