"""The losses for JAX: optax's functions on the kernels of this package, inside `jit`, without a callback.

Functions have the arguments and the meaning of optax's: a loss for each row, which the caller reduces. They
are differentiable in both modes and to any order, and work under `jit`, `vmap`, `checkpoint`, `scan` and
`shard_map`. On another platform than the CPU they are computed by JAX.

Losses
------
softmax_cross_entropy                       -- for optax.softmax_cross_entropy
softmax_cross_entropy_with_integer_labels   -- for optax.softmax_cross_entropy_with_integer_labels
poly_loss_cross_entropy                     -- for optax.poly_loss_cross_entropy
sigmoid_binary_cross_entropy                -- for optax.sigmoid_binary_cross_entropy
sigmoid_focal_loss                          -- for optax.sigmoid_focal_loss
"""

from __future__ import annotations

try:
    import jax
except ImportError as error:
    raise ImportError(f"xent_rs.jax needs JAX ({error}): pip install xent_rs[jax]") from None

_OLDEST = (0, 5)
if tuple(int(number) for number in jax.__version__.split(".")[:2]) < _OLDEST:
    raise ImportError(
        f"xent_rs.jax needs JAX {_OLDEST[0]}.{_OLDEST[1]} or newer, and this is {jax.__version__}: "
        "pip install --upgrade xent_rs[jax]"
    )

from ._functions import (  # noqa: E402
    poly_loss_cross_entropy,
    sigmoid_binary_cross_entropy,
    sigmoid_focal_loss,
    softmax_cross_entropy,
    softmax_cross_entropy_with_integer_labels,
)

__all__ = [
    "poly_loss_cross_entropy",
    "sigmoid_binary_cross_entropy",
    "sigmoid_focal_loss",
    "softmax_cross_entropy",
    "softmax_cross_entropy_with_integer_labels",
]
