"""The losses as functions of arrays, with the arguments of optax's."""

from __future__ import annotations

import math
import operator

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike, DTypeLike

from . import _formulas, _kernels

_FLOATS = ("float32", "bfloat16", "float16", "float64")
_INTEGERS = ("int32", "int64", "uint8", "int8", "int16", "uint16", "uint32", "uint64")


def softmax_cross_entropy(
    logits: ArrayLike,
    labels: ArrayLike,
    axis: int | tuple[int, ...] | None = -1,
    where: ArrayLike | None = None,
) -> Array:
    """Softmax cross-entropy of logits with a probability for each class: `optax.softmax_cross_entropy`.

    Of a row it is ``Σ labels·(log Σ exp(logits) - logits)``, both sums over the classes that count.

    Parameters
    ----------
    logits : array of any shape
        Of float16, bfloat16, float32 or float64.
    labels : array
        The probability of each class, of a shape that broadcasts with that of `logits`; differentiable.
    axis : int, tuple of int or None, optional
        Where the classes are: one axis, the last by default; several; or all.
    where : array of bool, optional
        What counts: rows, in the shape of `logits` without the classes, or classes, in the shape of
        `logits`. Whatever does not count has loss and gradient 0, whatever it holds, and so has a row of
        which no class counts.

    Returns
    -------
    Array
        The loss of each row: the shape of `logits` without the classes. Of the dtype of `logits`, or of
        that of `labels` if it is wider.

    Raises
    ------
    ValueError
        For logits that are no floats, labels that are no real numbers, shapes that do not match, or an axis
        out of range.
    TypeError
        For an axis that is neither an integer nor a tuple of integers.

    See Also
    --------
    softmax_cross_entropy_with_integer_labels : With one class a row.
    xent_rs.cross_entropy : For arrays of NumPy, with options.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, xent_rs.jax
    >>> logits, labels = jnp.array([[2.0, 1.0, 0.1]]), jnp.array([[0.9, 0.1, 0.0]])
    >>> print(xent_rs.jax.softmax_cross_entropy(logits, labels))
    [0.5170...]
    >>> loss = jax.jit(lambda logits: xent_rs.jax.softmax_cross_entropy(logits, labels).mean())
    >>> print(jax.grad(loss)(logits))
    [[-0.2409...  0.1424...  0.0985...]]
    """
    logits, labels, axes, dtype = _of_probabilities(logits, labels, axis)
    logits, labels, rows = _counted(logits, labels, where, axes)
    return _losses(logits, labels, axes, rows).astype(dtype)


