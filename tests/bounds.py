"""The accuracy that the package promises, as code: how far a result may be from the oracle's.

    loss, logsumexp, log-probability  u (ln C + 2) + half an ulp of the result
    the same of the largest class     and relative: u (gap to the runner-up + ln C + 2) loss + C 2^-149
                                      + half an ulp
    probability, gradient             (u (|z - max| + ln C + 4) p + 2^-149) |scale|
    the gradient's target entry       the sum of the bounds of the others: it is minus their sum
    a 16-bit result                   half an ulp of its format besides

u = 2^-24, and 2^-53 (smallest number 2^-1074) for float64 logits. What is made of several of these may be
wrong by the sum of what its parts may be, each times its weight, and by half an ulp:

    loss of several targets           the sum of |share| u (ln C + 2)
    z-loss                            2 |lse| z_loss times the bound of lse
    gradient of several targets       mass times the bound of p, and 2 u |share|, the rounding of the share
    all of these                      8 * 2^-53 of every term: weights and factors are multiplied in float64
    anything under a softcap          |z| / 10 (float64: / 4) of the largest besides every ln C above
    gradient under a softcap          4 u of it, and 2^-123 (2^-981) of d loss/dz where the cap is reached
    focal and poly losses             what these make of the bound of the loss, and of its slope
    diagonal of the Hessian           mass times the bounds of p (1 - p)
    Hessian times v                   with g = u (|z - max| + ln C + 4): mass p (g |v - p v| + sum of g p
                                      |v - v(top)|), and of z-loss 2 z_loss |p v| p g besides
    gradient of soft targets          that of the loss, weighted, and 2 u of it
    gradient of the temperature       the sum of (mass p + |share|) |z - max| g, over the temperature
    KL divergence                     the sum of p_t (bounds of both logs) + (bound of p_t) |log ratio|
    KL(model || teacher), Jensen-     of each class (bounds of p and p_t) min(d^2, |d| + 2),
      Shannon, d = log p - log p_t    |p - p_t| u (2 ln C + 4 + 4 |d|), and 8 u of its term
    ... gradient p (v - mean v), w    of each class e = 3 (bound of p) |v - mean v| + 4 u p (|v| + max |d|)
      the derivative of v by d        + p u (2 ln C + 4) |w - mean w|; and p times the sum of e
    ... of listed classes             the sum of p_t (bound of log p), and of what is left twice that
    ... its gradient                  as of several targets, and of what is left twice the bound of its shares
    binary                            the bound for two classes, logits x and 0, each side times its weight
    entropy                           the sum of p (bound of log p) + (bound of p) |log p|
"""

import numpy as np
from ml_dtypes import bfloat16

from .oracle import sigmoid, softplus

# dtype: (bits of the significand, exponent of the smallest normal number, largest finite number)
FORMATS = {
    np.dtype(np.float16): (11, -14, 65504.0),
    np.dtype(bfloat16): (8, -126, float.fromhex("0x1.fep127")),
    np.dtype(np.float32): (24, -126, float(np.finfo(np.float32).max)),
    np.dtype(np.float64): (53, -1022, float(np.finfo(np.float64).max)),
}

#: What the products of weights, row weights, smoothing, temperature and divisor may lose, all in float64.
FACTORS = 8 * 2.0**-53

#: (quantity, dtype) -> the largest error / bound seen; printed at the end of the run.
worst_ratios = {}


#: The derivative of a softcap that counts as reached, by u.
REACHED = {2.0**-24: 2.0**-123, 2.0**-53: 2.0**-981}


def unit(dtype):
    """The u and the smallest positive number of the type that these logits are computed in."""
    return (2.0**-53, 2.0**-1074) if dtype == np.float64 else (2.0**-24, 2.0**-149)


def half_ulp(values, dtype):
    bits, smallest_exponent, _ = FORMATS[np.dtype(dtype)]
    exponents = np.maximum(np.frexp(values)[1] - 1, smallest_exponent)
    return np.ldexp(np.ones_like(values), exponents - bits)


def loss_bound(softmax, targets, dtype):
    """For the loss of each row with this target (all classes: `log_probability_bound`)."""
    return _log_bound(
        softmax.losses(targets), softmax.gaps[softmax.rows, targets], _runner_up(softmax), softmax, dtype
    )


