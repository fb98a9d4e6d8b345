//! The figures behind `compare` and `Comparer`.

use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::arrays::{Logits, RowResult, as_array, view};
use super::options::Keywords;
use super::targets::{self, target_array};
use super::{detached, guard};
use crate::loss::comparison::{Comparison, FIGURES, compare};
use crate::loss::labels::Labels;

type Column<'py> = Bound<'py, PyAny>;

/// Losses, entropies, probabilities of the largest logits, whether these are the targets', and the ranks of the other model's.
type OfModel<'py> = (Column<'py>, Column<'py>, Column<'py>, Column<'py>, Column<'py>);

/// (classes; for each row: whether it counts, KL divergence, the reverse one, that of Jensen and Shannon; and the figures of each
/// model).
type Compared<'py> = (usize, Column<'py>, Column<'py>, Column<'py>, Column<'py>, OfModel<'py>, OfModel<'py>);

#[pyfunction]
pub(super) fn compare_rows<'py>(
    reference: &Bound<'py, PyAny>,
    candidate: &Bound<'py, PyAny>,
    targets: Option<&Bound<'py, PyAny>>,
    keywords: &Keywords,
    options: &Bound<'py, PyDict>,
) -> PyResult<Compared<'py>> {
    guard(|| {
        let (py, options) = (reference.py(), keywords.options(options)?);
        let scalars = options.scalars;
        let logits = Logits::named("reference", as_array(reference, "reference")?, scalars.axis)?;
        let candidate = as_array(candidate, "candidate")?;
        logits.check_teacher(&candidate, "candidate")?;
        let targets = targets.map(target_array).transpose()?;
        if let Some(targets) = &targets {
            targets::check_labels(targets, &logits, scalars.axis, false)?;
        }
        if let Some(weight) = &options.weight {
            targets::check_weights(weight, "weight", &[logits.classes()], "class")?;
        }
        if let Some(weight) = &options.sample_weight {
            targets::check_weights(weight, "sample_weight", &logits.row_shape(), "row")?;
        }
        let mut figures = RowResult::of::<f64>(py, &[FIGURES, logits.row_shape().iter().product()])?.kind_by_kind();
        let (models, mut out) = ([logits.view(), logits.view_of(&candidate)], figures.view());
        let lies_across = models.iter().any(|model| logits.lies_across(model));
        let labels = targets.as_ref().map(|targets| view(targets, None));
        let weight = options.sample_weight.as_ref().map(|weight| view(weight, None));
        detached(py, |check| {
            let read = |targets| Labels::read("targets", targets, models[0].classes(), scalars.ignore_index, check);
            let comparison = Comparison {
                labels: labels.as_ref().map(read).transpose()?,
                sample_weight: weight.map(|weight| weight.copy("sample_weight", check)).transpose()?,
                transform: scalars.transform(),
                lies_across,
                models,
            };
            compare(&comparison, &mut out, check)
        })?;
        drop(out);
        let columns = figures.finish();
        let column = |index: usize| columns.get_item(index);
        let answers = |index: usize| column(index)?.call_method1("astype", ("bool",));
        let model = |first: usize| {
            let rank = column(first + 4)?;
            Ok::<_, PyErr>((column(first)?, column(first + 1)?, column(first + 2)?, answers(first + 3)?, rank))
        };
        Ok((logits.classes(), answers(0)?, column(1)?, column(2)?, column(3)?, model(4)?, model(9)?))
    })
}
