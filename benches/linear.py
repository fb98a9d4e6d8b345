"""Time the loss of hidden states and the last layer, with its gradients, and the memory that it takes.

    python -m benches.linear            tables
    python -m benches.linear --json     the same as JSON, with all samples

`linear_cross_entropy_with_grad` beside its three matrix products alone, and beside PyTorch: `cross_entropy`
of all logits, its own `linear_cross_entropy` and `xent_rs.torch.linear_cross_entropy`. Calls with one matrix
library are made in turns; the threads of another would be in their way. `python -m benches.report --record
linear` keeps the answer and shows it.
"""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import math
import platform
import statistics
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from xent_rs import _xent_rs, cross_entropy_with_grad, linear_cross_entropy_with_grad
from xent_rs._bfloat16 import bfloat16
from xent_rs.cli import _terminal
from xent_rs.cli.benchmark import timing
from xent_rs.cli.benchmark.tables import Table, grouped

from .suites.memory import in_a_process
from .suites.probe import memory_above
from .tables import memory

#: Rows, features and classes, for each dtype. Without instructions for it PyTorch takes long
#: for bfloat16, and so that is measured with fewer.
SHAPES = {
    "float32": ((1024, 256, 32_000), (1024, 1024, 32_000), (512, 4096, 32_000), (512, 1024, 128_256)),
    "bfloat16": ((512, 256, 32_000),),
}
QUICK_SHAPES = {"float32": ((300, 8, 500),), "bfloat16": ((300, 8, 500),)}

#: How many rows the products alone take at a time, as the functions do.
_ROWS = 256

# A loss and its gradients in the dtype of the layer have no more digits than that.
_TOLERANCE = {"float32": 1e-5, "bfloat16": 2.0**-7}

Call = Callable[[], float]


class Layer(NamedTuple):
    """Hidden states, weights and targets."""

    hidden: np.ndarray[Any, Any]
    weight: np.ndarray[Any, Any]
    targets: np.ndarray[Any, Any]

    @classmethod
    def random(cls, rows: int, features: int, classes: int, dtype: str) -> Layer:
        """Return those of a model in training: logits of standard deviation 1."""
        generator = np.random.default_rng(0)
        hidden = generator.standard_normal((rows, features), np.float32)
        weight = generator.standard_normal((classes, features), np.float32) / np.float32(math.sqrt(features))
        targets = generator.integers(classes, size=rows)
        if dtype == "bfloat16":
            return cls(hidden.astype(bfloat16()), weight.astype(bfloat16()), targets)
        return cls(hidden, weight, targets)


def _products(layer: Layer) -> Call:
    """Make the products alone: of logits, states and weights, the latter without being added up."""
    hidden, weight = layer.hidden.astype(np.float32), layer.weight.astype(np.float32)
    logits = np.empty((_ROWS, len(weight)), np.float32)
    of_hidden, of_weight = np.empty_like(hidden), np.empty_like(weight)

    def call() -> float:
        for start in range(0, len(hidden), _ROWS):
            some = hidden[start : start + _ROWS]
            of_some = logits[: len(some)]
            np.matmul(some, weight.T, out=of_some)
            np.matmul(of_some, weight, out=of_hidden[start : start + _ROWS])
            np.matmul(of_some.T, some, out=of_weight)
        return math.nan

    return call


def _ours(layer: Layer) -> Call:
    return lambda: linear_cross_entropy_with_grad(*layer)[0]


def _all_logits(layer: Layer) -> Call:
    """Make NumPy hold all logits, which become their gradient."""
    hidden, weight = layer.hidden.astype(np.float32), layer.weight.astype(np.float32)

    def call() -> float:
        logits = hidden @ weight.T
        loss, gradient = cross_entropy_with_grad(logits, layer.targets, out=logits)
        products = gradient @ weight, gradient.T @ hidden
        del products
        return loss

    return call


