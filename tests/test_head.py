"""`evaluate` and `compare` from hidden states and the last layer of a model, the head.

Products of small integers are exact in any order of summation: what is made of them has the bits of what is
made of the logits. Products of any numbers are held to the bound of a sum of products in floating point,

    |error of a logit| <= g (sum |h w| + |bias|)      g = n u / (1 - n u), n = K + 1, u = 2^-24 (or 2^-53)

for K features: of each product K roundings at most, its own and those of sums, and that of the bias's sum.
With d the largest of a row's, divided by the temperature, a log-sum-exp changes by d at most, a loss by 2 d
times its shares.
"""

import itertools
import math
import pickle
import re
import sys
from unittest import mock

import numpy as np
import pytest
from ml_dtypes import bfloat16
from xent_rs import Comparer, Evaluator, _head, _products, compare, evaluate, io

from .bounds import CrossEntropyBounds, assert_within, mean_bound
from .cases import DTYPES
from .comparison_oracle import divergences, log_softmax
from .growth import GROWTH
from .oracle import CrossEntropy, Softmax
from .test_floating_point_environment import ENVIRONMENTS, environment, register
from .test_layouts import axes_turned, byte_swapped, misaligned, reversed_along, stepped_along
from .test_memory import linux

__all__ = ["register"]  # a fixture


def integers(random, shape, dtype=np.float32):
    return random.integers(-3, 4, shape).astype(dtype)


def model(random, rows=20, features=6, classes=9, dtype=np.float32):
    """Hidden states, weights, bias and targets of small integers."""
    hidden, weight = integers(random, (rows, features), dtype), integers(random, (classes, features), dtype)
    return hidden, weight, integers(random, classes, dtype), random.integers(classes, size=rows)


def logits_of(hidden, weight, bias=0):
    """What is exact in float32."""
    wide = [np.asarray(values).astype(np.float64) for values in (hidden, weight, bias)]
    return wide[0] @ wide[1].T + wide[2]


def same(found, expected):
    """The same bits, NaN included."""
    return repr(found) == repr(expected)


@pytest.fixture
def small_steps(monkeypatch):
    """Several slices of the weights and several widenings, of few numbers."""
    monkeypatch.setattr(_head, "_SLICE_BYTES", 100)
    monkeypatch.setattr(_products, "_WIDENED", 7)


# Against float64.


def logit_errors(hidden, weight, bias, dtype):
    """How far each logit may be from the exact one."""
    hidden, weight, bias = (np.abs(np.asarray(x).astype(np.float64)) for x in (hidden, weight, bias))
    u = 2.0**-53 if dtype == np.float64 else 2.0**-24
    n = hidden.shape[1] + 1
    return n * u / (1 - n * u) * (hidden @ weight.T + bias)


@pytest.mark.parametrize(("of_hidden", "of_weight"), [*itertools.product(DTYPES, DTYPES)], ids=str)
def test_logits_are_within_the_bound(random, of_hidden, of_weight):
    for rows, features, classes in ((1, 300, 70), (5, 1, 3), (64, 2048, 200)):
        hidden = random.standard_normal((rows, features)).astype(of_hidden)
        weight = random.standard_normal((classes, features)).astype(of_weight)
        bias = 100 * random.standard_normal(classes)
        head = _head.Head(hidden, "logits", -1, weight, bias)
        found, wide = (
            head.logits(head.states(hidden)),
            np.longdouble if head.dtype == np.float64 else np.float64,
        )
        assert found.dtype == (np.float64 if np.float64 in (of_hidden, of_weight) else np.float32)
        exact = hidden.astype(wide) @ weight.astype(wide).T + bias.astype(wide)
        bound = logit_errors(hidden, weight, bias, head.dtype)
        assert_within("logits from hidden states", found, exact, bound, head.dtype)


OPTIONS = [
    {},
    {"temperature": 0.7, "softcap": 4.0},
    {"label_smoothing": 0.2, "z_loss": 0.1},
    {"weight": True, "sample_weight": True, "ignore_index": 3},
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(options))
@pytest.mark.parametrize("bias_dtype", [None, np.float16, np.float64])
@pytest.mark.parametrize(("of_hidden", "of_weight"), [*itertools.product(DTYPES, DTYPES)], ids=str)
def test_the_loss_is_within_the_bound(random, of_hidden, of_weight, bias_dtype, options):
    rows, features, classes = 300, 37, 23
    hidden = random.standard_normal((rows, features)).astype(of_hidden)
    weight = random.standard_normal((classes, features)).astype(of_weight)
    bias = None if bias_dtype is None else random.standard_normal(classes).astype(bias_dtype)
    assert_loss_within_the_bound(random, hidden, weight, bias, options)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_loss_of_many_classes_is_within_the_bound(random, dtype):
    """Of the vocabularies in use: faults have been seen above 250,000 classes alone."""
    hidden = (3 * random.standard_normal((5, 4))).astype(dtype)
    weight = random.standard_normal((262_144, 4)).astype(dtype)
    bias = random.standard_normal(262_144).astype(dtype)
    assert_loss_within_the_bound(random, hidden, weight, bias, {})


