"""No member and no row: one clear error, whatever is asked of them."""

import numpy as np
import pytest

from ensjax import combine, scores

LABELS, POINTS = np.zeros(0, int), np.zeros(0, np.float32)


@pytest.mark.parametrize(
    "name",
    ["aurc", "ece", "mce", "smooth_ece", "hand_till_auroc", "nll", "risk_at_coverage"],
)
def test_scores_of_no_rows_are_refused(name):
    for leading in ((), (2,)):
        with pytest.raises(ValueError, match="at least one row"):
            getattr(scores, name)(np.zeros((*leading, 0, 3), np.float32), LABELS)


@pytest.mark.parametrize(
    "name", ["spearman_correlation", "median_absolute_error", "r2", "rmse"]
)
def test_errors_of_no_rows_are_refused(name):
    with pytest.raises(ValueError, match="at least one row"):
        getattr(scores, name)(POINTS, POINTS)


def test_summaries_and_evaluations_of_no_rows_are_refused():
    logits = np.zeros((2, 0, 3), np.float32)
    for call in (
        lambda: scores.score_summary(logits, LABELS, top_k=2),
        lambda: scores.evaluate(logits, LABELS),
        lambda: scores.evaluate_points(logits[..., 0], POINTS),
        lambda: scores.auroc(POINTS, LABELS),
        lambda: scores.miscalibration_area(POINTS, POINTS, POINTS),
        lambda: scores.disagreement(logits),
        lambda: scores.spread_skill(logits[..., 0], POINTS),
    ):
        with pytest.raises(ValueError, match="at least one row"):
            call()


@pytest.mark.parametrize("name", ["mean_probs", "median_probs", "mean_points"])
def test_combinations_of_no_member_are_refused(name):
    nobody = np.zeros((0, 4, 3), np.float32)
    with pytest.raises(ValueError, match="at least one member"):
        getattr(combine, name)(nobody)


def test_scores_of_no_member_are_refused():
    nobody, labels = np.zeros((0, 4, 3), np.float32), np.zeros(4, int)
    for call in (
        lambda: scores.evaluate(nobody, labels),
        lambda: scores.evaluate_points(nobody[..., 0], labels * 1.0),
        lambda: scores.score_summary(nobody, labels, top_k=2),
    ):
        with pytest.raises(ValueError, match="at least one member"):
            call()
