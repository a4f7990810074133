"""Equal activity, resolution, drift, alarms, stations and the scorecard."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ensjax import verification as v


@pytest.fixture(scope="module")
def wave():
    """200 cases of anomalies of 16 places, about a climatology of 280."""
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(200, 16))
    signal = 0.8 * truth + 0.6 * rng.normal(size=truth.shape)
    climate = np.full(truth.shape, 280.0)
    return signal, truth, climate


def activity_of(score, forecast, truth, climate):
    fields = [(x + climate).astype(np.float32) for x in (forecast, truth)]
    reference = {"climatology": climate.astype(np.float32)}
    return score(v.activity_errors(), fields[0][None], fields[1], reference=reference)


def test_the_identity_and_the_error_at_equal_activity(wave, score):
    """In float32 about 280: anomalies carry its rounding, of 2e-5 each."""
    signal, truth, climate = wave
    got = activity_of(score, *wave)
    acc = (signal * truth).mean() / np.sqrt((signal**2).mean() * (truth**2).mean())
    np.testing.assert_allclose(got.acc, acc, rtol=1e-5)
    np.testing.assert_allclose(
        got.rmse, np.sqrt(((signal - truth) ** 2).mean()), rtol=1e-5
    )
    assert abs(got.identity_gap) < 1e-5
    # Truly rescaled anomalies, and not by the formula.
    ratio = np.sqrt((truth**2).mean() / (signal**2).mean())
    rescaled = np.sqrt(((ratio * signal - truth) ** 2).mean())
    np.testing.assert_allclose(got.equal_activity_rmse, rescaled, rtol=1e-4)
    np.testing.assert_allclose(
        v.equal_activity_rmse(got.acc, got.truth_activity), rescaled, rtol=1e-4
    )


def test_smoothing_lowers_the_error_but_not_that_at_equal_activity(wave, score):
    signal, truth, climate = wave
    plain = activity_of(score, *wave)
    smooth = activity_of(score, 0.8 * signal, truth, climate)
    assert smooth.rmse < plain.rmse - 0.01
    np.testing.assert_allclose(smooth.activity_ratio, 0.8 * plain.activity_ratio, 1e-4)
    np.testing.assert_allclose(
        smooth.equal_activity_rmse, plain.equal_activity_rmse, rtol=1e-4
    )


def test_a_perfect_forecast_has_no_error_at_equal_activity(wave, score):
    _, truth, climate = wave
    got = activity_of(score, truth, truth, climate)
    assert got.rmse == got.equal_activity_rmse == 0
    np.testing.assert_allclose([got.acc, got.activity_ratio], 1.0, rtol=1e-6)
    still = activity_of(score, 0 * truth, 0 * truth, climate)
    assert np.isnan(still.acc) and np.isnan(still.activity_ratio)


def test_effective_resolution_and_small_scales():
    truth = np.array([9.0, 4, 2, 1, 0.5, 0.25])
    ratio = np.array([[0.1, 1, 0.9, 0.6, 0.49, 0.2], [1, 1, 1, 1, 1, 1]])
    got = v.effective_resolution(ratio * truth, np.tile(truth, (2, 1)))
    np.testing.assert_array_equal(got, [4, np.inf])  # the mean, 0.1, does not count
    assert v.effective_resolution(ratio[0] * truth, truth, level=0.95) == 2
    upper = v.small_scale_power(ratio[0] * truth, truth)
    np.testing.assert_allclose(upper, (0.6 + 0.245 + 0.05) / 1.75, rtol=1e-6)
    lost = np.where(np.arange(6) == 3, np.nan, truth)
    assert np.isnan(v.effective_resolution(lost, truth))
    assert v.effective_resolution(lost, truth, level=0.95, first=4) == np.inf
    with pytest.raises(ValueError, match="of one shape"):
        v.effective_resolution(truth, truth[1:])
    with pytest.raises(ValueError, match="level must be positive"):
        v.effective_resolution(truth, truth, level=0)


def test_frequency_bias_and_sedi_of_both_tails_against_scores(score):
    scores = pytest.importorskip("scores")
    xarray = pytest.importorskip("xarray")
    rng = np.random.default_rng(2)
    truth = np.round(rng.normal(size=600), 1)  # ties with the thresholds
    forecast = np.round(0.7 * truth + 0.5 * rng.normal(size=600), 1)
    truth[5], forecast[9] = np.nan, np.nan
    levels = (-1.5, -0.5, 0.5, 1.5)
    metric = v.event_table(levels, num_members=1, num_below=2)
    table = score(metric, forecast[None].astype(np.float32), truth.astype(np.float32))
    for i, level in enumerate(levels):
        known = ~np.isnan(truth) & ~np.isnan(forecast)
        sign = -1 if i < 2 else 1
        events = [
            xarray.DataArray(((sign * x[known]) > sign * level) * 1.0)
            for x in (forecast.astype(np.float32), truth.astype(np.float32))
        ]
        other = scores.categorical.BinaryContingencyManager(*events)
        np.testing.assert_allclose(
            v.frequency_bias(table)[i, 0], other.frequency_bias(), rtol=1e-6
        )
        np.testing.assert_allclose(
            v.sedi(table)[i, 0],
            other.symmetric_extremal_dependence_index(),
            rtol=2e-5,
        )
    with pytest.raises(ValueError, match="num_below"):
        v.event_table(levels, num_members=1, num_below=5)


def test_a_lower_tail_is_the_upper_tail_of_the_negative(score):
    rng = np.random.default_rng(3)
    x, y = (rng.normal(size=s).astype(np.float32) for s in ((7, 50), (50,)))
    below = v.event_table((-0.3,), num_members=7, num_below=1)
    above = v.event_table((0.3,), num_members=7)
    for a, b in zip(score(below, x, y), score(above, -x, -y), strict=True):
        np.testing.assert_array_equal(a, b)


def test_absolute_bias_by_area_zone_and_place():
    # Zones that cancel, and places within a zone that cancel.
    first = np.array([[1.0, 1], [-1, -1]])
    second = np.array([[1.0, -1], [1, -1]])
    found = v.absolute_bias(np.stack([first, second, 3 * first]))
    np.testing.assert_allclose(found.area, [0, 0, 0], atol=1e-7)
    np.testing.assert_allclose(found.zonal, [1, 0, 3], atol=1e-6)
    np.testing.assert_allclose(found.local, [1, 1, 3], rtol=1e-6)
    weights = np.array([[3.0], [1.0]])
    found = v.absolute_bias(first[None], weights)
    np.testing.assert_allclose([x[0] for x in found], [0.5, 1, 1], rtol=1e-6)
    gap = np.array([[1.0, np.nan], [-1, -1]])
    np.testing.assert_allclose(v.absolute_bias(gap[None]).area, 1 / 3, rtol=1e-6)
    with pytest.raises(ValueError, match="reshaped to sectors"):
        v.absolute_bias(first)


def test_the_growth_of_a_bias_of_known_slope():
    leads = np.array([1.0, 2, 4])
    bias = leads[:, None, None] * np.array([[0.2, 0.2], [-0.5, -0.5]])
    got = v.bias_growth(bias, leads)
    np.testing.assert_allclose(got.area, 0.15, rtol=1e-5)
    np.testing.assert_allclose(got.zonal, 0.35, rtol=1e-5)


def test_the_squared_bias_is_unbiased_where_the_absolute_one_is_not():
    """20 cases of standard deviation 1, 4,000 times; standard error about 0.001."""
    rng = np.random.default_rng(4)
    errors = rng.normal(size=(20, 4000)).astype(np.float32)
    assert abs(np.mean(v.squared_bias(errors))) < 0.005
    assert abs(np.mean(v.squared_bias(errors + 0.5)) - 0.25) < 0.02
    assert np.mean(np.square(errors.mean(0))) > 0.04
    gaps = np.where(rng.random(errors.shape) < 0.3, np.nan, errors + 0.5)
    assert abs(np.mean(v.squared_bias(gaps)) - 0.25) < 0.02
    assert np.isnan(v.squared_bias(errors[:1, 0]))
    by_hand = (9 - 5) / 2  # errors 1 and 2
    np.testing.assert_allclose(v.squared_bias(np.array([1.0, 2])), by_hand)


def test_the_squared_bias_by_halves_has_no_skew():
    """The same expectation; of five repeats Student's interval is not below 0."""
    rng = np.random.default_rng(1)
    errors = rng.normal(size=(40, 4_000, 5))
    halves = np.asarray(v.squared_bias(errors, by_halves=True))
    whole = np.asarray(v.squared_bias(errors))
    assert abs(halves.mean()) < 0.001 > abs(whole.mean())
    assert halves.std() / whole.std() == pytest.approx(np.sqrt(2), rel=0.05)
    biased = v.squared_bias(errors + 0.5, by_halves=True)
    assert np.mean(biased) == pytest.approx(0.25, abs=0.005)

    def below(found):
        half = 2.776 * found.std(axis=1, ddof=1) / np.sqrt(5)
        return (found.mean(axis=1) + half < 0).mean()

    assert below(halves) < 0.03 and below(whole) > 0.1
    by_hand = v.squared_bias(np.array([1.0, 2, np.nan, 4]), by_halves=True)
    np.testing.assert_allclose(by_hand, 1.0 * 3.0)
    assert np.isnan(v.squared_bias(np.array([1.0, np.nan]), by_halves=True))


