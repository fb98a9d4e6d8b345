"""Tensors of other frameworks by DLPack: of a producer made here, and of PyTorch and JAX where installed."""

import ctypes
import gc
import math
import sys
import weakref

import numpy as np
import pytest
import xent_rs
from ml_dtypes import bfloat16
from xent_rs import _xent_rs

from .cases import DTYPES

# --- A producer, with the structures of https://dmlc.github.io/dlpack/latest/c_api.html ---

INT, UINT, FLOAT, OPAQUE, BFLOAT, COMPLEX, BOOL, FLOAT8 = range(8)
CODES = {"i": INT, "u": UINT, "f": FLOAT, "c": COMPLEX, "b": BOOL}
CPU, CUDA, CUDA_HOST, METAL = 1, 2, 3, 8


class Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class Managed(ctypes.Structure):
    _fields_ = (("tensor", Tensor), ("context", ctypes.c_void_p), ("deleter", ctypes.c_void_p))


class Versioned(ctypes.Structure):
    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("tensor", Tensor),
    )


DELETER = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
DESTRUCTOR = ctypes.PYFUNCTYPE(None, ctypes.c_void_p)
API = ctypes.pythonapi
API.PyCapsule_New.restype = ctypes.py_object
API.PyCapsule_New.argtypes = [ctypes.c_void_p, ctypes.c_char_p, DESTRUCTOR]
API.PyCapsule_GetName.restype = ctypes.c_char_p
API.PyCapsule_GetName.argtypes = [ctypes.py_object]
# In a destructor the capsule has no references left, and must not get one.
IS_VALID = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p)(("PyCapsule_IsValid", API))
GET_POINTER = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", API)
)
NAMES = {False: b"dltensor", True: b"dltensor_versioned"}


def integers(values):
    return (ctypes.c_int64 * len(values))(*values)


# What is exported, by the address of its managed tensor: the producer and what must live meanwhile.
EXPORTS = {}


@DELETER
def deleter(managed):
    EXPORTS.pop(managed)[0].deleted += 1


@DESTRUCTOR
def destructor(capsule):
    """Delete what nobody took."""
    for name in NAMES.values():
        if IS_VALID(capsule, name):
            deleter(GET_POINTER(capsule, name))


class Producer:
    """Exports an array by DLPack alone, counts what becomes of each export, and can lie about all of it."""

    def __init__(self, array, *, versioned=True, knows_version=True, major=1, deletes=True, **lies):
        self.array, self.versioned, self.knows_version, self.major = array, versioned, knows_version, major
        self.deletes, self.lies = deletes, lies
        self.exports = self.deleted = 0
        self.kept = None

    def __dlpack_device__(self):
        return self.lies.get("device", CPU), 0

    def __dlpack__(self, *, stream=None, **options):
        if not self.knows_version and options:
            raise TypeError("__dlpack__() got an unexpected keyword argument 'max_version'")
        assert not self.knows_version or options == {"max_version": (1, 0)}
        self.exports += 1
        managed = Versioned() if self.versioned else Managed()
        if self.versioned:
            managed.major, managed.minor, managed.flags = self.major, 3, 1
        array, offset = self.array, self.lies.get("byte_offset", 0)
        strides = [stride // array.itemsize for stride in array.strides]
        shape, strides = self.lies.get("shape", array.shape), self.lies.get("strides", strides)
        tensor = managed.tensor
        tensor.data = self.lies.get("data", array.__array_interface__["data"][0] - offset)
        tensor.device_type = self.lies.get("tensor_device", CPU)
        tensor.ndim = self.lies.get("ndim", len(shape))
        is_bfloat16 = array.dtype == bfloat16
        tensor.code = self.lies.get("code", BFLOAT if is_bfloat16 else CODES.get(array.dtype.kind, OPAQUE))
        tensor.bits = self.lies.get("bits", array.itemsize * 8)
        tensor.lanes = self.lies.get("lanes", 1)
        lengths, steps = integers(shape), None if strides is None else integers(strides)
        tensor.shape, tensor.byte_offset = lengths, offset
        if strides is not None:
            tensor.strides = steps
        managed.deleter = ctypes.cast(deleter, ctypes.c_void_p) if self.deletes else None
        EXPORTS[ctypes.addressof(managed)] = self, managed, lengths, steps
        capsule = API.PyCapsule_New(ctypes.addressof(managed), NAMES[self.versioned], destructor)
        self.kept = capsule if self.lies.get("keeps") else None
        return capsule

    def alive(self):
        return sum(producer is self for producer, *_ in EXPORTS.values())


both = pytest.mark.parametrize("versioned", [False, True], ids=["before version 1", "version 1"])
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)

