"""The scripts of examples/ print the numbers that they are there for, and draw their picture."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
ORANGE = np.array([0xC8, 0x50, 0x1E]) / 255  # the colour of what a picture is about


def run(name, folder, *arguments, expect=0, **environment):
    finished = subprocess.run(
        [sys.executable, EXAMPLES / f"{name}.py", *arguments],
        cwd=folder,
        env={**os.environ, "MPLBACKEND": "Agg", **environment},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert finished.returncode == expect, f"exit {finished.returncode}\n{finished.stdout}{finished.stderr}"
    return finished


def check_picture(path):
    """The picture is a PNG, not an empty one: white, dark, and the colour of the curve or bar in question."""
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    image = pytest.importorskip("matplotlib.image").imread(path)
    pixels = np.unique(image[..., :3].reshape(-1, 3), axis=0)
    for color in (np.ones(3), np.zeros(3), ORANGE):
        assert np.abs(pixels - color).max(axis=1).min() < 0.02, f"{path.name} has no pixel of colour {color}"


def numbers(line):
    return [float(number) for number in re.findall(r"-?\d+\.\d+|-?\b\d+\b", line)]


@pytest.fixture(autouse=True)
def _needs():
    pytest.importorskip("matplotlib")


def test_why_cross_entropy(tmp_path):
    printed = run("why_cross_entropy", tmp_path).stdout.splitlines()
    quadratic = [numbers(line) for line in printed if line.startswith("quadratic")]
    cross_entropy = [numbers(line) for line in printed if line.startswith("cross-entropy")]
    # First output, gradient there, steps until the output is below one half, output after 300 steps.
    expected = [(0.82, 0.122, 36, 0.09), (0.98, 0.017, 232, 0.20)]
    np.testing.assert_allclose(quadratic, expected, rtol=0, atol=1e-9)
    assert [row[:2] for row in cross_entropy] == [[0.82, 0.818], [0.98, 0.982]]
    assert cross_entropy[1][2] < 0.6 * quadratic[1][2]  # no plateau where the start is worst
    np.testing.assert_allclose([row[3] for row in cross_entropy], [0.10, 0.14], rtol=0, atol=1e-9)
    check_picture(tmp_path / "why_cross_entropy.png")


def test_train_binary_classifier(tmp_path):
    pytest.importorskip("sklearn")
    finished = run("train_binary_classifier", tmp_path, "--plot", "losses.png")
    lines = finished.stdout.splitlines()
    rows = np.array([numbers(line) for line in lines if re.match(r" +\d+ +\d", line)])
    assert rows[0].tolist() == [0, 0.6931, 0.6931]
    assert (np.diff(rows[:, 1]) < 0).all()  # training loss
    assert (np.diff(rows[:4, 2]) < 0).all()  # validation loss: steep at first,
    assert rows[-1, 2] < 0.25  # then low
    loss, accuracy, majority = numbers(next(line for line in lines if line.startswith("test loss")))
    assert loss < 0.25
    assert accuracy > 0.92
    assert 0.5 <= majority < 0.55
    assert "train:" not in finished.stderr, "a progress bar without a terminal"
    check_picture(tmp_path / "losses.png")


TRACKERS = ("wandb", "tensorboard", "mlflow")


def track(folder, *arguments):
    """Run the example; return its table: step, training loss, validation loss, validation accuracy."""
    pytest.importorskip("sklearn")
    finished = run("track_training", folder, *arguments)
    assert "train:" not in finished.stderr, "a progress bar without a terminal"
    check_picture(folder / "track_training.png")
    lines = finished.stdout.splitlines()
    return np.array([numbers(line) for line in lines if re.match(r" *\d+ +\d", line)]), finished.stdout


def test_track_training_without_a_tracker(tmp_path):
    table, printed = track(tmp_path, "--tracker", "none")
    assert table[0, :3].tolist() == [0, 2.3026, 2.3026]
    assert (np.diff(table[:, 1:3], axis=0) < 0).all()
    assert table[-1, 1] < table[-1, 2] < 0.4
    assert table[-1, 3] > 0.9
    assert "Tracker: none\n" in printed
    assert [path.name for path in tmp_path.iterdir()] == ["track_training.png"]


def read_tensorboard(folder):
    """Return {step: validation loss}, as logged."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    events = EventAccumulator(str(folder), {"tensors": 0}).Reload()
    return {
        event.step: make_ndarray(event.tensor_proto).item() for event in events.Tensors("validation/loss")
    }


