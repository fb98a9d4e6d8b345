//! The softmax losses, cross-entropy and divergence, and their gradients.

use super::listed::Batch;
use super::rows::Rows;
use super::targets::Problem;
use super::{Check, Chunks, Derivatives, Found, Reduction, mean, store_policy};
use crate::array::{Array, ArrayMut};
use crate::error::Result;
use crate::rows::StorePolicy;
use crate::simd;

/// The reduced loss (the sum, if there is no reduction), with each row's loss and the derivatives written where asked.
///
/// An ignored row has loss 0 and derivatives 0, whatever it holds. `denominator` replaces the divisor of the mean.
///
/// # Errors
/// [`crate::error::Error::Value`] for a probability that is none in a row that counts; nothing of the caller's was written
/// then. What `check` returned.
///
/// # Panics
/// If the arrays do not fit.
pub fn cross_entropy(
    logits: &Array,
    problem: &Problem,
    reduction: Reduction,
    denominator: Option<f64>,
    losses: Option<&mut ArrayMut>,
    derivatives: Option<&mut Derivatives>,
    check: Check,
) -> Result<f64> {
    let (rows, classes) = (logits.rows(), logits.classes());
    problem.assert_fits(rows, classes);
    let divisor = reduction.divisor(denominator, || problem.weight_sum(rows));
    let weight_sum = problem.share_weight_sum();
    let chunks = Chunks::of_rows(logits);
    if derivatives.as_ref().is_some_and(|derivatives| derivatives.given) {
        problem.look_at_all(&chunks, classes, check)?;
    }
    let out_dtype = derivatives.as_ref().map_or(logits.dtype(), |derivatives| derivatives.gradient.dtype());
    let (gradient, hessian, grad_output) =
        derivatives.map_or((None, None, None), |derivatives| derivatives.open([rows, classes], rows, out_dtype));
    let outputs = usize::from(gradient.is_some()) + usize::from(hessian.is_some());
    let traffic = logits.dtype().size() + outputs * 2 * out_dtype.size();
    let store = [gradient.as_deref(), hessian.as_deref()]
        .map(|out| out.map_or(StorePolicy::Cached, |out| store_policy(logits, out)));
    let gradient_last = gradient.as_ref().is_some_and(|gradient| gradient.begins_with(logits));
    let losses = losses.map(|out| out.parts(chunks.ranges()));
    let gradient = gradient.map(|out| out.parts(chunks.ranges()));
    let hessian = hessian.map(|out| out.parts(chunks.ranges()));
    let level = simd::level();
    let sums = chunks.map(traffic, check, |chunk| {
        level.run(Rows {
            range: chunks.rows_of(chunk),
            logits,
            problem,
            divisor,
            weight_sum,
            losses: losses.as_ref().map(|parts| parts.take(chunk)),
            gradient: gradient.as_ref().map(|parts| parts.take(chunk)),
            hessian: hessian.as_ref().map(|parts| parts.take(chunk)),
            grad_output,
            gradient_last,
            store,
            listed: Batch::default(),
        })
    })?;
    Ok(mean(problem.checked(sums.into_iter().collect::<Found<_>>())?, divisor))
}

#[cfg(test)]
mod tests {
    use super::super::GradOutput;
    use super::*;
    use crate::array::Layout;
    use crate::dtype::Dtype;
    use crate::loss::labels::Labels;
    use crate::loss::targets::Targets;
    use crate::row::Transform;

    /// Where `rows` rows of `classes` classes lie, the classes side by side or the rows, and their class axis.
    fn strides(rows: usize, classes: usize, across: bool) -> [isize; 2] {
        if across { [8, 8 * rows as isize] } else { [8 * classes as isize, 8] }
    }

