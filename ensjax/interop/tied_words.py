"""Tied words: a merge never contradicts `tie_word_embeddings` of its configuration.

Where the field is true, the head of a language model is its embedding, and a head that
is stored beside it is not read; where it is false, the two are apart.
"""

import re
from collections.abc import Sequence

from ensjax.interop.small_files import read_config
from ensjax.interop.tensor_choice import TensorChoice
from ensjax.interop.tensor_types import WeightsError
from ensjax.interop.weight_folders import WeightFolder

FIELD = "tie_word_embeddings"
_EMBEDDING = re.compile("emb|wte|word|tok|shared")
# What a missing field means in these families; others differ between versions.
_DEFAULTS = {"llama": False, "mistral": False, "qwen2": False, "bert": True}


def check_tied_words(
    models: Sequence[WeightFolder],
    choice: TensorChoice,
    copy_from: WeightFolder | None,
) -> None:
    """Raises `WeightsError` if the output would contradict its configuration.

    That comes from `copy_from`, which so decides between folders that differ.

    Args:
        models: the base, if there is one, and the members.
        choice: what becomes of the tensors.
        copy_from: one of the models, or None.
    """
    said = [(folder, _is_tied(folder)) for folder in models]
    tied = [folder for folder, is_tied in said if is_tied is True]
    apart = [folder for folder, is_tied in said if is_tied is False]
    if not tied:
        return
    if apart and copy_from is None:
        raise WeightsError(
            f"{FIELD} is true in {tied[0].path}, but false in {apart[0].path}; merge"
            " models that agree, or say by copy_from which of them the output follows"
            f" ({apart[0].path} to keep its head)."
        )
    if copy_from is None or copy_from not in tied:
        return
    head = _head(choice, tied, any_head=bool(apart))
    if head is not None:
        where = f", but false in {apart[0].path}" if apart else ""
        raise WeightsError(
            f"{FIELD} is true in {copy_from.path}, which the output follows{where}, so"
            f" {head!r} would not be read; leave it out (skip)"
            + (f", or copy_from {apart[0].path}." if apart else ".")
        )


def _is_tied(folder):
    """What a configuration says; None where it says nothing."""
    config = read_config(folder.path) or {}
    text = config.get("text_config")
    for own in (config, text if isinstance(text, dict) else {}):
        if isinstance(own.get(FIELD), bool):
            return own[FIELD]
    kind = config.get("model_type")
    return _DEFAULTS.get(kind) if isinstance(kind, str) else None


def _head(choice, tied, any_head):
    """A matrix that is written beside an embedding of its shape, and is no embedding.

    Only one that a folder with tied words lacks, unless any is asked for.
    """
    shapes = {name: spec.shape for name, spec in choice.merged.items()}
    for name, copied in choice.copied.items():
        shapes[name] = copied.source.spec(name).shape
    known = {s for n, s in shapes.items() if _EMBEDDING.search(n) and len(s) == 2}
    for name, shape in shapes.items():
        is_told = any_head or any(name not in folder for folder in tied)
        if is_told and shape in known and not _EMBEDDING.search(name):
            return name
    return None
