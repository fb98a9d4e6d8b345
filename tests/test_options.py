"""The options of the cross-entropy in combination, against the oracle and by finite differences."""

import numpy as np
import pytest
import xent_rs
from ml_dtypes import bfloat16

from .bounds import CrossEntropyBounds, assert_within, mean_bound
from .cases import DTYPES
from .combinations import (
    INTEGERS,
    LAYOUTS,
    RESULTS,
    SHAPES,
    Problem,
    assert_levels_agree,
    assert_threads_agree,
    enlarged,
    fused,
    logits_of,
    pairwise,
    same,
)
from .oracle import CrossEntropy, Softmax
from .slopes import assert_slope, slopes

FLOATS = [np.dtype(dtype) for dtype in (np.float16, bfloat16, np.float32, np.float64)]
FACTORS = {
    "target": [
        *(("class", dtype) for dtype in INTEGERS),
        *(("probabilities", dtype) for dtype in FLOATS),
        *(("one-hot", dtype) for dtype in FLOATS),
    ],
    "target_layout": [*LAYOUTS, "list"],
    "classes": [1, 2, 3, 10, 127, 128, 255, 256, 1000],
    "dtype": DTYPES,
    "shape": SHAPES,
    "layout": LAYOUTS,
    "values": ["normal", "wide", "offset", "masked", "poisoned", "confident"],
    "weight": [None, "float32", "float64, every other", "int8", "bool", "list"],
    "sample_weight": [None, "float64", "float16, turned", "uint8", "list"],
    "ignore_index": [None, "a number", "a class"],
    "label_smoothing": [0.0, 0.1, 1.0],
    "z_loss": [0.0, 1e-4, 0.5],
    "softcap": [None, 30.0, 2.0],
    "temperature": [1.0, 0.3, 2.5],
    **RESULTS,
}
COVER = [*pairwise(FACTORS, 0), *pairwise({**FACTORS, "z_loss": [0.0], "softcap": [None]}, 1)]


def weights_of(kind, shape, random):
    """As the caller has them; some are 0 where the dtype has small integers."""
    if kind is None:
        return None
    dtype, *layout = kind.split(", ")
    if dtype == "list":
        return random.uniform(0.5, 2, shape).tolist()
    weights = random.uniform(0.5, 2, shape) if "float" in dtype else random.integers(0, 4, shape)
    weights = np.asarray(weights).astype(dtype)
    return LAYOUTS[layout[0]](weights) if layout and weights.ndim else weights


def targets_of(case, rows, random):
    """(targets of rows (, classes), ignore_index)."""
    kind, dtype = case["target"]
    classes, index = case["classes"], -100
    targets = random.integers(0, classes, rows)
    if kind == "class":
        targets = np.minimum(targets, min(np.iinfo(dtype).max, classes))
        if case["ignore_index"] is not None:
            index = 0 if case["ignore_index"] == "a class" else 255 if dtype.kind == "u" else -100
            targets[random.random(rows) < 0.2] = index
    elif kind == "one-hot":
        targets = np.eye(classes)[targets]
    else:
        targets = random.random((rows, classes)) * (random.random((rows, classes)) < 0.7)
        targets[::2] /= np.maximum(targets[::2].sum(axis=1, keepdims=True), 1e-3)
    return targets.astype(dtype), index


def problem(case, number, rows=None):
    """`rows` replaces the number of rows of a layout of two axes."""
    random = np.random.default_rng(number)
    dtype, classes = case["dtype"], case["classes"]
    lead, axis = SHAPES[case["shape"]]
    lead = (rows,) if rows else lead
    rows = int(np.prod(lead))
    logits = logits_of(case["values"], (rows, classes), dtype, random)
    targets, ignore_index = targets_of(case, rows, random)
    if case["values"] == "confident":
        best = targets.argmax(axis=1) if targets.ndim == 2 else np.where(targets == ignore_index, 0, targets)
        logits[np.arange(rows), best] = 17 + logits.max(axis=1)
    if case["values"] == "masked" and targets.ndim == 2:
        targets[np.isneginf(logits) & (np.arange(rows) % 3 > 0)[:, None]] = 0
    names = ("label_smoothing", "z_loss", "softcap", "temperature", "focal_gamma", "poly_epsilon")
    options = {name: case[name] for name in names if name in case}
    weight = weights_of(case["weight"], classes, random)
    sample_weight = weights_of(case["sample_weight"], lead, random)
    oracle = CrossEntropy(
        Softmax(logits, options["temperature"], options["softcap"]),
        targets,
        weight=None if weight is None else np.asarray(weight),
        sample_weight=None if sample_weight is None else np.asarray(sample_weight).reshape(-1),
        ignore_index=ignore_index,
        label_smoothing=options["label_smoothing"],
        z_loss=options["z_loss"],
        focal_gamma=case.get("focal_gamma", 0.0),
        poly_epsilon=case.get("poly_epsilon", 0.0),
    )
    shaped = targets.reshape(lead + targets.shape[1:])
    shaped = np.moveaxis(shaped, -1, axis) if targets.ndim == 2 else shaped
    if case["target_layout"] == "list":
        shaped = shaped if shaped.dtype.name in ("bfloat16", "float16") else shaped.tolist()
    elif shaped.ndim:
        shaped = LAYOUTS[case["target_layout"]](shaped)
    options |= {"weight": weight, "sample_weight": sample_weight, "ignore_index": ignore_index}
    turned = np.ascontiguousarray(np.moveaxis(logits.reshape(*lead, classes), -1, axis))
    bounds = CrossEntropyBounds(oracle, dtype)
    return Problem("cross_entropy", turned, LAYOUTS[case["layout"]], (shaped,), options, axis, oracle, bounds)


