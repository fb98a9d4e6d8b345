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
pub(super) fn evaluate<'py>(
    py: Python<'py>,
    logits: &Bound<'py, PyAny>,
    targets: &Bound<'py, PyAny>,
    top_k: Vec<i64>,
    ignore_index: &Bound<'py, PyAny>,
    temperature: f64,
    axis: &Bound<'py, PyAny>,
) -> PyResult<Sums> {
    guard(|| {
        let temperature = arrays::temperature(temperature)?;
        let top_k: Vec<usize> = top_k.into_iter().map(positive).collect::<Result<_, _>>()?;
        let (logits, targets) = (as_array(logits, "logits")?, target_array(targets)?);
        let logits = Logits::new(logits, axis)?;
        let labels = arrays::labels(&targets, &logits, axis, integer(ignore_index)?)?;
        let tally = with_element!(logits.dtype, E => {
            let view = logits.view::<E>();
            detached(py, |check| tally(&view, &labels, temperature, &top_k, check))
        })?;
        Ok((tally.loss, tally.entropy, tally.hits, labels.counted(), labels.rows() - labels.counted()))
    })
}

fn positive(k: i64) -> Result<usize, Error> {
    match usize::try_from(k) {
        Ok(k @ 1..) => Ok(k),
        _ => Err(Error::Value(format!("top_k contains {k}; expected positive integers"))),
    }
}
