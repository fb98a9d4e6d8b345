"""The directive ``records``: the recorded benchmarks as a picture that the reader chooses.

Without a script it is the comparison with peers as tables.

It reads what `benches.report` shows: the newest record of each CPU and SIMD level, and all of the frameworks.
"""

import json
from html import escape

from docutils import nodes
from repository import ROOT
from sphinx.util.docutils import SphinxDirective
from xent_rs.cli.benchmark.tables import grouped

from benches import frameworks, report, tables

#: Suites whose results are drawn over the number of classes, in nanoseconds an element.
BY_CLASSES = {"classes", "axis1", "targets"}
#: The suite that a page without a script shows.
FIRST = "peers"


def _provenance(found):
    environment = found["environment"]
    versions = ", ".join(f"{name} {number}" for name, number in environment["versions"].items())
    return (
        f"{report.machine(found)}, {environment['num_threads']} threads, {found['date']}; "
        f"Python {environment['python']}, {versions}. Medians of {environment['repeats']} runs in turns, "
        f"by {found['command']}"
    )


def _contender(result):
    """Return what a bar or a line stands for."""
    name = result["contender"]
    if "threads" in result:
        name = f"{result['threads']} thread{'s' * (result['threads'] > 1)}"
        return f"{result['company']}, {name}" if "company" in result else name
    return name


def _group(results, unit):
    """Return the cases of one job: for each shape the roof and what each contender took, in the unit."""
    cases = []
    for (rows, classes), of_shape in grouped(results, lambda each: (each["rows"], each["classes"])).items():
        factor = {"ms": 1e3, "ns": 1e9 / (rows * classes), "MiB": 2**-20}[unit]
        values = {
            _contender(each): float(f"{factor * each['above' if unit == 'MiB' else 'median']:.5g}")
            for each in of_shape
        }
        own = {_contender(each): each["own"] for each in of_shape if "own" in each}
        roof = of_shape[0].get("roof") if unit != "MiB" else None
        cases.append(
            {
                "shape": f"{rows:,} x {classes:,}",
                "classes": classes,
                "roof": None if roof is None else float(f"{factor * roof:.5g}"),
                "values": values,
                **({"own": own} if own else {}),
            }
        )
    return sorted(cases, key=lambda case: case["classes"]) if unit == "ns" else cases


def _suites(found):
    """Return the suites of a record: for each its name, its unit, and its groups of cases."""
    suites = []
    for name, results in tables.suites(found).items():
        unit = "ns" if name in BY_CLASSES else "MiB" if name == "memory" else "ms"
        groups = []
        for key, of_group in grouped(
            results, lambda each: (each.get("kind"), each["job"], each["dtype"])
        ).items():
            label = ", ".join(part for part in key if part is not None)
            groups.append({"label": label, "cases": _group(of_group, unit)})
        suites.append({"key": name, "name": report.HEADINGS[name], "unit": unit, "groups": groups})
    return suites


def _of_frameworks(found):
    """Return the one suite of a record of the frameworks."""
    timed = [each for each in found["results"] if "median" in each and each.get("job") in frameworks.JOBS]
    groups = [
        {"label": f"{job}, {dtype}", "cases": _group(of_group, "ms")}
        for (job, dtype), of_group in grouped(timed, lambda each: (each["job"], each["dtype"])).items()
    ]
    return [{"key": "frameworks", "name": "In frameworks", "unit": "ms", "groups": groups}]


def _label(found, what):
    environment = found["environment"]
    return f"{what}: {environment['cpu']}, {environment['simd_level']}, {found['date']}"


def records():
    """Return all that the picture can show."""
    shown = [
        {"label": _label(found, "Functions"), "provenance": _provenance(found), "suites": _suites(found)}
        for _, found in report.records(ROOT)
    ]
    for path in sorted((ROOT / "benches" / "results").glob("*/frameworks/*.json"), reverse=True):
        found = json.loads(path.read_text(encoding="utf-8"))
        shown.append(
            {
                "label": _label(found, "Frameworks"),
                "provenance": _provenance(found),
                "suites": _of_frameworks(found),
            }
        )
    return shown


def _cell(value):
    return f"<td>{'' if value is None else format(value, '.3g')}</td>"


def _table(group, unit):
    """Return a group as a table: a line for each contender, a column for each shape."""
    names = list(dict.fromkeys(name for case in group["cases"] for name in case["values"]))
    head = "".join(f'<th scope="col">{escape(case["shape"])}</th>' for case in group["cases"])
    lines = []
    for name in names:
        cells = "".join(_cell(case["values"].get(name)) for case in group["cases"])
        lines.append(f'<tr><th scope="row">{escape(name)}</th>{cells}</tr>')
    if any(case["roof"] is not None for case in group["cases"]):
        cells = "".join(_cell(case["roof"]) for case in group["cases"])
        lines.append(f'<tr><th scope="row">the roof</th>{cells}</tr>')
    return (
        f'<table class="table"><caption>{escape(group["label"])}, {unit}</caption>'
        f'<thead><tr><th scope="col"></th>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table>'
    )


class Records(SphinxDirective):
    """The picture; within it, for browsers without scripts, the comparison with peers."""

    def run(self):
        """Return the node."""
        shown = records()
        first = next(suite for suite in shown[0]["suites"] if suite["key"] == FIRST)
        fallback = "".join(_table(group, first["unit"]) for group in first["groups"])
        data = json.dumps(shown, separators=(",", ":"), ensure_ascii=False).replace("<", "\\u003c")
        html = (
            f'<div class="records"><div class="records-fallback pst-scrollable-table-container">'
            f'<p class="records-provenance">{escape(shown[0]["provenance"])}</p>{fallback}</div>'
            f'<script type="application/json" class="records-data">{data}</script></div>'
        )
        for path in (ROOT / "benches" / "results").glob("**/*.json"):
            self.env.note_dependency(str(path))
        return [nodes.raw("", html, format="html")]


def setup(app):
    """Add the directive, and its script to the pages."""
    app.add_directive("records", Records)
    app.connect("html-page-context", _add_script)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _add_script(app, pagename, templatename, context, doctree):
    if doctree is not None and any('class="records"' in raw.astext() for raw in doctree.findall(nodes.raw)):
        app.add_js_file("records.js", loading_method="defer")
