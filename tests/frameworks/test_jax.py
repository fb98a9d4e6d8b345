"""`xent_rs.jax`: JAX's transformations, optax's own tests, and XLA's interface against its header."""

import contextlib
import functools
import importlib
import inspect
import itertools
import re
import shutil
import subprocess
import sys
import threading
import unittest
from pathlib import Path

import numpy as np
import pytest
import xent_rs
from xent_rs import _xent_rs

jax = pytest.importorskip("jax", "0.5", reason="JAX is not installed")

import jax.numpy as jnp  # noqa: E402
import xent_rs.jax as xj  # noqa: E402
from jax import export, lax  # noqa: E402
from xent_rs.jax import _formulas, _kernels  # noqa: E402

VERSION = tuple(int(number) for number in jax.__version__.split(".")[:2])
DTYPES = ["float32", "bfloat16", "float16", "float64"]
CLOSE = {
    "float64": {"rtol": 1e-13, "atol": 1e-14},
    "float32": {"rtol": 1e-6, "atol": 1e-7},
    "bfloat16": {"rtol": 2**-8, "atol": 1e-6},
    "float16": {"rtol": 2**-11, "atol": 1e-6},
}
INTEGERS = ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "int4"]


@pytest.fixture(autouse=True)
def _on_the_cpu():
    with jax.default_device(jax.devices("cpu")[0]):
        yield


@pytest.fixture
def x64():
    """64-bit types, which JAX has only if it is asked."""
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


def compiled(function, *arguments):
    """Return what XLA makes of a function."""
    return jax.jit(function).lower(*arguments).compile().as_text()


def assert_close(found, expected, dtype="float32"):
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    np.testing.assert_allclose(found, expected, **CLOSE[dtype])


# Formulas in NumPy, of float64, the classes last.


def log_softmax(logits):
    z = np.asarray(logits, np.float64)
    z = z - z.max(-1, keepdims=True)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def expected_of_classes(logits, labels, cotangents):
    log_p = log_softmax(logits)
    one_hot = np.arange(log_p.shape[-1]) == np.asarray(labels)[..., None]
    return -(log_p * one_hot).sum(-1), (np.exp(log_p) - one_hot) * cotangents[..., None]


def expected_of_probabilities(logits, labels, cotangents):
    log_p, t = log_softmax(logits), np.asarray(labels, np.float64)
    losses = -(log_p * t).sum(-1)
    of_logits = (np.exp(log_p) * t.sum(-1, keepdims=True) - t) * cotangents[..., None]
    return losses, of_logits, -log_p * cotangents[..., None]


def problem(random, shape, axis, dtype):
    """Return logits, classes, probabilities, and cotangents of the rows; exact in every dtype of the test."""
    rows = np.delete(np.array(shape), axis)
    logits = jnp.asarray(random.normal(0, 3, shape), dtype)
    labels = random.integers(0, shape[axis], rows)
    probabilities = jnp.asarray(random.dirichlet(np.ones(shape[axis]), rows), dtype)
    return (
        logits,
        labels,
        jnp.moveaxis(probabilities, -1, axis),
        jnp.asarray(random.normal(0, 1, rows), dtype),
    )


SHAPES = [((10,), 0), ((7, 10), 1), ((5, 3, 300), 2), ((5, 40, 33), 1), ((3, 4, 2, 5), -3)]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("shape", "axis", "dtype", "way"),
    [(*each, "float32", jax.jit) for each in SHAPES]
    + [(*each, dtype, jax.jit) for each in SHAPES[2:4] for dtype in DTYPES[1:]]
    + [(*SHAPES[1], "float32", lambda function: function)],
)
def test_losses_and_gradients_are_those_of_the_formula(shape, axis, dtype, way, random):
    logits, labels, probabilities, cotangents = problem(random, shape, axis, dtype)
    last, scale = np.moveaxis(np.asarray(logits, np.float64), axis, -1), np.asarray(cotangents, np.float64)
    losses, gradient = expected_of_classes(last, labels, scale)
    soft, of_logits, of_labels = expected_of_probabilities(
        last, np.moveaxis(np.asarray(probabilities, np.float64), axis, -1), scale
    )
    back = lambda array: np.moveaxis(np.asarray(array, np.float64), axis, -1)  # noqa: E731

    @way
    def both(logits, probabilities, cotangents):
        hard = lambda z: xj.softmax_cross_entropy_with_integer_labels(z, jnp.asarray(labels), axis)  # noqa: E731
        of_classes, pull = jax.vjp(hard, logits)
        of_soft, pull_soft = jax.vjp(
            functools.partial(xj.softmax_cross_entropy, axis=axis), logits, probabilities
        )
        return of_classes, *pull(cotangents), of_soft, *pull_soft(cotangents)

    found = both(logits, probabilities, cotangents)
    assert {each.dtype for each in found} == {logits.dtype}
    assert_close(found[0], losses, dtype)
    assert_close(back(found[1]), gradient, dtype)
    assert_close(found[2], soft, dtype)
    assert_close(back(found[3]), of_logits, dtype)
    assert_close(back(found[4]), of_labels, dtype)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("dtype", DTYPES)
def test_binary_losses_and_gradients_are_those_of_the_formula(dtype, random):
    logits, _, labels, cotangents = problem(random, (700, 3), 1, dtype)
    cotangents = jnp.broadcast_to(cotangents[:, None], logits.shape)
    x, t, scale = (np.asarray(array, np.float64) for array in (logits, labels, cotangents))
    losses = (1 - t) * x + np.logaddexp(0, -x)
    found, pull = jax.vjp(jax.jit(xj.sigmoid_binary_cross_entropy), logits, labels)
    of_logits, of_labels = pull(cotangents)
    assert {found.dtype, of_logits.dtype, of_labels.dtype} == {logits.dtype}
    assert_close(found, losses, dtype)
    assert_close(of_logits, (1 / (1 + np.exp(-x)) - t) * scale, dtype)
    assert_close(of_labels, -x * scale, dtype)
    for same in (t > 0.5, (t > 0.5).astype(int), (t > 0.5).astype("float32")):
        found = xj.sigmoid_binary_cross_entropy(logits, same)
        assert found.dtype == logits.dtype
        assert_close(found, np.logaddexp(0, np.where(t > 0.5, -x, x)), dtype)


def sigmoid(x):
    return np.exp(-np.logaddexp(0, -x))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("alpha", "gamma"), [(None, 2.0), (0.25, 0.5), (0.9, 0.0), (None, 1)])
def test_focal_losses_and_gradients_are_those_of_the_formula(dtype, alpha, gamma, random):
    logits, _, labels, cotangents = problem(random, (40, 3), 1, dtype)
    logits = logits * 4
    labels = labels.at[:20].set(jnp.round(labels[:20]))
    cotangents = jnp.broadcast_to(cotangents[:, None], logits.shape)
    x, t, scale = (np.asarray(array, np.float64) for array in (logits, labels, cotangents))
    balance = 1 if alpha is None else alpha * t + (1 - alpha) * (1 - t)
    slope_of_balance = 0 if alpha is None else 2 * alpha - 1
    entropy = (1 - t) * np.logaddexp(0, x) + t * np.logaddexp(0, -x)
    missing = t * sigmoid(-x) + (1 - t) * sigmoid(x)
    power, of_power = missing**gamma, gamma * missing ** (gamma - 1.0)
    found, pull = jax.vjp(
        jax.jit(lambda z, t: xj.sigmoid_focal_loss(z, t, alpha=alpha, gamma=gamma)), logits, labels
    )
    of_logits, of_labels = pull(cotangents)
    assert {found.dtype, of_logits.dtype, of_labels.dtype} == {logits.dtype}
    assert_close(found, balance * power * entropy, dtype)
    slope = power * (sigmoid(x) - t) + of_power * entropy * (1 - 2 * t) * sigmoid(x) * sigmoid(-x)
    close = {"float32": 1e-5}.get(dtype, CLOSE[dtype]["rtol"] * 4)
    of_labels_slope = power * -x + of_power * entropy * (sigmoid(-x) - sigmoid(x))
    for one, other in (
        (of_logits, balance * slope * scale),
        (of_labels, (balance * of_labels_slope + slope_of_balance * power * entropy) * scale),
    ):
        np.testing.assert_allclose(np.asarray(one, np.float64), other, close, close)


