"""The gradient is the derivative of the returned loss, wherever it is written. Digits: `test_accuracy.py`."""

import itertools
import math

import numpy as np
import pytest
import xent_rs
from ml_dtypes import bfloat16

from .bounds import FORMATS, CrossEntropyBounds, KlDivergenceBounds, assert_within, gradient_bound
from .cases import DTYPES
from .oracle import CrossEntropy, KlDivergence, Softmax

dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)
NARROW = [np.dtype(dtype) for dtype in (np.float16, bfloat16, np.float32)]
OUTS = [*itertools.product(NARROW, NARROW), (np.dtype(np.float64), np.dtype(np.float64))]

OPTIONS = {
    "mean": {},
    "sum": {"reduction": "sum"},
    "mean, scaled": {"grad_output": -2.5},
    "sum, temperature": {"reduction": "sum", "temperature": 0.3},
    "mean, denominator": {"denominator": 3.0},
    "mean, everything": {"denominator": 12, "temperature": 1.7, "ignore_index": 2, "grad_output": 0.01},
}


def bits(array):
    return np.ascontiguousarray(array).tobytes()


@pytest.fixture
def logits(random):
    return 3 * random.standard_normal((5, 7))


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("axis", [0, 1])
def test_finite_differences(options, axis, logits):
    """Independent of every formula: the slope of the loss itself."""
    targets = np.arange(logits.shape[1 - axis]) % 3
    loss, grad = xent_rs.cross_entropy_with_grad(logits, targets, axis=axis, **options)
    loss_options = {name: value for name, value in options.items() if name != "grad_output"}
    assert loss == xent_rs.cross_entropy(logits, targets, axis=axis, **loss_options)
    step = 1e-5
    slopes = np.empty_like(logits)
    for index in np.ndindex(logits.shape):
        above, below = logits.copy(), logits.copy()
        above[index] += step
        below[index] -= step
        difference = xent_rs.cross_entropy(above, targets, axis=axis, **loss_options)
        difference -= xent_rs.cross_entropy(below, targets, axis=axis, **loss_options)
        slopes[index] = difference / (2 * step) * options.get("grad_output", 1)
    np.testing.assert_allclose(grad, slopes, rtol=0, atol=1e-8)


@dtypes
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_loss_beside_the_gradient_is_the_loss(dtype, reduction, random):
    """A flag never changes a result: the same bits, and the same type, with and without the gradient."""
    for shape in ((4, 3), (3, 100), (2, 3, 5000)):
        logits = (4 * random.standard_normal(shape)).astype(dtype)
        targets = random.integers(0, shape[-1], shape[:-1])
        targets[0] = -100
        alone = xent_rs.cross_entropy(logits, targets, reduction=reduction)
        beside, grad = xent_rs.cross_entropy_with_grad(logits, targets, reduction=reduction)
        assert type(beside) is type(alone)
        assert bits(np.asarray(beside)) == bits(np.asarray(alone))
        assert (grad.shape, grad.dtype) == (logits.shape, logits.dtype)


@pytest.mark.parametrize(("dtype", "out_dtype"), OUTS, ids=lambda dtype: dtype.name)
def test_out_of_every_allowed_dtype(level, dtype, out_dtype, random):
    """One rounding of the float32 value, whatever the logits were stored in; `out` itself comes back."""
    for classes in (1, 2, 7, 8, 15, 16, 17, 33, 64, 100, 257, 1000):
        logits = (4 * random.standard_normal((5, classes))).astype(dtype)
        targets = random.integers(0, classes, 5)
        softmax = Softmax(logits)
        out = np.full_like(logits, 7, dtype=out_dtype)
        loss, grad = xent_rs.cross_entropy_with_grad(logits, targets, out=out)
        assert grad is out
        assert loss == xent_rs.cross_entropy(logits, targets)
        expected, bound = softmax.gradients(targets) / 5, gradient_bound(softmax, targets, dtype, 1 / 5)
        assert_within("gradient", grad, expected, bound, dtype, f"{classes} classes into {out_dtype}")


@dtypes
def test_fresh_out_and_in_place_are_the_same_bits(level, dtype, random):
    """A large fresh result is stored past the cache, an aliased one must be read to the end first."""
    for shape in ((3, 5), (1, 1), (2, 3, 40), (9, 1000), (40, 32000)):
        logits = (4 * random.standard_normal(shape)).astype(dtype)
        targets = random.integers(0, shape[-1], shape[:-1])
        fresh_loss, fresh = xent_rs.cross_entropy_with_grad(logits, targets)
        out = np.full_like(logits, np.nan)
        out_loss, _ = xent_rs.cross_entropy_with_grad(logits, targets, out=out)
        in_place_loss, same = xent_rs.cross_entropy_with_grad(logits, targets, out=logits)
        assert same is logits
        assert bits(fresh) == bits(out) == bits(logits)
        assert fresh_loss == out_loss == in_place_loss


