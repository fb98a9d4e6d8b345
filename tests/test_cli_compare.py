"""``xent-rs compare``: files of every kind, options, the state of a run, the picture."""

import json
import os
import re
import resource
import signal
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import xent_rs
from xent_rs import Comparer, compare
from xent_rs.cli import _journal, main

from .test_cli import KINDS, on_terminal, sparse, start, without, write_kinds, write_llama, write_safetensors

ROWS, POSITIONS, CLASSES = 6, 5, 7


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Logits of two models, tokens, weights and groups in the current directory; blocks of two rows."""
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    reference = (3 * random.standard_normal((ROWS, POSITIONS, CLASSES))).astype(np.float32)
    candidate = (reference + 0.2 * random.standard_normal(reference.shape)).astype(np.float16)
    arrays = {
        "reference": reference,
        "candidate": candidate,
        "tokens": random.integers(CLASSES, size=(ROWS, POSITIONS)),
        "rows": random.uniform(0, 2, (ROWS, POSITIONS)).astype(np.float32),
        "classes": np.arange(CLASSES) / 4,
        "documents": np.arange(ROWS * POSITIONS).reshape(ROWS, POSITIONS) // 4,
    }
    for name, values in arrays.items():
        np.save(f"{name}.npy", values)
    for number in range(3):
        np.save(f"part-{number}.npy", candidate[2 * number : 2 * number + 2])
    np.savez_compressed("small.npz", reference=reference, tokens=arrays["tokens"])
    write_safetensors("both.safetensors", reference=("F32", reference), candidate=("F16", candidate))
    blocks = xent_rs.io.paired_row_blocks
    limit = 2 * 6 * CLASSES
    monkeypatch.setattr(
        xent_rs.io, "paired_row_blocks", lambda *args, **options: blocks(*args, **options, max_bytes=limit)
    )
    return arrays


def run(capsys, *arguments):
    """Run in this process; return status, standard output and standard error."""
    status = main([str(argument) for argument in arguments])
    return status, *capsys.readouterr()


def figures(capsys, *arguments):
    status, output, errors = run(capsys, "compare", *arguments, "--json")
    assert (status, errors) == (0, "")
    return json.loads(output, parse_constant=pytest.fail)


def printed(comparison):
    """What `--json` has of a comparison: its flat dict, and each group by itself."""
    groups = comparison.by_group
    if groups is None:
        return comparison.as_dict()
    names = ("rows", "kl", "reference_perplexity", "candidate_perplexity")
    of_group = {
        str(label): {name: getattr(group, name) for name in names if getattr(group, name) is not None}
        for label, group in groups.items()
    }
    return {**comparison.as_dict(), "by_group": of_group}


NAMES = ("reference.npy", "candidate.npy", "tokens.npy")


@pytest.mark.parametrize(
    "names",
    [
        NAMES,
        ("both.safetensors:reference", "both.safetensors:candidate", "tokens.npy"),
        ("small.npz:reference", "part-*.npy", "small.npz:tokens"),
        NAMES[:2],
    ],
)
def test_json_has_the_figures_of_compare(files, capsys, names):
    found = figures(capsys, *names)
    expected = compare(*(files[name] for name in ("reference", "candidate", "tokens")[: len(names)]))
    assert found == expected.as_dict()
    assert list(found) == list(expected.as_dict())
    assert [type(found[name]) for name in ("rows", "ignored", "kl", "same_top")] == [int, int, float, float]


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        (["--temperature", "0.5"], {"temperature": 0.5}),
        (["--softcap", "2.5"], {"softcap": 2.5}),
        (["--ignore-index", "3"], {"ignore_index": 3}),
        (["--weight", "classes.npy"], {"weight": "classes"}),
        (["--sample-weight", "rows.npy"], {"sample_weight": "rows"}),
        (["--groups", "documents.npy"], {"groups": "documents"}),
        (["--threads", "1"], {}),
        (["--reference-dtype", "float32", "--candidate-dtype", "float16"], {}),
    ],
)
def test_options(files, capsys, arguments, options):
    options = {name: files.get(value, value) for name, value in options.items()}
    expected = compare(files["reference"], files["candidate"], files["tokens"], **options)
    assert figures(capsys, *NAMES, *arguments) == printed(expected)


def test_windows_are_the_steps_along_the_first_axis(files, capsys):
    windows = np.repeat(np.arange(ROWS)[:, None], POSITIONS, axis=1)
    expected = compare(files["reference"], files["candidate"], files["tokens"], groups=windows)
    found = figures(capsys, *NAMES, "--windows")
    assert found == printed(expected)
    assert found["groups"] == ROWS
    # Each window by itself.
    assert list(found["by_group"]) == [str(window) for window in range(ROWS)]
    of_window = found["by_group"]["3"]
    assert (of_window["rows"], type(of_window["rows"])) == (POSITIONS, int)
    losses = xent_rs.cross_entropy(files["candidate"][3], files["tokens"][3], reduction="none")
    assert of_window["candidate_perplexity"] == pytest.approx(np.exp(losses.mean(dtype=np.float64)))
    without_targets = figures(capsys, *NAMES[:2], "--groups", "documents.npy")
    assert {tuple(group) for group in without_targets["by_group"].values()} == {("rows", "kl")}


@pytest.mark.parametrize("axis", [0, 1])
def test_any_axis(files, capsys, axis):
    for name in ("reference", "candidate"):
        files[name] = np.ascontiguousarray(np.moveaxis(files[name], -1, axis))
        np.save(f"{name}.npy", files[name])
    found = figures(capsys, *NAMES, f"--axis={axis}", "--windows")
    whole = compare(files["reference"], files["candidate"], files["tokens"], axis=axis)
    assert found["kl"] == pytest.approx(whole.kl.value, rel=1e-6)
    assert found["loss_change"] == pytest.approx(whole.loss_change.value, rel=1e-5)


def test_next_tokens_and_bits_per_byte(files, capsys):
    found = figures(
        capsys, *NAMES, "--shift", "--score-from", "1", "--bytes", "99", "--groups", "documents.npy",
        "--sample-weight", "rows.npy",
    )  # fmt: skip
    # Logits of position i are for token i + 1, whose weight and group count.
    expected = compare(
        files["reference"][:, 1:-1],
        files["candidate"][:, 1:-1],
        files["tokens"][:, 2:],
        sample_weight=files["rows"][:, 2:],
        groups=files["documents"][:, 2:],
    )
    per_byte = {name: found.pop(f"{name}_bits_per_byte") for name in ("reference", "candidate")}
    assert found == printed(expected)
    assert per_byte["candidate"] == expected.candidate.bits * expected.rows / 99
    assert expected.rows == ROWS * (POSITIONS - 2)
    _, output, _ = run(capsys, "compare", *NAMES, "--bytes", "99")
    assert re.search(r"^bits per byte +\S+ +\S+ +[+-]\S+$", output, re.MULTILINE)


def test_the_report_for_people(files, capsys):
    status, output, errors = run(capsys, "compare", *NAMES, "--top-k", "2,3")
    assert (status, errors) == (0, "")
    shape = (ROWS, POSITIONS, CLASSES)
    title = f"reference reference.npy: float32 logits of shape {shape}\n"
    title += f"candidate candidate.npy: float16 logits of shape {shape}\n\n"
    arrays = (files[name] for name in ("reference", "candidate", "tokens"))
    assert output == title + str(compare(*arrays, top_k=(2, 3))) + "\n"


def test_top_k_of_all_classes_is_said_to_be_so(files, capsys):
    _, output, _ = run(capsys, "compare", *NAMES, "--top-k", f"{CLASSES - 1},{CLASSES}")
    assert f"top {CLASSES - 1}  " in output
    assert re.search(
        rf"^\.\.\. reference's in candidate's top {CLASSES} \(all {CLASSES}\) +100%", output, re.M
    )


def test_rows_of_nan_are_counted_and_the_report_says_what_to_do(files, capsys):
    logits = files["reference"].copy()
    logits[0, 1, 0] = np.nan
    np.save("broken.npy", logits)
    found = figures(capsys, "broken.npy", "candidate.npy", "tokens.npy")
    assert [found[f"{of}nan_rows"] for of in ("", "reference_", "candidate_")] == [1, 1, 0]
    assert (type(found["nan_rows"]), found["kl"]) == (int, None)
    _, output, _ = run(capsys, "compare", "broken.npy", *NAMES[1:])
    *_, note = output.split("\n\n")
    assert note.startswith("1 of ")
    assert " ".join(note.split()).endswith("by a target of --ignore-index, or by a --sample-weight of 0.")


def test_bfloat16(files, capsys):
    narrow = files["reference"].astype(ml_dtypes.bfloat16)
    np.save("narrow.npy", narrow)
    found = figures(capsys, "narrow.npy", "candidate.npy", "--reference-dtype", "bfloat16")
    assert found == compare(narrow, files["candidate"]).as_dict()


@pytest.mark.parametrize(
    ("arguments", "what_to_do"),
    [
        (["narrow.npy", "narrow.npy"], "if that is what they are, give --reference-dtype bfloat16"),
        (["candidate.npy", "narrow.npy"], "if that is what they are, give --candidate-dtype bfloat16"),
        (
            ["candidate.npy", "candidate.npy", "--reference-head", "narrow.npy"],
            "if that is what they are, give --head-dtype bfloat16",
        ),
        (
            ["candidate.npy", "candidate.npy", "--head", "head.npy", "--head-bias", "narrow.npy"],
            "if that is what they are, give --head-dtype bfloat16",
        ),
        (
            ["candidate.npy", "candidate.npy", "narrow.npy"],
            "expected integers, the classes, in a file that says its dtype",
        ),
        (
            [*NAMES, "--sample-weight", "narrow.npy"],
            "expected one weight a row, in a file that says its dtype",
        ),
        ([*NAMES, "--weight", "narrow.npy"], "expected one weight a class, in a file that says its dtype"),
        (
            [*NAMES, "--groups", "narrow.npy"],
            "expected integers, one group a row, in a file that says its dtype",
        ),
    ],
)
def test_raw_numbers_are_refused_with_what_to_do(files, capsys, arguments, what_to_do):
    np.save("narrow.npy", files["reference"].astype(ml_dtypes.bfloat16))
    np.save("head.npy", np.zeros((3, CLASSES), np.float32))
    raw = "holds raw numbers of 2 bytes (V2), which is how NumPy stores bfloat16"
    expected = f"xent-rs: error: narrow.npy: {raw}; {what_to_do}\n"
    assert run(capsys, "compare", *arguments) == (1, "", expected)


def test_logits_of_llama_cpp(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tokens = np.arange(28).reshape(4, 7) % 6
    write_llama("base.kld", np.zeros((4, 3, 6)), tokens)
    logits = np.random.default_rng(0).standard_normal((4, 3, 6)).astype(np.float32)
    np.save("candidate.npy", logits)
    found = figures(capsys, "base.kld:logits", "candidate.npy", "base.kld:targets", "--windows")
    expected = compare(np.zeros((4, 3, 6), np.float32), logits, tokens[:, 4:])
    assert found["kl"] == pytest.approx(expected.kl.value, rel=1e-6)
    assert found["candidate_loss"] == pytest.approx(expected.candidate.loss)
    assert (found["rows"], found["groups"]) == (12, 4)


def test_what_is_not_finite_is_null(files, capsys):
    files["candidate"][0, 0, 0] = -np.inf
    np.save("candidate.npy", files["candidate"])
    found = figures(capsys, *NAMES)
    assert (found["kl"], found["kl_max"]) == (None, None)
    assert found["jensen_shannon"] > 0


# What is wrong.


def failed(capsys, *arguments):
    before = sorted(os.listdir())
    status, output, errors = run(capsys, "compare", *arguments)
    assert (status, output) == (1, "")
    assert errors.count("\n") == 1
    assert sorted(os.listdir()) == before
    return errors.removeprefix("xent-rs: error: ").rstrip("\n")


SHAPE = f"({ROWS}, {POSITIONS}, {CLASSES})"
ROW_SHAPE = f"({ROWS}, {POSITIONS})"
OF = f"{ROW_SHAPE}, the shape of reference.npy without axis -1"
ERRORS = [
    (
        ["reference.npy", "part-0.npy"],
        f"part-0.npy: has shape (2, 5, 7); expected {SHAPE}, the shape of reference.npy",
    ),
    (
        ["reference.npy", "tokens.npy", "candidate.npy"],
        f"CANDIDATE holds int64 of shape {ROW_SHAPE} and TARGETS float16 of shape {SHAPE}: "
        "are the two files swapped?",
    ),
    (
        ["reference.npy", "candidate.npy", "rows.npy"],
        "targets have dtype float32; expected an integer dtype (class indices)",
    ),
    (
        ["reference.npy", "candidate.npy", "classes.npy"],
        f"targets have shape (7,); expected {ROW_SHAPE}, the shape of reference {SHAPE} without axis -1",
    ),
    (
        [*NAMES, "--sample-weight", "classes.npy"],
        f"classes.npy: has shape (7,); expected {OF}, one weight a row",
    ),
    ([*NAMES, "--groups", "classes.npy"], f"classes.npy: has shape (7,); expected {OF}, one group a row"),
    ([*NAMES, "--groups", "rows.npy"], "rows.npy: holds float32; expected integers, one group a row"),
    ([*NAMES, "--groups", "missing.npy"], "missing.npy: No such file or directory"),
    ([*NAMES, "--weight", "rows.npy"], f"weight has shape {ROW_SHAPE}; expected (C,), one number a class"),
    ([*NAMES[:2], "--weight", "classes.npy"], "--weight is given without TARGETS; expected these, too"),
    ([*NAMES[:2], "--shift"], "--shift is given without TARGETS; expected these, too"),
    ([*NAMES[:2], "--bytes=9"], "--bytes is given without TARGETS; expected these, too"),
    (
        ["flat.npy", "flat.npy", "--windows"],
        "--windows: flat.npy has rows of shape (4,); expected windows and positions",
    ),
    ([*NAMES, "--axis=3"], f"axis is 3; expected -3 to 2 for reference of shape {SHAPE}"),
    ([*NAMES, "--temperature=0"], "temperature is 0.0; expected a positive finite number"),
    ([*NAMES, "--score-from=6"], f"score_from is 6; expected 0 to 5 for reference of shape {SHAPE}"),
    ([*NAMES, "--candidate-dtype=float64"], "candidate.npy: holds float16; expected dtype float64"),
    ([*NAMES, "--plot", "a.txt"], "a.txt: unknown format; expected a .png, .svg, .pdf file"),
    ([*NAMES, "--plot", "no/a.png"], "no/a.png: there is no folder no"),
    (
        [*NAMES, "--plot", "a.png", "--state", "./a.png"],
        "a.png: is both --state and --plot; expected two files",
    ),
    (["wrong.npy", "wrong.npy", "tokens.npy"], "targets[5, 4] is 7; expected 0 to 6, or ignore_index -100"),
]


@pytest.mark.parametrize(("arguments", "message"), ERRORS)
def test_errors_are_one_line(files, capsys, arguments, message):
    np.save("flat.npy", np.zeros((4, 3)))
    if "wrong.npy" in arguments:
        files["tokens"][5, 4] = 7
        np.save("tokens.npy", files["tokens"])
        np.save("wrong.npy", files["reference"])
    assert failed(capsys, *arguments) == message


@pytest.mark.parametrize("place", ["REFERENCE", "CANDIDATE", "TARGETS"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_file_tells_its_faults_in_a_sentence(tmp_path, capsys, monkeypatch, kind, place):
    """Truncated, misnamed, of another shape or dtype, in any place."""
    monkeypatch.chdir(tmp_path)
    logits, tokens = np.zeros((4, 3, 6), np.float32), np.zeros((4, 7), np.int32)
    name, damaged, suffix = KINDS[kind]
    if place == "TARGETS":
        if kind == "llama.cpp":
            name = "a.kld:targets"
        logits = np.zeros((4, 3), np.int64)
    (write_kinds if logits.ndim == 3 else write_targets)(logits, tokens)
    np.save("logits.npy", np.zeros((4, 3, 6), np.float32))
    np.save("targets.npy", np.zeros((4, 3), np.int64))
    others = {"REFERENCE": "logits.npy", "CANDIDATE": "logits.npy", "TARGETS": "targets.npy"}

    def arguments(file):
        return list({**others, place: file}.values())

    assert run(capsys, "compare", *arguments(name))[0] == 0
    # Of another shape.
    np.save("other.npy", np.zeros((4, 2, 6) if logits.ndim == 3 else (4, 2), logits.dtype))
    text = failed(capsys, *arguments("other.npy"))
    assert re.match(r"(other|logits)\.npy: has shape|targets have shape \(4, 2\); expected \(4, 3\)", text), (
        text
    )
    # Of another dtype.
    np.save("other.npy", np.zeros(logits.shape, np.int64 if logits.ndim == 3 else np.float32))
    text = failed(capsys, *arguments("other.npy"))
    pattern = (
        r"(reference|candidate) has dtype int64; expected float16|targets have dtype float32; expected an int"
    )
    assert re.match(pattern, text), text
    # Truncated.
    whole = Path(damaged).read_bytes()
    for length in (0, 1, len(whole) // 2, len(whole) - 1):
        Path(damaged).write_bytes(whole[:length])
        text = failed(capsys, *arguments(name))
        assert text.startswith(damaged), text
        assert re.search(r"truncated|does not begin as a", text), text
    Path(damaged).write_bytes(whole)
    # Misnamed.
    if suffix is not None:
        misnamed = f"c{suffix}"
        os.rename(damaged, misnamed)
        key = name.partition(":")[1] + name.partition(":")[2] if suffix != ".npy" else ""
        text = failed(capsys, *arguments(misnamed + key))
        assert re.match(
            rf"c\{suffix}\S*: (begins as a \.\w+ file does; expected a |does not begin as)", text
        ), text


def write_targets(targets, tokens):
    """What `write_kinds` writes, of targets."""
    np.save("a.npy", targets)
    np.savez("a.npz", logits=targets)
    np.savez_compressed("b.npz", logits=targets)
    write_safetensors("a.safetensors", logits=("I64", targets))
    os.makedirs("folder", exist_ok=True)
    for number, rows in enumerate(np.split(targets, 2)):
        np.save(f"part-{number}.npy", rows)
        np.save(f"folder/{number}.npy", rows)
    Path("a.index.json").write_text('{"weight_map": {"logits": "a.safetensors"}}')
    write_llama("a.kld", np.zeros((4, 3, 6)), tokens)


@pytest.mark.parametrize(
    "arguments",
    [[], ["a.npy"], ["a.npy", "b.npy", "--groups"], ["a.npy", "b.npy", "--windows", "--groups", "c.npy"]],
)
def test_wrong_usage(capsys, arguments):
    status, output, errors = run(capsys, "compare", *arguments)
    assert (status, output) == (2, "")
    assert errors.startswith("usage: xent-rs compare")


# The state of a run.

PLAIN = ["compare", "reference.npy", "part-*.npy", "tokens.npy", "--json"]
WITHOUT_TARGETS = ["compare", "small.npz:reference", "candidate.npy", "--json"]
OPTIONS = [
    *PLAIN,
    *("--shift", "--score-from", "1", "--bytes", "99", "--temperature", "0.7", "--ignore-index", "3"),
    *("--sample-weight", "rows.npy", "--weight", "classes.npy", "--groups", "documents.npy"),
]

# What a process does that kills itself when it has counted some blocks.
KILLED = """
import os, signal, sys
import xent_rs.io
from xent_rs.cli import _journal, main
blocks, limit, survived = xent_rs.io.paired_row_blocks, int(sys.argv[1]), int(sys.argv[2])
xent_rs.io.paired_row_blocks = lambda *args, **options: blocks(*args, **{**options, "max_bytes": limit})
add = _journal.Journal.add
def adding(self, counted, kept):
    if self.blocks == survived:
        os.kill(os.getpid(), signal.SIGKILL)
    add(self, counted, kept)
