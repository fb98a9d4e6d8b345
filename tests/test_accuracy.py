"""Errors stay below the bounds that the package promises: every dtype, SIMD level, length and distribution.

Threads are left out on purpose: `test_threads.py` proves that they do not change a bit.
"""

import math

import numpy as np
import pytest
import xent_rs
from hypothesis import given, settings, target
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from .bounds import (
    BinaryCrossEntropyBounds,
    CrossEntropyBounds,
    KlDivergenceBounds,
    assert_within,
    entropy_bound,
    gradient_bound,
    half_ulp,
    log_probability_bound,
    logsumexp_bound,
    loss_bound,
    mean_bound,
    probability_bound,
)
from .cases import AROUND_BLOCKS, DTYPES, LONG, SHORT, batch, targets_of
from .oracle import BinaryCrossEntropy, CrossEntropy, KlDivergence, Softmax

LENGTHS = {"short": SHORT, "around blocks": AROUND_BLOCKS, "long": LONG}
SOME_LENGTHS = [1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 64, 100, 127, 128, 255, 256, 257, 513, 4097]

dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)
lengths = pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)


def losses(logits, softmax, dtype, **options):
    for name, targets in targets_of(softmax).items():
        got = xent_rs.cross_entropy(logits, targets, reduction="none", **options)
        yield "loss", f"target {name}", got, softmax.losses(targets), loss_bound(softmax, targets, dtype)


def gradients(logits, softmax, dtype, temperature, axis):
    for name, targets in targets_of(softmax).items():
        _, got = xent_rs.cross_entropy_with_grad(
            logits, targets, reduction="sum", temperature=temperature, axis=axis
        )
        expected = softmax.gradients(targets) / softmax.dtype(temperature)
        bound = gradient_bound(softmax, targets, dtype, 1 / temperature)
        yield "gradient", f"target {name}", np.moveaxis(got, axis, -1), expected, bound


def softmax_family(logits, softmax, dtype, temperature, axis):
    options = {"temperature": temperature, "axis": axis}
    got = xent_rs.logsumexp(logits, **options)
    yield "logsumexp", "", got, softmax.logsumexp, logsumexp_bound(softmax, dtype)
    got = np.moveaxis(xent_rs.softmax(logits, **options), axis, -1)
    yield "softmax", "", got, softmax.probabilities, probability_bound(softmax, dtype)
    got = np.moveaxis(xent_rs.log_softmax(logits, **options), axis, -1)
    yield "log_softmax", "", got, softmax.log_probabilities, log_probability_bound(softmax, dtype)


def turn(array, axis):
    return array if axis == -1 else np.ascontiguousarray(array.T)


def probabilities(logits, softmax, dtype, temperature, axis, softcap=None):
    """A target for every class: the loss, the gradient and the Hessian, weighted and not."""
    random = np.random.default_rng(softmax.classes)
    targets = random.random(softmax.gaps.shape, np.float32)
    targets[::3] = np.eye(softmax.classes)[softmax.top[::3]]
    options = {"temperature": temperature, "axis": axis, "reduction": "none"}
    wide = {"out": np.empty(logits.shape, np.float64 if dtype == np.float64 else np.float32)}
    for weight in (None, random.uniform(0.5, 2, softmax.classes)):
        oracle = CrossEntropy(softmax, targets, weight=weight)
        bounds, call = CrossEntropyBounds(oracle, dtype), (logits, turn(targets, axis))
        if softcap is None:
            found = xent_rs.cross_entropy_with_grad_hess(*call, weight=weight, **options, **wide)
            got = np.moveaxis(found[2], axis, -1)
            yield "soft Hessian", "", got, oracle.hessians, bounds.hessians()
        else:
            found = xent_rs.cross_entropy_with_grad(*call, weight=weight, softcap=softcap, **options, **wide)
        yield "soft loss", "", found[0], oracle.losses, bounds.losses
        got = np.moveaxis(found[1], axis, -1)
        yield "soft gradient", "", got, oracle.gradients, bounds.gradients()


def statistics(logits, softmax, dtype, temperature, axis, softcap=None):
    random = np.random.default_rng(softmax.classes)
    options = {"temperature": temperature, "axis": axis}
    found = xent_rs.row_statistics(logits, softmax.top, softcap=softcap, **options)
    at = softmax.rows, softmax.top
    p, logs = softmax.probabilities[at], log_probability_bound(softmax, dtype)
    yield "logsumexp", "", found.logsumexp, softmax.logsumexp, logsumexp_bound(softmax, dtype)
    yield "max probability", "", found.max_probability, p, probability_bound(softmax, dtype)[at]
    yield "entropy", "", found.entropy, softmax.entropies, entropy_bound(softmax, dtype)
    yield "log_softmax", "", found.target_log_probability, softmax.log_probabilities[at], logs[at]
    if softcap is None:
        index = random.integers(0, softmax.classes, (len(softmax.rows), 5))
        got, at = xent_rs.selective_log_softmax(logits, index, **options), (softmax.rows[:, None], index)
        yield "log_softmax", "selected", got, softmax.log_probabilities[at], logs[at]


def divergences(logits, softmax, dtype, temperature, axis):
    """Of each row from the next: of every distribution from another."""
    rows = np.moveaxis(logits, axis, -1)
    if dtype == np.float64:  # Differences beyond the largest number are of no use to anybody.
        kept = (softmax.gaps < 1e300).all(axis=1) | softmax.masked.any(axis=1)
        rows = rows[kept]
        logits, softmax = turn(np.ascontiguousarray(rows), axis), Softmax(rows, temperature)
    teacher = np.roll(rows, 1, axis=0)
    oracle = KlDivergence(softmax, Softmax(teacher, temperature))
    options = {"temperature": temperature, "axis": axis, "reduction": "none"}
    wide = np.empty(logits.shape, np.float64 if dtype == np.float64 else np.float32)
    got, grad = xent_rs.kl_divergence_with_grad(logits, turn(teacher, axis), out=wide, **options)
    bounds = KlDivergenceBounds(oracle, dtype)
    yield "KL loss", "", got, oracle.losses, bounds.losses
    yield "KL gradient", "", np.moveaxis(grad, axis, -1), oracle.gradients, bounds.gradients()


def binary(logits, softmax, dtype, temperature, axis):
    targets = np.random.default_rng(softmax.classes).random(logits.shape, np.float32)
    for about, wanted in (("probabilities", targets), ("n-hot", targets < 0.5)):
        oracle = BinaryCrossEntropy(logits, wanted)
        bounds = BinaryCrossEntropyBounds(oracle, dtype)
        wide = np.empty(logits.shape, np.float64 if dtype == np.float64 else np.float32)
        got, grad = xent_rs.binary_cross_entropy_with_grad(logits, wanted, reduction="none", out=wide)
        yield "binary loss", about, got, oracle.losses, bounds.losses
        yield "binary gradient", about, grad, oracle.gradients, bounds.gradients()


FUNCTIONS = {"loss": losses, "gradient": gradients, "softmax": softmax_family}
OTHERS = {
    "probabilities": probabilities,
    "statistics": statistics,
    "divergences": divergences,
}
others = pytest.mark.parametrize("function", OTHERS.values(), ids=OTHERS)
functions = pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)


def check(function, logits, softmax, *, temperature=1.0, axis=-1, names=None, **options):
    """Compare what the function returns with the oracle (along axis 0: of the same rows, turned).

    Returns the largest error as a fraction of the bound.
    """
    ratios = []
    for quantity, about, got, expected, bound in function(
        turn(logits, axis), softmax, logits.dtype, temperature=temperature, axis=axis, **options
    ):
        quantity += "" if temperature == 1 else ", temperature"
        quantity += ", softcap" if options else ""
        context = f"of {logits.shape} {about}"
        ratios.append(assert_within(quantity, got, expected, bound, logits.dtype, context, names))
    return max(ratios)


