"""``python -m benches``: the suites that are not installed, each run once and small, and what they check."""

import contextlib
import json
import struct
from dataclasses import replace

import numpy as np
import pytest
import xent_rs
from xent_rs.cli import bench
from xent_rs.cli.benchmark.cases import GRADIENT, JOBS, LOSS
from xent_rs.cli.benchmark.contenders import CONTENDERS
from xent_rs.cli.benchmark.measuring import Settings

from benches import head, linear, tables
from benches.__main__ import main
from benches.suites import (
    SUITES,
    axis1,
    beside,
    binary,
    comparison,
    growth,
    kinds,
    memory,
    options,
    threads,
)

from .comparison_oracle import llama

NUMPY_ONLY = [contender for contender in CONTENDERS if contender.package in ("xent_rs", "numpy")]


@pytest.fixture(autouse=True)
def _numpy_only(monkeypatch):
    monkeypatch.setattr(bench, "CONTENDERS", NUMPY_ONLY)


def run(capsys, *arguments):
    """Run in this process; return status, standard output and standard error."""
    status = main([str(argument) for argument in arguments])
    return status, *capsys.readouterr()


@pytest.mark.sampled(3)
@pytest.mark.parametrize("suite", [suite for suite in SUITES if suite != "peers"])
def test_a_suite(capsys, tmp_path, suite):
    pytest.importorskip("matplotlib")
    from benches import plot

    file = tmp_path / "bench.png"
    arguments = ["--quick", "--repeats", "1", "--suite", suite]
    drawn = ["--plot", file] if suite in plot.PICTURES else []
    status, output, errors = run(capsys, *arguments, "--json", *drawn)
    assert (status, errors) == (0, "")
    report = json.loads(output)
    if report["skipped"] and not report["results"]:
        pytest.skip(report["skipped"][0]["reason"])
    assert report["results"]
    for result in report["results"]:
        assert result["suite"] == suite
        assert all(value is not None for value in result.values())
        errors = {key: value for key, value in result.items() if key.endswith("_error")}
        assert errors
        for key, value in errors.items():
            assert value <= result[key.replace("_error", "_tolerance")]
        if suite != "memory":
            assert 0 < result["minimum"] <= result["median"]
            assert result["p95" if suite == "beside" else "roof"] > 0
    if drawn:
        assert_picture(file)
    (*_, (title, lines)) = tables.tables(report)
    assert title
    assert len({len(line) for line in lines}) == 1
    assert len(lines) > 1


def test_the_options_compare_with_the_plain_loss():
    shape = {"rows": 4, "classes": 8, "dtype": "float32", "job": LOSS}
    results = options.with_ratios(
        [
            {**shape, "contender": "plain", "median": 2.0, "roof": 1.0},
            {**shape, "contender": "probabilities", "median": 5.0, "roof": 2.0},
        ]
    )
    # Twice the bytes: one second of the five is theirs.
    assert [(result["ratio"], result["beyond"]) for result in results] == [(1.0, 1.0), (2.5, 2.0)]


@pytest.mark.parametrize("task", options.TASKS, ids=lambda task: f"{task.name}, {task.job}")
def test_each_option_is_checked(task):
    """The right answer is accepted, and one that is off in the sixth digit is not."""
    call, check = task.prepare(options.Material.random(20, 30, "float32"))
    answer = call()
    check(answer)
    with pytest.raises(ArithmeticError, match="is off by"):
        check(scaled(answer, 1 + 3e-6))
    if isinstance(answer, tuple) and not hasattr(answer, "_fields"):
        for position in range(1, len(answer)):
            one = [scaled(part, 1 + 1e-5) if at == position else part for at, part in enumerate(answer)]
            with pytest.raises(ArithmeticError, match=r"(gradient|hessian) is off by"):
                check(tuple(one))


def scaled(answer, factor):
    if hasattr(answer, "loss"):
        return replace(answer, loss=answer.loss * factor)
    if hasattr(answer, "_replace"):
        return answer._replace(logsumexp=answer.logsumexp * factor)
    if isinstance(answer, tuple):
        return (answer[0] * factor, *answer[1:])
    return answer * factor


def test_growth_goes_as_far_as_the_memory(monkeypatch):
    monkeypatch.setattr(growth, "_available_memory", lambda: (1 << 30) + 8 * 10**5)
    results, skips = growth.run(Settings(NUMPY_ONLY, repeats=1, quick=True))
    assert {result["rows"] * result["classes"] for result in results} == {96_000, 100_000}
    assert skips == [
        {"contender": "growth to 1,000,000 elements", "reason": "takes 1.1 GB of memory; 1.1 are free"}
    ]


def test_growth_walks_over_all_of_the_memory():
    """Each call takes the next window."""
    calls = [lambda at=at: at for at in range(3)]
    following = growth._in_turn(calls)
    assert [following() for _ in range(7)] == [0, 1, 2, 0, 1, 2, 0]