def label_of(case):
    """Where the ratio goes in the table."""
    return "class" if case["target"][0] == "class" else "soft", ", softcap" if case["softcap"] else ""


@pytest.mark.parametrize("number", range(len(COVER)))
def test_every_two_options(level, number):
    case = COVER[number]
    problem(case, number).check(case, np.random.default_rng(number), *label_of(case))


@pytest.mark.parametrize(
    "number", [i for i, case in enumerate(COVER) if not case["softcap"] or not case["z_loss"]]
)
def test_hessian(level, number):
    """Where options allow it."""
    case = {**COVER[number], "softcap": None, "z_loss": 0.0}
    whole = problem(case, number)
    del whole.options["z_loss"], whole.options["softcap"]
    whole.check_hessian(case, np.random.default_rng(number), label_of(case)[0], swapped=number % 2)


def everything(whole):
    """What the functions return for a problem: one list of arrays."""
    options = {name: value for name, value in whole.options.items() if name not in ("z_loss", "softcap")}
    plain = Problem(whole.name, whole.logits, whole.layout, whole.arguments, options, whole.axis, None, None)
    return [
        *whole.results(),
        *plain.call("_with_grad_hess", reduction="none"),
        *plain.call("_with_grad_hess"),
    ]


@fused
@pytest.mark.parametrize("number", range(0, len(COVER), 2))
def test_fused_levels_agree_to_the_bit(number):
    whole = problem(COVER[number], number)
    assert_levels_agree(lambda: everything(whole), COVER[number])


@pytest.mark.parametrize("number", range(0, len(COVER), 16))
def test_threads_change_no_bit(level, number):
    """The sum of weights is a tree of blocks like that of the losses."""
    case, rows = enlarged(COVER[number])
    whole = problem(case, number, rows)
    assert_threads_agree(lambda: everything(whole), case)


@pytest.mark.parametrize("number", range(0, len(COVER), 3))
def test_evaluate_means_the_same_loss(number):
    case = {**COVER[number], "target": ("class", INTEGERS[number % 8]), "reduction": "mean"}
    whole = problem(case, number)
    found = xent_rs.evaluate(whole.layout(whole.logits), *whole.arguments, **whole.keywords)
    losses, divisor = whole.oracle.losses, whole.oracle.divisor
    expected = losses.sum() / divisor if divisor else np.nan
    bound = mean_bound(whole.bounds.losses, losses, divisor) + len(losses) * 2.0**-53 * abs(expected)
    assert_within("evaluate", found.loss, expected, bound, case["dtype"], f"of {case}")
    assert found.ignored == whole.oracle.left_out.sum()
    assert found.rows == len(whole.oracle.left_out) - found.ignored


# --- Finite differences ---

SLOPES = {
    "target": ["class", "probabilities", "one-hot"],
    "weight": [None, "float64", "signed"],
    "sample_weight": [None, "float64", "signed"],
    "ignore_index": [-100, 1],
    "label_smoothing": [0.0, 0.1, 1.0],
    "z_loss": [0.0, 0.2],
    "softcap": [None, 2.0],
    "temperature": [1.0, 0.7, 3.0],
    "axis": [0, 1, -1],
    "reduction": ["mean", "sum"],
    "denominator": [None, 2.5],
    "grad_output": [None, -2.5],
}


def slope_problem(case, random):
    """(logits, targets, options) in float64."""
    logits = 2 * random.standard_normal((4, 5))
    axis = case["axis"]
    rows, classes = logits.shape[1 - axis % 2], logits.shape[axis]
    targets = random.integers(0, classes, rows)
    if case["target"] == "one-hot":
        targets = np.moveaxis(np.eye(classes)[targets], -1, axis)
    elif case["target"] == "probabilities":
        targets = random.random(logits.shape)
    options = {
        name: value for name, value in case.items() if name not in ("target", "weight", "sample_weight")
    }
    for name, length in (("weight", classes), ("sample_weight", rows)):
        if case[name]:
            options[name] = random.uniform(0.5, 2, length)
            if case[name] == "signed":
                options[name][0] = -0.3
    if case["reduction"] != "mean":
        del options["denominator"]
    return logits, targets, options


@pytest.mark.parametrize("case", pairwise(SLOPES), ids=lambda case: " ".join(map(str, case.values())))
def test_gradient_is_the_slope_of_the_loss(case, random):
    logits, targets, options = slope_problem(case, random)
    assert_slope(xent_rs.cross_entropy, xent_rs.cross_entropy_with_grad, logits, targets, options)


@pytest.mark.parametrize("case", pairwise(SLOPES), ids=str)
def test_hessian_is_the_slope_of_the_gradient(case, random):
    logits, targets, options = slope_problem(case, random)
    for name in ("z_loss", "softcap", "grad_output"):
        del options[name]
    loss, grad, hess = xent_rs.cross_entropy_with_grad_hess(logits, targets, **options)
    assert loss == xent_rs.cross_entropy(logits, targets, **options)
    assert same(grad, xent_rs.cross_entropy_with_grad(logits, targets, **options)[1])
    for index in np.ndindex(logits.shape):
        line = logits[index].reshape(1)

        def slope(x, index=index):
            moved = logits.copy()
            moved[index] = x[0]
            return xent_rs.cross_entropy_with_grad(moved, targets, **options)[1][index]

        expected, error = slopes(slope, line)
        assert error < 1e-8
        assert abs(hess[index] - expected[0]) <= error
