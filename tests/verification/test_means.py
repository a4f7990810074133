"""Errors, anomalies, and spread against skill; area weights."""

import jax
import numpy as np
import pytest

from ensjax import scores
from ensjax import verification as v


@pytest.fixture(scope="module")
def pairs():
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(6, 40, 5)) + 300).astype(np.float32)
    y = (rng.normal(size=(40, 5)) + 300.5).astype(np.float32)
    return x, y


def test_errors_in_float64(pairs, score):
    x, y = pairs
    x64, y64 = x.astype(float), y.astype(float)
    error, variance = x64.mean(0) - y64, x64.var(0, ddof=1)
    np.testing.assert_allclose(score(v.bias(), x, y), error.mean(), rtol=1e-5)
    np.testing.assert_allclose(
        score(v.bias().over(0), x, y), error.mean(0), rtol=1e-4, atol=1e-6
    )
    np.testing.assert_allclose(
        score(v.mean_square_error(), x, y), (error**2).mean(), rtol=1e-5
    )
    np.testing.assert_allclose(
        score(v.root_mean_square_error(debiased=True), x, y),
        np.sqrt((error**2 - variance / 6).mean()),
        rtol=1e-5,
    )


def test_roots_are_taken_last(score):
    x = np.array([[0.0, 0.0]], np.float32)
    y = np.array([3.0, 4.0], np.float32)
    got = score(v.root_mean_square_error(), x, y)
    np.testing.assert_allclose(got, np.sqrt(12.5), rtol=1e-6)  # not 3.5


def test_debiased_and_spread_need_two_members(pairs, score):
    x, y = pairs
    assert np.isnan(score(v.mean_square_error(debiased=True), x[:1], y))
    assert np.isnan(score(v.spread_skill(), x[:1], y)).all()
    assert np.isfinite(score(v.mean_square_error(), x[:1], y))


def test_the_debiased_error_does_not_depend_on_the_number_of_members(score):
    """Exchangeable members of variance 1 about a centre that is off by 2.

    Standard error of each mean about 0.02; the bound is 5 of them.
    """
    rng = np.random.default_rng(1)
    x = rng.normal(size=(8, 40_000)).astype(np.float32)
    y = np.full(40_000, 2.0, np.float32)
    for members in (2, 8):
        got = score(v.mean_square_error(debiased=True), x[:members], y)
        assert abs(got - 4.0) < 0.1
        plain = score(v.mean_square_error(), x[:members], y)
        assert abs(plain - (4.0 + 1 / members)) < 0.1


def test_spread_skill_equals_scores_and_is_one_if_calibrated(pairs, gaps, score):
    x, y = pairs
    got = score(v.spread_skill(), x, y)
    other = scores.spread_skill(x.reshape(6, -1), y.reshape(-1))
    np.testing.assert_allclose(got.ratio, other, rtol=1e-5)
    forecast, truth, weights = gaps
    enough = (~np.isnan(forecast)).sum(0) > 1
    kept = np.where(enough & ~np.isnan(truth), weights, 0.0).astype(np.float32)
    other = scores.spread_skill(
        np.nan_to_num(forecast).reshape(7, -1),
        np.nan_to_num(truth).reshape(-1),
        mask=~np.isnan(forecast).reshape(7, -1),
        sample_weight=kept.reshape(-1),
    )
    got = score(v.spread_skill(), forecast, truth, weights=weights)
    np.testing.assert_allclose(got.ratio, other, rtol=1e-5)
    rng = np.random.default_rng(0)
    drawn = rng.normal(size=(5, 100_000)).astype(np.float32)
    got = score(v.spread_skill(), drawn[:4], drawn[4])
    np.testing.assert_allclose(got.ratio, 1.0, atol=0.01)
    np.testing.assert_allclose(got.unbiased_ratio, 1.0, atol=0.01)


def test_binned_spread_skill_by_hand(score):
    rng = np.random.default_rng(2)
    x = (rng.normal(size=(4, 300)) * rng.uniform(0.2, 2, 300)).astype(np.float32)
    y = rng.normal(size=300).astype(np.float32)
    spread = x.std(0, ddof=1)
    edges = v.spread_quantiles(x, num_bins=3)
    np.testing.assert_allclose(edges, np.quantile(spread, [1 / 3, 2 / 3]), rtol=1e-5)
    got = score(v.binned_spread_skill(edges), x, y)
    bins = np.searchsorted(edges, spread, side="right")
    for b in range(3):
        own = bins == b
        np.testing.assert_allclose(got.weight[b], own.sum(), rtol=1e-6)
        error = (x.mean(0) - y)[own]
        np.testing.assert_allclose(got.skill[b], np.sqrt((error**2).mean()), rtol=1e-5)
        np.testing.assert_allclose(
            got.spread[b], np.sqrt((spread[own] ** 2).mean()), rtol=1e-5
        )


