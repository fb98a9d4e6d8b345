"""Rows of more than 2^20 classes: cut into pieces of 2^18, which all threads share where rows are few.

The pieces are merged in their order. What is asked here: the same bits for any number of threads, the
promised accuracy wherever the leader, the target and the masked classes are, the usual meaning of what is no
number, and Ctrl-C in the middle of a row.
"""

import functools
import signal
import time

import numpy as np
import pytest
import xent_rs
from ml_dtypes import bfloat16
from xent_rs import SparseTargets, _xent_rs

from .bounds import (
    CrossEntropyBounds,
    DivergenceBounds,
    KlDivergenceBounds,
    assert_within,
    entropy_bound,
    log_probability_bound,
    logsumexp_bound,
    probability_bound,
)
from .cases import DTYPES
from .oracle import CrossEntropy, Divergence, KlDivergence, Softmax, ranks
from .test_layouts import differing, results

dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)

PIECE = 2**18
#: Six pieces, of which the last is short.
CLASSES = 5 * PIECE + 77
FUSED = [level for level in _xent_rs.simd_levels() if level != "portable"]


@functools.cache
def normal():
    return np.random.default_rng(7).standard_normal(CLASSES)


def row_of(name, dtype):
    """(logits, target)."""
    row, target = 3 * normal(), PIECE + 5
    match name:
        case "normal":
            pass
        case "ascending":
            row = np.sort(row)
        case "descending":
            row = np.sort(row)[::-1]
        case "steps":  # Each piece is a little above the one before it.
            row = row / 8 + np.arange(CLASSES) // PIECE * 0.7
        case "leader in the last piece":
            row[-3] = 40
        case "target leads":
            row[target] = 31
        case "target far below":
            row[target] = -3e4
        case "one piece masked":
            row[2 * PIECE : 3 * PIECE] = -np.inf
        case "first pieces masked":
            row[: 3 * PIECE + 9], target = -np.inf, CLASSES - 1
        case "all but one masked":
            row, target = np.where(np.arange(CLASSES) == CLASSES - 2, row, -np.inf), CLASSES - 2
        case "target masked":
            row[target] = -np.inf
        case "large":
            row += 6e4 if dtype.itemsize == 2 else 1e6
        case "over the whole range":
            row *= 3e3 if dtype.itemsize == 2 else 1e4
        case "piece far above":
            row[4 * PIECE : 5 * PIECE] += 90
    return row.astype(dtype), target


ROWS = [
    "normal",
    "ascending",
    "descending",
    "steps",
    "leader in the last piece",
    "target leads",
    "target far below",
    "one piece masked",
    "first pieces masked",
    "all but one masked",
    "target masked",
    "large",
    "over the whole range",
    "piece far above",
]

OPTIONS = {
    "plain": {},
    "temperature": {"temperature": 0.7},
    "smoothing": {"label_smoothing": 0.1},
    "z-loss": {"z_loss": 1e-3},
    "softcap": {"softcap": 20.0},
    "weights": {"weight": True, "label_smoothing": 0.2},
    "focal": {"focal_gamma": 2.0},
    "all": {"weight": True, "label_smoothing": 0.1, "z_loss": 1e-3, "softcap": 30.0, "temperature": 1.5},
}


def weights():
    """One for each class, no two pieces alike."""
    return 0.5 + np.arange(CLASSES) % 7 / 4


def arguments_of(name):
    """(our arguments, those of the oracle's softmax, those of its loss)."""
    options = dict(OPTIONS[name])
    if options.pop("weight", False):
        options["weight"] = weights()
    of_softmax = {name: options[name] for name in ("temperature", "softcap") if name in options}
    return options, of_softmax, {name: options[name] for name in options if name not in of_softmax}


