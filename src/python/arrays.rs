//! NumPy arrays in and out: what they hold, where it lies, and whether that is what a function can take.

use std::os::raw::c_int;

use numpy::npyffi::{self, NPY_ORDER, PY_ARRAY_API, flags};
use numpy::{PyArrayDescr, PyArrayDescrMethods, PyUntypedArray, PyUntypedArrayMethods};
use pyo3::PyTypeInfo;

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;

use super::arguments::integer;
use super::memory::with_buffers;
use crate::buffers;
use crate::element::{Dtype, Element};
use crate::error::Error;
use crate::numbers::{Kind, Numbers};
use crate::row::AnyView;
use crate::view::{Axes, Column, Elements, Stored, View};

/// A shape, as Python writes it.
pub(super) fn shape_text(shape: &[usize]) -> String {
    let lengths: Vec<_> = shape.iter().map(usize::to_string).collect();
    let comma = if shape.len() == 1 { "," } else { "" };
    format!("({}{comma})", lengths.join(", "))
}

/// `numpy`, imported once.
pub(super) fn numpy(py: Python<'_>) -> PyResult<&Bound<'_, PyModule>> {
    static NUMPY: PyOnceLock<Py<PyModule>> = PyOnceLock::new();
    Ok(NUMPY.get_or_try_init(py, || py.import("numpy").map(Bound::unbind))?.bind(py))
}

/// An array of ours on the memory of `array`.
///
/// Python code that runs later in the call, and other threads, can give the caller's object another dtype, shape or
/// strides; nobody can do that to this one. It also keeps the caller's from being resized, and is a plain
/// `numpy.ndarray` whatever the caller's class does.
pub(super) fn private_view<'py>(array: &Bound<'py, PyUntypedArray>) -> PyResult<Bound<'py, PyUntypedArray>> {
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

pub(super) fn is_swapped(descriptor: &Bound<'_, PyArrayDescr>) -> bool {
    descriptor.byteorder() == if cfg!(target_endian = "little") { b'>' } else { b'<' }
}

