"""`compare`, `Comparer` and `Comparison` against float64, on real pairs of models and at the edges."""

import copy
import functools
import inspect
import itertools
import json
import math
import multiprocessing
import pickle
import re
import sys
from dataclasses import FrozenInstanceError, asdict, fields
from xml.etree import ElementTree

import ml_dtypes
import numpy as np
import pytest
import xent_rs
from xent_rs import ComparedModel, Comparer, Comparison, Estimate, compare, io
from xent_rs._calibration import CalibrationBins
from xent_rs._quantiles import FRACTIONS, RowValues
from xent_rs._tables import with_error

from .comparison_oracle import divergences, llama, log_softmax

DTYPES = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64]
OF_TARGETS = {
    "loss_change",
    "perplexity_ratio",
    "perplexity_change",
    "correlation",
    "delta_p",
    "delta_p_rms",
    "delta_p_min",
    "delta_p_max",
    "delta_p_quantiles",
}


def rounded(weights, how):
    """Weights as a quantised model has them: float16, or 8-bit integers with one scale for each class."""
    if how == "float16":
        return weights.astype(np.float16).astype(np.float64)
    scale = np.abs(weights).max(axis=-1, keepdims=True) / 127
    return np.round(weights / scale).astype(np.int8) * scale


@pytest.fixture(scope="module")
def digits():
    """Real logits: of scikit-learn's classifier of digits, and of the same with rounded weights."""
    datasets, linear = pytest.importorskip("sklearn.datasets"), pytest.importorskip("sklearn.linear_model")
    images, labels = datasets.load_digits(return_X_y=True)
    images = images / 16
    model = linear.LogisticRegression(max_iter=1000).fit(images[:1000], labels[:1000])
    held_out, targets = images[1000:], labels[1000:]
    logits = {"whole": held_out @ model.coef_.T + model.intercept_}
    for how in ("float16", "int8"):
        logits[how] = held_out @ rounded(model.coef_, how).T + model.intercept_
    return logits, targets


def small(rows=60, classes=7, seed=3, dtype=np.float64):
    random = np.random.default_rng(seed)
    reference = 2 * random.standard_normal((rows, classes))
    candidate = reference + 0.3 * random.standard_normal((rows, classes))
    return reference.astype(dtype), candidate.astype(dtype), random.integers(classes, size=rows)


# Against llama.cpp.


@pytest.mark.parametrize("weight", [None, [1e300, 1.0]])
def test_figures_whose_squares_are_infinite_have_no_error(weight):
    """And give no warning, which here would be an error."""
    logits = np.array([[0.0, 1.0], [1.0, 0.0], [0.5, 0.0]])
    masked = np.where([[False, True]] * 3, np.finfo(float).min, logits)
    options = {} if weight is None else {"weight": weight}
    found = compare(logits, masked, [0, 0, 0], **options)
    assert 1e307 < found.kl.value < math.inf
    assert math.isnan(found.kl.error)


@pytest.mark.parametrize("how", ["float16", "int8"])
def test_the_figures_of_llama_cpp_on_a_real_pair(digits, how):
    logits, targets = digits
    found = compare(logits["whole"], logits[how], targets)
    assert 0 < found.kl.value < 0.01
    assert_figures_of_llama_cpp(found, logits["whole"], logits[how], targets)


def assert_figures_of_llama_cpp(found, reference, candidate, targets):
    """For float64 logits, whose rows all count."""
    expected, flat = llama(reference, candidate, targets), found.as_dict()
    for name, value in expected.items():
        if isinstance(value, dict):
            # float32 values; llama.cpp's difference of logarithms has no more digits for small divergences.
            assert getattr(found, name) == pytest.approx(value, rel=1e-6, abs=1e-14), name
        elif isinstance(value, tuple):
            assert (flat[name], flat[f"{name}_error"]) == pytest.approx(value, rel=1e-6, abs=1e-14), name
        else:
            assert flat[name] == pytest.approx(value, rel=1e-7, abs=1e-14), name


# Against formulas in float64.


def mean_with_error(values, weights, groups=None):
    """The mean and its standard error, term by term."""
    mean = np.sum(weights * values) / np.sum(weights)
    left = weights * values - mean * weights
    if groups is not None:
        left = np.array([left[groups == group].sum() for group in np.unique(groups)])
    n = len(left)
    return mean, math.sqrt(n / (n - 1) * np.sum(left**2)) / abs(np.sum(weights))


def calibration(logs, hits):
    """Bin by bin, as the paper has it."""
    confidence, total = np.exp(logs).max(axis=1), 0.0
    for k in range(15):
        inside = (confidence > k / 15) & (confidence <= (k + 1) / 15)
        if inside.any():
            total += inside.sum() / len(hits) * abs(hits[inside].mean() - confidence[inside].mean())
    return total


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("weighted", ["", "rows", "classes", "rows and classes"])
@pytest.mark.parametrize("how", ["float16", "int8"])
def test_every_figure_on_a_real_pair(digits, how, weighted, grouped):
    logits, targets = digits
    reference, candidate = logits["whole"], logits[how]
    random = np.random.default_rng(5)
    n = len(targets)
    targets = np.where(random.random(n) < 0.1, -100, targets)
    sample_weight = random.uniform(0, 2, n) * (random.random(n) < 0.9) if "rows" in weighted else np.ones(n)
    weight = random.uniform(0, 2, 10) if "classes" in weighted else np.ones(10)
    groups = np.arange(n) // 20 if grouped else None
    options = {"groups": groups} if grouped else {}
    options |= {"sample_weight": sample_weight} if "rows" in weighted else {}
    options |= {"weight": weight} if "classes" in weighted else {}
    found = compare(reference, candidate, targets, top_k=(5, 2), **options)
    assert_every_figure(found, reference, candidate, targets, **options)


