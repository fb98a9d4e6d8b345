"""What the functions should return: the textbook formulas in NumPy, in floats wide enough to judge ours.

16- and 32-bit logits are judged in float64, float64 logits in np.longdouble. Logits are (rows, classes),
weights NumPy arrays or None. A row whose sample weight is 0 is left out, whatever it holds; any other weight
of zero makes an infinite loss 0, and a row that is not a number stays so.
"""

import numpy as np


def wide(dtype):
    return np.longdouble if dtype == np.float64 else np.float64


def times(weights, values):
    """The product in which 0 * inf is 0."""
    with np.errstate(invalid="ignore", over="ignore"):
        product = weights * values
    return np.where((weights == 0) & ~np.isnan(values), 0, product)


class Softmax:
    """The softmax of every row, and what follows from it."""

    def __init__(self, logits, temperature=1.0, softcap=None):
        self.dtype = wide(logits.dtype)
        temperature = self.temperature = self.dtype(temperature)
        logits = logits.astype(self.dtype)
        self.rows = np.arange(len(logits))
        self.classes = logits.shape[1]
        self.top = logits.argmax(axis=1)
        self.capped = softcap is not None
        with np.errstate(invalid="ignore", over="ignore"):
            self.slope = np.broadcast_to(1 / temperature, logits.shape)
            if self.capped:
                finite, cap = np.isfinite(logits), self.dtype(softcap)
                self.slope = np.where(finite, 1 / np.cosh(logits / cap) ** 2, 0) / temperature
                logits = np.where(finite, cap * np.tanh(logits / cap), logits)
                self.largest_capped = np.where(finite, np.abs(logits), 0).max(axis=1) / temperature
            largest = logits.max(axis=1)
            self.peak = largest / temperature
            # Subtracted before anything is divided: x - max is exact where x and max are close.
            self.gaps = (largest[:, None] - logits) / temperature
        terms = np.exp(-self.gaps)
        self.sum = terms.sum(axis=1)
        self.probabilities = terms / self.sum[:, None]
        terms[self.rows, self.top] = 0
        # log(1 + the other terms) keeps the digits of a confident row, log(sum) does not.
        self.log_sum = np.log1p(terms.sum(axis=1) + 0 * self.sum)
        self.masked = np.isneginf(logits) & ~np.isnan(self.log_sum)[:, None]

    @property
    def logsumexp(self):
        # NaN is the largest of a row that has one.
        return np.where(np.isinf(self.peak), self.peak, self.peak + self.log_sum)

    @property
    def log_probabilities(self):
        return -(self.gaps + self.log_sum[:, None])

    @property
    def entropies(self):
        return -times(self.probabilities, self.log_probabilities).sum(axis=1)

    @property
    def others(self):
        """1 - p, to which no digits are lost: for the largest class it is the sum of the others' p."""
        others = 1 - self.probabilities
        rest = self.probabilities.copy()
        rest[self.rows, self.top] = 0
        others[self.rows, self.top] = rest.sum(axis=1)
        return others

    def losses(self, targets, ignore_index=-100):
        return CrossEntropy(self, targets, ignore_index=ignore_index).losses

    def gradients(self, targets, ignore_index=-100):
        """With respect to z, the logits that are capped and divided by the temperature."""
        return CrossEntropy(self, targets, ignore_index=ignore_index).slopes


