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

import json
import math
import operator
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
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import IO, Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from ._bfloat16 import bfloat16

__all__ = ["ArrayFileError", "StoredArray", "open_array", "row_blocks"]

Index = tuple[slice, ...]
_Order = Literal["C", "F"]
_T = TypeVar("_T")

_MAX_AXES = 32  # NumPy 1.26; NumPy 2 allows 64

# NumPy and the safetensors library refuse longer headers, too.
_MAX_NPY_HEADER = 10_000
_MAX_SAFETENSORS_HEADER = 100_000_000
_SAFETENSORS_DTYPES = {
    "BF16": "bfloat16",
    "F16": "<f2",
    "F32": "<f4",
    "F64": "<f8",
    "I8": "i1",
    "I16": "<i2",
    "I32": "<i4",
    "I64": "<i8",
    "U8": "u1",
    "U16": "<u2",
    "U32": "<u4",
    "U64": "<u8",
}

_LOCAL_ZIP_HEADER = struct.Struct("<4s22xHH")
_COPY_BYTES = 1 << 20
_MAX_EXCERPT = 200


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
    """

    name: str
    path: Path
    member: str | None
    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran_order: bool

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
        with _readable(self.name):
            if self.member is None:
                return self._map(self.path, self.offset, self.shape)
            with tempfile.TemporaryFile() as file, self._open_member() as stream:
                shutil.copyfileobj(stream, file, _COPY_BYTES)
                file.flush()
                return self._map(file, 0, self.shape)

    def blocks(self, indices: Iterable[Index]) -> Iterator[NDArray[Any]]:
        """Yield the blocks of the array that are asked for, each a tuple of slices of step 1, one an axis.

        A block whose numbers are in one piece in the file is mapped alone, so that no more than a block is in
        memory at a time. A compressed one is decompressed alone if it is the next in the file. For the first
        block that is neither, the array is mapped as a whole, as in `map`.
        """
        whole = None
        with _readable(self.name), self._runs() as read_run:
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
                    whole = self.map() if whole is None else whole
                    block = whole[index]
                yield block

    @contextmanager
    def _runs(self) -> Iterator[Callable[[int, tuple[int, ...]], NDArray[Any] | None]]:
        """Open the file; give a function that reads a run of numbers, or None if it is not the next."""
        if self.member is None:
            with self.path.open("rb") as file:
                yield lambda first, shape: self._map(file, self.offset + first * self.dtype.itemsize, shape)
        else:
            with self._open_member() as stream:
                done = 0

                def read_next(first: int, shape: tuple[int, ...]) -> NDArray[Any] | None:
                    nonlocal done
                    if first != done:
                        return None
                    done += math.prod(shape)
                    return _read(stream, shape, self.dtype, self._order)

                yield read_next

    def _map(self, file: Path | IO[bytes], offset: int, shape: tuple[int, ...]) -> NDArray[Any]:
        return np.asarray(np.memmap(file, self.dtype, "r", offset, shape, self._order))

    @contextmanager
    def _open_member(self) -> Iterator[IO[bytes]]:
        """Open the decompressed member at its first number."""
        assert self.member is not None
        with zipfile.ZipFile(self.path) as archive, archive.open(self.member) as stream:
            _read(stream, (self.offset,), np.dtype(np.uint8), "C")
            yield stream

    def _place(self, position: list[int]) -> int:
        """Return where in the order of the file a number is."""
        place = 0
        for step, length in list(zip(position, self.shape, strict=True))[:: -1 if self.fortran_order else 1]:
            place = place * length + step
        return place


def open_array(file: str | bytes | os.PathLike[Any], *, dtype: str | None = None) -> StoredArray:
    """Open an array in a ``.npy``, ``.npz`` or ``.safetensors`` file.

    Parameters
    ----------
    file : str, bytes or path
        The file, for the last two formats with the name of the array behind a colon: ``model.npz:logits``.
        The name may be left out if there is but one array.
    dtype : str, optional
        The name of the dtype that the file should hold. Needed for bfloat16 in ``.npy`` and ``.npz``, which
        NumPy stores as two raw bytes (``V2``); ``uint16`` is taken for it as well.

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
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise ArrayFileError(f"{name}: unknown format; expected a .npy, .npz or .safetensors file")
    if not stat.S_ISREG(path.stat().st_mode):
        raise ArrayFileError(f"{name}: not a regular file")
    with _readable(name):
        stored = reader(name, path, key)
    return replace(stored, dtype=_named(stored, dtype))


