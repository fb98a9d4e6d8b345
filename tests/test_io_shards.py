"""`xent_rs.io`: patterns, folders and indexes make one array; slices of it are NumPy's."""

import json
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from xent_rs import io

ROWS = [
    4,
    0,
    1,
    7,
    2,
    3,
    3,
    1,
    1,
    2,
    5,
    2,
]  # of shards 0 to 11: their natural order is not that of their names


def whole(dtype="float32", tail=(3, 5)):
    random = np.random.default_rng(0)
    return (20 * random.standard_normal((sum(ROWS), *tail))).astype(dtype)


def cut(values):
    return np.split(values, np.cumsum(ROWS)[:-1])


def save_shards(folder, values, kind):
    """Write the rows in shards; return the name of the array."""
    shards = cut(values)
    if kind == "index":
        files = [f"model-{number % 3}.safetensors" for number in range(len(shards))]
        for file in set(files):
            tensors = {f"logits.{n}": shards[n] for n in range(len(shards)) if files[n] == file}
            safetensors.numpy.save_file(tensors, folder / file)
        weight_map = {f"logits.{number}": file for number, file in enumerate(files)}
        text = json.dumps({"metadata": {"total_size": values.nbytes}, "weight_map": weight_map})
        (folder / "model.safetensors.index.json").write_text(text)
        return folder / "model.safetensors.index.json"
    for number, shard in enumerate(shards):
        path = folder / f"part-{number}"
        if kind == "npy":
            np.save(f"{path}.npy", shard)
        elif kind == "safetensors":
            safetensors.numpy.save_file({"x": shard, "other": shard[:1]}, f"{path}.safetensors")
        else:
            savez = np.savez_compressed if kind == "npz compressed" else np.savez
            savez(f"{path}.npz", x=shard, other=shard[:1])
    return {"npy": folder / "part-*.npy", "safetensors": f"{folder}/part-*.safetensors:x"}.get(
        kind, f"{folder}/part-*.npz:x"
    )


KINDS = ["npy", "npz", "npz compressed", "safetensors", "index"]


def same(found, expected):
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    assert np.asarray(found, order="C").tobytes() == np.asarray(expected, order="C").tobytes()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["float32", "float16", "int64"])
def test_shards_are_one_array_in_natural_order(tmp_path, kind, dtype):
    expected = whole(dtype)
    stored = io.open_array(save_shards(tmp_path, expected, kind))
    assert (stored.shape, stored.dtype, stored.ndim) == (expected.shape, expected.dtype, 3)
    assert (len(stored), stored.nbytes) == (len(expected), expected.nbytes)
    assert stored.chunks == (tuple(ROWS), (3,), (5,))
    same(stored.map(), expected)
    same(np.asarray(stored), expected)
    assert pickle.loads(pickle.dumps(stored)) == stored


@pytest.mark.parametrize("kind", KINDS)
def test_random_cuts_of_shards_are_those_of_the_whole_array(tmp_path, kind):
    expected = whole()
    stored = io.open_array(save_shards(tmp_path, expected, kind))
    np.save(tmp_path / "targets", np.zeros(expected.shape[:-1], np.int64))
    targets = io.open_array(tmp_path / "targets.npy")
    random = np.random.default_rng(1)
    for max_bytes in random.integers(1, 2000, 25):
        blocks = [logits for _, logits, _ in io.row_blocks(stored, targets, max_bytes=int(max_bytes))]
        assert all(logits.nbytes <= max(20, max_bytes) for logits in blocks)
        assert b"".join(logits.tobytes() for logits in blocks) == expected.tobytes()
        boxes = [tuple(slice(*sorted(random.integers(0, n + 1, 2).tolist())) for n in expected.shape)]
        for box, block in zip(boxes, stored.blocks(boxes), strict=True):
            same(block, expected[box])


