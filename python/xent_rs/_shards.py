"""What shards of the classes say of rows, and how the whole is put together from them.

A shard has some of the classes of every row. Of each row it tells its largest logit and what the other
classes add to the sum of the exponentials, ``others = Σ exp(z - z_largest)`` without the largest itself,
which is small for a confident row. With ``gap`` how far a shard's largest is below the largest of all, they
make together
::

    others = others of the leading shard + Σ (1 + others)·exp(-gap) of the rest,    log_sum = log1p(others),

and so the log-sum-exp is ``largest + log_sum`` and a loss ``gap of the target + log_sum``, to the digits of
confident rows. A shard is computed in float64, whatever the logits are, some rows at a time: what float32
logits lose in shards is nothing beside what the promised accuracy allows. Shards are put together in the
order of their classes, so that no bit depends on the order in which they came.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from . import _xent_rs
from ._cross_entropy import cross_entropy
from ._environment import in_default_environment
from ._estimates import times
from ._options import Options, RowStatisticsOptions
from ._rows import Rows

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

_STATISTICS = Options("row_statistics", RowStatisticsOptions)

# Elements of what is converted to float64 at a time: 1 MiB, which stays in cache.
_SLAB = 1 << 17
# Up to so many of the largest logits are looked for one after the other, which is faster than sorting.
_FEW = 16
#: The class of a row that has no target: it is ignored.
NO_CLASS = -1


def int64_classes(targets: NDArray[Any], ignore_index: int) -> Integers:
    """Return targets of any integer dtype as int64, `NO_CLASS` where they are ignored."""
    # Not the other way round: unsigned integers have no -1.
    return np.where(targets == ignore_index, NO_CLASS, targets.astype(np.int64))


@dataclass(frozen=True)
class Transform:
    """How logits x become z: ``softcap·tanh(x / softcap) / temperature``, or ``x / temperature``."""

    softcap: float | None = None
    temperature: float = 1.0

    def options(self) -> dict[str, Any]:
        """Return it as options of a function."""
        return {"softcap": self.softcap, "temperature": self.temperature}

    def of(self, logits: Floats) -> tuple[Floats, Floats]:
        """Return z, and what was lost of it."""
        with np.errstate(all="ignore"):
            if self.softcap is None:
                z = logits / self.temperature
                product, error = _product(z, self.temperature)
                lost = ((logits - product) - error) / self.temperature
            else:
                wide = self._capped(logits)
                z = np.where(np.isfinite(logits), wide.astype(np.float64), logits)
                lost = (wide - z).astype(np.float64)
            return z, np.where(np.isfinite(lost), lost, 0.0)

    def _capped(self, logits: Floats) -> NDArray[Any]:
        """Return z with more digits where the platform has them; the promised accuracy is less with a cap."""
        cap = np.longdouble(cast(float, self.softcap))
        return cast("NDArray[Any]", cap * np.tanh(logits / cap) / np.longdouble(self.temperature))

    def precise_gap(self, above: Floats, below: Floats) -> tuple[Floats, Floats]:
        """Return how far one z is below another, and what was lost of that."""
        gap = self.gap(above, below)
        with np.errstate(all="ignore"):
            if self.softcap is None:
                difference = above - below
                subtracted = above - difference
                missing = (above - (difference + subtracted)) + (subtracted - below)
                product, error = _product(gap, self.temperature)
                lost = ((difference - product) - error + missing) / self.temperature
            else:
                lost = ((self._capped(above) - self._capped(below)) - gap).astype(np.float64)
            return gap, np.where(np.isfinite(gap) & np.isfinite(lost), lost, 0.0)

    def lower(self, logits: Floats, above: Floats) -> None:
        """Turn logits, in place, into how far they are above another z: `gap` the other way round."""
        with np.errstate(all="ignore"):
            if self.softcap is not None:
                logits[...] = -self.gap(above, logits)
                return
            logits -= above
            if self.temperature != 1:
                logits /= self.temperature

    def gap(self, above: Floats, below: Floats) -> Floats:
        """Return how far one z is below another: logits are subtracted before anything is divided."""
        with np.errstate(all="ignore"):
            gap = above - below
            if self.softcap is not None:
                # tanh(a) - tanh(b) = tanh(a - b)·(1 - tanh(a)·tanh(b))
                both = np.tanh(above / self.softcap) * np.tanh(below / self.softcap)
                capped = self.softcap * np.tanh(gap / self.softcap) * (1 - both)
                gap = np.where(np.isfinite(above) & np.isfinite(below), capped, gap)
            return gap / self.temperature


@dataclass(frozen=True)
class Shares:
    """What the classes of a shard count in the loss of a row, ``Σ share·(lse - z)``, beside its target.

    Attributes
    ----------
    smoothing : float
        The share of a target that is spread over all classes.
    all_classes : int
        Their number, in all shards.
    weight : ndarray or None
        The weights of the shard's classes.
    counts : ndarray of bool
        Which rows count: what others hold is not looked at.
    probabilities : Rows or None
        Those of the shard's classes in each row, if they are the targets.
    """

    smoothing: float
    all_classes: int
    weight: Floats | None
    counts: NDArray[np.bool_]
    probabilities: Rows | None = None

    def of_slab(self, logits: Floats, rows: slice, transform: Transform) -> tuple[Floats, Floats]:
        """Return ``Σ share·(lse - z)``, with the lse of the shard alone, and ``Σ share``."""
        count, classes = logits.shape
        counted = self.counts[rows].astype(np.float64)
        weight = np.ones(classes) if self.weight is None else self.weight
        if self.probabilities is None:
            each = self.smoothing / self.all_classes
            targets: NDArray[Any] = np.zeros(count, np.int64)
            smoothing, factor = 1.0, each * classes
            mass = np.full(count, each * float(weight.sum()))
        else:
            targets = self.probabilities[rows].astype(np.float64)
            targets = (1 - self.smoothing) * targets + self.smoothing / self.all_classes
            smoothing, factor = 0.0, 1.0
            mass = times(np.broadcast_to(weight, targets.shape), targets).sum(axis=1)
        spread = cross_entropy(
            logits,
            targets,
            weight=weight,
            sample_weight=counted,
            label_smoothing=smoothing,
            reduction="none",
            ignore_index=NO_CLASS,
            **transform.options(),
        )
        return factor * np.asarray(spread, np.float64), mass


@dataclass(frozen=True)
class Shard:
    """What one shard says of each row; the rows are in one axis.

    Attributes
    ----------
    offset, classes : int
        Its first class, and how many it has.
    largest : ndarray
        The largest logit, before softcap and temperature: ``-inf`` if there is none, NaN if one is NaN.
    argmax : ndarray of int
        Its class.
    others : ndarray
        What all but the largest have in the sum of ``exp(z - z_largest)``; 0 if all are ``-inf``, NaN if one
        is NaN or ``+inf``.
    entropy : ndarray
        Of the softmax of the shard alone, in nats; 0 and NaN likewise.
    target_logit : ndarray
        The logit of the target, if that is in the shard; NaN otherwise.
    above : ndarray of int or None
        How many of its classes rank above the target, where the target's logit is known of all rows.
    tops : tuple of ndarray or None
        Its largest logits and their classes, in their order, if they were asked for.
    spread, mass : ndarray or None
        What `Shares` makes of the shard.
    """

    offset: int
    classes: int
    largest: Floats
    argmax: Integers
    others: Floats
    entropy: Floats
    target_logit: Floats
    above: Integers | None = None
    tops: tuple[Floats, Integers] | None = None
    spread: Floats | None = None
    mass: Floats | None = None


@in_default_environment
def shard_of(
    logits: Rows,
    offset: int,
    transform: Transform,
    targets: Integers | None = None,
    *,
    target_logit: Floats | None = None,
    tops: int = 0,
    shares: Shares | None = None,
) -> Shard:
    """Look at the classes from number `offset` on.

    Parameters
    ----------
    logits : Rows
        The logits of the shard.
    offset : int
        Which of all classes is its first.
    transform : Transform
        What becomes of logits.
    targets : ndarray of int, optional
        The class of each row, among all, or `NO_CLASS`.
    target_logit : ndarray, optional
        The logit of each row's target, in whichever shard it is.
    tops : int, optional
        How many of the largest logits to list.
    shares : Shares, optional
        What the shard's classes count.
    """
    rows, classes = len(logits), logits.classes
    tops = min(tops, classes)
    largest, others, entropy = np.full(rows, -np.inf), np.zeros(rows), np.zeros(rows)
    argmax = np.full(rows, offset, np.int64)
    of_target, above = np.full(rows, np.nan), np.zeros(rows, np.int64)
    top_logits, top_classes = np.empty((rows, tops)), np.empty((rows, tops), np.int64)
    spread, mass = np.zeros(rows), np.zeros(rows)
    for part, slab in slabs(rows, classes):
        np.copyto(slab, logits[part], casting="unsafe")
        each = np.arange(len(slab))
        leader = slab.argmax(axis=1)
        largest[part], argmax[part] = slab[each, leader], leader + offset
        options = {**transform.options(), "ignore_index": NO_CLASS}
        _, _, probability, entropies, of_leader, _ = _xent_rs.row_statistics(
            slab, leader, _STATISTICS, options
        )
        masked = np.isneginf(largest[part])
        entropy[part] = np.where(masked, 0.0, entropies)
        assert of_leader is not None
        # Both are accurate to some units of their own last place.
        beside = np.where(of_leader > -1, np.expm1(-of_leader), 1 / probability - 1)
        others[part] = np.where(masked, 0.0, beside)
        if targets is not None:
            place = targets[part] - offset
            mine = (place >= 0) & (place < classes)
            found = slab[each, np.where(mine, place, 0)]
            of_target[part] = np.where(mine, found, np.nan)
            if target_logit is not None:
                above[part] = _ranked_above(slab, target_logit[part], place)
        if shares is not None:
            found, mass[part] = shares.of_slab(slab, part, transform)
            unreachable = np.where(mass[part] > 0, np.inf, 0.0)
            spread[part] = np.where(masked, unreachable, found)
        if tops:  # last, for it writes to the slab
            top_logits[part], places = _largest(slab, tops)
            top_classes[part] = places + offset
    return Shard(
        offset,
        classes,
        largest,
        argmax,
        others,
        entropy,
        of_target,
        above=None if target_logit is None else above,
        tops=(top_logits, top_classes) if tops else None,
        spread=None if shares is None else spread,
        mass=None if shares is None else mass,
    )


def _product(values: Floats, factor: float) -> tuple[Floats, Floats]:
    """Return products and what their rounding has changed, by Dekker's splitting into halves."""

    def halves(value: Any) -> tuple[Any, Any]:
        large = 134217729.0 * value  # 2**27 + 1
        high = large - (large - value)
        return high, value - high

    product = values * factor
    (a, b), (c, d) = halves(values), halves(factor)
    return product, ((a * c - product) + a * d + b * c) + b * d


