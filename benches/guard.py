"""Fail if a kernel has lost its speed: ratios of times in one run, which hold on a noisy machine.

    python -m benches.guard

One thread works on logits that fit into the L2 cache, so that neither the memory nor other threads matter.
All calls take turns, and of each the shortest time counts: noise only makes times longer. The turns go on
until all ratios hold, or for `PATIENCE` seconds. So it is done at the SIMD level in use and at each below it.
Limits are 1.3 to 1.5 times what was measured with AVX-512 or AVX2, whichever was more: room for other CPUs,
but not for a kernel that is no longer vectorised, nor for an option of the plain loss that takes another pass
of exponentials.
"""

import itertools
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import xent_rs
from xent_rs import _xent_rs
from xent_rs.cli.benchmark import peers
from xent_rs.cli.benchmark.cases import GRADIENT, LOSS, Case
from xent_rs.cli.benchmark.contenders import CONTENDERS, at_level
from xent_rs.cli.benchmark.reference import numpy_loss, numpy_loss_and_gradient

from .suites import binary, classes, comparison, kinds, options
from .suites.kinds import CLASSES, KL, SOFT, SOFTCAP

# 256 KiB of float32.
SHAPE = (16, 4096)
FEW_CLASSES = (4096, 10)
PORTABLE = "portable"
DTYPES = ["float32", "bfloat16", "float16", "float64"]

TURNS, PATIENCE, SAMPLE_SECONDS = 25, 30.0, 4e-4

# How many times as long as by the portable kernels it may take at another level.
OF_PORTABLE = 0.5

# ... as the plain loss (gradient) of float32 it may take with this dtype, ...
OF_FLOAT32 = {"bfloat16": 1.9, "float16": 1.8, "float64": 4.0}

# ... as the plain loss and as the plain gradient these may take, ...
# Class targets without any of these have kernels of their own (src/kernel/), which are faster.
OF_PLAIN = {
    "label smoothing": (2.0, 2.0),
    "class weights": (1.5, 1.4),
    "class weights, smoothing": (4.0, 3.8),
    "sample weights": (1.4, 1.4),
    "z-loss": (1.7, 1.6),
    "temperature": (1.4, 1.4),
    "softcap": (8.8, 9.3),
    "probabilities": (3.7, 4.2),
    "probabilities, smoothing": (5.1, 5.2),
    # Of 64 classes in 4096, which take eight times the share that they have of 32,000.
    "sparse targets": (2.9, 2.4),
    "sparse targets, tail": (4.1, 3.0),
    "KL divergence": (6.8, 5.4),
    "KL divergence, reverse": (12.6, 10.0),
    "Jensen-Shannon divergence": (22.6, 17.5),
    "logsumexp": (1.5, None),
    "row_statistics": (5.0, None),
    "evaluate": (10.3, None),
    "in place": (None, 1.4),
    "Hessian besides": (None, 3.7),
    "Hessian times a vector": (None, 3.0),
    "softmax": (None, 1.4),
    "log_softmax": (None, 1.8),
}

# ... with few classes, where every scalar step counts, ...
OF_PLAIN_FEW_CLASSES = {
    "label smoothing": (2.7, 2.5),
    "class weights, smoothing": (3.0, 2.8),
    "temperature": (1.4, 1.4),
    "softcap": (4.4, 4.4),
    "probabilities": (3.8, 3.2),
    "KL divergence": (3.9, 3.3),
    "logsumexp": (1.6, None),
    "selective_log_softmax": (5.0, None),
    "row_statistics": (5.2, None),
    "evaluate": (5.5, None),
    "Hessian besides": (None, 4.1),
    "Hessian times a vector": (None, 3.8),
    "softmax": (None, 1.3),
    "log_softmax": (None, 1.6),
}

