"""Checks of config fields, for `validate(config)`: one line that names the field."""

import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from ensjax.experiment.configs import load_module
from ensjax.experiment.exit_codes import ConfigError, one_line

T = TypeVar("T")


def choose(field: str, name: str, known: Mapping[str, T]) -> T:
    """`known[name]`; raises `ConfigError` that lists the known names.

    Args:
        field: dotted, without "config.".
        name: the field's value.
        known: what there is.
    """
    if name not in known:
        raise ConfigError(
            f"config.{field} is one of {', '.join(sorted(known))}; got {name!r}."
        )
    return known[name]


def check_options(
    field: str, function: Callable, *arguments: Any, options: Mapping[str, Any]
) -> None:
    """Raises `ConfigError`, with the options that `function` has, for other ones."""
    signature = inspect.signature(function)
    try:
        signature.bind(*arguments, **options)
    except TypeError as error:
        known = list(signature.parameters)[len(arguments) :]
        raise ConfigError(
            f"{field}: {one_line(error)}; the options are {', '.join(known)}. Fields"
            " are added and removed in the config file."
        ) from error


def check_numbers(
    config: Mapping[str, Any],
    fields: Iterable[str],
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
) -> None:
    """Raises `ConfigError` unless every number in the fields is finite and in bounds.

    Args:
        config: of the run.
        fields: dotted names such as "model.hidden", without "config."; a field holds a
            number, or a tuple of at least one number.
        at_least, above, at_most, below: bounds; None for no bound.
    """
    bounds = (
        ("at least", at_least, lambda value: value >= at_least),
        ("above", above, lambda value: value > above),
        ("at most", at_most, lambda value: value <= at_most),
        ("below", below, lambda value: value < below),
    )
    bounds = [bound for bound in bounds if bound[1] is not None]
    words = " and ".join(f"{word} {limit:g}" for word, limit, _ in bounds) or "finite"
    for field in fields:
        value = _field_of(config, field)
        values = value if isinstance(value, (tuple, list)) else (value,)
        good = len(values) > 0 and all(
            isinstance(v, (int, float))
            and not isinstance(v, bool)
            and math.isfinite(v)
            and all(holds(v) for _, _, holds in bounds)
            for v in values
        )
        if not good:
            kind = "numbers" if isinstance(value, (tuple, list)) else "a number"
            raise ConfigError(f"config.{field} must be {kind} {words}; got {value!r}.")


def check_multiples(
    config: Mapping[str, Any], fields: Iterable[str], *, of: str = "steps_per_call"
) -> None:
    """Raises `ConfigError` unless every field is a multiple of the field `of`.

    Args:
        config: of the run.
        fields, of: dotted names of whole numbers, without "config."; `of` is positive.
    """
    unit = _field_of(config, of)
    for field in fields:
        value = _field_of(config, field)
        if value % unit:
            raise ConfigError(
                f"config.{field}={value} must be a multiple of config.{of}={unit}."
            )


def _field_of(config, field):
    for part in field.split("."):
        config = config[part]
    return config


def load_beside(file: str, name: str) -> ModuleType:
    """The module `name`, which lies beside `file` in a checkout and in a wheel.

    Experiments of several files load the others so: `load_beside(__file__, "claims")`.
    """
    return load_module(Path(file).with_name(f"{name}.py"), "experiment")
