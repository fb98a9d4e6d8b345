"""What the benchmark runs: this package and its peers, each as a row of the table `CONTENDERS`."""

from __future__ import annotations

import importlib.metadata
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ... import __version__, _xent_rs, cross_entropy, cross_entropy_with_grad, get_num_threads
from ..._bfloat16 import bfloat16
from .cases import GRADIENT, LOSS, Case
from .reference import numpy_loss, numpy_loss_and_gradient

Array = NDArray[Any]

# Unit roundoff of the type in which this package computes.
_FLOAT32_ROUNDOFF, _FLOAT64_ROUNDOFF = 2.0**-24, 2.0**-53


class NotApplicable(Exception):  # noqa: N818 (no error: it is a reason to skip)
    """A contender cannot do a case; the message says why."""


@dataclass(frozen=True)
class Contender:
    """One way to do a job.

    Attributes
    ----------
    name : str
        The library, and which of its ways.
    job : str
        One of `JOBS`.
    make : callable
        Takes a `Case`, prepares whatever need not be timed, and returns the call to time. That returns the
        mean loss, for the second job with its gradient. Raises `NotApplicable`.
    tolerance : callable
        Takes a `Case`; returns the relative errors allowed in the loss and in the gradient.
    package : str
        The distribution that must be installed.
    level : str, optional
        The SIMD level at which this package is held; otherwise the one in use.
    """

    name: str
    job: str
    make: Callable[[Case], Callable[[], Any]]
    tolerance: Callable[[Case], tuple[float, float]]
    package: str
    level: str | None = None

    def version(self) -> str | None:
        """Return the version of the package; None if it is not installed."""
        if self.package == "xent_rs":
            return __version__
        try:
            return importlib.metadata.version(self.package)
        except importlib.metadata.PackageNotFoundError:
            return None


def promised(case: Case) -> tuple[float, float]:
    """Return what this package promises; a gradient is besides rounded to its dtype."""
    # For float64 twice, because the reference is rounded as well.
    unit = 2 * _FLOAT64_ROUNDOFF if case.dtype == np.float64 else _FLOAT32_ROUNDOFF
    loss = unit * (math.log(case.classes) + 2) / case.loss + unit
    gradient = unit * (case.reference.span + math.log(case.classes) + 4)
    return loss, (1 + gradient) * (1 + case.eps / 2) - 1


def _own(case: Case) -> tuple[float, float]:
    """Return what is tolerated of those who compute in the dtype of the logits."""
    return _tolerance(case, case.eps)


def _wide(case: Case) -> tuple[float, float]:
    """Return what is tolerated of those who compute in at least float32, and round a gradient once."""
    loss, gradient = _tolerance(case, min(case.eps, 2 * _FLOAT32_ROUNDOFF))
    return loss, gradient + case.eps / 2


def _tolerance(case: Case, eps: float) -> tuple[float, float]:
    """Return 16 eps for a loss, and for a gradient 64 and what adding up C numbers one by one may lose.

    Who subtracts 1 from the probability of a target loses what `Reference.distance` says besides.
    """
    return 16 * eps, (64 + math.sqrt(case.classes)) * eps / case.reference.distance


def at_level(contender: Contender, level: str) -> Contender:
    """Return one of this package's contenders, held at a SIMD level."""

    def make(case: Case) -> Callable[[], Any]:
        call = contender.make(case)

        def at_this_level() -> Any:
            before = _xent_rs.simd_level()
            _xent_rs.set_simd_level(level)
            try:
                return call()
            finally:
                _xent_rs.set_simd_level(before)

        return at_this_level

    return replace(contender, name=f"{contender.name}, {level}", make=make, level=level)


def _xent_rs_loss(case: Case) -> Callable[[], Any]:
    return lambda: cross_entropy(case.logits, case.targets)


def _xent_rs_out(case: Case) -> Callable[[], Any]:
    return lambda: cross_entropy_with_grad(case.logits, case.targets, out=case.out)


