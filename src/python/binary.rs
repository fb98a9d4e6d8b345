//! `binary_cross_entropy` and its gradient.

use numpy::{PyUntypedArray, PyUntypedArrayMethods};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::arrays::{self, Logits, Output, RowResult, as_array, check_numbers, dtype_of, view};
use super::cross_entropy::LossAndDerivatives;
use super::options::{Keywords, Options, Scalars};
use super::targets;
use super::{detached, guard};
use crate::error::Error;
use crate::loss::binary::{Binary, binary_cross_entropy as driver};
use crate::loss::{Derivatives, Reduction};

#[pyfunction]
pub(super) fn binary_cross_entropy<'py>(
    logits: &Bound<'py, PyAny>,
    targets: &Bound<'py, PyAny>,
    keywords: &Keywords,
    options: &Bound<'py, PyDict>,
) -> PyResult<Bound<'py, PyAny>> {
    guard(|| Call::new(logits, targets, keywords.options(options)?)?.run(None, None))
}

#[pyfunction]
pub(super) fn binary_cross_entropy_with_grad<'py>(
    logits: &Bound<'py, PyAny>,
    targets: &Bound<'py, PyAny>,
    keywords: &Keywords,
    options: &Bound<'py, PyDict>,
) -> PyResult<(Bound<'py, PyAny>, Bound<'py, PyAny>)> {
    guard(|| {
        let call = Call::new(logits, targets, keywords.options(options)?)?;
        let mut out = call.logits.result(call.options.out.as_ref(), &call.inputs())?;
        Ok((call.run(Some(&mut out), None)?, out.result))
    })
}

#[pyfunction]
pub(super) fn binary_cross_entropy_with_grad_hess<'py>(
    logits: &Bound<'py, PyAny>,
    targets: &Bound<'py, PyAny>,
    keywords: &Keywords,
    options: &Bound<'py, PyDict>,
) -> PyResult<LossAndDerivatives<'py>> {
    guard(|| {
        let call = Call::new(logits, targets, keywords.options(options)?)?;
        let outs = [call.options.out.as_ref(), call.options.hess_out.as_ref()];
        let [mut out, mut hess_out] = call.logits.two_results(outs, &call.inputs())?;
        let loss = call.run(Some(&mut out), Some(&mut hess_out))?;
        Ok((loss, out.result, hess_out.result))
    })
}

/// A call whose arrays have been looked at.
struct Call<'py> {
    logits: Logits<'py>,
    options: Options<'py>,
    targets: Bound<'py, PyUntypedArray>,
}

impl<'py> Call<'py> {
    fn new(logits: &Bound<'py, PyAny>, targets: &Bound<'py, PyAny>, mut options: Options<'py>) -> PyResult<Self> {
        let (logits, targets) = (Logits::elementwise(as_array(logits, "logits")?)?, as_array(targets, "targets")?);
        let descriptor = targets.dtype();
        if dtype_of(&descriptor).is_none() {
            let text = format!("targets have dtype {descriptor}; expected bool, an integer or a floating dtype");
            return Err(Error::Type(text).into());
        }
        if targets.shape() != logits.array.shape() {
            return Err(logits.shape_error(&targets, "targets").into());
        }
        for (array, name) in [(&mut options.weight, "weight"), (&mut options.pos_weight, "pos_weight")] {
            if let Some(array) = array {
                check_numbers(array, name)?;
                *array = targets::broadcast(array, name, &logits)?;
            }
        }
        Ok(Self { logits, options, targets })
    }

    /// The arrays that no output may overlap.
    fn inputs(&self) -> Vec<(&'static str, &Bound<'py, PyUntypedArray>)> {
        [("targets", &self.targets)].into_iter().chain(self.options.arrays()).collect()
    }

    /// The loss, with its derivatives written.
    fn run(
        &self,
        gradient: Option<&mut Output<'py>>,
        hessian: Option<&mut Output<'py>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let (py, shape) = (self.logits.array.py(), self.logits.array.shape());
        let Scalars { reduction, denominator, ignore_index, label_smoothing, .. } = self.options.scalars;
        let mut losses =
            (reduction == Reduction::None).then(|| RowResult::new(py, shape, self.logits.dtype)).transpose()?;
        let grad_output = targets::grad_output(self.options.grad_output.as_ref(), shape, reduction)?;
        let given = [&gradient, &hessian].into_iter().flatten().any(|output| output.given);
        let hessian = hessian.map(Output::view);
        let mut derivatives =
            gradient.map(|gradient| Derivatives { gradient: gradient.view(), hessian, grad_output, given });
        let problem = Binary {
            logits: self.logits.view(),
            targets: view(&self.targets, None),
            weight: self.options.weight.as_ref().map(|array| view(array, None)),
            pos_weight: self.options.pos_weight.as_ref().map(|array| view(array, None)),
            ignore_index,
            label_smoothing,
        };
        let mut column = losses.as_mut().map(RowResult::view);
        let loss = detached(py, |check| {
            driver(&problem, reduction, denominator, column.as_mut(), derivatives.as_mut(), check)
        })?;
        drop(column);
        arrays::finish(py, loss, losses)
    }
}
