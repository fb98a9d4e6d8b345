"""What workers compute: functions of blocks, each of which a graph names with its arguments.

Where all classes are in one chunk, blocks go to the functions of the package as they are. Where they are in
several, each block gives a `Shard`, and those of the same rows are put together.
"""

from __future__ import annotations

import copy
import multiprocessing
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from .. import _xent_rs
from .._arguments import group_labels, targets_at
from .._comparer import Comparer
from .._comparison_sums import ComparedRows, ModelRows
from .._cross_entropy import _LOSS
from .._divergences import Divergences, divergences_of
from .._environment import in_default_environment
from .._estimates import times
from .._evaluator import Evaluator
from .._exact import NOTHING, ExactSum
from .._partial_statistics import checked_classes
from .._rows import Rows
from .._shards import (
    NO_CLASS,
    Floats,
    Integers,
    Shard,
    Shares,
    Transform,
    Whole,
    int64_classes,
    losses_of,
    ranks,
    ranks_of_classes,
    shard_of,
    target_logits,
    whole_of,
)

Block = NDArray[Any]
_State = TypeVar("_State", Evaluator, Comparer, "LossSums")


@dataclass(frozen=True)
class Task:
    """What all blocks of a call have in common.

    Attributes
    ----------
    axis : int
        The axis of the classes, counted from the first.
    classes : int
        Their number.
    probabilities : bool
        Whether the targets are probabilities.
    options : dict
        The options of the local function but for weights, which come in blocks.
    """

    axis: int
    classes: int
    probabilities: bool
    options: dict[str, Any]

    @property
    def transform(self) -> Transform:
        """What becomes of logits."""
        softcap = self.options.get("softcap")
        return Transform(
            None if softcap is None else float(softcap), float(self.options.get("temperature", 1.0))
        )

    @property
    def ignore_index(self) -> int:
        """The target that stands for none."""
        return int(self.options["ignore_index"])

    @property
    def smoothing(self) -> float:
        """The share of a target that is spread over all classes."""
        return float(self.options.get("label_smoothing", 0.0))

    def __dask_tokenize__(self) -> tuple[object, ...]:
        """Return what Dask makes names of."""
        return (
            type(self).__qualname__,
            self.axis,
            self.classes,
            self.probabilities,
            sorted(self.options.items()),
        )


# The number of threads that `one_thread_in_a_pool` has put back; None before.
_put_back: int | None = None


@contextmanager
def one_thread_in_a_pool() -> Iterator[None]:
    """Take one thread for a task in a process of a pool, whose other processes have the other CPUs.

    Threads of one process share its threads, so that there are never more than `get_num_threads` says; the
    workers of `distributed` are told how many these are (``OMP_NUM_THREADS``). Nobody tells the processes of
    Dask's scheduler "processes", which run tasks in their main thread. So only there, and only if nobody has
    said how many threads to take, a task takes one, and puts back what was. Any other child of
    `multiprocessing` that computes in its main thread (scheduler "synchronous") looks the same, and has one
    thread as long as the task takes. What remains is that `set_num_threads` is then where the number is from,
    as `show_config` tells.
    """
    global _put_back
    in_a_pool = (
        multiprocessing.parent_process() is not None and threading.current_thread() is threading.main_thread()
    )
    before = _xent_rs.get_num_threads()
    is_chosen = before != _put_back and _xent_rs.config()["num_threads_source"] != "available CPUs"
    if not in_a_pool or is_chosen:
        yield
        return
    _xent_rs.set_num_threads(1)
    try:
        yield
    finally:
        _put_back = before
        _xent_rs.set_num_threads(before)


def only(blocks: Any) -> Any:
    """Return the one block of an axis that has no others."""
    while isinstance(blocks, list):
        (blocks,) = blocks
    return blocks


def joined(blocks: Any) -> NDArray[Any] | None:
    """Return class weights, which come in the chunks of the classes."""
    return np.concatenate(blocks) if isinstance(blocks, list) else blocks


def flat(blocks: Any) -> Iterator[Any]:
    """Give what is in nested lists."""
    if isinstance(blocks, list):
        for block in blocks:
            yield from flat(block)
    else:
        yield blocks


def numbers(parts: Sequence[Any]) -> tuple[int, ...]:
    """Return what a block has one number of along each axis.

    That is where it begins, along the axes of the rows and last in the classes, or how long it is.
    """
    return tuple(int(only(part)[0]) for part in parts)


