"""What is wrong with a call is said before any work: (call, exception, exact text)."""

import math
import re

import numpy as np
import pytest
import xent_rs
from ml_dtypes import bfloat16
from xent_rs import (
    SparseTargets,
    binary_cross_entropy,
    binary_cross_entropy_with_grad,
    binary_cross_entropy_with_grad_hess,
    cross_entropy,
    cross_entropy_with_grad,
    cross_entropy_with_grad_hess,
    evaluate,
    kl_divergence,
    kl_divergence_with_grad,
    log_softmax,
    logsumexp,
    row_statistics,
    selective_log_softmax,
    softmax,
)

from .cases import DTYPES

LOGITS = np.zeros((4, 10), np.float32)
DOUBLE = np.zeros((4, 10), np.float64)
TARGETS = np.zeros(4, np.int64)
SOFT = np.full((4, 10), 0.1)
NO_NUMBERS = np.full((4, 10), math.nan)
INDEX = np.zeros((4, 3), np.int64)

for constant in (LOGITS, DOUBLE, TARGETS, SOFT, NO_NUMBERS, INDEX):
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


def out(array):
    return lambda: cross_entropy_with_grad(LOGITS, TARGETS, out=array)


DTYPE_TEXT = "logits have dtype {}; expected float16, bfloat16, float32 or float64"
INTEGER_TEXT = DTYPE_TEXT + " (logits.astype(np.float32))"
WHOLE_HINT = " (whole numbers: targets.astype(int))"
CLASSES_TEXT = "targets have dtype {}; expected an integer dtype (class indices)"
TARGET_TEXT = CLASSES_TEXT + " or a floating dtype (probabilities)"
FLAT_TEXT = "targets have dtype {} and shape (4,); expected an integer dtype (class indices), " + (
    "or shape (4, 10) (probabilities)" + WHOLE_HINT
)
REAL_TEXT = "{} has dtype {}; expected real numbers"
AXIS_TEXT = "axis is {}; expected -2 to 1 for logits of shape (4, 10)"
NARROW_TEXT = "out has dtype {}; expected float32, float16 or bfloat16 for {} logits"
POSITIVE_TEXT = "{} is {}; expected a positive finite number"
GPU_TEXT = "logits are on device type 2; expected CPU memory (device type 1)"
OVERLAP_TEXT = "out overlaps {}; expected the logits array itself or memory that no input uses"
INTERNAL_TEXT = "out has elements that share memory; expected an array without internal overlap"
IGNORE_TEXT = "; expected 0 to {}, or ignore_index {}"

KIND_TEXT = "kind is {}; expected 'forward', 'reverse' or 'jensen_shannon'"
BETA_TEXT = (
    "beta is {}; expected a number above 0 and below 1; kind 'forward' is what others have at 0, "
    "'reverse' at 1"
)

ROWS = (cross_entropy, cross_entropy_with_grad, cross_entropy_with_grad_hess)
BINARY = (binary_cross_entropy, binary_cross_entropy_with_grad, binary_cross_entropy_with_grad_hess)
DIVERGENCE = (kl_divergence, kl_divergence_with_grad)
# (function, the second argument of a call that is right)
ALL_ROWS = [(function, TARGETS) for function in (*ROWS, evaluate)]
ALL_BINARY = [(function, SOFT) for function in BINARY]
ALL_DIVERGENCE = [(function, DOUBLE) for function in DIVERGENCE]


def calls(functions, text, *wrong_target, **wrong):
    """One error of several functions, with a wrong second argument or wrong options."""
    return [
        (
            lambda function=function, target=target: function(LOGITS, *(wrong_target or (target,)), **wrong),
            text,
        )
        for function, target in functions
    ]


