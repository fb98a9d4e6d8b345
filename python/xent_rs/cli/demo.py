"""Train a classifier of handwritten digits with this package, evaluate it, check it and time it.

The data are scikit-learn's real digits, 8 x 8 pixels; nothing is downloaded. The linear layer is NumPy, the
loss and its gradient are this package. The losses on the digits that were held out are compared with float64;
the command fails if they are further off than the package promises. The times are those of the loss, with and
without gradient, on the logits of these digits and on a batch of random logits of the size of a language
model's.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import Evaluation, cross_entropy, cross_entropy_with_grad, evaluate, softmax
from . import _terminal
from .benchmark.reference import Reference, loss_bounds, numpy_loss, numpy_loss_and_gradient
from .benchmark.timing import interleaved

Array = NDArray[Any]

_EPOCHS = 40
_BATCH = 64
_LEARNING_RATE = 0.2
_MOMENTUM = 0.9
_TRAINING_SHARE = 0.8
_LARGE = (512, 32_000)
_REPEATS = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    _terminal.add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Train, evaluate, check, time, and print."""
    images, labels = _digits()
    split = int(_TRAINING_SHARE * len(images))
    model, curve = _train(images[:split], labels[:split])
    logits = model(images)
    held_out, held_out_labels = logits[split:], labels[split:]
    evaluation = evaluate(held_out, held_out_labels)
    check = _check(held_out, held_out_labels, evaluation)
    timings = _timings(logits, labels)

    if arguments.json:
        _terminal.print_json(
            {
                "training_rows": split,
                "training_losses": curve,
                "evaluation": asdict(evaluation),
                "check": asdict(check),
                "timings": timings,
            }
        )
    else:
        print(f"Trained on {split:,} handwritten digits, {_EPOCHS} epochs; the loss of each:")
        print(f"  {_sparkline(curve)}  {curve[0]:.3f} to {curve[-1]:.3f}")
        print(f"\nEvaluated on {evaluation.rows} digits it has not seen:")
        _terminal.print_table(evaluation._table(), indent="  ")
        print()
        _show(images[split:], held_out, held_out_labels)
        print(
            f"\nChecked against float64: the largest error of a loss is {check.largest_error:.2g} nats, ",
            end="",
        )
        print(f"{check.largest_share:.0%} of what is allowed.")
        print("\nTimed, the median of several runs:")
        _terminal.print_table(_timing_table(timings), indent="  ")
    return 0


