"""`StoredArray`: an array in one file or in several, whose numbers stay there until they are asked for."""

from __future__ import annotations

import math
import os
import shutil
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import EllipsisType
from typing import IO, TYPE_CHECKING, Any, SupportsIndex

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ._formats import Layout, excerpt, llama

if TYPE_CHECKING:
    from typing_extensions import Self

Box = tuple[slice, ...]  # a slice of step 1 for each axis

_COPY_BYTES = 1 << 20
_LONGEST = 500  # text of an error, which may quote a file


class ArrayFileError(ValueError):
    """A file does not hold the array asked for; the message names the file and what is wrong with it."""


class RawNumbersError(ArrayFileError):
    """A file has numbers of two bytes and does not say which: so NumPy stores a dtype that is not its own.

    Attributes
    ----------
    found : str
        What the message says but for what to do about it.
    """

    def __init__(self, name: str) -> None:
        self.found = f"{name}: holds raw numbers of 2 bytes (V2), which is how NumPy stores bfloat16"
        super().__init__(f"{self.found}; if that is what they are, say dtype bfloat16")


@dataclass(frozen=True)
class Shard:
    """What one file holds of an array: all of it, or some of its rows.

    Attributes
    ----------
    name : str
        What was opened: ``FILE`` or ``FILE:KEY``.
    path : Path
        The file.
    layout : Layout
        Where the numbers are in the file.
    stamp : tuple of int
        Inode, size and time of the last change of the file, by which it is known again.
    """

    name: str
    path: Path
    layout: Layout
    stamp: tuple[int, int, int]


