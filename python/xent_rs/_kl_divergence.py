"""Divergences of a model from a teacher, both as logits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, overload

from numpy.typing import ArrayLike

from . import _xent_rs
from ._options import (
    AllKlDivergenceOptions,
    Floats,
    GradientOptions,
    KlDivergenceGradientOptions,
    KlDivergenceOptions,
    Options,
    Real,
    Reduction,
)
from ._sparse_targets import SparseTargets

if TYPE_CHECKING:
    from typing_extensions import Unpack


_LOSS = Options("kl_divergence", AllKlDivergenceOptions)


@overload
def kl_divergence(
    logits: ArrayLike,
    target_logits: ArrayLike | SparseTargets,
    *,
    reduction: Literal["mean", "sum"] = ...,
    denominator: Real | None = ...,
    **options: Unpack[KlDivergenceOptions],
) -> float: ...
@overload
def kl_divergence(
    logits: ArrayLike,
    target_logits: ArrayLike | SparseTargets,
    *,
    reduction: Literal["none"],
    denominator: None = ...,
    **options: Unpack[KlDivergenceOptions],
) -> Floats: ...
@overload
def kl_divergence(
    logits: ArrayLike,
    target_logits: ArrayLike | SparseTargets,
    *,
    reduction: Reduction,
    denominator: Real | None = ...,
    **options: Unpack[KlDivergenceOptions],
) -> float | Floats: ...
@_LOSS.describe
def kl_divergence(
    logits: ArrayLike, target_logits: ArrayLike | SparseTargets, **options: Any
) -> float | Floats:
    r"""Divergence of the softmax of two arrays of logits, KL(teacher || model) or another `kind`, in nats.

    With the model's :math:`q = \mathrm{softmax}(x / T)` and the teacher's :math:`p =
    \mathrm{softmax}(x^t / T)` a row's loss is, by `kind`,

    ====================  ==============================================================================
    ``'forward'``         :math:`\mathrm{KL}(p \| q) = \sum_c p_c (\log p_c - \log q_c)`
    ``'reverse'``         :math:`\mathrm{KL}(q \| p)`
    ``'jensen_shannon'``  :math:`\beta\,\mathrm{KL}(p \| m) + (1 - \beta)\,\mathrm{KL}(q \| m)`, with the
                          mixture :math:`m = \beta p + (1 - \beta) q`
    ====================  ==============================================================================

    The first is the cross-entropy with the teacher's probabilities minus their entropy, which is what
    distillation minimises. The temperature T divides both logits. There is no factor T²: multiply by
    ``temperature**2`` for gradients that do not shrink as T grows.

    Parameters
    ----------
    logits : array_like of float16, bfloat16 (``ml_dtypes``), float32 or float64
        Those of the model; see `cross_entropy`.
    target_logits : array_like of float16, bfloat16, float32 or float64, or SparseTargets
        Those of the teacher: the shape of `logits`, in a dtype of their own. Of a teacher of which a few
        classes of each row are stored, `SparseTargets`, which say what becomes of the others: probabilities,
        that are taken as they are, so that `temperature` divides the model's logits alone.
    **options
        Those of `AllKlDivergenceOptions` (`xent_rs._options`).

    Returns
    -------
    float or ndarray
        For 'mean' and 'sum' a float, accumulated in float64: NaN if the divisor of the mean is 0. For 'none'
        an array of the shape of `logits` without `axis`, float32, or float64 for float64 logits.

    Raises
    ------
    TypeError, ValueError, IndexError
        As `cross_entropy`.

    See Also
    --------
    kl_divergence_with_grad : The divergence and its gradient.
    SparseTargets : Teachers of which a few classes of each row are stored.
    xent_rs.probability.kl_divergence : The same of probabilities rather than logits.

    Notes
    -----
    A class at ``-inf`` in the teacher costs nothing; at ``-inf`` in the model alone it costs infinity. Of
    'reverse' it is the other way round; 'jensen_shannon' is always finite. These two are sums of terms of
    which none is negative: exactly 0 for equal logits, with relative accuracy for logits that are nearly
    equal.

    'jensen_shannon' is the generalised divergence of [3]_, as TRL and Liger have it; at β = 0 and 1, where
    it is 0, they return 'forward' and 'reverse'.

    With ``lp`` and ``lt`` the log-softmax of the two, it is ``torch.nn.functional.kl_div(lp, lt,
    log_target=True, reduction="batchmean")`` for logits with one axis of rows: PyTorch's own "mean" divides
    by the number of elements. In optax it is the mean of ``kl_divergence_with_log_targets(lp, lt)``, and on
    probabilities, which it clips, ``keras.losses.KLDivergence``. scikit-learn has none; SciPy has
    ``scipy.stats.entropy(t, p)`` and ``scipy.special.rel_entr``. The divergence is from [1]_, distillation
    from [2]_.

    References
    ----------
    .. [1] S. Kullback, R. A. Leibler, "On information and sufficiency", Annals of Mathematical Statistics
       22(1), 1951.
    .. [2] G. Hinton, O. Vinyals, J. Dean, "Distilling the knowledge in a neural network", arXiv:1503.02531,
       2015.
    .. [3] R. Agarwal et al., "On-policy distillation of language models: learning from self-generated
       mistakes", arXiv:2306.13649, ICLR 2024.

    Examples
    --------
    >>> import math, numpy as np, xent_rs
    >>> model, teacher = np.log([[0.5, 0.25, 0.25]]), np.log([[0.25, 0.25, 0.5]])
    >>> round(xent_rs.kl_divergence(model, teacher) / math.log(2), 6)     # in bits
    0.25
    >>> coin, certain = [0.0, 0.0], [0.0, -math.inf]
    >>> [xent_rs.kl_divergence(coin, certain, kind=kind) for kind in ("forward", "reverse")]
    [0.6931471805599453, inf]
    >>> round(xent_rs.kl_divergence(coin, certain, kind="jensen_shannon"), 6)
    0.215762
    """
    return _xent_rs.kl_divergence(logits, target_logits, _LOSS, options)


_GRADIENT = Options("kl_divergence_with_grad", AllKlDivergenceOptions, GradientOptions)


@overload
def kl_divergence_with_grad(
    logits: ArrayLike,
    target_logits: ArrayLike | SparseTargets,
    *,
    reduction: Literal["mean", "sum"] = ...,
    denominator: Real | None = ...,
    **options: Unpack[KlDivergenceGradientOptions],
) -> tuple[float, Floats]: ...
@overload
def kl_divergence_with_grad(
    logits: ArrayLike,
    target_logits: ArrayLike | SparseTargets,
    *,
    reduction: Literal["none"],
    denominator: None = ...,
    **options: Unpack[KlDivergenceGradientOptions],
) -> tuple[Floats, Floats]: ...
@overload
def kl_divergence_with_grad(
    logits: ArrayLike,
    target_logits: ArrayLike | SparseTargets,
    *,
    reduction: Reduction,
    denominator: Real | None = ...,
    **options: Unpack[KlDivergenceGradientOptions],
) -> tuple[float | Floats, Floats]: ...
@_GRADIENT.describe
def kl_divergence_with_grad(
    logits: ArrayLike, target_logits: ArrayLike | SparseTargets, **options: Any
) -> tuple[float | Floats, Floats]:
    r"""`kl_divergence` and its gradient with respect to the model's logits.

    The gradient of a row's divergence is :math:`(q - p) / T`, that of `cross_entropy` with the teacher's
    probabilities. Of the other kinds it is :math:`q_c (v_c - \sum_i q_i v_i) / T` with :math:`v = \log q -
    \log p` for 'reverse' and :math:`v = (1 - \beta)(\log q - \log m)` for 'jensen_shannon'. That of the mean
    is divided by what the mean divides by. For distillation let `grad_output` be ``temperature**2``.

    Parameters
    ----------
    logits, target_logits : array_like, or SparseTargets
        As for `kl_divergence`.
    **options
        Those of `kl_divergence` and `GradientOptions` (`xent_rs._options`).

    Returns
    -------
    loss : float or ndarray
        As from `kl_divergence`, to the bit.
    grad : ndarray
        `out`, or a new array of the logits' shape, dtype and memory layout.

    Raises
    ------
    TypeError, ValueError, IndexError
        As `cross_entropy_with_grad`.

    Notes
    -----
    Elsewhere the gradient comes from automatic differentiation: ``loss.backward()`` in PyTorch,
    ``jax.value_and_grad`` for optax, ``tf.GradientTape`` for Keras; scikit-learn has none.
    There is no gradient with respect to the teacher's logits here. Where 'reverse' is infinite it has none:
    NaN, and 0 for masked classes.

    References
    ----------
    .. [1] G. Hinton, O. Vinyals, J. Dean, "Distilling the knowledge in a neural network", arXiv:1503.02531,
       2015, section 2.

    Examples
    --------
    >>> import numpy as np, xent_rs
    >>> model, teacher = np.log([[0.5, 0.25, 0.25]]), np.log([[0.25, 0.25, 0.5]])
    >>> loss, grad = xent_rs.kl_divergence_with_grad(model, teacher)
    >>> grad.round(6)
    array([[ 0.25,  0.  , -0.25]])
    """
    return _xent_rs.kl_divergence_with_grad(logits, target_logits, _GRADIENT, options)
