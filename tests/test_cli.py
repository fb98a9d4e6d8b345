"""The command ``xent-rs``: in this process through `main`, and as a process of its own."""

import fcntl
import json
import os
import pty
import re
import resource
import select
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import xent_rs
from xent_rs import Evaluator
from xent_rs.cli import demo, main

COMMAND = [sys.executable, "-m", "xent_rs"]


@pytest.fixture(autouse=True)
def _same_configuration():
    threads, level = xent_rs.get_num_threads(), xent_rs._xent_rs.simd_level()
    yield
    xent_rs.set_num_threads(threads)
    assert xent_rs._xent_rs.simd_level() == level


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Logits and targets in every format, in the current directory."""
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    logits = (3 * random.standard_normal((40, 3, 11))).astype(np.float32)
    targets = random.integers(11, size=(40, 3))
    targets[3:5] = -100
    np.save("logits.npy", logits)
    np.save("targets.npy", targets)
    np.savez("both.npz", logits=logits, targets=targets)
    np.savez_compressed("small.npz", logits=logits, targets=targets)
    write_safetensors("both.safetensors", logits=("F32", logits), targets=("I64", targets))
    return logits, targets


def write_safetensors(name, **tensors):
    header, data = {}, b""
    for key, (dtype, value) in tensors.items():
        offsets = [len(data), len(data) + value.nbytes]
        header[key] = {"dtype": dtype, "shape": value.shape, "data_offsets": offsets}
        data += value.tobytes()
    text = json.dumps(header).encode()
    Path(name).write_bytes(struct.pack("<Q", len(text)) + text + data)


def run(capsys, *arguments):
    """Run in this process; return status, standard output and standard error."""
    status = main([str(argument) for argument in arguments])
    return status, *capsys.readouterr()


def start(*arguments, **options):
    return subprocess.run(
        [*COMMAND, *map(str, arguments)], capture_output=True, text=True, timeout=100, **options
    )


def without(module, folder):
    """Return an environment in which a module is not installed."""
    (folder / f"{module}.py").write_text("raise ModuleNotFoundError('not here')")
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])}


def on_terminal(*arguments, until=None, then=None, env=None):
    """Run with standard error on a terminal; return status, standard output and what the terminal got.

    Once the terminal has got a match of `until`, call `then` with the process.
    """
    outer, inner = pty.openpty()
    fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))
    process = subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=inner,
        text=True,
        start_new_session=True,
        env=env,
    )
    os.close(inner)
    seen = b""
    late = threading.Timer(100, process.kill)
    late.start()
    while True:
        if select.select([outer], [], [], 0.1)[0]:
            try:
                seen += os.read(outer, 65536)
            except OSError:  # the other end is closed
                break
        if until is not None and re.search(until, seen):
            until = None
            then(process)
    output = process.stdout.read()
    process.stdout.close()
    status = process.wait()
    late.cancel()
    os.close(outer)
    return status, output, seen.decode()


def expected(logits, targets, **options):
    evaluator = Evaluator(**options)
    evaluator.update(logits, targets)
    return evaluator.result()


FORMATS = [
    ("logits.npy", "targets.npy"),
    ("both.npz:logits", "both.npz:targets"),
    ("small.npz:logits", "small.npz:targets"),
    ("both.safetensors:logits", "both.safetensors:targets"),
    ("small.npz:logits", "targets.npy"),
]


@pytest.mark.parametrize("pair", FORMATS)
def test_evaluate_prints_the_fields_of_evaluation(files, capsys, pair):
    status, output, errors = run(capsys, "evaluate", *pair, "--json")
    assert (status, errors) == (0, "")
    found, result = json.loads(output), expected(*files)
    counts = ["rows", "ignored", "nan_rows"]
    names = ["loss", "perplexity", "bits", "accuracy", "top_k", "entropy", *counts, "loss_error"]
    assert list(found) == names
    assert found["top_k"] == {"1": result.top_k[1], "5": result.top_k[5]}
    for field in ("loss", "perplexity", "bits", "accuracy", "entropy", *counts):
        assert found[field] == getattr(result, field)
    assert (found["rows"], found["ignored"]) == (114, 6)


@pytest.mark.parametrize("names", [("logits-*.npy", "targets-*.npy"), ("logits", "targets"), ("index",) * 2])
def test_evaluate_several_files_as_one(files, capsys, names):
    logits, targets = files
    os.mkdir("logits")
    os.mkdir("targets")
    weight_map = {}
    for number, rows in enumerate(np.split(np.arange(40), [3, 4, 4, 17, 20, 25, 30, 31, 35, 36, 38])):
        for name, values, dtype in (("logits", logits, "F32"), ("targets", targets, "I64")):
            np.save(f"{name}-{number}.npy", values[rows])
            np.savez(f"{name}/{number}.npz", values[rows])
            key = f"{name}.{number}"
            write_safetensors(f"{key}.safetensors", **{key: (dtype, values[rows])})
            weight_map[key] = f"{key}.safetensors"
    Path("model.index.json").write_text(json.dumps({"weight_map": weight_map}))
    if names[0] == "index":
        names = ("model.index.json:logits.*", "model.index.json:targets.*")
    status, output, errors = run(
        capsys, "evaluate", *names, "--json", "--sample-weight", "targets-*.npy", "--output", "losses.npy"
    )
    assert (status, errors) == (0, "")
    assert json.loads(output)["rows"] == np.count_nonzero((targets != -100) & (targets != 0))
    wanted = xent_rs.cross_entropy(logits, targets, sample_weight=np.abs(targets), reduction="none")
    counts = targets != -100
    assert np.load("losses.npy")[counts].tobytes() == wanted[counts].tobytes()
    assert run(capsys, "evaluate", names[0], "logits-1*.npy")[0] == 1
    title = run(capsys, "evaluate", *names)[1].splitlines()[0]
    assert title == f"{names[0]}: float32 logits of shape (40, 3, 11)"


def test_every_format_gives_the_same_bits_also_in_several_blocks(files, capsys, monkeypatch):
    blocks = xent_rs.io.row_blocks
    seen = []

    def small(*arguments, **options):
        for block in blocks(*arguments, **options, max_bytes=300):
            seen.append(block[0])
            yield block

    monkeypatch.setattr(xent_rs.io, "row_blocks", small)
    outputs = {run(capsys, "evaluate", *pair, "--json")[1] for pair in FORMATS}
    assert len(outputs) == 1
    assert len(seen) == 20 * len(FORMATS)
    whole = expected(*files)
    assert json.loads(outputs.pop())["loss"] == pytest.approx(whole.loss, rel=1e-12)


def test_evaluate_prints_a_table(files, capsys):
    status, output, errors = run(capsys, "evaluate", "logits.npy", "targets.npy", "--top-k", "1,2,3")
    assert (status, errors) == (0, "")
    result = expected(*files, top_k=(1, 2, 3))
    title, *lines = output.splitlines()
    assert title == "logits.npy: float32 logits of shape (40, 3, 11)"
    assert [re.split(r" {2,}", line) for line in lines] == [
        ["rows", "114"],
        ["ignored", "6"],
        ["loss (nats)", f"{result.loss:.6g} ± {result.loss_error:.2g}"],
        ["bits", f"{result.bits:.6g}"],
        ["perplexity", f"{result.perplexity:.6g}"],
        ["entropy (nats)", f"{result.entropy:.6g}"],
        ["accuracy", f"{result.accuracy:.2%}"],
        ["among the top 2", f"{result.top_k[2]:.2%}"],
        ["among the top 3", f"{result.top_k[3]:.2%}"],
    ]
    assert len(set(map(len, lines))) == 1


def test_the_table_says_where_top_k_are_all_classes(files, capsys):
    for top_k, labels in [("1,5,10", ["5", "10"]), ("11,12", ["11 (all 11)", "12 (all 11)"])]:
        _, output, _ = run(capsys, "evaluate", "logits.npy", "targets.npy", "--top-k", top_k)
        assert re.findall(r"^among the top (.*?)  ", output, re.MULTILINE) == labels


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        (["--temperature", "0.5"], {"temperature": 0.5}),
        (["--top-k", "2,7"], {"top_k": (2, 7)}),
        (["--ignore-index", "3"], {"ignore_index": 3}),
        (["--label-smoothing", "0.1"], {"label_smoothing": 0.1}),
        (["--z-loss", "1e-3"], {"z_loss": 1e-3}),
        (["--softcap", "2.5"], {"softcap": 2.5}),
        (["--focal-gamma", "2", "--poly-epsilon=-1"], {"focal_gamma": 2.0, "poly_epsilon": -1.0}),
        (["--weight", "weight.npy"], {"weight": np.arange(11) / 4}),
        (
            [
                "--weight",
                "weight.npy",
                "--label-smoothing=.2",
                "--z-loss=1",
                "--softcap=9",
                "--temperature=2",
            ],
            {
                "weight": np.arange(11) / 4,
                "label_smoothing": 0.2,
                "z_loss": 1,
                "softcap": 9,
                "temperature": 2,
            },
        ),
        (["--threads", "1"], {}),
        (["--dtype", "float32"], {}),
    ],
)
def test_evaluate_options(files, capsys, arguments, options):
    logits, targets = files
    if "ignore_index" in options:
        targets = np.where(targets == -100, 3, targets)
        np.save("targets.npy", targets)
    np.save("weight.npy", np.arange(11) / 4)
    status, output, _ = run(capsys, "evaluate", "logits.npy", "targets.npy", *arguments, "--json")
    assert status == 0
    found, result = json.loads(output), expected(logits, targets, **options)
    assert (found["loss"], found["ignored"]) == (result.loss, result.ignored)
    assert found["entropy"] == result.entropy
    assert found["top_k"] == {str(k): share for k, share in result.top_k.items()}


@pytest.mark.parametrize(("shape", "axis"), [((11,), 0), ((11, 6), 0), ((2, 11, 6), 1), ((2, 11, 6), -2)])
def test_evaluate_any_axis_and_a_single_sample(tmp_path, capsys, monkeypatch, shape, axis):
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    logits = random.standard_normal(shape)
    targets = random.integers(11, size=[n for i, n in enumerate(shape) if i != axis % len(shape)])
    np.savez_compressed("both.npz", logits=logits, targets=targets)
    status, output, _ = run(
        capsys, "evaluate", "both.npz:logits", "both.npz:targets", f"--axis={axis}", "--json"
    )
    assert status == 0
    assert json.loads(output)["loss"] == expected(logits, targets, axis=axis).loss


def test_evaluate_bfloat16(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    logits = np.random.default_rng(0).standard_normal((9, 7)).astype(ml_dtypes.bfloat16)
    targets = np.arange(9) % 7
    np.save("logits.npy", logits)
    np.save("targets.npy", targets)
    write_safetensors("both.safetensors", logits=("BF16", logits), targets=("I64", targets))
    outputs = {
        run(capsys, "evaluate", "logits.npy", "targets.npy", "--dtype", "bfloat16", "--json")[:2],
        run(capsys, "evaluate", "both.safetensors:logits", "both.safetensors:targets", "--json")[:2],
    }
    ((status, output),) = outputs
    assert status == 0
    assert json.loads(output)["loss"] == expected(logits, targets).loss
    status, _, errors = run(capsys, "evaluate", "logits.npy", "targets.npy")
    assert status == 1
    assert errors == (
        "xent-rs: error: logits.npy: holds raw numbers of 2 bytes (V2), which is how NumPy stores bfloat16; "
        "if that is what they are, give --dtype bfloat16\n"
    )


def test_json_has_null_for_what_is_not_finite(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("logits.npy", np.array([[-np.inf, 0.0]]))
    np.save("targets.npy", np.array([0]))
    status, output, _ = run(capsys, "evaluate", "logits.npy", "targets.npy", "--json")
    found = json.loads(output, parse_constant=pytest.fail)
    assert (status, found["loss"], found["perplexity"], found["accuracy"]) == (0, None, None, 0.0)
    np.save("targets.npy", np.array([-100]))
    status, output, _ = run(capsys, "evaluate", "logits.npy", "targets.npy", "--json")
    found = json.loads(output, parse_constant=pytest.fail)
    assert (status, found["loss"], found["top_k"], found["rows"]) == (0, None, {"1": None, "5": None}, 0)


def test_a_wrong_target_is_named_by_its_place_in_the_file(files, capsys, monkeypatch):
    _, targets = files
    targets[37, 2] = 11
    np.save("targets.npy", targets)
    blocks = xent_rs.io.row_blocks
    monkeypatch.setattr(
        xent_rs.io, "row_blocks", lambda *args, **options: blocks(*args, **options, max_bytes=100)
    )
    status, output, errors = run(capsys, "evaluate", "logits.npy", "targets.npy")
    assert (status, output) == (1, "")
    assert errors == "xent-rs: error: targets[37, 2] is 11; expected 0 to 10, or ignore_index -100\n"


@pytest.mark.parametrize(("shape", "bad", "place"), [((40, 3), (0, 1), "[0, 1]"), ((), (), "")])
def test_a_wrong_target_is_told_as_by_the_function(tmp_path, capsys, monkeypatch, shape, bad, place):
    monkeypatch.chdir(tmp_path)
    for value, ignore_index in [(-1, -100), (-100, 7), (200, -100)]:
        logits, targets = np.zeros((*shape, 5), np.float32), np.zeros(shape, np.int16)
        targets[bad] = value
        np.save("logits.npy", logits)
        np.save("targets.npy", targets)
        with pytest.raises(IndexError) as error:
            xent_rs.evaluate(logits, targets, ignore_index=ignore_index)
        assert str(error.value).startswith(f"targets{place} is {value}; expected 0 to 4")
        assert run(capsys, "evaluate", "logits.npy", "targets.npy", "--ignore-index", ignore_index) == (
            1,
            "",
            f"xent-rs: error: {error.value}\n",
        )


def test_files_in_the_wrong_order_are_told_so(files, capsys):
    write_safetensors("half.safetensors", logits=("BF16", files[0].astype(ml_dtypes.bfloat16)))
    for targets, dtype in (("logits.npy", "float32"), ("half.safetensors", "bfloat16")):
        assert run(capsys, "evaluate", "targets.npy", targets) == (
            1,
            "",
            f"xent-rs: error: LOGITS holds int64 of shape (40, 3) and TARGETS {dtype} of shape (40, 3, 11): "
            "are the two files swapped?\n",
        )


def small_blocks(monkeypatch, max_bytes=300):
    blocks = xent_rs.io.row_blocks
    monkeypatch.setattr(
        xent_rs.io, "row_blocks", lambda *args, **options: blocks(*args, **options, max_bytes=max_bytes)
    )


@pytest.mark.parametrize("pair", FORMATS)
def test_sample_weight(files, capsys, monkeypatch, pair):
    logits, targets = files
    weights = np.random.default_rng(1).uniform(0, 2, targets.shape)
    np.save("weights.npy", weights)
    np.savez("weights.npz", a=weights, b=weights[:1])
    write_safetensors("weights.safetensors", a=("F64", weights))
    evaluator = Evaluator()
    evaluator.update(logits, targets, sample_weight=weights)
    small_blocks(monkeypatch)
    for name in ("weights.npy", "weights.npz:a", "weights.safetensors"):
        status, output, errors = run(capsys, "evaluate", *pair, "--sample-weight", name, "--json")
        assert (status, errors) == (0, "")
        found = json.loads(output)
        assert found["loss"] == pytest.approx(evaluator.result().loss, rel=1e-12)
        assert found["accuracy"] == evaluator.result().accuracy


OUTPUT_OPTIONS = {
    "label_smoothing": 0.1,
    "z_loss": 0.01,
    "softcap": 5.0,
    "temperature": 0.7,
    "ignore_index": 3,
}


@pytest.mark.parametrize("options", [{}, OUTPUT_OPTIONS])
@pytest.mark.parametrize("axis", [-1, 0, 1])
@pytest.mark.parametrize("dtype", ["float16", "<f4", ">f4", "<f8", ">f8"])
def test_output_has_the_loss_of_each_row(tmp_path, capsys, monkeypatch, options, axis, dtype):
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    logits = np.moveaxis(random.standard_normal((40, 3, 11)), -1, axis).astype(dtype)
    targets, weights = random.integers(11, size=(40, 3)), random.uniform(0, 2, (40, 3))
    if not options:
        targets[3:5] = -100
    class_weights = np.arange(11) / 4
    for name, value in (("l", logits), ("t", targets), ("s", weights), ("w", class_weights)):
        np.save(f"{name}.npy", value)
    small_blocks(monkeypatch)
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    flags += ["--sample-weight=s.npy", "--weight=w.npy"] if options else []
    if options:
        options = {**options, "weight": class_weights, "sample_weight": weights}
    Path("losses.npy").write_text("an older file")
    status, output, errors = run(
        capsys, "evaluate", "l.npy", "t.npy", f"--axis={axis}", "--json", "--output", "losses.npy", *flags
    )
    assert (status, errors) == (0, "")
    found = np.load("losses.npy")
    wanted = xent_rs.cross_entropy(logits, targets, axis=axis, reduction="none", **options)
    assert (found.dtype, found.shape) == (wanted.dtype, (40, 3))
    assert found.dtype == (np.float64 if dtype.endswith("8") else np.float32)
    assert found.tobytes() == wanted.tobytes()
    assert np.all(found[targets == options.get("ignore_index", -100)] == 0)
    if not options:
        mean = found.sum(dtype=np.float64) / (targets != -100).sum()
        assert json.loads(output)["loss"] == pytest.approx(mean, rel=1e-6)
    assert sorted(os.listdir()) == ["l.npy", "losses.npy", "s.npy", "t.npy", "w.npy"]


@pytest.mark.parametrize(("shift", "score_from"), [(True, 0), (False, 1), (True, 1), (True, 2)])
@pytest.mark.parametrize("axis", [-1, 0])
def test_next_tokens(files, capsys, monkeypatch, shift, score_from, axis):
    """Logits of position i against token i + 1, from a position on, with the weights of the tokens."""
    logits, tokens = files
    weights = np.random.default_rng(1).uniform(0, 2, tokens.shape).astype(np.float32)
    np.save("logits.npy", np.moveaxis(logits, -1, axis))
    np.save("weights.npy", weights)
    flags = ["--shift"] * shift + [f"--score-from={score_from}", f"--axis={axis}", "--json"]
    scored = (
        logits[:, score_from : 3 - shift],
        tokens[:, score_from + shift :],
        weights[:, score_from + shift :],
    )
    expected = Evaluator()
    expected.update(scored[0], scored[1], sample_weight=scored[2])
    small_blocks(monkeypatch)
    status, output, errors = run(
        capsys,
        *("evaluate", "logits.npy", "targets.npy", "--sample-weight", "weights.npy"),
        *("--output", "losses.npy", *flags),
    )
    assert (status, errors) == (0, "")
    found = json.loads(output)
    if expected.result().rows:
        assert found["loss"] == pytest.approx(expected.result().loss, rel=1e-12)
    assert (found["rows"], found["ignored"]) == (expected.result().rows, expected.result().ignored)
    losses = xent_rs.cross_entropy(scored[0], scored[1], sample_weight=scored[2], reduction="none")
    assert np.load("losses.npy").tobytes() == losses.tobytes()
    assert np.load("losses.npy").shape == scored[1].shape


def test_a_wrong_next_token_is_named_by_its_place_in_the_file(files, capsys):
    _, tokens = files
    tokens[:, 0] = 99  # no target: nothing comes before it
    tokens[37, 2] = 11
    np.save("targets.npy", tokens)
    assert run(capsys, "evaluate", "logits.npy", "targets.npy", "--shift") == (
        1,
        "",
        "xent-rs: error: targets[37, 2] is 11; expected 0 to 10, or ignore_index -100\n",
    )


def test_bits_per_byte(files, capsys):
    result = expected(*files)
    per_byte = result.bits * result.rows / 437
    command = ["evaluate", "logits.npy", "targets.npy", "--bytes", "437"]
    _, output, _ = run(capsys, *command, "--json")
    assert json.loads(output)["bits_per_byte"] == per_byte
    _, output, _ = run(capsys, *command)
    assert re.split(r" {2,}", output.splitlines()[-1]) == ["bits per byte", f"{per_byte:.6g}"]


@pytest.mark.parametrize("shape", [(4,), (0, 4)])
def test_output_of_a_single_sample_and_of_no_rows(tmp_path, capsys, monkeypatch, shape):
    monkeypatch.chdir(tmp_path)
    np.save("l.npy", np.zeros(shape, np.float32))
    np.save("t.npy", np.zeros(shape[:-1], np.int64))
    assert run(capsys, "evaluate", "l.npy", "t.npy", "--output", "losses.npy")[0] == 0
    found = np.load("losses.npy")
    assert (found.shape, found.dtype) == (shape[:-1], np.float32)
    assert np.all(found == np.float32(np.log(4)))


def test_output_goes_where_a_link_points_and_has_the_usual_mode(files, capsys):
    os.mkdir("folder")
    os.symlink("folder/real.npy", "link.npy")
    Path("folder/plain").write_text("")
    assert run(capsys, "evaluate", "logits.npy", "targets.npy", "--output", "link.npy")[0] == 0
    assert os.path.islink("link.npy")
    assert np.load("folder/real.npy").shape == (40, 3)
    assert os.stat("folder/real.npy").st_mode == os.stat("folder/plain").st_mode
    assert sorted(os.listdir("folder")) == ["plain", "real.npy"]


@pytest.mark.parametrize("failure", ["a wrong target", "Ctrl-C"])
def test_after_a_failure_there_is_no_output_and_the_older_file_stays(files, capsys, monkeypatch, failure):
    Path("losses.npy").write_text("an older file")
    before = sorted(os.listdir())
    small_blocks(monkeypatch)
    if failure == "a wrong target":
        _, targets = files
        targets[39, 2] = 11
        np.save("targets.npy", targets)
        message = "xent-rs: error: targets[39, 2] is 11; expected 0 to 10, or ignore_index -100\n"
        ends = (1, "", message)
    else:
        right, calls = Evaluator.update, []

        def interrupted(*arguments, **options):
            calls.append(1)
            if len(calls) == 15:
                raise KeyboardInterrupt
            return right(*arguments, **options)

        monkeypatch.setattr(Evaluator, "update", interrupted)
        ends = (130, "", "")
    assert run(capsys, "evaluate", "logits.npy", "targets.npy", "--output", "losses.npy") == ends
    assert Path("losses.npy").read_text() == "an older file"
    assert sorted(os.listdir()) == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_leaves_no_unfinished_output(tmp_path, number):
    sparse(tmp_path / "logits.npy", (1 << 15, 1 << 16))  # 8 GiB: not done before the signal
    np.save(tmp_path / "targets.npy", np.zeros(1 << 15, np.int8))
    before = sorted(os.listdir(tmp_path))
    files = [str(tmp_path / name) for name in ("logits.npy", "targets.npy", "losses.npy")]
    process = subprocess.Popen(
        [*COMMAND, "evaluate", *files[:2], "--output", files[2]],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # Whoever started the tests may have had it ignored (nohup).
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),
    )
    late = threading.Timer(100, process.kill)
    late.start()
    while process.poll() is None and not any(file.stat().st_size > 128 for file in tmp_path.glob(".losses*")):
        time.sleep(0.01)
    process.send_signal(number)
    if number != signal.SIGINT:  # who presses Ctrl-C twice does not want to wait for the tidying
        process.send_signal(number)
    assert process.communicate() == (b"", b"")
    late.cancel()
    assert process.returncode == 128 + number
    assert sorted(os.listdir(tmp_path)) == before


def test_a_signal_that_is_ignored_stays_so_and_handlers_are_given_back(files, capsys):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        for _ in range(2):
            assert run(capsys, "evaluate", "logits.npy", "targets.npy")[0] == 0
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
            assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, before)


def sparse(path, shape):
    """Write logits that are zeros and take no space."""
    header = {"descr": "<f4", "fortran_order": False, "shape": shape}
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        file.truncate(file.tell() + 4 * int(np.prod(shape)))


def test_a_disk_that_is_full_leaves_no_output(files):
    """Or a file that may not grow, which a test can have."""
    before = sorted(os.listdir())
    limit = 512
    done = start(
        *("evaluate", "logits.npy", "targets.npy", "--output", "losses.npy"),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "xent-rs: error: losses.npy: File too large\n"
    assert sorted(os.listdir()) == before


ERRORS = [
    (
        ["logits.npy", "targets.npy", "--sample-weight", "three.npy"],
        "three.npy: has shape (3,); expected (40, 3), the shape of targets.npy, one weight a row",
    ),
    (
        ["logits.npy", "targets.npy", "--sample-weight", "both.npz:logits"],
        "both.npz:logits: has shape (40, 3, 11); "
        "expected (40, 3), the shape of targets.npy, one weight a row",
    ),
    (
        ["logits.npy", "targets.npy", "--sample-weight", "both.npz"],
        "both.npz: holds 'logits', 'targets'; choose one with both.npz:KEY",
    ),
    (
        ["logits.npy", "targets.npy", "--output", "losses.txt"],
        "losses.txt: unknown format; expected a .npy file",
    ),
    (
        ["logits.npy", "targets.npy", "--output", "no/losses.npy"],
        "no/losses.npy: No such file or directory",
    ),
    (["logits.npy", "targets.npy", "--output", "folder.npy"], "folder.npy: not a regular file"),
    (
        ["logits.npy", "both.npz:targets", "--output", "./logits.npy"],
        "logits.npy: is read as logits.npy; expected a new file",
    ),
    (
        ["logits.npy", "targets.npy", "--weight", "eleven.npy", "--output", "eleven.npy"],
        "eleven.npy: is read as eleven.npy; expected a new file",
    ),
    (
        ["twice.npy", "targets.npy"],
        "twice.npy: 5408 bytes follow the array of shape (40, 3, 11); expected none "
        "(a second numpy.save into the same file leaves another array there)",
    ),
    (["missing.npy", "targets.npy"], "missing.npy: No such file or directory"),
    (["logits.npy", "missing.npz:a"], "missing.npz: No such file or directory"),
    (
        ["logits.txt", "targets.npy"],
        "logits.txt: unknown format; expected a .npy, .npz, .safetensors or .kld file",
    ),
    (["both.npz", "targets.npy"], "both.npz: holds 'logits', 'targets'; choose one with both.npz:KEY"),
    (["both.npz:x", "targets.npy"], "both.npz: holds no array 'x'; it holds 'logits', 'targets'"),
    (
        ["targets.npy", "targets.npy"],
        "targets have shape (40, 3); expected (40,), the shape of logits (40, 3) without axis -1",
    ),
    (
        ["int.npy", "targets.npy"],
        "logits have dtype int64; expected float16, bfloat16, float32 or float64 (logits.astype(np.float32))",
    ),
    (
        ["logits.npy", "float.npy"],
        "targets have dtype float64; expected an integer dtype (class indices) "
        "(whole numbers: targets.astype(int))",
    ),
    (
        ["logits.npy", "targets.npy", "--axis", "3"],
        "axis is 3; expected -3 to 2 for logits of shape (40, 3, 11)",
    ),
    (
        ["logits.npy", "targets.npy", "--temperature", "0"],
        "temperature is 0.0; expected a positive finite number",
    ),
    (
        ["logits.npy", "targets.npy", "--label-smoothing", "2"],
        "label_smoothing is 2.0; expected a number from 0 to 1",
    ),
    (["logits.npy", "targets.npy", "--z-loss=-1"], "z_loss is -1.0; expected a finite number, at least 0"),
    (
        ["logits.npy", "targets.npy", "--score-from", "4"],
        "score_from is 4; expected 0 to 3 for logits of shape (40, 3, 11)",
    ),
    (
        ["logits.npy", "targets.npy", "--score-from", "3", "--shift"],
        "score_from is 3; expected 0 to 2 for logits of shape (40, 3, 11)",
    ),
    (["logits.npy", "targets.npy", "--score-from=-1"], "score_from is -1; expected at least 0"),
    (["logits.npy", "targets.npy", "--softcap=0"], "softcap is 0.0; expected a positive finite number"),
    (["logits.npy", "targets.npy", "--weight", "missing.npy"], "missing.npy: No such file or directory"),
    (
        ["logits.npy", "targets.npy", "--weight", "three.npy"],
        "weight has shape (3,); expected (11,), one number a class",
    ),
    (["logits.npy", "targets.npy", "--top-k", "0"], "top_k contains 0; expected positive integers"),
    (["logits.npy", "targets.npy", "--threads", "0"], "number of threads is 0; expected at least 1"),
    (
        ["logits.npy", "targets.npy", "--dtype", "float16"],
        "logits.npy: holds float32; expected dtype float16",
    ),
    (["truncated.npy", "targets.npy"], "truncated.npy: truncated; 5280 bytes of data expected, 5279 found"),
    (
        ["objects.npy", "targets.npy"],
        "objects.npy: holds Python objects, which are not read; expected numbers",
    ),
    (["text.npz", "targets.npy"], "text.npz: does not begin as a .npz file does (begins with b'hello')"),
]


@pytest.mark.parametrize(("arguments", "message"), ERRORS)
def test_errors_are_one_line(files, capsys, arguments, message):
    logits, _ = files
    np.save("int.npy", np.zeros(logits.shape, np.int64))
    np.save("float.npy", np.zeros((40, 3)))
    np.save("three.npy", np.ones(3))
    np.save("eleven.npy", np.ones(11))
    os.mkdir("folder.npy")
    with open("twice.npy", "wb") as file:
        np.save(file, logits)
        np.save(file, logits)
    np.save("objects.npy", np.array([None]), allow_pickle=True)
    Path("truncated.npy").write_bytes(Path("logits.npy").read_bytes()[:-1])
    Path("text.npz").write_text("hello")
    before = sorted(os.listdir())
    status, output, errors = run(capsys, "evaluate", *arguments)
    assert (status, output) == (1, "")
    assert errors == f"xent-rs: error: {message}\n"
    assert sorted(os.listdir()) == before


def write_llama(path, logits, tokens):
    chunks, scored, classes = logits.shape
    header = b"_logits_" + struct.pack("<3i", tokens.shape[1], classes, chunks)
    rows = [struct.pack("<2f", 1.0, -9.0) + bytes(2 * (classes + classes % 2))] * (chunks * scored)
    Path(path).write_bytes(header + tokens.astype("<i4").tobytes() + b"".join(rows))


# What is opened, the file of it that is damaged, and another suffix for that.
KINDS = {
    "npy": ("a.npy", "a.npy", ".npz"),
    "npz": ("a.npz:logits", "a.npz", ".npy"),
    "npz compressed": ("b.npz:logits", "b.npz", ".safetensors"),
    "safetensors": ("a.safetensors:logits", "a.safetensors", ".npy"),
    "llama.cpp": ("a.kld:logits", "a.kld", ".npy"),
    "pattern": ("part-*.npy", "part-1.npy", None),
    "folder": ("folder", "folder/1.npy", None),
    "index": ("a.index.json:*", "a.safetensors", None),
}


def write_kinds(logits, tokens):
    np.save("a.npy", logits)
    np.savez("a.npz", logits=logits)
    np.savez_compressed("b.npz", logits=logits)
    write_safetensors("a.safetensors", logits=("F32" if logits.dtype == np.float32 else "I64", logits))
    os.makedirs("folder", exist_ok=True)
    for number, rows in enumerate(np.split(logits, 2)):
        np.save(f"part-{number}.npy", rows)
        np.save(f"folder/{number}.npy", rows)
    Path("a.index.json").write_text('{"weight_map": {"logits": "a.safetensors"}}')
    write_llama("a.kld", logits, tokens)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_file_tells_its_faults_in_a_sentence(tmp_path, capsys, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    logits, tokens = np.zeros((4, 3, 6), np.float32), np.zeros((4, 7), np.int32)
    name, damaged, suffix = KINDS[kind]
    write_kinds(logits, tokens)
    np.save("targets.npy", np.zeros((4, 3), np.int64))
    np.save("other.npy", np.zeros((4, 2), np.int64))

    def said(*arguments):
        status, output, errors = run(capsys, "evaluate", *arguments)
        assert (status, output) == (1, "")
        assert errors.count("\n") == 1
        return errors.removeprefix("xent-rs: error: ").rstrip("\n")

    assert run(capsys, "evaluate", name, "targets.npy")[0] == 0
    assert said(name, "other.npy") == (
        "targets have shape (4, 2); expected (4, 3), the shape of logits (4, 3, 6) without axis -1"
    )
    assert re.fullmatch(
        r"\S+: holds float32; expected dtype float64", said(name, "targets.npy", "--dtype=float64")
    )
    whole = Path(damaged).read_bytes()
    for length in (0, 1, len(whole) // 2, len(whole) - 1):
        Path(damaged).write_bytes(whole[:length])
        text = said(name, "targets.npy")
        assert text.startswith(damaged), text
        assert re.search("truncated; |does not begin as a", text), text
    Path(damaged).write_bytes(whole)
    if suffix is not None:
        misnamed = f"c{suffix}"
        os.rename(damaged, misnamed)
        key = name.partition(":")[1] + name.partition(":")[2] if suffix != ".npy" else ""
        text = said(misnamed + key, "targets.npy")
        assert re.match(
            rf"c\{suffix}\S*: (begins as a \.\w+ file does; expected a |does not begin as)", text
        ), text
    if kind != "llama.cpp":
        write_kinds(logits.astype(np.int64), tokens)
        assert said(name, "targets.npy") == (
            "logits have dtype int64; expected float16, bfloat16, float32 or float64 "
            "(logits.astype(np.float32))"
        )


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("--topk", "--top-k"),
        ("--ignore_index=3", "--ignore-index"),
        ("--sampleweight", "--sample-weight"),
        ("--vresion", "--version"),
        ("--nonsense", None),
        ("nonsense", None),
    ],
)
def test_an_unknown_option_is_told_which_may_be_meant(capsys, given, meant):
    status, output, errors = run(capsys, "evaluate", "a.npy", "b.npy", given)
    assert (status, output) == (2, "")
    assert errors.startswith("usage: xent-rs evaluate")
    hint = "" if meant is None else f" (did you mean {meant}?)"
    assert errors.splitlines()[-1] == f"xent-rs evaluate: error: unrecognized arguments: {given}{hint}"


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        (["ev"], ["evaluate"]),
        (["evaluate", "--so"], ["--softcap"]),
        (["evaluate", "--dtype", "bf"], ["bfloat16"]),
        (["evaluate", "log"], ["logits.npy"]),
        (["evaluate", "--output", "lo"], ["logits.npy"]),
        (["bench", "--qu"], ["--quick"]),
        (["explore", "--no"], ["--no-browser"]),
    ],
)
def test_completion_in_bash(files, capsys, words, completed):
    pytest.importorskip("shtab")
    status, script, errors = run(capsys, "--print-completion", "bash")
    assert (status, errors) == (0, "")
    ask = f"""
        COMP_WORDS=(xent-rs {" ".join(words)})
        COMP_CWORD={len(words)}
        $(complete -p xent-rs | grep -o "_shtab[^ ]*")
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(["bash", "-c", script + ask], capture_output=True, text=True)
    assert (done.stdout.split(), done.stderr) == (completed, "")


