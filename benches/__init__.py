"""What is measured of xent_rs, and what it is to reach: for those who work on it.

From the root of the repository::

    python -m benches [--suite options threads]    run suites; --help says which there are
    python -m benches.report --record | --check    keep a record of all of them, and show it on the pages
    python -m benches.guard                        fail if a kernel has lost its speed
    python -m benches.head                         evaluate from hidden states beside the products alone
    python -m pytest benches/bench_cross_entropy.py --benchmark-enable    one function at a time

========== =====================================================================================
`suites`   the experiments; cases, contenders and timing are those of ``xent-rs bench``
`tables`   their results for people
`plot`     their pictures
`goals`    what a record is to show
`results`  the records
========== =====================================================================================
"""
