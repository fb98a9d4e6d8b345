//! NumPy arrays in and out: what they hold, where it lies, and whether that is what a function can take.

use std::fmt::Write as _;
use std::os::raw::c_int;

use numpy::npyffi::{self, NPY_ORDER, PY_ARRAY_API, flags};
use numpy::{PyArrayDescr, PyArrayDescrMethods, PyUntypedArray, PyUntypedArrayMethods};
use pyo3::PyTypeInfo;
use pyo3::exceptions::PyImportError;

use pyo3::intern;
use pyo3::prelude::*;

use super::conversion::{converted, dtype_text, has, numpy, refuse_objects, verb};
use super::dlpack::is_bare_bfloat16;
use super::memory;
use crate::array::{Array, ArrayMut, Layout};
use crate::dtype::Dtype;
use crate::error::Error;

/// A shape, as Python writes it.
pub(super) fn shape_text(shape: &[usize]) -> String {
    let lengths: Vec<_> = shape.iter().map(usize::to_string).collect();
    let comma = if shape.len() == 1 { "," } else { "" };
    format!("({}{comma})", lengths.join(", "))
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

/// `object` as an array: a view of it, or of what it converts to.
pub(super) fn as_array<'py>(object: &Bound<'py, PyAny>, name: &str) -> PyResult<Bound<'py, PyUntypedArray>> {
    let array = match object.cast::<PyUntypedArray>() {
        Ok(array) => array,
        Err(_) => &converted(object, name)?,
    };
    if is_masked(array)? {
        return Err(masked_array(name));
    }
    refuse_objects(object, array, name)?;
    private_view(array)
}

fn masked_array(name: &str) -> PyErr {
    let hint = if name == "logits" { " (mark masked classes with -inf)" } else { "" };
    Error::Type(format!("{name} {} a masked array; expected a plain array{hint}", verb(name))).into()
}

/// What a dtype is, if it is one of real numbers that we read; in either byte order.
pub(super) fn dtype_of(descriptor: &Bound<'_, PyArrayDescr>) -> Option<Dtype> {
    use npyffi::NPY_TYPES as types;
    const HALF: c_int = types::NPY_HALF as c_int;
    const FLOAT: c_int = types::NPY_FLOAT as c_int;
    const DOUBLE: c_int = types::NPY_DOUBLE as c_int;
    match (descriptor.kind(), descriptor.itemsize()) {
        (b'b', _) => Some(Dtype::Bool),
        (b'i', 1) => Some(Dtype::I8),
        (b'i', 2) => Some(Dtype::I16),
        (b'i', 4) => Some(Dtype::I32),
        (b'i', 8) => Some(Dtype::I64),
        (b'u', 1) => Some(Dtype::U8),
        (b'u', 2) => Some(Dtype::U16),
        (b'u', 4) => Some(Dtype::U32),
        (b'u', 8) => Some(Dtype::U64),
        _ => match descriptor.num() {
            HALF => Some(Dtype::F16),
            FLOAT => Some(Dtype::F32),
            DOUBLE => Some(Dtype::F64),
            // `ml_dtypes` registers its types when it is imported, so their numbers are not known before.
            _ => {
                let name = descriptor.typeobj().name().ok()?;
                let named = descriptor.itemsize() == 2 && name == "bfloat16";
                (named || is_bare_bfloat16(descriptor)).then_some(Dtype::Bf16)
            }
        },
    }
}

/// An array as rows of the classes along `axis`, or, without an axis, as elements in C order.
///
/// # Panics
/// If its dtype is none of ours.
pub(super) fn view<'a>(array: &'a Bound<'_, PyUntypedArray>, axis: Option<usize>) -> Array<'a> {
    // SAFETY: base, shape and strides are those of an array which nobody else can change (`private_view`), and which is
    // borrowed for `'a`. Only outputs are written, by who reads the same elements: `Logits::checked_out`.
    unsafe { Array::new(&layout(array), axis) }
}

fn layout<'a>(array: &'a Bound<'_, PyUntypedArray>) -> Layout<'a> {
    let descriptor = array.dtype();
    let dtype = dtype_of(&descriptor).expect("the dtype was checked");
    let swapped = is_swapped(&descriptor);
    Layout { base: base(array), dtype, swapped, shape: array.shape(), strides: array.strides() }
}

/// Check that an array holds real numbers.
pub(super) fn check_numbers(array: &Bound<'_, PyUntypedArray>, name: &str) -> PyResult<()> {
    let descriptor = array.dtype();
    if dtype_of(&descriptor).is_some() {
        return Ok(());
    }
    Err(Error::Type(format!("{name} has dtype {}; expected real numbers", dtype_text(&descriptor))).into())
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
    /// The argument's name.
    name: &'static str,
    /// The axis of the classes; none if every element is a problem of its own.
    axis: Option<usize>,
}

