"""`selective_log_softmax` and `row_statistics`: figures of each row, and nothing of the logits' size."""

import math
import re
from functools import partial
from xml.etree import ElementTree

import numpy as np
import pytest
import xent_rs

from .bounds import assert_within, entropy_bound, log_probability_bound, logsumexp_bound, probability_bound
from .cases import DTYPES
from .combinations import (
    INTEGERS,
    LAYOUTS,
    SHAPES,
    assert_levels_agree,
    assert_threads_agree,
    enlarged,
    fused,
    logits_of,
    pairwise,
)
from .oracle import Softmax, ranks

dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)
INF, NAN = math.inf, math.nan
FACTORS = {
    "dtype": DTYPES,
    "classes": [1, 2, 3, 10, 64, 65, 300, 1000],
    "shape": SHAPES,
    "layout": LAYOUTS,
    "values": ["normal", "wide", "offset", "masked", "poisoned", "ties"],
    "target": [None, *INTEGERS],
    "target_layout": [*LAYOUTS, "list"],
    "ignore_index": [None, "a number", "a class"],
    "softcap": [None, 30.0, 2.0],
    "temperature": [1.0, 0.3, 2.5],
    "chosen": [0, 1, 2, 17, 40],
}
COVER = [*pairwise(FACTORS, 0), *pairwise(FACTORS, 1)]


def logits_and_random(case, number, rows=None):
    """(logits of rows and classes, the same as the caller has them, row shape, axis, generator)."""
    random = np.random.default_rng(number)
    lead, axis = SHAPES[case["shape"]]
    lead = (rows,) if rows else lead
    shape = (int(np.prod(lead)), case["classes"])
    logits = logits_of(case["values"], shape, case["dtype"], random)
    if case["values"] == "ties":
        logits = np.round(logits.astype(float)).astype(case["dtype"])
    turned = np.ascontiguousarray(np.moveaxis(logits.reshape(*lead, shape[1]), -1, axis))
    return logits, LAYOUTS[case["layout"]](turned), lead, axis, random


def as_given(array, case):
    if case["target_layout"] == "list":
        return array.tolist()
    return LAYOUTS[case["target_layout"]](array) if array.ndim else array


@pytest.mark.parametrize("number", range(len(COVER)))
def test_row_statistics(level, number):
    case = COVER[number]
    logits, given, lead, axis, random = logits_and_random(case, number)
    dtype, about = case["dtype"], f"of {case}"
    softmax = Softmax(logits, case["temperature"], case["softcap"])
    options = {name: case[name] for name in ("softcap", "temperature")}
    targets = ignored = None
    if case["target"] is not None:
        index = {None: -100, "a number": 255 if case["target"].kind == "u" else -100, "a class": 0}
        options["ignore_index"] = index[case["ignore_index"]]
        targets = random.integers(0, min(case["classes"], 120), len(logits)).astype(case["target"])
        if case["ignore_index"]:
            targets[random.random(len(targets)) < 0.2] = options["ignore_index"]
        ignored = targets == options["ignore_index"]
        options["targets"] = as_given(targets.reshape(lead), case)
    found = xent_rs.row_statistics(given, **options, axis=axis)
    assert type(found) is xent_rs.RowStatistics
    wide = np.dtype(np.float64 if dtype == np.float64 else np.float32)

    def check(name, expected, bound):
        values = np.asarray(getattr(found, name))
        assert (values.shape, values.dtype) == (lead, wide), name
        label = name.replace("_", " ") + (", softcap" if case["softcap"] else "")
        assert_within(label, values.reshape(-1), expected, bound, dtype, about)

    def check_integers(name, expected):
        values = np.asarray(getattr(found, name))
        assert (values.shape, values.dtype) == (lead, np.int64), name
        np.testing.assert_array_equal(values.reshape(-1), expected, err_msg=f"{name} {about}")

    spoilt = ~(logits.astype(float) < np.inf).all(axis=1)
    nothing = np.isnan(softmax.log_sum)
    at = softmax.rows, softmax.top
    check("logsumexp", softmax.logsumexp, logsumexp_bound(softmax, dtype))
    check(
        "max_probability",
        np.where(nothing, NAN, softmax.probabilities[at]),
        probability_bound(softmax, dtype)[at],
    )
    check("entropy", np.where(nothing, NAN, softmax.entropies), entropy_bound(softmax, dtype))
    check_integers("argmax", softmax.top)
    if targets is None:
        assert found.target_log_probability is None
        assert found.target_rank is None
        return
    at = softmax.rows, np.where(ignored, 0, targets)
    expected, bound = softmax.log_probabilities[at], log_probability_bound(softmax, dtype)[at]
    check("target_log_probability", np.where(ignored, 0, expected), bound)
    places = ranks(logits.astype(softmax.dtype), at[1])
    check_integers("target_rank", np.where(ignored | spoilt | nothing, -1, places))
    losses = xent_rs.cross_entropy(given, **options, axis=axis, reduction="none")
    lost = np.asarray(found.target_log_probability)
    np.testing.assert_allclose(
        -lost, losses, rtol=2e-6 if wide == np.float32 else 1e-14, atol=1e-6 * (wide == np.float32)
    )


