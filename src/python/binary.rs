//! `binary_cross_entropy` and its gradient.

use numpy::{PyUntypedArray, PyUntypedArrayMethods};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::arrays::{self, Logits, RowResult, as_array, number_kind, numbers};
use super::options::{Keywords, Options, Scalars};
use super::targets;
use super::{detached, guard};
use crate::element::{Dtype, with_element};
use crate::error::Error;
use crate::loss::Reduction;
use crate::loss::binary::{Binary, Gradient, binary_cross_entropy as driver};

#[pyfunction]
pub(super) fn binary_cross_entropy<'py>(
    logits: &Bound<'py, PyAny>,
    targets: &Bound<'py, PyAny>,
    keywords: &Keywords,
    options: &Bound<'py, PyDict>,
) -> PyResult<Bound<'py, PyAny>> {
    guard(|| {
        let py = logits.py();
        let call = Call::new(logits, targets, keywords.options(options)?)?;
        let losses = call.losses()?;
        let column = losses.as_ref().map(|losses| losses.column);
        let (problem, Scalars { reduction, denominator, .. }) = (&call.problem, call.options.scalars);
        // Without a gradient, what matters of the dtype is what it computes in.
        let dtype = if call.logits.dtype.is_double() { Dtype::F64 } else { Dtype::F32 };
        let loss = with_element!(dtype, O => {
            // SAFETY: there is no gradient to write.
            detached(py, |check| unsafe { driver::<O>(problem, reduction, denominator, column, None, check) })
        })?;
        arrays::finish(py, loss, losses)
    })
}

#[pyfunction]
pub(super) fn binary_cross_entropy_with_grad<'py>(
    logits: &Bound<'py, PyAny>,
    targets: &Bound<'py, PyAny>,
    keywords: &Keywords,
    options: &Bound<'py, PyDict>,
) -> PyResult<(Bound<'py, PyAny>, Bound<'py, PyAny>)> {
    guard(|| {
        let py = logits.py();
        let call = Call::new(logits, targets, keywords.options(options)?)?;
        let output = call.logits.result(call.options.out.as_ref(), &call.inputs())?;
        let (problem, Scalars { reduction, denominator, .. }) = (&call.problem, call.options.scalars);
        let shape = call.logits.array.shape();
        let grad_output = targets::grad_output(call.options.grad_output.as_ref(), shape, reduction)?;
        let losses = call.losses()?;
        let column = losses.as_ref().map(|losses| losses.column);
        let loss = with_element!(output.dtype, O => {
            let gradient = Gradient { out: output.elements::<O>(), grad_output };
            // SAFETY: `Logits::result` made or checked the output.
            detached(py, |check| unsafe {
                driver(problem, reduction, denominator, column, Some(&gradient), check)
            })
        })?;
        Ok((arrays::finish(py, loss, losses)?, output.result))
    })
}

/// A call whose arrays have been looked at.
struct Call<'py> {
    logits: Logits<'py>,
    problem: Binary,
    options: Options<'py>,
    /// As the arrays of the options, they keep the memory alive that `problem` points to.
    targets: Bound<'py, PyUntypedArray>,
}

impl<'py> Call<'py> {
    fn new(logits: &Bound<'py, PyAny>, targets: &Bound<'py, PyAny>, mut options: Options<'py>) -> PyResult<Self> {
        let (logits, targets) = (Logits::elementwise(as_array(logits, "logits")?)?, as_array(targets, "targets")?);
        let descriptor = targets.dtype();
        if number_kind(&descriptor).is_none() {
            let text = format!("targets have dtype {descriptor}; expected bool, an integer or a floating dtype");
            return Err(Error::Type(text).into());
        }
        if targets.shape() != logits.array.shape() {
            return Err(logits.shape_error(&targets, "targets").into());
        }
        let broadcast = |array: &mut Option<Bound<'py, PyUntypedArray>>, name| -> PyResult<_> {
            let Some(array) = array else { return Ok(None) };
            numbers(array, name)?;
            *array = targets::broadcast(array, name, &logits)?;
            numbers(array, name).map(Some)
        };
        let problem = Binary {
            logits: logits.numbers(),
            targets: numbers(&targets, "targets")?,
            weight: broadcast(&mut options.weight, "weight")?,
            pos_weight: broadcast(&mut options.pos_weight, "pos_weight")?,
            ignore: options.scalars.ignore_index.map(|index| index as f64),
            label_smoothing: options.scalars.label_smoothing,
        };
        Ok(Self { logits, problem, options, targets })
    }

    /// The arrays that no output may overlap.
    fn inputs(&self) -> Vec<(&'static str, &Bound<'py, PyUntypedArray>)> {
        [("targets", &self.targets)].into_iter().chain(self.options.arrays()).collect()
    }

    fn losses(&self) -> PyResult<Option<RowResult<'py>>> {
        let array = &self.logits.array;
        let make = || RowResult::new(array.py(), array.shape(), self.logits.dtype.is_double());
        (self.options.scalars.reduction == Reduction::None).then(make).transpose()
    }
}
