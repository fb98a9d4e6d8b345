//! `logsumexp`, `softmax`, `log_softmax` and `selective_log_softmax`.

use numpy::PyUntypedArrayMethods;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::arrays::{Logits, RowResult, as_array};
use super::options::Keywords;
use super::targets::{self, integer_array};
use super::{detached, guard};
use crate::element::{with_element, with_elements};
use crate::loss::softmax as driver;

#[pyfunction]
pub(super) fn logsumexp<'py>(
    logits: &Bound<'py, PyAny>,
    keywords: &Keywords,
    options: &Bound<'py, PyDict>,
) -> PyResult<Bound<'py, PyAny>> {
    guard(|| {
        let scalars = keywords.options(options)?.scalars;
        let logits = Logits::new(as_array(logits, "logits")?, scalars.axis)?;
        let shape = if scalars.keepdims { logits.shape_with_one_class() } else { logits.row_shape() };
        let py = logits.array.py();
        let result = RowResult::new(py, &shape, logits.dtype.is_double())?;
        let column = result.column;
        with_element!(logits.dtype, E => {
            let view = logits.view::<E>();
            detached(py, |check| driver::log_sum_exps(&view, scalars.transform(), column, check))
        })?;
        Ok(result.finish())
    })
}

#[pyfunction]
pub(super) fn softmax<'py>(
    logits: &Bound<'py, PyAny>,
    keywords: &Keywords,
    options: &Bound<'py, PyDict>,
) -> PyResult<Bound<'py, PyAny>> {
    normalized(logits, keywords, options, false)
}

#[pyfunction]
pub(super) fn log_softmax<'py>(
    logits: &Bound<'py, PyAny>,
    keywords: &Keywords,
    options: &Bound<'py, PyDict>,
) -> PyResult<Bound<'py, PyAny>> {
    normalized(logits, keywords, options, true)
}

#[pyfunction]
pub(super) fn selective_log_softmax<'py>(
    logits: &Bound<'py, PyAny>,
    index: &Bound<'py, PyAny>,
    keywords: &Keywords,
    options: &Bound<'py, PyDict>,
) -> PyResult<Bound<'py, PyAny>> {
    guard(|| {
        let scalars = keywords.options(options)?.scalars;
        let index = integer_array(index, "index")?;
        let logits = Logits::new(as_array(logits, "logits")?, scalars.axis)?;
        let chosen = targets::chosen_classes(&index, &logits, scalars.axis)?;
        let py = logits.array.py();
        let result = RowResult::new(py, index.shape(), logits.dtype.is_double())?;
        let column = result.column;
        with_element!(logits.dtype, E => {
            let view = logits.view::<E>();
            detached(py, |check| {
                driver::selected_log_softmax(&view, scalars.transform(), &chosen.read(check)?, column, check)
            })
        })?;
        Ok(result.finish())
    })
}

fn normalized<'py>(
    logits: &Bound<'py, PyAny>,
    keywords: &Keywords,
    options: &Bound<'py, PyDict>,
    log: bool,
) -> PyResult<Bound<'py, PyAny>> {
    guard(|| {
        let options = keywords.options(options)?;
        let logits = Logits::new(as_array(logits, "logits")?, options.scalars.axis)?;
        let output = logits.result(options.out.as_ref(), &[])?;
        let transform = options.scalars.transform();
        with_elements!(logits.dtype, output.dtype, E, O => {
            let (view, out) = (logits.view::<E>(), output.view::<O>());
            // SAFETY: `Logits::result` made or checked the output.
            detached(logits.array.py(), |check| unsafe { driver::softmax(&view, transform, log, &out, check) })
        })?;
        Ok(output.result)
    })
}
