"""The kernels as functions of JAX's arrays, with derivatives of every order in both modes.

XLA calls them directly, with its own buffers, through its foreign function interface. On another platform
than the CPU, of rows of which some classes do not count, and for derivatives beyond the first, the formulas
are computed. Shapes and what counts are as `_formulas` has them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.custom_derivatives import SymbolicZero

from .. import _xent_rs
from . import _formulas
from ._formulas import CLASSES
from ._linear import linear

for _name, _handler in _xent_rs.xla_handlers().items():
    jax.ffi.register_ffi_target(_name, _handler, platform="cpu")


def softmax_loss(logits: Array, labels: Array, *counts: Array) -> Array:
    """Return the softmax cross-entropy of each row, 0 of one that does not count."""
    return _softmax_loss(*_varying_alike(logits, labels, *counts))


def binary_loss(logits: Array, labels: Array) -> Array:
    """Return the binary cross-entropy of each element."""
    return _binary_loss(*_varying_alike(logits, labels))


def _varying_alike(*operands: Array) -> list[Array]:
    """Return operands that all vary along the axes of a `shard_map`'s mesh along which one of them does.

    A gradient varies as much as all operands together, and is to vary as the logits do.
    """
    varying = [_varying(operand) for operand in operands]
    every = frozenset[str]().union(*varying)
    return [
        _vary(operand, tuple(every - own)) if own < every else operand
        for operand, own in zip(operands, varying, strict=True)
    ]


def _varying(array: Array) -> frozenset[str]:
    """Return the axes of a mesh along which an array varies, as far as JAX tells, which older ones do not."""
    kind = jax.typeof(array) if hasattr(jax, "typeof") else None
    axes: frozenset[str] = getattr(getattr(kind, "mat", None), "varying", getattr(kind, "vma", frozenset()))
    return axes


def _vary(array: Array, axes: tuple[str, ...]) -> Array:
    """Return an array that may vary along these axes of a mesh, too."""
    varying: Array = lax.pcast(array, axes, to="varying") if hasattr(lax, "pcast") else lax.pvary(array, axes)
    return varying


@jax.custom_jvp
@jax.jit
def _softmax_loss(logits: Array, labels: Array, *counts: Array) -> Array:
    if len(counts) > 1:
        return _formulas.softmax_loss(logits, labels, *counts)
    return _call("xent_rs_cross_entropy", _formulas.softmax_loss, logits, labels, *counts)


@jax.custom_jvp
@jax.jit
def _softmax_gradient(logits: Array, labels: Array, *rest: Array) -> Array:
    if len(rest) > 2:
        return _formulas.softmax_gradient(logits, labels, *rest)
    return _call("xent_rs_cross_entropy_grad", _formulas.softmax_gradient, logits, labels, *rest)


@jax.custom_jvp
@jax.jit
def _binary_loss(logits: Array, labels: Array) -> Array:
    return _call("xent_rs_binary_cross_entropy", _formulas.binary_loss, logits, labels)


@jax.custom_jvp
@jax.jit
def _binary_gradient(logits: Array, labels: Array, cotangents: Array) -> Array:
    return _call("xent_rs_binary_cross_entropy_grad", _formulas.binary_gradient, logits, labels, cotangents)


def _call(handler: str, formula: Callable[..., Array], *operands: Array) -> Array:
    """Return what a handler computes, or on another platform the formula."""

    def call(*operands: Array) -> Array:
        # What a `vmap` does not map has an axis of length 1 there, which the handlers broadcast.
        function = jax.ffi.ffi_call(handler, jax.eval_shape(formula, *operands), vmap_method="expand_dims")
        called: Array = function(*operands)
        return called

    computed: Array = lax.platform_dependent(*operands, cpu=call, default=formula)
    return computed


def _softmax_tangent(logits: Array, labels: Array, *rest: Array) -> Array:
    """Return Σ gradient·tangent of each row, of which `_softmax_gradient` is the transpose."""
    *counts, tangents = rest
    of_rows = jax.eval_shape(_formulas.softmax_loss, logits, labels, *counts)
    gradient = _softmax_gradient(logits, labels, *counts, jnp.ones(of_rows.shape, of_rows.dtype))
    return (gradient * tangents).sum(CLASSES).astype(of_rows.dtype)


def _binary_tangent(logits: Array, labels: Array, tangents: Array) -> Array:
    """Return gradient·tangent of each element, which is its own transpose."""
    return _binary_gradient(logits, labels, tangents)


def _softmax_derivative(primals: Sequence[Array], tangents: Sequence[Any]) -> tuple[Array, Array]:
    losses, terms = _softmax_loss(*primals), []
    if not isinstance(tangents[0], SymbolicZero):
        terms.append(linear(_softmax_tangent, _softmax_gradient, primals, tangents[0]))
    if not isinstance(tangents[1], SymbolicZero):
        slope = _formulas.softmax_labels_slope(*primals)
        terms.append((slope * tangents[1].astype(slope.dtype)).sum(CLASSES).astype(losses.dtype))
    return losses, sum(terms, jnp.zeros_like(losses))


def _binary_derivative(primals: Sequence[Array], tangents: Sequence[Any]) -> tuple[Array, Array]:
    losses, terms = _binary_loss(*primals), []
    if not isinstance(tangents[0], SymbolicZero):
        terms.append(linear(_binary_tangent, _binary_gradient, primals, tangents[0]))
    if not isinstance(tangents[1], SymbolicZero):
        wide = _formulas.wide_dtype(*primals)
        terms.append((-primals[0].astype(wide) * tangents[1].astype(wide)).astype(losses.dtype))
    return losses, sum(terms, jnp.zeros_like(losses))


_softmax_loss.defjvp(_softmax_derivative, symbolic_zeros=True)
_binary_loss.defjvp(_binary_derivative, symbolic_zeros=True)


@_softmax_gradient.defjvp
def _softmax_gradient_derivative(primals: Sequence[Array], tangents: Sequence[Array]) -> tuple[Array, Array]:
    return _softmax_gradient(*primals), jax.jvp(_formulas.softmax_gradient, primals, tangents)[1]


@_binary_gradient.defjvp
def _binary_gradient_derivative(primals: Sequence[Array], tangents: Sequence[Array]) -> tuple[Array, Array]:
    return _binary_gradient(*primals), jax.jvp(_formulas.binary_gradient, primals, tangents)[1]