@pytest.mark.parametrize("gamma", [0.3, 1.0, 2.0])
def test_the_ends_of_confidence_of_a_focal_loss(gamma):
    """What is certain, what is impossible, soft labels at infinity, and NaN; in both modes and twice."""
    inf, nan = jnp.inf, jnp.nan
    logits = jnp.array([inf, -inf, inf, -inf, nan, 40.0, -40.0, 200.0, inf])
    labels = jnp.array([1.0, 0.0, 0.0, 1.0, 1.0, 1.0, 0.0, 1.0, 0.5])
    with np.errstate(invalid="ignore"):
        losses, gradient = xent_rs.binary_cross_entropy_with_grad(
            np.asarray(logits), np.asarray(labels), focal_gamma=gamma, reduction="none"
        )
    loss = lambda z: xj.sigmoid_focal_loss(z, labels, gamma=gamma)  # noqa: E731
    found, tangent = jax.jvp(loss, (logits,), (jnp.ones_like(logits),))
    slope = jax.jit(jax.grad(lambda z: loss(z).sum()))(logits)
    np.testing.assert_allclose(found, losses, 1e-5)
    np.testing.assert_allclose(slope, gradient, 1e-5, 1e-30)
    np.testing.assert_allclose(tangent, gradient, 1e-5, 1e-30)
    second = jax.grad(lambda z: jax.grad(lambda z: loss(z).sum())(z)[jnp.array([5, 7])].sum())(logits)
    assert np.isfinite(second[jnp.array([0, 1, 5, 6, 7])]).all()


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("axis", [0, 1, -1, (0, 2), None])
@pytest.mark.parametrize("masked", [None, "rows", "classes"])
def test_poly_losses_and_gradients_are_those_of_the_formula(dtype, axis, masked, random):
    logits, _, labels, _ = problem(random, (3, 4, 5), -1, dtype)
    axes = (0, 1, 2) if axis is None else tuple(np.atleast_1d(axis).tolist())
    where = None
    x, t = np.asarray(logits, np.float64), np.asarray(labels, np.float64)
    counts = np.ones(x.shape, bool)
    if masked is not None:
        counts = random.random(x.shape) > 0.3
        counts = counts.any(axes, keepdims=True) if masked == "rows" else counts
        where = jnp.asarray(counts.squeeze(axes) if masked == "rows" else counts)
        counts = np.broadcast_to(counts, x.shape)
        logits = jnp.where(counts, logits, jnp.nan)
    e = np.where(counts, np.exp(x), 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        p = np.where(counts, e / e.sum(axes, keepdims=True), 1)
    t = np.where(counts, t, 0)
    expected = (t * (-np.log(p) - 0.7 * (1 - p))).sum(axes)
    total, of_p = t.sum(axes, keepdims=True), (t * p).sum(axes, keepdims=True)
    slope = np.where(counts, p * total - t + 0.7 * p * (t - of_p), 0)
    loss = lambda z, t: xj.poly_loss_cross_entropy(z, t, epsilon=-0.7, axis=axis, where=where)  # noqa: E731
    found, pull = jax.vjp(jax.jit(loss), logits, labels)
    of_logits, of_labels = pull(jnp.ones_like(found))
    assert {found.dtype, of_logits.dtype, of_labels.dtype} == {logits.dtype}
    close = {"float32": 1e-5}.get(dtype, CLOSE[dtype]["rtol"] * 4)
    for one, other in (
        (found, expected),
        (of_logits, slope),
        (of_labels, np.where(counts, -np.log(p) - 0.7 * (1 - p), 0)),
    ):
        np.testing.assert_allclose(np.asarray(one, np.float64), other, close, close)


def test_what_is_left_of_a_confident_row_has_its_digits():
    """In float32, where 1 - p of the label is 0 if it is computed so."""
    p = 1 / (1 + np.exp(17.0))
    logits, labels = jnp.array([[17.0, 0.0]]), jnp.array([[1.0, 0.0]])
    loss, slope = jax.value_and_grad(lambda z: xj.poly_loss_cross_entropy(z, labels, epsilon=1.0).sum())(
        logits
    )
    np.testing.assert_allclose([loss, slope[0, 1]], 2 * p, 1e-6)
    loss, slope = jax.value_and_grad(lambda z: xj.sigmoid_focal_loss(z, 1.0))(jnp.float32(17))
    np.testing.assert_allclose([loss, slope], [p**3, -3 * p**3], 1e-6)


@pytest.mark.usefixtures("x64")
def test_derivatives_of_focal_and_poly_losses_of_every_order_and_by_their_numbers(random):
    from jax.test_util import check_grads

    logits, _, labels, _ = problem(random, (4, 3), 1, "float64")
    focal = lambda z, t, alpha, gamma: xj.sigmoid_focal_loss(z, t, alpha=alpha, gamma=gamma)  # noqa: E731
    check_grads(focal, (logits, labels, 0.3, 1.5), 2, ("fwd", "rev"), rtol=1e-4)
    poly = lambda z, t, epsilon: xj.poly_loss_cross_entropy(z, t, epsilon=epsilon)  # noqa: E731
    check_grads(poly, (logits, labels, 1.5), 2, ("fwd", "rev"), rtol=1e-4)
    mapped = jax.vmap(lambda z, t, number: (focal(z, t, 0.3, number), poly(z, t, number)))
    numbers = jnp.arange(4.0)
    of_focal, of_poly = jax.jit(mapped)(logits, labels, numbers)
    assert_close(of_focal[2], focal(logits[2], labels[2], 0.3, 2.0), "float64")
    assert_close(of_poly[3], poly(logits, labels, 3.0)[3], "float64")
    with jax.numpy_dtype_promotion("strict"):
        focal(logits.astype("float32"), labels, 0.3, 2), poly(logits, labels, 1)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("dtype", INTEGERS)
def test_labels_may_have_every_integer_dtype(dtype, random):
    logits = jnp.asarray(random.normal(size=(50, 7)), "float32")
    labels = random.integers(0, 7, 50)
    found = jax.jit(xj.softmax_cross_entropy_with_integer_labels)(logits, jnp.asarray(labels).astype(dtype))
    assert_close(found, expected_of_classes(logits, labels, np.ones(50))[0])


@pytest.mark.parametrize(("dtype", "classes"), [("int8", 128), ("uint8", 256), ("int8", 300)])
def test_labels_of_8_bits_are_classes_of_more_than_8_bits_can_count(dtype, classes, random):
    """Of what JAX computes: the second derivative, and the loss over some of the classes."""
    logits = jnp.asarray(random.normal(size=(3, classes)), "float32")
    labels = jnp.array([0, 5, 127 if dtype == "int8" else min(255, classes - 1)])
    if dtype == "int8":
        labels = labels.at[1].set(-1)
    counts = jnp.asarray(random.random(logits.shape) > 0.3)

    @jax.jit
    def everything(labels):
        loss = lambda z: xj.softmax_cross_entropy_with_integer_labels(z, labels)  # noqa: E731
        some = xj.softmax_cross_entropy_with_integer_labels(logits, labels, where=counts)
        curved = jax.jvp(jax.grad(lambda z: loss(z).sum()), (logits,), (jnp.cos(logits),))[1]
        operands = logits[..., None], labels[:, None]
        formula = _formulas.softmax_gradient(*operands, jnp.ones((3, 1)))[..., 0]
        return loss(logits), some, curved, formula

    for narrow, wide in zip(everything(labels.astype(dtype)), everything(labels), strict=True):
        assert np.isfinite(wide).all()
        np.testing.assert_array_equal(narrow, wide)


@pytest.mark.usefixtures("x64")
def test_the_loss_has_the_wider_dtype_of_logits_and_probabilities():
    for of_logits, of_labels in itertools.product(DTYPES, [*DTYPES, "int32", "bool"]):
        logits, labels = jnp.ones((2, 4), of_logits), jnp.asarray(np.eye(4)[:2], of_labels)
        floats = jnp.issubdtype(labels.dtype, jnp.floating)
        expected = jnp.promote_types(of_logits, of_labels) if floats else logits.dtype
        for function in (xj.softmax_cross_entropy, jax.vmap(xj.softmax_cross_entropy)):
            assert jax.eval_shape(function, logits, labels).dtype == expected
        loss = lambda z, t: xj.softmax_cross_entropy(z, t).sum()  # noqa: E731
        gradients = jax.eval_shape(jax.grad(loss, (0, 1) if floats else (0,)), logits, labels)
        assert [each.dtype for each in gradients] == [of_logits, of_labels][: len(gradients)]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("of_logits", "of_labels", "computed"),
    [
        ("bfloat16", "float32", "float32"),
        ("float32", "float64", "float32"),
        ("float64", "float16", "float64"),
    ],
)
def test_logits_and_probabilities_of_different_dtypes(of_logits, of_labels, computed, random):
    logits, _, labels, _ = problem(random, (6, 9), 1, of_labels)
    logits = logits.astype(of_logits)
    found, pull = jax.vjp(jax.jit(xj.softmax_cross_entropy), logits, labels)
    losses, *gradients = expected_of_probabilities(logits, labels, np.ones(6))
    assert found.dtype == jnp.promote_types(of_logits, of_labels)
    assert_close(found, losses, computed)
    for gradient, array, expected in zip(
        pull(jnp.ones_like(found)), (logits, labels), gradients, strict=True
    ):
        assert gradient.dtype == array.dtype
        assert_close(gradient, expected, "bfloat16" if array.dtype.itemsize < 4 else computed)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_numbers_of_python_do_not_make_the_loss_wider(dtype):
    logits = jnp.array([[1.0, 2.0, 3.0]] * 3, dtype)
    for weak in (0.25, jnp.full((3, 3), 1 / 3), jnp.where(jnp.eye(3) == 1, 0.9, 0.05), jnp.full(3, 0.25)):
        theirs = -(weak * jax.nn.log_softmax(logits)).sum(-1)
        assert theirs.dtype == dtype
        found = xj.softmax_cross_entropy(logits, weak)
        assert found.dtype == dtype
        np.testing.assert_allclose(np.asarray(found, float), np.asarray(theirs, float), rtol=2**-6)
        assert xj.sigmoid_binary_cross_entropy(logits, weak).dtype == dtype


