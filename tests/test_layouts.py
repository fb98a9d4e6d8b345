"""Any memory layout gives the bits of the contiguous, native, aligned copy.

But for rows of 1 KiB or more along an axis that is not the last: where such rows lie lane by lane in memory,
another kernel takes them. What it returns is as accurate, but not the same to the last bit.
"""

import math

import numpy as np
import pytest
import xent_rs
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_dtypes import bfloat16

from .bounds import FORMATS, CrossEntropyBounds, KlDivergenceBounds, assert_within
from .cases import DTYPES
from .oracle import CrossEntropy, KlDivergence, Softmax

dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def reversed_along(axis):
    def layout(array):
        index = (slice(None),) * (axis % array.ndim) + (slice(None, None, -1),)
        return np.ascontiguousarray(array[index])[index]

    return layout


def stepped_along(axis, step):
    def layout(array):
        shape = list(array.shape)
        shape[axis] *= step
        index = (slice(None),) * (axis % array.ndim) + (slice(None, None, step),)
        frame = np.full(shape, 99, array.dtype)
        frame[index] = array
        return frame[index]

    return layout


def misaligned(array):
    same = np.frombuffer(bytearray(array.nbytes + 1), array.dtype, array.size, offset=1).reshape(array.shape)
    same[...] = array
    return same


def packed_field(array):
    """Strides that are no multiple of the item size."""
    records = np.zeros(array.shape, [("tag", "u1"), ("logit", f"V{array.itemsize}")])
    records["logit"] = array.view(f"V{array.itemsize}")
    return records["logit"].view(array.dtype)


def padded_rows(array):
    frame = np.full((*array.shape[:-1], array.shape[-1] + 3), 99, array.dtype)
    frame[..., 1:-2] = array
    return frame[..., 1:-2]


def axes_turned(array):
    return np.ascontiguousarray(array.transpose()).transpose()


def axes_rolled(array):
    """The first axis is the fastest, the others keep their order."""
    return np.moveaxis(np.ascontiguousarray(np.moveaxis(array, 0, -1)), -1, 0)


def read_only(array):
    array = array.copy()
    array.flags.writeable = False
    return array


def byte_swapped(array):
    return array.astype(array.dtype.newbyteorder())


def byte_swapped_misaligned_reversed(array):
    return reversed_along(-1)(misaligned(byte_swapped(array)))


class Subclass(np.ndarray):
    """Whatever arithmetic or indexing it redefines, its memory counts."""

    def __getitem__(self, index):
        raise AssertionError("indexed")


LAYOUTS = {
    "contiguous": lambda array: array.copy(),
    "reversed classes": reversed_along(-1),
    "reversed rows": reversed_along(0),
    "every other class": stepped_along(-1, 2),
    "every fifth class": stepped_along(-1, 5),
    "every other row": stepped_along(0, 2),
    "padded rows": padded_rows,
    "turned": axes_turned,
    "rolled": axes_rolled,
    "misaligned": misaligned,
    "packed field": packed_field,
    "read-only": read_only,
    "byte-swapped": byte_swapped,
    "byte-swapped, misaligned, reversed": byte_swapped_misaligned_reversed,
    "subclass": lambda array: array.copy().view(Subclass),
}


