"""The kernels as operators of PyTorch, ``torch.ops.xent_rs.*``, which compilers and exporters know.

Of each loss there are two: the loss, and the loss with its gradient; of losses of classes there are the
Hessian times a vector and the gradient of targets besides. They take what the functions of `xent_rs` take,
without defaults: tensors, then numbers, the last of which are the reduction and the dtype of the loss.
Classes are along dimension 1, or 0 of one row, as in PyTorch; those of hidden states are last. They have no
derivatives: `_functions` and `_linear` give them theirs.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

import xent_rs

from .._bfloat16 import bfloat16


class Operator(NamedTuple):
    """A loss, ``loss(*tensors, *numbers, dtype)``, and ``with_grad(grad_output, *tensors, ...)``.

    Where there are such, ``hvp(vector, grad_output, *tensors, ...)``, the Hessian times a vector, and
    ``target_grad(grad_output, *tensors, ...)``, the gradient of targets that are probabilities, if
    `has_further_derivatives`. `numbers` are the names of the numbers.
    """

    loss: Any
    with_grad: Any
    hvp: Any = None
    target_grad: Any = None
    numbers: tuple[str, ...] = ()

    def has_further_derivatives(self, numbers: tuple[Any, ...]) -> bool:
        """Tell whether the loss with these numbers, and a dtype, has those that it may have."""
        given = dict(zip(self.numbers, numbers, strict=False))
        return all(given.get(option, value) == value for option, value in _OF_FURTHER_DERIVATIVES.items())


# Options of which the kernels of further derivatives know one value.
_OF_FURTHER_DERIVATIVES = {
    "softcap": None,
    "focal_gamma": 0.0,
    "poly_epsilon": 0.0,
    "kind": "forward",
    "beta": 0.5,
}


def array(tensor: Tensor) -> np.ndarray[Any, Any]:
    """Return a tensor in CPU memory as an array that shares its memory."""
    shared: np.ndarray[Any, Any]
    if tensor.dtype is torch.bfloat16:  # NumPy has no such dtype: by way of integers of the same size
        shared = tensor.detach().view(torch.int16).numpy().view(bfloat16())
    else:
        shared = tensor.detach().numpy()
    return shared


def as_tensor(result: np.ndarray[Any, Any]) -> Tensor:
    """Return an array as a tensor that shares its memory."""
    if result.dtype.kind == "f":
        return torch.from_numpy(result)
    return torch.from_numpy(result.view(np.int16)).view(torch.bfloat16)


def loss_tensor(loss: float | np.ndarray[Any, Any], dtype: torch.dtype) -> Tensor:
    return torch.tensor(loss, dtype=dtype) if isinstance(loss, float) else as_tensor(loss).to(dtype)


def class_axis(logits: Tensor) -> int:
    """Return the dimension of the classes, that of PyTorch's losses."""
    axis: int = min(1, logits.dim() - 1)
    return axis


_LIBRARY = torch.library.Library("xent_rs", "DEF")


def register(
    name: str,
    arguments: str,
    of_gradient: str,
    results: str,
    loss: tuple[Any, Any],
    with_grad: tuple[Any, Any],
) -> Operator:
    """Register a loss, and it with its gradient, which has `of_gradient` for its first arguments.

    Of both come the kernel, and the function that knows the shapes, dtypes and strides of its results.
    """
    return Operator(
        _registered(name, arguments, "Tensor", *loss),
        _registered(f"{name}_with_grad", f"{of_gradient}, {arguments}", results, *with_grad),
    )


def _registered(name: str, arguments: str, results: str, kernel: Any, of_no_data: Any) -> Any:
    _LIBRARY.define(f"{name}({arguments}) -> {results}", tags=(torch.Tag.pt2_compliant_tag,))
    _LIBRARY.impl(name, kernel, "CPU")
    torch.library.register_fake(f"xent_rs::{name}", of_no_data, lib=_LIBRARY)
    return getattr(torch.ops.xent_rs, name).default