def _classes_last(block: Any, axis: int, name: str) -> Block:
    """Return a block with the classes last and side by side: another layout may change a last bit."""
    array = np.moveaxis(_xent_rs.as_array(block, name), axis, -1)
    is_even = array.strides[-1] == array.itemsize or array.shape[-1] <= 1
    return array if is_even and array.flags.aligned else np.ascontiguousarray(array)


# All classes in one block.


@one_thread_in_a_pool()
def evaluated(
    logits: Any, targets: Block, sample_weight: Block | None, weight: Any, *offsets: Any, task: Task
) -> Evaluator:
    """Evaluate a block of rows."""
    block = _classes_last(only(logits), task.axis, "logits")
    evaluator = Evaluator(**task.options, weight=joined(weight), axis=-1)
    with targets_at(numbers(offsets)[:-1], targets, task.classes, task.ignore_index):
        evaluator.update(block, targets, sample_weight=sample_weight)
    return evaluator


@one_thread_in_a_pool()
def compared(
    reference: Any,
    candidate: Any,
    targets: Block | None,
    sample_weight: Block | None,
    groups: Block | None,
    weight: Any,
    *offsets: Any,
    task: Task,
) -> Comparer:
    """Compare a block of rows."""
    before = _classes_last(only(reference), task.axis, "reference")
    after = _classes_last(only(candidate), task.axis, "candidate")
    comparer = Comparer(**task.options, weight=joined(weight), axis=-1)
    with targets_at(numbers(offsets)[:-1], targets, task.classes, task.ignore_index):
        comparer.update(before, after, targets, sample_weight=sample_weight, groups=groups)
    return comparer


@one_thread_in_a_pool()
def losses(
    logits: Any, targets: Any, sample_weight: Block | None, weight: Any, *offsets: Any, task: Task
) -> Any:
    """Return the loss of each row of a block."""
    with _call(logits, targets, sample_weight, weight, *offsets, task=task) as (block, target, options):
        return _xent_rs.cross_entropy(block, target, _LOSS, {**options, "reduction": "none"})


@one_thread_in_a_pool()
def loss_sums(
    logits: Any, targets: Any, sample_weight: Block | None, weight: Any, *offsets: Any, task: Task
) -> LossSums:
    """Sum the losses of a block of rows."""
    with _call(logits, targets, sample_weight, weight, *offsets, task=task) as (block, target, options):
        sums = _xent_rs.loss_sums(block, target, _LOSS, options)
    return LossSums(*map(ExactSum.of_bytes, sums))


@contextmanager
def _call(
    logits: Any, targets: Any, sample_weight: Block | None, weight: Any, *offsets: Any, task: Task
) -> Iterator[tuple[Block, Block, dict[str, Any]]]:
    """Give the logits, targets and options of a block of rows; what is wrong is named by its place in all."""
    block = _classes_last(only(logits), task.axis, "logits")
    target, position = only(targets), numbers(offsets)
    if task.probabilities:
        target = _probabilities(target, sample_weight, position, task)
    options = {**task.options, "weight": joined(weight), "sample_weight": sample_weight, "axis": -1}
    with targets_at(position[:-1], target, task.classes, task.ignore_index):
        yield block, target, options


def _probabilities(
    targets: Block, sample_weight: Block | None, position: tuple[int, ...], task: Task
) -> Block:
    """Return targets with the classes last; one that is no probability is named by its place in them all."""
    moved = np.moveaxis(targets, task.axis, -1)
    wrong = ~(moved >= 0)
    if sample_weight is not None:
        wrong &= (sample_weight != 0)[..., None]
    if wrong.any():
        found = np.argwhere(wrong)[0].tolist()
        *row, column = (start + step for start, step in zip(position, found, strict=True))
        row.insert(task.axis, column)
        raise ValueError(f"targets{row} is {float(moved[tuple(found)])}; expected a probability, at least 0")
    return moved


# The classes in several blocks.


@one_thread_in_a_pool()
def looked_at(
    logits: Any,
    targets: Any,
    sample_weight: Block | None,
    weight: Any,
    *offsets: Any,
    task: Task,
    tops: int = 0,
) -> Shard:
    """Look at some classes of some rows."""
    rows = Rows.of(_xent_rs.as_array(only(logits), "logits"), task.axis)
    position, target, weights = numbers(offsets), only(targets), _doubles(joined(weight))
    classes, probabilities = None, None
    if task.probabilities:
        probabilities = Rows.of(_probabilities(target, sample_weight, position, task), -1)
    elif target is not None:
        classes = checked_classes(target, task.classes, task.ignore_index, position[:-1]).reshape(-1)
    shares = None
    if task.probabilities or task.smoothing:
        counts = _counts(classes, sample_weight, len(rows))
        shares = Shares(task.smoothing, task.classes, weights, counts, probabilities)
    return shard_of(rows, position[-1], task.transform, classes, tops=tops, shares=shares)