def results(logits, targets, axis, **options):
    """Everything that the functional API returns for these logits, as bits."""
    losses, grad = xent_rs.cross_entropy_with_grad(logits, targets, axis=axis, reduction="none", **options)
    mean, mean_grad = xent_rs.cross_entropy_with_grad(logits, targets, axis=axis, **options)
    temperature = {"temperature": options.get("temperature", 1.0)}
    # The same targets for every layout: where gradients are next to nothing, their last bits would count.
    lying_alike = np.ascontiguousarray(np.moveaxis(np.asarray(logits), axis, -1))
    probabilities = np.ascontiguousarray(np.moveaxis(xent_rs.softmax(lying_alike, **temperature), -1, axis))
    row = {"axis": axis, "reduction": "none", **temperature}
    soft = xent_rs.cross_entropy_with_grad(
        logits, probabilities, label_smoothing=0.1, z_loss=0.1, softcap=9.0, **row
    )
    hess = xent_rs.cross_entropy_with_grad_hess(logits, targets, label_smoothing=0.1, axis=axis, **options)[2]
    divergences, divergence_grad = xent_rs.kl_divergence_with_grad(logits, probabilities, **row)
    binary, binary_grad = xent_rs.binary_cross_entropy_with_grad(logits, probabilities, reduction="none")
    statistics = xent_rs.row_statistics(logits, axis=axis, softcap=9.0, **temperature)
    arrays = {
        "losses": losses,
        "gradient": grad,
        "mean": np.float64(mean),
        "gradient of the mean": mean_grad,
        "loss alone": xent_rs.cross_entropy(logits, targets, axis=axis, reduction="none", **options),
        "mean alone": np.float64(xent_rs.cross_entropy(logits, targets, axis=axis, **options)),
        "logsumexp": xent_rs.logsumexp(logits, axis=axis, **temperature),
        "softmax": xent_rs.softmax(logits, axis=axis, **temperature),
        "loss of soft targets": soft[0],
        "gradient of soft targets": soft[1],
        "Hessian": hess,
        "divergences": divergences,
        "gradient of the divergence": divergence_grad,
        "binary": binary,
        "gradient, binary": binary_grad,
        "argmax": statistics.argmax,
        "max_probability": statistics.max_probability,
        "entropy": statistics.entropy,
        "log_softmax": xent_rs.log_softmax(logits, axis=axis, **temperature),
    }
    return {
        name: (np.shape(array), np.asarray(array).dtype, np.ascontiguousarray(array).tobytes())
        for name, array in arrays.items()
    }


def differing(expected, got):
    """The names of the results that are not the same."""
    return [name for name, value in expected.items() if got[name] != value]


def assert_same_bits(logits, same, targets, axis, **options):
    expected, got = results(logits, targets, axis, **options), results(same, targets, axis, **options)
    about = f"shape {logits.shape} along axis {axis}"
    row_bytes = logits.shape[axis] * max(4, logits.dtype.itemsize)
    if row_bytes < 1024 or axis % logits.ndim == logits.ndim - 1:
        assert differing(expected, got) == [], about
        return
    for name in differing(expected, got):
        (shape, dtype, _), (got_shape, got_dtype, _) = expected[name], got[name]
        assert (shape, dtype) == (got_shape, got_dtype), f"{name}, {about}"
        first, second = (np.frombuffer(found[name][2], dtype).astype(np.float64) for found in (expected, got))
        digits = FORMATS[dtype][0] if dtype.itemsize == 2 else {4: 17, 8: 46}[logits.dtype.itemsize]
        # Entries of these gradients are p - t, and may be next to nothing.
        difference = name in ("gradient of the divergence", "gradient of soft targets")
        atol = np.finfo(first.dtype).eps * np.abs(first).max() if difference and dtype.itemsize == 8 else 0
        np.testing.assert_allclose(
            second, first, rtol=2.0 ** (1 - digits), atol=atol, err_msg=f"{name}, {about}"
        )


SHAPES = [(1, 1), (3, 5), (5, 3), (4, 16), (2, 33), (2, 3, 20), (3, 2, 2, 70), (7, 130), (200, 9), (2, 5000)]


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@dtypes
def test_layout_changes_no_bit(level, dtype, layout, random):
    for shape in SHAPES:
        logits = (4 * random.standard_normal(shape)).astype(dtype)
        same = layout(logits)
        assert np.ndarray.tobytes(same.astype(dtype)) == logits.tobytes()
        for axis in range(-len(shape), 0):
            targets = random.integers(0, shape[axis], np.delete(shape, axis))
            targets.reshape(-1)[::5] = -100
            assert_same_bits(logits, same, targets, axis)


@dtypes
def test_broadcast_logits(level, dtype, random):
    """Strides of 0, read-only: every row is the same row, or every class the same number."""
    row = random.standard_normal((1, 70)).astype(dtype)
    column = random.standard_normal((6, 1)).astype(dtype)
    for logits in (
        np.broadcast_to(row, (6, 70)),
        np.broadcast_to(column, (6, 70)),
        np.broadcast_to(row[0, 0], (6, 70)),
    ):
        assert 0 in logits.strides
        targets = random.integers(0, 70, 6)
        assert_same_bits(logits.copy(), logits, targets, -1)
        assert_same_bits(logits.copy(), logits, random.integers(0, 6, 70), 0)


@dtypes
def test_overlapping_windows(dtype, random):
    """Rows that share elements, as of a sliding window."""
    logits = np.lib.stride_tricks.sliding_window_view(random.standard_normal(40).astype(dtype), 9)
    assert_same_bits(logits.copy(), logits, random.integers(0, 9, len(logits)), -1)


