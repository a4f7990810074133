"""Sums over many rows do not drift; no member and no row are refused clearly."""

import jax
import numpy as np
import pytest

from ensjax import combine, scores
from ensjax.scores.classification import count_choices
from ensjax.scores.rows import bin_sum, inner_products

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


@pytest.fixture(scope="module")
def many():
    """Choices, labels and fractional weights of 200,000 rows."""
    rng = np.random.default_rng(0)
    labels = rng.choice(3, 200_000, p=[0.7, 0.2, 0.1])
    choice = np.where(rng.uniform(size=(2, len(labels))) < 0.8, labels, 0)
    return choice, labels, rng.choice([0.1, 0.03], len(labels)).astype(np.float32)


def test_sums_of_many_fractional_weights_do_not_drift(many):
    choice, labels, weight = many
    exact = weight.astype(float)
    expected = np.bincount(labels, weights=exact, minlength=3)
    np.testing.assert_allclose(bin_sum(weight, labels, 3), expected, rtol=5e-6)
    hit = (choice == labels).astype(np.float32)
    found = inner_products(hit, hit * weight)
    np.testing.assert_allclose(found, (hit * exact) @ hit.T, rtol=5e-6)
    both = [np.broadcast_to(x, choice.shape) for x in (labels, weight)]
    found = np.asarray(count_choices(choice, *both, num_classes=3))
    for i in range(2):
        table = np.bincount(3 * labels + choice[i], weights=exact, minlength=9)
        np.testing.assert_allclose(found[i].ravel(), table, rtol=5e-6)


@pytest.mark.slow
def test_the_summary_of_many_rows_does_not_drift(many):
    choice, labels, weight = many
    logits = 3 * np.eye(3, dtype=np.float32)[choice]
    run = jax.jit(scores.score_summary, static_argnames="top_k")
    found = run(logits, labels, sample_weight=weight, top_k=2)
    exact = weight.astype(float)
    table = np.bincount(3 * labels + choice[0], weights=exact).reshape(3, 3)
    balanced = (np.diag(table) / table.sum(1)).mean()
    right = np.trace(table) / table.sum()
    confidence = np.exp(3) / (np.exp(3) + 2)
    apart = np.average(choice[0] != choice[1], weights=exact)
    for name, value in (
        ("accuracy_members", right),
        ("balanced_accuracy_members", balanced),
        ("ece_members", abs(right - confidence)),
    ):
        np.testing.assert_allclose(found[name][0], value, atol=3e-6, err_msg=name)
    np.testing.assert_allclose(found["disagreement"], apart, atol=3e-6)


def test_labels_of_8_bits_are_counted_in_their_classes():
    labels = np.arange(40, dtype=np.uint8)
    logits = np.eye(40, dtype=np.float32)
    found = scores.confusion_matrix(logits, labels)
    np.testing.assert_array_equal(found, np.eye(40))


def test_a_negative_weight_spoils_every_count():
    labels = np.array([0, 1, -1])
    for at in range(3):
        weight = np.where(np.arange(3) == at, -1.0, 1.0)
        found = scores.balanced_accuracy(
            np.eye(3, dtype=np.float32), labels, sample_weight=weight
        )
        assert np.isnan(found)


def test_one_class_alone_has_no_kappa_whatever_the_weights():
    """Shares of 100 fractional weights sum to 1 only to rounding."""
    logits = np.zeros((2, 100, 3), np.float32)
    logits[..., 1] = 5
    labels = np.ones(100, int)

    @jax.jit
    def found(weight):
        own = {"sample_weight": weight}
        summary = scores.score_summary(logits, labels, top_k=2, **own)
        return (
            scores.kappa(logits, **own),
            scores.cohen_kappa(logits, labels, **own),
            summary["cohen_kappa"],
            (
                scores.matthews_correlation(logits, labels, **own),
                summary["matthews_correlation"],
            ),
        )

    for seed in range(8):
        weight = np.random.default_rng(seed).uniform(size=100).astype(np.float32)
        *kappas, correlations = found(weight)
        assert all(np.isnan(kappa).all() for kappa in kappas)
        assert all((value == 0).all() for value in correlations)
