"""Time this package against NumPy, and against SciPy, scikit-learn, PyTorch and JAX if installed.

Every contender computes the mean loss of random logits, then the loss and its gradient. Each answer is first
compared with float64: a wrong one of this package ends the command, one of a peer is not timed, but listed.
Then all take turns. The roof is the time in which the machine only reads the logits (for the loss), or reads
them and writes as much (for the gradient), measured in the same turns on the same memory with all threads.
Tolerances are relative.

That is the suite "peers". The others, which have shapes of their own and float32 logits:

  options   each option and each function against the plain loss and its gradient
  binary    binary cross-entropy
  smallest  what a call costs
  growth    time per element up to 10^9 elements, as far as the memory goes: that is 9 GB
  threads   one to all
  memory    what a call takes above its inputs
  classes   time against the number of classes
"""

from __future__ import annotations

import argparse
import platform
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from .. import _xent_rs, set_num_threads
from . import _terminal
from .benchmark import SUITES, tables
from .benchmark.contenders import CONTENDERS
from .benchmark.measuring import Settings

_REPEATS, _QUICK_REPEATS = 5, 3
_DTYPES = ("float16", "bfloat16", "float32", "float64")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "--suite",
        nargs="+",
        choices=[*SUITES, "all"],
        default=["peers"],
        metavar="SUITE",
        help="some of them by name, or all (default: peers)",
    )
    parser.add_argument(
        "--shape",
        type=_shape,
        nargs="+",
        default=[],
        metavar="NxC",
        help="rows x classes, of peers (default: 512x128256 2048x32000 16384x1000)",
    )
    parser.add_argument(
        "--dtype", nargs="+", choices=_DTYPES, default=["float32"], help="of peers (default: float32)"
    )
    parser.add_argument(
        "--levels", action="store_true", help="peers: also this package at the other SIMD levels of the CPU"
    )
    parser.add_argument(
        "--repeats",
        type=_positive,
        metavar="N",
        help=f"samples of each time, of calls above 0.1 s a third (default: {_REPEATS})",
    )
    parser.add_argument("--quick", action="store_true", help="smaller shapes and fewer samples")
    parser.add_argument(
        "--plot",
        type=Path,
        metavar="FILE.png",
        help="draw the times; of several suites each into its own FILE-SUITE.png",
    )
    _terminal.add_threads(parser)
    _terminal.add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Measure and print."""
    if arguments.plot is not None:
        from .benchmark import plot  # before the work, for it may be missing

    if arguments.threads is not None:
        set_num_threads(arguments.threads)
    suites = list(SUITES) if "all" in arguments.suite else list(dict.fromkeys(arguments.suite))
    settings = Settings(
        contenders=CONTENDERS,
        repeats=arguments.repeats or (_QUICK_REPEATS if arguments.quick else _REPEATS),
        quick=arguments.quick,
        shapes=arguments.shape,
        dtypes=arguments.dtype,
        levels=arguments.levels,
    )
    report = measure(suites, settings)

    if arguments.plot is not None:
        plot.draw_all(report, arguments.plot)
    if arguments.json:
        _terminal.print_json(report)
    else:
        _print(report)
    return 0


def measure(suites: Sequence[str], settings: Settings) -> dict[str, Any]:
    """Run suites.

    Parameters
    ----------
    suites : sequence of str
        Keys of `SUITES`.
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
    results = []
    skipped = [
        {"contender": package, "reason": "not installed"}
        for package, version in versions.items()
        if version is None
    ]
    for suite in suites:
        some_results, some_skips = SUITES[suite](settings)
        results += some_results
        skipped += [skip for skip in some_skips if skip not in skipped]
    environment = {
        **_xent_rs.config(),
        "python": platform.python_version(),
        "versions": {package: version for package, version in versions.items() if version is not None},
        "repeats": settings.repeats,
    }
    return {"environment": environment, "results": results, "skipped": skipped}


def _print(report: dict[str, Any]) -> None:
    environment = report["environment"]
    versions = ", ".join(f"{package} {version}" for package, version in environment["versions"].items())
    print(f"{environment['cpu']}, {environment['simd_level']}, {environment['num_threads']} threads")
    print(f"Python {environment['python']}, {versions}")
    for title, lines in tables.tables(report):
        print(f"\n{title}")
        _terminal.print_table(lines, indent="  ")
    for skip in report["skipped"]:
        print(f"\nskipped {skip['contender']}: {skip['reason']}", end="")
    if report["skipped"]:
        print()


def _shape(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)x(\d+)", text, re.ASCII)
    if match is None or int(match[1]) < 1 or int(match[2]) < 2:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a shape such as 2048x32000, of two classes or more"
        )
    return int(match[1]), int(match[2])


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive integer")
    return int(text)