def test_logits_and_labels_broadcast():
    logits, labels = jnp.arange(24.0).reshape(2, 3, 4) % 5, jnp.array([0.1, 0.2, 0.3, 0.4])
    expected = expected_of_probabilities(logits, np.broadcast_to(labels, (2, 3, 4)), np.ones((2, 3)))
    assert_close(xj.softmax_cross_entropy(logits, labels), expected[0])
    of_labels = jax.grad(lambda t: xj.softmax_cross_entropy(logits, t).sum())(labels)
    assert_close(of_labels, expected[2].sum((0, 1)))
    many = jnp.broadcast_to(labels, (5, 4))
    assert xj.softmax_cross_entropy(logits[0, 0], many).shape == (5,)
    assert xj.sigmoid_binary_cross_entropy(logits, 1.0).shape == logits.shape
    rows = xj.softmax_cross_entropy_with_integer_labels(logits, jnp.array([[1], [2]]))
    assert_close(rows[1], expected_of_classes(logits[1], np.full(3, 2), np.ones(3))[0])
    assert xj.softmax_cross_entropy_with_integer_labels(logits[:1], jnp.zeros((6, 3), int)).shape == (6, 3)


@pytest.mark.parametrize(
    ("axis", "shape"),
    [
        ((1, 2), (1, 3, 4, 1)),
        ((1, 2), (2, 1, 1, 5)),
        (1, (2, 1, 4, 1)),
        (3, (4, 5)),
        ((0, 3), (1, 3, 4, 5)),
        (0, (1,)),
        (None, (5,)),
    ],
)
def test_labels_that_broadcast_are_as_if_they_had_the_shape_of_the_logits(axis, shape, random):
    logits = jnp.asarray(random.normal(size=(2, 3, 4, 5)), "float32")
    labels = jnp.asarray(random.random(shape), "float32")

    @functools.partial(jax.jit, static_argnums=0)
    def everything(broadcast, labels):
        def loss(z, t):
            losses = xj.softmax_cross_entropy(z, jnp.broadcast_to(t, z.shape) if broadcast else t, axis)
            binary = xj.sigmoid_binary_cross_entropy(z, jnp.broadcast_to(t, z.shape) if broadcast else t)
            return jnp.sin(losses).sum() + jnp.cos(binary).sum(), losses

        tangents = jnp.cos(logits), jnp.sin(labels)
        forward = jax.jvp(lambda z, t: loss(z, t)[1], (logits, labels), tangents)
        return forward, jax.grad(loss, (0, 1), has_aux=True)(logits, labels)[0]

    found, expected = (jax.tree.leaves(everything(broadcast, labels)) for broadcast in (False, True))
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_labels_that_broadcast_are_read_where_they_lie():
    logits, few = jnp.zeros((500, 1000)), jnp.full(1000, 1e-3)
    soft, binary = xj.softmax_cross_entropy, xj.sigmoid_binary_cross_entropy
    of_soft = lambda z: soft(z, few).sum()  # noqa: E731
    for function in (of_soft, jax.grad(of_soft), lambda z: binary(z, 1.0), lambda z: binary(z, few)):
        memory = jax.jit(function).lower(logits).compile().memory_analysis()
        assert memory.temp_size_in_bytes < logits.nbytes / 10


# What is no target, and what does not count.


@pytest.mark.parametrize("wrap", [lambda function: function, jax.jit, lambda function: jax.vmap(function)])
def test_a_label_that_is_no_class_is_nan_in_its_row_alone(wrap):
    logits = jnp.arange(32.0).reshape(8, 4) % 7
    labels = jnp.array([0, 3, 4, -1, -4, -5, 2**31 - 1, -(2**31)])
    bad = np.array([False, False, True, False, False, True, True, True])
    losses = wrap(xj.softmax_cross_entropy_with_integer_labels)(logits, labels)
    np.testing.assert_array_equal(np.isnan(losses), bad)
    assert_close(losses[~bad], expected_of_classes(logits[~bad], [0, 3, 3, 0], np.ones(4))[0])

    def gradient(weights):
        def loss(logits):
            losses = wrap(xj.softmax_cross_entropy_with_integer_labels)(logits, labels)
            return jnp.where(weights != 0, losses * weights, 0).sum()

        return jax.grad(loss)(logits)

    np.testing.assert_array_equal(np.isnan(gradient(jnp.ones(8))), np.repeat(bad[:, None], 4, 1))
    # Whoever leaves such rows out gets a gradient without NaN.
    kept = gradient(jnp.asarray(~bad, float))
    assert_close(kept[~bad], expected_of_classes(logits[~bad], [0, 3, 3, 0], np.ones(4))[1])
    np.testing.assert_array_equal(kept[bad], 0)


def test_labels_below_0_count_and_nan_is_nan_in_its_row_alone(random):
    logits, _, labels, _ = problem(random, (6, 5), 1, "float32")
    labels = labels.at[1, 2].set(-0.25).at[4, 0].set(jnp.nan)
    bad = np.array([False, False, False, False, True, False])
    losses = xj.softmax_cross_entropy(logits, labels)
    np.testing.assert_array_equal(np.isnan(losses), bad)
    assert_close(losses[~bad], expected_of_probabilities(logits[~bad], labels[~bad], np.ones(5))[0])
    gradient = jax.grad(lambda z: xj.softmax_cross_entropy(z, labels).sum())(logits)
    np.testing.assert_array_equal(np.isnan(gradient), np.repeat(bad[:, None], 5, 1))
    assert_close(gradient[~bad], expected_of_probabilities(logits[~bad], labels[~bad], np.ones(5))[1])
    some = jax.grad(lambda z: jnp.where(bad, 0, xj.softmax_cross_entropy(z, labels)).sum())(logits)
    assert_close(some, np.where(bad[:, None], 0, np.nan_to_num(gradient)))


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_labels_below_0_in_rows_of_several_blocks_are_rounded_once(dtype, random):
    logits, _, labels, cotangents = problem(random, (300, 1000), 1, dtype)
    # The parts above and below 0 are each much larger than the loss.
    labels = labels + jnp.asarray(np.where(random.random((300, 1)) > 0.2, [0.5, -0.5] * 500, 0), dtype)
    found, pull = jax.vjp(jax.jit(xj.softmax_cross_entropy), logits, labels)
    losses, of_logits, _ = expected_of_probabilities(logits, labels, np.asarray(cotangents, float))
    assert_close(found, losses, dtype)
    assert_close(pull(cotangents)[0], of_logits, dtype)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not say what is used")
