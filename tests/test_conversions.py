"""What is no array of the right kind: the error says what was found and what to do, and doing it works."""

import numpy as np
import pytest
import xent_rs
from ml_dtypes import bfloat16
from xent_rs import (
    binary_cross_entropy,
    cross_entropy,
    cross_entropy_with_grad,
    evaluate,
    kl_divergence,
    log_softmax,
    logsumexp,
    row_statistics,
    selective_log_softmax,
    softmax,
)

LOGITS = np.zeros((4, 10), np.float32)
TARGETS = np.arange(4)
SOFT = np.full((4, 10), 0.1)

CLASSES = "expected an integer dtype (class indices)"
EITHER = f"{CLASSES}, or shape (4, 10) (probabilities)"
ONE_HOT = " (one-hot targets are probabilities: give them a floating dtype)"
FLOATS = "expected float16, bfloat16, float32 or float64"
NAN = " (NaN among them: missing values?)"
WHOLE = " (whole numbers: targets.astype(int))"


def column(*rows):
    """What pandas, polars and pyarrow make of a column of lists: an array of objects."""
    array = np.empty(len(rows), object)
    array[:] = rows
    return array


class ArrayOf:
    """A column of another library, as an array of objects."""

    def __init__(self, array):
        self.array = array

    def __array__(self, dtype=None, copy=None):
        return self.array


class NAType:
    """The type of pandas.NA goes by this name."""

    def __repr__(self):
        return "<NA>"


class Frame(ArrayOf):
    def to_numpy(self, dtype=None, na_value=None):
        values = [na_value if isinstance(value, NAType) else value for value in self.array.flat]
        return np.array(values, dtype).reshape(self.array.shape)


def one_missing():
    array = np.zeros((4, 10), object)
    array[2, 3] = NAType()
    return array


def vector(dtype):
    return np.array(["cat", "dog", "cat", "bird"], dtype)


# --- A truth value is no number ---

TRUE = [True, np.True_, np.array(True)]


@pytest.mark.parametrize("value", TRUE, ids=repr)
@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("axis", lambda value: softmax(LOGITS, axis=value)),
        ("axis", lambda value: log_softmax(LOGITS, axis=value)),
        ("axis", lambda value: logsumexp(LOGITS, axis=value)),
        ("axis", lambda value: cross_entropy(LOGITS, TARGETS, axis=value)),
        ("axis", lambda value: kl_divergence(LOGITS, LOGITS, axis=value)),
        ("axis", lambda value: selective_log_softmax(LOGITS, TARGETS[:, None], axis=value)),
        ("axis", lambda value: row_statistics(LOGITS, axis=value)),
        ("axis", lambda value: evaluate(LOGITS, TARGETS, axis=value)),
        ("ignore_index", lambda value: cross_entropy(LOGITS, TARGETS, ignore_index=value)),
        ("ignore_index", lambda value: cross_entropy_with_grad(LOGITS, TARGETS, ignore_index=value)),
        ("ignore_index", lambda value: binary_cross_entropy(LOGITS, SOFT, ignore_index=value)),
        ("ignore_index", lambda value: row_statistics(LOGITS, TARGETS, ignore_index=value)),
        ("ignore_index", lambda value: evaluate(LOGITS, TARGETS, ignore_index=value)),
        ("n", xent_rs.set_num_threads),
    ],
)
def test_a_bool_is_no_integer(name, call, value):
    with pytest.raises(TypeError) as caught:
        call(value)
    assert str(caught.value) == f"{name} is {value!r}; expected an integer"


@pytest.mark.parametrize("value", TRUE, ids=repr)
def test_a_bool_is_no_k(value):
    with pytest.raises(TypeError) as caught:
        evaluate(LOGITS, TARGETS, top_k=(1, value))
    assert str(caught.value) == f"top_k contains {value!r}; expected an integer"


@pytest.mark.parametrize("dtype", ["int8", "uint64", int])
def test_numbers_of_numpy_are_integers(dtype):
    assert softmax(LOGITS, axis=np.array(1, dtype)[()]).shape == (4, 10)
    assert cross_entropy(LOGITS, TARGETS, ignore_index=np.array(3, dtype)) > 0


# --- (call, text) ---

