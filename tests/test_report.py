"""What stands behind the figures of README and docs/performance.md: the records, the goals and the guard."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from benches import goals, guard, report
from benches.suites import options

ROOT = Path(__file__).parent.parent

has_portable = pytest.mark.skipif(
    guard.PORTABLE not in guard._xent_rs.simd_levels(), reason="no portable kernels"
)


@pytest.fixture
def checkout(tmp_path):
    """A copy of the pages, and of no record."""
    (tmp_path / "docs").mkdir()
    for page in ("README.md", "docs/performance.md"):
        shutil.copy(ROOT / page, tmp_path / page)
    return tmp_path


# pages


@has_portable
@pytest.mark.exhaustive
def test_a_record_is_shown_and_checked(checkout, capsys, monkeypatch):
    pytest.importorskip("matplotlib")
    # On one thread: where CPUs are few, those of peers spin and take them from each other.
    arguments = ["--json", "--quick", "--repeats", "1", "--threads", "1", "--levels"]
    arguments += ["--dtype", "float32", "float64"]
    arguments += ["--shape", "8x32000", "32x10", "--suite", "peers", "smallest", "binary", "threads"]
    monkeypatch.setenv("XENT_RS_SIMD", "portable")
    report.record(checkout, arguments)
    (path,) = (checkout / "benches" / "results").glob("*/*.json")
    assert path.name.endswith("-portable.json")
    with pytest.raises(SystemExit, match=r"^README.md does not show benches/results/"):
        report.show(checkout, check=True)
    report.show(checkout, check=False)
    report.show(checkout, check=True)
    assert len(capsys.readouterr().out.splitlines()) == 2
    readme, page = (
        (checkout / name).read_text(encoding="utf-8") for name in ("README.md", "docs/performance.md")
    )
    assert "\nXENT_RS_SIMD=portable python -m benches --json --quick" in readme
    assert "**Loss + gradient, float32 logits**" in readme
    assert "**Loss, float64 logits**" not in readme
    assert "**Loss, float64 logits**" in page
    for heading in ("Goals", "SIMD levels", "The smallest call", "Binary cross-entropy", "Threads"):
        assert f"\n## {heading}\n" in page
    for absent in ("Growth", "Memory"):
        assert f"\n## {absent}\n" not in page
    assert "| binary loss, 4 Mi elements | >= 0.8 R | " in page
    assert "\n**Where a peer is faster**" in readme
    # The picture of README belongs to the record, too.
    with (checkout / "docs" / "benchmark.png").open("ab") as picture:
        picture.write(b"?")
    with pytest.raises(SystemExit, match=r"^README.md does not show"):
        report.show(checkout, check=True)


def test_labels_of_the_first_picture_do_not_collide():
    pytest.importorskip("matplotlib")
    from xent_rs.cli.benchmark import plot

    _, record = report.records(ROOT)[0]
    results = [
        result
        for result in report.in_use(record)
        if (result["rows"], result["classes"], result["dtype"]) in report.PICTURED
    ]
    figure = plot.bars(results)
    figure.canvas.draw()
    renderer = figure.canvas.get_renderer()
    panels = [axes.get_window_extent(renderer) for axes in figure.axes]
    texts = [[text.get_window_extent(renderer) for text in axes.texts] for axes in figure.axes]
    names = [[text.get_window_extent(renderer) for text in axes.get_yticklabels()] for axes in figure.axes]
    assert len(panels) == 4
    for panel, of_panel in zip(panels, texts, strict=True):
        assert len(of_panel) > 5
        assert all(panel.x0 <= text.x0 and text.x1 <= panel.x1 + 5 for text in of_panel)
    everything = [text for of_panel in (*texts, *names) for text in of_panel]
    for i, text in enumerate(everything):
        assert not any(text.overlaps(other) for other in everything[:i])
        assert text.x0 >= 0
        assert text.x1 <= figure.bbox.x1


def test_a_typed_figure_is_found(checkout):
    pytest.importorskip("matplotlib")
    record = checkout / "benches" / "results" / "cpu" / "2026-01-01T0000.json"
    record.parent.mkdir(parents=True)
    _, newest = report.records(ROOT)[0]
    record.write_text(json.dumps(newest), encoding="utf-8")
    report.show(checkout, check=False)
    page = checkout / "docs" / "performance.md"
    text = page.read_text(encoding="utf-8")
    page.write_text(text.replace("| met |", "| met! |", 1), encoding="utf-8")
    assert "| met |" in text
    with pytest.raises(SystemExit, match=r"^docs/performance.md does not show"):
        report.show(checkout, check=True)


def kept(root, name, level, results, cpu="A CPU"):
    """Keep a record of some results."""
    path = root / "benches" / "results" / cpu / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    environment = {"cpu": cpu, "simd_level": level, "simd_levels": ["avx512", "avx2", "portable"]}
    path.write_text(json.dumps({"environment": environment, "results": results}), encoding="utf-8")


def test_the_newest_record_of_each_cpu_and_level(tmp_path):
    for name, level, cpu in (
        ("2026-01-01T0000", "avx512", "A"),
        ("2026-01-02T0000-avx2", "avx2", "A"),
        ("2026-01-03T0000-avx512", "avx512", "A"),
        ("2026-01-04T0000-avx2", "avx2", "B"),
        ("2026-01-05T0000-avx2", "avx2", "A"),
    ):
        kept(tmp_path, name, level, [], cpu)
    assert [path for path, _ in report.records(tmp_path)] == [
        "benches/results/A/2026-01-03T0000-avx512.json",
        "benches/results/A/2026-01-05T0000-avx2.json",
        "benches/results/B/2026-01-04T0000-avx2.json",
    ]


def test_records_of_cpus_of_one_name_with_different_levels(tmp_path):
    kept(tmp_path, "2026-01-01T0000-avx2", "avx2", [], "A")
    path = tmp_path / "benches" / "results" / "A" / "2026-01-01T0000-avx2.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    record["environment"]["simd_levels"] = ["avx2", "portable"]
    path.write_text(json.dumps(record), encoding="utf-8")
    kept(tmp_path, "2026-01-02T0000-avx512", "avx512", [], "A")
    found = [record["environment"]["simd_level"] for _, record in report.records(tmp_path)]
    assert found == ["avx512", "avx2"]


def test_faster_peers_are_listed(tmp_path):
    both = {"suite": "axis1", "kind": "soft targets"}
    ours = {"suite": "peers", "job": "loss + gradient"}
    kept(
        tmp_path,
        "2",
        "avx512",
        [
            peer("xent_rs", 2.0, suite="peers", level="avx512"),
            peer("xent_rs, avx2", 5.0, suite="peers", level="avx2"),
            peer("PyTorch", 3.0, suite="peers"),
            # A new array is compared with a new array.
            peer("xent_rs, out=", 2.0, **ours),
            peer("xent_rs, new array", 4.0, **ours),
            peer("JAX, new array", 3.0, **ours),
            peer("PyTorch, compiled", 3.0, **ours),
            peer("xent_rs", 2.0, classes=2, **both),
            peer("JAX", 1.0, classes=2, **both),
            peer("xent_rs", 3.0, classes=3, **both),
            peer("JAX", 2.0, classes=3, **both),
            {key: value for key, value in peer("NumPy", 1.0, suite="memory").items() if key != "median"},
        ],
    )
    kept(tmp_path, "1", "avx2", [peer("xent_rs", 2.0, suite="peers"), peer("NumPy", 2.0, suite="peers")])
    assert report.faster_peers(report.records(tmp_path)) == [
        "**Where a peer is faster**, and how many times, in any suite of any record:",
        "On A CPU, avx512:",
        "- Against peers: loss + gradient, float32, JAX, new array: 2048 x 32000 (1.33)\n"
        "- Classes on axis 1: soft targets, loss, float32, JAX: 2048 x 2 (2.00), 2048 x 3 (1.50)",
        "On A CPU, avx2, none.",
    ]


# goals


def peer(contender, median, *, job="loss", rows=2048, classes=32_000, roof=1.0, **fields):
    return {
        "rows": rows,
        "classes": classes,
        "dtype": "float32",
        "job": job,
        "contender": contender,
        "median": median,
        "roof": roof,
        "of_roof": roof / median,
        **fields,
    }


def lines(suites, level="avx512"):
    return {line[0]: line[2:] for line in goals.table(suites, level)[1:]}


def test_goals_are_computed_from_the_record():
    both = "loss + gradient"
    found = lines(
        {
            "peers": [
                peer("xent_rs", 1.05, level="avx512"),
                peer("xent_rs, avx2", 1.5, level="avx2"),
                peer("xent_rs", 1.0, rows=512, classes=128_256, level="avx512"),
                peer("NumPy", 12.0),
                peer("PyTorch, compiled", 1.26),
                peer("xent_rs, out=", 2.0, job=both, level="avx512"),
                peer("xent_rs, new array", 2.5, job=both, level="avx512"),
                peer("NumPy, out=", 16.0, job=both),
                peer("NumPy, new array", 30.0, job=both),
            ],
            "smallest": [
                peer("xent_rs", 2e-6, rows=4, classes=10),
                peer("PyTorch", 4e-6, rows=4, classes=10),
            ],
            "memory": [{**peer("xent_rs", 1), "above": 2 * 2**20 + 16 * 2048}],
            "growth": [peer("xent_rs", 1.0, rows=31), peer("xent_rs", 12.0, rows=310)],
            "binary": [peer("xent_rs", 1.25), peer("xent_rs, bool targets", 1.6)],
            "compare": [
                peer("xent_rs", 1.25, kind="rounded"),
                peer("xent_rs", 4.0, kind="rounded", rows=16, classes=10),
                peer("NumPy", 9.0, kind="rounded"),
                peer("xent_rs", 9.0, kind="rounded, bfloat16"),
                peer("xent_rs", 1.3, kind="another model"),
            ],
            "threads": [peer("xent_rs", 2.0, roof=1.8, threads=1, of_full_roof=0.5)],
            "classes": [
                peer("xent_rs, axis=0", 1.0, rows=16_000, classes=1000),
                peer("xent_rs, axis=0", 1.2, rows=16_000, classes=1100),
                peer("xent_rs, axis=0", 4.0, rows=4000, classes=4096),
                peer("xent_rs, axis=0", 8.0, rows=4000, classes=4100),
                peer("NumPy", 9.0, rows=4000, classes=4100),
                peer("xent_rs", 2.0, classes=100),
                peer("NumPy", 9.0, classes=100),
                peer("JAX", 2.5, classes=100),
                peer("xent_rs, out=", 2.0, job=both, classes=1000),
                peer("JAX, new array", 6.0, job=both, classes=1000),
            ],
            "axis1": [
                peer("xent_rs", 1.0, kind="class targets", classes=2),
                peer("PyTorch", 3.0, kind="class targets", classes=2),
                peer("JAX", 0.5, kind="class targets", classes=2),
                peer("xent_rs", 2.0, kind="KL divergence", classes=2),
                peer("PyTorch", 1.0, kind="KL divergence", classes=2),
            ],
            "sixteen": [
                peer("xent_rs", 1.0, rows=16),
                {**peer("xent_rs", 1.1, rows=16), "dtype": "float16"},
                {**peer("xent_rs", 1.2, rows=16), "dtype": "bfloat16"},
            ],
            "beside": [
                {**peer("xent_rs", 1.0), "company": "a product", "threads": 2, "p95": 2.4},
                {**peer("xent_rs", 1.0), "company": "a product", "threads": 1, "p95": 2.0},
                {**peer("xent_rs", 1.0), "company": "a long call", "threads": 8, "p95": 1.0},
                {**peer("xent_rs", 1.0), "company": "a long call", "threads": 1, "p95": 2.0},
            ],
            "options": [
                peer("label smoothing", 1.5, beyond=1.5),
                peer("softcap", 1.9, beyond=1.9),
                peer("evaluate", 9.0, beyond=9.0),
            ],
        },
    )
    assert found == {
        "loss, 2 to 100 classes, against each peer; the three least": [
            "1.25 (100 classes, JAX), 4.5 (100 classes, NumPy)",
            "missed by 17 %",
        ],
        "loss, more than 100 classes, against each peer; the three least": ["1.12", "missed by 44 %"],
        "loss + gradient, more than 100 classes, against each peer; the three least": ["3", "met"],
        "loss, classes on axis 1, class targets, against PyTorch; the three least": ["3", "met"],
        "loss, classes on axis 1, soft targets and KL divergence, against PyTorch; the three least": [
            "0.5",
            "missed by 50 %",
        ],
        "loss, float32, 2048 x 32000": ["0.952", "met"],
        "loss + gradient, `out=`, float32, 2048 x 32000": ["0.5", "missed by 44 %"],
        "loss, C >= 32000, on one thread, R of one": ["0.9", "met"],
        "the same on one thread, R of all": ["0.5", "missed by 38 %"],
        "loss + gradient, a new array each call": ["1.25", "met"],
        "bfloat16 and float16 in cache; the three worst": [
            "1.2 (bfloat16, loss, 16 x 32000), 1.1 (float16, loss, 16 x 32000)",
            "missed by 4.3 %",
        ],
        "binary loss, 4 Mi elements": ["0.8 (float32 targets), 0.625 (bool targets)", "missed by 22 %"],
        "two float32 models compared, C >= 1000": [
            "1.25 (rounded, 2048 x 32000), 1.3 (another model, 2048 x 32000)",
            "met",
        ],
        "two float32 models compared, fewer classes": ["4", "missed by 208 %"],
        "softcap, loss, beyond its bytes": ["1.9", "met"],
        "loss, every other option, beyond its bytes; the three worst": ["1.5", "missed by 20 %"],
        "smallest call, loss": ["0.5", "met"],
        "memory of the loss, above 16 bytes a row": ["2", "missed by 100 %"],
        "loss, time per element, 10^6 to 10^9": ["1.2", "missed by 4.3 %"],
        "loss, classes along the first axis, time per element": [
            "1.09 (1100 by 1000), 2 (4100 by 4096)",
            "missed by 54 %",
        ],
        "loss beside others, 95 % of the calls": ["1.2 (a product), 0.5 (a long call)", "missed by 9.1 %"],
        "speed of AVX2, float32, C >= 32000": ["0.7", "missed by 12 %"],
    }


def test_a_goal_may_depend_on_the_level():
    suites = {"peers": [peer("xent_rs", 1.2)]}
    case = "loss, float32, 2048 x 32000"
    assert lines(suites, "avx512") == {case: ["0.833", "missed by 12 %"]}
    assert lines(suites, "avx2") == {case: ["0.833", "met"]}
    assert lines(suites, "portable") == {}


def test_a_record_of_nothing_meets_nothing():
    assert goals.table({}, "avx2") == [["case", "goal", "measured", ""]]


# guard


class Clock:
    """In place of the module `time` in the guard: calls take as long as they say on any machine."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now

    def call(self, seconds):
        """A call that takes so long, which may depend on when it begins."""

        def call():
            self.now += seconds(self.now)

        return call