def test_the_smoothing_alarm():
    more = dict(
        reference_rmse=np.array([1.0, 1, 1, 1]),
        reference_activity_ratio=np.array([1.0, 1, 1, 0.5]),
    )
    found = v.smoothing_alarm(
        np.array([0.9, 0.9, 1.1, 0.9]), np.array([0.94, 0.96, 0.5, 0.5]), **more
    )
    # A better error, hardly smoother; smoother but worse; as smooth as the reference.
    np.testing.assert_array_equal(found.fires, [True, False, False, False])
    np.testing.assert_allclose(found.activity_change[0], -0.06, rtol=1e-5)
    assert np.asarray(found.is_known).all()
    gaps = v.smoothing_alarm(
        np.array([0.9, np.nan, 0.9, 0.9]), np.array([0.9, 0.9, np.nan, 0.4]), **more
    )
    np.testing.assert_array_equal(gaps.fires, [True, False, False, True])
    np.testing.assert_array_equal(gaps.is_known, [True, False, False, True])
    with pytest.raises(ValueError, match="one shape; got rmse"):
        v.smoothing_alarm(np.ones(3), np.ones(4), **more)


def test_the_drift_alarm_has_the_sign_of_the_drift():
    rmse = np.array([0.5, 1.0, 1.4])
    drift = np.array([0.0, -0.2, -0.4])
    found = v.drift_alarm(drift, rmse)
    assert found.fires
    np.testing.assert_allclose(found.share, -0.4 / 1.4, rtol=1e-6)
    np.testing.assert_allclose(found.growth, -0.4, rtol=1e-6)
    assert not v.drift_alarm(0.8 * drift, rmse).fires
    assert found.last == 2
    with pytest.raises(ValueError, match="share must be positive"):
        v.drift_alarm(drift, rmse, share=0)


