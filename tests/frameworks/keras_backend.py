"""The checks of `xent_rs.keras` on one backend of Keras, that of KERAS_BACKEND: `test_keras.py` runs them."""

import contextlib
import copy
import importlib
import inspect
import json
import pickle
import unittest

import keras
import numpy as np
import pytest
import xent_rs.keras as xk
from xent_rs.keras import _losses

BACKEND = keras.config.backend()
NAMES = xk.__all__
SPARSE, SOFT, BINARY = "SparseCategoricalCrossentropy", "CategoricalCrossentropy", "BinaryCrossentropy"
FOCAL, BINARY_FOCAL = "CategoricalFocalCrossentropy", "BinaryFocalCrossentropy"
AT = {
    SPARSE: "of_classes",
    SOFT: "of_probabilities",
    BINARY: "of_yes_or_no",
    FOCAL: "of_classes",
    BINARY_FOCAL: "of_yes_or_no",
}
trains = pytest.mark.skipif(BACKEND == "numpy", reason="Keras's NumPy backend has no gradients")
on_tensorflow = pytest.mark.skipif(BACKEND != "tensorflow", reason="of TensorFlow alone")

# Keras and its backends warn of each other.
pytestmark = pytest.mark.filterwarnings("default")


def array(tensor):
    return np.asarray(keras.ops.convert_to_numpy(keras.ops.cast(tensor, "float64")), np.float64)


def ours(name, /, **options):
    return getattr(xk, name)(from_logits=True, **options)


def theirs(name, /, **options):
    return getattr(keras.losses, name)(from_logits=True, **options)


@pytest.fixture
def calls(monkeypatch):
    """The names of the functions of the backend's module that were called."""
    names = []
    for name in set(AT.values()):
        function = getattr(_losses._backend, name)

        def counted(*args, name=name, function=function):
            names.append(name)
            return function(*args)

        monkeypatch.setattr(_losses._backend, name, counted)
    return names


def gradient(loss, labels, logits):
    """Return a loss and its derivative by the logits."""
    if BACKEND == "torch":
        logits = keras.ops.convert_to_tensor(logits).detach().clone().requires_grad_()
        value = loss(labels, logits)
        value.sum().backward()
        return array(value.detach()), array(logits.grad)
    if BACKEND == "jax":
        import jax

        logits = keras.ops.convert_to_tensor(logits)
        value = loss(labels, logits)
        return array(value), array(jax.jit(jax.grad(lambda z: loss(labels, z).sum()))(logits))
    import tensorflow as tf

    logits = tf.convert_to_tensor(logits)
    with tf.GradientTape() as tape:
        tape.watch(logits)
        value = loss(labels, logits)
    return array(value), array(tape.gradient(value, logits))


# The formulas, in float64.


def softmax(z, axis):
    p = np.exp(z - z.max(axis, keepdims=True))
    return p / p.sum(axis, keepdims=True)


def expected_of_probabilities(z, t, axis, smoothing=0.0):
    t = t * (1 - smoothing) + smoothing / z.shape[axis]
    p = softmax(z, axis)
    return -(t * np.log(p)).sum(axis), p * t.sum(axis, keepdims=True) - t


def expected_of_classes(z, y, axis):
    one_hot = np.moveaxis(np.eye(z.shape[axis])[y], -1, axis)
    return expected_of_probabilities(z, one_hot, axis)


def expected_of_yes_or_no(z, t, smoothing=0.0):
    t = t * (1 - smoothing) + smoothing / 2
    return (1 - t) * z + np.logaddexp(0, -z), 1 / (1 + np.exp(-z)) - t


def expected_of_focal(z, y, axis, alpha, gamma):
    """Of classes."""
    one_hot = np.moveaxis(np.eye(z.shape[axis])[y], -1, axis)
    p = softmax(z, axis)
    own = (p * one_hot).sum(axis)
    scale = np.asarray(alpha)[y] if np.ndim(alpha) else alpha
    slope = (1 - own) ** gamma - gamma * (1 - own) ** (gamma - 1.0) * own * np.log(own)
    gradient = np.expand_dims(scale * slope, axis) * (p - one_hot)
    return scale * (1 - own) ** gamma * -np.log(own), gradient


def expected_of_focal_yes_or_no(z, t, gamma=2.0, smoothing=0.0, alpha=None):
    t = t * (1 - smoothing) + smoothing / 2
    p = 1 / (1 + np.exp(-z))
    missing = t * (1 - p) + (1 - t) * p
    scale = 1 if alpha is None else alpha * t + (1 - alpha) * (1 - t)
    entropy = (1 - t) * z + np.logaddexp(0, -z)
    slope = missing**gamma * (p - t) + gamma * missing ** (gamma - 1.0) * (1 - 2 * t) * p * (1 - p) * entropy
    return scale * missing**gamma * entropy, scale * slope


