"""Pages that are read in the repository too, where links lead to files: README, this folder, the examples.

On the site a line that is nothing but a link to a section of README is that section, and links to what is
no page lead to the page that has it.
"""

import os
import re
from pathlib import Path

DOCS = Path(__file__).resolve().parent.parent
ROOT = DOCS.parent

#: Files of the repository, and sections of README, and the pages that have them.
PAGES = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "README.md": "index.md",
    "README.md#accuracy": "accuracy.md",
    "README.md#command-line": "command_line.md",
    "README.md#data": "meaning.md#data",
    "README.md#from-hidden-states": "speed.md#from-hidden-states",
    "README.md#in-frameworks": "speed.md#in-frameworks",
    "README.md#javascript": "javascript.md",
    "README.md#limits": "limits.md",
    "README.md#meaning": "meaning.md",
    "README.md#memory": "settings.md#memory",
    "README.md#settings": "settings.md",
    "README.md#speed": "speed.md",
    "README.md#start": "start.md",
    "README.md#two-models-compared": "compare.md",
    "README.md#what-there-is": "meaning.md",
    "docs/gallery/README.rst": "examples/index.rst",
}

_HEADING = re.compile(r"^(#+) (.*)\n", re.MULTILINE)
_LINK = re.compile(r"\]\((?!https?:)([^()#\s]*)(#[^()\s]*)?\)")
_OF_REPOSITORY = re.compile(r"\[([^][]*)\]\((?:\.\./)?([A-Z_]+\.md)\)")
_NAMED_BY_FILE = re.compile(r"\[(?:README|(?:docs/)?\w+\.md)\](?=\()")  # on the site, by its title
_SECTION = re.compile(r"^\[[^]]*\]\(\.\./([\w.]+\.md)#([\w-]+)\)\n", re.MULTILINE)
_WHOLE = re.compile(r"^\[[^]]*\]\(\.\./(CHANGELOG|CONTRIBUTING)\.md\)\n", re.MULTILINE)


def anchor(heading: str) -> str:
    """Return the anchor of a heading, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-")


def section(text: str, name: str) -> str:
    """Return what stands under a heading with this anchor, without the sections below it."""
    (heading,) = (match for match in _HEADING.finditer(text) if anchor(match[2]) == name)
    end = _HEADING.search(text, heading.end())
    return text[heading.end() : end.start() if end else None]


def at_home(text: str, file: Path) -> str:
    """Return the text of a file with its links as they lead from a page of the site."""

    def link(match: re.Match[str]) -> str:
        path = Path(os.path.normpath(file.parent / match[1])) if match[1] else file
        target = path.relative_to(ROOT).as_posix() + (match[2] or "")
        if not match[1] and file.parent == DOCS:
            return match[0]
        if target in PAGES:
            return f"]({PAGES[target]})"
        if match[1].endswith(".py") and path.parent == DOCS / "gallery":
            return f"](examples/{path.stem}.rst)"
        return f"]({Path(os.path.relpath(path, DOCS)).as_posix()}{match[2] or ''})"

    def of_repository(match: re.Match[str]) -> str:
        return match[0] if match[2] in PAGES else match[1]  # the site has no such page

    return _LINK.sub(link, _NAMED_BY_FILE.sub("[]", _OF_REPOSITORY.sub(of_repository, text)))


def of_site(text: str, page: Path) -> str:
    """Return the text of a page as the site has it."""

    def included(match: re.Match[str]) -> str:
        file = ROOT / match[1]
        return at_home(section(file.read_text(encoding="utf-8"), match[2]), file)

    def whole(match: re.Match[str]) -> str:
        file = ROOT / f"{match[1]}.md"
        return at_home(re.sub(r"\A# .*\n", "", file.read_text(encoding="utf-8")), file)

    text = _WHOLE.sub(whole, _SECTION.sub(included, text))
    # Doctest wants an empty line at the end of a block, readers do not.
    return at_home(re.sub(r"\n\n```\n", "\n```\n", text), page)


def _read(app, name, source):
    page = Path(app.env.doc2path(name))
    if page.suffix == ".md" and page.parent == DOCS:
        source[0] = of_site(source[0], page)


def setup(app):
    """Connect it."""
    app.connect("source-read", _read)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