@pytest.mark.parametrize("shell", ["zsh", "tcsh"])
def test_completion_for_other_shells_names_every_option(capsys, shell):
    pytest.importorskip("shtab")
    status, script, errors = run(capsys, "--print-completion", shell)
    assert (status, errors) == (0, "")
    for name in ("evaluate", "--sample-weight", "--output"):
        assert name in script


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--print-completion"],
        ["--print-completion", "fish"],
        ["nonsense"],
        ["evaluate"],
        ["evaluate", "a.npy"],
        ["evaluate", "a.npy", "b.npy", "--top-k", "one"],
        ["evaluate", "a.npy", "b.npy", "--top-k", ""],
        ["evaluate", "a.npy", "b.npy", "--dtype", "int8"],
        ["evaluate", "a.npy", "b.npy", "--axis", "x"],
        ["evaluate", "a.npy", "b.npy", "--label-smoothing", "x"],
        ["evaluate", "a.npy", "b.npy", "--weight"],
        ["evaluate", "a.npy", "b.npy", "--bytes", "0"],
        ["evaluate", "a.npy", "b.npy", "--bytes", "1.5"],
        ["evaluate", "a.npy", "b.npy", "--score-from", "x"],
        ["evaluate", "a.npy", "b.npy", "--shift=1"],
        ["bench", "--shape", "10"],
        ["bench", "--shape", "0x10"],
        ["bench", "--shape", "4x1"],
        ["bench", "--repeats", "0"],
        ["bench", "--dtype", "float8"],
        ["bench", "--suite", "options"],
        ["explore", "extra"],
        ["info", "extra"],
    ],
)
def test_wrong_usage(capsys, arguments):
    status, output, errors = run(capsys, *arguments)
    assert (status, output) == (2, "")
    assert errors.startswith("usage: xent-rs")
    assert re.search(r"^xent-rs( \w+)?: error: ", errors.splitlines()[-1])


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        *([command, "--help"] for command in ("demo", "bench", "compare", "evaluate", "explore", "info")),
    ],
)
def test_help(capsys, arguments):
    status, output, errors = run(capsys, *arguments)
    assert (status, errors) == (0, "")
    assert output.startswith("usage: xent-rs" if "--help" in arguments else f"xent-rs {xent_rs.__version__}")
    assert max(map(len, output.splitlines())) <= 120


