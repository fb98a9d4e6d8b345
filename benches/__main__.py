"""Run suites of the benchmark, all of them or some.

  peers     what `xent-rs bench` does, whose options these are: NumPy, SciPy, scikit-learn, PyTorch and JAX
  classes   time against the number of classes, which are along the last axis or the first
  axis1     classes on axis 1 of images: class targets, soft targets, KL divergence against PyTorch and JAX
  targets   soft targets, KL divergence and softcap against PyTorch and JAX
  options   each option and each function against the plain loss and its gradient
  binary    binary cross-entropy
  compare   two models compared, against NumPy and PyTorch
  smallest  what a call costs
  growth    time per element up to 10^9 elements, as far as the memory goes: that is 9 GB
  threads   one to all
  memory    what a call takes above its inputs
  sixteen   16-bit logits against float32 ones, in the cache of one thread
  beside    how long a call takes while others use the CPUs

All but peers have shapes of their own, and all but peers and sixteen float32 logits. Each answer is compared
with float64 before it is timed: a wrong one of this package ends the command.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from xent_rs.cli import _terminal, bench
from xent_rs.cli.benchmark.measuring import measure

from . import tables
from .suites import SUITES


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        prog="python -m benches", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--suite",
        nargs="+",
        choices=[*SUITES, "all"],
        default=["all"],
        metavar="SUITE",
        help="some of them by name (default: all); --plot draws each into its own FILE-SUITE.png",
    )
    bench.add_arguments(parser)
    arguments = parser.parse_args(argv)
    names = list(SUITES) if "all" in arguments.suite else list(dict.fromkeys(arguments.suite))
    if arguments.plot is not None:
        from . import plot  # before the work, for it may be missing

        if not plot.PICTURES.keys() & set(names):
            parser.error(f"--plot has nothing to draw; expected a suite among {', '.join(plot.PICTURES)}")
    report = measure([SUITES[name] for name in names], bench.settings(arguments))

    if arguments.plot is not None:
        plot.draw_all(report, arguments.plot)
    if arguments.json:
        _terminal.print_json(report)
    else:
        bench.print_report(report, tables.tables(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
