"""Derivatives beyond the gradient: Hessians times vectors, and those by soft targets and temperature."""

import itertools
import math

import numpy as np
import pytest
import xent_rs
from ml_dtypes import bfloat16
from xent_rs import SparseTargets, cross_entropy_hvp, kl_divergence_hvp

from .bounds import CrossEntropyBounds, assert_within
from .cases import DTYPES, batch, targets_of
from .combinations import (
    FUSED,
    LAYOUTS,
    NARROW,
    assert_levels_agree,
    assert_threads_agree,
    enlarged,
    fused,
    pairwise,
    same,
)
from .oracle import CrossEntropy, Softmax
from .slopes import slopes
from .test_options import COVER, SLOPES, label_of, problem, slope_problem

inf, nan = math.inf, math.nan


def vectors_of(case, number, logits, random):
    """Vectors in the oracle's order, of a dtype and values that go with the number of the case."""
    dtype = case["dtype"]
    if number % 3 and dtype != np.float64:
        dtype = NARROW[number % 3]
    if number % 11 == 0:  # of the other type that is computed in
        dtype = np.dtype(np.float32 if dtype == np.float64 else np.float64)
    vectors = random.standard_normal(logits.shape) * (1, 1e-6, 1e4)[number % 3] + (0, 100)[number % 2]
    vectors = vectors.astype(dtype)
    if number % 5 == 0:  # where there is no class
        vectors[np.isneginf(logits) & ~np.isneginf(logits).all(axis=1, keepdims=True)] = nan
    return vectors


def product_problem(case, number, rows=None):
    """A problem whose second argument is a vector, and the vector as the oracle has it."""
    whole = problem({**case, "softcap": None}, number, rows)
    del whole.options["softcap"]
    vectors = vectors_of(case, number, whole.rows(whole.logits), np.random.default_rng(number))
    shaped = vectors.reshape(*whole.row_shape, vectors.shape[-1])
    layout = list(LAYOUTS.values())[number % len(LAYOUTS)]
    whole.arguments = (*whole.arguments, layout(np.ascontiguousarray(np.moveaxis(shaped, -1, whole.axis))))
    return whole, vectors


def reduced(whole, case):
    """(options, divisor) of the reduction that a case asks for."""
    reduction, *denominator = case["reduction"].split(", ")
    options = {"reduction": reduction, **({"denominator": 7.5} if denominator else {})}
    divisor = {"mean": 7.5 if denominator else whole.oracle.divisor, "sum": 1, "none": 1}[reduction]
    return options, divisor


def check_written(whole, case, random, label, suffix, expected, bound):
    """What is written of the logits' shape, into a new array and where the case asks for."""
    options, divisor = reduced(whole, case)
    scale = whole.grad_output(case, options["reduction"], options, random) / divisor if divisor else nan
    found = {}
    for kind in dict.fromkeys(("fresh", case["out"])):
        logits, out = whole.out(kind, random)
        result = found[kind] = whole.call(suffix, logits, **options, out=out)
        assert result is out if out is not None else result.dtype == case["dtype"]
        if divisor == 0:
            assert not result.any()
            continue
        about = f"of {case} into {result.dtype}"
        assert_within(label, whole.rows(result), expected * scale, bound(scale), case["dtype"], about)
    first, second = found["fresh"], found[case["out"]]
    assert first.dtype != second.dtype or same(first, second), f"{case}: the place changes the result"


@pytest.mark.sampled(7)
@pytest.mark.parametrize("number", range(len(COVER)))
def test_products_with_every_two_options(level, number):
    case = COVER[number]
    whole, vectors = product_problem(case, number)
    expected = whole.oracle.hessian_products(vectors)

    def bound(scale):
        return whole.bounds.hessian_products(vectors, scale)

    label = f"{label_of(case)[0]} Hessian times vector"
    check_written(whole, case, np.random.default_rng(number), label, "_hvp", expected, bound)


SOFT = [number for number, case in enumerate(COVER) if case["target"][0] != "class"]


