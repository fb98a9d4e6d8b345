"""The loss of hidden states and the last layer, and its gradients.

Products of small integers are exact in any order of summation, so that the logits are. The gradients are then
sums of products with the gradient of the logits, G: with the bound b of that, and n products in a sum,

    |error| <= sum b |w| + n u (sum (|G| + b) |w|),     u = 2^-24 (or 2^-53).
"""

import itertools
import math
import sys
from unittest import mock

import numpy as np
import pytest
import xent_rs
from ml_dtypes import bfloat16
from xent_rs import (
    _head,
    _products,
    cross_entropy,
    cross_entropy_with_grad,
    evaluate,
    linear_cross_entropy,
    linear_cross_entropy_with_grad,
)

from .bounds import CrossEntropyBounds, assert_within, mean_bound
from .cases import DTYPES
from .growth import GROWTH
from .oracle import CrossEntropy, Softmax
from .test_floating_point_environment import ENVIRONMENTS, environment, register
from .test_head import BARE, LAYOUTS, integers, logits_of, model
from .test_memory import linux

__all__ = ["register"]  # a fixture


@pytest.fixture(params=[False, True], ids=["", "small steps"])
def small_steps(monkeypatch, request):
    """Several slices of the weights, of sums and of conversions, of few numbers; or what is usual."""
    if request.param:
        monkeypatch.setattr(_head, "_SLICE_BYTES", 100)
        monkeypatch.setattr(_head, "_ROWS", 7)
        monkeypatch.setattr(_products, "_SUMMED_BYTES", 60)
        monkeypatch.setattr(_products, "_WIDENED", 5)


def computed_in(*arrays):
    return np.dtype(np.float64 if any(array.dtype == np.float64 for array in arrays) else np.float32)


OPTIONS = {
    "plain": {},
    "smoothing and z-loss": {"label_smoothing": 0.2, "z_loss": 0.1},
    "weights": {"weight": True, "sample_weight": True, "ignore_index": 3},
    "transform": {"temperature": 0.7, "softcap": 4.0},
    "focal": {"focal_gamma": 2.0},
    "poly": {"poly_epsilon": -0.5, "weight": True},
    "probabilities": {"probabilities": True, "weight": True, "sample_weight": True},
}


def options_of(random, name, rows, classes):
    options = dict(OPTIONS[name])
    if options.pop("probabilities", False):
        targets = random.dirichlet(np.ones(classes), rows)
    else:
        targets = random.integers(classes, size=rows)
        targets[::5] = options.get("ignore_index", -100)
    for of, length in (("weight", classes), ("sample_weight", rows)):
        if of in options:
            options[of] = random.integers(0, 3, length).astype(np.float64)
    return targets, options


