"""What made other extensions crash, hang or lie: forks, interrupts, races, unreadable pages, panics."""

import ctypes
import inspect
import mmap
import os
import signal
import sys
import threading
import time

import numpy as np
import pytest
import xent_rs

from .cases import DTYPES
from .growth import GROWTH

dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)
linux = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")
posix = pytest.mark.skipif(os.name != "posix", reason="needs POSIX")

# --- Processes ---

# Large enough to reach the pool: single rows are computed on the caller's thread and would pass.
LARGE = """
import os, signal, sys, threading, time
import numpy as np
import xent_rs

xent_rs.set_num_threads(2)
logits = np.random.default_rng(0).standard_normal((3000, 1000)).astype(np.float32)
targets = np.arange(3000) % 1000

def answer():
    loss, grad = xent_rs.cross_entropy_with_grad(logits, targets)
    others = (
        xent_rs.cross_entropy(logits, targets),
        xent_rs.binary_cross_entropy(logits[:300], logits[:300]),
        xent_rs.kl_divergence(logits, logits[::-1]),
        xent_rs.row_statistics(logits, targets).entropy.tobytes(),
    )
    return loss, grad.tobytes(), *others

def in_child(work):
    child = os.fork()
    if child == 0:
        signal.alarm(20)  # A hang ends here.
        os._exit(0 if work() else 1)
    assert os.waitpid(child, 0)[1] == 0
"""

FORK = """
def same():
    return answer() == expected and xent_rs.get_num_threads() == 2

def same_in_grandchild():
    in_child(same)
    return same()

expected = answer()
in_child(same)
in_child(same_in_grandchild)
assert same()
"""

FORK_WHILE_IN_USE = """
expected = answer()
done = threading.Event()

def use():
    while not done.is_set():
        answer()

users = [threading.Thread(target=use) for _ in range(2)]
for user in users:
    user.start()
for _ in range(20):
    in_child(lambda: answer() == expected)
done.set()
for user in users:
    user.join(20)
assert answer() == expected
"""

MULTIPROCESSING = """
import multiprocessing
expected = xent_rs.cross_entropy(logits, targets)
with multiprocessing.get_context({method!r}).Pool(2) as pool:
    losses = [pool.apply_async(xent_rs.cross_entropy, (logits, targets)) for _ in range(6)]
    assert [loss.get(30) for loss in losses] == [expected] * 6
assert xent_rs.cross_entropy(logits, targets) == expected
"""


@posix
@pytest.mark.parametrize("source", [FORK, FORK_WHILE_IN_USE], ids=["after use", "while in use"])
def test_forked_child_computes(source, python):
    """Threads do not survive a fork: a child that waits for its parent's pool waits for ever."""
    python(LARGE + source)


@posix
@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_multiprocessing(method, python):
    python(LARGE + MULTIPROCESSING.format(method=method))


INTERRUPT = """
import os, signal, sys, threading, time
import numpy as np
import xent_rs

xent_rs.set_num_threads(min(2, xent_rs.get_num_threads()))  # more are done before the interrupt
{arrays}

def interrupt():
    global sent
    time.sleep(0.4)
    sent = time.monotonic()
    os.kill(os.getpid(), signal.SIGINT)

threading.Thread(target=interrupt, daemon=True).start()
try:
    {call}
except KeyboardInterrupt:
    waited = time.monotonic() - sent
else:
    sys.exit("the call was over before the interrupt")
assert waited < 1, waited
small = np.zeros((2000, 1000), np.float32)
assert abs(xent_rs.cross_entropy(small, np.zeros(2000, int)) - np.log(1000)) < 1e-6
"""

# Rows that are one row in memory: seconds of work without its memory.
MANY_ROWS = """
logits = np.broadcast_to(np.zeros(128_256, {dtype!r}), (400_000, 128_256))
targets = np.zeros(len(logits), np.int8)
"""

