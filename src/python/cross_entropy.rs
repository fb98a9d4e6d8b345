//! The softmax losses: `cross_entropy` and `kl_divergence`, with their gradients.

use numpy::{PyArrayDescrMethods, PyUntypedArray, PyUntypedArrayMethods};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::arrays::{self, Logits, Output, RowResult};
use super::arrays::{as_array, number_kind, shape_text};
use super::options::{Keywords, Options, Scalars};
use super::targets::{self, UnreadLabels, target_array};
use super::{detached, guard};
use crate::element::{with_element, with_elements};
use crate::error::{Error, Result};
use crate::loss::cross_entropy::{Derivatives, cross_entropy as driver};
use crate::loss::targets::{Problem, Targets};
use crate::loss::{Check, Reduction};
use crate::numbers::Numbers;
use crate::row::AnyView;

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
) -> PyResult<(Bound<'py, PyAny>, Bound<'py, PyAny>)> {
    guard(|| Call::cross_entropy(logits, targets, keywords.options(options)?)?.loss_and_gradient())
}

/// (loss, gradient, Hessian).
type LossAndDerivatives<'py> = (Bound<'py, PyAny>, Bound<'py, PyAny>, Bound<'py, PyAny>);

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
        let [out, hess_out] = call.logits.two_results(outs, &call.inputs())?;
        let loss = call.run(&out, Some(&hess_out))?;
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
    guard(|| Call::kl_divergence(logits, target_logits, keywords.options(options)?)?.loss())
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
    pub(super) problem: UnreadProblem,
    options: Options<'py>,
    /// What the logits should be, and what it is called. As the arrays of the options, it keeps the memory alive that
    /// `problem` points to.
    targets: (&'static str, Bound<'py, PyUntypedArray>),
}

/// A problem whose numbers are still in the caller's arrays.
pub(super) struct UnreadProblem {
    targets: UnreadTargets,
    weight: Option<Numbers>,
    sample_weight: Option<Numbers>,
    scalars: Scalars,
}

/// Targets that are still in the caller's array, or that the kernels read there.
enum UnreadTargets {
    Classes(UnreadLabels),
    Probabilities(Numbers),
    Teacher(AnyView),
}

impl UnreadProblem {
    /// Check the classes and copy the weights. It takes time with the number of rows, but needs no interpreter.
    pub(super) fn read(&self, check: Check) -> Result<Problem> {
        let copy = |weights: &Option<Numbers>, name| weights.as_ref().map(|it| it.copy(name, check)).transpose();
        Ok(Problem {
            targets: match &self.targets {
                UnreadTargets::Classes(labels) => Targets::Classes(labels.read(check)?),
                UnreadTargets::Probabilities(numbers) => Targets::Probabilities(numbers.clone()),
                UnreadTargets::Teacher(view) => Targets::Teacher(view.clone()),
            },
            transform: self.scalars.transform(),
            weight: copy(&self.weight, "weight")?,
            sample_weight: copy(&self.sample_weight, "sample_weight")?,
            label_smoothing: self.scalars.label_smoothing,
            z_loss: self.scalars.z_loss,
        })
    }
}

impl<'py> Call<'py> {
    /// Targets are classes, or probabilities.
    fn cross_entropy(logits: &Bound<'py, PyAny>, targets: &Bound<'py, PyAny>, options: Options<'py>) -> PyResult<Self> {
        Self::new(logits, target_array(targets)?, options, either_targets)
    }

    /// Targets are classes.
    pub(super) fn of_classes(
        logits: &Bound<'py, PyAny>,
        targets: &Bound<'py, PyAny>,
        options: Options<'py>,
    ) -> PyResult<Self> {
        Self::new(logits, target_array(targets)?, options, |targets, logits, scalars| {
            Ok(UnreadTargets::Classes(targets::labels(targets, logits, scalars)?))
        })
    }

    fn new(
        logits: &Bound<'py, PyAny>,
        targets: Bound<'py, PyUntypedArray>,
        options: Options<'py>,
        look_at: impl FnOnce(&Bound<'py, PyUntypedArray>, &Logits<'py>, &Scalars) -> PyResult<UnreadTargets>,
    ) -> PyResult<Self> {
        let logits = Logits::new(as_array(logits, "logits")?, options.scalars.axis)?;
        let weights = |array: &Option<_>, name, shape: &[usize], of| {
            array.as_ref().map(|array| targets::weights(array, name, shape, of)).transpose()
        };
        let problem = UnreadProblem {
            weight: weights(&options.weight, "weight", &[logits.classes()], "class")?,
            sample_weight: weights(&options.sample_weight, "sample_weight", &logits.row_shape(), "row")?,
            targets: look_at(&targets, &logits, &options.scalars)?,
            scalars: options.scalars,
        };
        Ok(Self { logits, problem, options, targets: ("targets", targets) })
    }