# ... and as long as NumPy's exponential of as many float32 numbers, which is vectorised: the loss and the
# gradient of each kind and number of classes, which are last, ...
OF_EXP = {
    (CLASSES, 2): (4.0, 6.0),
    (CLASSES, 10): (4.0, 7.2),
    (CLASSES, 100): (1.3, 2.5),
    (CLASSES, 1000): (1.0, 1.9),
    (CLASSES, 4096): (0.75, 1.4),
    (SOFT, 2): (37.0, 54.0),
    (SOFT, 100): (2.8, 5.4),
    (SOFT, 1000): (2.5, 5.2),
    (KL, 2): (41.0, 55.0),
    (KL, 100): (4.5, 6.6),
    (KL, 1000): (4.5, 6.4),
    (SOFTCAP, 2): (44.0, 71.0),
    (SOFTCAP, 100): (4.6, 9.1),
    (SOFTCAP, 1000): (5.3, 10.0),
}

# ... or on axis 1 of an image, ...
OF_EXP_IMAGES = {
    (CLASSES, 2): (4.0, 6.0),
    (CLASSES, 21): (2.0, 3.7),
    (CLASSES, 1000): (0.9, 1.8),
    (SOFT, 2): (25.0, 38.0),
    (SOFT, 21): (4.0, 7.2),
    (SOFT, 1000): (1.9, 4.8),
    (KL, 2): (31.0, 42.0),
    (KL, 21): (6.1, 8.6),
    (KL, 1000): (3.4, 5.0),
}

# ... and of binary targets.
OF_EXP_BINARY = {
    "xent_rs": 2.2,
    "xent_rs, bool targets": 2.4,
    "xent_rs, out=": 3.2,
    "xent_rs, bool targets, out=": 3.3,
}

# ... and of two models compared: the figures of rows alone, as the compiled module gives them, and all of it.
OF_EXP_COMPARED = {
    ("rounded", 2): (160.0, 350.0),
    ("rounded", 10): (34.0, 94.0),
    ("rounded", 100): (13.0, 50.0),
    ("rounded", 1000): (5.9, 40.0),
    ("another model", 1000): (9.9, 45.0),
    ("rounded", 4096): (4.9, 39.0),
    ("another model", 4096): (8.9, 43.0),
    ("rounded, bfloat16", 4096): (5.1, 39.0),
}

# These limits are for one CPU. NumPy's exponential is another program than ours, and scalar steps take more
# of a row's time where vectors are wider: on other CPUs the ratios may be so much larger.
ON_ANOTHER_CPU = 1.5

# Classes along the first axis: shapes (classes, rows) and how many times as long per element as with another
# shape the loss and the gradient may take. Where rows are cut so that whole vectors of them do not fit, these
# take two to six times as long.
FIRST_AXIS = {
    (1100, 64): ((1000, 64), 1.3, 1.3),
    (4100, 16): ((4096, 16), 1.3, 1.3),
    # Beside fewer classes of as many bytes, 2 MiB of logits: they may not fit into the second cache either.
    (32_000, 16): ((4096, 128), 1.3, 1.3),
}

# What a call costs, against the formula in NumPy: 4 rows of 10 classes.
OF_NUMPY = {LOSS: 0.35, GRADIENT: 0.35}

Call = Callable[[], Any]


@dataclass(frozen=True)
class Ratio:
    """A call that may take at most `limit` times as long as another; both by their names."""

    call: str
    other: str
    limit: float


def measure(calls: dict[str, Call], ratios: list[Ratio], patience: float) -> tuple[list[str], list[str]]:
    """Time calls until all ratios hold or patience ends; return a text of each, and of those that fail."""
    numbers = {name: max(1, round(SAMPLE_SECONDS / seconds(call, 3))) for name, call in calls.items()}
    shortest = dict.fromkeys(calls, float("inf"))
    end = time.perf_counter() + patience
    turns = 0
    while True:
        for name, call in calls.items():
            shortest[name] = min(shortest[name], seconds(call, numbers[name]))
        turns += 1
        found = {ratio: shortest[ratio.call] / shortest[ratio.other] for ratio in ratios}
        beyond = [ratio for ratio in ratios if not found[ratio] <= ratio.limit]
        if turns >= TURNS and (not beyond or time.perf_counter() > end):
            break
    texts = {
        ratio: f"{ratio.call}: {found[ratio]:.2f} of {ratio.other}; at most {ratio.limit:.2f}"
        for ratio in ratios
    }
    return list(texts.values()), [texts[ratio] for ratio in beyond]


