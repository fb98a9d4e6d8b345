//! The sums behind `evaluate` and `Evaluator`.

use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::arguments::integer;
use super::cross_entropy::Call;
use super::options::Keywords;
use super::{detached, guard};
use crate::error::Error;
use crate::loss::evaluation::tally;
use crate::loss::targets::Targets;

/// (loss sum, weight sum, entropy sum, hits for each k, rows, ignored rows, classes).
type Sums = (f64, f64, f64, Vec<u64>, usize, usize, usize);

#[pyfunction]
#[allow(clippy::needless_pass_by_value)] // Python's arguments come as values
pub(super) fn evaluate<'py>(
    logits: &Bound<'py, PyAny>,
    targets: &Bound<'py, PyAny>,
    top_k: Vec<Bound<'py, PyAny>>,
    keywords: &Keywords,
    options: &Bound<'py, PyDict>,
) -> PyResult<Sums> {
    guard(|| {
        let top_k: Vec<usize> = top_k.iter().map(positive).collect::<PyResult<_>>()?;
        let call = Call::of_classes(logits, targets, keywords.options(options)?)?;
        let (view, unread) = (call.logits.view(), call.unread());
        detached(logits.py(), |check| {
            let problem = unread.read(check)?;
            let Targets::Classes(labels) = &problem.targets else { unreachable!("classes were asked for") };
            let rows = labels.rows();
            let counted = problem.counted(rows);
            let tally = tally(&view, &problem, &top_k, check)?;
            let ignored = rows - counted;
            let weight_sum = problem.weight_sum(rows);
            Ok((tally.loss, weight_sum, tally.entropy, tally.hits, counted, ignored, view.classes()))
        })
    })
}

fn positive(k: &Bound<'_, PyAny>) -> PyResult<usize> {
    match integer("a number of top_k", k)? {
        // More than all classes is all of them.
        found @ 1.. => Ok(usize::try_from(found).unwrap_or(usize::MAX)),
        found => Err(Error::Value(format!("top_k contains {found}; expected positive integers")).into()),
    }
}
