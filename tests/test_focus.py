"""Focal and poly losses, of classes and of binary targets, with all other options."""

import math
import re

import numpy as np
import pytest
import xent_rs

from . import test_binary, test_options
from .bounds import assert_within, mean_bound
from .combinations import (
    INTEGERS,
    assert_levels_agree,
    assert_threads_agree,
    enlarged,
    fused,
    pairwise,
    same,
)
from .slopes import assert_slope

FOCUS = {"focal_gamma": [0.0, 0.5, 1.0, 2.0, 5.0], "poly_epsilon": [0.0, 1.0, -0.7]}
FACTORS = {
    **test_options.FACTORS,
    "target": [("class", dtype) for dtype in INTEGERS],
    "label_smoothing": [0.0],
    **FOCUS,
}
# Where there is nothing else the kernels for targets alone work.
ALONE = {**FACTORS, "z_loss": [0.0], "softcap": [None], "weight": [None, "float32"]}
COVER = [
    case
    for case in [*pairwise(FACTORS, 0), *pairwise(ALONE, 1)]
    if case["focal_gamma"] or case["poly_epsilon"]
]
BINARY = [
    case
    for seed in range(2)
    for case in pairwise({**test_binary.FACTORS, "focal_gamma": [0.0, 0.5, 2.0, 5.0]}, seed)
    if case["focal_gamma"]
]


@pytest.mark.parametrize("number", range(len(COVER)))
def test_every_two_options(level, number):
    case = COVER[number]
    whole = test_options.problem(case, number)
    whole.check(case, np.random.default_rng(number), "focused", ", softcap" if case["softcap"] else "")


@pytest.mark.parametrize("number", range(len(BINARY)))
def test_every_two_options_of_binary_losses(level, number):
    whole = test_binary.problem(BINARY[number], number)
    whole.check(BINARY[number], np.random.default_rng(number), "binary focused")


@fused
@pytest.mark.parametrize("number", range(0, len(COVER), 3))
def test_fused_levels_agree_to_the_bit(number):
    whole = test_options.problem(COVER[number], number)
    assert_levels_agree(whole.results, COVER[number])
    whole = test_binary.problem(BINARY[number % len(BINARY)], number)
    assert_levels_agree(whole.results, BINARY[number % len(BINARY)])


@pytest.mark.parametrize("number", range(0, len(COVER), 16))
def test_threads_change_no_bit(level, number):
    case, rows = enlarged(COVER[number])
    assert_threads_agree(test_options.problem(case, number, rows).results, case)


@pytest.mark.parametrize("number", range(0, len(COVER), 3))
def test_evaluate_means_the_same_loss(number):
    case = {**COVER[number], "reduction": "mean"}
    whole = test_options.problem(case, number)
    found = xent_rs.evaluate(whole.layout(whole.logits), *whole.arguments, **whole.keywords)
    losses, divisor = whole.oracle.losses, whole.oracle.divisor
    expected = losses.sum() / divisor if divisor else np.nan
    bound = mean_bound(whole.bounds.losses, losses, divisor) + len(losses) * 2.0**-53 * abs(expected)
    assert_within("evaluate, focused", found.loss, expected, bound, case["dtype"], f"of {case}")


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("epsilon", [0.0, 1.5, -0.7])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.7, "softcap": 3.0, "reduction": "sum"},
        {"z_loss": 0.2, "weight": [1, 2, 0.5, 3, 1], "sample_weight": [1, 0.5, 2, 1, 1], "ignore_index": 1},
        {"denominator": 2.5, "grad_output": -2.0},
    ],
    ids=str,
)
def test_gradient_is_the_slope_of_the_loss(axis, gamma, epsilon, options, random):
    logits, targets = 2 * random.standard_normal((5, 5)), random.integers(0, 5, 5)
    options = {"grad_output": None, **options, "focal_gamma": gamma, "poly_epsilon": epsilon, "axis": axis}
    assert_slope(xent_rs.cross_entropy, xent_rs.cross_entropy_with_grad, logits, targets, options)


