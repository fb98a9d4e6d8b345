"""``xent-rs evaluate --head`` and ``xent-rs compare --head``: from hidden states and the last layer."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from unittest import mock

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import xent_rs
from xent_rs import _head, compare, cross_entropy, evaluate

from . import test_cli_compare, test_cli_resume
from .test_cli import on_terminal, run, start

ROWS, POSITIONS, FEATURES, NARROW, CLASSES = 6, 5, 8, 3, 11


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Hidden states of two models, their layers, tokens and weights in the current directory.

    All are small integers, whose products are exact.
    """
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)

    def integers(*shape):
        return random.integers(-2, 3, shape).astype(np.float32)

    arrays = {
        "hidden": integers(ROWS, POSITIONS, FEATURES),
        "narrow": integers(ROWS, POSITIONS, NARROW),
        "head": integers(CLASSES, FEATURES),
        "narrow_head": integers(CLASSES, NARROW),
        "bias": integers(CLASSES),
        "tokens": random.integers(CLASSES, size=(ROWS, POSITIONS)),
        "rows": random.integers(0, 2, (ROWS, POSITIONS)).astype(np.float32),
        "classes": np.arange(CLASSES) / 4,
    }
    arrays["tokens"][1:3, 1] = 3  # which is ignored in some
    for name, values in arrays.items():
        np.save(f"{name}.npy", values)
    for number in range(3):
        np.save(f"hidden-{number}.npy", arrays["hidden"][2 * number : 2 * number + 2])
    np.savez("heads.npz", w=arrays["head"], narrow=arrays["narrow_head"], b=arrays["bias"])
    of_16_bits = {name: arrays[name].astype(ml_dtypes.bfloat16) for name in ("hidden", "head")}
    safetensors.numpy.save_file(of_16_bits, "model-1.safetensors")
    Path("model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"head": "model-1.safetensors", "hidden": "model-1.safetensors"}})
    )
    np.save("head16.npy", of_16_bits["head"])
    arrays["logits"] = arrays["hidden"] @ arrays["head"].T
    arrays["other"] = arrays["narrow"] @ arrays["narrow_head"].T
    np.save("logits.npy", arrays["logits"])
    return arrays


def figures(capsys, *arguments):
    status, output, errors = run(capsys, *arguments, "--json")
    assert (status, errors) == (0, "")
    return json.loads(output, parse_constant=pytest.fail)


def as_json(evaluation):
    flat = evaluation.as_dict()
    top_k = {str(k): flat.pop(f"top_{k}") for k in evaluation.top_k}
    return {**flat, "top_k": top_k}


@pytest.mark.parametrize(
    "arguments",
    [
        ["hidden.npy", "--head", "heads.npz:w"],
        ["hidden-*.npy", "--head", "head.npy"],
        ["model-1.safetensors:hidden", "--head", "model-1.safetensors:head"],
        ["model.safetensors.index.json:hidden", "--head", "model.safetensors.index.json:head"],
        ["hidden.npy", "--head", "head16.npy", "--head-dtype", "bfloat16"],
    ],
)
def test_json_has_the_figures_of_the_logits(files, capsys, arguments):
    logits, *options = arguments
    found = figures(capsys, "evaluate", logits, "tokens.npy", *options)
    assert found == as_json(evaluate(files["logits"], files["tokens"]))


OF_EVALUATE = [
    (["--temperature", "0.5"], {"temperature": 0.5}),
    (["--softcap", "2.5"], {"softcap": 2.5}),
    (["--ignore-index", "3"], {"ignore_index": 3}),
    (["--label-smoothing", "0.1", "--z-loss", "0.2"], {"label_smoothing": 0.1, "z_loss": 0.2}),
    (["--weight", "classes.npy"], {"weight": "classes"}),
    (["--sample-weight", "rows.npy"], {"sample_weight": "rows"}),
]


