"""Consensus of entries, its scores and ranks, and what a bootstrap over people says.

Forecasts are `[seed, member, batch, ...]`; scores are `[seed, entry]`, the members
first and then the consensuses of `CONSENSUS`. Rows of weight 0 have no known truth.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import rankdata

from ensjax import combine, scores
from ensjax.predictions import Predictions

CONSENSUS = ("ConsensusMean", "ConsensusMedian")
# Of points: in target units, or shares. Of classes: higher is better.
POINT_METRICS = ("mae", "wes", "cpa")
CLASS_METRICS = ("mauc", "bca")
HIGHER_IS_BETTER = {"mauc": True, "bca": True, "mae": False, "wes": False, "cpa": False}


@jax.jit
def class_systems(probs):
    """Log-probabilities of members and consensuses, `[seed, entry, batch, class]`."""

    def one_seed(probs):
        said = Predictions.from_probs(probs)
        pooled = [combine.mean_probs(said), combine.median_probs(said)]
        return jnp.concatenate([said.log_probs, jnp.stack(pooled)])

    return jax.vmap(one_seed)(probs)


@jax.jit
def point_systems(points, lower, upper):
    """Lower end, point and upper end of members and consensuses, `[seed, entry, ...]`.

    Returns:
        `[3, seed, entry, batch]`.
    """

    def one_seed(points, lower, upper):
        said = Predictions.from_points(points, lower=lower, upper=upper)
        pooled = [
            jnp.stack(combine.pool_intervals(said, rule))
            for rule in (combine.mean_points, combine.median_points)
        ]
        members = jnp.stack([said.lower, said.points, said.upper])
        return jnp.concatenate([members, jnp.stack(pooled, axis=1)], axis=1)

    return jax.vmap(one_seed, out_axes=1)(points, lower, upper)


@jax.jit
def score_classes(log_probs, labels, weight):
    """The metrics of `CLASS_METRICS`, `[seed, entry]` each; `weight [seed, batch]`."""

    def one_seed(log_probs, labels, weight):
        told = dict(sample_weight=weight)
        return {
            "mauc": scores.hand_till_auroc(log_probs, labels, **told),
            "bca": scores.balanced_classification_accuracy(log_probs, labels, **told),
        }

    return jax.vmap(one_seed)(log_probs, labels, weight)


@jax.jit
def score_points(systems, targets, weight, min_width):
    """The metrics of `POINT_METRICS`, `[seed, entry]` each.

    Args:
        systems: as `point_systems` gives them.
        targets: `[seed, batch]`.
        weight: `[seed, batch]`.
        min_width: widths below it count as it in the WES, `[seed]`.
    """

    def one_seed(systems, targets, weight, min_width):
        lower, points, upper = systems
        wide = jnp.maximum(upper - lower, min_width)
        told = dict(sample_weight=weight)
        return {
            "mae": scores.mae(points, targets, **told),
            # Only widths count in it.
            "wes": scores.weighted_error_score(
                points, jnp.zeros_like(wide), wide, targets, **told
            ),
            "cpa": scores.coverage_probability_accuracy(lower, upper, targets, **told),
        }

    return jax.vmap(one_seed, in_axes=(1, 0, 0, 0))(systems, targets, weight, min_width)


def ranks(values, *, higher_is_better):
    """Rank of each system among the members, `[..., entry]`: 1 + how many are better.

    Consensuses are ranked as if each alone were added to the members.
    """
    values = np.asarray(values, np.float64)
    values = -values if higher_is_better else values
    members = values[..., : values.shape[-1] - len(CONSENSUS)]
    return 1 + (members[..., None, :] < values[..., :, None]).sum(-1)


def ranks_among_all(values, *, higher_is_better):
    """The same among members and consensuses together, `[..., entry]`."""
    values = np.asarray(values, np.float64)
    values = -values if higher_is_better else values
    return 1 + (values[..., None, :] < values[..., :, None]).sum(-1)


def overall_ranks(by_outcome):
    """The challenge's rank over outcomes: that of the sum of the ranks, mid-ranks.

    Args:
        by_outcome: ranks among all of each outcome, `[outcome, seed, entry]`.

    Returns:
        `[seed, entry]`.
    """
    return rankdata(np.sum(by_outcome, axis=0), axis=-1)


@jax.jit
def bootstrap_study(counts, log_probs, labels, ventricles, score):
    """Each outcome's metric on every resample, `[resample, outcome, entry]`.

    Args:
        counts: `[resample, person]`.
        log_probs: `[entry, person, class]`.
        labels: `[person]`.
        ventricles: absolute errors, `[entry, person]`.
        score: absolute errors, `[entry, person]`.
    """

    def one(weight):
        total = jnp.sum(weight)
        return jnp.stack(
            [
                scores.hand_till_auroc(log_probs, labels, sample_weight=weight),
                jnp.sum(ventricles * weight[None], axis=-1) / total,
                jnp.sum(score * weight[None], axis=-1) / total,
            ]
        )

    return jax.lax.map(one, counts, batch_size=16)


def beats_constant(draws, constant, level):
    """Which entries beat the constant forecast, by Holm's test over all entries.

    Args:
        draws: `[resample, outcome, entry]`; the first outcome is better if higher.
        constant: the constant entry's place.
        level: of the tests.

    Returns:
        Bools `[outcome, entry]`, and one-sided p-values `[outcome, entry]`: the share
        of resamples on which the entry is not better (1 for the constant itself).
    """
    draws = np.asarray(draws, np.float64)
    sign = np.asarray([1.0, -1.0, -1.0])[None, :, None]
    gain = sign * (draws - draws[:, :, constant : constant + 1])
    p_values = (1 + (gain <= 0).sum(axis=0)) / (1 + len(draws))
    others = np.arange(draws.shape[2]) != constant
    wins = np.zeros(p_values.shape, bool)
    for outcome, row in enumerate(p_values):
        wins[outcome, others] = scores.holm(row[others]) < level
    return wins, p_values


def pair_effects(values, entries, feature_sets, flag):
    """Change of a metric when a feature is added to otherwise equal entries.

    Args:
        values: `[seed, entry]`.
        entries: `(learner, name of the feature set)` of each entry.
        feature_sets: name to the flags that are set.
        flag: the feature that is added.

    Returns:
        `(with minus without, without)`, both the mean over pairs, `[seed]`.
    """
    places = {
        (learner, frozenset(feature_sets[name])): place
        for place, (learner, name) in enumerate(entries)
    }
    pairs = [
        (places[learner, flags - {flag}], place)
        for (learner, flags), place in places.items()
        if flag in flags and (learner, flags - {flag}) in places
    ]
    values = np.asarray(values, np.float64)
    without, added = (values[:, [pair[side] for pair in pairs]] for side in (0, 1))
    return (added - without).mean(axis=1), without.mean(axis=1)


def attribution(values, entries, feature_sets, flags):
    """Weights of a least-squares fit of a metric on feature flags, `[seed, flag]`.

    With one constant for each learner, so that learners are compared with themselves.
    """
    learners = sorted({learner for learner, _ in entries})
    design = np.asarray(
        [
            [flag in feature_sets[name] for flag in flags]
            + [learner == other for other in learners]
            for learner, name in entries
        ],
        float,
    )
    values = np.asarray(values, np.float64)[:, : len(entries)]
    return np.linalg.lstsq(design, values.T, rcond=None)[0][: len(flags)].T


# Rules that are compared on clean and broken entries.
POINT_RULES = {
    "mean": combine.mean_points,
    "median": combine.median_points,
    "trimmed": combine.trimmed_points,
    "winsorised": combine.winsorized_points,
    "Huber": combine.huber_points,
}


@functools.partial(jax.jit, static_argnums=2)
def score_rules(points, targets, trim_share):
    """MAE of every rule, `[rule, seed]`: those of `POINT_RULES`, then down-weighting.

    The last is a mean whose weights fall with the distance to the median.
    """

    def one_seed(points, targets):
        found = []
        for name, rule in POINT_RULES.items():
            if name in ("trimmed", "winsorised"):
                rule = functools.partial(rule, share=trim_share)
            found.append(rule(points))
        said = Predictions.from_points(points)
        far = combine.consensus_distance(said, found[list(POINT_RULES).index("median")])
        found.append(combine.mean_points(points, combine.distance_weights(far)))
        return scores.mae(jnp.stack(found), targets)

    return jax.vmap(one_seed, out_axes=1)(points, targets)


RULE_NAMES = (*POINT_RULES, "down-weighted mean")


@jax.jit
def member_influence(points):
    """Influence on mean and median, and distance to the median, `[3, seed, member]`."""

    def one_seed(points):
        said = Predictions.from_points(points)
        return jnp.stack(
            [
                combine.influence(combine.mean_points, said),
                combine.influence(combine.median_points, said),
                combine.consensus_distance(said, combine.median_points(said)),
            ]
        )

    return jax.vmap(one_seed, out_axes=1)(points)
