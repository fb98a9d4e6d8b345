"""What a classifier loses when its weights are rounded, as those of language models are to fit into memory.

A network of scikit-learn learns to read handwritten digits. Its weights are then rounded to float16, and to
integers of 8 and of 4 bits with one scale for each unit. The logits of all four on digits that none has seen
go into files, and the files into

    xent-rs compare reference.npy int4.npy targets.npy

which is how two language models are compared, too: each row is then a token.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import xent_rs


def trained():
    """Return the weights and biases of a network, and digits that it has not seen with their labels."""
    try:
        from sklearn.datasets import load_digits
        from sklearn.neural_network import MLPClassifier
    except ImportError as error:
        raise SystemExit(f"this example needs scikit-learn ({error}): pip install scikit-learn") from None
    images, labels = load_digits(return_X_y=True)
    images = images / 16
    split = len(images) // 2
    model = MLPClassifier((64,), alpha=0.1, max_iter=1000, random_state=0).fit(images[:split], labels[:split])
    return list(zip(model.coefs_, model.intercepts_, strict=True)), images[split:], labels[split:]


def logits(layers, images, rounded=lambda weights: weights):
    """Return what the network says of images, with weights that are rounded."""
    (first, first_bias), (last, last_bias) = layers
    hidden = np.maximum(images @ rounded(first) + first_bias, 0)
    return (hidden @ rounded(last) + last_bias).astype(np.float32)


def to_float16(weights):
    """Round to float16."""
    return weights.astype(np.float16).astype(np.float64)


def to_integers(bits):
    """Return what rounds to integers of so many bits, with one scale for each unit."""
    largest = 2 ** (bits - 1) - 1

    def rounded(weights):
        scale = np.abs(weights).max(axis=0) / largest
        return np.round(weights / scale) * scale

    return rounded


ROUNDED = {"float16": to_float16, "int8": to_integers(8), "int4": to_integers(4)}


def main():
    """Train, round, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    name = "compare_rounded_weights.png"
    parser.add_argument(
        "--plot", metavar="FILE", type=Path, default=name, help="the picture (default: %(default)s)"
    )
    picture = parser.parse_args().plot
    layers, images, labels = trained()
    reference = logits(layers, images)
    print("weights       KL (nats)              same digit           perplexity, ratio")
    with tempfile.TemporaryDirectory() as folder:
        np.save(f"{folder}/reference.npy", reference)
        np.save(f"{folder}/targets.npy", labels)
        for name, rounded in ROUNDED.items():
            candidate = logits(layers, images, rounded)
            np.save(f"{folder}/{name}.npy", candidate)
            found = xent_rs.compare(reference, candidate, labels)
            kl, top, ratio = found.kl, found.same_top, found.perplexity_ratio
            print(
                f"{name:10} {kl.value:.3e} +- {kl.error:.1e}   "
                f"{top.value:8.3%} +- {top.error:.3%}   {ratio.value:.6f} +- {ratio.error:.6f}"
            )
        print()
        command = ["compare", "reference.npy", "int4.npy", "targets.npy", "--plot", str(picture.resolve())]
        print(f"$ xent-rs {' '.join(command[:-1])} {picture}", flush=True)
        done = subprocess.run([sys.executable, "-m", "xent_rs", *command], cwd=folder, check=False)
    if done.returncode:
        raise SystemExit(done.returncode)
    print(f"\nPicture: {picture}")


if __name__ == "__main__":
    main()
