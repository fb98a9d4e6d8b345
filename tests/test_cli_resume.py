"""``xent-rs evaluate --state``: a run that was killed, anywhere, ends in the same bytes when resumed."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import xent_rs
from xent_rs.cli import _journal, main

COMMAND = [sys.executable, "-m", "xent_rs"]
ROWS, POSITIONS, CLASSES = 6, 5, 7


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Logits in three files, tokens and weights, in the current directory; blocks of two rows."""
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    logits = (4 * generator.standard_normal((ROWS, POSITIONS, CLASSES))).astype(np.float32)
    for number in range(3):
        np.save(f"logits-{number}.npy", logits[2 * number : 2 * number + 2])
    np.save("tokens.npy", generator.integers(CLASSES, size=(ROWS, POSITIONS)))
    np.save("rows.npy", generator.uniform(0, 2, (ROWS, POSITIONS)).astype(np.float32))
    np.save("classes.npy", np.arange(CLASSES) / 4)
    np.savez_compressed("small.npz", logits=logits)
    small_blocks(monkeypatch)


def small_blocks(monkeypatch):
    blocks = xent_rs.io.row_blocks
    limit = 2 * 4 * CLASSES
    monkeypatch.setattr(
        xent_rs.io, "row_blocks", lambda *args, **options: blocks(*args, **options, max_bytes=limit)
    )


# What a process does that kills itself when it has counted some blocks, or has written half a record.
KILLED = """
import os, signal, sys
import xent_rs.io
from xent_rs.cli import _journal, main
blocks, limit, survived = xent_rs.io.row_blocks, int(sys.argv[1]), int(sys.argv[2])
xent_rs.io.row_blocks = lambda *args, **options: blocks(*args, **{**options, "max_bytes": limit})
add = _journal.Journal.add
def adding(self, counted, losses):
    if self.blocks == survived:
        os.kill(os.getpid(), signal.SIGKILL)
    add(self, counted, losses)
_journal.Journal.add = adding
main(sys.argv[3:])
"""


def killed(arguments, survived):
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(2 * 4 * CLASSES), str(survived), *arguments],
        capture_output=True,
        timeout=100,
    )
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGKILL, b"", b"")


def interrupted(arguments, survived):
    """Leave a state in which some blocks are counted, without a process of its own."""
    add = _journal.Journal.add

    def adding(self, counted, losses):
        if self.blocks == survived:
            raise KeyboardInterrupt
        add(self, counted, losses)

    _journal.Journal.add = adding
    try:
        assert main(arguments) == 130
    finally:
        _journal.Journal.add = add


def run(capsys, *arguments):
    status = main([str(argument) for argument in arguments])
    return status, *capsys.readouterr()


PLAIN = ["evaluate", "logits-*.npy", "tokens.npy", "--json"]
OUTPUT = [*PLAIN, "--output", "losses.npy"]
OPTIONS = [
    *OUTPUT,
    *("--shift", "--score-from", "1", "--bytes", "99", "--temperature", "0.7", "--ignore-index", "3"),
    *("--sample-weight", "rows.npy", "--weight", "classes.npy"),
]
COMPRESSED = ["evaluate", "small.npz:logits", "tokens.npy", "--json", "--output", "losses.npy"]


