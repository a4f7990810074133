"""Which of our modules holds a checkpoint: from its configuration or its names."""

from collections.abc import Mapping, Sequence
from typing import Any

from flax import nnx

from ensjax.interop.config_fields import check_plain
from ensjax.interop.kinds import KINDS, Kind


def read_architecture(
    configs: Sequence[Mapping[str, Any] | None],
    shapes: Sequence[Mapping[str, tuple[int, ...]]],
    labels: Sequence[str],
    *,
    kind: str,
) -> tuple[Kind, dict[str, Any]]:
    """The kind of some checkpoints and their module's arguments, which they share.

    Args:
        configs: `config.json` of each, or `None`.
        shapes: of the tensors of each, by name.
        labels: what errors call them.
        kind: one of `KINDS`, or "auto".

    Raises:
        ValueError: if a field is not supported, or two differ; names the field.
    """
    if kind != "auto" and kind not in KINDS:
        raise ValueError(f"kind is one of auto, {', '.join(KINDS)}; got {kind!r}.")
    first = None
    for config, own, label in zip(configs, shapes, labels):
        try:
            found = _arguments(config, own, kind)
        except ValueError as error:
            raise ValueError(f"{label}: {error}") from error
        first = first or found
        _check_equal(first, found, label)
    return first


def kind_of(
    model: nnx.Module, kind: str, config: Mapping[str, Any] | None = None
) -> Kind:
    """The kind of a module: the one that is named, or by the module's class.

    Args:
        model: one of ours.
        kind: one of `KINDS`, or "auto".
        config: of a checkpoint like which it is; decides between kinds of one class.

    Raises:
        ValueError: if the module is not of that kind, or of none.
    """
    if kind != "auto":
        if kind not in KINDS or not isinstance(model, KINDS[kind].module):
            raise ValueError(
                f"kind is one of {', '.join(KINDS)} whose module the model is; got"
                f" {kind!r} and a {type(model).__name__}."
            )
        return KINDS[kind]
    stored = KINDS.get((config or {}).get("model_type"))
    for own in (*filter(None, [stored]), *KINDS.values()):
        if type(model) is own.module:
            return own
    known = sorted({own.module.__name__ for own in KINDS.values()})
    raise ValueError(
        f"no published checkpoints are known for a {type(model).__name__}, only for"
        f" {', '.join(known)}."
    )


def _arguments(config, shapes, kind):
    if config is not None:
        model_type = config.get("model_type")
        name = model_type if kind == "auto" else kind
        if not isinstance(name, str) or name not in KINDS:
            raise ValueError(
                f"config.json: model_type is {name!r}; supported is {', '.join(KINDS)}."
            )
        if model_type not in (None, name):
            raise ValueError(
                f"config.json: model_type is {model_type!r}, but kind is {name!r}."
            )
        check_plain(config)
        return KINDS[name], KINDS[name].options(config)
    for name, of_kind in KINDS.items():
        if kind in ("auto", name) and of_kind.options_of is not None:
            options = of_kind.options_of(shapes)
            if options is not None:
                return of_kind, options
    raise ValueError(
        "there is no config.json, and the names of the tensors do not tell the"
        " architecture; give config={...}, what config.json would say."
    )


def _check_equal(first, found, label):
    if found[0] is not first[0]:
        raise ValueError(
            f"{label} holds a {found[0].module.__name__}, but those before a"
            f" {first[0].module.__name__}; members of different architecture form a"
            " Group."
        )
    for name, value in first[1].items():
        if found[1][name] != value:
            raise ValueError(
                f"{label} has {name}={found[1][name]}, but those before {value};"
                " members of different architecture form a Group."
            )