def assert_every_figure(found, reference, candidate, targets, *, sample_weight=1, weight=1, groups=None):
    """For float64 logits, a row for each target."""
    n, grouped = len(targets), groups is not None
    sample_weight = np.broadcast_to(sample_weight, n)
    weight = np.broadcast_to(weight, reference.shape[1])
    counts = (targets != -100) & (sample_weight != 0)
    y, s = targets[counts], sample_weight[counts]
    groups = groups[counts] if grouped else None
    log_p, log_q = (np.array([log_softmax(row) for row in x[counts]]) for x in (reference, candidate))
    rows = np.arange(len(y))
    p, q = np.exp(log_p), np.exp(log_q)
    m = (p + q) / 2
    divergence = {
        "kl": (p * (log_p - log_q)).sum(axis=1),
        "reverse_kl": (q * (log_q - log_p)).sum(axis=1),
        "jensen_shannon": (p * np.log(p / m) + q * np.log(q / m)).sum(axis=1) / 2,
    }
    change = q[rows, y] - p[rows, y]
    loss = {"reference": -log_p[rows, y], "candidate": -log_q[rows, y]}
    u = s * weight[y]

    def check(estimate, values, weights, rel=1e-9):
        expected = mean_with_error(values, weights, groups)
        assert (estimate.value, estimate.error) == pytest.approx(expected, rel=rel, abs=1e-14)

    for name, values in divergence.items():
        check(getattr(found, name), values, s, rel=1e-6)
    check(found.same_top, (p.argmax(axis=1) == q.argmax(axis=1)).astype(float), s)
    assert list(found.top_k) == list(found.reverse_top_k) == [2, 5]
    for shares, first, second in ((found.top_k, p, q), (found.reverse_top_k, q, p)):
        for k, share in shares.items():
            among = (np.argsort(-second, axis=1)[:, :k] == first.argmax(axis=1)[:, None]).any(axis=1)
            check(share, among.astype(float), s)
    check(found.delta_p, change, s)
    check(found.loss_change, loss["candidate"] - loss["reference"], u)
    square, square_error = mean_with_error(change**2, s, groups)
    assert found.delta_p_rms.value == pytest.approx(math.sqrt(square))
    assert found.delta_p_rms.error == pytest.approx(square_error / (2 * math.sqrt(square)))
    for name, log in (("reference", log_p), ("candidate", log_q)):
        model = getattr(found, name)
        check(Estimate(model.loss, model.loss_error), loss[name], u)
        assert model.perplexity == pytest.approx(math.exp(model.loss))
        assert model.bits == pytest.approx(model.loss / math.log(2))
        assert model.entropy == pytest.approx(-(np.exp(log) * log).sum(axis=1).mean())
        hits = log.argmax(axis=1) == y
        assert model.accuracy == hits.mean()
        assert model.calibration_error == pytest.approx(calibration(log, hits))
    # The delta method: as errors of what the means are linearised to.
    ratio, after, before = (
        math.exp(found.loss_change.value),
        *map(math.exp, (found.candidate.loss, found.reference.loss)),
    )
    assert found.perplexity_ratio.value == pytest.approx(ratio) == pytest.approx(after / before)
    assert found.perplexity_ratio.error == pytest.approx(ratio * found.loss_change.error)
    assert found.perplexity_change.value == pytest.approx(after - before, rel=1e-9)
    both = after * loss["candidate"] - before * loss["reference"]
    assert found.perplexity_change.error == pytest.approx(mean_with_error(both, u, groups)[1], rel=1e-6)
    wr, wc = u * (loss["reference"] - found.reference.loss), u * (loss["candidate"] - found.candidate.loss)
    assert found.correlation == pytest.approx((wr * wc).sum() / math.sqrt((wr**2).sum() * (wc**2).sum()))
    for name, values in (("kl", divergence["kl"]), ("delta_p", change)):
        quantiles = dict(zip(FRACTIONS, np.quantile(values, FRACTIONS), strict=True))
        assert getattr(found, f"{name}_quantiles") == pytest.approx(quantiles, rel=1e-5, abs=1e-14)
        bounds = (getattr(found, f"{name}_min"), getattr(found, f"{name}_max"))
        assert bounds == pytest.approx((values.min(), values.max()), rel=1e-5, abs=1e-14)
    assert (found.rows, found.ignored, found.nan_rows) == (len(y), n - len(y), 0)
    if grouped:
        assert list(found.by_group) == np.unique(groups).tolist()
        for label, group in found.by_group.items():
            of = groups == label
            assert group.rows == of.sum()
            assert group.kl == pytest.approx((s * divergence["kl"])[of].sum() / s[of].sum(), rel=1e-6)
            for name in ("reference", "candidate"):
                perplexity = math.exp((u * loss[name])[of].sum() / u[of].sum())
                assert getattr(group, f"{name}_perplexity") == pytest.approx(perplexity)
    else:
        assert found.by_group is None


def test_each_model_by_itself_is_what_evaluate_says(digits):
    logits, targets = digits
    options = {"weight": np.arange(10) / 4, "sample_weight": np.arange(len(targets)) % 3, "temperature": 1.5}
    found = compare(logits["whole"], logits["int8"], targets, **options)
    for model, name in ((found.reference, "whole"), (found.candidate, "int8")):
        expected = xent_rs.evaluate(logits[name], targets, **options)
        for field in ("loss", "loss_error", "perplexity", "bits", "accuracy", "entropy"):
            assert getattr(model, field) == pytest.approx(getattr(expected, field), rel=1e-12), field
        assert (found.rows, found.ignored) == (expected.rows, expected.ignored)


def test_the_divergence_is_that_of_kl_divergence(digits):
    logits, _ = digits
    s = np.arange(len(logits["whole"])) % 4 / 2
    for options in ({}, {"temperature": 2.0}, {"sample_weight": s}):
        found = compare(logits["whole"], logits["int8"], **options)
        expected = xent_rs.kl_divergence(logits["int8"], logits["whole"], **options)
        assert found.kl.value == pytest.approx(expected, rel=1e-9)
        expected = xent_rs.kl_divergence(logits["whole"], logits["int8"], **options)
        assert found.reverse_kl.value == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    "options", [{}, {"temperature": 0.7}, {"softcap": 2.0}, {"softcap": 3.0, "temperature": 2}]
)
@pytest.mark.parametrize(("first", "second"), [*itertools.product(DTYPES, DTYPES)])
def test_any_two_dtypes(first, second, options):
    reference, candidate, targets = small(40)
    reference, candidate = reference.astype(first), candidate.astype(second)
    found = compare(reference, candidate, targets, **options)
    pairs = zip(reference.astype(float), candidate.astype(float), strict=True)
    logs = [tuple(log_softmax(row, **options) for row in pair) for pair in pairs]
    kl = [divergences(*pair)[0] for pair in logs]
    losses = [[-log[y] for log in pair] for pair, y in zip(logs, targets, strict=True)]
    # One rounding of float32 to a term, where both are narrower than float64.
    rel = 1e-12 if first == second == np.float64 else 2e-5
    assert found.kl.value == pytest.approx(np.mean(kl), rel=rel)
    assert (found.reference.loss, found.candidate.loss) == pytest.approx(
        tuple(np.mean(losses, axis=0)), rel=rel
    )


