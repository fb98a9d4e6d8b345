"""Show the recorded benchmark in README: its table between the markers, its picture in docs/.

    python benches/report.py --record    run `xent-rs bench`, keep its answer in benches/results/, show it
    python benches/report.py             show the newest record
    python benches/report.py --check     fail unless README shows the newest record

No figure of README comes from elsewhere. Recording and showing need xent_rs and matplotlib, checking neither.
"""

import argparse
import hashlib
import json
import math
import re
import subprocess
import sys
from collections.abc import Iterable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
PICTURE = ROOT / "docs" / "benchmark.png"
RESULTS = ROOT / "benches" / "results"
BEGIN, END = "<!-- benchmark: begin -->", "<!-- benchmark: end -->"

# What a record holds, and what README draws of it.
SHAPES = ["2048x32000", "512x128256", "16384x1000", "262144x10"]
RECORD = ["bench", "--json", "--repeats", "9", "--dtype", "float32", "bfloat16", "--shape", *SHAPES]
PICTURED = [(2048, 32000, "float32"), (16384, 1000, "float32")]

Report = dict[str, Any]


def record() -> None:
    """Run the benchmark and keep its answer in benches/results/CPU/DATE.json."""
    finished = subprocess.run([sys.executable, "-m", "xent_rs", *RECORD], stdout=subprocess.PIPE, check=True)
    report = json.loads(finished.stdout)
    now = datetime.now(timezone.utc)
    report = {"date": f"{now:%Y-%m-%d}", "command": " ".join(["xent-rs", *RECORD]), **report}
    cpu = re.sub(r"[^a-z0-9]+", "-", report["environment"]["cpu"].lower()).strip("-")
    path = RESULTS / cpu / f"{now:%Y-%m-%dT%H%M}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def newest() -> tuple[Path, Report]:
    """Return the newest record."""
    paths = sorted(RESULTS.glob("*/*.json"), key=lambda path: (path.stem, path.parent.name))
    if not paths:
        sys.exit("there is no record in benches/results/; make one with --record")
    return paths[-1], json.loads(paths[-1].read_text(encoding="utf-8"))


def section(path: Path, report: Report) -> str:
    """Return what stands between the markers of README."""
    environment = report["environment"]
    versions = environment["versions"].items()
    peers = ", ".join(f"{package} {version}" for package, version in versions if package != "xent_rs")
    lines = [
        f"{environment['cpu']}, {environment['simd_level']}, {environment['num_threads']} threads, "
        f"{report['date']}; xent_rs {environment['version']}, Python {environment['python']}, {peers}. "
        f"Medians of {environment['repeats']} interleaved runs, in milliseconds; in brackets, how many times "
        f"as long as the first line. [All the numbers]({path.relative_to(ROOT).as_posix()}) come from",
        "",
        "```sh",
        report["command"],
        "```",
    ]
    for dtype in unique(result["dtype"] for result in report["results"]):
        for job in unique(result["job"] for result in report["results"]):
            lines += ["", f"**{job[0].upper()}{job[1:]}, {dtype} logits**", "", *times(report, job, dtype)]
    lines += ["", *accuracy(report)]
    picture = hashlib.sha256(PICTURE.read_bytes()).hexdigest()
    return "\n".join([*lines, "", f"<!-- docs/benchmark.png: sha256 {picture} -->"])


def times(report: Report, job: str, dtype: str) -> list[str]:
    """Return the times of a job as a table: a line for each contender, a column for each shape."""
    results = {
        (shape(result), result["contender"]): result
        for result in report["results"]
        if result["job"] == job and result["dtype"] == dtype
    }
    shapes, names = (unique(keys) for keys in zip(*results, strict=True))
    first = names[0]  # this package
    lines = [["", *shapes]]
    for name in names:
        found = [(results.get((shape, name)), results[shape, first]) for shape in shapes]
        bold = "**" if name.startswith("xent_rs") else ""
        lines.append([f"{bold}{name}{bold}", *(cell(result, ours, bold) for result, ours in found)])
    roofs = [milliseconds(results[shape, first]["roof"]) for shape in shapes]
    return markdown([*lines, ["*the roof*", *(f"*{roof}*" for roof in roofs)]])


def cell(result: Report | None, ours: Report, bold: str) -> str:
    """Return a time, and the ratio to ours."""
    if result is None:
        return ""
    ratio = "" if result is ours else f" ({result['median'] / ours['median']:.1f})"
    return f"{bold}{milliseconds(result['median'])}{bold}{ratio}"


def accuracy(report: Report) -> list[str]:
    """Return the relative errors of the contenders in the float32 case with the most classes."""
    single = [result for result in report["results"] if result["dtype"] == "float32"]
    most = shape(max(single, key=lambda result: result["classes"]))
    errors: dict[str, dict[str, float]] = {}
    for result in single:
        if shape(result) == most:
            library = result["contender"].removesuffix(", out=").removesuffix(", new array")
            for key in ("loss_error", "gradient_error"):
                if key in result:
                    errors.setdefault(library, {})[key] = result[key]
    lines = [["", *errors]]
    for name, key in (("mean loss", "loss_error"), ("worst entry of the gradient", "gradient_error")):
        found = (of_library.get(key) for of_library in errors.values())
        lines.append([name, *("" if error is None else f"{error:.1e}" for error in found)])
    return [f"**Relative error** against float64, in the same runs, at {most} float32", "", *markdown(lines)]


def shape(result: Report) -> str:
    """Write the shape of a result for people."""
    return f"{result['rows']} x {result['classes']}"


def unique(values: Iterable[str]) -> list[str]:
    """Return the values without repetitions, in order."""
    return list(dict.fromkeys(values))


def milliseconds(seconds: float) -> str:
    """Write a time in milliseconds with three significant digits: ``7.82``, ``0.120``, ``109``."""
    value = seconds * 1e3
    return f"{value:.{max(0, 2 - math.floor(math.log10(value)))}f}"


def markdown(lines: list[list[str]]) -> list[str]:
    """Return a table, its first line the head."""
    head, *body = (f"| {' | '.join(line)} |" for line in lines)
    return [head, f"| {' | '.join(['---'] + ['--:'] * (len(lines[0]) - 1))} |", *body]


def draw(report: Report) -> None:
    """Draw the picture of README."""
    from xent_rs.cli import _plot

    results = [
        result
        for result in report["results"]
        if (result["rows"], result["classes"], result["dtype"]) in PICTURED
    ]
    _plot.draw({**report, "results": results}, PICTURE)


def main() -> None:
    """Do what the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--record", action="store_true", help="run the benchmark first")
    parser.add_argument("--check", action="store_true", help="change nothing; fail if README is out of date")
    arguments = parser.parse_args()
    if arguments.record:
        record()
    path, report = newest()
    if not arguments.check:
        draw(report)
    before, rest = README.read_text(encoding="utf-8").split(BEGIN)
    shown, after = rest.split(END)
    expected = f"\n{section(path, report)}\n"
    if arguments.check:
        if shown != expected:
            sys.exit(f"README.md does not show {path.relative_to(ROOT)}; run python benches/report.py")
        print(f"README.md shows {path.relative_to(ROOT)}")
    else:
        README.write_text(f"{before}{BEGIN}{expected}{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
