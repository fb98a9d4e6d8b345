"""The losses and their gradients in JAX's own operations, which know every platform and derivative.

Logits are [..., classes, inner], and what is one a row is [..., inner]. Labels may have length 1 along any
axis, and everything along those in front. `counts` is nothing, or which rows count, or that and which classes
do, in the shape of the logits. 16-bit numbers are computed with in float32 and rounded once, as the kernels
do. Dtypes change only where it is written, as `jax.numpy_dtype_promotion("strict")` demands.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import DTypeLike

#: The axis of the classes.
CLASSES = -2


def loss_dtype(logits: Array, labels: Array) -> DTypeLike:
    """Return the dtype of the losses, that of optax's."""
    if labels.dtype == logits.dtype or not jnp.issubdtype(labels.dtype, jnp.floating):
        return logits.dtype
    return wide_dtype(logits, labels)


def wide_dtype(*arrays: Array) -> DTypeLike:
    """Return the dtype that arrays are computed with in: float32, or float64 if one of them is so wide."""
    return jnp.float64 if any(array.dtype == jnp.float64 for array in arrays) else jnp.float32


def softmax_loss(logits: Array, labels: Array, *counts: Array) -> Array:
    """Return Σ label·(lse - logit) of each row, lse over the classes that count; 0 of rows that do not."""
    z = _counted_rows(logits, labels, *counts)
    lse = jax.nn.logsumexp(_counted_classes(z, *counts), CLASSES)
    lse = jnp.where(lse == jnp.inf, jnp.nan, lse)  # of a logit at inf nothing can be said
    if jnp.issubdtype(labels.dtype, jnp.integer):
        losses = lse - _own(z, labels)
    else:
        # A class of probability 0 costs nothing, even if its logit is -inf.
        t = labels.astype(z.dtype)
        losses = jnp.where(t == 0, 0, t * (jnp.expand_dims(lse, CLASSES) - z)).sum(CLASSES)
    losses = jnp.where(counts[0], losses, 0) if counts else losses
    return losses.astype(loss_dtype(logits, labels))


def softmax_gradient(logits: Array, labels: Array, *rest: Array) -> Array:
    """Return (Σ label · softmax - label)·cotangent; `rest` is what counts, and the cotangents."""
    *counts, cotangents = rest
    z, scale = _counted_rows(logits, labels, *counts), jnp.expand_dims(cotangents, CLASSES)
    scale = scale.astype(z.dtype)
    p = jax.nn.softmax(_counted_classes(z, *counts), CLASSES)
    if jnp.issubdtype(labels.dtype, jnp.integer):
        classes, known = _classes(z, labels)
        classes = jnp.expand_dims(classes, CLASSES)
        every = (*(1 for _ in z.shape[:CLASSES]), z.shape[CLASSES], 1)
        own = classes == lax.broadcasted_iota(classes.dtype, every, len(every) + CLASSES)
        gradient = scale * (p - own.astype(p.dtype))
    else:
        # Labels may be one number for all classes, of which the sum is to be of each.
        t = jnp.broadcast_to(labels, jnp.broadcast_shapes(z.shape, labels.shape)).astype(z.dtype)
        known = ~jnp.any(jnp.isnan(t), CLASSES)
        gradient = scale * (p * t.sum(CLASSES, keepdims=True) - t)
    # A class at -inf is no class: it has gradient 0.
    gradient = jnp.where((z == -jnp.inf) & (p == 0), 0, gradient)
    # A row without a target is NaN, unless its loss is not used.
    unknown = jnp.where(scale == 0, 0, jnp.nan)
    gradient = jnp.where(jnp.expand_dims(known, CLASSES), gradient, unknown)
    if counts:
        gradient = jnp.where(jnp.expand_dims(counts[0], CLASSES), gradient, 0)
    return gradient.astype(logits.dtype)


@jax.jit
def softmax_labels_slope(logits: Array, labels: Array, *counts: Array) -> Array:
    """Return lse - logit, the derivative by the labels, not rounded; 0 of a class at -inf."""
    z = _counted_rows(logits, labels, *counts)
    slope = jnp.where(z == -jnp.inf, 0, -jax.nn.log_softmax(z, CLASSES))
    return jnp.where(jnp.expand_dims(counts[0], CLASSES), slope, 0) if counts else slope


def binary_loss(logits: Array, labels: Array) -> Array:
    """Return (1 - label)·logit + log(1 + exp(-logit)) of each element."""
    x = logits.astype(wide_dtype(logits))
    t = labels.astype(x.dtype)
    yes = jnp.where(t == 0, 0, t * jax.nn.softplus(-x))
    no = jnp.where(t == 1, 0, (1 - t) * jax.nn.softplus(x))
    return (yes + no).astype(logits.dtype)


def binary_gradient(logits: Array, labels: Array, cotangents: Array) -> Array:
    """Return (sigmoid(logit) - label)·cotangent."""
    x = logits.astype(wide_dtype(logits))
    gradient = cotangents.astype(x.dtype) * (jax.nn.sigmoid(x) - labels.astype(x.dtype))
    return gradient.astype(logits.dtype)


def _counted_rows(logits: Array, labels: Array, *counts: Array) -> Array:
    """Return wide logits, 0 in rows that do not count, whatever they hold."""
    z = logits.astype(wide_dtype(logits, labels))
    return jnp.where(jnp.expand_dims(counts[0], CLASSES), z, 0) if counts else z


def _counted_classes(z: Array, *counts: Array) -> Array:
    """Return logits, -inf of classes that do not count, though not of all in a row that does not."""
    if len(counts) < 2:
        return z
    rows, classes = counts
    return jnp.where(classes | ~jnp.expand_dims(rows, CLASSES), z, -jnp.inf)


def _own(z: Array, labels: Array) -> Array:
    """Return the logit of each row's class, NaN if it has none."""
    classes, known = _classes(z, labels)
    rows = jnp.broadcast_shapes(classes.shape, (*z.shape[:-2], z.shape[-1]))
    every = jnp.broadcast_to(z, (*rows[:-1], *z.shape[-2:]))
    own = jnp.take_along_axis(every, jnp.expand_dims(jnp.broadcast_to(classes, rows), CLASSES), CLASSES)
    return jnp.where(known, jnp.squeeze(own, CLASSES), jnp.nan)


def _classes(z: Array, labels: Array) -> tuple[Array, Array]:
    """Return class indices, negative ones counted from the last class, and which of them are classes."""
    if labels.dtype.itemsize < 4:
        labels = labels.astype(jnp.int32)  # in fewer bits the number of classes may not exist
    classes = jnp.where(labels < 0, labels + z.shape[CLASSES], labels)
    known = (classes >= 0) & (classes < z.shape[CLASSES])
    return jnp.where(known, classes, 0), known
