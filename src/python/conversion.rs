//! Whatever is no array, as an array of NumPy; and, where that fails, what was found and the way out.

use numpy::{PyArrayDescr, PyArrayDescrMethods, PyUntypedArray, PyUntypedArrayMethods};
use pyo3::exceptions::{PyBufferError, PyRuntimeError, PyTypeError, PyValueError};
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyList, PyString, PyTuple};
use pyo3::{intern, prelude::*};

use super::dlpack;
use crate::error::Error;

/// `numpy`, imported once.
pub(super) fn numpy(py: Python<'_>) -> PyResult<&Bound<'_, PyModule>> {
    static NUMPY: PyOnceLock<Py<PyModule>> = PyOnceLock::new();
    Ok(NUMPY.get_or_try_init(py, || py.import("numpy").map(Bound::unbind))?.bind(py))
}

/// `logits` and `targets` are many, `grad_output` is one.
pub(super) fn verb(name: &str) -> &'static str {
    if name.ends_with('s') { "are" } else { "is" }
}

pub(super) fn has(name: &str) -> &'static str {
    if name.ends_with('s') { "have" } else { "has" }
}

fn hold(name: &str) -> &'static str {
    if name.ends_with('s') { "hold" } else { "holds" }
}

/// What `numpy.asarray` makes of lists and of tensors in CPU memory, without a copy where it can; of others what DLPack
/// gives. `name` is what the argument is called.
pub(super) fn converted<'py>(object: &Bound<'py, PyAny>, name: &str) -> PyResult<Bound<'py, PyUntypedArray>> {
    let py = object.py();
    let offers_array = object.hasattr(intern!(py, "__array__"))?;
    if object.hasattr(intern!(py, "__dlpack_device__"))? {
        match device_type(object) {
            Ok(device) if !dlpack::READABLE_DEVICES.contains(&device) => {
                let text =
                    format!("{name} {} on device type {device}; expected CPU memory (device type 1)", verb(name));
                return Err(Error::Type(text).into());
            }
            // An array in pieces has no one device, and may offer `__array__` all the same.
            Err(error) if !offers_array => return Err(explained(object, name, error)),
            _ => {}
        }
    }
    let asarray = || numpy(py)?.call_method1(intern!(py, "asarray"), (object,))?.cast_into().map_err(PyErr::from);
    let array = if object.hasattr(intern!(py, "__dlpack__"))? && (!offers_array || is_bfloat16_tensor(object)?) {
        match dlpack::array(object) {
            Err(error) if offers_array && is_refusal(py, &error) => asarray(),
            array => array,
        }
    } else {
        asarray()
    };
    array.map_err(|error| explained(object, name, error))
}

fn device_type(object: &Bound<'_, PyAny>) -> PyResult<i64> {
    let py = object.py();
    let device = object.call_method0(intern!(py, "__dlpack_device__"))?.get_item(0)?;
    device.call_method0(intern!(py, "__int__"))?.extract()
}

/// Whether `object` is a tensor of bfloat16, which PyTorch's `__array__` refuses, and DLPack says all of it.
///
/// Others have `__array__` called first: it takes half the time of `__dlpack__`.
fn is_bfloat16_tensor(object: &Bound<'_, PyAny>) -> PyResult<bool> {
    let py = object.py();
    let Some(dtype) = object.getattr_opt(intern!(py, "dtype"))? else { return Ok(false) };
    if !dtype.str()?.to_cow()?.ends_with("bfloat16") {
        return Ok(false);
    }
    // PyTorch exports a tensor that is to be read with the other sign as if it were not.
    let is_negated = object.getattr_opt(intern!(py, "is_neg"))?;
    Ok(!is_negated.map_or(Ok(false), |is_negated| is_negated.call0()?.is_truthy())?)
}

/// Whether an error says that an object does not convert: not that memory is short, or that somebody pressed Ctrl-C.
fn is_refusal(py: Python<'_>, error: &PyErr) -> bool {
    error.is_instance_of::<PyTypeError>(py)
        || error.is_instance_of::<PyValueError>(py)
        || error.is_instance_of::<PyBufferError>(py)
        || error.is_instance_of::<PyRuntimeError>(py)
}

/// What is said in place of `error`, which converting `object` raised.
fn explained(object: &Bound<'_, PyAny>, name: &str, error: PyErr) -> PyErr {
    let py = object.py();
    if !is_refusal(py, &error) {
        return error;
    }
    match explanation(object, name, &error) {
        Ok(text) => {
            let explained = PyErr::from(Error::Type(text));
            explained.set_cause(py, Some(error));
            explained
        }
        Err(error) => error,
    }
}

fn explanation(object: &Bound<'_, PyAny>, name: &str, error: &PyErr) -> PyResult<String> {
    let (py, verb) = (object.py(), verb(name));
    let has = |attribute: &str| object.getattr_opt(attribute);
    if has("requires_grad")?.is_some_and(|requires| requires.is_truthy().unwrap_or(false)) {
        return Ok(format!("{name} {verb} a tensor that requires a gradient; expected one without ({name}.detach())"));
    }
    if let Some(device) = has("device")? {
        let device = device.str()?.to_string();
        if !device.to_lowercase().contains("cpu") {
            return Ok(format!("{name} {verb} on device {device}; expected CPU memory"));
        }
    }
    let reason = error.value(py).str()?.to_string();
    if reason.contains("inhomogeneous") && (object.is_instance_of::<PyList>() || object.is_instance_of::<PyTuple>()) {
        let text = "expected one length (pad them)";
        return Ok(format!("{name} {} sequences of different lengths; {text}", hold(name)));
    }
    let reason = reason.lines().next().unwrap_or_default();
    Ok(format!("{name} {verb} a {} that does not convert to an array: {reason}", object.get_type().name()?))
}

