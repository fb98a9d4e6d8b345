"""How long a call takes while others use the CPUs: with all threads, and with one.

A call that shares its work waits for whom it gave work to. If they do not get a CPU, since idle threads of
another library still spin there, or since they work for another call, it must not take longer than without
them. The same calls are made with all threads and with one, in turns, and what else wants the CPUs wants as
many of them in both: one long call on all threads, or as many long calls on one thread each.

Results have a ``p95``, the time that 95 % of the calls stay below; there is no roof.
"""

from __future__ import annotations

import contextlib
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
from xent_rs import cross_entropy, get_num_threads, kl_divergence, set_num_threads
from xent_rs.cli.benchmark.cases import LOSS, Case
from xent_rs.cli.benchmark.contenders import CONTENDERS
from xent_rs.cli.benchmark.measuring import Results, Settings, Skips, progress
from xent_rs.cli.benchmark.peers import check

# Calls that are timed before the other number of threads has its turn, and turns for each of the repeats.
_CALLS, _TURNS = 20, 10

# Rows and columns of the matrices: a product of milliseconds, which wakes all threads of its library.
_PRODUCT = 512

_LONG, _QUICK_LONG = (1024, 32_000), (64, 32_000)


@dataclass(frozen=True)
class Company:
    """Who else uses the CPUs.

    Attributes
    ----------
    name : str
        What it does.
    shape : (rows, classes)
        The call that is timed beside it.
    before : callable
        Called before each of the calls.
    meanwhile : callable
        Takes how many there are of it; returns a context in which it works.
    """

    name: str
    shape: tuple[int, int]
    before: Callable[[], object] = lambda: None
    meanwhile: Callable[[int], AbstractContextManager[None]] = lambda number: contextlib.nullcontext()


def run(settings: Settings) -> tuple[Results, Skips]:
    """Time the loss with all threads and with one."""
    most = get_num_threads()
    if most == 1:
        return [], [{"contender": "beside", "reason": "there is but one thread"}]
    packages = {contender.package for contender in settings.contenders}
    companies = [_after_numpy(), *([_after_torch()] if "torch" in packages else [])]
    companies.append(_beside_a_long_call(*(_QUICK_LONG if settings.quick else _LONG)))
    results: Results = []
    turns = _TURNS * settings.repeats
    with progress(2 * turns * len(companies)) as bar:
        for company in companies:
            bar.set_postfix_str(f"beside, {company.name}")
            results += take(company, most, turns, bar.update)
    return results, []


def take(company: Company, most: int, turns: int, done: Callable[[], object]) -> Results:
    """Check the loss, then time it in company, with `most` threads and with one."""
    case = Case.random(*company.shape, "float32")
    found = check(case, CONTENDERS[0], cross_entropy(case.logits, case.targets))
    samples: dict[int, list[float]] = {most: [], 1: []}
    try:
        for turn in range(turns):
            for threads in (most, 1) if turn % 2 == 0 else (1, most):
                set_num_threads(threads)
                with company.meanwhile(most // threads):
                    samples[threads] += _seconds(case, company.before)
                done()
    finally:
        set_num_threads(most)
    return [
        {
            "suite": "beside",
            **case.fields,
            "job": LOSS,
            "contender": "xent_rs",
            "company": company.name,
            "threads": threads,
            "median": statistics.median(seconds),
            "minimum": min(seconds),
            "p95": float(np.quantile(seconds, 0.95)),
            "samples": len(seconds),
            **found,
        }
        for threads, seconds in samples.items()
    ]


def _seconds(case: Case, before: Callable[[], object]) -> list[float]:
    cross_entropy(case.logits, case.targets)  # starts the threads
    found = []
    for _ in range(_CALLS):
        before()
        start = time.perf_counter()
        cross_entropy(case.logits, case.targets)
        found.append(time.perf_counter() - start)
    return found


def _after_numpy() -> Company:
    matrix = np.ones((_PRODUCT, _PRODUCT), np.float32)
    out = np.empty_like(matrix)
    return Company("after a matrix product of NumPy", (512, 8000), lambda: np.matmul(matrix, matrix, out=out))


def _after_torch() -> Company:
    import torch

    matrix = torch.ones((_PRODUCT, _PRODUCT))
    return Company("after a matrix product of PyTorch", (512, 8000), lambda: matrix @ matrix)


def _beside_a_long_call(rows: int, classes: int) -> Company:
    logits = np.random.default_rng(0).standard_normal((rows, classes), np.float32)

    @contextlib.contextmanager
    def meanwhile(number: int) -> Iterator[None]:
        stop = threading.Event()

        def loop() -> None:
            while not stop.is_set():
                kl_divergence(logits, logits[::-1])

        threads: list[Any] = [threading.Thread(target=loop) for _ in range(number)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            stop.set()
            for thread in threads:
                thread.join()

    return Company("beside a long call", (400, 1000), meanwhile=meanwhile)
