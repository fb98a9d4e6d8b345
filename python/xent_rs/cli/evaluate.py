"""Evaluate logits in a file against targets in a file: loss, perplexity, accuracy and entropy.

LOGITS and TARGETS are .npy files, or .npz and .safetensors files with the name of the array behind a colon,
as in model.safetensors:logits (the name can be left out if there is but one array). They are read block by
block, so they may be larger than memory. The three formats give the same figures, bit for bit.
"""

from __future__ import annotations

import argparse
import re
from dataclasses import asdict

from .. import Evaluation, Evaluator, io, set_num_threads
from . import _terminal


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments and options."""
    parser.add_argument("logits", metavar="LOGITS", help="file of the logits")
    parser.add_argument("targets", metavar="TARGETS", help="file of the targets (integers, the classes)")
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
    parser.add_argument(
        "--weight", metavar="FILE", help="file of a weight for each class in the loss (default: 1 for all)"
    )
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
    evaluator = Evaluator(
        top_k=arguments.top_k,
        weight=None if arguments.weight is None else io.open_array(arguments.weight).map(),
        ignore_index=arguments.ignore_index,
        label_smoothing=arguments.label_smoothing,
        z_loss=arguments.z_loss,
        softcap=arguments.softcap,
        temperature=arguments.temperature,
        axis=arguments.axis,
    )
    with _terminal.progress(logits.nbytes, "evaluate", unit="B", unit_scale=True, unit_divisor=1024) as bar:
        for position, some_logits, some_targets in io.row_blocks(logits, targets, axis=arguments.axis):
            try:
                evaluator.update(some_logits, some_targets)
            except IndexError as error:
                raise IndexError(_in_file(str(error), position)) from None
            bar.update(some_logits.nbytes)
    evaluation = evaluator.result()

    if arguments.json:
        _terminal.print_json(asdict(evaluation))
    else:
        print(f"{_terminal.printable(logits.name)}: {logits.dtype.name} logits of shape {logits.shape}")
        _terminal.print_table(table(evaluation))
    return 0


def table(evaluation: Evaluation) -> list[tuple[str, str]]:
    """Return an evaluation as rows of a table for people."""
    return [
        ("rows", f"{evaluation.rows:,}"),
        ("ignored", f"{evaluation.ignored:,}"),
        ("loss (nats)", f"{evaluation.loss:.6g}"),
        ("bits", f"{evaluation.bits:.6g}"),
        ("perplexity", f"{evaluation.perplexity:.6g}"),
        ("entropy (nats)", f"{evaluation.entropy:.6g}"),
        ("accuracy", f"{evaluation.accuracy:.2%}"),
        *((f"among the top {k}", f"{share:.2%}") for k, share in evaluation.top_k.items() if k != 1),
    ]


def _in_file(message: str, position: tuple[int, ...]) -> str:
    """Move the position that a message names, ``targets[3, 5] is ...``, from the block to the file."""

    def move(match: re.Match[str]) -> str:
        indices = (int(index) + start for index, start in zip(match[1].split(","), position, strict=True))
        return f"targets[{', '.join(map(str, indices))}]"

    return re.sub(r"^targets\[([\d, ]+)\]", move, message)


def _integers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of integers such as 1,5") from None
