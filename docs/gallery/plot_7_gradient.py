r"""
The gradient, formula by formula
================================

Why is the derivative of the most used loss nothing but *probability less target*? Here it is derived step by step, and each formula is
checked on numbers: against a difference quotient, which knows nothing of formulas.

.. math:: \frac{\partial f}{\partial z_j} \approx \frac{f(z + h e_j) - f(z - h e_j)}{2h}
"""

import matplotlib.pyplot as plt
import numpy as np
import xent_rs


def quotient(f, z, h=1e-5):
    """Return the derivatives of f by each entry of z: its shape, and that of what f returns before it."""
    columns = []
    for entry in np.ndindex(z.shape):
        step = np.zeros_like(z)
        step[entry] = h
        columns.append((f(z + step) - f(z - step)) / (2 * h))
    return np.stack(columns, axis=-1).reshape(*np.shape(columns[0]), *z.shape)


def check(what, formula, numeric, tolerance=1e-9):
    """Print how far a formula is from its difference quotient; fail if that is more than rounding."""
    off = np.abs(formula - numeric).max()
    print(f"{what}: {off:.1e} apart")
    assert off < tolerance


z = np.array([2.0, -1.0, 0.5, 0.0])
y = 2
one_hot = np.eye(4)[y]

# %%
# Softmax
# -------
#
# .. math:: p_i = \frac{e^{z_i}}{\sum_k e^{z_k}}
#
# By the quotient rule, for :math:`i = j` and for :math:`i \ne j`,
#
# .. math:: \frac{\partial p_i}{\partial z_i} = \frac{e^{z_i} \sum_k e^{z_k} - e^{z_i} e^{z_i}}{(\sum_k e^{z_k})^2} = p_i (1 - p_i)
#
# .. math:: \frac{\partial p_i}{\partial z_j} = \frac{0 - e^{z_i} e^{z_j}}{(\sum_k e^{z_k})^2} = - p_i p_j
#
# or in one line, with :math:`[i = j]` for 1 if they are equal and 0 if not, :math:`p_i([i = j] - p_j)`.

p = xent_rs.softmax(z)
jacobian = np.diag(p) - np.outer(p, p)
check("softmax", jacobian, quotient(xent_rs.softmax, z))

# %%
# Minus the logarithm
# -------------------
#
# The loss is :math:`L = -\log p_y`. By the chain rule, and here the factor :math:`p_y` goes away,
#
# .. math:: \frac{\partial L}{\partial z_j} = -\frac{1}{p_y} \frac{\partial p_y}{\partial z_j} = -\frac{1}{p_y}\, p_y ([y = j] - p_j) = p_j - [y = j]


def loss(z):
    """Return the loss of class y."""
    return xent_rs.cross_entropy(z, y)


check("cross-entropy", p - one_hot, quotient(loss, z))
_, grad = xent_rs.cross_entropy_with_grad(z, y)
print(
    f"and as the package computes it: {np.abs(grad - (p - one_hot)).max():.1e} apart"
)

# %%
# The same, shorter
# -----------------
#
# Without ever writing a quotient: :math:`L = \mathrm{lse}(z) - z_y` with the log-sum-exp, whose derivative is softmax.
#
# .. math:: \mathrm{lse}(z) = \log \sum_k e^{z_k}, \qquad \frac{\partial\, \mathrm{lse}}{\partial z_j} = \frac{e^{z_j}}{\sum_k e^{z_k}} = p_j

check("log-sum-exp", p, quotient(xent_rs.logsumexp, z))

# %%
# The entries add up to 0: adding the same number to all logits changes no probability, so that it cannot change the loss.

print(f"sum of the gradient: {abs(grad.sum()):.0e}")

# %%
# Soft targets
# ------------
#
# With probabilities :math:`t` as the target, :math:`L = \sum_c t_c (\mathrm{lse} - z_c)`, and
#
# .. math:: \frac{\partial L}{\partial z_j} = p_j \sum_c t_c - t_j
#
# which is :math:`p - t` where they add up to 1. Label smoothing is such a target, :math:`(1 - \varepsilon)` on the class and
# :math:`\varepsilon / C` on each; the divergence from a teacher has the same gradient, since the teacher's entropy is constant.