def problem(random, shape, axis):
    logits = random.normal(size=shape).astype("float32") * 3
    classes = random.integers(0, shape[axis], np.delete(shape, axis))
    probabilities = softmax(random.normal(size=shape), axis).astype("float32")
    return logits, classes, probabilities


def labels_of(name, classes, probabilities):
    """The labels that a loss takes, the classes last."""
    one_hot = np.eye(probabilities.shape[-1], dtype="float32")[classes]
    return {SPARSE: classes, FOCAL: one_hot}.get(name, probabilities)


SHAPES = [((5,), 0), ((6, 5), -1), ((6, 5), 0), ((2, 3, 4, 5), -1), ((2, 3, 4, 5), 1), ((2, 3, 4, 5), 2)]


@pytest.mark.parametrize(("shape", "axis"), SHAPES)
def test_losses_of_classes_are_those_of_the_formula_on_every_axis(shape, axis, random, calls):
    logits, classes, _ = problem(random, shape, axis)
    expected, slope = expected_of_classes(logits.astype(float), classes, axis)
    loss = ours(SPARSE, axis=axis, reduction=None)
    for labels in (
        classes,
        classes.astype("float32"),
        np.expand_dims(classes, axis),
        classes.astype("uint8"),
    ):
        np.testing.assert_allclose(array(loss(labels, logits)), expected, 1e-6, 1e-6)
    assert set(calls) == {AT[SPARSE]}
    if BACKEND != "numpy":
        value, found = gradient(loss, classes, logits)
        np.testing.assert_allclose(value, expected, 1e-6, 1e-6)
        np.testing.assert_allclose(found, slope, 1e-5, 1e-6)


@pytest.mark.parametrize("smoothing", [0, 0.2])
@pytest.mark.parametrize(("shape", "axis"), SHAPES)
def test_losses_of_probabilities_are_those_of_the_formula_on_every_axis(
    shape, axis, smoothing, random, calls
):
    logits, _, labels = problem(random, shape, axis)
    labels *= 1.5  # nothing says that their sum is 1
    expected, slope = expected_of_probabilities(logits.astype(float), labels.astype(float), axis, smoothing)
    loss = ours(SOFT, axis=axis, reduction=None, label_smoothing=smoothing)
    np.testing.assert_allclose(array(loss(labels, logits)), expected, 2e-6, 1e-6)
    assert set(calls) == {AT[SOFT]}
    if BACKEND != "numpy":
        value, found = gradient(loss, labels, logits)
        np.testing.assert_allclose(value, expected, 2e-6, 1e-6)
        np.testing.assert_allclose(found, slope, 1e-5, 1e-6)


@pytest.mark.parametrize("smoothing", [0, 0.2])
@pytest.mark.parametrize(("shape", "axis"), SHAPES)
def test_losses_of_yes_or_no_are_those_of_the_formula(shape, axis, smoothing, random, calls):
    logits, _, labels = problem(random, shape, axis)
    expected, slope = expected_of_yes_or_no(logits.astype(float), labels.astype(float), smoothing)
    loss = ours(BINARY, axis=axis, reduction=None, label_smoothing=smoothing)
    np.testing.assert_allclose(array(loss(labels, logits)), expected.mean(axis), 2e-6, 1e-6)
    assert set(calls) == {AT[BINARY]}
    if BACKEND != "numpy":
        value, found = gradient(loss, labels, logits)
        np.testing.assert_allclose(value, expected.mean(axis), 2e-6, 1e-6)
        np.testing.assert_allclose(found, slope / shape[axis], 1e-5, 1e-6)


@pytest.mark.parametrize(
    ("shape", "axis", "gamma"),
    [(*each, gamma) for each, gamma in zip(SHAPES, [2.0, 0.5, 2.0, 1, 0.5, 0], strict=True)],
)
def test_focal_losses_of_one_hot_labels_are_those_of_the_formula_on_every_axis(
    shape, axis, gamma, random, calls
):
    logits, classes, _ = problem(random, shape, axis)
    labels = np.moveaxis(np.eye(shape[axis])[classes], -1, axis)
    alpha = [0.1, 0.5, 2, 1, 0.3] if axis in (-1, len(shape) - 1) else 0.25
    expected, slope = expected_of_focal(logits.astype(float), classes, axis, alpha, gamma)
    loss = ours(FOCAL, axis=axis, reduction=None, alpha=alpha, gamma=gamma)
    np.testing.assert_allclose(array(loss(labels, logits)), expected, 2e-6, 1e-6)
    assert set(calls) == {AT[FOCAL]}
    if BACKEND != "numpy":
        value, found = gradient(loss, labels, logits)
        np.testing.assert_allclose(value, expected, 2e-6, 1e-6)
        np.testing.assert_allclose(found, slope, 1e-5, 1e-6)


