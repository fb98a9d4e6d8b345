"""Compare the logits of two models: divergence, and the change of loss, perplexity and probability.

REFERENCE, CANDIDATE and TARGETS are named as for evaluate: .npy files, .npz and .safetensors files with the
name of the array behind a colon, .kld files of llama.cpp, or several files as one array. Both models have the
same classes and rows, in dtypes of their own; nothing is copied. Without TARGETS there is no loss, and no
change of a probability. Every figure has its standard error: of rows that are independent of each other, or
with --groups or --windows of rows that depend on each other within a group. Of equal logits the first counts
as larger.

With --head both files are hidden states, of which the last layer of the models makes the logits, some rows at
a time. Models with layers of their own have --reference-head and --candidate-head. One that has none of these
is given by its logits.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from .. import Comparer, io, set_num_threads
from .._comparer import compare_at
from .._comparison import GroupComparison
from .._head import Head
from . import _inputs, _terminal
from ._journal import Journal

_MODELS = ("reference", "candidate")
_PICTURES = (".png", ".svg", ".pdf")
_WHOLE = ("rows", "ignored", "nan_rows", "reference_nan_rows", "candidate_nan_rows", "groups")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments and options."""
    files = [
        parser.add_argument("reference", metavar="REFERENCE", help="file of the logits to compare with"),
        parser.add_argument("candidate", metavar="CANDIDATE", help="file of the logits of the other model"),
        parser.add_argument(
            "targets", metavar="TARGETS", nargs="?", help="file of the targets (integers, the classes)"
        ),
    ]
    _inputs.add_logits_options(parser, "both")
    _inputs.add_heads(parser, "both", *_MODELS)
    _inputs.add_weights(parser, "the means")
    groups = parser.add_mutually_exclusive_group()
    files.append(
        groups.add_argument(
            "--groups",
            metavar="FILE",
            help="file of the group of each row (integers: documents, users), in the shape of TARGETS",
        )
    )
    groups.add_argument(
        "--windows",
        action="store_true",
        help="every step along the first axis of TARGETS is a group: where it has windows of tokens, these",
    )
    _inputs.add_top_k(parser, (5, 10), "look for each model's top class among the other's K largest")
    _inputs.add_positions(parser)
    _inputs.add_state(parser)
    files.append(
        parser.add_argument(
            "--plot",
            type=Path,
            metavar="FILE.png",
            help="draw the distribution of the divergence and of the change of probability",
        )
    )
    for action in files:
        _terminal.names_file(action)
    for model in _MODELS:
        _inputs.add_dtype(parser, f"--{model}-dtype", f"{model.upper()} holds")
    _terminal.add_threads(parser)
    _terminal.add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Compare and print."""
    if arguments.threads is not None:
        set_num_threads(arguments.threads)
    if arguments.plot is not None:
        _check_picture(arguments.plot)
        from . import _comparison_plot as plot  # before the work, for it may be missing
    inputs = _inputs_of(arguments)
    reference, candidate = inputs["REFERENCE"], inputs["CANDIDATE"]
    heads = _inputs.heads(inputs, [reference, candidate], arguments.axis, *_MODELS)
    options = {"--windows": arguments.windows, "--top-k": list(arguments.top_k)}
    names = ["REFERENCE", "CANDIDATE", "TARGETS", "--sample-weight", "--weight", "--groups"]
    names += _inputs.head_options(*_MODELS)
    with _inputs.journal(arguments, "compare", inputs, names, options) as journal:
        comparer = _compared(arguments, inputs, heads, journal)
        comparison = comparer.result()
        if arguments.json:
            figures = comparison.as_dict()
            found: dict[str, Any] = {
                name: int(value) if name in _WHOLE else value for name, value in figures.items()
            }
            if arguments.bytes is not None:
                for name in _MODELS:
                    bits = found[f"{name}_bits"]
                    found[f"{name}_bits_per_byte"] = bits * comparison.rows / arguments.bytes
            if comparison.by_group is not None:
                found["by_group"] = {label: _of_group(group) for label, group in comparison.by_group.items()}
            _terminal.print_json(found)
        else:
            for what, logits, head in zip(_MODELS, (reference, candidate), heads, strict=True):
                print(f"{what} {_terminal.printable(logits.name)}: {_inputs.kind_of(logits, head)}")
            classes = reference.shape[arguments.axis] if heads[0] is None else heads[0].classes
            for header, rows in comparison._tables(arguments.bytes, classes):
                print()
                _terminal.print_table([*filter(None, [header]), *rows])
            _terminal.print_notes(comparison._notes(_inputs.LEFT_OUT_BY))
        sys.stdout.flush()
        if arguments.plot is not None:
            pair = reference.name, candidate.name
            plot.draw(comparison, *comparer._values(), pair, arguments.plot)
        if journal is not None:
            journal.remove()
    return 0


def _of_group(group: GroupComparison) -> dict[str, float]:
    """Return the figures of a group by name, without those that need targets where there are none."""
    return {name: value for name, value in asdict(group).items() if value is not None}


def _inputs_of(arguments: argparse.Namespace) -> dict[str, io.StoredArray]:
    """Open all files, and say what does not fit before any of it is read."""
    reference = _inputs.open_logits(arguments.reference, "--reference-dtype", arguments.reference_dtype)
    candidate = _inputs.open_logits(arguments.candidate, "--candidate-dtype", arguments.candidate_dtype)
    inputs = {"REFERENCE": reference, "CANDIDATE": candidate}
    if arguments.targets is not None:
        targets = inputs["TARGETS"] = _inputs.open_numbers(arguments.targets, "integers, the classes")
        for name in ("REFERENCE", "CANDIDATE"):
            _inputs.check_order(inputs[name], targets, name)
    else:
        for option in ("shift", "bytes", "weight"):
            if getattr(arguments, option):
                raise ValueError(f"--{option} is given without TARGETS; expected these, too")
    heads = _inputs.open_heads(arguments, *_MODELS)
    if not heads and candidate.shape != reference.shape:
        raise ValueError(
            f"{candidate.name}: has shape {candidate.shape}; "
            f"expected {reference.shape}, the shape of {reference.name}"
        )
    inputs.update(heads)
    inputs.update(_inputs.open_options(arguments, "--sample-weight", "--weight", "--groups"))
    rows = _rows(reference, arguments.axis)
    if rows is not None:
        of = f"the shape of {reference.name} without axis {arguments.axis}"
        _inputs.check_rows(inputs.get("--sample-weight"), rows, of, "one weight a row")
        _inputs.check_rows(inputs.get("--groups"), rows, of, "one group a row")
        if arguments.windows and len(rows) < 2:
            raise ValueError(
                f"--windows: {reference.name} has rows of shape {rows}; expected windows and positions"
            )
    groups = inputs.get("--groups")
    if groups is not None and groups.dtype.kind not in "iu":
        raise ValueError(f"{groups.name}: holds {groups.dtype.name}; expected integers, one group a row")
    return inputs


def _rows(logits: io.StoredArray, axis: int) -> tuple[int, ...] | None:
    """Return the shape of the rows; None if there is no such axis, which is said where the rows are read."""
    if not -logits.ndim <= axis < logits.ndim:
        return None
    rows = list(logits.shape)
    del rows[axis]
    return tuple(rows)


def _compared(
    arguments: argparse.Namespace,
    inputs: Mapping[str, io.StoredArray],
    heads: Sequence[Head | None],
    journal: Journal | None,
) -> Comparer:
    """Compare block by block, from where the journal ends."""
    reference, candidate = inputs["REFERENCE"], inputs["CANDIDATE"]
    weight = inputs.get("--weight")
    options: dict[str, Any] = {
        "top_k": arguments.top_k,
        "weight": None if weight is None else weight.map(),
        "ignore_index": arguments.ignore_index,
        "softcap": arguments.softcap,
        "temperature": arguments.temperature,
        "axis": arguments.axis,
    }
    comparer = Comparer(**options)
    rows = _rows(reference, arguments.axis)
    windows = None
    if arguments.windows and rows is not None:
        numbers = np.arange(rows[0]).reshape(-1, *(1,) * (len(rows) - 1))
        windows = np.broadcast_to(numbers, rows)
    blocks = io.paired_row_blocks(
        reference,
        candidate,
        inputs.get("TARGETS"),
        inputs.get("--sample-weight"),
        inputs.get("--groups", windows),
        axis=arguments.axis,
        shift=int(arguments.shift),
        score_from=arguments.score_from,
        skip=0 if journal is None else journal.blocks,
        same_classes=not any(heads),
        **_inputs.size_of_blocks([reference, candidate], arguments.axis, heads),
    )
    assert rows is not None
    row_bytes = _inputs.row_bytes([reference, candidate], arguments.axis)
    size = math.prod(_inputs.scored(rows, arguments)) * row_bytes
    with _terminal.progress(size, "compare", unit="B", unit_scale=True, unit_divisor=1024) as bar:
        if journal is not None and journal.blocks:
            bar.update(_go_on(journal, comparer) * row_bytes)
        for block in blocks:
            # What a block adds goes into the journal; sums are exact, so that merging changes no bit.
            part = Comparer(**options)
            compare_at(part, *block, heads=heads)
            if journal is not None:
                journal.add(None, part._counted())
            comparer.merge(part)
            bar.update(block[1].nbytes + block[2].nbytes)
    return comparer


def _go_on(journal: Journal, comparer: Comparer) -> int:
    """Take up what a journal has; return the number of its rows."""
    try:
        for kept in journal.kept():
            comparer._go_on_from(kept)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{journal.path}: damaged ({error}); remove it to begin anew") from None
    return comparer._rows_seen()


def _check_picture(path: Path) -> None:
    """Refuse a picture that could not be written, before the work."""
    if path.suffix.lower() not in _PICTURES:
        raise ValueError(f"{path}: unknown format; expected a {', '.join(_PICTURES)} file")
    if not path.parent.is_dir():
        raise ValueError(f"{path}: there is no folder {path.parent}")
