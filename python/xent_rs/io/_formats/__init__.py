"""File formats: where in a file an array is, by what the headers say.

There is one module a format. Its `find` reads headers from an open file, checks them, and returns a `Layout`;
what is wrong with the file is a `ValueError` that does not name the file. Bytes that belong to no array are
refused: they are what is left of another array, or of a damaged one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from ..._bfloat16 import bfloat16

Choose = Callable[[list[str]], str]  # picks one of the names of the arrays in a file
_T = TypeVar("_T")

_MAX_AXES = 32  # NumPy 1.26; NumPy 2 allows 64


@dataclass(frozen=True)
class Layout:
    """Where the numbers of an array are.

    `offset` counts from the beginning of the file, or of the decompressed zip member `member`; `strides` are
    the bytes from one number to the next along each axis. Where a row is stored as a record (`llama`),
    `record` is its dtype, and the last axis, which lies within it, has no stride.
    """

    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    strides: tuple[int, ...]
    member: str | None = None
    record: np.dtype[Any] | None = None

    @property
    def nbytes(self) -> int:
        """Number of bytes of the array."""
        return math.prod(self.shape) * self.dtype.itemsize


def packed(shape: tuple[int, ...], itemsize: int, *, fortran_order: bool = False) -> tuple[int, ...]:
    """Return the strides of numbers without gaps, by default with the last axis varying fastest."""
    faster = [shape[:axis] if fortran_order else shape[axis + 1 :] for axis in range(len(shape))]
    return tuple(itemsize * math.prod(lengths) for lengths in faster)


def checked(layout: Layout, available: int) -> Layout:
    """Return the layout if it holds what an array of numbers does and fits into the `available` bytes."""
    dtype, shape = layout.dtype, layout.shape
    if dtype.hasobject:
        raise ValueError("holds Python objects, which are not read; expected numbers")
    # NumPy stores numbers that it does not have, such as bfloat16, as raw bytes: V2.
    raw = dtype.type is np.void and dtype.names is None and dtype.subdtype is None
    if not (raw or dtype.kind in "biufc" or dtype.name == "bfloat16"):
        what = "records of dtype" if dtype.names is not None else "dtype"
        raise ValueError(f"holds {what} {excerpt(str(dtype))}; expected numbers")
    if len(shape) > _MAX_AXES:
        raise ValueError(f"has {len(shape)} axes; at most {_MAX_AXES} are supported")
    if any(length < 0 for length in shape):
        raise ValueError(f"damaged; its shape is {excerpt(str(shape))}")
    # Also for empty arrays: NumPy has no array with an axis of 2**63.
    if math.prod(max(1, length) for length in shape) * max(1, dtype.itemsize) >= 1 << 63:
        raise ValueError(f"its shape {excerpt(str(shape))} is too large")
    if layout.nbytes > available:
        raise ValueError(f"truncated; {layout.nbytes} bytes of data expected, {max(0, available)} found")
    return layout


def dtype_named(name: str) -> np.dtype[Any]:
    """Return the dtype of a name; NumPy knows them all but bfloat16."""
    return bfloat16() if name == "bfloat16" else np.dtype(name)


def unique(pairs: list[tuple[str, _T]]) -> dict[str, _T]:
    """Make a dict of pairs whose keys should differ."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key occurs twice")
    return found


def excerpt(text: str, most: int = 200) -> str:
    """Cut a text that came out of a file."""
    return text if len(text) <= most else f"{text[:most]}..."
