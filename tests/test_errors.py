"""What is wrong with a call is said before any work: (call, exception, exact text)."""

import math
import re

import numpy as np
import pytest
import xent_rs
from ml_dtypes import bfloat16
from xent_rs import cross_entropy, cross_entropy_with_grad, log_softmax, logsumexp, softmax

LOGITS = np.zeros((4, 10), np.float32)
DOUBLE = np.zeros((4, 10), np.float64)
TARGETS = np.zeros(4, np.int64)

for constant in (LOGITS, DOUBLE, TARGETS):
    constant.flags.writeable = False


class OnGpu:
    """What a CUDA tensor shows of itself."""

    shape, ndim, dtype = (4, 10), 2, np.dtype(np.float32)

    def __dlpack_device__(self):
        return 2, 0

    def __dlpack__(self, **options):
        raise AssertionError("its memory was asked for")

    def __array__(self, *args, **options):
        raise AssertionError("it was converted")


def out_of(dtype=np.float32, shape=(4, 10)):
    return np.zeros(shape, dtype)


def read_only(array):
    array.flags.writeable = False
    return array


def shared_memory():
    """Logits, targets and grad_output of one buffer, each with an `out` on top of it."""
    memory = np.zeros(400, np.float32)
    return memory, memory[:40].reshape(4, 10)


def overlapping(name):
    memory, logits = shared_memory()
    if name == "logits":
        return lambda: cross_entropy_with_grad(logits, TARGETS, out=memory[10:50].reshape(4, 10))
    if name == "targets":
        targets = memory[100:108].view(np.int64)
        return lambda: cross_entropy_with_grad(logits, targets, out=memory[100:140].reshape(4, 10))
    grad_output = memory[200:204]
    out = memory[164:204].reshape(4, 10)
    return lambda: cross_entropy_with_grad(
        logits, TARGETS, reduction="none", grad_output=grad_output, out=out
    )


def turned_over():
    """The logits' memory exactly, but another order: row i would be written over row 3 - i."""
    _, logits = shared_memory()
    return lambda: cross_entropy_with_grad(logits, TARGETS, out=logits[::-1])


def narrower_in_place():
    """The same start and another dtype: not the logits array."""
    memory, logits = shared_memory()
    return lambda: cross_entropy_with_grad(logits, TARGETS, out=memory.view(np.float16)[:40].reshape(4, 10))


def without_own_memory():
    return np.lib.stride_tricks.as_strided(np.zeros(40, np.float32), (4, 10), (0, 4))


def sliding():
    return np.lib.stride_tricks.as_strided(np.zeros(40, np.float32), (4, 10), (4, 4))


def targets(shape, at, value, dtype=np.int64):
    array = np.zeros(shape, dtype)
    array[at] = value
    return array


def logits_of(dtype):
    return lambda: cross_entropy(np.zeros((4, 10)).astype(dtype), TARGETS)


def targets_of(dtype):
    return lambda: cross_entropy(LOGITS, np.zeros(4).astype(dtype))


def temperature(value):
    return lambda: cross_entropy(LOGITS, TARGETS, temperature=value)


def denominator(value):
    return lambda: cross_entropy(LOGITS, TARGETS, denominator=value)


def out(array):
    return lambda: cross_entropy_with_grad(LOGITS, TARGETS, out=array)


DTYPE_TEXT = "logits have dtype {}; expected float16, bfloat16, float32 or float64"
TARGET_TEXT = "targets have dtype {}; expected an integer dtype (class indices)"
AXIS_TEXT = "axis is {}; expected -2 to 1 for logits of shape (4, 10)"
NARROW_TEXT = "out has dtype {}; expected float32, float16 or bfloat16 for {} logits"
POSITIVE_TEXT = "{} is {}; expected a positive finite number"
GPU_TEXT = "logits are on device type 2; expected CPU memory (device type 1)"
OVERLAP_TEXT = "out overlaps {}; expected the logits array itself or memory that no input uses"
INTERNAL_TEXT = "out has elements that share memory; expected an array without internal overlap"
IGNORE_TEXT = "; expected 0 to {}, or ignore_index {}"

