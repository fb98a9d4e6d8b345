"""What `compare` should say, in float64: of each row, in the plainest way, and the formulas of llama.cpp."""

import math

import numpy as np


def phi(d):
    """exp(d) - 1 - d, never negative; near 0 by its series, for the difference has no digits there."""
    if abs(d) >= 0.5:
        return math.expm1(d) - d if d < 700 else math.inf
    return math.fsum(d**k / math.factorial(k) for k in range(2, 20))


def log_softmax(row, temperature=1.0, softcap=None):
    """Logarithms of a row's probabilities; all NaN for a row that has none."""
    row = np.asarray(row, np.float64)
    if np.isnan(row).any() or np.isposinf(row).any() or np.isneginf(row).all():
        return np.full(len(row), math.nan)
    if softcap is not None:
        row = np.where(np.isneginf(row), row, softcap * np.tanh(row / softcap))
    z = row / temperature
    gaps = z - z.max()
    return gaps - math.log(math.fsum(np.exp(gaps)))


def divergences(log_p, log_q):
    """KL(p || q), KL(q || p) and Jensen-Shannon's, as sums of terms that are not negative."""
    if np.isnan(log_p).any() or np.isnan(log_q).any():
        return (math.nan,) * 3
    forward, reverse, middle = [], [], []
    for a, b in zip(log_p.tolist(), log_q.tolist(), strict=True):
        p, q = math.exp(a), math.exp(b)
        if a == b:
            continue
        if a == -math.inf or b == -math.inf:
            # Sums of q - p - p log(q/p): a class that p lacks adds q; one that q lacks, infinity.
            forward.append(q if a == -math.inf else math.inf)
            reverse.append(p if b == -math.inf else math.inf)
            middle.append((p + q) / 2 * math.log(2))
            continue
        d = b - a
        forward.append(p * phi(d))
        reverse.append(q * phi(-d))
        # log(m / p) with m = (p + q) / 2
        to_p, to_q = math.log1p(math.expm1(d) / 2), math.log1p(math.expm1(-d) / 2)
        middle.append((p * phi(to_p) + q * phi(to_q)) / 2)
    return math.fsum(forward), math.fsum(reverse), math.fsum(middle)


def of_model(row, log_p, target):
    """(loss, entropy, largest probability, whether the target has it) of a row."""
    if np.isnan(log_p).any():
        return (0.0 if target is None else math.nan), math.nan, math.nan, False
    p = np.exp(log_p)
    entropy = -math.fsum(a * b for a, b in zip(p, log_p, strict=True) if a)
    top = int(np.argmax(row))
    if target is None:
        return 0.0, entropy, float(p.max()), False
    return -float(log_p[target]), entropy, float(p.max()), top == target


def rank(row, top):
    """How many classes rank above one: those with a larger logit, or with the same before it."""
    return sum(x > row[top] or (x == row[top] and place < top) for place, x in enumerate(row.tolist()))


def compare_rows(reference, candidate, targets, keywords, options):
    """What the compiled function of this name returns."""
    keywords.check(options)
    axis = options.get("axis", -1)
    transform = {
        name: options.get(name, default) for name, default in (("temperature", 1.0), ("softcap", None))
    }
    reference, candidate = np.asarray(reference), np.asarray(candidate)
    if candidate.shape != reference.shape:
        raise ValueError(
            f"candidate has shape {candidate.shape}; expected {reference.shape}, the shape of reference"
        )
    classes = reference.shape[axis]
    pairs = [np.moveaxis(logits, axis, -1) for logits in (reference, candidate)]
    row_shape = pairs[0].shape[:-1]
    first, second = (logits.reshape(-1, classes).astype(np.float64) for logits in pairs)
    rows, ignore_index = len(first), options.get("ignore_index", -100)
    weight = options.get("sample_weight")
    counts = np.ones(rows, bool) if weight is None else np.asarray(weight).reshape(-1) != 0
    if targets is not None:
        targets = np.asarray(targets)
        if targets.shape != row_shape:
            raise ValueError(
                f"targets have shape {targets.shape}; expected {row_shape}, "
                f"the shape of reference {reference.shape} without axis {axis}"
            )
        targets = targets.reshape(-1)
        for row, target in enumerate(targets.tolist()):
            if target != ignore_index and not 0 <= target < classes:
                place = [int(index) for index in np.unravel_index(row, row_shape)]
                expected = f"0 to {classes - 1}, or ignore_index {ignore_index}"
                raise IndexError(f"targets{place} is {target}; expected {expected}")
        counts = counts & (targets != ignore_index)
    divergence, models = np.zeros((3, rows)), [[], []]
    for row in range(rows):
        if not counts[row]:
            for model in models:
                model.append((0.0, 0.0, 0.0, False, 0.0))
            continue
        logs = [log_softmax(logits[row], **transform) for logits in (first, second)]
        divergence[:, row] = divergences(*logs)
        have_tops = not np.isnan(logs).any()
        for model, logits, other, log_p in zip(models, (first, second), (second, first), logs, strict=True):
            above = rank(logits[row], np.argmax(other[row])) if have_tops else -1
            figures = of_model(logits[row], log_p, None if targets is None else int(targets[row]))
            model.append((*figures, above))
    kinds = (np.float64, np.float64, np.float64, bool, np.float64)
    both = [
        tuple(np.array([figures[i] for figures in model], kind) for i, kind in enumerate(kinds))
        for model in models
    ]
    return classes, counts, *divergence, *both


