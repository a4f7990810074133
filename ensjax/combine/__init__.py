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
from ensjax.combine.calibrate_scale import (
    PitMap,
    SigmaScale,
    fit_pit_map,
    fit_sigma_scale,
)
from ensjax.combine.calibrated import (
    CalibratedEnsemble,
    CalibratedMembers,
    calibrate_each_member,
    calibrate_ensemble,
)
from ensjax.combine.calibration_maps import (
    AffineMap,
    IsotonicMap,
    PlattMap,
    fit_isotonic_map,
    fit_matrix_scaling,
    fit_platt,
    fit_vector_scaling,
)
from ensjax.combine.conformal import (
    ConformalBand,
    ConformalInterval,
    ConformalQuantiles,
    conformal_quantile,
    conformal_quantile_by_group,
    fit_asymmetric_band,
    fit_conformal_band,
    fit_conformal_interval,
    fit_conformal_quantiles,
)
from ensjax.combine.conformal_sets import (
    ApsScore,
    ConformalSets,
    LacScore,
    RapsScore,
    fit_conformal_sets,
    fit_conformal_sets_by_class,
    fit_conformal_sets_by_group,
)
from ensjax.combine.isotonic_regression import IsotonicFunction, fit_isotonic
from ensjax.combine.leave_out import (
    CvPlus,
    JackknifeAfterBootstrap,
    fit_cv_plus,
    fit_jackknife_after_bootstrap,
)
from ensjax.combine.vote import accuracy_weights, majority_vote, weighted_vote
from ensjax.combine.weighted_vote import (
    WeightedVote,
    fit_accuracy_vote,
    fit_log_odds_vote,
)

__all__ = [
    "AffineMap",
    "ApsScore",
    "CalibratedEnsemble",
    "CalibratedMembers",
    "ConformalBand",
    "ConformalInterval",
    "ConformalQuantiles",
    "ConformalSets",
    "CvPlus",
    "IsotonicFunction",
    "IsotonicMap",
    "JackknifeAfterBootstrap",
    "LacScore",
    "MemberTemperatures",
    "PitMap",
    "PlattMap",
    "RapsScore",
    "SigmaScale",
    "Temperature",
    "WeightedVote",
    "accuracy_weights",
    "calibrate",
    "calibrate_each_member",
    "calibrate_ensemble",
    "calibrate_members",
    "conformal_quantile",
    "conformal_quantile_by_group",
    "fit_accuracy_vote",
    "fit_asymmetric_band",
    "fit_conformal_band",
    "fit_conformal_interval",
    "fit_conformal_quantiles",
    "fit_conformal_sets",
    "fit_conformal_sets_by_class",
    "fit_conformal_sets_by_group",
    "fit_cv_plus",
    "fit_isotonic",
    "fit_isotonic_map",
    "fit_jackknife_after_bootstrap",
    "fit_log_odds_vote",
    "fit_matrix_scaling",
    "fit_pit_map",
    "fit_platt",
    "fit_sigma_scale",
    "fit_vector_scaling",
    "majority_vote",
    "mean_logits",
    "mean_probs",
    "weighted_vote",
]
