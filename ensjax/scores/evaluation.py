"""`evaluate`: several scores of an ensemble and its members, with intervals.

Of class probabilities, of votes (`evaluate_votes`), of points (`evaluate_points`) and
of quantiles (`evaluate_quantiles`), each as a flat dict of numbers; the scores by name
stand in `metrics`, and how intervals are made in `ends`.
Rows of weight 0 count as removed, in resamples too.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ensjax.predictions import (
    ABSTAIN,
    Predictions,
    as_points,
    as_predictions,
    predictive_log_probs,
)
from ensjax.scores.best import (
    LARGER_IS_BETTER,
    oracle_log_probs,
    oracle_quantiles,
    oracle_votes,
)
from ensjax.scores.decomposition import pooled_points
from ensjax.scores.evaluation_rows import Bootstrap, Rows, check_seen
from ensjax.scores.metrics import (
    DEFAULT_METRICS,
    METRICS,
    POINT_METRICS,
    QUANTILE_METRICS,
    VOTE_METRICS,
    chosen_metrics,
)
from ensjax.scores.programs import With
from ensjax.scores.stated import (
    STATED_METRICS,
    of_stated,
    oracle_stated,
    pool_stated,
    stated_of,
)
from ensjax.scores.systems import Best, score_systems


def evaluate(
    predictions: jax.Array | Predictions,
    labels: jax.Array,
    metrics: Sequence[str] | Mapping[str, Callable[..., jax.Array]] | None = None,
    *,
    larger_is_better: Sequence[str] = LARGER_IS_BETTER,
    chosen_member: int | str | None = None,
    sample_weight: jax.Array | None = None,
    groups: jax.Array | None = None,
    bootstrap: int = 0,
    confidence: float = 0.95,
    seed: int = 0,
    allow_seen: bool = False,
) -> dict[str, Any]:
    """Scores of the ensemble and of each member, as a flat dict of numbers and lists.

    The ensemble is the mixture of the members that count, by their weights
    (`predictive_log_probs`). All metrics, the ensemble and its members see the same
    resamples.

    Args:
        predictions: `[member, batch, class]` logits, or `Predictions`: of probabilities
            here, of votes as by `evaluate_votes`, of points as by `evaluate_points`, of
            quantiles as by `evaluate_quantiles`. A masked member has no score.
        labels: class indices, `[batch]`; the targets of points and quantiles.
        metrics: names of `METRICS`, which holds the classification scores of this room,
            or name -> `score(log_probs, labels, *, sample_weight) -> [...]`, such as
            one with other options: a pure function that JAX can trace, compiled once
            for the function (define it once, not in every call). None: "nll",
            "accuracy", "brier", "ece" and "aurc", or those of votes, points or
            quantiles.
        larger_is_better: the names of metrics whose best member has the largest value.
        chosen_member: the member whose scores are `name_best_member`, by its index or
            name, as chosen on other rows. None: for each metric the best one on these
            rows, which flatters it.
        sample_weight: `[batch]`, non-negative. A row of weight 0 counts as removed.
        groups: `[batch]` integers or strings: rows of one group (a patient, a scene)
            are resampled together.
        bootstrap: number of resamples; 0: no intervals. Ends are percentiles, but of
            proportions ("accuracy", "top_k_accuracy"; not their means over members and
            gains) Wilson's where rows have no groups, with weights of their effective
            number (sum w)^2 / sum w^2. Calibration errors are biased upwards: the ends
            of "ece", "adaptive_ece" and "classwise_ece" cover about as often as
            `confidence` says (95 % ends of the ECE of 200 rows in 94 % of samples, and
            all that miss lie below the truth), and are wide near 0; those of
            "smooth_ece" and "debiased_calibration_error" (basic bootstrap) may miss
            values near 0. "mce" is decided by a few rows in one bin: its 95 % ends are
            0.2 to 0.5 wide, and those of a calibrated model, whose mce is 0, lay above
            it in 31 of 100 samples of 2,000 rows (of 300 rows in none).
        confidence: of the intervals.
        seed: of the resamples.
        allow_seen: scores also rows that members were trained or fitted on, to look at
            the fit. Otherwise `Predictions` of such rows are refused; members may be
            masked there, or the rows have no weight.

    Returns:
        For every metric `name`: `name` of the ensemble, `name_mean_member` (the mean of
        the members' own scores), `name_best_member` (of a single member, and
        `name_best_index`, which), `name_oracle` (of the member that is best in each
        row: of the right ones, or all if none is, the one that gives the label the
        most), `name_gain` (ensemble minus mean member) and `name_members`, a list with
        None for masked members; with a bootstrap also `_low` and `_high` of the first
        four, the gain and the members (`name_members_low`, a list). And `num_members`,
        those that count, and `num_rows`, those of weight above 0; of a score with bins
        `name_num_bins`. The accuracy of the oracle is the share of rows that some
        member gets right. A score that these rows do not define is NaN, which JSON has
        not: `experiment.json_files.to_json_value` makes it None.

    Raises:
        ValueError: for an unknown metric, no metric, no member that counts, a chosen
            member that is none of them, or a shape that does not fit; it names the
            metric.
        TypeError: if the predictions are features, or labels are not integers.
        LeakageError: if a member that counts has seen a row that does; names both.

    Example:
        >>> import jax.numpy as jnp
        >>> from ensjax import scores
        >>> logits = jnp.zeros((2, 4, 3))
        >>> result = scores.evaluate(logits, jnp.arange(4) % 3, ["nll"])
        >>> round(result["nll"], 4), result["num_members"]
        (1.0986, 2)
    """
    by_kind = {
        "votes": evaluate_votes,
        "points": evaluate_points,
        "quantiles": evaluate_quantiles,
    }
    kind = getattr(predictions, "kind", "logits")
    if kind in by_kind:
        return by_kind[kind](
            predictions,
            labels,
            metrics,
            larger_is_better=larger_is_better,
            chosen_member=chosen_member,
            sample_weight=sample_weight,
            groups=groups,
            bootstrap=bootstrap,
            confidence=confidence,
            seed=seed,
            allow_seen=allow_seen,
        )
    functions = chosen_metrics(metrics, METRICS, DEFAULT_METRICS)
    predictions = as_predictions(predictions)
    members = predictions.log_probs
    counts = np.asarray(jnp.broadcast_to(_by_row(predictions), members.shape[:2]))
    rows = Rows.of(members.shape[1], sample_weight, groups)
    check_seen(predictions, counts, rows, allow_seen)
    return score_systems(
        functions,
        predictive_log_probs(predictions),
        members,
        labels,
        counts,
        rows,
        Bootstrap(bootstrap, confidence, seed),
        oracle_log_probs,
        Best(larger_is_better, chosen_member, predictions.names),
    )


def evaluate_votes(
    predictions: Predictions,
    labels: jax.Array,
    metrics: Sequence[str] | Mapping[str, Callable[..., jax.Array]] | None = None,
    *,
    larger_is_better: Sequence[str] = LARGER_IS_BETTER,
    chosen_member: int | str | None = None,
    sample_weight: jax.Array | None = None,
    groups: jax.Array | None = None,
    bootstrap: int = 0,
    confidence: float = 0.95,
    seed: int = 0,
    allow_seen: bool = False,
) -> dict[str, Any]:
    """Scores of votes: of the class that most members name, and of each member.

    Args:
        predictions: of `Predictions.from_votes`, or others, whose first choices are the
            votes. An abstention (-1) is an answer that is wrong; mask a member in rows
            that it was not asked about.
        labels: class indices, `[batch]`.
        metrics: names of `VOTE_METRICS`, or name -> `score(votes, labels, *,
            num_classes, sample_weight) -> [...]` of votes `[..., batch]`. None: all.

    The other arguments, what is returned and what raises are those of `evaluate`. The
    ensemble is the plurality of the members that count, the lowest class among equals,
    as `combine.majority_vote`; weights other than 0 are not used (of another vote,
    `combine.pool` makes predictions of one member). The oracle is right where some
    member is.
    """
    functions = chosen_metrics(metrics, VOTE_METRICS, tuple(VOTE_METRICS))
    members, num_classes = predictions.votes, predictions.num_classes
    functions = {
        name: With.of(score, num_classes=num_classes)
        for name, score in functions.items()
    }
    counts = np.asarray(jnp.broadcast_to(_by_row(predictions), members.shape))
    rows = Rows.of(members.shape[1], sample_weight, groups)
    check_seen(predictions, counts, rows, allow_seen)
    named = jax.nn.one_hot(members, num_classes) * counts[..., None]
    sums = jnp.sum(named, axis=0)
    plurality = jnp.where(
        jnp.any(sums > 0, axis=-1), jnp.argmax(sums, axis=-1), ABSTAIN
    )
    return score_systems(
        functions,
        plurality.astype(members.dtype),
        members,
        labels,
        counts,
        rows,
        Bootstrap(bootstrap, confidence, seed),
        oracle_votes,
        Best(larger_is_better, chosen_member, predictions.names),
    )


def evaluate_points(
    points: jax.Array | Predictions,
    targets: jax.Array,
    metrics: Sequence[str] | Mapping[str, Callable[..., jax.Array]] | None = None,
    *,
    weights: jax.Array | None = None,
    mask: jax.Array | None = None,
    larger_is_better: Sequence[str] = LARGER_IS_BETTER,
    chosen_member: int | str | None = None,
    sample_weight: jax.Array | None = None,
    groups: jax.Array | None = None,
    bootstrap: int = 0,
    confidence: float = 0.95,
    seed: int = 0,
    allow_seen: bool = False,
) -> dict[str, Any]:
    """Scores of real-valued predictions, of the members' mean and of each member.

    Args:
        points: `[member, batch]` or `[member, batch, target]`, or `Predictions` of
            points; one model becomes an ensemble of one with `points[None]`.
        targets: `[batch]`, or `[batch, target]`.
        metrics: names of `POINT_METRICS`, or of `STATED_METRICS` where the predictions
            state a `scale` or `lower` and `upper`; or name -> `score(points, targets,
            *, sample_weight) -> [...]`. None: all of `POINT_METRICS`.
        weights: of the mean, `[member]` or `[member, batch]`; they are normalised.
        mask: `[member]` or `[member, batch]`; a False member counts as removed. Like
            `weights`, those of `Predictions` where it is not given.

    The other arguments, what is returned and what raises are those of `evaluate`. The
    oracle is the member nearest to the target in each row; a slope is best at 1. The
    ensemble's stated scale is the standard deviation of the mixture
    (`mixture_moments`), its ends are the weighted means of the members'.

    Several targets are scored one by one on the same resamples, and not averaged, as
    their units may differ. Each name then begins with that of its target in `columns`,
    or "target0", "target1", ...: "target0_mae", "target0_mae_low".
    """
    known = POINT_METRICS | STATED_METRICS
    functions = chosen_metrics(metrics, known, tuple(POINT_METRICS))
    predictions = as_points(points, weights=weights, mask=mask)
    if isinstance(points, Predictions):
        weights, mask = predictions.weights, predictions.mask
    points = predictions.points
    if points.ndim == 3:
        return _of_each_target(
            predictions,
            targets,
            metrics,
            larger_is_better=larger_is_better,
            chosen_member=chosen_member,
            sample_weight=sample_weight,
            groups=groups,
            bootstrap=bootstrap,
            confidence=confidence,
            seed=seed,
            allow_seen=allow_seen,
        )
    stated = stated_of(predictions)
    functions = of_stated(functions, tuple(stated))
    ensemble, shares = pooled_points(points, weights=weights, mask=mask)
    counts = np.broadcast_to(np.asarray(shares > 0), points.shape)
    rows = Rows.of(points.shape[1], sample_weight, groups)
    check_seen(predictions, counts, rows, allow_seen)
    return score_systems(
        functions,
        pool_stated(stated, ensemble, shares),
        jnp.stack(list(stated.values()), axis=-1),
        targets,
        counts,
        rows,
        Bootstrap(bootstrap, confidence, seed),
        oracle_stated,
        Best(larger_is_better, chosen_member, predictions.names),
    )


def evaluate_quantiles(
    predictions: Predictions,
    targets: jax.Array,
    metrics: Sequence[str] | Mapping[str, Callable[..., jax.Array]] | None = None,
    *,
    larger_is_better: Sequence[str] = LARGER_IS_BETTER,
    chosen_member: int | str | None = None,
    sample_weight: jax.Array | None = None,
    groups: jax.Array | None = None,
    bootstrap: int = 0,
    confidence: float = 0.95,
    seed: int = 0,
    allow_seen: bool = False,
) -> dict[str, Any]:
    """Scores of predicted quantiles, of the members' mean quantiles and of each member.

    Args:
        predictions: of `Predictions.from_quantiles`.
        targets: `[batch]`.
        metrics: names of `QUANTILE_METRICS`, or name -> `score(quantiles, targets, *,
            levels, sample_weight) -> [...]`. None: "pinball" (the mean over levels),
            "crps_quantiles" and "mean_coverage_error" (the mean over levels of
            |share of targets at most the quantile - level|).

    The other arguments, what is returned and what raises are those of `evaluate`. The
    ensemble is the weighted mean of the members' quantiles of each level; the oracle is
    the member with the least mean pinball loss in each row.
    """
    default = ("pinball", "crps_quantiles", "mean_coverage_error")
    functions = chosen_metrics(metrics, QUANTILE_METRICS, default)
    members = predictions.quantiles
    levels = tuple(map(float, predictions.levels))
    functions = {
        name: With.of(score, levels=levels) for name, score in functions.items()
    }
    weights = predictions.normalized_weights
    weights = weights.reshape(len(weights), -1, 1)
    ensemble = jnp.sum(jnp.where(weights == 0, 0.0, members) * weights, axis=0)
    counts = np.asarray(jnp.broadcast_to(_by_row(predictions), members.shape[:2]))
    rows = Rows.of(members.shape[1], sample_weight, groups)
    check_seen(predictions, counts, rows, allow_seen)
    return score_systems(
        functions,
        ensemble,
        members,
        targets,
        counts,
        rows,
        Bootstrap(bootstrap, confidence, seed),
        With.of(oracle_quantiles, levels=levels),
        Best(larger_is_better, chosen_member, predictions.names),
    )


def _of_each_target(predictions, targets, metrics, **told):
    """`evaluate_points` of points `[member, batch, target]`, target by target."""
    shape, targets = predictions.points.shape, jnp.asarray(targets)
    if targets.shape != shape[1:]:
        raise ValueError(
            f"targets must be [batch, target] = {shape[1:]}; got shape {targets.shape}."
        )
    names = predictions.columns or [f"target{place}" for place in range(shape[2])]
    if not names or len(set(map(str, names))) < len(names):
        raise ValueError(f"targets need different names; got {tuple(names)}.")
    found, common = {}, {}
    for place, name in enumerate(names):
        parts = {
            part: value[..., place]
            for part in ("values", "scale", "lower", "upper")
            if (value := getattr(predictions, part)) is not None
        }
        one = predictions.replace(columns=(name,), **parts)
        scored = evaluate_points(one, targets[:, place], metrics, **told)
        common = {key: scored.pop(key) for key in ("num_members", "num_rows")}
        found |= {f"{name}_{key}": value for key, value in scored.items()}
    return found | common


def _by_row(predictions):
    """Whether each member counts in each row, `[member, 1]` or `[member, batch]`."""
    weights = predictions.normalized_weights
    return weights.reshape(len(weights), -1) > 0  # NaN where nobody counts
