"""Make one call in this process, and print by how much it raised the memory that the process holds at most.

    python -m benches.suites.probe ROWS CLASSES DTYPE NUMBER

NUMBER is the place of the contender in `CONTENDERS`. Prints JSON: ``above``, in bytes, and what the check of
the answer found. Only on Linux.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from xent_rs.cli.benchmark.cases import Case
from xent_rs.cli.benchmark.contenders import CONTENDERS
from xent_rs.cli.benchmark.peers import check

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def main(rows: str, classes: str, dtype: str, number: str) -> None:
    """Call and print."""
    contender = CONTENDERS[int(number)]
    # The code is in memory, the threads of a pool are not.
    contender.make(Case.random(4, 10, dtype))()

    case = Case.random(int(rows), int(classes), dtype)
    if "out=" in contender.name:
        case.out.fill(0)
    call = contender.make(case)
    above, answer = memory_above(call)
    print(json.dumps({"above": above, **check(case, contender, answer)}))


def memory_above(call: Callable[[], Any]) -> tuple[int, Any]:
    """Return by how many bytes a call raises the memory that this process holds at most, and its answer."""
    _CLEAR.write_text("5", encoding="ascii")  # the peak is from now on
    before = _kilobytes("VmRSS")
    answer = call()
    return 1024 * (_kilobytes("VmHWM") - before), answer


def _kilobytes(field: str) -> int:
    match = re.search(rf"^{field}:\s+(\d+) kB$", _STATUS.read_text(encoding="ascii"), re.MULTILINE)
    if match is None:
        raise OSError(f"{_STATUS} has no {field}")
    return int(match[1])


if __name__ == "__main__":
    main(*sys.argv[1:])
