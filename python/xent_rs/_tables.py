"""Tables for people: as text, and in HTML for notebooks."""

from __future__ import annotations

import html
from collections.abc import Sequence


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


def _cells(tag: str, texts: Sequence[str]) -> str:
    return "".join(f"<{tag}>{html.escape(text)}</{tag}>" for text in texts)
