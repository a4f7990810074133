"""A climatology at the valid times of forecasts, read with each block of cases."""

import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ensjax.emulate.gridded import units
from ensjax.emulate.gridded.layout import SPACE_DIMS, GriddedError
from ensjax.emulate.gridded.opening import open_raw
from ensjax.emulate.gridded.pairing import pair
from ensjax.emulate.gridded.same_grid import on_same_grid
from ensjax.emulate.gridded.standard import space_of, standard_dataset
from ensjax.emulate.gridded.streaming import Pairs, read_channels
from ensjax.emulate.gridded.times import (
    calendar_of,
    positions,
    valid_times,
    whole_seconds,
)

SEASONS = ("dayofyear", "month", "hour")
# Dimensions that may hold counted starts.
_STARTS = ("time", "case")


def open_climatology(
    path: str | os.PathLike, mapping: Mapping[str, Any] | None = None
) -> Any:
    """A file for `climatology_reader`, under its own names or those of a mapping.

    Args:
        path: of a zarr or netCDF.
        mapping: as in `open_gridded`; None: names are guessed when it is paired.

    Raises:
        FileNotFoundError, GriddedError, ImportError: as `open_gridded`.
    """
    dataset = open_raw(path)
    if not mapping:
        return dataset
    seasons = [d for d in SEASONS if d in dataset.dims]
    if not seasons and not _has_time(dataset):
        seasons = ["season"]
    return standard_dataset(dataset, mapping, seasons=seasons, name=os.fspath(path))


def climatology_reader(
    climatology: Any,
    pairs: Pairs,
    *,
    name: str = "climatology",
    check_units: bool = True,
) -> Callable[[Pairs], np.ndarray]:
    """How to read the climatology of a part of the pairs.

    Args:
        climatology: a dataset of xarray on the forecasts' grid, with dimensions
            `dayofyear` (1-366), `month` (1-12) or `hour`, or some of them, or none: it
            is constant; or with `time`: it is looked up by valid time, as the truth is
            (by start and lead where starts are counted).
            Or a standardiser with `mean_at`, its variables as those of the pairs.
        pairs: the forecasts.
        name: of the file, for errors.
        check_units: whether units other than the forecasts' or the truth's are an
            error, as in `pair`.

    Returns:
        `read(part) -> [case, lead, variable, *space]`, float32, at the valid times.

    Raises:
        GriddedError: if a variable, day or hour is missing, the grid is another, or
            starts are counted, which have no season. All of it before fields are read.
    """
    if hasattr(climatology, "mean_at"):
        return lambda part: _of_standardiser(climatology, part, name)
    seasons = [d for d in SEASONS if d in getattr(climatology, "dims", ())]
    has_time = not seasons and _has_time(climatology)
    if has_time:
        wanted = list(dict.fromkeys(c.variable for c in pairs.channels))
        names = (pairs.names[0], name)
        by_time = pair(
            pairs.forecast,
            climatology,
            variables=wanted,
            names=names,
            check_units=check_units,
        )
        if check_units and pairs.truth is not None:
            units.check_units(
                wanted, pairs.truth, by_time.truth, (pairs.names[1], name)
            )
        return lambda part: _by_valid_time(by_time, part)
    mapping = None
    space = space_of(pairs.forecast)
    if SPACE_DIMS not in climatology.attrs and space != ["lat", "lon"]:
        # What is no grid of latitudes has the forecasts' dimensions of space.
        mapping = {"space": [d for d in space if d in climatology.dims]}
    dataset = standard_dataset(
        climatology, mapping, seasons=seasons or ["season"], name=name
    )
    missing = {c.variable for c in pairs.channels} - set(map(str, dataset.data_vars))
    if missing:
        raise GriddedError(
            f"{name} has not {', '.join(sorted(missing))}; it has"
            f" {', '.join(map(str, dataset.data_vars))}."
        )
    varying = [d for d in ("time", "lead", "member") if d in dataset.dims]
    if varying:
        raise GriddedError(
            f"{name} has no dates but the dimension {varying[0]!r} of"
            f" {dataset.sizes[varying[0]]}: take its mean, or choose one with"
            f" .isel({varying[0]}=0)."
        )
    dataset = on_same_grid(pairs.forecast, dataset, (pairs.names[0], name))
    if check_units:
        wanted = {c.variable: None for c in pairs.channels}
        for of, whose in zip((pairs.forecast, pairs.truth), pairs.names):
            if of is not None:
                units.check_units(wanted, of, dataset, (whose, name))
    for season in seasons:
        if season not in dataset.coords:
            raise GriddedError(f"{name}: {season!r} has no coordinate, only a length.")
    if seasons:
        if calendar_of(pairs.forecast["time"].values) == "none":
            raise GriddedError(
                f"{name} is by {' and '.join(seasons)}, but the starts of"
                f" {pairs.names[0]} are counted and have no season. A constant one,"
                f" such as its mean over {seasons[0]!r}, can be used."
            )
        _places_of_seasons(dataset, seasons, pairs, name)  # or a day is missing
    return lambda part: _of_seasons(dataset, seasons, part, name)