LAYOUTS = {
    "C": lambda array: array,
    "F": lambda array: array.T.copy().T,
    "every other": lambda array: np.repeat(np.repeat(array, 2, axis=1), 3, axis=0)[::3, ::2],
    "backwards": lambda array: array[::-1, ::-1],
    "one row for all": lambda array: np.broadcast_to(array[0], array.shape),
}


@both
@dtypes
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_any_layout_is_read_in_place(layout, dtype, versioned, random):
    array = layout((4 * random.standard_normal((6, 10))).astype(dtype))
    producer = Producer(array, versioned=versioned, byte_offset=6)
    assert xent_rs.softmax(producer).tobytes() == xent_rs.softmax(array).tobytes()
    assert xent_rs.softmax(producer, axis=0).tobytes() == xent_rs.softmax(array, axis=0).tobytes()
    assert (producer.exports, producer.deleted, producer.alive()) == (2, 2, 0)


@both
def test_a_producer_of_before_version_1_is_asked_again(versioned):
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    producer = Producer(array, versioned=versioned, knows_version=False)
    assert xent_rs.logsumexp(producer).tolist() == xent_rs.logsumexp(array).tolist()
    assert (producer.exports, producer.deleted) == (1, 1)


def test_null_strides_are_c_order():
    array = np.arange(24, dtype=np.float64).reshape(2, 3, 4)
    assert xent_rs.softmax(Producer(array, strides=None)).tobytes() == xent_rs.softmax(array).tobytes()


@pytest.mark.parametrize("dtype", ["i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8"])
def test_integer_targets(dtype, random):
    logits, targets = random.standard_normal((5, 7)), np.arange(5).astype(dtype)
    assert xent_rs.cross_entropy(logits, Producer(targets)) == xent_rs.cross_entropy(logits, targets)


def compared(reference, candidate, targets, weight, sample_weight):
    comparer = xent_rs.Comparer(weight=weight)
    comparer.update(reference, candidate, targets, sample_weight=sample_weight)
    return comparer.result()


def evaluated(logits, targets, weight):
    evaluator = xent_rs.Evaluator(weight=weight)
    evaluator.update(logits, targets)
    return evaluator.result()


