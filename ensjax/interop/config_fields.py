"""Fields of another framework's `config.json`: read with defaults, refused by name."""

from collections.abc import Mapping
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
    if len(names) != 1 or names[0] not in allowed:
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


def size_pair(config: Mapping[str, Any], name: str, default: int) -> tuple[int, int]:
    """A field that is one size or two, as (height, width)."""
    value = field(config, name, default)
    if isinstance(value, int):
        return value, value
    height, width = value
    return int(height), int(width)


def num_labels(config: Mapping[str, Any]) -> int:
    """The number of classes: of `id2label`, `num_labels`, or 2, the default there."""
    labels = config.get("id2label")
    return len(labels) if labels else int(field(config, "num_labels", 2))
