"""What goes out: notes of a release, names of wheels, workflows."""

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def script(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


CHANGELOG = """\
# Changelog

## [Unreleased]

{unreleased}
## [0.2.0] - 2026-12-01

### Added

- A thing.

## [0.1.0] - 2026-11-01

- All.
"""
CARGO, CITATION = '[package]\nversion = "0.2.0"\n', "cff-version: 1.2.0\nversion: 0.2.0\n"


def test_notes_of_a_release_are_the_section_of_its_version():
    notes = script("release_notes").notes
    assert notes("v0.2.0", CARGO, CITATION, CHANGELOG.format(unreleased="")) == "### Added\n\n- A thing."


@pytest.mark.parametrize(
    ("tag", "cargo", "citation", "unreleased", "message"),
    [
        ("v0.1.0", "0.2.0", "0.2.0", "", "Cargo.toml has version 0.2.0; expected 0.1.0, of tag v0.1.0"),
        ("v0.2.0", "0.2.0", "0.1.0", "", "CITATION.cff has version 0.1.0; expected 0.2.0, of tag v0.2.0"),
        ("v0.2.0", "0.2.0", "0.2.0", "- New.\n", "CHANGELOG.md has changes under Unreleased; expected them"),
        ("v0.3.0", "0.3.0", "0.3.0", "", "the newest version of CHANGELOG.md is 0.2.0; expected 0.3.0"),
    ],
)
def test_a_tag_of_another_version_has_no_notes(tag, cargo, citation, unreleased, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        script("release_notes").notes(
            tag,
            CARGO.replace("0.2.0", cargo),
            CITATION.replace("0.2.0", citation),
            CHANGELOG.format(unreleased=unreleased),
        )


def test_crate_and_citation_have_one_version():
    cargo, citation = ((ROOT / name).read_text(encoding="utf-8") for name in ("Cargo.toml", "CITATION.cff"))
    version = re.search(r'^version = "(.*)"$', cargo, re.MULTILINE)[1]
    assert f"\nversion: {version}\n" in citation


def test_the_quickest_tests_are_there():
    for file in script("wheels").SMOKE:
        assert (ROOT / file).is_file(), file


def test_installations_without_rust_see_none(tmp_path):
    with_rust, without = tmp_path / "with", tmp_path / "without"
    for folder in (with_rust, without):
        folder.mkdir()
    for name in ("rustc", "rustc.exe"):
        (with_rust / name).write_text("")
        (with_rust / name).chmod(0o755)
    wheels = script("wheels")
    separator = wheels.os.pathsep
    assert wheels.without_rust(f"{with_rust}{separator}{without}") == str(without)


ABI3 = "cp310-abi3-manylinux_2_17_{0}.manylinux2014_{0}"
FREE_THREADED = "cp314-cp314t-manylinux_2_17_{0}.manylinux2014_{0}"


@pytest.mark.parametrize(
    ("name", "interpreter", "fits"),
    [
        (ABI3.format("x86_64"), ((3, 13), False, "glibc", "x86_64", "linux"), True),
        (ABI3.format("x86_64"), ((3, 13), False, "", "x86_64", "linux"), False),
        (ABI3.format("x86_64"), ((3, 14), True, "glibc", "x86_64", "linux"), False),
        (ABI3.format("aarch64"), ((3, 13), False, "glibc", "x86_64", "linux"), False),
        (FREE_THREADED.format("x86_64"), ((3, 14), True, "glibc", "x86_64", "linux"), True),
        (FREE_THREADED.format("x86_64"), ((3, 14), False, "glibc", "x86_64", "linux"), False),
        (FREE_THREADED.format("x86_64"), ((3, 15), True, "glibc", "x86_64", "linux"), False),
        ("cp310-abi3-musllinux_1_2_x86_64", ((3, 13), False, "", "x86_64", "linux"), True),
        ("cp310-abi3-macosx_11_0_arm64", ((3, 10), False, "", "arm64", "darwin"), True),
        ("cp310-abi3-win_amd64", ((3, 10), False, "", "AMD64", "win32"), True),
        ("cp310-abi3-win_arm64", ((3, 12), False, "", "AMD64", "win32"), False),
    ],
)
def test_wheels_are_tried_where_they_fit(name, interpreter, fits):
    wheel = Path(f"dist/xent_rs-0.1.0-{name}.whl")
    assert script("wheels").fits(wheel, *interpreter) == fits


@pytest.mark.skipif(not WORKFLOWS, reason="an sdist without .github/")
def test_actions_are_pinned_to_one_commit_each():
    """By a full hash, with the version beside it; zizmor cannot see that two files pin different ones."""
    pins = {}
    for workflow in WORKFLOWS:
        for action, pin in re.findall(r"uses: ([\w./-]+)@(.*)\n", workflow.read_text(encoding="utf-8")):
            assert re.fullmatch(r"[0-9a-f]{40} # v\d+(\.\d+)*", pin), f"{workflow.name}: {action}@{pin}"
            assert pins.setdefault(action, pin) == pin, f"{workflow.name}: {action}@{pin}"
    assert pins


@pytest.mark.skipif(not WORKFLOWS, reason="an sdist without .github/")
def test_scripts_of_workflows_are_there():
    for workflow in WORKFLOWS:
        for file in re.findall(r"(\.ci/\w+|scripts/\w+\.py)", workflow.read_text(encoding="utf-8")):
            assert (ROOT / file).is_file(), f"{workflow.name}: {file}"
