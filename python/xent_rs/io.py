"""Arrays in ``.npy``, ``.npz`` and ``.safetensors`` files, larger than memory if need be.

`open_array` reads and checks the header alone. The numbers stay in the file, memory-mapped, until
`row_blocks` walks over them. Only the compressed members of an ``.npz`` have no place in the file to map:
they are decompressed block by block, or, where the blocks are not in the order of the file, once into a
temporary file.

A file must not shrink while it is in use: as with every memory map, reading numbers that are no longer there
ends the process (SIGBUS).

Examples
--------
>>> import numpy as np
>>> from xent_rs import Evaluator, io
>>> np.savez("batch.npz", logits=np.zeros((6, 4), np.float32), targets=np.arange(6) % 4)
>>> logits, targets = io.open_array("batch.npz:logits"), io.open_array("batch.npz:targets")
>>> evaluator = Evaluator()
>>> for position, some_logits, some_targets in io.row_blocks(logits, targets, max_bytes=64):
...     evaluator.update(some_logits, some_targets)
>>> evaluator.result().perplexity
4.0
"""

from __future__ import annotations

import math
import os
import re
import shutil
import stat
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, overload

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ._arguments import integer
from ._formats import Choose, Layout, dtype_named, excerpt, npy, npz, safetensors

__all__ = ["ArrayFileError", "StoredArray", "open_array", "row_blocks"]

Index = tuple[slice, ...]
Position = tuple[int, ...]
_Order = Literal["C", "F"]

_COPY_BYTES = 1 << 20
_LONGEST = 500  # text of an error, which may quote a file
_GIT_LFS = b"version https://git-lfs"


class ArrayFileError(ValueError):
    """A file does not hold the array asked for; the message names the file and what is wrong with it."""