    /// By rows, by tiles that are transposed, by tiles in place, with rows left over, in place and apart.
    #[test]
    fn rows_and_tiles_agree_with_the_formula() {
        let rows = 37;
        for (classes, across) in
            [(1, false), (2, false), (10, false), (127, true), (128, false), (128, true), (300, true)]
        {
            let logit = |row: usize, class: usize| ((row * 31 + class * 17) % 23) as f64 / 3.0 - 4.0;
            let place = |row: usize, class: usize| if across { class * rows + row } else { row * classes + class };
            let mut logits = vec![0.0; rows * classes];
            for row in 0..rows {
                for class in 0..classes {
                    logits[place(row, class)] = logit(row, class);
                }
            }
            let targets: Vec<i64> =
                (0..rows).map(|row| if row % 7 == 3 { -100 } else { (row * 5 % classes) as i64 }).collect();
            let labels = Labels::read("targets", &Array::of(&targets, 1), classes, Some(-100), &|| Ok(())).unwrap();
            let weights: Vec<f64> = (0..classes).map(|class| 0.5 + (class % 3) as f64).collect();
            for (softcap, weight, smoothing) in [
                (None, false, 0.0),
                (Some(3.0), false, 0.0),
                (None, true, 0.2),
                (Some(3.0), true, 0.2),
                (None, false, 0.2),
            ] {
                let problem = Problem {
                    transform: Transform::new(0.5, softcap),
                    weight: weight.then(|| weights.clone()),
                    label_smoothing: smoothing,
                    ..Problem::new(Targets::Classes(labels.clone()))
                };
                let case = format!("C={classes} {across} {softcap:?} {weight} {smoothing}");
                let capped = |x: f64| softcap.map_or(x, |cap: f64| cap * (x / cap).tanh());
                let slope = |x: f64| softcap.map_or(1.0, |cap: f64| 1.0 - (x / cap).tanh().powi(2)) / 0.5;
                for in_place in [false, true] {
                    let (mut input, mut output) = (logits.clone(), vec![f64::NAN; rows * classes]);
                    let (shape, strides) = ([rows, classes], strides(rows, classes, across));
                    let layout = |values: &mut Vec<f64>| {
                        let base = values.as_mut_ptr().cast();
                        Layout { base, dtype: Dtype::F64, swapped: false, shape: &shape, strides: &strides }
                    };
                    let source = layout(&mut input);
                    let out = if in_place { source } else { layout(&mut output) };
                    // SAFETY: the layouts are those of vectors of this test; the gradient is written over the logits or to
                    // a vector of its own.
                    let (source, gradient) = unsafe { (Array::new(&source, Some(1)), ArrayMut::new(&out, Some(1))) };
                    let mut derivatives =
                        Derivatives { gradient, hessian: None, grad_output: GradOutput::Scalar(3.0), given: true };
                    let derivatives = Some(&mut derivatives);
                    let loss =
                        cross_entropy(&source, &problem, Reduction::Sum, None, None, derivatives, &|| Ok(())).unwrap();
                    let found = if in_place { &input } else { &output };
                    let mut expected = 0.0;
                    for (row, &target) in targets.iter().enumerate() {
                        let z: Vec<f64> = (0..classes).map(|class| capped(logit(row, class)) / 0.5).collect();
                        let log_sum = z.iter().map(|z| z.exp()).sum::<f64>().ln();
                        let class = usize::try_from(target).ok();
                        let share = |other: usize| {
                            let point = if class == Some(other) { 1.0 - smoothing } else { 0.0 };
                            (point + smoothing / classes as f64) * if weight { weights[other] } else { 1.0 }
                        };
                        let mass: f64 = (0..classes).map(share).sum();
                        for (other, z) in z.iter().enumerate() {
                            let counts = f64::from(class.is_some());
                            expected += counts * share(other) * (log_sum - z);
                            let gradient = mass * (z - log_sum).exp() - share(other);
                            let expected = counts * 3.0 * gradient * slope(logit(row, other));
                            let found = found[place(row, other)];
                            assert!((found - expected).abs() < 1e-12, "{case} row {row}: {found} {expected}");
                        }
                    }
                    assert!((loss - expected).abs() < 1e-10, "{case}: {loss} {expected}");
                }
            }
        }
    }
}
