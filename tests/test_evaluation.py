"""`Evaluation`, `Evaluator` and `evaluate` against a naive float64 oracle."""

import copy
import doctest
import inspect
import itertools
import math
import pickle
import re
import sys
import typing
from dataclasses import FrozenInstanceError, asdict, astuple
from fractions import Fraction
from xml.etree import ElementTree

import ml_dtypes
import numpy as np
import pytest
import xent_rs
import xent_rs._evaluation
import xent_rs._evaluator
from xent_rs import Evaluation, Evaluator, _xent_rs, evaluate

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
        nan_rows=int(np.count_nonzero(np.isnan(losses))),
        loss_error=np.std(losses, ddof=1) / math.sqrt(len(losses)) if len(losses) > 1 else math.nan,
    )


def assert_close(found, expected, tolerance):
    found, expected = asdict(found), asdict(expected)
    for name in ("loss", "perplexity", "bits", "entropy", "loss_error"):
        expected_value = pytest.approx(expected.pop(name), rel=tolerance, abs=tolerance, nan_ok=True)
        assert found.pop(name) == expected_value, name
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


WEIGHT = np.array([0.5, 2, 0, 1, 3, 0.25, 1])
OPTIONS = [
    {"weight": WEIGHT},
    {"label_smoothing": 0.1},
    {"z_loss": 0.01},
    {"softcap": 2.5, "temperature": 0.7},
    {"sample_weight": True},
    {
        "weight": WEIGHT,
        "label_smoothing": 0.2,
        "z_loss": 0.1,
        "softcap": 4.0,
        "temperature": 2.0,
        "sample_weight": True,
    },
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(options))
def test_the_loss_is_that_of_cross_entropy_and_the_rest_counts_rows(random, dtype, options):
    logits = (3 * random.standard_normal((4, 5, 7))).astype(dtype)
    targets = random.integers(7, size=(4, 5))
    targets[1, :2] = -100
    if "sample_weight" in options:
        options = {**options, "sample_weight": random.uniform(0, 2, (4, 5))}
    found = evaluate(logits, targets, **options)
    expected = xent_rs.cross_entropy(logits, targets, **options)
    assert found.loss == pytest.approx(expected, rel=TOLERANCE.get(dtype, 1e-6))
    assert found.perplexity == math.exp(found.loss)
    assert found.bits == found.loss / math.log(2)
    plain = evaluate(
        logits, targets, **{name: options[name] for name in ("softcap", "temperature") if name in options}
    )
    for name in ("accuracy", "top_k", "entropy", "rows", "ignored"):
        assert getattr(found, name) == getattr(plain, name)


def test_softcap_and_temperature_change_the_entropy():
    logits = np.array([[9.0, 0.0, 0.0]])
    assert evaluate(logits, [0], softcap=1).entropy > evaluate(logits, [0]).entropy
    assert evaluate(logits, [0], temperature=5).entropy > evaluate(logits, [0]).entropy


def test_weighted_batches_have_the_mean_of_all_rows(random):
    """The mean of means is another number; the sums are exact, so that the order does not matter."""
    logits, targets = random.standard_normal((30, 7)), random.integers(7, size=30)
    weights = random.uniform(0, 5, 30)
    results = set()
    for order in itertools.permutations([slice(0, 4), slice(4, 5), slice(5, 30)]):
        evaluator, others = Evaluator(weight=WEIGHT), Evaluator(weight=WEIGHT)
        for i, rows in enumerate(order):
            (evaluator, others)[i % 2].update(logits[rows], targets[rows], sample_weight=weights[rows])
        evaluator.merge(others)
        results.add(repr(evaluator.result()))
    assert len(results) == 1
    expected = xent_rs.cross_entropy(logits, targets, weight=WEIGHT, sample_weight=weights)
    assert evaluator.result().loss == pytest.approx(expected, rel=1e-13)


def test_the_weighted_mean_is_the_rounded_exact_mean():
    evaluator, total, weight_sum = Evaluator(), Fraction(0), Fraction(0)
    random = np.random.default_rng(3)
    for logits, targets in batches(100):
        weight = float(random.uniform(0, 1) * 10.0 ** random.integers(-8, 8))
        evaluator.update(logits[:1], targets[:1], sample_weight=[weight])
        total += Fraction(weight * evaluate(logits[:1], targets[:1]).loss)
        weight_sum += Fraction(weight)
    assert evaluator.result().loss == float(total / weight_sum)


