"""Draw what a comparison says of rows: the divergence of each, and the change of its target's probability."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import Comparison
from .._tables import with_error
from .benchmark.plot import LINE, OTHERS, OURS, TEXT, figure

_BINS = 60
# Of these a picture shows where they are.
_MARKED = {0.5: "median", 0.99: "99%"}
_MARKED_CHANGES = {0.01: "1%", 0.99: "99%"}


def draw(
    comparison: Comparison,
    kl: NDArray[np.float32],
    delta_p: NDArray[np.float32],
    names: tuple[str, str],
    path: Path,
) -> None:
    """Write a picture of a comparison of what has these names; the suffix of the file says the format."""
    has_targets = comparison.delta_p is not None
    picture = figure(11.0 if has_targets else 7.0, 4.2)
    picture.patch.set_alpha(0)
    panels = picture.subplots(1, 2 if has_targets else 1, squeeze=False)[0]
    _divergence(panels[0], comparison, kl)
    if has_targets:
        _change(panels[1], comparison, delta_p)
    picture.suptitle(_title(comparison, names), fontsize=11, color=TEXT)
    picture.savefig(path, dpi=160)


def _title(comparison: Comparison, names: tuple[str, str]) -> str:
    kl, top = comparison.kl, comparison.same_top
    said = [
        f"{comparison.rows:,} rows",
        f"mean KL {with_error(kl.value, kl.error)} nats",
        f"same top class {with_error(top.value, top.error, percent=True)}",
    ]
    if comparison.perplexity_ratio is not None:
        ratio = comparison.perplexity_ratio
        said.append(f"perplexity x {with_error(ratio.value, ratio.error)}")
    reference, candidate = names
    return f"{candidate} compared with {reference}\n{', '.join(said)}"


def _divergence(axes: Any, comparison: Comparison, kl: NDArray[np.float32]) -> None:
    """Draw a histogram with a bin for each factor, for divergences differ by powers of ten."""
    drawn = kl[np.isfinite(kl) & (kl > 0)].astype(np.float64)
    _frame(axes, "KL(reference || candidate) of a row, nats", _left_out(kl, len(kl) - len(drawn), "0"))
    if len(drawn):
        low, high = drawn.min(), drawn.max()
        if low == high:
            low, high = low / 2, 2 * high
        axes.set_xscale("log")
        axes.hist(drawn, bins=np.geomspace(low, high, _BINS + 1), color=OURS)
        _mark(axes, {name: comparison.kl_quantiles[at] for at, name in _MARKED.items()}, "{:.2g}")


def _change(axes: Any, comparison: Comparison, delta_p: NDArray[np.float32]) -> None:
    """Draw a histogram with a logarithmic height, for most rows change little."""
    drawn = 100 * delta_p[np.isfinite(delta_p)].astype(np.float64)
    left_out = _left_out(delta_p, len(delta_p) - len(drawn), "NaN")
    _frame(axes, "change of the target's probability, percentage points", left_out)
    if len(drawn):
        reach = max(float(np.abs(drawn).max()), 1e-9)
        axes.set_yscale("log")
        axes.hist(drawn, bins=np.linspace(-reach, reach, _BINS + 1), color=OURS)
        axes.axvline(0.0, color=OTHERS, linewidth=1.0)
        quantiles = comparison.delta_p_quantiles or {}
        _mark(axes, {name: 100 * quantiles[at] for at, name in _MARKED_CHANGES.items()}, "{:+.2g}")


def _left_out(values: NDArray[np.float32], count: int, what: str) -> str:
    return f"  ({count:,} of {len(values):,} rows are {what} or infinite)" if count else ""


def _frame(axes: Any, label: str, left_out: str) -> None:
    axes.patch.set_alpha(0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[:].set_color(TEXT)
    axes.tick_params(which="both", labelsize=9, color=TEXT, labelcolor=TEXT)
    axes.set_xlabel(label + left_out, fontsize=9, color=TEXT)
    axes.set_ylabel("rows", fontsize=9, color=TEXT)


def _mark(axes: Any, places: Mapping[str, float], form: str) -> None:
    """Draw a line at each place that the panel has, each name below the one before."""
    low, high = axes.get_xlim()
    for number, (name, place) in enumerate(places.items()):
        if low <= place <= high:
            axes.axvline(place, color=LINE if name == "median" else TEXT, linestyle="--", linewidth=1.2)
            axes.text(
                place,
                1.0 - 0.07 * number,
                f" {name}: {form.format(place)}",
                transform=axes.get_xaxis_transform(),
                fontsize=9,
                color=TEXT,
                va="top",
            )
