"""How far one model's logits are from another's: divergence, and the change of loss and probability."""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import _xent_rs
from ._accumulator import Accumulator
from ._arguments import group_labels, is_read_in_slices, row_shape, targets_at, with_arrays
from ._comparison import Comparison
from ._comparison_sums import ComparedRows, ComparisonSums, ModelRows, summed
from ._environment import in_default_environment
from ._evaluation_options import CompareOptions, ComparerOptions
from ._head import Batch, Head, batches, check_classes, heads_of_two, other_classes
from ._options import Options

if TYPE_CHECKING:
    from typing_extensions import Unpack

_COMPARER = Options("Comparer", ComparerOptions)
_COMPARE = Options("compare", CompareOptions)


@_COMPARER.describe
class Comparer(Accumulator[ComparisonSums]):
    """Compare the logits of two models that come in batches, in any order and in any number of processes.

    Sums are exact: however rows are cut into batches, in whatever order these come or comparers are merged,
    on any number of threads, the result has the same bits. From hidden states, with `linear_weight`, the last
    bits of the logits depend on the batches and on NumPy's threads. All batches have the same number of
    classes, and either all have targets (and groups) or none has. A comparer can be pickled, and several
    threads may update it at once.

    For quantiles it keeps the divergence of each row and, with targets, the change of probability: 8 bytes a
    row, 84 MB for 10.5 million rows. With groups it keeps a few sums of each group besides, some kilobytes.

    Parameters
    ----------
    **options
        Those of `ComparerOptions` (`xent_rs._evaluation_options`).

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
        super().__init__(_COMPARER, options)

    def _nothing(self) -> ComparisonSums:
        return ComparisonSums.of_nothing(self._options["top_k"])

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
        if targets is None and self._options["weight"] is not None:
            raise ValueError("weight is given without targets; expected targets, whose classes it weights")
        labels = None if groups is None else group_labels(groups, row_shape(reference, self._axis))
        class_targets = None if targets is None else _xent_rs.as_array(targets, "targets")
        row_weight = None if sample_weight is None else _xent_rs.as_array(sample_weight, "sample_weight")
        if not any(heads):
            seen = self._seen((reference, candidate), class_targets, row_weight, self._axis, labels)
        else:
            arrays = (_xent_rs.as_array(reference, "reference"), _xent_rs.as_array(candidate, "candidate"))
            check_classes(arrays[0], "reference", heads[0], self._axis, self._sums.classes)
            of_rows = batches(
                [*zip(arrays, heads, strict=True)],
                self._axis,
                class_targets,
                row_weight,
                self._ignore_index,
                self._seen,
            )

            def seen_of(batch: Batch) -> ComparisonSums:
                some_labels = None if labels is None else labels.reshape(-1)[batch.rows]
                return self._seen(batch.logits, batch.targets, batch.sample_weight, -1, some_labels)

            seen = functools.reduce(operator.add, map(seen_of, of_rows))
        self._include(seen)

    def _seen(
        self,
        logits: tuple[ArrayLike, ...],
        targets: NDArray[Any] | None,
        sample_weight: NDArray[Any] | None,
        axis: int,
        labels: NDArray[Any] | None = None,
    ) -> ComparisonSums:
        """Return what the logits of both models add."""
        reference, candidate = logits
        classes, counts, kl, reverse_kl, js, of_reference, of_candidate = _xent_rs.compare_rows(
            reference,
            candidate,
            targets,
            _COMPARE,
            {**self._options, "axis": axis, "sample_weight": sample_weight},
        )
        if self._sums.classes not in (None, classes):
            raise other_classes("reference has", classes, axis, self._sums.classes)
        models = ModelRows(*of_reference), ModelRows(*of_candidate)
        rows = ComparedRows(counts, kl, reverse_kl, js, *models)
        return self._summed(classes, rows, targets, sample_weight, labels)

    def _summed(
        self,
        classes: int,
        rows: ComparedRows,
        targets: NDArray[Any] | None,
        sample_weight: NDArray[Any] | None,
        labels: NDArray[Any] | None,
    ) -> ComparisonSums:
        top_k, weight = self._options["top_k"], self._options["weight"]
        return summed(top_k, classes, rows, targets, weight, sample_weight, labels)

    def _update_rows(
        self,
        classes: int,
        rows: ComparedRows,
        targets: NDArray[Any] | None,
        sample_weight: NDArray[Any] | None,
        labels: NDArray[Any] | None,
    ) -> None:
        """Add rows of which all is known."""
        self._include(self._summed(classes, rows, targets, sample_weight, labels))

    @in_default_environment
    def result(self) -> Comparison:
        """Return the figures over everything seen so far.

        Returns
        -------
        Comparison
            The figures; NaN where no row counts.
        """
        return self._sums.result()

    def _check_kind(self, **given: bool) -> None:
        """Refuse a batch that has targets or groups where those before had none, or the other way round."""
        for what, is_given in given.items():
            if self._sums.classes is not None and getattr(self._sums, f"has_{what}") != is_given:
                found, expected = ("given", "none") if is_given else ("missing", "them")
                raise ValueError(f"{what} are {found}; expected {expected}, as in the batches before")

    def _values(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return the divergence of each row and, with targets, the change of probability, in any order."""
        return self._sums.kl.all(), self._sums.delta_p.all()

    def _rows_seen(self) -> int:
        """Return the number of rows, ignored ones included."""
        return self._sums.rows + self._sums.ignored

    def _counted(self) -> bytes:
        """Return what was seen, for `_go_on_from`: a line of JSON, and the values of the rows."""
        return self._sums.as_bytes()

    def _go_on_from(self, counted: bytes) -> None:
        """Add what `_counted` of a comparer with the same options gave; refuse anything else."""
        self._include(ComparisonSums.from_bytes(counted, self._options["top_k"]))


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
        Those of `CompareOptions` (`xent_rs._evaluation_options`).

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
