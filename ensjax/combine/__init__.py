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
from ensjax.combine.vote import accuracy_weights, majority_vote, weighted_vote

__all__ = [
    "MemberTemperatures",
    "Temperature",
    "accuracy_weights",
    "calibrate",
    "calibrate_members",
    "majority_vote",
    "mean_logits",
    "mean_probs",
    "weighted_vote",
]