def test_blocks_end_with_the_files(tmp_path):
    """Where they fit, so that what is in one file is mapped and not copied."""
    stored = io.open_array(save_shards(tmp_path, whole(), "npy"))
    targets = np.zeros(stored.shape[:-1], np.int64)
    blocks = list(io.row_blocks(stored, targets, max_bytes=4 * 60))
    # What is larger than four rows is cut in between.
    assert [position[0] for position, *_ in blocks] == [0, 4, 5, 9, 12, 14, 17, 21, 24, 28]
    assert sum(len(logits) for _, logits, _ in blocks) == sum(ROWS)


def test_bfloat16_and_big_endian_shards(tmp_path):
    expected = whole(ml_dtypes.bfloat16)
    same(io.open_array(save_shards(tmp_path, expected, "npy"), dtype="bfloat16").map(), expected)
    expected = whole(">f4")
    stored = io.open_array(save_shards(tmp_path, expected, "npy"))
    same(stored.map(), expected)
    assert stored[...].dtype == np.dtype(">f4")


def test_a_folder_is_its_array_files(tmp_path):
    expected = whole()
    save_shards(tmp_path, expected, "npy")
    (tmp_path / "info").write_text("as dask.array.to_npy_stack leaves it")
    (tmp_path / ".part-3.npy.12ab").write_text("unfinished")
    (tmp_path / "README.md").write_text("")
    for name in (tmp_path, f"{tmp_path}/", str(tmp_path).encode()):
        same(io.open_array(name).map(), expected)


def test_a_folder_with_an_index_is_what_the_index_says(tmp_path):
    expected = whole()
    save_shards(tmp_path, expected, "index")
    np.save(tmp_path / "targets.npy", np.zeros(3))
    same(io.open_array(tmp_path).map(), expected)
    same(io.open_array(f"{tmp_path}:logits.*").map(), expected)
    same(io.open_array(f"{tmp_path}:logits.3").map(), cut(expected)[3])


def test_keys_of_folders_and_of_indexes(tmp_path):
    expected = whole()
    save_shards(tmp_path, expected, "npz")
    same(io.open_array(f"{tmp_path}:x").map(), expected)
    with pytest.raises(io.ArrayFileError) as error:
        io.open_array(tmp_path)
    assert str(error.value) == (
        f"{tmp_path / 'part-0.npz'}: holds 'x', 'other'; choose one with {tmp_path.name}:KEY"
    )


NAMES = ["a-0", "a-00", "a-01", "a-02", "a-2", "a-10-9", "a-10-10", "a-10", "a-10b", "a-" + 99 * "9", "b"]


def test_natural_order(tmp_path):
    for number, name in enumerate(NAMES):
        np.save(tmp_path / f"{name}.npy", [number])
    assert io.open_array(tmp_path).map().tolist() == list(range(len(NAMES)))


def test_long_numbers_in_an_index(tmp_path):
    tensors = {f"logits.{'9' * digits}": np.array([digits]) for digits in (5000, 5001)}
    safetensors.numpy.save_file(tensors, tmp_path / "a.safetensors")
    path = write_index(tmp_path, {"weight_map": dict.fromkeys(reversed(tensors), "a.safetensors")})
    assert io.open_array(path).map().tolist() == [5000, 5001]


def test_a_pattern_over_folders(tmp_path):
    expected = whole()
    for number, shard in enumerate(cut(expected)):
        (tmp_path / f"step-{number}").mkdir()
        np.save(tmp_path / f"step-{number}" / "logits.npy", shard)
    for pattern in ("step-*/logits.npy", "**/*.npy"):
        same(io.open_array(tmp_path / pattern).map(), expected)


def test_a_file_with_the_name_of_a_pattern_is_that_file(tmp_path):
    np.save(tmp_path / "logits[0].npy", np.arange(3))
    np.save(tmp_path / "logits0.npy", np.arange(4))
    assert io.open_array(tmp_path / "logits[0].npy").shape == (3,)
    assert io.open_array(tmp_path / "logits[01].npy").shape == (4,)