TYPE_ERRORS = [
    *(
        (logits_of(d), DTYPE_TEXT.format(np.dtype(d)))
        for d in ("int64", "uint8", "bool", "complex64", "complex128")
    ),
    (logits_of(object), DTYPE_TEXT.format("object")),
    (logits_of(np.longdouble), DTYPE_TEXT.format(np.dtype(np.longdouble))),
    (logits_of("U4"), DTYPE_TEXT.format("<U4")),
    (logits_of("datetime64[s]"), DTYPE_TEXT.format("datetime64[s]")),
    (lambda: cross_entropy([[1, 2], [3, 4]], [0, 1]), DTYPE_TEXT.format("int64")),
    (lambda: logsumexp(TARGETS), DTYPE_TEXT.format("int64")),
    (lambda: softmax(TARGETS), DTYPE_TEXT.format("int64")),
    (lambda: log_softmax(TARGETS), DTYPE_TEXT.format("int64")),
    (lambda: cross_entropy_with_grad(np.zeros((4, 10), int), TARGETS), DTYPE_TEXT.format("int64")),
    *((targets_of(d), TARGET_TEXT.format(np.dtype(d))) for d in ("float32", "float64", "complex64", "bool")),
    (targets_of(object), TARGET_TEXT.format("object")),
    (lambda: cross_entropy(LOGITS, [0.0, 1.0, 2.0, 3.0]), TARGET_TEXT.format("float64")),
    (lambda: cross_entropy_with_grad(LOGITS, np.zeros(4)), TARGET_TEXT.format("float64")),
    (lambda: cross_entropy(OnGpu(), TARGETS), GPU_TEXT),
    (lambda: softmax(OnGpu()), GPU_TEXT),
    (lambda: logsumexp(OnGpu()), GPU_TEXT),
    (
        lambda: cross_entropy(np.ma.masked_array(LOGITS), TARGETS),
        "logits are a masked array; expected a plain array (mark masked classes with -inf)",
    ),
    (out([0.0]), "out is a list; expected a numpy.ndarray"),
    (lambda: softmax(LOGITS, out=bytearray(160)), "out is a bytearray; expected a numpy.ndarray"),
]

