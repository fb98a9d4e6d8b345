//! `logsumexp`, `softmax`, `log_softmax` and `selective_log_softmax`.

use numpy::PyUntypedArrayMethods;
use pyo3::prelude::*;

use super::arguments;
use super::arrays::{Logits, RowResult, as_array};
use super::targets::{self, integer_array};
use super::{detached, guard};
use crate::element::{with_element, with_elements};
use crate::loss::softmax as driver;

#[pyfunction]
pub(super) fn logsumexp<'py>(
    py: Python<'py>,
    logits: &Bound<'py, PyAny>,
    axis: &Bound<'py, PyAny>,
    keepdims: &Bound<'py, PyAny>,
    temperature: &Bound<'py, PyAny>,
) -> PyResult<Bound<'py, PyAny>> {
    guard(|| {
        let transform = arguments::transform(temperature, None)?;
        let logits = Logits::new(as_array(logits, "logits")?, axis)?;
        let shape = if keepdims.is_truthy()? { logits.shape_with_one_class() } else { logits.row_shape() };
        let result = RowResult::new(py, &shape, logits.dtype.is_double())?;
        let column = result.column;
        with_element!(logits.dtype, E => {
            let view = logits.view::<E>();
            detached(py, |check| driver::log_sum_exps(&view, transform, column, check))
        })?;
        Ok(result.finish())
    })
}

#[pyfunction]
pub(super) fn softmax<'py>(
    py: Python<'py>,
    logits: &Bound<'py, PyAny>,
    axis: &Bound<'py, PyAny>,
    temperature: &Bound<'py, PyAny>,
    out: Option<&Bound<'py, PyAny>>,
) -> PyResult<Bound<'py, PyAny>> {
    normalized(py, logits, axis, temperature, false, out)
}

#[pyfunction]
pub(super) fn log_softmax<'py>(
    py: Python<'py>,
    logits: &Bound<'py, PyAny>,
    axis: &Bound<'py, PyAny>,
    temperature: &Bound<'py, PyAny>,
    out: Option<&Bound<'py, PyAny>>,
) -> PyResult<Bound<'py, PyAny>> {
    normalized(py, logits, axis, temperature, true, out)
}

#[pyfunction]
pub(super) fn selective_log_softmax<'py>(
    py: Python<'py>,
    logits: &Bound<'py, PyAny>,
    index: &Bound<'py, PyAny>,
    axis: &Bound<'py, PyAny>,
    temperature: &Bound<'py, PyAny>,
) -> PyResult<Bound<'py, PyAny>> {
    guard(|| {
        let (logits, index) = (as_array(logits, "logits")?, integer_array(index, "index")?);
        let transform = arguments::transform(temperature, None)?;
        let logits = Logits::new(logits, axis)?;
        let chosen = targets::chosen_classes(&index, &logits, axis)?;
        let result = RowResult::new(py, index.shape(), logits.dtype.is_double())?;
        let column = result.column;
        with_element!(logits.dtype, E => {
            let view = logits.view::<E>();
            detached(py, |check| driver::selected_log_softmax(&view, transform, &chosen, column, check))
        })?;
        Ok(result.finish())
    })
}

fn normalized<'py>(
    py: Python<'py>,
    logits: &Bound<'py, PyAny>,
    axis: &Bound<'py, PyAny>,
    temperature: &Bound<'py, PyAny>,
    log: bool,
    out: Option<&Bound<'py, PyAny>>,
) -> PyResult<Bound<'py, PyAny>> {
    guard(|| {
        let transform = arguments::transform(temperature, None)?;
        let logits = Logits::new(as_array(logits, "logits")?, axis)?;
        let output = logits.result(out, &[])?;
        with_elements!(logits.dtype, output.dtype, E, O => {
            let (logits, out) = (logits.view::<E>(), output.view::<O>());
            // SAFETY: `Logits::result` made or checked the output.
            detached(py, |check| unsafe { driver::softmax(&logits, transform, log, &out, check) })
        })?;
        Ok(output.result)
    })
}