def _digits() -> tuple[Array, Array]:
    """Return scikit-learn's digits in a fixed random order: images of 64 values from 0 to 1, and labels."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(f'the demo needs scikit-learn ({error}): pip install "xent_rs[demo]"') from None
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(images))
    return (images[order] / 16).astype(np.float32), labels[order]


class _Softmax:
    """A linear layer, whose outputs are logits."""

    def __init__(self, inputs: int, classes: int) -> None:
        self.weight = np.zeros((inputs, classes), np.float32)
        self.bias = np.zeros(classes, np.float32)

    def __call__(self, images: Array) -> Array:
        return images @ self.weight + self.bias


def _train(images: Array, labels: Array) -> tuple[_Softmax, list[float]]:
    """Fit by gradient descent with momentum; return the model and the mean loss of each epoch."""
    model = _Softmax(images.shape[1], int(labels.max()) + 1)
    weight_step, bias_step = np.zeros_like(model.weight), np.zeros_like(model.bias)
    random = np.random.default_rng(0)
    curve = []
    with _terminal.progress(_EPOCHS, "train", unit="epoch") as bar:
        for _ in range(_EPOCHS):
            total = 0.0
            order = random.permutation(len(images))
            for start in range(0, len(images), _BATCH):
                batch = order[start : start + _BATCH]
                logits = model(images[batch])
                loss, gradient = cross_entropy_with_grad(logits, labels[batch], out=logits)
                weight_step = _MOMENTUM * weight_step - _LEARNING_RATE * (images[batch].T @ gradient)
                bias_step = _MOMENTUM * bias_step - _LEARNING_RATE * gradient.sum(axis=0)
                model.weight += weight_step
                model.bias += bias_step
                total += loss * len(batch)
            curve.append(total / len(images))
            bar.update()
    return model, curve


@dataclass(frozen=True)
class _Check:
    largest_error: float
    largest_share: float
    mean_error: float
    mean_bound: float


def _check(logits: Array, labels: Array, evaluation: Evaluation) -> _Check:
    """Compare each loss and their mean with float64; an error beyond the promised bound is fatal."""
    expected = Reference(logits, labels).losses
    bounds = loss_bounds(expected, logits.shape[1])
    errors = np.abs(cross_entropy(logits, labels, reduction="none") - expected)
    check = _Check(
        largest_error=float(errors.max()),
        largest_share=float((errors / bounds).max()),
        mean_error=abs(evaluation.loss - float(expected.mean())),
        mean_bound=float(bounds.mean()),
    )
    if not check.largest_share <= 1.0:
        row = int(np.argmax(errors / bounds))
        raise ArithmeticError(
            f"the loss of row {row} is off by {errors[row]:.3g}; at most {bounds[row]:.3g} is promised"
        )
    if not check.mean_error <= check.mean_bound:
        raise ArithmeticError(
            f"the mean loss is off by {check.mean_error:.3g}; at most {check.mean_bound:.3g} is promised"
        )
    return check


def _timings(digit_logits: Array, digit_labels: Array) -> list[dict[str, Any]]:
    random = np.random.default_rng(0)
    large_logits = random.standard_normal(_LARGE, np.float32)
    large_labels = random.integers(_LARGE[1], size=_LARGE[0])
    batches = {"these digits": (digit_logits, digit_labels), "random logits": (large_logits, large_labels)}

    calls: dict[tuple[str, str, str], Callable[[], object]] = {}
    for batch, (logits, labels) in batches.items():
        out = np.empty_like(logits)
        calls[batch, "loss", "xent_rs"] = partial(cross_entropy, logits, labels)
        calls[batch, "loss", "NumPy"] = partial(numpy_loss, logits, labels)
        calls[batch, "loss + gradient", "xent_rs"] = partial(cross_entropy_with_grad, logits, labels, out=out)
        calls[batch, "loss + gradient", "NumPy"] = partial(numpy_loss_and_gradient, logits, labels, out=out)
    with _terminal.progress(_REPEATS * len(calls), "time", unit="run") as bar:
        samples = interleaved(calls, _REPEATS, bar.update)
    medians = {name: statistics.median(seconds) for name, seconds in samples.items()}
    return [
        {
            "batch": batch,
            "rows": logits.shape[0],
            "classes": logits.shape[1],
            "job": job,
            "xent_rs_seconds": medians[batch, job, "xent_rs"],
            "numpy_seconds": medians[batch, job, "NumPy"],
        }
        for batch, (logits, _) in batches.items()
        for job in ("loss", "loss + gradient")
    ]


def _timing_table(timings: list[dict[str, Any]]) -> list[list[str]]:
    rows = [["", "xent_rs", "NumPy", "NumPy / xent_rs"]]
    for timing in timings:
        ours, theirs = timing["xent_rs_seconds"], timing["numpy_seconds"]
        name = f"{timing['job']}, {timing['batch']} ({timing['rows']} x {timing['classes']})"
        rows.append(
            [name, _terminal.milliseconds(ours), _terminal.milliseconds(theirs), f"{theirs / ours:.1f}"]
        )
    return rows


def _sparkline(values: list[float]) -> str:
    """Draw positive values as a row of bars, on a logarithmic scale."""
    bars = "▁▂▃▄▅▆▇█" if _terminal.speaks_unicode() else "_.-=+*#@"
    logarithms = np.log(values)
    heights = (logarithms - logarithms.min()) / max(np.ptp(logarithms), 1e-12)
    return "".join(bars[round(height * (len(bars) - 1))] for height in heights)


def _show(images: Array, logits: Array, labels: Array) -> None:
    """Draw four digits: the three with the largest loss, and the first that is recognised."""
    probabilities = softmax(logits)
    predictions = probabilities.argmax(axis=1)
    losses = cross_entropy(logits, labels, reduction="none")
    right = int(np.argmax(predictions == labels))
    chosen = [right, *(int(row) for row in np.argsort(-losses) if row != right)][:4]
    shades = " ░▒▓█" if _terminal.speaks_unicode() else " .+#@"
    for line in range(8):
        pictures = []
        for row in chosen:
            values = images[row].reshape(8, 8)[line]
            pictures.append("".join(2 * shades[round(float(value) * (len(shades) - 1))] for value in values))
        print(f"  {'  '.join(pictures)}".rstrip())
    captions = []
    for row in chosen:
        guess, label = predictions[row], labels[row]
        said = f"{guess} ({probabilities[row, guess]:.0%})"
        captions.append(said if guess == label else f"{said}, is {label}")
    print(f"  {'  '.join(caption.ljust(16) for caption in captions)}".rstrip())
