//! The softmax losses: `cross_entropy` and `kl_divergence`, with their gradients.

use numpy::{PyArrayDescrMethods, PyUntypedArray, PyUntypedArrayMethods};
use pyo3::prelude::*;

use super::arguments::{self, integer, not_negative};
use super::arrays::{self, Logits, Output, RowResult};
use super::arrays::{as_array, number_kind, shape_text};
use super::targets::{self, target_array};
use super::{detached, guard};
use crate::element::{with_element, with_elements};
use crate::error::Error;
use crate::loss::cross_entropy::{Derivatives, cross_entropy as driver};
use crate::loss::targets::{Problem, Targets};
use crate::loss::{BadTarget, Check, GradOutput, Reduction};

#[pyfunction]
#[allow(clippy::too_many_arguments)] // the arguments of the Python function
pub(super) fn cross_entropy<'py>(
    logits: &Bound<'py, PyAny>,
    targets: &Bound<'py, PyAny>,
    weight: Option<&Bound<'py, PyAny>>,
    sample_weight: Option<&Bound<'py, PyAny>>,
    ignore_index: &Bound<'py, PyAny>,
    label_smoothing: &Bound<'py, PyAny>,
    z_loss: &Bound<'py, PyAny>,
    softcap: Option<&Bound<'py, PyAny>>,
    temperature: &Bound<'py, PyAny>,
    axis: &Bound<'py, PyAny>,
    reduction: &Bound<'py, PyAny>,
    denominator: Option<&Bound<'py, PyAny>>,
) -> PyResult<Bound<'py, PyAny>> {
    guard(|| {
        let options = Options { weight, sample_weight, ignore_index, label_smoothing, z_loss, softcap, temperature };
        Call::cross_entropy(logits, targets, options, axis, reduction, denominator)?.loss()
    })
}

#[pyfunction]
#[allow(clippy::too_many_arguments)] // the arguments of the Python function
pub(super) fn cross_entropy_with_grad<'py>(
    logits: &Bound<'py, PyAny>,
    targets: &Bound<'py, PyAny>,
    weight: Option<&Bound<'py, PyAny>>,
    sample_weight: Option<&Bound<'py, PyAny>>,
    ignore_index: &Bound<'py, PyAny>,
    label_smoothing: &Bound<'py, PyAny>,
    z_loss: &Bound<'py, PyAny>,
    softcap: Option<&Bound<'py, PyAny>>,
    temperature: &Bound<'py, PyAny>,
    axis: &Bound<'py, PyAny>,
    reduction: &Bound<'py, PyAny>,
    denominator: Option<&Bound<'py, PyAny>>,
    grad_output: Option<&Bound<'py, PyAny>>,
    out: Option<&Bound<'py, PyAny>>,
) -> PyResult<(Bound<'py, PyAny>, Bound<'py, PyAny>)> {
    guard(|| {
        let options = Options { weight, sample_weight, ignore_index, label_smoothing, z_loss, softcap, temperature };
        let grad_output = grad_output.map(|object| as_array(object, "grad_output")).transpose()?;
        Call::cross_entropy(logits, targets, options, axis, reduction, denominator)?
            .with_grad(grad_output.as_ref(), out)
    })
}

#[pyfunction]
#[allow(clippy::too_many_arguments, clippy::type_complexity)] // the arguments and results of the Python function
pub(super) fn cross_entropy_with_grad_hess<'py>(
    py: Python<'py>,
    logits: &Bound<'py, PyAny>,
    targets: &Bound<'py, PyAny>,
    weight: Option<&Bound<'py, PyAny>>,
    sample_weight: Option<&Bound<'py, PyAny>>,
    ignore_index: &Bound<'py, PyAny>,
    label_smoothing: &Bound<'py, PyAny>,
    temperature: &Bound<'py, PyAny>,
    axis: &Bound<'py, PyAny>,
    reduction: &Bound<'py, PyAny>,
    denominator: Option<&Bound<'py, PyAny>>,
    out: Option<&Bound<'py, PyAny>>,
    hess_out: Option<&Bound<'py, PyAny>>,
) -> PyResult<(Bound<'py, PyAny>, Bound<'py, PyAny>, Bound<'py, PyAny>)> {
    guard(|| {
        let zero = 0.0f64.into_pyobject(py)?.into_any();
        let (z_loss, softcap) = (&zero, None);
        let options = Options { weight, sample_weight, ignore_index, label_smoothing, z_loss, softcap, temperature };
        let call = Call::cross_entropy(logits, targets, options, axis, reduction, denominator)?;
        let [out, hess_out] = call.logits.two_results([out, hess_out], &call.inputs(None))?;
        let loss = call.run(&out, Some(&hess_out), GradOutput::Scalar(1.0))?;
        Ok((loss, out.result, hess_out.result))
    })
}

