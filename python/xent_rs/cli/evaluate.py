"""Evaluate logits in a file against targets in a file: loss, perplexity, accuracy and entropy.

LOGITS and TARGETS are .npy files, or .npz and .safetensors files with the name of the array behind a colon,
as in model.safetensors:logits (the name can be left out if there is but one array), or base.kld:logits and
base.kld:targets of what llama-perplexity --kl-divergence-base base.kld has written. Several files make one
array, whose rows come in natural order (part-9 before part-10): a pattern such as "logits-*.npy", a folder,
or the index of a sharded safetensors file (model.safetensors.index.json). They are read block by block, so
they may be larger than memory. Of equal logits the first counts as larger.

With --head LOGITS are hidden states: what goes into the last layer of the model, whose weights --head names,
as in --head model.safetensors:lm_head.weight. The logits are made of them some rows at a time.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from .. import Evaluation, Evaluator, cross_entropy, io, set_num_threads
from .._evaluator import update_at
from .._head import Batch, Head
from ..io._formats import npy
from . import _inputs, _terminal
from ._journal import Journal


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments and options."""
    files = [
        parser.add_argument("logits", metavar="LOGITS", help="file of the logits"),
        parser.add_argument("targets", metavar="TARGETS", help="file of the targets (integers, the classes)"),
    ]
    _inputs.add_logits_options(parser, "LOGITS")
    _inputs.add_heads(parser, "LOGITS")
    _inputs.add_weights(parser, "the loss")
    files.append(
        parser.add_argument(
            "--output",
            type=Path,
            metavar="LOSSES.npy",
            help="new file of the loss of each row, in the shape of TARGETS less the positions that --shift "
            "and --score-from leave out; 0 for rows that do not count",
        )
    )
    for action in files:
        _terminal.names_file(action)
    _inputs.add_positions(parser)
    _inputs.add_state(parser)
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
        "--focal-gamma",
        type=float,
        default=0.0,
        metavar="GAMMA",
        help="the loss, of which perplexity and bits are then made, is multiplied by this power of 1 - p, "
        "p being the target's probability (default: 0)",
    )
    parser.add_argument(
        "--poly-epsilon",
        type=float,
        default=0.0,
        metavar="EPSILON",
        help="the loss has this times 1 - p more (default: 0)",
    )
    _inputs.add_top_k(parser, (1, 5), "count hits among the K largest")
    _inputs.add_dtype(parser, "--dtype", "LOGITS hold")
    _terminal.add_threads(parser)
    _terminal.add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Evaluate and print."""
    if arguments.threads is not None:
        set_num_threads(arguments.threads)
    logits = _inputs.open_logits(arguments.logits, "--dtype", arguments.dtype)
    targets = _inputs.open_numbers(arguments.targets, "integers, the classes")
    _inputs.check_order(logits, targets, "LOGITS")
    inputs = {
        "LOGITS": logits,
        "TARGETS": targets,
        **_inputs.open_options(arguments, "--sample-weight", "--weight"),
        **_inputs.open_heads(arguments),
    }
    of = f"the shape of {targets.name}"
    _inputs.check_rows(inputs.get("--sample-weight"), targets.shape, of, "one weight a row")
    (head,) = _inputs.heads(inputs, [logits], arguments.axis)
    with _journal(arguments, inputs) as journal:
        evaluation = _evaluated(arguments, inputs, head, journal)
        classes = logits.shape[arguments.axis] if head is None else head.classes
        found, table = asdict(evaluation), evaluation._table(classes)
        if arguments.bytes is not None:
            found["bits_per_byte"] = evaluation.bits * evaluation.rows / arguments.bytes
            table.append(("bits per byte", f"{found['bits_per_byte']:.6g}"))
        if arguments.json:
            _terminal.print_json(found)
        else:
            print(f"{_terminal.printable(logits.name)}: {_inputs.kind_of(logits, head)}")
            _terminal.print_table(table)
            _terminal.print_notes(evaluation._notes(_inputs.LEFT_OUT_BY))
        if journal is not None:
            sys.stdout.flush()
            journal.remove()
    return 0


def _evaluated(
    arguments: argparse.Namespace,
    inputs: Mapping[str, io.StoredArray],
    head: Head | None,
    journal: Journal | None,
) -> Evaluation:
    """Evaluate block by block, from where the journal ends."""
    logits, targets, weight = inputs["LOGITS"], inputs["TARGETS"], inputs.get("--weight")
    options: dict[str, Any] = {
        "weight": None if weight is None else weight.map(),
        "ignore_index": arguments.ignore_index,
        "label_smoothing": arguments.label_smoothing,
        "z_loss": arguments.z_loss,
        "softcap": arguments.softcap,
        "temperature": arguments.temperature,
        "focal_gamma": arguments.focal_gamma,
        "poly_epsilon": arguments.poly_epsilon,
        "axis": arguments.axis,
    }
    evaluator = Evaluator(top_k=arguments.top_k, **options)
    blocks = io.row_blocks(
        logits,
        targets,
        inputs.get("--sample-weight"),
        axis=arguments.axis,
        shift=int(arguments.shift),
        score_from=arguments.score_from,
        skip=0 if journal is None else journal.blocks,
        **_inputs.size_of_blocks([logits], arguments.axis, [head]),
    )
    row_bytes = _inputs.row_bytes([logits], arguments.axis)
    rows = _inputs.scored(targets.shape, arguments)
    dtype = logits.dtype if head is None else head.dtype
    losses_dtype = np.dtype(np.float64 if dtype.itemsize == 8 else np.float32)  # as `cross_entropy`
    of_axis = {**options, "axis": arguments.axis if head is None else -1}
    losses = np.empty(0, losses_dtype)

    def counted(batch: Batch) -> None:
        (of_rows,), labels, weights = batch.logits, np.asarray(batch.targets), batch.sample_weight
        if arguments.output is not None:
            found = cross_entropy(of_rows, labels, sample_weight=weights, reduction="none", **of_axis)
            losses[batch.rows] = found.reshape(-1)
        bar.update(labels.size * row_bytes)

    with (
        _output(arguments, rows, losses_dtype, inputs) as append_losses,
        _terminal.progress(
            math.prod(rows) * row_bytes, "evaluate", unit="B", unit_scale=True, unit_divisor=1024
        ) as bar,
    ):
        if journal is not None and journal.blocks:
            done = _go_on(journal, evaluator, append_losses, losses_dtype)
            bar.update(done * row_bytes)
        for position, some_logits, some_targets, *rest in blocks:
            losses = np.empty(some_targets.size if arguments.output else 0, losses_dtype)
            update_at(evaluator, position, some_logits, some_targets, *rest, head=head, then=counted)
            if append_losses is not None:
                append_losses(losses.tobytes())
            if journal is not None:
                journal.add(evaluator._counted(), losses.tobytes())
    return evaluator.result()


def _journal(
    arguments: argparse.Namespace, inputs: Mapping[str, io.StoredArray]
) -> contextlib.AbstractContextManager[Journal | None]:
    """Open the journal that ``--state`` names, if it does."""
    options = {
        "--label-smoothing": arguments.label_smoothing,
        "--z-loss": arguments.z_loss,
        "--focal-gamma": arguments.focal_gamma,
        "--poly-epsilon": arguments.poly_epsilon,
        "--top-k": list(arguments.top_k),
        "--output": arguments.output is not None,
    }
    names = ("LOGITS", "TARGETS", "--sample-weight", "--weight", *_inputs.head_options())
    return _inputs.journal(arguments, "evaluate", inputs, names, options)


def _go_on(
    journal: Journal,
    evaluator: Evaluator,
    append_losses: Callable[[bytes], None] | None,
    losses_dtype: np.dtype[Any],
) -> int:
    """Take up what a journal has; return the number of its rows."""
    try:
        evaluator._go_on_from(journal.counted)
    except ValueError as error:
        raise ValueError(f"{journal.path}: damaged ({error}); remove it to begin anew") from None
    counted = evaluator.result()
    done = counted.rows + counted.ignored
    if append_losses is not None:
        found = 0
        for losses in journal.kept():
            append_losses(losses)
            found += len(losses)
        if found != done * losses_dtype.itemsize:
            raise ValueError(
                f"{journal.path}: damaged ({found} bytes of losses for {done} rows); remove it to begin anew"
            )
    return done


@contextlib.contextmanager
def _output(
    arguments: argparse.Namespace,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    inputs: Mapping[str, io.StoredArray],
) -> Iterator[Callable[[bytes], None] | None]:
    """Give a function that appends to the .npy file that ``--output`` names, or None."""
    path, token = arguments.output, None
    if path is None:
        yield None
        return
    if path.suffix.lower() != ".npy":
        raise ValueError(f"{path}: unknown format; expected a .npy file")
    if path.exists():
        if not path.is_file():
            raise ValueError(f"{path}: not a regular file")
        for shard in (shard for array in inputs.values() for shard in array.files):
            if path.samefile(shard.path):
                raise ValueError(f"{path}: is read as {shard.name}; expected a new file")
    if arguments.state is not None:
        token = hashlib.sha256(os.fsencode(os.path.realpath(arguments.state))).hexdigest()[:8]
    with npy.creating(path, shape, dtype, token) as append:
        yield append
