"""Finite differences: the derivative of a function, independent of every formula, with its uncertainty."""

import numpy as np


def slopes(function, logits, step=2e-3):
    """(central differences of a function of float64 logits, how wrong they may be), by Richardson's rule."""
    found, scale = np.empty((3, *logits.shape)), 1.0
    for index in np.ndindex(logits.shape):
        for i, width in enumerate((step, step / 2, step / 4)):
            above, below = logits.copy(), logits.copy()
            above[index] += width
            below[index] -= width
            high, low = function(above), function(below)
            scale = max(scale, abs(high))
            found[i][index] = (high - low) / (above[index] - below[index])
    fourth = (4 * found[1:] - found[:-1]) / 3
    sixth = (16 * fourth[1] - fourth[0]) / 15
    return sixth, np.abs(sixth - fourth[1]) + 40 * scale * 2.0**-53 / step


def assert_slope(function, with_grad, logits, target, options):
    """The gradient is the slope of the loss, and the loss the same beside it."""
    options = dict(options)
    loss, grad = with_grad(logits, target, **options)
    factor = options.pop("grad_output") or 1
    assert loss == function(logits, target, **options)
    expected, error = slopes(lambda x: function(x, target, **options), logits)
    assert (error < 1e-8).all()
    assert (np.abs(grad - factor * expected) <= abs(factor) * error).all()
