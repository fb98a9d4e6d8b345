//! `cross_entropy_grad`.

use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::arrays::{Logits, as_array, view};
use super::options::{Keywords, Scalars};
use super::targets::{self, target_array};
use super::{detached, guard};
use crate::loss::Derivatives;
use crate::loss::labels::Labels;
use crate::loss::shard::{Shard, shard_gradient};
use crate::loss::targets::{Problem, Targets};

/// The gradient of a shard; of that its first class, and the number of all classes.
#[pyfunction]
pub(super) fn cross_entropy_grad<'py>(
    logits: &Bound<'py, PyAny>,
    targets: &Bound<'py, PyAny>,
    lse: &Bound<'py, PyAny>,
    shard: (usize, usize),
    keywords: &Keywords,
    options: &Bound<'py, PyDict>,
) -> PyResult<Bound<'py, PyAny>> {
    guard(|| {
        let (py, (offset, classes)) = (logits.py(), shard);
        let options = keywords.options(options)?;
        let Scalars { axis, reduction, denominator, ignore_index, label_smoothing, z_loss, .. } = options.scalars;
        let (targets, lse) = (target_array(targets)?, as_array(lse, "lse")?);
        let logits = Logits::new(as_array(logits, "logits")?, axis)?;
        let rows = logits.row_shape();
        targets::check_labels(&targets, &logits, axis, false)?;
        targets::check_weights(&lse, "lse", &rows, "row")?;
        if let Some(weight) = &options.weight {
            targets::check_weights(weight, "weight", &[classes], "class")?;
        }
        if let Some(weight) = &options.sample_weight {
            targets::check_weights(weight, "sample_weight", &rows, "row")?;
        }
        let grad_output = targets::grad_output(options.grad_output.as_ref(), &rows, reduction)?;
        let inputs: Vec<_> = [("targets", &targets), ("lse", &lse)].into_iter().chain(options.arrays()).collect();
        let mut output = logits.result(options.out.as_ref(), &inputs)?;
        let given = output.given;
        let (weight, sample_weight) = (options.weight.as_ref(), options.sample_weight.as_ref());
        let arrays = [Some(&targets), Some(&lse), weight, sample_weight];
        let [Some(target_view), Some(lse), weight, sample_weight] =
            arrays.map(|array| array.map(|array| view(array, None)))
        else {
            unreachable!("targets and lse are given")
        };
        let (transform, view_of_logits) = (options.scalars.transform(), logits.view());
        let mut derivatives = Derivatives { gradient: output.view(), hessian: None, grad_output, given };
        detached(py, |check| {
            let labels = Labels::read("targets", &target_view, classes, ignore_index, check)?;
            let problem = Problem {
                transform,
                weight: weight.map(|weight| weight.copy("weight", check)).transpose()?,
                sample_weight: sample_weight.map(|weight| weight.copy("sample_weight", check)).transpose()?,
                label_smoothing,
                z_loss,
                ..Problem::new(Targets::Classes(labels))
            };
            let shard = Shard { problem, classes, offset, log_sum_exps: lse.copy("lse", check)? };
            shard_gradient(&view_of_logits, &shard, reduction, denominator, &mut derivatives, check)
        })?;
        drop(derivatives);
        Ok(output.result)
    })
}
