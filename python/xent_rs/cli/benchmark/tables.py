"""Results as tables for people: lists of lines, the first of them the head."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from .._terminal import milliseconds, significant

Result = dict[str, Any]
Table = tuple[str, list[list[str]]]


def by_case(results: Iterable[Result]) -> dict[tuple[int, int, str, str], list[Result]]:
    """Return results by shape, dtype and job."""
    return grouped(results, lambda result: (*case(result), result["job"]))


def shape(result: Result) -> str:
    """Write the shape of a result."""
    return f"{result['rows']:,} x {result['classes']:,}"


def time(seconds: float) -> str:
    """Write a time with three significant digits: ``4.51 us``, ``7.82 ms``, ``109 ms``."""
    if seconds < 1e-4:
        return f"{significant(1e6 * seconds)} us"
    return milliseconds(seconds)


def case(result: Result) -> tuple[int, int, str]:
    """Return shape and dtype of a result."""
    return result["rows"], result["classes"], result["dtype"]


def grouped(results: Iterable[Result], key: Callable[[Result], Any]) -> dict[Any, list[Result]]:
    """Return results by a key, in order of its first appearance."""
    groups: dict[Any, list[Result]] = {}
    for result in results:
        groups.setdefault(key(result), []).append(result)
    return groups


def peers(results: Sequence[Result]) -> list[Table]:
    """Return a table for each case and job: a line for each contender."""
    found = []
    for of_case in by_case(results).values():
        roof = of_case[0]["roof"]
        lines = [["", "median", "minimum", "of the roof", "error", "allowed"]]
        for result in of_case:
            what = "gradient" if "gradient_error" in result else "loss"
            lines.append(
                [
                    result["contender"],
                    time(result["median"]),
                    time(result["minimum"]),
                    f"{result['roof'] / result['median']:.3f}",
                    f"{result[f'{what}_error']:.1e}",
                    f"{result[f'{what}_tolerance']:.1e}",
                ]
            )
        first = of_case[0]
        title = f"{first['job']}, {shape(first)} {first['dtype']}; the roof is {time(roof)}"
        found.append((title, lines))
    return found
