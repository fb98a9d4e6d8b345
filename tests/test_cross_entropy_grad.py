"""`cross_entropy_grad`: the gradient of a shard of the classes, against the oracle and against the whole."""

import functools
import itertools
import math
import multiprocessing
import pickle

import numpy as np
import pytest
import xent_rs
from xent_rs import cross_entropy_grad, cross_entropy_with_grad, partial_row_statistics

from .bounds import CrossEntropyBounds, assert_within
from .cases import DTYPES, batch, targets_of
from .combinations import assert_levels_agree, assert_threads_agree, fused
from .oracle import CrossEntropy, Softmax
from .test_floating_point_environment import ENVIRONMENTS, environment, register
from .test_partial_statistics import edges_of, merged, states

__all__ = ["register"]  # a fixture

OPTIONS = {
    "plain": {},
    "temperature": {"temperature": 0.7},
    "softcap": {"softcap": 4.0, "temperature": 1.3},
    "smoothing": {"label_smoothing": 0.2, "z_loss": 0.1},
    "weights": {"weight": True, "sample_weight": True, "ignore_index": 1},
    "weights and smoothing": {"weight": True, "label_smoothing": 0.1, "softcap": 30.0},
}


def gradients(logits, targets, cuts, lse, axis=-1, out=None, **options):
    """Those of all shards, side by side."""
    classes, parts = logits.shape[axis], []
    for start, stop in edges_of(cuts, classes):
        part = np.take(logits, range(start, stop), axis)
        shard = {"class_offset": start, "num_classes": classes, "axis": axis, "lse": lse}
        parts.append(cross_entropy_grad(part, targets, **shard, **options))
        assert parts[-1].shape == part.shape
    return np.concatenate(parts, axis)


