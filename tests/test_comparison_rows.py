"""The compiled figures of each row behind `compare`, on every instruction set, against the oracle."""

import itertools
import math

import ml_dtypes
import numpy as np
import pytest
import xent_rs
from xent_rs import _xent_rs
from xent_rs._comparer import _COMPARE

from . import comparison_oracle

DTYPES = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64]
PAIRS = [*itertools.product(DTYPES, DTYPES)]
CLASSES = [1, 2, 3, 7, 16, 33, 127, 128, 300, 1000]
NAMES = ("counts", "kl", "reverse_kl", "js")
OF_MODEL = ("loss", "entropy", "max_probability", "hit", "rank")


def named(found):
    """The figures by name."""
    _, *common, reference, candidate = found
    figures = dict(zip(NAMES, common, strict=True))
    for model, values in (("reference", reference), ("candidate", candidate)):
        figures |= {f"{model}.{name}": value for name, value in zip(OF_MODEL, values, strict=True)}
    return {name: np.array(values) for name, values in figures.items()}


def ours(reference, candidate, targets=None, **options):
    return named(_xent_rs.compare_rows(reference, candidate, targets, _COMPARE, options))


def expected(reference, candidate, targets=None, **options):
    return named(comparison_oracle.compare_rows(reference, candidate, targets, _COMPARE, options))


def assert_close(found, wanted, classes, exact):
    """To the digits that float32 logits have, or those of float64."""
    unit = 2.0**-52 if exact else 2.0**-23
    for name, values in wanted.items():
        if values.dtype == bool or name.endswith("rank"):
            assert np.array_equal(found[name], values), name
            continue
        assert found[name].dtype == np.float64
        where = np.isfinite(values)
        assert np.array_equal(found[name][~where], values[~where], equal_nan=True), name
        # Of a divergence d is off by units of the logits' size, and by its square at most.
        rel, abs_ = (64 * unit, 64 * unit * (1 + math.log(classes)))
        if name in ("kl", "reverse_kl", "js"):
            scale = np.sqrt(values[where])
            assert (found[name][where] >= 0).all(), name
            assert (
                np.abs(found[name][where] - values[where]) <= abs_ * (scale + values[where] + abs_)
            ).all(), name
        else:
            np.testing.assert_allclose(found[name][where], values[where], rtol=rel, atol=abs_, err_msg=name)


def problem(classes, first, second, rows=19, spread=0.2):
    random = np.random.default_rng(classes)
    reference = (3 * random.standard_normal((rows, classes))).astype(first)
    candidate = (reference.astype(np.float64) + spread * random.standard_normal((rows, classes))).astype(
        second
    )
    targets = random.integers(classes, size=rows)
    targets[rows // 2] = -100
    return reference, candidate, targets


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: "-".join(np.dtype(dtype).name for dtype in pair))
@pytest.mark.parametrize("classes", CLASSES)
def test_figures_of_rows(level, classes, pair):
    reference, candidate, targets = problem(classes, *pair)
    for options in ({}, {"temperature": 0.7}, {"softcap": 5.0, "temperature": 2.0}):
        found = ours(reference, candidate, targets, **options)
        exact = pair == (np.float64, np.float64)
        assert_close(found, expected(reference, candidate, targets, **options), classes, exact)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("classes", [7, 300])
