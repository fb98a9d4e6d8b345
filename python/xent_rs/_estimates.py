"""Means of weighted rows with standard errors: of independent rows, or of rows in groups.

Every figure here is a ratio of sums, ``m = sum(w * x) / sum(w)``. Its standard error comes from what each
row leaves, ``r = w * x - m * w``: with n rows it is ``sqrt(n / (n - 1) * sum(r**2)) / sum(w)``, without
weights the sample's standard deviation over ``sqrt(n)``. Rows that depend on each other, such as the tokens
of a document, are added up first: with G groups it is the same formula of G sums of r. A difference of two
models is paired: x is the difference in each row.

All that is kept is exact sums, so that no bit depends on how rows came, or where they were added.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ._exact import NOTHING, UNITS, ExactSum, root_of_ratio

Floats = NDArray[np.float64]
Column = Floats | NDArray[np.bool_]
Label = int | str
_Piece = TypeVar("_Piece")


@dataclass(frozen=True)
class Estimate:
    """A figure and its standard error.

    Attributes
    ----------
    value : float
        The figure; NaN where no row counts.
    error : float
        Its standard error; NaN of less than two rows, or groups.
    """

    value: float
    error: float


@dataclass(frozen=True)
class RowGroups:
    """Which group each row of a batch belongs to.

    Attributes
    ----------
    labels : list of int or of str
        The groups of the batch.
    of_row : ndarray of int
        For each row the place of its group in `labels`.
    """

    labels: Sequence[Label]
    of_row: NDArray[np.intp]

    @classmethod
    def of(cls, labels: NDArray[Any]) -> RowGroups:
        """Find the groups in an array of labels, one a row."""
        names, of_row = np.unique(labels, return_inverse=True)
        return cls(names.tolist(), of_row.reshape(-1))

    def rows(self) -> Iterator[tuple[Label, NDArray[np.intp]]]:
        """Give each group with its rows."""
        order = np.argsort(self.of_row, kind="stable")
        ends = np.cumsum(np.bincount(self.of_row, minlength=len(self.labels)))
        # What is behind the last end is empty.
        return zip(self.labels, np.split(order, ends)[:-1], strict=True)


@dataclass(frozen=True)
class GroupSums:
    """What is summed of the rows of one group: their number, weights, and weighted columns."""

    rows: int
    weight: ExactSum
    totals: tuple[ExactSum, ...]

    def __add__(self, other: GroupSums) -> GroupSums:
        return GroupSums(
            self.rows + other.rows,
            self.weight + other.weight,
            tuple(a + b for a, b in zip(self.totals, other.totals, strict=True)),
        )

    def mean(self, column: int) -> float:
        """Return the mean of a column in this group."""
        return self.totals[column].over(self.weight)


@dataclass(frozen=True)
class WeightedSums:
    """Exact sums of the columns of a table, of which each row has a weight.

    Attributes
    ----------
    rows : int
        Number of rows.
    weight, squared_weight : ExactSum
        Sums of w and of w².
    totals, squares, products : tuple of ExactSum
        For each column x the sums of w·x, of (w·x)² and of w·(w·x).
    pieces : tuple of dict of label to GroupSums
        The same by group, in parts that are added up when they are asked for; none without groups.
    """

    rows: int
    weight: ExactSum
    squared_weight: ExactSum
    totals: tuple[ExactSum, ...]
    squares: tuple[ExactSum, ...]
    products: tuple[ExactSum, ...]
    pieces: tuple[Mapping[Label, GroupSums], ...] = field(default=(), repr=False)

    @classmethod
    def of_nothing(cls, columns: int) -> WeightedSums:
        """Return the sums of no rows."""
        zeros = (NOTHING,) * columns
        return cls(0, NOTHING, NOTHING, zeros, zeros, zeros)

    @classmethod
    def of(cls, columns: Sequence[Column], weight: Floats | None, groups: RowGroups | None) -> WeightedSums:
        """Sum columns, of numbers or of answers; without weights they are 1."""
        rows = len(columns[0])
        with np.errstate(over="ignore"):  # a square may be infinite: there is no error then
            weighted = columns
            weight_sum = squared_weight = ExactSum.of_count(rows)
            products = None
            if weight is not None:
                numbers = [times(weight, column.astype(np.float64, copy=False)) for column in columns]
                weighted = numbers
                weight_sum, squared_weight = ExactSum.of_values(weight), ExactSum.of_values(weight * weight)
                products = tuple(ExactSum.of_values(times(weight, values)) for values in numbers)
            totals = tuple(ExactSum.of_values(values) for values in weighted)
            squares = tuple(ExactSum.of_values(values * values) for values in weighted)
        pieces: tuple[Mapping[Label, GroupSums], ...] = ()
        if groups is not None:
            by_group = {
                label: GroupSums(
                    len(which),
                    ExactSum.of_count(len(which)) if weight is None else ExactSum.of_values(weight[which]),
                    tuple(ExactSum.of_values(values[which]) for values in weighted),
                )
                for label, which in groups.rows()
            }
            pieces = (by_group,)
        return cls(rows, weight_sum, squared_weight, totals, squares, products or totals, pieces)

    def __add__(self, other: WeightedSums) -> WeightedSums:
        def added(a: tuple[ExactSum, ...], b: tuple[ExactSum, ...]) -> tuple[ExactSum, ...]:
            return tuple(one + another for one, another in zip(a, b, strict=True))

        return WeightedSums(
            self.rows + other.rows,
            self.weight + other.weight,
            self.squared_weight + other.squared_weight,
            added(self.totals, other.totals),
            added(self.squares, other.squares),
            added(self.products, other.products),
            in_few_pieces(self.pieces + other.pieces, len, _merged),
        )

    def groups(self) -> Mapping[Label, GroupSums]:
        """Return the sums of each group, integers before texts and each in their order."""
        whole = self._by_group() if self.pieces else {}
        return {label: whole[label] for label in sorted(whole, key=_order)}

    def mean(self, column: int) -> float:
        """Return the mean of a column."""
        return self.totals[column].over(self.weight)

    def estimate(self, column: int) -> Estimate:
        """Return the mean of a column and its standard error: over groups, if there are any."""
        return Estimate(self.mean(column), root(self.variance(column)))

    def variance(self, column: int, *, of_rows: bool = False) -> Fraction | None:
        """Return the square of the standard error, or None where there is none.

        With `of_rows` rows are independent, even if they have groups.
        """
        total, weight = self.totals[column], self.weight
        exact = [weight, total]
        # Squares of sums are in units of 2**-2148.
        if self.pieces and not of_rows:
            groups = self._by_group().values()
            count = len(groups)
            squares = sum(group.totals[column].units ** 2 for group in groups)
            products = sum(group.totals[column].units * group.weight.units for group in groups)
            squared_weight = sum(group.weight.units**2 for group in groups)
        else:
            exact += [self.squared_weight, self.squares[column], self.products[column]]
            count = self.rows
            squares = self.squares[column].units * UNITS
            products = self.products[column].units * UNITS
            squared_weight = self.squared_weight.units * UNITS
        if count < 2 or not weight.units or any(value.not_finite for value in exact):
            return None
        # In the largest unit of which all are whole numbers: most of their digits are zeros at the end.
        unit = min(
            _zeros_at_the_end(weight.units),
            _zeros_at_the_end(total.units),
            *(_zeros_at_the_end(square) // 2 for square in (squares, products, squared_weight)),
        )
        a, b = total.units >> unit, weight.units >> unit
        squares, products, squared_weight = (
            square >> 2 * unit for square in (squares, products, squared_weight)
        )
        # sum((a - m b)**2) with m = A / B, times B**2.
        left = squares * b**2 - 2 * a * products * b + squared_weight * a**2
        # The squares of rows are rounded: what should be 0 may be less.
        return Fraction(count * max(left, 0), (count - 1) * b**4)

    def _by_group(self) -> Mapping[Label, GroupSums]:
        return functools.reduce(_merged, self.pieces)

    def as_json(self) -> dict[str, Any]:
        """Return all in types that JSON has."""
        return {
            "rows": self.rows,
            "weight": self.weight.as_json(),
            "squared_weight": self.squared_weight.as_json(),
            **{
                name: [value.as_json() for value in getattr(self, name)]
                for name in ("totals", "squares", "products")
            },
            "groups": [
                [label, sums.rows, sums.weight.as_json(), [total.as_json() for total in sums.totals]]
                for label, sums in self.groups().items()
            ],
        }

    @classmethod
    def from_json(cls, value: Any, columns: int) -> WeightedSums:
        """Return what `as_json` gave; refuse anything else."""
        match value:
            case {
                "rows": int(rows),
                "weight": weight,
                "squared_weight": squared_weight,
                "totals": [*totals],
                "squares": [*squares],
                "products": [*products],
                "groups": [*groups],
            } if rows >= 0 and {len(totals), len(squares), len(products)} == {columns}:
                by_group = dict(_group_from_json(group, columns) for group in groups)
                return cls(
                    rows,
                    ExactSum.from_json(weight),
                    ExactSum.from_json(squared_weight),
                    tuple(map(ExactSum.from_json, totals)),
                    tuple(map(ExactSum.from_json, squares)),
                    tuple(map(ExactSum.from_json, products)),
                    (by_group,) if by_group else (),
                )
        raise ValueError(f"expected sums of {columns} columns")


def _zeros_at_the_end(number: int) -> int:
    """Return how often 2 divides a number; 0 has as many zeros as anyone likes."""
    return (number & -number).bit_length() - 1 if number else 1 << 20


def times(weight: Floats | None, values: Floats) -> Floats:
    """Return weighted values, where 0 times infinity is 0; without weights they are 1."""
    if weight is None:
        return values
    with np.errstate(invalid="ignore", over="ignore"):
        return np.where((weight == 0) & ~np.isnan(values), 0.0, weight * values)


def root(variance: Fraction | None) -> float:
    """Return the root of a variance; NaN if there is none."""
    return math.nan if variance is None else root_of_ratio(variance.numerator, variance.denominator)


def in_few_pieces(
    pieces: tuple[_Piece, ...], size: Callable[[_Piece], int], join: Callable[[_Piece, _Piece], _Piece]
) -> tuple[_Piece, ...]:
    """Join pieces until each is at most half of the one before it.

    Then there are few, and what they hold is copied a few times, however often some is added.
    """
    few: list[_Piece] = []
    for piece in pieces:
        last = piece
        while few and 2 * size(last) > size(few[-1]):
            last = join(few.pop(), last)
        few.append(last)
    return tuple(few)


def _merged(a: Mapping[Label, GroupSums], b: Mapping[Label, GroupSums]) -> Mapping[Label, GroupSums]:
    return {**a, **{label: a[label] + sums if label in a else sums for label, sums in b.items()}}


def _order(label: Label) -> tuple[bool, Any]:
    return isinstance(label, str), label


def _group_from_json(value: Any, columns: int) -> tuple[Label, GroupSums]:
    match value:
        case [int(label) | str(label), int(rows), weight, [*totals]] if len(totals) == columns:
            return label, GroupSums(rows, ExactSum.from_json(weight), tuple(map(ExactSum.from_json, totals)))
    raise ValueError("expected sums of a group")