def _torch(way: str, layer: Layer) -> Call:
    import torch
    from torch.nn import functional
    from xent_rs import torch as of_package

    def tensor(array: np.ndarray[Any, Any]) -> Any:
        if array.dtype == np.float32:
            return torch.from_numpy(array)
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)

    hidden, weight = (tensor(part).requires_grad_() for part in layer[:2])
    targets = torch.from_numpy(layer.targets)

    def loss_of() -> Any:
        if way == "ours":
            return of_package.linear_cross_entropy(hidden, weight, targets)
        if way == "chunks":
            options = torch.nn.LinearCrossEntropyOptions()
            return functional.linear_cross_entropy(hidden, weight, targets, options=options)
        return functional.cross_entropy(functional.linear(hidden, weight), targets)

    def call() -> float:
        loss = loss_of()
        loss.backward()
        hidden.grad = weight.grad = None
        return float(loss.item())

    return call


class Way(NamedTuple):
    """A way to the loss and the gradients: what the tables call it, the library that multiplies, and how."""

    name: str
    library: str
    make: Callable[[Layer], Call]


#: The first of a library is what its others are measured by.
WAYS = (
    Way("NumPy, the three products alone", "numpy", _products),
    Way("xent_rs.linear_cross_entropy_with_grad", "numpy", _ours),
    Way("NumPy, all logits, xent_rs.cross_entropy_with_grad", "numpy", _all_logits),
    Way("PyTorch, cross_entropy of all logits", "torch", lambda layer: _torch("all", layer)),
    Way("PyTorch, linear_cross_entropy in chunks", "torch", lambda layer: _torch("chunks", layer)),
    Way("xent_rs.torch.linear_cross_entropy", "torch", lambda layer: _torch("ours", layer)),
)
_IS_OURS = "xent_rs."


