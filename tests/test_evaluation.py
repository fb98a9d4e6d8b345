"""`Evaluation`, `Evaluator` and `evaluate` against a naive float64 oracle."""

import copy
import doctest
import itertools
import math
import pickle
import re
from dataclasses import FrozenInstanceError, asdict, astuple
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
import xent_rs._evaluation
from xent_rs import Evaluation, Evaluator, evaluate

DTYPES = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64]
# A row's loss may be off by u (ln C + 2) + ulp / 2; entropy sums p ln p, which is rounded a little more.
TOLERANCE = {np.float64: 1e-13}


def oracle(logits, targets, top_k=(1, 5), ignore_index=-100, temperature=1.0, axis=-1):
    z = np.moveaxis(np.asarray(logits).astype(np.float64), axis, -1) / temperature
    z = z.reshape(-1, z.shape[-1])
    targets = np.asarray(targets).reshape(-1)
    losses, entropies, ranks = [], [], []
    for row, target in zip(z, targets, strict=True):
        if target != ignore_index:
            shifted = row - row.max()
            lse = math.log(np.exp(shifted).sum())
            p = np.exp(shifted - lse)
            losses.append(lse - shifted[target])
            entropies.append(-sum(a * math.log(a) for a in p if a > 0))
            # Of equal logits the first counts as larger.
            ranks.append(np.flatnonzero(np.argsort(-row, kind="stable") == target)[0])
    loss = np.mean(losses)
    return Evaluation(
        loss=loss,
        perplexity=math.exp(loss),
        bits=loss / math.log(2),
        accuracy=np.mean(np.array(ranks) < 1),
        top_k={k: np.mean(np.array(ranks) < k) for k in top_k},
        entropy=np.mean(entropies),
        rows=len(losses),
        ignored=len(targets) - len(losses),
    )


def assert_close(found, expected, tolerance):
    found, expected = asdict(found), asdict(expected)
    for name in ("loss", "perplexity", "bits", "entropy"):
        assert found.pop(name) == pytest.approx(expected.pop(name), rel=tolerance, abs=tolerance), name
    assert found == expected


def batches(count, seed=0):
    """Batches whose losses differ by many orders of magnitude."""
    random = np.random.default_rng(seed)
    for _ in range(count):
        rows, scale = random.integers(1, 6), 10.0 ** random.integers(-3, 6)
        yield (random.standard_normal((rows, 7)) * scale).astype(np.float32), random.integers(7, size=rows)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize(
    ("shape", "axis"),
    [
        ((9, 10), -1),
        ((10, 9), 0),
        ((2, 3, 17), -1),
        ((2, 33, 3), 1),
        ((2, 6, 4), -2),
        ((13,), 0),
        ((5, 1), -1),
    ],
)
def test_agrees_with_the_oracle(dtype, temperature, shape, axis):
    random = np.random.default_rng(1)
    logits = (3 * random.standard_normal(shape)).astype(dtype)
    targets = random.integers(shape[axis], size=[n for i, n in enumerate(shape) if i != axis % len(shape)])
    options = {"temperature": temperature, "axis": axis, "top_k": (1, 2, 5)}
    found = evaluate(logits, targets, **options)
    assert_close(found, oracle(logits, targets, **options), TOLERANCE.get(dtype, 1e-6))


def test_types_of_the_fields():
    result = evaluate(np.zeros((2, 3), np.float32), [0, 1])
    assert [type(value) for value in astuple(result)] == [float] * 4 + [dict, float, int, int]
    assert list(result.top_k) == [1, 5]
    assert {type(value) for value in result.top_k.values()} == {float}
    with pytest.raises(FrozenInstanceError):
        result.loss = 0.0


def test_uniform_logits_have_the_known_answer():
    result = evaluate(np.zeros((6, 4), np.float32), [0, 1, 2, 3, -100, 0], top_k=(1, 2, 4, 9))
    assert result.loss == pytest.approx(math.log(4), rel=1e-7)
    assert result.entropy == pytest.approx(math.log(4), rel=1e-6)
    assert result.bits == pytest.approx(2.0, rel=1e-7)
    assert result.perplexity == pytest.approx(4.0, rel=1e-6)
    # All logits are equal: the first class has rank 0, the last rank 3.
    assert result.accuracy == 2 / 5
    assert result.top_k == {1: 2 / 5, 2: 3 / 5, 4: 1.0, 9: 1.0}
    assert (result.rows, result.ignored) == (5, 1)


