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

from ensjax.member_arrays import TIE_TOLERANCE
from ensjax.predictions import ABSTAIN
from ensjax.scores.ties import inner_edges

_LANE_NUMBERS = 2**12  # that are compared with an edge at once


class RowPass(NamedTuple):
    """Of M members and, behind them, their mixture: T = M + 1 systems.

    Sums are over rows, by `sample_weight`; `total` divides them into means.

    Attributes:
        log_confidence: log-probability of the first choice, `[system, batch]`, with
            all its digits where that is nearly 1.
        choice: the first choice, -1 where a row holds a NaN, `[system, batch]`.
        sums: `nll`, `brier`, `top_k` (label among the first k) and `entropy`
            `[system]`; `mutual_information` and `jensen_gap`, scalars; `class_gap`, the
            labels minus probabilities in each bin, `[bin, class, system]`.
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
        block: rows at a time; None: as many as make 2^15 numbers, which a cache holds,
            and at least eight.
    """
    num_members, num_rows, num_classes = logits.shape
    if block is None:
        block = 8 * max(1, _LANE_NUMBERS // (num_members * num_classes))
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
    most = max(1, _LANE_NUMBERS // (num_members * num_classes))
    lanes = max(n for n in range(1, min(most, block) + 1) if block % n == 0)
    tables = tuple(
        jnp.broadcast_to(one, (num_bins, num_classes, number, lanes))
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
    above = jnp.sum(jnp.concatenate(tables, axis=2), axis=-1)
    gap = above - jnp.pad(above[1:], ((0, 1), (0, 0), (0, 0)))
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
    logit = jax.lax.optimization_barrier(jnp.moveaxis(rows, 2, 0))  # class, member, row
    peak = jnp.max(logit, axis=0)
    # What follows reads this array; without the barrier each sum would compute it anew.
    exp = jax.lax.optimization_barrier(jnp.exp(logit - peak[None]))
    scale = jnp.sum(exp, axis=0)
    log_scale = jnp.log(scale)
    # All but the first choice: 1 + 1e-9 would be 1, and the order of sure rows lost.
    below = jnp.sum(jnp.where(exp >= 1, 0.0, exp), axis=0)
    others = below + (jnp.round(scale - below) - 1)
    # Whatever a member without weight holds, NaN included, leaves no trace.
    share = jax.lax.optimization_barrier(weights[:, None] / scale)[None]
    parts = jnp.where(is_member[None], exp * share, 0.0)
    mixture = jnp.sum(parts, axis=1)[:, None]
    mixture = jax.lax.optimization_barrier(mixture)  # [class, 1, row]
    largest = jnp.max(mixture, axis=0)
    is_largest = mixture >= largest[None]
    mixture_others = jnp.sum(jnp.where(is_largest, 0.0, mixture), axis=0)
    mixture_others += largest * (jnp.sum(is_largest, axis=0) - 1)
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
    # Of probabilities, what the tolerance is of their logarithms.
    lower, upper = 1 - TIE_TOLERANCE, 1 + TIE_TOLERANCE
    choice = _first_place(logit, peak - TIE_TOLERANCE)
    # A NaN elsewhere in its row leaves the label's logit as it is.
    mark = jnp.where(jnp.isnan(member_prob), jnp.nan, member_logit)
    systems = {
        "nll": (-member_log_prob, -pooled[None]),
        "brier": (
            jnp.sum(exp**2, axis=0) / scale**2 - 2 * member_prob + 1,
            jnp.sum(mixture**2, axis=0) - 2 * mixture_prob + 1,
        ),
        "top_k": (
            _is_among_first(
                logit, (mark - TIE_TOLERANCE, mark + TIE_TOLERANCE), index, top_k
            ),
            _is_among_first(
                mixture, (mixture_prob * lower, mixture_prob * upper), index, top_k
            ),
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
    inverse = jax.lax.optimization_barrier(1 / scale)
    tables = (
        _add_gaps(tables[0], exp * inverse[None], label, weight),
        _add_gaps(tables[1], mixture, label, weight),
    )
    return (
        -jnp.log1p(jnp.concatenate([others, mixture_others / largest])),
        jnp.concatenate([choice, _first_place(mixture, largest * lower)]),
        _majority(choice, is_member, num_classes),
        sums,
        tables,
    )


def _of_label(values, index, known):
    """Values `[class, system, row]` of the label of each row; NaN if it is no class."""
    full = jnp.broadcast_to(index[None], (1, *values.shape[1:]))
    picked = jnp.take_along_axis(values, full, axis=0)[0]
    return jnp.where(known, picked, jnp.nan)


def _first_place(values, least):
    """The first class whose value is at least `least`; -1 where that is NaN."""
    num_classes = values.shape[0]
    classes = jnp.arange(num_classes, dtype=jnp.int32)[:, None, None]
    found = jnp.min(jnp.where(values >= least[None], classes, num_classes), axis=0)
    return jnp.where(found == num_classes, ABSTAIN, found)


def _is_among_first(values, marks, index, top_k):
    """1 where fewer than `top_k` classes come before the label's, NaN if undefined.

    Values between the two `marks` are equal to the label's.
    """
    below, above = marks
    classes = jnp.arange(values.shape[0], dtype=jnp.int32)[:, None, None]
    before = (values > above[None]) | (
        (values >= below[None]) & (classes < index[None])
    )
    found = (jnp.sum(before, axis=0, dtype=jnp.int32) < top_k).astype(values.dtype)
    return jnp.where(jnp.isnan(above), jnp.nan, found)


def _majority(choice, is_member, num_classes):
    """The class of most members, the lowest among equals, `[row]`; -1 without any."""
    classes = jnp.arange(num_classes, dtype=jnp.int32)[:, None, None]
    votes = (choice[None] == classes) & is_member[None]
    counts = jnp.sum(votes, axis=1, dtype=jnp.int32)
    most = jnp.max(counts, axis=0)
    found = jnp.where(counts == most[None], classes[:, 0], num_classes)
    return jnp.where(most == 0, ABSTAIN, jnp.min(found, axis=0))


def _add_gaps(table, probs, label, weight):
    """Adds labels minus probabilities to `table [bin, class, system, lane]`.

    Its row b holds what lies above the lower edge of bin b: comparisons and sums of
    long vectors, where a scatter takes one number at a time. Row i of the block goes
    to lane i modulo the number of lanes.

    Args:
        table: sums so far.
        probs: `[class, system, row]`.
        label: of each row, `[row]`.
        weight: `[row]`.
    """
    num_bins, num_classes, num_systems, num_lanes = table.shape
    edges = jnp.asarray(np.append(-1.0, inner_edges(num_bins)), probs.dtype)
    edges = edges[:, None, None, None]
    classes = jnp.arange(num_classes, dtype=jnp.int32)[:, None, None]
    # Steps first and made before the loop, which reads them for every edge.
    probs = probs.reshape(num_classes, num_systems, -1, num_lanes)
    probs = jax.lax.optimization_barrier(jnp.moveaxis(probs, 2, 0))
    label, weight = (x.reshape(-1, 1, 1, num_lanes) for x in (label, weight))

    def add(step, table):
        own = jax.lax.dynamic_index_in_dim(probs, step, keepdims=False)
        gap = (classes == label[step]).astype(own.dtype) - own
        gap = jnp.where(weight[step] == 0, 0.0, gap) * weight[step]
        # A NaN is below no edge, and spoils its class.
        return table + jnp.where(own[None] <= edges, 0.0, gap[None])

    return jax.lax.fori_loop(0, probs.shape[0], add, table, unroll=4)


def _weigh(values, weight):
    """`values [..., row]` times the weight, and 0 where that is 0, also for NaN."""
    weight = weight.reshape((1,) * (values.ndim - 1) + weight.shape)
    return jnp.where(weight == 0, 0.0, values) * weight