INTERRUPTED = {
    "loss": (MANY_ROWS.format(dtype="f4"), "xent_rs.cross_entropy(logits, targets)"),
    "row losses, float64": (
        MANY_ROWS.format(dtype="f8"),
        "xent_rs.cross_entropy(logits, targets, reduction='none')",
    ),
    "logsumexp, float16": (MANY_ROWS.format(dtype="f2"), "xent_rs.logsumexp(logits)"),
    "loss of byte-swapped logits": (MANY_ROWS.format(dtype=">f4"), "xent_rs.cross_entropy(logits, targets)"),
    "loss along the first axis": (
        MANY_ROWS.format(dtype="f4"),
        "xent_rs.cross_entropy(np.broadcast_to(logits[0][:, None], logits.T.shape), targets, axis=0)",
    ),
    "few classes": (
        "logits = np.broadcast_to(np.zeros(100, 'f4'), (100_000_000, 100))\n"
        "targets = np.broadcast_to(np.int8(0), 100_000_000)",
        "xent_rs.cross_entropy(logits, targets)",
    ),
    "probabilities, every option": (
        "logits = np.broadcast_to(np.zeros(1000, 'f4'), (10_000_000, 1000))\n"
        "targets = np.broadcast_to(np.full(1000, 1e-3, 'f4'), logits.shape)",
        "xent_rs.cross_entropy(logits, targets, weight=np.ones(1000), label_smoothing=1, softcap=9)",
    ),
    "binary": (
        "logits = np.broadcast_to(np.zeros(100_000, 'f4'), (100_000, 100_000))\n"
        "targets = np.broadcast_to(False, logits.shape)",
        "xent_rs.binary_cross_entropy(logits, targets)",
    ),
    "divergence": (
        MANY_ROWS.format(dtype="f4"),
        "xent_rs.kl_divergence(logits, logits)",
    ),
    "row statistics": (MANY_ROWS.format(dtype="f2"), "xent_rs.row_statistics(logits, targets, softcap=9.0)"),
    "selected": (MANY_ROWS.format(dtype="f8"), "xent_rs.selective_log_softmax(logits, targets[:, None])"),
    "Hessian": (
        "logits = np.broadcast_to(np.linspace(-9, 9, 128_256).astype('f4'), (1250, 128_256))\n"
        "xent_rs._xent_rs.set_simd_level(xent_rs._xent_rs.simd_levels()[-1])\n"
        "xent_rs.set_num_threads(1)\n"
        "targets = np.zeros(len(logits), np.int8)\n"
        "out = np.empty(logits.shape, np.float32)\n"
        "hess_out = np.empty(logits.shape, np.float32)",
        "xent_rs.cross_entropy_with_grad_hess(logits, targets, out=out, hess_out=hess_out)",
    ),
    "gradient": (
        "xent_rs._xent_rs.set_simd_level(xent_rs._xent_rs.simd_levels()[-1])\n"
        "xent_rs.set_num_threads(1)\n"
        "logits = np.broadcast_to(np.linspace(-9, 9, 128_256).astype('f4'), (2500, 128_256))\n"
        "targets = np.zeros(len(logits), np.int8)\n"
        "out = np.empty(logits.shape, np.float32)",
        "xent_rs.cross_entropy_with_grad(logits, targets, out=out)",
    ),
}


@posix
@pytest.mark.parametrize(("arrays", "call"), INTERRUPTED.values(), ids=INTERRUPTED)
def test_interrupt_ends_a_long_call_within_a_second(arrays, call, python):
    """Python sees Ctrl-C only where native code asks for it."""
    python(INTERRUPT.format(arrays=arrays, call=call))


# function: what it takes besides the logits, for so many rows.
BESIDE = {
    "cross_entropy": lambda logits: [np.zeros(len(logits), int)],
    "cross_entropy_with_grad": lambda logits: [np.zeros(len(logits), int)],
    "cross_entropy_with_grad_hess": lambda logits: [logits],
    "binary_cross_entropy": lambda logits: [logits],
    "binary_cross_entropy_with_grad": lambda logits: [logits],
    "kl_divergence": lambda logits: [logits],
    "kl_divergence_with_grad": lambda logits: [logits],
    "selective_log_softmax": lambda logits: [np.zeros((len(logits), 2), int)],
    "row_statistics": lambda logits: [np.zeros(len(logits), int)],
    "logsumexp": lambda logits: [],
    "softmax": lambda logits: [],
}


@pytest.mark.parametrize("name", BESIDE)
def test_other_python_threads_run_meanwhile(name):
    """The interpreter lock is not held while numbers are crunched."""
    logits = np.zeros((1, 128_256), np.float32)
    function = getattr(xent_rs, name)
    ticks, done = [0], threading.Event()

    def tick():
        while not done.is_set():
            time.sleep(1e-3)
            ticks[0] += 1

    clock = threading.Thread(target=tick)
    clock.start()
    try:
        rows, elapsed, during = 100, 0.0, 0
        for _ in range(30):
            if elapsed < 0.15:
                rows *= 2
            many = np.broadcast_to(logits, (rows, logits.shape[1]))
            arguments = BESIDE[name](many)
            before, start = ticks[0], time.monotonic()
            function(many, *arguments)
            during, elapsed = ticks[0] - before, time.monotonic() - start
            # One or two may come when the call begins or ends. On a machine at rest there are more than 100.
            if elapsed >= 0.15 and during > 4:
                break
    finally:
        done.set()
        clock.join(10)
    assert during > 4


