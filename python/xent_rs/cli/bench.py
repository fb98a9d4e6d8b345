"""Time this package against NumPy, and against SciPy, scikit-learn, PyTorch and JAX if installed.

Every contender computes the mean loss of random logits, then the loss and its gradient. Each answer is first
compared with float64: a wrong one of this package ends the command, one of a peer is not timed, but listed.
Then all take turns. The roof is the time in which the machine only reads the logits (for the loss), or reads
them and writes as much (for the gradient), measured in the same turns on the same memory with all threads.
Tolerances are relative.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .. import set_num_threads
from .._bfloat16 import bfloat16
from . import _terminal
from .benchmark import peers, tables
from .benchmark.contenders import CONTENDERS
from .benchmark.measuring import Settings, measure

_REPEATS, _QUICK_REPEATS = 5, 3
_DTYPES = ("float16", "bfloat16", "float32", "float64")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "--shape",
        type=_shape,
        nargs="+",
        default=[],
        metavar="NxC",
        help="rows x classes (default: 512x128256 2048x32000 16384x1000)",
    )
    parser.add_argument(
        "--dtype", nargs="+", choices=_DTYPES, default=["float32"], help="of the logits (default: float32)"
    )
    parser.add_argument(
        "--levels", action="store_true", help="also this package at the other SIMD levels of the CPU"
    )
    parser.add_argument(
        "--repeats",
        type=_positive,
        metavar="N",
        help=f"samples of each time, of calls above 0.1 s a third (default: {_REPEATS})",
    )
    parser.add_argument("--quick", action="store_true", help="smaller shapes and fewer samples")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw the times")
    _terminal.add_threads(parser)
    _terminal.add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Measure and print."""
    if arguments.plot is not None:
        from .benchmark import plot  # before the work, for it may be missing

    report = measure([peers.run], settings(arguments))

    if arguments.plot is not None:
        plot.draw(report, arguments.plot)
    if arguments.json:
        _terminal.print_json(report)
    else:
        print_report(report, tables.peers(report["results"]))
    return 0


def settings(arguments: argparse.Namespace) -> Settings:
    """Set the number of threads, and return all else that the arguments say."""
    if arguments.threads is not None:
        set_num_threads(arguments.threads)
    if "bfloat16" in arguments.dtype:
        bfloat16()  # before the work, for it may be missing
    return Settings(
        contenders=CONTENDERS,
        repeats=arguments.repeats or (_QUICK_REPEATS if arguments.quick else _REPEATS),
        quick=arguments.quick,
        shapes=arguments.shape,
        dtypes=arguments.dtype,
        levels=arguments.levels,
    )


def print_report(report: dict[str, Any], found: Sequence[tables.Table]) -> None:
    """Print where and with what it was measured, its tables, and what was skipped."""
    environment = report["environment"]
    versions = ", ".join(f"{package} {version}" for package, version in environment["versions"].items())
    print(f"{environment['cpu']}, {environment['simd_level']}, {environment['num_threads']} threads")
    print(f"Python {environment['python']}, {versions}")
    for title, lines in found:
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