def test_a_label_below_0_takes_no_memory_for_rows_without_one(python):
    python(
        """if True:
        import re, jax, jax.numpy as jnp, xent_rs.jax
        loss = jax.jit(lambda z, t: xent_rs.jax.softmax_cross_entropy(z, t).sum())
        z, t = jnp.zeros((4000, 2000), jnp.bfloat16), jnp.full((4000, 2000), 2**-11, jnp.bfloat16)
        one = t.at[3, 5].set(-1)
        used = lambda: 1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])
        loss(z, t).block_until_ready()
        before = used()
        loss(z, one).block_until_ready()
        assert used() - before < z.nbytes, (used() - before, z.nbytes)
        """
    )


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere RLIMIT_AS limits nothing")
@pytest.mark.parametrize("way", ["loss", "gradient"])
def test_memory_that_is_refused_is_an_error_and_the_next_call_is_as_ever(way, python):
    """The copies of what is one number a row are made here; XLA has its own memory by then."""
    python(
        f"""if True:
        import re, resource, jax, jax.numpy as jnp, xent_rs.jax
        rows = 2**22
        losses = xent_rs.jax.softmax_cross_entropy_with_integer_labels
        loss = lambda z, y, counts: losses(z, y, where=counts).sum()
        function = jax.jit(loss if {way!r} == "loss" else jax.grad(loss))
        arguments = jnp.zeros((rows, 2)), jnp.zeros(rows, int), jnp.ones(rows, bool)
        expected, found = function(*arguments).block_until_ready(), set()
        for room in range(0, 2**28, 2**23):
            size = re.search(r"VmSize:\\s+(\\d+) kB", open("/proc/self/status").read())[1]
            resource.setrlimit(resource.RLIMIT_AS, (1024 * int(size) + room, -1))
            try:
                function(*arguments).block_until_ready()
                break
            except Exception as error:
                found.add(str(error))
            finally:
                resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
        refused = {{text for text in found if "xent_rs" in text}}
        text = f"RESOURCE_EXHAUSTED: xent_rs: no memory for a copy of {{rows}} "
        # Which copy is refused first depends on where the allocator has room.
        assert refused and refused <= {{text + "targets", text + "numbers of where"}}, found
        assert (function(*arguments) == expected).all()
        """
    )


@pytest.mark.parametrize("transform", [lambda function: function, jax.jit, jax.vmap])
def test_a_row_that_does_not_count_is_0_beside_labels_below_0(transform):
    logits, labels = jnp.array([[1.0, 2], [0, 1]]), jnp.array([[jnp.nan, 1], [-0.5, 1.5]])
    where = jnp.array([False, True])

    def loss(logits, labels, where):
        return xj.softmax_cross_entropy(logits, labels, where=where)

    assert_close(transform(loss)(logits, labels, where), [0, -0.18673831])
    gradient = jax.grad(lambda z: transform(loss)(z, labels, where).mean())(logits)
    assert_close(gradient, [[0, 0], [0.3844707, -0.3844707]])


@pytest.mark.parametrize("name", ["classes", "probabilities"])
def test_rows_that_do_not_count_have_loss_and_gradient_0_whatever_they_hold(name, random):
    logits, labels, soft, _ = problem(random, (6, 3, 5), 2, "float32")
    logits = logits.at[1].set(jnp.nan).at[2].set(-jnp.inf)
    labels, soft = jnp.asarray(labels).at[3].set(99), soft.at[3].set(jnp.nan)
    where = np.ones((6, 3), bool)
    where[1:4] = False
    function = {
        "classes": functools.partial(xj.softmax_cross_entropy_with_integer_labels, labels=labels),
        "probabilities": functools.partial(xj.softmax_cross_entropy, labels=soft),
    }[name]
    loss = lambda logits, mask: function(logits, where=mask).sum()  # noqa: E731

    @jax.jit
    def everything(logits, mask):
        return function(logits, where=mask), jax.grad(loss)(logits, mask), jax.hessian(loss)(logits, mask)

    expected = None
    for mask in (where, where[..., None], where.astype(int)):
        losses, gradient, curved = everything(logits, mask)
        assert all(np.isfinite(each).all() for each in (losses, gradient, curved))
        np.testing.assert_array_equal(losses[1:4], 0)
        np.testing.assert_array_equal(gradient[1:4], 0)
        assert np.any(np.asarray(gradient[0]) != 0)
        expected = losses if expected is None else expected
        np.testing.assert_array_equal(losses, expected)
    good = np.nan_to_num(np.asarray(logits), nan=0, neginf=0)
    if name == "classes":
        assert_close(expected, np.where(where, expected_of_classes(good, labels, np.ones((6, 3)))[0], 0))
        return
    assert_close(expected, np.where(where, expected_of_probabilities(good, soft, np.ones((6, 3)))[0], 0))
    of_labels = jax.grad(lambda t: xj.softmax_cross_entropy(logits, t, where=where).sum())(soft)
    assert np.isfinite(of_labels).all()
    nothing = xj.softmax_cross_entropy(logits, soft, where=jnp.zeros((6, 3), bool))
    np.testing.assert_array_equal(nothing, np.zeros((6, 3)))
    assert xj.softmax_cross_entropy(logits[0], soft[0], where=True).shape == (3,)


@pytest.mark.parametrize("axis", [1, (0, 1)])
def test_classes_that_do_not_count_are_as_if_they_were_not_there(axis, random):
    logits, _, labels, _ = problem(random, (4, 6), 1, "float32")
    counts = np.ones((4, 6), bool)
    counts[:, [1, 4]] = False
    logits = logits.at[:, 1].set(jnp.nan)
    keep = lambda array: np.asarray(array)[:, [0, 2, 3, 5]]  # noqa: E731
    soft = functools.partial(xj.softmax_cross_entropy, axis=axis)

    @jax.jit
    def everything(z, t, where=None):
        loss = lambda z, t: soft(z, t, where=where)  # noqa: E731
        return loss(z, t), *jax.grad(lambda z, t: loss(z, t).sum(), (0, 1))(z, t)

    losses, *of_both = everything(logits, labels, counts)
    expected, *of_kept = everything(keep(logits), keep(labels))
    assert_close(losses, expected)
    for found, part in zip(of_both, of_kept, strict=True):
        assert_close(keep(found), part)
        np.testing.assert_array_equal(np.asarray(found)[:, [1, 4]], 0)
    classes = jnp.array([0, 2, 3, 5]) if axis == 1 else jnp.array(8)
    places = {0: 0, 2: 1, 3: 2, 5: 3, 8: 5}
    small = np.array([places[each] for each in np.atleast_1d(classes).tolist()]).reshape(classes.shape)
    hard = functools.partial(xj.softmax_cross_entropy_with_integer_labels, axis=axis)
    assert_close(hard(logits, classes, where=counts), hard(keep(logits), small))
    if axis == 1:
        none = counts & (np.arange(4) != 2)[:, None]
        assert hard(logits, classes, where=none)[2] == soft(logits, labels, where=none)[2] == 0
        gradient = jax.jit(jax.grad(lambda z: hard(z, classes, where=none).sum()))(logits)
        assert np.isfinite(gradient).all()
        np.testing.assert_array_equal(gradient[2], 0)


def test_with_some_classes_the_rules_of_labels_and_infinities_are_the_same():
    logits = jnp.array([[1.0, 2, 3], [0, 1, -1], [jnp.inf, 1, 0], [jnp.inf, 0, 1]])
    labels = jnp.array([0, 7, 1, 1])
    counts = jnp.ones((4, 3), bool).at[3, 0].set(False)

    @jax.jit
    def both(scales):
        def loss(z):
            losses = xj.softmax_cross_entropy_with_integer_labels(z, labels, where=counts)
            return jnp.where(scales != 0, losses * scales, 0).sum(), losses

        return jax.value_and_grad(loss, has_aux=True)(logits)

    (_, losses), gradient = both(jnp.ones(4))
    np.testing.assert_array_equal(np.isnan(losses), [False, True, True, False])
    assert_close(losses[3], np.log1p(np.e))
    np.testing.assert_array_equal(np.isnan(gradient).all(1), [False, True, True, False])
    # The label's class need not count, and then the loss is still less by its logit.
    alone = xj.softmax_cross_entropy_with_integer_labels(logits[0], 0, where=jnp.array([False, True, True]))
    assert_close(alone, np.log(np.exp(2) + np.exp(3)) - 1)
    _, gradient = both(jnp.array([1.0, 0, 1, 1]))
    np.testing.assert_array_equal(gradient[1], 0)


def test_rows_of_infinities_and_nan_are_what_the_formula_says():
    rows = [[np.inf, 0, 0], [-np.inf, 0, 0], [-np.inf, -np.inf, -np.inf], [np.nan, 0, 0], [0, 0, -np.inf]]
    logits, labels = jnp.array(rows), jnp.array([0, 1, 2, 0, 2])
    expected = [np.nan, np.log(2), np.nan, np.nan, np.inf]
    assert_close(xj.softmax_cross_entropy_with_integer_labels(logits, labels), expected)
    assert_close(xj.softmax_cross_entropy(logits, jax.nn.one_hot(labels, 3)), expected)
    assert_close(_formulas.softmax_loss(logits[..., None], labels[:, None])[:, 0], expected)
    ends = jnp.array([np.inf, -np.inf, np.inf, -np.inf, np.nan])
    labels = jnp.array([1.0, 0.0, 0.0, 1.0, 1.0])
    expected = [0, 0, np.inf, np.inf, np.nan]
    assert_close(xj.sigmoid_binary_cross_entropy(ends, labels), expected)
    assert_close(_formulas.binary_loss(ends, labels), expected)


