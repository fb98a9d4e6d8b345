"""`open_array`: from a name to the files that it stands for, and what their headers say."""

from __future__ import annotations

import glob
import os
import re
import stat
from collections.abc import Callable
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import DTypeLike

from ._formats import Choose, Layout, dtype_named, excerpt, llama, npy, npz, safetensors
from ._stored import ArrayFileError, RawNumbersError, Shard, StoredArray, readable, stamp

_GIT_LFS = b"version https://git-lfs"


def open_array(file: str | bytes | os.PathLike[Any], *, dtype: DTypeLike | None = None) -> StoredArray:
    """Open an array in a ``.npy``, ``.npz``, ``.safetensors`` or ``.kld`` file, or in several.

    Parameters
    ----------
    file : str, bytes or path
        The file, for all formats but the first with the name of the array behind a colon:
        ``model.npz:logits``. The name may be left out if there is but one array.

        The logits of llama.cpp (``llama-perplexity --kl-divergence-base base.kld``, whatever the suffix) are
        ``base.kld:logits``, log-probabilities of shape (chunks, scored positions, classes), their targets
        ``base.kld:targets``, and what the model has read ``base.kld:tokens``.

        Several files make one array, in natural order (``part-9`` before ``part-10``): each has some of the
        rows, which are steps along the first axis. ``file`` is then a pattern, such as ``logits-*.npy`` or
        ``part-*.safetensors:logits``, in which ``**`` stands for folders of any depth, or a folder, of whose
        files those of a known format count, or the index of a sharded safetensors file
        (``model.safetensors.index.json``), whose tensors, or those whose names match the pattern behind the
        colon, are taken in natural order. What has that very name is meant rather than a pattern.
    dtype : str or dtype, optional
        The dtype that the file should hold, in any byte order. Needed for bfloat16 in ``.npy`` and
        ``.npz``, which NumPy stores as two raw bytes (``V2``); ``uint16`` is taken for it as well.

    Returns
    -------
    StoredArray
        Where the array is in the files. Nothing but headers has been read.

    Raises
    ------
    ArrayFileError
        If a file is damaged, or holds no such array or none that can be mapped (Python objects, records), or
        if the arrays of several files do not fit together.
    OSError
        If a file cannot be read.
    ImportError
        If one holds bfloat16, and ``ml_dtypes`` is not installed.

    References
    ----------
    ``numpy.lib.format`` (.npy), APPNOTE.TXT of PKWARE (.npz is a zip file), the format section of the
    safetensors documentation, and ``tools/perplexity/perplexity.cpp`` of llama.cpp (.kld).

    Examples
    --------
    >>> import numpy as np
    >>> from xent_rs import io
    >>> np.savez("batch.npz", logits=np.zeros((6, 4), np.float32), targets=np.arange(6))
    >>> io.open_array("batch.npz:targets")[:3]
    array([0, 1, 2])
    """
    name = os.fsdecode(file)
    if "\0" in name:
        raise ArrayFileError(f"{name!r}: has a null character in the name of the file")
    path, key = _split(name)
    files = _files(path, key)
    shards = tuple(_shard(shard, shard_key, dtype, ask=f"{path.name}:KEY") for shard, shard_key in files)
    _check_fit(shards)
    return StoredArray(name, shards)


@dataclass(frozen=True)
class _Format:
    """A file format: what finds an array in an open file, and what the file begins with, if that says it."""

    find: Callable[[IO[bytes], Choose], Layout]
    magic: bytes | None = None


_FORMATS = {
    ".npy": _Format(npy.find, npy.MAGIC),
    ".npz": _Format(npz.find, npz.MAGIC),
    ".safetensors": _Format(safetensors.find),
    ".kld": _Format(llama.find, llama.MAGIC),
}
_SUFFIXES = ".npy, .npz, .safetensors or .kld"


def _split(name: str) -> tuple[Path, str | None]:
    """Split ``FILE:KEY``; a file whose own name has a colon wins."""
    if os.path.lexists(name):
        return Path(name), None
    match = re.fullmatch(r"(.+?\.(?:npy|npz|safetensors|kld|json)):(.+)", name, re.IGNORECASE | re.DOTALL)
    if match is not None:
        return Path(match[1]), match[2]
    before, colon, key = name.rpartition(":")
    return (Path(before), key) if colon and os.path.lexists(before) else (Path(name), None)


def _files(path: Path, key: str | None) -> list[tuple[Path, str | None]]:
    """Return the files that a path stands for, each with the key of its array, in the order of the rows."""
    if path.is_dir() and path.suffix.lower() not in _FORMATS:
        return _files_in_folder(path, key)
    if path.suffix.lower() == ".json":
        return _files_of_index(path, key)
    # A name that is no file and matches none is reported as any that is missing.
    found = [] if os.path.lexists(path) else glob.glob(str(path), recursive=True)
    return [(Path(file), key) for file in sorted(found, key=_natural)] or [(path, key)]