def assert_accurate(dtype, name, options):
    """Loss and gradient of a row within the bounds, on every level."""
    row, target = row_of(name, dtype)
    options, of_softmax, of_loss = arguments_of(options)
    targets = np.array([target])
    oracle = CrossEntropy(Softmax(row[None], **of_softmax), targets, **of_loss)
    bounds = CrossEntropyBounds(oracle, dtype)
    losses, gradient, bound = oracle.losses, oracle.gradients, bounds.gradients()
    for level in _xent_rs.simd_levels():
        _xent_rs.set_simd_level(level)
        loss, grad = xent_rs.cross_entropy_with_grad(row[None], targets, reduction="none", **options)
        assert_within("loss", loss, losses, bounds.losses, dtype, level)
        assert_within("gradient", grad, gradient, bound, dtype, level)
        alone = xent_rs.cross_entropy(row[None], targets, reduction="none", **options)
        assert alone.tobytes() == loss.tobytes()


#: Every row and dtype without options, and all options with some of them.
GRID = [
    (dtype, name, "plain") for dtype in sorted(DTYPES, key=lambda dtype: dtype != np.float32) for name in ROWS
] + [
    (np.dtype(dtype), name, options)
    for dtype in (np.float32, np.float64)
    for name in ("normal", "steps", "one piece masked", "large")
    for options in OPTIONS
    if options != "plain"
]


def test_a_loss_and_a_gradient_are_as_accurate_as_those_of_short_rows():
    assert_accurate(np.dtype(np.float32), "steps", "plain")


@pytest.mark.exhaustive
@pytest.mark.parametrize(("dtype", "name", "options"), GRID, ids=str)
def test_losses_and_gradients_are_as_accurate_as_those_of_short_rows(dtype, name, options):
    assert_accurate(dtype, name, options)


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", ROWS)
@dtypes
def test_softmax_and_statistics_are_as_accurate_as_those_of_short_rows(dtype, name):
    row, target = row_of(name, dtype)
    softmax = Softmax(row[None])
    log_bound = log_probability_bound(softmax, dtype)
    for level in _xent_rs.simd_levels():
        _xent_rs.set_simd_level(level)
        assert_within(
            "logsumexp",
            xent_rs.logsumexp(row[None]),
            softmax.logsumexp,
            logsumexp_bound(softmax, dtype),
            dtype,
        )
        got = xent_rs.softmax(row[None])
        assert_within("softmax", got, softmax.probabilities, probability_bound(softmax, dtype), dtype)
        got = xent_rs.log_softmax(row[None])
        assert_within("log_softmax", got, softmax.log_probabilities, log_bound, dtype)
        found = xent_rs.row_statistics(row[None], [target])
        assert found.argmax[0] == softmax.top[0]
        assert found.target_rank[0] == ranks(row[None], np.array([target]))[0]
        assert_within("entropy", found.entropy, softmax.entropies, entropy_bound(softmax, dtype), dtype)
        assert_within(
            "log_probability",
            found.target_log_probability,
            softmax.log_probabilities[:, target],
            log_bound[:, target],
            dtype,
        )
        index = np.array([[target, 0, CLASSES - 1]])
        chosen = xent_rs.selective_log_softmax(row[None], index)
        expected = np.take_along_axis(softmax.log_probabilities, index, axis=1)
        bound = np.take_along_axis(log_bound, index, axis=1)
        assert_within("selective_log_softmax", chosen, expected, bound, dtype)


@pytest.mark.exhaustive
@pytest.mark.parametrize("names", [("normal", "steps"), ("ascending", "descending"), ("large", "steps")])
@dtypes
def test_divergences_are_as_accurate_as_those_of_short_rows(dtype, names):
    logits, teacher = (row_of(name, dtype)[0][None] for name in names)
    softmaxes = Softmax(logits), Softmax(teacher)
    oracles = {
        "forward": KlDivergenceBounds(KlDivergence(*softmaxes), dtype),
        "reverse": DivergenceBounds(Divergence(*softmaxes), dtype),
        "jensen_shannon": DivergenceBounds(Divergence(*softmaxes, beta=0.5), dtype),
    }
    for level in _xent_rs.simd_levels():
        _xent_rs.set_simd_level(level)
        for kind, bounds in oracles.items():
            loss, grad = xent_rs.kl_divergence_with_grad(logits, teacher, kind=kind, reduction="none")
            assert_within(kind, loss, bounds.oracle.losses, bounds.losses, dtype, level)
            expected, bound = bounds.oracle.gradients, bounds.gradients()
            assert_within(f"{kind} gradient", grad, expected, bound, dtype, level)


