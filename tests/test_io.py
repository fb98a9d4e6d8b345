"""`xent_rs.io`: every format gives the same array, bounded blocks, and one clear error if damaged."""

import contextlib
import doctest
import json
import os
import pickle
import re
import struct
import subprocess
import sys
import tracemalloc
import zipfile
import zlib

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import xent_rs.io
from xent_rs import io

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
DTYPES = ["float16", "bfloat16", "float32", "float64", "int8", "uint16", "int32", "int64", "uint64"]


def array(shape, dtype="float32"):
    random = np.random.default_rng(0)
    return (random.standard_normal(shape) * 20).astype(BFLOAT16 if dtype == "bfloat16" else dtype)


def save_safetensors(path, tensors, names=None):
    """Write the format by hand; `names` are dtype names for those that NumPy does not have."""
    header, data = {}, b""
    for key, value in tensors.items():
        name = (names or {}).get(key) or {
            "f": f"F{8 * value.itemsize}",
            "i": f"I{8 * value.itemsize}",
            "u": f"U{8 * value.itemsize}",
            "V": "BF16",
        }[value.dtype.kind if value.dtype != BFLOAT16 else "V"]
        offsets = [len(data), len(data) + value.nbytes]
        header[key] = {"dtype": name, "shape": list(value.shape), "data_offsets": offsets}
        data += value.tobytes()
    write_safetensors(path, json.dumps({"__metadata__": {"format": "np"}, **header}).encode(), data)


def write_safetensors(path, header, data, header_bytes=None):
    length = len(header) if header_bytes is None else header_bytes
    path.write_bytes(struct.pack("<Q", length) + header + data)


def save(path, **arrays):
    """Save in every format; return what to open, by format, for the first of the arrays."""
    key, first = next(iter(arrays.items()))
    np.save(path / "a.npy", first)
    np.savez(path / "a.npz", **arrays)
    np.savez_compressed(path / "b.npz", **arrays)
    save_safetensors(path / "a.safetensors", arrays)
    return {
        "npy": path / "a.npy",
        "npz": f"{path / 'a.npz'}:{key}",
        "npz compressed": f"{path / 'b.npz'}:{key}",
        "safetensors": f"{path / 'a.safetensors'}:{key}",
    }


def same(found, expected):
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    assert np.asarray(found, order="C").tobytes() == np.asarray(expected, order="C").tobytes()


def walk(logits, targets, **options):
    """Put the blocks of an array together again."""
    axis = options.get("axis", -1) % len(logits.shape)
    found_logits, found_targets = np.zeros(logits.shape, logits.dtype), np.zeros(targets.shape, targets.dtype)
    for position, some_logits, some_targets in io.row_blocks(logits, targets, **options):
        index = tuple(slice(start, start + n) for start, n in zip(position, some_targets.shape, strict=True))
        found_targets[index] = some_targets
        found_logits[(*index[:axis], slice(None), *index[axis:])] = some_logits
    return found_logits, found_targets


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (5,), (3, 4), (2, 3, 4), (0, 4), (4, 0)])
def test_every_format_gives_the_same_array(tmp_path, dtype, shape):
    expected = array(shape, dtype)
    name = "bfloat16" if dtype == "bfloat16" else None
    for file in save(tmp_path, a=expected, b=np.zeros(3)).values():
        stored = io.open_array(file, dtype=name)
        assert (stored.shape, stored.dtype, stored.nbytes) == (shape, expected.dtype, expected.nbytes)
        assert stored.name == str(file)
        same(stored.map(), expected)


def test_files_of_the_safetensors_library(tmp_path):
    arrays = {"logits": array((3, 4)), "targets": np.arange(3), "half": array((5,), "float16")}
    safetensors.numpy.save_file(arrays, tmp_path / "a.safetensors", metadata={"format": "np"})
    for key, expected in arrays.items():
        same(io.open_array(f"{tmp_path / 'a.safetensors'}:{key}").map(), expected)


def test_maps_rather_than_reads(tmp_path):
    files = save(tmp_path, a=array((3, 4)))
    for format, file in files.items():
        mapped = io.open_array(file).map()
        assert not mapped.flags.writeable
        base = mapped
        while getattr(base, "base", None) is not None and not isinstance(base, np.memmap):
            base = base.base
        assert isinstance(base, np.memmap)
        named = base.filename if format != "npz compressed" else None
        assert base.filename == named


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["<f4", ">f4", ">f8", ">i8", ">u2"])
def test_fortran_order_and_big_endian(tmp_path, order, dtype):
    expected = np.asarray(array((3, 4, 5)).astype(dtype), order=order)
    np.save(tmp_path / "a.npy", expected)
    np.savez(tmp_path / "a.npz", a=expected)
    np.savez_compressed(tmp_path / "b.npz", a=expected)
    targets_file = tmp_path / "targets.npy"
    np.save(targets_file, np.arange(15).reshape(3, 5))
    for name in ("a.npy", "a.npz", "b.npz"):
        stored = io.open_array(tmp_path / name)
        same(stored.map(), expected)
        for max_bytes in (1, 100, 1 << 20):
            found, _ = walk(stored, io.open_array(targets_file), axis=1, max_bytes=max_bytes)
            same(found, expected)