def assert_right(found, layer, targets, reduction, options, grad_output=1.0, denominator=None):
    """Against the oracle: `found` is the loss with the gradients."""
    hidden, weight, bias = layer
    dtype = computed_in(*(part for part in layer if part is not None))
    exact = logits_of(hidden, weight, 0 if bias is None else bias)
    softmax = Softmax(exact.astype(dtype), options.get("temperature", 1.0), options.get("softcap"))
    of_rows = {name: options[name] for name in options if name not in ("temperature", "softcap")}
    oracle = CrossEntropy(softmax, targets, **of_rows)
    bounds = CrossEntropyBounds(oracle, dtype)
    divisor = oracle.divisor if denominator is None else denominator
    loss, gradients = found
    if reduction == "none":
        assert_within("loss from hidden states", loss, oracle.losses, bounds.losses, dtype)
        factor = np.broadcast_to(grad_output, oracle.losses.shape)[:, None]
    else:
        divisor = divisor if reduction == "mean" else 1
        bound = mean_bound(bounds.losses, oracle.losses, divisor)
        assert_within("loss from hidden states", loss, oracle.losses.sum() / divisor, bound, dtype)
        factor = grad_output / divisor
    of_logits, of_bound = oracle.gradients * factor, np.abs(factor) * bounds.gradients()
    u = 2.0**-53 if dtype == np.float64 else 2.0**-24
    wide_hidden, wide_weight = (np.asarray(x).astype(of_logits.dtype) for x in (hidden, weight))

    def products(name, got, left, right, bound_left, of):
        count = left.shape[1] + 3
        bound = bound_left @ np.abs(right) + count * u * (np.abs(left) + bound_left) @ np.abs(right)
        assert got.dtype == of.dtype
        assert_within(name, got, left @ right, bound + 1e-45, dtype)

    products("gradient of states", gradients.hidden, of_logits, wide_weight, of_bound, hidden)
    products("gradient of weights", gradients.linear_weight, of_logits.T, wide_hidden, of_bound.T, weight)
    if bias is None:
        assert gradients.linear_bias is None
    else:
        ones = np.ones((len(hidden), 1), of_logits.dtype)
        found_bias = gradients.linear_bias[:, None]
        products("gradient of bias", found_bias, of_logits.T, ones, of_bound.T, bias)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_loss_and_gradients_are_within_the_bound(random, small_steps, dtype, options, reduction):
    rows, features, classes = 40, 6, 29
    hidden, weight, bias, _ = model(random, rows, features, classes, dtype)
    hidden, weight = (part / dtype.type(2) for part in (hidden, weight))
    targets, options = options_of(random, options, rows, classes)
    grad_output = random.uniform(-2, 2, rows) if reduction == "none" else -1.5
    for layer in ((hidden, weight, bias), (hidden, weight, None)):
        given = {**options, "linear_bias": layer[2], "reduction": reduction}
        found = linear_cross_entropy_with_grad(hidden, weight, targets, grad_output=grad_output, **given)
        assert_right(found, layer, targets, reduction, options, grad_output)
        loss = linear_cross_entropy(hidden, weight, targets, **given)
        assert np.array_equal(loss, found[0])


@pytest.mark.parametrize(
    ("of_hidden", "of_weight", "of_bias"),
    [
        (np.float32, bfloat16, np.float64),
        (bfloat16, np.float32, np.float16),
        (np.float64, bfloat16, bfloat16),
        (np.float16, np.float64, np.float32),
    ],
    ids=str,
)
def test_every_part_has_a_dtype_of_its_own(random, small_steps, of_hidden, of_weight, of_bias):
    hidden, weight, bias, targets = model(random)
    layer = hidden.astype(of_hidden), weight.astype(of_weight), bias.astype(of_bias)
    found = linear_cross_entropy_with_grad(*layer[:2], targets, linear_bias=layer[2])
    # The bias is converted to what the products are computed in.
    dtype = computed_in(*layer[:2])
    loss, gradients = found
    assert [gradient.dtype for gradient in gradients] == [part.dtype for part in layer]
    wide = [part.astype(dtype) for part in layer]
    expected_loss, expected = linear_cross_entropy_with_grad(*wide[:2], targets, linear_bias=wide[2])
    assert loss == pytest.approx(expected_loss, rel=1e-6)
    for gradient, of_wide in zip(gradients, expected, strict=True):
        close = 2.0**-8 if gradient.dtype.itemsize == 2 else 1e-6
        assert gradient.astype(np.float64) == pytest.approx(of_wide.astype(np.float64), rel=close, abs=1e-6)


def test_the_gradients_are_the_derivatives(random):
    """Central differences of every number, in float64."""
    hidden, weight, bias = random.standard_normal((7, 4)), random.standard_normal((5, 4)), random.random(5)
    targets, weights = random.integers(5, size=7), random.random(7)
    parts = hidden, weight, bias

    def loss(which, index, step):
        moved = [part.copy() for part in parts]
        moved[which][index] += step
        return linear_cross_entropy(
            *moved[:2], targets, linear_bias=moved[2], sample_weight=weights, label_smoothing=0.1, z_loss=0.2
        )

    _, gradients = linear_cross_entropy_with_grad(
        hidden, weight, targets, linear_bias=bias, sample_weight=weights, label_smoothing=0.1, z_loss=0.2
    )
    for which, part in enumerate(parts):
        for index in np.ndindex(part.shape):
            difference = (loss(which, index, 1e-5) - loss(which, index, -1e-5)) / 2e-5
            assert gradients[which][index] == pytest.approx(difference, rel=1e-7, abs=1e-9)


