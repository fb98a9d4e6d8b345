"""Train the two networks of a tutorial, in Keras and in PyTorch, with their own loss and with xent_rs.

One line differs: where a network gets its loss.

    keras.losses.SparseCategoricalCrossentropy(from_logits=True)    torch.nn.CrossEntropyLoss()
    xent_rs.keras.SparseCategoricalCrossentropy(from_logits=True)   xent_rs.torch.CrossEntropyLoss()

The data are 10,000 samples of scikit-learn's make_classification, of whose 20 features 10 tell two classes
apart: 8,000 to train on, 2,000 to watch. The network has two hidden layers of 10 units and learns by Adam for
20 epochs. Its initial weights and its batches are drawn once, so that all trainings have the same, and the
curves of the two losses lie on each other: what differs is the rounding of float32.

Keras computes with TensorFlow, or with what KERAS_BACKEND says. What is not installed is left out.
"""

import argparse
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from tqdm import tqdm

HIDDEN, BATCH, RATE = (10, 10), 100, 1e-3

# Two logits and class indices, rather than one logit and a binary loss: softmax of (a, b) is the sigmoid of
# b - a, so the loss is the same for two classes, and this code serves any number of them.
CLASSES = 2


@dataclass
class Problem:
    """What all trainings have in common."""

    training: tuple[np.ndarray, np.ndarray]  # samples and their classes
    validation: tuple[np.ndarray, np.ndarray]
    weights: list[np.ndarray]  # of each layer (inputs, units), then (units,)
    orders: np.ndarray  # of each epoch, the order of the samples; each BATCH of them is a batch


def pose(epochs):
    """Make the data, the initial weights and the order of the samples."""
    from sklearn.datasets import make_classification

    x, y = make_classification(10_000, 20, n_informative=10, n_classes=CLASSES, random_state=0)
    (x, x_validation), (y, y_validation) = np.split(x.astype(np.float32), [8_000]), np.split(y, [8_000])
    random = np.random.default_rng(0)
    sizes, weights = (x.shape[1], *HIDDEN, CLASSES), []
    for inputs, units in pairwise(sizes):
        weights.append(random.standard_normal((inputs, units), np.float32) * np.float32(2 / inputs) ** 0.5)
        weights.append(np.zeros(units, np.float32))
    orders = np.array([random.permutation(len(x)) for _ in range(epochs)])
    return Problem((x, y), (x_validation, y_validation), weights, orders)


# Each framework gives its own loss, that of xent_rs, and a function which trains with one of them: it yields
# the mean loss over the batches of an epoch, and the loss of the unseen samples after it.


def in_keras(problem):
    """Train with compile and fit."""
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    import keras
    import xent_rs.keras

    def train(loss):
        network = keras.Sequential(
            [
                keras.Input(problem.training[0].shape[1:]),
                *(keras.layers.Dense(units, activation="relu") for units in HIDDEN),
                keras.layers.Dense(CLASSES),
            ]
        )
        network.set_weights(problem.weights)
        network.compile(keras.optimizers.Adam(RATE), loss)
        for order in problem.orders:
            x, y = (part[order] for part in problem.training)
            history = network.fit(
                x, y, BATCH, shuffle=False, validation_data=problem.validation, verbose=0
            ).history
            yield history["loss"][0], history["val_loss"][0]

    return (
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        xent_rs.keras.SparseCategoricalCrossentropy(from_logits=True),
        train,
    )


