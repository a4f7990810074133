"""Climatology by place and season, and values in units of it."""

import datetime

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ensjax.emulate.archive import Archive
from ensjax.emulate.climatology import (
    Standardiser,
    day_of_leap_year,
    fit_archive_climate,
    fit_standardiser,
)

DAYS = np.arange(np.datetime64("1999-01-01"), np.datetime64("2007-01-01"))


def year_part(time):
    return 2 * np.pi * day_of_leap_year(time) / 366


def test_days_are_those_of_a_leap_year():
    dates = np.array(["2021-01-01", "2021-02-28", "2021-03-01", "2020-02-29"], "M8[D]")
    assert day_of_leap_year(dates).tolist() == [0, 58, 60, 59]
    ends = np.array(["2021-12-31T18", "2020-12-31T23", "1900-12-31", "2000-12-31"])
    assert day_of_leap_year(ends.astype("M8[h]")).tolist() == [365] * 4
    all_days = [datetime.date(2020, 1, 1) + datetime.timedelta(n) for n in range(366)]
    assert day_of_leap_year(np.array(all_days, "M8[D]")).tolist() == list(range(366))
    with pytest.raises(TypeError, match="datetime64"):
        day_of_leap_year(np.arange(3))


def test_a_seasonal_climate_is_found():
    rng = np.random.default_rng(0)
    season = np.cos(year_part(DAYS))
    scale = 1 + 0.5 * np.sin(year_part(DAYS))
    offsets = np.array([250.0, 300.0])
    noise = rng.normal(size=(len(DAYS), 1, 2))
    values = offsets + 10 * season[:, None, None] + scale[:, None, None] * noise
    climate = fit_standardiser(values, DAYS, window_days=15)
    assert climate.mean.shape == climate.sd.shape == (366, 1, 2)
    at = np.arange(366)
    expected = offsets + 10 * np.cos(2 * np.pi * at / 366)[:, None]
    # 120 samples a window: 5 standard errors of the mean, 0.09, and the smoothing.
    np.testing.assert_allclose(climate.mean[:, 0], expected, atol=0.7)
    own = (1 + 0.5 * np.sin(2 * np.pi * at / 366))[:, None] * np.ones(2)
    np.testing.assert_allclose(climate.sd[:, 0], own, rtol=0.3)
    z = np.asarray(climate.standardise(values.astype(np.float32), DAYS))
    assert abs(z.mean()) < 0.02 and abs(z.std() - 1) < 0.02


def test_a_window_is_a_plain_mean_of_its_samples():
    rng = np.random.default_rng(1)
    values = rng.normal(size=(len(DAYS), 1))
    climate = fit_standardiser(values, DAYS, window_days=5)
    near = [
        np.datetime64(f"{y}-07-{d:02d}")
        for y in range(1999, 2007)
        for d in range(8, 13)
    ]
    rows = np.isin(DAYS, near)
    day = day_of_leap_year(np.datetime64("2001-07-10"))
    np.testing.assert_allclose(climate.mean[day, 0], values[rows].mean(), rtol=1e-6)
    # Around the ends of the year as well.
    ends = np.array(
        [str(d)[5:] in ("12-30", "12-31", "01-01", "01-02", "01-03") for d in DAYS]
    )
    np.testing.assert_allclose(climate.mean[0, 0], values[ends].mean(), rtol=1e-6)


def test_the_leap_day_is_the_mean_of_its_neighbours():
    values = np.where(np.isin(DAYS, [np.datetime64("2000-02-29")]), 5.0, 1.0)
    climate = fit_standardiser(values[:, None], DAYS, window_days=1)
    # 8 samples of 28 February and half of that of 29 February.
    own = (8 * 1.0 + 0.5 * 5.0 + 0.5 * 1.0) / 9
    np.testing.assert_allclose(climate.mean[[58, 59, 60], 0], own, rtol=1e-6)
    assert climate.sd[10, 0] == 1.0


def test_restore_undoes_standardise():
    rng = np.random.default_rng(2)
    values = (280 + 20 * rng.normal(size=(len(DAYS), 2, 3))).astype(np.float32)
    climate = fit_standardiser(values, DAYS)
    stack = values[:40].reshape(4, 10, 1, 2, 3).swapaxes(0, 1)  # [10, 4, 1, 2, 3]
    time = DAYS[:10].reshape(10, 1, 1)
    back = climate.restore(climate.standardise(stack, time), time)
    np.testing.assert_allclose(back, stack, rtol=3e-7)
    # Under jit with traced days, as on the host.
    days = jnp.asarray(day_of_leap_year(time))
    traced = jax.jit(Standardiser.standardise)(climate, stack, days)
    np.testing.assert_allclose(traced, climate.standardise(stack, time), rtol=1e-5)


