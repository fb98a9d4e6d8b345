"""What a backend has to offer: a module for each, `_jax`, `_numpy`, `_tensorflow` and `_torch`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

#: A tensor of whichever backend.
Tensor = Any

#: The class to ignore where none is: no label is that large, nor becomes it when it is converted from NaN.
NO_CLASS = 2**62


class Backend(Protocol):
    """The losses of one backend: differentiable, of the dtype of the logits, not reduced."""

    def covers(self, logits: Tensor) -> bool:
        """Whether these functions can compute the losses here; else Keras's own do."""

    def either(self, which: Tensor, first: Callable[[], Tensor], second: Callable[[], Tensor]) -> Tensor:
        """Return ``first()`` or ``second()``, whichever `which`, a bool, says when the program runs."""

    def of_classes(
        self, logits: Tensor, labels: Tensor, axis: int, ignored: int | None, gamma: float = 0.0
    ) -> Tensor:
        """Return lse - logit[label] of each row, 0 of one whose label is `ignored`; `labels` are numbers.

        It is multiplied by (1 - p)**gamma, p being the probability of the label.
        """

    def of_probabilities(self, logits: Tensor, labels: Tensor, axis: int, label_smoothing: float) -> Tensor:
        """Return Σ label·(lse - logit) of each row; `labels` have the shape and the dtype of `logits`."""

    def of_yes_or_no(
        self, logits: Tensor, labels: Tensor, label_smoothing: float, gamma: float = 0.0
    ) -> Tensor:
        """Return (1 - label)·logit + log(1 + exp(-logit)) of each element; `labels` and `gamma` as above."""