VALUE_ERRORS = [
    (
        lambda: cross_entropy(np.float32(1), 0),
        "logits have shape (); expected at least one axis, the classes",
    ),
    (lambda: logsumexp(np.array(1.0)), "logits have shape (); expected at least one axis, the classes"),
    (lambda: softmax(1.0), "logits have shape (); expected at least one axis, the classes"),
    (
        lambda: cross_entropy(np.zeros((4, 0), np.float32), TARGETS),
        "logits have shape (4, 0); expected at least one class along axis -1",
    ),
    (
        lambda: softmax(np.zeros((0, 3)), axis=0),
        "logits have shape (0, 3); expected at least one class along axis 0",
    ),
    (lambda: logsumexp(np.zeros((0,))), "logits have shape (0,); expected at least one class along axis -1"),
    (lambda: cross_entropy(LOGITS, TARGETS, axis=2), AXIS_TEXT.format(2)),
    (lambda: cross_entropy(LOGITS, TARGETS, axis=-3), AXIS_TEXT.format(-3)),
    (lambda: softmax(LOGITS, axis=10**6), AXIS_TEXT.format(10**6)),
    (lambda: log_softmax(LOGITS, axis=2), AXIS_TEXT.format(2)),
    (lambda: logsumexp(LOGITS, axis=2), AXIS_TEXT.format(2)),
    (lambda: softmax(np.zeros(3), axis=1), "axis is 1; expected -1 to 0 for logits of shape (3,)"),
    (
        lambda: cross_entropy(LOGITS, TARGETS[:3]),
        "targets have shape (3,); expected (4,), the shape of logits (4, 10) without axis -1",
    ),
    (
        lambda: cross_entropy(LOGITS, TARGETS[:, None]),
        "targets have shape (4, 1); expected (4,), the shape of logits (4, 10) without axis -1",
    ),
    (
        lambda: cross_entropy(LOGITS, 0),
        "targets have shape (); expected (4,), the shape of logits (4, 10) without axis -1",
    ),
    (
        lambda: cross_entropy(LOGITS, TARGETS, axis=0),
        "targets have shape (4,); expected (10,), the shape of logits (4, 10) without axis 0",
    ),
    (
        lambda: cross_entropy(LOGITS[0], TARGETS),
        "targets have shape (4,); expected (), the shape of logits (10,) without axis -1",
    ),
    *(
        (temperature(value), POSITIVE_TEXT.format("temperature", text))
        for value, text in (
            (0.0, "0.0"),
            (-0.0, "-0.0"),
            (-1.5, "-1.5"),
            (math.nan, "nan"),
            (math.inf, "inf"),
        )
    ),
    (lambda: softmax(LOGITS, temperature=-2.0), POSITIVE_TEXT.format("temperature", "-2.0")),
    (lambda: log_softmax(LOGITS, temperature=0.0), POSITIVE_TEXT.format("temperature", "0.0")),
    (lambda: logsumexp(LOGITS, temperature=math.nan), POSITIVE_TEXT.format("temperature", "nan")),
    (
        lambda: cross_entropy(LOGITS, TARGETS, reduction="avg"),
        "reduction is 'avg'; expected 'mean', 'sum' or 'none'",
    ),
    (
        lambda: cross_entropy_with_grad(LOGITS, TARGETS, reduction="Mean"),
        "reduction is 'Mean'; expected 'mean', 'sum' or 'none'",
    ),
    *(
        (denominator(value), POSITIVE_TEXT.format("denominator", text))
        for value, text in ((0.0, "0.0"), (-3.0, "-3.0"), (math.nan, "nan"), (math.inf, "inf"))
    ),
    *(
        (
            lambda reduction=reduction: cross_entropy(LOGITS, TARGETS, reduction=reduction, denominator=2.0),
            f"denominator is given with reduction '{reduction}'; "
            "expected reduction 'mean', whose divisor it replaces",
        )
        for reduction in ("sum", "none")
    ),
    *(
        (
            lambda reduction=reduction: cross_entropy_with_grad(
                LOGITS, TARGETS, reduction=reduction, grad_output=np.zeros(3)
            ),
            f"grad_output has shape (3,); expected a scalar for reduction '{reduction}'",
        )
        for reduction in ("mean", "sum")
    ),
    (
        lambda: cross_entropy_with_grad(LOGITS, TARGETS, reduction="none", grad_output=np.zeros(3)),
        "grad_output has shape (3,); expected a scalar or shape (4,) for reduction 'none'",
    ),
    (out(read_only(out_of())), "out is read-only; expected a writeable array"),
    (out(out_of(shape=(4, 9))), "out has shape (4, 9); expected (4, 10)"),
    (out(out_of(shape=(40,))), "out has shape (40,); expected (4, 10)"),
    (out(out_of(np.float64)), NARROW_TEXT.format("float64", "float32")),
    (out(out_of(np.int32)), NARROW_TEXT.format("int32", "float32")),
    (out(out_of(">f4")), NARROW_TEXT.format(">f4", "float32")),
    (
        lambda: softmax(LOGITS.astype(np.float16), out=out_of(np.float64)),
        NARROW_TEXT.format("float64", "float16"),
    ),
    (
        lambda: log_softmax(LOGITS.astype(bfloat16), out=out_of(np.float64)),
        NARROW_TEXT.format("float64", "bfloat16"),
    ),
    *(
        (
            lambda dtype=dtype: cross_entropy_with_grad(DOUBLE, TARGETS, out=out_of(dtype)),
            f"out has dtype {np.dtype(dtype)}; expected float64 for float64 logits",
        )
        for dtype in (np.float32, np.float16, bfloat16, ">f8")
    ),
    (overlapping("logits"), OVERLAP_TEXT.format("logits")),
    (overlapping("targets"), OVERLAP_TEXT.format("targets")),
    (overlapping("grad_output"), OVERLAP_TEXT.format("grad_output")),
    (turned_over(), OVERLAP_TEXT.format("logits")),
    (narrower_in_place(), OVERLAP_TEXT.format("logits")),
    (out(without_own_memory()), INTERNAL_TEXT),
    (out(sliding()), INTERNAL_TEXT),
    (lambda: softmax(LOGITS, out=without_own_memory()), INTERNAL_TEXT),
    (lambda: xent_rs.set_num_threads(0), "number of threads is 0; expected at least 1"),
    (lambda: xent_rs.set_num_threads(-3), "number of threads is -3; expected at least 1"),
]

