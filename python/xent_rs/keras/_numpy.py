"""The losses on Keras's NumPy backend, which has no gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._binary_cross_entropy import binary_cross_entropy
from .._cross_entropy import cross_entropy
from ._backend import NO_CLASS


def covers(logits: NDArray[Any]) -> bool:
    """Say yes: all arrays are in the memory of the CPU."""
    del logits
    return True


def either(
    which: NDArray[Any], first: Callable[[], NDArray[Any]], second: Callable[[], NDArray[Any]]
) -> NDArray[Any]:
    """Return what one of two functions does."""
    return first() if which else second()


def of_classes(
    logits: NDArray[Any], labels: NDArray[Any], axis: int, ignored: int | None, gamma: float = 0.0
) -> NDArray[Any]:
    """Return the loss of each row, of classes."""
    ignore_index = NO_CLASS if ignored is None else ignored
    losses = cross_entropy(
        logits,
        labels.astype(np.int64),
        axis=axis,
        ignore_index=ignore_index,
        focal_gamma=gamma,
        reduction="none",
    )
    return np.asarray(losses, logits.dtype)


def of_probabilities(
    logits: NDArray[Any], labels: NDArray[Any], axis: int, label_smoothing: float
) -> NDArray[Any]:
    """Return the loss of each row, of probabilities."""
    losses = cross_entropy(logits, labels, axis=axis, label_smoothing=label_smoothing, reduction="none")
    return np.asarray(losses, logits.dtype)


def of_yes_or_no(
    logits: NDArray[Any], labels: NDArray[Any], label_smoothing: float, gamma: float = 0.0
) -> NDArray[Any]:
    """Return the loss of each element."""
    losses = binary_cross_entropy(
        logits, labels, label_smoothing=label_smoothing, focal_gamma=gamma, reduction="none"
    )
    return np.asarray(losses, logits.dtype)