def row_blocks(
    logits: StoredArray, targets: StoredArray, *, axis: int = -1, max_bytes: int = 64 << 20
) -> Iterator[tuple[tuple[int, ...], NDArray[Any], NDArray[Any]]]:
    """Walk over logits and their targets together, in blocks of bounded size.

    Blocks are cut along the first axis that is not the class axis; where a single step along it has more than
    `max_bytes`, also along the next one, and so on. The cuts depend on the shape and the dtype of the logits
    alone, so every format gives the same blocks. There is at least one block, if only an empty one.

    Parameters
    ----------
    logits : StoredArray
        The logits.
    targets : StoredArray
        The targets, in the shape of the logits without `axis`.
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

    Raises
    ------
    TypeError
        If `axis` is not an integer.
    ValueError
        If the shapes do not match, or `axis` is out of range.
    """
    try:
        axis = operator.index(axis)
    except TypeError:
        raise TypeError(f"axis is {axis!r}; expected an integer") from None
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

    indices = list(_cut(rows, shape[class_axis] * logits.dtype.itemsize, max_bytes))
    all_classes = (slice(0, shape[class_axis]),)
    with_classes = (index[:class_axis] + all_classes + index[class_axis:] for index in indices)
    for index, some_logits, some_targets in zip(
        indices, logits.blocks(with_classes), targets.blocks(indices), strict=True
    ):
        yield tuple(part.start for part in index), some_logits, some_targets


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
        raise ArrayFileError(f"{name}: {_excerpt(str(error))}") from error
    except (struct.error, OverflowError) as error:
        raise ArrayFileError(f"{name}: damaged ({error})") from error
    except OSError as error:
        if error.filename is not None:
            raise
        raise ArrayFileError(f"{name}: {error.strerror or error}") from error


def _excerpt(text: str) -> str:
    return text if len(text) <= _MAX_EXCERPT else f"{text[:_MAX_EXCERPT]}..."


def _split(name: str) -> tuple[Path, str | None]:
    """Split ``FILE:KEY``; a file whose own name has a colon wins."""
    match = re.fullmatch(r"(.+?\.(?:npy|npz|safetensors)):(.+)", name, re.IGNORECASE | re.DOTALL)
    if match is None or os.path.lexists(name):
        return Path(name), None
    return Path(match[1]), match[2]


def _choose(path: Path, key: str | None, keys: list[str]) -> str:
    shown = ", ".join(_excerpt(repr(other)) for other in keys[:20]) + (
        f" and {len(keys) - 20} more" if len(keys) > 20 else ""
    )
    if key is None:
        if len(keys) != 1:
            raise ArrayFileError(f"{path}: holds {shown or 'no arrays'}; choose one with {path.name}:KEY")
        return keys[0]
    if key not in keys:
        raise ArrayFileError(f"{path}: holds no array {key!r}; it holds {shown or 'none'}")
    return key


def _open_npy(name: str, path: Path, key: str | None) -> StoredArray:
    if key is not None:
        raise ArrayFileError(f"{name}: a .npy file holds one array; leave out ':{key}'")
    with path.open("rb") as file:
        shape, fortran_order, dtype = _npy_header(file)
        offset = file.tell()
        available = os.fstat(file.fileno()).st_size - offset
    return _checked(StoredArray(name, path, None, offset, shape, dtype, fortran_order), available)


def _open_npz(name: str, path: Path, key: str | None) -> StoredArray:
    with path.open("rb") as file, zipfile.ZipFile(file) as archive:
        members = _unique(
            [
                (info.filename.removesuffix(".npy"), info)
                for info in archive.infolist()
                if info.filename.endswith(".npy")
            ]
        )
        member = members[_choose(path, key, list(members))]
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ArrayFileError(
                f"{name}: compressed with method {member.compress_type}; expected deflate or none"
            )
        with archive.open(member) as stream:
            shape, fortran_order, dtype = _npy_header(stream)
            offset = stream.tell()
        available = member.file_size - offset
        stored = StoredArray(name, path, member.filename, offset, shape, dtype, fortran_order)
        if member.compress_type == zipfile.ZIP_STORED:
            start = _stored_member_start(file, member)
            available = min(available, os.fstat(file.fileno()).st_size - start - offset)
            stored = replace(stored, member=None, offset=start + offset)
    return _checked(stored, available)


