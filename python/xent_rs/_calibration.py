"""Expected calibration error: how far a model's confidence is from the share of its hits."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._exact import NOTHING, ExactSum

#: Number of bins of the confidence, each of the same width, as is usual.
BINS = 15


@dataclass(frozen=True)
class CalibrationBins:
    """Rows by the probability of their likeliest class: how many, how many hits, and that probability's sum.

    Bin k of 15 holds probabilities from k/15 (excluded) to (k + 1)/15 (included).

    References
    ----------
    C. Guo et al., "On calibration of modern neural networks", ICML 2017, arXiv:1706.04599.
    """

    rows: tuple[int, ...] = (0,) * BINS
    hits: tuple[int, ...] = (0,) * BINS
    confidence: tuple[ExactSum, ...] = (NOTHING,) * BINS

    @classmethod
    def of(cls, confidence: NDArray[np.float64], hit: NDArray[np.bool_]) -> CalibrationBins:
        """Sort rows into bins; one without a probability (NaN) is in the last, and makes the error NaN."""
        place = np.where(np.isnan(confidence), BINS, np.ceil(confidence * BINS))
        bins = np.clip(place, 1, BINS).astype(np.uint8) - 1
        rows = np.bincount(bins, minlength=BINS)
        # Numbers of a byte are sorted without comparing them.
        by_bin = confidence[np.argsort(bins, kind="stable")]
        edges = [0, *np.cumsum(rows).tolist()]
        return cls(
            tuple(rows.tolist()),
            tuple(np.bincount(bins[hit], minlength=BINS).tolist()),
            tuple(
                ExactSum.of_values(by_bin[first:last]) if first < last else NOTHING
                for first, last in itertools.pairwise(edges)
            ),
        )

    def __add__(self, other: CalibrationBins) -> CalibrationBins:
        def added(a: tuple[Any, ...], b: tuple[Any, ...]) -> tuple[Any, ...]:
            return tuple(one + another for one, another in zip(a, b, strict=True))

        return CalibrationBins(
            added(self.rows, other.rows),
            added(self.hits, other.hits),
            added(self.confidence, other.confidence),
        )

    def error(self) -> float:
        """Return ``sum(abs(hits - confidence)) / rows`` over the bins; NaN without rows."""
        gaps = [
            ExactSum(abs(ExactSum.of_count(hits).units - confidence.units), confidence.not_finite)
            for hits, confidence in zip(self.hits, self.confidence, strict=True)
        ]
        return sum(gaps, NOTHING).over(ExactSum.of_count(sum(self.rows)))

    def as_json(self) -> dict[str, Any]:
        """Return all in types that JSON has."""
        return {
            "rows": list(self.rows),
            "hits": list(self.hits),
            "confidence": [value.as_json() for value in self.confidence],
        }

    @classmethod
    def from_json(cls, value: Any) -> CalibrationBins:
        """Return what `as_json` gave; refuse anything else."""
        match value:
            case {"rows": [*rows], "hits": [*hits], "confidence": [*confidence]} if len(rows) == len(
                hits
            ) == len(confidence) == BINS and all(
                type(count) is int and count >= 0 for count in (*rows, *hits)
            ):
                return cls(tuple(rows), tuple(hits), tuple(map(ExactSum.from_json, confidence)))
        raise ValueError(f"expected {BINS} bins of a calibration")


NO_BINS = CalibrationBins()