INDICES = [
    ...,
    (),
    0,
    -1,
    np.int64(5),
    slice(3, 9),
    slice(None, None, -1),
    slice(20, 3, -3),
    slice(30, 3),
    (..., 2),
    (slice(1, 30, 4), ..., slice(None, None, 2)),
    (5, 1),
    (5, 1, -2),
    (5, ..., 1, -2),
    (slice(2, 8), 0, slice(1, 3)),
    (slice(None), slice(2, 2)),
]


@pytest.mark.parametrize("kind", ["one", *KINDS])
@pytest.mark.parametrize("index", INDICES, ids=str)
def test_slices_are_those_of_numpy(tmp_path, kind, index):
    expected = whole()
    if kind == "one":
        np.save(tmp_path / "a.npy", np.asfortranarray(expected))
        stored = io.open_array(tmp_path / "a.npy")
        assert stored.chunks is None
    else:
        stored = io.open_array(save_shards(tmp_path, expected, kind))
    same(stored[index], expected[index])


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (31, "index 31 is out of bounds for axis 0 with size 31"),
        ((0, -4), "index -4 is out of bounds for axis 1 with size 3"),
        ((0, 0, 0, 0), "too many indices: found 4; expected at most 3"),
        ((..., ...), "an index can only have a single ellipsis ('...')"),
        ([0, 1], "index has [0, 1]; expected integers, slices and '...'"),
        (np.array([0, 1]), "index has array([0, 1]); expected integers, slices and '...'"),
        (None, "index has None; expected integers, slices and '...'"),
        (True, "index has True; expected integers, slices and '...'"),
        (1.0, "index has 1.0; expected integers, slices and '...'"),
    ],
)
def test_other_indices_are_refused(tmp_path, index, message):
    stored = io.open_array(save_shards(tmp_path, whole(), "npy"))
    with pytest.raises(IndexError, match=f"^{re.escape(message)}$"):
        stored[index]


def test_conversions_of_one_file(tmp_path):
    np.save(tmp_path / "a.npy", whole())
    stored = io.open_array(tmp_path / "a.npy")
    assert not np.asarray(stored).flags.writeable, "mapped"
    same(np.asarray(stored, np.float64), whole().astype(np.float64))
    same(np.array(stored), whole())
    assert np.array(stored).flags.writeable


def test_a_slice_of_one_file_is_mapped(tmp_path):
    stored = io.open_array(save_shards(tmp_path, whole(), "npy"))
    block = stored[6:9]
    assert not block.flags.writeable
    assert not block.flags.owndata
    assert stored[4:9].flags.writeable, "of two files: a copy"


def test_an_array_without_axes_has_no_length(tmp_path):
    np.save(tmp_path / "a.npy", np.float32(3))
    stored = io.open_array(tmp_path / "a.npy")
    assert (stored[()], stored[...], stored.shape, stored.chunks) == (3, 3, (), None)
    with pytest.raises(TypeError, match="without axes"):
        len(stored)


def test_a_shard_that_was_replaced_is_refused(tmp_path):
    stored = io.open_array(save_shards(tmp_path, whole(), "npy"))
    np.save(tmp_path / "part-3.npy", np.zeros((7, 3, 5), np.float32))
    same(stored[:5], whole()[:5])
    with pytest.raises(io.ArrayFileError) as error:
        stored[:6]
    assert str(error.value) == f"{tmp_path / 'part-3.npy'}: has changed since it was opened"


def write_index(folder, content):
    path = folder / "a.index.json"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return path


