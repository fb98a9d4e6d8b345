"""`xent_rs.io.row_blocks` and what else walks over rows: any array with slices, two of them, next tokens."""

import re
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
import xent_rs
from xent_rs import Evaluator, evaluate, io

SHAPE, CHUNKS = (13, 7, 6), (4, 3, 4)


def values(dtype="float32", shape=SHAPE):
    return (5 * np.random.default_rng(0).standard_normal(shape)).astype(dtype)


class Sliced:
    """The least that an array can have; keeps what it was asked for."""

    def __init__(self, array, chunks=None):
        self._array, self.shape, self.dtype, self.asked = array, array.shape, array.dtype, []
        if chunks is not None:
            self.chunks = chunks

    def __getitem__(self, index):
        assert isinstance(index, tuple)
        self.asked.append(index)
        return self._array[index]


def in_zarr(array, path, chunks=CHUNKS):
    zarr = pytest.importorskip("zarr", "3")
    stored = zarr.create_array(path / "a.zarr", shape=array.shape, chunks=chunks, dtype=array.dtype)
    stored[...] = array
    return zarr.open_array(path / "a.zarr", mode="r")


def in_h5py(array, path, chunks=CHUNKS):
    h5py = pytest.importorskip("h5py")
    with h5py.File(path / "a.h5", "w") as file:
        file.create_dataset("a", data=array, chunks=chunks)
    return h5py.File(path / "a.h5", "r")["a"]


def in_dask(array, path, chunks=CHUNKS):
    return pytest.importorskip("dask.array").from_array(array, chunks=chunks)


def in_xarray(array, path, chunks=CHUNKS):
    return pytest.importorskip("xarray").DataArray(in_dask(array, path, chunks))


def in_file(array, path, chunks=CHUNKS):
    np.save(path / "a.npy", array)
    return io.open_array(path / "a.npy")


def in_files(array, path, chunks=CHUNKS):
    for start in range(0, len(array), chunks[0]):
        np.save(path / f"a-{start}.npy", array[start : start + chunks[0]])
    return io.open_array(path / "a-*.npy")


def alone(array, path, chunks=CHUNKS):
    return Sliced(array)


KINDS = [in_zarr, in_h5py, in_dask, in_xarray, in_file, in_files, alone]


@pytest.mark.parametrize("keep", KINDS)
@pytest.mark.parametrize("axis", [-1, 0, 1])
@pytest.mark.parametrize("max_bytes", [1, 100, 300, 1 << 20])
def test_every_kind_of_array_gives_the_same_rows(tmp_path, keep, axis, max_bytes):
    logits = values()
    rows = tuple(n for i, n in enumerate(SHAPE) if i != axis % 3)
    targets, weights = np.arange(np.prod(rows)).reshape(rows), values("float64", rows)
    found = np.full(SHAPE, np.nan, np.float32)
    order = []
    for position, some_logits, some_targets, some_weights in io.row_blocks(
        keep(logits, tmp_path), targets, Sliced(weights), axis=axis, max_bytes=max_bytes
    ):
        index = tuple(slice(a, a + n) for a, n in zip(position, some_targets.shape, strict=True))
        assert type(some_logits) is np.ndarray
        assert np.array_equal(some_targets, targets[index])
        assert np.array_equal(some_weights, weights[index])
        found[(*index[: axis % 3], slice(None), *index[axis % 3 :])] = some_logits
        assert some_logits.nbytes <= max(max_bytes, SHAPE[axis] * 4)
        order.append(some_targets.ravel())
    assert np.array_equal(found, logits)
    assert np.array_equal(np.concatenate(order), targets.ravel()), "rows come in C order"


@pytest.mark.parametrize(
    ("chunks", "expected"),
    [
        (None, [0, 5, 10]),
        ((4, 3, 4), [0, 4, 8]),
        (((4, 4, 5), (7,), (6,)), [0, 4, 8]),
        (((1, 1, 9, 2), (7,), (6,)), [0, 2, 7, 11]),
        ((20, 7, 6), [0, 5, 10]),
        ((2, 7, 6), [0, 4, 8]),
        ("auto", [0, 5, 10]),
        ((4, 3), [0, 5, 10]),
    ],
)
def test_blocks_end_where_chunks_do(chunks, expected):
    logits, targets = Sliced(values(), chunks), np.zeros(SHAPE[:2], np.int64)
    blocks = list(io.row_blocks(logits, targets, max_bytes=5 * 7 * 6 * 4))
    assert [position for position, *_ in blocks] == [(start, 0) for start in expected]
    assert [index[0].start for index in logits.asked] == expected, "each is read once"


