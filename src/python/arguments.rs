//! Arguments that are no arrays: numbers, names, and what they may be.

use pyo3::exceptions::{PyOverflowError, PyTypeError};
use pyo3::prelude::*;

use crate::error::Error;
use crate::loss::Reduction;
use crate::row::Transform;

/// A number, as Python writes it.
fn number_text(value: f64) -> String {
    if value.is_nan() { "nan".into() } else { format!("{value:?}") }
}

/// A number for which `is_fine` holds.
pub(super) fn number(
    name: &str,
    object: &Bound<'_, PyAny>,
    expected: &str,
    is_fine: impl Fn(f64) -> bool,
) -> PyResult<f64> {
    match object.extract::<f64>() {
        Ok(value) if is_fine(value) => Ok(value),
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

/// A number that must be positive and finite.
pub(super) fn positive(name: &str, object: &Bound<'_, PyAny>) -> PyResult<f64> {
    number(name, object, "expected a positive finite number", |value| value > 0.0 && value.is_finite())
}

/// A number that must be finite and may be 0.
pub(super) fn not_negative(name: &str, object: &Bound<'_, PyAny>) -> PyResult<f64> {
    number(name, object, "expected a finite number, at least 0", |value| value >= 0.0 && value.is_finite())
}

pub(super) fn transform(temperature: &Bound<'_, PyAny>, softcap: Option<&Bound<'_, PyAny>>) -> PyResult<Transform> {
    let temperature = positive("temperature", temperature)?;
    Ok(Transform::new(temperature, softcap.map(|softcap| positive("softcap", softcap)).transpose()?))
}

pub(super) fn label_smoothing(object: &Bound<'_, PyAny>) -> PyResult<f64> {
    number("label_smoothing", object, "expected a number from 0 to 1", |value| (0.0..=1.0).contains(&value))
}

/// How losses are reduced, and what replaces the divisor of the mean.
pub(super) fn reduction(
    reduction: &Bound<'_, PyAny>,
    denominator: Option<&Bound<'_, PyAny>>,
) -> PyResult<(Reduction, Option<f64>)> {
    let text = reduction.extract::<&str>().unwrap_or_default();
    let Some(found) = Reduction::ALL.into_iter().find(|reduction| reduction.name() == text) else {
        let text = format!("reduction is {}; expected 'mean', 'sum' or 'none'", reduction.repr()?);
        return Err(Error::Value(text).into());
    };
    let denominator = denominator.map(|object| not_negative("denominator", object)).transpose()?;
    if denominator.is_some() && found != Reduction::Mean {
        let text = format!(
            "denominator is given with reduction '{}'; expected reduction 'mean', whose divisor it replaces",
            found.name()
        );
        return Err(Error::Value(text).into());
    }
    Ok((found, denominator))
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