/// The storage type of logits.
fn logits_type(array: &Bound<'_, PyUntypedArray>, name: &str) -> PyResult<Dtype> {
    let descriptor = array.dtype();
    dtype_of(&descriptor).filter(|dtype| dtype.is_floating()).ok_or_else(|| {
        let names = "float16, bfloat16, float32 or float64";
        let mut text = format!("{name} {} dtype {}; expected {names}", has(name), dtype_text(&descriptor));
        if descriptor.kind() == b'V' && descriptor.itemsize() == 2 {
            text.push_str(" (if these are bfloat16, view them as ml_dtypes.bfloat16)");
        } else if matches!(descriptor.kind(), b'i' | b'u') {
            let _ = write!(text, " ({name}.astype(np.float32))");
        }
        Error::Type(text).into()
    })
}

impl<'py> Logits<'py> {
    pub(super) fn new(array: Bound<'py, PyUntypedArray>, axis: i128) -> PyResult<Self> {
        Self::named("logits", array, axis)
    }

    /// [`Self::new`] of an argument with another name.
    pub(super) fn named(name: &'static str, array: Bound<'py, PyUntypedArray>, axis: i128) -> PyResult<Self> {
        let dtype = logits_type(&array, name)?;
        let shape = array.shape();
        let (axes, has) = (shape.len() as i128, has(name));
        if axes == 0 {
            let text = format!("{name} {has} shape (); expected at least one axis, the classes");
            return Err(Error::Value(text).into());
        }
        if !(-axes..axes).contains(&axis) {
            let text =
                format!("axis is {axis}; expected {} to {} for {name} of shape {}", -axes, axes - 1, shape_text(shape));
            return Err(Error::Value(text).into());
        }
        let index = axis.rem_euclid(axes) as usize;
        if shape[index] == 0 {
            let text =
                format!("{name} {has} shape {}; expected at least one class along axis {axis}", shape_text(shape));
            return Err(Error::Value(text).into());
        }
        Ok(Self { array, dtype, name, axis: Some(index) })
    }

    /// Logits without a class axis.
    pub(super) fn elementwise(array: Bound<'py, PyUntypedArray>) -> PyResult<Self> {
        let dtype = logits_type(&array, "logits")?;
        Ok(Self { array, dtype, name: "logits", axis: None })
    }

    /// Check that these are logits that belong to ours: of the same shape.
    pub(super) fn check_teacher(&self, array: &Bound<'py, PyUntypedArray>, name: &str) -> PyResult<()> {
        logits_type(array, name)?;
        if array.shape() != self.array.shape() {
            return Err(self.shape_error(array, name).into());
        }
        Ok(())
    }

    pub(super) fn shape_error(&self, array: &Bound<'py, PyUntypedArray>, name: &str) -> Error {
        let (found, expected) = (shape_text(array.shape()), shape_text(self.array.shape()));
        Error::Value(format!("{name} {} shape {found}; expected {expected}, the shape of {}", has(name), self.name))
    }