def _operator(name: str, tensors: str, numbers: str, *, elementwise: bool = False) -> Operator:
    """Register the function `name` of `xent_rs` and its derivatives; the strings declare their arguments."""
    declared = f"{tensors}, {numbers}, ScalarType dtype"
    _, _, *options = (argument.split()[1] for argument in f"{tensors}, {numbers}".split(", "))
    function, function_with_grad = getattr(xent_rs, name), getattr(xent_rs, f"{name}_with_grad")

    def keywords(logits: Tensor, values: tuple[Any, ...]) -> dict[str, Any]:
        arrays = (array(value) if isinstance(value, Tensor) else value for value in values)
        given = dict(zip(options, arrays, strict=True))
        return given if elementwise else {**given, "axis": class_axis(logits)}

    def loss(logits: Tensor, targets: Tensor, *values: Any) -> Tensor:
        found = function(array(logits), array(targets), **keywords(logits, values[:-1]))
        return loss_tensor(found, values[-1])

    def loss_with_grad(
        grad_output: Tensor | None, logits: Tensor, targets: Tensor, *values: Any
    ) -> tuple[Tensor, Tensor]:
        found, grad = function_with_grad(
            array(logits),
            array(targets),
            grad_output=None if grad_output is None else array(grad_output),
            # One row that stands for many: PyTorch says how the gradient lies in memory, as below.
            out=array(torch.empty_like(logits)) if 0 in logits.stride() else None,
            **keywords(logits, values[:-1]),
        )
        return loss_tensor(found, values[-1]), as_tensor(grad)

    # For compilers: the results' shapes, dtypes and strides.

    def loss_of_no_data(logits: Tensor, targets: Tensor, *values: Any) -> Tensor:
        *_, reduction, dtype = values
        shape = list(logits.shape)
        if not elementwise:
            del shape[class_axis(logits)]
        return logits.new_empty(shape if reduction == "none" else (), dtype=dtype)

    def loss_with_grad_of_no_data(
        grad_output: Tensor | None, logits: Tensor, targets: Tensor, *values: Any
    ) -> tuple[Tensor, Tensor]:
        return loss_of_no_data(logits, targets, *values), torch.empty_like(logits)

    def derivative(suffix: str, first: str, like: int, without: tuple[str, ...]) -> Any:
        """Register what is like the tensor number `like`; before the loss's own arguments come `first`."""
        function, count = getattr(xent_rs, f"{name}{suffix}", None), first.count(",") + 1
        if function is None:
            return None

        def kernel(*arguments: Any) -> Tensor:
            (*vectors, grad_output), own = arguments[:count], arguments[count:]
            logits, targets, *values, _ = own
            given = keywords(logits, tuple(values))
            for option, value in _OF_FURTHER_DERIVATIVES.items():
                if given.pop(option, value) != value:
                    raise ValueError(f"{option} is given; expected {value} for {name}{suffix}")
            result = torch.empty_like(own[like])
            # Of other logits there is none of float64.
            fits = (result.dtype is torch.float64) == (logits.dtype is torch.float64)
            found = function(
                *map(array, (logits, targets, *vectors)),
                grad_output=None if grad_output is None else array(grad_output),
                out=array(result) if fits else None,
                **{option: value for option, value in given.items() if option not in without},
            )
            return result if fits else result.copy_(as_tensor(found))

        def of_no_data(*arguments: Any) -> Tensor:
            return torch.empty_like(arguments[count + like])

        return _registered(f"{name}{suffix}", f"{first}, {declared}", "Tensor", kernel, of_no_data)

    operator = register(
        name,
        declared,
        "Tensor? grad_output",
        "(Tensor, Tensor)",
        (loss, loss_of_no_data),
        (loss_with_grad, loss_with_grad_of_no_data),
    )
    return operator._replace(
        hvp=derivative("_hvp", "Tensor vector, Tensor? grad_output", 0, ()),
        target_grad=derivative("_target_grad", "Tensor? grad_output", 1, ("ignore_index", "z_loss")),
        numbers=tuple(argument.split()[1] for argument in numbers.split(", ")),
    )


OPERATORS = {
    "cross_entropy": _operator(
        "cross_entropy",
        "Tensor logits, Tensor targets, Tensor? weight, Tensor? sample_weight, Tensor? denominator",
        "int ignore_index, float label_smoothing, float z_loss, float? softcap, float temperature, "
        "float focal_gamma, float poly_epsilon, str reduction",
    ),
    "binary_cross_entropy": _operator(
        "binary_cross_entropy",
        "Tensor logits, Tensor targets, Tensor? weight, Tensor? pos_weight, Tensor? denominator",
        "int? ignore_index, float label_smoothing, float focal_gamma, str reduction",
        elementwise=True,
    ),
    "kl_divergence": _operator(
        "kl_divergence",
        "Tensor logits, Tensor target_logits, Tensor? sample_weight, Tensor? denominator",
        "str kind, float beta, float temperature, str reduction",
    ),
}
