"""``xent-rs bench``: what it measures, that it checks answers first, and what it shows."""

import json
import pkgutil
import struct
import time
from types import SimpleNamespace

import numpy as np
import pytest
import xent_rs
from xent_rs import _xent_rs
from xent_rs.cli import bench, benchmark, main
from xent_rs.cli.benchmark import contenders, measuring, peers, reference, tables, timing
from xent_rs.cli.benchmark.cases import GRADIENT, LOSS, Case
from xent_rs.cli.benchmark.contenders import CONTENDERS, Contender, NotApplicable
from xent_rs.cli.benchmark.measuring import Settings

NUMPY_ONLY = [contender for contender in CONTENDERS if contender.package in ("xent_rs", "numpy")]


def run(capsys, *arguments):
    """Run in this process; return status, standard output and standard error."""
    status = main([str(argument) for argument in arguments])
    return status, *capsys.readouterr()


@pytest.fixture(autouse=True)
def _same_configuration():
    """A run may set the number of threads, as it is asked to; the level is as it was."""
    count, level = xent_rs.get_num_threads(), _xent_rs.simd_level()
    yield
    xent_rs.set_num_threads(count)
    assert _xent_rs.simd_level() == level


def test_the_comparison_is_all_that_is_installed():
    """What else is measured is for those who work on the package, and stays in benches/."""
    found = {module.name for module in pkgutil.iter_modules(benchmark.__path__)}
    expected = {"cases", "contenders", "measuring", "peers", "plot", "reference", "tables", "timing"}
    assert found == expected


# the comparison with peers


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_peers(capsys, monkeypatch, dtype):
    monkeypatch.setattr(bench, "CONTENDERS", NUMPY_ONLY)
    arguments = ["--shape", "33x70", "9x1001", "--dtype", dtype, "--repeats", "1", "--threads", "2"]
    status, output, errors = run(capsys, "bench", *arguments, "--json")
    assert (status, errors) == (0, "")
    found = json.loads(output)
    assert set(found) == {"environment", "results", "skipped"}
    assert found["environment"]["num_threads"] == 2
    assert found["environment"]["versions"] == {"xent_rs": xent_rs.__version__, "numpy": np.__version__}
    assert {(result["rows"], result["classes"]) for result in found["results"]} == {(33, 70), (9, 1001)}
    names = [
        (result["job"], result["contender"]) for result in found["results"][: len(found["results"]) // 2]
    ]
    sixteen = dtype in ("float16", "bfloat16")
    assert names == [(c.job, c.name) for c in NUMPY_ONLY if not (sixteen and c.name == "NumPy, out=")]
    assert len(found["skipped"]) == (1 if sixteen else 0)
    for result in found["results"]:
        assert result["suite"] == "peers"
        assert 0 < result["minimum"] <= result["median"]
        assert result["of_roof"] == result["roof"] / result["median"]
        assert 0 <= result["loss_error"] <= result["loss_tolerance"]
        if result["job"] == GRADIENT:
            assert 0 <= result["gradient_error"] <= result["gradient_tolerance"] < 0.02


def test_peers_for_people(capsys, monkeypatch):
    monkeypatch.setattr(bench, "CONTENDERS", NUMPY_ONLY)
    status, output, errors = run(capsys, "bench", "--shape", "33x70", "--repeats", "1")
    assert (status, errors) == (0, "")
    for text in (
        "loss, 33 x 70 float32; the roof is",
        "xent_rs, new array",
        "NumPy, out=",
        f"numpy {np.__version__}",
    ):
        assert text in output


def test_other_levels(capsys, monkeypatch):
    monkeypatch.setattr(bench, "CONTENDERS", NUMPY_ONLY[:2])
    status, output, _ = run(capsys, "bench", "--shape", "33x70", "--repeats", "1", "--levels", "--json")
    assert status == 0
    found = [(result["contender"], result.get("level")) for result in json.loads(output)["results"]]
    level = _xent_rs.simd_level()
    others = [each for each in _xent_rs.simd_levels() if each != level]
    assert found == [("xent_rs", level), *((f"xent_rs, {each}", each) for each in others), ("NumPy", None)]


def test_each_level_runs_at_that_level():
    seen = []

    def make(case):
        return lambda: seen.append(_xent_rs.simd_level()) or case.loss

    contender = Contender("xent_rs", LOSS, make, lambda case: (1.0, 1.0), "xent_rs")
    peers.compare("peers", [(3, 4, "float32")], peers.with_levels([contender]), 1)
    assert set(seen) == set(_xent_rs.simd_levels())


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda loss, gradient: loss * (1 + 3e-7), "the loss is off by"),
        (lambda loss, gradient: np.nan, "the loss is off by nan"),
        (lambda loss, gradient: (loss, gradient * (1 + 2e-6)), "the gradient is off by"),
        (
            lambda loss, gradient: (
                loss,
                np.where(np.arange(gradient.size).reshape(gradient.shape) == 40, np.nan, gradient),
            ),
            "the gradient is off by nan",
        ),
        (lambda loss, gradient: (loss, 0 * gradient), "the gradient is off by 1;"),
    ],
)
def test_a_wrong_answer_is_not_timed(answer, message):
    def make(case):
        gradient = case.reference.gradient(slice(0, case.rows)).astype(np.float32)
        return lambda: answer(case.loss, gradient)

    contender = Contender("xent_rs", LOSS, make, contenders.promised, "xent_rs")
    with pytest.raises(ArithmeticError, match=f"^xent_rs, 6 x 10 float32: {message}"):
        peers.compare("peers", [(6, 10, "float32")], [contender], 1)