@pytest.mark.parametrize("rows", [0, 1, 2, 255, 256, 257, 600])
def test_any_number_of_rows(random, rows):
    hidden, weight, bias, targets = model(random, rows)
    targets[5::7] = -100
    found = linear_cross_entropy_with_grad(hidden, weight, targets, linear_bias=bias)
    if (targets != -100).any():
        assert_right(found, (hidden, weight, bias), targets, "mean", {})
        assert found[0] == pytest.approx(
            evaluate(hidden, targets, linear_weight=weight, linear_bias=bias).loss
        )
    else:
        assert math.isnan(found[0])
        assert all(not gradient.any() for gradient in found[1])


@pytest.mark.parametrize(
    ("shape", "axis"), [((6,), 0), ((6,), -1), ((7, 6), 1), ((6, 7), 0), ((2, 3, 6), -1), ((2, 6, 3), 1)]
)
@pytest.mark.parametrize("probabilities", [False, True])
def test_features_along_any_axis(random, shape, axis, probabilities):
    features, classes = 6, 9
    hidden, weight = integers(random, shape), integers(random, (classes, features))
    rows = [length for place, length in enumerate(shape) if place != axis % len(shape)]
    if probabilities:
        targets = np.moveaxis(random.dirichlet(np.ones(classes), rows), -1, axis)
    else:
        targets = random.integers(classes, size=rows)
    weights = random.integers(1, 3, rows)
    options = {"axis": axis, "sample_weight": weights, "reduction": "none"}
    losses, gradients = linear_cross_entropy_with_grad(hidden, weight, targets, **options)
    logits = np.moveaxis(logits_of(np.moveaxis(hidden, axis, -1), weight), -1, axis)
    expected, of_logits = cross_entropy_with_grad(logits, targets, **options)
    assert losses.shape == tuple(rows)
    assert losses == pytest.approx(expected, rel=1e-5)
    of_hidden = np.moveaxis(np.moveaxis(of_logits, axis, -1) @ weight, -1, axis)
    assert gradients.hidden == pytest.approx(of_hidden, abs=1e-5)
    assert gradients.hidden.shape == shape
    flat = [np.moveaxis(x, axis, -1).reshape(-1, x.shape[axis]) for x in (of_logits, hidden)]
    assert gradients.linear_weight == pytest.approx(flat[0].T @ flat[1], abs=1e-4)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_any_layout(random, small_steps, dtype, layout):
    hidden, weight, bias, targets = model(random, 20, 6, 29, dtype)
    expected = linear_cross_entropy_with_grad(hidden, weight, targets, linear_bias=bias)
    placed = [LAYOUTS[layout](part) for part in (hidden, weight)]
    loss, gradients = linear_cross_entropy_with_grad(*placed, targets, linear_bias=bias)
    # Of weights that are converted more rows may be taken at a time.
    assert loss == pytest.approx(expected[0], rel=1e-14)
    for found, of_plain, part in zip(gradients, expected[1], (hidden, weight, bias), strict=True):
        assert found.dtype == part.dtype  # in native byte order
        assert np.allclose(found.astype(float), of_plain.astype(float), rtol=1e-2, atol=1e-6)


def test_lists(random):
    layer = [part.tolist() for part in model(random)]
    loss, gradients = linear_cross_entropy_with_grad(*layer[:2], layer[3], linear_bias=layer[2])
    assert loss == pytest.approx(
        evaluate(layer[0], layer[3], linear_weight=layer[1], linear_bias=layer[2]).loss
    )
    assert all(gradient.dtype == np.float64 for gradient in gradients)


def test_many_classes(random):
    """Of the vocabularies in use: faults have been seen above 250,000 classes alone."""
    hidden, weight, bias, targets = model(random, 5, 4, 262_144)
    targets[:2] = 0, 262_143
    for reduction in ("mean", "none"):
        found = linear_cross_entropy_with_grad(
            hidden, weight, targets, linear_bias=bias, reduction=reduction, softcap=30.0
        )
        assert_right(found, (hidden, weight, bias), targets, reduction, {"softcap": 30.0})