def seconds(call: Call, number: int) -> float:
    """Return the time of a call, the mean of a few after one that is not timed."""
    call()
    start = time.perf_counter()
    for _ in range(number):
        call()
    return (time.perf_counter() - start) / number


def level_and_dtype_checks() -> Iterator[tuple[dict[str, Call], list[Ratio]]]:
    """Yield the loss and the gradient of each dtype, at the level in use and by the portable kernels."""
    ours = [each for each in CONTENDERS if each.name in ("xent_rs", "xent_rs, out=")]
    for dtype in DTYPES:
        case = Case.random(*SHAPE, dtype)
        for contender in ours:
            plain = f"{contender.job}, {dtype}"
            of_portable = f"{plain}, {PORTABLE}"
            ratios = [Ratio(plain, of_portable, OF_PORTABLE)]
            if dtype in OF_FLOAT32:
                ratios.append(Ratio(plain, f"{contender.job}, float32", OF_FLOAT32[dtype]))
            calls = {
                plain: checked(contender, case),
                of_portable: checked(at_level(contender, PORTABLE), case),
            }
            yield calls, ratios


def checked(contender: Any, case: Case) -> Call:
    """Return the call of a contender whose answer is right."""
    call: Call = contender.make(case)
    peers.check(case, contender, call())
    return call


def option_checks() -> Iterator[tuple[dict[str, Call], list[Ratio]]]:
    """Yield the options and the other functions, for long rows and for few classes."""
    for shape, limits in ((SHAPE, OF_PLAIN), (FEW_CLASSES, OF_PLAIN_FEW_CLASSES)):
        case = options.Material.random(*shape, "float32")
        for task in options.TASKS:
            limit = limits.get(task.name, (None, None))[0 if task.job == LOSS else 1]
            if task.name == options.PLAIN or limit is not None:
                call, check = task.prepare(case)
                check(call())
                where = f"{task.job}, {shape[0]} x {shape[1]}"
                name, plain = (f"{each}, {where}" for each in (task.name, options.PLAIN))
                yield {name: call}, [Ratio(name, plain, limit)] if limit is not None else []


def exponential() -> tuple[str, Call]:
    """Return NumPy's exponential of float32 numbers, with its name."""
    logits = Case.random(*SHAPE, "float32")
    return f"np.exp of {logits.name}", lambda: np.exp(logits.logits, out=logits.out)


def exponential_checks() -> Iterator[tuple[dict[str, Call], list[Ratio]]]:
    """Yield few and many classes, last and on axis 1, and binary targets, against an exponential."""
    exp, call = exponential()
    yield {exp: call}, []
    elements = math.prod(SHAPE)
    for place, table in (("last", OF_EXP), ("on axis 1", OF_EXP_IMAGES)):
        for (kind, number), limits in table.items():
            rows = elements // number
            case = options.Material.random(rows, number, "float32")
            problem = kinds.Problem(case, kind, (1, 1, rows) if table is OF_EXP_IMAGES else None)
            for job, limit in zip((LOSS, GRADIENT), limits, strict=True):
                name = f"{job}, {kind}, {number} classes {place}"
                call = kinds.ours(problem, job)
                problem.check("xent_rs", call())
                yield {name: call}, [Ratio(name, exp, ON_ANOTHER_CPU * limit)]
    yes_or_no = binary.Material.random(*SHAPE, "float32")
    for contender, job, package, make, exact in binary.TASKS:
        if package == "xent_rs":
            call, check = binary.prepare(yes_or_no, contender, make, exact)
            check(call())
            name = f"{job}, binary, {contender}"
            yield {name: call}, [Ratio(name, exp, ON_ANOTHER_CPU * OF_EXP_BINARY[contender])]


