"""What logits are compared with: classes, probabilities or other logits, or classes under a softcap.

The same calls, with the classes on axis 1, for the suites `targets` and `axis1`: of this package, PyTorch and
JAX. Results have a ``kind``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import numpy as np
from xent_rs import cross_entropy, cross_entropy_with_grad, kl_divergence, kl_divergence_with_grad
from xent_rs.cli.benchmark.cases import GRADIENT, JOBS, LOSS, ROOFS, Array, copies, reads
from xent_rs.cli.benchmark.contenders import (
    jax_call,
    jax_cross_entropy,
    torch_call,
    torch_cross_entropy,
)
from xent_rs.cli.benchmark.measuring import Entry, Results, Settings, Skips, progress, steps, take

from . import options
from .options import Material

# The logits that a softcap leaves lie between minus and plus this.
_SOFTCAP = 30.0

Formula = Callable[[Any, Any, Any], Any]


@dataclass(frozen=True)
class Kind:
    """What the logits are compared with.

    Attributes
    ----------
    other : str
        The name of it in `Material`.
    torch, jax : callable
        The mean loss in PyTorch and in JAX, for `torch_call` and `jax_call`.
    functions : pair of callable
        This package's, for the loss and for the gradient.
    arguments : dict
        What these take besides.
    roof : mapping
        The roof of each job.
    """

    other: str
    torch: Formula
    jax: Formula
    functions: tuple[Callable[..., Any], Callable[..., Any]] = (cross_entropy, cross_entropy_with_grad)
    arguments: dict[str, float] = field(default_factory=dict)
    roof: Mapping[str, Mapping[str, float]] = field(default_factory=lambda: ROOFS)


def _torch_kl(functional: Any, x: Any, y: Any) -> Any:
    logs, of_target = functional.log_softmax(x, 1), functional.log_softmax(y, 1)
    total = functional.kl_div(logs, of_target, reduction="sum", log_target=True)
    return total / (x.numel() // x.shape[1])


def _torch_softcap(functional: Any, x: Any, y: Any) -> Any:
    return functional.cross_entropy(_SOFTCAP * (x / _SOFTCAP).tanh(), y)


def _jax_soft(jax: Any, x: Any, y: Any) -> Any:
    return jax.numpy.mean((-y * jax.nn.log_softmax(x, axis=1)).sum(axis=1))


def _jax_kl(jax: Any, x: Any, y: Any) -> Any:
    of_target = jax.nn.log_softmax(y, axis=1)
    terms = jax.numpy.exp(of_target) * (of_target - jax.nn.log_softmax(x, axis=1))
    return jax.numpy.mean(terms.sum(axis=1))


def _jax_softcap(jax: Any, x: Any, y: Any) -> Any:
    return jax_cross_entropy(jax, _SOFTCAP * jax.numpy.tanh(x / _SOFTCAP), y)


CLASSES, SOFT, KL, SOFTCAP = "class targets", "soft targets", "KL divergence", "softcap"

KINDS = {
    CLASSES: Kind("targets", torch_cross_entropy, jax_cross_entropy),
    SOFT: Kind("probabilities", torch_cross_entropy, _jax_soft, roof=options.ONE_MORE_READ),
    KL: Kind(
        "teacher",
        _torch_kl,
        _jax_kl,
        functions=(kl_divergence, kl_divergence_with_grad),
        roof=options.ONE_MORE_READ,
    ),
    SOFTCAP: Kind("targets", _torch_softcap, _jax_softcap, arguments={"softcap": _SOFTCAP}),
}


class Problem:
    """A case of a kind, its arrays of shape (rows, classes), or as images of shape (N, classes, H, W)."""

    def __init__(self, case: Material, kind: str, images: tuple[int, int, int] | None = None) -> None:
        self.case, self.name, self.kind, self.images = case, f"{kind}, {case.name}", KINDS[kind], images
        self.fields = {**case.fields, "kind": kind}
        self.logits = self._laid(case.logits)
        self.other = self._laid(getattr(case, self.kind.other))
        self.out = np.zeros_like(self.logits)

    def _laid(self, array: Array) -> Array:
        if self.images is None:
            return array
        shaped = array.reshape(*self.images, *array.shape[1:])
        return shaped if array.ndim == 1 else np.ascontiguousarray(np.moveaxis(shaped, -1, 1))

    def _rows(self, array: Any) -> Array:
        """Return a gradient with a row for each loss."""
        if self.images is None:
            return np.asarray(array)
        return np.moveaxis(np.asarray(array), 1, -1).reshape(self.case.logits.shape)

    def roofs(self) -> dict[str, Callable[[], Any]]:
        """Return the calls that only read the logits, and that only read them and write as much."""
        return {"read": reads(self.logits), "copy": copies(self.logits, self.out)}

    @cached_property
    def losses(self) -> Array:
        """The loss of each row, by this package; some of them are compared with float64."""
        arrays = self.case.logits, getattr(self.case, self.kind.other)
        return np.asarray(self.kind.functions[0](*arrays, **self.kind.arguments, reduction="none"))

    @cached_property
    def promise(self) -> Any:
        """The bounds of the rows that are compared, which know the answers."""
        if self.kind is KINDS[KL]:
            return options.kl_promise(self.case)
        return options.promise(self.case, getattr(self.case, self.kind.other), self.kind.arguments)

    def check(self, package: str, answer: Any) -> dict[str, float]:
        """Compare an answer with float64: against this package's promise, or what is tolerated of peers."""
        if isinstance(answer, tuple):
            answer = float(answer[0]), self._rows(answer[1])
        what = f"{package}, {self.name}"
        if package == "xent_rs":
            return options.compare(what, self.case, self.promise, self.losses, self.case.rows, answer)
        tolerated = _Tolerated(self.promise, self.case)
        rounding = 16 * self.case.eps
        return options.compare(what, self.case, tolerated, self.losses, self.case.rows, answer, rounding)


