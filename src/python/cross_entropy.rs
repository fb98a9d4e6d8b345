//! The softmax losses: `cross_entropy` and `kl_divergence`, with their gradients.

use numpy::{PyArrayDescrMethods, PyUntypedArray, PyUntypedArrayMethods};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::arrays::{Logits, as_array, dtype_of, shape_text, view};
use super::conversion::{dtype_text, float_classes_hint};
use super::losses::{LossAndDerivatives, LossAndGradient, LossCall};
use super::options::{Keywords, Options, Scalars};
use super::targets::{self, target_array};
use super::{detached, guard};
use crate::array::{Array, ArrayMut};
use crate::dtype::{Dtype, Number};
use crate::error::{Error, Result};
use crate::kernel::focus::Focus;
use crate::loss::cross_entropy::cross_entropy as driver;
use crate::loss::labels::Labels;
use crate::loss::targets::{Problem, Targets};
use crate::loss::{Check, Derivatives};

#[pyfunction]
pub(super) fn cross_entropy<'py>(
    logits: &Bound<'py, PyAny>,
    targets: &Bound<'py, PyAny>,
    keywords: &Keywords,
    options: &Bound<'py, PyDict>,
) -> PyResult<Bound<'py, PyAny>> {
    guard(|| Call::cross_entropy(logits, targets, keywords.options(options)?)?.loss())
}

#[pyfunction]
pub(super) fn cross_entropy_with_grad<'py>(
    logits: &Bound<'py, PyAny>,
    targets: &Bound<'py, PyAny>,
    keywords: &Keywords,
    options: &Bound<'py, PyDict>,
) -> PyResult<LossAndGradient<'py>> {
    guard(|| Call::cross_entropy(logits, targets, keywords.options(options)?)?.loss_and_gradient())
}

#[pyfunction]
pub(super) fn cross_entropy_with_grad_hess<'py>(
    logits: &Bound<'py, PyAny>,
    targets: &Bound<'py, PyAny>,
    keywords: &Keywords,
    options: &Bound<'py, PyDict>,
) -> PyResult<LossAndDerivatives<'py>> {
    guard(|| Call::cross_entropy(logits, targets, keywords.options(options)?)?.loss_and_derivatives())
}

#[pyfunction]
pub(super) fn kl_divergence<'py>(
    logits: &Bound<'py, PyAny>,
    target_logits: &Bound<'py, PyAny>,
    keywords: &Keywords,
    options: &Bound<'py, PyDict>,
) -> PyResult<Bound<'py, PyAny>> {
    guard(|| Call::kl_divergence(logits, target_logits, keywords.options(options)?)?.loss())
}

#[pyfunction]
pub(super) fn kl_divergence_with_grad<'py>(
    logits: &Bound<'py, PyAny>,
    target_logits: &Bound<'py, PyAny>,
    keywords: &Keywords,
    options: &Bound<'py, PyDict>,
) -> PyResult<LossAndGradient<'py>> {
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

/// What looks at the probability of a class needs one.
fn check_focus(scalars: &Scalars, role: Role) -> Result<()> {
    let Some((name, value)) = scalars.focus().filter(|_| role != Role::Classes) else { return Ok(()) };
    let text = "probabilities as targets; expected class indices, whose probability it looks at";
    Err(Error::Value(format!("{name} is {} with {text}", value.text())))
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
        let Scalars { ignore_index, label_smoothing, z_loss, focal_gamma, poly_epsilon, .. } = self.scalars;
        let is_focused = self.scalars.focus().is_some();
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
            settled: None,
            focus: is_focused.then_some(Focus { gamma: focal_gamma, epsilon: poly_epsilon }),
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
        check_focus(&options.scalars, role)?;
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
}

impl<'py> LossCall<'py> for Call<'py> {
    fn logits(&self) -> &Logits<'py> {
        &self.logits
    }

    fn options(&self) -> &Options<'py> {
        &self.options
    }

    fn targets(&self) -> (&'static str, &Bound<'py, PyUntypedArray>) {
        (if self.role == Role::Teacher { "target_logits" } else { "targets" }, &self.targets)
    }

    fn drive(&self, losses: Option<&mut ArrayMut>, derivatives: Option<&mut Derivatives>) -> PyResult<f64> {
        let Scalars { reduction, denominator, .. } = self.options.scalars;
        let (logits, unread) = (self.logits.view(), self.unread());
        detached(self.targets.py(), |check| {
            let problem = unread.read(check)?;
            driver(&logits, &problem, reduction, denominator, losses, derivatives, check)
        })
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