@pytest.mark.parametrize("stored", ["V2", "uint16"])
def test_bfloat16_in_npy_only_if_asked_for(tmp_path, stored):
    expected = array((3, 4), "bfloat16")
    np.save(tmp_path / "a.npy", expected.view(stored))
    np.savez(tmp_path / "a.npz", a=expected.view(stored))
    for name in ("a.npy", "a.npz"):
        same(io.open_array(tmp_path / name, dtype="bfloat16").map(), expected)


KEYS = [
    ("a.npz:one", (3, 4)),
    ("a.npz:two:three", (5,)),
    ("a.safetensors:one", (3, 4)),
    ("a.safetensors:two:three", (5,)),
    ("single.npz", (2,)),
    ("single.SAFETENSORS", (2,)),
    ("odd.npz:x.npy", (6,)),
]


@pytest.mark.parametrize(("name", "shape"), KEYS)
def test_keys(tmp_path, monkeypatch, name, shape):
    arrays = {"one": np.zeros((3, 4)), "two:three": np.zeros(5)}
    monkeypatch.chdir(tmp_path)
    np.savez("a.npz", **arrays)
    save_safetensors(tmp_path / "a.safetensors", arrays)
    np.savez("single.npz", np.zeros(2))
    save_safetensors(tmp_path / "single.SAFETENSORS", {"": np.zeros(2)})
    np.save("odd.npz:x.npy", np.zeros(6))
    assert io.open_array(name).shape == shape


SHAPES = [
    ((7, 5), -1),
    ((5, 7), 0),
    ((3, 4, 5), -1),
    ((3, 5, 4), 1),
    ((5, 3, 4), 0),
    ((5,), -1),
    ((2, 1, 3, 5), 3),
]


@pytest.mark.parametrize(("shape", "axis"), SHAPES)
@pytest.mark.parametrize("max_bytes", [1, 20, 60, 200, 1 << 20])
def test_blocks_cover_everything_once_and_are_bounded(tmp_path, shape, axis, max_bytes):
    expected = array(shape)
    rows = tuple(n for i, n in enumerate(shape) if i != axis % len(shape))
    targets = np.arange(int(np.prod(rows))).reshape(rows)
    np.save(tmp_path / "targets.npy", targets)
    np.savez_compressed(tmp_path / "targets.npz", targets)
    cuts = set()
    for file in save(tmp_path, a=expected).values():
        for targets_file in ("targets.npy", "targets.npz"):
            pair = io.open_array(file), io.open_array(tmp_path / targets_file)
            found, found_targets = walk(*pair, axis=axis, max_bytes=max_bytes)
            same(found, expected)
            same(found_targets, targets)
            blocks = list(io.row_blocks(*pair, axis=axis, max_bytes=max_bytes))
            assert sum(some_targets.size for *_, some_targets in blocks) == targets.size
            row_bytes = shape[axis] * 4
            assert all(some_logits.nbytes <= max(max_bytes, row_bytes) for _, some_logits, _ in blocks)
            assert all(some_logits.ndim == len(shape) for _, some_logits, _ in blocks)
            cuts.add(tuple(position for position, *_ in blocks))
    assert len(cuts) == 1


@pytest.mark.parametrize("shape", [(0, 4), (3, 0, 4), (0, 1 << 30, 4)])
def test_without_rows_there_is_one_empty_block(tmp_path, shape):
    for file in save(tmp_path, a=np.zeros(shape, np.float32)).values():
        np.save(tmp_path / "targets.npy", np.zeros(shape[:-1], np.int64))
        blocks = list(io.row_blocks(io.open_array(file), io.open_array(tmp_path / "targets.npy")))
        assert [(logits.size, targets.size) for _, logits, targets in blocks] == [(0, 0)]


@pytest.mark.parametrize(
    ("shape", "targets", "axis", "message"),
    [
        ((), (), -1, "logits have shape (); expected at least one axis, the classes"),
        ((4, 10), (4,), 2, "axis is 2; expected -2 to 1 for logits of shape (4, 10)"),
        ((4, 10), (4,), -3, "axis is -3; expected -2 to 1 for logits of shape (4, 10)"),
        (
            (4, 10),
            (3,),
            -1,
            "targets have shape (3,); expected (4,), the shape of logits (4, 10) without axis -1",
        ),
        (
            (4, 10),
            (4,),
            0,
            "targets have shape (4,); expected (10,), the shape of logits (4, 10) without axis 0",
        ),
        ((10,), (1,), 0, "targets have shape (1,); expected (), the shape of logits (10,) without axis 0"),
    ],
)
def test_shapes_that_do_not_match(tmp_path, shape, targets, axis, message):
    np.save(tmp_path / "logits.npy", np.zeros(shape, np.float32))
    np.save(tmp_path / "targets.npy", np.zeros(targets, np.int64))
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        list(
            io.row_blocks(
                *(io.open_array(tmp_path / f"{name}.npy") for name in ("logits", "targets")), axis=axis
            )
        )