TYPE_ERRORS = [
    *(
        (logits_of(d), text.format(np.dtype(d)))
        for d, text in (
            ("int64", INTEGER_TEXT),
            ("uint8", INTEGER_TEXT),
            ("bool", DTYPE_TEXT),
            ("complex64", DTYPE_TEXT),
            ("complex128", DTYPE_TEXT),
        )
    ),
    (logits_of(object), DTYPE_TEXT.format("object")),
    (logits_of(np.longdouble), DTYPE_TEXT.format(np.dtype(np.longdouble))),
    (logits_of("U4"), DTYPE_TEXT.format("<U4")),
    (logits_of("datetime64[s]"), DTYPE_TEXT.format("datetime64[s]")),
    (lambda: cross_entropy([[1, 2], [3, 4]], [0, 1]), INTEGER_TEXT.format("int64")),
    (lambda: logsumexp(TARGETS), INTEGER_TEXT.format("int64")),
    (lambda: softmax(TARGETS), INTEGER_TEXT.format("int64")),
    (lambda: log_softmax(TARGETS), INTEGER_TEXT.format("int64")),
    (lambda: cross_entropy_with_grad(np.zeros((4, 10), int), TARGETS), INTEGER_TEXT.format("int64")),
    *(
        (targets_of(d), TARGET_TEXT.format(np.dtype(d)))
        for d in ("complex64", "bool", object, "datetime64[s]")
    ),
    *((targets_of(d), FLAT_TEXT.format(np.dtype(d))) for d in ("float16", bfloat16, "float32", "float64")),
    (lambda: cross_entropy(LOGITS, [0.0, 1.0, 2.0, 3.0]), FLAT_TEXT.format("float64")),
    (lambda: cross_entropy_with_grad(LOGITS, np.zeros(4)), FLAT_TEXT.format("float64")),
    (lambda: cross_entropy_with_grad_hess(LOGITS, np.zeros(4, "f2")), FLAT_TEXT.format("float16")),
    (
        lambda: cross_entropy(LOGITS, np.zeros((4, 10), bool)),
        TARGET_TEXT.format("bool") + " (one-hot targets are probabilities: give them a floating dtype)",
    ),
    (lambda: cross_entropy(LOGITS, np.zeros((4, 10), complex)), TARGET_TEXT.format("complex128")),
    (
        lambda: cross_entropy(LOGITS, np.zeros((4, 10), np.longdouble)),
        TARGET_TEXT.format(np.dtype(np.longdouble)),
    ),
    *(
        (
            lambda function=function, d=d: function(LOGITS, np.zeros(4, d)),
            CLASSES_TEXT.format(np.dtype(d)) + hint,
        )
        for function in (evaluate, row_statistics)
        for d, hint in (
            ("float32", WHOLE_HINT),
            ("float64", WHOLE_HINT),
            ("bool", ""),
            ("complex64", ""),
            (object, ""),
        )
    ),
    (lambda: row_statistics(LOGITS, SOFT), CLASSES_TEXT.format("float64")),
    (lambda: evaluate(LOGITS, SOFT), CLASSES_TEXT.format("float64")),
    (lambda: cross_entropy(OnGpu(), TARGETS), GPU_TEXT),
    (lambda: softmax(OnGpu()), GPU_TEXT),
    (lambda: logsumexp(OnGpu()), GPU_TEXT),
    (
        lambda: cross_entropy(np.ma.masked_array(LOGITS), TARGETS),
        "logits are a masked array; expected a plain array (mark masked classes with -inf)",
    ),
    *(
        error
        for function, target, name, shape in (
            (cross_entropy, TARGETS, "weight", 10),
            (cross_entropy_with_grad, SOFT, "weight", 10),
            (cross_entropy_with_grad_hess, TARGETS, "sample_weight", 4),
            (evaluate, TARGETS, "sample_weight", 4),
            (binary_cross_entropy, SOFT, "weight", 10),
            (binary_cross_entropy_with_grad, SOFT, "pos_weight", (4, 1)),
            (kl_divergence, DOUBLE, "sample_weight", 4),
            (binary_cross_entropy_with_grad, SOFT, "grad_output", ()),
            (kl_divergence_with_grad, DOUBLE, "grad_output", ()),
        )
        for d in ("complex64", object, "U4", "timedelta64[s]")
        for error in calls(
            [(function, target)],
            REAL_TEXT.format(name, np.dtype(d)),
            **{name: np.ones(shape).astype(int).astype(d)},
        )
    ),
    *(
        (
            lambda function=function, d=d: function(LOGITS, np.zeros((4, 10)).astype(d)),
            f"targets have dtype {np.dtype(d)}; expected bool, an integer or a floating dtype",
        )
        for function in (binary_cross_entropy, binary_cross_entropy_with_grad)
        for d in ("complex128", object, np.longdouble)
    ),
    *(
        (
            lambda function=function, d=d: function(LOGITS, np.zeros((4, 10)).astype(d)),
            f"target_logits have dtype {np.dtype(d)}; expected float16, bfloat16, float32 or float64{hint}",
        )
        for function in (kl_divergence, kl_divergence_with_grad)
        for d, hint in (
            ("int64", " (target_logits.astype(np.float32))"),
            ("bool", ""),
            ("complex128", ""),
            (object, ""),
        )
    ),
    *(
        (
            lambda d=d: selective_log_softmax(LOGITS, INDEX.astype(d)),
            f"index has dtype {np.dtype(d)}; expected an integer dtype (class indices){hint}",
        )
        for d, hint in (
            ("float32", " (whole numbers: index.astype(int))"),
            ("float64", " (whole numbers: index.astype(int))"),
            ("bool", ""),
            (object, ""),
        )
    ),
    *(
        (
            lambda function=function, target=target: function(LOGITS.astype(int), target),
            INTEGER_TEXT.format("int64"),
        )
        for function, target in (
            (cross_entropy_with_grad_hess, TARGETS),
            (binary_cross_entropy, SOFT),
            (binary_cross_entropy_with_grad, SOFT),
            (kl_divergence, LOGITS),
            (kl_divergence_with_grad, LOGITS),
            (selective_log_softmax, INDEX),
            (row_statistics, TARGETS),
        )
    ),
    *(
        (lambda function=function, target=target: function(OnGpu(), target), GPU_TEXT)
        for function, target in (
            (binary_cross_entropy, SOFT),
            (kl_divergence, LOGITS),
            (selective_log_softmax, INDEX),
            (row_statistics, TARGETS),
        )
    ),
    (
        lambda: kl_divergence(LOGITS, OnGpu()),
        "target_logits are on device type 2; expected CPU memory (device type 1)",
    ),
    (
        lambda: cross_entropy(LOGITS, OnGpu()),
        "targets are on device type 2; expected CPU memory (device type 1)",
    ),
    (out([0.0]), "out is a list; expected a numpy.ndarray"),
    (
        lambda: cross_entropy_with_grad_hess(LOGITS, TARGETS, hess_out=[0.0]),
        "hess_out is a list; expected a numpy.ndarray",
    ),
    (lambda: softmax(LOGITS, out=bytearray(160)), "out is a bytearray; expected a numpy.ndarray"),
]