def calls(given, logits):
    """Every argument that is an array, in every function: `given` makes what is passed of it."""
    rows, classes = logits.shape
    soft = np.full(logits.shape, 1 / 8).astype(logits.dtype)
    class_weight, row_weight = soft[0] + logits.dtype.type(1), soft[:, 0] + logits.dtype.type(2)
    labels, hot = np.arange(rows), np.eye(rows, classes).astype(logits.dtype)
    x, y, t, w, s = given(logits), given(labels), given(soft), given(class_weight), given(row_weight)
    options = {"weight": w, "sample_weight": s}
    return {
        "cross_entropy": lambda: xent_rs.cross_entropy(x, y, **options),
        "probabilities": lambda: xent_rs.cross_entropy(x, t, **options),
        "gradient": lambda: xent_rs.cross_entropy_with_grad(x, y, **options, reduction="none", grad_output=s),
        "hessian": lambda: xent_rs.cross_entropy_with_grad_hess(x, t, **options),
        "binary": lambda: xent_rs.binary_cross_entropy_with_grad(x, given(hot), weight=w, pos_weight=t),
        "binary, class indices": lambda: xent_rs.binary_cross_entropy(x, given(hot.astype(np.int16))),
        "divergence": lambda: xent_rs.kl_divergence_with_grad(x, t, sample_weight=s),
        "product": lambda: xent_rs.cross_entropy_hvp(x, y, t, **options),
        "product of the divergence": lambda: xent_rs.kl_divergence_hvp(x, t, t, sample_weight=s),
        "gradient of targets": lambda: xent_rs.cross_entropy_target_grad(x, t, **options),
        "gradient of the temperature": lambda: xent_rs.cross_entropy_temperature_grad(x, t, **options),
        "softmax": lambda: xent_rs.softmax(x),
        "log_softmax": lambda: xent_rs.log_softmax(x, axis=0),
        "logsumexp": lambda: xent_rs.logsumexp(x),
        "selective": lambda: xent_rs.selective_log_softmax(x, given(labels[:, None])),
        "statistics": lambda: tuple(xent_rs.row_statistics(x, y)),
        "evaluate": lambda: xent_rs.evaluate(x, y, **options),
        "Evaluator": lambda: evaluated(x, y, w),
        "compare": lambda: xent_rs.compare(x, t, y, **options, groups=given(labels)),
        "Comparer": lambda: compared(x, t, y, w, s),
        "entropy": lambda: xent_rs.probability.entropy(t),
        "probability": lambda: xent_rs.probability.kl_divergence(t, given(soft / logits.dtype.type(2))),
    }


NAMES_OF_CALLS = list(calls(lambda array: array, np.zeros((2, 3))))


def assert_same(found, expected):
    if isinstance(expected, tuple):
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    else:
        assert type(found) is type(expected)
        assert getattr(found, "dtype", None) == getattr(expected, "dtype", None)
        np.testing.assert_array_equal(found, expected)


@dtypes
@pytest.mark.parametrize("call", NAMES_OF_CALLS)
def test_every_argument_of_every_function(call, dtype, random):
    logits = (3 * random.standard_normal((3, 5))).astype(dtype)
    producers = []

    def given(array):
        producers.append(Producer(array))
        return producers[-1]

    assert_same(calls(given, logits)[call](), calls(lambda array: array, logits)[call]())
    assert all(producer.exports == producer.deleted for producer in producers)
    assert any(producer.exports for producer in producers)


def test_no_axes_and_no_elements():
    assert xent_rs.cross_entropy(np.zeros(4), Producer(np.array(2))) == pytest.approx(math.log(4))
    nothing = np.zeros((0, 3), np.float32)
    for lies in ({}, {"data": None}, {"data": None, "byte_offset": 64, "strides": None}):
        producer = Producer(nothing, **lies)
        assert xent_rs.softmax(producer).shape == (0, 3)
        assert math.isnan(xent_rs.cross_entropy(producer, Producer(np.zeros(0, np.int64), **lies)))
        assert producer.deleted == producer.exports == 2


def test_the_deleter_is_called_when_the_last_view_dies():
    """Not before, and once: the private function returns the array that stands for the tensor."""
    producer = Producer(np.arange(12, dtype=np.float32).reshape(3, 4))
    array = _xent_rs.as_array(producer, "logits")
    assert array.__array_interface__["data"][0] == producer.array.__array_interface__["data"][0]
    assert not array.flags.writeable
    view = array[1:, ::2]
    del array
    gc.collect()
    assert (producer.deleted, producer.alive()) == (0, 1)
    assert view.tolist() == [[4, 6], [8, 10]]
    del view
    gc.collect()
    assert (producer.deleted, producer.alive()) == (1, 0)