@pytest.mark.parametrize("number", range(len(COVER)))
def test_selective_log_softmax(level, number):
    case = COVER[number]
    logits, given, lead, axis, random = logits_and_random(case, number)
    softmax = Softmax(logits, case["temperature"])
    shape = (len(logits), case["chosen"])
    index = random.integers(0, min(case["classes"], 120), shape).astype(case["target"] or np.int64)
    shaped = index.reshape(*lead, case["chosen"])
    shaped = as_given(shaped, case) if index.size else shaped  # An empty list has no integer dtype.
    found = xent_rs.selective_log_softmax(given, shaped, axis=axis, temperature=case["temperature"])
    assert type(found) is np.ndarray
    assert found.shape == (*lead, case["chosen"])
    assert found.dtype == (np.float64 if case["dtype"] == np.float64 else np.float32)
    at = softmax.rows[:, None], index
    expected, bound = softmax.log_probabilities[at], log_probability_bound(softmax, case["dtype"])[at]
    assert_within("selective", found.reshape(shape), expected, bound, case["dtype"], f"of {case}")


def everything(case, number, rows=None):
    _, given, lead, axis, random = logits_and_random(case, number, rows)
    targets = random.integers(0, case["classes"], lead)
    index = random.integers(0, case["classes"], (*lead, 3))
    temperature = {"temperature": case["temperature"], "axis": axis}
    found = xent_rs.row_statistics(given, targets, softcap=case["softcap"], **temperature)
    return [*found, xent_rs.selective_log_softmax(given, index, **temperature)]


@fused
def test_fused_levels_agree_to_the_bit():
    for number, case in enumerate(COVER):
        assert_levels_agree(partial(everything, case, number), case)


@pytest.mark.parametrize("number", range(0, len(COVER), 16))
def test_threads_change_no_bit(level, number):
    case, rows = enlarged(COVER[number])
    assert_threads_agree(partial(everything, case, number, rows), case)


# --- Rows that are something special ---

