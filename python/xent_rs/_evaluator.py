"""How good a model's logits are: loss, perplexity, accuracy and entropy, batch by batch."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import _xent_rs
from ._accumulator import Accumulator, check_classes_seen
from ._arguments import is_read_in_slices, targets_at, with_arrays
from ._environment import in_default_environment
from ._evaluation import Evaluation
from ._evaluation_options import EvaluateOptions, EvaluatorOptions
from ._exact import NOTHING, ExactSum, exp, root_of_ratio, without_zeros
from ._head import Batch, Head, batches, check_classes, head_of, other_classes
from ._options import Options

if TYPE_CHECKING:
    from typing_extensions import Unpack


_EVALUATOR = Options("Evaluator", EvaluatorOptions)
_EVALUATE = Options("evaluate", EvaluateOptions)


@_EVALUATOR.describe
class Evaluator(Accumulator["_Sums"]):
    """Evaluate logits that come in batches, in any order and in any number of processes.

    With ``z = logits / temperature`` and ``p = softmax(z)`` each row has the loss ``logsumexp(z) -
    z[target]``, or that of `cross_entropy` with the same options, and the entropy ``-sum(p * ln(p))``. Their
    sums are exact (integers, in units of 2**-1074): however rows are cut into batches, in whatever order they
    come or evaluators are merged, on any number of threads, the result has the same bits. From hidden states,
    with `linear_weight`, the last bits of the logits depend on the batches and on NumPy's threads.

    All batches have the same number of classes. An evaluator can be pickled, and several threads may update
    it at once.

    Parameters
    ----------
    **options
        Those of `EvaluatorOptions` (`xent_rs._evaluation_options`).

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

    def __init__(self, **options: Unpack[EvaluatorOptions]) -> None:
        super().__init__(_EVALUATOR, options)

    @property
    def _ks(self) -> tuple[int, ...]:
        """For which numbers k hits are counted: for 1, whose share is the accuracy, asked for or not."""
        return tuple(sorted({1, *self._options["top_k"]}))

    def _nothing(self) -> _Sums:
        return _Sums(hits=(0,) * len(self._ks))

    def update(
        self,
        logits: ArrayLike,
        targets: ArrayLike,
        *,
        sample_weight: ArrayLike | None = None,
        linear_weight: ArrayLike | None = None,
        linear_bias: ArrayLike | None = None,
    ) -> None:
        """Add a batch.

        Parameters
        ----------
        logits : array_like of float16, bfloat16, float32 or float64
            One row of logits for each target, the classes along `axis`; any number of other axes, including
            none. With `linear_weight` hidden states, the features along `axis`.
        targets : array_like of integers
            The classes, in the shape of `logits` without `axis`.
        sample_weight : array_like of real numbers, optional
            A weight for each row in the loss, in the shape of `targets`; by default 1. A row of
            weight 0 does not count; accuracy, `top_k` and entropy count all others alike.
        linear_weight, linear_bias : array_like of float16, bfloat16, float32 or float64, optional
            The head that makes logits of hidden states, as for `evaluate`.

        Raises
        ------
        TypeError, ValueError
            If a dtype or a shape is not as described, or if the batches before had another number of
            classes. The evaluator is then as it was before.
        IndexError
            If a target is neither a class nor `ignore_index`. The evaluator is then as it was before.
        """
        if linear_weight is not None:
            logits = _xent_rs.as_array(logits, "logits")
        head = head_of(logits, "logits", self._axis, linear_weight, linear_bias)
        if head is None:
            self._include(self._seen(logits, targets, sample_weight, self._axis))
        else:
            self._add(cast("NDArray[Any]", logits), targets, sample_weight, head)

    def _add(
        self,
        hidden: NDArray[Any],
        targets: ArrayLike,
        sample_weight: ArrayLike | None,
        head: Head,
        then: Callable[[Batch], object] = lambda batch: None,
    ) -> None:
        """Add hidden states; `then` gets each batch of logits that is counted."""
        check_classes(hidden, "logits", head, self._axis, self._sums.classes)

        def seen(batch: Batch) -> _Sums:
            sums = self._seen(batch.logits[0], batch.targets, batch.sample_weight, -1)
            then(batch)
            return sums

        of_rows = batches(
            [(hidden, head)],
            self._axis,
            _xent_rs.as_array(targets, "targets"),
            None if sample_weight is None else _xent_rs.as_array(sample_weight, "sample_weight"),
            self._ignore_index,
            lambda logits, labels, weights, axis: self._seen(logits[0], labels, weights, axis),
        )
        self._include(functools.reduce(operator.add, map(seen, of_rows)))

    def _seen(
        self, logits: ArrayLike, targets: ArrayLike | None, sample_weight: ArrayLike | None, axis: int
    ) -> _Sums:
        """Return what logits add."""
        sums, weights, hits, rows, ignored, nan_rows, classes = _xent_rs.evaluate(
            logits,
            cast(ArrayLike, targets),
            self._ks,
            _EVALUATE,
            {**self._options, "axis": axis, "sample_weight": sample_weight},
        )
        if self._sums.classes not in (None, classes):
            raise other_classes("logits have", classes, axis, self._sums.classes)
        loss, squared_loss, entropy = map(ExactSum.of_bytes, sums)
        count = ExactSum.of_count(rows)
        # Without weights they are 1.
        weight, squared_weight, product = (
            (count, count, loss) if weights is None else map(ExactSum.of_bytes, weights)
        )
        return _Sums(
            loss,
            squared_loss,
            entropy,
            weight,
            squared_weight,
            product,
            tuple(hits),
            rows,
            ignored,
            nan_rows,
            classes,
        )

    def _update_rows(
        self,
        classes: int,
        losses: NDArray[np.float64],
        weights: NDArray[np.float64],
        entropies: NDArray[np.float64],
        ranks: NDArray[np.int64],
        ignored: int,
    ) -> None:
        """Add rows that count, of which all is known, the weighted losses and the weights among it.

        A row without a softmax has the rank -1.
        """
        with np.errstate(over="ignore", invalid="ignore"):  # a square may be infinite: there is no error then
            products = losses * losses, weights * weights, weights * losses
        squared_loss, squared_weight, product = map(ExactSum.of_values, products)
        seen = _Sums(
            loss=ExactSum.of_values(losses),
            squared_loss=squared_loss,
            entropy=ExactSum.of_values(entropies),
            weight=ExactSum.of_values(weights),
            squared_weight=squared_weight,
            product=product,
            hits=tuple(int(np.count_nonzero((ranks >= 0) & (ranks < k))) for k in self._ks),
            rows=len(losses),
            ignored=ignored,
            nan_rows=int(np.count_nonzero(np.isnan(losses) | np.isnan(entropies))),
            classes=classes,
        )
        self._include(seen)

    @in_default_environment
    def result(self) -> Evaluation:
        """Return the means over everything seen so far.

        Returns
        -------
        Evaluation
            The means; NaN where no row counts.
        """
        sums = self._sums
        loss = sums.loss.over(sums.weight)
        shares = {
            k: count / sums.rows if sums.rows else math.nan
            for k, count in zip(self._ks, sums.hits, strict=True)
        }
        return Evaluation(
            loss=loss,
            perplexity=exp(loss),
            bits=loss / math.log(2.0),
            accuracy=shares[1],
            top_k={k: shares[k] for k in self._options["top_k"]},
            entropy=sums.entropy.over(ExactSum.of_count(sums.rows)),
            rows=sums.rows,
            ignored=sums.ignored,
            nan_rows=sums.nan_rows,
            loss_error=sums.loss_error(),
        )

    def _counted(self) -> dict[str, Any]:
        """Return what was seen, in types that JSON has."""
        return self._sums.as_json()

    def _go_on_from(self, counted: Any) -> None:
        """Take up what `_counted` of an evaluator with the same options gave; refuse anything else."""
        self._sums = _Sums.from_json(counted, len(self._ks))


