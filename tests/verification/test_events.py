"""Probabilities of events: Brier and log scores, tables, curves, economic value."""

import jax
import numpy as np
import pytest

from ensjax import scores
from ensjax import verification as v

LEVEL = (0.3,)


@pytest.fixture(scope="module")
def drawn():
    rng = np.random.default_rng(0)
    signal = rng.normal(size=900)
    x = (signal + rng.normal(size=(8, 900))).astype(np.float32)
    y = (signal + 0.7 * rng.normal(size=900)).astype(np.float32)
    return x, y


@pytest.fixture(scope="module")
def table(drawn):
    return v.event_table(LEVEL, num_members=8)(*drawn)


def share_and_event(x, y):
    return (x > LEVEL[0]).mean(0), (y > LEVEL[0]) * 1.0


def test_brier_equals_its_definition_and_other_packages(drawn, score):
    xr = pytest.importorskip("xarray")
    package = pytest.importorskip("scores.probability")
    xskillscore = pytest.importorskip("xskillscore")
    x, y = drawn
    p, o = share_and_event(x, y)
    plain = score(v.brier_score(LEVEL), x, y)
    fair = score(v.brier_score(LEVEL, fair=True), x, y)
    assert plain.shape == (1,)
    np.testing.assert_allclose(plain[0], ((p - o) ** 2).mean(), rtol=1e-5)
    expected = ((p - o) ** 2 - p * (1 - p) / 7).mean()
    np.testing.assert_allclose(fair[0], expected, rtol=1e-5)
    # That of two classes is twice it.
    probs = np.clip(np.stack([1 - p, p], axis=-1), 1e-30, 1)
    both = scores.brier(np.log(probs), o.astype(int))
    np.testing.assert_allclose(plain[0], both / 2, rtol=1e-5)
    forecast = xr.DataArray(x.astype(float), dims=["member", "time"])
    truth = xr.DataArray(y.astype(float), dims=["time"])
    for is_fair, own in ((False, plain), (True, fair)):
        other = package.brier_score_for_ensemble(
            forecast, truth, "member", LEVEL[0], fair_correction=is_fair
        )
        np.testing.assert_allclose(own, np.ravel(other), rtol=1e-5)
        other = xskillscore.brier_score(
            truth > LEVEL[0], forecast > LEVEL[0], member_dim="member", fair=is_fair
        )
        np.testing.assert_allclose(own[0], float(other), rtol=1e-5)


def test_fair_needs_two_members_and_local_counts_are_used(drawn, score):
    x, y = drawn
    assert np.isnan(score(v.brier_score(LEVEL, fair=True), x[:1], y)).all()
    gaps = x.copy()
    gaps[4:, ::2] = np.nan
    half = x[:4, ::2], y[::2]
    whole = x[:, 1::2], y[1::2]
    apart = [score(v.brier_score(LEVEL, fair=True), *part) for part in (half, whole)]
    got = score(v.brier_score(LEVEL, fair=True), gaps, y)
    np.testing.assert_allclose(got, np.mean(apart, axis=0), rtol=1e-5)


def test_the_fair_score_does_not_depend_on_the_number_of_members(score):
    """Members of probability 0.3, as the event: 0.21. Standard errors are 0.001."""
    rng = np.random.default_rng(1)
    x = (rng.random((9, 40_000)) < 0.3).astype(np.float32)
    for members in (2, 8):
        got = score(v.brier_score((0.5,), fair=True), x[:members], x[8])[0]
        assert abs(got - 0.21) < 0.005
        plain = score(v.brier_score((0.5,)), x[:members], x[8])[0]
        assert abs(plain - 0.21 * (1 + 1 / members)) < 0.005


