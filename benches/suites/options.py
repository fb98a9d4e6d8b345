"""What the options and the other functions cost, against the plain loss and its gradient.

Results have besides ``ratio``, the time by that of the plain loss (or gradient), and ``beyond``, the same
less the time in which the memory moves the bytes that the plain one does not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
from xent_rs import (
    SparseTargets,
    cross_entropy,
    cross_entropy_hvp,
    cross_entropy_temperature_grad,
    cross_entropy_with_grad,
    cross_entropy_with_grad_hess,
    evaluate,
    kl_divergence,
    kl_divergence_with_grad,
    log_softmax,
    logsumexp,
    row_statistics,
    selective_log_softmax,
    softmax,
)
from xent_rs.cli.benchmark.cases import GRADIENT, JOBS, LOSS, ROOFS, Array, Case
from xent_rs.cli.benchmark.contenders import promised
from xent_rs.cli.benchmark.measuring import Entry, Results, Settings, Skips, progress, steps, take, within

from tests import bounds, oracle

SHAPES = ((2048, 32_000), (16_384, 1000), (262_144, 10))
QUICK_SHAPES = ((64, 32_000), (2048, 10))

PLAIN = "plain"

# One more array of the size of the logits is read; or one more written, three instead of a copy's two.
ONE_MORE_READ = {LOSS: {"read": 2.0}, GRADIENT: {"copy": 1.0, "read": 1.0}}
_ONE_MORE_WRITTEN = {"copy": 1.5}


class Material(Case):
    """A case, and what the options need besides."""

    @cached_property
    def source(self) -> np.random.Generator:
        """What all that is random comes from."""
        return np.random.default_rng(1)

    @cached_property
    def weight(self) -> Array:
        """A weight for each class."""
        return np.asarray(self.source.uniform(0.5, 2, self.classes), np.float32)

    @cached_property
    def sample_weight(self) -> Array:
        """A weight for each row."""
        return np.asarray(self.source.uniform(0.5, 2, self.rows), np.float32)

    @cached_property
    def teacher(self) -> Array:
        """Other logits."""
        return self.source.standard_normal((self.rows, self.classes), np.float32)

    @cached_property
    def probabilities(self) -> Array:
        """Targets that sum to 1."""
        return softmax(self.teacher)

    @cached_property
    def index(self) -> Array:
        """Four classes of each row."""
        return self.source.integers(self.classes, size=(self.rows, 4))

    @cached_property
    def sparse(self) -> SparseTargets:
        """The 64 likely classes of a teacher, at most half of all, with probabilities that sum to 1."""
        count = max(1, min(64, self.classes // 2))
        index = np.argpartition(-self.teacher, count - 1, axis=1)[:, :count]
        return SparseTargets(index, softmax(np.take_along_axis(self.teacher, index, axis=1)))

    @cached_property
    def some(self) -> Array:
        """The rows that are compared with float64."""
        return np.unique([0, 1, self.rows // 2, self.rows - 1])


Check = Callable[[Any], dict[str, float]]
Prepared = tuple[Callable[[], Any], Check]


@dataclass(frozen=True)
class _Task:
    """A call to time: its name and job, what prepares it and its check, and its roof."""

    name: str
    job: str
    prepare: Callable[[Material], Prepared]
    roof: Mapping[str, float]

    def entry(self, case: Material) -> Entry:
        """Return what `take` needs to know."""
        fields = {"suite": "options", **case.fields, "job": self.job, "contender": self.name}
        return Entry(fields, partial(self.prepare, case), self.roof)


def _option(
    name: str, arguments: Callable[[Material], dict[str, Any]] = lambda case: {}, soft: bool = False
) -> list[_Task]:
    """Return the loss and the gradient with an option of `cross_entropy`; `soft`: of probabilities."""

    def prepare(job: str, case: Material) -> Prepared:
        targets = case.probabilities if soft else case.targets
        given = (case.logits, targets)
        check = partial(_check_option, f"{name}, {case.name}", case, targets, arguments(case))
        if job == LOSS:
            return partial(cross_entropy, *given, **arguments(case)), check
        return partial(cross_entropy_with_grad, *given, **arguments(case), out=case.out), check

    roofs = ONE_MORE_READ if soft else ROOFS
    return [_Task(name, job, partial(prepare, job), roofs[job]) for job in roofs]


def _check_option(
    what: str, case: Material, targets: Array, arguments: dict[str, Any], answer: Any
) -> dict[str, float]:
    losses = cross_entropy(case.logits, targets, **arguments, reduction="none")
    counts = np.ones(case.rows)
    of_some = dict(arguments)
    if "weight" in arguments and targets.ndim == 1:
        counts *= arguments["weight"][targets]
    if "sample_weight" in arguments:
        counts *= arguments["sample_weight"]
        of_some["sample_weight"] = arguments["sample_weight"][case.some]
    return compare(what, case, promise(case, targets, of_some), losses, float(counts.sum()), answer)


def promise(case: Material, targets: Array, arguments: dict[str, Any]) -> Any:
    """Return the bounds of the rows that are compared, which know the answers."""
    of_softmax = {name: arguments[name] for name in ("temperature", "softcap") if name in arguments}
    others = {name: value for name, value in arguments.items() if name not in of_softmax}
    softmax = oracle.Softmax(case.logits[case.some], **of_softmax)
    return bounds.CrossEntropyBounds(oracle.CrossEntropy(softmax, targets[case.some], **others), case.dtype)


def compare(
    what: str,
    case: Material,
    promise: Any,
    losses: Array,
    divisor: float,
    answer: Any,
    rounding: float = 2.0**-23,
) -> dict[str, float]:
    """Compare the losses and the derivatives of some rows with float64, and the mean with all losses.

    Errors are shares of what is promised; `rounding` is what the mean may be off, relative to the losses.
    """
    mean, *derivatives = answer if isinstance(answer, tuple) else (answer,)
    exact = float(losses.sum(dtype=np.float64)) / divisor
    bound = rounding * float(np.abs(losses).sum(dtype=np.float64)) / divisor
    found = {
        "loss": share(losses[case.some], promise.oracle.losses, promise.losses),
        "mean": abs(mean - exact) / bound,
    }
    for name, derivative in zip(("gradient", "hessian"), derivatives, strict=False):
        expected = getattr(promise.oracle, f"{name}s") / divisor
        found[name] = share(derivative[case.some], expected, getattr(promise, f"{name}s")(1 / divisor))
    return within(what, {name: (error, 1.0) for name, error in found.items()})


def share(found: Any, expected: Array, promised: Any) -> float:
    """Return the largest error as a share of what is promised; NaN if one is."""
    return float((np.abs(np.asarray(found, np.float64) - expected) / promised).max())


def _sparse(job: str, rest: Any, case: Material) -> Prepared:
    """Return the loss or the gradient of the top classes of a teacher."""
    targets = SparseTargets(case.sparse.index, case.sparse.probability, rest)
    if rest == "tail":
        targets = SparseTargets(targets.index, targets.probability * np.float32(0.9), rest)
    loss, with_grad = cross_entropy, cross_entropy_with_grad
    if rest == "tail":
        loss, with_grad = kl_divergence, kl_divergence_with_grad

    def check(answer: Any) -> dict[str, float]:
        losses = loss(case.logits, targets, reduction="none")
        index, probability = targets.index[case.some], targets.probability[case.some]
        dense = np.zeros((len(case.some), case.classes))
        np.put_along_axis(dense, index, probability, axis=1)
        softmax = oracle.Softmax(case.logits[case.some])
        if rest == "tail":
            counts = np.ones(len(index))
            divergence = oracle.SparseDivergence(softmax, dense, 1 - dense.sum(axis=1), dense > 0, counts)
            promise: Any = bounds.SparseDivergenceBounds(divergence, case.dtype)
        else:
            promise = bounds.CrossEntropyBounds(oracle.CrossEntropy(softmax, dense), case.dtype)
        return compare(f"sparse targets, {rest}, {case.name}", case, promise, losses, case.rows, answer)

    if job == LOSS:
        return partial(loss, case.logits, targets), check
    return partial(with_grad, case.logits, targets, out=case.out), check


def _divergence(job: str, name: str, kind: Any, case: Material) -> Prepared:
    """Return the divergence from a teacher, or its gradient."""

    def check(answer: Any) -> dict[str, float]:
        losses = kl_divergence(case.logits, case.teacher, kind=kind, reduction="none")
        return compare(f"{name}, {case.name}", case, kl_promise(case, kind), losses, case.rows, answer)

    if job == LOSS:
        return partial(kl_divergence, case.logits, case.teacher, kind=kind), check
    return partial(kl_divergence_with_grad, case.logits, case.teacher, kind=kind, out=case.out), check


def kl_promise(case: Material, kind: str = "forward") -> Any:
    """Return the bounds of the rows that are compared, as `promise` does."""
    model, teacher = (oracle.Softmax(logits[case.some]) for logits in (case.logits, case.teacher))
    if kind == "forward":
        return bounds.KlDivergenceBounds(oracle.KlDivergence(model, teacher), case.dtype)
    beta = 0.5 if kind == "jensen_shannon" else None
    return bounds.DivergenceBounds(oracle.Divergence(model, teacher, beta=beta), case.dtype)


def _hessian(case: Material) -> Prepared:
    second = np.zeros_like(case.logits)
    call = partial(cross_entropy_with_grad_hess, case.logits, case.targets, out=case.out, hess_out=second)

    def check(answer: Any) -> dict[str, float]:
        losses = cross_entropy(case.logits, case.targets, reduction="none")
        expected = promise(case, case.targets, {})
        return compare(f"Hessian, {case.name}", case, expected, losses, case.rows, answer)

    return call, check


def _product(case: Material) -> Prepared:
    call = partial(cross_entropy_hvp, case.logits, case.targets, case.teacher, reduction="sum", out=case.out)

    def check(answer: Array) -> dict[str, float]:
        expected, vectors = _some(case), case.teacher[case.some]
        promise = bounds.CrossEntropyBounds(expected, case.dtype).hessian_products(vectors)
        error = share(answer[case.some], expected.hessian_products(vectors), promise)
        return within(f"Hessian times a vector, {case.name}", {"value": (error, 1.0)})

    return call, check


def _temperature(case: Material) -> Prepared:
    call = partial(cross_entropy_temperature_grad, case.logits, case.targets, reduction="none")

    def check(answer: Array) -> dict[str, float]:
        expected = _some(case)
        promise = bounds.CrossEntropyBounds(expected, case.dtype).temperature_gradients
        error = share(answer[case.some], expected.temperature_gradients, promise)
        return within(f"derivative by the temperature, {case.name}", {"value": (error, 1.0)})

    return call, check


def _some(case: Material) -> oracle.CrossEntropy:
    return oracle.CrossEntropy(oracle.Softmax(case.logits[case.some]), case.targets[case.some])


def _in_place(case: Material) -> Prepared:
    # From the second call on these are not the logits of the case: that does not change the work.
    logits = case.logits.copy()

    def check(answer: Any) -> dict[str, float]:
        losses = cross_entropy(case.logits, case.targets, reduction="none")
        expected = promise(case, case.targets, {})
        return compare(f"in place, {case.name}", case, expected, losses, case.rows, answer)

    return partial(cross_entropy_with_grad, logits, case.targets, out=logits), check


def _logsumexp(case: Material) -> Prepared:
    return partial(logsumexp, case.logits), partial(_check_logsumexp, case)


def _row_statistics(case: Material) -> Prepared:
    call = partial(row_statistics, case.logits, case.targets)
    return call, lambda answer: _check_logsumexp(case, answer.logsumexp)


def _check_logsumexp(case: Material, answer: Array) -> dict[str, float]:
    softmax = oracle.Softmax(case.logits[case.some])
    error = share(answer[case.some], softmax.logsumexp, bounds.logsumexp_bound(softmax, case.dtype))
    return within(f"logsumexp, {case.name}", {"value": (error, 1.0)})


def _softmax(case: Material) -> Prepared:
    def check(answer: Array) -> dict[str, float]:
        expected = oracle.Softmax(case.logits[case.some])
        promise = bounds.probability_bound(expected, case.dtype)
        error = share(answer[case.some], expected.probabilities, promise)
        return within(f"softmax, {case.name}", {"value": (error, 1.0)})

    return partial(softmax, case.logits, out=case.out), check


def _log_softmax(case: Material) -> Prepared:
    call = partial(log_softmax, case.logits, out=case.out)
    return call, partial(_check_log_probabilities, "log_softmax", case, np.arange(case.classes)[None])


def _selective(case: Material) -> Prepared:
    call = partial(selective_log_softmax, case.logits, case.index)
    index = case.index[case.some]
    return call, partial(_check_log_probabilities, "selective_log_softmax", case, index)


def _check_log_probabilities(what: str, case: Material, index: Array, answer: Array) -> dict[str, float]:
    """Compare the logarithms of some rows at the classes `index`."""
    softmax = oracle.Softmax(case.logits[case.some])
    promise = bounds.log_probability_bound(softmax, case.dtype)
    expected, promise = (
        np.take_along_axis(array, index, axis=1) for array in (softmax.log_probabilities, promise)
    )
    error = share(answer[case.some], expected, promise)
    return within(f"{what}, {case.name}", {"value": (error, 1.0)})


def _evaluate(case: Material) -> Prepared:
    def check(answer: Any) -> dict[str, float]:
        error = abs(answer.loss - case.loss) / case.loss
        return within(f"evaluate, {case.name}", {"loss": (error, promised(case)[0])})

    return partial(evaluate, case.logits, case.targets), check


TASKS = (
    *_option(PLAIN),
    *_option("label smoothing", lambda case: {"label_smoothing": 0.1}),
    *_option("class weights", lambda case: {"weight": case.weight}),
    *_option("class weights, smoothing", lambda case: {"weight": case.weight, "label_smoothing": 0.1}),
    *_option("sample weights", lambda case: {"sample_weight": case.sample_weight}),
    *_option("z-loss", lambda case: {"z_loss": 1e-4}),
    *_option("temperature", lambda case: {"temperature": 2.0}),
    *_option("softcap", lambda case: {"softcap": 30.0}),
    *_option("probabilities", soft=True),
    *_option("probabilities, smoothing", lambda case: {"label_smoothing": 0.1}, soft=True),
    *(
        _Task(name, job, partial(_sparse, job, rest), ROOFS[job])
        for name, rest in (("sparse targets", "zero"), ("sparse targets, tail", "tail"))
        for job in JOBS
    ),
    *(
        _Task(name, job, partial(_divergence, job, name, kind), ONE_MORE_READ[job])
        for name, kind in (
            ("KL divergence", "forward"),
            ("KL divergence, reverse", "reverse"),
            ("Jensen-Shannon divergence", "jensen_shannon"),
        )
        for job in JOBS
    ),
    _Task("logsumexp", LOSS, _logsumexp, ROOFS[LOSS]),
    _Task("selective_log_softmax", LOSS, _selective, ROOFS[LOSS]),
    _Task("row_statistics", LOSS, _row_statistics, ROOFS[LOSS]),
    _Task("evaluate", LOSS, _evaluate, ROOFS[LOSS]),
    _Task("in place", GRADIENT, _in_place, ROOFS[GRADIENT]),
    _Task("Hessian besides", GRADIENT, _hessian, _ONE_MORE_WRITTEN),
    _Task("Hessian times a vector", GRADIENT, _product, ONE_MORE_READ[GRADIENT]),
    _Task("derivative by temperature", LOSS, _temperature, ROOFS[LOSS]),
    _Task("softmax", GRADIENT, _softmax, ROOFS[GRADIENT]),
    _Task("log_softmax", GRADIENT, _log_softmax, ROOFS[GRADIENT]),
)


def run(settings: Settings) -> tuple[Results, Skips]:
    """Time every option and function on each shape, in float32."""
    shapes = QUICK_SHAPES if settings.quick else SHAPES
    results: Results = []
    with progress(len(shapes) * steps(len(TASKS), len(JOBS), settings.repeats)) as bar:
        for rows, classes in shapes:
            bar.set_postfix_str(f"options, {rows} x {classes}")
            case = Material.random(rows, classes, "float32")
            some, _ = take([task.entry(case) for task in TASKS], case.roofs(), settings.repeats, bar.update)
            results += with_ratios(some)
    return results, []


def with_ratios(results: Results) -> Results:
    """Compare the results of one case with those of the plain loss and gradient."""
    plain = {result["job"]: result for result in results if result["contender"] == PLAIN}
    found = []
    for result in results:
        of_job = plain[result["job"]]
        extra = result["roof"] - of_job["roof"]
        found.append(
            {
                **result,
                "ratio": result["median"] / of_job["median"],
                "beyond": (result["median"] - extra) / of_job["median"],
            }
        )
    return found