# --- Races ---


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, ">i4"])
def test_targets_written_by_another_thread_never_leave_the_row(dtype):
    """A target is read once: checked and then read again, it could point anywhere by then."""
    logits = np.zeros((5000, 200), np.float32)
    logits[:, 1] = 9
    targets = np.zeros(len(logits), dtype)
    outside = np.iinfo(targets.dtype).max
    done = threading.Event()

    def write():
        while not done.is_set():
            for value in (outside, 1, 0):
                targets[:] = value

    lowest, highest = xent_rs.cross_entropy(logits, targets + 1), xent_rs.cross_entropy(logits, targets)
    writer = threading.Thread(target=write)
    writer.start()
    outcomes = {"loss": 0, "IndexError": 0}
    try:
        end = time.monotonic() + 1
        while time.monotonic() < end:
            try:
                loss, grad = xent_rs.cross_entropy_with_grad(logits, targets)
            except IndexError:
                outcomes["IndexError"] += 1
            else:
                assert lowest * 0.999 <= loss <= highest * 1.001
                assert np.isfinite(grad).all()
                outcomes["loss"] += 1
    finally:
        done.set()
        writer.join(10)
    assert outcomes["loss"] + outcomes["IndexError"] > 10


@pytest.mark.parametrize("name", ["selective_log_softmax", "row_statistics", "evaluate"])
def test_indices_written_by_another_thread_never_leave_the_row(name):
    logits = np.zeros((3000, 200), np.float32)
    index = np.zeros((3000, 3) if name == "selective_log_softmax" else 3000, np.int64)
    done, calls = threading.Event(), 0

    def write():
        while not done.is_set():
            for value in (2**62, 1, -(2**62), 0):
                index[:] = value

    writer = threading.Thread(target=write)
    writer.start()
    try:
        end = time.monotonic() + 0.5
        while time.monotonic() < end:
            calls += 1
            try:
                found = getattr(xent_rs, name)(logits, index)
            except IndexError:
                continue
            if name == "selective_log_softmax":
                np.testing.assert_allclose(found, -np.log(200), rtol=1e-6)
            elif name == "row_statistics":
                np.testing.assert_allclose(found.target_log_probability, -np.log(200), rtol=1e-6)
            else:
                assert found.loss == pytest.approx(np.log(200))
    finally:
        done.set()
        writer.join(10)
    assert calls > 10


# Every array that a call takes, written all the while: a wrong answer of the right kind may come of it.
WRITTEN = {
    "logits": lambda array: xent_rs.cross_entropy(array, np.zeros(2000, int)),
    "logits of softmax": lambda array: xent_rs.softmax(array),
    "probabilities": lambda array: xent_rs.cross_entropy_with_grad(np.zeros_like(array), array),
    "logits and probabilities": lambda array: xent_rs.cross_entropy_with_grad_hess(array, array),
    "weight": lambda array: xent_rs.cross_entropy(np.zeros_like(array), np.zeros(2000, int), weight=array[0]),
    "sample_weight": lambda array: xent_rs.cross_entropy_with_grad(
        np.zeros_like(array), np.zeros(2000, int), sample_weight=array[:, 0]
    ),
    "grad_output": lambda array: xent_rs.cross_entropy_with_grad(
        np.zeros_like(array), np.zeros(2000, int), reduction="none", grad_output=array[:, 0]
    ),
    "teacher": lambda array: xent_rs.kl_divergence_with_grad(np.zeros_like(array), array),
    "binary": lambda array: xent_rs.binary_cross_entropy_with_grad(
        array, array, weight=array, pos_weight=array
    ),
    "statistics": lambda array: xent_rs.row_statistics(array, np.zeros(2000, int)),
}


@pytest.mark.parametrize("call", WRITTEN.values(), ids=WRITTEN)
def test_what_another_thread_writes_is_only_a_wrong_answer(call):
    array, done = np.zeros((2000, 300), np.float32), threading.Event()

    def write():
        while not done.is_set():
            for value in (np.nan, -np.inf, np.inf, 3e38, -1, 0):
                array[:] = value

    expected = call(array)
    writer = threading.Thread(target=write)
    writer.start()
    try:
        end = time.monotonic() + 0.3
        while time.monotonic() < end:
            try:
                found = call(array)
            except ValueError:
                continue  # negative probabilities, at the time
            assert type(found) is type(expected)
            assert np.shape(found[-1] if type(found) is tuple else found) == np.shape(
                expected[-1] if type(expected) is tuple else expected
            )
    finally:
        done.set()
        writer.join(10)


