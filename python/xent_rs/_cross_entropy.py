"""Softmax cross-entropy, its gradient, and the diagonal of its Hessian."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, overload

from numpy.typing import ArrayLike

from . import _xent_rs
from ._options import (
    CrossEntropyGradientOptions,
    CrossEntropyHessianOptions,
    CrossEntropyOptions,
    DerivativesOptions,
    Floats,
    GradientOptions,
    HessianOptions,
    MeanOptions,
    Options,
    Real,
    Reduction,
)
from ._sparse_targets import SparseTargets

if TYPE_CHECKING:
    from typing_extensions import Unpack

_LOSS = Options("cross_entropy", CrossEntropyOptions, MeanOptions)


@overload
def cross_entropy(
    logits: ArrayLike,
    targets: ArrayLike | SparseTargets,
    *,
    reduction: Literal["mean", "sum"] = ...,
    denominator: Real | None = ...,
    **options: Unpack[CrossEntropyOptions],
) -> float: ...
@overload
def cross_entropy(
    logits: ArrayLike,
    targets: ArrayLike | SparseTargets,
    *,
    reduction: Literal["none"],
    denominator: None = ...,
    **options: Unpack[CrossEntropyOptions],
) -> Floats: ...
@overload
def cross_entropy(
    logits: ArrayLike,
    targets: ArrayLike | SparseTargets,
    *,
    reduction: Reduction,
    denominator: Real | None = ...,
    **options: Unpack[CrossEntropyOptions],
) -> float | Floats: ...
@_LOSS.describe
def cross_entropy(logits: ArrayLike, targets: ArrayLike | SparseTargets, **options: Any) -> float | Floats:
    """Cross-entropy of the softmax of logits with targets, classes or probabilities, in nats.

    With C classes, class weights w, a sample weight s and label smoothing ε, a row's loss is
    ::

        s·[(1 - ε)·w[y]·(lse - z[y]) + ε/C·Σ w·(lse - z) + z_loss·lse²]     for the class y,
        s·[Σ w·t'·(lse - z) + z_loss·lse²],  t' = (1 - ε)·t + ε/C           for probabilities t,

    where lse is ``log Σ exp z``, and z is ``logits / temperature``, with a softcap ``softcap·tanh(logits /
    softcap) / temperature``. Without options it is ``lse - z[y]``, the negative log-probability of y; with p
    that probability, `focal_gamma` and `poly_epsilon` make of it
    ::

        (1 - p)**focal_gamma · (lse - z[y]) + poly_epsilon·(1 - p).

    The logits are read once, in place; nothing of their size is allocated.

    Parameters
    ----------
    logits : array_like of float16, bfloat16 (``ml_dtypes``), float32 or float64
        Unnormalised log-probabilities: any number of axes, the classes along `axis`. Any strides, alignment
        and byte order. What is not an array is converted with `numpy.asarray`. 16-bit logits compute in
        float32. ``-inf`` marks a class that is not there.
    targets : array_like of any integer dtype, or of any dtype that logits can have, or SparseTargets
        Integers are the class of each row: the shape of `logits` without `axis`. Floating targets of the
        shape of `logits` are probabilities: soft labels, or one-hot; they need not sum to 1, but none is
        negative or NaN. `SparseTargets` list the probabilities of a few classes of each row; all options
        apply as to those of all classes, and rows that list none do not count.
    **options
        Those of `CrossEntropyOptions` and `MeanOptions` (`xent_rs._options`).

    Returns
    -------
    float or ndarray
        For 'mean' and 'sum' a float, accumulated in float64: NaN if the divisor of the mean is 0, as it is
        when no row counts. For 'none' an array of the shape of `logits` without `axis`, float32, or float64
        for float64 logits.

    Raises
    ------
    TypeError
        For another dtype of logits, targets or weights, for masked arrays, and for tensors that are not in
        CPU memory.
    ValueError
        For shapes that do not match, an axis out of range, no classes, an option out of its range, a
        probability below 0 or NaN in a row whose weight is not 0, `focal_gamma` or `poly_epsilon` with
        probabilities or label smoothing, and `SparseTargets` with ``rest='tail'``.
    IndexError
        For a target that is neither a class nor `ignore_index`, or, of `SparseTargets`, -1.

    See Also
    --------
    cross_entropy_with_grad : The loss and its gradient.
    binary_cross_entropy : For targets that do not exclude each other.
    xent_rs.probability.cross_entropy : The same of probabilities rather than logits.

    Notes
    -----
    The error of a row's loss is at most u·(ln C + 2) and half an ulp, with u = 2⁻²⁴ (2⁻⁵³ for float64) and C
    classes, and relative accuracy is kept where the target leads, down to losses of 1e-57 (in a mean; an
    array of float32 ends before). The result has the same bits for any number of threads; another memory
    layout of the same numbers may change the last one.

    A target on a ``-inf`` class costs infinity, and so does such a class with `label_smoothing`, which makes
    every class a target; where its weight or probability is 0 it costs nothing. A NaN or ``+inf`` makes its
    row NaN, and so does a row of only ``-inf``.

    It is ``torch.nn.functional.cross_entropy``, with the classes last, any integer targets and the same mean;
    ``keras.losses.SparseCategoricalCrossentropy`` and ``CategoricalCrossentropy`` with ``from_logits=True``;
    ``optax.softmax_cross_entropy_with_integer_labels`` and ``optax.softmax_cross_entropy``; and, on
    probabilities and without logits, ``sklearn.metrics.log_loss``. The formula is that of [1]_, label
    smoothing of [2]_, the z-loss of [3]_, the softcap of [4]_, the focal loss of [5]_ and its neighbour of
    [6]_.

    References
    ----------
    .. [1] I. Goodfellow, Y. Bengio, A. Courville, "Deep Learning", MIT Press, 2016, section 6.2.2.
    .. [2] C. Szegedy et al., "Rethinking the Inception architecture for computer vision", CVPR 2016,
       section 7.
    .. [3] A. Chowdhery et al., "PaLM: scaling language modeling with pathways", JMLR 24, 2023, section 5.
    .. [4] Gemma Team, "Gemma 2: improving open language models at a practical size", arXiv:2408.00118, 2024,
       section 2.
    .. [5] T.-Y. Lin, P. Goyal, R. Girshick, K. He, P. Dollár, "Focal loss for dense object detection",
       ICCV 2017.
    .. [6] Z. Leng et al., "PolyLoss: a polynomial expansion perspective of classification loss functions",
       ICLR 2022.

    Examples
    --------
    >>> import numpy as np, xent_rs
    >>> logits = np.array([[2.0, 1.0, 0.1], [0.0, 0.0, 0.0]], dtype=np.float32)
    >>> xent_rs.cross_entropy(logits, [0, 2], reduction="none").round(4)
    array([0.417 , 1.0986], dtype=float32)
    >>> round(xent_rs.cross_entropy(logits, [0, -100]), 6)
    0.41703

    Probabilities as targets; a class that counts twice:

    >>> round(xent_rs.cross_entropy(logits, [[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]]), 6)
    1.007821
    >>> round(xent_rs.cross_entropy(logits, [0, 2], weight=[2, 1, 1]), 6)
    0.644224
    """
    return _xent_rs.cross_entropy(logits, targets, _LOSS, options)


_GRADIENT = Options("cross_entropy_with_grad", CrossEntropyOptions, MeanOptions, GradientOptions)


@overload
def cross_entropy_with_grad(
    logits: ArrayLike,
    targets: ArrayLike | SparseTargets,
    *,
    reduction: Literal["mean", "sum"] = ...,
    denominator: Real | None = ...,
    **options: Unpack[CrossEntropyGradientOptions],
) -> tuple[float, Floats]: ...
@overload
def cross_entropy_with_grad(
    logits: ArrayLike,
    targets: ArrayLike | SparseTargets,
    *,
    reduction: Literal["none"],
    denominator: None = ...,
    **options: Unpack[CrossEntropyGradientOptions],
) -> tuple[Floats, Floats]: ...
@overload
def cross_entropy_with_grad(
    logits: ArrayLike,
    targets: ArrayLike | SparseTargets,
    *,
    reduction: Reduction,
    denominator: Real | None = ...,
    **options: Unpack[CrossEntropyGradientOptions],
) -> tuple[float | Floats, Floats]: ...
@_GRADIENT.describe
def cross_entropy_with_grad(
    logits: ArrayLike, targets: ArrayLike | SparseTargets, **options: Any
) -> tuple[float | Floats, Floats]:
    r"""`cross_entropy` and its gradient with respect to the logits.

    The gradient of a row's loss is :math:`(\mathrm{softmax}(x / T)_c - [c = y]) / T` for the class y; in
    general it is
    ::

        s·((mass + 2·z_loss·lse)·softmax(z) - t)·dz/dx,    mass = Σ t,

    where t is what the loss multiplies ``lse - z`` by (weights, label smoothing and probabilities), and dz/dx
    is ``1 / temperature``, times ``1 - tanh²(x / softcap)`` with a softcap. The gradient of the mean is
    divided by what the mean divides by. Each row is read from memory once and its gradient written once.

    Parameters
    ----------
    logits, targets : array_like, or SparseTargets
        As for `cross_entropy`.
    **options
        Those of `cross_entropy` and `GradientOptions` (`xent_rs._options`).

    Returns
    -------
    loss : float or ndarray
        As from `cross_entropy`, to the bit.
    grad : ndarray
        `out`, or a new array of the logits' shape, dtype and memory layout. With ``reduction='none'`` row i
        is the derivative of loss i. An ignored row and a ``-inf`` class have gradient 0.

    Raises
    ------
    TypeError, ValueError, IndexError
        As `cross_entropy`; also ValueError for an `out` that is read-only, overlaps an input or itself, or
        has another shape or dtype, and for a `grad_output` of another shape. Nothing is written then.

    See Also
    --------
    cross_entropy_with_grad_hess : With the diagonal of the Hessian, too.

    Notes
    -----
    With p = softmax(z), a gradient is within u·(max z - z + ln C + 4)·p of its value; the target's is minus
    the sum of the others' p, not a difference. 16-bit gradients are rounded once from float32.

    When interrupted (Ctrl-C), `out` holds some rows of the gradient and some of what it held before.

    Elsewhere the gradient comes from automatic differentiation: ``loss.backward()`` and ``logits.grad`` in
    PyTorch, ``jax.value_and_grad`` for optax, ``tf.GradientTape`` for Keras. ``HalfMultinomialLoss`` in
    scikit-learn has ``loss_gradient``, of sums over the rows.

    References
    ----------
    .. [1] C. M. Bishop, "Pattern Recognition and Machine Learning", Springer, 2006, equation 4.109.

    Examples
    --------
    >>> import numpy as np, xent_rs
    >>> logits = np.array([[2.0, 1.0, 0.1], [0.0, 0.0, 0.0]])
    >>> loss, grad = xent_rs.cross_entropy_with_grad(logits, [0, 2], reduction="sum")
    >>> grad.round(3)
    array([[-0.341,  0.242,  0.099],
           [ 0.333,  0.333, -0.667]])

    In place, the logits become the gradient:

    >>> loss, grad = xent_rs.cross_entropy_with_grad(logits, [0, 2], out=logits)
    >>> grad is logits
    True
    """
    return _xent_rs.cross_entropy_with_grad(logits, targets, _GRADIENT, options)


_HESSIAN = Options("cross_entropy_with_grad_hess", HessianOptions, MeanOptions, DerivativesOptions)


@overload
def cross_entropy_with_grad_hess(
    logits: ArrayLike,
    targets: ArrayLike | SparseTargets,
    *,
    reduction: Literal["mean", "sum"] = ...,
    denominator: Real | None = ...,
    **options: Unpack[CrossEntropyHessianOptions],
) -> tuple[float, Floats, Floats]: ...
@overload
def cross_entropy_with_grad_hess(
    logits: ArrayLike,
    targets: ArrayLike | SparseTargets,
    *,
    reduction: Literal["none"],
    denominator: None = ...,
    **options: Unpack[CrossEntropyHessianOptions],
) -> tuple[Floats, Floats, Floats]: ...
@overload
def cross_entropy_with_grad_hess(
    logits: ArrayLike,
    targets: ArrayLike | SparseTargets,
    *,
    reduction: Reduction,
    denominator: Real | None = ...,
    **options: Unpack[CrossEntropyHessianOptions],
) -> tuple[float | Floats, Floats, Floats]: ...
@_HESSIAN.describe
def cross_entropy_with_grad_hess(
    logits: ArrayLike, targets: ArrayLike | SparseTargets, **options: Any
) -> tuple[float | Floats, Floats, Floats]:
    """`cross_entropy`, its gradient and the diagonal of its Hessian, as gradient boosting wants them.

    The second derivative of a row's loss with respect to each of its logits is, with p = softmax(z),
    ::

        s·mass·p·(1 - p) / temperature²,    mass = Σ t,

    where t is what the loss multiplies ``lse - z`` by: for a class y its weight ``w[y]``, which is 1 by
    default. That of the mean is divided by what the mean divides by.

    Boosting needs ``reduction='sum'``. With the default, 'mean', the Hessians of all rows together sum to
    less than 1, which is XGBoost's ``min_child_weight``: it then splits nothing, so that nothing is trained,
    and it says nothing. `xent_rs.boosting` has objectives for XGBoost and LightGBM, which see to that.

    Parameters
    ----------
    logits, targets : array_like, or SparseTargets
        As for `cross_entropy`.
    **options
        Those of `HessianOptions`, `MeanOptions` and `DerivativesOptions` (`xent_rs._options`).

    Returns
    -------
    loss : float or ndarray
        As from `cross_entropy`.
    grad : ndarray
        As from `cross_entropy_with_grad`.
    hess : ndarray
        `hess_out`, or a new array of the logits' shape, dtype and memory layout; not negative where the
        weights are not. An ignored row, one of weight 0, and a ``-inf`` class have 0.

    Raises
    ------
    TypeError, ValueError, IndexError
        As `cross_entropy_with_grad`.

    Notes
    -----
    Boosting libraries scale this diagonal: XGBoost's ``multi:softprob`` by 2, LightGBM's ``multiclass`` by
    C / (C - 1). With ``reduction='sum'`` it is the second result of ``gradient_hessian`` of scikit-learn's
    ``HalfMultinomialLoss``. PyTorch has it as the diagonal of ``torch.func.hessian``, and JAX, for optax, as
    that of ``jax.hessian``, both from C² entries a row; Keras has no function for it.

    References
    ----------
    .. [1] J. Friedman, T. Hastie, R. Tibshirani, "Additive logistic regression: a statistical view of
       boosting", Annals of Statistics 28(2), 2000, section 6.

    Examples
    --------
    >>> import numpy as np, xent_rs
    >>> logits = np.log([[0.2, 0.3, 0.5]])
    >>> loss, grad, hess = xent_rs.cross_entropy_with_grad_hess(logits, [2], reduction="sum")
    >>> grad.round(6), hess.round(6)
    (array([[ 0.2,  0.3, -0.5]]), array([[0.16, 0.21, 0.25]]))
    """
    return _xent_rs.cross_entropy_with_grad_hess(logits, targets, _HESSIAN, options)
