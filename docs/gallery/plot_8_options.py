r"""
What the options do
===================

Smoothing, focus, temperature, caps: each changes what a model is asked for. Here is what each does to one row, as the package computes
it; the formulas are in :doc:`/meaning`.
"""

import matplotlib.pyplot as plt
import numpy as np
import xent_rs

# %%
# Focal and poly loss: which rows matter
# --------------------------------------
#
# `focal_gamma` multiplies the loss by :math:`(1 - p)^\gamma`, with p the probability of the right class: rows that are right already
# count for less, and the others get a larger say. `poly_epsilon` adds :math:`\varepsilon (1 - p)`.

p = np.linspace(0.01, 0.999, 300)
logits = np.log(np.stack([p, 1 - p], axis=1))  # two classes, the first right
right = np.zeros(len(p), int)

figure, axes = plt.subplots()
for gamma, color in ((0, "C0"), (1, "C2"), (2, "C1")):
    losses = xent_rs.cross_entropy(
        logits, right, focal_gamma=gamma, reduction="none"
    )
    axes.plot(p, losses, color=color, label=f"focal_gamma={gamma}")
losses = xent_rs.cross_entropy(logits, right, poly_epsilon=1, reduction="none")
axes.plot(p, losses, color="C3", linestyle="--", label="poly_epsilon=1")
axes.set(title="Loss of a row", xlabel="probability of its class, p")
axes.set(ylabel="nats", xlim=(0, 1), ylim=(0, 4))
axes.legend()
plt.show()

# %%
# A row that is right at 90 % costs a hundredth with :math:`\gamma = 2`, one at 10 % four fifths:

for chance in (0.9, 0.1):
    row = np.log([chance, 1 - chance])
    plain = xent_rs.cross_entropy(row, 0)
    focal = xent_rs.cross_entropy(row, 0, focal_gamma=2)
    print(f"p = {chance}: {plain:.4f}, focal {focal:.4f}")

# %%
# Label smoothing: not too sure
# -----------------------------
#
# With class indices a model can always win a little by being surer. With `label_smoothing` the target gives every class a share
# :math:`\varepsilon / C`, and there is a lead that is best: the one at which the model's probabilities are those of the target.

lead = np.linspace(-2, 12, 300)
logits = np.stack([lead, *np.zeros((9, len(lead)))], axis=1)  # ten classes
right = np.zeros(len(lead), int)

figure, axes = plt.subplots()
for smoothing, color in ((0.0, "C0"), (0.1, "C1"), (0.3, "C2")):
    losses = xent_rs.cross_entropy(
        logits, right, label_smoothing=smoothing, reduction="none"
    )
    axes.plot(lead, losses, color=color, label=f"label_smoothing={smoothing}")
    if smoothing:
        axes.plot(lead[losses.argmin()], losses.min(), "o", color=color)
        best = xent_rs.softmax(logits[losses.argmin()])[0]
        print(f"{smoothing}: best at a probability of {best:.3f}")
axes.set(
    title="Ten classes, one ahead of nine", xlabel="lead of the right logit"
)
axes.set(ylabel="nats", xlim=(-2, 12), ylim=(0, 4.5))
axes.legend()
plt.show()

# %%
# Temperature: flatter or sharper
# -------------------------------
#
# `temperature` divides the logits. Above 1 the classes come closer together, as one wants a teacher's for distillation; below 1 the first
# takes all. The entropy says how much is left open.

row = np.array([3.0, 2.0, 1.0, 0.0])
figure, panels = plt.subplots(1, 3, sharey=True)
for axes, temperature in zip(panels, (0.5, 1.0, 3.0), strict=True):
    probabilities = xent_rs.softmax(row, temperature=temperature)
    entropy = xent_rs.row_statistics(row, temperature=temperature).entropy
    axes.bar(range(4), probabilities, color="C1" if temperature == 1 else "C2")
    axes.set(title=f"T = {temperature}\nentropy {entropy:.2f}", xticks=range(4))
    axes.set(xlabel="class", ylim=(0, 1))
panels[0].set_ylabel("probability")
plt.show()

# %%
# Softcap: logits with a bound
# ----------------------------
#
# `softcap` bounds the logits, smoothly, by :math:`c \tanh(x / c)`. Near 0 nothing changes. Far out the loss stops growing, and the
# gradient goes away: a model that is badly wrong by a capped logit learns slowly, as with the quadratic cost
# (:doc:`plot_3_why_cross_entropy`). Caps in use are large for that reason, 30 to 50.

x = np.linspace(-12, 12, 300)
logits = np.stack([x, np.zeros(len(x))], axis=1)
right = np.ones(len(x), int)  # the other one
figure, panels = plt.subplots(1, 2)
for cap, color in ((None, "C0"), (4.0, "C1")):
    losses, gradient = xent_rs.cross_entropy_with_grad(
        logits, right, softcap=cap, reduction="none"
    )
    panels[0].plot(x, losses, color=color, label=f"softcap={cap}")
    panels[1].plot(x, gradient[:, 0], color=color)
panels[0].set(title="Loss", xlabel="logit of the wrong class", ylabel="nats")
panels[1].set(title="Gradient", xlabel="logit of the wrong class")
panels[0].legend()
plt.show()

# %%
# z-loss: logits that stay where they are
# ---------------------------------------
#
# Softmax does not see a number that is added to all logits, and so nothing keeps them from drifting to where 16 bits are coarse. `z_loss`
# adds a little of :math:`\mathrm{lse}^2`, which is least where the exponentials add up to 1.

shift = np.linspace(-15, 15, 300)
logits = np.log([0.7, 0.2, 0.1]) + shift[:, None]
right = np.zeros(len(shift), int)
figure, axes = plt.subplots()
for factor, color in ((0.0, "C0"), (1e-3, "C2"), (1e-2, "C1")):
    losses = xent_rs.cross_entropy(
        logits, right, z_loss=factor, reduction="none"
    )
    axes.plot(shift, losses, color=color, label=f"z_loss={factor}")
axes.set(title="The same probabilities", xlabel="what is added to all logits")
axes.set(ylabel="nats", ylim=(0, 2.8), xlim=(-15, 15))
axes.legend(loc="upper center")
plt.show()