@pytest.mark.parametrize(
    ("options", "soften"),
    [
        ({}, lambda one_hot: 0.9 * one_hot + 0.02),
        ({}, lambda one_hot: np.concatenate([one_hot[:-1], 0.5 * one_hot[-1:]])),
        ({}, lambda one_hot: np.maximum(one_hot, one_hot[:, ::-1])),
        ({"label_smoothing": 0.1}, lambda one_hot: one_hot),
        ({"alpha": [0.5, 1, 2, 1, 3], "axis": 0}, lambda one_hot: one_hot),
    ],
)
def test_what_is_no_focal_loss_of_one_class_a_row_keras_computes(options, soften, random, calls):
    logits, classes, _ = problem(random, (5, 5), -1)
    labels = soften(np.eye(5, dtype="float32")[classes])
    found, expected = (
        array(loss(FOCAL, reduction=None, **options)(labels, logits)) for loss in (ours, theirs)
    )
    np.testing.assert_allclose(found, expected, 1e-6)
    assert not calls
    if BACKEND in ("jax", "tensorflow"):  # a program that is compiled has both
        loss = ours(FOCAL, reduction=None, **options)
        if BACKEND == "jax":
            import jax

            compiled = jax.jit(loss)
        else:
            import tensorflow as tf

            compiled = tf.function(loss)
        np.testing.assert_allclose(array(compiled(labels, logits)), expected, 1e-6)
        assert bool(calls) != bool(options)


@pytest.mark.parametrize(
    ("shape", "axis", "alpha", "options"),
    [
        (*SHAPES[1], None, {}),
        (*SHAPES[2], 0.3, {"gamma": 0.5, "label_smoothing": 0.2}),
        (*SHAPES[3], 0.3, {"gamma": 0}),
    ],
)
def test_focal_losses_of_yes_or_no_are_those_of_the_formula(shape, axis, alpha, options, random, calls):
    logits, _, labels = problem(random, shape, axis)
    labels[0] = np.round(labels[0])
    gamma, smoothing = options.get("gamma", 2.0), options.get("label_smoothing", 0.0)
    expected, slope = expected_of_focal_yes_or_no(
        logits.astype(float), labels.astype(float), gamma, smoothing, alpha
    )
    balanced = {} if alpha is None else {"apply_class_balancing": True, "alpha": alpha}
    loss = ours(BINARY_FOCAL, axis=axis, reduction=None, **balanced, **options)
    np.testing.assert_allclose(array(loss(labels, logits)), expected.mean(axis), 2e-6, 1e-6)
    assert set(calls) == {AT[BINARY_FOCAL]}
    if BACKEND != "numpy":
        value, found = gradient(loss, labels, logits)
        np.testing.assert_allclose(value, expected.mean(axis), 2e-6, 1e-6)
        np.testing.assert_allclose(found, slope / shape[axis], 1e-5, 1e-6)


def test_what_is_left_of_a_confident_row_has_its_digits():
    """Keras takes 1e-7 for what is less."""
    p = 1 / (1 + np.exp(17.0))
    logits, labels = np.array([[17.0, 0.0]], "float32"), np.array([[1, 0]])
    np.testing.assert_allclose(array(ours(FOCAL)(labels, logits)), 0.25 * p**3, 1e-6)
    np.testing.assert_allclose(array(ours(BINARY_FOCAL)(labels[:, :1], logits[:, :1])), p**3, 1e-6)