def test_chunks_of_the_second_array_count_where_the_first_has_none():
    reference, candidate = values(), Sliced(values("float16"), (3, 7, 6))
    blocks = list(io.paired_row_blocks(reference, candidate, max_bytes=5 * 7 * 6 * 6))
    assert [position[0] for position, *_ in blocks] == [0, 3, 6, 9]


@pytest.mark.parametrize("keep", KINDS)
@pytest.mark.parametrize("axis", [-1, 1])
def test_evaluate_walks_over_what_is_not_in_memory(tmp_path, monkeypatch, keep, axis):
    logits = values()
    rows = tuple(n for i, n in enumerate(SHAPE) if i != axis % 3)
    targets = np.random.default_rng(1).integers(SHAPE[axis], size=rows)
    weights = np.random.default_rng(2).uniform(0, 2, rows)
    stored = keep(logits, tmp_path)
    options = {"axis": axis, "temperature": 0.7, "sample_weight": weights, "top_k": (1, 3)}
    assert evaluate(stored, targets, **options) == evaluate(logits, targets, **options)
    assert evaluate(stored, targets.tolist(), axis=axis) == evaluate(logits, targets, axis=axis)
    monkeypatch.setattr(io, "row_blocks", lambda *args, **kw: ROW_BLOCKS(*args, **kw, max_bytes=300))
    found, expected = evaluate(stored, Sliced(targets), **options), evaluate(logits, targets, **options)
    assert found.loss == pytest.approx(expected.loss, rel=1e-12)
    assert (found.accuracy, found.top_k, found.rows) == (expected.accuracy, expected.top_k, expected.rows)


ROW_BLOCKS = io.row_blocks


def test_evaluate_reads_bounded_blocks():
    logits = Sliced(np.zeros((40, 1 << 20), np.float32), (3, 1 << 18))
    result = evaluate(logits, np.zeros(40, np.int64))
    assert result.loss == pytest.approx(np.log(1 << 20))
    assert [index[0].stop for index in logits.asked] == [15, 30, 40]


def test_evaluate_names_a_wrong_target_by_its_place(monkeypatch):
    monkeypatch.setattr(io, "row_blocks", lambda *args, **kw: ROW_BLOCKS(*args, **kw, max_bytes=300))
    targets = np.zeros(SHAPE[:2], np.int64)
    targets[11, 5] = 6
    message = r"^targets\[11, 5\] is 6; expected 0 to 5, or ignore_index -100$"
    for array in (values(), Sliced(values())):
        with pytest.raises(IndexError, match=message):
            evaluate(array, targets)


def test_what_evaluate_refuses_it_still_refuses():
    sparse = pytest.importorskip("scipy.sparse")
    with pytest.raises(TypeError, match=r"^logits are a csr_matrix; expected an array \(logits\.toarray"):
        evaluate(sparse.csr_matrix(np.eye(3)), [0, 1, 2])
    with pytest.raises(TypeError, match=r"^logits have dtype int64; expected float16, bfloat16"):
        evaluate(Sliced(np.zeros((2, 3), np.int64)), [0, 1])
    with pytest.raises(ValueError, match=r"^targets have shape \(3,\); expected \(2,\), the shape of logits"):
        evaluate(Sliced(np.zeros((2, 3))), [0, 1, 2])


def test_a_series_is_no_array_that_is_read_in_slices():
    pandas = pytest.importorskip("pandas")
    logits = pandas.Series([0.0, 0.0, 0.0], index=[7, 8, 9])
    assert evaluate(logits, 1).perplexity == pytest.approx(3)


def test_stored_arrays_in_dask_and_xarray(tmp_path):
    dask = pytest.importorskip("dask")
    array = pytest.importorskip("dask.array")
    tokenize = pytest.importorskip("dask.tokenize").tokenize
    logits = values(ml_dtypes.bfloat16)
    for start in range(0, 13, 4):
        np.save(tmp_path / f"a-{start}.npy", logits[start : start + 4])
    stored = io.open_array(tmp_path, dtype="bfloat16")
    lazy = array.from_array(stored, chunks=(4, -1, 2))
    with dask.config.set(scheduler="threads"):
        assert lazy.compute().tobytes() == logits.tobytes()
    assert array.from_array(stored, chunks=stored.chunks).chunks == ((4, 4, 4, 1), (7,), (6,))
    token = tokenize(stored, ensure_deterministic=True)
    assert token == tokenize(io.open_array(tmp_path, dtype="bfloat16"), ensure_deterministic=True)
    np.save(tmp_path / "a-0.npy", logits[1:5])
    assert token != tokenize(io.open_array(tmp_path, dtype="bfloat16"), ensure_deterministic=True)


