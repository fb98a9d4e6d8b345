"""What a call costs when there is next to nothing to compute."""

from __future__ import annotations

from xent_rs.cli.benchmark.measuring import Results, Settings, Skips
from xent_rs.cli.benchmark.peers import compare

_SHAPE = (4, 10)


def run(settings: Settings) -> tuple[Results, Skips]:
    """Compare everybody on one small array."""
    return compare("smallest", [(*_SHAPE, "float32")], settings.contenders, settings.repeats)
