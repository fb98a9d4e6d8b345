"""Print what CHANGELOG.md says of a version, for the release of its tag.

    python scripts/release_notes.py v0.1.0

Fails unless Cargo.toml, CITATION.cff and the newest heading of CHANGELOG.md have the version of the tag, and
nothing stands under *Unreleased*.
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def sections(changelog: str) -> dict[str, str]:
    """Return what stands under each heading of a version, by version, the newest first."""
    parts = re.split(r"^## \[([^]]+)\].*\n", changelog, flags=re.MULTILINE)
    return {version: text.strip() for version, text in zip(parts[1::2], parts[2::2], strict=True)}


def notes(tag: str, cargo: str, citation: str, changelog: str) -> str:
    """Return the notes of a tag; ValueError where the files are not those of its version."""
    version = tag.removeprefix("v")
    for name, pattern, text in (
        ("Cargo.toml", r'^version = "(.*)"$', cargo),
        ("CITATION.cff", r"^version: (.*)$", citation),
    ):
        found = re.search(pattern, text, re.MULTILINE)
        if (said := found[1] if found else "none") != version:
            raise ValueError(f"{name} has version {said}; expected {version}, of tag {tag}")
    versions = sections(changelog)
    if versions.pop("Unreleased", ""):
        raise ValueError(f"CHANGELOG.md has changes under Unreleased; expected them under {version}")
    newest = next(iter(versions), "none")
    if newest != version:
        raise ValueError(f"the newest version of CHANGELOG.md is {newest}; expected {version}")
    return versions[version]


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python scripts/release_notes.py TAG")
    cargo, citation, changelog = (
        (ROOT / name).read_text(encoding="utf-8") for name in ("Cargo.toml", "CITATION.cff", "CHANGELOG.md")
    )
    try:
        print(notes(sys.argv[1], cargo, citation, changelog))
    except ValueError as error:
        sys.exit(f"error: {error}")