def softmax_cross_entropy_with_integer_labels(
    logits: ArrayLike,
    labels: ArrayLike,
    axis: int | tuple[int, ...] = -1,
    where: ArrayLike | None = None,
) -> Array:
    """Softmax cross-entropy of logits with classes: `optax.softmax_cross_entropy_with_integer_labels`.

    Of a row with the class y it is ``log Σ exp(logits) - logits[y]``, the sum over the classes that count.

    Parameters
    ----------
    logits : array of any shape
        Of float16, bfloat16, float32 or float64.
    labels : array of integers
        The class of each row: the shape of `logits` without the classes. Negative ones count from the last
        class. What is no class makes the loss of its row NaN.
    axis : int or tuple of int, optional
        Where the classes are: one axis, the last by default, or several, of which a label is a flat index,
        in their order.
    where : array of bool, optional
        What counts: rows, in the shape of `labels`, which else have loss and gradient 0, whatever they
        hold; or classes, in the shape of `logits`.

    Returns
    -------
    Array
        The loss of each row, of the dtype of `logits`.

    Raises
    ------
    ValueError
        For logits that are no floats, labels that are no integers, shapes that do not match, or an axis out
        of range or None.
    TypeError
        For an axis that is neither an integer nor a tuple of integers.

    See Also
    --------
    softmax_cross_entropy : With a probability for each class.
    xent_rs.cross_entropy : For arrays of NumPy, with options.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, xent_rs.jax
    >>> logits, labels = jnp.array([[2.0, 1.0, 0.1], [0.0, 0.0, 0.0]]), jnp.array([0, 2])
    >>> print(xent_rs.jax.softmax_cross_entropy_with_integer_labels(logits, labels))
    [0.4170... 1.0986...]
    >>> loss = lambda logits: xent_rs.jax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
    >>> print(jax.jit(jax.grad(loss))(logits)[1])
    [ 0.1666...  0.1666... -0.3333...]
    """
    logits, labels = _floats(logits), jnp.asarray(labels)
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(f"labels have dtype {labels.dtype}; expected integers")
    if labels.dtype.name not in _INTEGERS:
        labels = labels.astype(jnp.int32)
    if axis is None:
        raise ValueError("axis is None; expected an integer or a tuple of integers")
    axes = _axes(axis, logits.ndim)
    row_shape = tuple(length for place, length in enumerate(logits.shape) if place not in axes)
    try:
        shape = jnp.broadcast_shapes(labels.shape, row_shape)
    except ValueError:
        shape = None
    if shape is None or labels.ndim != len(row_shape):
        raise ValueError(
            f"labels have shape {labels.shape}; expected {row_shape}, that of logits {logits.shape} "
            f"without axis {axis}"
        )
    labels = jnp.broadcast_to(labels, shape)
    lengths = iter(shape)
    shape = tuple(logits.shape[place] if place in axes else next(lengths) for place in range(logits.ndim))
    logits = jnp.broadcast_to(logits, shape)
    # A class that does not count may be the target: then optax leaves it out of the sum alone.
    return _losses(logits, labels, axes, *_mask(where, shape, axes)).astype(logits.dtype)


def sigmoid_binary_cross_entropy(logits: ArrayLike, labels: ArrayLike) -> Array:
    """Binary cross-entropy of sigmoid(logits), elementwise: `optax.sigmoid_binary_cross_entropy`.

    Of an element with logit x and label t it is ``(1 - t)·x + log(1 + exp(-x))``.

    Parameters
    ----------
    logits : array of any shape
        Of float16, bfloat16, float32 or float64.
    labels : array
        The probability of yes, or bool, of a shape that broadcasts with that of `logits`; differentiable.

    Returns
    -------
    Array
        The loss of each element, of the dtype of `logits`.

    Raises
    ------
    ValueError
        For logits that are no floats, labels that are no real numbers, or shapes that do not match.

    See Also
    --------
    xent_rs.binary_cross_entropy : For arrays of NumPy, with options.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, xent_rs.jax
    >>> logits, labels = jnp.array([2.0, -1.0, 0.0]), jnp.array([1.0, 0.0, 1.0])
    >>> print(xent_rs.jax.sigmoid_binary_cross_entropy(logits, labels))
    [0.1269... 0.3132... 0.6931...]
    """
    logits, labels = _yes_or_no(logits, labels)
    return _kernels.binary_loss(_known(logits), _known(labels)).astype(logits.dtype)