def test_nothing_has_losses_of_its_shape():
    rows, classes = jnp.zeros((0, 3)), jnp.zeros((3, 0))
    none = jnp.zeros(0, int)
    hard = xj.softmax_cross_entropy_with_integer_labels
    for transform in (lambda function: function, jax.jit, jax.vmap):
        assert transform(xj.sigmoid_binary_cross_entropy)(rows, rows).shape == (0, 3)
        if transform is not jax.vmap or VERSION > (0, 5):
            assert (
                transform(hard)(rows, none).shape
                == transform(xj.softmax_cross_entropy)(rows, rows).shape
                == (0,)
            )
    assert jax.grad(lambda z: hard(z, none).sum())(rows).shape == (0, 3)
    np.testing.assert_array_equal(xj.softmax_cross_entropy(classes, classes), np.zeros(3))
    assert np.isnan(hard(classes, jnp.zeros(3, int))).all()
    np.testing.assert_array_equal(hard(classes, jnp.zeros(3, int), where=jnp.zeros(3, bool)), np.zeros(3))
    assert jax.grad(lambda z: xj.softmax_cross_entropy(z, z).sum())(classes).shape == (3, 0)
    assert xj.softmax_cross_entropy(jnp.ones((2, 3)), jnp.ones((2, 3)), axis=()).shape == (2, 3)
    assert_close(xj.softmax_cross_entropy(jnp.array(3.0), 1.0, axis=None), 0)


def refused(call, text, error=ValueError):
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value) == text


def test_what_does_not_go_together_is_said_before_any_work():
    z = jnp.zeros((4, 10))
    hard, soft, binary = (
        xj.softmax_cross_entropy_with_integer_labels,
        xj.softmax_cross_entropy,
        xj.sigmoid_binary_cross_entropy,
    )
    one = jnp.zeros(4, int)
    for call, text in [
        (lambda: hard(one, one), "logits have dtype int32; expected a floating dtype"),
        (lambda: binary(1, 1.0), "logits have dtype int32; expected a floating dtype"),
        (lambda: hard(z, one.astype(float)), "labels have dtype float32; expected integers"),
        (lambda: soft(z, z + 1j), "labels have dtype complex64; expected real numbers"),
        (lambda: soft(z, jax.random.key(0)), "labels have dtype key<fry>; expected real numbers"),
        (lambda: binary(z, jax.random.key(0)), "labels have dtype key<fry>; expected real numbers"),
        (lambda: soft(z, z, where=jax.random.key(0)), "where has dtype key<fry>; expected bool"),
        (lambda: binary(z, z + 1j), "labels have dtype complex64; expected real numbers"),
        (lambda: hard(z, one, axis=2), "axis is 2; expected -2 to 1 for logits of 2 dimensions"),
        (lambda: hard(z, one, axis=(0, -2)), "axis is (0, -2); expected every axis once"),
        (lambda: hard(z, one, axis=None), "axis is None; expected an integer or a tuple of integers"),
        (lambda: soft(1.0, 1.0), "axis is -1; expected none for logits of 0 dimensions"),
        (
            lambda: hard(z, z.astype(int)),
            "labels have shape (4, 10); expected (4,), that of logits (4, 10) without axis -1",
        ),
        (
            lambda: hard(z, jnp.zeros(5, int)),
            "labels have shape (5,); expected (4,), that of logits (4, 10) without axis -1",
        ),
        (
            lambda: soft(z, jnp.zeros((4, 9))),
            "labels have shape (4, 9); expected one that broadcasts with (4, 10), that of logits",
        ),
        (
            lambda: binary(z, jnp.zeros(4)),
            "labels have shape (4,); expected one that broadcasts with (4, 10), that of logits",
        ),
        (
            lambda: soft(z, z, where=jnp.ones(3, bool)),
            "where has shape (3,); expected (4,), one for each row, or (4, 10), that of logits",
        ),
    ]:
        refused(call, text)
        refused(lambda call=call: jax.jit(call)(), text)
    for axis in ([0, 1], 1.0, (0, 1.0), "last"):
        for call in (lambda axis=axis: hard(z, one, axis), lambda axis=axis: soft(z, z, axis)):
            refused(call, f"axis is {axis!r}; expected an integer or a tuple of integers", TypeError)


# Transformations.


def functions():
    """Return each loss as a function of logits alone, of shape (4, 5, 6), and of both."""
    random = np.random.default_rng(5)
    labels = jnp.asarray(random.integers(0, 5, (4, 6)))
    soft = jnp.asarray(random.dirichlet(np.ones(5), (4, 6)), "float32").transpose(0, 2, 1)
    return {
        "classes": lambda z: xj.softmax_cross_entropy_with_integer_labels(z, labels, 1),
        "probabilities": lambda z: xj.softmax_cross_entropy(z, soft, 1),
        "labels": lambda z: xj.softmax_cross_entropy(z, jax.nn.softmax(z * 2, 1), 1),
        "masked": lambda z: xj.softmax_cross_entropy(z, soft, 1, where=soft > 0.05),
        "rows": lambda z: xj.softmax_cross_entropy_with_integer_labels(z, labels, 1, where=labels > 1),
        "masked classes": lambda z: xj.softmax_cross_entropy_with_integer_labels(
            z, labels, 1, where=soft > 0.05
        ),
        "binary": lambda z: xj.sigmoid_binary_cross_entropy(z, soft),
        "binary labels": lambda z: xj.sigmoid_binary_cross_entropy(z, jax.nn.sigmoid(z * 2)),
    }


every_loss = pytest.mark.parametrize("name", functions())


@pytest.fixture
def logits():
    return jnp.asarray(np.random.default_rng(6).normal(size=(4, 5, 6)), "float32")


@every_loss
@pytest.mark.usefixtures("x64")
def test_derivatives_in_both_modes_and_of_the_second_order_are_differences(name, logits):
    scalar = lambda z: (functions()[name](z) ** 2).sum()  # noqa: E731
    direction, step = jnp.sin(jnp.arange(120.0)).reshape(4, 5, 6), 1e-6
    wide, gradient = logits.astype("float64"), jax.grad(scalar)

    @jax.jit
    def first(z):
        return jax.value_and_grad(scalar)(z)

    @jax.jit
    def second(z):
        along = lambda z: jax.jvp(scalar, (z,), (direction,))[1]  # noqa: E731
        return (
            along(z),
            [
                jax.jvp(gradient, (z,), (direction,))[1],
                jax.grad(lambda z: (gradient(z) * direction).sum())(z),
                jax.grad(along)(z),
                jnp.tensordot(jax.hessian(scalar)(z), direction, 3),
            ],
            jax.jvp(along, (z,), (direction,))[1],
        )

    (more, more_slope), (less, less_slope) = first(wide + step * direction), first(wide - step * direction)
    slope, curved, bent = second(wide)
    np.testing.assert_allclose(slope, (more - less) / (2 * step), rtol=1e-6)
    np.testing.assert_allclose(slope, (first(wide)[1] * direction).sum(), rtol=1e-10)
    expected = (more_slope - less_slope) / (2 * step)
    for found in curved:
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(bent, (curved[0] * direction).sum(), rtol=1e-10)


def everything(function):
    """Return the loss as a function of logits, its gradient and a derivative in forward mode, together."""
    return lambda z: (
        function(z),
        jax.grad(lambda z: jnp.sin(function(z)).sum())(z),
        jax.jvp(function, (z,), (jnp.cos(z),))[1],
    )


@functools.cache
def untransformed(name):
    logits = jnp.asarray(np.random.default_rng(6).normal(size=(4, 5, 6)), "float32")
    return jax.jit(everything(functions()[name]))(logits)


TRANSFORMATIONS = {
    "eager": lambda function: function,
    "checkpoint": jax.checkpoint,
    "cond": lambda function: lambda z: lax.cond(z[0, 0, 0] > 9, lambda z: function(z + 1), function, z),
    "vmap": lambda function: lambda z: jax.vmap(function)(jnp.stack([z, z + 1]))[0],
    "nested vmap": lambda function: (
        lambda z: jax.vmap(jax.vmap(function, 3, 1))(jnp.stack([z, z + 1], 3)[None])[0, :, 0]
    ),
}


@pytest.mark.parametrize(
    ("name", "transformation"),
    [(name, "nested vmap") for name in functions()]
    + [
        (name, each)
        for name in ("classes", "masked classes", "binary labels")
        for each in ("eager", "vmap", "checkpoint", "cond")
    ],
)
def test_transformations_change_nothing(name, transformation, logits):
    changed = everything(TRANSFORMATIONS[transformation](functions()[name]))
    found = (changed if transformation == "eager" else jax.jit(changed))(logits)
    for one, other, tolerance in zip(found, untransformed(name), (1e-6, 1e-6, 1e-5), strict=True):
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance / 10)


