"""What shards of the classes add to the divergences of two models."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from . import _xent_rs
from ._environment import in_default_environment
from ._evaluation_options import ComparerOptions
from ._options import Options
from ._rows import Rows
from ._shards import Floats, Whole, slabs

_COMPARER = Options("Comparer", ComparerOptions)


@dataclass(frozen=True)
class Divergences:
    """What the classes of a shard add to the divergences of two models in each row."""

    offset: int
    kl: Floats
    reverse_kl: Floats
    jensen_shannon: Floats


@in_default_environment
def divergences_of(
    logits: tuple[Rows, Rows],
    number: int,
    offset: int,
    wholes: tuple[Whole, Whole],
) -> Divergences:
    """Compare the classes of shard `number` in two models of which all log-sum-exps are known.

    One more class holds what the other shards have, so that the softmax of the shard and that class has the
    probabilities of all classes; what that class adds is taken off again. Logits, and the logarithm of what
    that class has, are taken relative to the largest logit of the whole row. What is far below that loses
    digits of its distance, but as few as the distance itself has in float64, and has as small a probability;
    relative to the largest of the shard, that class would lose all of its own where the shard is masked by
    large numbers. No part of a divergence is larger than the whole, so that nothing is lost by what is
    taken off but some last bits of float64.
    """
    rows, classes = len(logits[0]), logits[0].classes
    kl, reverse_kl, jensen_shannon = np.zeros(rows), np.zeros(rows), np.zeros(rows)
    rests = [whole.log_rest(number) for whole in wholes]
    with np.errstate(all="ignore"):
        off = _terms(*rests)
    # A shard without classes has nothing to look at.
    pairs = zip(slabs(rows if classes else 0, classes + 1), slabs(rows, classes + 1), strict=False)
    for (part, first), (_, second) in pairs:
        for slab, of_model, whole, rest in zip((first, second), logits, wholes, rests, strict=True):
            np.copyto(slab[:, :-1], of_model[part], casting="unsafe")
            whole.transform.lower(slab[:, :-1], whole.top[part, None])
            slab[:, -1] = rest[part] + whole.log_sum[part]
        _, _, *found, _, _ = _xent_rs.compare_rows(first, second, None, _COMPARER, {})
        for to, values, taken in zip((kl, reverse_kl, jensen_shannon), found, off, strict=True):
            with np.errstate(invalid="ignore"):
                to[part] = np.where(np.isinf(values), values, np.maximum(values - taken[part], 0.0))
    return Divergences(offset, kl, reverse_kl, jensen_shannon)


def _terms(log_p: Floats, log_q: Floats) -> tuple[Floats, Floats, Floats]:
    """Return what one class adds to KL(p || q), KL(q || p) and their Jensen-Shannon divergence."""
    p, q = np.exp(log_p), np.exp(log_q)
    # A class is masked if its logarithm says so: e**-746, which is 0, is none that costs infinity.
    change = np.where(np.isneginf(log_p) & np.isneginf(log_q), 0.0, log_q - log_p)
    kl, reverse_kl = _divergence(p, q, change), _divergence(q, p, -change)
    # sqrt(p q) (h sinh h - cosh h log cosh h), with h half the change; or as it is defined.
    half = change / 2
    near = np.sqrt(p * q) * (
        half * np.sinh(half) - np.cosh(half) * 0.5 * np.log1p(np.sinh(half) * np.sinh(half))
    )
    mean = (p + q) / 2
    far = 0.5 * (_times_log(p, p / mean) + _times_log(q, q / mean))
    return kl, reverse_kl, np.where(np.abs(half) < 1, near, far)


def _divergence(p: Floats, q: Floats, change: Floats) -> Floats:
    """Return ``q - p - p·log(q / p)``, with the logarithm `change`."""
    # Of a large change the exponential, q / p, may be infinite, and p may be 0.
    near = p * _expm1_beyond(np.clip(change, -1, 1))
    far = q - p - np.where(np.isinf(change), np.minimum(change, 0.0), p * change)
    return np.where(np.abs(change) < 1, near, far)


def _times_log(p: Floats, ratio: Floats) -> Floats:
    return np.where(p == 0, 0.0, p * np.log(ratio))


def _expm1_beyond(x: Floats) -> Floats:
    """Return ``e**x - 1 - x``, by its series where that is small."""
    series = np.ones_like(x)
    for divisor in range(12, 2, -1):
        series = 1 + x / divisor * series
    return np.where(np.abs(x) < 0.25, x * x / 2 * series, np.expm1(x) - x)
