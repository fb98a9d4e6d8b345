"""Logits from hidden states and the last layer of a model, the head, without ever holding all of them.

``logits = hidden @ weight.T + bias`` has C / K times the size of the hidden states, for C classes and K
features. Here some rows of it are in memory at a time. The products are those of NumPy's matrix library.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import _xent_rs
from ._arguments import checked_rows, has, row_shape
from ._bfloat16 import is_bfloat16
from ._environment import in_default_environment
from ._products import Products, is_multiplied_in_place
from ._rows import Rows

# How many rows have their logits in memory. With 256 each number of the weights that is read goes into as
# many products, which is enough work for a matrix library to be busy with. The bits of a product depend on
# the number of rows, so this one depends neither on the machine nor on threads.
_ROWS = 256

# Weights that have to be converted are so once for all rows in memory. With 256 that takes 7 % (bfloat16) to
# 19 % (float16) of the time of the products on two cores, with 1,024 a quarter of that. So there are more
# rows, if they take no more memory than this.
_MOST_ROWS = 1024
_LOGITS_BYTES = 256 << 20

# How much of the weights is multiplied, and converted, at once. In slices of 16 MiB products take 4 %
# longer, of 4 MiB 29 %. It does not depend on the dtype of the weights: equal numbers are to have products
# of equal bits.
_SLICE_BYTES = 32 << 20

_FLOATS = "expected float16, bfloat16, float32 or float64"


class Head:
    """The last layer of a model, for hidden states of one dtype and number of features.

    Parameters
    ----------
    hidden : array with shape and dtype
        The hidden states, of which nothing else is looked at.
    name : str
        What errors call them.
    axis : int
        The axis of the features.
    weight : array_like
        A row of weights for each class.
    bias : array_like or None
        A number for each class.
    weight_name, bias_name : str, optional
        What errors call these.
    hint : str, optional
        What an error asks where the features are as many as there are classes.
    products : Products, optional
        What multiplies matrices.

    Attributes
    ----------
    name : str
        What errors call the weights.
    weight : ndarray
        The weights.
    bias : ndarray or None
        The bias.
    classes : int
        Number of classes.
    rows : int
        How many rows `logits` takes at most.
    dtype : dtype
        What is computed in: float64 if hidden states or weights are float64, else float32.
    """

    def __init__(
        self,
        hidden: Any,
        name: str,
        axis: int,
        weight: ArrayLike,
        bias: ArrayLike | None,
        *,
        weight_name: str = "linear_weight",
        bias_name: str = "linear_bias",
        hint: str = "",
        products: Products | None = None,
    ) -> None:
        self.name = weight_name
        self.weight = _xent_rs.as_array(weight, weight_name)
        sizes = _size(self.weight.dtype, weight_name), _size(hidden.dtype, name)
        self.dtype = np.dtype(np.float64 if 8 in sizes else np.float32)
        if self.weight.ndim != 2:
            raise ValueError(
                f"{weight_name} has shape {self.weight.shape}; expected two axes, (classes, features)"
            )
        self.classes, self._features = self.weight.shape
        if not self.classes:
            raise ValueError(f"{weight_name} has shape {self.weight.shape}; expected at least one class")
        self._check_features(tuple(hidden.shape), name, axis, hint)
        self._products = Products() if products is None else products
        self.bias: NDArray[Any] | None = None
        self._wide_bias: NDArray[Any] | None = None
        if bias is not None:
            self.bias = _xent_rs.as_array(bias, bias_name)
            _size(self.bias.dtype, bias_name)
            if self.bias.shape != (self.classes,):
                raise ValueError(
                    f"{bias_name} has shape {self.bias.shape}; "
                    f"expected {(self.classes,)}, one number for each class of {weight_name}"
                )
            self._wide_bias = np.empty((1, self.classes), self.dtype)
            self._products.convert(self.bias[np.newaxis], self._wide_bias)
        self._step = max(1, _SLICE_BYTES // (max(1, self._features) * self.dtype.itemsize))
        self._in_place = self.weight.dtype == self.dtype and is_multiplied_in_place(self.weight)
        self.rows = _ROWS
        if not self._in_place and self._step < self.classes:
            fit = _LOGITS_BYTES // (self.classes * self.dtype.itemsize)
            self.rows = max(_ROWS, min(_MOST_ROWS, fit // _ROWS * _ROWS))
        self._logits = np.empty((0, self.classes), self.dtype)
        self._converted: NDArray[Any] | None = None
        self._converted_from = -1

    def _check_features(self, shape: tuple[int, ...], name: str, axis: int, hint: str) -> None:
        checked_rows(shape, name, axis, "features")
        if shape[axis] != self._features:
            asked = f" ({hint})" if hint and shape[axis] == self.classes else ""
            raise ValueError(
                f"{name} {has(name)} shape {shape}, {shape[axis]} features along axis {axis}; "
                f"expected {self._features}, as {self.name} of shape {self.weight.shape} has{asked}"
            )

    def states(self, hidden: NDArray[Any]) -> NDArray[Any]:
        """Return hidden states, the features in the last of two axes, as what is multiplied."""
        states = np.empty(hidden.shape, self.dtype)
        self._products.convert(hidden, states)
        return states

    @in_default_environment
    def logits(self, states: NDArray[Any]) -> NDArray[Any]:
        """Return the logits of some rows in memory that those of the next call overwrite."""
        if len(states) > len(self._logits):
            self._logits = np.empty((len(states), self.classes), self.dtype)
        logits = self._logits[: len(states)]
        for start, stop in self._slices():
            some = logits[:, start:stop]
            self._products.multiply(states, self._some_weights(start, stop).T, some)
            if self._wide_bias is not None:
                with np.errstate(all="ignore"):  # what is not finite says so in the logits
                    np.add(some, self._wide_bias[:, start:stop], out=some)
        return logits

    def gradient_of_states(self, of_logits: NDArray[Any]) -> NDArray[Any]:
        """Return ``of_logits @ weight``, of rows whose logits have these derivatives."""
        found = np.empty((len(of_logits), self._features), self.dtype)
        multiply = self._products.multiply
        # The other way round: what is converted last for the logits is so for this first.
        for start, stop in reversed(self._slices()):
            multiply(of_logits[:, start:stop], self._some_weights(start, stop), found)
            multiply = self._products.add_product
        return found

    def zeros(self, hidden: tuple[int, ...], axis: int) -> NDArray[np.float32]:
        """Return zeros in the shape of the logits of hidden states."""
        shape = list(hidden)
        shape[axis] = self.classes
        return _zeros(tuple(shape))

    def _slices(self) -> list[tuple[int, int]]:
        """Return the first class of each slice of the weights, and the one behind its last."""
        starts = range(0, self.classes, self._step)
        return [(start, min(start + self._step, self.classes)) for start in starts]

    def _some_weights(self, start: int, stop: int) -> NDArray[Any]:
        """Return the weights of some classes as a factor, (classes, features), that is not copied."""
        weight = self.weight[start:stop]
        if self._in_place:
            return weight
        # In the order in which they lie in memory.
        by_class = abs(weight.strides[0]) >= abs(weight.strides[1])
        if self._converted is None:
            self._converted = np.empty(min(self._step, self.classes) * self._features, self.dtype)
        source = weight if by_class else weight.T
        converted = self._converted[: weight.size].reshape(source.shape)
        if self._converted_from != start:  # otherwise the slice is there
            self._converted_from = -1
            self._products.convert(source, converted)
            self._converted_from = start
        return converted if by_class else converted.T


def check_classes(array: NDArray[Any], name: str, head: Head | None, axis: int, expected: int | None) -> None:
    """Refuse a model whose number of classes is another than `expected`, that of the batches before.

    It is said of the head or, without one, of the logits as the caller has them: they are counted in batches
    whose classes are in the last axis.
    """
    if head is None:
        if expected not in (None, array.shape[axis]):
            raise other_classes(f"{name} {has(name)}", array.shape[axis], axis, expected)
    elif expected not in (None, head.classes):
        raise other_classes(f"{head.name} has", head.classes, None, expected)


def other_classes(what: str, found: int, axis: int | None, expected: int | None) -> ValueError:
    """Return the error of another number of classes than in the batches before; `what` begins it."""
    along = "" if axis is None else f" along axis {axis}"
    return ValueError(f"{what} {found} classes{along}; expected {expected}, as in the batches before")


Named = tuple[ArrayLike | None, str]


def head_of(
    hidden: Any, name: str, axis: int, weight: ArrayLike | None, bias: ArrayLike | None
) -> Head | None:
    """Return the head of hidden states; None without weights, of logits."""
    weights, biases = [(weight, "linear_weight")], [(bias, "linear_bias")]
    hint = "logits, without linear_weight? or linear_weight.T?"
    (head,) = heads_of([(hidden, name)], axis, weights, biases, [hint])
    return head


def heads_of_two(
    models: Sequence[tuple[Any, str]],
    axis: int,
    weight: ArrayLike | tuple[ArrayLike | None, ArrayLike | None] | None,
    bias: ArrayLike | tuple[ArrayLike | None, ArrayLike | None] | None,
) -> list[Head | None]:
    """Return the heads of two models, from one for both or from tuples."""
    weights, biases = paired(weight, "linear_weight"), paired(bias, "linear_bias")
    hints = [
        f"logits, with linear_weight={alone}? or {name}.T?"
        for alone, (_, name) in zip(("(None, ...)", "(..., None)"), weights, strict=True)
    ]
    return heads_of(models, axis, weights, biases, hints)


def heads_of(
    models: Sequence[tuple[Any, str]],
    axis: int,
    weights: Sequence[Named],
    biases: Sequence[Named],
    hints: Sequence[str],
) -> list[Head | None]:
    """Return the heads of models, each hidden states or logits; None for logits.

    Everything comes with what errors call it, and each model with what to ask if its array looks like logits.
    A bias that all models have is for those that have weights.
    """
    heads: list[Head | None] = []
    is_common = any(weight is not None for weight, _ in weights) and len({name for _, name in biases}) == 1
    for (hidden, name), (weight, weight_name), (bias, bias_name), hint in zip(
        models, weights, biases, hints, strict=True
    ):
        if weight is not None:
            head = Head(
                hidden, name, axis, weight, bias, weight_name=weight_name, bias_name=bias_name, hint=hint
            )
            heads.append(head)
            continue
        if bias is not None and not is_common:
            raise ValueError(f"{bias_name} is given without {weight_name}; expected that, too")
        heads.append(None)
    if any(heads):
        _check_fit(models, axis, heads, [name for _, name in weights])
    return heads


def _check_fit(
    models: Sequence[tuple[Any, str]], axis: int, heads: Sequence[Head | None], weight_names: Sequence[str]
) -> None:
    """Refuse models with other rows, or other classes, than the first one."""
    for (logits, name), head in zip(models, heads, strict=True):
        if head is None:
            checked_rows(logits.shape, name, axis)
    first, of = models[0]
    for hidden, name in models:
        shape = list(first.shape)
        if len(shape) == len(hidden.shape):
            shape[axis] = hidden.shape[axis]
        if hidden.shape != tuple(shape):
            raise ValueError(
                f"{name} has shape {hidden.shape}; "
                f"expected {tuple(shape)}, the shape of {of} but for axis {axis}"
            )
    (expected, of), *others = (
        (hidden.shape[axis], name) if head is None else (head.classes, weight_name)
        for (hidden, name), head, weight_name in zip(models, heads, weight_names, strict=True)
    )
    for found, name in others:
        if found != expected:
            raise ValueError(f"{name} has {found} classes; expected {expected}, as {of} has")


def paired(given: ArrayLike | tuple[ArrayLike | None, ArrayLike | None] | None, name: str) -> list[Named]:
    """Return what belongs to each of two models, from one thing for both or from a tuple, with its name."""
    if not isinstance(given, tuple):
        return [(given, name)] * 2
    if len(given) != 2:
        raise ValueError(f"{name} is a tuple of {len(given)}; expected two, for reference and candidate")
    return [(of_model, f"{name}[{number}]") for number, of_model in enumerate(given)]


Logits = tuple[NDArray[Any], ...]


@dataclass(frozen=True)
class Batch:
    """Some rows, in one axis: their numbers in C order, each model's logits, and what else they have."""

    rows: NDArray[np.intp] | slice
    logits: Logits
    targets: NDArray[Any] | None
    sample_weight: NDArray[Any] | None


