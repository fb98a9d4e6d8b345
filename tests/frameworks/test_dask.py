"""`xent_rs.dask`: the local functions' bits in any chunks of rows, their accuracy in chunks of classes."""

import inspect
import itertools
import multiprocessing
import os
import pickle
import re
import subprocess
import sys
import textwrap
import threading
import time
import tracemalloc
import typing
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np
import pytest
import xent_rs
from ml_dtypes import bfloat16
from xent_rs import io

dask = pytest.importorskip("dask", "2025.5", reason="Dask is not installed")

import dask.array as da  # noqa: E402
import xent_rs.dask as xd  # noqa: E402
from dask.base import tokenize  # noqa: E402
from dask.delayed import Delayed  # noqa: E402

from ..bounds import CrossEntropyBounds, assert_within  # noqa: E402
from ..comparison_oracle import divergences, log_softmax  # noqa: E402
from ..oracle import CrossEntropy, Softmax  # noqa: E402

DTYPES = [np.float16, bfloat16, np.float32, np.float64]
ROWS, CLASSES = 60, 37


def problem(dtype=np.float32, rows=ROWS, classes=CLASSES, seed=0):
    """Logits of two models, targets of which some are ignored, weights of rows and of classes, groups."""
    random = np.random.default_rng(seed)
    reference = (3 * random.standard_normal((rows, classes))).astype(dtype)
    candidate = (reference.astype(float) + 0.2 * random.standard_normal((rows, classes))).astype(np.float32)
    targets = random.integers(classes, size=rows)
    targets[::11] = -100
    sample_weight = random.uniform(0, 2, rows)
    sample_weight[5::13] = 0
    groups = np.array([f"text {number}" for number in random.integers(4, size=rows)])
    return reference, candidate, targets, sample_weight, random.uniform(0, 2, classes), groups


def cut(random, length, pieces):
    """Random lengths of chunks, of which some may be 0."""
    ends = np.sort(random.integers(0, length + 1, pieces - 1))
    return tuple(np.diff([0, *ends, length]).tolist())


def same(found, expected):
    """The same figures, NaN and quantiles included, to the bit."""
    return repr(asdict(found)) == repr(asdict(expected))


def close(found, expected, **tolerance):
    """The same figures to the accuracy of the promise; counts are the same."""
    for field in fields(expected):
        values = [getattr(of, field.name) for of in (found, expected)]
        if isinstance(values[1], int) or values[1] is None:
            assert values[0] == values[1], field.name
            continue
        flat = [np.array(figures(value), float) for value in values]
        np.testing.assert_allclose(*flat, err_msg=field.name, **tolerance)


def figures(value):
    if isinstance(value, dict):
        return [number for item in value.values() for number in figures(item)]
    if hasattr(value, "__dataclass_fields__"):
        return [number for item in asdict(value).values() for number in figures(item)]
    return [np.nan if value is None else value]


OPTIONS = [
    {},
    {"temperature": 0.7, "softcap": 9.0},
    {"label_smoothing": 0.1, "z_loss": 1e-3, "weighted": True},
    {"weighted": True, "ignore_index": 3},
    {"focal_gamma": 2.0, "poly_epsilon": -0.5, "weighted": True},
]
# What a comparison of models has not.
OF_LOSSES = ("label_smoothing", "z_loss", "focal_gamma", "poly_epsilon")


def options_of(case, sample_weight, weight):
    weights = {"sample_weight": sample_weight, "weight": weight} if case.get("weighted") else {}
    return {**{name: value for name, value in case.items() if name != "weighted"}, **weights}


# All classes in one chunk: the bits of the local functions.


@pytest.mark.parametrize("scheduler", ["synchronous", "threads"])
@pytest.mark.parametrize("case", OPTIONS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: np.dtype(dtype).name)
def test_any_chunks_of_rows_give_the_bits_of_the_local_functions(dtype, case, scheduler):
    reference, candidate, targets, sample_weight, weight, groups = problem(dtype)
    targets = np.where(targets == -100, case.get("ignore_index", -100), targets)
    options = options_of(case, sample_weight, weight)
    common = {name: value for name, value in options.items() if name not in OF_LOSSES}
    evaluation = xent_rs.evaluate(reference, targets, **options)
    comparison = xent_rs.compare(reference, candidate, targets, groups=groups, **common)
    losses = xent_rs.cross_entropy(reference, targets, reduction="none", **options)
    random = np.random.default_rng(1)
    with dask.config.set(scheduler=scheduler):
        for pieces, split_every in ((1, None), (2, 2), (5, 2), (9, 4), (16, 16)):
            chunks = cut(random, ROWS, pieces)
            lazy = da.from_array(reference, chunks=(chunks, -1))
            other = da.from_array(candidate, chunks=(cut(random, ROWS, 3), -1))
            labels = da.from_array(targets, chunks=7) if pieces % 2 else targets
            found = xd.evaluate(lazy, labels, split_every=split_every, **options).compute()
            assert same(found, evaluation)
            found = xd.compare(lazy, other, labels, groups=groups, split_every=split_every, **common)
            assert same(found.compute(), comparison)
            array = xd.cross_entropy(lazy, labels, reduction="none", **options)
            assert array.dtype == losses.dtype
            assert array.chunks == (chunks,)
            assert array.compute().tobytes() == losses.tobytes()


