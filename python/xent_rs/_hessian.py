"""Hessians of the softmax losses times vectors, for methods of second order."""

from __future__ import annotations

from typing import TYPE_CHECKING

from numpy.typing import ArrayLike

from . import _xent_rs
from ._options import (
    CrossEntropyHvpOptions,
    Floats,
    ForwardKlDivergenceOptions,
    HessianProductOptions,
    KlDivergenceHvpOptions,
    MeanOptions,
    Options,
    ProductOptions,
)
from ._sparse_targets import SparseTargets

if TYPE_CHECKING:
    from typing_extensions import Unpack

_CROSS_ENTROPY = Options("cross_entropy_hvp", HessianProductOptions, MeanOptions, ProductOptions)


@_CROSS_ENTROPY.describe
def cross_entropy_hvp(
    logits: ArrayLike,
    targets: ArrayLike | SparseTargets,
    vector: ArrayLike,
    **options: Unpack[CrossEntropyHvpOptions],
) -> Floats:
    """Hessian of `cross_entropy` with respect to the logits, times a vector.

    The Hessian of a row's loss is, with p = softmax(z), a matrix of C² entries, which is never formed; times
    the row's vector v it is
    ::

        s·p·[(mass + 2·z_loss·lse)·(v - p·v) + 2·z_loss·(p·v)] / temperature²,    p·v = Σ p v,

    where mass is the sum of what the loss multiplies ``lse - z`` by: for a class y its weight ``w[y]``, which
    is 1 by default. That of the mean is divided by what the mean divides by. It is linear in `vector` and
    symmetric: ``(u * hvp(v)).sum() == (v * hvp(u)).sum()``. The Hessian of `z_loss` 0 is positive
    semidefinite for weights that are not negative, and equal numbers in a row give 0.

    Each row is read from memory once, and so is its vector.

    Parameters
    ----------
    logits, targets : array_like, or SparseTargets
        As for `cross_entropy`.
    vector : array_like of float16, bfloat16, float32 or float64
        One number for each logit. A vector of float64 with other logits, or the other way round, takes
        several times as long.
    **options
        Those of `CrossEntropyHvpOptions` (`xent_rs._options`).

    Returns
    -------
    ndarray
        `out`, or a new array of the logits' shape, dtype and memory layout. With ``reduction='none'`` row i
        is the Hessian of loss i times row i of `vector`. An ignored row and a ``-inf`` class have 0,
        whatever their numbers are.

    Raises
    ------
    TypeError, ValueError, IndexError
        As `cross_entropy_with_grad`, also for a `vector` of another dtype or shape. There is none with a
        softcap, and none of focal and poly losses.

    See Also
    --------
    cross_entropy_with_grad_hess : The loss, its gradient and the diagonal of the Hessian.
    kl_divergence_hvp : The same of the divergence from a teacher.

    Notes
    -----
    With g = u·(max z - z + ln C + 4), a product is within ``s·mass·p·(g·|v - p·v| + Σ g·p·|v - v[top]|) /
    temperature²`` of its value, v[top] being the number of the largest logit: a sum of the others'
    probabilities alone, so that confident rows keep their digits. For `binary_cross_entropy` the Hessian is
    diagonal: ``hess * vector``.

    ``scipy.optimize.minimize`` calls it ``hessp``, of methods 'Newton-CG' and 'trust-ncg'. In PyTorch it
    comes from ``torch.autograd.functional.hvp``, for optax from ``jax.jvp(jax.grad(loss), (x,), (v,))[1]``,
    and for Keras from two ``tf.GradientTape``. In scikit-learn the solver 'newton-cg' of
    ``LogisticRegression`` has its own.

    References
    ----------
    .. [1] B. A. Pearlmutter, "Fast exact multiplication by the Hessian", Neural Computation 6(1), 1994.
    .. [2] C. M. Bishop, "Pattern Recognition and Machine Learning", Springer, 2006, equation 4.110.

    Examples
    --------
    >>> import numpy as np, xent_rs
    >>> logits = np.log([[0.2, 0.3, 0.5]])
    >>> xent_rs.cross_entropy_hvp(logits, [2], [[1.0, 0.0, 0.0]]).round(6)
    array([[ 0.16, -0.06, -0.1 ]])

    Softmax regression by Newton's method, whose systems are solved by conjugate gradients:

    >>> from scipy.optimize import minimize
    >>> x = np.array([[1.0, 0.2], [1.0, -1.0], [1.0, 0.9], [1.0, -0.1], [1.0, 2.0], [1.0, -0.4]])
    >>> y, penalty = np.array([1, 0, 2, 0, 2, 1]), 1e-3
    >>> def loss(w):
    ...     w = w.reshape(2, 3)
    ...     value, of_logits = xent_rs.cross_entropy_with_grad(x @ w, y)
    ...     return value + penalty * (w**2).sum(), (x.T @ of_logits + 2 * penalty * w).ravel()
    >>> def hessp(w, p):
    ...     w, p = w.reshape(2, 3), p.reshape(2, 3)
    ...     return (x.T @ xent_rs.cross_entropy_hvp(x @ w, y, x @ p) + 2 * penalty * p).ravel()
    >>> found = minimize(loss, np.zeros(6), jac=True, hessp=hessp, method="Newton-CG")
    >>> bool(np.abs(loss(found.x)[1]).max() < 1e-6)
    True
    """
    return _xent_rs.cross_entropy_hvp(logits, targets, vector, _CROSS_ENTROPY, options)