@pytest.mark.parametrize(
    ("weights", "loss"),
    [
        ([0.0, 0.0], math.nan),
        ([1.0, -1.0], math.nan),
        ([math.nan, 1.0], math.nan),
        ([math.inf, 1.0], math.nan),
        ([2.0, -1.0], math.log(2)),
        ([1e-308, 1e-308], math.log(2)),
    ],
)
def test_weights_that_sum_to_nothing_or_to_something_odd(weights, loss):
    for parts in [weights], [weights[:1], weights[1:]]:
        evaluator = Evaluator()
        for part in parts:
            evaluator.update([[0.0, 0.0]] * len(part), [0] * len(part), sample_weight=part)
        assert evaluator.result().loss == pytest.approx(loss, rel=1e-12, nan_ok=True)
        assert evaluator.result().rows == sum(weight != 0 for weight in weights)


def test_a_mean_beyond_float64_is_infinite():
    evaluator = Evaluator()
    evaluator.update(np.array([[0.0, 1e308]]), [0], sample_weight=[1.0])
    evaluator.update(np.array([[0.0, 0.0]]), [0], sample_weight=[-1 + 2**-53])
    assert evaluator.result().loss == math.inf


def test_types_of_the_fields():
    result = evaluate(np.zeros((2, 3), np.float32), [0, 1])
    assert [type(value) for value in astuple(result)] == [float] * 4 + [dict, float, int, int, int, float]
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
    of_rows = f": all {count} are ignored" if count else ""
    assert str(result).endswith(f"\n\nNo row counts, so that all means are NaN{of_rows}.")
    assert math.isnan(Evaluator().result().loss)


def test_a_nan_row_is_no_hit_and_makes_the_means_nan():
    logits = np.array([[np.nan, 0, 0], [5, 0, 0]], np.float32)
    result = evaluate(logits, [0, 0], top_k=(1, 3))
    assert math.isnan(result.loss)
    assert math.isnan(result.perplexity)
    assert math.isnan(result.entropy)
    assert (result.accuracy, result.top_k[3]) == (0.5, 0.5)
    assert (result.rows, result.nan_rows) == (2, 1)
    *_, note = str(result).split("\n\n")
    assert note == (
        "1 of 2 rows are NaN: they have a logit of NaN or +inf, none above -inf, or a weight of NaN. "
        "So loss, bits, perplexity and entropy are NaN. Such rows are left out by a target of ignore_index, "
        "or by a sample_weight of 0."
    )
    assert result._repr_html_().endswith(f"<p>{note}</p>")
    assert re.search(r"^rows of NaN +1$", str(result), re.MULTILINE)
    left_out = evaluate(logits, [-100, 0])
    assert (left_out.nan_rows, "NaN" in str(left_out)) == (0, False)
    # A later update cannot undo it.
    evaluator = Evaluator()
    for _ in range(2):
        evaluator.update(logits, [0, 0])
        assert math.isnan(evaluator.result().loss)


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}, {"sample_weight": [1, 2, 0, 3, 1]}])
@pytest.mark.parametrize("classes", [3, 300])
def test_rows_of_nan_are_counted(level, classes, options):
    logits = np.zeros((5, classes))
    logits[0, 1], logits[2, 0], logits[3], logits[4, 1:] = math.nan, math.inf, -math.inf, -math.inf
    found = evaluate(logits, [0] * 5, **options)
    assert found.nan_rows == (2 if "sample_weight" in options else 3)


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