@pytest.mark.exhaustive
@dtypes
def test_probabilities_as_targets(dtype):
    row, target = row_of("normal", dtype)
    probabilities = np.zeros((1, CLASSES))
    probabilities[0, [0, target, -1]] = 0.25, 0.5, 0.25
    oracle = CrossEntropy(Softmax(row[None]), probabilities, label_smoothing=0.1)
    bounds = CrossEntropyBounds(oracle, dtype)
    loss, grad = xent_rs.cross_entropy_with_grad(
        row[None], probabilities, label_smoothing=0.1, reduction="none"
    )
    assert_within("loss", loss, oracle.losses, bounds.losses, dtype)
    assert_within("gradient", grad, oracle.gradients, bounds.gradients(), dtype)
    # The same, listed, and a teacher's tail.
    sparse = SparseTargets([[0, target, CLASSES - 1]], [[0.25, 0.5, 0.25]])
    oracle = CrossEntropy(Softmax(row[None]), probabilities)
    bounds = CrossEntropyBounds(oracle, dtype)
    loss, grad = xent_rs.cross_entropy_with_grad(row[None], sparse, reduction="none")
    assert_within("listed loss", loss, oracle.losses, bounds.losses, dtype)
    assert_within("listed gradient", grad, oracle.gradients, bounds.gradients(), dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", ["normal", "leader in the last piece", "one piece masked"])
def test_further_derivatives(dtype, name):
    """Products with Hessians, and the derivatives by soft targets and by the temperature."""
    row, target = row_of(name, np.dtype(dtype))
    logits, options = row[None], {"weight": weights(), "label_smoothing": 0.2}
    each = options | {"reduction": "none"}
    vector = np.random.default_rng(3).standard_normal(logits.shape).astype(dtype)
    vector[np.isneginf(logits)] = np.nan
    oracle = CrossEntropy(Softmax(logits), np.array([target]), **options)
    bounds = CrossEntropyBounds(oracle, dtype)
    found = xent_rs.cross_entropy_hvp(logits, [target], vector, reduction="sum", **options)
    expected, bound = oracle.hessian_products(vector), bounds.hessian_products(vector, 1)
    assert_within("Hessian times vector", found, expected, bound, dtype)
    found = xent_rs.cross_entropy_temperature_grad(logits, [target], **each)
    expected, bound = oracle.temperature_gradients, bounds.temperature_gradients
    assert_within("gradient of the temperature", found, expected, bound, dtype)
    probabilities = np.zeros(logits.shape, dtype)
    probabilities[0, [target, CLASSES - 1]] = 0.25, 0.5
    oracle = CrossEntropy(Softmax(logits), probabilities, **options)
    bounds = CrossEntropyBounds(oracle, dtype)
    found = xent_rs.cross_entropy_temperature_grad(logits, probabilities, **each)
    expected, bound = oracle.temperature_gradients, bounds.temperature_gradients
    assert_within("gradient of the temperature", found, expected, bound, dtype)
    found = xent_rs.cross_entropy_target_grad(logits, probabilities, reduction="sum", **options)
    assert_within("gradient of targets", found, oracle.target_gradients, bounds.target_gradients(1), dtype)


def everything(logits, targets, axis=-1):
    """`results`, and what else reads whole rows, as bits."""
    found = results(logits, targets, axis)
    teacher = np.flip(logits, axis)
    counts = np.where(targets < 0, 0.0, 1.0)
    index = np.stack([np.maximum(targets, 0), np.full(targets.shape, logits.shape[axis] - 1)], axis=-1)
    sparse = SparseTargets(index, np.full(index.shape, 0.25), "tail")
    row = {"axis": axis, "reduction": "none", "sample_weight": counts}
    statistics = xent_rs.row_statistics(logits, targets, axis=axis)
    evaluation = xent_rs.evaluate(logits, targets, axis=axis, z_loss=0.1)
    comparison = xent_rs.compare(logits, teacher, targets, axis=axis)
    shares = np.full(logits.shape, 1 / logits.shape[axis], np.float32)
    arrays = [
        xent_rs.cross_entropy_hvp(logits, targets, teacher, axis=axis),
        xent_rs.cross_entropy_target_grad(logits, shares, weight=weights(), axis=axis),
        xent_rs.cross_entropy_temperature_grad(logits, shares, **row),
        *xent_rs.kl_divergence_with_grad(logits, teacher, **row),
        *xent_rs.kl_divergence_with_grad(logits, teacher, kind="reverse", **row),
        *xent_rs.kl_divergence_with_grad(logits, teacher, kind="jensen_shannon", beta=0.3, **row),
        *xent_rs.kl_divergence_with_grad(logits, sparse, **row),
        xent_rs.selective_log_softmax(logits, index, axis=axis),
        statistics.target_rank,
        statistics.entropy,
        np.array([evaluation.loss, evaluation.entropy, *evaluation.top_k.values()]),
        np.array([comparison.kl.value, comparison.same_top.value]),
    ]
    return found | {f"number {number}": np.asarray(array).tobytes() for number, array in enumerate(arrays)}


def example(dtype, rows):
    logits = np.stack([row_of(name, dtype)[0] for name in ("normal", "piece far above", "large")[:rows]])
    return logits, np.array([9, -100, CLASSES - 1])[:rows]


@pytest.mark.exhaustive
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("layout", ["contiguous", "turned", "reversed"])
@dtypes
def test_threads_change_no_bit(dtype, layout, rows):
    logits, targets = example(dtype, rows)
    axis = -1
    if layout == "turned":
        logits, axis = np.ascontiguousarray(logits.T), 0
    elif layout == "reversed":
        logits = logits[:, ::-1].copy()[:, ::-1]
    found = {}
    for threads in (1, 2, 3, 7):
        xent_rs.set_num_threads(threads)
        found[threads] = everything(logits, targets, axis)
        assert differing(found[1], found[threads]) == [], f"{threads} threads"


def test_threads_change_no_bit_of_a_loss():
    """One row on all threads, and, with so few pieces, rows side by side."""
    logits, targets = example(np.dtype(np.float32), 3)
    expected = None
    for threads in (1, 2, 3, 7):
        xent_rs.set_num_threads(threads)
        for rows in (slice(1), slice(3)):
            loss, grad = xent_rs.cross_entropy_with_grad(logits[rows], targets[rows], reduction="none")
            expected = expected or (loss[0].tobytes(), grad[0].tobytes())
            assert (loss[0].tobytes(), grad[0].tobytes()) == expected, (threads, rows)


@pytest.mark.skipif(len(FUSED) < 2, reason="one SIMD level with fused multiply-add here")
@pytest.mark.exhaustive
@dtypes
def test_fused_levels_agree_to_the_bit(dtype):
    logits, targets = example(dtype, 3)
    found = []
    for level in FUSED:
        _xent_rs.set_simd_level(level)
        found.append(everything(logits, targets))
    for other in found[1:]:
        assert differing(found[0], other) == []


#: Rows that are no numbers, and whether they count.
NO_NUMBERS = {
    "NaN in the last piece": (lambda row: row.__setitem__(-1, np.nan), True),
    "NaN in a masked piece": (
        lambda row: (row.__setitem__(slice(PIECE, 2 * PIECE), -np.inf), row.__setitem__(PIECE + 9, np.nan)),
        True,
    ),
    "+inf in the fourth piece": (lambda row: row.__setitem__(3 * PIECE + 1, np.inf), True),
    "all masked": (lambda row: row.fill(-np.inf), True),
    "left out": (lambda row: row.fill(np.nan), False),
}


@pytest.mark.exhaustive
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64, bfloat16], ids=["float32", "float64", "bfloat16"])
def test_what_is_no_number_stays_in_its_row(dtype, options):
    dtype = np.dtype(dtype)
    options, *_ = arguments_of(options)
    fine, target = row_of("normal", dtype)
    logits, targets = np.stack([fine] * (len(NO_NUMBERS) + 3)), np.full(len(NO_NUMBERS) + 3, target)
    for row, (spoil, _) in zip(logits[1:], NO_NUMBERS.values(), strict=False):
        spoil(row)
    counts = np.array([True, *(counts for _, counts in NO_NUMBERS.values()), False, True])
    # One is ignored, one weighs nothing.
    weights = np.ones(len(logits))
    weights[-2], logits[-2, 3] = 0, np.inf
    targets[list(NO_NUMBERS).index("left out") + 1] = -100
    logits[-1, target] = -np.inf
    losses, grad = xent_rs.cross_entropy_with_grad(
        logits, targets, sample_weight=weights, reduction="none", **options
    )
    alone, grad_alone = xent_rs.cross_entropy_with_grad(fine[None], [target], reduction="none", **options)
    assert losses[0].tobytes() == alone[0].tobytes()
    assert grad[0].tobytes() == grad_alone[0].tobytes()
    for number, (name, (_, counted)) in enumerate(NO_NUMBERS.items(), 1):
        if counted:
            assert np.isnan(losses[number]), name
            assert np.isnan(np.delete(grad[number].astype(np.float32), target)).all(), name
    assert (losses[~counts] == 0).all()
    assert not grad[~counts].astype(np.float32).any()
    assert losses[-1] == np.inf
    assert grad[-1, target] == 0
    np.testing.assert_array_equal(np.isnan(xent_rs.logsumexp(logits[:5])), [False, True, True, False, False])
    assert (xent_rs.logsumexp(logits[3:5]) == [np.inf, -np.inf]).all()


