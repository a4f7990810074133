"""Scores of predictions: pure functions that run under `jit`.

Predictions come first, `[..., batch, class]` log-probabilities in nats (or logits),
then labels `[batch]`. `sample_weight` weighs or masks rows. Functions of `uncertainty`
and `diversity` take all members at once.
"""

from ensjax.scores.calibration import (
    ReliabilityBins,
    adaptive_ece,
    classwise_ece,
    ece,
    mce,
    reliability_bins,
)
from ensjax.scores.classification import (
    accuracy,
    balanced_accuracy,
    confusion_matrix,
    macro_f1,
    per_class_recall,
    top_k_accuracy,
)
from ensjax.scores.diversity import (
    disagreement,
    disagreement_matrix,
    double_fault,
    error_correlation,
    kappa,
    pairwise_mean,
    q_statistic,
)
from ensjax.scores.intervals import (
    Interval,
    paired_bootstrap,
    t_interval,
    wilson_interval,
)
from ensjax.scores.ood import auprc, auroc, fpr_at_tpr
from ensjax.scores.proper import brier, nll, rps
from ensjax.scores.regression import (
    crps_gaussian,
    gaussian_nll,
    mae,
    mixture_moments,
    rmse,
)
from ensjax.scores.selective import (
    RiskCoverage,
    augrc,
    aurc,
    coverage_at_risk,
    excess_aurc,
    risk_at_coverage,
    risk_coverage,
)
from ensjax.scores.uncertainty import (
    expected_entropy,
    jensen_gap,
    mutual_information,
    predictive_entropy,
)

__all__ = [
    "Interval",
    "ReliabilityBins",
    "RiskCoverage",
    "accuracy",
    "adaptive_ece",
    "augrc",
    "auprc",
    "aurc",
    "auroc",
    "balanced_accuracy",
    "brier",
    "classwise_ece",
    "confusion_matrix",
    "coverage_at_risk",
    "crps_gaussian",
    "disagreement",
    "disagreement_matrix",
    "double_fault",
    "ece",
    "error_correlation",
    "excess_aurc",
    "expected_entropy",
    "fpr_at_tpr",
    "gaussian_nll",
    "jensen_gap",
    "kappa",
    "macro_f1",
    "mae",
    "mce",
    "mixture_moments",
    "mutual_information",
    "nll",
    "paired_bootstrap",
    "pairwise_mean",
    "per_class_recall",
    "predictive_entropy",
    "q_statistic",
    "reliability_bins",
    "risk_at_coverage",
    "risk_coverage",
    "rmse",
    "rps",
    "t_interval",
    "top_k_accuracy",
    "wilson_interval",
]
