"""One pass over the logits of many members: what all classification scores need of it.

A score for itself reads `[member, batch, class]` once or more and keeps arrays of that
size. Here the logits are read once, a block of rows at a time; what is kept of a row
are its confidence and choice, and of all rows some sums. Probabilities below 1e-38 are
0, so that a class may have none.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ensjax.predictions import ABSTAIN

_MOST_COMPARED = 32
_BLOCK_NUMBERS = 2**15


class RowPass(NamedTuple):
    """Of M members and, behind them, their mixture: T = M + 1 systems.

    Sums are over rows, by `sample_weight`; `total` divides them into means.

    Attributes:
        log_confidence: log-probability of the first choice, `[system, batch]`.
        choice: the first choice, -1 where a row holds a NaN, `[system, batch]`.
        sums: `nll`, `brier`, `top_k` (label among the first k) and `entropy`
            `[system]`; `mutual_information` and `jensen_gap`, scalars; `class_gap`, the
            labels minus probabilities in each bin, `[system, class, bin]`.
        vote: majority of the members that count, the lowest class among equals,
            `[batch]`; -1 without any.
        total: weight of all rows.
    """

    log_confidence: jax.Array
    choice: jax.Array
    sums: dict[str, jax.Array]
    vote: jax.Array
    total: jax.Array


def read_rows(
    logits: jax.Array,
    labels: jax.Array,
    weights: jax.Array,
    sample_weight: jax.Array,
    *,
    num_bins: int,
    top_k: int,
    block: int | None = None,
) -> RowPass:
    """Reads every row once, `block` of them at a time.

    Args:
        logits: `[member, batch, class]`, float32.
        labels: `[batch]`, integers.
        weights: of the mixture, `[member]`, summing to 1; members of weight 0 are read
            as zeros, so that nothing of them is left.
        sample_weight: `[batch]`, not negative.
        num_bins: of `class_gap`.
        top_k: k of `top_k`.
        block: rows at a time; None: as many as make 2^15 numbers, which a cache holds.
    """
    num_members, num_rows, num_classes = logits.shape
    if block is None:
        block = max(4, _BLOCK_NUMBERS // (num_members * num_classes))
    num_systems, block = num_members + 1, min(block, num_rows)

    def read(number, kept):
        log_confidence, choice, vote, sums, tables = kept
        # The last block begins earlier if rows are no multiple; what it repeats has no
        # weight.
        start = jnp.minimum(number * block, num_rows - block)
        rows = jax.lax.dynamic_slice_in_dim(logits, start, block, axis=1)
        label = jax.lax.dynamic_slice_in_dim(labels, start, block)
        weight = jax.lax.dynamic_slice_in_dim(sample_weight, start, block)
        is_new = start + jnp.arange(block) >= number * block
        weight = jnp.where(is_new, weight, 0.0)
        found = _read_block(rows, label, weights, weight, tables, top_k)
        log_confidence = jax.lax.dynamic_update_slice_in_dim(
            log_confidence, found[0], start, axis=1
        )
        choice = jax.lax.dynamic_update_slice_in_dim(choice, found[1], start, axis=1)
        vote = jax.lax.dynamic_update_slice_in_dim(vote, found[2], start, axis=0)
        sums = jax.tree.map(jnp.add, sums, found[3])
        return log_confidence, choice, vote, sums, found[4]

    one = jnp.zeros_like(weights[0])
    of_system = jnp.broadcast_to(one, (num_systems,))
    empty = jnp.broadcast_to(one, (num_systems, num_rows))
    sums = {
        "nll": of_system,
        "brier": of_system,
        "top_k": of_system,
        "entropy": of_system,
        "mutual_information": one,
        "jensen_gap": one,
    }
    # Labels minus probabilities by class, system and bin: of members and the mixture.
    tables = tuple(
        jnp.broadcast_to(one, (num_classes, number, num_bins))
        for number in (num_members, 1)
    )
    # Under `shard_map` what a loop carries must vary as what it is given does.
    varies = 0.0 * labels[0]
    start = jax.tree.map(
        lambda x: x + varies,
        (empty, empty, jnp.broadcast_to(one, (num_rows,)), sums, tables),
    )
    to_choice = start[1].astype(jnp.int32), start[2].astype(jnp.int32)
    log_confidence, choice, vote, sums, tables = jax.lax.fori_loop(
        0, -(-num_rows // block), read, (start[0], *to_choice, *start[3:])
    )
    gap = jnp.moveaxis(jnp.concatenate(tables, axis=1), 0, 1)
    # A label that is no class spoils every class, as NaN would.
    unknown = (labels < 0) | (labels >= num_classes)
    sums["class_gap"] = jnp.where(jnp.any(unknown & (sample_weight != 0)), jnp.nan, gap)
    return RowPass(log_confidence, choice, sums, vote, jnp.sum(sample_weight))


def _read_block(rows, label, weights, weight, tables, top_k):
    """Confidence, choice, vote, sums and tables of a block `[member, row, class]`."""
    num_classes = rows.shape[-1]
    is_member = (weights > 0)[:, None]
    # Classes first: sums over them are then sums of long vectors, which compilers turn
    # into fast code; over the last axis they add one number at a time.
    logit = jnp.moveaxis(jnp.where(is_member[..., None], rows, 0.0), 2, 0)
    logit = jax.lax.optimization_barrier(logit)  # [class, member, row]
    peak = jnp.max(logit, axis=0)
    # What follows reads this array; without the barrier each sum would compute it anew.
    exp = jax.lax.optimization_barrier(jnp.exp(logit - peak[None]))
    scale = jnp.sum(exp, axis=0)
    log_scale = jnp.log(scale)
    mixture = jnp.sum(exp * (weights[:, None] / scale)[None], axis=1)[:, None]
    mixture = jax.lax.optimization_barrier(mixture)  # [class, 1, row]
    largest = jnp.max(mixture, axis=0)
    known = ((label >= 0) & (label < num_classes))[None]
    index = jnp.where(known, label[None], 0)

    member_logit = _of_label(logit, index, known)
    member_log_prob = member_logit - peak - log_scale
    # In log-space: the mixture's probability of the label may underflow.
    pooled = jax.nn.logsumexp(
        jnp.where(is_member, member_log_prob, 0.0),
        axis=0,
        b=jnp.broadcast_to(weights[:, None], member_log_prob.shape),
    )
    member_prob = jnp.exp(member_log_prob)
    mixture_prob = _of_label(mixture, index, known)
    inner = jnp.where(exp == 0, 0.0, exp * (logit - peak[None]))
    entropy = log_scale - jnp.sum(inner, axis=0) / scale
    mixed = jnp.where(mixture == 0, 0.0, mixture * jnp.log(mixture))
    mixed = -jnp.sum(mixed, axis=0)
    choice = _first_place(logit, peak)
    systems = {
        "nll": (-member_log_prob, -pooled[None]),
        "brier": (
            jnp.sum(exp**2, axis=0) / scale**2 - 2 * member_prob + 1,
            jnp.sum(mixture**2, axis=0) - 2 * mixture_prob + 1,
        ),
        "top_k": (
            # A NaN elsewhere in its row leaves the label's logit as it is.
            _is_among_first(
                logit,
                jnp.where(jnp.isnan(member_prob), jnp.nan, member_logit),
                index,
                top_k,
            ),
            _is_among_first(mixture, mixture_prob, index, top_k),
        ),
        "entropy": (entropy, mixed),
    }
    counted = jnp.where(is_member, member_log_prob, 0.0)
    gap = pooled - jnp.sum(weights[:, None] * counted, axis=0)
    mutual = mixed[0] - jnp.sum(
        weights[:, None] * jnp.where(is_member, entropy, 0.0), axis=0
    )

    def total(values):
        return jnp.sum(_weigh(values, weight), axis=-1)

    sums = {k: jnp.concatenate([total(v) for v in pair]) for k, pair in systems.items()}
    sums["mutual_information"] = total(jnp.where(mutual < 0, 0.0, mutual))
    sums["jensen_gap"] = total(jnp.where(gap < 0, 0.0, gap))
    index = index[0], known[0]
    tables = (
        _add_gaps(tables[0], exp, 1 / scale, member_prob, index, weight),
        _add_gaps(tables[1], mixture, largest * 0 + 1, mixture_prob, index, weight),
    )
    return (
        jnp.concatenate([-log_scale, jnp.log(largest)]),
        jnp.concatenate([choice, _first_place(mixture, largest)]),
        _majority(choice, is_member, num_classes),
        sums,
        tables,
    )


def _of_label(values, index, known):
    """Values `[class, system, row]` of the label of each row; NaN if it is no class."""
    full = jnp.broadcast_to(index[None], (1, *values.shape[1:]))
    picked = jnp.take_along_axis(values, full, axis=0)[0]
    return jnp.where(known, picked, jnp.nan)


def _first_place(values, largest):
    """The first class whose value is the largest; -1 where that is NaN."""
    num_classes = values.shape[0]
    classes = jnp.arange(num_classes, dtype=jnp.int32)[:, None, None]
    found = jnp.min(jnp.where(values == largest[None], classes, num_classes), axis=0)
    return jnp.where(found == num_classes, ABSTAIN, found)


def _is_among_first(values, mark, index, top_k):
    """1 where fewer than `top_k` classes come before the label's, NaN if undefined."""
    classes = jnp.arange(values.shape[0], dtype=jnp.int32)[:, None, None]
    before = (values > mark[None]) | ((values == mark[None]) & (classes < index[None]))
    found = (jnp.sum(before, axis=0, dtype=jnp.int32) < top_k).astype(values.dtype)
    return jnp.where(jnp.isnan(mark), jnp.nan, found)