def test_a_probability_that_is_none_is_found_in_the_last_piece():
    row, _ = row_of("normal", np.dtype(np.float32))
    targets = np.full((1, CLASSES), 1 / CLASSES)
    targets[0, -5] = -1
    out = np.full((1, CLASSES), 7, np.float32)
    with pytest.raises(ValueError, match=rf"targets\[0, {CLASSES - 5}\] is -1"):
        xent_rs.cross_entropy_with_grad(row[None], targets, out=out)
    assert (out == 7).all()


@pytest.mark.exhaustive
@dtypes
def test_in_place_and_apart_are_the_same(dtype):
    logits, targets = example(dtype, 3)
    for options in ({}, {"label_smoothing": 0.1, "softcap": 20.0}):
        expected = xent_rs.cross_entropy_with_grad(logits, targets, **options)
        for array, axis in ((logits.copy(), -1), (np.ascontiguousarray(logits.T), 0)):
            loss, grad = xent_rs.cross_entropy_with_grad(array, targets, axis=axis, out=array, **options)
            assert np.shares_memory(grad, array)
            assert loss == expected[0]
            assert np.ascontiguousarray(grad if axis else grad.T).tobytes() == expected[1].tobytes()
    out = logits.copy()
    assert xent_rs.softmax(out, out=out).tobytes() == xent_rs.softmax(logits).tobytes()