def test_states_that_are_rows_of_the_weights(random):
    """Confident rows, whose gradients cancel."""
    weight = 4 * random.standard_normal((40, 64)).astype(np.float32)
    weight = np.round(weight)
    hidden, targets = np.concatenate([weight[:20], -weight[20:30]]), np.arange(30)
    found = linear_cross_entropy_with_grad(hidden, weight, targets, reduction="sum")
    assert_right(found, (hidden, weight, None), targets, "sum", {})


def test_many_products_of_16_bits_are_summed_in_float32(random):
    """A sum rounded to bfloat16 after each of 80 batches of rows would be off by several percent."""
    hidden = np.ones((20_480, 2), bfloat16)
    weight, targets = np.zeros((2, 2), bfloat16), np.zeros(20_480, int)
    _, gradients = linear_cross_entropy_with_grad(hidden, weight, targets, reduction="sum")
    assert np.array_equal(gradients.linear_weight.astype(float), [[-10_240.0] * 2, [10_240.0] * 2])


# Rows that do not count.


@pytest.mark.parametrize("weighted", [False, True])
def test_rows_that_do_not_count_are_left_out(random, weighted):
    """Whatever their hidden states hold; and nothing is multiplied for them."""
    hidden, weight, bias, targets = model(random, 700)
    left_out = random.random(700) < 0.4
    clean = np.where(left_out[:, None], 0, hidden)
    hidden[left_out] = random.choice([np.nan, np.inf, -np.inf], (left_out.sum(), 6))
    options = {"sample_weight": np.where(left_out, 0, 2.0)} if weighted else {}
    if not weighted:
        targets[left_out] = -100
    multiplied, logits_of_head = [], _head.Head.logits

    def logits(self, states):
        multiplied.append(len(states))
        return logits_of_head(self, states)

    for reduction in ("mean", "none"):
        multiplied.clear()
        with mock.patch.object(_head.Head, "logits", logits):
            found = linear_cross_entropy_with_grad(
                hidden, weight, targets, linear_bias=bias, reduction=reduction, **options
            )
        assert multiplied == [256, 700 - left_out.sum() - 256]
        assert_right(found, (clean, weight, bias), targets, reduction, options)
        assert not found[1].hidden[left_out].any()


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("cause", ["ignored", "weights", "no rows", "denominator"])
def test_nothing_counts(random, reduction, cause):
    hidden, weight, bias, targets = model(random)
    options = {"linear_bias": bias, "reduction": reduction}
    if cause == "ignored":
        targets[:] = -100
        hidden = hidden * np.nan
    elif cause == "weights":
        options["sample_weight"] = np.zeros(20)
    elif cause == "no rows":
        hidden, targets = hidden[:0], targets[:0]
    elif reduction != "mean":
        return
    else:
        options["denominator"] = 0
    out = tuple(np.full(part.shape, 7.0, np.float32) for part in (hidden, weight, bias))
    loss, gradients = linear_cross_entropy_with_grad(hidden, weight, targets, out=out, **options)
    if reduction == "mean":
        assert math.isnan(loss)
    else:
        assert np.array_equal(loss, 0.0 if reduction == "sum" else np.zeros(len(hidden)))
    assert all(not gradient.any() for gradient in gradients)


def test_what_is_not_finite_stays_in_its_row_and_its_class(random):
    hidden, weight, bias, targets = model(random, 30)
    bias[4], targets[targets == 4] = -np.inf, 5
    losses, gradients = linear_cross_entropy_with_grad(
        hidden, weight, targets, linear_bias=bias, reduction="none"
    )
    assert np.isfinite(losses).all()
    assert gradients.linear_bias[4] == 0
    assert not gradients.linear_weight[4].any()
    hidden[7, 2], hidden[9, 0] = np.nan, np.inf
    losses, gradients = linear_cross_entropy_with_grad(
        hidden, weight, targets, linear_bias=bias, reduction="none"
    )
    assert np.flatnonzero(np.isnan(losses)).tolist() == [7, 9]
    assert np.flatnonzero(np.isnan(gradients.hidden).any(axis=1)).tolist() == [7, 9]


