"""Imports in src/ go downward only: from a layer to those below it, and between files without circles.

    python .ci/check_imports.py

Reads the paths that files name (``use crate::...``, ``use super::...``, ``crate::...`` in code), takes
each to the file that has it, and says which import goes up or around.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

# Top down, as src/lib.rs lists them; those of one line do not know each other.
LAYERS = [
    {"python", "javascript"},
    {"xla"},
    {"loss"},
    {"row"},
    {"kernel"},
    {"array"},
    {"rows"},
    {"element"},
    {"math"},
    {"dtype"},
    {"parallel"},
    {"simd"},
    {"error"},
]

# Circles that are known, each with the folder that they do not leave.
KNOWN_CIRCLES: set[str] = set()

SOURCE = Path(__file__).parent.parent / "src"
PATH = re.compile(r"\b(crate|super|self)((?:::\w+)*)(?:::\{([^;]*)\})?", re.DOTALL)


def modules() -> dict[tuple[str, ...], Path]:
    """Return the module path of every file: ("row", "tile") for src/row/tile/mod.rs."""
    found = {}
    for file in sorted(SOURCE.rglob("*.rs")):
        parts = file.relative_to(SOURCE).with_suffix("").parts
        if parts[-1] in ("mod", "lib"):
            parts = parts[:-1]
        found[parts] = file
    return found


def without_tests_and_comments(text: str) -> str:
    """Return code that is not for tests: these come last in a file, and may import what they like."""
    text = text.split("#[cfg(test)]\nmod tests {")[0]
    return re.sub(r"//.*", "", text)


def named(text: str) -> list[str]:
    """Return the first names in a list of imports: `a::b, c` has a::b and c."""
    flat, depth, parts = "", 0, []
    for character in text + ",":
        depth += (character == "{") - (character == "}")
        if character == "," and depth == 0:
            parts.append(flat.strip())
            flat = ""
        elif depth == 0 and character not in "{}":
            flat += character
    return [part for part in parts if part]


def imports(module: tuple[str, ...], text: str, known: dict[tuple[str, ...], Path]) -> set[tuple[str, ...]]:
    """Return the modules whose files the file of a module names."""
    found = set()
    for root, path, group in PATH.findall(text):
        base = {"crate": (), "self": module, "super": module[:-1]}[root]
        names = tuple(filter(None, path.split("::")))
        while names[:1] == ("super",):
            base, names = base[:-1], names[1:]
        for tail in named(group) if group else [""]:
            target = (*base, *names, *filter(None, re.split(r"::| as .*", tail)))
            # What is not a file is something in one.
            while target and target not in known:
                target = target[:-1]
            if target and target != module:
                found.add(target)
    return found


def circles(graph: dict[tuple[str, ...], set[tuple[str, ...]]]) -> list[list[tuple[str, ...]]]:
    """Return the sets of modules that reach each other."""

    def reached(start: tuple[str, ...]) -> set[tuple[str, ...]]:
        seen: set[tuple[str, ...]] = set()
        stack = [start]
        while stack:
            for other in graph[stack.pop()] - seen:
                seen.add(other)
                stack.append(other)
        return seen

    reach = {module: reached(module) for module in graph}
    found: list[list[tuple[str, ...]]] = []
    for module in graph:
        around = sorted(other for other in reach[module] if module in reach[other])
        if around and around not in found:
            found.append(around)
    return found


def main() -> int:
    """Print what goes up or around; return how many that are."""
    known = modules()
    graph = {}
    faults = []
    level = {name: number for number, names in enumerate(LAYERS) for name in names}
    for module, file in known.items():
        text = without_tests_and_comments(file.read_text(encoding="utf-8"))
        # A module names its children to make them part of it; they name it for what it has beside them.
        children = {other for other in known if other[:-1] == module}
        graph[module] = imports(module, text, known) - children
        if not module or module[-1] == "tests":
            graph[module] = set()
            continue
        if module[0] not in level:
            faults.append(f"src/{'/'.join(module)}: no layer of LAYERS in {Path(__file__).name}")
            continue
        for other in graph[module]:
            if other[0] != module[0] and level[module[0]] >= level.get(other[0], -1):
                faults.append(
                    f"{file.relative_to(SOURCE.parent)} imports {'::'.join(other)}, which is not below it"
                )
    for circle in circles(graph):
        if any(all(module[0] == folder for module in circle) for folder in KNOWN_CIRCLES):
            continue
        faults.append("a circle: " + ", ".join("::".join(module) for module in circle))
    for fault in faults:
        print(fault)
    if not faults:
        print(f"{len(known)} files, imports go downward")
    return len(faults)


if __name__ == "__main__":
    sys.exit(min(main(), 1))