class CrossEntropy:
    """The loss of every row with targets (rows,), the classes, or (rows, classes), probabilities."""

    def __init__(
        self,
        softmax,
        targets,
        *,
        weight=None,
        sample_weight=None,
        ignore_index=-100,
        label_smoothing=0.0,
        z_loss=0.0,
        focal_gamma=0.0,
        poly_epsilon=0.0,
    ):
        self.softmax = softmax
        dtype = self.dtype = softmax.dtype
        smoothing, rows = dtype(label_smoothing), len(softmax.rows)
        weight = np.ones(softmax.classes, dtype) if weight is None else weight.astype(dtype)
        sample_weight = np.ones(rows, dtype) if sample_weight is None else sample_weight.astype(dtype)
        self.classes, self.smoothed = targets.ndim == 1, label_smoothing > 0
        #: What the probability of each class is multiplied by.
        self.keep = (1 - smoothing) * weight
        if targets.ndim == 2:
            self.ignored = np.zeros(rows, bool)
            wanted, counts = targets.astype(dtype), np.ones(rows, dtype)
        else:
            self.ignored = targets == ignore_index
            classes = np.where(self.ignored, 0, targets)
            wanted, counts = classes[:, None] == np.arange(softmax.classes), weight[classes]
        #: What each class counts in a row: the loss is the sum of shares (lse - z).
        self.shares = weight * ((1 - smoothing) * wanted + smoothing / softmax.classes)
        self.gamma, self.epsilon = dtype(focal_gamma), dtype(poly_epsilon)
        self.is_focused = focal_gamma != 0 or poly_epsilon != 0
        #: The same times the slopes of what becomes of the losses.
        self.pulls = self.shares
        if self.is_focused:
            self.pulls = times(self.shares, self.focus_slopes(-softmax.log_probabilities))
        self.mass = self.pulls.sum(axis=1)
        self.scale = np.where(self.ignored, 0, sample_weight)
        self.left_out = self.scale == 0
        self.z_loss = dtype(z_loss)
        #: What the mean divides by.
        self.divisor = (self.scale * counts).sum()

    def focused(self, losses):
        """(1 - p)^gamma L + epsilon (1 - p) of L = -log p."""
        missing = -np.expm1(-losses)
        return times(missing**self.gamma, losses) + self.epsilon * missing

    def focus_slopes(self, losses):
        """The derivative of that by L."""
        p, missing = np.exp(-losses), -np.expm1(-losses)
        with np.errstate(invalid="ignore", divide="ignore"):
            share = np.where(missing == 0, 1, np.where(p == 0, 0, losses * p / missing))
        return missing**self.gamma * (1 + self.gamma * share) + self.epsilon * p

    @property
    def losses(self):
        missed = -self.softmax.log_probabilities
        terms = times(self.shares, self.focused(missed) if self.is_focused else missed)
        with np.errstate(invalid="ignore", over="ignore"):
            penalties = times(self.z_loss, self.softmax.logsumexp**2)
            losses = terms.sum(axis=1) + penalties + 0 * self.softmax.log_sum
        return np.where(self.left_out, 0, times(self.scale, losses))

    @property
    def slopes(self):
        """With respect to z: mass p - share, as p (other shares) - share (other p), to lose no digits."""
        softmax = self.softmax
        with np.errstate(invalid="ignore", over="ignore"):
            others = (self.mass + 2 * self.z_loss * softmax.logsumexp)[:, None] - self.pulls
            slopes = others * softmax.probabilities - self.pulls * softmax.others
            slopes = np.where(softmax.masked, 0, slopes + 0 * softmax.log_sum[:, None])
        return np.where(self.left_out[:, None], 0, times(self.scale[:, None], slopes))

    @property
    def gradients(self):
        return times(self.softmax.slope, self.slopes)

    @property
    def hessians(self):
        """The diagonal, without z-loss, softcap and focus."""
        curvatures = self.mass[:, None] * self.softmax.probabilities * self.softmax.others
        curvatures = np.where(self.softmax.masked, 0, curvatures * self.softmax.slope**2)
        curvatures = curvatures + 0 * self.softmax.log_sum[:, None]
        return np.where(self.left_out[:, None], 0, times(self.scale[:, None], curvatures))

    @property
    def pull(self):
        """The derivative of z_loss lse^2."""
        return times(2 * self.z_loss, self.softmax.logsumexp)

    def hessian_products(self, vectors):
        """The Hessian of each row times its vector, without softcap and focus."""
        p = self.softmax.probabilities
        distances, top, mean = self.distances(vectors)
        with np.errstate(invalid="ignore"):
            products = times(p, (self.mass + self.pull)[:, None] * (distances - mean[:, None]))
            products = products + times(p, (2 * self.z_loss * (top + mean))[:, None])
        products = np.where(self.softmax.masked, 0, products * self.softmax.slope**2)
        products = products + 0 * self.softmax.log_sum[:, None]
        return np.where(self.left_out[:, None], 0, times(self.scale[:, None], products))

    def distances(self, vectors):
        """(v - v[top], v[top], their mean), the numbers of masked classes being 0."""
        softmax = self.softmax
        vectors = np.where(softmax.masked, 0, vectors.astype(self.dtype))
        top = vectors[softmax.rows, softmax.top]
        distances = np.where(softmax.masked, 0, vectors - top[:, None])
        return distances, top, (softmax.probabilities * distances).sum(axis=1)

    @property
    def target_gradients(self):
        gradients = times(self.keep, -self.softmax.log_probabilities)
        return np.where(self.left_out[:, None], 0, times(self.scale[:, None], gradients))

    @property
    def temperature_gradients(self):
        """With all z less the largest."""
        softmax = self.softmax
        with np.errstate(invalid="ignore"):
            of_model = (self.mass + self.pull) * times(softmax.probabilities, softmax.gaps).sum(axis=1)
            of_targets = times(self.shares, softmax.gaps).sum(axis=1)
            slopes = of_model - of_targets - times(self.pull, softmax.peak)
            slopes = slopes / softmax.temperature + 0 * softmax.log_sum
        return np.where(self.left_out, 0, times(self.scale, slopes))


