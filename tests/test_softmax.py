"""logsumexp, softmax and log_softmax: shapes, dtypes, `out=`, axes. Digits: `test_accuracy.py`."""

import itertools

import numpy as np
import pytest
import xent_rs
from ml_dtypes import bfloat16

from .bounds import assert_within, log_probability_bound, probability_bound
from .cases import DTYPES
from .oracle import Softmax

dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)
functions = pytest.mark.parametrize("function", [xent_rs.softmax, xent_rs.log_softmax])
NARROW = [np.dtype(dtype) for dtype in (np.float16, bfloat16, np.float32)]
OUTS = [*itertools.product(NARROW, NARROW), (np.dtype(np.float64), np.dtype(np.float64))]


def bits(array):
    return np.ascontiguousarray(array).tobytes()


@dtypes
@pytest.mark.parametrize("shape", [(7,), (3, 7), (2, 3, 7), (0, 7), (2, 0, 7), (3, 1)])
def test_shapes_and_dtypes(dtype, shape):
    logits = np.ones(shape, dtype)
    wide = np.float64 if dtype == np.float64 else np.float32
    for axis in range(-len(shape), len(shape)):
        if shape[axis] == 0:
            continue
        for function in (xent_rs.softmax, xent_rs.log_softmax):
            result = function(logits, axis=axis)
            assert (result.shape, result.dtype) == (shape, dtype)
        lse = xent_rs.logsumexp(logits, axis=axis)
        kept = xent_rs.logsumexp(logits, axis=axis, keepdims=True)
        assert np.shape(lse) == tuple(np.delete(shape, axis))
        assert np.shape(kept) == tuple(1 if i == axis % len(shape) else n for i, n in enumerate(shape))
        assert np.asarray(lse).dtype == np.asarray(kept).dtype == wide
        np.testing.assert_array_equal(np.squeeze(kept, axis), lse)


@pytest.mark.parametrize(("dtype", "out_dtype"), OUTS, ids=lambda dtype: dtype.name)
def test_out_of_every_allowed_dtype(level, dtype, out_dtype, random):
    for classes in (1, 2, 7, 8, 15, 16, 17, 33, 64, 100, 257, 1000):
        logits = (4 * random.standard_normal((5, classes))).astype(dtype)
        softmax = Softmax(logits)
        for function, expected, bound in (
            (xent_rs.softmax, softmax.probabilities, probability_bound(softmax, dtype)),
            (xent_rs.log_softmax, softmax.log_probabilities, log_probability_bound(softmax, dtype)),
        ):
            out = np.full_like(logits, 7, dtype=out_dtype)
            assert function(logits, out=out) is out
            assert_within(
                function.__name__, out, expected, bound, dtype, f"{classes} classes into {out_dtype}"
            )


@functions
@dtypes
def test_fresh_out_and_in_place_are_the_same_bits(level, dtype, function, random):
    for shape, axis in (
        ((3, 5), -1),
        ((3, 5), 0),
        ((2, 3, 40), 1),
        ((9, 1000), -1),
        ((40, 32000), -1),
        ((300, 70), 0),
    ):
        logits = (4 * random.standard_normal(shape)).astype(dtype)
        fresh = function(logits, axis=axis)
        out = np.full_like(logits, np.nan)
        function(logits, axis=axis, out=out)
        assert function(logits, axis=axis, out=logits) is logits
        assert bits(fresh) == bits(out) == bits(logits)


@dtypes
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_any_axis(dtype, axis, random):
    logits = (4 * random.standard_normal((3, 4, 5))).astype(dtype)
    last = np.ascontiguousarray(np.moveaxis(logits, axis, -1))
    softmax = Softmax(last.reshape(-1, last.shape[-1]))
    for function, expected, bound in (
        (xent_rs.softmax, softmax.probabilities, probability_bound(softmax, dtype)),
        (xent_rs.log_softmax, softmax.log_probabilities, log_probability_bound(softmax, dtype)),
    ):
        got = np.moveaxis(function(logits, axis=axis), axis, -1).reshape(expected.shape)
        assert_within(function.__name__, got, expected, bound, dtype, f"axis {axis}")


