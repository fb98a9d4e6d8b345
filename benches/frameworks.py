"""Time each framework's own loss against this package's for it: forward, and forward and backward.

    python -m benches.frameworks            a table for each framework
    python -m benches.frameworks --json     the same as JSON, with all samples

From 2 to 128,256 classes, float32 and bfloat16 logits, the smallest call, and the memory that forward and
backward take above what is there. Calls of one framework are made in turns, for the threads of another would
be in their way. `python -m benches.report --record frameworks` keeps the answer and shows it in README and in
docs/performance.md.
"""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import math
import os
import platform
import statistics
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from xent_rs import _xent_rs, cross_entropy
from xent_rs._bfloat16 import bfloat16
from xent_rs.cli import _terminal
from xent_rs.cli.benchmark import timing
from xent_rs.cli.benchmark.contenders import torch_tensors
from xent_rs.cli.benchmark.tables import Table, grouped, shape, time

from .suites.memory import in_a_process
from .suites.probe import memory_above
from .tables import memory

FORWARD, BOTH = "forward", "forward and backward"
JOBS = (FORWARD, BOTH)

#: In docs/.
PICTURE = "frameworks.png"

SHAPES = ((262_144, 2), (262_144, 10), (16_384, 1000), (2048, 32_000), (512, 128_256))
QUICK_SHAPES = ((512, 2), (64, 1000))
SMALLEST = (8, 10)
DTYPES = ("float32", "bfloat16")

# From what is returned in the dtype of the logits nobody can expect more digits than that has.
_TOLERANCE = {"float32": 1e-6, "bfloat16": 2.0**-8}

Call = Callable[[], float]
Make = Callable[["Material", str], Call]


class Material(NamedTuple):
    """Logits and targets."""

    logits: np.ndarray[Any, Any]
    targets: np.ndarray[Any, Any]

    @classmethod
    def random(cls, rows: int, classes: int, dtype: str) -> Material:
        """Return logits as a model in training has them."""
        generator = np.random.default_rng(0)
        logits = generator.standard_normal((rows, classes), np.float32) * np.float32(3)
        targets = generator.integers(classes, size=rows)
        return cls(logits.astype(bfloat16()) if dtype == "bfloat16" else logits, targets)


class Way(NamedTuple):
    """A loss of a framework, and the way it is called.

    Attributes
    ----------
    framework : str
        The distribution that has to be installed.
    name : str
        What the tables call it.
    own : str or None
        For a way of this package, that of the framework in whose place it is.
    make : callable
        Takes `Material` and a job; returns the call, which returns the mean loss when all is done.
    dtypes : sequence of str
        Those of the logits that it takes.
    """

    framework: str
    name: str
    own: str | None
    make: Make
    dtypes: Sequence[str] = DTYPES


def _torch(ours: bool, compiled: bool, material: Material, job: str) -> Call:
    torch, x, y = torch_tensors(*material)
    from torch.nn import functional
    from xent_rs import torch as of_package

    loss_of: Any = of_package.cross_entropy if ours else functional.cross_entropy
    if compiled:
        torch._dynamo.config.recompile_limit = 1000
        loss_of = torch.compile(loss_of, dynamic=False)
    if job == FORWARD:
        return lambda: loss_of(x, y).item()
    x.requires_grad_()

    def call() -> float:
        loss = loss_of(x, y)
        loss.backward()
        x.grad = None  # else the next would be added to it
        return loss.item()

    return call


def _jax(ours: bool, material: Material, job: str) -> Call:
    import jax

    if ours:
        from xent_rs.jax import softmax_cross_entropy_with_integer_labels as losses_of
    else:
        from optax import softmax_cross_entropy_with_integer_labels as losses_of
    x, y = jax.numpy.asarray(material.logits), jax.numpy.asarray(material.targets.astype(np.int32))

    def mean(x: Any, y: Any) -> Any:
        return losses_of(x, y).mean()

    function = jax.jit(mean if job == FORWARD else jax.value_and_grad(mean))
    return lambda: float(jax.tree.leaves(jax.block_until_ready(function(x, y)))[0])


