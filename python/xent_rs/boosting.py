"""Objectives for XGBoost and LightGBM: cross-entropy with options that their own objectives lack.

An objective says which loss the trees are grown to lower. Those of this module work in both interfaces of
both libraries::

    xgboost.train({"objective": "multi:softprob", "num_class": 10}, data, obj=xgboost_objective())
    xgboost.XGBClassifier(objective=xgboost_objective())
    lightgbm.train({"objective": lightgbm_objective(), "num_class": 10}, data)
    lightgbm.LGBMClassifier(objective=lightgbm_objective())

Without options they grow the trees of the libraries' own objectives, where both start from the same values:
`prior`. This module imports neither library.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol, SupportsIndex, overload, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import _xent_rs
from ._arguments import class_weight, integer
from ._binary_cross_entropy import binary_cross_entropy, binary_cross_entropy_with_grad_hess
from ._cross_entropy import cross_entropy, cross_entropy_with_grad_hess
from ._environment import in_default_environment
from ._options import Floats, ObjectiveOptions, Options

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["LightGBMObjective", "XGBoostObjective", "lightgbm_objective", "prior", "xgboost_objective"]

_XGBOOST = Options("xgboost_objective", ObjectiveOptions)
_LIGHTGBM = Options("lightgbm_objective", ObjectiveOptions)

# Options of the losses that no objective takes, and why.
_NOT_TAKEN = {
    **dict.fromkeys(("z_loss", "softcap"), "there is no Hessian with it"),
    "sample_weight": "weights of rows come with the data",
    "axis": "the classes are along the last axis",
    **dict.fromkeys(("reduction", "denominator"), "boosting wants the sum over the rows"),
    **dict.fromkeys(("out", "hess_out"), "the results are new arrays"),
}
# Options that only predictions of one kind have, and what there is for the other.
_FOR_CLASSES = {"weight": "pos_weight, or weights of rows", "temperature": "no temperature"}
_FOR_YES_OR_NO = {"pos_weight": "weight, a number a class"}

# Takes the place of the share 0, whose logarithm is not finite: as in LightGBM.
_SMALLEST_SHARE = 1e-15


@runtime_checkable
class _Data(Protocol):
    """Labels and weights of rows: a ``DMatrix`` of XGBoost, a ``Dataset`` of LightGBM."""

    def get_label(self) -> Any: ...
    def get_weight(self) -> Any: ...


class _Objective(ABC):
    """The loss with its options; what the two libraries do differently is in the classes below.

    The libraries call in two ways: ``(predictions, data)`` in their own interface, and ``(y_true, y_pred,
    sample_weight)`` in that of scikit-learn. For that XGBoost looks for a parameter of the name
    `sample_weight`, and LightGBM counts the parameters.
    """

    _function: str
    _keywords: Options

    def __init__(self, options: Mapping[str, Any]) -> None:
        for name in options:
            if name in _NOT_TAKEN:
                raise TypeError(f"{self._function}() takes no {name}: {_NOT_TAKEN[name]}")
        self._keywords.check(options)
        # None is the default of what may be None.
        self._options = {name: value for name, value in options.items() if value is not None}
        if "weight" in self._options:
            self._options["weight"] = class_weight(self._options["weight"])
        if "pos_weight" in self._options:
            pos_weight = _numbers(self._options["pos_weight"], "pos_weight")
            if pos_weight.ndim:
                raise ValueError(f"pos_weight has shape {pos_weight.shape}; expected one number")
            self._options["pos_weight"] = float(pos_weight)
        self._ignore_index = options.get("ignore_index", self._keywords.defaults["ignore_index"])

    @in_default_environment
    def __call__(
        self, first: ArrayLike, second: ArrayLike | _Data, /, sample_weight: ArrayLike | None = None
    ) -> tuple[Floats, Floats]:
        """Return the gradient and the diagonal of the Hessian, each in the shape of the predictions."""
        logits, labels, weight = self._read(first, second, sample_weight)
        if logits.ndim == 1:
            _, grad, hess = binary_cross_entropy_with_grad_hess(
                logits, labels, weight=weight, reduction="sum", **self._options
            )
        else:
            _, grad, hess = cross_entropy_with_grad_hess(
                logits, labels, sample_weight=weight, reduction="sum", **self._options
            )
        self._scale(hess)
        return grad, hess

    def __repr__(self) -> str:
        options = ", ".join(f"{name}={value!r}" for name, value in self._shown().items())
        return f"{self._function}({options})"

    def _shown(self) -> dict[str, Any]:
        return self._options

    @abstractmethod
    def _scale(self, hess: Floats) -> None:
        """Turn second derivatives, in place, into what the library's own objective takes for them."""

    @abstractmethod
    def _check_predictions(self, shape: tuple[int, ...]) -> None:
        """Refuse predictions that are not of a shape that the objective is for."""

    @in_default_environment
    def _mean(self, first: ArrayLike, second: ArrayLike | _Data, sample_weight: ArrayLike | None) -> float:
        """Return the mean loss, which divides by the weights of the rows that count."""
        logits, labels, weight = self._read(first, second, sample_weight)
        mean: float
        if logits.ndim > 1:
            mean = cross_entropy(logits, labels, sample_weight=weight, **self._options)
            return mean
        # The mean of the binary loss divides by a number of elements, whatever their weights.
        weights = np.ones(labels.shape) if weight is None else weight
        total = weights.sum(where=labels != self._ignore_index, dtype=np.float64)
        mean = binary_cross_entropy(logits, labels, weight=weight, denominator=total, **self._options)
        return mean

    def _read(
        self, first: ArrayLike, second: ArrayLike | _Data, weight: ArrayLike | None
    ) -> tuple[Floats, NDArray[Any], NDArray[Any] | None]:
        """Return predictions, labels and weights, whichever way they come."""
        if isinstance(second, _Data):
            predictions, given, weight = first, second.get_label(), second.get_weight()
        else:
            predictions, given = second, first
        logits = _xent_rs.as_array(predictions, "predictions")
        self._check_predictions(logits.shape)
        binary = logits.ndim == 1
        self._check_options(binary)

        labels = _numbers(given, "labels")
        if labels.shape not in (logits.shape, logits.shape[:1]):
            raise ValueError(f"labels have shape {labels.shape}; expected {logits.shape[:1]}, one a row")
        if binary:
            _check_answers(labels, self._ignore_index)
        elif labels.ndim == 1:
            labels = _classes(labels)
        else:
            _check_probabilities(labels)

        # XGBoost has an empty array where there are no weights, LightGBM None.
        if weight is None or np.size(weight) == 0:
            return logits, labels, None
        weight = _xent_rs.as_array(weight, "sample_weight")
        if weight.shape != logits.shape[:1]:
            raise ValueError(
                f"sample_weight has shape {weight.shape}; expected {logits.shape[:1]}, one a row"
            )
        return logits, labels, weight

    def _check_options(self, binary: bool) -> None:
        """Refuse options that predictions of the other kind have."""
        for name, instead in (_FOR_CLASSES if binary else _FOR_YES_OR_NO).items():
            if name in self._options:
                kind = "one prediction a row" if binary else "predictions for each class"
                raise ValueError(f"{name} is given for {kind}; expected {instead}")


