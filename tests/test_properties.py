"""What holds for all logits, targets and options: hypothesis looks for the exception."""

import math

import numpy as np
import pytest
import xent_rs
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_dtypes import bfloat16

from .bounds import CrossEntropyBounds, KlDivergenceBounds, assert_within, half_ulp, unit
from .cases import DTYPES
from .combinations import INTEGERS, same
from .oracle import CrossEntropy, KlDivergence, Softmax

FLOATS = [np.dtype(dtype) for dtype in (np.float16, bfloat16, np.float32, np.float64)]


@st.composite
def problems(
    draw,
    soft=None,
    options=("weight", "sample_weight", "label_smoothing", "z_loss", "softcap", "temperature"),
):
    """(logits, targets, options) with the classes along any axis; what is left out keeps its default."""
    dtype = draw(st.sampled_from(DTYPES))
    shape = tuple(draw(st.lists(st.integers(0, 5), max_size=2)))
    axis = draw(st.integers(0, len(shape)))
    classes = draw(st.one_of(st.integers(1, 40), st.sampled_from([64, 127, 128, 255, 256])))
    shape, rows = (*shape[:axis], classes, *shape[axis:]), shape
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    logits = draw(st.sampled_from([1e-3, 1, 30])) * random.standard_normal(shape)
    if draw(st.booleans()):
        logits[random.random(shape) < 0.2] = -math.inf
    found = {"axis": draw(st.sampled_from([axis, axis - len(shape)]))}
    if soft is None:
        soft = draw(st.booleans())
    if soft:
        targets = random.random(shape).astype(draw(st.sampled_from(FLOATS)))
    else:
        integer = draw(st.sampled_from(INTEGERS))
        targets = np.asarray(random.integers(0, min(classes, 120), rows))
        found["ignore_index"] = draw(st.sampled_from([0, 77, 100]))
        targets = np.where(random.random(rows) < 0.2, found["ignore_index"], targets).astype(integer)
        targets[(targets >= classes) & (targets != found["ignore_index"])] = 0
    choices = {
        "weight": st.sampled_from([None, random.uniform(0.1, 2, classes), random.integers(0, 3, classes)]),
        "sample_weight": st.sampled_from([None, random.uniform(0.1, 2, rows), random.integers(0, 3, rows)]),
        "label_smoothing": st.sampled_from([0.0, 0.1, 1.0]),
        "z_loss": st.sampled_from([0.0, 1e-3]),
        "softcap": st.sampled_from([None, 20.0]),
        "temperature": st.sampled_from([1.0, 0.5, 1.3]),
    }
    found |= {name: draw(choices[name]) for name in options}
    return logits.astype(dtype), targets, found


def rows_of(array, axis):
    return np.moveaxis(array, axis, -1).reshape(-1, array.shape[axis])


def both(logits, targets, options, **more):
    return xent_rs.cross_entropy_with_grad(logits, targets, **{"reduction": "none", **options, **more})


def oracle_of(logits, targets, options):
    """The exact results for rows, one after the other."""
    axis = options["axis"]
    softmax = Softmax(rows_of(logits, axis), options["temperature"])
    flat = rows_of(targets, axis) if targets.ndim == logits.ndim else targets.reshape(-1)
    keywords = {name: value for name, value in options.items() if name not in ("axis", "temperature")}
    if keywords["sample_weight"] is not None:
        keywords["sample_weight"] = np.asarray(keywords["sample_weight"]).reshape(-1)
    return CrossEntropy(softmax, flat, **keywords)


