"""The public functions: they check what can be checked at once, and build graphs of the tasks."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import dask.array as da
import numpy as np
from dask.delayed import Delayed, delayed
from numpy.typing import ArrayLike, NDArray

import xent_rs

from .. import _xent_rs
from .._arguments import checked_rows, group_labels, has, integer, top_ks, with_arrays
from .._evaluation_options import CompareLogitsOptions, EvaluateLogitsOptions
from .._options import CrossEntropyOptions, MeanOptions, Options, SplitOptions
from . import _tasks
from ._tasks import Task

if TYPE_CHECKING:
    from typing_extensions import Unpack

_EVALUATE = Options("evaluate", EvaluateLogitsOptions, SplitOptions)
_COMPARE = Options("compare", CompareLogitsOptions, SplitOptions)
_LOSS = Options("cross_entropy", CrossEntropyOptions, MeanOptions, SplitOptions)


@_EVALUATE.describe
def evaluate(logits: da.Array, targets: da.Array | ArrayLike, **options: Unpack[_EvaluateOptions]) -> Delayed:
    """Evaluate logits lazily: mean loss, perplexity, accuracy and entropy, as `xent_rs.evaluate`.

    With ``z = logits / temperature`` and ``p = softmax(z)``: the loss is ``mean(logsumexp(z) - z[target])``,
    the perplexity ``exp(loss)`` and the entropy ``mean(-sum(p * ln(p)))``.

    Parameters
    ----------
    logits : dask.array.Array of float16, bfloat16, float32 or float64
        One row of logits for each target, the classes along `axis`; any number of other axes, including none,
        in any chunks. Classes in several chunks are not joined: blocks are looked at where they are.
    targets : dask.array.Array or array_like of integers
        The classes, in the shape of `logits` without `axis`; in other chunks they are rechunked.
    **options
        Those of `EvaluateLogitsOptions` (`xent_rs._evaluation_options`) and `SplitOptions`; weights may be
        Dask arrays, too. (Of hidden states, ``hidden @ linear_weight.T`` is a Dask array of logits.)

    Returns
    -------
    dask.delayed.Delayed
        An `xent_rs.Evaluation` when it is computed.

    Raises
    ------
    TypeError, ValueError
        As `xent_rs.evaluate`, at once; also TypeError for logits that are no Dask array, and ValueError for
        chunks of unknown lengths.
    IndexError
        If a target is neither a class nor `ignore_index`, when it is computed.

    Notes
    -----
    With all classes in one chunk the result is that of `xent_rs.evaluate` of the whole array (of an array of
    NumPy in C order, the classes last) to the bit, whatever the chunks of rows, the scheduler and
    `split_every` are. With the classes in several chunks it is within the accuracy of that, the same for any
    chunks of rows; NumPy's exponentials, which take part then, may differ in a last bit between kinds of CPU.
    Sums over rows are exact here as there.

    Examples
    --------
    >>> import dask.array as da, numpy as np, xent_rs.dask
    >>> logits = da.from_array(np.log(np.array([[8, 4, 2, 2], [1, 8, 4, 3]], np.float32)), chunks=(1, 2))
    >>> result = xent_rs.dask.evaluate(logits, [0, 2], top_k=(1, 2)).compute()
    >>> round(result.bits, 6), round(result.perplexity, 6), result.accuracy, result.top_k
    (1.5, 2.828427, 0.5, {1: 0.5, 2: 1.0})
    """
    call = _Call.of(_EVALUATE, options, {"logits": logits})
    (x,) = call.logits
    y = call.by_row(targets, "targets")
    weight, sample_weight = call.class_weight(), call.sample_weight()
    call.check_here(xent_rs.evaluate, x, y, sample_weight=sample_weight)
    task = call.task(top_k=top_ks(call.options["top_k"]))
    arguments = [(x, call.all), (y, call.rows), (sample_weight, call.rows), (weight, call.class_index)]
    if call.whole_classes:
        states = call.blocks(_tasks.evaluated, call.rows, arguments, task, call.offsets())
    else:
        tops = max((1, *task.options["top_k"]))
        look = functools.partial(_tasks.looked_at, tops=tops)
        shards = call.blocks(look, call.all, arguments, task, call.offsets())
        states = call.blocks(_tasks.evaluated_shards, call.rows, [(shards, call.all), *arguments[1:]], task)
    return call.delayed(states)


@_COMPARE.describe
def compare(
    reference: da.Array,
    candidate: da.Array,
    targets: da.Array | ArrayLike | None = None,
    **options: Unpack[_CompareOptions],
) -> Delayed:
    r"""Compare the logits of two models lazily, as `xent_rs.compare`.

    With the probabilities p of the reference and q of the candidate, the softmax of ``logits / temperature``,
    a row's divergence is :math:`\mathrm{KL}(p \| q) = \sum_c p_c \log (p_c / q_c)`.

    Parameters
    ----------
    reference, candidate : dask.array.Array of float16, bfloat16, float32 or float64
        The logits of both models, in dtypes of their own: one shape, with the classes along `axis` and any
        number of other axes, in any chunks. Where their chunks differ both are cut where one is. Classes in
        several chunks are not joined: there are two rounds, one for the log-sum-exps and one for the
        divergences, between which a worker keeps the blocks of the rows that it is at.
    targets : dask.array.Array or array_like of integers, optional
        The classes, in the shape of `reference` without `axis`; in other chunks they are rechunked.
    **options
        Those of `CompareLogitsOptions` (`xent_rs._evaluation_options`) and `SplitOptions`; weights and groups
        may be Dask arrays, too.

    Returns
    -------
    dask.delayed.Delayed
        An `xent_rs.Comparison` when it is computed.

    Raises
    ------
    TypeError, ValueError, IndexError
        As `xent_rs.compare` and `evaluate`.

    Notes
    -----
    Results have the bits that `evaluate` says. The state of a chunk of rows has 4 bytes a row for the
    quantiles, and 8 with targets; where the classes are in chunks, some 100 bytes a row for each chunk of
    classes go from task to task, and 32 for each of the largest logits that `top_k` asks for.

    Examples
    --------
    >>> import dask.array as da, math, numpy as np, xent_rs.dask
    >>> reference = da.from_array(np.log(np.array([[8, 4, 2, 2], [1, 8, 4, 3]]) / 16), chunks=(2, 2))
    >>> candidate = da.from_array(np.log(np.array([[4, 8, 2, 2], [1, 8, 4, 3]]) / 16), chunks=(1, 4))
    >>> result = xent_rs.dask.compare(reference, candidate, [0, 1]).compute()
    >>> round(result.kl.value / math.log(2), 4), round(result.kl_max / math.log(2), 4), result.same_top.value
    (0.125, 0.25, 0.5)
    """
    call = _Call.of(_COMPARE, options, {"reference": reference, "candidate": candidate})
    before, after = call.logits
    y = call.by_row(targets, "targets")
    weight, sample_weight = call.class_weight(), call.sample_weight()
    groups = call.groups()
    call.check_here(xent_rs.compare, before, after, y, sample_weight=sample_weight)
    task = call.task(top_k=top_ks(call.options["top_k"]))
    logits, rows = [(before, call.all), (after, call.all)], call.rows
    by_row: list[_Argument] = [(y, rows), (sample_weight, rows), (groups, rows), (weight, call.class_index)]
    if call.whole_classes:
        states = call.blocks(_tasks.compared, rows, [*logits, *by_row], task, call.offsets())
    else:
        first = [*logits, (y, rows)]
        looked_at = call.blocks(_tasks.looked_at_both, call.all, first, task, call.offsets())
        pairs = call.blocks(_tasks.together, rows, [(looked_at, call.all)], None)
        second: list[_Argument] = [*logits, (pairs, rows)]
        parts = call.blocks(_tasks.compared_shard, call.all, second, task, call.offsets())
        states = call.blocks(_tasks.compared_shards, rows, [(parts, call.all), (pairs, rows), *by_row], task)
    return call.delayed(states)


@_LOSS.describe
def cross_entropy(
    logits: da.Array, targets: da.Array | ArrayLike, **options: Unpack[_LossOptions]
) -> da.Array:
    """Cross-entropy of the softmax of logits with targets, lazily, as `xent_rs.cross_entropy`.

    Without options the loss of a row is ``logsumexp(z) - z[target]``.

    Parameters
    ----------
    logits : dask.array.Array of float16, bfloat16, float32 or float64
        Unnormalised log-probabilities: any number of axes, the classes along `axis`, in any chunks. Classes
        in several chunks are not joined: blocks are looked at where they are.
    targets : dask.array.Array or array_like of integers or probabilities
        The class of each row, in the shape of `logits` without `axis`, or probabilities in the shape of
        `logits`. In other chunks they are rechunked; probabilities and logits are cut where one of them is.
    **options
        Those of `CrossEntropyOptions`, `MeanOptions` and `SplitOptions` (`xent_rs._options`); weights may be
        Dask arrays, too.

    Returns
    -------
    dask.array.Array
        For 'mean' and 'sum' of shape (), float64. For 'none' of the shape of `logits` without `axis`, in the
        logits' chunks of rows, float32, or float64 for float64 logits.

    Raises
    ------
    TypeError, ValueError, IndexError
        As `xent_rs.cross_entropy` and `evaluate`; what is wrong with the numbers in an array is said when it
        is computed.

    Notes
    -----
    With all classes in one chunk the losses of ``reduction='none'`` are those of `xent_rs.cross_entropy`, to
    the bit. Sums are of the same losses before these are rounded to float32; they are exact here, rounded
    once, and so the mean is the same for any chunks of rows. `xent_rs.cross_entropy` adds up in float64: its
    sums and means are within some last bits of these.

    Examples
    --------
    >>> import dask.array as da, numpy as np, xent_rs.dask
    >>> logits = da.from_array(np.array([[2.0, 1.0, 0.1], [0.0, 0.0, 0.0]], np.float32), chunks=(1, 3))
    >>> xent_rs.dask.cross_entropy(logits, [0, 2], reduction="none").compute().round(4)
    array([0.417 , 1.0986], dtype=float32)
    >>> mean = xent_rs.dask.cross_entropy(logits, [0, -100])
    >>> round(float(mean), 6)
    0.41703
    """
    call = _Call.of(_LOSS, options, {"logits": logits}, probabilities=targets)
    x = call.logits[0]
    y = call.logits[1] if call.probabilities else call.by_row(targets, "targets")
    weight, sample_weight = call.class_weight(), call.sample_weight()
    call.check_here(xent_rs.cross_entropy, x, y, sample_weight=sample_weight)
    task = call.task()
    reduction, denominator = call.options["reduction"], call.options["denominator"]
    y_index = call.all if call.probabilities else call.rows
    arguments = [(x, call.all), (y, y_index), (sample_weight, call.rows), (weight, call.class_index)]
    offsets = call.offsets()
    dtype = np.dtype(np.float64 if x.dtype == np.float64 else np.float32)
    if call.whole_classes:
        if reduction == "none":
            return call.blocks(_tasks.losses, call.rows, arguments, task, offsets, dtype=dtype)
        states = call.blocks(_tasks.loss_sums, call.rows, arguments, task, offsets)
    else:
        shards = call.blocks(_tasks.looked_at, call.all, arguments, task, offsets)
        of_rows = [(shards, call.all), (None if call.probabilities else y, call.rows), *arguments[2:]]
        if reduction == "none":
            merge = functools.partial(_tasks.merged_losses, dtype=dtype.name)
            return call.blocks(merge, call.rows, of_rows, task, call.lengths(), dtype=dtype)
        states = call.blocks(_tasks.summed, call.rows, of_rows, task)
    return call.tree(states, (reduction, None if denominator is None else float(denominator)), np.float64)


if TYPE_CHECKING:

    class _EvaluateOptions(EvaluateLogitsOptions, SplitOptions, total=False):
        """All options of `evaluate`."""

    class _CompareOptions(CompareLogitsOptions, SplitOptions, total=False):
        """All options of `compare`."""

    class _LossOptions(CrossEntropyOptions, MeanOptions, SplitOptions, total=False):
        """All options of `cross_entropy`."""


_Index = tuple[int, ...]
_Argument = tuple[da.Array | None, _Index]

# What comes in blocks beside the logits, or says what becomes of the results of blocks.
_NOT_OF_TASKS = {"weight", "sample_weight", "groups", "axis", "split_every", "reduction", "denominator"}


@dataclass(frozen=True)
class _Call:
    """A call whose logits are looked at and aligned, and how its graph is built.

    Attributes
    ----------
    options : dict
        All options, by default or given; weights as arrays.
    logits : tuple of dask.array.Array
        The logits, in the same chunks; after them the targets, if these are probabilities.
    name : str
        What the caller calls the first.
    axis : int
        The axis of the classes, counted from the first. In graphs each axis has its number as its index.
    probabilities : bool
        Whether the targets are probabilities.
    """

    options: Mapping[str, Any]
    logits: tuple[da.Array, ...]
    name: str
    axis: int
    probabilities: bool

    @classmethod
    def of(
        cls,
        keywords: Options,
        options: Mapping[str, Any],
        logits: Mapping[str, da.Array],
        probabilities: Any = None,
    ) -> _Call:
        """Look at the options and at logits, of which there may be two, or probabilities besides."""
        given = _checked(keywords, options)
        for name, array in logits.items():
            _check_lazy(name, array)
        (name, first), *others = logits.items()
        shape, axis = first.shape, operator.index(given["axis"])
        checked_rows(shape, name, axis)
        if not shape[axis]:
            raise ValueError(
                f"{name} {has(name)} shape {shape}; expected at least one class along axis {axis}"
            )
        for other, array in others:
            if array.shape != shape:
                raise ValueError(f"{other} has shape {array.shape}; expected {shape}, the shape of {name}")
        arrays = [*logits.values()]
        soft = None if probabilities is None else _as_array(probabilities, "targets")
        has_probabilities = False
        if soft is not None and soft.dtype.kind not in "iub":
            has_probabilities = True
            if soft.shape != shape:
                raise ValueError(
                    f"targets have shape {soft.shape}; "
                    f"expected {shape}, the shape of {name}, for probabilities"
                )
            arrays.append(_lazy(soft, first.chunks))
        chunks = tuple(_cut(lengths) for lengths in zip(*(array.chunks for array in arrays), strict=True))
        aligned = tuple(_lazy(array, chunks) for array in arrays)
        return cls(given, aligned, name, axis % len(shape), has_probabilities)

    @property
    def all(self) -> _Index:
        """The indices of the logits."""
        return tuple(range(self.logits[0].ndim))

    @property
    def rows(self) -> _Index:
        """The indices of what has one number a row."""
        return tuple(axis for axis in self.all if axis != self.axis)

    @property
    def class_index(self) -> _Index:
        """The index of what has one number a class."""
        return (self.axis,)

    @property
    def classes(self) -> int:
        """The number of classes."""
        return int(self.logits[0].shape[self.axis])

    @property
    def whole_classes(self) -> bool:
        """Whether all classes are in one chunk."""
        return len(self.logits[0].chunks[self.axis]) == 1

    def by_row(self, values: Any, name: str) -> da.Array | None:
        """Return what has one number a row, in the chunks of the logits."""
        if values is None:
            return None
        found = _as_array(values, name)
        shape = self.logits[0].shape
        rows = tuple(shape[axis] for axis in self.rows)
        if found.shape != rows:
            axis = self.options["axis"]
            of = f"the shape of {self.name} {shape} without axis {axis}"
            expected = of if name == "targets" else _EACH[name]
            raise ValueError(f"{name} {has(name)} shape {found.shape}; expected {rows}, {expected}")
        return _lazy(found, tuple(self.logits[0].chunks[axis] for axis in self.rows))

    def sample_weight(self) -> da.Array | None:
        """Return the weights of rows."""
        return self.by_row(self.options["sample_weight"], "sample_weight")

    def groups(self) -> da.Array | None:
        """Return the labels of groups."""
        groups = self.options["groups"]
        if groups is not None and not isinstance(groups, da.Array):
            groups = group_labels(groups, None)
        return self.by_row(groups, "groups")

    def class_weight(self) -> da.Array | None:
        """Return the weights of classes, in the chunks of the classes."""
        weight = self.options["weight"]
        if weight is None:
            return None
        if weight.shape != (self.classes,):
            raise ValueError(
                f"weight has shape {weight.shape}; expected ({self.classes},), one number a class"
            )
        return _lazy(weight, (self.logits[0].chunks[self.axis],))

    def check_here(
        self, function: Callable[..., Any], *arrays: da.Array | None, sample_weight: da.Array | None
    ) -> None:
        """Let the local function look at dtypes and options: at the same call of no rows."""
        weight = self.options["weight"]
        options = {
            **{name: value for name, value in self.options.items() if name not in ("groups", "split_every")},
            "axis": -1,
            "weight": None if isinstance(weight, da.Array) else weight,
            "sample_weight": None if sample_weight is None else np.empty(0, sample_weight.dtype),
        }
        function(*(self._of_no_rows(array) for array in arrays), **options)

    def _of_no_rows(self, array: da.Array | None) -> NDArray[Any] | None:
        if array is None:
            return None
        by_class = array.ndim == self.logits[0].ndim
        return np.empty((0, self.classes) if by_class else 0, array.dtype)

    def task(self, **changed: Any) -> Task:
        """Return what all blocks have in common."""
        options = {name: value for name, value in self.options.items() if name not in _NOT_OF_TASKS}
        return Task(self.axis, self.classes, self.probabilities, {**options, **changed})

    def offsets(self) -> list[_Argument]:
        """Return where each block begins: along the axes of the rows, and then in the classes."""
        begins = [np.cumsum([0, *chunks[:-1]]) for chunks in self.logits[0].chunks]
        return [_each(begins[axis], axis) for axis in (*self.rows, self.axis)]

    def lengths(self) -> list[_Argument]:
        """Return how many steps each block has along the axes of the rows."""
        return [_each(np.array(self.logits[0].chunks[axis]), axis) for axis in self.rows]

    def blocks(
        self,
        function: Callable[..., Any],
        index: _Index,
        arguments: Sequence[_Argument],
        task: Task | None = None,
        places: Sequence[_Argument] = (),
        dtype: Any = object,
    ) -> da.Array:
        """Return what a function makes of blocks, of those of an index that is not in `index` as lists."""
        parts: list[Any] = []
        for array, of in (*arguments, *places):
            parts += (None, None) if array is None else (array, of)
        chunks = self.logits[0].chunks
        result: da.Array = da.blockwise(
            function if task is None else functools.partial(function, task=task),
            index,
            *parts,
            # An object stands for a block.
            adjust_chunks={axis: 1 if dtype is object else chunks[axis] for axis in index},
            align_arrays=False,
            concatenate=False,
            dtype=dtype,
            meta=np.empty((0,) * len(index), dtype),
            token=_token(function),
        )
        return result

    def tree(self, states: da.Array, of: tuple[Any, ...] = (), dtype: Any = object) -> da.Array:
        """Merge states of rows, some at a time, and return their result."""
        result: da.Array = da.reduction(
            states,
            chunk=_tasks.as_it_is,
            combine=_tasks.merged,
            aggregate=functools.partial(_tasks.result, of=of),
            axis=tuple(range(states.ndim)),
            split_every=self.options["split_every"],
            concatenate=False,
            dtype=dtype,
            meta=np.empty((0,) * states.ndim, dtype),
            name=_token(_tasks.result),
        )
        return result

    def delayed(self, states: da.Array) -> Delayed:
        """Return the result of states as what computes later."""
        result = self.tree(states)
        if hasattr(result, "to_delayed"):
            return cast(Delayed, result.to_delayed().item())
        # With Dask's query planning there is but this, one of whose keys has a random name.
        return cast(Delayed, delayed(_tasks.itself, pure=True)(result))


_EACH = {"sample_weight": "one number a row", "groups": "one group a row"}


def _checked(keywords: Options, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return all options; what is wrong with those that are no Dask arrays is said now."""
    lazy = {name: value for name, value in options.items() if isinstance(value, da.Array)}
    given = with_arrays({name: value for name, value in options.items() if name not in lazy})
    if isinstance(given.get("top_k"), Iterable):  # which may be read but once
        given["top_k"] = tuple(given["top_k"])
    split_every = given.get("split_every")
    if split_every is not None and integer(split_every, "split_every is") < 2:
        raise ValueError(f"split_every is {split_every}; expected at least 2")
    keywords.check({name: value for name, value in given.items() if name not in ("groups", "split_every")})
    return {"groups": None, **keywords.defaults, **given, **lazy}