def test_threads_are_set_and_given_back():
    xent_rs.set_num_threads(5)
    results, _ = threads.run(Settings(NUMPY_ONLY, repeats=1, quick=True))
    assert xent_rs.get_num_threads() == 5
    assert {result["threads"] for result in results} == {1, 2, 4, 5}
    for result in results:
        if result["threads"] == 5:
            assert result["of_full_roof"] == result["of_roof"]


def test_memory_sees_what_a_call_takes():
    """A new gradient is the size of the logits; NumPy makes its own copy even for the loss."""
    results, _ = memory.run(Settings(NUMPY_ONLY, repeats=1, quick=True))
    if not results:
        pytest.skip("only on Linux")
    above = {(result["contender"], result["job"]): result["above"] for result in results}
    size = 4 * results[0]["rows"] * results[0]["classes"]
    assert above["xent_rs", LOSS] < size / 4
    assert above["xent_rs, out=", GRADIENT] < size / 4
    assert 0.9 * size < above["xent_rs, new array", GRADIENT] < 1.5 * size
    assert 0.9 * size < above["NumPy", LOSS]


def test_a_probe_that_fails_says_why():
    with pytest.raises(RuntimeError, match=r"^a measurement of memory ended with status 1: ValueError: .*"):
        memory._probe(-1, 10, 0)


def test_beside_others_with_all_threads_and_with_one(monkeypatch):
    """In turns, each call after what comes before it, and never less company for one thread than for all."""
    said = []

    @contextlib.contextmanager
    def meanwhile(number):
        said.append((xent_rs.get_num_threads(), number))
        yield
        said.append(said.count("before"))

    monkeypatch.setattr(beside, "_CALLS", 4)
    company = beside.Company("a test", (30, 40), lambda: said.append("before"), meanwhile)
    xent_rs.set_num_threads(3)
    results = beside.take(company, 3, 2, lambda: None)
    assert xent_rs.get_num_threads() == 3
    assert [each for each in said if each != "before"] == [(3, 1), 4, (1, 3), 8, (1, 3), 12, (3, 1), 16]
    assert [(result["threads"], result["samples"]) for result in results] == [(3, 8), (1, 8)]
    for result in results:
        assert result["minimum"] <= result["median"] <= result["p95"]


def test_beside_others_needs_two_threads():
    xent_rs.set_num_threads(1)
    results, skips = beside.run(Settings(NUMPY_ONLY, repeats=1, quick=True))
    assert (results, skips) == ([], [{"contender": "beside", "reason": "there is but one thread"}])


@pytest.mark.parametrize("images", [None, (2, 3, 5)], ids=["rows", "images"])
@pytest.mark.parametrize("job", JOBS)
@pytest.mark.parametrize("kind", kinds.KINDS)
def test_each_kind_is_checked(kind, job, images):
    """An answer of this package that is off in the fifth digit is refused, of a peer in the third."""
    problem = kinds.Problem(options.Material.random(30, 7, "float32"), kind, images)
    assert problem.logits.shape == ((30, 7) if images is None else (2, 7, 3, 5))
    answer = kinds.ours(problem, job)()
    for package, digits in (("xent_rs", 1e-5), ("torch", 1e-3)):
        problem.check(package, answer)
        with pytest.raises(ArithmeticError, match=f"^{package}, {kind}, 30 x 7 float32: the mean is off by"):
            problem.check(package, scaled(answer, 1 + digits))
        if job == GRADIENT:
            with pytest.raises(ArithmeticError, match="the gradient is off by"):
                problem.check(package, (answer[0], answer[1] * np.float32(1 + digits)))


@pytest.mark.parametrize("package", ["torch", "jax"])
@pytest.mark.parametrize("kind", kinds.KINDS)
def test_peers_mean_the_same_by_each_kind(kind, package):
    pytest.importorskip(package)
    problem = kinds.Problem(options.Material.random(30, 7, "float32"), kind, (2, 3, 5))
    for name, job, of_package, make in kinds._WAYS:
        if of_package == package and "compiled" not in name:
            problem.check(package, make(problem, job)())


def test_images_are_squares_of_about_as_many_elements(monkeypatch):
    shapes = []
    monkeypatch.setattr(kinds, "run", lambda suite, found, *rest: shapes.extend(found))
    axis1.run(Settings(NUMPY_ONLY, repeats=1))
    assert [classes for _, classes, _ in shapes] == [2, 3, 5, 21, 150, 1000, 10_000]
    for rows, classes, (number, height, width) in shapes:
        assert rows == number * height * width
        assert height == width
        assert 0.9 < rows * classes / 2**24 < 1.1


def test_a_wrong_binary_loss_is_not_timed():
    case = binary.Material.random(5, 6, "float32")
    call, check = binary.prepare(case, "xent_rs", lambda case: lambda: 0.7, True)
    with pytest.raises(ArithmeticError, match=r"^xent_rs, 5 x 6 float32: the loss is off by"):
        check(call())