@pytest.mark.parametrize(
    "top_k", [(), (5,), (3, 1), (2, 2), iter([2]), np.array([2, 3], np.uint8), range(1, 4)]
)
def test_accuracy_is_there_whatever_top_k_holds(top_k):
    wanted = list(top_k)
    top_k = iter(wanted) if not hasattr(top_k, "__len__") else top_k
    result = evaluate(np.eye(4, dtype=np.float32), [0, 1, 2, 0], top_k=top_k)
    assert result.accuracy == 0.75
    assert list(result.top_k) == sorted({int(k) for k in wanted})


@pytest.mark.parametrize("count", [0, 3])
def test_without_rows_means_are_nan(count):
    result = evaluate(np.ones((count, 4), np.float32), np.full(count, -100))
    assert (result.rows, result.ignored) == (0, count)
    means = [
        result.loss,
        result.perplexity,
        result.bits,
        result.accuracy,
        result.entropy,
        *result.top_k.values(),
    ]
    assert all(math.isnan(mean) for mean in means)
    assert math.isnan(Evaluator().result().loss)


def test_a_nan_row_is_no_hit_and_makes_the_means_nan():
    logits = np.array([[np.nan, 0, 0], [5, 0, 0]], np.float32)
    result = evaluate(logits, [0, 0], top_k=(1, 3))
    assert math.isnan(result.loss)
    assert math.isnan(result.perplexity)
    assert math.isnan(result.entropy)
    assert (result.accuracy, result.top_k[3]) == (0.5, 0.5)
    # A later update cannot undo it.
    evaluator = Evaluator()
    for _ in range(2):
        evaluator.update(logits, [0, 0])
        assert math.isnan(evaluator.result().loss)


def test_a_target_on_a_masked_class_costs_infinity():
    result = evaluate(np.array([[-np.inf, 0, 0], [5, 0, 0]], np.float32), [0, 0])
    assert (result.loss, result.perplexity, result.bits) == (math.inf,) * 3
    assert math.isfinite(result.entropy)


def test_perplexity_overflows_to_infinity():
    result = evaluate(np.array([[0.0, 800.0]]), [0])
    assert result.loss == 800.0
    assert result.perplexity == math.inf


def test_neither_order_nor_merging_changes_a_bit():
    parts = list(batches(5))
    results = set()
    for order in itertools.permutations(parts):
        one = Evaluator()
        for batch in order:
            one.update(*batch)
        results.add(repr(one.result()))

        several = [Evaluator() for _ in order]
        for evaluator, batch in zip(several, order, strict=True):
            evaluator.update(*batch)
        (first, second, third, fourth, fifth) = several
        second.merge(first)
        fourth.merge(third)
        fifth.merge(fourth)
        second.merge(fifth)
        results.add(repr(second.result()))
    assert len(results) == 1


def test_the_mean_is_the_rounded_exact_mean():
    evaluator, total, rows = Evaluator(), Fraction(0), 0
    for logits, targets in batches(300):
        one = Evaluator()
        one.update(logits[:1], targets[:1])
        total += Fraction(one.result().loss)
        rows += 1
        evaluator.merge(one)
    assert evaluator.result().loss == float(total / rows)


def test_sums_beyond_float64_have_a_mean():
    evaluator = Evaluator()
    for _ in range(3):
        evaluator.update(np.array([[0.0, 1.5e308]]), [0])
    assert evaluator.result().loss == 1.5e308


def test_update_and_merge_return_nothing():
    evaluator, other = Evaluator(), Evaluator()
    assert evaluator.update(np.zeros((1, 2), np.float32), [0]) is None
    assert evaluator.merge(other) is None


def test_merging_leaves_the_other_alone_and_works_with_itself():
    evaluator = Evaluator()
    evaluator.update(*next(batches(1)))
    before = evaluator.result()
    Evaluator().merge(evaluator)
    assert evaluator.result() == before
    evaluator.merge(evaluator)
    after = evaluator.result()
    assert (after.loss, after.rows) == (before.loss, 2 * before.rows)


