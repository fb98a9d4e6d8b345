"""Two models compared, with targets and quantiles: this package, NumPy and PyTorch.

The roof is reading the logits of both once. The figures that all compute have the names of
`Comparison.as_dict`: mean and standard error of KL(reference || candidate), the same top class, both losses,
their paired change, the change of the target's probability and its root mean square; the least, the largest
and eleven quantiles of the divergence and of that change. Only `xent_rs.compare` has besides, in the time
shown, the reverse divergence and that of Jensen and Shannon, perplexities, the correlation of the losses, and
accuracy, entropy and calibration error of both models.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import cached_property, partial
from typing import Any

import numpy as np
from xent_rs import _xent_rs, compare
from xent_rs._bfloat16 import bfloat16
from xent_rs._comparer import _COMPARE
from xent_rs._quantiles import FRACTIONS
from xent_rs.cli.benchmark.cases import Array, Case, reads
from xent_rs.cli.benchmark.contenders import torch_tensors
from xent_rs.cli.benchmark.measuring import Entry, Results, Settings, Skips, progress, steps, take, within

from .options import QUICK_SHAPES, SHAPES

COMPARISON = "comparison"

# What a candidate differs by from the reference, whose logits have the standard deviation 1: normal noise of
# this size; and its dtype, where the reference has float32.
KINDS = {
    "rounded": (0.05, "float32"),
    "another model": (1.0, "float32"),
    "rounded, bfloat16": (0.05, "bfloat16"),
    "another model, bfloat16": (1.0, "bfloat16"),
}

_BLOCK_ELEMENTS = 1 << 18

Figures = dict[str, float]


@dataclass(frozen=True)
class Rows:
    """What all figures come from, of each row: arrays or tensors."""

    kl: Any
    same_top: Any
    reference_loss: Any
    candidate_loss: Any
    delta_p: Any


class Problem:
    """The logits of two models, and the classes."""

    def __init__(self, case: Case, kind: str) -> None:
        noise, dtype = KINDS[kind]
        self.name, self.fields = f"{kind}, {case.name}", {**case.fields, "kind": kind}
        self.reference, self.targets = case.logits, case.targets
        random = np.random.default_rng(1)
        candidate = noise * random.standard_normal(case.logits.shape, np.float32)
        candidate += case.logits
        self.candidate = candidate.astype(bfloat16() if dtype == "bfloat16" else dtype, copy=False)
        self.classes = case.classes

    def roofs(self) -> dict[str, Callable[[], Any]]:
        """Return the call that only reads the logits of both."""
        return {"read": reads(self.reference, self.candidate)}

    @cached_property
    def expected(self) -> Figures:
        """The figures in float64, of all rows."""
        step = max(1, _BLOCK_ELEMENTS // self.classes)
        blocks = [
            _numpy_rows(
                self.reference[start : start + step].astype(np.float64),
                self.candidate[start : start + step].astype(np.float64),
                self.targets[start : start + step],
            )
            for start in range(0, len(self.targets), step)
        ]
        names = [field.name for field in fields(Rows)]
        rows = Rows(**{name: np.concatenate([getattr(rows, name) for rows in blocks]) for name in names})
        return _figures(rows, _numpy_estimate, np.quantile)

    def check(self, package: str, answer: Any) -> dict[str, float]:
        """Compare all figures with float64; errors are shares of what is tolerated."""
        found = answer if isinstance(answer, dict) else answer.as_dict()
        shares: dict[str, list[float]] = {of: [] for of in ("kl", "same_top", "loss", "delta_p")}
        for name, value in self.expected.items():
            of = next(of for of in shares if of in name)
            shares[of].append(abs(found[name] - value) / self._tolerated(package, of, value))
        # Unlike Python's, NumPy's maximum is NaN if one of them is.
        worst = {of: (float(np.max(errors)), 1.0) for of, errors in shares.items()}
        return within(f"{package}, {self.name}", worst)

    def _tolerated(self, package: str, of: str, value: float) -> float:
        """Return what a figure may be off: a few units of float32 of what it is computed from."""
        ours = package == "xent_rs"
        unit = (2 if ours else 8) * 2.0**-23
        size = 1 + math.log(self.classes)  # of the logarithm of a probability
        if of == "kl" and ours:
            # Its terms are as small as the divergence, to the digits of d = log q - log p.
            return unit * (math.sqrt(value) * size + value)
        if of == "delta_p":
            # Peers subtract probabilities, which have no more digits than their logarithms.
            return (1 if ours else 8) * unit * (abs(value) + size * self._largest_change)
        return unit * (abs(value) + size)

    @cached_property
    def _largest_change(self) -> float:
        return max(abs(self.expected["delta_p_min"]), abs(self.expected["delta_p_max"]))


def _figures(
    rows: Rows,
    estimate: Callable[[Any], tuple[float, float]],
    quantiles: Callable[[Any, Sequence[float]], Any],
) -> Figures:
    """Return the figures of rows."""
    columns = {
        "kl": rows.kl,
        "same_top": rows.same_top,
        "reference_loss": rows.reference_loss,
        "candidate_loss": rows.candidate_loss,
        "loss_change": rows.candidate_loss - rows.reference_loss,
        "delta_p": rows.delta_p,
    }
    found = {}
    for name, values in columns.items():
        found[name], found[f"{name}_error"] = estimate(values)
    square, error = estimate(rows.delta_p**2)
    found["delta_p_rms"], found["delta_p_rms_error"] = math.sqrt(square), error / (2 * math.sqrt(square))
    for name, values in (("kl", rows.kl), ("delta_p", rows.delta_p)):
        found[f"{name}_min"], found[f"{name}_max"] = float(values.min()), float(values.max())
        for fraction, value in zip(FRACTIONS, quantiles(values, FRACTIONS), strict=True):
            found[f"{name}_q{100 * fraction:g}".replace(".", "_")] = float(value)
    return found


def ours(problem: Problem) -> Callable[[], Any]:
    """Return the call that has all figures."""
    return partial(compare, problem.reference, problem.candidate, problem.targets)


def rows_of(problem: Problem) -> Callable[[], Any]:
    """Return the call of the compiled module, which has the figures of each row."""
    arrays = problem.reference, problem.candidate, problem.targets
    return partial(_xent_rs.compare_rows, *arrays, _COMPARE, {})


def _numpy(problem: Problem) -> Callable[[], Figures]:
    def call() -> Figures:
        candidate = problem.candidate.astype(np.float32, copy=False)  # nobody would sum in 16 bits
        rows = _numpy_rows(problem.reference, candidate, problem.targets)
        return _figures(rows, _numpy_estimate, np.quantile)

    return call


def _numpy_rows(reference: Array, candidate: Array, targets: Array) -> Rows:
    """Return what one computes of each row in NumPy, in the dtype of the logits."""
    log_p, log_q = _numpy_log_softmax(reference), _numpy_log_softmax(candidate)
    rows = np.arange(len(targets))
    log_p_of_target, log_q_of_target = log_p[rows, targets], log_q[rows, targets]
    return Rows(
        kl=(np.exp(log_p) * (log_p - log_q)).sum(axis=1),
        same_top=reference.argmax(axis=1) == candidate.argmax(axis=1),
        reference_loss=-log_p_of_target,
        candidate_loss=-log_q_of_target,
        delta_p=np.exp(log_q_of_target) - np.exp(log_p_of_target),
    )


def _numpy_log_softmax(logits: Array) -> Array:
    z: Array = logits - logits.max(axis=1, keepdims=True)
    z -= np.log(np.exp(z).sum(axis=1, keepdims=True))
    return z


def _numpy_estimate(values: Array) -> tuple[float, float]:
    return float(values.mean()), float(values.std(ddof=1, dtype=np.float64)) / math.sqrt(len(values))


def _torch(problem: Problem) -> Callable[[], Figures]:
    torch, reference, targets = torch_tensors(problem.reference, problem.targets)
    _, given, _ = torch_tensors(problem.candidate, problem.targets)
    functional = torch.nn.functional

    def estimate(values: Any) -> tuple[float, float]:
        values = values.double()
        return values.mean().item(), values.std().item() / math.sqrt(len(values))

    def quantiles(values: Any, fractions: Sequence[float]) -> Any:
        return torch.quantile(values, torch.tensor(fractions, dtype=values.dtype)).tolist()

    def call() -> Figures:
        candidate = given.float()
        log_p, log_q = (functional.log_softmax(logits, dim=1) for logits in (reference, candidate))
        log_p_of_target, log_q_of_target = (
            logs.gather(1, targets[:, None]).squeeze(1) for logs in (log_p, log_q)
        )
        rows = Rows(
            kl=functional.kl_div(log_q, log_p, reduction="none", log_target=True).sum(dim=1),
            same_top=reference.argmax(dim=1) == candidate.argmax(dim=1),
            reference_loss=-log_p_of_target,
            candidate_loss=-log_q_of_target,
            delta_p=log_q_of_target.exp() - log_p_of_target.exp(),
        )
        return _figures(rows, estimate, quantiles)

    return call


# contender, package, what makes the call
WAYS: tuple[tuple[str, str, Callable[[Problem], Callable[[], Any]]], ...] = (
    ("xent_rs", "xent_rs", ours),
    ("NumPy", "numpy", _numpy),
    ("PyTorch", "torch", _torch),
)


def entry(problem: Problem, contender: str, package: str, make: Callable[[Problem], Any]) -> Entry:
    """Return what `take` needs to know of a way to compare."""
    named = {"suite": "compare", **problem.fields, "job": COMPARISON, "contender": contender}
    return Entry(named, lambda: (make(problem), partial(problem.check, package)), {"read": 1.0}, package)


def run(settings: Settings) -> tuple[Results, Skips]:
    """Compare each kind of candidate at each shape."""
    shapes = QUICK_SHAPES if settings.quick else SHAPES
    packages = {contender.package for contender in settings.contenders}
    ways = [way for way in WAYS if way[1] in packages]
    results: Results = []
    skips: Skips = []
    with progress(len(shapes) * len(KINDS) * steps(len(ways), 1, settings.repeats)) as bar:
        for rows, classes in shapes:
            case = Case.random(rows, classes, "float32")
            for kind in KINDS:
                bar.set_postfix_str(f"compare, {kind}, {rows} x {classes}")
                problem = Problem(case, kind)
                entries = [entry(problem, *way) for way in ways]
                some, some_skips = take(entries, problem.roofs(), settings.repeats, bar.update)
                results += some
                skips += [skip for skip in some_skips if skip not in skips]
    return results, skips
