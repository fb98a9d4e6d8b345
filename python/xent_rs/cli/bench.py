"""Time this package against NumPy, and against SciPy, scikit-learn, PyTorch and JAX if installed.

Every contender computes the mean loss of random logits, then the loss and its gradient. Each answer is first
compared with float64; a wrong one ends the command. Then all take turns. The roof is the time in which the
machine only reads the logits (for the loss), or reads them and writes as much (for the gradient), measured in
the same turns on the same memory with all threads. Tolerances are relative.
"""

from __future__ import annotations

import argparse
import platform
import re
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .. import _xent_rs, set_num_threads
from . import _contenders, _terminal, _timing
from ._contenders import CONTENDERS, JOBS, Case, Contender, NotApplicable

_SHAPES = ((512, 128_256), (2048, 32_000), (16_384, 1000))
_QUICK_SHAPES = ((64, 128_256), (256, 32_000), (2048, 1000))
_REPEATS, _QUICK_REPEATS = 5, 3
_DTYPES = ("float16", "bfloat16", "float32", "float64")

_ROOF = "the roof"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "--shape",
        type=_shape,
        nargs="+",
        metavar="NxC",
        help=f"rows x classes (default: {' '.join(f'{rows}x{classes}' for rows, classes in _SHAPES)})",
    )
    parser.add_argument("--dtype", nargs="+", choices=_DTYPES, default=["float32"], help="default: float32")
    parser.add_argument(
        "--repeats", type=_positive, metavar="N", help=f"samples of each time (default: {_REPEATS})"
    )
    parser.add_argument("--quick", action="store_true", help="smaller shapes and fewer samples")
    parser.add_argument("--levels", action="store_true", help="this package at every SIMD level of the CPU")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw the times")
    _terminal.add_threads(parser)
    _terminal.add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Measure and print."""
    if arguments.plot is not None:
        from . import _plot  # before the work, for it may be missing

    if arguments.threads is not None:
        set_num_threads(arguments.threads)
    shapes = arguments.shape or (_QUICK_SHAPES if arguments.quick else _SHAPES)
    repeats = arguments.repeats or (_QUICK_REPEATS if arguments.quick else _REPEATS)
    report = measure(
        [(rows, classes, dtype) for dtype in arguments.dtype for rows, classes in shapes],
        with_levels(CONTENDERS) if arguments.levels else CONTENDERS,
        repeats,
    )

    if arguments.plot is not None:
        _plot.draw(report, arguments.plot)
    if arguments.json:
        _terminal.print_json(report)
    else:
        _print(report)
    return 0


def with_levels(contenders: Sequence[Contender]) -> list[Contender]:
    """Return the contenders with each of this package's once for every SIMD level of the CPU."""
    levels = _xent_rs.simd_levels()
    return [
        each
        for contender in contenders
        for each in (
            [_contenders.at_level(contender, level) for level in levels]
            if contender.package == "xent_rs"
            else [contender]
        )
    ]


def measure(
    cases: Sequence[tuple[int, int, str]], contenders: Sequence[Contender], repeats: int
) -> dict[str, Any]:
    """Check and time contenders.

    Parameters
    ----------
    cases : sequence of (rows, classes, dtype name)
        The problems.
    contenders : sequence of Contender
        Who takes part; those that are not installed or not applicable are listed as skipped.
    repeats : int
        Number of samples of each time.

    Returns
    -------
    dict
        ``environment`` (CPU, level, threads, versions), ``results``, one for each case, job and contender,
        with times in seconds and ``of_roof``, the share of the roof's speed, and ``skipped``, with reasons.
        Fit for JSON.

    Raises
    ------
    ArithmeticError
        If an answer is further from float64 than the contender's tolerance.
    """
    versions = {contender.package: contender.version() for contender in contenders}
    skipped = [
        {"contender": package, "reason": "not installed"}
        for package, version in versions.items()
        if version is None
    ]
    present = [contender for contender in contenders if versions[contender.package] is not None]
    results: list[dict[str, Any]] = []
    steps = len(cases) * (len(present) * (repeats + 1) + len(JOBS) * repeats)
    with _terminal.progress(steps, "bench", unit="run") as bar:
        for rows, classes, dtype in cases:
            bar.set_postfix_str(f"{rows} x {classes} {dtype}")
            case = Case(rows, classes, dtype)
            case_results, case_skipped = _measure_case(case, present, repeats, bar.update)
            results += case_results
            skipped += [skip for skip in case_skipped if skip not in skipped]
    environment = {
        **_xent_rs.config(),
        "python": platform.python_version(),
        "versions": {package: version for package, version in versions.items() if version is not None},
        "repeats": repeats,
    }
    return {"environment": environment, "results": results, "skipped": skipped}