TYPE_ERRORS = [
    # Logits of another dtype
    (lambda: softmax([1, 2, 3]), f"logits have dtype int64; {FLOATS} (logits.astype(np.float32))"),
    (
        lambda: kl_divergence(LOGITS, TARGETS.astype(np.uint8)),
        f"target_logits have dtype uint8; {FLOATS} (target_logits.astype(np.float32))",
    ),
    (lambda: softmax(np.zeros(3, bool)), f"logits have dtype bool; {FLOATS}"),
    (lambda: softmax("logits"), f"logits have dtype <U6; {FLOATS}"),
    (lambda: softmax(None), f"logits have dtype object; {FLOATS}"),
    (lambda: softmax({1: 2.0}), f"logits have dtype object; {FLOATS}"),
    (lambda: softmax(np.zeros((2, 3), object)), f"logits have dtype object; {FLOATS}"),
    # Lists that make no array
    (
        lambda: cross_entropy([[1.0], [1.0, 2.0]], [0, 0]),
        "logits hold sequences of different lengths; expected one length (pad them)",
    ),
    (
        lambda: cross_entropy(LOGITS, ((0, 1), (2,))),
        "targets hold sequences of different lengths; expected one length (pad them)",
    ),
    (
        lambda: cross_entropy(LOGITS, TARGETS, weight=[[1.0], 2.0]),
        "weight holds sequences of different lengths; expected one length (pad them)",
    ),
    # Columns of sequences
    (
        lambda: softmax(column([1.0, 2.0], [3.0, 4.0])),
        "logits hold objects of type list; expected an array of numbers (np.stack(logits))",
    ),
    (
        lambda: softmax(ArrayOf(column(np.zeros(2), np.ones(2)))),
        "logits hold objects of type ndarray; expected an array of numbers (np.stack(np.asarray(logits)))",
    ),
    (
        lambda: softmax(column([1.0], [3.0])[:, None]),
        "logits hold objects of type list; expected an array of numbers (np.stack of the column)",
    ),
    (
        lambda: cross_entropy(LOGITS, TARGETS, sample_weight=column((1.0,), (3.0,))),
        "sample_weight holds objects of type tuple; expected an array of numbers (np.stack(sample_weight))",
    ),
    # Missing values
    (
        lambda: softmax(Frame(one_missing())),
        "logits hold missing values (<NA>); expected numbers (logits.to_numpy(np.float32, na_value=np.nan))",
    ),
    (lambda: softmax(one_missing()), "logits hold missing values (<NA>); expected numbers"),
    (lambda: softmax([1.0, None]), "logits hold missing values (None); expected numbers"),
    (
        lambda: cross_entropy(LOGITS, [0, 1, None, 2]),
        "targets hold missing values (None); expected numbers, or ignore_index for rows to leave out "
        "(targets.fillna(-100))",
    ),
    (
        lambda: cross_entropy(LOGITS, np.array([0, 1, np.nan, 2])),
        f"targets have dtype float64 and shape (4,); {EITHER}{NAN}",
    ),
    (
        lambda: evaluate(LOGITS, np.array([0, 1.5, np.nan, 2], np.float32)),
        f"targets have dtype float32; {CLASSES}{NAN}",
    ),
    # Labels of another dtype
    *(
        (
            lambda dtype=dtype: cross_entropy(LOGITS, TARGETS.astype(dtype)),
            f"targets have dtype {np.dtype(dtype)} and shape (4,); {EITHER}{WHOLE}",
        )
        for dtype in (np.float16, bfloat16, np.float32, np.float64)
    ),
    (lambda: row_statistics(LOGITS, TARGETS * 1.0), f"targets have dtype float64; {CLASSES}{WHOLE}"),
    (lambda: cross_entropy(LOGITS, TARGETS / 2), f"targets have dtype float64 and shape (4,); {EITHER}"),
    (
        lambda: cross_entropy(LOGITS, np.full(4, np.inf)),
        f"targets have dtype float64 and shape (4,); {EITHER}",
    ),
    (
        lambda: cross_entropy(np.zeros((0, 10)), np.zeros(0)),
        f"targets have dtype float64 and shape (0,); {CLASSES}, or shape (0, 10) (probabilities)",
    ),
    *(
        (
            lambda dtype=dtype: evaluate(LOGITS, vector(dtype)),
            "targets hold text ('cat'); expected numbers "
            "(of classes: np.unique(targets, return_inverse=True)[1])",
        )
        for dtype in (str, object)
    ),
    (lambda: softmax(vector(object)), "logits hold text ('cat'); expected numbers"),
    # One-hot
    (
        lambda: cross_entropy(LOGITS, SOFT > 0),
        f"targets have dtype bool; {CLASSES} or a floating dtype (probabilities){ONE_HOT}",
    ),
    (
        lambda: evaluate(LOGITS, SOFT > 0),
        f"targets have dtype bool; {CLASSES} (one-hot targets: targets.argmax(-1))",
    ),
    (
        lambda: row_statistics(LOGITS.T, SOFT.T > 0, axis=0),
        f"targets have dtype bool; {CLASSES} (one-hot targets: targets.argmax(0))",
    ),
]