def _xent_rs_fresh(case: Case) -> Callable[[], Any]:
    return lambda: cross_entropy_with_grad(case.logits, case.targets)


def _numpy_loss(case: Case) -> Callable[[], Any]:
    if case.dtype.itemsize == 2:  # nobody would sum in 16 bits
        return lambda: numpy_loss(case.logits.astype(np.float32), case.targets)
    return lambda: numpy_loss(case.logits, case.targets)


def _numpy_out(case: Case) -> Callable[[], Any]:
    if case.dtype.itemsize == 2:
        raise NotApplicable("NumPy computes in float32, which the gradient of 16-bit logits has no room for")
    return lambda: numpy_loss_and_gradient(case.logits, case.targets, out=case.out)


def _numpy_fresh(case: Case) -> Callable[[], Any]:
    if case.dtype.itemsize > 2:
        return lambda: numpy_loss_and_gradient(case.logits, case.targets)

    def call() -> Any:
        loss, gradient = numpy_loss_and_gradient(case.logits.astype(np.float32), case.targets)
        return loss, gradient.astype(case.dtype)

    return call


def _scipy_loss(case: Case) -> Callable[[], Any]:
    from scipy.special import logsumexp

    rows = np.arange(case.rows)

    def call() -> Any:
        logits = case.logits.astype(np.float32) if case.dtype.itemsize == 2 else case.logits
        return np.mean(logsumexp(logits, axis=1) - logits[rows, case.targets])

    return call


def _scikit_learn(case: Case) -> tuple[Any, dict[str, Any]]:
    from sklearn._loss import HalfMultinomialLoss

    if case.dtype.itemsize == 2:
        raise NotApplicable("scikit-learn takes float32 and float64")
    # Weights of 1/N make its sums means.
    arguments = {
        "y_true": case.targets.astype(case.dtype),
        "raw_prediction": case.logits,
        "sample_weight": np.full(case.rows, 1 / case.rows, case.dtype),
        "loss_out": np.empty(case.rows, case.dtype),
        "n_threads": get_num_threads(),
    }
    return HalfMultinomialLoss(n_classes=case.classes), arguments


def _scikit_learn_loss(case: Case) -> Callable[[], Any]:
    loss, arguments = _scikit_learn(case)
    return lambda: loss.loss(**arguments).sum(dtype=np.float64)


def _scikit_learn_out(case: Case) -> Callable[[], Any]:
    loss, arguments = _scikit_learn(case)

    def call() -> Any:
        losses, gradient = loss.loss_gradient(**arguments, gradient_out=case.out)
        return losses.sum(dtype=np.float64), gradient

    return call


def torch_tensors(logits: Array, targets: Array) -> tuple[Any, Any, Any]:
    """Return PyTorch, set to as many threads as this package, and tensors on the same memory."""
    import torch

    torch.set_num_threads(get_num_threads())
    if logits.dtype.name == "bfloat16":  # torch.from_numpy does not know the dtype
        return (
            torch,
            torch.from_numpy(logits.view(np.int16)).view(torch.bfloat16),
            torch.from_numpy(targets),
        )
    return torch, torch.from_numpy(logits), torch.from_numpy(targets)


def torch_array(torch: Any, tensor: Any) -> Array:
    """Return the array on the memory of a tensor."""
    if tensor.dtype == torch.bfloat16:
        return np.asarray(tensor.view(torch.int16).numpy()).view(bfloat16())
    return np.asarray(tensor.numpy())