@pytest.mark.parametrize("gamma", [0.5, 2.0, 3.5])
@pytest.mark.parametrize("options", [{}, {"weight": [1, 2, 0.5], "pos_weight": 3.0, "label_smoothing": 0.2}])
@pytest.mark.parametrize("hard", [True, False])
def test_binary_gradient_is_the_slope_of_the_loss(gamma, options, hard, random):
    logits = 2 * random.standard_normal((4, 3))
    targets = random.integers(0, 2, logits.shape) if hard else random.random(logits.shape)
    assert_slope(
        xent_rs.binary_cross_entropy,
        xent_rs.binary_cross_entropy_with_grad,
        logits,
        targets,
        {"grad_output": None, **options, "focal_gamma": gamma},
    )


def test_formulas_of_the_papers(random):
    """As torchvision's sigmoid_focal_loss, Keras's focal losses and optax's poly loss have them."""
    logits, targets = random.standard_normal((50, 7)), random.integers(0, 7, 50)
    p = (np.exp(logits) / np.exp(logits).sum(1, keepdims=True))[np.arange(50), targets]
    found = xent_rs.cross_entropy(logits, targets, focal_gamma=2.0, reduction="none")
    np.testing.assert_allclose(found, -((1 - p) ** 2) * np.log(p), rtol=1e-12)
    found = xent_rs.cross_entropy(logits, targets, poly_epsilon=2.0, reduction="none")
    np.testing.assert_allclose(found, -np.log(p) + 2 * (1 - p), rtol=1e-12)
    both = xent_rs.cross_entropy(logits, targets, focal_gamma=1.0, poly_epsilon=-1.0, reduction="none")
    np.testing.assert_allclose(both, -(1 - p) * np.log(p) - (1 - p), rtol=1e-12, atol=1e-15)
    wanted = random.integers(0, 2, logits.shape)
    sigmoid = 1 / (1 + np.exp(-logits))
    right = sigmoid * wanted + (1 - sigmoid) * (1 - wanted)
    weight = 0.25 * wanted + 0.75 * (1 - wanted)
    found = xent_rs.binary_cross_entropy(logits, wanted, weight=weight, focal_gamma=2.0, reduction="none")
    np.testing.assert_allclose(found, -weight * (1 - right) ** 2 * np.log(right), rtol=1e-12)