def _logs(softmax, dtype):
    """ln C for every row, and what a capped logit may be off."""
    logs = np.full(len(softmax.rows), np.log(softmax.classes))
    return logs + softmax.largest_capped / (4 if dtype == np.float64 else 10) if softmax.capped else logs


def _runner_up(softmax):
    """How far the second largest class is below the largest."""
    return np.sort(softmax.gaps, axis=1)[:, min(1, softmax.classes - 1)]


def log_probability_bound(softmax, dtype):
    runner_up = _runner_up(softmax)[:, None]
    return _log_bound(-softmax.log_probabilities, softmax.gaps, runner_up, softmax, dtype)


def _log_bound(losses, gaps, runner_up, softmax, dtype):
    u, smallest = unit(dtype)
    rounding = half_ulp(losses, np.float64 if dtype == np.float64 else np.float32)
    logs = _logs(softmax, dtype).reshape(runner_up.shape)
    absolute = u * (logs + 2) + rounding
    with np.errstate(invalid="ignore", over="ignore"):
        relative = u * (runner_up + logs + 2) * losses + rounding
    relative = relative + softmax.classes * smallest
    return np.where((gaps == 0) & (relative < absolute), relative, absolute)


def logsumexp_bound(softmax, dtype):
    u, _ = unit(dtype)
    rounding = half_ulp(softmax.logsumexp, np.float64 if dtype == np.float64 else np.float32)
    return u * (_logs(softmax, dtype) + 2) + rounding


def probability_bound(softmax, dtype):
    u, smallest = unit(dtype)
    with np.errstate(invalid="ignore", over="ignore"):
        bound = u * (softmax.gaps + _logs(softmax, dtype)[:, None] + 4) * softmax.probabilities
    # A class of infinite gap is a masked one: exactly 0.
    return np.where(np.isinf(softmax.gaps), 0, bound + smallest)


def gradient_bound(softmax, targets, dtype, scale=1.0):
    """`scale`: what the derivative of a row's loss is multiplied with, one number or one for each row."""
    bound = probability_bound(softmax, dtype)
    entry = softmax.rows, np.where(targets < 0, 0, targets)
    bound[entry] = _of_the_others(bound)[entry]
    return np.maximum(np.abs(scale) * bound, unit(dtype)[1])


def _of_the_others(bounds):
    """For each class, the sum of what the others have."""
    others = bounds.sum(axis=1, keepdims=True) - bounds
    # A sum less its largest term has no digits of the small ones.
    top = np.arange(len(bounds)), bounds.argmax(axis=1)
    rest = bounds.copy()
    rest[top] = 0
    others[top] = rest.sum(axis=1)
    return others