def read_mlflow(folder):
    import sqlite3

    connection = sqlite3.connect(folder / "mlflow.db")
    rows = dict(connection.execute("SELECT step, value FROM metrics WHERE key = 'validation/loss'"))
    connection.close()
    return rows


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # what TensorBoard imports
@pytest.mark.parametrize("tracker", TRACKERS)
def test_track_training_logs_what_it_prints(tracker, tmp_path):
    there = [name for name in TRACKERS if importlib.util.find_spec(name)]
    if tracker not in there:
        pytest.skip(f"{tracker} is not installed")
    if tracker == "mlflow" and not importlib.util.find_spec("sqlalchemy"):
        pytest.skip("this MLflow has no database: pip install mlflow")
    # The first that is installed is the default.
    arguments = [] if tracker == there[0] else ["--tracker", tracker]
    table, printed = track(tmp_path, *arguments)
    folder = tmp_path / "runs"
    assert f"Tracker: {tracker}, in {folder}\n" in printed
    if tracker == "wandb":
        (log,) = folder.glob("wandb/offline-run-*/run-*.wandb")
        content = log.read_bytes()
        for name in (b"training/loss", b"validation/loss", b"validation/top_5"):
            assert content.count(name) >= 31
        return
    logged = {"tensorboard": read_tensorboard, "mlflow": read_mlflow}[tracker](folder)
    assert sorted(logged) == list(range(0, 301, 10))
    for step, _, loss, _ in table:
        assert logged[step] == pytest.approx(loss, abs=5.1e-5)


def test_a_tracker_that_is_not_installed_is_named(tmp_path):
    pytest.importorskip("sklearn")
    missing = [name for name in TRACKERS if not importlib.util.find_spec(name)]
    if not missing:
        pytest.skip("all trackers are installed")
    finished = run("track_training", tmp_path, "--tracker", missing[0], expect=1)
    assert finished.stderr == f"no {missing[0]} here: pip install {missing[0]}\n"


def test_textbook_numbers(tmp_path):
    printed = run("textbook_numbers", tmp_path).stdout
    found = re.findall(r"^  (.*?) +(-?\d+\.\d+) (nats|bits)$", printed, re.MULTILINE)
    expected = [
        ("-log 0.619", -np.log(0.619), "nats"),
        ("log q, one-hot", -np.log(0.619), "nats"),
        ("log q, class 1", -np.log(0.619), "nats"),
        ("fair coin", 1.0, "bits"),
        ("knowing nothing", np.log(2), "nats"),
        ("9 times in 10", 0.9 * np.log2(10 / 9) + 0.1 * np.log2(10), "bits"),
        ("tails", np.log2(10), "bits"),
        ("sky, there", -np.log(0.9), "nats"),
        ("sea, there", -np.log(0.8), "nats"),
        ("boat, there", -np.log(0.3), "nats"),
        ("dog, not there", -np.log(0.9), "nats"),
        ("n-hot", -np.log(0.9 * 0.8 * 0.3 * 0.9) / 4, "nats"),
        ("from probabilities", -np.log(0.9 * 0.8 * 0.3 * 0.9) / 4, "nats"),
        ("cross-entropy H(p, q)", 1.75, "bits"),
        ("entropy H(p)", 1.5, "bits"),
        ("KL(p, q)", 0.25, "bits"),
        ("xent_rs.kl_divergence", 0.25, "bits"),
    ]
    assert len(found) == len(expected)
    for (text, value, unit), (part, number, in_unit) in zip(found, expected, strict=True):
        assert part in text
        assert unit == in_unit
        assert float(value) == pytest.approx(number, abs=5.1e-5), text
    assert float(found[0][1]) == pytest.approx(0.479, abs=1e-3)  # the textbook's, cut
    check_picture(tmp_path / "textbook_numbers.png")


#: What each framework of the tutorial needs besides this package.
NETWORKS = {"Keras": ("keras", "tensorflow"), "PyTorch": ("torch",)}


def hide(folder, *names):
    """Return a PYTHONPATH on which these cannot be imported."""
    for name in names:
        (folder / f"{name}.py").write_text(f"raise ImportError('{name} is not here')")
    return os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))


