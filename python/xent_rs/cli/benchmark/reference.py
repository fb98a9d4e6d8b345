"""The float64 reference for answers, and the NumPy that one writes without this package."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

_BLOCK_BYTES = 2 << 20


class Reference:
    """The textbook formulas in float64, for logits of shape (rows, classes).

    Attributes
    ----------
    losses : ndarray of float64
        ``log(sum(exp(z - max(z)))) - (z[target] - max(z))`` of each row.
    span : float
        The largest ``max(z) - z``, on which the rounding errors of softmax depend.
    distance : float
        The smallest ``1 - p`` of any target: who subtracts 1 from p loses the digits that this lacks.
    """

    def __init__(self, logits: NDArray[Any], targets: NDArray[Any]) -> None:
        self._logits = logits
        self._targets = targets
        self.losses = np.empty(len(logits))
        self.span = 0.0
        for rows in self.blocks():
            z = self._shifted(rows)
            sums = np.exp(z).sum(axis=1)
            self.losses[rows] = np.log(sums) - z[np.arange(len(z)), targets[rows]]
            self.span = max(self.span, float(-z.min(initial=0.0)))
        self.distance = float(-np.expm1(-self.losses.min(initial=math.inf)))

    def gradient(self, rows: slice) -> NDArray[np.float64]:
        """Return some rows of the gradient of the mean loss, ``(softmax(z) - onehot(target)) / len(z)``."""
        p = np.exp(self._shifted(rows))
        p /= p.sum(axis=1, keepdims=True)
        entries = np.arange(len(p)), self._targets[rows]
        # p - 1 of the target is minus the sum of the others, which has all its digits.
        p[entries] = 0.0
        p[entries] = -p.sum(axis=1)
        p /= len(self._logits)
        return p

    def blocks(self) -> list[slice]:
        """Return the rows in blocks that keep the float64 copies small."""
        rows, classes = self._logits.shape
        step = max(1, _BLOCK_BYTES // (8 * classes))
        return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]

    def _shifted(self, rows: slice) -> NDArray[np.float64]:
        z = self._logits[rows].astype(np.float64)
        z -= z.max(axis=1, keepdims=True)
        return z


def loss_bounds(losses: NDArray[np.float64], classes: int) -> NDArray[np.float64]:
    """Return the promised error of float32 losses, ``u * (ln(C) + 2) + ulp(loss) / 2`` with u = 2**-24."""
    half_ulp = np.spacing(losses.astype(np.float32)).astype(np.float64) / 2
    return 2.0**-24 * (math.log(classes) + 2) + half_ulp


def numpy_loss(logits: NDArray[Any], targets: NDArray[Any]) -> float:
    """Compute the mean loss in plain NumPy, in the dtype of the logits."""
    z = logits - logits.max(axis=1, keepdims=True)
    picked = z[np.arange(len(z)), targets]
    np.exp(z, out=z)
    return float(np.mean(np.log(z.sum(axis=1)) - picked))


def numpy_loss_and_gradient(
    logits: NDArray[Any], targets: NDArray[Any], out: NDArray[Any] | None = None
) -> tuple[float, NDArray[Any]]:
    """Compute the mean loss and its gradient in plain NumPy, in the dtype of the logits."""
    rows = np.arange(len(logits))
    z = np.subtract(logits, logits.max(axis=1, keepdims=True), out=out)
    picked = z[rows, targets]
    np.exp(z, out=z)
    sums = z.sum(axis=1, keepdims=True)
    loss = float(np.mean(np.log(sums[:, 0]) - picked))
    z *= 1 / (len(z) * sums)
    z[rows, targets] -= z.dtype.type(1 / len(z))
    return loss, z
