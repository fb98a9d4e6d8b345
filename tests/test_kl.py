"""KL divergence from a teacher's logits: the options in combination, and by finite differences."""

import math

import numpy as np
import pytest
import xent_rs

from .bounds import DivergenceBounds, KlDivergenceBounds
from .cases import DTYPES
from .combinations import (
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
)
from .oracle import Divergence, KlDivergence, Softmax
from .slopes import assert_slope
from .test_options import weights_of

dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)
VALUES = ["normal", "wide", "offset", "masked", "poisoned"]
KINDS = {"forward": {}, "reverse": {"kind": "reverse"}, "Jensen-Shannon": {"kind": "jensen_shannon"}}
FACTORS = {
    "kind": KINDS,
    "beta": [0.5, 0.1, 0.9, 1e-6, 1 - 1e-6],
    "dtype": DTYPES,
    "teacher_dtype": DTYPES,
    "classes": [1, 2, 3, 10, 127, 128, 255, 256, 1000],
    "shape": SHAPES,
    "layout": LAYOUTS,
    "teacher_layout": [*LAYOUTS, "list"],
    "values": VALUES,
    "teacher_values": [*VALUES, "masked alike", "close"],
    "temperature": [1.0, 0.3, 4.0],
    "sample_weight": [None, "float64", "float16, turned", "uint8", "list"],
    **RESULTS,
}
COVER = [*pairwise(FACTORS, 0), *pairwise(FACTORS, 1)]


def problem(case, number, rows=None):
    random = np.random.default_rng(number)
    dtype, classes = case["dtype"], case["classes"]
    lead, axis = SHAPES[case["shape"]]
    lead = (rows,) if rows else lead
    rows = int(np.prod(lead))
    logits = logits_of(case["values"], (rows, classes), dtype, random)
    teacher_layout, teacher_dtype = case["teacher_layout"], case["teacher_dtype"]
    if teacher_layout == "list":
        teacher_layout, teacher_dtype = "contiguous", np.dtype(np.float64)
    teacher = logits_of(case["teacher_values"], (rows, classes), teacher_dtype, random)
    if case["teacher_values"] == "masked alike":
        teacher[np.isneginf(logits) & ~np.isneginf(logits).all(axis=1, keepdims=True)] = -np.inf
    if case["teacher_values"] == "close":
        with np.errstate(over="ignore"):
            teacher = (logits.astype(float) + 1e-3 * random.standard_normal(logits.shape)).astype(
                teacher_dtype
            )
    sample_weight = weights_of(case["sample_weight"], lead, random)
    wide = np.float64 if np.float64 in (dtype, teacher_dtype) else np.float32
    softmaxes = [Softmax(array.astype(wide), case["temperature"]) for array in (logits, teacher)]
    flat = None if sample_weight is None else np.asarray(sample_weight).reshape(-1)
    options = {**KINDS[case["kind"]]}
    if case["kind"] == "forward":
        oracle, bounds = KlDivergence(*softmaxes, flat), KlDivergenceBounds
    else:
        beta = options.setdefault("beta", case["beta"]) if case["kind"] == "Jensen-Shannon" else None
        oracle, bounds = Divergence(*softmaxes, flat, beta), DivergenceBounds
    turned, turned_teacher = (
        np.ascontiguousarray(np.moveaxis(array.reshape(*lead, classes), -1, axis))
        for array in (logits, teacher)
    )
    turned_teacher = LAYOUTS[teacher_layout](turned_teacher)
    options |= {"temperature": case["temperature"], "sample_weight": sample_weight}
    bounds = bounds(oracle, dtype)
    arguments = (turned_teacher.tolist() if case["teacher_layout"] == "list" else turned_teacher,)
    return Problem("kl_divergence", turned, LAYOUTS[case["layout"]], arguments, options, axis, oracle, bounds)


@pytest.mark.parametrize("number", range(len(COVER)))
def test_every_two_options(level, number):
    problem(COVER[number], number).check(COVER[number], np.random.default_rng(number), COVER[number]["kind"])


@fused
def test_fused_levels_agree_to_the_bit():
    for number, case in enumerate(COVER):
        assert_levels_agree(problem(case, number).results, case)


