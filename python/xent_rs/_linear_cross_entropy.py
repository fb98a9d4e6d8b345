"""Softmax cross-entropy of hidden states and the last layer, whose logits are never all in memory."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import _xent_rs
from ._arguments import integer, row_shape
from ._bfloat16 import is_bfloat16
from ._cross_entropy import cross_entropy, cross_entropy_with_grad
from ._environment import in_default_environment
from ._exact import ExactSum
from ._head import Head, are_classes, counting_rows, taken
from ._linear_gradients import ALL_GRADIENTS, GradientSums, LinearGradients, Wanted
from ._options import (
    Floats,
    LinearCrossEntropyGradientOptions,
    LinearCrossEntropyOptions,
    LinearGradientOptions,
    MeanOptions,
    Options,
    Real,
    Reduction,
)
from ._products import Products
from ._rows import Rows

if TYPE_CHECKING:
    from typing_extensions import Unpack

# How many probabilities are looked at together.
_LOOKED_AT = 1 << 20

LOSS = Options("linear_cross_entropy", LinearCrossEntropyOptions, MeanOptions)


@overload
def linear_cross_entropy(
    hidden: ArrayLike,
    linear_weight: ArrayLike,
    targets: ArrayLike,
    *,
    linear_bias: ArrayLike | None = ...,
    progress: bool = ...,
    reduction: Literal["mean", "sum"] = ...,
    denominator: Real | None = ...,
    **options: Unpack[LinearCrossEntropyOptions],
) -> float: ...
@overload
def linear_cross_entropy(
    hidden: ArrayLike,
    linear_weight: ArrayLike,
    targets: ArrayLike,
    *,
    linear_bias: ArrayLike | None = ...,
    progress: bool = ...,
    reduction: Literal["none"],
    denominator: None = ...,
    **options: Unpack[LinearCrossEntropyOptions],
) -> Floats: ...
@overload
def linear_cross_entropy(
    hidden: ArrayLike,
    linear_weight: ArrayLike,
    targets: ArrayLike,
    *,
    linear_bias: ArrayLike | None = ...,
    progress: bool = ...,
    reduction: Reduction,
    denominator: Real | None = ...,
    **options: Unpack[LinearCrossEntropyOptions],
) -> float | Floats: ...
@LOSS.describe
def linear_cross_entropy(
    hidden: ArrayLike,
    linear_weight: ArrayLike,
    targets: ArrayLike,
    *,
    linear_bias: ArrayLike | None = None,
    progress: bool = False,
    **options: Any,
) -> float | Floats:
    """`cross_entropy` of a model's last layer, without ever holding all of its logits.

    The logits are ``hidden @ linear_weight.T + linear_bias``. Those of 256 rows are in memory at a time, so
    that the loss of 8,192 tokens over 128,256 classes takes 0.13 GB where the logits would take 4.2 GB.

    Parameters
    ----------
    hidden : array_like of float16, bfloat16 (``ml_dtypes``), float32 or float64
        The hidden states, what the last layer takes: any number of axes, K features along `axis`.
    linear_weight : array_like of these dtypes
        Its weights, of shape (C, K): a row for each class.
    targets : array_like of any integer dtype, or of any dtype that logits can have
        Integers are the class of each row: the shape of `hidden` without `axis`. Floats are probabilities:
        the shape of `hidden` with C in the place of K.
    linear_bias : array_like of float16, bfloat16, float32 or float64, optional
        The bias of the last layer, C numbers; ``-inf`` masks a class.
    progress : bool, optional
        Show a bar of the rows that are done, by ``tqdm``.
    **options
        Those of `LinearCrossEntropyOptions` and `MeanOptions` (`xent_rs._options`).

    Returns
    -------
    float or ndarray
        As from `cross_entropy`; with ``reduction='none'`` float64 if hidden states or weights are float64.

    Raises
    ------
    TypeError, ValueError, IndexError
        As `cross_entropy`, of which the errors call the product `logits`; also ValueError for weights or a
        bias whose shapes do not match. Nothing is multiplied then.
    ImportError
        If there is to be a progress bar, and tqdm is missing.

    See Also
    --------
    linear_cross_entropy_with_grad : With the gradients of states, weights and bias.
    evaluate : With `linear_weight`, accuracy, perplexity and entropy besides.

    Notes
    -----
    Rows that do not count, ignored ones and those of weight 0, are left out before the product. The products
    are those of `numpy.matmul`, in float64 if hidden states or weights are float64 and in float32 otherwise,
    into which others are converted exactly, 32 MiB of weights at a time. (Of weights that are no plain matrix
    of what is computed in, up to 1,024 rows are in memory, as long as their logits take at most 256 MiB. Of
    probabilities a copy of as many rows is, unless the rows that count follow each other.) So the last bits
    are those of NumPy's matrix library: its kernels and the number of its threads change them. With u =
    2**-24 (2**-53) a logit is wrong by at most ``(K + 1) * u / (1 - (K + 1) * u)`` times ``sum(abs(h * w)) +
    abs(bias)`` [1]_, and a loss by twice as much, over the temperature.

    It is ``torch.nn.functional.linear_cross_entropy``, the fused linear cross-entropy of Liger-Kernel and Cut
    Cross-Entropy [2]_. Keras, optax and scikit-learn have nothing like it.

    References
    ----------
    .. [1] N. J. Higham, "Accuracy and Stability of Numerical Algorithms", SIAM, 2002, section 3.1.
    .. [2] E. Wijmans et al., "Cut your losses in large-vocabulary language models", ICLR 2025.

    Examples
    --------
    >>> import numpy as np, xent_rs
    >>> hidden, weight = np.array([[1.0, 2.0], [0.0, 1.0]]), np.array([[2.0, 0.0], [0.0, 1.0], [0.5, -0.2]])
    >>> round(xent_rs.linear_cross_entropy(hidden, weight, [0, 1]), 6)
    0.638768
    >>> round(xent_rs.cross_entropy(hidden @ weight.T, [0, 1]), 6)
    0.638768
    """
    loss, _ = linear_loss((hidden, linear_weight, linear_bias), targets, LOSS, options, progress=progress)
    return loss


GRADIENT = Options(
    "linear_cross_entropy_with_grad", LinearCrossEntropyOptions, MeanOptions, LinearGradientOptions
)


@overload
def linear_cross_entropy_with_grad(
    hidden: ArrayLike,
    linear_weight: ArrayLike,
    targets: ArrayLike,
    *,
    linear_bias: ArrayLike | None = ...,
    progress: bool = ...,
    reduction: Literal["mean", "sum"] = ...,
    denominator: Real | None = ...,
    **options: Unpack[LinearCrossEntropyGradientOptions],
) -> tuple[float, LinearGradients]: ...
@overload
def linear_cross_entropy_with_grad(
    hidden: ArrayLike,
    linear_weight: ArrayLike,
    targets: ArrayLike,
    *,
    linear_bias: ArrayLike | None = ...,
    progress: bool = ...,
    reduction: Literal["none"],
    denominator: None = ...,
    **options: Unpack[LinearCrossEntropyGradientOptions],
) -> tuple[Floats, LinearGradients]: ...
@overload
def linear_cross_entropy_with_grad(
    hidden: ArrayLike,
    linear_weight: ArrayLike,
    targets: ArrayLike,
    *,
    linear_bias: ArrayLike | None = ...,
    progress: bool = ...,
    reduction: Reduction,
    denominator: Real | None = ...,
    **options: Unpack[LinearCrossEntropyGradientOptions],
) -> tuple[float | Floats, LinearGradients]: ...
@GRADIENT.describe
def linear_cross_entropy_with_grad(
    hidden: ArrayLike,
    linear_weight: ArrayLike,
    targets: ArrayLike,
    *,
    linear_bias: ArrayLike | None = None,
    progress: bool = False,
    **options: Any,
) -> tuple[float | Floats, LinearGradients]:
    """`linear_cross_entropy` and its gradients, without ever holding all logits or their gradient.

    With G the gradient of the loss with respect to the logits, the gradients are ``G @ linear_weight`` of the
    hidden states, ``G.T @ hidden`` of the weights and ``sum(G, axis=0)`` of the bias. G takes the place of
    the logits, 256 rows at a time.

    Parameters
    ----------
    hidden, linear_weight, targets, linear_bias : array_like
        As for `linear_cross_entropy`.
    progress : bool, optional
        Show a bar of the rows that are done, by ``tqdm``.
    **options
        Those of `linear_cross_entropy` and `LinearGradientOptions` (`xent_rs._options`).

    Returns
    -------
    loss : float or ndarray
        As from `linear_cross_entropy`, to the bit if nothing else uses the matrix library.
    grads : LinearGradients
        ``grads.hidden``, ``grads.linear_weight`` and ``grads.linear_bias`` (None without a bias), each in the
        shape and dtype of what it belongs to. With ``reduction='none'`` they are those of the sum of the
        losses times `grad_output`, of which row i of ``grads.hidden`` depends on loss i alone.

    Raises
    ------
    TypeError, ValueError, IndexError, ImportError
        As `linear_cross_entropy`; also for a `grad_output` or an `out` that does not match.

    Notes
    -----
    Gradients are summed in float32, or float64 if hidden states or weights are float64, and those of 16 bits
    rounded once from that. Above what `linear_cross_entropy` has in memory are
    the gradients, 8 MiB, and for 16-bit weights the float32 sums of their gradient. When interrupted
    (Ctrl-C), `out` holds a part of the sums.

    It is ``torch.nn.functional.linear_cross_entropy`` with ``backward``, and like the fused linear
    cross-entropy of Liger-Kernel [1]_ it makes three products and none of them twice. Keras, optax and
    scikit-learn have nothing like it.

    References
    ----------
    .. [1] P.-L. Hsu et al., "Liger Kernel: efficient Triton kernels for LLM training", arXiv:2410.10989,
       2024, section 3.2.

    Examples
    --------
    >>> import numpy as np, xent_rs
    >>> hidden, weight = np.array([[1.0, 2.0], [0.0, 1.0]]), np.array([[2.0, 0.0], [0.0, 1.0], [0.5, -0.2]])
    >>> loss, grads = xent_rs.linear_cross_entropy_with_grad(hidden, weight, [0, 1], reduction="sum")
    >>> grads.hidden.round(3)
    array([[-1.035,  0.451],
           [ 0.531, -0.437]])
    >>> _, of_logits = xent_rs.cross_entropy_with_grad(hidden @ weight.T, [0, 1], reduction="sum")
    >>> np.allclose(grads.linear_weight, of_logits.T @ hidden)
    True
    """
    loss, gradients = linear_loss(
        (hidden, linear_weight, linear_bias),
        targets,
        GRADIENT,
        options,
        wanted=ALL_GRADIENTS,
        progress=progress,
    )
    hidden_gradient, weight_gradient, bias_gradient = gradients
    assert hidden_gradient is not None
    assert weight_gradient is not None
    return loss, LinearGradients(hidden_gradient, weight_gradient, bias_gradient)


_NO_GRADIENTS: Wanted = (False, False, False)


@in_default_environment
def linear_loss(
    layer: tuple[ArrayLike, ArrayLike, ArrayLike | None],
    targets: ArrayLike,
    keywords: Options,
    options: dict[str, Any],
    *,
    wanted: Wanted = _NO_GRADIENTS,
    products: Products | None = None,
    progress: bool = False,
) -> tuple[float | Floats, tuple[Floats | None, Floats | None, Floats | None]]:
    """Return the loss, and the gradients that are wanted, of hidden states, weights and bias.

    Parameters
    ----------
    layer : tuple of array_like
        Hidden states, weights and bias.
    targets, options, progress
        As for `linear_cross_entropy_with_grad`.
    keywords : Options
        The options of the public function.
    wanted : tuple of bool
        Whether the gradient of each part of the layer is wanted.
    products : Products, optional
        What multiplies matrices; NumPy by default.
    """
    keywords.check(options)
    given = {**keywords.defaults, **options}
    hidden, linear_weight, linear_bias = layer
    states = _xent_rs.as_array(hidden, "hidden")
    axis = integer(given.pop("axis"), "axis is")
    products = Products() if products is None else products
    head = Head(states, "hidden", axis, linear_weight, linear_bias, products=products)
    out, grad_output = given.pop("out", None), given.pop("grad_output", None)
    rows = _Rows.of(states, axis, head, targets, given, grad_output)
    gradients = (
        GradientSums(head, products, states, axis, wanted, out, rows.inputs()) if any(wanted) else None
    )

    reduction, divisor = given.pop("reduction"), rows.divisor(given.pop("denominator"))
    is_mean = reduction == "mean"
    losses = np.zeros(rows.shape, head.dtype) if reduction == "none" else None
    sums = []
    counting, left_out = rows.counting, rows.left_out
    if is_mean and divisor == 0:  # a step on a mean of nothing changes nothing
        counting, left_out = counting[:0], np.arange(len(counting) + len(left_out))
    # Any other divisor than a denominator can be divides afterwards.
    divides = is_mean and 0 < divisor < math.inf
    later = divisor if is_mean and not divides else 1.0
    for some in _with_progress(counting, head.rows, progress):
        inner = rows.options(some)
        if losses is not None:
            inner["reduction"] = "none"
            inner["grad_output"] = None if rows.grad_output is None else rows.grad_output[some]
        else:
            inner["grad_output"] = rows.factor / later
            inner.update({"reduction": "mean", "denominator": divisor} if divides else {"reduction": "sum"})
        found_states = head.states(Rows.of(states, axis)[some])
        logits = head.logits(found_states)
        if gradients is None:
            del inner["grad_output"]
            loss: Any = cross_entropy(logits, rows.targets_of(some), **inner)
        else:
            loss, of_logits = cross_entropy_with_grad(logits, rows.targets_of(some), out=logits, **inner)
            gradients.add(some, found_states, of_logits)
        if losses is None:
            sums.append(loss)
        else:
            losses.reshape(-1)[some] = loss
    found = (None, None, None) if gradients is None else gradients.result(left_out)
    if losses is not None:
        return losses, found
    total = ExactSum.of_values(np.array(sums, np.float64))
    return total.over(ExactSum.of_values(np.array([later]))), found


@dataclass(frozen=True)
class _Rows:
    """The rows of a call whose arguments have been looked at, in one axis."""

    shape: tuple[int, ...]
    axis: int
    targets: NDArray[Any]
    are_classes: bool
    sample_weight: NDArray[Any] | None
    weight: NDArray[Any] | None
    # What multiplies the gradient of a mean or a sum, and that of each loss if they are results.
    factor: float
    grad_output: NDArray[Any] | None
    others: dict[str, Any]
    # The numbers of those that count, and of the others.
    counting: NDArray[np.intp]
    left_out: NDArray[np.intp]

    @classmethod
    def of(
        cls,
        hidden: NDArray[Any],
        axis: int,
        head: Head,
        targets: ArrayLike,
        given: dict[str, Any],
        grad_output: ArrayLike | None,
    ) -> _Rows:
        """Look at all arguments; what is wrong with them is said by the function that takes logits."""
        shape = row_shape(hidden, axis)
        assert shape is not None, "a head refuses hidden states without features"
        of_targets = _xent_rs.as_array(targets, "targets")
        if isinstance(targets, (list, tuple)) and not of_targets.size:
            of_targets = of_targets.astype(np.int64)  # of no numbers NumPy makes floats
        weight, sample_weight = (
            None if given[name] is None else _xent_rs.as_array(given[name], name)
            for name in ("weight", "sample_weight")
        )
        others = {name: given[name] for name in given if name not in ("weight", "sample_weight")}
        reduction = others["reduction"]
        none = np.zeros((0, head.classes), head.dtype)
        no_class = np.zeros(0, np.int64)
        factors = None if grad_output is None else _xent_rs.as_array(grad_output, "grad_output")
        is_each = reduction == "none"
        of_none: dict[str, Any] = {} if is_each else {"grad_output": factors}
        # The focal loss is of classes alone.
        looked_at = none if _are_probabilities(of_targets) else no_class
        cross_entropy_with_grad(none, looked_at, weight=weight, **others, **of_none)

        ignore_index = operator.index(others["ignore_index"])
        are_indices = are_classes(of_targets, shape, head.classes, ignore_index)
        zeros = head.zeros(hidden.shape, axis)
        fits = are_indices or (_are_probabilities(of_targets) and of_targets.shape == zeros.shape)
        if fits and (sample_weight is None or sample_weight.shape == shape):
            if sample_weight is not None:
                cross_entropy(none, no_class, sample_weight=sample_weight.reshape(-1)[:0])
            counting, left_out = counting_rows(
                shape, of_targets if are_indices else None, sample_weight, ignore_index
            )
            fits = are_indices or _are_not_negative(of_targets, axis, counting, head)
        else:
            fits = False
        if not fits:
            cross_entropy(zeros, of_targets, weight=weight, sample_weight=sample_weight, axis=axis, **others)
            raise AssertionError("cross_entropy takes what does not fit")
        if is_each and factors is not None:
            if factors.shape not in ((), shape):
                expected = f"{shape}, one number for each loss, or a scalar"
                raise ValueError(f"grad_output has shape {factors.shape}; expected {expected}")
            cross_entropy_with_grad(none, no_class, grad_output=factors.reshape(-1)[:0], reduction="none")
            factors = np.broadcast_to(factors, shape).reshape(-1)
        del others["reduction"], others["denominator"]
        return cls(
            shape=shape,
            axis=axis,
            targets=of_targets,
            are_classes=are_indices,
            sample_weight=sample_weight,
            weight=weight,
            factor=1.0 if factors is None or is_each else float(factors.astype(np.float64)),
            grad_output=factors if is_each else None,
            others=others,
            counting=counting,
            left_out=left_out,
        )

    def targets_of(self, some: NDArray[np.intp]) -> NDArray[Any]:
        """Return the targets of some rows."""
        if self.are_classes:
            return self.targets.reshape(-1)[some]
        return Rows.of(self.targets, self.axis)[some]

    def options(self, some: NDArray[np.intp]) -> dict[str, Any]:
        """Return the options of the loss of some rows' logits."""
        return {**self.others, "weight": self.weight, "sample_weight": taken(self.sample_weight, some)}

    def divisor(self, denominator: Real | None) -> float:
        """Return what a mean divides by."""
        if denominator is not None:
            return float(denominator)
        weights = np.ones(len(self.counting))
        if self.sample_weight is not None:
            weights = self.sample_weight.reshape(-1)[self.counting].astype(np.float64)
        if self.weight is not None and self.are_classes:
            of_classes = self.weight.astype(np.float64)[self.targets.reshape(-1)[self.counting]]
            with np.errstate(all="ignore"):
                weights = weights * of_classes
        return ExactSum.of_values(weights).over(ExactSum.of_count(1))

    def inputs(self) -> list[tuple[str, NDArray[Any]]]:
        """Return what else than states and weights is read, with its name."""
        arrays = {
            "targets": self.targets,
            "weight": self.weight,
            "sample_weight": self.sample_weight,
            "grad_output": self.grad_output,
        }
        return [(name, array) for name, array in arrays.items() if array is not None]


