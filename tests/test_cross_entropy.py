"""What cross_entropy means: reductions, targets, ignored rows, axes. Digits: `test_accuracy.py`."""

import math

import numpy as np
import pytest
import xent_rs
from ml_dtypes import bfloat16

from .bounds import assert_within, loss_bound
from .cases import DTYPES
from .oracle import Softmax

dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)
INTEGERS = [np.dtype(f"{sign}int{bits}") for sign in ("", "u") for bits in (8, 16, 32, 64)]


@pytest.fixture
def logits(random):
    return random.standard_normal((6, 11)).astype(np.float32)


@pytest.fixture
def targets(random):
    return random.integers(0, 11, 6)


@dtypes
def test_types_of_the_results(dtype, random):
    """A reduction is a Python float; row losses are float32, or float64 for float64 logits."""
    logits, targets = random.standard_normal((3, 4, 5)).astype(dtype), np.ones((3, 4), int)
    assert type(xent_rs.cross_entropy(logits, targets)) is float
    assert type(xent_rs.cross_entropy(logits, targets, reduction="sum")) is float
    losses = xent_rs.cross_entropy(logits, targets, reduction="none")
    assert type(losses) is np.ndarray
    assert losses.shape == (3, 4)
    assert losses.dtype == (np.float64 if dtype == np.float64 else np.float32)


def test_mean_is_the_default_and_divides_by_the_rows_not_ignored(logits, targets):
    targets[[0, 3]] = -100
    losses = xent_rs.cross_entropy(logits, targets, reduction="none")
    total = xent_rs.cross_entropy(logits, targets, reduction="sum")
    assert total == pytest.approx(math.fsum(losses), rel=1e-7)
    assert xent_rs.cross_entropy(logits, targets) == pytest.approx(total / 4, rel=1e-15)
    assert xent_rs.cross_entropy(logits, targets) == xent_rs.cross_entropy(logits, targets, reduction="mean")


def test_denominator_replaces_the_divisor_of_the_mean(logits, targets):
    """Token counts under gradient accumulation: the parts add up to the whole."""
    targets[1] = -100
    whole = xent_rs.cross_entropy(logits, targets)
    parts = [
        xent_rs.cross_entropy(logits[part], targets[part], denominator=5)
        for part in (slice(0, 2), slice(2, 6))
    ]
    assert sum(parts) == pytest.approx(whole, rel=1e-14)
    nothing = np.full(6, -100)
    assert xent_rs.cross_entropy(logits, nothing, denominator=5) == 0


@pytest.mark.parametrize("index", [-100, -1, 0, 7, 10, 11, 10**6])
@pytest.mark.parametrize("garbage", [0.0, np.nan, np.inf, -np.inf, 3e38])
def test_ignored_rows_cost_nothing_whatever_they_hold(index, garbage, logits, targets):
    """0 * NaN is the classic mistake; an ignored index may also be a class."""
    targets[targets == index] = 3
    kept = xent_rs.cross_entropy(logits[2:], targets[2:], reduction="none", ignore_index=index)
    logits[:2], targets[:2] = garbage, index
    losses = xent_rs.cross_entropy(logits, targets, reduction="none", ignore_index=index)
    np.testing.assert_array_equal(losses, [0, 0, *kept])
    assert xent_rs.cross_entropy(logits, targets, ignore_index=index) == pytest.approx(kept.mean(), rel=1e-6)


@dtypes
@pytest.mark.parametrize("shape", [(0, 5), (3, 0, 5), (0, 0, 5), (4, 5)])
def test_nothing_to_average(dtype, shape):
    """No rows, or every row ignored: the mean is NaN, as 0/0; the sum 0."""
    logits, targets = np.zeros(shape, dtype), np.full(shape[:-1], -100)
    assert math.isnan(xent_rs.cross_entropy(logits, targets))
    assert xent_rs.cross_entropy(logits, targets, reduction="sum") == 0
    losses = xent_rs.cross_entropy(logits, targets, reduction="none")
    assert losses.shape == targets.shape
    assert not losses.any()


@dtypes
def test_one_class_is_certain(dtype):
    for value in (0, -3.5, 6e4):
        logits = np.full((3, 1), value, dtype)
        np.testing.assert_array_equal(xent_rs.cross_entropy(logits, np.zeros(3, int), reduction="none"), 0)


@dtypes
@pytest.mark.parametrize("target", [3, np.int8(3), np.array(3), np.array(3, np.uint64)], ids=repr)
def test_single_sample(dtype, target, random):
    """No leading axes: the target is a number; `reduction="none"` gives an array without axes."""
    logits = random.standard_normal(7).astype(dtype)
    expected = xent_rs.cross_entropy(logits[None], [3])
    assert xent_rs.cross_entropy(logits, target) == expected
    assert xent_rs.cross_entropy(logits, target, reduction="sum") == expected
    loss = xent_rs.cross_entropy(logits, target, reduction="none")
    assert type(loss) is np.ndarray
    assert loss.shape == ()
    assert np.asarray(loss) == np.float32(expected) or dtype == np.float64


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
@pytest.mark.parametrize(
    "layout",
    [
        lambda targets: targets,
        lambda targets: targets.astype(targets.dtype.newbyteorder()),
        lambda targets: np.repeat(targets, 3)[::3],
        lambda targets: targets[::-1].copy()[::-1],
        lambda targets: np.frombuffer(b"x" + targets.tobytes(), targets.dtype, offset=1),
        lambda targets: targets.reshape(2, 3).T.copy().T.reshape(-1),
        lambda targets: targets.tolist(),
    ],
    ids=["contiguous", "byte-swapped", "strided", "reversed", "misaligned, read-only", "turned", "list"],
)
def test_every_integer_dtype_and_layout_of_targets(dtype, layout, logits, targets):
    expected = xent_rs.cross_entropy(logits, targets, reduction="none")
    got = xent_rs.cross_entropy(logits, layout(targets.astype(dtype)), reduction="none")
    np.testing.assert_array_equal(got, expected)


