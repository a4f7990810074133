"""Proper scores and scores of the chosen class, against scikit-learn and by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax
from sklearn import metrics

from ensjax import scores

ROWS, CLASSES = 60, 4


@pytest.fixture(scope="module")
def case():
    rng = np.random.default_rng(0)
    log_probs = log_softmax(2 * rng.normal(size=(ROWS, CLASSES)), axis=-1)
    labels = rng.integers(0, CLASSES, ROWS)
    weight = rng.uniform(size=ROWS) * (rng.uniform(size=ROWS) < 0.8)
    return log_probs, labels, weight


@pytest.mark.parametrize("weighted", [False, True])
def test_nll_equals_scikit_learn_log_loss(case, weighted):
    log_probs, labels, weight = case
    weight = weight if weighted else None
    expected = metrics.log_loss(
        labels, np.exp(log_probs), sample_weight=weight, labels=range(CLASSES)
    )
    actual = scores.nll(log_probs, labels, sample_weight=weight)
    np.testing.assert_allclose(actual, expected, rtol=2e-6)


@pytest.mark.parametrize("weighted", [False, True])
def test_brier_equals_scikit_learn_and_is_not_halved(case, weighted):
    log_probs, labels, weight = case
    weight = weight if weighted else None
    expected = metrics.brier_score_loss(
        labels,
        np.exp(log_probs),
        sample_weight=weight,
        labels=range(CLASSES),
        scale_by_half=False,
    )
    actual = scores.brier(log_probs, labels, sample_weight=weight)
    np.testing.assert_allclose(actual, expected, rtol=2e-6)


def test_brier_runs_from_zero_to_two():
    log_probs = jnp.array([[0.0, -1e4], [0.0, -1e4]])
    assert scores.brier(log_probs, jnp.array([0, 0])) == 0.0
    assert scores.brier(log_probs, jnp.array([1, 1])) == 2.0


def test_rps_equals_a_loop_over_thresholds(case):
    log_probs, labels, _ = case
    total = 0.0
    for row, label in zip(np.exp(log_probs), labels):
        for threshold in range(CLASSES):
            below = row[: threshold + 1].sum()
            total += (below - float(label <= threshold)) ** 2
    actual = scores.rps(log_probs, labels)
    np.testing.assert_allclose(actual, total / ROWS, rtol=2e-6)


def test_rps_of_two_classes_is_half_the_brier_score(case):
    log_probs, labels, _ = case
    two = log_softmax(log_probs[:, :2], axis=-1)
    np.testing.assert_allclose(
        scores.rps(two, labels % 2), scores.brier(two, labels % 2) / 2, rtol=1e-6
    )


@pytest.mark.parametrize("weighted", [False, True])
def test_accuracy_confusion_recall_and_f1_equal_scikit_learn(case, weighted):
    log_probs, labels, weight = case
    weight = weight if weighted else None
    chosen = log_probs.argmax(-1)
    kwargs = dict(sample_weight=weight)
    pairs = [
        (scores.accuracy, metrics.accuracy_score),
        (scores.balanced_accuracy, metrics.balanced_accuracy_score),
        (scores.confusion_matrix, metrics.confusion_matrix),
        (scores.per_class_recall, lambda *a, **k: metrics.recall_score(
            *a, average=None, **k)),
        (scores.macro_f1, lambda *a, **k: metrics.f1_score(*a, average="macro", **k)),
    ]  # fmt: skip
    for ours, theirs in pairs:
        np.testing.assert_allclose(
            ours(log_probs, labels, **kwargs),
            theirs(labels, chosen, **kwargs),
            rtol=5e-6,
            atol=1e-6,
            err_msg=ours.__name__,
        )


@pytest.mark.parametrize("weighted", [False, True])
def test_precision_f1_mcc_and_kappa_equal_scikit_learn(case, weighted):
    log_probs, labels, weight = case
    weight = weight if weighted else None
    chosen = log_probs.argmax(-1)
    own = dict(sample_weight=weight)

    def close(found, expected):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)

    every = dict(average=None, labels=range(CLASSES), **own)
    close(
        scores.per_class_precision(log_probs, labels, **own),
        metrics.precision_score(labels, chosen, **every),
    )
    close(
        scores.per_class_f1(log_probs, labels, **own),
        metrics.f1_score(labels, chosen, **every),
    )
    close(
        scores.matthews_correlation(log_probs, labels, **own),
        metrics.matthews_corrcoef(labels, chosen, **own),
    )
    for costs in (None, "linear", "quadratic"):
        close(
            scores.cohen_kappa(log_probs, labels, costs=costs, **own),
            metrics.cohen_kappa_score(labels, chosen, weights=costs, **own),
        )


def test_bca_has_the_specificity_of_every_class(case):
    log_probs, labels, weight = case
    chosen = log_probs.argmax(-1)
    expected = []
    for c in range(CLASSES):
        sensitivity = np.average(chosen[labels == c] == c, weights=weight[labels == c])
        others = labels != c
        specificity = np.average(chosen[others] != c, weights=weight[others])
        expected.append((sensitivity + specificity) / 2)
    found = scores.balanced_classification_accuracy(
        log_probs, labels, sample_weight=weight
    )
    np.testing.assert_allclose(found, np.mean(expected), rtol=1e-5)


def test_one_class_alone_has_no_correlation_no_kappa_and_half_a_specificity():
    log_probs = jnp.log(jnp.array([[0.8, 0.2], [0.7, 0.3]]))
    labels = jnp.array([0, 0])
    assert scores.matthews_correlation(log_probs, labels) == 0
    assert np.isnan(scores.cohen_kappa(log_probs, labels))
    # Class 0: 1 and no others; class 1: no rows and none of the others called it.
    assert scores.balanced_classification_accuracy(log_probs, labels) == 0.75
    assert np.isnan(scores.per_class_precision(log_probs, labels)[1])
    assert scores.per_class_f1(log_probs, labels)[1] == 0


def test_costs_of_a_mistake_have_names(case):
    with pytest.raises(ValueError, match="linear"):
        scores.cohen_kappa(case[0], case[1], costs="cubic")


@pytest.mark.parametrize("k", [1, 2, CLASSES - 1])
def test_top_k_accuracy_equals_scikit_learn(case, k):
    log_probs, labels, weight = case
    expected = metrics.top_k_accuracy_score(
        labels, log_probs, k=k, sample_weight=weight, labels=range(CLASSES)
    )
    actual = scores.top_k_accuracy(log_probs, labels, k=k, sample_weight=weight)
    np.testing.assert_allclose(actual, expected, rtol=2e-6)


def test_among_equal_classes_the_lowest_is_chosen():
    uniform = jnp.zeros((4, 4))
    labels = jnp.arange(4)
    assert scores.accuracy(uniform, labels) == 0.25
    assert scores.top_k_accuracy(uniform, labels, k=3) == 0.75
    for k in (4, 7):  # every class is among the first
        assert scores.top_k_accuracy(uniform, labels, k=k) == 1
    assert np.isnan(scores.top_k_accuracy(uniform, labels.at[0].set(-1), k=7))
    with pytest.raises(ValueError, match="k must be at least 1; got 0"):
        scores.top_k_accuracy(uniform, labels, k=0)


def test_absent_class_has_nan_recall_and_no_part_in_the_balanced_accuracy():
    log_probs = jnp.log(jnp.array([[0.8, 0.1, 0.1], [0.2, 0.7, 0.1]]))
    labels = jnp.array([0, 0])
    recall = scores.per_class_recall(log_probs, labels)
    assert recall[0] == 0.5 and np.isnan(recall[1:]).all()
    assert scores.balanced_accuracy(log_probs, labels) == 0.5


ALL = [
    scores.nll,
    scores.brier,
    scores.rps,
    scores.accuracy,
    scores.ece,
    scores.mce,
    scores.adaptive_ece,
    scores.classwise_ece,
    scores.aurc,
    scores.excess_aurc,
    scores.augrc,
    scores.risk_at_coverage,
    scores.coverage_at_risk,
    scores.balanced_accuracy,
    scores.balanced_classification_accuracy,
    scores.macro_f1,
    scores.matthews_correlation,
    scores.cohen_kappa,
]
OF_CONFUSION = ALL[-5:]
TIE_SENSITIVE = (scores.aurc, scores.excess_aurc, scores.augrc)


def every_score(log_probs, labels, sample_weight=None):
    """All of them by name; together, since one program compiles faster than many."""
    return {
        score.__name__: score(log_probs, labels, sample_weight=sample_weight)
        for score in ALL
    }


compiled = jax.jit(every_score)


def check_close(found, expected, *, rtol=1e-5, atol=1e-6):
    for name, value in expected.items():
        np.testing.assert_allclose(
            found[name], value, rtol=rtol, atol=atol, err_msg=name
        )


@pytest.mark.slow
def test_leading_axes_equal_one_member_at_a_time():
    rng = np.random.default_rng(1)
    logits = 2 * rng.normal(size=(2, 3, 20, 5))
    labels = rng.integers(0, 5, 20)
    weight = rng.uniform(size=20)
    together = compiled(logits, labels, weight)
    for i in range(2):
        for j in range(3):
            alone = compiled(logits[i, j], labels, weight)
            assert all(value.shape == () for value in alone.values())
            check_close({n: v[i, j] for n, v in together.items()}, alone)


@pytest.mark.slow
def test_jit_equals_eager(case):
    log_probs, labels, weight = case
    check_close(
        compiled(log_probs, labels, weight), every_score(log_probs, labels, weight)
    )


def test_weight_zero_removes_a_row_even_if_it_is_broken(case):
    log_probs, labels, _ = case
    keep = np.arange(ROWS) % 3 != 0
    broken = np.where(keep[:, None], log_probs, np.nan)
    wrong = np.where(keep, labels, -7)
    check_close(
        compiled(broken, wrong, keep.astype(float)),
        compiled(log_probs[keep], labels[keep]),
    )


@pytest.mark.slow
def test_weight_two_repeats_a_row(case):
    log_probs, labels, _ = case
    counts = np.random.default_rng(2).integers(0, 4, ROWS)
    repeated = np.repeat(np.arange(ROWS), counts)
    weighted = compiled(log_probs, labels, counts)
    expected = compiled(log_probs[repeated], labels[repeated])
    # A repeated row adds points to the risk curve where its tie group has one.
    sensitive = {
        score.__name__: expected.pop(score.__name__) for score in TIE_SENSITIVE
    }
    check_close(weighted, expected, atol=2e-6)
    check_close(weighted, sensitive, atol=0.02)


@pytest.mark.slow
def test_order_of_rows_does_not_matter():
    rng = np.random.default_rng(3)
    # Few distinct rows: most confidences are tied.
    logits = rng.integers(0, 3, size=(40, 3)).astype(float)
    labels = rng.integers(0, 3, 40)
    order = rng.permutation(40)
    check_close(
        compiled(logits[order], labels[order]),
        compiled(logits, labels),
        rtol=1e-7,
        atol=2e-6,
    )


def test_label_out_of_range_is_never_an_ordinary_mistake(case):
    log_probs, labels, _ = case
    for bad in (-1, CLASSES):
        found = compiled(log_probs, np.where(np.arange(ROWS) == 5, bad, labels))
        for score in ALL:
            if score not in OF_CONFUSION:  # the confusion matrix leaves such rows out
                assert np.isnan(found[score.__name__]), score.__name__


def test_scores_are_finite_at_logits_of_ten_thousand():
    logits = jnp.array([[1e4, -1e4, 0.0], [-1e4, 1e4, 1e4], [1e4, 1e4, 1e4]])
    for name, value in compiled(logits, jnp.array([0, 1, 2])).items():
        assert np.isfinite(value), name


@pytest.mark.slow
def test_one_row_and_one_class_are_defined():
    for found in (
        compiled(jnp.array([[0.3, 0.1]]), jnp.array([0])),
        compiled(jnp.zeros((3, 1)), jnp.zeros(3, int)),
    ):
        found.pop("cohen_kappa")  # one class alone has none
        for name, value in found.items():
            assert np.isfinite(value), name


@pytest.mark.parametrize("score", ALL, ids=lambda f: f.__name__)
def test_bad_shapes_and_kinds_are_refused(score):
    log_probs = jnp.zeros((5, 3))
    with pytest.raises(TypeError, match="argmax"):
        score(log_probs, jnp.zeros((5, 3)))
    with pytest.raises(ValueError, match=r"labels must have shape \(5,\)"):
        score(log_probs, jnp.zeros(4, int))
    with pytest.raises(ValueError, match="sample_weight"):
        score(log_probs, jnp.zeros(5, int), sample_weight=jnp.ones(4))
    with pytest.raises(ValueError, match="batch, class"):
        score(jnp.zeros(3), jnp.zeros((), int))


def test_no_rows_that_count_give_nan(case):
    log_probs, labels, _ = case
    assert np.isnan(scores.nll(log_probs, labels, sample_weight=np.zeros(ROWS)))


def test_negative_weight_gives_nan(case):
    log_probs, labels, _ = case
    weight = np.where(np.arange(ROWS) == 0, -1.0, 1.0)
    assert np.isnan(scores.nll(log_probs, labels, sample_weight=weight))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.floats(0.01, 1e4))
def test_proper_scores_lie_in_their_ranges(seed, scale):
    rng = np.random.default_rng(seed)
    logits = scale * rng.normal(size=(8, 3))
    labels = rng.integers(0, 3, 8)
    assert scores.nll(logits, labels) >= 0
    assert 0 <= scores.brier(logits, labels) <= 2 + 1e-6
    assert 0 <= scores.rps(logits, labels) <= 2 + 1e-6