@trains
@pytest.mark.parametrize("gamma", [0.5, 1, 2])
def test_the_ends_of_confidence_of_focal_losses(gamma):
    """Where the probability of the target is 1 and 0."""
    logits, labels = np.array([[500, 0, 0], [-500, 0, -np.inf]], "float32"), np.eye(3)[[0, 0]]
    value, slope = gradient(ours(FOCAL, gamma=gamma, alpha=1, reduction=None), labels, logits)
    np.testing.assert_allclose(value, [0, 500])
    np.testing.assert_allclose(slope, [[0, 0, 0], [-1, 1, 0]], atol=1e-12)
    value, slope = gradient(
        ours(BINARY_FOCAL, gamma=gamma, reduction=None),
        np.array([[1, 1, 0]]),
        np.array([[500, -500, 500]], "float32"),
    )
    np.testing.assert_allclose(value, [1000 / 3], 1e-6)
    np.testing.assert_allclose(3 * slope, [[0, -1, 1]], 1e-6, 1e-12)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_the_dtype_of_the_loss_is_that_of_its_computation(name, dtype, random, calls):
    if BACKEND == "jax" and dtype == "float64":
        pytest.skip("JAX has no float64 unless it is asked")
    logits, classes, labels = problem(random, (64, 12), -1)
    labels = labels_of(name, classes, labels)
    rounded = array(keras.ops.cast(logits, dtype))
    of = array(keras.ops.cast(labels, dtype)) if name != SPARSE else labels
    if name == SPARSE:
        expected = expected_of_classes(rounded, of, -1)[0]
    elif name == SOFT:
        expected = expected_of_probabilities(rounded, of, -1)[0]
    elif name == FOCAL:
        expected = expected_of_focal(rounded, classes, -1, 0.25, 2.0)[0]
    elif name == BINARY_FOCAL:
        expected = expected_of_focal_yes_or_no(rounded, of)[0].mean(-1)
    else:
        expected = expected_of_yes_or_no(rounded, of)[0].mean(-1)
    found = ours(name, dtype=dtype, reduction=None)(labels, logits)
    assert keras.backend.standardize_dtype(found.dtype) == dtype
    # Keras takes the mean of a binary loss in the dtype.
    tolerance = {"bfloat16": 2**-6, "float16": 2**-9, "float64": 1e-12}[dtype]
    if BACKEND in ("numpy", "torch") and name in (BINARY, BINARY_FOCAL) and dtype == "float64":
        tolerance = 1e-6  # Keras's mean is of float32 there
    np.testing.assert_allclose(array(found), expected, tolerance)
    assert calls


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", None])
def test_classes_are_not_rounded(dtype):
    """In bfloat16 257 would be 256, in float16 2049 2048; Keras's own loss takes these."""
    logits = np.zeros((3, 4000), "float32")
    classes = np.array([257, 2049, 3999])
    logits[range(3), classes] = 20
    for labels in (classes, classes.tolist(), classes.astype("float32")):
        found = array(ours(SPARSE, dtype=dtype, reduction=None)(labels, logits))
        assert (found < 1e-4).all(), found


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "reduction", ["sum_over_batch_size", "mean", "sum", "mean_with_sample_weight", "none", None]
)
def test_weights_and_reductions_are_keras(name, reduction, random):
    logits, classes, labels = problem(random, (6, 4, 5), -1)
    labels = labels_of(name, classes, labels)
    for weight in (None, 2.3, random.random((6, 4)), random.random((6, 1)), np.arange(24).reshape(6, 4) % 2):
        found, expected = (
            array(loss(name, reduction=reduction)(labels, logits, weight)) for loss in (ours, theirs)
        )
        # Keras takes the logarithm of a sigmoid that was rounded: on NumPy, and in a focal loss.
        rounds = name == BINARY_FOCAL or (BACKEND, name) == ("numpy", BINARY)
        tolerance = 1e-3 if rounds else 1e-5
        np.testing.assert_allclose(found, expected, tolerance, 1e-6)


@pytest.mark.parametrize("reduction", ["sum_over_batch_size", "sum", "mean_with_sample_weight", None])
@pytest.mark.parametrize("ignored", [-1, 2, 255])
def test_ignored_classes_are_masked_as_keras_masks_them(reduction, ignored, random):
    logits, classes, _ = problem(random, (6, 4, 5), -1)
    classes[random.random(classes.shape) < 0.4] = ignored
    for labels in (classes, classes[..., None], classes.astype("float32")):
        for weight in (None, random.random((6, 4))):
            found, expected = (
                array(loss(SPARSE, reduction=reduction, ignore_class=ignored)(labels, logits, weight))
                for loss in (ours, theirs)
            )
            np.testing.assert_allclose(found, expected, 1e-5, 1e-6)


@trains
def test_an_ignored_row_has_gradient_0_whatever_it_holds(random):
    logits, classes, _ = problem(random, (6, 5), -1)
    classes[2], logits[2] = -1, np.nan
    value, found = gradient(ours(SPARSE, ignore_class=-1), classes, logits)
    rows = [0, 1, 3, 4, 5]
    expected, slope = expected_of_classes(logits[rows].astype(float), classes[rows], -1)
    np.testing.assert_allclose(value, expected.mean(), 1e-6)
    np.testing.assert_allclose(found[rows], slope / 5, 1e-5, 1e-6)
    assert (found[2] == 0).all()


def test_an_ignored_class_is_none_unless_it_is_given():
    """-100, which PyTorch ignores, is a class that is not there."""
    logits, labels = np.zeros((2, 3), "float32"), np.array([0, -100])
    loss = ours(SPARSE, reduction=None)
    if BACKEND == "jax":
        np.testing.assert_allclose(array(loss(labels, logits)), [np.log(3), np.nan], 1e-6)
        np.testing.assert_allclose(array(loss(labels + 98, logits + 1)), [np.nan, np.nan])
    else:
        with pytest.raises(IndexError, match="-100"):
            loss(labels, logits)


