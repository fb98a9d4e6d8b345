"""What every subcommand prints with: tables, JSON and the progress bar."""

from __future__ import annotations

import argparse
import json
import math
import sys
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .._tables import text_table

if TYPE_CHECKING:
    from typing_extensions import Self


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add the option ``--json``."""
    parser.add_argument(
        "--json", action="store_true", help="print JSON; numbers that are NaN or infinite are null"
    )


def add_threads(parser: argparse.ArgumentParser) -> None:
    """Add the option ``--threads``."""
    parser.add_argument("--threads", type=int, metavar="N", help="number of threads")


def names_file(action: argparse.Action) -> None:
    """Mark an argument as the name of a file, for shells that complete it (``--print-completion``)."""
    action.complete = {"bash": "_shtab_compgen_files", "zsh": "_files", "tcsh": "f"}  # type: ignore[attr-defined]


def printable(text: str) -> str:
    """Return a text with its control characters, line breaks among them, as visible escape sequences."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in text
    )


def print_json(value: Any) -> None:
    """Print a value as JSON, which has no NaN and no infinity: they become null."""
    print(json.dumps(_finite(value), indent=2, allow_nan=False))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def print_table(rows: Sequence[Sequence[str]], indent: str = "") -> None:
    """Print rows of text in columns; the first column is left-aligned, the others right-aligned."""
    print(text_table(rows, indent))


def print_notes(notes: Sequence[str]) -> None:
    """Print paragraphs, each below an empty line."""
    for note in notes:
        print(f"\n{textwrap.fill(note, 100, break_on_hyphens=False)}")


class NoBar:
    """What stands in for a progress bar: it shows nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def update(self, n: float = 1) -> None:
        """Take note of nothing."""

    def set_postfix_str(self, text: str) -> None:
        """Say nothing."""


def progress(total: int, description: str, **options: Any) -> Any:
    """Return a progress bar, which shows only on a terminal (standard error) and goes away when done.

    Without tqdm there is none.
    """
    try:
        from tqdm import tqdm
    except ImportError:
        return NoBar()
    return tqdm(total=total, desc=description, disable=None, leave=False, file=sys.stderr, **options)


def significant(value: float) -> str:
    """Write a number with three significant digits, large ones with all: ``7.82``, ``0.120``, ``1225``."""
    if not value > 0:
        return "0"
    exponent = math.floor(math.log10(float(f"{value:.2e}")))  # 9.996 is rounded to 10.0, not to 10.00
    return f"{value:.{max(0, 2 - exponent)}f}"


def milliseconds(seconds: float) -> str:
    """Write a time for people, with three significant digits: ``0.00451 ms``, ``7.82 ms``, ``109 ms``."""
    return f"{significant(1e3 * seconds)} ms"


def speaks_unicode() -> bool:
    """Tell whether standard output can show block characters."""
    try:
        "█▁".encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True
