"""Time each function by itself, for the numbers before and after a change. Answers are checked, then timed.

    python -m pytest benches/bench_cross_entropy.py --benchmark-enable --benchmark-autosave
    python -m pytest benches/bench_cross_entropy.py --benchmark-enable --benchmark-compare

Select with ``-k``, for instance ``-k "xent_rs and 32000 and float32"``. Each case has its roof, the time in
which the memory moves the same bytes, in ``extra_info`` (see ``--benchmark-json``): machines drift, shares of
the roof much less. Without ``--benchmark-enable`` everything runs once, on a sixty-fourth of the rows, which
keeps this file in working order.
"""

import statistics

import numpy as np
import pytest
import xent_rs
from xent_rs import _xent_rs
from xent_rs.cli.benchmark import peers, timing
from xent_rs.cli.benchmark.cases import GRADIENT, LOSS, ROOFS, Case
from xent_rs.cli.benchmark.contenders import CONTENDERS, NotApplicable, at_level
from xent_rs.cli.benchmark.reference import loss_bounds

from .suites import options

# The peers warn about themselves; a run with all of them, compiled ones included, takes its time.
pytestmark = [pytest.mark.filterwarnings("default"), pytest.mark.timeout(900)]

SHAPES = [(2048, 32_000), (512, 128_256), (256, 262_144), (16_384, 1000), (262_144, 10)]
DTYPES = ["float32", "bfloat16", "float16", "float64"]
OURS = [contender for contender in CONTENDERS if contender.package == "xent_rs"]


def at_targets(case, array):
    return array[np.arange(case.rows), case.targets].astype(np.float64)


# name: (the call, the mean loss that follows from its answer)
FUNCTIONS = {
    "row losses": (
        lambda case: xent_rs.cross_entropy(case.logits, case.targets, reduction="none"),
        lambda case, answer: answer.mean(dtype=np.float64),
    ),
    "evaluate": (
        lambda case: xent_rs.evaluate(case.logits, case.targets),
        lambda case, answer: answer.loss,
    ),
    "logsumexp": (
        lambda case: xent_rs.logsumexp(case.logits),
        lambda case, answer: np.mean(answer - at_targets(case, case.logits)),
    ),
    "softmax, out=": (
        lambda case: xent_rs.softmax(case.logits, out=case.out),
        lambda case, answer: -np.log(at_targets(case, answer)).mean(),
    ),
    "log_softmax, out=": (
        lambda case: xent_rs.log_softmax(case.logits, out=case.out),
        lambda case, answer: -at_targets(case, answer).mean(),
    ),
}

OPTIONS = [
    task
    for task in options.TASKS
    if task.name not in ("plain", "logsumexp", "evaluate", "softmax", "log_softmax")
]


@pytest.fixture(scope="module", params=[(shape, dtype) for dtype in DTYPES for shape in SHAPES], ids=str)
def case(request):
    (rows, classes), dtype = request.param
    if request.config.getoption("benchmark_disable") and not request.config.getoption("benchmark_enable"):
        rows //= 64
    return options.Material.random(rows, classes, dtype)


@pytest.fixture(scope="module")
def roofs(case):
    """The seconds that the memory needs to be read, and to be copied."""
    samples = timing.interleaved(case.roofs(), repeats=7)
    return {name: statistics.median(seconds) for name, seconds in samples.items()}


def time(benchmark, case, name, call, roofs, roof):
    """Time a call; `roof` says how often each of the roofs counts."""
    benchmark.group = f"{case.name}, {name}"
    benchmark(call)
    if benchmark.enabled:
        roof = sum(factor * roofs[name] for name, factor in roof.items())
        benchmark.extra_info |= {
            "roof": roof,
            "of_roof": roof / benchmark.stats.stats.median,
            "level": _xent_rs.simd_level(),
            "threads": xent_rs.get_num_threads(),
        }


@pytest.mark.parametrize("contender", CONTENDERS, ids=lambda contender: f"{contender.job}: {contender.name}")
def test_contender(benchmark, case, roofs, contender):
    """This package and its peers."""
    if contender.version() is None:
        pytest.skip(f"{contender.package} is not installed")
    try:
        call = contender.make(case)
    except NotApplicable as reason:
        pytest.skip(str(reason))
    peers.check(case, contender, call())
    time(benchmark, case, contender.job, call, roofs, ROOFS[contender.job])


@pytest.mark.parametrize("level", _xent_rs.simd_levels())
@pytest.mark.parametrize("contender", OURS, ids=lambda contender: contender.name)
def test_level(benchmark, case, roofs, contender, level):
    """This package at each SIMD level of the CPU."""
    call = at_level(contender, level).make(case)
    peers.check(case, contender, call())
    time(benchmark, case, f"{contender.name} at each level", call, roofs, ROOFS[contender.job])


@pytest.mark.parametrize("function", FUNCTIONS)
def test_function(benchmark, case, roofs, function):
    """The other functions, against the roof of their traffic."""
    call, mean_loss = FUNCTIONS[function]
    allowed = loss_bounds(case.reference.losses, case.classes).mean() + 2 * case.eps * case.loss
    assert abs(mean_loss(case, call(case)) - case.loss) <= allowed
    job = GRADIENT if "out=" in function else LOSS
    time(benchmark, case, "other functions", lambda: call(case), roofs, ROOFS[job])


@pytest.mark.parametrize("task", OPTIONS, ids=lambda task: f"{task.job}: {task.name}")
def test_option(benchmark, case, roofs, task):
    """The options, and the functions that are not in `FUNCTIONS`."""
    if case.dtype != np.float32:
        pytest.skip("the formulas of the check are for float32")
    call, check = task.prepare(case)
    check(call())
    time(benchmark, case, f"options, {task.job}", call, roofs, task.roof)


@pytest.mark.parametrize("contender", CONTENDERS, ids=lambda contender: f"{contender.job}: {contender.name}")
def test_smallest_call(benchmark, contender):
    """What a call costs when there is nothing to compute."""
    if contender.version() is None:
        pytest.skip(f"{contender.package} is not installed")
    small = Case.random(4, 10, "float32")
    call = contender.make(small)
    peers.check(small, contender, call())
    benchmark.group = f"{small.name}, {contender.job}"
    benchmark(call)
