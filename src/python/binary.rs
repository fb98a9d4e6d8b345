//! `binary_cross_entropy` and its gradient.

use numpy::{PyUntypedArray, PyUntypedArrayMethods};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::arrays::{Logits, as_array, check_numbers, dtype_of, view};
use super::losses::{LossAndDerivatives, LossAndGradient, LossCall};
use super::options::{Keywords, Options, Scalars};
use super::targets;
use super::{detached, guard};
use crate::array::ArrayMut;
use crate::error::Error;
use crate::loss::Derivatives;
use crate::loss::binary::{Binary, binary_cross_entropy as driver};

#[pyfunction]
pub(super) fn binary_cross_entropy<'py>(
    logits: &Bound<'py, PyAny>,
    targets: &Bound<'py, PyAny>,
    keywords: &Keywords,
    options: &Bound<'py, PyDict>,
) -> PyResult<Bound<'py, PyAny>> {
    guard(|| Call::new(logits, targets, keywords.options(options)?)?.loss())
}

#[pyfunction]
pub(super) fn binary_cross_entropy_with_grad<'py>(
    logits: &Bound<'py, PyAny>,
    targets: &Bound<'py, PyAny>,
    keywords: &Keywords,
    options: &Bound<'py, PyDict>,
) -> PyResult<LossAndGradient<'py>> {
    guard(|| Call::new(logits, targets, keywords.options(options)?)?.loss_and_gradient())
}

#[pyfunction]
pub(super) fn binary_cross_entropy_with_grad_hess<'py>(
    logits: &Bound<'py, PyAny>,
    targets: &Bound<'py, PyAny>,
    keywords: &Keywords,
    options: &Bound<'py, PyDict>,
) -> PyResult<LossAndDerivatives<'py>> {
    guard(|| Call::new(logits, targets, keywords.options(options)?)?.loss_and_derivatives())
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
}

impl<'py> LossCall<'py> for Call<'py> {
    fn logits(&self) -> &Logits<'py> {
        &self.logits
    }

    fn options(&self) -> &Options<'py> {
        &self.options
    }

    fn targets(&self) -> (&'static str, &Bound<'py, PyUntypedArray>) {
        ("targets", &self.targets)
    }

    fn drive(&self, losses: Option<&mut ArrayMut>, derivatives: Option<&mut Derivatives>) -> PyResult<f64> {
        let Scalars { reduction, denominator, ignore_index, label_smoothing, focal_gamma, .. } = self.options.scalars;
        let problem = Binary {
            logits: self.logits.view(),
            targets: view(&self.targets, None),
            weight: self.options.weight.as_ref().map(|array| view(array, None)),
            pos_weight: self.options.pos_weight.as_ref().map(|array| view(array, None)),
            ignore_index,
            label_smoothing,
            focal_gamma,
        };
        detached(self.targets.py(), |check| driver(&problem, reduction, denominator, losses, derivatives, check))
    }
}
