"""Evaluate logits in a file against targets in a file: loss, perplexity, accuracy and entropy.

LOGITS and TARGETS are .npy files, or .npz and .safetensors files with the name of the array behind a colon,
as in model.safetensors:logits (the name can be left out if there is but one array), or base.kld:logits and
base.kld:targets of what llama-perplexity --kl-divergence-base base.kld has written. Several files make one
array, whose rows come in natural order (part-9 before part-10): a pattern such as "logits-*.npy", a folder,
or the index of a sharded safetensors file (model.safetensors.index.json). They are read block by block, so
they may be larger than memory. Of equal logits the first counts as larger.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import Evaluator, cross_entropy, io, set_num_threads
from .._evaluation import update_at
from ..io._formats import npy
from . import _terminal


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments and options."""
    files = [
        parser.add_argument("logits", metavar="LOGITS", help="file of the logits"),
        parser.add_argument("targets", metavar="TARGETS", help="file of the targets (integers, the classes)"),
    ]
    parser.add_argument(
        "--axis", type=int, default=-1, help="axis of the classes in LOGITS (default: the last)"
    )
    parser.add_argument(
        "--ignore-index",
        type=int,
        default=-100,
        metavar="N",
        help="rows with this target do not count (default: -100)",
    )
    parser.add_argument("--temperature", type=float, default=1.0, help="divides the logits (default: 1)")
    parser.add_argument(
        "--softcap", type=float, metavar="CAP", help="bounds the logits, before the temperature, to +-CAP"
    )
    files += [
        parser.add_argument(
            "--weight",
            metavar="FILE",
            help="file of a weight for each class in the loss (default: 1 for all)",
        ),
        parser.add_argument(
            "--sample-weight",
            metavar="FILE",
            help="file of a weight for each row in the loss, in the shape of TARGETS (default: 1 for all)",
        ),
        parser.add_argument(
            "--output",
            type=Path,
            metavar="LOSSES.npy",
            help="new file of the loss of each row, in the shape of TARGETS; 0 for rows that do not count",
        ),
    ]
    for action in files:
        _terminal.names_file(action)
    parser.add_argument(
        "--label-smoothing",
        type=float,
        default=0.0,
        metavar="E",
        help="the loss spreads this share of the target over all classes (default: 0)",
    )
    parser.add_argument(
        "--z-loss",
        type=float,
        default=0.0,
        metavar="FACTOR",
        help="the loss has this times the square of the log-sum-exp more (default: 0)",
    )
    parser.add_argument(
        "--top-k",
        type=_integers,
        default=(1, 5),
        metavar="K,...",
        help="count hits among the K largest (default: 1,5)",
    )
    parser.add_argument(
        "--dtype",
        choices=("float16", "bfloat16", "float32", "float64"),
        help="what LOGITS hold; needed only for bfloat16 in .npy and .npz, which NumPy stores as raw bytes",
    )
    _terminal.add_threads(parser)
    _terminal.add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Evaluate and print."""
    if arguments.threads is not None:
        set_num_threads(arguments.threads)
    logits = io.open_array(arguments.logits, dtype=arguments.dtype)
    targets = io.open_array(arguments.targets)
    _check_order(logits, targets)
    sample_weight = None if arguments.sample_weight is None else io.open_array(arguments.sample_weight)
    if sample_weight is not None and sample_weight.shape != targets.shape:
        raise ValueError(
            f"{sample_weight.name}: has shape {sample_weight.shape}; "
            f"expected {targets.shape}, the shape of {targets.name}, one weight a row"
        )
    weight = None if arguments.weight is None else io.open_array(arguments.weight)
    options: dict[str, Any] = {
        "weight": None if weight is None else weight.map(),
        "ignore_index": arguments.ignore_index,
        "label_smoothing": arguments.label_smoothing,
        "z_loss": arguments.z_loss,
        "softcap": arguments.softcap,
        "temperature": arguments.temperature,
        "axis": arguments.axis,
    }
    evaluator = Evaluator(top_k=arguments.top_k, **options)
    inputs = [file for file in (logits, targets, sample_weight, weight) if file is not None]
    losses_dtype = np.dtype(np.float64 if logits.dtype.itemsize == 8 else np.float32)  # as `cross_entropy`
    with (
        _output(arguments.output, targets.shape, losses_dtype, inputs) as append_losses,
        _terminal.progress(logits.nbytes, "evaluate", unit="B", unit_scale=True, unit_divisor=1024) as bar,
    ):
        for position, some_logits, some_targets, *rest in io.row_blocks(
            logits, targets, sample_weight, axis=arguments.axis
        ):
            some_weights = rest[0] if rest else None
            update_at(evaluator, position, some_logits, some_targets, some_weights)
            if append_losses is not None:
                losses = cross_entropy(
                    some_logits, some_targets, sample_weight=some_weights, reduction="none", **options
                )
                append_losses(np.asarray(losses))
            bar.update(some_logits.nbytes)
    evaluation = evaluator.result()

    if arguments.json:
        _terminal.print_json(asdict(evaluation))
    else:
        print(f"{_terminal.printable(logits.name)}: {logits.dtype.name} logits of shape {logits.shape}")
        _terminal.print_table(evaluation._table(classes=logits.shape[arguments.axis]))
    return 0


def _check_order(logits: io.StoredArray, targets: io.StoredArray) -> None:
    """Refuse files in the wrong order by name; their shapes, which do not match either, would mislead."""
    if logits.dtype.kind in "biu" and targets.dtype.kind not in "biu":
        raise ValueError(
            f"LOGITS holds {logits.dtype} of shape {logits.shape} and TARGETS {targets.dtype} of shape "
            f"{targets.shape}: are the two files swapped?"
        )


@contextlib.contextmanager
def _output(
    path: Path | None, shape: tuple[int, ...], dtype: np.dtype[Any], inputs: list[io.StoredArray]
) -> Iterator[Callable[[NDArray[Any]], None] | None]:
    """Give a function that appends to a new .npy file, or None without a path."""
    if path is None:
        yield None
        return
    if path.suffix.lower() != ".npy":
        raise ValueError(f"{path}: unknown format; expected a .npy file")
    if path.exists():
        if not path.is_file():
            raise ValueError(f"{path}: not a regular file")
        for shard in (shard for array in inputs for shard in array.shards):
            if path.samefile(shard.path):
                raise ValueError(f"{path}: is read as {shard.name}; expected a new file")
    with npy.creating(path, shape, dtype) as append:
        yield append


def _integers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of integers such as 1,5") from None