@pytest.mark.parametrize(("arguments", "options"), OF_EVALUATE)
def test_options_and_losses(files, capsys, arguments, options):
    options = {name: files.get(value, value) for name, value in options.items()}
    command = ["hidden-*.npy", "tokens.npy", "--head", "heads.npz:w", "--head-bias", "heads.npz:b"]
    found = figures(capsys, "evaluate", *command, "--output", "losses.npy", *arguments)
    logits = files["logits"] + files["bias"]
    assert found == as_json(evaluate(logits, files["tokens"], **options))
    losses = np.load("losses.npy")
    expected = cross_entropy(logits, files["tokens"], reduction="none", **options)
    assert losses.dtype == expected.dtype
    assert np.array_equal(losses, expected)


def test_losses_of_float64_weights_are_float64(files, capsys):
    np.save("head.npy", files["head"].astype(np.float64))
    figures(capsys, "evaluate", "hidden.npy", "tokens.npy", "--head", "head.npy", "--output", "losses.npy")
    expected = cross_entropy(files["logits"].astype(np.float64), files["tokens"], reduction="none")
    assert np.load("losses.npy").tobytes() == expected.tobytes()


def test_next_tokens_and_bytes(files, capsys):
    options = ["--shift", "--score-from", "1", "--bytes", "99", "--output", "losses.npy"]
    found = figures(capsys, "evaluate", "hidden.npy", "tokens.npy", "--head", "head.npy", *options)
    losses = Path("losses.npy").read_bytes()
    os.remove("losses.npy")
    assert found == figures(capsys, "evaluate", "logits.npy", "tokens.npy", *options)
    assert losses == Path("losses.npy").read_bytes()


@pytest.mark.parametrize("axis", [0, 1])
def test_any_axis(files, capsys, axis):
    for name in ("hidden", "logits"):
        np.save(f"{name}.npy", np.ascontiguousarray(np.moveaxis(files[name], -1, axis)))
    options = ["tokens.npy", f"--axis={axis}", "--output", "losses.npy"]
    found = figures(capsys, "evaluate", "hidden.npy", "--head", "head.npy", *options)
    losses = np.load("losses.npy")
    os.remove("losses.npy")
    assert found == figures(capsys, "evaluate", "logits.npy", *options)
    assert np.array_equal(losses, np.load("losses.npy"))


def test_the_table_says_what_it_is_of(files, capsys):
    status, output, _ = run(
        capsys, "evaluate", "hidden.npy", "tokens.npy", "--head", "head.npy", "--top-k", "11"
    )
    lines = output.splitlines()
    assert (status, lines[0]) == (0, "hidden.npy: float32 hidden states of shape (6, 5, 8), 11 classes")
    assert lines[-1].split("  ")[0] == "among the top 11 (all 11)"
    status, output, _ = run(
        capsys, "compare", "logits.npy", "narrow.npy", "--candidate-head", "narrow_head.npy"
    )
    assert status == 0
    assert output.splitlines()[:2] == [
        "reference logits.npy: float32 logits of shape (6, 5, 11)",
        "candidate narrow.npy: float32 hidden states of shape (6, 5, 3), 11 classes",
    ]


def test_the_progress_bar_goes_on_with_the_rows(files):
    command = ["evaluate", "hidden.npy", "tokens.npy", "--head", "head.npy"]
    done = start(*command)
    assert (done.returncode, done.stderr) == (0, "")
    status, output, terminal = on_terminal(*command)
    assert (status, output) == (0, done.stdout)
    assert "evaluate:" in terminal


# Two models.