class XGBoostObjective(_Objective):
    """What `xgboost_objective` returns: the objective, and with `loss` its metric."""

    _function = "xgboost_objective"
    _keywords = _XGBOOST

    @overload
    def loss(self, first: ArrayLike, second: _Data, /) -> tuple[str, float]: ...
    @overload
    def loss(
        self, first: ArrayLike, second: ArrayLike, /, sample_weight: ArrayLike | None = None
    ) -> float: ...
    def loss(
        self, first: ArrayLike, second: ArrayLike | _Data, /, sample_weight: ArrayLike | None = None
    ) -> tuple[str, float] | float:
        """Return the mean loss, as a metric of XGBoost: with its name from data, without it from arrays."""
        mean = self._mean(first, second, sample_weight)
        return ("loss", mean) if isinstance(second, _Data) else mean

    def _scale(self, hess: Floats) -> None:
        # multi:softprob doubles them, binary:logistic does not; neither lets them be 0.
        if hess.ndim > 1:
            hess *= 2
        np.maximum(hess, 1e-16, out=hess)

    def _check_predictions(self, shape: tuple[int, ...]) -> None:
        if len(shape) != 1 and not _has_classes(shape):
            raise ValueError(f"predictions have shape {shape}; expected (n, C), or (n,) for yes or no")


