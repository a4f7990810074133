"""Scores of members, their ensemble, the best member and the oracle, with intervals.

What `evaluate` and its like share, whatever the kind of prediction.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ensjax.scores.best import best_member
from ensjax.scores.intervals import paired_bootstrap


class Best(NamedTuple):
    """Which member stands for all: the chosen one, or the best by each metric."""

    larger_is_better: Sequence[str]
    chosen_member: int | str | None
    names: Sequence[str]

    def index(self, counts):
        """Of the chosen member, None if none is chosen.

        Raises:
            ValueError: if it does not count, or is unknown.
        """
        chosen = self.chosen_member
        if chosen is None:
            return None
        if isinstance(chosen, str) and chosen in self.names:
            chosen = list(self.names).index(chosen)
        if isinstance(chosen, str) or not (
            0 <= chosen < len(counts) and counts[chosen]
        ):
            raise ValueError(
                f"chosen_member must be an index or a name of a member that counts, of"
                f" {tuple(self.names)}; got {self.chosen_member!r}."
            )
        return int(chosen)


def kept_rows(rows, arrays):
    """The rows that have a weight, and what they have of each array `[batch, ...]`.

    Raises:
        ValueError: if no row has a weight or an array has other rows.
    """
    num_rows = len(rows.weight)
    for name, values in arrays.items():
        if np.shape(values)[:1] != (num_rows,):
            raise ValueError(
                f"{name} must be [batch] = [{num_rows}, ...]; got shape"
                f" {np.shape(values)}."
            )
    at = np.flatnonzero(np.asarray(rows.weight) != 0)
    if not len(at):
        raise ValueError("No row counts: all have weight 0.")
    if len(at) == num_rows:
        return rows, list(arrays.values())
    left = rows._replace(weight=np.asarray(rows.weight)[at])
    if rows.groups is not None:
        names, groups = np.unique(rows.groups[at], return_inverse=True)
        left = left._replace(groups=groups, num_groups=len(names))
    return left, [values[at] for values in map(_indexed, arrays.values())]


def _indexed(values):
    return values if isinstance(values, jax.Array) else np.asarray(values)


def score_systems(
    functions, ensemble, members, truth, counts, rows, bootstrap, oracle, best
):
    """The result of `evaluate`, of predictions of any kind.

    Args:
        functions: name -> `score(predictions, truth, *, sample_weight)`.
        ensemble: `[batch, ...]`.
        members: `[member, batch, ...]`.
        truth: a tuple of the labels or targets, `[batch]`.
        counts: bool, `[member, batch]`.
        rows: `weight`, `groups` and `num_groups`.
        bootstrap: `num_resamples`, `confidence` and `seed`.
        oracle: `oracle(members, truth, counts) -> [batch, ...]`.
        best: which single member is shown.
    """
    if not counts.any():
        raise ValueError("No member counts: all are masked or have weight 0.")
    (truth,) = truth
    arrays = {
        "ensemble": ensemble,
        "labels": truth,
        "counts": counts.T,
        "rows": np.arange(len(rows.weight)),
    }
    rows, (ensemble, truth, counts, at) = kept_rows(rows, arrays)
    if len(at) < members.shape[1]:
        members = members[:, at]
    # A member that is masked in some rows is scored on the others.
    is_member = np.asarray(counts).any(axis=0)
    num_members, chosen = len(is_member), best.index(is_member)

    def systems_of(members, ensemble, truth, counts):
        counts = counts.T
        best_rows = oracle(members, truth, counts)
        systems = jnp.concatenate([members, ensemble[None], best_rows[None]])
        share = jnp.concatenate([counts * 1.0, jnp.ones((2, counts.shape[1]))])
        return systems, share

    def scores_of(weight, systems, truth, share):
        found = {}
        for name, score in functions.items():
            own = score(systems, truth, sample_weight=share * weight[None])
            if own.shape != share.shape[:1]:
                raise ValueError(
                    f"metric {name!r} must return one number for each leading axis,"
                    f" [member] for [member, batch, ...]; got {own.shape}."
                )
            found[name] = own
        return found

    def index_of(name, own):
        if chosen is not None:
            return jnp.asarray(chosen)
        larger = name in best.larger_is_better
        return best_member(name, own[:num_members], is_member, larger)

    def numbers(own_values, index):
        found = {}
        for name, own in own_values.items():
            own, value, bound = own[:num_members], own[-2], own[-1]
            mean = jnp.sum(jnp.where(is_member, own, 0.0)) / is_member.sum()
            found[name] = value
            found[f"{name}_mean_member"] = mean
            found[f"{name}_best_member"] = own[index[name]]
            found[f"{name}_oracle"] = bound
            found[f"{name}_gain"] = value - mean
            found[f"{name}_members"] = own
        return found

    @jax.jit
    def of_the_rows(weight, members, ensemble, truth, counts):
        systems, share = systems_of(members, ensemble, truth, counts)
        own_values = scores_of(weight, systems, truth, share)
        index = {name: index_of(name, own) for name, own in own_values.items()}
        return own_values, index, numbers(own_values, index), (systems, truth, share)

    own_values, index, found, given = of_the_rows(
        rows.weight, members, ensemble, truth, counts
    )
    # Resamples are of one member, not of the best of each.
    result = score_one(
        lambda weight, *arrays: numbers(scores_of(weight, *arrays), index),
        None,
        rows,
        bootstrap,
        found,
        given,
    )
    num_rows = result.pop("num_rows")
    kept = np.asarray(is_member)
    for name in own_values:
        result[f"{name}_best_index"] = int(index[name])
        for part in ("", "_low", "_high"):
            values = result.pop(f"{name}_members{part}", None)
            if values is not None:
                result[f"{name}_members{part}"] = [
                    x if keep else None for x, keep in zip(values, kept, strict=True)
                ]
    return result | {"num_members": int(is_member.sum()), "num_rows": num_rows}


def score_one(values, arrays, rows, bootstrap, found=None, given=()):
    """`values(weight, *arrays) -> {name: scalar}` as floats, with ends of intervals.

    A value `[member]` and its ends become lists.

    Rows that have no weight are removed from `arrays`, name -> `[batch, ...]`, unless
    `found` and `given` are of those that are left.
    """
    if bootstrap.num_resamples < 0:
        raise ValueError(
            f"bootstrap must not be negative; got {bootstrap.num_resamples}."
        )
    if found is None:
        rows, given = kept_rows(rows, arrays)
        found = jax.jit(values)(rows.weight, *given)
    names = list(found)
    result = {name: np.asarray(found[name]).tolist() for name in names}
    sizes = [jnp.size(found[name]) for name in names]
    if bootstrap.num_resamples:

        def resampled(counts):
            drawn = values(counts * rows.weight, *given)
            return jnp.concatenate([jnp.ravel(drawn[name]) for name in names])

        ends = paired_bootstrap(
            jax.random.key(bootstrap.seed),
            resampled,
            rows.weight.shape[0],
            groups=rows.groups,
            num_groups=rows.num_groups,
            num_resamples=bootstrap.num_resamples,
            confidence=bootstrap.confidence,
        )
        places = np.cumsum(sizes)[:-1]
        for end, values in (("low", ends.low), ("high", ends.high)):
            for name, own in zip(names, np.split(np.asarray(values), places)):
                own = own.reshape(jnp.shape(found[name])).tolist()
                result[f"{name}_{end}"] = own
    return result | {"num_rows": len(rows.weight)}