@pytest.mark.parametrize(
    ("arguments", "pair", "bias"),
    [
        (["hidden.npy", "hidden.npy", "--head", "head.npy"], ("logits", "logits"), (0, 0)),
        (
            ["hidden.npy", "narrow.npy", "--head", "head.npy", "--candidate-head", "heads.npz:narrow"],
            ("logits", "other"),
            (0, 0),
        ),
        (
            ["narrow.npy", "hidden.npy", "--head", "head.npy", "--reference-head", "heads.npz:narrow"],
            ("other", "logits"),
            (0, 0),
        ),
        (["logits.npy", "narrow.npy", "--candidate-head", "heads.npz:narrow"], ("logits", "other"), (0, 0)),
        (["narrow.npy", "logits.npy", "--reference-head", "heads.npz:narrow"], ("other", "logits"), (0, 0)),
        (
            ["hidden.npy", "hidden.npy", "--head", "head.npy", "--head-bias", "bias.npy"],
            ("logits", "logits"),
            (1, 1),
        ),
        (
            ["hidden.npy", "hidden.npy", "--head", "head.npy", "--candidate-head-bias", "bias.npy"],
            ("logits", "logits"),
            (0, 1),
        ),
        (
            ["logits.npy", "hidden.npy", "--candidate-head", "head.npy", "--head-bias", "bias.npy"],
            ("logits", "logits"),
            (0, 1),
        ),
    ],
)
def test_compare(files, capsys, arguments, pair, bias):
    reference, candidate = (
        files[name] + of_model * files["bias"] for name, of_model in zip(pair, bias, strict=True)
    )
    first, second, *options = arguments
    targets, windows = files["tokens"], np.repeat(np.arange(ROWS)[:, None], POSITIONS, axis=1)
    found = figures(capsys, "compare", first, second, *options)
    assert found == compare(reference, candidate).as_dict()
    found = figures(capsys, "compare", first, second, "tokens.npy", *options, "--windows")
    assert list(found.pop("by_group")) == [str(row) for row in range(ROWS)]
    assert found == compare(reference, candidate, targets, groups=windows).as_dict()
    others = ["--shift", "--score-from", "1", "--sample-weight", "rows.npy", "--temperature", "2"]
    found = figures(capsys, "compare", first, second, "tokens.npy", *options, *others)
    rows = {"sample_weight": files["rows"][:, 2:], "temperature": 2.0}
    assert found == compare(reference[:, 1:-1], candidate[:, 1:-1], targets[:, 2:], **rows).as_dict()


# The state of a run.

EVALUATE = [
    *("evaluate", "hidden-*.npy", "tokens.npy", "--head", "heads.npz:w", "--head-bias", "bias.npy"),
    *("--json", "--output", "losses.npy", "--sample-weight", "rows.npy", "--shift"),
]
COMPARE = [
    *("compare", "hidden-*.npy", "narrow.npy", "tokens.npy", "--json", "--windows"),
    *("--head", "heads.npz:w", "--candidate-head", "heads.npz:narrow"),
]


LIMIT = 4 * POSITIONS * FEATURES


@pytest.fixture
def windows(files, monkeypatch):
    """Hidden states that are no integers, whose products are rounded, in blocks of a window or less."""
    random = np.random.default_rng(3)
    for number in range(3):
        np.save(f"hidden-{number}.npy", random.standard_normal((2, POSITIONS, FEATURES)).astype(np.float32))
    for blocks in (xent_rs.io.row_blocks, xent_rs.io.paired_row_blocks):

        def small(*args, blocks=blocks, **options):
            return blocks(*args, **{**options, "max_bytes": LIMIT})

        monkeypatch.setattr(xent_rs.io, blocks.__name__, small)


