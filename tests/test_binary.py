"""Binary cross-entropy, element by element: the options in combination, and by finite differences."""

import math

import numpy as np
import pytest
import xent_rs
from ml_dtypes import bfloat16

from .bounds import BinaryCrossEntropyBounds
from .cases import DTYPES
from .combinations import (
    INTEGERS,
    LAYOUTS,
    RESULTS,
    Problem,
    assert_levels_agree,
    assert_threads_agree,
    fused,
    logits_of,
    pairwise,
    same,
)
from .oracle import BinaryCrossEntropy
from .slopes import assert_slope, slopes

FLOATS = [np.dtype(dtype) for dtype in (np.float16, bfloat16, np.float32, np.float64)]
WEIGHTS = [None, "number", "classes", "rows", "everything", "int8", "list"]
FACTORS = {
    "target": [
        ("n-hot", np.dtype(bool)),
        *(("n-hot", dtype) for dtype in INTEGERS + FLOATS),
        *(("probabilities", dtype) for dtype in FLOATS),
    ],
    "target_layout": [*LAYOUTS, "list"],
    "shape": [(67, 5), (3, 7, 11), (333,), (), (1, 1), (5, 1000), (300, 1)],
    "dtype": DTYPES,
    "layout": LAYOUTS,
    "values": ["normal", "wide", "offset", "infinite", "poisoned", "confident"],
    "weight": WEIGHTS,
    "pos_weight": WEIGHTS,
    "ignore_index": [None, -1, 1, 255],
    "label_smoothing": [0.0, 0.1, 1.0],
    **RESULTS,
}
COVER = [*pairwise(FACTORS, 0), *pairwise(FACTORS, 1)]


def weights_of(kind, shape, random):
    """Of a shape that broadcasts to the logits'."""
    if kind is None or kind == "number":
        return kind and float(random.uniform(0.5, 2))
    if kind == "int8":
        return random.integers(0, 3, shape[-1:]).astype(np.int8)
    shape = {"rows": (*shape[:-1], 1) if shape else (), "everything": shape}.get(kind, shape[-1:])
    weights = random.uniform(0.5, 2, shape).astype(random.choice([np.float32, np.float64]))
    return weights.tolist() if kind == "list" else np.asarray(weights)


def problem(case, number, shape=None):
    random = np.random.default_rng(number)
    shape = case["shape"] if shape is None else shape
    kind, dtype = case["target"]
    targets = random.random(shape) if kind == "probabilities" else random.integers(0, 2, shape)
    targets = np.asarray(targets)
    ignore_index = case["ignore_index"]
    if ignore_index == 1 or (ignore_index and np.array(ignore_index).astype(dtype) == ignore_index):
        targets[random.random(shape) < 0.2] = ignore_index
    targets = targets.astype(dtype)
    logits = np.asarray(
        logits_of("wide" if case["values"] == "wide" else "normal", (1, *shape), np.dtype("f8"), random)[0]
    )
    if case["values"] == "offset":
        logits = 1000 * logits
    if case["values"] == "infinite":
        logits[random.random(shape) < 0.3] = math.inf
        logits[random.random(shape) < 0.3] = -math.inf
    if case["values"] == "poisoned":
        logits[random.random(shape) < 0.3] = math.nan
    if case["values"] == "confident":
        logits = random.uniform(10, 80, shape) * np.where(targets.astype(float) > 0.5, 1, -1)
    logits = np.asarray(logits).astype(case["dtype"])
    names = ("ignore_index", "label_smoothing", "focal_gamma")
    options = {name: case[name] for name in names if name in case}
    options |= {name: weights_of(case[name], shape, random) for name in ("weight", "pos_weight")}
    flat = {
        name: None if options[name] is None else np.broadcast_to(options[name], shape).reshape(-1)
        for name in ("weight", "pos_weight")
    }
    oracle = BinaryCrossEntropy(logits.reshape(-1), targets.reshape(-1), **{**options, **flat})
    if case["target_layout"] == "list":
        targets = targets if targets.dtype.name in ("bfloat16", "float16") else targets.tolist()
    elif targets.ndim:
        targets = LAYOUTS[case["target_layout"]](targets)
    layout = LAYOUTS[case["layout"] if shape else "contiguous"]
    bounds = BinaryCrossEntropyBounds(oracle, case["dtype"])
    return Problem("binary_cross_entropy", logits, layout, (targets,), options, None, oracle, bounds)