@dataclass(frozen=True)
class StoredArray:
    """An array in a file: where its numbers are, and how to read them.

    Attributes
    ----------
    name : str
        What was opened: ``FILE`` or ``FILE:KEY``.
    path : Path
        The file.
    member : str or None
        The compressed member of the ``.npz`` file; None if the numbers are in the file as they are.
    offset : int
        Position of the first byte in the file, or in the decompressed member.
    shape : tuple of int
        The shape.
    dtype : numpy.dtype
        The dtype, big-endian ones as stored.
    fortran_order : bool
        Whether the first axis varies fastest.
    stamp : tuple of int
        Inode, size and time of the last change of the file, by which it is known again: a file that has
        another one when its numbers are wanted is refused.
    """

    name: str
    path: Path
    member: str | None
    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran_order: bool
    stamp: tuple[int, int, int]

    @property
    def nbytes(self) -> int:
        """Number of bytes of the (decompressed) array."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def _order(self) -> _Order:
        return "F" if self.fortran_order else "C"

    def map(self) -> NDArray[Any]:
        """Return the array, memory-mapped and read-only.

        A compressed one is decompressed into a temporary file (in ``TMPDIR``), which lives as long as the
        array.
        """
        if self.nbytes == 0:
            return np.empty(self.shape, self.dtype)
        with _readable(self.name), self._open() as file:
            return self._whole(file)

    def blocks(self, indices: Iterable[Index]) -> Iterator[NDArray[Any]]:
        """Yield the blocks of the array that are asked for, each a tuple of slices of step 1, one an axis.

        A block whose numbers are in one piece in the file is mapped alone, so that no more than a block is in
        memory at a time. A compressed one is decompressed alone if it is the next in the file. For the first
        block that is neither, the array is mapped as a whole, as in `map`.
        """
        whole = None
        with _readable(self.name), self._open() as file, self._runs(file) as read_run:
            for index in indices:
                shape = tuple(part.stop - part.start for part in index)
                if 0 in shape:
                    yield np.empty(shape, self.dtype)
                    continue
                first = self._place([part.start for part in index])
                last = self._place([part.stop - 1 for part in index])
                block = None
                if whole is None and last - first + 1 == math.prod(shape):
                    block = read_run(first, shape)
                if block is None:
                    whole = self._whole(file) if whole is None else whole
                    block = whole[index]
                yield block

    @contextmanager
    def _open(self) -> Iterator[IO[bytes]]:
        """Open the file, if it is still the one that was checked."""
        with self.path.open("rb") as file:
            if _stamp(file) != self.stamp:
                raise ArrayFileError(f"{self.name}: has changed since it was opened")
            yield file

    @contextmanager
    def _runs(self, file: IO[bytes]) -> Iterator[Callable[[int, tuple[int, ...]], NDArray[Any] | None]]:
        """Give a function that reads a run of numbers, or None if it is not the next."""
        if self.member is None:
            yield lambda first, shape: self._map(file, self.offset + first * self.dtype.itemsize, shape)
        else:
            with self._open_member(file) as stream:
                done = 0

                def read_next(first: int, shape: tuple[int, ...]) -> NDArray[Any] | None:
                    nonlocal done
                    if first != done:
                        return None
                    done += math.prod(shape)
                    return _read(stream, shape, self.dtype, self._order)

                yield read_next

    def _whole(self, file: IO[bytes]) -> NDArray[Any]:
        if self.member is None:
            return self._map(file, self.offset, self.shape)
        with tempfile.TemporaryFile() as copy, self._open_member(file) as stream:
            shutil.copyfileobj(stream, copy, _COPY_BYTES)
            copy.flush()
            return self._map(copy, 0, self.shape)

    def _map(self, file: IO[bytes], offset: int, shape: tuple[int, ...]) -> NDArray[Any]:
        return np.asarray(np.memmap(file, self.dtype, "r", offset, shape, self._order))

    @contextmanager
    def _open_member(self, file: IO[bytes]) -> Iterator[IO[bytes]]:
        """Open the decompressed member at its first number."""
        assert self.member is not None
        with zipfile.ZipFile(file) as archive, archive.open(self.member) as stream:
            _read(stream, (self.offset,), np.dtype(np.uint8), "C")
            yield stream

    def _place(self, position: list[int]) -> int:
        """Return where in the order of the file a number is."""
        place = 0
        for step, length in list(zip(position, self.shape, strict=True))[:: -1 if self.fortran_order else 1]:
            place = place * length + step
        return place


def open_array(file: str | bytes | os.PathLike[Any], *, dtype: DTypeLike | None = None) -> StoredArray:
    """Open an array in a ``.npy``, ``.npz`` or ``.safetensors`` file.

    Parameters
    ----------
    file : str, bytes or path
        The file, for the last two formats with the name of the array behind a colon: ``model.npz:logits``.
        The name may be left out if there is but one array.
    dtype : str or dtype, optional
        The dtype that the file should hold, in any byte order. Needed for bfloat16 in ``.npy`` and
        ``.npz``, which NumPy stores as two raw bytes (``V2``); ``uint16`` is taken for it as well.

    Returns
    -------
    StoredArray
        Where the array is in the file. Nothing but headers has been read.

    Raises
    ------
    ArrayFileError
        If the file is damaged, or holds no such array or none that can be mapped (Python objects, records).
    OSError
        If the file cannot be read.
    ImportError
        If it holds bfloat16, and ``ml_dtypes`` is not installed.

    References
    ----------
    ``numpy.lib.format`` (.npy), APPNOTE.TXT of PKWARE (.npz is a zip file) and the format section of the
    safetensors documentation.
    """
    name = os.fsdecode(file)
    path, key = _split(name)
    if "\0" in str(path):
        raise ArrayFileError(f"{name!r}: has a null character in the name of the file")
    find = _FORMATS.get(path.suffix.lower())
    if find is None:
        raise ArrayFileError(f"{name}: unknown format; expected a .npy, .npz or .safetensors file")
    if not stat.S_ISREG(path.stat().st_mode):
        raise ArrayFileError(f"{name}: not a regular file")
    if key is not None and find is _find_npy:
        raise ArrayFileError(f"{name}: a .npy file holds one array; leave out ':{key}'")
    with _readable(name), path.open("rb") as opened:
        stamp = _stamp(opened)
        if opened.read(len(_GIT_LFS)) == _GIT_LFS:
            raise ValueError("is a Git LFS pointer, not the file that it stands for: run `git lfs pull`")
        opened.seek(0)
        layout = find(opened, lambda keys: _choose(path, key, keys))
        stored_dtype = _named(layout.dtype, dtype)
    return StoredArray(
        name, path, layout.member, layout.offset, layout.shape, stored_dtype, layout.fortran_order, stamp
    )


def _find_npy(file: IO[bytes], choose: Choose) -> Layout:
    return npy.find(file)


_FORMATS: dict[str, Callable[[IO[bytes], Choose], Layout]] = {
    ".npy": _find_npy,
    ".npz": npz.find,
    ".safetensors": safetensors.find,
}


@overload
def row_blocks(
    logits: StoredArray,
    targets: StoredArray,
    sample_weight: None = None,
    *,
    axis: int = -1,
    max_bytes: int = 64 << 20,
) -> Iterator[tuple[Position, NDArray[Any], NDArray[Any]]]: ...
@overload
def row_blocks(
    logits: StoredArray,
    targets: StoredArray,
    sample_weight: StoredArray,
    *,
    axis: int = -1,
    max_bytes: int = 64 << 20,
) -> Iterator[tuple[Position, NDArray[Any], NDArray[Any], NDArray[Any]]]: ...
def row_blocks(
    logits: StoredArray,
    targets: StoredArray,
    sample_weight: StoredArray | None = None,
    *,
    axis: int = -1,
    max_bytes: int = 64 << 20,
) -> Iterator[tuple[Any, ...]]:
    """Walk over logits and their targets together, in blocks of bounded size.

    Blocks are cut along the first axis that is not the class axis; where a single step along it has more than
    `max_bytes`, also along the next one, and so on. The cuts depend on the shape and the dtype of the logits
    alone, so every format gives the same blocks. There is at least one block, if only an empty one. The rows
    come in C order, so that results of blocks can be appended to each other. A block may be the file itself,
    mapped, which must not shrink while the block is in use.

    Parameters
    ----------
    logits : StoredArray
        The logits.
    targets : StoredArray
        The targets, in the shape of the logits without `axis`.
    sample_weight : StoredArray, optional
        The weights of the rows, in the shape of the targets.
    axis : int, default -1
        The axis of the classes.
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
        If the shapes do not match, or `axis` is out of range.
    """
    for name, array in {"logits": logits, "targets": targets, "sample_weight": sample_weight}.items():
        if not isinstance(array, StoredArray) and (array is not None or name != "sample_weight"):
            raise TypeError(f"{name}: found {type(array).__name__}; expected an array of `open_array`")
    axis = integer(axis, "axis is")
    max_bytes = integer(max_bytes, "max_bytes is")
    shape = logits.shape
    if not shape:
        raise ValueError("logits have shape (); expected at least one axis, the classes")
    if not -len(shape) <= axis < len(shape):
        expected = f"{-len(shape)} to {len(shape) - 1}"
        raise ValueError(f"axis is {axis}; expected {expected} for logits of shape {shape}")
    class_axis = axis % len(shape)
    rows = shape[:class_axis] + shape[class_axis + 1 :]
    if targets.shape != rows:
        raise ValueError(
            f"targets have shape {targets.shape}; expected {rows}, "
            f"the shape of logits {shape} without axis {axis}"
        )
    if sample_weight is not None and sample_weight.shape != rows:
        raise ValueError(f"sample_weight has shape {sample_weight.shape}; expected {rows}, one number a row")

    indices = list(_cut(rows, shape[class_axis] * logits.dtype.itemsize, max_bytes))
    all_classes = (slice(0, shape[class_axis]),)
    with_classes = (index[:class_axis] + all_classes + index[class_axis:] for index in indices)
    by_row = [targets] if sample_weight is None else [targets, sample_weight]
    for index, *blocks in zip(
        indices, logits.blocks(with_classes), *(array.blocks(indices) for array in by_row), strict=True
    ):
        yield tuple(part.start for part in index), *blocks


def _cut(rows: tuple[int, ...], row_bytes: int, max_bytes: int) -> Iterator[Index]:
    """Cut the row axes into blocks of at most `max_bytes`, consecutive in C order."""
    if not rows:
        yield ()
        return
    first, others = rows[0], rows[1:]
    step_bytes = row_bytes * math.prod(others)
    if first and others and step_bytes > max_bytes:
        for start in range(first):
            for rest in _cut(others, row_bytes, max_bytes):
                yield (slice(start, start + 1), *rest)
    else:
        steps = max(1, max_bytes // max(1, step_bytes))
        whole = tuple(slice(0, length) for length in others)
        for start in range(0, max(1, first), steps):
            yield (slice(start, min(start + steps, first)), *whole)


def _read(stream: IO[bytes], shape: tuple[int, ...], dtype: np.dtype[Any], order: _Order) -> NDArray[Any]:
    """Read an array; in small pieces, for a zip stream builds each as a `bytes` first."""
    data = np.empty(math.prod(shape) * dtype.itemsize, np.uint8)
    done = 0
    while done < data.size:
        piece = stream.read(min(_COPY_BYTES, data.size - done))
        if not piece:
            raise ValueError(f"truncated: {data.size - done} bytes are missing")
        data[done : done + len(piece)] = np.frombuffer(piece, np.uint8)
        done += len(piece)
    return data.view(dtype).reshape(shape, order=order)


@contextmanager
def _readable(name: str) -> Iterator[None]:
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


def _split(name: str) -> tuple[Path, str | None]:
    """Split ``FILE:KEY``; a file whose own name has a colon wins."""
    match = re.fullmatch(r"(.+?\.(?:npy|npz|safetensors)):(.+)", name, re.IGNORECASE | re.DOTALL)
    if match is None or os.path.lexists(name):
        return Path(name), None
    return Path(match[1]), match[2]


def _choose(path: Path, key: str | None, keys: list[str]) -> str:
    shown = ", ".join(excerpt(repr(other)) for other in keys[:20]) + (
        f" and {len(keys) - 20} more" if len(keys) > 20 else ""
    )
    if key is None:
        if len(keys) != 1:
            raise ArrayFileError(f"{path}: holds {shown or 'no arrays'}; choose one with {path.name}:KEY")
        return keys[0]
    if key not in keys:
        raise ArrayFileError(f"{path}: holds no array {key!r}; it holds {shown or 'none'}")
    return key


def _stamp(file: IO[bytes]) -> tuple[int, int, int]:
    status = os.fstat(file.fileno())
    return status.st_ino, status.st_size, status.st_mtime_ns


def _named(stored: np.dtype[Any], expected: DTypeLike | None) -> np.dtype[Any]:
    """Return the dtype to read: that of the file, or bfloat16 for the raw bytes as which NumPy stores it."""
    # NumPy itself does not know the name bfloat16.
    is_name = isinstance(expected, str) and expected == "bfloat16"
    name = None if expected is None else "bfloat16" if is_name else np.dtype(expected).name
    if name == "bfloat16" and stored.str in ("|V2", "<u2"):
        return dtype_named(name)
    if name is not None and stored.name != name:
        raise ValueError(f"holds {stored.name}; expected dtype {name}")
    if stored.type is np.void:
        raise ValueError(
            "holds raw numbers of 2 bytes (V2), which is how NumPy stores bfloat16; "
            "if that is what they are, say dtype bfloat16"
            if stored.itemsize == 2
            else f"holds raw bytes ({stored.str[1:]}); expected numbers"
        )
    return stored
