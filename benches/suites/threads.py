"""One thread, two, four and so on up to all: how much of the memory's speed each number of them reaches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from xent_rs import get_num_threads, set_num_threads
from xent_rs.cli.benchmark.cases import JOBS, Case
from xent_rs.cli.benchmark.measuring import Entry, Results, Settings, Skips, progress, steps, take
from xent_rs.cli.benchmark.peers import entry

_SHAPES, _QUICK_SHAPES = ((2048, 32_000), (16_384, 1000)), ((64, 32_000),)


def run(settings: Settings) -> tuple[Results, Skips]:
    """Time the loss, and the gradient with ``out=``, next to the roofs of the same number of threads.

    Results have besides ``of_full_roof``, the share of the speed of the roof of all threads.
    """
    most = get_num_threads()
    numbers = sorted({most, *(1 << power for power in range(most.bit_length()) if 1 << power < most)})
    ours = [each for each in settings.contenders if each.name in ("xent_rs", "xent_rs, out=")]
    shapes = _QUICK_SHAPES if settings.quick else _SHAPES
    results: Results = []
    counts = len(numbers) * len(ours), len(numbers) * len(JOBS)
    try:
        with progress(len(shapes) * steps(*counts, settings.repeats)) as bar:
            for rows, classes in shapes:
                bar.set_postfix_str(f"threads, {rows} x {classes}")
                case = Case.random(rows, classes, "float32")
                roofs = {
                    f"{name}, {number}": _with_threads(number, call)
                    for number in numbers
                    for name, call in case.roofs().items()
                }
                entries = [_at(number, entry("threads", each, case)) for number in numbers for each in ours]
                some_results, _ = take(entries, roofs, settings.repeats, bar.update)
                results += some_results
    finally:
        set_num_threads(most)
    full = {_key(result): result["roof"] for result in results if result["threads"] == most}
    return [{**result, "of_full_roof": full[_key(result)] / result["median"]} for result in results], []


def _key(result: dict[str, Any]) -> tuple[int, int, str]:
    return result["rows"], result["classes"], result["job"]


def _at(number: int, whole: Entry) -> Entry:
    """Return an entry that runs on a number of threads."""

    def prepare() -> tuple[Callable[[], Any], Callable[[Any], dict[str, float]]]:
        call, check = whole.prepare()
        return _with_threads(number, call), check

    return replace(
        whole,
        fields={**whole.fields, "threads": number},
        prepare=prepare,
        roof={f"{name}, {number}": factor for name, factor in whole.roof.items()},
    )


def _with_threads(number: int, call: Callable[[], Any]) -> Callable[[], Any]:
    """Return a call that first sets the number of threads; its untimed first run makes the pool."""

    def with_threads() -> Any:
        set_num_threads(number)
        return call()

    return with_threads