def test_what_is_masked_does_not_count(random):
    logits, classes, _ = problem(random, (6, 4, 5), -1)
    mask = random.random((6, 4)) < 0.6
    results = []
    for loss in (ours(SPARSE), theirs(SPARSE)):
        tensor = keras.ops.convert_to_tensor(logits)
        keras.src.backend.set_keras_mask(tensor, keras.ops.convert_to_tensor(mask))
        results.append(array(loss(classes, tensor)))
    expected = expected_of_classes(logits.astype(float), classes, -1)[0]
    np.testing.assert_allclose(results, expected[mask].mean(), 1e-5)


# Training.


def built(layers, seed=7):
    keras.utils.set_random_seed(seed)
    return keras.Sequential(layers())


def dense():
    return [keras.Input((8,)), keras.layers.Dense(12, activation="relu"), keras.layers.Dense(5)]


def of_words():
    return [
        keras.Input((7,)),
        keras.layers.Embedding(20, 6, mask_zero=True),
        keras.layers.Dense(5),
    ]


def of_pixels():
    return [keras.Input((6, 6, 3)), keras.layers.Conv2D(4, 3, padding="same"), keras.layers.Conv2D(5, 1)]


def history(model, loss, data, labels, *, compiled=None, **options):
    model.compile(keras.optimizers.SGD(0.1), loss=loss, **(compiled or {}))
    return model.fit(data, labels, batch_size=16, epochs=3, verbose=0, shuffle=False, **options).history


CASES = {
    "plain": (dense, {}, {}, {}),
    "without a compiler": (dense, {}, {"run_eagerly": True}, {}),
    "sample weights": (dense, {}, {}, {"sample_weight": lambda random: random.random(40)}),
    "sum": (dense, {"reduction": "sum"}, {"jit_compile": False}, {}),
    "validation": (dense, {}, {"metrics": ["accuracy"]}, {"validation_split": lambda random: 0.25}),
    "several steps a call": (dense, {}, {"steps_per_execution": 2}, {}),
    "masked words": (of_words, {}, {}, {}),
    "pixels": (of_pixels, {}, {}, {}),
}


def data_of(layers, name, random):
    shape = {dense: (40, 8), of_words: (40, 7), of_pixels: (40, 6, 6, 3)}[layers]
    data = (
        random.integers(0, 20, shape) if layers is of_words else random.normal(size=shape).astype("float32")
    )
    rows = {dense: (40,), of_words: (40, 7), of_pixels: (40, 6, 6)}[layers]
    if name in (SPARSE, FOCAL):
        return data, labels_of(name, random.integers(0, 5, rows), np.zeros(5))
    labels = softmax(random.normal(size=(*rows, 5)), -1).astype("float32")
    return data, labels if name == SOFT else (labels > 0.2).astype("float32")


@trains
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", NAMES)
def test_fit_has_the_history_of_the_built_in(name, case, random, calls):
    layers, options, compiled, fitted = CASES[case]
    if BACKEND == "torch" and "steps_per_execution" in compiled:
        pytest.skip("Keras takes one step a call on PyTorch")
    data, labels = data_of(layers, name, random)
    fitted = {key: make(random) for key, make in fitted.items()}
    if "metrics" in compiled:
        compiled = {"metrics": ["sparse_categorical_accuracy" if name == SPARSE else "accuracy"]}
    expected, found = (
        history(built(layers), loss(name, **options), data, labels, compiled=compiled, **fitted)
        for loss in (theirs, ours)
    )
    assert calls
    assert set(calls) == {AT[name]}
    assert expected.keys() == found.keys()
    for key, values in expected.items():
        np.testing.assert_allclose(found[key], values, 2e-5, err_msg=key)
        assert "loss" not in key or values[0] != values[-1]


@trains
@pytest.mark.parametrize(
    ("name", "options"),
    [
        (SPARSE, {"ignore_class": 2}),
        (SOFT, {"label_smoothing": 0.1}),
        (BINARY, {"label_smoothing": 0.1}),
        (FOCAL, {"alpha": [0.1, 1, 2, 0.5, 0.7], "gamma": 1.5}),
        (BINARY_FOCAL, {"apply_class_balancing": True, "gamma": 1.5, "label_smoothing": 0.1}),
    ],
)
def test_fit_has_the_history_of_the_built_in_with_its_options(name, options, random):
    data, labels = data_of(of_pixels, name, random)
    expected, found = (
        history(built(of_pixels), loss(name, **options), data, labels) for loss in (theirs, ours)
    )
    np.testing.assert_allclose(found["loss"], expected["loss"], 2e-5)


@trains
def test_fit_takes_weights_of_classes(random):
    data, labels = data_of(dense, SPARSE, random)
    weights = {place: 1 + place for place in range(5)}
    expected, found = (
        history(built(dense), loss(SPARSE), data, labels, class_weight=weights) for loss in (theirs, ours)
    )
    np.testing.assert_allclose(found["loss"], expected["loss"], 2e-5)


