"""What the logits of each row say, in one pass over them."""

from __future__ import annotations

from typing import Any, NamedTuple

from numpy.typing import ArrayLike

from . import _xent_rs


class RowStatistics(NamedTuple):
    """What `row_statistics` returns: for each field an array with one number a row.

    The arrays have the shape of the logits without the axis of the classes, which is () for a single sample.
    They are float32, or float64 for float64 logits, but for `argmax` and `target_rank`, which are int64.

    Attributes
    ----------
    logsumexp : ndarray
        ``log Σ exp z``, in nats; ``+inf`` for a row with a ``+inf`` and no NaN.
    argmax : ndarray
        The class with the largest logit; of equal ones the first, as in `numpy.argmax`.
    max_probability : ndarray
        Its probability.
    entropy : ndarray
        Entropy of the model's distribution in nats, ``-Σ p·log p``.
    target_log_probability : ndarray or None
        ``z[target] - logsumexp`` in nats, 0 for rows that are ignored; None without targets. Its negative is
        the loss of each row.
    target_rank : ndarray or None
        How many classes rank above the target: 0 if it is the `argmax`. Of equal logits the first ranks
        higher. -1 for rows that are ignored, hold a NaN or ``+inf``, or are all ``-inf``; None without
        targets.
    """

    logsumexp: Any
    argmax: Any
    max_probability: Any
    entropy: Any
    target_log_probability: Any
    target_rank: Any


def row_statistics(
    logits: ArrayLike,
    targets: ArrayLike | None = None,
    *,
    axis: int = -1,
    softcap: float | None = None,
    temperature: float = 1.0,
    ignore_index: int = -100,
) -> RowStatistics:
    """Log-sum-exp, argmax, its probability, entropy, and the target's log-probability and rank, of each row.

    With ``z = logits / temperature``, or ``softcap·tanh(logits / softcap) / temperature``, and
    ``p = softmax(z)``, they are ``log Σ exp z``, ``argmax z``, ``max p``, ``-Σ p·log p``, ``log p[target]``
    and the number of classes that rank above the target. The logits are read once, in place; nothing of
    their size is allocated.

    Parameters
    ----------
    logits : array_like of float16, bfloat16 (``ml_dtypes``), float32 or float64
        Any number of axes; see `cross_entropy`.
    targets : array_like of any integer dtype, optional
        The class of each row: the shape of `logits` without `axis`.
    axis : int, optional
        The axis of the classes; the last by default.
    softcap : float, optional
        Bounds the logits, smoothly, to ±softcap; positive.
    temperature : float, optional
        Divides the logits, after the softcap; positive.
    ignore_index : int, optional
        Rows with this target have `target_log_probability` 0 and `target_rank` -1.

    Returns
    -------
    RowStatistics
        A named tuple, whose fields are described there.

    Raises
    ------
    TypeError, ValueError, IndexError
        As `cross_entropy`; targets are classes here, never probabilities.

    See Also
    --------
    evaluate : Their means over rows.

    Notes
    -----
    A row with a NaN or ``+inf`` has the `argmax` of NumPy (the first NaN, else the first ``+inf``), the rank
    -1 and NaN in the other fields. A row of only ``-inf`` has the log-sum-exp ``-inf``, the argmax 0, the
    rank -1 and NaN in the other fields.

    With ``lp`` the log-softmax, which it does not make, these are in PyTorch ``logits.logsumexp(-1)``,
    ``lp.max(-1)``, ``torch.distributions.Categorical(logits=logits).entropy()`` and
    ``lp.gather(-1, targets[..., None])``; JAX (for optax) and ``keras.ops`` have ``logsumexp``, ``argmax``
    and ``take_along_axis``. scikit-learn's ``top_k_accuracy_score`` is the share of ranks below k. The
    entropy is that of [1]_.

    References
    ----------
    .. [1] C. E. Shannon, "A mathematical theory of communication", Bell System Technical Journal 27, 1948.

    Examples
    --------
    >>> import numpy as np, xent_rs
    >>> logits = np.log([[0.5, 0.25, 0.25], [0.125, 0.75, 0.125]])
    >>> statistics = xent_rs.row_statistics(logits, [2, 1])
    >>> statistics.argmax, statistics.target_rank
    (array([0, 1]), array([2, 0]))
    >>> statistics.max_probability.round(6), (statistics.entropy / np.log(2)).round(6)
    (array([0.5 , 0.75]), array([1.5     , 1.061278]))
    """
    return RowStatistics(*_xent_rs.row_statistics(logits, targets, axis, softcap, temperature, ignore_index))