@pytest.mark.parametrize(
    ("shape", "axis"), [((7,), 0), ((7, 5), 0), ((3, 7, 4), 1), ((2, 3, 7), -1), ((2, 7, 3), -2)]
)
def test_any_axis_and_a_single_sample(shape, axis):
    random = np.random.default_rng(0)
    reference = random.standard_normal(shape)
    candidate = reference + random.standard_normal(shape)
    rows = [n for i, n in enumerate(shape) if i != axis % len(shape)]
    targets, groups = random.integers(7, size=rows), random.integers(3, size=rows)
    found = compare(reference, candidate, targets, axis=axis, groups=groups)
    flat = [np.moveaxis(x, axis, -1).reshape(-1, 7).copy() for x in (reference, candidate)]
    expected = compare(*flat, targets.reshape(-1), groups=groups.reshape(-1))
    assert found.as_dict() == pytest.approx(expected.as_dict(), rel=1e-12, nan_ok=True)


# What a figure means.


@pytest.mark.parametrize("dtype", DTYPES)
def test_equal_models_give_exact_zeros(dtype):
    logits, _, targets = small(50, dtype=dtype)
    logits[3, 2] = -np.inf
    for other in (logits, logits.copy(), logits.astype(np.float64)):
        if other.dtype != logits.dtype and logits.dtype != np.float64:
            continue
        found = compare(logits, other, targets)
        zero = Estimate(0.0, 0.0)
        assert found.kl == found.reverse_kl == found.jensen_shannon == zero
        assert found.loss_change == found.perplexity_change == found.delta_p == found.delta_p_rms == zero
        assert found.same_top == found.perplexity_ratio == Estimate(1.0, 0.0)
        assert found.correlation == 1.0
        assert {*found.kl_quantiles.values(), *found.delta_p_quantiles.values()} == {0.0}
        assert {found.kl_min, found.kl_max, found.delta_p_min, found.delta_p_max} == {0.0}
        assert found.reference == found.candidate
        assert "-0" not in json.dumps(found.as_dict())


def test_small_divergences_have_digits_and_no_sign():
    """Sums of p log(p / q) lose both."""
    random = np.random.default_rng(1)
    reference = random.standard_normal((30, 50))
    for size in (1e-3, 1e-5, 1e-7):
        step = random.standard_normal(reference.shape)
        found = compare(reference, reference + size * step)
        p = np.exp([log_softmax(row) for row in reference])
        # To second order it is half the variance of the step.
        expected = size**2 / 2 * ((p * step**2).sum(axis=1) - (p * step).sum(axis=1) ** 2)
        assert found.kl.value == pytest.approx(expected.mean(), rel=2e-3 if size > 1e-4 else 1e-4, abs=0)
        assert found.kl_min > 0


def test_the_change_of_probability_has_digits_near_certainty():
    """1 - 1e-20 less 1 - 3e-20 is no difference of float64 numbers."""
    reference, candidate = np.array([[46.0, 0.0]] * 2), np.array([[47.0, 0.0]] * 2)
    found = compare(reference, candidate, [0, 0])
    assert found.delta_p.value == pytest.approx(math.exp(-46) - math.exp(-47), rel=1e-12, abs=0)
    assert compare(candidate, reference, [0, 0]).delta_p.value == -found.delta_p.value


def test_rows_that_are_repeated_in_groups_have_the_error_of_one_of_each():
    reference, candidate, targets = small(40)
    once = compare(reference, candidate, targets)
    many = [np.repeat(values, 5, axis=0) for values in (reference, candidate, targets)]
    grouped = compare(*many, groups=np.repeat(np.arange(40), 5))
    independent = compare(*many)
    for name in (
        "kl",
        "loss_change",
        "perplexity_ratio",
        "perplexity_change",
        "delta_p",
        "delta_p_rms",
        "same_top",
    ):
        expected = getattr(once, name)
        assert getattr(grouped, name).value == pytest.approx(expected.value, rel=1e-12), name
        assert getattr(grouped, name).error == pytest.approx(expected.error, rel=1e-9), name
        assert getattr(independent, name).error < 0.5 * expected.error, name
    assert grouped.reference.loss_error == pytest.approx(once.reference.loss_error)
    assert grouped.correlation == pytest.approx(once.correlation)


def test_each_row_a_group_of_its_own_is_no_group():
    reference, candidate, targets = small(30)
    weights = np.random.default_rng(0).uniform(0, 2, 30)
    alone = compare(reference, candidate, targets, sample_weight=weights, groups=np.arange(30))
    expected = compare(reference, candidate, targets, sample_weight=weights)
    assert alone.as_dict() == pytest.approx({**expected.as_dict(), "groups": 30.0}, rel=1e-12)


