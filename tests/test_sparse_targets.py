"""Targets that list K classes of a row: all options in combination, and what goes wrong elsewhere."""

import copy
import math
import pickle

import numpy as np
import pytest
import xent_rs
from xent_rs import SparseTargets

from .bounds import CrossEntropyBounds, SparseDivergenceBounds, assert_within, unit
from .cases import DTYPES
from .combinations import (
    INTEGERS,
    LAYOUTS,
    RESULTS,
    SHAPES,
    Problem,
    assert_levels_agree,
    assert_threads_agree,
    enlarged,
    fused,
    logits_of,
    pairwise,
    same,
)
from .oracle import CrossEntropy, Softmax, SparseDivergence
from .slopes import assert_slope
from .test_options import FLOATS, weights_of

dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)
rests = pytest.mark.parametrize("rest", ["zero", "renormalize", "tail"])

FACTORS = {
    "dtype": DTYPES,
    "classes": [1, 2, 3, 10, 127, 128, 255, 256, 1000],
    "listed": [1, 2, 5, 8, 33, "all"],
    "index": INTEGERS,
    "index_layout": [*LAYOUTS, "list"],
    "probability": FLOATS,
    "probability_layout": [*LAYOUTS, "list"],
    "shape": SHAPES,
    "layout": LAYOUTS,
    "values": ["normal", "wide", "offset", "masked", "poisoned", "confident"],
    "sample_weight": [None, "float64", "float16, turned", "uint8", "list"],
    "temperature": [1.0, 0.3, 2.5],
    **RESULTS,
}
CROSS_ENTROPY = {
    **FACTORS,
    "rest": ["zero", "renormalize"],
    "weight": [None, "float32", "float64, every other", "int8", "list"],
    "label_smoothing": [0.0, 0.1, 1.0],
    "z_loss": [0.0, 1e-4, 0.5],
    "softcap": [None, 30.0],
}
PLAIN = {**CROSS_ENTROPY, "label_smoothing": [0.0], "z_loss": [0.0], "softcap": [None]}
COVERS = {
    "cross_entropy": [*pairwise(CROSS_ENTROPY, 0), *pairwise(PLAIN, 1)],
    "kl_divergence": [
        *pairwise({**FACTORS, "rest": ["zero", "renormalize", "tail"]}, 2),
        *pairwise({**FACTORS, "rest": ["tail"]}, 3),
    ],
}
CASES = [(name, number, case) for name, cover in COVERS.items() for number, case in enumerate(cover)]


def expanded(index, probability, classes, rest, dtype):
    """Of rows what each class weighs, what the others weigh together, and which are listed."""
    rows = len(index)
    dense, listed = np.zeros((rows, classes), dtype), np.zeros((rows, classes), bool)
    for row in range(rows):
        for entry, number in zip(index[row], probability[row], strict=True):
            if entry >= 0:
                dense[row, entry] += dtype(number)
                listed[row, entry] = True
    left = np.zeros(rows, dtype)
    if rest == "renormalize":
        dense /= np.where(listed.any(axis=1), dense.sum(axis=1), 1)[:, None]
    if rest == "tail":
        whole, sums = listed.all(axis=1), dense.sum(axis=1)
        left = np.where(whole | ~listed.any(axis=1), 0, np.maximum(1 - sums, 0))
        dense /= np.where(whole, sums, 1)[:, None]
    return dense, left, listed


def listed_of(case, rows, random):
    """(index, probability) of rows: some classes twice, some places empty, some rows too."""
    classes, dtype = case["classes"], case["index"]
    count = classes if case["listed"] == "all" else case["listed"]
    most = min(classes, np.iinfo(dtype).max + 1)
    index = random.integers(0, most, (rows, count))
    if case["listed"] == "all":
        index = random.permuted(np.tile(np.arange(count), (rows, 1)) % most, axis=1)
    probability = random.random((rows, count)) ** 4
    probability[random.random((rows, count)) < 0.1] = 0
    probability[..., 0] += 1e-3
    if case["rest"] == "tail":
        probability *= random.choice([0.05, 0.5, 0.999], (rows, 1)) / probability.sum(axis=1, keepdims=True)
    probability = probability.astype(case["probability"])
    # float16 has nothing so small.
    probability[(probability.astype(float).sum(axis=1) == 0), 0] = 0.5
    if dtype.kind == "i" and case["listed"] != "all":
        empty = random.random((rows, count)) < 0.2
        empty[3::11] = True
        empty[(random.random(rows) < 0.8) & empty.all(axis=1), 0] = False
        empty[:, 0] &= empty.all(axis=1)
        index = np.where(empty, -1, index)
        probability[empty] = [math.nan, -1, math.inf, 7][random.integers(4)]
    return index.astype(dtype), probability