class CrossEntropyBounds:
    """For the losses, gradients and Hessians of an oracle's `CrossEntropy`."""

    def __init__(self, oracle, dtype):
        self.oracle, self.softmax, self.dtype = oracle, oracle.softmax, dtype
        self.shares, self.scale = np.abs(oracle.shares), np.abs(oracle.scale)
        self.pulls = np.abs(oracle.pulls)
        #: Rows of which one class alone is wanted.
        self.single = ((self.shares > 0).sum(axis=1) == 1) & (not oracle.smoothed)

    @property
    def losses(self):
        softmax, losses = self.softmax, self.oracle.losses
        bound = self._of_targets
        if self.oracle.is_focused:
            bound = self._farthest(self.oracle.focused, bound)
        missed = -softmax.log_probabilities
        with np.errstate(invalid="ignore", over="ignore"):
            lse, error = np.abs(softmax.logsumexp), logsumexp_bound(softmax, self.dtype)
            bound = bound + _times(self.oracle.z_loss, 2 * lse * error + error**2)
            terms = missed
            if self.oracle.is_focused:
                terms = np.abs(self.oracle.focused(missed)) + np.abs(self.oracle.epsilon) * -np.expm1(-missed)
            terms = (1 + self.oracle.gamma) * _times(self.shares, terms).sum(axis=1)
            bound = _times(self.scale, bound + FACTORS * (terms + _times(self.oracle.z_loss, lse**2)))
        return bound + half_ulp(losses, np.float64 if self.dtype == np.float64 else np.float32)

    @property
    def _of_targets(self):
        """Of the sum of shares (lse - z), before it is rounded."""
        softmax = self.softmax
        u, smallest = unit(self.dtype)
        bound = self.shares.sum(axis=1) * u * (_logs(softmax, self.dtype) + 2)
        leads = self.single & ((self.shares > 0) & (softmax.gaps == 0)).any(axis=1)
        with np.errstate(invalid="ignore", over="ignore"):
            relative = u * (_runner_up(softmax) + _logs(softmax, self.dtype) + 2) * softmax.log_sum
            relative = self.shares.max(axis=1) * (relative + softmax.classes * smallest)
            return np.where(leads & (relative < bound), relative, bound)

    def _farthest(self, function, bound):
        """How far a function of the target's loss goes, weighted, if the weighted loss is off by so much."""
        weight = self.shares.max(axis=1)
        missed = _times(self.shares > 0, -self.softmax.log_probabilities).sum(axis=1)
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            error = np.where(weight > 0, bound / weight, 0) + FACTORS * missed
            here = function(missed)
            ends = [function(missed + error), function(np.maximum(missed - error, 0))]
            farthest = np.maximum(*(np.abs(end - here) for end in ends))
            return np.where(np.isfinite(missed), _times(weight, farthest), bound)

    @property
    def slopes(self):
        """Of the gradient with respect to z."""
        softmax, oracle = self.softmax, self.oracle
        u, _ = unit(self.dtype)
        bound, one = (
            probability_bound(softmax, self.dtype),
            (self.shares > 0) & (self.single & self.oracle.classes)[:, None],
        )
        of_others = _of_the_others(bound)
        with np.errstate(invalid="ignore"):
            z_loss = 2 * np.abs(oracle.z_loss) * np.abs(softmax.logsumexp)
            z_bound = 2 * np.abs(oracle.z_loss) * logsumexp_bound(softmax, self.dtype)
        mass = np.abs(oracle.mass)[:, None]
        slopes = np.where(one, mass * of_others, mass * bound + 2 * u * self.pulls)
        slopes = slopes + _times(z_loss[:, None], bound) + _times(z_bound[:, None], softmax.probabilities)
        terms = _times((mass[:, 0] + z_loss)[:, None], softmax.probabilities)
        slopes = slopes + FACTORS * (1 + oracle.gamma) * (terms + self.pulls)
        distance = np.where(one, softmax.others, softmax.probabilities)
        if oracle.is_focused:
            of_slope = self._farthest(oracle.focus_slopes, self._of_targets)
            slopes = slopes + _times(of_slope[:, None], distance)
        return np.where(softmax.masked, 0, _times(self.scale[:, None], slopes))

    def gradients(self, scale=1.0):
        """`scale` as for `gradient_bound`."""
        u, smallest = unit(self.dtype)
        bound = self.softmax.slope * self.slopes
        if self.softmax.capped:
            reached = REACHED[u] / self.softmax.temperature
            bound = bound + 4 * u * np.abs(self.oracle.gradients) + reached * np.abs(self.oracle.slopes)
        return np.maximum(np.abs(scale) * bound, smallest)

    def hessians(self, scale=1.0):
        softmax = self.softmax
        bound = probability_bound(softmax, self.dtype)
        bound = bound * softmax.others + softmax.probabilities * _of_the_others(bound)
        bound = bound + FACTORS * softmax.probabilities * softmax.others
        bound = np.abs(self.oracle.mass * self.scale)[:, None] * softmax.slope**2 * bound
        return np.maximum(np.abs(scale) * bound, unit(self.dtype)[1])

    def hessian_products(self, vectors, scale=1.0):
        softmax, oracle, smallest = self.softmax, self.oracle, unit(self.dtype)[1]
        p, relative = softmax.probabilities, self._relative
        distances, top, mean = oracle.distances(vectors)
        with np.errstate(invalid="ignore", over="ignore"):
            spread = np.abs(distances - mean[:, None])
            of_mean = _times(relative * p, np.abs(distances)).sum(axis=1)[:, None]
            terms = _times(relative, spread) + of_mean + FACTORS * spread
            mass = np.abs(oracle.mass + oracle.pull)[:, None]
            bound = mass * _times(p, terms)
            of_lse = 2 * np.abs(oracle.z_loss) * logsumexp_bound(softmax, self.dtype)[:, None]
            bound = bound + of_lse * _times(p, spread)
            level = 2 * np.abs(oracle.z_loss) * (np.abs(top + mean)[:, None] + spread)
            bound = bound + _times(p, _times(relative, level) + 2 * np.abs(oracle.z_loss) * of_mean)
            factor = np.abs(oracle.scale)[:, None] * softmax.slope**2 * np.abs(scale)
            # In float64 a subnormal probability is multiplied as it is, and the largest has those of all.
            of_ends = (1 + factor * mass) * (spread + np.abs(distances).sum(axis=1)[:, None])
            return factor * bound + smallest * (1 + 2 * of_ends)

    @property
    def _relative(self):
        """How far a probability may be off, relative to it."""
        gaps = np.where(np.isinf(self.softmax.gaps), 0, self.softmax.gaps)
        return unit(self.dtype)[0] * (gaps + _logs(self.softmax, self.dtype)[:, None] + 4)

    def target_gradients(self, scale=1.0):
        oracle, (u, smallest) = self.oracle, unit(self.dtype)
        missed = -self.softmax.log_probabilities
        bound = log_probability_bound(self.softmax, self.dtype)
        with np.errstate(invalid="ignore"):
            bound = _times(np.abs(oracle.keep), bound + 3 * u * missed)
            bound = np.abs(scale) * _times(np.abs(oracle.scale)[:, None], bound) + smallest
        return np.where(np.isnan(bound), 0, bound)

    @property
    def temperature_gradients(self):
        softmax, oracle, relative = self.softmax, self.oracle, self._relative
        slopes = oracle.temperature_gradients
        with np.errstate(invalid="ignore", over="ignore"):
            pull = np.abs(oracle.pull)[:, None]
            weights = _times(np.abs(oracle.mass)[:, None] + pull, softmax.probabilities) + self.shares
            bound = _times(weights, softmax.gaps * relative).sum(axis=1)
            of_lse = 2 * np.abs(oracle.z_loss) * logsumexp_bound(softmax, self.dtype)
            sizes = np.abs(softmax.peak) + _times(softmax.probabilities, softmax.gaps).sum(axis=1)
            bound = bound + of_lse * sizes + FACTORS * pull[:, 0] * sizes
            bound = _times(np.abs(oracle.scale), bound / softmax.temperature)
            # What is subnormal before it is divided has lost some of the smallest number.
            bound = bound + unit(self.dtype)[1] * (1 + np.abs(oracle.scale) / softmax.temperature)
        return bound + half_ulp(slopes, np.float64 if self.dtype == np.float64 else np.float32)


