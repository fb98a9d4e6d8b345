"""Rows of an array in one axis, of which nothing is copied but what is taken."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Rows:
    """An array as rows in one axis, in the order of C.

    Attributes
    ----------
    array : ndarray
        The classes, or features, are in its last axis, whose numbers lie in memory anyhow.
    """

    array: NDArray[Any]

    @classmethod
    def of(cls, block: NDArray[Any], axis: int) -> Rows:
        """Return the rows of an array that has its classes along `axis`."""
        moved = np.moveaxis(block, axis, -1)
        leading = range(moved.ndim - 2)
        if moved.ndim == 1 or all(
            moved.strides[i] == moved.strides[i + 1] * moved.shape[i + 1] for i in leading
        ):
            moved = moved.reshape(math.prod(moved.shape[:-1]), moved.shape[-1])
        return cls(moved)

    def __len__(self) -> int:
        return math.prod(self.array.shape[:-1])

    @property
    def classes(self) -> int:
        """Their number."""
        return int(self.array.shape[-1])

    def __getitem__(self, part: slice | NDArray[np.intp]) -> NDArray[Any]:
        """Return some rows, (rows, classes), whose numbers rise: those that follow each other as a view.

        There is none if the rows lie in memory without an order.
        """
        if self.array.ndim == 2:
            if not isinstance(part, slice) and len(part) and part[-1] - part[0] == len(part) - 1:
                part = slice(part[0], part[-1] + 1)
            return self.array[part]
        numbers = np.arange(*part.indices(len(self))) if isinstance(part, slice) else part
        found: NDArray[Any] = self.array[self._places(numbers)]
        return found

    def at(self, classes: NDArray[np.int64]) -> NDArray[Any]:
        """Return the number of one class in each row."""
        found: NDArray[Any] = self.array[(*self._places(np.arange(len(self))), classes)]
        return found

    def _places(self, rows: NDArray[np.intp]) -> tuple[NDArray[np.intp], ...]:
        return np.unravel_index(rows, self.array.shape[:-1])