class KlDivergence:
    """KL(teacher || model) of every row, from the Softmax of both."""

    def __init__(self, model, teacher, sample_weight=None):
        self.model, self.teacher = model, teacher
        dtype = self.dtype = np.result_type(model.dtype, teacher.dtype).type
        rows = len(model.rows)
        self.scale = np.ones(rows, dtype) if sample_weight is None else sample_weight.astype(dtype)
        self.left_out = self.scale == 0
        self.divisor = self.scale.sum()

    @property
    def log_ratios(self):
        """log p_teacher - log p_model; 0 where the teacher's class is masked."""
        with np.errstate(invalid="ignore"):
            ratios = self.teacher.log_probabilities - self.model.log_probabilities
        return np.where(self.teacher.masked, 0, ratios)

    @property
    def losses(self):
        losses = times(self.teacher.probabilities, self.log_ratios).sum(axis=1)
        # However small the teacher's probability is: what the model excludes must not be possible at all.
        losses = np.where((self.model.masked & ~self.teacher.masked).any(axis=1), np.inf, losses)
        losses = losses + 0 * self.model.log_sum + 0 * self.teacher.log_sum
        return np.where(self.left_out, 0, times(self.scale, losses))

    @property
    def gradients(self):
        slopes = self.model.probabilities - self.teacher.probabilities
        slopes = np.where(self.model.masked, 0, slopes * self.model.slope)
        slopes = slopes + 0 * self.model.log_sum[:, None] + 0 * self.teacher.log_sum[:, None]
        return np.where(self.left_out[:, None], 0, times(self.scale[:, None], slopes))


def phi(x):
    """exp(x) - 1 - x; near 0 by its series, for the difference has no digits there."""
    series = 1
    for n in range(16, 2, -1):
        series = 1 + x / n * series
    with np.errstate(over="ignore"):
        return np.where(np.abs(x) < 0.5, x * x / 2 * series, np.expm1(x) - x)


class Divergence(KlDivergence):
    """KL(model || teacher) of every row, or that of both from a mixture in which the teacher weighs beta.

    As sums of w φ(log(m / w)), which add m - w to w log(w / m), and so nothing in all.
    """

    def __init__(self, model, teacher, sample_weight=None, beta=None):
        super().__init__(model, teacher, sample_weight)
        p, q = teacher.probabilities, model.probabilities
        with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
            d = model.log_probabilities - teacher.log_probabilities
            d = self.d = np.where(model.masked & teacher.masked, 0, d)
            if beta is None:
                self.terms = [self.term(q, p, -d)]
                self.terms[0][teacher.masked & ~model.masked] = np.inf
                self.v, self.sensitivity = d, np.ones_like(d)
            else:
                beta = self.dtype(beta)
                m = beta * p + (1 - beta) * q
                to_p, to_q = np.log1p((1 - beta) * np.expm1(d)), np.log1p(beta * np.expm1(-d))
                self.terms = [beta * self.term(p, m, to_p), (1 - beta) * self.term(q, m, to_q)]
                self.v = np.where(model.masked, 0, -(1 - beta) * to_q)
                #: The derivative of v by d.
                self.sensitivity = (1 - beta) * np.where(m > 0, beta * p / m, 0)
        self.not_a_number = 0 * model.log_sum + 0 * teacher.log_sum

    @staticmethod
    def term(w, m, x):
        with np.errstate(invalid="ignore"):
            return np.where(np.abs(x) < 0.5, w * phi(x), (m - w) - times(w, x))

    @property
    def divergences(self):
        return sum(self.terms).sum(axis=1) + self.not_a_number

    @property
    def losses(self):
        return np.where(self.left_out, 0, times(self.scale, self.divergences))

    @property
    def above(self):
        """v less its mean; of the largest class what the others make it, without cancellation."""
        q, rows, top = self.model.probabilities, self.model.rows, self.model.top
        with np.errstate(invalid="ignore"):
            rest = q.copy()
            rest[rows, top] = 0
            below = self.v - self.v[rows, top][:, None]
            moment = times(rest, below).sum(axis=1, keepdims=True)
            return below - moment

    @property
    def gradients(self):
        with np.errstate(invalid="ignore"):
            slopes = times(self.model.probabilities, self.above) * self.model.slope
            infinite = np.isinf(self.divergences)[:, None]
            slopes = np.where(self.model.masked, 0, np.where(infinite, np.nan, slopes))
        slopes = slopes + self.not_a_number[:, None]
        return np.where(self.left_out[:, None], 0, times(self.scale[:, None], slopes))


