"""seeds: the archive of `paper`, read from files as small as they can be."""

import json
import pathlib

import numpy as np
import pytest

xr = pytest.importorskip("xarray")
pytest.importorskip("zarr")

from ensjax import cli  # noqa: E402
from ensjax.emulate import gridded  # noqa: E402
from ensjax.experiment import ConfigError  # noqa: E402
from ensjax.experiment.configs import load_config  # noqa: E402
from ensjax.experiment.fields import load_beside  # noqa: E402

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = ROOT / "configs" / "seeds.py"
experiment = load_beside(str(ROOT / "experiments" / "x.py"), "seeds")
files = experiment.from_files.files
GRID = gridded.coarse_grid(30.0)  # 6 x 12
DAY = np.timedelta64(1, "D").astype("timedelta64[ns]")
START = np.datetime64("2000-01-01", "ns")
TRAIN, TEST, MEMBERS = 12, 3, 5


def fields(rng, *outer):
    """t and z at 500 hPa around means of their own, which grow by a tenth a day."""
    noise = rng.normal(size=(*outer, *GRID.shape)).astype("f4")
    return {"t": 280 + 3 * noise, "z": (5000 + 90 * noise[..., ::-1])[..., None, :, :]}


@pytest.fixture(scope="module")
def named(tmp_path_factory):
    """Reforecasts in names of their own and analyses; the flags that read them."""
    folder = tmp_path_factory.mktemp("reforecasts")
    rng = np.random.default_rng(0)
    count = TRAIN + TEST + 3
    leads = np.array([0, 24, 48, 72])
    space = ("level", "latitude", "longitude")
    labels = dict(level=[500.0], latitude=GRID.lat, longitude=GRID.lon)
    dims = ("begin", "step", "number")
    data = fields(rng, count, len(leads), MEMBERS)
    forecast = xr.Dataset(
        {
            "t": ((*dims, *space[1:]), data["t"], {"units": "K"}),
            "z": ((*dims, *space), data["z"]),
        },
        dict(begin=START + np.arange(count) * DAY, step=leads, **labels),
    )
    forecast.step.attrs["units"] = "hours"
    forecast.to_zarr(folder / "f.zarr", consolidated=False)
    known = fields(rng, count + 3)
    truth = xr.Dataset(
        {"t": (("time", *space[1:]), known["t"]), "z": (("time", *space), known["z"])},
        dict(time=START + np.arange(count + 3) * DAY, **labels),
    )
    truth.to_netcdf(folder / "t.nc", engine="h5netcdf")
    archive = dict(
        path=folder / "f.zarr",
        truth=folder / "t.nc",
        mapping="time=begin",
        fields=("t", "z_500"),
        lead_days=(1, 3),
        space=(6, 2, 2),
        window_days=0,
        num_train_cases=TRAIN,
        num_test_cases=TEST,
        num_test_members=MEMBERS,
    )
    small = {
        "num_samples": 4,
        "sampler.num_steps": 3,
        "model.patch_size": (1, 1),
        "model.levels": (0, 1),
        "model.width": 8,
        "model.depths": (1, 1, 1),
        "model.num_heads": 2,
        "model.mlp_width": 16,
        "model.remat": False,
        "training.total_steps": 4,
        "training.steps_per_call": 2,
        "training.batch_size": 4,
        "training.ema_decay": 0.5,
    }
    pairs = {f"archive.{k}": v for k, v in archive.items()} | small
    return forecast, truth, [(name, str(value)) for name, value in pairs.items()]


def config_of(*overrides):
    return load_config(f"{CONFIG}:paper", overrides)[1]


class Folder:
    """What a run directory is to `prepare`."""

    def __init__(self, path):
        self.path = path


def test_fields_are_those_of_the_files_on_the_grid_in_units_of_the_truth(
    named, tmp_path
):
    forecast, truth, flags = named
    about = files.prepare(config_of(*flags), Folder(tmp_path))
    found = files.archives(Folder(tmp_path))
    assert found["test"].shape == (TEST, 2, MEMBERS, 6, 2, 2, 2)
    weights = gridded.conservative_weights(GRID, gridded.CubedSphereGrid(2))

    def on_cube(values):  # [..., lat, lon] of NumPy, apart from the experiment
        return (weights.matrix @ values.reshape(-1, 72).T).T.reshape(
            *values.shape[:-2], 6, 2, 2
        )

    known = on_cube(truth.t.values.astype("f8"))
    valid = np.unique(np.arange(TRAIN)[:, None] + [1, 3])
    mean, sd = known[valid].mean(0), known[valid].std(0)
    members = on_cube(forecast.t.values.astype("f8"))[:, [1, 3]]
    wanted = (members - mean) / sd
    np.testing.assert_allclose(found["train"][..., 0], wanted[:TRAIN], atol=2e-4)
    # The test begins when the last forecast of training is over: 11 + 3 days.
    rows = TRAIN - 1 + 3 + np.arange(TEST)
    np.testing.assert_allclose(found["test"][..., 0], wanted[rows], atol=2e-4)
    np.testing.assert_array_equal(about["case"].astype("M8[ns]"), START + rows * DAY)
    wanted = (known - mean) / sd
    np.testing.assert_allclose(
        found["truth"][..., 0], wanted[rows[:, None] + [1, 3]], atol=2e-4
    )
    np.testing.assert_array_equal(found["train_base"], 0.0)  # one climate for all days
    job = experiment.training_job(config_of(*flags), shapes_only=True)
    assert found["train"].shape == job.data["members"].shape  # what is planned


