//! The sums behind `evaluate` and `Evaluator`.

use pyo3::prelude::*;

use super::arrays::{self, Logits, as_array, integer, target_array};
use super::{detached, guard};
use crate::element::with_element;
use crate::error::Error;
use crate::loss::evaluation::tally;

/// (loss sum, entropy sum, hits for each k, rows, ignored rows).
type Sums = (f64, f64, Vec<u64>, usize, usize);

#[pyfunction]
#[allow(clippy::needless_pass_by_value)] // Python's arguments come as values
pub(super) fn evaluate<'py>(
    py: Python<'py>,
    logits: &Bound<'py, PyAny>,
    targets: &Bound<'py, PyAny>,
    top_k: Vec<Bound<'py, PyAny>>,
    ignore_index: &Bound<'py, PyAny>,
    temperature: &Bound<'py, PyAny>,
    axis: &Bound<'py, PyAny>,
) -> PyResult<Sums> {
    guard(|| {
        let temperature = arrays::temperature(temperature)?;
        let top_k: Vec<usize> = top_k.iter().map(positive).collect::<PyResult<_>>()?;
        let (logits, targets) = (as_array(logits, "logits")?, target_array(targets)?);
        let logits = Logits::new(logits, axis)?;
        let labels = arrays::labels(&targets, &logits, axis, integer("ignore_index", ignore_index)?)?;
        let tally = with_element!(logits.dtype, E => {
            let view = logits.view::<E>();
            detached(py, |check| tally(&view, &labels, temperature, &top_k, check))
        })?;
        Ok((tally.loss, tally.entropy, tally.hits, labels.counted(), labels.rows() - labels.counted()))
    })
}

fn positive(k: &Bound<'_, PyAny>) -> PyResult<usize> {
    match integer("a number of top_k", k)? {
        // More than all classes is all of them.
        found @ 1.. => Ok(usize::try_from(found).unwrap_or(usize::MAX)),
        found => Err(Error::Value(format!("top_k contains {found}; expected positive integers")).into()),
    }
}