@pytest.fixture
def clock(monkeypatch):
    """The clock that the guard looks at."""
    clock = Clock()
    monkeypatch.setattr(guard, "time", clock)
    return clock


def test_the_guard_tells_one_pass_from_two(clock):
    calls = {
        "plain": clock.call(lambda now: 1e-3),
        "one": clock.call(lambda now: 1.1e-3),
        "two": clock.call(lambda now: 2e-3),
    }
    ratios = [guard.Ratio("one", "plain", 1.5), guard.Ratio("two", "plain", 1.5)]
    texts, failures = guard.measure(calls, ratios, patience=1.0)
    assert texts == ["one: 1.10 of plain; at most 1.50", "two: 2.00 of plain; at most 1.50"]
    assert failures == texts[1:]
    assert 1.0 < clock.now < 2.0


def test_the_guard_waits_for_the_end_of_a_disturbance(clock):
    calls = {
        "disturbed": clock.call(lambda now: 1e-3 if now < 1.0 else 5e-5),
        "other": clock.call(lambda now: 1e-4),
    }
    _, failures = guard.measure(calls, [guard.Ratio("disturbed", "other", 1.0)], patience=20.0)
    assert failures == []
    assert 1.0 < clock.now < 2.0


@pytest.mark.skipif(len(guard._xent_rs.simd_levels()) == 1, reason="only one level")
def test_the_guard_fails_without_vectors(monkeypatch, capsys):
    """At each level that has its turn: here all of them are the portable kernels by another name."""
    monkeypatch.setattr(guard, "PATIENCE", 0.1)
    monkeypatch.setattr(guard, "TURNS", 3)
    guard._xent_rs.set_simd_level("portable")
    levels = guard._xent_rs.simd_levels()
    monkeypatch.setattr(guard._xent_rs, "simd_level", lambda: levels[0])
    monkeypatch.setattr(guard._xent_rs, "set_simd_level", lambda level: None)
    assert guard.main() == 1
    errors = capsys.readouterr().err
    for level in levels[:-1]:
        for dtype in guard.DTYPES:
            assert f"too slow: {level}: loss, {dtype}: " in errors


