"""Several runs of every member: answers that differ when a member is asked again.

A member that samples its answers (a language model, dropout at test time) is asked R
times about every row, and some answers are missing. `majority_of_runs` makes one vote
of each member, `stack_runs` counts every run as a member, and `run_agreement` tells
how stable each member is:

    runs = [combine.parse_answers(texts, patterns) for texts in texts_of_runs]
    votes = combine.majority_of_runs(runs, ties="abstain")  # one vote a member
    combine.majority_vote(votes)  # each member counts once
    combine.majority_vote(combine.stack_runs(runs))  # each answer counts once

Source: Wang et al. 2023, arXiv:2203.11171, section 2 (self-consistency: the most
frequent of the answers that one model samples).
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ensjax.combine.rules.vote import majority_vote
from ensjax.member_arrays import ABSTAIN, counting_members
from ensjax.predictions import Predictions
from ensjax.scores.diversity import disagreement
from ensjax.scores.rows import row_weights
from ensjax.scores.uncertainty import variation_ratio

_TIES = ("lowest", "probability", "abstain", "random")
_CLASSES = ("logits", "log_probs", "votes")


class RunAgreement(NamedTuple):
    """How often the runs of one member say the same; 1: always.

    Attributes:
        agreement: `[member]`, of the pairs of runs of all rows, the share that name the
            same class; NaN where no two runs answer the same row.
        row_agreement: `[member, batch]`, the same of each row.
        majority_share: `[member, batch]`, of the runs that answer, the share that name
            the most frequent class; NaN where none answers.
        num_runs: `[member, batch]`, how many runs answer.
    """

    agreement: jax.Array
    row_agreement: jax.Array
    majority_share: jax.Array
    num_runs: jax.Array


def majority_of_runs(
    runs: jax.Array | Sequence[Predictions],
    num_classes: int | None = None,
    *,
    ties: str = "lowest",
    mask: jax.Array | None = None,
    key: jax.Array | None = None,
) -> Predictions:
    """One vote of each member: the class that most of its runs put first.

    Args:
        runs: votes `[member, run, batch]` with `num_classes`; -1 is a missing answer.
            Or logits or log-probabilities `[member, run, batch, class]`. Or one
            `Predictions` of the members for each run, of the same names, rows and
            provenance: `Predictions.from_probs(p)` for p in the probabilities.
        num_classes: of votes; None: `runs` are no array of votes.
        ties: among classes that equally many runs name, as in `majority_vote`:
            "lowest", "abstain", "probability" (the mean over the runs) or "random".
        mask: beside an array, `[member, run]` or `[member, run, batch]`; a False run
            counts as not made. `Predictions` hold their own, and a run of weight 0
            does not count either.
        key: for `ties="random"`; each member and row has its own draw.

    Returns:
        `Predictions` of votes `[member, batch]`, masked where no run of the member
        counts, and -1 where none of those that do answers. Names, columns and
        provenance are those of the runs; a weight is the mean of the member's runs.

    Raises:
        ValueError: if a shape does not fit, there is no run, `ties` is unknown or lacks
            its key, or runs are not of the same members and rows.
        TypeError: if the runs are no classes, or of "probability" only votes are known.

    Source: Wang et al. 2023, arXiv:2203.11171, section 2.

    Example:
        >>> import jax.numpy as jnp
        >>> from ensjax import combine
        >>> answers = jnp.array([[[0, 1], [0, -1], [1, 1]], [[1, 0], [1, 1], [1, -1]]])
        >>> combine.majority_of_runs(answers, 2, ties="abstain").votes.tolist()
        [[0, 1], [1, -1]]
    """
    if ties not in _TIES:
        raise ValueError(
            f"ties of runs must be one of {', '.join(_TIES)}; got {ties!r}."
        )
    first, nested = _nested(runs, num_classes, mask)
    keys = key
    if key is not None:
        numbers = jnp.arange(first.num_members)
        keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, numbers)

    def of_member(runs, key):
        return majority_vote(runs, ties=ties, key=key)

    votes = jax.vmap(of_member, in_axes=(0, None if key is None else 0))(nested, keys)
    counts, weights = _counts(nested), nested.weights
    weights = weights[..., None] if weights.ndim < counts.ndim else weights
    weights = jnp.sum(jnp.where(counts, weights, 0.0), axis=1)
    weights = weights / jnp.maximum(jnp.sum(counts, axis=1), 1)
    mask = jnp.any(counts, axis=1)
    if counts.shape[2] == 1:  # the same in all rows
        weights, mask = weights[:, 0], mask[:, 0]
    return Predictions.from_votes(
        votes,
        first.num_classes,
        weights=weights,
        mask=mask,
        names=first.names,
        provenance=first.provenance,
        columns=first.columns,
    )


def stack_runs(
    runs: jax.Array | Sequence[Predictions],
    num_classes: int | None = None,
    *,
    mask: jax.Array | None = None,
) -> Predictions:
    """All runs of all members as members, so that any rule pools every answer.

    A member of which more runs count has more part in what is made of them;
    `majority_of_runs` gives each member one vote.

    Args:
        runs, num_classes, mask: as for `majority_of_runs`.

    Returns:
        `Predictions` of `num_members * num_runs` members, the runs of one member beside
        each other: "member 0 run 0", "member 0 run 1". Each has seen what its member
        has.

    Raises:
        ValueError, TypeError: as `majority_of_runs`.
    """
    first, nested = _nested(runs, num_classes, mask)
    num_runs = nested.values.shape[1]
    about = first.provenance
    if about is not None:
        about = about.of_members(np.repeat(np.arange(first.num_members), num_runs))
    flat = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), nested)
    return flat.replace(
        names=tuple(f"{n} run {run}" for n in first.names for run in range(num_runs)),
        provenance=about,
    )


def run_agreement(
    runs: jax.Array | Sequence[Predictions],
    num_classes: int | None = None,
    *,
    mask: jax.Array | None = None,
    sample_weight: jax.Array | None = None,
) -> RunAgreement:
    """How stable each member is: how often two of its runs name the same class.

    Of two runs it is 1 less their `scores.disagreement`; the share of the most frequent
    class is 1 less the `scores.variation_ratio` of the runs.

    Args:
        runs, num_classes, mask: as for `majority_of_runs`.
        sample_weight: `[batch]`, non-negative, of the rows in `agreement`.

    Returns:
        `RunAgreement`. A member that always gives the same wrong answer has 1.

    Raises:
        ValueError, TypeError: as `majority_of_runs`.
    """
    first, nested = _nested(runs, num_classes, mask)
    votes = jax.vmap(lambda of_one: of_one.votes)(nested)  # [member, run, batch]
    votes = jnp.where(jnp.broadcast_to(_counts(nested), votes.shape), votes, ABSTAIN)
    is_class = (votes >= 0) & (votes < first.num_classes)
    num_runs = jnp.sum(is_class, axis=1)

    def of_member(votes):
        differs = disagreement(said(votes), sample_weight=sample_weight)
        by_row = jax.vmap(lambda row: disagreement(said(row[:, None])), in_axes=1)
        return 1 - differs, 1 - by_row(votes), 1 - variation_ratio(said(votes))

    def said(votes):
        return Predictions.from_votes(votes, first.num_classes)

    agreement, by_row, share = jax.vmap(of_member)(votes)
    # The disagreement of nobody is 0, which says nothing of a member asked once.
    weight = row_weights(sample_weight, num_runs.shape)
    has_pair = jnp.any((num_runs > 1) & (weight != 0), axis=-1)
    return RunAgreement(
        agreement=jnp.where(has_pair, agreement, jnp.nan),
        row_agreement=jnp.where(num_runs > 1, by_row, jnp.nan),
        majority_share=share,
        num_runs=num_runs,
    )


def _counts(nested):
    """Whether runs count, `[member, run, 1]` or `[member, run, batch]`."""
    counts = jax.vmap(counting_members)(nested.weights, nested.mask)
    return counts[..., None] if counts.ndim == 2 else counts


def _nested(runs, num_classes, mask):
    """`Predictions` of a run, for what all share; leaves `[member, run, ...]` of all.

    `jax.vmap` over the latter sees the runs of one member as its members.
    """
    if not isinstance(runs, (list, tuple)):
        runs = _of_array(jnp.asarray(runs), num_classes, mask)
    elif num_classes is not None or mask is not None:
        raise ValueError(
            "num_classes and mask go with an array; Predictions of runs have their own."
        )
    if not runs:
        raise ValueError("there must be at least one run; got none.")
    first = runs[0]
    for number, run in enumerate(runs):
        if not isinstance(run, Predictions):
            raise TypeError(
                f"run {number} must be Predictions of all members; got"
                f" {type(run).__name__}. Arrays of all runs are [member, run, batch]."
            )
        if run.kind not in _CLASSES:
            raise TypeError(f"runs must be classes; run {number} has {run.kind}.")
        for what in ("kind", "names", "num_classes", "columns", "provenance"):
            own, shared = getattr(run, what), getattr(first, what)
            if own != shared:
                raise ValueError(
                    f"runs must have the same {what}; run {number} has {own}, run 0"
                    f" has {shared}."
                )
        if run.values.shape != first.values.shape:
            raise ValueError(
                f"runs must have the same shape; run {number} has {run.values.shape},"
                f" run 0 has {first.values.shape}."
            )

    def joined(name):
        parts = [getattr(run, name) for run in runs]
        if len({part.ndim for part in parts}) > 1:
            shape = first.values.shape[:2]
            parts = [
                jnp.broadcast_to(part.reshape(shape[0], -1), shape) for part in parts
            ]
        return jnp.stack(parts, axis=1)

    return first, first.replace(
        **{name: joined(name) for name in ("values", "mask", "weights")},
        names=tuple(f"run {number}" for number in range(len(runs))),
        provenance=None,
    )


def _of_array(runs, num_classes, mask):
    axes = "[member, run, batch]" if num_classes else "[member, run, batch, class]"
    if runs.ndim != (3 if num_classes else 4):
        raise ValueError(
            f"runs must be {axes}; got shape {runs.shape}. Votes go with num_classes,"
            " logits without."
        )
    mask = jnp.ones(runs.shape[:2], bool) if mask is None else jnp.asarray(mask)
    if mask.shape not in (runs.shape[:2], runs.shape[:3]):
        raise ValueError(
            f"mask must be [member, run] = {runs.shape[:2]} or [member, run, batch] ="
            f" {runs.shape[:3]}; got shape {mask.shape}."
        )
    if num_classes:
        return [
            Predictions.from_votes(runs[:, run], num_classes, mask=mask[:, run])
            for run in range(runs.shape[1])
        ]
    return [
        Predictions.from_logits(runs[:, run], mask=mask[:, run])
        for run in range(runs.shape[1])
    ]
