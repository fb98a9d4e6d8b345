"""What the logits of each row say, from shards of the classes: in several processes, or piece by piece."""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, SupportsIndex

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import _xent_rs
from ._arguments import are_equal, are_real, checked_rows, integer, place_of_shard, text_of
from ._environment import in_default_environment
from ._options import Floats, Options, RowStatisticsOptions
from ._rows import Rows
from ._shards import (
    NO_CLASS,
    Integers,
    Shard,
    Transform,
    int64_classes,
    shard_of,
    target_logits,
    whole_of,
)
from ._statistics import RowStatistics

if TYPE_CHECKING:
    from typing_extensions import Unpack

_PARTIAL = Options("partial_row_statistics", RowStatisticsOptions)


@dataclass(eq=False)
class RowState:
    """What one or more shards of the classes say of rows, from `partial_row_statistics`.

    States of other shards of the same rows are taken in by `merge`, in any order and grouping, without a bit
    of the `result` depending on that. A state can be pickled; it has some 50 bytes a row for each shard.

    Examples
    --------
    >>> import numpy as np, pickle
    >>> from xent_rs import partial_row_statistics
    >>> logits = np.log([[0.5, 0.25, 0.25], [0.125, 0.75, 0.125]])
    >>> first = partial_row_statistics(logits[:, :2], class_offset=0, num_classes=3)
    >>> second = partial_row_statistics(logits[:, 2:], class_offset=2, num_classes=3)
    >>> first
    <RowState: 2 rows, classes 0 to 1 of 3>
    >>> first.merge(pickle.loads(pickle.dumps(second))).result().max_probability
    array([0.5 , 0.75])
    """

    _num_classes: int
    _transform: Transform
    _ignore_index: int
    _shape: tuple[int, ...]
    _dtype: np.dtype[Any]
    _targets: Integers | None = field(repr=False)
    # In the order of their classes; those without classes are left out.
    _shards: tuple[Shard, ...] = field(repr=False)

    def merge(self, other: RowState) -> RowState:
        """Take in what other shards say of the same rows.

        Parameters
        ----------
        other : RowState
            The state of other classes, with the same options and targets; it stays as it is.

        Returns
        -------
        RowState
            This state.

        Raises
        ------
        TypeError
            If `other` is not a state.
        ValueError
            If `other` has other options, rows, targets or a number of classes, or classes that are in this
            state already; or if one of both was made with a `target_logit` and the other without.
        """
        if not isinstance(other, RowState):
            raise TypeError(f"other is of type {type(other).__name__}; expected a RowState")
        for name, expected in self._options().items():
            found = other._options()[name]
            if not are_equal(found, expected):
                raise ValueError(f"other has {name} {text_of(found)}; expected {text_of(expected)}")
        mine, theirs = self._targets, other._targets
        if mine is None or theirs is None:
            if mine is not theirs:
                found, expected = ("no targets", "them") if theirs is None else ("targets", "none")
                raise ValueError(f"other has {found}; expected {expected}, as in this state")
        elif not np.array_equal(mine, theirs):
            raise ValueError("other has other targets; expected those of this state")
        for shard in other._shards:
            for here in self._shards:
                if (shard.above is None) != (here.above is None):
                    found, expected = ("no", "one") if shard.above is None else ("a", "none")
                    raise ValueError(f"other has {found} target_logit; expected {expected}, as in this state")
                if max(shard.offset, here.offset) < min(_end(shard), _end(here)):
                    raise ValueError(
                        f"other has {_classes(shard.offset, _end(shard))}; "
                        f"expected none of {_classes(here.offset, _end(here))}, which are in this state"
                    )
        self._shards = tuple(sorted(self._shards + other._shards, key=lambda shard: shard.offset))
        self._dtype = np.result_type(self._dtype, other._dtype)
        return self

    @property
    def target_logit(self) -> NDArray[np.float64]:
        """The logit of each row's target: NaN where it is in no shard so far, or where a row has none."""
        if not self._shards:
            return np.full(self._shape, np.nan)
        return target_logits(self._shards).reshape(self._shape)

    @property
    @in_default_environment
    def logsumexp(self) -> NDArray[np.float64]:
        """The log-sum-exp of each row over all classes, in float64, as `cross_entropy_grad` wants it.

        Raises
        ------
        ValueError
            If classes are missing.
        """
        self._check_complete()
        return whole_of(self._shards, self._transform).logsumexp.reshape(self._shape)

    @in_default_environment
    def result(self) -> RowStatistics:
        """Return the statistics of all classes.

        Returns
        -------
        RowStatistics
            Those of `row_statistics` of the whole logits, within its accuracy. `target_rank` is None if the
            shards were looked at without the `target_logit` of all rows.

        Raises
        ------
        ValueError
            If classes are missing.
        """
        self._check_complete()
        whole = whole_of(self._shards, self._transform)
        log_probability: NDArray[np.float64] | None = None
        rank: Integers | None = None
        if self._targets is not None:
            has_target = self._targets != NO_CLASS
            losses = whole.losses(target_logits(self._shards))
            log_probability = np.where(has_target, 0.0 - losses, 0.0)
            counts = [shard.above for shard in self._shards if shard.above is not None]
            if counts:  # of all shards, or of none
                rank = np.where(has_target & np.isfinite(whole.top), sum(counts), -1)

        def floats(values: NDArray[np.float64]) -> Floats:
            with np.errstate(over="ignore", under="ignore"):
                return values.astype(self._dtype).reshape(self._shape)

        return RowStatistics(
            floats(whole.logsumexp),
            # A row of only -inf has no largest logit: the first class stands for it.
            whole.argmax.reshape(self._shape),
            floats(whole.max_probability),
            floats(whole.entropy),
            None if log_probability is None else floats(log_probability),
            None if rank is None else rank.reshape(self._shape),
        )

    def _check_complete(self) -> None:
        missing, done = [], 0
        for shard in self._shards:
            if shard.offset > done:
                missing.append(_range(done, shard.offset))
            done = _end(shard)
        if done < self._num_classes:
            missing.append(_range(done, self._num_classes))
        if missing:
            raise ValueError(f"classes {' and '.join(missing)} are missing; expected all {self._num_classes}")

    def __repr__(self) -> str:
        runs: list[tuple[int, int]] = []
        for shard in self._shards:
            start = runs.pop()[0] if runs and runs[-1][1] == shard.offset else shard.offset
            runs.append((start, _end(shard)))
        classes = f"classes {' and '.join(_range(*run) for run in runs)}" if runs else "no classes"
        return f"<RowState: {math.prod(self._shape)} rows, {classes} of {self._num_classes}>"

    def _options(self) -> dict[str, Any]:
        return {
            "num_classes": self._num_classes,
            **self._transform.options(),
            "ignore_index": self._ignore_index,
            "rows of shape": self._shape,
        }


