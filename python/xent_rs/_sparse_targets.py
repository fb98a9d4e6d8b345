"""Targets that list a few classes of each row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import _xent_rs
from ._bfloat16 import is_bfloat16

Rest: TypeAlias = Literal["zero", "renormalize", "tail"]


@dataclass(frozen=True, eq=False, repr=False, init=False, slots=True)
class SparseTargets:
    r"""Targets that list K classes of each row with their probabilities, as teachers are stored.

    They take the place of the targets of `cross_entropy` and of the teacher's logits of `kl_divergence`, with
    their gradients. Let T be the classes that a row lists, p what it gives them and q the model's
    probabilities, P and Q their sums over T. The loss of a row, and its derivative by the logit of class j:

    =================  ==================================================  ==================================
    `rest`             `kl_divergence`                                     derivative
    =================  ==================================================  ==================================
    ``'zero'``         ``Σ p·log(p / q)``                                  ``P·q[j] - p[j]``
    ``'renormalize'``  the same of ``p / P``                               ``q[j] - p[j] / P``
    ``'tail'``         ``Σ p·log(p/q) + (1 - P)·log((1 - P)/(1 - Q))``     in T ``q[j] - p[j]``, else
                                                                           ``q[j]·(1 - (1 - P)/(1 - Q))``
    =================  ==================================================  ==================================

    where p[j] is 0 outside T, and the sums run over T. `cross_entropy` has ``-Σ p·log q`` and the same
    derivatives.

    Parameters
    ----------
    index : array_like of any integer dtype
        The classes: the shape of the logits without the axis of the classes, and K more. A class that comes
        twice counts with the sum of its probabilities, as those do that were sampled with replacement. -1 is
        no class, for rows that list fewer than K; its probability is not looked at. A row of nothing else is
        ignored: it has loss 0, gradients of 0, whatever its logits hold, and does not count in the mean.
    probability : array_like of float16, bfloat16, float32 or float64
        Their probabilities, in the shape of `index`: finite and at least 0.
    rest : {'zero', 'renormalize', 'tail'}, optional
        What becomes of the other classes. With ``'zero'`` they weigh 0; if P is less than 1 this is no
        divergence, may be negative, and drives the model's share of T up to 1. With ``'renormalize'`` the
        probabilities are divided by their sum first. With ``'tail'`` one more class holds what is left: it is
        the divergence of K + 1 classes, at least 0 and at most that of all. P may be more than 1 by 2⁻¹⁰
        (bfloat16: 2⁻⁷), for rounding: then nothing is left. A row that lists all classes has no others, and
        its probabilities are divided by their sum. This is for `kl_divergence` alone.

    Raises
    ------
    TypeError
        For an `index` of another dtype than integers, a `probability` of another than floats, and what makes
        no array.
    ValueError
        For arrays of different shapes or without an axis, and another `rest`.

    See Also
    --------
    cross_entropy, kl_divergence : They say what is wrong with numbers, which they read.

    Notes
    -----
    The pass over a row is that of class indices; besides, the listed classes are sorted and their logits
    looked up, which counts the more the fewer other classes there are.
    ``1 - Q`` is the sum over the other classes, never a difference, so that confident rows keep their digits.

    The arrays are not copied before a loss reads them.

    The probabilities are taken as they are, whatever the loss's ``temperature``, which divides the model's
    logits: they should be the teacher's at that temperature. From those of temperature 1 they are
    ``probability**(1 / temperature)`` with ``rest='renormalize'``: no difference to a teacher whose other
    classes are masked.

    Elsewhere: ``'zero'`` is verl's ``forward_kl_topk`` before it is cut off at 0; ``'renormalize'`` is
    DistillKit's missing probability ``zero`` and axolotl's ``kd_trainer``; ``'tail'`` is DistillKit's
    ``symmetric_uniform`` but for a constant, and the ghost token of others. With counts over their number as
    probabilities ``'zero'`` is the random sampling of [1]_.

    References
    ----------
    .. [1] Anshumann et al., "Sparse logit sampling: accelerating knowledge distillation in LLMs",
       arXiv:2503.16870, ACL 2025.

    Examples
    --------
    >>> import numpy as np, xent_rs
    >>> logits = np.log([[0.5, 0.25, 0.125, 0.125]])
    >>> targets = xent_rs.SparseTargets([[0, 2]], [[0.5, 0.25]], rest="tail")
    >>> loss, grad = xent_rs.kl_divergence_with_grad(logits, targets)
    >>> print(round(loss, 6))
    0.071921
    >>> grad.round(6)
    array([[ 0.      ,  0.083333, -0.125   ,  0.041667]])

    A class that is sampled twice, and a row that lists one class:

    >>> targets = xent_rs.SparseTargets([[0, 2, 0], [1, -1, -1]], [[1/3, 1/3, 1/3], [1, 0, 0]])
    >>> targets
    SparseTargets(index of shape (2, 3), int64, probability of float64, rest='zero')
    >>> xent_rs.cross_entropy(np.zeros((2, 4)), targets, reduction="none").round(6)
    array([1.386294, 1.386294])
    """

    index: NDArray[np.integer[Any]]
    probability: NDArray[np.floating[Any]]
    rest: Rest

    def __init__(self, index: ArrayLike, probability: ArrayLike, rest: Rest = "zero") -> None:
        if rest not in get_args(Rest):
            raise ValueError(f"rest is {rest!r}; expected 'zero', 'renormalize' or 'tail'")
        indices = _xent_rs.as_array(index, "index")
        probabilities = _xent_rs.as_array(probability, "probability")
        if indices.dtype.kind not in "iu":
            raise TypeError(f"index has dtype {indices.dtype}; expected an integer dtype (classes, or -1)")
        floats = probabilities.dtype.kind == "f" and probabilities.dtype.itemsize <= 8
        if not (floats or is_bfloat16(probabilities.dtype)):
            text = "expected float16, bfloat16, float32 or float64"
            raise TypeError(f"probability has dtype {probabilities.dtype}; {text}")
        if indices.ndim == 0:
            raise ValueError("index has shape (); expected at least one axis, that of the listed classes")
        if probabilities.shape != indices.shape:
            text = f"expected {indices.shape}, the shape of index"
            raise ValueError(f"probability has shape {probabilities.shape}; {text}")
        object.__setattr__(self, "index", indices)
        object.__setattr__(self, "probability", probabilities)
        object.__setattr__(self, "rest", rest)

    if not TYPE_CHECKING:  # type checkers would take it for an array

        def __array__(self, *arguments, **keywords):
            # As an array of objects it would be taken for something else.
            raise TypeError(
                "SparseTargets are no array; cross_entropy, kl_divergence and their gradients take them"
            )

    def __repr__(self) -> str:
        shape, dtypes = self.index.shape, (self.index.dtype, self.probability.dtype)
        index, probability = f"index of shape {shape}, {dtypes[0]}", f"probability of {dtypes[1]}"
        return f"SparseTargets({index}, {probability}, rest={self.rest!r})"