@pytest.mark.sampled(5)
@pytest.mark.parametrize("number", SOFT)
def test_gradients_of_targets_with_every_two_options(level, number):
    case = COVER[number]
    whole = problem({**case, "softcap": None}, number)
    for name in ("softcap", "z_loss", "ignore_index"):
        del whole.options[name]
    if isinstance(whole.arguments[0], (list, float)):
        pytest.skip("a list of lists of floats is what arrays are made of")
    random, bounds = np.random.default_rng(number), whole.bounds
    expected = whole.oracle.target_gradients
    label = "gradient of targets"
    check_written(whole, case, random, label, "_target_grad", expected, bounds.target_gradients)


@pytest.mark.sampled(7)
@pytest.mark.parametrize("number", range(len(COVER)))
def test_gradients_of_the_temperature_with_every_two_options(level, number):
    case = COVER[number]
    whole = problem(case, number)
    options, divisor = reduced(whole, case)
    expected, bounds = whole.oracle.temperature_gradients, whole.bounds.temperature_gradients
    each = np.asarray(whole.call("_temperature_grad", reduction="none"))
    wide = np.dtype(np.float64 if case["dtype"] == np.float64 else np.float32)
    assert (each.shape, each.dtype) == (tuple(whole.row_shape), wide)
    label = f"{label_of(case)[0]} gradient of the temperature{label_of(case)[1]}"
    assert_within(label, each.reshape(-1), expected, bounds, case["dtype"], f"of {case}")
    found = whole.call("_temperature_grad", **options)
    if options["reduction"] == "none":
        assert same(found, whole.call("_temperature_grad", reduction="none"))
        return
    assert type(found) is float
    with np.errstate(invalid="ignore", divide="ignore"):
        expected = expected.sum() / divisor if divisor else 0
        bound = bounds.sum() / abs(divisor) + 2.0**-50 * abs(expected) if divisor else 0
    assert_within(label, np.asarray(found), np.asarray(expected), np.asarray(bound), case["dtype"], str(case))


@pytest.mark.sampled(7)
@pytest.mark.parametrize(
    ("classes", "dtype"),
    list(itertools.product([1, 2, 3, 10, 127, 255, 257, 1000, 4097, 32000], DTYPES)),
    ids=str,
)
def test_distributions_of_every_kind(level, classes, dtype, random):
    """Confident rows, ties, offsets and the ends of the range, at temperatures of every size."""
    plain, _, names = batch(classes, dtype)
    for temperature in (1.0, 0.3, 1e-5, 1e5, 1e30):
        softmax = Softmax(plain, temperature)
        oracle = CrossEntropy(softmax, softmax.top)
        bounds, vectors = CrossEntropyBounds(oracle, dtype), random.standard_normal(plain.shape).astype(dtype)
        options = {"temperature": temperature, "reduction": "none"}
        for array, about in ((plain, "rows"), (np.asfortranarray(plain), "columns")):
            found = cross_entropy_hvp(array, softmax.top, vectors, **options)
            expected, bound = oracle.hessian_products(vectors), bounds.hessian_products(vectors)
            about = f"{about} at temperature {temperature}"
            assert_within("Hessian times vector", found, expected, bound, dtype, about, names=names)
        for targets in targets_of(softmax).values():
            oracle = CrossEntropy(softmax, targets)
            bound = CrossEntropyBounds(oracle, dtype).temperature_gradients
            found = xent_rs.cross_entropy_temperature_grad(plain, targets, **options)
            expected = oracle.temperature_gradients
            assert_within("gradient of the temperature", found, expected, bound, dtype, about, names=names)
        found = xent_rs.cross_entropy_target_grad(plain, softmax.probabilities.astype(np.float64), **options)
        expected, bound = oracle.target_gradients, CrossEntropyBounds(oracle, dtype).target_gradients()
        assert_within("gradient of targets", found, expected, bound, dtype, about, names=names)


def results(whole, vector):
    """What the functions return for a problem without a softcap, in a list of arrays."""
    *targets, _ = whole.arguments
    options = {name: value for name, value in whole.keywords.items() if name != "softcap"}
    logits = whole.layout(whole.logits.copy())
    return [
        result
        for reduction in ("none", "mean")
        for result in (
            cross_entropy_hvp(logits, *targets, vector, reduction=reduction, **options),
            xent_rs.cross_entropy_temperature_grad(logits, *targets, reduction=reduction, **options),
        )
    ]


