"""Walking over logits, and what belongs to their rows, in blocks of bounded size."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any, Protocol, overload

import numpy as np
from numpy.typing import NDArray

from .. import _xent_rs
from .._arguments import checked_rows, has, has_slices, integer
from ._stored import Box, StoredArray

Position = tuple[int, ...]
PairedBlock = tuple[
    Position,
    NDArray[Any],
    NDArray[Any],
    NDArray[Any] | None,
    NDArray[Any] | None,
    NDArray[Any] | None,
]


class SlicedArray(Protocol):
    """An array that is read slice by slice: a `StoredArray`, one of Zarr, h5py, Dask, xarray, NumPy.

    Where it has ``chunks``, as Zarr and h5py have them (a length for each axis) or as Dask and xarray do (all
    lengths along each axis), blocks end where chunks do.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of steps along each axis."""

    @property
    def dtype(self) -> Any:
        """What the numbers are."""

    def __getitem__(self, index: Any, /) -> Any:
        """Return what a tuple of slices asks for, as something that converts to an array of NumPy."""


@overload
def row_blocks(
    logits: SlicedArray,
    targets: SlicedArray,
    sample_weight: None = None,
    *,
    axis: int = -1,
    shift: int = 0,
    score_from: int = 0,
    skip: int = 0,
    max_bytes: int = 64 << 20,
) -> Iterator[tuple[Position, NDArray[Any], NDArray[Any]]]: ...
@overload
def row_blocks(
    logits: SlicedArray,
    targets: SlicedArray,
    sample_weight: SlicedArray,
    *,
    axis: int = -1,
    shift: int = 0,
    score_from: int = 0,
    skip: int = 0,
    max_bytes: int = 64 << 20,
) -> Iterator[tuple[Position, NDArray[Any], NDArray[Any], NDArray[Any]]]: ...
def row_blocks(
    logits: SlicedArray,
    targets: SlicedArray,
    sample_weight: SlicedArray | None = None,
    *,
    axis: int = -1,
    shift: int = 0,
    score_from: int = 0,
    skip: int = 0,
    max_bytes: int = 64 << 20,
) -> Iterator[tuple[Any, ...]]:
    """Walk over logits and their targets together, in blocks of bounded size.

    Blocks are cut along the first axis that is not the class axis; where a single step along it has more than
    `max_bytes`, also along the next one, and so on. Where the logits have chunks, or come from several files,
    blocks end where these do, if one fits into `max_bytes`; larger chunks are read more than once. Otherwise
    the cuts depend on the shape and the dtype of the logits alone, so every format gives the same blocks.
    There is at least one block, if only an empty one. The rows come in C order, so that results of blocks can
    be appended to each other. A block may be the file itself, mapped, which must not shrink while the block
    is in use.

    Parameters
    ----------
    logits : StoredArray or another array with shape, dtype and slicing
        The logits: an array of Zarr, h5py, Dask, xarray or NumPy, for example.
    targets : StoredArray or another array with shape, dtype and slicing
        The targets, in the shape of the logits without `axis`.
    sample_weight : StoredArray or another array with shape, dtype and slicing, optional
        The weights of the rows, in the shape of the targets.
    axis : int, default -1
        The axis of the classes.
    shift : int, default 0
        How many positions later the target of a row stands, positions being the last axis of the targets: 1
        for the next token, where `targets` are the tokens that the model has read. The weight of a row is
        that of its target. The last `shift` rows have no target and are left out.
    score_from : int, default 0
        The first position, along the same axis, whose logits count; those before it are left out.
    skip : int, default 0
        How many blocks to leave out at the beginning, without reading them.
    max_bytes : int, default 64 MiB
        The largest size of a block of logits. A block holds at least one row.

    Yields
    ------
    position : tuple of int
        Index of the first target of the block in `targets`.
    logits : ndarray
        The block of logits, with all its axes.
    targets : ndarray
        Its targets.
    sample_weight : ndarray
        The weights of its rows; only if there are weights.

    Raises
    ------
    TypeError
        If an argument is not of the type described.
    ValueError
        If the shapes do not match, or a number is out of its range.

    Examples
    --------
    >>> import numpy as np
    >>> from xent_rs import io
    >>> logits, tokens = np.zeros((2, 5, 7), np.float32), np.arange(10).reshape(2, 5) % 7
    >>> for position, some_logits, some_targets in io.row_blocks(logits, tokens, shift=1, max_bytes=120):
    ...     print(position, some_logits.shape, some_targets)
    (0, 1) (1, 4, 7) [[1 2 3 4]]
    (1, 1) (1, 4, 7) [[6 0 1 2]]
    """
    by_row = (
        {"targets": targets}
        if sample_weight is None
        else {"targets": targets, "sample_weight": sample_weight}
    )
    return _walk({"logits": logits}, by_row, axis, shift, score_from, skip, max_bytes)


def paired_row_blocks(
    reference: SlicedArray,
    candidate: SlicedArray,
    targets: SlicedArray | None = None,
    sample_weight: SlicedArray | None = None,
    groups: SlicedArray | None = None,
    *,
    axis: int = -1,
    shift: int = 0,
    score_from: int = 0,
    skip: int = 0,
    max_bytes: int = 64 << 20,
    same_classes: bool = True,
) -> Iterator[PairedBlock]:
    """Walk over the logits of two models together, in the blocks of `row_blocks`.

    Parameters
    ----------
    reference, candidate : StoredArray or another array with shape, dtype and slicing
        The logits of the two models: one shape, dtypes that may differ.
    targets : StoredArray or another array with shape, dtype and slicing, optional
        The targets, in the shape of the logits without `axis`.
    sample_weight : StoredArray or another array with shape, dtype and slicing, optional
        The weights of the rows, in the same shape.
    groups : StoredArray or another array with shape, dtype and slicing, optional
        The groups of the rows, in the same shape; with `shift` that of a row is its target's.
    axis, shift, score_from, skip : int
        As in `row_blocks`.
    max_bytes : int, default 64 MiB
        The largest size of a block of both logits together. A block holds at least one row.
    same_classes : bool, default True
        Whether the logits must have one length along `axis`. Hidden states of two models may have two.

    Yields
    ------
    position : tuple of int
        Index of the first target of the block in `targets`.
    reference, candidate : ndarray
        The blocks of logits.
    targets, sample_weight, groups : ndarray or None
        Those of the rows of the block, if there are any.

    Raises
    ------
    TypeError
        If an argument is not of the type described.
    ValueError
        If the shapes do not match, or a number is out of its range.

    Examples
    --------
    >>> import numpy as np
    >>> from xent_rs import io, kl_divergence
    >>> reference, candidate = np.zeros((6, 4)), np.zeros((6, 4), np.float16)
    >>> total = 0.0
    >>> for _, teacher, pupil, *_ in io.paired_row_blocks(reference, candidate, max_bytes=80):
    ...     total += kl_divergence(pupil, teacher, reduction="sum")
    >>> total
    0.0
    """
    by_row = {"targets": targets, "sample_weight": sample_weight, "groups": groups}
    logits = {"reference": reference, "candidate": candidate}
    return _walk(logits, by_row, axis, shift, score_from, skip, max_bytes, same_classes=same_classes)


def _walk(
    logits: Mapping[str, SlicedArray],
    by_row: Mapping[str, SlicedArray | None],
    axis: int,
    shift: int,
    score_from: int,
    skip: int,
    max_bytes: int,
    *,
    same_classes: bool = True,
) -> Iterator[tuple[Any, ...]]:
    """Give the blocks of logits of one shape and of what has a number for each of their rows, or None."""
    for name, array in {**logits, **by_row}.items():
        if not has_slices(array) and (array is not None or name in logits):
            found = type(array).__name__
            raise TypeError(f"{name}: found {found}; expected an array with shape, dtype and slicing")
    axis, max_bytes = integer(axis, "axis is"), integer(max_bytes, "max_bytes is")
    shift, score_from, skip = (
        _count(value, name)
        for name, value in {"shift": shift, "score_from": score_from, "skip": skip}.items()
    )
    name, shape = next((name, array.shape) for name, array in logits.items())
    rows, class_axis = checked_rows(shape, name, axis), axis % len(shape)
    for other, array in logits.items():
        lengths = list(array.shape)
        if not same_classes and len(lengths) == len(shape):
            lengths[class_axis] = shape[class_axis]
        if tuple(lengths) != shape:
            but = "" if same_classes else f" but for axis {axis}"
            raise ValueError(f"{other} has shape {array.shape}; expected {shape}, the shape of {name}{but}")
    for other, array in by_row.items():
        if array is not None and array.shape != rows:
            of = (
                f"the shape of {name} {shape} without axis {axis}"
                if other == "targets"
                else "one number a row"
            )
            raise ValueError(f"{other} {has(other)} shape {array.shape}; expected {rows}, {of}")
    positions = rows[-1] if rows else 0
    for what, count in {"shift": shift, "score_from": score_from}.items():
        if count > positions:
            raise ValueError(f"{what} is {count}; expected 0 to {positions} for {name} of shape {shape}")
        positions -= count

    scored = (*rows[:-1], positions) if rows else ()
    row_bytes = sum(array.shape[class_axis] * np.dtype(array.dtype).itemsize for array in logits.values())
    borders = _borders(logits.values(), class_axis, score_from)
    indices = list(_cut(scored, borders, row_bytes, max_bytes))[skip:]
    by_target = [_moved(index, score_from + shift) for index in indices]
    by_logits = [_moved(index, score_from) for index in indices]
    blocks = []
    for name, array in logits.items():
        classes = (slice(0, array.shape[class_axis]),)
        with_classes = [index[:class_axis] + classes + index[class_axis:] for index in by_logits]
        blocks.append(_blocks(array, name, with_classes))
    blocks += [_blocks(array, name, by_target) for name, array in by_row.items()]
    positions_of = (tuple(part.start for part in index) for index in by_target)
    return zip(positions_of, *blocks, strict=True)


def _count(value: object, name: str) -> int:
    count = integer(value, f"{name} is")
    if count < 0:
        raise ValueError(f"{name} is {count}; expected at least 0")
    return count


def _blocks(array: SlicedArray | None, name: str, indices: Iterable[Box]) -> Iterator[NDArray[Any] | None]:
    """Read the blocks of an array, if there is one."""
    if array is None:
        return (None for _ in indices)
    if isinstance(array, StoredArray):
        return array.blocks(indices)
    return (_xent_rs.as_array(array[index], name) for index in indices)


def _moved(index: Box, positions: int) -> Box:
    """Move a block along the last axis."""
    if not positions:
        return index
    *others, last = index
    return (*others, slice(last.start + positions, last.stop + positions))


def _cut(
    rows: tuple[int, ...], borders: Sequence[Sequence[int]], row_bytes: int, max_bytes: int
) -> Iterator[Box]:
    """Cut the row axes into blocks of at most `max_bytes`, in C order, at borders where it can be."""
    if not rows:
        yield ()
        return
    first, others = rows[0], rows[1:]
    step_bytes = row_bytes * math.prod(others)
    if first and others and step_bytes > max_bytes:
        for start in range(first):
            for rest in _cut(others, borders[1:], row_bytes, max_bytes):
                yield (slice(start, start + 1), *rest)
        return
    steps = max(1, max_bytes // max(1, step_bytes))
    whole = tuple(slice(0, length) for length in others)
    start = 0
    while True:
        stop = min(start + steps, first)
        border = borders[0][bisect_right(borders[0], stop) - 1]  # the last that is not behind the block
        if start < border and stop < first:
            stop = border
        yield (slice(start, stop), *whole)
        start = stop
        if start >= first:
            return


def _borders(arrays: Iterable[SlicedArray], class_axis: int, score_from: int) -> list[Sequence[int]]:
    """Return where chunks begin, along each axis of the rows: those of the first array that has any."""
    arrays = list(arrays)
    shape = arrays[0].shape
    whole = [(length,) for length in shape]
    chunks = next(filter(None, (_chunks(array) for array in arrays)), whole)
    begins: list[Sequence[int]] = [
        range(0, max(1, length), of_axis) if isinstance(of_axis, int) else [0, *accumulate(of_axis)]
        for length, of_axis in zip(shape, chunks, strict=True)
    ]
    del begins[class_axis]
    if begins and score_from:
        begins[-1] = [0, *(begin - score_from for begin in begins[-1] if begin > score_from)]
    return begins


def _chunks(array: SlicedArray) -> list[int | tuple[int, ...]] | None:
    """Return the lengths of an array's chunks along each axis, if it has any."""
    chunks = getattr(array, "chunks", None)
    if not isinstance(chunks, tuple) or len(chunks) != len(array.shape):
        return None
    return [tuple(map(int, part)) if isinstance(part, tuple) else max(1, int(part)) for part in chunks]