@pytest.mark.parametrize(
    "clone", [copy.copy, copy.deepcopy, lambda evaluator: pickle.loads(pickle.dumps(evaluator))]
)
def test_a_copy_goes_on_where_the_original_was(clone):
    first = next(batches(1))
    evaluator = Evaluator(top_k=(2,), ignore_index=3, temperature=0.5)
    evaluator.update(*first)
    other = clone(evaluator)
    assert repr(other) == repr(evaluator)
    other.merge(evaluator)
    expected = Evaluator(top_k=(2,), ignore_index=3, temperature=0.5)
    for batch in (first, first):
        expected.update(*batch)
    assert other.result() == expected.result()
    assert evaluator.result().rows + evaluator.result().ignored == len(first[1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": (1,)}, "other has top_k (1,); expected (1, 5)"),
        ({"ignore_index": 0}, "other has ignore_index 0; expected -100"),
        ({"temperature": 2}, "other has temperature 2.0; expected 1.0"),
        ({"axis": 1}, "other has axis 1; expected -1"),
    ],
)
def test_merge_refuses_other_options(options, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Evaluator().merge(Evaluator(**options))


def test_merge_takes_the_same_options_spelled_differently():
    evaluator = Evaluator(top_k=[5, 1, 1], temperature=2)
    evaluator.merge(Evaluator(top_k=(np.int64(1), 5), temperature=np.float32(2.0)))


def test_merge_refuses_what_is_no_evaluator():
    with pytest.raises(TypeError) as error:
        Evaluator().merge(evaluate(np.zeros((1, 2), np.float32), [0]))
    assert str(error.value) == "other is a Evaluation; expected an Evaluator"


@pytest.mark.parametrize(
    ("options", "exception", "message"),
    [
        ({"top_k": (1, 0)}, ValueError, "top_k contains 0; expected positive integers"),
        ({"top_k": (-2, 5)}, ValueError, "top_k contains -2; expected positive integers"),
        ({"top_k": 5}, TypeError, "top_k is 5; expected several positive integers"),
        ({"top_k": (1.0,)}, TypeError, "top_k contains 1.0; expected an integer"),
        ({"ignore_index": None}, TypeError, "ignore_index is None; expected an integer"),
        ({"ignore_index": 1.5}, TypeError, "ignore_index is 1.5; expected an integer"),
        ({"axis": "x"}, TypeError, "axis is 'x'; expected an integer"),
        ({"temperature": 0}, ValueError, "temperature is 0.0; expected a positive finite number"),
        ({"temperature": -1.0}, ValueError, "temperature is -1.0; expected a positive finite number"),
        ({"temperature": math.inf}, ValueError, "temperature is inf; expected a positive finite number"),
        ({"temperature": math.nan}, ValueError, "temperature is nan; expected a positive finite number"),
    ],
)
def test_wrong_options_are_refused_at_once(options, exception, message):
    for call in (Evaluator, lambda **options: evaluate(np.zeros((1, 2), np.float32), [0], **options)):
        with pytest.raises(exception) as error:
            call(**options)
        assert str(error.value) == message


@pytest.mark.parametrize(
    ("logits", "targets", "exception", "message"),
    [
        (
            np.zeros((2, 3), np.int64),
            [0, 1],
            TypeError,
            "logits have dtype int64; expected float16, bfloat16, float32 or float64",
        ),
        (
            np.zeros((2, 3), np.float32),
            [0.0, 1.0],
            TypeError,
            "targets have dtype float64; expected an integer dtype (class indices)",
        ),
        (
            np.zeros((2, 3), np.float32),
            [0, 1, 2],
            ValueError,
            "targets have shape (3,); expected (2,), the shape of logits (2, 3) without axis -1",
        ),
        (
            np.zeros((2, 3), np.float32),
            [0, 3],
            IndexError,
            "targets[1] is 3; expected 0 to 2, or ignore_index -100",
        ),
        (
            np.zeros((2, 0), np.float32),
            [-100, -100],
            ValueError,
            "logits have shape (2, 0); expected at least one class along axis -1",
        ),
    ],
)
def test_a_refused_batch_changes_nothing(logits, targets, exception, message):
    evaluator = Evaluator()
    evaluator.update(*next(batches(1)))
    before = evaluator.result()
    with pytest.raises(exception) as error:
        evaluator.update(logits, targets)
    assert str(error.value) == message
    assert evaluator.result() == before


def test_lists_are_taken():
    assert evaluate([[0.0, 1.0], [2.0, 0.0]], [1, 0]) == evaluate(np.array([[0.0, 1.0], [2.0, 0.0]]), [1, 0])


def test_repr_names_options_and_counts():
    evaluator = Evaluator(top_k=(3,))
    evaluator.update(np.zeros((3, 4), np.float32), [0, 1, -100])
    expected = "<Evaluator(top_k=(3,), ignore_index=-100, temperature=1.0, axis=-1): 2 rows, 1 ignored>"
    assert repr(evaluator) == expected


def test_examples():
    assert doctest.testmod(xent_rs._evaluation).failed == 0
    assert doctest.testmod(xent_rs._evaluation).attempted > 0


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_masked_classes_before_a_masked_target_rank_above_it(dtype):
    """Of equal logits the lower index ranks higher, for -inf as well, and across blocks."""
    logits = np.full((1, 1024), -np.inf, dtype)
    logits[0, 0] = 0
    top_k = {1: 0.0, 257: 0.0, 514: 0.0, 1023: 0.0, 1024: 1.0}
    assert xent_rs.evaluate(logits, [1023], top_k=tuple(top_k)).top_k == top_k
