"""How much memory a call takes above its inputs: the peak of a fresh process, around one call.

Results have ``above``, in bytes, and no times.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from xent_rs import _xent_rs, get_num_threads
from xent_rs.cli.benchmark.contenders import CONTENDERS
from xent_rs.cli.benchmark.measuring import Results, Settings, Skips, progress

_SHAPES, _QUICK_SHAPES = ((2048, 32_000), (16_384, 1000), (262_144, 10), (2_097_152, 10)), ((2048, 1000),)

ROOT = Path(__file__).parents[2]

# Those who compile, and SciPy, which is like NumPy.
_LEFT_OUT = ("SciPy", "PyTorch, compiled", "JAX", "JAX, new array")

# glibc keeps freed memory for later, where a call could find it without taking any more.
NOTHING_KEPT = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}


def run(settings: Settings) -> tuple[Results, Skips]:
    """Measure the loss, and the gradient, of this package and of those peers that do not compile."""
    if not Path("/proc/self/clear_refs").exists():
        return [], [{"contender": "memory", "reason": "only Linux can say what a call took"}]
    contenders = [each for each in settings.contenders if each.name not in _LEFT_OUT]
    shapes = _QUICK_SHAPES if settings.quick else _SHAPES
    results: Results = []
    with progress(len(shapes) * len(contenders)) as bar:
        for rows, classes in shapes:
            bar.set_postfix_str(f"memory, {rows} x {classes}")
            for contender in contenders:
                fields = {"rows": rows, "classes": classes, "dtype": "float32"}
                found = _probe(rows, classes, CONTENDERS.index(contender))
                of = {"job": contender.job, "contender": contender.name}
                results.append({"suite": "memory", **fields, **of, **found})
                bar.update()
    return results, []


def _probe(rows: int, classes: int, number: int) -> dict[str, float]:
    """Run `probe` in a process of its own; return what it prints."""
    printed = in_a_process(f"{__package__}.probe", str(rows), str(classes), "float32", str(number))
    found: dict[str, float] = json.loads(printed)
    return found


def in_a_process(module: str, *arguments: str, **environment: str) -> str:
    """Run a module that measures memory, at the level and with the threads in use; return what it prints."""
    everything = {
        **os.environ,
        **NOTHING_KEPT,
        "XENT_RS_SIMD": _xent_rs.simd_level(),
        "XENT_RS_NUM_THREADS": str(get_num_threads()),
        **environment,
    }
    command = [sys.executable, "-m", module, *arguments]
    finished = subprocess.run(command, env=everything, cwd=ROOT, capture_output=True, text=True, check=False)
    if finished.returncode != 0:
        last = (finished.stderr.strip().splitlines() or ["nothing"])[-1]
        raise RuntimeError(f"a measurement of memory ended with status {finished.returncode}: {last}")
    return finished.stdout
