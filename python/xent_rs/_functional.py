"""The functions on NumPy arrays: signatures, defaults and documentation over the compiled module."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias, overload

from numpy.typing import ArrayLike, NDArray

from . import _xent_rs

Reduction: TypeAlias = Literal["mean", "sum", "none"]


@overload
def cross_entropy(
    logits: ArrayLike,
    targets: ArrayLike,
    *,
    ignore_index: int = ...,
    temperature: float = ...,
    axis: int = ...,
    reduction: Literal["mean", "sum"] = ...,
    denominator: float | None = ...,
) -> float: ...
@overload
def cross_entropy(
    logits: ArrayLike,
    targets: ArrayLike,
    *,
    ignore_index: int = ...,
    temperature: float = ...,
    axis: int = ...,
    reduction: Literal["none"],
    denominator: None = ...,
) -> NDArray[Any]: ...
def cross_entropy(
    logits: ArrayLike,
    targets: ArrayLike,
    *,
    ignore_index: int = -100,
    temperature: float = 1.0,
    axis: int = -1,
    reduction: Reduction = "mean",
    denominator: float | None = None,
) -> float | NDArray[Any]:
    r"""Cross-entropy of ``softmax(logits / temperature)`` with the targets, in nats.

    A row's loss is :math:`\log \sum_c e^{z_c} - z_y` with :math:`z = x / T` and target :math:`y`. The logits
    are read once, in place; nothing of their size is allocated.

    Parameters
    ----------
    logits : array_like of float16, bfloat16 (``ml_dtypes``), float32 or float64
        Unnormalised log-probabilities: any number of axes, the classes along `axis`. Any strides, alignment
        and byte order. What is not an array is converted with `numpy.asarray`. 16-bit logits compute in
        float32. ``-inf`` marks a class that is not there.
    targets : array_like of any integer dtype
        The class of each row: the shape of `logits` without `axis`.
    ignore_index : int, optional
        Rows with this target have loss 0, whatever their logits hold, and do not count.
    temperature : float, optional
        Divides the logits; positive.
    axis : int, optional
        The axis of the classes; the last by default (it is axis 1 in PyTorch).
    reduction : {'mean', 'sum', 'none'}, optional
        The mean over the rows that are not ignored, their sum, or each row's loss.
    denominator : float, optional
        Replaces the divisor of the mean: a count of tokens under gradient accumulation, say.

    Returns
    -------
    float or ndarray
        For 'mean' and 'sum' a float, accumulated in float64: NaN if the mean has no rows. For 'none' an array
        of the shape of `targets`, float32, or float64 for float64 logits.

    Raises
    ------
    TypeError
        For logits or targets of another dtype, masked arrays, and tensors that are not in CPU memory.
    ValueError
        For shapes that do not match, an axis out of range, no classes, or an option out of its range.
    IndexError
        For a target that is neither a class nor `ignore_index`.

    See Also
    --------
    cross_entropy_with_grad : The loss and its gradient.

    Notes
    -----
    The error of a row's loss is at most u·(ln C + 2) and half an ulp, with u = 2⁻²⁴ (2⁻⁵³ for float64) and C
    classes, and relative accuracy is kept where the target leads, however small the loss. The result has the
    same bits for any number of threads; another memory layout of the same numbers may change the last one. A
    target on a ``-inf`` class costs infinity; a NaN or ``+inf`` makes its row NaN, and so does a row of only
    ``-inf``.

    It is ``torch.nn.functional.cross_entropy``, with the classes last and any integer targets;
    ``optax.softmax_cross_entropy_with_integer_labels``; ``keras.losses.SparseCategoricalCrossentropy`` with
    ``from_logits=True``; and, on probabilities and without logits, ``sklearn.metrics.log_loss`` [1]_.

    References
    ----------
    .. [1] I. Goodfellow, Y. Bengio, A. Courville, "Deep Learning", MIT Press, 2016, section 6.2.2.

    Examples
    --------
    >>> import numpy as np, xent_rs
    >>> logits = np.array([[2.0, 1.0, 0.1], [0.0, 0.0, 0.0]], dtype=np.float32)
    >>> xent_rs.cross_entropy(logits, [0, 2], reduction="none").round(4)
    array([0.417 , 1.0986], dtype=float32)
    >>> round(xent_rs.cross_entropy(logits, [0, -100]), 6)
    0.41703
    """
    loss: float | NDArray[Any] = _xent_rs.cross_entropy(
        logits, targets, ignore_index, temperature, axis, reduction, denominator
    )
    return loss


@overload
def cross_entropy_with_grad(
    logits: ArrayLike,
    targets: ArrayLike,
    *,
    ignore_index: int = ...,
    temperature: float = ...,
    axis: int = ...,
    reduction: Literal["mean", "sum"] = ...,
    denominator: float | None = ...,
    grad_output: ArrayLike | None = ...,
    out: NDArray[Any] | None = ...,
) -> tuple[float, NDArray[Any]]: ...
@overload
def cross_entropy_with_grad(
    logits: ArrayLike,
    targets: ArrayLike,
    *,
    ignore_index: int = ...,
    temperature: float = ...,
    axis: int = ...,
    reduction: Literal["none"],
    denominator: None = ...,
    grad_output: ArrayLike | None = ...,
    out: NDArray[Any] | None = ...,
) -> tuple[NDArray[Any], NDArray[Any]]: ...
def cross_entropy_with_grad(
    logits: ArrayLike,
    targets: ArrayLike,
    *,
    ignore_index: int = -100,
    temperature: float = 1.0,
    axis: int = -1,
    reduction: Reduction = "mean",
    denominator: float | None = None,
    grad_output: ArrayLike | None = None,
    out: NDArray[Any] | None = None,
) -> tuple[float | NDArray[Any], NDArray[Any]]:
    r"""`cross_entropy` and its gradient with respect to the logits.

    The gradient of a row's loss is :math:`(\mathrm{softmax}(x / T)_c - [c = y]) / T`; that of the mean is
    divided by what the mean divides by. Each row is read from memory once and its gradient written once.

    Parameters
    ----------
    logits, targets, ignore_index, temperature, axis, reduction, denominator
        As for `cross_entropy`.
    grad_output : float or array_like, optional
        Multiplies the gradient: the derivative of what follows with respect to the loss. A number, or, with
        ``reduction='none'``, one for each row.
    out : ndarray, optional
        Where the gradient goes: an array of the logits' shape, in float32, float16 or bfloat16 for logits of
        these types and in float64 for float64 logits. It may be the logits' array itself, which the gradient
        then overwrites, and must share no memory with an input otherwise. A loop that passes the same `out`
        each time saves the time that new memory costs, which is more than that of the gradient.

    Returns
    -------
    loss : float or ndarray
        As from `cross_entropy`, to the bit.
    grad : ndarray
        `out`, or a new array of the logits' shape, dtype and memory layout. With ``reduction='none'`` row i
        is the derivative of loss i. An ignored row and a ``-inf`` class have gradient 0.

    Raises
    ------
    TypeError, ValueError, IndexError
        As `cross_entropy`; also ValueError for an `out` that is read-only, overlaps an input or itself, or
        has another shape or dtype, and for a `grad_output` of another shape. Nothing is written then.

    Notes
    -----
    With p = softmax(x / T), a gradient is within u·(|z - max z| + ln C + 4)·p of its value; the target's is
    minus the sum of the others' p, not a difference. 16-bit gradients are rounded once from float32.

    When interrupted (Ctrl-C), `out` holds some rows of the gradient and some of what it held before.

    Examples
    --------
    >>> import numpy as np, xent_rs
    >>> logits = np.array([[2.0, 1.0, 0.1], [0.0, 0.0, 0.0]])
    >>> loss, grad = xent_rs.cross_entropy_with_grad(logits, [0, 2], reduction="sum")
    >>> grad.round(3)
    array([[-0.341,  0.242,  0.099],
           [ 0.333,  0.333, -0.667]])

    In place, the logits become the gradient:

    >>> loss, grad = xent_rs.cross_entropy_with_grad(logits, [0, 2], out=logits)
    >>> grad is logits
    True
    """
    return _xent_rs.cross_entropy_with_grad(
        logits, targets, ignore_index, temperature, axis, reduction, denominator, grad_output, out
    )


def logsumexp(logits: ArrayLike, *, axis: int = -1, keepdims: bool = False, temperature: float = 1.0) -> Any:
    r"""Logarithm of the sum of exponentials, :math:`\log \sum_c e^{x_c / T}`.

    Parameters
    ----------
    logits : array_like of float16, bfloat16 (``ml_dtypes``), float32 or float64
        Any number of axes; see `cross_entropy`.
    axis : int, optional
        The axis to sum over; the last by default (all axes in `scipy.special.logsumexp`).
    keepdims : bool, optional
        Keep `axis`, with length 1.
    temperature : float, optional
        Divides the logits; positive.

    Returns
    -------
    ndarray or scalar
        Of the logits' shape without `axis`, float32, or float64 for float64 logits. A row of only ``-inf``
        has ``-inf``, a row with a NaN or ``+inf`` NaN.

    Raises
    ------
    TypeError, ValueError
        As `cross_entropy`.

    References
    ----------
    .. [1] P. Blanchard, D. J. Higham, N. J. Higham, "Accurately computing the log-sum-exp and softmax
       functions", IMA Journal of Numerical Analysis 41(4), 2021.

    Examples
    --------
    >>> import numpy as np, xent_rs
    >>> print(xent_rs.logsumexp(np.array([1000.0, 1000.0])))
    1000.6931471805599
    """
    return _xent_rs.logsumexp(logits, axis, keepdims, temperature)


def softmax(
    logits: ArrayLike, *, axis: int = -1, temperature: float = 1.0, out: NDArray[Any] | None = None
) -> NDArray[Any]:
    r"""Probabilities of the classes, :math:`e^{x_c / T} / \sum_k e^{x_k / T}`.

    Parameters
    ----------
    logits : array_like of float16, bfloat16 (``ml_dtypes``), float32 or float64
        Any number of axes; see `cross_entropy`.
    axis : int, optional
        The axis of the classes; the last by default (all axes in `scipy.special.softmax`).
    temperature : float, optional
        Divides the logits; positive.
    out : ndarray, optional
        Where the result goes, under the same conditions as for `cross_entropy_with_grad`; the logits' array
        itself is fine.

    Returns
    -------
    ndarray
        `out`, or a new array of the logits' shape, dtype and memory layout. A ``-inf`` class has 0; a row
        with a NaN or ``+inf``, or of only ``-inf``, is NaN.

    Raises
    ------
    TypeError, ValueError
        As `cross_entropy_with_grad`.

    References
    ----------
    .. [1] J. S. Bridle, "Probabilistic interpretation of feedforward classification network outputs", in
       Neurocomputing, NATO ASI Series 68, Springer, 1990.

    Examples
    --------
    >>> import numpy as np, xent_rs
    >>> xent_rs.softmax(np.array([0.0, np.log(2.0), -np.inf])).round(4)
    array([0.3333, 0.6667, 0.    ])
    """
    return _xent_rs.softmax(logits, axis, temperature, out)


def log_softmax(
    logits: ArrayLike, *, axis: int = -1, temperature: float = 1.0, out: NDArray[Any] | None = None
) -> NDArray[Any]:
    r"""Log-probabilities of the classes, :math:`x_c / T - \log \sum_k e^{x_k / T}`.

    Parameters
    ----------
    logits, axis, temperature, out
        As for `softmax`.

    Returns
    -------
    ndarray
        `out`, or a new array of the logits' shape, dtype and memory layout. A ``-inf`` class has ``-inf``; a
        row with a NaN or ``+inf``, or of only ``-inf``, is NaN. The log-probability of a leading class keeps
        relative accuracy.

    Raises
    ------
    TypeError, ValueError
        As `cross_entropy_with_grad`.

    References
    ----------
    .. [1] P. Blanchard, D. J. Higham, N. J. Higham, "Accurately computing the log-sum-exp and softmax
       functions", IMA Journal of Numerical Analysis 41(4), 2021.

    Examples
    --------
    >>> import numpy as np, xent_rs
    >>> print(*[f"{value:.3e}" for value in xent_rs.log_softmax(np.array([17.0, 0.0], dtype=np.float32))])
    -4.140e-08 -1.700e+01
    """
    return _xent_rs.log_softmax(logits, axis, temperature, out)


def set_num_threads(n: int) -> None:
    """Use `n` threads in calls from now on.

    Parameters
    ----------
    n : int
        At least 1. Without this call it is ``XENT_RS_NUM_THREADS``, or else ``OMP_NUM_THREADS``, or else the
        number of CPUs that the process may use. Small problems stay on the caller's thread, and no result
        depends on it.

    Raises
    ------
    ValueError
        If `n` is not a number of threads.

    Examples
    --------
    >>> import xent_rs
    >>> before = xent_rs.get_num_threads()
    >>> xent_rs.set_num_threads(1)
    >>> xent_rs.get_num_threads()
    1
    >>> xent_rs.set_num_threads(before)
    """
    _xent_rs.set_num_threads(n)


def get_num_threads() -> int:
    """Return the number of threads that calls use.

    Returns
    -------
    int
        See `set_num_threads`, which also has an example.
    """
    return _xent_rs.get_num_threads()


def show_config() -> None:
    """Print the version, the instruction sets, and the threads and where their number is from.

    It is what a report of a problem should quote.
    """
    config = _xent_rs.config()
    width = max(map(len, config))
    for key, value in config.items():
        text = ", ".join(value) if isinstance(value, list) else value
        print(f"{key:{width}}  {text}")
