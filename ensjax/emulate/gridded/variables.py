"""Which variables of a gridded file are read: those on its grid, each by its name."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ensjax.emulate.gridded.layout import GriddedError, Layout


def unstack_variables(dataset: Any, layout: Layout, name: str) -> Any:
    """Variables that are rows of one array as variables of their own.

    Raises:
        GriddedError: if they have no names, or names that are taken.
    """
    dim = layout.variable
    if dim is None:
        return dataset
    if dim not in dataset.dims:
        return dataset.drop_vars(dim)
    labels = [str(v) for v in dataset[dim].values] if dim in dataset.coords else None
    if labels is None or len(set(labels)) < len(labels):
        raise GriddedError(
            f"{name}: the dimension {dim!r} of variables needs their names as its"
            f" coordinate, each once; got {labels}."
        )
    arrays = {v: a for v, a in dataset.data_vars.items() if dim in a.dims}
    if len(arrays) != 1:
        raise GriddedError(
            f"{name}: {len(arrays)} variables have the dimension {dim!r}"
            f" ({', '.join(map(str, arrays))}); expected one."
        )
    (stacked, array), *_ = arrays.items()
    rest = dataset.drop_vars([stacked, dim])
    clash = sorted(set(labels) & set(map(str, rest.variables)))
    if clash:
        raise GriddedError(f"{name}: {', '.join(clash)} of {dim!r} are there already.")
    rows = {v: array.isel({dim: i}).drop_vars(dim) for i, v in enumerate(labels)}
    units = array.attrs.get("units_of_variables")
    for each, row in rows.items():
        row.attrs = dict(array.attrs)
        if units is not None:
            row.attrs["units"] = dict(zip(labels, np.atleast_1d(units)))[each]
            row.attrs.pop("units_of_variables")
    return rest.assign(rows)


def variables_on_the_grid(
    dataset: Any,
    layout: Layout,
    variables: Sequence[str] | None,
    name: str,
    report: Callable[[str], None] | None,
) -> Any:
    """The variables that have all dimensions of space, by default also one of time.

    Raises:
        GriddedError: if there is no grid, or none of the variables (or not all that are
            named) lies on it.
    """
    space = (
        [layout.lat, layout.lon] if layout.lat is not None else list(layout.space or ())
    )
    if layout.lat is None and layout.space is None:
        raise GriddedError(
            f"{name}: there is no latitude among the dimensions"
            f" ({', '.join(map(str, dataset.dims))}). Say what they are:"
            " mapping={'lat': ..., 'lon': ...}, or mapping={'space': ('site',)} for"
            " other grids."
        )
    if layout.lat is not None and layout.lon is None:
        raise GriddedError(
            f"{name}: there is a latitude ({layout.lat!r}) but no longitude among"
            f" {', '.join(map(str, dataset.dims))}. Say: mapping={{'lon': ...}}."
        )
    for role in (layout.lat, layout.lon):
        if role is not None and role not in dataset.dims:
            raise GriddedError(
                f"{name}: {role!r} is a coordinate, not a dimension; one column needs"
                f" dataset.expand_dims({role!r}) first."
            )
    if variables:
        dataset = keep_variables(dataset, variables, name)
    inside = [v for v, a in dataset.data_vars.items() if set(space) <= set(a.dims)]
    if variables and len(inside) < len(variables):
        outside = [v for v in variables if v not in inside]
        raise GriddedError(
            f"{name}: {', '.join(map(repr, outside))} has not the dimensions"
            f" {', '.join(map(str, space))} of the grid."
        )
    numeric = [v for v in inside if dataset[v].dtype.kind in "iuf"]
    if not numeric:
        raise GriddedError(
            f"{name}: no variable of numbers has the dimensions"
            f" {', '.join(map(str, space))}; there are"
            f" {', '.join(map(str, dataset.data_vars)) or 'none'}."
        )
    varying = {layout.time, layout.valid_time, layout.lead} & set(dataset.dims)
    moving = [v for v in numeric if varying & set(dataset[v].dims)]
    if moving and not variables:
        numeric = moving
    left_out = [str(v) for v in dataset.data_vars if v not in numeric]
    if left_out and report is not None:
        report(
            f"{name}: left out, not on the grid or not in time: {', '.join(left_out)}"
        )
    # Indexing by coordinates keeps those that a subset of variables would lose.
    return dataset[numeric].assign_coords(dataset.coords)


def keep_variables(dataset: Any, variables: Sequence[str], name: str) -> Any:
    """These variables and no others.

    Raises:
        GriddedError: if one is not there; says which are.
    """
    missing = [v for v in variables if v not in dataset.data_vars]
    if missing:
        raise GriddedError(
            f"{name}: there is no variable {', '.join(map(repr, missing))}; there are"
            f" {', '.join(map(str, dataset.data_vars))}."
        )
    return dataset[list(variables)]
