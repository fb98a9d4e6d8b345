"""Check answers, then time calls."""

from __future__ import annotations

import platform
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ... import _xent_rs
from .. import _terminal
from . import timing
from .contenders import Contender, NotApplicable

Results = list[dict[str, Any]]
Skips = list[dict[str, str]]


@dataclass(frozen=True)
class Settings:
    """What the command line asks for.

    Attributes
    ----------
    contenders : sequence of Contender
        Who takes part.
    repeats : int
        Number of samples of each time.
    quick : bool
        Small shapes.
    shapes : sequence of (rows, classes)
        Those of the comparison with peers; empty for the usual ones.
    dtypes : sequence of str
        Those of the comparison with peers.
    levels : bool
        Whether the comparison with peers has this package at the other SIMD levels, too.
    """

    contenders: Sequence[Contender]
    repeats: int
    quick: bool = False
    shapes: Sequence[tuple[int, int]] = ()
    dtypes: Sequence[str] = ("float32",)
    levels: bool = False


def measure(
    suites: Sequence[Callable[[Settings], tuple[Results, Skips]]], settings: Settings
) -> dict[str, Any]:
    """Run suites.

    Parameters
    ----------
    suites : sequence of callable
        Each takes settings, and returns its results and what it skipped.
    settings : Settings
        Contenders that are not installed are left out.

    Returns
    -------
    dict
        ``environment`` (CPU, level, threads, versions), ``results``, each with its ``suite``, shape, dtype,
        job and contender and with times in seconds, and ``skipped``, with reasons. Fit for JSON.

    Raises
    ------
    ArithmeticError
        If an answer of this package is further from float64 than it promises.
    """
    versions = {contender.package: contender.version() for contender in settings.contenders}
    present = [contender for contender in settings.contenders if versions[contender.package] is not None]
    settings = replace(settings, contenders=present)
    results: Results = []
    skipped: Skips = [
        {"contender": package, "reason": "not installed"}
        for package, version in versions.items()
        if version is None
    ]
    for suite in suites:
        some_results, some_skips = suite(settings)
        results += some_results
        skipped += [skip for skip in some_skips if skip not in skipped]
    environment = {
        **_xent_rs.config(),
        "python": platform.python_version(),
        "versions": {package: version for package, version in versions.items() if version is not None},
        "repeats": settings.repeats,
    }
    return {"environment": environment, "results": results, "skipped": skipped}


@dataclass(frozen=True)
class Entry:
    """One call to time.

    Attributes
    ----------
    fields : dict
        What identifies its result: suite, shape, dtype, job and contender.
    prepare : callable
        Prepares whatever need not be timed; returns the call and its check. That takes what the call returns,
        and returns what it found as fields of the result; it raises `ArithmeticError` if the answer is wrong.
    roof : mapping
        How often the time of each roof counts in the roof of this call.
    package : str
        The distribution that the call belongs to.
    """

    fields: dict[str, Any]
    prepare: Callable[[], tuple[Callable[[], Any], Callable[[Any], dict[str, float]]]]
    roof: Mapping[str, float]
    package: str = "xent_rs"


def steps(entries: int, roofs: int, repeats: int) -> int:
    """Return how often `take` reports progress."""
    return entries * (repeats + 1) + roofs * repeats


def take(
    entries: Sequence[Entry], roofs: Mapping[str, Callable[[], Any]], repeats: int, done: Callable[[], object]
) -> tuple[Results, Skips]:
    """Check the answers of all entries, then time them and the roofs in turns.

    Returns
    -------
    results : list of dict
        For each entry its fields, what its check found, the ``median`` and the ``minimum`` of ``samples``
        times in seconds, the time of its ``roof``, and ``of_roof``, the share of the roof's speed.
    skips : list of dict
        The ``contender`` and the ``reason`` for each entry that cannot run here, or is wrong.

    Raises
    ------
    ArithmeticError
        If an answer of this package is wrong.
    """
    calls: dict[int | str, Callable[[], Any]] = {name: call for name, call in roofs.items()}
    checks: dict[int, dict[str, float]] = {}
    skips: Skips = []
    for number, entry in enumerate(entries):
        try:
            call, check = entry.prepare()
            checks[number] = check(call())
        except (NotApplicable, ArithmeticError, ImportError, OSError, RuntimeError) as error:
            # ArithmeticError: a wrong answer, such as PyTorch's mean of many float16 losses. OSError: a peer
            # without its shared libraries. RuntimeError: torch.compile without a compiler.
            if entry.package == "xent_rs":
                raise
            skip = {"contender": entry.fields["contender"], "reason": str(error).partition("\n")[0]}
            if skip not in skips:
                skips.append(skip)
        else:
            calls[number] = call
        done()

    samples = timing.interleaved(calls, repeats, done)
    medians = {name: statistics.median(seconds) for name, seconds in samples.items()}
    results = []
    for number, found in checks.items():
        entry = entries[number]
        roof = sum(factor * medians[name] for name, factor in entry.roof.items())
        results.append(
            {
                **entry.fields,
                "median": medians[number],
                "minimum": min(samples[number]),
                "samples": len(samples[number]),
                "roof": roof,
                "of_roof": roof / medians[number],
                **found,
            }
        )
    return results, skips


def within(what: str, pairs: Mapping[str, tuple[float, float]]) -> dict[str, float]:
    """Return errors and tolerances, in pairs by the quantity, as fields of a result.

    Raises
    ------
    ArithmeticError
        If an error is above what is tolerated, or NaN.
    """
    for quantity, (error, tolerance) in pairs.items():
        if not error <= tolerance:
            raise ArithmeticError(
                f"{what}: the {quantity} is off by {error:.3g}; expected at most {tolerance:.3g}"
            )
    return {
        key: value
        for quantity, (error, tolerance) in pairs.items()
        for key, value in ((f"{quantity}_error", error), (f"{quantity}_tolerance", tolerance))
    }


def progress(total: int) -> Any:
    """Return the progress bar of a suite."""
    return _terminal.progress(total, "bench", unit="run")
