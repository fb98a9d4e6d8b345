"""Derivatives of the cross-entropy by what is not a logit: its soft targets, and the temperature."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, overload

from numpy.typing import ArrayLike

from . import _xent_rs
from ._options import (
    CrossEntropyTargetGradientOptions,
    Floats,
    GradientOptions,
    MeanOptions,
    Options,
    Real,
    Reduction,
    ShardOptions,
    TargetGradientOptions,
)
from ._sparse_targets import SparseTargets

if TYPE_CHECKING:
    from typing_extensions import Unpack

_TARGETS = Options("cross_entropy_target_grad", TargetGradientOptions, MeanOptions, GradientOptions)


@_TARGETS.describe
def cross_entropy_target_grad(
    logits: ArrayLike, targets: ArrayLike, **options: Unpack[CrossEntropyTargetGradientOptions]
) -> Floats:
    """Gradient of `cross_entropy` with respect to targets that are probabilities.

    For label smoothing ε, class weights w and a sample weight s it is, for each class of a row,
    ::

        s·(1 - ε)·w·(lse - z),

    minus the log-probability that the model gives the class: the loss is linear in its targets, so that it
    does not depend on them. That of the mean is divided by what the mean divides by, the sum of s.

    Parameters
    ----------
    logits : array_like of float16, bfloat16 (``ml_dtypes``), float32 or float64
        As for `cross_entropy`.
    targets : array_like of float16, bfloat16, float32 or float64
        Probabilities, in the shape of `logits`.
    **options
        Those of `CrossEntropyTargetGradientOptions` (`xent_rs._options`).

    Returns
    -------
    ndarray
        `out`, or a new array of the logits' shape, dtype and memory layout. A class of the logit ``-inf`` has
        ``inf``, since any probability of it costs infinity, unless it is multiplied by 0; a row of sample
        weight 0 has 0.

    Raises
    ------
    TypeError, ValueError
        As `cross_entropy_with_grad`; TypeError for targets that are no probabilities.

    See Also
    --------
    log_softmax : Minus the same without weights.

    Notes
    -----
    The error of ``lse - z`` is that of a loss, u·(ln C + 2) and half an ulp; two roundings are added by the
    weights.

    In PyTorch it is the gradient of targets with ``requires_grad``, which `xent_rs.torch.cross_entropy` has
    from here; for optax it is ``jax.grad(loss, argnums=1)``, for Keras comes from ``tf.GradientTape``.
    scikit-learn has none.

    References
    ----------
    .. [1] C. M. Bishop, "Pattern Recognition and Machine Learning", Springer, 2006, equation 4.108.

    Examples
    --------
    >>> import numpy as np, xent_rs
    >>> logits, targets = np.log([[0.5, 0.25, 0.25]]), [[0.2, 0.2, 0.6]]
    >>> xent_rs.cross_entropy_target_grad(logits, targets).round(4)
    array([[0.6931, 1.3863, 1.3863]])
    """
    return _xent_rs.cross_entropy_target_grad(logits, targets, _TARGETS, options)


_TEMPERATURE = Options("cross_entropy_temperature_grad", ShardOptions, MeanOptions)


@overload
def cross_entropy_temperature_grad(
    logits: ArrayLike,
    targets: ArrayLike | SparseTargets,
    *,
    reduction: Literal["mean", "sum"] = ...,
    denominator: Real | None = ...,
    **options: Unpack[ShardOptions],
) -> float: ...
@overload
def cross_entropy_temperature_grad(
    logits: ArrayLike,
    targets: ArrayLike | SparseTargets,
    *,
    reduction: Literal["none"],
    denominator: None = ...,
    **options: Unpack[ShardOptions],
) -> Floats: ...
@overload
def cross_entropy_temperature_grad(
    logits: ArrayLike,
    targets: ArrayLike | SparseTargets,
    *,
    reduction: Reduction,
    denominator: Real | None = ...,
    **options: Unpack[ShardOptions],
) -> float | Floats: ...
@_TEMPERATURE.describe
def cross_entropy_temperature_grad(
    logits: ArrayLike, targets: ArrayLike | SparseTargets, **options: Any
) -> float | Floats:
    """Gradient of `cross_entropy` with respect to the temperature.

    With z the logits over the temperature (capped, with a softcap), p = softmax(z), and t what the loss
    multiplies ``lse - z`` by, of sum mass, the derivative of a row's loss is
    ::

        s·[Σ t·z - (mass + 2·z_loss·lse)·Σ p·z] / temperature,

    for the class y without options ``-Σ p·(z - z[y]) / temperature``. That of a factor of the logits, the
    inverse of the temperature, is ``-temperature²`` times it.

    Parameters
    ----------
    logits, targets : array_like, or SparseTargets
        As for `cross_entropy`.
    **options
        Those of `ShardOptions` and `MeanOptions` (`xent_rs._options`).

    Returns
    -------
    float or ndarray
        As from `cross_entropy`. Rows that do not count have 0; classes of the logit ``-inf`` add nothing,
        unless they are targets: then it is ``-inf``.

    Raises
    ------
    TypeError, ValueError, IndexError
        As `cross_entropy`. There is none of focal and poly losses.

    Notes
    -----
    All z are taken less the largest, or one that is not far below: nothing is a difference of numbers as
    large as logits are. With d = max z - z that of a row is within ``s·u·Σ (mass·p + t)·d·(d + ln C + 4) /
    temperature`` of its value.

    It is the derivative that temperature scaling [1]_ sets to 0. In PyTorch, Keras and with optax it comes
    from automatic differentiation. scikit-learn's ``CalibratedClassifierCV(method="temperature")`` finds
    the temperature itself.

    References
    ----------
    .. [1] C. Guo, G. Pleiss, Y. Sun, K. Q. Weinberger, "On calibration of modern neural networks", ICML 2017.

    Examples
    --------
    A model that is right nine times of ten, and says that it always is; the temperature at which it says what
    is true:

    >>> import numpy as np, xent_rs
    >>> from scipy.optimize import brentq
    >>> logits, targets = np.array([[8.0, 0.0]] * 10), np.array([0] * 9 + [1])
    >>> slope = lambda T: xent_rs.cross_entropy_temperature_grad(logits, targets, temperature=T)
    >>> temperature = brentq(slope, 0.1, 100)
    >>> xent_rs.softmax(logits[0], temperature=temperature).round(4)
    array([0.9, 0.1])
    """
    return _xent_rs.cross_entropy_temperature_grad(logits, targets, _TEMPERATURE, options)