class KlDivergenceBounds:
    """For the losses and gradients of an oracle's `KlDivergence`."""

    def __init__(self, oracle, dtype):
        self.oracle, self.dtype = oracle, dtype
        self.probabilities = [probability_bound(softmax, dtype) for softmax in (oracle.model, oracle.teacher)]

    @property
    def losses(self):
        oracle, losses = self.oracle, self.oracle.losses
        u, _ = unit(self.dtype)
        bound = 2 * u * (np.log(oracle.model.classes) + 2)
        bound = bound + _times(self.probabilities[1], np.abs(oracle.log_ratios)).sum(axis=1)
        bound = bound + FACTORS * _times(oracle.teacher.probabilities, np.abs(oracle.log_ratios)).sum(axis=1)
        bound = _times(np.abs(oracle.scale), bound)
        return bound + half_ulp(losses, np.float64 if self.dtype == np.float64 else np.float32)

    def gradients(self, scale=1.0):
        oracle = self.oracle
        bound = sum(self.probabilities) + FACTORS * (
            oracle.model.probabilities + oracle.teacher.probabilities
        )
        bound = np.abs(oracle.scale)[:, None] * np.abs(scale) * oracle.model.slope * bound
        return np.maximum(bound, unit(self.dtype)[1])


class DivergenceBounds(KlDivergenceBounds):
    """For the losses and gradients of an oracle's `Divergence`."""

    def __init__(self, oracle, dtype):
        super().__init__(oracle, dtype)
        u, _ = unit(dtype)
        #: Of d: what the log-sum-exps are off by is the same for all classes of a row.
        self.of_all = 2 * u * (np.log(oracle.model.classes) + 2)
        self.size = np.where(np.isfinite(oracle.d), np.abs(oracle.d), 0)

    @property
    def losses(self):
        oracle, (u, smallest) = self.oracle, unit(self.dtype)
        apart = np.abs(oracle.model.probabilities - oracle.teacher.probabilities)
        with np.errstate(invalid="ignore", over="ignore"):
            weights = np.minimum(self.size**2, self.size + 2)
            weights = np.where(np.isfinite(oracle.d), weights, 2)
            bound = _times(sum(self.probabilities), weights) + _times(apart, self.of_all + 4 * u * self.size)
            bound = bound + 8 * u * np.where(np.isfinite(sum(oracle.terms)), sum(oracle.terms), 0)
        bound = bound.sum(axis=1) + oracle.model.classes * smallest
        bound = _times(np.abs(oracle.scale), bound)
        losses = np.where(np.isfinite(oracle.losses), oracle.losses, 0)
        return bound + half_ulp(losses, np.float64 if self.dtype == np.float64 else np.float32)

    def gradients(self, scale=1.0):
        oracle, (u, smallest) = self.oracle, unit(self.dtype)
        model, q, v = oracle.model, oracle.model.probabilities, np.abs(oracle.v)
        v, above = (np.where(np.isfinite(numbers), np.abs(numbers), 0) for numbers in (v, oracle.above))
        # What is off alike in all v counts where d does not count alike.
        uneven = np.abs(oracle.sensitivity - _times(q, oracle.sensitivity).sum(axis=1, keepdims=True))
        of_v = 4 * u * (v + self.size.max(axis=1, keepdims=True)) + self.of_all * uneven
        bound = 3 * _times(self.probabilities[0], above) + _times(q, of_v)
        mean = bound.sum(axis=1, keepdims=True)
        bound = bound + _times(q, mean)
        factor = np.abs(oracle.scale)[:, None] * np.abs(scale) * model.slope
        return factor * bound + (1 + factor) * smallest


