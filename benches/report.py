"""Show the recorded benchmark: in README the comparison with peers, in docs/performance.md everything.

    python -m benches.report --record    run all suites, keep the answer in benches/results/, show it
    python -m benches.report --record frameworks    the same of `benches.frameworks`
    python -m benches.report --record linear        the same of `benches.linear`
    python -m benches.report             show the newest records
    python -m benches.report --check     fail unless both pages show the newest records

There is a record for each CPU and SIMD level; ``XENT_RS_SIMD=avx2`` before the first command makes that of
AVX2. README has the comparison with peers on the CPU of the newest record, at its best level, and from all
records where a peer is faster; docs/performance.md has everything else of the former, and the goals of all.
What the modules for frameworks take is recorded apart, for the frameworks are large, and so is the loss of
hidden states, which takes long; the newest of either is shown.

No figure of these pages comes from elsewhere. Needs xent_rs, and to draw the pictures matplotlib.
"""

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from xent_rs.cli._terminal import significant

from . import frameworks, goals, linear, tables

ROOT = Path(__file__).resolve().parent.parent
# What a record holds: it takes about 30 minutes on two cores. Other shapes are in the suite `classes`.
SHAPES = ["2048x32000", "512x128256", "16384x1000", "262144x10"]
DTYPES = ["float32", "bfloat16", "float16", "float64"]
RECORD = ["--json", "--levels", "--repeats", "5"]
RECORD += ["--dtype", *DTYPES, "--shape", *SHAPES]

# What README shows of it.
README_DTYPES = ["float32", "bfloat16"]
PICTURED = [(2048, 32000, "float32"), (16384, 1000, "float32")]

# Picture in docs/: the suite that it shows. README has the first.
PICTURES = {"benchmark.png": "peers", "benchmark_classes.png": "classes", "benchmark_options.png": "options"}

Report = dict[str, Any]
Results = list[dict[str, Any]]
Records = list[tuple[str, Report]]


def record(root: Path, arguments: Sequence[str], module: str = "benches", folder: str = "") -> None:
    """Run a benchmark and keep its answer in a folder of benches/results/CPU/, as DATE-LEVEL.json."""
    command = ["python", "-m", module, *arguments]
    finished = subprocess.run([sys.executable, *command[1:]], cwd=ROOT, stdout=subprocess.PIPE, check=True)
    report = json.loads(finished.stdout)
    now = datetime.now(timezone.utc)
    chosen = os.environ.get("XENT_RS_SIMD")
    setting = [f"XENT_RS_SIMD={chosen}"] if chosen else []
    report = {"date": f"{now:%Y-%m-%d}", "command": " ".join([*setting, *command]), **report}
    level = report["environment"]["simd_level"]
    cpu = re.sub(r"[^a-z0-9]+", "-", report["environment"]["cpu"].lower()).strip("-")
    path = root / "benches" / "results" / cpu / folder / f"{now:%Y-%m-%dT%H%M}-{level}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def records(root: Path) -> Records:
    """Return the newest record of each CPU and SIMD level, with their paths.

    The CPU of the newest of all is the first, and of its records that of the best level.
    """
    paths = sorted(
        (root / "benches" / "results").glob("*/*.json"), key=lambda path: (path.stem, path.parent.name)
    )
    if not paths:
        sys.exit("there is no record in benches/results/; make one with --record")
    found: dict[str, dict[str, tuple[str, Report]]] = {}
    best_first = []
    for path in paths:
        report = json.loads(path.read_text(encoding="utf-8"))
        environment = report["environment"]
        of_cpu = found.pop(environment["cpu"], {})  # in the order of the newest records
        of_cpu[environment["simd_level"]] = (path.relative_to(root).as_posix(), report)
        found[environment["cpu"]] = of_cpu
    for of_cpu in reversed(found.values()):
        # CPUs of one name may have different levels; the lists of all of them end alike.
        levels = max((report["environment"]["simd_levels"] for _, report in of_cpu.values()), key=len)
        best_first += [of_cpu[level] for level in levels if level in of_cpu]
    return best_first


def of_readme(root: Path, found: Records) -> str:
    """Return what stands between the markers of README."""
    path, report = found[0]
    peers = in_use(report)
    dtypes = [dtype for dtype in README_DTYPES if any(result["dtype"] == dtype for result in peers)]
    blocks = [
        provenance(path, report),
        *(block for dtype in dtypes for block in comparison(peers, dtype)),
        accuracy(peers),
        *faster_peers(found),
        *(f"<!-- docs/{name}: sha256 {digest(root, name)} -->" for name in list(pictures(report))[:1]),
    ]
    return "\n\n".join(blocks)