@pytest.mark.parametrize(
    ("configuration", "dtype"),
    [
        (functools.partial(jax.numpy_dtype_promotion, "strict"), "bfloat16"),
        (functools.partial(jax.numpy_rank_promotion, "raise"), "float32"),
    ],
    ids=["dtypes", "ranks"],
)
def test_nothing_is_promoted_where_jax_is_told_to_refuse_that(configuration, dtype):
    """By its arguments' own types alone, and so it is known from the traced program."""
    logits = jax.ShapeDtypeStruct((4, 5), dtype)
    labels, rows, classes = jnp.array([0, 4, 2, 1], "int8"), jnp.array([True] * 4), jnp.eye(4, 5) == 0
    soft, hard = xj.softmax_cross_entropy, xj.softmax_cross_entropy_with_integer_labels
    binary = xj.sigmoid_binary_cross_entropy

    def loss(z, t):
        total = soft(z, t).sum() + soft(z, t, where=rows).sum() + soft(z, t, where=classes).sum()
        total += hard(z, labels).sum() + hard(z, labels, where=rows).sum()
        return total + hard(z, labels, where=classes).sum() + binary(z, t).sum() + binary(z, t > 0).sum()

    with configuration():
        gradients = jax.eval_shape(jax.grad(loss, (0, 1)), logits, logits)
        assert [each.dtype for each in gradients] == [dtype] * 2
        jax.eval_shape(jax.hessian(loss, (0, 1)), logits, logits)
        over = lambda z: jax.vmap(hard, (None, 0))(z, jnp.zeros((3, 4), int)).sum()  # noqa: E731
        jax.eval_shape(jax.grad(over), logits)
        weak = lambda z: soft(z, jnp.full((4, 5), 0.2)).sum() + binary(z, 1.0).sum()  # noqa: E731
        jax.eval_shape(jax.hessian(weak), logits)


def test_a_vmap_that_does_not_map_everything(random):
    logits, labels, soft, _ = problem(random, (3, 4, 5), 2, "float32")
    hard, of_soft = xj.softmax_cross_entropy_with_integer_labels, xj.softmax_cross_entropy
    each_with_each = jnp.stack([hard(z, y) for z in logits for y in labels]).reshape(3, 3, 4)
    assert_close(jax.jit(jax.vmap(jax.vmap(hard, (None, 0)), (0, None)))(logits, labels), each_with_each)
    each_with_each = jnp.stack([of_soft(z, t) for z in logits for t in soft]).reshape(3, 3, 4)
    assert_close(jax.jit(jax.vmap(jax.vmap(of_soft, (None, 0)), (0, None)))(logits, soft), each_with_each)
    # Logits are mapped by neither, and each gets the sum of their cotangents.
    for function, targets in ((hard, jnp.asarray(labels)), (of_soft, soft)):

        @jax.jit
        def mapped(z, tangents, function=function, targets=targets):
            summed = lambda z: jax.vmap(function, (None, 0))(z, targets)  # noqa: E731
            along = lambda v: jax.jvp(summed, (z,), (v,))[1]  # noqa: E731
            gradients = jax.vmap(jax.grad(lambda z, y: function(z, y).sum()), (None, 0))(z, targets)
            back = jax.vmap(jax.vjp(summed, z)[1])(jnp.ones((2, 3, 4)))[0]
            together = jax.grad(lambda z: summed(z).sum())(z)
            return together, gradients, back, along(tangents[1]), jax.vmap(along)(tangents)

        one_by_one = jnp.stack(
            [jax.grad(lambda z, f=function, t=t: f(z, t).sum())(logits[0]) for t in targets]
        )
        gradient, gradients, back, tangent, tangents = mapped(logits[0], logits)
        assert_close(gradient, one_by_one.sum(0))
        assert_close(gradients, one_by_one)
        assert_close(back[1], one_by_one.sum(0))
        assert_close(tangents[1], tangent)
    mapped = jax.vmap(xj.sigmoid_binary_cross_entropy, (None, 0))(logits[0], soft)
    assert_close(mapped[2], xj.sigmoid_binary_cross_entropy(logits[0], soft[2]))


def test_a_sharded_batch_is_worked_on_where_it_lies(python):
    """Two devices, each with its rows; nothing is gathered."""
    python(
        """if True:
        import os
        os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
        import jax, jax.numpy as jnp, numpy as np
        from jax import lax
        from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
        import xent_rs.jax
        old = not hasattr(jax, "shard_map")
        if old:
            from jax.experimental.shard_map import shard_map
        else:
            from jax import shard_map
        mesh = Mesh(np.array(jax.devices("cpu")), ("rows",))
        z = jax.random.normal(jax.random.key(0), (8, 10))
        y = jax.random.randint(jax.random.key(1), (8,), 0, 10)
        hard = xent_rs.jax.softmax_cross_entropy_with_integer_labels
        expected = jax.value_and_grad(lambda z: hard(z, y).mean())(z)
        placed = [jax.device_put(x, NamedSharding(mesh, P("rows"))) for x in (z, y)]
        checks = [{"check_rep": False}] if old else [{}, {"check_vma": False}]
        for check in checks:
            rows = {"mesh": mesh, "in_specs": (P("rows"), P("rows")), **check}
            mean = shard_map(lambda z, y: lax.pmean(hard(z, y).mean(), "rows"), out_specs=P(), **rows)
            found = jax.jit(jax.value_and_grad(mean))(*placed)
            inside = shard_map(jax.grad(lambda z, y: hard(z, y).sum() / 8), out_specs=P("rows"), **rows)
            assert "all-gather" not in jax.jit(inside).lower(*placed).compile().as_text()
            for one, other in zip((*found, jax.jit(inside)(*placed)), (*expected, expected[1])):
                np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7)
        if not old:
            # What varies may be the labels alone, or what counts.
            few, soft = z[:4], jax.nn.softmax(z[::-1])
            where = y > 4
            for function, local, rest in [
                (hard, hard, y),
                (xent_rs.jax.softmax_cross_entropy, xent_rs.jax.softmax_cross_entropy, soft),
                (xent_rs.jax.sigmoid_binary_cross_entropy, xent_rs.jax.sigmoid_binary_cross_entropy, soft),
                (lambda z, w: hard(z, y[:4], where=w), lambda z, w: hard(z, y[:4], where=w), where),
                (lambda z, w: hard(z, y[:4], where=w), lambda z, w: hard(z, y[:4], where=w), soft > 0.1),
            ]:
                mapped = shard_map(function, mesh=mesh, in_specs=(P(), P("rows")), out_specs=P("rows"))
                found = jax.jit(jax.grad(lambda z: mapped(z, rest).sum()))(few)
                alone = lambda z: local(z, rest[:4]).sum() + local(z, rest[4:]).sum()
                np.testing.assert_allclose(found, jax.grad(alone)(few), rtol=1e-5, atol=1e-6)
            # Logits have to vary where their tangents do.
            def along(z, tangents):
                z = lax.pcast(z, "rows", to="varying") if hasattr(lax, "pcast") else lax.pvary(z, "rows")
                return jax.jvp(lambda z: hard(z, y[:4]), (z,), (tangents,))[1]

            mapped = shard_map(along, mesh=mesh, in_specs=(P(), P("rows")), out_specs=P("rows"))
            found = jax.jit(mapped)(few, z)
            expected_of_few = jax.jvp(lambda z: hard(z, y[:4]), (few,), (z[4:],))[1]
            np.testing.assert_allclose(found[4:], expected_of_few, rtol=1e-5, atol=1e-6)
        # Without it XLA gathers the rows, and the result is the same.
        found = jax.jit(jax.value_and_grad(lambda z, y: hard(z, y).mean()))(*placed)
        np.testing.assert_allclose(found[1], expected[1], rtol=1e-5, atol=1e-7)
        """
    )


def test_donated_logits_are_given_up_and_others_are_not(random):
    logits, labels, *_ = problem(random, (100, 300), 1, "float32")
    loss = lambda z: xj.softmax_cross_entropy_with_integer_labels(z, labels).mean()  # noqa: E731
    expected, before = jax.grad(loss)(logits), np.array(logits)
    np.testing.assert_array_equal(logits, before)
    given = logits + 0
    assert_close(jax.jit(jax.grad(loss), donate_argnums=0)(given), expected)
    assert given.is_deleted()
    assert_close(jax.jit(jax.grad(loss))(logits), expected)
    np.testing.assert_array_equal(logits, before)


# Axes, as optax has them.


