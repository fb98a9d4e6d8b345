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
    # Half an ulp of 120 in the type that is computed in, and u·(ln 2 + 2).
    rtol = (0.6 if expected == 120 else 90) * unit(dtype)[0]
    for reduction in ("none", "mean"):
        loss = xent_rs.cross_entropy(logits, [target], reduction=reduction)
        np.testing.assert_allclose(loss, expected, rtol=rtol, atol=0)
    beside, _ = xent_rs.cross_entropy_with_grad(logits, [target], reduction="none")
    np.testing.assert_allclose(beside, expected, rtol=rtol, atol=0)
    for about in (
        xent_rs.selective_log_softmax(logits, [[target]])[0],
        xent_rs.row_statistics(logits, [target])[4],
    ):
        np.testing.assert_allclose(-about, [expected], rtol=rtol, atol=0)
    for kind in DTYPES:
        one_hot = (np.arange(len(row)) == target).astype(kind)[None]
        for function in (xent_rs.cross_entropy_with_grad, xent_rs.cross_entropy_with_grad_hess):
            loss, *_ = function(logits, one_hot, reduction="none")
            np.testing.assert_allclose(loss, expected, rtol=rtol, atol=0)


CONFIDENT = np.array([[17, 0]], np.float32)
CERTAIN = {
    "class": lambda: xent_rs.cross_entropy(CONFIDENT, [0]),
    "one-hot": lambda: xent_rs.cross_entropy(CONFIDENT, np.array([[1.0, 0.0]])),
    "weighted": lambda: xent_rs.cross_entropy(CONFIDENT, [0], weight=[3.0, 5.0], sample_weight=[2.0]),
    "temperature": lambda: xent_rs.cross_entropy(CONFIDENT * 2, [0], temperature=2.0),
    "binary": lambda: xent_rs.binary_cross_entropy(CONFIDENT[0, :1], [1.0]),
    "binary, negative": lambda: xent_rs.binary_cross_entropy(-CONFIDENT[0, :1], [False]),
    "selected": lambda: -xent_rs.selective_log_softmax(CONFIDENT, [[0]]).item(),
    "statistics": lambda: -xent_rs.row_statistics(CONFIDENT, [0]).target_log_probability.item(),
    "evaluation": lambda: xent_rs.evaluate(CONFIDENT, [0], top_k=(1,)).loss,
    "gradient of a class": lambda: -xent_rs.cross_entropy_with_grad(CONFIDENT, [0])[1][0, 0],
    "gradient of one-hot": lambda: (
        -xent_rs.cross_entropy_with_grad(CONFIDENT, np.array([[1.0, 0.0]]))[1][0, 0]
    ),
    "gradient, binary": lambda: -xent_rs.binary_cross_entropy_with_grad(CONFIDENT[0, :1], [1.0])[1][0],
    "Hessian": lambda: xent_rs.cross_entropy_with_grad_hess(CONFIDENT, [0])[2][0, 0],
}


@pytest.mark.parametrize("call", CERTAIN.values(), ids=CERTAIN)
def test_confident_loss_of_the_contract(level, call):
    """4.14e-8 where float32 `lse - z_y` is 0."""
    assert f"{call():.3g}" == "4.14e-08"


def loss_of(rows, targets, **options):
    """Row losses, and the same beside the gradient."""
    found = [xent_rs.cross_entropy(np.array(rows, np.float32), targets, **{"reduction": "none", **options})]
    found.append(
        xent_rs.cross_entropy_with_grad(np.array(rows, float), targets, **{"reduction": "none", **options})[0]
    )
    np.testing.assert_allclose(found[0], found[1], rtol=2e-6)
    return found[1]


def gradient_of(rows, targets, **options):
    logits = np.array(rows, np.float32)
    return xent_rs.cross_entropy_with_grad(logits, targets, **{"reduction": "none", **options})[1]


def hessian_of(rows, targets, **options):
    logits = np.array(rows, np.float32)
    return xent_rs.cross_entropy_with_grad_hess(logits, targets, **{"reduction": "none", **options})[2]


