//! `binary_cross_entropy` and its derivatives.

use numpy::{PyArrayDescrMethods, PyUntypedArray, PyUntypedArrayMethods};
use pyo3::prelude::*;

use super::arguments::{self, integer};
use super::arrays::{self, Logits, Output, RowResult, as_array, number_kind, numbers};
use super::targets;
use super::{detached, guard};
use crate::element::{Dtype, with_element};
use crate::error::Error;
use crate::loss::binary::{Binary, Derivatives, binary_cross_entropy as driver};
use crate::loss::{BadTarget, Check, GradOutput, Reduction};

#[pyfunction]
#[allow(clippy::too_many_arguments)] // the arguments of the Python function
pub(super) fn binary_cross_entropy<'py>(
    py: Python<'py>,
    logits: &Bound<'py, PyAny>,
    targets: &Bound<'py, PyAny>,
    weight: Option<&Bound<'py, PyAny>>,
    pos_weight: Option<&Bound<'py, PyAny>>,
    ignore_index: Option<&Bound<'py, PyAny>>,
    label_smoothing: &Bound<'py, PyAny>,
    reduction: &Bound<'py, PyAny>,
    denominator: Option<&Bound<'py, PyAny>>,
) -> PyResult<Bound<'py, PyAny>> {
    guard(|| {
        let (reduction, denominator) = arguments::reduction(reduction, denominator)?;
        let call = Call::new(logits, targets, weight, pos_weight, ignore_index, label_smoothing)?;
        let losses = call.losses(reduction)?;
        let column = losses.as_ref().map(|losses| losses.column);
        let problem = &call.problem;
        // Without a gradient, what matters of the dtype is what it computes in.
        let dtype = if call.logits.dtype.is_double() { Dtype::F64 } else { Dtype::F32 };
        let loss = with_element!(dtype, O => {
            // SAFETY: there is no gradient to write.
            detached(py, |check: Check| unsafe { driver::<O>(problem, reduction, denominator, column, None, check) })
        })?;
        let loss = loss.map_err(|bad| call.bad_target(bad))?;
        arrays::finish(py, loss, losses)
    })
}

#[pyfunction]
#[allow(clippy::too_many_arguments)] // the arguments of the Python function
pub(super) fn binary_cross_entropy_with_grad<'py>(
    logits: &Bound<'py, PyAny>,
    targets: &Bound<'py, PyAny>,
    weight: Option<&Bound<'py, PyAny>>,
    pos_weight: Option<&Bound<'py, PyAny>>,
    ignore_index: Option<&Bound<'py, PyAny>>,
    label_smoothing: &Bound<'py, PyAny>,
    reduction: &Bound<'py, PyAny>,
    denominator: Option<&Bound<'py, PyAny>>,
    grad_output: Option<&Bound<'py, PyAny>>,
    out: Option<&Bound<'py, PyAny>>,
) -> PyResult<(Bound<'py, PyAny>, Bound<'py, PyAny>)> {
    guard(|| {
        let grad_output = grad_output.map(|object| as_array(object, "grad_output")).transpose()?;
        let (reduction, denominator) = arguments::reduction(reduction, denominator)?;
        let call = Call::new(logits, targets, weight, pos_weight, ignore_index, label_smoothing)?;
        let mut inputs = call.inputs();
        inputs.extend(grad_output.as_ref().map(|array| ("grad_output", array)));
        let output = call.logits.result(out, &inputs)?;
        let grad_output = targets::grad_output(grad_output.as_ref(), call.logits.array.shape(), reduction)?;
        let loss = call.run(reduction, denominator, &output, None, grad_output)?;
        Ok((loss, output.result))
    })
}

#[pyfunction]
#[allow(clippy::too_many_arguments, clippy::type_complexity)] // the arguments and results of the Python function
pub(super) fn binary_cross_entropy_with_grad_hess<'py>(
    logits: &Bound<'py, PyAny>,
    targets: &Bound<'py, PyAny>,
    weight: Option<&Bound<'py, PyAny>>,
    pos_weight: Option<&Bound<'py, PyAny>>,
    ignore_index: Option<&Bound<'py, PyAny>>,
    label_smoothing: &Bound<'py, PyAny>,
    reduction: &Bound<'py, PyAny>,
    denominator: Option<&Bound<'py, PyAny>>,
    out: Option<&Bound<'py, PyAny>>,
    hess_out: Option<&Bound<'py, PyAny>>,
) -> PyResult<(Bound<'py, PyAny>, Bound<'py, PyAny>, Bound<'py, PyAny>)> {
    guard(|| {
        let (reduction, denominator) = arguments::reduction(reduction, denominator)?;
        let call = Call::new(logits, targets, weight, pos_weight, ignore_index, label_smoothing)?;
        let [out, hess_out] = call.logits.two_results([out, hess_out], &call.inputs())?;
        let loss = call.run(reduction, denominator, &out, Some(&hess_out), GradOutput::Scalar(1.0))?;
        Ok((loss, out.result, hess_out.result))
    })
}

