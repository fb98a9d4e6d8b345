"""`xent_rs.jax`: JAX's transformations, optax's own tests, and XLA's interface against its header."""

import contextlib
import functools
import importlib
import inspect
import itertools
import re
import shutil
import subprocess
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
from jax.test_util import check_grads  # noqa: E402
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


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("shape", "axis"), [((10,), 0), ((7, 10), 1), ((5, 3, 300), 2), ((5, 40, 33), 1), ((3, 4, 2, 5), -3)]
)
def test_losses_and_gradients_are_those_of_the_formula(shape, axis, dtype, random):
    logits, labels, probabilities, cotangents = problem(random, shape, axis, dtype)
    last, scale = np.moveaxis(np.asarray(logits, np.float64), axis, -1), np.asarray(cotangents, np.float64)
    losses, gradient = expected_of_classes(last, labels, scale)
    soft, of_logits, of_labels = expected_of_probabilities(
        last, np.moveaxis(np.asarray(probabilities, np.float64), axis, -1), scale
    )
    classes = functools.partial(
        xj.softmax_cross_entropy_with_integer_labels, labels=jnp.asarray(labels), axis=axis
    )
    for way in (lambda function: function, jax.jit):
        found, pull = jax.vjp(way(classes), logits)
        assert found.dtype == logits.dtype
        assert_close(found, losses, dtype)
        (found,) = pull(cotangents)
        assert found.dtype == logits.dtype
        assert_close(np.moveaxis(np.asarray(found, np.float64), axis, -1), gradient, dtype)

        found, pull = jax.vjp(
            way(functools.partial(xj.softmax_cross_entropy, axis=axis)), logits, probabilities
        )
        assert found.dtype == logits.dtype
        assert_close(found, soft, dtype)
        for found, expected in zip(pull(cotangents), (of_logits, of_labels), strict=True):
            assert found.dtype == logits.dtype
            assert_close(np.moveaxis(np.asarray(found, np.float64), axis, -1), expected, dtype)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("dtype", DTYPES)
def test_binary_losses_and_gradients_are_those_of_the_formula(dtype, random):
    logits, _, labels, cotangents = problem(random, (700, 3), 1, dtype)
    cotangents = jnp.broadcast_to(cotangents[:, None], logits.shape)
    x, t, scale = (np.asarray(array, np.float64) for array in (logits, labels, cotangents))
    losses = (1 - t) * x + np.logaddexp(0, -x)
    for way in (lambda function: function, jax.jit):
        found, pull = jax.vjp(way(xj.sigmoid_binary_cross_entropy), logits, labels)
        of_logits, of_labels = pull(cotangents)
        assert {found.dtype, of_logits.dtype, of_labels.dtype} == {logits.dtype}
        assert_close(found, losses, dtype)
        assert_close(of_logits, (1 / (1 + np.exp(-x)) - t) * scale, dtype)
        assert_close(of_labels, -x * scale, dtype)
    for same in (t > 0.5, (t > 0.5).astype(int), (t > 0.5).astype("float32")):
        found = xj.sigmoid_binary_cross_entropy(logits, same)
        assert found.dtype == logits.dtype
        assert_close(found, np.logaddexp(0, np.where(t > 0.5, -x, x)), dtype)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("dtype", INTEGERS)
def test_labels_may_have_every_integer_dtype(dtype, random):
    logits = jnp.asarray(random.normal(size=(50, 7)), "float32")
    labels = random.integers(0, 7, 50)
    found = jax.jit(xj.softmax_cross_entropy_with_integer_labels)(logits, jnp.asarray(labels).astype(dtype))
    assert_close(found, expected_of_classes(logits, labels, np.ones(50))[0])


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("of_logits", "of_labels"), list(itertools.product(DTYPES, [*DTYPES, "int32", "bool"]))
)
def test_the_loss_has_the_wider_dtype_of_logits_and_probabilities(of_logits, of_labels):
    logits, labels = jnp.ones((2, 4), of_logits), jnp.asarray(np.eye(4)[:2], of_labels)
    floats = jnp.issubdtype(labels.dtype, jnp.floating)
    expected = jnp.promote_types(of_logits, of_labels) if floats else logits.dtype
    for loss in (
        xj.softmax_cross_entropy(logits, labels),
        jax.vmap(xj.softmax_cross_entropy)(logits, labels),
    ):
        assert loss.dtype == expected
        np.testing.assert_allclose(np.asarray(loss, float), np.log(4), rtol=2**-8)
    gradient = jax.grad(lambda logits: xj.softmax_cross_entropy(logits, labels).sum())(logits)
    assert gradient.dtype == logits.dtype


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


