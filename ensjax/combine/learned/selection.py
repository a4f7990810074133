"""Which members to keep: greedy selection with replacement, and pruning.

What is chosen on rows is chosen for these rows: they are held out of the members'
training, and the ensemble that comes out is tested on others.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from ensjax.combine.calibration.fitting import (
    check_predictions,
    check_some_count,
    check_use,
)
from ensjax.combine.rules.average import mean_probs
from ensjax.combine.rules.pool import give_back_pool
from ensjax.member_arrays import wide_labels
from ensjax.predictions import Predictions, as_predictions
from ensjax.provenance import FittedRows
from ensjax.scores.rows import broadcast_rows, row_weights, weigh

# Of the mean probabilities [batch, class], labels [batch] and weights [batch].
PoolLoss = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
LOSSES = ("nll", "error")


@struct.dataclass
class Selection:
    """What `greedy_select` chose; a pytree.

    Attributes:
        weights: `[member]`, summing to 1: how often a member was chosen, averaged over
            the bags.
        counts: `[bag, member]`, how often it was chosen in each bag.
        chosen: `[bag, round]`, the member that each round added.
        losses: `[bag, round]`, the loss of the bag's ensemble after that round; NaN
            where that of every member is.
        fitted_rows: the rows it was chosen on, where they are known.
    """

    weights: jax.Array
    counts: jax.Array
    chosen: jax.Array
    losses: jax.Array
    fitted_rows: FittedRows = struct.field(
        pytree_node=False, default=FittedRows("the selection")
    )

    def __call__(self, logits: jax.Array | Predictions) -> jax.Array | Predictions:
        """`mean_probs` of the chosen members, `[batch, class]` in nats.

        Of `Predictions`, those of one member.

        Raises:
            ValueError: if members are others than those it was chosen from, or in
                another order.
            LeakageError: for test rows that it was chosen on.
        """
        predictions = as_predictions(logits)
        check_use(self.fitted_rows, logits)
        pooled = mean_probs(predictions, self.weights)
        return give_back_pool(logits, pooled, self.fitted_rows, self.weights)


@struct.dataclass
class Pruning:
    """What `prune_members` left; called on predictions it masks the others. A pytree.

    Attributes:
        mask: `[member]`, True for those that are kept.
        losses: `[round + 1]`, of all members (but those that are NaN) and after each
            round; the last repeats where nothing was dropped any more. Of
            `keep_best_members`: `[member]`, of each alone, NaN for one that does not
            count.
        fitted_rows: the rows it was decided on, where they are known.
    """

    mask: jax.Array
    losses: jax.Array
    fitted_rows: FittedRows = struct.field(
        pytree_node=False, default=FittedRows("the pruning")
    )

    def __call__(self, predictions: jax.Array | Predictions) -> Predictions:
        """The predictions without the dropped members, which are masked.

        By the provenance, members have then seen the rows it was decided on.

        Args:
            predictions: `Predictions` of any kind, or `[member, batch, class]` logits.

        Raises:
            ValueError: if members are others than those of the fit, or in another
                order.
            LeakageError: for test rows that it was decided on.
        """
        check_use(self.fitted_rows, predictions)
        predictions = as_predictions(predictions)
        about, mask = predictions.provenance, predictions.mask
        if self.mask.shape != mask.shape[:1]:
            raise ValueError(
                f"{self.mask.shape[0]} members were pruned; got predictions of"
                f" {predictions.num_members}."
            )
        kept = self.mask if mask.ndim == 1 else self.mask[:, None]
        return predictions.replace(
            mask=mask & kept, provenance=self.fitted_rows.mark(about)
        )


def greedy_select(
    logits: jax.Array | Predictions,
    labels: jax.Array,
    *,
    rounds: int = 50,
    loss: str | PoolLoss = "nll",
    start: int = 0,
    num_bags: int = 1,
    bag_fraction: float = 0.5,
    key: jax.Array | None = None,
    mask: jax.Array | None = None,
    sample_weight: jax.Array | None = None,
) -> Selection:
    """Forward selection with replacement: each round adds the member that helps most.

    The loss of every candidate is one array; rounds are one compiled loop. Of the
    ensembles after each round, the one with the least loss is kept. Equal candidates:
    the first.

    Args:
        logits: of rows that no member was trained on, `[member, batch, class]`, or
            `Predictions`.
        labels: class indices `[batch]`.
        rounds: members that are added, with repetition.
        loss: "nll", "error" (1 - accuracy), or a function of the mean probabilities
            `[batch, class]`, labels and weights `[batch]` that is to be small.
        start: begin with so many members, the best alone.
        num_bags: selections, each from a random part of the members, whose weights are
            averaged; 1 selects once, from all.
        bag_fraction: share of the members in each part, with `num_bags` above 1.
        key: of the parts, with `num_bags` above 1.
        mask: `[member]` or `[member, batch]`; a False member counts as removed. A row
            for which no chosen member counts has equal probabilities.
        sample_weight: `[batch]`, non-negative.

    Returns:
        `Selection`, callable on predictions of other rows. In a compiled program its
        weights are NaN if no row counts, as they always are if no choice has a finite
        loss (of labels that are no class, or that all members give probability 0).

    Raises:
        ValueError: if a shape or a number does not fit, a name is unknown, or no row
            counts.
        TypeError: if only votes are known, or `labels` are not integers.
        LeakageError: if `Predictions` say that members were trained on these rows, or
            that they are test rows.

    Source: Caruana et al. 2004, Ensemble selection from libraries of models, section 2.
    """
    pool = _Pool(logits, labels, loss, mask, sample_weight)
    fitted_rows = check_predictions(
        "the selection", pool.predictions, row_weight=sample_weight
    )
    pool.check_some_count("the selection")
    members = pool.predictions.num_members
    if rounds < 1 or num_bags < 1 or not 0 <= start <= members:
        raise ValueError(
            "rounds and num_bags must be at least 1, and start from 0 to"
            f" {members} members; got {rounds}, {num_bags} and {start}."
        )
    if num_bags > 1 and (key is None or not 0 < bag_fraction <= 1):
        raise ValueError(
            f"bags are drawn with a key, and hold a share in (0, 1] of the members; got"
            f" num_bags={num_bags}, key={key} and bag_fraction={bag_fraction}."
        )
    libraries = pool.is_present[None]
    if num_bags > 1:
        libraries = _draw_libraries(key, pool.is_present, num_bags, bag_fraction)
    counts, chosen, losses = jax.lax.map(
        lambda library: _select_once(pool, library, rounds, start), libraries
    )
    share = counts / jnp.sum(counts, axis=1, keepdims=True)
    # A bag in which no members have a finite loss has chosen nothing.
    is_found = jnp.any(jnp.isfinite(losses), axis=1, keepdims=True)
    share = jnp.where(is_found, share, jnp.nan)
    return Selection(jnp.nanmean(share, axis=0), counts, chosen, losses, fitted_rows)


def prune_members(
    logits: jax.Array | Predictions,
    labels: jax.Array,
    *,
    loss: str | PoolLoss = "nll",
    mask: jax.Array | None = None,
    sample_weight: jax.Array | None = None,
) -> Pruning:
    """Backward elimination: drops the member that is missed least, while nothing rises.

    Each round drops the member without which the ensemble's loss is least, and ends
    where that loss is above the last one. At least one member stays. Equal members: the
    first goes. Before all rounds go members whose own loss is NaN (a row that counts is
    NaN), unless that of all is: with one of them nothing could be compared.

    Args:
        logits, labels, loss, mask, sample_weight: as for `greedy_select`.

    Returns:
        `Pruning`, callable on predictions of other rows. In a compiled program, if no
        row counts, all stay and their losses are NaN.

    Raises:
        ValueError, TypeError, LeakageError: as `greedy_select`.
    """
    pool = _Pool(logits, labels, loss, mask, sample_weight)
    fitted_rows = check_predictions(
        "the pruning", pool.predictions, row_weight=sample_weight
    )
    pool.check_some_count("the pruning")
    members = pool.predictions.num_members

    def drop(carry, _):
        kept, current, goes_on = carry
        losses = jax.vmap(pool.loss_of)(pool.sums_of_others(kept))
        losses = jnp.where(kept & ~jnp.isnan(losses), losses, jnp.inf)
        place = jnp.argmin(losses)
        falls = jnp.isfinite(losses[place]) & (losses[place] <= current)
        goes_on = goes_on & falls & (jnp.sum(kept) > 1)
        kept = jnp.where(goes_on & (jnp.arange(members) == place), False, kept)
        current = jnp.where(goes_on, losses[place], current)
        return (kept, current, goes_on), current

    is_sound = pool.is_present & ~jnp.isnan(jax.vmap(pool.loss_of)(pool.shares))
    kept = jnp.where(jnp.any(is_sound), is_sound, pool.is_present)
    first = pool.loss_of(pool.sum_of(kept))
    start = (kept, first, jnp.asarray(True))
    (kept, *_), losses = jax.lax.scan(drop, start, length=members - 1)
    return Pruning(kept, jnp.concatenate([first[None], losses]), fitted_rows)


def keep_best_members(
    logits: jax.Array | Predictions,
    labels: jax.Array,
    number: int,
    *,
    loss: str | PoolLoss = "nll",
    mask: jax.Array | None = None,
    sample_weight: jax.Array | None = None,
) -> Pruning:
    """Keeps the `number` members that alone have the least loss on held-out rows.

    What it makes of `Predictions` has seen these rows (`best_members`, which is given
    losses, cannot know them).

    Args:
        number: members to keep, from 1 to M. Equal losses: the first.
        logits, labels, loss, mask, sample_weight: as for `greedy_select`.

    Returns:
        `Pruning`, callable on predictions of other rows. A member whose loss is NaN is
        never kept, nor is any if no loss is finite.

    Raises:
        ValueError, TypeError, LeakageError: as `greedy_select`.
    """
    pool = _Pool(logits, labels, loss, mask, sample_weight)
    what = "the choice of the best members"
    fitted_rows = check_predictions(what, pool.predictions, row_weight=sample_weight)
    pool.check_some_count(what)
    losses = jax.vmap(pool.loss_of)(pool.shares)
    losses = jnp.where(pool.is_present, losses, jnp.nan)
    some = jnp.any(jnp.isfinite(losses))
    kept = best_members(losses, number, mask=jnp.broadcast_to(some, losses.shape))
    return Pruning(kept, losses, fitted_rows)


def best_members(
    losses: jax.Array, number: int, *, mask: jax.Array | None = None
) -> jax.Array:
    """`[member]` bools, True for the `number` members of least validation loss.

    Losses do not say which rows they are of, so this choice leaves no mark on what is
    made with it: `keep_best_members` takes the rows themselves, and does.

    Args:
        losses: `[member]`, of rows that are not used again; NaN is never chosen.
        number: members to keep. Equal losses: the first.
        mask: `[member]`, False for members that are not to choose from.

    Raises:
        ValueError: if `losses` are not `[member]` or `number` is not from 1 to M.
    """
    losses = jnp.asarray(losses)
    if losses.ndim != 1 or not 1 <= number <= losses.shape[0]:
        raise ValueError(
            f"losses must be [member] and number from 1 to M; got shape {losses.shape}"
            f" and {number}."
        )
    possible = ~jnp.isnan(losses)
    possible = possible if mask is None else possible & jnp.asarray(mask, bool)
    order = jnp.argsort(jnp.where(possible, losses, jnp.inf), stable=True)
    chosen = jnp.zeros(losses.shape, bool).at[order[:number]].set(True)
    return chosen & possible


class _Sum(NamedTuple):
    """A sum of probabilities over members: `exp(peak) * values / count` is their mean.

    The likeliest member of each row is left out as `peak`, so that no row underflows.
    """

    peak: jax.Array  # [batch], a log-probability; 0 where values are of all classes
    values: jax.Array  # [batch, class], or [batch, 1] of the label
    count: jax.Array  # [batch], members that count

    def __add__(self, other):
        # Not jnp.logaddexp: a member twice is to be that member to the last digit.
        peak = jnp.maximum(self.peak, other.peak)
        first, second = (
            part.values * jnp.exp(part.peak - _finite(peak))[..., None]
            for part in (self, other)
        )
        return _Sum(peak, first + second, self.count + other.count)


class _Pool:
    """What each member adds to the sum over members, and the loss of such a sum."""

    def __init__(self, logits, labels, loss, mask, sample_weight):
        self.predictions = as_predictions(logits, mask=mask)
        if isinstance(loss, str) and loss not in LOSSES:
            raise ValueError(
                f"loss is one of {', '.join(LOSSES)}, or a function; got {loss!r}."
            )
        values = self.predictions.log_probs
        labels = jnp.asarray(labels)
        if not jnp.issubdtype(labels.dtype, jnp.integer):
            raise TypeError(f"labels must be integers [batch]; got {labels.dtype}.")
        rows = values.shape[1:2]
        self.labels = broadcast_rows("labels", wide_labels(labels), rows)
        self.weight = row_weights(sample_weight, rows, values.dtype)
        self.loss, self.uniform = loss, 1 / values.shape[-1]
        mask = self.predictions.mask
        counts = jnp.broadcast_to(mask.reshape(mask.shape[0], -1), values.shape[:2])
        if loss == "nll":  # needs no other class than the label's
            known = (self.labels >= 0) & (self.labels < values.shape[-1])
            index = jnp.where(known, self.labels, 0)[None, :, None]
            peak = jnp.take_along_axis(values, index, axis=-1)[..., 0]
            # NaN stays among the values: a maximum may lose it.
            is_known = known[None] & ~jnp.isnan(peak)
            peak = jnp.where(counts, jnp.where(is_known, peak, 0.0), -jnp.inf)
            values = jnp.where(is_known, 1.0, jnp.nan)[..., None]
        else:
            peak, values = jnp.zeros_like(values[..., 0]), jnp.exp(values)
        self.is_present = jnp.any(counts, axis=1)
        values = jnp.where(counts[..., None], values, 0.0)
        # [member, batch]
        self.shares = _Sum(peak, values, counts.astype(values.dtype))

    def check_some_count(self, what):
        said = jnp.any(self.shares.count > 0, axis=0)
        check_some_count(what, jnp.where(said, self.weight, 0.0))

    def of(self, kept):
        """What each member adds, nothing where it is not kept `[member]`."""
        peak, values, count = self.shares
        absent = -jnp.inf if self.loss == "nll" else 0.0
        return _Sum(
            jnp.where(kept[:, None], peak, absent),
            jnp.where(kept[:, None, None], values, 0.0),
            jnp.where(kept[:, None], count, 0.0),
        )

    def sum_of(self, kept):
        """Over the members kept, `[member]` bools."""
        peak, values, count = self.of(kept)
        top = jnp.max(peak, axis=0)
        scaled = values * jnp.exp(peak - _finite(top)[None])[..., None]
        return _Sum(top, jnp.sum(scaled, axis=0), jnp.sum(count, axis=0))

    def sums_of_others(self, kept):
        """For each member, the sum over all others that are kept, `[member, ...]`."""
        # As sums before and after it: a difference of sums would leave rounding where
        # the others' probabilities are small.
        values, nobody = self.of(kept), self.of(jnp.zeros_like(kept))

        def join(first, last):
            return jax.tree.map(lambda *parts: jnp.concatenate(parts), first, last)

        first, last = (jax.tree.map(lambda x: x[:1], nobody),) * 2
        before = join(first, jax.tree.map(lambda x: x[:-1], values))
        after = join(jax.tree.map(lambda x: x[1:], values), last)
        sums = jax.lax.associative_scan
        return sums(_Sum.__add__, before) + sums(_Sum.__add__, after, reverse=True)

    def loss_of(self, total):
        """Of a sum over members."""
        count = total.count
        mean = total.values / jnp.maximum(count, 1)[:, None]
        mean = jnp.where(count[:, None] > 0, mean, self.uniform)
        if callable(self.loss):
            return self.loss(mean, self.labels, self.weight)
        if self.loss == "nll":
            peak = jnp.where(count > 0, total.peak, 0.0)
            wrong = -(jnp.log(mean[:, 0]) + peak)
        else:
            wrong = (jnp.argmax(mean, axis=-1) != self.labels).astype(mean.dtype)
            wrong = jnp.where(jnp.any(jnp.isnan(mean), axis=-1), jnp.nan, wrong)
        return jnp.sum(weigh(wrong, self.weight)) / jnp.sum(self.weight)


def _select_once(pool, library, rounds, start):
    members = len(library)

    def candidates(total):
        losses = jax.vmap(lambda share: pool.loss_of(total + share))(pool.shares)
        return jnp.where(library, losses, jnp.nan)

    def add(total, _):
        losses = candidates(total)
        place = jnp.argmin(_in_order(losses))
        total = total + jax.tree.map(lambda share: share[place], pool.shares)
        # Of the first candidate, where all are NaN.
        return total, (place.astype(jnp.int32), losses[place])

    first = jnp.zeros(members, bool)
    total = pool.sum_of(first)
    if start:
        first = best_members(candidates(total), start, mask=library)
        total = pool.sum_of(first)
    before = pool.loss_of(total)
    _, (chosen, losses) = jax.lax.scan(add, total, length=rounds)
    # The bag 1 : 2 is the bag 3 : 6: of equal losses, to rounding, the first counts.
    lowest = jnp.min(losses)
    last = jnp.argmax(losses <= lowest + 1e-6 * jnp.abs(lowest))
    added = jnp.arange(rounds) <= last
    if start:
        added = added & (jnp.min(losses) < before)
    picks = jax.nn.one_hot(chosen, members, dtype=jnp.int32)
    counts = jnp.sum(jnp.where(added[:, None], picks, 0), axis=0)
    return counts + first.astype(jnp.int32), chosen, losses


def _draw_libraries(key, is_present, num_bags, fraction):
    """`[bag, member]`, so many members of those present in each bag."""
    available = jnp.sum(is_present)
    number = jnp.maximum(jnp.round(fraction * available), 1)

    def draw(key):
        order = jax.random.uniform(key, is_present.shape)
        order = jnp.where(is_present, order, jnp.inf)
        ranks = jnp.argsort(jnp.argsort(order))
        return is_present & (ranks < number)

    return jax.vmap(draw)(jax.random.split(key, num_bags))


def _in_order(losses):
    """Losses for `argmin`: an infinite one is better than none (NaN)."""
    most = jnp.finfo(losses.dtype).max
    losses = jnp.where(jnp.isposinf(losses), most, losses)
    return jnp.where(jnp.isnan(losses), jnp.inf, losses)


def _finite(peak):
    return jnp.where(jnp.isneginf(peak), 0.0, peak)