def sigmoid_focal_loss(
    logits: ArrayLike, labels: ArrayLike, *, alpha: ArrayLike | None = None, gamma: ArrayLike = 2.0
) -> Array:
    """Focal loss of sigmoid(logits), elementwise: `optax.sigmoid_focal_loss`.

    Of an element with logit x and label t it is ``a·(1 - p)**gamma·L``, where L is the binary cross-entropy,
    p the probability of the label, ``t·sigmoid(x) + (1 - t)·sigmoid(-x)``, and a is 1, or with `alpha`
    ``alpha·t + (1 - alpha)·(1 - t)``.

    Parameters
    ----------
    logits : array of any shape
        Of float16, bfloat16, float32 or float64.
    labels : array
        The probability of yes, or bool, of a shape that broadcasts with that of `logits`; differentiable.
    alpha : float or array, optional
        The weight of yes; that of no is ``1 - alpha``.
    gamma : float or array, optional
        How much less an element counts the more probable its label is; at least 0, differentiable.

    Returns
    -------
    Array
        The loss of each element, of the dtype of `logits`.

    Raises
    ------
    ValueError
        For logits that are no floats, labels that are no real numbers, or shapes that do not match.

    See Also
    --------
    xent_rs.binary_cross_entropy : For arrays of NumPy, with `focal_gamma`.

    References
    ----------
    T.-Y. Lin et al., "Focal loss for dense object detection", ICCV 2017.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, xent_rs.jax
    >>> logits, labels = jnp.array([2.0, -1.0, 0.0]), jnp.array([1.0, 0.0, 1.0])
    >>> print(xent_rs.jax.sigmoid_focal_loss(logits, labels))
    [0.0018... 0.0226... 0.1732...]
    """
    logits, labels = _yes_or_no(logits, labels)
    wide = _formulas.wide_dtype(logits)
    x, t = logits.astype(wide), labels.astype(wide)
    # Nothing here is a difference, so that confident elements keep their digits.
    missing = t * jax.nn.sigmoid(-x) + (1 - t) * jax.nn.sigmoid(x)
    losses = _focal(_kernels.binary_loss(x, _known(labels)), missing, gamma)
    if alpha is not None:
        alpha = jnp.asarray(alpha).astype(wide)
        losses = (alpha * t + (1 - alpha) * (1 - t)) * losses
    return losses.astype(logits.dtype)


def poly_loss_cross_entropy(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    epsilon: ArrayLike = 2.0,
    axis: int | tuple[int, ...] | None = -1,
    where: ArrayLike | None = None,
) -> Array:
    """PolyLoss of logits with a probability for each class: `optax.poly_loss_cross_entropy`.

    Of a row it is ``Σ labels·(-log p) + epsilon·Σ labels·(1 - p)``, where p is the softmax, and all sums are
    over the classes that count. The first is `softmax_cross_entropy`, by a kernel; JAX computes the other.

    Parameters
    ----------
    logits, labels, axis, where
        Those of `softmax_cross_entropy`.
    epsilon : float or array, optional
        The factor of the second sum; differentiable. An array broadcasts with the rows.

    Returns
    -------
    Array
        The loss of each row: the shape of `logits` without the classes. Of the dtype of `logits`, or of
        that of `labels` if it is wider.

    Raises
    ------
    ValueError, TypeError
        As `softmax_cross_entropy`.

    See Also
    --------
    xent_rs.cross_entropy : For arrays of NumPy and one class a row, with `poly_epsilon`.

    References
    ----------
    Z. Leng et al., "PolyLoss: a polynomial expansion perspective of classification loss functions",
    ICLR 2022.

    Examples
    --------
    >>> import jax.numpy as jnp, xent_rs.jax
    >>> logits = jnp.array([[4.0, 2.0, 1.0], [0.0, 5.0, 1.0]])
    >>> labels = jnp.array([[1.0, 0.0, 0.0], [0.0, 0.8, 0.2]])
    >>> print(xent_rs.jax.poly_loss_cross_entropy(logits, labels))
    [0.4822... 1.2567...]
    """
    logits, labels, axes, dtype = _of_probabilities(logits, labels, axis)
    logits = logits.astype(_formulas.wide_dtype(logits, labels))  # two terms are rounded once
    logits, labels, rows = _counted(logits, labels, where, axes)
    losses = _losses(logits, labels, axes, rows)
    if rows is not None:
        logits = jnp.where(jnp.expand_dims(rows, axes), logits, 0)
    t = jnp.broadcast_to(labels, logits.shape).astype(losses.dtype)
    # As Σ p is 1, Σ t (1 - p) is Σ p (Σ t - t), in which no digits of a confident row cancel.
    missing = (jax.nn.softmax(logits, axes) * (t.sum(axes, keepdims=True) - t)).sum(axes)
    missing = missing if rows is None else jnp.where(rows, missing, 0)
    return (losses + jnp.asarray(epsilon).astype(losses.dtype) * missing).astype(dtype)