def test_info(capsys):
    status, output, errors = run(capsys, "info", "--json")
    assert (status, errors) == (0, "")
    assert json.loads(output) == xent_rs._xent_rs.config()
    xent_rs.release_memory()  # What an earlier test left may go back at any time.
    status, output, errors = run(capsys, "info")
    assert (status, errors) == (0, "")
    xent_rs.show_config()
    assert output == capsys.readouterr().out
    assert xent_rs.__version__ in output


def test_as_a_module_and_as_a_script(files):
    script = Path(sys.executable).with_name("xent-rs")
    commands = [COMMAND] + ([[str(script)]] if script.exists() else [])
    for command in commands:
        done = subprocess.run(
            [*command, "evaluate", "logits.npy", "targets.npy", "--json"],
            capture_output=True,
            text=True,
            timeout=100,
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert json.loads(done.stdout)["loss"] == expected(*files).loss
        done = subprocess.run(
            [*command, "evaluate", "no.npy", "no.npy"], capture_output=True, text=True, timeout=100
        )
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == "xent-rs: error: no.npy: No such file or directory\n"
        assert subprocess.run(command, capture_output=True, timeout=100).returncode == 2


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere RLIMIT_DATA does not count all of the heap")
def test_a_file_larger_than_the_memory_it_may_use(tmp_path):
    rows, classes = 1 << 11, 1 << 18
    logits, targets = tmp_path / "logits.npy", tmp_path / "targets.npy"
    sparse(logits, (rows, classes))  # 2 GiB
    np.save(targets, np.arange(rows))
    limit = 1 << 30
    done = start(
        "evaluate",
        logits,
        targets,
        "--json",
        "--output",
        tmp_path / "losses.npy",
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (limit, limit)),
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["loss"] == pytest.approx(np.log(classes), rel=1e-7)
    losses = np.load(tmp_path / "losses.npy")
    assert (losses.shape, losses.dtype, set(losses)) == ((rows,), np.float32, {np.float32(np.log(classes))})


def test_the_progress_bar_shows_on_a_terminal_only(files):
    done = start("evaluate", "logits.npy", "targets.npy")
    assert (done.returncode, done.stderr) == (0, "")
    status, output, terminal = on_terminal("evaluate", "logits.npy", "targets.npy")
    assert (status, output) == (0, done.stdout)
    assert "evaluate:" in terminal
    assert "%" in terminal
    # The bar is gone at the end: the cursor is back at the start of an empty line.
    assert terminal.endswith("\r")


def test_ctrl_c_ends_quietly():
    status, output, terminal = on_terminal(
        "bench",
        "--shape",
        "4096x20000",
        until=rb"bench:",
        then=lambda process: process.send_signal(signal.SIGINT),
    )
    assert status == 130
    assert output == ""
    assert "Traceback" not in terminal
    assert "Error" not in terminal


def test_a_reader_that_goes_away_is_no_error():
    process = subprocess.Popen([*COMMAND, "info"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    errors = process.stderr.read()
    process.stderr.close()
    assert (process.wait(timeout=100), errors) == (141, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_is_one_line():
    with open("/dev/full", "w") as full:
        done = subprocess.run([*COMMAND, "info"], stdout=full, stderr=subprocess.PIPE, text=True, timeout=100)
    assert (done.returncode, done.stderr) == (1, "xent-rs: error: No space left on device\n")


def test_without_standard_output():
    done = subprocess.run(
        ["/bin/sh", "-c", '"$@" >&-', "sh", *COMMAND, "info"], stderr=subprocess.PIPE, text=True, timeout=100
    )
    assert (done.returncode, done.stderr) == (0, "")


def without_standard_error(*arguments):
    return subprocess.run(
        ["/bin/sh", "-c", '"$@" 2>&-', "sh", *COMMAND, *arguments],
        stdout=subprocess.PIPE,
        text=True,
        timeout=100,
    )


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["evaluate", "missing.npy", "targets.npy", "--json"], 1),
        (["evaluate", "logits.npy"], 2),
        (["evaluate", "logits.npy", "targets.npy", "--nonsense"], 2),
    ],
)
def test_without_standard_error_errors_go_nowhere(files, arguments, status):
    done = without_standard_error(*arguments)
    assert (done.returncode, done.stdout) == (status, "")


def test_without_standard_error_results_go_to_standard_output(files):
    done = without_standard_error("evaluate", "logits.npy", "targets.npy", "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout)["loss"] == expected(*files).loss


def test_a_name_that_standard_output_cannot_encode(files):
    os.rename("logits.npy", "größe.npy")
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "1"}
    done = start("evaluate", "größe.npy", "targets.npy", env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    title, *figures = done.stdout.splitlines()
    assert title == r"gr\xf6\xdfe.npy: float32 logits of shape (40, 3, 11)"
    assert len(figures) == 8


def test_control_characters_in_names_are_escaped(files, capsys):
    name = "a\x1b[31m\n  \udcff.npy"
    shown = r"a\x1b[31m\n  \udcff.npy"
    os.rename("logits.npy", name)
    status, output, errors = run(capsys, "evaluate", name, "targets.npy")
    assert (status, errors) == (0, "")
    assert output.splitlines()[0] == f"{shown}: float32 logits of shape (40, 3, 11)"
    for arguments, message in [
        ([name, "targets.npy", "--dtype", "float64"], f"{shown}: holds float32; expected dtype float64"),
        ([f"x{name}", "targets.npy"], f"x{shown}: No such file or directory"),
    ]:
        assert run(capsys, "evaluate", *arguments) == (1, "", f"xent-rs: error: {message}\n")
    status, output, errors = run(capsys, "evaluate", "x", "y", name)
    assert (status, output) == (2, "")
    assert errors.splitlines()[-1] == f"xent-rs evaluate: error: unrecognized arguments: {shown}"


@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        ("tqdm", ["evaluate", "logits.npy", "targets.npy"]),
        ("ml_dtypes", ["bench", "--dtype", "bfloat16"]),
    ],
)
def test_ctrl_c_during_an_import_ends_quietly(files, module, arguments):
    Path(f"{module}.py").write_text("raise KeyboardInterrupt")
    path = os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")])
    done = start(*arguments, env={**os.environ, "PYTHONPATH": path})
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_ctrl_c_while_an_error_is_reported_ends_quietly(files, capsys, monkeypatch):
    def interrupt(error):
        raise KeyboardInterrupt

    monkeypatch.setattr(xent_rs.cli, "_one_line", interrupt)
    assert run(capsys, "evaluate", "missing.npy", "targets.npy") == (130, "", "")


