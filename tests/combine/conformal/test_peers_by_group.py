"""Normalised and Mondrian intervals and sets are crepes', on the same predictions."""

import fractions
import math

import numpy as np
import pytest

from ensjax import combine

pytestmark = pytest.mark.slow
crepes = pytest.importorskip("crepes")

RNG = np.random.default_rng(0)
SCALE = RNG.uniform(0.2, 2.0, size=300)
POINTS = RNG.normal(size=300)
TARGETS = POINTS + SCALE * RNG.normal(size=300)
# Of 300 rows group 3 has few, and group 4 none: neither can be covered.
GROUPS = np.where(np.arange(300) % 50 == 7, 3, RNG.integers(0, 3, 300))
FIT, NEW = slice(0, 150), slice(150, 300)


def both(alpha, *, scale=None, groups=None, num_fit=150):
    """Our intervals of the last 150 rows and those of crepes, `[row, 2]`."""
    fit = slice(0, num_fit)
    part = lambda x, rows: None if x is None else x[rows]  # noqa: E731
    peer = crepes.ConformalRegressor()
    peer.fit(
        TARGETS[fit] - POINTS[fit], sigmas=part(scale, fit), bins=part(groups, fit)
    )
    theirs = peer.predict_int(
        POINTS[NEW],
        sigmas=part(scale, NEW),
        bins=part(groups, NEW),
        confidence=1 - alpha,
    )
    interval = combine.fit_conformal_interval(
        POINTS[fit],
        TARGETS[fit],
        alpha=alpha,
        scale=part(scale, fit),
        groups=part(groups, fit),
        num_groups=None if groups is None else 5,
    )
    ours = interval(POINTS[NEW], part(scale, NEW), groups=part(groups, NEW))
    return np.stack(ours, axis=1), theirs


@pytest.mark.parametrize("alpha", [0.07, 0.3])
@pytest.mark.parametrize("is_scaled", [False, True])
def test_intervals_are_those_of_crepes(alpha, is_scaled):
    ours, theirs = both(alpha, scale=SCALE if is_scaled else None)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    assert np.isfinite(ours).all()


@pytest.mark.parametrize("alpha", [0.07, 0.3])
@pytest.mark.parametrize("is_scaled", [False, True])
@pytest.mark.filterwarnings("ignore:the no. of calibration examples is too small")
def test_mondrian_intervals_are_those_of_crepes(alpha, is_scaled):
    ours, theirs = both(alpha, scale=SCALE if is_scaled else None, groups=GROUPS)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    is_few = GROUPS[NEW] == 3  # 3 rows: none is enough for 0.07
    assert np.isinf(ours[is_few]).all() == (alpha == 0.07)
    assert np.isfinite(ours[~is_few]).all()


def test_a_group_without_rows_is_everything_where_crepes_says_nothing():
    groups = np.where(np.arange(300) == 299, 4, GROUPS)
    ours, theirs = both(0.3, groups=groups)
    np.testing.assert_allclose(ours[:-1], theirs[:-1], atol=1e-5)
    assert np.isinf(ours[-1]).all()
    assert theirs[-1].tolist() == [0.0, 0.0]  # what it starts its answer with


def test_a_whole_rank_is_not_rounded_away_as_by_crepes():
    # (n + 1)(1 - alpha) = 150 * 0.9 = 135. crepes cuts off (1 - 0.9) * 150, a little
    # below 15 in float64, to 14, and so takes the 136th smallest error.
    ours, theirs = both(0.1, scale=SCALE, num_fit=149)
    errors = sorted(abs(TARGETS[:149] - POINTS[:149]) / SCALE[:149])
    rank = math.ceil((149 + 1) * (1 - fractions.Fraction("0.1")))
    assert rank == 135
    for row, (mine, other) in enumerate(zip(ours, theirs), start=150):
        radius = errors[rank - 1] * SCALE[row]
        end = POINTS[row] - radius, POINTS[row] + radius
        np.testing.assert_allclose(mine, end, atol=1e-5)
        wider = errors[rank] * SCALE[row]
        end = POINTS[row] - wider, POINTS[row] + wider
        np.testing.assert_allclose(other, end, atol=1e-12)


PROBS = RNG.dirichlet(np.full(4, 0.7), 300)
LABELS = (RNG.random(300)[:, None] > PROBS.cumsum(axis=1)).sum(axis=1).clip(0, 3)


@pytest.mark.parametrize("alpha", [0.07, 0.3])
def test_mondrian_sets_are_those_of_crepes(alpha):
    log_probs, wrong = np.log(PROBS), 1 - PROBS
    own = wrong[np.arange(300), LABELS]
    options = dict(confidence=1 - alpha, smoothing=False)
    by_group = crepes.ConformalClassifier().fit(own[FIT], bins=GROUPS[FIT])
    sets = combine.fit_conformal_sets_by_group(
        combine.LacScore(),
        log_probs[FIT],
        LABELS[FIT],
        GROUPS[FIT],
        num_groups=4,
        alpha=alpha,
    )
    np.testing.assert_array_equal(
        sets(log_probs[NEW], groups=GROUPS[NEW]),
        by_group.predict_set(wrong[NEW], bins=GROUPS[NEW], **options),
    )
    # By class: the label of a row is its bin, and every class is asked in turn.
    by_class = crepes.ConformalClassifier().fit(own[FIT], bins=LABELS[FIT])
    theirs = [
        by_class.predict_set(wrong[NEW, c], bins=np.full(150, c), **options)
        for c in range(4)
    ]
    sets = combine.fit_conformal_sets_by_class(
        combine.LacScore(), log_probs[FIT], LABELS[FIT], alpha=alpha
    )
    np.testing.assert_array_equal(sets(log_probs[NEW]), np.stack(theirs, axis=1))