def test_the_drift_alarm_is_of_the_last_lead_that_has_scores():
    nan = np.nan
    found = v.drift_alarm(np.array([0, 5, nan]), np.array([1, 6, nan]))
    assert found.fires and found.last == 1
    np.testing.assert_allclose([found.share, found.growth], [5 / 6, 5], rtol=1e-6)
    # One that lacks an error, one without any score, and one that begins late.
    bias = np.array([[1.0, nan, nan], [2, nan, 3], [3, nan, 4]])
    rmse = np.array([[9.0, nan, nan], [4, 1, 9], [nan, nan, 9]])
    found = v.drift_alarm(bias, rmse)
    np.testing.assert_array_equal(found.last, [1, -1, 2])
    np.testing.assert_array_equal(found.fires, [True, False, True])
    np.testing.assert_allclose(found.share, [0.5, nan, 4 / 9], rtol=1e-6)
    np.testing.assert_allclose(found.growth, [1, nan, 1], rtol=1e-6)


LAT, LON = np.array([60.0, 30, 0, -30]), np.arange(0.0, 360, 45)


def test_a_linear_field_is_found_at_any_station():
    rng = np.random.default_rng(5)
    places = np.stack([rng.uniform(-30, 60, 50), rng.uniform(0, 315, 50)], axis=1)
    field = 2 * LAT[:, None] - LON[None] + 7
    found = v.find_stations((LAT, LON), places, periods=(None, 360.0))
    got = v.at_stations(np.stack([field, -field]), found)
    expected = 2 * places[:, 0] - places[:, 1] + 7
    np.testing.assert_allclose(got, [expected, -expected], rtol=1e-5, atol=2e-4)


