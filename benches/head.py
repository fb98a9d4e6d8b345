"""What `evaluate` and `compare` from hidden states take beside their products alone, and what they save.

    python -m benches.head [--features 2048] [--classes 128256] [--rows 512]

For weights of each dtype: the size of the hidden states and of the logits that are never all in memory, the
time of NumPy's products in float32, 256 rows at a time, and that of each call as a multiple of it. All calls
take turns, and of each the shortest time counts: whatever else the machine does makes times longer.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import xent_rs
from xent_rs._bfloat16 import bfloat16
from xent_rs._tables import text_table
from xent_rs.cli._terminal import milliseconds
from xent_rs.cli.benchmark import timing

_ROWS = 256


def main(arguments: list[str] | None = None) -> int:
    """Measure and print; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--features", type=int, default=2048)
    parser.add_argument("--classes", type=int, default=128_256)
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=9)
    given = parser.parse_args(arguments)
    shape = f"{given.rows} rows, {given.features} features, {given.classes} classes"
    print(f"{shape}, {xent_rs.get_num_threads()} threads, {xent_rs._xent_rs.simd_level()}")
    lines = [("", "hidden states", "logits", "products", "evaluate", "compare (products twice)")]
    for dtype in (np.dtype(np.float32), bfloat16(), np.dtype(np.float16)):
        lines.append(_line(dtype, given.rows, given.features, given.classes, given.repeats))
    print(text_table(lines))
    return 0


def _line(dtype: np.dtype[Any], rows: int, features: int, classes: int, repeats: int) -> tuple[str, ...]:
    """Measure with weights of one dtype."""
    random = np.random.default_rng(0)
    hidden = random.standard_normal((rows, features), np.float32).astype(dtype)
    weight = np.empty((classes, features), dtype)
    for start in range(0, classes, 1024):  # little more than the weights in memory
        some = weight[start : start + 1024]
        some[...] = random.standard_normal(some.shape, np.float32) / np.sqrt(features)
    wide_hidden, wide = hidden.astype(np.float32), weight.astype(np.float32)
    targets = random.integers(classes, size=rows)
    logits = np.empty((min(rows, _ROWS), classes), np.float32)

    def products() -> list[float]:
        totals = []
        for start in range(0, rows, _ROWS):
            some = wide_hidden[start : start + _ROWS]
            np.matmul(some, wide.T, out=logits[: len(some)])
            totals.append(float(logits[0, 0]))
        return totals

    def evaluate() -> xent_rs.Evaluation:
        return xent_rs.evaluate(hidden, targets, linear_weight=weight)

    def compare() -> xent_rs.Comparison:
        return xent_rs.compare(hidden, hidden, targets, linear_weight=weight)

    _check(evaluate(), compare(), wide_hidden, wide, targets)
    calls: dict[str, Callable[[], Any]] = {"products": products, "evaluate": evaluate, "compare": compare}
    samples = timing.interleaved(calls, repeats)
    times = {name: min(seconds) for name, seconds in samples.items()}
    return (
        dtype.name,
        f"{hidden.nbytes / 1e6:.1f} MB",
        f"{rows * classes * dtype.itemsize / 1e6:.0f} MB",
        milliseconds(times["products"]),
        f"{times['evaluate'] / times['products']:.2f}",
        f"{times['compare'] / times['products'] / 2:.2f}",
    )


def _check(
    evaluation: xent_rs.Evaluation,
    comparison: xent_rs.Comparison,
    hidden: np.ndarray[Any, np.dtype[np.float32]],
    weight: np.ndarray[Any, np.dtype[np.float32]],
    targets: np.ndarray[Any, Any],
) -> None:
    """Compare with NumPy, a row at a time in float64."""
    total = 0.0
    for states, target in zip(hidden, targets, strict=True):
        logits = (weight @ states).astype(np.float64)
        top = logits.max()
        total += top + np.log(np.exp(logits - top).sum()) - logits[target]
    expected = total / len(targets)
    for found in (evaluation.loss, comparison.reference.loss):
        if found is None or not abs(found - expected) <= 1e-5 * abs(expected):
            raise ArithmeticError(f"the loss is {found}; expected {expected}")
    if comparison.kl.value != 0:
        raise ArithmeticError(f"the divergence of equal models is {comparison.kl.value}; expected 0")


if __name__ == "__main__":
    sys.exit(main())
