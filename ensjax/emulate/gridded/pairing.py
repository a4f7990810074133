"""`pair`: forecasts with what came true at the valid time of each case and lead."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ensjax.emulate.gridded import units
from ensjax.emulate.gridded.layout import GriddedError
from ensjax.emulate.gridded.same_grid import on_same_grid
from ensjax.emulate.gridded.standard import is_forecast, standard_dataset
from ensjax.emulate.gridded.streaming import Pairs, channels_of
from ensjax.emulate.gridded.times import calendar_of, positions, valid_times


def pair(
    forecast: Any,
    truth: Any = None,
    *,
    variables: Sequence[str] | None = None,
    names: tuple[str, str] = ("forecast", "truth"),
    check_units: bool = True,
) -> Pairs:
    """Forecasts with the truth at the valid time of each case and lead; reads nothing.

    Args:
        forecast: a dataset of xarray with leads, in any layout that can be guessed.
        truth: by valid time; or with leads, for the same starts; or None. With dates
            and a single lead of 0, as analyses are in some files, it is by valid time.
        variables: those to keep, by default all that both have.
        names: of both, for errors.
        check_units: whether units that differ are an error, as `is_same_unit` knows
            them; where one of both has none nothing is checked.

    Returns:
        The pairs. Where the truth has no such time its values will be NaN. Times that
        are less than a second apart are the same: files round them.

    Raises:
        GriddedError: if grids, levels, units or calendars differ, a dimension is empty,
            no variable is in both, or no valid time of the forecasts is in the truth.
    """
    forecast = standard_dataset(forecast, variables=variables, name=names[0])
    if not is_forecast(forecast):
        raise GriddedError(
            f"{names[0]} has no dimension of leads, so it is no forecast; there are"
            f" {', '.join(map(str, forecast.dims))}. Say mapping={{'lead': ...}}."
        )
    _check_not_empty(forecast, names[0])
    if truth is None:
        return Pairs(forecast, None, channels_of(forecast), None, None, names)
    truth = standard_dataset(truth, name=names[1])
    _check_not_empty(truth, names[1])
    if "member" in truth.dims:
        if truth.sizes["member"] > 1:
            raise GriddedError(
                f"{names[1]} has {truth.sizes['member']} members; the truth is one:"
                " choose with truth.isel(member=0)."
            )
        truth = truth.squeeze("member", drop=True)
    if _is_analysis(truth):
        truth = truth.squeeze("lead", drop=True)
    shared = [v for v in forecast.data_vars if v in truth.data_vars]
    missing = [v for v in variables or () if v not in shared]
    if missing or not shared:
        raise GriddedError(
            f"{names[1]} has not"
            f" {', '.join(map(repr, missing or forecast.data_vars))}; it has"
            f" {', '.join(map(repr, truth.data_vars))}. Rename what is the same."
        )
    forecast, truth = forecast[shared], truth[shared]
    truth = on_same_grid(forecast, truth, names)
    if check_units:
        units.check_units(shared, forecast, truth, names)
    rows, lead_rows = _truth_rows(forecast, truth, names)
    return Pairs(forecast, truth, channels_of(forecast), rows, lead_rows, names)


def _is_analysis(truth):
    """Whether all of it is valid at its start."""
    if not is_forecast(truth) or truth["time"].dtype.kind not in "MO":
        return False
    lead = truth["lead"].values
    return len(lead) == 1 and lead.dtype.kind == "m" and lead[0] == np.timedelta64(0)


def _check_not_empty(dataset, name):
    for dim, size in dataset.sizes.items():
        if size == 0:
            words = _EMPTY.get(dim, f"nothing along {dim!r}")
            raise GriddedError(f"{name} has {words}: the length of {dim!r} is 0.")


_EMPTY = {"time": "no times", "member": "no members", "lead": "no leads"}


def _truth_rows(forecast, truth, names):
    time, lead = forecast["time"].values, forecast["lead"].values
    times = truth["time"].values
    ours, theirs = calendar_of(time), calendar_of(times)
    if ours != theirs:
        raise GriddedError(
            f"{names[0]} counts time in the calendar {ours!r}, {names[1]} in"
            f" {theirs!r}: their valid times cannot be compared."
        )
    if not is_forecast(truth):
        rows, lead_rows = positions(valid_times(time, lead), times), None
    else:
        starts = positions(time, times)
        lead_rows = positions(lead, truth["lead"].values)
        rows = np.repeat(starts[:, None], len(lead), axis=1)
        rows[:, lead_rows < 0] = -1
    if not np.any(rows >= 0):
        raise GriddedError(
            f"no valid time of {names[0]} (starts {time[0]} to {time[-1]}, leads"
            f" {lead[0]} to {lead[-1]}) is among the times of {names[1]} ({times[0]} to"
            f" {times[-1]})."
        )
    return rows, lead_rows