def measure(repeats: int, quick: bool) -> dict[str, Any]:
    """Return ``environment``, ``results`` and ``skipped``, fit for JSON.

    Raises
    ------
    ArithmeticError
        If a loss of this package is wrong.
    """
    versions, skipped = {}, []
    for library in ("numpy", "torch"):
        try:
            versions[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            skipped.append({"contender": library, "reason": "not installed"})
    ways = [way for way in WAYS if way.library in versions]
    shapes = QUICK_SHAPES if quick else SHAPES
    cases = [
        (of_library, shape, dtype)
        for of_library in grouped(ways, lambda way: way.library).values()
        for dtype, of_dtype in shapes.items()
        for shape in of_dtype
    ]
    results: list[dict[str, Any]] = []
    with _terminal.progress(len(cases), "linear", unit="case") as bar:
        for of_library, shape, dtype in cases:
            bar.set_postfix_str(f"{of_library[0].library}, {_text(shape)} {dtype}")
            results += _timed(of_library, shape, dtype, repeats)
            bar.update()
    most = shapes["float32"][-1]
    if sys.platform == "linux":
        results += [{**_fields(way, most, "float32"), "above_inputs": _above(way, most)} for way in ways]
    environment = {
        **_xent_rs.config(),
        "python": platform.python_version(),
        "versions": versions,
        "repeats": repeats,
    }
    return {"environment": environment, "results": results, "skipped": skipped}


def _fields(way: Way, shape: Sequence[int], dtype: str) -> dict[str, Any]:
    rows, features, classes = shape
    fields = {"contender": way.name, "library": way.library, "dtype": dtype}
    return {**fields, "rows": rows, "features": features, "classes": classes}


def _timed(
    ways: Sequence[Way], shape: tuple[int, int, int], dtype: str, repeats: int
) -> list[dict[str, Any]]:
    layer = Layer.random(*shape, dtype)
    logits = layer.hidden.astype(np.float32) @ layer.weight.astype(np.float32).T
    expected = cross_entropy_with_grad(logits, layer.targets, out=logits)[0]
    del logits
    calls = {way.name: way.make(layer) for way in ways}
    for way in ways:
        error = abs(calls[way.name]() / expected - 1)
        if _IS_OURS in way.name and not error <= _TOLERANCE[dtype]:
            raise ArithmeticError(f"{way.name}, {_text(shape)} {dtype}: the loss is off by {error:.3g}")
    samples = timing.interleaved(calls, repeats)
    return [
        {
            **_fields(way, shape, dtype),
            "median": statistics.median(samples[way.name]),
            "minimum": min(samples[way.name]),
            "samples": len(samples[way.name]),
        }
        for way in ways
    ]


def _above(way: Way, shape: Sequence[int]) -> int:
    """Measure in a process of its own what a call takes above hidden states, weights and targets."""
    probe = [str(WAYS.index(way)), *map(str, shape)]
    return int(in_a_process("benches.linear", "--probe", *probe, XENT_RS_KEEP_MEMORY="0").split()[-1])


def _probe(number: int, rows: int, features: int, classes: int) -> None:
    way = WAYS[number]
    way.make(Layer.random(_ROWS, features, 10, "float32"))()  # whatever is compiled, and all threads
    call = way.make(Layer.random(rows, features, classes, "float32"))
    gc.collect()
    print(memory_above(call)[0])


def tables(report: dict[str, Any]) -> list[Table]:
    """Return a table of times for each dtype, in seconds, and one of memory."""
    timed = [result for result in report["results"] if "median" in result]
    found: list[Table] = []
    for dtype, results in grouped(timed, lambda result: result["dtype"]).items():
        title = f"loss and gradients from {dtype} hidden states, rows x features x classes, seconds"
        found.append((title, _times(results)))
    taken = [result for result in report["results"] if "above_inputs" in result]
    if taken:
        lines = [["", _text(_shape(taken[0]))]]
        lines += [
            [result["contender"], memory(result["above_inputs"])]
            for result in taken
            if "alone" not in result["contender"]
        ]
        found.append(("memory that loss and gradients take above their inputs, float32", lines))
    return found


def _times(results: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Return a line for each way; in brackets, how many times as long as the first of the library."""
    shapes = list(dict.fromkeys(_shape(result) for result in results))
    times = {(result["contender"], _shape(result)): result["median"] for result in results}
    first = {library: of_library[0]["contender"] for library, of_library in _by_library(results).items()}
    lines = [["", *map(_text, shapes)]]
    for library, of_library in _by_library(results).items():
        for name in dict.fromkeys(result["contender"] for result in of_library):
            line = [name]
            for shape in shapes:
                ratio = times[name, shape] / times[first[library], shape]
                brackets = "" if name == first[library] else f" ({ratio:.2f})"
                line.append(f"{_terminal.significant(times[name, shape])}{brackets}")
            lines.append(line)
    return lines


def _by_library(results: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    return grouped(results, lambda result: result["library"])


def _shape(result: dict[str, Any]) -> tuple[int, int, int]:
    return result["rows"], result["features"], result["classes"]


def _text(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        prog="python -m benches.linear",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--repeats", type=int, default=3, metavar="N", help="samples of each time (default: 3)"
    )
    parser.add_argument("--quick", action="store_true", help="one small shape")
    parser.add_argument("--probe", nargs=4, type=int, help=argparse.SUPPRESS)
    _terminal.add_threads(parser)
    _terminal.add_json(parser)
    given = parser.parse_args(arguments)
    if given.threads is not None:
        _xent_rs.set_num_threads(given.threads)
    if given.probe:
        _probe(*given.probe)
        return 0
    report = measure(given.repeats, given.quick)
    if given.json:
        _terminal.print_json(report)
        return 0
    for title, lines in tables(report):
        print(f"\n{title}")
        _terminal.print_table(lines, indent="  ")
    for skip in report["skipped"]:
        print(f"\nskipped {skip['contender']}: {skip['reason']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