@fused
@pytest.mark.sampled(3)
@pytest.mark.parametrize("number", range(0, len(COVER), 2))
def test_fused_levels_agree_to_the_bit(number):
    assert len(FUSED) > 1
    whole, _ = product_problem(COVER[number], number)
    assert_levels_agree(lambda: results(whole, whole.arguments[-1]), COVER[number])


@pytest.mark.sampled(3)
@pytest.mark.parametrize("number", range(0, len(COVER), 16))
def test_threads_change_no_bit(number):
    case, rows = enlarged(COVER[number])
    whole, _ = product_problem(case, number, rows)
    assert_threads_agree(lambda: results(whole, whole.arguments[-1]), case)


# --- Finite differences, and what a Hessian is ---


@pytest.mark.parametrize("case", pairwise({**SLOPES, "softcap": [None]}), ids=str)
def test_product_is_the_slope_of_the_gradient(case, random):
    logits, targets, options = slope_problem(case, random)
    vector, index = random.standard_normal(logits.shape), tuple(map(random.integers, logits.shape))
    of_gradient = {**options}
    del options["softcap"]
    found = cross_entropy_hvp(logits, targets, vector, **options)

    def slope(step):
        moved = logits + step[0] * vector
        return xent_rs.cross_entropy_with_grad(moved, targets, **of_gradient)[1][index]

    expected, error = slopes(slope, np.zeros(1))
    assert abs(found[index] - expected[0]) <= error[0] < 1e-8
    other = random.standard_normal(logits.shape)
    turned = cross_entropy_hvp(logits, targets, other, **options)
    assert (other * found).sum() == pytest.approx((vector * turned).sum(), rel=1e-12)


@pytest.mark.parametrize("case", pairwise(SLOPES), ids=str)
def test_gradients_are_slopes_of_the_loss(case, random):
    logits, targets, options = slope_problem(case, random)
    factor = options.pop("grad_output")
    temperature = options.pop("temperature")

    def loss(x):
        return xent_rs.cross_entropy(logits, targets, temperature=x[0], **options)

    expected, error = slopes(loss, np.array([temperature]))
    found = xent_rs.cross_entropy_temperature_grad(logits, targets, temperature=temperature, **options)
    assert abs(found - expected[0]) <= error[0] < 1e-7
    if case["target"] == "class":
        return
    options |= {"temperature": temperature, "softcap": None}
    targets = random.uniform(0.1, 1, logits.shape)
    expected, error = slopes(lambda x: xent_rs.cross_entropy(logits, x, **options), targets)
    for name in ("softcap", "z_loss", "ignore_index"):
        options.pop(name, None)
    found = xent_rs.cross_entropy_target_grad(logits, targets, grad_output=factor, **options)
    assert (np.abs(found - (factor or 1) * expected) <= abs(factor or 1) * error).all()


@pytest.mark.parametrize("classes", [3, 300])
def test_hessian_of_all_vectors_is_the_diagonal_and_more(classes, random):
    logits, targets = random.standard_normal((1, classes)), [1]
    hessian = cross_entropy_hvp(
        np.broadcast_to(logits, (classes, classes)), targets * classes, np.eye(classes), reduction="sum"
    )
    _, _, diagonal = xent_rs.cross_entropy_with_grad_hess(logits, targets, reduction="sum")
    assert np.diag(hessian) == pytest.approx(diagonal[0], rel=1e-13)
    assert hessian == pytest.approx(hessian.T, rel=1e-13)
    assert np.linalg.eigvalsh(hessian).min() > -1e-16
    assert not cross_entropy_hvp(logits, targets, np.full((1, classes), 7.3)).any()


