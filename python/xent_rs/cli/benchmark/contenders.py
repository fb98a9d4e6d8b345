"""What the benchmark runs: this package and its peers, each as a row of the table `CONTENDERS`."""

from __future__ import annotations

import importlib.metadata
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
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


def compiled(torch: Any, function: Callable[[Any, Any], Any]) -> Any:
    """Compile for one shape: the default would make the code of the second shape general, and slower."""
    torch._dynamo.config.recompile_limit = 1000
    return torch.compile(lambda x, y: function(x, y), dynamic=False)


def _torch_loss(case: Case) -> Callable[[], Any]:
    torch, logits, targets = torch_tensors(case.logits, case.targets)
    return lambda: torch.nn.functional.cross_entropy(logits, targets).item()


def _torch_gradient(case: Case) -> Callable[[], Any]:
    torch, logits, targets = torch_tensors(case.logits, case.targets)
    logits.requires_grad_()

    def call() -> Any:
        loss = torch.nn.functional.cross_entropy(logits, targets)
        (gradient,) = torch.autograd.grad(loss, logits)
        return loss.item(), torch_array(torch, gradient)

    return call


def _compiled_loss(case: Case) -> Callable[[], Any]:
    torch, logits, targets = torch_tensors(case.logits, case.targets)
    loss = compiled(torch, torch.nn.functional.cross_entropy)
    return lambda: loss(logits, targets).item()


def _compiled_gradient(case: Case) -> Callable[[], Any]:
    torch, logits, targets = torch_tensors(case.logits, case.targets)
    logits.requires_grad_()
    loss_of = compiled(torch, torch.nn.functional.cross_entropy)

    def call() -> Any:
        loss = loss_of(logits, targets)
        (gradient,) = torch.autograd.grad(loss, logits)
        return loss.item(), torch_array(torch, gradient)

    return call


def _jax_case(case: Case) -> tuple[Any, Any, Any, Callable[[Any, Any], Any]]:
    import jax

    config: Any = jax.config  # not typed
    config.update("jax_enable_x64", True)

    def loss(logits: Any, targets: Any) -> Any:
        picked = jax.numpy.take_along_axis(logits, targets[:, None], axis=1)[:, 0]
        return jax.numpy.mean(jax.nn.logsumexp(logits, axis=1) - picked)

    return jax, jax.numpy.asarray(case.logits), jax.numpy.asarray(case.targets), loss


def _jax_loss(case: Case) -> Callable[[], Any]:
    jax, logits, targets, loss = _jax_case(case)
    compiled = jax.jit(loss)
    return lambda: compiled(logits, targets).item()


def _jax_gradient(case: Case) -> Callable[[], Any]:
    jax, logits, targets, loss = _jax_case(case)
    compiled = jax.jit(jax.value_and_grad(loss))
    return lambda: jax.block_until_ready(compiled(logits, targets))


CONTENDERS = (
    Contender("xent_rs", LOSS, _xent_rs_loss, promised, "xent_rs"),
    Contender("NumPy", LOSS, _numpy_loss, _wide, "numpy"),
    Contender("SciPy", LOSS, _scipy_loss, _wide, "scipy"),
    Contender("scikit-learn", LOSS, _scikit_learn_loss, _wide, "scikit-learn"),
    Contender("PyTorch", LOSS, _torch_loss, _own, "torch"),
    Contender("PyTorch, compiled", LOSS, _compiled_loss, _own, "torch"),
    Contender("JAX", LOSS, _jax_loss, _own, "jax"),
    Contender("xent_rs, out=", GRADIENT, _xent_rs_out, promised, "xent_rs"),
    Contender("xent_rs, new array", GRADIENT, _xent_rs_fresh, promised, "xent_rs"),
    Contender("NumPy, out=", GRADIENT, _numpy_out, _wide, "numpy"),
    Contender("NumPy, new array", GRADIENT, _numpy_fresh, _wide, "numpy"),
    Contender("scikit-learn, out=", GRADIENT, _scikit_learn_out, _wide, "scikit-learn"),
    Contender("PyTorch, new array", GRADIENT, _torch_gradient, _own, "torch"),
    Contender("PyTorch, compiled", GRADIENT, _compiled_gradient, _own, "torch"),
    Contender("JAX, new array", GRADIENT, _jax_gradient, _own, "jax"),
)
