"""The losses as Keras's classes, which differ from Keras's own in who computes the losses of the rows."""

from __future__ import annotations

import importlib
from typing import Any, cast

import keras
import numpy as np

# Keras has no public name for the mask of a tensor.
from keras.src.backend import set_keras_mask

from ._backend import Backend, Tensor

_BACKENDS = ("jax", "numpy", "tensorflow", "torch")
if keras.config.backend() not in _BACKENDS:
    raise ImportError(
        f"Keras has the backend {keras.config.backend()!r}, which xent_rs.keras does not know; expected one "
        f"of {', '.join(_BACKENDS)} in the environment variable KERAS_BACKEND"
    )
_backend = cast(Backend, importlib.import_module(f"{__package__}._{keras.config.backend()}"))

_registered = keras.saving.register_keras_serializable(package="xent_rs")


@_registered
class SparseCategoricalCrossentropy(keras.losses.SparseCategoricalCrossentropy):  # type: ignore[misc, unused-ignore]
    """Softmax cross-entropy of logits with classes: `keras.losses.SparseCategoricalCrossentropy`.

    Of a row with the class y it is ``log Σ exp x - x[y]``.

    Parameters
    ----------
    from_logits : bool
        True, which has to be said: outputs of a softmax are refused.
    ignore_class : int, optional
        Rows with this label have loss 0 and do not count, whatever their logits hold.
    reduction : {'sum_over_batch_size', 'mean', 'sum', 'mean_with_sample_weight', 'none', None}, optional
        Keras's.
    axis : int, optional
        Where the classes are; every axis of every backend.
    name : str, optional
        A name for the loss.
    dtype : str or keras.DTypePolicy, optional
        In which the loss is computed; logits of another dtype are converted. Classes are not, so that they
        stay what they are in 'bfloat16' too.

    Raises
    ------
    ValueError
        For ``from_logits=False``; when called, for shapes that do not match.

    See Also
    --------
    CategoricalCrossentropy : With a probability for each class.
    xent_rs.cross_entropy : For arrays, with options.

    Examples
    --------
    >>> import numpy as np, xent_rs.keras
    >>> loss = xent_rs.keras.SparseCategoricalCrossentropy(from_logits=True)
    >>> logits = np.array([[2.0, 1.0, 0.1], [0.0, 0.0, 0.0]])
    >>> print(f"{float(loss(np.array([0, 2]), logits)):.4f}")
    0.7578
    """

    def __init__(
        self,
        from_logits: bool = False,
        ignore_class: int | None = None,
        reduction: str | None = "sum_over_batch_size",
        axis: int = -1,
        name: str | None = "sparse_categorical_crossentropy",
        dtype: Any = None,
    ) -> None:
        _require_logits(type(self).__name__, from_logits)
        super().__init__(from_logits, ignore_class, reduction, axis, name, dtype)
        self.axis = axis
        # Keras's class brings labels and logits to the same rank, and calls this.
        self.fn = _sparse_categorical_crossentropy

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Tensor:
        """Return the loss, reduced."""
        return _WithLabels(self, y_true)(0, y_pred, sample_weight)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that make this loss."""
        return {**super().get_config(), "axis": self.axis, "dtype": self.dtype}


@_registered
class CategoricalCrossentropy(keras.losses.CategoricalCrossentropy):  # type: ignore[misc, unused-ignore]
    """Softmax cross-entropy of logits with probabilities: `keras.losses.CategoricalCrossentropy`.

    Of a row with the probabilities t it is ``Σ t·(log Σ exp x - x)``.

    Parameters
    ----------
    from_logits : bool
        True, which has to be said: outputs of a softmax are refused.
    label_smoothing : float, optional
        The share of the labels that is spread evenly over all classes.
    axis : int, optional
        Where the classes are.
    reduction, name, dtype
        Those of `SparseCategoricalCrossentropy`.

    Raises
    ------
    ValueError
        For ``from_logits=False``; when called, for shapes that do not match.

    See Also
    --------
    SparseCategoricalCrossentropy : With one class a row.
    xent_rs.cross_entropy : For arrays, with options.

    Examples
    --------
    >>> import numpy as np, xent_rs.keras
    >>> loss = xent_rs.keras.CategoricalCrossentropy(from_logits=True)
    >>> logits, labels = np.array([[2.0, 1.0, 0.1]]), np.array([[0.9, 0.1, 0.0]])
    >>> print(f"{float(loss(labels, logits)):.4f}")
    0.5170
    """

    def __init__(
        self,
        from_logits: bool = False,
        label_smoothing: float = 0.0,
        axis: int = -1,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = "categorical_crossentropy",
        dtype: Any = None,
    ) -> None:
        _require_logits(type(self).__name__, from_logits)
        _require_share(label_smoothing)
        super().__init__(from_logits, label_smoothing, axis, reduction, name, dtype)
        self.fn = _categorical_crossentropy

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that make this loss."""
        return {**super().get_config(), "dtype": self.dtype}


