"""`xent_rs.probability` against the numbers of textbooks, exact arithmetic and SciPy."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ml_dtypes import bfloat16
from xent_rs.probability import (
    binary_cross_entropy,
    cross_entropy,
    entropy,
    kl_divergence,
    self_information,
)

DISTRIBUTION = [0.228, 0.619, 0.153]


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (lambda: self_information(0.5, base=2), 1),  # a fair coin
        (lambda: self_information(1 / 1024, base=2), 10),
        (lambda: self_information(0.001, base=10), 3),
        (lambda: self_information(1), 0),
        (lambda: self_information(0), math.inf),
        (lambda: entropy([0.5, 0.5], base=2), 1),
        (lambda: entropy([0.25] * 4, base=2), 2),
        (lambda: entropy([1, 0, 0]), 0),
        (lambda: entropy(np.full((4, 4), 1 / 16), axis=None, base=2), 4),
        (lambda: entropy(np.full((4, 4), 1 / 16), axis=(0, 1), base=2), 4),
        (lambda: entropy([0.5, 0.5]), math.log(2)),
        (lambda: entropy([0.5, 0.5], base=0.5), -1),
        (lambda: entropy([0.0, 0.0]), 0),
        (lambda: cross_entropy([0.5, 0.5], [0.25, 0.125], base=2), 2.5),
        (lambda: cross_entropy([0, 1, 0], [0, 1, 0]), 0),
        (lambda: cross_entropy([0.5, 0.5], [1, 0]), math.inf),
        (lambda: kl_divergence([0.5, 0.5], [0.25, 0.75]), math.log(2) / 2 + math.log(2 / 3) / 2),
        (lambda: kl_divergence([0.5, 0.5], [1, 0]), math.inf),
        (lambda: kl_divergence([1, 0], [0.5, 0.5], base=2), 1),
        (lambda: kl_divergence(DISTRIBUTION, DISTRIBUTION), 0),
        (lambda: kl_divergence([0, 1], [0, 1]), 0),
        (lambda: binary_cross_entropy(0.5, True, base=2), 1),
        (lambda: binary_cross_entropy(0.75, 0, base=2), 2),
        (lambda: binary_cross_entropy([0.5, 0.25], [1, 1], base=2), 1.5),
        (lambda: binary_cross_entropy([0.5, 0.25], [1, 1], base=2, reduction="sum"), 3),
        (lambda: binary_cross_entropy([1, 0], [1, 0]), 0),
        (lambda: binary_cross_entropy([1, 0], [1, 1]), math.inf),
        (lambda: binary_cross_entropy([], [], reduction="sum"), 0),
    ],
)
def test_known_numbers(found, expected):
    found = found()
    assert found == pytest.approx(expected, rel=1e-15, abs=0)
    assert math.copysign(1, found) == math.copysign(1, expected)  # no -0


def test_a_one_hot_target_costs_the_information_of_its_class():
    assert cross_entropy([0, 1, 0], DISTRIBUTION) == self_information(0.619) == -math.log(0.619)
    assert int(1000 * cross_entropy([0, 1, 0], DISTRIBUTION)) == 479


@pytest.mark.parametrize("dtype", [np.float16, bfloat16, np.float32, np.float64])
def test_narrow_dtypes_compute_in_float64(dtype):
    p = np.array([[0.3, 0.7], [0.9, 0.1]]).astype(dtype)
    for function in (self_information, entropy):
        found = function(p)
        assert found.dtype == np.float64
        np.testing.assert_array_equal(found, function(p.astype(np.float64)))
    assert binary_cross_entropy(p, p) == binary_cross_entropy(p.astype(np.float64), p.astype(np.float64))


def test_types_and_shapes():
    p = np.full((2, 3, 4), 0.25)
    assert entropy(p).shape == (2, 3)
    assert entropy(p, axis=1).shape == (2, 4)
    assert entropy(p, axis=(0, -1)).shape == (3,)
    assert cross_entropy(p, p[0, 0]).shape == (2, 3)
    assert kl_divergence(p[:, :1], p[:1]).shape == (2, 3)
    assert binary_cross_entropy(p, 1, reduction="none").shape == (2, 3, 4)
    assert self_information([]).shape == (0,)
    assert entropy(np.zeros((3, 0))).tolist() == [0, 0, 0]
    for scalar in (
        self_information(0.5),
        entropy([0.5, 0.5]),
        kl_divergence([1], [1]),
        entropy(p, axis=None),
    ):
        assert (type(scalar), scalar.shape) == (np.ndarray, ())
    assert binary_cross_entropy(0.5, 1, reduction="none").shape == ()
    for reduction in ("mean", "sum"):
        assert type(binary_cross_entropy(p, p, reduction=reduction)) is float
    assert math.isnan(binary_cross_entropy([], []))


def test_nan_is_no_probability():
    p = np.array([[0.5, 0.5], [0, math.nan]])
    for call in (
        lambda: self_information(p),
        lambda: entropy(p),
        lambda: cross_entropy(p, [0.5, 0.5]),
        lambda: kl_divergence(p, [0.5, 0.5]),
        lambda: binary_cross_entropy(p, 0),
    ):
        with pytest.raises(ValueError, match=r"^p\[1, 1\] is nan; expected a probability, 0 to 1$"):
            call()
    for function in (cross_entropy, kl_divergence):
        with pytest.raises(ValueError, match=r"^q\[0\] is nan; expected"):
            function([0, 1], [math.nan, 1])
    with pytest.raises(ValueError, match=r"^targets is nan; expected"):
        binary_cross_entropy(0.5, math.nan)


def logarithm(ratio):
    """Logarithm of a fraction of any size."""
    if Fraction(1, 2) < ratio < 2:
        return math.log1p(ratio - 1)
    exponent = ratio.numerator.bit_length() - ratio.denominator.bit_length()
    return math.log(ratio / Fraction(2) ** exponent) + exponent * math.log(2)


PROBABILITIES = st.floats(0, 1, exclude_min=True)


@given(PROBABILITIES, PROBABILITIES)
def test_a_divergence_is_as_accurate_as_its_arguments(p, q):
    expected = Fraction(p) * Fraction(logarithm(Fraction(p) / Fraction(q)))
    assert kl_divergence([p], [q]) == pytest.approx(float(expected), rel=1e-14, abs=5e-324)


@given(PROBABILITIES, st.sampled_from([0, 1]))
def test_binary_cross_entropy_keeps_small_probabilities(p, target):
    expected = -math.log(p) if target else (-math.log1p(-p) if p < 1 else math.inf)
    assert binary_cross_entropy(p, target) == pytest.approx(expected, rel=1e-15, abs=0)


def test_sums_and_bases():
    random = np.random.default_rng(0)
    p, q = random.dirichlet(np.ones(9), (2, 30))
    np.testing.assert_allclose(kl_divergence(p, q), cross_entropy(p, q) - entropy(p), rtol=1e-12)
    assert (kl_divergence(p, q) > 0).all()
    for base in (2, 3, 10, 0.5):
        scale = math.log(base)
        np.testing.assert_allclose(entropy(p, base=base), entropy(p) / scale, rtol=1e-14)
        np.testing.assert_allclose(kl_divergence(p, q, base=base), kl_divergence(p, q) / scale, rtol=1e-14)


def test_agrees_with_scipy():
    special, stats = pytest.importorskip("scipy.special"), pytest.importorskip("scipy.stats")
    random = np.random.default_rng(1)
    p, q = random.dirichlet(np.ones(9), (2, 30))
    p[:, 0] = 0
    np.testing.assert_allclose(kl_divergence(p, q), special.rel_entr(p, q).sum(-1), rtol=1e-14)
    np.testing.assert_allclose(entropy(p), special.entr(p).sum(-1), rtol=1e-14)
    p /= p.sum(-1, keepdims=True)
    np.testing.assert_allclose(entropy(p, base=2), stats.entropy(p, base=2, axis=-1), rtol=1e-13)
    np.testing.assert_allclose(kl_divergence(p, q), stats.entropy(p, q, axis=-1), rtol=1e-13)


def test_agrees_with_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    random = np.random.default_rng(2)
    q, classes = random.dirichlet(np.ones(5), 40), random.integers(5, size=40)
    expected = metrics.log_loss(classes, q, labels=range(5))
    assert cross_entropy(np.eye(5)[classes], q).mean() == pytest.approx(expected, rel=1e-12)
    p, targets = random.uniform(0.01, 0.99, 40), random.integers(2, size=40)
    assert binary_cross_entropy(p, targets) == pytest.approx(metrics.log_loss(targets, p), rel=1e-12)


BASE = "base is {}; expected a positive number other than 1"


@pytest.mark.parametrize(
    ("call", "exception", "message"),
    [
        (lambda: entropy([0.5, 1.5]), ValueError, "p[1] is 1.5; expected a probability, 0 to 1"),
        (lambda: entropy([[0.5], [-1]]), ValueError, "p[1, 0] is -1.0; expected a probability, 0 to 1"),
        (lambda: self_information(2), ValueError, "p is 2; expected a probability, 0 to 1"),
        (lambda: cross_entropy([1], [math.inf]), ValueError, "q[0] is inf; expected a probability, 0 to 1"),
        (
            lambda: binary_cross_entropy([0.5], [7]),
            ValueError,
            "targets[0] is 7; expected a probability, 0 to 1",
        ),
        (lambda: entropy(0.5), ValueError, "p has shape (); expected at least one axis, the classes"),
        (
            lambda: cross_entropy([0.5, 0.5], [1, 0, 0]),
            ValueError,
            "the shapes of p (2,) and q (3,) differ; expected shapes that broadcast",
        ),
        (
            lambda: binary_cross_entropy(np.zeros((2, 3)), [0, 1]),
            ValueError,
            "the shapes of p (2, 3) and targets (2,) differ; expected shapes that broadcast",
        ),
        (
            lambda: binary_cross_entropy(0.5, 1, reduction="avg"),
            ValueError,
            "reduction is 'avg'; expected 'mean', 'sum' or 'none'",
        ),
        (lambda: entropy([1j]), TypeError, "p has dtype complex128; expected real numbers"),
        (lambda: entropy([None]), TypeError, "p holds missing values (None); expected numbers"),
        (lambda: entropy(["0.5"]), TypeError, "p has dtype <U3; expected real numbers"),
        (lambda: kl_divergence([1], ["a"]), TypeError, "q has dtype <U1; expected real numbers"),
        (
            lambda: binary_cross_entropy([1], ["a"]),
            TypeError,
            "targets hold text ('a'); expected numbers "
            "(of classes: np.unique(targets, return_inverse=True)[1])",
        ),
        (
            lambda: entropy(np.ma.masked_array([0.5, 0.5])),
            TypeError,
            "p is a masked array; expected a plain array",
        ),
        *(
            (lambda b=b: entropy([1], base=b), ValueError, BASE.format(float(b)))
            for b in (1, 0, -2, math.inf)
        ),
        (lambda: self_information(1, base=math.nan), ValueError, BASE.format("nan")),
        (lambda: self_information(1, base="e"), TypeError, BASE.format("'e'")),
        (lambda: self_information(1, base="2"), TypeError, BASE.format("'2'")),
        (lambda: self_information(1, base=None), TypeError, BASE.format(None)),
        (lambda: self_information(1, base=b"2"), TypeError, BASE.format("b'2'")),
        (lambda: self_information(1, base=bytearray(b"2")), TypeError, BASE.format("bytearray(b'2')")),
    ],
)
def test_errors(call, exception, message):
    with pytest.raises(exception) as error:
        call()
    assert str(error.value) == message


@pytest.mark.parametrize("axis", [True, 1.0, "0", (0, False)])
def test_an_axis_that_is_no_integer(axis):
    found = axis[-1] if isinstance(axis, tuple) else axis
    with pytest.raises(TypeError, match=f"^axis is {found!r}; expected an integer$"):
        entropy([[0.5, 0.5]], axis=axis)


@pytest.mark.parametrize("axis", [2, -3, (0, 5), 2**31, -(2**63), 2**63])
def test_an_axis_out_of_range(axis):
    with pytest.raises(ValueError, match="out of bounds for array of dimension 2"):
        entropy([[0.5, 0.5]], axis=axis)
