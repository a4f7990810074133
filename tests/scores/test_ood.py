"""Detection scores against scikit-learn, with ties, weights and degenerate inputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics

from ensjax import scores


def case(ties, num_rows=80, seed=0):
    rng = np.random.default_rng(seed)
    positive = rng.uniform(size=num_rows) < 0.3
    values = rng.normal(size=num_rows) + positive
    values = np.round(values, 0 if ties else 6).astype(np.float32)
    return values, positive, rng.uniform(size=num_rows)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_auroc_and_auprc_equal_scikit_learn(ties, weighted):
    values, positive, weight = case(ties)
    weight = weight if weighted else None
    for ours, theirs in [
        (scores.auroc, metrics.roc_auc_score),
        (scores.auprc, metrics.average_precision_score),
    ]:
        expected = theirs(positive, values, sample_weight=weight)
        actual = ours(values, positive, sample_weight=weight)
        np.testing.assert_allclose(actual, expected, rtol=2e-6)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("tpr", [0.5, 0.8, 0.95, 1.0])
def test_fpr_at_tpr_equals_the_smallest_on_the_roc_curve(ties, tpr):
    values, positive, weight = case(ties)
    false, true, _ = metrics.roc_curve(
        positive, values, sample_weight=weight, drop_intermediate=False
    )
    expected = false[true >= tpr - 1e-9].min()
    actual = scores.fpr_at_tpr(values, positive, tpr=tpr, sample_weight=weight)
    np.testing.assert_allclose(actual, expected, rtol=5e-6, atol=1e-7)


def test_auroc_is_the_formula_of_mid_ranks():
    from scipy.stats import rankdata

    values, positive, _ = case(ties=True)
    ranks, num_positive = rankdata(values), positive.sum()
    num_negative = len(values) - num_positive
    area = ranks[positive].sum() - num_positive * (num_positive + 1) / 2
    expected = area / (num_positive * num_negative)
    np.testing.assert_allclose(scores.auroc(values, positive), expected, rtol=2e-6)


def test_equal_scores_are_chance():
    positive = np.arange(10) < 3
    zeros = np.zeros(10)
    assert scores.auroc(zeros, positive) == 0.5
    np.testing.assert_allclose(scores.auprc(zeros, positive), 0.3, rtol=1e-6)
    assert scores.fpr_at_tpr(zeros, positive) == 1.0


def test_perfect_and_reversed_scores():
    positive = np.arange(10) >= 6
    values = np.arange(10.0)
    assert scores.auroc(values, positive) == 1.0
    assert scores.auroc(-values, positive) == 0.0
    assert scores.fpr_at_tpr(values, positive) == 0.0
    assert scores.auprc(values, positive) == 1.0


def test_signed_zeros_and_infinities_keep_their_order():
    values = np.array([-np.inf, -0.0, 0.0, np.inf])
    # Pairs: (0 against -0) ties, (inf against both) wins.
    actual = scores.auroc(values, np.array([False, False, True, True]))
    np.testing.assert_allclose(actual, (1 + 0.5 + 1 + 1) / 4)


def test_one_kind_alone_is_nan():
    for positive in (np.ones(4, bool), np.zeros(4, bool)):
        assert np.isnan(scores.auroc(np.arange(4.0), positive))
        assert np.isnan(scores.fpr_at_tpr(np.arange(4.0), positive))
    assert np.isnan(scores.auprc(np.arange(4.0), np.zeros(4, bool)))


ALL = pytest.mark.parametrize(
    "score", [scores.auroc, scores.auprc, scores.fpr_at_tpr], ids=lambda f: f.__name__
)


@ALL
def test_nan_scores_make_the_result_nan_unless_masked(score):
    values, positive, _ = case(ties=True)
    broken = np.where(np.arange(80) == 7, np.nan, values)
    keep = np.arange(80) != 7
    assert np.isnan(score(broken, positive))
    np.testing.assert_allclose(
        score(broken, positive, sample_weight=keep),
        score(values[keep], positive[keep]),
        rtol=1e-6,
    )


@ALL
def test_leading_axes_and_jit_equal_one_at_a_time(score):
    values = np.random.default_rng(0).integers(0, 9, (3, 40)).astype(float)
    positive = np.arange(40) % 3 == 0
    together = jax.jit(score)(values, positive)
    alone = [score(v, positive) for v in values]
    np.testing.assert_allclose(together, alone, rtol=1e-6)


@ALL
def test_swapped_arguments_are_refused(score):
    with pytest.raises(TypeError, match="scores come first"):
        score(jnp.array([True, False]), jnp.array([0.3, 0.4]))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 6))
def test_auroc_depends_on_order_alone_and_flips_with_the_sign(seed, levels):
    rng = np.random.default_rng(seed)
    values = rng.integers(0, levels, 30).astype(float)
    positive = np.arange(30) < 11
    area = scores.auroc(values, positive)
    np.testing.assert_allclose(scores.auroc(values**3 - 5, positive), area, atol=1e-6)
    np.testing.assert_allclose(scores.auroc(-values, positive), 1 - area, atol=1e-6)


def test_kinds_are_two():
    x = np.arange(4.0)
    named = (
        (scores.auroc, (x, [0, 1, 2, 1])),
        (scores.delong, (x, -x, [0, 1, 2, 1])),
        (scores.evaluate_ood, (x[None, :, None] * np.ones(3), [0, 1, 2, 1])),
    )
    for function, arguments in named:
        with pytest.raises(ValueError, match=r"bool or 0 and 1; got \[2\] as well"):
            function(*arguments)
    assert scores.auroc(x, np.array([0, 0, 1, 1], np.uint8)) == 1.0