/// Refuse an array of objects, or of text where classes are expected, if there is a way out to be named; `object` is what
/// it was made of.
pub(super) fn refuse_objects<'py>(
    object: &Bound<'py, PyAny>,
    array: &Bound<'py, PyUntypedArray>,
    name: &str,
) -> PyResult<()> {
    let hold = hold(name);
    let text = match array.dtype().kind() {
        b'O' => {
            let Some(element) = telling_element(array)? else { return Ok(()) };
            let kind = element.get_type().name()?;
            if element.hasattr("toarray")? {
                format!("{name} {} a {kind}; expected an array ({name}.toarray())", verb(name))
            } else if array.ndim() == 0 {
                return Ok(());
            } else if is_sequence(&element)? {
                let whole = if object.is(array) { name.to_string() } else { format!("np.asarray({name})") };
                let way =
                    if array.ndim() == 1 { format!("np.stack({whole})") } else { "np.stack of the column".into() };
                format!("{name} {hold} objects of type {kind}; expected an array of numbers ({way})")
            } else if is_missing(&element)? {
                let way = match name {
                    "targets" => ", or ignore_index for rows to leave out (targets.fillna(-100))",
                    _ if object.hasattr("to_numpy")? => &format!(" ({name}.to_numpy(np.float32, na_value=np.nan))"),
                    _ => "",
                };
                format!("{name} {hold} missing values ({}); expected numbers{way}", element.str()?)
            } else if element.is_instance_of::<PyString>() {
                text_found(name, &element)?
            } else if object.hasattr("to_numpy")? {
                format!("{name} {hold} objects of type {kind}; expected numbers ({name}.to_numpy(np.float32))")
            } else {
                return Ok(());
            }
        }
        b'U' | b'S' | b'T' if name == "targets" && !array.is_empty() => text_found(name, &first(array)?)?,
        _ => return Ok(()),
    };
    Err(Error::Type(text).into())
}

fn text_found(name: &str, element: &Bound<'_, PyAny>) -> PyResult<String> {
    let way = if name == "targets" { " (of classes: np.unique(targets, return_inverse=True)[1])" } else { "" };
    Ok(format!("{name} {} text ({}); expected numbers{way}", hold(name), element.str()?.repr()?))
}

fn first<'py>(array: &Bound<'py, PyUntypedArray>) -> PyResult<Bound<'py, PyAny>> {
    array.getattr("flat")?.get_item(0)
}

/// The first element that is missing, or else the first of all; `None` if there is none.
fn telling_element<'py>(array: &Bound<'py, PyUntypedArray>) -> PyResult<Option<Bound<'py, PyAny>>> {
    for element in array.getattr("flat")?.try_iter()? {
        let element = element?;
        if is_missing(&element)? {
            return Ok(Some(element));
        }
    }
    if array.is_empty() { Ok(None) } else { first(array).map(Some) }
}

/// Whether an object marks a missing value: None, or the NA of pandas.
fn is_missing(element: &Bound<'_, PyAny>) -> PyResult<bool> {
    Ok(element.is_none() || element.get_type().name()? == "NAType")
}

fn is_sequence(element: &Bound<'_, PyAny>) -> PyResult<bool> {
    let listed = element.is_instance_of::<PyList>() || element.is_instance_of::<PyTuple>();
    Ok(listed || element.hasattr("__array__")? && element.hasattr("__len__")?)
}

/// A dtype, as errors call it.
pub(super) fn dtype_text(descriptor: &Bound<'_, PyArrayDescr>) -> String {
    if dlpack::is_bare_bfloat16(descriptor) { "bfloat16".into() } else { descriptor.to_string() }
}

/// What to do about floats where class indices are expected, or nothing.
pub(super) fn float_classes_hint(targets: &Bound<'_, PyUntypedArray>, name: &str) -> String {
    let hint = || -> PyResult<_> {
        let numpy = numpy(targets.py())?;
        if numpy.call_method1("isnan", (targets,))?.call_method0("any")?.is_truthy()? {
            return Ok(" (NaN among them: missing values?)".into());
        }
        let rounded = numpy.call_method1("rint", (targets,))?;
        let finite = numpy.call_method1("isfinite", (targets,))?.call_method0("all")?.is_truthy()?;
        let whole =
            finite && !targets.is_empty() && numpy.call_method1("array_equal", (targets, rounded))?.is_truthy()?;
        Ok(if whole { format!(" (whole numbers: {name}.astype(int))") } else { String::new() })
    };
    // Where NumPy cannot compute with them there is no hint, and the error that it belongs to is raised all the same.
    if matches!(targets.dtype().kind(), b'f' | b'V') { hint().unwrap_or_default() } else { String::new() }
}
