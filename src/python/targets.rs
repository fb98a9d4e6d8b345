//! The arrays beside the logits: targets, weights, and what multiplies a gradient.

use numpy::{PyArrayDescrMethods, PyUntypedArray, PyUntypedArrayMethods};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyList, PyTuple, PyType};

use super::arrays::{Logits, as_array, check_numbers, dtype_of, private_view, shape_text, view};
use super::conversion::{dtype_text, float_classes_hint, has, numpy};
use crate::dtype::Dtype;
use crate::error::Error;
use crate::loss::sparse::Rest;
use crate::loss::{GradOutput, Reduction};
use crate::simd::Environment;

/// Targets as an array.
pub(super) fn target_array<'py>(targets: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyUntypedArray>> {
    integer_array(targets, "targets")
}

/// `object` as an array: of integers, if it is an empty list, which `numpy.asarray` makes an array of floats.
pub(super) fn integer_array<'py>(object: &Bound<'py, PyAny>, name: &str) -> PyResult<Bound<'py, PyUntypedArray>> {
    let array = as_array(object, name)?;
    if array.is_empty() && (object.is_instance_of::<PyList>() || object.is_instance_of::<PyTuple>()) {
        let py = object.py();
        return Ok(array.call_method1(intern!(py, "astype"), (intern!(py, "int64"),))?.cast_into()?);
    }
    Ok(array)
}

/// Check that targets can be the classes of `logits`: integers, one for each row; `probabilities` says whether those would
/// be fine, too.
pub(super) fn check_labels(
    array: &Bound<'_, PyUntypedArray>,
    logits: &Logits<'_>,
    axis: i128,
    probabilities: bool,
) -> PyResult<()> {
    let hint = match array.shape() {
        shape if shape == logits.array.shape() && probabilities => ONE_HOT,
        shape if shape == logits.array.shape() => &format!(" (one-hot targets: targets.argmax({axis}))"),
        [rows @ .., 1] if rows == logits.row_shape() => " (targets.squeeze(-1))",
        _ => "",
    };
    if array.dtype().kind() == b'b' {
        let text = format!("targets have dtype bool; expected an integer dtype (class indices){hint}");
        return Err(Error::Type(text).into());
    }
    check_integers("targets", array)?;
    let expected = logits.row_shape();
    if array.shape() != expected {
        let text = format!(
            "targets have shape {}; expected {}, the shape of {} {} without axis {axis}{hint}",
            shape_text(array.shape()),
            shape_text(&expected),
            logits.name(),
            shape_text(logits.array.shape())
        );
        return Err(Error::Value(text).into());
    }
    Ok(())
}

/// What is said of one-hot targets that are no floats.
pub(super) const ONE_HOT: &str = " (one-hot targets are probabilities: give them a floating dtype)";

fn check_integers(name: &str, array: &Bound<'_, PyUntypedArray>) -> PyResult<()> {
    let descriptor = array.dtype();
    if matches!(descriptor.kind(), b'i' | b'u') {
        return Ok(());
    }
    let (found, hint) = (dtype_text(&descriptor), float_classes_hint(array, name));
    let text = format!("{name} {} dtype {found}; expected an integer dtype (class indices){hint}", has(name));
    Err(Error::Type(text).into())
}

/// What a `SparseTargets` of the package holds.
pub(super) struct SparseParts<'py> {
    pub(super) index: Bound<'py, PyUntypedArray>,
    pub(super) probability: Bound<'py, PyUntypedArray>,
    pub(super) rest: Rest,
}

/// What targets hold, if they are a `SparseTargets`.
pub(super) fn sparse_parts<'py>(targets: &Bound<'py, PyAny>) -> PyResult<Option<SparseParts<'py>>> {
    static CLASS: PyOnceLock<Py<PyType>> = PyOnceLock::new();
    let py = targets.py();
    if targets.is_instance_of::<PyUntypedArray>() {
        return Ok(None);
    }
    if !targets.is_instance(CLASS.import(py, "xent_rs._sparse_targets", "SparseTargets")?)? {
        return Ok(None);
    }
    let name = targets.getattr(intern!(py, "rest"))?;
    let name = name.extract::<&str>().unwrap_or_default();
    let rest = Rest::ALL.into_iter().find(|rest| rest.name() == name);
    let array = |name| as_array(&targets.getattr(name)?, name);
    let text = || PyErr::from(Error::Value("rest of SparseTargets was changed".into()));
    Ok(Some(SparseParts { index: array("index")?, probability: array("probability")?, rest: rest.ok_or_else(text)? }))
}