#[pyfunction]
#[allow(clippy::too_many_arguments)] // the arguments of the Python function
pub(super) fn kl_divergence<'py>(
    logits: &Bound<'py, PyAny>,
    target_logits: &Bound<'py, PyAny>,
    temperature: &Bound<'py, PyAny>,
    axis: &Bound<'py, PyAny>,
    reduction: &Bound<'py, PyAny>,
    sample_weight: Option<&Bound<'py, PyAny>>,
    denominator: Option<&Bound<'py, PyAny>>,
) -> PyResult<Bound<'py, PyAny>> {
    guard(|| {
        Call::kl_divergence(logits, target_logits, temperature, axis, reduction, sample_weight, denominator)?.loss()
    })
}

#[pyfunction]
#[allow(clippy::too_many_arguments)] // the arguments of the Python function
pub(super) fn kl_divergence_with_grad<'py>(
    logits: &Bound<'py, PyAny>,
    target_logits: &Bound<'py, PyAny>,
    temperature: &Bound<'py, PyAny>,
    axis: &Bound<'py, PyAny>,
    reduction: &Bound<'py, PyAny>,
    sample_weight: Option<&Bound<'py, PyAny>>,
    denominator: Option<&Bound<'py, PyAny>>,
    grad_output: Option<&Bound<'py, PyAny>>,
    out: Option<&Bound<'py, PyAny>>,
) -> PyResult<(Bound<'py, PyAny>, Bound<'py, PyAny>)> {
    guard(|| {
        let grad_output = grad_output.map(|object| as_array(object, "grad_output")).transpose()?;
        Call::kl_divergence(logits, target_logits, temperature, axis, reduction, sample_weight, denominator)?
            .with_grad(grad_output.as_ref(), out)
    })
}

/// The options that change the loss of a row, as they came.
#[derive(Clone, Copy)]
pub(super) struct Options<'a, 'py> {
    pub(super) weight: Option<&'a Bound<'py, PyAny>>,
    pub(super) sample_weight: Option<&'a Bound<'py, PyAny>>,
    pub(super) ignore_index: &'a Bound<'py, PyAny>,
    pub(super) label_smoothing: &'a Bound<'py, PyAny>,
    pub(super) z_loss: &'a Bound<'py, PyAny>,
    pub(super) softcap: Option<&'a Bound<'py, PyAny>>,
    pub(super) temperature: &'a Bound<'py, PyAny>,
}

/// Logits and what they should be, checked.
pub(super) struct Checked<'py> {
    pub(super) logits: Logits<'py>,
    pub(super) problem: Problem,
    /// The other arrays that are read, and what they are called. They keep the memory alive that `problem` points to.
    arrays: Vec<(&'static str, Bound<'py, PyUntypedArray>)>,
}