@pytest.mark.parametrize("axis", [0, -2, (1, 3), (3, 2), (2, 3), (-1, -2), (0, 1, 3), (3, 0, 2, 1), ()])
def test_several_axes_are_one_of_flat_indices(axis, random):
    logits = jnp.asarray(random.normal(size=(2, 3, 4, 5)), "float32")
    axes = [place % 4 for place in np.atleast_1d(np.array(axis, int))]
    rows = [place for place in range(4) if place not in axes]
    flat = jnp.transpose(logits, (*rows, *axes)).reshape(*(logits.shape[place] for place in rows), -1)
    labels = random.integers(0, flat.shape[-1], flat.shape[:-1])
    cotangents = random.normal(size=labels.shape)
    hard = jax.jit(lambda z: xj.softmax_cross_entropy_with_integer_labels(z, labels, axis))
    found, pull = jax.vjp(hard, logits)
    losses, gradient = expected_of_classes(flat, labels, cotangents)
    assert_close(found, losses)
    (found,) = pull(jnp.asarray(cotangents, "float32"))
    assert_close(jnp.transpose(found, (*rows, *axes)).reshape(flat.shape), gradient)
    soft = jax.nn.softmax(logits * 0.7, axis)
    flat_soft = jnp.transpose(soft, (*rows, *axes)).reshape(flat.shape)
    assert_close(
        xj.softmax_cross_entropy(logits, soft, axis),
        expected_of_probabilities(flat, flat_soft, cotangents)[0],
    )


def test_no_axis_is_all_of_them(random):
    logits, _, labels, _ = problem(random, (3, 4), 1, "float32")
    everything = xj.softmax_cross_entropy(logits, labels, axis=None)
    assert_close(everything, xj.softmax_cross_entropy(logits.ravel(), labels.ravel()))


# The kernels.


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_nothing_is_copied_or_moved(axis):
    logits, labels = jnp.zeros((16, 24, 40)), jnp.zeros(np.delete([16, 24, 40], axis), int)
    loss = lambda z: xj.softmax_cross_entropy_with_integer_labels(z, labels, axis)  # noqa: E731
    for function in (loss, jax.grad(lambda z: loss(z).sum())):
        text = compiled(function, logits)
        assert "xent_rs_cross_entropy" in text
        assert not re.search(r"= \S+ (copy|transpose|convert)\(", text)


def test_a_mean_reads_the_logits_twice_and_no_array_of_their_size_is_made_but_the_gradient():
    logits, labels = jnp.zeros((512, 1000)), jnp.zeros(512, int)
    loss = lambda z: xj.softmax_cross_entropy_with_integer_labels(z, labels).mean()  # noqa: E731
    lowered = jax.jit(jax.value_and_grad(loss)).lower(logits).compile()
    targets = re.findall(r'custom_call_target="(\w+)"', lowered.as_text())
    assert sorted(targets) == ["xent_rs_cross_entropy", "xent_rs_cross_entropy_grad"]
    memory = lowered.memory_analysis()
    assert memory.temp_size_in_bytes < logits.nbytes / 10


def test_what_is_not_asked_for_is_not_computed():
    logits, labels = jnp.zeros((8, 5)), jnp.ones((8, 5)) / 5
    text = compiled(jax.grad(lambda z: xj.softmax_cross_entropy(z, labels).sum()), logits)
    assert "exponential" not in text
    assert 'xent_rs_cross_entropy"' not in text
    text = compiled(jax.grad(lambda z: xj.sigmoid_binary_cross_entropy(z, labels).sum()), logits)
    assert "exponential" not in text


