"""The losses and their gradients in JAX's own operations, which know every platform and derivative.

Logits are [..., classes, inner], and what is one a row is [..., inner]. Axes in front broadcast. 16-bit
logits are computed with in float32 and rounded once, as the kernels do.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

#: The axis of the classes.
CLASSES = -2


def loss_dtype(logits: Array, labels: Array) -> DTypeLike:
    """Return the dtype of the losses, that of optax's."""
    if not jnp.issubdtype(labels.dtype, jnp.floating):
        return logits.dtype
    return jnp.promote_types(logits.dtype, labels.dtype)


def softmax_loss(logits: Array, labels: Array, *counts: Array) -> Array:
    """Return Σ label·(lse - logit) of each row; 0 of one that does not count."""
    dtype, z = loss_dtype(logits, labels), _counted(_wide(logits), *counts)
    lse = jax.nn.logsumexp(z, CLASSES)
    lse = jnp.where(lse == jnp.inf, jnp.nan, lse)  # of a logit at inf nothing can be said
    if jnp.issubdtype(labels.dtype, jnp.integer):
        losses = lse - _own(z, labels)
    else:
        # A class of probability 0 costs nothing, even if its logit is -inf.
        t = _wide(labels)
        losses = jnp.where(t == 0, 0, t * (jnp.expand_dims(lse, CLASSES) - z)).sum(CLASSES)
    return jnp.where(counts[0], losses, 0).astype(dtype) if counts else losses.astype(dtype)


def masked_softmax_loss(logits: Array, labels: Array, counts: Array, rows: Array) -> Array:
    """Return lse - logit[label] of each row, lse over the classes that count; 0 of rows that do not."""
    z = _counted(_wide(logits), rows)
    some = jnp.where(counts | ~jnp.expand_dims(rows, CLASSES), z, -jnp.inf)
    losses = jax.nn.logsumexp(some, CLASSES) - _own(z, labels)
    return jnp.where(rows, losses, 0).astype(logits.dtype)


def softmax_gradient(logits: Array, labels: Array, *rest: Array) -> Array:
    """Return (Σ label · softmax - label)·cotangent; `rest` is perhaps what counts, and the cotangents."""
    *counts, cotangents = rest
    z, scale = _counted(_wide(logits), *counts), jnp.expand_dims(cotangents, CLASSES)
    scale = scale.astype(jnp.promote_types(z.dtype, scale.dtype))
    p = jax.nn.softmax(z, CLASSES)
    if jnp.issubdtype(labels.dtype, jnp.integer):
        classes, known = _classes(z, labels)
        own = jnp.expand_dims(classes, CLASSES) == jnp.expand_dims(jnp.arange(z.shape[CLASSES]), 1)
        gradient = scale * (p - own.astype(p.dtype))
    else:
        t = _wide(labels)
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


def softmax_labels_slope(logits: Array, *counts: Array) -> Array:
    """Return lse - logit, the derivative by the labels, not rounded; 0 of a class at -inf."""
    z = _counted(_wide(logits), *counts)
    slope = jnp.where(z == -jnp.inf, 0, -jax.nn.log_softmax(z, CLASSES))
    return jnp.where(jnp.expand_dims(counts[0], CLASSES), slope, 0) if counts else slope


def binary_loss(logits: Array, labels: Array) -> Array:
    """Return (1 - label)·logit + log(1 + exp(-logit)) of each element."""
    x, t = _wide(logits), labels.astype(_wide(logits).dtype)
    yes = jnp.where(t == 0, 0, t * jax.nn.softplus(-x))
    no = jnp.where(t == 1, 0, (1 - t) * jax.nn.softplus(x))
    return (yes + no).astype(logits.dtype)


def binary_gradient(logits: Array, labels: Array, cotangents: Array) -> Array:
    """Return (sigmoid(logit) - label)·cotangent."""
    x = _wide(logits)
    return (cotangents * (jax.nn.sigmoid(x) - labels.astype(x.dtype))).astype(logits.dtype)


def _wide(numbers: Array) -> Array:
    """Return numbers in the dtype that is computed in."""
    return numbers.astype(jnp.promote_types(numbers.dtype, jnp.float32))


def _counted(z: Array, *counts: Array) -> Array:
    """Return logits, 0 in rows that do not count, whatever they hold."""
    return jnp.where(jnp.expand_dims(counts[0], CLASSES), z, 0) if counts else z


def _own(z: Array, labels: Array) -> Array:
    """Return the logit of each row's class, NaN if it has none."""
    classes, known = _classes(z, labels)
    rows = jnp.broadcast_shapes(classes.shape, (*z.shape[:-2], z.shape[-1]))
    every = jnp.broadcast_to(z, (*rows[:-1], *z.shape[-2:]))
    own = jnp.take_along_axis(every, jnp.expand_dims(jnp.broadcast_to(classes, rows), CLASSES), CLASSES)
    return jnp.where(known, jnp.squeeze(own, CLASSES), jnp.nan)


def _classes(z: Array, labels: Array) -> tuple[Array, Array]:
    """Return class indices, negative ones counted from the last class, and which of them are classes."""
    classes = jnp.where(labels < 0, labels + z.shape[CLASSES], labels)
    known = (classes >= 0) & (classes < z.shape[CLASSES])
    return jnp.where(known, classes, 0), known