    /// The argument's name.
    pub(super) fn name(&self) -> &'static str {
        self.name
    }

    /// The number of classes.
    pub(super) fn classes(&self) -> usize {
        self.axis.map_or(1, |axis| self.array.shape()[axis])
    }

    /// The logits as rows of classes.
    pub(super) fn view(&self) -> Array<'_> {
        view(&self.array, self.axis)
    }

    /// An array of the logits' shape, as rows of the same classes.
    pub(super) fn view_of<'a>(&self, array: &'a Bound<'py, PyUntypedArray>) -> Array<'a> {
        assert_eq!(array.shape(), self.array.shape());
        view(array, self.axis)
    }

    /// The shape without the classes.
    pub(super) fn row_shape(&self) -> Vec<usize> {
        let mut shape = self.array.shape().to_vec();
        self.axis.map(|axis| shape.remove(axis));
        shape
    }

    /// Whether the classes of a row lie apart: on an inner axis they do, even if it is as good as the last.
    pub(super) fn lies_across(&self, view: &Array) -> bool {
        self.axis.is_some_and(|axis| axis + 1 < self.array.ndim()) || view.lies_across()
    }

    /// The shape with one class, as results with `keepdims` have.
    pub(super) fn shape_with_one_class(&self) -> Vec<usize> {
        let mut shape = self.array.shape().to_vec();
        if let Some(axis) = self.axis {
            shape[axis] = 1;
        }
        shape
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
        memory::for_result(py, bytes, make)
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
        if is_bare_bfloat16(&descriptor) {
            let text = "a result of dtype bfloat16 needs the package ml_dtypes: pip install ml_dtypes, or give out= of \
                        float32 or float16";
            return Err(PyImportError::new_err(text));
        }
        let array = self.new_like(descriptor)?;
        Ok(self.output(array.clone().into_any(), array, false))
    }

    fn output(&self, result: Bound<'py, PyAny>, array: Bound<'py, PyUntypedArray>, given: bool) -> Output<'py> {
        let dtype = dtype_of(&array.dtype()).expect("checked, or the logits' own");
        Output { result, array, dtype, axis: self.axis, given }
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
        let suits = |dtype: Dtype| dtype.is_floating() && dtype.is_double() == self.dtype.is_double();
        if is_swapped(&descriptor) || !dtype_of(&descriptor).is_some_and(suits) {
            let expected = if self.dtype.is_double() { "float64" } else { "float32, float16 or bfloat16" };
            return Err(value_error(format!(
                "{name} has dtype {}; expected {expected} for {} logits",
                dtype_text(&descriptor),
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
    dtype: Dtype,
    axis: Option<usize>,
    /// Whether it is the caller's own.
    pub(super) given: bool,
}

impl Output<'_> {
    /// The array as rows of the logits' classes.
    pub(super) fn view(&mut self) -> ArrayMut<'_> {
        // SAFETY: the array is new, or passed `Logits::checked_out`: writeable, without internal overlap, and the logits
        // themselves or apart from all inputs. It is borrowed exclusively.
        unsafe { ArrayMut::new(&layout(&self.array), self.axis) }
    }
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
pub(super) fn overlap(a: &Bound<'_, PyUntypedArray>, b: &Bound<'_, PyUntypedArray>) -> PyResult<bool> {
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

/// A new array of a number a row.
pub(super) struct RowResult<'py> {
    array: Bound<'py, PyUntypedArray>,
    /// How many numbers a row has, if that is not one.
    axis: Option<usize>,
}

impl<'py> RowResult<'py> {
    /// Of `shape`, to be filled with losses or the like of logits that are `logits`.
    pub(super) fn new(py: Python<'py>, shape: &[usize], logits: Dtype) -> PyResult<Self> {
        if logits.is_double() { Self::of::<f64>(py, shape) } else { Self::of::<f32>(py, shape) }
    }

    /// Of `shape` and this type.
    pub(super) fn of<E: numpy::Element>(py: Python<'py>, shape: &[usize]) -> PyResult<Self> {
        let mut lengths: Vec<_> = shape.iter().map(|&length| length as npyffi::npy_intp).collect();
        let descriptor = numpy::dtype::<E>(py).into_ptr().cast();
        // SAFETY: as many lengths are read as are said; the call takes over the reference to the descriptor that `into_ptr`
        // gives up, and returns a new reference or null with an exception set.
        let array = unsafe {
            let axes = lengths.len() as c_int;
            let array = PY_ARRAY_API.PyArray_Empty(py, axes, lengths.as_mut_ptr(), descriptor, 0);
            Bound::from_owned_ptr_or_err(py, array)?.cast_into_unchecked()
        };
        Ok(Self { array, axis: None })
    }

    /// With several numbers a row, on the last axis.
    pub(super) fn several_a_row(self) -> Self {
        Self { axis: self.array.ndim().checked_sub(1), ..self }
    }

    /// With several numbers a row, on the first axis: so those that are of a kind lie side by side.
    pub(super) fn kind_by_kind(self) -> Self {
        Self { axis: Some(0), ..self }
    }

    /// The array, a row for each row of the logits.
    pub(super) fn view(&mut self) -> ArrayMut<'_> {
        // SAFETY: the array is new, nobody else has it, and it is borrowed exclusively.
        unsafe { ArrayMut::new(&layout(&self.array), self.axis) }
    }

    /// The array, written.
    pub(super) fn finish(self) -> Bound<'py, PyAny> {
        self.array.into_any()
    }
}

/// A loss as Python gets it: those of the rows if they are a result, else their reduction.
pub(super) fn finish<'py>(py: Python<'py>, loss: f64, losses: Option<RowResult<'py>>) -> PyResult<Bound<'py, PyAny>> {
    match losses {
        Some(losses) => Ok(losses.finish()),
        None => Ok(loss.into_pyobject(py)?.into_any()),
    }
}

/// Check that an array is one whose bandwidth can be measured: floats side by side, aligned and writeable, of 4 bytes or a
/// multiple.
pub(super) fn check_flat(array: &Bound<'_, PyUntypedArray>) -> PyResult<()> {
    let bytes = array.len() * array.dtype().itemsize();
    let aligned = (base(array) as usize | bytes).is_multiple_of(4);
    let floats = dtype_of(&array.dtype()).is_some_and(Dtype::is_floating);
    if !array.is_c_contiguous() || !is_writeable(array) || bytes == 0 || !aligned || !floats {
        let text = "expected a contiguous, aligned, writeable array of floats, of 4 bytes or a multiple";
        return Err(Error::Value(text.into()).into());
    }
    Ok(())
}

/// The bytes of an array that passed [`check_flat`] as 4-byte values, each a row of one class.
pub(super) fn flat_layout<'a>(array: &'a Bound<'_, PyUntypedArray>, shape: &'a mut [usize; 1]) -> Layout<'a> {
    *shape = [array.len() * array.dtype().itemsize() / 4];
    Layout { base: base(array), dtype: Dtype::F32, swapped: false, shape, strides: &[4] }
}