def test_targets_of_two_axes_in_any_memory_order(random):
    logits, targets = random.standard_normal((3, 4, 5)).astype(np.float32), random.integers(0, 5, (3, 4))
    expected = xent_rs.cross_entropy(logits.reshape(12, 5), targets.reshape(12), reduction="none")
    for same in (targets, np.asfortranarray(targets), targets[::-1, ::-1].copy()[::-1, ::-1]):
        got = xent_rs.cross_entropy(logits, same, reduction="none")
        np.testing.assert_array_equal(got, expected.reshape(3, 4))


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
def test_largest_index_of_every_integer_dtype(dtype):
    """uint8 targets reach 255, int8 ones 127: no sign is lost on the way."""
    classes = min(np.iinfo(dtype).max, 70_000) + 1
    logits = np.zeros((2, classes), np.float32)
    logits[:, -1] = 50
    losses = xent_rs.cross_entropy(logits, np.array([classes - 1, 0], dtype), reduction="none")
    assert losses[0] < 1e-10
    assert losses[1] == 50


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32, np.uint64])
def test_unsigned_targets_are_never_ignored_by_a_negative_index(dtype):
    """-100 as uint8 is 156, a class like any other."""
    lookalike = int(np.array(-100).astype(dtype))
    if lookalike < 70_000:
        logits = np.zeros((1, 70_000), np.float32)
        assert xent_rs.cross_entropy(logits, np.array([lookalike], dtype)) == pytest.approx(math.log(70_000))
    else:
        with pytest.raises(IndexError):
            xent_rs.cross_entropy(np.zeros((1, 10), np.float32), np.array([lookalike], dtype))


@dtypes
@pytest.mark.parametrize("axis", [0, 1, 2, -1, -2, -3])
def test_any_axis_may_hold_the_classes(dtype, axis, random):
    logits = random.standard_normal((3, 4, 5)).astype(dtype)
    last = np.moveaxis(logits, axis, -1)
    targets = random.integers(0, last.shape[-1], last.shape[:-1])
    got = xent_rs.cross_entropy(logits, targets, axis=axis, reduction="none")
    flat, flat_targets = last.reshape(-1, last.shape[-1]), targets.reshape(-1)
    softmax = Softmax(flat)
    expected, bound = softmax.losses(flat_targets), loss_bound(softmax, flat_targets, dtype)
    assert got.shape == targets.shape
    assert_within("loss", got.reshape(-1), expected, bound, dtype)


def test_temperature_divides_the_logits(logits, targets):
    for temperature in (0.5, 2, np.float32(4)):
        cooled = xent_rs.cross_entropy(logits / np.float32(temperature), targets, reduction="none")
        got = xent_rs.cross_entropy(logits, targets, temperature=temperature, reduction="none")
        np.testing.assert_allclose(got, cooled, rtol=1e-6)


def test_array_likes_are_converted(logits, targets):
    """Lists are float64 to NumPy; whatever offers `__array__` or DLPack is taken for what it holds."""

    class OffersArray:
        def __init__(self, array):
            self.array = array

        def __array__(self, dtype=None, copy=None):
            return self.array

    class OffersDlpack:
        def __init__(self, array):
            self.array = array

        def __dlpack__(self, **options):
            return self.array.__dlpack__(**options)

        def __dlpack_device__(self):
            return self.array.__dlpack_device__()

    expected = xent_rs.cross_entropy(logits, targets)
    assert xent_rs.cross_entropy(OffersArray(logits), OffersArray(targets)) == expected
    assert xent_rs.cross_entropy(OffersDlpack(logits), OffersDlpack(targets)) == expected
    as_double = xent_rs.cross_entropy(logits.astype(np.float64), targets)
    assert xent_rs.cross_entropy(logits.tolist(), targets.tolist()) == as_double
    assert xent_rs.cross_entropy(tuple(map(tuple, logits.tolist())), tuple(targets.tolist())) == as_double


def test_inputs_are_not_written(logits, targets):
    before = logits.copy(), targets.copy()
    for array in (logits, targets):
        array.flags.writeable = False
    xent_rs.cross_entropy_with_grad(logits, targets)
    xent_rs.softmax(logits)
    np.testing.assert_array_equal(logits, before[0])
    np.testing.assert_array_equal(targets, before[1])


def test_sixteen_bit_logits_compute_in_float32(random):
    """bfloat16 and float16 values are exact in float32, so both give the same losses to the last bit."""
    for dtype in (np.float16, bfloat16):
        logits = (5 * random.standard_normal((9, 333))).astype(dtype)
        targets = random.integers(0, 333, 9)
        got = xent_rs.cross_entropy(logits, targets, reduction="none")
        wide = xent_rs.cross_entropy(logits.astype(np.float32), targets, reduction="none")
        np.testing.assert_array_equal(got, wide)