@dtypes
def test_in_place_through_another_view_of_the_same_memory(dtype, random):
    """`out=logits[:]` is the logits array to everybody but `is`."""
    logits = random.standard_normal((4, 9)).astype(dtype)
    expected = xent_rs.cross_entropy_with_grad(logits, [1, 2, 3, 4])[1]
    xent_rs.cross_entropy_with_grad(logits, [1, 2, 3, 4], out=logits[:])
    assert bits(logits) == bits(expected)


OUT_LAYOUTS = {
    "fortran": lambda shape, dtype: np.empty(shape, dtype, order="F"),
    "reversed classes": lambda shape, dtype: np.empty(shape, dtype)[..., ::-1],
    "reversed rows": lambda shape, dtype: np.empty(shape, dtype)[::-1],
    "every third class": lambda shape, dtype: np.empty((*shape[:-1], 3 * shape[-1]), dtype)[..., ::3],
    "every other row": lambda shape, dtype: np.empty((2 * shape[0], *shape[1:]), dtype)[::2],
    "misaligned": lambda shape, dtype: np.frombuffer(
        bytearray(math.prod(shape) * dtype.itemsize + 1), dtype, offset=1
    ).reshape(shape),
    "packed field": lambda shape, dtype: np.empty(shape, [("tag", "u1"), ("logit", f"V{dtype.itemsize}")])[
        "logit"
    ].view(dtype),
}


@dtypes
@pytest.mark.parametrize("layout", OUT_LAYOUTS.values(), ids=OUT_LAYOUTS)
def test_out_of_any_layout(dtype, layout, random):
    """Only the elements of `out` are written, each at its own place."""
    for shape in ((3, 5), (4, 130), (2, 3, 70)):
        logits = random.standard_normal(shape).astype(dtype)
        targets = random.integers(0, shape[-1], shape[:-1])
        out = layout(shape, dtype)
        memory = out if out.base is None else out.base
        loss, grad = xent_rs.cross_entropy_with_grad(logits, targets, out=out)
        assert grad is out
        assert memory is not None
        expected_loss, expected = xent_rs.cross_entropy_with_grad(logits, targets)
        assert loss == expected_loss
        assert bits(out) == bits(expected)


@dtypes
def test_out_between_other_data_leaves_it_alone(dtype, random):
    """Stores beyond a row's end, or alignment up to it, would change the neighbours."""
    for classes in (1, 7, 16, 33, 130):
        for start in range(5):
            frame = np.full((6, classes + 9), 7, dtype)
            logits = random.standard_normal((4, classes)).astype(dtype)
            xent_rs.cross_entropy_with_grad(logits, np.zeros(4, int), out=frame[1:5, start : start + classes])
            frame[1:5, start : start + classes] = 7
            assert (frame == 7).all()


@dtypes
def test_grad_output_scales_each_row(dtype, random):
    logits = random.standard_normal((3, 4, 6)).astype(dtype)
    targets = random.integers(0, 6, (3, 4))
    targets[1, 1] = -100
    weights = random.standard_normal((3, 4))
    softmax = Softmax(logits.reshape(12, 6))
    flat = targets.reshape(12)
    for grad_output in (
        weights,
        weights.astype(np.float32),
        weights.T.copy().T,
        weights.tolist(),
        2.5,
        np.float32(0.1),
    ):
        loss, grad = xent_rs.cross_entropy_with_grad(
            logits, targets, reduction="none", grad_output=grad_output
        )
        assert loss.shape == (3, 4)
        scale = np.broadcast_to(np.asarray(grad_output, np.float64), (3, 4)).reshape(12, 1)
        expected = softmax.gradients(flat) * scale
        bound = gradient_bound(softmax, flat, dtype, scale)
        assert_within("gradient", grad.reshape(12, 6), expected, bound, dtype, str(type(grad_output)))
    nothing = xent_rs.cross_entropy_with_grad(logits, targets, reduction="none", grad_output=0.0)[1]
    assert not nothing.any()