_KL_DIVERGENCE = Options("kl_divergence_hvp", ForwardKlDivergenceOptions, ProductOptions)


@_KL_DIVERGENCE.describe
def kl_divergence_hvp(
    logits: ArrayLike,
    target_logits: ArrayLike | SparseTargets,
    vector: ArrayLike,
    **options: Unpack[KlDivergenceHvpOptions],
) -> Floats:
    """Hessian of `kl_divergence` with respect to the model's logits, times a vector.

    With p = softmax(x / T), the model's, it is ``s·p·(v - Σ p v) / T²`` for each row, that of
    `cross_entropy`, whatever the teacher: of its logits nothing but the shape is looked at. Of
    `SparseTargets` it is multiplied by the sum of what is listed, and rows that list nothing have 0.

    Parameters
    ----------
    logits, target_logits : array_like, or SparseTargets
        As for `kl_divergence`; of `SparseTargets` those whose `rest` is 'zero' or 'renormalize'.
    vector : array_like of float16, bfloat16, float32 or float64
        One number for each of the model's logits; see `cross_entropy_hvp`.
    **options
        Those of `KlDivergenceHvpOptions` (`xent_rs._options`).

    Returns
    -------
    ndarray
        `out`, or a new array of the logits' shape, dtype and memory layout.

    Raises
    ------
    TypeError, ValueError, IndexError
        As `cross_entropy_hvp`; ValueError for `SparseTargets` with ``rest='tail'``.

    See Also
    --------
    cross_entropy_hvp : With its error.

    Notes
    -----
    It is also the Fisher information of the model's distribution times the vector, and so the product of
    natural gradients. What it comes from in PyTorch, optax, Keras and scikit-learn is as for
    `cross_entropy_hvp`.

    References
    ----------
    .. [1] J. Martens, "New insights and perspectives on the natural gradient method", JMLR 21, 2020,
       section 9.

    Examples
    --------
    >>> import numpy as np, xent_rs
    >>> model, teacher = np.log([[0.5, 0.25, 0.25]]), np.log([[0.25, 0.25, 0.5]])
    >>> xent_rs.kl_divergence_hvp(model, teacher, [[1.0, 0.0, 0.0]])
    array([[ 0.25 , -0.125, -0.125]])
    """
    return _xent_rs.kl_divergence_hvp(logits, target_logits, vector, _KL_DIVERGENCE, options)
