"""The architectures whose published checkpoints our modules can hold."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from flax import nnx

from ensjax.interop.bert_map import bert_maps, bert_options
from ensjax.interop.clip_map import (
    clip_image_maps,
    clip_image_options,
    clip_maps,
    clip_options,
)
from ensjax.interop.llama_map import (
    llama_maps,
    llama_options,
    mistral_options,
    qwen2_options,
)
from ensjax.interop.name_maps import NameMap
from ensjax.interop.resnet_map import resnet_maps, resnet_options, resnet_options_of
from ensjax.interop.vit_map import vit_maps, vit_options
from ensjax.nn import BERT, CLIP, ImageNetResNet, Llama, ViT


@dataclasses.dataclass(frozen=True)
class Kind:
    """One architecture of other frameworks.

    Attributes:
        module: the class of ours that holds it.
        options: the module's arguments from a `config.json`.
        maps: the name maps of a module, by naming; the first is the one that is written
            where no original says otherwise.
        options_of: the module's arguments from names and shapes where there is no
            `config.json`; returns `None` if they are of another architecture.
    """

    module: type[nnx.Module]
    options: Callable[[Mapping[str, Any]], dict[str, Any]]
    maps: Callable[[Any], dict[str, NameMap]]
    options_of: Callable[[Mapping[str, tuple]], dict[str, Any] | None] | None = None


# By the `model_type` of config.json. The first with a module's class is its kind.
KINDS = {
    "clip": Kind(CLIP, clip_options, clip_maps),
    "resnet": Kind(ImageNetResNet, resnet_options, resnet_maps, resnet_options_of),
    "vit": Kind(ViT, vit_options, vit_maps),
    "clip_vision_model": Kind(ViT, clip_image_options, clip_image_maps),
    "bert": Kind(BERT, bert_options, bert_maps),
    "llama": Kind(Llama, llama_options, llama_maps),
    "mistral": Kind(Llama, mistral_options, llama_maps),
    "qwen2": Kind(Llama, qwen2_options, llama_maps),
}