def test_nothing_changes_without_focus(level, random):
    logits, targets = random.standard_normal((40, 11)).astype(np.float32), random.integers(0, 11, 40)
    expected = xent_rs.cross_entropy_with_grad(logits, targets, reduction="none")
    found = xent_rs.cross_entropy_with_grad(
        logits, targets, reduction="none", focal_gamma=0, poly_epsilon=0.0
    )
    assert all(same(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("classes", [2, 9, 300])
def test_the_end_of_confidence(level, classes, dtype):
    """A row without a doubt, one of a masked target, NaN, and one that is certainly wrong."""
    logits = np.zeros((5, classes), dtype)
    logits[0, 0], logits[1, 0], logits[2, 1], logits[3, 1] = 1000, -math.inf, math.nan, 60
    for options in ({"focal_gamma": 2.0}, {"focal_gamma": 0.5, "poly_epsilon": 1.0}, {"poly_epsilon": -1.0}):
        losses, grad = xent_rs.cross_entropy_with_grad(logits, np.zeros(5, int), reduction="none", **options)
        assert losses[0] == 0
        assert not grad[0].any()
        assert losses[1] == math.inf
        assert grad[1, 0] == 0
        assert not np.isnan(grad[1]).any()
        assert np.isnan(losses[2])
        assert np.isnan(grad[2]).all()
        assert losses[3] == pytest.approx(60 + options.get("poly_epsilon", 0), rel=1e-6)
        assert grad[3, 1] == pytest.approx(1, rel=1e-6)
        assert grad[3, 0] == pytest.approx(-1, rel=1e-6)
    # Relative digits, where the probability lacks less of 1 than that has digits for.
    gap = 30.0 if dtype == np.float32 else 60.0
    logits = np.zeros((1, classes), dtype)
    logits[0, 0] = gap
    missing = (classes - 1) * math.exp(-gap)
    loss, grad = xent_rs.cross_entropy_with_grad(logits, [0], focal_gamma=1.0)
    assert loss == pytest.approx(missing**2, rel=1e-5)
    assert grad[0, 0] == pytest.approx(-2 * missing**2, rel=1e-5)


def test_the_largest_gamma(level):
    """What has no probability has its plain loss, and what has some none."""
    logits = np.array([[0.0, -1e4], [0.0, -5.0]])
    for gamma in (1e4, 1e50, 1e100):
        losses, grad = xent_rs.cross_entropy_with_grad(logits, [1, 1], focal_gamma=gamma, reduction="none")
        p = 1 / (1 + math.exp(5))
        assert losses.tolist() == [1e4, pytest.approx(-math.log(p) * (1 - p) ** gamma, rel=1e-9, abs=1e-300)]
        assert grad[0].tolist() == [1, -1]
        assert np.isfinite(grad).all()
        found, slope = xent_rs.binary_cross_entropy_with_grad(
            [math.inf, -math.inf], [0.5, 1.0], focal_gamma=gamma, reduction="none"
        )
        assert found.tolist() == [math.inf] * 2
        assert not np.isnan(slope).any()


def test_the_end_of_confidence_of_binary_losses(level):
    logits = np.array([math.inf, -math.inf, math.inf, -math.inf, math.nan, 40.0, -40.0], np.float32)
    losses, grad = xent_rs.binary_cross_entropy_with_grad(
        logits, [1, 0, 0, 1, 1, 1, 0], focal_gamma=2.0, reduction="none"
    )
    assert losses[:2].tolist() == grad[:2].tolist() == [0, 0]
    assert losses[2:4].tolist() == [math.inf, math.inf]
    assert grad[2:4].tolist() == [1, -1]
    assert np.isnan(losses[4])
    assert np.isnan(grad[4])
    missing = math.exp(-40)
    assert losses[5:] == pytest.approx([missing**3] * 2, rel=1e-5)
    assert grad[5:] == pytest.approx([-3 * missing**3, 3 * missing**3], rel=1e-5)


@pytest.mark.parametrize(
    ("options", "targets", "message"),
    [
        ({"focal_gamma": -1}, [0, 1], "focal_gamma is -1.0; expected a number from 0 to 1e100"),
        ({"focal_gamma": math.nan}, [0, 1], "focal_gamma is nan; expected a number from 0 to 1e100"),
        ({"focal_gamma": 1e101}, [0, 1], "focal_gamma is 1e+101; expected a number from 0 to 1e100"),
        ({"poly_epsilon": math.inf}, [0, 1], "poly_epsilon is inf; expected a finite number"),
        (
            {"focal_gamma": 2},
            np.full((2, 3), 1 / 3),
            "focal_gamma is 2.0 with probabilities as targets; expected class indices, "
            "whose probability it looks at",
        ),
        (
            {"poly_epsilon": 1, "label_smoothing": 0.1},
            [0, 1],
            "poly_epsilon is 1.0 with label_smoothing 0.1; expected one of them",
        ),
    ],
    ids=str,
)
def test_errors(options, targets, message):
    logits = np.zeros((2, 3))
    for function in (xent_rs.cross_entropy, xent_rs.cross_entropy_with_grad):
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            function(logits, targets, **options)


def test_an_evaluator_refuses_what_its_batches_would():
    with pytest.raises(
        ValueError, match=r"^focal_gamma is 2.0 with label_smoothing 0.1; expected one of them$"
    ):
        xent_rs.Evaluator(focal_gamma=2, label_smoothing=0.1)


def test_there_is_no_hessian():
    for name in ("focal_gamma", "poly_epsilon"):
        with pytest.raises(TypeError, match=f"got an unexpected keyword argument '{name}'"):
            xent_rs.cross_entropy_with_grad_hess(np.zeros((2, 3)), [0, 1], **{name: 1.0})
    with pytest.raises(TypeError, match="got an unexpected keyword argument 'focal_gamma'"):
        xent_rs.binary_cross_entropy_with_grad_hess(np.zeros(2), [0, 1], focal_gamma=1.0)