def test_an_unforeseen_exception_is_one_line(capsys, monkeypatch):
    def fail():
        raise KeyError("a\nb")

    monkeypatch.setattr(xent_rs._xent_rs, "config", fail)
    status, output, errors = run(capsys, "info", "--json")
    assert (status, output) == (1, "")
    assert errors == "xent-rs: error: KeyError: 'a\\nb'\n"


# demo


def test_demo(capsys):
    pytest.importorskip("sklearn")
    status, output, errors = run(capsys, "demo", "--json")
    assert (status, errors) == (0, "")
    found = json.loads(output)
    assert found["training_rows"] == 1437
    assert len(found["training_losses"]) == 40
    assert found["training_losses"][0] > 1.0 > 0.1 > found["training_losses"][-1]
    evaluation, check = found["evaluation"], found["check"]
    assert evaluation["rows"] == 360
    assert evaluation["accuracy"] > 0.95
    assert evaluation["top_k"]["5"] >= evaluation["accuracy"] == evaluation["top_k"]["1"]
    assert 0 < check["largest_error"] < 1e-6
    assert 0 < check["largest_share"] <= 1
    assert check["mean_error"] <= check["mean_bound"]
    assert [(row["job"], row["rows"], row["classes"]) for row in found["timings"]] == [
        ("loss", 1797, 10),
        ("loss + gradient", 1797, 10),
        ("loss", 512, 32000),
        ("loss + gradient", 512, 32000),
    ]
    assert all(row["xent_rs_seconds"] > 0 and row["numpy_seconds"] > 0 for row in found["timings"])