def _focal(losses: Array, missing: Array, gamma: ArrayLike) -> Array:
    """Return missing**gamma·loss, where missing is 1 - p of the target; at p = 0 p has no slope."""
    gamma = jnp.asarray(gamma).astype(losses.dtype)
    none = missing == 0
    power = jnp.where(none, (gamma == 0).astype(losses.dtype), jnp.where(none, 1, missing) ** gamma)
    finite = jnp.isfinite(losses)
    return jnp.where(finite, power * jnp.where(finite, losses, 0), lax.stop_gradient(power) * losses)


def _yes_or_no(logits: ArrayLike, labels: ArrayLike) -> tuple[Array, Array]:
    """Return logits and labels of a binary loss, of shapes that fit."""
    logits, labels = _floats(logits), _numbers(labels)
    if labels.dtype.name not in (*_FLOATS, "bool"):
        labels = labels.astype(logits.dtype)
    return _broadcast(logits, labels)


def _floats(logits: ArrayLike) -> Array:
    """Return logits as an array of floats."""
    array = jnp.asarray(logits)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise ValueError(f"logits have dtype {array.dtype}; expected a floating dtype")
    return array


def _numbers(labels: ArrayLike) -> Array:
    """Return labels as an array of real numbers, or bool."""
    array = jnp.asarray(labels)
    if not (
        array.dtype == bool or any(jnp.issubdtype(array.dtype, kind) for kind in (jnp.integer, jnp.floating))
    ):
        raise ValueError(f"labels have dtype {array.dtype}; expected real numbers")
    return array


def _of_probabilities(
    logits: ArrayLike, labels: ArrayLike, axis: int | tuple[int, ...] | None
) -> tuple[Array, Array, tuple[int, ...], DTypeLike]:
    """Return logits and probabilities of shapes that fit, the axes of the classes, and the losses' dtype."""
    logits, labels = _floats(logits), _numbers(labels)
    if not jnp.issubdtype(labels.dtype, jnp.floating):
        labels = labels.astype(logits.dtype)
    dtype = jnp.result_type(logits.dtype, labels)  # labels of Python's numbers are still weak here
    logits, labels = _broadcast(logits, labels)
    axes = tuple(range(logits.ndim)) if axis is None else _axes(axis, logits.ndim)
    return logits, labels, tuple(sorted(axes)), dtype  # in a sum the order of axes does not matter


def _counted(
    logits: Array, labels: Array, where: ArrayLike | None, axes: tuple[int, ...]
) -> tuple[Array, Array, Array | None]:
    """Return logits and probabilities, -inf and 0 of classes that do not count, and which rows count."""
    rows, counts = _mask(where, logits.shape, axes)
    if counts is not None:
        logits, labels = jnp.where(counts, logits, -jnp.inf), jnp.where(counts, labels, 0)
    return logits, labels, rows


def _broadcast(logits: Array, labels: Array) -> tuple[Array, Array]:
    """Return logits of the shape that both have together, and labels of as many axes, some of length 1."""
    try:
        shape = jnp.broadcast_shapes(logits.shape, labels.shape)
    except ValueError:
        raise ValueError(
            f"labels have shape {labels.shape}; expected one that broadcasts with {logits.shape}, "
            "that of logits"
        ) from None
    missing = range(len(shape) - labels.ndim)
    return jnp.broadcast_to(logits, shape), jnp.expand_dims(labels, tuple(missing))


def _known(numbers: Array) -> Array:
    """Return numbers of a dtype that the kernels know: smaller floats fit into float32."""
    return numbers if numbers.dtype.name in (*_FLOATS, "bool") else numbers.astype(jnp.float32)


