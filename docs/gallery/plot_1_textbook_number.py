r"""
0.479: a loss by hand
=====================

The number with which textbooks explain cross-entropy. A model looks at a picture and says how likely each of three classes is:
22.8 %, 61.9 % and 15.3 %. The second is right. What does the guess cost?

With the truth :math:`t` and the guess :math:`q`, both probabilities of the classes, cross-entropy is

.. math:: H(t, q) = -\sum_c t_c \log q_c
"""

import matplotlib.pyplot as plt
import numpy as np
import xent_rs

truth = np.array(
    [0.0, 1.0, 0.0]
)  # one-hot: all of the probability on the class that is right
guess = np.array([0.228, 0.619, 0.153])

terms = -truth * np.log(guess)
print("terms:", terms.round(4) + 0, " sum:", terms.sum().round(4))

# %%
# Of a one-hot truth one term is left: **the loss is minus the logarithm of the probability that was given to the right class**.
# (0.4797, which textbooks cut to 0.479.) The other classes matter only in that they took probability away.
#
# `xent_rs.probability.cross_entropy` is that formula:

print(f"{xent_rs.probability.cross_entropy(truth, guess):.6f}")

# %%
# From logits
# -----------
#
# Models do not say probabilities. They give a number for each class, of any size and sign, the *logits* :math:`z`, and softmax makes
# probabilities of them:
#
# .. math:: q_c = \frac{e^{z_c}}{\sum_k e^{z_k}}
#
# Logarithms of probabilities are logits that give these probabilities, and so are they after adding the same number to all:

logits = np.log(guess)
print(xent_rs.softmax(logits))
print(xent_rs.softmax(logits + 7))

# %%
# The losses of this package take logits, because a loss of logits keeps digits that probabilities have lost
# (:doc:`/faq`). The target may be the number of the right class, or the probabilities of all:

print(f"class 1: {xent_rs.cross_entropy(logits, 1):.6f}")
print(f"one-hot: {xent_rs.cross_entropy(logits + 7, truth):.6f}")

# %%
# What a guess costs
# ------------------
#
# Certainty of what is right costs nothing, a guess among three equal classes log 3 = 1.0986, and certainty of what is wrong costs
# infinity.

q = np.linspace(0.005, 1, 200)
figure, axes = plt.subplots()
axes.plot(q, -np.log(q))
for name, at, offset in (
    ("the guess: 0.4797", 0.619, (8, 8)),
    ("one of three: 1.0986", 1 / 3, (8, 8)),
):
    axes.plot(at, -np.log(at), "o", color="C1")
    axes.annotate(
        name, (at, -np.log(at)), offset, textcoords="offset points", color="C1"
    )
axes.set(
    title="Loss of a one-hot target",
    xlabel="probability of the right class",
    ylabel="cross-entropy (nats)",
)
axes.set(xlim=(0, 1.01), ylim=(0, 5))
plt.show()

# %%
# A truth that is not certain
# ---------------------------
#
# Of ten people who saw the picture seven said the second class, and three the first. The formula stays, and the least that a guess can
# cost is no longer 0: it is what the truth itself is uncertain of, its *entropy*, of which the
# :doc:`next example <plot_2_coins>` is about.

people = np.array([0.3, 0.7, 0.0])
print(f"the guess:    {xent_rs.cross_entropy(logits, people):.4f}")
print(f"the best one: {xent_rs.probability.cross_entropy(people, people):.4f}")
print(f"the entropy:  {xent_rs.probability.entropy(people):.4f}")
