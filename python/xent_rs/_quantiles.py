"""Exact quantiles of values that come in batches: each is kept, as a float32."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._estimates import in_few_pieces

#: Which quantiles are reported: those of llama.cpp, and the quartiles.
FRACTIONS = (0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999)


@dataclass(frozen=True)
class RowValues:
    """A value of each row, 4 bytes each, and the least and the largest of them in full precision.

    Quantiles need every value: any summary of fixed size would depend on the order in which rows come.
    """

    pieces: tuple[NDArray[np.float32], ...] = field(default=(), repr=False)
    least: float = math.inf
    largest: float = -math.inf

    @classmethod
    def of(cls, values: NDArray[np.float64]) -> RowValues:
        """Keep the values of a batch."""
        if not len(values):
            return cls()
        values = values + 0.0  # -0 becomes 0: equal values are to have equal bits, in any order
        with np.errstate(over="ignore", under="ignore"):
            kept = values.astype(np.float32)
        return cls((kept,), float(values.min()), float(values.max()))

    def __add__(self, other: RowValues) -> RowValues:
        return RowValues(
            in_few_pieces(self.pieces + other.pieces, len, lambda a, b: np.concatenate([a, b])),
            # NaN stays, whichever comes first.
            float(np.minimum(self.least, other.least)),
            float(np.maximum(self.largest, other.largest)),
        )

    def __len__(self) -> int:
        return sum(map(len, self.pieces))

    def all(self) -> NDArray[np.float32]:
        """Return all values, in no order that means anything."""
        return np.concatenate([np.empty(0, np.float32), *self.pieces])

    def as_json(self) -> list[float]:
        """Return the extremes, for `from_json`; the values are given as bytes."""
        return [self.least, self.largest]

    @classmethod
    def from_json(cls, bounds: Any, values: bytes) -> RowValues:
        """Return what has these extremes and the float32 values; refuse what cannot."""
        match bounds:
            case [float(least), float(largest)]:
                kept = np.frombuffer(values, "<f4").astype(np.float32)
                return cls((kept,) if len(kept) else (), least, largest)
        raise ValueError("expected the extremes of the values of rows")

    def bounds(self) -> tuple[float, float]:
        """Return the least and the largest value; NaN if there are none."""
        return (self.least, self.largest) if len(self) else (math.nan, math.nan)

    def quantiles(self, fractions: Sequence[float] = FRACTIONS) -> dict[float, float]:
        """Return quantiles: the n sorted values, linear between them, at place ``fraction * (n - 1)``."""
        values = np.sort(self.all())
        if not len(values) or np.isnan(values[-1]):  # NaN is sorted last
            return dict.fromkeys(fractions, math.nan)
        return {fraction: self._at(values, fraction) for fraction in fractions}

    def _at(self, values: NDArray[np.float32], fraction: float) -> float:
        place = fraction * (len(values) - 1)
        below = int(place)
        low, high = float(values[below]), float(values[min(below + 1, len(values) - 1)])
        # An infinite neighbour counts only if the place is not that of a value.
        found = low if low == high or place == below else low + (high - low) * (place - below)
        # Rounding to float32 is not to lead beyond the extremes.
        return min(max(found, self.least), self.largest)
