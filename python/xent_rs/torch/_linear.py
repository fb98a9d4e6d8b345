"""The loss of hidden states and the last layer, whose logits are never all in memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from .. import _xent_rs
from .._linear_cross_entropy import GRADIENT, LOSS, linear_loss
from .._products import Matrix, Products
from ._formulas import FORMULAS
from ._functions import (
    check_ignored,
    check_tensors,
    has_own_options,
    is_graph_kept,
    number,
    stands_for_several,
    within_reach,
)
from ._operators import array, as_tensor, loss_tensor, register


def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    options: Any = None,
    z_loss: float = 0.0,
    softcap: float | None = None,
    temperature: float = 1.0,
    focal_gamma: float = 0.0,
    poly_epsilon: float = 0.0,
    sample_weight: Tensor | None = None,
    denominator: float | Tensor | None = None,
) -> Tensor:
    """Cross-entropy of ``linear(input, linear_weight, linear_bias)``, whose logits are never all in memory.

    It is `torch.nn.functional.linear_cross_entropy`: `cross_entropy` of logits of which those of 256 rows are
    in memory at a time (up to 1,024 with weights of 16 bits). All gradients are computed along with the loss,
    in three products where autograd needs three and all logits.

    Parameters
    ----------
    input : Tensor of shape (..., K)
        Hidden states; of float16, bfloat16, float32 or float64, in any memory layout.
    linear_weight : Tensor of shape (C, K)
        The weights of the last layer: a row for each class.
    target : Tensor
        Integers: the class of each row, in the shape of `input` without the last dimension. Floats:
        probabilities, with C in the place of K.
    linear_bias : Tensor of shape (C), optional
        The bias of the last layer.
    weight : Tensor of shape (C), optional
        A weight for each class.
    reduction : {'mean', 'sum', 'none'}, optional
        The mean is over rows, weighted by ``weight[target]``; that of probabilities divides by their number.
    ignore_index : int, optional
        Rows with this class have loss 0 and do not count; -100 by default.
    label_smoothing : float, optional
        The share of the target that is spread evenly over all classes.
    options : torch.nn.LinearCrossEntropyOptions, optional
        How PyTorch would take its chunks. It is not looked at: here they are always taken.
    z_loss, softcap, temperature, focal_gamma, poly_epsilon, sample_weight, denominator
        As for `cross_entropy`.

    Returns
    -------
    Tensor
        A number, or for 'none' one for each row; of the dtype of `input`, and float32 for 16 bits under
        `torch.autocast`.

    Raises
    ------
    RuntimeError, ValueError, TypeError, IndexError
        As `cross_entropy`, and as PyTorch for a layer whose tensors do not go together.

    See Also
    --------
    xent_rs.linear_cross_entropy : The same for arrays.

    Notes
    -----
    The products are PyTorch's, in float32 for 16-bit tensors, into which they are converted exactly, 32 MiB
    at a time; gradients are summed in float32, and rounded once after they are multiplied by the derivative
    of the loss. With ``reduction='none'`` that derivative comes first, and logits are computed again.

    PyTorch's own takes `input` of one or two dimensions. Where the kernels do not reach, and for second
    derivatives, all logits are in memory (docs/torch.md).

    Examples
    --------
    >>> import torch, xent_rs.torch
    >>> hidden = torch.tensor([[1.0, 2.0], [0.0, 1.0]], requires_grad=True)
    >>> layer = torch.nn.Linear(2, 3)
    >>> target = torch.tensor([0, 1])
    >>> loss = xent_rs.torch.linear_cross_entropy(hidden, layer.weight, target, linear_bias=layer.bias)
    >>> expected = torch.nn.functional.cross_entropy(layer(hidden), target)
    >>> torch.testing.assert_close(loss, expected)
    """
    given = {"linear_bias": linear_bias, "weight": weight, "sample_weight": sample_weight}
    check_tensors(given, input=input, linear_weight=linear_weight, target=target)
    ignore_index = -100 if ignore_index is None else ignore_index
    check_ignored(ignore_index, target)
    dtype = input.dtype
    if target.is_floating_point():
        dtype = torch.promote_types(dtype, target.dtype)
    if dtype.itemsize == 2 and torch.is_autocast_enabled("cpu"):
        dtype = torch.float32
    tensors = (linear_bias, target, weight, sample_weight, number(denominator))
    numbers = (
        ignore_index,
        label_smoothing,
        z_loss,
        softcap,
        temperature,
        focal_gamma,
        poly_epsilon,
        reduction,
        dtype,
    )
    own_options = has_own_options(
        z_loss, softcap, temperature, focal_gamma, poly_epsilon, sample_weight, denominator
    )
    parts = (input, linear_weight, linear_bias)
    # A number that is a tensor may have a derivative: a temperature that is learned.
    if (
        not any(isinstance(value, Tensor) for value in numbers)
        and _go_together(*parts)
        and all(part is None or within_reach(part, tensors[1:]) for part in parts)
    ):
        try:
            return _by_kernels(own_options, parts, tensors[1:], numbers)
        except (TypeError, ValueError):
            # As for other losses: PyTorch says it in its own words, but of a setting in the environment.
            _xent_rs.config()
            if own_options:
                raise
            _check_on_meta(own_options, input, linear_weight, *tensors, *numbers)
    return _formula(own_options, input, linear_weight, *tensors, *numbers)


def _by_kernels(
    own_options: bool,
    parts: tuple[Tensor | None, ...],
    tensors: tuple[Tensor | None, ...],
    numbers: tuple[Any, ...],
) -> Tensor:
    loss: Tensor
    if torch.is_grad_enabled() and any(part is not None and part.requires_grad for part in parts):
        loss = _LinearLoss.apply(own_options, numbers, *parts, *tensors)
    else:
        loss = LINEAR.loss(*parts, *tensors, *numbers)
    return loss


def _check_on_meta(*arguments: Any) -> None:
    """Raise what PyTorch says of tensors of these shapes and dtypes, without their logits."""
    with torch.no_grad():
        _formula(*(value.to("meta") if isinstance(value, Tensor) else value for value in arguments))


def _go_together(input: Tensor, linear_weight: Tensor, linear_bias: Tensor | None) -> bool:
    """Tell whether `linear` takes these as they are, or under autocast; what is wrong PyTorch says."""
    parts = [part for part in (input, linear_weight, linear_bias) if part is not None]
    same = len({part.dtype for part in parts}) == 1 or torch.is_autocast_enabled("cpu")
    return (
        same
        and input.dim() > 0
        and linear_weight.dim() == 2
        and linear_weight.shape[0] > 0
        and input.shape[-1] == linear_weight.shape[1]
        and (linear_bias is None or linear_bias.shape == linear_weight.shape[:1])
    )


def _formula(
    own_options: bool,
    input: Tensor,
    linear_weight: Tensor,
    linear_bias: Tensor | None,
    targets: Tensor,
    *others: Any,
) -> Tensor:
    """Return the same by PyTorch's own operations, of which rows that do not count reach none."""
    if linear_weight.dim() < 2:
        raise ValueError(
            f"linear_weight has shape {tuple(linear_weight.shape)}; expected (classes, features)"
        )
    classes, *shape, features = linear_weight.shape
    if not shape:
        _, sample_weight, _, ignore_index, *_ = others
        left_out = None if targets.is_floating_point() else targets == ignore_index
        if sample_weight is not None:
            left_out = sample_weight == 0 if left_out is None else left_out | (sample_weight == 0)
        if left_out is not None and left_out.shape == input.shape[:-1]:
            input = input.masked_fill(left_out.unsqueeze(-1), 0)
    flat_bias = None if linear_bias is None else linear_bias.reshape(-1)
    logits = functional.linear(input, linear_weight.reshape(-1, features), flat_bias)
    if shape:  # of PyTorch alone: a loss of several dimensions for each row
        logits = logits.reshape(*input.shape[:-1], classes, *shape)
    elif logits.dim() > 2:
        # Classes come second in PyTorch's loss.
        logits = logits.movedim(-1, 1)
        targets = targets.movedim(-1, 1) if targets.is_floating_point() else targets
    return FORMULAS["cross_entropy"](own_options, logits, targets, *others)