@dataclass(frozen=True)
class StoredArray:
    """An array in files: where its numbers are, and how to read them.

    It has what Dask, xarray and others ask of an array that is read piece by piece: a shape, a dtype and
    slicing. An index takes integers, slices and ``...``, and gives an array that is memory-mapped and
    read-only where the numbers asked for are in one file as they are, and a new one otherwise. A file that is
    another one than the one opened, by inode, size or time of its last change, is refused then.

    Attributes
    ----------
    name : str
        What was opened: ``FILE`` or ``FILE:KEY``, where ``FILE`` may stand for several.
    files : tuple of Shard
        The files, in the order of their rows: the first axis goes through one after the other.

    Examples
    --------
    >>> import numpy as np
    >>> from xent_rs import io
    >>> for number in range(11):
    ...     np.save(f"logits-{number}.npy", np.full((2, 3), number, np.float32))
    >>> logits = io.open_array("logits-*.npy")
    >>> logits.shape, logits.dtype, len(logits.files)
    ((22, 3), dtype('float32'), 11)
    >>> logits[19:, 0]
    array([ 9., 10., 10.], dtype=float32)
    """

    name: str
    files: tuple[Shard, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of steps along each axis."""
        first = self.files[0].layout.shape
        return (sum(shard.layout.shape[0] for shard in self.files), *first[1:]) if first else first

    @property
    def dtype(self) -> np.dtype[Any]:
        """What the numbers are, big-endian ones as stored."""
        return self.files[0].layout.dtype

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """Number of bytes of the (decompressed) array."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def chunks(self) -> tuple[tuple[int, ...], ...] | None:
        """Lengths of what lies together, along each axis and as Dask has them; None for a single file."""
        if len(self.files) == 1:
            return None
        return (
            tuple(shard.layout.shape[0] for shard in self.files),
            *((length,) for length in self.shape[1:]),
        )

    def __len__(self) -> int:
        """Return the number of steps along the first axis."""
        if not self.shape:
            raise TypeError("an array without axes has no length")
        return self.shape[0]

    def __getitem__(
        self, index: SupportsIndex | slice | EllipsisType | tuple[SupportsIndex | slice | EllipsisType, ...]
    ) -> NDArray[Any]:
        """Return some of the array; a compressed one is decompressed into a temporary file for that."""
        box, within = _box(index, self.shape)
        (block,) = self._blocks([box], in_order=False)
        return block[within]

    def __array__(self, dtype: DTypeLike | None = None, *, copy: bool | None = None) -> NDArray[Any]:
        """Return the whole array, for NumPy."""
        if copy is None:  # which NumPy 1 does not take
            return np.asarray(self[...], dtype)
        return np.array(self[...], dtype, copy=copy)

    def __dask_tokenize__(self) -> tuple[object, ...]:
        """Return what Dask makes names of: the files, with size and time of the last change, unread."""
        return (
            type(self).__qualname__,
            [
                (os.path.abspath(shard.path), shard.stamp, repr(shard.layout), shard.layout.dtype.name)
                for shard in self.files
            ],
        )

    def map(self) -> NDArray[Any]:
        """Return the whole array, memory-mapped and read-only.

        A compressed one is decompressed into a temporary file (in ``TMPDIR``), which lives as long as the
        array. One of several files is copied into memory.
        """
        return self[...]

    def blocks(self, indices: Iterable[Box]) -> Iterator[NDArray[Any]]:
        """Yield the blocks of the array that are asked for, each a tuple of slices of step 1, one an axis.

        A block of a file that is not compressed is mapped alone, so that no more than a block is in memory at
        a time. A compressed one is decompressed alone if it comes later in the file than the one before. For
        the first block that does not, the array is decompressed as a whole, as in `map`.
        """
        return self._blocks(indices, in_order=True)

    def _blocks(self, indices: Iterable[Box], *, in_order: bool) -> Iterator[NDArray[Any]]:
        with ExitStack() as stack:
            reader: _Reader | None = None
            for index in indices:
                found = []
                for shard, part in self._of_shards(index):
                    if reader is None or reader.shard is not shard:
                        stack.close()
                        reader = stack.enter_context(_Reader(shard, in_order=in_order))
                    found.append(reader.block(part))
                if len(found) == 1:
                    yield found[0]
                elif found:
                    yield np.concatenate(found, dtype=self.dtype)  # for it makes big-endian ones native
                else:
                    yield np.empty(tuple(part.stop - part.start for part in index), self.dtype)

    def _of_shards(self, index: Box) -> Iterator[tuple[Shard, Box]]:
        """Give the shards that a block is in, each with what it has of it; none for an empty block."""
        if any(part.start >= part.stop for part in index):
            return
        if not index:
            yield self.files[0], index
            return
        rows, *others = index
        start = 0
        for shard in self.files:
            stop = start + shard.layout.shape[0]
            if max(start, rows.start) < min(stop, rows.stop):
                part = slice(max(start, rows.start) - start, min(stop, rows.stop) - start)
                yield shard, (part, *others)
            start = stop


class _Reader:
    """An open file of an array, if it is still the one that was checked.

    Parameters
    ----------
    shard : Shard
        The file.
    in_order : bool
        Whether blocks are going to be asked for in the order of the file, so that a compressed array can be
        read as it is decompressed.
    """

    def __init__(self, shard: Shard, *, in_order: bool) -> None:
        self.shard = shard
        self._layout = shard.layout
        self._in_order = in_order
        self._done = 0  # number of bytes of the stream that are read
        self._whole: NDArray[np.uint8] | None = None  # decompressed
        self._stream: IO[bytes] | None = None
        with ExitStack() as stack, readable(shard.name):
            self._file = stack.enter_context(shard.path.open("rb"))
            if stamp(self._file) != shard.stamp:
                raise ArrayFileError(f"{shard.name}: has changed since it was opened")
            if self._layout.member is not None:
                self._stream = stack.enter_context(_decompressed(self._file, self._layout))
            self._open = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def block(self, index: Box) -> NDArray[Any]:
        """Read a block that is not empty."""
        with readable(self.shard.name):
            if self._layout.record is None:
                return self._strided(index, self._layout.dtype)
            *rows, classes = index
            return llama.decoded(self._strided(rows, self._layout.record), classes)

    def _strided(self, index: Sequence[slice], dtype: np.dtype[Any]) -> NDArray[Any]:
        """Give what lies from the first number of a block to its last the form of the block."""
        strides = self._layout.strides
        shape = tuple(part.stop - part.start for part in index)
        first = sum(part.start * stride for part, stride in zip(index, strides, strict=True))
        last = sum((part.stop - 1) * stride for part, stride in zip(index, strides, strict=True))
        size = last + dtype.itemsize - first
        data = self._bytes(first, size, has_gaps=size > math.prod(shape) * dtype.itemsize)
        return np.ndarray(shape, dtype, data, strides=strides)

    def _bytes(self, first: int, size: int, *, has_gaps: bool) -> NDArray[np.uint8]:
        """Return bytes of the array, counted from its first one."""
        if self._stream is None:
            return self._map(self._file, self._layout.offset + first, size)
        if self._whole is None and self._in_order and first >= self._done and not has_gaps:
            while self._done < first:
                left_out = min(_COPY_BYTES, first - self._done)
                _read(self._stream, left_out)
                self._done += left_out
            self._done += size
            return _read(self._stream, size)
        if self._whole is None:
            with tempfile.TemporaryFile() as copy, _decompressed(self._file, self._layout) as stream:
                shutil.copyfileobj(stream, copy, _COPY_BYTES)
                copy.flush()
                self._whole = self._map(copy, 0, self._layout.nbytes)
        return self._whole[first : first + size]

    def _map(self, file: IO[bytes], offset: int, size: int) -> NDArray[np.uint8]:
        return np.asarray(np.memmap(file, np.uint8, "r", offset, (size,)))


@contextmanager
def _decompressed(file: IO[bytes], layout: Layout) -> Iterator[IO[bytes]]:
    """Open the decompressed member at its first number."""
    assert layout.member is not None
    with zipfile.ZipFile(file) as archive, archive.open(layout.member) as stream:
        _read(stream, layout.offset)
        yield stream


def _read(stream: IO[bytes], size: int) -> NDArray[np.uint8]:
    """Read bytes; in small pieces, for a zip stream builds each as a `bytes` first."""
    data = np.empty(size, np.uint8)
    done = 0
    while done < size:
        piece = stream.read(min(_COPY_BYTES, size - done))
        if not piece:
            raise ValueError(f"truncated: {size - done} bytes are missing")
        data[done : done + len(piece)] = np.frombuffer(piece, np.uint8)
        done += len(piece)
    return data


def _box(index: Any, shape: tuple[int, ...]) -> tuple[Box, tuple[int | slice, ...]]:
    """Return the slices of step 1 that hold what an index asks for, and where in them that is."""
    parts = list(index) if isinstance(index, tuple) else [index]
    if sum(part is Ellipsis for part in parts) > 1:
        raise IndexError("an index can only have a single ellipsis ('...')")
    missing = len(shape) - sum(part is not Ellipsis for part in parts)
    if missing < 0:
        raise IndexError(f"too many indices: found {len(shape) - missing}; expected at most {len(shape)}")
    place = next((place for place, part in enumerate(parts) if part is Ellipsis), len(parts))
    parts[place : place + 1] = [slice(None)] * missing
    box: list[slice] = []
    within: list[int | slice] = []
    for axis, (part, length) in enumerate(zip(parts, shape, strict=True)):
        if isinstance(part, slice):
            steps = range(*part.indices(length))
            low, high = (min(steps[0], steps[-1]), max(steps[0], steps[-1]) + 1) if steps else (0, 0)
            box.append(slice(low, high))
            within.append(slice(None, None, steps.step))
        else:
            number = _number(part)
            if not -length <= number < length:
                raise IndexError(f"index {number} is out of bounds for axis {axis} with size {length}")
            box.append(slice(number % length, number % length + 1))
            within.append(0)
    return tuple(box), tuple(within)


def _number(part: Any) -> int:
    if not isinstance(part, (bool, np.bool_)) and hasattr(part, "__index__"):
        try:
            return int(part.__index__())
        except TypeError:  # an array of several numbers
            pass
    raise IndexError(f"index has {excerpt(repr(part))}; expected integers, slices and '...'")


@contextmanager
def readable(name: str) -> Iterator[None]:
    """Turn what parsers raise on damaged files into `ArrayFileError`."""
    try:
        yield
    except ArrayFileError:
        raise
    except EOFError as error:
        raise ArrayFileError(f"{name}: truncated") from error
    except (ValueError, NotImplementedError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise ArrayFileError(f"{name}: {excerpt(str(error), _LONGEST)}") from error
    except (struct.error, OverflowError) as error:
        raise ArrayFileError(f"{name}: damaged ({error})") from error
    except OSError as error:
        if error.filename is not None:
            raise
        raise ArrayFileError(f"{name}: {error.strerror or error}") from error


def stamp(file: IO[bytes]) -> tuple[int, int, int]:
    """Return what a file is known by: inode, size and time of the last change."""
    status = os.fstat(file.fileno())
    return status.st_ino, status.st_size, status.st_mtime_ns
