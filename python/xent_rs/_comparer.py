"""How far one model's logits are from another's: divergence, and the change of loss and probability."""

from __future__ import annotations

import functools
import json
import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import _xent_rs
from ._arguments import (
    are_equal,
    class_weight,
    group_labels,
    is_read_in_slices,
    row_shape,
    targets_at,
    text_of,
    with_arrays,
)
from ._calibration import NO_BINS, CalibrationBins
from ._comparison import ComparedModel, Comparison, GroupComparison
from ._environment import in_default_environment
from ._estimates import Estimate, Floats, Label, RowGroups, WeightedSums, times
from ._exact import NOTHING, ExactSum, exp
from ._head import Batch, Head, batches, check_classes, heads_of_two, other_classes
from ._options import CompareOptions, ComparerOptions, Options
from ._quantiles import RowValues

if TYPE_CHECKING:
    from typing_extensions import Unpack

_COMPARER = Options("Comparer", ComparerOptions)
_COMPARE = Options("compare", CompareOptions)


@_COMPARER.describe
class Comparer:
    """Compare the logits of two models that come in batches, in any order and in any number of processes.

    Sums are exact: however rows are cut into batches, in whatever order these come or comparers are merged,
    on any number of threads, the result has the same bits. From hidden states, with `linear_weight`, the last
    bits of the logits depend on the batches and on NumPy's threads. All batches have the same number of
    classes, and either all have targets (and groups) or none has. A comparer can be pickled. It is not meant
    to be updated by several threads at once: give each its own and merge them.

    For quantiles it keeps the divergence of each row and, with targets, the change of probability: 8 bytes a
    row, 84 MB for 10.5 million rows. With groups it keeps a few sums of each group besides, some kilobytes.

    Parameters
    ----------
    **options
        Those of `ComparerOptions` (`xent_rs._options`).

    Raises
    ------
    TypeError
        If an option is not of the type described.
    ValueError
        If an option is out of its range.

    See Also
    --------
    compare : The same of arrays that are at hand, and what the figures are.

    Examples
    --------
    >>> import numpy as np
    >>> from xent_rs import Comparer
    >>> reference = np.log([[0.5, 0.5], [0.25, 0.75], [0.5, 0.5]])
    >>> candidate = np.log([[0.5, 0.5], [0.75, 0.25], [0.25, 0.75]])
    >>> first, second = Comparer(), Comparer()
    >>> first.update(reference[:2], candidate[:2], [0, 1])
    >>> second.update(reference[2:], candidate[2:], [1])
    >>> result = first.merge(second).result()
    >>> result.rows, round(result.kl.value, 4), round(result.delta_p.value, 4)
    (3, 0.231, -0.0833)
    """

    def __init__(self, **options: Unpack[ComparerOptions]) -> None:
        given = with_arrays(options)
        _COMPARER.check(given)
        given = {**_COMPARER.defaults, **given}
        softcap = given["softcap"]
        self._weight = class_weight(given["weight"])
        self._ignore_index = operator.index(given["ignore_index"])
        self._softcap = None if softcap is None else float(softcap)
        self._temperature = float(given["temperature"])
        self._axis = operator.index(given["axis"])
        self._sums: _Sums | None = None

    def update(
        self,
        reference: ArrayLike,
        candidate: ArrayLike,
        targets: ArrayLike | None = None,
        *,
        sample_weight: ArrayLike | None = None,
        groups: ArrayLike | None = None,
        linear_weight: ArrayLike | tuple[ArrayLike | None, ArrayLike | None] | None = None,
        linear_bias: ArrayLike | tuple[ArrayLike | None, ArrayLike | None] | None = None,
    ) -> None:
        """Add a batch.

        Parameters
        ----------
        reference, candidate : array_like of float16, bfloat16, float32 or float64
            The logits of both models, in dtypes of their own: one shape, with the classes along `axis`. With
            `linear_weight` hidden states, the features along `axis`.
        targets : array_like of integers, optional
            The classes, in the shape of `reference` without `axis`.
        sample_weight : array_like of real numbers, optional
            A weight for each row, in the same shape; by default 1. A row of weight 0 does not count.
        groups : array_like of integers or strings, optional
            The group of each row, in the same shape.
        linear_weight, linear_bias : array_like of float16, bfloat16, float32 or float64, or a tuple of two
            The head that makes logits of hidden states, or each model's own, as for `compare`.

        Raises
        ------
        TypeError, ValueError
            If a dtype or a shape is not as described, or if the batches before had another number of classes,
            or had targets or groups where this one has not. The comparer is then as it was before.
        IndexError
            If a target is neither a class nor `ignore_index`. The comparer is then as it was before.
        """
        if not hasattr(reference, "shape") or linear_weight is not None:
            reference = _xent_rs.as_array(reference, "reference")
        if linear_weight is not None:
            candidate = _xent_rs.as_array(candidate, "candidate")
        models = (reference, "reference"), (candidate, "candidate")
        heads = heads_of_two(models, self._axis, linear_weight, linear_bias)
        self._add(reference, candidate, targets, sample_weight, groups, heads)

    def _add(
        self,
        reference: ArrayLike,
        candidate: ArrayLike,
        targets: ArrayLike | None,
        sample_weight: ArrayLike | None,
        groups: ArrayLike | None,
        heads: Sequence[Head | None],
    ) -> None:
        """Add logits or, with heads, hidden states of one model or of both."""
        self._check_kind(targets=targets is not None, groups=groups is not None)
        if targets is None and self._weight is not None:
            raise ValueError("weight is given without targets; expected targets, whose classes it weights")
        labels = None if groups is None else group_labels(groups, row_shape(reference, self._axis))
        class_targets = None if targets is None else _xent_rs.as_array(targets, "targets")
        row_weight = None if sample_weight is None else _xent_rs.as_array(sample_weight, "sample_weight")
        if not any(heads):
            seen = self._seen((reference, candidate), class_targets, row_weight, self._axis, labels)
        else:
            arrays = (_xent_rs.as_array(reference, "reference"), _xent_rs.as_array(candidate, "candidate"))
            before = None if self._sums is None else self._sums.classes
            check_classes(arrays[0], "reference", heads[0], self._axis, before)
            of_rows = batches(
                [*zip(arrays, heads, strict=True)],
                self._axis,
                class_targets,
                row_weight,
                self._ignore_index,
                self._seen,
            )

            def seen_of(batch: Batch) -> _Sums:
                some_labels = None if labels is None else labels.reshape(-1)[batch.rows]
                return self._seen(batch.logits, batch.targets, batch.sample_weight, -1, some_labels)

            seen = functools.reduce(operator.add, map(seen_of, of_rows))
        self._sums = seen if self._sums is None else self._sums + seen

    def _seen(
        self,
        logits: tuple[ArrayLike, ...],
        targets: NDArray[Any] | None,
        sample_weight: NDArray[Any] | None,
        axis: int,
        labels: NDArray[Any] | None = None,
    ) -> _Sums:
        """Return what the logits of both models add."""
        reference, candidate = logits
        classes, counts, kl, reverse_kl, js, same_top, of_reference, of_candidate = _xent_rs.compare_rows(
            reference,
            candidate,
            targets,
            _COMPARE,
            {**self._options(), "axis": axis, "sample_weight": sample_weight},
        )
        if self._sums is not None and self._sums.classes != classes:
            raise other_classes("reference has", classes, axis, self._sums.classes)
        models = ModelRows(*of_reference), ModelRows(*of_candidate)
        rows = ComparedRows(counts, kl, reverse_kl, js, same_top, *models)
        return _summed(classes, rows, targets, self._weight, sample_weight, labels)

    def _update_rows(
        self,
        classes: int,
        rows: ComparedRows,
        targets: NDArray[Any] | None,
        sample_weight: NDArray[Any] | None,
        labels: NDArray[Any] | None,
    ) -> None:
        """Add rows of which all is known."""
        seen = _summed(classes, rows, targets, self._weight, sample_weight, labels)
        self._sums = seen if self._sums is None else self._sums + seen

    def merge(self, other: Comparer) -> Comparer:
        """Add everything that another comparer has seen.

        Parameters
        ----------
        other : Comparer
            A comparer with the same options; it stays as it is.

        Returns
        -------
        Comparer
            This comparer.

        Raises
        ------
        TypeError
            If `other` is not a comparer.
        ValueError
            If `other` has other options, or has seen another number of classes, or targets or groups where
            this one has not.
        """
        if not isinstance(other, Comparer):
            raise TypeError(f"other is a {type(other).__name__}; expected a Comparer")
        for name, expected in self._options().items():
            found = other._options()[name]
            if not are_equal(found, expected):
                raise ValueError(f"other has {name} {text_of(found)}; expected {text_of(expected)}")
        mine, theirs = self._sums, other._sums
        if theirs is not None:
            if mine is not None:
                if theirs.classes != mine.classes:
                    raise ValueError(
                        f"other has seen logits of {theirs.classes} classes; expected {mine.classes}"
                    )
                for what in ("targets", "groups"):
                    found, expected = getattr(theirs, f"has_{what}"), getattr(mine, f"has_{what}")
                    if found != expected:
                        said = "with" if found else "without"
                        wanted = "with them" if expected else "without them"
                        raise ValueError(f"other has seen logits {said} {what}; expected {wanted}")
            self._sums = theirs if mine is None else mine + theirs
        return self

    @in_default_environment
    def result(self) -> Comparison:
        """Return the figures over everything seen so far.

        Returns
        -------
        Comparison
            The figures; NaN where no row counts.
        """
        return (self._sums or _Sums.of_nothing()).result()

    def _check_kind(self, **given: bool) -> None:
        """Refuse a batch that has targets or groups where those before had none, or the other way round."""
        for what, is_given in given.items():
            if self._sums is not None and getattr(self._sums, f"has_{what}") != is_given:
                found, expected = ("given", "none") if is_given else ("missing", "them")
                raise ValueError(f"{what} are {found}; expected {expected}, as in the batches before")

    def __repr__(self) -> str:
        options = ", ".join(f"{name}={text_of(value)}" for name, value in self._options().items())
        sums = self._sums or _Sums.of_nothing()
        return f"<Comparer({options}): {sums.rows} rows, {sums.ignored} ignored>"

    def __dask_tokenize__(self) -> tuple[object, ...]:
        """Return what Dask makes names of: the rows' values in their order, as they came."""
        return type(self).__qualname__, self._options(), None if self._sums is None else self._counted()

    def _options(self) -> dict[str, object]:
        return {
            "weight": self._weight,
            "ignore_index": self._ignore_index,
            "softcap": self._softcap,
            "temperature": self._temperature,
            "axis": self._axis,
        }

    def _values(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return the divergence of each row and, with targets, the change of probability, in any order."""
        sums = self._sums or _Sums.of_nothing()
        return sums.kl.all(), sums.delta_p.all()

    def _rows_seen(self) -> int:
        """Return the number of rows, ignored ones included."""
        sums = self._sums or _Sums.of_nothing()
        return sums.rows + sums.ignored

    def _counted(self) -> bytes:
        """Return what was seen, for `_go_on_from`: a line of JSON, and the values of the rows."""
        assert self._sums is not None
        return self._sums.as_bytes()

    def _go_on_from(self, counted: bytes) -> None:
        """Add what `_counted` of a comparer with the same options gave; refuse anything else."""
        seen = _Sums.from_bytes(counted)
        self._sums = seen if self._sums is None else self._sums + seen


@_COMPARE.describe
def compare(
    reference: ArrayLike,
    candidate: ArrayLike,
    targets: ArrayLike | None = None,
    **options: Unpack[CompareOptions],
) -> Comparison:
    r"""Compare the logits of two models, such as one and its quantised twin, in one pass over both.

    With the probabilities p of the reference and q of the candidate, the softmax of ``logits / temperature``,
    a row's divergence is :math:`\mathrm{KL}(p \| q) = \sum_c p_c \log (p_c / q_c)`, and with a target y the
    change of its probability is :math:`q_y - p_y` and that of the loss :math:`\log p_y - \log q_y`. A figure
    is the mean over rows with its standard error, that of a change being paired.

    Parameters
    ----------
    reference, candidate : array_like of float16, bfloat16, float32 or float64
        The logits of both models, in dtypes of their own: one shape, with the classes along `axis` and any
        number of other axes. What is not in memory but has slices, such as an array of files, Zarr, h5py,
        Dask or xarray, is walked over block by block (`xent_rs.io.paired_row_blocks`), and so is all else.
        With `linear_weight` hidden states, the features along `axis`.
    targets : array_like of integers, optional
        The classes, in the shape of `reference` without `axis`. Without them there is no loss, and no change
        of probability.
    **options
        Those of `CompareOptions` (`xent_rs._options`).

    Returns
    -------
    Comparison
        The figures; NaN where no row counts.

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
    Comparer : The same for logits that come in batches.
    kl_divergence : The divergence alone, with its gradient; there the model comes first.

    Notes
    -----
    The divergence is summed as :math:`\sum_c p_c (e^{d_c} - 1 - d_c)` with :math:`d_c = \log q_c - \log p_c`,
    which is the same, for p and q both add up to 1: no term is negative, and small divergences keep their
    digits. A class that the reference excludes (``-inf``) costs its mass in the candidate; one that the
    candidate alone excludes costs infinity.

    With n rows, weights w and a figure x of each row the mean is ``m = sum(w * x) / sum(w)`` and its standard
    error ``sqrt(n / (n - 1) * sum((w * x - m * w)**2)) / sum(w)``, without weights the sample's standard
    deviation over ``sqrt(n)``. With `groups` it is the same of the groups' sums, the cluster-robust error
    [2]_: neighbouring tokens depend on each other, and the error for independent rows is then too small.
    Errors of a perplexity, of a ratio and of a root mean square are those of the mean in them, times the
    derivative. Quantiles are exact, of values that are kept as float32, linear between neighbours.

    From hidden states the logits are made as `evaluate` makes them: some rows at a time, by `numpy.matmul`,
    with its errors and its bits. Two models of equal numbers have a divergence of 0 then, too, in whatever
    dtypes, if their weights lie in memory in the same order, classes first or features first.

    The figures are those of llama.cpp's ``llama-perplexity --kl-divergence``, without its 16-bit storage.
    ``torch.nn.functional.kl_div``, ``keras.losses.KLDivergence`` and ``optax.kl_divergence`` have the mean
    divergence alone; scikit-learn has ``sklearn.metrics.log_loss`` of each model. The divergence is from
    [1]_, the calibration error from [3]_.

    References
    ----------
    .. [1] S. Kullback, R. A. Leibler, "On information and sufficiency", Annals of Mathematical Statistics
       22(1), 1951.
    .. [2] K.-Y. Liang, S. L. Zeger, "Longitudinal data analysis using generalized linear models",
       Biometrika 73(1), 1986.
    .. [3] C. Guo et al., "On calibration of modern neural networks", ICML 2017, arXiv:1706.04599.

    Examples
    --------
    >>> import math, numpy as np
    >>> from xent_rs import compare
    >>> reference = np.log(np.array([[8, 4, 2, 2], [1, 8, 4, 3]]) / 16)
    >>> candidate = np.log(np.array([[4, 8, 2, 2], [1, 8, 4, 3]]) / 16)
    >>> result = compare(reference, candidate, [0, 1])
    >>> round(result.kl.value / math.log(2), 4), round(result.kl_max / math.log(2), 4), result.same_top.value
    (0.125, 0.25, 0.5)
    >>> round(result.perplexity_ratio.value, 4), round(result.delta_p.value, 4)
    (1.4142, -0.125)

    From hidden states and the last layer of each model:

    >>> hidden, layer = np.array([[3.0, 0.0], [0.0, 1.0]]), np.array([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]])
    >>> compare(hidden, hidden.astype(np.float32), [0, 1], linear_weight=(layer, layer / 2)).same_top.value
    1.0
    """
    given = with_arrays(options)
    groups, sample_weight = given.pop("groups", None), given.pop("sample_weight", None)
    linear_weight, linear_bias = (given.pop(name, None) for name in ("linear_weight", "linear_bias"))
    _COMPARE.check({**given, "sample_weight": sample_weight})
    comparer = Comparer(**cast(ComparerOptions, given))
    if not (is_read_in_slices(reference) or is_read_in_slices(candidate)):
        comparer.update(
            reference,
            candidate,
            targets,
            sample_weight=sample_weight,
            groups=groups,
            linear_weight=linear_weight,
            linear_bias=linear_bias,
        )
        return comparer.result()

    from .io import SlicedArray, paired_row_blocks  # here, for it takes longer to import than all the rest

    def sliced(value: object, name: str) -> SlicedArray:
        in_slices = is_read_in_slices(value)
        return cast(SlicedArray, value if in_slices else _xent_rs.as_array(cast(ArrayLike, value), name))

    pair = sliced(reference, "reference"), sliced(candidate, "candidate")
    models = [*zip(pair, ("reference", "candidate"), strict=True)]
    heads = heads_of_two(models, comparer._axis, linear_weight, linear_bias)
    blocks = paired_row_blocks(
        *pair,
        None if targets is None else sliced(targets, "targets"),
        None if sample_weight is None else sliced(sample_weight, "sample_weight"),
        cast(SlicedArray, groups)
        if groups is None or is_read_in_slices(groups)
        else group_labels(cast(ArrayLike, groups), None),
        axis=comparer._axis,
        same_classes=not any(heads),
    )
    for block in blocks:
        compare_at(comparer, *block, heads=heads)
    return comparer.result()


def compare_at(
    comparer: Comparer,
    position: tuple[int, ...],
    reference: NDArray[Any],
    candidate: NDArray[Any],
    targets: NDArray[Any] | None,
    sample_weight: NDArray[Any] | None,
    groups: NDArray[Any] | None,
    *,
    heads: Sequence[Head | None] = (None, None),
) -> None:
    """Add a block of larger arrays; a target that is no class is named by its place in them.

    With heads the block is of hidden states, of each model that has one.
    """
    classes = reference.shape[comparer._axis] if heads[0] is None else heads[0].classes
    with targets_at(position, targets, classes, comparer._ignore_index):
        if not any(heads):
            comparer.update(reference, candidate, targets, sample_weight=sample_weight, groups=groups)
        else:
            comparer._add(reference, candidate, targets, sample_weight, groups, heads)


@dataclass(frozen=True)
class ModelRows:
    """What the compiled module says of one model in each row."""

    loss: Floats
    entropy: Floats
    max_probability: Floats
    hit: NDArray[np.bool_]


@dataclass(frozen=True)
class ComparedRows:
    """What it says of both."""

    counts: NDArray[np.bool_]
    kl: Floats
    reverse_kl: Floats
    jensen_shannon: Floats
    same_top: NDArray[np.bool_]
    reference: ModelRows
    candidate: ModelRows


@dataclass(frozen=True)
class _ModelSums:
    """What one model has by itself; the bins are empty without targets."""

    entropy: ExactSum = NOTHING
    calibration: CalibrationBins = NO_BINS

    def __add__(self, other: _ModelSums) -> _ModelSums:
        return _ModelSums(self.entropy + other.entropy, self.calibration + other.calibration)


# The columns of `_Sums.together` and of `_Sums.losses`.
_KL, _REVERSE_KL, _JENSEN_SHANNON, _SAME_TOP, _DELTA_P, _SQUARED_DELTA_P = range(6)
_REFERENCE, _CANDIDATE, _CHANGE = range(3)


@dataclass(frozen=True)
class _Sums:
    """What a comparer has seen, in one value: what interrupts an update comes before or after all of it.

    Means of both models together weight rows by their sample weights; those of losses by these times the
    weights of the targets' classes.
    """

    classes: int
    has_targets: bool
    has_groups: bool
    rows: int
    ignored: int
    together: WeightedSums
    losses: WeightedSums
    reference: _ModelSums
    candidate: _ModelSums
    kl: RowValues
    delta_p: RowValues

    @classmethod
    def of_nothing(cls) -> _Sums:
        return cls(
            0,
            has_targets=False,
            has_groups=False,
            rows=0,
            ignored=0,
            together=WeightedSums.of_nothing(4),
            losses=WeightedSums.of_nothing(0),
            reference=_ModelSums(),
            candidate=_ModelSums(),
            kl=RowValues(),
            delta_p=RowValues(),
        )

    @in_default_environment
    def __add__(self, other: _Sums) -> _Sums:
        names = ("rows", "ignored", "together", "losses", "reference", "candidate", "kl", "delta_p")
        added = {name: getattr(self, name) + getattr(other, name) for name in names}
        return _Sums(self.classes, self.has_targets, self.has_groups, **added)

    def result(self) -> Comparison:
        together = self.together
        kl_min, kl_max = self.kl.bounds()
        figures: dict[str, Any] = self._of_targets() if self.has_targets else {}
        if self.has_groups:
            figures["by_group"] = self._by_group()
        return Comparison(
            rows=self.rows,
            ignored=self.ignored,
            kl=together.estimate(_KL),
            kl_min=kl_min,
            kl_max=kl_max,
            kl_quantiles=self.kl.quantiles(),
            reverse_kl=together.estimate(_REVERSE_KL),
            jensen_shannon=together.estimate(_JENSEN_SHANNON),
            same_top=together.estimate(_SAME_TOP),
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
            return ComparedModel(entropy)
        loss = self.losses.estimate(column)
        hits = sum(sums.calibration.hits)
        return ComparedModel(
            entropy,
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
        models = {
            name: [model.entropy.as_json(), model.calibration.as_json()]
            for name, model in (("reference", self.reference), ("candidate", self.candidate))
        }
        line = {
            "classes": self.classes,
            "has_targets": self.has_targets,
            "has_groups": self.has_groups,
            "rows": self.rows,
            "ignored": self.ignored,
            "together": self.together.as_json(),
            "losses": self.losses.as_json(),
            **models,
            "bounds": [values.as_json() for values in (self.kl, self.delta_p)],
        }
        values = b"".join(of_rows.all().astype("<f4").tobytes() for of_rows in (self.kl, self.delta_p))
        return json.dumps(line).encode() + b"\n" + values

    @classmethod
    def from_bytes(cls, data: bytes) -> _Sums:
        line, _, values = data.partition(b"\n")
        match json.loads(line):
            case {
                "classes": int(classes),
                "has_targets": bool(has_targets),
                "has_groups": bool(has_groups),
                "rows": int(rows),
                "ignored": int(ignored),
                "together": together,
                "losses": losses,
                "reference": [first_entropy, first_bins],
                "candidate": [second_entropy, second_bins],
                "bounds": [kl, delta_p],
            } if min(classes, rows, ignored) >= 0 and len(values) == 4 * rows * (1 + has_targets):
                return cls(
                    classes,
                    has_targets,
                    has_groups,
                    rows,
                    ignored,
                    WeightedSums.from_json(together, 6 if has_targets else 4),
                    WeightedSums.from_json(losses, 3 if has_targets else 0),
                    _ModelSums(ExactSum.from_json(first_entropy), CalibrationBins.from_json(first_bins)),
                    _ModelSums(ExactSum.from_json(second_entropy), CalibrationBins.from_json(second_bins)),
                    RowValues.from_json(kl, values[: 4 * rows]),
                    RowValues.from_json(delta_p, values[4 * rows :]),
                )
        raise ValueError("expected what a comparer has counted")


@in_default_environment
def _summed(
    classes: int,
    rows: ComparedRows,
    targets: NDArray[Any] | None,
    weight: NDArray[np.float64] | None,
    sample_weight: NDArray[Any] | None,
    labels: NDArray[Any] | None,
) -> _Sums:
    """Sum what the rows that count have."""
    # Mostly all rows count: then nothing is copied.
    counts = slice(None) if rows.counts.all() else rows.counts
    row_weight = None if sample_weight is None else _flat(sample_weight)[counts].astype(np.float64)
    groups = None if labels is None else RowGroups.of(labels.reshape(-1)[counts])
    columns = [column[counts] for column in (rows.kl, rows.reverse_kl, rows.jensen_shannon)]
    # A row of NaN has no top class, and no entropy.
    ranked = ~np.isnan(rows.reference.entropy + rows.candidate.entropy)
    columns.append((rows.same_top & ranked)[counts].astype(np.float64))
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
    return _Sums(
        classes,
        has_targets=targets is not None,
        has_groups=labels is not None,
        rows=int(np.count_nonzero(rows.counts)),
        ignored=int(np.count_nonzero(~rows.counts)),
        together=WeightedSums.of(columns, row_weight, groups),
        losses=losses,
        reference=_model_sums(rows.reference, counts, targets is not None),
        candidate=_model_sums(rows.candidate, counts, targets is not None),
        kl=RowValues.of(columns[_KL]),
        delta_p=RowValues.of(delta_p),
    )


def _model_sums(rows: ModelRows, counts: slice | NDArray[np.bool_], has_targets: bool) -> _ModelSums:
    confidence, hit = rows.max_probability[counts], rows.hit[counts]
    bins = CalibrationBins.of(confidence, hit) if has_targets else NO_BINS
    return _ModelSums(ExactSum.of_values(rows.entropy[counts]), bins)


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
