"""The losses as modules, which are PyTorch's but for who computes them."""

from __future__ import annotations

import torch
from torch import Tensor

from ._functions import binary_cross_entropy_with_logits, cross_entropy


class CrossEntropyLoss(torch.nn.CrossEntropyLoss):
    """Softmax cross-entropy as a module: `torch.nn.CrossEntropyLoss`, with options.

    Parameters
    ----------
    weight, size_average, ignore_index, reduce, reduction, label_smoothing
        Those of PyTorch's module, in its order.
    z_loss, softcap, temperature, focal_gamma, poly_epsilon
        Those of `cross_entropy`.

    Examples
    --------
    >>> import torch, xent_rs.torch
    >>> criterion = xent_rs.torch.CrossEntropyLoss(label_smoothing=0.1)
    >>> isinstance(criterion, torch.nn.CrossEntropyLoss)
    True
    >>> print(f"{criterion(torch.zeros(4, 10), torch.arange(4)):.4f}")
    2.3026
    """

    def __init__(
        self,
        weight: Tensor | None = None,
        size_average: bool | None = None,
        ignore_index: int = -100,
        reduce: bool | None = None,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
        *,
        z_loss: float = 0.0,
        softcap: float | None = None,
        temperature: float = 1.0,
        focal_gamma: float = 0.0,
        poly_epsilon: float = 0.0,
    ) -> None:
        super().__init__(weight, size_average, ignore_index, reduce, reduction, label_smoothing)
        self.z_loss = z_loss
        self.softcap = softcap
        self.temperature = temperature
        self.focal_gamma = focal_gamma
        self.poly_epsilon = poly_epsilon

    def forward(
        self,
        input: Tensor,
        target: Tensor,
        *,
        sample_weight: Tensor | None = None,
        denominator: float | Tensor | None = None,
    ) -> Tensor:
        """Return the loss; `sample_weight` and `denominator` are those of `cross_entropy`."""
        return cross_entropy(
            input,
            target,
            self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
            z_loss=self.z_loss,
            softcap=self.softcap,
            temperature=self.temperature,
            focal_gamma=self.focal_gamma,
            poly_epsilon=self.poly_epsilon,
            sample_weight=sample_weight,
            denominator=denominator,
        )


class BCEWithLogitsLoss(torch.nn.BCEWithLogitsLoss):
    """Binary cross-entropy of logits as a module: `torch.nn.BCEWithLogitsLoss`, with options.

    Parameters
    ----------
    weight, size_average, reduce, reduction, pos_weight
        Those of PyTorch's module, in its order.
    ignore_index, label_smoothing, focal_gamma
        Those of `binary_cross_entropy_with_logits`.

    Examples
    --------
    >>> import torch, xent_rs.torch
    >>> criterion = xent_rs.torch.BCEWithLogitsLoss(pos_weight=torch.tensor([1.0, 1.0, 3.0]))
    >>> print(f"{criterion(torch.zeros(2, 3), torch.ones(2, 3)):.4f}")
    1.1552
    """

    def __init__(
        self,
        weight: Tensor | None = None,
        size_average: bool | None = None,
        reduce: bool | None = None,
        reduction: str = "mean",
        pos_weight: Tensor | None = None,
        *,
        ignore_index: int | None = None,
        label_smoothing: float = 0.0,
        focal_gamma: float = 0.0,
    ) -> None:
        super().__init__(weight, size_average, reduce, reduction, pos_weight)
        self.ignore_index = ignore_index
        self.label_smoothing = label_smoothing
        self.focal_gamma = focal_gamma

    def forward(self, input: Tensor, target: Tensor, *, denominator: float | Tensor | None = None) -> Tensor:
        """Return the loss; `denominator` is that of `binary_cross_entropy_with_logits`."""
        return binary_cross_entropy_with_logits(
            input,
            target,
            self.weight,
            reduction=self.reduction,
            pos_weight=self.pos_weight,
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
            focal_gamma=self.focal_gamma,
            denominator=denominator,
        )
