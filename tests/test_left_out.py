"""What does not count is never read into a result: rows and elements of weight 0, means that divide by 0."""

import itertools
import math

import numpy as np
import pytest
import xent_rs

from .cases import DTYPES
from .combinations import same

INF, NAN = math.inf, math.nan
GARBAGE = {
    "NaN": lambda row: np.full_like(row, NAN),
    "one NaN": lambda row: np.where(np.arange(len(row)) == len(row) // 2, NAN, row),
    "+inf": lambda row: np.where(np.arange(len(row)) == 0, INF, row),
    "masked": lambda row: np.full_like(row, -INF),
    "negative": lambda row: -1 - np.abs(row),
}
ROWS = 37
NOTHING = np.isin(np.arange(ROWS) % 5, (1, 2))
WEIGHTS = np.where(NOTHING, np.where(np.arange(ROWS) % 2, -0.0, 0.0), 0.5 + np.arange(ROWS) % 3)
OPTIONS = {
    "class": {"label_smoothing": 0.1, "z_loss": 0.2, "softcap": 3.0, "temperature": 0.5},
    "probabilities": {"label_smoothing": 0.1},
    "teacher": {"temperature": 2.0},
    "reverse": {"kind": "reverse", "temperature": 2.0},
    "mixture": {"kind": "jensen_shannon", "temperature": 2.0},
}

dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)
garbage = pytest.mark.parametrize("spoil", GARBAGE.values(), ids=GARBAGE)


def problem(kind, classes, dtype, random):
    """(function's name, logits, targets), classes last."""
    logits = random.standard_normal((ROWS, classes)).astype(dtype)
    if kind == "class":
        return "cross_entropy", logits, random.integers(0, classes, ROWS)
    if kind == "probabilities":
        return "cross_entropy", logits, random.random((ROWS, classes)).astype(dtype)
    return "kl_divergence", logits, random.standard_normal((ROWS, classes)).astype(dtype)


def spoilt(array, spoil):
    array = array.copy()
    for row in np.flatnonzero(NOTHING):
        array[row] = spoil(array[row].astype(float)).astype(array.dtype)
    return array


def turned(array, axis):
    return np.ascontiguousarray(array.T) if axis == 0 and array.ndim == 2 else array


def everything(name, *call, hessian=True, **options):
    """What the functions of a name return, as one list."""
    found = []
    for reduction in ("none", "mean", "sum"):
        found.append(getattr(xent_rs, name)(*call, reduction=reduction, **options))
        found += getattr(xent_rs, f"{name}_with_grad")(*call, reduction=reduction, **options)
        if hessian:
            kept = {key: value for key, value in options.items() if key not in ("z_loss", "softcap")}
            found += getattr(xent_rs, f"{name}_with_grad_hess")(*call, reduction=reduction, **kept)
    return found


@garbage
@pytest.mark.parametrize("axis", [0, -1])
@pytest.mark.parametrize("classes", [3, 70, 300])
@pytest.mark.parametrize("kind", OPTIONS)
@dtypes
def test_rows_of_weight_0(level, dtype, kind, classes, axis, spoil, random):
    """Their garbage changes no bit of anything, and their own losses and derivatives are zeros."""
    name, logits, targets = problem(kind, classes, dtype, random)
    dirty = spoilt(logits, spoil), spoilt(targets, spoil) if kind != "class" else targets
    call, dirty = [[turned(array, axis) for array in arrays] for arrays in ((logits, targets), dirty)]
    for options in ({}, OPTIONS[kind]):
        options = {
            "sample_weight": WEIGHTS,
            "axis": axis,
            "hessian": kind in ("class", "probabilities"),
            **options,
        }
        expected, found = everything(name, *call, **options), everything(name, *dirty, **options)
        for one, other in zip(expected, found, strict=True):
            assert same(one, other)
            if np.ndim(other):
                rows = np.moveaxis(other, axis, -1) if np.ndim(other) == 2 else other
                assert not rows[NOTHING].any()
                assert not np.isnan(other.astype(float)).any()