def _files_in_folder(folder: Path, key: str | None) -> list[tuple[Path, str | None]]:
    """Return the array files in a folder, or those of the index that is there."""
    names = [entry.name for entry in os.scandir(folder) if entry.is_file() and not entry.name.startswith(".")]
    indexes = [name for name in names if name.lower().endswith(".index.json")]
    if len(indexes) == 1:
        return _files_of_index(folder / indexes[0], key)
    files = sorted((name for name in names if Path(name).suffix.lower() in _FORMATS), key=_natural)
    suffixes = sorted({Path(name).suffix.lower() for name in files})
    if not files:
        other = [name for name in ("zarr.json", ".zarray") if (folder / name).exists()]
        hint = " (a Zarr array: open it with zarr, and hand that to Python's functions)" if other else ""
        raise ArrayFileError(f"{folder}: is a folder without a {_SUFFIXES} file{hint}")
    if len(suffixes) > 1 or len(indexes) > 1:
        kinds = " and ".join(suffixes) + (f" files and {len(indexes)} indexes" if indexes else " files")
        raise ArrayFileError(f"{folder}: holds {kinds}; choose some, such as {folder / ('*' + suffixes[0])}")
    return [(folder / name, key) for name in files]


def _files_of_index(index: Path, key: str | None) -> list[tuple[Path, str | None]]:
    """Return the files of the tensors in the index of a sharded safetensors file."""
    with readable(str(index)), index.open("rb") as opened:
        _check_start(opened.read(len(_GIT_LFS)), ".json")
        opened.seek(0)
        files = safetensors.index(opened)
    names = [key] if key in files else [name for name in files if key is None or fnmatchcase(name, key)]
    if not names:
        raise ArrayFileError(f"{index}: holds no tensor {key!r}; it holds {_shown(list(files)) or 'none'}")
    return [(index.parent / files[name], name) for name in sorted(names, key=_natural)]


def _natural(name: str) -> tuple[list[tuple[str, int, str]], str]:
    """Return what sorts names by the numbers in them: ``part-9`` before ``part-10``."""
    *parts, last = re.split(r"0*([0-9]+)", name)
    # Of numbers without leading zeros the one with more digits is larger.
    pairs = zip(parts[::2], parts[1::2], strict=True)
    return [*((text, len(digits), digits) for text, digits in pairs), (last, 0, "")], name


def _shard(path: Path, key: str | None, dtype: DTypeLike | None, *, ask: str) -> Shard:
    """Read the header of a file; `ask` is how to ask for one of several arrays."""
    name = str(path) if key is None else f"{path}:{key}"
    suffix = _suffix(path)
    if suffix not in _FORMATS and (suffix or path.is_file()):
        raise ArrayFileError(f"{name}: unknown format; expected a {_SUFFIXES} file")
    if not stat.S_ISREG(path.stat().st_mode):
        raise ArrayFileError(f"{name}: not a regular file")
    if key is not None and suffix == ".npy":
        raise ArrayFileError(f"{name}: a .npy file holds one array; leave out ':{key}'")
    with readable(name), path.open("rb") as opened:
        found = stamp(opened)
        _check_start(opened.read(len(_GIT_LFS)), suffix)
        opened.seek(0)
        layout = _FORMATS[suffix].find(opened, lambda keys: _choose(path, key, keys, ask))
        if layout.dtype.str == "|V2" and dtype is None:
            raise RawNumbersError(name)
        layout = replace(layout, dtype=_named(layout.dtype, dtype))
    return Shard(name, path, layout, found)


def _suffix(path: Path) -> str:
    """Return the suffix that says the format of a file; llama.cpp's logits may have any."""
    suffix = path.suffix.lower()
    if suffix not in _FORMATS and path.is_file():
        with path.open("rb") as file:
            if file.read(len(llama.MAGIC)) == llama.MAGIC:
                return ".kld"
    return suffix


def _check_start(start: bytes, suffix: str) -> None:
    """Refuse what begins as another kind of file than its name says."""
    if start == _GIT_LFS:
        raise ValueError("is a Git LFS pointer, not the file that it stands for: run `git lfs pull`")
    for other, format in _FORMATS.items():
        if other != suffix and format.magic is not None and start.startswith(format.magic):
            raise ValueError(f"begins as a {other} file does; expected a {suffix} file, as its name says")


def _choose(path: Path, key: str | None, keys: list[str], ask: str) -> str:
    if key is None:
        if len(keys) != 1:
            raise ArrayFileError(f"{path}: holds {_shown(keys) or 'no arrays'}; choose one with {ask}")
        return keys[0]
    if key not in keys:
        raise ArrayFileError(f"{path}: holds no array {key!r}; it holds {_shown(keys) or 'none'}")
    return key


def _shown(keys: list[str]) -> str:
    shown = ", ".join(excerpt(repr(key)) for key in keys[:20])
    return f"{shown} and {len(keys) - 20} more" if len(keys) > 20 else shown


def _check_fit(shards: tuple[Shard, ...]) -> None:
    """Refuse shards that are not rows of one array."""
    first, *others = shards
    for shard in others:
        expected, found = first.layout, shard.layout
        if not found.shape or not expected.shape:
            raise ArrayFileError(
                f"{shard.name if expected.shape else first.name}: holds a single number, shape (); "
                f"expected rows, for it is one of {len(shards)} files"
            )
        if (found.shape[1:], found.dtype) != (expected.shape[1:], expected.dtype):
            tail = "".join(f", {length}" for length in expected.shape[1:]) or ","
            raise ArrayFileError(
                f"{shard.name}: holds {found.dtype} of shape {found.shape}; expected "
                f"{expected.dtype} of shape (any{tail}), as {first.name}, which is of the same array"
            )


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
        raise ValueError(f"holds raw bytes ({stored.str[1:]}); expected numbers")
    return stored