@settings(max_examples=300)
@given(problems())
def test_the_mean_is_the_sum_over_its_divisor(case):
    """And each is that of the rows, to the bit beside the gradient."""
    logits, targets, options = case
    losses, _ = both(logits, targets, options)
    loss = {
        name: xent_rs.cross_entropy(logits, targets, reduction=name, **options) for name in ("mean", "sum")
    }
    for reduction, value in loss.items():
        assert same(both(logits, targets, options, reduction=reduction)[0], value)
    alone = xent_rs.cross_entropy(logits, targets, reduction="none", **options)
    assert same(np.asarray(alone), np.asarray(losses))
    with np.errstate(invalid="ignore", over="ignore"):
        total = np.asarray(losses, np.float64).sum()
    # A sum of rounded rows, and the rounded sum of rows.
    roundings = 4 * unit(logits.dtype)[0] * (np.abs(np.asarray(losses, np.float64)).sum() + 1e-37)
    assert loss["sum"] == pytest.approx(total, rel=0, abs=roundings, nan_ok=True)
    kept = np.ones(np.shape(losses))
    if np.ndim(targets) != logits.ndim:
        kept = targets != options["ignore_index"]
        if options["weight"] is not None:
            kept = np.where(kept, options["weight"][np.where(kept, targets, 0)], 0.0)
    if options["sample_weight"] is not None:
        kept = kept * options["sample_weight"]
    divisor = float(np.sum(kept))
    expected = loss["sum"] / divisor if divisor else math.nan
    assert loss["mean"] == pytest.approx(expected, rel=1e-12, nan_ok=True)
    whole = xent_rs.cross_entropy(logits, targets, denominator=3.5, **options)
    assert whole == pytest.approx(loss["sum"] / 3.5, rel=1e-15, nan_ok=True)


@settings(max_examples=300)
@given(problems(options=("weight", "sample_weight", "label_smoothing", "temperature")))
def test_the_gradient_of_a_row_adds_up_to_zero(case):
    """Where nothing but differences of logits counts; to what the bounds of its entries allow."""
    logits, targets, options = case
    wide = np.dtype(np.float64 if logits.dtype == np.float64 else np.float32)
    losses, grad = both(logits, targets, options, out=np.empty(logits.shape, wide))
    axis, oracle = options["axis"], oracle_of(logits, targets, options)
    finite = np.isfinite(np.asarray(losses, np.float64).reshape(-1))
    sums = rows_of(grad, axis).astype(np.longdouble).sum(axis=1)
    bound = CrossEntropyBounds(oracle, logits.dtype).gradients().sum(axis=1)
    # A share on a masked class pulls at nothing: its row may add up to that share.
    assert (np.abs(sums) <= bound)[finite].all()


@settings(max_examples=200)
@given(problems(soft=False), st.sampled_from(FLOATS))
def test_one_hot_targets_are_class_indices(case, dtype):
    """But for the mean, which class weights do not divide then, as in PyTorch."""
    logits, targets, options = case
    axis, index = options["axis"], options.pop("ignore_index")
    targets = np.where(targets == index, 0, targets)
    classes = np.arange(logits.shape[axis])
    one_hot = np.moveaxis((np.asarray(targets)[..., None] == classes).astype(dtype), -1, axis)
    wide = np.dtype(np.float64 if logits.dtype == np.float64 else np.float32)
    losses, grad = both(logits, targets, options, out=np.empty(logits.shape, wide))
    also, also_grad = both(logits, one_hot, options, out=np.empty(logits.shape, wide))
    u = unit(logits.dtype)[0]
    np.testing.assert_allclose(also, losses, rtol=40 * u, atol=40 * u)
    np.testing.assert_allclose(also_grad, grad, rtol=1e3 * u, atol=40 * u)


@settings(max_examples=200)
@given(problems(), st.sampled_from([np.float32, np.int8, bool, bfloat16]))
def test_weights_of_one_are_no_weights(case, dtype):
    logits, targets, options = case
    classes, rows = logits.shape[options["axis"]], np.delete(logits.shape, options["axis"])
    options |= {"weight": None, "sample_weight": None}
    ones = {"weight": np.ones(classes, dtype), "sample_weight": np.ones(rows, dtype)}
    for reduction in ("mean", "none"):
        expected = both(logits, targets, options, reduction=reduction)
        for more in (ones, {"weight": ones["weight"]}, {"sample_weight": ones["sample_weight"]}):
            found = both(logits, targets, {**options, **more}, reduction=reduction)
            for first, second in zip(expected, found, strict=True):
                digits = 2.0**-7 if np.asarray(first).dtype.itemsize == 2 else 16 * unit(logits.dtype)[0]
                np.testing.assert_allclose(
                    np.asarray(second, float), np.asarray(first, float), rtol=digits, atol=digits / 10
                )