def test_classes_on_another_axis():
    """The bits are those of logits with the classes last: the kernels for other layouts add otherwise."""
    random = np.random.default_rng(0)
    logits = random.standard_normal((4, 1000, 37)).astype(np.float32)
    other = (logits + 0.1 * random.standard_normal(logits.shape)).astype(np.float32)
    targets = random.integers(1000, size=(4, 37))
    last, other_last = (np.ascontiguousarray(np.moveaxis(x, 1, -1)) for x in (logits, other))
    for chunks in ((4, -1, 37), (1, -1, 20), (3, -1, 1)):
        lazy, lazy_other = (da.from_array(x, chunks=chunks) for x in (logits, other))
        assert same(xd.evaluate(lazy, targets, axis=1).compute(), xent_rs.evaluate(last, targets))
        found = xd.compare(lazy, lazy_other, targets, axis=-2).compute()
        assert same(found, xent_rs.compare(last, other_last, targets))
        losses = xd.cross_entropy(lazy, targets, axis=1, reduction="none")
        expected = xent_rs.cross_entropy(last, targets, reduction="none")
        assert losses.compute().tobytes() == expected.tobytes()
    lazy = da.from_array(logits, chunks=(3, 300, 5))
    close(xd.evaluate(lazy, targets, axis=1).compute(), xent_rs.evaluate(last, targets), rtol=1e-6)
    losses = xd.cross_entropy(lazy, targets, axis=1, reduction="none")
    assert losses.shape == losses.compute().shape == (4, 37)
    np.testing.assert_allclose(losses, expected, rtol=1e-6)


@pytest.mark.parametrize("classes", [(37,), (20, 17)], ids=str)
def test_a_single_sample(classes):
    logits = np.linspace(-3, 3, 37)
    lazy = da.from_array(logits, chunks=(classes,))
    close(xd.evaluate(lazy, 20).compute(), xent_rs.evaluate(logits, 20), rtol=1e-14)
    assert xd.cross_entropy(lazy, 20, reduction="none").compute() == pytest.approx(
        xent_rs.cross_entropy(logits, 20), rel=1e-14
    )
    with pytest.raises(IndexError, match=r"^targets is 37; expected 0 to 36, or ignore_index -100$"):
        xd.evaluate(lazy, 37).compute()


# Sums and means of losses.


@pytest.mark.parametrize(
    ("case", "soft"), [*itertools.product(OPTIONS[:3], (False, True)), (OPTIONS[4], False)], ids=str
)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: np.dtype(dtype).name)
def test_sums_and_means_are_exact(dtype, case, soft):
    reference, _, targets, sample_weight, weight, _ = problem(dtype)
    random = np.random.default_rng(2)
    if soft:
        targets = random.dirichlet(np.ones(CLASSES), ROWS).astype(np.float32)
    options = options_of(case, sample_weight, weight)
    for reduction in ({}, {"reduction": "sum"}, {"denominator": 7}, {"denominator": 0}):
        expected = xent_rs.cross_entropy(reference, targets, **reduction, **options)
        for classes in (-1, 11):
            # In one chunk of classes the losses are those of the local function, before they are rounded.
            rel = 1e-14 if classes == -1 else 1e-13 if dtype == np.float64 and not soft else 3e-7
            found = set()
            for rows in (60, 17, 5):
                lazy = da.from_array(reference, chunks=(rows, classes))
                labels = targets if rows == 17 else da.from_array(targets, chunks=13)
                mean = xd.cross_entropy(lazy, labels, **reduction, **options)
                assert mean.shape == ()
                assert mean.dtype == np.float64
                found.add(repr(float(mean)))
            if soft and classes == 11:
                # Where both are chunked they are cut where either is: not always at the same classes.
                assert len(found) <= 3
            else:
                assert len(found) == 1, "chunks of rows change no bit"
            for text in found:
                assert float(text) == pytest.approx(expected, rel=rel, nan_ok=True)


def test_no_rows_and_rows_that_do_not_count():
    logits = da.zeros((0, 7), chunks=(1, 3))
    assert np.isnan(xd.evaluate(logits, np.zeros(0, int)).compute().loss)
    assert np.isnan(xd.cross_entropy(logits, np.zeros(0, int)).compute())
    assert xd.cross_entropy(logits, np.zeros(0, int), reduction="sum").compute() == 0
    assert xd.cross_entropy(logits, np.zeros(0, int), reduction="none").compute().shape == (0,)
    assert xd.compare(logits, logits, np.zeros(0, int)).compute().rows == 0
    # All rows of a chunk ignored, whatever they hold, chunks without rows and chunks without classes.
    reference, candidate, targets, *_ = problem()
    targets[20:40] = -100
    reference[25, 3], reference[26], candidate[27, 0] = np.nan, -np.inf, np.inf
    for classes in ((37,), (10, 0, 27), (0, 37), (0, 20, 17, 0)):
        lazy, other = (da.from_array(x, chunks=((20, 0, 20, 0, 20), classes)) for x in (reference, candidate))
        close(xd.evaluate(lazy, targets).compute(), xent_rs.evaluate(reference, targets), rtol=1e-6)
        expected = xent_rs.compare(reference, candidate, targets)
        close(xd.compare(lazy, other, targets).compute(), expected, rtol=1e-4, atol=1e-7)
        losses = xd.cross_entropy(lazy, targets, reduction="none").compute()
        assert (losses[20:40] == 0).all()
        np.testing.assert_allclose(
            losses, xent_rs.cross_entropy(reference, targets, reduction="none"), rtol=1e-6
        )


@pytest.mark.parametrize("classes", [-1, 10])
def test_weights_and_groups_of_dask_are_those_of_numpy(classes):
    reference, candidate, targets, sample_weight, weight, groups = problem()
    lazy, other = (da.from_array(x, chunks=(17, classes)) for x in (reference, candidate))
    here = {"sample_weight": sample_weight, "weight": weight}
    there = {
        "sample_weight": da.from_array(sample_weight, chunks=50),
        "weight": da.from_array(weight, chunks=9),
    }
    labels, label_groups = da.from_array(targets, chunks=60), da.from_array(groups, chunks=8)
    ks = (k for k in (1, 3))
    found = xd.evaluate(lazy, labels, top_k=ks, **there).compute()
    assert same(found, xd.evaluate(lazy, targets, top_k=(3, 1), **here).compute())
    assert sorted(found.top_k) == [1, 3]
    found = xd.compare(lazy, other, labels, groups=label_groups, **there).compute()
    assert same(found, xd.compare(lazy, other, targets, groups=groups, **here).compute())
    found = xd.cross_entropy(lazy, labels, reduction="none", **there).compute()
    assert (found == xd.cross_entropy(lazy, targets, reduction="none", **here).compute()).all()


