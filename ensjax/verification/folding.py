"""Several metrics of members that never exist together."""

from typing import Any

import jax

from ensjax.scores.rows import floating
from ensjax.verification.member_state import merge_states


def member_states(
    metrics: Any,
    truth: jax.Array,
    *,
    reference: Any = None,
    max_members: int,
    rank_error: float = 0.005,
) -> dict[str, Any]:
    """What these metrics need to know of members, of none so far, by name.

    For `ensjax.reduce.fold_members`, which runs a function of one member, or a stack,
    block by block over devices; then `Metric.sums_of_reduced` of the folded states.
    Members that are NaN, or masked, are left out at each element. States of other
    members are merged by `merge_member_states`.

    Args:
        metrics: an iterable of `Metric`.
        truth: observations of the cases, `[...]`.
        reference: as in `Metric.sums`.
        max_members: the most members that will be folded in.
        rank_error: of what is kept in order (the CRPS in all its forms), as in
            `reduce.init_crps`; 0 keeps all members, else few: exact either way.

    Raises:
        ValueError: if a metric needs all members at once.
    """
    states = {}
    truth = floating(truth)
    for metric in metrics:
        ingredient = metric.ingredient
        if ingredient.name not in states:
            states[ingredient.name] = ingredient.init_state(
                truth, reference, max_members, rank_error
            )
    return states


def merge_member_states(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    """The states of the members of `a` and of `b`, from `member_states` of one call.

    Raises:
        ValueError: if the names differ.
    """
    if set(a) != set(b):
        raise ValueError(
            f"the states must be of the same metrics; got {sorted(a)} and {sorted(b)}."
        )
    return {name: merge_states(a[name], b[name]) for name in a}