def test_a_wrong_answer_of_a_peer_is_listed_and_not_timed():
    def make(case):
        return lambda: np.nan

    contender = Contender("NumPy", LOSS, make, lambda case: (0.1, 0.1), "numpy")
    results, skips = peers.compare("peers", [(6, 10, "float32")], [contender], 1)
    assert results == []
    reason = "NumPy, 6 x 10 float32: the loss is off by nan; expected at most 0.1"
    assert skips == [{"contender": "NumPy", "reason": reason}]


def test_what_is_skipped_is_listed():
    def refuse(case):
        raise NotApplicable("not today")

    refusing = [
        Contender("A", LOSS, refuse, lambda case: (1, 1), "numpy"),
        Contender("B", LOSS, refuse, lambda case: (1, 1), "there-is-no-such-distribution"),
    ]
    settings = Settings(refusing, repeats=1, shapes=[(3, 4), (4, 4)])
    report = measuring.measure([peers.run], settings)
    assert report["results"] == []
    assert report["skipped"] == [
        {"contender": "there-is-no-such-distribution", "reason": "not installed"},
        {"contender": "A", "reason": "not today"},
    ]


def test_a_fault_of_this_package_is_not_skipped():
    def fail(case):
        raise xent_rs.InternalError("internal error: what; please report it")

    contender = Contender("A", LOSS, fail, lambda case: (1, 1), "xent_rs")
    with pytest.raises(xent_rs.InternalError):
        peers.compare("peers", [(3, 4, "float32")], [contender], 1)


@pytest.mark.parametrize("package", ["scipy", "scikit-learn", "torch", "jax"])
@pytest.mark.filterwarnings("default")
def test_installed_peers(package):
    some = [contender for contender in CONTENDERS if contender.package == package]
    if some[0].version() is None:
        pytest.skip(f"{package} is not installed")
    # Two classes: an entry of the gradient may be next to 0.
    for shape in ((33, 70, "float32"), (300, 2, "float32"), (6, 300, "float64")):
        results, skips = peers.compare("peers", [shape], some, 1)
        assert len(results) + len(skips) == len(some)
        assert results


# pictures


def assert_picture(file):
    content = file.read_bytes()
    assert content.startswith(b"\x89PNG")
    width, height = struct.unpack(">II", content[16:24])
    assert width > 600
    assert height > 300


def test_plot(tmp_path, capsys, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(bench, "CONTENDERS", NUMPY_ONLY)
    file = tmp_path / "bench.png"
    arguments = ["--shape", "33x70", "9x1001", "--repeats", "1", "--plot", file]
    status, _, errors = run(capsys, "bench", *arguments)
    assert (status, errors) == (0, "")
    assert_picture(file)


def test_plot_into_a_missing_directory_is_one_line(tmp_path, capsys, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(bench, "CONTENDERS", NUMPY_ONLY[:1])
    file = tmp_path / "missing" / "bench.png"
    status, _, errors = run(capsys, "bench", "--shape", "33x70", "--repeats", "1", "--plot", file)
    assert (status, errors) == (1, f"xent-rs: error: {file}: No such file or directory\n")


# the parts


def test_a_roof_of_several_reads(monkeypatch):
    """Each roof counts as often as the entry says."""
    now = [0.0]

    def takes(seconds):
        def call():
            now[0] += seconds

        return call

    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: now[0], sleep=lambda _: None))
    roofs = {"read": takes(0.01), "copy": takes(0.03)}

    def entry(name, roof):
        prepared = takes(0.01), lambda answer: {}
        return measuring.Entry({"contender": name}, lambda: prepared, roof)

    entries = [entry("one", {"read": 1.0}), entry("two", {"copy": 1.0, "read": 1.0})]
    (one, two), skips = measuring.take(entries, roofs, 1, lambda: None)
    assert skips == []
    assert one["roof"] == pytest.approx(0.01)
    assert two["roof"] == pytest.approx(0.04)
    assert two["of_roof"] == two["roof"] / two["median"]


