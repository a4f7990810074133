"""Whether what is compared lies on one grid, at the same levels."""

from typing import Any

import numpy as np

from ensjax.emulate.gridded.layout import GriddedError
from ensjax.emulate.gridded.standard import coordinate, space_of


def on_same_grid(forecast: Any, other: Any, names: tuple[str, str]) -> Any:
    """`other` with the levels of the forecast, if both are on one grid.

    A level that stands beside as a number (a scalar coordinate) is a level like others:
    it is looked for among the other's levels, and must be its own if it has one.

    Args:
        forecast, other: standard datasets.
        names: of both, for errors.

    Raises:
        GriddedError: if they are not; names both, and the dimension or the levels.
    """
    other = _at_its_levels(forecast, other, names)
    for dim in [d for d in ("level", *space_of(forecast)) if d in forecast.dims]:
        if dim not in other.dims:
            raise GriddedError(
                f"{names[1]} has no dimension {dim!r}, but {names[0]} has;"
                f" it has {', '.join(map(str, other.dims))}."
            )
        ours, theirs = coordinate(forecast, dim), coordinate(other, dim)
        if dim == "level" and not np.array_equal(ours, theirs):
            rows = _positions_of_levels(ours, theirs)
            if np.all(rows >= 0):
                other, theirs = other.isel(level=rows), theirs[rows]
        is_same = len(ours) == len(theirs) and (
            np.allclose(ours, theirs, rtol=0, atol=1e-4)
            if ours.dtype.kind in "iuf" and theirs.dtype.kind in "iuf"
            else np.array_equal(ours, theirs)
        )
        if not is_same:
            raise GriddedError(
                f"{names[0]} and {names[1]} differ in {dim}: {_describe(ours)} against"
                f" {_describe(theirs)}. Bring one to the other's grid with"
                " regrid_dataset, or select the levels that both have."
            )
    return other


def check_lone_levels(first: Any, second: Any, names: tuple[str, str]) -> None:
    """Raises `GriddedError` if each has one level beside, and they are two."""
    ours, theirs = lone_level(first), lone_level(second)
    if ours is None or theirs is None or np.isclose(ours, theirs, rtol=1e-6, atol=0):
        return
    raise GriddedError(
        f"{names[0]} is at level {ours:g}, {names[1]} at level {theirs:g}. Take the"
        " same of both; if a number has no meaning for the variables, leave it out:"
        " mapping={'level': None} (--map FILE:level=none)."
    )


def lone_level(dataset: Any) -> float | None:
    """The level that stands beside as a number, if there is one."""
    if "level" not in dataset.coords or dataset["level"].ndim:
        return None
    value = dataset["level"].values
    return float(value) if value.dtype.kind in "iuf" else None


def _at_its_levels(forecast, other, names):
    """`other`, each variable with a dimension of levels where the forecast has one."""
    check_lone_levels(forecast, other, names)
    ours, theirs = lone_level(forecast), lone_level(other)
    shared = [v for v in other.data_vars if v in forecast.data_vars]
    at = {v: ["level" in ds[v].dims for ds in (forecast, other)] for v in shared}
    changed = {}
    for name in shared:
        if at[name] == [True, False]:
            if theirs is None:
                _refuse(name, forecast, names, names[1])
            array = other[name].drop_vars("level").expand_dims(level=[theirs])
            changed[name] = array
        elif at[name] == [False, True]:
            levels = coordinate(other, "level")
            if ours is None:
                _refuse(name, other, names[::-1], names[0])
            (row,) = _positions_of_numbers(np.array([ours]), levels)
            if row < 0:
                raise GriddedError(
                    f"{names[0]} has {name!r} at level {ours:g}, {names[1]} at"
                    f" {_describe(levels)}."
                )
            changed[name] = other[name].isel(level=row, drop=True)
    if not changed:
        return other
    rest = other.drop_vars([*changed, *(["level"] if theirs is not None else [])])
    if not any("level" in array.dims for array in rest.data_vars.values()):
        rest = rest.drop_vars("level", errors="ignore")
    return rest.assign(changed)[list(other.data_vars)]


def _refuse(variable, leveled, names, flat):
    raise GriddedError(
        f"{names[0]} has {variable!r} at levels"
        f" {_describe(coordinate(leveled, 'level'))}, but {flat} has it without a"
        f" level. Choose one: .sel(level=...); or say which {flat} is at:"
        " .assign_coords(level=...)."
    )


def _positions_of_levels(wanted, available):
    """Where each level, a number or a word, is among others; -1 where it is not."""
    if {wanted.dtype.kind, available.dtype.kind} <= set("iuf"):
        return _positions_of_numbers(wanted, available)
    place = {level: i for i, level in enumerate(available.tolist())}
    return np.array([place.get(level, -1) for level in wanted.tolist()], np.int64)


def _positions_of_numbers(wanted, available):
    """Where each number is among others, -1 where it is not."""
    is_equal = np.isclose(wanted[:, None], available[None, :], rtol=1e-6, atol=0)
    return np.where(is_equal.any(axis=1), is_equal.argmax(axis=1), -1)


def _describe(values):
    if len(values) < 4:
        return f"{values.tolist()}"
    return f"{len(values)} from {values[0]} to {values[-1]}"
