"""Scores of members, their ensemble, the best member and the oracle, with intervals.

What `evaluate` and its like share, whatever the kind of prediction.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ensjax.scores.best import best_member
from ensjax.scores.ends import (
    basic_ends,
    norm_ends,
    percentile_ends,
    wilson_ends,
)
from ensjax.scores.gaps import BIASED, GAPS, PROPORTIONS
from ensjax.scores.intervals import Interval
from ensjax.scores.metrics import (
    METRICS,
    POINT_METRICS,
    QUANTILE_METRICS,
    VOTE_METRICS,
)
from ensjax.scores.programs import (
    With,
    draw,
    kept_rows,
    known_name,
    listed,
    number_of_bins,
    unwrap,
)
from ensjax.scores.stated import STATED_METRICS

_TABLES = (METRICS, POINT_METRICS, QUANTILE_METRICS, VOTE_METRICS, STATED_METRICS)


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


def score_systems(
    functions, ensemble, members, truth, counts, rows, bootstrap, oracle, best
):
    """The result of `evaluate`, of predictions of any kind.

    Args:
        functions: name -> `score(predictions, truth, *, sample_weight)`.
        ensemble: `[batch, ...]`.
        members: `[member, batch, ...]`.
        truth: the labels or targets, `[batch, ...]`.
        counts: bool, `[member, batch]`.
        rows: `weight`, `groups` and `num_groups`.
        bootstrap: `num_resamples`, `confidence` and `seed`.
        oracle: `oracle(members, truth, counts) -> [batch, ...]`.
        best: which single member is shown.
    """
    bootstrap.check()
    if not counts.any():
        raise ValueError("No member counts: all are masked or have weight 0.")
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
    functions = tuple(functions.items())
    found, index, given = _of_the_rows(
        rows.weight,
        members,
        ensemble,
        truth,
        counts,
        best.index(is_member),
        functions=functions,
        oracle=oracle,
        larger_is_better=tuple(best.larger_is_better),
    )
    result = {name: np.asarray(value).tolist() for name, value in found.items()}
    if bootstrap.num_resamples:
        # Resamples are of one member, not of the best of each.
        draws = draw(
            With.of(_resampled, functions=functions), rows, bootstrap, (index, *given)
        )
        share = np.asarray(given[-1]) * np.asarray(rows.weight)
        for name, score in functions:
            own = {k: np.asarray(found[k]) for k in _parts(name)}
            ends = _ends(name, score, own, draws, share, index, rows, bootstrap)
            for part, value in ends.items():
                result |= listed(part, value)
    for name, score in functions:
        result[f"{name}_best_index"] = int(index[name])
        num_bins = number_of_bins(score)
        if num_bins is not None:
            result[f"{name}_num_bins"] = num_bins
        for part in ("", "_low", "_high"):
            values = result.pop(f"{name}_members{part}", None)
            if values is not None:
                result[f"{name}_members{part}"] = [
                    x if keep else None
                    for x, keep in zip(values, is_member, strict=True)
                ]
    return result | {"num_members": int(is_member.sum()), "num_rows": len(rows.weight)}


@functools.partial(jax.jit, static_argnames=("functions", "oracle", "larger_is_better"))
def _of_the_rows(
    weight,
    members,
    ensemble,
    truth,
    counts,
    chosen,
    *,
    functions,
    oracle,
    larger_is_better,
):
    """The numbers, the index of each best member, and what resamples are of."""
    counts = counts.T
    best_rows = oracle(members, truth, counts)
    systems = jnp.concatenate([members, ensemble[None], best_rows[None]])
    share = jnp.concatenate([counts * 1.0, jnp.ones((2, counts.shape[1]))])
    own_values = _scores_of(functions, weight, systems, truth, share)
    is_member = _is_member(share)
    index = {
        name: best_member(name, own[:-2], is_member, name in larger_is_better)
        if chosen is None
        else jnp.asarray(chosen)
        for name, own in own_values.items()
    }
    gaps = {
        name: gaps(systems, truth, sample_weight=share * weight[None])
        for name, (gaps, _) in _gaps_of(functions).items()
    }
    found = {}
    for name, own in own_values.items():
        found |= _numbers(name, own, index[name], is_member)
    return found, index, (gaps, systems, truth, share)


def _resampled(weight, index, reference, systems, truth, share, *, functions):
    """The numbers of a resample, and how far its gaps are from those of the rows."""
    is_member = _is_member(share)
    found = {}
    for name, own in _scores_of(functions, weight, systems, truth, share).items():
        found |= _numbers(name, own, index[name], is_member)
    for name, (gaps, is_largest) in _gaps_of(functions).items():
        away = gaps(systems, truth, sample_weight=share * weight[None])
        away = jnp.abs(away - reference[name])
        away = jnp.max(away, axis=-1) if is_largest else jnp.sum(away, axis=-1)
        own = _numbers(name, away, index[name], is_member)
        found |= {f"{part} away": value for part, value in own.items()}
    return found


def _is_member(share):
    return jnp.any(share[:-2] > 0, axis=1)


def _scores_of(functions, weight, systems, truth, share):
    found = {}
    for name, score in functions:
        own = score(systems, truth, sample_weight=share * weight[None])
        if own.shape != share.shape[:1]:
            raise ValueError(
                f"metric {name!r} must return one number for each leading axis,"
                f" [member] for [member, batch, ...]; got {own.shape}."
            )
        found[name] = own
    return found


def _gaps_of(functions):
    """Name -> its gaps with the options of the score, and whether it is the largest."""
    found = {}
    for name, score in functions:
        score, options = unwrap(score)
        if score in GAPS:
            gaps, is_largest = GAPS[score]
            found[name] = With.of(gaps, **options), is_largest
    return found


def _parts(name):
    kinds = ("mean_member", "best_member", "oracle", "gain", "members")
    return (name, *(f"{name}_{kind}" for kind in kinds))


def _numbers(name, own, index, is_member):
    """What is told of a score `[system]`: of members, their ensemble and the oracle."""
    members, value, bound = own[:-2], own[-2], own[-1]
    mean = jnp.sum(jnp.where(is_member, members, 0.0)) / jnp.sum(is_member)
    values = (value, mean, members[index], bound, value - mean, members)
    return dict(zip(_parts(name), values, strict=True))


def _ends(name, score, found, draws, share, index, rows, bootstrap):
    """The ends of each part of a score, in the way that `ends` says."""
    level = bootstrap.confidence
    score, _ = unwrap(score)
    range_of = known_name(score, *_TABLES)
    gain = f"{name}_gain"
    ends = {}
    for part, value in found.items():
        # A difference has no range, nor has what is known by its user's name alone.
        told = "" if part == gain else range_of
        if score in GAPS and part != gain:
            away = draws[f"{part} away"]
            ends[part] = norm_ends(told, value, draws[part], away, level)
        elif score in GAPS or score in BIASED:
            ends[part] = basic_ends(told, value, draws[part], level)
        else:
            ends[part] = percentile_ends(told, value, draws[part], level)
    if score in PROPORTIONS and rows.groups is None:
        members = f"{name}_members"
        own = [*found[members], found[name], found[f"{name}_oracle"]]
        wilson = wilson_ends(np.array(own), share, level)
        places = {
            name: -2,
            f"{name}_best_member": int(index[name]),
            f"{name}_oracle": -1,
            members: slice(0, -2),
        }
        for part, at in places.items():
            ends[part] = Interval(*(field[at] for field in wilson))
    return ends
