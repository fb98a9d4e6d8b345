r"""
Why cross-entropy and not the quadratic cost
============================================

One neuron, :math:`a = \sigma(wx + b)`, is to answer 0 to the input 1. It starts wrong, with an output of 0.82, or badly wrong, with
0.98. One would want it to learn fastest where it is most wrong. With the quadratic cost it does the opposite.

The experiment is that of M. Nielsen, *Neural Networks and Deep Learning* (2015), chapter 3.

With the logit :math:`x = w + b` and the target 0 the costs and their derivatives are

.. math:: C = \frac{a^2}{2}, \quad \frac{dC}{dx} = a \cdot a(1 - a)

for the quadratic cost, and for cross-entropy

.. math:: C = -\log(1 - a), \quad \frac{dC}{dx} = a
"""

import matplotlib.pyplot as plt
import numpy as np
import xent_rs


def quadratic(logit):
    """Return the cost and its derivative."""
    a = 1 / (1 + np.exp(-logit))
    return a**2 / 2, a * a * (1 - a)


def cross_entropy(logit):
    """Return the cost and its derivative: one call."""
    return xent_rs.binary_cross_entropy_with_grad(
        np.array(logit), np.array(0), reduction="none"
    )


for start, logit in (("wrong", 1.5), ("badly wrong", 4.0)):
    print(
        f"{start:12} output {1 / (1 + np.exp(-logit)):.2f}   derivative: "
        f"quadratic {quadratic(logit)[1]:.3f}, cross-entropy {float(cross_entropy(logit)[1]):.3f}"
    )

# %%
# The worse start has the *smaller* derivative under the quadratic cost: 0.017 instead of 0.122. The factor :math:`a(1 - a)`, the slope
# of the sigmoid, is nearly 0 where the neuron is sure, rightly or wrongly. In cross-entropy it cancels: the logarithm's derivative is
# :math:`1/(1 - a)`, and what is left is the error itself.

logits = np.linspace(-6, 6, 241)
figure, axes = plt.subplots()
axes.plot(logits, quadratic(logits)[1], color="C2", label="quadratic cost")
loss, gradient = xent_rs.binary_cross_entropy_with_grad(
    logits, np.zeros(len(logits), int), reduction="none"
)
axes.plot(logits, gradient, color="C1", label="cross-entropy")
axes.set(
    title="How strongly a neuron is pushed back to 0",
    xlabel="logit (the more, the more wrong)",
)
axes.set(ylabel="derivative of the cost", xlim=(-6, 6), ylim=(0, 1.05))
axes.legend(loc="upper left")
plt.show()

# %%
# Three hundred steps
# -------------------
#
# Learning rates of two costs do not compare: 0.15 and 0.02 are such that the neuron that starts at 0.82 ends about equally. Look at the
# shape of the curves.


def train(cost, rate, weight, bias, steps=300):
    """Return the output before each step and after the last."""
    outputs = []
    for _ in range(steps + 1):
        logit = (
            weight * 1.0 + bias
        )  # the input is 1: weight and bias have the same derivative
        outputs.append(1 / (1 + np.exp(-logit)))
        slope = float(cost(logit)[1])
        weight, bias = weight - rate * slope, bias - rate * slope
    return np.array(outputs)


figure, panels = plt.subplots(1, 2, sharey=True)
for axes, (title, cost, rate) in zip(
    panels,
    [
        ("quadratic cost", quadratic, 0.15),
        ("cross-entropy", cross_entropy, 0.02),
    ],
    strict=True,
):
    for label, color, weight, bias in (
        ("starts at 0.82", "C2", 0.6, 0.9),
        ("starts at 0.98", "C1", 2.0, 2.0),
    ):
        outputs = train(cost, rate, weight, bias)
        axes.plot(outputs, color=color, label=label)
        print(
            f"{title}, {label}: below one half after {int(np.argmax(outputs < 0.5))} steps"
        )
    axes.set(title=title, xlabel="step", ylim=(0, 1), xlim=(0, 300))
panels[0].set_ylabel("output (target 0)")
panels[1].legend()
plt.show()

# %%
# With the quadratic cost the neuron that starts badly stays on a plateau for two hundred steps; with cross-entropy it falls at once.
# The same holds for softmax and many classes: the derivative by the logits is probability less target, with no factor that dies
# (:doc:`plot_7_gradient`).