@pytest.mark.parametrize("way", comparison.WAYS, ids=lambda way: way[0])
@pytest.mark.parametrize("kind", comparison.KINDS)
def test_each_figure_of_a_comparison_is_checked(kind, way):
    """One of this package that is off by 1e-5 is refused, of a peer by 1e-3."""
    _, package, make = way
    pytest.importorskip(package)
    problem = comparison.Problem(comparison.Case.random(50, 7, "float32"), kind)
    answer = make(problem)()
    problem.check(package, answer)
    figures = answer if isinstance(answer, dict) else answer.as_dict()
    for figure, value in problem.expected.items():
        of = next(of for of in ("kl", "same_top", "loss", "delta_p") if of in figure)
        message = f"^{package}, {kind}, 50 x 7 float32: the {of} is off by"
        with pytest.raises(ArithmeticError, match=message):
            problem.check(package, {**figures, figure: value + (1e-5 if package == "xent_rs" else 1e-3)})
    with pytest.raises(ArithmeticError, match="the same_top is off by nan"):
        problem.check(package, {**figures, "same_top": float("nan")})


def test_a_comparison_in_float64_is_that_of_llama_cpp():
    """What answers are compared with."""
    problem = comparison.Problem(comparison.Case.random(50, 7, "float32"), "another model")
    expected = llama(problem.reference, problem.candidate, problem.targets)
    figures = problem.expected
    names = ("kl", "same_top", "reference_loss", "candidate_loss", "loss_change", "delta_p", "delta_p_rms")
    for name in names:
        assert (figures[name], figures[f"{name}_error"]) == pytest.approx(expected[name], rel=1e-9), name
    for name in ("kl", "delta_p"):
        assert figures[f"{name}_min"] == pytest.approx(expected[f"{name}_min"])
        assert figures[f"{name}_max"] == pytest.approx(expected[f"{name}_max"])
        quantiles = [value for key, value in figures.items() if key.startswith(f"{name}_q")]
        assert quantiles == pytest.approx([*expected[f"{name}_quantiles"].values()])


# pictures


def assert_picture(file):
    content = file.read_bytes()
    assert content.startswith(b"\x89PNG")
    width, height = struct.unpack(">II", content[16:24])
    assert width > 600
    assert height > 300


def test_plot_of_several_suites(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    arguments = ["--quick", "--repeats", "1", "--suite", "binary", "threads", "smallest"]
    status, _, errors = run(capsys, *arguments, "--plot", tmp_path / "bench.png")
    assert (status, errors) == (0, "")
    assert {file.name for file in tmp_path.iterdir()} == {"bench-binary.png", "bench-threads.png"}


def test_plot_of_nothing(capsys):
    """Said before the work."""
    pytest.importorskip("matplotlib")
    with pytest.raises(SystemExit):
        run(capsys, "--suite", "smallest", "--plot", "bench.png")
    expected = "expected a suite among peers, options, binary, growth, threads, classes"
    assert capsys.readouterr().err.endswith(f"error: --plot has nothing to draw; {expected}\n")


def test_hidden_states_beside_their_products(capsys):
    assert head.main(["--features", "8", "--classes", "50", "--rows", "300", "--repeats", "1"]) == 0
    title, header, *lines = capsys.readouterr().out.splitlines()
    assert title.startswith("300 rows, 8 features, 50 classes, ")
    assert header.split("  ")[-1] == "compare (products twice)"
    assert [line.split()[0] for line in lines] == ["float32", "bfloat16", "float16"]
    assert all(float(line.split()[-1]) > 0 for line in lines)


def test_the_loss_of_hidden_states_is_timed_beside_its_products(capsys):
    assert linear.main(["--quick", "--repeats", "1"]) == 0
    printed = capsys.readouterr().out
    assert "the three products alone" in printed
    assert "300 x 8 x 500" in printed


def test_tables_of_the_loss_of_hidden_states():
    def result(way, median=None, above=None):
        taken = {"median": median} if above is None else {"above_inputs": above}
        shape = {"rows": 3, "features": 4, "classes": 5, "dtype": "float32"}
        return {"contender": way.name, "library": way.library, **shape, **taken}

    times = [result(way, 0.5 * (number + 1)) for number, way in enumerate(linear.WAYS)]
    memory = [result(way, above=number * 10**6) for number, way in enumerate(linear.WAYS)]
    (_, of_times), (_, of_memory) = linear.tables({"results": [*times, *memory]})
    assert of_times[0] == ["", "3 x 4 x 5"]
    assert [line[1] for line in of_times[1:]] == [
        *("0.500", "1.00 (2.00)", "1.50 (3.00)"),
        *("2.00", "2.50 (1.25)", "3.00 (1.50)"),
    ]
    assert [line[0] for line in of_memory[1:]] == [way.name for way in linear.WAYS[1:]]