OPTIONS = {
    "plain": {},
    "weights": {"weight": True, "sample_weight": True},
    "smoothing": {"label_smoothing": 0.1, "weight": True},
    "z-loss": {"z_loss": 0.01, "sample_weight": True},
    "capped": {"softcap": 5.0, "temperature": 0.7},
}


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("classes", [2, 3, 10, 300, 5000])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_result_has_the_same_bits_however_rows_are_cut(dtype, classes, options):
    random = np.random.default_rng(classes)
    rows = max(40, 30_000 // classes)
    logits = (random.standard_normal((rows, classes)) * 4).astype(dtype)
    targets = random.integers(classes, size=rows)
    # A confident row, an ignored one, and some for which the largest logit is looked for.
    logits[0, targets[0]], targets[1] = 30, -100
    logits[2, targets[2]] = -60
    given = dict(OPTIONS[options])
    weight = random.random(rows) if given.pop("sample_weight", None) else None
    if given.pop("weight", None):
        given["weight"] = random.random(classes)

    def result(parts, count):
        xent_rs.set_num_threads(count)
        evaluators = [Evaluator(top_k=(1, 5), **given) for _ in range(3)]
        for number, part in enumerate(parts):
            taken = None if weight is None else weight[part]
            evaluators[number % 3].update(logits[part], targets[part], sample_weight=taken)
        first, second, third = evaluators
        return repr(third.merge(first.merge(second)).result())

    expected = result([slice(None)], 1)
    for number in range(6):
        cuts = np.sort(random.integers(rows + 1, size=random.integers(1, 9)))
        parts = [slice(*pair) for pair in itertools.pairwise([0, *cuts.tolist(), rows])]
        assert result([parts[i] for i in random.permutation(len(parts))], 1 + number % 2) == expected
    assert result([np.arange(rows)[::-1], slice(0, 0)], 2) == expected


def test_sums_are_exact():
    random = np.random.default_rng(3)
    values = random.standard_normal(30_000) * 10.0 ** random.integers(-300, 300, size=30_000)
    values[:4] = 5e-324, -5e-324, 1.7e308, -1.7e308
    for numbers in (values, values[::-3], np.abs(random.standard_normal(100_001)), values[:0]):
        units, not_finite = _xent_rs.exact_sum(numbers)
        found = Fraction(int.from_bytes(units, "little", signed=True), 2**1074)
        assert (found, not_finite) == (sum(map(Fraction, numbers.tolist()), Fraction(0)), 0.0)
    assert _xent_rs.exact_sum(np.array([1.0, np.inf]))[1] == np.inf
    assert np.isnan(_xent_rs.exact_sum(np.array([-np.inf, np.inf]))[1])


def test_the_error_of_the_loss_is_that_of_a_mean():
    random = np.random.default_rng(5)
    logits, targets = random.standard_normal((500, 7)), random.integers(7, size=500)
    losses = xent_rs.cross_entropy(logits, targets, reduction="none")
    found = evaluate(logits, targets).loss_error
    assert found == pytest.approx(np.std(losses, ddof=1) / np.sqrt(500), rel=1e-12)
    weight, rows = random.random(7), random.random(500) * (random.random(500) < 0.8)
    w, counted = rows * weight[targets], np.count_nonzero(rows)
    mean = (w * losses).sum() / w.sum()
    expected = np.sqrt(counted / (counted - 1) * (w**2 * (losses - mean) ** 2).sum()) / w.sum()
    result = evaluate(logits, targets, weight=weight, sample_weight=rows)
    assert (result.loss, result.loss_error) == pytest.approx((mean, expected), rel=1e-12)
    # Weights of 1 are none, and may come beside others.
    evaluator = Evaluator()
    evaluator.update(logits[:200], targets[:200])
    evaluator.update(logits[200:], targets[200:], sample_weight=np.ones(300))
    assert evaluator.result() == evaluate(logits, targets)


def test_equal_losses_have_no_error_and_few_rows_none_that_is_known():
    logits, targets = np.array([[0.1, 0.7, 0.3]] * 5, np.float32), [1] * 5
    assert evaluate(logits, targets).loss_error == 0.0
    assert math.isnan(evaluate(logits[:1], targets[:1]).loss_error)
    assert math.isnan(evaluate(np.array([[np.nan, 0.0], [0.0, 1.0]]), [0, 1]).loss_error)


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


def test_merge_returns_the_evaluator_and_update_nothing():
    evaluator, other = Evaluator(), Evaluator()
    assert evaluator.update(np.zeros((1, 2), np.float32), [0]) is None
    assert evaluator.merge(other) is evaluator


@pytest.mark.parametrize("axis", [-1, 0])
@pytest.mark.parametrize("rows", [0, 3])
def test_batches_of_other_widths_are_refused(axis, rows):
    """Perplexities of other vocabularies have no mean."""
    evaluator = Evaluator(axis=axis)
    evaluator.update(np.zeros((2, 2), np.float32), [0, 1])
    before = evaluator.result()
    again = pickle.loads(pickle.dumps(evaluator))
    shape = (rows, 5) if axis == -1 else (5, rows)
    for each in (evaluator, again):
        with pytest.raises(ValueError) as error:  # noqa: PT011
            each.update(np.zeros(shape), np.zeros(rows, int))
        assert str(error.value) == (
            f"logits have 5 classes along axis {axis}; expected 2, as in the batches before"
        )
        assert each.result() == before
    evaluator.update([[0.0, 0.0], [0.0, 0.0]], [0, 1])
    assert evaluator.result().rows == 4


def test_merge_refuses_other_widths():
    narrow, wide, fresh = Evaluator(), Evaluator(), Evaluator()
    narrow.update(np.zeros((1, 2)), [0])
    wide.update(np.zeros((1, 3)), [0])
    with pytest.raises(ValueError, match=r"^other has seen logits of 3 classes; expected 2$"):
        narrow.merge(wide)
    assert narrow.result().rows == 1
    # An evaluator that has seen nothing takes either, and then no other.
    fresh.merge(Evaluator()).merge(wide)
    with pytest.raises(ValueError, match=r"^other has seen logits of 2 classes; expected 3$"):
        fresh.merge(narrow)
    assert wide.merge(Evaluator()).result().rows == 1


def test_an_update_changes_everything_or_nothing(monkeypatch):
    """Also if it is interrupted where it adds up."""
    evaluator = Evaluator()
    for batch in batches(2):
        evaluator.update(*batch)
    before = pickle.dumps(evaluator)
    interrupted = set()
    for at in range(1, 60):
        steps = 0

        def trace(frame, event, argument, at=at):
            nonlocal steps
            if frame.f_globals.get("__name__") in ("xent_rs._accumulator", "xent_rs._evaluator"):
                steps += event == "line"
                if steps == at:
                    raise KeyboardInterrupt
                return trace
            return None

        again = pickle.loads(before)
        sys.settrace(trace)
        try:
            again.merge(evaluator)
        except KeyboardInterrupt:
            interrupted.add(at)
        finally:
            sys.settrace(None)
        assert again.result().rows in (evaluator.result().rows, 2 * evaluator.result().rows)
        assert again.result().loss == evaluator.result().loss
        assert again.result().ignored == evaluator.result().ignored
    assert len(interrupted) > 10


def test_as_dict_is_flat():
    result = evaluate(np.eye(4, dtype=np.float32), [0, 1, 2, -100], top_k=(1, 3))
    figures = result.as_dict("valid/")
    assert list(figures) == [
        f"valid/{name}"
        for name in (
            "loss",
            "perplexity",
            "bits",
            "accuracy",
            "top_1",
            "top_3",
            "entropy",
            "rows",
            "ignored",
            "nan_rows",
            "loss_error",
        )
    ]
    assert {type(value) for value in figures.values()} == {float}
    assert (figures["valid/loss"], figures["valid/top_3"], figures["valid/rows"]) == (
        result.loss,
        result.top_k[3],
        3,
    )
    assert list(evaluate(np.zeros((1, 2)), [0], top_k=()).as_dict())[3:5] == ["accuracy", "entropy"]


def test_an_evaluation_is_a_table_for_people_and_constructive_for_programs():
    result = evaluate(np.eye(4, dtype=np.float32), [0, 1, 2, -100], top_k=(1, 3))
    assert [re.split(" {2,}", line) for line in str(result).splitlines()] == [
        ["rows", "3"],
        ["ignored", "1"],
        ["loss (nats)", f"{result.loss:.6g} ± {result.loss_error:.2g}"],
        ["bits", f"{result.bits:.6g}"],
        ["perplexity", f"{result.perplexity:.6g}"],
        ["entropy (nats)", f"{result.entropy:.6g}"],
        ["accuracy", "100.00%"],
        ["among the top 3", "100.00%"],
    ]
    assert len(set(map(len, str(result).splitlines()))) == 1
    assert eval(repr(result), {"Evaluation": Evaluation}) == result
    html = ElementTree.fromstring(result._repr_html_())
    assert [[cell.text for cell in row] for row in html.iter("tr")] == [
        re.split(" {2,}", line) for line in str(result).splitlines()
    ]


TIES = [[1.0, 1, 0], [0, 2, 2], [3, 1, 0]], [0, 1, 0]


def test_of_equal_logits_the_first_counts_as_larger_and_for_sklearn_the_last():
    logits, targets = map(np.array, TIES)
    naive = {
        k: np.mean([y in np.argsort(-z, kind="stable")[:k] for z, y in zip(logits, targets, strict=True)])
        for k in (1, 2, 3)
    }
    result = evaluate(logits, targets, top_k=(1, 2, 3))
    assert result.top_k == naive == {1: 1.0, 2: 1.0, 3: 1.0}
    assert result.accuracy == np.mean(logits.argmax(axis=1) == targets)
    assert xent_rs.row_statistics(logits, targets).target_rank.tolist() == [0, 0, 0]
    metrics = pytest.importorskip("sklearn.metrics")
    assert metrics.top_k_accuracy_score(targets, logits, k=1, labels=range(3)) == pytest.approx(1 / 3)
    # From the other end the first is the last.
    backwards = evaluate(logits[:, ::-1], 2 - targets, top_k=(1, 2))
    assert backwards.top_k[1] == metrics.top_k_accuracy_score(targets, logits, k=1, labels=range(3))
    assert backwards.top_k[2] == metrics.top_k_accuracy_score(targets, logits, k=2, labels=range(3))


def test_without_equal_logits_top_k_is_that_of_sklearn(random):
    metrics = pytest.importorskip("sklearn.metrics")
    logits, targets = random.standard_normal((50, 9)), random.integers(9, size=50)
    result = evaluate(logits, targets, top_k=(1, 3))
    for k, share in result.top_k.items():
        assert share == pytest.approx(metrics.top_k_accuracy_score(targets, logits, k=k, labels=range(9)))


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
    options = {"top_k": (2,), "ignore_index": 3, "temperature": 0.5, "weight": np.arange(7) / 4}
    evaluator = Evaluator(**options)
    evaluator.update(*first)
    other = clone(evaluator)
    assert repr(other) == repr(evaluator)
    other.merge(evaluator)
    expected = Evaluator(**options)
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
        ({"label_smoothing": 1}, "other has label_smoothing 1.0; expected 0.0"),
        ({"z_loss": 0.5}, "other has z_loss 0.5; expected 0.0"),
        ({"softcap": 30}, "other has softcap 30.0; expected None"),
        ({"weight": [1, 2]}, "other has weight [1., 2.]; expected None"),
    ],
)
def test_merge_refuses_other_options(options, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Evaluator().merge(Evaluator(**options))


def test_merge_refuses_other_weights():
    evaluator = Evaluator(weight=np.arange(9))
    expected = re.escape("[0., 1., 2., ..., 6., 7., 8.]")
    for other in (np.arange(1, 10), np.arange(8)):
        with pytest.raises(ValueError, match=rf"^other has weight \[.*\]; expected {expected}$"):
            evaluator.merge(Evaluator(weight=other))
    with pytest.raises(ValueError, match=r"^other has weight None; expected \["):
        evaluator.merge(Evaluator())


def test_merge_takes_the_same_options_spelled_differently():
    evaluator = Evaluator(top_k=[5, 1, 1], temperature=2, softcap=3, weight=[1, np.nan, 0.5])
    evaluator.merge(
        Evaluator(
            top_k=(np.int64(1), 5),
            temperature=np.float32(2.0),
            softcap=np.float64(3),
            weight=np.array([1, np.nan, 0.5], np.float16),
        )
    )


def test_weights_are_copied():
    weight = np.ones(3)
    evaluator = Evaluator(weight=weight)
    weight[:] = 7
    evaluator.merge(Evaluator(weight=np.ones(3)))


def test_merge_refuses_what_is_no_evaluator():
    with pytest.raises(TypeError) as error:
        Evaluator().merge(evaluate(np.zeros((1, 2), np.float32), [0]))
    assert str(error.value) == "other is of type Evaluation; expected an Evaluator"


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
        ({"label_smoothing": 1.5}, ValueError, "label_smoothing is 1.5; expected a number from 0 to 1"),
        ({"label_smoothing": "a"}, TypeError, "label_smoothing is 'a'; expected a number from 0 to 1"),
        ({"z_loss": -1.0}, ValueError, "z_loss is -1.0; expected a finite number, at least 0"),
        ({"softcap": 0.0}, ValueError, "softcap is 0.0; expected a positive finite number"),
        ({"weight": ["a", "b"]}, TypeError, "weight has dtype <U1; expected real numbers"),
        ({"weight": [1j, 2]}, TypeError, "weight has dtype complex128; expected real numbers"),
        ({"weight": [[1, 2]]}, ValueError, "weight has shape (1, 2); expected (C,), one number a class"),
        ({"weight": 1.0}, ValueError, "weight has shape (); expected (C,), one number a class"),
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
            "logits have dtype int64; expected float16, bfloat16, float32 or float64 "
            "(logits.astype(np.float32))",
        ),
        (
            np.zeros((2, 3), np.float32),
            [0.0, 1.0],
            TypeError,
            "targets have dtype float64; expected an integer dtype (class indices) "
            "(whole numbers: targets.astype(int))",
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


@pytest.mark.parametrize(
    ("options", "exception", "message"),
    [
        ({"weight": np.ones(4)}, ValueError, "weight has shape (4,); expected (3,), one number a class"),
        (
            {"sample_weight": np.ones(3)},
            ValueError,
            "sample_weight has shape (3,); expected (2,), one number a row",
        ),
        ({"sample_weight": ["a", "b"]}, TypeError, "sample_weight has dtype <U1; expected real numbers"),
    ],
)
def test_weights_that_do_not_fit_are_refused(options, exception, message):
    with pytest.raises(exception) as error:
        evaluate(np.zeros((2, 3), np.float32), [0, 1], **options)
    assert str(error.value) == message


def test_lists_are_taken():
    assert evaluate([[0.0, 1.0], [2.0, 0.0]], [1, 0]) == evaluate(np.array([[0.0, 1.0], [2.0, 0.0]]), [1, 0])


def test_repr_names_options_and_counts():
    evaluator = Evaluator(top_k=(3,))
    evaluator.update(np.zeros((3, 4), np.float32), [0, 1, -100])
    expected = (
        "<Evaluator(top_k=(3,), weight=None, ignore_index=-100, label_smoothing=0.0, z_loss=0.0, "
        "softcap=None, temperature=1.0, focal_gamma=0.0, poly_epsilon=0.0, axis=-1): 2 rows, 1 ignored>"
    )
    assert repr(evaluator) == expected
    assert "weight=[0., 1., 2., ..., 6., 7., 8.], " in repr(Evaluator(weight=np.arange(9)))


def test_examples():
    for module in (xent_rs._evaluation, xent_rs._evaluator):
        found = doctest.testmod(module)
        assert (found.failed, found.attempted > 0) == (0, True)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_masked_classes_before_a_masked_target_rank_above_it(dtype):
    """Of equal logits the lower index ranks higher, for -inf as well, and across blocks."""
    logits = np.full((1, 1024), -np.inf, dtype)
    logits[0, 0] = 0
    top_k = {1: 0.0, 257: 0.0, 514: 0.0, 1023: 0.0, 1024: 1.0}
    assert xent_rs.evaluate(logits, [1023], top_k=tuple(top_k)).top_k == top_k


def test_weights_that_are_no_arrays_are_converted_once():
    converted = []

    class Weights:
        def __init__(self, *values):
            self.values = values

        def __array__(self, dtype=None, copy=None):
            converted.append(self.values)
            return np.array(self.values)

    weights = {"weight": Weights(1.0, 2.0, 3.0), "sample_weight": Weights(1.0, 0.5)}
    evaluate(np.zeros((2, 3), np.float32), [0, 1], **weights)
    assert sorted(converted) == [(1.0, 0.5), (1.0, 2.0, 3.0)]


def test_an_evaluator_of_ones_own():
    class Mine(Evaluator):
        def __init__(self, name, **options):
            super().__init__(**options)
            self.name = name

    assert list(inspect.signature(Mine).parameters) == ["name", "options"]
    assert "top_k" in inspect.signature(Evaluator).parameters
    assert "self" not in inspect.signature(Evaluator).parameters
    assert "options" not in typing.get_type_hints(Evaluator.__init__)