def _majority(choice, is_member, num_classes):
    """The class of most members, the lowest among equals, `[row]`; -1 without any."""
    classes = jnp.arange(num_classes, dtype=jnp.int32)[:, None, None]
    votes = (choice[None] == classes) & is_member[None]
    counts = jnp.sum(votes, axis=1, dtype=jnp.int32)
    most = jnp.max(counts, axis=0)
    found = jnp.where(counts == most[None], classes[:, 0], num_classes)
    return jnp.where(most == 0, ABSTAIN, jnp.min(found, axis=0))


def _add_gaps(table, exp, factor, own, label, weight):
    """Adds labels minus probabilities to `table [class, system, bin]`.

    Probabilities are `exp [class, system, row]` times `factor [system, row]`; `label`
    are the rows' labels and whether each is a class.
    """
    num_classes, num_systems, num_bins = table.shape
    index, known = label
    probs = exp * factor[None]
    classes = jnp.arange(num_classes, dtype=jnp.int32)[:, None, None]
    systems = jnp.arange(num_systems, dtype=jnp.int32)[:, None]
    first = (classes * num_systems + systems[None]) * num_bins
    # Made before they are scattered, as a scatter computes its operands one by one; and
    # with systems last, as neighbours that fall into one bin wait for each other.
    values, places = jax.lax.optimization_barrier(
        (
            jnp.swapaxes(-_weigh(probs, weight), 1, 2),
            jnp.swapaxes(first + equal_width_bin(probs, num_bins), 1, 2),
        )
    )
    flat = table.reshape(-1).at[places.reshape(-1)].add(values.reshape(-1))
    place = (index[None] * num_systems + systems) * num_bins
    place += equal_width_bin(own, num_bins)
    one = jnp.broadcast_to(jnp.where(known, weight, 0.0)[None], own.shape)
    return flat.at[place.reshape(-1)].add(one.reshape(-1)).reshape(table.shape)


def _weigh(values, weight):
    """`values [..., row]` times the weight, and 0 where that is 0, also for NaN."""
    weight = weight.reshape((1,) * (values.ndim - 1) + weight.shape)
    return jnp.where(weight == 0, 0.0, values) * weight


def equal_width_bin(probs: jax.Array, num_bins: int) -> jax.Array:
    """The bin (lo, hi] of `num_bins` equal ones between 0 and 1, int32; NaN gives 0.

    Edges are numbers k / num_bins, rounded once on the host: `ceil(p * num_bins)` would
    put p = 3/15 above its own edge, and compiled programs divide inexactly.
    """
    edges = (np.arange(1, num_bins) / num_bins).astype(probs.dtype)
    if num_bins > _MOST_COMPARED:
        found = jnp.searchsorted(jnp.asarray(edges), probs.reshape(-1), side="left")
        found = jnp.where(jnp.isnan(probs.reshape(-1)), 0, found)
        return found.astype(jnp.int32).reshape(probs.shape)
    # Comparisons with constants are code without memory, for many numbers at once.
    bins = jnp.zeros(probs.shape, jnp.int32)
    for edge in edges:
        bins += (probs > edge).astype(jnp.int32)
    return bins
