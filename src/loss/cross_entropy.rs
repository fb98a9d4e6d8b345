//! Cross-entropy of softmax(logits) with class-index targets, and its gradient.

use fearless_simd::Simd;

use super::{Check, Chunks, labels::Labels, stores};
use crate::element::Element;
use crate::error::Result;
use crate::parallel::map_chunks;
use crate::row::{Stores, Target, Temperature, fill};
use crate::simd::{self, Kernel};
use crate::view::{Column, View};

/// What becomes of the losses of the rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reduction {
    /// Each row's loss is a result.
    None,
    /// Their sum over the number of rows that are not ignored.
    Mean,
    /// Their sum.
    Sum,
}

/// The options of the loss.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// The divisor of the logits.
    pub temperature: Temperature,
    /// What becomes of the losses of the rows.
    pub reduction: Reduction,
    /// Replaces the divisor of the mean.
    pub denominator: Option<f64>,
}

/// By what the gradient is multiplied.
#[derive(Clone, Debug)]
pub enum GradOutput {
    /// One number for all rows.
    Scalar(f64),
    /// One number a row.
    Rows(Vec<f64>),
}

/// Where the gradient goes.
#[derive(Clone, Debug)]
pub struct Gradient<O> {
    /// An output of the logits' shape: the logits themselves or apart from them.
    pub out: View<O>,
    /// By what it is multiplied.
    pub grad_output: GradOutput,
}

/// The reduced loss (the sum, if there is no reduction), with each row's loss and the gradient written where asked.
///
/// An ignored row has loss 0 and gradient 0 and is not read.
///
/// # Errors
/// What `check` returned.
pub fn cross_entropy<E: Element, O: Element<Real = E::Real>>(
    logits: &View<E>,
    labels: &Labels,
    options: Options,
    losses: Option<Column>,
    gradient: Option<&Gradient<O>>,
    check: Check,
) -> Result<f64> {
    assert_eq!(logits.rows(), labels.rows());
    let divisor = match options.reduction {
        Reduction::Mean => options.denominator.unwrap_or(labels.counted() as f64),
        Reduction::None | Reduction::Sum => 1.0,
    };
    if let Some(gradient) = gradient {
        assert_eq!((logits.rows(), logits.classes()), (gradient.out.rows(), gradient.out.classes()));
        if let GradOutput::Rows(rows) = &gradient.grad_output {
            assert_eq!(logits.rows(), rows.len());
        }
    }
    let chunks = Chunks::new(logits.rows(), logits.classes());
    let traffic = size_of::<E>() + gradient.map_or(0, |_| 2 * size_of::<O>());
    let stores = gradient.map_or(Stores::Cached, |gradient| stores(logits, &gradient.out));
    let level = simd::level();
    let sums = map_chunks(chunks.count(), chunks.bytes(logits.classes(), traffic), check, |chunk| {
        level.run(Rows { range: chunks.rows_of(chunk), logits, labels, options, divisor, losses, gradient, stores })
    })?;
    Ok(sums.into_iter().sum::<f64>() / divisor)
}

/// The work on a chunk of rows.
struct Rows<'a, E, O> {
    range: std::ops::Range<usize>,
    logits: &'a View<E>,
    labels: &'a Labels,
    options: Options,
    divisor: f64,
    losses: Option<Column>,
    gradient: Option<&'a Gradient<O>>,
    stores: Stores,
}

impl<E: Element, O: Element<Real = E::Real>> Kernel for Rows<'_, E, O> {
    type Output = f64;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> f64 {
        let temperature = self.options.temperature;
        let mut sum = 0.0;
        for index in self.range {
            let mut loss = 0.0;
            match self.labels.class(index) {
                Some(class) => {
                    let row = self.logits.row(index);
                    let class_loss = Target::Class(class).loss(simd, row, temperature);
                    loss = class_loss.loss;
                    if let Some(gradient) = self.gradient {
                        let scale = match &gradient.grad_output {
                            GradOutput::Scalar(scale) => *scale,
                            GradOutput::Rows(rows) => rows[index],
                        };
                        let out = gradient.out.row(index);
                        // SAFETY: `out` is an output by its construction, its rows are the logits' rows or apart
                        // from them, and this chunk alone works on its rows.
                        unsafe { class_loss.gradient(simd, row, out, scale / self.divisor, temperature, self.stores) }
                    }
                }
                None => {
                    if let Some(gradient) = self.gradient {
                        // SAFETY: as above.
                        unsafe { fill(gradient.out.row(index), O::from_f64(0.0)) }
                    }
                }
            }
            if let Some(losses) = self.losses {
                // SAFETY: this chunk alone works on its rows.
                unsafe { losses.set(index, loss) }
            }
            sum += loss;
        }
        if self.stores == Stores::Streaming {
            simd::store_fence();
        }
        sum
    }
}