def _axes(axis: int | tuple[int, ...], ndim: int) -> tuple[int, ...]:
    """Return axes counted from the first, in their order."""
    try:
        axes = tuple(operator.index(place) for place in (axis if isinstance(axis, tuple) else (axis,)))
    except TypeError as error:
        raise TypeError(f"axis is {axis!r}; expected an integer or a tuple of integers") from error
    if not all(-ndim <= place < ndim for place in axes):
        limits = f"expected {-ndim} to {ndim - 1}" if ndim else "expected none"
        raise ValueError(f"axis is {axis}; {limits} for logits of {ndim} dimensions")
    axes = tuple(place % ndim for place in axes)
    if len(set(axes)) < len(axes):
        raise ValueError(f"axis is {axis}; expected every axis once")
    return axes


def _mask(
    where: ArrayLike | None, shape: tuple[int, ...], axes: tuple[int, ...]
) -> tuple[Array | None, Array | None]:
    """Return which rows count and which classes, as far as `where` says so; `shape` is that of the logits."""
    if where is None:
        return None, None
    mask = jnp.asarray(where)
    if not (mask.dtype == bool or jnp.issubdtype(mask.dtype, jnp.number)):
        raise ValueError(f"where has dtype {mask.dtype}; expected bool")
    mask = mask.astype(bool)
    row_shape = tuple(length for place, length in enumerate(shape) if place not in axes)
    try:
        if mask.ndim != len(shape):
            return jnp.broadcast_to(mask, row_shape), None
        if all(mask.shape[place] == 1 for place in axes):
            return jnp.broadcast_to(jnp.squeeze(mask, axes), row_shape), None
        mask = jnp.broadcast_to(mask, shape)
    except ValueError:
        raise ValueError(
            f"where has shape {mask.shape}; expected {row_shape}, one for each row, or {shape}, "
            "that of logits"
        ) from None
    return jnp.any(mask, axes), mask


def _by_rows(array: Array, axes: tuple[int, ...], shape: tuple[int, ...]) -> Array:
    """Return an array with the classes along `_formulas.CLASSES`; nothing moves unless the axes lie apart.

    `shape` is that of the logits. Where the array has length 1 instead, it keeps that if it can.
    """
    first, last = min(axes, default=array.ndim), max(axes, default=array.ndim - 1) + 1
    if axes != tuple(range(first, last)):
        rows = tuple(place for place in range(array.ndim) if place not in axes)
        array, shape = jnp.transpose(array, (*rows, *axes)), tuple(shape[place] for place in (*rows, *axes))
        first, last = len(rows), array.ndim
    lengths = list(array.shape)
    for merged in (slice(first, last), slice(last, None)):
        # Axes that become one are repeated together, or none of them is.
        if any(length != 1 for length in lengths[merged]):
            lengths[merged] = shape[merged]
    classes, inner = math.prod(lengths[first:last]), math.prod(lengths[last:])
    return jnp.reshape(jnp.broadcast_to(array, lengths), (*lengths[:first], classes, inner))


def _losses(
    logits: Array, labels: Array, axes: tuple[int, ...], rows: Array | None, classes: Array | None = None
) -> Array:
    """Return the loss of each row, of logits and labels whose shapes fit, and of what counts."""
    shape = logits.shape
    row_shape = tuple(length for place, length in enumerate(shape) if place not in axes)
    by_rows = _by_rows(_known(logits), axes, shape)
    one_a_row = (*by_rows.shape[:-2], by_rows.shape[-1])
    counts = [] if rows is None else [jnp.reshape(rows, one_a_row)]
    if by_rows.shape[_formulas.CLASSES] == 0:  # the sum of nothing, or a class that none is
        nothing = jnp.nan if jnp.issubdtype(labels.dtype, jnp.integer) else 0
        losses = jnp.where(counts[0] if counts else True, nothing, jnp.zeros(one_a_row))
        return jnp.reshape(losses, row_shape)
    if jnp.issubdtype(labels.dtype, jnp.integer):
        targets = jnp.reshape(labels, one_a_row)
    else:
        targets = _by_rows(_known(labels), axes, shape)
    if classes is not None:
        counts.append(_by_rows(classes, axes, shape))
    return jnp.reshape(_kernels.softmax_loss(by_rows, targets, *counts), row_shape)