def test_reference_and_numpy_agree():
    random = np.random.default_rng(0)
    logits, targets = random.standard_normal((50, 12)), random.integers(12, size=50)
    wanted = reference.Reference(logits, targets)
    loss, gradient = reference.numpy_loss_and_gradient(logits, targets)
    assert reference.numpy_loss(logits, targets) == pytest.approx(wanted.losses.mean(), rel=1e-14)
    assert loss == pytest.approx(wanted.losses.mean(), rel=1e-14)
    np.testing.assert_allclose(gradient, wanted.gradient(slice(0, 50)), rtol=1e-12, atol=1e-15)
    assert wanted.distance == pytest.approx(-50 * gradient[np.arange(50), targets].max(), rel=1e-12)
    # The derivative, by central differences.
    step = 1e-6
    for row, column in [(0, 0), (7, targets[7]), (49, 11)]:
        up, down = logits.copy(), logits.copy()
        up[row, column] += step
        down[row, column] -= step
        slope = (reference.numpy_loss(up, targets) - reference.numpy_loss(down, targets)) / (2 * step)
        assert gradient[row, column] == pytest.approx(slope, abs=1e-9)
    out = np.empty_like(logits)
    assert reference.numpy_loss_and_gradient(logits, targets, out=out)[1] is out
    np.testing.assert_array_equal(out, gradient)


def test_the_roofs_move_every_byte():
    case = Case.random(7, 9, "float16")  # 126 bytes: 31 times four, and two that are too few
    roofs = case.roofs()
    roofs["copy"]()
    whole = case.logits.reshape(-1).view(np.uint8)[:124].view(np.float32)
    np.testing.assert_array_equal(case.out.reshape(-1).view(np.uint8)[:124].view(np.float32), whole / 2)
    assert roofs["read"]() == int(whole.view(np.uint32).sum(dtype=np.uint64)) % 2**32


def test_the_roof_of_a_copy_needs_two_arrays():
    """Threads would write what others read."""
    array = np.zeros(100, np.float32)
    for one, other in ((array[:-1], array[1:]), (array[1:], array[:-1]), (array, array)):
        with pytest.raises(ValueError, match=r"^out overlaps array; expected memory apart from it$"):
            _xent_rs.memory_copy(one, other)
    _xent_rs.memory_copy(array[:50], array[50:])


def test_timing_takes_turns():
    order = []
    calls = {name: lambda name=name: (order.append(name), time.sleep(0.006)) for name in "abc"}
    done = []
    samples = timing.interleaved(calls, 2, lambda: done.append(1))
    # Each sample is two untimed calls and a timed one; before them one of each to see how long they take.
    assert "".join(order) == "aabbcc" + "aaabbbccc" + "cccbbbaaa"
    assert {name: len(seconds) for name, seconds in samples.items()} == {"a": 2, "b": 2, "c": 2}
    assert all(second >= 0.006 for seconds in samples.values() for second in seconds)
    assert len(done) == 6


def test_timing_repeats_fast_calls():
    (seconds,) = timing.interleaved({"fast": lambda: None}, 1)["fast"]
    assert 0 < seconds < 1e-5


def test_timing_repeats_slow_calls_less(monkeypatch):
    monkeypatch.setattr(timing, "_SLOW_SECONDS", 0.1)
    done = []
    calls = {"slow": lambda: time.sleep(0.11), "fast": lambda: time.sleep(0.006)}
    samples = timing.interleaved(calls, 5, lambda: done.append(1))
    assert (len(samples["slow"]), len(samples["fast"]), len(done)) == (2, 5, 10)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.109, "109 ms"), (7.82e-3, "7.82 ms"), (4.51e-6, "4.51 us"), (1.5e-4, "0.150 ms"), (1.225, "1225 ms")],
)
def test_times_for_people(seconds, text):
    assert tables.time(seconds) == text


def test_the_roof_of_one_number_and_of_an_odd_number_of_halves():
    one = np.array([1.5], np.float32)
    assert isinstance(_xent_rs.memory_read(one), int)
    out = np.zeros_like(one)
    _xent_rs.memory_copy(one, out)
    assert out == 0.75
    with pytest.raises(ValueError, match="of 4 bytes or a multiple"):
        _xent_rs.memory_read(np.zeros(3, np.float16))
