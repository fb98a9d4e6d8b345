"""Wrappers as users write them: what mypy --strict and pyright must accept, and what they must refuse.

Nothing here is run. A `type: ignore` that nothing needs is an error of its own: such lines must not pass.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import xent_rs
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    from typing_extensions import assert_type

Floats = NDArray[np.floating[Any]]
Reduction = Literal["mean", "sum", "none"]


def any_reduction(logits: ArrayLike, targets: ArrayLike, reduction: Reduction) -> None:
    """The union of reductions is passed through."""
    assert_type(xent_rs.cross_entropy(logits, targets, reduction=reduction), float | Floats)
    both = xent_rs.cross_entropy_with_grad(logits, targets, reduction=reduction)
    assert_type(both, tuple[float | Floats, Floats])
    three = xent_rs.cross_entropy_with_grad_hess(logits, targets, reduction=reduction)
    assert_type(three, tuple[float | Floats, Floats, Floats])
    assert_type(xent_rs.binary_cross_entropy(logits, targets, reduction=reduction), float | Floats)
    both = xent_rs.binary_cross_entropy_with_grad(logits, targets, reduction=reduction)
    assert_type(both, tuple[float | Floats, Floats])
    assert_type(xent_rs.kl_divergence(logits, logits, reduction=reduction), float | Floats)
    both = xent_rs.kl_divergence_with_grad(logits, logits, reduction=reduction)
    assert_type(both, tuple[float | Floats, Floats])
    of_temperature = xent_rs.cross_entropy_temperature_grad(logits, targets, reduction=reduction)
    assert_type(of_temperature, float | Floats)
    assert_type(xent_rs.cross_entropy_temperature_grad(logits, targets), float)
    assert_type(xent_rs.cross_entropy_hvp(logits, targets, logits, reduction=reduction), Floats)
    assert_type(xent_rs.kl_divergence_hvp(logits, logits, logits, out=None), Floats)
    assert_type(xent_rs.cross_entropy_target_grad(logits, targets, grad_output=2), Floats)
    xent_rs.cross_entropy_hvp(logits, targets, logits, softcap=30)  # type: ignore[call-arg]
    of_probabilities = xent_rs.probability.binary_cross_entropy(logits, targets, reduction=reduction)
    assert_type(of_probabilities, float | NDArray[np.float64])


def top_classes(
    logits: ArrayLike, index: NDArray[np.int32], probability: list[float], rest: Literal["zero", "tail"]
) -> None:
    """Targets that list classes are targets, and teachers."""
    targets = xent_rs.SparseTargets(index, probability, rest)
    assert_type(targets.index, NDArray[np.integer[Any]])
    assert_type(xent_rs.cross_entropy(logits, targets), float)
    assert_type(xent_rs.kl_divergence_with_grad(logits, targets, reduction="none"), tuple[Floats, Floats])
    xent_rs.SparseTargets(index, probability, "other")  # type: ignore[arg-type]
    xent_rs.evaluate(logits, targets)  # type: ignore[arg-type]


def every_option(
    logits: ArrayLike,
    targets: ArrayLike,
    weight: ArrayLike | None,
    reduction: Reduction,
    denominator: float | None,
    softcap: float | None,
    out: NDArray[np.float32] | None,
) -> float | Floats:
    """What may be None in the wrapper may be None here."""
    loss, _ = xent_rs.cross_entropy_with_grad(
        logits,
        targets,
        weight=weight,
        sample_weight=None,
        ignore_index=-1,
        label_smoothing=0.1,
        z_loss=0,
        softcap=softcap,
        temperature=2,
        focal_gamma=2,
        poly_epsilon=np.float32(-1),
        axis=0,
        reduction=reduction,
        denominator=denominator,
        grad_output=None,
        out=out,
    )
    return loss


def numpy_scalars(logits: NDArray[np.float32], targets: NDArray[np.int32]) -> float:
    """Numbers of NumPy are numbers."""
    temperature, axis = np.float32(0.5), np.int64(-1)
    xent_rs.softmax(logits, axis=axis, temperature=temperature)
    xent_rs.logsumexp(logits, axis=axis, keepdims=True, temperature=np.float16(2))
    xent_rs.row_statistics(logits, targets, softcap=np.float64(30), ignore_index=np.int8(-1))
    xent_rs.evaluate(logits, targets, top_k=np.arange(1, 3), temperature=temperature, axis=axis)
    xent_rs.probability.entropy(logits, axis=axis, base=np.float32(2))
    return xent_rs.cross_entropy(
        logits,
        targets,
        temperature=temperature,
        axis=axis,
        ignore_index=np.uint8(255),
        label_smoothing=np.float32(0.1),
        denominator=np.int64(7),
    )


def results(logits: NDArray[np.float32], targets: NDArray[np.int64]) -> None:
    """Every result is more than `Any`."""
    assert_type(xent_rs.cross_entropy(logits, targets), float)
    assert_type(xent_rs.cross_entropy(logits, targets, reduction="none"), Floats)
    assert_type(xent_rs.cross_entropy_with_grad(logits, targets, out=logits), tuple[float, Floats])
    none = xent_rs.cross_entropy_with_grad_hess(logits, targets, reduction="none")
    assert_type(none, tuple[Floats, Floats, Floats])
    assert_type(xent_rs.binary_cross_entropy(logits, targets, reduction="none"), Floats)
    assert_type(xent_rs.kl_divergence(logits, logits, reduction="sum"), float)
    assert_type(xent_rs.kl_divergence(logits, logits, kind="jensen_shannon", beta=np.float32(0.1)), float)
    assert_type(xent_rs.softmax(logits), Floats)
    assert_type(xent_rs.log_softmax(logits, out=logits), Floats)
    assert_type(xent_rs.selective_log_softmax(logits, targets), Floats)
    assert_type(xent_rs.logsumexp(logits), Floats)
    statistics = xent_rs.row_statistics(logits, targets)
    assert_type(statistics.entropy, Floats)
    assert_type(statistics.argmax, NDArray[np.int64])
    assert_type(statistics.target_rank, NDArray[np.int64] | None)
    assert_type(statistics.target_log_probability, Floats | None)
    state = xent_rs.partial_row_statistics(logits, targets, class_offset=np.int64(0), num_classes=10)
    assert_type(state.merge(state).result(), xent_rs.RowStatistics)
    assert_type(state.target_logit, NDArray[np.float64])
    evaluation = xent_rs.evaluate(logits, targets)
    assert_type(evaluation.loss, float)
    assert_type(evaluation.top_k, dict[int, float])
    evaluator = xent_rs.Evaluator(weight=[1.0] * 10, softcap=30, top_k=(1, 3))
    evaluator.update(logits, targets, sample_weight=[1] * 4)
    evaluator.update(logits, targets, linear_weight=logits, linear_bias=[0.0] * 10)
    assert_type(xent_rs.evaluate(logits, targets, linear_weight=logits), xent_rs.Evaluation)
    assert_type(evaluator.result(), xent_rs.Evaluation)
    assert_type(statistics, xent_rs.RowStatistics)
    assert_type(evaluation.as_dict("valid/"), dict[str, float])
    assert_type(xent_rs.Evaluator().merge(xent_rs.Evaluator()), xent_rs.Evaluator)
    comparison = xent_rs.compare(logits, logits, targets, groups=["a"] * 4, axis=np.int64(-1), softcap=None)
    assert_type(comparison, xent_rs.Comparison)
    assert_type(comparison.kl, xent_rs.Estimate)
    assert_type(comparison.kl.error, float)
    assert_type(comparison.loss_change, xent_rs.Estimate | None)
    assert_type(comparison.kl_quantiles, dict[float, float])
    assert_type(comparison.reference, xent_rs.ComparedModel)
    assert_type(comparison.as_dict(), dict[str, float])
    comparer = xent_rs.Comparer(top_k=[3], weight=[1.0] * 10, temperature=np.float32(2))
    comparer.update(logits, logits, targets, sample_weight=[1] * 4)
    comparer.update(logits, logits, linear_weight=logits, linear_bias=(None, [0.0] * 10))
    from_hidden = xent_rs.compare(logits, logits, linear_weight=(logits, None), linear_bias=None)
    assert_type(from_hidden, xent_rs.Comparison)
    assert_type(comparer.merge(xent_rs.Comparer()).result(), xent_rs.Comparison)
    assert_type(xent_rs.linear_cross_entropy(logits, logits, targets, linear_bias=[0.0]), float)
    assert_type(xent_rs.linear_cross_entropy(logits, logits, targets, reduction="none"), Floats)
    linear_loss, gradients = xent_rs.linear_cross_entropy_with_grad(
        logits, logits, targets, out=(logits, None)
    )
    assert_type(linear_loss, float)
    assert_type(gradients, xent_rs.LinearGradients)
    assert_type(gradients.linear_weight, Floats)
    assert_type(gradients.linear_bias, Floats | None)
    assert_type(xent_rs.cross_entropy_grad(logits, targets, lse=logits, num_classes=np.int64(9)), Floats)
    stored = xent_rs.io.open_array("stored.npy")
    for position, _some_logits, _some_targets in xent_rs.io.row_blocks(stored, stored):
        assert_type(position, tuple[int, ...])
    xent_rs.evaluate(stored, targets, linear_weight=stored)
    for _, reference, candidate, some_targets, _, _ in xent_rs.io.paired_row_blocks(stored, logits, None):
        assert_type(reference, NDArray[Any])
        assert_type(candidate, NDArray[Any])
        assert_type(some_targets, NDArray[Any] | None)
    assert_type(stored[..., 2:5], NDArray[Any])
    assert_type(stored.shape, tuple[int, ...])
    error: RuntimeError = xent_rs.InternalError("x")
    assert_type(xent_rs.get_num_threads(), int)
    assert_type(error.args, tuple[Any, ...])
    assert_type(xent_rs.probability.self_information(0.5), NDArray[np.float64])
    assert_type(xent_rs.probability.entropy(logits), NDArray[np.float64])
    assert_type(xent_rs.probability.cross_entropy(logits, logits), NDArray[np.float64])
    assert_type(xent_rs.probability.kl_divergence(logits, logits), NDArray[np.float64])
    assert_type(xent_rs.probability.binary_cross_entropy(logits, targets), float)
    halved = partial(xent_rs.softmax, temperature=2.0)
    assert_type(halved(logits), Floats)


def refused(logits: NDArray[np.float32], targets: NDArray[np.int64]) -> None:
    """What fails when it runs fails here."""
    xent_rs.cross_entropy(logits, targets, reduction="avg")  # type: ignore[call-overload]
    xent_rs.cross_entropy(logits, targets, -100)  # type: ignore[call-overload]
    xent_rs.cross_entropy(logits)  # type: ignore[call-overload]
    xent_rs.cross_entropy(logits, targets, smoothing=0.1)  # type: ignore[call-overload]
    xent_rs.cross_entropy(logits, targets, axis=1.0)  # type: ignore[call-overload]
    xent_rs.cross_entropy(logits, targets, temperature="2")  # type: ignore[call-overload]
    xent_rs.cross_entropy_with_grad_hess(logits, targets, z_loss=0.1)  # type: ignore[call-overload]
    xent_rs.kl_divergence(logits, logits, label_smoothing=0.1)  # type: ignore[call-overload]
    xent_rs.kl_divergence(logits, logits, kind="backward")  # type: ignore[call-overload]
    xent_rs.compare(logits, logits, targets, label_smoothing=0.1)  # type: ignore[call-arg]
    xent_rs.compare(logits)  # type: ignore[call-arg]
    xent_rs.evaluate(logits, targets, linear_weight=(logits, None))  # type: ignore[arg-type]
    xent_rs.Evaluator(linear_weight=logits)  # type: ignore[call-arg]
    xent_rs.softmax(logits, out=[0.0])  # type: ignore[arg-type]
    xent_rs.softmax(logits, softcap=30.0)  # type: ignore[call-arg]
    xent_rs.oi  # type: ignore[attr-defined]  # noqa: B018
    xent_rs.set_num_threads("2")  # type: ignore[arg-type]
