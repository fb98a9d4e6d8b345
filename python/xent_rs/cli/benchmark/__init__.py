"""The experiments of ``xent-rs bench``.

A module for each experiment (`SUITES`), all with a function ``run(settings)`` that returns results and what
was skipped, as dictionaries fit for JSON. What they share:

================ ==========================================================================================
`cases`          a problem: logits, targets, the float64 answer, the roofs of its memory
`contenders`     this package and its peers
`formulas`       the losses with their options in float64, and how far from that an answer may be
`measuring`      check the answers, then time the calls in turns
`timing`         take turns
`tables`, `plot` results for people
================ ==========================================================================================
"""

from . import binary, classes, growth, memory, options, peers, smallest, threads

#: What `xent-rs bench --suite` offers.
SUITES = {
    "peers": peers.run,
    "options": options.run,
    "binary": binary.run,
    "smallest": smallest.run,
    "growth": growth.run,
    "threads": threads.run,
    "memory": memory.run,
    "classes": classes.run,
}