@trains
@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_fit_under_a_policy_of_mixed_precision(policy, random):
    data, labels = data_of(dense, SPARSE, random)
    keras.config.set_dtype_policy(policy)
    try:
        expected, found = (history(built(dense), loss(SPARSE), data, labels) for loss in (theirs, ours))
        lower = history(built(dense), ours(SPARSE, dtype=policy), data, labels)
    finally:
        keras.config.set_dtype_policy("float32")
    np.testing.assert_allclose(found["loss"], expected["loss"], 2**-7)
    np.testing.assert_allclose(lower["loss"], expected["loss"], 2**-5)


@pytest.mark.parametrize("name", NAMES)
def test_evaluate_has_the_loss_of_the_built_in(name, random):
    data, labels = data_of(dense, name, random)
    model, results = built(dense), []
    for loss in (ours(name), theirs(name)):
        model.compile(loss=loss)
        results.append(model.evaluate(data, labels, batch_size=16, verbose=0))
    np.testing.assert_allclose(*results, 2e-6)


# Saving.


@pytest.mark.parametrize(
    ("name", "options"),
    [
        (SPARSE, {"ignore_class": 255, "axis": 1, "reduction": "sum", "name": "own", "dtype": "bfloat16"}),
        (SOFT, {"label_smoothing": 0.25, "axis": 2, "reduction": None, "name": "own", "dtype": "float16"}),
        (BINARY, {"label_smoothing": 0.25, "axis": 2, "reduction": None, "name": "own", "dtype": "float64"}),
        (
            FOCAL,
            {
                **{"alpha": [0.5, 1], "gamma": 1.5, "label_smoothing": 0.25, "axis": 2},
                **{"reduction": None, "name": "own", "dtype": "float16"},
            },
        ),
        (
            BINARY_FOCAL,
            {
                **{
                    "apply_class_balancing": True,
                    "alpha": 0.5,
                    "gamma": 1.5,
                    "label_smoothing": 0.25,
                    "axis": 2,
                },
                **{"reduction": "sum", "name": "own", "dtype": "bfloat16"},
            },
        ),
    ],
)
def test_a_loss_is_made_again_from_its_config(name, options):
    loss = ours(name, **options)
    expected = {"from_logits": True, **options}
    serialized = keras.losses.serialize(loss)
    assert serialized["registered_name"] == f"xent_rs>{name}"
    for again in (
        type(loss).from_config(loss.get_config()),
        keras.losses.deserialize(json.loads(json.dumps(serialized))),
        copy.deepcopy(loss),
        pickle.loads(pickle.dumps(loss)),
    ):
        assert type(again) is getattr(xk, name)
        assert again.get_config() == expected
        assert again.dtype == options["dtype"]
        assert again.fn is loss.fn


@pytest.mark.parametrize("name", NAMES)
def test_a_model_is_saved_and_loaded_with_its_loss(name, random, tmp_path, calls):
    data, labels = data_of(dense, name, random)
    model = built(dense)
    model.compile("sgd", loss=ours(name, reduction="sum"))
    expected = model.evaluate(data, labels, verbose=0)
    model.save(tmp_path / "model.keras")
    calls.clear()
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert type(loaded.loss) is getattr(xk, name)
    assert loaded.evaluate(data, labels, verbose=0) == pytest.approx(expected, rel=1e-6)
    assert calls


# What is refused.


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("given", [{}, {"from_logits": False}, {"from_logits": None}])
def test_logits_have_to_be_said(name, given):
    with pytest.raises(ValueError, match=r"^from_logits is") as caught:
        getattr(xk, name)(**given)
    assert str(caught.value) == (
        f"from_logits is {given.get('from_logits', False)}; expected True: xent_rs.keras.{name} takes "
        "logits, the outputs of a model whose last layer has no activation (of probabilities there is "
        f"keras.losses.{name})"
    )


@pytest.mark.parametrize("name", NAMES)
def test_the_arguments_are_those_of_keras(name):
    theirs, ours = (
        [(each, parameter.default) for each, parameter in inspect.signature(module).parameters.items()]
        for module in (getattr(keras.losses, name).__init__, getattr(xk, name).__init__)
    )
    assert ours == theirs
    assert issubclass(getattr(xk, name), getattr(keras.losses, name))


