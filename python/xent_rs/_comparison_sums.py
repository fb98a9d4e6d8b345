"""Exact sums of what rows of two models have, and the figures that come of them."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, fields, replace
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._accumulator import check_classes_seen
from ._calibration import NO_BINS, CalibrationBins
from ._comparison import ComparedModel, Comparison, GroupComparison
from ._environment import in_default_environment
from ._estimates import Column, Estimate, Floats, Label, RowGroups, WeightedSums, times
from ._exact import NOTHING, ExactSum, exp
from ._quantiles import RowValues


@dataclass(frozen=True)
class ModelRows:
    """What the compiled module says of one model in each row."""

    loss: Floats
    entropy: Floats
    max_probability: Floats
    hit: NDArray[np.bool_]
    # How many of its classes rank above the other model's top class; -1 in a row in which a model has none.
    rank: Floats | NDArray[np.int64]


@dataclass(frozen=True)
class ComparedRows:
    """What it says of both."""

    counts: NDArray[np.bool_]
    kl: Floats
    reverse_kl: Floats
    jensen_shannon: Floats
    reference: ModelRows
    candidate: ModelRows


@dataclass(frozen=True)
class _ModelSums:
    """What one model has by itself; the bins are empty without targets."""

    entropy: ExactSum = NOTHING
    calibration: CalibrationBins = NO_BINS
    nan_rows: int = 0

    def __add__(self, other: _ModelSums) -> _ModelSums:
        return _ModelSums(
            self.entropy + other.entropy,
            self.calibration + other.calibration,
            self.nan_rows + other.nan_rows,
        )

    def as_json(self) -> list[Any]:
        return [self.entropy.as_json(), self.calibration.as_json(), self.nan_rows]

    @classmethod
    def from_json(cls, value: Any) -> _ModelSums:
        match value:
            case [entropy, calibration, int(nan_rows)] if nan_rows >= 0:
                return cls(ExactSum.from_json(entropy), CalibrationBins.from_json(calibration), nan_rows)
        raise ValueError("expected sums of a model")


# The columns of `ComparisonSums.together`, where a pair for each number of `top_k` comes before those of the
# target; and those of `ComparisonSums.losses`.
_KL, _REVERSE_KL, _JENSEN_SHANNON, _SAME_TOP, _TOP_K = range(5)
_DELTA_P, _SQUARED_DELTA_P = -2, -1
_REFERENCE, _CANDIDATE, _CHANGE = range(3)


@dataclass(frozen=True)
class ComparisonSums:
    """What a comparer has seen.

    Means of both models together weight rows by their sample weights; those of losses by these times the
    weights of the targets' classes.
    """

    top_k: tuple[int, ...]
    classes: int | None
    has_targets: bool
    has_groups: bool
    rows: int
    ignored: int
    nan_rows: int
    together: WeightedSums
    losses: WeightedSums
    reference: _ModelSums
    candidate: _ModelSums
    kl: RowValues
    delta_p: RowValues

    @classmethod
    def of_nothing(cls, top_k: tuple[int, ...]) -> ComparisonSums:
        return cls(
            top_k,
            None,
            has_targets=False,
            has_groups=False,
            rows=0,
            ignored=0,
            nan_rows=0,
            together=WeightedSums.of_nothing(_columns(top_k, has_targets=False)),
            losses=WeightedSums.of_nothing(0),
            reference=_ModelSums(),
            candidate=_ModelSums(),
            kl=RowValues(),
            delta_p=RowValues(),
        )

    @in_default_environment
    def __add__(self, other: ComparisonSums) -> ComparisonSums:
        if self.classes is None or other.classes is None:  # nothing is neither with targets nor without
            return other if self.classes is None else self
        added = {
            field.name: getattr(self, field.name) + getattr(other, field.name)
            for field in fields(self)
            if field.name not in ("top_k", "classes", "has_targets", "has_groups")
        }
        return replace(self, **added)

    def check_like(self, other: ComparisonSums) -> None:
        check_classes_seen(other.classes, self.classes)
        for what in ("targets", "groups") if None not in (self.classes, other.classes) else ():
            found, expected = getattr(other, f"has_{what}"), getattr(self, f"has_{what}")
            if found != expected:
                said = "with" if found else "without"
                wanted = "with them" if expected else "without them"
                raise ValueError(f"other has seen logits {said} {what}; expected {wanted}")

    def result(self) -> Comparison:
        together = self.together
        kl_min, kl_max = self.kl.bounds()
        figures: dict[str, Any] = self._of_targets() if self.has_targets else {}
        if self.has_groups:
            figures["by_group"] = self._by_group()
        return Comparison(
            rows=self.rows,
            ignored=self.ignored,
            nan_rows=self.nan_rows,
            kl=together.estimate(_KL),
            kl_min=kl_min,
            kl_max=kl_max,
            kl_quantiles=self.kl.quantiles(),
            reverse_kl=together.estimate(_REVERSE_KL),
            jensen_shannon=together.estimate(_JENSEN_SHANNON),
            same_top=together.estimate(_SAME_TOP),
            top_k={k: together.estimate(_TOP_K + 2 * place) for place, k in enumerate(self.top_k)},
            reverse_top_k={
                k: together.estimate(_TOP_K + 2 * place + 1) for place, k in enumerate(self.top_k)
            },
            reference=self._model(self.reference, _REFERENCE),
            candidate=self._model(self.candidate, _CANDIDATE),
            **figures,
        )

    def _of_targets(self) -> dict[str, Any]:
        """Return what targets add."""
        change = self.losses.estimate(_CHANGE)
        before, after = (exp(self.losses.mean(column)) for column in (_REFERENCE, _CANDIDATE))
        of_reference, of_candidate, of_change = (self.losses.variance(c) for c in range(3))
        ratio = exp(change.value)
        error = math.nan
        if of_reference is not None and of_candidate is not None and of_change is not None:
            # exp(l + d) - exp(l) has the derivatives q - p with respect to l and q to d. That c = l + d gives
            # the covariance of l and d: var(c) = var(l) + var(d) + 2 cov(l, d).
            covariance = (of_candidate - of_reference - of_change) / 2
            slope, other = after - before, after
            square = (
                slope * slope * _float(of_reference)
                + other * other * _float(of_change)
                + 2 * slope * other * _float(covariance)
            )
            error = math.sqrt(max(square, 0.0))
        squared = self.together.estimate(_SQUARED_DELTA_P)
        rms = math.sqrt(squared.value) if squared.value >= 0 else math.nan
        delta_p_min, delta_p_max = self.delta_p.bounds()
        return {
            "loss_change": change,
            "perplexity_ratio": Estimate(ratio, ratio * change.error),
            "perplexity_change": Estimate(after - before, error),
            "correlation": self._correlation(),
            "delta_p": self.together.estimate(_DELTA_P),
            # d sqrt(x) = dx / (2 sqrt(x))
            "delta_p_rms": Estimate(rms, squared.error / (2 * rms) if rms else squared.error),
            "delta_p_min": delta_p_min,
            "delta_p_max": delta_p_max,
            "delta_p_quantiles": self.delta_p.quantiles(),
        }

    def _correlation(self) -> float:
        """Return the correlation of the losses of rows: cov(l, c) is (var(l) + var(c) - var(c - l)) / 2."""
        variances = [self.losses.variance(column, of_rows=True) for column in range(3)]
        first, second, change = variances
        if first is None or second is None or change is None or not first or not second:
            return math.nan
        scale = math.sqrt(_float(first)) * math.sqrt(_float(second))
        if first == second:
            scale = _float(first)
        return max(-1.0, min(1.0, _float((first + second - change) / 2) / scale))

    def _model(self, sums: _ModelSums, column: int) -> ComparedModel:
        entropy = sums.entropy.over(ExactSum.of_count(self.rows))
        if not self.has_targets:
            return ComparedModel(entropy, sums.nan_rows)
        loss = self.losses.estimate(column)
        hits = sum(sums.calibration.hits)
        return ComparedModel(
            entropy,
            sums.nan_rows,
            loss=loss.value,
            loss_error=loss.error,
            perplexity=exp(loss.value),
            bits=loss.value / math.log(2.0),
            accuracy=hits / self.rows if self.rows else math.nan,
            calibration_error=sums.calibration.error(),
        )

    def _by_group(self) -> dict[Label, GroupComparison]:
        losses = self.losses.groups() if self.has_targets else {}
        return {
            label: GroupComparison(
                sums.rows,
                sums.mean(_KL),
                *(exp(losses[label].mean(column)) for column in (_REFERENCE, _CANDIDATE) if losses),
            )
            for label, sums in self.together.groups().items()
        }

    def as_bytes(self) -> bytes:
        line = {
            "classes": self.classes,
            "has_targets": self.has_targets,
            "has_groups": self.has_groups,
            "rows": self.rows,
            "ignored": self.ignored,
            "nan_rows": self.nan_rows,
            "together": self.together.as_json(),
            "losses": self.losses.as_json(),
            "reference": self.reference.as_json(),
            "candidate": self.candidate.as_json(),
            "bounds": [values.as_json() for values in (self.kl, self.delta_p)],
        }
        values = b"".join(of_rows.all().astype("<f4").tobytes() for of_rows in (self.kl, self.delta_p))
        return json.dumps(line).encode() + b"\n" + values

    @classmethod
    def from_bytes(cls, data: bytes, top_k: tuple[int, ...]) -> ComparisonSums:
        line, _, values = data.partition(b"\n")
        match json.loads(line):
            case {
                "classes": int(classes),
                "has_targets": bool(has_targets),
                "has_groups": bool(has_groups),
                "rows": int(rows),
                "ignored": int(ignored),
                "nan_rows": int(nan_rows),
                "together": together,
                "losses": losses,
                "reference": reference,
                "candidate": candidate,
                "bounds": [kl, delta_p],
            } if min(classes, rows, ignored, nan_rows) >= 0 and len(values) == 4 * rows * (1 + has_targets):
                return cls(
                    top_k,
                    classes,
                    has_targets,
                    has_groups,
                    rows,
                    ignored,
                    nan_rows,
                    WeightedSums.from_json(together, _columns(top_k, has_targets=has_targets)),
                    WeightedSums.from_json(losses, 3 if has_targets else 0),
                    _ModelSums.from_json(reference),
                    _ModelSums.from_json(candidate),
                    RowValues.from_json(kl, values[: 4 * rows]),
                    RowValues.from_json(delta_p, values[4 * rows :]),
                )
        raise ValueError("expected what a comparer has counted")


def _columns(top_k: tuple[int, ...], *, has_targets: bool) -> int:
    """Return the number of the columns of `ComparisonSums.together`."""
    return _TOP_K + 2 * len(top_k) + 2 * has_targets


@in_default_environment
def summed(
    top_k: tuple[int, ...],
    classes: int,
    rows: ComparedRows,
    targets: NDArray[Any] | None,
    weight: NDArray[np.float64] | None,
    sample_weight: NDArray[Any] | None,
    labels: NDArray[Any] | None,
) -> ComparisonSums:
    """Sum what the rows that count have."""
    # Mostly all rows count: then nothing is copied.
    counts = slice(None) if rows.counts.all() else rows.counts
    row_weight = None if sample_weight is None else _flat(sample_weight)[counts].astype(np.float64)
    groups = None if labels is None else RowGroups.of(labels.reshape(-1)[counts])
    kl = rows.kl[counts]
    columns: list[Column] = [kl, rows.reverse_kl[counts], rows.jensen_shannon[counts]]
    before, after = rows.reference.rank[counts], rows.candidate.rank[counts]
    columns.append(after == 0)
    for k in top_k:
        columns += [(rank >= 0) & (rank < k) for rank in (after, before)]
    losses, delta_p = WeightedSums.of_nothing(0), np.empty(0)
    if targets is not None:
        pair = rows.reference.loss[counts], rows.candidate.loss[counts]
        change, delta_p = _changes(*pair)
        loss_weight = row_weight
        if weight is not None:
            of_class = weight[_flat(targets)[counts].astype(np.intp)]
            loss_weight = of_class if row_weight is None else times(row_weight, of_class)
        losses = WeightedSums.of([*pair, change], loss_weight, groups)
        columns += [delta_p, delta_p * delta_p]
    return ComparisonSums(
        top_k,
        classes,
        has_targets=targets is not None,
        has_groups=labels is not None,
        rows=int(np.count_nonzero(rows.counts)),
        ignored=int(np.count_nonzero(~rows.counts)),
        nan_rows=int(np.count_nonzero(np.isnan(kl))),
        together=WeightedSums.of(columns, row_weight, groups),
        losses=losses,
        reference=_model_sums(rows.reference, counts, targets is not None),
        candidate=_model_sums(rows.candidate, counts, targets is not None),
        kl=RowValues.of(kl),
        delta_p=RowValues.of(delta_p),
    )


def _model_sums(rows: ModelRows, counts: slice | NDArray[np.bool_], has_targets: bool) -> _ModelSums:
    confidence, hit = rows.max_probability[counts], rows.hit[counts]
    bins = CalibrationBins.of(confidence, hit) if has_targets else NO_BINS
    entropy = rows.entropy[counts]
    return _ModelSums(ExactSum.of_values(entropy), bins, int(np.count_nonzero(np.isnan(entropy))))


def _changes(reference: Floats, candidate: Floats) -> tuple[Floats, Floats]:
    """Return the change of each loss, -log q - (-log p), and of the probability, q - p, to all digits.

    With d = log p - log q that is q (1 - e^d) for a d below 0, and p (e^-d - 1) above.
    """
    with np.errstate(invalid="ignore", over="ignore", under="ignore"):
        change = candidate - reference
        larger = np.exp(-np.minimum(reference, candidate))
        size = larger * -np.expm1(-np.abs(change))
        delta_p = np.where(change > 0, -size, size)
        # Two probabilities of 0, whose losses have no difference.
        return change, np.where(np.isposinf(reference) & np.isposinf(candidate), 0.0, delta_p)


def _flat(values: NDArray[Any]) -> NDArray[Any]:
    return values.reshape(-1)


def _float(value: Fraction) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf
