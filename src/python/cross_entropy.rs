//! The softmax losses: `cross_entropy` and `kl_divergence`, with their gradients.

use numpy::{PyArrayDescrMethods, PyUntypedArray, PyUntypedArrayMethods};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::arrays::{self, Logits, Output, RowResult, as_array, dtype_of, shape_text, view};
use super::conversion::{dtype_text, float_classes_hint};
use super::options::{Keywords, Options, Scalars};
use super::targets::{self, target_array};
use super::{detached, guard};
use crate::array::Array;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::loss::cross_entropy::cross_entropy as driver;
use crate::loss::labels::Labels;
use crate::loss::targets::{Problem, Targets};
use crate::loss::{Check, Derivatives, Reduction};

#[pyfunction]
pub(super) fn cross_entropy<'py>(
    logits: &Bound<'py, PyAny>,
    targets: &Bound<'py, PyAny>,
    keywords: &Keywords,
    options: &Bound<'py, PyDict>,
) -> PyResult<Bound<'py, PyAny>> {
    guard(|| Call::cross_entropy(logits, targets, keywords.options(options)?)?.run(None, None))
}

#[pyfunction]
pub(super) fn cross_entropy_with_grad<'py>(
    logits: &Bound<'py, PyAny>,
    targets: &Bound<'py, PyAny>,
    keywords: &Keywords,
    options: &Bound<'py, PyDict>,
) -> PyResult<(Bound<'py, PyAny>, Bound<'py, PyAny>)> {
    guard(|| Call::cross_entropy(logits, targets, keywords.options(options)?)?.loss_and_gradient())
}

/// (loss, gradient, Hessian).
pub(super) type LossAndDerivatives<'py> = (Bound<'py, PyAny>, Bound<'py, PyAny>, Bound<'py, PyAny>);

#[pyfunction]
pub(super) fn cross_entropy_with_grad_hess<'py>(
    logits: &Bound<'py, PyAny>,
    targets: &Bound<'py, PyAny>,
    keywords: &Keywords,
    options: &Bound<'py, PyDict>,
) -> PyResult<LossAndDerivatives<'py>> {
    guard(|| {
        let call = Call::cross_entropy(logits, targets, keywords.options(options)?)?;
        let outs = [call.options.out.as_ref(), call.options.hess_out.as_ref()];
        let [mut out, mut hess_out] = call.logits.two_results(outs, &call.inputs())?;
        let loss = call.run(Some(&mut out), Some(&mut hess_out))?;
        Ok((loss, out.result, hess_out.result))
    })
}

#[pyfunction]
pub(super) fn kl_divergence<'py>(
    logits: &Bound<'py, PyAny>,
    target_logits: &Bound<'py, PyAny>,
    keywords: &Keywords,
    options: &Bound<'py, PyDict>,
) -> PyResult<Bound<'py, PyAny>> {
    guard(|| Call::kl_divergence(logits, target_logits, keywords.options(options)?)?.run(None, None))
}

#[pyfunction]
pub(super) fn kl_divergence_with_grad<'py>(
    logits: &Bound<'py, PyAny>,
    target_logits: &Bound<'py, PyAny>,
    keywords: &Keywords,
    options: &Bound<'py, PyDict>,
) -> PyResult<(Bound<'py, PyAny>, Bound<'py, PyAny>)> {
    guard(|| Call::kl_divergence(logits, target_logits, keywords.options(options)?)?.loss_and_gradient())
}

/// A call whose arrays have been looked at.
pub(super) struct Call<'py> {
    pub(super) logits: Logits<'py>,
    options: Options<'py>,
    /// What the logits should be.
    targets: Bound<'py, PyUntypedArray>,
    role: Role,
}

/// What targets are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Classes,
    Probabilities,
    Teacher,
}

/// What a problem is made of, in the caller's arrays.
pub(super) struct Unread<'a> {
    targets: Array<'a>,
    role: Role,
    classes: usize,
    weight: Option<Array<'a>>,
    sample_weight: Option<Array<'a>>,
    scalars: Scalars,
}

impl<'a> Unread<'a> {
    /// Check the classes and copy the weights. It takes time with the number of rows, but needs no interpreter.
    pub(super) fn read(&self, check: Check) -> Result<Problem<'a>> {
        let copy = |weights: &Option<Array>, name| weights.as_ref().map(|it| it.copy(name, check)).transpose();
        let Scalars { ignore_index, label_smoothing, z_loss, .. } = self.scalars;
        Ok(Problem {
            targets: match self.role {
                Role::Classes => {
                    Targets::Classes(Labels::read("targets", &self.targets, self.classes, ignore_index, check)?)
                }
                Role::Probabilities => Targets::Probabilities(self.targets.clone()),
                Role::Teacher => Targets::Teacher(self.targets.clone()),
            },
            transform: self.scalars.transform(),
            weight: copy(&self.weight, "weight")?,
            sample_weight: copy(&self.sample_weight, "sample_weight")?,
            label_smoothing,
            z_loss,
        })
    }
}

impl<'py> Call<'py> {
    /// Targets are classes, or probabilities.
    fn cross_entropy(logits: &Bound<'py, PyAny>, targets: &Bound<'py, PyAny>, options: Options<'py>) -> PyResult<Self> {
        Self::new(logits, target_array(targets)?, options, either_role)
    }

    /// Targets are classes.
    pub(super) fn of_classes(
        logits: &Bound<'py, PyAny>,
        targets: &Bound<'py, PyAny>,
        options: Options<'py>,
    ) -> PyResult<Self> {
        Self::new(logits, target_array(targets)?, options, |targets, logits, scalars| {
            targets::check_labels(targets, logits, scalars.axis, false)?;
            Ok(Role::Classes)
        })
    }