class _Tolerated:
    """In place of a promise, what is tolerated of those who promise nothing: the errors of subtracting."""

    def __init__(self, promise: Any, case: Material) -> None:
        self.oracle, self.losses = promise.oracle, promise.losses
        self._eps, self._classes = case.eps, case.classes

    def gradients(self, scale: float) -> Array:
        """64 eps, and what adding up the classes may lose, of the largest entry of a row."""
        largest = np.abs(self.oracle.gradients).max(axis=1, keepdims=True) + 1 / self._classes
        return np.asarray((64 + np.sqrt(self._classes)) * self._eps * scale * largest)


def ours(problem: Problem, job: str) -> Callable[[], Any]:
    kind = problem.kind
    out = {} if job == LOSS else {"out": problem.out}
    function = kind.functions[JOBS.index(job)]
    return partial(function, problem.logits, problem.other, **kind.arguments, axis=1, **out)


def _torch(compiled: bool, problem: Problem, job: str) -> Callable[[], Any]:
    return torch_call(problem.kind.torch, job, problem.logits, problem.other, compiled)


def _jax(problem: Problem, job: str) -> Callable[[], Any]:
    return jax_call(problem.kind.jax, job, problem.logits, problem.other)


# name, job, package, what makes the call
Way = tuple[str, str, str, Callable[[Problem, str], Any]]

_WAYS: tuple[Way, ...] = (
    ("xent_rs", LOSS, "xent_rs", ours),
    ("PyTorch", LOSS, "torch", partial(_torch, False)),
    ("PyTorch, compiled", LOSS, "torch", partial(_torch, True)),
    ("JAX", LOSS, "jax", _jax),
    ("xent_rs, out=", GRADIENT, "xent_rs", ours),
    ("PyTorch, new array", GRADIENT, "torch", partial(_torch, False)),
    ("PyTorch, compiled", GRADIENT, "torch", partial(_torch, True)),
    ("JAX, new array", GRADIENT, "jax", _jax),
)


def entry(suite: str, problem: Problem, way: Way) -> Entry:
    """Return what `take` needs to know of a way to do a job."""
    name, job, package, make = way
    return Entry(
        {"suite": suite, **problem.fields, "job": job, "contender": name},
        lambda: (make(problem, job), partial(problem.check, package)),
        problem.kind.roof[job],
        package,
    )


def run(
    suite: str,
    shapes: Sequence[tuple[int, int, tuple[int, int, int] | None]],
    kinds: Sequence[str],
    settings: Settings,
    left_out: Collection[str] = (),
) -> tuple[Results, Skips]:
    """Time all kinds on each shape: rows, classes, and the images that the rows are.

    `left_out` are names of those who do not take part.
    """
    packages = {contender.package for contender in settings.contenders}
    ways = [way for way in _WAYS if way[2] in packages and way[0] not in left_out]
    results: Results = []
    skips: Skips = []
    with progress(len(shapes) * len(kinds) * steps(len(ways), len(JOBS), settings.repeats)) as bar:
        for rows, classes, images in shapes:
            case = Material.random(rows, classes, "float32")
            for kind in kinds:
                bar.set_postfix_str(f"{suite}, {kind}, {rows} x {classes}")
                problem = Problem(case, kind, images)
                entries = [entry(suite, problem, way) for way in ways]
                some, some_skips = take(entries, problem.roofs(), settings.repeats, bar.update)
                results += some
                skips += [skip for skip in some_skips if skip not in skips]
    return results, skips
