"""What the commands that read logits have in common: options, files, and the state of a run."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from .. import _xent_rs, io
from .._head import Head, heads_of
from ..io._stored import RawNumbersError
from . import _terminal
from ._journal import Journal

# What the figures of these options depend on, besides the inputs.
COUNTED_WITH = ("axis", "ignore_index", "temperature", "softcap", "shift", "score_from")
# What leaves rows out.
LEFT_OUT_BY = ("--ignore-index", "--sample-weight")
# What the files of these options hold.
_EACH = {
    "--sample-weight": "one weight a row",
    "--weight": "one weight a class",
    "--groups": "integers, one group a row",
}


def add_logits_options(parser: argparse.ArgumentParser, logits: str) -> None:
    """Declare how `logits`, a name of one or of two arguments, become losses."""
    parser.add_argument(
        "--axis", type=int, default=-1, help=f"axis of the classes in {logits} (default: the last)"
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


def add_weights(parser: argparse.ArgumentParser, weighted: str) -> None:
    """Declare the files of weights; `weighted` is what those of rows concern."""
    for name, help_text in (
        ("--weight", "file of a weight for each class in the loss (default: 1 for all)"),
        (
            "--sample-weight",
            f"file of a weight for each row in {weighted}, in the shape of TARGETS (default: 1 for all)",
        ),
    ):
        _terminal.names_file(parser.add_argument(name, metavar="FILE", help=help_text))


def add_heads(parser: argparse.ArgumentParser, hidden: str, *models: str) -> None:
    """Declare the files of the last layer, of all models or of each, for hidden states in `hidden`."""
    for prefix, whose in (("", hidden), *((f"{model}-", f"{model.upper()} alone") for model in models)):
        for option, holds in (
            (
                "head",
                f"weights, (classes, features), of the model's last layer, for hidden states in {whose}",
            ),
            ("head-bias", "bias of this layer, a number for each class"),
        ):
            argument = parser.add_argument(
                f"--{prefix}{option}", metavar="FILE:KEY", help=f"file of the {holds}"
            )
            _terminal.names_file(argument)
    add_dtype(parser, "--head-dtype", "the weights hold")


def add_dtype(parser: argparse.ArgumentParser, option: str, what: str) -> None:
    """Declare an option for a dtype that a file does not say; `what` tells whose."""
    parser.add_argument(
        option,
        choices=("float16", "bfloat16", "float32", "float64"),
        help=f"what {what}; needed only for bfloat16 in .npy and .npz, which NumPy stores as raw bytes",
    )


def add_positions(parser: argparse.ArgumentParser) -> None:
    """Declare which positions of windows of tokens count, and the size of the text."""
    parser.add_argument(
        "--shift",
        action="store_true",
        help="TARGETS are the tokens that the model has read: the logits of a position, the last axis of "
        "TARGETS, are for the token after it; those of the last position do not count",
    )
    parser.add_argument(
        "--score-from",
        type=int,
        default=0,
        metavar="POSITION",
        help="leave out the logits of all positions before this one (default: 0)",
    )
    parser.add_argument(
        "--bytes",
        type=positive,
        metavar="N",
        help="size of the text of which the rows that count are the tokens; adds the bits per byte, "
        "bits * rows / N",
    )


def add_state(parser: argparse.ArgumentParser) -> None:
    """Declare the file of the state of a run."""
    _terminal.names_file(
        parser.add_argument(
            "--state",
            type=Path,
            metavar="FILE",
            help="file that keeps what is counted so far: after a kill the same command goes on from there, "
            "to the same results; it is removed when these are printed",
        )
    )


def add_top_k(parser: argparse.ArgumentParser, default: tuple[int, ...], what: str) -> None:
    """Declare how many of the largest logits are looked at."""
    shown = ",".join(map(str, default))
    parser.add_argument(
        "--top-k", type=_integers, default=default, metavar="K,...", help=f"{what} (default: {shown})"
    )


def _integers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of integers such as 1,5") from None


def positive(text: str) -> int:
    """Read an argument that is a positive integer."""
    number = int(text) if text.isdecimal() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive integer")
    return number


def open_logits(name: str, option: str, dtype: str | None) -> io.StoredArray:
    """Open logits, hidden states or weights, whose dtype an option may say that `add_dtype` has declared."""
    try:
        return io.open_array(name, dtype=dtype)
    except RawNumbersError as error:
        raise io.ArrayFileError(f"{error.found}; if that is what they are, give {option} bfloat16") from None


def open_numbers(name: str, expected: str) -> io.StoredArray:
    """Open an array whose dtype no option says."""
    try:
        return io.open_array(name)
    except RawNumbersError as error:
        raise io.ArrayFileError(
            f"{error.found}; expected {expected}, in a file that says its dtype"
        ) from None


def open_options(arguments: argparse.Namespace, *options: str) -> dict[str, io.StoredArray]:
    """Open the files that some options name, by the option."""
    return {
        option: open_numbers(name, _EACH[option])
        for option in options
        if (name := _value_of(arguments, option)) is not None
    }


def open_heads(arguments: argparse.Namespace, *models: str) -> dict[str, io.StoredArray]:
    """Open the files that the options of `add_heads` name, by the option."""
    found = {}
    for option in head_options(*models):
        name, dtype = _value_of(arguments, option), arguments.head_dtype
        if name is None:
            continue
        if option.endswith("bias"):  # of any dtype, but raw numbers are what those of the weights are
            with contextlib.suppress(RawNumbersError):
                found[option] = io.open_array(name)
                continue
        found[option] = open_logits(name, "--head-dtype", dtype)
    if arguments.head_dtype is not None and not found:
        raise ValueError(f"--head-dtype is {arguments.head_dtype} without --head; expected that, too")
    return found


def _value_of(arguments: argparse.Namespace, option: str) -> str | None:
    """Return what an option was given."""
    value: str | None = getattr(arguments, option.removeprefix("--").replace("-", "_"))
    return value


def head_options(*models: str) -> list[str]:
    """Return the options of `add_heads` that name files."""
    return [
        f"--{prefix}head{bias}"
        for prefix in ("", *(f"{model}-" for model in models))
        for bias in ("", "-bias")
    ]


def heads(
    inputs: Mapping[str, io.StoredArray], logits: Sequence[io.StoredArray], axis: int, *models: str
) -> list[Head | None]:
    """Return the head of each array of logits or hidden states: its model's own, or else that of all."""

    def options_of(part: str) -> list[list[str]]:
        return [[f"--{model}-{part}", f"--{part}"] for model in models] or [[f"--{part}"]]

    def of(part: str) -> list[tuple[NDArray[Any] | None, str]]:
        options = options_of(part)
        given = [next((inputs[name] for name in names if name in inputs), None) for names in options]
        return [(None, f"--{part}") if array is None else (array.map(), array.name) for array in given]

    # What to do about a file that looks like logits: drop its own head, or give the other model's alone.
    hints = []
    for number, names in enumerate(options_of("head")):
        others = [f"--{model}-head" for model in models if model != models[number]]
        way = f"with {others[0]} alone" if others and "--head" in inputs else f"without {names[0]}"
        hints.append(f"logits, {way}?")
    return heads_of([(array, array.name) for array in logits], axis, of("head"), of("head-bias"), hints)