# --- Special values ---


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("columns", [False, True])
@pytest.mark.parametrize("classes", [4, 400])
@pytest.mark.parametrize("flipped", [False, True])
def test_special_values(level, dtype, columns, classes, flipped):
    """Of the first classes, or of the last."""
    logits = np.zeros((40, classes), dtype)
    logits[0, 1], logits[1, 1], logits[2] = nan, inf, -inf
    logits[3:6, 1] = -inf
    logits[6, 1], logits[7, :2] = 1e4, 3e38
    logits[8:12] = nan
    targets, vector = np.zeros(40, int), np.ones_like(logits)
    vector[:, :3] = [2, -3, 5]
    vector[4, 1], vector[5, 1] = nan, inf
    vector[12, 1], vector[13, 1] = nan, inf
    vector[8:12], targets[8:12] = nan, -100
    turn = np.asfortranarray if columns else np.ascontiguousarray
    if flipped:
        targets[targets == 0] = classes - 1
        found = cross_entropy_hvp(turn(logits[:, ::-1]), targets, turn(vector[:, ::-1]), reduction="sum")[
            :, ::-1
        ]
    else:
        found = cross_entropy_hvp(turn(logits), targets, turn(vector), reduction="sum")
    assert np.isnan(found[[0, 1, 2, 12]]).all()
    assert np.isnan(found[13]).any()
    # Whatever a masked class has beside it.
    assert found[4] == pytest.approx(found[3], rel=1e-5)
    assert found[5] == pytest.approx(found[3], rel=1e-5)
    assert found[3, 1] == 0
    assert not np.signbit(found[3, 1])
    assert not found[8:12].any()
    assert not found[6].any()
    assert found[7, :2] == pytest.approx([1.25, -1.25])
    assert np.abs(found[7, 2:]).max() <= 1e-320
    assert np.isfinite(found[14:]).all()


def test_a_confident_row_keeps_its_digits():
    """Minus the sum of the others' p·(v - v(own)), not 1 - p times it."""
    logits = np.array([[0.0, 17, 0, 0], [0, 60, 0, 0]], np.float32)
    vector = np.array([[1.0, 2, 3, 4]] * 2, np.float32)
    found = cross_entropy_hvp(logits, [1, 1], vector, reduction="sum")
    exact = cross_entropy_hvp(logits.astype(float), [1, 1], vector.astype(float), reduction="sum")
    assert found == pytest.approx(exact, rel=1e-5)
    assert exact[0, 1] == pytest.approx(-math.exp(-17) * (-1 + 1 + 2), rel=1e-6)
    slope = xent_rs.cross_entropy_temperature_grad(logits, [1, 1], reduction="none")
    assert slope == pytest.approx([51 * math.exp(-17), 180 * math.exp(-60)], rel=1e-6)


def test_large_and_small_numbers():
    """Products that lanes cannot hold on the way, and factors that are no normal numbers."""
    logits = np.zeros((3, 2), np.float32)
    vector = np.array([[3e38, -3e38], [1e-38, 0], [1, 0]], np.float32)
    for columns in (np.ascontiguousarray, np.asfortranarray):
        found = cross_entropy_hvp(columns(logits), [0] * 3, columns(vector), reduction="sum")
        assert found == pytest.approx(np.array([[1.5e38, -1.5e38], [2.5e-39, -2.5e-39], [0.25, -0.25]]))
        found = cross_entropy_hvp(
            columns(logits), [0] * 3, columns(vector), reduction="sum", grad_output=1e-50
        )
        assert found[0] == pytest.approx([1.5e-12, -1.5e-12])
        found = cross_entropy_hvp(logits, [0] * 3, vector, sample_weight=[1, 1e40, 1], reduction="sum")
        assert found[1] == pytest.approx([25, -25])


def test_rows_that_do_not_count_are_zero(random):
    logits = random.standard_normal((50, 30)).astype(np.float32)
    targets, weights = random.integers(30, size=50), np.ones(50)
    targets[::5], weights[1::5] = -100, 0
    logits[::5], logits[1::5] = nan, inf
    vector = random.standard_normal(logits.shape).astype(np.float32)
    options = {"sample_weight": weights}
    left = np.zeros(50, bool)
    left[::5] = left[1::5] = True
    for found in (
        cross_entropy_hvp(logits, targets, vector, **options),
        kl_divergence_hvp(logits[left], logits[left], vector[left], sample_weight=np.zeros(left.sum())),
        xent_rs.cross_entropy_temperature_grad(logits, targets, reduction="none", **options),
        xent_rs.cross_entropy_target_grad(
            np.where(targets[:, None] < 0, 0, logits), np.full(logits.shape, 1 / 30), **options
        )[1::5],
    ):
        assert not (found[left] if len(found) == 50 else found).any()
    assert not cross_entropy_hvp(logits, targets, vector, denominator=0, **options).any()
    nothing = np.full(50, -100)
    assert not cross_entropy_hvp(logits, nothing, vector).any()
    for none in ({"reduction": "mean"}, {"reduction": "sum"}, {"denominator": 0}):
        assert xent_rs.cross_entropy_temperature_grad(logits, nothing, **none) == 0


