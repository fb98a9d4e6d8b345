r"""
A classifier trained, with its curves
=====================================

Ten thousand samples of `make_classification <https://scikit-learn.org/stable/modules/generated/sklearn.datasets.make_classification.html>`_,
two classes, 20 features of which 10 tell them apart; a network of one hidden layer in NumPy, trained with Adam. The loss with its
gradient is one call, which writes the gradient over the logits::

    loss, d_logits = xent_rs.binary_cross_entropy_with_grad(logits, targets, out=logits)

Network and optimizer are those of :download:`train_binary_classifier.py </../examples/train_binary_classifier.py>`, a script that does the
same on the command line.
"""

import matplotlib.pyplot as plt
import numpy as np
import xent_rs
from sklearn.datasets import make_classification
from train_binary_classifier import Adam, Network

x, y = make_classification(10_000, 20, n_informative=10, random_state=0)
x, x_validation = np.split(x.astype(np.float32), [7_000])
y, y_validation = np.split(y, [7_000])


# %%
# Before the first epoch and after each, loss and accuracy on the samples it learns from, and on samples it never sees:


def figures(network, x, targets):
    """Return loss and accuracy."""
    logits = network.logits(x)
    return xent_rs.binary_cross_entropy(logits, targets), np.mean(
        (logits > 0) == targets
    )


random = np.random.default_rng(0)
network = Network(x.shape[1], random)
adam = Adam(network.parameters)
training, validation = (
    [figures(network, x, y)],
    [figures(network, x_validation, y_validation)],
)
for _ in range(30):
    for batch in np.split(random.permutation(len(x)), 70):
        adam.step(network.gradients(x[batch], y[batch]))
    training.append(figures(network, x, y))
    validation.append(figures(network, x_validation, y_validation))

print("epoch   training loss   validation loss   validation accuracy")
for epoch in (0, 1, 2, 5, 10, 20, 30):
    print(
        f"{epoch:5}{training[epoch][0]:16.4f}{validation[epoch][0]:18.4f}{validation[epoch][1]:22.3f}"
    )

# %%
# The first loss is log 2 = 0.6931: the last layer starts at 0, all logits are 0, and a model that says "half" of everything knows
# nothing. **A first loss far above the logarithm of the number of classes means that something is wrong** before any training.

figure, (losses, accuracies) = plt.subplots(1, 2)
for course, name, color in (
    (training, "training", "C2"),
    (validation, "validation", "C1"),
):
    losses.plot([loss for loss, _ in course], color=color, label=name)
    accuracies.plot(
        [accuracy for _, accuracy in course], color=color, label=name
    )
losses.axhline(np.log(2), linestyle="--", linewidth=1)
losses.text(30, np.log(2), "knowing nothing: log 2", ha="right", va="bottom")
losses.set(
    title="Binary cross-entropy",
    xlabel="epoch",
    ylabel="nats",
    ylim=(0, 0.8),
    xlim=(0, 30),
)
accuracies.set(title="Accuracy", xlabel="epoch", ylim=(0.45, 1), xlim=(0, 30))
accuracies.legend(loc="lower right")
plt.show()

# %%
# Where the loss is
# -----------------
#
# A mean hides how it is made up. The losses of the validation samples, one by one: most are right and cost next to nothing, and a few
# that are surely wrong make up most of the mean. Accuracy does not see how sure a model is; cross-entropy does, and so it can rise
# again while accuracy stays: then the model grows too sure of its mistakes.

each = xent_rs.binary_cross_entropy(
    network.logits(x_validation), y_validation, reduction="none"
)
share = np.sort(each)[::-1].cumsum() / each.sum()
print(
    f"the worst 5 % of the samples make up {share[len(each) // 20 - 1]:.0%} of the loss"
)

figure, axes = plt.subplots()
axes.hist(each, bins=np.geomspace(1e-4, 10, 60), color="C2")
axes.axvline(np.log(2), color="C1")
axes.text(
    np.log(2) * 1.15, axes.get_ylim()[1] * 0.9, "wrong beyond here", color="C1"
)
axes.set(
    xscale="log",
    title="Losses of the validation samples",
    xlabel="loss (nats)",
    ylabel="samples",
)
plt.show()
