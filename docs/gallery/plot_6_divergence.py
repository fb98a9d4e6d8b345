r"""
KL divergence, and why it has a direction
=========================================

What a wrong belief costs beyond what even the right one would is the Kullback-Leibler divergence:

.. math:: KL(p, q) = H(p, q) - H(p) = \sum_i p_i \log \frac{p_i}{q_i}

Sun, cloud and rain come with the probabilities ½, ¼ and ¼; someone believes ¼, ¼ and ½.
"""

import matplotlib.pyplot as plt
import numpy as np
import xent_rs
from xent_rs import probability

weather, belief = np.array([0.5, 0.25, 0.25]), np.array([0.25, 0.25, 0.5])
print(
    f"cross-entropy: {probability.cross_entropy(weather, belief, base=2):.2f} bits"
)
print(f"entropy:       {probability.entropy(weather, base=2):.2f} bits")
print(
    f"divergence:    {probability.kl_divergence(weather, belief, base=2):.2f} bits"
)

# %%
# From logits
# -----------
#
# `xent_rs.kl_divergence` takes the logits of the model first and those of the truth second, as the losses of frameworks do. Models that
# are close have divergences far below the rounding of their losses, so that a difference of two losses would say nothing; here it is
# summed of terms that are never negative.

random = np.random.default_rng(0)
teacher = random.standard_normal(50_000, np.float32)
close = (teacher + 1e-4 * random.standard_normal(50_000)).astype(np.float32)
p = xent_rs.softmax(teacher)
difference = xent_rs.cross_entropy(close, p) - xent_rs.cross_entropy(teacher, p)
exact = probability.kl_divergence(
    *xent_rs.softmax(np.stack([teacher, close]).astype(np.float64))
)
print(f"difference of two losses: {difference:.3g}")
print(f"kl_divergence:            {xent_rs.kl_divergence(close, teacher):.6g}")
print(f"in float64:               {exact:.6g}")

# %%
# It is no distance
# -----------------
#
# The two directions differ, most of all where one side says "never":

sure, unsure = np.array([1.0, 0.0]), np.array([0.5, 0.5])
print(
    f"the truth is sure, the belief is not: {probability.kl_divergence(sure, unsure, base=2):.0f} bit"
)
print(
    f"the truth is not, the belief is sure: {probability.kl_divergence(unsure, sure, base=2):.0f} bits"
)

# %%
# One hump for two
# ----------------
#
# What that means for training: a truth with two humps, and a model that can have one only, a normal distribution of any mean and width.
# All candidates are rows of one array, and each divergence is one call.

points = np.linspace(-6, 6, 241)
log_truth = np.logaddexp(
    -0.5 * ((points + 2.2) / 0.8) ** 2,
    np.log(0.7) - 0.5 * ((points - 2.2) / 0.6) ** 2,
)
means, widths = np.meshgrid(
    np.linspace(-4, 4, 161), np.linspace(0.3, 4, 149), indexing="ij"
)
candidates = (
    -0.5 * ((points - means[..., None]) / widths[..., None]) ** 2
)  # logits, (mean, width, point)

truths = np.broadcast_to(log_truth, candidates.shape)
forward = xent_rs.kl_divergence(
    candidates, truths, reduction="none"
)  # KL(truth, model)
backward = xent_rs.kl_divergence(
    truths, candidates, reduction="none"
)  # KL(model, truth)
for name, divergence in (
    ("KL(truth, model)", forward),
    ("KL(model, truth)", backward),
):
    best = np.unravel_index(divergence.argmin(), divergence.shape)
    print(
        f"{name}: least at the mean {means[best]:+.2f} and the width {widths[best]:.2f}"
    )

# %%
# KL(truth, model), which maximum likelihood, cross-entropy and distillation minimise, punishes a model that gives no probability where
# the truth has some: it **covers** both humps, and the valley between them. KL(model, truth) punishes probability where the truth has
# none: it **picks** one hump and is silent about the other.

figure, panels = plt.subplots(1, 2, sharey=True)
for axes, title, divergence in zip(
    panels,
    ("least KL(truth, model)", "least KL(model, truth)"),
    (forward, backward),
    strict=True,
):
    best = np.unravel_index(divergence.argmin(), divergence.shape)
    axes.fill_between(
        points,
        xent_rs.softmax(log_truth),
        color="C2",
        alpha=0.6,
        linewidth=0,
        label="truth",
    )
    axes.plot(
        points, xent_rs.softmax(candidates[best]), color="C1", label="model"
    )
    axes.set(title=title, xlim=(-6, 6), ylim=(0, 0.026), yticks=[])
panels[0].legend(loc="upper left")
plt.show()

# %%
# The landscapes of the two, over all candidates, like mountains on a map: each line is one height, and the dot is the deepest place. The
# second has a valley for each hump, of which one is the deeper.

figure, panels = plt.subplots(1, 2, sharey=True)
for axes, title, divergence in zip(
    panels,
    ("KL(truth, model)", "KL(model, truth)"),
    (forward, backward),
    strict=True,
):
    heights = divergence.min() + np.array([0.03, 0.1, 0.25, 0.5, 1, 2, 4, 8])
    lines = axes.contour(
        means, widths, divergence, levels=heights, colors="C0", linewidths=1
    )
    axes.clabel(lines, fmt="%.1f", fontsize=8)
    best = np.unravel_index(divergence.argmin(), divergence.shape)
    axes.plot(means[best], widths[best], "o", color="C1")
    axes.set(title=title, xlabel="mean")
panels[0].set_ylabel("width")
plt.show()