def test_targets_on_masked_classes():
    logits = np.array([[0.0, 1.0, -inf]])
    slope = xent_rs.cross_entropy_temperature_grad(logits, [0])
    assert slope == xent_rs.cross_entropy_temperature_grad(logits[:, :2], [0])
    assert xent_rs.cross_entropy_temperature_grad(logits, [2]) == -inf
    assert xent_rs.cross_entropy_temperature_grad(logits, [[1.0, 0, 0]]) == slope
    grad = xent_rs.cross_entropy_target_grad(logits, [[1.0, 0, 0]])
    assert grad[0, 2] == inf
    assert np.isfinite(grad[0, :2]).all()
    assert xent_rs.cross_entropy_target_grad(logits, [[1.0, 0, 0]], weight=[1, 1, 0])[0, 2] == 0
    assert not xent_rs.cross_entropy_target_grad(logits, [[1.0, 0, 0]], label_smoothing=1).any()


# --- Teachers and listed classes ---


@pytest.mark.parametrize("dtype", [*NARROW, np.dtype(np.float64)], ids=str)
def test_divergence_has_the_hessian_of_the_cross_entropy(random, dtype):
    logits, teacher, vector = random.standard_normal((3, 20, 50)).astype(dtype)
    teacher[3] = nan  # it is not looked at
    weights = random.random(20)
    options = {"sample_weight": weights, "temperature": 2.5, "axis": 0}
    options |= {"reduction": "none", "grad_output": random.standard_normal(20)}
    found = kl_divergence_hvp(logits.T, teacher.T, vector.T, **options)
    assert same(found, cross_entropy_hvp(logits.T, np.zeros(20, int), vector.T, **options))


@pytest.mark.parametrize("rest", ["zero", "renormalize"])
def test_listed_classes(random, rest):
    logits, vector = random.standard_normal((2, 30, 40))
    index = np.argsort(random.random((30, 40)))[:, :4]
    probability = random.random((30, 4))
    index[7], index[8, 2:] = -1, -1
    sparse = SparseTargets(index, probability, rest)
    probability = np.where(index < 0, 0, probability)
    if rest == "renormalize":
        probability /= np.maximum(probability.sum(axis=1, keepdims=True), 1e-300)
    dense = np.zeros(logits.shape)
    for row, column in np.ndindex(index.shape):
        dense[row, index[row, column]] += probability[row, column]
    counts = (index >= 0).any(axis=1).astype(float)
    weight = random.random(40)
    for options in ({}, {"weight": weight, "label_smoothing": 0.1}, {"weight": weight, "z_loss": 0.1}):
        found = cross_entropy_hvp(logits, sparse, vector, **options)
        expected = cross_entropy_hvp(logits, dense, vector, sample_weight=counts, **options)
        assert found == pytest.approx(expected, rel=1e-13)
        found = xent_rs.cross_entropy_temperature_grad(logits, sparse, **options)
        expected = xent_rs.cross_entropy_temperature_grad(logits, dense, sample_weight=counts, **options)
        assert found == pytest.approx(expected, rel=1e-12)
    found = kl_divergence_hvp(logits, sparse, vector)
    assert found == pytest.approx(cross_entropy_hvp(logits, dense, vector, sample_weight=counts), rel=1e-13)


# --- Errors ---

LOGITS, VECTOR = np.zeros((3, 4), np.float32), np.ones((3, 4), np.float32)
CLASSES = np.array([0, 1, 2])