class _TorchProducts(Products):
    """Products of matrices, and conversions, by PyTorch."""

    def multiply(self, left: Matrix, right: Matrix, out: Matrix) -> None:
        """Write ``left @ right``."""
        torch.mm(as_tensor(left), as_tensor(right), out=as_tensor(out))

    def add_product(self, left: Matrix, right: Matrix, out: Matrix) -> None:
        """Add ``left @ right`` to what `out` holds."""
        as_tensor(out).addmm_(as_tensor(left), as_tensor(right))

    def convert(self, values: Matrix, out: Matrix) -> None:
        """Write a matrix of any of our dtypes as float32 or float64."""
        as_tensor(out).copy_(as_tensor(values))

    def round(self, values: Matrix, out: Matrix) -> None:
        """Write a matrix of float32 or float64 in any of our dtypes, rounded to the nearest."""
        as_tensor(out).copy_(as_tensor(values))


_PRODUCTS = _TorchProducts()
_TENSORS = (
    "Tensor input, Tensor linear_weight, Tensor? linear_bias, Tensor targets, Tensor? weight, "
    "Tensor? sample_weight, Tensor? denominator"
)
_NUMBERS = (
    "int ignore_index, float label_smoothing, float z_loss, float? softcap, float temperature, "
    "float focal_gamma, float poly_epsilon, str reduction, ScalarType dtype"
)
_NAMES = (
    *("weight", "sample_weight", "denominator"),
    *(argument.split()[1] for argument in _NUMBERS.split(", ")[:-1]),
)


def _call(
    keywords: Any, tensors: tuple[Tensor | None, ...], values: tuple[Any, ...], **others: Any
) -> tuple[Any, Any]:
    input, linear_weight, linear_bias, targets, *of_rows = tensors
    given = dict(zip(_NAMES, (*of_rows, *values), strict=True))
    options = {name: array(value) if isinstance(value, Tensor) else value for name, value in given.items()}
    assert input is not None
    assert linear_weight is not None
    assert targets is not None
    layer = (array(input), array(linear_weight), None if linear_bias is None else array(linear_bias))
    options.update(others.pop("options", {}))
    return linear_loss(layer, array(targets), keywords, options, products=_PRODUCTS, **others)


