"""The number of threads, and the SIMD levels with fused multiply-add, change no bit."""

import threading
import time

import numpy as np
import pytest
import xent_rs
from xent_rs import _xent_rs

from .cases import DTYPES, FEW, batch, distributions, targets_of
from .test_layouts import differing, results

dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)

# Many short rows, few long ones, fewer rows than threads, a single row; sizes on both sides of every cut-off.
SHAPES = [
    (1, 1),
    (2, 7),
    (1000, 10),
    (40_000, 10),
    (3001, 100),
    (300, 1000),
    (7, 40_000),
    (2, 300_000),
    (1, 400_000),
]
FUSED = [level for level in _xent_rs.simd_levels() if level != "portable"]


def example(shape, dtype):
    random = np.random.default_rng(shape[0])
    logits = (4 * random.standard_normal(shape, np.float32)).astype(dtype)
    targets = random.integers(0, shape[1], shape[0])
    targets[::9] = -100 if shape[0] > 1 else 0
    return logits, targets


@pytest.mark.sampled(2)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@dtypes
def test_threads_change_no_bit(level, dtype, shape):
    """Blocks, and the tree in which their sums are added, depend on the shape alone."""
    logits, targets = example(shape, dtype)
    for array, axis in ((logits, -1), (logits.T, 0), (np.ascontiguousarray(logits.T), 0)):
        xent_rs.set_num_threads(1)
        expected = results(array, targets, axis)
        for threads in (2, 3):
            xent_rs.set_num_threads(threads)
            assert xent_rs.get_num_threads() == threads
            got = results(array, targets, axis)
            assert differing(expected, got) == [], f"axis {axis}, {threads} threads"


@pytest.mark.skipif(len(FUSED) < 2, reason="one SIMD level with fused multiply-add here")
@pytest.mark.parametrize("classes", [*range(1, 70), 128, 129, 257, 1000, 4097, 32000])
@dtypes
def test_fused_levels_agree_to_the_bit(dtype, classes):
    """AVX-512 and AVX2: one lane structure, so a result does not depend on the machine it was computed on."""
    logits, softmax, names = batch(classes, dtype)
    for targets in targets_of(softmax).values():
        found = {}
        for level in FUSED:
            _xent_rs.set_simd_level(level)
            found[level] = results(logits, targets, -1), results(logits.T.copy(), targets, 0)
        for first, second in zip(*found.values(), strict=True):
            assert differing(first, second) == [], names


@dtypes
def test_rows_do_not_depend_on_their_neighbours(dtype):
    """A row has the same bits alone, and anywhere in a batch."""
    for classes in (3, 17, 1000, 5000):
        rows = distributions(classes, dtype)
        logits = np.stack([rows[name] for name in FEW if name in rows])
        together = xent_rs.cross_entropy_with_grad(logits, np.zeros(len(logits), int), reduction="none")
        for i, row in enumerate(logits):
            loss, grad = xent_rs.cross_entropy_with_grad(row[None], [0], reduction="none")
            assert loss.tobytes() == together[0][i].tobytes()
            assert grad.tobytes() == together[1][i].tobytes()


def test_sixteen_threads_on_one_array():
    """Borrow checks of the binding must not panic; the pool must not deadlock; the answer is one."""
    logits, targets = example((500, 1000), np.dtype(np.float32))
    expected = results(logits, targets, -1)
    xent_rs.set_num_threads(2)
    failures, start = [], threading.Barrier(16)

    def work():
        try:
            start.wait()
            for _ in range(10):
                assert differing(expected, results(logits, targets, -1)) == []
        except BaseException as failure:
            failures.append(failure)
            raise

    run_all([threading.Thread(target=work) for _ in range(16)])
    assert not failures


def test_threads_that_update_the_same_figures_lose_nothing():
    logits, targets = example((4000, 10), np.dtype(np.float32))
    weaker = (logits / 2).astype(np.float16)
    evaluator, comparer, start = xent_rs.Evaluator(), xent_rs.Comparer(), threading.Barrier(8)

    def work(number):
        start.wait()
        for first in range(500 * number, 500 * (number + 1), 10):
            rows = slice(first, first + 10)
            evaluator.update(logits[rows], targets[rows])
            comparer.update(logits[rows], weaker[rows], targets[rows])

    run_all([threading.Thread(target=work, args=(number,)) for number in range(8)])
    assert evaluator.result() == xent_rs.evaluate(logits, targets)
    assert comparer.result() == xent_rs.compare(logits, weaker, targets)


def test_number_of_threads_set_while_calls_run():
    logits, targets = example((2000, 100), np.dtype(np.float32))
    expected = xent_rs.cross_entropy(logits, targets)
    wrong, done = [], threading.Event()

    def call():
        while not done.is_set():
            got = xent_rs.cross_entropy(logits, targets)
            if got != expected:
                wrong.append(got)

    callers = [threading.Thread(target=call) for _ in range(3)]
    for caller in callers:
        caller.start()
    try:
        for i in range(300):
            xent_rs.set_num_threads(i % 4 + 1)
    finally:
        done.set()
        for caller in callers:
            caller.join(30)
    assert not any(caller.is_alive() for caller in callers)
    assert not wrong


def run_all(threads):
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)


def test_more_threads_than_rows_and_cores():
    logits, targets = example((3, 50_000), np.dtype(np.float32))
    expected = results(logits, targets, -1)
    xent_rs.set_num_threads(64)
    assert differing(expected, results(logits, targets, -1)) == []


# How many times one thread's time a call may take whose helpers are busy: with waiting it took 100 times.
PATIENCE = 10


def test_a_call_beside_a_long_one_takes_one_threads_time():
    """A call that waits for helpers, who are in another call, takes as long as that does."""
    logits, targets = example((400, 1000), np.dtype(np.float32))
    teacher = np.broadcast_to(np.linspace(0, 9, 32_000, dtype=np.float32), (2000, 32_000))
    done, times = threading.Event(), {1: [], 2: []}

    def long():
        while not done.is_set():
            xent_rs.kl_divergence(teacher, teacher)

    other = threading.Thread(target=long)
    other.start()
    try:
        for _ in range(8):
            for threads, of_threads in times.items():
                xent_rs.set_num_threads(threads)
                # In the other call, a slice of work later.
                time.sleep(0.1)
                for _ in range(20):
                    time.sleep(1e-3)
                    start = time.perf_counter()
                    xent_rs.cross_entropy(logits, targets)
                    of_threads.append(time.perf_counter() - start)
    finally:
        done.set()
        other.join(60)
    alone, helped = (np.median(of_threads) for of_threads in times.values())
    assert helped < PATIENCE * alone