def test_stations_over_the_end_of_a_circle_and_on_the_grid():
    field = np.arange(8.0)[None] * np.ones((4, 1))
    places = np.array([[0.0, 337.5], [10.0, -22.5], [60.0, 45.0], [-30.0, 0.0]])
    found = v.find_stations((LAT, LON), places, periods=(None, 360.0))
    np.testing.assert_allclose(v.at_stations(field, found), [3.5, 3.5, 1, 0], atol=1e-6)
    near = v.find_stations(
        (LAT, LON),
        np.array([[14.0, 338.0], [16.0, 330.0]]),
        periods=(None, 360.0),
        method="nearest",
    )
    north = LAT[:, None] + 0 * field
    np.testing.assert_allclose(v.at_stations(field, near), [0, 7])
    np.testing.assert_allclose(v.at_stations(north, near), [0, 30])
    # A point of no weight may be missing, another may not.
    gap = np.where(LON == 0, np.nan, field)
    got = v.at_stations(gap, found)
    np.testing.assert_array_equal(np.isnan(got), [True, True, False, True])


def test_bad_stations_are_refused():
    with pytest.raises(ValueError, match="station 1 is at 61 on axis 0"):
        v.find_stations((LAT, LON), np.array([[0.0, 0], [61, 0]]))
    with pytest.raises(ValueError, match="rise or fall"):
        v.find_stations([np.array([0.0, 2, 1])], np.zeros((1, 1)))
    with pytest.raises(ValueError, match="in them twice"):
        v.find_stations([np.array([0.0, 180, 360])], np.zeros((1, 1)), periods=[360.0])
    found = v.find_stations((LAT, LON), np.zeros((1, 2)))
    with pytest.raises(ValueError, match=r"\[\.\.\., 4, 8\]"):
        v.at_stations(np.zeros((8, 4)), found)


def test_heights_weights_and_distances():
    got = v.to_station_height(
        np.array([[280.0, 280]]), np.array([1000.0, 0]), np.array([0.0, 200])
    )
    np.testing.assert_allclose(got, [[286.5, 278.7]], rtol=1e-6)
    distances = v.great_circle_km(np.array([0.0, 0, 90]), np.array([0.0, 1, 50]))
    np.testing.assert_allclose(distances[0], [0, 111.195, 10007.54], rtol=1e-5)
    weights = v.density_weights(distances, 200.0)
    np.testing.assert_allclose(weights, np.array([0.5, 0.5, 1]) / (2 / 3))


def test_the_known_error_of_observations_is_taken_away(score):
    """Errors 0.6 of the forecast, 0.3 of 200,000 observations: within 0.005."""
    rng = np.random.default_rng(6)
    truth = rng.normal(size=200_000)
    forecast = truth + 0.6 * rng.normal(size=truth.shape)
    observed = truth + 0.3 * rng.normal(size=truth.shape)
    fields = [x.astype(np.float32) for x in (forecast[None], observed)]
    sd = {"observation_sd": np.float32(0.3)}
    got = score(v.deflated_error(), *fields, reference=sd)
    assert abs(got - 0.6) < 0.005
    too_much = {"observation_sd": np.float32(2.0)}
    assert np.isnan(score(v.deflated_error(), *fields, reference=too_much))


@pytest.fixture(scope="module")
def card():
    """Errors of 40 dates, 2 leads, 1 variable and 2 regions, with a known order."""
    rng = np.random.default_rng(7)
    errors = rng.normal(size=(40, 2, 1, 2, 30)).astype(np.float32)
    scale = np.array([0.5, 1.0])[:, None, None, None]  # better at the first lead
    mine = errors * scale + 0.01 * rng.normal(size=errors.shape)
    truth = np.zeros(errors.shape, np.float32)
    rmse = v.root_mean_square_error().over(4)
    bias = v.bias().over(4)
    sums = [
        {"RMSE": rmse.sums(e[None].astype(np.float32), truth)} for e in (mine, errors)
    ]
    for of, e in zip(sums, (mine, errors), strict=True):
        of["kept"] = bias.sums((e[None] + 1).astype(np.float32), truth)
    return v.make_scorecard(
        jax.random.key(0),
        {
            "RMSE": v.CardScore(rmse, _itself),
            "kept": v.CardScore(bias, _itself, "one"),
        },
        *sums,
        variables=["t"],
        leads=[1, 3],
        regions=["north", "south"],
        block_length=4,
        num_resamples=200,
        systems=("new", "old"),
        costs={"seconds": 2.0},
        notes=["a note"],
    )


