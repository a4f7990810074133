"""`ensjax verify`, as a user types it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

xr = pytest.importorskip("xarray")
pytest.importorskip("zarr")

from ensjax import cli  # noqa: E402
from ensjax.emulate import gridded  # noqa: E402

ROOT = Path(__file__).parents[2]
LAT, LON = np.array([-45.0, 0.0, 45.0]), np.array([-120.0, 0.0, 120.0])


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A forecast whose start has a name that is not guessed, and a truth."""
    folder = tmp_path_factory.mktemp("files")
    rng = np.random.default_rng(0)
    days = np.datetime64("2021-03-01", "ns") + np.arange(6) * np.timedelta64(1, "D")
    space = dict(latitude=LAT[::-1], longitude=LON)
    truth = xr.Dataset(
        {"t2m": (("time", *space), rng.normal(size=(6, 3, 3)), {"units": "K"})},
        dict(time=days, **space),
    )
    truth.to_netcdf(folder / "truth.nc", engine="h5netcdf")
    dims = ("begin", "number", "step", *space)
    forecast = xr.Dataset(
        {"t2m": (dims, rng.normal(size=(5, 3, 2, 3, 3)), {"units": "K"})},
        dict(begin=days[:5], number=[0, 1, 2], step=[0, 24], **space),
    )
    forecast.step.attrs["units"] = "hours"
    forecast.to_zarr(folder / "f.zarr")
    climate = truth.isel(time=0, drop=True) * 0
    climate.to_netcdf(folder / "climate.nc", engine="h5netcdf")
    return folder


def run(*arguments):
    return cli.main(["verify", *map(str, arguments)])


def test_scores_are_printed_and_written(files, tmp_path, tmp_path_factory, capsys):
    out = tmp_path / "scores.nc"
    arguments = [files / "f.zarr", files / "truth.nc", "-o", out]
    arguments += ["--map", "forecast:time=begin", "--climatology", files / "climate.nc"]
    arguments += ["--region", "global", "--region", "belt=-10,10,100,200"]
    arguments += ["--threshold", "t2m=0,1", "--bootstrap", "20", "--block-length", "1"]
    assert (
        run(*arguments, "--compare-to", files / "f.zarr") == 2
    )  # its start has no map
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "mapping={'time': ...}" in error
    arguments += ["--compare_to", files / "f.zarr", "--map", "compare_to:time=begin"]
    cards = tmp_path_factory.mktemp("cards")
    arguments += ["--scorecard", cards / "card.json"]
    assert run(*arguments) == 0
    card = json.loads((cards / "card.json").read_text())
    # Both are one forecast, so that nothing differs.
    assert all(cell["normalised_difference"] == 0 for cell in card["cells"])
    assert {cell["region"] for cell in card["cells"]} == {"global", "belt"}
    assert {"crps", "acc"} <= {cell["score"] for cell in card["cells"]}
    printed = capsys.readouterr().out
    for words in (
        "member is 'number' (by its name)",
        "5 starts, 3 members",
        "1 d",
        "Both forecasts have 3 members.",
        "Intervals of 95% from 20 paired resamples of blocks of 1 starts; 5 starts.",
    ):
        assert words in printed
    assert printed.rstrip().splitlines()[-2:] == [str(out), str(cards / "card.json")]
    with xr.open_dataset(out, decode_timedelta=True) as scores:
        wanted = gridded.verify(
            gridded.open_gridded(files / "f.zarr", {"time": "begin"}, report=None),
            gridded.open_gridded(files / "truth.nc", report=None),
            regions={"belt": {"lat": (-10, 10), "lon": (100, 200)}},
        )
        for name in ("crps", "rmse"):
            np.testing.assert_allclose(
                scores.value.sel(score=name, region="belt"),
                wanted.value.sel(score=name, region="belt"),
                rtol=1e-6,
            )
        assert {"acc", "brier_above_0", "fair_brier_above_1"} <= set(
            scores.score.values
        )
        assert np.isfinite(scores.low.sel(score="rmse")).all()
        np.testing.assert_array_equal(scores.skill.sel(score="crps"), 0.0)
        assert scores.attrs["truth"] == str(files / "truth.nc")
    assert run(*arguments) == 2
    assert "is there already" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["scores.nc"]


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["none.zarr", "truth.nc"], "there is no file or folder none.zarr"),
        (["f.zarr", "truth.nc"], "f.zarr: there is no time among"),
        (["f.zarr", "truth.nc", "--map", "other:time=begin"], "--map takes FILE:WORD"),
        (["f.zarr", "truth.nc", "--region", "mars"], "--region mars: known are global"),
        (["f.zarr", "truth.nc", "--region", "x=1,2,3"], "--region takes a name"),
        (["f.zarr", "truth.nc", "--threshold", "t2m"], "--threshold takes NAME=X,X"),
        (["f.zarr", "truth.nc", "--threshold", "t2m=a"], "takes numbers with commas"),
        (["f.zarr", "truth.nc", "--block_length", "2"], "goes with --bootstrap"),
        (["f.zarr", "truth.nc", "--overwrite"], "goes with -o FILE"),
        (["f.zarr", "truth.nc", "--scorecard", "a.md"], "goes with --compare-to"),
        (["f.zarr", "truth.nc", "--scorecard", "a.pdf"], "must end in .md, .json"),
        (["f.zarr", "truth.nc", "-o", "scores.txt"], "must end in .zarr or .nc"),
        (["f.zarr"], "required: TRUTH"),
        (
            ["f.zarr", "truth.nc", "--map", "forecast:time=begin", "--bootstrap", "9"]
            + ["--block_length", "3"],
            "block_length 3 leaves fewer than two blocks of the 5 starts",
        ),
    ],
)
def test_a_mistake_is_one_line(files, capsys, monkeypatch, arguments, words):
    monkeypatch.chdir(files)
    if "--region" in arguments:
        arguments = [*arguments, "--map", "forecast:time=begin"]
    try:
        code = run(*arguments)
    except SystemExit as end:  # of the parser
        code = end.code
    assert code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and words in error