class SparseDivergence:
    """KL of what `dense` gives the listed classes, and of one class more, which holds what is left.

    `listed` says which they are, and a row whose sample weight is 0 is left out.
    """

    def __init__(self, softmax, dense, left, listed, sample_weight):
        self.softmax, self.dense, self.left, self.listed = softmax, dense, left, listed
        self.dtype = softmax.dtype
        self.scale, self.left_out = sample_weight, sample_weight == 0
        self.divisor = sample_weight.sum()
        self.mass = dense.sum(axis=1) + left
        gaps = np.where(listed, np.inf, softmax.gaps)
        nearest = gaps.min(axis=1)
        with np.errstate(invalid="ignore"):
            terms = np.where(listed, 0, np.exp(-(gaps - nearest[:, None])))
        terms = np.where(np.isinf(nearest)[:, None], 0, terms)
        with np.errstate(invalid="ignore", divide="ignore"):
            #: log(1 - Q), and the shares that classes have of 1 - Q.
            self.log_others = np.log(terms.sum(axis=1)) - nearest - softmax.log_sum
            self.shares = np.nan_to_num(terms / terms.sum(axis=1, keepdims=True), nan=0)

    @staticmethod
    def logs(numbers):
        with np.errstate(divide="ignore"):
            return times(numbers, np.log(numbers))

    @property
    def terms(self):
        missed = times(self.dense, -self.softmax.log_probabilities)
        return [
            *(self.logs(self.dense).T, missed.T),
            (self.logs(self.left), times(self.left, -self.log_others)),
        ]

    @property
    def losses(self):
        losses = sum(np.sum(term, axis=0) for term in self.terms) + 0 * self.softmax.log_sum
        return np.where(self.left_out, 0, times(self.scale, losses))

    @property
    def gradients(self):
        softmax = self.softmax
        slopes = self.mass[:, None] * softmax.probabilities - self.dense - self.left[:, None] * self.shares
        slopes = np.where(softmax.masked, 0, slopes * softmax.slope) + 0 * softmax.log_sum[:, None]
        return np.where(self.left_out[:, None], 0, times(self.scale[:, None], slopes))


class BinaryCrossEntropy:
    """The loss of every element, as (1 - t) softplus(x) and P t softplus(-x), both times w."""

    def __init__(
        self,
        logits,
        targets,
        weight=None,
        pos_weight=None,
        ignore_index=None,
        label_smoothing=0.0,
        focal_gamma=0.0,
    ):
        dtype = self.dtype = wide(logits.dtype)
        self.logits = logits.astype(dtype)
        weight = dtype(1) if weight is None else np.asarray(weight).astype(dtype)
        pos_weight = dtype(1) if pos_weight is None else np.asarray(pos_weight).astype(dtype)
        self.ignored = np.zeros(targets.shape, bool) if ignore_index is None else targets == ignore_index
        smoothing = dtype(label_smoothing)
        wanted = (1 - smoothing) * np.where(self.ignored, 0, targets.astype(dtype)) + smoothing / 2
        weight = np.where(self.ignored, 0, weight)
        self.left_out = weight == 0
        self.negative, self.positive = weight * (1 - wanted), weight * pos_weight * wanted
        self.gamma = dtype(focal_gamma)
        #: 1 - p of the target, and its derivative.
        self.missing = wanted * sigmoid(-self.logits) + (1 - wanted) * sigmoid(self.logits)
        self.missing_slope = (1 - 2 * wanted) * sigmoid(self.logits) * sigmoid(-self.logits)
        self.divisor = (~self.ignored).sum()

    @property
    def losses(self):
        x = self.logits
        losses = times(self.negative, softplus(x)) + times(self.positive, softplus(-x))
        return np.where(self.left_out, 0, times(self.missing**self.gamma, losses))

    @property
    def gradients(self):
        x = self.logits
        gradients = times(self.negative, sigmoid(x)) - times(self.positive, sigmoid(-x))
        gradients = times(self.missing**self.gamma, gradients) + self.gamma * self.of_power
        return np.where(self.left_out, 0, gradients)

    @property
    def of_power(self):
        """The derivative of the power of 1 - p times the loss, over gamma."""
        with np.errstate(invalid="ignore", divide="ignore"):
            slopes = self.losses / self.missing * self.missing_slope
        return np.where(self.missing_slope == 0, 0, slopes)

    @property
    def hessians(self):
        """One side's derivative is p, the other's p - 1; both have the derivative p (1 - p)."""
        curvatures = sigmoid(self.logits) * sigmoid(-self.logits)
        return np.where(self.left_out, 0, times(self.negative + self.positive, curvatures))


def softplus(x):
    """log(1 + exp x)."""
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


def sigmoid(x):
    with np.errstate(over="ignore"):
        return 1 / (1 + np.exp(-x))


def ranks(logits, targets):
    """The place of each target when its row is sorted; of equal logits the first comes first."""
    order = np.argsort(-logits, axis=1, kind="stable")
    return (order == targets[:, None]).argmax(axis=1)
