"""Check that sdists and wheels hold what they should: ``check_packages.py FILE...``."""

import re
import sys
import tarfile
import zipfile
from email.parser import BytesParser
from pathlib import PurePosixPath

SDIST_FILES = {
    "Cargo.toml",
    "Cargo.lock",
    "pyproject.toml",
    "PKG-INFO",
    "README.md",
    "LICENSE-MIT",
    "LICENSE-APACHE",
    "src/lib.rs",
    "python/xent_rs/__init__.py",
    "python/xent_rs/py.typed",
    "python/xent_rs/_xent_rs.pyi",
    "wasm/Cargo.toml",
    "wasm/Cargo.lock",
    "src/javascript.rs",
}
SDIST_FOLDERS = {"src", "python", "tests", "benches", "examples", "scripts", "docs"}
WHEEL_FILES = {
    "xent_rs/__init__.py",
    "xent_rs/__main__.py",
    "xent_rs/py.typed",
    "xent_rs/_xent_rs.pyi",
}
BENCHMARK = "xent_rs/cli/benchmark/"
BENCHMARK_FILES = {
    f"{BENCHMARK}{name}.py"
    for name in (
        "__init__",
        "cases",
        "contenders",
        "measuring",
        "peers",
        "plot",
        "reference",
        "tables",
        "timing",
    )
}
EXPLORE = "xent_rs/explore/"
EXPLORE_FILES = {
    f"{EXPLORE}{name}"
    for name in (
        "chart.js",
        "curve.js",
        "distribution.js",
        "divergence.js",
        "dom.js",
        "index.html",
        "kernels.js",
        "kernels.wasm",
        "landscape.js",
        "main.js",
        "neurons.js",
        "regression.js",
        "row.js",
        "state.js",
        "style.css",
    )
}
REQUIRED = ["numpy"]
EXTRAS = {
    "bfloat16",
    "boosting",
    "completion",
    "dask",
    "demo",
    "jax",
    "keras",
    "lint",
    "plot",
    "progress",
    "site",
    "test",
    "torch",
}
# The last two are those of free-threaded interpreters.
COMPILED = re.compile(r"xent_rs/_xent_rs(\.abi3\.so|\.pyd|\.cpython-3\d+t-[\w-]+\.so|\.cp3\d+t-win_\w+\.pyd)")
LARGEST_WHEEL = 16 * 2**20  # of which kernels.wasm is 2.9


def sdist_faults(path: str) -> list[str]:
    """Return what is wrong with the sdist."""
    with tarfile.open(path) as archive:
        names = {str(PurePosixPath(*PurePosixPath(name).parts[1:])) for name in archive.getnames()}
    faults = [f"{name} is missing" for name in sorted(SDIST_FILES - names)]
    folders = {PurePosixPath(name).parts[0] for name in names if len(PurePosixPath(name).parts) > 1}
    faults += [f"nothing from {folder}/" for folder in sorted(SDIST_FOLDERS - folders)]
    faults += [f"{name} does not belong" for name in sorted(names) if _is_build_product(name)]
    return faults + _folder_faults({name.removeprefix("python/") for name in names})


def wheel_faults(path: str) -> list[str]:
    """Return what is wrong with the wheel."""
    with zipfile.ZipFile(path) as archive:
        sizes = {entry.filename: entry.file_size for entry in archive.infolist() if not entry.is_dir()}
        (info,) = {name.split("/")[0] for name in sizes if name.split("/")[0].endswith(".dist-info")}
        metadata = BytesParser().parsebytes(archive.read(f"{info}/METADATA"))
        entry_points = archive.read(f"{info}/entry_points.txt").decode()
    expected = WHEEL_FILES | {f"{info}/licenses/LICENSE-MIT", f"{info}/licenses/LICENSE-APACHE"}
    faults = [f"{name} is missing" for name in sorted(expected - set(sizes))]
    compiled = [name for name in sizes if COMPILED.fullmatch(name)]
    if len(compiled) != 1:
        faults.append(f"compiled modules are {compiled}; expected one")
    for name in sorted(sizes):
        inside = name.startswith(("xent_rs/", f"{info}/"))
        if not inside or (_is_build_product(name) and name not in compiled):
            faults.append(f"{name} does not belong")
    faults += _folder_faults(set(sizes))
    requirements = metadata.get_all("Requires-Dist") or []
    names = [re.match(r"[\w.-]+", each)[0] for each in requirements if "extra ==" not in each]
    if names != REQUIRED:
        faults.append(f"requires {names}; expected {REQUIRED}")
    extras = set(metadata.get_all("Provides-Extra") or [])
    if extras != EXTRAS:
        faults.append(f"has the extras {sorted(extras)}; expected {sorted(EXTRAS)}")
    if sum(sizes.values()) > LARGEST_WHEEL:
        faults.append(f"{sum(sizes.values())} bytes unpacked; expected at most {LARGEST_WHEEL}")
    if "xent-rs=xent_rs.cli:main" not in entry_points.replace(" ", ""):
        faults.append("no command xent-rs")
    for field, pattern in [
        ("License-Expression", "MIT OR Apache-2.0"),
        ("Requires-Python", r">=3\.10"),
        ("Summary", ".+"),
        ("Description-Content-Type", "text/markdown.*"),
    ]:
        if not re.fullmatch(pattern, metadata.get(field) or ""):
            faults.append(f"metadata {field} is {metadata.get(field)!r}; expected {pattern}")
    # An index has no files beside the description.
    links = re.findall(r"\]\((?!https://).*?\)|<img.*?>", metadata.get_payload())
    faults += [f"the description links to {link}" for link in links]
    return faults


def _folder_faults(names: set[str]) -> list[str]:
    """Return which modules of `xent-rs bench` and files of `xent-rs explore` are missing or do not belong."""
    faults = []
    for folder, files in ((BENCHMARK, BENCHMARK_FILES), (EXPLORE, EXPLORE_FILES)):
        found = {name for name in names if name.startswith(folder) and not name.endswith("/")}
        faults += [f"{name} is missing" for name in sorted(files - found)]
        faults += [f"{name} does not belong" for name in sorted(found - files)]
    return faults


def _is_build_product(name: str) -> bool:
    return name.endswith((".so", ".pyd", ".pyc", ".whl")) or name.startswith(
        ("target/", "wasm/target/", ".venv")
    )


if __name__ == "__main__":
    if not sys.argv[1:]:
        sys.exit("no file to check")
    found = []
    for file in sys.argv[1:]:
        faults = wheel_faults(file) if file.endswith(".whl") else sdist_faults(file)
        found += [f"{PurePosixPath(file).name}: {fault}" for fault in faults]
    print("\n".join(found) or "sdists and wheels are complete")
    sys.exit(1 if found else 0)
