"""Sums of float64 values without rounding."""

from __future__ import annotations

import functools
import math
import operator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import _xent_rs

#: How many of the units that sums are kept in make 1.
UNITS = 1 << 1074


@dataclass(frozen=True)
class ExactSum:
    """A sum of float64 values without rounding: of the same values in any order, the same bits."""

    # In units of 2**-1074, the smallest positive float64, of which every finite one is a whole number.
    units: int = 0
    not_finite: float = 0.0

    @classmethod
    def of_count(cls, count: int) -> ExactSum:
        return cls(count * UNITS)

    @classmethod
    def of_values(cls, values: NDArray[np.float64] | NDArray[np.bool_]) -> ExactSum:
        """Return the sum of an array's values."""
        if values.dtype == bool:
            return cls.of_count(int(np.count_nonzero(values)))
        return cls.of_bytes(_xent_rs.exact_sum(values))

    @classmethod
    def of_bytes(cls, found: tuple[bytes, float]) -> ExactSum:
        """Return what the compiled module has summed."""
        units, not_finite = found
        return cls(int.from_bytes(units, "little", signed=True), not_finite)

    def __add__(self, other: ExactSum) -> ExactSum:
        return ExactSum(self.units + other.units, self.not_finite + other.not_finite)

    def as_json(self) -> list[Any]:
        return [format(self.units, "x"), self.not_finite]

    @classmethod
    def from_json(cls, value: Any) -> ExactSum:
        match value:
            case [str(units), float(not_finite)]:
                return cls(int(units, 16), not_finite)
        raise ValueError("expected a sum")

    def over(self, divisor: ExactSum) -> float:
        """Divide, with one rounding; NaN if the divisor is 0."""
        if divisor == NOTHING:
            return math.nan
        if self.not_finite != 0.0 or divisor.not_finite != 0.0:
            return self._limit() / divisor._limit()
        try:
            return self.units / divisor.units
        except OverflowError:
            return self._limit() * divisor._limit() * math.inf

    def _limit(self) -> float:
        """Return what is not finite, or else the sign."""
        return self.not_finite or float((self.units > 0) - (self.units < 0))


NOTHING = ExactSum()


def without_zeros(*sums: ExactSum) -> tuple[int, ...]:
    """Return sums as integers without the zeros that all end with, and the power of 2 that is lacking."""
    units = [each.units for each in sums]
    together = functools.reduce(operator.or_, units)
    zeros = (together & -together).bit_length() - 1 if together else 0
    return (*(number >> zeros for number in units), zeros - UNITS.bit_length() + 1)


def root_of_ratio(dividend: int, divisor: int, exponent: int = 0) -> float:
    """Return the root of a ratio times a power of 2, rounded before and after."""
    try:
        return math.sqrt((dividend << max(exponent, 0)) / (divisor << max(-exponent, 0)))
    except OverflowError:
        return math.inf


def exp(value: float) -> float:
    """Return e to this power; infinity where that exceeds float64."""
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf
