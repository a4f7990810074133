"""Combinations of members' predictions in output space: rules, and what is fitted.

Inputs are `[member, batch, class]` logits, `[member, batch]` or
`[member, batch, target]` points, `[member, batch, level]` quantiles, or `Predictions`.
Pools of classes return log-probabilities `[batch, class]` in nats, votes classes
`[batch]`, rules of points points without the member axis. What is fitted (`fit_*`,
`calibrate`, `greedy_select`, `prune_members`, pseudo-labels) takes rows that no member
was trained on, and `Predictions` that know their rows are refused otherwise.

Applied to `Predictions`, what was fitted gives `Predictions` (of one member where it
combines them) that have seen the rows of its fit too, so that a second stage on the
same rows is refused as well; applied to arrays it gives arrays. Sets, ends of intervals
and a cascade's output are arrays. Rules have no memory and return arrays; `pool` makes
one member of a rule's result, which has seen what its members have.
"""

from ensjax.combine.calibration.calibrated import (
    CalibratedEnsemble,
    CalibratedMembers,
    calibrate_each_member,
    calibrate_ensemble,
)
from ensjax.combine.calibration.isotonic_regression import (
    IsotonicFunction,
    fit_isotonic,
)
from ensjax.combine.calibration.maps import (
    AffineMap,
    IsotonicMap,
    PlattMap,
    fit_isotonic_map,
    fit_matrix_scaling,
    fit_platt,
    fit_vector_scaling,
)
from ensjax.combine.calibration.scale import (
    PitMap,
    SigmaScale,
    fit_pit_map,
    fit_sigma_scale,
)
from ensjax.combine.calibration.temperature import (
    MemberTemperatures,
    Temperature,
    calibrate,
    calibrate_members,
)
from ensjax.combine.calibration.thresholds import (
    VoteThresholds,
    fit_vote_thresholds,
)
from ensjax.combine.cascade.cost import (
    cascade_cost,
    flops_per_row,
    front_costs,
    front_scores,
)
from ensjax.combine.cascade.exits import (
    Cascade,
    CascadeOutput,
    fit_cascade,
    stage_scores,
)
from ensjax.combine.cascade.runs import (
    run_compacted,
    run_with_capacity,
)
from ensjax.combine.cascade.windows import (
    Windows,
    fit_single_threshold,
    fit_windows,
    rank_windows,
    recentre_windows,
)
from ensjax.combine.conformal.intervals import (
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
from ensjax.combine.conformal.leave_out import (
    CvPlus,
    JackknifeAfterBootstrap,
    fit_cv_plus,
    fit_jackknife_after_bootstrap,
)
from ensjax.combine.conformal.leave_out_bands import (
    CvPlusBand,
    fit_cv_plus_band,
)
from ensjax.combine.conformal.sets import (
    ApsScore,
    ConformalSets,
    LacScore,
    RapsScore,
    fit_conformal_sets,
    fit_conformal_sets_by_class,
    fit_conformal_sets_by_group,
)
from ensjax.combine.learned.base_models import (
    fit_and_predict,
    fit_out_of_fold,
)
from ensjax.combine.learned.convex import (
    ConvexWeights,
    fit_convex_weights,
)
from ensjax.combine.learned.dynamic import (
    DynamicRegression,
    DynamicSelection,
    fit_dynamic_regression,
    fit_dynamic_selection,
)
from ensjax.combine.learned.experts import (
    mix_experts,
)
from ensjax.combine.learned.folds import (
    estimator_out_of_fold,
    fold_of_rows,
    fold_weights,
    out_of_fold,
)
from ensjax.combine.learned.fusion import (
    AttentionFusion,
    BilinearFusion,
    ConcatFusion,
    FusionRows,
    GatedFusion,
    StaticFusion,
    fusion_rows,
)
from ensjax.combine.learned.gates import (
    gate_entropy,
    load_imbalance,
    sigmoid_gate,
    softmax_gate,
    top_k_gate,
)
from ensjax.combine.learned.level_one import (
    level_one_features,
)
from ensjax.combine.learned.pseudo_labels import (
    PseudoLabels,
    agreed_labels,
    balanced_labels,
    confident_labels,
)
from ensjax.combine.learned.selection import (
    Pruning,
    Selection,
    best_members,
    greedy_select,
    keep_best_members,
    prune_members,
)
from ensjax.combine.learned.stacking import (
    StackedRegression,
    Stacking,
    fit_stacking,
    fit_stacking_regression,
)
from ensjax.combine.quantiles.aggregator import (
    QuantileAggregator,
)
from ensjax.combine.quantiles.fit import (
    FittedAggregator,
    fit_quantile_aggregator,
)
from ensjax.combine.quantiles.order import (
    isotonic,
    order_quantiles,
)
from ensjax.combine.quantiles.penalty import (
    adaptive_margin,
    constant_margin,
    crossing_penalty,
    proportional_margin,
)
from ensjax.combine.quantiles.sample_quantiles import (
    quantiles_of_ensemble,
)
from ensjax.combine.quantiles.training import (
    AggregatorMember,
    aggregator_ensemble,
    predict_quantiles,
    quantile_evaluation,
    quantile_loss,
    quantile_rows,
    stack_columns,
)
from ensjax.combine.rules.answers import (
    parse_answer,
    parse_answers,
)
from ensjax.combine.rules.average import (
    mean_logits,
    mean_probs,
)
from ensjax.combine.rules.influence import (
    consensus_distance,
    influence,
    leave_one_out,
    mask_nan,
)
from ensjax.combine.rules.interval_pools import (
    PooledInterval,
    average_cdfs,
    average_quantiles,
    pool_intervals,
)
from ensjax.combine.rules.member_weights import (
    MemberWeights,
    bma_weights,
    cluster_weights,
    distance_weights,
    softmin_weights,
    team_weights,
)
from ensjax.combine.rules.out_of_bag import (
    out_of_bag_log_probs,
    out_of_bag_points,
    out_of_bag_predictions,
    out_of_bag_score,
)
from ensjax.combine.rules.points import (
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
from ensjax.combine.rules.pool import (
    pool,
)
from ensjax.combine.rules.pools import (
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
from ensjax.combine.rules.priors import (
    adjust_prior,
)
from ensjax.combine.rules.runs import (
    RunAgreement,
    majority_of_runs,
    run_agreement,
    stack_runs,
)
from ensjax.combine.rules.vote import (
    accuracy_weights,
    majority_vote,
    weighted_vote,
)
from ensjax.combine.rules.weighted_vote import (
    WeightedVote,
    fit_accuracy_vote,
    fit_log_odds_vote,
)

__all__ = [
    "AffineMap",
    "AggregatorMember",
    "ApsScore",
    "AttentionFusion",
    "BilinearFusion",
    "CalibratedEnsemble",
    "CalibratedMembers",
    "Cascade",
    "CascadeOutput",
    "ConcatFusion",
    "ConformalBand",
    "ConformalInterval",
    "ConformalQuantiles",
    "ConformalSets",
    "ConvexWeights",
    "CvPlus",
    "CvPlusBand",
    "DynamicRegression",
    "DynamicSelection",
    "FittedAggregator",
    "FusionRows",
    "GatedFusion",
    "Gaussian",
    "IsotonicFunction",
    "IsotonicMap",
    "JackknifeAfterBootstrap",
    "LacScore",
    "MemberTemperatures",
    "MemberWeights",
    "PitMap",
    "PlattMap",
    "PooledInterval",
    "Pruning",
    "PseudoLabels",
    "QuantileAggregator",
    "RapsScore",
    "RunAgreement",
    "Selection",
    "SigmaScale",
    "StackedRegression",
    "Stacking",
    "StaticFusion",
    "Temperature",
    "VoteThresholds",
    "WeightedVote",
    "Windows",
    "accuracy_weights",
    "adaptive_margin",
    "adjust_prior",
    "aggregator_ensemble",
    "agreed_labels",
    "average_cdfs",
    "average_quantiles",
    "balanced_labels",
    "best_members",
    "bma_weights",
    "calibrate",
    "calibrate_each_member",
    "calibrate_ensemble",
    "calibrate_members",
    "cascade_cost",
    "cluster_weights",
    "confident_labels",
    "conformal_quantile",
    "conformal_quantile_by_group",
    "consensus_distance",
    "constant_margin",
    "crossing_penalty",
    "distance_weights",
    "entropy_weighted_probs",
    "entropy_weights",
    "estimator_out_of_fold",
    "fit_accuracy_vote",
    "fit_and_predict",
    "fit_asymmetric_band",
    "fit_cascade",
    "fit_conformal_band",
    "fit_conformal_interval",
    "fit_conformal_quantiles",
    "fit_conformal_sets",
    "fit_conformal_sets_by_class",
    "fit_conformal_sets_by_group",
    "fit_convex_weights",
    "fit_cv_plus",
    "fit_cv_plus_band",
    "fit_dynamic_regression",
    "fit_dynamic_selection",
    "fit_isotonic",
    "fit_isotonic_map",
    "fit_jackknife_after_bootstrap",
    "fit_log_odds_vote",
    "fit_matrix_scaling",
    "fit_out_of_fold",
    "fit_pit_map",
    "fit_platt",
    "fit_quantile_aggregator",
    "fit_sigma_scale",
    "fit_single_threshold",
    "fit_stacking",
    "fit_stacking_regression",
    "fit_vector_scaling",
    "fit_vote_thresholds",
    "fit_windows",
    "flops_per_row",
    "fold_of_rows",
    "fold_weights",
    "front_costs",
    "front_scores",
    "fusion_rows",
    "gate_entropy",
    "gaussian_mixture",
    "greedy_select",
    "huber_points",
    "huber_probs",
    "influence",
    "inverse_variance_points",
    "isotonic",
    "keep_best_members",
    "leave_one_out",
    "level_one_features",
    "load_imbalance",
    "majority_of_runs",
    "majority_vote",
    "mask_nan",
    "max_probs",
    "mean_logits",
    "mean_points",
    "mean_probs",
    "mean_ranks",
    "median_points",
    "median_probs",
    "min_probs",
    "mix_experts",
    "order_quantiles",
    "out_of_bag_log_probs",
    "out_of_bag_points",
    "out_of_bag_predictions",
    "out_of_bag_score",
    "out_of_fold",
    "parse_answer",
    "parse_answers",
    "pool",
    "pool_intervals",
    "predict_quantiles",
    "product_probs",
    "proportional_margin",
    "prune_members",
    "quantile_evaluation",
    "quantile_loss",
    "quantile_rows",
    "quantiles_of_ensemble",
    "rank_sum",
    "rank_windows",
    "recentre_windows",
    "run_agreement",
    "run_compacted",
    "run_with_capacity",
    "sigmoid_gate",
    "softmax_gate",
    "softmin_weights",
    "stack_columns",
    "stack_runs",
    "stage_scores",
    "team_weights",
    "top_k_gate",
    "trimmed_points",
    "trimmed_probs",
    "weighted_vote",
    "winsorized_points",
    "winsorized_probs",
]