@pytest.mark.parametrize("number", range(len(COVER)))
def test_every_two_options(level, number):
    problem(COVER[number], number).check(COVER[number], np.random.default_rng(number), "binary")


@pytest.mark.parametrize("number", range(len(COVER)))
def test_hessian(level, number):
    problem(COVER[number], number).check_hessian(
        COVER[number], np.random.default_rng(number), "binary", swapped=number % 2
    )


def everything(whole):
    return [
        *whole.results(),
        *whole.call("_with_grad_hess", reduction="none"),
        *whole.call("_with_grad_hess"),
    ]


@fused
def test_fused_levels_agree_to_the_bit():
    for number, case in enumerate(COVER):
        whole = problem(case, number)
        assert_levels_agree(lambda whole=whole: everything(whole), case)


@pytest.mark.parametrize("number", range(0, len(COVER), 16))
def test_threads_change_no_bit(level, number):
    for shape in ((100_000,), (300, 1001)):
        whole = problem(COVER[number], number, shape)
        assert_threads_agree(lambda whole=whole: everything(whole), COVER[number])


SLOPES = {
    "target": ["bool", "probabilities"],
    "weight": [None, 0.7, "classes", "everything"],
    "pos_weight": [None, 3.0, "classes"],
    "ignore_index": [None, 1],
    "label_smoothing": [0.0, 0.1, 1.0],
    "reduction": ["mean", "sum"],
    "denominator": [None, 2.5],
    "grad_output": [None, -2.5],
}


def slope_problem(case, random):
    """(logits, targets, options) in float64."""
    logits, options = 2 * random.standard_normal((4, 5)), dict(case)
    targets = random.random((4, 5))
    targets = targets if options.pop("target") == "probabilities" else targets < 0.5
    for name in ("weight", "pos_weight"):
        shape = {"classes": 5, "everything": (4, 5)}.get(options[name])
        options[name] = options[name] if shape is None else random.uniform(-0.5, 2, shape)
    if options["reduction"] != "mean":
        del options["denominator"]
    return logits, targets, options


@pytest.mark.parametrize("case", pairwise(SLOPES), ids=lambda case: " ".join(map(str, case.values())))
def test_gradient_is_the_slope_of_the_loss(case, random):
    logits, targets, options = slope_problem(case, random)
    assert_slope(
        xent_rs.binary_cross_entropy, xent_rs.binary_cross_entropy_with_grad, logits, targets, options
    )


@pytest.mark.parametrize("case", pairwise(SLOPES), ids=lambda case: " ".join(map(str, case.values())))
def test_hessian_is_the_slope_of_the_gradient(case, random):
    logits, targets, options = slope_problem(case, random)
    del options["grad_output"]
    loss, grad, hess = xent_rs.binary_cross_entropy_with_grad_hess(logits, targets, **options)
    assert loss == xent_rs.binary_cross_entropy(logits, targets, **options)
    assert same(grad, xent_rs.binary_cross_entropy_with_grad(logits, targets, **options)[1])
    for index in np.ndindex(logits.shape):

        def slope(x, index=index):
            moved = logits.copy()
            moved[index] = x[0]
            return xent_rs.binary_cross_entropy_with_grad(moved, targets, **options)[1][index]

        expected, error = slopes(slope, logits[index].reshape(1))
        assert error < 1e-8
        assert abs(hess[index] - expected[0]) <= error


