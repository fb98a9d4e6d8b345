"""What a comparison of two models says, for programs and for people."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

from ._estimates import Estimate, Label
from ._tables import (
    LEFT_OUT_BY,
    among_all,
    html_notes,
    html_table,
    note_of_nan,
    note_of_nothing,
    text_table,
    with_error,
)


@dataclass(frozen=True)
class ComparedModel:
    """What a comparison says of one of its models by itself; what needs targets is None without them.

    Attributes
    ----------
    entropy : float
        Mean entropy of the model's own distribution in nats, ``mean(-sum(p * ln(p)))``.
    nan_rows : int
        Number of rows that count and have no entropy: one of their logits is NaN or ``+inf``, or all are
        ``-inf``.
    loss : float or None
        Mean cross-entropy in nats, ``mean(logsumexp(z) - z[target])``, as from `evaluate`.
    loss_error : float or None
        Its standard error, over groups where there are any.
    perplexity : float or None
        ``exp(loss)``.
    bits : float or None
        The loss in bits, ``loss / ln 2``.
    accuracy : float or None
        Share of the rows whose target has the largest logit, 0 to 1; of equal logits the first.
    calibration_error : float or None
        Expected calibration error: the mean distance, weighted by rows, of mean confidence and share of hits
        in 15 bins of equal width of the confidence, the largest probability of a row.
    """

    entropy: float
    nan_rows: int
    loss: float | None = None
    loss_error: float | None = None
    perplexity: float | None = None
    bits: float | None = None
    accuracy: float | None = None
    calibration_error: float | None = None


@dataclass(frozen=True)
class GroupComparison:
    """What a comparison says of the rows of one group.

    Attributes
    ----------
    rows : int
        Number of rows that count.
    kl : float
        Mean of KL(reference || candidate) in nats.
    reference_perplexity, candidate_perplexity : float or None
        The perplexities of both models; None without targets.
    """

    rows: int
    kl: float
    reference_perplexity: float | None = None
    candidate_perplexity: float | None = None


@dataclass(frozen=True)
class Comparison:
    """What two models' logits say about each other, and with targets which is better by how much.

    An `Estimate` has a ``value`` and an ``error``, its standard error: over rows, or over groups where there
    are any. With no row that counts every figure is NaN; what needs targets is None without them. `print`
    shows it as tables, and so do notebooks.

    With the probabilities p of the reference and q of the candidate in a row, p[y] and q[y] of its target:

    Attributes
    ----------
    rows : int
        Number of rows that count.
    ignored : int
        Number of rows that do not: their target is ``ignore_index``, or their ``sample_weight`` is 0.
    nan_rows : int
        Number of rows that count and have a divergence of NaN: a logit of a model is NaN or ``+inf``, or all
        are ``-inf``. One such row makes the means NaN.
    kl : Estimate
        Mean of KL(reference || candidate) in nats, ``sum(p * ln(p / q))``: never negative, and exactly 0 for
        equal logits.
    kl_min, kl_max : float
        The least and the largest KL(reference || candidate) of a row.
    kl_quantiles : dict of float to float
        Its quantiles, from 0.001 to 0.999.
    reverse_kl : Estimate
        Mean of KL(candidate || reference).
    jensen_shannon : Estimate
        Mean Jensen-Shannon divergence in nats, ``(KL(p || m) + KL(q || m)) / 2`` with ``m = (p + q) / 2``.
    same_top : Estimate
        Share of the rows in which both models' largest logit is that of the same class, 0 to 1. Of equal
        logits the first counts as larger; a row without a softmax (a NaN in it) has no such class.
    top_k : dict of int to Estimate
        For each ``k``: share of the rows in which the reference's largest logit is of a class that is among
        the ``k`` largest logits of the candidate. A ``k`` of all classes or more finds it in every row.
    reverse_top_k : dict of int to Estimate
        Likewise of the candidate's largest logit among the reference's.
    reference, candidate : ComparedModel
        Each model by itself.
    loss_change : Estimate or None
        The candidate's loss less the reference's in nats, with the error of the paired difference.
    perplexity_ratio, perplexity_change : Estimate or None
        The candidate's perplexity over the reference's, and less it.
    correlation : float or None
        Pearson's correlation of the losses of rows; NaN if those of a model are all equal.
    delta_p : Estimate or None
        Mean change of the target's probability, ``q[y] - p[y]``.
    delta_p_rms : Estimate or None
        Root of the mean square of that change.
    delta_p_min, delta_p_max : float or None
        The least and the largest change in a row.
    delta_p_quantiles : dict of float to float or None
        Its quantiles.
    by_group : dict of (int or str) to GroupComparison or None
        Each group by itself; None without `groups`.
    """

    rows: int
    ignored: int
    nan_rows: int
    kl: Estimate
    kl_min: float
    kl_max: float
    kl_quantiles: dict[float, float]
    reverse_kl: Estimate
    jensen_shannon: Estimate
    same_top: Estimate
    top_k: dict[int, Estimate]
    reverse_top_k: dict[int, Estimate]
    reference: ComparedModel
    candidate: ComparedModel
    loss_change: Estimate | None = None
    perplexity_ratio: Estimate | None = None
    perplexity_change: Estimate | None = None
    correlation: float | None = None
    delta_p: Estimate | None = None
    delta_p_rms: Estimate | None = None
    delta_p_min: float | None = None
    delta_p_max: float | None = None
    delta_p_quantiles: dict[float, float] | None = None
    by_group: dict[Label, GroupComparison] | None = None

    def as_dict(self, prefix: str = "") -> dict[str, float]:
        """Return all figures but those by group in one flat dict, as loggers of experiments take them.

        Parameters
        ----------
        prefix : str, optional
            What each name begins with.

        Returns
        -------
        dict of str to float
            The fields by name; the error of a figure as ``kl_error``, quantiles in percent as ``kl_q99`` and
            ``kl_q99_9``, those of `top_k` as ``top_5`` and ``top_5_error``, and those of each model as
            ``reference_loss``, ``candidate_loss``. With groups their number, ``groups``. What is None is
            left out.

        Examples
        --------
        >>> from xent_rs import compare
        >>> figures = compare([[1.0, 0.0], [3.0, 0.0]], [[1.0, 0.5], [3.0, 0.0]], [0, 0]).as_dict("int8/")
        >>> list(figures)[:5]
        ['int8/rows', 'int8/ignored', 'int8/nan_rows', 'int8/kl', 'int8/kl_error']
        >>> round(figures["int8/kl_max"], 4), round(figures["int8/candidate_loss"], 4)
        (0.0263, 0.2613)
        """
        flat: dict[str, float] = {}
        for field in fields(self):
            name, value = field.name, getattr(self, field.name)
            match value:
                case None:
                    pass
                case Estimate():
                    flat.update({name: value.value, f"{name}_error": value.error})
                case ComparedModel():
                    figures = ((f"{name}_{each.name}", getattr(value, each.name)) for each in fields(value))
                    flat.update({key: float(figure) for key, figure in figures if figure is not None})
                case dict() if name.endswith("top_k"):
                    for k, share in value.items():
                        key = f"{name.removesuffix('k')}{k}"
                        flat.update({key: share.value, f"{key}_error": share.error})
                case dict() if name == "by_group":
                    flat["groups"] = float(len(value))
                case dict():
                    stem = name.removesuffix("quantiles")
                    flat.update({f"{stem}q{_percent(f).replace('.', '_')}": at for f, at in value.items()})
                case _:
                    flat[name] = float(value)
        return {prefix + name: value for name, value in flat.items()}

    def __str__(self) -> str:
        tables = (text_table([*filter(None, [header]), *rows]) for header, rows in self._tables())
        return "\n\n".join([*tables, *self._notes()])

    def _repr_html_(self) -> str:
        tables = "".join(html_table(rows, header) for header, rows in self._tables())
        return tables + html_notes(self._notes())

    def _tables(self, text_bytes: int | None = None, classes: int | None = None) -> list[_Table]:
        """Return tables for people, each with its header.

        With the size of a text they have bits per byte, too; with the number of classes they say which
        `top_k` are all.
        """
        counts: list[tuple[str, ...]] = [("rows", f"{self.rows:,}"), ("ignored", f"{self.ignored:,}")]
        if self.nan_rows:
            counts.append(("rows of NaN", f"{self.nan_rows:,}"))
        if self.by_group is not None:
            counts.append(("groups", f"{len(self.by_group):,}"))
        return [((), counts), self._models(text_bytes), ((), self._means(classes)), self._distributions()]

    def _notes(self, left_out_by: tuple[str, str] = LEFT_OUT_BY) -> list[str]:
        """Return what people are to know besides; the names are those of options."""
        if not self.rows:
            return [note_of_nothing(self.ignored)]
        both = (self.reference, self.candidate)
        if not self.nan_rows:
            if self.loss_change is not None and all(model.loss == math.inf for model in both):
                return ["Both models exclude a target: their losses are infinite, and have no change."]
            return []
        figures: dict[str, Sequence[Estimate | float | None]] = {
            "the divergences": [self.kl],
            "the entropies": [model.entropy for model in both],
            "the losses": [model.loss for model in both],
            "the change of the loss": [self.loss_change],
            "the change of p(target)": [self.delta_p],
        }
        spoiled = [name for name, values in figures.items() if any(_is_nan(value) for value in values)]
        whose = " ({:,} of the reference, {:,} of the candidate)".format(*(model.nan_rows for model in both))
        return [note_of_nan(self.nan_rows, self.rows, whose, spoiled, left_out_by)]

    def _models(self, text_bytes: int | None) -> _Table:
        """Return what each model has by itself, side by side, and the change."""
        both = (self.reference, self.candidate)
        header = ("", "reference", "candidate", "change")
        entropies = [model.entropy for model in both]
        entropy = ("entropy (nats)", *(f"{value:.6g}" for value in entropies), _change(entropies, "+.3g"))
        if self.loss_change is None or self.perplexity_ratio is None or self.perplexity_change is None:
            return header, [entropy]
        losses = [_known(model.loss) for model in both]
        errors = [_known(model.loss_error) for model in both]
        perplexities = [_known(model.perplexity) for model in both]
        bits = [_known(model.bits) for model in both]
        rows: list[tuple[str, ...]] = [
            ("loss (nats)", *map(with_error, losses, errors), _shown(self.loss_change, sign="+")),
            (
                "perplexity",
                # d exp(loss) = exp(loss) d loss
                *(
                    with_error(value, value * error)
                    for value, error in zip(perplexities, errors, strict=True)
                ),
                _shown(self.perplexity_change, sign="+"),
            ),
            ("perplexity, ratio", "", "", _shown(self.perplexity_ratio)),
            ("bits", *(f"{value:.6g}" for value in bits), _change(bits, "+.3g")),
        ]
        if text_bytes is not None:
            rates = [value * self.rows / text_bytes for value in bits]
            rows.append(("bits per byte", *(f"{rate:.6g}" for rate in rates), _change(rates, "+.3g")))
        rows.append(entropy)
        for name in ("accuracy", "calibration_error"):
            shares = [_known(getattr(model, name)) for model in both]
            change = _change(shares, "+.2%")
            rows.append((name.replace("_", " "), *(f"{share:.2%}" for share in shares), change))
        return header, rows

    def _means(self, classes: int | None) -> list[tuple[str, ...]]:
        """Return what the models have together."""
        rows: list[tuple[str, ...]] = [
            ("KL(reference || candidate)", _shown(self.kl)),
            ("KL(candidate || reference)", _shown(self.reverse_kl)),
            ("Jensen-Shannon divergence", _shown(self.jensen_shannon)),
            ("same top class", _shown(self.same_top, percent=True)),
        ]
        both = ("reference", "candidate")
        for (model, other), shares in zip((both, both[::-1]), (self.top_k, self.reverse_top_k), strict=True):
            for k, share in shares.items():
                name = f"... {model}'s in {other}'s top {among_all(k, classes)}"
                rows.append((name, _shown(share, percent=True)))
        if self.delta_p is not None and self.delta_p_rms is not None:
            rows += [
                ("change of p(target)", _shown(self.delta_p, sign="+", percent=True)),
                ("... root mean square", _shown(self.delta_p_rms, percent=True)),
                ("correlation of the losses", f"{_known(self.correlation):.6g}"),
            ]
        return rows

    def _distributions(self) -> _Table:
        """Return the quantiles of what rows have."""
        names = ["minimum", *(f"{_percent(fraction)}%" for fraction in self.kl_quantiles), "maximum"]
        columns = {"KL": [f"{x:.4g}" for x in (self.kl_min, *self.kl_quantiles.values(), self.kl_max)]}
        if self.delta_p_quantiles is not None:
            changes = (_known(self.delta_p_min), *self.delta_p_quantiles.values(), _known(self.delta_p_max))
            columns["change of p"] = [f"{100 * change:+.4g}%" for change in changes]
        return ("", *columns), list(zip(names, *columns.values(), strict=True))


_Table = tuple[tuple[str, ...], list[tuple[str, ...]]]


def _shown(estimate: Estimate, *, sign: str = "-", percent: bool = False) -> str:
    return with_error(estimate.value, estimate.error, sign=sign, percent=percent)


def _change(both: Sequence[float], form: str) -> str:
    before, after = both
    return format(after - before, form)


def _is_nan(figure: Estimate | float | None) -> bool:
    value = figure.value if isinstance(figure, Estimate) else figure
    return value is not None and math.isnan(value)


def _known(value: float | None) -> float:
    return math.nan if value is None else value


def _percent(fraction: float) -> str:
    """Return a fraction in percent, without zeros that say nothing: 99.9, 50, 0.1."""
    return f"{100 * fraction:g}"
