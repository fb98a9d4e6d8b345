"""Rows that other packages get wrong: confident, shifted, masked, infinite, NaN. Each line is one promise."""

import math

import numpy as np
import pytest
import xent_rs

from .bounds import FORMATS, unit
from .cases import DTYPES

INF, NAN = math.inf, math.nan
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def log1pexp(gap):
    return math.log1p(math.exp(-gap))


# logits, target, loss
LOSSES = {
    "a gap of 17 is not certainty": ([17, 0], 0, log1pexp(17)),
    "a gap of 10": ([0, 10], 1, log1pexp(10)),
    "a gap of 60": ([60, 0], 0, log1pexp(60)),
    "a gap of 80": ([0, 0, 80], 2, 2 * math.exp(-80)),
    "far below the largest": ([0, 120], 0, 120.0),
    "two equal": ([1, 1], 0, math.log(2)),
    "two equal at 1e8": ([1e8, 1e8], 1, math.log(2)),
    "two equal at -1e8": ([-1e8, -1e8], 0, math.log(2)),
    "two equal at 1e4": ([1e4, 1e4], 0, math.log(2)),
    "two equal at 1e6": ([1e6, 1e6], 0, math.log(2)),
    "two equal at 3e38": ([3e38, 3e38], 0, math.log(2)),
    "both ends of float32": ([-3e38, 3e38], 1, 0.0),
    "one class": ([5], 0, 0.0),
    "another class is masked": ([1, -INF, 1], 0, math.log(2)),
    "all others are masked": ([-INF, 3, -INF], 1, 0.0),
    "first and last are masked": ([-INF, 0, 17, -INF], 2, log1pexp(17)),
    "the target is masked": ([1, -INF, 1], 1, INF),
    "everything is masked": ([-INF, -INF], 0, NAN),
    "one class, masked": ([-INF], 0, NAN),
    "a NaN": ([0, NAN, 1], 0, NAN),
    "a NaN at the target": ([0, NAN, 1], 1, NAN),
    "a NaN beside a mask": ([-INF, NAN], 0, NAN),
    "+inf": ([0, INF, 1], 0, NAN),
    "+inf at the target": ([0, INF, 1], 1, NAN),
    "+inf beside a mask": ([-INF, INF], 1, NAN),
    "+inf twice": ([INF, INF], 0, NAN),
    "negative zero": ([-0.0, 0.0], 0, math.log(2)),
}


@pytest.mark.parametrize(("row", "target", "expected"), LOSSES.values(), ids=LOSSES)
@dtypes
def test_loss(level, dtype, row, target, expected):
    if max((abs(logit) for logit in row if math.isfinite(logit)), default=0) > FORMATS[dtype][2]:
        pytest.skip("the format does not hold such logits")
    logits = np.array([row], dtype)
    rtol = 0 if expected == 120 else 90 * unit(dtype)[0]
    for reduction in ("none", "mean"):
        loss = xent_rs.cross_entropy(logits, [target], reduction=reduction)
        np.testing.assert_allclose(loss, expected, rtol=rtol, atol=0)
    beside, _ = xent_rs.cross_entropy_with_grad(logits, [target], reduction="none")
    np.testing.assert_allclose(beside, expected, rtol=rtol, atol=0)


def test_confident_loss_of_the_contract():
    """4.14e-8 where float32 `lse - z_y` is 0."""
    loss = xent_rs.cross_entropy(np.array([[17, 0]], np.float32), [0])
    assert f"{loss:.3g}" == "4.14e-08"


@dtypes
def test_softmax_family_on_special_rows(level, dtype):
    rows = np.array([[-INF, -INF, -INF], [0, NAN, 1], [0, INF, 1], [0, -INF, 0], [-INF, 5, -INF]], dtype)
    half = math.log(2)
    lse = xent_rs.logsumexp(rows)
    np.testing.assert_allclose(lse, [-INF, NAN, NAN, half, 5], rtol=1e-7)
    probabilities = xent_rs.softmax(rows).astype(float)
    np.testing.assert_array_equal(probabilities[:3], NAN)
    np.testing.assert_array_equal(probabilities[3:], [[0.5, 0, 0.5], [0, 1, 0]])
    logs = xent_rs.log_softmax(rows).astype(float)
    np.testing.assert_array_equal(logs[:3], NAN)
    np.testing.assert_allclose(logs[3:], [[-half, -INF, -half], [-INF, 0, -INF]], rtol=4e-3)


@dtypes
def test_masked_classes_have_no_gradient(level, dtype, random):
    for classes in (2, 3, 16, 17, 100, 1000):
        logits = random.standard_normal((4, classes)).astype(dtype)
        masked = random.random((4, classes)) < 0.5
        masked[:, 0] = False
        logits[masked] = -INF
        _, grad = xent_rs.cross_entropy_with_grad(logits, np.zeros(4, int), reduction="sum")
        assert not grad[masked].any()
        assert np.isfinite(grad.astype(float)).all()