def test_skill_is_relative_to_a_climatology(drawn, score):
    x, y = drawn
    p, o = share_and_event(x, y)
    brier = ((p - o) ** 2).mean()
    got = score(v.brier_skill_score(LEVEL), x, y)
    np.testing.assert_allclose(
        got[0], 1 - brier / (o.mean() * (1 - o.mean())), rtol=1e-5
    )
    usual = np.full((900, 1), 0.4, np.float32)
    metric = v.brier_skill_score(LEVEL, climatology="given")
    got = score(metric, x, y, reference={"climatology": usual})
    np.testing.assert_allclose(got[0], 1 - brier / ((0.4 - o) ** 2).mean(), rtol=1e-5)


def test_thresholds_by_place(drawn, score):
    x, y = drawn
    levels = np.stack([np.full(900, 0.3), np.linspace(-1, 1, 900)], axis=-1)
    got = score(
        v.brier_score(), x, y, reference={"thresholds": levels.astype(np.float32)}
    )
    np.testing.assert_allclose(got[0], score(v.brier_score(LEVEL), x, y)[0])
    p, o = (x > levels[:, 1]).mean(0), (y > levels[:, 1]) * 1.0
    np.testing.assert_allclose(got[1], ((p - o) ** 2).mean(), rtol=1e-4)


def test_log_score(drawn, score):
    x, y = drawn
    p, o = share_and_event(x, y)
    q = (8 * p + 0.5) / 9
    expected = -np.where(o == 1, np.log(q), np.log(1 - q)).mean()
    np.testing.assert_allclose(score(v.log_score(LEVEL), x, y)[0], expected, rtol=1e-5)
    q = np.where(o == 1, np.maximum(p, 1e-9), np.maximum(1 - p, 1e-9))
    got = score(v.log_score(LEVEL, clip=1e-9), x, y)[0]
    np.testing.assert_allclose(got, -np.log(q).mean(), rtol=1e-5)
    with pytest.raises(ValueError, match="clip"):
        v.log_score(LEVEL, clip=0.5)


def test_the_decomposition_is_exact_with_the_members_bins(drawn, table, score):
    parts = v.brier_decomposition(table)
    np.testing.assert_allclose(
        parts.brier, score(v.brier_score(LEVEL), *drawn), rtol=1e-5
    )
    _, o = share_and_event(*drawn)
    np.testing.assert_allclose(
        parts.uncertainty[0], o.mean() * (1 - o.mean()), rtol=1e-5
    )
    wide = v.brier_decomposition(v.event_table(LEVEL, num_bins=3)(*drawn))
    assert abs(wide.brier[0] - parts.brier[0]) > 1e-5


def test_the_reliability_diagram(drawn, table):
    p, o = share_and_event(*drawn)
    got = v.reliability_diagram(table)
    for k in range(9):
        own = np.isclose(p, k / 8)
        np.testing.assert_allclose(got.weight[0, k], own.sum(), rtol=1e-5)
        np.testing.assert_allclose(got.probability[0, k], k / 8, atol=1e-6)
        np.testing.assert_allclose(got.frequency[0, k], o[own].mean(), rtol=1e-5)


def test_edges_of_bins_are_where_they_are_written():
    """3 of 10 members are in the fourth of ten bins, as numpy's histogram has it."""
    x = (np.arange(10)[:, None] < np.arange(11)[None]).astype(np.float32)
    got = v.event_table((0.5,), num_bins=10)(x, np.zeros(11, np.float32))
    np.testing.assert_allclose(got.non_events[0], [1] * 9 + [2], rtol=1e-6)


def test_the_curve_and_its_area(drawn, table):
    sklearn = pytest.importorskip("sklearn.metrics")
    p, o = share_and_event(*drawn)
    np.testing.assert_allclose(
        v.roc_area(table)[0], sklearn.roc_auc_score(o, p), rtol=1e-5
    )
    curve = jax.tree.map(lambda a: np.asarray(a[0]), v.roc(table))
    for i, k in enumerate(range(8, 0, -1), start=1):
        yes = p > (k - 0.5) / 8
        np.testing.assert_allclose(curve.hit_rate[i], yes[o == 1].mean(), rtol=1e-5)
        np.testing.assert_allclose(
            curve.false_alarm_rate[i], yes[o == 0].mean(), rtol=1e-5
        )
    assert curve.hit_rate[0] == 0 and curve.hit_rate[-1] == 1
    trapezoids = np.trapezoid(curve.hit_rate, curve.false_alarm_rate)
    np.testing.assert_allclose(v.roc_area(table)[0], trapezoids, rtol=1e-5)