def test_seasons_are_those_of_start_and_valid_time(named, tmp_path):
    _, truth, flags = named
    files.prepare(config_of(*flags), Folder(tmp_path))
    constant = files.archives(Folder(tmp_path))["train"].copy()
    (tmp_path / "seasonal").mkdir()
    seasonal = Folder(tmp_path / "seasonal")
    flags = [*flags, ("archive.window_days", "365")]
    about = files.prepare(config_of(*flags), seasonal)
    assert about["mean"].shape == (366, 2, 6, 2, 2)
    # A window of a whole year: the climate hardly knows of seasons.
    np.testing.assert_allclose(files.archives(seasonal)["train"], constant, atol=0.2)
    flags[-1] = ("archive.window_days", "15")
    with pytest.raises(ConfigError, match="window_days: .* day"):
        files.prepare(config_of(*flags), seasonal)


@pytest.mark.parametrize(
    "field, value, words",
    [
        ("archive.path", "none.zarr", "there is no file or folder none.zarr"),
        ("archive.truth", "", "config.archive.path and config.archive.truth"),
        ("archive.fields", "('t', 'rain')", "has not rain; it has t, z_500"),
        ("archive.lead_days", "(1, 5)", "has leads of 0, 1, 2, 3 days; asked for 1, 5"),
        ("archive.lead_days", "(3, 1)", "lead_days must rise"),
        ("archive.mapping", "begin", "is WORD=NAME with commas"),
        ("archive.mapping", "time=start", "the mapping says that time is 'start'"),
        ("training.batch_size", "13", "config.training.batch_size"),
        ("archive.num_train_cases", "30", "f.zarr has 18 starts to train"),
        ("archive.num_test_cases", "9", "has 4 starts behind those of training"),
        ("archive.num_test_members", "6", "f.zarr has 5 members; asked for 6"),
        ("archive.grid", "'icosahedron'", "config.archive.grid"),
        ("archive.space", "(6, 4)", "space is .6, 4., but the grid 'cube' has"),
        ("archive.window_days", "4", "is odd, or 0; got 4"),
        ("num_seeds", "2", "config.num_seeds"),
    ],
)
def test_mistakes_are_one_line(named, tmp_path, field, value, words):
    config = config_of(*[(k, v) for k, v in named[2] if k != field], (field, value))
    with pytest.raises(ConfigError, match=words) as caught:
        experiment.validate(config)
        files.open_files(config)
    assert "\n" not in str(caught.value)


def test_missing_fields_are_named(named, tmp_path):
    forecast, _, flags = named
    holed = forecast.copy(deep=True)
    holed["z"][4, 1, 2] = np.nan
    holed.to_zarr(tmp_path / "f.zarr", consolidated=False)
    flags = [*flags, ("archive.path", str(tmp_path / "f.zarr"))]
    with pytest.raises(ConfigError, match="'z_500' is missing at the start 2000-01-05"):
        files.prepare(config_of(*flags), Folder(tmp_path))


def test_paper_runs_resumes_and_is_sampled_by_date(named, tmp_path, capsys):
    """As it is typed; the network is small."""
    forecast, truth, flags = named
    run = tmp_path / "run"
    typed = [f"--config.{name}={value}" for name, value in flags]
    arguments = ["run", f"{CONFIG}:paper", "--workdir", str(run), *typed]
    assert cli.main(arguments) == 0, capsys.readouterr().err
    first = json.loads((run / "results.json").read_text())
    scalars = first["scalars"]
    assert scalars["num_members_not_finite"] == 0
    found = files.archives(Folder(run))
    areas = gridded.CubedSphereGrid(2).areas[..., None]
    for name, members in (("seeds", slice(0, 2)), ("full", slice(2, None))):
        error = found["test"][:, :, members].mean(axis=2) - found["truth"]
        squared = (error**2 * areas).sum(axis=(2, 3, 4)).mean(axis=0)  # [lead, field]
        assert scalars[f"{name}_rmse"] == pytest.approx(np.sqrt(squared).mean())
    assert all(np.isfinite(v) for v in scalars.values())
    (run / "results.json").unlink()
    assert cli.main(arguments) == 0
    assert json.loads((run / "results.json").read_text())["scalars"] == scalars
    capsys.readouterr()
    out, known = tmp_path / "out.zarr", tmp_path / "truth.zarr"
    sample = ["sample", str(run), "--members", "3", "-o", str(out)]
    assert cli.main([*sample, "--init", "2000-01"]) == 2
    assert "a start is a day" in capsys.readouterr().err
    assert cli.main([*sample, "--init", "2000-01-15", "--truth", str(known)]) == 0
    members = gridded.open_gridded(out, report=None)
    assert list(members.data_vars) == ["t", "z_500"]
    assert members.t.dims == ("time", "member", "lead", "face", "y", "x")
    weights = gridded.conservative_weights(GRID, gridded.CubedSphereGrid(2))
    wanted = gridded.regrid(truth.t.sel(time="2000-01-18").values, weights)
    found = gridded.open_gridded(known, report=None).t[0, 0, 1]
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    assert np.isfinite(members.t.values).all()
    assert cli.main(["verify", str(out), str(known)]) == 0