@pytest.mark.parametrize("transform", [lambda function: function, jax.jit])
def test_rows_that_do_not_count_have_loss_and_gradient_0_whatever_they_hold(transform, random):
    logits, labels, soft, _ = problem(random, (6, 3, 5), 2, "float32")
    logits = logits.at[1].set(jnp.nan).at[2].set(-jnp.inf)
    labels, soft = jnp.asarray(labels).at[3].set(99), soft.at[3].set(jnp.nan)
    where = np.ones((6, 3), bool)
    where[1:4] = False
    of_classes = functools.partial(xj.softmax_cross_entropy_with_integer_labels, labels=labels)
    of_probabilities = functools.partial(xj.softmax_cross_entropy, labels=soft)
    good = np.nan_to_num(np.asarray(logits), nan=0, neginf=0)
    expected = expected_of_classes(good, labels, np.ones((6, 3)))
    for mask in (where, where[..., None], where.astype(int)):
        found = transform(of_classes)(logits, where=mask)
        assert_close(found, np.where(where, expected[0], 0))
        for function in (of_classes, of_probabilities):
            found = transform(function)(logits, where=mask)
            assert np.isfinite(found).all()
            np.testing.assert_array_equal(found[1:4], 0)
            loss = lambda logits, function=function, mask=mask: function(logits, where=mask).sum()  # noqa: E731
            gradient = transform(jax.grad(loss))(logits)
            assert np.isfinite(gradient).all()
            np.testing.assert_array_equal(gradient[1:4], 0)
            assert np.any(np.asarray(gradient[0]) != 0)
            curved = jax.jit(jax.hessian(loss))(logits)
            assert np.isfinite(curved).all()
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
    expected = soft(keep(logits), keep(labels))
    for transform in (lambda function: function, jax.jit):
        assert_close(transform(soft)(logits, labels, where=counts), expected)
        loss = lambda z, t: soft(z, t, where=counts).sum()  # noqa: E731
        of_both = transform(jax.grad(loss, (0, 1)))(logits, labels)
        of_kept = jax.grad(lambda z, t: soft(z, t).sum(), (0, 1))(keep(logits), keep(labels))
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
        gradient = jax.grad(lambda z: hard(z, classes, where=none).sum())(logits)
        assert np.isfinite(gradient).all()
        np.testing.assert_array_equal(gradient[2], 0)


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


def refused(call, text):
    with pytest.raises(ValueError) as caught:  # noqa: PT011
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
def test_derivatives_of_every_order_in_both_modes(name, logits):
    check_grads(jax.jit(functions()[name]), (logits,), order=2, rtol=0.05, atol=0.05)


@every_loss
@pytest.mark.usefixtures("x64")
def test_second_derivatives_are_differences_of_first_ones(name, logits):
    scalar = jax.jit(lambda z: (functions()[name](z) ** 2).sum())
    gradient, direction = jax.jit(jax.grad(scalar)), jnp.sin(jnp.arange(120.0)).reshape(4, 5, 6)
    wide, step = logits.astype("float64"), 1e-6
    expected = (gradient(wide + step * direction) - gradient(wide - step * direction)) / (2 * step)
    for found in (
        jax.jvp(gradient, (wide,), (direction,))[1],
        jax.grad(lambda z: (gradient(z) * direction).sum())(wide),
        jax.jit(jax.grad(lambda z: jax.jvp(scalar, (z,), (direction,))[1]))(wide),
        jnp.tensordot(jax.jit(jax.hessian(scalar))(wide), direction, 3),
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-8)


@every_loss
@pytest.mark.parametrize(
    "transform",
    [
        jax.jit,
        jax.checkpoint,
        lambda function: lambda z: lax.map(function, z[None])[0],
        lambda function: lambda z: lax.cond(z[0, 0, 0] > 9, lambda z: function(z + 1), function, z),
        lambda function: lambda z: jax.vmap(function)(jnp.stack([z, z + 1]))[0],
        lambda function: (
            lambda z: jax.vmap(jax.vmap(function, 3, 1))(jnp.stack([z, z + 1], 3)[None])[0, :, 0]
        ),
    ],
    ids=["jit", "checkpoint", "map", "cond", "vmap", "nested vmap"],
)
def test_transformations_change_nothing(name, transform, logits):
    function = functions()[name]
    changed = transform(function)
    assert_close(changed(logits), function(logits))
    slope, same = (jax.grad(lambda z, f=f: jnp.sin(f(z)).sum())(logits) for f in (changed, function))
    assert_close(same, slope)
    tangents = [jax.jvp(each, (logits,), (jnp.cos(logits),))[1] for each in (changed, function)]
    np.testing.assert_allclose(*tangents, rtol=1e-5, atol=1e-6)


