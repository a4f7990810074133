"""Reforecasts of `seeds.py` from files: opened, regridded, in units of their climate.

Fields are read a block of starts at a time and written to `archive/` of the run, where
training and sampling map them into memory. Climate and units are those of the truth at
the valid times of training, as in Li et al. 2024, eadk4489 (SEEDS).
"""

import dataclasses
from typing import Any, NamedTuple

import numpy as np

from ensjax.emulate import gridded
from ensjax.emulate.climatology import Standardiser, fit_standardiser
from ensjax.emulate.gridded.streaming import read_channels
from ensjax.emulate.gridded.times import positions
from ensjax.experiment import ConfigError
from ensjax.experiment.exit_codes import one_line
from ensjax.experiment.processes import on_first_process

GRIDS = ("cube", "gaussian", "file")
_TIMES_AT_ONCE = 64


class Opened(NamedTuple):
    """Starts to train and to test on, and the way to the run's grid; nothing is read.

    Attributes:
        train, test: `Pairs` with the truth, at the config's fields and leads.
        weights: of regridding; None: the files' own grid.
        areas: of its cells, `[*space]`.
        space: its coordinates by axis.
    """

    train: Any
    test: Any
    weights: Any
    areas: np.ndarray
    space: dict[str, np.ndarray]


def check_named(config) -> None:
    """Raises `ConfigError` if no files are named, which is as the preset comes."""
    archive = config.archive
    if not archive.path or not archive.truth:
        raise ConfigError(
            "config.archive.path and config.archive.truth must name the reforecasts and"
            " what came true, zarr or netCDF; without them this preset is planned:"
            " ensjax plan configs/seeds.py:paper"
        )


def open_files(config) -> Opened:
    """The files of the config.

    Raises:
        ConfigError: for files that cannot be read or do not have what the config names;
            says what they have.
    """
    check_named(config)
    archive = config.archive
    try:
        truth = gridded.open_gridded(
            archive.truth, mapping_of("truth_mapping", archive.truth_mapping)
        )
        both = _open(archive, archive.path)
        other = _open(archive, archive.test_path) if archive.test_path else both
        train = _pairs(archive, "train", archive.path, both, truth)
        test = _pairs(archive, "test", archive.test_path or archive.path, other, truth)
        grid = gridded.grid_of(train.forecast, name=archive.path)
        target = {
            "cube": lambda: gridded.CubedSphereGrid(archive.space[-1]),
            "gaussian": lambda: gridded.gaussian_grid(*archive.space),
            "file": lambda: grid,
        }[archive.grid]()
        weights = None
        if archive.grid != "file":
            weights = gridded.conservative_weights(grid, target)
            if archive.test_path:
                _check_same_grid(grid, gridded.grid_of(test.forecast), archive)
    except (ValueError, ImportError, FileNotFoundError) as error:
        raise ConfigError(f"config.archive: {one_line(error)}") from error
    if tuple(target.shape) != tuple(archive.space):
        raise ConfigError(
            f"config.archive.space is {tuple(archive.space)}, but the grid"
            f" {archive.grid!r} has {tuple(target.shape)}."
        )
    train, test = _split(archive, train, test)
    return Opened(train, test, weights, target.areas, dict(target.dims))


def mapping_of(field, text) -> dict[str, str | None]:
    """`"time=init,level=none"` as a mapping of `open_gridded`.

    Raises:
        ConfigError: if it is no such text.
    """
    found: dict[str, str | None] = {}
    for part in filter(None, str(text).split(",")):
        word, equals, name = part.strip().partition("=")
        if not (word and equals and name):
            raise ConfigError(
                f"config.archive.{field} is WORD=NAME with commas, such as"
                f" time=init,lead_units=hours; got {text!r}."
            )
        found[word] = None if name == "none" else name
    return found


def _open(archive, path):
    return gridded.open_gridded(path, mapping_of("mapping", archive.mapping))