@pytest.mark.parametrize("survived", [1, 5])
@pytest.mark.parametrize(
    ("command", "killed"),
    [(EVALUATE, test_cli_resume.KILLED), (COMPARE, test_cli_compare.KILLED)],
    ids=["evaluate", "compare"],
)
def test_a_run_that_was_killed_ends_in_the_same_bytes(windows, capsys, command, killed, survived):
    expected = run(capsys, *command)
    assert expected[0] == 0
    losses = Path("losses.npy").read_bytes() if command is EVALUATE else b""
    Path("losses.npy").unlink(missing_ok=True)
    before = sorted(os.listdir())
    resumed = [*command, "--state", "run.state"]
    done = subprocess.run(
        [sys.executable, "-c", killed, str(LIMIT), str(survived), *resumed], capture_output=True, timeout=100
    )
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGKILL, b"", b"")
    assert Path("run.state").exists()
    multiplied = []
    logits = _head.Head.logits
    with mock.patch.object(
        _head.Head, "logits", lambda self, states: (multiplied.append(1), logits(self, states))[1]
    ):
        assert run(capsys, *resumed) == expected
    assert 0 < len(multiplied) <= (ROWS - survived if command is EVALUATE else 2 * (2 * ROWS - survived))
    if losses:
        assert Path("losses.npy").read_bytes() == losses
        os.remove("losses.npy")
    assert sorted(os.listdir()) == before


@pytest.mark.parametrize(
    ("command", "options", "name"),
    [
        (EVALUATE, ["--head", "head.npy"], "--head"),
        (EVALUATE, ["--head-bias", "heads.npz:b"], "--head-bias"),
        (COMPARE, ["--candidate-head", "narrow_head.npy"], "--candidate-head"),
        (COMPARE, ["--reference-head", "head.npy"], "--reference-head"),
        (COMPARE, ["--reference-head-bias", "bias.npy"], "--reference-head-bias"),
    ],
)
def test_the_state_of_another_head_is_refused(windows, capsys, monkeypatch, command, options, name):
    test_cli_compare.interrupted(command, 3, monkeypatch)
    state = Path("run.state").read_bytes()
    assert run(capsys, *command, *options, "--state", "run.state") == (
        1,
        "",
        f"xent-rs: error: run.state: is the state of a run with another {name}, "
        "or one that has changed since (remove it to begin anew)\n",
    )
    assert Path("run.state").read_bytes() == state


def test_a_head_that_was_written_again_is_refused(windows, capsys, monkeypatch):
    test_cli_compare.interrupted(EVALUATE, 3, monkeypatch)
    np.savez("heads.npz", **np.load("heads.npz"))
    status, _, errors = run(capsys, *EVALUATE, "--state", "run.state")
    assert status == 1
    assert "is the state of a run with another --head, or one that has changed since" in errors


# Errors.