@has_portable
def test_the_guard_promises_nothing_of_the_portable_kernels(capsys):
    guard._xent_rs.set_simd_level("portable")
    assert guard.main() == 0
    assert capsys.readouterr().out.startswith("only the portable kernels are in use")


def test_the_guard_promises_nothing_without_portable_kernels(capsys, monkeypatch):
    """As on AArch64."""
    monkeypatch.setattr(guard._xent_rs, "simd_levels", lambda: ["neon"])
    monkeypatch.setattr(guard._xent_rs, "simd_level", lambda: "neon")
    assert guard.main() == 0
    assert capsys.readouterr().out.startswith("neon has no portable kernels beside it")


def measured(checks, about):
    """What fails of those checks that are about something: of others a loaded machine may make anything."""
    calls, ratios = guard.joined(checks)
    guard.xent_rs.set_num_threads(1)
    return guard.measure(calls, [ratio for ratio in ratios if about in ratio.call], patience=5.0)[1]


def test_the_guard_fails_when_an_option_takes_another_pass(monkeypatch, capsys):
    """A smoothing that computes the plain loss twice besides is named."""
    if len(guard._xent_rs.simd_levels()) == 1:
        pytest.skip("only one level")

    def twice(task):
        plain = next(each for each in options.TASKS if each.name == "plain" and each.job == task.job)

        def prepare(case):
            (call, check), (besides, _) = task.prepare(case), plain.prepare(case)
            return lambda: (besides(), besides(), call())[2], check

        return replace(task, prepare=prepare)

    tasks = [twice(task) if task.name == "label smoothing" else task for task in options.TASKS]
    monkeypatch.setattr(guard.options, "TASKS", tasks)
    failures = measured(guard.option_checks(), "label smoothing")
    assert {failure.partition(":")[0] for failure in failures} == {
        f"label smoothing, {job}, {shape}"
        for job in ("loss", "loss + gradient")
        for shape in ("16 x 4096", "4096 x 10")
    }