pub(super) fn base(array: &Bound<'_, PyUntypedArray>) -> *mut u8 {
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

/// The storage type of logits.
fn logits_type(array: &Bound<'_, PyUntypedArray>, name: &str) -> PyResult<Dtype> {
    let descriptor = array.dtype();
    storage_type(&descriptor).ok_or_else(|| {
        let names = "float16, bfloat16, float32 or float64";
        let mut text = format!("{name} have dtype {descriptor}; expected {names}");
        if descriptor.kind() == b'V' && descriptor.itemsize() == 2 {
            text.push_str(" (if these are bfloat16, view them as ml_dtypes.bfloat16)");
        }
        Error::Type(text).into()
    })
}

impl<'py> Logits<'py> {
    pub(super) fn new(array: Bound<'py, PyUntypedArray>, axis: &Bound<'py, PyAny>) -> PyResult<Self> {
        let dtype = logits_type(&array, "logits")?;
        let swapped = is_swapped(&array.dtype());
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

    /// Logits without a class axis.
    pub(super) fn elementwise(array: Bound<'py, PyUntypedArray>) -> PyResult<Self> {
        let dtype = logits_type(&array, "logits")?;
        let swapped = is_swapped(&array.dtype());
        Ok(Self { array, dtype, axis: 0, swapped })
    }

    /// Other logits that belong to these: of the same shape, with the same class axis.
    pub(super) fn teacher(&self, array: Bound<'py, PyUntypedArray>, name: &str) -> PyResult<Self> {
        let dtype = logits_type(&array, name)?;
        if array.shape() != self.array.shape() {
            return Err(self.shape_error(&array, name).into());
        }
        let swapped = is_swapped(&array.dtype());
        Ok(Self { array, dtype, axis: self.axis, swapped })
    }

    pub(super) fn shape_error(&self, array: &Bound<'py, PyUntypedArray>, name: &str) -> Error {
        let (found, expected) = (shape_text(array.shape()), shape_text(self.array.shape()));
        let verb = if name.ends_with('s') { "have" } else { "has" };
        Error::Value(format!("{name} {verb} shape {found}; expected {expected}, the shape of logits"))
    }

    pub(super) fn classes(&self) -> usize {
        self.array.shape()[self.axis]
    }

    /// The array's elements in C order.
    pub(super) fn numbers(&self) -> Numbers {
        numbers(&self.array, "logits").expect("the dtype was checked")
    }

    /// An array of the logits' shape as numbers in C order with the classes last, good as long as the array lives.
    pub(super) fn numbers_by_row(&self, array: &Bound<'py, PyUntypedArray>, kind: Kind) -> Numbers {
        assert_eq!(array.shape(), self.array.shape());
        let axes = array.shape().iter().copied().zip(array.strides().iter().copied());
        let mut axes: Vec<_> = axes.collect();
        let classes = axes.remove(self.axis);
        axes.push(classes);
        // SAFETY: base, shape and strides are those of an array which nobody else can change (`private_view`) and which
        // the caller keeps alive.
        unsafe { Numbers::new(base(array), Axes::new(axes), kind, is_swapped(&array.dtype())) }
    }

    /// The array as rows of whatever it holds, good as long as the array lives.
    pub(super) fn any_view(&self) -> AnyView {
        match self.dtype {
            Dtype::F16 => AnyView::F16(self.view()),
            Dtype::Bf16 => AnyView::Bf16(self.view()),
            Dtype::F32 => AnyView::F32(self.view()),
            Dtype::F64 => AnyView::F64(self.view()),
        }
    }

    /// The index of element number `number` in C order.
    pub(super) fn index(&self, number: usize) -> Vec<usize> {
        self.index_along((0..self.array.ndim()).rev(), number)
    }

    /// The index of element number `number` in C order, but with the classes last.
    pub(super) fn index_by_row(&self, number: usize) -> Vec<usize> {
        let rows = (0..self.array.ndim()).rev().filter(|&axis| axis != self.axis);
        self.index_along(std::iter::once(self.axis).chain(rows), number)
    }

    fn index_along(&self, axes: impl Iterator<Item = usize>, mut number: usize) -> Vec<usize> {
        let shape = self.array.shape();
        let mut index = vec![0; shape.len()];
        for axis in axes {
            (index[axis], number) = (number % shape[axis], number / shape[axis]);
        }
        index
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

    /// An array of the logits' shape and layout, in native byte order, not initialised.
    fn new_like(&self, mut descriptor: Bound<'py, PyArrayDescr>) -> PyResult<Bound<'py, PyUntypedArray>> {
        let py = self.array.py();
        if is_swapped(&descriptor) {
            descriptor = descriptor.call_method1(intern!(py, "newbyteorder"), ("=",))?.cast_into()?;
        }
        let bytes = self.array.len().saturating_mul(descriptor.itemsize());
        let make = || {
            // SAFETY: the prototype is a live array; the call takes over the reference to the descriptor that
            // `into_ptr` gives up, and returns a new reference or null with an exception set.
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
        };
        if bytes < buffers::LARGE { make() } else { with_buffers(py, make) }
    }

    /// The result array `out`, checked, or a new one of the logits' dtype.
    pub(super) fn result(
        &self,
        out: Option<&Bound<'py, PyAny>>,
        inputs: &[(&str, &Bound<'py, PyUntypedArray>)],
    ) -> PyResult<Output<'py>> {
        match out {
            Some(out) => self.given("out", out, inputs),
            None => self.fresh(self.array.dtype()),
        }
    }

    /// Two result arrays of the same dtype, each checked or new.
    pub(super) fn two_results(
        &self,
        [out, hess_out]: [Option<&Bound<'py, PyAny>>; 2],
        inputs: &[(&str, &Bound<'py, PyUntypedArray>)],
    ) -> PyResult<[Output<'py>; 2]> {
        let given = |name, out: Option<&Bound<'py, PyAny>>| out.map(|out| self.given(name, out, inputs)).transpose();
        let results = [given("out", out)?, given("hess_out", hess_out)?];
        if let [Some(out), Some(hess_out)] = &results {
            if out.dtype != hess_out.dtype {
                let (found, expected) = (hess_out.dtype.name(), out.dtype.name());
                let text = format!("hess_out has dtype {found}; expected {expected}, the dtype of out");
                return Err(Error::Value(text).into());
            }
            if overlap(&hess_out.array, &out.array)? {
                return Err(Error::Value("hess_out overlaps out; expected memory apart from it".into()).into());
            }
        }
        let descriptor =
            results.iter().flatten().next().map_or_else(|| self.array.dtype(), |output| output.array.dtype());
        let [out, hess_out] = results.map(|output| output.map_or_else(|| self.fresh(descriptor.clone()), Ok));
        Ok([out?, hess_out?])
    }

    fn given(
        &self,
        name: &str,
        out: &Bound<'py, PyAny>,
        inputs: &[(&str, &Bound<'py, PyUntypedArray>)],
    ) -> PyResult<Output<'py>> {
        Ok(self.output(out.clone(), self.checked_out(name, out, inputs)?, true))
    }

    fn fresh(&self, descriptor: Bound<'py, PyArrayDescr>) -> PyResult<Output<'py>> {
        let array = self.new_like(descriptor)?;
        Ok(self.output(array.clone().into_any(), array, false))
    }

    fn output(&self, result: Bound<'py, PyAny>, array: Bound<'py, PyUntypedArray>, given: bool) -> Output<'py> {
        let dtype = storage_type(&array.dtype()).expect("checked, or the logits' own");
        Output { result, array, given, dtype, axis: self.axis }
    }

    fn checked_out(
        &self,
        name: &str,
        out: &Bound<'py, PyAny>,
        inputs: &[(&str, &Bound<'py, PyUntypedArray>)],
    ) -> PyResult<Bound<'py, PyUntypedArray>> {
        let value_error = |text: String| -> PyErr { Error::Value(text).into() };
        let Ok(array) = out.cast::<PyUntypedArray>() else {
            let text = format!("{name} is a {}; expected a numpy.ndarray", out.get_type().name()?);
            return Err(Error::Type(text).into());
        };
        if is_masked(array)? {
            return Err(masked_array(name));
        }
        let array = private_view(array)?;
        let descriptor = array.dtype();
        let dtype = storage_type(&descriptor)
            .filter(|dtype| !is_swapped(&descriptor) && dtype.is_double() == self.dtype.is_double());
        if dtype.is_none() {
            let expected = if self.dtype.is_double() { "float64" } else { "float32, float16 or bfloat16" };
            return Err(value_error(format!(
                "{name} has dtype {descriptor}; expected {expected} for {} logits",
                self.dtype.name()
            )));
        }
        if array.shape() != self.array.shape() {
            let (found, expected) = (shape_text(array.shape()), shape_text(self.array.shape()));
            return Err(value_error(format!("{name} has shape {found}; expected {expected}")));
        }
        if !is_writeable(&array) {
            return Err(value_error(format!("{name} is read-only; expected a writeable array")));
        }
        if overlaps_itself(&array) {
            let text = format!("{name} has elements that share memory; expected an array without internal overlap");
            return Err(value_error(text));
        }
        if !self.is_same_array(&array) && overlap(&array, &self.array)? {
            return Err(value_error(format!("{name} overlaps logits; {NO_OVERLAP}")));
        }
        for (input_name, input) in inputs {
            if overlap(&array, input)? {
                return Err(value_error(format!("{name} overlaps {input_name}; {NO_OVERLAP}")));
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

/// What is expected of an output that overlaps.
const NO_OVERLAP: &str = "expected the logits array itself or memory that no input uses";

/// An array to write to: new, or given and checked.
pub(super) struct Output<'py> {
    /// What the caller gets: its own object, or the new array.
    pub(super) result: Bound<'py, PyAny>,
    array: Bound<'py, PyUntypedArray>,
    /// Whether it is the caller's.
    pub(super) given: bool,
    pub(super) dtype: Dtype,
    axis: usize,
}

impl Output<'_> {
    /// The array as rows of `O`, which is what it holds. As with [`Logits::view`], good as long as `self` lives.
    pub(super) fn view<O: Element>(&self) -> View<O> {
        assert_eq!(O::DTYPE, self.dtype);
        rows(&self.array, self.axis, false)
    }

    /// The array's elements in C order, good as long as `self` lives.
    pub(super) fn elements<O: Element>(&self) -> Elements<O> {
        assert_eq!(O::DTYPE, self.dtype);
        let axes = self.array.shape().iter().copied().zip(self.array.strides().iter().copied());
        // SAFETY: base, shape and strides are those of an array of `O` which is new or passed `Logits::checked_out`.
        unsafe { Elements::new(base(&self.array), Axes::new(axes)) }
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

/// What the numbers of a dtype are, if they are real numbers that we read.
pub(super) fn number_kind(descriptor: &Bound<'_, PyArrayDescr>) -> Option<Kind> {
    match (descriptor.kind(), descriptor.itemsize()) {
        (b'b', _) => Some(Kind::Bool),
        (b'i', 1) => Some(Kind::I8),
        (b'i', 2) => Some(Kind::I16),
        (b'i', 4) => Some(Kind::I32),
        (b'i', 8) => Some(Kind::I64),
        (b'u', 1) => Some(Kind::U8),
        (b'u', 2) => Some(Kind::U16),
        (b'u', 4) => Some(Kind::U32),
        (b'u', 8) => Some(Kind::U64),
        _ => storage_type(descriptor).map(|dtype| match dtype {
            Dtype::F16 => Kind::F16,
            Dtype::Bf16 => Kind::Bf16,
            Dtype::F32 => Kind::F32,
            Dtype::F64 => Kind::F64,
        }),
    }
}

/// An array's elements in C order, good as long as the array lives.
pub(super) fn numbers(array: &Bound<'_, PyUntypedArray>, name: &str) -> PyResult<Numbers> {
    let descriptor = array.dtype();
    let Some(kind) = number_kind(&descriptor) else {
        return Err(Error::Type(format!("{name} has dtype {descriptor}; expected real numbers")).into());
    };
    let axes = Axes::new(array.shape().iter().copied().zip(array.strides().iter().copied()));
    // SAFETY: base, shape and strides are those of an array which nobody else can change (`private_view`) and which the
    // caller keeps alive.
    Ok(unsafe { Numbers::new(base(array), axes, kind, is_swapped(&descriptor)) })
}

/// A number a row, in an array of f32 or f64, and the column to write it through.
pub(super) struct RowResult<'py> {
    array: Bound<'py, PyAny>,
    pub(super) column: Column,
}

impl<'py> RowResult<'py> {
    /// A new array of `shape`.
    pub(super) fn new(py: Python<'py>, shape: &[usize], double: bool) -> PyResult<Self> {
        Self::stored(py, shape, if double { Stored::F64 } else { Stored::F32 })
    }

    /// A new array of `shape`, of this dtype.
    pub(super) fn stored(py: Python<'py>, shape: &[usize], stored: Stored) -> PyResult<Self> {
        let dtype = match stored {
            Stored::F32 => intern!(py, "float32"),
            Stored::F64 => intern!(py, "float64"),
            Stored::I64 => intern!(py, "int64"),
        };
        let array = numpy(py)?.call_method1(intern!(py, "empty"), (shape, dtype))?;
        let numbers = array.cast::<PyUntypedArray>()?;
        // SAFETY: the array is new, nobody else has it, and it lives in `self` beside the column.
        let column = unsafe { Column::new(base(numbers), numbers.len(), stored) };
        Ok(Self { array, column })
    }

    /// The array, once it was written; of a single row one without axes.
    pub(super) fn finish(self) -> Bound<'py, PyAny> {
        self.array
    }
}

/// A loss as Python gets it: those of the rows if they are a result, else their reduction.
pub(super) fn finish<'py>(py: Python<'py>, loss: f64, losses: Option<RowResult<'py>>) -> PyResult<Bound<'py, PyAny>> {
    match losses {
        Some(losses) => Ok(losses.finish()),
        None => Ok(loss.into_pyobject(py)?.into_any()),
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