def slabs(rows: int, classes: int) -> Iterator[tuple[slice, Floats]]:
    """Cut rows into some that are converted together, and give the memory for that, which is always the same.

    A shard without classes has nothing to look at.
    """
    together = min(rows, max(1, _SLAB // max(1, classes)))
    memory = np.empty((together, classes))
    for start in range(0, rows if classes else 0, max(1, together)):
        count = min(together, rows - start)
        yield slice(start, start + count), memory[:count]


def _ranked_above(slab: Floats, logit: Floats, place: Integers) -> Integers:
    """Count the classes of a shard that rank above a target: of equal logits the first ranks higher."""
    classes = slab.shape[1]
    count: Integers = np.count_nonzero(slab > logit[:, None], axis=1)
    equal = slab == logit[:, None]
    equals = np.count_nonzero(equal, axis=1)
    # All of a shard before the target's, none of one behind it. In its own it is mostly the only one.
    count += np.where(place >= classes, equals, 0)
    some = np.flatnonzero((place >= 0) & (place < classes) & (equals > 1))
    if len(some):
        count[some] += np.count_nonzero(equal[some] & (np.arange(classes) < place[some, None]), axis=1)
    return count


def _largest(slab: Floats, count: int) -> tuple[Floats, Integers]:
    """Return the largest logits of each row and their places, of equal ones the first first."""
    places = np.empty((len(slab), count), np.int64)
    if count <= _FEW:
        each = np.arange(len(slab))
        found = np.empty((len(slab), count))
        for rank in range(count):
            places[:, rank] = slab.argmax(axis=1)
            found[:, rank] = slab[each, places[:, rank]]
            slab[each, places[:, rank]] = -np.inf
        # What was taken looks like a masked class: rows that have come to these are sorted, as they were.
        for rank in reversed(range(count)):
            slab[each, places[:, rank]] = found[:, rank]
        again = np.flatnonzero(np.isneginf(found).any(axis=1))
    else:
        again = np.arange(len(slab))
        found = np.empty((len(slab), count))
    places[again] = np.argsort(-slab[again], axis=1, kind="stable")[:, :count]
    found[again] = np.take_along_axis(slab[again], places[again], axis=1)
    return found, places


@dataclass(frozen=True)
class Whole:
    """What all shards together say of each row.

    Attributes
    ----------
    top : ndarray
        The largest logit.
    argmax : ndarray of int
        Its class: of equal ones the first, and the first NaN of a row that has one.
    log_sum : ndarray
        The log-sum-exp less the largest z; NaN where the largest is not finite.
    entropy : ndarray
        The entropy in nats, NaN likewise.
    below : ndarray of shape (shards, rows)
        How far the log-sum-exp of each shard is below that of all; NaN likewise.
    """

    transform: Transform
    top: Floats
    argmax: Integers
    log_sum: Floats
    entropy: Floats
    below: Floats

    @property
    def logsumexp(self) -> Floats:
        """The log-sum-exp; of a row without a softmax what is largest."""
        z, lost = self.transform.of(self.top)
        return np.where(np.isfinite(self.top), z + (self.log_sum + lost), self.top)

    @property
    def max_probability(self) -> Floats:
        """The probability of the largest logit."""
        return np.exp(-self.log_sum)

    def losses(self, target_logit: Floats) -> Floats:
        """Return ``lse - z`` of these logits."""
        gap, lost = self.transform.precise_gap(self.top, target_logit)
        return gap + (self.log_sum + lost)

    def log_rest(self, number: int) -> Floats:
        """Return the logarithm of the probability of all shards but one together, ``-inf`` if it is 0.

        A probability itself would be 0 as soon as it is below e**-745.
        """
        logs = -np.delete(self.below, number, axis=0)
        if not len(logs):
            return np.where(np.isnan(self.log_sum), np.nan, -np.inf)
        most = logs.max(axis=0)
        with np.errstate(all="ignore"):
            return np.where(np.isneginf(most), -np.inf, most + np.log(_sum(np.exp(logs - most))))


@in_default_environment
def whole_of(shards: Sequence[Shard], transform: Transform) -> Whole:
    """Put shards together that have all classes, in their order."""
    largest = np.stack([shard.largest for shard in shards])
    others = np.stack([shard.others for shard in shards])
    lead = largest.argmax(axis=0)  # as of the classes: the first NaN, or the first of equal ones
    each = np.arange(largest.shape[1])
    top = largest[lead, each]
    with np.errstate(all="ignore"):
        gaps, lost = transform.precise_gap(top, largest)
        beside = (1 + others) * np.exp(-gaps) * (1 - lost)
        beside[lead, each] = others[lead, each]
        log_sum = np.where(np.isfinite(top), np.log1p(_sum(beside)), np.nan)
        below = np.maximum(log_sum + gaps - np.log1p(others), 0.0)
        # H = Σ P_k (H_k + lse - lse_k), of which no term is negative, with P_k the probability of a shard.
        entropies = np.stack([shard.entropy for shard in shards])
        entropy = _sum(times(np.exp(-below), entropies + below))
    argmax = np.stack([shard.argmax for shard in shards])[lead, each]
    return Whole(transform, top, argmax, log_sum, entropy, below)


def _sum(terms: Floats) -> Floats:
    """Add up shards in their order: NumPy's order depends on the number of rows."""
    total = np.zeros(terms.shape[1])
    for of_shard in terms:
        total = total + of_shard
    return total


def target_logits(shards: Sequence[Shard]) -> Floats:
    """Return the logit of each row's target: NaN where it has none, or no shard has it."""
    found = shards[0].target_logit
    for shard in shards[1:]:
        found = np.where(np.isnan(found), shard.target_logit, found)
    return found


def ranks(shards: Sequence[Shard], logit: Floats, targets: Integers) -> Integers:
    """Return how many classes rank above the targets, as far as the lists of largest logits tell.

    A rank below the length of the lists is exact, and any other is at least that.
    """
    count = np.zeros(len(targets), np.int64)
    for shard in shards:
        if shard.tops is not None:
            logits, classes = shard.tops
            higher = (logits > logit[:, None]) | ((logits == logit[:, None]) & (classes < targets[:, None]))
            count += np.count_nonzero(higher, axis=1)
    return count


def ranks_of_classes(shards: Sequence[Shard], classes: Integers) -> Integers:
    """Return how many classes rank above one of each row, as `ranks` does."""
    logit, listed, each = np.full(len(classes), np.nan), 0, np.arange(len(classes))
    for shard in shards:
        if shard.tops is not None:
            logits, places = shard.tops
            is_it = places == classes[:, None]
            logit = np.where(is_it.any(axis=1), logits[each, is_it.argmax(axis=1)], logit)
            listed = max(listed, logits.shape[1])
    return np.where(np.isnan(logit), listed, ranks(shards, logit, classes))


@in_default_environment
def losses_of(
    shards: Sequence[Shard],
    whole: Whole,
    *,
    targets: Integers | None,
    target_logit: Floats,
    weight: Floats | None,
    smoothing: float,
    z_loss: float,
    focal_gamma: float,
    poly_epsilon: float,
) -> Floats:
    """Return the loss of each row but for its own weight; `targets` are None if they are probabilities."""
    losses = np.zeros(len(whole.top))
    if targets is not None:
        of_class = np.ones(len(targets)) if weight is None else weight[np.maximum(targets, 0)]
        missed = whole.losses(target_logit)
        if focal_gamma or poly_epsilon:
            missing = -np.expm1(-missed)
            missed = times(missing**focal_gamma, missed) + poly_epsilon * missing
        losses = times((1 - smoothing) * of_class, missed)
    if shards[0].spread is not None:
        for shard, below in zip(shards, whole.below, strict=True):
            assert shard.spread is not None
            assert shard.mass is not None
            losses = losses + (shard.spread + times(shard.mass, below))
    if z_loss:
        losses = losses + z_loss * whole.logsumexp**2
    return np.where(np.isnan(whole.log_sum), np.nan, losses)