@dtypes
def test_axes_of_length_one_may_have_any_stride(dtype, random):
    """NumPy leaves nonsense in the strides of an axis with a single element."""
    row = random.standard_normal(40).astype(dtype)
    for strides in ((2**62, dtype.itemsize), (-(2**62), dtype.itemsize), (1, dtype.itemsize)):
        logits = np.lib.stride_tricks.as_strided(row, (1, 40), strides)
        assert_same_bits(row[None], logits, np.array([7]), -1)
    for stride in (2**62, -(2**62), 1, 0):
        logits = np.lib.stride_tricks.as_strided(row, (40, 1), (dtype.itemsize, stride))
        assert_same_bits(row[:, None], logits, np.zeros(40, int), -1)


@dtypes
@pytest.mark.parametrize("shape", [(0, 4), (0, 1), (3, 0, 4), (0, 0, 4), (1, 0, 2, 4)])
def test_no_rows_in_any_layout(dtype, shape):
    """rust-numpy panics on the strides of empty arrays."""
    logits = np.zeros(shape, dtype)
    targets = np.zeros(shape[:-1], int)
    for same in (
        logits,
        np.asfortranarray(logits),
        logits[..., ::-1],
        logits[::-1],
        logits.transpose().transpose(),
    ):
        assert_same_bits(logits, same, targets, -1)
    if logits.ndim == 2 and shape[1] > 0:
        turned = logits.T
        assert xent_rs.softmax(turned, axis=0).shape == turned.shape
        assert xent_rs.cross_entropy(turned, targets, axis=0, reduction="sum") == 0


def test_unpickled_empty_array_is_taken():
    """Its address may be misaligned."""
    import pickle

    buffers = []
    data = pickle.dumps(np.zeros((0, 5), np.float32), protocol=5, buffer_callback=buffers.append)
    logits = pickle.loads(data, buffers=[bytearray(b"x")[1:]] if buffers else None)
    assert math.isnan(xent_rs.cross_entropy(logits, np.zeros(0, int)))


@dtypes
def test_read_only_memory_map(dtype, tmp_path, random):
    logits = (4 * random.standard_normal((5, 700))).astype(dtype)
    for offset in (0, 1, 128):
        path = tmp_path / f"logits-{offset}"
        path.write_bytes(bytes(offset) + logits.tobytes())
        mapped = np.memmap(path, dtype, "r", offset, (5, 700))
        assert_same_bits(logits, mapped, random.integers(0, 700, 5), -1)
        assert type(xent_rs.softmax(mapped)) is np.ndarray


def test_many_axes(random):
    """NumPy allows 64; every one is walked."""
    logits = random.standard_normal((2,) * 12).astype(np.float32)
    turned = logits.transpose()[::-1].copy()[::-1].transpose()
    for axis in (0, 5, -1):
        assert_same_bits(logits, turned, random.integers(0, 2, (2,) * 11), axis)
    deep = random.standard_normal((1,) * 31 + (5,)).astype(np.float32)
    assert xent_rs.cross_entropy(deep, np.full((1,) * 31, 3)) == xent_rs.cross_entropy(deep.reshape(5), 3)


@st.composite
def layouts_of_anything(draw):
    """(contiguous logits, the same in some layout, targets, axis, options)."""
    dtype = draw(st.sampled_from(DTYPES))
    shape = tuple(draw(st.lists(st.integers(0, 5), max_size=3)))
    axis = draw(st.integers(0, len(shape)))
    shape = (*shape[:axis], draw(st.integers(1, 40)), *shape[axis:])
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    logits = (draw(st.sampled_from([1e-3, 1, 30])) * random.standard_normal(shape)).astype(dtype)

    # A larger array, its axes in another order, of which a stepped slice is taken.
    order = draw(st.permutations(range(len(shape))))
    steps = [draw(st.sampled_from([1, 1, 2, 3, -1, -2])) for _ in shape]
    starts = [draw(st.integers(0, 2)) for _ in shape]
    index = tuple(
        slice(start, start + size * step, step)
        if step > 0
        else slice(start + size * -step - 1, start - 1 if start else None, step)
        for start, size, step in zip(starts, shape, steps, strict=True)
    )
    frame_shape = [start + size * abs(step) for start, size, step in zip(starts, shape, steps, strict=True)]
    frame = np.full([frame_shape[i] for i in order], 99, dtype)
    if draw(st.booleans()):
        frame = misaligned(frame)
    if draw(st.booleans()):
        frame = byte_swapped(frame)
    same = frame.transpose(np.argsort(order))[index]
    same[...] = logits

    rows = (*shape[:axis], *shape[axis + 1 :])
    integer = draw(st.sampled_from("bhilqBHILQ"))
    targets = np.asarray(random.integers(0, shape[axis], rows), integer)
    ignore_index = draw(st.sampled_from([-100, 0, 200]))
    if integer.islower() and ignore_index == -100:
        targets = np.where(random.random(rows) < 0.2, -100, targets).astype(integer)
    options = {"ignore_index": ignore_index, "temperature": draw(st.sampled_from([1.0, 0.5, 1.3]))}
    return logits, same, targets, draw(st.sampled_from([axis, axis - len(shape)])), options


