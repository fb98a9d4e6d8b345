"""The losses on Keras's JAX backend, by `xent_rs.jax`."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array, lax

from ..jax import (
    sigmoid_binary_cross_entropy,
    sigmoid_focal_loss,
    softmax_cross_entropy,
    softmax_cross_entropy_with_integer_labels,
)
from ._focal import focal


def covers(logits: Array) -> bool:
    """Say yes: another platform than the CPU is left to JAX further down."""
    del logits
    return True


def either(which: Array, first: Callable[[], Array], second: Callable[[], Array]) -> Array:
    """Return what one of two functions does."""
    if isinstance(which, jax.core.Tracer):
        chosen: Array = lax.cond(which, first, second)
        return chosen
    return first() if which else second()


def of_classes(logits: Array, labels: Array, axis: int, ignored: int | None, gamma: float = 0.0) -> Array:
    """Return the loss of each row, of classes."""
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        labels = labels.astype(jnp.int32)
    where = None if ignored is None else labels != ignored
    if jnp.issubdtype(labels.dtype, jnp.signedinteger):
        # A label below 0 would count from the last class; the largest number is none.
        labels = jnp.where(labels < 0, jnp.iinfo(labels.dtype).max, labels)
    losses = softmax_cross_entropy_with_integer_labels(logits, labels, axis, where)
    return losses if gamma == 0 else focal(losses, -jnp.expm1(-losses), gamma)


def of_probabilities(logits: Array, labels: Array, axis: int, label_smoothing: float) -> Array:
    """Return the loss of each row, of probabilities."""
    if label_smoothing:
        labels = labels * (1 - label_smoothing) + label_smoothing / logits.shape[axis]
    return softmax_cross_entropy(logits, labels, axis)


def of_yes_or_no(logits: Array, labels: Array, label_smoothing: float, gamma: float = 0.0) -> Array:
    """Return the loss of each element."""
    if label_smoothing:
        labels = labels * (1 - label_smoothing) + label_smoothing / 2
    if gamma == 0:
        return sigmoid_binary_cross_entropy(logits, labels)
    return sigmoid_focal_loss(logits, labels, gamma=gamma)
