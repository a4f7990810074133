"""Combinations of members' predictions in output space, and their calibration.

Inputs are `[member, batch, class]` logits, `[member, batch]` or
`[member, batch, target]` points, or `Predictions`; pools of classes return
log-probabilities `[batch, class]` in nats, votes classes `[batch]`, rules of points
points without the member axis.
"""

from ensjax.combine.average import mean_logits, mean_probs
from ensjax.combine.calibrate import (
    MemberTemperatures,
    Temperature,
    calibrate,
    calibrate_members,
)
from ensjax.combine.influence import consensus_distance, influence, leave_one_out
from ensjax.combine.interval_pools import (
    PooledInterval,
    average_cdfs,
    average_quantiles,
    pool_intervals,
)
from ensjax.combine.member_weights import (
    MemberWeights,
    bma_weights,
    cluster_weights,
    distance_weights,
    softmin_weights,
    team_weights,
)
from ensjax.combine.points import (
    Gaussian,
    gaussian_mixture,
    huber_points,
    inverse_variance_points,
    mean_points,
    mean_ranks,
    median_points,
    trimmed_points,
    winsorized_points,
)
from ensjax.combine.pools import (
    entropy_weighted_probs,
    entropy_weights,
    huber_probs,
    max_probs,
    median_probs,
    min_probs,
    product_probs,
    rank_sum,
    trimmed_probs,
    winsorized_probs,
)
from ensjax.combine.vote import accuracy_weights, majority_vote, weighted_vote

__all__ = [
    "Gaussian",
    "MemberTemperatures",
    "MemberWeights",
    "PooledInterval",
    "Temperature",
    "accuracy_weights",
    "average_cdfs",
    "average_quantiles",
    "bma_weights",
    "calibrate",
    "calibrate_members",
    "cluster_weights",
    "consensus_distance",
    "distance_weights",
    "entropy_weighted_probs",
    "entropy_weights",
    "gaussian_mixture",
    "huber_points",
    "huber_probs",
    "influence",
    "inverse_variance_points",
    "leave_one_out",
    "majority_vote",
    "max_probs",
    "mean_logits",
    "mean_points",
    "mean_probs",
    "mean_ranks",
    "median_points",
    "median_probs",
    "min_probs",
    "pool_intervals",
    "product_probs",
    "rank_sum",
    "softmin_weights",
    "team_weights",
    "trimmed_points",
    "trimmed_probs",
    "weighted_vote",
    "winsorized_points",
    "winsorized_probs",
]