# What the gradients are multiplied by, and where they go.


def test_a_factor_for_each_loss_goes_into_every_gradient(random):
    """Also into that of the weights, where a factor of the whole would have to be right by chance."""
    hidden, weight, bias, targets = model(random)
    factors = random.uniform(-1, 1, 20)
    _, gradients = linear_cross_entropy_with_grad(
        hidden, weight, targets, linear_bias=bias, reduction="none", grad_output=factors
    )
    _, expected = linear_cross_entropy_with_grad(
        hidden, weight, targets, linear_bias=bias, reduction="sum", sample_weight=factors
    )
    for found, of_weights in zip(gradients, expected, strict=True):
        assert found == pytest.approx(of_weights, rel=1e-5, abs=1e-6)
    scalar = linear_cross_entropy_with_grad(hidden, weight, targets, reduction="none", grad_output=2)[1]
    doubled = linear_cross_entropy_with_grad(hidden, weight, targets, reduction="sum")[1]
    assert np.array_equal(scalar.linear_weight, 2 * doubled.linear_weight)


def test_gradients_of_chunks_add_up_with_a_denominator(random):
    hidden, weight, _, targets = model(random)
    whole = linear_cross_entropy_with_grad(hidden, weight, targets)
    parts = [
        linear_cross_entropy_with_grad(hidden[some], weight, targets[some], denominator=20)
        for some in (slice(0, 6), slice(6, 20))
    ]
    assert sum(loss for loss, _ in parts) == pytest.approx(whole[0])
    assert sum(found.linear_weight for _, found in parts) == pytest.approx(
        whole[1].linear_weight, rel=1e-5, abs=1e-6
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_out(random, dtype):
    hidden, weight, bias, targets = model(random, 600, dtype=dtype)
    targets[3] = -100
    loss, expected = linear_cross_entropy_with_grad(hidden, weight, targets, linear_bias=bias)
    wide = np.float64 if dtype == np.float64 else np.float32
    for kind in (dtype, wide):
        out = tuple(np.full(part.shape, 7, kind) for part in (hidden, weight, bias))
        found, gradients = linear_cross_entropy_with_grad(hidden, weight, targets, linear_bias=bias, out=out)
        assert found == loss
        for gradient, place, of_new in zip(gradients, out, expected, strict=True):
            assert gradient is place
            assert np.array_equal(gradient.astype(dtype), of_new)
    turned = np.full(weight.shape, 7, dtype, order="F")
    out = (None, turned, None)
    _, gradients = linear_cross_entropy_with_grad(hidden, weight, targets, linear_bias=bias, out=out)
    assert gradients.linear_weight is turned
    assert np.array_equal(turned, expected.linear_weight)
    assert np.array_equal(gradients.linear_bias, expected.linear_bias)
    _, gradients = linear_cross_entropy_with_grad(
        hidden, weight, targets, linear_bias=bias, out=(hidden, None)
    )
    assert gradients.hidden is hidden
    assert np.array_equal(hidden, expected.hidden)


# Settings.


def test_a_bar_shows_the_rows_that_are_done(random, capsys):
    hidden, weight, _, targets = model(random, 600)
    targets[0] = -100
    linear_cross_entropy(hidden, weight, targets, progress=True)
    assert "599/599" in capsys.readouterr().err
    linear_cross_entropy(hidden, weight, targets)
    assert capsys.readouterr().err == ""
    with (
        mock.patch.dict(sys.modules, {"tqdm": None}),
        pytest.raises(ImportError, match=r"progress needs tqdm \(.*\): pip install xent_rs\[progress\]"),
    ):
        linear_cross_entropy(hidden, weight, targets, progress=True)


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_the_environment_of_the_caller_changes_nothing(random, register, name):
    hidden = (random.standard_normal((3, 3)) * 1e-36).astype(np.float32)
    weight = (random.standard_normal((4, 3)) * 1e36).astype(np.float32)
    bias = np.array([1e-40, 2e-41, 0, 0], np.float32)

    small_states, small_weight = hidden * np.float32(1e-3), weight * np.float32(1e-37)

    def found():
        small = linear_cross_entropy_with_grad(small_states, small_weight, [0, 1, 2], grad_output=1e-3)
        return small, linear_cross_entropy_with_grad(hidden, weight, [0, 1, 2], linear_bias=bias)

    expected = found()
    with environment(register, ENVIRONMENTS[name]):
        changed = found()
    assert repr(changed) == repr(expected)


def test_bfloat16_without_ml_dtypes(random):
    """There is no such dtype for results, which are float32."""
    hidden, weight, bias, targets = model(random, dtype=bfloat16)
    loss, expected = linear_cross_entropy_with_grad(hidden, weight, targets, linear_bias=bias)
    bare = [part.view(BARE) for part in (hidden, weight, bias)]
    found, gradients = linear_cross_entropy_with_grad(*bare[:2], targets, linear_bias=bare[2])
    assert found == loss
    for gradient, of_known in zip(gradients, expected, strict=True):
        assert gradient.dtype == np.float32
        assert np.array_equal(gradient.astype(bfloat16), of_known)


# Memory.

MEMORY = (
    GROWTH
    + """
import ml_dtypes
import numpy as np
import xent_rs

rows, features, classes = 600, 64, {classes}
hidden, weight = np.ones((rows, features), {dtype}), np.ones((classes, features), {dtype})
bias, targets = np.ones(classes, np.float32), np.zeros(rows, int)
call = xent_rs.linear_cross_entropy_with_grad
call(hidden[:256], weight, targets[:256], linear_bias=bias)  # what the matrix library keeps for itself

outputs = hidden.nbytes + weight.nbytes + bias.nbytes
# A slice of sums of the weights' gradient; of 16 bits all of them, and a slice of converted weights.
besides = 8 << 20 if weight.itemsize == 4 else (40 << 20) + weight.size * 4
allowed = 256 * classes * 4 + besides + outputs + 3 * 8 * classes
used = growth(lambda: call(hidden, weight, targets, linear_bias=bias))
assert used <= allowed + (12 << 20), f"{{used:,}} bytes, allowed {{allowed:,}}"
"""
)


@pytest.mark.sampled(1)
@linux
@pytest.mark.parametrize(
    ("dtype", "classes"), [("np.float32", 60_000), ("np.float16", 262_144), ("ml_dtypes.bfloat16", 262_144)]
)
def test_memory_is_that_of_some_rows_and_a_slice_of_weights(python, dtype, classes):
    python(MEMORY.format(dtype=dtype, classes=classes))


PROBABILITIES = (
    MEMORY.split("call =")[0].format(dtype="np.float32", classes=40_000)
    + """
targets = np.full((rows, classes), 1 / classes, np.float32)
xent_rs.linear_cross_entropy(hidden[:256], weight, targets[:256])
chunk = 256 * classes * 4
used = growth(lambda: xent_rs.linear_cross_entropy(hidden, weight, targets))
assert used <= chunk + (16 << 20), f"{used:,} bytes, of which {chunk:,} of logits"
"""
)


# Errors.

HIDDEN, WEIGHT, TARGETS = np.zeros((4, 6), np.float32), np.zeros((9, 6), np.float32), np.zeros(4, int)
BIAS, SHARED = np.zeros(9, np.float32), np.zeros(24, np.float32)
FLOATS = "expected float16, bfloat16, float32 or float64"


def shared():
    return np.lib.stride_tricks.as_strided(np.zeros(80, np.float32), (9, 6), (8, 4))


def read_only():
    array = np.zeros((9, 6), np.float32)
    array.flags.writeable = False
    return array


ERRORS = [
    (
        {"linear_weight": WEIGHT[:, 1:]},
        ValueError,
        "hidden has shape (4, 6), 6 features along axis -1; expected 5",
    ),
    (
        {"linear_weight": WEIGHT[0]},
        ValueError,
        "linear_weight has shape (6,); expected two axes, (classes, f",
    ),
    ({"linear_weight": WEIGHT.astype(int)}, TypeError, f"linear_weight has dtype int64; {FLOATS}"),
    ({"linear_bias": BIAS[1:]}, ValueError, "linear_bias has shape (8,); expected (9,), one number for each"),
    ({"hidden": HIDDEN.astype(int)}, TypeError, f"hidden has dtype int64; {FLOATS}"),
    ({"hidden": np.float32(1)}, ValueError, "hidden has shape (); expected at least one axis, the features"),
    ({"axis": 2}, ValueError, "axis is 2; expected -2 to 1 for hidden of shape (4, 6)"),
    ({"axis": True}, TypeError, "axis is True; expected an integer"),
    ({"targets": TARGETS[1:]}, ValueError, "targets have shape (3,); expected (4,)"),
    (
        {"targets": np.array([0, 1, 9, 0])},
        IndexError,
        "targets[2] is 9; expected 0 to 8, or ignore_index -100",
    ),
    ({"targets": np.ones((4, 8))}, ValueError, "targets have shape (4, 8); expected (4, 9)"),
    ({"targets": np.eye(4, 9) - 0.5}, ValueError, "targets[0, 1] is -0.5; expected"),
    ({"targets": np.full((4, 9), np.nan)}, ValueError, "targets[0, 0] is nan; expected"),
    ({"targets": TARGETS.astype(bool)}, TypeError, "targets have dtype bool; expected an integer dtype"),
    (
        {"targets": TARGETS.astype(float)},
        TypeError,
        "targets have dtype float64 and shape (4,); expected an integer",
    ),
    ({"weight": BIAS[1:]}, ValueError, "weight has shape (8,); expected (9,)"),
    ({"sample_weight": np.ones(3)}, ValueError, "sample_weight has shape (3,); expected (4,)"),
    ({"sample_weight": np.ones(4, complex)}, TypeError, "sample_weight has dtype complex128; expected real"),
    ({"temperature": 0}, ValueError, "temperature is 0.0; expected a positive finite number"),
    ({"reduction": "max"}, ValueError, "reduction is 'max'; expected"),
    ({"reduction": "sum", "denominator": 1}, ValueError, "denominator is given with reduction 'sum'"),
    ({"focal_gamma": 1, "label_smoothing": 0.1}, ValueError, "focal_gamma is 1.0 with label_smoothing 0.1"),
    (
        {"focal_gamma": 1, "targets": np.eye(4, 9)},
        ValueError,
        "focal_gamma is 1.0 with probabilities as targets",
    ),
    ({"grad_output": [1.0, 2.0]}, ValueError, "grad_output has shape (2,); expected a scalar"),
    (
        {"grad_output": [1.0, 2.0], "reduction": "none"},
        ValueError,
        "grad_output has shape (2,); expected (4,), one number for each loss, or a scalar",
    ),
    ({"grad_output": ["a"] * 4, "reduction": "none"}, TypeError, "grad_output has dtype <U1; expected real"),
    ({"out": WEIGHT}, TypeError, "out is a ndarray; expected a tuple of two or three"),
    ({"out": (None,)}, TypeError, "out is a tuple of 1; expected a tuple of two or three"),
    ({"out": (None, None, BIAS)}, ValueError, "out[2] is given without linear_bias; expected None"),
    ({"out": (None, [1])}, TypeError, "out[1] is a list; expected a numpy.ndarray or None"),
    ({"out": (None, WEIGHT.T.copy())}, ValueError, "out[1] has shape (6, 9); expected (9, 6)"),
    ({"out": (None, WEIGHT.astype(float))}, ValueError, "out[1] has dtype float64; expected float32"),
    ({"out": (None, read_only())}, ValueError, "out[1] is read-only; expected a writeable array"),
    ({"out": (None, shared())}, ValueError, "out[1] has elements that share memory"),
    (
        {"out": (None, WEIGHT)},
        ValueError,
        "out[1] overlaps linear_weight; expected memory that nothing else uses",
    ),
    (
        {"out": (HIDDEN[::-1], None)},
        ValueError,
        "out[0] overlaps hidden; expected the hidden states' array its",
    ),
    (
        {"out": (np.ma.zeros((4, 6), np.float32), None)},
        TypeError,
        "out[0] is a masked array; expected a plain",
    ),
    (
        {"out": (SHARED[:24].reshape(4, 6), None), "grad_output": SHARED[10:14], "reduction": "none"},
        ValueError,
        "out[0] overlaps grad_output; expected the hidden states' array itself or memory that nothing else",
    ),
    ({"smoothing": 1}, TypeError, "linear_cross_entropy_with_grad() got an unexpected keyword argument 'smo"),
]


@pytest.mark.parametrize(("given", "error", "text"), ERRORS, ids=range(len(ERRORS)))
def test_errors_come_before_any_work(given, error, text):
    arguments = {"hidden": HIDDEN, "linear_weight": WEIGHT, "targets": TARGETS, **given}
    layer = [arguments.pop(name) for name in ("hidden", "linear_weight", "targets")]
    untouched = HIDDEN.copy(), WEIGHT.copy()
    with mock.patch.object(_products.Products, "multiply", side_effect=AssertionError("multiplied")):
        with pytest.raises(error) as raised:
            linear_cross_entropy_with_grad(*layer, **arguments)
        assert str(raised.value).startswith(text)
        if not {"out", "grad_output"} & set(arguments):
            with pytest.raises(error):
                linear_cross_entropy(*layer, **arguments)
    assert np.array_equal(untouched[0], HIDDEN)
    assert np.array_equal(untouched[1], WEIGHT)


def test_the_same_call_has_the_same_bits(random):
    hidden = random.standard_normal((600, 40)).astype(np.float32)
    weight = random.standard_normal((500, 40)).astype(np.float32)
    targets = random.integers(500, size=600)
    results = [linear_cross_entropy_with_grad(hidden, weight, targets) for _ in range(3)]
    for loss, gradients in results[1:]:
        assert loss == results[0][0]
        assert np.array_equal(gradients.hidden, results[0][1].hidden)
        assert np.array_equal(gradients.linear_weight, results[0][1].linear_weight)


def test_logits_are_those_of_cross_entropy(random):
    hidden, weight, bias, targets = model(random, 300)
    logits = logits_of(hidden, weight, bias).astype(np.float32)
    for reduction, options in itertools.product(
        ("mean", "sum"), ({}, {"label_smoothing": 0.1, "softcap": 3.0})
    ):
        found = linear_cross_entropy(
            hidden, weight, targets, linear_bias=bias, reduction=reduction, **options
        )
        assert found == pytest.approx(
            cross_entropy(logits, targets, reduction=reduction, **options), rel=1e-14
        )


def test_it_is_in_the_package():
    assert {"linear_cross_entropy", "linear_cross_entropy_with_grad", "LinearGradients"} <= set(
        xent_rs.__all__
    )


def test_what_other_functions_take(random):
    """Targets that are an empty list, a factor that is no array yet, and weights at the end of float64."""
    hidden, weight, _, targets = model(random, dtype=np.float64)
    assert math.isnan(linear_cross_entropy(hidden[:0], weight, []))

    class Factor:
        def __array__(self, dtype=None, copy=None):
            return np.array(2.0)

    once, twice = (
        linear_cross_entropy_with_grad(hidden, weight, targets, grad_output=factor)[1]
        for factor in (1, Factor())
    )
    assert np.array_equal(2 * once.hidden, twice.hidden)
    tiny = np.full(20, 1e-310)
    found = linear_cross_entropy_with_grad(hidden, weight, targets, sample_weight=tiny)[1]
    assert found.hidden == pytest.approx(once.hidden, rel=1e-3)
    with np.errstate(all="raise"):
        linear_cross_entropy(
            hidden, weight, targets, weight=np.full(9, 1e300), sample_weight=1e300 + 0 * tiny
        )


@linux
def test_memory_of_probabilities(python):
    """They are read in place, and looked at some rows at a time."""
    python(PROBABILITIES)
