"""Time calls against each other."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Hashable, Mapping
from typing import Any, TypeVar

Name = TypeVar("Name", bound=Hashable)

# A sample of a fast call repeats it for about this long.
_SAMPLE_SECONDS = 0.005

# A call that takes longer than this takes part in one turn of so many: what takes long varies less.
_SLOW_SECONDS = 0.1
_SLOW_TURNS = 3

# Threads of the call before, such as OpenMP's, go on spinning for a while when they have nothing to do.
_SETTLE_SECONDS = 0.02


def interleaved(
    calls: Mapping[Name, Callable[[], Any]], repeats: int, done: Callable[[], object] = lambda: None
) -> dict[Name, list[float]]:
    """Return the seconds that each call takes, `repeats` samples of each, of slow ones a third of that.

    The calls take turns, in alternating order, so that whatever else the machine does meets all of them.
    Before each sample the machine settles and the call runs untimed: it finds the caches as in a loop, and
    threads of the call before it asleep. Its last result is kept meanwhile, as in a loop such as
    ``loss, gradient = f(...)``, in which two results take turns: so two calls are not timed, but one where
    it takes long. `done` is called `repeats` times for each call.
    """
    plans = {name: _plan(call) for name, call in calls.items()}
    samples: dict[Name, list[float]] = {name: [] for name in calls}
    collecting = gc.isenabled()
    gc.disable()
    try:
        for repeat in range(repeats):
            for name in list(calls) if repeat % 2 == 0 else reversed(list(calls)):
                number, turns = plans[name]
                if repeat % turns == 0:
                    time.sleep(_SETTLE_SECONDS)
                    samples[name].append(_seconds(calls[name], number, untimed=1 if turns > 1 else 2))
                done()
    finally:
        if collecting:
            gc.enable()
    return samples


def _seconds(call: Callable[[], Any], number: int, untimed: int = 1) -> float:
    result = call()
    for _ in range(untimed - 1):
        result = call()
    start = time.perf_counter()
    for _ in range(number):
        result = call()
    seconds = time.perf_counter() - start
    del result
    return seconds / number


def _plan(call: Callable[[], Any]) -> tuple[int, int]:
    """Return how many calls make a sample, and of how many turns the call takes part in one."""
    number = 1
    while (seconds := _seconds(call, number) * number) < _SAMPLE_SECONDS:
        number = max(2 * number, min(1_000_000, int(number * _SAMPLE_SECONDS / max(seconds, 1e-9))))
    return number, _SLOW_TURNS if seconds / number > _SLOW_SECONDS else 1
