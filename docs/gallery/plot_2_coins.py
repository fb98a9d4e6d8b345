r"""
Coins: entropy in bits
======================

How much is there to learn from the fall of a coin? An event of probability :math:`p` is a surprise of :math:`-\log_2 p` bits: one bit
for each halving. **Entropy is the mean surprise**,

.. math:: H(p) = -\sum_i p_i \log_2 p_i

and so the mean number of yes-or-no questions that it takes to find out, at best.
"""

import matplotlib.pyplot as plt
import numpy as np
from xent_rs.probability import cross_entropy, entropy, self_information

events = {
    "a fair coin falls heads": 1 / 2,
    "a die shows six": 1 / 6,
    "a coin of 0.9 heads falls heads": 0.9,
    "a coin of 0.9 heads falls tails": 0.1,
}
for event, p in events.items():
    print(f"{event:32} {self_information(p, base=2):.3f} bits")

# %%
# What is sure to come is no surprise, and what is rare is a large one. But rare things are rare: on average an unfair coin says less
# than a fair one.

coins = np.array([[0.5, 0.5], [0.9, 0.1], [0.99, 0.01], [1.0, 0.0]])
for coin, bits in zip(coins, entropy(coins, base=2), strict=True):
    print(f"heads {coin[0]:4.0%}: {bits:.4f} bits")

# %%

heads = np.linspace(0, 1, 201)
figure, axes = plt.subplots()
axes.plot(heads, entropy(np.stack([heads, 1 - heads], axis=1), base=2))
axes.plot([0.5, 0.9], [1, entropy([0.9, 0.1], base=2)], "o", color="C1")
axes.annotate(
    "fair: 1 bit",
    (0.5, 1),
    (0, 7),
    textcoords="offset points",
    ha="center",
    color="C1",
)
axes.annotate(
    "nine of ten: 0.469 bits",
    (0.9, 0.469),
    (-8, -4),
    textcoords="offset points",
    ha="right",
    color="C1",
)
axes.set(
    title="Entropy of a coin",
    xlabel="probability of heads",
    ylabel="bits",
    ylim=(0, 1.15),
    xlim=(0, 1),
)
plt.show()

# %%
# Tossed often
# ------------
#
# The mean surprise of what really fell comes close to the entropy, the law of large numbers at work:

random = np.random.default_rng(0)
falls = random.random(10_000) < 0.9
surprise = self_information(np.where(falls, 0.9, 0.1), base=2)
course = surprise.cumsum() / np.arange(1, len(surprise) + 1)

figure, axes = plt.subplots()
axes.semilogx(
    np.arange(1, len(surprise) + 1),
    course,
    color="C1",
    label="mean surprise so far",
)
axes.axhline(
    entropy([0.9, 0.1], base=2), linestyle="--", linewidth=1, label="entropy"
)
axes.set(
    title="A coin of 0.9 heads",
    xlabel="tosses",
    ylabel="bits",
    ylim=(0, 1.2),
    xlim=(1, len(surprise)),
)
axes.legend()
plt.show()

# %%
# Believing in the wrong coin
# ---------------------------
#
# Who takes the coin of 0.9 for a fair one is surprised by one bit at each toss, whatever falls: that is the *cross-entropy* of truth
# and belief. Of all beliefs the truth costs least, and that least is the entropy. This is why cross-entropy can train a model: to lower
# it is to come closer to the truth.

belief = np.linspace(0.01, 0.99, 99)
cost = cross_entropy([0.9, 0.1], np.stack([belief, 1 - belief], axis=1), base=2)
print(
    f"the least is at a belief of {belief[cost.argmin()]:.2f}, and costs {cost.min():.4f} bits"
)

# %%
# Bits or nats
# ------------
#
# With the natural logarithm the unit is the nat, 1.4427 bits. Losses come in nats, here as in every framework, since derivatives are
# simpler then. A model that knows nothing of two classes has the loss log 2:

print(
    f"{entropy([0.5, 0.5]):.4f} nats are {entropy([0.5, 0.5], base=2):.4f} bits"
)
