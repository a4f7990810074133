"""Soups: one model whose weights are a mean of members' weights.

Uniform, greedy (members are kept if the soup improves) and learned (coefficients by
gradient descent). What is chosen or learned is chosen on rows that are held out of the
members' training, and the soup is tested on others.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ensjax.ensemble import Ensemble
from ensjax.mapping import mesh_program
from ensjax.members import num_members, pad_members
from ensjax.mesh import fetch
from ensjax.weight_space.ensembles import ensemble_of
from ensjax.weight_space.leaves import finite_members, is_mixed, wide
from ensjax.weight_space.mix import Rows, local_rows, mix_members
from ensjax.weight_space.row_scores import (
    RowScore,
    batches_of_rows,
    is_better_large,
    row_scores,
    scores_of_batch,
)
from ensjax.weight_space.statistics import (
    recompute_statistics,
    split_batches,
    with_statistics,
)
from ensjax.weight_space.sweep import sweep

_ALL = ("member", "data")


@dataclasses.dataclass(frozen=True)
class Soup:
    """One model made of members' weights.

    Attributes:
        model: an ensemble of this one member.
        weights: `[member]`, the coefficients; they sum to 1.
        order: `[member]`, for a greedy soup: the members, best alone first.
        scores: `[member]`, for a greedy soup: the soup's score with each candidate, in
            that order; the first is the best member's.
        is_kept: `[member]`, for a greedy soup: which candidates stayed, in that order.
    """

    model: Ensemble
    weights: np.ndarray
    order: np.ndarray | None = None
    scores: np.ndarray | None = None
    is_kept: np.ndarray | None = None


def uniform_soup(
    ensemble: Ensemble,
    *,
    weights: Sequence[float] | None = None,
    statistics: Any = None,
    batch_size: int = 512,
) -> Soup:
    """The mean of the members' weights, or a weighted one.

    Args:
        ensemble: M members, usually fine-tuned from one model.
        weights: `[member]`, at least 0; they are divided by their sum. A weight of 0
            removes a member, also one that is not finite.
        statistics: inputs `[row, ...]` on which batch statistics are measured again.
        batch_size: rows at a time.

    Raises:
        ValueError: if the weights do not fit, or a member with a weight above 0 is not
            finite; gives the ids.

    Source: Wortsman et al. 2022, Model soups, arXiv:2203.05482, recipe 1.
    """
    members = ensemble.num_members
    share = np.ones(members) if weights is None else np.asarray(weights, np.float64)
    bad = share.shape != (members,) or not np.isfinite(share).all() or share.min() < 0
    if bad or not share.sum() > 0:
        raise ValueError(
            f"weights must be [member] with {members} members, at least 0 and not all"
            f" 0; got {weights!r}."
        )
    share = share / share.sum()
    check_finite(ensemble, share > 0)
    model = mix_members(ensemble, share[None])
    if statistics is not None:
        model = recompute_statistics(model, statistics, batch_size=batch_size)
    return Soup(model, share)


def greedy_soup(
    ensemble: Ensemble,
    data: tuple[Any, Any],
    *,
    score: str | RowScore = "accuracy",
    largest: bool | None = None,
    min_gain: float = 0.0,
    statistics: Any = None,
    batch_size: int = 512,
) -> Soup:
    """Adds members in the order of their own scores, keeping those that improve it.

    With n members in the soup, the candidate is n / (n + 1) soup + 1 / (n + 1) member;
    it stays if its mean score on `data` is strictly better. A member that is not
    finite, or whose score is NaN, comes last and never stays: its weight is 0. All
    rounds are one compiled loop, whose rows are split over all devices.

    Args:
        ensemble: M members, usually fine-tuned from one model.
        data: inputs and targets `[row, ...]` that are held out.
        score: a name in `ROW_SCORES`, or a function of one batch's outputs and targets
            that gives `[batch]`.
        largest: whether a larger score is better. By default it is for "accuracy" and
            is not for "error", "nll", "brier" and "squared_error"; of any other it must
            be said.
        min_gain: a candidate stays if it improves the score by more than this.
        statistics: inputs `[row, ...]` on which every candidate's batch statistics are
            measured; without, they are mixed as weights are.
        batch_size: rows at a time.

    Returns:
        `Soup`. Among members of equal score the first comes first.

    Raises:
        ValueError: if a shape or a name does not fit, the score gives anything but one
            number a row, `min_gain` is negative, it is not known whether the score is
            to be large, or no member is finite with a score.

    Source: Wortsman et al. 2022, Model soups, arXiv:2203.05482, recipe 1 (greedy).
    """
    if not min_gain >= 0:
        raise ValueError(f"min_gain must be at least 0; got {min_gain}.")
    members, mesh = ensemble.num_members, ensemble.mesh
    scores = {"score": score} if callable(score) else score
    ((_, row_score),) = row_scores(scores)
    sign = 1.0 if is_better_large(score, largest) else -1.0
    alone = sweep(
        ensemble,
        np.eye(members),
        {"data": data},
        scores=scores,
        statistics=statistics,
        batch_size=batch_size,
    ).values["weights"]["data"]
    (alone,) = alone.values()
    is_usable = finite_members(ensemble.state) & ~np.isnan(alone)
    if not is_usable.any():
        raise ValueError(
            f"none of the {members} members is finite and has a score that is not NaN,"
            " so that there is none to begin a soup with. With a label that is no class"
            " a score is NaN too."
        )
    ranked = np.where(is_usable, -sign * alone, np.nan)
    order = np.argsort(ranked, kind="stable")  # what is NaN comes last
    shards = mesh.shape["member"] * mesh.shape["data"]
    job = _Greedy(ensemble.graph, row_score, sign, float(min_gain))
    batches = batches_of_rows("data", data, batch_size, shards)
    if statistics is not None:
        statistics = split_batches(statistics, batch_size, mesh.shape["data"])
    found = mesh_program(job, mesh)(
        ensemble.state,
        (jnp.asarray(order, jnp.int32), jnp.asarray(is_usable[order])),
        batches,
        statistics,
    )
    state, is_kept, values = found
    is_kept = np.asarray(is_kept)
    weights = np.zeros(members)
    weights[order[is_kept]] = 1 / is_kept.sum()
    return Soup(
        ensemble_of(ensemble, state), weights, order, np.asarray(values), is_kept
    )


def check_finite(ensemble: Ensemble, is_in: Any = True) -> None:
    """Raises `ValueError` with the ids of members that are in a soup but not finite."""
    bad = ~finite_members(ensemble.state) & is_in
    if bad.any():
        ids = fetch(ensemble.member_ids)[bad].tolist()
        raise ValueError(
            f"the weights of the members with ids {ids} are not all finite, and a soup"
            " with them would be NaN. Leave them out, or make a greedy_soup, which"
            " does."
        )


@dataclasses.dataclass(frozen=True)
class _Greedy:
    """State, order of members and which may stay, rows, rows for batch statistics."""

    graph: Any
    score: RowScore
    sign: float
    min_gain: float
    donate: tuple[int, ...] = ()

    def in_specs(self):
        return (jax.P("member"), jax.P(), jax.P(None, _ALL), jax.P("data"))

    def out_specs(self):
        return (jax.P(), jax.P(), jax.P())

    def check(self, mesh, *args):
        del mesh, args

    def prepare(self, mesh, state, order, batches, statistics):
        devices = mesh.shape["member"]
        rows = math.ceil(num_members(state) / devices) * devices
        return pad_members(state, rows), order, batches, statistics

    def local(self, state, order, batches, statistics):
        order, is_usable = order
        leaves, treedef = jax.tree.flatten(state)
        rows = local_rows(leaves, 0)

        def value_of(soup):
            own = [
                x.astype(leaf.dtype) if is_mixed(leaf) else x
                for x, leaf in zip(soup, leaves)
            ]
            own = treedef.unflatten(own)
            if statistics is not None:
                own = with_statistics(self.graph, own, statistics)
            value = _mean_score(self.graph, self.score, own, batches)
            return self.sign * value, own

        first = [_member(row, order[0]) for row in rows]
        best, _ = value_of(first)

        def add(carry, candidate):
            member, is_usable = candidate
            soup, count, best = carry
            share = 1 / (count + 1)
            candidate = [
                (1 - share) * x + share * _member(row, member)
                if isinstance(row, Rows)
                else x
                for x, row in zip(soup, rows)
            ]
            value, _ = value_of(candidate)
            keep = (value > best + self.min_gain) & is_usable
            soup = [
                jnp.where(keep, x, y) if isinstance(row, Rows) else y
                for x, y, row in zip(candidate, soup, rows)
            ]
            carry = soup, count + keep, jnp.where(keep, value, best)
            return carry, (keep, value)

        start = (first, jnp.float32(1), best)
        (soup, _, _), (kept, values) = jax.lax.scan(
            add, start, (order[1:], is_usable[1:])
        )
        _, final = value_of(soup)
        kept = jnp.concatenate([jnp.ones(1, bool), kept])
        values = self.sign * jnp.concatenate([best[None], values])
        return jax.tree.map(lambda x: x[None], final), kept, values

    def finish(self, outputs, *args):
        del args
        return outputs


def _member(row, number):
    """One member's leaf, by its number in the whole stack; on every device."""
    if not isinstance(row, Rows):
        return row
    count = row.values.shape[0]
    own = number - jax.lax.axis_index("member") * count
    place = jnp.clip(own, 0, count - 1)
    values = jnp.where(row.is_bad[place], jnp.nan, wide(row.values[place]))
    if jax.lax.axis_size("member") == 1:
        return values
    return jax.lax.psum(jnp.where((own >= 0) & (own < count), values, 0), "member")


def _mean_score(graph, score, state, batches):
    """The mean over rows that are split over all devices."""

    def score_batch(batch):
        x, targets, weight = batch
        outputs = graph.merge(state, train=False)(x)
        (value,) = scores_of_batch(
            [("score", score)], outputs, targets, dataset="data"
        ).values()
        return jnp.sum(jnp.where(weight > 0, value, 0.0))

    total = jnp.sum(jax.lax.map(score_batch, batches))
    return jax.lax.psum(total, _ALL) / jax.lax.psum(jnp.sum(batches[2]), _ALL)
