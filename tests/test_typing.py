"""Signatures and types, as callers and type checkers see them."""

import inspect
import math
import operator
import subprocess
import sys

import pytest
import xent_rs

REDUCTION = "reduction='mean', denominator=None"
SMOOTHED = "weight=None, sample_weight=None, ignore_index=-100, label_smoothing=0.0"
OPTIONS = f"{SMOOTHED}, z_loss=0.0, softcap=None, temperature=1.0, axis=-1"
LOSS = f"logits, targets, *, {OPTIONS}, {REDUCTION}"
BINARY = (
    "logits, targets, *, weight=None, pos_weight=None, ignore_index=None, label_smoothing=0.0, " + REDUCTION
)
KL = (
    "logits, target_logits, *, temperature=1.0, axis=-1, reduction='mean', "
    "sample_weight=None, denominator=None"
)
GRADIENT = "grad_output=None, out=None"
EVALUATION = f"top_k=(1, 5), {OPTIONS}"
SIGNATURES = {
    "cross_entropy": LOSS,
    "cross_entropy_with_grad": f"{LOSS}, {GRADIENT}",
    "cross_entropy_with_grad_hess": (
        f"logits, targets, *, {SMOOTHED}, temperature=1.0, axis=-1, {REDUCTION}, out=None, hess_out=None"
    ),
    "binary_cross_entropy": BINARY,
    "binary_cross_entropy_with_grad": f"{BINARY}, {GRADIENT}",
    "kl_divergence": KL,
    "kl_divergence_with_grad": f"{KL}, {GRADIENT}",
    "selective_log_softmax": "logits, index, *, axis=-1, temperature=1.0",
    "row_statistics": ("logits, targets=None, *, axis=-1, softcap=None, temperature=1.0, ignore_index=-100"),
    "logsumexp": "logits, *, axis=-1, keepdims=False, temperature=1.0",
    "softmax": "logits, *, axis=-1, temperature=1.0, out=None",
    "log_softmax": "logits, *, axis=-1, temperature=1.0, out=None",
    "evaluate": f"logits, targets, *, {EVALUATION}",
    "Evaluator": f"*, {EVALUATION.replace('sample_weight=None, ', '')}",
    "Evaluator.update": "self, logits, targets, *, sample_weight=None",
    "get_num_threads": "",
    "release_memory": "",
    "show_config": "",
    "probability.self_information": f"p, *, base={math.e}",
    "probability.entropy": f"p, *, axis=-1, base={math.e}",
    "probability.cross_entropy": f"p, q, *, axis=-1, base={math.e}",
    "probability.kl_divergence": f"p, q, *, axis=-1, base={math.e}",
    "probability.binary_cross_entropy": f"p, targets, *, reduction='mean', base={math.e}",
}


@pytest.mark.parametrize(("name", "expected"), SIGNATURES.items(), ids=SIGNATURES)
def test_signature(name, expected):
    signature = inspect.signature(operator.attrgetter(name)(xent_rs))
    bare = [
        parameter.replace(annotation=inspect.Parameter.empty) for parameter in signature.parameters.values()
    ]
    assert str(inspect.Signature(bare)) == f"({expected})"


def test_public_names():
    others = {"Evaluation", "InternalError", "RowStatistics", "probability", "set_num_threads", "__version__"}
    assert {name for name in SIGNATURES if "." not in name} | others == set(xent_rs.__all__)
    probability = {f"probability.{name}" for name in xent_rs.probability.__all__}
    assert probability == {name for name in SIGNATURES if name.startswith("probability.")}
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


@pytest.mark.exhaustive
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
options = xent_rs.cross_entropy(
    logits, logits, weight=[1.0] * 10, sample_weight=np.ones(4), label_smoothing=0.1, z_loss=1e-4, softcap=30
)
assert_type(options, float)
loss, grad, hess = xent_rs.cross_entropy_with_grad_hess(logits, targets, label_smoothing=0.1, hess_out=kept)
assert_type(loss, float)
losses, grad, hess = xent_rs.cross_entropy_with_grad_hess(logits, targets, reduction="none")
assert_type(xent_rs.binary_cross_entropy(logits, logits > 0, pos_weight=3, ignore_index=None), float)
losses = xent_rs.binary_cross_entropy(logits, logits > 0, reduction="none", weight=np.ones(10))
loss, grad = xent_rs.binary_cross_entropy_with_grad(logits, logits > 0, out=kept)
assert_type(loss, float)
assert_type(xent_rs.kl_divergence(logits, logits, temperature=2), float)
losses = xent_rs.kl_divergence(logits, logits, reduction="none", sample_weight=[1] * 4)
loss, grad = xent_rs.kl_divergence_with_grad(logits, logits, grad_output=4.0, denominator=7)
assert_type(loss, float)
chosen: NDArray[Any] = xent_rs.selective_log_softmax(logits, [[0, 1]] * 4)
statistics = xent_rs.row_statistics(logits, targets, softcap=30.0)
assert_type(statistics, xent_rs.RowStatistics)
assert_type(xent_rs.probability.binary_cross_entropy([0.5], [1]), float)
information: NDArray[Any] = xent_rs.probability.entropy([[0.5, 0.5]], axis=(0, 1), base=2)
probabilities: NDArray[Any] = xent_rs.softmax(logits, axis=0)
logs: NDArray[Any] = xent_rs.log_softmax(logits, out=np.empty_like(logits))
lse: NDArray[Any] = xent_rs.logsumexp(logits, keepdims=True)
evaluation = xent_rs.evaluate(logits, targets, top_k=(1, 3), sample_weight=np.ones(4), z_loss=0.1)
xent_rs.Evaluator(weight=[1.0] * 10, softcap=30).update(logits, targets, sample_weight=[1] * 4)
assert_type(evaluation.loss, float)
xent_rs.set_num_threads(2)
assert_type(xent_rs.get_num_threads(), int)
error: RuntimeError = xent_rs.InternalError("x")

xent_rs.cross_entropy(logits, targets, reduction="avg")  # type: ignore[call-overload]
xent_rs.cross_entropy(logits, targets, -100)  # type: ignore[call-overload]
xent_rs.cross_entropy(logits)  # type: ignore[call-overload]
xent_rs.cross_entropy(logits, targets, smoothing=0.1)  # type: ignore[call-overload]
xent_rs.cross_entropy(logits, targets, reduction="none", denominator=2)  # type: ignore[call-overload]
xent_rs.cross_entropy_with_grad_hess(logits, targets, z_loss=0.1)  # type: ignore[call-overload]
xent_rs.kl_divergence(logits, logits, label_smoothing=0.1)  # type: ignore[call-overload]
xent_rs.softmax(logits, out=[0.0])  # type: ignore[arg-type]
xent_rs.set_num_threads("2")  # type: ignore[arg-type]
"""


@pytest.mark.exhaustive
def test_types_that_callers_see(mypy, tmp_path):
    user = tmp_path / "user.py"
    user.write_text(USER, encoding="utf-8")
    mypy("mypy", "--strict", str(user))