def entry(dtype="F32", shape=(2, 3), begin=0, end=24):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


# What the header says, the bytes of data that follow, and the error.
SAFETENSORS = {
    "empty header": (b"", 0, "damaged safetensors header (Expecting value: line 1 column 1 (char 0))"),
    "not JSON": (b"{]", 0, None),
    "not UTF-8": (b'{"\xff": 1}', 0, None),
    "a list": (b"[1]", 0, "damaged safetensors header (not a JSON object)"),
    "nested": (b"[" * 100_000, 0, None),
    "a key twice": (b'{"a": 1, "a": 2}', 0, "damaged safetensors header (a key occurs twice)"),
    "entry is a number": ({"a": 1}, 0, "'a' has a damaged header entry"),
    "no shape": ({"a": {"dtype": "F32", "data_offsets": [0, 4]}}, 4, "'a' has a damaged header entry"),
    "negative length": ({"a": entry(shape=(-2, -3))}, 24, "'a' has a damaged header entry"),
    "length is true": ({"a": entry(shape=(True, 6))}, 24, "'a' has a damaged header entry"),
    "length is a float": ({"a": entry(shape=(2.0, 3))}, 24, "'a' has a damaged header entry"),
    "length beyond 64 bits": ({"a": entry(shape=(1 << 70, 0))}, 24, "'a' has a damaged header entry"),
    "three offsets": (
        {"a": {"dtype": "F32", "shape": [], "data_offsets": [0, 4, 8]}},
        8,
        "'a' has a damaged header entry",
    ),
    "negative offset": ({"a": entry(begin=-4, end=20)}, 24, "'a' has a damaged header entry"),
    "ends before it begins": (
        {"a": entry(shape=(0,), begin=0, end=0), "b": entry(begin=24, end=0)},
        24,
        "'b' has data_offsets [24, 0]; expected it to begin at 0, where the tensor before it ends",
    ),
    "a gap": (
        {"a": entry(), "b": entry(begin=28, end=52)},
        52,
        "'b' has data_offsets [28, 52]; expected it to begin at 24, where the tensor before it ends",
    ),
    "an overlap": (
        {"a": entry(), "b": entry(begin=20, end=44)},
        44,
        "'b' has data_offsets [20, 44]; expected it to begin at 24, where the tensor before it ends",
    ),
    "truncated data": ({"a": entry()}, 23, "truncated; 24 bytes of tensors expected, 23 found"),
    "no data": ({"a": entry()}, 0, "truncated; 24 bytes of tensors expected, 0 found"),
    "more data": ({"a": entry()}, 25, "1 bytes follow the last tensor; expected none"),
    "shape too large": ({"a": entry(shape=(2, 4))}, 24, "truncated; 32 bytes of data expected, 24 found"),
    "shape too small": ({"a": entry(shape=(2, 2))}, 24, "'a' has 24 bytes of data; expected 16"),
    "overflowing shape": (
        {"a": entry(shape=(1 << 40, 1 << 40))},
        24,
        "its shape (1099511627776, 1099511627776) is too large",
    ),
    "overflowing empty shape": (
        {"a": entry(shape=(0, 1 << 40, 1 << 40), end=0)},
        0,
        "its shape (0, 1099511627776, 1099511627776) is too large",
    ),
    "33 axes": ({"a": entry(shape=(1,) * 33, end=4)}, 4, "has 33 axes; at most 32 are supported"),
    "unknown dtype": (
        {"a": entry(dtype="F8_E4M3", end=6)},
        6,
        "'a' has dtype 'F8_E4M3'; supported are BF16, F16, F32, F64, I8, I16, I32, I64, U8, U16, U32, U64",
    ),
    "no tensors": ({}, 0, "holds no arrays; choose one with a.safetensors:KEY"),
    "two tensors": (
        {"a": entry(), "b": entry(begin=24, end=48)},
        48,
        "holds 'a', 'b'; choose one with a.safetensors:KEY",
    ),
}


@pytest.mark.parametrize("case", SAFETENSORS)
def test_damaged_safetensors(tmp_path, case):
    header, data_bytes, message = SAFETENSORS[case]
    file = tmp_path / "a.safetensors"
    write_safetensors(
        file, header if isinstance(header, bytes) else json.dumps(header).encode(), bytes(data_bytes)
    )
    with pytest.raises(io.ArrayFileError) as error:
        io.open_array(file)
    expected = f"{file}: {message or 'damaged safetensors header ('}"
    if message is None or "damaged header entry" in message:
        assert str(error.value).startswith(expected)
    else:
        assert str(error.value) == expected


def test_safetensors_truncated_anywhere(tmp_path):
    whole, file = tmp_path / "whole.safetensors", tmp_path / "a.safetensors"
    save_safetensors(whole, {"a": array((2, 3)), "b": array((4,))})
    content = whole.read_bytes()
    for length in range(len(content)):
        file.write_bytes(content[:length])
        with pytest.raises(io.ArrayFileError, match="truncated"):
            io.open_array(f"{file}:a")