def _keras(ours: bool, material: Material, job: str) -> Call:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ["KERAS_BACKEND"] = "tensorflow"
    import keras
    import tensorflow as tf

    if ours:
        from xent_rs.keras import SparseCategoricalCrossentropy as Loss
    else:
        Loss = keras.losses.SparseCategoricalCrossentropy
    loss = Loss(from_logits=True)
    x, y = tf.constant(material.logits), tf.constant(material.targets)

    @tf.function  # as `fit` does
    def forward() -> Any:
        return loss(y, x)

    @tf.function
    def both() -> Any:
        with tf.GradientTape() as tape:
            tape.watch(x)
            value = loss(y, x)
        return value, tape.gradient(value, x)

    if job == FORWARD:
        return lambda: float(forward())

    def call() -> float:
        value, gradient = both()
        gradient.numpy()  # shares the memory, once it is there
        return float(value)

    return call


WAYS = (
    Way("torch", "PyTorch", None, partial(_torch, False, False)),
    Way("torch", "xent_rs.torch", "PyTorch", partial(_torch, True, False)),
    Way("torch", "PyTorch, compiled", None, partial(_torch, False, True)),
    Way("torch", "xent_rs.torch, compiled", "PyTorch, compiled", partial(_torch, True, True)),
    Way("jax", "optax, jit", None, partial(_jax, False)),
    Way("jax", "xent_rs.jax, jit", "optax, jit", partial(_jax, True)),
    # Keras converts logits to the dtype of the loss, float32, first.
    Way("tensorflow", "Keras on TensorFlow", None, partial(_keras, False), ("float32",)),
    Way(
        "tensorflow",
        "xent_rs.keras on TensorFlow",
        "Keras on TensorFlow",
        partial(_keras, True),
        ("float32",),
    ),
)
_BESIDES = {"jax": ("optax",), "tensorflow": ("keras",)}
#: ... and other packages that have the same module.
_AS_WELL = {"tensorflow": "tensorflow-cpu"}


def versions() -> dict[str, str]:
    """Return the frameworks that are installed, and what they need for this, with their versions."""
    found = {}
    for framework in dict.fromkeys(way.framework for way in WAYS):
        try:
            besides = {name: importlib.metadata.version(name) for name in _BESIDES.get(framework, ())}
            found.update({framework: _version(framework), **besides})
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _version(framework: str) -> str:
    try:
        return importlib.metadata.version(framework)
    except importlib.metadata.PackageNotFoundError:
        if framework not in _AS_WELL:
            raise
        return importlib.metadata.version(_AS_WELL[framework])


def measure(repeats: int, quick: bool) -> dict[str, Any]:
    """Return ``environment``, ``results`` and ``skipped``, fit for JSON.

    Raises
    ------
    ArithmeticError
        If a loss of this package is wrong.
    """
    installed = versions()
    shapes = (*(QUICK_SHAPES if quick else SHAPES), SMALLEST)
    present = [way for way in WAYS if way.framework in installed]
    cases = [
        (ways, *of_case)
        for ways in grouped(present, lambda way: way.framework).values()
        for of_case in ((shape, dtype, job) for shape in shapes for dtype in DTYPES for job in JOBS)
        if any(of_case[1] in way.dtypes for way in ways)
    ]
    results: list[dict[str, Any]] = []
    with _terminal.progress(len(cases), "frameworks", unit="case") as bar:
        for ways, (rows, classes), dtype, job in cases:
            bar.set_postfix_str(f"{ways[0].framework}, {rows} x {classes} {dtype}")
            results += _timed(ways, rows, classes, dtype, job, repeats)
            bar.update()
    most = shapes[-2]
    taken = [{**_fields(way, *most, "float32", BOTH), "above_inputs": _above(way, *most)} for way in present]
    environment = {
        **_xent_rs.config(),
        "python": platform.python_version(),
        "versions": installed,
        "repeats": repeats,
    }
    missing = dict.fromkeys(way.framework for way in WAYS if way.framework not in installed)
    skipped = [{"contender": framework, "reason": "not installed"} for framework in missing]
    return {"environment": environment, "results": [*results, *taken], "skipped": skipped}


def _fields(way: Way, rows: int, classes: int, dtype: str, job: str) -> dict[str, Any]:
    fields = {"framework": way.framework, "contender": way.name, "own": way.own}
    return {**fields, "rows": rows, "classes": classes, "dtype": dtype, "job": job}