@_registered
class BinaryCrossentropy(keras.losses.BinaryCrossentropy):  # type: ignore[misc, unused-ignore]
    """Binary cross-entropy of logits: `keras.losses.BinaryCrossentropy`.

    Of an element with logit x and label t it is ``(1 - t)·x + log(1 + exp(-x))``, and of a row the mean of
    its elements.

    Parameters
    ----------
    from_logits : bool
        True, which has to be said: outputs of a sigmoid are refused.
    label_smoothing : float, optional
        The share of the label that is spread evenly over yes and no.
    axis : int, optional
        Along which the mean is taken.
    reduction, name, dtype
        Those of `SparseCategoricalCrossentropy`.

    Raises
    ------
    ValueError
        For ``from_logits=False``; when called, for shapes that do not match.

    See Also
    --------
    xent_rs.binary_cross_entropy : For arrays, with options.

    Examples
    --------
    >>> import numpy as np, xent_rs.keras
    >>> loss = xent_rs.keras.BinaryCrossentropy(from_logits=True)
    >>> print(f"{float(loss(np.array([[1, 0, 1]]), np.array([[2.0, -1.0, 0.0]]))):.4f}")
    0.3778
    """

    def __init__(
        self,
        from_logits: bool = False,
        label_smoothing: float = 0.0,
        axis: int = -1,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = "binary_crossentropy",
        dtype: Any = None,
    ) -> None:
        _require_logits(type(self).__name__, from_logits)
        _require_share(label_smoothing)
        super().__init__(from_logits, label_smoothing, axis, reduction, name, dtype)
        self.fn = _binary_crossentropy

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that make this loss."""
        return {**super().get_config(), "dtype": self.dtype}


@_registered
class CategoricalFocalCrossentropy(keras.losses.CategoricalFocalCrossentropy):  # type: ignore[misc, unused-ignore]
    """Focal loss of logits with one-hot labels: `keras.losses.CategoricalFocalCrossentropy`.

    Of a row with the class y, whose probability is p, it is ``alpha[y]·(1 - p)**gamma·(-log p)``. The kernels
    compute it if every row of a batch is one-hot and nothing is smoothed; else Keras does.

    Parameters
    ----------
    alpha : float or list of float, optional
        The weight of all classes, or of each.
    gamma : float, optional
        How much less a row counts the more probable its class is, 0 to 1e100.
    from_logits : bool
        True, which has to be said: outputs of a softmax are refused.
    label_smoothing : float, optional
        The share of the labels that is spread evenly over all classes.
    axis : int, optional
        Where the classes are.
    reduction, name, dtype
        Those of `SparseCategoricalCrossentropy`.

    Raises
    ------
    ValueError
        For ``from_logits=False`` and numbers out of their range; when called, for shapes that do not match.

    See Also
    --------
    xent_rs.cross_entropy : For arrays, with `focal_gamma`.

    References
    ----------
    T.-Y. Lin et al., "Focal loss for dense object detection", ICCV 2017.

    Examples
    --------
    >>> import numpy as np, xent_rs.keras
    >>> loss = xent_rs.keras.CategoricalFocalCrossentropy(from_logits=True)
    >>> print(f"{float(loss(np.array([[1, 0, 0]]), np.array([[2.0, 1.0, 0.1]]))):.4f}")
    0.0121
    """

    def __init__(
        self,
        alpha: float | list[float] = 0.25,
        gamma: float = 2.0,
        from_logits: bool = False,
        label_smoothing: float = 0.0,
        axis: int = -1,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = "categorical_focal_crossentropy",
        dtype: Any = None,
    ) -> None:
        _require_logits(type(self).__name__, from_logits)
        _require_share(label_smoothing)
        _require_gamma(gamma)
        super().__init__(alpha, gamma, from_logits, label_smoothing, axis, reduction, name, dtype)
        self.fn = _categorical_focal_crossentropy

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that make this loss."""
        return {**super().get_config(), "dtype": self.dtype}


