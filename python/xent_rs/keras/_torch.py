"""The losses on Keras's PyTorch backend, by `xent_rs.torch`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..torch import binary_cross_entropy_with_logits, cross_entropy
from ._backend import NO_CLASS


def covers(logits: Tensor) -> bool:
    """Say yes: what the kernels cannot compute is left to PyTorch further down."""
    del logits
    return True


def either(which: Tensor, first: Callable[[], Tensor], second: Callable[[], Tensor]) -> Tensor:
    """Return what one of two functions does."""
    return first() if which else second()


def of_classes(logits: Tensor, labels: Tensor, axis: int, ignored: int | None, gamma: float = 0.0) -> Tensor:
    """Return the loss of each row, of classes."""
    ignore_index = NO_CLASS if ignored is None else ignored
    losses = cross_entropy(
        _classes_second(logits, axis),
        labels.to(torch.int64),
        ignore_index=ignore_index,
        focal_gamma=gamma,
        reduction="none",
    )
    return losses.to(logits.dtype)


def of_probabilities(logits: Tensor, labels: Tensor, axis: int, label_smoothing: float) -> Tensor:
    """Return the loss of each row, of probabilities."""
    losses = cross_entropy(
        _classes_second(logits, axis),
        _classes_second(labels, axis),
        label_smoothing=label_smoothing,
        reduction="none",
    )
    return losses.to(logits.dtype)


def of_yes_or_no(logits: Tensor, labels: Tensor, label_smoothing: float, gamma: float = 0.0) -> Tensor:
    """Return the loss of each element."""
    losses = binary_cross_entropy_with_logits(
        logits, labels, label_smoothing=label_smoothing, focal_gamma=gamma, reduction="none"
    )
    return losses.to(logits.dtype)


def _classes_second(tensor: Tensor, axis: int) -> Tensor:
    """Return a view with the classes where PyTorch has them."""
    return tensor.movedim(axis, 1) if tensor.ndim > 1 else tensor
