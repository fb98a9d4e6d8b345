"""Check the built site: ``check_site.py FOLDER``.

Links and pictures lead to files that are there, and to anchors that they have; nothing is fetched from
elsewhere; pictures say in words what they show; and every public name of the package has its place.
"""

import ast
import sys
import zlib
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

PACKAGE = Path(__file__).resolve().parent.parent / "python" / "xent_rs"
#: Where what is public is listed.
PUBLIC = ("", "probability", "io", "torch", "keras", "jax", "boosting", "dask")


class Page(HTMLParser):
    """The anchors of a page, where it links to, what it loads, and pictures without words."""

    def __init__(self, path: Path):
        super().__init__()
        self.path = path
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.silent: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        """Note what a tag says."""
        found = {name: value or "" for name, value in attributes}
        self.anchors |= {found[name] for name in ("id", "name") if name in found}
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        elif tag == "link" and found.get("rel") not in ("canonical", "prev", "next", "index", "search"):
            self.loaded.append(found.get("href", ""))
        elif "src" in found:
            self.loaded.append(found["src"])
        for candidate in filter(None, found.get("srcset", "").split(",")):
            self.loaded.append(candidate.split()[0])
        if tag == "img" and "alt" not in found:  # an empty one is for pictures beside their title
            self.silent.append(found.get("src", ""))


def faults_of_links(site: Path) -> list[str]:
    """Return links, pictures and scripts that lead nowhere or elsewhere, and pictures without words."""
    pages = {path: Page(path) for path in sorted(site.rglob("*.html")) if "_static" not in path.parts}
    if len(pages) < 50:
        return [f"{site} has {len(pages)} pages; expected some hundred"]
    faults = []
    for path, page in pages.items():
        name = path.relative_to(site)
        faults += [f"{name}: the picture {source} has no words" for source in page.silent]
        faults += [f"{name} loads {url}" for url in page.loaded if urlsplit(url).netloc]
        for url in page.links + page.loaded:
            parts = urlsplit(url)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if target.is_dir():
                target /= "index.html"
            anchor = unquote(parts.fragment) if url in page.links and target in pages else ""
            if not target.is_file():
                faults.append(f"{name} leads to {url}, which is not there")
            elif anchor and anchor not in pages[target].anchors:
                faults.append(f"{name} leads to {url}, which has no such place")
    return list(dict.fromkeys(faults))


def faults_of_names(site: Path) -> list[str]:
    """Return the public names that have no place on the site."""
    if not (site / "objects.inv").is_file():
        return [f"{site} has no objects.inv"]
    packed = (site / "objects.inv").read_bytes().split(b"\n", 4)[4]
    there = {line.split(" ", 1)[0] for line in zlib.decompress(packed).decode().splitlines()}
    faults = []
    for module in PUBLIC:
        file = PACKAGE / module / "__init__.py"
        file = file if file.is_file() else PACKAGE / f"{module}.py"
        for statement in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "__all__":
                names = [
                    ".".join(filter(None, ("xent_rs", module, name)))
                    for name in ast.literal_eval(statement.value)
                ]
                faults += [
                    f"no page has {name}" for name in names if name not in there | {"xent_rs.__version__"}
                ]
    return faults


if __name__ == "__main__":
    site = Path(sys.argv[1]).resolve()
    found = faults_of_links(site) + faults_of_names(site)
    print("\n".join(found) or "all links and pictures lead somewhere, and every public name is there")
    sys.exit(1 if found else 0)
