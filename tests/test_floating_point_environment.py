"""Results do not depend on the caller's floating-point environment, and the caller gets it back.

Threads of PyTorch after ``set_flush_denormal``, those of XLA and all that run code built with ``-ffast-math``
flush subnormal numbers to 0; ``fesetround`` changes how they round.
"""

import contextlib
import copy
import ctypes
import mmap
import os
import platform
import signal
import threading
import time

import numpy as np
import pytest
import xent_rs
from xent_rs import probability

pytestmark = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64") or os.name != "posix",
    reason="sets the register MXCSR of x86-64, by two functions in machine code with POSIX's calls",
)

DEFAULT = 0x1F80
ENVIRONMENTS = {
    "flush to zero": DEFAULT | 1 << 15,
    "denormals are zero": DEFAULT | 1 << 6,
    "both": DEFAULT | 1 << 15 | 1 << 6,
    "down": DEFAULT | 1 << 13,
    "up": DEFAULT | 2 << 13,
    "towards zero": DEFAULT | 3 << 13,
}
# Overflow and division by 0 end the process.
TRAPS = DEFAULT & ~(1 << 10 | 1 << 9)
# Exceptions that have been signalled.
STATUS = 0x3F


class Register:
    """MXCSR of the calling thread."""

    def __init__(self):
        self._code = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        self._code.write(b"\x0f\xae\x1f\xc3" + b"\x0f\xae\x17\xc3")  # stmxcsr [rdi]; ret; ldmxcsr [rdi]; ret
        address = ctypes.addressof(ctypes.c_char.from_buffer(self._code))
        function = ctypes.CFUNCTYPE(None, ctypes.POINTER(ctypes.c_uint32))
        self._store, self._load = function(address), function(address + 4)

    @property
    def value(self):
        found = ctypes.c_uint32()
        self._store(found)
        return found.value

    @value.setter
    def value(self, value):
        self._load(ctypes.c_uint32(value))


@pytest.fixture(scope="module")
def register():
    try:
        return Register()
    except OSError as error:
        pytest.skip(f"this system gives no memory for code: {error}")


@contextlib.contextmanager
def environment(register, value):
    before = register.value
    register.value = value
    try:
        yield
    finally:
        register.value = before


def test_the_register_is_the_one_that_numbers_are_computed_by(register):
    """Otherwise the tests below prove nothing."""
    tiny, third = np.full(100, 1e-310), np.ones(100) / 3
    with environment(register, ENVIRONMENTS["both"]):
        flushed = tiny * 1.0
    with environment(register, ENVIRONMENTS["up"]):
        up = np.ones(100) / 3
    assert (flushed == 0).all()
    assert (up > third).all()


# The arguments are made here, in the default environment.
random = np.random.default_rng(7)
STEEP = np.zeros((1000, 512), np.float32)
STEEP[:, 1:] = -95  # e^-95 is subnormal
CLOSE = STEEP * np.float32(1 + 2.0**-20)
STEEP_F64 = np.array([[0.0, -720.0, -744.0]] * 3)
LOGITS = (4 * random.standard_normal((1000, 512))).astype(np.float32)
SATURATED = 100 * np.tanh(LOGITS)
CLASSES = random.integers(0, 512, 1000)
POSITIVE = LOGITS > 0
TINY, SMALL = np.full(1000, 1e-310), np.full(1000, 1e-300)
TINY_F32 = np.float32(1e-40)
TINY_WEIGHT, WEIGHT = np.full(512, TINY_F32), np.full(512, 3.3)
SOFT = np.full(STEEP.shape, TINY_F32)
P = np.array([[1e-310, 0.3, 1e-320], [0.1, 1e-308, 0.9]])
Q = P[::-1].copy()


def evaluated():
    evaluator = xent_rs.Evaluator(weight=TINY_WEIGHT, top_k=(1, 3))
    evaluator.update(LOGITS, CLASSES, sample_weight=SMALL)
    evaluator.update(LOGITS[:7], CLASSES[:7])
    return evaluator.result()


def compared():
    comparer = xent_rs.Comparer(weight=TINY_WEIGHT)
    for rows in (slice(0, 600), slice(600, None)):
        of_rows = {"sample_weight": SMALL[rows], "groups": CLASSES[rows] % 9}
        comparer.merge(copy.copy(comparer))
        comparer.update(LOGITS[rows], SATURATED[rows], CLASSES[rows], **of_rows)
    return comparer.result()


