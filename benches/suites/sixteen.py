"""16-bit logits against float32 ones: on one thread, and as many as stay in its cache.

There the time is that of the arithmetic, which is the same but for reading and rounding.
"""

from __future__ import annotations

from dataclasses import replace

from xent_rs import get_num_threads, set_num_threads
from xent_rs.cli.benchmark.cases import JOBS, Case
from xent_rs.cli.benchmark.measuring import Results, Settings, Skips, progress, steps, take
from xent_rs.cli.benchmark.peers import entry

# 256 KiB of float32: half of what the L2 cache of one core usually holds.
_SHAPES = ((16, 4096), (64, 1000), (6400, 10))
_DTYPES = ("float32", "bfloat16", "float16")


def run(settings: Settings) -> tuple[Results, Skips]:
    """Time the loss, and the gradient with ``out=``, of each dtype in turns."""
    ours = [each for each in settings.contenders if each.name in ("xent_rs", "xent_rs, out=")]
    most = get_num_threads()
    results: Results = []
    try:
        set_num_threads(1)
        counts = len(_DTYPES) * len(ours), len(_DTYPES) * len(JOBS)
        with progress(len(_SHAPES) * steps(*counts, settings.repeats)) as bar:
            for rows, classes in _SHAPES:
                bar.set_postfix_str(f"sixteen, {rows} x {classes}")
                entries, roofs = [], {}
                for dtype in _DTYPES:
                    case = Case.random(rows, classes, dtype)
                    roofs |= {f"{name}, {dtype}": call for name, call in case.roofs().items()}
                    for contender in ours:
                        whole = entry("sixteen", contender, case)
                        roof = {f"{name}, {dtype}": factor for name, factor in whole.roof.items()}
                        entries.append(replace(whole, roof=roof))
                some, _ = take(entries, roofs, settings.repeats, bar.update)
                results += some
    finally:
        set_num_threads(most)
    return results, []