@pytest.mark.parametrize("header_bytes", [100_000_001, 1 << 63, (1 << 64) - 1])
def test_safetensors_header_that_is_too_long(tmp_path, header_bytes):
    file = tmp_path / "a.safetensors"
    write_safetensors(file, b"{}", b"", header_bytes)
    with pytest.raises(io.ArrayFileError) as error:
        io.open_array(file)
    assert str(error.value) == (
        f"{file}: says that its header has {header_bytes} bytes; expected at most 100000000"
    )


def npy(header, data=b"", version=(1, 0)):
    """A .npy file by hand."""
    text = (header if isinstance(header, bytes) else repr(header).encode("latin-1")) + b"\n"
    length = struct.pack("<H" if version[0] == 1 else "<I", len(text))
    return b"\x93NUMPY" + bytes(version) + length + text + data


def descr(**changes):
    return {"descr": "<f4", "fortran_order": False, "shape": (2, 3), **changes}


NPY = {
    "empty": (b"", "does not begin as a .npy file does (begins with b'')"),
    "not npy": (b"hello, world", "does not begin as a .npy file does (begins with b'hello, w')"),
    "magic alone": (npy(b"")[:8], "truncated in the .npy header"),
    "half a header": (npy(descr())[:40], "truncated in the .npy header"),
    "version 3": (npy(descr(), bytes(24), (3, 0)), ".npy format 3.0; expected 1.0 or 2.0"),
    "version 9": (npy(descr(), bytes(24), (9, 9)), ".npy format 9.9; expected 1.0 or 2.0"),
    "header is no dict": (npy(b"[1, 2]"), None),
    "header is no literal": (npy(b"open('x')"), None),
    "header is open": (npy(b"{'descr': ("), None),
    "header is deep": (npy(b"(" * 5000), None),
    "header is long": (
        npy(b" " * 60_000),
        "says that its .npy header has 60001 bytes; expected at most 10000",
    ),
    "header is shown": (npy(b"{\x1b[31m"), "damaged .npy header b'{\\x1b[31m\\n'"),
    "header is cut": (npy(b"(" * 9000), f"damaged .npy header b'{'(' * 198}..."),
    "mixed keys": (npy(b"{1: 2, 'a': 3}"), None),
    "dtype is no dtype": (npy(descr(descr="nonsense")), None),
    "dtype is a number": (npy(descr(descr=4)), None),
    "dtype is a dict": (
        npy(descr(descr={"names": [], "formats": []})),
        "damaged .npy header b\"{'descr': {'names': [], 'formats': []}, "
        "'fortran_order': False, 'shape': (2, 3)}\\n\"",
    ),
    "shape is a list": (npy(descr(shape=[2, 3])), None),
    "length is true": (
        npy(descr(shape=(True, 6)), bytes(24)),
        "damaged .npy header b\"{'descr': '<f4', 'fortran_order': False, 'shape': (True, 6)}\\n\"",
    ),
    "negative shape": (npy(descr(shape=(-2, -3)), bytes(24)), "damaged; its shape is (-2, -3)"),
    "truncated": (npy(descr(), bytes(23)), "truncated; 24 bytes of data expected, 23 found"),
    "no data": (npy(descr()), "truncated; 24 bytes of data expected, 0 found"),
    "overflowing shape": (npy(descr(shape=(1 << 62, 4))), "its shape (4611686018427387904, 4) is too large"),
    "33 axes": (npy(descr(shape=(1,) * 33), bytes(4)), "has 33 axes; at most 32 are supported"),
    "objects": (
        npy(descr(descr="|O"), bytes(48)),
        "holds Python objects, which are not read; expected numbers",
    ),
    "records of objects": (
        npy(descr(descr=[("a", "|O")]), bytes(48)),
        "holds Python objects, which are not read; expected numbers",
    ),
    "more data": (
        npy(descr(), bytes(25)),
        "1 bytes follow the array of shape (2, 3); expected none "
        "(a second numpy.save into the same file leaves another array there)",
    ),
    "a second array": (
        2 * npy(descr(), bytes(24)),
        f"{len(npy(descr(), bytes(24)))} bytes follow the array of shape (2, 3); expected none "
        "(a second numpy.save into the same file leaves another array there)",
    ),
    "more data than none": (npy(descr(shape=(0, 3)), bytes(1)), None),
    "records": (
        npy(descr(descr=[("a", "<f4"), ("b", "<i8")]), bytes(72)),
        "holds records of dtype [('a', '<f4'), ('b', '<i8')]; expected numbers",
    ),
    "text": (npy(descr(descr="<U5"), bytes(120)), "holds dtype <U5; expected numbers"),
    "dates": (npy(descr(descr="<M8[s]"), bytes(48)), "holds dtype datetime64[s]; expected numbers"),
    "arrays": (npy(descr(descr=("<f4", (2,))), bytes(48)), None),
    "raw bytes": (npy(descr(descr="|V1"), bytes(6)), "holds raw bytes (V1); expected numbers"),
    "raw numbers": (
        npy(descr(descr="|V2"), bytes(12)),
        "holds raw numbers of 2 bytes (V2), which is how NumPy stores bfloat16; "
        "if that is what they are, say dtype bfloat16",
    ),
}


