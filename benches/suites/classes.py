"""Time against the number of classes: the same number of elements in fewer and longer rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from xent_rs import cross_entropy, cross_entropy_with_grad
from xent_rs.cli.benchmark.cases import GRADIENT, LOSS, Case
from xent_rs.cli.benchmark.contenders import Contender, promised
from xent_rs.cli.benchmark.measuring import Results, Settings, Skips
from xent_rs.cli.benchmark.peers import compare

_ELEMENTS, _QUICK_ELEMENTS = 1 << 24, 1 << 18
_CLASSES = (2, 4, 10, 32, 100, 316, 1000, 3162, 10_000, 32_000, 100_000, 262_144)
_QUICK_CLASSES = (2, 10, 1000, 32_000)

# With the classes along the first axis there are these besides: they divide nothing evenly, or are next to a
# power of two, which is where it shows how the work is cut.
_CUTS = (1100, 4096, 4100)

# SciPy, which is slower than NumPy, and the slower ways of others are left to the comparison with peers.
_LEFT_OUT = ("SciPy", "xent_rs, new array", "NumPy, new array")


def run(settings: Settings) -> tuple[Results, Skips]:
    """Compare at each number of classes; this package also with the classes along the first axis."""
    elements = _QUICK_ELEMENTS if settings.quick else _ELEMENTS
    contenders = [contender for contender in settings.contenders if contender.name not in _LEFT_OUT]
    results: Results = []
    skips: Skips = []
    for numbers, some in (
        (_QUICK_CLASSES if settings.quick else _CLASSES, [*contenders, *FIRST_AXIS]),
        (_CUTS, FIRST_AXIS),
    ):
        cases = [(round(elements / classes), classes, "float32") for classes in numbers]
        some_results, some_skips = compare("classes", cases, some, settings.repeats)
        results += some_results
        skips += some_skips
    return results, skips


def _loss(case: Case) -> Callable[[], Any]:
    logits = np.ascontiguousarray(case.logits.T)
    return lambda: cross_entropy(logits, case.targets, axis=0)


def _gradient(case: Case) -> Callable[[], Any]:
    logits = np.ascontiguousarray(case.logits.T)
    out = np.zeros_like(logits)

    def call() -> Any:
        loss, gradient = cross_entropy_with_grad(logits, case.targets, axis=0, out=out)
        return loss, gradient.T

    return call


#: This package with the classes along the first axis: the loss, and the gradient.
FIRST_AXIS = (
    Contender("xent_rs, axis=0", LOSS, _loss, promised, "xent_rs"),
    Contender("xent_rs, axis=0, out=", GRADIENT, _gradient, promised, "xent_rs"),
)
