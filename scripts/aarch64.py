"""Build and test for AArch64 Linux on another machine, under qemu.

    python scripts/aarch64.py core              the unit tests of the Rust core
    python scripts/aarch64.py core NAME...      those with NAME in theirs
    python scripts/aarch64.py python            accuracy, edge cases, layouts and threads of the Python suite
    python scripts/aarch64.py python ARG...     what pytest makes of these arguments

What is missing is named in a line that begins with "skipped", and the exit status is 0; with ``--strict`` it
is 1. Needed are a C compiler (``aarch64-linux-gnu-gcc``) and user-mode qemu, which Debian and Ubuntu have as
``gcc-aarch64-linux-gnu`` and ``qemu-user-static``, and the target's standard library: ``rustup target add
aarch64-unknown-linux-gnu``. Another compiler than the one on the path is taken from ``RUSTC``.

``python`` takes maturin and pip besides, and a CPython for AArch64: it unpacks that of the Debian or Ubuntu
it runs on, by ``apt-get`` and ``dpkg``, and wheels from the package index. Nothing is installed: all of it
goes to ``target/aarch64/``, where it stays for the next time.

On an AArch64 machine neither is needed: there the commands of CONTRIBUTING.md do the same.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TARGET = "aarch64-unknown-linux-gnu"
TRIPLE = "aarch64-linux-gnu"
CACHE = ROOT / "target" / "aarch64"
# The part of the suite that computes: other files test what has nothing to do with the CPU.
SUITE = [
    "tests/test_accuracy.py",
    "tests/test_edge_cases.py",
    "tests/test_layouts.py",
    "tests/test_threads.py",
]
WHEELS = ["hypothesis", "ml_dtypes", "numpy", "pytest", "pytest-benchmark", "pytest-timeout"]
# The newest platforms that wheels are made for, of those whose C library Debian 12 has.
PLATFORMS = ["manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux2014_aarch64"]


class MissingError(Exception):
    """What cannot be done here, and why."""


def found(*names: str, package: str) -> str:
    """Return the path of the first program of these names that there is."""
    for name in names:
        if path := shutil.which(name):
            return path
    raise MissingError(f"there is no {names[0]}; Debian's package is {package}")


def run(*command: str | Path, environment: dict[str, str] | None = None) -> None:
    """Run a command, which is to succeed."""
    print("   ", *command, flush=True)
    variables = {**os.environ, **(environment or {})}
    status = subprocess.run(command, cwd=ROOT, env=variables, check=False).returncode
    if status:
        raise SystemExit(f"{Path(command[0]).name} failed, with status {status}")


def toolchain() -> tuple[str, dict[str, str]]:
    """Return the path of qemu, and the environment in which cargo builds and runs for the target."""
    qemu = found("qemu-aarch64-static", "qemu-aarch64", package="qemu-user-static")
    linker = found(f"{TRIPLE}-gcc", package=f"gcc-{TRIPLE}")
    found("cargo", package="cargo")
    rustc = os.environ.get("RUSTC") or found("rustc", package="rustc")
    ask = [rustc, "--print", "target-libdir", "--target", TARGET]
    library = subprocess.run(ask, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    if not list(Path(library).glob("libstd-*.rlib")):
        raise MissingError(f"{rustc} has no standard library of {TARGET}: rustup target add {TARGET}")
    variable = f"CARGO_TARGET_{TARGET.upper().replace('-', '_')}"
    environment = {f"{variable}_LINKER": linker, f"{variable}_RUNNER": f"{qemu} -L /usr/{TRIPLE}"}
    if "RUSTC" in os.environ and "CARGO_TARGET_DIR" not in os.environ:
        # What other compilers made is of no use to this one.
        environment["CARGO_TARGET_DIR"] = str(CACHE / "build")
    return qemu, environment


def core(arguments: list[str]) -> None:
    """Run the unit tests of the core."""
    _, environment = toolchain()
    command = ["cargo", "test", "--locked", "--no-default-features", "--lib", "--target", TARGET]
    run(*command, "--", *arguments, environment=environment)


def interpreter() -> Path:
    """Return the folder with a CPython for the target: from the system's archive, unless it is there."""
    root = CACHE / "root"
    if root.exists():
        return root
    apt = found("apt-get", package="apt")
    found("dpkg", package="dpkg")
    packages = CACHE / "apt"
    for folder in ("lists/partial", "archives/partial"):
        (packages / folder).mkdir(parents=True, exist_ok=True)
    (packages / "status").touch()
    settings = {
        "APT::Architecture": "arm64",
        "APT::Architectures": "arm64",
        "APT::Sandbox::User": "",
        "Debug::NoLocking": "true",
        "Dir::Cache": packages,
        "Dir::State::Lists": packages / "lists",
        "Dir::State::status": packages / "status",
    }
    options = [text for name, value in settings.items() for text in ("-o", f"{name}={value}")]
    try:
        run(apt, *options, "--quiet", "update")
        install = ["--quiet", "--yes", "--download-only", "--no-install-recommends", "install"]
        run(apt, *options, *install, "python3", "libstdc++6")
    except SystemExit as error:
        raise MissingError(f"a CPython for {TARGET} could not be had: {error}") from None
    unpacked = CACHE / "unpacked"
    shutil.rmtree(unpacked, ignore_errors=True)
    for package in sorted((packages / "archives").glob("*.deb")):
        run("dpkg", "-x", package, unpacked)
    return unpacked.rename(root)


def python(arguments: list[str]) -> None:
    """Run a part of the Python suite."""
    qemu, environment = toolchain()
    maturin = found("maturin", package="none: pip install maturin")
    root = interpreter()
    (executable,) = root.glob("usr/bin/python3.*[0-9]")
    version = executable.name.removeprefix("python")
    wheels, site = CACHE / "wheels", CACHE / "site"
    if not wheels.exists():
        platforms = [f"--platform={platform}" for platform in PLATFORMS]
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--only-binary=:all:", *platforms]
        run(*command, f"--python-version={version}", f"--dest={CACHE / 'downloads'}", *WHEELS)
        (CACHE / "downloads").rename(wheels)
    build = [maturin, "build", "--release", "--locked", "--target", TARGET, "--compatibility", "linux"]
    shutil.rmtree(CACHE / "wheel", ignore_errors=True)
    run(*build, "--out", CACHE / "wheel", environment=environment)
    shutil.rmtree(site, ignore_errors=True)
    for wheel in (*wheels.glob("*.whl"), *(CACHE / "wheel").glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(site)
    # Children are to run under qemu, too, on systems that do not see to that themselves.
    wrapper = CACHE / "python"
    wrapper.write_text(f'#!/bin/sh\nexec {qemu} -L "{root}" "{executable}" "$@"\n')
    wrapper.chmod(0o755)
    (site / "sitecustomize.py").write_text(f"import sys\n\nsys.executable = {str(wrapper)!r}\n")
    environment = {"PYTHONPATH": str(site), "PYTHONDONTWRITEBYTECODE": "1"}
    run(wrapper, "-c", "import xent_rs; xent_rs.show_config()", environment=environment)
    # Emulated, a test takes many times as long.
    run(wrapper, "-m", "pytest", "--timeout=3600", *(arguments or SUITE), environment=environment)


def main() -> int:
    """Do what is asked for; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--strict", action="store_true", help="fail where something is missing")
    parser.add_argument("part", choices=["core", "python"])
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="for the tests")
    options = parser.parse_args()
    try:
        {"core": core, "python": python}[options.part](options.arguments)
    except MissingError as error:
        print(f"skipped: {error}")
        return int(options.strict)
    return 0


if __name__ == "__main__":
    sys.exit(main())
