//! `row_statistics`.

use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::arrays::{Logits, RowResult, as_array, view};
use super::options::Keywords;
use super::targets::{self, target_array};
use super::{detached, guard};
use crate::loss::labels::Labels;
use crate::loss::statistics::{Columns, row_statistics as driver};

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
    logits: &Bound<'py, PyAny>,
    targets: Option<&Bound<'py, PyAny>>,
    keywords: &Keywords,
    options: &Bound<'py, PyDict>,
) -> PyResult<Results<'py>> {
    guard(|| {
        let py = logits.py();
        let scalars = keywords.options(options)?.scalars;
        let targets = targets.map(target_array).transpose()?;
        let logits = Logits::new(as_array(logits, "logits")?, scalars.axis)?;
        if let Some(targets) = &targets {
            targets::check_labels(targets, &logits, scalars.axis, false)?;
        }
        let shape = logits.row_shape();
        let numbers = || RowResult::new(py, &shape, logits.dtype);
        let classes = || RowResult::of::<i64>(py, &shape);
        let [mut log_sum_exp, mut max_probability, mut entropy] = [numbers()?, numbers()?, numbers()?];
        let mut argmax = classes()?;
        let mut target = targets.is_some().then(|| Ok::<_, PyErr>((numbers()?, classes()?))).transpose()?;
        let mut views = [log_sum_exp.view(), argmax.view(), max_probability.view(), entropy.view()];
        let mut target_views = target.as_mut().map(|(log_probability, rank)| (log_probability.view(), rank.view()));
        let [log_sum_exps, argmaxes, max_probabilities, entropies] = &mut views;
        let columns = Columns {
            log_sum_exp: log_sum_exps,
            argmax: argmaxes,
            max_probability: max_probabilities,
            entropy: entropies,
            target: target_views.as_mut().map(|(log_probability, rank)| (log_probability, rank)),
        };
        let (logits, targets) = (logits.view(), targets.as_ref().map(|targets| view(targets, None)));
        detached(py, |check| {
            let read = |targets| Labels::read("targets", targets, logits.classes(), scalars.ignore_index, check);
            let labels = targets.as_ref().map(read).transpose()?;
            driver(&logits, labels.as_ref(), scalars.transform(), columns, check)
        })?;
        drop((views, target_views));
        let (log_probability, rank) =
            target.map(|(log_probability, rank)| (log_probability.finish(), rank.finish())).unzip();
        let (max_probability, entropy) = (max_probability.finish(), entropy.finish());
        Ok((log_sum_exp.finish(), argmax.finish(), max_probability, entropy, log_probability, rank))
    })
}