@_PARTIAL.describe
@in_default_environment
def partial_row_statistics(
    logits: ArrayLike,
    targets: ArrayLike | None = None,
    *,
    class_offset: SupportsIndex,
    num_classes: SupportsIndex,
    target_logit: ArrayLike | None = None,
    **options: Unpack[RowStatisticsOptions],
) -> RowState:
    """`row_statistics` of logits whose classes are in shards, each in a process of its own, say.

    Of each row a shard k has its log-sum-exp :math:`l_k` and the entropy :math:`H_k` of its own softmax.
    Those of all classes are, with :math:`P_k = e^{l_k - l}` the probability of a shard,
    ::

        l = log Σ e^(l_k),    H = Σ P_k·(H_k + l - l_k),

    taken in float64 and in the order of the classes: the order in which states are merged changes no bit.

    Parameters
    ----------
    logits : array_like of float16, bfloat16 (``ml_dtypes``), float32 or float64
        The logits of the shard: all rows, and some of the classes along `axis`, which may be none.
    targets : array_like of any integer dtype, optional
        The class of each row among all `num_classes`: the shape of `logits` without `axis`. Every shard gets
        the same.
    class_offset : int
        Which of all classes is the first of the shard.
    num_classes : int
        Number of classes in all shards together.
    target_logit : array_like of real numbers, optional
        The logit of each row's target, as it is in whichever shard has it: before softcap and temperature.
        For the target's rank each shard has to compare its classes with it, and so that takes a first round,
        of `RowState.target_logit` for example; without it there is no `target_rank`. What rows without a
        target have here is not looked at.
    **options
        Those of `RowStatisticsOptions` (`xent_rs._options`).

    Returns
    -------
    RowState
        What the shard says, to be merged with the others; its ``result()`` is a `RowStatistics`.

    Raises
    ------
    TypeError, ValueError, IndexError
        As `row_statistics`; also ValueError for classes beyond `num_classes`, and for a `target_logit` that
        is not the logit of a target in this shard.

    See Also
    --------
    row_statistics : The same of logits that are in one place.
    xent_rs.dask : Whole evaluations of logits in chunks of rows and classes.

    Notes
    -----
    A shard is computed in float64 whatever its dtype is, a mebibyte at a time, so that the result is within
    the accuracy of `row_statistics`, and mostly nearer to the true values; another cut into shards may change
    the last bit, and so may another kind of CPU, as NumPy's exponentials take part. It takes some four times
    as long as `row_statistics` of the same float32 logits, on one thread.

    It is the loss of tensor parallelism: in PyTorch ``loss_parallel`` of ``torch.distributed.tensor``, and
    Megatron's ``vocab_parallel_cross_entropy`` [1]_, of which `logsumexp` and `target_log_probability` are
    what is summed. Keras, optax and scikit-learn have nothing like it.

    References
    ----------
    .. [1] M. Shoeybi et al., "Megatron-LM: training multi-billion parameter language models using model
       parallelism", arXiv:1909.08053, 2019, section 3.

    Examples
    --------
    >>> import numpy as np
    >>> from xent_rs import partial_row_statistics
    >>> logits, targets = np.log([[0.5, 0.25, 0.25], [0.125, 0.75, 0.125]]), [2, 1]
    >>> def state(start, stop, **known):
    ...     shard = logits[:, start:stop]
    ...     return partial_row_statistics(shard, targets, class_offset=start, num_classes=3, **known)
    >>> known = state(2, 3).merge(state(0, 2))
    >>> known.result().argmax, known.result().target_log_probability.round(4)
    (array([0, 1]), array([-1.3863, -0.2877]))

    The ranks, in a second round:

    >>> ranked = [state(0, 2, target_logit=known.target_logit), state(2, 3, target_logit=known.target_logit)]
    >>> ranked[1].merge(ranked[0]).result().target_rank
    array([2, 0])
    """
    _PARTIAL.check(options)
    given = {**_PARTIAL.defaults, **options}
    axis = operator.index(given["axis"])
    found = _xent_rs.as_array(logits, "logits")
    shape = checked_rows(found.shape, "logits", axis)
    count = found.shape[axis]
    offset, classes = place_of_shard(class_offset, integer(num_classes, "num_classes is"), count)
    # What is wrong with dtypes and options is said by the function that takes them.
    _xent_rs.row_statistics(
        np.empty((0, 1), found.dtype),
        None if targets is None else np.empty(0, _xent_rs.as_array(targets, "targets").dtype),
        _PARTIAL,
        {**options, "axis": -1},
    )
    ignore_index = operator.index(given["ignore_index"])
    class_of = None if targets is None else _classes_of(targets, shape, found, axis, classes, ignore_index)
    softcap = given["softcap"]
    transform = Transform(None if softcap is None else float(softcap), float(given["temperature"]))
    known = None
    if target_logit is not None:
        if targets is None:
            raise ValueError("target_logit is given without targets; expected targets, whose logits they are")
        known = _xent_rs.as_array(target_logit, "target_logit")
        if not are_real(known.dtype):
            raise TypeError(f"target_logit has dtype {known.dtype}; expected real numbers")
        if known.shape != shape:
            raise ValueError(f"target_logit has shape {known.shape}; expected {shape}, one number a row")
        known = known.astype(np.float64).reshape(-1)
    rows = Rows.of(found, axis)
    flat = None if class_of is None else class_of.reshape(-1)
    if known is None and count == classes and flat is not None:
        # The only shard has every target.
        known = rows.at(np.maximum(flat, 0)).astype(np.float64)
    shard = shard_of(rows, offset, transform, flat, target_logit=known)
    if known is not None:
        _check_known(known, shard, shape)
    dtype = np.dtype(np.float64 if found.dtype == np.float64 else np.float32)
    return RowState(classes, transform, ignore_index, shape, dtype, flat, (shard,) if shard.classes else ())