@pytest.mark.parametrize(
    ("name", "labels", "options", "sentence"),
    [
        (
            SPARSE,
            (3,),
            {},
            "y_true has shape (3,); expected (4,), that of y_pred, (4, 5) without the classes",
        ),
        (SPARSE, (4, 5), {}, "y_true has shape (4, 5); expected (4,), that of y_pred"),
        (SPARSE, (4,), {"axis": 0}, "y_true has shape (4,); expected (5,), that of y_pred"),
        (SPARSE, (4,), {"axis": 2}, "axis is 2; expected -2 to 1 for y_pred of 2 dimensions"),
        (SOFT, (1, 5), {}, "y_true has shape (1, 5); expected (4, 5), that of y_pred"),
        (SOFT, (4, 5), {"axis": -3}, "axis is -3; expected -2 to 1 for y_pred of 2 dimensions"),
        (BINARY, (4, 4), {}, "y_true has shape (4, 4); expected (4, 5), that of y_pred"),
        (FOCAL, (4,), {}, "y_true has shape (4,); expected (4, 5), that of y_pred"),
        (FOCAL, (4, 5), {"axis": 2}, "axis is 2; expected -2 to 1 for y_pred of 2 dimensions"),
        (FOCAL, (4, 5), {"alpha": [1, 2]}, "alpha has shape (2,); expected a number, or one for each class"),
        (BINARY_FOCAL, (4, 4), {}, "y_true has shape (4, 4); expected (4, 5), that of y_pred"),
    ],
)
def test_shapes_that_do_not_match_are_named(name, labels, options, sentence):
    with pytest.raises(ValueError, match=r"; expected") as caught:
        ours(name, **options)(np.zeros(labels, int), np.zeros((4, 5), "float32"))
    assert str(caught.value).startswith(sentence)


@pytest.mark.parametrize("name", [FOCAL, BINARY_FOCAL])
@pytest.mark.parametrize("gamma", [-0.1, 1e101, np.nan])
def test_a_gamma_is_at_least_0(name, gamma):
    with pytest.raises(ValueError, match=r"^gamma is .*; expected a number from 0 to 1e100$"):
        ours(name, gamma=gamma)


@pytest.mark.parametrize("name", [SOFT, BINARY, FOCAL, BINARY_FOCAL])
@pytest.mark.parametrize("share", [-0.1, 1.5, np.nan])
def test_a_share_is_between_0_and_1(name, share):
    with pytest.raises(ValueError, match=r"^label_smoothing is .*; expected a number from 0 to 1$"):
        ours(name, label_smoothing=share)


# What Keras computes.


@pytest.mark.parametrize("name", NAMES)
def test_tensors_without_numbers_are_left_to_keras(name, calls):
    logits = keras.KerasTensor((4, 5))
    labels = keras.KerasTensor((4,) if name == SPARSE else (4, 5))
    loss = ours(name, reduction=None)
    assert loss.call(labels, logits).shape == (4,)
    assert not calls


@on_tensorflow
@pytest.mark.parametrize("name", NAMES)
def test_programs_that_xla_compiles_are_left_to_keras(name, random, calls):
    data, labels = data_of(dense, name, random)
    jit = {"jit_compile": True}
    expected, found = (
        history(built(dense), loss(name), data, labels, compiled=jit) for loss in (theirs, ours)
    )
    assert found == expected
    assert not calls
    import tensorflow as tf

    nested = tf.function(tf.function(ours(name)), jit_compile=True)
    logits = tf.constant(data[:, :5])
    np.testing.assert_allclose(array(nested(labels, logits)), array(theirs(name)(labels, logits)), 1e-6)
    assert not calls


# TensorFlow.


@on_tensorflow
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("graph", [False, True])
def test_derivatives_of_every_order_and_by_the_labels(name, graph, random):
    import tensorflow as tf

    if graph and name == FOCAL:
        pytest.skip("TensorFlow has no second derivatives of a tf.cond with a tf.where, as it adds bool")
    logits, classes, soft = problem(random, (3, 4, 5), -1)
    labels = tf.constant(labels_of(name, classes, soft))
    options = {SPARSE: {"ignore_class": 2}, FOCAL: {"gamma": 1.5}}.get(name, {"label_smoothing": 0.2})
    constant = name in (SPARSE, FOCAL)
    upstream = tf.constant(random.normal(size=(3, 4)), "float32")

    def derivatives(loss, logits, labels):
        with tf.GradientTape(persistent=True) as outer:
            outer.watch([logits] if constant else [logits, labels])
            with tf.GradientTape() as inner:
                inner.watch(logits)
                value = tf.reduce_sum(loss(labels, logits) * upstream)
            slope = tf.math.sin(inner.gradient(value, logits))
        second = outer.gradient(slope, logits)
        return [second] if constant else [second, outer.gradient(value, labels)]

    found, expected = (
        (tf.function(derivatives) if graph else derivatives)(
            loss(name, reduction=None, **options), tf.constant(logits), labels
        )
        for loss in (ours, theirs)
    )
    # TensorFlow's own derivative takes the sum of the probabilities to be 1, as it is here.
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(array(one), array(other), 1e-4, 1e-5)


