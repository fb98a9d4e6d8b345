//! The arrays beside the logits: targets, weights, and what multiplies a gradient.

use numpy::{PyArrayDescrMethods, PyUntypedArray, PyUntypedArrayMethods};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::PyTuple;

use super::arrays::{Logits, as_array, base, is_swapped, numbers, numpy, private_view, shape_text};
use super::detached;
use crate::error::Error;
use crate::loss::labels::{Integers, Labels};
use crate::loss::{GradOutput, Reduction};

/// Targets as an array.
pub(super) fn target_array<'py>(targets: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyUntypedArray>> {
    integer_array(targets, "targets")
}

/// `object` as an array: of integers, if it is an empty list, which `numpy.asarray` makes an array of floats.
pub(super) fn integer_array<'py>(object: &Bound<'py, PyAny>, name: &str) -> PyResult<Bound<'py, PyUntypedArray>> {
    let array = as_array(object, name)?;
    if array.is_empty() && !object.is_instance_of::<PyUntypedArray>() {
        let py = object.py();
        return Ok(array.call_method1(intern!(py, "astype"), (intern!(py, "int64"),))?.cast_into()?);
    }
    Ok(array)
}

/// The targets of `logits` as classes, read and checked.
pub(super) fn labels(
    array: &Bound<'_, PyUntypedArray>,
    logits: &Logits<'_>,
    axis: &Bound<'_, PyAny>,
    ignore_index: i128,
) -> PyResult<Labels> {
    check_integers("targets have", array)?;
    let expected = logits.row_shape();
    if array.shape() != expected {
        let one_hot = " (one-hot targets are probabilities: give them a floating dtype)";
        let text = format!(
            "targets have shape {}; expected {}, the shape of logits {} without axis {axis}{}",
            shape_text(array.shape()),
            shape_text(&expected),
            shape_text(logits.array.shape()),
            if array.shape() == logits.array.shape() { one_hot } else { "" }
        );
        return Err(Error::Value(text).into());
    }
    read_labels("targets", array, logits.classes(), Some(ignore_index))
}

fn check_integers(has: &str, array: &Bound<'_, PyUntypedArray>) -> PyResult<()> {
    let descriptor = array.dtype();
    if matches!(descriptor.kind(), b'i' | b'u') {
        return Ok(());
    }
    let text = format!("{has} dtype {descriptor}; expected an integer dtype (class indices)");
    Err(Error::Type(text).into())
}

/// The classes that `index` names, the same number for each row.
pub(super) fn chosen_classes(
    array: &Bound<'_, PyUntypedArray>,
    logits: &Logits<'_>,
    axis: &Bound<'_, PyAny>,
) -> PyResult<Labels> {
    check_integers("index has", array)?;
    let rows = logits.row_shape();
    if array.ndim() != rows.len() + 1 || array.shape()[..rows.len()] != rows {
        let mut expected: Vec<_> = rows.iter().map(usize::to_string).collect();
        expected.push(if rows.is_empty() { "K,".into() } else { "K".into() });
        let text = format!(
            "index has shape {}; expected ({}), the shape of logits {} without axis {axis} and one axis more",
            shape_text(array.shape()),
            expected.join(", "),
            shape_text(logits.array.shape())
        );
        return Err(Error::Value(text).into());
    }
    read_labels("index", array, logits.classes(), None)
}

/// The error for a target that cannot be one.
pub(super) fn bad_target(array: &Bound<'_, PyUntypedArray>, index: &[usize], expected: &str) -> PyErr {
    let found = || {
        let value = array.get_item(PyTuple::new(array.py(), index)?)?.str()?;
        let places: Vec<_> = index.iter().map(usize::to_string).collect();
        let place = if places.is_empty() { String::new() } else { format!("[{}]", places.join(", ")) };
        Ok(Error::Value(format!("targets{place} is {value}; expected {expected}")).into())
    };
    found().unwrap_or_else(|error| error)
}

fn read_labels(
    name: &'static str,
    array: &Bound<'_, PyUntypedArray>,
    classes: usize,
    ignore_index: Option<i128>,
) -> PyResult<Labels> {
    let descriptor = array.dtype();
    let (kind, size) = (descriptor.kind(), descriptor.itemsize());
    // SAFETY: base, shape and strides are those of an array of integers which nobody else can change
    // (`private_view`) and which outlives the value.
    let integers = unsafe { Integers::new(base(array), array.shape(), array.strides(), is_swapped(&descriptor)) };
    detached(array.py(), move |check| match (kind, size) {
        (b'i', 1) => Labels::read::<i8>(name, &integers, classes, ignore_index, check),
        (b'i', 2) => Labels::read::<i16>(name, &integers, classes, ignore_index, check),
        (b'i', 4) => Labels::read::<i32>(name, &integers, classes, ignore_index, check),
        (b'i', _) => Labels::read::<i64>(name, &integers, classes, ignore_index, check),
        (_, 1) => Labels::read::<u8>(name, &integers, classes, ignore_index, check),
        (_, 2) => Labels::read::<u16>(name, &integers, classes, ignore_index, check),
        (_, 4) => Labels::read::<u32>(name, &integers, classes, ignore_index, check),
        _ => Labels::read::<u64>(name, &integers, classes, ignore_index, check),
    })
}

/// A copy of weights that must have the shape `expected`, which `of` describes.
pub(super) fn weights(
    array: &Bound<'_, PyUntypedArray>,
    name: &str,
    expected: &[usize],
    of: &str,
) -> PyResult<Vec<f64>> {
    let numbers = numbers(array, name)?;
    if array.shape() != expected {
        let (found, expected) = (shape_text(array.shape()), shape_text(expected));
        return Err(Error::Value(format!("{name} has shape {found}; expected {expected}, one number a {of}")).into());
    }
    detached(array.py(), |check| numbers.copy(name, check))
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
pub(super) fn grad_output(
    array: Option<&Bound<'_, PyUntypedArray>>,
    shape: &[usize],
    reduction: Reduction,
) -> PyResult<GradOutput> {
    let Some(array) = array else { return Ok(GradOutput::Scalar(1.0)) };
    let numbers = numbers(array, "grad_output")?;
    let expected = match reduction {
        _ if array.ndim() == 0 => return Ok(GradOutput::Scalar(numbers.copy("grad_output", &|| Ok(()))?[0])),
        Reduction::None if array.shape() == shape => return Ok(GradOutput::Each(numbers)),
        Reduction::None => format!("a scalar or shape {} for reduction 'none'", shape_text(shape)),
        reduction => format!("a scalar for reduction '{}'", reduction.name()),
    };
    Err(Error::Value(format!("grad_output has shape {}; expected {expected}", shape_text(array.shape()))).into())
}
