"""The results of each suite as tables for people: lists of lines, the first of them the head."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from xent_rs.cli._terminal import significant
from xent_rs.cli.benchmark.tables import (
    Result,
    Table,
    by_case,
    case,
    grouped,
    peers,
    shape,
    time,
)


def tables(report: dict[str, Any]) -> list[Table]:
    """Return all tables of a report, with their titles."""
    return [table for suite, results in suites(report).items() for table in _TABLES[suite](results)]


def suites(report: dict[str, Any]) -> dict[str, list[Result]]:
    """Return the results of a report by suite."""
    return grouped(report["results"], lambda result: result["suite"])


def against(results: Iterable[Result]) -> list[tuple[Result, Result]]:
    """Return the results of peers in a suite, each with this package's of the same case.

    That of a new array each call is compared with the same if it was measured, and all else with the first
    of this package's ways.
    """
    found = []
    timed = (result for result in results if "median" in result)
    for of_case in grouped(timed, lambda result: (*case(result), result["job"], result.get("kind"))).values():
        ours = {
            result["contender"]: result for result in of_case if result["contender"].startswith("xent_rs")
        }
        for result in of_case:
            if ours and result["contender"] not in ours:
                first = next(iter(ours.values()))
                fresh = result["contender"].endswith(", new array")
                found.append((result, ours.get("xent_rs, new array", first) if fresh else first))
    return found


def memory(size: float) -> str:
    """Write a number of bytes: ``12 KiB``, ``3.4 MiB``."""
    return f"{size / 2**10:,.0f} KiB" if size < 2**20 else f"{size / 2**20:,.1f} MiB"


def _unique(values: Iterable[Any]) -> list[Any]:
    return list(dict.fromkeys(values))


def _smallest(results: Sequence[Result]) -> list[Table]:
    lines = [["", "median", "minimum"]]
    lines += [
        [f"{result['contender']}, {result['job']}", time(result["median"]), time(result["minimum"])]
        for result in results
    ]
    return [(f"the smallest call, {shape(results[0])} {results[0]['dtype']}", lines)]


def _options(results: Sequence[Result]) -> list[Table]:
    """Return a table for each shape and job: a line for each option."""
    found = []
    for of_case in by_case(results).values():
        lines = [["", "median", "of plain", "beyond its bytes", "of the roof"]]
        lines += [
            [
                result["contender"],
                time(result["median"]),
                f"{result['ratio']:.2f}",
                f"{result['beyond']:.2f}",
                f"{result['of_roof']:.3f}",
            ]
            for result in of_case
        ]
        first = of_case[0]
        found.append((f"options, {first['job']}, {shape(first)} {first['dtype']}", lines))
    return found


def _growth(results: Sequence[Result]) -> list[Table]:
    """Return one table: a line for each shape, time per element."""
    jobs = _unique(result["job"] for result in results)
    head = ["", *(column for job in jobs for column in (f"{job}, ns an element", "of the roof"))]
    lines = [head]
    for of_shape in grouped(results, case).values():
        of_job = {result["job"]: result for result in of_shape}
        line = [shape(of_shape[0])]
        for job in jobs:
            result = of_job[job]
            elements = result["rows"] * result["classes"]
            line += [f"{1e9 * result['median'] / elements:.4f}", f"{result['of_roof']:.3f}"]
        lines.append(line)
    return [("time per element as the work grows, float32", lines)]


def _threads(results: Sequence[Result]) -> list[Table]:
    """Return one table: a line for each shape, job and number of threads."""
    lines = [["", "threads", "median", "of the roof of as many", "of the roof of all"]]
    lines += [
        [
            f"{result['job']}, {shape(result)}",
            str(result["threads"]),
            time(result["median"]),
            f"{result['of_roof']:.3f}",
            f"{result['of_full_roof']:.3f}",
        ]
        for result in sorted(results, key=lambda result: (case(result), result["job"], result["threads"]))
    ]
    return [("threads, float32", lines)]


def _compare(results: Sequence[Result]) -> list[Table]:
    """Return a table for each kind of candidate: a line for each shape and contender."""
    found = []
    for kind, of_kind in grouped(results, lambda result: result["kind"]).items():
        lines = [["", "median", "minimum", "times reading both"]]
        lines += [
            [
                f"{result['contender']}, {shape(result)}",
                time(result["median"]),
                time(result["minimum"]),
                significant(result["median"] / result["roof"]),
            ]
            for result in of_kind
        ]
        found.append((f"a float32 reference compared with a candidate: {kind}", lines))
    return found


def _memory(results: Sequence[Result]) -> list[Table]:
    """Return one table: a line for each contender and job, a column for each shape."""
    shapes = _unique(shape(result) for result in results)
    lines = [["", *shapes]]
    for (job, name), of_contender in grouped(
        results, lambda result: (result["job"], result["contender"])
    ).items():
        above = {shape(result): result["above"] for result in of_contender}
        lines.append([f"{job}, {name}", *(memory(above[each]) if each in above else "" for each in shapes)])
    return [("memory above the inputs, float32", lines)]


def _classes(results: Sequence[Result]) -> list[Table]:
    """Return a table for each kind and job: a line for each number of classes, nanoseconds per element."""
    found = []
    kinds = grouped(results, lambda result: (result.get("kind"), result["job"]))
    for (kind, job), of_kind in kinds.items():
        names = _unique(result["contender"] for result in of_kind)
        lines = [["classes", *names, "the roof"]]
        for classes, line in sorted(grouped(of_kind, lambda result: result["classes"]).items()):
            elements = line[0]["rows"] * line[0]["classes"]
            times = {result["contender"]: 1e9 * result["median"] / elements for result in line}
            cells = (significant(times[name]) if name in times else "" for name in names)
            lines.append([f"{classes:,}", *cells, significant(1e9 * line[0]["roof"] / elements)])
        elements = of_kind[0]["rows"] * of_kind[0]["classes"]
        what = job if kind is None else f"{kind}, {job}"
        found.append((f"{what} by number of classes, ns an element of {elements:,}, float32", lines))
    return found


def _sixteen(results: Sequence[Result]) -> list[Table]:
    """Return one table: a line for each shape and job, a column for each dtype."""
    dtypes = _unique(result["dtype"] for result in results)
    lines = [["", *(f"{dtype}, ns an element" for dtype in dtypes)]]
    for (rows, classes, job), line in grouped(
        results, lambda result: (result["rows"], result["classes"], result["job"])
    ).items():
        times = {result["dtype"]: 1e9 * result["median"] / (rows * classes) for result in line}
        lines.append([f"{job}, {shape(line[0])}", *(significant(times[dtype]) for dtype in dtypes)])
    return [("16-bit logits in the cache of one thread", lines)]


def _beside(results: Sequence[Result]) -> list[Table]:
    """Return one table: a line for each company and number of threads."""
    lines = [["", "threads", "median", "95 % below", "of one thread's"]]
    for company, of_company in grouped(results, lambda result: result["company"]).items():
        (one,) = (result["p95"] for result in of_company if result["threads"] == 1)
        lines += [
            [
                f"{company}, {shape(result)}",
                str(result["threads"]),
                time(result["median"]),
                time(result["p95"]),
                f"{result['p95'] / one:.2f}",
            ]
            for result in of_company
        ]
    return [("loss while others use the CPUs, float32", lines)]


_TABLES: dict[str, Callable[[Sequence[Result]], list[Table]]] = {
    "peers": peers,
    "classes": _classes,
    "axis1": _classes,
    "targets": _classes,
    "options": _options,
    "binary": peers,
    "compare": _compare,
    "smallest": _smallest,
    "growth": _growth,
    "threads": _threads,
    "memory": _memory,
    "sixteen": _sixteen,
    "beside": _beside,
}
