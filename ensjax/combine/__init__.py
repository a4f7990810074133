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
from ensjax.combine.out_of_bag import (
    out_of_bag_log_probs,
    out_of_bag_points,
    out_of_bag_predictions,
    out_of_bag_score,
)
from ensjax.combine.priors import adjust_prior
from ensjax.combine.vote import accuracy_weights, majority_vote, weighted_vote

__all__ = [
    "MemberTemperatures",
    "Temperature",
    "accuracy_weights",
    "adjust_prior",
    "calibrate",
    "calibrate_members",
    "majority_vote",
    "mean_logits",
    "mean_probs",
    "out_of_bag_log_probs",
    "out_of_bag_points",
    "out_of_bag_predictions",
    "out_of_bag_score",
    "weighted_vote",
]
