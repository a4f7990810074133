"""Combinations of members' predictions in output space, and their calibration.

Inputs are `[member, batch, class]` logits or `Predictions`; averages return
log-probabilities `[batch, class]` in nats, votes return classes `[batch]`. Quantiles
are `[member, batch, level]`.
"""

from ensjax.combine.average import mean_logits, mean_probs
from ensjax.combine.calibrate import (
    MemberTemperatures,
    Temperature,
    calibrate,
    calibrate_members,
)
from ensjax.combine.isotonic import isotonic, order_quantiles
from ensjax.combine.out_of_fold import BasePredictions, fit_and_predict, out_of_fold
from ensjax.combine.quantile_fit import FittedAggregator, fit_quantile_aggregator
from ensjax.combine.quantile_penalty import (
    adaptive_margin,
    constant_margin,
    crossing_penalty,
    proportional_margin,
)
from ensjax.combine.quantile_training import (
    AggregatorMember,
    aggregator_ensemble,
    predict_quantiles,
    quantile_evaluation,
    quantile_loss,
    quantile_rows,
    stack_columns,
)
from ensjax.combine.quantiles import QuantileAggregator
from ensjax.combine.sample_quantiles import quantiles_of_ensemble
from ensjax.combine.vote import accuracy_weights, majority_vote, weighted_vote

__all__ = [
    "AggregatorMember",
    "BasePredictions",
    "FittedAggregator",
    "MemberTemperatures",
    "QuantileAggregator",
    "Temperature",
    "accuracy_weights",
    "adaptive_margin",
    "aggregator_ensemble",
    "calibrate",
    "calibrate_members",
    "constant_margin",
    "crossing_penalty",
    "fit_and_predict",
    "fit_quantile_aggregator",
    "isotonic",
    "majority_vote",
    "mean_logits",
    "mean_probs",
    "order_quantiles",
    "out_of_fold",
    "predict_quantiles",
    "proportional_margin",
    "quantile_evaluation",
    "quantile_loss",
    "quantile_rows",
    "quantiles_of_ensemble",
    "stack_columns",
    "weighted_vote",
]