impl<'py> Checked<'py> {
    /// Targets that are classes or, if `probabilities` are fine, floats of the logits' shape.
    pub(super) fn new(
        logits: &Bound<'py, PyAny>,
        targets: &Bound<'py, PyAny>,
        options: Options<'_, 'py>,
        axis: &Bound<'py, PyAny>,
        probabilities: bool,
    ) -> PyResult<Self> {
        // What is not an array becomes one first: that runs the caller's code.
        let (logits, targets) = (as_array(logits, "logits")?, target_array(targets)?);
        let weight = options.weight.map(|object| as_array(object, "weight")).transpose()?;
        let sample_weight = options.sample_weight.map(|object| as_array(object, "sample_weight")).transpose()?;
        let transform = arguments::transform(options.temperature, options.softcap)?;
        let label_smoothing = arguments::label_smoothing(options.label_smoothing)?;
        let z_loss = not_negative("z_loss", options.z_loss)?;
        let ignore_index = integer("ignore_index", options.ignore_index)?;
        let logits = Logits::new(logits, axis)?;
        let weights = |array: Option<&_>, name, shape: &[usize], of| {
            array.map(|array| targets::weights(array, name, shape, of)).transpose()
        };
        let weight_values = weights(weight.as_ref(), "weight", &[logits.classes()], "class")?;
        let sample_weight_values = weights(sample_weight.as_ref(), "sample_weight", &logits.row_shape(), "row")?;
        let problem = Problem {
            targets: if probabilities {
                either_targets(&targets, &logits, axis, ignore_index)?
            } else {
                Targets::Classes(targets::labels(&targets, &logits, axis, ignore_index)?)
            },
            transform,
            weight: weight_values,
            sample_weight: sample_weight_values,
            label_smoothing,
            z_loss,
        };
        let mut arrays = vec![("targets", targets)];
        arrays.extend(weight.map(|array| ("weight", array)));
        arrays.extend(sample_weight.map(|array| ("sample_weight", array)));
        Ok(Self { logits, problem, arrays })
    }
}

/// Integers are classes, floats of the logits' shape are probabilities.
fn either_targets<'py>(
    targets: &Bound<'py, PyUntypedArray>,
    logits: &Logits<'py>,
    axis: &Bound<'py, PyAny>,
    ignore_index: i128,
) -> PyResult<Targets> {
    let descriptor = targets.dtype();
    if matches!(descriptor.kind(), b'i' | b'u') {
        return Ok(Targets::Classes(targets::labels(targets, logits, axis, ignore_index)?));
    }
    let kind = number_kind(&descriptor).filter(|_| descriptor.kind() != b'b');
    let Some(kind) = kind else {
        let expected = "expected an integer dtype (class indices) or a floating dtype (probabilities)";
        return Err(Error::Type(format!("targets have dtype {descriptor}; {expected}")).into());
    };
    let (shape, expected) = (targets.shape(), logits.array.shape());
    if shape == expected {
        return Ok(Targets::Probabilities(logits.numbers_by_row(targets, kind)));
    }
    let (found, text) = (shape_text(shape), shape_text(expected));
    Err(if shape == logits.row_shape() {
        let expected = format!("expected an integer dtype (class indices), or shape {text} (probabilities)");
        Error::Type(format!("targets have dtype {descriptor} and shape {found}; {expected}")).into()
    } else {
        Error::Value(format!("targets have shape {found}; expected {text}, the shape of logits, for probabilities"))
            .into()
    })
}

/// What all of the functions have in common, checked.
struct Call<'py> {
    logits: Logits<'py>,
    problem: Problem,
    /// As in [`Checked`].
    arrays: Vec<(&'static str, Bound<'py, PyUntypedArray>)>,
    reduction: Reduction,
    denominator: Option<f64>,
}