def torch_call(
    formula: Callable[[Any, Any, Any], Any], job: str, logits: Array, other: Array, compiled: bool = False
) -> Callable[[], Any]:
    """Return the call that does a job in PyTorch.

    Parameters
    ----------
    formula : callable
        Takes `torch.nn.functional` and two tensors, of the logits and of what they are compared with; returns
        the mean loss.
    job : str
        One of `JOBS`.
    logits, other : ndarray
        Whose memory the tensors are on.
    compiled : bool
        Whether `torch.compile` has its turn first.
    """
    torch, x, y = torch_tensors(logits, other)

    def loss_of(x: Any, y: Any) -> Any:
        return formula(torch.nn.functional, x, y)

    if compiled:
        # For one shape: the default would make the code of the second shape general, and slower.
        torch._dynamo.config.recompile_limit = 1000
        loss_of = torch.compile(loss_of, dynamic=False)
    if job == LOSS:
        return lambda: loss_of(x, y).item()
    x.requires_grad_()

    def call() -> Any:
        loss = loss_of(x, y)
        (gradient,) = torch.autograd.grad(loss, x)
        return loss.item(), torch_array(torch, gradient)

    return call


def jax_call(
    formula: Callable[[Any, Any, Any], Any], job: str, logits: Array, other: Array
) -> Callable[[], Any]:
    """Return the call that does a job in JAX, as `torch_call` does; `formula` takes `jax` and two arrays."""
    import jax

    config: Any = jax.config  # not typed
    config.update("jax_enable_x64", True)
    x, y = jax.numpy.asarray(logits), jax.numpy.asarray(other)
    loss_of = partial(formula, jax)
    if job == LOSS:
        compiled = jax.jit(loss_of)
        return lambda: compiled(x, y).item()
    with_gradient = jax.jit(jax.value_and_grad(loss_of))
    wait: Any = jax.block_until_ready  # not typed
    return lambda: wait(with_gradient(x, y))


def torch_cross_entropy(functional: Any, logits: Any, targets: Any) -> Any:
    """Return the mean loss of classes or of probabilities, classes on axis 1."""
    return functional.cross_entropy(logits, targets)


def jax_cross_entropy(jax: Any, logits: Any, targets: Any) -> Any:
    """Return the mean loss of classes, which are on axis 1."""
    picked = jax.numpy.take_along_axis(logits, targets[:, None], axis=1)[:, 0]
    return jax.numpy.mean(jax.nn.logsumexp(logits, axis=1) - picked)


def _torch(job: str, compiled: bool, case: Case) -> Callable[[], Any]:
    return torch_call(torch_cross_entropy, job, case.logits, case.targets, compiled)


def _jax(job: str, case: Case) -> Callable[[], Any]:
    return jax_call(jax_cross_entropy, job, case.logits, case.targets)


CONTENDERS = (
    Contender("xent_rs", LOSS, _xent_rs_loss, promised, "xent_rs"),
    Contender("NumPy", LOSS, _numpy_loss, _wide, "numpy"),
    Contender("SciPy", LOSS, _scipy_loss, _wide, "scipy"),
    Contender("scikit-learn", LOSS, _scikit_learn_loss, _wide, "scikit-learn"),
    Contender("PyTorch", LOSS, partial(_torch, LOSS, False), _own, "torch"),
    Contender("PyTorch, compiled", LOSS, partial(_torch, LOSS, True), _own, "torch"),
    Contender("JAX", LOSS, partial(_jax, LOSS), _own, "jax"),
    Contender("xent_rs, out=", GRADIENT, _xent_rs_out, promised, "xent_rs"),
    Contender("xent_rs, new array", GRADIENT, _xent_rs_fresh, promised, "xent_rs"),
    Contender("NumPy, out=", GRADIENT, _numpy_out, _wide, "numpy"),
    Contender("NumPy, new array", GRADIENT, _numpy_fresh, _wide, "numpy"),
    Contender("scikit-learn, out=", GRADIENT, _scikit_learn_out, _wide, "scikit-learn"),
    Contender("PyTorch, new array", GRADIENT, partial(_torch, GRADIENT, False), _own, "torch"),
    Contender("PyTorch, compiled", GRADIENT, partial(_torch, GRADIENT, True), _own, "torch"),
    Contender("JAX, new array", GRADIENT, partial(_jax, GRADIENT), _own, "jax"),
)