INDEXES = {
    "Git LFS": (
        b"version https://git-lfs.github.com/spec/v1",
        "is a Git LFS pointer, not the file that it stands for: run `git lfs pull`",
    ),
    "empty": (b"", "damaged index of a safetensors file (Expecting value: line 1 column 1 (char 0))"),
    "truncated": (b'{"weight_map": {"a": "a.saf', None),
    "not UTF-8": (b"\xff", None),
    "nested": (b"[" * 100_000, None),
    "a list": ([1], "holds no weight_map from tensors to files; expected the index of a safetensors file"),
    "no weight_map": (
        {"metadata": {}},
        "holds no weight_map from tensors to files; expected the index of a safetensors file",
    ),
    "no tensors": (
        {"weight_map": {}},
        "holds no weight_map from tensors to files; expected the index of a safetensors file",
    ),
    "a tensor twice": (b'{"weight_map": {"a": "a", "a": "b"}}', None),
    "a number": (
        {"weight_map": {"a": 1}},
        "says that 'a' is in 1; expected the name of a file in the folder of the index",
    ),
    "upwards": (
        {"weight_map": {"a": "../a.safetensors"}},
        "says that 'a' is in '../a.safetensors'; expected the name of a file in the folder of the index",
    ),
    "absolute": (
        {"weight_map": {"a": "/a.safetensors"}},
        "says that 'a' is in '/a.safetensors'; expected the name of a file in the folder of the index",
    ),
}


@pytest.mark.parametrize("case", INDEXES)
def test_damaged_indexes(tmp_path, case):
    content, message = INDEXES[case]
    path = write_index(tmp_path, content)
    with pytest.raises(io.ArrayFileError) as error:
        io.open_array(path)
    if message is None:
        assert str(error.value).startswith(f"{path}: damaged index of a safetensors file (")
    else:
        assert str(error.value) == f"{path}: {message}"


def test_faults_of_an_index(tmp_path):
    path = save_shards(tmp_path, whole(), "index")
    with pytest.raises(io.ArrayFileError) as error:
        io.open_array(f"{path}:targets*")
    listed = ", ".join(f"'logits.{n}'" for n in range(12))
    assert str(error.value) == f"{path}: holds no tensor 'targets*'; it holds {listed}"
    write_index(tmp_path, {"weight_map": {"logits.0": "model-0.safetensors", "a": "model-0.safetensors"}})
    with pytest.raises(io.ArrayFileError, match=r"model-0\.safetensors: holds no array 'a'; it holds "):
        io.open_array(tmp_path / "a.index.json")
    os.remove(tmp_path / "model-2.safetensors")
    with pytest.raises(FileNotFoundError) as missing:
        io.open_array(path)
    assert missing.value.filename == str(tmp_path / "model-2.safetensors")
    with pytest.raises(io.ArrayFileError, match=r"holds \.safetensors files and 2 indexes; choose some"):
        io.open_array(tmp_path)


def truncated(path):
    os.truncate(path, path.stat().st_size - 1)


def renamed(path, suffix):
    """A file whose name says that it is of another kind."""
    os.replace(path, path.with_suffix(suffix))


FAULTS = [
    (
        lambda path: np.save(path, np.zeros((2, 3, 4), np.float32)),
        "part-2.npy: holds float32 of shape (2, 3, 4); expected float32 of shape (any, 3, 5), "
        "as part-0.npy, which is of the same array",
    ),
    (
        lambda path: np.save(path, np.zeros((1, 3, 5))),
        "part-2.npy: holds float64 of shape (1, 3, 5); expected float32 of shape (any, 3, 5), "
        "as part-0.npy, which is of the same array",
    ),
    (
        lambda path: np.save(path, np.zeros(5, np.float32)),
        "part-2.npy: holds float32 of shape (5,); expected float32 of shape (any, 3, 5), "
        "as part-0.npy, which is of the same array",
    ),
    (
        lambda path: np.save(path, np.float32(1)),
        "part-2.npy: holds a single number, shape (); expected rows, for it is one of 12 files",
    ),
    (truncated, "part-2.npy: truncated; 60 bytes of data expected, 59 found"),
    (lambda path: path.write_bytes(b""), "part-2.npy: does not begin as a .npy file does (begins with b'')"),
]


