"""Information, entropy and divergence of probabilities rather than logits, with NumPy and in any base.

These are the formulas of textbooks. Probabilities are taken as they are: neither normalised, as
`scipy.stats.entropy` does, nor clipped away from 0 and 1, as Keras and scikit-learn do, so that an event that
cannot happen costs infinity. ``0·log 0`` is 0. Where there are logits, the functions of `xent_rs` itself are
more accurate and faster.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, SupportsIndex, TypeAlias, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import _xent_rs
from ._arguments import integer
from ._environment import in_default_environment
from ._options import Real, Reduction

__all__ = ["binary_cross_entropy", "cross_entropy", "entropy", "kl_divergence", "self_information"]

_Array: TypeAlias = NDArray[np.float64]


@in_default_environment
def self_information(p: ArrayLike, *, base: Real = math.e) -> _Array:
    """Information of an event of probability p, ``-log p``.

    Parameters
    ----------
    p : array_like of real numbers
        Probabilities, 0 to 1; any shape. They are computed with in float64.
    base : float, optional
        The base of the logarithm: e for nats, which is the default, 2 for bits, 10 for hartleys, or any other
        positive number but 1.

    Returns
    -------
    ndarray of float64
        Of the shape of `p`: infinity for the probability 0, NaN for NaN.

    Raises
    ------
    TypeError
        For anything but real numbers.
    ValueError
        For a number outside 0 to 1 or NaN, or a `base` that is none.

    Notes
    -----
    Neither PyTorch, Keras, optax nor scikit-learn has a name for it: it is minus their logarithm [1]_.

    References
    ----------
    .. [1] C. E. Shannon, "A mathematical theory of communication", Bell System Technical Journal 27, 1948.

    Examples
    --------
    >>> from xent_rs.probability import self_information
    >>> print(self_information(0.5, base=2))
    1.0
    >>> self_information([1, 0.25, 0], base=2)
    array([ 0.,  2., inf])
    """
    log = _logarithm(base)
    with np.errstate(all="ignore"):
        return np.asarray(0.0 - log(_probabilities(p, "p")))


@in_default_environment
def entropy(
    p: ArrayLike, *, axis: SupportsIndex | tuple[SupportsIndex, ...] | None = -1, base: Real = math.e
) -> _Array:
    """Entropy of a distribution, ``-Σ p·log p``.

    Parameters
    ----------
    p : array_like of real numbers
        Probabilities, 0 to 1, at least one axis. They are not normalised.
    axis : int, tuple of int or None, optional
        The axis of the classes; the last by default. Several, or None for all, are those of a joint
        distribution.
    base : float, optional
        As for `self_information`.

    Returns
    -------
    ndarray of float64
        Of the shape of `p` without `axis`.

    Raises
    ------
    TypeError, ValueError
        As `self_information`; also ValueError for an `axis` out of range.

    See Also
    --------
    xent_rs.row_statistics : The entropy of the softmax of logits.

    Notes
    -----
    It is ``scipy.stats.entropy(p, base=base, axis=-1)``, whose axis is 0 by default and which divides `p` by
    its sum, and ``torch.distributions.Categorical(probs=p).entropy()``, which does so too. Keras, optax and
    scikit-learn have no function for it; in optax it is ``softmax_cross_entropy(log(p), p)`` [1]_.

    References
    ----------
    .. [1] C. E. Shannon, "A mathematical theory of communication", Bell System Technical Journal 27, 1948.

    Examples
    --------
    A fair coin, and one that falls heads nine times in ten:

    >>> from xent_rs.probability import entropy
    >>> entropy([[0.5, 0.5], [0.9, 0.1]], base=2).round(3)
    array([1.   , 0.469])
    """
    log = _logarithm(base)
    (p,) = _distributions(p=p)
    with np.errstate(all="ignore"):
        return np.asarray(0.0 - _sum(_product(p, log(p)), axis))


@in_default_environment
def cross_entropy(
    p: ArrayLike,
    q: ArrayLike,
    *,
    axis: SupportsIndex | tuple[SupportsIndex, ...] | None = -1,
    base: Real = math.e,
) -> _Array:
    """Cross-entropy of a model's probabilities q with the true ones p, ``-Σ p·log q``.

    Parameters
    ----------
    p, q : array_like of real numbers
        Probabilities, 0 to 1, at least one axis; they broadcast. A one-hot `p` is a class.
    axis, base
        As for `entropy`.

    Returns
    -------
    ndarray of float64
        Of the shape to which `p` and `q` broadcast, without `axis`. Infinity where the model excludes
        (``q = 0``) what can happen (``p > 0``).

    Raises
    ------
    TypeError, ValueError
        As `entropy`; also ValueError for shapes that do not broadcast.

    See Also
    --------
    xent_rs.cross_entropy : The same for logits.

    Notes
    -----
    For classes as targets it is ``torch.nn.functional.nll_loss(log(q), classes)``. Keras has it as
    ``keras.losses.CategoricalCrossentropy``, which divides `q` by its sum and clips it to 1e-7, and
    scikit-learn as ``sklearn.metrics.log_loss(classes, q)``, a mean over rows that clips `q` to the eps of
    its dtype. In optax it is ``softmax_cross_entropy(log(q), p)`` if `q` sums to 1 [1]_.

    References
    ----------
    .. [1] I. Goodfellow, Y. Bengio, A. Courville, "Deep Learning", MIT Press, 2016, equation 3.51.

    Examples
    --------
    >>> from xent_rs.probability import cross_entropy
    >>> print(cross_entropy([0, 1, 0], [0.228, 0.619, 0.153]).round(4))
    0.4797
    """
    log = _logarithm(base)
    p, q = _distributions(p=p, q=q)
    with np.errstate(all="ignore"):
        return np.asarray(0.0 - _sum(_product(p, log(q)), axis))


@in_default_environment
def kl_divergence(
    p: ArrayLike,
    q: ArrayLike,
    *,
    axis: SupportsIndex | tuple[SupportsIndex, ...] | None = -1,
    base: Real = math.e,
) -> _Array:
    """Kullback-Leibler divergence KL(p || q) of a model q from the truth p, ``Σ p·log(p / q)``.

    It is `cross_entropy` minus `entropy`: what it costs to believe `q`.

    Parameters
    ----------
    p, q : array_like of real numbers
        Probabilities, 0 to 1, at least one axis; they broadcast.
    axis, base
        As for `entropy`.

    Returns
    -------
    ndarray of float64
        Of the shape to which `p` and `q` broadcast, without `axis`; exactly 0 where they are equal. Infinity
        where ``q = 0`` and ``p > 0``.

    Raises
    ------
    TypeError, ValueError
        As `cross_entropy`.

    See Also
    --------
    xent_rs.kl_divergence : The same for logits.

    Notes
    -----
    It is ``scipy.stats.entropy(p, q)``, which normalises both, and the sum of ``scipy.special.rel_entr``;
    ``scipy.special.kl_div`` adds ``q - p``. The model comes first in ``optax.kl_divergence(log(q), p)`` and
    ``torch.nn.functional.kl_div(log(q), p, reduction="batchmean")``, the truth in
    ``keras.losses.KLDivergence()(p, q)``, which clips both to 1e-7. scikit-learn has none [1]_.

    References
    ----------
    .. [1] S. Kullback, R. A. Leibler, "On information and sufficiency", Annals of Mathematical Statistics
       22(1), 1951.

    Examples
    --------
    >>> from xent_rs.probability import cross_entropy, entropy, kl_divergence
    >>> p, q = [0.5, 0.25, 0.25], [0.25, 0.5, 0.25]
    >>> print(kl_divergence(p, q, base=2), cross_entropy(p, q, base=2) - entropy(p, base=2))
    0.25 0.25
    """
    log = _logarithm(base)
    p, q = _distributions(p=p, q=q)
    with np.errstate(all="ignore"):
        ratio = p / q
        # Where p and q are near each other, their difference is exact and the logarithm of their rounded
        # ratio is not; where the ratio overflows or vanishes, its logarithm is still a difference.
        near = np.log1p((p - q) / q) * log(math.e)
        far = np.where((ratio > 0) & np.isfinite(ratio), log(ratio), log(p) - log(q))
        logs = np.where((ratio > 0.5) & (ratio < 2), near, far)
        return np.asarray(0.0 + _sum(_product(p, np.where(p == q, 0.0, logs)), axis))


@overload
def binary_cross_entropy(
    p: ArrayLike, targets: ArrayLike, *, reduction: Literal["mean", "sum"] = ..., base: Real = ...
) -> float: ...
@overload
def binary_cross_entropy(
    p: ArrayLike, targets: ArrayLike, *, reduction: Literal["none"], base: Real = ...
) -> _Array: ...
@overload
def binary_cross_entropy(
    p: ArrayLike, targets: ArrayLike, *, reduction: Reduction, base: Real = ...
) -> float | _Array: ...
@in_default_environment
def binary_cross_entropy(
    p: ArrayLike,
    targets: ArrayLike,
    *,
    reduction: Reduction = "mean",
    base: Real = math.e,
) -> float | _Array:
    """Cross-entropy of probabilities of yes with targets, ``-(t·log p + (1 - t)·log(1 - p))``.

    Parameters
    ----------
    p : array_like of real numbers
        Probabilities of yes, 0 to 1; any shape.
    targets : array_like of bool or real numbers
        0 or False is no, 1 or True is yes, and between them are probabilities; broadcasts with `p`.
    reduction : {'mean', 'sum', 'none'}, optional
        The mean over all elements, their sum, or each element's loss.
    base : float, optional
        As for `self_information`.

    Returns
    -------
    float or ndarray of float64
        For 'mean' and 'sum' a float; the mean of nothing is NaN. For 'none' an array of the shape to which
        `p` and `targets` broadcast. Infinity where `p` excludes what can happen.

    Raises
    ------
    TypeError, ValueError
        As `cross_entropy`; also ValueError for another `reduction`.

    See Also
    --------
    xent_rs.binary_cross_entropy : The same for logits.

    Notes
    -----
    It is ``torch.nn.functional.binary_cross_entropy``, which bounds each logarithm at -100;
    ``keras.losses.BinaryCrossentropy``, which clips `p` to 1e-7; and ``sklearn.metrics.log_loss``, which
    clips it to the eps of its dtype. optax has it for logits only [1]_.

    References
    ----------
    .. [1] C. M. Bishop, "Pattern Recognition and Machine Learning", Springer, 2006, equation 4.90.

    Examples
    --------
    >>> from xent_rs.probability import binary_cross_entropy
    >>> binary_cross_entropy([0.5, 0.75, 1], [1, 0, 1], reduction="none", base=2)
    array([1., 2., 0.])
    >>> binary_cross_entropy([0.5, 0.75, 1], [1, 0, 1], base=2)
    1.0
    """
    log = _logarithm(base)
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction is {reduction!r}; expected 'mean', 'sum' or 'none'")
    p, targets = _broadcast(p=p, targets=targets)
    with np.errstate(all="ignore"):
        # 1 - p is exact from 1/2 on; below, log1p does not need it.
        log_no = np.where(p < 0.5, np.log1p(-p) * log(math.e), log(1 - p))
        losses = 0.0 - (_product(targets, log(p)) + _product(1 - targets, log_no))
    if reduction == "none":
        return np.asarray(losses)
    total = float(np.sum(losses))
    if reduction == "sum":
        return total
    return total / np.size(losses) if np.size(losses) else math.nan


def _logarithm(base: Real) -> Callable[[Any], Any]:
    """Return the logarithm to a base; exact for powers of 2 and 10 where NumPy is."""
    try:
        array = np.asarray(base)
        if array.ndim or array.dtype.kind not in "biufO":  # `float` reads text, too
            raise TypeError
        number = float(base)
    except (TypeError, ValueError):
        raise TypeError(f"base is {base!r}; expected a positive number other than 1") from None
    except OverflowError:
        raise ValueError("base is too large; expected a positive number other than 1") from None
    if not 0.0 < number < math.inf or number == 1.0:
        raise ValueError(f"base is {number}; expected a positive number other than 1")
    known = {math.e: np.log, 2.0: np.log2, 10.0: np.log10}
    return known.get(number, lambda x: np.log(x) / math.log(number))


def _product(weights: _Array, logs: _Array) -> _Array:
    """Return ``weights * logs`` with 0 times minus infinity 0."""
    return np.where(weights == 0, 0.0, weights * logs)


def _sum(terms: _Array, axis: SupportsIndex | tuple[SupportsIndex, ...] | None) -> Any:
    """Return the sum along the axis."""
    for one in axis if isinstance(axis, tuple) else () if axis is None else (axis,):
        # NumPy's own error, also for numbers for which it has another.
        if not -terms.ndim <= integer(one, "axis is") < terms.ndim:
            raise ValueError(f"axis {one} is out of bounds for array of dimension {terms.ndim}")
    return np.sum(terms, axis=axis)


def _distributions(**values: ArrayLike) -> tuple[_Array, ...]:
    """Return arrays of probabilities in one shape that has at least one axis."""
    arrays = _broadcast(**values)
    if arrays[0].ndim == 0:
        raise ValueError(f"{next(iter(values))} has shape (); expected at least one axis, the classes")
    return arrays


def _broadcast(**values: ArrayLike) -> tuple[_Array, ...]:
    """Return arrays of probabilities in one shape."""
    arrays = [_probabilities(value, name) for name, value in values.items()]
    try:
        return tuple(np.broadcast_arrays(*arrays))
    except ValueError:
        found = " and ".join(f"{name} {array.shape}" for name, array in zip(values, arrays, strict=True))
        raise ValueError(f"the shapes of {found} differ; expected shapes that broadcast") from None


def _probabilities(value: ArrayLike, name: str) -> _Array:
    """Return numbers from 0 to 1 in float64."""
    array = _xent_rs.as_array(value, name)
    if array.dtype.kind not in "biuf" and array.dtype.name != "bfloat16":
        has = "have" if name.endswith("s") else "has"
        raise TypeError(f"{name} {has} dtype {array.dtype}; expected real numbers")
    outside = ~((array >= 0) & (array <= 1))
    if np.any(outside):
        where = np.argwhere(outside)[0]
        place = f"[{', '.join(map(str, where))}]" if array.ndim else ""
        raise ValueError(f"{name}{place} is {array[tuple(where)]}; expected a probability, 0 to 1")
    return array.astype(np.float64, copy=False)