def test_equal_logits_rank_by_their_place_in_other_pieces():
    row = np.zeros(CLASSES, np.float32)
    row[[PIECE - 1, PIECE, 4 * PIECE + 3, CLASSES - 1]] = 5
    ranked = {PIECE - 1: 0, PIECE: 1, 4 * PIECE + 3: 2, CLASSES - 1: 3, 0: 4, CLASSES - 2: CLASSES - 1}
    for target, rank in ranked.items():
        found = xent_rs.row_statistics(row, target)
        assert (found.argmax, found.target_rank) == (PIECE - 1, rank)


@pytest.mark.exhaustive
def test_shards_of_long_rows():
    row, target = row_of("leader in the last piece", np.dtype(np.float32))
    logits = np.concatenate([row, row[::-1]])[None]
    first, second = (
        xent_rs.partial_row_statistics(
            part, [target], class_offset=offset, num_classes=2 * CLASSES, target_logit=logits[:, target]
        )
        for offset, part in ((0, logits[:, :CLASSES]), (CLASSES, logits[:, CLASSES:]))
    )
    lse = first.merge(second).result().logsumexp
    expected = Softmax(logits)
    assert_within("logsumexp", lse, expected.logsumexp, logsumexp_bound(expected, logits.dtype), logits.dtype)
    _, grad = xent_rs.cross_entropy_with_grad(logits, [target])
    part = xent_rs.cross_entropy_grad(
        logits[:, CLASSES:], [target], lse=lse, class_offset=CLASSES, num_classes=2 * CLASSES
    )
    np.testing.assert_allclose(part, grad[:, CLASSES:], rtol=1e-5, atol=1e-30)