@pytest.mark.parametrize("survived", [0, 1, 4, 11])
@pytest.mark.parametrize(
    "command", [PLAIN, OUTPUT, OPTIONS, COMPRESSED], ids=["plain", "output", "all", "npz"]
)
def test_a_run_that_was_killed_ends_in_the_same_bytes(files, capsys, command, survived):
    expected = run(capsys, *command)
    losses = Path("losses.npy").read_bytes() if "--output" in command else None
    Path("losses.npy").unlink(missing_ok=True)
    before = sorted(os.listdir())
    command = [*command, "--state", "run.state"]
    killed(command, survived)
    assert Path("run.state").exists() == (survived > 0)
    assert not Path("losses.npy").exists()
    killed(command, survived)  # once more, in the same place
    with count_reads() as read:
        assert run(capsys, *command) == expected
    blocks = ROWS * -(-(3 if "--shift" in command else POSITIONS) // 2)
    assert read.blocks == blocks - survived, "no block is counted twice"
    assert expected[0] == 0
    if losses is not None:
        assert Path("losses.npy").read_bytes() == losses
        os.remove("losses.npy")
    assert sorted(os.listdir()) == before, "neither the state nor what the killed runs left"


class count_reads:  # noqa: N801
    """Count the batches that an evaluator gets."""

    def __enter__(self):
        self.blocks, self._update = 0, xent_rs.Evaluator.update

        def update(*args, **options):
            self.blocks += 1
            return self._update(*args, **options)

        xent_rs.Evaluator.update = update
        return self

    def __exit__(self, *_):
        xent_rs.Evaluator.update = self._update


def test_a_state_that_was_cut_anywhere_ends_in_the_same_bytes(files, capsys):
    expected = run(capsys, *OUTPUT)
    losses = Path("losses.npy").read_bytes()
    command = [*OUTPUT, "--state", "run.state"]
    interrupted(command, 3)
    state = Path("run.state").read_bytes()
    for length in [*range(0, len(state), 17), len(state) - 1]:
        Path("run.state").write_bytes(state[:length])
        Path("losses.npy").unlink()
        assert run(capsys, *command) == expected
        assert Path("losses.npy").read_bytes() == losses
        assert not Path("run.state").exists()


def test_after_a_record_in_part_others_count_again(files, capsys):
    command = [*OUTPUT, "--state", "run.state"]
    interrupted(command, 3)
    state = Path("run.state").read_bytes()
    Path("run.state").write_bytes(state[:-5])
    interrupted(command, 7)
    expected = run(capsys, *OUTPUT)
    with count_reads() as read:
        assert run(capsys, *command) == expected
    assert read.blocks == 3 * ROWS - 7


def test_damage_in_a_state_is_dropped(files, capsys):
    """With all that follows: a record whose checksum is wrong, is none."""
    expected = run(capsys, *OUTPUT)
    command = [*OUTPUT, "--state", "run.state"]
    interrupted(command, 3)
    state = Path("run.state").read_bytes()
    header = state.index(b"\n") + 1
    for place in range(header, len(state), 23):
        Path("run.state").write_bytes(state[:place] + bytes([state[place] ^ 1]) + state[place + 1 :])
        assert run(capsys, *command) == expected


def test_the_state_grows_record_by_record_and_says_what_it_is(files):
    interrupted([*OUTPUT, "--state", "run.state"], 2)
    lines = Path("run.state").read_bytes().split(b"\n")
    header = json.loads(lines[0])
    assert header["xent-rs evaluate"] == xent_rs.__version__
    assert header["options"]["--temperature"] == 1.0
    assert json.loads(lines[1])["block"] == 0


CHANGES = [
    ([*PLAIN, "--temperature", "0.5"], "a run with --temperature 1.0; expected 0.5"),
    ([*PLAIN, "--top-k", "1,2"], "a run with --top-k [1, 5]; expected [1, 2]"),
    ([*PLAIN, "--shift"], "a run with --shift False; expected True"),
    ([*PLAIN, "--score-from", "1"], "a run with --score-from 0; expected 1"),
    (OUTPUT, "a run with --output False; expected True"),
    (
        [*PLAIN, "--sample-weight", "rows.npy"],
        "a run with another --sample-weight, or one that has changed since",
    ),
    ([*PLAIN, "--weight", "classes.npy"], "a run with another --weight, or one that has changed since"),
    (
        ["evaluate", "small.npz", "tokens.npy", "--json"],
        "a run with another LOGITS, or one that has changed since",
    ),
    (
        ["evaluate", "logits-*.npy", "other.npy", "--json"],
        "a run with another TARGETS, or one that has changed since",
    ),
]


@pytest.mark.parametrize(("command", "message"), CHANGES)
def test_the_state_of_another_run_is_refused(files, capsys, command, message):
    interrupted([*PLAIN, "--state", "run.state"], 3)
    np.save("other.npy", np.load("tokens.npy"))
    state = Path("run.state").read_bytes()
    before = sorted(os.listdir())
    assert run(capsys, *command, "--state", "run.state") == (
        1,
        "",
        f"xent-rs: error: run.state: is the state of {message} (remove it to begin anew)\n",
    )
    assert Path("run.state").read_bytes() == state
    assert sorted(os.listdir()) == before


def test_an_input_that_was_written_again_is_refused(files, capsys):
    interrupted([*PLAIN, "--state", "run.state"], 3)
    np.save("logits-1.npy", np.load("logits-1.npy"))
    status, _, errors = run(capsys, *PLAIN, "--state", "run.state")
    assert status == 1
    assert "is the state of a run with another LOGITS, or one that has changed since" in errors


def test_the_state_of_another_version_is_refused(files, capsys, monkeypatch):
    interrupted([*PLAIN, "--state", "run.state"], 3)
    monkeypatch.setattr(_journal, "__version__", "9.9.9")
    status, _, errors = run(capsys, *PLAIN, "--state", "run.state")
    expected = (
        f"run.state: is the state of xent_rs '{xent_rs.__version__}'; expected '9.9.9' (remove it to begin"
    )
    assert (status, errors[: len(expected) + 16]) == (1, f"xent-rs: error: {expected}")


def test_bits_of_another_instruction_set_are_refused(files, capsys):
    levels = xent_rs._xent_rs.simd_levels()
    if len(levels) < 2:
        pytest.skip("the CPU has one level alone")
    interrupted([*PLAIN, "--state", "run.state"], 3)
    xent_rs._xent_rs.set_simd_level("portable")
    status, _, errors = run(capsys, *PLAIN, "--state", "run.state")
    assert status == 1
    assert "a run with instruction set 'with fused multiply-add'; expected 'portable'" in errors


def crafted(counted, losses=b""):
    """A state whose last record is what somebody else wrote, with a right checksum."""
    whole = Path("run.state").read_bytes()
    header = whole[: whole.index(b"\n") + 1]
    line = json.dumps({"block": 0, "counted": counted, "kept": len(losses)}).encode() + b"\n"
    Path("run.state").write_bytes(header + line + losses + _journal._checksum(line, losses))


SUM = ["0", 0.0]
SUMS = {"loss": SUM, "weight": SUM, "entropy": SUM, "hits": [0, 0], "rows": 2, "ignored": 0, "classes": 7}


@pytest.mark.parametrize(
    "counted",
    [
        None,
        [],
        {},
        {**SUMS, "hits": [0]},
        {**SUMS, "rows": -1},
        {**SUMS, "rows": True},
        {**SUMS, "rows": 1.5},
        {**SUMS, "classes": None},
        {**SUMS, "loss": ["x", 0.0]},
        {**SUMS, "loss": [0, 0.0]},
        {**SUMS, "loss": ["0", "nan"]},
        SUMS,  # without losses
    ],
)
def test_a_state_with_nonsense_in_it_is_refused(files, capsys, counted):
    command = [*OUTPUT, "--state", "run.state"]
    interrupted(command, 1)
    before = sorted(set(os.listdir()) - {path.name for path in Path().glob(".losses*")})
    crafted(counted)
    status, output, errors = run(capsys, *command)
    assert (status, output) == (1, "")
    assert errors.startswith("xent-rs: error: run.state: damaged (")
    assert errors.endswith("); remove it to begin anew\n")
    assert sorted(os.listdir()) == before


NO_STATES = [
    b"hello",
    b"\n",
    b"{}\n",
    b"[" * 100_000,
    b'{"xent-rs evaluate": "0.1.0"}\n',
    b"\x80\x04pickle\n",
]


@pytest.mark.parametrize("content", NO_STATES, ids=range(len(NO_STATES)))
def test_another_file_is_no_state_and_stays_as_it_is(files, capsys, content):
    Path("run.state").write_bytes(content)
    assert run(capsys, *PLAIN, "--state", "run.state") == (
        1,
        "",
        "xent-rs: error: run.state: is no state of xent-rs evaluate; expected one, or a new file\n",
    )
    assert Path("run.state").read_bytes() == content


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tokens.npy", "tokens.npy: is no state of xent-rs evaluate; expected one, or a new file"),
        ("losses.npy", "losses.npy: is both --state and --output; expected two files"),
        ("./losses.npy", "losses.npy: is both --state and --output; expected two files"),
        ("folder", "folder: not a regular file"),
        ("no/run.state", "no/run.state: No such file or directory"),
    ],
)
def test_names_that_are_no_state(files, capsys, name, message):
    os.mkdir("folder")
    before = sorted(os.listdir())
    assert run(capsys, *OUTPUT, "--state", name) == (1, "", f"xent-rs: error: {message}\n")
    assert sorted(os.listdir()) == before


