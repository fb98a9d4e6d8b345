"""The pictures of the suites: bars against the line of the roof, and time against what grows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from xent_rs.cli.benchmark.cases import JOBS
from xent_rs.cli.benchmark.plot import LINE, OTHERS, OURS, TITLE, bars, figure, save
from xent_rs.cli.benchmark.tables import Result, by_case

from . import frameworks, tables

# Of each library, where lines have to be told apart.
_COLORS = {
    "xent_rs": OURS,
    "xent_rs, axis=0": "#e39a5b",
    "NumPy": "#4a6fa5",
    "scikit-learn": "#c2a83e",
    "PyTorch": "#9a6a9e",
    "PyTorch, compiled": "#5a9367",
    "JAX": "#9aa7b4",
}
_COLORS_OF_FRAMEWORKS = {
    "xent_rs.torch": OURS,
    "xent_rs.torch, compiled": "#5a9367",
    "xent_rs.jax, jit": "#4a6fa5",
    "xent_rs.keras on TensorFlow": "#9a6a9e",
}
_WAYS = (", out=", ", new array")


def draw_all(report: dict[str, Any], path: Path) -> None:
    """Write a picture of each suite that has one.

    Parameters
    ----------
    report : dict
        What ``python -m benches --json`` prints.
    path : Path
        The file, whose suffix says the format. Of several pictures each has the name of its suite in that of
        its file.
    """
    suites = [suite for suite in tables.suites(report) if suite in PICTURES]
    for suite in suites:
        name = path if len(suites) == 1 else path.with_name(f"{path.stem}-{suite}{path.suffix}")
        draw(report, suite, name)


def draw(report: dict[str, Any], suite: str, path: Path) -> None:
    """Write the picture of a suite."""
    what, paint = PICTURES[suite]
    save(paint(tables.suites(report)[suite]), what, report["environment"], path)


def draw_frameworks(report: dict[str, Any], path: Path) -> None:
    """Write the picture of `benches.frameworks`.

    A panel for each dtype: how many times as long the framework's own loss takes, by the number of classes.
    """
    results = [
        result
        for result in report["results"]
        if result["job"] == frameworks.BOTH
        and "median" in result
        and (result["rows"], result["classes"]) != frameworks.SMALLEST
    ]
    times = {
        (result["contender"], result["dtype"], result["classes"]): result["median"] for result in results
    }
    picture = figure(11, 4.6)
    panels = picture.subplots(1, len(frameworks.DTYPES), squeeze=False, sharey=True)[0]
    for axes, dtype in zip(panels, frameworks.DTYPES, strict=True):
        lines: dict[str, list[tuple[int, float]]] = {}
        for result in results:
            if result["own"] and result["dtype"] == dtype:
                own = times[result["own"], dtype, result["classes"]]
                point = result["classes"], own / result["median"]
                lines.setdefault(result["contender"], []).append(point)
        for name, points in lines.items():
            color = _COLORS_OF_FRAMEWORKS.get(name, OTHERS)
            axes.plot(*zip(*sorted(points), strict=True), marker="o", linewidth=2, color=color, label=name)
        axes.axhline(1, color=LINE, linestyle="--", linewidth=1.2)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_title(f"{dtype} logits", fontsize=10, loc="left")
        axes.set_xlabel("classes", fontsize=9)
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.grid(axis="y", color="#e6e9ec", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.tick_params(labelsize=9)
    panels[0].set_ylabel("times as fast as the framework's own", fontsize=9)
    panels[0].legend(fontsize=8, frameon=False)
    save(picture, f"Loss, {frameworks.BOTH}; higher is better", report["environment"], path)


def _option_bars(results: Sequence[Result]) -> Any:
    """Return a panel for each shape and job: a bar for each option, marked where its roof is."""
    groups = by_case(results)
    cases = list(dict.fromkeys(key[:3] for key in groups))
    tallest = [max(len(groups[(*case, job)]) for case in cases) for job in JOBS]
    picture = figure(4.9 * len(cases), 1.6 + 0.28 * sum(tallest) + 0.9 * len(JOBS))
    panels = picture.subplots(
        len(JOBS), len(cases), squeeze=False, height_ratios=[count + 1 for count in tallest]
    )
    for line, job in enumerate(JOBS):
        for column, case in enumerate(cases):
            _option_panel(panels[line][column], groups[(*case, job)], job, case)
    panels[0][0].legend(loc="lower right", fontsize=8, frameon=False)
    return picture


def _option_panel(axes: Any, results: list[Result], job: str, case: tuple[int, int, str]) -> None:
    rows, classes, dtype = case
    axes.set_title(f"{job}, {rows:,} x {classes:,} {dtype}", fontsize=10, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    names = [result["contender"] for result in results]
    ratios = [result["ratio"] for result in results]
    bars = axes.barh(names, ratios, color=[LINE, *[OURS] * (len(names) - 1)], height=0.7)
    background = {"facecolor": "white", "edgecolor": "none", "pad": 1}
    axes.bar_label(bars, [f"{ratio:.2f}" for ratio in ratios], padding=4, fontsize=9, bbox=background)
    # A roof in the unit of the axis, the time of the plain call.
    roofs = [result["ratio"] * result["of_roof"] for result in results]
    axes.scatter(
        roofs,
        names,
        marker="|",
        s=110,
        color="#f2d7c9",
        edgecolor=None,
        zorder=3,
        label="the roof of its bytes",
    )
    axes.axvline(1, color=LINE, linestyle="--", linewidth=1.2)
    axes.set_ylim(len(names) - 0.5, -0.7)
    axes.set_xlim(0, 1.2 * max(ratios))
    axes.set_xlabel("times the plain one", fontsize=9)
    axes.tick_params(labelsize=9)


def _over_classes(results: Sequence[Result]) -> Any:
    """Return a panel for each job: time per element against the number of classes, a line for each."""
    picture = figure(12, 5.6)
    panels = picture.subplots(1, len(JOBS), squeeze=False, sharey=True)[0]
    for axes, job in zip(panels, JOBS, strict=True):
        _lines(axes, [result for result in results if result["job"] == job], "classes")
        axes.set_title(job, fontsize=10, loc="left")
        axes.set_xlabel("classes", fontsize=9)
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.yaxis.set_major_formatter("{x:g}")
    panels[0].set_ylabel("ns an element", fontsize=9)
    return picture


def _over_elements(results: Sequence[Result]) -> Any:
    """Return a panel for each job and number of classes: time per element against the number of elements."""
    widths = sorted({result["classes"] for result in results})
    picture = figure(11, 7)
    panels = picture.subplots(len(JOBS), len(widths), squeeze=False, sharex=True, sharey="row")
    for row, job in zip(panels, JOBS, strict=True):
        for axes, classes in zip(row, widths, strict=True):
            of_panel = [
                {**result, "elements": result["rows"] * result["classes"]}
                for result in results
                if (result["job"], result["classes"]) == (job, classes)
            ]
            _lines(axes, of_panel, "elements", logarithmic=False)
            axes.set_title(f"{job}, {classes:,} classes", fontsize=10, loc="left")
        row[0].set_ylabel("ns an element", fontsize=9)
        row[0].set_ylim(bottom=0)
    for axes in panels[-1]:
        axes.set_xlabel("elements", fontsize=9)
    return picture


def _over_threads(results: Sequence[Result]) -> Any:
    """Return a panel for each job and shape: time per element against the number of threads."""
    shapes = list(dict.fromkeys((result["rows"], result["classes"]) for result in results))
    picture = figure(5.5 * len(shapes), 7)
    panels = picture.subplots(len(JOBS), len(shapes), squeeze=False, sharex=True, sharey="row")
    for row, job in zip(panels, JOBS, strict=True):
        for axes, shape in zip(row, shapes, strict=True):
            of_panel = [
                result
                for result in results
                if (result["job"], result["rows"], result["classes"]) == (job, *shape)
            ]
            _lines(axes, of_panel, "threads", logarithmic=False)
            axes.set_xticks([result["threads"] for result in of_panel])
            axes.set_xticks([], minor=True)
            axes.set_xticklabels([str(result["threads"]) for result in of_panel])
            axes.set_title(f"{job}, {shape[0]:,} x {shape[1]:,}", fontsize=10, loc="left")
        row[0].set_ylabel("ns an element", fontsize=9)
        row[0].set_ylim(bottom=0)
    for axes in panels[-1]:
        axes.set_xlabel("threads", fontsize=9)
    return picture


def _lines(axes: Any, results: Sequence[Result], over: str, logarithmic: bool = True) -> None:
    """Draw time per element against a field, a line for each contender, named at its end, and the roof."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xscale("log")
    if logarithmic:
        axes.set_yscale("log")
    lines: dict[str, list[tuple[float, float]]] = {}
    roof = {}
    for result in results:
        elements = result["rows"] * result["classes"]
        point = result[over], 1e9 * result["median"] / elements
        lines.setdefault(result["contender"], []).append(point)
        roof[result[over]] = 1e9 * result["roof"] / elements
    for name, points in lines.items():
        library = name
        for way in _WAYS:
            library = library.replace(way, "")
        ours = name.startswith("xent_rs")
        axes.plot(
            *zip(*sorted(points), strict=True),
            color=_COLORS.get(library, OTHERS),
            marker="o",
            markersize=4 if ours else 3,
            linewidth=2.4 if ours else 1.4,
            zorder=3 if ours else 2,
            label=name,
        )
    axes.plot(
        *zip(*sorted(roof.items()), strict=True), color=LINE, linestyle="--", linewidth=1.4, label="the roof"
    )
    axes.legend(fontsize=8, frameon=False, ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.2))
    axes.grid(axis="y", color="#e6e9ec", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=9)


#: The title of the picture of a suite, and what draws it.
PICTURES: dict[str, tuple[str, Callable[[Sequence[Result]], Any]]] = {
    "peers": (TITLE, bars),
    "options": (
        "What options and other functions take, in times of the plain call; shorter is better",
        _option_bars,
    ),
    "binary": (TITLE.replace("Softmax", "Binary"), bars),
    "growth": ("Time per element as the work grows; lower is better", _over_elements),
    "threads": ("Time per element on more threads; lower is better", _over_threads),
    "classes": (
        "Time per element by the number of classes, the number of elements being the same; lower is better",
        _over_classes,
    ),
}
