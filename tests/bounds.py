"""The accuracy that the package promises, as code: how far a result may be from the oracle's.

    loss, logsumexp, log-probability  u (ln C + 2) + half an ulp of the result
    the same of the largest class     and relative: u (gap to the runner-up + ln C + 2) loss + C 2^-149
                                      + half an ulp
    probability, gradient             (u (|z - max| + ln C + 4) p + 2^-149) |scale|
    the gradient's target entry       the sum of the bounds of the others: it is minus their sum
    a 16-bit result                   half an ulp of its format besides

u = 2^-24, and 2^-53 (smallest number 2^-1074) for float64 logits.
"""

import numpy as np
from ml_dtypes import bfloat16

# dtype: (bits of the significand, exponent of the smallest normal number, largest finite number)
FORMATS = {
    np.dtype(np.float16): (11, -14, 65504.0),
    np.dtype(bfloat16): (8, -126, float.fromhex("0x1.fep127")),
    np.dtype(np.float32): (24, -126, float(np.finfo(np.float32).max)),
    np.dtype(np.float64): (53, -1022, float(np.finfo(np.float64).max)),
}

#: (quantity, dtype) -> the largest error / bound seen; printed at the end of the run.
worst_ratios = {}


def unit(dtype):
    """The u and the smallest positive number of the type that these logits are computed in."""
    return (2.0**-53, 2.0**-1074) if dtype == np.float64 else (2.0**-24, 2.0**-149)


def half_ulp(values, dtype):
    bits, smallest_exponent, _ = FORMATS[np.dtype(dtype)]
    exponents = np.maximum(np.frexp(values)[1] - 1, smallest_exponent)
    return np.ldexp(np.ones_like(values), exponents - bits)


def loss_bound(softmax, targets, dtype):
    """For the loss of each row with this target (all classes: `log_probability_bound`)."""
    runner_up = np.sort(softmax.gaps, axis=1)[:, min(1, softmax.classes - 1)]
    return _log_bound(softmax.losses(targets), softmax.gaps[softmax.rows, targets], runner_up, softmax, dtype)


def log_probability_bound(softmax, dtype):
    runner_up = np.sort(softmax.gaps, axis=1)[:, min(1, softmax.classes - 1), None]
    return _log_bound(-softmax.log_probabilities, softmax.gaps, runner_up, softmax, dtype)


def _log_bound(losses, gaps, runner_up, softmax, dtype):
    u, smallest = unit(dtype)
    rounding = half_ulp(losses, np.float64 if dtype == np.float64 else np.float32)
    absolute = u * (np.log(softmax.classes) + 2) + rounding
    with np.errstate(invalid="ignore", over="ignore"):
        relative = u * (runner_up + np.log(softmax.classes) + 2) * losses + rounding
    relative = relative + softmax.classes * smallest
    return np.where((gaps == 0) & (relative < absolute), relative, absolute)


def logsumexp_bound(softmax, dtype):
    u, _ = unit(dtype)
    rounding = half_ulp(softmax.logsumexp, np.float64 if dtype == np.float64 else np.float32)
    return u * (np.log(softmax.classes) + 2) + rounding


def probability_bound(softmax, dtype):
    u, smallest = unit(dtype)
    with np.errstate(invalid="ignore", over="ignore"):
        bound = u * (softmax.gaps + np.log(softmax.classes) + 4) * softmax.probabilities
    # A class of infinite gap is a masked one: exactly 0.
    return np.where(np.isinf(softmax.gaps), 0, bound + smallest)


def gradient_bound(softmax, targets, dtype, scale=1.0):
    """`scale`: what the derivative of a row's loss is multiplied with, one number or one for each row."""
    bound = np.abs(softmax._with_minus_others(probability_bound(softmax, dtype), targets, targets < 0))
    return np.maximum(np.abs(scale) * bound, unit(dtype)[1])


def mean_bound(bounds, losses, count):
    """Of a float64 sum of row losses, divided by count: the rows' own bounds, and the sum's rounding."""
    return (bounds.sum() + len(losses) * 2.0**-53 * np.abs(losses).sum()) / abs(count)


def assert_within(quantity, got, expected, bound, dtype, context="", names=None):
    """Every |got - expected| <= bound, infinities and NaN the same.

    `dtype` is that of the logits, `names` are those of the rows.
    Returns the largest error as a fraction of the bound.
    """
    got = np.asarray(got)
    expected = np.asarray(expected)
    assert got.shape == expected.shape, f"{quantity} {context}: shape {got.shape}, expected {expected.shape}"
    bound = np.broadcast_to(bound, expected.shape)
    if got.dtype.itemsize == 2:
        quantity += ", 16 bit"
        bound = bound + half_ulp(np.abs(expected) + bound, got.dtype)
    largest = np.longdouble(FORMATS[got.dtype][2])
    overflow = np.abs(expected) >= largest + half_ulp(largest, got.dtype)
    expected = np.where(overflow, np.copysign(np.inf, expected), expected)
    wide = got.astype(expected.dtype)
    with np.errstate(invalid="ignore", divide="ignore"):
        same = (wide == expected) | (np.isnan(wide) & np.isnan(expected))
        ratio = np.where(same, 0, np.nan_to_num(np.abs(wide - expected) / bound, nan=np.inf, posinf=np.inf))
    if not ratio.size:
        return 0.0
    at = np.unravel_index(ratio.argmax(), ratio.shape)
    key = quantity, np.dtype(dtype).name
    worst_ratios[key] = max(worst_ratios.get(key, 0.0), float(ratio[at]))
    position = tuple(int(index) for index in at)
    row = f" (row {names[at[0]]})" if names else ""
    assert ratio[at] <= 1, (
        f"{quantity} {context}: {got[at]} at {position}{row}, expected {expected[at]} within {bound[at]}; "
        f"{ratio[at]:.4g} times the promised bound, exceeded by {int((ratio > 1).sum())} of {ratio.size}"
    )
    return float(ratio[at])