@pytest.mark.parametrize("number", range(0, len(COVER), 16))
def test_threads_change_no_bit(level, number):
    case, rows = enlarged(COVER[number])
    assert_threads_agree(problem(case, number, rows).results, case)


SLOPES = {
    "kind": KINDS,
    "beta": [0.5, 0.2, 0.8],
    "temperature": [1.0, 0.7, 3.0],
    "sample_weight": [None, "float64", "signed"],
    "axis": [0, 1, -1],
    "reduction": ["mean", "sum"],
    "denominator": [None, 2.5],
    "grad_output": [None, -2.5],
}


@pytest.mark.parametrize("case", pairwise(SLOPES), ids=lambda case: " ".join(map(str, case.values())))
def test_gradient_is_the_slope_of_the_loss(case, random):
    logits, teacher, options = (
        2 * random.standard_normal((4, 5)),
        2 * random.standard_normal((4, 5)),
        dict(case),
    )
    if case["sample_weight"]:
        options["sample_weight"] = random.uniform(0.5, 2, logits.shape[1 - case["axis"] % 2])
        if case["sample_weight"] == "signed":
            options["sample_weight"][0] = -0.3
    if options["reduction"] != "mean":
        del options["denominator"]
    options |= KINDS[options["kind"]]
    if options["kind"] != "jensen_shannon":
        del options["beta"]
    assert_slope(xent_rs.kl_divergence, xent_rs.kl_divergence_with_grad, logits, teacher, options)


@dtypes
def test_of_a_model_from_itself_is_zero(level, dtype, random):
    for shape, axis in (((5, 1), 1), ((40, 7), 1), ((64, 9), 0), ((3, 1000), 1), ((1000, 3), 0)):
        logits = (5 * random.standard_normal(shape)).astype(dtype)
        logits[random.random(shape) < 0.2] = -math.inf
        logits[0, :] = logits[:, 0] = 1
        losses, grad = xent_rs.kl_divergence_with_grad(logits, logits.copy(), axis=axis, reduction="none")
        turned = np.moveaxis(logits, axis, -1)
        softmax = Softmax(turned)
        bounds = KlDivergenceBounds(KlDivergence(softmax, softmax), dtype)
        assert (np.abs(losses) <= bounds.losses).all()
        assert (
            np.abs(np.moveaxis(grad, axis, -1)) <= bounds.gradients() + 2.0**-25 * (dtype.itemsize == 2)
        ).all()
        assert not grad[np.isneginf(logits)].any()


@dtypes
def test_is_never_negative_to_more_than_its_bound(level, dtype, random):
    logits = (5 * random.standard_normal((500, 20))).astype(dtype)
    teacher = (logits.astype(float) * (1 + 1e-4 * random.standard_normal(logits.shape))).astype(dtype)
    losses = xent_rs.kl_divergence(logits, teacher, reduction="none")
    bound = KlDivergenceBounds(KlDivergence(Softmax(logits), Softmax(teacher)), dtype).losses
    assert (losses >= -bound).all()


OTHERS = {
    "reverse": {"kind": "reverse"},
    **{
        f"mixture, {beta}": {"kind": "jensen_shannon", "beta": beta} for beta in (0.5, 0.1, 0.9, 1e-9, 1e-300)
    },
}
others = pytest.mark.parametrize("options", OTHERS.values(), ids=OTHERS)
LAID_OUT = [((5, 1), 1), ((40, 7), 1), ((64, 9), 0), ((3, 1000), 1), ((1000, 3), 0), ((3, 17, 300), 1)]


@others
@dtypes
def test_others_of_a_model_from_itself_are_exactly_0(level, dtype, options, random):
    for shape, axis in LAID_OUT:
        logits = (5 * random.standard_normal(shape) + 100).astype(dtype)
        logits[random.random(shape) < 0.2] = -math.inf
        np.moveaxis(logits, axis, -1)[..., 0] = 1
        for teacher in (logits.copy(), logits.astype(np.float64)):
            losses, grad = xent_rs.kl_divergence_with_grad(
                logits, teacher, axis=axis, reduction="none", **options
            )
            assert not losses.any()
            assert not grad.any()