@pytest.mark.parametrize(
    "pair", [("float32", "float16"), (ml_dtypes.bfloat16, "float64"), (">f4", "float32")]
)
@pytest.mark.parametrize("with_targets", [False, True])
@pytest.mark.parametrize("axis", [-1, 1])
def test_two_arrays_of_any_dtypes_are_walked_over_together(tmp_path, pair, with_targets, axis):
    reference, candidate = values(pair[0]), values(pair[1])[::-1].copy()
    rows = tuple(n for i, n in enumerate(SHAPE) if i != axis % 3)
    targets, weights = (np.arange(np.prod(rows)).reshape(rows), values("float32", rows))
    by_row = (targets, weights) if with_targets else ()
    for max_bytes in (1, 400, 1 << 20):
        seen = []
        for position, *logits, some_targets, some_weights, _ in io.paired_row_blocks(
            reference, in_files_of_v2(candidate, tmp_path), *by_row, axis=axis, max_bytes=max_bytes
        ):
            shape = tuple(n for i, n in enumerate(logits[0].shape) if i != axis % 3)
            index = tuple(slice(a, a + n) for a, n in zip(position, shape, strict=True))
            box = (*index[: axis % 3], slice(None), *index[axis % 3 :])
            for found, expected in zip(logits, (reference, candidate), strict=True):
                assert found.dtype == expected.dtype
                assert found.tobytes() == expected[box].tobytes()
            if with_targets:
                assert np.array_equal(some_targets, targets[index])
                assert np.array_equal(some_weights, weights[index])
            else:
                assert some_targets is None
                assert some_weights is None
            one = sum(array.nbytes for array in logits)
            assert one <= max(max_bytes, SHAPE[axis] * (reference.itemsize + candidate.itemsize))
            seen.append(np.ravel_multi_index([part.start for part in index], rows))
        assert seen == sorted(seen)


def in_files_of_v2(array, path):
    name = path / "candidate.npy"
    np.save(name, array)
    return io.open_array(name, dtype="bfloat16" if array.dtype == ml_dtypes.bfloat16 else None)


@pytest.mark.parametrize("axis", [-1, 1])
@pytest.mark.parametrize(
    ("shift", "score_from"), [(0, 0), (1, 0), (0, 3), (1, 3), (2, 4), (1, 5), (0, 6), (6, 0)]
)
@pytest.mark.parametrize("keep", [in_zarr, in_files, alone])
def test_next_tokens(tmp_path, keep, shift, score_from, axis):
    """The target of position i is token i + shift; positions before `score_from` do not count."""
    logits, tokens = values(), np.random.default_rng(1).integers(6, size=SHAPE[:2])
    weights = values("float64", SHAPE[:2])
    last = 7 - shift
    expected = logits[:, score_from:last], tokens[:, score_from + shift :], weights[:, score_from + shift :]
    stored = keep(np.ascontiguousarray(np.moveaxis(logits, -1, axis)), tmp_path)
    for max_bytes in (1, 50, 400, 1 << 20):
        found = []
        for position, *block in io.row_blocks(
            stored, tokens, weights, axis=axis, shift=shift, score_from=score_from, max_bytes=max_bytes
        ):
            block[0] = np.moveaxis(block[0], axis, -1)
            assert position[1] >= score_from + shift
            assert np.array_equal(tokens[position], block[1][0, 0])
            found.append(block)
        for part, whole in zip(zip(*found, strict=True), expected, strict=True):
            joined = np.concatenate([block.reshape(-1, *whole.shape[2:]) for block in part])
            assert np.array_equal(joined, whole.reshape(joined.shape))


@pytest.mark.parametrize("savez", [np.savez, np.savez_compressed])
def test_next_tokens_of_one_sequence_in_a_file(tmp_path, savez):
    logits, tokens = values("float32", (50, 6)), np.arange(50) % 6
    savez(tmp_path / "a.npz", logits=logits, tokens=tokens)
    pair = [io.open_array(f"{tmp_path / 'a.npz'}:{name}") for name in ("logits", "tokens")]
    blocks = list(io.row_blocks(*pair, shift=1, score_from=7, max_bytes=100))
    assert [position for position, *_ in blocks] == [(start,) for start in range(8, 50, 4)]
    assert np.array_equal(np.concatenate([block[1] for block in blocks]), logits[7:-1])
    assert np.array_equal(np.concatenate([block[2] for block in blocks]), tokens[8:])


