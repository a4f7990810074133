"""Combinations of members' predictions in output space, and their calibration.

Inputs are `[member, batch, class]` logits or `Predictions`; averages return
log-probabilities `[batch, class]` in nats, votes return classes `[batch]`.
"""

from ensjax.combine.answers import parse_answer, parse_answers
from ensjax.combine.average import mean_logits, mean_probs
from ensjax.combine.calibrate import (
    MemberTemperatures,
    Temperature,
    calibrate,
    calibrate_members,
)
from ensjax.combine.thresholds import VoteThresholds, fit_vote_thresholds
from ensjax.combine.vote import accuracy_weights, majority_vote, weighted_vote

__all__ = [
    "MemberTemperatures",
    "Temperature",
    "VoteThresholds",
    "accuracy_weights",
    "calibrate",
    "calibrate_members",
    "fit_vote_thresholds",
    "majority_vote",
    "mean_logits",
    "mean_probs",
    "parse_answer",
    "parse_answers",
    "weighted_vote",
]
