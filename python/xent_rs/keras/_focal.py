"""The factor of a focal loss, in the operations of every backend."""

from __future__ import annotations

from keras import ops

from ._backend import Tensor


def focal(losses: Tensor, missing: Tensor, gamma: float) -> Tensor:
    """Return missing**gamma·loss, where missing is 1 - p of the target; at p = 0 p has no slope."""
    # At p = 1 the power has no slope, or an infinite one; the loss is 0 there.
    none = ops.equal(missing, 0)
    power = ops.where(
        none, ops.zeros_like(missing), ops.power(ops.where(none, ops.ones_like(missing), missing), gamma)
    )
    finite = ops.isfinite(losses)
    of_finite = power * ops.where(finite, losses, ops.zeros_like(losses))
    return ops.where(finite, of_finite, ops.stop_gradient(power) * losses)