class LightGBMObjective(_Objective):
    """What `lightgbm_objective` returns: the objective, and with `loss` its metric."""

    _function = "lightgbm_objective"
    _keywords = _LIGHTGBM

    def __init__(self, options: Mapping[str, Any], binary: bool) -> None:
        super().__init__(options)
        self._check_options(binary)
        self._binary = binary

    def loss(
        self, first: ArrayLike, second: ArrayLike | _Data, /, sample_weight: ArrayLike | None = None
    ) -> tuple[str, float, bool]:
        """Return the mean loss, as a metric of LightGBM: its name, the number, that higher is not better."""
        return "loss", self._mean(first, second, sample_weight), False

    def _shown(self) -> dict[str, Any]:
        return {"binary": True, **self._options} if self._binary else self._options

    def _scale(self, hess: Floats) -> None:
        # multiclass has this factor, binary none.
        if hess.ndim > 1:
            hess *= hess.shape[1] / (hess.shape[1] - 1)

    def _check_predictions(self, shape: tuple[int, ...]) -> None:
        if self._binary and len(shape) != 1:
            raise ValueError(f"predictions have shape {shape}; expected (n,) with binary=True")
        if not self._binary and not _has_classes(shape):
            expected = "(n, C) with the parameter num_class, or binary=True"
            raise ValueError(f"predictions have shape {shape}; expected {expected}")


@_XGBOOST.describe
def xgboost_objective(**options: Unpack[ObjectiveOptions]) -> XGBoostObjective:
    """Softmax or sigmoid cross-entropy as an objective of XGBoost, with options.

    Predictions of shape (n, C) have the loss of `xent_rs.cross_entropy`, those of shape (n,), one a row, that
    of `xent_rs.binary_cross_entropy`. Of a row with weight s, the predictions z and p = softmax(z), or
    p = sigmoid(z), it gives XGBoost
    ::

        gradient s·(p - t),    Hessian max(2·s·p·(1 - p), 1e-16)    (n,): without the factor 2

    without options; t is 1 for the label and 0 elsewhere. With options it is the derivatives of the loss with
    these, and the same factor and floor, which are those of ``multi:softprob`` and ``binary:logistic``.

    Parameters
    ----------
    **options
        Those of `ObjectiveOptions` (`xent_rs._options`).

    Returns
    -------
    XGBoostObjective
        The objective: ``obj`` of ``xgboost.train``, or ``objective`` of ``xgboost.XGBClassifier``. Its method
        `loss` is the mean loss with the same options: their ``custom_metric`` and ``eval_metric``. It can be
        pickled and copied.

    Raises
    ------
    TypeError
        For an option that is none, or that an objective cannot take: what has no Hessian (`z_loss`,
        `softcap`), and what the library decides (`sample_weight`, `reduction`, ...).
    ValueError
        For an option out of its range. When it is called: for labels that are no whole numbers, for those of
        one prediction a row that are not from 0 to 1, for shapes that do not match, and for `pos_weight` with
        predictions for classes, or `weight` and `temperature` with one prediction a row.
    IndexError
        When it is called: for a label that is neither a class nor `ignore_index`.

    See Also
    --------
    prior : The values to start from.
    lightgbm_objective : The same for LightGBM.

    Notes
    -----
    Labels of shape (n, C) are probabilities of the classes, as from a teacher. XGBoost then takes no
    ``num_class``, and predicts logits.

    XGBoost finds start values for its own objectives only. See `prior`.

    References
    ----------
    .. [1] J. Friedman, T. Hastie, R. Tibshirani, "Additive logistic regression: a statistical view of
       boosting", Annals of Statistics 28(2), 2000.

    Examples
    --------
    >>> import numpy as np
    >>> from xent_rs.boosting import xgboost_objective
    >>> objective = xgboost_objective(label_smoothing=0.1)
    >>> objective
    xgboost_objective(label_smoothing=0.1)

    What XGBoost does with it, for one row of three classes with the label 2:

    >>> gradient, hessian = objective([2.0], np.log([[0.2, 0.3, 0.5]]))
    >>> gradient.round(4), hessian.round(4)
    (array([[ 0.1667,  0.2667, -0.4333]]), array([[0.32, 0.42, 0.5 ]]))
    """
    return XGBoostObjective(options)