def test_wrong_options_leave_no_state(files, capsys):
    before = sorted(os.listdir())
    for option in ("--temperature=0", "--axis=7", "--top-k=0", "--score-from=99"):
        assert run(capsys, *PLAIN, option, "--state", "run.state")[0] == 1
    assert sorted(os.listdir()) == before


def test_a_run_that_ends_well_needs_no_state_and_leaves_none(files, capsys):
    expected = run(capsys, *PLAIN)
    before = sorted(os.listdir())
    for _ in range(2):
        assert run(capsys, *PLAIN, "--state", "run.state") == expected
        assert sorted(os.listdir()) == before


def test_after_an_error_the_state_stays(files, capsys):
    tokens = np.load("tokens.npy")
    tokens[5, 4] = 99
    np.save("tokens.npy", tokens)
    for _ in range(2):
        with count_reads() as read:
            status, _, errors = run(capsys, *PLAIN, "--state", "run.state")
        assert (status, errors.partition(";")[0]) == (1, "xent-rs: error: targets[5, 4] is 99")
    assert read.blocks == 1, "the others are counted"


def test_sigterm_keeps_the_state_and_nothing_else(tmp_path):
    header = {"descr": "<f4", "fortran_order": False, "shape": (1 << 15, 1 << 16)}
    with (tmp_path / "logits.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        file.truncate(file.tell() + (8 << 30))
    np.save(tmp_path / "targets.npy", np.zeros(1 << 15, np.int8))
    names = [str(tmp_path / name) for name in ("logits.npy", "targets.npy", "losses.npy", "run.state")]
    process = subprocess.Popen(
        [*COMMAND, "evaluate", *names[:2], "--output", names[2], "--state", names[3]],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    deadline = time.monotonic() + 60
    while not Path(names[3]).exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.terminate()
    assert process.communicate(timeout=60) == (b"", b"")
    assert process.returncode == 128 + signal.SIGTERM
    assert sorted(os.listdir(tmp_path)) == ["logits.npy", "run.state", "targets.npy"]


@pytest.mark.exhaustive
def test_kills_at_random_times(tmp_path):
    """The command itself, as a shell runs it, on 1 GiB, killed until it ends."""
    generator = np.random.default_rng(0)
    logits = np.lib.format.open_memmap(tmp_path / "logits.npy", "w+", np.float16, (1 << 13, 1 << 16))
    logits[...] = generator.standard_normal(1 << 16).astype(np.float16)
    logits.flush()
    np.save(tmp_path / "targets.npy", generator.integers(1 << 16, size=1 << 13))
    names = [str(tmp_path / name) for name in ("logits.npy", "targets.npy", "losses.npy")]
    command = [*COMMAND, "evaluate", *names[:2], "--output", names[2], "--json"]
    times = []
    for _ in range(2):  # The second, which finds the file in memory, is as fast as those that follow.
        begin = time.monotonic()
        expected = subprocess.run(command, capture_output=True, timeout=100, check=True).stdout
        times.append(time.monotonic() - begin)
        losses = Path(names[2]).read_bytes()
        os.remove(names[2])
    pause, kills = random.Random(0), 0
    while True:
        process = subprocess.Popen(
            [*command, "--state", str(tmp_path / "run.state")], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        try:
            output, errors = process.communicate(timeout=pause.uniform(0.2, 0.9) * min(times))
            break
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            kills += 1
    assert (process.returncode, output, errors) == (0, expected, b"")
    assert Path(names[2]).read_bytes() == losses
    assert kills > 0
    assert sorted(os.listdir(tmp_path)) == ["logits.npy", "losses.npy", "targets.npy"]