def test_anomaly_correlation_and_its_identity(pairs, score):
    x, y = pairs
    climate = np.full(y.shape, 300.0, np.float32)
    got = score(v.anomalies(), x, y, reference={"climatology": climate})
    f, o = x.mean(0).astype(float) - 300, y.astype(float) - 300
    acc = (f * o).mean() / np.sqrt((f**2).mean() * (o**2).mean())
    np.testing.assert_allclose(got.acc, acc, rtol=1e-4)
    np.testing.assert_allclose(got.forecast_activity, np.sqrt((f**2).mean()), rtol=1e-5)
    a_f, a_y = got.forecast_activity, got.truth_activity
    np.testing.assert_allclose(got.activity_ratio, a_f / a_y, rtol=1e-6)
    identity = a_f**2 + a_y**2 - 2 * a_f * a_y * got.acc
    np.testing.assert_allclose(identity, score(v.mean_square_error(), x, y), rtol=1e-4)
    members, truth = score(
        v.member_activity(), x, y, reference={"climatology": climate}
    )
    np.testing.assert_allclose(
        members, np.sqrt(((x.astype(float) - 300) ** 2).mean()), rtol=1e-5
    )
    np.testing.assert_allclose(truth, a_y, rtol=1e-6)
    with pytest.raises(ValueError, match="climatology"):
        v.anomalies()(x, y)


def test_centred_acc_is_the_mean_of_pattern_correlations(score):
    rng = np.random.default_rng(4)
    x = rng.normal(size=(1, 3, 4, 5)).astype(np.float32)
    y = (0.5 * x[0] + rng.normal(size=(3, 4, 5))).astype(np.float32)
    nothing = {"climatology": np.zeros_like(y)}
    got = score(v.centred_acc(), x, y, reference=nothing)
    r = [np.corrcoef(x[0, i].ravel(), y[i].ravel())[0, 1] for i in range(3)]
    np.testing.assert_allclose(got, np.tanh(np.arctanh(r).mean()), rtol=1e-4)
    # Repeating a row is what twice its weight does.
    weights = np.array([[1.0], [2.0], [1.0], [1.0]], np.float32)
    twice = np.repeat(np.arange(4), [1, 2, 1, 1])
    got = v.centred_acc(area_weights=weights)(x, y, reference=nothing)
    other = v.centred_acc()(
        x[:, :, twice],
        y[:, twice],
        reference={"climatology": np.zeros((3, 5, 5), np.float32)},
    )
    np.testing.assert_allclose(got, other, rtol=1e-4)


def test_drift_of_the_bias():
    lead = np.array([1.0, 3.0, 7.0], np.float32)
    bias = np.stack([0.5 - 0.2 * lead, 1.0 + 0 * lead], axis=1)
    got = v.bias_drift(bias, lead)
    np.testing.assert_allclose(got.slope, [-0.2, 0.0], atol=1e-6)
    np.testing.assert_allclose(got.intercept, [0.5, 1.0], atol=1e-6)
    np.testing.assert_allclose(got.change[-1], [-1.2, 0.0], atol=1e-6)
    with pytest.raises(ValueError, match="two leads"):
        v.bias_drift(bias[:1], lead[:1])


def test_area_weights():
    lat = np.linspace(-90, 90, 19)
    cells = v.cell_weights(lat)
    np.testing.assert_allclose(cells.mean(), 1)
    edges = np.radians(np.clip(np.r_[-90, (lat[1:] + lat[:-1]) / 2, 90], -90, 90))
    np.testing.assert_allclose(cells, np.diff(np.sin(edges)) * 19 / 2, rtol=1e-12)
    np.testing.assert_allclose(v.cell_weights(lat[::-1]), cells[::-1])
    assert cells[0] > 0 and v.cosine_weights(lat)[0] == 0
    np.testing.assert_allclose(v.colatitude_sine_weights(19), v.cosine_weights(lat))
    gauss = v.gauss_latitudes(32)
    # The mean of sin^2(latitude) over the sphere is 1/3: exact by quadrature.
    square = np.sin(np.radians(gauss)) ** 2
    np.testing.assert_allclose((v.gauss_weights(32) * square).mean(), 1 / 3, rtol=1e-12)
    np.testing.assert_allclose(v.cell_weights(gauss), v.gauss_weights(32), rtol=0.02)
    for bad in ([0.0, 91.0], [0.0, 10.0, 5.0], [3.0]):
        with pytest.raises(ValueError):
            v.cell_weights(np.array(bad))


def test_weights_are_of_area(score):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(3, 4, 6, 8)), rng.normal(size=(4, 6, 8))
    x, y = x.astype(np.float32), y.astype(np.float32)
    area = v.cosine_weights(np.linspace(-75, 75, 6)).astype(np.float32)
    got = score(v.mean_square_error(), x, y, weights=area[:, None])
    squared = (x.mean(0) - y) ** 2
    expected = (squared.mean((0, 2)) * area).sum() / area.sum()
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    kept = score(v.mean_square_error().over(1, 2), x, y, weights=area[:, None])
    assert kept.shape == (4,)
    np.testing.assert_allclose(kept.mean(), expected, rtol=1e-5)
    assert jax.tree.leaves(v.crps().over()(x, y))[0].shape == y.shape
