"""Fields of a config set from the command line, and names shown to the user."""

import ast
import contextlib
import difflib
from collections.abc import Iterator, Sequence
from typing import Any

import ml_collections

from ensjax.experiment.exit_codes import ConfigError, one_line

# A field that holds one of these may hold a number as well.
_WORDS = ("auto", "all")


def split_overrides(
    arguments: Sequence[str],
) -> tuple[list[str], list[tuple[str, str]]]:
    """Takes `--config.key=value` and `--config.key value` out of a command line.

    Returns:
        The other arguments, and pairs (key, text).

    Raises:
        ConfigError: if a key has no value.
    """
    rest, overrides = [], []
    waiting = iter(arguments)
    for argument in waiting:
        if not argument.startswith("--config."):
            rest.append(argument)
            continue
        key, equals, text = argument.removeprefix("--config.").partition("=")
        if not equals:
            text = next(waiting, None)
            if text is None or text.startswith("--"):
                raise ConfigError(f"--config.{key} needs a value: --config.{key}=...")
        overrides.append((key, text))
    return rest, overrides


def apply_overrides(
    config: ml_collections.ConfigDict, overrides: Sequence[tuple[str, str]]
) -> None:
    """Sets fields from text, each typed by the field that is already there.

    One that holds "auto" or "all", such as how many members run at once, takes a whole
    number, too.

    Raises:
        ConfigError: for an unknown field (names the nearest) or text of another type.
    """
    fields = dict(flatten_fields(config))
    for key, text in overrides:
        if key not in fields:
            inside = [field for field in fields if field.startswith(f"{key}.")]
            if inside:
                raise ConfigError(
                    f"config.{key} is a section; its fields are {join_names(inside)}."
                )
            raise ConfigError(
                f"unknown config key {key!r}{name_nearest(key, list(fields))}."
            )
        value = _parse(key, text, fields[key], _field_type(config, key))
        try:
            with _any_type(config, key, value):
                config.update_from_flattened_dict({key: value})
        except (TypeError, ValueError) as error:
            raise ConfigError(f"config.{key}: {one_line(error)}") from error


def flatten_fields(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Pairs (dotted name, value) of every field of a config or nested dict."""
    for key, value in config.items():
        if isinstance(value, (dict, ml_collections.ConfigDict)):
            yield from flatten_fields(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def name_nearest(name: str, known: Sequence[str]) -> str:
    """`; the nearest is "x"`, by the whole dotted key, else by its last part."""
    match = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if not match:
        last = {key.rpartition(".")[2]: key for key in known}
        tail = difflib.get_close_matches(name.rpartition(".")[2], last, n=1, cutoff=0.6)
        match = [last[key] for key in tail]
    return f"; the nearest is {match[0]!r}" if match else ""


def join_names(names: Sequence[str]) -> str:
    """The names, separated by commas."""
    return ", ".join(names)


def _any_type(config, key, value):
    """Lets a field of a word take a number."""
    is_number = isinstance(value, int) and _field_type(config, key) is str
    return config.ignore_type() if is_number else contextlib.nullcontext()


def _field_type(config: ml_collections.ConfigDict, key: str) -> type:
    *sections, field = key.split(".")
    for section in sections:
        config = config[section]
    return config.get_type(field)


def _parse(key: str, text: str, old: Any, kind: type) -> Any:
    """`text` as a value of the field's type; `1` for a float becomes 1.0."""
    try:
        if kind is bool:
            return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
        if kind in (int, float):
            return kind(text)
        if kind is str:
            return int(text) if old in _WORDS and text.isdecimal() else text
        if kind is type(None):
            return _literal_or_text(text)
        if kind is tuple:
            value = ast.literal_eval(text)
            value = value if isinstance(value, tuple) else (value,)
            return _like(value, old)
    except (ValueError, KeyError, SyntaxError, TypeError) as error:
        raise ConfigError(
            f"config.{key} is of type {kind.__name__} (now {old!r}); got {text!r}."
        ) from error
    raise ConfigError(
        f"config.{key} is of type {kind.__name__}, which the command line cannot set;"
        " edit the file (lists: use a tuple there)."
    )


def _literal_or_text(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _like(value: tuple, old: tuple | None) -> tuple:
    """`value` with items of the types in `old`; whole numbers become floats there."""
    kinds = {type(item) for item in old or ()}
    if kinds == {float} and all(type(item) in (int, float) for item in value):
        return tuple(float(item) for item in value)
    if len(kinds) == 1 and any(type(item) not in kinds for item in value):
        raise TypeError
    return value