def of_page(root: Path, found: Records) -> str:
    """Return what stands between the markers of docs/performance.md."""
    path, report = found[0]
    suites = tables.suites(report)
    peers = in_use(report)
    others = unique(result["dtype"] for result in peers if result["dtype"] not in README_DTYPES)
    blocks = [provenance(f"../{path}", report), "## Goals"]
    for path_of_record, of_record in found:
        if of_record is not report:
            blocks.append(provenance(f"../{path_of_record}", of_record))
        lines = goals.table(tables.suites(of_record), of_record["environment"]["simd_level"])
        blocks += [f"**On {machine(of_record)}**", markdown(lines, column="---")]
    if others:
        blocks += [
            "## Against peers",
            "What float32 and bfloat16 logits take is in [README](../README.md#speed).",
        ]
        blocks += [block for dtype in others for block in comparison(peers, dtype)]
    blocks += levels(report)
    for name, suite in list(pictures(report).items())[1:]:
        blocks.append(f"![{suite}]({name})")
    for suite, results in suites.items():
        if suite != "peers":
            blocks.append(f"## {HEADINGS[suite]}")
            for title, lines in tables.tables({"results": results}):
                blocks += [f"**{capitalised(title)}**", markdown(lines)]
    skipped = [f"- {skip['contender']}: {skip['reason']}" for skip in report["skipped"]]
    if skipped:
        blocks += ["## Skipped", "\n".join(skipped)]
    blocks += [f"<!-- {name}: sha256 {digest(root, name)} -->" for name in list(pictures(report))[1:]]
    return "\n\n".join(blocks)


HEADINGS = {
    "peers": "Against peers",
    "classes": "Number of classes",
    "axis1": "Classes on axis 1",
    "targets": "Soft targets, KL divergence and softcap",
    "options": "Options and other functions",
    "binary": "Binary cross-entropy",
    "compare": "Two models compared",
    "smallest": "The smallest call",
    "growth": "Growth",
    "threads": "Threads",
    "memory": "Memory",
    "sixteen": "16-bit logits in cache",
    "beside": "Beside others",
}


def newest(root: Path, folder: str) -> tuple[str, Report] | None:
    """Return the newest record of a benchmark that is recorded apart, with its path, if there is one."""
    paths = (root / "benches" / "results").glob(f"*/{folder}/*.json")
    path = max(paths, key=lambda path: (path.stem, path), default=None)
    if path is None:
        return None
    return path.relative_to(root).as_posix(), json.loads(path.read_text(encoding="utf-8"))


def frameworks_in_readme(root: Path, _: Records) -> str:
    """Return what stands between the markers of README for frameworks: forward and backward, float32."""
    found = newest(root, "frameworks")
    if found is None:
        return "There is no record."
    path, report = found
    title, lines = next(
        table for table in frameworks.tables(report) if table[0].startswith(f"{frameworks.BOTH}, float32")
    )
    mark = f"<!-- docs/{frameworks.PICTURE}: sha256 {digest(root, frameworks.PICTURE)} -->"
    return "\n\n".join([_of_frameworks(path, report), f"**{capitalised(title)}**", markdown(lines), mark])


def frameworks_in_page(root: Path, _: Records) -> str:
    """Return all tables of frameworks."""
    found = newest(root, "frameworks")
    if found is None:
        return "There is no record."
    path, report = found
    blocks = [_of_frameworks(f"../{path}", report)]
    for title, lines in frameworks.tables(report):
        blocks += [f"**{capitalised(title)}**", markdown(lines)]
    return "\n\n".join(blocks)


def linear_in_readme(root: Path, _: Records) -> str:
    """Return what stands between the markers of README for the loss of hidden states: float32, and memory."""
    found = newest(root, "linear")
    if found is None:
        return "There is no record."
    path, report = found
    shown = [table for table in linear.tables(report) if "bfloat16" not in table[0]]
    blocks = [_of_linear(path, report)]
    for title, lines in shown:
        blocks += [f"**{capitalised(title)}**", markdown(lines)]
    return "\n\n".join(blocks)


def linear_in_page(root: Path, _: Records) -> str:
    """Return all tables of the loss of hidden states, of every CPU."""
    folders = sorted((root / "benches" / "results").glob("*/linear"))
    blocks = []
    for folder in folders:
        path = max(folder.glob("*.json"))
        report = json.loads(path.read_text(encoding="utf-8"))
        blocks.append(_of_linear(f"../{path.relative_to(root).as_posix()}", report))
        for title, lines in linear.tables(report):
            blocks += [f"**{capitalised(title)}**", markdown(lines)]
    return "\n\n".join(blocks) or "There is no record."


