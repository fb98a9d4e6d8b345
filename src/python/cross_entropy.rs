//! `cross_entropy` and `cross_entropy_with_grad`.

use numpy::{PyUntypedArray, PyUntypedArrayMethods};
use pyo3::prelude::*;

use super::arrays::{self, Logits, RowResult};
use super::arrays::{as_array, grad_output_values, integer, positive, shape_text, target_array};
use super::{detached, guard};
use crate::element::{with_element, with_elements};
use crate::error::Error;
use crate::loss::cross_entropy::{self as driver, GradOutput, Gradient, Options, Reduction};
use crate::loss::{Check, labels::Labels};

#[pyfunction]
#[allow(clippy::too_many_arguments)] // the arguments of the Python function
pub(super) fn cross_entropy<'py>(
    py: Python<'py>,
    logits: &Bound<'py, PyAny>,
    targets: &Bound<'py, PyAny>,
    ignore_index: &Bound<'py, PyAny>,
    temperature: &Bound<'py, PyAny>,
    axis: &Bound<'py, PyAny>,
    reduction: &Bound<'py, PyAny>,
    denominator: Option<&Bound<'py, PyAny>>,
) -> PyResult<Bound<'py, PyAny>> {
    guard(|| {
        let call = Call::new(logits, targets, ignore_index, temperature, axis, reduction, denominator)?;
        let losses = call.losses()?;
        let column = losses.as_ref().map(|losses| losses.column);
        let (labels, options) = (&call.labels, call.options);
        let loss = with_element!(call.logits.dtype, E => {
            let logits = call.logits.view::<E>();
            // SAFETY: there is no gradient to write.
            let run = |check: Check| unsafe {
                driver::cross_entropy::<E, E>(&logits, labels, options, column, None, check)
            };
            detached(py, run)
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
    ignore_index: &Bound<'py, PyAny>,
    temperature: &Bound<'py, PyAny>,
    axis: &Bound<'py, PyAny>,
    reduction: &Bound<'py, PyAny>,
    denominator: Option<&Bound<'py, PyAny>>,
    grad_output: Option<&Bound<'py, PyAny>>,
    out: Option<&Bound<'py, PyAny>>,
) -> PyResult<(Bound<'py, PyAny>, Bound<'py, PyAny>)> {
    guard(|| {
        let grad_output = grad_output.map(|object| as_array(object, "grad_output")).transpose()?;
        let call = Call::new(logits, targets, ignore_index, temperature, axis, reduction, denominator)?;
        let mut inputs = vec![("targets", &call.targets)];
        inputs.extend(grad_output.as_ref().map(|input| ("grad_output", input)));
        let output = call.logits.result(out, &inputs)?;
        let grad_output = call.grad_output(grad_output.as_ref())?;
        let losses = call.losses()?;
        let column = losses.as_ref().map(|losses| losses.column);
        let (labels, options) = (&call.labels, call.options);
        let loss = with_elements!(call.logits.dtype, output.dtype, E, O => {
            let logits = call.logits.view::<E>();
            let gradient = Gradient { out: output.view::<O>(), grad_output };
            // SAFETY: `Logits::result` made or checked the output.
            let run = |check: Check| unsafe {
                driver::cross_entropy(&logits, labels, options, column, Some(&gradient), check)
            };
            detached(py, run)
        })?;
        Ok((finish(py, loss, losses)?, output.result))
    })
}

/// What the two functions have in common, checked.
struct Call<'py> {
    logits: Logits<'py>,
    targets: Bound<'py, PyUntypedArray>,
    labels: Labels,
    options: Options,
}

impl<'py> Call<'py> {
    fn new(
        logits: &Bound<'py, PyAny>,
        targets: &Bound<'py, PyAny>,
        ignore_index: &Bound<'py, PyAny>,
        temperature: &Bound<'py, PyAny>,
        axis: &Bound<'py, PyAny>,
        reduction: &Bound<'py, PyAny>,
        denominator: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Self> {
        // What is not an array becomes one first: that runs the caller's code.
        let (logits, targets) = (as_array(logits, "logits")?, target_array(targets)?);
        let temperature = arrays::temperature(temperature)?;
        let reduction = parse_reduction(reduction)?;
        let denominator = denominator.map(|object| positive("denominator", object)).transpose()?;
        if denominator.is_some() && reduction != Reduction::Mean {
            let text = format!(
                "denominator is given with reduction '{}'; expected reduction 'mean', whose divisor it replaces",
                name(reduction)
            );
            return Err(Error::Value(text).into());
        }
        let ignore_index = integer("ignore_index", ignore_index)?;
        let logits = Logits::new(logits, axis)?;
        let labels = arrays::labels(&targets, &logits, axis, ignore_index)?;
        Ok(Self { logits, targets, labels, options: Options { temperature, reduction, denominator } })
    }

    /// The array for the losses of the rows, if they are a result.
    fn losses(&self) -> PyResult<Option<RowResult<'py>>> {
        let make = || RowResult::new(self.logits.array.py(), &self.logits.row_shape(), self.logits.dtype.is_double());
        (self.options.reduction == Reduction::None).then(make).transpose()
    }

    fn grad_output(&self, array: Option<&Bound<'py, PyUntypedArray>>) -> PyResult<GradOutput> {
        let Some(array) = array else { return Ok(GradOutput::Scalar(1.0)) };
        let (shape, rows) = (array.shape(), self.logits.row_shape());
        if shape.is_empty() {
            return Ok(GradOutput::Scalar(grad_output_values(array)?[0]));
        }
        let expected = match self.options.reduction {
            Reduction::None if shape == rows => return Ok(GradOutput::Rows(grad_output_values(array)?)),
            Reduction::None => format!("a scalar or shape {} for reduction 'none'", shape_text(&rows)),
            reduction => format!("a scalar for reduction '{}'", name(reduction)),
        };
        Err(Error::Value(format!("grad_output has shape {}; expected {expected}", shape_text(shape))).into())
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
