"""Binary cross-entropy, element by element: this package, NumPy, scikit-learn, PyTorch and JAX."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, partial
from typing import Any

import numpy as np
from xent_rs import binary_cross_entropy, binary_cross_entropy_with_grad, get_num_threads
from xent_rs.cli.benchmark.cases import GRADIENT, JOBS, LOSS, Array, Case, copies, reads
from xent_rs.cli.benchmark.contenders import jax_call, torch_call
from xent_rs.cli.benchmark.measuring import Entry, Results, Settings, Skips, progress, steps, take, within

from tests import bounds, oracle

from .options import share

# 4 Mi elements.
_SHAPE, _QUICK_SHAPE = (4096, 1024), (64, 1024)

Prepared = tuple[Callable[[], Any], Callable[[Any], dict[str, float]]]


class Material(Case):
    """Logits, and yes or no for each of them."""

    @cached_property
    def yes(self) -> Array:
        """The targets as bool."""
        return np.random.default_rng(1).integers(2, size=self.logits.shape).astype(bool)

    @cached_property
    def yes_as_numbers(self) -> Array:
        """The targets in the dtype of the logits."""
        return self.yes.astype(self.dtype)

    @cached_property
    def promise(self) -> Any:
        """How far from the answer, which it knows, this package may be."""
        return bounds.BinaryCrossEntropyBounds(oracle.BinaryCrossEntropy(self.logits, self.yes), self.dtype)

    def roofs(self) -> dict[str, Callable[[], Any]]:
        """Return the calls that read logits and targets, and that write as much as the logits besides."""
        copy = copies(self.logits, self.out)
        roofs = {}
        for name, targets in (("", self.yes_as_numbers), (", bool", self.yes)):
            roofs[f"read{name}"] = reads(self.logits, targets)
            roofs[f"copy{name}"] = _both(copy, reads(targets))
        return roofs


def _both(first: Callable[[], Any], second: Callable[[], Any]) -> Callable[[], Any]:
    def call() -> None:
        first()
        second()

    return call


def run(settings: Settings) -> tuple[Results, Skips]:
    """Time the loss, and with the gradient, of random logits and targets."""
    rows, classes = _QUICK_SHAPE if settings.quick else _SHAPE
    case = Material.random(rows, classes, "float32")
    packages = {contender.package for contender in settings.contenders}
    tasks = [task for task in TASKS if task[2] in packages]
    entries = []
    for name, job, package, make, exact in tasks:
        roof = {LOSS: "read", GRADIENT: "copy"}[job] + (", bool" if "bool" in name else "")
        fields = {"suite": "binary", **case.fields, "job": job, "contender": name}
        entries.append(Entry(fields, partial(prepare, case, name, make, exact), {roof: 1.0}, package))
    with progress(steps(len(entries), 2 * len(JOBS), settings.repeats)) as bar:
        bar.set_postfix_str(f"binary, {rows} x {classes}")
        return take(entries, case.roofs(), settings.repeats, bar.update)


def prepare(case: Material, name: str, make: Callable[[Material], Any], exact: bool) -> Prepared:
    """Return a call and its check: against this package's promise, or, for peers, 16 and 64 eps."""

    def check(answer: Any) -> dict[str, float]:
        loss, gradient = answer if isinstance(answer, tuple) else (answer, None)
        expected, scale = case.promise.oracle, 1 / case.logits.size
        mean = float(expected.losses.mean())
        bound = float(case.promise.losses.mean()) if exact else 16 * case.eps * mean
        pairs = {"loss": (abs(float(loss) - mean) / mean, bound / mean)}
        if gradient is not None:
            # Peers subtract: next to 0 only the absolute error is small.
            tolerated = 8 * case.eps * (1 + 8 * np.abs(expected.gradients)) * scale
            allowed = case.promise.gradients(scale) if exact else tolerated
            pairs["gradient"] = (share(gradient, expected.gradients * scale, allowed), 1.0)
        return within(f"{name}, {case.name}", pairs)

    return make(case), check


