"""The CRPS family: golden values, other packages, every pair, and what must hold."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scoringrules
from hypothesis import given, settings
from hypothesis import strategies as st

from ensjax import scores, verification
from ensjax.verification import (
    crps,
    crps_gaussian,
    crps_integral,
    crps_parts,
    crps_pwm,
    outcome_weighted_crps,
    threshold_weighted_crps,
)

FORMS = jax.jit(crps_pwm), jax.jit(crps_integral)
GOLDEN = np.array([0.1, 0.4, 0.9, 1.6, 2.5], np.float32)[:, None]


@pytest.mark.parametrize(
    "metric, expected",
    [
        (crps(), 0.28),
        (crps("fair"), 0.16),
        (crps("almost_fair", alpha=0.95), 0.166),
        (crps("almost_fair", alpha=0.0), 0.28),
        (crps("almost_fair", alpha=1.0), 0.16),
        (threshold_weighted_crps(1.0), 0.132),
    ],
)
def test_golden_values(metric, expected, score):
    got = score(metric, GOLDEN, np.array([0.7], np.float32))
    np.testing.assert_allclose(got, expected, atol=1e-6)


def test_golden_values_of_other_forms(score):
    truth = np.array([0.7], np.float32)
    pwm, integral = (form(GOLDEN, truth) for form in FORMS)
    np.testing.assert_allclose(pwm, 0.16, atol=1e-6)
    np.testing.assert_allclose(integral, 0.28, atol=1e-6)
    terms = jax.jit(scores.crps_terms)(GOLDEN, truth)
    np.testing.assert_allclose(2 * terms.pairs, 24, rtol=1e-6)  # D of the card
    got = score(outcome_weighted_crps(1.0), GOLDEN, np.array([1.8], np.float32))
    np.testing.assert_allclose(got.crps, 0.225, atol=1e-6)


def every_pair(x, y, mask, fair):
    """The definition, one element at a time, in float64; NaN: not defined."""
    found = np.full(y.shape, np.nan)
    for place in np.ndindex(y.shape):
        own = x[(slice(None), *place)][mask[(slice(None), *place)]].astype(np.float64)
        m = len(own)
        if m < (2 if fair > 0 else 1) or np.isnan(y[place]):
            continue
        error = np.abs(own - y[place]).mean()
        d = np.abs(own[:, None] - own[None]).sum()
        standard = error - d / (2 * m**2)
        if fair == 0:
            found[place] = standard
            continue
        found[place] = fair * (error - d / (2 * m * (m - 1))) + (1 - fair) * standard
    return found


@pytest.mark.parametrize(
    "estimator, fair", [("standard", 0), ("fair", 1), ("almost_fair", 0.95)]
)
def test_local_member_counts_and_weights(gaps, score, estimator, fair):
    forecast, truth, weights = gaps
    values = every_pair(forecast, truth, ~np.isnan(forecast), fair)
    known = ~np.isnan(values)
    expected = (values * weights)[known].sum() / weights[known].sum()
    got = score(crps(estimator), forecast, truth, weights=weights)
    np.testing.assert_allclose(got, expected, rtol=2e-6)
    # A mask is the same as NaN; what it hides leaves no trace.
    shown = np.where(np.isnan(forecast), 1e6, forecast).astype(np.float32)
    masked = score(
        crps(estimator), shown, truth, weights=weights, member_mask=~np.isnan(forecast)
    )
    np.testing.assert_array_equal(masked, got)


def test_what_is_not_scored_is_counted(gaps):
    forecast, truth, weights = gaps
    sums = jax.jit(crps("fair").sums)(forecast, truth, weights=weights)
    known = ~np.isnan(every_pair(forecast, truth, ~np.isnan(forecast), 1))
    np.testing.assert_allclose(
        verification.scored_share(sums), weights[known].sum() / weights.sum(), rtol=1e-5
    )


@pytest.mark.parametrize("members", [2, 9])
def test_it_equals_scoringrules(members, score):
    rng = np.random.default_rng(members)
    x = rng.normal(size=(members, 20)).astype(np.float32)
    y = rng.normal(size=20).astype(np.float32)
    x64, y64 = x.T.astype(float), y.astype(float)
    for estimator, names in (("standard", ("nrg", "qd")), ("fair", ("fair", "pwm"))):
        got = score(crps(estimator).over(), x, y)
        for name in names:
            reference = scoringrules.crps_ensemble(y64, x64, estimator=name)
            np.testing.assert_allclose(got, reference, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        FORMS[1](x, y),
        scoringrules.crps_ensemble(y64, x64, estimator="int"),
        rtol=1e-5,
        atol=1e-6,
    )
    upper = scoringrules.twcrps_ensemble(y64, x64, a=0.5)
    got = score(threshold_weighted_crps(0.5).over(), x, y)
    np.testing.assert_allclose(got, upper, rtol=1e-5, atol=1e-6)
    lower = scoringrules.twcrps_ensemble(y64, x64, b=0.5)
    got = score(threshold_weighted_crps(0.5, tail="lower").over(), x, y)
    np.testing.assert_allclose(got, lower, rtol=1e-5, atol=1e-6)
    # Zero in that package where it is not defined: no event, and no member above.
    outcome = np.nan_to_num(scoringrules.owcrps_ensemble(y64, x64, a=0.0))
    is_event = (y > 0) & (x > 0).any(axis=0)
    got = score(outcome_weighted_crps(0.0).over(), x, y)
    np.testing.assert_allclose(got.crps[is_event], outcome[is_event], rtol=1e-5)
    assert np.isnan(got.crps[y <= 0]).all()


def test_it_equals_scores_and_xskillscore(score):
    xr = pytest.importorskip("xarray")
    package = pytest.importorskip("scores.probability")
    xskillscore = pytest.importorskip("xskillscore")
    rng = np.random.default_rng(1)
    x = rng.normal(size=(6, 30)).astype(np.float32)
    y = rng.normal(size=30).astype(np.float32)
    forecast = xr.DataArray(x.astype(float), dims=["member", "time"])
    truth = xr.DataArray(y.astype(float), dims=["time"])
    for estimator, name in (("standard", "ecdf"), ("fair", "fair")):
        other = package.crps_for_ensemble(forecast, truth, "member", method=name)
        np.testing.assert_allclose(score(crps(estimator), x, y), other, rtol=2e-6)
    other = xskillscore.crps_ensemble(truth, forecast, member_dim="member")
    np.testing.assert_allclose(score(crps(), x, y), other, rtol=2e-6)
    other = package.tail_tw_crps_for_ensemble(
        forecast, truth, "member", threshold=0.3, tail="upper", method="ecdf"
    )
    got = score(threshold_weighted_crps(0.3), x, y)
    np.testing.assert_allclose(got, other, rtol=2e-6)
    spread = np.full(30, 0.7, np.float32)
    both = np.stack([x[0], spread])
    other = xskillscore.crps_gaussian(
        truth, forecast[0].drop_vars("member", errors="ignore"), 0.7
    )
    np.testing.assert_allclose(score(crps_gaussian(), both, y), other, rtol=2e-6)


def test_gaussian_equals_scoringrules_and_leaves_out_what_has_no_spread(score):
    mean = np.array([0.0, 1.0, 2.0, 0.5], np.float32)
    std = np.array([1.0, 0.5, 0.0, np.nan], np.float32)
    y = np.array([0.3, 2.5, 2.0, 0.0], np.float32)
    expected = scoringrules.crps_normal(y[:2], mean[:2], std[:2]).mean()
    got = score(crps_gaussian(), np.stack([mean, std]), y)
    np.testing.assert_allclose(got, expected, rtol=1e-5)


@settings(max_examples=25, deadline=None)
@given(
    values=st.lists(
        st.floats(-1e3, 1e3, width=32), min_size=6, max_size=6, unique=False
    ),
    truth=st.floats(-1e3, 1e3, width=32),
    seed=st.integers(0, 100),
)
def test_member_order_and_forms_agree(values, truth, seed, score):
    x = np.array(values, np.float32)[:, None]
    y = np.array([truth], np.float32)
    size = np.abs(x).max() + abs(truth) + 1e-6
    fair, standard = score(crps("fair"), x, y), score(crps(), x, y)
    pwm, integral = (np.asarray(form(x, y))[0] for form in FORMS)
    np.testing.assert_allclose(fair, pwm, atol=2e-6 * size)
    np.testing.assert_allclose(standard, integral, atol=2e-6 * size)
    shuffled = np.random.default_rng(seed).permutation(x)
    np.testing.assert_allclose(score(crps(), shuffled, y), standard, atol=1e-6 * size)
    # The fair form takes M / (M - 1) of the spread that the standard one takes.
    skill = np.abs(x - y).mean()
    np.testing.assert_allclose(
        fair, skill - (skill - standard) * 6 / 5, atol=2e-6 * size
    )
    assert standard >= -1e-6 * size


def test_weighted_members_count_as_copies():
    x = np.array([[0.3], [-1.0], [2.0]], np.float32)
    y = np.array([0.5], np.float32)
    copies = np.repeat(x, [2, 1, 3], axis=0)
    integral = FORMS[1]
    weighted = integral(x, y, member_weights=np.array([2.0, 1.0, 3.0], np.float32))
    np.testing.assert_allclose(weighted, integral(copies, y), rtol=1e-5)
    none = integral(x, y, member_weights=np.zeros(3, np.float32))
    assert np.isnan(none).all()


def test_one_member_has_no_fair_score(score):
    x, y = np.array([[1.0, 3.0]], np.float32), np.array([0.5, 2.5], np.float32)
    np.testing.assert_allclose(score(crps(), x, y), 0.5)
    assert np.isnan(score(crps("fair"), x, y))
    assert np.isnan(score(crps("almost_fair"), x, y))


def test_parts_add_up(gaps, score):
    forecast, truth, weights = gaps
    parts = score(crps_parts("fair"), forecast, truth, weights=weights)
    whole = score(crps("fair"), forecast, truth, weights=weights)
    np.testing.assert_allclose(parts.crps, whole, rtol=1e-5)
    np.testing.assert_allclose(parts.crps, parts.skill - parts.spread / 2, rtol=1e-6)


def test_the_standard_form_rewards_too_little_spread_and_the_fair_one_does_not():
    """The table of the card: M = 4, the spread that minimises each, over the truth's.

    2^16 cases; the minimum is searched on the sampled scores of one set of draws, whose
    curvature near it makes an error of some 1 %.
    """
    key = jax.random.key(0)
    noise = jax.random.normal(key, (4, 2**16))
    truth = jax.random.normal(jax.random.fold_in(key, 1), (2**16,))
    spreads = jnp.linspace(0.4, 1.3, 19)
    metrics = crps(), crps("almost_fair", alpha=0.95), crps("fair")

    @jax.jit
    def by_spread(spreads, noise, truth):  # one sort for all of them
        return jax.lax.map(lambda t: [m(t * noise, truth) for m in metrics], spreads)

    found = by_spread(spreads, noise, truth)
    for of_metric, expected in zip(found, (0.626, 0.976, 1.0), strict=True):
        best = np.polyfit(spreads, of_metric, 4)
        fine = np.linspace(0.5, 1.2, 701)
        assert abs(fine[np.argmin(np.polyval(best, fine))] - expected) < 0.03


def test_thresholds_by_place_come_as_a_reference(score):
    rng = np.random.default_rng(0)
    x, y = (rng.normal(size=s).astype(np.float32) for s in ((5, 8, 2), (8, 2)))
    level = np.array([0.2, 0.9], np.float32)
    got = score(threshold_weighted_crps(), x, y, reference={"threshold": level})
    apart = [
        score(threshold_weighted_crps(float(t)), x[..., i], y[..., i])
        for i, t in enumerate(level)
    ]
    np.testing.assert_allclose(got, np.mean(apart), rtol=1e-5)
    with pytest.raises(ValueError, match="threshold"):
        threshold_weighted_crps()(x, y)


def test_outcome_weights_fall_back_on_the_largest_member(score):
    x = np.array([[0.0, 0.0], [0.5, 0.5]], np.float32)
    y = np.array([2.0, 0.0], np.float32)
    got = score(outcome_weighted_crps(1.0), x, y)
    np.testing.assert_allclose(got.crps, 1.5)
    np.testing.assert_allclose(got.brier, 0.5)
    np.testing.assert_allclose(got.event_rate, 0.5)


@pytest.mark.parametrize("estimator", ["fair", "almost_fair"])
def test_events_without_a_fair_crps_keep_their_brier_score(estimator, score):
    """One member above: the CRPS of such events is left out, and nothing else."""
    rng = np.random.default_rng(5)
    x = rng.normal(size=(5, 400)).astype(np.float32)
    y = rng.normal(size=400).astype(np.float32)
    metric, above = outcome_weighted_crps(1.0, estimator=estimator), (x > 1).sum(0)
    got = score(metric, x, y)
    assert ((y > 1) & (above == 1)).sum() > 20
    np.testing.assert_allclose(got.event_rate, (y > 1).mean(), rtol=1e-5)
    np.testing.assert_allclose(
        got.brier, ((above / 5 - (y > 1)) ** 2).mean(), rtol=1e-5
    )
    events = (y > 1) & (above != 1)
    fair = {"fair": 1, "almost_fair": 0.95}[estimator]
    each = every_pair(x, y, x > 1, fair)
    each = np.where(above == 0, np.abs(y - x.max(axis=0)), each)[events]
    np.testing.assert_allclose(got.crps, each.mean(), rtol=1e-5)


def test_where_the_threshold_is_missing_nothing_is_scored(score):
    level = np.array([1.0, np.nan], np.float32)
    x, y = np.array([[0.0, 0], [2, 2]], np.float32), np.array([2.5, 2.5], np.float32)
    metric = outcome_weighted_crps()
    got = score(metric, x, y, reference={"threshold": level})
    np.testing.assert_allclose(got.event_rate, 1.0)
    np.testing.assert_allclose(got.crps, 0.5)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: crps("best"), "estimator"),
        (lambda: crps("almost_fair", alpha=2.0), "alpha"),
        (lambda: crps()(np.ones((3, 4)), np.ones(5)), "forecast must be"),
        (lambda: crps().over(3)(np.ones((3, 4)), np.ones(4)), "axis"),
        (
            lambda: crps()(np.ones((3, 4)), np.ones(4), member_mask=np.ones(4, bool)),
            "member_mask",
        ),
        (lambda: crps()(np.ones((3, 4)), np.ones(4), weights=np.ones(3)), "weights"),
        (lambda: threshold_weighted_crps(0.0, tail="both"), "tail"),
        (lambda: crps_gaussian()(np.ones((3, 4)), np.ones(4)), "standard deviations"),
    ],
)
def test_errors_say_what_came(call, words):
    with pytest.raises(ValueError, match=words):
        call()
