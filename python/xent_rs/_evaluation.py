"""What an evaluation says of a model's logits, for programs and for people."""

from __future__ import annotations

from dataclasses import dataclass, fields

from ._tables import html_table, text_table


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
        return text_table(self._table())

    def _repr_html_(self) -> str:
        return html_table(self._table())

    def _table(self, classes: int | None = None) -> list[tuple[str, str]]:
        """Return names and figures for people; with the number of classes, says which `top_k` are all."""

        def among(k: int) -> str:
            return f"among the top {k}" + (f" (all {classes})" if classes and classes <= k else "")

        return [
            ("rows", f"{self.rows:,}"),
            ("ignored", f"{self.ignored:,}"),
            ("loss (nats)", f"{self.loss:.6g} ± {self.loss_error:.2g}"),
            ("bits", f"{self.bits:.6g}"),
            ("perplexity", f"{self.perplexity:.6g}"),
            ("entropy (nats)", f"{self.entropy:.6g}"),
            ("accuracy", f"{self.accuracy:.2%}"),
            *((among(k), f"{share:.2%}") for k, share in self.top_k.items() if k != 1),
        ]