def problem(name, case, number, rows=None):
    random = np.random.default_rng(number)
    dtype, classes = case["dtype"], case["classes"]
    lead, axis = SHAPES[case["shape"]]
    lead = (rows,) if rows else lead
    rows = int(np.prod(lead))
    logits = logits_of(case["values"], (rows, classes), dtype, random)
    index, probability = listed_of(case, rows, random)
    if case["values"] == "confident":
        best = np.maximum(index[:, 0], 0).astype(int)
        logits[np.arange(rows), best] = 17 + logits.max(axis=1)
    sample_weight = weights_of(case["sample_weight"], lead, random)
    softmax = Softmax(logits, case["temperature"], case.get("softcap"))
    wide = softmax.dtype
    dense, left, listed = expanded(
        index.astype(np.int64), probability.astype(float), classes, case["rest"], wide
    )
    counts = (
        np.ones(rows, wide) if sample_weight is None else np.asarray(sample_weight).reshape(-1).astype(wide)
    )
    counts = np.where(listed.any(axis=1), counts, 0)
    options = {"temperature": case["temperature"], "sample_weight": sample_weight}
    if name == "cross_entropy":
        names = ("label_smoothing", "z_loss")
        weight = weights_of(case["weight"], classes, random)
        more = {name: case[name] for name in names}
        flat = None if weight is None else np.asarray(weight)
        oracle = CrossEntropy(softmax, dense, weight=flat, sample_weight=counts, **more)
        bounds = CrossEntropyBounds(oracle, dtype)
        options |= {**more, "weight": weight, "softcap": case["softcap"]}
    else:
        oracle = SparseDivergence(softmax, dense, left, listed, counts)
        bounds = SparseDivergenceBounds(oracle, dtype)
    arrays = []
    for array, layout in ((index, case["index_layout"]), (probability, case["probability_layout"])):
        array = array.reshape(*lead, -1)
        arrays.append(array.tolist() if layout == "list" else LAYOUTS[layout](array))
    targets = SparseTargets(*arrays, rest=case["rest"])
    turned = np.ascontiguousarray(np.moveaxis(logits.reshape(*lead, classes), -1, axis))
    return Problem(name, turned, LAYOUTS[case["layout"]], (targets,), options, axis, oracle, bounds)


@pytest.mark.parametrize(
    ("name", "number", "case"), CASES, ids=[f"{name} {number}" for name, number, _ in CASES]
)
def test_every_two_options(level, name, number, case):
    problem(name, case, number).check(case, np.random.default_rng(number), f"sparse {name}")


@fused
@pytest.mark.parametrize("name", COVERS)
def test_fused_levels_agree_to_the_bit(name):
    for number, case in enumerate(COVERS[name]):
        assert_levels_agree(problem(name, case, number).results, case)