SHAPE = "the shape of logits (4, 10) without axis -1"
VALUE_ERRORS = [
    (
        lambda: cross_entropy(LOGITS, TARGETS[:, None]),
        f"targets have shape (4, 1); expected (4,), {SHAPE} (targets.squeeze(-1))",
    ),
    (
        lambda: evaluate(LOGITS, TARGETS[:, None]),
        f"targets have shape (4, 1); expected (4,), {SHAPE} (targets.squeeze(-1))",
    ),
    (
        lambda: cross_entropy(LOGITS, TARGETS[:, None] * 1.0),
        "targets have shape (4, 1); expected (4, 10), the shape of logits, for probabilities "
        "(class indices? targets.squeeze(-1).astype(int))",
    ),
    (lambda: cross_entropy(LOGITS, TARGETS[None]), f"targets have shape (1, 4); expected (4,), {SHAPE}"),
    (
        lambda: cross_entropy(LOGITS, np.zeros((4, 10), int)),
        f"targets have shape (4, 10); expected (4,), {SHAPE}{ONE_HOT}",
    ),
    (
        lambda: evaluate(LOGITS, np.zeros((4, 10), int)),
        f"targets have shape (4, 10); expected (4,), {SHAPE} (one-hot targets: targets.argmax(-1))",
    ),
]


@pytest.mark.parametrize(
    ("exception", "call", "text"),
    [*((TypeError, *error) for error in TYPE_ERRORS), *((ValueError, *error) for error in VALUE_ERRORS)],
    ids=[text for _, text in TYPE_ERRORS + VALUE_ERRORS],
)
def test_exception_and_text(exception, call, text):
    with pytest.raises(exception) as caught:
        call()
    assert caught.type is exception
    assert str(caught.value) == text


def way_out(error):
    """The expression in the brackets at the end of an error."""
    text = str(error)
    start = max(at for at in range(len(text)) if text.startswith(" (", at) and balanced(text[at + 2 : -1]))
    return text[start + 2 : -1].rpartition(": ")[2].rpartition("? ")[2]


def balanced(text):
    """Whether every bracket in it is closed in it."""
    depths = np.cumsum([(letter == "(") - (letter == ")") for letter in text])
    return depths.size > 0 and depths[-1] == 0 and depths.min() == 0


@pytest.mark.parametrize(
    "logits",
    [
        np.arange(6).reshape(2, 3),
        column([1.0, 2.0, 3.0], [3.0, 4.0, 5.0]),
        ArrayOf(column(np.zeros(3), np.ones(3))),
        Frame(one_missing()),
    ],
    ids=["integers", "lists", "arrays of another library", "missing values"],
)
def test_the_way_out_of_logits_is_one(logits):
    with pytest.raises(TypeError) as caught:
        softmax(logits)
    assert softmax(eval(way_out(caught.value), {"np": np, "logits": logits})).ndim == 2