def test_no_deleter_is_fine():
    producer = Producer(np.zeros((2, 3)), deletes=False)
    assert xent_rs.logsumexp(producer).tolist() == pytest.approx([math.log(3)] * 2)
    assert (producer.deleted, producer.alive()) == (0, 1)
    EXPORTS.clear()


def test_a_deleter_that_runs_while_an_exception_is_on_its_way():
    """The targets are wrong, so the logits die on the way out: their deleter runs Python meanwhile."""
    producer = Producer(np.zeros((2, 3)))
    with pytest.raises(IndexError, match=r"^targets\[1\] is 3; "):
        xent_rs.cross_entropy(producer, [0, 3])
    assert producer.deleted == producer.exports == 1


def test_nothing_of_the_producer_is_kept():
    producer = Producer(np.zeros((2, 3)))
    xent_rs.softmax(producer)
    gone = weakref.ref(producer.array)
    del producer
    gc.collect()
    assert gone() is None


@both
def test_a_capsule_is_taken_once(versioned):
    producer = Producer(np.zeros((2, 3)), versioned=versioned, keeps=True)
    xent_rs.softmax(producer)
    capsule = producer.kept
    assert API.PyCapsule_GetName(capsule) == b"used_" + NAMES[versioned]

    class Again:
        def __dlpack__(self, **options):
            return capsule

    with pytest.raises(TypeError) as caught:
        xent_rs.softmax(Again())
    assert str(caught.value) == (
        "logits are a Again that does not convert to an array: "
        "its DLPack capsule holds no tensor, or somebody took it before"
    )
    assert producer.deleted == 1


GPU_TEXT = "{} on device type {}; expected CPU memory (device type 1)"


@pytest.mark.parametrize("device", [CUDA, METAL, 0, -1])
def test_another_device_is_refused_before_its_memory_is_asked_for(device):
    producer = Producer(np.zeros((2, 3)), device=device)
    with pytest.raises(TypeError) as caught:
        xent_rs.softmax(producer)
    assert str(caught.value) == GPU_TEXT.format("logits are", device)
    with pytest.raises(TypeError) as caught:
        xent_rs.cross_entropy(np.zeros((2, 3)), [0, 1], weight=producer)
    assert str(caught.value) == GPU_TEXT.format("weight is", device)
    assert producer.exports == 0


def test_host_memory_of_a_gpu_is_read():
    array = np.arange(6.0).reshape(2, 3)
    producer = Producer(array, device=CUDA_HOST, tensor_device=CUDA_HOST)
    assert xent_rs.softmax(producer).tobytes() == xent_rs.softmax(array).tobytes()


UNKNOWN = "its DLPack dtype has code {}, {} bits and {} lanes, which NumPy does not know"
REFUSED = {
    "lanes": ({"lanes": 4}, UNKNOWN.format(FLOAT, 32, 4)),
    "no lanes": ({"lanes": 0}, UNKNOWN.format(FLOAT, 32, 0)),
    "opaque": ({"code": OPAQUE}, UNKNOWN.format(OPAQUE, 32, 1)),
    "float8": ({"code": FLOAT8, "bits": 8}, UNKNOWN.format(FLOAT8, 8, 1)),
    "four bits": ({"code": UINT, "bits": 4}, UNKNOWN.format(UINT, 4, 1)),
    "three bytes": ({"code": INT, "bits": 24}, UNKNOWN.format(INT, 24, 1)),
    "no bits": ({"code": FLOAT, "bits": 0}, UNKNOWN.format(FLOAT, 0, 1)),
    "wide bfloat": ({"code": BFLOAT, "bits": 32}, UNKNOWN.format(BFLOAT, 32, 1)),
    "no memory": ({"data": None}, "its DLPack tensor has no memory"),
    "negative length": ({"shape": (2, -3)}, "its DLPack tensor has an impossible shape"),
    "negative axes": ({"ndim": -1}, "its DLPack tensor has an impossible shape"),
    "stride beyond all memory": ({"strides": (1 << 62, 1)}, "its DLPack tensor has an impossible shape"),
    "device of the tensor": ({"tensor_device": CUDA}, "its memory is on device type 2"),
    "version": ({"major": 2}, "it exports version 2 of DLPack; expected version 1"),
}