def _timed(
    ways: Sequence[Way], rows: int, classes: int, dtype: str, job: str, repeats: int
) -> list[dict[str, Any]]:
    """Check the losses of a framework's ways, then time these in turns."""
    material = Material.random(rows, classes, dtype)
    loss = float(cross_entropy(material.logits.astype(np.float64), material.targets))
    ways = [way for way in ways if dtype in way.dtypes]
    calls = {way.name: way.make(material, job) for way in ways}
    errors = {}
    for way in ways:
        errors[way.name] = error = abs(calls[way.name]() / loss - 1)
        if way.own and not error <= _TOLERANCE[dtype]:
            raise ArithmeticError(f"{way.name}, {rows} x {classes} {dtype}: the loss is off by {error:.3g}")
    samples = timing.interleaved(calls, repeats)
    return [
        {
            **_fields(way, rows, classes, dtype, job),
            "median": statistics.median(samples[way.name]),
            "minimum": min(samples[way.name]),
            "samples": len(samples[way.name]),
            "loss_error": errors[way.name],
        }
        for way in ways
    ]


def _above(way: Way, rows: int, classes: int) -> int:
    """Measure in a process of its own what forward and backward take above what is there."""
    probe = ["--probe", way.name, str(rows), str(classes)]
    return int(in_a_process("benches.frameworks", *probe, XENT_RS_KEEP_MEMORY="0").split()[-1])


def _probe(name: str, rows: int, classes: int) -> None:
    (way,) = (way for way in WAYS if way.name == name)
    call = way.make(Material.random(rows, classes, "float32"), BOTH)
    call()  # whatever is compiled, and all threads
    gc.collect()
    print(memory_above(call)[0])


def tables(report: dict[str, Any]) -> list[Table]:
    """Return a table for each dtype and job, one of the smallest calls, and one of memory."""
    timed = [result for result in report["results"] if "median" in result]
    smallest = [result for result in timed if (result["rows"], result["classes"]) == SMALLEST]
    others = [result for result in timed if (result["rows"], result["classes"]) != SMALLEST]
    found = []
    for (dtype, job), results in grouped(others, lambda result: (result["dtype"], result["job"])).items():
        found.append((f"{job}, {dtype} logits, milliseconds", against_own(results)))
    lines = [["", *JOBS]]
    for name, results in grouped(
        (result for result in smallest if result["dtype"] == "float32"), lambda result: result["contender"]
    ).items():
        times = {result["job"]: time(result["median"]) for result in results}
        lines.append([name, *(times[job] for job in JOBS)])
    found.append((f"the smallest call, {SMALLEST[0]} x {SMALLEST[1]} float32", lines))
    taken = [result for result in report["results"] if "above_inputs" in result]
    if taken:
        lines = [["", shape(taken[0])]]
        lines += [[result["contender"], memory(result["above_inputs"])] for result in taken]
        found.append((f"memory that {BOTH} take above inputs and what is compiled, float32", lines))
    return found


def against_own(results: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Return a line for each way, a column for each shape: milliseconds.

    In brackets, behind those of this package, how many times as long the framework's own takes.
    """
    shapes = list(dict.fromkeys(shape(result) for result in results))
    times = {(result["contender"], shape(result)): result["median"] for result in results}
    own = {result["contender"]: result["own"] for result in results}
    lines = [["", *shapes]]
    for name in dict.fromkeys(result["contender"] for result in results):
        line = [name]
        for of_shape in shapes:
            median = times.get((name, of_shape), math.nan)
            other = times.get((own[name], of_shape))
            ratio = "" if other is None else f" ({other / median:.2f})"
            line.append(f"{_terminal.significant(1e3 * median)}{ratio}")
        lines.append(line)
    return lines


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        prog="python -m benches.frameworks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--repeats", type=int, default=7, metavar="N", help="samples of each time (default: 7)"
    )
    parser.add_argument("--quick", action="store_true", help="small shapes")
    parser.add_argument("--probe", nargs=3, metavar=("WAY", "ROWS", "CLASSES"), help=argparse.SUPPRESS)
    _terminal.add_threads(parser)
    _terminal.add_json(parser)
    arguments = parser.parse_args()
    if arguments.threads is not None:
        _xent_rs.set_num_threads(arguments.threads)
    if arguments.probe:
        name, rows, classes = arguments.probe
        _probe(name, int(rows), int(classes))
        return 0
    report = measure(arguments.repeats, arguments.quick)
    if arguments.json:
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