@dtypes
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("classes", [2, 10, 33, 127, 128, 255, 256])
def test_grad_output_of_every_magnitude(level, dtype, axis, classes, random):
    """Rows that share a vector may not share a factor: 1e30 beside 1e-30 must neither overflow nor vanish."""
    logits = random.standard_normal((200, classes)).astype(dtype)
    targets = random.integers(0, classes, 200)
    targets[::11] = -100
    grad_output = random.choice([1, 0, -1, 1e-25, 1e-30, 1e30], 200)
    softmax, scale = Softmax(logits), grad_output[:, None]
    turned = logits if axis == 1 else np.ascontiguousarray(logits.T)
    wide = dtype if dtype == np.float64 else np.dtype(np.float32)
    in_place = turned.copy()
    for out in (np.full(turned.shape, np.nan, wide), np.full_like(turned, np.nan), in_place):
        source = in_place if out is in_place else turned
        xent_rs.cross_entropy_with_grad(
            source, targets, axis=axis, reduction="none", grad_output=grad_output, out=out
        )
        got, bound = np.moveaxis(out, axis, -1), gradient_bound(softmax, targets, dtype, scale)
        assert_within("gradient", got, softmax.gradients(targets) * scale, bound, dtype, f"into {out.dtype}")


@dtypes
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("classes", [10, 64, 65, 256])
@pytest.mark.parametrize("kind", ["weights, smoothing", "probabilities", "teacher"])
def test_grad_output_of_every_magnitude_with_targets_of_all_classes(
    level, dtype, axis, classes, kind, random
):
    """The weights of a tile of rows are read once, wherever its gradients are written in the end."""
    logits, teacher = random.standard_normal((2, 60, classes)).astype(dtype)
    grad_output = random.choice([1, 0, -1, 1e-25, 1e-30, 1e30], 60)

    def turn(array):
        return array if axis == 1 else np.ascontiguousarray(array.T)

    call = xent_rs.cross_entropy_with_grad
    if kind == "teacher":
        call, targets, options = xent_rs.kl_divergence_with_grad, turn(teacher), {}
        bounds = KlDivergenceBounds(KlDivergence(Softmax(logits), Softmax(teacher)), dtype)
    else:
        weight = random.uniform(0.5, 2, classes)
        if kind == "probabilities":
            options = {"weight": weight}
            targets = random.random((60, classes), np.float32)
        else:
            options = {"weight": weight, "label_smoothing": 0.2}
            targets = random.integers(0, classes, 60)
            targets[::7] = -100
        oracle = CrossEntropy(Softmax(logits), targets, **options)
        bounds, targets = CrossEntropyBounds(oracle, dtype), turn(targets) if targets.ndim > 1 else targets
    out = np.full(turn(logits).shape, np.nan, dtype if dtype == np.float64 else np.float32)
    call(turn(logits), targets, axis=axis, reduction="none", grad_output=grad_output, out=out, **options)
    scale = grad_output[:, None]
    got, expected = np.moveaxis(out, axis, -1), bounds.oracle.gradients * scale
    assert_within("soft gradient", got, expected, bounds.gradients(scale), dtype, kind)


@dtypes
@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("classes", [2, 10, 127, 128, 255, 256])
def test_ignored_rows_between_others_along_an_inner_axis(level, dtype, classes, in_place, random):
    """One lane of a vector is ignored, and holds NaN; its neighbours are none the wiser."""
    logits = random.standard_normal((3, classes, 33)).astype(dtype)
    targets = random.integers(0, classes, (3, 33))
    targets[random.random((3, 33)) < 0.3] = -100
    rows, flat = np.moveaxis(logits, 1, -1).reshape(99, classes), targets.reshape(99)
    softmax, count = Softmax(rows), int((targets != -100).sum())
    np.moveaxis(logits, 1, -1)[targets == -100] = np.nan
    out = logits if in_place else np.full_like(logits, np.nan)
    loss, grad = xent_rs.cross_entropy_with_grad(logits, targets, axis=1, out=out)
    assert grad is out
    assert loss == pytest.approx(float(softmax.losses(flat).sum() / count), rel=1e-6)
    got = np.moveaxis(grad, 1, -1).reshape(99, classes)
    assert not got[flat == -100].any()
    bound = gradient_bound(softmax, flat, dtype, 1 / count)
    assert_within("gradient", got, softmax.gradients(flat) / count, bound, dtype)


@dtypes
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("garbage", [np.nan, np.inf, -np.inf, 1.0])
def test_ignored_rows_have_gradients_of_exact_zeros(dtype, reduction, garbage, random):
    for shape in ((4, 3), (4, 100), (4, 40_000)):
        logits = random.standard_normal(shape).astype(dtype)
        logits[[0, 2]] = garbage
        targets = np.array([-100, 1, -100, 2])
        for out in (None, np.full_like(logits, np.nan), logits):
            _, grad = xent_rs.cross_entropy_with_grad(logits, targets, reduction=reduction, out=out)
            assert not grad[[0, 2]].any()
            assert grad[[1, 3]].any(axis=1).all()