# --- Memory ---


class GuardedMemory:
    """Four pages between two that may not be touched."""

    size = 4 * mmap.PAGESIZE

    def __init__(self):
        self.memory = mmap.mmap(-1, self.size + 2 * mmap.PAGESIZE)
        address = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        mprotect = ctypes.CDLL(None, use_errno=True).mprotect
        for guard in (address, address + mmap.PAGESIZE + self.size):
            assert mprotect(ctypes.c_void_p(guard), ctypes.c_size_t(mmap.PAGESIZE), 0) == 0

    def ending(self, array):
        """A copy whose last byte is the last that may be touched."""
        return self._copy(array, mmap.PAGESIZE + self.size - array.nbytes)

    def starting(self, array):
        """A copy whose first byte is the first that may be touched."""
        return self._copy(array, mmap.PAGESIZE)

    def _copy(self, array, offset):
        copy = np.frombuffer(self.memory, array.dtype, array.size, offset).reshape(array.shape)
        copy[...] = array
        return copy


@linux
def test_guard_pages_do_guard(python):
    """Otherwise the tests below prove nothing."""
    source = """
import ctypes
import mmap
import numpy as np
{guarded}
last = GuardedMemory().ending(np.zeros(4, np.float32))
end = last.ctypes.data + last.nbytes
ctypes.string_at(end - 1, 1)
print("inside", flush=True)
ctypes.string_at(end, 1)
"""
    finished = python(source.format(guarded=inspect.getsource(GuardedMemory)), expect=-signal.SIGSEGV)
    assert finished.stdout == "inside\n"


@linux
@pytest.mark.parametrize("axis", [-1, 0])
@pytest.mark.parametrize("place", ["ending", "starting"])
@dtypes
def test_rows_next_to_unreadable_pages(level, dtype, place, axis, random):
    """A tail read or written as a whole vector touches what is not its own; here that ends the process."""
    inputs, results, indices = GuardedMemory(), GuardedMemory(), GuardedMemory()
    for classes in (*range(131), 255, 256, 257, 511, 513):
        for rows in (1, 3, 17) if classes < 34 else (1, 3):
            shape = (rows, classes) if axis == -1 else (classes, rows)
            logits = getattr(inputs, place)(random.standard_normal(shape).astype(dtype))
            out = getattr(results, place)(np.zeros(shape, dtype))
            targets = getattr(indices, place)(random.integers(0, max(classes, 1), rows).astype(np.int16))
            if classes == 0:
                with pytest.raises(ValueError, match="expected at least one class"):
                    xent_rs.cross_entropy(logits, targets, axis=axis)
                continue
            alone = xent_rs.cross_entropy(logits, targets, axis=axis)
            beside, _ = xent_rs.cross_entropy_with_grad(logits, targets, axis=axis, out=out)
            assert alone == beside
            expected = xent_rs.cross_entropy_with_grad(logits.copy(), targets.copy(), axis=axis)[1]
            assert out.tobytes() == expected.tobytes()
            xent_rs.softmax(logits, axis=axis, out=out)
            xent_rs.log_softmax(logits, axis=axis, out=out)
            xent_rs.logsumexp(logits, axis=axis)
            xent_rs.row_statistics(logits, targets, axis=axis)
            if classes % 7 == 0 or classes < 20:
                options = {"label_smoothing": 0.1, "z_loss": 0.1, "softcap": 9.0, "axis": axis}
                probabilities = getattr(indices, place)(np.abs(logits))
                xent_rs.cross_entropy_with_grad(logits, probabilities, out=out, **options)
                xent_rs.kl_divergence_with_grad(logits, logits, axis=axis, out=out)
                xent_rs.binary_cross_entropy_with_grad(logits, logits, weight=logits, out=out)
                soft = getattr(indices, place)(np.abs(logits))
                xent_rs.cross_entropy(logits.copy(), soft, axis=axis, sample_weight=np.ones(rows))
                xent_rs.binary_cross_entropy(logits.copy(), soft.copy(), pos_weight=soft)


