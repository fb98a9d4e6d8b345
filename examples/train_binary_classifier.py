"""Train a network for a yes-or-no question in NumPy, with loss and gradient from xent_rs.

What a framework would do is little: the layers are two matrix products, Adam is six lines, and the loss with
its gradient is one call. It takes logits, so the network has no sigmoid at its end, and can write the
gradient over them:

    loss, gradient = xent_rs.binary_cross_entropy_with_grad(logits, targets, out=logits)

The data are 10,000 samples of scikit-learn's make_classification, of whose 20 features 10 tell the classes
apart: 6,300 to train on, 2,700 to watch the loss of unseen samples, and 1,000 for the result.
"""

import argparse

import numpy as np
import xent_rs
from sklearn.datasets import make_classification
from tqdm import tqdm

HIDDEN, BATCH, EPOCHS = 64, 100, 30


class Network:
    """One hidden layer of ReLU units, and one output: a logit."""

    def __init__(self, inputs, random):
        self.w1 = random.standard_normal((inputs, HIDDEN), np.float32) * np.float32(2 / inputs) ** 0.5
        self.b1 = np.zeros(HIDDEN, np.float32)
        self.w2 = np.zeros(HIDDEN, np.float32)  # the first logits are 0, and the first loss is log 2
        self.b2 = np.zeros(1, np.float32)
        self.parameters = [self.w1, self.b1, self.w2, self.b2]

    def logits(self, x):
        """Return the logits of samples."""
        return self._hidden(x) @ self.w2 + self.b2

    def gradients(self, x, targets):
        """Return the derivative of the mean loss with respect to each parameter."""
        hidden = self._hidden(x)
        logits = hidden @ self.w2 + self.b2
        _, d_logits = xent_rs.binary_cross_entropy_with_grad(logits, targets, out=logits)
        d_hidden = np.outer(d_logits, self.w2) * (hidden > 0)
        return x.T @ d_hidden, d_hidden.sum(axis=0), d_logits @ hidden, d_logits.sum()

    def _hidden(self, x):
        return np.maximum(x @ self.w1 + self.b1, 0)


class Adam:
    """Adam (D. P. Kingma and J. Ba, 2015), which changes the parameters in place."""

    def __init__(self, parameters, rate=1e-3, decays=(0.9, 0.999)):
        self.rate, self.decays, self.steps = rate, decays, 0
        self.state = [(p, np.zeros_like(p), np.zeros_like(p)) for p in parameters]

    def step(self, gradients):
        """Make one step."""
        self.steps += 1
        (a, b), t = self.decays, self.steps
        for (p, mean, square), gradient in zip(self.state, gradients, strict=True):
            mean += (1 - a) * (gradient - mean)
            square += (1 - b) * (gradient**2 - square)
            p -= self.rate * (mean / (1 - a**t)) / (np.sqrt(square / (1 - b**t)) + 1e-8)


def draw(losses, path):
    """Draw the losses by epoch."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise SystemExit(f"no picture ({error}): pip install matplotlib") from None
    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axes = figure.subplots()
    for values, name, color in zip(losses.T, ("training", "validation"), ("#9aa7b4", "#c8501e"), strict=True):
        axes.plot(values, color=color, linewidth=2, label=name)
    axes.axhline(np.log(2), color="#1c2a38", linestyle="--", linewidth=1)
    axes.text(EPOCHS, np.log(2), "knowing nothing: log 2", ha="right", va="bottom", color="#1c2a38")
    axes.set(xlabel="epoch", ylabel="binary cross-entropy (nats)", xlim=(0, EPOCHS), ylim=(0, 0.8))
    axes.legend(frameon=False, loc="center right")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=200)


def main():
    """Train, print the losses, test, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--plot",
        metavar="FILE",
        default="train_binary_classifier.png",
        help="the picture (default: %(default)s)",
    )
    path = parser.parse_args().plot

    x, y = make_classification(10_000, 20, n_informative=10, random_state=0)
    x, x_validation, x_test = np.split(x.astype(np.float32), [6_300, 9_000])
    y, y_validation, y_test = np.split(y, [6_300, 9_000])

    random = np.random.default_rng(0)
    network = Network(x.shape[1], random)
    adam = Adam(network.parameters)

    def loss(x, targets):
        return xent_rs.binary_cross_entropy(network.logits(x), targets)

    losses = [(loss(x, y), loss(x_validation, y_validation))]
    for _ in tqdm(range(EPOCHS), "train", unit="epoch", disable=None, leave=False):
        for batch in np.split(random.permutation(len(x)), len(x) // BATCH):
            adam.step(network.gradients(x[batch], y[batch]))
        losses.append((loss(x, y), loss(x_validation, y_validation)))

    print("epoch  training loss  validation loss")
    for epoch in (0, 1, 2, 5, 10, 20, EPOCHS):
        print(f"{epoch:5}{losses[epoch][0]:15.4f}{losses[epoch][1]:17.4f}")
    accuracy = np.mean((network.logits(x_test) > 0) == y_test)
    majority = max(y_test.mean(), 1 - y_test.mean())
    print(
        f"test loss {loss(x_test, y_test):.4f}, accuracy {accuracy:.3f} (the larger class is {majority:.3f})"
    )
    draw(np.array(losses), path)
    print(f"Picture: {path}")


if __name__ == "__main__":
    main()