class SparseDivergenceBounds:
    """For the losses and gradients of an oracle's `SparseDivergence`."""

    def __init__(self, oracle, dtype):
        self.oracle, self.dtype = oracle, dtype

    @property
    def losses(self):
        oracle, (u, _) = self.oracle, unit(self.dtype)
        bound = (oracle.mass + oracle.left) * u * (np.log(oracle.softmax.classes) + 2)
        with np.errstate(invalid="ignore"):
            bound = bound + FACTORS * sum(np.abs(term).sum(axis=0) for term in oracle.terms)
        bound = _times(np.abs(oracle.scale), bound)
        losses = np.where(np.isfinite(oracle.losses), oracle.losses, 0)
        return bound + half_ulp(losses, np.float64 if self.dtype == np.float64 else np.float32)

    def gradients(self, scale=1.0):
        oracle, (u, smallest) = self.oracle, unit(self.dtype)
        softmax = oracle.softmax
        of_share = u * (np.where(np.isinf(softmax.gaps), 0, softmax.gaps) + np.log(softmax.classes) + 4)
        with np.errstate(invalid="ignore"):
            shares = oracle.left[:, None] * oracle.shares
            bound = oracle.mass[:, None] * probability_bound(softmax, self.dtype) + 2 * of_share * shares
            terms = oracle.mass[:, None] * softmax.probabilities + oracle.dense + shares
            bound = bound + 2 * u * oracle.dense + FACTORS * terms
        bound = np.abs(oracle.scale)[:, None] * np.abs(scale) * softmax.slope * bound
        return np.maximum(bound, smallest)