_journal.Journal.add = adding
main(sys.argv[3:])
"""


def interrupted(arguments, survived, monkeypatch):
    """Leave a state in which some blocks are counted, without a process of its own."""
    add = _journal.Journal.add

    def adding(self, counted, kept):
        if self.blocks == survived:
            raise KeyboardInterrupt
        add(self, counted, kept)

    with monkeypatch.context() as patch:
        patch.setattr(_journal.Journal, "add", adding)
        assert main([*arguments, "--state", "run.state"]) == 130


@pytest.mark.parametrize("survived", [1, 4])
@pytest.mark.parametrize("command", [PLAIN, WITHOUT_TARGETS, OPTIONS], ids=["plain", "two", "all"])
def test_a_run_that_was_killed_ends_in_the_same_bytes(files, capsys, command, survived):
    expected = run(capsys, *command)
    assert expected[0] == 0
    before = sorted(os.listdir())
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(2 * 6 * CLASSES), str(survived), *command, "--state", "run.state"],
        capture_output=True,
        timeout=100,
    )
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGKILL, b"", b"")
    assert run(capsys, *command, "--state", "run.state") == expected
    assert sorted(os.listdir()) == before


def test_a_state_that_was_cut_anywhere_ends_in_the_same_bytes(files, capsys, monkeypatch):
    expected = run(capsys, *OPTIONS)
    interrupted(OPTIONS, 3, monkeypatch)
    state = Path("run.state").read_bytes()
    for length in [*range(0, len(state), 997), len(state) - 1]:
        Path("run.state").write_bytes(state[:length])
        assert run(capsys, *OPTIONS, "--state", "run.state") == expected
        assert not Path("run.state").exists()


def test_no_block_is_counted_twice(files, capsys, monkeypatch):
    interrupted(PLAIN, 5, monkeypatch)
    update, seen = Comparer.update, []
    monkeypatch.setattr(
        Comparer, "update", lambda *args, **options: (seen.append(1), update(*args, **options))[1]
    )
    assert run(capsys, *PLAIN, "--state", "run.state")[0] == 0
    assert len(seen) == ROWS * -(-POSITIONS // 2) - 5


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ([*PLAIN, "--temperature", "0.5"], "a run with --temperature 1.0; expected 0.5"),
        ([*PLAIN, "--windows"], "a run with --windows False; expected True"),
        ([*PLAIN, "--groups", "documents.npy"], "a run with another --groups, or one that has changed since"),
        (
            ["compare", "reference.npy", "candidate.npy", "tokens.npy", "--json"],
            "a run with another CANDIDATE, or one that has changed since",
        ),
        (PLAIN[:3], "a run with another TARGETS, or one that has changed since"),
    ],
)
def test_the_state_of_another_run_is_refused(files, capsys, monkeypatch, command, message):
    interrupted(PLAIN, 3, monkeypatch)
    state = Path("run.state").read_bytes()
    status, output, errors = run(capsys, *command, "--state", "run.state")
    assert (status, output) == (1, "")
    expected = f"run.state: is the state of {message} (remove it to begin anew)"
    assert errors == f"xent-rs: error: {expected}\n"
    assert Path("run.state").read_bytes() == state


def test_the_state_of_another_command_is_refused(files, capsys, monkeypatch):
    interrupted(PLAIN, 3, monkeypatch)
    assert run(capsys, "evaluate", "reference.npy", "tokens.npy", "--state", "run.state") == (
        1,
        "",
        "xent-rs: error: run.state: is no state of xent-rs evaluate; expected one, or a new file\n",
    )


NONSENSE = [b"", b"{}\n", b"[\n", b"null\n0000", b"\xff\n", b"[" * 100_000 + b"\n"]


@pytest.mark.parametrize("kept", NONSENSE, ids=range(len(NONSENSE)))
def test_a_state_with_nonsense_in_it_is_refused(files, capsys, monkeypatch, kept):
    interrupted(PLAIN, 1, monkeypatch)
    whole = Path("run.state").read_bytes()
    header = whole[: whole.index(b"\n") + 1]
    line = json.dumps({"block": 0, "counted": None, "kept": len(kept)}).encode() + b"\n"
    Path("run.state").write_bytes(header + line + kept + _journal._checksum(line, kept))
    status, output, errors = run(capsys, *PLAIN, "--state", "run.state")
    assert (status, output) == (1, "")
    assert errors.startswith("xent-rs: error: run.state: damaged (")
    assert errors.endswith("); remove it to begin anew\n")


# The picture, and the terminal.


@pytest.mark.parametrize("names", [NAMES, NAMES[:2], ("reference.npy", "reference.npy", "tokens.npy")])
def test_plot(files, capsys, names):
    image = pytest.importorskip("matplotlib.image")
    expected = run(capsys, "compare", *names)
    assert run(capsys, "compare", *names, "--plot", "a.png") == expected
    picture = image.imread("a.png")
    orange = np.abs(picture[..., :3] - np.array([0xC8, 0x50, 0x1E]) / 255).max(axis=-1) < 0.02
    height, width = orange.shape
    assert width > 1.2 * height
    # Bars are drawn where there is something to draw: equal models have no divergence.
    panels = [orange] if len(names) == 2 else [orange[:, : width // 2], orange[:, width // 2 :]]
    drawn = [bool(panel.sum() > 500) for panel in panels]
    assert drawn == ([True] * len(panels) if names[0] != names[1] else [False, True])


def test_a_picture_of_what_is_not_finite(files, capsys):
    pytest.importorskip("matplotlib")
    files["candidate"][0, 0] = np.nan
    files["candidate"][1, 0, :3] = -np.inf
    np.save("candidate.npy", files["candidate"])
    status, _, errors = run(capsys, "compare", *NAMES, "--plot", "a.svg")
    assert (status, errors) == (0, "")
    assert Path("a.svg").read_text().count("<path") > 20


def test_files_larger_than_the_memory_it_may_use(tmp_path):
    rows, classes, limit = 1 << 9, 1 << 18, 1 << 29
    names = [tmp_path / name for name in ("reference.npy", "candidate.npy", "targets.npy")]
    for name in names[:2]:
        sparse(name, (rows, classes))  # 512 MiB
    np.save(names[2], np.arange(rows))
    done = start(
        "compare",
        *names,
        "--json",
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (limit, limit)),
    )
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert (found["rows"], found["kl"], found["loss_change"]) == (rows, 0.0, 0.0)
    assert found["reference_loss"] == pytest.approx(np.log(classes), rel=1e-7)


# Prints the figures, and how much memory the process held at most, in KiB.
PEAK = """
import re, sys
from pathlib import Path
from xent_rs.cli import main
status = main(["compare", *sys.argv[1:], "--json"])
print(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1], file=sys.stderr)
sys.exit(status)
"""


@pytest.mark.exhaustive
@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_memory_does_not_grow_with_the_files(tmp_path):
    """What is mapped counts, too: the blocks that were read go back."""
    peaks = []
    for rows in (2, 16_000):
        names = [tmp_path / f"{name}-{rows}.npy" for name in ("reference", "candidate", "targets")]
        for name in names[:2]:
            sparse(name, (rows, 32_000))  # 2 GB
        np.save(names[2], np.arange(rows))
        done = subprocess.run([sys.executable, "-c", PEAK, *names], capture_output=True, text=True)
        assert done.returncode == 0
        assert json.loads(done.stdout)["rows"] == rows
        peaks.append(int(done.stderr) << 10)
    small, large = peaks
    assert large - small < 200e6


def test_without_matplotlib_nothing_is_begun(files, tmp_path):
    os.mkdir("missing")
    done = start("compare", *NAMES, "--plot", "a.png", env=without("matplotlib", Path("missing")))
    assert (done.returncode, done.stdout) == (1, "")
    message = r'--plot needs matplotlib \(.*\): pip install "xent_rs\[plot\]"'
    assert re.fullmatch(f"xent-rs: error: {message}\n", done.stderr)


def test_the_progress_bar_shows_on_a_terminal_only(files):
    pytest.importorskip("tqdm")
    status, output, terminal = on_terminal("compare", *NAMES, "--json")
    assert status == 0
    assert json.loads(output)["rows"] == ROWS * POSITIONS
    assert "compare:" in terminal