def _loss(*arguments: Any) -> Tensor:
    *values, dtype = arguments
    found, _ = _call(LOSS, tuple(values[:7]), tuple(values[7:]))
    return loss_tensor(found, dtype)


def _loss_with_grad(
    grad_output: Tensor | None, wanted: list[bool], *arguments: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    *values, dtype = arguments
    gradients = _gradients_of_no_data(wanted, *values[:3])
    options = {
        "grad_output": None if grad_output is None else array(grad_output),
        "out": tuple(array(each) if asked else None for each, asked in zip(gradients, wanted, strict=True)),
    }
    found, _ = _call(GRADIENT, tuple(values[:7]), tuple(values[7:]), wanted=tuple(wanted), options=options)
    return (loss_tensor(found, dtype), *gradients)


def _gradients_of_no_data(wanted: list[bool], *parts: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Return tensors for the gradients, of the dtype in which they are summed; empty if not wanted."""
    input, linear_weight, _ = parts
    assert input is not None
    assert linear_weight is not None
    sizes = [part.dtype.itemsize for part in (input, linear_weight)]
    dtype = torch.float64 if 8 in sizes else torch.float32
    first, second, third = (
        input.new_empty(part.shape if asked and part is not None else (0,), dtype=dtype)
        for part, asked in zip(parts, wanted, strict=True)
    )
    return first, second, third


def _loss_of_no_data(*arguments: Any) -> Tensor:
    input, *_, reduction, dtype = arguments
    shape: Any = input.shape[:-1] if reduction == "none" else ()
    found: Tensor = input.new_empty(shape, dtype=dtype)
    return found


def _loss_with_grad_of_no_data(
    grad_output: Tensor | None, wanted: list[bool], *arguments: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return (_loss_of_no_data(*arguments), *_gradients_of_no_data(wanted, *arguments[:3]))


LINEAR = register(
    "linear_cross_entropy",
    f"{_TENSORS}, {_NUMBERS}",
    "Tensor? grad_output, bool[3] wanted",
    "(Tensor, Tensor, Tensor, Tensor)",
    (_loss, _loss_of_no_data),
    (_loss_with_grad, _loss_with_grad_of_no_data),
)


class _LinearLoss(torch.autograd.Function):
    """The loss, with the gradients of a mean or a sum along with it."""

    @staticmethod
    def forward(ctx: Any, own_options: bool, numbers: tuple[Any, ...], *tensors: Tensor | None) -> Tensor:
        ctx.own_options, ctx.numbers = own_options, numbers
        ctx.wanted = list(ctx.needs_input_grad[2:5])
        *_, reduction, _ = numbers
        loss: Tensor
        gradients: tuple[Tensor | None, ...] = (None, None, None)
        if reduction == "none":
            loss = LINEAR.loss(*tensors, *numbers)
        else:
            loss, *found = LINEAR.with_grad(None, ctx.wanted, *tensors, *numbers)
            gradients = tuple(found)
        ctx.save_for_backward(*gradients, *tensors)
        return loss

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        gradients, tensors = saved[:3], saved[3:]
        if not torch.compiler.is_compiling() and (torch.is_grad_enabled() or stands_for_several(grad_output)):
            # The gradients are to be differentiated in turn, or asked for of many derivatives at once.
            with torch.enable_grad():
                wide = (
                    torch.float64 if any(part.dtype.itemsize == 8 for part in tensors[:2]) else torch.float32
                )
                layer = [None if part is None else part.to(wide) for part in tensors[:3]]
                loss = _formula(ctx.own_options, *layer, *tensors[3:], *ctx.numbers)
            parts = [part for part, asked in zip(tensors, ctx.wanted, strict=False) if asked]
            found = iter(torch.autograd.grad(loss, parts, grad_output, create_graph=torch.is_grad_enabled()))
            gradients = [next(found) if asked else None for asked in ctx.wanted]
            return (None, None, *gradients, *(None for _ in tensors[3:]))
        factor: Tensor | None = grad_output
        if gradients[0] is None:
            _, *gradients = LINEAR.with_grad(grad_output, ctx.wanted, *tensors, *ctx.numbers)
            factor = None
        results: list[Tensor | None] = []
        for gradient, tensor, asked in zip(gradients, tensors, ctx.wanted, strict=False):
            if not asked:
                results.append(None)
                continue
            scaled = gradient if factor is None or _is_one(factor) else gradient * factor.to(gradient.dtype)
            result = scaled.to(tensor.dtype)
            # What is kept for another backward pass is not the caller's.
            is_kept = result is gradient and factor is not None and is_graph_kept()
            results.append(result.clone() if is_kept else result)
        return (None, None, *results, *(None for _ in tensors[3:]))


def _is_one(factor: Tensor) -> bool:
    return not torch.compiler.is_compiling() and factor.item() == 1