def cuts_of(random, classes):
    yield []
    yield [0, 0, classes // 2, classes, classes]
    if classes > 1:
        yield sorted(random.integers(0, classes + 1, 15))


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("classes", [1, 2, 3, 17, 130, 513, 4097])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_shards_are_within_the_bound(random, dtype, classes, options):
    logits, _, names = batch(classes, dtype)
    options = dict(OPTIONS[options])
    softmax = Softmax(logits, options.get("temperature", 1.0), options.get("softcap"))
    of_rows = {name: value for name, value in options.items() if name not in ("temperature", "softcap")}
    for name, length in (("weight", classes), ("sample_weight", len(logits))):
        if name in options:
            options[name] = of_rows[name] = random.integers(0, 3, length).astype(float)
    u = 2.0**-53
    for targets in targets_of(softmax).values():
        oracle = CrossEntropy(softmax, targets, **of_rows)
        with np.errstate(over="ignore"):
            lse = softmax.logsumexp.astype(np.float64)
        # With a temperature below 1 there are log-sum-exps beyond float64.
        fits = np.isinf(softmax.logsumexp) | ~np.isinf(lse)
        bound = CrossEntropyBounds(oracle, dtype).gradients()
        # A rounding of lse, and what is farther than can be told.
        mass = (np.abs(oracle.mass) + 2 * oracle.z_loss * np.abs(softmax.logsumexp)) * np.abs(oracle.scale)
        with np.errstate(invalid="ignore", over="ignore"):
            of_lse = 4 * u * (np.abs(softmax.logsumexp) + 1) * mass
            of_lse = of_lse + 8 * u * oracle.z_loss * np.abs(softmax.logsumexp * oracle.scale)
            # A cap's slope has its own error where there is next to none.
            bound = bound + (softmax.slope + 1e-290 * softmax.capped) * (
                of_lse[:, None] * softmax.probabilities + 2e-296 * mass[:, None]
            )
        bound = np.where(np.isnan(bound), 0, bound)
        for cuts in cuts_of(random, classes):
            found = gradients(logits, targets, cuts, lse, reduction="sum", **options)
            assert found.dtype == dtype
            assert np.isnan(found[~fits]).all()
            exact, names_of_rows = oracle.gradients[fits], [*itertools.compress(names, fits)]
            assert_within("gradient of shards", found[fits], exact, bound[fits], dtype, names=names_of_rows)


def test_a_confident_row_keeps_its_digits():
    """The log-sum-exp of float64 has them; 1 - p, of a p that rounds to 1, would be 0."""
    logits = np.array([[0.0, 17.0, 0, 0], [0, 25, 0, 0]], np.float32)
    lse = merged(states(logits, [1, 2])).logsumexp
    found = gradients(logits, [1, 1], [1, 2], lse, reduction="sum")
    _, expected = cross_entropy_with_grad(logits, [1, 1], reduction="sum")
    assert found[:, 1] == pytest.approx(expected[:, 1], rel=1e-4)
    assert found[:, [0, 2, 3]] == pytest.approx(expected[:, [0, 2, 3]], rel=1e-6)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_reductions(random, reduction):
    logits, targets = random.standard_normal((40, 30)).astype(np.float32), random.integers(30, size=40)
    targets[::4] = -100
    options = {
        "reduction": reduction,
        "weight": random.random(30),
        "sample_weight": random.integers(0, 3, 40),
    }
    options["grad_output"] = random.standard_normal(40) if reduction == "none" else 2.5
    lse = merged(states(logits, [11])).logsumexp
    for more in ({}, {"denominator": 7.0} if reduction == "mean" else {}):
        found = gradients(logits, targets, [11, 12], lse, **options, **more)
        _, expected = cross_entropy_with_grad(logits, targets, **options, **more)
        assert found == pytest.approx(expected, rel=1e-6, abs=1e-8)
        assert not found[::4].any()
    assert not gradients(logits, targets, [11], lse, denominator=0).any()


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_any_axis_and_out(random, axis):
    logits = random.standard_normal((5, 6, 7))
    rows = [length for place, length in enumerate(logits.shape) if place != axis % 3]
    targets = random.integers(logits.shape[axis], size=rows)
    lse = xent_rs.logsumexp(logits, axis=axis)
    found = gradients(logits, targets, [2], lse, axis=axis, reduction="none")
    _, expected = cross_entropy_with_grad(logits, targets, axis=axis, reduction="none")
    assert found == pytest.approx(expected, rel=1e-12)
    shard = np.take(logits, range(2, logits.shape[axis]), axis)
    given = {"lse": lse, "class_offset": 2, "axis": axis, "reduction": "none"}
    apart = np.full(shard.shape, 7.0)
    new = cross_entropy_grad(shard, targets, **given)
    assert cross_entropy_grad(shard, targets, out=apart, **given) is apart
    assert cross_entropy_grad(shard, targets, out=shard, **given) is shard
    assert np.array_equal(apart, new)
    assert np.array_equal(shard, new)
    assert np.array_equal(np.take(found, range(2, logits.shape[axis]), axis), new)


def test_one_row(random):
    logits = random.standard_normal(9)
    lse = xent_rs.logsumexp(logits)
    parts = [
        cross_entropy_grad(logits[:4], 6, lse=lse, num_classes=9),
        cross_entropy_grad(logits[4:], 6, lse=lse, class_offset=4),
    ]
    _, expected = cross_entropy_with_grad(logits, 6)
    assert np.concatenate(parts) == pytest.approx(expected)


def test_special_values():
    """Masked classes, rows without mass, NaN, infinities and magnitudes at the end of float32."""
    inf, nan = math.inf, math.nan
    rows = [
        [0, -inf, 1, -inf],
        [-inf] * 4,
        [0, nan, 0, 0],
        [0, inf, 0, 0],
        [3e38, 0, -3e38, 1],
        [3e38, 3e38, 3e38, -3e38],
        [1e10, 1e10, 0, 0],
        [-1e10, -1e10, -1e10 - 2048, -3e38],
    ]
    for dtype in (np.float32, np.float64):
        logits = np.array(rows, dtype)
        for targets in ([2] * 8, [0] * 8, [1] * 8):
            _, expected = cross_entropy_with_grad(logits, targets, reduction="none")
            lse = merged(states(logits, [2])).logsumexp
            found = gradients(logits, targets, [2], lse, reduction="none")
            for row in (0, 4, 6, 7):
                assert found[row] == pytest.approx(expected[row], abs=2e-6), (row, targets)
            # That there are three of the largest logit lse cannot tell, which is that logit.
            assert (np.abs(found[5]) <= 1).all()
            for row in (1, 2, 3):
                assert np.isnan(found[row][np.isfinite(logits[row])]).all()


def test_rows_that_do_not_count_are_not_read():
    logits = np.array([[np.nan, 1.0], [0.0, np.inf], [1.0, 2.0]])
    for options in ({"sample_weight": [0, 0, 1]}, {"ignore_index": 0}):
        found = cross_entropy_grad(logits, [0, 0, 1], lse=[math.nan, 3.0, 3.0], num_classes=9, **options)
        assert not found[:2].any()
        assert found[2].all()


def test_a_log_sum_exp_that_means_nothing_does_no_harm(random):
    logits = random.standard_normal((200, 50)).astype(np.float32)
    for softcap, dtype in itertools.product((None, 3.0), (np.float32, np.float64)):
        for lse in (-1e308, -1e30, -500.0, 0.0, 500.0, 1e30, 1e308, 5e-324):
            given = {"lse": np.full(200, lse), "softcap": softcap, "num_classes": 99}
            cross_entropy_grad(logits.astype(dtype), random.integers(99, size=200), **given)


def in_all_ways(random):
    """Gradients of a shard, in a list that is computed anew by each call."""
    for dtype, softcap in itertools.product((np.float32, np.float64, np.float16), (None, 5.0)):
        logits = (4 * random.standard_normal((300, 700))).astype(dtype)
        targets, lse = random.integers(900, size=300), 10 + random.random(300)
        given = {"lse": lse, "class_offset": 150, "num_classes": 900, "label_smoothing": 0.1}
        yield functools.partial(
            lambda logits, targets, given: [cross_entropy_grad(logits, targets, **given)],
            logits,
            targets,
            {**given, "softcap": softcap},
        )


@fused
def test_levels_with_fused_multiply_add_agree(random):
    for compute in in_all_ways(random):
        assert_levels_agree(compute, compute.args[-1])


def test_threads_agree(random):
    for compute in in_all_ways(random):
        assert_threads_agree(compute, compute.args[-1])


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_the_environment_of_the_caller_changes_nothing(random, register, name):
    logits = (random.standard_normal((9, 5)) - 80).astype(np.float32)
    lse = merged(states(logits, [2])).logsumexp + 20

    def found():
        return cross_entropy_grad(logits, [0] * 9, lse=lse, num_classes=6, grad_output=1e-3)

    expected = found()
    with environment(register, ENVIRONMENTS[name]):
        changed = found()
        lse_again = merged(states(logits, [2])).logsumexp + 20
    assert np.array_equal(changed, expected)
    assert np.array_equal(lse_again, lse)


def test_shards_that_are_empty_or_do_not_begin_at_the_first_class(random):
    logits, targets = random.standard_normal((5, 4)), [0, 5, 9, 3, 5]
    empty = cross_entropy_grad(logits[:, :0], targets, lse=np.full(5, 3.0), class_offset=10, num_classes=10)
    assert empty.shape == (5, 0)
    found = cross_entropy_grad(
        logits, targets, lse=np.full(5, 3.0), class_offset=5, num_classes=10, reduction="sum"
    )
    expected = np.exp(logits - 3.0)
    for row, target in enumerate(targets):
        if 5 <= target < 9:
            expected[row, target - 5] -= 1
    assert found == pytest.approx(expected)


def of_a_process(arguments):
    """What a process has: its shard in a first round, its gradient in a second."""
    shard, targets, start, classes, lse = arguments
    if lse is None:
        return partial_row_statistics(shard, targets, class_offset=start, num_classes=classes)
    return cross_entropy_grad(shard, targets, lse=lse, class_offset=start, num_classes=classes)


def test_two_processes(random):
    logits, targets = random.standard_normal((60, 100)).astype(np.float32), random.integers(100, size=60)
    edges = [*edges_of([37], 100)]
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        of_shards = pool.map(of_a_process, [(logits[:, a:b], targets, a, 100, None) for a, b in edges])
        lse = of_shards[0].merge(of_shards[1]).logsumexp
        parts = pool.map(of_a_process, [(logits[:, a:b], targets, a, 100, lse) for a, b in edges])
    loss, expected = cross_entropy_with_grad(logits, targets)
    assert np.concatenate(parts, 1) == pytest.approx(expected, rel=1e-6, abs=1e-9)
    assert -of_shards[0].result().target_log_probability.mean() == pytest.approx(loss)


def test_the_log_sum_exp_of_a_state(random):
    logits = random.standard_normal((2, 3, 10)).astype(np.float32)
    state = merged(states(logits, [4]))
    assert state.logsumexp.dtype == np.float64
    assert state.logsumexp == pytest.approx(xent_rs.logsumexp(logits), rel=1e-6)
    assert np.array_equal(state.logsumexp, pickle.loads(pickle.dumps(state)).logsumexp)
    with pytest.raises(ValueError, match="classes 4 to 9 are missing; expected all 10"):
        states(logits, [4])[0].logsumexp  # noqa: B018


LOGITS, TARGETS, LSE = np.zeros((3, 4)), [0, 1, 7], np.ones(3)
ERRORS = [
    ({"num_classes": 3}, ValueError, "num_classes is 3; expected at least 4, the classes of the shard"),
    ({"num_classes": 0, "logits": np.zeros((3, 0))}, ValueError, "num_classes is 0; expected at least 1"),
    (
        {"class_offset": 5},
        ValueError,
        "class_offset is 5; expected 0 to 4 for 4 of num_classes 8 in the shard",
    ),
    ({"class_offset": -1}, ValueError, "class_offset is -1; expected 0 to 4"),
    ({"class_offset": 1.5}, TypeError, "class_offset is 1.5; expected an integer"),
    ({"num_classes": True}, TypeError, "num_classes is True; expected an integer"),
    ({"lse": np.ones(2)}, ValueError, "lse has shape (2,); expected (3,), one number a row"),
    ({"lse": np.ones(3, complex)}, TypeError, "lse has dtype complex128; expected real numbers"),
    ({"targets": [0, 1, 8]}, IndexError, "targets[2] is 8; expected 0 to 7, or ignore_index -100"),
    ({"targets": [0, 1]}, ValueError, "targets have shape (2,); expected (3,)"),
    ({"targets": np.ones((3, 4))}, TypeError, "targets have dtype float64; expected an integer dtype"),
    ({"logits": np.zeros((3, 4), int)}, TypeError, "logits have dtype int64"),
    ({"axis": 2}, ValueError, "axis is 2; expected -2 to 1"),
    ({"weight": np.ones(4)}, ValueError, "weight has shape (4,); expected (8,), one number a class"),
    (
        {"sample_weight": np.ones(4)},
        ValueError,
        "sample_weight has shape (4,); expected (3,), one number a row",
    ),
    ({"grad_output": np.ones(3)}, ValueError, "grad_output has shape (3,); expected a scalar"),
    ({"reduction": "sum", "denominator": 3}, ValueError, "denominator is given with reduction 'sum'"),
    ({"out": np.ones((3, 5))}, ValueError, "out has shape (3, 5); expected (3, 4)"),
    ({"out": LOGITS[::-1]}, ValueError, "out overlaps logits; expected"),
    (
        {"focal_gamma": 1.0},
        TypeError,
        "cross_entropy_grad() got an unexpected keyword argument 'focal_gamma'",
    ),
]


@pytest.mark.parametrize(("given", "error", "text"), ERRORS, ids=range(len(ERRORS)))
def test_errors(given, error, text):
    arguments = {"logits": LOGITS, "targets": TARGETS, "lse": LSE, "num_classes": 8, **given}
    with pytest.raises(error) as raised:
        cross_entropy_grad(arguments.pop("logits"), arguments.pop("targets"), **arguments)
    assert str(raised.value).startswith(text)
    assert not LOGITS.any()
