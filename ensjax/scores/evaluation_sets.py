"""Scores of predicted intervals and sets, of one system or of several members.

As by `evaluate`, a flat dict of numbers; with a member axis, of lists.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ensjax.provenance import Provenance
from ensjax.scores.bounds import (
    coverage_width_criterion,
    interval_coverage,
    interval_score,
    mean_width,
)
from ensjax.scores.evaluation_rows import Bootstrap, Rows, check_told
from ensjax.scores.programs import With, score_one
from ensjax.scores.sets import (
    class_coverage,
    coverage_gap,
    mean_set_size,
    set_coverage,
    size_stratified_coverage,
)

SIZE_EDGES = (0, 2, 4, 11, 101)  # of `size_stratified_coverage`


def evaluate_intervals(
    lower: jax.Array,
    upper: jax.Array,
    targets: jax.Array,
    *,
    nominal: float = 0.9,
    sample_weight: jax.Array | None = None,
    groups: jax.Array | None = None,
    bootstrap: int = 0,
    confidence: float = 0.95,
    seed: int = 0,
    provenance: Provenance | None = None,
    allow_seen: bool = False,
) -> dict[str, Any]:
    """Coverage, width, interval score and CWC of predicted intervals.

    Args:
        lower: `[batch]` of one system, or `[member, batch]`.
        upper: of the same shape.
        targets: `[batch]`.
        nominal: the coverage aimed at, in (0, 1).
        provenance: of the intervals, such as `fitted.fitted_rows.mark(...)` of what
            made them; None: unknown, and nothing is checked.

    The other arguments are those of `evaluate`.

    Returns:
        "coverage", "width", "interval_score" and "cwc", with a member axis lists of one
        number a member; with a bootstrap also `_low` and `_high` of each (of the
        coverage Wilson's where rows have no groups, as in `evaluate`); "nominal" and
        "num_rows".

    Raises:
        ValueError: if a number is out of range or a shape does not fit.
        LeakageError: as `evaluate`.
    """
    if not 0.0 < nominal < 1.0:
        raise ValueError(f"nominal must lie between 0 and 1; got {nominal}.")
    lower, upper = jnp.asarray(lower), jnp.asarray(upper)
    if lower.ndim not in (1, 2) or lower.shape != upper.shape:
        raise ValueError(
            "lower and upper must be [batch], or both [member, batch]; got shapes"
            f" {lower.shape} and {upper.shape}."
        )
    rows = Rows.of(lower.shape[-1], sample_weight, groups)
    check_told(provenance, (), rows.weight[None] != 0, allow_seen)
    found = score_one(
        With.of(_interval_values, nominal=float(nominal)),
        {"lower": lower.T, "upper": upper.T, "targets": targets},
        rows,
        Bootstrap(bootstrap, confidence, seed),
        proportions={"coverage": rows.weight},
    )
    return found | {"nominal": float(nominal)}


def _interval_values(weight, lower, upper, targets, *, nominal):
    told = (lower.T, upper.T, targets)
    return {
        "coverage": interval_coverage(*told, sample_weight=weight),
        "width": mean_width(*told[:2], sample_weight=weight),
        "interval_score": interval_score(
            *told, alpha=1 - nominal, sample_weight=weight
        ),
        "cwc": coverage_width_criterion(*told, nominal=nominal, sample_weight=weight),
    }


def evaluate_sets(
    sets: jax.Array,
    labels: jax.Array,
    *,
    nominal: float | None = None,
    sample_weight: jax.Array | None = None,
    groups: jax.Array | None = None,
    bootstrap: int = 0,
    confidence: float = 0.95,
    seed: int = 0,
    provenance: Provenance | None = None,
    allow_seen: bool = False,
) -> dict[str, Any]:
    """Coverage and mean size of sets of classes, by class and by size too.

    Args:
        sets: bool, `[batch, class]`, or `[member, batch, class]`.
        labels: class indices, `[batch]`.
        nominal: the coverage aimed at, in (0, 1), for "coverage_gap".
        provenance: of the sets, as for `evaluate_intervals`.

    The other arguments are those of `evaluate`.

    Returns:
        "coverage" and "size", with a member axis lists of one number a member;
        "class_coverage", a list by class, and "size_stratified_coverage", by the sizes
        of `SIZE_EDGES`, with a member axis lists of such lists, NaN where there are no
        rows; with `nominal`, that and "coverage_gap", the mean over classes of
        |coverage - nominal|. With a bootstrap also `_low` and `_high`: of coverages
        Wilson's where rows have no groups, as in `evaluate`; of the gap, which is
        biased upwards, those of the basic bootstrap, which may miss values near 0.
        And "num_rows".

    Raises:
        ValueError: if a number is out of range or a shape does not fit.
        TypeError: if `sets` are not bool or `labels` not integers.
        LeakageError: as `evaluate`.
    """
    if nominal is not None and not 0.0 < nominal < 1.0:
        raise ValueError(f"nominal must lie between 0 and 1; got {nominal}.")
    sets = jnp.asarray(sets)
    if sets.ndim not in (2, 3):
        raise ValueError(
            "sets must be [batch, class], or [member, batch, class]; got shape"
            f" {sets.shape}."
        )
    rows = Rows.of(sets.shape[-2], sample_weight, groups)
    check_told(provenance, (), rows.weight[None] != 0, allow_seen)
    weight, labels = np.asarray(rows.weight), np.asarray(labels)
    if labels.shape != weight.shape:
        raise ValueError(
            f"labels must be [batch] = [{len(weight)}]; got {labels.shape}."
        )
    in_class = labels == np.arange(sets.shape[-1])[:, None]
    sizes = np.asarray(jnp.sum(sets, axis=-1))[..., None, :]
    edges = np.array([*SIZE_EDGES, np.inf])[:, None]
    in_bin = (sizes >= edges[:-1]) & (sizes < edges[1:])
    found = score_one(
        With.of(_set_values, nominal=nominal),
        {"sets": jnp.moveaxis(sets, -2, 0), "labels": labels},
        rows,
        Bootstrap(bootstrap, confidence, seed),
        proportions={
            "coverage": weight,
            "class_coverage": weight * in_class,
            "size_stratified_coverage": weight * in_bin,
        },
        biased=("coverage_gap",),
    )
    return found if nominal is None else found | {"nominal": float(nominal)}


def _set_values(weight, sets, labels, *, nominal):
    sets = jnp.moveaxis(sets, 0, -2)
    found = {
        "coverage": set_coverage(sets, labels, sample_weight=weight),
        "size": mean_set_size(sets, sample_weight=weight),
        "class_coverage": class_coverage(sets, labels, sample_weight=weight),
        "size_stratified_coverage": size_stratified_coverage(
            sets, labels, edges=SIZE_EDGES, sample_weight=weight
        ),
    }
    if nominal is not None:
        found["coverage_gap"] = coverage_gap(
            sets, labels, nominal=nominal, sample_weight=weight
        )
    return found
