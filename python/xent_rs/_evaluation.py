"""How good a model's logits are: loss, perplexity, accuracy and entropy, batch by batch."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from . import _xent_rs


@dataclass(frozen=True)
class Evaluation:
    """What a model's logits say about the targets, averaged over the rows that count.

    With no such row every mean is NaN.

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
        For each ``k``: share of the rows whose target is among the ``k`` largest logits, 0 to 1.
    entropy : float
        Mean entropy of the model's own distribution in nats, ``mean(-sum(p * ln(p)))``.
    rows : int
        Number of rows that count.
    ignored : int
        Number of rows that do not: their target is ``ignore_index``, or their ``sample_weight`` is 0.
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
    z[target]``, or that of `cross_entropy` with the same options, and the entropy ``-sum(p * ln(p))``. The
    sums over batches are exact (integers, in units of 2**-1074), so that neither the order of the updates nor
    the way evaluators are merged changes a bit of the result. Those of a batch are rounded: other batches of
    the same rows may differ in the last bits.

    An evaluator can be pickled. It is not meant to be updated by several threads at once: give each its own
    and merge them.

    Logits are capped before they are divided, if there is a `softcap`.

    Parameters
    ----------
    top_k : iterable of int, default (1, 5)
        The ``k`` for which the result holds the share of rows whose target is among the ``k`` largest logits.
    weight : array_like of C real numbers, optional
        A weight for each class in the loss; it is copied. Accuracy, `top_k` and entropy count rows alike.
    ignore_index : int, default -100
        Rows with this target do not count.
    label_smoothing, z_loss : float, default 0.0
        As for `cross_entropy`; they change the loss, and with it perplexity and bits.
    softcap : float, optional
        Bounds the logits, smoothly, to ±softcap.
    temperature : float, default 1.0
        The logits are divided by it, after the softcap.
    axis : int, default -1
        The axis of the classes.

    Raises
    ------
    TypeError
        If `top_k` is not an iterable of integers, or another option is not of the type described.
    ValueError
        If `top_k` contains a number below 1, or another option is out of its range.

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
        weight: ArrayLike | None = None,
        ignore_index: int = -100,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
        softcap: float | None = None,
        temperature: float = 1.0,
        axis: int = -1,
    ) -> None:
        if not isinstance(top_k, Iterable):
            raise TypeError(f"top_k is {top_k!r}; expected several positive integers")
        self._top_k = tuple(sorted({_integer(k, "top_k contains") for k in top_k}))
        if self._top_k and self._top_k[0] < 1:
            raise ValueError(f"top_k contains {self._top_k[0]}; expected positive integers")
        self._ignore_index = _integer(ignore_index, "ignore_index is")
        self._axis = _integer(axis, "axis is")
        # The other options are checked where they are used: by a batch without rows.
        shape = (1,) if weight is None else np.shape(weight)
        if len(shape) != 1 or shape[0] == 0:
            raise ValueError(f"weight has shape {shape}; expected (C,), one number a class")
        nothing = np.zeros((0, shape[0]), np.float32), np.zeros(0, np.int64)
        _xent_rs.evaluate(
            *nothing, (), weight, None, self._ignore_index, label_smoothing, z_loss, softcap, temperature, -1
        )
        self._weight = None if weight is None else np.array(weight, np.float64)
        self._label_smoothing = float(label_smoothing)
        self._z_loss = float(z_loss)
        self._softcap = None if softcap is None else float(softcap)
        self._temperature = float(temperature)

        self._loss = _ExactSum()
        self._weight_sum = _ExactSum()
        self._entropy = _ExactSum()
        # The accuracy is the share of hits for k = 1, asked for or not.
        self._hits = dict.fromkeys(sorted({1, *self._top_k}), 0)
        self._rows = 0
        self._ignored = 0

    def update(
        self, logits: ArrayLike, targets: ArrayLike, *, sample_weight: ArrayLike | None = None
    ) -> None:
        """Add a batch.

        Parameters
        ----------
        logits : array_like of float16, bfloat16, float32 or float64
            One row of logits for each target, the classes along `axis`; any number of other axes, including
            none.
        targets : array_like of integers
            The classes, in the shape of `logits` without `axis`.
        sample_weight : array_like of real numbers, optional
            A weight for each row in the loss, in the shape of `targets`; by default 1. A row of
            weight 0 does not count; accuracy, `top_k` and entropy count all others alike.

        Raises
        ------
        TypeError, ValueError
            If a dtype or a shape is not as described. The evaluator is then as it was before.
        IndexError
            If a target is neither a class nor `ignore_index`. The evaluator is then as it was before.
        """
        loss, weight, entropy, hits, rows, ignored = _xent_rs.evaluate(
            logits,
            targets,
            tuple(self._hits),
            self._weight,
            sample_weight,
            self._ignore_index,
            self._label_smoothing,
            self._z_loss,
            self._softcap,
            self._temperature,
            self._axis,
        )
        self._add(_ExactSum.of(loss), _ExactSum.of(weight), _ExactSum.of(entropy), hits, rows, ignored)

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
            if not _equal(found, expected):
                raise ValueError(f"other has {name} {_text(found)}; expected {_text(expected)}")
        self._add(
            other._loss, other._weight_sum, other._entropy, other._hits.values(), other._rows, other._ignored
        )

    def result(self) -> Evaluation:
        """Return the means over everything seen so far.

        Returns
        -------
        Evaluation
            The means; NaN where no row counts.
        """
        loss = self._loss.over(self._weight_sum)
        shares = {k: count / self._rows if self._rows else math.nan for k, count in self._hits.items()}
        return Evaluation(
            loss=loss,
            perplexity=_exp(loss),
            bits=loss / math.log(2.0),
            accuracy=shares[1],
            top_k={k: shares[k] for k in self._top_k},
            entropy=self._entropy.over(_ExactSum(self._rows * _ONE)),
            rows=self._rows,
            ignored=self._ignored,
        )

    def _add(
        self,
        loss: _ExactSum,
        weight: _ExactSum,
        entropy: _ExactSum,
        hits: Iterable[int],
        rows: int,
        ignored: int,
    ) -> None:
        # Nothing is changed in place, so that a shallow copy is a copy.
        self._loss += loss
        self._weight_sum += weight
        self._entropy += entropy
        self._hits = {k: before + more for (k, before), more in zip(self._hits.items(), hits, strict=True)}
        self._rows += rows
        self._ignored += ignored

    def __repr__(self) -> str:
        options = ", ".join(f"{name}={_text(value)}" for name, value in self._options().items())
        return f"<Evaluator({options}): {self._rows} rows, {self._ignored} ignored>"

    def _options(self) -> dict[str, object]:
        return {
            "top_k": self._top_k,
            "weight": self._weight,
            "ignore_index": self._ignore_index,
            "label_smoothing": self._label_smoothing,
            "z_loss": self._z_loss,
            "softcap": self._softcap,
            "temperature": self._temperature,
            "axis": self._axis,
        }