def _are_probabilities(targets: NDArray[Any]) -> bool:
    return is_bfloat16(targets.dtype) or (targets.dtype.kind == "f" and targets.itemsize <= 8)


def _are_not_negative(probabilities: NDArray[Any], axis: int, counting: NDArray[np.intp], head: Head) -> bool:
    """Tell whether no probability of the rows that count is below 0 or NaN."""
    rows, step = Rows.of(probabilities, axis), max(1, _LOOKED_AT // head.classes)
    for start in range(0, len(counting), step):
        some = rows[counting[start : start + step]]
        if is_bfloat16(some.dtype):
            some = head.states(some)
        if not (some >= 0).all():
            return False
    return True


def _with_progress(rows: NDArray[np.intp], step: int, progress: bool) -> Iterator[NDArray[np.intp]]:
    """Give some rows at a time, and show a bar if that is wanted."""
    bar: AbstractContextManager[Any] = nullcontext()
    if progress:
        try:
            from tqdm import tqdm
        except ImportError as error:
            raise ImportError(f"progress needs tqdm ({error}): pip install xent_rs[progress]") from None
        bar = tqdm(total=len(rows), unit="row")
    with bar as shown:
        for start in range(0, len(rows), step):
            some = rows[start : start + step]
            yield some
            if shown is not None:
                shown.update(len(some))
