"""Fields of another framework's `config.json`: read with defaults, refused by name."""

import math
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any

ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
}


def field(config: Mapping[str, Any], name: str, default: Any = None) -> Any:
    """The field, or its default where it is missing or null.

    Raises:
        ValueError: if there is neither.
    """
    value = config.get(name)
    value = default if value is None else value
    if value is None:
        raise ValueError(f"config.json: {name} is missing.")
    return value


def require(
    config: Mapping[str, Any], name: str, allowed: tuple, default: Any = None
) -> None:
    """Raises `ValueError` unless a field has one of the values that are supported.

    A field that is missing or null has the default; where that is `None`, it passes.
    """
    value = config.get(name)
    value = default if value is None else value
    if value is not None and value not in allowed:
        raise ValueError(
            f"config.json: {name} is {value!r}; supported is"
            f" {' or '.join(map(repr, allowed))}."
        )


def architecture(config: Mapping[str, Any], allowed: tuple[str, ...]) -> str:
    """The class that wrote the checkpoint, by default the first that is supported.

    Raises:
        ValueError: if it is another one.
    """
    names = config.get("architectures") or allowed[:1]
    if not _is_list(names) or len(names) != 1 or names[0] not in allowed:
        raise ValueError(
            f"config.json: architectures is {names!r}; supported is"
            f" {' or '.join(allowed)}."
        )
    return names[0]


def activation(config: Mapping[str, Any], name: str, default: str) -> str:
    """The field of an activation, by our name for it.

    Raises:
        ValueError: if it is not supported.
    """
    require(config, name, tuple(ACTIVATIONS), default)
    return ACTIVATIONS[field(config, name, default)]


def size(config: Mapping[str, Any], name: str, default: int | None = None) -> int:
    """A field that counts something, from 1.

    Raises:
        ValueError: if it is missing without a default, or no integer from 1.
    """
    return _size(name, field(config, name, default))


def optional_size(config: Mapping[str, Any], name: str) -> int | None:
    """As `size`, of a field that may be missing or null: `None` then."""
    return None if config.get(name) is None else size(config, name)


def sizes(
    config: Mapping[str, Any], name: str, default: tuple[int, ...]
) -> tuple[int, ...]:
    """A field that is a list of sizes, one or more; raises as `size`."""
    values = field(config, name, default)
    if not _is_list(values) or not values:
        raise ValueError(
            f"config.json: {name} is {values!r}; it must be a list of integers from 1."
        )
    return tuple(_size(name, value) for value in values)


def size_pair(config: Mapping[str, Any], name: str, default: int) -> tuple[int, int]:
    """A field that is one size or two, as (height, width); raises as `size`."""
    value = field(config, name, default)
    if not _is_list(value):
        value = (value, value)
    if len(value) != 2:
        raise ValueError(
            f"config.json: {name} is {value!r}; it must be one size, or two (height,"
            " width)."
        )
    return _size(name, value[0]), _size(name, value[1])


def number(config: Mapping[str, Any], name: str, default: float | None = None) -> float:
    """A field that is a finite number, at least 0, such as an epsilon.

    Raises:
        ValueError: if it is missing without a default, or something else.
    """
    value = field(config, name, default)
    is_real = isinstance(value, Real) and not isinstance(value, bool)
    if not is_real or not math.isfinite(value) or value < 0:
        raise ValueError(
            f"config.json: {name} is {value!r}; it must be a finite number of at least"
            " 0."
        )
    return value


def flag(config: Mapping[str, Any], name: str, default: bool) -> bool:
    """A field that is true or false.

    Raises:
        ValueError: if it is something else.
    """
    value = field(config, name, default)
    if not isinstance(value, bool):
        raise ValueError(f"config.json: {name} is {value!r}; it must be true or false.")
    return value


def part(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A field that holds fields itself; empty where it is missing or null.

    Raises:
        ValueError: if it is something else.
    """
    value = config.get(name)
    if value is not None and not isinstance(value, Mapping):
        raise ValueError(f"config.json: {name} is {value!r}; it must hold fields.")
    return value or {}


def num_labels(config: Mapping[str, Any]) -> int:
    """The number of classes: of `id2label`, `num_labels`, or 2, the default there.

    Raises:
        ValueError: if the two fields disagree, or are no classes.
    """
    labels = part(config, "id2label")
    count = optional_size(config, "num_labels")
    if labels and count not in (None, len(labels)):
        raise ValueError(
            f"config.json: num_labels is {count}, but id2label names {len(labels)}"
            " classes; leave num_labels out, or name them all."
        )
    return len(labels) or count or 2


def check_plain(config: Mapping[str, Any]) -> None:
    """Raises `ValueError` for weights that need scales beside them."""
    if config.get("quantization_config"):
        raise ValueError(
            "config.json: quantization_config is given; supported are weights that are"
            " not quantized. Save the model without quantization first."
        )


def _size(name, value):
    if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
        raise ValueError(
            f"config.json: {name} is {value!r}; it must be an integer from 1."
        )
    return int(value)


def _is_list(value):
    return isinstance(value, Sequence) and not isinstance(value, str)
