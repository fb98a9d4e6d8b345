//! Derivatives of the softmax losses beyond their gradient: Hessians times vectors, and the derivatives by targets and temperature.

use numpy::{PyUntypedArray, PyUntypedArrayMethods};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::arrays::{RowResult, as_array, finish};
use super::conversion::dtype_text;
use super::cross_entropy::{Call, Role};
use super::losses::LossCall;
use super::options::{Keywords, Scalars};
use super::{detached, guard, targets};
use crate::array::Array;
use crate::error::{Error, Result};
use crate::loss::hessian::hessian_product;
use crate::loss::sparse::Rest;
use crate::loss::target_gradient::target_gradient;
use crate::loss::targets::Problem;
use crate::loss::temperature::temperature_gradient;
use crate::loss::{Check, Derivatives, Reduction};

#[pyfunction]
pub(super) fn cross_entropy_hvp<'py>(
    logits: &Bound<'py, PyAny>,
    targets: &Bound<'py, PyAny>,
    vector: &Bound<'py, PyAny>,
    keywords: &Keywords,
    options: &Bound<'py, PyDict>,
) -> PyResult<Bound<'py, PyAny>> {
    guard(|| Call::cross_entropy(logits, targets, keywords.options(options)?)?.hessian_product(vector))
}

#[pyfunction]
pub(super) fn kl_divergence_hvp<'py>(
    logits: &Bound<'py, PyAny>,
    target_logits: &Bound<'py, PyAny>,
    vector: &Bound<'py, PyAny>,
    keywords: &Keywords,
    options: &Bound<'py, PyDict>,
) -> PyResult<Bound<'py, PyAny>> {
    guard(|| Call::kl_divergence(logits, target_logits, keywords.options(options)?)?.hessian_product(vector))
}

#[pyfunction]
pub(super) fn cross_entropy_target_grad<'py>(
    logits: &Bound<'py, PyAny>,
    targets: &Bound<'py, PyAny>,
    keywords: &Keywords,
    options: &Bound<'py, PyDict>,
) -> PyResult<Bound<'py, PyAny>> {
    guard(|| Call::cross_entropy(logits, targets, keywords.options(options)?)?.target_gradient())
}

#[pyfunction]
pub(super) fn cross_entropy_temperature_grad<'py>(
    logits: &Bound<'py, PyAny>,
    targets: &Bound<'py, PyAny>,
    keywords: &Keywords,
    options: &Bound<'py, PyDict>,
) -> PyResult<Bound<'py, PyAny>> {
    guard(|| Call::cross_entropy(logits, targets, keywords.options(options)?)?.temperature_gradient())
}

impl<'py> Call<'py> {
    /// The Hessian times a vector, written.
    fn hessian_product(&self, vector: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        let vector = as_array(vector, "vector")?;
        self.logits.check_teacher(&vector, "vector")?;
        if matches!(self.role, Role::Listed { rest: Rest::Tail, .. }) {
            let text =
                "'tail'; expected 'zero' or 'renormalize': with a class that stands for others the Hessian is another";
            return Err(Error::Value(format!("target_logits.rest is {text}")).into());
        }
        let Scalars { reduction, denominator, .. } = self.options.scalars;
        let view = self.logits.view_of(&vector);
        self.written(Some(&vector), |logits, problem, out, check| {
            hessian_product(logits, &view, problem, reduction, denominator, out, check)
        })
    }

    /// The derivatives by the targets, written.
    fn target_gradient(&self) -> PyResult<Bound<'py, PyAny>> {
        if self.role != Role::Probabilities {
            let (_, targets) = self.targets();
            let expected = "expected a floating dtype and the shape of logits (probabilities)";
            let text = match self.role {
                Role::Listed { .. } => format!("targets are SparseTargets; {expected}"),
                _ => format!("targets have dtype {}; {expected}", dtype_text(&targets.dtype())),
            };
            return Err(Error::Type(text).into());
        }
        let Scalars { reduction, denominator, .. } = self.options.scalars;
        self.written(None, |logits, problem, out, check| {
            target_gradient(logits, problem, reduction, denominator, out, check)
        })
    }

    /// What a driver writes of the logits' shape; `besides` is an array that it reads besides.
    fn written(
        &self,
        besides: Option<&Bound<'py, PyUntypedArray>>,
        drive: impl FnOnce(&Array, &Problem, &mut Derivatives, Check) -> Result<()> + Send,
    ) -> PyResult<Bound<'py, PyAny>> {
        let besides = besides.map(|array| ("vector", array));
        let inputs: Vec<_> = self.inputs().into_iter().chain(besides).collect();
        let mut output = self.logits.result(self.options.out.as_ref(), &inputs)?;
        let rows = self.logits.row_shape();
        let reduction = self.options.scalars.reduction;
        let grad_output = targets::grad_output(self.options.grad_output.as_ref(), &rows, reduction)?;
        let given = output.given;
        let mut derivatives = Derivatives { gradient: output.view(), hessian: None, grad_output, given };
        let (logits, unread) = (self.logits.view(), self.unread());
        detached(self.logits.array.py(), |check| drive(&logits, &unread.read(check)?, &mut derivatives, check))?;
        drop(derivatives);
        Ok(output.result)
    }

    /// The derivative by the temperature.
    fn temperature_gradient(&self) -> PyResult<Bound<'py, PyAny>> {
        let Scalars { reduction, denominator, .. } = self.options.scalars;
        let (py, rows, dtype) = (self.logits.array.py(), self.logits.row_shape(), self.logits.dtype);
        let mut of_rows = (reduction == Reduction::None).then(|| RowResult::new(py, &rows, dtype)).transpose()?;
        let mut out = of_rows.as_mut().map(RowResult::view);
        let (logits, unread) = (self.logits.view(), self.unread());
        let derivative = detached(py, |check| {
            let problem = unread.read(check)?;
            temperature_gradient(&logits, &problem, reduction, denominator, out.as_mut(), check)
        })?;
        drop(out);
        finish(py, derivative, of_rows)
    }
}
