//! The sums behind `evaluate` and `Evaluator`.

use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};

use super::arguments::integer;
use super::arrays::{as_array, view};
use super::cross_entropy::Call;
use super::options::Keywords;
use super::{detached, guard};
use crate::error::Error;
use crate::loss::evaluation::{Sums, loss_sums as loss_sums_of, sum_of, tally};
use crate::loss::targets::{Problem, Targets};
use crate::math::ExactSum;

/// A whole number of 2^-1074, in two's complement, the lowest byte first, and the sum of what is not finite.
type Exact<'py> = (Bound<'py, PyBytes>, f64);

/// (the sums of the losses, their squares and the entropies; if there are weights, those of the weights, their squares and their
/// products with the losses; hits for each k, rows, ignored rows, rows of NaN, classes).
type Counted<'py> = ([Exact<'py>; 3], Option<[Exact<'py>; 3]>, Vec<u64>, usize, usize, usize, usize);

fn exact(py: Python<'_>, sum: ExactSum) -> Exact<'_> {
    let (bytes, not_finite) = sum.to_bytes();
    (PyBytes::new(py, &bytes), not_finite)
}

#[pyfunction]
#[allow(clippy::needless_pass_by_value)] // Python's arguments come as values
pub(super) fn evaluate<'py>(
    logits: &Bound<'py, PyAny>,
    targets: &Bound<'py, PyAny>,
    top_k: Vec<Bound<'py, PyAny>>,
    keywords: &Keywords,
    options: &Bound<'py, PyDict>,
) -> PyResult<Counted<'py>> {
    guard(|| {
        let top_k: Vec<usize> = top_k.iter().map(positive).collect::<PyResult<_>>()?;
        let call = Call::of_classes(logits, targets, keywords.options(options)?)?;
        let (view, unread) = (call.logits.view(), call.unread());
        let lies_across = call.logits.lies_across(&view);
        let (tally, has_weights, counted, ignored) = detached(logits.py(), |check| {
            let problem = Problem { settled: Some(lies_across), ..unread.read(check)? };
            let Targets::Classes(labels) = &problem.targets else { unreachable!("classes were asked for") };
            let rows = labels.rows();
            let counted = problem.counted(rows);
            let tally = tally(&view, &problem, &top_k, check)?;
            let has_weights = problem.weight.is_some() || problem.sample_weight.is_some();
            Ok((tally, has_weights, counted, rows - counted))
        })?;
        let (py, Sums { loss, squared_loss, entropy, weights, nan_rows }) = (logits.py(), tally.sums);
        let sums = [loss, squared_loss, entropy].map(|sum| exact(py, sum));
        let weights = has_weights.then(|| weights.map(|sum| exact(py, sum)));
        Ok((sums, weights, tally.hits, counted, ignored, nan_rows, view.classes()))
    })
}

/// The sums of the losses of `cross_entropy` and of the weights that their mean divides by, without rounding.
#[pyfunction]
pub(super) fn loss_sums<'py>(
    logits: &Bound<'py, PyAny>,
    targets: &Bound<'py, PyAny>,
    keywords: &Keywords,
    options: &Bound<'py, PyDict>,
) -> PyResult<[Exact<'py>; 2]> {
    guard(|| {
        let call = Call::cross_entropy(logits, targets, keywords.options(options)?)?;
        let (view, unread) = (call.logits.view(), call.unread());
        let lies_across = call.logits.lies_across(&view);
        let sums = detached(logits.py(), |check| {
            let problem = Problem { settled: Some(lies_across), ..unread.read(check)? };
            loss_sums_of(&view, &problem, check)
        })?;
        Ok(sums.map(|sum| exact(logits.py(), sum)))
    })
}

/// The sum of numbers as float64, without rounding.
#[pyfunction]
pub(super) fn exact_sum<'py>(values: &Bound<'py, PyAny>) -> PyResult<Exact<'py>> {
    guard(|| {
        let array = as_array(values, "values")?;
        let view = view(&array, None);
        let sum = detached(values.py(), |check| sum_of(&view, check))?;
        Ok(exact(values.py(), sum))
    })
}

fn positive(k: &Bound<'_, PyAny>) -> PyResult<usize> {
    match integer("a number of top_k", k)? {
        // More than all classes is all of them.
        found @ 1.. => Ok(usize::try_from(found).unwrap_or(usize::MAX)),
        found => Err(Error::Value(format!("top_k contains {found}; expected positive integers")).into()),
    }
}