impl<'py> Call<'py> {
    fn cross_entropy(
        logits: &Bound<'py, PyAny>,
        targets: &Bound<'py, PyAny>,
        options: Options<'_, 'py>,
        axis: &Bound<'py, PyAny>,
        reduction: &Bound<'py, PyAny>,
        denominator: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Self> {
        let (reduction, denominator) = arguments::reduction(reduction, denominator)?;
        let Checked { logits, problem, arrays } = Checked::new(logits, targets, options, axis, true)?;
        Ok(Self { logits, problem, arrays, reduction, denominator })
    }

    fn kl_divergence(
        logits: &Bound<'py, PyAny>,
        target_logits: &Bound<'py, PyAny>,
        temperature: &Bound<'py, PyAny>,
        axis: &Bound<'py, PyAny>,
        reduction: &Bound<'py, PyAny>,
        sample_weight: Option<&Bound<'py, PyAny>>,
        denominator: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Self> {
        let (reduction, denominator) = arguments::reduction(reduction, denominator)?;
        let (logits, target_logits) = (as_array(logits, "logits")?, as_array(target_logits, "target_logits")?);
        let sample_weight = sample_weight.map(|object| as_array(object, "sample_weight")).transpose()?;
        let transform = arguments::transform(temperature, None)?;
        let logits = Logits::new(logits, axis)?;
        let teacher = logits.teacher(target_logits.clone(), "target_logits")?;
        let rows = logits.row_shape();
        let weights = |array| targets::weights(array, "sample_weight", &rows, "row");
        let problem = Problem {
            transform,
            sample_weight: sample_weight.as_ref().map(weights).transpose()?,
            ..Problem::new(Targets::Teacher(teacher.any_view()))
        };
        let mut arrays = vec![("target_logits", target_logits)];
        arrays.extend(sample_weight.map(|array| ("sample_weight", array)));
        Ok(Self { logits, problem, arrays, reduction, denominator })
    }

    /// The arrays that no output may overlap.
    fn inputs<'a>(
        &'a self,
        grad_output: Option<&'a Bound<'py, PyUntypedArray>>,
    ) -> Vec<(&'static str, &'a Bound<'py, PyUntypedArray>)> {
        let mut inputs: Vec<_> = self.arrays.iter().map(|(name, array)| (*name, array)).collect();
        inputs.extend(grad_output.map(|array| ("grad_output", array)));
        inputs
    }

    fn losses(&self) -> PyResult<Option<RowResult<'py>>> {
        let make = || RowResult::new(self.logits.array.py(), &self.logits.row_shape(), self.logits.dtype.is_double());
        (self.reduction == Reduction::None).then(make).transpose()
    }

    fn bad_target(&self, BadTarget(number): BadTarget) -> PyErr {
        let (_, targets) = &self.arrays[0];
        targets::bad_target(targets, &self.logits.index_by_row(number), "a probability, at least 0")
    }

    fn loss(&self) -> PyResult<Bound<'py, PyAny>> {
        let py = self.logits.array.py();
        let losses = self.losses()?;
        let column = losses.as_ref().map(|losses| losses.column);
        let (problem, reduction, denominator) = (&self.problem, self.reduction, self.denominator);
        let loss = with_element!(self.logits.dtype, E => {
            let logits = self.logits.view::<E>();
            // SAFETY: there is no derivative to write.
            let run = |check: Check| unsafe {
                driver::<E, E>(&logits, problem, reduction, denominator, column, None, check)
            };
            detached(py, run)
        })?;
        let loss = loss.map_err(|bad| self.bad_target(bad))?;
        arrays::finish(py, loss, losses)
    }

    fn with_grad(
        &self,
        grad_output: Option<&Bound<'py, PyUntypedArray>>,
        out: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<(Bound<'py, PyAny>, Bound<'py, PyAny>)> {
        let output = self.logits.result(out, &self.inputs(grad_output))?;
        let scales = targets::grad_output(grad_output, &self.logits.row_shape(), self.reduction)?;
        Ok((self.run(&output, None, scales)?, output.result))
    }

    fn run(
        &self,
        gradient: &Output<'py>,
        hessian: Option<&Output<'py>>,
        grad_output: GradOutput,
    ) -> PyResult<Bound<'py, PyAny>> {
        let py = self.logits.array.py();
        let losses = self.losses()?;
        let column = losses.as_ref().map(|losses| losses.column);
        let (problem, reduction, denominator) = (&self.problem, self.reduction, self.denominator);
        let given = gradient.given || hessian.is_some_and(|hessian| hessian.given);
        let loss = with_elements!(self.logits.dtype, gradient.dtype, E, O => {
            let logits = self.logits.view::<E>();
            let hessian = hessian.map(|hessian| hessian.view::<O>());
            let derivatives = Derivatives { gradient: gradient.view::<O>(), hessian, grad_output, given };
            // SAFETY: `Logits::result` and `Logits::two_results` made or checked the outputs.
            let run = |check: Check| unsafe {
                driver(&logits, problem, reduction, denominator, column, Some(&derivatives), check)
            };
            detached(py, run)
        })?;
        let loss = loss.map_err(|bad| self.bad_target(bad))?;
        arrays::finish(py, loss, losses)
    }
}