LOG2 = math.log(2)
MASKED, BAD = [1, -INF, 1], [[0, NAN, 1], [INF, 0, 0], [-INF, -INF, -INF]]
EVERYTHING = {
    "weight": np.arange(1.0, 4.0),
    "label_smoothing": 0.1,
    "z_loss": 0.5,
    "softcap": 3.0,
    "temperature": 0.5,
}
# What is called, and what comes of it.
OPTIONS = {
    # Masked classes
    "smoothing over a masked class": (lambda: loss_of([MASKED], [0], label_smoothing=0.1), [INF]),
    "its gradient": (lambda: gradient_of([MASKED], [0], label_smoothing=0.3), [[-0.3, 0, 0.4]]),
    "all smoothing over a masked class": (lambda: loss_of([MASKED], [0], label_smoothing=1.0), [INF]),
    "smoothing over a masked class of weight 0": (
        lambda: loss_of([MASKED], [0], label_smoothing=0.3, weight=[1, 0, 1]),
        [0.9 * LOG2],
    ),
    "a masked target of weight 0": (lambda: loss_of([MASKED], [1], weight=[1, 0, 1]), [0]),
    "a masked target of row weight 0": (
        lambda: loss_of([MASKED, MASKED], [1, 0], sample_weight=[0, 2]),
        [0, 2 * LOG2],
    ),
    "its mean": (lambda: loss_of([MASKED, MASKED], [1, 0], sample_weight=[0, 2], reduction="mean"), LOG2),
    "a zero target on a masked class": (lambda: loss_of([MASKED], np.array([[0.25, 0, 0.75]])), [LOG2]),
    "a target on a masked class": (lambda: loss_of([MASKED], np.array([[0.25, 1e-30, 0.75]])), [INF]),
    "gradient of a target on a masked class": (
        lambda: gradient_of([MASKED], np.array([[0.25, 0.5, 0.25]])),
        [[0.25, 0, 0.25]],
    ),
    "a masked class under softcap": (lambda: loss_of([MASKED], [0], softcap=2.0), [LOG2]),
    "a masked target under softcap": (lambda: loss_of([MASKED], [1], softcap=2.0), [INF]),
    "gradient of a masked class under softcap": (
        lambda: gradient_of([MASKED, MASKED], [0, 1], softcap=2.0)[:, 1],
        [0, 0],
    ),
    "its probability": (
        lambda: xent_rs.row_statistics(np.array(MASKED), 0, softcap=2.0).max_probability,
        0.5,
    ),
    "z-loss beside a masked class": (
        lambda: loss_of([MASKED], [0], z_loss=0.5),
        [LOG2 + (1 + LOG2) ** 2 / 2],
    ),
    "Hessian of a masked class": (lambda: hessian_of([MASKED], [0]), [[0.25, 0, 0.25]]),
    # Rows that are no numbers stay so
    "not a number, smoothed": (lambda: loss_of(BAD, [0, 0, 0], label_smoothing=0.1), [NAN] * 3),
    "not a number, weight 0": (lambda: loss_of(BAD, [0, 0, 0], weight=[0, 1, 1]), [NAN] * 3),
    "not a number, row weight 0": (lambda: loss_of(BAD, [0, 0, 0], sample_weight=[0, 0, 0]), [0] * 3),
    "not a number, no target": (lambda: loss_of(BAD, np.zeros((3, 3))), [NAN] * 3),
    "not a number, capped": (lambda: loss_of(BAD, [0, 0, 0], softcap=2.0), [NAN] * 3),
    "not a number, z-loss": (lambda: loss_of(BAD, [0, 0, 0], z_loss=0.1), [NAN] * 3),
    "gradient where not a number": (lambda: gradient_of(BAD, [0, 0, 0], softcap=2.0), [[NAN] * 3] * 3),
    "Hessian where not a number": (lambda: hessian_of(BAD, [0, 0, 0]), [[NAN] * 3] * 3),
    "beside one that is": (lambda: loss_of([*BAD, [0, 0, 0]], np.full((4, 3), 0.5))[3:], [1.5 * math.log(3)]),
    # Ignored rows
    "ignored, with everything": (lambda: loss_of(BAD, [-100] * 3, **EVERYTHING), [0] * 3),
    "gradient of ignored": (lambda: gradient_of(BAD, [-100] * 3, **EVERYTHING), np.zeros((3, 3))),
    "Hessian of ignored": (lambda: hessian_of(BAD, [-100] * 3, label_smoothing=0.1), np.zeros((3, 3))),
    "mean of ignored": (lambda: loss_of(BAD, [-100] * 3, **EVERYTHING, reduction="mean"), NAN),
    "sum of ignored": (lambda: loss_of(BAD, [-100] * 3, **EVERYTHING, reduction="sum"), 0),
    "ignored over a denominator": (
        lambda: loss_of(BAD, [-100] * 3, **EVERYTHING, denominator=2, reduction="mean"),
        0,
    ),
    "ignored, of a weight that is not a number": (
        lambda: loss_of([[0, 0]] * 2, [-100, 1], sample_weight=[NAN, 1], reduction="mean"),
        LOG2,
    ),
    "z-loss does not count ignored rows": (
        lambda: loss_of([[0, 0]] * 2, [-100, 1], z_loss=2.0, reduction="mean"),
        LOG2 + 2 * LOG2**2,
    ),
    "ignore_index does not concern probabilities": (
        lambda: loss_of([[0, 0]] * 2, np.full((2, 2), 1.0), ignore_index=1),
        [2 * LOG2] * 2,
    ),
    # Nothing at all
    "weights that add up to 0": (lambda: loss_of([[0, 0]], [1], weight=[1, 0], reduction="mean"), NAN),
    "row weights that add up to 0": (
        lambda: loss_of([[0, 0]], [1], sample_weight=[0], reduction="mean"),
        NAN,
    ),
    "no targets at all": (lambda: loss_of([[1, 2]], np.zeros((1, 2)), reduction="mean"), 0),
    "gradient of no targets at all": (lambda: gradient_of([[1, 2]], np.zeros((1, 2))), [[0, 0]]),
    "no rows": (lambda: loss_of(np.zeros((0, 3)), np.zeros(0, int), **EVERYTHING, reduction="mean"), NAN),
    "no rows of probabilities": (lambda: loss_of(np.zeros((0, 3)), np.zeros((0, 3)), reduction="mean"), NAN),
    "sum of no rows": (lambda: loss_of(np.zeros((0, 3)), np.zeros((0, 3)), **EVERYTHING, reduction="sum"), 0),
    # One class, one sample
    "one class": (lambda: loss_of([[5], [-7]], [0, 0], label_smoothing=0.1, weight=[3.0]), [0, 0]),
    "one class, z-loss": (lambda: loss_of([[5], [-7]], [0, 0], z_loss=0.1), [2.5, 4.9]),
    "gradient of one class, z-loss": (lambda: gradient_of([[5], [-7]], [0, 0], z_loss=0.1), [[1.0], [-1.4]]),
    "one class of probabilities": (lambda: loss_of([[5], [-7]], np.array([[0.3], [2.0]])), [0, 0]),
    "a single sample of probabilities": (lambda: loss_of([0, 0], np.array([0.5, 1.5])), 2 * LOG2),
    "a single sample with a weight": (lambda: loss_of([0, 0], 1, sample_weight=3.0, weight=[1, 2]), 6 * LOG2),
    "Hessian of a single sample": (lambda: hessian_of([0, 0], 1, sample_weight=3), [0.75, 0.75]),
    # Far away
    "two equal at 1e8, probabilities": (lambda: loss_of([[1e8, 1e8]], np.array([[0.3, 0.7]])), [LOG2]),
    "two equal at 1e8, smoothed": (lambda: loss_of([[1e8, 1e8]], [1], label_smoothing=0.5), [LOG2]),
    "two equal at 1e4, z-loss": (lambda: loss_of([[1e4, 1e4]], [1], z_loss=1.0), [LOG2 + (1e4 + LOG2) ** 2]),
    "capped at 5": (lambda: loss_of([[1e8, 0]], [1], softcap=5.0), [5 + log1pexp(5)]),
    "capped at 5, confident": (lambda: loss_of([[1e8, 0]], [0], softcap=5.0), [log1pexp(5)]),
    "capped at 17, confident": (lambda: loss_of([[1e8, 0]], [0], softcap=17.0), [log1pexp(17)]),
    "gradient where the cap is reached": (lambda: gradient_of([[1e8, 0]], [0], softcap=5.0)[0, 0], 0),
    "a cap far away": (lambda: loss_of([[3, 1]], [1], softcap=1e30), [2 + log1pexp(2)]),
    "a cap close by": (lambda: loss_of([[3, 1]], [1], softcap=1e-30), [LOG2]),
    "far below, probabilities": (lambda: loss_of([[0, 120]], np.array([[1.0, 0.0]])), [120]),
    # Negative weights
    "a negative weight": (lambda: loss_of([[0, 0]] * 2, [0, 1], weight=[-1, 3]), [-LOG2, 3 * LOG2]),
    "gradient of a negative weight": (lambda: gradient_of([[0, 0]], [0], weight=[-1, 3]), [[0.5, -0.5]]),
    "a negative row weight": (
        lambda: loss_of([[0, 0]] * 2, [0, 1], sample_weight=[-1, 3], reduction="mean"),
        LOG2,
    ),
    "a weight that is not a number": (lambda: loss_of([[0, 0]], [0], weight=[NAN, 1]), [NAN]),
}