def comparison_checks() -> Iterator[tuple[dict[str, Call], list[Ratio]]]:
    """Yield two models compared, against an exponential."""
    exp, call = exponential()
    yield {exp: call}, []
    for (kind, number), limits in OF_EXP_COMPARED.items():
        case = Case.random(math.prod(SHAPE) // number, number, "float32")
        problem = comparison.Problem(case, kind)
        calls = {"rows": comparison.rows_of(problem), "all": comparison.ours(problem)}
        problem.check("xent_rs", calls["all"]())
        for (what, call), limit in zip(calls.items(), limits, strict=True):
            name = f"two models compared, {what}, {kind}, {number} classes"
            yield {name: call}, [Ratio(name, exp, ON_ANOTHER_CPU * limit)]


def smallest_checks() -> Iterator[tuple[dict[str, Call], list[Ratio]]]:
    """Yield the smallest call against NumPy."""
    small = Case.random(4, 10, "float32")
    formulas = {LOSS: numpy_loss, GRADIENT: numpy_loss_and_gradient}
    for contender in CONTENDERS:
        if contender.name in ("xent_rs", "xent_rs, out="):
            job, formula = contender.job, formulas[contender.job]
            name, other = f"{job}, {small.name}", f"NumPy's {job}, {small.name}"
            calls = {
                name: checked(contender, small),
                other: lambda formula=formula: formula(small.logits, small.targets),
            }
            yield calls, [Ratio(name, other, OF_NUMPY[job])]


def first_axis_checks() -> Iterator[tuple[dict[str, Call], list[Ratio]]]:
    """Yield different numbers of classes along the first axis."""
    shapes = dict.fromkeys(shape for pair in FIRST_AXIS.items() for shape in (pair[0], pair[1][0]))
    for job, contender in zip((LOSS, GRADIENT), classes.FIRST_AXIS, strict=True):
        names = {shape: f"{job}, {shape[0]} x {shape[1]}, axis=0" for shape in shapes}
        for shape, name in names.items():
            case = Case.random(shape[1], shape[0], "float32")
            other, *limits = FIRST_AXIS.get(shape, (None,))
            ratios = []
            if other is not None:
                elements = math.prod(shape) / math.prod(other)
                ratios.append(Ratio(name, names[other], limits[job == GRADIENT] * elements))
            yield {name: checked(contender, case)}, ratios


def joined(*groups: Iterator[tuple[dict[str, Call], list[Ratio]]]) -> tuple[dict[str, Call], list[Ratio]]:
    """Return all calls of groups of checks by their names, and all ratios."""
    calls: dict[str, Call] = {}
    ratios = []
    for some_calls, some_ratios in itertools.chain(*groups):
        calls |= some_calls
        ratios += some_ratios
    return calls, ratios


def main() -> int:
    """Measure and print; return the exit status."""
    levels = _xent_rs.simd_levels()
    in_use = _xent_rs.simd_level()
    if PORTABLE not in levels:
        print(f"{in_use} has no portable kernels beside it, by which its limits are set: nothing is promised")
        return 0
    vectorised = levels[levels.index(in_use) : levels.index(PORTABLE)]
    if not vectorised:
        print("only the portable kernels are in use, of which nothing is promised")
        return 0
    xent_rs.set_num_threads(1)
    status = 0
    try:
        for level in vectorised:
            _xent_rs.set_simd_level(level)
            checks = joined(
                level_and_dtype_checks(),
                option_checks(),
                first_axis_checks(),
                exponential_checks(),
                comparison_checks(),
                smallest_checks(),
            )
            texts, failures = measure(*checks, PATIENCE)
            print("\n".join(f"{level}: {text}" for text in texts))
            for failure in failures:
                print(f"too slow: {level}: {failure}", file=sys.stderr)
                status = 1
    finally:
        _xent_rs.set_simd_level(in_use)
    return status


if __name__ == "__main__":
    sys.exit(main())
