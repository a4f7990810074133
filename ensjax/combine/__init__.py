"""Combinations of members' predictions in output space, and their calibration.

Inputs are `[member, batch, class]` logits or `Predictions`; averages return
log-probabilities `[batch, class]` in nats, votes return classes `[batch]`. What is
fitted (`fit_*`, `calibrate`, `greedy_select`, `prune_members`) takes rows that no
member was trained on.
"""

from ensjax.combine.average import mean_logits, mean_probs
from ensjax.combine.calibrate import (
    MemberTemperatures,
    Temperature,
    calibrate,
    calibrate_members,
)
from ensjax.combine.convex import ConvexWeights, fit_convex_weights
from ensjax.combine.dynamic import (
    DynamicRegression,
    DynamicSelection,
    fit_dynamic_regression,
    fit_dynamic_selection,
)
from ensjax.combine.experts import confidence_gates, mix_experts
from ensjax.combine.folds import (
    estimator_out_of_fold,
    fold_of_rows,
    fold_weights,
    out_of_fold,
)
from ensjax.combine.fusion import (
    AttentionFusion,
    BilinearFusion,
    ConcatFusion,
    GatedFusion,
    StaticFusion,
)
from ensjax.combine.gates import (
    gate_entropy,
    load_imbalance,
    sigmoid_gate,
    softmax_gate,
    top_k_gate,
)
from ensjax.combine.level_one import level_one_features
from ensjax.combine.selection import (
    Pruning,
    Selection,
    best_members,
    greedy_select,
    prune_members,
)
from ensjax.combine.stacking import (
    StackedRegression,
    Stacking,
    fit_stacking,
    fit_stacking_regression,
)
from ensjax.combine.vote import accuracy_weights, majority_vote, weighted_vote

__all__ = [
    "AttentionFusion",
    "BilinearFusion",
    "ConcatFusion",
    "ConvexWeights",
    "DynamicRegression",
    "DynamicSelection",
    "GatedFusion",
    "MemberTemperatures",
    "Pruning",
    "Selection",
    "StackedRegression",
    "Stacking",
    "StaticFusion",
    "Temperature",
    "accuracy_weights",
    "best_members",
    "calibrate",
    "calibrate_members",
    "confidence_gates",
    "estimator_out_of_fold",
    "fit_convex_weights",
    "fit_dynamic_regression",
    "fit_dynamic_selection",
    "fit_stacking",
    "fit_stacking_regression",
    "fold_of_rows",
    "fold_weights",
    "gate_entropy",
    "greedy_select",
    "level_one_features",
    "load_imbalance",
    "majority_vote",
    "mean_logits",
    "mean_probs",
    "mix_experts",
    "out_of_fold",
    "prune_members",
    "sigmoid_gate",
    "softmax_gate",
    "top_k_gate",
    "weighted_vote",
]