# A logit and its target; the loss.
ELEMENTS = {
    "certain and right": (17.0, 1, math.log1p(math.exp(-17))),
    "certain and right, negative": (-17.0, 0, math.log1p(math.exp(-17))),
    "certain and wrong": (120.0, 0, 120.0),
    "certain and wrong, negative": (-120.0, 1, 120.0),
    "undecided": (0.0, 1, math.log(2)),
    "half and half": (0.0, 0.5, math.log(2)),
    "a huge logit": (6e4, 1, 0.0),
    "+inf and right": (math.inf, 1, 0.0),
    "-inf and right": (-math.inf, 0, 0.0),
    "+inf and wrong": (math.inf, 0, math.inf),
    "-inf and wrong": (-math.inf, 1, math.inf),
    "+inf and unsure": (math.inf, 0.5, math.inf),
    "NaN": (math.nan, 1, math.nan),
}


@pytest.mark.parametrize(("logit", "target", "expected"), ELEMENTS.values(), ids=ELEMENTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_element(level, dtype, logit, target, expected):
    """And its neighbours, in every lane, know nothing of it."""
    for at in range(40):
        logits, targets = np.zeros(40, dtype), np.zeros(40)
        logits[at], targets[at] = logit, target
        losses = xent_rs.binary_cross_entropy(logits, targets, reduction="none")
        beside, grad = xent_rs.binary_cross_entropy_with_grad(logits, targets, reduction="none")
        wanted = np.full(40, math.log(2))
        wanted[at] = expected
        np.testing.assert_allclose(losses, wanted, rtol=2e-6)
        assert same(losses, beside)
        slope = np.full(40, 0.5)
        slope[at] = (
            math.nan if math.isnan(logit) else 1 / (1 + math.exp(-min(max(logit, -700), 700))) - target
        )
        np.testing.assert_allclose(grad.astype(float), slope, rtol=0.005, atol=5e-8)


@pytest.mark.parametrize("offset", [0, 1, 5, 15])
def test_large_gradients_go_past_the_cache_to_the_right_place(level, offset, random):
    """Their places are not on the boundaries of cache lines; a result in place goes through the cache."""
    count = (1 << 22) + 9
    logits, targets = random.standard_normal(count, np.float32), random.random(count) < 0.5
    room = np.full(count + 32, 7, np.float32)
    grad = room[offset : offset + count]
    loss, _ = xent_rs.binary_cross_entropy_with_grad(logits, targets, out=grad)
    beside, _ = xent_rs.binary_cross_entropy_with_grad(logits, targets, out=logits)
    assert same(grad, logits)
    assert loss == beside
    assert (room[:offset] == 7).all()
    assert (room[offset + count :] == 7).all()


def test_confident_elements_keep_their_digits():
    """log(1 + exp(-17)), sigmoid(17) - 1 and the second derivative, where float32 has 0."""
    logits, targets = np.array([17, -17], np.float32), np.array([1, 0])
    losses, grad, hess = xent_rs.binary_cross_entropy_with_grad_hess(logits, targets, reduction="none")
    assert [f"{loss:.3g}" for loss in losses] == ["4.14e-08"] * 2
    expected = math.exp(-17) / (1 + math.exp(-17))
    np.testing.assert_allclose(grad, [-expected, expected], rtol=2e-6)
    np.testing.assert_allclose(hess, [expected * (1 - expected)] * 2, rtol=2e-6)


@pytest.mark.parametrize("garbage", [0.0, math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("index", [-1, 2, 0, -100])
def test_ignored_elements_cost_nothing_whatever_they_hold(garbage, index, random):
    """And do not count."""
    logits, targets = random.standard_normal((4, 9)).astype(np.float32), random.integers(0, 2, (4, 9))
    targets[targets == index] = 1
    kept = xent_rs.binary_cross_entropy(logits[1:], targets[1:])
    logits[0], targets[0] = garbage, index
    loss, grad = xent_rs.binary_cross_entropy_with_grad(logits, targets, ignore_index=index)
    assert loss == pytest.approx(kept, rel=1e-6)
    assert not grad[0].any()
    assert grad[1:].all()
    losses = xent_rs.binary_cross_entropy(logits, targets, ignore_index=index, reduction="none")
    assert not losses[0].any()


@pytest.mark.parametrize("shape", [(0,), (0, 5), (3, 0), (4, 5)])
def test_nothing_to_average(shape):
    logits, targets = np.zeros(shape, np.float32), np.full(shape, 9)
    loss, grad = xent_rs.binary_cross_entropy_with_grad(logits, targets, ignore_index=9)
    assert math.isnan(loss)
    assert not grad.any()
    assert xent_rs.binary_cross_entropy(logits, targets, ignore_index=9, reduction="sum") == 0
    assert xent_rs.binary_cross_entropy(logits, targets, ignore_index=9, reduction="none").shape == shape
    assert xent_rs.binary_cross_entropy(logits, targets, ignore_index=9, denominator=3) == 0


def test_elements_of_weight_0_cost_nothing_whatever_they_hold():
    """A weight of 0 of the positive part alone makes an infinite loss 0, but of a NaN no number."""
    logits = np.array([[-math.inf, math.inf, math.nan, 1]], np.float32)
    targets = np.array([[1, 0, 1, 1]])
    for zero in (np.zeros(4), 0.0, np.zeros((1, 1), np.int8), [False] * 4):
        losses, grad = xent_rs.binary_cross_entropy_with_grad(logits, targets, weight=zero, reduction="none")
        np.testing.assert_array_equal(losses, [[0, 0, 0, 0]])
        np.testing.assert_array_equal(grad, [[0, 0, 0, 0]])
    losses = xent_rs.binary_cross_entropy(logits, targets, pos_weight=0.0, reduction="none")
    np.testing.assert_array_equal(losses, [[0, math.inf, math.nan, 0]])


def test_weighted_elements_count_once_in_the_mean(random):
    """As in PyTorch: the mean divides by the number of elements, not by their weights."""
    logits, targets = random.standard_normal((6, 3)), random.integers(0, 2, (6, 3))
    mean = xent_rs.binary_cross_entropy(logits, targets, weight=[1, 0, 2])
    total = xent_rs.binary_cross_entropy(logits, targets, weight=[1, 0, 2], reduction="sum")
    assert mean == pytest.approx(total / 18, rel=1e-15)


def test_it_is_the_cross_entropy_of_two_classes(random):
    """softplus(-x) is the loss of the logits x and 0."""
    logits, targets = 5 * random.standard_normal(300), random.integers(0, 2, 300)
    two = np.stack([np.zeros(300), logits], axis=1)
    expected, expected_grad = xent_rs.cross_entropy_with_grad(two, targets, reduction="none")
    losses, grad = xent_rs.binary_cross_entropy_with_grad(logits, targets, reduction="none")
    np.testing.assert_allclose(losses, expected, rtol=1e-14)
    np.testing.assert_allclose(grad, expected_grad[:, 1], rtol=1e-13)


def test_an_infinite_weight_ends_with_its_block():
    """Where its block was, the last one has nothing."""
    for size in (256, 257, 272, 300):
        pos_weight = np.ones(size)
        pos_weight[5] = np.inf
        for reduction in ("sum", "mean"):
            loss = xent_rs.binary_cross_entropy(
                np.full(size, -1, np.float32), np.ones(size), pos_weight=pos_weight, reduction=reduction
            )
            assert loss == np.inf, (size, reduction)


@pytest.mark.parametrize("classes", [1, 17, 300])
def test_an_infinite_weight_of_a_side_that_the_target_has_no_share_in(level, classes):
    """It makes nothing of that side: infinity times 0 would be NaN."""
    logits = np.full(classes, 0.5)
    plain = xent_rs.binary_cross_entropy(logits, np.zeros(classes), reduction="none")
    infinite = {"pos_weight": math.inf, "reduction": "none"}
    np.testing.assert_array_equal(xent_rs.binary_cross_entropy(logits, np.zeros(classes), **infinite), plain)
    losses, grad = xent_rs.binary_cross_entropy_with_grad(logits, np.zeros(classes), **infinite)
    expected = xent_rs.binary_cross_entropy_with_grad(logits, np.zeros(classes), reduction="none")
    np.testing.assert_array_equal([losses, grad], expected)
    for target in (0, 1):
        targets, weight = np.full(classes, target), {"weight": math.inf, "reduction": "none"}
        assert (xent_rs.binary_cross_entropy(logits, targets, **weight) == math.inf).all()
