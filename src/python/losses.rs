//! What every call of a loss does once its arrays have been looked at: it finds its outputs, has them written, and returns
//! them.

use numpy::PyUntypedArray;
use pyo3::prelude::*;

use super::arrays::{self, Logits, Output, RowResult};
use super::options::{Options, Scalars};
use super::targets;
use crate::array::ArrayMut;
use crate::loss::{Derivatives, Reduction};

/// (loss, gradient).
pub(super) type LossAndGradient<'py> = (Bound<'py, PyAny>, Bound<'py, PyAny>);

/// (loss, gradient, Hessian).
pub(super) type LossAndDerivatives<'py> = (Bound<'py, PyAny>, Bound<'py, PyAny>, Bound<'py, PyAny>);

/// A call whose arrays have been looked at.
pub(super) trait LossCall<'py> {
    fn logits(&self) -> &Logits<'py>;

    fn options(&self) -> &Options<'py>;

    /// What the logits should be, and what it is called.
    fn targets(&self) -> (&'static str, &Bound<'py, PyUntypedArray>);

    /// The reduced loss, with each row's loss and the derivatives written where asked.
    fn drive(&self, losses: Option<&mut ArrayMut>, derivatives: Option<&mut Derivatives>) -> PyResult<f64>;

    fn loss(&self) -> PyResult<Bound<'py, PyAny>> {
        self.run(None, None)
    }

    fn loss_and_gradient(&self) -> PyResult<LossAndGradient<'py>> {
        let mut out = self.logits().result(self.options().out.as_ref(), &self.inputs())?;
        Ok((self.run(Some(&mut out), None)?, out.result))
    }

    fn loss_and_derivatives(&self) -> PyResult<LossAndDerivatives<'py>> {
        let outs = [self.options().out.as_ref(), self.options().hess_out.as_ref()];
        let [mut out, mut hess_out] = self.logits().two_results(outs, &self.inputs())?;
        let loss = self.run(Some(&mut out), Some(&mut hess_out))?;
        Ok((loss, out.result, hess_out.result))
    }

    /// The arrays that no output may overlap, and what they are called.
    fn inputs(&self) -> Vec<(&'static str, &Bound<'py, PyUntypedArray>)> {
        [self.targets()].into_iter().chain(self.options().arrays()).collect()
    }

    /// The loss, with its derivatives written.
    fn run(
        &self,
        gradient: Option<&mut Output<'py>>,
        hessian: Option<&mut Output<'py>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let (logits, options) = (self.logits(), self.options());
        let (py, rows) = (logits.array.py(), logits.row_shape());
        let Scalars { reduction, .. } = options.scalars;
        let mut losses = (reduction == Reduction::None).then(|| RowResult::new(py, &rows, logits.dtype)).transpose()?;
        let grad_output = targets::grad_output(options.grad_output.as_ref(), &rows, reduction)?;
        let given = [&gradient, &hessian].into_iter().flatten().any(|output| output.given);
        let hessian = hessian.map(Output::view);
        let mut derivatives =
            gradient.map(|gradient| Derivatives { gradient: gradient.view(), hessian, grad_output, given });
        let loss = self.drive(losses.as_mut().map(RowResult::view).as_mut(), derivatives.as_mut())?;
        arrays::finish(py, loss, losses)
    }
}
