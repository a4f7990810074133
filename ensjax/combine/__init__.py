"""Combinations of members' predictions in output space, and their calibration.

Inputs are `[member, batch, class]` logits or `Predictions`; averages return
log-probabilities `[batch, class]` in nats, votes return classes `[batch]`.
"""

from ensjax.combine.average import mean_logits, mean_probs
from ensjax.combine.calibrate import (
    MemberTemperatures,
    Temperature,
    calibrate,
    calibrate_members,
)
from ensjax.combine.cascade import (
    Cascade,
    CascadeOutput,
    fit_cascade,
    stage_scores,
)
from ensjax.combine.cascade_cost import (
    cascade_cost,
    flops_per_row,
    front_costs,
    front_scores,
)
from ensjax.combine.cascade_runs import run_compacted, run_with_capacity
from ensjax.combine.cascade_windows import (
    Windows,
    fit_single_threshold,
    fit_windows,
    rank_windows,
    recentre_windows,
)
from ensjax.combine.vote import accuracy_weights, majority_vote, weighted_vote

__all__ = [
    "Cascade",
    "CascadeOutput",
    "MemberTemperatures",
    "Temperature",
    "Windows",
    "accuracy_weights",
    "calibrate",
    "calibrate_members",
    "cascade_cost",
    "fit_cascade",
    "fit_single_threshold",
    "fit_windows",
    "flops_per_row",
    "front_costs",
    "front_scores",
    "majority_vote",
    "mean_logits",
    "mean_probs",
    "rank_windows",
    "recentre_windows",
    "run_compacted",
    "run_with_capacity",
    "stage_scores",
    "weighted_vote",
]
