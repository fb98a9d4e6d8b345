//! Arguments that are no arrays: numbers, names, and what they may be.

use pyo3::exceptions::{PyOverflowError, PyTypeError};
use pyo3::types::{PyBool, PyInt};
use pyo3::{intern, prelude::*};

use crate::dtype::Number;
use crate::error::Error;
use crate::loss::Reduction;
use crate::simd::Environment;

/// A number for which `is_fine` holds.
pub(super) fn number(
    name: &str,
    object: &Bound<'_, PyAny>,
    expected: &str,
    is_fine: impl Fn(f64) -> bool,
) -> PyResult<f64> {
    match object.extract::<f64>() {
        Ok(value) if Environment::DEFAULT.run(|| is_fine(value)) => Ok(value),
        Ok(value) => Err(Error::Value(format!("{name} is {}; {expected}", value.text())).into()),
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

/// How losses are reduced.
pub(super) fn reduction(object: &Bound<'_, PyAny>) -> PyResult<Reduction> {
    let text = object.extract::<&str>().unwrap_or_default();
    Reduction::ALL.into_iter().find(|reduction| reduction.name() == text).ok_or_else(|| {
        let text = |found| format!("reduction is {found}; expected 'mean', 'sum' or 'none'");
        object.repr().map_or_else(|error| error, |found| Error::Value(text(found)).into())
    })
}

/// A divergence, as users ask for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum KindName {
    /// KL(teacher || model).
    Forward,
    /// KL(model || teacher).
    Reverse,
    /// That of both from their mixture.
    JensenShannon,
}

impl KindName {
    const ALL: [Self; 3] = [Self::Forward, Self::Reverse, Self::JensenShannon];

    /// The name under which users ask for it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Forward => "forward",
            Self::Reverse => "reverse",
            Self::JensenShannon => "jensen_shannon",
        }
    }
}

/// Which divergence.
pub(super) fn kind(object: &Bound<'_, PyAny>) -> PyResult<KindName> {
    let text = object.extract::<&str>().unwrap_or_default();
    KindName::ALL.into_iter().find(|kind| kind.name() == text).ok_or_else(|| {
        let text = |found| format!("kind is {found}; expected 'forward', 'reverse' or 'jensen_shannon'");
        object.repr().map_or_else(|error| error, |found| Error::Value(text(found)).into())
    })
}

/// Whether an object is a truth value of Python, of NumPy or of another framework: some of them pass for integers.
fn is_bool(object: &Bound<'_, PyAny>) -> PyResult<bool> {
    if object.is_exact_instance_of::<PyInt>() {
        return Ok(false);
    }
    let dtype = object.getattr_opt(intern!(object.py(), "dtype"))?;
    Ok(object.is_instance_of::<PyBool>()
        || dtype.map_or(Ok(false), |dtype| Ok::<_, PyErr>(dtype.str()?.to_cow()?.ends_with("bool")))?)
}

/// An integer argument; if it is beyond 128 bits, the largest of those, or the smallest.
pub(super) fn integer(name: &str, object: &Bound<'_, PyAny>) -> PyResult<i128> {
    let py = object.py();
    if is_bool(object)? {
        return Err(Error::Type(format!("{name} is {}; expected an integer", object.repr()?)).into());
    }
    let wide = |error: PyErr| {
        if !error.is_instance_of::<PyOverflowError>(py) {
            return Err(error);
        }
        Ok(if object.lt(0)? { i128::MIN } else { i128::MAX })
    };
    match object.extract::<i64>() {
        Ok(value) => Ok(i128::from(value)),
        Err(error) if error.is_instance_of::<PyOverflowError>(py) => object.extract::<i128>().or_else(wide),
        Err(error) if error.is_instance_of::<PyTypeError>(py) => {
            Err(Error::Type(format!("{name} is {}; expected an integer", object.repr()?)).into())
        }
        Err(error) => Err(error),
    }
}
