"""Build the kernels for JavaScript, python/xent_rs/explore/kernels.wasm, from src/ (wasm/Cargo.toml).

    python scripts/wasm.py             build, and put the module where kernels.js looks for it
    python scripts/wasm.py --check     build, and fail unless that is the module that is there
    python scripts/wasm.py --test      run the unit tests of the core as WebAssembly, in Node.js

Needs Rust's target: `rustup target add wasm32-unknown-unknown`; the tests need wasm32-wasip1 and Node.js 20.
A toolchain that has its standard library in source alone does too: with `RUSTC_BOOTSTRAP=1` and
`CARGO_UNSTABLE_BUILD_STD=std,panic_abort` in the environment (`std,panic_abort,test` for the tests) cargo
builds that first. cargo takes `RUSTC`, `CARGO_TARGET_DIR` and its other variables as always.

One compiler makes the same bytes of the same sources; another may make others. So `--check` compares bytes if
the compiler is that of the module that is there, else what both export.
"""

from __future__ import annotations

import argparse
import gzip
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MODULE = ROOT / "python" / "xent_rs" / "explore" / "kernels.wasm"
TARGET = "wasm32-unknown-unknown"


def rust(*arguments: str) -> str:
    """Return what the compiler says."""
    command = [os.environ.get("RUSTC", "rustc"), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def environment() -> dict[str, str]:
    """Return the environment of a build: with SIMD, and without the paths of this machine in the module."""
    cargo_home = os.environ.get("CARGO_HOME", str(Path.home() / ".cargo"))
    paths = {
        str(ROOT): ".",
        cargo_home: "cargo",
        f"{rust('--print', 'sysroot')}/lib/rustlib/src/rust": "rust",
    }
    flags = ["-Ctarget-feature=+simd128", "--cfg=javascript"]
    flags += [f"--remap-path-prefix={path}={name}" for path, name in paths.items()]
    return {**os.environ, "CARGO_ENCODED_RUSTFLAGS": "\x1f".join(flags)}


def build() -> bytes:
    """Return the module."""
    cargo = os.environ.get("CARGO", "cargo")
    manifest = ROOT / "wasm" / "Cargo.toml"
    command = [cargo, "build", "--release", "--locked", "--target", TARGET, "--manifest-path", str(manifest)]
    subprocess.run(command, check=True, env=environment())
    target = os.environ.get("CARGO_TARGET_DIR", ROOT / "wasm" / "target")
    return (Path(target) / TARGET / "release" / "xent_rs_wasm.wasm").read_bytes()


def test() -> int:
    """Run the unit tests of the core, all of it, under WASI; return cargo's exit status."""
    target = "wasm32-wasip1"
    variable = f"CARGO_TARGET_{target.upper().replace('-', '_')}"
    variables = {
        f"{variable}_RUNNER": f"node --no-warnings {ROOT / 'scripts' / 'wasi.mjs'}",
        f"{variable}_RUSTFLAGS": "-Ctarget-feature=+simd128",
    }
    command = [os.environ.get("CARGO", "cargo"), "test", "--locked", "--no-default-features", "--lib"]
    tests = [*command, "--target", target]
    return subprocess.run(tests, cwd=ROOT, check=False, env={**os.environ, **variables}).returncode


def sections(module: bytes) -> list[tuple[int, bytes]]:
    """Return the sections of a module: each a number that says what it is, and its bytes."""
    found, place = [], 8
    while place < len(module):
        size, start = number(module, place + 1)
        found.append((module[place], module[start : start + size]))
        place = start + size
    return found


def number(data: bytes, place: int) -> tuple[int, int]:
    """Return a number that is written in groups of seven bits, and what follows it."""
    value = shift = 0
    while True:
        byte = data[place]
        value |= (byte & 0x7F) << shift
        place, shift = place + 1, shift + 7
        if byte < 0x80:
            return value, place


def names(section: bytes) -> list[str]:
    """Return the names in a section of exports."""
    count, place = number(section, 0)
    found = []
    for _ in range(count):
        length, place = number(section, place)
        found.append(section[place : place + length].decode())
        # The kind, and the index.
        _, place = number(section, place + length + 1)
    return found


def exports(module: bytes) -> list[str]:
    """Return the names that a module exports."""
    return sorted(name for kind, section in sections(module) if kind == 7 for name in names(section))


def imports(module: bytes) -> int:
    """Return how many things a module imports."""
    return sum(number(section, 0)[0] for kind, section in sections(module) if kind == 2)


def compiler(module: bytes) -> bytes:
    """Return the section that names the compiler."""
    named = (section for kind, section in sections(module) if kind == 0 and b"producers" in section[:10])
    return next(named, b"")


def check(module: bytes) -> int:
    """Compare a module with that which is there; return 1 if they differ."""
    there = MODULE.read_bytes()
    if there == module:
        print(f"{MODULE.relative_to(ROOT)} is what the sources make")
        return 0
    if compiler(there) == compiler(module):
        print(f"{MODULE.relative_to(ROOT)} is not what the sources make: python scripts/wasm.py")
        return 1
    print(f"{MODULE.relative_to(ROOT)} is of another compiler: what it exports is compared")
    if (exports(there), imports(there)) != (exports(module), imports(module)):
        print(f"it exports {exports(there)}; expected {exports(module)}: python scripts/wasm.py")
        return 1
    return 0


def main() -> int:
    """Do what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare with the module that is there")
    parser.add_argument("--test", action="store_true", help="run the unit tests of the core in Node.js")
    options = parser.parse_args()
    if options.test:
        return test()
    module = build()
    print(f"{len(module)} bytes, {len(gzip.compress(module))} of them when packed")
    if options.check:
        return check(module)
    MODULE.write_bytes(module)
    return 0


if __name__ == "__main__":
    sys.exit(main())
