"""The losses on Keras's TensorFlow backend: the functions of arrays, called back from the graph.

TensorFlow copies what it hands to a function of NumPy, and what it gets. An operation without these copies
would have to be built against the C++ headers of every version of TensorFlow.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from .._binary_cross_entropy import binary_cross_entropy_with_grad
from .._cross_entropy import cross_entropy_with_grad
from . import _numpy
from ._backend import NO_CLASS
from ._focal import focal

#: A tensor of TensorFlow, which has no types.
Tensor = Any


def covers(logits: Tensor) -> bool:
    """Whether the functions of arrays can be called: on the CPU, and not from a program that XLA compiles."""
    del logits
    if any(device.device_type != "CPU" for device in tf.config.list_logical_devices()):
        return False
    graph = tf.compat.v1.get_default_graph()
    while graph is not None:
        # `tf.function(jit_compile=True)` traces in this context, as those of Keras and of TPUs do.
        context = graph._get_control_flow_context()
        if context is not None and context.IsXLAContext():
            return False
        graph = getattr(graph, "outer_graph", None)
    return True


def either(which: Tensor, first: Callable[[], Tensor], second: Callable[[], Tensor]) -> Tensor:
    """Return what one of two functions does."""
    return tf.cond(which, first, second)


def of_classes(logits: Tensor, labels: Tensor, axis: int, ignored: int | None, gamma: float = 0.0) -> Tensor:
    """Return the loss of each row, of classes."""
    if gamma != 0:
        losses = of_classes(logits, labels, axis, ignored)
        return focal(losses, -tf.math.expm1(-losses), gamma)
    ignore_index = NO_CLASS if ignored is None else ignored

    def loss(logits: NDArray[Any], labels: NDArray[Any]) -> NDArray[Any]:
        return _numpy.of_classes(logits, labels, axis, ignored)

    def gradient(logits: NDArray[Any], labels: NDArray[Any], upstream: NDArray[Any]) -> NDArray[Any]:
        _, gradient = cross_entropy_with_grad(
            logits, labels, axis=axis, ignore_index=ignore_index, reduction="none", grad_output=upstream
        )
        return gradient

    def formula(logits: Tensor, labels: Tensor, upstream: Tensor) -> Tensor:
        one_hot = tf.one_hot(labels, tf.shape(logits)[axis], axis=axis, dtype=logits.dtype)
        if ignored is not None:
            one_hot = tf.where(tf.expand_dims(labels == ignored, axis), tf.zeros_like(one_hot), one_hot)
        return _softmax_gradient(logits, one_hot, upstream, axis)

    return _called(loss, gradient, formula, None, logits, tf.cast(labels, tf.int64), axis)


def of_probabilities(logits: Tensor, labels: Tensor, axis: int, label_smoothing: float) -> Tensor:
    """Return the loss of each row, of probabilities."""

    def loss(logits: NDArray[Any], labels: NDArray[Any]) -> NDArray[Any]:
        return _numpy.of_probabilities(logits, labels, axis, label_smoothing)

    def gradient(logits: NDArray[Any], labels: NDArray[Any], upstream: NDArray[Any]) -> NDArray[Any]:
        _, gradient = cross_entropy_with_grad(
            logits, labels, axis=axis, label_smoothing=label_smoothing, reduction="none", grad_output=upstream
        )
        return gradient

    def formula(logits: Tensor, labels: Tensor, upstream: Tensor) -> Tensor:
        classes = tf.cast(tf.shape(logits)[axis], logits.dtype)
        labels = labels * (1 - label_smoothing) + label_smoothing / classes
        return _softmax_gradient(logits, labels, upstream, axis)

    def by_labels(logits: Tensor, upstream: Tensor) -> Tensor:
        return (label_smoothing - 1) * tf.expand_dims(upstream, axis) * tf.nn.log_softmax(logits, axis)

    return _called(loss, gradient, formula, by_labels, logits, labels, axis)


def of_yes_or_no(logits: Tensor, labels: Tensor, label_smoothing: float, gamma: float = 0.0) -> Tensor:
    """Return the loss of each element."""
    if gamma != 0:
        x = logits if logits.dtype == tf.float64 else tf.cast(logits, tf.float32)
        t = tf.cast(labels, x.dtype)
        smoothed = t * (1 - label_smoothing) + label_smoothing / 2
        missing = smoothed * tf.sigmoid(-x) + (1 - smoothed) * tf.sigmoid(x)
        return tf.cast(focal(of_yes_or_no(x, t, label_smoothing), missing, gamma), logits.dtype)

    def loss(logits: NDArray[Any], labels: NDArray[Any]) -> NDArray[Any]:
        return _numpy.of_yes_or_no(logits, labels, label_smoothing)

    def gradient(logits: NDArray[Any], labels: NDArray[Any], upstream: NDArray[Any]) -> NDArray[Any]:
        _, gradient = binary_cross_entropy_with_grad(
            logits, labels, label_smoothing=label_smoothing, reduction="none", grad_output=upstream
        )
        return gradient

    def formula(logits: Tensor, labels: Tensor, upstream: Tensor) -> Tensor:
        labels = labels * (1 - label_smoothing) + label_smoothing / 2
        return upstream * (tf.sigmoid(logits) - labels)

    def by_labels(logits: Tensor, upstream: Tensor) -> Tensor:
        return (label_smoothing - 1) * upstream * logits

    return _called(loss, gradient, formula, by_labels, logits, labels, None)


def _softmax_gradient(logits: Tensor, labels: Tensor, upstream: Tensor, axis: int) -> Tensor:
    """Return upstream·(softmax·Σ labels - labels)."""
    total = tf.reduce_sum(labels, axis, keepdims=True)
    return tf.expand_dims(upstream, axis) * (tf.nn.softmax(logits, axis) * total - labels)


def _called(
    loss: Callable[..., NDArray[Any]],
    gradient: Callable[..., NDArray[Any]],
    formula: Callable[..., Tensor],
    by_labels: Callable[..., Tensor] | None,
    logits: Tensor,
    labels: Tensor,
    axis: int | None,
) -> Tensor:
    """Return the losses that `loss` computes, with derivatives of every order.

    `gradient` computes the first one by the logits, and `formula` is the same in operations of TensorFlow,
    for those beyond; `by_labels` is the derivative by the labels, where they have one.

    In a branch of `tf.cond` derivatives may look at tensors of the branch alone, of each order at its own: so
    all are arguments, and made anew.
    """

    @tf.custom_gradient  # type: ignore[untyped-decorator, unused-ignore]
    def gradients(
        logits: Tensor, labels: Tensor, upstream: Tensor
    ) -> tuple[Tensor, Callable[[Tensor], list[Tensor | None]]]:
        logits, labels, upstream = map(tf.identity, (logits, labels, upstream))

        def backward(cotangent: Tensor) -> list[Tensor | None]:
            with tf.GradientTape() as tape:
                tape.watch([logits, upstream])
                again = formula(logits, labels, upstream)
            by_logits, by_upstream = tape.gradient(again, [logits, upstream], cotangent)
            return [by_logits, None, by_upstream]

        computed = tf.numpy_function(
            _of_arrays(gradient), [logits, labels, upstream], logits.dtype, stateful=False
        )
        return tf.ensure_shape(computed, logits.shape), backward

    @tf.custom_gradient  # type: ignore[untyped-decorator, unused-ignore]
    def losses(logits: Tensor, labels: Tensor) -> tuple[Tensor, Callable[[Tensor], list[Tensor | None]]]:
        logits, labels = tf.identity(logits), tf.identity(labels)

        def backward(upstream: Tensor) -> list[Tensor | None]:
            return [
                gradients(logits, labels, upstream),
                None if by_labels is None else by_labels(logits, upstream),
            ]

        computed = tf.numpy_function(_of_arrays(loss), [logits, labels], logits.dtype, stateful=False)
        shape = logits.shape.as_list() if logits.shape.rank is not None else None
        if shape is not None and axis is not None:
            del shape[axis]
        return tf.ensure_shape(computed, shape), backward

    return losses(logits, labels)


def _of_arrays(function: Callable[..., NDArray[Any]]) -> Callable[..., NDArray[Any]]:
    """Return a function for `tf.numpy_function`, which hands over an array of one number as the number."""

    def of_arrays(*arrays: Any) -> NDArray[Any]:
        return np.asarray(function(*map(np.asarray, arrays)))

    return of_arrays