@dataclass(frozen=True)
class _Rows:
    """Rows of which all classes have been looked at."""

    shards: Sequence[Shard]
    whole: Whole
    classes: Integers | None
    counts: NDArray[np.bool_]

    @classmethod
    def of(cls, shards: Any, targets: Block | None, sample_weight: Block | None, task: Task) -> _Rows:
        """Put shards together, in whatever order they are."""
        found = sorted(flat(shards), key=lambda shard: (shard.offset, shard.classes))
        whole = whole_of(found, task.transform)
        classes = None
        if targets is not None:
            classes = int64_classes(targets, task.ignore_index).reshape(-1)
        return cls(found, whole, classes, _counts(classes, sample_weight, len(whole.top)))

    def losses(self, sample_weight: Block | None, weight: Floats | None, task: Task) -> tuple[Floats, Floats]:
        """Return the weighted losses and the weights: 0 for rows that do not count."""
        each = losses_of(
            self.shards,
            self.whole,
            targets=self.classes,
            target_logit=target_logits(self.shards),
            weight=weight,
            smoothing=task.smoothing,
            **{
                name: float(task.options.get(name, 0.0)) for name in ("z_loss", "focal_gamma", "poly_epsilon")
            },
        )
        row_weight = np.ones(len(each)) if sample_weight is None else _doubles(sample_weight).reshape(-1)
        weighted = np.where(self.counts, times(row_weight, each), 0.0)
        if self.classes is not None and weight is not None:
            row_weight = times(row_weight, weight[np.maximum(self.classes, 0)])
        return weighted, np.where(self.counts, row_weight, 0.0)


@in_default_environment
def evaluated_shards(
    shards: Any, targets: Block, sample_weight: Block | None, weight: Any, *, task: Task
) -> Evaluator:
    """Evaluate rows of which all classes have been looked at."""
    rows = _Rows.of(shards, targets, sample_weight, task)
    assert rows.classes is not None
    weights = _doubles(joined(weight))
    weighted, row_weights = rows.losses(sample_weight, weights, task)
    rank = ranks(rows.shards, target_logits(rows.shards), rows.classes)
    evaluator = Evaluator(**task.options, weight=weights, axis=-1)
    evaluator._update_rows(
        task.classes,
        weighted[rows.counts],
        row_weights[rows.counts],
        rows.whole.entropy[rows.counts],
        np.where(np.isfinite(rows.whole.top), rank, -1)[rows.counts],
        int(np.count_nonzero(~rows.counts)),
    )
    return evaluator


@in_default_environment
def merged_losses(
    shards: Any,
    targets: Block | None,
    sample_weight: Block | None,
    weight: Any,
    *lengths: Block,
    task: Task,
    dtype: str,
) -> Block:
    """Return the losses of rows of which all classes have been looked at; `lengths` is their shape."""
    rows = _Rows.of(shards, targets, sample_weight, task)
    weighted, _ = rows.losses(sample_weight, _doubles(joined(weight)), task)
    with np.errstate(over="ignore", under="ignore"):
        return weighted.astype(dtype).reshape(numbers(lengths))


@in_default_environment
def summed(
    shards: Any, targets: Block | None, sample_weight: Block | None, weight: Any, *, task: Task
) -> LossSums:
    """Sum the losses of rows of which all classes have been looked at."""
    rows = _Rows.of(shards, targets, sample_weight, task)
    weighted, row_weights = rows.losses(sample_weight, _doubles(joined(weight)), task)
    return LossSums(ExactSum.of_values(weighted), ExactSum.of_values(row_weights))


@dataclass(frozen=True)
class ShardPair:
    """What the same classes of two models say of rows."""

    reference: Shard
    candidate: Shard


def looked_at_both(
    reference: Any, candidate: Any, targets: Block | None, *offsets: Any, task: Task
) -> ShardPair:
    """Look at some classes of some rows of two models: the first round."""
    tops = max((1, *task.options["top_k"]))
    return ShardPair(
        looked_at(reference, targets, None, None, *offsets, task=task, tops=tops),
        looked_at(candidate, targets, None, None, *offsets, task=task, tops=tops),
    )


def together(pairs: Any) -> list[ShardPair]:
    """Return what is known of all classes of some rows."""
    return sorted(flat(pairs), key=lambda pair: (pair.reference.offset, pair.reference.classes))


