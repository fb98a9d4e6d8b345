"""The same losses in PyTorch's own operations, which know every device, transform and derivative.

Without options of this package they are PyTorch's own functions. They take the arguments of the operators,
after whether there are such options.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ._operators import class_axis


def cross_entropy(
    own_options: bool,
    logits: Tensor,
    targets: Tensor,
    weight: Tensor | None,
    sample_weight: Tensor | None,
    denominator: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
    softcap: float | None,
    temperature: float,
    focal_gamma: float,
    poly_epsilon: float,
    reduction: str,
    dtype: torch.dtype,
) -> Tensor:
    """Return `torch.nn.functional.cross_entropy`, or that with options."""
    logits, targets = logits.to(dtype), _class_indices(targets)
    weight = None if weight is None else weight.to(dtype)
    if not own_options:
        return functional.cross_entropy(
            logits,
            targets,
            weight,
            ignore_index=ignore_index,
            reduction=reduction,
            label_smoothing=label_smoothing,
        )
    _check_reduction(reduction, denominator)
    _check_positive("temperature", temperature)
    if softcap is not None:
        _check_positive("softcap", softcap)
    if _is_known(z_loss) and not 0 <= z_loss < math.inf:
        raise ValueError(f"z_loss is {1.0 * z_loss}; expected a finite number of at least 0")
    classes = class_axis(logits)
    probabilities = targets.is_floating_point()
    is_focused = _check_focus(focal_gamma, poly_epsilon, label_smoothing, probabilities)
    weights, counts, z = _rows_that_count(sample_weight, classes, logits)
    z = torch.where(z == -math.inf, z.detach(), z)  # a masked class has no derivative, the target neither
    if not probabilities:
        counts = counts & (targets != ignore_index)
        targets = torch.where(counts, targets, ignore_index)
    if softcap is not None:
        # A class that is masked stays masked.
        z = torch.where(z == -math.inf, z, softcap * torch.tanh(z / softcap))
    if is_given((temperature, 1)):
        z = z / temperature
    of_targets = None if weight is None or probabilities else weight[torch.where(counts, targets, 0)]
    losses = functional.cross_entropy(
        z,
        targets,
        None if is_focused else weight,
        ignore_index=ignore_index,
        reduction="none",
        label_smoothing=label_smoothing,
    )
    if is_focused:
        losses = _focused(losses, focal_gamma, poly_epsilon)
        losses = losses if of_targets is None else of_targets * losses
    if is_given((z_loss, 0)):
        losses = losses + z_loss * z.logsumexp(classes) ** 2
    losses = (weights * losses).masked_fill(~counts, 0)
    if of_targets is not None:
        weights = weights * of_targets
    return _reduced(losses, weights.masked_fill(~counts, 0), reduction, denominator)


def binary_cross_entropy(
    own_options: bool,
    logits: Tensor,
    targets: Tensor,
    weight: Tensor | None,
    pos_weight: Tensor | None,
    denominator: Tensor | None,
    ignore_index: int | None,
    label_smoothing: float,
    focal_gamma: float,
    reduction: str,
    dtype: torch.dtype,
) -> Tensor:
    """Return `torch.nn.functional.binary_cross_entropy_with_logits`, or that with options."""
    if not own_options:
        return functional.binary_cross_entropy_with_logits(
            logits.to(dtype), targets.to(dtype), weight, pos_weight=pos_weight, reduction=reduction
        )
    _check_reduction(reduction, denominator)
    if _is_known(label_smoothing) and not 0 <= label_smoothing <= 1:
        raise ValueError(f"label_smoothing is {label_smoothing}; expected 0 to 1")
    _check_gamma(focal_gamma)
    counts = torch.ones_like(targets, dtype=torch.bool) if ignore_index is None else targets != ignore_index
    targets = (targets.to(dtype) * (1 - label_smoothing) + label_smoothing / 2).masked_fill(~counts, 0)
    logits = logits.to(dtype).masked_fill(~counts, 0)
    losses = functional.binary_cross_entropy_with_logits(
        logits, targets, weight, pos_weight=pos_weight, reduction="none"
    )
    if is_given((focal_gamma, 0)):
        # At an infinite logit the probability stays what it is.
        x = torch.where(logits.isinf(), logits.detach(), logits)
        missing = targets * torch.sigmoid(-x) + (1 - targets) * torch.sigmoid(x)
        losses = _focal_power(missing, focal_gamma) * losses
    return _reduced(losses.masked_fill(~counts, 0), counts.to(dtype), reduction, denominator)


def kl_divergence(
    own_options: bool,
    logits: Tensor,
    target_logits: Tensor,
    sample_weight: Tensor | None,
    denominator: Tensor | None,
    kind: str,
    beta: float | Tensor,
    temperature: float,
    reduction: str,
    dtype: torch.dtype,
) -> Tensor:
    """Return the divergence of the softmax of `logits` from that of `target_logits`."""
    _check_reduction(reduction, denominator)
    _check_kind(kind, beta)
    _check_positive("temperature", temperature)
    logits, target_logits = logits.to(dtype), target_logits.to(dtype)
    classes = class_axis(logits)
    weights, _, logits, target_logits = _rows_that_count(sample_weight, classes, logits, target_logits)
    model = functional.log_softmax(logits / temperature, classes)
    teacher = functional.log_softmax(target_logits / temperature, classes)
    if kind == "forward":
        losses = _divergence(teacher, model, classes)
    elif kind == "reverse":
        losses = _divergence(model, teacher, classes)
    else:
        # A class that both mask has no logarithm in the mixture, and costs nothing.
        nothing = (model == -math.inf) & (teacher == -math.inf)
        share = torch.as_tensor(beta, dtype=dtype, device=model.device)
        of_teacher = teacher.masked_fill(nothing, 0) + share.log()
        mixture = torch.logaddexp(of_teacher, model.masked_fill(nothing, 0) + torch.log1p(-share))
        of_model = (1 - share) * _divergence(model, mixture, classes)
        losses = share * _divergence(teacher, mixture, classes) + of_model
    return _reduced(weights * losses, weights, reduction, denominator)


FORMULAS: dict[str, Callable[..., Tensor]] = {
    "cross_entropy": cross_entropy,
    "binary_cross_entropy": binary_cross_entropy,
    "kl_divergence": kl_divergence,
}


def _class_indices(targets: Tensor) -> Tensor:
    """Return targets with integers as PyTorch takes them, which are those of 64 bits."""
    if targets.is_floating_point() or targets.is_complex() or targets.dtype is torch.bool:
        return targets
    return targets.long()


def is_given(*options: tuple[Any, float | None]) -> bool:
    """Tell whether an option is not its default; a tensor is none, whatever it holds: it may be learned."""
    return any(isinstance(value, Tensor) or value != default for value, default in options)


def _is_known(value: Any) -> bool:
    """Tell whether one may look at a number: not at a tensor in a graph, or that stands for several."""
    if not isinstance(value, Tensor):
        return True
    return not torch.compiler.is_compiling() and not torch._C._functorch.is_batchedtensor(value)


def _text(value: Any) -> str:
    """Return a number for people, or that it is a tensor."""
    return str(1.0 * value) if _is_known(value) else "a tensor"


def _check_positive(name: str, value: Any) -> None:
    if _is_known(value) and not 0 < value < math.inf:
        raise ValueError(f"{name} is {1.0 * value}; expected a positive finite number")


def _check_reduction(reduction: str, denominator: Tensor | None) -> None:
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction is {reduction!r}; expected 'mean', 'sum' or 'none'")
    if denominator is not None and reduction != "mean":
        raise ValueError(
            f"denominator is given with reduction {reduction!r}; expected reduction 'mean', whose divisor it "
            "replaces"
        )


def _check_kind(kind: str, beta: float | Tensor) -> None:
    if kind not in ("forward", "reverse", "jensen_shannon"):
        raise ValueError(f"kind is {kind!r}; expected 'forward', 'reverse' or 'jensen_shannon'")
    if _is_known(beta) and not 0 < beta < 1:
        raise ValueError(
            f"beta is {beta}; expected a number above 0 and below 1; kind 'forward' is what others have "
            "at 0, 'reverse' at 1"
        )
    if kind != "jensen_shannon" and is_given((beta, 0.5)):
        raise ValueError(
            f"beta is {beta} with kind {kind!r}; expected kind 'jensen_shannon', the only one with a mixture"
        )


def _divergence(first: Tensor, second: Tensor, classes: int) -> Tensor:
    """Return KL(first || second) of two log-softmax."""
    # A class that the first masks costs nothing.
    difference = (first - second).masked_fill(first == -math.inf, 0)
    return (first.exp() * difference).sum(classes)


def _check_focus(
    focal_gamma: float, poly_epsilon: float, label_smoothing: float, probabilities: bool
) -> bool:
    """Tell whether there are terms that look at the probability of a class, which go with classes alone."""
    _check_gamma(focal_gamma)
    if _is_known(poly_epsilon) and not -math.inf < poly_epsilon < math.inf:
        raise ValueError(f"poly_epsilon is {1.0 * poly_epsilon}; expected a finite number")
    for name, value in (("focal_gamma", focal_gamma), ("poly_epsilon", poly_epsilon)):
        if not is_given((value, 0)):
            continue
        if is_given((label_smoothing, 0)):
            found = f"{name} is {_text(value)} with label_smoothing {_text(label_smoothing)}"
            raise ValueError(f"{found}; expected one of them")
        if probabilities:
            raise ValueError(
                f"{name} is {_text(value)} with probabilities as targets; expected class indices, whose "
                "probability it looks at"
            )
        return True
    return False


def _check_gamma(focal_gamma: float) -> None:
    if _is_known(focal_gamma) and not 0 <= focal_gamma <= 1e100:
        raise ValueError(f"focal_gamma is {1.0 * focal_gamma}; expected a number from 0 to 1e100")


def _focused(losses: Tensor, focal_gamma: float, poly_epsilon: float) -> Tensor:
    """Return (1 - p)**focal_gamma·loss + poly_epsilon·(1 - p) of losses -log p."""
    missing = -torch.expm1(-losses)
    # An infinite loss, of p = 0, stays as it is.
    of_power = torch.where(losses.isinf(), missing.detach(), missing)
    return _focal_power(of_power, focal_gamma) * losses + poly_epsilon * missing


def _focal_power(missing: Tensor, focal_gamma: float) -> Tensor:
    """Return missing**focal_gamma of missing = 1 - p, where p is 1 without a derivative."""
    power = torch.where(missing == 0, 1, missing) ** focal_gamma
    return torch.where(missing == 0, 0.0**focal_gamma, power)


def _rows_that_count(sample_weight: Tensor | None, classes: int, *logits: Tensor) -> tuple[Tensor, ...]:
    """Return the weight of each row, whether it is not 0, and the logits, 0 where it is."""
    rows = logits[0].select(classes, 0)
    if sample_weight is None:
        return torch.ones_like(rows), torch.ones_like(rows, dtype=torch.bool), *logits
    if sample_weight.shape != rows.shape:
        raise ValueError(
            f"sample_weight has shape {tuple(sample_weight.shape)}; expected {tuple(rows.shape)}, "
            "one number a row"
        )
    counts = sample_weight != 0
    left_out = ~counts.unsqueeze(classes)
    return sample_weight.to(rows.dtype), counts, *(x.masked_fill(left_out, 0) for x in logits)


def _reduced(losses: Tensor, weights: Tensor, reduction: str, denominator: Tensor | None) -> Tensor:
    if reduction == "none":
        return losses
    total = losses.sum()
    if reduction == "sum":
        return total
    divisor = weights.sum() if denominator is None else denominator.to(losses)
    # The mean of nothing is NaN, and its gradient 0.
    nothing = divisor == 0
    return torch.where(nothing, math.nan, total / torch.where(nothing, 1, divisor))