/// Check that probabilities are floats, one for each index.
pub(super) fn check_probability(
    array: &Bound<'_, PyUntypedArray>,
    name: &str,
    index: &Bound<'_, PyUntypedArray>,
) -> PyResult<()> {
    let descriptor = array.dtype();
    if !dtype_of(&descriptor).is_some_and(Dtype::is_floating) {
        let found = dtype_text(&descriptor);
        return Err(Error::Type(format!("{name} has dtype {found}; expected a floating dtype")).into());
    }
    if array.shape() != index.shape() {
        let (found, expected) = (shape_text(array.shape()), shape_text(index.shape()));
        return Err(Error::Value(format!("{name} has shape {found}; expected {expected}, the shape of index")).into());
    }
    Ok(())
}

/// Check that an index can name classes of `logits`: integers, the same number for each row.
pub(super) fn check_index(
    array: &Bound<'_, PyUntypedArray>,
    name: &str,
    logits: &Logits<'_>,
    axis: i128,
) -> PyResult<()> {
    check_integers(name, array)?;
    let rows = logits.row_shape();
    if array.ndim() != rows.len() + 1 || array.shape()[..rows.len()] != rows {
        let mut expected: Vec<_> = rows.iter().map(usize::to_string).collect();
        expected.push(if rows.is_empty() { "K,".into() } else { "K".into() });
        let text = format!(
            "{name} has shape {}; expected ({}), the shape of logits {} without axis {axis} and one axis more",
            shape_text(array.shape()),
            expected.join(", "),
            shape_text(logits.array.shape())
        );
        return Err(Error::Value(text).into());
    }
    Ok(())
}

/// Check that weights have the shape `expected`, which `of` describes.
pub(super) fn check_weights(
    array: &Bound<'_, PyUntypedArray>,
    name: &str,
    expected: &[usize],
    of: &str,
) -> PyResult<()> {
    check_numbers(array, name)?;
    if array.shape() != expected {
        let (found, expected) = (shape_text(array.shape()), shape_text(expected));
        return Err(Error::Value(format!("{name} has shape {found}; expected {expected}, one number a {of}")).into());
    }
    Ok(())
}

/// `array` with the shape of `logits`, without a copy.
pub(super) fn broadcast<'py>(
    array: &Bound<'py, PyUntypedArray>,
    name: &str,
    logits: &Logits<'py>,
) -> PyResult<Bound<'py, PyUntypedArray>> {
    let py = array.py();
    let shape = logits.array.shape();
    let broadcasts = array.ndim() <= shape.len()
        && array
            .shape()
            .iter()
            .rev()
            .zip(shape.iter().rev())
            .all(|(&length, &expected)| length == expected || length == 1);
    if !broadcasts {
        let (found, expected) = (shape_text(array.shape()), shape_text(shape));
        let text = format!("{name} has shape {found}; expected a shape that broadcasts to {expected}");
        return Err(Error::Value(text).into());
    }
    private_view(numpy(py)?.call_method1(intern!(py, "broadcast_to"), (array, shape))?.cast()?)
}

/// What multiplies the gradient: a scalar, or, if there is a loss for each, an array of `shape`.
pub(super) fn grad_output<'a>(
    array: Option<&'a Bound<'_, PyUntypedArray>>,
    shape: &[usize],
    reduction: Reduction,
) -> PyResult<GradOutput<'a>> {
    let Some(array) = array else { return Ok(GradOutput::Scalar(1.0)) };
    check_numbers(array, "grad_output")?;
    let numbers = view(array, None);
    let expected = match reduction {
        _ if array.ndim() == 0 => {
            let copy = Environment::DEFAULT.run(|| numbers.copy("grad_output", &|| Ok(())));
            return Ok(GradOutput::Scalar(copy?[0]));
        }
        Reduction::None if array.shape() == shape => return Ok(GradOutput::Each(numbers)),
        Reduction::None => format!("a scalar or shape {} for reduction 'none'", shape_text(shape)),
        reduction => format!("a scalar for reduction '{}'", reduction.name()),
    };
    Err(Error::Value(format!("grad_output has shape {}; expected {expected}", shape_text(array.shape()))).into())
}
