"""Tables for people: as text, and in HTML for notebooks."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

#: The options of functions that leave rows out: by their target, and by their weight.
LEFT_OUT_BY = ("ignore_index", "sample_weight")


def text_table(rows: Sequence[Sequence[str]], indent: str = "") -> str:
    """Set rows of text in columns; the first column is left-aligned, the others right-aligned."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        cells = [
            first.ljust(widths[0]),
            *(text.rjust(width) for text, width in zip(others, widths[1:], strict=True)),
        ]
        lines.append(f"{indent}{'  '.join(cells)}".rstrip())
    return "\n".join(lines)


def html_table(rows: Sequence[Sequence[str]], header: Sequence[str] = ()) -> str:
    """Make a ``<table>`` whose first column, and whose `header`, are headings."""
    heading = f"<thead><tr>{_cells('th', header)}</tr></thead>" if header else ""
    body = "".join(f"<tr>{_cells('th', [first])}{_cells('td', others)}</tr>" for first, *others in rows)
    return f"<table>{heading}<tbody>{body}</tbody></table>"


def with_error(value: float, error: float, *, sign: str = "-", percent: bool = False) -> str:
    """Write a number and its standard error, to the error's second digit: ``1.877 ± 0.010``."""
    if percent:
        value, error, unit = 100 * value, 100 * error, "%"
    else:
        unit = ""
    if not math.isfinite(value) or not 0 < error < math.inf:
        known = "" if math.isnan(error) else f" ± {error:.2g}{unit}"
        return f"{value:{sign}.6g}{unit}{known}"
    digits = 1 - math.floor(math.log10(float(f"{error:.1e}")))  # 0.0996 is rounded to 0.10, not to 0.100
    if digits > 12:
        return f"{value:{sign}.3e}{unit} ± {error:.1e}{unit}"
    return f"{value:{sign}.{max(0, digits)}f}{unit} ± {error:.{max(0, digits)}f}{unit}"


def among_all(k: int, classes: int | None) -> str:
    """Write a number of largest logits, and whether these are all, if the number of classes is known."""
    return f"{k}" + (f" (all {classes})" if classes is not None and classes <= k else "")


def html_notes(notes: Sequence[str]) -> str:
    """Make paragraphs."""
    return "".join(f"<p>{html.escape(note)}</p>" for note in notes)


def note_of_nothing(ignored: int) -> str:
    """Say that there is nothing to take means of."""
    return "No row counts, so that all means are NaN" + (
        f": all {ignored:,} are ignored." if ignored else "."
    )


def note_of_nan(
    count: int, rows: int, whose: str, spoiled: Sequence[str], left_out_by: tuple[str, str]
) -> str:
    """Say that rows are NaN, whose they are, which figures are so, too, and what leaves such rows out."""
    *most, last = spoiled
    names = f"{', '.join(most)} and {last}" if most else last
    return (
        f"{count:,} of {rows:,} rows are NaN{whose}: they have a logit of NaN or +inf, none above -inf, "
        f"or a weight of NaN. So {names} are NaN. Such rows are left out by a target of {left_out_by[0]}, "
        f"or by a {left_out_by[1]} of 0."
    )


def _cells(tag: str, texts: Sequence[str]) -> str:
    return "".join(f"<{tag}>{html.escape(text)}</{tag}>" for text in texts)