@functions
@lengths
@dtypes
def test_within_the_promised_bound(level, dtype, lengths, function):
    """A tail that is left out, a sum in float32, exp beyond an ulp, lse - z_y where digits cancel."""
    for classes in lengths:
        logits, softmax, names = batch(classes, dtype)
        check(function, logits, softmax, names=names)


@pytest.mark.parametrize("function", [*FUNCTIONS.values(), statistics], ids=[*FUNCTIONS, "statistics"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=lambda dtype: dtype.__name__)
def test_logits_that_are_log_probabilities(level, dtype, function):
    """Their log-sum-exp is next to 0: no large result has room for the errors of what it is made of."""
    random = np.random.default_rng(0)
    for classes in (2, 3, 5, 10, 11, 12, 17, 100, 192, 257):
        for scale in (0.01, 0.1, 1.0, 4.0):
            logits = random.standard_normal((20_000 // classes, classes)) * scale
            logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True))
            logits = logits.astype(dtype)
            check(function, logits, Softmax(logits))


@functions
@dtypes
def test_classes_along_the_first_axis(level, dtype, function):
    """The kernel that walks down columns."""
    for classes in SOME_LENGTHS:
        logits, softmax, names = batch(classes, dtype)
        check(function, logits, softmax, axis=0, names=names)


@functions
@dtypes
@pytest.mark.parametrize("temperature", [0.1, 0.7, 2.0, 3.0, 100.0])
def test_temperature(level, dtype, temperature, function):
    """The bound holds for z = x / temperature, not for a rounded quotient."""
    for classes in SOME_LENGTHS:
        logits, softmax, names = batch(classes, dtype, temperature)
        check(function, logits, softmax, temperature=temperature, names=names)


@others
@dtypes
@pytest.mark.parametrize(("temperature", "axis"), [(1.0, -1), (1.0, 0), (0.7, -1), (3.0, 0)])
def test_other_functions(level, dtype, temperature, axis, function):
    """Every distribution, in every function that is made of several of the results above."""
    for classes in SOME_LENGTHS:
        logits, softmax, names = batch(classes, dtype, temperature)
        names = None if function is divergences else names
        check(function, logits, softmax, temperature=temperature, axis=axis, names=names)


@dtypes
@pytest.mark.parametrize("axis", [-1, 0])
def test_elements(level, dtype, axis):
    for classes in SOME_LENGTHS:
        logits, softmax, _ = batch(classes, dtype)
        check(binary, logits, softmax, axis=axis)


@pytest.mark.parametrize("function", [probabilities, statistics])
@dtypes
@pytest.mark.parametrize(
    ("softcap", "axis"), [(30.0, -1), (30.0, 0), (0.5, -1), (0.5, 0), (1e4, -1), (1e4, 0)]
)
def test_softcap(level, dtype, softcap, axis, function):
    """The bound holds for z = softcap tanh(x / softcap), not for a rounded one."""
    for classes in SOME_LENGTHS:
        logits, _, names = batch(classes, dtype)
        softmax = Softmax(logits, 1.0, softcap)
        check(function, logits, softmax, axis=axis, names=names, softcap=softcap)


@dtypes
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("classes", [3000, 5000, 20_000])
def test_statistics_of_many_likely_classes(level, dtype, classes, temperature):
    """A probability is no exponential of a rounded logarithm: that of 1 / 5000 would be off by 8 u."""
    logits = (np.random.default_rng(88).standard_normal((20, classes)) * 1e-3).astype(dtype)
    check(statistics, logits, Softmax(logits, temperature), temperature=temperature)


@pytest.mark.parametrize("classes", [3, 300])
@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
@pytest.mark.parametrize(("softcap", "temperature"), [(1e4, 1.0), (1e5, 1.0), (30.0, 1e-4)])
def test_softcap_of_many_units(level, softcap, temperature, dtype, classes):
    """Where z is thousands, what a capped logit is off decides; tanh is off most from 0.17 to 0.22."""
    random = np.random.default_rng(4)
    rows = 12_000 // classes
    centers = random.uniform(0.17, 0.22, (rows, 1)) * random.choice([-1, 1], (rows, 1))
    logits = softcap * centers + temperature * random.uniform(-20, 20, (rows, classes))
    logits = logits.astype(dtype)
    softmax = Softmax(logits, temperature, softcap)
    for function in (losses, probabilities):
        check(function, logits, softmax, temperature=temperature, softcap=softcap)


@dtypes
@pytest.mark.parametrize("temperature", [5e-324, 1e-300, 1e-40, 1e-20, 1e20, 1e40, 1e300])
def test_temperature_beyond_the_range_of_float32(level, dtype, temperature):
    """1 / temperature may overflow, be subnormal or 0: 0 * inf must not make NaN of a row."""
    logits = np.array([[1, 2, 3], [0, 0, 0], [-5, 17, 2.5], [0, -np.inf, 6e4]], dtype)
    softmax = Softmax(logits, temperature)
    check(losses, logits, softmax, temperature=temperature)
    check(softmax_family, logits, softmax, temperature=temperature)


@functions
@dtypes
@pytest.mark.parametrize("axis", [-1, 0])
def test_many_rows_of_few_classes(level, dtype, axis, function):
    """The kernel whose lanes are rows, with its own logarithm; every number of leftover rows."""
    random = np.random.default_rng(0)
    for classes in (1, 2, 3, 4, 5, 8, 10, 16, 17, 32, 33):
        for rows in (*range(1, 34), 1000):
            logits = (random.choice([0.1, 1, 4, 10]) * random.standard_normal((rows, classes))).astype(dtype)
            check(function, logits, Softmax(logits), axis=axis)


@functions
@dtypes
@pytest.mark.parametrize("classes", [2, 3, 4, 8, 15, 17, 33])
def test_random_scales(level, dtype, classes, function):
    """Enough rows of every magnitude that roundings which add up once in ten thousand do so here."""
    random = np.random.default_rng(classes)
    scales = 10 ** random.uniform(-2, 2, (100_000 // classes, 1))
    offsets = random.choice([0, 0, 1e3, 1e4], scales.shape)
    logits = (scales * random.standard_normal((len(scales), classes)) + offsets).astype(dtype)
    check(function, logits, Softmax(logits))


# Found by search: the roundings of max - z_y, of the logarithm and of their sum all point the same way.
UNLUCKY = [
    ["0x1.0bfcb264c3cecp+1", "0x1.c3131dc2a3572p-3", "0x1.d3f424ae112f4p+0", "0x1.d79149af958f4p-1"],
    [
        *("0x1.a2a9c897a7d4dp+0", "0x1.61f78db4fea50p-4", "0x1.cbb13576e2194p+0", "0x1.d81e7b25bcc8fp+0"),
        *("0x1.2d43c40008fabp+1", "0x1.e9b6183c70d28p-5"),
    ],
    [
        *("0x1.5e084bf89038ap+1", "0x1.7456f1c220afap-2", "0x1.519fd957c887ep+1", "0x1.6ed206ad95386p+1"),
        *("0x1.a2642632a28efp+0", "0x1.4036f019860c8p+0", "0x1.99484212eda48p+1", "0x1.7782ea513fa46p+1"),
    ],
    [
        *("0x1.168d8d19b6420p+2", "0x1.9c5d61b3c2024p+1", "0x1.e7c30c7f16b29p+1", "0x1.25896caf569b3p+2"),
        *("0x1.5661fd6652f76p+1", "0x1.d23ee76a979b9p-1", "0x1.987ebd12486b5p+1", "0x1.075674c1f15a6p+1"),
    ],
]


@functions
@pytest.mark.parametrize("row", UNLUCKY, ids=len)
def test_roundings_that_add_up(level, row, function):
    """One operation too many in float64 and the bound is missed, if only by such rows."""
    logits = np.array([[float.fromhex(logit) for logit in row]])
    check(function, logits, Softmax(logits))


@dtypes
@pytest.mark.parametrize("classes", [10, 1000])
def test_mean_and_sum(level, dtype, classes, random):
    """Rows are added in float64: 100,000 of them in float32 would lose five digits."""
    logits = (3 * random.standard_normal((1_000_000 // classes, classes))).astype(dtype)
    targets = random.integers(0, classes, len(logits))
    targets[::7] = -100
    softmax, store = Softmax(logits), np.float64 if dtype == np.float64 else np.float32
    losses, count = softmax.losses(targets), int((targets != -100).sum())
    bounds = loss_bound(softmax, np.where(targets == -100, 0, targets), logits.dtype)[targets != -100]
    for reduction, divisor in (("mean", count), ("sum", 1)):
        got = xent_rs.cross_entropy(logits, targets, reduction=reduction)
        expected, bound = losses.sum() / divisor, mean_bound(bounds, losses, divisor)
        assert_within(reduction, got, expected, bound, dtype)
        # The roundings of so many row losses cancel; those of a float32 sum would not.
        rows = xent_rs.cross_entropy(logits, targets, reduction="none").astype(np.float64)
        roundings = 6 * np.sqrt((half_ulp(rows, store) ** 2).sum()) + len(rows) * 2.0**-53 * rows.sum()
        assert abs(got - math.fsum(rows) / divisor) <= roundings / divisor


@settings(max_examples=300)
@given(
    data=st.data(),
    dtype=st.sampled_from([np.dtype(np.float32), np.dtype(np.float64)]),
    classes=st.integers(1, 70),
    scale=st.sampled_from([1e-3, 1, 30, 1e4, 1e30]),
    masked=st.booleans(),
)
def test_searched_for_the_worst_row(data, dtype, classes, scale, masked):
    """Hypothesis climbs towards a larger error / bound."""
    elements = st.floats(-1, 1, width=dtype.itemsize * 8)
    row = data.draw(arrays(dtype, classes, elements=elements)) * dtype.type(scale)
    if masked:
        row[1:][:: data.draw(st.integers(1, 5))] = -np.inf
    logits = row[None]
    for name, function in FUNCTIONS.items():
        target(check(function, logits, Softmax(logits)), label=name)


@dtypes
@pytest.mark.parametrize("classes", [2, 3, 7, 21, 40, 255, 257])
@pytest.mark.parametrize("axis", [0, 1])
def test_label_smoothing(level, dtype, classes, axis):
    """Of a few classes far apart: the sum of their differences is as large as the loss."""
    random = np.random.default_rng(classes)
    rows = 20_000 // classes
    logits = (random.standard_normal((rows, classes)) * 30).astype(dtype)
    targets = random.integers(0, classes, rows)
    softmax = Softmax(logits)
    for smoothing in (0.1, 0.5, 1.0):
        oracle = CrossEntropy(softmax, targets, label_smoothing=smoothing)
        got = xent_rs.cross_entropy(
            logits if axis == 1 else np.ascontiguousarray(logits.T),
            targets,
            axis=axis,
            label_smoothing=smoothing,
            reduction="none",
        )
        bound = CrossEntropyBounds(oracle, dtype).losses
        assert_within("smoothed loss", got, oracle.losses, bound, dtype, f"smoothing {smoothing}")


@pytest.mark.parametrize(("classes", "far"), [(32000, 512.0029216977337), (128256, 513.0097349380203)])
def test_label_smoothing_of_equal_differences(level, classes, far):
    """Each of which is rounded alike, and so is their sum."""
    for dtype in (np.float64, np.float32):
        logits = np.full((1, classes), -far, dtype)
        logits[0, 0] = 0
        oracle = CrossEntropy(Softmax(logits), np.array([0]), label_smoothing=1.0)
        got = xent_rs.cross_entropy(logits, np.array([0]), label_smoothing=1.0, reduction="none")
        bound = CrossEntropyBounds(oracle, dtype).losses
        assert_within("smoothed loss", got, oracle.losses, bound, dtype, f"{classes} classes")