@pytest.mark.parametrize("case", NPY)
@pytest.mark.parametrize("place", ["npy", "npz", "npz compressed"])
@pytest.mark.filterwarnings("ignore:.*additional header parsing.*:UserWarning")
def test_damaged_npy(tmp_path, case, place):
    content, message = NPY[case]
    file = tmp_path / ("a.npy" if place == "npy" else "a.npz")
    if place == "npy":
        file.write_bytes(content)
    else:
        method = zipfile.ZIP_STORED if place == "npz" else zipfile.ZIP_DEFLATED
        with zipfile.ZipFile(file, "w", method) as archive:
            archive.writestr("a.npy", content)
    with pytest.raises(io.ArrayFileError) as error:
        io.open_array(file)
    assert str(error.value).startswith(f"{file}: ")
    if message is not None:
        assert str(error.value) == f"{file}: {message}"


@pytest.mark.parametrize("records", [[("a", "u1"), ("b", "i1")], "2u1"])
def test_records_of_two_bytes_are_not_bfloat16(tmp_path, records):
    file = tmp_path / "a.npy"
    file.write_bytes(npy(descr(descr=("u1", (2,)) if records == "2u1" else records), bytes(12)))
    with pytest.raises(io.ArrayFileError):
        io.open_array(file, dtype="bfloat16")


@pytest.mark.parametrize("savez", [np.savez, np.savez_compressed])
def test_two_archives_in_one_npz_file_are_refused(tmp_path, savez):
    """Only the last would be read."""
    with (tmp_path / "a.npz").open("wb") as file:
        savez(file, a=array((2, 3)))
        before = file.tell()
        savez(file, a=array((2, 3)))
    with pytest.raises(io.ArrayFileError) as error:
        io.open_array(tmp_path / "a.npz:a")
    assert str(error.value) == (
        f"{tmp_path / 'a.npz:a'}: {before} bytes precede the zip archive; expected none "
        "(a second numpy.savez into the same file leaves another archive there)"
    )


@pytest.mark.parametrize("name", ["a.npy", "a.npz", "a.npz:key", "a.safetensors", "a.safetensors:key"])
def test_a_git_lfs_pointer_is_named(tmp_path, name):
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:" + 64 * "0" + "\nsize 123456\n"
    (tmp_path / name.partition(":")[0]).write_text(pointer)
    with pytest.raises(io.ArrayFileError) as error:
        io.open_array(tmp_path / name)
    assert str(error.value) == (
        f"{tmp_path / name}: is a Git LFS pointer, not the file that it stands for: run `git lfs pull`"
    )


@pytest.mark.parametrize("format", ["npy", "npz", "npz compressed", "safetensors"])
def test_a_file_that_was_replaced_since_it_was_opened_is_refused(tmp_path, format):
    """Of as many bytes, so that only the file itself tells."""
    (tmp_path / "new").mkdir()
    name = save(tmp_path, a=array((3, 4)))[format]
    save(tmp_path / "new", a=array((3, 4)))
    np.save(tmp_path / "targets.npy", np.zeros(3, np.int64))
    stored, targets = io.open_array(name), io.open_array(tmp_path / "targets.npy")
    again = pickle.loads(pickle.dumps(stored))
    blocks = io.row_blocks(stored, targets, max_bytes=16)
    next(blocks)
    path = stored.files[0].path
    os.replace(tmp_path / "new" / path.name, path)
    assert len(list(blocks)) == 2, "the file is open: its numbers are the ones that were checked"
    for opened in (stored, again):
        for read in (opened.map, lambda opened=opened: list(io.row_blocks(opened, targets))):
            with pytest.raises(io.ArrayFileError) as error:
                read()
            assert str(error.value) == f"{name}: has changed since it was opened"
    same(io.open_array(name).map(), array((3, 4)))


def test_a_file_that_was_written_again_since_it_was_opened_is_refused(tmp_path):
    np.save(tmp_path / "a.npy", array((3, 4)))
    stored = io.open_array(tmp_path / "a.npy")
    np.save(tmp_path / "a.npy", array((5, 4)))
    with pytest.raises(io.ArrayFileError, match="has changed since it was opened"):
        stored.map()