/// What the functions have in common, checked.
struct Call<'py> {
    logits: Logits<'py>,
    problem: Binary,
    ignore_index: Option<i128>,
    /// The other arrays that are read, and what they are called. They keep the memory alive that `problem` points to.
    arrays: Vec<(&'static str, Bound<'py, PyUntypedArray>)>,
}

impl<'py> Call<'py> {
    fn new(
        logits: &Bound<'py, PyAny>,
        targets: &Bound<'py, PyAny>,
        weight: Option<&Bound<'py, PyAny>>,
        pos_weight: Option<&Bound<'py, PyAny>>,
        ignore_index: Option<&Bound<'py, PyAny>>,
        label_smoothing: &Bound<'py, PyAny>,
    ) -> PyResult<Self> {
        // What is not an array becomes one first: that runs the caller's code.
        let (logits, targets) = (as_array(logits, "logits")?, as_array(targets, "targets")?);
        let weight = weight.map(|object| as_array(object, "weight")).transpose()?;
        let pos_weight = pos_weight.map(|object| as_array(object, "pos_weight")).transpose()?;
        let label_smoothing = arguments::label_smoothing(label_smoothing)?;
        let ignore = ignore_index.map(|object| integer("ignore_index", object)).transpose()?;
        let logits = Logits::elementwise(logits)?;
        let descriptor = targets.dtype();
        if number_kind(&descriptor).is_none() {
            let text = format!("targets have dtype {descriptor}; expected bool, an integer or a floating dtype");
            return Err(Error::Type(text).into());
        }
        if targets.shape() != logits.array.shape() {
            return Err(logits.shape_error(&targets, "targets").into());
        }
        let mut arrays = vec![("targets", targets.clone())];
        let mut broadcast = |array: Option<Bound<'py, PyUntypedArray>>, name| -> PyResult<_> {
            let Some(array) = array else { return Ok(None) };
            numbers(&array, name)?;
            let array = targets::broadcast(&array, name, &logits)?;
            let found = numbers(&array, name)?;
            arrays.push((name, array));
            Ok(Some(found))
        };
        let (weight, pos_weight) = (broadcast(weight, "weight")?, broadcast(pos_weight, "pos_weight")?);
        let problem = Binary {
            logits: logits.numbers(),
            targets: numbers(&targets, "targets")?,
            weight,
            pos_weight,
            ignore: ignore.map(|index| index as f64),
            labels: matches!(descriptor.kind(), b'i' | b'u'),
            label_smoothing,
        };
        Ok(Self { logits, problem, ignore_index: ignore, arrays })
    }

    /// The arrays that no output may overlap.
    fn inputs(&self) -> Vec<(&'static str, &Bound<'py, PyUntypedArray>)> {
        self.arrays.iter().map(|(name, array)| (*name, array)).collect()
    }

    fn run(
        &self,
        reduction: Reduction,
        denominator: Option<f64>,
        gradient: &Output<'py>,
        hessian: Option<&Output<'py>>,
        grad_output: GradOutput,
    ) -> PyResult<Bound<'py, PyAny>> {
        let py = self.logits.array.py();
        let losses = self.losses(reduction)?;
        let column = losses.as_ref().map(|losses| losses.column);
        let problem = &self.problem;
        let given = gradient.given || hessian.is_some_and(|hessian| hessian.given);
        let loss = with_element!(gradient.dtype, O => {
            let hessian = hessian.map(|hessian| hessian.elements::<O>());
            let derivatives = Derivatives { gradient: gradient.elements::<O>(), hessian, grad_output, given };
            // SAFETY: `Logits::result` and `Logits::two_results` made or checked the outputs.
            let run = |check: Check| unsafe {
                driver(problem, reduction, denominator, column, Some(&derivatives), check)
            };
            detached(py, run)
        })?;
        arrays::finish(py, loss.map_err(|bad| self.bad_target(bad))?, losses)
    }

    fn bad_target(&self, BadTarget(number): BadTarget) -> PyErr {
        let (_, targets) = &self.arrays[0];
        let ignored = self.ignore_index.map_or_else(String::new, |index| format!(", or ignore_index {index}"));
        targets::bad_target(targets, &self.logits.index(number), &format!("0 or 1{ignored}"))
    }

    fn losses(&self, reduction: Reduction) -> PyResult<Option<RowResult<'py>>> {
        let array = &self.logits.array;
        let make = || RowResult::new(array.py(), array.shape(), self.logits.dtype.is_double());
        (reduction == Reduction::None).then(make).transpose()
    }
}
