//! The softmax losses: `cross_entropy` and `kl_divergence`, with their gradients.

use numpy::{PyArrayDescrMethods, PyUntypedArray, PyUntypedArrayMethods};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::arguments::KindName;
use super::arrays::{Logits, as_array, dtype_of, shape_text, view};
use super::conversion::{dtype_text, float_classes_hint};
use super::losses::{LossAndDerivatives, LossAndGradient, LossCall};
use super::options::{Keywords, Options, Scalars};
use super::targets::{self, SparseParts, sparse_parts, target_array};
use super::{detached, guard};
use crate::array::{Array, ArrayMut};
use crate::dtype::{Dtype, Number};
use crate::error::{Error, Result};
use crate::kernel::focus::Focus;
use crate::kernel::kinds::Kind;
use crate::loss::cross_entropy::cross_entropy as driver;
use crate::loss::labels::Labels;
use crate::loss::sparse::{Counts, Rest, SparseTargets};
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
    pub(super) options: Options<'py>,
    /// What the logits should be; of listed classes their index.
    targets: Bound<'py, PyUntypedArray>,
    /// What listed classes weigh.
    probability: Option<Bound<'py, PyUntypedArray>>,
    pub(super) role: Role,
}

/// What looks at the probability of a class needs one.
fn check_focus(scalars: &Scalars, role: Role) -> Result<()> {
    let Some((name, value)) = scalars.focus().filter(|_| role != Role::Classes) else { return Ok(()) };
    let targets = if matches!(role, Role::Listed { .. }) { "SparseTargets" } else { "probabilities as targets" };
    let text = format!("{targets}; expected class indices, whose probability it looks at");
    Err(Error::Value(format!("{name} is {} with {text}", value.text())))
}

/// What targets are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Classes,
    Probabilities,
    Listed { rest: Rest, is_divergence: bool },
    Teacher,
}

impl Role {
    /// What the targets are called.
    fn name(self) -> &'static str {
        match self {
            Self::Teacher | Self::Listed { is_divergence: true, .. } => "target_logits",
            _ => "targets",
        }
    }
}

/// What a problem is made of, in the caller's arrays.
pub(super) struct Unread<'a> {
    targets: Array<'a>,
    probability: Option<Array<'a>>,
    role: Role,
    rows: usize,
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
        let weight = copy(&self.weight, "weight")?;
        let sample_weight = copy(&self.sample_weight, "sample_weight")?;
        Ok(Problem {
            targets: match self.role {
                Role::Classes => {
                    Targets::Classes(Labels::read("targets", &self.targets, self.classes, ignore_index, check)?)
                }
                Role::Probabilities => Targets::Probabilities(self.targets.clone()),
                Role::Listed { rest, is_divergence } => {
                    let probability = self.probability.clone().expect("listed classes have probabilities");
                    let (name, index) = (self.role.name(), self.targets.clone());
                    let targets = SparseTargets { name, index, probability, rest, is_divergence };
                    // With label smoothing weights are those of all classes.
                    let weight = weight.as_deref().filter(|_| label_smoothing == 0.0);
                    let counts =
                        Counts { shape: [self.rows, self.classes], weight, sample_weight: sample_weight.as_deref() };
                    Targets::Listed(targets.read(counts, check)?)
                }
                Role::Teacher => match self.scalars.kind {
                    KindName::Forward => Targets::Teacher(self.targets.clone()),
                    KindName::Reverse => Targets::Divergence(self.targets.clone(), Kind::Reverse),
                    KindName::JensenShannon => {
                        Targets::Divergence(self.targets.clone(), Kind::JensenShannon(self.scalars.beta))
                    }
                },
            },
            transform: self.scalars.transform(),
            weight,
            sample_weight,
            label_smoothing,
            z_loss,
            settled: None,
            focus: is_focused.then_some(Focus { gamma: focal_gamma, epsilon: poly_epsilon }),
        })
    }
}

impl<'py> Call<'py> {
    /// Targets are classes, or probabilities.
    pub(super) fn cross_entropy(
        logits: &Bound<'py, PyAny>,
        targets: &Bound<'py, PyAny>,
        options: Options<'py>,
    ) -> PyResult<Self> {
        match sparse_parts(targets)? {
            Some(parts) => Self::of_listed(logits, parts, options, false),
            None => Self::new(logits, target_array(targets)?, options, either_role),
        }
    }

    /// Targets list some classes.
    fn of_listed(
        logits: &Bound<'py, PyAny>,
        SparseParts { index, probability, rest }: SparseParts<'py>,
        options: Options<'py>,
        is_divergence: bool,
    ) -> PyResult<Self> {
        let role = Role::Listed { rest, is_divergence };
        let mut call = Self::new(logits, index, options, |index, logits, scalars| {
            let name = role.name();
            targets::check_index(index, &format!("{name}.index"), logits, scalars.axis)?;
            targets::check_probability(&probability, &format!("{name}.probability"), index)?;
            if rest == Rest::Tail && !is_divergence {
                let text = "'tail'; expected 'zero' or 'renormalize', as the cross-entropy with a class that stands for \
                            others is none (kl_divergence takes it)";
                return Err(Error::Value(format!("{name}.rest is {text}")).into());
            }
            Ok(role)
        })?;
        call.probability = Some(probability);
        Ok(call)
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
        Ok(Self { logits, options, targets, probability: None, role })
    }

    /// Targets are a teacher's logits.
    pub(super) fn kl_divergence(
        logits: &Bound<'py, PyAny>,
        target_logits: &Bound<'py, PyAny>,
        options: Options<'py>,
    ) -> PyResult<Self> {
        if let Some(parts) = sparse_parts(target_logits)? {
            let kind = options.scalars.kind;
            if kind != KindName::Forward {
                let expected = "expected kind 'forward', as the others need the teacher's probabilities of all classes";
                return Err(Error::Value(format!("kind is '{}' with SparseTargets; {expected}", kind.name())).into());
            }
            return Self::of_listed(logits, parts, options, true);
        }
        Self::new(logits, as_array(target_logits, "target_logits")?, options, |target_logits, logits, _| {
            logits.check_teacher(target_logits, "target_logits")?;
            Ok(Role::Teacher)
        })
    }

    /// The problem, in arrays that can be read without the interpreter.
    pub(super) fn unread(&self) -> Unread<'_> {
        Unread {
            targets: match self.role {
                Role::Classes | Role::Listed { .. } => view(&self.targets, None),
                Role::Probabilities | Role::Teacher => self.logits.view_of(&self.targets),
            },
            probability: self.probability.as_ref().map(|array| view(array, None)),
            role: self.role,
            rows: self.logits.row_shape().iter().product(),
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
        (self.role.name(), &self.targets)
    }

    fn inputs(&self) -> Vec<(&'static str, &Bound<'py, PyUntypedArray>)> {
        let probability = self.probability.as_ref().map(|array| (self.role.name(), array));
        [self.targets()].into_iter().chain(probability).chain(self.options.arrays()).collect()
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
