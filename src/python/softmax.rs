//! `logsumexp`, `softmax`, `log_softmax` and `selective_log_softmax`.

use numpy::PyUntypedArrayMethods;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::arrays::{Logits, RowResult, as_array, view};
use super::options::Keywords;
use super::targets::{self, integer_array};
use super::{detached, guard};
use crate::loss::labels::Labels;
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
        let mut result = RowResult::new(py, &shape, logits.dtype)?;
        let (view, mut out) = (logits.view(), result.view());
        detached(py, |check| driver::log_sum_exps(&view, scalars.transform(), &mut out, check))?;
        drop(out);
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
        targets::check_index(&index, "index", &logits, scalars.axis)?;
        let py = logits.array.py();
        let mut result = RowResult::new(py, index.shape(), logits.dtype)?.several_a_row();
        let (logits, index, mut out) = (logits.view(), view(&index, None), result.view());
        detached(py, |check| {
            let index = Labels::read("index", &index, logits.classes(), None, check)?;
            driver::selected_log_softmax(&logits, scalars.transform(), &index, &mut out, check)
        })?;
        drop(out);
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
        let mut output = logits.result(options.out.as_ref(), &[])?;
        let transform = options.scalars.transform();
        let (view, mut out) = (logits.view(), output.view());
        detached(logits.array.py(), |check| driver::softmax(&view, transform, log, &mut out, check))?;
        drop(out);
        Ok(output.result)
    })
}