def batches(
    models: Sequence[tuple[NDArray[Any], Head | None]],
    axis: int,
    targets: NDArray[Any] | None,
    sample_weight: NDArray[Any] | None,
    ignore_index: int,
    check: Callable[[Logits, NDArray[Any] | None, NDArray[Any] | None, int], object],
) -> Iterator[Batch]:
    """Give the rows of models, (hidden states, head) or (logits, None) each, in batches until all are given.

    Rows that count come first, with logits that the next ones overwrite. All others come at last, with zeros
    for logits: there is no product for them. Before all that `check` refuses what is wrong with targets and
    weights. It gets logits, these, and the axis of the classes: zeros, which take no memory, for all rows if
    something seems to be wrong, and for none otherwise.
    """
    in_all = [array if head is None else head.zeros(array.shape, axis) for array, head in models]
    rows = row_shape(in_all[0], axis)
    if (
        rows is not None
        and all(logits.shape == in_all[0].shape for logits in in_all)
        and (targets is None or are_classes(targets, rows, in_all[0].shape[axis], ignore_index))
        and (sample_weight is None or sample_weight.shape == rows)
    ):
        none = np.empty(0, np.intp)
        of_none = tuple(Rows.of(logits, axis)[none] for logits in in_all)
        check(of_none, taken(targets, none), taken(sample_weight, none), -1)
    else:
        check(tuple(in_all), targets, sample_weight, axis)
        assert rows is not None, "logits without rows are refused"
    counting, others = counting_rows(rows, targets, sample_weight, ignore_index)
    step = min(head.rows for _, head in models if head is not None)
    for start in range(0, len(counting), step):
        some = counting[start : start + step]
        found = [(Rows.of(array, axis)[some], head) for array, head in models]
        logits = tuple(array if head is None else head.logits(head.states(array)) for array, head in found)
        yield Batch(some, logits, taken(targets, some), taken(sample_weight, some))
    if len(others) or not len(counting):
        logits = tuple(_zeros((len(others), all_rows.shape[axis])) for all_rows in in_all)
        yield Batch(others, logits, taken(targets, others), taken(sample_weight, others))


