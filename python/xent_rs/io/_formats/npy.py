"""``.npy``: a header, and the numbers. The reference is ``numpy.lib.format``."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import numpy as np

from . import Choose, Layout, checked, excerpt, packed

MAGIC = b"\x93NUMPY"
_MAX_HEADER = 10_000  # as NumPy


def find(file: IO[bytes], choose: Choose) -> Layout:
    """Find the array in a file, which has no name to choose."""
    layout = header(file)
    return alone(layout, os.fstat(file.fileno()).st_size - layout.offset)


def alone(layout: Layout, available: int) -> Layout:
    """Check a layout, and that nothing follows: NumPy would read the first array and say nothing."""
    layout = checked(layout, available)
    if layout.nbytes < available:
        raise ValueError(
            f"{available - layout.nbytes} bytes follow the array of shape {excerpt(str(layout.shape))}; "
            "expected none (a second numpy.save into the same file leaves another array there)"
        )
    return layout


def header(file: IO[bytes]) -> Layout:
    """Read a header, and no more: NumPy reads as many bytes as a damaged one says that it has."""
    start = file.read(8)
    if len(start) < 8 or not start.startswith(MAGIC):
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
    if header_bytes > _MAX_HEADER:
        raise ValueError(
            f"says that its .npy header has {header_bytes} bytes; expected at most {_MAX_HEADER}"
        )
    text = file.read(header_bytes)
    if len(length) < size or len(text) < header_bytes:
        raise ValueError("truncated in the .npy header")
    try:
        shape, fortran_order, dtype = read_header(BytesIO(length + text))
        if any(type(axis) is bool for axis in shape):
            raise TypeError("a length is a bool")
    except Exception as error:  # NumPy's parser lets TypeError, TokenError, RecursionError and others out
        raise ValueError(f"damaged .npy header {excerpt(repr(text))}") from error
    strides = packed(shape, dtype.itemsize, fortran_order=fortran_order)
    return Layout(file.tell(), tuple(shape), dtype, strides)


@contextmanager
def creating(
    path: Path, shape: tuple[int, ...], dtype: np.dtype[Any], token: str | None = None
) -> Iterator[Callable[[bytes], None]]:
    """Give a function that appends the bytes of numbers, in C order, to a new ``.npy`` file.

    The file gets its name when the block ends, in place of an older one, and vanishes if an exception ends
    the block. It is written rather than mapped, so that a full disk is an `OSError` and not a SIGBUS. What a
    kill leaves of it has `token` in its name, at random by default; the next with that token removes it.
    """
    target = Path(os.path.realpath(path))  # what a symbolic link names is replaced, not the link
    unfinished = target.with_name(f".{target.name}.{token or secrets.token_hex(4)}")
    header = BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    )
    try:
        with _named(path):
            if token is not None:
                unfinished.unlink(missing_ok=True)
            file = unfinished.open("xb", buffering=0)  # so that closing writes nothing, and cannot fail
        with file:

            def write(data: bytes) -> None:
                rest = memoryview(data)
                with _named(path):
                    while rest:
                        rest = rest[file.write(rest) :]

            write(header.getvalue())
            yield write
        with _named(path):
            os.replace(unfinished, target)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Let errors name the file that the user asked for."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