@dtypes
def test_agree_with_the_loss(dtype, random):
    """-log_softmax of a class is the loss of the row with that target: one definition, three functions."""
    logits = (4 * random.standard_normal((6, 300))).astype(dtype)
    out = np.empty(logits.shape, np.float64 if dtype == np.float64 else np.float32)
    xent_rs.log_softmax(logits, out=out)
    resolution = np.finfo(out.dtype).eps
    for target in (0, 17, 299):
        losses = xent_rs.cross_entropy(logits, np.full(6, target), reduction="none")
        np.testing.assert_allclose(-out[:, target], losses, rtol=4 * resolution, atol=8 * resolution)


def test_temperature_flattens(random):
    logits = random.standard_normal((5, 40)).astype(np.float32)
    for function in (xent_rs.softmax, xent_rs.log_softmax, xent_rs.logsumexp):
        expected = function(logits / np.float32(4))
        np.testing.assert_allclose(function(logits, temperature=4), expected, rtol=1e-6)


def test_a_leader_two_above_the_reference_keeps_relative_accuracy():
    """Where an ulp of the logits is 2, the pass may leave its reference that far below the largest."""
    logits = np.full(512, -np.inf)
    logits[0], logits[300] = 2.0**53 + 2, 2.0**53 + 4
    expected = -np.log1p(np.exp(-2.0))
    found = xent_rs.log_softmax(logits)[300]
    assert abs(found - expected) <= 3 * np.spacing(abs(expected))


def leading(dtype, classes, leader, others, step):
    """A row whose first logit leads, and others a step apart."""
    logits = np.full((1, classes), -60, dtype)
    logits[0, ::step] = others
    logits[0, 0] = leader
    return logits


@pytest.mark.parametrize(
    "logits",
    [
        leading(np.float32, 257, 0.004008057, -16.771397, 16),
        leading(np.float32, 256, 0.0091586765, -16.635975, 16),
        leading(np.float64, 257, 0.00670884332442062, -36.873353513131185, 8),
        leading(np.float64, 264, 0.0114085536, -36.73103, 8),
        leading(np.float64, 320, 0.001, -35.70497350200792, 1),
    ],
    ids=lambda logits: f"{logits.dtype} {logits.shape[1]}",
)
def test_a_leader_does_not_absorb_the_others(level, logits):
    """Each of these is less than half an ulp of it: added to it one after the other they would be lost."""
    logits = np.concatenate([logits, np.roll(logits, 31, axis=1)])
    softmax = Softmax(logits)
    got = xent_rs.softmax(logits)
    bound = probability_bound(softmax, logits.dtype)
    assert_within("softmax", got, softmax.probabilities, bound, logits.dtype, "a leader")
    targets = np.array([1, logits.shape[1] - 1])
    got = -xent_rs.cross_entropy(logits, targets, reduction="none")
    expected = softmax.log_probabilities[[0, 1], targets]
    bound = log_probability_bound(softmax, logits.dtype)[[0, 1], targets]
    assert_within("cross_entropy", got, expected, bound, logits.dtype, "a leader")


@pytest.mark.parametrize("mask", [-np.inf, -1e9, -1e4])
@pytest.mark.parametrize("masked", [16, 256])
def test_first_classes_may_be_masked(level, mask, masked):
    """The logit that exponentials are relative to is one of the first, if these are of use."""
    for shape, axis in (((3, 300), 1), ((2, 300, 40), 1), ((3, 1000), 1), ((40, 20), 1)):
        logits = np.linspace(-3, 3, np.prod(shape), dtype=np.float32).reshape(shape)
        logits[(slice(None), slice(0, min(masked, shape[axis] - 1)))] = mask
        rows = [
            np.moveaxis(array, axis, -1).reshape(-1, shape[axis])
            for array in (logits, xent_rs.softmax(logits, axis=axis))
        ]
        softmax = Softmax(rows[0])
        bound = probability_bound(softmax, logits.dtype)
        assert_within("softmax", rows[1], softmax.probabilities, bound, logits.dtype, f"{shape}")
        expected = np.logaddexp.reduce(rows[0].astype(np.float64), axis=-1)
        got = xent_rs.logsumexp(logits, axis=axis).ravel()
        bound = 2**-24 * (np.log(shape[axis]) + 2) + np.spacing(np.abs(expected).astype(np.float32)) / 2
        assert_within("logsumexp", got, expected, bound, logits.dtype, f"{shape}")