CALLS = {
    "softmax": lambda: xent_rs.softmax(STEEP),
    "softmax in float64": lambda: xent_rs.softmax(STEEP_F64),
    "log_softmax": lambda: xent_rs.log_softmax(LOGITS),
    "logsumexp": lambda: xent_rs.logsumexp(LOGITS, temperature=3.0),
    "selected": lambda: xent_rs.selective_log_softmax(LOGITS, CLASSES[:, None]),
    "statistics": lambda: xent_rs.row_statistics(LOGITS, CLASSES, softcap=11.0),
    "loss": lambda: xent_rs.cross_entropy(LOGITS, CLASSES, label_smoothing=0.1, z_loss=1e-3),
    "loss with tiny weights": lambda: xent_rs.cross_entropy(LOGITS, CLASSES, sample_weight=TINY),
    "losses": lambda: xent_rs.cross_entropy(LOGITS, CLASSES, sample_weight=TINY, reduction="none"),
    "small loss": lambda: xent_rs.cross_entropy(LOGITS[:5], CLASSES[:5], weight=WEIGHT),
    "a subnormal divisor": lambda: xent_rs.cross_entropy(LOGITS[:5], CLASSES[:5], denominator=1e-310),
    "gradient": lambda: xent_rs.cross_entropy_with_grad(STEEP, CLASSES, grad_output=1e-3),
    "gradient, small": lambda: xent_rs.cross_entropy_with_grad(LOGITS[:9], CLASSES[:9], grad_output=1e-40),
    "gradient times float32": lambda: xent_rs.cross_entropy_with_grad(
        LOGITS[:9], CLASSES[:9], reduction="sum", grad_output=TINY_F32
    ),
    "soft targets": lambda: xent_rs.cross_entropy_with_grad(STEEP, SOFT, reduction="sum"),
    "Hessian": lambda: xent_rs.cross_entropy_with_grad_hess(LOGITS, CLASSES, sample_weight=SMALL),
    "Hessian times vector": lambda: xent_rs.cross_entropy_hvp(LOGITS, CLASSES, STEEP, sample_weight=SMALL),
    "products with tiny numbers": lambda: xent_rs.kl_divergence_hvp(STEEP, STEEP, SOFT, reduction="sum"),
    "gradient of the temperature": lambda: xent_rs.cross_entropy_temperature_grad(
        STEEP, CLASSES, sample_weight=TINY
    ),
    "gradient of targets": lambda: xent_rs.cross_entropy_target_grad(STEEP, SOFT, weight=TINY_WEIGHT),
    "divergence": lambda: xent_rs.kl_divergence_with_grad(STEEP, LOGITS),
    "divergence, reverse": lambda: xent_rs.kl_divergence_with_grad(STEEP, LOGITS, kind="reverse"),
    "divergence from a mixture": lambda: xent_rs.kl_divergence_with_grad(
        STEEP, CLOSE, kind="jensen_shannon", beta=1e-300
    ),
    "binary": lambda: xent_rs.binary_cross_entropy_with_grad(
        SATURATED, POSITIVE, weight=TINY_F32, reduction="sum"
    ),
    "evaluate": lambda: xent_rs.evaluate(LOGITS, CLASSES, sample_weight=TINY),
    "Evaluator": evaluated,
    "compare": lambda: xent_rs.compare(STEEP, LOGITS, CLASSES, sample_weight=TINY),
    "compare, close": lambda: xent_rs.compare(STEEP, CLOSE, CLASSES),
    "Comparer": compared,
    "self-information": lambda: probability.self_information(P),
    "entropy": lambda: probability.entropy(P, base=3.0),
    "cross-entropy of probabilities": lambda: probability.cross_entropy(P, Q, base=2),
    "divergence of probabilities": lambda: probability.kl_divergence(P, Q),
    "binary, of probabilities": lambda: probability.binary_cross_entropy(P, TINY_F32),
}


def bits(result):
    """Everything in a result, to the bit."""
    if isinstance(result, tuple):
        return tuple(bits(part) for part in result)
    if isinstance(result, (xent_rs.Evaluation, xent_rs.Comparison)):
        return repr(result)
    return np.asarray(result).tobytes()


