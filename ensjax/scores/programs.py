"""Programs of `evaluate` and its like: compiled once for equal functions and shapes.

A `jax.jit` of a function that is made anew at every call compiles anew at every call.
Here the functions that make the numbers are static arguments of programs that live with
the module, and `With` gives them options that compare by value.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import jax
import numpy as np

from ensjax.scores.ends import basic_ends, percentile_ends, wilson_ends, within
from ensjax.scores.intervals import Interval, draw_metric


@dataclasses.dataclass(frozen=True)
class With:
    """`function` with options, as `functools.partial`, but equal where these are.

    Attributes:
        function: of arrays.
        options: pairs of a name and a hashable value.
    """

    function: Callable[..., Any]
    options: tuple[tuple[str, Hashable], ...] = ()

    @classmethod
    def of(cls, function, **options):
        return cls(function, tuple(options.items()))

    def __call__(self, *arguments, **more):
        return self.function(*arguments, **dict(self.options), **more)


def unwrap(function: Callable[..., Any]) -> tuple[Callable[..., Any], dict[str, Any]]:
    """What `With` and `functools.partial` are of, and the options they give it.

    Of a function that takes a `score` among its options, it is the score.
    """
    options = {}
    while True:
        if isinstance(function, With):
            options = dict(function.options) | options
            function = options.pop("score", function.function)
        elif isinstance(function, functools.partial) and not function.args:
            options = function.keywords | options
            function = function.func
        else:
            return function, options


def known_name(
    function: Callable[..., Any], *tables: Mapping[str, Callable[..., Any]]
) -> str:
    """The name under which the tables hold the function; "" if none does.

    What a user calls a function of his own says nothing of its range.
    """
    function, _ = unwrap(function)
    for table in tables:
        for name, known in table.items():
            if unwrap(known)[0] is function:
                return name
    return ""


def number_of_bins(function: Callable[..., Any]) -> int | None:
    """The `num_bins` that a score works with; None if it has no bins."""
    function, options = unwrap(function)
    if "num_bins" in options:
        return int(options["num_bins"])
    try:
        default = inspect.signature(function).parameters["num_bins"].default
    except (KeyError, TypeError, ValueError):
        return None
    return default if isinstance(default, int) else None


@functools.partial(jax.jit, static_argnames="values")
def _found(weight, given, *, values):
    return values(weight, *given)


@functools.partial(
    jax.jit, static_argnames=("values", "num_rows", "num_groups", "num_resamples")
)
def _drawn(key, weight, groups, given, *, values, num_rows, num_groups, num_resamples):
    def resampled(counts):
        return values(counts * weight, *given)

    _, draws = draw_metric(
        key, resampled, num_rows, groups, num_groups, num_resamples, block=64
    )
    return draws


def draw(values, rows, bootstrap, given):
    """What `values(weight, *given)` returns, on every resample: `[resample, ...]`."""
    draws = _drawn(
        jax.random.key(bootstrap.seed),
        rows.weight,
        rows.groups,
        tuple(given),
        values=values,
        num_rows=len(rows.weight),
        num_groups=rows.num_groups,
        num_resamples=bootstrap.num_resamples,
    )
    return jax.tree.map(np.asarray, draws)


def kept_rows(rows, arrays):
    """The rows that have a weight, and what they have of each array `[batch, ...]`.

    Raises:
        ValueError: if no row has a weight or an array has other rows.
    """
    num_rows = len(rows.weight)
    for name, values in arrays.items():
        if np.shape(values)[:1] != (num_rows,):
            raise ValueError(
                f"{name} must be [batch] = [{num_rows}, ...]; got shape"
                f" {np.shape(values)}."
            )
    at = np.flatnonzero(np.asarray(rows.weight) != 0)
    if not len(at):
        raise ValueError("No row counts: all have weight 0.")
    if len(at) == num_rows:
        return rows, list(arrays.values())
    left = rows._replace(weight=np.asarray(rows.weight)[at])
    if rows.groups is not None:
        names, groups = np.unique(rows.groups[at], return_inverse=True)
        left = left._replace(groups=groups, num_groups=len(names))
    return left, [values[at] for values in map(_indexed, arrays.values())]


def _indexed(values):
    return values if isinstance(values, jax.Array) else np.asarray(values)


def score_one(
    values: Callable[..., dict[str, jax.Array]],
    arrays: Mapping[str, jax.Array],
    rows: Any,
    bootstrap: Any,
    *,
    more: tuple[Any, ...] = (),
    proportions: Mapping[str, Any] | None = None,
    derived: Mapping[str, Callable[..., Interval]] | None = None,
    biased: tuple[str, ...] = (),
    ranges: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """`values(weight, *arrays, *more) -> {name: [...]}`, with ends of intervals.

    Args:
        values: a function of a module, or `With` of one: it is compiled once.
        arrays: name -> `[batch, ...]`; rows without weight are removed.
        rows: `weight`, `groups` and `num_groups`.
        bootstrap: `num_resamples`, `confidence` and `seed`.
        more: pytrees that have no rows.
        proportions: name -> the weights `[..., batch]` of rows that it is a share of;
            their ends are Wilson's where rows have no groups.
        derived: name -> `ends(value, ends_by_name, confidence)`, likewise where rows
            have no groups, of the ends of all; in order.
        biased: names of what has the ends of the basic bootstrap; others have
            percentiles.
        ranges: name -> the score whose range in `ends.RANGES` it has; None: its own.

    Returns:
        Floats, or lists of them.
    """
    bootstrap.check()
    rows, given = kept_rows(rows, arrays)
    given = (*given, *more)
    found = _found(rows.weight, given, values=values)
    found = {name: np.asarray(value) for name, value in found.items()}
    result = {name: value.tolist() for name, value in found.items()}
    if bootstrap.num_resamples:
        draws = draw(values, rows, bootstrap, given)
        own = {}
        for name, value in found.items():
            like = (ranges or {}).get(name, name)
            told = (like, value, draws[name], bootstrap.confidence)
            if name in (proportions or {}) and rows.groups is None:
                own[name] = wilson_ends(value, proportions[name], bootstrap.confidence)
            elif name in biased:
                own[name] = basic_ends(*told)
            else:
                own[name] = percentile_ends(*told)
        for name, ends in (derived or {}).items():
            if name in found and rows.groups is None:
                made = ends(found[name], own, bootstrap.confidence)
                own[name] = within((ranges or {}).get(name, name), made)
        for name, ends in own.items():
            result |= listed(name, ends)
    return result | {"num_rows": len(rows.weight)}


def listed(name: str, ends: Interval) -> dict[str, Any]:
    """`name_low` and `name_high` as floats or lists."""
    return {
        f"{name}_low": np.asarray(ends.low, float).tolist(),
        f"{name}_high": np.asarray(ends.high, float).tolist(),
    }