@pytest.mark.parametrize(
    "hidden", [None, *(pytest.param(name, marks=pytest.mark.exhaustive) for name in NETWORKS)]
)
def test_tutorial_networks(hidden, tmp_path):
    pytest.importorskip("sklearn")
    trained = [
        framework
        for framework, needed in NETWORKS.items()
        if framework != hidden and all(map(importlib.util.find_spec, needed))
    ]
    if not trained:
        pytest.skip("nothing is trained without PyTorch, or Keras and TensorFlow")
    paths = hide(tmp_path, *(NETWORKS[hidden][:1] if hidden else ()))
    finished = run("tutorial_networks", tmp_path, "--epochs", "2", PYTHONPATH=paths)
    lines = finished.stdout.splitlines()
    left_out = [line.split()[0] for line in lines if re.match(r"\w+ is left out: .*\w", line)]
    assert left_out == [framework for framework in NETWORKS if framework not in trained]
    tables = np.array([numbers(line) for line in lines if re.match(r" +\d+ +\d", line)])
    assert [line for line in lines if line in NETWORKS] == trained
    for epochs in np.split(tables, len(trained)):  # epoch; training loss, its own and ours; validation loss
        assert epochs[:, 0].tolist() == [1, 2]
        np.testing.assert_allclose(epochs[:, 1::2], epochs[:, 2::2], rtol=0, atol=1e-5)
        assert (epochs[1, 1:] < 0.8 * epochs[0, 1:]).all(), "it does not learn"
    np.testing.assert_allclose(tables[:2], tables[-2:], rtol=0, atol=1e-3)  # all have the same to learn
    differences = [float(line.split()[-1]) for line in lines if line.startswith("largest difference: ")]
    assert len(differences) == len(trained)
    assert max(differences) < 1e-5
    assert min(differences) > 0, "one loss was used twice"
    assert "%|" not in finished.stderr, "a progress bar without a terminal"
    check_picture(tmp_path / "tutorial_networks.png")


def test_tutorial_networks_without_a_framework(tmp_path):
    pytest.importorskip("sklearn")
    finished = run(
        "tutorial_networks", tmp_path, "--epochs", "1", expect=1, PYTHONPATH=hide(tmp_path, "keras", "torch")
    )
    assert finished.stdout == "Keras is left out: keras is not here\nPyTorch is left out: torch is not here\n"
    assert finished.stderr == "nothing to train with: pip install torch, or keras and tensorflow\n"


def test_without_matplotlib_the_numbers_are_there(tmp_path):
    finished = run("textbook_numbers", tmp_path, expect=1, PYTHONPATH=hide(tmp_path, "matplotlib"))
    assert "fair coin" in finished.stdout
    assert finished.stderr == "no picture (matplotlib is not here): pip install matplotlib\n"


@pytest.mark.parametrize("name", sorted(path.stem for path in EXAMPLES.glob("*.py")))
def test_help_says_what_one_learns(name, tmp_path):
    said = run(name, tmp_path, "--help").stdout
    assert f"(default: {name}.png)" in said
    assert len(said.splitlines()) > 10


def test_compare_rounded_weights(tmp_path):
    pytest.importorskip("sklearn")
    printed = run("compare_rounded_weights", tmp_path).stdout.splitlines()
    rows = {line.split()[0]: numbers(line) for line in printed[1:4]}
    divergences = [float(line.split()[1]) for line in printed[1:4]]
    # Each rounding is coarser than the one before by more than ten times.
    assert list(rows) == ["float16", "int8", "int4"]
    assert 0 < 100 * divergences[0] < 10 * divergences[1] < divergences[2] < 0.1
    assert (
        "$ xent-rs compare reference.npy int4.npy targets.npy --plot compare_rounded_weights.png" in printed
    )
    report = next(line for line in printed if line.startswith("KL(reference || candidate)"))
    assert numbers(report)[0] == pytest.approx(divergences[2], rel=0.01)
    # The report that README shows; its numbers depend on the version of scikit-learn.
    shown = (EXAMPLES.parent / "README.md").read_text(encoding="utf-8")
    shown = shown[shown.index("reference reference.npy:") :].partition("\n```")[0].splitlines()
    begin = printed.index(shown[0])
    for line, of_readme in zip(printed[begin : begin + len(shown)], shown, strict=True):
        assert re.sub(r"[-+]?[\d.]+", "#", line).split() == re.sub(r"[-+]?[\d.]+", "#", of_readme).split()
    image = pytest.importorskip("matplotlib.image").imread(tmp_path / "compare_rounded_weights.png")
    assert (np.abs(image[..., :3] - ORANGE).max(axis=-1) < 0.02).mean() > 0.05