@pytest.mark.parametrize("value", ENVIRONMENTS.values(), ids=ENVIRONMENTS)
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_results_are_those_of_the_default_environment(call, value, register):
    xent_rs.set_num_threads(1)
    expected = bits(call())
    for threads in (1, 2):
        xent_rs.set_num_threads(threads)
        with environment(register, value):
            found = call()
        assert bits(found) == expected, f"{threads} threads"


@pytest.mark.parametrize("value", ENVIRONMENTS.values(), ids=ENVIRONMENTS)
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_the_caller_keeps_its_environment(call, value, register):
    call()
    with environment(register, value):
        call()
        after = register.value
    assert after & ~STATUS == value & ~STATUS


@pytest.mark.parametrize("name", ["loss", "gradient", "softmax"])
def test_no_exception_is_signalled_to_the_caller(name, register):
    """What `fetestexcept` finds, and floating-point traps act on, is of the caller's own operations."""
    xent_rs.set_num_threads(1)
    CALLS[name]()
    with environment(register, DEFAULT):
        CALLS[name]()
        after = register.value
    # Python itself converts numbers: what it signals for is rounding.
    assert after & STATUS & ~0x20 == 0


def test_an_error_leaves_the_caller_its_environment(register):
    with environment(register, ENVIRONMENTS["both"]):
        with pytest.raises(IndexError):
            xent_rs.cross_entropy(LOGITS, CLASSES + 512)
        with pytest.raises(ValueError, match="base"):
            probability.entropy(P, base=-1)
        after = register.value
    assert after & ~STATUS == ENVIRONMENTS["both"]


SOURCE = f"""
import sys
sys.path.insert(0, {os.path.dirname(os.path.dirname(__file__))!r})
from tests.test_floating_point_environment import *
register = Register()
xent_rs.set_num_threads(2)
"""


def test_no_call_raises_the_callers_signal(python):
    """`feenableexcept` makes the processor trap; what a call does within is its own affair."""
    python(
        SOURCE
        + """
for call in CALLS.values():
    expected = bits(call())
    with environment(register, TRAPS):
        found = call()
    assert bits(found) == expected
"""
    )


@pytest.mark.parametrize("made", ["up", "both"])
def test_workers_made_by_a_thread_in_another_environment(made, python):
    """A new thread inherits the environment of the one that makes it: here the first call of the process."""
    python(
        SOURCE
        + f"""
with environment(register, ENVIRONMENTS[{made!r}]):
    found = {{bits(CALLS["Hessian"]()) for _ in range(20)}}
xent_rs.set_num_threads(1)
assert found == {{bits(CALLS["Hessian"]())}}
"""
    )


def test_the_callers_code_runs_in_the_callers_environment(register):
    seen = []

    class Array:
        def __array__(self, dtype=None, copy=None):
            seen.append(register.value)
            return LOGITS

    class Number:
        def __float__(self):
            seen.append(register.value)
            return 2.0

    with environment(register, ENVIRONMENTS["both"]):
        xent_rs.cross_entropy(Array(), CLASSES, temperature=Number())
        xent_rs.binary_cross_entropy(Array(), POSITIVE)
    assert len(seen) == 3
    assert {value & ~STATUS for value in seen} == {ENVIRONMENTS["both"]}


def test_signal_handlers_run_in_the_callers_environment(register):
    seen = []
    rows, targets = np.broadcast_to(np.float32(0), (200_000, 20_000)), np.zeros(200_000, np.int8)
    # To this thread: it is the one that handlers run in.
    send = threading.Timer(0.05, signal.pthread_kill, (threading.get_ident(), signal.SIGALRM))
    before = signal.signal(signal.SIGALRM, lambda *_: seen.append((register.value, time.monotonic())))
    threads = xent_rs.get_num_threads()
    xent_rs.set_num_threads(min(2, threads))  # more are done before the signal
    try:
        with environment(register, ENVIRONMENTS["both"]):
            send.start()
            xent_rs.cross_entropy(rows, targets)
            end, after = time.monotonic(), register.value
        send.join()
    finally:
        signal.signal(signal.SIGALRM, before)
        xent_rs.set_num_threads(threads)
    [(value, handled)] = seen
    assert handled < end - 0.05, "the handler was to run during the call"
    assert value & ~STATUS == after & ~STATUS == ENVIRONMENTS["both"]