@on_tensorflow
@pytest.mark.parametrize("name", NAMES)
def test_derivatives_in_a_branch_of_a_graph(name, random):
    import tensorflow as tf

    logits, classes, soft = problem(random, (4, 5), -1)
    labels = tf.constant(labels_of(name, classes, soft))

    @tf.function
    def slope(branch, logits, labels):
        with tf.GradientTape() as tape:
            tape.watch(logits)
            value = tf.cond(branch, lambda: ours(name)(labels, logits), lambda: tf.reduce_sum(logits))
        return tape.gradient(value, logits)

    expected = gradient(ours(name), labels, logits)[1]
    np.testing.assert_allclose(slope(tf.constant(True), tf.constant(logits), labels), expected, 1e-5, 1e-7)
    assert (array(slope(tf.constant(False), tf.constant(logits), labels)) == 1).all()


@on_tensorflow
@pytest.mark.parametrize("name", NAMES)
def test_shapes_that_are_not_known_before_the_run(name, random):
    import tensorflow as tf

    logits, classes, soft = problem(random, (6, 5), -1)
    labels = labels_of(name, classes, soft)
    row = [None] if name == SPARSE else [None, 5]
    loss = tf.function(
        ours(name, reduction=None),
        input_signature=[tf.TensorSpec(row, labels.dtype), tf.TensorSpec([None, 5], "float32")],
    )
    np.testing.assert_allclose(
        array(loss(labels, logits)), array(theirs(name, reduction=None)(labels, logits)), 1e-5, 1e-6
    )
    assert loss.get_concrete_function().output_shapes.as_list() == [None]
    with pytest.raises((tf.errors.OpError, ValueError)):
        loss(labels[:3], logits)


@on_tensorflow
def test_a_factor_for_each_of_classes_whose_number_is_not_known_before_the_run(random):
    import tensorflow as tf

    logits, classes, _ = problem(random, (6, 5), -1)
    labels, alpha = np.eye(5, dtype=np.float32)[classes], [0.1, 0.2, 0.3, 0.4, 0.5]
    loss = tf.function(
        ours(FOCAL, alpha=alpha, reduction=None), input_signature=[tf.TensorSpec([None, None], "float32")] * 2
    )
    expected = theirs(FOCAL, alpha=alpha, reduction=None)(labels, logits)
    np.testing.assert_allclose(array(loss(labels, logits)), array(expected), 1e-5, 1e-6)


@on_tensorflow
def test_a_label_that_is_no_class_is_named_in_the_error_of_a_graph():
    import tensorflow as tf

    loss = tf.function(ours(SPARSE))
    with pytest.raises(tf.errors.OpError, match=r"7"):
        loss(tf.constant([0, 7]), tf.zeros((2, 5)))


# Keras's own tests, with our losses in their places.

#: The tests in which Keras's losses take probabilities alone, which are not for ours.
OF_PROBABILITIES = {
    f"{SPARSE}Test.test_binary_segmentation",
    f"{SPARSE}Test.test_binary_segmentation_different_axis",
    f"{SPARSE}Test.test_multi_class_segmentation",
    f"{SPARSE}Test.test_multi_class_segmentation_different_axis",
    f"{BINARY_FOCAL}Test.test_no_reduction",
}
#: Those that hold for logits too, though they do not say so.
OF_EITHER = {"test_config", "test_dtype_arg", "test_shape_mismatch"}


# It calls `keras.losses.sparse_categorical_crossentropy`, which is no class, and fails on NumPy and JAX.
OF_A_FUNCTION = "test_squeezes_singleton_class_dim_on_user_axis"


def own_tests():
    """Return the names of Keras's tests of these losses, `Class.method`."""
    with contextlib.suppress(ImportError):
        module = importlib.import_module("keras.src.losses.losses_test")
        for name in NAMES:
            for method in unittest.TestLoader().getTestCaseNames(getattr(module, f"{name}Test")):
                if method != OF_A_FUNCTION:
                    yield f"{name}Test.{method}"


@pytest.mark.parametrize(
    "name", list(own_tests()) or [pytest.param("", marks=pytest.mark.skip("the tests of Keras are missing"))]
)
def test_keras_takes_our_losses_for_its_own(name, monkeypatch):
    module = importlib.import_module("keras.src.losses.losses_test")
    class_name, method = name.split(".")
    made = []
    for loss in NAMES:
        own = getattr(module.losses, loss)

        def make(*args, loss=loss, own=own, **options):
            if method in OF_EITHER:
                options["from_logits"] = True
            if not options.get("from_logits"):
                return own(*args, **options)
            made.append(loss)
            return getattr(xk, loss)(*args, **options)

        monkeypatch.setattr(module.losses, loss, make)
    result = unittest.TestResult()
    getattr(module, class_name)(method).run(result)
    assert not result.errors + result.failures, (result.errors + result.failures)[0][1]
    assert result.testsRun == 1
    assert bool(made) != (name in OF_PROBABILITIES)
