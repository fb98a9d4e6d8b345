"""What arguments may be, where Python looks at them."""

from __future__ import annotations

import operator
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import _xent_rs
from ._bfloat16 import is_bfloat16
from ._cross_entropy import cross_entropy
from ._environment import in_default_environment


def integer(value: object, what: str) -> int:
    """Return an integer that is no truth value; `what` begins the error: ``axis is``."""
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{what} {value!r}; expected an integer") from None


def top_ks(numbers: object) -> tuple[int, ...]:
    """Return the numbers of `top_k`, each once and in their order."""
    if not isinstance(numbers, Iterable):
        raise TypeError(f"top_k is {numbers!r}; expected several positive integers")
    found = sorted({integer(k, "top_k contains") for k in numbers})
    if found and found[0] < 1:
        raise ValueError(f"top_k contains {found[0]}; expected positive integers")
    return tuple(found)


def place_of_shard(class_offset: object, num_classes: object, count: int) -> tuple[int, int]:
    """Return where a shard of so many classes begins, and of how many classes; None stands for no others."""
    offset = integer(class_offset, "class_offset is")
    classes = offset + count if num_classes is None else integer(num_classes, "num_classes is")
    if not 1 <= classes <= sys.maxsize:
        expected = "at least 1" if classes < 1 else f"at most {sys.maxsize}"
        raise ValueError(f"num_classes is {classes}; expected {expected}")
    if count > classes:
        raise ValueError(f"num_classes is {classes}; expected at least {count}, the classes of the shard")
    if not 0 <= offset <= classes - count:
        raise ValueError(
            f"class_offset is {offset}; expected 0 to {classes - count} "
            f"for {count} of num_classes {classes} in the shard"
        )
    return offset, classes


def has_slices(value: object) -> bool:
    """Tell whether an object has what a `SlicedArray` of `xent_rs.io` has."""
    return isinstance(getattr(value, "shape", None), tuple) and hasattr(value, "__getitem__")


def is_read_in_slices(value: object) -> bool:
    """Tell whether an object is an array that is not in memory: of files, Zarr, h5py, Dask, xarray.

    What has its numbers in memory offers them by NumPy's or by DLPack's protocol. Series of pandas, which may
    not, are indexed by labels.
    """
    in_memory = any(hasattr(value, name) for name in ("__array_interface__", "__dlpack__", "iloc"))
    return not in_memory and has_slices(value) and isinstance(getattr(value, "dtype", None), np.dtype)


@in_default_environment
def class_weight(weight: ArrayLike | None) -> NDArray[np.float64] | None:
    """Return a copy of class weights for later calls; what is wrong with them is said now."""
    if weight is None:
        return None
    weight = _xent_rs.as_array(weight, "weight")
    if weight.ndim != 1 or len(weight) == 0:
        raise ValueError(f"weight has shape {weight.shape}; expected (C,), one number a class")
    # The weights are checked where they are used: by a batch without rows.
    cross_entropy(np.zeros((0, len(weight)), np.float32), np.zeros(0, np.int64), weight=weight)
    return np.array(weight, np.float64)


def row_shape(logits: object, axis: int) -> tuple[int, ...] | None:
    """Return the shape of logits without the class axis; None if they have no such axis, which others say."""
    shape = tuple(getattr(logits, "shape", ()))
    if not -len(shape) <= axis < len(shape):
        return None
    rows = list(shape)
    del rows[axis]
    return tuple(rows)


def checked_rows(shape: tuple[int, ...], name: str, axis: int, what: str = "classes") -> tuple[int, ...]:
    """Return the shape of the rows, without the axis of the classes; refuse an array without such an axis."""
    if not shape:
        raise ValueError(f"{name} {has(name)} shape (); expected at least one axis, the {what}")
    if not -len(shape) <= axis < len(shape):
        expected = f"{-len(shape)} to {len(shape) - 1}"
        raise ValueError(f"axis is {axis}; expected {expected} for {name} of shape {shape}")
    place = axis % len(shape)
    return shape[:place] + shape[place + 1 :]


def has(name: str) -> str:
    """Return the verb that goes with the name of an argument."""
    return "have" if name in ("logits", "targets", "groups") else "has"


def group_labels(groups: ArrayLike, rows: tuple[int, ...] | None) -> NDArray[Any]:
    """Return the labels of groups, integers or texts, for logits with these rows."""
    expected = "expected integers or strings, one group a row"
    try:
        # Texts are no numbers, which is all that other conversions take.
        is_tensor = hasattr(groups, "__dlpack__") and not isinstance(groups, np.ndarray)
        found = _xent_rs.as_array(groups, "groups") if is_tensor else np.asarray(groups)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"groups make no array ({error}); {expected}") from None
    if found.dtype == object and all(type(label) is str for label in found.flat):  # a column of pandas
        found = found.astype(str)
    if found.dtype.kind not in "iuUT" and found.size:
        raise TypeError(f"groups have dtype {found.dtype}; {expected}")
    if rows is not None and found.shape != rows:
        raise ValueError(f"groups have shape {found.shape}; expected {rows}, one group a row")
    return found


@contextmanager
def targets_at(
    position: Sequence[int], targets: NDArray[Any] | None, classes: int, ignore_index: int
) -> Iterator[None]:
    """Work on a block of larger arrays; a target that is no class is named by its place in them."""
    try:
        yield
    except IndexError:
        if targets is None:
            raise
        wrong = np.argwhere(((targets < 0) | (targets >= classes)) & (targets != ignore_index))
        if not len(wrong):
            raise
        found = targets[tuple(wrong[0])]
        place = [start + index for start, index in zip(position, wrong[0].tolist(), strict=True)]
        name = f"targets{place}" if place else "targets"
        expected = f"0 to {classes - 1}, or ignore_index {ignore_index}"
        raise IndexError(f"{name} is {found}; expected {expected}") from None


def with_arrays(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options with the weights as arrays: a list is converted once, however often they are read."""
    arrays = {
        name: _xent_rs.as_array(options[name], name)
        for name in ("weight", "sample_weight")
        if options.get(name) is not None
    }
    return {**options, **arrays}


def are_real(dtype: np.dtype[Any]) -> bool:
    """Tell whether a dtype is one of real numbers that we read: of up to 8 bytes, truth values included."""
    return (dtype.kind in "biuf" and dtype.itemsize <= 8) or is_bfloat16(dtype)


def are_equal(a: object, b: object) -> bool:
    """Tell whether options are the same."""
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return np.array_equal(a, b, equal_nan=True)
    return type(a) is type(b) and a == b


def text_of(option: object) -> str:
    """Return an option for people."""
    if isinstance(option, np.ndarray):
        return np.array2string(option, max_line_width=10**6, threshold=6, edgeitems=3, separator=", ")
    return repr(option)
