"""``.safetensors``: a JSON header, and the tensors. The reference is the format section of its documentation.

The safetensors library is not used: for NumPy it has no bfloat16, and it reads tensors as a whole.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import PurePath
from typing import IO, Any

from . import Choose, Layout, checked, dtype_named, excerpt, packed, unique

_MAX_HEADER = 100_000_000  # as the safetensors library
_DTYPES = {
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


def find(file: IO[bytes], choose: Choose) -> Layout:
    """Find the tensor that `choose` names."""
    file_bytes = os.fstat(file.fileno()).st_size
    start = file.read(8)
    if len(start) < 8:
        raise ValueError(f"truncated; a safetensors file has at least 8 bytes, this one {len(start)}")
    header_bytes = int.from_bytes(start, "little")
    if header_bytes > _MAX_HEADER:
        raise ValueError(f"says that its header has {header_bytes} bytes; expected at most {_MAX_HEADER}")
    if header_bytes > file_bytes - 8:
        raise ValueError(f"truncated; {header_bytes} bytes of header expected, {file_bytes - 8} found")
    data_start = 8 + header_bytes
    tensors = _header(file.read(header_bytes), file_bytes - data_start)

    key = choose(list(tensors))
    tensor, shown_key = tensors[key], excerpt(repr(key))
    if tensor.dtype not in _DTYPES:
        supported = ", ".join(_DTYPES)
        raise ValueError(f"{shown_key} has dtype {excerpt(repr(tensor.dtype))}; supported are {supported}")
    found = tensor.end - tensor.begin
    dtype = dtype_named(_DTYPES[tensor.dtype])
    strides = packed(tensor.shape, dtype.itemsize)
    layout = checked(Layout(data_start + tensor.begin, tensor.shape, dtype, strides), found)
    if layout.nbytes != found:
        raise ValueError(f"{shown_key} has {found} bytes of data; expected {layout.nbytes}")
    return layout


def index(file: IO[bytes]) -> dict[str, str]:
    """Return the file of each tensor, by the index of a sharded file: ``model.safetensors.index.json``.

    The files lie in the folder of the index or below it; none other is opened on its word.
    """
    text = file.read(_MAX_HEADER + 1)
    if len(text) > _MAX_HEADER:
        raise ValueError(f"has more than {_MAX_HEADER} bytes; expected the index of a safetensors file")
    content = _json(text, "index of a safetensors file")
    match content:
        case {"weight_map": {**files}} if files:
            return {str(tensor): _file_beside(str(tensor), name) for tensor, name in files.items()}
    raise ValueError("holds no weight_map from tensors to files; expected the index of a safetensors file")


def _file_beside(tensor: str, name: Any) -> str:
    if isinstance(name, str) and name and "\0" not in name:
        path = PurePath(name)
        if not (path.is_absolute() or path.drive or ".." in path.parts):
            return name
    raise ValueError(
        f"says that {excerpt(repr(tensor))} is in {excerpt(repr(name))}; "
        "expected the name of a file in the folder of the index"
    )


def _json(text: bytes, what: str) -> Any:
    try:
        return json.loads(text.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"damaged {what} ({error})") from error


@dataclass(frozen=True)
class _Tensor:
    """An entry of the header; `begin` and `end` count from the end of the header."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def _header(text: bytes, data_bytes: int) -> dict[str, _Tensor]:
    """Parse and check a header: the tensors must fill the data without a gap or an overlap."""
    header = _json(text, "safetensors header")
    if not isinstance(header, dict):
        raise ValueError("damaged safetensors header (not a JSON object)")
    header.pop("__metadata__", None)
    tensors = {key: _entry(key, entry) for key, entry in header.items()}

    position = 0
    for key, tensor in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
        if tensor.begin != position or tensor.end < tensor.begin:
            raise ValueError(
                f"{excerpt(repr(key))} has data_offsets [{tensor.begin}, {tensor.end}]; "
                f"expected it to begin at {position}, where the tensor before it ends"
            )
        position = tensor.end
    if position > data_bytes:
        raise ValueError(f"truncated; {position} bytes of tensors expected, {data_bytes} found")
    if position < data_bytes:
        raise ValueError(f"{data_bytes - position} bytes follow the last tensor; expected none")
    return tensors


def _entry(key: str, entry: Any) -> _Tensor:
    match entry:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [begin, end]}:
            # `type`, for JSON's true is an int to isinstance
            if all(type(number) is int and 0 <= number < 1 << 63 for number in (*shape, begin, end)):
                return _Tensor(dtype, tuple(shape), begin, end)
    raise ValueError(
        f"{excerpt(repr(key))} has a damaged header entry; "
        "expected dtype, shape and data_offsets [begin, end]"
    )