@pytest.mark.exhaustive
def test_the_guard_fails_when_some_number_of_classes_along_the_first_axis_takes_longer(monkeypatch):
    def slower(contender):
        def make(case):
            call = contender.make(case)
            return (lambda: (call(), call())[1]) if case.classes == 4100 else call

        return replace(contender, make=make)

    monkeypatch.setattr(guard.classes, "FIRST_AXIS", [slower(each) for each in guard.classes.FIRST_AXIS])
    failures = {failure.partition(":")[0] for failure in measured(guard.first_axis_checks(), "axis=0")}
    assert failures >= {f"{job}, 4100 x 16, axis=0" for job in ("loss", "loss + gradient")}


@pytest.mark.exhaustive
def test_the_guard_fails_when_a_kind_on_axis_1_takes_longer(monkeypatch):
    """As long as many passes: its limits leave room for another CPU."""
    ours = guard.kinds.ours

    def slower(problem, job):
        call = ours(problem, job)
        slow = problem.images is not None and problem.fields["kind"] == guard.KL
        return (lambda: [call() for _ in range(12)].pop()) if slow else call

    monkeypatch.setattr(guard.kinds, "ours", slower)
    failures = {failure.partition(":")[0] for failure in measured(guard.exponential_checks(), "on axis 1")}
    assert failures >= {
        f"{job}, KL divergence, {number} classes on axis 1"
        for job in ("loss", "loss + gradient")
        for number in (2, 21, 1000)
    }


@pytest.mark.exhaustive
def test_the_guard_fails_when_the_rows_of_two_models_take_longer(monkeypatch):
    rows_of = guard.comparison.rows_of

    def slower(problem):
        call = rows_of(problem)
        return lambda: [call() for _ in range(6)].pop()

    monkeypatch.setattr(guard.comparison, "rows_of", slower)
    failures = {failure.partition(":")[0] for failure in measured(guard.comparison_checks(), "rows")}
    assert failures >= {
        f"two models compared, rows, {kind}, {classes} classes" for kind, classes in guard.OF_EXP_COMPARED
    }
