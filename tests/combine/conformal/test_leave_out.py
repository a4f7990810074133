"""CV+ and jackknife+-after-bootstrap against float64 loops, and their coverage."""

import math

import jax
import numpy as np
import pytest

from ensjax import combine
from ensjax.provenance import LeakageError, Provenance


def reference_interval(left_out, errors, alpha, upper=None):
    """Barber et al. 2021, equations 4 to 6, for one new row."""
    n = len(errors)
    low = np.sort(left_out - errors)
    high = np.sort((left_out if upper is None else upper) + errors)
    down = math.floor(alpha * (n + 1) + 1e-9)
    up = math.ceil((1 - alpha) * (n + 1) - 1e-9)
    return (
        low[down - 1] if down >= 1 else -np.inf,
        high[up - 1] if up <= n else np.inf,
    )


def bagged(rng, members, rows, new):
    inbag = rng.multinomial(rows, np.ones(rows) / rows, size=members)
    return inbag, rng.normal(size=(members, rows)), rng.normal(size=(members, new))


@pytest.mark.parametrize("members, alpha", [(20, 0.2), (3, 0.1)])
def test_jackknife_after_bootstrap_is_the_loop_over_left_out_rows(members, alpha):
    rng = np.random.default_rng(members)
    inbag, points, new = bagged(rng, members, 25, 7)
    targets = rng.normal(size=25)
    # What a member says of rows that it drew is not looked at.
    spoiled = np.where(inbag > 0, np.nan, points)
    fitted = combine.fit_jackknife_after_bootstrap(spoiled, inbag, targets)
    low, high = fitted(new, alpha=alpha, rows_at_once=4)
    usable = [i for i in range(25) if (inbag[:, i] == 0).any()]
    assert (len(usable) < 25) == (members == 3)
    for x in range(7):
        out = [inbag[:, i] == 0 for i in usable]
        errors = np.array(
            [abs(targets[i] - points[o, i].mean()) for i, o in zip(usable, out)]
        )
        left_out = np.array([new[o, x].mean() for o in out])
        want = reference_interval(left_out, errors, alpha)
        np.testing.assert_allclose((low[x], high[x]), want, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_a_masked_member_is_a_removed_one():
    rng = np.random.default_rng(0)
    inbag, points, new = bagged(rng, 8, 20, 5)
    targets = rng.normal(size=20)
    mask = np.arange(8) != 3
    fitted = combine.fit_jackknife_after_bootstrap(points, inbag, targets, mask=mask)
    removed = combine.fit_jackknife_after_bootstrap(points[mask], inbag[mask], targets)
    new[3] = np.nan
    np.testing.assert_allclose(
        fitted(new, alpha=0.2), removed(new[mask], alpha=0.2), rtol=1e-6
    )
    twice = combine.fit_jackknife_after_bootstrap(
        np.tile(points[mask], (2, 1)), np.tile(inbag[mask], (2, 1)), targets
    )
    np.testing.assert_allclose(
        twice(np.tile(new[mask], (2, 1)), alpha=0.2),
        removed(new[mask], alpha=0.2),
        rtol=1e-5,
    )


def test_cv_plus_is_the_loop_over_rows():
    rng = np.random.default_rng(1)
    fold_of_row = np.arange(21) % 4
    fold_of_row[5] = -1
    points, targets = rng.normal(size=21), rng.normal(size=21)
    new = rng.normal(size=(4, 6))
    low, high = combine.fit_cv_plus(points, targets, fold_of_row)(new, alpha=0.1)
    kept = fold_of_row >= 0
    for x in range(6):
        want = reference_interval(
            new[fold_of_row[kept], x], np.abs(targets - points)[kept], 0.1
        )
        np.testing.assert_allclose((low[x], high[x]), want, rtol=1e-5)


@pytest.mark.parametrize("alpha", [0.04, 0.2, 0.7])
def test_cv_plus_bands_are_the_loop_over_rows(alpha):
    rng = np.random.default_rng(5)
    fold_of_row = np.arange(21) % 3
    fold_of_row[[4, 9]] = -1
    lower, targets = rng.normal(size=21), rng.normal(size=21)
    upper = lower + rng.uniform(size=21)
    lower[4] = np.nan  # a row that does not count
    new_lower = rng.normal(size=(3, 6))
    new_upper = new_lower + rng.uniform(size=(3, 6))
    fitted = combine.fit_cv_plus_band(lower, upper, targets, fold_of_row)
    low, high = fitted(new_lower, new_upper, alpha=alpha)
    kept = [i for i in range(21) if fold_of_row[i] >= 0]
    errors = np.array([max(lower[i] - targets[i], targets[i] - upper[i]) for i in kept])
    for x in range(6):
        left_out = new_lower[fold_of_row[kept], x], new_upper[fold_of_row[kept], x]
        ends = reference_interval(left_out[0], errors, alpha, left_out[1])
        np.testing.assert_allclose((low[x], high[x]), sorted(ends), rtol=1e-5)
    assert np.isinf(low).all() == (alpha == 0.04)  # 19 rows are too few for it


def test_a_band_of_one_point_is_cv_plus_of_the_point():
    rng = np.random.default_rng(6)
    points, targets, new = rng.normal(size=20), rng.normal(size=20), np.ones((2, 3))
    fold = np.arange(20) % 2
    band = combine.fit_cv_plus_band(points, points, targets, fold)
    interval = combine.fit_cv_plus(points, targets, fold)
    np.testing.assert_array_equal(band(new, new, alpha=0.3), interval(new, alpha=0.3))


@pytest.mark.slow
def test_bagged_means_are_covered_about_as_often_as_asked():
    # Members are means of their bootstrap; the guarantee is 1 - 2 alpha = 0.6, the
    # usual coverage 1 - alpha = 0.8.
    rng = np.random.default_rng(2)
    repeats, rows, members = 300, 40, 20
    inbag = rng.multinomial(rows, np.ones(rows) / rows, size=(repeats, members))
    y = rng.normal(size=(repeats, rows + 20)).astype(np.float32)
    centre = (inbag * y[:, None, :rows]).sum(axis=2) / rows  # [repeat, member]

    def interval(inbag, y, centre):
        points = np.ones((1, rows)) * centre[:, None]
        fitted = combine.fit_jackknife_after_bootstrap(points, inbag, y)
        return fitted(centre[:, None], alpha=0.2)

    low, high = jax.jit(jax.vmap(interval))(
        inbag, y[:, :rows], centre.astype(np.float32)
    )
    covered = ((low <= y[:, rows:]) & (y[:, rows:] <= high)).mean(axis=1)
    bound = 4 * covered.std() / math.sqrt(repeats)
    assert bound < 0.04
    assert covered.mean() > 0.6
    assert abs(covered.mean() - 0.8) < bound + 0.02  # bootstrap means are a bit wide


def test_members_that_saw_a_row_they_are_said_to_have_left_out_are_refused():
    rng = np.random.default_rng(3)
    inbag, points, _ = bagged(rng, 4, 10, 1)
    rows = np.arange(10)
    true = Provenance("wine", rows, "train", inbag > 0)
    combine.fit_jackknife_after_bootstrap(points, inbag, rows, provenance=true)
    false = Provenance("wine", rows, "train", np.ones((4, 10), bool))
    with pytest.raises(LeakageError, match="jackknife.*was trained on them"):
        combine.fit_jackknife_after_bootstrap(points, inbag, rows, provenance=false)
    seen = Provenance("wine", rows, "train", np.ones((1, 10), bool))
    with pytest.raises(LeakageError, match=r"CV\+"):
        combine.fit_cv_plus(points[0], rows, rows % 2, provenance=seen)
    with pytest.raises(LeakageError, match=r"CV\+ of the band"):
        combine.fit_cv_plus_band(*points[:2], rows, rows % 2, provenance=seen)
    held_out = Provenance("wine", rows, "validation")
    band = combine.fit_cv_plus_band(*points[:2], rows, rows % 2, provenance=held_out)
    with pytest.raises(LeakageError, match="which are test rows here"):
        band(
            points[:2],
            points[:2],
            alpha=0.3,
            provenance=Provenance("wine", rows[2:], "test"),
        )


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="must be .member, example."):
        combine.fit_jackknife_after_bootstrap(np.ones(3), np.ones(3), np.ones(3))
    fitted = combine.fit_cv_plus(np.zeros(4), np.ones(4), np.arange(4) % 2)
    with pytest.raises(ValueError, match="between 0 and 0.5"):
        fitted(np.zeros((2, 3)), alpha=0.6)
    with pytest.raises(ValueError, match="lower and fold_of_row must be .example."):
        combine.fit_cv_plus_band(np.ones((2, 4)), np.ones(4), np.ones(4), np.ones(4))
    band = combine.fit_cv_plus_band(
        np.zeros(4), np.ones(4), np.ones(4), np.arange(4) % 2
    )
    with pytest.raises(ValueError, match="lower must be .fold, batch."):
        band(np.zeros(3), np.ones(3), alpha=0.3)


def test_a_missing_fold_is_refused():
    rows = np.arange(10.0)
    fitted = combine.fit_cv_plus(rows, rows + 1, np.arange(10) % 5)
    band = combine.fit_cv_plus_band(rows, rows, rows + 1, np.arange(10) % 5)
    four, five = np.zeros((4, 3)), np.zeros((5, 3))
    with pytest.raises(ValueError, match="4 folds .* up to number 4"):
        fitted(four, alpha=0.2)
    with pytest.raises(ValueError, match="4 folds .* up to number 4"):
        band(four, four, alpha=0.2)
    low, high = jax.jit(lambda fitted, p: fitted(p, alpha=0.2))(fitted, four)
    assert np.isnan(low).all() and np.isnan(high).all()
    low, high = fitted(five, alpha=0.2)
    assert np.isfinite(low).all() and np.isfinite(high).all()
    # A fold of which no row counts need not be there.
    few = combine.fit_cv_plus(
        rows, rows + 1, np.where(rows < 8, rows % 4, -1).astype(int)
    )
    assert np.isfinite(few(four, alpha=0.2)).all()