def number_texts(expected, outside, functions, name):
    """Of an option that is a number: what is out of its range, and what is none."""
    values = [(value, ValueError) for value in outside] + [
        (value, TypeError) for value in ("a", None, [1.0], 1j)
    ]
    return [
        (error, call, text)
        for value, error in values
        for call, text in calls(functions, f"{name} is {value!r}; expected {expected}", **{name: value})
    ]


NUMBER_ERRORS = [
    *number_texts(
        "a number from 0 to 1",
        [1.5, -0.1, math.nan, math.inf, -math.inf],
        ALL_ROWS + ALL_BINARY,
        "label_smoothing",
    ),
    *number_texts("a finite number, at least 0", [-1.0, math.nan, math.inf], ALL_ROWS[:2], "z_loss"),
]

POSITIVE_VALUES = [0.0, -0.0, -3.0, math.nan, math.inf]
SHARED = [
    *(
        row
        for value in POSITIVE_VALUES
        for row in (
            *calls(
                [*ALL_ROWS[:2], (evaluate, TARGETS), (row_statistics, TARGETS)],
                f"softcap is {value!r}; expected a positive finite number",
                softcap=value,
            ),
            *calls(
                [*ALL_ROWS, *ALL_DIVERGENCE, (selective_log_softmax, INDEX), (row_statistics, TARGETS)],
                f"temperature is {value!r}; expected a positive finite number",
                temperature=value,
            ),
        )
    ),
    *(
        row
        for value in (-3.0, math.nan, math.inf)
        for row in calls(
            [*ALL_ROWS[:3], *ALL_BINARY, *ALL_DIVERGENCE],
            f"denominator is {value!r}; expected a finite number, at least 0",
            denominator=value,
        )
    ),
    *calls(
        [*ALL_ROWS[2:], *ALL_DIVERGENCE, (selective_log_softmax, INDEX), (row_statistics, TARGETS)],
        "axis is 2; expected -2 to 1 for logits of shape (4, 10)",
        axis=2,
    ),
    *calls(
        [*ALL_ROWS[:3], *ALL_BINARY, *ALL_DIVERGENCE],
        "reduction is 'avg'; expected 'mean', 'sum' or 'none'",
        reduction="avg",
    ),
    *calls(
        [*ALL_ROWS[:3], *ALL_BINARY, *ALL_DIVERGENCE],
        "denominator is given with reduction 'sum'; expected reduction 'mean', whose divisor it replaces",
        reduction="sum",
        denominator=2.0,
    ),
    # Weights
    *calls(ALL_ROWS, "weight has shape (3,); expected (10,), one number a class", weight=np.ones(3)),
    *calls(ALL_ROWS[:3], "weight has shape (); expected (10,), one number a class", weight=1.0),
    *calls(
        ALL_ROWS[:3], "weight has shape (1, 10); expected (10,), one number a class", weight=np.ones((1, 10))
    ),
    *calls(
        ALL_ROWS[:3], "weight has shape (10, 1); expected (10,), one number a class", weight=np.ones((10, 1))
    ),
    *calls(ALL_ROWS[:3], "weight has shape (0,); expected (10,), one number a class", weight=[]),
    *(
        row
        for shape in ((3,), (), (1,), (4, 1), (10,))
        for row in calls(
            ALL_ROWS + ALL_DIVERGENCE,
            f"sample_weight has shape {shape}; expected (4,), one number a row",
            sample_weight=np.ones(shape, np.float32),
        )
    ),
    (
        lambda: cross_entropy(LOGITS, np.zeros(10, int), axis=0, sample_weight=np.ones(4)),
        "sample_weight has shape (4,); expected (10,), one number a row",
    ),
    (
        lambda: cross_entropy(LOGITS, np.zeros(10, int), axis=0, weight=np.ones(10)),
        "weight has shape (10,); expected (4,), one number a class",
    ),
    (
        lambda: cross_entropy(LOGITS[0], 3, sample_weight=np.ones(1)),
        "sample_weight has shape (1,); expected (), one number a row",
    ),
    *(
        row
        for name in ("weight", "pos_weight")
        for shape in ((3,), (4,), (10, 4), (2, 10), (1, 4, 10), (0,))
        for row in calls(
            ALL_BINARY,
            f"{name} has shape {shape}; expected a shape that broadcasts to (4, 10)",
            **{name: np.ones(shape)},
        )
    ),
    # Targets
    *(
        row
        for soft in (np.zeros((3, 2)), np.zeros((10, 4), np.float16), np.zeros((4, 10, 1)), np.float64(1))
        for row in calls(
            ALL_ROWS[:3],
            f"targets have shape {soft.shape}; expected (4, 10), the shape of logits, for probabilities",
            soft,
        )
    ),
    *calls(
        [*ALL_ROWS[:3]],
        "targets have shape (4, 10); expected (4,), the shape of logits (4, 10) without axis -1 "
        "(one-hot targets are probabilities: give them a floating dtype)",
        np.zeros((4, 10), np.int8),
    ),
    *calls(
        [*ALL_ROWS, (row_statistics, TARGETS)],
        "targets have shape (3,); expected (4,), the shape of logits (4, 10) without axis -1",
        TARGETS[:3],
    ),
    *calls(ALL_BINARY, "targets have shape (4,); expected (4, 10), the shape of logits", TARGETS),
    *calls(ALL_BINARY, "targets have shape (1, 10); expected (4, 10), the shape of logits", SOFT[:1]),
    *calls(ALL_BINARY, "targets have shape (); expected (4, 10), the shape of logits", 1.0),
    *calls(
        ALL_DIVERGENCE, "target_logits have shape (3,); expected (4, 10), the shape of logits", np.zeros(3)
    ),
    *calls(
        ALL_DIVERGENCE, "target_logits have shape (1, 10); expected (4, 10), the shape of logits", DOUBLE[:1]
    ),
    *(
        row
        for index in (INDEX[0], INDEX[:3], INDEX.T, INDEX[None], TARGETS, np.zeros((), int))
        for row in calls(
            [(selective_log_softmax, INDEX)],
            f"index has shape {index.shape}; expected (4, K), the shape of logits (4, 10) without axis -1 "
            "and one axis more",
            index,
        )
    ),
    (
        lambda: selective_log_softmax(LOGITS[0], np.array(3)),
        "index has shape (); expected (K,), the shape of logits (10,) without axis -1 and one axis more",
    ),
    # Results
    *(
        (
            lambda reduction=reduction, function=function, target=target: function(
                LOGITS, target, reduction=reduction, grad_output=np.zeros(3)
            ),
            f"grad_output has shape (3,); expected a scalar{shape} for reduction '{reduction}'",
        )
        for function, target, rows in (
            (binary_cross_entropy_with_grad, SOFT, "(4, 10)"),
            (kl_divergence_with_grad, DOUBLE, "(4,)"),
        )
        for reduction, shape in (("mean", ""), ("sum", ""), ("none", f" or shape {rows}"))
    ),
]


