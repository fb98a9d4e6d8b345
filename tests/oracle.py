"""What the functions should return: the textbook formulas in NumPy, in floats wide enough to judge ours.

16- and 32-bit logits are judged in float64, float64 logits in np.longdouble. Logits are (rows, classes).
"""

import numpy as np


class Softmax:
    """The softmax of every row, and what follows from it."""

    def __init__(self, logits, temperature=1.0):
        self.dtype = np.longdouble if logits.dtype == np.float64 else np.float64
        logits = logits.astype(self.dtype)
        self.rows = np.arange(len(logits))
        self.classes = logits.shape[1]
        self.top = logits.argmax(axis=1)
        largest = logits.max(axis=1)
        with np.errstate(invalid="ignore", over="ignore"):
            self.peak = largest / self.dtype(temperature)
            # Subtracted before anything is divided: x - max is exact where x and max are close.
            self.gaps = (largest[:, None] - logits) / self.dtype(temperature)
        terms = np.exp(-self.gaps)
        self.sum = terms.sum(axis=1)
        self.probabilities = terms / self.sum[:, None]
        terms[self.rows, self.top] = 0
        # log(1 + the other terms) keeps the digits of a confident row, log(sum) does not.
        self.log_sum = np.log1p(terms.sum(axis=1) + 0 * self.sum)

    @property
    def logsumexp(self):
        return np.where(self.peak == -np.inf, -np.inf, self.peak + self.log_sum)

    @property
    def log_probabilities(self):
        return -(self.gaps + self.log_sum[:, None])

    def losses(self, targets, ignore_index=-100):
        ignored = targets == ignore_index
        gaps = self.gaps[self.rows, np.where(ignored, 0, targets)]
        return np.where(ignored, 0, gaps + self.log_sum)

    def gradients(self, targets, ignore_index=-100):
        """p - onehot(target), whose target entry is minus the sum of the others; a masked class has none."""
        ignored = targets == ignore_index
        gradients = self._with_minus_others(self.probabilities, targets, ignored)
        return np.where(ignored[:, None] | np.isinf(self.gaps), 0, gradients)

    def _with_minus_others(self, values, targets, ignored):
        values, entry = values.copy(), (self.rows, np.where(ignored, 0, targets))
        nan_or_zero = 0 * values[entry]
        values[entry] = 0
        values[entry] = nan_or_zero - values.sum(axis=1)
        return values
