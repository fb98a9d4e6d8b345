"""Show the version, the SIMD level and the number of threads, and where they come from."""

from __future__ import annotations

import argparse

from .. import _xent_rs, show_config
from . import _terminal


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    _terminal.add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print the configuration."""
    if arguments.json:
        _terminal.print_json(_xent_rs.config())
    else:
        show_config()
    return 0