@_registered
class BinaryFocalCrossentropy(keras.losses.BinaryFocalCrossentropy):  # type: ignore[misc, unused-ignore]
    """Focal loss of logits with yes or no: `keras.losses.BinaryFocalCrossentropy`.

    Of an element with logit x and label t it is the binary cross-entropy times ``(1 - p)**gamma``, where p is
    the probability of the label, ``t·sigmoid(x) + (1 - t)·sigmoid(-x)``; and of a row the mean of its
    elements.

    Parameters
    ----------
    apply_class_balancing : bool, optional
        Whether elements are multiplied by ``alpha·t + (1 - alpha)·(1 - t)``.
    alpha : float, optional
        The weight of yes; that of no is ``1 - alpha``.
    gamma : float, optional
        How much less an element counts the more probable its label is, 0 to 1e100.
    from_logits : bool
        True, which has to be said: outputs of a sigmoid are refused.
    label_smoothing : float, optional
        The share of the label that is spread evenly over yes and no.
    axis : int, optional
        Along which the mean is taken.
    reduction, name, dtype
        Those of `SparseCategoricalCrossentropy`.

    Raises
    ------
    ValueError
        For ``from_logits=False`` and numbers out of their range; when called, for shapes that do not match.

    See Also
    --------
    xent_rs.binary_cross_entropy : For arrays, with `focal_gamma`.

    References
    ----------
    T.-Y. Lin et al., "Focal loss for dense object detection", ICCV 2017.

    Examples
    --------
    >>> import numpy as np, xent_rs.keras
    >>> loss = xent_rs.keras.BinaryFocalCrossentropy(from_logits=True)
    >>> print(f"{float(loss(np.array([[1, 0, 1]]), np.array([[2.0, -1.0, 0.0]]))):.4f}")
    0.0659
    """

    def __init__(
        self,
        apply_class_balancing: bool = False,
        alpha: float = 0.25,
        gamma: float = 2.0,
        from_logits: bool = False,
        label_smoothing: float = 0.0,
        axis: int = -1,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = "binary_focal_crossentropy",
        dtype: Any = None,
    ) -> None:
        _require_logits(type(self).__name__, from_logits)
        _require_share(label_smoothing)
        _require_gamma(gamma)
        super().__init__(
            apply_class_balancing, alpha, gamma, from_logits, label_smoothing, axis, reduction, name, dtype
        )
        self.fn = _binary_focal_crossentropy

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that make this loss."""
        return {**super().get_config(), "dtype": self.dtype}


class _WithLabels(keras.losses.Loss):  # type: ignore[misc, unused-ignore]
    """A loss with its labels, which Keras would convert to the loss's dtype: in bfloat16 257 becomes 256."""

    def __init__(self, loss: SparseCategoricalCrossentropy, y_true: Any) -> None:
        super().__init__(name=loss.name, reduction=loss.reduction, dtype=loss.dtype)
        self._of_labels, self._y_true = loss.call, keras.ops.convert_to_tensor(y_true)

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        del y_true
        return self._of_labels(self._y_true, y_pred)


def _sparse_categorical_crossentropy(
    y_true: Any, y_pred: Any, from_logits: bool, ignore_class: int | None, axis: int
) -> Tensor:
    """Return the loss of each row, and mask those that are ignored."""
    labels, logits = y_true, y_pred
    if not _covers(labels, logits):
        return keras.losses.sparse_categorical_crossentropy(labels, logits, from_logits, ignore_class, axis)
    axis = _axis(axis, logits)
    if len(labels.shape) == len(logits.shape) and labels.shape[axis] == 1:
        labels = keras.ops.squeeze(labels, axis)
    rows = tuple(length for place, length in enumerate(logits.shape) if place != axis)
    _require_shape(labels, rows, logits, " without the classes")
    losses = _backend.of_classes(logits, labels, axis, ignore_class)
    if ignore_class is not None:
        set_keras_mask(losses, mask=keras.ops.not_equal(labels, ignore_class))
    return losses


def _categorical_crossentropy(
    y_true: Any, y_pred: Any, from_logits: bool, label_smoothing: float, axis: int
) -> Tensor:
    """Return the loss of each row."""
    logits = y_pred
    labels = keras.ops.cast(y_true, logits.dtype)
    if not _covers(labels, logits):
        return keras.losses.categorical_crossentropy(labels, logits, from_logits, label_smoothing, axis)
    axis = _axis(axis, logits)
    _require_shape(labels, tuple(logits.shape), logits)
    return _backend.of_probabilities(logits, labels, axis, float(label_smoothing))


def _binary_crossentropy(
    y_true: Any, y_pred: Any, from_logits: bool, label_smoothing: float, axis: int
) -> Tensor:
    """Return the mean of the losses along `axis`."""
    logits = y_pred
    labels = keras.ops.cast(y_true, logits.dtype)
    if not _covers(labels, logits):
        return keras.losses.binary_crossentropy(labels, logits, from_logits, label_smoothing, axis)
    _require_shape(labels, tuple(logits.shape), logits)
    return keras.ops.mean(_backend.of_yes_or_no(logits, labels, float(label_smoothing)), axis)


