"""Checks of config fields, for `validate(config)`: one line that names the field."""

import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from ensjax.experiment.claims import SCALES
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
    are_whole: bool = False,
) -> None:
    """Raises `ConfigError` unless every number in the fields is finite and in bounds.

    Args:
        config: of the run.
        fields: dotted names such as "model.hidden", without "config."; a field holds a
            number, or a tuple of at least one number.
        at_least, above, at_most, below: bounds; None for no bound.
        are_whole: whether they have to be integers, such as counts and leads.
    """
    kinds = int if are_whole else (int, float)
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
            isinstance(v, kinds)
            and not isinstance(v, bool)
            and math.isfinite(v)
            and all(holds(v) for _, _, holds in bounds)
            for v in values
        )
        if not good:
            kind = "whole number" if are_whole else "number"
            is_many = isinstance(value, (tuple, list))
            kind = f"{kind}s" if is_many else f"a {kind}"
            raise ConfigError(f"config.{field} must be {kind} {words}; got {value!r}.")


def check_rising(
    config: Mapping[str, Any],
    fields: Iterable[str],
    *,
    at_least: float | None = None,
    at_most: float | None = None,
    num_least: int = 1,
    are_whole: bool = True,
) -> None:
    """Raises `ConfigError` unless each field holds numbers in bounds that rise.

    Args:
        config: of the run.
        fields: dotted names, without "config.", of tuples.
        at_least, at_most, are_whole: as for `check_numbers`.
        num_least: how many numbers a tuple has at least.
    """
    bounds = dict(at_least=at_least, at_most=at_most, are_whole=are_whole)
    for field in fields:
        check_numbers(config, (field,), **bounds)
        value = _field_of(config, field)
        is_many = isinstance(value, (tuple, list)) and len(value) >= num_least
        if not is_many or any(a >= b for a, b in zip(value, value[1:])):
            raise ConfigError(
                f"config.{field} must be {num_least} or more numbers that rise; got"
                f" {value!r}."
            )


def check_multiples(
    config: Mapping[str, Any],
    fields: Iterable[str],
    *,
    of: str | int = "steps_per_call",
) -> None:
    """Raises `ConfigError` unless every field is a multiple of `of`.

    Args:
        config: of the run.
        fields: dotted names of whole numbers or of tuples of them, without "config.".
        of: such a field of one number, or the number itself; it is positive.
    """
    unit, text = of, f"{of}"
    if isinstance(of, str):
        unit = _field_of(config, of)
        text = f"config.{of}={unit}"
    for field in fields:
        value = _field_of(config, field)
        values = value if isinstance(value, (tuple, list)) else (value,)
        if any(v % unit for v in values):
            raise ConfigError(f"config.{field}={value} must be a multiple of {text}.")


def check_blocks(config: Mapping[str, Any], fields: Iterable[str]) -> None:
    """Raises `ConfigError` for what is no `block` of `fit`: "auto", None, a count."""
    for field in fields:
        value = _field_of(config, field)
        is_count = isinstance(value, int) and not isinstance(value, bool) and value > 0
        if not (is_count or value is None or value == "auto"):
            raise ConfigError(
                f'config.{field} must be "auto", None (all at once) or a whole number'
                f" at least 1; got {value!r}."
            )


def check_run(config: Mapping[str, Any], *, batch_size: str | None = None) -> None:
    """Raises `ConfigError` for a `seed` or a `scale` that no run can have.

    `scale` is a word that claims know. Sizes of `mesh` are for `load_config` to check.

    Args:
        config: of the run.
        batch_size: the field of a batch that is split over the axis `data`, if any.
    """
    check_numbers(config, ("seed",), at_least=0, below=2**31, are_whole=True)
    choose("scale", _field_of(config, "scale"), dict.fromkeys(SCALES))
    if batch_size is not None and _field_of(config, "mesh.data") > 0:
        check_numbers(config, (batch_size,), at_least=1, are_whole=True)
        check_multiples(config, (batch_size,), of="mesh.data")


def _field_of(config, field):
    inside = config
    for part in field.split("."):
        try:
            inside = inside[part]
        except KeyError:
            raise ConfigError(f"config.{field} must be there; it is not.") from None
    return inside


def load_beside(file: str, name: str) -> ModuleType:
    """The module `name`, which lies beside `file` in a checkout and in a wheel.

    Experiments of several files load the others so: `load_beside(__file__, "claims")`.
    """
    return load_module(Path(file).with_name(f"{name}.py"), "experiment")
