"""Draw the comparison with peers: bars against the line of the roof."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

try:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
except ImportError as error:
    raise ImportError(f'--plot needs matplotlib ({error}): pip install "xent_rs[plot]"') from None

from .._terminal import significant
from . import tables
from .cases import JOBS
from .tables import Result

#: Colours: of this package, of the others, and of lines.
OURS, OTHERS, LINE = "#c8501e", "#9aa7b4", "#1c2a38"
# Readable on white and on black.
TEXT, _ROOF = "#717b86", "#2f81f7"


TITLE = (
    "Softmax cross-entropy on the CPU: the time of a call; shorter is better.\n"
    "In brackets: how many times as long as the roof, in which the memory moves the same bytes"
)


def draw(report: dict[str, Any], path: Path) -> None:
    """Write a picture of what ``xent-rs bench --json`` prints; the suffix of the file says the format."""
    save(bars(report["results"]), TITLE, report["environment"], path)


def save(picture: Any, what: str, environment: dict[str, Any], path: Path) -> None:
    """Write a picture with a title that says what it shows, and on which machine."""
    picture.suptitle(
        f"{what}\n{environment['cpu']}, {environment['simd_level']}, {environment['num_threads']} threads",
        fontsize=11,
        color=TEXT,
    )
    picture.savefig(path, dpi=200)


def figure(width: float, height: float) -> Any:
    """Return an empty figure of so many inches."""
    empty = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(empty)
    return empty


def bars(results: Sequence[Result]) -> Any:
    """Return a panel for each case and job: a bar for each contender, a line for the roof."""
    groups = tables.by_case(results)
    cases = list(dict.fromkeys(key[:3] for key in groups))
    tallest = [max(len(groups.get((*case, job), ())) for case in cases) for job in JOBS]
    picture = figure(5.4 * len(cases), 1.6 + 0.36 * sum(tallest) + 0.9 * len(JOBS))
    panels = picture.subplots(
        len(JOBS), len(cases), squeeze=False, height_ratios=[count + 1 for count in tallest]
    )
    for line, job in enumerate(JOBS):
        for column, case in enumerate(cases):
            _panel(panels[line][column], groups.get((*case, job), []), job, case)
    picture.patch.set_alpha(0)
    return picture


def _panel(axes: Any, results: list[Result], job: str, case: tuple[int, int, str]) -> None:
    rows, classes, dtype = case
    axes.set_title(f"{job}, {rows:,} x {classes:,} {dtype}", fontsize=10, loc="left", color=TEXT)
    axes.patch.set_alpha(0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[:].set_color(TEXT)
    if not results:
        axes.axis("off")
        return
    names = [result["contender"] for result in results]
    times = [result["median"] * 1e3 for result in results]
    colors = [OURS if name.startswith("xent_rs") else OTHERS for name in names]
    roof = results[0]["roof"] * 1e3
    bars = axes.barh(names, times, color=colors, height=0.7)
    labels = [
        f"{significant(time)} ms ({time / (1e3 * result['roof']):.1f} x)"
        for time, result in zip(times, results, strict=True)
    ]
    axes.bar_label(bars, labels, padding=5, fontsize=9, color=TEXT)
    axes.axvline(roof, color=_ROOF, linestyle="--", linewidth=1.2)
    axes.text(
        roof,
        1.0,
        f" the roof, {significant(roof)} ms",
        transform=axes.get_xaxis_transform(),
        fontsize=9,
        color=_ROOF,
        va="top",
    )
    axes.set_ylim(len(names) - 0.5, -1.2)
    # Room for the longest label to the right of the longest bar.
    axes.set_xlim(0, 1.45 * max(*times, roof))
    axes.set_xlabel("ms", fontsize=9, color=TEXT)
    axes.tick_params(labelsize=9, color=TEXT, labelcolor=TEXT)