def test_errors_are_those_that_samples_have():
    """The spread of the figures of many samples is what each says of itself."""
    random = np.random.default_rng(7)
    found = []
    for _ in range(200):
        # Rows in groups of 5 that share their logits in part.
        shared = np.repeat(random.standard_normal((24, 4)), 5, axis=0)
        reference = 2 * shared + random.standard_normal((120, 4))
        candidate = reference + np.repeat(random.standard_normal((24, 1)), 5, axis=0) * shared
        targets = np.repeat(random.integers(4, size=24), 5)
        found.append(compare(reference, candidate, targets, groups=np.arange(120) // 5))
    for name in ("kl", "loss_change", "perplexity_ratio", "delta_p", "delta_p_rms", "same_top"):
        estimates = [getattr(one, name) for one in found]
        spread = np.std([estimate.value for estimate in estimates])
        said = math.sqrt(np.mean([estimate.error**2 for estimate in estimates]))
        assert said == pytest.approx(spread, rel=0.25), name


def test_same_top_takes_the_first_of_equal_logits():
    assert compare([[1.0, 1.0, 0.0]], [[2.0, 1.0, 0.0]]).same_top.value == 1.0
    assert compare([[1.0, 1.0, 0.0]], [[1.0, 2.0, 0.0]]).same_top.value == 0.0


@pytest.mark.parametrize("classes", [3, 300])
def test_of_equal_logits_the_first_ranks_higher(classes):
    reference, candidate = np.zeros((2, 2, classes))
    reference[:, -1] = 1  # which the candidate has in the last place of equals
    found = compare(reference, candidate, top_k=(1, classes - 1, classes, classes + 7))
    assert [share.value for share in found.top_k.values()] == [0, 0, 1, 1]
    # The candidate's top class is the first, above which the reference has the last alone.
    assert [share.value for share in found.reverse_top_k.values()] == [0, 1, 1, 1]
    assert found.top_k[1] == found.same_top


def test_top_k_is_asked_for():
    reference, candidate, _ = small()
    assert list(compare(reference, candidate).top_k) == [5, 10]
    found = compare(reference, candidate, top_k=[3, 1, 3])
    assert list(found.top_k) == [1, 3]
    assert compare(reference, candidate, top_k=()).top_k == {}
    names = ["top_1", "top_1_error", "top_3", "top_3_error", "reverse_top_1", "reverse_top_1_error"]
    assert [name for name in found.as_dict() if name.startswith(("top_", "reverse_top_"))][:6] == names
    line = r"^\.\.\. candidate's in reference's top 3 +\S+% ± \S+%$"
    assert re.search(line, str(found), re.MULTILINE)
    for wrong in (0, [0], [True], ["1"]):
        with pytest.raises((TypeError, ValueError), match=r"^top_k "):
            compare(reference, candidate, top_k=wrong)


def test_labels_are_integers_or_texts():
    reference, candidate, targets = small(6)
    numbers = [3, 1, 3, 2**63, 1, 1]
    texts = ["b", "a", "b", "c", "a", "a"]
    by_number = compare(reference, candidate, targets, groups=np.array(numbers, np.uint64))
    assert list(by_number.by_group) == [1, 3, 2**63]
    for labels in (texts, np.array(texts), np.array(texts, object)):
        by_text = compare(reference, candidate, targets, groups=labels)
        assert list(by_text.by_group) == ["a", "b", "c"]
        assert list(by_text.by_group.values()) == list(by_number.by_group.values())
        assert by_text.as_dict() == by_number.as_dict()


# The same bits.


def bits(comparison):
    """All figures, to the last bit."""
    groups = (
        None if comparison.by_group is None else {str(k): asdict(v) for k, v in comparison.by_group.items()}
    )
    return json.dumps([comparison.as_dict(), groups])


PART = {
    "weight": np.linspace(0, 1, 7),
    "ignore_index": 2,
}
# Few classes have kernels of their own: their rows are side by side in the lanes.
DTYPES_OF_PART = {7: (np.float64, np.float64), 10: (np.float32, np.float32), 300: (np.float32, DTYPES[1])}


def part(rows, classes=7):
    """Compare some rows, in this process or another."""
    reference, candidate, targets = small(61, classes)
    first, second = DTYPES_OF_PART[classes]
    reference, candidate = reference.astype(first), candidate.astype(second)
    random = np.random.default_rng(0)
    weights, groups = random.uniform(0, 1, 61), np.arange(61) // 6
    comparer = Comparer(**{**PART, "weight": np.linspace(0, 1, classes)})
    comparer.update(
        reference[rows], candidate[rows], targets[rows], sample_weight=weights[rows], groups=groups[rows]
    )
    return comparer


@pytest.mark.sampled(1)
@pytest.mark.parametrize("classes", DTYPES_OF_PART)
def test_no_partition_order_threads_or_processes_change_a_bit(classes):
    random = np.random.default_rng(11)
    of_rows = functools.partial(part, classes=classes)
    whole = of_rows(np.arange(61)).result()
    fork = multiprocessing.get_context("fork")  # what was patched in this process holds in the others
    pools = {count: fork.Pool(count) for count in (2, 3, 4)}
    try:
        for trial in range(200):
            xent_rs.set_num_threads(1 + trial % 3)
            order = random.permutation(61)
            cuts = np.sort(random.integers(0, 62, size=random.integers(0, 20)))
            parts = np.split(order, cuts)
            processes = 1 + trial % 4
            run = map if processes == 1 else pools[processes].map
            comparers = list(run(of_rows, parts))
            random.shuffle(comparers)
            while len(comparers) > 1:  # any tree of merges
                which = int(random.integers(len(comparers) - 1))
                comparers[which].merge(comparers.pop(which + 1))
            assert bits(comparers[0].result()) == bits(whole), (trial, [len(rows) for rows in parts])
    finally:
        for pool in pools.values():
            pool.terminate()


def test_many_updates_of_one_comparer():
    expected, comparer = part(np.arange(61)), Comparer(**PART)
    for row in range(61):
        comparer.merge(part(np.array([row])))
    assert bits(comparer.result()) == bits(expected.result())
    assert len(comparer._sums.kl.pieces) <= 7, "pieces are joined as they come"
    assert len(comparer._sums.together.pieces) <= 7


def test_what_is_kept_is_eight_bytes_a_row():
    reference, candidate, targets = (np.zeros((1, 3)), np.zeros((1, 3)), np.zeros(1, int))
    comparer = Comparer()
    comparer.update(reference, candidate, targets)
    one = len(pickle.dumps(comparer))
    for _ in range(12):
        comparer.merge(comparer)
    assert len(pickle.dumps(comparer)) - one < 8 * 2**12 + 3000


def test_quantiles_are_those_of_numpy_in_any_order():
    random = np.random.default_rng(2)
    for rows in (1, 2, 3, 10, 999):
        values = np.exp(5 * random.standard_normal(rows))
        expected = np.quantile(values.astype(np.float32).astype(float), FRACTIONS)
        whole = RowValues.of(values)
        assert [*whole.quantiles().values()] == pytest.approx(expected, rel=1e-6)
        pieces = RowValues()
        for some in np.split(random.permutation(values), np.sort(random.integers(0, rows, size=5))):
            pieces += RowValues.of(some)
        assert pieces.quantiles() == whole.quantiles()
        assert pieces.bounds() == whole.bounds() == (values.min(), values.max())
        # Though float32(0.1) is more than 0.1.
        assert all(values.min() <= quantile <= values.max() for quantile in whole.quantiles().values())


def test_zeros_of_either_sign_are_the_same():
    for order in ([0.0, -0.0], [-0.0, 0.0]):
        pieces = [RowValues.of(np.array([value])) for value in order]
        assert "-0" not in str([*(pieces[0] + pieces[1]).bounds(), (pieces[0] + pieces[1]).quantiles()])
    # The change of a probability that is 0 to all digits, downward and upward.
    found = compare([[0.0, 800.0], [0.0, 801.0]], [[0.0, 801.0], [0.0, 800.0]], [0, 0])
    assert "-0" not in json.dumps(found.delta_p_quantiles)


def test_quantiles_of_infinities_and_of_what_is_not_a_number():
    values = RowValues.of(np.array([0.0, 1.0, np.inf]))
    assert values.quantiles([0.25, 0.5, 0.75, 0.99]) == {0.25: 0.5, 0.5: 1.0, 0.75: math.inf, 0.99: math.inf}
    for order in ([0.0, math.nan], [math.nan, 0.0]):
        both = RowValues.of(np.array(order[:1])) + RowValues.of(np.array(order[1:]))
        assert all(map(math.isnan, [*both.quantiles().values(), *both.bounds()]))
    assert all(map(math.isnan, [*RowValues().quantiles().values(), *RowValues().bounds()]))


def test_bins_of_the_confidence_are_closed_above():
    confidence = np.array([1 / 15, 2 / 15, 0.2, 0.2000001, 1.0, 1e-9])
    bins = CalibrationBins.of(confidence, np.array([True, False, False, True, True, False]))
    assert bins.rows == (2, 1, 1, 1, *[0] * 10, 1)
    assert bins.hits == (1, 0, 0, 1, *[0] * 10, 1)
    gaps = [1 - 1 / 15 - 1e-9, 2 / 15, 0.2, 1 - 0.2000001, 0.0]
    assert bins.error() == pytest.approx(sum(gaps) / 6)


# At the edges.


@pytest.mark.parametrize("with_targets", [False, True])
@pytest.mark.parametrize("rows", [0, 3])
def test_without_rows_figures_are_nan(rows, with_targets):
    logits = np.ones((rows, 4), np.float32)
    targets = np.full(rows, -100) if with_targets else None
    found = compare(logits, logits, targets, sample_weight=np.zeros(rows))
    assert (found.rows, found.ignored) == (0, rows)
    of_rows = f": all {rows} are ignored" if rows else ""
    assert str(found).endswith(f"\n\nNo row counts, so that all means are NaN{of_rows}.")
    flat = found.as_dict()
    reference, candidate, some_targets = small(5)
    assert list(flat) == list(compare(reference, candidate, some_targets if with_targets else None).as_dict())
    counts = {name for name in flat if name.endswith(("rows", "ignored"))}
    assert {flat.pop(name) for name in counts} <= {0.0, float(rows)}
    assert all(map(math.isnan, flat.values()))


def test_a_comparer_that_has_seen_nothing():
    found = Comparer().result()
    assert (found.rows, found.ignored, found.loss_change) == (0, 0, None)
    assert math.isnan(found.kl.value)


def test_one_row_or_group_has_no_error():
    reference, candidate, targets = small(4)
    for found in (
        compare(reference[0], candidate[0], targets[0]),
        compare(reference, candidate, targets, groups=[1, 1, 1, 1]),
    ):
        for value in asdict(found).values():
            if isinstance(value, dict) and "error" in value:
                assert math.isfinite(value["value"])
                assert math.isnan(value["error"])


def test_without_targets_what_needs_them_is_none():
    reference, candidate, targets = small()
    found, expected = compare(reference, candidate), compare(reference, candidate, targets)
    assert found.as_dict() == pytest.approx(
        {name: value for name, value in expected.as_dict().items() if name in found.as_dict()}, rel=1e-9
    )
    for field in fields(Comparison):
        value = getattr(found, field.name)
        if field.name in OF_TARGETS:
            assert value is None
        elif field.name in ("reference", "candidate"):
            assert value == ComparedModel(value.entropy, 0)


def test_rows_that_do_not_count_change_nothing():
    reference, candidate, targets = small(20)
    expected = compare(reference[5:], candidate[5:], targets[5:], sample_weight=np.ones(15))
    targets[:3] = -100
    weights = np.ones(20)
    weights[3:5] = 0
    for nonsense in (0.0, math.nan, math.inf, -math.inf):
        reference[:5] = candidate[1:4] = nonsense
        found = compare(reference, candidate, targets, sample_weight=weights)
        assert found.ignored == 5
        assert {**found.as_dict(), "ignored": 0.0} == expected.as_dict()


def test_masked_classes():
    inf = math.inf
    # A class that the reference lacks costs its mass in the candidate; the other way round infinity.
    found = compare([[0.0, 0.0, -inf]] * 2, [[0.0, 0.0, 0.0]] * 2, [0, 1])
    assert found.kl.value == pytest.approx(math.log(1.5))
    assert found.reverse_kl.value == math.inf
    assert math.isnan(found.reverse_kl.error)
    assert found.jensen_shannon.value < math.log(2)
    assert math.isfinite(found.loss_change.value)
    back = compare([[0.0, 0.0, 0.0]] * 2, [[0.0, 0.0, -inf]] * 2, [2, 2])
    assert (back.kl.value, back.kl_max, back.kl_quantiles[0.5]) == (inf, inf, inf)
    assert (back.loss_change.value, back.candidate.perplexity, back.perplexity_ratio.value) == (inf, inf, inf)
    assert back.delta_p.value == pytest.approx(-1 / 3)
    both = compare([[0.0, -inf]] * 2, [[1.0, -inf]] * 2, [1, 0])
    assert both.kl == Estimate(0.0, 0.0)
    assert both.delta_p == Estimate(0.0, 0.0)
    assert math.isnan(both.loss_change.value)


def test_a_row_without_a_softmax_makes_means_nan_and_no_error_is_raised():
    reference, candidate, targets = small(10)
    for nonsense in (math.nan, math.inf, -math.inf):
        candidate[4] = nonsense
        found = compare(reference, candidate, targets, groups=np.arange(10) // 2)
        for name in ("kl", "reverse_kl", "jensen_shannon", "loss_change", "perplexity_ratio", "delta_p"):
            assert math.isnan(getattr(found, name).value), name
            assert math.isnan(getattr(found, name).error), name
        assert math.isnan(found.kl_max)
        assert math.isnan(found.candidate.calibration_error)
        assert math.isfinite(found.reference.loss)
        assert math.isfinite(found.reference.calibration_error)
        assert [label for label, group in found.by_group.items() if math.isnan(group.kl)] == [2]
        assert (found.nan_rows, found.reference.nan_rows, found.candidate.nan_rows) == (1, 0, 1)


def test_the_report_says_which_figures_rows_of_nan_spoil():
    reference, candidate, targets = small(10)
    reference[[1, 2], 0], candidate[[2, 3], 1] = math.nan, math.inf
    found = compare(reference, candidate, targets)
    assert (found.nan_rows, found.reference.nan_rows, found.candidate.nan_rows) == (3, 2, 2)
    *_, note = str(found).split("\n\n")
    assert note == (
        "3 of 10 rows are NaN (2 of the reference, 2 of the candidate): they have a logit of NaN or +inf, "
        "none above -inf, or a weight of NaN. So the divergences, the entropies, the losses, the change of "
        "the loss and the change of p(target) are NaN. Such rows are left out by a target of ignore_index, "
        "or by a sample_weight of 0."
    )
    assert re.search(r"^rows of NaN +3$", str(found), re.MULTILINE)
    assert f"<p>{note}</p>" in found._repr_html_()
    targets[[1, 2, 3]] = -100
    found = compare(reference, candidate, targets)
    assert (found.nan_rows, found.rows, found.ignored) == (0, 7, 3)
    assert "NaN" not in str(found)


def test_a_target_that_both_models_exclude_has_no_change_of_the_loss():
    logits = np.array([[0.0, -math.inf], [0.0, 1.0]])
    found = compare(logits, logits, [1, 1])
    assert found.nan_rows == 0
    assert math.isnan(found.loss_change.value)
    note = "Both models exclude a target: their losses are infinite, and have no change."
    assert str(found).endswith(f"\n\n{note}")


def test_class_weights_of_0_leave_divergences_alone():
    reference, candidate, _ = small(10)
    targets = np.zeros(10, int)
    found = compare(reference, candidate, targets, weight=[0.0, *[1.0] * 6])
    assert math.isnan(found.loss_change.value)
    assert found.kl == compare(reference, candidate, targets).kl
    # 0 times infinity is 0, as in `cross_entropy`.
    reference[3, 0] = candidate[3, 0] = -np.inf
    targets[5:] = 1
    found = compare(reference, candidate, targets, weight=[0.0, *[1.0] * 6])
    expected = xent_rs.evaluate(candidate, targets, weight=[0.0, *[1.0] * 6])
    assert found.candidate.loss == pytest.approx(expected.loss, rel=1e-12)


def test_a_row_without_a_softmax_has_no_top_class():
    logits = np.array([[math.nan, 1.0, 0.0], [0.0, math.inf, 0.0], [-math.inf] * 3, [1.0, 0.0, 0.0]])
    assert compare(logits, logits).same_top.value == 0.25
    assert compare(logits, np.eye(3)[[0, 1, 0, 0]]).same_top.value == 0.25


# How it is called.


def test_fields_and_types():
    found = compare(*small(), groups=np.zeros(60, int))
    for name in ("kl", "same_top", "loss_change", "perplexity_ratio", "delta_p", "delta_p_rms"):
        estimate = getattr(found, name)
        assert [type(value) for value in (estimate.value, estimate.error)] == [float, float]
    assert list(found.kl_quantiles) == [0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999]
    assert list(found.delta_p_quantiles) == list(found.kl_quantiles)
    assert {type(value) for value in found.as_dict().values()} == {float}
    with pytest.raises(FrozenInstanceError):
        found.rows = 0


def test_as_dict_is_flat():
    found = compare(*small(), groups=np.arange(60) // 2)
    flat = found.as_dict("int8/")
    assert all(name.startswith("int8/") for name in flat)
    names = [name.removeprefix("int8/") for name in flat]
    assert names[:7] == ["rows", "ignored", "nan_rows", "kl", "kl_error", "kl_min", "kl_max"]
    for name, value in (
        ("kl", found.kl.value),
        ("kl_error", found.kl.error),
        ("kl_q99", found.kl_quantiles[0.99]),
        ("kl_q99_9", found.kl_quantiles[0.999]),
        ("delta_p_q5", found.delta_p_quantiles[0.05]),
        ("same_top", found.same_top.value),
        ("top_5", found.top_k[5].value),
        ("reverse_top_10_error", found.reverse_top_k[10].error),
        ("reference_loss", found.reference.loss),
        ("candidate_calibration_error", found.candidate.calibration_error),
        ("groups", 30.0),
    ):
        assert flat[f"int8/{name}"] == value
    assert json.loads(json.dumps(flat)) == flat


def test_a_comparison_is_tables_for_people_and_constructive_for_programs():
    found = compare(*small(), groups=np.arange(60) // 2)
    text = str(found)
    for line in (
        r"rows +60",
        r"groups +30",
        r" +reference +candidate +change",
        r"loss \(nats\) +\S+ ± \S+ +\S+ ± \S+ +[+-]\S+ ± \S+",
        r"perplexity, ratio +\S+ ± \S+",
        r"KL\(reference \|\| candidate\) +\S+ ± \S+",
        r"same top class +\S+% ± \S+%",
        r"99\.9% +\S+ +[+-]\S+%",
    ):
        assert re.search(f"^{line}$", text, re.MULTILINE), line
    html = ElementTree.fromstring(f"<all>{found._repr_html_()}</all>")
    assert [cell.text for cell in html[1].iter("th")][:4] == [None, "reference", "candidate", "change"]
    assert eval(repr(found), vars(xent_rs)) == found
    plain = str(compare(*small()[:2]))
    assert "loss" not in plain
    assert "change of p" not in plain


@pytest.mark.parametrize(
    ("value", "error", "options", "text"),
    [
        (1.876812, 0.0096, {}, "1.8768 ± 0.0096"),
        (1.876812, 0.00996, {}, "1.877 ± 0.010"),
        (0.002441, 0.00021, {"sign": "+"}, "+0.00244 ± 0.00021"),
        (0.95081, 0.0006, {"percent": True}, "95.081% ± 0.060%"),
        (1234.5, 123.0, {}, "1234 ± 123"),
        (0.0, 0.0, {}, "0 ± 0"),
        (1.5, math.nan, {}, "1.5"),
        (math.inf, math.nan, {}, "inf"),
        (3.2e-20, 1.3e-21, {}, "3.200e-20 ± 1.3e-21"),
    ],
)
def test_an_error_says_how_many_digits_are_shown(value, error, options, text):
    assert with_error(value, error, **options) == text


def test_merge_returns_the_comparer_and_update_nothing():
    comparer, other = Comparer(), Comparer()
    assert comparer.update(np.zeros((1, 2)), np.zeros((1, 2))) is None
    assert comparer.merge(other) is comparer
    assert comparer.result().rows == 1
    assert other.merge(comparer).result().rows == 1


def test_merging_leaves_the_other_alone_and_works_with_itself():
    comparer = part(np.arange(20))
    before = bits(comparer.result())
    part(np.arange(20, 61)).merge(comparer)
    assert bits(comparer.result()) == before
    once = comparer.result()
    twice = comparer.merge(comparer).result()
    assert (twice.rows, twice.kl.value) == (2 * once.rows, once.kl.value)


@pytest.mark.parametrize(
    "clone", [copy.copy, copy.deepcopy, lambda comparer: pickle.loads(pickle.dumps(comparer))]
)
def test_a_copy_goes_on_where_the_original_was(clone):
    comparer = part(np.arange(30))
    other = clone(comparer)
    assert repr(other) == repr(comparer)
    other.merge(part(np.arange(30, 61)))
    assert bits(other.result()) == bits(part(np.arange(61)).result())
    assert comparer.result().rows < other.result().rows


def test_what_was_counted_goes_on_elsewhere():
    comparer = Comparer(**PART)
    for rows in np.split(np.arange(61), [7, 30]):
        comparer._go_on_from(part(rows)._counted())
    assert bits(comparer.result()) == bits(part(np.arange(61)).result())
    plain = Comparer()
    plain.update(*small()[:2])
    again = Comparer()
    again._go_on_from(plain._counted())
    assert bits(again.result()) == bits(plain.result())


@pytest.mark.parametrize("damage", ["{}", "[]", '{"classes": 7}'])
def test_what_was_not_counted_is_refused(damage):
    comparer = Comparer()
    with pytest.raises(ValueError, match=r"expect"):
        comparer._go_on_from(damage.encode() + b"\n")
    assert comparer.result().rows == 0
    whole = part(np.arange(61))._counted()
    with pytest.raises(ValueError, match=r"^expected "):
        comparer._go_on_from(whole[:-4])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ignore_index": 0}, "other has ignore_index 0; expected -100"),
        ({"temperature": 2}, "other has temperature 2.0; expected 1.0"),
        ({"axis": 1}, "other has axis 1; expected -1"),
        ({"softcap": 30}, "other has softcap 30.0; expected None"),
        ({"weight": [1, 2]}, "other has weight [1., 2.]; expected None"),
        ({"top_k": [3]}, "other has top_k (3,); expected (5, 10)"),
    ],
)
def test_merge_refuses_other_options(options, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Comparer().merge(Comparer(**options))


def test_merge_refuses_what_has_seen_something_else():
    plain, wide, targets, groups = (Comparer() for _ in range(4))
    plain.update(np.zeros((2, 2)), np.zeros((2, 2)))
    wide.update(np.zeros((2, 3)), np.zeros((2, 3)))
    targets.update(np.zeros((2, 2)), np.zeros((2, 2)), [0, 1])
    groups.update(np.zeros((2, 2)), np.zeros((2, 2)), groups=[0, 1])
    for mine, other, message in (
        (plain, wide, "other has seen logits of 3 classes; expected 2"),
        (plain, targets, "other has seen logits with targets; expected without them"),
        (targets, plain, "other has seen logits without targets; expected with them"),
        (groups, plain, "other has seen logits without groups; expected with them"),
    ):
        before = bits(mine.result())
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            mine.merge(other)
        assert bits(mine.result()) == before
    with pytest.raises(TypeError, match=r"^other is of type Evaluator; expected a Comparer$"):
        plain.merge(xent_rs.Evaluator())


X = np.zeros((2, 3))
REFUSED = [
    ((X, np.zeros((2, 4))), {}, ValueError, "candidate has shape (2, 4); expected (2, 3), "),
    ((X, X, [0, 1, 2]), {}, ValueError, "targets have shape (3,); expected (2,), "),
    ((X, X, [0, 3]), {}, IndexError, "targets[1] is 3; expected 0 to 2, or ignore_index -100"),
    ((X, X, [0, 1]), {"groups": [1]}, ValueError, "groups have shape (1,); expected (2,), one group a row"),
    (
        (X, X, [0, 1]),
        {"groups": [0.5, 1.0]},
        TypeError,
        "groups have dtype float64; expected integers or strings, one group a row",
    ),
    ((X, X), {"groups": [[1], [2, 3]]}, TypeError, "groups make no array ("),
    ((X, X), {"groups": [True, False]}, TypeError, "groups have dtype bool; expected integers or strings"),
    ((X, X), {"temperature": 0}, ValueError, "temperature is 0.0; expected a positive finite number"),
    ((X, X), {"axis": 1.5}, TypeError, "axis is 1.5; expected an integer"),
    ((X, X), {"weight": [[1, 2]]}, ValueError, "weight has shape (1, 2); expected (C,), one number a class"),
    (
        (X, X),
        {"weight": [1, 2, 3]},
        ValueError,
        "weight is given without targets; expected targets, whose classes it weights",
    ),
    (
        (X, X),
        {"label_smoothing": 0.1},
        TypeError,
        "compare() got an unexpected keyword argument 'label_smoothing'",
    ),
    (
        (X, X),
        {"group": [1, 2]},
        TypeError,
        "compare() got an unexpected keyword argument 'group'. Did you mean 'groups'?",
    ),
]


@pytest.mark.parametrize(("arrays", "options", "exception", "message"), REFUSED)
def test_what_is_wrong_is_said(arrays, options, exception, message):
    with pytest.raises(exception, match=f"^{re.escape(message)}"):
        compare(*arrays, **options)


@pytest.mark.parametrize(
    ("batch", "options", "message"),
    [
        (
            (np.zeros((2, 5)), np.zeros((2, 5)), [0, 1]),
            {"groups": [0, 1]},
            "reference has 5 classes along axis -1; expected 3",
        ),
        ((X, X), {"groups": [0, 1]}, "targets are missing; expected them, as in the batches before"),
        ((X, X, [0, 1]), {}, "groups are missing; expected them, as in the batches before"),
        ((X, X, [0, 3]), {"groups": [0, 1]}, "targets[1] is 3; expected 0 to 2"),
        ((X, X, [0, 1]), {"groups": [0]}, "groups have shape (1,); expected (2,)"),
    ],
)
def test_a_refused_batch_changes_nothing(batch, options, message):
    comparer = Comparer()
    comparer.update(X, X + np.arange(3), [0, 2], groups=[5, 6])
    before = bits(comparer.result())
    with pytest.raises((ValueError, IndexError), match=f"^{re.escape(message)}"):
        comparer.update(*batch, **options)
    assert bits(comparer.result()) == before


def test_what_was_without_targets_takes_none():
    comparer = Comparer()
    comparer.update(X, X)
    with pytest.raises(ValueError, match=r"^targets are given; expected none, as in the batches before$"):
        comparer.update(X, X, [0, 1])


def test_an_update_changes_everything_or_nothing():
    """Also if it is interrupted where it adds up."""
    comparer, more = part(np.arange(20)), part(np.arange(20, 61))
    states = {bits(comparer.result()), bits(copy.copy(comparer).merge(more).result())}
    interrupted = set()
    for at in range(1, 200, 3):
        steps = 0

        def trace(frame, event, argument, at=at):
            nonlocal steps
            if frame.f_globals.get("__name__", "").startswith("xent_rs._"):
                steps += event == "line"
                if steps == at:
                    raise KeyboardInterrupt
                return trace
            return None

        again = copy.copy(comparer)
        sys.settrace(trace)
        try:
            again.merge(more)
        except KeyboardInterrupt:
            interrupted.add(at)
        finally:
            sys.settrace(None)
        assert bits(again.result()) in states
    assert len(interrupted) > 10


def test_weights_are_copied_and_lists_are_taken():
    weight = np.ones(3)
    comparer = Comparer(weight=weight)
    weight[:] = 7
    comparer.merge(Comparer(weight=[1, 1, 1]))
    lists = compare([[0.0, 1.0], [2.0, 0.0]], [[0.0, 1.5], [2.0, 0.0]], [1, 0], sample_weight=[1, 2])
    arrays = compare(
        np.array([[0.0, 1.0], [2.0, 0.0]]),
        np.array([[0.0, 1.5], [2.0, 0.0]]),
        np.array([1, 0]),
        sample_weight=np.array([1.0, 2.0]),
    )
    assert lists == arrays


def test_repr_names_options_and_counts():
    comparer = Comparer(temperature=2)
    comparer.update(X, X, [0, -100])
    options = "top_k=(5, 10), weight=None, ignore_index=-100, softcap=None, temperature=2.0, axis=-1"
    assert repr(comparer) == f"<Comparer({options}): 1 rows, 1 ignored>"
    assert "groups" in inspect.signature(compare).parameters


# What is not in memory.


def test_files_are_walked_over_block_by_block(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    reference, candidate, targets = small(24)
    weights, groups = np.random.default_rng(0).uniform(0, 1, (4, 6)), np.arange(24).reshape(4, 6) // 5
    arrays = {
        "reference": reference.reshape(4, 6, 7).astype(np.float32),
        "candidate": candidate.reshape(4, 6, 7).astype(np.float16),
        "targets": targets.reshape(4, 6),
        "weights": weights,
        "groups": groups,
    }
    for name, values in arrays.items():
        np.save(f"{name}.npy", values)
    stored = {name: io.open_array(f"{name}.npy") for name in arrays}
    walk, seen = io._rows.paired_row_blocks, []

    def small_blocks(*args, **options):
        for block in walk(*args, **options, max_bytes=7 * 6 * 3):
            seen.append(block[0])
            yield block

    monkeypatch.setattr(io, "paired_row_blocks", small_blocks)
    names = ("reference", "candidate", "targets")
    expected = compare(*(arrays[name] for name in names), sample_weight=weights, groups=groups)
    assert not seen
    for source in (stored, {**arrays, "candidate": stored["candidate"]}):
        found = compare(
            *(source[name] for name in names), sample_weight=source["weights"], groups=source["groups"]
        )
        assert bits(found) == bits(expected)
    assert len(seen) == 2 * 8
    arrays["targets"][2, 5] = 9
    with pytest.raises(IndexError, match=r"^targets\[2, 5\] is 9; expected 0 to 6, or ignore_index -100$"):
        compare(stored["reference"], stored["candidate"], arrays["targets"])


@pytest.mark.parametrize("shape", [(4, 300, 37), (1, 1000, 21), (3, 2, 5)])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_no_cut_along_an_inner_axis_changes_a_bit(shape, dtype):
    """Where the rows of a class lie side by side, few of them go by the same kernel as many."""
    random = np.random.default_rng(shape[1])
    reference, candidate = random.standard_normal((2, *shape)).astype(dtype)
    targets = random.integers(shape[1], size=(shape[0], shape[2]))

    def of(**options):
        whole = Comparer(axis=1), xent_rs.Evaluator(axis=1, **options)
        whole[0].update(reference, candidate, targets)
        whole[1].update(reference, targets)
        return whole

    for options in ({}, {"z_loss": 0.1}, {"temperature": 0.7, "label_smoothing": 0.1}, {"focal_gamma": 2.0}):
        expected = of(**options)
        for trial in range(6):
            comparer, evaluator = Comparer(axis=1), xent_rs.Evaluator(axis=1, **options)
            cuts = np.sort(random.integers(0, shape[2] + 1, size=4)).tolist()
            for part in np.split(np.arange(shape[2]), sorted([*cuts, 1, shape[2] - 1])):
                here = np.s_[:, :, part[0] : part[-1] + 1] if len(part) else np.s_[:, :, :0]
                # Of copies those of one row lie as rows with the classes last.
                some = [array[here].copy() if trial % 2 else array[here] for array in (reference, candidate)]
                comparer.update(*some, targets[here[::2]])
                evaluator.update(some[0], targets[here[::2]])
            assert bits(comparer.result()) == bits(expected[0].result()), options
            assert evaluator.result() == expected[1].result(), options
