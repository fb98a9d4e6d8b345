"""Signatures and types, as callers and type checkers see them."""

import inspect
import subprocess
import sys

import pytest
import xent_rs

LOSS = "logits, targets, *, ignore_index=-100, temperature=1.0, axis=-1, reduction='mean', denominator=None"
EVALUATION = "top_k=(1, 5), ignore_index=-100, temperature=1.0, axis=-1"
SIGNATURES = {
    "cross_entropy": LOSS,
    "cross_entropy_with_grad": f"{LOSS}, grad_output=None, out=None",
    "logsumexp": "logits, *, axis=-1, keepdims=False, temperature=1.0",
    "softmax": "logits, *, axis=-1, temperature=1.0, out=None",
    "log_softmax": "logits, *, axis=-1, temperature=1.0, out=None",
    "evaluate": f"logits, targets, *, {EVALUATION}",
    "Evaluator": f"*, {EVALUATION}",
    "get_num_threads": "",
    "show_config": "",
}


@pytest.mark.parametrize(("name", "expected"), SIGNATURES.items(), ids=SIGNATURES)
def test_signature(name, expected):
    signature = inspect.signature(getattr(xent_rs, name))
    bare = [
        parameter.replace(annotation=inspect.Parameter.empty) for parameter in signature.parameters.values()
    ]
    assert str(inspect.Signature(bare)) == f"({expected})"


def test_public_names():
    others = {"Evaluation", "InternalError", "set_num_threads", "__version__"}
    assert {*SIGNATURES, *others} <= {*xent_rs.__all__, "__version__"}
    assert all(hasattr(xent_rs, name) for name in xent_rs.__all__)


@pytest.fixture
def mypy(tmp_path_factory):
    """Run a module of mypy, away from the configuration of this repository, with one cache for all tests."""

    def run(*arguments):
        directory = tmp_path_factory.getbasetemp() / "mypy"
        directory.mkdir(exist_ok=True)
        finished = subprocess.run(
            [sys.executable, "-m", *arguments],
            cwd=directory,
            capture_output=True,
            text=True,
            timeout=110,
            check=False,
        )
        assert finished.returncode == 0, finished.stdout + finished.stderr

    return run


def test_stub_of_the_compiled_module_is_true(mypy):
    mypy("mypy.stubtest", "xent_rs._xent_rs")


# `type: ignore` that nothing needs is an error of its own: the lines that have one must not pass.
USER = """
from typing import Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import assert_type

import xent_rs

logits = np.zeros((4, 10), np.float32)
targets = np.zeros(4, np.int64)

assert_type(xent_rs.cross_entropy(logits, targets), float)
assert_type(xent_rs.cross_entropy(logits, targets, reduction="sum", axis=-1, temperature=2), float)
assert_type(xent_rs.cross_entropy([[0.0, 1.0]], [1], denominator=3), float)
losses: NDArray[Any] = xent_rs.cross_entropy(logits, targets, reduction="none", ignore_index=0)
loss, grad = xent_rs.cross_entropy_with_grad(logits, targets, grad_output=2.0, out=np.empty_like(logits))
assert_type(loss, float)
kept: NDArray[Any] = grad
losses, grad = xent_rs.cross_entropy_with_grad(logits, targets, reduction="none", grad_output=np.ones(4))
probabilities: NDArray[Any] = xent_rs.softmax(logits, axis=0)
logs: NDArray[Any] = xent_rs.log_softmax(logits, out=np.empty_like(logits))
lse: NDArray[Any] = xent_rs.logsumexp(logits, keepdims=True)
evaluation = xent_rs.evaluate(logits, targets, top_k=(1, 3))
assert_type(evaluation.loss, float)
xent_rs.set_num_threads(2)
assert_type(xent_rs.get_num_threads(), int)
error: RuntimeError = xent_rs.InternalError("x")

xent_rs.cross_entropy(logits, targets, reduction="avg")  # type: ignore[call-overload]
xent_rs.cross_entropy(logits, targets, -100)  # type: ignore[call-overload]
xent_rs.cross_entropy(logits)  # type: ignore[call-overload]
xent_rs.softmax(logits, out=[0.0])  # type: ignore[arg-type]
xent_rs.set_num_threads("2")  # type: ignore[arg-type]
"""


def test_types_that_callers_see(mypy, tmp_path):
    user = tmp_path / "user.py"
    user.write_text(USER, encoding="utf-8")
    mypy("mypy", "--strict", str(user))