@pytest.mark.parametrize(("lies", "text"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_tensor_of_numbers_is_refused_and_deleted(lies, text):
    producer = Producer(np.zeros((2, 3), np.float32), **lies)
    with pytest.raises(TypeError) as caught:
        xent_rs.softmax(producer)
    assert str(caught.value) == f"logits are a Producer that does not convert to an array: {text}"
    assert (producer.exports, producer.deleted, producer.alive()) == (1, 1, 0)


@pytest.mark.parametrize(
    "lies", [{"shape": (1,) * 100, "strides": None}, {"shape": (1 << 40, 1 << 40)}], ids=str
)
def test_what_numpy_refuses_is_deleted(lies):
    producer = Producer(np.zeros((2, 3), np.float32), **lies)
    with pytest.raises(TypeError, match=r"^logits are a Producer that does not convert to an array: "):
        xent_rs.softmax(producer)
    assert (producer.exports, producer.deleted, producer.alive()) == (1, 1, 0)


@pytest.mark.parametrize(
    ("dtype", "text"),
    [
        ("complex64", "float16, bfloat16, float32 or float64"),
        ("bool", "float16, bfloat16, float32 or float64"),
        ("int64", "float16, bfloat16, float32 or float64 (logits.astype(np.float32))"),
    ],
)
def test_other_dtypes_are_refused_as_those_of_arrays_are(dtype, text):
    with pytest.raises(TypeError) as caught:
        xent_rs.softmax(Producer(np.zeros((2, 3), dtype)))
    assert str(caught.value) == f"logits have dtype {dtype}; expected {text}"


class Raises:
    def __init__(self, error, result=None):
        self.error, self.result = error, result

    def __dlpack__(self, **options):
        if self.error:
            raise self.error
        return self.result


@pytest.mark.parametrize(
    "error", [TypeError("a"), BufferError("a"), RuntimeError("a"), ValueError("a")], ids=repr
)
def test_what_a_producer_raises_is_the_cause(error):
    with pytest.raises(TypeError) as caught:
        xent_rs.softmax(Raises(error))
    assert str(caught.value) == "logits are a Raises that does not convert to an array: a"
    assert caught.value.__cause__ is error


@pytest.mark.parametrize("error", [KeyboardInterrupt(), MemoryError("a"), KeyError("a")], ids=repr)
def test_what_says_nothing_about_the_object_is_raised_as_it_is(error):
    with pytest.raises(type(error)) as caught:
        xent_rs.softmax(Raises(error))
    assert caught.value is error


@pytest.mark.parametrize("result", [None, 3, np.zeros((2, 3))], ids=["None", "int", "ndarray"])
def test_what_is_no_capsule_is_refused(result):
    with pytest.raises(TypeError) as caught:
        xent_rs.softmax(Raises(None, result))
    name = type(result).__name__
    assert str(caught.value) == (
        f"logits are a Raises that does not convert to an array: "
        f"its __dlpack__ returned a {name}; expected a capsule"
    )


# --- bfloat16 without ml_dtypes, in a process of its own ---

WITHOUT = """
import sys
sys.modules["ml_dtypes"] = None
import numpy as np
import xent_rs
from xent_rs import _xent_rs

exec(open({path!r}).read().split("both = ")[0].replace("from ml_dtypes import bfloat16", "bfloat16 = None"
    ).replace("from .cases import DTYPES", "").replace("import pytest", ""))

bits = np.random.default_rng(0).standard_normal((4, 6), np.float32).view(np.uint32) >> 16
wide = (bits << 16).view(np.float32)
def given(bits, **lies):
    return Producer(bits.astype(np.uint16), code=BFLOAT, **lies)
x = given(bits)
def same(found, expected):
    np.testing.assert_array_equal(found, expected)
"""

USES = """
y, half = np.arange(4), given(np.full((4, 6), 0x3F00))
same(xent_rs.cross_entropy(x, y, weight=given(np.full(6, 0x3F00)), sample_weight=given(np.full(4, 0x3F80))),
     xent_rs.cross_entropy(wide, y, weight=np.full(6, 0.5)))
same(xent_rs.cross_entropy(x, half), xent_rs.cross_entropy(wide, np.full((4, 6), 0.5)))
same(xent_rs.kl_divergence(x, half), xent_rs.kl_divergence(wide, np.full((4, 6), 0.5, np.float32)))
same(xent_rs.binary_cross_entropy(x, half, weight=given(np.full((4, 1), 0x3F00))),
     xent_rs.binary_cross_entropy(wide, np.full((4, 6), 0.5), weight=0.5))
same(xent_rs.logsumexp(x), xent_rs.logsumexp(wide))
same(xent_rs.selective_log_softmax(x, y[:, None]), xent_rs.selective_log_softmax(wide, y[:, None]))
halves = given(np.full(6, 0x3F00))
assert xent_rs.evaluate(x, y, weight=halves) == xent_rs.evaluate(wide, y, weight=np.full(6, 0.5))
same(xent_rs.probability.entropy(half, axis=None), 24 * 0.5 * np.log(2))
out = np.empty((4, 6), np.float32)
assert xent_rs.softmax(x, out=out) is out
same(out, xent_rs.softmax(wide))
assert x.exports == x.deleted
"""

ERRORS = """
for call in (
    lambda: xent_rs.softmax(x),
    lambda: xent_rs.cross_entropy_with_grad(x, np.arange(4)),
    lambda: xent_rs.cross_entropy_with_grad_hess(x, np.arange(4)),
):
    try:
        call()
    except ImportError as error:
        assert str(error) == ("a result of dtype bfloat16 needs the package ml_dtypes: "
            "pip install ml_dtypes, or give out= of float32 or float16"), error
    else:
        raise AssertionError
for call in (xent_rs.cross_entropy, xent_rs.evaluate):
    try:
        call(wide, given(np.zeros(4)))
    except TypeError as error:
        assert str(error).startswith("targets have dtype bfloat16"), error
    else:
        raise AssertionError
hess_out = np.empty((4, 6), np.float16)
loss, grad, hess = xent_rs.cross_entropy_with_grad_hess(x, np.arange(4), hess_out=hess_out)
assert grad.dtype == hess.dtype == np.float16
"""


@pytest.mark.parametrize("source", [USES, ERRORS], ids=["used", "errors"])
def test_bfloat16_without_ml_dtypes(source, python):
    python(WITHOUT.format(path=__file__) + source)


# --- PyTorch and JAX ---


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


def tensor_of(torch, array):
    if array.dtype == bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


@dtypes
@pytest.mark.parametrize("call", NAMES_OF_CALLS)
def test_torch(call, dtype, torch, random):
    logits = (3 * random.standard_normal((3, 5))).astype(dtype)
    found = calls(lambda array: tensor_of(torch, array), logits)[call]()
    assert_same(found, calls(lambda array: array, logits)[call]())


@dtypes
def test_torch_tensors_are_read_in_place(dtype, torch, random):
    array = random.standard_normal((4, 6, 8)).astype(dtype)
    tensor = tensor_of(torch, array)
    for view in (tensor, tensor[1:, ::2], tensor.permute(2, 0, 1), tensor[0, 0].expand(3, 8), tensor[:0]):
        found = _xent_rs.as_array(view, "logits")
        assert found.dtype == dtype
        assert view.numel() == 0 or found.__array_interface__["data"][0] == view.data_ptr()
        assert (
            found.strides == tuple(stride * dtype.itemsize for stride in view.stride()) or view.numel() == 0
        )
    found = _xent_rs.as_array(tensor_of(torch, array.copy()), "logits")  # Its tensor is gone.
    np.testing.assert_array_equal(found, array)


def torch_refusals(torch):
    bf16 = torch.zeros(2, 3, dtype=torch.bfloat16)
    unconverted = "logits are a {} that does not convert to an array: {}"
    gradient = "logits are a tensor that requires a gradient; expected one without (logits.detach())"
    meta = "logits are on device meta; expected CPU memory"
    sparse = "can't convert Sparse layout tensor to numpy. Use Tensor.to_dense() first."
    negative = (
        "Can't call numpy() on Tensor that has negative bit set. Use tensor.resolve_neg().numpy() instead."
    )
    return [
        (torch.zeros(2, 3, requires_grad=True), gradient),
        (bf16.clone().requires_grad_(), gradient),
        (
            torch.nn.Parameter(bf16),
            "logits are a tensor that requires a gradient; expected one without (logits.detach())",
        ),
        (torch.zeros(2, 3, device="meta"), meta),
        (torch.zeros(2, 3, device="meta", dtype=torch.bfloat16), meta),
        (torch.zeros(2, 3).to_sparse(), unconverted.format("Tensor", sparse)),
        (bf16.to_sparse(), unconverted.format("Tensor", sparse)),
        (torch.zeros(2, 3, dtype=torch.complex64).conj().imag, unconverted.format("Tensor", negative)),
        (torch._neg_view(bf16), unconverted.format("Tensor", negative)),
        (
            torch.zeros(2, 3).to(torch.float8_e4m3fn),
            unconverted.format("Tensor", "Got unsupported ScalarType Float8_e4m3fn"),
        ),
        (
            torch.zeros(2, 3, dtype=torch.int32),
            "logits have dtype int32; expected float16, bfloat16, float32 or "
            "float64 (logits.astype(np.float32))",
        ),
    ]


def test_torch_tensors_that_are_refused(torch):
    for tensor, text in torch_refusals(torch):
        with pytest.raises(TypeError) as caught:
            xent_rs.cross_entropy(tensor, [0, 1])
        assert str(caught.value) == text
    logits = np.zeros((2, 3), np.float32)
    with pytest.raises(TypeError, match=r"^weight is a tensor that requires a gradient; .*weight.detach"):
        xent_rs.cross_entropy(logits, [0, 1], weight=torch.ones(3, requires_grad=True))
    with pytest.raises(TypeError, match=r"^out is a Tensor; expected a numpy.ndarray$"):
        xent_rs.softmax(logits, out=torch.zeros(2, 3))
    with pytest.raises(TypeError, match=r"^axis is tensor\(True\); expected an integer$"):
        xent_rs.softmax(logits, axis=torch.tensor(True))
    assert xent_rs.softmax(logits, axis=torch.tensor(1)).shape == (2, 3)


def test_results_do_not_keep_a_torch_tensor(torch):
    tensor = torch.zeros(4, 8, dtype=torch.bfloat16)
    before = sys.getrefcount(tensor)
    result = xent_rs.softmax(tensor)
    assert sys.getrefcount(tensor) == before
    assert result.dtype == bfloat16


@dtypes
@pytest.mark.parametrize("call", NAMES_OF_CALLS)
def test_jax(call, dtype, random):
    jax = pytest.importorskip("jax")
    logits = (3 * random.standard_normal((3, 5))).astype(dtype)
    with jax.enable_x64(True):
        found = calls(jax.numpy.asarray, logits)[call]()
    assert_same(found, calls(lambda array: array, logits)[call]())


def test_jax_tracers_are_refused():
    jax = pytest.importorskip("jax")
    with pytest.raises(TypeError, match=r"^logits are a .*Tracer.* that does not convert to an array: "):
        jax.jit(xent_rs.softmax)(jax.numpy.zeros((2, 3)))
