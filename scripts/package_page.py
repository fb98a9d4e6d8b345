"""Write docs/package_page.md, what a package index shows: README's first part, as far as it holds there.

    python scripts/package_page.py

An index has no files beside the page: pictures go, links to files become text, and what is marked as for a
checkout goes too. The tests fail while the page is not that of README.
"""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "package_page.md"
END = "<!-- package page: end -->\n"
MORE = """\
## More

The source distribution has the rest: `README.md` says what data and options mean, how accurate and how fast
the results are and where the limits lie; `docs/names.md` maps the names of other libraries to these.
"""


def page(readme: str) -> str:
    """Return the page made of README."""
    text = readme[: readme.index(END)]
    text = re.sub(r"<!-- checkout: begin -->\n.*?<!-- checkout: end -->\n\n", "", text, flags=re.DOTALL)
    text = re.sub(r"^<!--.*-->\n", "", text, flags=re.MULTILINE)
    text = re.sub(r" \(\[picture\]\([^()]*\)\)", "", text)
    return re.sub(r"\[([^][]*)\]\((?!https?://)[^()]*\)", r"\1", text) + MORE


if __name__ == "__main__":
    PAGE.write_text(page((ROOT / "README.md").read_text(encoding="utf-8")), encoding="utf-8")