def _stored_member_start(file: IO[bytes], member: zipfile.ZipInfo) -> int:
    """Position in the file of the bytes of a member that is not compressed."""
    file.seek(member.header_offset)
    signature, name_bytes, extra_bytes = _LOCAL_ZIP_HEADER.unpack(file.read(_LOCAL_ZIP_HEADER.size))
    if signature != b"PK\3\4":
        raise ValueError("damaged (no local header)")
    return member.header_offset + _LOCAL_ZIP_HEADER.size + int(name_bytes) + int(extra_bytes)


def _npy_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Read a .npy header, and no more: NumPy reads as many bytes as a damaged one says that it has."""
    start = file.read(8)
    if len(start) < 8 or not start.startswith(b"\x93NUMPY"):
        raise ValueError(f"does not begin as a .npy file does (begins with {start!r})")
    major, minor = start[6:]
    if (major, minor) == (1, 0):
        size, read_header = 2, np.lib.format.read_array_header_1_0
    elif (major, minor) == (2, 0):
        size, read_header = 4, np.lib.format.read_array_header_2_0
    else:
        # Version 3.0 is for field names of records beyond latin-1.
        raise ValueError(f".npy format {major}.{minor}; expected 1.0 or 2.0")
    length = file.read(size)
    header_bytes = int.from_bytes(length, "little")
    if header_bytes > _MAX_NPY_HEADER:
        raise ValueError(
            f"says that its .npy header has {header_bytes} bytes; expected at most {_MAX_NPY_HEADER}"
        )
    text = file.read(header_bytes)
    if len(length) < size or len(text) < header_bytes:
        raise ValueError("truncated in the .npy header")
    try:
        shape, fortran_order, dtype = read_header(BytesIO(length + text))
        if any(type(axis) is bool for axis in shape):
            raise TypeError("a length is a bool")
    except Exception as error:  # NumPy's parser lets TypeError, TokenError, RecursionError and others out
        raise ValueError(f"damaged .npy header {text!r}") from error
    return tuple(shape), fortran_order, dtype


def _open_safetensors(name: str, path: Path, key: str | None) -> StoredArray:
    with path.open("rb") as file:
        file_bytes = os.fstat(file.fileno()).st_size
        start = file.read(8)
        if len(start) < 8:
            raise ArrayFileError(
                f"{name}: truncated; a safetensors file has at least 8 bytes, this one {len(start)}"
            )
        header_bytes = int.from_bytes(start, "little")
        if header_bytes > _MAX_SAFETENSORS_HEADER:
            raise ArrayFileError(
                f"{name}: says that its header has {header_bytes} bytes; "
                f"expected at most {_MAX_SAFETENSORS_HEADER}"
            )
        if header_bytes > file_bytes - 8:
            raise ArrayFileError(
                f"{name}: truncated; {header_bytes} bytes of header expected, {file_bytes - 8} found"
            )
        text = file.read(header_bytes)
    data_start = 8 + header_bytes
    tensors = _safetensors_header(text, file_bytes - data_start)

    key = _choose(path, key, list(tensors))
    tensor, shown_key = tensors[key], _excerpt(repr(key))
    if tensor.dtype not in _SAFETENSORS_DTYPES:
        supported = ", ".join(_SAFETENSORS_DTYPES)
        shown_dtype = _excerpt(repr(tensor.dtype))
        raise ArrayFileError(f"{name}: {shown_key} has dtype {shown_dtype}; supported are {supported}")
    dtype = _dtype(_SAFETENSORS_DTYPES[tensor.dtype])
    found = tensor.end - tensor.begin
    stored = _checked(
        StoredArray(name, path, None, data_start + tensor.begin, tensor.shape, dtype, False), found
    )
    if stored.nbytes != found:
        raise ArrayFileError(f"{name}: {shown_key} has {found} bytes of data; expected {stored.nbytes}")
    return stored


@dataclass(frozen=True)
class _Tensor:
    """An entry of a safetensors header; `begin` and `end` count from the end of the header."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def _safetensors_header(text: bytes, data_bytes: int) -> dict[str, _Tensor]:
    """Parse and check a safetensors header: the tensors must fill the data without a gap or an overlap."""
    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"damaged safetensors header ({error})") from error
    if not isinstance(header, dict):
        raise ValueError("damaged safetensors header (not a JSON object)")
    header.pop("__metadata__", None)
    tensors = {key: _safetensors_entry(key, entry) for key, entry in header.items()}

    position = 0
    for key, tensor in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
        if tensor.begin != position or tensor.end < tensor.begin:
            raise ValueError(
                f"{key!r} has data_offsets [{tensor.begin}, {tensor.end}]; "
                f"expected it to begin at {position}, where the tensor before it ends"
            )
        position = tensor.end
    if position > data_bytes:
        raise ValueError(f"truncated; {position} bytes of tensors expected, {data_bytes} found")
    if position < data_bytes:
        raise ValueError(f"{data_bytes - position} bytes follow the last tensor; expected none")
    return tensors