def overlap(function, name, with_result):
    """`with_result`: the name of the result that lies on top of the input of that name."""
    memory = np.zeros(8000, np.uint8)
    arrays = {
        "logits": memory[:160].view(np.float32).reshape(4, 10),
        "targets": memory[800:1120].view(np.float64).reshape(4, 10),
        "target_logits": memory[800:1120].view(np.float64).reshape(4, 10),
        "weight": memory[1600:1680].view(np.float64),
        "pos_weight": memory[2400:2480].view(np.float64),
        "sample_weight": memory[3200:3216].view(np.float32),
        "grad_output": memory[4000:4032].view(np.float64),
    }
    start = arrays[name].ctypes.data - memory.ctypes.data
    begin = start + 8 if name == "logits" else start - 152
    result = memory[begin : begin + 160].view(np.float32).reshape(4, 10)
    target = arrays["target_logits" if function is kl_divergence_with_grad else "targets"]
    options = {name: arrays[name]} if name not in ("logits", "targets", "target_logits") else {}
    if name == "grad_output":
        options["reduction"] = "none"
        if function is binary_cross_entropy_with_grad:
            options["grad_output"] = np.lib.stride_tricks.as_strided(arrays[name], (4, 10), (8, 0))
    return lambda: function(arrays["logits"], target, **options, **{with_result: result})


def hess_out(array, out=None):
    return lambda: cross_entropy_with_grad_hess(LOGITS, TARGETS, out=out, hess_out=array)


def results_that_overlap():
    memory = np.zeros(80, np.float32)
    return hess_out(memory[5:45].reshape(4, 10), out=memory[:40].reshape(4, 10))


def the_same_result_twice():
    memory = np.zeros((4, 10), np.float32)
    return hess_out(memory, out=memory)


def both_in_place():
    logits = np.zeros((4, 10), np.float32)
    return lambda: cross_entropy_with_grad_hess(logits, TARGETS, out=logits, hess_out=logits)