@pytest.mark.parametrize(
    ("arguments", "options", "error", "text"),
    [
        (
            (CLASSES, VECTOR[:2]),
            {},
            ValueError,
            "vector has shape (2, 4); expected (3, 4), the shape of logits",
        ),
        (
            (CLASSES, VECTOR.astype(int)),
            {},
            TypeError,
            "vector has dtype int64; expected float16, bfloat16, float32 or float64 "
            "(vector.astype(np.float32))",
        ),
        (
            (CLASSES, VECTOR),
            {"out": VECTOR},
            ValueError,
            "out overlaps vector; expected the logits array itself or memory that no input uses",
        ),
        (
            (CLASSES, VECTOR),
            {"softcap": 1.0},
            TypeError,
            "cross_entropy_hvp() got an unexpected keyword argument 'softcap'",
        ),
        (
            (CLASSES, VECTOR),
            {"focal_gamma": 1.0},
            TypeError,
            "cross_entropy_hvp() got an unexpected keyword argument 'focal_gamma'",
        ),
        (
            (np.array([0, 4, 0]), VECTOR),
            {},
            IndexError,
            "targets[1] is 4; expected 0 to 3, or ignore_index -100",
        ),
        (
            (-VECTOR, VECTOR),
            {},
            ValueError,
            "targets[0, 0] is -1.0; expected a probability, at least 0",
        ),
        (
            (CLASSES, VECTOR),
            {"grad_output": [1.0, 2.0]},
            ValueError,
            "grad_output has shape (2,); expected a scalar for reduction 'mean'",
        ),
    ],
)
def test_errors_of_products(arguments, options, error, text):
    before = VECTOR.copy()
    with pytest.raises(error) as caught:
        cross_entropy_hvp(LOGITS, *arguments, **options)
    assert str(caught.value) == text
    assert np.array_equal(VECTOR, before)


def test_errors_of_the_others():
    tail = SparseTargets([[0], [1], [2]], [[0.5], [0.5], [0.5]], "tail")
    expected = "expected 'zero' or 'renormalize': with a class that stands for others the Hessian is another"
    with pytest.raises(ValueError, match=r"^target_logits\.rest is 'tail'; " + expected + "$"):
        kl_divergence_hvp(LOGITS, tail, VECTOR)
    with pytest.raises(TypeError) as caught:
        xent_rs.cross_entropy_target_grad(LOGITS, CLASSES)
    expected = "expected a floating dtype and the shape of logits (probabilities)"
    assert str(caught.value) == f"targets have dtype int64; {expected}"
    with pytest.raises(TypeError) as caught:
        xent_rs.cross_entropy_target_grad(LOGITS, SparseTargets([[0], [1], [2]], [[0.5], [0.5], [0.5]]))
    assert str(caught.value) == f"targets are SparseTargets; {expected}"
    with pytest.raises(ValueError, match="a probability, at least 0"):
        xent_rs.cross_entropy_target_grad(LOGITS, -VECTOR)
    with pytest.raises(ValueError, match="a probability, at least 0"):
        xent_rs.cross_entropy_temperature_grad(LOGITS, -VECTOR)
    with pytest.raises(TypeError, match="unexpected keyword argument 'out'"):
        xent_rs.cross_entropy_temperature_grad(LOGITS, CLASSES, out=VECTOR)


@pytest.mark.parametrize("shape", [(0, 4), (3, 0, 4), (4,), (2, 1, 3, 4)])
def test_shapes(shape, random):
    logits, vector = random.standard_normal((2, *shape))
    targets = random.integers(4, size=shape[:-1])
    found = cross_entropy_hvp(logits, targets, vector, reduction="none")
    assert found.shape == shape
    flat = cross_entropy_hvp(
        logits.reshape(-1, 4), targets.reshape(-1), vector.reshape(-1, 4), reduction="none"
    )
    assert np.array_equal(found.reshape(-1, 4), flat)
    slopes_of = xent_rs.cross_entropy_temperature_grad(logits, targets, reduction="none")
    assert slopes_of.shape == shape[:-1]
    assert xent_rs.cross_entropy_target_grad(logits, np.abs(vector)).shape == shape


def test_results_are_rounded_once(random):
    """16-bit results are those of float32, rounded."""
    logits, vector = random.standard_normal((2, 20, 50)).astype(np.float32)
    for function, arguments in (
        (cross_entropy_hvp, (np.zeros(20, int), vector)),
        (xent_rs.cross_entropy_target_grad, (np.abs(vector),)),
    ):
        exact = function(logits, *arguments, reduction="sum")
        for dtype in (np.float16, bfloat16):
            out = np.empty(logits.shape, dtype)
            assert function(logits, *arguments, reduction="sum", out=out) is out
            assert np.array_equal(out, exact.astype(dtype))