@others
@dtypes
def test_others_are_never_negative(level, dtype, options, random):
    for distance in (1e-7, 1e-4, 1, 30):
        for shape, axis in LAID_OUT:
            logits = (5 * random.standard_normal(shape)).astype(dtype)
            teacher = (logits + distance * random.standard_normal(shape)).astype(dtype)
            losses = xent_rs.kl_divergence(logits, teacher, axis=axis, reduction="none", **options)
            assert (losses >= 0).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=lambda dtype: dtype.__name__)
@others
def test_others_keep_their_digits_where_the_two_are_nearly_the_same(level, dtype, options, random):
    """And where one is far above the other in all classes alike."""
    distance, rtol = (2e-4, 3e-3) if dtype == np.float32 else (1e-9, 1e-5)
    for classes in (10, 1000):
        logits = (3 * random.standard_normal((16, classes))).astype(dtype)
        teacher = (logits + distance * random.standard_normal(logits.shape)).astype(dtype)
        for offset in (0, 2.0**20):
            moved = (teacher + dtype(offset)).astype(dtype)
            base = (moved - dtype(offset)).astype(dtype)
            oracle = Divergence(Softmax(logits), Softmax(base), None, options.get("beta"))
            losses, grad = xent_rs.kl_divergence_with_grad(logits, moved, reduction="none", **options)
            if options.get("beta") == 1e-300 and dtype == np.float32:
                assert not losses.any()
                continue
            np.testing.assert_allclose(losses, oracle.losses.astype(float), rtol=rtol)
            scale = np.abs(oracle.gradients).max(axis=1, keepdims=True)
            assert (np.abs(grad - oracle.gradients) <= rtol * scale).all()


@others
@dtypes
def test_others_of_a_confident_model_keep_the_digits_of_its_leader(level, dtype, options, random):
    """Its derivative is minus the sum of the others', not a difference of numbers near 1."""
    logits = random.standard_normal((9, 12)).astype(dtype)
    logits[:, 3] += 17
    teacher = random.standard_normal((9, 12)).astype(dtype)
    wide = np.float64 if dtype == np.float64 else np.float32
    _, grad = xent_rs.kl_divergence_with_grad(
        logits, teacher, reduction="sum", out=np.empty(logits.shape, wide), **options
    )
    oracle = Divergence(Softmax(logits), Softmax(teacher), None, options.get("beta"))
    rtol = 1e-5 if wide == np.float32 else 1e-13
    if options.get("beta") != 1e-300:
        np.testing.assert_allclose(grad[:, 3], oracle.gradients[:, 3].astype(float), rtol=rtol)


@pytest.mark.parametrize("exponent", range(0, 60, 3))
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", ["reverse", "jensen_shannon"])
def test_others_at_small_temperatures(level, kind, dtype, exponent, random):
    """Of a row that is no whole vectors, and has a masked class."""
    temperature = 1.7 * 10.0**-exponent
    if dtype == np.float32 and temperature < 1e-34:
        pytest.skip("no temperature of float32 logits that are normal numbers")
    model, teacher = random.standard_normal((2, 3, 257))
    model[1, 5] = teacher[1, 5] = -math.inf
    expected = xent_rs.kl_divergence(model, teacher, kind=kind, reduction="none")
    given = [(temperature * logits).astype(dtype) for logits in (model, teacher)]
    found = xent_rs.kl_divergence(*given, kind=kind, temperature=temperature, reduction="none")
    assert found == pytest.approx(expected, rel=1e-5)
    _, grad = xent_rs.kl_divergence_with_grad(*given, kind=kind, temperature=temperature, reduction="sum")
    _, expected = xent_rs.kl_divergence_with_grad(model, teacher, kind=kind, reduction="sum")
    assert grad * temperature == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_others_are_those_of_compare(level, random):
    logits, teacher = (3 * random.standard_normal((2, 50, 300))).astype(np.float32)
    mean = xent_rs.compare(teacher, logits)
    reverse = xent_rs.kl_divergence(logits, teacher, kind="reverse")
    mixed = xent_rs.kl_divergence(logits, teacher, kind="jensen_shannon")
    assert reverse == pytest.approx(mean.reverse_kl.value, rel=1e-6)
    assert mixed == pytest.approx(mean.jensen_shannon.value, rel=1e-6)
    assert reverse == pytest.approx(xent_rs.kl_divergence(teacher, logits), rel=1e-6)


