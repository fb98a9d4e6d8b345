"""How good a model's logits are: loss, perplexity, accuracy and entropy, batch by batch."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable
from dataclasses import dataclass

from numpy.typing import ArrayLike

from . import _xent_rs


@dataclass(frozen=True)
class Evaluation:
    """What a model's logits say about the targets, averaged over the rows that are not ignored.

    With no such row every mean is NaN.

    Attributes
    ----------
    loss : float
        Mean cross-entropy in nats, ``mean(logsumexp(z) - z[target])``.
    perplexity : float
        ``exp(loss)``; infinity where that exceeds float64.
    bits : float
        The loss in bits, ``loss / ln 2``.
    accuracy : float
        Share of the rows whose target has the largest logit, 0 to 1. Of equal logits the first counts as
        larger.
    top_k : dict of int to float
        For each ``k``: share of the rows whose target is among the ``k`` largest logits, 0 to 1.
    entropy : float
        Mean entropy of the model's own distribution in nats, ``mean(-sum(p * ln(p)))``.
    rows : int
        Number of rows that count.
    ignored : int
        Number of rows whose target is ``ignore_index``.
    """

    loss: float
    perplexity: float
    bits: float
    accuracy: float
    top_k: dict[int, float]
    entropy: float
    rows: int
    ignored: int


class Evaluator:
    """Evaluate logits that come in batches, in any order and in any number of processes.

    With ``z = logits / temperature`` and ``p = softmax(z)`` each row has the loss ``logsumexp(z) -
    z[target]`` and the entropy ``-sum(p * ln(p))``. The sums over batches are exact (integers, in units of
    2**-1074), so that neither the order of the updates nor the way evaluators are merged changes a bit of the
    result.

    An evaluator can be pickled. It is not meant to be updated by several threads at once: give each its own
    and merge them.

    Parameters
    ----------
    top_k : iterable of int, default (1, 5)
        The ``k`` for which the result holds the share of rows whose target is among the ``k`` largest logits.
    ignore_index : int, default -100
        Rows with this target do not count.
    temperature : float, default 1.0
        The logits are divided by it.
    axis : int, default -1
        The axis of the classes.

    Raises
    ------
    TypeError
        If `top_k` is not an iterable of integers, or `ignore_index` or `axis` is not an integer.
    ValueError
        If `top_k` contains a number below 1, or `temperature` is not a positive finite number.

    References
    ----------
    F. Jelinek et al., "Perplexity - a measure of the difficulty of speech recognition tasks",
    J. Acoust. Soc. Am. 62, S63 (1977).

    Examples
    --------
    >>> import numpy as np
    >>> from xent_rs import Evaluator
    >>> evaluator = Evaluator(top_k=(2,))
    >>> evaluator.update(np.zeros((3, 4), np.float32), [0, 1, 2])
    >>> evaluator.update(np.zeros((1, 4), np.float32), [-100])
    >>> result = evaluator.result()
    >>> result.perplexity, result.bits, result.top_k[2], result.rows, result.ignored
    (4.0, 2.0, 0.6666666666666666, 3, 1)
    """

    def __init__(
        self,
        *,
        top_k: Iterable[int] = (1, 5),
        ignore_index: int = -100,
        temperature: float = 1.0,
        axis: int = -1,
    ) -> None:
        if not isinstance(top_k, Iterable):
            raise TypeError(f"top_k is {top_k!r}; expected several positive integers")
        self._top_k = tuple(sorted({_integer(k, "top_k contains") for k in top_k}))
        if self._top_k and self._top_k[0] < 1:
            raise ValueError(f"top_k contains {self._top_k[0]}; expected positive integers")
        self._ignore_index = _integer(ignore_index, "ignore_index is")
        self._temperature = float(temperature)
        if not 0.0 < self._temperature < math.inf:
            raise ValueError(f"temperature is {self._temperature}; expected a positive finite number")
        self._axis = _integer(axis, "axis is")

        self._loss = _ExactSum()
        self._entropy = _ExactSum()
        # The accuracy is the share of hits for k = 1, asked for or not.
        self._hits = dict.fromkeys(sorted({1, *self._top_k}), 0)
        self._rows = 0
        self._ignored = 0

    def update(self, logits: ArrayLike, targets: ArrayLike) -> None:
        """Add a batch.

        Parameters
        ----------
        logits : array_like of float16, bfloat16, float32 or float64
            One row of logits for each target, the classes along `axis`; any number of other axes, including
            none.
        targets : array_like of integers
            The classes, in the shape of `logits` without `axis`.

        Raises
        ------
        TypeError, ValueError
            If a dtype or a shape is not as described. The evaluator is then as it was before.
        IndexError
            If a target is neither a class nor `ignore_index`. The evaluator is then as it was before.
        """
        loss_sum, entropy_sum, hits, rows, ignored = _xent_rs.evaluate(
            logits, targets, tuple(self._hits), self._ignore_index, self._temperature, self._axis
        )
        self._add(_ExactSum.of(loss_sum), _ExactSum.of(entropy_sum), hits, rows, ignored)

    def merge(self, other: Evaluator) -> None:
        """Add everything that another evaluator has seen.

        Parameters
        ----------
        other : Evaluator
            An evaluator with the same options; it stays as it is.

        Raises
        ------
        TypeError
            If `other` is not an evaluator.
        ValueError
            If `other` has other options.
        """
        if not isinstance(other, Evaluator):
            raise TypeError(f"other is a {type(other).__name__}; expected an Evaluator")
        for name, expected in self._options().items():
            found = other._options()[name]
            if found != expected:
                raise ValueError(f"other has {name} {found}; expected {expected}")
        self._add(other._loss, other._entropy, other._hits.values(), other._rows, other._ignored)

    def result(self) -> Evaluation:
        """Return the means over everything seen so far.

        Returns
        -------
        Evaluation
            The means; NaN where no row counts.
        """
        loss = self._loss.mean(self._rows)
        shares = {k: count / self._rows if self._rows else math.nan for k, count in self._hits.items()}
        return Evaluation(
            loss=loss,
            perplexity=_exp(loss),
            bits=loss / math.log(2.0),
            accuracy=shares[1],
            top_k={k: shares[k] for k in self._top_k},
            entropy=self._entropy.mean(self._rows),
            rows=self._rows,
            ignored=self._ignored,
        )

    def _add(self, loss: _ExactSum, entropy: _ExactSum, hits: Iterable[int], rows: int, ignored: int) -> None:
        # Nothing is changed in place, so that a shallow copy is a copy.
        self._loss += loss
        self._entropy += entropy
        self._hits = {k: before + more for (k, before), more in zip(self._hits.items(), hits, strict=True)}
        self._rows += rows
        self._ignored += ignored

    def __repr__(self) -> str:
        options = ", ".join(f"{name}={value!r}" for name, value in self._options().items())
        return f"<Evaluator({options}): {self._rows} rows, {self._ignored} ignored>"

    def _options(self) -> dict[str, object]:
        return {
            "top_k": self._top_k,
            "ignore_index": self._ignore_index,
            "temperature": self._temperature,
            "axis": self._axis,
        }


def evaluate(
    logits: ArrayLike,
    targets: ArrayLike,
    *,
    top_k: Iterable[int] = (1, 5),
    ignore_index: int = -100,
    temperature: float = 1.0,
    axis: int = -1,
) -> Evaluation:
    """Evaluate logits: mean loss, perplexity, accuracy and entropy, in one pass over the memory.

    With ``z = logits / temperature`` and ``p = softmax(z)``: the loss is ``mean(logsumexp(z) - z[target])``,
    the perplexity ``exp(loss)`` and the entropy ``mean(-sum(p * ln(p)))``.

    Parameters
    ----------
    logits : array_like of float16, bfloat16, float32 or float64
        One row of logits for each target, the classes along `axis`; any number of other axes, including none.
    targets : array_like of integers
        The classes, in the shape of `logits` without `axis`.
    top_k : iterable of int, default (1, 5)
        The ``k`` for which the result holds the share of rows whose target is among the ``k`` largest logits.
    ignore_index : int, default -100
        Rows with this target do not count.
    temperature : float, default 1.0
        The logits are divided by it.
    axis : int, default -1
        The axis of the classes.

    Returns
    -------
    Evaluation
        The means over the rows that count; NaN where there is none.

    Raises
    ------
    TypeError
        If a dtype is not supported, or an option is not of the type described.
    ValueError
        If the shapes do not match, or an option is out of its range.
    IndexError
        If a target is neither a class nor `ignore_index`.

    See Also
    --------
    Evaluator : The same for logits that come in batches.

    References
    ----------
    F. Jelinek et al., "Perplexity - a measure of the difficulty of speech recognition tasks",
    J. Acoust. Soc. Am. 62, S63 (1977).

    Examples
    --------
    >>> import numpy as np
    >>> from xent_rs import evaluate
    >>> logits = np.log(np.array([[8, 4, 2, 2], [1, 8, 4, 3]], np.float32))
    >>> result = evaluate(logits, [0, 2], top_k=(1, 2))
    >>> round(result.bits, 6), round(result.perplexity, 6), result.accuracy, result.top_k
    (1.5, 2.828427, 0.5, {1: 0.5, 2: 1.0})
    """
    evaluator = Evaluator(top_k=top_k, ignore_index=ignore_index, temperature=temperature, axis=axis)
    evaluator.update(logits, targets)
    return evaluator.result()


@dataclass(frozen=True)
class _ExactSum:
    """A sum of float64 values without rounding: of the same values in any order, the same bits."""

    # In units of 2**-1074, the smallest positive float64, of which every finite one is a whole number.
    units: int = 0
    not_finite: float = 0.0

    @classmethod
    def of(cls, value: float) -> _ExactSum:
        if not math.isfinite(value):
            return cls(not_finite=value)
        numerator, denominator = value.as_integer_ratio()
        return cls(numerator * (_ONE // denominator))

    def __add__(self, other: _ExactSum) -> _ExactSum:
        return _ExactSum(self.units + other.units, self.not_finite + other.not_finite)

    def mean(self, count: int) -> float:
        if count == 0:
            return math.nan
        if self.not_finite != 0.0:
            return self.not_finite
        return self.units / (count * _ONE)


_ONE = 1 << 1074


def _exp(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf


def _integer(value: object, what: str) -> int:
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{what} {value!r}; expected an integer") from None