@pytest.mark.parametrize(("call", "expected"), OPTIONS.values(), ids=OPTIONS)
def test_option(level, call, expected):
    np.testing.assert_allclose(call(), expected, rtol=2e-6, atol=0)


@dtypes
def test_softmax_family_on_special_rows(level, dtype):
    rows = np.array([[-INF, -INF, -INF], [0, NAN, 1], [0, INF, 1], [0, -INF, 0], [-INF, 5, -INF]], dtype)
    half = math.log(2)
    lse = xent_rs.logsumexp(rows)
    np.testing.assert_allclose(lse, [-INF, NAN, INF, half, 5], rtol=1e-7)
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


POISON_LENGTHS = [*range(1, 40), 64, 127, 128, 129, 130, 254, 255, 256]


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
        found = xent_rs.logsumexp(turned, axis=axis)
        np.testing.assert_array_equal(np.isposinf(found) if poison == INF else np.isnan(found), spoilt)
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
@pytest.mark.parametrize("axis", [0, 1])
def test_the_lowest_number_as_a_mask(level, dtype, axis):
    """What others write for -inf: classes at the bottom of the range, then the ones that count."""
    for classes in (10, 255, 256, 257, 300, 600, 5000):
        logits = np.full((3, classes + 2), -FORMATS[dtype][2]).astype(dtype)
        logits[:, -2:] = 1
        logits = logits if axis else np.ascontiguousarray(logits.T)
        targets = [classes, classes + 1, 0]
        losses, grad = xent_rs.cross_entropy_with_grad(logits, targets, axis=axis, reduction="none")
        np.testing.assert_allclose(losses[:2], math.log(2), rtol=1e-6)
        assert losses[2] >= FORMATS[dtype][2] / 2
        grad = np.moveaxis(grad, axis, -1)
        halves = [[-0.5, 0.5], [0.5, -0.5], [0.5, 0.5]]
        rtol = 2.0 ** (1 - FORMATS[dtype][0])
        np.testing.assert_allclose(grad[:, -2:].astype(np.float64), halves, rtol=rtol)
        assert not grad[:2, :-2].any()


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
    """Adding the same number to all logits of a row, exactly, changes the results by roundings alone."""
    for classes in (2, 10, 100, 1000, 5000):
        logits = random.integers(-8, 9, (4, classes)).astype(dtype)
        targets = random.integers(0, classes, 4)
        expected, expected_grad = xent_rs.cross_entropy_with_grad(logits, targets, reduction="none")
        shift = {2: 100, 4: 2**20, 8: 2**40}[dtype.itemsize]
        for shifted in (logits + dtype.type(shift), logits - dtype.type(shift)):
            assert (
                shifted.astype(float) - logits.astype(float) == float(shifted[0, 0]) - float(logits[0, 0])
            ).all()
            losses, grad = xent_rs.cross_entropy_with_grad(shifted, targets, reduction="none")
            # Twice the promises, for logits at most 16 apart.
            u, rounding = unit(dtype)[0], 2.0 ** (1 - FORMATS[dtype][0])
            np.testing.assert_allclose(losses, expected, rtol=2 * u, atol=2 * u * (math.log(classes) + 2))
            both = [of.astype(np.float64) for of in (grad, expected_grad)]
            rtol = 2 * u * (16 + math.log(classes) + 4) + rounding
            np.testing.assert_allclose(*both, rtol=rtol, atol=0)


