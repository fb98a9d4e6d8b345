"""The losses with their options in float64, and how far from that this package's answers may be.

Of a few rows: `tests/` hold every function to its bounds, here it is enough that what is timed does the work.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

# Unit roundoff and smallest positive number of the type in which this package computes.
_UNIT, _TINY = 2.0**-24, 2.0**-149


class Softmax:
    """The softmax of some rows of float32 logits or narrower, and how far off ours may be."""

    def __init__(self, logits: Array, temperature: float = 1.0, softcap: float | None = None) -> None:
        z = logits.astype(np.float64)
        self.slope: Array | float = 1 / temperature
        slack = 0.0
        if softcap is not None:
            self.slope = 1 / np.cosh(z / softcap) ** 2 / temperature
            z = softcap * np.tanh(z / softcap)
            slack = float(np.abs(z).max()) / temperature / 10
        self.z = z / temperature
        peak = self.z.max(axis=1, keepdims=True)
        terms = np.exp(self.z - peak)
        sums = terms.sum(axis=1, keepdims=True)
        self.p = terms / sums
        self.lse = np.log(sums) + peak
        self.log_p = self.z - self.lse
        logs = math.log(logits.shape[1]) + slack
        self.log_bound = _UNIT * (logs + 2)
        self.p_bound = _UNIT * (peak - self.z + logs + 4) * self.p + _TINY


class CrossEntropy:
    """The loss of some rows, its derivatives with respect to the logits, and their bounds.

    `targets` are classes or, of the shape of the logits, probabilities.
    """

    def __init__(
        self,
        logits: Array,
        targets: Array,
        *,
        weight: Array | None = None,
        sample_weight: Array | None = None,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
        softcap: float | None = None,
        temperature: float = 1.0,
    ) -> None:
        rows, classes = logits.shape
        softmax = Softmax(logits, temperature, softcap)
        wanted = targets if targets.ndim == 2 else targets[:, None] == np.arange(classes)
        shares = (1 - label_smoothing) * wanted.astype(np.float64) + label_smoothing / classes
        if weight is not None:
            shares *= weight.astype(np.float64)
        scale = np.ones(rows) if sample_weight is None else sample_weight.astype(np.float64)
        mass = shares.sum(axis=1, keepdims=True)
        penalty = 2 * z_loss * softmax.lse

        self.losses = scale * ((shares * -softmax.log_p).sum(axis=1) + z_loss * softmax.lse[:, 0] ** 2)
        self.loss_bounds = scale * (mass + np.abs(penalty))[:, 0] * softmax.log_bound + _rounding(self.losses)

        factor = scale[:, None] * softmax.slope
        self.gradient = factor * ((mass + penalty) * softmax.p - shares)
        bound = (mass + np.abs(penalty)) * softmax.p_bound + 2 * _UNIT * shares
        bound += 2 * z_loss * softmax.log_bound * softmax.p
        # Where the target leads, its entry is minus the sum of the others.
        bound += shares / mass * bound.sum(axis=1, keepdims=True)
        self.gradient_bounds = factor * bound + 4 * _UNIT * np.abs(self.gradient)

        self.hessian = factor * softmax.slope * mass * softmax.p * (1 - softmax.p)
        self.hessian_bounds = 2 * factor * softmax.slope * mass * softmax.p_bound + _UNIT * self.hessian


class KlDivergence:
    """KL(teacher || model) of some rows, its derivative with respect to the logits, and their bounds."""

    def __init__(self, logits: Array, target_logits: Array) -> None:
        model, teacher = Softmax(logits), Softmax(target_logits)
        ratios = teacher.log_p - model.log_p
        self.losses = (teacher.p * ratios).sum(axis=1)
        self.loss_bounds = 2 * model.log_bound + (teacher.p_bound * np.abs(ratios)).sum(axis=1)
        self.loss_bounds += _rounding(self.losses)
        self.gradient = model.p - teacher.p
        self.gradient_bounds = model.p_bound + teacher.p_bound + _UNIT * np.abs(self.gradient)


class BinaryCrossEntropy:
    """The loss of every element, its derivative with respect to the logits, and their bounds."""

    def __init__(self, logits: Array, targets: Array) -> None:
        x, t = logits.astype(np.float64), targets.astype(np.float64)
        softplus = np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))
        self.losses = softplus - t * x
        self.loss_bounds = 2 * _UNIT * (math.log(2) + 2) + _rounding(self.losses)
        self.gradient = 1 / (1 + np.exp(-x)) - t
        self.gradient_bounds = np.broadcast_to(2 * _UNIT * (np.abs(x) + math.log(2) + 4) + _TINY, x.shape)


def _rounding(values: Array) -> Array:
    """Half an ulp of values in float32."""
    return np.asarray(np.abs(values) * _UNIT + _TINY)


def share(found: Any, expected: Array, bounds: Any) -> float:
    """Return the largest error as a share of its bound; NaN if one is."""
    return float((np.abs(np.asarray(found, np.float64) - expected) / bounds).max())