def llama(reference, candidate, targets):
    """The report of llama.cpp's ``llama-perplexity --kl-divergence``, its formulas in float64, from logits.

    Of tools/perplexity/perplexity.cpp: log_softmax, mean_and_uncertainty, covariance, percentile and what
    kl_divergence prints of them.
    """
    log_p, log_q = (
        np.array([log_softmax(row) for row in np.asarray(logits)]) for logits in (reference, candidate)
    )
    rows = np.arange(len(targets))
    base, other = -log_p[rows, targets], -log_q[rows, targets]
    kld = (np.exp(log_p) * (log_p - log_q)).sum(axis=1)
    p_diff = np.exp(-other) - np.exp(-base)
    same_top = (log_p.argmax(axis=1) == log_q.argmax(axis=1)).astype(float)
    n = len(rows)

    def mean_and_uncertainty(x):
        return x.mean(), math.sqrt(((x**2).mean() - x.mean() ** 2) / (n - 1))

    def covariance(x, y):
        return ((x * y).mean() - x.mean() * y.mean()) / (n - 1)

    def percentile(x, fraction):
        x = np.sort(x)
        place = fraction * (n - 1)
        below = int(place)
        return x[below] + (x[min(below + 1, n - 1)] - x[below]) * (place - below)

    (log_ppl, log_ppl_unc), (log_base, log_base_unc) = map(mean_and_uncertainty, (other, base))
    cov = covariance(other, base)
    ppl, ppl_base = math.exp(log_ppl), math.exp(log_base)
    ratio, ratio_unc = log_ppl - log_base, math.sqrt(log_ppl_unc**2 + log_base_unc**2 - 2 * cov)
    mse, mse_unc = mean_and_uncertainty(p_diff**2)
    fractions = (0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999)
    return {
        "candidate_loss": (log_ppl, log_ppl_unc),
        "reference_loss": (log_base, log_base_unc),
        "candidate_perplexity": ppl,
        "reference_perplexity": ppl_base,
        "correlation": cov / (log_ppl_unc * log_base_unc),
        "loss_change": (ratio, ratio_unc),
        "perplexity_ratio": (math.exp(ratio), math.exp(ratio) * ratio_unc),
        "perplexity_change": (
            ppl - ppl_base,
            math.sqrt((ppl * log_ppl_unc) ** 2 + (ppl_base * log_base_unc) ** 2 - 2 * ppl * ppl_base * cov),
        ),
        "kl": mean_and_uncertainty(kld),
        "kl_min": kld.min(),
        "kl_max": kld.max(),
        "kl_quantiles": {fraction: percentile(kld, fraction) for fraction in fractions},
        "delta_p": mean_and_uncertainty(p_diff),
        "delta_p_min": p_diff.min(),
        "delta_p_max": p_diff.max(),
        "delta_p_quantiles": {fraction: percentile(p_diff, fraction) for fraction in fractions},
        "delta_p_rms": (math.sqrt(mse), mse_unc / (2 * math.sqrt(mse))),
        "same_top": (same_top.mean(), math.sqrt(same_top.mean() * (1 - same_top.mean()) / (n - 1))),
    }
