"""The gaps whose norms are calibration errors, for intervals of these (`ends`).

Each function takes what its score takes and returns signed gaps `[..., gap]`, such that
the score is the sum of their absolute values, or the largest for `mce`.
"""

import jax.numpy as jnp

from ensjax.scores.bounds import coverage_probability_accuracy
from ensjax.scores.calibration import (
    adaptive_ece,
    classwise_ece,
    classwise_gaps,
    debiased_calibration_error,
    ece,
    equal_weight_gaps,
    equal_width_gaps,
    mce,
    reliability_bins,
)
from ensjax.scores.classification import accuracy, top_k_accuracy
from ensjax.scores.metrics import VOTE_METRICS, coverage_gaps, mean_coverage_error
from ensjax.scores.smooth_calibration import smooth_ece
from ensjax.scores.spread import ence, miscalibration_area


def _of_bins(log_probs, labels, *, num_bins=15, sample_weight=None):
    bins = reliability_bins(
        log_probs, labels, num_bins=num_bins, sample_weight=sample_weight
    )
    return jnp.where(bins.weight == 0, 0.0, bins.accuracy - bins.confidence)


# Score -> (gaps, whether the score is the largest of them and not the sum).
GAPS = {
    ece: (equal_width_gaps, False),
    adaptive_ece: (equal_weight_gaps, False),
    classwise_ece: (classwise_gaps, False),
    mce: (_of_bins, True),
    mean_coverage_error: (coverage_gaps, False),
}
# Biased upwards, and no norms of gaps.
BIASED = (
    smooth_ece,
    debiased_calibration_error,
    ence,
    miscalibration_area,
    coverage_probability_accuracy,
)
# Shares of rows.
PROPORTIONS = (accuracy, top_k_accuracy, VOTE_METRICS["accuracy"])
