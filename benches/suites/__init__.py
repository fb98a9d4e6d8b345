"""The experiments: modules with a function ``run(settings)`` that returns results and what was skipped.

Both are lists of dictionaries fit for JSON. Cases, contenders and timing are those of ``xent-rs bench``,
which is the first of the suites; the formulas that answers are compared with are those of the tests.
"""

from xent_rs.cli.benchmark import peers

from . import (
    axis1,
    beside,
    binary,
    classes,
    comparison,
    growth,
    memory,
    options,
    sixteen,
    smallest,
    targets,
    threads,
)

#: What `python -m benches --suite` offers.
SUITES = {
    "peers": peers.run,
    "classes": classes.run,
    "axis1": axis1.run,
    "targets": targets.run,
    "options": options.run,
    "binary": binary.run,
    "compare": comparison.run,
    "smallest": smallest.run,
    "growth": growth.run,
    "threads": threads.run,
    "memory": memory.run,
    "sixteen": sixteen.run,
    "beside": beside.run,
}