@pytest.mark.parametrize("name", ["softmax_loss", "softmax_gradient", "binary_loss", "binary_gradient"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_kernels_and_the_formulas_of_other_platforms_agree(name, dtype, random):
    """NaN and infinities too."""
    logits, labels, soft, _ = problem(random, (8, 5, 3), 1, dtype)
    cotangents = jnp.asarray(random.normal(size=(8, 3)), dtype)
    labels, counts = jnp.asarray(labels), jnp.asarray(random.random((8, 3)) > 0.3)
    logits = logits.at[1, 2].set(-jnp.inf).at[2].set(jnp.nan).at[3, 1].set(jnp.inf).at[4].set(-jnp.inf)
    labels, soft = labels.at[5].set(jnp.array([5, -1, -6])), soft.at[1, 2].set(0)
    cotangents = cotangents.at[5:7, 2].set(0)
    soft = soft.at[6, 0].set(-1.0)
    ours = getattr(_kernels, name, None) or getattr(_kernels, f"_{name}")
    formula = getattr(_formulas, name)
    if name.startswith("binary"):
        logits = jnp.abs(logits)  # of -inf the formulas have no more to say
        rest = [soft] if name.endswith("loss") else [soft, jnp.ones_like(soft)]
        problems = [(logits, *rest), (logits, soft > 0.5, *rest[1:])]
    else:
        last = [] if name.endswith("loss") else [cotangents]
        problems = [(logits, each, *some, *last) for each in (labels, soft) for some in ([], [counts])]
    for operands in problems:
        found, expected = jax.jit(ours)(*operands), jax.jit(formula)(*operands)
        assert found.dtype == expected.dtype
        np.testing.assert_allclose(
            np.asarray(found, float),
            np.asarray(expected, float),
            rtol=2**-7 if dtype == "bfloat16" else 1e-5,
            atol=1e-6,
        )


def test_on_another_platform_jax_computes():
    logits, labels = jnp.zeros((8, 5)), jnp.zeros(8, int)
    loss = lambda z: xj.softmax_cross_entropy_with_integer_labels(z, labels).mean()  # noqa: E731
    both = jax.jit(jax.value_and_grad(loss))
    names = "xent_rs_cross_entropy", "xent_rs_cross_entropy_grad"
    checks = [export.DisabledSafetyCheck.custom_call(name) for name in names]
    for platform in ("cpu", "cuda", "tpu"):
        module = export.export(both, platforms=[platform], disabled_checks=checks)(logits).mlir_module()
        assert [f"@{name}(" in module for name in names] == [platform == "cpu"] * 2
        assert ("exponential" in module) == (platform != "cpu")


def test_bits_do_not_depend_on_threads_nor_on_who_calls(random):
    logits, labels, *_ = problem(random, (3000, 300), 1, "float32")
    both = jax.jit(
        jax.value_and_grad(lambda z: xj.softmax_cross_entropy_with_integer_labels(z, labels).sum())
    )
    found = []
    for threads in (1, 2, 3):
        xent_rs.set_num_threads(threads)
        found.append([np.asarray(each) for each in both(logits)])
    for loss, gradient in found:
        np.testing.assert_array_equal(loss, found[0][0])
        np.testing.assert_array_equal(gradient, found[0][1])
    array = np.array(logits)
    _, gradient = xent_rs.cross_entropy_with_grad(array, labels, reduction="sum")
    np.testing.assert_array_equal(gradient, found[0][1])


def test_losses_below_the_normal_numbers_are_kept():
    """XLA's threads flush them to 0."""
    loss = xj.softmax_cross_entropy_with_integer_labels(jnp.array([[0.0, -90.0]]), jnp.array([0]))
    assert 8e-40 < float(np.asarray(loss)[0]) < 8.3e-40


def test_several_threads_call_at_once(random):
    logits, labels, *_ = problem(random, (2000, 500), 1, "float32")
    both = jax.jit(
        jax.value_and_grad(lambda z: xj.softmax_cross_entropy_with_integer_labels(z, labels).sum())
    )
    expected, found = both(logits), {}

    def work(number):
        for _ in range(5):
            found[number] = jax.block_until_ready(both(logits))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 6
    for loss, gradient in found.values():
        assert loss == expected[0]
        np.testing.assert_array_equal(gradient, expected[1])


def test_the_interpreter_may_end_while_a_handler_runs(python):
    python(
        """if True:
        import jax, jax.numpy as jnp, xent_rs.jax
        z = jnp.zeros((20000, 3000))
        y = jnp.zeros(20000, int)
        loss = jax.jit(jax.grad(lambda z: xent_rs.jax.softmax_cross_entropy_with_integer_labels(z, y).sum()))
        for _ in range(3):
            loss(z)
        """
    )


def test_ctrl_c_waits_for_the_handler_and_then_interrupts(python):
    python(
        """if True:
        import os, signal, threading, jax, jax.numpy as jnp, xent_rs.jax
        z = jnp.zeros((20000, 3000))
        y = jnp.zeros(20000, int)
        loss = jax.jit(lambda z: xent_rs.jax.softmax_cross_entropy_with_integer_labels(z, y).sum())
        threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()
        try:
            while True:
                loss(z).block_until_ready()
        except KeyboardInterrupt:
            pass
        assert abs(float(loss(z)) / 20000 - 8.0063676) < 1e-5
        """
    )


# What XLA hands over, if somebody calls the handlers with anything else.


COUNT = "expected logits, targets"
READ = "bool, integers of 8 to 64 bits, float16, bfloat16, float32 or float64"


@pytest.mark.parametrize(
    ("handler", "operands", "result", "text"),
    [
        (
            "cross_entropy",
            ["f4 4 5 1"],
            "f4 4 1",
            f"there are 1 arguments; {COUNT}, perhaps which rows count",
        ),
        (
            "cross_entropy",
            ["i4 4 5 1", "i4 4 1"],
            "f4 4 1",
            "logits have dtype int32; expected a floating dtype",
        ),
        (
            "cross_entropy",
            ["f4 4 5 1", "i4 4 1"],
            "i4 4 1",
            "results have dtype int32; expected a floating dtype",
        ),
        ("cross_entropy", ["f4 4 5 1", "i4 3 1"], "f4 4 1", "targets have shape [3, 1]; expected [4, 1]"),
        (
            "cross_entropy",
            ["f4 4 5 1", "i4 4 1"],
            "f4 3 1",
            "logits have shape [4, 5, 1]; expected [3, 5, 1]",
        ),
        (
            "cross_entropy",
            ["f4 4 5 1", "f4 4 6 1"],
            "f4 4 1",
            "targets have shape [4, 6, 1]; expected [4, 5, 1]",
        ),
        (
            "cross_entropy",
            ["f4 4 5 1", "b1 4 5 1"],
            "f4 4 1",
            "targets have dtype bool; expected a floating dtype",
        ),
        (
            "cross_entropy",
            ["f4 4 5 1", "c8 4 5 1"],
            "f4 4 1",
            f"operand 1 has XLA's dtype 15; expected {READ}",
        ),
        ("cross_entropy", ["f4 4 0 1", "i4 4 1"], "f4 4 1", "logits have no class; expected one or more"),
        (
            "cross_entropy",
            ["f4 4 5 1", "i4 4 1"],
            "f4 4",
            "losses have shape [4]; expected 2 axes, with logits of shape [4, 5, 1]",
        ),
        (
            "cross_entropy",
            ["f4 4", "i4 4"],
            "f4",
            "logits have shape [4]; expected two axes or more",
        ),
        (
            "cross_entropy",
            ["f4 4 5 1", "i4 4 1", "b1 5 1"],
            "f4 4 1",
            "values of where have shape [5, 1]; expected [4, 1]",
        ),
        (
            "cross_entropy",
            ["f4 4 5 1", "i4 4 1", "f4 4 1"],
            "f4 4 1",
            "values of where have dtype float32; expected bool",
        ),
        (
            "cross_entropy_grad",
            ["f4 4 1 1", "i4 4 1", "f4 4 1"],
            "f4 4 5 1",
            "gradients have shape [4, 5, 1]; expected 1 on axis 1, with logits of shape [4, 1, 1]",
        ),
        (
            "cross_entropy_grad",
            ["f4 4 5 1", "i4 4 1"],
            "f4 4 5 1",
            f"there are 2 arguments; {COUNT}, perhaps which rows count, cotangents",
        ),
        (
            "cross_entropy_grad",
            ["f4 4 5 1", "i4 4 1", "f4 2 1"],
            "f4 4 5 1",
            "cotangents have shape [2, 1]; expected [4, 1]",
        ),
        (
            "cross_entropy_grad",
            ["f4 4 5 1", "i4 4 1", "i4 4 1"],
            "f4 4 5 1",
            "cotangents have dtype int32; expected a floating dtype",
        ),
        (
            "binary_cross_entropy",
            ["f4 4", "i4 4"],
            "f4 4",
            "targets are integers; expected bool or a floating dtype",
        ),
        ("binary_cross_entropy", ["f4 4", "f4 5"], "f4 4", "targets have shape [5]; expected [4]"),
        ("binary_cross_entropy", ["f4 4", "f4 4", "b1 4"], "f4 4", f"there are 3 arguments; {COUNT}"),
        (
            "binary_cross_entropy_grad",
            ["f4 4", "f4 4"],
            "f4 4",
            f"there are 2 arguments; {COUNT}, cotangents",
        ),
        (
            "binary_cross_entropy_grad",
            ["f4 4", "f4 4", "f4 3"],
            "f4 4",
            "cotangents have shape [3]; expected [4]",
        ),
    ],
)
def test_handlers_check_what_they_get(handler, operands, result, text):
    def description(words):
        dtype, *shape = words.split()
        return jax.ShapeDtypeStruct(
            tuple(map(int, shape)), {"b1": "bool", "c8": "complex64"}.get(dtype, dtype)
        )

    def call():
        call = jax.ffi.ffi_call(f"xent_rs_{handler}", description(result), vmap_method="expand_dims")
        zeros = [jnp.zeros(each.shape, each.dtype) for each in map(description, operands)]
        return jax.block_until_ready(call(*zeros))

    with pytest.raises(RuntimeError) as caught:
        call()
    assert str(caught.value).splitlines()[0].endswith(f"INVALID_ARGUMENT: xent_rs: {text}")


def test_structs_are_those_of_the_header_of_the_installed_jaxlib(tmp_path):
    header = Path(jax.ffi.include_dir()) / "xla" / "ffi" / "api" / "c_api.h"
    if not header.exists():
        pytest.skip(f"jaxlib has no {header.name}")
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler")
    expected = _xent_rs.xla_layout()
    assert len(expected) > 100
    lines = "\n".join(f'printf("%zu\\n", (size_t)({expression}));' for expression in expected)
    source, program = tmp_path / "layout.c", tmp_path / "layout"
    includes = f'#include <stdio.h>\n#include "{header}"\n'
    source.write_text(f"{includes}int main(void) {{\n{lines}\nreturn 0;\n}}\n")
    subprocess.run([compiler, "-o", program, source], check=True)
    printed = subprocess.run([program], check=True, capture_output=True, text=True).stdout.split()
    assert dict(zip(expected, map(int, printed), strict=True)) == expected


# optax's own tests, through our functions.


#: The classes of optax's tests, the function that each calls, and which tests do.
OPTAX_TESTS = {
    "SoftmaxCrossEntropyTest": ("softmax_cross_entropy", ""),
    "SafeSoftmaxCrossEntropyTest": ("softmax_cross_entropy", "test_against_plain_implementation"),
    "SoftmaxCrossEntropyWithIntegerLabelsTest": ("softmax_cross_entropy_with_integer_labels", ""),
    "SigmoidCrossEntropyTest": ("sigmoid_binary_cross_entropy", ""),
    "PolyLossTest": ("poly_loss_cross_entropy", ""),
    "SigmoidFocalLossTest": ("sigmoid_focal_loss", ""),
}


def optax_tests():
    """Return the names of optax's tests that call these losses, `Class.method`."""
    with contextlib.suppress(ImportError):
        module = importlib.import_module("optax.losses._classification_test")
        for name, (_, methods) in OPTAX_TESTS.items():
            for method in unittest.TestLoader().getTestCaseNames(getattr(module, name)):
                if re.match(methods, method):
                    yield f"{name}.{method}"


@pytest.fixture(scope="module")
def optax_calls():
    """What optax's tests have called of ours, while our functions are there instead of its own.

    What is compiled is not called again, so these are the calls of all tests.
    """
    module, calls = importlib.import_module("optax.losses._classification_test"), set()
    with pytest.MonkeyPatch.context() as patch:
        for function in xj.__all__:

            def counted(*args, name=function, **kwargs):
                calls.add(name)
                return getattr(xj, name)(*args, **kwargs)

            patch.setattr(module._classification, function, counted)
        yield calls


def test_signatures_are_those_of_optax():
    optax = pytest.importorskip("optax", reason="optax is missing")
    for name in xj.__all__:
        theirs, ours = (inspect.signature(getattr(each, name)).parameters for each in (optax.losses, xj))
        assert [(name, each.default, each.kind) for name, each in theirs.items()] == [
            (name, each.default, each.kind) for name, each in ours.items()
        ]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    "name", list(optax_tests()) or [pytest.param("", marks=pytest.mark.skip("optax is missing"))]
)
def test_optax_takes_our_functions_for_its_own(name, optax_calls):
    module = importlib.import_module("optax.losses._classification_test")
    class_name, method = name.split(".")
    result = unittest.TestResult()
    getattr(module, class_name)(method).run(result)
    assert not result.errors + result.failures, (result.errors + result.failures)[0][1]
    assert result.testsRun == 1
    assert OPTAX_TESTS[class_name][0] in optax_calls
