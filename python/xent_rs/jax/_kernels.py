"""The kernels as functions of JAX's arrays, with derivatives of every order in both modes.

XLA calls them directly, with its own buffers, through its foreign function interface; on another platform than the
CPU, and for derivatives beyond the first, the formulas are computed. Shapes are those of `_formulas`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.custom_derivatives import SymbolicZero
from jax.typing import DTypeLike

from .. import _xent_rs
from . import _formulas
from ._formulas import CLASSES, loss_dtype
from ._linear import linear

for _name, _handler in _xent_rs.xla_handlers().items():
    jax.ffi.register_ffi_target(_name, _handler, platform="cpu")


@jax.custom_jvp
def softmax_loss(logits: Array, labels: Array, *counts: Array) -> Array:
    """Return the softmax cross-entropy of each row, 0 of one that does not count."""
    return _softmax_loss(logits, labels, *counts)


@jax.custom_jvp
def binary_loss(logits: Array, labels: Array) -> Array:
    """Return the binary cross-entropy of each element."""
    return _binary_loss(logits, labels)


@jax.jit
def _softmax_loss(logits: Array, labels: Array, *counts: Array) -> Array:
    def kernel(logits: Array, labels: Array, *counts: Array) -> Array:
        shape = _rows(logits, labels, *counts)
        return _call("xent_rs_cross_entropy", shape, loss_dtype(logits, labels), logits, labels, *counts)

    return _on_platform(kernel, _formulas.softmax_loss, logits, labels, *counts)


@jax.custom_jvp
@jax.jit
def _softmax_gradient(logits: Array, labels: Array, *rest: Array) -> Array:
    def kernel(logits: Array, labels: Array, *rest: Array) -> Array:
        *counts, cotangents = rest
        *leading, inner = _rows(logits, labels, *rest)
        shape = (*leading, logits.shape[CLASSES], inner)
        return _call("xent_rs_cross_entropy_grad", shape, logits.dtype, logits, labels, cotangents, *counts)

    return _on_platform(kernel, _formulas.softmax_gradient, logits, labels, *rest)


@jax.jit
def _binary_loss(logits: Array, labels: Array) -> Array:
    def kernel(logits: Array, labels: Array) -> Array:
        shape = jnp.broadcast_shapes(logits.shape, labels.shape)
        return _call("xent_rs_binary_cross_entropy", shape, logits.dtype, logits, labels)

    return _on_platform(kernel, _formulas.binary_loss, logits, labels)


@jax.custom_jvp
@jax.jit
def _binary_gradient(logits: Array, labels: Array, cotangents: Array) -> Array:
    def kernel(logits: Array, labels: Array, cotangents: Array) -> Array:
        shape = jnp.broadcast_shapes(logits.shape, labels.shape, cotangents.shape)
        return _call("xent_rs_binary_cross_entropy_grad", shape, logits.dtype, logits, labels, cotangents)

    return _on_platform(kernel, _formulas.binary_gradient, logits, labels, cotangents)


def _call(name: str, shape: Sequence[int], dtype: DTypeLike, *operands: Array) -> Array:
    # What a `vmap` does not map has an axis of length 1 there, which the handlers broadcast.
    result = jax.ShapeDtypeStruct(tuple(shape), dtype)
    called: Array = jax.ffi.ffi_call(name, result, vmap_method="expand_dims")(*operands)
    return called


def _on_platform(kernel: Callable[..., Array], formula: Callable[..., Array], *operands: Array) -> Array:
    computed: Array = lax.platform_dependent(*operands, cpu=kernel, default=formula)
    return computed


def _rows(logits: Array, labels: Array, *others: Array) -> tuple[int, ...]:
    """Return the shape of what is one a row."""
    of_logits = (*logits.shape[:-2], logits.shape[-1])
    floats = jnp.issubdtype(labels.dtype, jnp.floating)
    of_labels = (*labels.shape[:-2], labels.shape[-1]) if floats else labels.shape
    return jnp.broadcast_shapes(of_logits, of_labels, *(other.shape for other in others))


def _softmax_tangent(logits: Array, labels: Array, *rest: Array) -> Array:
    """Return Σ gradient·tangent of each row, of which `_softmax_gradient` is the transpose."""
    *counts, tangents = rest
    dtype, others = loss_dtype(logits, labels), (labels, *counts)
    ones = jnp.ones(_rows(logits, *others), dtype)
    gradient = _softmax_gradient(logits, *others, ones)
    return (gradient * tangents).sum(CLASSES).astype(dtype)


def _binary_tangent(logits: Array, labels: Array, tangents: Array) -> Array:
    """Return gradient·tangent of each element, which is its own transpose."""
    return _binary_gradient(logits, labels, tangents)


def _softmax_derivative(primals: Sequence[Array], tangents: Sequence[Any]) -> tuple[Array, Array]:
    logits, labels, *counts = primals
    losses, terms = softmax_loss(*primals), []
    if not isinstance(tangents[0], SymbolicZero):
        terms.append(linear(_softmax_tangent, _softmax_gradient, primals, tangents[0]))
    if not isinstance(tangents[1], SymbolicZero):
        slope = _formulas.softmax_labels_slope(logits, labels, *counts)
        terms.append((slope * tangents[1]).sum(CLASSES).astype(losses.dtype))
    return losses, sum(terms, jnp.zeros_like(losses))


def _binary_derivative(primals: Sequence[Array], tangents: Sequence[Any]) -> tuple[Array, Array]:
    losses, terms = binary_loss(*primals), []
    if not isinstance(tangents[0], SymbolicZero):
        terms.append(linear(_binary_tangent, _binary_gradient, primals, tangents[0]))
    if not isinstance(tangents[1], SymbolicZero):
        terms.append((_formulas.binary_labels_slope(*primals) * tangents[1]).astype(losses.dtype))
    return losses, sum(terms, jnp.zeros_like(losses))


softmax_loss.defjvp(_softmax_derivative, symbolic_zeros=True)
binary_loss.defjvp(_binary_derivative, symbolic_zeros=True)


@_softmax_gradient.defjvp
def _softmax_gradient_derivative(
    primals: Sequence[Array], tangents: Sequence[Array]
) -> tuple[Array, Array]:
    return _softmax_gradient(*primals), jax.jvp(_formulas.softmax_gradient, primals, tangents)[1]


@_binary_gradient.defjvp
def _binary_gradient_derivative(
    primals: Sequence[Array], tangents: Sequence[Array]
) -> tuple[Array, Array]:
    return _binary_gradient(*primals), jax.jvp(_formulas.binary_gradient, primals, tangents)[1]