@dtypes
def test_rows_of_weight_0_in_place(level, dtype, random):
    """Where zeros are written over the garbage."""
    for classes, axis in ((5, -1), (300, -1), (300, 0)):
        for kind in OPTIONS:
            name, logits, targets = problem(kind, classes, dtype, random)
            dirty = turned(spoilt(logits, GARBAGE["NaN"]), axis)
            targets = turned(targets, axis)
            function = getattr(xent_rs, f"{name}_with_grad")
            options = {"sample_weight": WEIGHTS, "axis": axis}
            loss, grad = function(dirty, targets, **options)
            beside, _ = function(dirty, targets, **options, out=dirty)
            assert loss == beside
            assert same(grad, dirty)


def test_the_divisor_does_not_notice(random):
    """Rows of weight 0 add nothing to it, also where their class weighs infinitely much."""
    logits, targets = random.standard_normal((4, 3)), np.array([0, 1, 2, 0])
    weight = np.array([1.0, 2.0, INF])
    loss = xent_rs.cross_entropy(logits, targets, weight=weight, sample_weight=[1, 3, 0, 1])
    kept = [0, 1, 3]
    expected = xent_rs.cross_entropy(logits[kept], targets[kept], weight=weight, sample_weight=[1, 3, 1])
    assert loss == pytest.approx(expected, rel=1e-15)


def test_a_weight_of_0_of_the_class_leaves_nothing_out():
    for function in (xent_rs.cross_entropy, lambda *call, **weight: xent_rs.evaluate(*call, **weight).loss):
        assert math.isnan(function([[0.0, NAN], [0.0, 1.0]], [0, 1], weight=[0, 1]))


@garbage
@pytest.mark.parametrize("axis", [0, -1])
@dtypes
def test_evaluate_counts_them_as_ignored(level, dtype, axis, spoil, random):
    for classes in (6, 300):
        _, logits, targets = problem("class", classes, dtype, random)
        kept = ~NOTHING
        expected = xent_rs.evaluate(logits[kept], targets[kept], sample_weight=WEIGHTS[kept])
        call = turned(spoilt(logits, spoil), axis), targets
        found = xent_rs.evaluate(*call, axis=axis, sample_weight=WEIGHTS)
        assert (found.rows, found.ignored) == (kept.sum(), NOTHING.sum())
        assert (found.accuracy, found.top_k) == (expected.accuracy, expected.top_k)
        assert found.loss == pytest.approx(expected.loss, rel=1e-6)
        assert found.entropy == pytest.approx(expected.entropy, rel=1e-6)
        evaluator = xent_rs.Evaluator(axis=axis)
        evaluator.update(*call, sample_weight=WEIGHTS)
        assert evaluator.result() == found


@pytest.mark.parametrize("broadcast", [False, True])
@dtypes
def test_elements_of_weight_0(level, dtype, broadcast, random):
    for shape in ((7,), (5, 300), (3, 17)):
        logits, targets = random.standard_normal(shape).astype(dtype), random.random(shape)
        weight = random.integers(0, 3, shape[-1:] if broadcast else shape).astype(np.float32)
        weight[..., 0] = -0.0
        nothing = np.broadcast_to(weight == 0, shape)
        for options in ({}, {"pos_weight": 3.0, "label_smoothing": 0.1}, {"ignore_index": -1}):
            expected = everything("binary_cross_entropy", logits, targets, weight=weight, **options)
            for value in (NAN, INF, -INF):
                dirty = [np.where(nothing, value, array).astype(array.dtype) for array in (logits, targets)]
                found = everything("binary_cross_entropy", *dirty, weight=weight, **options)
                for one, other in zip(expected, found, strict=True):
                    assert same(one, other)
                    if np.ndim(other):
                        assert not other[nothing].any()


# --- A divisor of 0 ---

CALLS = {
    "class": ("cross_entropy", [0, 1, -100]),
    "probabilities": ("cross_entropy", np.full((3, 4), 0.25)),
    "teacher": ("kl_divergence", np.zeros((3, 4))),
    "binary": ("binary_cross_entropy", np.eye(3, 4)),
    "binary, bool": ("binary_cross_entropy", np.eye(3, 4) > 0),
}
OTHERS = [{"kind": "reverse"}, {"kind": "jensen_shannon", "beta": 0.9}]
DIVISORS = {
    "denominator": {"denominator": 0},
    "negative zero": {"denominator": -0.0},
    "sample weights": {"sample_weight": np.zeros(3)},
    "sample weights that cancel": {"sample_weight": [1, -1, 0]},
    "class weights": {"weight": np.zeros(4)},
    "class weights, smoothed": {"weight": np.zeros(4), "label_smoothing": 0.1},
}


