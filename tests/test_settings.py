"""Threads, SIMD levels and the environment variables that set them."""

import importlib.metadata
import os
import sys

import pytest
import xent_rs
from xent_rs import _xent_rs

LEVELS = _xent_rs.simd_levels()


def test_number_of_threads():
    for threads in (1, 3, 2):
        xent_rs.set_num_threads(threads)
        assert xent_rs.get_num_threads() == threads
        assert _xent_rs.config()["num_threads"] == threads


def test_levels_are_listed_best_first_and_can_be_chosen():
    x86, arm = ["avx512", "avx2", "portable"], ["neon"]
    assert LEVELS in (x86, x86[1:], x86[2:], arm)
    for level in LEVELS:
        _xent_rs.set_simd_level(level)
        assert _xent_rs.simd_level() == _xent_rs.config()["simd_level"] == level
    with pytest.raises(ValueError, match="sse9"):
        _xent_rs.set_simd_level("sse9")
    assert _xent_rs.simd_level() == LEVELS[-1]


def test_show_config_prints_the_configuration(capsys):
    assert xent_rs.show_config() is None
    printed = capsys.readouterr().out
    config = _xent_rs.config()
    for value in (xent_rs.__version__, config["simd_level"], str(config["num_threads"])):
        assert value in printed
    for level in LEVELS:
        assert level in printed


def test_version_is_that_of_the_distribution():
    assert xent_rs.__version__ == importlib.metadata.version("xent_rs") == _xent_rs.config()["version"]


SHOW = "import xent_rs; print(xent_rs._xent_rs.simd_level(), xent_rs.get_num_threads())"


@pytest.mark.parametrize("level", LEVELS)
def test_level_from_the_environment(level, python):
    assert python(SHOW, XENT_RS_SIMD=level).stdout.split()[0] == level


@pytest.mark.parametrize("threads", [1, 3, 50])
def test_threads_from_the_environment(threads, python):
    assert python(SHOW, XENT_RS_NUM_THREADS=str(threads)).stdout.split()[1] == str(threads)
    source = "import xent_rs; print(xent_rs._xent_rs.config()['num_threads_source'])"
    assert "XENT_RS_NUM_THREADS" in python(source, XENT_RS_NUM_THREADS=str(threads)).stdout


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("XENT_RS_SIMD", "sse9"),
        ("XENT_RS_SIMD", "AVX2 "),
        *(("XENT_RS_NUM_THREADS", value) for value in ("0", "-1", "two", "1.5", "99999999999999999999")),
        *(("XENT_RS_PLACEMENT", value) for value in ("2", "off", " 0")),
        *(("XENT_RS_KEEP_MEMORY", value) for value in ("2", "-1", "no", "false", "0 ")),
    ],
)
def test_wrong_environment_is_said_by_every_call(variable, value, python):
    """Not a panic, and not a setting that is silently dropped; the import itself succeeds."""
    source = """
import numpy as np
import xent_rs

logits, targets = np.zeros((2, 3)), [0, 1]
for call in (
    lambda: xent_rs.cross_entropy(logits, targets),
    lambda: xent_rs.cross_entropy_with_grad(logits, targets),
    lambda: xent_rs.softmax(logits),
    lambda: xent_rs.logsumexp(logits),
    lambda: xent_rs.evaluate(logits, targets),
    xent_rs.show_config,
    xent_rs.get_num_threads,
):
    try:
        print("no error:", call())
    except ValueError as error:
        print(error)
"""
    said = python(source, **{variable: value}).stdout.splitlines()
    assert len(said) == 7
    assert all(line.startswith(variable) and repr(value) in line for line in said), said


@pytest.mark.parametrize(
    "variable", ["XENT_RS_SIMD", "XENT_RS_NUM_THREADS", "XENT_RS_PLACEMENT", "XENT_RS_KEEP_MEMORY"]
)
def test_empty_environment_is_no_setting(variable, python):
    assert python(SHOW, **{"XENT_RS_SIMD": "", variable: ""}).stdout.split()[0] == LEVELS[0]


@pytest.mark.parametrize(("value", "placement"), [("0", False), ("1", True), ("", True)])
def test_placement_from_the_environment(value, placement, python):
    source = "import xent_rs; print(xent_rs._xent_rs.config()['placement'])"
    expected = placement and sys.platform == "linux"
    assert python(source, XENT_RS_PLACEMENT=value).stdout.strip() == str(expected)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs sched_setaffinity")
def test_one_core_means_one_thread(python):
    """A container or `taskset` that grants one core must not get the machine's number of threads."""
    core = min(os.sched_getaffinity(0))
    source = (
        f"import os\nos.sched_setaffinity(0, [{core}])\nos.environ.pop('XENT_RS_NUM_THREADS', None)\n{SHOW}"
    )
    assert python(source).stdout.split()[1] == "1"


def test_import_starts_no_threads(python):
    """Threads that nobody asked for yet make every later fork dangerous."""
    if sys.platform != "linux":
        pytest.skip("needs /proc")
    source = """
import os
import numpy
before = len(os.listdir("/proc/self/task"))
import xent_rs
assert len(os.listdir("/proc/self/task")) == before
"""
    python(source)