def test_sample_weights_come_with_their_rows(tmp_path):
    logits, targets, weights = array((3, 5, 4)), np.arange(12).reshape(3, 4), array((3, 4), "float64")
    for name, value in (("logits", logits), ("targets", targets), ("weights", weights)):
        np.save(tmp_path / f"{name}.npy", value)
    stored = [io.open_array(tmp_path / f"{name}.npy") for name in ("logits", "targets", "weights")]
    for max_bytes in (1, 100, 1 << 20):
        found = []
        for position, some_logits, some_targets, some_weights in io.row_blocks(
            *stored, axis=1, max_bytes=max_bytes
        ):
            index = tuple(slice(a, a + n) for a, n in zip(position, some_weights.shape, strict=True))
            same(some_weights, weights[index])
            same(some_targets, targets[index])
            same(some_logits, logits[index[0], :, index[1]])
            found.append(some_weights.ravel())
        same(np.concatenate(found), weights.ravel())  # rows come in C order
    with pytest.raises(
        ValueError, match=r"^sample_weight has shape \(3, 5, 4\); expected \(3, 4\), one number a row$"
    ):
        list(io.row_blocks(stored[0], stored[1], stored[0], axis=1))


@pytest.mark.parametrize("place", ["npy", "npz compressed"])
def test_a_npy_header_that_says_it_is_long_is_not_read(tmp_path, place):
    said, held = 1_500_000_000, 64 << 20
    start = b"\x93NUMPY\2\0" + struct.pack("<I", said)
    if place == "npy":
        file = tmp_path / "a.npy"
        file.write_bytes(start)
        os.truncate(file, held)
    else:
        file = tmp_path / "a.npz"
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("a.npy", start + bytes(held))
    tracemalloc.start()
    try:
        with pytest.raises(io.ArrayFileError) as error:
            io.open_array(file)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()
    assert str(error.value) == f"{file}: says that its .npy header has {said} bytes; expected at most 10000"


def test_npy_truncated_anywhere(tmp_path):
    np.save(tmp_path / "whole.npy", array((2, 3)))
    content = (tmp_path / "whole.npy").read_bytes()
    for length in range(len(content)):
        (tmp_path / "a.npy").write_bytes(content[:length])
        with pytest.raises(io.ArrayFileError):
            io.open_array(tmp_path / "a.npy")


@pytest.mark.parametrize("savez", [np.savez, np.savez_compressed])
def test_npz_truncated_anywhere(tmp_path, savez):
    savez(tmp_path / "whole.npz", a=array((2, 3)))
    content = (tmp_path / "whole.npz").read_bytes()
    for length in range(len(content)):
        (tmp_path / "a.npz").write_bytes(content[:length])
        with pytest.raises(io.ArrayFileError):
            io.open_array(tmp_path / "a.npz")


@pytest.mark.sampled(1)
@pytest.mark.parametrize("format", ["npy", "npz", "npz compressed", "safetensors"])
def test_any_changed_byte_gives_an_array_or_one_clear_error(tmp_path, format):
    """Damage to the numbers goes unseen in most formats; other damage must not get past `ArrayFileError`."""
    file = tmp_path / os.path.basename(save(tmp_path, a=array((2, 3)))[format]).partition(":")[0]
    content = file.read_bytes()
    random = np.random.default_rng(0)
    messages = []
    for place in range(len(content)):
        for value in {0, 255, content[place] ^ 1, int(random.integers(256))}:
            changed = bytearray(content)
            changed[place] = value
            file.write_bytes(changed)
            # NumPy takes a header of Python 2, with a warning.
            with contextlib.suppress(UserWarning):
                try:
                    io.open_array(file).map()
                except io.ArrayFileError as error:
                    messages.append(str(error))
    assert len(messages) > 50
    assert all(message.startswith(str(file)) for message in messages)