    fn new(
        logits: &Bound<'py, PyAny>,
        targets: Bound<'py, PyUntypedArray>,
        options: Options<'py>,
        role_of: impl FnOnce(&Bound<'py, PyUntypedArray>, &Logits<'py>, &Scalars) -> PyResult<Role>,
    ) -> PyResult<Self> {
        let logits = Logits::new(as_array(logits, "logits")?, options.scalars.axis)?;
        if let Some(weight) = &options.weight {
            targets::check_weights(weight, "weight", &[logits.classes()], "class")?;
        }
        if let Some(weight) = &options.sample_weight {
            targets::check_weights(weight, "sample_weight", &logits.row_shape(), "row")?;
        }
        let role = role_of(&targets, &logits, &options.scalars)?;
        Ok(Self { logits, options, targets, role })
    }

    /// Targets are a teacher's logits.
    fn kl_divergence(
        logits: &Bound<'py, PyAny>,
        target_logits: &Bound<'py, PyAny>,
        options: Options<'py>,
    ) -> PyResult<Self> {
        Self::new(logits, as_array(target_logits, "target_logits")?, options, |target_logits, logits, _| {
            logits.check_teacher(target_logits, "target_logits")?;
            Ok(Role::Teacher)
        })
    }

    /// The arrays that no output may overlap, and what they are called.
    fn inputs(&self) -> Vec<(&'static str, &Bound<'py, PyUntypedArray>)> {
        let name = if self.role == Role::Teacher { "target_logits" } else { "targets" };
        [(name, &self.targets)].into_iter().chain(self.options.arrays()).collect()
    }

    /// The problem, in arrays that can be read without the interpreter.
    pub(super) fn unread(&self) -> Unread<'_> {
        Unread {
            targets: match self.role {
                Role::Classes => view(&self.targets, None),
                Role::Probabilities | Role::Teacher => self.logits.view_of(&self.targets),
            },
            role: self.role,
            classes: self.logits.classes(),
            weight: self.options.weight.as_ref().map(|array| view(array, None)),
            sample_weight: self.options.sample_weight.as_ref().map(|array| view(array, None)),
            scalars: self.options.scalars,
        }
    }

    fn loss_and_gradient(&self) -> PyResult<(Bound<'py, PyAny>, Bound<'py, PyAny>)> {
        let mut out = self.logits.result(self.options.out.as_ref(), &self.inputs())?;
        Ok((self.run(Some(&mut out), None)?, out.result))
    }

    /// The loss, with its derivatives written.
    fn run(
        &self,
        gradient: Option<&mut Output<'py>>,
        hessian: Option<&mut Output<'py>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let py = self.logits.array.py();
        let Scalars { reduction, denominator, .. } = self.options.scalars;
        let rows = self.logits.row_shape();
        let mut losses =
            (reduction == Reduction::None).then(|| RowResult::new(py, &rows, self.logits.dtype)).transpose()?;
        let grad_output = targets::grad_output(self.options.grad_output.as_ref(), &rows, reduction)?;
        let given = [&gradient, &hessian].into_iter().flatten().any(|output| output.given);
        let hessian = hessian.map(Output::view);
        let mut derivatives =
            gradient.map(|gradient| Derivatives { gradient: gradient.view(), hessian, grad_output, given });
        let (logits, unread, mut column) = (self.logits.view(), self.unread(), losses.as_mut().map(RowResult::view));
        let loss = detached(py, |check| {
            let problem = unread.read(check)?;
            driver(&logits, &problem, reduction, denominator, column.as_mut(), derivatives.as_mut(), check)
        })?;
        drop(column);
        arrays::finish(py, loss, losses)
    }
}

/// Integers are classes, floats of the logits' shape are probabilities.
fn either_role<'py>(targets: &Bound<'py, PyUntypedArray>, logits: &Logits<'py>, scalars: &Scalars) -> PyResult<Role> {
    let descriptor = targets.dtype();
    if matches!(descriptor.kind(), b'i' | b'u') {
        targets::check_labels(targets, logits, scalars.axis, true)?;
        return Ok(Role::Classes);
    }
    if !dtype_of(&descriptor).is_some_and(Dtype::is_floating) {
        let expected = "expected an integer dtype (class indices) or a floating dtype (probabilities)";
        let one_hot = descriptor.kind() == b'b' && targets.shape() == logits.array.shape();
        let hint = if one_hot { targets::ONE_HOT } else { "" };
        return Err(Error::Type(format!("targets have dtype {}; {expected}{hint}", dtype_text(&descriptor))).into());
    }
    let (shape, expected) = (targets.shape(), logits.array.shape());
    if shape == expected {
        return Ok(Role::Probabilities);
    }
    let (found, text) = (shape_text(shape), shape_text(expected));
    Err(if shape == logits.row_shape() {
        let expected = format!("expected an integer dtype (class indices), or shape {text} (probabilities)");
        let (dtype, hint) = (dtype_text(&descriptor), float_classes_hint(targets, "targets"));
        Error::Type(format!("targets have dtype {dtype} and shape {found}; {expected}{hint}")).into()
    } else {
        let column = shape.strip_suffix(&[1]).is_some_and(|rows| rows == logits.row_shape());
        let hint = if column { " (class indices? targets.squeeze(-1).astype(int))" } else { "" };
        let expected = format!("expected {text}, the shape of logits, for probabilities{hint}");
        Error::Value(format!("targets have shape {found}; {expected}")).into()
    })
}
