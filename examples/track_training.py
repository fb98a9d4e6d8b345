"""Watch a training run in Weights & Biases, TensorBoard or MLflow, with the figures that xent_rs computes.

A tracker of experiments takes a flat dict of numbers for each step, which is what `Evaluation.as_dict`
returns:

    figures = xent_rs.evaluate(logits, targets).as_dict("validation/")
    run.log(figures, step=step)

The model is a softmax regression on scikit-learn's handwritten digits: 1,200 to train on, 597 to watch. Its
gradient is that of the loss, written over the logits, times the pixels. Every 10 of 300 steps all digits are
evaluated: loss, perplexity, accuracy, top-5 accuracy and entropy go to the tracker. Nothing leaves this
computer:

    wandb          a run of its offline mode, in the folder: wandb sync FOLDER/wandb/offline-run-...
    tensorboard    an event file: tensorboard --logdir FOLDER
    mlflow         a database: mlflow ui --backend-store-uri sqlite:///FOLDER/mlflow.db

Without any of them it prints the numbers alone.
"""

import argparse
import importlib.util
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import xent_rs
from sklearn.datasets import load_digits
from tqdm import tqdm

STEPS, EVERY, BATCH, RATE = 300, 10, 100, 0.5


# Each tracker is opened for a folder, and gives a function that takes the figures of a step.


@contextmanager
def wandb(folder):
    """Open a run of Weights & Biases that needs neither an account nor a network."""
    import wandb

    with wandb.init(project="xent_rs", dir=folder, mode="offline") as run:
        yield lambda figures, step: run.log(figures, step=step)


@contextmanager
def tensorboard(folder):
    """Open an event file of TensorBoard."""
    from tensorboard.summary import Writer

    with closing(Writer(str(folder))) as writer:

        def log(figures, step):
            for name, value in figures.items():
                writer.add_scalar(name, value, step)

        yield log


@contextmanager
def mlflow(folder):
    """Open a run of MLflow in a database of its own."""
    import mlflow

    mlflow.set_tracking_uri(f"sqlite:///{folder / 'mlflow.db'}")
    with mlflow.start_run():
        yield lambda figures, step: mlflow.log_metrics(figures, step=step)


@contextmanager
def none(folder):
    """Open nothing."""
    yield lambda figures, step: None


TRACKERS = {tracker.__name__: tracker for tracker in (wandb, tensorboard, mlflow, none)}


def is_there(tracker):
    """Return whether a tracker is installed."""
    return tracker == "none" or importlib.util.find_spec(tracker) is not None


def train(x, targets, random):
    """Yield the weights before the first step and after each."""
    weights = np.zeros((x.shape[1], 10), np.float32)
    yield weights
    for _ in range(STEPS):
        batch = random.choice(len(x), BATCH, replace=False)
        logits = x[batch] @ weights
        _, gradient = xent_rs.cross_entropy_with_grad(logits, targets[batch], out=logits)
        weights -= RATE * x[batch].T @ gradient
        yield weights


def draw(course, path):
    """Draw both losses by step."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise SystemExit(f"no picture ({error}): pip install matplotlib") from None
    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axes = figure.subplots()
    for part, color in (("training", "#9aa7b4"), ("validation", "#c8501e")):
        losses = [figures[f"{part}/loss"] for figures in course.values()]
        axes.plot(list(course), losses, color=color, linewidth=2, label=part)
    axes.axhline(np.log(10), color="#1c2a38", linestyle="--", linewidth=1)
    axes.text(STEPS, np.log(10), "knowing nothing: log 10", ha="right", va="bottom", color="#1c2a38")
    axes.set(xlabel="step", ylabel="cross-entropy (nats)", xlim=(0, STEPS), ylim=(0, 2.6))
    axes.legend(frameon=False, loc="center right")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=200)


def main():
    """Train, track, print some of the figures, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--tracker",
        choices=TRACKERS,
        help="where the figures go (default: the first of these that is installed)",
    )
    parser.add_argument(
        "--folder", type=Path, default=Path("runs"), help="where the tracker writes (default: %(default)s)"
    )
    parser.add_argument(
        "--plot", metavar="FILE", default="track_training.png", help="the picture (default: %(default)s)"
    )
    arguments = parser.parse_args()
    tracker, folder = arguments.tracker or next(filter(is_there, TRACKERS)), arguments.folder.resolve()
    if not is_there(tracker):
        raise SystemExit(f"no {tracker} here: pip install {tracker}")
    if tracker != "none":
        folder.mkdir(parents=True, exist_ok=True)

    x, y = load_digits(return_X_y=True)
    x = (x / 16).astype(np.float32)
    parts = {"training": (x[:1_200], y[:1_200]), "validation": (x[1_200:], y[1_200:])}

    course = {}
    with TRACKERS[tracker](folder) as log:
        steps = enumerate(train(*parts["training"], np.random.default_rng(0)))
        progress = tqdm(steps, "train", total=STEPS + 1, unit="step", disable=None, leave=False)
        for step, weights in progress:
            if step % EVERY == 0:
                figures = {}
                for part, (images, targets) in parts.items():
                    figures |= xent_rs.evaluate(images @ weights, targets).as_dict(f"{part}/")
                log(figures, step)
                course[step] = figures
                progress.set_postfix(loss=f"{figures['validation/loss']:.3f}")

    print("step  training loss  validation loss  validation accuracy")
    for step in (0, 10, 50, 100, 200, STEPS):
        shown = [course[step][name] for name in ("training/loss", "validation/loss", "validation/accuracy")]
        print(f"{step:4}{shown[0]:15.4f}{shown[1]:17.4f}{shown[2]:21.3f}")
    print("Tracker: none" if tracker == "none" else f"Tracker: {tracker}, in {folder}")
    draw(course, arguments.plot)
    print(f"Picture: {arguments.plot}")


if __name__ == "__main__":
    main()