@pytest.mark.parametrize(("name", "number", "case"), CASES[::16])
def test_threads_change_no_bit(level, name, number, case):
    case, rows = enlarged(case)
    rows = min(rows, 1_000_000 // (case["classes"] if case["listed"] == "all" else case["listed"]), 4000)
    assert_threads_agree(problem(name, case, number, rows).results, case)


SLOPES = {
    "rest": ["zero", "renormalize", "tail"],
    "temperature": [1.0, 0.7, 3.0],
    "sample_weight": [None, "float64", "signed"],
    "axis": [0, 1, -1],
    "reduction": ["mean", "sum"],
    "denominator": [None, 2.5],
    "grad_output": [None, -2.5],
}
SLOPES_OF_CLASSES = {
    **SLOPES,
    "rest": ["zero", "renormalize"],
    "label_smoothing": [0.0, 0.1],
    "z_loss": [0.0, 0.3],
    "softcap": [None, 3.0],
    "weight": [None, [0.5, 2.0, 1.0, 0.0, 1.5]],
}


@pytest.mark.parametrize(
    ("name", "case"),
    [("kl_divergence", case) for case in pairwise(SLOPES)]
    + [("cross_entropy", case) for case in pairwise(SLOPES_OF_CLASSES)],
    ids=lambda value: value if isinstance(value, str) else " ".join(map(str, value.values())),
)
def test_gradient_is_the_slope_of_the_loss(name, case, random):
    options = dict(case)
    rest = options.pop("rest")
    logits = 2 * random.standard_normal((5, 5))
    index = random.integers(-1, 5, (5, 3))
    probability = random.random((5, 3)) / 3
    if options["sample_weight"]:
        options["sample_weight"] = random.uniform(0.5, 2, 5)
        if case["sample_weight"] == "signed":
            options["sample_weight"][0] = -0.3
    if options["reduction"] != "mean":
        del options["denominator"]
    functions = getattr(xent_rs, name), getattr(xent_rs, f"{name}_with_grad")
    assert_slope(*functions, logits, SparseTargets(index, probability, rest), options)


@dtypes
def test_one_class_of_probability_one_is_a_class_target(level, dtype, random):
    for shape, axis in (((40, 7), 1), ((64, 9), 0), ((5, 1000), 1), ((1000, 48), 0), ((3, 5000), 1)):
        logits = (8 * random.standard_normal(shape)).astype(dtype)
        rows = np.moveaxis(logits, axis, -1).shape[0]
        targets = random.integers(0, shape[axis], rows)
        targets[::5] = np.moveaxis(logits, axis, -1).argmax(axis=-1)[::5]
        for rest in ("zero", "renormalize", "tail"):
            sparse = SparseTargets(targets[:, None], np.ones((rows, 1)), rest)
            name = "kl_divergence_with_grad" if rest == "tail" else "cross_entropy_with_grad"
            loss, grad = getattr(xent_rs, name)(logits, sparse, axis=axis, reduction="none")
            expected, gradient = xent_rs.cross_entropy_with_grad(logits, targets, axis=axis, reduction="none")
            np.testing.assert_array_max_ulp(loss, expected, 1)
            eps = np.finfo(np.float64).eps if dtype == np.float64 else np.finfo(np.float32).eps
            close = 2 * eps * (dtype.itemsize > 2) or 2.0**-7
            np.testing.assert_allclose(grad.astype(float), gradient.astype(float), rtol=close, atol=1e-45)


@dtypes
def test_all_classes_are_dense_probabilities(level, dtype, random):
    logits = (3 * random.standard_normal((50, 12))).astype(dtype)
    dense = random.random((50, 12))
    dense /= dense.sum(axis=1, keepdims=True)
    order = random.permuted(np.tile(np.arange(12), (50, 1)), axis=1)
    sparse = SparseTargets(order, np.take_along_axis(dense, order, axis=1))
    oracle = CrossEntropy(Softmax(logits), dense)
    bounds = CrossEntropyBounds(oracle, dtype)
    loss, grad = xent_rs.cross_entropy_with_grad(logits, sparse, reduction="none")
    expected, gradient = xent_rs.cross_entropy_with_grad(logits, dense, reduction="none")
    assert_within("sparse, all classes", loss, expected.astype(oracle.dtype), 2 * bounds.losses, dtype)
    assert_within(
        "sparse, all classes, gradient", grad, gradient.astype(oracle.dtype), 2 * bounds.gradients(), dtype
    )


@rests
def test_of_a_teacher_with_other_classes_masked_it_is_its_divergence(level, rest, random):
    logits, teacher = random.standard_normal((2, 9, 30))
    masked = np.sort(teacher, axis=1)[:, -5][:, None]
    teacher[teacher < masked] = -np.inf
    index = np.argsort(-teacher, axis=1)[:, :5]
    sparse = SparseTargets(index, np.take_along_axis(xent_rs.softmax(teacher), index, axis=1), rest)
    found, expected = (xent_rs.kl_divergence_with_grad(logits, target) for target in (sparse, teacher))
    # What rounding leaves of 1 - P is multiplied by a logarithm.
    assert found[0] == pytest.approx(expected[0], abs=1e-12)
    np.testing.assert_allclose(found[1], expected[1], atol=1e-13)


@rests
def test_temperature_divides_the_logits_alone(rest, random):
    """Probabilities of temperature 1 are raised to 1/T: the teacher's at T, renormalised."""
    logits, teacher = random.standard_normal((2, 9, 30))
    index = np.argsort(-teacher, axis=1)[:, :5]
    top = np.take_along_axis(teacher, index, axis=1)
    stored = np.take_along_axis(xent_rs.softmax(teacher), index, axis=1)
    sparse = SparseTargets(index, stored, rest)
    loss = xent_rs.kl_divergence(logits, sparse, temperature=2.0)
    assert loss == pytest.approx(xent_rs.kl_divergence(logits / 2, sparse), rel=1e-12)
    found = xent_rs.kl_divergence(logits, SparseTargets(index, stored**0.5, "renormalize"), temperature=2.0)
    only = np.full(teacher.shape, -np.inf)
    np.put_along_axis(only, index, top, axis=1)
    assert found == pytest.approx(xent_rs.kl_divergence(logits, only, temperature=2.0), rel=1e-12)


# What others get wrong.


def test_zero_is_not_the_gradient_with_all_of_the_mass(random):
    """The derivative of the truncated divergence is P q - p; q - p is that of another loss."""
    logits = random.standard_normal((1, 6))
    sparse = SparseTargets([[0, 3]], [[0.5, 0.25]])
    _, grad = xent_rs.kl_divergence_with_grad(logits, sparse)
    q, p = xent_rs.softmax(logits), np.array([[0.5, 0, 0, 0.25, 0, 0]])
    np.testing.assert_allclose(grad, 0.75 * q - p, rtol=1e-13)
    assert np.abs(grad - (q - p)).max() > 0.01


def test_zero_may_be_negative_and_a_tail_may_not(level):
    """The model gives the listed classes more than the teacher does."""
    logits = np.log([[0.6, 0.3, 0.05, 0.05]])
    loss, grad = xent_rs.kl_divergence_with_grad(logits, SparseTargets([[0, 1]], [[0.5, 0.25]]))
    assert loss == pytest.approx(0.5 * math.log(0.5 / 0.6) + 0.25 * math.log(0.25 / 0.3), rel=1e-13)
    assert loss < 0
    assert grad[0, 2] > 0, "clamped losses have no gradient; this one has"
    tail = xent_rs.kl_divergence(logits, SparseTargets([[0, 1]], [[0.5, 0.25]], "tail"))
    assert tail == pytest.approx(loss + 0.25 * math.log(0.25 / 0.1), rel=1e-13)


@dtypes
def test_a_tail_is_a_lower_bound_and_never_negative(level, dtype, random):
    logits = (4 * random.standard_normal((300, 40))).astype(dtype)
    teacher = logits.astype(float) + random.choice([0, 1e-4, 1], (300, 1)) * random.standard_normal((300, 40))
    index = np.argsort(-teacher, axis=1)[:, :6]
    probability = np.take_along_axis(xent_rs.softmax(teacher), index, axis=1)
    loss = xent_rs.kl_divergence(logits, SparseTargets(index, probability, "tail"), reduction="none")
    assert (loss >= 0).all()
    full = xent_rs.kl_divergence(logits.astype(float), teacher, reduction="none")
    assert (loss <= full + 1e-5).all()
    renormalized = SparseTargets(index, probability, "renormalize")
    assert (xent_rs.kl_divergence(logits, renormalized, reduction="none") >= 0).all()


@pytest.mark.parametrize("gap", [10, 17, 40, 80, 100, 120, 200, 600, 700])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("left", [0.0, 1e-12, 1e-3, 0.5])
def test_confident_tails_keep_their_digits(level, dtype, gap, left):
    """1 - Q is exp(-gap), which nothing subtracts from 1."""
    for shape, axis in (((1, 20), 1), ((1, 3000), 1), ((20, 48), 0)):
        logits = np.zeros(shape, dtype)
        np.moveaxis(logits, axis, -1)[:, 4] = gap
        rows, classes = np.moveaxis(logits, axis, -1).shape
        sparse = SparseTargets(np.full((rows, 1), 4), np.full((rows, 1), 1 - left), "tail")
        loss, grad = xent_rs.kl_divergence_with_grad(logits, sparse, axis=axis, reduction="none")
        r, others = np.longdouble(1) - np.float64(1 - left), (classes - 1) * np.exp(-np.longdouble(gap))
        p, lse = 1 - r, np.log1p(others)
        expected = p * lse + p * np.log1p(-r)
        if left:
            expected += r * (np.log(r) + lse - np.log(others))
        u, smallest = unit(dtype)
        relative = 2 * u * (gap + math.log(classes) + 4)
        # The terms of the logs cancel where the model is as sure as the teacher is.
        atol = u * left * 30 + smallest
        np.testing.assert_allclose(loss, np.full(rows, float(expected)), rtol=relative, atol=atol)
        found = np.moveaxis(grad, axis, -1)
        own = (1 - p) - others / (1 + others)
        np.testing.assert_allclose(found[:, 4], float(own), rtol=relative, atol=4 * u * left + smallest)
        other = 1 / (1 + others) * others / (classes - 1) - r / (classes - 1)
        atol = 4 * u * left / (classes - 1) + classes * smallest
        np.testing.assert_allclose(found[:, 5], float(other), rtol=relative, atol=atol)


@pytest.mark.parametrize("gap", [17, 40])
def test_confident_rows_keep_relative_accuracy(level, gap):
    logits = np.zeros((3, 9), np.float32)
    logits[:, 2] = gap
    sparse = SparseTargets([[2, -1], [2, 5], [5, 2]], [[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    loss, grad = xent_rs.cross_entropy_with_grad(logits, sparse, reduction="none")
    expected = math.log1p(8 * math.exp(-gap))
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    np.testing.assert_allclose(grad[:, 2], math.expm1(-expected), rtol=1e-6)
    np.testing.assert_allclose(grad[:, 5], math.exp(-gap), rtol=2e-6)


# Rows: logits, index, probability, rest; the divergence.
ROWS = {
    "the same": (np.log([0.5, 0.25, 0.25]), [0, 1, 2], [0.5, 0.25, 0.25], "zero", 0.0),
    "a fair coin": ([0, 0], [0], [1], "zero", math.log(2)),
    "a class twice": ([0, 0], [1, 1], [0.5, 0.5], "zero", math.log(2)),
    "nothing weighs": ([3, 1, 2], [0, 1], [0, 0], "zero", 0.0),
    "nothing weighs, but the tail": ([0, 0, 0], [0], [0], "tail", math.log(1.5)),
    "all in the tail of one": ([0, 0], [0], [0], "tail", math.log(2)),
    "half": ([0, 0], [0], [0.5], "tail", 0.0),
    "half, alone": ([0, 0], [0], [0.5], "zero", 0.0),
    "half, renormalized": ([0, 0], [0], [0.5], "renormalize", math.log(2)),
    "weights above 1": ([0, 0], [0], [3], "zero", 3 * math.log(6)),
    "a masked class, listed": ([0, -math.inf], [0, 1], [0.5, 0.5], "zero", math.inf),
    "a masked class, listed alone": ([0, -math.inf], [1], [1], "zero", math.inf),
    "a masked class, listed for nothing": ([0, -math.inf, 0], [0, 1], [1, 0], "zero", math.log(2)),
    "a masked class, listed alone for nothing": ([0, -math.inf, 0], [1], [0], "zero", 0.0),
    "a masked class, not listed": ([0, -math.inf, 0], [0], [1], "zero", math.log(2)),
    "a masked class in a tail": ([0, -math.inf, 0], [0], [0.5], "tail", 0.0),
    "a tail of masked classes": ([0, -math.inf, -math.inf], [0], [0.5], "tail", math.inf),
    "a tail of masked classes for nothing": ([0, -math.inf, -math.inf], [0], [1], "tail", 0.0),
    "a masked class, and its tail": ([-math.inf, 0, 0], [0], [0], "tail", 0.0),
    "all classes, and nothing is left": (
        [0, 0],
        [0, 1],
        [0.5, 0.25],
        "tail",
        2 / 3 * math.log(4 / 3) + math.log(2 / 3) / 3,
    ),
    "more than 1, by rounding": (
        [0, 0, 0],
        [0],
        [1 + 2**-20],
        "tail",
        (1 + 2**-20) * math.log(3 + 3 * 2**-20),
    ),
    "one class": ([3], [0], [1], "zero", 0.0),
    "one class, tail": ([3], [0], [0.5], "tail", 0.0),
    "NaN, listed": ([math.nan, 0], [0], [1], "zero", math.nan),
    "NaN, not listed": ([0, math.nan], [0], [1], "zero", math.nan),
    "NaN, listed for nothing": ([math.nan, 0, 0], [0, 1], [0, 1], "zero", math.nan),
    "NaN, in a tail": ([0, math.nan], [0], [0.5], "tail", math.nan),
    "NaN, listed beside a tail": ([math.nan, 0], [0], [0.5], "tail", math.nan),
    "+inf, listed": ([math.inf, 0], [0], [1], "zero", math.nan),
    "+inf, not listed": ([0, math.inf], [0], [1], "tail", math.nan),
    "+inf, in a tail": ([0, math.inf], [0], [0.5], "tail", math.nan),
    "nothing but masked": ([-math.inf, -math.inf], [0], [1], "zero", math.nan),
    "nothing but masked, tail": ([-math.inf, -math.inf], [0], [0.5], "tail", math.nan),
    "padded": ([math.nan, math.inf], [-1], [math.nan], "zero", 0.0),
    "padded, tail": ([math.nan, math.inf], [-1], [5], "tail", 0.0),
    "padded, renormalized": ([math.nan, math.inf], [-1], [0], "renormalize", 0.0),
    "far above": ([0, 1000], [0], [1], "zero", 1000.0),
    "far above, tail": ([0, 1000], [0], [0.5], "tail", 500 + math.log(0.5)),
    "far below, tail": ([1000, 0], [0], [0.5], "tail", 500 + math.log(0.5)),
}


@pytest.mark.parametrize(("row", "index", "probability", "rest", "expected"), ROWS.values(), ids=ROWS)
@dtypes
def test_row(level, dtype, row, index, probability, rest, expected):
    """Between rows that are fine, with classes last and first, few and many."""
    wide = np.float64 if dtype == np.float64 else np.float32
    for more in (0, 500):
        padded = np.r_[row, np.full(more if rest != "tail" else 0, -math.inf)]
        plain = np.where(np.arange(len(padded)) < max(2, len(row)), 0.0, -math.inf)
        logits = np.array([plain, padded, plain]).astype(dtype)
        listed = SparseTargets(
            [[0] + [-1] * (len(index) - 1), index, [0] + [-1] * (len(index) - 1)],
            np.array([[1] + [0] * (len(index) - 1), probability, [1] + [0] * (len(index) - 1)], float),
            rest,
        )
        for axis in (-1, 0):
            turned = np.moveaxis(logits, -1, axis).copy("C")
            losses, grad = xent_rs.kl_divergence_with_grad(turned, listed, axis=axis, reduction="none")
            fine = math.log(np.isfinite(plain).sum())
            tolerance = {2: 2e-3, 4: 1e-6, 8: 1e-14}[dtype.itemsize]
            rounded = dtype.itemsize == 2 and "log" in repr(row)
            np.testing.assert_allclose(
                losses, np.array([fine, expected, fine], wide), rtol=tolerance, atol=tolerance * (1 + rounded)
            )
            grad = np.moveaxis(grad, axis, -1).astype(float)
            assert np.isfinite(grad[[0, 2]]).all()
            assert np.isnan(grad[1]).all() if math.isnan(expected) else np.isfinite(grad[1]).all()
            if not math.isnan(expected):
                assert not grad[1][np.isneginf(padded)].any()
            if index == [-1]:
                assert not grad[1].any()
            # In place.
            also, out = xent_rs.kl_divergence_with_grad(
                turned, listed, axis=axis, reduction="none", out=turned
            )
            assert same(also, losses)
            assert same(np.moveaxis(out, axis, -1).astype(float), grad)


def test_an_order_and_duplicates_change_nothing(level, random):
    logits = random.standard_normal((200, 300)).astype(np.float32)
    index = np.array([random.choice(300, 16, replace=False) for _ in range(200)])
    probability = random.random((200, 16)) / 16
    order = random.permuted(np.tile(np.arange(16), (200, 1)), axis=1)
    for rest in ("zero", "renormalize", "tail"):
        first = SparseTargets(index, probability, rest)
        turned = SparseTargets(
            *(np.take_along_axis(each, order, axis=1) for each in (index, probability)), rest
        )
        # Halves are exact, and so are their sums.
        halves = SparseTargets(np.c_[index, index], np.c_[probability, probability] / 2, rest)
        found = [
            xent_rs.kl_divergence_with_grad(logits, each, reduction="none")
            for each in (first, turned, halves)
        ]
        for other in found[1:]:
            assert all(map(same, found[0], other))


def test_padded_rows_do_not_count(random):
    logits = random.standard_normal((4, 6))
    logits[1] = math.nan
    index, probability = np.array([[0, 1], [-1, -1], [2, -1], [3, 3]]), np.full((4, 2), 0.5)
    rows = xent_rs.cross_entropy(logits, SparseTargets(index, probability), reduction="none")
    assert rows[1] == 0
    loss, grad = xent_rs.cross_entropy_with_grad(logits, SparseTargets(index, probability))
    assert loss == pytest.approx(rows.sum() / 3, rel=1e-15)
    assert not grad[1].any()
    weights = [2.0, 5.0, 1.0, 0.5]
    weighted = xent_rs.cross_entropy(logits, SparseTargets(index, probability), sample_weight=weights)
    assert weighted == pytest.approx((rows * weights).sum() / 3.5, rel=1e-15)
    nothing = SparseTargets(np.empty((4, 0), np.int64), np.empty((4, 0)))
    loss, grad = xent_rs.cross_entropy_with_grad(logits, nothing)
    assert math.isnan(loss)
    assert not grad.any()
    assert xent_rs.kl_divergence(logits, nothing, reduction="sum") == 0


def test_rows_of_weight_zero_are_never_read(random):
    logits = random.standard_normal((3, 5))
    logits[1] = [math.nan, math.inf, 0, -math.inf, 0]
    for rest, bad in (("zero", -1.0), ("zero", math.nan), ("renormalize", 0.0), ("tail", 9.0)):
        probability = np.array([[0.5, 0.25], [bad, bad], [0.25, 0.25]])
        sparse = SparseTargets([[0, 1], [2, 3], [4, 0]], probability, rest)
        losses, grad = xent_rs.kl_divergence_with_grad(
            logits, sparse, sample_weight=[1, 0, 2], reduction="none"
        )
        assert losses[1] == 0
        assert not grad[1].any()
        assert np.isfinite(losses).all()
        assert np.isfinite(grad).all()


@pytest.mark.parametrize("shape", [(0, 5), (3, 0, 5)])
def test_no_rows(shape):
    sparse = SparseTargets(np.zeros((*shape[:-1], 2), int), np.zeros((*shape[:-1], 2)))
    loss, grad = xent_rs.cross_entropy_with_grad(np.zeros(shape), sparse)
    assert math.isnan(loss)
    assert grad.shape == shape


def test_hessian_is_that_of_the_mass(level, random):
    logits = random.standard_normal((7, 9))
    index, probability = random.integers(0, 9, (7, 3)), random.random((7, 3))
    loss, grad, hess = xent_rs.cross_entropy_with_grad_hess(
        logits, SparseTargets(index, probability), reduction="sum"
    )
    beside = xent_rs.cross_entropy_with_grad(logits, SparseTargets(index, probability), reduction="sum")
    assert loss == beside[0]
    assert same(grad, beside[1])
    p = xent_rs.softmax(logits)
    np.testing.assert_allclose(hess, probability.sum(axis=1)[:, None] * p * (1 - p), rtol=1e-13)


LOGITS = np.zeros((2, 3, 4), np.float32)
INDEX, PROBABILITY = np.zeros((2, 3, 2), np.int64), np.full((2, 3, 2), 0.25, np.float32)


def with_entry(array, value):
    changed = array.copy()
    changed[1, 2, 0] = value
    return changed


BAD = {
    "an index beyond the classes": (
        (with_entry(INDEX, 4), PROBABILITY),
        IndexError,
        r"^target_logits.index\[1, 2, 0\] is 4; expected 0 to 3, or -1 to pad$",
    ),
    "another negative index": ((with_entry(INDEX, -2), PROBABILITY), IndexError, r"\[1, 2, 0\] is -2;"),
    "the largest unsigned index": (
        (with_entry(INDEX.astype(np.uint64), 2**64 - 1), PROBABILITY),
        IndexError,
        r"is 18446744073709551615; expected",
    ),
    "a negative probability": (
        (INDEX, with_entry(PROBABILITY, -0.5)),
        ValueError,
        r"^target_logits.probability\[1, 2, 0\] is -0.5; expected a finite number, at least 0$",
    ),
    "NaN": ((INDEX, with_entry(PROBABILITY, math.nan)), ValueError, r"probability\[1, 2, 0\] is nan;"),
    "an infinite probability": (
        (INDEX, with_entry(PROBABILITY, math.inf)),
        ValueError,
        r"\[1, 2, 0\] is inf;",
    ),
    "more than 1": (
        (INDEX, with_entry(PROBABILITY, 0.8), "tail"),
        ValueError,
        r"^target_logits.probability\[1, 2\] adds up to 1.05\d*; expected at most 1,",
    ),
    "nothing to divide by": (
        (INDEX, 0 * PROBABILITY, "renormalize"),
        ValueError,
        r"^target_logits.probability\[0, 0\] adds up to 0.0; expected a positive finite number",
    ),
    "rows that are no logits'": (
        (INDEX[:1], PROBABILITY[:1]),
        ValueError,
        r"^target_logits.index has shape \(1, 3, 2\); expected \(2, 3, K\), the shape of logits \(2, 3, 4\)",
    ),
    "no axis of listed classes": (
        (INDEX[..., 0], PROBABILITY[..., 0]),
        ValueError,
        r"has shape \(2, 3\); expected",
    ),
}


@pytest.mark.parametrize(("arguments", "error", "text"), BAD.values(), ids=BAD)
def test_bad_numbers_are_named_before_anything_is_written(arguments, error, text):
    out = np.full(LOGITS.shape, 7, np.float32)
    with pytest.raises(error, match=text):
        xent_rs.kl_divergence_with_grad(LOGITS, SparseTargets(*arguments), out=out)
    assert (out == 7).all()


CONSTRUCTED = {
    "another rest": (
        (INDEX, PROBABILITY, "rest"),
        ValueError,
        "^rest is 'rest'; expected 'zero', 'renormalize'",
    ),
    "floats as index": (
        (PROBABILITY, PROBABILITY),
        TypeError,
        "^index has dtype float32; expected an integer",
    ),
    "bools as index": ((INDEX > 0, PROBABILITY), TypeError, "^index has dtype bool; expected an integer"),
    "integers as probability": ((INDEX, INDEX), TypeError, "^probability has dtype int64; expected float16"),
    "complex": ((INDEX, PROBABILITY.astype(complex)), TypeError, "^probability has dtype complex128"),
    "long double": ((INDEX, PROBABILITY.astype(np.longdouble)), TypeError, "^probability has dtype"),
    "shapes": (
        (INDEX, PROBABILITY[:1]),
        ValueError,
        r"^probability has shape \(1, 3, 2\); expected \(2, 3, 2\)",
    ),
    "no axis": (
        (np.int64(1), np.float64(1)),
        ValueError,
        r"^index has shape \(\); expected at least one axis",
    ),
    "texts": ((["a"], [1.0]), TypeError, "index"),
    "lengths": (
        ([[1, 2], [3]], [[0.5, 0.5], [1.0]]),
        TypeError,
        "index holds sequences of different lengths",
    ),
}


@pytest.mark.parametrize(("arguments", "error", "text"), CONSTRUCTED.values(), ids=CONSTRUCTED)
def test_bad_targets_are_not_made(arguments, error, text):
    with pytest.raises(error, match=text):
        SparseTargets(*arguments)


REFUSED = {
    "a tail has no cross-entropy": (
        lambda targets: xent_rs.cross_entropy(LOGITS, SparseTargets(INDEX, PROBABILITY, "tail")),
        ValueError,
        "^targets.rest is 'tail'; expected 'zero' or 'renormalize'.*kl_divergence takes it",
    ),
    "focal_gamma": (
        lambda targets: xent_rs.cross_entropy(LOGITS, targets, focal_gamma=2),
        ValueError,
        "focal_gamma is 2.0 with SparseTargets; expected class indices",
    ),
    "out over the probabilities": (
        lambda targets: xent_rs.cross_entropy_with_grad(
            PROBABILITY, SparseTargets(INDEX, PROBABILITY), axis=-1, out=PROBABILITY
        ),
        ValueError,
        "out overlaps targets",
    ),
    "evaluate": (lambda targets: xent_rs.evaluate(LOGITS, targets), TypeError, "SparseTargets"),
    "row_statistics": (lambda targets: xent_rs.row_statistics(LOGITS, targets), TypeError, "SparseTargets"),
    "compare": (lambda targets: xent_rs.compare(LOGITS, LOGITS, targets), TypeError, "SparseTargets"),
    "binary": (lambda targets: xent_rs.binary_cross_entropy(LOGITS, targets), TypeError, "SparseTargets"),
    "logits": (lambda targets: xent_rs.cross_entropy(targets, INDEX), TypeError, "SparseTargets"),
    "NumPy": (np.asarray, TypeError, "SparseTargets"),
}


@pytest.mark.parametrize(("call", "error", "text"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused(call, error, text):
    with pytest.raises(error, match=text):
        call(SparseTargets(INDEX, PROBABILITY))


def test_the_object():
    targets = SparseTargets(INDEX, PROBABILITY, rest="tail")
    assert np.shares_memory(targets.index, INDEX)
    assert np.shares_memory(targets.probability, PROBABILITY)
    assert (
        repr(targets) == "SparseTargets(index of shape (2, 3, 2), int64, probability of float32, rest='tail')"
    )
    with pytest.raises(AttributeError):
        targets.rest = "zero"
    loss = xent_rs.kl_divergence(LOGITS, targets)
    for other in (pickle.loads(pickle.dumps(targets)), copy.copy(targets), copy.deepcopy(targets)):
        assert xent_rs.kl_divergence(LOGITS, other) == loss
        assert other.rest == "tail"
    assert len({targets, copy.copy(targets)}) == 2