def test_a_vmap_that_does_not_map_everything(random):
    logits, labels, soft, _ = problem(random, (3, 4, 5), 2, "float32")
    hard, of_soft = xj.softmax_cross_entropy_with_integer_labels, xj.softmax_cross_entropy
    everything = jnp.stack([hard(z, y) for z in logits for y in labels]).reshape(3, 3, 4)
    each_with_each = jax.vmap(jax.vmap(hard, (None, 0)), (0, None))
    assert_close(each_with_each(logits, labels), everything)
    everything = jnp.stack([of_soft(z, t) for z in logits for t in soft]).reshape(3, 3, 4)
    assert_close(jax.vmap(jax.vmap(of_soft, (None, 0)), (0, None))(logits, soft), everything)
    # Logits are mapped by neither, and each gets the sum of their cotangents.
    for function, targets in ((hard, jnp.asarray(labels)), (of_soft, soft)):
        summed = lambda z, function=function, targets=targets: jax.vmap(function, (None, 0))(z, targets)  # noqa: E731
        one_by_one = sum(jax.grad(lambda z, f=function, t=t: f(z, t).sum())(logits[0]) for t in targets)
        assert_close(jax.grad(lambda z, f=summed: f(z).sum())(logits[0]), one_by_one)
        tangent = jax.jvp(summed, (logits[0],), (logits[1],))[1]
        assert_close(jax.vmap(lambda t, f=summed: jax.jvp(f, (logits[0],), (t,))[1])(logits)[1], tangent)
        gradients = jax.vmap(jax.grad(lambda z, t, f=function: f(z, t).sum()), (None, 0))(logits[0], targets)
        assert gradients.shape == logits.shape
        back = jax.vmap(jax.vjp(summed, logits[0])[1])(jnp.ones((2, 3, 4)))[0]
        assert_close(back[1], one_by_one)
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
    found = jax.jit(jax.grad(loss), donate_argnums=0)(given)
    assert_close(found, expected)
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
    found, pull = jax.vjp(lambda z: xj.softmax_cross_entropy_with_integer_labels(z, labels, axis), logits)
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
    if dtype == "float32":  # of 16 bits the kernels round the parts above and below 0 each
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
        found, expected = ours(*operands), formula(*operands)
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
    for platform in ("cuda", "tpu"):
        exported = export.export(jax.jit(jax.value_and_grad(loss)), platforms=[platform])(logits)
        assert "xent_rs" not in exported.mlir_module().replace("xent_rs.jax", "").replace(
            "xent_rs/jax", ""
        ) or ("custom_call_target" not in exported.mlir_module())
        assert "exponential" in exported.mlir_module()


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


COUNT = "arguments; expected logits, targets, perhaps which rows count, and for a gradient cotangents"
READ = "bool, integers of 8 to 64 bits, float16, bfloat16, float32 or float64"


@pytest.mark.parametrize(
    ("handler", "operands", "result", "text"),
    [
        ("cross_entropy", ["f4 4 5 1"], "f4 4 1", f"there are 1 {COUNT}"),
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
            "logits have shape [4, 5, 1] and losses [4]; expected two axes or more",
        ),
        (
            "cross_entropy",
            ["f4 4", "i4 4"],
            "f4",
            "logits have shape [4] and losses []; expected two axes or more",
        ),
        (
            "cross_entropy",
            ["f4 4 5 1", "i4 4 1", "b1 5 1"],
            "f4 4 1",
            "where have shape [5, 1]; expected [4, 1]",
        ),
        ("cross_entropy_grad", ["f4 4 5 1", "i4 4 1"], "f4 4 5 1", f"there are 2 {COUNT}"),
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
        ("binary_cross_entropy", ["f4 4", "f4 4", "b1 4"], "f4 4", "there is one argument too many"),
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


def optax_tests():
    """Return the names of optax's tests of these losses, `Class.method`."""
    with contextlib.suppress(ImportError):
        module = importlib.import_module("optax.losses._classification_test")
        for name in (
            "SoftmaxCrossEntropyTest",
            "SafeSoftmaxCrossEntropyTest",
            "SoftmaxCrossEntropyWithIntegerLabelsTest",
            "SigmoidCrossEntropyTest",
            "PolyLossTest",
            "SigmoidFocalLossTest",
        ):
            for method in unittest.TestLoader().getTestCaseNames(getattr(module, name)):
                yield f"{name}.{method}"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    "name", list(optax_tests()) or [pytest.param("", marks=pytest.mark.skip("optax is missing"))]
)
def test_optax_takes_our_functions_for_its_own(name, monkeypatch):
    module = importlib.import_module("optax.losses._classification_test")
    calls = []
    for function in xj.__all__:

        def counted(*args, name=function, **kwargs):
            calls.append(name)
            return getattr(xj, name)(*args, **kwargs)

        theirs, ours = (
            inspect.signature(getattr(each, function)).parameters for each in (module._classification, xj)
        )
        assert [(name, each.default) for name, each in theirs.items()] == [
            (name, each.default) for name, each in ours.items()
        ]
        monkeypatch.setattr(module._classification, function, counted)
    jax.clear_caches()  # functions that were compiled with optax's own
    class_name, method = name.split(".")
    result = unittest.TestResult()
    getattr(module, class_name)(method).run(result)
    assert not result.errors + result.failures, (result.errors + result.failures)[0][1]
    assert result.testsRun == 1
    assert calls or class_name.startswith("Safe")
