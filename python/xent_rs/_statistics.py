"""What the logits of each row say, in one pass over them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import _xent_rs
from ._options import Floats, Options, RowStatisticsOptions
from ._tables import html_table, text_table

if TYPE_CHECKING:
    from typing_extensions import Unpack

_SHOWN = 10  # rows of a table; of more, half from either end


class RowStatistics(NamedTuple):
    """What `row_statistics` returns: for each field an array with one number a row.

    `print` shows them as a table, and so do notebooks: the first rows and the last.

    The arrays have the shape of the logits without the axis of the classes. They are float32, or float64 for
    float64 logits, but for `argmax` and `target_rank`, which are int64.

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

    logsumexp: Floats
    argmax: NDArray[np.int64]
    max_probability: Floats
    entropy: Floats
    target_log_probability: Floats | None
    target_rank: NDArray[np.int64] | None

    def __str__(self) -> str:
        return text_table(self._table())

    def _repr_html_(self) -> str:
        header, *rows = self._table()
        return html_table(rows, header)

    def _table(self) -> list[list[str]]:
        """Return the headings, then for each row that is shown its index and its numbers."""
        columns = {name: np.asarray(values) for name, values in self._asdict().items() if values is not None}
        shape = columns["logsumexp"].shape
        count = math.prod(shape)
        shown = range(count) if count <= _SHOWN else [*range(_SHOWN // 2), *range(count - _SHOWN // 2, count)]
        lines = [["row", *columns]]
        for row in shown:
            index = np.unravel_index(row, shape)
            numbers = [values[index] for values in columns.values()]
            shown_numbers = (
                f"{number:.6g}" if number.dtype.kind == "f" else f"{number}" for number in numbers
            )
            lines.append([", ".join(map(str, index)), *shown_numbers])
        if count > _SHOWN:
            lines.insert(1 + _SHOWN // 2, ["..."] * len(lines[0]))
        return lines


_STATISTICS = Options("row_statistics", RowStatisticsOptions)


@_STATISTICS.describe
def row_statistics(
    logits: ArrayLike, targets: ArrayLike | None = None, **options: Unpack[RowStatisticsOptions]
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
    **options
        Those of `RowStatisticsOptions` (`xent_rs._options`).

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
    and ``take_along_axis``. scikit-learn's ``top_k_accuracy_score`` is the share of ranks below k, if no
    logits are equal: of equal ones the last ranks highest there, and the first here. The entropy is that of
    [1]_.

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
    return RowStatistics(*_xent_rs.row_statistics(logits, targets, _STATISTICS, options))