def _of_frameworks(path: str, report: Report) -> str:
    return _provenance(path, report, "how many times as long the framework's own takes")


def _of_linear(path: str, report: Report) -> str:
    return _provenance(path, report, "how many times as long as the first line with the same matrix library")


def _provenance(path: str, report: Report, brackets: str) -> str:
    environment = report["environment"]
    versions = ", ".join(f"{package} {version}" for package, version in environment["versions"].items())
    return (
        f"{machine(report)}, {environment['num_threads']} threads, {report['date']}; xent_rs "
        f"{environment['version']}, Python {environment['python']}, {versions}. Medians of "
        f"{environment['repeats']} runs in turns; in brackets, {brackets}. [All the numbers]({path}) come "
        f"from\n\n```sh\n{report['command']}\n```"
    )


def provenance(path: str, report: Report) -> str:
    """Return where, with what and how the record was made."""
    environment = report["environment"]
    versions = environment["versions"].items()
    peers = ", ".join(f"{package} {version}" for package, version in versions if package != "xent_rs")
    return (
        f"{machine(report)}, {environment['num_threads']} threads, "
        f"{report['date']}; xent_rs {environment['version']}, Python {environment['python']}, {peers}. "
        f"Medians of {environment['repeats']} interleaved runs, in milliseconds; in brackets, how many times "
        f"as long as the first line. [All the numbers]({path}) come from\n\n```sh\n{report['command']}\n```"
    )


def machine(report: Report) -> str:
    """Return the CPU of a record and the SIMD level in use."""
    return f"{report['environment']['cpu']}, {report['environment']['simd_level']}"


def in_use(report: Report, suite: str = "peers") -> Results:
    """Return the results of a suite, without this package at another level than the one in use."""
    level = report["environment"]["simd_level"]
    return [result for result in tables.suites(report)[suite] if result.get("level", level) == level]


def faster_peers(found: Records) -> list[str]:
    """Return a list of all cases of all records in which the median of a peer is below ours."""
    blocks = ["**Where a peer is faster**, and how many times, in any suite of any record:"]
    for _, report in found:
        cases: dict[str, list[str]] = {}
        for suite in tables.suites(report):
            for peer, ours in tables.against(in_use(report, suite)):
                if peer["median"] < ours["median"]:
                    kind = f"{peer['kind']}, " if "kind" in peer else ""
                    what = f"{HEADINGS[suite]}: {kind}{peer['job']}, {peer['dtype']}, {peer['contender']}"
                    times = f"{shape(peer)} ({ours['median'] / peer['median']:.2f})"
                    cases.setdefault(what, []).append(times)
        lines = [f"- {what}: {', '.join(times)}" for what, times in cases.items()]
        blocks += [
            f"On {machine(report)}{':' if lines else ', none.'}",
            *(["\n".join(lines)] if lines else []),
        ]
    return blocks


def comparison(results: Results, dtype: str) -> list[str]:
    """Return for each job its name, and a table of the times."""
    found = []
    for job in unique(result["job"] for result in results):
        of_job = [result for result in results if (result["job"], result["dtype"]) == (job, dtype)]
        found += [f"**{capitalised(job)}, {dtype} logits**", times(of_job)]
    return found


def levels(report: Report) -> list[str]:
    """Return a table for each dtype and job: this package at each level."""
    ours = [
        result
        for result in tables.suites(report)["peers"]
        if "level" in result and "new array" not in result["contender"]
    ]
    if len({result["level"] for result in ours}) < 2:
        return []
    blocks = ["## SIMD levels"]
    for dtype in unique(result["dtype"] for result in ours):
        of_dtype = [{**result, "contender": result["level"]} for result in ours if result["dtype"] == dtype]
        blocks += comparison(of_dtype, dtype)
    return blocks


def times(results: Results) -> str:
    """Return times as a table: a line for each contender, a column for each shape, the roof last."""
    found = {(shape(result), result["contender"]): result for result in results}
    shapes, names = (unique(keys) for keys in zip(*found, strict=True))
    first = names[0]  # this package
    lines = [["", *shapes]]
    for name in names:
        pairs = [(found.get((shape, name)), found[shape, first]) for shape in shapes]
        bold = "**" if name.startswith("xent_rs") else ""
        lines.append([f"{bold}{name}{bold}", *(cell(result, ours, bold) for result, ours in pairs)])
    roofs = [milliseconds(found[shape, first]["roof"]) for shape in shapes]
    return markdown([*lines, ["*the roof*", *(f"*{roof}*" for roof in roofs)]])