@settings(max_examples=200)
@given(problems(), st.booleans())
def test_in_place_is_out_of_place(case, hessian):
    logits, targets, options = case
    if hessian:
        del options["z_loss"], options["softcap"]
        loss, grad, hess = xent_rs.cross_entropy_with_grad_hess(logits, targets, **options)
        first, second = logits.copy(), logits.copy()
        out = xent_rs.cross_entropy_with_grad_hess(first, targets, **options, out=first)
        hess_out = xent_rs.cross_entropy_with_grad_hess(second, targets, **options, hess_out=second)
        assert same(out[0], loss)
        assert same(hess_out[0], loss)
        assert same(first, grad)
        assert same(second, hess)
        assert same(out[2], hess)
        assert same(hess_out[1], grad)
    else:
        loss, grad = xent_rs.cross_entropy_with_grad(logits, targets, **options)
        there = xent_rs.cross_entropy_with_grad(logits, targets, **options, out=logits)
        assert there[1] is logits
        assert same(there[0], loss)
        assert same(logits, grad)


@settings(max_examples=200)
@given(problems(soft=False), st.sampled_from([math.nan, math.inf, -math.inf, 1.0]))
def test_what_ignored_rows_hold_does_not_matter(case, garbage):
    logits, targets, options = case
    index = options["ignore_index"]
    ignored = np.asarray(targets) == index
    before = {name: both(logits, targets, options, reduction=name) for name in ("none", "mean")}
    logits = logits.copy()
    np.moveaxis(logits, options["axis"], -1)[ignored] = garbage
    if options["sample_weight"] is not None:
        options["sample_weight"] = np.where(ignored, garbage, options["sample_weight"])
    for name, (losses, grad) in before.items():
        after = both(logits, targets, options, reduction=name)
        assert same(after[0], losses)
        assert same(after[1], grad)
        assert not np.moveaxis(grad, options["axis"], -1)[ignored].any()
    assert not np.asarray(before["none"][0])[ignored].any()


@settings(max_examples=200)
@given(problems(options=("weight", "sample_weight", "label_smoothing", "temperature")), st.integers(-3, 3))
def test_a_shift_of_a_row_changes_roundings_alone(case, shift):
    """By a number that keeps every logit exact: integers that stay so."""
    logits, targets, options = case
    with np.errstate(invalid="ignore"):
        logits = np.where(np.isfinite(logits), np.round(np.clip(logits.astype(float), -60, 60)), -math.inf)
    dtype = case[0].dtype
    found = both(logits.astype(dtype), targets, options)
    moved = both((logits + 16 * shift).astype(dtype), targets, options)
    oracle = oracle_of(logits.astype(dtype), targets, options)
    bounds = CrossEntropyBounds(oracle, dtype)
    for losses, grad in (found, moved):
        assert_within("loss", np.reshape(losses, -1), oracle.losses, bounds.losses, dtype)
        rows = rows_of(grad, options["axis"])
        assert_within("gradient", rows, oracle.gradients, bounds.gradients(), dtype)