@_EVALUATE.describe
def evaluate(logits: ArrayLike, targets: ArrayLike, **options: Unpack[EvaluateOptions]) -> Evaluation:
    """Evaluate logits: mean loss, perplexity, accuracy and entropy, in one pass over the memory.

    With ``z = logits / temperature`` and ``p = softmax(z)``: the loss is ``mean(logsumexp(z) - z[target])``,
    the perplexity ``exp(loss)`` [1]_ and the entropy ``mean(-sum(p * ln(p)))``. The options are those of
    `cross_entropy`.

    Parameters
    ----------
    logits : array_like of float16, bfloat16, float32 or float64
        One row of logits for each target, the classes along `axis`; any number of other axes, including none.
        What is not in memory but has slices, such as an array of files, Zarr, h5py, Dask or xarray, is walked
        over block by block (`xent_rs.io.row_blocks`), and so are its targets. With `linear_weight` hidden
        states, the features along `axis`.
    targets : array_like of integers
        The classes, in the shape of `logits` without `axis`.
    **options
        Those of `EvaluateOptions` (`xent_rs._evaluation_options`).

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
    The accuracies are, but for ties, ``sklearn.metrics.top_k_accuracy_score`` and
    ``keras.metrics.SparseTopKCategoricalAccuracy``. Of equal logits the first class counts as larger here, as
    for `numpy.argmax`; for scikit-learn the last does, and Keras counts all that equal the k-th largest.

    With `linear_weight` the logits are never all in memory: those of 256 rows are, and 32 MiB of converted
    weights. (Of weights of 16 bits, or others that are no plain float32 or float64 matrix, up to 1,024 rows,
    as long as these have at most 256 MiB.) For rows that do not count there is no product. The products are
    those of `numpy.matmul`, in float64 if hidden states or weights are float64 and in float32 otherwise, into
    which 16 bits are converted exactly. So the last bits are those of NumPy's matrix library: its kernels,
    the number of its threads, and how rows are cut into batches change them. With u = 2**-24 (2**-53) a logit
    is wrong by at most ``(K + 1) * u / (1 - (K + 1) * u)`` times ``sum(abs(h * w)) + abs(bias)`` [2]_, and a
    loss by twice as much, over the temperature.

    References
    ----------
    .. [1] F. Jelinek et al., "Perplexity - a measure of the difficulty of speech recognition tasks",
       J. Acoust. Soc. Am. 62, S63 (1977).
    .. [2] N. J. Higham, "Accuracy and stability of numerical algorithms", 2nd ed., SIAM 2002, chapter 3.

    Examples
    --------
    >>> import numpy as np
    >>> from xent_rs import evaluate
    >>> logits = np.log(np.array([[8, 4, 2, 2], [1, 8, 4, 3]], np.float32))
    >>> result = evaluate(logits, [0, 2], top_k=(1, 2))
    >>> round(result.bits, 6), round(result.perplexity, 6), result.accuracy, result.top_k
    (1.5, 2.828427, 0.5, {1: 0.5, 2: 1.0})

    From hidden states and the last layer:

    >>> hidden, layer = np.array([[3.0, 0.0], [0.0, 1.0]]), np.array([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]])
    >>> evaluate(hidden, [0, 1], linear_weight=layer) == evaluate(hidden @ layer.T, [0, 1])
    True
    """
    given = with_arrays(options)
    linear_weight, linear_bias = (given.pop(name, None) for name in ("linear_weight", "linear_bias"))
    _EVALUATE.check(given)
    sample_weight = given.pop("sample_weight", None)
    evaluator = Evaluator(**given)
    if not is_read_in_slices(logits):
        evaluator.update(
            logits,
            targets,
            sample_weight=sample_weight,
            linear_weight=linear_weight,
            linear_bias=linear_bias,
        )
        return evaluator.result()

    from .io import SlicedArray, row_blocks  # here, for it takes longer to import than all the rest

    lazy = cast(SlicedArray, logits)
    labels = (
        cast(SlicedArray, targets) if is_read_in_slices(targets) else _xent_rs.as_array(targets, "targets")
    )
    head = head_of(lazy, "logits", evaluator._axis, linear_weight, linear_bias)
    for position, *block in row_blocks(lazy, labels, sample_weight, axis=evaluator._axis):
        update_at(evaluator, position, *block, head=head)
    return evaluator.result()


