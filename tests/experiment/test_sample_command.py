"""`ensjax sample`, as a user types it."""

import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

xr = pytest.importorskip("xarray")
pytest.importorskip("zarr")

from ensjax import cli  # noqa: E402
from ensjax.experiment.configs import load_module  # noqa: E402
from ensjax.experiment.runner import RunOptions, run_and_report  # noqa: E402

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent / "sampled"
toy = load_module(HERE / "experiments" / "sampled.py", "experiment")
ENOUGH = ["--init", "2020-01-03", "--members", "4", "-o", "out.zarr"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A finished run `run`, one that is not finished, and one without emulators."""
    folder = tmp_path_factory.mktemp("sampled")
    config = HERE / "configs" / "sampled.py"
    assert run_and_report(RunOptions(str(config), str(folder / "run"))) == 0
    shutil.copytree(folder / "run", folder / "unfinished")
    (folder / "unfinished" / "results.json").unlink()
    return folder


@pytest.fixture
def here(folder, tmp_path, monkeypatch):
    """An empty folder beside the runs."""
    for name in ("run", "unfinished"):
        (tmp_path / name).symlink_to(folder / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def sample(*arguments, run="run"):
    try:
        return cli.main(["sample", run, *map(str, arguments)])
    except SystemExit as end:  # of the parser
        return end.code


def read(path):
    with xr.open_dataset(path, decode_timedelta=True) as dataset:
        return dataset.load()


def test_members_have_coordinates_ids_and_the_emulators_distribution(here, capsys):
    starts = ["--init", "2020-01-03,2020-01-05"]
    truth = ["--truth", "truth.zarr"]
    assert sample(*starts, "--members", 300, "-o", "out.zarr", *truth) == 0
    found = read("out.zarr")
    assert found.t2m.dims == ("time", "member", "lead", "lat", "lon")
    assert found.t2m.attrs["units"] == "K"
    assert found.member.attrs["standard_name"] == "realization"
    assert found.sampler.startswith("heun, 40 levels") and found.seed == "3"
    np.testing.assert_array_equal(found.member, np.arange(300))
    np.testing.assert_array_equal(found.time, toy.DAYS[[2, 4]])
    np.testing.assert_array_equal(found.lead, toy.LEADS)
    middle = np.stack([toy.middle(row)[:, 0] for row in (2, 4)])
    # Five standard errors of a mean of 300 with a deviation of 0.5.
    assert np.abs(found.t2m.mean("member") - middle).max() < 5 * 0.5 / 300**0.5
    # 40 levels of Heun make it 1 % too large; five standard errors of it are 20 %.
    assert np.abs(found.t2m.std("member") / 0.5 - 1).max() < 0.21
    np.testing.assert_array_equal(read("truth.zarr").t2m, middle)
    assert {p.name for p in here.iterdir()} == {
        "run",
        "unfinished",
        "out.zarr",
        "truth.zarr",
    }
    capsys.readouterr()
    assert cli.main(["verify", "out.zarr", "truth.zarr"]) == 0
    assert "2 starts, 300 members" in capsys.readouterr().out


def test_a_member_has_its_bits_whatever_else_is_sampled(here):
    assert sample("--init", "2020-01-03", "--members", 70, "-o", "all.zarr") == 0
    ids = ["--member-ids", "68,3,40:43", "--block", 1]
    assert sample("--init", "2020-01-05,2020-01-03", *ids, "-o", "some.nc") == 0
    few, many = read("some.nc"), read("all.zarr")
    assert few.member.values.tolist() == [68, 3, 40, 41, 42]
    day = np.datetime64("2020-01-03")
    wanted = many.t2m.sel(time=day, member=few.member)
    np.testing.assert_array_equal(few.t2m.sel(time=day), wanted)
    # Another start has other noise, not the same around another mean.
    other = few.t2m.isel(time=0) - toy.middle(4)[:, 0]
    assert np.abs(other - (wanted - toy.middle(2)[:, 0])).max() > 0.1
    assert few.t2m.attrs == many.t2m.attrs
    assert set(few.coords) == set(many.coords)


def test_another_model_sampler_and_number_of_levels(here):
    one = ["--init", "2020-01-01", "--members", "64", "--overwrite", "-o", "out.zarr"]
    sds = []
    for more in ([], ["--model", "wide"], ["--sampler", "dpm", "--levels", "41"]):
        assert sample(*one, *more) == 0
        sds.append(float(read("out.zarr").t2m.std("member").mean()))
    # The same noise; steps make the deviation 1.0 %, 0.8 % too large, 0.5 % too small.
    assert sds[1] / sds[0] == pytest.approx(2, rel=0.02)
    assert sds[2] == pytest.approx(sds[0], rel=0.02)
    assert read("out.zarr").sampler.startswith("dpm, 41 levels")


@pytest.mark.parametrize(
    "change, words",
    [
        (dict(init="2019-05-05"), "no start '2019-05-05'; there are 12: 2020-01-01,"),
        (dict(init="soon"), "there is no start 'soon'"),
        (dict(init="2020-01-01,2020-01-01"), "starts are named once each"),
        (dict(init=None), "--init says which start"),
        (dict(members="0"), "--members must be at least 1; got 0"),
        (dict(members=None), "either --members N or --member-ids"),
        (dict(members=None, member_ids="3,1:9"), "names a member twice"),
        (dict(members=None, member_ids="a"), "takes numbers and ranges"),
        (dict(members=None, member_ids="9:9"), "holds no id"),
        (dict(sampler="magic"), "--sampler is one of heun, euler"),
        (dict(levels="1"), "--levels must be at least 2"),
        (dict(block="0"), "--block must be at least 1"),
        (dict(model="narrow"), "--model is one of wide; got narrow"),
        (dict(out="out.txt"), "--out must end in .zarr or .nc"),
        (dict(out="run"), "--out must end in"),
        (dict(truth="out.zarr"), "--truth and --out are two files"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(here, capsys, change, words):
    options = dict(init="2020-01-03", members="4", out="out.zarr") | change
    arguments = [
        text
        for name, value in options.items()
        if value is not None
        for text in (f"--{name}", value)
    ]
    assert sample(*arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and words in error
    assert {p.name for p in here.iterdir()} == {"run", "unfinished"}


def test_runs_that_cannot_be_sampled(here, capsys, monkeypatch):
    assert sample(*ENOUGH, run="unfinished") == 2
    assert "unfinished is not finished" in capsys.readouterr().err
    assert sample(*ENOUGH, run="nowhere") == 2
    assert "nowhere is no run of ensjax" in capsys.readouterr().err
    with monkeypatch.context() as patch:
        patch.delattr(toy, "sample_job")
        assert sample(*ENOUGH) == 2
    assert "run has no emulator: the experiment 'sampled'" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "xarray", None)
    assert sample(*ENOUGH) == 2
    assert "pip install 'ensjax[weather]'" in capsys.readouterr().err


@pytest.mark.parametrize("ending", ["zarr", "nc"])
def test_what_is_there_is_replaced_only_whole_and_when_told(
    here, capsys, monkeypatch, ending
):
    place = f"out.{ending}"
    one = ["--init", "2020-01-03", "-o", place]
    assert sample(*one, "--members", 4) == 0
    before = read(place)
    assert sample(*one, "--members", 8) == 2
    assert "is there already" in capsys.readouterr().err
    many = ["--members", 2_000, "--block", 2_000, "--overwrite"]
    if ending == "nc":  # HDF5 is told before
        usage = type("Usage", (), {"free": 1_000})
        with monkeypatch.context() as patch:
            patch.setattr(shutil, "disk_usage", lambda place: usage)
            code = sample(*one, *many)
    else:  # past so many bytes of a file the disk is full
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, limits[1]))
        try:
            code = sample(*one, *many)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert code == 74 and "no space left for out" in capsys.readouterr().err
    xr.testing.assert_identical(read(place), before)
    assert {p.name for p in here.iterdir()} == {"run", "unfinished", place}
    assert sample(*one, "--members", 8, "--overwrite") == 0
    assert read(place).sizes["member"] == 8


def test_a_process_that_is_killed_leaves_no_output(here):
    command = [sys.executable, "-m", "ensjax.cli", "sample", "run", *ENOUGH]
    done = subprocess.run(
        [*command[:-4], "--members", "40", "--block", "8", "-o", "out.zarr"],
        env=os.environ | {"PYTHONPATH": str(ROOT), "KILL_AT_THE_SECOND_BLOCK": "1"},
        capture_output=True,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not (here / "out.zarr").exists()
    assert sample(*ENOUGH) == 0
    assert {p.name for p in here.iterdir()} == {"run", "unfinished", "out.zarr"}


def test_options_load_no_jax():
    script = f"""
import sys, types
package = types.ModuleType("ensjax")
package.__path__, package.__version__ = [{str(ROOT / "ensjax")!r}], "0"
sys.modules["ensjax"] = package
import ensjax.experiment.sample_options
print([name for name in ("jax", "xarray", "zarr") if name in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert done.stdout == "[]\n", done.stderr