@settings(max_examples=200)
@given(problems(soft=True), st.floats(0.25, 4))
def test_the_loss_is_linear_in_the_targets_and_weights(case, factor):
    logits, targets, options = case
    options |= {"label_smoothing": 0.0, "z_loss": 0.0}
    weight = options["weight"]
    losses, grad = both(logits, targets.astype(float), options)
    wide = grad.astype(float)
    more = {
        "weight": factor * np.asarray(np.ones(logits.shape[options["axis"]]) if weight is None else weight)
    }
    also, also_grad = both(logits, targets.astype(float), {**options, **more})
    u = unit(logits.dtype)[0]
    np.testing.assert_allclose(also, factor * np.asarray(losses, float), rtol=40 * u, atol=40 * u * factor)
    digits = 2.0**-6 if logits.dtype.itemsize == 2 else 1e3 * u
    np.testing.assert_allclose(also_grad.astype(float), factor * wide, rtol=digits, atol=digits * factor)


@settings(max_examples=200)
@given(problems(soft=True, options=("sample_weight", "temperature")))
def test_divergence_of_anything_from_itself_is_zero(case):
    """To its bound."""
    logits, _, options = case
    losses, grad = xent_rs.kl_divergence_with_grad(logits, logits, reduction="none", **options)
    masked = np.isneginf(logits.astype(float)).all(axis=options["axis"])
    np.testing.assert_array_equal(np.isnan(losses), masked)
    np.testing.assert_array_equal(np.isnan(np.moveaxis(grad, options["axis"], -1)).all(axis=-1), masked)
    softmax = Softmax(rows_of(logits, options["axis"]), options["temperature"])
    weights = (
        options["sample_weight"] if options["sample_weight"] is None else options["sample_weight"].reshape(-1)
    )
    bounds = KlDivergenceBounds(KlDivergence(softmax, softmax, weights), logits.dtype)
    kept = ~masked.reshape(-1)
    assert (np.abs(np.asarray(losses).reshape(-1)) <= bounds.losses)[kept].all()
    bound = bounds.gradients()
    bound = bound + half_ulp(bound, np.float16) if logits.dtype.itemsize == 2 else bound
    assert (np.abs(rows_of(grad, options["axis"]).astype(float)) <= bound)[kept].all()


@settings(max_examples=200)
@given(problems(soft=False, options=("softcap", "temperature")))
def test_statistics_agree_with_the_losses(case):
    """-target_log_probability is the loss; the top's probability and place are those of argmax."""
    logits, targets, options = case
    found = xent_rs.row_statistics(logits, targets, **options)
    losses = xent_rs.cross_entropy(logits, targets, reduction="none", **options)
    u = unit(logits.dtype)[0]
    np.testing.assert_allclose(-np.asarray(found.target_log_probability), losses, rtol=40 * u, atol=40 * u)
    # Nothing is ranked where no class is left.
    ranked = (np.asarray(targets) != options["ignore_index"]) & (np.asarray(found.logsumexp) > -np.inf)
    ranks = np.asarray(found.target_rank)
    np.testing.assert_array_equal(ranks[ranked] == 0, (np.asarray(found.argmax) == targets)[ranked])
    assert (ranks[~ranked] == -1).all()
    assert (ranks[ranked] < logits.shape[options["axis"]]).all()
    last = np.moveaxis(logits, options["axis"], -1).astype(float)
    np.testing.assert_array_equal(found.argmax, last.argmax(axis=-1))


@settings(max_examples=200)
@given(problems(soft=True, options=()))
def test_binary_of_the_complement_is_the_same(case):
    """softplus(-x) of a target is softplus(x) of the other: logits and targets turned over."""
    logits, targets, _ = case
    targets = np.round(targets.astype(float) * 4) / 4
    losses, grad = xent_rs.binary_cross_entropy_with_grad(logits, targets, reduction="none")
    also, also_grad = xent_rs.binary_cross_entropy_with_grad(-logits, 1 - targets, reduction="none")
    u = unit(logits.dtype)[0]
    np.testing.assert_allclose(also, losses, rtol=8 * u, atol=0)
    digits = 2.0**-6 if logits.dtype.itemsize == 2 else 1e2 * u
    np.testing.assert_allclose(also_grad.astype(float), -grad.astype(float), rtol=digits, atol=1e-6 * digits)