def _classes_of(
    targets: ArrayLike,
    rows: tuple[int, ...],
    logits: NDArray[Any],
    axis: int,
    classes: int,
    ignore_index: int,
) -> Integers:
    """Return the class of each row, `NO_CLASS` for those that are ignored."""
    found = _xent_rs.as_array(targets, "targets")
    if found.shape != rows:
        raise ValueError(
            f"targets have shape {found.shape}; expected {rows}, "
            f"the shape of logits {logits.shape} without axis {axis}"
        )
    return checked_classes(found, classes, ignore_index)


def checked_classes(
    targets: NDArray[Any], classes: int, ignore_index: int, position: tuple[int, ...] | None = None
) -> Integers:
    """Return targets as int64, `NO_CLASS` where they are ignored; one that is no class is refused.

    `position` is where in larger targets they begin.
    """
    wrong = ((targets < 0) | (targets >= classes)) & (targets != ignore_index)
    if wrong.any():
        place = np.argwhere(wrong)[0].tolist()
        value = targets[tuple(place)]
        if position is not None:
            place = [start + index for start, index in zip(position, place, strict=True)]
        name = f"targets{place}" if place else "targets"
        expected = f"0 to {classes - 1}, or ignore_index {ignore_index}"
        raise IndexError(f"{name} is {value}; expected {expected}")
    return int64_classes(targets, ignore_index)


def _check_known(known: NDArray[np.float64], shard: Shard, shape: tuple[int, ...]) -> None:
    """Refuse logits of targets that are others than those in the shard."""
    mine = shard.target_logit
    wrong = np.flatnonzero(~np.isnan(mine) & (mine != known))
    if len(wrong):
        place = [int(index) for index in np.unravel_index(wrong[0], shape)]
        name = f"target_logit{place}" if place else "target_logit"
        raise ValueError(
            f"{name} is {known[wrong[0]]}; expected {mine[wrong[0]]}, the target's logit in this shard"
        )


def _end(shard: Shard) -> int:
    return shard.offset + shard.classes


def _range(start: int, stop: int) -> str:
    return f"{start}" if stop == start + 1 else f"{start} to {stop - 1}"


def _classes(start: int, stop: int) -> str:
    return f"class {start}" if stop == start + 1 else f"classes {_range(start, stop)}"