@dtypes
@pytest.mark.parametrize("shape", [(0, 5), (3, 0, 5), (4, 5)])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_no_row_counts(dtype, shape, reduction):
    """0/0 makes the mean NaN, never its gradient."""
    logits, targets = np.ones(shape, dtype), np.full(shape[:-1], -100)
    loss, grad = xent_rs.cross_entropy_with_grad(logits, targets, reduction=reduction)
    if reduction == "mean":
        assert math.isnan(loss)
    else:
        assert not np.any(loss)
    assert (grad.shape, grad.dtype) == (shape, dtype)
    assert not grad.any()


@dtypes
def test_single_sample_and_one_class(dtype):
    loss, grad = xent_rs.cross_entropy_with_grad(np.array([1, 1], dtype), 1)
    assert loss == pytest.approx(math.log(2))
    digits = FORMATS[dtype][0]
    np.testing.assert_allclose(grad.astype(np.float64), [0.5, -0.5], rtol=2.0 ** (1 - digits))
    loss, grad = xent_rs.cross_entropy_with_grad(np.array([3], dtype), 0)
    assert (loss, grad) == (0, 0)


@dtypes
def test_rows_add_up_to_zero(level, dtype, random):
    """|sum of a row| <= what the bounds and the storage of its entries allow."""
    u = 2.0**-53 if dtype == np.float64 else 2.0**-24
    out_dtype = dtype if dtype == np.float64 else np.float32
    for classes in (2, 17, 1000, 50_257):
        logits = (4 * random.standard_normal((3, classes))).astype(dtype)
        _, grad = xent_rs.cross_entropy_with_grad(
            logits, random.integers(0, classes, 3), reduction="none", out=np.empty(logits.shape, out_dtype)
        )
        sums = grad.astype(np.longdouble).sum(axis=1)
        assert (np.abs(sums) <= u * (2 * np.log(classes) + 4)).all()


def test_confident_target_keeps_its_digits():
    """p_y - 1 in float32 would be 0: exp(-17) is below half an ulp of 1."""
    for dtype in DTYPES:
        _, grad = xent_rs.cross_entropy_with_grad(
            np.array([[17, 0]], dtype),
            [0],
            out=np.empty((1, 2), np.float64 if dtype == np.float64 else np.float32),
        )
        expected = math.exp(-17) / (1 + math.exp(-17))
        np.testing.assert_allclose(grad, [[-expected, expected]], rtol=2e-6)


def test_uninitialised_results_are_filled(random):
    """A reused buffer of an earlier result must not shine through."""
    shape, targets = (64, 40_000), random.integers(0, 40_000, 64)
    logits = random.standard_normal(shape).astype(np.float32)
    expected = bits(xent_rs.cross_entropy_with_grad(logits, targets)[1])
    for _ in range(3):
        other = xent_rs.cross_entropy_with_grad(-logits, targets)[1]
        assert bits(other) != expected
        del other
        assert bits(xent_rs.cross_entropy_with_grad(logits, targets)[1]) == expected


def test_results_kept_alive_are_not_overwritten(random):
    logits = random.standard_normal((64, 40_000)).astype(np.float32)
    targets = np.zeros(64, int)
    first = xent_rs.cross_entropy_with_grad(logits, targets)[1]
    view = first[3]
    before = bits(first), bits(view)
    del first
    for factor in (2, 3, 4):
        xent_rs.cross_entropy_with_grad(factor * logits, targets)
    assert bits(view) == before[1]


@pytest.mark.parametrize("order", ["C", "F"])
def test_where_the_gradient_goes_does_not_change_the_loss(order, random):
    """An inner class axis takes another kernel; the layout of `out` must not choose it."""
    logits = random.standard_normal((100, 64)).astype(np.float32) * 5
    targets = random.integers(0, 100, 64)
    out = np.empty(logits.shape, np.float32, order)
    loss, _ = xent_rs.cross_entropy_with_grad(logits, targets, axis=0, out=out)
    assert loss == xent_rs.cross_entropy(logits, targets, axis=0)


@pytest.mark.parametrize("scale", [1e60, np.inf])
def test_a_masked_class_has_no_gradient_whatever_multiplies_it(scale):
    logits = np.array([[1, 2, -np.inf]], np.float32)
    for rows in (1, 100):
        _, grad = xent_rs.cross_entropy_with_grad(
            logits.repeat(rows, 0), np.zeros(rows, int), grad_output=scale, reduction="sum"
        )
        assert (grad[:, 2] == 0).all()
        assert (grad[:, 1] == np.inf).all()


