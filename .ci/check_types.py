"""Ask pyright whether the public interface is typed in full: every name but those of the command line.

Usage: check_types.py PYTHON, the interpreter that has xent_rs and pyright installed.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

# The command line is no interface for imports; what is for a framework has its types from there.
PRIVATE = ("xent_rs.cli", "xent_rs.dask", "xent_rs.jax", "xent_rs.keras", "xent_rs.torch")


def main(python: str) -> None:
    """Print what is not typed, and exit with 1 if there is any."""
    # It takes the first interpreter of the path, whatever else it is told.
    path = os.pathsep.join([str(Path(python).parent), os.environ["PATH"]])
    finished = subprocess.run(
        ["pyright", "--verifytypes", "xent_rs", "--ignoreexternal", "--outputjson"],
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    symbols = json.loads(finished.stdout)["typeCompleteness"]["symbols"]
    public = [symbol for symbol in symbols if symbol["isExported"] and not symbol["name"].startswith(PRIVATE)]
    unknown = [symbol for symbol in public if not symbol["isTypeKnown"]]
    for symbol in unknown:
        for diagnostic in symbol["diagnostics"] or [{"message": "type is not known"}]:
            print(f"{symbol['name']}: {diagnostic['message']}", file=sys.stderr)
    print(f"{len(public) - len(unknown)} of {len(public)} public names have types")
    # That there are none would mean that pyright did not find the package.
    sys.exit(bool(unknown) or not public)


if __name__ == "__main__":
    main(*sys.argv[1:])