@_LIGHTGBM.describe
def lightgbm_objective(*, binary: bool = False, **options: Unpack[ObjectiveOptions]) -> LightGBMObjective:
    """Softmax or sigmoid cross-entropy as an objective of LightGBM, with options.

    It is `xent_rs.cross_entropy` of predictions of shape (n, C), or with `binary` the
    `xent_rs.binary_cross_entropy` of predictions of shape (n,). Of a row with weight s, the predictions z and
    p = softmax(z), or p = sigmoid(z), it gives LightGBM
    ::

        gradient s·(p - t),    Hessian C/(C - 1)·s·p·(1 - p)    binary: without the factor

    without options; t is 1 for the label and 0 elsewhere. With options it is the derivatives of the loss with
    these, and the same factor, which is that of ``multiclass``; ``binary`` has none.

    Parameters
    ----------
    binary : bool, optional
        Whether there are two classes, 0 and 1, and one prediction a row.
    **options
        Those of `ObjectiveOptions` (`xent_rs._options`).

    Returns
    -------
    LightGBMObjective
        The objective: the parameter ``objective`` of ``lightgbm.train`` and ``lightgbm.LGBMClassifier``. Its
        method `loss` is the mean loss with the same options: ``feval`` of ``lightgbm.train``, ``eval_metric``
        of ``LGBMClassifier.fit``. It can be pickled and copied.

    Raises
    ------
    TypeError, ValueError, IndexError
        As `xgboost_objective`.

    See Also
    --------
    prior : The values to start from.
    xgboost_objective : The same for XGBoost.

    Notes
    -----
    With an objective of another's, LightGBM starts from 0 and predicts logits: `xent_rs.softmax` makes
    probabilities of them. See `prior`.

    References
    ----------
    .. [1] J. Friedman, "Greedy function approximation: a gradient boosting machine", Annals of Statistics
       29(5), 2001, section 4.6, has the factor.

    Examples
    --------
    >>> import numpy as np
    >>> from xent_rs.boosting import lightgbm_objective
    >>> objective = lightgbm_objective(binary=True, pos_weight=3)
    >>> objective
    lightgbm_objective(binary=True, pos_weight=3.0)

    What LightGBM does with it, for two rows with the labels 1 and 0:

    >>> gradient, hessian = objective([1.0, 0.0], np.log([0.25, 4.0]))
    >>> gradient.round(4), hessian.round(4)
    (array([-2.4,  0.8]), array([0.48, 0.16]))
    """
    return LightGBMObjective(options, binary)