def _pairs(archive, kind, path, forecast, truth):
    """Forecasts of a file with the truth, at the config's fields and leads."""
    pairs = gridded.pair(
        forecast,
        truth,
        variables=list(archive.variables) or None,
        names=(path, archive.truth),
    )
    if pairs.lead_rows is not None:
        raise ConfigError(
            f"config.archive.truth: {archive.truth} is not by valid time."
        )
    channels = [c.name for c in pairs.channels]
    missing = [name for name in archive.fields if name not in channels]
    if missing:
        raise ConfigError(
            f"config.archive.fields: {path} has not {', '.join(missing)}; it has"
            f" {', '.join(channels)} (those that {archive.truth} has too)."
        )
    leads = np.asarray(archive.lead_days) * np.timedelta64(86_400, "s")
    rows = positions(leads.astype("timedelta64[ns]"), forecast["lead"].values)
    if np.any(rows < 0):
        days = forecast["lead"].values / np.timedelta64(1, "D")
        raise ConfigError(
            f"config.archive.lead_days: {path} has leads of"
            f" {', '.join(f'{day:g}' for day in days)} days; asked for"
            f" {', '.join(f'{day:g}' for day in archive.lead_days)}."
        )
    num_members = archive[f"num_{kind}_members"]
    if pairs.sizes["member"] < num_members:
        raise ConfigError(
            f"config.archive: {path} has {pairs.sizes['member']} members; asked for"
            f" {num_members}."
        )
    pairs = pairs.select(
        lead=rows, channel=[channels.index(name) for name in archive.fields]
    )
    members = pairs.forecast.isel(member=slice(0, num_members))
    return dataclasses.replace(pairs, forecast=members)


def _check_same_grid(first, second, archive):
    is_same = first.shape == second.shape and np.allclose(first.lat, second.lat)
    if not (is_same and np.allclose(first.lon, second.lon)):
        raise ConfigError(
            f"{archive.path} and {archive.test_path} differ in their grid."
        )


def _split(archive, train, test):
    """The first starts, and those of the test: valid behind all of the training."""
    train = train.select(case=_first(archive, "train", archive.path, train))
    ends = train.forecast["time"].values[-1] + _longest(train)
    is_later = test.forecast["time"].values >= ends
    if archive.test_path and not is_later[0]:
        raise ConfigError(
            f"{archive.test_path} starts at {test.forecast['time'].values[0]}, before"
            f" the last valid time of training, {ends}; take fewer training cases."
        )
    test = test.select(case=np.nonzero(is_later)[0])
    path = archive.test_path or archive.path
    return train, test.select(case=_first(archive, "test", path, test))


def _first(archive, kind, path, pairs):
    wanted, has = archive[f"num_{kind}_cases"], pairs.sizes["case"]
    if has < wanted:
        raise ConfigError(
            f"config.archive.num_{kind}_cases is {wanted}, but {path} has {has} starts"
            f" {'to train' if kind == 'train' else 'behind those of training'}."
        )
    return np.arange(wanted)


def _longest(pairs):
    lead, time = pairs.forecast["lead"].values[-1], pairs.forecast["time"].values
    # Calendars of cftime count in objects.
    return lead if time.dtype.kind == "M" else lead.astype("timedelta64[us]").item()


def prepare(config, run_dir) -> dict[str, np.ndarray]:
    """Writes the standardised archive; returns the climate and what the axes are.

    `archive/train.npy` and `test.npy` are `[case, lead, member, *space, field]`,
    `truth.npy` (of the test) has no member; `train_base.npy` and `test_base.npy`
    `[case, *space, field]` are the season at the start (`Standardiser.season_at`).

    Raises:
        ConfigError: as `open_files`; or if a member of training is missing somewhere.
    """
    opened = open_files(config)
    climate = _climate(config, opened)

    def write():
        (run_dir.path / "archive").mkdir(exist_ok=True)
        for part in ("train", "test"):
            _write(opened, climate, run_dir.path / "archive", part)

    on_first_process(write)
    return {
        "mean": climate.mean,
        "sd": climate.sd,
        "areas": opened.areas,
        "case": _dates(opened.test).astype("datetime64[ns]").astype(np.int64),
        "lead": opened.test.forecast["lead"].values.astype(np.int64),
    } | {f"space_{name}": values for name, values in opened.space.items()}


