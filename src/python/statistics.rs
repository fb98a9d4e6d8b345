//! `row_statistics`.

use pyo3::prelude::*;

use super::arguments::{self, integer};
use super::arrays::{Logits, RowResult, as_array};
use super::targets::{self, target_array};
use super::{detached, guard};
use crate::element::with_element;
use crate::loss::statistics::{Columns, row_statistics as driver};
use crate::view::Stored;

/// logsumexp, argmax, max_probability, entropy, target_log_probability, target_rank.
type Results<'py> = (
    Bound<'py, PyAny>,
    Bound<'py, PyAny>,
    Bound<'py, PyAny>,
    Bound<'py, PyAny>,
    Option<Bound<'py, PyAny>>,
    Option<Bound<'py, PyAny>>,
);

#[pyfunction]
pub(super) fn row_statistics<'py>(
    py: Python<'py>,
    logits: &Bound<'py, PyAny>,
    targets: Option<&Bound<'py, PyAny>>,
    axis: &Bound<'py, PyAny>,
    softcap: Option<&Bound<'py, PyAny>>,
    temperature: &Bound<'py, PyAny>,
    ignore_index: &Bound<'py, PyAny>,
) -> PyResult<Results<'py>> {
    guard(|| {
        let logits = as_array(logits, "logits")?;
        let targets = targets.map(target_array).transpose()?;
        let transform = arguments::transform(temperature, softcap)?;
        let ignore_index = integer("ignore_index", ignore_index)?;
        let logits = Logits::new(logits, axis)?;
        let labels = targets.map(|targets| targets::labels(&targets, &logits, axis, ignore_index)).transpose()?;
        let shape = logits.row_shape();
        let numbers = || RowResult::new(py, &shape, logits.dtype.is_double());
        let classes = || RowResult::stored(py, &shape, Stored::I64);
        let (log_sum_exp, argmax, max_probability, entropy) = (numbers()?, classes()?, numbers()?, numbers()?);
        let target = labels.is_some().then(|| Ok::<_, PyErr>((numbers()?, classes()?))).transpose()?;
        let columns = Columns {
            log_sum_exp: log_sum_exp.column,
            argmax: argmax.column,
            max_probability: max_probability.column,
            entropy: entropy.column,
            target: target.as_ref().map(|(log_probability, rank)| (log_probability.column, rank.column)),
        };
        with_element!(logits.dtype, E => {
            let view = logits.view::<E>();
            detached(py, |check| driver(&view, labels.as_ref(), transform, columns, check))
        })?;
        let (log_probability, rank) = target.unzip();
        Ok((
            log_sum_exp.finish(),
            argmax.finish(),
            max_probability.finish(),
            entropy.finish(),
            log_probability.map(RowResult::finish),
            rank.map(RowResult::finish),
        ))
    })
}