def test_rows_that_are_not_like_others(level, classes, dtype):
    """Masked classes in one or both, rows without a softmax, confident ones, large offsets."""
    random = np.random.default_rng(0)
    reference = random.standard_normal((14, classes))
    candidate = reference + 0.1 * random.standard_normal(reference.shape)
    inf = math.inf
    reference[1, 2] = -inf
    candidate[2, 2] = -inf
    reference[3, 2] = candidate[3, 2] = -inf
    reference[4] = -inf
    candidate[5] = -inf
    reference[6, 1] = math.nan
    candidate[7, 1] = inf
    reference[8, 3] = 60
    candidate[8, 3] = 70
    reference[9, 1:], candidate[9, 1:] = -inf, -inf
    reference[10, 4] = candidate[10, 5] = 60
    candidate[11] = reference[11]
    reference[12] += 200
    candidate[13, :] = -inf
    candidate[13, 2] = 0
    reference, candidate = reference.astype(dtype), candidate.astype(dtype)
    targets = np.arange(14) % 7
    found = ours(reference, candidate, targets)
    assert_close(found, expected(reference, candidate, targets), classes, dtype == np.float64)
    assert [found[name][11] for name in ("kl", "reverse_kl", "js")] == [0.0] * 3


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_layouts(level, axis, dtype):
    random = np.random.default_rng(axis)
    whole = (2 * random.standard_normal((9, 10, 22))).astype(dtype)
    reference, candidate = whole[::2, ::-1, 1::2], whole[1:6, :, ::2].astype(np.float32)
    rows = [n for i, n in enumerate(reference.shape) if i != axis]
    targets = random.integers(reference.shape[axis], size=rows)
    weights = random.integers(2, size=rows)
    options = {"axis": axis, "sample_weight": weights.astype(np.float64)}
    assert_close(
        ours(reference, candidate, targets, **options),
        expected(reference, candidate, targets, **options),
        reference.shape[axis],
        exact=False,
    )


@pytest.mark.parametrize(
    "pair", [(np.float32, np.float32), (np.float32, np.float16), (np.float64, np.float64)]
)
@pytest.mark.parametrize("classes", [2, 7, 40, 127, 300, 1000])
def test_a_row_has_the_same_bits_in_any_batch(level, classes, pair):
    reference, candidate, targets = problem(classes, *pair, rows=70)
    # Some rows are far apart, or have masked classes: those beside them must not notice.
    candidate[::9] *= -2
    candidate[5, 1] = reference[14, 0] = -math.inf
    whole = ours(reference, candidate, targets)
    random = np.random.default_rng(0)
    for threads in (1, 2, 3):
        xent_rs.set_num_threads(threads)
        for _ in range(4):
            order = random.permutation(70)
            for rows in np.split(order, np.sort(random.integers(0, 71, size=6))):
                found = ours(reference[rows], candidate[rows], targets[rows])
                for name, values in found.items():
                    assert values.tobytes() == whole[name][rows].tobytes(), name


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("classes", [4, 300])
def test_differences_that_overflow(level, classes, dtype):
    """A class at the end of the numbers is one that has no probability: no row without NaN has one."""
    reference = np.random.default_rng(0).standard_normal((6, classes)).astype(dtype)
    candidate = reference.copy()
    reference[1, 2] = candidate[2, 2] = reference[3, 1] = candidate[3, 1] = np.finfo(dtype).min
    reference[4, 1:] = candidate[5, 1:] = np.finfo(dtype).min
    found = ours(reference, candidate, temperature=0.25)
    masked = [np.where(logits == np.finfo(dtype).min, -math.inf, logits) for logits in (reference, candidate)]
    wanted = ours(*masked, temperature=0.25)
    for name, values in wanted.items():
        assert np.array_equal(found[name], values), name
    assert (found["js"] <= math.log(2)).all()


@pytest.mark.parametrize(
    "pair", PAIRS[::3], ids=lambda pair: "-".join(np.dtype(dtype).name for dtype in pair)
)
@pytest.mark.parametrize("classes", [7, 33, 300])
def test_levels_with_fused_multiply_add_agree(classes, pair):
    reference, candidate, targets = problem(classes, *pair)
    results = []
    for name in set(_xent_rs.simd_levels()) - {"portable"}:
        _xent_rs.set_simd_level(name)
        results.append(ours(reference, candidate, targets))
    for other in results[1:]:
        for name, values in other.items():
            assert values.tobytes() == results[0][name].tobytes(), name


def test_without_targets_there_is_no_loss(level):
    reference, candidate, _ = problem(33, np.float32, np.float32)
    found = ours(reference, candidate)
    assert_close(found, expected(reference, candidate), 33, exact=False)
    for name, values in found.items():
        assert values.any() != name.endswith(("loss", "hit"))


def test_rows_that_do_not_count_are_zeros(level):
    logits = np.full((4, 7), np.nan)
    found = ours(logits, logits, [-100, 3, 0, -100], sample_weight=np.array([1.0, 0.0, 0.0, 2.0]))
    assert not any(values.any() for values in found.values())
