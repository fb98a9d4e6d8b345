"""The gradients of hidden states and the last layer: where they go, and their sums until then."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ._head import Head
from ._options import Floats
from ._products import Products


class LinearGradients(NamedTuple):
    """The gradients that `linear_cross_entropy_with_grad` returns.

    Attributes
    ----------
    hidden : ndarray
        That of the hidden states, in their shape; zeros for rows that do not count.
    linear_weight : ndarray
        That of the weights, (C, K).
    linear_bias : ndarray or None
        That of the bias, (C,); None without a bias.
    """

    hidden: Floats
    linear_weight: Floats
    linear_bias: Floats | None


#: Whether gradients of hidden states, weights and bias are wanted.
Wanted = tuple[bool, bool, bool]
ALL_GRADIENTS: Wanted = (True, True, True)


class GradientSums:
    """The gradients of hidden states, weights and bias, as far as they are wanted."""

    def __init__(
        self,
        head: Head,
        products: Products,
        hidden: NDArray[Any],
        axis: int,
        wanted: Wanted,
        out: object,
        inputs: Sequence[tuple[str, NDArray[Any]]],
    ) -> None:
        self._head, self._products, self._axis = head, products, axis
        inputs = [("hidden", hidden), (head.name, head.weight), *inputs]
        if head.bias is not None:
            inputs.append(("linear_bias", head.bias))
        of_hidden, of_weight, of_bias = _outputs(out, head, hidden, inputs)
        self._hidden, self._weight, self._bias = None, None, None
        self._weight_sums, self._bias_sums = None, None
        self._is_empty = True
        if wanted[0]:
            self._hidden = np.zeros_like(hidden, _native(hidden)) if of_hidden is None else of_hidden
        if wanted[1]:
            shape = head.weight.shape
            self._weight = np.empty(shape, _native(head.weight)) if of_weight is None else of_weight
            is_summed_there = self._weight.dtype == head.dtype and self._weight.flags.carray
            self._weight_sums = self._weight if is_summed_there else np.empty(shape, head.dtype)
        if wanted[2] and head.bias is not None:
            self._bias = np.empty(head.classes, _native(head.bias)) if of_bias is None else of_bias
            self._bias_sums = np.zeros((1, head.classes))

    def add(self, rows: NDArray[np.intp], states: NDArray[Any], of_logits: NDArray[Any]) -> None:
        """Take in what some rows, with these states and derivatives of logits, contribute."""
        if self._hidden is not None:
            found = self._head.gradient_of_states(of_logits)
            by_row, place = self._by_row(rows)
            rounded = np.empty(found.shape, by_row.dtype)
            self._products.round(found, rounded)
            by_row[place] = rounded
        if self._weight_sums is not None:
            multiply = self._products.multiply if self._is_empty else self._products.add_product
            multiply(of_logits.T, states, self._weight_sums)
        if self._bias_sums is not None:
            sums = np.empty((1, self._head.classes), self._head.dtype)
            self._products.multiply(np.ones((1, len(rows)), sums.dtype), of_logits, sums)
            with np.errstate(all="ignore"):
                self._bias_sums += sums
        self._is_empty = False

    def _by_row(self, rows: NDArray[np.intp]) -> tuple[NDArray[Any], tuple[NDArray[np.intp], ...]]:
        """Return the gradient of the hidden states with the features last, and where some rows are in it."""
        assert self._hidden is not None
        by_row = np.moveaxis(self._hidden, self._axis, -1)
        by_row = by_row.reshape(1, -1) if by_row.ndim == 1 else by_row
        return by_row, np.unravel_index(rows, by_row.shape[:-1])

    def result(self, left_out: NDArray[np.intp]) -> tuple[Floats | None, Floats | None, Floats | None]:
        """Return the gradients; rows that do not count have zeros."""
        if self._hidden is not None:
            by_row, place = self._by_row(left_out)
            by_row[place] = 0
        if self._weight_sums is not None and self._weight is not None:
            if self._is_empty:
                self._weight_sums[...] = 0
            if self._weight_sums is not self._weight:
                self._products.round(self._weight_sums, self._weight)
        if self._bias_sums is not None and self._bias is not None:
            self._products.round(self._bias_sums, self._bias[np.newaxis])
        return self._hidden, self._weight, self._bias


def _native(array: NDArray[Any]) -> np.dtype[Any]:
    return array.dtype.newbyteorder("=")


def _outputs(
    out: object, head: Head, hidden: NDArray[Any], inputs: Sequence[tuple[str, NDArray[Any]]]
) -> list[NDArray[Any] | None]:
    """Return where the gradients go, None for those that are to be new; refuse what does not fit."""
    if out is None:
        return [None, None, None]
    if not isinstance(out, tuple) or len(out) not in (2, 3):
        raise TypeError(
            f"out is {f'a tuple of {len(out)}' if isinstance(out, tuple) else f'a {type(out).__name__}'}; "
            "expected a tuple of two or three, for hidden states, weights and bias, each an array or None"
        )
    outputs = [*out, None][:3]
    if head.bias is None and outputs[2] is not None:
        raise ValueError("out[2] is given without linear_bias; expected None")
    for number, (array, of) in enumerate(zip(outputs, (hidden, head.weight, head.bias), strict=True)):
        if array is None or of is None:
            continue
        name = f"out[{number}]"
        if not isinstance(array, np.ndarray):
            raise TypeError(f"{name} is a {type(array).__name__}; expected a numpy.ndarray or None")
        if array.shape != of.shape:
            raise ValueError(f"{name} has shape {array.shape}; expected {of.shape}")
        allowed = {_native(of), head.dtype}
        if array.dtype not in allowed:
            text = " or ".join(sorted(map(str, allowed)))
            raise ValueError(f"{name} has dtype {array.dtype}; expected {text}")
        if not array.flags.writeable:
            raise ValueError(f"{name} is read-only; expected a writeable array")
        if _overlaps_itself(array):
            raise ValueError(
                f"{name} has elements that share memory; expected an array without internal overlap"
            )
        for other, values in [
            *inputs,
            *((f"out[{k}]", outputs[k]) for k in range(number) if outputs[k] is not None),
        ]:
            is_in_place = number == 0 and array.ctypes.data == hidden.ctypes.data and _lies_as(array, hidden)
            if not (other == "hidden" and is_in_place) and np.may_share_memory(array, values):
                allowed_text = "the hidden states' array itself or " if number == 0 else ""
                raise ValueError(
                    f"{name} overlaps {other}; expected {allowed_text}memory that nothing else uses"
                )
    return outputs


def _overlaps_itself(array: NDArray[Any]) -> bool:
    """Tell whether elements share memory, or might: by strides that are less than what lies between them."""
    reach = array.itemsize
    for stride, length in sorted(
        (abs(stride), n) for stride, n in zip(array.strides, array.shape, strict=True)
    ):
        if length > 1 and stride < reach:
            return array.size > 1
        reach += stride * (length - 1)
    return False


def _lies_as(array: NDArray[Any], other: NDArray[Any]) -> bool:
    return array.dtype == other.dtype and array.shape == other.shape and array.strides == other.strides
