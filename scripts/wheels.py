"""Build the source distribution and the wheels, check them, and try them out where there is no Rust.

    python scripts/wheels.py                                all that this machine can build, into dist/
    python scripts/wheels.py build sdist musllinux-x86_64   some of it
    python scripts/wheels.py build macos-arm64 --interpreter python3.14t    a free-threaded one
    python scripts/wheels.py check dist/*                   what is inside, where it claims to run, how large
    python scripts/wheels.py try dist/*.whl --python python3.10     installation, first loss, quickest tests
    python -m pytest $(python scripts/wheels.py smoke)      these tests, on what is installed

One wheel for each platform serves every CPython from 3.10 on, by the stable ABI; a free-threaded CPython
needs one of its own. Linux wheels are linked by zig, against the oldest C library of their platform, on any
Linux. A platform whose standard library of Rust is missing is skipped by the first command, which says so,
and is an error of the second. The tools are installed into an environment under target/, from the index.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Mapping, Sequence
from email.parser import BytesParser
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
RUSTC = os.environ.get("RUSTC", "rustc")
TOOLS = [
    "abi3audit>=0.0.26,<0.1",
    "auditwheel>=6.8,<7",
    "check-wheel-contents>=0.6.3,<0.7",
    "maturin>=1.16,<2",
    "twine>=6.2,<7",
    "ziglang>=0.15,<0.18",
]
#: The tests that say whether a wheel works: every function, dtype and level of the CPU, bad input, threads.
SMOKE = [
    f"tests/test_{name}.py"
    for name in ("binary", "cross_entropy", "edge_cases", "kl", "settings", "softmax", "threads")
]
SMOKE_NEEDS = [
    "hypothesis>=6.100",
    "ml_dtypes>=0.5",
    "pytest>=8.3",
    "pytest-benchmark>=5.1",
    "pytest-timeout>=2.3",
]
LARGEST_FILE = 6 * 2**20
#: Seconds from `pip install` of the wheel, NumPy's included, to the first loss.
LONGEST_START = 60.0


class Platform(NamedTuple):
    """What a wheel is built for."""

    target: str  # Rust's name of it
    compatibility: str = ""  # of Linux: the oldest C library


PLATFORMS = {
    "manylinux-x86_64": Platform("x86_64-unknown-linux-gnu", "manylinux2014"),
    "manylinux-aarch64": Platform("aarch64-unknown-linux-gnu", "manylinux2014"),
    "musllinux-x86_64": Platform("x86_64-unknown-linux-musl", "musllinux_1_2"),
    "musllinux-aarch64": Platform("aarch64-unknown-linux-musl", "musllinux_1_2"),
    "macos-x86_64": Platform("x86_64-apple-darwin"),
    "macos-arm64": Platform("aarch64-apple-darwin"),
    "windows-x86_64": Platform("x86_64-pc-windows-msvc"),
    "windows-arm64": Platform("aarch64-pc-windows-msvc"),
}


class PackageError(Exception):
    """What is wrong, in a sentence."""


def run(command: Sequence[str | Path], environment: Mapping[str, str] | None = None) -> None:
    """Run a command in the root of the checkout, and show it."""
    print("$", *command, flush=True)
    finished = subprocess.run(command, cwd=ROOT, env={**os.environ, **(environment or {})}, check=False)
    if finished.returncode:
        raise PackageError(
            f"{Path(command[0]).name} {command[1]} failed, with exit status {finished.returncode}"
        )


def output(command: Sequence[str | Path]) -> str:
    """Return what a command prints."""
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def scripts_of(environment: Path) -> Path:
    """Return the folder of a virtual environment in which its commands lie."""
    return environment / ("Scripts" if os.name == "nt" else "bin")


def tools() -> Path:
    """Return the folder with the commands of `TOOLS`, installed on the first call."""
    environment = ROOT / "target" / "wheels" / "tools"
    marker = environment / "installed"
    if not marker.exists() or marker.read_text(encoding="utf-8").split("\n") != TOOLS:
        run([sys.executable, "-m", "venv", "--clear", environment])
        run([scripts_of(environment) / "python", "-m", "pip", "install", "--quiet", *TOOLS])
        marker.write_text("\n".join(TOOLS), encoding="utf-8")
    return scripts_of(environment)


def has_standard_library(target: str) -> bool:
    """Return whether the Rust compiler has its standard library compiled for a target."""
    library = Path(output([RUSTC, "--print", "target-libdir", "--target", target]).strip())
    return any(library.glob("libstd-*"))


def lacking(name: str, build_std: bool) -> str:
    """Return what this machine lacks to build for a platform; nothing where it can."""
    target = PLATFORMS[name].target
    if target.endswith("-apple-darwin") and sys.platform != "darwin":
        return "the linker and the libraries of macOS"
    if target.endswith("-msvc") and sys.platform != "win32":
        return "the linker and the libraries of Windows"
    if PLATFORMS[name].compatibility and not sys.platform.startswith("linux"):
        return "Linux"
    if not shutil.which(RUSTC):
        return "Rust"
    if has_standard_library(target):
        return ""
    if not build_std:
        return f"Rust's standard library for it (rustup target add {target})"
    source = Path(output([RUSTC, "--print", "sysroot"]).strip(), "lib/rustlib/src/rust/library")
    return "" if source.exists() else "the source of Rust's standard library (rustup component add rust-src)"


def build(name: str, out: Path, interpreter: str | None = None, build_std: bool = False) -> None:
    """Build the sdist, or the wheel of a platform."""
    maturin = tools() / "maturin"
    if name == "sdist":
        run([maturin, "sdist", "--out", out])
        return
    if missing := lacking(name, build_std):
        raise PackageError(f"{name} cannot be built here, which lacks {missing}")
    target, compatibility = PLATFORMS[name]
    command: list[str | Path] = [maturin, "build", "--release", "--locked", "--target", target, "--out", out]
    if compatibility:
        command += ["--zig", "--compatibility", compatibility]
    if interpreter:
        command += ["--interpreter", interpreter]
    if build_std and not has_standard_library(target):
        command += ["-Z", "build-std=std,panic_unwind"]
    environment = {
        "PATH": f"{tools()}{os.pathsep}{os.environ['PATH']}",
        "CARGO_PROFILE_RELEASE_DEBUG": "none",  # it would be stripped
    }
    if target.endswith("-musl"):
        # A module that Python loads is linked to the C library that Python runs on.
        environment["RUSTFLAGS"] = f"{os.environ.get('RUSTFLAGS', '')} -C target-feature=-crt-static".strip()
    begin = time.monotonic()
    run(command, environment)
    print(f"built {name} in {time.monotonic() - begin:.0f} s", flush=True)


def check(files: Sequence[Path]) -> None:
    """Check what is inside of sdists and wheels, and on which systems the wheels claim to run."""
    if not files:
        raise PackageError("no file to check")
    run([sys.executable, ".ci/check_packages.py", *files])
    run([tools() / "twine", "check", "--strict", *files])
    for file in files:
        size = file.stat().st_size
        print(f"{file.name}: {size / 1e6:.2f} MB", flush=True)
        if size > LARGEST_FILE:
            raise PackageError(f"{file.name} has {size} bytes; expected at most {LARGEST_FILE}")
    wheels = [file for file in files if file.suffix == ".whl"]
    for wheel in wheels:
        run([tools() / "check-wheel-contents", wheel])
        if "-abi3-" in wheel.name:
            run([tools() / "abi3audit", "--strict", "--summary", wheel])
        if "linux" in wheel.name:
            check_libraries(wheel)


def check_libraries(wheel: Path) -> None:
    """Check that auditwheel finds a wheel to run on the systems that its name promises."""
    said = " ".join(output([tools() / "auditwheel", "show", wheel]).split())
    found = re.search(r'consistent with the following platform tag: "(\w+linux)_(\d+)_(\d+)_(\w+)"', said)
    promised = re.search(r"(manylinux|musllinux)_(\d+)_(\d+)_(x86_64|aarch64)", wheel.name)
    print(f"auditwheel: {said}", flush=True)
    if not found or not promised or found[1] != promised[1] or found[4] != promised[4]:
        raise PackageError(f"{wheel.name}: auditwheel finds {found[0] if found else 'no tag'}")
    if (int(found[2]), int(found[3])) > (int(promised[2]), int(promised[3])):
        raise PackageError(f"{wheel.name} needs a newer C library than it promises: {found[0]}")


def first_example(wheel: Path) -> str:
    """Return the first example of the page that the wheel carries, which is README's."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        page = str(BytesParser().parsebytes(archive.read(name)).get_payload())
    found = re.search(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    if not found or "xent_rs" not in found[1]:
        raise PackageError(f"{wheel.name}: its page begins without an example")
    return found[1]


def without_rust(path: str) -> str:
    """Return a search path less the folders with a Rust compiler, of which an installation must not know."""
    return os.pathsep.join(
        folder
        for folder in path.split(os.pathsep)
        if not any(shutil.which(name, path=folder) for name in ("cargo", "rustc", "maturin"))
    )


def seconds_of_children() -> float:
    """Return how long the commands that are done kept a CPU busy; 0 on Windows."""
    times = os.times()
    return times.children_user + times.children_system


def try_out(wheel: Path, python: str) -> None:
    """Install a wheel where there is no Rust, compute README's first loss and run the quickest tests."""
    wheel = wheel.resolve()
    with tempfile.TemporaryDirectory() as folder:
        run([python, "-m", "venv", folder])
        inside = scripts_of(Path(folder)) / "python"
        environment = {"PATH": without_rust(os.environ["PATH"]), "PYTHONPATH": "", "VIRTUAL_ENV": folder}
        begin, busy = time.monotonic(), seconds_of_children()
        install: list[str | Path] = [inside, "-m", "pip", "install", "--quiet"]
        run([*install, "--no-cache-dir", "--only-binary", ":all:", wheel], environment)
        installed = time.monotonic()
        example = Path(folder, "example.txt")
        example.write_text(first_example(wheel), encoding="utf-8")
        run([inside, "-m", "doctest", example], environment)
        done, busy = time.monotonic(), seconds_of_children() - busy
        print(
            f"{wheel.name}: from `pip install` to a first loss {done - begin:.1f} s "
            f"({installed - begin:.1f} s to install it and NumPy, {done - installed:.1f} s to compute; "
            f"{busy:.1f} s of one CPU)",
            flush=True,
        )
        # On a machine with other work to do the clock says nothing, and Windows does not count.
        if min(done - begin, busy or done - begin) > LONGEST_START:
            raise PackageError(f"{wheel.name}: that takes longer than {LONGEST_START:.0f} s")
        run([inside, "-m", "xent_rs", "info"], environment)
        run([*install, *SMOKE_NEEDS], environment)
        begin = time.monotonic()
        run([inside, "-m", "pytest", "-q", "-p", "no:cacheprovider", *SMOKE], environment)
        print(f"{wheel.name}: the quickest tests took {time.monotonic() - begin:.0f} s", flush=True)


def fits(
    wheel: Path, version: Sequence[int], free_threaded: bool, libc: str, machine: str, system: str
) -> bool:
    """Return whether an interpreter, as it describes itself, takes a wheel of this name."""
    _, _, _, abi, target = wheel.stem.split("-")
    if abi != (f"cp{version[0]}{version[1]}t" if free_threaded else "abi3"):
        return False
    linux = "manylinux" if libc == "glibc" else "musllinux"
    name = {"linux": linux, "darwin": "macosx", "win32": "win"}[system]
    return any(each.startswith(name) and each.endswith(f"_{machine.lower()}") for each in target.split("."))


def fits_here(wheel: Path, python: str) -> bool:
    """Return whether an interpreter on this machine takes a wheel of this name."""
    source = (
        "import json, platform, sys, sysconfig;"
        "print(json.dumps([sys.version_info[:2], bool(sysconfig.get_config_var('Py_GIL_DISABLED')),"
        " platform.libc_ver()[0], platform.machine(), sys.platform]))"
    )
    return fits(wheel, *json.loads(output([python, "-c", source])))


def everything(out: Path, interpreters: Sequence[str], build_std: bool) -> None:
    """Build, check and try out all that this machine can."""
    build("sdist", out)
    for name in PLATFORMS:
        if missing := lacking(name, build_std):
            print(f"skipped {name}: this machine lacks {missing}", flush=True)
        else:
            build(name, out, build_std=build_std)
    wheels = sorted(out.glob("*.whl"))
    check([*sorted(out.glob("*.tar.gz")), *wheels])
    for wheel in wheels:
        fitting = [python for python in interpreters if fits_here(wheel, python)]
        for python in fitting:
            try_out(wheel, python)
        if not fitting:
            print(f"not tried out: {wheel.name}, which none of {', '.join(interpreters)} takes", flush=True)


def main() -> None:
    """Do what the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command")
    building = commands.add_parser("build", help="build the sdist or wheels")
    building.add_argument("names", nargs="+", choices=["sdist", *PLATFORMS], metavar="NAME")
    building.add_argument("--interpreter", help="a free-threaded Python, for a wheel that fits no other")
    checking = commands.add_parser("check", help="check files that are built")
    checking.add_argument("files", nargs="+", type=Path)
    trying = commands.add_parser("try", help="install wheels that are built, and run the quickest tests")
    trying.add_argument("files", nargs="+", type=Path)
    commands.add_parser("smoke", help="print the files of the quickest tests, for pytest")
    for each in (parser, building):
        each.add_argument("--out", type=Path, default=ROOT / "dist", help="where the files go (dist/)")
        each.add_argument(
            "--build-std",
            action="store_true",
            help="compile missing standard libraries of Rust; needs their source and unstable features",
        )
    for each in (parser, trying):
        each.add_argument("--python", default=sys.executable, help="the interpreter to try (this one)")
    options = parser.parse_args()
    try:
        if options.command == "build":
            for name in options.names:
                build(name, options.out, options.interpreter, options.build_std)
        elif options.command == "check":
            check(options.files)
        elif options.command == "try":
            for file in options.files:
                try_out(file, options.python)
        elif options.command == "smoke":
            print(*SMOKE)
        else:
            everything(options.out, [options.python], options.build_std)
    except PackageError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