def _categorical_focal_crossentropy(
    y_true: Any,
    y_pred: Any,
    alpha: float | list[float],
    gamma: float,
    from_logits: bool,
    label_smoothing: float,
    axis: int,
) -> Tensor:
    """Return the loss of each row."""
    logits = y_pred
    # What the kernels get of the labels, the classes, has no derivative; so they have none in either case.
    labels = keras.ops.stop_gradient(keras.ops.cast(y_true, logits.dtype))

    def by_keras() -> Tensor:
        return keras.losses.categorical_focal_crossentropy(
            labels, logits, alpha, gamma, from_logits, label_smoothing, axis
        )

    has_one_alpha = np.ndim(alpha) == 0
    # Those of classes Keras has along the last axis, wherever these are.
    reaches = has_one_alpha or axis in (-1, len(logits.shape) - 1)
    if label_smoothing or not (reaches and _covers(labels, logits)):
        return by_keras()
    axis = _axis(axis, logits)
    _require_shape(labels, tuple(logits.shape), logits)
    # What is rounded is rounded once.
    is_double = keras.backend.standardize_dtype(logits.dtype) == "float64"
    wide = logits if is_double else keras.ops.cast(logits, "float32")
    weights = keras.ops.convert_to_tensor(alpha, wide.dtype)
    # In a graph of TensorFlow the number of classes may be unknown yet.
    if not has_one_alpha and (len(weights.shape) != 1 or logits.shape[axis] not in (None, weights.shape[0])):
        raise ValueError(f"alpha has shape {tuple(weights.shape)}; expected a number, or one for each class")
    classes = keras.ops.argmax(labels, axis)

    def by_kernels() -> Tensor:
        losses = _backend.of_classes(wide, classes, axis, None, float(gamma))
        of_rows = weights if has_one_alpha else keras.ops.take(weights, classes)
        return keras.ops.cast(of_rows * losses, logits.dtype)

    targets = keras.ops.sum(keras.ops.cast(keras.ops.not_equal(labels, 0), "int32"), axis)
    is_one_hot = keras.ops.equal(targets, 1) & keras.ops.equal(keras.ops.max(labels, axis), 1)
    return _backend.either(keras.ops.all(is_one_hot), by_kernels, by_keras)


def _binary_focal_crossentropy(
    y_true: Any,
    y_pred: Any,
    apply_class_balancing: bool,
    alpha: float,
    gamma: float,
    from_logits: bool,
    label_smoothing: float,
    axis: int,
) -> Tensor:
    """Return the mean of the losses along `axis`."""
    logits = y_pred
    labels = keras.ops.cast(y_true, logits.dtype)
    if not _covers(labels, logits):
        return keras.losses.binary_focal_crossentropy(
            labels, logits, apply_class_balancing, alpha, gamma, from_logits, label_smoothing, axis
        )
    _require_shape(labels, tuple(logits.shape), logits)
    losses = _backend.of_yes_or_no(logits, labels, float(label_smoothing), float(gamma))
    if apply_class_balancing:
        yes = labels * (1 - label_smoothing) + label_smoothing / 2
        losses = (yes * alpha + (1 - yes) * (1 - alpha)) * losses
    return keras.ops.mean(losses, axis)


def _covers(labels: Tensor, logits: Tensor) -> bool:
    """Whether the backend's module can compute the losses: of tensors that hold numbers."""
    return not (keras.utils.is_keras_tensor(labels) or keras.utils.is_keras_tensor(logits)) and (
        _backend.covers(logits)
    )


def _require_logits(name: str, from_logits: bool) -> None:
    if from_logits is not True:
        raise ValueError(
            f"from_logits is {from_logits}; expected True: xent_rs.keras.{name} takes logits, the outputs of "
            f"a model whose last layer has no activation (of probabilities there is keras.losses.{name})"
        )


def _require_share(label_smoothing: float) -> None:
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"label_smoothing is {label_smoothing}; expected a number from 0 to 1")


def _require_gamma(gamma: float) -> None:
    if not 0 <= gamma <= 1e100:
        raise ValueError(f"gamma is {gamma}; expected a number from 0 to 1e100")


def _axis(axis: int, logits: Tensor) -> int:
    """Return the axis of the classes, counted from the first."""
    ndim = len(logits.shape)
    if isinstance(axis, bool) or not -ndim <= axis < ndim:
        limits = f"expected {-ndim} to {ndim - 1}" if ndim else "expected none"
        raise ValueError(f"axis is {axis}; {limits} for y_pred of {ndim} dimensions")
    return axis % ndim


def _require_shape(labels: Tensor, shape: tuple[int | None, ...], logits: Tensor, but: str = "") -> None:
    """Raise ValueError for labels of another shape; a length that is not known yet is None."""
    found = tuple(labels.shape)
    if len(found) != len(shape) or any(
        None not in pair and pair[0] != pair[1] for pair in zip(found, shape, strict=True)
    ):
        raise ValueError(
            f"y_true has shape {found}; expected {shape}, that of y_pred, {tuple(logits.shape)}{but}: they "
            "must have the same shape"
        )