def assert_loss_within_the_bound(random, hidden, weight, bias, options):
    rows, classes = len(hidden), len(weight)
    targets = random.integers(classes, size=rows)
    options = {name: value for name, value in options.items() if value is not True} | {
        name: random.uniform(0.5, 2, {"weight": classes, "sample_weight": rows}[name])
        for name, value in options.items()
        if value is True
    }
    dtype = np.dtype(np.float64 if np.float64 in (hidden.dtype, weight.dtype) else np.float32)
    of_bias = np.zeros(classes) if bias is None else bias
    wide = np.longdouble if dtype == np.float64 else np.float64
    exact = hidden.astype(wide) @ weight.astype(wide).T + of_bias.astype(wide)
    softmax = Softmax(exact, options.get("temperature", 1.0), options.get("softcap"))
    of_losses = {name: options[name] for name in options if name not in ("temperature", "softcap")}
    oracle = CrossEntropy(softmax, targets, **of_losses)
    bounds = CrossEntropyBounds(oracle, dtype)
    change = logit_errors(hidden, weight, of_bias, dtype).max(axis=1) / options.get("temperature", 1.0)
    of_product = 2 * change * oracle.shares.sum(axis=1)
    of_product = of_product + oracle.z_loss * (2 * np.abs(softmax.logsumexp) * change + change**2)
    bound = bounds.losses + np.abs(oracle.scale) * of_product

    found = evaluate(hidden, targets, linear_weight=weight, linear_bias=bias, **options)
    losses, rows = oracle.losses, np.count_nonzero(~oracle.left_out)
    assert (found.rows, found.ignored) == (rows, len(hidden) - rows)
    assert_within(
        "loss from hidden states",
        found.loss,
        losses.sum() / oracle.divisor,
        mean_bound(bound, losses, oracle.divisor),
        dtype,
    )
    entropies = softmax.entropies[~oracle.left_out]
    assert found.entropy == pytest.approx(float(entropies.mean()), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("dtype", [np.float16, bfloat16, np.float32, np.float64])
def test_the_divergence_is_that_of_float64(random, dtype):
    """Of logs that are wrong by e and f it changes by e + f + (exp(e) - 1) sum p |log p/q| at most."""
    rows, classes = 40, 50
    pair = [random.standard_normal((rows, features)).astype(dtype) for features in (16, 24)]
    heads = tuple(
        random.standard_normal((classes, len(states.T))).astype(dtype) / dtype(2) for states in pair
    )
    biases = tuple(random.standard_normal(classes).astype(dtype) for _ in pair)
    found = compare(*pair, linear_weight=heads, linear_bias=biases)
    computed_in = np.float64 if dtype == np.float64 else np.float32
    expected, bound = 0.0, 0.0
    for row in range(rows):
        logs = [
            log_softmax(logits_of(states[row], head, bias))
            for states, head, bias in zip(pair, heads, biases, strict=True)
        ]
        e, f = (
            2 * logit_errors(states[row : row + 1], head, bias, computed_in).max()
            for states, head, bias in zip(pair, heads, biases, strict=True)
        )
        expected += divergences(*logs)[0] / rows
        bound += (e + f + math.expm1(e) * np.sum(np.exp(logs[0]) * np.abs(logs[0] - logs[1]))) / rows
    assert found.rows == rows
    assert abs(found.kl.value - expected) <= bound + 1e-6 * expected
    assert bound < 1e-3 * expected


# The bits of what is made of the logits, where products are exact.


@pytest.mark.parametrize("rows", [0, 1, 2, 255, 256, 257, 600])
def test_any_number_of_rows(random, rows):
    hidden, weight, bias, targets = model(random, rows)
    targets[5::7] = -100
    for dtype in (np.float32, np.float16):
        found = evaluate(hidden.astype(dtype), targets, linear_weight=weight.astype(dtype), linear_bias=bias)
        assert same(found, evaluate(logits_of(hidden, weight, bias).astype(np.float32), targets))
    found = compare(hidden, hidden[::-1], targets, linear_weight=weight, linear_bias=bias)
    reference, candidate = (
        logits_of(states, weight, bias).astype(np.float32) for states in (hidden, hidden[::-1])
    )
    assert same(found, compare(reference, candidate, targets))


@pytest.mark.parametrize(
    ("shape", "axis"), [((6,), 0), ((6,), -1), ((7, 6), 1), ((6, 7), 0), ((2, 3, 6), -1), ((2, 6, 3), 1)]
)
def test_features_along_any_axis(random, shape, axis):
    features, classes = 6, 9
    hidden, weight = integers(random, shape), integers(random, (classes, features))
    rows = [length for place, length in enumerate(shape) if place != axis % len(shape)]
    targets, weights = random.integers(classes, size=rows), random.integers(0, 2, rows)
    logits = np.moveaxis(logits_of(np.moveaxis(hidden, axis, -1), weight), -1, axis).astype(np.float32)
    options = {"axis": axis, "sample_weight": weights}
    assert same(
        evaluate(hidden, targets, linear_weight=weight, **options), evaluate(logits, targets, **options)
    )
    found = compare(hidden, hidden, targets, linear_weight=(weight, -weight), groups=targets, **options)
    assert same(found, compare(logits, -logits, targets, groups=targets, **options))


LAYOUTS = {
    "rows of classes": lambda array: array.copy(),
    "rows of features": lambda array: array.T.copy().T,
    "every other feature": stepped_along(-1, 2),
    "every other class": stepped_along(0, 3),
    "backwards": reversed_along(-1),
    "turned": axes_turned,
    "byte-swapped": byte_swapped,
    "misaligned": misaligned,
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("of_hidden", [np.float32, np.float64, bfloat16])
def test_weights_and_hidden_states_of_any_layout(random, small_steps, dtype, layout, of_hidden):
    hidden, weight, bias, targets = model(random, 20, 6, 29)
    expected = evaluate(logits_of(hidden, weight, bias).astype(np.result_type(np.float32, dtype)), targets)
    if of_hidden == np.float64:
        expected = evaluate(logits_of(hidden, weight, bias), targets)
    placed = LAYOUTS[layout](weight.astype(dtype))
    hidden = LAYOUTS[layout](hidden.astype(of_hidden))
    assert same(evaluate(hidden, targets, linear_weight=placed, linear_bias=bias), expected)


def test_what_the_matrix_library_would_copy_is_copied_in_slices():
    """Everything that has no unit stride, overlaps or is misaligned; NumPy would make a copy of it all."""
    matrix = np.zeros((9, 6), np.float32)
    for layout in ("rows of classes", "rows of features"):
        assert _products.is_multiplied_in_place(LAYOUTS[layout](matrix))
    assert _products.is_multiplied_in_place(np.zeros((9, 8), np.float32)[::2, :6])
    for layout in ("every other feature", "backwards", "misaligned"):
        assert not _products.is_multiplied_in_place(LAYOUTS[layout](matrix))
    overlapping = np.lib.stride_tricks.as_strided(matrix, (9, 6), (8, 4))
    for other in (np.broadcast_to(np.float32(2), (9, 6)), overlapping):
        assert not _products.is_multiplied_in_place(other)


def test_a_layer_of_one_class_one_feature_or_none(random):
    for features, classes in itertools.product((0, 1, 3), (1, 2)):
        hidden, weight, bias, targets = model(random, 5, features, classes)
        found = evaluate(hidden, targets, linear_weight=weight, linear_bias=bias)
        assert same(found, evaluate(logits_of(hidden, weight, bias).astype(np.float32), targets))


def test_weights_that_are_one_number_in_memory(random):
    hidden, _, _, targets = model(random)
    weight = np.broadcast_to(np.float32(2), (9, 6))
    assert same(
        evaluate(hidden, targets, linear_weight=weight),
        evaluate(logits_of(hidden, weight).astype(np.float32), targets),
    )


def test_lists(random):
    hidden, weight, bias, targets = (values.tolist() for values in model(random))
    expected = evaluate(logits_of(hidden, weight, bias), targets)
    assert same(evaluate(hidden, targets, linear_weight=weight, linear_bias=bias), expected)
    found = compare(hidden, hidden, targets, linear_weight=weight, linear_bias=bias)
    assert (found.kl.value, found.reference.loss) == (0, expected.loss)


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(options))
def test_options_are_those_of_logits(random, options):
    hidden, weight, bias, targets = model(random, 50)
    options = {**options, "top_k": (1, 3)}
    for name, length in (("weight", 9), ("sample_weight", 50)):
        if name in options:
            options[name] = random.integers(0, 3, length)
    logits = logits_of(hidden, weight, bias).astype(np.float32)
    found = evaluate(hidden, targets, linear_weight=weight, linear_bias=bias, **options)
    assert same(found, evaluate(logits, targets, **options))
    for name in ("top_k", "label_smoothing", "z_loss"):
        options.pop(name, None)
    found = compare(hidden, hidden[::-1], targets, linear_weight=weight, linear_bias=bias, **options)
    assert same(found, compare(logits, logits[::-1], targets, **options))


def test_weights_of_16_bits_have_more_rows_at_a_time(random, monkeypatch):
    """If there are several slices, and as long as their logits are small."""
    monkeypatch.setattr(_head, "_SLICE_BYTES", 1 << 10)
    states = np.zeros((1, 16), np.float16)

    def rows(classes, dtype=np.float16):
        weight = np.broadcast_to(np.ones((), dtype), (classes, 16))
        if dtype == np.float32:
            weight = np.zeros((classes, 16), dtype)
        return _head.Head(states, "logits", -1, weight, None).rows

    assert [rows(classes) for classes in (16, 17, 65_536, 65_537, 131_072, 262_144, 10**7)] == [
        *(256, 1024, 1024, 768, 512, 256, 256)
    ]
    assert rows(17, np.float32) == 256


# Rows that do not count.


@pytest.mark.parametrize("weighted", [False, True])
def test_rows_that_do_not_count_are_left_out(random, weighted):
    """Whatever their hidden states hold; and nothing is multiplied for them."""
    hidden, weight, bias, targets = model(random, 700)
    left_out = random.random(700) < 0.4
    hidden[left_out] = random.choice([np.nan, np.inf, -np.inf], (left_out.sum(), 6))
    weights = None
    if weighted:
        weights = np.where(left_out, 0, random.uniform(1, 2, 700))
    else:
        targets[left_out] = -100
    multiplied, logits_of_head = [], _head.Head.logits

    def logits(self, states):
        multiplied.append(len(states))
        return logits_of_head(self, states)

    counted = 700 - left_out.sum()
    whole = logits_of(np.where(left_out[:, None], 0, hidden), weight, bias).astype(np.float32)
    with mock.patch.object(_head.Head, "logits", logits):
        found = evaluate(hidden, targets, linear_weight=weight, linear_bias=bias, sample_weight=weights)
        assert multiplied == [256, counted - 256]
        multiplied.clear()
        both = compare(
            hidden, hidden[::-1][::-1], targets, linear_weight=weight, linear_bias=bias, sample_weight=weights
        )
        assert multiplied == [256, 256, counted - 256, counted - 256]
    assert same(found, evaluate(whole, targets, sample_weight=weights))
    assert same(both, compare(whole, whole, targets, sample_weight=weights))
    assert (found.rows, found.ignored) == (counted, left_out.sum())


def test_no_row_counts(random):
    hidden, weight, _, targets = model(random)
    targets[:] = -100
    found = evaluate(hidden * np.nan, targets, linear_weight=weight)
    assert (found.rows, found.ignored) == (0, 20)
    assert math.isnan(found.loss)
    found = compare(hidden * np.nan, hidden, targets, linear_weight=weight)
    assert (found.rows, found.ignored) == (0, 20)


def test_what_is_not_finite_stays_in_its_row_and_its_class(random):
    hidden, weight, bias, targets = model(random, 30)
    bias[4], targets[targets == 4] = -np.inf, 5
    masked = logits_of(hidden, weight, bias).astype(np.float32)
    assert np.isneginf(masked[:, 4]).all()
    assert same(evaluate(hidden, targets, linear_weight=weight, linear_bias=bias), evaluate(masked, targets))
    hidden[7, 2], hidden[9, 0] = np.nan, np.inf
    groups = np.arange(30)
    found = compare(hidden, hidden, targets, linear_weight=weight, groups=groups).by_group
    assert [number for number, of_row in found.items() if math.isnan(of_row.kl)] == [7, 9]
    assert math.isnan(evaluate(hidden, targets, linear_weight=weight).loss)


# Streams.


def test_batches_of_hidden_states_and_of_logits_add_up(random):
    hidden, weight, bias, targets = model(random, 50)
    logits = logits_of(hidden, weight, bias).astype(np.float32)
    head = {"linear_weight": weight, "linear_bias": bias}
    first, second = Evaluator(), Evaluator()
    first.update(hidden[:20], targets[:20], **head)
    first.update(logits[20:30], targets[20:30])
    second.update(hidden[30:], targets[30:], sample_weight=np.ones(20), **head)
    assert len(pickle.dumps(first)) < 5000, "the head is no part of it"
    assert same(first.merge(second).result(), evaluate(logits, targets))
    first, second = Comparer(), Comparer()
    first.update(hidden[:20], logits[::-1][:20], targets[:20], linear_weight=(weight, None), linear_bias=bias)
    second.update(hidden[20:], hidden[::-1][20:], targets[20:], **head)
    assert same(first.merge(second).result(), compare(logits, logits[::-1], targets))


@pytest.mark.parametrize("fault", ["target", "memory", "interrupt"])
def test_after_a_fault_everything_is_as_before(random, fault):
    hidden, weight, _, targets = model(random, 600)
    evaluator, comparer = Evaluator(), Comparer()
    evaluator.update(hidden, targets, linear_weight=weight)
    comparer.update(hidden, hidden, targets, linear_weight=weight)
    before = evaluator.result(), comparer.result()
    calls = itertools.count()
    logits = _head.Head.logits

    def failing(self, states):
        if next(calls) == 2:
            raise {"memory": MemoryError, "interrupt": KeyboardInterrupt}[fault]
        return logits(self, states)

    error = {"target": IndexError, "memory": MemoryError, "interrupt": KeyboardInterrupt}[fault]
    if fault == "target":
        targets[599] = 9
    with mock.patch.object(_head.Head, "logits", failing):
        with pytest.raises(error):
            evaluator.update(hidden, targets, linear_weight=weight)
        assert next(calls) == (0 if fault == "target" else 3), "a wrong target is said before the work"
        calls = itertools.count()
        with pytest.raises(error):
            comparer.update(hidden, hidden, targets, linear_weight=weight)
        assert next(calls) == (0 if fault == "target" else 3)
    assert same((evaluator.result(), comparer.result()), before)


def test_arrays_that_are_read_in_slices(random, tmp_path, monkeypatch):
    """Files of hidden states, of the weights, too; those of two models may have other numbers of features."""
    monkeypatch.chdir(tmp_path)
    hidden, weight, bias, targets = model(random, 90)
    narrow, narrow_weight = integers(random, (90, 2)), integers(random, (9, 2))
    for number in range(3):
        np.save(f"hidden-{number}.npy", hidden[30 * number : 30 * number + 30])
    np.savez("narrow.npz", hidden=narrow, weight=narrow_weight)
    np.save("weight.npy", weight)
    stored, layer = io.open_array("hidden-*.npy"), io.open_array("weight.npy")
    logits = logits_of(hidden, weight, bias).astype(np.float32)
    found = evaluate(stored, targets, linear_weight=layer, linear_bias=bias, sample_weight=targets)
    assert same(found, evaluate(logits, targets, sample_weight=targets))
    heads = layer, io.open_array("narrow.npz:weight")
    other = io.open_array("narrow.npz:hidden")
    found = compare(stored, other, targets, linear_weight=heads, linear_bias=(bias, None), groups=targets)
    candidate = logits_of(narrow, narrow_weight).astype(np.float32)
    assert same(found, compare(logits, candidate, targets, groups=targets))
    found = compare(logits, other, targets, linear_weight=(None, heads[1]))
    assert same(found, compare(logits, candidate, targets))
    targets[77] = 9
    message = r"^targets\[77\] is 9; expected 0 to 8, or ignore_index -100$"
    with pytest.raises(IndexError, match=message):
        evaluate(stored, targets, linear_weight=layer)
    with pytest.raises(IndexError, match=message):
        compare(stored, other, targets, linear_weight=heads)


def test_blocks_of_two_models_with_other_features():
    pair = np.zeros((6, 4), np.float16), np.zeros((6, 2), np.float32)
    blocks = list(io.paired_row_blocks(*pair, max_bytes=48, same_classes=False))
    assert [(position, first.shape, second.shape) for position, first, second, *_ in blocks] == [
        ((start,), (3, 4), (3, 2)) for start in (0, 3)
    ]
    message = r"^candidate has shape \(6, 2\); expected \(6, 4\), the shape of reference$"
    with pytest.raises(ValueError, match=message):
        io.paired_row_blocks(*pair)
    message = r"^candidate has shape \(5, 2\); expected \(6, 2\), the shape of reference but for axis -1$"
    with pytest.raises(ValueError, match=message.replace("6, 2", "6, 4")):
        io.paired_row_blocks(pair[0], pair[1][:5], same_classes=False)


# Equal models.


@pytest.mark.parametrize("rows", [1, 3, 257, 600])
def test_equal_models_have_a_divergence_of_zero(random, rows):
    """Of any dtypes that hold the same numbers, each product being one of its own."""
    hidden = random.standard_normal((rows, 70)).astype(bfloat16)
    weight = random.standard_normal((800, 70)).astype(bfloat16)
    bias = random.standard_normal(800).astype(np.float16)
    other = weight.astype(np.float32)
    with mock.patch.object(_head, "_SLICE_BYTES", 1 << 15):
        for pair, heads in [
            ((hidden, hidden), weight),
            ((hidden, hidden.astype(np.float32)), (weight, other)),
            ((hidden, hidden.copy()), (other.T.copy().T, weight.T.copy().T)),
            ((hidden.astype(np.float64), hidden), (weight.astype(np.float64), other.astype(np.float64))),
        ]:
            found = compare(*pair, linear_weight=heads, linear_bias=bias)
            assert (found.kl.value, found.kl_max, found.same_top.value) == (0, 0, 1)
            assert found.rows == rows


# Numbers of 16 bits.


ALL = np.arange(1 << 16, dtype=np.uint16)
BARE = np.dtype([("bfloat16", "=u2")])  # what tensors are without ml_dtypes


@pytest.mark.sampled(2)
@pytest.mark.parametrize("widened", [1, 1000, 1 << 20])
@pytest.mark.parametrize("wide", [np.float32, np.float64])
@pytest.mark.parametrize("dtype", [np.dtype(np.float16), np.dtype(bfloat16), BARE], ids=str)
@pytest.mark.filterwarnings("ignore:invalid value encountered in cast")  # of the oracle, by NaN
def test_all_numbers_of_16_bits_are_converted_exactly(monkeypatch, dtype, wide, widened):
    monkeypatch.setattr(_products, "_WIDENED", widened)
    for values in (ALL, ALL[(ALL & 0x7C00) != 0x7C00]):
        for columns in (1, 16, 31):
            values = values[: len(values) // columns * columns]
            of_dtype = values.view(dtype).reshape(-1, columns)
            expected = values.view(bfloat16 if dtype == BARE else dtype).astype(wide).reshape(-1, columns)
            for layout in (np.ascontiguousarray, np.asfortranarray):
                found = np.empty(of_dtype.shape, wide)
                _products.Products().convert(layout(of_dtype), found)
                assert np.array_equal(found, expected, equal_nan=True)
                assert (np.signbit(found) == np.signbit(expected))[~np.isnan(expected)].all()


def test_bfloat16_without_ml_dtypes(random):
    hidden, weight, bias, targets = model(random, dtype=bfloat16)
    expected = evaluate(logits_of(hidden, weight, bias).astype(np.float32), targets)
    bare = [values.view(BARE) for values in (hidden, weight, bias)]
    assert same(evaluate(bare[0], targets, linear_weight=bare[1], linear_bias=bare[2]), expected)


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_the_environment_of_the_caller_changes_nothing(random, register, name):
    tiny = np.array([[1e-5, 2e-6, 3e-7]] * 3, np.float16)  # subnormal
    states = (random.standard_normal((3, 3)) * 1e-36).astype(np.float32)
    layers = [(random.standard_normal((4, 3)) * scale).astype(np.float32) for scale in (1e36, 1e6)]
    bias = np.array([1e-40, 2e-41, 0, 0], np.float32)

    def found():
        return [
            evaluate(states, [0, 1, 2], linear_weight=layers[0], linear_bias=bias),
            evaluate(tiny, [0, 1, 2], linear_weight=layers[1], linear_bias=bias),
            evaluate(layers[1][:3], [0, 1, 2], linear_weight=tiny, linear_bias=tiny[0]),
            compare(states, tiny, [0, 1, 2], linear_weight=tuple(layers)),
        ]

    expected = found()
    with environment(register, ENVIRONMENTS[name]):
        changed = found()
    assert same(changed, expected)


# Memory.

MEMORY = (
    GROWTH
    + """
import ml_dtypes
import numpy as np
import xent_rs

rows, features, classes = 1100, 64, {classes}
hidden = np.zeros((rows, features), {hidden})
weight = np.ones((classes, features), {weight}){transposed}
weight[0] = 2
bias, targets = np.ones(classes, np.float32), np.zeros(rows, int)
head = dict(linear_weight=weight, linear_bias=bias)
small = dict(linear_weight=weight[:50], linear_bias=bias[:50])
xent_rs.evaluate(hidden[:300], targets[:300], **small)
xent_rs.compare(hidden[:300], hidden[:300], targets[:300], **small)

chunk = {at_once} * classes * 4
of_head = chunk + (32 << 20) + classes * 4
used = growth(lambda: xent_rs.evaluate(hidden, targets, **head))
assert used <= of_head + (4 << 20), f"evaluate: {{used:,}} bytes, allowed {{of_head:,}}"
used = growth(lambda: xent_rs.compare(hidden, hidden, targets, **head))
assert used <= 2 * of_head + (4 << 20), f"compare: {{used:,}} bytes, allowed {{2 * of_head:,}}"
"""
)


@pytest.mark.sampled(1)
@linux
@pytest.mark.parametrize(
    ("hidden", "weight", "classes", "at_once", "transposed"),
    [
        ("np.float32", "np.float32", 60_000, 256, ""),
        ("np.float16", "np.float16", 262_144, 256, ""),
        ("ml_dtypes.bfloat16", "ml_dtypes.bfloat16", 262_144, 256, ""),
        ("ml_dtypes.bfloat16", "np.float32", 60_000, 256, ".T.copy().T"),
    ],
)
def test_memory_is_that_of_some_rows_and_a_slice_of_weights(
    python, hidden, weight, classes, at_once, transposed
):
    """All logits would have 4.3 or 18 times as much as those of 256 rows."""
    names = dict(hidden=hidden, weight=weight, classes=classes, at_once=at_once, transposed=transposed)
    python(MEMORY.format(**names))


# Errors.

HIDDEN, WEIGHT, BIAS, TARGETS = np.zeros((4, 6)), np.zeros((9, 6)), np.zeros(9), np.zeros(4, int)
FLOATS = "expected float16, bfloat16, float32 or float64"
ERRORS = [
    ({"linear_bias": BIAS}, ValueError, "linear_bias is given without linear_weight; expected that, too"),
    (
        {"linear_weight": WEIGHT[:, 1:]},
        ValueError,
        "logits have shape (4, 6), 6 features along axis -1; "
        "expected 5, as linear_weight of shape (9, 5) has",
    ),
    (
        {"linear_weight": WEIGHT.T},
        ValueError,
        "logits have shape (4, 6), 6 features along axis -1; "
        "expected 9, as linear_weight of shape (6, 9) has "
        "(logits, without linear_weight? or linear_weight.T?)",
    ),
    (
        {"linear_weight": WEIGHT, "axis": 0},
        ValueError,
        "logits have shape (4, 6), 4 features along axis 0; expected 6, as linear_weight of shape (9, 6) has",
    ),
    (
        {"linear_weight": WEIGHT, "axis": 2},
        ValueError,
        "axis is 2; expected -2 to 1 for logits of shape (4, 6)",
    ),
    (
        {"linear_weight": WEIGHT[0]},
        ValueError,
        "linear_weight has shape (6,); expected two axes, (classes, features)",
    ),
    (
        {"linear_weight": WEIGHT[:0]},
        ValueError,
        "linear_weight has shape (0, 6); expected at least one class",
    ),
    ({"linear_weight": WEIGHT.astype(int)}, TypeError, f"linear_weight has dtype int64; {FLOATS}"),
    ({"linear_weight": WEIGHT.astype(complex)}, TypeError, f"linear_weight has dtype complex128; {FLOATS}"),
    ({"linear_weight": "W"}, TypeError, f"linear_weight has dtype <U1; {FLOATS}"),
    (
        {"linear_weight": [[1.0], [1.0, 2.0]]},
        TypeError,
        "linear_weight holds sequences of different lengths; expected one length (pad them)",
    ),
    (
        {"linear_weight": WEIGHT, "linear_bias": BIAS[1:]},
        ValueError,
        "linear_bias has shape (8,); expected (9,), one number for each class of linear_weight",
    ),
    (
        {"linear_weight": WEIGHT, "linear_bias": BIAS[:, None]},
        ValueError,
        "linear_bias has shape (9, 1); expected (9,), one number for each class of linear_weight",
    ),
    (
        {"linear_weight": WEIGHT, "linear_bias": BIAS.astype(int)},
        TypeError,
        f"linear_bias has dtype int64; {FLOATS}",
    ),
    (
        {"linear_weight": WEIGHT, "weight": [1.0]},
        ValueError,
        "weight has shape (1,); expected (9,), one number a class",
    ),
    (
        {"linear_weight": WEIGHT, "sample_weight": [1.0]},
        ValueError,
        "sample_weight has shape (1,); expected (4,), one number a row",
    ),
    (
        {"linear_weight": WEIGHT, "sample_weight": ["a"] * 4},
        TypeError,
        "sample_weight has dtype <U1; expected real numbers",
    ),
]


# Of arrays in files, where blocks are cut, which has words of its own.
IN_FILES = [fault for fault in ERRORS if not {"sample_weight", "axis"} & fault[0].keys()]


@pytest.mark.parametrize(
    ("stored", "options", "error", "message"),
    [*((False, *fault) for fault in ERRORS), *((True, *fault) for fault in IN_FILES)],
)
def test_errors(tmp_path, options, error, message, stored):
    """Word by word, and before anything is multiplied."""
    np.save(tmp_path / "hidden.npy", HIDDEN)
    hidden = io.open_array(tmp_path / "hidden.npy") if stored else HIDDEN
    with mock.patch.object(_head.Head, "logits") as multiplied:
        with pytest.raises(error, match=f"^{re.escape(message)}$"):
            evaluate(hidden, TARGETS, **options)
        of_reference = message.replace("logits have", "reference has").replace("for logits", "for reference")
        of_reference = of_reference.replace("without linear_weight?", "with linear_weight=(None, ...)?")
        with pytest.raises(error, match=f"^{re.escape(of_reference)}$"):
            compare(hidden, hidden, TARGETS, **options)
    multiplied.assert_not_called()


@pytest.mark.parametrize(
    ("hidden", "targets", "error", "message"),
    [
        (np.zeros((4, 6), int), TARGETS, TypeError, f"logits have dtype int64; {FLOATS}"),
        (np.float32(1), 0, ValueError, "logits have shape (); expected at least one axis, the features"),
        (
            HIDDEN,
            TARGETS[1:],
            ValueError,
            "targets have shape (3,); expected (4,), the shape of logits (4, 9) ",
        ),
        (HIDDEN, TARGETS + 0.5, TypeError, "targets have dtype float64; expected an integer dtype "),
        (HIDDEN, TARGETS + 9, IndexError, "targets[0] is 9; expected 0 to 8, or ignore_index -100"),
        (HIDDEN, [0, 0, -1, 0], IndexError, "targets[2] is -1; expected 0 to 8, or ignore_index -100"),
        (HIDDEN.reshape(2, 2, 6), [[0, 1], [2, 10]], IndexError, "targets[1, 1] is 10; expected 0 to 8, or"),
    ],
)
def test_errors_of_hidden_states_and_targets(hidden, targets, error, message):
    with mock.patch.object(_head.Head, "logits") as multiplied:
        with pytest.raises(error, match=f"^{re.escape(message)}"):
            evaluate(hidden, targets, linear_weight=WEIGHT)
        of_reference = message.replace("logits have", "reference has").replace("of logits", "of reference")
        with pytest.raises(error, match=f"^{re.escape(of_reference)}"):
            compare(hidden, hidden, targets, linear_weight=WEIGHT)
    multiplied.assert_not_called()


def test_another_number_of_classes_than_before():
    """It is said of the argument that has the classes, and of the caller's axis."""
    few, head, logits, hidden = WEIGHT[1:], {"linear_weight": WEIGHT[1:]}, np.zeros((8, 4)), HIDDEN.T
    of_logits = "{} 8 classes along axis 0; expected 9, as in the batches before"
    of_weights = "{} has 8 classes; expected 9, as in the batches before"
    evaluator = Evaluator(axis=0)
    evaluator.update(hidden, TARGETS, linear_weight=WEIGHT)
    before = repr(evaluator.result())
    for array, options, text in (
        (hidden, head, of_weights.format("linear_weight")),
        (logits, {}, of_logits.format("logits have")),
    ):
        with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
            evaluator.update(array, TARGETS, **options)
    assert repr(evaluator.result()) == before
    comparer = Comparer(axis=0)
    comparer.update(hidden, hidden, linear_weight=WEIGHT)
    before = repr(comparer.result())
    for pair, weights, text in (
        ((hidden, hidden), few, of_weights.format("linear_weight")),
        ((hidden, hidden), (few, few), of_weights.format("linear_weight[0]")),
        ((hidden, logits), (few, None), of_weights.format("linear_weight[0]")),
        ((logits, hidden), (None, few), of_logits.format("reference has")),
        ((logits, logits), None, of_logits.format("reference has")),
    ):
        with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
            comparer.update(*pair, linear_weight=weights)
    assert repr(comparer.result()) == before


def test_structured_dtypes_are_those_that_logits_have():
    """bfloat16 without `ml_dtypes` alone: two bytes, unsigned, in the machine's order."""
    swapped = ">u2" if sys.byteorder == "little" else "<u2"
    for field in ("i2", "f2", "S2", swapped, ("u1", 2)):
        dtype = np.dtype([("bfloat16", *(field if isinstance(field, tuple) else (field,)))])
        found = re.escape(f"has dtype {np.zeros(1, dtype).dtype}; {FLOATS}")
        array = np.zeros((9, 6), dtype)
        with pytest.raises(TypeError, match=f"^linear_weight {found}$"):
            evaluate(HIDDEN, TARGETS, linear_weight=array)
        with pytest.raises(TypeError, match=f"^linear_bias {found}$"):
            evaluate(HIDDEN, TARGETS, linear_weight=WEIGHT, linear_bias=array[:, 0])
        with pytest.raises(TypeError, match=f"^logits {found.replace('has', 'have')}$"):
            evaluate(array[:4], TARGETS, linear_weight=WEIGHT)
        with pytest.raises(TypeError, match=r"^logits have dtype "):
            evaluate(array[:4], TARGETS)
    bare = np.ones((9, 6), np.float32).view(np.uint32) >> 16
    bare = bare.astype(np.uint16).view([("bfloat16", "=u2")])
    head = _head.Head(bare, "logits", -1, bare, bare[:, 0])
    assert (head.logits(head.states(bare)) == 7).all()


LOGITS = np.zeros((4, 9))
PAIRED = [
    (
        HIDDEN,
        HIDDEN,
        {"linear_weight": (WEIGHT, WEIGHT[1:])},
        ValueError,
        "linear_weight[1] has 8 classes; expected 9, as linear_weight[0] has",
    ),
    (
        HIDDEN,
        LOGITS[:, 1:],
        {"linear_weight": (WEIGHT, None)},
        ValueError,
        "candidate has 8 classes; expected 9, as linear_weight[0] has",
    ),
    (
        LOGITS[:, 1:],
        HIDDEN,
        {"linear_weight": (None, WEIGHT)},
        ValueError,
        "linear_weight[1] has 9 classes; expected 8, as reference has",
    ),
    (
        HIDDEN,
        HIDDEN[1:],
        {"linear_weight": WEIGHT},
        ValueError,
        "candidate has shape (3, 6); expected (4, 6), the shape of reference but for axis -1",
    ),
    (
        HIDDEN,
        HIDDEN[0],
        {"linear_weight": WEIGHT},
        ValueError,
        "candidate has shape (6,); expected (4, 6), the shape of reference but for axis -1",
    ),
    (
        HIDDEN,
        HIDDEN[:, 1:],
        {"linear_weight": WEIGHT},
        ValueError,
        "candidate has shape (4, 5), 5 features along axis -1; "
        "expected 6, as linear_weight of shape (9, 6) has",
    ),
    (
        HIDDEN,
        LOGITS,
        {"linear_weight": WEIGHT},
        ValueError,
        "candidate has shape (4, 9), 9 features along axis -1; "
        "expected 6, as linear_weight of shape (9, 6) has "
        "(logits, with linear_weight=(..., None)? or linear_weight.T?)",
    ),
    (
        LOGITS,
        HIDDEN,
        {"linear_weight": (WEIGHT, WEIGHT)},
        ValueError,
        "reference has shape (4, 9), 9 features along axis -1; "
        "expected 6, as linear_weight[0] of shape (9, 6) has "
        "(logits, with linear_weight=(None, ...)? or linear_weight[0].T?)",
    ),
    (
        HIDDEN,
        HIDDEN,
        {"linear_weight": (WEIGHT, WEIGHT, WEIGHT)},
        ValueError,
        "linear_weight is a tuple of 3; expected two, for reference and candidate",
    ),
    (
        HIDDEN,
        HIDDEN,
        {"linear_weight": WEIGHT, "linear_bias": (BIAS,)},
        ValueError,
        "linear_bias is a tuple of 1; expected two, for reference and candidate",
    ),
    (
        HIDDEN,
        HIDDEN,
        {"linear_weight": (WEIGHT, WEIGHT), "linear_bias": (BIAS, BIAS[1:])},
        ValueError,
        "linear_bias[1] has shape (8,); expected (9,), one number for each class of linear_weight[1]",
    ),
    (
        HIDDEN,
        LOGITS,
        {"linear_weight": (WEIGHT, None), "linear_bias": (None, BIAS)},
        ValueError,
        "linear_bias[1] is given without linear_weight[1]; expected that, too",
    ),
    (
        HIDDEN,
        HIDDEN,
        {"linear_weight": (WEIGHT, WEIGHT.astype(int))},
        TypeError,
        f"linear_weight[1] has dtype int64; {FLOATS}",
    ),
    (
        LOGITS[0, 0],
        HIDDEN,
        {"linear_weight": (None, WEIGHT)},
        ValueError,
        "reference has shape (); expected at least one axis, the classes",
    ),
    (
        LOGITS[0],
        HIDDEN.T,
        {"linear_weight": (None, WEIGHT), "axis": -2},
        ValueError,
        "axis is -2; expected -1 to 0 for reference of shape (9,)",
    ),
    (
        LOGITS.astype(int),
        HIDDEN,
        {"linear_weight": (None, WEIGHT)},
        TypeError,
        f"reference has dtype int64; {FLOATS} (reference.astype(np.float32))",
    ),
]


@pytest.mark.parametrize(("reference", "candidate", "options", "error", "message"), PAIRED)
def test_errors_of_two_models(reference, candidate, options, error, message):
    with mock.patch.object(_head.Head, "logits") as multiplied:
        with pytest.raises(error, match=f"^{re.escape(message)}$"):
            compare(reference, candidate, TARGETS, **options)
        axis = {"axis": options.get("axis", -1)}
        heads = {name: value for name, value in options.items() if name not in axis}
        with pytest.raises(error, match=f"^{re.escape(message)}$"):
            Comparer(**axis).update(reference, candidate, TARGETS, **heads)
    multiplied.assert_not_called()


def test_groups_are_those_of_the_rows():
    with pytest.raises(ValueError, match=r"^groups have shape \(3,\); expected \(4,\), one group a row$"):
        compare(HIDDEN, HIDDEN, TARGETS, linear_weight=WEIGHT, groups=[0, 1, 2])


def test_evaluators_take_the_head_with_the_batch_alone():
    for kind in (Evaluator, Comparer):
        with pytest.raises(TypeError, match="unexpected keyword argument 'linear_weight'"):
            kind(linear_weight=WEIGHT)
