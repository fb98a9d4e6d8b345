//! `cross_entropy` and `cross_entropy_with_grad`.

use pyo3::prelude::*;

use super::arrays::{self, Logits, RowResult, grad_output_values, positive, shape_text};
use super::{detached, guard};
use crate::element::{with_element, with_elements};
use crate::error::Error;
use crate::loss::cross_entropy::{self as driver, GradOutput, Gradient, Options, Reduction};
use crate::loss::labels::Labels;

#[pyfunction]
#[allow(clippy::too_many_arguments)] // the arguments of the Python function
pub(super) fn cross_entropy<'py>(
    py: Python<'py>,
    logits: &Bound<'py, PyAny>,
    targets: &Bound<'py, PyAny>,
    ignore_index: i64,
    temperature: f64,
    axis: isize,
    reduction: &Bound<'py, PyAny>,
    denominator: Option<f64>,
) -> PyResult<Bound<'py, PyAny>> {
    guard(|| {
        let call = Call::new(logits, targets, ignore_index, temperature, axis, reduction, denominator)?;
        let losses = call.losses()?;
        let column = losses.as_ref().map(|losses| losses.column);
        let (labels, options) = (&call.labels, call.options);
        let loss = with_element!(call.logits.dtype, E => {
            let logits = call.logits.view::<E>();
            detached(py, |check| driver::cross_entropy::<E, E>(&logits, labels, options, column, None, check))
        })?;
        finish(py, loss, losses)
    })
}

#[pyfunction]
#[allow(clippy::too_many_arguments)] // the arguments of the Python function
pub(super) fn cross_entropy_with_grad<'py>(
    py: Python<'py>,
    logits: &Bound<'py, PyAny>,
    targets: &Bound<'py, PyAny>,
    ignore_index: i64,
    temperature: f64,
    axis: isize,
    reduction: &Bound<'py, PyAny>,
    denominator: Option<f64>,
    grad_output: Option<&Bound<'py, PyAny>>,
    out: Option<&Bound<'py, PyAny>>,
) -> PyResult<(Bound<'py, PyAny>, Bound<'py, PyAny>)> {
    guard(|| {
        let call = Call::new(logits, targets, ignore_index, temperature, axis, reduction, denominator)?;
        let mut inputs = vec![("targets", targets)];
        inputs.extend(grad_output.map(|input| ("grad_output", input)));
        let output = call.logits.result(out, &inputs)?;
        let grad_output = call.grad_output(grad_output)?;
        let losses = call.losses()?;
        let column = losses.as_ref().map(|losses| losses.column);
        let (labels, options) = (&call.labels, call.options);
        let loss = with_elements!(call.logits.dtype, output.dtype, E, O => {
            let logits = call.logits.view::<E>();
            let gradient = Gradient { out: output.view::<O>(), grad_output };
            detached(py, |check| driver::cross_entropy(&logits, labels, options, column, Some(&gradient), check))
        })?;
        Ok((finish(py, loss, losses)?, output.array.into_any()))
    })
}

/// What the two functions have in common, checked.
struct Call<'py> {
    logits: Logits<'py>,
    labels: Labels,
    options: Options,
}

impl<'py> Call<'py> {
    fn new(
        logits: &Bound<'py, PyAny>,
        targets: &Bound<'py, PyAny>,
        ignore_index: i64,
        temperature: f64,
        axis: isize,
        reduction: &Bound<'py, PyAny>,
        denominator: Option<f64>,
    ) -> PyResult<Self> {
        let temperature = arrays::temperature(temperature)?;
        let reduction = parse_reduction(reduction)?;
        if let Some(denominator) = denominator {
            positive("denominator", denominator)?;
            if reduction != Reduction::Mean {
                let text = format!(
                    "denominator is given with reduction '{}'; expected reduction 'mean', whose divisor it replaces",
                    name(reduction)
                );
                return Err(Error::Value(text).into());
            }
        }
        let logits = Logits::new(logits, axis)?;
        let labels = arrays::labels(targets, &logits, axis, ignore_index)?;
        Ok(Self { logits, labels, options: Options { temperature, reduction, denominator } })
    }

    /// The array for the losses of the rows, if they are a result.
    fn losses(&self) -> PyResult<Option<RowResult<'py>>> {
        let make = || RowResult::new(self.logits.array.py(), &self.logits.row_shape(), self.logits.dtype.is_double());
        (self.options.reduction == Reduction::None).then(make).transpose()
    }

    fn grad_output(&self, grad_output: Option<&Bound<'py, PyAny>>) -> PyResult<GradOutput> {
        let Some(object) = grad_output else { return Ok(GradOutput::Scalar(1.0)) };
        let (shape, values) = grad_output_values(object)?;
        if shape.is_empty() {
            return Ok(GradOutput::Scalar(values[0]));
        }
        let rows = self.logits.row_shape();
        let expected = match self.options.reduction {
            Reduction::None if shape == rows => return Ok(GradOutput::Rows(values)),
            Reduction::None => format!("a scalar or shape {} for reduction 'none'", shape_text(&rows)),
            reduction => format!("a scalar for reduction '{}'", name(reduction)),
        };
        Err(Error::Value(format!("grad_output has shape {}; expected {expected}", shape_text(&shape))).into())
    }
}

fn finish<'py>(py: Python<'py>, loss: f64, losses: Option<RowResult<'py>>) -> PyResult<Bound<'py, PyAny>> {
    match losses {
        Some(losses) => losses.finish(),
        None => Ok(loss.into_pyobject(py)?.into_any()),
    }
}

fn parse_reduction(object: &Bound<'_, PyAny>) -> PyResult<Reduction> {
    let reductions = [Reduction::Mean, Reduction::Sum, Reduction::None];
    let text = object.extract::<&str>().unwrap_or_default();
    match reductions.into_iter().find(|&reduction| name(reduction) == text) {
        Some(reduction) => Ok(reduction),
        None => Err(Error::Value(format!("reduction is {}; expected 'mean', 'sum' or 'none'", object.repr()?)).into()),
    }
}

fn name(reduction: Reduction) -> &'static str {
    match reduction {
        Reduction::None => "none",
        Reduction::Mean => "mean",
        Reduction::Sum => "sum",
    }
}