# A row, its target: logsumexp, argmax, max_probability, entropy, target_log_probability, target_rank.
ROWS = {
    "ties: the first is the larger": (
        [2, 2, 2, 2],
        2,
        (2 + math.log(4), 0, 0.25, math.log(4), -math.log(4), 2),
    ),
    "the first of two": ([0, 90, 90], 1, (90 + math.log(2), 1, 0.5, math.log(2), -math.log(2), 0)),
    "the second of two": ([0, 90, 90], 2, (90 + math.log(2), 1, 0.5, math.log(2), -math.log(2), 1)),
    "zeros of both signs": ([-0.0, 0.0], 1, (math.log(2), 0, 0.5, math.log(2), -math.log(2), 1)),
    "certain": ([17, 0], 0, (17.0, 0, 1.0, None, -math.log1p(math.exp(-17)), 0)),
    "one class": ([5], 0, (5.0, 0, 1.0, 0.0, 0.0, 0)),
    "one class left": ([-INF, 3, -INF], 1, (3.0, 1, 1.0, 0.0, 0.0, 0)),
    "a masked target": ([-INF, 3, -INF], 2, (3.0, 1, 1.0, 0.0, -INF, 2)),
    "a NaN": ([1, NAN, 2, NAN], 0, (NAN, 1, NAN, NAN, NAN, -1)),
    "a NaN at the target": ([1, NAN, 2], 1, (NAN, 1, NAN, NAN, NAN, -1)),
    "+inf": ([0, 1, INF], 1, (INF, 2, NAN, NAN, NAN, -1)),
    "only -inf": ([-INF, -INF, -INF], 1, (-INF, 0, NAN, NAN, NAN, -1)),
    "ignored": ([1, 2, 4], -100, (None, 2, None, None, 0.0, -1)),
    "ignored, not a number": ([1, NAN, 4], -100, (NAN, 1, NAN, NAN, 0.0, -1)),
}


@pytest.mark.parametrize(("row", "target", "expected"), ROWS.values(), ids=ROWS)
@pytest.mark.parametrize("softcap", [None, 1e7])
@dtypes
def test_special_row(level, dtype, row, target, expected, softcap):
    """With neighbours that are nothing special, and alone."""
    plain = np.arange(len(row))
    logits = np.array([plain, row, plain], dtype)
    together = xent_rs.row_statistics(logits, [0, target, 0], softcap=softcap)
    alone = xent_rs.row_statistics(np.array(row, dtype), target, softcap=softcap)
    for name, value, one, many in zip(together._fields, expected, alone, together, strict=True):
        assert np.shape(one) == ()
        assert not np.isnan(many[[0, 2]]).any(), name
        for found in (one, many[1]):
            if value is not None:
                np.testing.assert_allclose(found, value, rtol=2e-6, atol=0, err_msg=name)


def test_a_tuple_with_names():
    found = xent_rs.row_statistics(np.zeros((2, 3), np.float32), [1, 2])
    names = ("logsumexp", "argmax", "max_probability", "entropy", "target_log_probability", "target_rank")
    assert found._fields == names
    assert isinstance(found, tuple)


@dtypes
def test_places_are_those_of_a_stable_sort(level, dtype, random):
    """Every place is taken once, ties and masked classes and all."""
    row = random.integers(-2, 3, 100).astype(dtype)
    row[::9] = -INF
    logits = np.tile(row, (100, 1))
    for axis in (0, 1):
        turned = logits if axis else np.ascontiguousarray(logits.T)
        found = xent_rs.row_statistics(turned, np.arange(100), axis=axis).target_rank
        np.testing.assert_array_equal(np.argsort(found), np.argsort(-row.astype(float), kind="stable"))


@pytest.mark.parametrize("axis", [0, 1])
@dtypes
def test_argmax_in_every_position(level, dtype, axis):
    """The first of the largest, in every lane and tail, also where a softcap makes them all but equal."""
    for classes in (1, 2, 3, 15, 16, 17, 33, 64, 65, 100, 129):
        logits = np.zeros((classes, classes), dtype)
        logits[np.arange(classes), np.arange(classes)] = 9
        again = logits.copy()
        again[:, -1] = 9
        for array in (logits, again):
            turned = array if axis else np.ascontiguousarray(array.T)
            for softcap in (None, 1.5):
                found = xent_rs.row_statistics(turned, axis=axis, softcap=softcap).argmax
                np.testing.assert_array_equal(found, array.argmax(axis=1))