def test_mixtures_lead_from_one_divergence_to_the_other(random):
    """Divided by beta·(1 - beta); and a mixture with the weights turned is that of the two turned."""
    logits, teacher = random.standard_normal((2, 20, 9))

    def mixed(beta, model=logits, other=teacher):
        return xent_rs.kl_divergence(model, other, kind="jensen_shannon", beta=beta)

    for beta, kind in ((1e-9, "forward"), (1 - 1e-9, "reverse")):
        expected = xent_rs.kl_divergence(logits, teacher, kind=kind)
        assert mixed(beta) / (beta * (1 - beta)) == pytest.approx(expected, rel=1e-6)
    for beta in (0.2, 0.5):
        assert mixed(beta) == pytest.approx(mixed(1 - beta, teacher, logits), rel=1e-14)
    assert 0 < mixed(0.5) < math.log(2)


INF = math.inf
# The model's row, the teacher's; KL(model || teacher); that of both from a mixture, a quarter the teacher's.
OTHER_ROWS = {
    "masked in both": ([1, -INF, 1], [1, -INF, 1], 0.0, 0.0),
    "masked in the teacher": (
        [0, 0],
        [5, -INF],
        INF,
        math.log(8 / 5) * 0.625 + math.log(8 / 3) * 0.375 - 0.75 * math.log(2),
    ),
    "masked in the model": ([5, -INF], [0, 0], math.log(2), None),
    "masked in one each": ([0, -INF], [-INF, 0], INF, None),
    "far apart": ([300, 0], [0, 300], 300.0, None),
    "beyond all floats": ([-3e38, 0], [3e38, 0], None, None),
    "NaN in the model": ([0, math.nan], [0, 0], math.nan, math.nan),
    "+inf in the teacher": ([0, 0], [0, INF], math.nan, math.nan),
    "NaN where both are masked otherwise": ([0, math.nan], [0, -INF], math.nan, math.nan),
    "nothing but masked": ([-INF, -INF], [0, 0], math.nan, math.nan),
    "one class": ([3], [-7], 0.0, 0.0),
}