def _check_lazy(name: str, array: Any) -> None:
    """Refuse logits that are not lazy, or that nobody knows the shape of."""
    if not isinstance(array, da.Array):
        found = type(array).__name__
        raise TypeError(f"{name}: found {found}; expected a Dask array (dask.array.from_array)")
    if any(math.isnan(length) for length in array.shape):
        raise ValueError(
            f"{name} {has(name)} chunks of unknown lengths; "
            f"expected known ones ({name}.compute_chunk_sizes())"
        )


def _as_array(values: Any, name: str) -> Any:
    """Return a Dask array as it is, and all else as an array of NumPy."""
    if isinstance(values, da.Array):
        _check_lazy(name, values)
        return values
    if isinstance(values, np.ndarray) and values.dtype.kind in "UT":  # labels, which are no numbers
        return values
    return _xent_rs.as_array(values, name)


def _lazy(array: Any, chunks: tuple[tuple[int, ...], ...]) -> da.Array:
    """Return a Dask array in these chunks."""
    found: da.Array = array if isinstance(array, da.Array) else da.from_array(array, chunks=chunks)
    return found if found.chunks == chunks else found.rechunk(chunks)


def _cut(chunks: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """Return chunks along an axis that end where any of those of several arrays do."""
    first, *others = chunks
    if all(other == first for other in others):
        return first
    ends = sorted({int(end) for lengths in chunks for end in np.cumsum(lengths) if end})
    return tuple(end - start for start, end in zip([0, *ends], ends, strict=False)) or (0,)


def _each(numbers: NDArray[Any], axis: int) -> _Argument:
    """Return a number for each block along an axis."""
    return da.from_array(numbers, chunks=1), (axis,)


def _token(function: Callable[..., Any]) -> str:
    """Return what the names of the tasks of a function begin with."""
    plain = function.func if isinstance(function, functools.partial) else function
    return f"xent_rs-{plain.__name__}"