@one_thread_in_a_pool()
def compared_shard(
    reference: Any, candidate: Any, pairs: Sequence[ShardPair], *offsets: Any, task: Task
) -> Divergences:
    """Compare some classes of some rows, given what is known of all: the second round."""
    offset, classes = numbers(offsets)[-1], only(reference).shape[task.axis]
    number = next(
        number
        for number, pair in enumerate(pairs)
        if (pair.reference.offset, pair.reference.classes) == (offset, classes)
    )
    befores, afters = [pair.reference for pair in pairs], [pair.candidate for pair in pairs]
    return divergences_of(
        (
            Rows.of(_xent_rs.as_array(only(reference), "reference"), task.axis),
            Rows.of(_xent_rs.as_array(only(candidate), "candidate"), task.axis),
        ),
        number,
        offset,
        (whole_of(befores, task.transform), whole_of(afters, task.transform)),
    )


@in_default_environment
def compared_shards(
    divergences: Any,
    pairs: Sequence[ShardPair],
    targets: Block | None,
    sample_weight: Block | None,
    groups: Block | None,
    weight: Any,
    *,
    task: Task,
) -> Comparer:
    """Compare rows of which both rounds have looked at all classes."""
    befores = _Rows.of([pair.reference for pair in pairs], targets, sample_weight, task)
    afters = _Rows.of([pair.candidate for pair in pairs], targets, sample_weight, task)
    parts = sorted(flat(divergences), key=lambda part: part.offset)

    def total(name: str) -> Floats:
        values = np.zeros(len(befores.counts))
        for part in parts:
            values = values + getattr(part, name)
        return values

    rows = ComparedRows(
        befores.counts,
        total("kl"),
        total("reverse_kl"),
        total("jensen_shannon"),
        _model_rows(befores, afters),
        _model_rows(afters, befores),
    )
    labels = None if groups is None else group_labels(groups, None)
    comparer = Comparer(**task.options, weight=joined(weight), axis=-1)
    comparer._update_rows(task.classes, rows, targets, sample_weight, labels)
    return comparer


def _model_rows(rows: _Rows, others: _Rows) -> ModelRows:
    """Return what rows of a model say, given those of the other."""
    whole = rows.whole
    with np.errstate(invalid="ignore"):
        losses = whole.losses(target_logits(rows.shards))
    hit = np.zeros(len(losses), np.bool_)
    if rows.classes is not None:
        hit = (whole.argmax == rows.classes) & np.isfinite(whole.top)
    rank = ranks_of_classes(rows.shards, others.whole.argmax)
    has_top = np.isfinite(whole.top) & np.isfinite(others.whole.top)
    return ModelRows(losses, whole.entropy, whole.max_probability, hit, np.where(has_top, rank, -1))


def _counts(classes: Integers | None, sample_weight: Block | None, rows: int) -> NDArray[np.bool_]:
    """Return which rows count."""
    counts = np.ones(rows, np.bool_) if classes is None else classes != NO_CLASS
    return counts if sample_weight is None else counts & (sample_weight.reshape(-1) != 0)


def _doubles(values: Block | None) -> Any:
    return None if values is None else values.astype(np.float64)


# Chunks of rows.


@dataclass(frozen=True)
class LossSums:
    """Exact sums of weighted losses and of the weights."""

    loss: ExactSum = NOTHING
    weight: ExactSum = NOTHING

    def merge(self, other: LossSums) -> LossSums:
        """Return both."""
        return LossSums(self.loss + other.loss, self.weight + other.weight)

    def result(self, reduction: str, denominator: float | None) -> np.float64:
        """Return their mean, or the sum."""
        if reduction == "sum":
            return np.float64(self.loss.over(ExactSum.of_count(1)))
        if denominator is None:
            return np.float64(self.loss.over(self.weight))
        total = self.loss.over(ExactSum.of_count(1))
        return np.float64(total / denominator if denominator else np.nan)


def as_it_is(state: _State, axis: Any, keepdims: bool) -> _State:
    """Return what a block has given, for the tree that merges them."""
    return state


def merged(states: Any, axis: Any, keepdims: bool, computing_meta: bool = False) -> Any:
    """Merge what blocks have given; these stay as they are, for they may be asked for again.

    Dask asks first what becomes of an empty array.
    """
    if computing_meta:
        return states
    first, *others = flat(states)
    total = copy.copy(first)
    for other in others:
        total = total.merge(other)
    return total


def result(
    states: Any, axis: Any, keepdims: bool, computing_meta: bool = False, of: tuple[Any, ...] = ()
) -> Any:
    """Merge the last states and return what they say."""
    return states if computing_meta else merged(states, axis, keepdims).result(*of)


def itself(value: Any) -> Any:
    """Return the one value of an array without axes."""
    return value
