"""Softmax and its logarithm, whole or at chosen classes."""

from __future__ import annotations

from typing import Any

from numpy.typing import ArrayLike, NDArray

from . import _xent_rs


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
    ndarray
        Of the logits' shape without `axis`, float32, or float64 for float64 logits. A row of only ``-inf``
        has ``-inf``, a row with a NaN has NaN, and any other with ``+inf`` has ``+inf``.

    Raises
    ------
    TypeError, ValueError
        As `cross_entropy`.

    Notes
    -----
    It is ``torch.logsumexp``, ``jax.nn.logsumexp`` (which optax uses), ``keras.ops.logsumexp`` and
    ``scipy.special.logsumexp``, which scikit-learn uses and whose weights ``b`` there are not here.

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

    Notes
    -----
    It is ``torch.softmax``, ``jax.nn.softmax`` (which optax uses), ``keras.ops.softmax``,
    ``scipy.special.softmax`` and, in scikit-learn, ``sklearn.utils.extmath.softmax``.

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

    Notes
    -----
    It is ``torch.log_softmax``, ``jax.nn.log_softmax`` (which optax uses), ``keras.ops.log_softmax`` and
    ``scipy.special.log_softmax``; scikit-learn's classifiers have ``predict_log_proba``.

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


def selective_log_softmax(
    logits: ArrayLike, index: ArrayLike, *, axis: int = -1, temperature: float = 1.0
) -> NDArray[Any]:
    r"""Log-probabilities of K chosen classes in each row, :math:`x_k / T - \log \sum_c e^{x_c / T}`.

    The logits are read once, in place; nothing of their size is allocated.

    Parameters
    ----------
    logits : array_like of float16, bfloat16 (``ml_dtypes``), float32 or float64
        Any number of axes; see `cross_entropy`.
    index : array_like of any integer dtype
        K classes for each row: the shape of `logits` without `axis`, and then one axis of length K, which may
        be 0. A class may come twice.
    axis : int, optional
        The axis of the classes in `logits`; the last by default. Those of `index` are always in its last.
    temperature : float, optional
        Divides the logits; positive.

    Returns
    -------
    ndarray
        Of the shape of `index`, float32, or float64 for float64 logits. A ``-inf`` class has ``-inf``; a row
        with a NaN or ``+inf``, or of only ``-inf``, is NaN. The log-probability of a leading class keeps
        relative accuracy.

    Raises
    ------
    TypeError, ValueError
        As `cross_entropy`.
    IndexError
        For an index that is not a class; there is no ``ignore_index``.

    Notes
    -----
    With ``lp`` the log-softmax, which it does not make, it is ``lp.gather(-1, index)`` in PyTorch,
    ``take_along_axis(lp, index, -1)`` in NumPy, JAX (for optax) and ``keras.ops``. TRL and Liger have
    functions of this name. scikit-learn has none.

    References
    ----------
    .. [1] P. Blanchard, D. J. Higham, N. J. Higham, "Accurately computing the log-sum-exp and softmax
       functions", IMA Journal of Numerical Analysis 41(4), 2021.

    Examples
    --------
    >>> import numpy as np, xent_rs
    >>> logits = np.log([[0.5, 0.25, 0.25], [0.125, 0.75, 0.125]])
    >>> np.exp(xent_rs.selective_log_softmax(logits, [[0, 2], [1, 1]])).round(6)
    array([[0.5 , 0.25],
           [0.75, 0.75]])
    """
    return _xent_rs.selective_log_softmax(logits, index, axis, temperature)
