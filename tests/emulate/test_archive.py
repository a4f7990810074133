"""Archives: coordinates, selections, parts that share no case, files."""

import numpy as np
import pytest

from ensjax.emulate.archive import Archive


def make(**changes):
    rng = np.random.default_rng(0)
    arguments = dict(
        values=rng.normal(size=(5, 3, 2, 2, 4, 6)),
        truth=rng.normal(size=(5, 2, 2, 4, 6)),
        case=np.datetime64("2020-02-27") + np.arange(5),
        member=[7, 3, 11],
        lead=np.array([24, 48], "timedelta64[h]"),
        variable=["t2m", "msl"],
        space={"lat": np.linspace(60, -60, 4), "lon": np.arange(0, 360, 60)},
        units={"t2m": "K", "lat": "degrees_north"},
        source="made up",
    )
    return Archive(**(arguments | changes))


def assert_same(a, b):
    for name in ("values", "truth", "case", "member", "lead", "rows"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), name)
        assert getattr(a, name).dtype == getattr(b, name).dtype
    for name in ("variable", "units", "source", "sizes"):
        assert getattr(a, name) == getattr(b, name)
    for name, coordinate in a.space.items():
        np.testing.assert_array_equal(coordinate, b.space[name])


def test_valid_time_is_start_plus_lead():
    assert make().valid_time.shape == (5, 2)
    assert make().valid_time[1, 1] == np.datetime64("2020-03-01T00")


def test_selection_takes_coordinates_along():
    archive = make()
    found = archive.select(case=[3, 1], member=archive.member == 3, variable="msl")
    assert found.sizes == dict(case=2, member=1, lead=2, variable=1, lat=4, lon=6)
    expected = archive.values[[3, 1]][:, [1]][:, :, :, [1]]
    np.testing.assert_array_equal(found.values, expected)
    np.testing.assert_array_equal(found.truth, archive.truth[[3, 1]][:, :, [1]])
    assert found.rows.tolist() == [3, 1]
    assert found.units == {"lat": "degrees_north"}
    assert archive.select(lead=slice(1, None)).truth.shape == (5, 1, 2, 4, 6)


def test_parts_keep_their_rows_and_share_none():
    archive = make()
    date = np.datetime64("2020-03-01")
    train, test = archive.split(archive.case < date, archive.case >= date)
    assert train.rows.tolist() == [0, 1, 2] and test.rows.tolist() == [3, 4]
    assert test.provenance("test").rows.tolist() == [3, 4]
    with pytest.raises(ValueError, match="both hold 2"):
        archive.split([0, 1, 2], [2, 3])


@pytest.mark.parametrize("has_truth", [True, False])
def test_a_file_gives_back_what_was_saved(tmp_path, has_truth):
    archive = make() if has_truth else make(truth=None)
    archive.values[0, 0, 0, 0, 0, 0] = np.nan
    archive.save(tmp_path / "a.npz")
    archive.save(tmp_path / "a.npz")
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]
    found = Archive.load(tmp_path / "a.npz")
    if not has_truth:
        assert found.truth is None
        found, archive = (
            Archive(**(vars(a) | dict(truth=a.values[:, 0]))) for a in (found, archive)
        )
    assert_same(found, archive)


def test_a_simulator_has_integers_for_dates(tmp_path):
    archive = Archive(
        np.zeros((2, 1, 1, 1)), case=[4, 9], lead=[0.5], variable=["x"], space={}
    )
    archive.save(tmp_path / "a.npz")
    assert Archive.load(tmp_path / "a.npz").case.tolist() == [4, 9]
    with pytest.raises(TypeError, match="valid times are dates"):
        archive.valid_time  # noqa: B018


def test_an_interrupted_save_leaves_the_earlier_file(tmp_path, monkeypatch):
    make().save(tmp_path / "a.npz")

    def fail(file, **arrays):
        file.write(b"half")
        raise OSError("disk is full")

    monkeypatch.setattr(np, "savez", fail)
    with pytest.raises(OSError, match="full"):
        make(source="other").save(tmp_path / "a.npz")
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]
    assert Archive.load(tmp_path / "a.npz").source == "made up"


def test_a_damaged_file_says_so(tmp_path):
    path = tmp_path / "a.npz"
    make().save(path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match="no whole archive"):
        Archive.load(path)
    with pytest.raises(FileNotFoundError):
        Archive.load(tmp_path / "b.npz")


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(case=np.arange(4)), "values have shape"),
        (dict(truth=np.zeros((5, 2, 2, 4))), "truth must be"),
        (dict(member=[1, 1, 2]), "member holds a value twice"),
        (dict(variable=["t", "t"]), "variable holds a value twice"),
        (dict(units={"q": "kg"}), "units name"),
        (dict(space={"lead": np.arange(4), "lon": np.arange(6)}), "which is taken"),
        (dict(space={"lat": [0, 1, 2, np.nan], "lon": np.arange(6)}), "not finite"),
        (dict(lead=np.array(["NaT", 1], "timedelta64[h]")), "not known"),
    ],
)
def test_what_does_not_fit_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        make(**changes)


def test_wrong_kinds_are_refused():
    with pytest.raises(TypeError, match="case must be datetime64"):
        make(case=np.arange(5.0))
    with pytest.raises(TypeError, match="lead must be"):
        make(lead=["1 day", "2 days"])
    with pytest.raises(ValueError, match="no variable is called"):
        make().select(variable="q")


@pytest.mark.parametrize(
    "chosen, error, message",
    [
        (
            dict(lead=[0, 2]),
            IndexError,
            "lead 2 is beyond the leads of",
        ),
        (dict(lead=9), IndexError, "lead 9 .* are 2: positions are 0 to 1"),
        (dict(lead=-3), IndexError, "lead -3 is beyond"),
        (dict(case=np.array([1, 7])), IndexError, "case 7 .* there are 5"),
        (dict(variable=7), IndexError, "variable 7 is beyond the variables"),
        (dict(variable=[0, "t"]), ValueError, "no variable is called 0"),
        (dict(lead=0.5), TypeError, "lead is chosen by positions"),
        (dict(member=[True]), ValueError, r"mask over the axis member .* \(3,\)"),
        (dict(case=[]), ValueError, "nothing is chosen of the axis case"),
        (dict(case=slice(9, 12)), ValueError, "nothing is chosen of the axis case"),
        (dict(lead=[[0]]), ValueError, r"positions of lead must be \[selected\]"),
    ],
)
def test_what_cannot_be_selected_is_said_in_words_of_its_axis(chosen, error, message):
    with pytest.raises(error, match=message) as caught:
        make().select(**chosen)
    assert "ember" not in str(caught.value) or "member" in chosen


def test_one_position_is_enough():
    archive = make()
    last = len(archive.variable) - 1
    for chosen in (last, -1, np.int64(last), [last], archive.variable[last]):
        found = archive.select(variable=chosen)
        assert list(found.variable) == [archive.variable[last]]
        np.testing.assert_array_equal(found.values, archive.values[:, :, :, [last]])
    assert archive.select(lead=-1).lead.tolist() == archive.lead[-1:].tolist()
