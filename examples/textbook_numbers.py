"""The numbers with which textbooks explain entropy and cross-entropy.

An event of probability p is a surprise of -log p: in nats with the natural logarithm, in bits with that to
base 2. Entropy H(p) is the mean surprise of a source, cross-entropy H(p, q) that of someone who believes q of
a source that follows p, and KL(p, q) = H(p, q) - H(p) is what the wrong belief costs.

xent_rs.probability takes probabilities. The losses of xent_rs take logits, and agree with it: log p are
logits of p, and log p - log(1 - p) is the logit of one probability p.
"""

import argparse

import numpy as np
import xent_rs
from xent_rs import probability


def show(text, value, unit="nats"):
    """Print one number."""
    print(f"  {text:55}{value:7.4f} {unit}")


def one_hot():
    """Show the loss of a guess at one of three classes."""
    target, guess = np.array([0.0, 1.0, 0.0]), np.array([0.228, 0.619, 0.153])
    print("One-hot: the second of three classes is right; the guess is (0.228, 0.619, 0.153)")
    show("cross-entropy = -log 0.619, cut to 0.479 in textbooks", probability.cross_entropy(target, guess))
    show("xent_rs.cross_entropy(log q, one-hot target)", xent_rs.cross_entropy(np.log(guess), target))
    show("xent_rs.cross_entropy(log q, class 1)", xent_rs.cross_entropy(np.log(guess), 1))


def coins():
    """Show entropies in bits and nats."""
    print("Coins")
    show("entropy of a fair coin", probability.entropy([0.5, 0.5], base=2), "bits")
    show("the same in nats: the loss of knowing nothing", probability.entropy([0.5, 0.5]))
    show("entropy of a coin that falls heads 9 times in 10", probability.entropy([0.9, 0.1], base=2), "bits")
    show("surprise when that coin falls tails", probability.self_information(0.1, base=2), "bits")


def n_hot():
    """Show the losses of a picture with several labels: a yes-or-no question for each."""
    labels, targets, p = ("sky", "sea", "boat", "dog"), np.array([1, 1, 1, 0]), np.array([0.9, 0.8, 0.3, 0.1])
    logits = np.log(p) - np.log1p(-p)
    print("N-hot: a picture of sky, sea and a boat, but no dog")
    losses = xent_rs.binary_cross_entropy(logits, targets, reduction="none")
    for label, target, guess, loss in zip(labels, targets, p, losses, strict=True):
        show(f"{label}, {'there' if target else 'not there'}, believed at {guess:.0%}", loss)
    show("mean: xent_rs.binary_cross_entropy(logits, n-hot)", xent_rs.binary_cross_entropy(logits, targets))
    show("the same from probabilities", probability.binary_cross_entropy(p, targets))


WEATHER, BELIEF = np.array([0.5, 0.25, 0.25]), np.array([0.25, 0.25, 0.5])


def divergence():
    """Show that cross-entropy is entropy and divergence."""
    p, q = WEATHER, BELIEF
    print("A wrong belief: sun, cloud and rain have p = (1/2, 1/4, 1/4); the belief is q = (1/4, 1/4, 1/2)")
    show("cross-entropy H(p, q)", probability.cross_entropy(p, q, base=2), "bits")
    show("entropy H(p)", probability.entropy(p, base=2), "bits")
    show("divergence KL(p, q), the difference", probability.kl_divergence(p, q, base=2), "bits")
    show(
        "xent_rs.kl_divergence(log q, log p) / log 2",
        xent_rs.kl_divergence(np.log(q), np.log(p)) / np.log(2),
        "bits",
    )


def draw(path):
    """Draw the loss of a one-hot target, the entropy of a coin, and the two distributions of the weather."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise SystemExit(f"no picture ({error}): pip install matplotlib") from None
    line, point, pale = "#1c2a38", "#c8501e", "#9aa7b4"
    figure = Figure(figsize=(10, 3.2), layout="constrained")
    loss, coin, bars = figure.subplots(1, 3)

    p = np.linspace(0.005, 1, 200)
    loss.plot(p, probability.self_information(p), color=line, linewidth=2)
    loss.plot(0.619, -np.log(0.619), "o", color=point)
    loss.annotate(
        "q = 0.619: 0.4797", (0.619, -np.log(0.619)), (-30, 20), textcoords="offset points", color=point
    )
    loss.set(title="Loss of a one-hot target, -log q", xlabel="q of the target", ylabel="nats")
    loss.set(xlim=(0, 1.02), ylim=(0, 5))

    p = np.linspace(0, 1, 201)
    coin.plot(p, probability.entropy(np.stack([p, 1 - p], axis=-1), base=2), color=line, linewidth=2)
    coin.plot(0.5, 1, "o", color=point)
    coin.annotate("fair: 1 bit", (0.5, 1), (0, 7), textcoords="offset points", ha="center", color=point)
    coin.set(title="Entropy of a coin", xlabel="p of heads", ylabel="bits", xlim=(0, 1), ylim=(0, 1.2))

    places = np.arange(3)
    bars.bar(places - 0.2, WEATHER, 0.4, color=pale, label="p, the weather")
    bars.bar(places + 0.2, BELIEF, 0.4, color=point, label="q, the belief")
    bars.set_xticks(places, ["sun", "cloud", "rain"])
    bars.set(title="H(p, q) = H(p) + KL(p, q)", ylabel="probability", ylim=(0, 0.75))
    bars.legend(frameon=False, loc="upper center", title="1.75 bits = 1.5 + 0.25")
    for axes in (loss, coin, bars):
        axes.spines[["top", "right"]].set_visible(False)
        axes.title.set_fontsize(11)
    figure.savefig(path, dpi=200)


def main():
    """Print the numbers, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--plot", metavar="FILE", default="textbook_numbers.png", help="the picture (default: %(default)s)"
    )
    path = parser.parse_args().plot
    for part in (one_hot, coins, n_hot, divergence):
        part()
    draw(path)
    print(f"Picture: {path}")


if __name__ == "__main__":
    main()
