"""llama.cpp's logits: written here as its ``tools/perplexity/perplexity.cpp`` does, and read."""

import os
import pickle
import struct
import subprocess
import sys

import numpy as np
import pytest
import xent_rs.cli
from xent_rs import evaluate, io


def write(path, logits, tokens, span=16.0):
    """Write as llama.cpp does; return the log-probabilities that it reads back, by its own formula."""
    chunks, context = tokens.shape
    scored, classes = logits.shape[1:]
    assert scored == context - 1 - context // 2
    restored = np.empty(logits.shape, np.float32)
    with path.open("wb") as file:
        file.write(b"_logits_" + struct.pack("<3i", context, classes, chunks))
        file.write(tokens.astype("<i4").tobytes())
        for place in np.ndindex(chunks, scored):
            row = logits[place].astype(np.float32)
            largest = row.max()
            smallest = max(row.min(), np.float32(largest - np.float32(span)))
            log_sum = np.float32(np.log(np.exp(row - largest, dtype=np.float32).sum(dtype=np.float64)))
            minimum = np.float32(smallest - largest - log_sum)
            scale = np.float32((largest - smallest) / np.float32(65535))
            quantized = np.zeros(2 * ((classes + 1) // 2), "<u2")
            if scale:
                nearest = np.rint((row - smallest) / scale)
                quantized[:classes] = np.where(row > smallest, nearest, 0)
            file.write(struct.pack("<2f", scale, minimum) + quantized.tobytes())
            for i in range(classes):
                restored[(*place, i)] = scale * np.float32(quantized[i]) + minimum
    return restored


def example(path, *, chunks=3, context=9, classes=11, span=16.0):
    random = np.random.default_rng(0)
    scored = context - 1 - context // 2
    logits = (6 * random.standard_normal((chunks, scored, classes))).astype(np.float32)
    tokens = random.integers(classes, size=(chunks, context)).astype(np.int32)
    return logits, tokens, write(path, logits, tokens, span)


@pytest.mark.parametrize("context", [1, 2, 3, 8, 9])
@pytest.mark.parametrize("classes", [1, 2, 11, 12])
@pytest.mark.parametrize("span", [16.0, 24.0])
def test_logits_targets_and_tokens(tmp_path, context, classes, span):
    path = tmp_path / "base.kld"
    logits, tokens, restored = example(path, context=context, classes=classes, span=span)
    first, scored = context // 2, context - 1 - context // 2
    assert os.path.getsize(path) == (
        20 + 3 * context * 4 + 3 * scored * 2 * (2 * ((classes + 1) // 2) + 4)
    ), "the formula of the format"
    stored = io.open_array(f"{path}:logits")
    assert (stored.shape, stored.dtype) == ((3, scored, classes), np.float32)
    found = stored.map()
    assert found.tobytes() == restored.tobytes()
    if scored:
        shifted = logits - np.log(np.exp(logits.astype(float)).sum(-1, keepdims=True))
        near = shifted > shifted.max(-1, keepdims=True) - span
        assert np.abs(found - shifted)[near].max() < span / 65535
    targets = io.open_array(f"{path}:targets")
    assert (targets.shape, targets.dtype) == ((3, scored), np.int32)
    for chunk, j in np.ndindex(3, scored):
        assert targets[chunk, j] == tokens[chunk, first + j + 1]
    assert np.array_equal(io.open_array(f"{path}:tokens").map(), tokens)


def test_slices_and_blocks_are_decoded_alone(tmp_path):
    path = tmp_path / "base.kld"
    *_, restored = example(path)
    stored = pickle.loads(pickle.dumps(io.open_array(f"{path}:logits")))
    for index in (0, (..., 3), (1, 2), (slice(1, 3), -1, slice(2, 9, 3)), (slice(None), slice(0, 0))):
        assert np.array_equal(stored[index], restored[index])
    targets = io.open_array(f"{path}:targets")
    for max_bytes in (1, 100, 200, 1 << 20):
        blocks = list(io.row_blocks(stored, targets, max_bytes=max_bytes))
        assert b"".join(logits.tobytes() for _, logits, _ in blocks) == restored.tobytes()
        assert b"".join(some.tobytes() for *_, some in blocks) == targets.map().tobytes()


def test_the_perplexity_is_that_of_the_log_probabilities(tmp_path):
    path = tmp_path / "base.kld"
    _, tokens, restored = example(path, classes=500, context=32)
    result = evaluate(io.open_array(f"{path}:logits"), io.open_array(f"{path}:targets"))
    targets = tokens[:, 17:]
    normalized = restored - np.log(np.exp(restored.astype(float)).sum(-1, keepdims=True))
    expected = -np.take_along_axis(normalized, targets[..., None], -1).mean()
    assert result.loss == pytest.approx(expected, rel=1e-6)
    assert result.rows == targets.size == 3 * 15


def test_logits_of_whole_windows_are_scored_as_llama_does(tmp_path):
    """With `shift` and `score_from`, the rows of a candidate are those of the file."""
    path = tmp_path / "base.kld"
    _, tokens, restored = example(path, context=9)
    whole = np.zeros((3, 9, 11), np.float16)
    whole[:, 4:8] = restored
    rows = list(io.row_blocks(whole, tokens, shift=1, score_from=4))
    assert np.array_equal(rows[0][1], restored.astype(np.float16))
    assert np.array_equal(rows[0][2], io.open_array(f"{path}:targets").map())


def test_several_files_are_one_array(tmp_path):
    parts = [example(tmp_path / f"base-{number}.kld", chunks=number + 1)[2] for number in range(3)]
    stored = io.open_array(f"{tmp_path}/base-*.kld:logits")
    assert np.array_equal(stored.map(), np.concatenate(parts))
    example(tmp_path / "base-3.kld", classes=12)
    with pytest.raises(
        io.ArrayFileError, match=r"base-3\.kld:logits: holds float32 of shape \(3, 4, 12\); expe"
    ):
        io.open_array(f"{tmp_path}:logits")


@pytest.mark.parametrize("name", ["logits", "logits.bin", "f16.dat", "base.KLD"])
def test_any_suffix_will_do(tmp_path, name):
    *_, restored = example(tmp_path / name)
    assert np.array_equal(io.open_array(f"{tmp_path / name}:logits").map(), restored)
    with pytest.raises(io.ArrayFileError) as error:
        io.open_array(tmp_path / name)
    assert str(error.value) == (
        f"{tmp_path / name}: holds 'logits', 'targets', 'tokens'; choose one with {name}:KEY"
    )


def header(*numbers):
    return b"_logits_" + struct.pack("<3i", *numbers)


FAULTS = [
    (b"", "does not begin as a .kld file of llama.cpp does (begins with b'')"),
    (b"_logit", "does not begin as a .kld file of llama.cpp does (begins with b'_logit')"),
    (b"_logitz_" + bytes(12), "does not begin as a .kld file of llama.cpp does (begins with b'_logitz_')"),
    (header(9, 11, 3)[:-1], "truncated; 20 bytes of header expected, 19 found"),
    (
        header(9, 11, 3),
        "truncated; 512 bytes expected for 3 chunks of 9 tokens and 11 classes, 20 found",
    ),
    (header(0, 11, 3), "says that it has 3 chunks of 0 tokens and 11 classes; expected positive numbers"),
    (header(9, -1, 3), "says that it has 3 chunks of 9 tokens and -1 classes; expected positive numbers"),
    (header(9, 11, -3), "says that it has -3 chunks of 9 tokens and 11 classes; expected positive numbers"),
    (
        header(2**31 - 1, 2**31 - 1, 2**31 - 1),
        f"truncated; {20 + 4 * (2**31 - 1) ** 2 + (2**31 - 1) * (2**30 - 1) * (8 + 2**32)} bytes expected "
        f"for {2**31 - 1} chunks of {2**31 - 1} tokens and {2**31 - 1} classes, 20 found",
    ),
    (b"\x93NUMPY\1\0", "begins as a .npy file does; expected a .kld file, as its name says"),
    (b"PK\3\4", "begins as a .npz file does; expected a .kld file, as its name says"),
]


@pytest.mark.parametrize(("content", "message"), FAULTS)
def test_damaged_files(tmp_path, content, message):
    path = tmp_path / "base.kld"
    path.write_bytes(content)
    with pytest.raises(io.ArrayFileError) as error:
        io.open_array(f"{path}:logits")
    assert str(error.value) == f"{path}:logits: {message}"


def test_truncated_anywhere_and_too_long(tmp_path):
    path = tmp_path / "base.kld"
    example(path)
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(io.ArrayFileError, match=r"truncated; |does not begin"):
            io.open_array(f"{path}:tokens")
    path.write_bytes(content + b"x")
    with pytest.raises(io.ArrayFileError) as error:
        io.open_array(f"{path}:tokens")
    assert str(error.value) == (
        f"{path}:tokens: {len(content)} bytes expected for 3 chunks of 9 tokens and 11 classes, "
        f"{len(content) + 1} found"
    )


def test_misnamed_and_wrong_keys(tmp_path):
    path = tmp_path / "base.npy"
    example(path)
    with pytest.raises(
        io.ArrayFileError, match=r"begins as a \.kld file does; expected a \.npy file, as its"
    ):
        io.open_array(path)
    os.replace(path, path.with_suffix(".kld"))
    with pytest.raises(
        io.ArrayFileError, match=r"holds no array 'x'; it holds 'logits', 'targets', 'tokens'$"
    ):
        io.open_array(f"{path.with_suffix('.kld')}:x")
    with pytest.raises(io.ArrayFileError, match=r"holds float32; expected dtype bfloat16$"):
        io.open_array(f"{path.with_suffix('.kld')}:logits", dtype="bfloat16")


def test_the_size_of_a_file_that_was_published(tmp_path):
    """580 chunks of 512 tokens, 248,320 classes: 73,455,427,060 bytes, here without the numbers."""
    path = tmp_path / "base.kld"
    path.write_bytes(header(512, 248_320, 580))
    os.truncate(path, 73_455_427_060)
    stored = io.open_array(f"{path}:logits")
    assert stored.shape == (580, 255, 248_320)
    assert not stored[579, 254, -2:].any()


MEMORY = """
import resource, sys
from xent_rs import evaluate, io
logits, targets = io.open_array(sys.argv[1] + ":logits"), io.open_array(sys.argv[1] + ":targets")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(evaluate(logits, targets).perplexity)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in other units")
def test_memory_stays_small_on_a_huge_sparse_file(tmp_path):
    path = tmp_path / "base.kld"
    path.write_bytes(header(512, 1 << 17, 8))
    os.truncate(path, 20 + 8 * 512 * 4 + 8 * 255 * ((1 << 18) + 8))  # 0.5 GB, 1 GB in float32
    command = [sys.executable, "-c", MEMORY, str(path)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    perplexity, growth = map(float, output.split())
    assert perplexity == pytest.approx(1 << 17)
    assert growth < 300 << 10, "KiB: two blocks of 64 MiB and what was read for them"


def test_the_command_reads_them(tmp_path, capsys):
    path = tmp_path / "base.kld"
    example(path)
    status = xent_rs.cli.main(["evaluate", f"{path}:logits", f"{path}:targets"])
    output = capsys.readouterr().out
    assert status == 0
    assert output.startswith(f"{path}:logits: float32 logits of shape (3, 4, 11)\n")