def _measure_case(
    case: Case, contenders: Sequence[Contender], repeats: int, done: Callable[[], object]
) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    calls: dict[tuple[str, str], Callable[[], Any]] = {
        (job, _ROOF): call for job, call in case.roofs().items()
    }
    checks: dict[tuple[str, str], dict[str, Any]] = {}
    skipped = []
    for contender in contenders:
        try:
            call = contender.make(case)
            checks[contender.job, contender.name] = _check(case, contender, call())
        except (NotApplicable, ImportError, OSError, RuntimeError) as error:
            # OSError: a peer without its shared libraries. RuntimeError: torch.compile without a compiler.
            if contender.package == "xent_rs":
                raise
            skipped.append({"contender": contender.name, "reason": str(error).partition("\n")[0]})
        else:
            calls[contender.job, contender.name] = call
        done()

    samples = _timing.interleaved(calls, repeats, done)
    medians = {name: statistics.median(seconds) for name, seconds in samples.items()}
    results = [
        {
            "rows": case.rows,
            "classes": case.classes,
            "dtype": case.dtype.name,
            "job": job,
            "contender": name,
            "median": medians[job, name],
            "minimum": min(samples[job, name]),
            "roof": medians[job, _ROOF],
            "of_roof": medians[job, _ROOF] / medians[job, name],
            **check,
        }
        for (job, name), check in checks.items()
    ]
    return results, skipped


def _check(case: Case, contender: Contender, answer: Any) -> dict[str, Any]:
    """Compare an answer with float64; return the relative errors found and allowed."""
    loss_error, gradient_error = case.errors(answer)
    loss_tolerance, gradient_tolerance = contender.tolerance(case)
    pairs = {"loss": (loss_error, loss_tolerance)}
    if gradient_error is not None:
        pairs["gradient"] = (gradient_error, gradient_tolerance)
    for what, (error, tolerance) in pairs.items():
        if not error <= tolerance:
            raise ArithmeticError(
                f"{contender.name}, {case.name}: the {what} is off by {error:.3g}; "
                f"expected at most {tolerance:.3g}"
            )
    return {
        key: value
        for what, (error, tolerance) in pairs.items()
        for key, value in ((f"{what}_error", error), (f"{what}_tolerance", tolerance))
    }


def _print(report: dict[str, Any]) -> None:
    environment = report["environment"]
    versions = ", ".join(f"{package} {version}" for package, version in environment["versions"].items())
    print(f"{environment['cpu']}, {environment['simd_level']}, {environment['num_threads']} threads")
    print(f"Python {environment['python']}, {versions}")
    for (rows, classes, dtype, job), results in grouped(report).items():
        roof = results[0]["roof"]
        print(f"\n{job}, {rows} x {classes} {dtype}; the roof is {_terminal.milliseconds(roof)}")
        lines = [("", "median", "minimum", "of the roof", "error", "allowed")]
        for result in results:
            what = "gradient" if "gradient_error" in result else "loss"
            lines.append(
                (
                    result["contender"],
                    _terminal.milliseconds(result["median"]),
                    _terminal.milliseconds(result["minimum"]),
                    f"{result['of_roof']:.3f}",
                    f"{result[f'{what}_error']:.1e}",
                    f"{result[f'{what}_tolerance']:.1e}",
                )
            )
        _terminal.print_table(lines, indent="  ")
    for skip in report["skipped"]:
        print(f"\nskipped {skip['contender']}: {skip['reason']}", end="")
    if report["skipped"]:
        print()


def grouped(report: dict[str, Any]) -> dict[tuple[int, int, str, str], list[dict[str, Any]]]:
    """Return the results of a report by case and job."""
    groups: dict[tuple[int, int, str, str], list[dict[str, Any]]] = {}
    for result in report["results"]:
        key = (result["rows"], result["classes"], result["dtype"], result["job"])
        groups.setdefault(key, []).append(result)
    return groups


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