@linux
@pytest.mark.parametrize("place", ["ending", "starting"])
@dtypes
def test_strided_and_swapped_rows_next_to_unreadable_pages(level, dtype, place, random):
    """Gathers and piecewise conversions touch the elements alone, not what lies between or behind them."""
    inputs = GuardedMemory()
    for classes in range(1, 131):
        logits = getattr(inputs, place)(random.standard_normal((2, classes)).astype(dtype))
        targets = np.zeros(2, int)
        for view in (
            logits[:, ::-1],
            logits[::-1],
            logits[:, ::3],
            logits[:, classes % 3 :: 3],
            logits[:, -1:],
        ):
            if view.shape[1]:
                expected = xent_rs.cross_entropy(view.copy(), targets)
                assert xent_rs.cross_entropy(view, targets) == expected
        if dtype.name != "bfloat16":
            swapped = getattr(inputs, place)(logits.astype(dtype.newbyteorder()))
            assert np.isfinite(xent_rs.cross_entropy(swapped, targets))


@dtypes
def test_rows_more_than_four_gigabytes_apart(dtype, tmp_path, random):
    """Offsets beyond 2^32 bytes and elements, in a file that is mostly holes."""
    classes, apart = 300, 2**32 + 64
    logits = np.memmap(tmp_path / "logits", dtype, "w+", shape=(3, apart))[:, :classes]
    out = np.memmap(tmp_path / "out", dtype, "w+", shape=(3, apart))[:, -classes:]
    logits[...] = random.standard_normal(logits.shape).astype(dtype)
    copy, targets = np.array(logits), [5, 299, 0]
    loss, grad = xent_rs.cross_entropy_with_grad(copy, targets)
    assert xent_rs.cross_entropy(logits, targets) == loss
    assert xent_rs.cross_entropy(logits[::-1], targets[::-1], reduction="sum") == pytest.approx(
        3 * loss, rel=1e-6
    )
    xent_rs.cross_entropy_with_grad(logits, targets, out=out)
    assert np.array(out).tobytes() == grad.tobytes()
    with pytest.raises(IndexError, match=r"targets\[2\] is 300; "):
        xent_rs.cross_entropy(logits, [0, 0, classes])


def test_more_than_four_billion_logits(random):
    """Counts beyond 2^32, on rows that are one row in memory."""
    row = random.standard_normal(65_537).astype(np.float32)
    logits = np.broadcast_to(row, (65_540, len(row)))
    assert logits.size > 2**32
    targets = np.full(len(logits), 7, np.int8)
    expected = xent_rs.cross_entropy(row, 7, reduction="none")
    losses = xent_rs.cross_entropy(logits, targets, reduction="none")
    assert (losses == expected).all()


MEMORY = (
    GROWTH
    + """
import numpy as np
import xent_rs

def broadcast(shape, dtype):
    return np.broadcast_to(np.zeros((), dtype), shape)

{definition}

work(64)
allowed = (1 << 20) + 16 * {rows} + (1 << 19)  # What is promised, and half a mebibyte for the allocator.
used = growth(lambda: work({rows}))
assert used <= allowed, f"{{used:,}} bytes, allowed {{allowed:,}}"
"""
)

# Each would take far more if anything of the size of the logits were made.
FRUGAL = {
    "loss, many rows": (200_000, "cross_entropy(broadcast((rows, 200), 'f4'), broadcast(rows, 'i1'))"),
    "row losses": (
        200_000,
        "cross_entropy(broadcast((rows, 200), 'f4'), broadcast(rows, 'i8'), reduction='none')",
    ),
    "loss, long rows": (100, "cross_entropy(broadcast((rows, 1_000_000), 'f4'), broadcast(rows, 'i8'))"),
    "loss, one row": (64, "cross_entropy(broadcast(3_000_000 * rows, 'f4'), 5, softcap=9.0, z_loss=0.1)"),
    "statistics, one row": (64, "row_statistics(broadcast(3_000_000 * rows, 'f4'), 5)"),
    "loss, float16": (2_000, "cross_entropy(broadcast((rows, 50_000), 'f2'), broadcast(rows, 'i8'))"),
    "loss, float64": (2_000, "cross_entropy(broadcast((rows, 50_000), 'f8'), broadcast(rows, 'i8'))"),
    "loss, first axis": (
        2_000,
        "cross_entropy(broadcast((50_000, rows), 'f4'), broadcast(rows, 'i8'), axis=0)",
    ),
    "loss, byte-swapped": (5_000, "cross_entropy(broadcast((rows, 10_000), '>f4'), broadcast(rows, '>i8'))"),
    "logsumexp": (2_000, "logsumexp(broadcast((rows, 50_000), 'f4'))"),
    "probabilities": (
        2_000,
        "cross_entropy(broadcast((rows, 50_000), 'f4'), broadcast((rows, 50_000), 'f2'), label_smoothing=1)",
    ),
    "probabilities, first axis": (
        2_000,
        "cross_entropy(broadcast((50_000, rows), 'f4'), broadcast((50_000, rows), 'f8'), axis=0, softcap=9)",
    ),
    "probabilities, byte-swapped": (
        2_000,
        "cross_entropy(broadcast((rows, 50_000), '>f4'), broadcast((rows, 50_000), '>f8'))",
    ),
    "every option": (
        2_000,
        "cross_entropy(broadcast((rows, 50_000), 'f4'), broadcast(rows, 'i8'), "
        "weight=broadcast(50_000, 'f2'), sample_weight=broadcast(rows, 'f8'), "
        "label_smoothing=0.1, z_loss=0.1, softcap=9.0)",
    ),
    "binary": (
        2_000,
        "binary_cross_entropy(broadcast((rows, 50_000), 'f4'), broadcast((rows, 50_000), 'u1'))",
    ),
    "binary, weights": (
        2_000,
        "binary_cross_entropy(broadcast((rows, 50_000), 'f4'), broadcast((rows, 50_000), '>f8'),"
        "weight=broadcast((rows, 1), 'f4'), pos_weight=broadcast((rows, 50_000), 'f8'))",
    ),
    "divergence": (2_000, "kl_divergence(broadcast((rows, 50_000), 'f4'), broadcast((rows, 50_000), '>f4'))"),
    "selected": (2_000, "selective_log_softmax(broadcast((rows, 50_000), 'f4'), broadcast((rows, 1), 'i8'))"),
    "statistics without targets": (2_000, "row_statistics(broadcast((rows, 50_000), '>f4'), softcap=9.0)"),
}