def test_valid_time_and_base_time_are_two_look_ups():
    values = np.cos(year_part(DAYS))[:, None] + np.tile([0.1, -0.1], 1461)[:, None]
    climate = fit_standardiser(values, DAYS, window_days=15)
    start = np.datetime64("2003-01-01")
    lead = np.array([0, 182], "m8[D]")
    valid = climate.mean_at(start + lead)
    assert valid[0, 0] > 0.98 and valid[1, 0] < -0.98
    np.testing.assert_array_equal(climate.mean_at(start), valid[0])
    season = climate.season_at(np.array([start]))
    assert 8 < season[0, 0] < 11  # the mean of January is 1, the sd 0.1


def test_missing_values_are_left_out():
    rng = np.random.default_rng(3)
    values = rng.normal(size=(50, 1, 2))
    values[::3, 0, 0] = np.nan
    climate = fit_standardiser(values)
    np.testing.assert_allclose(climate.mean[0, 0, 0], np.nanmean(values[:, 0, 0]))
    np.testing.assert_allclose(climate.sd[0, 0, 0], np.nanstd(values[:, 0, 0]))
    with pytest.raises(ValueError, match="days of the year have no sample"):
        fit_standardiser(values, DAYS[:50])


def test_one_climate_along_a_pooled_axis():
    rng = np.random.default_rng(4)
    archive = Archive(
        rng.normal(size=(20, 3, 2, 1, 5)) * 3 + 7,
        truth=rng.normal(size=(20, 2, 1, 5)),
        case=np.arange(20),
        lead=[1.0, 2.0],
        variable=["x"],
        space={"x": np.arange(5)},
    )
    members = fit_archive_climate(archive, of="members", is_seasonal=False, pool=("x",))
    assert members.mean.shape == (1, 1, 1)
    np.testing.assert_allclose(members.mean.item(), archive.values.mean(), rtol=1e-6)
    np.testing.assert_allclose(members.sd.item(), archive.values.std(), rtol=1e-6)
    found = fit_archive_climate(archive, of="truth", is_seasonal=False)
    z = found.standardise_archive(archive)
    np.testing.assert_allclose(z.truth.mean(axis=(0, 1)), 0, atol=1e-6)
    assert abs(z.values.mean() - 7) < 1
    assert found.season_at().shape == (1, 5) and not found.season_at().any()


def test_an_archive_is_standardised_at_its_valid_times():
    lead = np.array([24, 48], "m8[h]")
    truth = np.cos(year_part(DAYS[:, None] + lead))[..., None]
    archive = Archive(
        np.repeat(truth[:, None], 2, axis=1),
        case=DAYS,
        lead=lead,
        variable=["t"],
        truth=truth,
        units={"t": "K"},
    )
    climate = fit_archive_climate(archive, of="truth")
    z = climate.standardise_archive(archive)
    np.testing.assert_array_equal(z.values[:, 0], z.values[:, 1])
    np.testing.assert_allclose(z.values[:, 0], z.truth, rtol=1e-6)
    at = DAYS[40] + lead[1]
    np.testing.assert_allclose(
        z.truth[40, 1], climate.standardise(archive.truth[40, 1], at), rtol=1e-6
    )
    assert z.units == {}


def test_what_does_not_fit_is_refused():
    climate = fit_standardiser(np.random.default_rng(0).normal(size=(2922, 2)), DAYS)
    with pytest.raises(ValueError, match="give times"):
        climate.standardise(np.zeros((5, 2)))
    with pytest.raises(ValueError, match="valid_time must have"):
        climate.standardise(np.zeros((5, 3, 2)), DAYS[:5])
    with pytest.raises(ValueError, match="values must be"):
        climate.standardise(np.zeros((5, 3)), DAYS[:5])
    with pytest.raises(ValueError, match="window_days is odd"):
        fit_standardiser(np.zeros((5, 2)), DAYS[:5], window_days=4)
    with pytest.raises(ValueError, match="pool names axes"):
        fit_standardiser(np.zeros((5, 2)), pool=(1,))