# The classes in several chunks.


@pytest.mark.parametrize("case", OPTIONS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: np.dtype(dtype).name)
def test_chunks_of_classes_are_as_accurate_and_chunks_of_rows_change_nothing(dtype, case):
    reference, candidate, targets, sample_weight, weight, groups = problem(dtype)
    targets = np.where(targets == -100, case.get("ignore_index", -100), targets)
    options = options_of(case, sample_weight, weight)
    common = {name: value for name, value in options.items() if name not in OF_LOSSES}
    evaluation = xent_rs.evaluate(reference, targets, top_k=(1, 2, 20, 100), **options)
    comparison = xent_rs.compare(reference, candidate, targets, groups=groups, **common)
    random = np.random.default_rng(3)
    for pieces in (2, 5, 12):
        classes = cut(random, CLASSES, pieces)
        seen = []
        for rows in (1, 4, 9):
            chunks = cut(random, ROWS, rows), classes
            lazy, other = (da.from_array(x, chunks=chunks) for x in (reference, candidate))
            found = xd.evaluate(lazy, targets, top_k=(1, 2, 20, 100), split_every=2, **options).compute()
            close(found, evaluation, rtol=1e-6)
            assert found.top_k == evaluation.top_k
            both = xd.compare(lazy, other, targets, groups=groups, **common).compute()
            close(both, comparison, rtol=2e-5, atol=1e-7)
            losses = xd.cross_entropy(lazy, targets, reduction="none", **options).compute()
            seen.append((repr(found), repr(both), losses.tobytes()))
        assert len(set(seen)) == 1