def _dates(pairs):
    time = pairs.forecast["time"].values
    if time.dtype.kind != "M":
        raise ConfigError(
            f"{pairs.names[0]} has dates of another calendar than NumPy's, in which"
            " samples cannot be named: reforecasts have the usual one."
        )
    return time


def _climate(config, opened) -> Standardiser:
    """Of the truth at the valid times of training."""
    pairs, window = opened.train, config.archive.window_days
    rows = np.unique(pairs.rows[pairs.rows >= 0])
    if not len(rows):
        raise ConfigError(f"{pairs.names[1]} has no valid time of training.")
    fields = []
    for first in range(0, len(rows), _TIMES_AT_ONCE):
        some = pairs.truth.isel(time=rows[first : first + _TIMES_AT_ONCE])
        fields.append(_regridded(opened, read_channels(some, pairs.channels, "truth")))
    times = pairs.truth["time"].values[rows] if window else None
    try:
        return fit_standardiser(np.concatenate(fields), times, window_days=window or 1)
    except ValueError as error:
        raise ConfigError(f"config.archive.window_days: {one_line(error)}") from error


def _regridded(opened, values):
    if opened.weights is None:
        return values
    return np.asarray(gridded.regrid(values, opened.weights))


def _write(opened, climate, folder, part):
    """One part, block by block of starts."""
    pairs = getattr(opened, part)
    sizes, space = pairs.sizes, opened.areas.shape
    fields = (*space, sizes["variable"])
    shapes = {
        part: (sizes["case"], sizes["lead"], sizes["member"], *fields),
        f"{part}_base": (sizes["case"], *fields),
    }
    if part == "test":
        shapes["truth"] = (sizes["case"], sizes["lead"], *fields)
    files = {
        name: np.lib.format.open_memmap(
            folder / f"{name}.npy", mode="w+", dtype=np.float32, shape=shape
        )
        for name, shape in shapes.items()
    }
    is_seasonal = len(climate.mean) > 1
    for block in gridded.stream_cases(pairs):
        times = block.valid_time if is_seasonal else None
        values = climate.standardise(
            _regridded(opened, block.values), None if times is None else times[:, None]
        )
        values = np.moveaxis(np.asarray(values), (1, 3), (2, -1))
        if part == "train" and not np.isfinite(values).all():
            place = np.argwhere(~np.isfinite(values))[0]
            raise ConfigError(
                f"{pairs.names[0]}: {pairs.channels[place[-1]].name!r} is missing at"
                f" the start {block.case[place[0]]}: networks are trained on whole"
                " fields. Leave out that field or those starts."
            )
        files[part][block.rows] = values
        base = climate.season_at(block.case if is_seasonal else None)
        files[f"{part}_base"][block.rows] = np.moveaxis(
            np.asarray(base), -1 - len(space), -1
        )
        if part == "test":
            truth = climate.standardise(_regridded(opened, block.truth), times)
            files["truth"][block.rows] = np.moveaxis(np.asarray(truth), 2, -1)
    for file in files.values():
        file.flush()


def archives(run_dir) -> dict[str, np.ndarray]:
    """The arrays of `prepare`, mapped into memory.

    Raises:
        ConfigError: if they are not there.
    """
    folder = run_dir.path / "archive"
    names = ("train", "train_base", "test", "test_base", "truth")
    try:
        return {n: np.load(folder / f"{n}.npy", mmap_mode="r") for n in names}
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{folder} is not whole: {one_line(error)}. Remove {run_dir.path}/stages"
            " and run again."
        ) from error