def test_areas_of_weighted_elements(score):
    x = np.array([[0.0, 1, 1, 0]], np.float32)
    y = np.array([0.0, 1, 0, 1], np.float32)
    weights = np.array([1.0, 3, 1, 1], np.float32)
    table = score(v.event_table((0.5,), num_members=1), x, y, weights=weights)
    # Pairs of weight 4 x 2: 3 right, and ties of 3 and of 1 count half.
    np.testing.assert_allclose(v.roc_area(table), (3 + 0.5 * 4) / 8, rtol=1e-6)


def test_sedi_and_value_by_their_formulas(drawn, table):
    p, o = share_and_event(*drawn)
    ratios = v.cost_loss_ratios()
    assert len(ratios) == 50 and ratios[0] == 0.005
    value = v.economic_value(table)
    sedi = v.sedi(table)
    for k in (1, 4, 8):
        yes = p > (k - 0.5) / 8
        h, f = yes[o == 1].mean(), yes[o == 0].mean()
        h, f = np.clip([h, f], 1e-6, 1 - 1e-6)
        top = np.log(f) - np.log(h) + np.log(1 - h) - np.log(1 - f)
        bottom = np.log(f) + np.log(h) + np.log(1 - h) + np.log(1 - f)
        np.testing.assert_allclose(sedi[0, k - 1], top / bottom, rtol=1e-4)
        tp, fp = (yes * o).mean(), (yes * (1 - o)).mean()
        fn, s = o.mean() - tp, o.mean()
        least = np.minimum(ratios, s)
        expected = (least - ratios * (tp + fp) - fn) / (least - ratios * s)
        np.testing.assert_allclose(
            value.value[0, 9 - k], expected, rtol=1e-3, atol=1e-4
        )
    np.testing.assert_allclose(value.potential, value.value.max(axis=-2))
    assert (np.asarray(value.potential) >= -1e-5).all()  # always and never are in it


def test_value_equals_scores(drawn, table):
    xr = pytest.importorskip("xarray")
    package = pytest.importorskip("scores.probability")
    p, o = share_and_event(*drawn)
    ratios = [0.1, 0.3, 0.7]
    other = package.relative_economic_value(
        xr.DataArray(p, dims=["time"]),
        xr.DataArray(o, dims=["time"]),
        cost_loss_ratios=ratios,
        probability_thresholds=[(k - 0.5) / 8 for k in range(1, 9)],
    )
    other = other.transpose("probability_threshold", "cost_loss_ratio")
    got = v.economic_value(table, np.array(ratios)).value[0, 1:-1][::-1]
    np.testing.assert_allclose(got, other, rtol=1e-4, atol=1e-5)


def test_events_that_never_come_have_no_curve(score):
    x, y = np.zeros((3, 5), np.float32), np.zeros(5, np.float32)
    table = score(v.event_table((1.0,), num_members=3), x, y)
    assert np.isnan(v.roc_area(table)).all()
    assert np.isnan(v.roc(table).hit_rate).all()
    assert np.isnan(score(v.brier_skill_score((1.0,)), x, y)).all()
    np.testing.assert_allclose(score(v.brier_score((1.0,)), x, y), 0)


@pytest.mark.parametrize(
    "call",
    [
        lambda: v.event_table(LEVEL),
        lambda: v.event_table(LEVEL, num_members=3, num_bins=3),
        lambda: v.event_table(LEVEL, num_bins=0),
        lambda: v.brier_score(()),
        lambda: v.brier_skill_score(LEVEL, climatology="mine"),
        lambda: v.brier_score()(np.ones((2, 3)), np.ones(3)),
    ],
)
def test_bad_arguments(call):
    with pytest.raises(ValueError):
        call()