@dtypes
def test_where_the_gradient_goes_changes_no_bit_of_the_loss(level, dtype, random):
    """Rows that lie lane by lane, and gradients that do not lie so, or are of another type."""
    for classes in (3, 60, 300, 1000, 5000):
        logits = np.asfortranarray((4 * random.standard_normal((64, classes))).astype(dtype))
        targets = random.integers(0, classes, 64)
        expected = xent_rs.cross_entropy(logits, targets, reduction="none")
        outs = [None, np.empty((64, classes), dtype), np.empty((64, classes), dtype, order="F")]
        if dtype != np.float64:
            outs.append(np.empty((64, classes), np.float16))
        oracle = CrossEntropy(Softmax(logits), targets)
        for out in outs:
            losses, grad = xent_rs.cross_entropy_with_grad(logits, targets, reduction="none", out=out)
            assert bits(losses) == bits(expected)
            bound = CrossEntropyBounds(oracle, dtype).gradients()
            assert_within("gradient", grad, oracle.gradients, bound, dtype)


@pytest.mark.parametrize("scale", [1, 10, 30, 100, 400])
@dtypes
def test_targets_far_below_the_others(level, dtype, scale, random):
    """Logits so wide that many targets are out of reach of what their exponentials are relative to."""
    for classes, axis in [(2, 1), (10, 1), (100, 1), (300, 1), (5000, 1), (10, 0), (300, 0), (5000, 0)]:
        rows = (scale * random.standard_normal((40, classes))).astype(dtype)
        targets = random.integers(0, classes, 40)
        logits = rows if axis else np.ascontiguousarray(rows.T)
        oracle = CrossEntropy(Softmax(rows), targets)
        bounds = CrossEntropyBounds(oracle, dtype)
        call = {"axis": axis, "reduction": "none"}
        losses, grad = xent_rs.cross_entropy_with_grad(logits, targets, **call)
        assert bits(losses) == bits(xent_rs.cross_entropy(logits, targets, **call))
        assert_within("loss", losses, oracle.losses, bounds.losses, dtype)
        gradients = np.moveaxis(grad, axis, -1)
        assert_within("gradient", gradients, oracle.gradients, bounds.gradients(), dtype)
        in_place = logits.copy()
        xent_rs.cross_entropy_with_grad(in_place, targets, out=in_place, **call)
        assert bits(in_place) == bits(grad)


@dtypes
def test_a_vocabulary_written_past_the_cache(level, dtype, random):
    """Rows of more than 4096 classes with ignored, masked and bad ones, in an array of more than 16 MiB."""
    classes = 33_333
    rows = 2**24 // (classes * dtype.itemsize) + 3
    logits = (4 * random.standard_normal((rows, classes))).astype(dtype)
    targets = random.integers(0, classes, rows)
    targets[::5] = -100
    logits[1::5] = np.where(random.random(classes) < 0.5, -math.inf, logits[1::5])
    logits[2::50, 7], logits[3, targets[3]] = math.nan, -math.inf
    losses, grad = xent_rs.cross_entropy_with_grad(logits, targets, reduction="none")
    for row in range(min(rows, 60)):
        alone = xent_rs.cross_entropy_with_grad(logits[row], targets[row], reduction="none")
        assert bits(losses[row]) == bits(alone[0])
        assert bits(grad[row]) == bits(alone[1])
    xent_rs.cross_entropy_with_grad(logits, targets, reduction="none", out=logits)
    assert bits(logits) == bits(grad)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_factors_that_overflow(level, dtype):
    """What the gradient is multiplied by is infinite, and the target's own part still no NaN."""
    one_class = np.zeros((2, 1), dtype)
    grad = xent_rs.cross_entropy_with_grad(one_class, [0, 0], denominator=1e-310)[1]
    np.testing.assert_array_equal(grad, [[0], [0]])
    two = xent_rs.cross_entropy_with_grad(np.zeros((1, 2), dtype), [0], denominator=1e-310)[1]
    np.testing.assert_array_equal(two, [[-math.inf, math.inf]])
    options = {"weight": np.full(3, 1e200), "grad_output": np.array([1e200]), "reduction": "none"}
    three = xent_rs.cross_entropy_with_grad(np.zeros((1, 3), dtype), [1], **options)[1]
    np.testing.assert_array_equal(three, [[math.inf, -math.inf, math.inf]])