@pytest.mark.parametrize(
    ("case", "soft"), [*itertools.product(OPTIONS[:3], (False, True)), (OPTIONS[4], False)], ids=str
)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: np.dtype(dtype).name)
def test_losses_of_rows_against_the_oracle(dtype, case, soft):
    """Targets of the largest class, too: relative accuracy."""
    reference, _, targets, sample_weight, weight, _ = problem(dtype)
    reference[3, 7] = 40
    targets[1:4] = np.where(targets[1:4] < 0, targets[1:4], reference[1:4].argmax(axis=1))
    if soft:
        targets = np.random.default_rng(2).dirichlet(np.ones(CLASSES), ROWS)
        targets[4] = np.arange(CLASSES) == 5
    options = options_of(case, sample_weight, weight)
    softmax = Softmax(reference, case.get("temperature", 1.0), case.get("softcap"))
    names = ("weight", "sample_weight", *OF_LOSSES)
    oracle = CrossEntropy(softmax, targets, **{name: options[name] for name in names if name in options})
    bounds = CrossEntropyBounds(oracle, np.dtype(dtype))
    for classes in (1, 5, 20):
        lazy = da.from_array(reference, chunks=(25, classes))
        found = xd.cross_entropy(lazy, targets, reduction="none", **options).compute()
        assert_within("losses of chunks", found, oracle.losses, bounds.losses, np.dtype(dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: np.dtype(dtype).name)
def test_compared_rows_that_are_not_like_others(dtype):
    """Masked classes in one model or both, rows without a softmax, confident ones, equal ones, offsets."""
    random = np.random.default_rng(0)
    reference = random.standard_normal((16, 12))
    candidate = reference + 0.1 * random.standard_normal(reference.shape)
    inf = np.inf
    reference[1, 2] = -inf
    candidate[2, 2] = -inf
    reference[3, 2:8] = candidate[3, 2:8] = -inf
    reference[4] = -inf
    candidate[5] = -inf
    reference[6, 1] = np.nan
    candidate[7, 1] = inf
    reference[8, 3], candidate[8, 3] = 60, 70
    reference[9, 1:], candidate[9, 1:] = -inf, -inf
    reference[10, 4] = candidate[10, 9] = 60
    candidate[11] = reference[11]
    reference[12] += 200
    candidate[13, :], candidate[13, 2] = -inf, 0
    candidate[14, :6] = -inf
    reference[15, 6:] = -inf
    reference, candidate = reference.astype(dtype), candidate.astype(dtype)
    targets = np.arange(16) % 12
    for row in range(16):
        of_row = slice(row, row + 1)
        local = xent_rs.compare(reference[of_row], candidate[of_row], targets[of_row])
        with np.errstate(invalid="ignore"):
            wanted = divergences(log_softmax(reference[row]), log_softmax(candidate[row]))
        for classes in ((6, 6), (1, 1, 10), (3, 3, 3, 3), (2,) * 6):
            lazy, other = (da.from_array(x[of_row], chunks=(1, classes)) for x in (reference, candidate))
            found = xd.compare(lazy, other, targets[of_row]).compute()
            if row == 11:
                assert found.kl.value == found.reverse_kl.value == found.jensen_shannon.value == 0
            for name, expected in zip(("kl", "reverse_kl", "jensen_shannon"), wanted, strict=True):
                value = getattr(found, name).value
                np.testing.assert_allclose(value, expected, rtol=1e-9, atol=1e-15, err_msg=f"{name} {row}")
                assert not value < 0
            close(found, local, rtol=1e-5, atol=1e-6)


def test_small_divergences_keep_their_digits():
    random = np.random.default_rng(0)
    reference = random.standard_normal((20, 100))
    candidate = reference + 1e-6 * random.standard_normal(reference.shape)
    expected = xent_rs.compare(reference, candidate)
    found = xd.compare(*(da.from_array(x, chunks=(7, 30)) for x in (reference, candidate))).compute()
    for name in ("kl", "reverse_kl", "jensen_shannon"):
        assert getattr(found, name).value == pytest.approx(getattr(expected, name).value, rel=1e-7)


def test_equal_logits_rank_by_their_class():
    logits = np.zeros((12, 12))
    logits[:, 4] = -np.inf
    targets = np.arange(12) // 3
    expected = xent_rs.evaluate(logits, targets, top_k=range(1, 13))
    for classes in (1, 3, 5, 11):
        lazy = da.from_array(logits, chunks=(5, classes))
        assert xd.evaluate(lazy, targets, top_k=range(1, 13)).compute().top_k == expected.top_k


def test_top_classes_among_equal_logits():
    """Wherever the chunks of the classes end."""
    reference, candidate = np.random.default_rng(0).integers(4, size=(2, 40, 12)).astype(np.float32)
    reference[3, 2], candidate[[3, 4], 5], candidate[6] = np.nan, np.inf, -np.inf
    expected = xent_rs.compare(reference, candidate, top_k=range(1, 13))
    for classes in (1, 3, 5, 11):
        lazy = [da.from_array(logits, chunks=(7, classes)) for logits in (reference, candidate)]
        found = xd.compare(*lazy, top_k=range(1, 13)).compute()
        for name in ("rows", "nan_rows", "same_top", "top_k", "reverse_top_k"):
            assert getattr(found, name) == getattr(expected, name), name
        for model in ("reference", "candidate"):
            assert getattr(found, model).nan_rows == getattr(expected, model).nan_rows


def test_chunks_that_differ_are_cut_where_either_is():
    reference, candidate, targets, *_ = problem()
    lazy = da.from_array(reference, chunks=((30, 30), (37,)))
    other = da.from_array(candidate, chunks=((20, 40), (30, 7)))
    close(
        xd.compare(lazy, other, targets).compute(), xent_rs.compare(reference, candidate, targets), rtol=1e-4
    )


@pytest.mark.parametrize("dtype", np.typecodes["AllInteger"])
def test_ignored_targets_of_any_integer_dtype(dtype):
    """Unsigned ones have no -1 for rows without a class."""
    reference, candidate, targets, sample_weight, weight, groups = problem()
    targets = np.where(targets == -100, 99, targets).astype(dtype)
    options = {"ignore_index": 99, "sample_weight": sample_weight, "weight": weight}
    lazy, other = (da.from_array(x, chunks=(17, 10)) for x in (reference, candidate))
    expected = xent_rs.evaluate(reference, targets, **options)
    assert expected.ignored > 5
    close(xd.evaluate(lazy, targets, **options).compute(), expected, rtol=1e-6)
    expected = xent_rs.compare(reference, candidate, targets, groups=groups, **options)
    found = xd.compare(lazy, other, targets, groups=groups, **options).compute()
    close(found, expected, rtol=2e-5, atol=1e-7)
    for reduction in ("none", "sum", "mean"):
        losses = xd.cross_entropy(lazy, targets, reduction=reduction, **options).compute()
        expected = xent_rs.cross_entropy(reference, targets, reduction=reduction, **options)
        np.testing.assert_allclose(losses, expected, rtol=1e-6)


def plain_divergences(first, second, temperature):
    """KL(p || q), KL(q || p) and Jensen-Shannon's of a row, in float64, as they are defined."""
    gaps = [(row - row.max()) / temperature for row in (first, second)]
    (a, p), (b, q) = ((gap - np.log(np.exp(gap).sum()), np.exp(gap) / np.exp(gap).sum()) for gap in gaps)
    middle = np.logaddexp(a, b) - np.log(2)
    return (p * (a - b)).sum(), (q * (b - a)).sum(), (p * (a - middle) + q * (b - middle)).sum() / 2


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("chunks", [(3, 5), (5, 3), (3, 2, 3), (1,) * 8], ids=str)
@pytest.mark.parametrize("mask", [-700, -800, -2000, -1e4, -1e9, -1e20, np.finfo(float).min])
def test_a_chunk_of_classes_masked_by_large_numbers(mask, chunks, temperature):
    """In one model, in the other, and in both: no such class has a probability of 0."""
    logits = 2 * np.random.default_rng(0).standard_normal((3, 8))
    for masked in ((), (0,), (1,), (0, 1)):
        for start, stop in ((5, 8), (0, 3), (0, 5)):
            pair = [logits, 1.3 * logits + 0.1]
            for number in masked:
                pair[number] = pair[number].copy()
                pair[number][:, start:stop] = mask
            lazy = [da.from_array(of, chunks=(2, chunks)) for of in pair]
            found = xd.compare(*lazy, temperature=temperature).compute(scheduler="synchronous")
            rows = [plain_divergences(*of_row, temperature) for of_row in zip(*pair, strict=True)]
            for name, values in zip(
                ("kl", "reverse_kl", "jensen_shannon"), zip(*rows, strict=True), strict=True
            ):
                value, context = getattr(found, name).value, f"{name}, {masked} {start}:{stop}"
                expected = np.sum(np.array(values) / 3)
                np.testing.assert_allclose(value, expected, rtol=1e-12, atol=1e-15, err_msg=context)


@pytest.mark.parametrize("gap", [500.0, 744.0, 746.0, 800.0, 2000.0, 1e300])
def test_divergences_beyond_the_smallest_number(gap):
    """Of two classes in two chunks: the second model gives one of them less than float64 can hold."""
    reference, candidate = np.array([[0.0, -1.0]]), np.array([[0.0, -gap]])
    for order in (slice(None), slice(None, None, -1)):
        lazy = [da.from_array(x[:, order], chunks=(1, 1)) for x in (reference, candidate)]
        found = xd.compare(*lazy).compute()
        expected = plain_divergences(reference[0], candidate[0], 1.0)
        for name, value in zip(("kl", "reverse_kl", "jensen_shannon"), expected, strict=True):
            assert getattr(found, name).value == pytest.approx(value, rel=1e-13), name
        # A class that is masked costs infinity, however small its probability is in the other model.
        excluded = da.from_array(np.array([[0.0, -np.inf]])[:, order], chunks=(1, 1))
        assert xd.compare(lazy[1], excluded).compute().kl.value == np.inf
        assert xd.compare(excluded, lazy[1]).compute().kl.value == pytest.approx(np.exp(-gap), abs=1e-300)


@pytest.mark.parametrize("weight", [None, [1e300, 0.0]])
def test_losses_whose_squares_are_infinite_have_no_error(weight):
    """And no warning, as where the classes are in one chunk."""
    logits, targets = np.array([[0.0, 1e200], [1e200, 0.0], [0.0, 0.0]]), [0, 1, 0]
    options = {} if weight is None else {"weight": weight}
    for chunks in ((2, 1), (2, 2)):
        lazy = da.from_array(logits, chunks=chunks)
        found, expected = xd.evaluate(lazy, targets, **options), xent_rs.evaluate(logits, targets, **options)
        assert same(found.compute(), expected)
        found = xd.compare(lazy, lazy, targets, **options).compute()
        assert same(found, xent_rs.compare(logits, logits, targets, **options))


def test_memory_of_blocks_whose_classes_lie_apart():
    """Some rows are taken at a time: of logits, of two models, and of probabilities as targets."""
    shape, tasks = (2, 4000, 500), xd._tasks
    logits, other = np.zeros(shape, np.float32), np.ones(shape, np.float32)
    targets = np.zeros((2, 500), np.int64)
    options = {"ignore_index": -100}
    task, soft = (tasks.Task(1, 8000, is_soft, options) for is_soft in (False, True))
    both = tasks.Task(1, 8000, False, {**options, "top_k": ()})
    offsets = [np.array([0]), np.array([0]), np.array([0])]
    later = [*offsets[:2], np.array([4000])]

    def first(number):
        return tasks.looked_at_both(logits, other, targets, *number, task=both)

    pairs = tasks.together([first(offsets), first(later)])
    calls = {
        "one model": lambda: tasks.looked_at(logits, targets, None, None, *offsets, task=task),
        "two models": lambda: tasks.compared_shard(logits, other, pairs, *later, task=both),
        # A truth value for each probability: whether it is one.
        "probabilities": lambda: tasks.looked_at(logits, other, None, None, *offsets, task=soft),
    }
    for name, call in calls.items():
        tracemalloc.start()
        try:
            call()
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        allowed = 8 << 20 if name != "probabilities" else (8 << 20) + 2 * logits.size
        assert peak < allowed, f"{name}: {peak / 2**20:.1f} MiB beside {logits.nbytes / 2**20:.1f}"


# Graphs: lazy, named by what they are of, small.


def never(block):
    raise AssertionError("computed")


def lazy_and_broken(shape, chunks):
    zeros = da.zeros(shape, chunks=chunks, dtype=np.float32)
    return zeros.map_blocks(never, dtype=np.float32, meta=np.empty((0, 0), np.float32))


@pytest.mark.parametrize("classes", [-1, 10])
def test_nothing_is_computed_before_it_is_asked_for(classes):
    logits = lazy_and_broken((30, 37), (10, classes))
    targets = np.zeros(30, int)
    calls = [
        lambda: xd.evaluate(logits, targets),
        lambda: xd.compare(logits, logits, targets),
        lambda: xd.cross_entropy(logits, targets),
        lambda: xd.cross_entropy(logits, targets, reduction="none"),
    ]
    for call in calls:
        result = call()
        with pytest.raises(AssertionError, match="computed"):
            result.compute(scheduler="synchronous")


NAMES = """
import dask.array as da, numpy as np, xent_rs.dask as xd
logits = da.from_array(np.arange(600, dtype=np.float32).reshape(20, 30), chunks=(7, {classes}))
targets, weight = np.arange(20), np.ones(30)
results = [
    xd.evaluate(logits, targets, weight=weight),
    xd.compare(logits, logits + 1, targets, groups=targets // 5),
    xd.cross_entropy(logits, targets, label_smoothing=0.1),
    xd.cross_entropy(logits, targets, reduction="none"),
]
print([sorted(map(str, dict(result.__dask_graph__()))) for result in results])
"""


@pytest.mark.parametrize("classes", [30, 8])
def test_names_depend_on_what_is_computed_alone(classes, python):
    source = NAMES.format(classes=classes)
    python(f"import dask; dask.config.set({{'tokenize.ensure-deterministic': True}})\n{source}")
    assert python(source).stdout == python(source, PYTHONHASHSEED="7").stdout
    logits, targets = da.zeros((20, 30), chunks=(7, classes)), np.arange(20)
    names = {
        xd.cross_entropy(logits, labels, **options).name
        for labels in (targets, targets[::-1])
        for options in (
            {},
            {"temperature": 2.0},
            {"ignore_index": 1},
            {"weight": np.arange(30)},
            {"softcap": 2},
        )
    }
    assert len(names) == 10


def test_tokens_of_states_and_of_stored_arrays(tmp_path):
    def token(value):
        return tokenize(value, ensure_deterministic=True)

    logits, targets = np.eye(4, dtype=np.float32), np.arange(4)
    for kind in (xent_rs.Evaluator, xent_rs.Comparer):
        batch = (logits, targets) if kind is xent_rs.Evaluator else (logits, logits, targets)
        first, second, third = kind(), kind(), kind(temperature=2.0)
        assert token(first) == token(second) != token(third)
        before = token(first)
        first.update(*batch)
        assert token(first) != before
        second.update(*batch)
        assert token(first) == token(second) == token(pickle.loads(pickle.dumps(first)))
    file = tmp_path / "logits.npy"
    np.save(file, logits)
    stored = io.open_array(file)
    before = token(stored)
    assert token(io.open_array(file)) == before
    np.save(file, 2 * logits)
    os.utime(file, ns=(1, 1))
    assert token(io.open_array(file)) != before
    np.save(tmp_path / "other.npy", logits)
    assert token(io.open_array(tmp_path / "other.npy")) != before


def test_merging_leaves_states_as_they_are():
    """Dask may hand them to another task, or again to the same."""
    first, second = xent_rs.Evaluator(), xent_rs.Evaluator()
    for evaluator in (first, second):
        evaluator.update(np.eye(3), [0, 1, 1])
    before = tokenize(first)
    merged = xd._tasks.merged([first, [second]], (0,), True)
    assert merged.result().rows == 6
    assert tokenize(first) == before


def test_what_goes_between_tasks_is_small():
    """Of 2,000 rows of 1,000 classes in two chunks: 4 MB, whose states take less than 2 % of that."""
    logits, targets = da.zeros((2000, 1000), chunks=(2000, 500), dtype=np.float32), np.zeros(2000, int)
    sizes = []

    class Sizes(dask.callbacks.Callback):
        def _posttask(self, key, result, *_):
            if "xent_rs" in str(key):
                sizes.append(len(pickle.dumps(result)))

    with Sizes():
        xd.evaluate(logits, targets, top_k=()).compute(scheduler="synchronous")
    assert len(sizes) >= 3
    assert max(sizes) < 160_000


PEAK = """
import resource, dask, dask.array as da, numpy as np, xent_rs.dask as xd
dask.config.set(scheduler="synchronous")
def block(value, block_info=None):
    return np.full(block_info[None]["chunk-shape"], value, np.float32)
def logits(rows, classes, value=1.0):
    chunks, meta = ((128,) * rows, classes), np.empty((0, 0), np.float32)
    return da.map_blocks(block, value, chunks=chunks, dtype=np.float32, meta=meta)
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
targets = np.zeros(128 * 12, int)
xd.{call}(logits(1, (64, 64)), {small}targets[:128]).compute()
before = peak()
xd.{call}(logits(12, (65536,) * {chunks}), {large}targets).compute()
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of a process is known on Linux")
@pytest.mark.parametrize(
    ("call", "chunks"), [("evaluate", 1), ("evaluate", 3), ("cross_entropy", 3), ("compare", 2)]
)
def test_memory_of_a_task(call, chunks, python):
    """Blocks of 32 MiB, one at a time; of two models, between the rounds, those of some rows."""
    small, large = (
        ("logits(1, (64, 64), 2), ", f"logits(12, (65536,) * {chunks}, 2), ")
        if call == "compare"
        else ("", "")
    )
    finished = python(PEAK.format(call=call, chunks=chunks, small=small, large=large))
    blocks = int(finished.stdout) / 2**25
    assert blocks < (5 if call == "compare" else 2), f"{blocks:.2f} blocks"


def test_dasks_other_engine(python):
    """With query planning arrays are expressions."""
    source = """
        import dask.array as da, numpy as np, xent_rs, xent_rs.dask as xd
        from tests.frameworks.test_dask import close, problem, same
        assert da.array_expr_enabled()
        reference, candidate, targets, sample_weight, weight, groups = problem()
        options = {"sample_weight": sample_weight, "weight": weight}
        evaluation = xent_rs.evaluate(reference, targets, **options)
        comparison = xent_rs.compare(reference, candidate, targets, groups=groups, **options)
        losses = xent_rs.cross_entropy(reference, targets, reduction="none", **options)
        for classes in (37, 10):
            lazy = da.from_array(reference, chunks=(17, classes))
            other = da.from_array(candidate, chunks=(20, classes))
            found = xd.evaluate(lazy, targets, split_every=2, **options).compute()
            both = xd.compare(lazy, other, targets, groups=groups, **options).compute()
            rows = xd.cross_entropy(lazy, targets, reduction="none", **options).compute()
            mean = xd.cross_entropy(lazy, targets, **options).compute()
            assert abs(mean - evaluation.loss) < 1e-6
            if classes == 37:
                assert same(found, evaluation) and same(both, comparison) and (rows == losses).all()
            close(found, evaluation, rtol=1e-6)
            close(both, comparison, rtol=2e-5, atol=1e-7)
            np.testing.assert_allclose(rows, losses, rtol=1e-6)
    """
    if not hasattr(da, "array_expr_enabled"):
        pytest.skip("this Dask has one engine")
    root = Path(__file__).parent.parent.parent
    path = os.pathsep.join([str(root), *sys.path])
    python(textwrap.dedent(source), DASK_ARRAY__QUERY_PLANNING="True", PYTHONPATH=path)


# Errors.

LAZY = da.zeros((4, 10), chunks=(2, 10), dtype=np.float32)
TARGETS = np.arange(4)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (
            lambda: xd.evaluate(np.zeros((4, 10)), TARGETS),
            TypeError,
            "logits: found ndarray; expected a Dask array (dask.array.from_array)",
        ),
        (
            lambda: xd.compare(LAZY, np.zeros((4, 10)), TARGETS),
            TypeError,
            "candidate: found ndarray; expected a Dask array (dask.array.from_array)",
        ),
        (
            lambda: xd.evaluate(LAZY[da.ones(4, chunks=2) > 0], TARGETS),
            ValueError,
            "logits have chunks of unknown lengths; expected known ones (logits.compute_chunk_sizes())",
        ),
        (
            lambda: xd.evaluate(LAZY, TARGETS[:3]),
            ValueError,
            "targets have shape (3,); expected (4,), the shape of logits (4, 10) without axis -1",
        ),
        (
            lambda: xd.compare(LAZY, LAZY, TARGETS[:3]),
            ValueError,
            "targets have shape (3,); expected (4,), the shape of reference (4, 10) without axis -1",
        ),
        (
            lambda: xd.compare(LAZY, LAZY[:3]),
            ValueError,
            "candidate has shape (3, 10); expected (4, 10), the shape of reference",
        ),
        (
            lambda: xd.cross_entropy(LAZY, np.zeros((4, 9))),
            ValueError,
            "targets have shape (4, 9); expected (4, 10), the shape of logits, for probabilities",
        ),
        (
            lambda: xd.evaluate(LAZY, TARGETS, sample_weight=[1, 2]),
            ValueError,
            "sample_weight has shape (2,); expected (4,), one number a row",
        ),
        (
            lambda: xd.evaluate(LAZY, TARGETS, weight=da.ones(9)),
            ValueError,
            "weight has shape (9,); expected (10,), one number a class",
        ),
        (
            lambda: xd.compare(LAZY, LAZY, groups=[1, 2]),
            ValueError,
            "groups have shape (2,); expected (4,), one group a row",
        ),
        (
            lambda: xd.compare(LAZY, LAZY, weight=np.ones(10)),
            ValueError,
            "weight is given without targets; expected targets, whose classes it weights",
        ),
        (
            lambda: xd.evaluate(LAZY, TARGETS, axis=2),
            ValueError,
            "axis is 2; expected -2 to 1 for logits of shape (4, 10)",
        ),
        (
            lambda: xd.evaluate(LAZY[0, 0], TARGETS),
            ValueError,
            "logits have shape (); expected at least one axis, the classes",
        ),
        (
            lambda: xd.evaluate(LAZY[:, :0], TARGETS),
            ValueError,
            "logits have shape (4, 0); expected at least one class along axis -1",
        ),
        (
            lambda: xd.evaluate(LAZY.astype(int), TARGETS),
            TypeError,
            "logits have dtype int64; expected float16, bfloat16, float32 or float64",
        ),
        (
            lambda: xd.evaluate(LAZY, TARGETS, split_every=1),
            ValueError,
            "split_every is 1; expected at least 2",
        ),
        (
            lambda: xd.evaluate(LAZY, TARGETS, top_k=(0,)),
            ValueError,
            "top_k contains 0; expected positive integers",
        ),
        (
            lambda: xd.cross_entropy(LAZY, TARGETS, temperature=-1),
            ValueError,
            "temperature is -1.0; expected a positive finite number",
        ),
        (
            lambda: xd.cross_entropy(LAZY, TARGETS, reduction="none", denominator=3),
            ValueError,
            "denominator is given with reduction 'none'; expected reduction 'mean'",
        ),
        (
            lambda: xd.cross_entropy(LAZY, TARGETS, lable_smoothing=0.1),
            TypeError,
            "cross_entropy() got an unexpected keyword argument 'lable_smoothing'. "
            "Did you mean 'label_smoothing'?",
        ),
    ],
)
def test_what_is_wrong_is_said_before_any_work(call, error, text):
    with pytest.raises(error, match=f"^{re.escape(text)}"):
        call()


@pytest.mark.parametrize("classes", [-1, 4])
def test_errors_name_the_row_of_the_whole_array(classes):
    logits = da.zeros((3, 40, 10), chunks=(2, 7, classes), dtype=np.float32)
    targets = np.zeros((3, 40), int)
    targets[2, 33] = 10
    text = r"^targets\[2, 33\] is 10; expected 0 to 9, or ignore_index -100$"
    for call in (
        lambda: xd.evaluate(logits, targets),
        lambda: xd.compare(logits, logits, targets),
        lambda: xd.cross_entropy(logits, da.from_array(targets, chunks=5)),
        lambda: xd.cross_entropy(logits, targets, reduction="none"),
    ):
        with pytest.raises(IndexError, match=text):
            call().compute()
    probabilities = np.zeros((3, 40, 10))
    probabilities[2, 33, 8] = -0.5
    for reduction in ("mean", "none"):
        with pytest.raises(
            ValueError, match=r"^targets\[2, 33, 8\] is -0.5; expected a probability, at least 0$"
        ):
            xd.cross_entropy(logits, probabilities, reduction=reduction).compute()
    weights = np.ones((3, 40))
    weights[2, 33] = 0
    assert float(xd.cross_entropy(logits, probabilities, sample_weight=weights)) == 0


# Threads and processes.


def test_tasks_share_the_threads_of_a_process():
    """Callers and helpers together are as many threads as were asked for."""
    xent_rs.set_num_threads(2)
    logits = da.zeros((4096, 2000), chunks=(512, -1), dtype=np.float32)
    most, done = [0], threading.Event()

    def watch():
        while not done.is_set():
            most[0] = max(most[0], sum(1 for _ in Path("/proc/self/task").iterdir()))
            time.sleep(0.001)

    if not Path("/proc/self/task").exists():
        pytest.skip("the threads of a process are known on Linux")
    xent_rs.evaluate(np.zeros((4096, 2000), np.float32), np.zeros(4096, int))
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        before = sum(1 for _ in Path("/proc/self/task").iterdir())
        xd.evaluate(logits, np.zeros(4096, int)).compute(scheduler="threads", num_workers=4)
    finally:
        done.set()
        watcher.join()
    assert most[0] <= before + 4 + 1, "Dask's own threads and no others"


def threads_of_a_block(block):
    """Outside of a task, in it, within one in that, and then."""
    before = xent_rs.get_num_threads()
    with xd._tasks.one_thread_in_a_pool():
        during = xent_rs.get_num_threads()
        with xd._tasks.one_thread_in_a_pool():
            within = xent_rs.get_num_threads()
        after = xent_rs.get_num_threads()
    return np.array([[before, during, within, after, xent_rs.get_num_threads()]])


def test_processes_of_a_pool_take_one_thread_each(monkeypatch):
    for variable in ("XENT_RS_NUM_THREADS", "OMP_NUM_THREADS"):
        monkeypatch.delenv(variable, raising=False)
    reference, candidate, targets, *_ = problem()
    lazy, other = (da.from_array(x, chunks=(20, -1)) for x in (reference, candidate))
    with dask.config.set(scheduler="processes", num_workers=2):
        assert same(xd.evaluate(lazy, targets).compute(), xent_rs.evaluate(reference, targets))
        found = xd.compare(lazy, other, targets).compute()
        assert same(found, xent_rs.compare(reference, candidate, targets))
        meta = {"dtype": int, "meta": np.empty((0, 0), int), "chunks": (1, 5)}
        threads = da.zeros((6, 1), chunks=(1, 1)).map_blocks(threads_of_a_block, **meta)
        cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        assert threads.compute().tolist() == [[cpus, 1, 1, 1, cpus]] * 6


def numbers_of_threads(connection):
    """In a child that is no process of a pool: during a task and after an evaluation."""
    logits, found = da.zeros((8, 10), chunks=(2, 10)), []

    def record(block):
        with xd._tasks.one_thread_in_a_pool():
            found.append(xent_rs.get_num_threads())
        return block

    before = xent_rs.get_num_threads()
    for chosen in (None, 3):
        if chosen:
            xent_rs.set_num_threads(chosen)
        for scheduler in ("threads", "synchronous"):
            found.clear()
            with dask.config.set(scheduler=scheduler):
                logits.map_blocks(record, meta=logits._meta).compute()
                xd.evaluate(logits, np.zeros(8, int)).compute()
            connection.send((chosen or before, scheduler, sorted(set(found)), xent_rs.get_num_threads()))


def test_other_children_keep_their_threads(monkeypatch):
    """Tasks of several threads share those of the process, and whoever has chosen a number has it."""
    for variable in ("XENT_RS_NUM_THREADS", "OMP_NUM_THREADS"):
        monkeypatch.delenv(variable, raising=False)
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=numbers_of_threads, args=(there,))
    process.start()
    try:
        for scheduler in ("threads", "synchronous"):
            number, of, during, after = here.recv()
            assert (of, after) == (scheduler, number)
            assert during == [number if scheduler == "threads" else 1]
        for scheduler in ("threads", "synchronous"):
            assert here.recv() == (3, scheduler, [3], 3)
    finally:
        process.join()


@pytest.fixture(scope="module")
def client():
    distributed = pytest.importorskip("distributed", reason="Dask's distributed is not installed")
    with (
        dask.config.set({"distributed.comm.timeouts.connect": "60s"}),
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0"
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


def one_worker_dies(block, file, block_info=None):
    """Kill the process that computes one of the blocks, once."""
    if block_info[0]["chunk-location"][0] == 2:
        try:
            Path(file).touch(exist_ok=False)
        except FileExistsError:
            return block
        os._exit(1)
    return block


pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")


@pytest.mark.parametrize("classes", [-1, 10])
def test_a_cluster_of_which_a_worker_dies(client, classes, tmp_path):
    reference, candidate, targets, sample_weight, weight, groups = problem(bfloat16)
    options = {"sample_weight": sample_weight, "weight": weight}
    for number in range(2):
        lazy, other = (da.from_array(x, chunks=(13, classes)) for x in (reference, candidate))
        kwargs = {"file": str(tmp_path / f"{number}"), "dtype": lazy.dtype, "meta": lazy._meta}
        fragile = lazy.map_blocks(one_worker_dies, **kwargs)
        if number:
            result = xd.compare(fragile, other, targets, groups=groups, **options)
            expected = xd.compare(lazy, other, targets, groups=groups, **options)
            local = xent_rs.compare(reference, candidate, targets, groups=groups, **options)
        else:
            result = xd.evaluate(fragile, targets, **options)
            expected = xd.evaluate(lazy, targets, **options)
            local = xent_rs.evaluate(reference, targets, **options)
        found = result.compute()
        assert (tmp_path / f"{number}").exists()
        assert same(found, expected.compute(scheduler="synchronous"))
        if classes == -1:
            assert same(found, local)


def test_workers_read_files_themselves(client, tmp_path):
    """What is sent is where the array is: a graph of 16 MB of logits has less than 100 kB."""
    random = np.random.default_rng(0)
    logits = (3 * random.standard_normal((4000, 1000))).astype(np.float32)
    targets = random.integers(1000, size=4000)
    for number in range(4):
        np.save(tmp_path / f"logits-{number}.npy", logits[number * 1000 : (number + 1) * 1000])
    stored = io.open_array(tmp_path / "logits-*.npy")
    assert da.from_array(stored).chunks == ((4000,), (1000,))  # what Dask takes for 16 MB
    lazy = da.from_array(stored, chunks=stored.chunks)
    assert lazy.chunks[0] == (1000,) * 4
    result = xd.evaluate(lazy, targets)
    assert len(pickle.dumps(dict(lazy.__dask_graph__()))) < 100_000
    assert same(result.compute(), xent_rs.evaluate(logits, targets))
    both = xd.evaluate(da.from_array(stored, chunks=(500, 300)), targets).compute()
    close(both, xent_rs.evaluate(logits, targets), rtol=1e-6)


def test_stored_bfloat16_keeps_its_dtype(client, tmp_path):
    logits = (3 * np.random.default_rng(0).standard_normal((40, 30))).astype(bfloat16)
    np.save(tmp_path / "logits.npy", logits.view("V2"))
    stored = io.open_array(tmp_path / "logits.npy", dtype="bfloat16")
    for chunks in ((10, 30), (10, 7)):
        lazy = da.from_array(stored, chunks=chunks)
        assert lazy.dtype == bfloat16
        losses = xd.cross_entropy(lazy, np.zeros(40, int), reduction="none").compute()
        expected = xent_rs.cross_entropy(logits, np.zeros(40, int), reduction="none")
        np.testing.assert_allclose(losses, expected, rtol=1e-6)


def test_help_has_the_options_and_types_can_be_resolved():
    for function in (xd.evaluate, xd.compare, xd.cross_entropy):
        local = getattr(xent_rs, function.__name__)
        # Hidden states are multiplied by Dask.
        names = [name for name in inspect.signature(local).parameters if not name.startswith("linear_")]
        names.append("split_every")
        assert list(inspect.signature(function).parameters) == names
        assert all(f"{name} : " in function.__doc__ or f"{name}, " in function.__doc__ for name in names)
        assert typing.get_type_hints(function)["return"] in (da.Array, Delayed)


def test_missing_parts_are_said_in_a_sentence(python):
    text = python(
        "import sys; sys.modules['dask'] = None\n"
        "try: import xent_rs.dask\nexcept ImportError as error: print(error)"
    ).stdout
    assert text.endswith("pip install xent_rs[dask]\n")
    assert subprocess.run([sys.executable, "-c", "import xent_rs.dask"], check=False).returncode == 0