def test_damage_in_compressed_numbers_is_found(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", a=array((10_000, 3)))
    content = bytearray((tmp_path / "a.npz").read_bytes())
    with zipfile.ZipFile(tmp_path / "a.npz") as archive:
        middle = archive.getinfo("a.npy").compress_size // 2
    content[middle : middle + 8] = bytes(8)
    (tmp_path / "a.npz").write_bytes(content)
    np.save(tmp_path / "targets.npy", np.zeros(10_000, np.int64))
    stored, targets = io.open_array(tmp_path / "a.npz"), io.open_array(tmp_path / "targets.npy")
    with pytest.raises(io.ArrayFileError, match=r"a\.npz: "):
        stored.map()
    with pytest.raises(io.ArrayFileError, match=r"a\.npz: "):
        list(io.row_blocks(stored, targets))


def test_a_compressed_member_that_is_shorter_than_it_says(tmp_path):
    """The header promises 1000 rows, and so does the directory of the zip file; the stream ends early."""
    content = npy(descr(shape=(1000, 3)), bytes(24))
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", content)
    raw = (tmp_path / "a.npz").read_bytes()
    sizes = struct.pack("<I", len(content)), struct.pack("<I", len(content) - 24 + 12_000)
    crc = struct.pack("<I", zlib.crc32(content))
    assert raw.count(crc) == 2
    (tmp_path / "a.npz").write_bytes(raw.replace(*sizes))
    np.save(tmp_path / "targets.npy", np.zeros(1000, np.int64))
    stored, targets = io.open_array(tmp_path / "a.npz"), io.open_array(tmp_path / "targets.npy")
    with pytest.raises(io.ArrayFileError):
        list(io.row_blocks(stored, targets))
    with pytest.raises(io.ArrayFileError):
        stored.map()


def test_a_stored_member_that_runs_past_the_end(tmp_path):
    np.savez(tmp_path / "a.npz", a=array((2, 3)))
    content = bytearray((tmp_path / "a.npz").read_bytes())
    content[28:30] = b"\xff\xff"  # the length of the extra field in the local header
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(io.ArrayFileError) as error:
        io.open_array(tmp_path / "a.npz")
    assert str(error.value) == f"{tmp_path / 'a.npz'}: truncated"


@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
def test_an_npz_key_that_occurs_twice_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("a.npy", npy(descr(), bytes(24)))
        archive.writestr("a.npy", npy(descr(shape=(3, 2)), bytes(24)))
    for name in ("a.npz", "a.npz:a"):
        with pytest.raises(io.ArrayFileError, match=r": a key occurs twice$"):
            io.open_array(tmp_path / name)


@pytest.mark.parametrize("name", ["a\0b.npy", "a\0b.npz:key"])
def test_a_null_character_in_a_file_name(name):
    with pytest.raises(io.ArrayFileError) as error:
        io.open_array(name)
    assert str(error.value) == f"{name!r}: has a null character in the name of the file"


def test_a_name_may_be_bytes(tmp_path):
    expected = array((2, 3))
    np.savez(tmp_path / "a.npz", a=expected)
    stored = io.open_array(os.fsencode(tmp_path / "a.npz") + b":a")
    assert stored.name == f"{tmp_path / 'a.npz'}:a"
    same(stored.map(), expected)


@pytest.mark.parametrize("axis", [1.0, "1", None])
def test_an_axis_that_is_no_integer(tmp_path, axis):
    np.save(tmp_path / "logits.npy", np.zeros((2, 3), np.float32))
    np.save(tmp_path / "targets.npy", np.zeros(2, np.int64))
    pair = [io.open_array(tmp_path / f"{name}.npy") for name in ("logits", "targets")]
    with pytest.raises(TypeError, match=f"^axis is {axis!r}; expected an integer$"):
        next(io.row_blocks(*pair, axis=axis))


def test_long_names_in_damaged_files_are_cut(tmp_path):
    file, long = tmp_path / "a.safetensors", "x" * 100_000
    for header, data in [
        ({long: 1}, b""),
        ({long: entry(dtype=long)}, bytes(24)),
        ({long: entry(shape=(2, 2))}, bytes(24)),
        ({long: entry(), f"{long}y": entry(begin=24, end=48)}, bytes(48)),
    ]:
        write_safetensors(file, json.dumps(header).encode(), data)
        with pytest.raises(io.ArrayFileError) as error:
            io.open_array(file)
        assert len(str(error.value)) < 1000


@pytest.mark.parametrize("dtype", ["bfloat16", ml_dtypes.bfloat16, np.dtype(ml_dtypes.bfloat16)])
def test_bfloat16_however_it_is_named(tmp_path, dtype):
    np.save(tmp_path / "a.npy", np.ones(3, ml_dtypes.bfloat16))
    assert io.open_array(tmp_path / "a.npy", dtype=dtype).dtype == ml_dtypes.bfloat16


@pytest.mark.parametrize("dtype", ["float32", "f4", np.float32, np.dtype(">f4")])
def test_a_dtype_however_it_is_named(tmp_path, dtype):
    np.save(tmp_path / "a.npy", np.zeros((2, 3), np.float32))
    assert io.open_array(tmp_path / "a.npy", dtype=dtype).dtype == np.float32
    np.save(tmp_path / "a.npy", np.zeros((2, 3)))
    with pytest.raises(ValueError, match="holds float64; expected dtype float32"):
        io.open_array(tmp_path / "a.npy", dtype=dtype)


def test_blocks_of_what_is_no_array():
    message = r"^targets: found list; expected an array with shape, dtype and slicing$"
    with pytest.raises(TypeError, match=message):
        next(io.row_blocks(np.zeros((2, 3)), [0, 0]))


@pytest.mark.parametrize(
    ("name", "value"), [("axis", True), ("axis", np.False_), ("axis", 1.0), ("max_bytes", 1e9)]
)
def test_blocks_by_integers(tmp_path, name, value):
    np.save(tmp_path / "a.npy", np.zeros((2, 3), np.float32))
    np.save(tmp_path / "b.npy", np.zeros(2, np.int64))
    stored = io.open_array(tmp_path / "a.npy"), io.open_array(tmp_path / "b.npy")
    with pytest.raises(TypeError, match=re.escape(f"{name} is {value!r}; expected an integer")):
        next(io.row_blocks(*stored, **{name: value}))


def test_bfloat16_without_ml_dtypes_says_what_to_install(tmp_path, monkeypatch):
    save_safetensors(tmp_path / "a.safetensors", {"a": array((3,), "bfloat16"), "b": array((3,))})
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    message = r"^bfloat16 needs ml_dtypes \(.*\): pip install \"xent_rs\[bfloat16\]\"$"
    with pytest.raises(ImportError, match=message):
        io.open_array(f"{tmp_path / 'a.safetensors'}:a")
    assert io.open_array(f"{tmp_path / 'a.safetensors'}:b").shape == (3,)


def test_the_import_is_cheap():
    code = "import sys, xent_rs.io; print([name for name in ('ml_dtypes', 'tqdm') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


ERRORS = [
    ("a.txt", None, "a.txt: unknown format; expected a .npy, .npz, .safetensors or .kld file"),
    ("a", None, "a: unknown format; expected a .npy, .npz, .safetensors or .kld file"),
    ("a.npy:key", None, "a.npy:key: a .npy file holds one array; leave out ':key'"),
    ("a.npy", "float64", "a.npy: holds float32; expected dtype float64"),
    ("a.npy", "bfloat16", "a.npy: holds float32; expected dtype bfloat16"),
    ("i.npy", "bfloat16", "i.npy: holds int64; expected dtype bfloat16"),
    ("a.npz", None, "a.npz: holds 'one', 'two'; choose one with a.npz:KEY"),
    ("a.npz:three", None, "a.npz: holds no array 'three'; it holds 'one', 'two'"),
    ("a.safetensors", None, "a.safetensors: holds 'one', 'two'; choose one with a.safetensors:KEY"),
    ("a.safetensors:three", None, "a.safetensors: holds no array 'three'; it holds 'one', 'two'"),
    ("empty.npz", None, "empty.npz: holds no arrays; choose one with empty.npz:KEY"),
    ("empty.npz:a", None, "empty.npz: holds no array 'a'; it holds none"),
    ("bzip2.npz", None, "bzip2.npz: compressed with method 12; expected deflate or none"),
    ("directory.npy", None, "directory.npy: not a regular file"),
    ("pipe.npy", None, "pipe.npy: not a regular file"),
]


@pytest.mark.parametrize(("name", "dtype", "message"), ERRORS)
def test_errors(tmp_path, monkeypatch, name, dtype, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("hello")
    (tmp_path / "a").write_text("hello")
    np.save("a.npy", np.zeros(3, np.float32))
    np.save("i.npy", np.zeros(3, np.int64))
    np.savez("a.npz", one=np.zeros(1), two=np.zeros(1))
    save_safetensors(tmp_path / "a.safetensors", {"one": np.zeros(1), "two": np.zeros(1)})
    np.savez("empty.npz")
    with zipfile.ZipFile("bzip2.npz", "w", zipfile.ZIP_BZIP2) as archive:
        archive.write("a.npy")
    (tmp_path / "directory.npy").mkdir()
    os.mkfifo("pipe.npy")
    with pytest.raises(io.ArrayFileError) as error:
        io.open_array(name, dtype=dtype)
    assert str(error.value) == message


def test_long_lists_of_keys_are_cut(tmp_path):
    np.savez(tmp_path / "a.npz", **{f"key{i}": np.zeros(1) for i in range(50)})
    with pytest.raises(io.ArrayFileError, match=r"'key19' and 30 more; choose one with a\.npz:KEY"):
        io.open_array(tmp_path / "a.npz")


@pytest.mark.parametrize("name", ["a.npy", "a.npz:x", "a.safetensors"])
def test_missing_file(tmp_path, name):
    with pytest.raises(FileNotFoundError):
        io.open_array(tmp_path / name)


def test_an_encrypted_member_is_refused(tmp_path):
    np.savez(tmp_path / "a.npz", a=array((2, 3)))
    content = bytearray((tmp_path / "a.npz").read_bytes())
    content[6] |= 1  # the flag in the local header, and in the directory
    content[content.index(b"PK\1\2") + 8] |= 1
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(io.ArrayFileError, match="encrypted"):
        io.open_array(tmp_path / "a.npz")


def test_a_stored_array_can_be_pickled_and_mapped_again(tmp_path):
    expected = array((3, 4))
    for file in save(tmp_path, a=expected).values():
        stored = pickle.loads(pickle.dumps(io.open_array(file)))
        same(stored.map(), expected)
        same(stored.map(), expected)


MEMORY = """
import resource, sys
import numpy as np
from xent_rs import io
logits, targets = io.open_array(sys.argv[1]), io.open_array(sys.argv[2])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
total = 0
for position, some_logits, some_targets in io.row_blocks(logits, targets, max_bytes=4 << 20):
    total += int(some_logits.sum())
print(total, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in other units")
@pytest.mark.parametrize("savez", [np.savez, np.savez_compressed])
def test_memory_is_bounded_by_the_blocks(tmp_path, savez):
    savez(tmp_path / "a.npz", np.zeros((64, 1 << 18), np.float32))  # 64 MiB
    np.save(tmp_path / "targets.npy", np.zeros(64, np.int64))
    output = subprocess.run(
        [sys.executable, "-c", MEMORY, tmp_path / "a.npz", tmp_path / "targets.npy"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    total, growth = map(int, output.split())
    assert total == 0
    assert growth < 24 << 10, "KiB"


def test_examples(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = doctest.testmod(xent_rs.io)
    assert (result.failed, result.attempted > 0) == (0, True)
