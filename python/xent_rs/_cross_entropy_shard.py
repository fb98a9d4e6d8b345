"""The gradient of softmax cross-entropy with respect to the logits of a shard of the classes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, SupportsIndex

import numpy as np
from numpy.typing import ArrayLike

from . import _xent_rs
from ._arguments import integer, place_of_shard, row_shape
from ._options import Floats, GradientOptions, MeanOptions, Options, ShardGradientOptions, ShardOptions

if TYPE_CHECKING:
    from typing_extensions import Unpack

_GRADIENT = Options("cross_entropy_grad", ShardOptions, MeanOptions, GradientOptions)


@_GRADIENT.describe
def cross_entropy_grad(
    logits: ArrayLike,
    targets: ArrayLike,
    *,
    lse: ArrayLike,
    class_offset: SupportsIndex = 0,
    num_classes: SupportsIndex | None = None,
    **options: Unpack[ShardGradientOptions],
) -> Floats:
    r"""Return the gradient of `cross_entropy` for a shard of the classes, from the log-sum-exp of all.

    With the classes in shards, each in a process of its own, a row's gradient for the class c of a shard is
    :math:`(e^{z_c - \mathrm{lse}} - [c = y]) / T`, in general that of `cross_entropy_with_grad`: nothing of
    the other shards is needed but lse. The shards' gradients side by side are the gradient of all.

    Parameters
    ----------
    logits : array_like of float16, bfloat16 (``ml_dtypes``), float32 or float64
        The logits of the shard: all rows, and some of the classes along `axis`, which may be none.
    targets : array_like of any integer dtype
        The class of each row among all `num_classes`: the shape of `logits` without `axis`. Every shard gets
        the same.
    lse : array_like of real numbers
        ``log Σ exp z`` of each row over the classes of all shards, with the same softcap and temperature:
        `RowState.logsumexp`. In float32 it would round the probability of a confident row to 1.
    class_offset : int, optional
        Which of all classes is the first of the shard.
    num_classes : int, optional
        Number of classes in all shards together; by default none comes after this shard.
    **options
        Those of `ShardGradientOptions` (`xent_rs._options`). `weight` has a number for each of all classes.

    Returns
    -------
    ndarray
        `out`, or a new array of the logits' shape, dtype and memory layout.

    Raises
    ------
    TypeError, ValueError, IndexError
        As `cross_entropy_with_grad`; also ValueError for classes beyond `num_classes`, and for an `lse` of
        another shape.

    See Also
    --------
    partial_row_statistics : What finds the log-sum-exp of all classes, and each row's loss.
    cross_entropy_with_grad : The same of logits that are in one place.

    Notes
    -----
    The logits are read once, with a softcap or an `lse` beyond ±1e8 twice, and nothing but the gradient is
    allocated. With p the probability over all classes a gradient is within u·(lse - z + 4)·p of its value and
    what a rounding of `lse` changes; the target's is made of ``exp(lse - z) - 1``, no difference. In float64
    p is right to 2e-296 at best. A row whose `lse` is not finite is NaN. One that is less than a logit of its
    row means nothing, and neither does what is made of it.

    It is the backward pass of tensor parallelism, as in ``loss_parallel`` of ``torch.distributed.tensor`` and
    in Megatron's ``vocab_parallel_cross_entropy`` [1]_. Keras, optax and scikit-learn have nothing like it.

    References
    ----------
    .. [1] M. Shoeybi et al., "Megatron-LM: training multi-billion parameter language models using model
       parallelism", arXiv:1909.08053, 2019, section 3.

    Examples
    --------
    >>> import numpy as np
    >>> from xent_rs import cross_entropy_grad, cross_entropy_with_grad, partial_row_statistics
    >>> logits, targets = np.log([[0.5, 0.25, 0.25], [0.125, 0.75, 0.125]]), [2, 1]
    >>> shards = {0: logits[:, :2], 2: logits[:, 2:]}
    >>> first, second = (
    ...     partial_row_statistics(shard, targets, class_offset=start, num_classes=3)
    ...     for start, shard in shards.items()
    ... )
    >>> lse = first.merge(second).logsumexp
    >>> parts = [
    ...     cross_entropy_grad(shard, targets, lse=lse, class_offset=start, num_classes=3, reduction="sum")
    ...     for start, shard in shards.items()
    ... ]
    >>> np.concatenate(parts, axis=1).round(4)
    array([[ 0.5  ,  0.25 , -0.75 ],
           [ 0.125, -0.25 ,  0.125]])
    >>> loss, whole = cross_entropy_with_grad(logits, targets, reduction="sum")
    >>> np.allclose(np.concatenate(parts, axis=1), whole)
    True
    """
    _GRADIENT.check(options)
    axis = integer({**_GRADIENT.defaults, **options}["axis"], "axis is")
    found = _xent_rs.as_array(logits, "logits")
    rows = row_shape(found, axis)
    here = 0 if rows is None else found.shape[axis]
    # An axis that there is not others say.
    offset, classes = (0, 1) if rows is None else place_of_shard(class_offset, num_classes, here)
    if rows is not None and not here:
        # What is wrong is said of a shard of one class.
        one = np.zeros((*rows, 1), found.dtype)
        out = options.get("out")
        others: dict[str, Any] = {**options, "axis": -1, "out": None}
        if isinstance(out, np.ndarray) and out.shape == found.shape:
            others["out"] = np.zeros(one.shape, out.dtype)
        elif out is not None:
            others["out"] = out
        new = _xent_rs.cross_entropy_grad(one, targets, lse, (0, classes), _GRADIENT, others)
        return np.empty(found.shape, new.dtype) if out is None else out
    return _xent_rs.cross_entropy_grad(found, targets, lse, (offset, classes), _GRADIENT, options)