def test_help_and_options_load_neither_jax_nor_xarray():
    script = f"""
import sys, types
package = types.ModuleType("ensjax")
package.__path__, package.__version__ = [{str(ROOT / "ensjax")!r}], "0"
sys.modules["ensjax"] = package
import ensjax.experiment.verify_options, ensjax.experiment.verify
print([name for name in ("jax", "xarray", "zarr", "rich") if name in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert done.stdout == "[]\n", done.stderr


def test_importing_gridded_loads_no_package_of_the_extra():
    script = """
import sys
import ensjax.emulate.gridded
heavy = ("xarray", "zarr", "h5netcdf", "cftime", "pandas", "xarray_regrid")
print([name for name in heavy if name in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert done.stdout == "[]\n", done.stderr


def test_members_of_another_number_have_no_skill_by_the_standard_crps(
    files, tmp_path, capsys
):
    opened = xr.open_zarr(files / "f.zarr", decode_timedelta=False)
    opened.isel(number=[0, 1]).to_zarr(tmp_path / "two.zarr")
    start = ["--map", "forecast:time=begin", "--map", "compare_to:time=begin"]
    arguments = [files / "f.zarr", files / "truth.nc", *start, "--bootstrap", "5"]
    card = tmp_path / "card.png"
    arguments += ["--compare-to", tmp_path / "two.zarr", "--scorecard", card]
    assert run(*arguments, "--block_length", "2") == 0
    printed = capsys.readouterr().out
    assert "has 3 members" in printed and "has 2 members" in printed
    assert "depend on the number of members: crps; the fair ones do not" in printed
    assert "Too few starts for an interval: 5 starts, blocks of 2" in printed
    rows = printed[printed.index("│ crps") :].splitlines()
    names = [row.split("│")[1].strip() for row in rows if "│" in row]
    fair = names.index("fair_crps")
    assert "%" not in "".join(rows[:fair]) and "%" in "".join(rows[fair : fair + 2])
    assert card.stat().st_size > 0


def test_progress_says_how_long_it_takes(files, capsys, monkeypatch):
    monkeypatch.setattr("ensjax.experiment.read_progress._SECONDS_BETWEEN_LINES", 0.0)
    from ensjax.experiment.read_progress import ReadProgress

    progress = ReadProgress("f.zarr")
    progress.report(10, 40)
    progress.report(40, 40)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 and "of 40 B read" in lines[0] and "left" in lines[0]


def test_a_missing_package_says_what_to_install(files, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "xarray", None)
    monkeypatch.chdir(files)
    assert run("f.zarr", "truth.nc") == 2
    assert "pip install 'ensjax[weather]'" in capsys.readouterr().err


def test_what_was_not_scored_is_said(files, tmp_path, capsys):
    truth = xr.open_dataset(files / "truth.nc", engine="h5netcdf").load()
    truth.isel(time=[0, 1]).to_netcdf(tmp_path / "few.nc", engine="h5netcdf")
    start = ["--map", "forecast:time=begin"]
    assert run(files / "f.zarr", tmp_path / "few.nc", *start) == 0
    printed = capsys.readouterr().out
    assert "t2m: only a part could be scored: 40 % at 0 d, 20 % at 1 d" in printed
    (truth * np.nan).to_netcdf(tmp_path / "none.nc", engine="h5netcdf")
    out = tmp_path / "scores.nc"
    assert run(files / "f.zarr", tmp_path / "none.nc", *start, "-o", out) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "could be scored" in error
    assert not out.exists()
    truth.t2m.attrs["units"] = "degC"
    truth.to_netcdf(tmp_path / "warm.nc", engine="h5netcdf")
    assert run(files / "f.zarr", tmp_path / "warm.nc", *start) == 2
    assert "'t2m' in 'K'" in capsys.readouterr().err
    assert run(files / "f.zarr", tmp_path / "warm.nc", *start, "--ignore-units") == 0
    assert "only a part" not in capsys.readouterr().out


def test_what_cannot_be_scored_names_the_file_and_the_variable(files, tmp_path, capsys):
    truth = xr.open_dataset(files / "truth.nc", engine="h5netcdf").load()
    truth.t2m.values[2, 0, 0] = 9.97e36  # a fill value that is not declared
    truth.to_netcdf(tmp_path / "filled.nc", engine="h5netcdf")
    start = ["--map", "forecast:time=begin"]
    assert run(files / "f.zarr", tmp_path / "filled.nc", *start) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "filled.nc: variable 't2m' holds 9.97" in error


def test_a_climatology_has_a_mapping_too(files, tmp_path, capsys):
    climate = xr.open_dataset(files / "climate.nc", engine="h5netcdf").load()
    climate = climate.rename(latitude="rows").drop_attrs()
    climate.to_netcdf(tmp_path / "climate.nc", engine="h5netcdf")
    arguments = [files / "f.zarr", files / "truth.nc", "--map", "forecast:time=begin"]
    arguments += ["--climatology", tmp_path / "climate.nc"]
    assert run(*arguments) == 2
    assert "there is no latitude" in capsys.readouterr().err
    assert run(*arguments, "--map", "climatology:lat=rows") == 0
    assert "acc" in capsys.readouterr().out


def test_a_file_that_xarray_saved_of_ours_has_the_scores_it_had(
    files, tmp_path, capsys
):
    """The mark of a standard dataset is in it, and its leads are integers."""
    opened = gridded.open_gridded(files / "f.zarr", {"time": "begin"}, report=None)
    opened.to_zarr(tmp_path / "again.zarr", consolidated=False)
    start = ["--map", "forecast:time=begin"]
    assert run(files / "f.zarr", files / "truth.nc", *start) == 0
    wanted = capsys.readouterr().out
    assert run(tmp_path / "again.zarr", files / "truth.nc") == 0
    found = capsys.readouterr().out
    for out in (wanted, found):
        assert "crps" in out
    tables = [text[text.index("t2m, global") :] for text in (wanted, found)]
    assert tables[0] == tables[1]