@linux
@pytest.mark.parametrize(("rows", "call"), FRUGAL.values(), ids=FRUGAL)
def test_loss_takes_a_mebibyte_and_sixteen_bytes_a_row(rows, call, python):
    definition = f"def work(rows):\n    return xent_rs.{call}"
    python(MEMORY.format(definition=definition, rows=rows))


@linux
@pytest.mark.parametrize(
    "call",
    [
        "cross_entropy_with_grad(logits, targets, out=out)",
        "cross_entropy_with_grad(logits, logits, out=out, label_smoothing=0.1, z_loss=0.1, softcap=9.0)",
        "cross_entropy_with_grad_hess(logits, targets, out=out[:, ::2], hess_out=out[:, 1::2])",
        "binary_cross_entropy_with_grad(logits, logits, out=out, pos_weight=logits)",
        "kl_divergence_with_grad(logits, logits, out=out)",
        "softmax(logits, out=out)",
    ],
)
def test_result_in_out_takes_no_more(call, python):
    definition = f"""
out = np.ones((2000, 20_000), np.float32)
everything, every_target = broadcast(out.shape, "f4"), broadcast(len(out), "i8")
if "hess_out" in {call!r}:
    everything = everything[:, ::2]
def work(rows):
    _work(everything[:rows], every_target[:rows], out[:rows])
def _work(logits, targets, out):
    xent_rs.{call}
"""
    python(MEMORY.format(definition=definition, rows=2000))


@linux
def test_fresh_gradients_in_a_loop_take_two(python):
    """The one at work and the one that the name still holds; none is hoarded."""
    source = """
logits = np.zeros((1000, 20_000), np.float32)
targets = np.zeros(1000, int)
def work():
    for _ in range(8):
        loss, grad = xent_rs.cross_entropy_with_grad(logits, targets)
used = growth(work)
assert used < 2.2 * logits.nbytes, used
"""
    python(MEMORY.split("{definition}")[0].replace("{{", "{") + source)


@pytest.mark.parametrize("axis", [-1, 0])
def test_what_does_not_fit_is_a_memory_error(axis):
    """10^15 rows, in the memory of one number: where an allocation cannot fail, Rust ends the process."""
    rows = 10**15
    logits = np.broadcast_to(np.float32(0), (rows, 2) if axis == -1 else (2, rows))
    targets = np.broadcast_to(np.int8(0), rows)
    for call in (
        lambda: xent_rs.cross_entropy(logits, targets, axis=axis),
        lambda: xent_rs.cross_entropy_with_grad(logits, targets, axis=axis, reduction="none"),
        lambda: xent_rs.cross_entropy_with_grad_hess(logits, targets, axis=axis),
        lambda: xent_rs.binary_cross_entropy(logits, logits, reduction="none"),
        lambda: xent_rs.binary_cross_entropy_with_grad(logits, logits),
        lambda: xent_rs.kl_divergence(logits, logits, axis=axis, reduction="none"),
        lambda: xent_rs.kl_divergence_with_grad(logits, logits, axis=axis),
        lambda: xent_rs.selective_log_softmax(logits, np.broadcast_to(0, (rows, 1)), axis=axis),
        lambda: xent_rs.row_statistics(logits, axis=axis),
        lambda: xent_rs.logsumexp(logits, axis=axis),
        lambda: xent_rs.softmax(logits, axis=axis),
    ):
        with pytest.raises(MemoryError):
            call()


@linux
def test_nothing_leaks(python):
    source = """
import gc
logits = np.zeros((20, 300), np.float32)
targets = np.zeros(20, int)
wrong = np.full(20, 300)
swapped = logits.astype(">f4")

def work():
    for _ in range(2000):
        loss, grad = xent_rs.cross_entropy_with_grad(logits, targets)
        xent_rs.cross_entropy(swapped, targets, reduction="none")
        xent_rs.log_softmax(logits.T, axis=0)
        xent_rs.logsumexp(logits, keepdims=True)
        xent_rs.cross_entropy_with_grad_hess(logits, swapped, weight=swapped[0], sample_weight=swapped[:, 0])
        xent_rs.binary_cross_entropy_with_grad(swapped, swapped, weight=swapped, pos_weight=logits)
        xent_rs.kl_divergence_with_grad(logits, swapped)
        xent_rs.row_statistics(swapped, targets)
        xent_rs.selective_log_softmax(logits, targets[:, None])
        for bad in (wrong, targets[:3], targets.astype(float)):
            try:
                xent_rs.cross_entropy_with_grad(logits, bad)
            except (IndexError, ValueError, TypeError):
                pass

import sys
work()
references = [sys.getrefcount(array) for array in (logits, targets, wrong, swapped)]
used = growth(work)
assert used < 1 << 19, used
assert [sys.getrefcount(array) for array in (logits, targets, wrong, swapped)] == references
"""
    python(MEMORY.split("{definition}")[0] + source)


# --- Panics ---


# PyO3 turns an exception of this type back into a panic when Rust meets it, and makes the type when Rust
# first meets any exception: so Python can panic inside a call without a function for it in the module.
PANIC = """
import signal
import numpy as np
import xent_rs

class Index:
    def __init__(self, error):
        self.error = error
    def __index__(self):
        raise self.error

try:
    xent_rs.set_num_threads(Index(KeyError()))
except KeyError:
    pass
(panic,) = [kind for kind in BaseException.__subclasses__() if kind.__name__ == "PanicException"]

def is_internal_error(call):
    try:
        call()
    except Exception as error:
        assert type(error) is xent_rs.InternalError, repr(error)
        assert str(error) == "internal error: asked for; please report it"
    else:
        raise AssertionError("no panic")
"""


def test_panic_is_an_internal_error(python):
    """Not a PanicException, which `except Exception` does not catch."""
    assert issubclass(xent_rs.InternalError, RuntimeError)
    python(
        PANIC
        + """
index = Index(panic("asked for"))
is_internal_error(lambda: xent_rs.set_num_threads(index))
is_internal_error(lambda: xent_rs.cross_entropy(np.zeros((2, 3)), np.zeros(2, int), ignore_index=index))
"""
    )


@posix
def test_the_pool_survives_a_panic(python):
    """In the midst of a long call, while its other threads are at work."""
    python(
        PANIC
        + """
def interrupt(number, frame):
    raise panic("asked for")

signal.signal(signal.SIGALRM, interrupt)
logits = np.broadcast_to(np.zeros(1000, np.float32), (1_000_000, 1000))  # a second or more, in no memory
for threads in (1, 2, 3):
    xent_rs.set_num_threads(threads)
    for _ in range(3):
        signal.setitimer(signal.ITIMER_REAL, 0.02)
        is_internal_error(lambda: xent_rs.kl_divergence(logits, logits))
        assert abs(xent_rs.cross_entropy(logits[:3000], np.zeros(3000, int)) - np.log(1000)) < 1e-5
"""
    )


# --- Callers that change their arrays while they are looked at ---


class Changes:
    """An array-like that gives other arrays another dtype while it is converted."""

    def __init__(self, value, *arrays):
        self.value, self.arrays = value, arrays

    def __array__(self, dtype=None, copy=None):
        for array in self.arrays:
            array.dtype = np.int8
        return self.value


def test_logits_that_change_while_the_targets_are_converted():
    """What was float64 is not read as float64 when it has become bytes: that would be past the array."""
    logits = np.zeros((8, 64))
    try:
        losses = xent_rs.cross_entropy(logits, Changes(np.zeros(8, int), logits), reduction="none")
    except (TypeError, ValueError):
        return
    np.testing.assert_allclose(losses, np.log(64.0))