def counting_rows(
    rows: tuple[int, ...],
    targets: NDArray[Any] | None,
    sample_weight: NDArray[Any] | None,
    ignore_index: int,
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the numbers, in C order, of the rows that count, and of the others."""
    counts = np.ones(rows, bool)
    if targets is not None:
        counts &= targets != ignore_index
    if sample_weight is not None:
        counts &= sample_weight != 0
    return np.flatnonzero(counts), np.flatnonzero(~counts)


def are_classes(targets: NDArray[Any], rows: tuple[int, ...], classes: int, ignore_index: int) -> bool:
    """Tell whether there is a class, or `ignore_index`, for each row."""
    if targets.dtype.kind not in "iu" or targets.shape != rows:
        return False
    return bool((((targets >= 0) & (targets < classes)) | (targets == ignore_index)).all())


def _zeros(shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Return logits of any shape in the memory of one."""
    return np.broadcast_to(np.zeros((), np.float32), shape)


def taken(values: NDArray[Any] | None, rows: NDArray[np.intp]) -> NDArray[Any] | None:
    """Return what some rows have, if there is anything."""
    return None if values is None else values.reshape(-1)[rows]


def _size(dtype: np.dtype[Any], name: str) -> int:
    """Return the size of a number of one of our dtypes; refuse others."""
    if not (is_bfloat16(dtype) or (dtype.kind == "f" and dtype.itemsize in (2, 4, 8))):
        raise TypeError(f"{name} {has(name)} dtype {dtype}; {_FLOATS}")
    return dtype.itemsize
