"""Memory of large results: who gets it, how much is kept, when it goes back, and that nobody can tell."""

import copy
import ctypes
import itertools
import os
import pickle
import re
import sys
import threading
import time
import tracemalloc

import numpy as np
import pytest
import xent_rs
from xent_rs import _xent_rs

from .cases import DTYPES

try:
    from numpy._core import multiarray
except ImportError:  # NumPy 1
    from numpy.core import multiarray

pytestmark = pytest.mark.skipif(os.name != "posix", reason="elsewhere results get the allocator's memory")
linux = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)

LARGE = 1 << 24
ROUNDING = 1 << 16


@pytest.fixture(autouse=True)
def _nothing_kept():
    xent_rs.release_memory()
    yield
    xent_rs.release_memory()


def address(array):
    return array.__array_interface__["data"][0]


def is_ours(array):
    return multiarray.get_handler_name(array) == "xent_rs"


def zeros(shape, dtype=np.float32):
    """Logits of any shape, in the memory of one."""
    return np.broadcast_to(np.zeros((), dtype), shape)


CALLS = {
    "softmax": lambda logits: (xent_rs.softmax(logits),),
    "log_softmax": lambda logits: (xent_rs.log_softmax(logits),),
    "cross_entropy": lambda logits: xent_rs.cross_entropy_with_grad(logits, zeros(len(logits), int))[1:],
    "hess": lambda logits: xent_rs.cross_entropy_with_grad_hess(logits, zeros(len(logits), int))[1:],
    "binary": lambda logits: xent_rs.binary_cross_entropy_with_grad(logits, zeros(logits.shape, bool))[1:],
    "divergence": lambda logits: xent_rs.kl_divergence_with_grad(logits, logits)[1:],
    "product": lambda logits: (xent_rs.kl_divergence_hvp(logits, logits, logits),),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@dtypes
def test_a_loop_alternates_between_two_buffers(call, dtype):
    """The old result is alive while the new one is made; from the third round on nothing is new."""
    logits = zeros((100, LARGE // dtype.itemsize // 100 + 1), dtype)
    used = set()
    for _ in range(6):
        results = call(logits)
        assert all(is_ours(result) for result in results)
        used |= {address(result) for result in results}
    assert len(used) == 2 * len(results)
    used_now = sum(result.nbytes for result in results)
    assert 0 <= _xent_rs.kept_memory() - used_now < 2 * ROUNDING
    del results
    assert 0 <= _xent_rs.kept_memory() - 2 * used_now < 4 * ROUNDING


def test_small_results_are_the_allocators():
    below = xent_rs.softmax(zeros((LARGE // 4 - 1,)))
    assert not is_ours(below)
    assert is_ours(xent_rs.softmax(zeros((LARGE // 4,))))


LAYOUTS = {
    "C": lambda array: array,
    "F": lambda array: array.T.copy().T,
    "three axes, transposed": lambda array: array.reshape(-1, 8, array.shape[1]).transpose(1, 2, 0),
    "every other": lambda array: np.repeat(array, 2, axis=1)[:, ::2],
    "backwards": lambda array: array[::-1, ::-1],
    "byte-swapped": lambda array: array.view(array.dtype.newbyteorder("S")).byteswap(),
}


@pytest.mark.parametrize(
    ("layout", "dtype"),
    # ml_dtypes has no byte order.
    [
        (name, dtype)
        for name in LAYOUTS
        for dtype in DTYPES
        if not (name == "byte-swapped" and dtype.kind == "V")
    ],
    ids=str,
)
def test_the_array_is_like_any_other(layout, dtype, random):
    """The layout is that of `numpy.empty_like`, the bits are those of `out=`, whatever was there before."""
    base = random.standard_normal((64, LARGE // dtype.itemsize // 64)).astype(dtype)
    logits = LAYOUTS[layout](base)
    old = xent_rs.softmax(base)
    old.view(np.uint8).fill(0xFF)
    kept = address(old)
    del old
    result = xent_rs.softmax(logits, axis=1)
    expected = np.empty_like(logits, dtype=dtype.newbyteorder("="))
    assert is_ours(result)
    assert address(result) == kept
    assert type(result) is np.ndarray
    assert (result.dtype, result.shape, result.strides) == (expected.dtype, expected.shape, expected.strides)
    assert result.flags == expected.flags
    assert result.flags.owndata
    assert result.base is None
    assert sys.getsizeof(result) == sys.getsizeof(expected)
    xent_rs.softmax(logits, axis=1, out=expected)
    assert result.tobytes("A") == expected.tobytes("A")


def test_views_keep_the_memory():
    logits = zeros((100, LARGE // 400 + 1))
    result = xent_rs.softmax(logits)
    view, expected = result[5:7, ::3], result[5:7, ::3].copy()
    was = address(result)
    del result
    others = [xent_rs.softmax(logits) for _ in range(3)]
    assert was not in [address(other) for other in others]
    for other in others:
        other.fill(7)
    assert (view == expected).all()
    del view
    assert address(xent_rs.softmax(logits)) == was


def test_resize_copies_and_pickles():
    def made():
        return xent_rs.softmax(zeros((8, LARGE // 32)))

    first, expected = made(), made().tobytes()
    for copied in (copy.deepcopy(first), first.copy(), pickle.loads(pickle.dumps(first))):
        assert not is_ours(copied)
        assert copied.tobytes() == expected
    for shape in [(16, LARGE // 32), (8, LARGE // 32), (3, 5), (8, LARGE // 32), (0,), (7,)]:
        array = made()
        array.resize(shape, refcheck=False)
        common = min(len(expected), array.nbytes)
        assert array.tobytes()[:common] == expected[:common]
        assert not any(array.tobytes()[common:])
    assert first.tobytes() == expected


def test_tracemalloc_counts_what_is_in_use():
    logits = zeros((LARGE // 4,))
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        result = xent_rs.softmax(logits)
        assert 0 <= tracemalloc.get_traced_memory()[0] - before - result.nbytes < 10_000
        del result
        assert abs(tracemalloc.get_traced_memory()[0] - before) < 10_000
    finally:
        tracemalloc.stop()
    assert _xent_rs.kept_memory() == LARGE


def test_never_more_than_was_in_use_at_once(random):
    """Whatever sizes come and go in whatever order."""
    alive, most = [], 0
    for _ in range(100):
        if alive and (len(alive) == 4 or random.random() < 0.5):
            del alive[random.integers(len(alive))]
        else:
            alive.append(xent_rs.softmax(zeros((int(random.integers(LARGE, 3 * LARGE)) // 4,))))
        in_use = sum(-(-array.nbytes // ROUNDING) * ROUNDING for array in alive)
        most = max(most, in_use)
        assert in_use + _xent_rs.kept_memory() <= most
    assert len(alive) > 0
    alive.clear()
    kept = _xent_rs.kept_memory()
    assert 0 < kept <= most
    assert (xent_rs.release_memory(), xent_rs.release_memory(), _xent_rs.kept_memory()) == (kept, 0, 0)


def test_show_config_says_how_much_is_kept(capsys):
    xent_rs.softmax(zeros((LARGE // 4,)))
    xent_rs.show_config()
    assert f"{LARGE} bytes" in capsys.readouterr().out


def test_what_fails_leaves_numpy_as_it_was():
    """The handler is in effect for one allocation, also for one that is refused."""
    assert multiarray.get_handler_name() == "default_allocator"
    result = xent_rs.softmax(zeros((LARGE // 4,)))
    assert is_ours(result)
    assert multiarray.get_handler_name() == "default_allocator"
    with pytest.raises(MemoryError, match="Unable to allocate"):
        xent_rs.softmax(zeros((10**15, 2)))
    assert multiarray.get_handler_name() == "default_allocator"
    assert not is_ours(np.empty(LARGE, np.uint8))


class Handlers:
    """NumPy's functions for memory handlers, which only C has."""

    def __init__(self):
        api = ctypes.pythonapi
        api.PyCapsule_GetPointer.restype = ctypes.c_void_p
        api.PyCapsule_GetPointer.argtypes = [ctypes.py_object, ctypes.c_char_p]
        api.PyCapsule_New.restype = ctypes.py_object
        api.PyCapsule_New.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
        self.api = api
        table = api.PyCapsule_GetPointer(multiarray._ARRAY_API, None)
        functions = (ctypes.c_void_p * 306).from_address(table)
        self.set = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.py_object)(functions[304])
        self.get = ctypes.PYFUNCTYPE(ctypes.py_object)(functions[305])

    def renamed(self, name):
        """NumPy's own handler under another name, and what keeps it alive."""
        own = self.api.PyCapsule_GetPointer(self.get(), b"mem_handler")
        memory = ctypes.create_string_buffer(ctypes.string_at(own, 128 + 5 * 8), 128 + 5 * 8)
        memory[: len(name) + 1] = name + b"\0"
        return self.api.PyCapsule_New(ctypes.addressof(memory), b"mem_handler", None), memory


def test_a_handler_that_the_user_sets_stays_in_effect():
    handlers = Handlers()
    handler, memory = handlers.renamed(b"of a user")
    before = handlers.set(handler)
    try:
        result = xent_rs.softmax(zeros((LARGE // 4,)))
        assert multiarray.get_handler_name(result) == multiarray.get_handler_name() == "of a user"
        del result
    finally:
        handlers.set(before)
    assert is_ours(xent_rs.softmax(zeros((LARGE // 4,))))
    del memory


def test_threads_take_and_give_at_once():
    """No two arrays alive at the same time share a byte: each keeps the number that its thread wrote."""
    done = time.monotonic() + 3
    wrong = []

    def use(number):
        random = np.random.default_rng(number)
        alive = []
        while time.monotonic() < done and not wrong:
            result = xent_rs.softmax(zeros((int(random.integers(LARGE, 2 * LARGE)) // 4,)))
            result.fill(number)
            alive.append(result)
            if len(alive) == 3:
                gone = alive.pop(random.integers(3))
                if not (gone == number).all():
                    wrong.append(number)
            if random.random() < 0.1:
                xent_rs.release_memory()

    threads = [threading.Thread(target=use, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


# --- What the system says, in processes of their own ---

LOOK = f"""
import os, signal, sys, threading, time
import numpy as np
import xent_rs
from xent_rs import _xent_rs

SIZE = {4 * LARGE}
xent_rs.set_num_threads(2)
logits = np.zeros((64, SIZE // 256), np.float32)
xent_rs.softmax(logits[:, ::8])  # The threads start, and the allocator has what they need.

def resident():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGESIZE")

def until(true):
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)

def watched():  # Whether the thread exists; it gets its name when it has begun.
    for task in os.listdir("/proc/self/task"):
        try:
            if open(f"/proc/self/task/{{task}}/comm").read().strip() == "xent_rs-idle":
                return True
        except OSError:  # It ends right now.
            pass
    return False

def near(found, expected):
    assert abs(found - expected) < 3 << 20, (found >> 20, expected >> 20)
"""

HUGE_PAGES = """
def offered():
    with open("/proc/self/smaps_rollup") as rollup:
        return next(int(line.split()[1]) * 1024 for line in rollup if line.startswith("LazyFree"))

enabled = "/sys/kernel/mm/transparent_hugepage/enabled"
huge = {huge} and os.path.exists(enabled) and "[never]" not in open(enabled).read()
if not {huge}:
    import ctypes
    assert ctypes.CDLL(None).prctl(41, 1, 0, 0, 0) == 0  # PR_SET_THP_DISABLE
for _ in range(3):
    result = xent_rs.softmax(logits)
    assert (result == result[0, 0]).all()
    assert offered() < 1 << 20
    result.fill(7)
    del result
    near(offered(), SIZE if huge else 0)
"""

RELEASE = """
before = resident()
first, second = xent_rs.softmax(logits), xent_rs.softmax(logits)
near(resident() - before, 2 * SIZE)
del second
assert xent_rs.release_memory() == SIZE
near(resident() - before, SIZE)
del first
assert xent_rs.release_memory() == SIZE
near(resident() - before, 0)
"""

IDLE = """
before = resident()
in_use, expected = xent_rs.softmax(logits), xent_rs.softmax(logits[0])
kept = [xent_rs.softmax(logits) for _ in range(3)]
assert not watched()
kept.clear()
assert _xent_rs.kept_memory() == 3 * SIZE
until(watched)
near(resident() - before, 4 * SIZE)

def two_went_back():
    xent_rs.softmax(logits)  # Of the three, this one is not idle.
    return _xent_rs.kept_memory() <= SIZE  # They were not freed at the same moment.

until(two_went_back)
assert _xent_rs.kept_memory() == SIZE
near(resident() - before, 2 * SIZE)
until(lambda: _xent_rs.kept_memory() == 0)
near(resident() - before, SIZE)
until(lambda: not watched())
assert in_use[0].tobytes() == expected.tobytes()
del in_use
until(watched)
"""


@linux
@pytest.mark.parametrize("source", [RELEASE, IDLE], ids=["on request", "when idle"])
def test_memory_goes_back(source, python):
    python(LOOK + source)


KEEP = """
assert _xent_rs.config()["keep_memory"] is {keeps}
for _ in range(4):
    result = xent_rs.softmax(logits)
    assert (result == np.float32(1 / logits.shape[1])).all()
    assert multiarray.get_handler_name(result) == {handler!r}
    result.fill(7)
assert _xent_rs.kept_memory() == ({keeps} and SIZE)
del result
assert _xent_rs.kept_memory() == xent_rs.release_memory() == ({keeps} and 2 * SIZE)
xent_rs.show_config()
"""


@linux
@pytest.mark.parametrize(
    ("setting", "keeps", "handler"),
    [("0", False, "default_allocator"), ("1", True, "xent_rs"), ("", True, "xent_rs")],
)
def test_the_environment_says_whether_memory_is_kept(setting, keeps, handler, python):
    source = f"from {multiarray.__name__.rpartition('.')[0]} import multiarray\n{LOOK}"
    shown = python(source + KEEP.format(keeps=keeps, handler=handler), XENT_RS_KEEP_MEMORY=setting).stdout
    assert re.search(f"^keep_memory +{keeps}$", shown, re.MULTILINE)


@linux
@pytest.mark.parametrize("huge", [True, False])
def test_huge_pages_are_offered_to_the_kernel(huge, python):
    """It may take what is kept and counts as offered. For pages of 4 KiB that would cost too much."""
    python(LOOK + HUGE_PAGES.format(huge=huge))


PEAK = """
def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))

def growth(work):
    xent_rs.release_memory()
    with open("/proc/self/clear_refs", "w") as references:
        references.write("5")  # The peak starts anew.
    before = peak()
    work()
    return peak() - before

targets = np.zeros(64, int)
def once():
    loss, grad = xent_rs.cross_entropy_with_grad(logits, targets)
def loop():
    for _ in range(6):
        loss, grad = xent_rs.cross_entropy_with_grad(logits, targets)
def varied():
    for rows in (40, 64, 20, 50, 64, 30, 63):
        loss, grad = xent_rs.cross_entropy_with_grad(logits[:rows], targets[:rows])
def both():
    for _ in range(6):
        loss, grad, hess = xent_rs.cross_entropy_with_grad_hess(logits, targets)

for work, results in ((once, 1), (loop, 2), (varied, 114 / 64), (both, 4)):
    used, allowed = growth(work), results * SIZE + (3 << 19)
    assert used <= allowed, f"{work.__name__}: {used:,} bytes, allowed {allowed:,}"
"""


@linux
def test_the_peak_is_what_is_in_use_at_once(python):
    """For `varied`, 50 and 64 rows."""
    python(LOOK + PEAK)


FORK = """
def in_child(work):
    child = os.fork()
    if child == 0:
        signal.alarm(30)  # A hang ends here.
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0

def loop():
    for _ in range(4):
        result = xent_rs.softmax(logits)
        assert result.tobytes() == expected
"""

FORK_WITH_KEPT = """
result = xent_rs.softmax(logits)
expected = result.tobytes()
xent_rs.softmax(logits)
assert _xent_rs.kept_memory() == SIZE
until(watched)

def child():
    global result
    assert _xent_rs.kept_memory() == 0 and not watched()
    assert result.tobytes() == expected
    del result  # What the parent lent.
    assert _xent_rs.kept_memory() == SIZE
    until(watched)
    loop()
    assert _xent_rs.kept_memory() == 2 * SIZE
    until(lambda: _xent_rs.kept_memory() == 0)

in_child(child)
assert _xent_rs.kept_memory() == 0
assert result.tobytes() == expected
loop()
"""

FORK_WHILE_IN_USE = """
expected = xent_rs.softmax(logits).tobytes()
done = threading.Event()

def use():
    while not done.is_set():
        xent_rs.softmax(logits)
        xent_rs.release_memory()

users = [threading.Thread(target=use) for _ in range(2)]
for user in users:
    user.start()
try:
    for _ in range(6):
        in_child(loop)
finally:
    done.set()
for user in users:
    user.join(20)
loop()
"""


@pytest.mark.exhaustive
@linux
@pytest.mark.parametrize(
    "source", [FORK_WITH_KEPT, FORK_WHILE_IN_USE], ids=["with memory kept", "while in use"]
)
def test_fork(source, python):
    """The child has what was in use, nothing of what was kept, no thread, and no lock that nobody holds."""
    python(LOOK + FORK + source)


TIGHT = """
import resource

def limit(room):
    with open("/proc/self/statm") as statm:
        size = int(statm.read().split()[0]) * os.sysconf("SC_PAGESIZE")
    resource.setrlimit(resource.RLIMIT_AS, (size + room, -1))

results = [xent_rs.softmax(logits[:32]) for _ in range(3)]
expected = xent_rs.softmax(logits)[5].tobytes()
xent_rs.release_memory()
results.clear()
assert _xent_rs.kept_memory() == 3 * SIZE // 2
limit(SIZE // 8)
result = xent_rs.softmax(logits)
assert result[5].tobytes() == expected
try:
    more = xent_rs.softmax(logits)
except MemoryError:
    pass
else:
    sys.exit("the limit did not hold")
assert _xent_rs.kept_memory() == 0  # All was tried.
del result
assert xent_rs.softmax(logits)[5].tobytes() == expected
"""


@linux
def test_what_is_kept_goes_before_memory_is_refused(python):
    python(LOOK + TIGHT)


INTERRUPT = """
def stop(*_):
    raise KeyboardInterrupt

signal.signal(signal.SIGALRM, stop)
wide = np.broadcast_to(logits, (8, *logits.shape))
signal.setitimer(signal.ITIMER_REAL, 0.05)
try:
    xent_rs.cross_entropy_with_grad(wide, np.zeros(wide.shape[:-1], int), softcap=5.0)
except KeyboardInterrupt:
    pass
else:
    sys.exit("the call was over before the interrupt")
assert _xent_rs.kept_memory() == 8 * SIZE
result = xent_rs.softmax(logits)
assert (result == result[0, 0]).all()
assert _xent_rs.kept_memory() == 0  # It was cut to one of the eight.
"""


@linux
def test_an_interrupted_call_leaves_its_memory(python):
    python(LOOK + INTERRUPT, XENT_RS_SIMD=_xent_rs.simd_levels()[-1])


@linux
def test_nothing_delays_the_end_of_the_process(python):
    """Neither the thread, nor arrays that outlive the interpreter's modules."""
    source = """
class Cycle:
    pass
cycle = Cycle()
cycle.itself, cycle.result = cycle, xent_rs.softmax(logits)
sys.modules["kept for ever"] = alive = xent_rs.softmax(logits)
xent_rs.softmax(logits)
until(watched)
print(time.monotonic())
"""
    began = float(python(LOOK + source).stdout)
    assert time.monotonic() - began < 4.5  # the thread that watches goes after 5


def test_addresses_are_those_of_huge_pages():
    for size, _ in itertools.product((LARGE, LARGE + 5000, 3 * LARGE), range(3)):
        result = xent_rs.softmax(zeros((size // 4,)))
        assert address(result) % 4096 == 0
        assert sys.platform != "linux" or address(result) % (1 << 21) == 0
