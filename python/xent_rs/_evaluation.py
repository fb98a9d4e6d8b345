"""What an evaluation says of a model's logits, for programs and for people."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from ._tables import LEFT_OUT_BY, among_all, html_notes, html_table, note_of_nan, note_of_nothing, text_table


@dataclass(frozen=True)
class Evaluation:
    """What a model's logits say about the targets, averaged over the rows that count.

    With no such row every mean is NaN. `print` shows it as a table, and so do notebooks.

    Attributes
    ----------
    loss : float
        Mean cross-entropy in nats, ``mean(logsumexp(z) - z[target])``, with the options and the mean of
        `cross_entropy`.
    perplexity : float
        ``exp(loss)``; infinity where that exceeds float64.
    bits : float
        The loss in bits, ``loss / ln 2``.
    accuracy : float
        Share of the rows whose target has the largest logit, 0 to 1. Of equal logits the first counts as
        larger.
    top_k : dict of int to float
        For each ``k``: share of the rows whose target is among the ``k`` largest logits, 0 to 1. Of equal
        logits the first counts as larger. A ``k`` of all classes or more finds every target: 1.0 then says
        nothing of the model.
    entropy : float
        Mean entropy of the model's own distribution in nats, ``mean(-sum(p * ln(p)))``.
    rows : int
        Number of rows that count.
    ignored : int
        Number of rows that do not: their target is ``ignore_index``, or their ``sample_weight`` is 0.
    nan_rows : int
        Number of rows that count and have a loss or an entropy of NaN, as one with a NaN or ``+inf`` among
        its logits has, or one of ``-inf`` alone. One such row makes these means NaN; it hits nothing.
    loss_error : float
        Standard error of the loss in nats, ``sqrt(n / (n - 1) * sum((l - loss * w)**2)) / sum(w)`` of n rows
        with weights w and weighted losses l, which without weights is their standard deviation over
        ``sqrt(n)``. It takes rows as independent, which neighbouring tokens of a text are not. NaN of less
        than two rows.
    """

    loss: float
    perplexity: float
    bits: float
    accuracy: float
    top_k: dict[int, float]
    entropy: float
    rows: int
    ignored: int
    nan_rows: int
    loss_error: float

    def as_dict(self, prefix: str = "") -> dict[str, float]:
        """Return all figures in one flat dict, as loggers of experiments take them.

        Parameters
        ----------
        prefix : str, optional
            What each name begins with.

        Returns
        -------
        dict of str to float
            The fields by name, those of `top_k` as ``top_1``, ``top_5``.

        Examples
        --------
        >>> from xent_rs import evaluate
        >>> figures = evaluate([[1.0, 0.0, 2.0], [3.0, 0.0, 1.0]], [0, 0], top_k=(1, 2)).as_dict("test/")
        >>> list(figures)[:6]
        ['test/loss', 'test/perplexity', 'test/bits', 'test/accuracy', 'test/top_1', 'test/top_2']
        >>> figures["test/top_1"], figures["test/top_2"], figures["test/rows"]
        (0.5, 1.0, 2.0)
        """
        flat: dict[str, float] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "top_k":
                flat.update({f"top_{k}": share for k, share in value.items()})
            else:
                flat[field.name] = float(value)
        return {prefix + name: value for name, value in flat.items()}

    def __str__(self) -> str:
        return "\n\n".join([text_table(self._table()), *self._notes()])

    def _repr_html_(self) -> str:
        return html_table(self._table()) + html_notes(self._notes())

    def _table(self, classes: int | None = None) -> list[tuple[str, str]]:
        """Return names and figures for people; with the number of classes, says which `top_k` are all."""
        return [
            ("rows", f"{self.rows:,}"),
            ("ignored", f"{self.ignored:,}"),
            *([("rows of NaN", f"{self.nan_rows:,}")] if self.nan_rows else []),
            ("loss (nats)", f"{self.loss:.6g} ± {self.loss_error:.2g}"),
            ("bits", f"{self.bits:.6g}"),
            ("perplexity", f"{self.perplexity:.6g}"),
            ("entropy (nats)", f"{self.entropy:.6g}"),
            ("accuracy", f"{self.accuracy:.2%}"),
            *(
                (f"among the top {among_all(k, classes)}", f"{share:.2%}")
                for k, share in self.top_k.items()
                if k != 1
            ),
        ]

    def _notes(self, left_out_by: tuple[str, str] = LEFT_OUT_BY) -> list[str]:
        """Return what people are to know besides; the names are those of options."""
        if not self.rows:
            return [note_of_nothing(self.ignored)]
        if not self.nan_rows:
            return []
        spoiled = [
            name for name in ("loss", "bits", "perplexity", "entropy") if math.isnan(getattr(self, name))
        ]
        return [note_of_nan(self.nan_rows, self.rows, "", spoiled, left_out_by)]