@pytest.mark.parametrize("divisor", DIVISORS.values(), ids=DIVISORS)
@pytest.mark.parametrize(("name", "targets"), CALLS.values(), ids=CALLS)
@dtypes
def test_a_mean_that_divides_by_0(level, dtype, name, targets, divisor):
    """It is NaN, and a step along its derivatives changes nothing, whatever the rows hold."""
    if "sample_weight" in divisor and name == "binary_cross_entropy":
        pytest.skip("elements have no sample weight")
    if "weight" in divisor and not (name == "cross_entropy" and type(targets) is list):
        pytest.skip("their mean does not divide by class weights")
    logits = np.array([[1, NAN, 2, 3], [0, 1, 2, INF], [-INF, 1, -INF, 3]], dtype)
    assert math.isnan(getattr(xent_rs, name)(logits, targets, **divisor))
    kinds = [{}, *(OTHERS if name == "kl_divergence" else ())]
    for out in (None, logits.copy()):
        for grad_output, kind in itertools.product((1.0, INF), kinds):
            loss, grad = getattr(xent_rs, f"{name}_with_grad")(
                logits, targets, grad_output=grad_output, out=out, **kind, **divisor
            )
            assert math.isnan(loss)
            np.testing.assert_array_equal(grad.astype(float), np.zeros((3, 4)))
        if name != "kl_divergence":
            loss, *derivatives = getattr(xent_rs, f"{name}_with_grad_hess")(
                logits, targets, out=out, **divisor
            )
            assert math.isnan(loss)
            for derivative in derivatives:
                np.testing.assert_array_equal(derivative.astype(float), np.zeros((3, 4)))


def test_long_rows_too(level):
    for axis, shape in ((-1, (20, 300)), (0, (300, 20))):
        logits = np.full(shape, NAN, np.float32)
        loss, grad = xent_rs.cross_entropy_with_grad(logits, np.zeros(20, int), axis=axis, denominator=0)
        assert math.isnan(loss)
        assert not grad.any()


# --- Infinite weights of classes ---

SMOOTHED = {"weight": [1, INF, 1], "label_smoothing": 0.1}


@pytest.mark.parametrize("axis", [0, -1])
@pytest.mark.parametrize("rest", [0, 300])
@dtypes
def test_infinite_class_weights(level, dtype, axis, rest):
    """An infinite weight times what its class misses is infinite, whichever class leads."""
    rows = np.array([[0, 1, 0], [1, 0, 0], [0, 0, 1], [0, 0, 0], [60, 0, 0], [0, 60, 0], [-INF, 1, 0]])
    count = len(rows)
    logits = np.concatenate([rows, np.zeros((count, rest))], axis=1).astype(dtype)
    logits, weight = turned(logits, axis), np.concatenate([SMOOTHED["weight"], np.ones(rest)])
    soft = turned(np.full((count, 3 + rest), 0.2), axis)
    for targets, smoothing in (
        (np.zeros(count, int), 0.1),
        (np.ones(count, int), 0.1),
        (soft, 0),
        (soft, 0.1),
    ):
        options = {"weight": weight, "label_smoothing": smoothing, "axis": axis, "reduction": "none"}
        losses = xent_rs.cross_entropy(logits, targets, **options)
        np.testing.assert_array_equal(losses, np.full(count, INF))
        beside, grad = xent_rs.cross_entropy_with_grad(logits, targets, **options)
        np.testing.assert_array_equal(beside, losses)
        # mass·p - t: infinity less infinity at the class itself; a masked class has 0.
        expected = np.full((count, 3 + rest), INF)
        expected[:, 1] = NAN
        expected[np.isneginf(np.moveaxis(logits, axis, -1).astype(float))] = 0
        np.testing.assert_array_equal(np.moveaxis(grad, axis, -1).astype(float), expected)
        if targets.ndim == 1:
            options = {"weight": weight, "label_smoothing": smoothing, "axis": axis}
            assert xent_rs.evaluate(logits, targets, **options).loss == (
                INF if targets[0] == 0 else pytest.approx(NAN, nan_ok=True)
            )