@dtypes
def test_gradient_of_a_row_that_is_not_a_number(level, dtype):
    for row in ([0, NAN, 1], [0, INF, 1], [-INF, -INF, -INF]):
        _, grad = xent_rs.cross_entropy_with_grad(np.array([row, [1, 2, 3]], dtype), [0, 1], reduction="sum")
        assert np.isnan(grad[0].astype(float)).all()
        assert np.isfinite(grad[1].astype(float)).all()


POISON_LENGTHS = [*range(1, 40), 63, 64, 65, 127, 128, 129, 130]


@pytest.mark.parametrize("axis", [-1, 0])
@pytest.mark.parametrize("poison", [NAN, -NAN, INF])
@dtypes
def test_poison_at_every_position_spoils_its_row_alone(level, dtype, poison, axis):
    """`max` swallows NaN on x86, depending on the order of its operands; a tail may hide it altogether."""
    for classes in POISON_LENGTHS:
        random = np.random.default_rng(classes)
        clean = (4 * random.standard_normal(classes)).astype(dtype)
        # Row i holds its poison at class i; a clean row follows each of them.
        logits = np.tile(clean, (2 * classes, 1))
        logits[2 * np.arange(classes), np.arange(classes)] = poison
        spoilt = np.arange(2 * classes) % 2 == 0
        turned = logits if axis == -1 else np.ascontiguousarray(logits.T)
        for target in {0, classes // 2, classes - 1}:
            targets = np.full(2 * classes, target)
            losses, grad = xent_rs.cross_entropy_with_grad(turned, targets, axis=axis, reduction="none")
            alone = xent_rs.cross_entropy(turned, targets, axis=axis, reduction="none")
            for result in (losses, alone):
                np.testing.assert_array_equal(np.isnan(result), spoilt)
            bad = np.isnan(np.moveaxis(grad, axis, -1).astype(np.float32))
            assert bad[spoilt].all()
            assert not bad[~spoilt].any()
        np.testing.assert_array_equal(np.isnan(xent_rs.logsumexp(turned, axis=axis)), spoilt)
        for function in (xent_rs.softmax, xent_rs.log_softmax):
            bad = np.isnan(np.moveaxis(function(turned, axis=axis), axis, -1).astype(np.float32))
            np.testing.assert_array_equal(bad.all(axis=1), spoilt)
            np.testing.assert_array_equal(bad.any(axis=1), spoilt)


@dtypes
def test_nan_in_long_rows(level, dtype):
    """Beyond one block of the sum, and where the running maximum is already far above."""
    for classes in (4097, 32000):
        for at in (0, 1, 4095, 4096, classes - 1):
            logits = np.zeros((3, classes), dtype)
            logits[:, 5] = 200
            logits[1, at] = NAN
            losses = xent_rs.cross_entropy(logits, [5, 5, 5], reduction="none")
            np.testing.assert_array_equal(np.isnan(losses), [False, True, False])


@dtypes
def test_one_bad_row_makes_the_mean_bad(dtype):
    logits = np.zeros((3, 4), dtype)
    logits[1, 2] = NAN
    assert math.isnan(xent_rs.cross_entropy(logits, [0, 0, 0]))
    assert xent_rs.cross_entropy(logits, [0, -100, 0]) == pytest.approx(math.log(4))
    masked = np.array([[0, -INF], [0, 0]], dtype)
    assert xent_rs.cross_entropy(masked, [1, 0]) == INF
    assert xent_rs.cross_entropy(masked, [1, 0], reduction="sum") == INF


@dtypes
def test_offsets_shift_nothing(level, dtype, random):
    """Adding the same number to all logits of a row, exactly, changes no bit of the loss or the gradient."""
    for classes in (2, 10, 100, 1000):
        logits = random.integers(-8, 9, (4, classes)).astype(dtype)
        targets = random.integers(0, classes, 4)
        expected, expected_grad = xent_rs.cross_entropy_with_grad(logits, targets, reduction="none")
        shift = {2: 100, 4: 2**20, 8: 2**40}[dtype.itemsize]
        for shifted in (logits + dtype.type(shift), logits - dtype.type(shift)):
            assert (
                shifted.astype(float) - logits.astype(float) == float(shifted[0, 0]) - float(logits[0, 0])
            ).all()
            losses, grad = xent_rs.cross_entropy_with_grad(shifted, targets, reduction="none")
            np.testing.assert_array_equal(losses, expected)
            np.testing.assert_array_equal(grad, expected_grad)


@dtypes
def test_subnormal_probabilities_are_kept(level, dtype):
    """exp(-95) is subnormal in float32; flushing it to 0 would lose what the bound promises."""
    gap, wide, digits = (740, np.float64, 0.6) if dtype == np.float64 else (95, np.float32, 1e-3)
    logits = np.array([[0, -gap]], dtype)
    expected = pytest.approx(math.exp(-gap), rel=digits, abs=0)
    assert xent_rs.softmax(logits, out=np.empty((1, 2), wide))[0, 1] == expected
    assert xent_rs.cross_entropy(logits, [0], reduction="none")[0] == expected