@settings(max_examples=400)
@given(layouts_of_anything())
def test_any_slice_of_any_array(case):
    logits, same, targets, axis, options = case
    np.testing.assert_array_equal(same.astype(logits.dtype), logits)
    assert_same_bits(logits, same, targets, axis, **options)


@settings(max_examples=100)
@given(layouts_of_anything(), st.booleans())
def test_any_slice_as_out(case, in_place):
    logits, same, targets, axis, options = case
    if not same.dtype.isnative:
        return
    expected = xent_rs.cross_entropy_with_grad(logits, targets, axis=axis, **options)[1]
    source = same if in_place else logits
    _, grad = xent_rs.cross_entropy_with_grad(source, targets, axis=axis, out=same, **options)
    assert grad is same
    assert np.ascontiguousarray(same).tobytes() == expected.tobytes()


@pytest.mark.parametrize("classes", [10, 127, 257, 1000])
@pytest.mark.parametrize(
    "dtype", [np.float16, bfloat16, np.float32, np.float64], ids=lambda dtype: np.dtype(dtype).name
)
@pytest.mark.parametrize("logits_dtype", [np.float16, np.float32, np.float64])
def test_targets_need_not_lie_as_the_logits_do(logits_dtype, dtype, classes, level, random):
    """Probabilities and teachers of any type, class by class beside logits row by row, and the other way."""
    for rows in (5, 16, 20, 40):
        logits = random.standard_normal((rows, classes)).astype(logits_dtype)
        shares = (random.random((rows, classes)) / classes).astype(dtype)
        wide = shares.astype(np.float64)
        of_shares = CrossEntropy(Softmax(logits), wide)
        of_teachers = KlDivergence(Softmax(logits), Softmax(wide))
        for order, other in ("CF", "FC", "FF"):
            here, there = np.asarray(logits, order=order), np.asarray(shares, order=other)
            for oracle, bounds, call in (
                (of_shares, CrossEntropyBounds, xent_rs.cross_entropy),
                (of_teachers, KlDivergenceBounds, xent_rs.kl_divergence),
            ):
                bound = bounds(oracle, here.dtype).losses
                found = call(here, there, reduction="none")
                assert_within("loss of other targets", found, oracle.losses, bound, here.dtype, order + other)


@pytest.mark.parametrize(
    "options", [{}, {"z_loss": 0.1}, {"label_smoothing": 0.1}, {"softcap": 5.0}], ids=str
)
@pytest.mark.parametrize("classes", [9, 200, 300, 1000, 5000])
def test_where_gradients_go_changes_no_bit(classes, options, level, random):
    """Whole tiles of rows and what is left of them, into outputs that lie as the logits do or not."""
    for rows in (16, 17, 31):
        for dtype in (np.float32, np.float64, np.float16):
            logits = random.standard_normal((classes, rows)).astype(dtype)
            targets = random.integers(0, classes, rows)
            options = {**options, "axis": 0, "reduction": "none"}
            alone = xent_rs.cross_entropy(logits, targets, **options)
            loss, grad = xent_rs.cross_entropy_with_grad(logits, targets, **options)
            out = np.zeros((rows, classes), dtype).T
            other, there = xent_rs.cross_entropy_with_grad(logits, targets, **options, out=out)
            np.testing.assert_array_equal(alone, loss)
            np.testing.assert_array_equal(loss, other)
            np.testing.assert_array_equal(grad, there)