@dtypes
def test_subnormal_probabilities_are_kept(level, dtype):
    """exp(-95) is subnormal in float32; flushing it to 0 would lose what the bound promises."""
    gap, wide, digits = (740, np.float64, 0.6) if dtype == np.float64 else (95, np.float32, 1e-3)
    logits = np.array([[0, -gap]], dtype)
    expected = pytest.approx(math.exp(-gap), rel=digits, abs=0)
    assert xent_rs.softmax(logits, out=np.empty((1, 2), wide))[0, 1] == expected
    assert xent_rs.cross_entropy(logits, [0], reduction="none")[0] == expected


LOWEST = np.finfo(np.float32).min
SATURATED = np.array([306.13665771484375, 263.5990295410156], np.float32)

# A call, what it returns; what overflows on the way does not show.
EXTREMES = {
    "smoothing over finfo.min": (
        lambda: xent_rs.cross_entropy(
            np.r_[np.zeros(50), np.full(50, LOWEST)].astype("f4"), 0, label_smoothing=0.1
        ),
        -0.05 * float(LOWEST),
    ),
    "soft targets across float64": (
        lambda: xent_rs.cross_entropy([1e308, -1e308], [0.5, 0.5], temperature=1e308),
        math.log1p(math.exp(-2)) + 1,
    ),
    "smoothing across float64": (
        lambda: xent_rs.cross_entropy([1.7e308, -1.7e308, 0.0], 0, label_smoothing=0.1, temperature=100),
        1.7e305,
    ),
    "a divergence across float64": (
        lambda: xent_rs.kl_divergence([0.0, 1.0, 2.0], [1e308, 0.0, -1e308]),
        math.log(1 + math.e + math.e**2),
    ),
    "a softcap above float32": (
        lambda: xent_rs.cross_entropy(np.array([3.4e38, 3e38, 0], "f4"), 0, softcap=1e300, temperature=1e38),
        0.5327984614015608,
    ),
    "a softcap near the largest float64": (
        lambda: xent_rs.cross_entropy([1.7e308, 1.5e308], 1, softcap=1e308),
        1e308 * (math.tanh(1.7) - math.tanh(1.5)),
    ),
    "a softcap near the largest float32, masked": (
        lambda: xent_rs.cross_entropy_with_grad(np.array([0, 1, -INF], "f4"), 1, softcap=1e38)[1][2],
        0.0,
    ),
    "logits at their cap": (
        lambda: xent_rs.cross_entropy(SATURATED, 0, softcap=30.0, temperature=1e-3),
        log1pexp(3e4 * (math.tanh(306.13665771484375 / 30) - math.tanh(263.5990295410156 / 30))),
    ),
    "a Hessian of enormous weight": (
        lambda: xent_rs.cross_entropy_with_grad_hess(
            np.array([0, 1, -INF], "f4"), 1, sample_weight=1e300, reduction="sum"
        )[2][2],
        0.0,
    ),
    "an enormous z-loss of no weight": (
        lambda: xent_rs.cross_entropy_with_grad(
            [[1.7e308, 1.0]], [1], z_loss=1.0, sample_weight=[0.0], reduction="sum"
        )[1].sum(),
        0.0,
    ),
}


