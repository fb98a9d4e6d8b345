"""Fixtures that every test file uses, and the accuracy table at the end of a run."""

import hashlib
import itertools
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import xent_rs
from hypothesis import settings
from xent_rs import _xent_rs

from .bounds import worst_ratios

# The background of a shell, and so much of continuous integration, ignores SIGINT; children inherit that, and
# there would be no Ctrl-C to test.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The same examples in every run; `--hypothesis-profile default` looks for new ones.
settings.register_profile("repeatable", derandomize=True, database=None, deadline=None)
settings.load_profile("repeatable")


# How many parametrisations of a test are in the quick part of the suite, unless it is marked `sampled(most)`.
MOST_OF_A_TEST = 24


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Mark the rest of a test's parametrisations ``exhaustive``.

    Those that stay are the same in every run: the first by a checksum of their names, which has nothing to do
    with levels or dtypes, so all of them are met.
    """
    for _, group in itertools.groupby(items, key=lambda item: getattr(item, "function", item)):
        by_checksum = sorted(group, key=lambda item: hashlib.sha256(item.name.encode()).digest())
        mark = by_checksum[0].get_closest_marker("sampled")
        for item in by_checksum[mark.args[0] if mark else MOST_OF_A_TEST :]:
            item.add_marker("exhaustive")


@pytest.fixture(autouse=True)
def _settings_restored():
    """No test leaves its SIMD level or number of threads to the next."""
    level, threads = _xent_rs.simd_level(), xent_rs.get_num_threads()
    yield
    _xent_rs.set_simd_level(level)
    xent_rs.set_num_threads(threads)


@pytest.fixture(params=_xent_rs.simd_levels())
def level(request):
    """Every SIMD level of this CPU."""
    _xent_rs.set_simd_level(request.param)
    return request.param


@pytest.fixture
def random():
    return np.random.default_rng(20240607)


@pytest.fixture
def python():
    """Run source text in a fresh interpreter; what can crash or hang must not take pytest with it."""

    def run(source, *, timeout=60, expect=0, **environment):
        finished = subprocess.run(
            [sys.executable, "-X", "faulthandler", "-c", source],
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert finished.returncode == expect, (
            f"exit {finished.returncode}\n{finished.stdout}{finished.stderr}"
        )
        return finished

    return run


def pytest_terminal_summary(terminalreporter):
    if not worst_ratios:
        return
    dtypes = sorted({dtype for _, dtype in worst_ratios}, key=lambda dtype: np.dtype(dtype).itemsize)
    terminalreporter.section("largest error, as a fraction of the promised bound")
    width = max(len(quantity) for quantity, _ in worst_ratios)
    terminalreporter.line(" " * width + "".join(f"{dtype:>10}" for dtype in dtypes))
    for quantity in sorted({quantity for quantity, _ in worst_ratios}):
        ratios = [worst_ratios.get((quantity, dtype)) for dtype in dtypes]
        cells = "".join(
            f"{'' if ratio is None else format(ratio, '.3f' if ratio < 1000 else '.1e'):>10}"
            for ratio in ratios
        )
        terminalreporter.line(f"{quantity:{width}}{cells}")