    /// Targets are a teacher's logits.
    fn kl_divergence(
        logits: &Bound<'py, PyAny>,
        target_logits: &Bound<'py, PyAny>,
        options: Options<'py>,
    ) -> PyResult<Self> {
        let target_logits = as_array(target_logits, "target_logits")?;
        let mut call = Self::new(logits, target_logits, options, |target_logits, logits, _| {
            Ok(UnreadTargets::Teacher(logits.teacher(target_logits.clone(), "target_logits")?.any_view()))
        })?;
        call.targets.0 = "target_logits";
        Ok(call)
    }

    /// The arrays that no output may overlap.
    fn inputs(&self) -> Vec<(&'static str, &Bound<'py, PyUntypedArray>)> {
        let (name, targets) = &self.targets;
        [(*name, targets)].into_iter().chain(self.options.arrays()).collect()
    }

    fn losses(&self) -> PyResult<Option<RowResult<'py>>> {
        let make = || RowResult::new(self.logits.array.py(), &self.logits.row_shape(), self.logits.dtype.is_double());
        (self.options.scalars.reduction == Reduction::None).then(make).transpose()
    }

    fn loss(&self) -> PyResult<Bound<'py, PyAny>> {
        let py = self.logits.array.py();
        let losses = self.losses()?;
        let column = losses.as_ref().map(|losses| losses.column);
        let (problem, Scalars { reduction, denominator, .. }) = (&self.problem, self.options.scalars);
        let loss = with_element!(self.logits.dtype, E => {
            let logits = self.logits.view::<E>();
            detached(py, |check| {
                let problem = problem.read(check)?;
                // SAFETY: there is no derivative to write.
                unsafe { driver::<E, E>(&logits, &problem, reduction, denominator, column, None, check) }
            })
        })?;
        arrays::finish(py, loss, losses)
    }

    fn loss_and_gradient(&self) -> PyResult<(Bound<'py, PyAny>, Bound<'py, PyAny>)> {
        let out = self.logits.result(self.options.out.as_ref(), &self.inputs())?;
        Ok((self.run(&out, None)?, out.result))
    }

    /// The loss, with its derivatives written.
    fn run(&self, gradient: &Output<'py>, hessian: Option<&Output<'py>>) -> PyResult<Bound<'py, PyAny>> {
        let py = self.logits.array.py();
        let losses = self.losses()?;
        let column = losses.as_ref().map(|losses| losses.column);
        let (problem, Scalars { reduction, denominator, .. }) = (&self.problem, self.options.scalars);
        let rows = self.logits.row_shape();
        let grad_output = targets::grad_output(self.options.grad_output.as_ref(), &rows, reduction)?;
        let loss = with_elements!(self.logits.dtype, gradient.dtype, E, O => {
            let logits = self.logits.view::<E>();
            let hessian = hessian.map(|hessian| hessian.view::<O>());
            let derivatives = Derivatives { gradient: gradient.view::<O>(), hessian, grad_output };
            detached(py, |check| {
                let problem = problem.read(check)?;
                // SAFETY: `Logits::result` and `Logits::two_results` made or checked the outputs.
                unsafe { driver(&logits, &problem, reduction, denominator, column, Some(&derivatives), check) }
            })
        })?;
        arrays::finish(py, loss, losses)
    }
}

/// Integers are classes, floats of the logits' shape are probabilities.
fn either_targets<'py>(
    targets: &Bound<'py, PyUntypedArray>,
    logits: &Logits<'py>,
    scalars: &Scalars,
) -> PyResult<UnreadTargets> {
    let descriptor = targets.dtype();
    if matches!(descriptor.kind(), b'i' | b'u') {
        return Ok(UnreadTargets::Classes(targets::labels(targets, logits, scalars)?));
    }
    let kind = number_kind(&descriptor).filter(|_| descriptor.kind() != b'b');
    let Some(kind) = kind else {
        let expected = "expected an integer dtype (class indices) or a floating dtype (probabilities)";
        return Err(Error::Type(format!("targets have dtype {descriptor}; {expected}")).into());
    };
    let (shape, expected) = (targets.shape(), logits.array.shape());
    if shape == expected {
        return Ok(UnreadTargets::Probabilities(logits.numbers_by_row(targets, kind)));
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