def update_at(
    evaluator: Evaluator,
    position: tuple[int, ...],
    logits: NDArray[Any],
    targets: NDArray[Any],
    sample_weight: NDArray[Any] | None = None,
    *,
    head: Head | None = None,
    then: Callable[[Batch], object] = lambda batch: None,
) -> None:
    """Add a block of larger arrays; a target that is no class is named by its place in them.

    With a head the block is of hidden states. `then` gets all logits that are counted, in batches then.
    """
    classes = logits.shape[evaluator._axis] if head is None else head.classes
    with targets_at(position, targets, classes, evaluator._ignore_index):
        if head is None:
            evaluator.update(logits, targets, sample_weight=sample_weight)
            then(Batch(slice(None), (logits,), targets, sample_weight))
        else:
            evaluator._add(logits, targets, sample_weight, head, then)


@dataclass(frozen=True)
class _Sums:
    """What an evaluator has seen, in one value: what interrupts an update comes before or after all of it."""

    loss: ExactSum = NOTHING
    squared_loss: ExactSum = NOTHING
    entropy: ExactSum = NOTHING
    weight: ExactSum = NOTHING
    squared_weight: ExactSum = NOTHING
    # Of each row's weight and its weighted loss.
    product: ExactSum = NOTHING
    hits: tuple[int, ...] = ()
    rows: int = 0
    ignored: int = 0
    nan_rows: int = 0
    classes: int | None = None

    def __add__(self, other: _Sums) -> _Sums:
        sums = {name: getattr(self, name) + getattr(other, name) for name in _EXACT}
        return _Sums(
            **sums,
            hits=tuple(a + b for a, b in zip(self.hits, other.hits, strict=True)),
            rows=self.rows + other.rows,
            ignored=self.ignored + other.ignored,
            nan_rows=self.nan_rows + other.nan_rows,
            classes=other.classes if self.classes is None else self.classes,
        )

    def check_like(self, other: _Sums) -> None:
        check_classes_seen(other.classes, self.classes)

    def loss_error(self) -> float:
        """Return the standard error of the mean loss, of rows that are independent of each other.

        With weighted losses l and weights w of n rows, and the mean m, it is the root of
        ``n / (n - 1) * sum((l - m * w)**2) / sum(w)**2``.
        """
        if self.rows < 2 or not self.weight.units or any(getattr(self, name).not_finite for name in _EXACT):
            return math.nan
        # Most of the thousand bits behind the point are 0.
        loss, weight, first = without_zeros(self.loss, self.weight)
        square, square_of_weight, product, second = without_zeros(
            self.squared_loss, self.squared_weight, self.product
        )
        spread = square * weight**2 - 2 * loss * product * weight + loss**2 * square_of_weight
        # What is below the smallest number is lost of squares: a sum that should be 0 may be less.
        dividend, divisor = self.rows * max(spread, 0), (self.rows - 1) * weight**4
        return root_of_ratio(dividend, divisor, second - 2 * first)

    def as_json(self) -> dict[str, Any]:
        return {
            **{name: getattr(self, name).as_json() for name in _EXACT},
            "hits": list(self.hits),
            "rows": self.rows,
            "ignored": self.ignored,
            "nan_rows": self.nan_rows,
            "classes": self.classes,
        }

    @classmethod
    def from_json(cls, value: Any, ks: int) -> _Sums:
        match value:
            case {
                "hits": [*hits],
                "rows": rows,
                "ignored": ignored,
                "nan_rows": nan_rows,
                "classes": classes,
                **sums,
            } if (
                len(hits) == ks
                and sums.keys() == set(_EXACT)
                and all(
                    type(count) is int and count >= 0 for count in (*hits, rows, ignored, nan_rows, classes)
                )
            ):
                exact = {name: ExactSum.from_json(sums[name]) for name in _EXACT}
                return cls(
                    **exact,
                    hits=tuple(hits),
                    rows=rows,
                    ignored=ignored,
                    nan_rows=nan_rows,
                    classes=classes,
                )
        raise ValueError(f"expected sums of an evaluator and hits for {ks} numbers k")


_EXACT = ("loss", "squared_loss", "entropy", "weight", "squared_weight", "product")