@pytest.mark.parametrize(("row", "teacher", "reverse", "mixed"), OTHER_ROWS.values(), ids=OTHER_ROWS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize("count", [3, 300])
def test_row_of_others(level, dtype, row, teacher, reverse, mixed, count):
    """Alone and among many classes that both mask; rows beside it are not touched."""
    wide = [[*each, *[-INF] * (count - len(each))] for each in (row, teacher)]
    plain = np.where(np.arange(count) < len(row), np.arange(count), -INF)
    logits, teachers = np.array([plain, wide[0], plain], dtype), np.array([plain, wide[1], plain], dtype)
    for options, expected in (
        ({"kind": "reverse"}, reverse),
        ({"kind": "jensen_shannon", "beta": 0.25}, mixed),
    ):
        if expected is None:
            beta = options.get("beta")
            oracle = Divergence(Softmax(logits[1:2]), Softmax(teachers[1:2]), None, beta)
            expected = float(oracle.losses[0])
        losses, grad = xent_rs.kl_divergence_with_grad(logits, teachers, reduction="none", **options)
        rtol = 1e-6 if dtype == np.float32 else 1e-14
        np.testing.assert_allclose(losses, [0, expected, 0], rtol=rtol, atol=1e-30)
        assert not grad[[0, 2]].any()
        masked = np.isneginf(logits[1])
        if math.isnan(expected):
            assert np.isnan(grad[1]).all()
        else:
            assert not grad[1][masked].any()
            assert (np.isfinite if expected < INF else np.isnan)(grad[1][~masked]).all()


# The model's row, the teacher's; the divergence.
ROWS = {
    "the same": ([1, 2, 3], [1, 2, 3], 0.0),
    "the same, shifted": ([1, 2, 3], [1e8, 1e8 + 8, 1e8 + 16], None),
    "a fair coin from a certain one": ([0, 0], [200, 0], math.log(2)),
    "a certain coin from a fair one": ([120, 0], [0, 0], 60 - math.log(2)),
    "masked in both": ([1, -math.inf, 1], [1, -math.inf, 1], 0.0),
    "masked in the teacher": ([0, 0], [5, -math.inf], math.log(2)),
    "masked in the model": ([5, -math.inf], [0, 0], math.inf),
    "nothing but masked, model": ([-math.inf, -math.inf], [0, 0], math.nan),
    "nothing but masked, teacher": ([0, 0], [-math.inf, -math.inf], math.nan),
    "NaN in the model": ([0, math.nan], [0, 0], math.nan),
    "NaN in the teacher": ([0, 0], [0, math.nan], math.nan),
    "NaN in the model where the teacher is masked": ([0, math.nan], [0, -math.inf], math.nan),
    "+inf in the model": ([0, math.inf], [0, 0], math.nan),
    "+inf in the teacher": ([0, 0], [0, math.inf], math.nan),
    "one class": ([3], [-7], 0.0),
}


@pytest.mark.parametrize(("row", "teacher", "expected"), ROWS.values(), ids=ROWS)
@dtypes
def test_row(level, dtype, row, teacher, expected):
    if expected is None:
        expected = float(KlDivergence(*(Softmax(np.array([r], "f8")) for r in (row, [0, 8, 16]))).losses[0])
        if dtype.itemsize == 2:
            return
    plain = np.arange(len(row))
    logits, teachers = np.array([plain, row, plain], dtype), np.array([plain + 1, teacher, plain + 1], dtype)
    losses, grad = xent_rs.kl_divergence_with_grad(logits, teachers, reduction="none")
    np.testing.assert_allclose(
        losses, [0, expected, 0], rtol=1e-6, atol=1e-6 if dtype != np.float64 else 1e-15
    )
    grad = grad.astype(float)
    assert np.isfinite(grad[[0, 2]]).all()
    assert np.isnan(grad[1]).all() if math.isnan(expected) else np.isfinite(grad[1]).all()
    if not math.isnan(expected):
        assert not grad[1][np.isneginf(row)].any()


def test_mean_divides_by_the_weights(random):
    logits, teacher = random.standard_normal((3, 4, 6)), random.standard_normal((3, 4, 6))
    weights = random.random((3, 4))
    rows = xent_rs.kl_divergence(logits, teacher, reduction="none")
    mean = xent_rs.kl_divergence(logits, teacher, sample_weight=weights)
    assert mean == pytest.approx((rows * weights).sum() / weights.sum(), rel=1e-14)
    assert xent_rs.kl_divergence(logits, teacher) == pytest.approx(rows.mean(), rel=1e-14)


@pytest.mark.parametrize("shape", [(0, 5), (3, 0, 5)])
def test_no_rows(shape):
    loss, grad = xent_rs.kl_divergence_with_grad(np.zeros(shape), np.zeros(shape))
    assert math.isnan(loss)
    assert grad.shape == shape
    assert xent_rs.kl_divergence(np.zeros(shape), np.zeros(shape), reduction="sum") == 0


@dtypes
def test_is_cross_entropy_less_entropy(dtype, random):
    """Of the teacher's probabilities: what distillation minimises, but for a constant."""
    logits, teacher = (3 * random.standard_normal((2, 9, 40))).astype(dtype)
    wide = np.empty(teacher.shape, np.float64 if dtype == np.float64 else np.float32)
    probabilities = xent_rs.softmax(teacher, out=wide)
    cross = xent_rs.cross_entropy(logits, probabilities, reduction="none")
    entropy = xent_rs.row_statistics(teacher).entropy
    rounding = 1e-14 if dtype == np.float64 else 2e-6
    found = xent_rs.kl_divergence(logits, teacher, reduction="none")
    np.testing.assert_allclose(found, cross - entropy, rtol=0, atol=rounding * 10)