@pytest.mark.parametrize(("change", "message"), FAULTS)
def test_a_shard_that_does_not_fit_is_named(tmp_path, monkeypatch, change, message):
    monkeypatch.chdir(tmp_path)
    save_shards(tmp_path, whole(), "npy")
    change(Path("part-2.npy"))
    with pytest.raises(io.ArrayFileError) as error:
        io.open_array("part-*.npy")
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("kind", "suffix", "said"),
    [
        ("npy", ".npz", "begins as a .npy file does; expected a .npz file, as its name says"),
        ("npy", ".safetensors", "begins as a .npy file does; expected a .safetensors file, as its name says"),
        ("npz", ".npy", "begins as a .npz file does; expected a .npy file, as its name says"),
        ("npz", ".safetensors", "begins as a .npz file does; expected a .safetensors file, as its name says"),
        ("safetensors", ".npz", "does not begin as a .npz file does (begins with "),
        ("safetensors", ".npy", "does not begin as a .npy file does (begins with "),
    ],
)
def test_a_misnamed_file_is_told(tmp_path, kind, suffix, said):
    save_shards(tmp_path, whole(), kind)
    path = next(tmp_path.glob(f"part-0.{kind}"))
    renamed(path, suffix)
    with pytest.raises(io.ArrayFileError) as error:
        io.open_array(path.with_suffix(suffix))
    assert str(error.value).startswith(f"{path.with_suffix(suffix)}: {said}")


ERRORS = [
    ("empty", "empty: is a folder without a .npy, .npz, .safetensors or .kld file"),
    (
        "zarr",
        "zarr: is a folder without a .npy, .npz, .safetensors or .kld file "
        "(a Zarr array: open it with zarr, and hand that to Python's functions)",
    ),
    ("mixed", "mixed: holds .npy and .npz files; choose some, such as mixed/*.npy"),
    ("part-*.npy:x", "part-0.npy:x: a .npy file holds one array; leave out ':x'"),
]


@pytest.mark.parametrize(("name", "message"), ERRORS)
def test_names_that_stand_for_no_array(tmp_path, monkeypatch, name, message):
    monkeypatch.chdir(tmp_path)
    save_shards(tmp_path, whole(), "npy")
    for folder in ("empty", "zarr", "mixed"):
        os.mkdir(folder)
    Path("zarr/zarr.json").write_text("{}")
    np.save("mixed/a.npy", np.zeros(3))
    np.savez("mixed/b.npz", np.zeros(3))
    with pytest.raises(io.ArrayFileError) as error:
        io.open_array(name)
    assert str(error.value) == message


@pytest.mark.parametrize("name", ["shards", "none-*.npy", "none-[0-9].npy", "none-*.npz:x", "a.index.json"])
def test_what_is_not_there(tmp_path, name):
    with pytest.raises(FileNotFoundError) as error:
        io.open_array(tmp_path / name)
    assert error.value.filename == str(tmp_path / name).removesuffix(":x")


MEMORY = """
import resource, sys
from xent_rs import io
import numpy as np
logits = io.open_array(sys.argv[1])
targets = np.zeros(logits.shape[:-1], np.int8)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
blocks = io.row_blocks(logits, targets, max_bytes=8 << 20)
total = sum(float(block[:, ::1024].sum()) for _, block, _ in blocks)
assert total == 0 and logits.nbytes == 3 << 30
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.exhaustive
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in other units")
def test_memory_stays_small_on_huge_sparse_shards(tmp_path):
    header = {"descr": "<f4", "fortran_order": False, "shape": (1 << 10, 1 << 18)}
    for number in range(3):
        with (tmp_path / f"logits-{number}.npy").open("wb") as file:
            np.lib.format.write_array_header_1_0(file, header)
            file.truncate(file.tell() + (1 << 30))  # zeros that take no space
    command = [sys.executable, "-c", MEMORY, str(tmp_path)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert int(output) < 32 << 10, "KiB"