@pytest.mark.parametrize("shape", [(0, 5), (3, 0, 5), (0, 0, 5)])
@dtypes
def test_no_rows(dtype, shape):
    for field in xent_rs.row_statistics(np.zeros(shape, dtype), np.zeros(shape[:-1], int)):
        assert field.shape == shape[:-1]
    found = xent_rs.selective_log_softmax(np.zeros(shape, dtype), np.zeros((*shape[:-1], 4), int))
    assert found.shape == (*shape[:-1], 4)


@dtypes
def test_selected_of_special_rows(level, dtype):
    rows = np.array([[17, 0, -INF], [NAN, 0, 1], [0, INF, 1], [-INF] * 3, [-INF, 2, -INF]], dtype)
    found = xent_rs.selective_log_softmax(rows, np.tile([0, 1, 2, 0], (5, 1)))
    leads = -math.log1p(math.exp(-17))
    expected = [[leads, leads - 17, -INF, leads], [NAN] * 4, [NAN] * 4, [NAN] * 4, [-INF, 0, -INF, -INF]]
    np.testing.assert_allclose(found, expected, rtol=2e-6)


def test_selected_with_every_class_is_log_softmax(random):
    logits = random.standard_normal((4, 3, 30)).astype(np.float32)
    index = np.broadcast_to(np.arange(30, dtype=np.uint8), logits.shape)
    np.testing.assert_allclose(
        xent_rs.selective_log_softmax(logits, index), xent_rs.log_softmax(logits), rtol=1e-6
    )
    first = xent_rs.selective_log_softmax(np.moveaxis(logits, -1, 0).copy(), index, axis=0)
    np.testing.assert_allclose(first, xent_rs.log_softmax(logits), rtol=1e-6)


def test_statistics_are_a_table_for_people_and_constructive_for_programs():
    names = {"array": np.array, "RowStatistics": xent_rs.RowStatistics, "float32": np.float32, "nan": NAN}
    logits = np.log(np.array([[[0.5, 0.25, 0.25], [0.125, 0.75, 0.125]]], np.float32))
    found = xent_rs.row_statistics(logits, [[2, 1]])
    assert [line.split("  ") for line in re.sub("  +", "  ", str(found)).splitlines()] == [
        ["row", *found._fields],
        ["0, 0", f"{found.logsumexp[0, 0]:.6g}", "0", "0.5", "1.03972", "-1.38629", "2"],
        ["0, 1", f"{found.logsumexp[0, 1]:.6g}", "1", "0.75", "0.735622", "-0.287682", "0"],
    ]
    html = ElementTree.fromstring(found._repr_html_())
    assert [[cell.text for cell in row] for row in html.iter("tr")] == [
        line.split("  ") for line in re.sub("  +", "  ", str(found)).splitlines()
    ]
    again = eval(repr(found), names)
    assert all(np.array_equal(a, b) for a, b in zip(again, found, strict=True))


@pytest.mark.parametrize(
    ("shape", "shown"),
    [
        ((3,), [""]),
        ((0, 3), []),
        ((10, 3), [*map(str, range(10))]),
        ((11, 3), ["0", "1", "2", "3", "4", "...", "6", "7", "8", "9", "10"]),
        ((4, 5, 3), ["0, 0", "0, 1", "0, 2", "0, 3", "0, 4", "...", *(f"3, {i}" for i in range(5))]),
    ],
)
def test_the_table_of_statistics_has_the_first_rows_and_the_last(shape, shown):
    heading, *lines = xent_rs.row_statistics(np.zeros(shape, np.float32))._table()
    assert heading == ["row", "logsumexp", "argmax", "max_probability", "entropy"]
    assert [line[0] for line in lines] == shown
    assert {len(line) for line in lines} <= {5}


def test_the_table_of_statistics_has_whole_classes():
    logits = np.zeros((1, 1_234_568), np.float32)
    logits[0, -1] = 1
    assert "  1234567  " in str(xent_rs.row_statistics(logits))
