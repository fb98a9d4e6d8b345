"""Draw a benchmark report: one panel for each case and job, bars against the line of the roof."""

from __future__ import annotations

from pathlib import Path
from typing import Any

try:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
except ImportError as error:
    raise ImportError(f'--plot needs matplotlib ({error}): pip install "xent_rs[plot]"') from None

from ._contenders import JOBS
from .bench import grouped

_OURS, _OTHERS, _LINE = "#c8501e", "#9aa7b4", "#1c2a38"


def draw(report: dict[str, Any], path: Path) -> None:
    """Write the figure to a file, whose suffix says the format.

    Parameters
    ----------
    report : dict
        What ``xent-rs bench --json`` prints.
    path : Path
        The file.
    """
    groups = grouped(report)
    cases = list(dict.fromkeys(key[:3] for key in groups))
    tallest = [max(len(groups.get((*case, job), ())) for case in cases) for job in JOBS]
    figure = Figure(
        figsize=(5.4 * len(cases), 1.6 + 0.36 * sum(tallest) + 0.9 * len(JOBS)), layout="constrained"
    )
    FigureCanvasAgg(figure)
    panels = figure.subplots(
        len(JOBS), len(cases), squeeze=False, height_ratios=[count + 1 for count in tallest]
    )
    for line, job in enumerate(JOBS):
        for column, case in enumerate(cases):
            _panel(panels[line][column], groups.get((*case, job), []), job, case)
    environment = report["environment"]
    figure.suptitle(
        "Softmax cross-entropy on the CPU; shorter is better, "
        "and the roof is the time in which the memory moves the same bytes\n"
        f"{environment['cpu']}, {environment['simd_level']}, {environment['num_threads']} threads",
        fontsize=11,
    )
    figure.savefig(path, dpi=120)


def _panel(axes: Any, results: list[dict[str, Any]], job: str, case: tuple[int, int, str]) -> None:
    rows, classes, dtype = case
    axes.set_title(f"{job}, {rows:,} x {classes:,} {dtype}", fontsize=10, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    if not results:
        axes.axis("off")
        return
    names = [result["contender"] for result in results]
    times = [result["median"] * 1e3 for result in results]
    colors = [_OURS if name.startswith("xent_rs") else _OTHERS for name in names]
    roof = results[0]["roof"] * 1e3
    bars = axes.barh(names, times, color=colors, height=0.7)
    axes.bar_label(bars, [_label(time, roof) for time in times], padding=4, fontsize=9)
    axes.axvline(roof, color=_LINE, linestyle="--", linewidth=1.2)
    axes.text(
        roof,
        1.0,
        f" roof {roof:.3g} ms",
        transform=axes.get_xaxis_transform(),
        fontsize=8,
        color=_LINE,
        va="top",
    )
    axes.set_ylim(len(names) - 0.5, -1.1)
    axes.set_xlim(0, 1.6 * max(*times, roof))
    axes.set_xlabel("ms", fontsize=9)
    axes.tick_params(labelsize=9)


def _label(time: float, roof: float) -> str:
    return f"{time:.3g} ms  ({time / roof:.1f} x the roof)"
