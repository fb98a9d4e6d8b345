"""Why classifiers are trained with cross-entropy and not with the quadratic cost.

One sigmoid neuron, a = sigmoid(w x + b), is to answer 0 to the input x = 1. It starts wrong, at an output of
0.82, or badly wrong, at 0.98, and makes 300 steps of gradient descent with each cost:

                    cost            its derivative with respect to w x + b
    quadratic       a^2 / 2         a * a(1 - a)
    cross-entropy   -log(1 - a)     a

The factor a(1 - a) is nearly 0 where the neuron is badly wrong: with the quadratic cost the worse start has
the smaller gradient and does nothing for 200 steps. Cross-entropy cancels the factor: the more wrong, the
larger the gradient.

Learning rates of two costs do not compare. Here cross-entropy has the rate with which the neuron that starts
at 0.82 ends about where the quadratic cost takes it; look at the shape of the curves.

The neuron is that of M. Nielsen, Neural Networks and Deep Learning (2015), chapter 3.
"""

import argparse

import numpy as np
import xent_rs

STEPS = 300
STARTS = {"0.82": (0.6, 0.9), "0.98": (2.0, 2.0)}  # the first output: weight, bias


def sigmoid(logit):
    """Return the output of the neuron."""
    return 1 / (1 + np.exp(-logit))


def quadratic(logit):
    """Return the quadratic cost of a logit whose target is 0, and its derivative."""
    a = sigmoid(logit)
    return a**2 / 2, a * a * (1 - a)


def cross_entropy(logit):
    """Return the cross-entropy of a logit whose target is 0, and its derivative."""
    loss, gradient = xent_rs.binary_cross_entropy_with_grad(np.array([logit]), np.array([0]))
    return loss, gradient[0]


COSTS = {
    "quadratic cost": (quadratic, 0.15),
    "cross-entropy": (cross_entropy, 0.02),
}  # with the learning rate


def train(cost, rate, weight, bias):
    """Return cost, output and gradient before each step and after the last."""
    course = []
    for _ in range(STEPS + 1):
        logit = weight * 1.0 + bias  # the input is 1: weight and bias have the same gradient
        value, gradient = cost(logit)
        course.append((value, sigmoid(logit), gradient))
        weight -= rate * gradient
        bias -= rate * gradient
    return np.array(course)


def draw(courses, path):
    """Draw cost and output by step, a column for each cost."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise SystemExit(f"no picture ({error}): pip install matplotlib") from None
    figure = Figure(figsize=(6.4, 4), layout="constrained")
    panels = figure.subplots(2, len(COSTS), sharex=True)
    for column, (name, (_, rate)) in enumerate(COSTS.items()):
        for start, color in zip(STARTS, ("#9aa7b4", "#c8501e"), strict=True):
            for row in range(2):
                values = courses[name, start][:, row]
                panels[row, column].plot(values, color=color, linewidth=2, label=f"starts at {start}")
        panels[0, column].set_title(f"{name}, learning rate {rate}", fontsize=10)
        panels[0, column].set(ylabel="cost", ylim=(0, None), xlim=(0, STEPS))
        panels[1, column].set(ylabel="output (target 0)", ylim=(0, 1), xlabel="step")
    panels[1, -1].legend(frameon=False)
    for axes in panels.flat:
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=200)


def main():
    """Train the four, print a table, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--plot", metavar="FILE", default="why_cross_entropy.png", help="the picture (default: %(default)s)"
    )
    path = parser.parse_args().plot

    courses = {}
    print("cost            first output  first gradient  steps to < 0.5  last output")
    for name, (cost, rate) in COSTS.items():
        for start, parameters in STARTS.items():
            course = courses[name, start] = train(cost, rate, *parameters)
            _, outputs, gradients = course.T
            below = int(np.argmax(outputs < 0.5))
            print(f"{name:14}{outputs[0]:14.2f}{gradients[0]:16.3f}{below:16}{outputs[-1]:13.2f}")
    draw(courses, path)
    print(f"Picture: {path}")


if __name__ == "__main__":
    main()