class BinaryCrossEntropyBounds:
    """For the losses and gradients of an oracle's `BinaryCrossEntropy`."""

    def __init__(self, oracle, dtype):
        self.oracle, self.dtype = oracle, dtype
        self.sides = ((np.abs(oracle.negative), oracle.logits), (np.abs(oracle.positive), -oracle.logits))

    @property
    def losses(self):
        rounding = half_ulp(self.oracle.losses, np.float64 if self.dtype == np.float64 else np.float32)
        power = self.oracle.missing**self.oracle.gamma
        return rounding + _times(power, self._losses) + _times(self._of_power, np.abs(self.oracle.losses))

    @property
    def _of_power(self):
        """Of the power of what the probability of the target lacks, relative to that."""
        u, _ = unit(self.dtype)
        # An infinite logit's is exact.
        sizes = np.where(np.isfinite(self.oracle.logits), np.abs(self.oracle.logits), 0)
        return self.oracle.gamma * (u * (sizes + np.log(2) + 4) + FACTORS)

    @property
    def _losses(self):
        """softplus(x) is the loss of two classes, x and 0, whose target is 0: it leads where x < 0."""
        u, smallest = unit(self.dtype)
        bound = 0
        for weight, x in self.sides:
            with np.errstate(invalid="ignore"):
                relative = u * (np.abs(x) + np.log(2) + 2) * np.log1p(np.exp(-np.abs(x))) + 2 * smallest
            absolute = u * (np.log(2) + 2)
            bound = bound + _times(weight, np.where((x <= 0) & (relative < absolute), relative, absolute))
            bound = bound + FACTORS * _times(weight, softplus(x))
        return bound

    def gradients(self, scale=1.0):
        u, smallest = unit(self.dtype)
        bound = 0
        for weight, x in self.sides:
            with np.errstate(invalid="ignore"):
                of_side = u * (np.maximum(-x, 0) + np.log(2) + 4) * sigmoid(x)
            bound = bound + _times(weight, np.nan_to_num(of_side, nan=0) + smallest)
            bound = bound + FACTORS * weight * sigmoid(x)
        if self.oracle.gamma:
            power = self.oracle.missing**self.oracle.gamma
            missing, slope = self.oracle.missing, np.abs(self.oracle.missing_slope)
            bound = _times(power, bound) + _times(self._of_power, np.abs(self.oracle.gradients))
            with np.errstate(invalid="ignore", divide="ignore"):
                of_loss = self.losses / missing * slope
            bound = bound + self.oracle.gamma * np.where(slope == 0, 0, of_loss)
            relative = (3 / self.oracle.gamma + 1) * self._of_power
            bound = bound + 2 * self.oracle.gamma * _times(relative, np.abs(self.oracle.of_power))
        return np.maximum(np.abs(scale) * bound, smallest)

    def hessians(self, scale=1.0):
        """Of p (1 - p) the larger factor is near 1, and the error that of the smaller."""
        u, smallest = unit(self.dtype)
        with np.errstate(invalid="ignore"):
            of_share = u * (np.abs(self.oracle.logits) + np.log(2) + 4) * sigmoid(-np.abs(self.oracle.logits))
        mass = np.abs(self.oracle.negative + self.oracle.positive)
        bound = _times(mass, np.nan_to_num(of_share, nan=0) + smallest)
        bound = bound + FACTORS * np.nan_to_num(mass * sigmoid(-np.abs(self.oracle.logits)))
        return np.maximum(np.abs(scale) * bound, smallest)


def entropy_bound(softmax, dtype):
    u, _ = unit(dtype)
    bound = _times(probability_bound(softmax, dtype), np.abs(softmax.log_probabilities)).sum(axis=1)
    rounding = half_ulp(softmax.entropies, np.float64 if dtype == np.float64 else np.float32)
    return bound + u * (_logs(softmax, dtype) + 2) + rounding


def _times(weights, bounds):
    """0 * inf = 0: what is not there has no error."""
    with np.errstate(invalid="ignore", over="ignore"):
        return np.where((weights == 0) | (bounds == 0), 0, weights * bounds)


def mean_bound(bounds, losses, count):
    """Of a float64 sum of row losses, divided by count: the rows' own bounds, and the sum's rounding."""
    with np.errstate(invalid="ignore", divide="ignore"):
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