@pytest.mark.sampled(1)
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_demo_for_people(encoding):
    pytest.importorskip("sklearn")
    done = start("demo", env={**os.environ, "PYTHONIOENCODING": encoding})
    assert (done.returncode, done.stderr) == (0, "")
    assert ("█" in done.stdout) == (encoding == "utf-8")
    for text in ("Trained on 1,437", "accuracy", "Checked against float64", "random logits (512 x 32000)"):
        assert text in done.stdout


def test_demo_fails_loudly_on_a_wrong_loss(capsys, monkeypatch):
    pytest.importorskip("sklearn")
    monkeypatch.setattr(demo, "_EPOCHS", 2)
    right = demo.cross_entropy

    def wrong(*arguments, **options):
        losses = np.array(right(*arguments, **options))
        losses[17] += np.float32(2e-5)
        return losses

    monkeypatch.setattr(demo, "cross_entropy", wrong)
    status, output, errors = run(capsys, "demo", "--json")
    assert (status, output) == (1, "")
    assert re.fullmatch(
        r"xent-rs: error: the loss of row 17 is off by [\d.e-]+; at most [\d.e-]+ is promised\n", errors
    )


@pytest.mark.parametrize(
    ("module", "arguments", "message"),
    [
        ("sklearn", ["demo"], r"the demo needs scikit-learn \(.*\): pip install \"xent_rs\[demo\]\""),
        (
            "matplotlib",
            ["bench", "--plot", "a.png"],
            r"--plot needs matplotlib \(.*\): pip install \"xent_rs\[plot\]\"",
        ),
        (
            "shtab",
            ["--print-completion", "bash"],
            r"--print-completion needs shtab \(not here\): pip install \"xent_rs\[completion\]\"",
        ),
        (
            "ml_dtypes",
            ["bench", "--dtype", "float32", "bfloat16"],
            r"bfloat16 needs ml_dtypes \(.*\): pip install \"xent_rs\[bfloat16\]\"",
        ),
    ],
)
def test_a_missing_extra_is_named(tmp_path, module, arguments, message):
    done = start(*arguments, env=without(module, tmp_path))
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(f"xent-rs: error: {message}\n", done.stderr)