def kind_of(array: io.StoredArray, head: Head | None) -> str:
    """Return what an array holds, for people."""
    if head is None:
        return f"{array.dtype.name} logits of shape {array.shape}"
    return f"{array.dtype.name} hidden states of shape {array.shape}, {head.classes:,} classes"


def row_bytes(arrays: Sequence[io.StoredArray], axis: int) -> int:
    """Return the size of a row of all arrays together."""
    return sum(array.shape[axis] * array.dtype.itemsize for array in arrays)


def size_of_blocks(
    arrays: Sequence[io.StoredArray], axis: int, heads: Sequence[Head | None]
) -> dict[str, int]:
    """Return the option by which blocks of hidden states are small.

    Products with 64 MiB may take minutes: without progress, and all to be done again after a kill.
    """
    return {"max_bytes": min(64 << 20, 1024 * row_bytes(arrays, axis))} if any(heads) else {}


def check_order(logits: io.StoredArray, targets: io.StoredArray, name: str) -> None:
    """Refuse files in the wrong order by name; their shapes, which do not match either, would mislead."""
    if logits.dtype.kind in "biu" and targets.dtype.kind not in "biu":
        raise ValueError(
            f"{name} holds {logits.dtype} of shape {logits.shape} and TARGETS {targets.dtype} of shape "
            f"{targets.shape}: are the two files swapped?"
        )


def check_rows(array: io.StoredArray | None, rows: tuple[int, ...], of: str, each: str) -> None:
    """Refuse an array without a number for each row; `of` says whose rows, `each` what the number is."""
    if array is not None and array.shape != rows:
        raise ValueError(f"{array.name}: has shape {array.shape}; expected {rows}, {of}, {each}")


def scored(rows: tuple[int, ...], arguments: argparse.Namespace) -> tuple[int, ...]:
    """Return the shape of the rows that --shift and --score-from leave."""
    left_out = int(arguments.shift) + arguments.score_from
    return (*rows[:-1], rows[-1] - left_out) if left_out else rows


def journal(
    arguments: argparse.Namespace,
    command: str,
    inputs: Mapping[str, io.StoredArray],
    names: Sequence[str],
    options: Mapping[str, Any],
) -> contextlib.AbstractContextManager[Journal | None]:
    """Open the journal that ``--state`` names, if it does.

    `names` are all inputs that the command may have, `options` what its figures depend on besides them and
    `COUNTED_WITH`.
    """
    if arguments.state is None:
        return contextlib.nullcontext()
    for output in ("output", "plot"):
        other = getattr(arguments, output, None)
        if other is not None and os.path.realpath(arguments.state) == os.path.realpath(other):
            raise ValueError(f"{arguments.state}: is both --state and --{output}; expected two files")
    common = {f"--{name.replace('_', '-')}": getattr(arguments, name) for name in COUNTED_WITH}
    # Kernels with fused multiply-add give the same bits, whatever their instruction set.
    portable = _xent_rs.simd_level() == "portable"
    level = {"instruction set": "portable" if portable else "with fused multiply-add"}
    known = {name: _fingerprint(inputs[name]) if name in inputs else None for name in names}
    return Journal(arguments.state, command, known, {**common, **options, **level})


def _fingerprint(array: io.StoredArray) -> str:
    """Return what an input is known by: its files, and where the numbers are in them."""
    places = [
        (layout.offset, layout.shape, layout.dtype.name, layout.strides, layout.member, shard.stamp)
        for shard in array.files
        for layout in [shard.layout]
    ]
    return hashlib.sha256(repr(places).encode()).hexdigest()