def _itself(x):
    return x


def test_a_scorecard_says_who_is_better(card):
    assert card.normalised.shape == (2, 1, 2, 2)
    np.testing.assert_allclose(card.normalised[0, 0, 0], 0.5, atol=0.01)
    np.testing.assert_array_equal(card.verdict[0, 0, 0], [1, 1])
    assert np.abs(card.normalised[0, 0, 1]).max() < 0.01
    np.testing.assert_allclose(
        card.normalised[0], 1 - card.value[0] / card.reference[0], atol=1e-6
    )
    assert (card.low <= card.normalised).all() and (card.normalised <= card.high).all()
    # A score that is best at 1: distances from it, not shares.
    np.testing.assert_allclose(
        card.normalised[1],
        np.abs(card.reference[1] - 1) - np.abs(card.value[1] - 1),
        atol=1e-6,
    )


def test_a_card_of_few_dates_marks_nothing_and_says_so():
    rng = np.random.default_rng(8)
    errors = rng.normal(size=(3, 2, 1, 1, 30)).astype(np.float32)
    rmse = v.root_mean_square_error().over(4)
    truth = np.zeros_like(errors)
    sums = [{"RMSE": rmse.sums(x[None], truth)} for x in (0.5 * errors, errors)]
    card = v.make_scorecard(
        jax.random.key(0),
        {"RMSE": v.CardScore(rmse, _itself)},
        *sums,
        variables=["t"],
        leads=[1, 3],
        regions=["all"],
        block_length=3,
        num_resamples=20,
    )
    np.testing.assert_allclose(card.normalised, 0.5, rtol=1e-5)
    assert np.isnan(card.low).all() and np.isnan(card.high).all()
    np.testing.assert_array_equal(card.verdict, 0)
    assert {row["verdict"] for row in v.scorecard_rows(card)} == {"unknown"}
    cells = json.loads(v.scorecard_json(card))["cells"]
    assert cells[0]["low"] is None and cells[0]["verdict"] == "unknown"
    text = v.scorecard_markdown(card)
    assert "| RMSE | · +50.0 % | · +50.0 % |" in text
    assert "Too few dates for an interval: 3 dates, blocks of 3" in text


def test_the_systems_the_other_way_round(card):
    swapped = card._replace(low=-card.high, high=-card.low)
    np.testing.assert_array_equal(swapped.verdict, -card.verdict)


def test_a_scorecard_as_rows_json_and_markdown(card):
    rows = v.scorecard_rows(card)
    assert len(rows) == 8 and rows[0]["verdict"] == "better"
    assert {"score", "variable", "region", "lead", "low", "high"} < set(rows[0])
    told = json.loads(v.scorecard_json(card))
    assert told["system"] == "new" and told["costs"] == {"seconds": 2.0}
    assert told["notes"][0] == "a note" and "200 paired resamples" in told["notes"][1]
    assert len(told["cells"]) == 8
    text = v.scorecard_markdown(card)
    assert "t, north, lead in days" in text and "▲ +50" in text
    assert "| seconds | 2 |" in text and "- a note" in text
    hole = card._replace(normalised=card.normalised * np.array([1, np.nan])[:, None])
    assert len(v.scorecard_rows(hole)) == 4
    assert json.loads(v.scorecard_json(hole))["cells"][0]["lead"] == 1


def test_what_does_not_fit_a_card_is_refused(card):
    rmse = v.root_mean_square_error()
    sums = {
        "a": rmse.over(4).sums(
            jnp.zeros((1, 5, 1, 1, 1, 2)), jnp.zeros((5, 1, 1, 1, 2))
        )
    }
    about = dict(variables=["t"], leads=[1], regions=["all"], block_length=1)
    key = jax.random.key(0)
    with pytest.raises(ValueError, match="has no place on a card"):
        v.make_scorecard(
            key, {"a": v.CardScore(rmse, _itself, "none")}, sums, sums, **about
        )
    with pytest.raises(ValueError, match="second has no sums"):
        v.make_scorecard(key, {"a": v.CardScore(rmse, _itself)}, sums, {}, **about)
    with pytest.raises(ValueError, match=r"\[date, 2, 1, 1\]"):
        v.make_scorecard(
            key,
            {"a": v.CardScore(rmse, _itself)},
            sums,
            sums,
            **about | {"leads": [1, 2]},
        )