@pytest.mark.parametrize(
    "targets",
    [
        TARGETS[:, None],
        TARGETS[:, None] * 1.0,
        TARGETS * 1.0,
        np.eye(4, 10, dtype=bool),
        np.eye(4, 10, dtype=int),
    ],
    ids=["column", "column of floats", "floats", "one-hot bools", "one-hot integers"],
)
def test_the_way_out_of_targets_is_one(targets, random):
    logits = random.standard_normal((4, 10))
    with pytest.raises((TypeError, ValueError)) as caught:
        evaluate(logits, targets)
    found = eval(way_out(caught.value), {"np": np, "targets": targets})
    if targets.ndim == 2 and targets.dtype.kind == "f":
        with pytest.raises(ValueError, match="probabilities") as caught:
            cross_entropy(logits, targets)
        found = eval(way_out(caught.value), {"np": np, "targets": targets})
    assert cross_entropy(logits, found) == cross_entropy(logits, TARGETS)


class Raises:
    def __init__(self, error):
        self.error = error

    def __array__(self, dtype=None, copy=None):
        raise self.error


@pytest.mark.parametrize("error", [TypeError("one\ntwo"), ValueError("one"), RuntimeError("one")], ids=repr)
def test_what_an_object_raises_is_the_cause(error):
    with pytest.raises(TypeError) as caught:
        cross_entropy(LOGITS, TARGETS, sample_weight=Raises(error))
    assert str(caught.value) == "sample_weight is a Raises that does not convert to an array: one"
    assert caught.value.__cause__ is error


@pytest.mark.parametrize("error", [KeyboardInterrupt(), MemoryError("one"), KeyError("one")], ids=repr)
def test_what_says_nothing_about_the_object_is_raised_as_it_is(error):
    with pytest.raises(type(error)) as caught:
        softmax(Raises(error))
    assert caught.value is error


# --- The libraries themselves, where they are installed ---


@pytest.mark.parametrize("kind", ["csr_matrix", "csc_array", "coo_matrix", "lil_array"])
def test_scipy_sparse(kind):
    sparse = getattr(pytest.importorskip("scipy.sparse"), kind)(np.eye(3))
    with pytest.raises(TypeError) as caught:
        softmax(sparse)
    assert str(caught.value) == f"logits are a {kind}; expected an array (logits.toarray())"
    assert softmax(eval(way_out(caught.value), {"logits": sparse})).shape == (3, 3)
    with pytest.raises(TypeError, match=rf"^weight is a {kind}; expected an array \(weight.toarray\(\)\)$"):
        cross_entropy(np.zeros((3, 3)), [0, 1, 2], weight=sparse)


def test_pandas():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"a": [1.0, 2.0], "b": [0.5, 4.0]})
    assert softmax(frame).tolist() == softmax(frame.to_numpy()).tolist()
    assert cross_entropy(frame, pandas.Series([0, 1])) == cross_entropy(frame.to_numpy(), [0, 1])
    missing = pandas.DataFrame({"a": [1.0, None], "b": [0.5, 4.0]}, dtype="Float32")
    lists = pandas.Series([[1.0, 2.0], [3.0, 4.0]])
    for logits in (missing, lists):
        try:
            found = softmax(logits)
        except TypeError as error:
            found = softmax(eval(way_out(error), {"np": np, "logits": logits}))
        assert found.shape == (2, 2)
    whole = pandas.DataFrame({"a": [1.0, 2.0], "b": [0.5, 4.0]}, dtype="Float32")
    try:
        found = softmax(whole)
    except TypeError as error:
        found = softmax(eval(way_out(error), {"np": np, "logits": whole}))
    np.testing.assert_array_equal(found, softmax(whole.to_numpy(np.float32)))
    with pytest.raises(TypeError, match=r"missing values"):
        cross_entropy(frame, pandas.Series([0, None], dtype="Int64"))
    with pytest.raises(TypeError, match=r"NaN: missing values\?"):
        cross_entropy(frame, pandas.Series([0, None]))
    with pytest.raises(TypeError, match=r"^targets hold text \('a'\); "):
        cross_entropy(frame, pandas.Series(["a", "b"]))


@pytest.mark.parametrize("library", ["polars", "pyarrow"])
def test_list_columns(library):
    module = pytest.importorskip(library)
    lists = [[1.0, 2.0], [3.0, 4.0]]
    logits = module.Series(lists) if library == "polars" else module.array(lists)
    with pytest.raises(TypeError) as caught:
        softmax(logits)
    assert (
        softmax(eval(way_out(caught.value), {"np": np, "logits": logits})).tolist()
        == softmax(np.array(lists)).tolist()
    )