t = np.array([0.1, 0.2, 0.6, 0.1])
check(
    "probabilities", p - t, quotient(lambda z: xent_rs.cross_entropy(z, t), z)
)
smoothed = 0.9 * one_hot + 0.1 / 4
check(
    "label smoothing",
    p - smoothed,
    quotient(lambda z: xent_rs.cross_entropy(z, y, label_smoothing=0.1), z),
)
check(
    "KL divergence",
    p - t,
    quotient(lambda z: xent_rs.kl_divergence(z, np.log(t)), z),
)

# %%
# Temperature, softcap, z-loss
# ----------------------------
#
# What is done to the logits first multiplies by its own derivative: :math:`z / T` by :math:`1 / T`, and :math:`c \tanh(z / c)` by
# :math:`1 - \tanh^2(z / c)`. The z-loss :math:`\alpha\, \mathrm{lse}^2` adds :math:`2 \alpha\, \mathrm{lse}\; p`.

T, c, alpha = 2.0, 3.0, 0.1
check(
    "temperature",
    (xent_rs.softmax(z / T) - one_hot) / T,
    quotient(lambda z: xent_rs.cross_entropy(z, y, temperature=T), z),
)
capped = c * np.tanh(z / c)
slope = 1 - np.tanh(z / c) ** 2
check(
    "softcap",
    (xent_rs.softmax(capped) - one_hot) * slope,
    quotient(lambda z: xent_rs.cross_entropy(z, y, softcap=c), z),
)
check(
    "z-loss",
    p - one_hot + 2 * alpha * xent_rs.logsumexp(z) * p,
    quotient(lambda z: xent_rs.cross_entropy(z, y, z_loss=alpha), z),
)

# %%
# Yes or no
# ---------
#
# With two classes of which one has the logit 0, softmax is the sigmoid, and the gradient is :math:`\sigma(x) - t` again.

answers = np.array([1, 0, 0, 1])
sigmoid = 1 / (1 + np.exp(-z))
check(
    "binary cross-entropy",
    sigmoid - answers,
    quotient(
        lambda z: xent_rs.binary_cross_entropy(z, answers, reduction="sum"), z
    ),
)

# %%
# The second derivative
# ---------------------
#
# The target is constant, so that the second derivative is that of softmax, with :math:`p(1 - p)` on the diagonal. Its eigenvalues are
# never negative: the loss curves upwards everywhere, and has no valley but one. (One of them is 0, along the direction in which all
# logits grow alike.) Boosting asks for the diagonal.


def gradient(z):
    """Return the gradient of the loss."""
    return xent_rs.cross_entropy_with_grad(z, y)[1]


check("Hessian", jacobian, quotient(gradient, z))
_, _, diagonal = xent_rs.cross_entropy_with_grad_hess(z, y)
print(
    f"its diagonal, as the package has it: {np.abs(diagonal - p * (1 - p)).max():.1e} apart"
)
print(f"its eigenvalues: {np.abs(np.linalg.eigvalsh(jacobian)).round(3)}")

# %%
# To the weights
# --------------
#
# A layer :math:`Z = XW` of N rows, and the mean of their losses. The chain rule once more:
#
# .. math:: \frac{\partial L}{\partial W} = X^T \frac{P - Y}{N}
#
# This is all of back-propagation for the last layer: **one matrix product with what** `cross_entropy_with_grad` **returns**.

random = np.random.default_rng(0)
X, W, labels = (
    random.standard_normal((8, 3)),
    random.standard_normal((3, 4)),
    random.integers(4, size=8),
)
_, d_logits = xent_rs.cross_entropy_with_grad(X @ W, labels)
check(
    "weights",
    X.T @ d_logits,
    quotient(lambda W: xent_rs.cross_entropy(X @ W, labels), W),
)

# %%
# How small a step
# ----------------
#
# Why h = 1e-5? The quotient's own error shrinks with h², and what rounding makes of it grows with 1/h. Between the two lies the best that
# a numerical check can do; a wrong formula is off by far more.

steps = np.geomspace(1e-12, 1e-1, 56)
errors = [np.abs(quotient(loss, z, h) - (p - one_hot)).max() for h in steps]
figure, axes = plt.subplots()
axes.loglog(steps, errors, color="C1")
axes.axvline(1e-5, linestyle="--", linewidth=1)
axes.text(1.2e-5, max(errors) / 3, "h = 1e-5")
axes.set(
    title="Difference quotient against p - [y = j]",
    xlabel="step h",
    ylabel="largest difference",
)
plt.show()
