r"""
Several labels at once: n-hot targets
=====================================

A picture of sky, sea and a boat, but no dog. Its labels do not exclude each other, so that softmax, whose probabilities add up to 1,
is the wrong question. Each label is a yes-or-no question of its own, with a sigmoid :math:`\sigma` and its own cross-entropy:

.. math:: -t \log \sigma(x) - (1 - t) \log(1 - \sigma(x))
"""

import matplotlib.pyplot as plt
import numpy as np
import xent_rs
from sklearn.datasets import make_multilabel_classification

labels = ("sky", "sea", "boat", "dog")
targets = np.array([1, 1, 1, 0])  # n-hot
p = np.array([0.9, 0.8, 0.3, 0.1])
logits = np.log(p) - np.log1p(-p)  # the logit of a probability

losses = xent_rs.binary_cross_entropy(logits, targets, reduction="none")
for label, target, guess, loss in zip(labels, targets, p, losses, strict=True):
    print(
        f"{label:5} {'there' if target else 'not there':10} believed at {guess:.0%}: {loss:.4f}"
    )
print("the mean:", round(xent_rs.binary_cross_entropy(logits, targets), 4))

# %%
# The boat costs most: it is there, and the model gave it 30 %. `xent_rs.probability.binary_cross_entropy` has the same number from
# probabilities:

print(f"{xent_rs.probability.binary_cross_entropy(p, targets):.4f}")

# %%
# Why not softmax
# ---------------
#
# Softmax would have to share one unit of probability among three labels that are all there. Its best answer to the target (1, 1, 1, 0)
# is a third for each, and its loss is never below log 3, however good the model.

shared = targets / targets.sum()
best = np.array([50.0, 50.0, 50.0, -50.0])
print("softmax, at its best:", round(xent_rs.cross_entropy(best, shared), 4))
print("yes or no, each:     ", xent_rs.binary_cross_entropy(best, targets))

# %%
# Trained
# -------
#
# Documents with some of five labels, told from their words. A linear model, all five losses and their gradient in one call:

x, y = make_multilabel_classification(
    3_000, 20, n_classes=5, n_labels=2, random_state=0
)
x = (x - x.mean(axis=0)) / x.std(axis=0)
x, x_test, y, y_test = x[:2_000], x[2_000:], y[:2_000], y[2_000:]


def train(pos_weight=None, steps=200):
    """Return the weights after training, and the loss of each step."""
    weights, course = np.zeros((x.shape[1] + 1, 5)), []
    inputs = np.column_stack([x, np.ones(len(x))])
    for _ in range(steps):
        loss, gradient = xent_rs.binary_cross_entropy_with_grad(
            inputs @ weights, y, pos_weight=pos_weight
        )
        weights -= 3.0 * inputs.T @ gradient
        course.append(loss)
    return weights, course


weights, course = train()
test_logits = np.column_stack([x_test, np.ones(len(x_test))]) @ weights
of_label = xent_rs.binary_cross_entropy(
    test_logits, y_test, reduction="none"
).mean(axis=0)
for label in range(5):
    found = (test_logits[:, label] > 0)[y_test[:, label] == 1].mean()
    print(
        f"label {label}: in {y_test[:, label].mean():.0%} of the documents, found in {found:.0%} of them, loss {of_label[label]:.3f}"
    )

# %%
# Rare labels
# -----------
#
# A label that is rarely there is cheapest to deny. `pos_weight` multiplies the loss where the answer is yes; with the number of noes for
# each yes the two sides count alike, more is found, and more is found that is not there.

often = y.mean(axis=0)
heavier, _ = train(pos_weight=(1 - often) / often)
heavier_logits = np.column_stack([x_test, np.ones(len(x_test))]) @ heavier
recall = [
    [(given[:, label] > 0)[y_test[:, label] == 1].mean() for label in range(5)]
    for given in (test_logits, heavier_logits)
]
precision = [
    [y_test[:, label][given[:, label] > 0].mean() for label in range(5)]
    for given in (test_logits, heavier_logits)
]

figure, panels = plt.subplots(1, 2, sharey=True)
for axes, title, (plain, weighted) in zip(
    panels,
    ("Found, of what is there", "There, of what is found"),
    (recall, precision),
    strict=True,
):
    axes.bar(np.arange(5) - 0.2, plain, 0.4, color="C2", label="plain")
    axes.bar(np.arange(5) + 0.2, weighted, 0.4, color="C1", label="pos_weight")
    axes.set(title=title, xlabel="label", ylim=(0, 1.15))
    axes.set_xticks(range(5))
panels[0].legend(loc="upper left", ncols=2)
plt.show()

# %%
# Labels nobody knows
# -------------------
#
# Where nobody said whether a label holds, `ignore_index` leaves the element out, of the mean too:

known = np.array([1, -1, 1, 0])  # nobody looked for the sea
print(
    xent_rs.binary_cross_entropy(
        logits, known, ignore_index=-1, reduction="none"
    ).round(4)
)