OUT_ERRORS = [
    *(
        (overlap(function, name, "out"), OVERLAP_TEXT.format(name))
        for function, names in (
            (cross_entropy_with_grad, ("logits", "targets", "weight", "sample_weight", "grad_output")),
            (cross_entropy_with_grad_hess, ("logits", "targets", "weight", "sample_weight")),
            (binary_cross_entropy_with_grad, ("logits", "targets", "weight", "pos_weight", "grad_output")),
            (binary_cross_entropy_with_grad_hess, ("logits", "targets", "weight", "pos_weight")),
            (kl_divergence_with_grad, ("logits", "target_logits", "sample_weight", "grad_output")),
        )
        for name in names
        if (function, name) != (binary_cross_entropy_with_grad, "grad_output")
    ),
    *(
        (overlap(function, name, "hess_out"), f"hess_{OVERLAP_TEXT.format(name)}")
        for function, last in (
            (cross_entropy_with_grad_hess, "sample_weight"),
            (binary_cross_entropy_with_grad_hess, "pos_weight"),
        )
        for name in ("logits", "targets", "weight", last)
    ),
    *calls(
        [(binary_cross_entropy_with_grad_hess, SOFT)],
        "hess_out overlaps out; expected memory apart from it",
        **dict.fromkeys(("out", "hess_out"), out_of()),
    ),
    *(
        (
            lambda array=array: binary_cross_entropy_with_grad_hess(LOGITS, SOFT, hess_out=array),
            f"hess_{text}",
        )
        for array, text in (
            (read_only(out_of()), "out is read-only; expected a writeable array"),
            (out_of(shape=(4, 9)), "out has shape (4, 9); expected (4, 10)"),
            (out_of(np.float64), NARROW_TEXT.format("float64", "float32")),
        )
    ),
    (results_that_overlap(), "hess_out overlaps out; expected memory apart from it"),
    (the_same_result_twice(), "hess_out overlaps out; expected memory apart from it"),
    (both_in_place(), "hess_out overlaps out; expected memory apart from it"),
    *(
        error
        for array, text in (
            (read_only(out_of()), "out is read-only; expected a writeable array"),
            (out_of(shape=(4, 9)), "out has shape (4, 9); expected (4, 10)"),
            (out_of(np.float64), NARROW_TEXT.format("float64", "float32")),
            (out_of(">f4"), NARROW_TEXT.format(">f4", "float32")),
            (sliding(), INTERNAL_TEXT),
        )
        for error in calls(
            [
                (cross_entropy_with_grad_hess, TARGETS),
                (binary_cross_entropy_with_grad, SOFT),
                (binary_cross_entropy_with_grad_hess, SOFT),
                (kl_divergence_with_grad, DOUBLE),
            ],
            text,
            out=array,
        )
    ),
    (hess_out(read_only(out_of())), "hess_out is read-only; expected a writeable array"),
    (hess_out(out_of(shape=(4, 9))), "hess_out has shape (4, 9); expected (4, 10)"),
    (hess_out(out_of(np.float64)), f"hess_{NARROW_TEXT.format('float64', 'float32')}"),
    (hess_out(out_of(">f4")), f"hess_{NARROW_TEXT.format('>f4', 'float32')}"),
    (hess_out(sliding()), f"hess_{INTERNAL_TEXT}"),
    (hess_out(without_own_memory()), f"hess_{INTERNAL_TEXT}"),
    (
        lambda: cross_entropy_with_grad_hess(DOUBLE, TARGETS, hess_out=out_of()),
        "hess_out has dtype float32; expected float64 for float64 logits",
    ),
]

