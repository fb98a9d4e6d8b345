"""``.npy``: a header, and the numbers. The reference is ``numpy.lib.format``."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import numpy as np

from . import Layout, checked, excerpt

_MAGIC = b"\x93NUMPY"
_MAX_HEADER = 10_000  # as NumPy


def find(file: IO[bytes]) -> Layout:
    """Find the array in a file."""
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
    if len(start) < 8 or not start.startswith(_MAGIC):
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
    return Layout(file.tell(), tuple(shape), dtype, fortran_order)


@contextmanager
def creating(path: Path, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Iterator[IO[bytes]]:
    """Give a file to write the numbers of a new ``.npy`` file to, in C order.

    The file gets its name when the block ends, in place of an older one, and vanishes if an exception ends
    the block. It is written rather than mapped, so that a full disk is an `OSError` and not a SIGBUS.
    """
    path = Path(os.path.realpath(path))  # what a symbolic link names is replaced, not the link
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
    try:
        file = unfinished.open("xb")
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
    try:
        with file:
            description = {
                "descr": np.lib.format.dtype_to_descr(dtype),
                "fortran_order": False,
                "shape": shape,
            }
            np.lib.format.write_array_header_1_0(file, description)
            yield file
        os.replace(unfinished, path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