@pytest.mark.parametrize(("call", "expected"), EXTREMES.values(), ids=EXTREMES)
def test_what_overflows_on_the_way_does_not_show(level, call, expected):
    np.testing.assert_allclose(call(), expected, rtol=1e-6)


def test_weights_of_many_rows_are_summed_precisely(random):
    weight = random.random(200_000)
    loss = xent_rs.cross_entropy(np.zeros((len(weight), 2)), np.zeros(len(weight), int), sample_weight=weight)
    assert abs(loss - math.log(2)) < 4e-16


@pytest.mark.parametrize("axis", [1, 0])
@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_two_classes_whose_losses_have_no_sum_in_their_dtype(dtype, inplace, axis, level):
    """Nor have those beside them that are no numbers; all others have the loss that they have alone."""
    largest = float(np.finfo(dtype).max)
    rows = np.random.default_rng(1).standard_normal((700, 2)).astype(dtype)
    rows[100:300] = [0.9 * largest, 0.0]
    rows[400], rows[401], rows[402] = [-np.inf, 0.0], [0.0, np.inf], [np.nan, 0.0]
    targets = np.ones(700, np.int64)
    targets[403] = -100
    expected = [
        xent_rs.cross_entropy_with_grad(row[None], target[None], reduction="none")
        for row, target in zip(rows, targets, strict=True)
    ]
    logits = rows.copy() if axis == 1 else np.ascontiguousarray(rows.T)
    out = logits if inplace else None
    losses, gradient = xent_rs.cross_entropy_with_grad(logits, targets, axis=axis, reduction="none", out=out)
    np.testing.assert_array_equal(losses, np.concatenate([loss for loss, _ in expected]))
    gradient = gradient if axis == 1 else gradient.T
    np.testing.assert_array_equal(gradient, np.concatenate([of_row for _, of_row in expected]))
    mean = xent_rs.cross_entropy(rows[:400], targets[:400])
    assert mean == (np.inf if dtype == np.float64 else pytest.approx(0.9 * largest / 2, rel=1e-6))
