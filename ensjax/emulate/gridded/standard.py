"""`standard_dataset`: any layout of a gridded file as one, without reading the fields.

The result is a dataset of xarray that still reads lazily. Its dimensions are those of
`DIMS`, as far as they are there, then other dimensions of space:

    time     start of the forecast (dates, or the integers of a simulator's `case`); in
             a dataset without leads, what the fields are of
    member   ids, integers
    lead     timedelta64[ns], or a simulator's own time
    level    ascending; or a number beside, where all is at one
    lat      degrees north, ascending
    lon      degrees east in [0, 360), ascending; those of a region that crosses
             Greenwich begin at its western end, as -20 to 20
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ensjax.emulate.gridded.dimensions import (
    with_latitudes,
    with_levels,
    with_longitudes,
    with_members,
    with_times,
)
from ensjax.emulate.gridded.layout import SPACE_DIMS, GriddedError, find_layout
from ensjax.emulate.gridded.variables import (
    keep_variables,
    unstack_variables,
    variables_on_the_grid,
)

DIMS = ("time", "member", "lead", "level", "lat", "lon")
# The attribute by which a dataset is known to be one of ours already.
_MARK = "ensjax_layout"
# The attribute that says how many starts a chunk of the file holds.
CHUNK = "ensjax_time_chunk"
OWN_ATTRIBUTES = (_MARK, CHUNK)


def standard_dataset(
    dataset: Any,
    mapping: Mapping[str, Any] | None = None,
    *,
    variables: Sequence[str] | None = None,
    seasons: Sequence[str] = (),
    name: str = "dataset",
    report: Callable[[str], None] | None = None,
) -> Any:
    """The dataset with our names, orders and units; fields stay unread.

    Args:
        dataset: of xarray, as opened or made.
        mapping: as in `find_layout`.
        variables: those to keep; by default all that lie on the grid.
        seasons: dimensions of a climatology, which stand in the place of time.
        name: of the file, for errors.
        report: is told each guess, and what was left out, in a line.

    Returns:
        A dataset whose variables are `[time, member, lead, level, lat, lon]`, or what
        they have of it; a forecast always has time, member and lead, a truth time.

    Raises:
        GriddedError: if the layout is unclear, a variable has a dimension that is
            none of these, a coordinate is missing, or one comes twice.
    """
    if not hasattr(dataset, "data_vars"):
        raise GriddedError(
            f"{name}: expected a Dataset of xarray, got {type(dataset).__name__}; a"
            " DataArray becomes one with .to_dataset(name=...)."
        )
    is_marked = dataset.attrs.get(_MARK) == "standard"
    if is_marked and not mapping and _is_unchanged(dataset, seasons):
        return keep_variables(dataset, variables, name) if variables else dataset
    layout = find_layout(dataset, mapping, name=name, report=report)
    chunk = _chunk_of(dataset, layout.time)
    dataset = unstack_variables(dataset, layout, name)
    dataset = variables_on_the_grid(dataset, layout, variables, name, report)
    if not seasons:
        dataset = with_times(dataset, layout, name, counts=is_marked)
    dataset = with_members(dataset, layout, name)
    dataset = with_levels(dataset, layout, name)
    if layout.lat is not None:
        dataset = with_latitudes(dataset, layout, name)
        dataset = with_longitudes(dataset, layout, name, report)
    space = [d for d in layout.space or () if d in dataset.dims]
    _check_dims(dataset, [*seasons, *space], name)
    order = [d for d in (*seasons, *DIMS, *space) if d in dataset.dims]
    dataset = dataset.transpose(*order)
    extra = [c for c in dataset.coords if c not in (*order, "level")]
    dataset = dataset.drop_vars(extra)
    if layout.space is not None:  # names alone would not say it again
        dataset.attrs[SPACE_DIMS] = " ".join(space)
    return dataset.assign_attrs({_MARK: "standard", CHUNK: chunk})


def is_forecast(dataset: Any) -> bool:
    """Whether a standard dataset has leads."""
    return "lead" in dataset.dims


def space_of(dataset: Any) -> list[str]:
    """Dimensions of space of a standard dataset, in the order of its fields."""
    inside = [d for d in dataset.dims if d not in DIMS[:4]]
    return [d for d in ("lat", "lon") if d in inside] + [
        d for d in inside if d not in ("lat", "lon")
    ]


def coordinate(dataset: Any, dim: str) -> np.ndarray:
    """Labels of a dimension; positions where it has none."""
    if dim in dataset.coords:
        return dataset[dim].values
    return np.arange(dataset.sizes[dim])


def _is_unchanged(dataset, seasons):
    """Whether it still is what its mark says: selecting and saving keep attributes."""
    if seasons:
        needed = {d for d in seasons if d in dataset.coords}
        if "time" in dataset.dims:
            return False
    else:
        needed = {"time"}
        if "lead" in dataset.coords:
            needed |= {"member", "lead"}
        elif "member" in dataset.coords:
            needed |= {"member"}
    if not needed <= set(dataset.dims) & set(dataset.coords):
        return False
    front = [d for d in (*seasons, *DIMS[:3]) if d in needed]
    for array in dataset.data_vars.values():
        if list(array.dims[: len(front)]) != front:
            return False
    ordered = [d for d in (*DIMS[:1], *DIMS[2:]) if d in dataset.dims]
    if not all(_is_ascending(coordinate(dataset, d)) for d in ordered):
        return False
    if "lead" not in needed:
        return True
    # In a file, durations are numbers with units: those of a simulator have none.
    kinds = dataset["time"].dtype.kind, dataset["lead"].dtype.kind
    has_units = {"units", "dtype"} & set(dataset["lead"].attrs)
    return kinds[1] == "m" or (kinds[0] in "iu" and not has_units)


def _is_ascending(labels):
    return all(a < b for a, b in zip(labels[:-1], labels[1:]))


def _chunk_of(dataset, dim):
    chunks = [a.encoding.get("preferred_chunks") for a in dataset.data_vars.values()]
    return max((int(c.get(dim, 1)) for c in chunks if c), default=1)


def _check_dims(dataset, space, name):
    known = {*DIMS, *space}
    for each, array in dataset.data_vars.items():
        for dim in array.dims:
            if dim not in known:
                raise GriddedError(
                    f"{name}: variable {each!r} has the dimension {dim!r} of"
                    f" {array.sizes[dim]}, which is none of {', '.join(DIMS)}. Choose"
                    f" one with dataset.isel({dim}=0), leave the variable out with"
                    f" variables=..., or say what it is with mapping={{...: {dim!r}}}."
                )