INDEX_ERRORS = [
    (
        lambda: cross_entropy(np.zeros((20, 50257), np.float16), targets(20, 17, 50304)),
        "targets[17] is 50304" + IGNORE_TEXT.format(50256, -100),
    ),
    (
        lambda: cross_entropy(np.zeros((4, 6, 10), np.float32), targets((4, 6), (3, 5), -1)),
        "targets[3, 5] is -1" + IGNORE_TEXT.format(9, -100),
    ),
    (
        lambda: cross_entropy(np.zeros((10, 4, 6)), targets((4, 6), (2, 1), 10), axis=0),
        "targets[2, 1] is 10" + IGNORE_TEXT.format(9, -100),
    ),
    (lambda: cross_entropy(LOGITS[0], 12), "targets is 12" + IGNORE_TEXT.format(9, -100)),
    (
        lambda: cross_entropy_with_grad(LOGITS, targets(4, 0, 10), ignore_index=-1),
        "targets[0] is 10" + IGNORE_TEXT.format(9, -1),
    ),
    (
        lambda: cross_entropy(LOGITS, targets(4, 3, -100), ignore_index=255),
        "targets[3] is -100" + IGNORE_TEXT.format(9, 255),
    ),
    (
        lambda: cross_entropy(LOGITS, targets(4, 2, 156, np.uint8)),
        "targets[2] is 156" + IGNORE_TEXT.format(9, -100),
    ),
    (
        lambda: cross_entropy(LOGITS, targets(4, 1, 2**64 - 100, np.uint64)),
        f"targets[1] is {2**64 - 100}" + IGNORE_TEXT.format(9, -100),
    ),
    (
        lambda: cross_entropy(LOGITS, targets(4, 1, 2**32, np.int64)),
        f"targets[1] is {2**32}" + IGNORE_TEXT.format(9, -100),
    ),
    (
        lambda: cross_entropy(LOGITS, targets(4, 1, -(2**63))),
        f"targets[1] is {-(2**63)}" + IGNORE_TEXT.format(9, -100),
    ),
    (
        lambda: cross_entropy(LOGITS, targets(4, 1, 300, ">i2")),
        "targets[1] is 300" + IGNORE_TEXT.format(9, -100),
    ),
    (
        lambda: cross_entropy(LOGITS, targets(8, 6, 11)[::2]),
        "targets[3] is 11" + IGNORE_TEXT.format(9, -100),
    ),
    (
        lambda: cross_entropy(np.zeros((3, 5, 10), np.float32), targets((5, 3), (4, 2), 77).T),
        "targets[2, 4] is 77" + IGNORE_TEXT.format(9, -100),
    ),
    (
        lambda: cross_entropy(np.zeros((100_000, 2), np.float32), targets(100_000, slice(99_998, None), 2)),
        "targets[99998] is 2" + IGNORE_TEXT.format(1, -100),
    ),
]

ERRORS = [
    *((TypeError, call, text) for call, text in TYPE_ERRORS),
    *((ValueError, call, text) for call, text in VALUE_ERRORS),
    *((IndexError, call, text) for call, text in INDEX_ERRORS),
]


@pytest.mark.parametrize(("exception", "call", "text"), ERRORS, ids=[text for _, _, text in ERRORS])
def test_exception_and_text(exception, call, text):
    with pytest.raises(exception) as caught:
        call()
    assert caught.type is exception
    assert str(caught.value) == text