VALUE_ERRORS = [
    *SHARED,
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
        "targets have shape (4, 1); expected (4,), the shape of logits (4, 10) without axis -1 "
        "(targets.squeeze(-1))",
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
    *(
        error
        for kind, text in (("js", "'js'"), (None, "None"), (1, "1"), ("Reverse", "'Reverse'"))
        for error in calls(ALL_DIVERGENCE, KIND_TEXT.format(text), kind=kind)
    ),
    *(
        error
        for beta, text in ((0, "0.0"), (1.0, "1.0"), (-0.5, "-0.5"), (math.nan, "nan"))
        for error in calls(ALL_DIVERGENCE, BETA_TEXT.format(text), kind="jensen_shannon", beta=beta)
    ),
    *(
        error
        for kind in ("forward", "reverse")
        for error in calls(
            ALL_DIVERGENCE,
            f"beta is 0.1 with kind '{kind}'; expected kind 'jensen_shannon', the only one with a mixture",
            kind=kind,
            beta=0.1,
        )
    ),
    *(
        error
        for kind in ("reverse", "jensen_shannon")
        for error in calls(
            ALL_DIVERGENCE,
            f"kind is '{kind}' with SparseTargets; expected kind 'forward', as the others need the teacher's "
            "probabilities of all classes",
            SparseTargets(TARGETS[:, None], np.ones((4, 1))),
            kind=kind,
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
    *OUT_ERRORS,
    (lambda: xent_rs.set_num_threads(0), "number of threads is 0; expected at least 1"),
    (lambda: xent_rs.set_num_threads(-3), "number of threads is -3; expected at least 1"),
]

INDEX_ERRORS = [
    *calls(
        [*ALL_ROWS, (row_statistics, TARGETS)],
        "targets[2] is 10" + IGNORE_TEXT.format(9, -100),
        targets(4, 2, 10),
    ),
    *(
        (
            lambda index=index: selective_log_softmax(LOGITS, targets((4, 3), (1, 0), index)),
            f"index[1, 0] is {index}; expected 0 to 9",
        )
        for index in (10, -1, -100, 2**62)
    ),
    (
        lambda: selective_log_softmax(LOGITS, targets((4, 3), (3, 2), 200, np.uint8)),
        "index[3, 2] is 200; expected 0 to 9",
    ),
    (lambda: selective_log_softmax(LOGITS[0], [0, 11]), "index[1] is 11; expected 0 to 9"),
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
    *NUMBER_ERRORS,
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
    "text for weight": lambda: cross_entropy(LOGITS, TARGETS, weight="heavy"),
    "dict for weight": lambda: cross_entropy(LOGITS, TARGETS, weight={0: 1.0}),
    "ragged weight": lambda: cross_entropy(LOGITS, TARGETS, weight=[[1.0], 2.0]),
    "text for sample_weight": lambda: cross_entropy(LOGITS, TARGETS, sample_weight="heavy"),
    "structured weight": lambda: cross_entropy(LOGITS, TARGETS, weight=np.zeros(10, "f4,f4")),
    "text for softcap": lambda: cross_entropy(LOGITS, TARGETS, softcap="30"),
    "array for softcap": lambda: cross_entropy(LOGITS, TARGETS, softcap=np.ones(3)),
    "a huge z_loss": lambda: cross_entropy(LOGITS, TARGETS, z_loss=10**400),
    "no targets, binary": lambda: binary_cross_entropy(LOGITS, None),
    "text for pos_weight": lambda: binary_cross_entropy(LOGITS, SOFT, pos_weight="heavy"),
    "float for ignore_index, binary": lambda: binary_cross_entropy(LOGITS, SOFT, ignore_index=0.5),
    "an axis, binary": lambda: binary_cross_entropy(LOGITS, SOFT, axis=0),
    "no teacher": lambda: kl_divergence(LOGITS, None),
    "text for a teacher": lambda: kl_divergence(LOGITS, "teacher"),
    "class weights, divergence": lambda: kl_divergence(LOGITS, LOGITS, weight=np.ones(10)),
    "no index": lambda: selective_log_softmax(LOGITS, None),
    "ragged index": lambda: selective_log_softmax(LOGITS, [[0], [1, 2]]),
    "text for targets of statistics": lambda: row_statistics(LOGITS, "targets"),
    "z-loss with a Hessian": lambda: cross_entropy_with_grad_hess(LOGITS, TARGETS, z_loss=0.1),
    "a softcap with a Hessian": lambda: cross_entropy_with_grad_hess(LOGITS, TARGETS, softcap=30.0),
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


WRONG = {
    cross_entropy_with_grad: (
        [TARGETS - 1, TARGETS + 10, TARGETS[:3], SOFT[:3], -SOFT, NO_NUMBERS, TARGETS.astype(float), None],
        {
            "weight": np.ones(9),
            "sample_weight": np.ones(10),
            "label_smoothing": 2,
            "z_loss": -1,
            "softcap": 0,
            "temperature": -1,
            "axis": 5,
            "reduction": "no",
            "denominator": -1,
            "grad_output": np.ones(4),
        },
    ),
    cross_entropy_with_grad_hess: (
        [TARGETS - 1, TARGETS + 10, TARGETS[:3], SOFT[:3], -SOFT, NO_NUMBERS, TARGETS.astype(float), None],
        {
            "weight": np.ones(10, complex),
            "sample_weight": np.ones(10),
            "label_smoothing": -1,
            "temperature": 0,
            "axis": -3,
            "reduction": "no",
            "denominator": -1,
        },
    ),
    binary_cross_entropy_with_grad: (
        [TARGETS, SOFT[:3], SOFT.astype(complex), LOGITS.astype(int) - 1, LOGITS.astype("u1") + 255, None],
        {
            "weight": np.ones(9),
            "pos_weight": np.ones((3, 10)),
            "label_smoothing": 2,
            "reduction": "no",
            "denominator": -1,
            "grad_output": np.ones(4),
        },
    ),
    binary_cross_entropy_with_grad_hess: (
        [TARGETS, SOFT[:3], LOGITS.astype("i2") + 2, None],
        {"weight": np.ones(9), "pos_weight": np.ones((3, 10)), "reduction": "no", "denominator": -1},
    ),
    kl_divergence_with_grad: (
        [DOUBLE[:3], TARGETS, DOUBLE.astype(complex), None],
        {
            "sample_weight": np.ones(10),
            "kind": "backward",
            "beta": 0.1,
            "temperature": 0,
            "axis": 2,
            "reduction": "no",
            "denominator": math.nan,
            "grad_output": np.ones(4),
        },
    ),
}


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("function", WRONG, ids=lambda function: function.__name__)
def test_nothing_is_written_when_something_is_wrong(function, in_place, random):
    targets, options = WRONG[function]
    right = TARGETS if "kl" not in function.__name__ else DOUBLE
    right = SOFT if "binary" in function.__name__ else right
    wrong = [(target, {}) for target in targets] + [(right, {name: value}) for name, value in options.items()]
    hessian = "hess" in function.__name__
    if hessian:
        wrong += [(right, {"hess_out": array}) for array in (out_of(np.int8), read_only(out_of()), [1.0])]
    logits = random.standard_normal((4, 10)).astype(np.float32)
    before, out = logits.copy(), logits if in_place else np.full_like(logits, 7)
    for target, keywords in wrong:
        if hessian:
            keywords = {"hess_out": np.full_like(logits, 7), **keywords}
        hess_before = np.array(keywords.get("hess_out"))
        with pytest.raises((TypeError, ValueError, IndexError)):
            function(logits, target, out=out, **keywords)
        np.testing.assert_array_equal(logits, before)
        assert in_place or (out == 7).all()
        np.testing.assert_array_equal(np.array(keywords.get("hess_out")), hess_before)
    function(logits, right, out=out)
    assert not np.array_equal(out, before)


def test_the_first_of_several_bad_targets_is_named():
    """Whatever the number of threads."""
    for threads in (1, 2, 3):
        xent_rs.set_num_threads(threads)
        with pytest.raises(IndexError, match=r"targets\[700\] is -7; "):
            cross_entropy(np.zeros((200_000, 3), np.float32), targets(200_000, slice(700, None), -7))


BAD_PROBABILITIES = [-0.5, -1e-40, math.nan, -math.inf]
LABELS = [np.dtype(name) for name in ("i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", ">i2", ">u4")]


def written(value, dtype):
    """As Python writes it, with the fewest digits that name it among the numbers of its dtype."""
    number = np.array(value, dtype)[()]
    texts = (f"{float(number):.{digits}e}" for digits in range(17))
    return str(float(next((text for text in texts if np.array(float(text), dtype)[()] == number), number)))


@pytest.mark.parametrize("classes", [3, 100, 300, 1000])
@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("dtype", ["f2", bfloat16, "f4", "f8", ">f4"], ids=str)
def test_a_bad_probability_is_named(level, classes, axis, dtype):
    """By its place and value, in whatever layout, and before anything is written to the caller's memory."""
    random = np.random.default_rng(classes)
    shape = list((5, 17))
    shape.insert(axis if axis >= 0 else 2, classes)
    logits = random.standard_normal(shape).astype(np.float32)
    for value in BAD_PROBABILITIES:
        soft = np.full(shape, 0.25, dtype)
        places = [tuple(random.integers(shape)) for _ in range(3)]
        for place in places:
            soft[place] = value
        if not (float(soft[places[0]]) < 0 or math.isnan(value)):
            continue  # the dtype rounds it to -0
        # The first one, by rows.
        first = min(places, key=lambda place: (*np.delete(place, axis), place[axis]))
        text = f"targets[{', '.join(map(str, first))}] is {written(value, dtype)}; "
        text = f"^{re.escape(text)}expected a probability, at least 0$"
        options = {"axis": axis, "label_smoothing": 0.1}
        for function in ROWS:
            for reduction in ("mean", "none"):
                with pytest.raises(ValueError, match=text):
                    function(logits, soft, reduction=reduction, **options)
        for in_place in (False, True):
            source = logits.copy()
            out = source if in_place else np.full_like(source, 7)
            with pytest.raises(ValueError, match=text):
                cross_entropy_with_grad(source, soft, out=out, **options)
            hess_out = np.full_like(source, 7)
            with pytest.raises(ValueError, match=text):
                cross_entropy_with_grad_hess(source, soft, out=out, hess_out=hess_out, **options)
            with pytest.raises(ValueError, match=text):
                cross_entropy_with_grad_hess(source, soft, hess_out=hess_out, **options)
            np.testing.assert_array_equal(source, logits)
            assert in_place or (out == 7).all()
            assert (hess_out == 7).all()
        # In rows that do not count, it may be anything.
        weight = np.ones((5, 17))
        for place in places:
            weight[tuple(np.delete(place, axis))] = 0
        assert math.isfinite(cross_entropy(logits, soft, sample_weight=weight, **options))
        assert np.isfinite(cross_entropy_with_grad(logits, soft, sample_weight=weight, **options)[1]).all()


@pytest.mark.parametrize("value", [math.nan, -1.0])
def test_a_bad_probability_of_many_rows_or_classes(level, value):
    """The first one, whatever the number of threads, also where it is the last of all or in a single row."""
    for shape, at in (((70_000, 3), 69_999), ((300, 5000), 299), ((5000,), None)):
        soft = np.zeros(shape, np.float32)
        place = (-1,) if at is None else (at, shape[-1] - 1)
        soft[place] = value
        found = "4999" if at is None else ", ".join(map(str, place))
        logits = np.zeros(shape, np.float32)
        for threads in (1, 2, 3):
            xent_rs.set_num_threads(threads)
            for out in (None, np.full_like(logits, 7), logits):
                with pytest.raises(ValueError, match=rf"targets\[{found}\] is {written(value, 'f4')}; "):
                    cross_entropy_with_grad(logits, soft, out=out)
                assert out is None or (out == (0 if out is logits else 7)).all()


@pytest.mark.parametrize("options", [{}, {"weight": 2.0}, {"weight": 0.0}, {"pos_weight": [2.0] * 30}])
@pytest.mark.parametrize("ignore_index", [None, -1, 2])
@pytest.mark.parametrize("dtype", LABELS, ids=str)
def test_a_bad_label_is_named(level, dtype, ignore_index, options):
    """An integer is a class of two, or ignored; 255 and -1 for yes are habits that would give nonsense."""
    random = np.random.default_rng(0)
    logits = random.standard_normal((20, 30)).astype(np.float32)
    right = random.integers(0, 2, (20, 30)).astype(dtype)
    ignored = "" if ignore_index is None else f", or ignore_index {ignore_index}"
    for value in (-1, 2, 255, 3, -100, 2**40, np.iinfo(dtype).max, np.iinfo(dtype).min):
        if not np.iinfo(dtype).min <= value <= np.iinfo(dtype).max or value == 0:
            continue
        labels = right.copy()
        labels[[7, 7, 19], [11, 13, 29]] = value
        for turn in (lambda array: array, np.asfortranarray, lambda array: array[::-1]):
            if value == ignore_index:
                assert math.isfinite(
                    binary_cross_entropy(logits, turn(labels), ignore_index=value, **options)
                )
                continue
            rows = np.argwhere(turn(labels) == value)[0]
            text = f"targets[{rows[0]}, {rows[1]}] is {value}; expected 0 or 1{ignored}"
            for function in BINARY:
                with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
                    function(logits, turn(labels), ignore_index=ignore_index, **options)
            for in_place in (False, True):
                source = logits.copy()
                out, hess_out = source if in_place else np.full_like(source, 7), np.full_like(source, 7)
                for reduction in ("mean", "sum", "none"):
                    keywords = {"ignore_index": ignore_index, "reduction": reduction, **options}
                    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
                        binary_cross_entropy_with_grad(source, turn(labels), out=out, **keywords)
                    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
                        binary_cross_entropy_with_grad_hess(
                            source, turn(labels), out=out, hess_out=hess_out, **keywords
                        )
                np.testing.assert_array_equal(source, logits)
                assert in_place or (out == 7).all()
                assert (hess_out == 7).all()


def test_a_bad_label_of_a_single_element_and_of_many():
    with pytest.raises(ValueError, match=r"^targets is 255; expected 0 or 1$"):
        binary_cross_entropy(np.float32(1), np.uint8(255))
    for threads in (1, 2, 3):
        xent_rs.set_num_threads(threads)
        with pytest.raises(ValueError, match=r"^targets\[150000\] is -1; expected 0 or 1$"):
            binary_cross_entropy(np.zeros(300_000, np.float32), targets(300_000, slice(150_000, None), -1))


@pytest.mark.parametrize("dtype", [bool, *DTYPES], ids=str)
def test_binary_targets_that_are_no_integers_are_taken_as_they_are(dtype):
    labels = np.array([0, 1, 1, 0]).astype(dtype)
    assert binary_cross_entropy(np.array([2.0, -1, 3, 0]), labels) == binary_cross_entropy(
        np.array([2.0, -1, 3, 0]), [0, 1, 1, 0]
    )
    # Any byte but 0 is True.
    assert binary_cross_entropy([2.0], np.array([255], np.uint8).view(bool)) == binary_cross_entropy(
        [2.0], [1]
    )


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


@pytest.mark.parametrize(("axis", "sign"), [(-(2**200), "-"), (2**200, "")])
def test_an_integer_beyond_128_bits_keeps_its_sign(axis, sign):
    with pytest.raises(ValueError, match=rf"^axis is {sign}1701411834\d+; expected"):
        cross_entropy(LOGITS, TARGETS, axis=axis)


@pytest.mark.parametrize("softcap", [-1e-7, -0.0001, -1e16, -12.5])
def test_numbers_in_errors_are_written_as_python_does(softcap):
    with pytest.raises(ValueError, match=f"^softcap is {softcap!r}; ".replace("+", r"\+")):
        cross_entropy(LOGITS, TARGETS, softcap=softcap)


def test_no_rows_of_probabilities_that_are_no_array():
    """Only an empty list has no dtype of its own."""

    class Frame:
        def __array__(self, dtype=None, copy=None):
            return np.zeros((0, 5))

    assert cross_entropy(np.zeros((0, 5)), Frame(), reduction="sum") == 0
    assert cross_entropy(np.zeros((0, 5)), [], reduction="sum") == 0


@pytest.mark.parametrize("field", [">u2", "f2", "i2"])
def test_two_bytes_in_a_field_called_bfloat16_are_not_always_that(field):
    with pytest.raises(TypeError, match="expected float16, bfloat16, float32 or float64"):
        softmax(np.zeros((2, 3), [("bfloat16", field)]))
