"""Binary cross-entropy: of yes-or-no questions, each with a logit of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, overload

from numpy.typing import ArrayLike

from . import _xent_rs
from ._options import (
    BinaryCrossEntropyGradientOptions,
    BinaryCrossEntropyHessianOptions,
    BinaryCrossEntropyOptions,
    BinaryHessianOptions,
    DerivativesOptions,
    Floats,
    GradientOptions,
    MeanOfElementsOptions,
    Options,
    Real,
    Reduction,
)

if TYPE_CHECKING:
    from typing_extensions import Unpack


_LOSS = Options("binary_cross_entropy", BinaryCrossEntropyOptions, MeanOfElementsOptions)


@overload
def binary_cross_entropy(
    logits: ArrayLike,
    targets: ArrayLike,
    *,
    reduction: Literal["mean", "sum"] = ...,
    denominator: Real | None = ...,
    **options: Unpack[BinaryCrossEntropyOptions],
) -> float: ...
@overload
def binary_cross_entropy(
    logits: ArrayLike,
    targets: ArrayLike,
    *,
    reduction: Literal["none"],
    denominator: None = ...,
    **options: Unpack[BinaryCrossEntropyOptions],
) -> Floats: ...
@overload
def binary_cross_entropy(
    logits: ArrayLike,
    targets: ArrayLike,
    *,
    reduction: Reduction,
    denominator: Real | None = ...,
    **options: Unpack[BinaryCrossEntropyOptions],
) -> float | Floats: ...
@_LOSS.describe
def binary_cross_entropy(logits: ArrayLike, targets: ArrayLike, **options: Any) -> float | Floats:
    """Cross-entropy of the sigmoid of each logit with its target, for n-hot and multi-label targets, in nats.

    Element by element, with logit x, target t, weight w, positive weight P and label smoothing ε, it is
    ::

        w·[(1 - t')·x + (1 + (P - 1)·t')·softplus(-x)],    t' = (1 - ε)·t + ε/2,

    which is ``-w·[P·t'·log(sigmoid(x)) + (1 - t')·log(1 - sigmoid(x))]`` without its overflows, for
    softplus(x) is ``log(1 + exp x)``. With `focal_gamma` it is multiplied by ``(1 - p)**focal_gamma``, where
    p is ``t'·sigmoid(x) + (1 - t')·sigmoid(-x)``, the probability of the target [2]_.

    Parameters
    ----------
    logits : array_like of float16, bfloat16 (``ml_dtypes``), float32 or float64
        The logits of yes: any shape, strides, alignment and byte order. 16-bit logits compute in float32.
    targets : array_like of bool, of any integer dtype or of any dtype that logits can have
        The shape of `logits`; 0 is no, 1 is yes, and between them are probabilities. Floats are taken as
        they are, also outside of these; integers that are neither 0, 1 nor `ignore_index` are refused.
    **options
        Those of `BinaryCrossEntropyOptions` and `MeanOfElementsOptions` (`xent_rs._options`).

    Returns
    -------
    float or ndarray
        For 'mean' and 'sum' a float, accumulated in float64: NaN if the mean has no elements. For 'none' an
        array of the shape of `logits`, float32, or float64 for float64 logits.

    Raises
    ------
    TypeError
        For another dtype of logits, targets or weights, for masked arrays, and for tensors that are not in
        CPU memory.
    ValueError
        For targets of another shape, integers among them that are neither 0, 1 nor `ignore_index`, weights
        that do not broadcast, or an option out of its range.

    See Also
    --------
    binary_cross_entropy_with_grad : The loss and its gradient.
    binary_cross_entropy_with_grad_hess : And the second derivative.
    cross_entropy : For classes that exclude each other.
    xent_rs.probability.binary_cross_entropy : The same of probabilities rather than logits.

    Notes
    -----
    Infinite logits are exact: no costs 0 at ``-inf`` and yes costs infinity. A NaN stays in its element.

    It is ``torch.nn.functional.binary_cross_entropy_with_logits``, whose mean counts ignored elements because
    it knows of none; ``keras.losses.BinaryCrossentropy(from_logits=True)``;
    ``optax.sigmoid_binary_cross_entropy``, which is each element's loss; and, on probabilities and without
    logits, ``sklearn.metrics.log_loss`` [1]_.

    References
    ----------
    .. [1] C. M. Bishop, "Pattern Recognition and Machine Learning", Springer, 2006, equation 4.90.
    .. [2] T.-Y. Lin, P. Goyal, R. Girshick, K. He, P. Dollár, "Focal loss for dense object detection",
       ICCV 2017.

    Examples
    --------
    Two images with three labels each:

    >>> import numpy as np, xent_rs
    >>> logits = np.array([[2.0, -1.0, 0.0], [-3.0, 4.0, 1.0]])
    >>> targets = [[1, 0, 1], [0, 1, 1]]
    >>> xent_rs.binary_cross_entropy(logits, targets, reduction="none").round(4)
    array([[0.1269, 0.3133, 0.6931],
           [0.0486, 0.0181, 0.3133]])
    >>> round(xent_rs.binary_cross_entropy(logits, targets, pos_weight=[1, 1, 3]), 6)
    0.587692
    """
    return _xent_rs.binary_cross_entropy(logits, targets, _LOSS, options)


_GRADIENT = Options(
    "binary_cross_entropy_with_grad", BinaryCrossEntropyOptions, MeanOfElementsOptions, GradientOptions
)


@overload
def binary_cross_entropy_with_grad(
    logits: ArrayLike,
    targets: ArrayLike,
    *,
    reduction: Literal["mean", "sum"] = ...,
    denominator: Real | None = ...,
    **options: Unpack[BinaryCrossEntropyGradientOptions],
) -> tuple[float, Floats]: ...
@overload
def binary_cross_entropy_with_grad(
    logits: ArrayLike,
    targets: ArrayLike,
    *,
    reduction: Literal["none"],
    denominator: None = ...,
    **options: Unpack[BinaryCrossEntropyGradientOptions],
) -> tuple[Floats, Floats]: ...
@overload
def binary_cross_entropy_with_grad(
    logits: ArrayLike,
    targets: ArrayLike,
    *,
    reduction: Reduction,
    denominator: Real | None = ...,
    **options: Unpack[BinaryCrossEntropyGradientOptions],
) -> tuple[float | Floats, Floats]: ...
@_GRADIENT.describe
def binary_cross_entropy_with_grad(
    logits: ArrayLike, targets: ArrayLike, **options: Any
) -> tuple[float | Floats, Floats]:
    """`binary_cross_entropy` and its gradient with respect to the logits.

    The gradient of an element's loss is ``w·[(1 + (P - 1)·t')·sigmoid(x) - P·t']``, which without options is
    ``sigmoid(x) - t``; that of the mean is divided by what the mean divides by.

    Parameters
    ----------
    logits, targets : array_like
        As for `binary_cross_entropy`.
    **options
        Those of `binary_cross_entropy` and `GradientOptions` (`xent_rs._options`).

    Returns
    -------
    loss : float or ndarray
        As from `binary_cross_entropy`, to the bit.
    grad : ndarray
        `out`, or a new array of the logits' shape, dtype and memory layout. An ignored element, or one of
        weight 0, has 0.

    Raises
    ------
    TypeError, ValueError
        As `binary_cross_entropy`; for `out` and `grad_output` as `cross_entropy_with_grad`.

    Notes
    -----
    Elsewhere the gradient comes from automatic differentiation: ``loss.backward()`` in PyTorch,
    ``jax.value_and_grad`` for optax, ``tf.GradientTape`` for Keras. ``HalfBinomialLoss`` in scikit-learn has
    ``loss_gradient``.

    References
    ----------
    .. [1] C. M. Bishop, "Pattern Recognition and Machine Learning", Springer, 2006, equation 4.91.

    Examples
    --------
    >>> import numpy as np, xent_rs
    >>> loss, grad = xent_rs.binary_cross_entropy_with_grad(np.array([2.0, -1.0]), [1, 0], reduction="sum")
    >>> round(loss, 6), grad.round(4)
    (0.44019, array([-0.1192,  0.2689]))
    """
    return _xent_rs.binary_cross_entropy_with_grad(logits, targets, _GRADIENT, options)


_HESSIAN = Options(
    "binary_cross_entropy_with_grad_hess",
    BinaryHessianOptions,
    MeanOfElementsOptions,
    DerivativesOptions,
)


@overload
def binary_cross_entropy_with_grad_hess(
    logits: ArrayLike,
    targets: ArrayLike,
    *,
    reduction: Literal["mean", "sum"] = ...,
    denominator: Real | None = ...,
    **options: Unpack[BinaryCrossEntropyHessianOptions],
) -> tuple[float, Floats, Floats]: ...
@overload
def binary_cross_entropy_with_grad_hess(
    logits: ArrayLike,
    targets: ArrayLike,
    *,
    reduction: Literal["none"],
    denominator: None = ...,
    **options: Unpack[BinaryCrossEntropyHessianOptions],
) -> tuple[Floats, Floats, Floats]: ...
@overload
def binary_cross_entropy_with_grad_hess(
    logits: ArrayLike,
    targets: ArrayLike,
    *,
    reduction: Reduction,
    denominator: Real | None = ...,
    **options: Unpack[BinaryCrossEntropyHessianOptions],
) -> tuple[float | Floats, Floats, Floats]: ...
@_HESSIAN.describe
def binary_cross_entropy_with_grad_hess(
    logits: ArrayLike, targets: ArrayLike, **options: Any
) -> tuple[float | Floats, Floats, Floats]:
    """`binary_cross_entropy`, its gradient and its second derivative, as gradient boosting wants them.

    The second derivative of an element's loss is ``w·[1 + (P - 1)·t']·p·(1 - p)`` with ``p = sigmoid(x)``,
    which without options is ``p·(1 - p)``; that of the mean is divided by what the mean divides by.

    Parameters
    ----------
    logits, targets : array_like
        As for `binary_cross_entropy`.
    **options
        Those of `binary_cross_entropy` and `DerivativesOptions` (`xent_rs._options`).

    Returns
    -------
    loss : float or ndarray
        As from `binary_cross_entropy`, to the bit.
    grad : ndarray
        As from `binary_cross_entropy_with_grad`, to the bit.
    hess : ndarray
        `hess_out`, or a new array of the logits' shape, dtype and memory layout; not negative where the
        weights are not. An ignored element, or one of weight 0, has 0.

    Raises
    ------
    TypeError, ValueError
        As `binary_cross_entropy`; for `out` and `hess_out` as `cross_entropy_with_grad_hess`.

    Notes
    -----
    With ``reduction='sum'`` it is what XGBoost's ``binary:logistic`` and LightGBM's ``binary`` use, and the
    second result of ``gradient_hessian`` of scikit-learn's ``HalfBinomialLoss``. PyTorch has it as the
    diagonal of ``torch.func.hessian``, and JAX, for optax, as that of ``jax.hessian``, both from the square
    of the number of entries; Keras has no function for it.

    References
    ----------
    .. [1] J. Friedman, T. Hastie, R. Tibshirani, "Additive logistic regression: a statistical view of
       boosting", Annals of Statistics 28(2), 2000, section 3.

    Examples
    --------
    >>> import numpy as np, xent_rs
    >>> logits = np.log([0.25, 1.0, 4.0])
    >>> _, grad, hess = xent_rs.binary_cross_entropy_with_grad_hess(logits, [0, 0, 1], reduction="sum")
    >>> grad.round(6), hess.round(6)
    (array([ 0.2,  0.5, -0.2]), array([0.16, 0.25, 0.16]))
    """
    return _xent_rs.binary_cross_entropy_with_grad_hess(logits, targets, _HESSIAN, options)