NOT_EVEN_CLOSE = {
    "no logits": lambda: cross_entropy(None, TARGETS),
    "no targets": lambda: cross_entropy(LOGITS, None),
    "text for logits": lambda: cross_entropy("logits", TARGETS),
    "bytes for logits": lambda: cross_entropy(b"logits", TARGETS),
    "dict for logits": lambda: cross_entropy({}, TARGETS),
    "text for temperature": lambda: cross_entropy(LOGITS, TARGETS, temperature="warm"),
    "no temperature": lambda: cross_entropy(LOGITS, TARGETS, temperature=None),
    "no reduction": lambda: cross_entropy(LOGITS, TARGETS, reduction=None),
    "bytes for reduction": lambda: cross_entropy(LOGITS, TARGETS, reduction=b"mean"),
    "text for axis": lambda: cross_entropy(LOGITS, TARGETS, axis="last"),
    "float for axis": lambda: cross_entropy(LOGITS, TARGETS, axis=1.0),
    "tuple for axis": lambda: softmax(LOGITS, axis=(0, 1)),
    "axis beyond 64 bits": lambda: softmax(LOGITS, axis=2**70),
    "float for ignore_index": lambda: cross_entropy(LOGITS, TARGETS, ignore_index=0.5),
    "complex grad_output": lambda: cross_entropy_with_grad(LOGITS, TARGETS, grad_output=1j),
    "text for grad_output": lambda: cross_entropy_with_grad(LOGITS, TARGETS, grad_output="1"),
    "float for threads": lambda: xent_rs.set_num_threads(1.5),
    "threads beyond 64 bits": lambda: xent_rs.set_num_threads(2**70),
    "ragged logits": lambda: cross_entropy([[1.0], [1.0, 2.0]], [0, 0]),
    "structured logits": lambda: cross_entropy(np.zeros((4, 10), "f4,f4"), TARGETS),
    "void logits": lambda: cross_entropy(np.zeros((4, 10), "V2"), TARGETS),
    "options by position": lambda: cross_entropy(LOGITS, TARGETS, -100),
    "an option of another function": lambda: cross_entropy(LOGITS, TARGETS, out=out_of()),
}


@pytest.mark.parametrize("call", NOT_EVEN_CLOSE.values(), ids=NOT_EVEN_CLOSE)
def test_nonsense_is_an_ordinary_exception(call):
    """Never a panic (`InternalError`), a PyO3 exception that `except Exception` misses, or a result."""
    with pytest.raises((TypeError, ValueError, OverflowError)) as caught:
        call()
    assert not isinstance(caught.value, xent_rs.InternalError)
    assert str(caught.value)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("where", [0, 1, -1])
@pytest.mark.parametrize("in_place", [False, True])
def test_a_bad_target_is_found_before_anything_is_written(axis, where, in_place, random):
    """The last of many rows is checked before the first is overwritten, by whichever thread."""
    logits = random.standard_normal((2000, 100)).astype(np.float32)
    before = logits.copy()
    bad = np.zeros(logits.shape[1 - axis], int)
    bad[where] = 10**6
    result = logits if in_place else np.full_like(logits, 7)
    for reduction in ("mean", "none"):
        with pytest.raises(IndexError, match=re.escape(f"targets[{where % len(bad)}] is 1000000; ")):
            cross_entropy_with_grad(logits, bad, axis=axis, reduction=reduction, out=result)
    np.testing.assert_array_equal(logits, before)
    if not in_place:
        assert (result == 7).all()


def test_the_first_of_several_bad_targets_is_named():
    """Whatever the number of threads."""
    for threads in (1, 2, 3):
        xent_rs.set_num_threads(threads)
        with pytest.raises(IndexError, match=r"targets\[700\] is -7; "):
            cross_entropy(np.zeros((200_000, 3), np.float32), targets(200_000, slice(700, None), -7))


def test_the_settings_survive_an_error():
    threads = xent_rs.get_num_threads()
    with pytest.raises(ValueError, match="number of threads"):
        xent_rs.set_num_threads(0)
    assert xent_rs.get_num_threads() == threads


def test_memory_beside_the_inputs_is_no_overlap():
    """Neighbours, and elements that interleave without sharing a byte."""
    memory = np.zeros(400, np.float32)
    logits = memory[:40].reshape(4, 10)
    cross_entropy_with_grad(logits, TARGETS, out=memory[40:80].reshape(4, 10))
    pairs = np.zeros((4, 10, 2), np.float32)
    grad = cross_entropy_with_grad(pairs[..., 0], TARGETS, out=pairs[..., 1])[1]
    assert grad.any()
    assert not pairs[..., 0].any()
    rows = np.zeros((4, 2, 10), np.float32)
    assert softmax(rows[:, 0], out=rows[:, 1]).all()
    assert not rows[:, 0].any()
