//! The sums behind `evaluate` and `Evaluator`.

use pyo3::prelude::*;

use super::arguments::integer;
use super::cross_entropy::{Checked, Options};
use super::{detached, guard};
use crate::element::with_element;
use crate::error::Error;
use crate::loss::evaluation::tally;
use crate::loss::targets::Targets;

/// (loss sum, weight sum, entropy sum, hits for each k, rows, ignored rows).
type Sums = (f64, f64, f64, Vec<u64>, usize, usize);

#[pyfunction]
#[allow(clippy::needless_pass_by_value, clippy::too_many_arguments)] // Python's arguments come as values
pub(super) fn evaluate<'py>(
    py: Python<'py>,
    logits: &Bound<'py, PyAny>,
    targets: &Bound<'py, PyAny>,
    top_k: Vec<Bound<'py, PyAny>>,
    weight: Option<&Bound<'py, PyAny>>,
    sample_weight: Option<&Bound<'py, PyAny>>,
    ignore_index: &Bound<'py, PyAny>,
    label_smoothing: &Bound<'py, PyAny>,
    z_loss: &Bound<'py, PyAny>,
    softcap: Option<&Bound<'py, PyAny>>,
    temperature: &Bound<'py, PyAny>,
    axis: &Bound<'py, PyAny>,
) -> PyResult<Sums> {
    guard(|| {
        let top_k: Vec<usize> = top_k.iter().map(positive).collect::<PyResult<_>>()?;
        let options = Options { weight, sample_weight, ignore_index, label_smoothing, z_loss, softcap, temperature };
        let call = Checked::new(logits, targets, options, axis, false)?;
        let Targets::Classes(labels) = &call.problem.targets else { unreachable!("classes were asked for") };
        let rows = labels.rows();
        let counted = call.problem.counted(rows);
        let tally = with_element!(call.logits.dtype, E => {
            let view = call.logits.view::<E>();
            detached(py, |check| tally(&view, &call.problem, &top_k, check))
        })?;
        Ok((tally.loss, call.problem.weight_sum(rows), tally.entropy, tally.hits, counted, rows - counted))
    })
}

fn positive(k: &Bound<'_, PyAny>) -> PyResult<usize> {
    match integer("a number of top_k", k)? {
        // More than all classes is all of them.
        found @ 1.. => Ok(usize::try_from(found).unwrap_or(usize::MAX)),
        found => Err(Error::Value(format!("top_k contains {found}; expected positive integers")).into()),
    }
}