def cell(result: dict[str, Any] | None, ours: dict[str, Any], bold: str) -> str:
    """Return a time, and the ratio to ours."""
    if result is None:
        return ""
    ratio = "" if result is ours else f" ({result['median'] / ours['median']:.1f})"
    return f"{bold}{milliseconds(result['median'])}{bold}{ratio}"


def accuracy(results: Results) -> str:
    """Return the relative errors of the contenders in the float32 case with the most classes."""
    single = [result for result in results if result["dtype"] == "float32"]
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
    title = f"**Relative error** against float64, in the same runs, at {most} float32"
    return f"{title}\n\n{markdown(lines)}"


def pictures(report: Report) -> dict[str, str]:
    """Return the pictures that a record has, with their suites."""
    return {name: suite for name, suite in PICTURES.items() if suite in tables.suites(report)}


def draw(root: Path, report: Report) -> None:
    """Draw the pictures; those that the record does not have go away."""
    from . import plot

    shown = [
        result
        for result in in_use(report)
        if (result["rows"], result["classes"], result["dtype"]) in PICTURED
    ]
    others = [result for result in report["results"] if result["suite"] != "peers"]
    # A record of other shapes, as tests make it, shows what it has.
    drawn = {**report, "results": [*(shown or in_use(report)), *others]}
    for name in PICTURES.keys() - pictures(report).keys():
        (root / "docs" / name).unlink(missing_ok=True)
    for name, suite in pictures(report).items():
        plot.draw(drawn, suite, root / "docs" / name)
    found = newest(root, "frameworks")
    if found is not None:
        plot.draw_frameworks(found[1], root / "docs" / frameworks.PICTURE)


def digest(root: Path, name: str) -> str:
    """Return the SHA-256 of a picture, if it is there."""
    picture = root / "docs" / name
    return hashlib.sha256(picture.read_bytes()).hexdigest() if picture.exists() else "missing"


def shape(result: dict[str, Any]) -> str:
    """Write the shape of a result for people."""
    return f"{result['rows']} x {result['classes']}"


def unique(values: Iterable[str]) -> list[str]:
    """Return the values without repetitions, in order."""
    return list(dict.fromkeys(values))


def capitalised(text: str) -> str:
    """Return a text with its first letter large."""
    return f"{text[0].upper()}{text[1:]}"


def milliseconds(seconds: float) -> str:
    """Write a time in milliseconds with three significant digits: ``7.82``, ``0.120``, ``109``."""
    return significant(1e3 * seconds)


def markdown(lines: list[list[str]], column: str = "--:") -> str:
    """Return a table, its first line the head; by default all but the first column are numbers."""
    head, *body = (f"| {' | '.join(line)} |" for line in lines)
    return "\n".join([head, f"| {' | '.join(['---'] + [column] * (len(lines[0]) - 1))} |", *body])


# Page: the names of its markers, and what stands between them.
PAGES = {
    "README.md": {"benchmark": of_readme, "frameworks": frameworks_in_readme, "linear": linear_in_readme},
    "docs/performance.md": {"benchmark": of_page, "frameworks": frameworks_in_page, "linear": linear_in_page},
}


def show(root: Path, check: bool) -> None:
    """Write the pages; or, to check, end unless they are as they would be written."""
    found = records(root)
    paths = ", ".join(path for path, _ in found)
    if not check:
        draw(root, found[0][1])
    for name, sections in PAGES.items():
        page = root / name
        text = shown = page.read_text(encoding="utf-8")
        for marker, section in sections.items():
            begin, end = f"<!-- {marker}: begin -->", f"<!-- {marker}: end -->"
            before, rest = text.split(begin)
            _, after = rest.split(end)
            text = f"{before}{begin}\n{section(root, found)}\n{end}{after}"
        if not check:
            page.write_text(text, encoding="utf-8")
        elif shown != text:
            sys.exit(f"{name} does not show {paths}; run python -m benches.report")
        else:
            print(f"{name} shows {paths}")


def main() -> None:
    """Do what the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--record",
        nargs="?",
        const="all suites",
        choices=["all suites", "frameworks", "linear"],
        help="run the benchmark first, or that of frameworks or of the loss of hidden states",
    )
    parser.add_argument("--check", action="store_true", help="change nothing; fail if a page is out of date")
    arguments = parser.parse_args()
    if arguments.record in ("frameworks", "linear"):
        record(ROOT, ["--json"], f"benches.{arguments.record}", arguments.record)
    elif arguments.record:
        record(ROOT, RECORD)
    show(ROOT, arguments.check)


if __name__ == "__main__":
    main()