class AlarmError(Exception):
    pass


#: So many that an alarm after a third of a second finds a call in the middle of a row.
LONG = 1_500_000_000
INTERRUPTED = {
    "loss": lambda row: xent_rs.cross_entropy(row, 5, reduction="none"),
    "softcap": lambda row: xent_rs.cross_entropy(row, 5, reduction="none", softcap=9.0),
    "float64 temperature beyond the fast kernels": lambda row: xent_rs.logsumexp(row, temperature=1e-9),
    "divergence": lambda row: xent_rs.kl_divergence(row, row),
    "statistics": lambda row: xent_rs.row_statistics(row, 5),
    "evaluate": lambda row: xent_rs.evaluate(row[None], [5]),
    "compare": lambda row: xent_rs.compare(row[None], row[None]),
}


def seconds_until_stopped(call, alarm):
    """How long after an alarm, that comes so many seconds after its beginning, a call ends."""

    def stop(*_):
        raise AlarmError

    before = signal.signal(signal.SIGALRM, stop)
    try:
        start = time.perf_counter()
        signal.setitimer(signal.ITIMER_REAL, alarm)
        with pytest.raises(AlarmError):
            call()
        return time.perf_counter() - start - alarm
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.exhaustive
@pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="no alarm here")
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("call", INTERRUPTED.values(), ids=INTERRUPTED)
def test_a_row_is_interrupted_within_a_tenth_of_a_second(call, threads):
    xent_rs.set_num_threads(threads)
    row = np.broadcast_to(np.zeros((), np.float32), LONG)  # in no memory
    late = [seconds_until_stopped(lambda: call(row), alarm) for alarm in (0.05, 0.11, 0.17, 0.23, 0.29)]
    assert np.median(late) < 0.1


#: Of what takes less long: again and again, so that alarms find it anywhere.
REPEATED = {
    "gradient": lambda row, out: xent_rs.cross_entropy_with_grad(row, 5, out=out),
    "divergence": lambda row, out: xent_rs.kl_divergence_with_grad(row, row[::-1], kind="reverse", out=out),
    "Hessian times vector": lambda row, out: xent_rs.cross_entropy_hvp(row, 5, row, out=out),
    "Hessian times vector, temperature 1e-20": lambda row, out: xent_rs.cross_entropy_hvp(
        row, 5, row, temperature=1e-20, out=out
    ),
    "gradient of targets": lambda row, out: xent_rs.cross_entropy_target_grad(row, row * row, out=out),
    "gradient of targets, temperature 1e-20": lambda row, out: xent_rs.cross_entropy_target_grad(
        row, row * row, temperature=1e-20, out=out
    ),
    "gradient of the temperature": lambda row, out: xent_rs.cross_entropy_temperature_grad(row, row * row),
    "compare": lambda row, out: xent_rs.compare(row[None], row[None, ::-1]),
}


@pytest.mark.exhaustive
@pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="no alarm here")
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("call", REPEATED.values(), ids=REPEATED)
def test_work_on_a_row_is_interrupted_within_a_tenth_of_a_second(call, threads):
    xent_rs.set_num_threads(threads)
    row = np.random.default_rng(0).standard_normal(60_000_000, np.float32)
    out = row[::-1].copy()

    def calls():
        while True:
            call(row, out)

    late = [seconds_until_stopped(calls, alarm) for alarm in (0.1, 0.21, 0.32, 0.43, 0.54)]
    assert np.median(late) < 0.1