@in_default_environment
def prior(
    labels: ArrayLike, num_class: SupportsIndex, weight: ArrayLike | None = None
) -> NDArray[np.float64]:
    """Logits that predict each class as often as there are labels of it: where boosting starts.

    With the weights s of rows, it is the ``log`` of a class's share, Σ s over the rows with its label divided
    by Σ s over all; for one prediction a row, ``num_class=1``, it is the logit of the share of the label 1.

    Parameters
    ----------
    labels : array_like of n numbers
        Classes from 0 to ``num_class - 1``; for ``num_class=1`` from 0 to 1.
    num_class : int
        The number of predictions a row: that of the classes, or 1 for yes or no.
    weight : array_like of n real numbers, optional
        A weight for each row.

    Returns
    -------
    ndarray of float64
        A logit for each prediction, `num_class` in all. A class without labels has the share 1e-15.

    Raises
    ------
    TypeError
        If `num_class` is no integer.
    ValueError
        If it is below 1, labels are no whole numbers, shapes do not match, or weights do not add up to a
        positive number, as those of no rows.
    IndexError
        If a label is no class.

    Notes
    -----
    LightGBM and XGBoost start so with their own objectives (XGBoost less the mean, which changes no
    probability). With those of others they start from one number for all classes, so that the first trees
    have to find what the shares of the classes are. The results then differ, most of all where classes are
    rare.

    References
    ----------
    .. [1] J. Friedman, "Greedy function approximation: a gradient boosting machine", Annals of Statistics
       29(5), 2001, sections 4.5 and 4.6.

    Examples
    --------
    >>> import numpy as np
    >>> from xent_rs.boosting import prior
    >>> labels = np.array([0, 0, 1, 2])
    >>> np.exp(prior(labels, 3))
    array([0.5 , 0.25, 0.25])
    >>> prior([0, 0, 0, 1], 1).round(4)      # log(1/3)
    array([-1.0986])

    For XGBoost it is a parameter, for LightGBM a part of the data, to be added to its predictions, too:

    >>> parameters = {"num_class": 3, "base_score": prior(labels, 3).tolist()}
    >>> init_score = np.tile(prior(labels, 3), (len(labels), 1))
    """
    num_class = integer(num_class, "num_class is")
    if num_class < 1:
        raise ValueError(f"num_class is {num_class}; expected at least 1")
    labels = _numbers(labels, "labels")
    if labels.ndim != 1:
        raise ValueError(f"labels have shape {labels.shape}; expected (n,)")
    weights = np.ones(labels.shape) if weight is None else _numbers(weight, "weight")
    if weights.shape != labels.shape:
        raise ValueError(f"weight has shape {weights.shape}; expected {labels.shape}, one a row")
    total = weights.sum(dtype=np.float64)
    if not total > 0:
        raise ValueError(f"the weights of {len(labels)} rows add up to {total:g}; expected a positive number")

    if num_class == 1:
        _check_answers(labels)
        share = np.array([np.average(labels, weights=weights)])
        return np.asarray(_log(share) - _log(1 - share))
    classes = _classes(labels)
    outside = (classes < 0) | (classes >= num_class)
    if outside.any():
        first = outside.argmax()
        raise IndexError(f"labels[{first}] is {classes[first]}; expected 0 to {num_class - 1}")
    return _log(np.bincount(classes, weights, num_class) / total)


def _has_classes(shape: tuple[int, ...]) -> bool:
    return len(shape) == 2 and shape[1] > 1


def _log(share: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.log(np.maximum(share, _SMALLEST_SHARE))


def _classes(labels: NDArray[Any]) -> NDArray[np.int64]:
    """Return labels as integers: both libraries keep them as float32."""
    with np.errstate(invalid="ignore"):
        classes = labels.astype(np.int64)
    _refuse(labels, classes != labels, "whole numbers")
    return classes


def _check_answers(labels: NDArray[Any], ignore_index: SupportsIndex | None = None) -> None:
    """Refuse labels that are neither yes, no, between them, nor ignored."""
    fits = (labels >= 0) & (labels <= 1) | (labels == ignore_index)
    _refuse(labels, ~fits, "0 to 1 for one prediction a row")


def _check_probabilities(labels: NDArray[Any]) -> None:
    """Refuse rows that are no probabilities: those of labels that do not exclude each other, above all."""
    totals = labels.sum(axis=1, dtype=np.float64)
    wrong = ~(np.abs(totals - 1) < 1e-3)
    if wrong.any():
        first = wrong.argmax()
        raise ValueError(
            f"labels[{first}] adds up to {totals[first]:g}; expected 1, as probabilities of classes"
        )


def _refuse(labels: NDArray[Any], wrong: NDArray[np.bool_], expected: str) -> None:
    """Name the first label that is wrong, if there is one."""
    if wrong.any():
        first = wrong.argmax()
        raise ValueError(f"labels[{first}] is {labels[first]:g}; expected {expected}")


def _numbers(given: ArrayLike, name: str) -> NDArray[Any]:
    array = _xent_rs.as_array(given, name)
    if array.dtype.kind not in "biuf":
        raise TypeError(f"dtype of {name} is {array.dtype}; expected real numbers")
    return array