WRONG = [
    (
        ["evaluate", "hidden.npy", "tokens.npy", "--head", "narrow_head.npy"],
        "hidden.npy has shape (6, 5, 8), 8 features along axis -1; "
        "expected 3, as narrow_head.npy of shape (11, 3) has",
    ),
    (
        ["evaluate", "hidden.npy", "tokens.npy", "--head", "bias.npy"],
        "bias.npy has shape (11,); expected two axes, (classes, features)",
    ),
    (
        ["evaluate", "hidden.npy", "tokens.npy", "--head", "head.npy", "--head-bias", "rows.npy"],
        "rows.npy has shape (6, 5); expected (11,), one number for each class of head.npy",
    ),
    (
        ["evaluate", "hidden.npy", "tokens.npy", "--head-bias", "bias.npy"],
        "bias.npy is given without --head; expected that, too",
    ),
    (
        ["evaluate", "logits.npy", "tokens.npy", "--head-dtype", "float32"],
        "--head-dtype is float32 without --head; expected that, too",
    ),
    (
        ["compare", "logits.npy", "logits.npy", "--head-dtype", "bfloat16"],
        "--head-dtype is bfloat16 without --head; expected that, too",
    ),
    (
        ["evaluate", "hidden.npy", "tokens.npy", "--head", "heads.npz"],
        "heads.npz: holds 'w', 'narrow', 'b'; choose one with heads.npz:KEY",
    ),
    (
        ["evaluate", "hidden.npy", "tokens.npy", "--head", "head16.npy"],
        "head16.npy: holds raw numbers of 2 bytes (V2), which is how NumPy stores bfloat16; "
        "if that is what they are, give --head-dtype bfloat16",
    ),
    (
        ["evaluate", "hidden.npy", "tokens.npy", "--head", "tokens.npy"],
        "tokens.npy has dtype int64; expected float16, bfloat16, float32 or float64",
    ),
    (
        ["evaluate", "hidden.npy", "tokens.npy", "--head", "head.npy", "--axis", "3"],
        "axis is 3; expected -3 to 2 for hidden.npy of shape (6, 5, 8)",
    ),
    (["evaluate", "hidden.npy", "tokens.npy", "--head", "no.npy"], "no.npy: No such file or directory"),
    (
        ["evaluate", "hidden.npy", "beyond.npy", "--head", "head.npy"],
        "targets[5, 2] is 11; expected 0 to 10, or ignore_index -100",
    ),
    (
        ["evaluate", "hidden.npy", "tokens.npy", "--head", "head.npy", "--output", "link.npy"],
        "link.npy: is read as head.npy; expected a new file",
    ),
    (
        ["compare", "hidden.npy", "narrow.npy", "--head", "head.npy"],
        "narrow.npy has shape (6, 5, 3), 3 features along axis -1; "
        "expected 8, as head.npy of shape (11, 8) has",
    ),
    (
        ["evaluate", "logits.npy", "tokens.npy", "--head", "head.npy"],
        "logits.npy has shape (6, 5, 11), 11 features along axis -1; "
        "expected 8, as head.npy of shape (11, 8) has (logits, without --head?)",
    ),
    (
        ["compare", "logits.npy", "hidden.npy", "--head", "head.npy"],
        "logits.npy has shape (6, 5, 11), 11 features along axis -1; "
        "expected 8, as head.npy of shape (11, 8) has (logits, with --candidate-head alone?)",
    ),
    (
        ["compare", "hidden.npy", "logits.npy", "--head", "head.npy", "--candidate-head", "head.npy"],
        "logits.npy has shape (6, 5, 11), 11 features along axis -1; "
        "expected 8, as head.npy of shape (11, 8) has (logits, with --reference-head alone?)",
    ),
    (
        [
            "compare",
            "hidden.npy",
            "logits.npy",
            "--reference-head",
            "head.npy",
            "--candidate-head",
            "head.npy",
        ],
        "logits.npy has shape (6, 5, 11), 11 features along axis -1; "
        "expected 8, as head.npy of shape (11, 8) has (logits, without --candidate-head?)",
    ),
    (
        ["compare", "hidden.npy", "narrow.npy", "--head", "head.npy", "--candidate-head", "short.npy"],
        "short.npy has 10 classes; expected 11, as head.npy has",
    ),
    (
        ["compare", "logits.npy", "narrow.npy", "--candidate-head", "short.npy"],
        "short.npy has 10 classes; expected 11, as logits.npy has",
    ),
    (
        ["compare", "hidden.npy", "hidden-0.npy", "--head", "head.npy"],
        "hidden-0.npy has shape (2, 5, 8); expected (6, 5, 8), the shape of hidden.npy but for axis -1",
    ),
    (
        [
            "compare",
            "hidden.npy",
            "logits.npy",
            "--reference-head",
            "head.npy",
            "--candidate-head-bias",
            "bias.npy",
        ],
        "bias.npy is given without --head; expected that, too",
    ),
    (
        ["compare", "hidden.npy", "hidden.npy", "beyond.npy", "--head", "head.npy"],
        "targets[5, 2] is 11; expected 0 to 10, or ignore_index -100",
    ),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG)
def test_errors_are_one_line(files, capsys, arguments, message):
    files["tokens"][5, 2] = CLASSES
    np.save("beyond.npy", files["tokens"])
    np.save("short.npy", files["narrow_head"][1:])
    os.symlink("head.npy", "link.npy")
    before = sorted(os.listdir())
    assert run(capsys, *arguments) == (1, "", f"xent-rs: error: {message}\n")
    assert sorted(os.listdir()) == before
