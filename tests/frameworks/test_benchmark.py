"""``python -m benches.frameworks``: once and small, with what is installed; and what is shown of a record."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benches import frameworks, report

ROOT = Path(__file__).parents[2]

WAYS = {way.name: way for way in frameworks.WAYS}


@pytest.mark.exhaustive
@pytest.mark.timeout(900)  # with every framework, some of which compile
def test_it_runs():
    if not frameworks.versions():
        pytest.skip("no framework is installed")
    command = [sys.executable, "-m", "benches.frameworks", "--quick", "--repeats", "1", "--json"]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    found = json.loads(finished.stdout)
    cases = len(frameworks.QUICK_SHAPES) + 1
    for way in frameworks.WAYS:
        results = [result for result in found["results"] if result["contender"] == way.name]
        if way.framework not in found["environment"]["versions"]:
            assert not results
            assert {"contender": way.framework, "reason": "not installed"} in found["skipped"]
            continue
        timed = [result for result in results if "median" in result]
        assert len(timed) == cases * len(way.dtypes) * len(frameworks.JOBS)
        assert all(0 < result["minimum"] <= result["median"] for result in timed)
        (above,) = (result["above_inputs"] for result in results if "above_inputs" in result)
        assert above > -(2**20)  # what other threads give back
    assert frameworks.tables(found)


def test_each_way_of_this_package_stands_for_one_of_the_same_framework():
    for way in frameworks.WAYS:
        assert (way.own is not None) == way.name.startswith("xent_rs")
        if way.own is not None:
            own = WAYS[way.own]
            assert (own.framework, own.dtypes, own.own) == (way.framework, way.dtypes, None)


def result(name, median, rows=2048, classes=32_000, job=frameworks.BOTH, dtype="float32"):
    fields = {"framework": "torch", "contender": name, "own": WAYS[name].own, "median": median}
    return {**fields, "rows": rows, "classes": classes, "job": job, "dtype": dtype}


def test_a_table_has_the_ratio_to_the_frameworks_own():
    results = [
        result("PyTorch", 3e-3),
        result("xent_rs.torch", 2e-3),
        result("PyTorch", 2e-3, 8, 2),
        result("xent_rs.torch", 4e-3, 8, 2),
    ]
    assert frameworks.against_own(results) == [
        ["", "2,048 x 32,000", "8 x 2"],
        ["PyTorch", "3.00", "2.00"],
        ["xent_rs.torch", "2.00 (1.50)", "4.00 (0.50)"],
    ]


def test_the_newest_record_is_shown(tmp_path):
    assert report.newest(tmp_path, "frameworks") is None
    assert report.frameworks_in_readme(tmp_path, []) == "There is no record."
    for cpu, name, median in (("B", "2026-01-01T0000-avx2", 1.0), ("A", "2026-01-02T0000-avx2", 2.0)):
        path = tmp_path / "benches" / "results" / cpu / "frameworks" / f"{name}.json"
        path.parent.mkdir(parents=True)
        environment = {"cpu": cpu, "simd_level": "avx2", "num_threads": 2, "version": "0", "python": "3"}
        environment |= {"versions": {"torch": "2"}, "repeats": 7}
        results = [result("PyTorch", median), result("xent_rs.torch", median / 4)]
        smallest = [result(name, 1e-5, *frameworks.SMALLEST, job) for name in WAYS for job in frameworks.JOBS]
        of_record = {"date": "2026-01-02", "command": "python -m benches.frameworks"}
        of_record |= {"environment": environment, "results": [*results, *smallest]}
        path.write_text(json.dumps(of_record), encoding="utf-8")
    path, newest = report.newest(tmp_path, "frameworks")
    assert path == "benches/results/A/frameworks/2026-01-02T0000-avx2.json"
    readme = report.frameworks_in_readme(tmp_path, [])
    assert "| xent_rs.torch | 500 (4.00) |" in readme
    assert "| PyTorch | 2,000 |" in readme or "| PyTorch | 2000 |" in readme
    assert "smallest call" in report.frameworks_in_page(tmp_path, [])
    # It is no record of the suites.
    with pytest.raises(SystemExit):
        report.records(tmp_path)
    assert frameworks.tables(newest)[0][0] == "forward and backward, float32 logits, milliseconds"


def test_tensorflow_has_two_packages(monkeypatch):
    installed = {"keras": "3.9", "tensorflow-cpu": "2.20"}

    def version(name):
        try:
            return installed[name]
        except KeyError:
            raise frameworks.importlib.metadata.PackageNotFoundError(name) from None

    monkeypatch.setattr(frameworks.importlib.metadata, "version", version)
    assert frameworks.versions() == {"tensorflow": "2.20", "keras": "3.9"}
    del installed["keras"]
    assert frameworks.versions() == {}
