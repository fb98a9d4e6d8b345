"""Time per element from a million elements to a thousand million.

The calls of a size go round the windows of one large array, so that small sizes do not come from the cache.
"""

from __future__ import annotations

import itertools
import math
import os
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from xent_rs import cross_entropy, cross_entropy_with_grad
from xent_rs.cli.benchmark.cases import GRADIENT, JOBS, LOSS, Array, Case, copies, reads
from xent_rs.cli.benchmark.contenders import promised
from xent_rs.cli.benchmark.measuring import Entry, Results, Settings, Skips, progress, steps, take, within

_CLASSES = (32_000, 1000)
_ELEMENTS, _QUICK_ELEMENTS = (10**6, 10**7, 10**8, 10**9), (10**5, 10**6)

# The logits repeat after so many values, which are whole rows.
_PERIOD = 8_000_000

# Memory to leave to others.
_SPARE = 1 << 30


def run(settings: Settings) -> tuple[Results, Skips]:
    """Time the loss, and the gradient with ``out=``, of float32 logits at each number of elements."""
    sizes = _QUICK_ELEMENTS if settings.quick else _ELEMENTS
    available = _available_memory()
    fitting = [size for size in sizes if 8 * size + _SPARE <= available]
    skips = [
        {
            "contender": f"growth to {size:,} elements",
            "reason": f"takes {(8 * size + _SPARE) / 1e9:.1f} GB of memory; {available / 1e9:.1f} are free",
        }
        for size in sizes
        if size not in fitting
    ]
    results: Results = []
    if fitting:
        material = _Material(max(fitting))
        with progress(len(_CLASSES) * len(fitting) * steps(len(JOBS), len(JOBS), settings.repeats)) as bar:
            for classes in _CLASSES:
                bar.set_postfix_str(f"growth, {classes} classes")
                windows = [_Windows(material, size // classes, classes) for size in fitting]
                entries = [entry for window in windows for entry in window.entries()]
                roofs = {name: call for window in windows for name, call in window.roofs().items()}
                some, _ = take(entries, roofs, settings.repeats, bar.update)
                results += some
    return results, skips


class _Material:
    """Normal random logits that repeat, and as much memory for gradients."""

    def __init__(self, elements: int) -> None:
        period = np.random.default_rng(0).standard_normal(_PERIOD, np.float32)
        self.logits = np.empty(elements, np.float32)
        self.out = np.empty(elements, np.float32)
        for start in range(0, elements, _PERIOD):
            end = min(start + _PERIOD, elements)
            self.logits[start:end] = period[: end - start]
        self.out.fill(0)


class _Windows:
    """The material as one window of a shape after the other."""

    def __init__(self, material: _Material, rows: int, classes: int) -> None:
        self.fields = {"rows": rows, "classes": classes, "dtype": "float32"}
        self.rows, self.classes, self.material = rows, classes, material
        self.size = rows * classes
        period = min(rows, _PERIOD // classes)
        targets = np.random.default_rng(1).integers(classes, size=period)
        self.targets = np.resize(targets, rows)
        # The first rows of the first window, which repeat.
        self.head = Case(material.logits[: period * classes].reshape(period, classes), targets)

    def entries(self) -> list[Entry]:
        """Return the loss, and with the gradient."""
        return [
            Entry(
                {"suite": "growth", **self.fields, "job": job, "contender": name},
                partial(self._prepare, job),
                {f"{job}, {self.size}": 1.0},
            )
            for job, name in ((LOSS, "xent_rs"), (GRADIENT, "xent_rs, out="))
        ]

    def roofs(self) -> dict[str, Callable[[], Any]]:
        """Return the roofs of both jobs, which go round the windows likewise."""
        read = [reads(logits) for logits, _ in self._windows()]
        copy = [copies(logits, out) for logits, out in self._windows()]
        return {f"{LOSS}, {self.size}": _in_turn(read), f"{GRADIENT}, {self.size}": _in_turn(copy)}

    def _windows(self) -> list[tuple[Array, Array]]:
        shape = -1, self.rows, self.classes
        end = len(self.material.logits) // self.size * self.size
        logits, out = (array[:end].reshape(shape) for array in (self.material.logits, self.material.out))
        return list(zip(logits, out, strict=True))

    def _prepare(self, job: str) -> tuple[Callable[[], Any], Callable[[Any], dict[str, float]]]:
        # The targets are right for the first window, whose answer is checked, and any will do for the others.
        calls: list[Callable[[], Any]] = [
            partial(cross_entropy, logits, self.targets)
            if job == LOSS
            else partial(cross_entropy_with_grad, logits, self.targets, out=out)
            for logits, out in self._windows()
        ]
        return _in_turn(calls), self._check

    def _check(self, answer: Any) -> dict[str, float]:
        loss, gradient = answer if isinstance(answer, tuple) else (answer, None)
        head = self.head
        expected = float(np.resize(head.reference.losses, self.rows).mean())
        loss_tolerance, gradient_tolerance = promised(head)
        pairs = {"loss": (abs(loss - expected) / expected, loss_tolerance)}
        if gradient is not None:
            of_head = gradient[: head.rows].astype(np.float64) * (self.rows / head.rows)
            _, error = head.errors((loss, of_head))
            pairs["gradient"] = (math.nan if error is None else error, gradient_tolerance)
        return within(f"growth, {self.rows} x {head.classes}", pairs)


def _in_turn(calls: Sequence[Callable[[], Any]]) -> Callable[[], Any]:
    """Return a call that makes the first of some calls, the next time the second, and so on for ever."""
    following = itertools.cycle(calls).__next__
    return lambda: following()()


def _available_memory() -> int:
    """Return the bytes that the system can give without swapping."""
    try:
        text = Path("/proc/meminfo").read_text(encoding="ascii")
        return 1024 * int(re.search(r"^MemAvailable: +(\d+) kB$", text, re.MULTILINE)[1])  # type: ignore[index]
    except (OSError, TypeError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