def _unique(pairs: list[tuple[str, _T]]) -> dict[str, _T]:
    unique = dict(pairs)
    if len(unique) != len(pairs):
        raise ValueError("a key occurs twice")
    return unique


def _safetensors_entry(key: str, entry: Any) -> _Tensor:
    match entry:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [begin, end]}:
            # `type`, for JSON's true is an int to isinstance
            if all(type(number) is int and 0 <= number < 1 << 63 for number in (*shape, begin, end)):
                return _Tensor(dtype, tuple(shape), begin, end)
    raise ValueError(
        f"{key!r} has a damaged header entry; expected dtype, shape and data_offsets [begin, end]"
    )


def _checked(stored: StoredArray, available: int) -> StoredArray:
    """Check what holds for every format before anything is mapped."""
    if stored.dtype.hasobject:
        raise ArrayFileError(f"{stored.name}: holds Python objects, which are not read; expected numbers")
    if len(stored.shape) > _MAX_AXES:
        raise ArrayFileError(
            f"{stored.name}: has {len(stored.shape)} axes; at most {_MAX_AXES} are supported"
        )
    if any(length < 0 for length in stored.shape):
        raise ArrayFileError(f"{stored.name}: damaged; its shape is {_excerpt(str(stored.shape))}")
    # Also for empty arrays: NumPy has no array with an axis of 2**63.
    if math.prod(max(1, length) for length in stored.shape) * max(1, stored.dtype.itemsize) >= 1 << 63:
        raise ArrayFileError(f"{stored.name}: its shape {_excerpt(str(stored.shape))} is too large")
    if stored.nbytes > available:
        found = max(0, available)
        raise ArrayFileError(
            f"{stored.name}: truncated; {stored.nbytes} bytes of data expected, {found} found"
        )
    return stored


def _named(stored: StoredArray, expected: str | None) -> np.dtype[Any]:
    """Return the dtype to read: that of the file, or bfloat16 for the raw bytes as which NumPy stores it."""
    raw = stored.dtype.kind == "V" and stored.dtype.name != "bfloat16"
    if expected is None:
        if raw and stored.dtype.itemsize == 2 and stored.dtype.names is None:
            raise ArrayFileError(
                f"{stored.name}: holds raw numbers of 2 bytes (V2), which is how NumPy stores bfloat16; "
                "if that is what they are, say dtype bfloat16"
            )
        return stored.dtype
    if expected == "bfloat16" and stored.dtype.str in ("|V2", "<u2"):
        return _dtype("bfloat16")
    if stored.dtype.name != expected:
        raise ArrayFileError(f"{stored.name}: holds {stored.dtype.name}; expected dtype {expected}")
    return stored.dtype


def _dtype(name: str) -> np.dtype[Any]:
    return bfloat16() if name == "bfloat16" else np.dtype(name)


_READERS: dict[str, Callable[[str, Path, str | None], StoredArray]] = {
    ".npy": _open_npy,
    ".npz": _open_npz,
    ".safetensors": _open_safetensors,
}