def test_bfloat16_without_ml_dtypes_says_what_to_install(files, tmp_path):
    logits, targets = files
    narrow = logits.astype(ml_dtypes.bfloat16)
    np.save("narrow.npy", narrow)
    write_safetensors("narrow.safetensors", logits=("BF16", narrow))
    env = without("ml_dtypes", tmp_path)
    for name, *options in (["narrow.npy", "--dtype", "bfloat16"], ["narrow.safetensors"]):
        done = start("evaluate", name, "targets.npy", *options, env=env)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == (
            'xent-rs: error: bfloat16 needs ml_dtypes (not here): pip install "xent_rs[bfloat16]"\n'
        )
    # Nothing else needs it.
    done = start("evaluate", "logits.npy", "targets.npy", "--json", env=env)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["loss"] == expected(logits, targets).loss


@pytest.mark.parametrize("module", ["ml_dtypes", "tqdm"])
def test_the_comparison_needs_numpy_alone(tmp_path, module):
    arguments = ["bench", "--shape", "33x70", "--repeats", "1", "--json"]
    done = start(*arguments, env=without(module, tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["results"]


@pytest.mark.exhaustive
def test_without_tqdm_there_is_no_progress_bar(files, tmp_path):
    for arguments in (["evaluate", "logits.npy", "targets.npy"], ["demo"]):
        status, output, terminal = on_terminal(*arguments, env=without("tqdm", tmp_path))
        assert (status, terminal) == (0, "")
        assert output