def _has_time(climatology):
    return any(
        d in _STARTS or np.asarray(climatology[d].values).dtype.kind in "MO"
        for d in climatology.dims
        if d in climatology.coords
    )


def _by_valid_time(pairs, part):
    """The truth of other pairs at the cases and leads of this part."""
    cases = positions(part.forecast["time"].values, pairs.forecast["time"].values)
    leads = positions(part.forecast["lead"].values, pairs.forecast["lead"].values)
    names = [c.name for c in pairs.channels]
    channels = [names.index(c.name) for c in part.channels]
    return pairs.select(case=cases, lead=leads, channel=channels).read_truth()


def _of_standardiser(climatology, part, name):
    space = [len(v) for v in part.space.values()]
    shape = part.sizes["case"], part.sizes["lead"]
    times = None
    if calendar_of(part.forecast["time"].values) != "none":
        valid = valid_times(part.forecast["time"].values, part.forecast["lead"].values)
        times = valid.reshape(-1)
    try:
        found = np.asarray(climatology.mean_at(times), np.float32)
    except ValueError as error:
        raise GriddedError(f"{name}, of starts that are counted: {error}") from error
    wanted = (len(part.channels), *space)
    if found.shape[-len(wanted) :] != wanted:
        raise GriddedError(
            f"{name} holds fields {found.shape[-len(wanted) :]}; the forecasts are"
            f" [variable, *space] = {wanted}."
        )
    if found.ndim == len(wanted):  # the same at all times
        return np.broadcast_to(found, (*shape, *wanted))
    return found.reshape(*shape, *wanted)


def _of_seasons(dataset, seasons, part, name):
    shape = part.sizes["case"], part.sizes["lead"]
    chosen, back = {}, []
    for season, at in _places_of_seasons(dataset, seasons, part, name).items():
        chosen[season], place = np.unique(at, return_inverse=True)
        back.append(place)
    some = dataset.isel(chosen)
    found = read_channels(some, part.channels, name, outer=seasons)
    if not seasons:
        return np.broadcast_to(found, (*shape, *found.shape))
    return found[tuple(back)].reshape(*shape, *found.shape[len(seasons) :])


def _places_of_seasons(dataset, seasons, part, name):
    """Rows of the climatology at every valid time, by dimension; of none at all."""
    if not seasons:  # constant: starts may be counted, and have no valid times
        return {}
    valid = valid_times(part.forecast["time"].values, part.forecast["lead"].values)
    times = whole_seconds(valid).reshape(-1)
    return {s: _season_rows(dataset[s].values, s, times, name) for s in seasons}


def _season_rows(labels, season, times, name):
    wanted = np.array([_season_of(t, season) for t in times])
    labels = np.asarray(labels)
    if season == "hour":  # the last that is not later
        order = np.argsort(labels)
        place = np.searchsorted(labels[order], wanted, side="right") - 1
        rows, is_there = order[place], place >= 0
    else:
        place = {int(v): i for i, v in enumerate(labels)}
        rows = np.array([place.get(v, -1) for v in wanted])
        is_there = rows >= 0
        if season == "dayofyear" and 366 not in place:  # 31 December of a leap year
            rows = np.where((wanted == 366) & ~is_there, place.get(365, -1), rows)
            is_there = rows >= 0
    if not is_there.all():
        raise GriddedError(
            f"{name} has no {season} {wanted[~is_there][0]}; it has {labels.min()}"
            f" to {labels.max()}."
        )
    return rows


def _season_of(time, season):
    if hasattr(time, "calendar"):  # of cftime
        return {"dayofyear": time.dayofyr, "month": time.month, "hour": time.hour}[
            season
        ]
    day = time.astype("datetime64[D]")
    if season == "hour":
        return int((time - day) / np.timedelta64(1, "h"))
    if season == "month":
        return int(time.astype("datetime64[M]").astype(int) % 12) + 1
    return (
        int((day - time.astype("datetime64[Y]").astype("datetime64[D]")).astype(int))
        + 1
    )