def evaluate(
    logits: ArrayLike,
    targets: ArrayLike,
    *,
    top_k: Iterable[int] = (1, 5),
    weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    temperature: float = 1.0,
    axis: int = -1,
) -> Evaluation:
    """Evaluate logits: mean loss, perplexity, accuracy and entropy, in one pass over the memory.

    With ``z = logits / temperature`` and ``p = softmax(z)``: the loss is ``mean(logsumexp(z) - z[target])``,
    the perplexity ``exp(loss)`` and the entropy ``mean(-sum(p * ln(p)))``. The options are those of
    `cross_entropy`.

    Parameters
    ----------
    logits : array_like of float16, bfloat16, float32 or float64
        One row of logits for each target, the classes along `axis`; any number of other axes, including none.
    targets : array_like of integers
        The classes, in the shape of `logits` without `axis`.
    top_k, weight, ignore_index, label_smoothing, z_loss, softcap, temperature, axis
        As for `Evaluator`.
    sample_weight : array_like of real numbers, optional
        A weight for each row in the loss, in the shape of `targets`; by default 1. A row of
        weight 0 does not count; accuracy, `top_k` and entropy count all others alike.

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
    row_statistics : The figures of each row rather than their means.

    Notes
    -----
    The loss is that of ``torch.nn.functional.cross_entropy`` and the mean of
    ``optax.softmax_cross_entropy_with_integer_labels``; the perplexity is ``torchmetrics.text.Perplexity``.
    The accuracies are ``sklearn.metrics.top_k_accuracy_score`` and, but for ties,
    ``keras.metrics.SparseTopKCategoricalAccuracy``.

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
    evaluator = Evaluator(
        top_k=top_k,
        weight=weight,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        softcap=softcap,
        temperature=temperature,
        axis=axis,
    )
    evaluator.update(logits, targets, sample_weight=sample_weight)
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

    def over(self, divisor: _ExactSum) -> float:
        """Divide, with one rounding; NaN if the divisor is 0."""
        if divisor == _ExactSum():
            return math.nan
        if self.not_finite != 0.0 or divisor.not_finite != 0.0:
            return self._limit() / divisor._limit()
        try:
            return self.units / divisor.units
        except OverflowError:
            return self._limit() * divisor._limit() * math.inf

    def _limit(self) -> float:
        """Return what is not finite, or else the sign."""
        return self.not_finite or float((self.units > 0) - (self.units < 0))


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


def _equal(a: object, b: object) -> bool:
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return np.array_equal(a, b, equal_nan=True)
    return type(a) is type(b) and a == b


def _text(option: object) -> str:
    if isinstance(option, np.ndarray):
        return np.array2string(option, max_line_width=10**6, threshold=6, edgeitems=3, separator=", ")
    return repr(option)