@pytest.mark.parametrize("savez", [np.savez, np.savez_compressed])
def test_blocks_that_are_skipped_are_not_read(tmp_path, savez):
    logits, targets = values("float32", (50, 6)), np.arange(50) % 6
    savez(tmp_path / "a.npz", logits=logits, targets=targets)
    pair = [io.open_array(f"{tmp_path / 'a.npz'}:{name}") for name in ("logits", "targets")]
    whole = list(io.row_blocks(*pair, max_bytes=100))
    for skip in (0, 1, 7, len(whole) - 1, len(whole), 1000):
        blocks = list(io.row_blocks(*pair, max_bytes=100, skip=skip))
        assert [position for position, *_ in blocks] == [position for position, *_ in whole[skip:]]
        for found, expected in zip(blocks, whole[skip:], strict=True):
            assert all(np.array_equal(a, b) for a, b in zip(found[1:], expected[1:], strict=True))
    sliced = Sliced(logits)
    list(io.row_blocks(sliced, targets, max_bytes=100, skip=10))
    assert sliced.asked[0][0].start == 40


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("score_from", [0, 3])
def test_a_compressed_array_is_never_in_memory_as_a_whole(tmp_path, order, score_from):
    """Whatever order its numbers have, and where only some positions of each sequence are wanted."""
    logits = np.zeros((32, 8, 1 << 15), np.float32, order=order)  # 32 MiB
    np.savez_compressed(tmp_path / "a.npz", logits)
    stored, targets = io.open_array(tmp_path / "a.npz"), np.zeros((32, 8), np.int8)
    del logits
    tracemalloc.start()
    try:
        for _ in io.row_blocks(stored, targets, score_from=score_from, max_bytes=2 << 20):
            pass
        assert tracemalloc.get_traced_memory()[1] < 12 << 20
    finally:
        tracemalloc.stop()


ERRORS = [
    ({"shift": 8}, ValueError, "shift is 8; expected 0 to 7 for logits of shape (13, 7, 6)"),
    ({"shift": 1, "score_from": 7}, ValueError, "score_from is 7; expected 0 to 6 for logits of shape"),
    ({"shift": -1}, ValueError, "shift is -1; expected at least 0"),
    ({"score_from": -1}, ValueError, "score_from is -1; expected at least 0"),
    ({"skip": -1}, ValueError, "skip is -1; expected at least 0"),
    ({"shift": True}, TypeError, "shift is True; expected an integer"),
    ({"skip": 1.0}, TypeError, "skip is 1.0; expected an integer"),
]


@pytest.mark.parametrize(("options", "exception", "message"), ERRORS)
def test_wrong_numbers_are_refused_at_once(options, exception, message):
    with pytest.raises(exception, match=f"^{re.escape(message)}"):
        io.row_blocks(values(), np.zeros(SHAPE[:2], np.int64), **options)


def test_a_single_sample_has_no_positions():
    with pytest.raises(ValueError, match=r"^shift is 1; expected 0 to 0 for logits of shape \(6,\)$"):
        io.row_blocks(np.zeros(6), np.zeros((), np.int64), shift=1)


PAIRED_ERRORS = [
    (
        (np.zeros((2, 3)), np.zeros((2, 4))),
        ValueError,
        "candidate has shape (2, 4); expected (2, 3), the shape of",
    ),
    ((np.zeros((2, 3)), [1.0]), TypeError, "candidate: found list; expected an array with shape, dtype and"),
    (
        (None, np.zeros(3)),
        TypeError,
        "reference: found NoneType; expected an array with shape, dtype and slicing",
    ),
    (
        (np.zeros(()), np.zeros(())),
        ValueError,
        "reference has shape (); expected at least one axis, the classes",
    ),
    (
        (np.zeros((2, 3)), np.zeros((2, 3)), np.zeros(3)),
        ValueError,
        "targets have shape (3,); expected (2,), the shape of reference (2, 3) without axis -1",
    ),
    (
        (np.zeros((2, 3)), np.zeros((2, 3)), None, np.zeros(3)),
        ValueError,
        "sample_weight has shape (3,); expected (2,), one number a row",
    ),
]


@pytest.mark.parametrize(("arrays", "exception", "message"), PAIRED_ERRORS)
def test_pairs_that_do_not_match(arrays, exception, message):
    with pytest.raises(exception, match=f"^{re.escape(message)}"):
        io.paired_row_blocks(*arrays)


def test_pairs_without_rows_and_single_samples():
    ((position, reference, candidate, targets, *_),) = io.paired_row_blocks(
        np.zeros(3), np.ones(3, np.float32), np.array(1)
    )
    assert (position, reference.shape, candidate.dtype, targets) == ((), (3,), np.float32, 1)
    ((position, reference, *_),) = io.paired_row_blocks(np.zeros((0, 3)), np.zeros((0, 3)))
    assert (position, reference.shape) == ((0,), (0, 3))


def test_an_evaluator_of_blocks_is_that_of_the_whole():
    logits, targets = values(), np.zeros(SHAPE[:2], np.int64)
    evaluator = Evaluator()
    for _, some_logits, some_targets in io.row_blocks(logits, targets, max_bytes=300):
        evaluator.update(some_logits, some_targets)
    expected = xent_rs.evaluate(logits, targets)
    assert evaluator.result().rows == expected.rows
    assert evaluator.result().loss == pytest.approx(expected.loss, rel=1e-12)