def in_pytorch(problem):
    """Train with a loop."""
    import torch
    import xent_rs.torch

    torch.set_num_threads(1)  # layers of 10 units are too small to be shared

    def train(loss):
        sizes, layers = (problem.training[0].shape[1], *HIDDEN, CLASSES), []
        for inputs, units in pairwise(sizes):
            layers += [torch.nn.Linear(inputs, units), torch.nn.ReLU()]
        network = torch.nn.Sequential(*layers[:-1])
        with torch.no_grad():
            for parameter, values in zip(network.parameters(), problem.weights, strict=True):
                parameter.copy_(torch.from_numpy(values.T))  # PyTorch's are (units, inputs)
        adam = torch.optim.Adam(network.parameters(), RATE)
        x, y = map(torch.from_numpy, problem.training)
        x_validation, y_validation = map(torch.from_numpy, problem.validation)
        for order in torch.from_numpy(problem.orders):
            losses = []
            for batch in order.split(BATCH):
                adam.zero_grad()
                batch_loss = loss(network(x[batch]), y[batch])
                batch_loss.backward()
                adam.step()
                losses.append(batch_loss.item())
            with torch.no_grad():
                yield np.mean(losses), loss(network(x_validation), y_validation).item()

    return torch.nn.CrossEntropyLoss(), xent_rs.torch.CrossEntropyLoss(), train


FRAMEWORKS = {"Keras": in_keras, "PyTorch": in_pytorch}


def train_twice(framework, problem):
    """Return what a framework yields with its own loss and with that of xent_rs: (2, epochs, 2)."""
    own, ours, train = FRAMEWORKS[framework](problem)
    courses = []
    for whose, loss in (("its own loss", own), ("xent_rs", ours)):
        epochs = tqdm(
            train(loss), f"{framework}, {whose}", len(problem.orders), unit="epoch", disable=None, leave=False
        )
        courses.append(list(epochs))
    return np.array(courses)


def in_a_process(function, *arguments):
    """Call a function in a process of its own: TensorFlow and PyTorch bring libraries that clash in one."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(function, *arguments).result()


def draw(courses, path):
    """Draw a panel for each framework."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise SystemExit(f"no picture ({error}): pip install matplotlib") from None
    figure = Figure(figsize=(4.8 * len(courses), 4), layout="constrained")
    panels = figure.subplots(1, len(courses), sharey=True, squeeze=False)[0]
    for axes, (framework, (own, ours)) in zip(panels, courses.items(), strict=True):
        epochs = range(1, len(own) + 1)
        for part, name, color in ((0, "training", "#9aa7b4"), (1, "validation", "#1c2a38")):
            label = f"{name}, loss of {framework}"
            axes.plot(epochs, own[:, part], color=color, linewidth=2, label=label)
            label = "both, loss of xent_rs" if part == 1 else None
            axes.plot(epochs, ours[:, part], "o", color="#c8501e", markersize=4, label=label)
        title = f"{framework}: at most {np.abs(own - ours).max():.0e} apart"
        axes.set(title=title, xlabel="epoch", xlim=(0, len(own) + 0.5), ylim=0)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend(frameon=False, loc="upper right")
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("cross-entropy (nats)")
    figure.savefig(path, dpi=200)


def main():
    """Train, print the losses and how far they are apart, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--epochs", metavar="N", type=int, default=20, help="default: %(default)s")
    parser.add_argument(
        "--plot", metavar="FILE", default="tutorial_networks.png", help="the picture (default: %(default)s)"
    )
    arguments = parser.parse_args()
    if arguments.epochs < 1:
        parser.error(f"argument --epochs: {arguments.epochs} given; expected 1 or more")

    problem, courses = pose(arguments.epochs), {}
    printed = sorted({epoch for epoch in (1, 2, 5, 10, arguments.epochs) if epoch <= arguments.epochs})
    for framework in FRAMEWORKS:
        try:
            own, ours = courses[framework] = in_a_process(train_twice, framework, problem)
        except ImportError as error:
            print(f"{framework} is left out: {error}")
            continue
        print(f"{framework}\n          training loss             validation loss")
        print("epoch     its own     xent_rs     its own     xent_rs")
        for epoch in printed:
            losses = np.stack([own[epoch - 1], ours[epoch - 1]], axis=1).ravel()
            print(f"{epoch:5}" + "".join(f"{loss:12.7f}" for loss in losses))
        print(f"largest difference: {np.abs(own - ours).max():.1e}")
    if not courses:
        raise SystemExit("nothing to train with: pip install torch, or keras and tensorflow")
    draw(courses, arguments.plot)
    print(f"Picture: {arguments.plot}")


if __name__ == "__main__":
    main()
