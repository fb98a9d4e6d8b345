"""The comparison with peers: the mean loss of class indices, then the loss and its gradient."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from ... import _xent_rs
from .cases import JOBS, ROOFS, Case
from .contenders import Contender, at_level
from .measuring import Entry, Results, Settings, Skips, progress, steps, take, within

_SHAPES = ((512, 128_256), (2048, 32_000), (16_384, 1000))
_QUICK_SHAPES = ((64, 128_256), (256, 32_000), (2048, 1000))


def run(settings: Settings) -> tuple[Results, Skips]:
    """Compare at each shape and dtype."""
    contenders = with_levels(settings.contenders) if settings.levels else settings.contenders
    shapes = settings.shapes or (_QUICK_SHAPES if settings.quick else _SHAPES)
    cases = [(rows, classes, dtype) for dtype in settings.dtypes for rows, classes in shapes]
    return compare("peers", cases, contenders, settings.repeats)


def compare(
    suite: str, cases: Sequence[tuple[int, int, str]], contenders: Sequence[Contender], repeats: int
) -> tuple[Results, Skips]:
    """Check and time contenders on cases of (rows, classes, dtype)."""
    results: Results = []
    skips: Skips = []
    with progress(len(cases) * steps(len(contenders), len(JOBS), repeats)) as bar:
        for rows, classes, dtype in cases:
            bar.set_postfix_str(f"{suite}, {rows} x {classes} {dtype}")
            case = Case.random(rows, classes, dtype)
            entries = [entry(suite, contender, case) for contender in contenders]
            some_results, some_skips = take(entries, case.roofs(), repeats, bar.update)
            results += some_results
            skips += [skip for skip in some_skips if skip not in skips]
    return results, skips


def entry(suite: str, contender: Contender, case: Case, **fields: Any) -> Entry:
    """Return what `take` needs to know of a contender."""
    own = {"level": contender.level or _xent_rs.simd_level()} if contender.package == "xent_rs" else {}
    return Entry(
        fields={
            "suite": suite,
            **case.fields,
            "job": contender.job,
            "contender": contender.name,
            **own,
            **fields,
        },
        prepare=lambda: (contender.make(case), partial(check, case, contender)),
        roof=ROOFS[contender.job],
        package=contender.package,
    )


def check(case: Case, contender: Contender, answer: Any) -> dict[str, float]:
    """Compare an answer with float64; return the relative errors found and allowed."""
    loss_error, gradient_error = case.errors(answer)
    loss_tolerance, gradient_tolerance = contender.tolerance(case)
    pairs = {"loss": (loss_error, loss_tolerance)}
    if gradient_error is not None:
        pairs["gradient"] = (gradient_error, gradient_tolerance)
    return within(f"{contender.name}, {case.name}", pairs)


def with_levels(contenders: Sequence[Contender]) -> list[Contender]:
    """Return contenders, and after this package's those at each SIMD level that is not in use.

    That of a gradient in a new array would say nothing of a level.
    """
    levels = [level for level in _xent_rs.simd_levels() if level != _xent_rs.simd_level()]
    return [
        each
        for contender in contenders
        for each in (
            contender,
            *(
                at_level(contender, level)
                for level in levels
                if contender.name in ("xent_rs", "xent_rs, out=")
            ),
        )
    ]