def _ours(targets: str, case: Material) -> Callable[[], Any]:
    return partial(binary_cross_entropy, case.logits, getattr(case, targets))


def _ours_with_gradient(targets: str, case: Material) -> Callable[[], Any]:
    return partial(binary_cross_entropy_with_grad, case.logits, getattr(case, targets), out=case.out)


def _numpy(case: Material) -> Callable[[], Any]:
    x, t = case.logits, case.yes_as_numbers
    return lambda: np.mean(np.maximum(x, 0) - x * t + np.log1p(np.exp(-np.abs(x))), dtype=np.float64)


def _scikit_learn(case: Material) -> tuple[Any, dict[str, Any]]:
    from sklearn._loss import HalfBinomialLoss

    size = case.logits.size
    # Weights of 1/N make its sums means.
    arguments = {
        "y_true": case.yes_as_numbers.reshape(-1),
        "raw_prediction": case.logits.reshape(-1),
        "sample_weight": np.full(size, 1 / size, case.dtype),
        "loss_out": np.empty(size, case.dtype),
        "n_threads": get_num_threads(),
    }
    return HalfBinomialLoss(), arguments


def _scikit_learn_loss(case: Material) -> Callable[[], Any]:
    loss, arguments = _scikit_learn(case)
    return lambda: loss.loss(**arguments).sum(dtype=np.float64)


def _scikit_learn_gradient(case: Material) -> Callable[[], Any]:
    loss, arguments = _scikit_learn(case)
    out = case.out.reshape(-1)

    def call() -> Any:
        losses, _ = loss.loss_gradient(**arguments, gradient_out=out)
        return losses.sum(dtype=np.float64), case.out

    return call


def _torch(job: str, compiled: bool, case: Material) -> Callable[[], Any]:
    return torch_call(_torch_formula, job, case.logits, case.yes_as_numbers, compiled)


def _torch_formula(functional: Any, x: Any, t: Any) -> Any:
    return functional.binary_cross_entropy_with_logits(x, t)


def _jax(job: str, case: Material) -> Callable[[], Any]:
    return jax_call(_jax_formula, job, case.logits, case.yes_as_numbers)


def _jax_formula(jax: Any, x: Any, t: Any) -> Any:
    return jax.numpy.mean(jax.nn.softplus(x) - x * t)


# name, job, package, what makes the call, whether its accuracy is promised
TASKS: tuple[tuple[str, str, str, Callable[[Material], Any], bool], ...] = (
    ("xent_rs", LOSS, "xent_rs", partial(_ours, "yes_as_numbers"), True),
    ("xent_rs, bool targets", LOSS, "xent_rs", partial(_ours, "yes"), True),
    ("NumPy", LOSS, "numpy", _numpy, False),
    ("scikit-learn", LOSS, "scikit-learn", _scikit_learn_loss, False),
    ("PyTorch", LOSS, "torch", partial(_torch, LOSS, False), False),
    ("PyTorch, compiled", LOSS, "torch", partial(_torch, LOSS, True), False),
    ("JAX", LOSS, "jax", partial(_jax, LOSS), False),
    ("xent_rs, out=", GRADIENT, "xent_rs", partial(_ours_with_gradient, "yes_as_numbers"), True),
    ("xent_rs, bool targets, out=", GRADIENT, "xent_rs", partial(_ours_with_gradient, "yes"), True),
    ("scikit-learn, out=", GRADIENT, "scikit-learn", _scikit_learn_gradient, False),
    ("PyTorch, new array", GRADIENT, "torch", partial(_torch, GRADIENT, False), False),
    ("PyTorch, compiled", GRADIENT, "torch", partial(_torch, GRADIENT, True), False),
    ("JAX, new array", GRADIENT, "jax", partial(_jax, GRADIENT), False),
)