def test_out_that_changes_while_grad_output_is_converted():
    """`out` of int8 bytes is not written as if it were float32."""
    logits, room = np.zeros((4, 16), np.float32), np.full((5, 16), 7, np.float32)
    out = room[:4]
    targets = np.zeros(4, int)
    with pytest.raises((TypeError, ValueError)):
        xent_rs.cross_entropy_with_grad(logits, targets, grad_output=Changes(np.array(1.0), out), out=out)
    assert (room == 7).all()


HOLDERS = {
    "weight": lambda logits, changes: xent_rs.cross_entropy(
        logits, np.zeros(8, int), weight=changes(np.ones(64))
    ),
    "sample_weight": lambda logits, changes: xent_rs.cross_entropy(
        logits, np.zeros(8, int), sample_weight=changes(np.ones(8))
    ),
    "probabilities": lambda logits, changes: xent_rs.cross_entropy(logits, changes(np.full((8, 64), 1 / 64))),
    "teacher": lambda logits, changes: (
        xent_rs.kl_divergence(logits, changes(np.full((8, 64), 1e9))) + np.log(64)
    ),
    "binary targets": lambda logits, changes: (
        xent_rs.binary_cross_entropy(logits, changes(np.zeros((8, 64)))) * np.log(64) / np.log(2)
    ),
    "pos_weight": lambda logits, changes: (
        xent_rs.binary_cross_entropy(logits, np.zeros((8, 64)), pos_weight=changes(np.ones(64)))
        * (np.log(64) / np.log(2))
    ),
    "index": lambda logits, changes: -xent_rs.selective_log_softmax(logits, changes(np.zeros((8, 1), int))),
    "targets of statistics": lambda logits, changes: (
        -xent_rs.row_statistics(logits, changes(np.zeros(8, int))).target_log_probability
    ),
}


@pytest.mark.parametrize("call", HOLDERS.values(), ids=HOLDERS)
def test_logits_that_change_while_another_argument_is_converted(call):
    logits = np.zeros((8, 64))
    try:
        losses = call(logits, lambda value: Changes(value, logits))
    except (TypeError, ValueError):
        return
    np.testing.assert_allclose(losses, np.log(64.0))


@pytest.mark.parametrize("name", ["out", "hess_out"])
def test_a_result_that_changes_while_a_weight_is_converted(name):
    logits, room = np.zeros((4, 16), np.float32), np.full((5, 16), 7, np.float32)
    result = room[:4]
    with pytest.raises((TypeError, ValueError)):
        xent_rs.cross_entropy_with_grad_hess(
            logits, np.zeros(4, int), weight=Changes(np.ones(16), result), **{name: result}
        )
    assert (room == 7).all()


def test_another_thread_that_changes_the_dtype():
    """A call sees its logits as they were when it looked, not part before and part after."""
    logits, targets = np.zeros((300_000, 8), np.float32), np.zeros(300_000, int)
    stop = threading.Event()

    def toggle():
        while not stop.is_set():
            logits.dtype = np.int8
            logits.dtype = np.float32

    thread = threading.Thread(target=toggle)
    thread.start()
    try:
        for _ in range(20):
            try:
                loss = xent_rs.cross_entropy(logits, targets)
            except (TypeError, ValueError):
                continue
            assert loss == pytest.approx(np.log(8.0))
    finally:
        stop.set()
        thread.join()


FORK_IN_A_HANDLER = """
def fork(*_):
    signal.setitimer(signal.ITIMER_REAL, 0)
    global child
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(40)  # A hang ends here.

child = None
row = np.broadcast_to(np.float32(0), (20_000, 50_000))
signal.signal(signal.SIGALRM, fork)
signal.setitimer(signal.ITIMER_REAL, 0.05)
loss = xent_rs.cross_entropy(row, np.zeros(20_000, int))
assert abs(loss - np.log(50_000)) < 1e-6
if child == 0:
    os._exit(0)
assert child and os.waitpid(child, 0)[1] == 0
"""


@posix
def test_fork_in_a_signal_handler_during_a_call(python):
    """The child comes back into the call, whose threads it does not have."""
    python(LARGE + FORK_IN_A_HANDLER)


def test_targets_in_a_buffer_that_out_shares():
    """Targets that are no array, but share the memory of `out`, are not destroyed."""
    targets, logits = np.zeros((4, 6), np.int32), np.zeros((4, 6), np.float32)
    with pytest.raises(ValueError, match="out overlaps targets"):
        xent_rs.cross_entropy_with_grad(logits, memoryview(targets[:, 0]), out=targets.view(np.float32))
    assert (targets == 0).all()