def test_infinite_class_weights_of_rows_that_are_no_numbers(level):
    rows = [[NAN, 0, 0], [INF, 0, 0], [-INF] * 3, [0, 1, 0]]
    losses = xent_rs.cross_entropy(rows, [0] * 4, **SMOOTHED, reduction="none")
    np.testing.assert_array_equal(losses, [NAN, NAN, NAN, INF])


# --- Log-sum-exps of infinite logits ---


@pytest.mark.parametrize("temperature", [1.0, 0.5, 3e4])
@pytest.mark.parametrize("axis", [0, -1])
@pytest.mark.parametrize("classes", [1, 3, 17, 255, 256, 1000, 5000])
@dtypes
def test_logsumexp_of_infinity(level, dtype, classes, axis, temperature, random):
    logits = random.standard_normal((40, classes)).astype(dtype)
    at = np.arange(40) * 7 % classes
    logits[np.arange(40), at] = np.where(np.arange(40) % 3 == 0, INF, logits[np.arange(40), at])
    logits[3] = INF
    logits[6, -1] = NAN
    logits[9, 0], logits[9, -1] = INF, -INF if classes > 1 else INF
    logits[12, : classes // 2], logits[12, classes // 2] = -INF, INF
    logits[13] = -INF
    with np.errstate(over="ignore"):
        expected = np.where(np.isnan(logits).any(axis=1), NAN, logits.astype(float).max(axis=1))
    infinite = ~np.isfinite(expected)
    call = turned(logits, axis)
    for found in (
        xent_rs.logsumexp(call, axis=axis, temperature=temperature),
        xent_rs.logsumexp(call, axis=axis, temperature=temperature, keepdims=True).reshape(-1),
        xent_rs.row_statistics(call, axis=axis, temperature=temperature).logsumexp,
        xent_rs.row_statistics(call, axis=axis, temperature=temperature, softcap=5.0).logsumexp,
    ):
        np.testing.assert_array_equal(found[infinite], expected[infinite])
        assert np.isfinite(found[~infinite]).all()
    # Their softmax, and with it their loss, is no number.
    spoilt = ~np.isfinite(expected)
    losses = xent_rs.cross_entropy(call, np.zeros(40, int), axis=axis, reduction="none")
    np.testing.assert_array_equal(np.isnan(losses), spoilt)
    softmax = np.moveaxis(xent_rs.softmax(call, axis=axis), axis, -1).astype(float)
    np.testing.assert_array_equal(np.isnan(softmax).any(axis=1), spoilt)


# --- Single rows ---


def test_results_of_a_single_row_are_arrays_without_axes(level):
    for dtype, wide in ((np.float32, np.float32), (np.float64, np.float64)):
        logits = np.zeros(4, dtype)
        numbers = [
            xent_rs.cross_entropy(logits, 1, reduction="none"),
            xent_rs.cross_entropy_with_grad(logits, 1, reduction="none")[0],
            xent_rs.cross_entropy_with_grad_hess(logits, 1, reduction="none")[0],
            xent_rs.kl_divergence(logits, logits, reduction="none"),
            xent_rs.kl_divergence_with_grad(logits, logits, reduction="none")[0],
            xent_rs.binary_cross_entropy(logits[0, ...], 1, reduction="none"),
            xent_rs.binary_cross_entropy_with_grad(logits[0, ...], 1, reduction="none")[0],
            xent_rs.binary_cross_entropy_with_grad_hess(logits[0, ...], 1, reduction="none")[0],
            xent_rs.logsumexp(logits),
        ]
        statistics = xent_rs.row_statistics(logits, 1)
        classes = [statistics.argmax, statistics.target_rank]
        numbers += [number for number in statistics if not any(number is other for other in classes)]
        for results, expected in ((numbers, wide), (classes, np.int64)):
            for found in results:
                assert type(found) is np.ndarray
                assert (found.shape, found.dtype) == ((), expected)
