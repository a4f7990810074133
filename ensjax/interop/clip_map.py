"""CLIP of `transformers`, as `nn.CLIP`; its image tower alone, as `nn.ViT`."""

from collections.abc import Mapping
from typing import Any

from ensjax.interop.config_fields import (
    activation,
    architecture,
    field,
    number,
    part,
    size,
    size_pair,
)
from ensjax.interop.name_maps import Constant, NameMap, Rule, prefixed
from ensjax.interop.transforms import Reshape
from ensjax.interop.vit_map import BLOCK, block_rules, linear, norm, patches
from ensjax.nn import CLIP, ViT


def clip_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `nn.CLIP` for a `config.json` of `CLIPModel`.

    Raises:
        ValueError: if a field is not supported; names it.
    """
    architecture(config, ("CLIPModel",))
    image, text = _part(config, "vision_config"), _part(config, "text_config")
    tower = _tower_options(image)
    end = field(text, "eos_token_id", 49407)
    if not isinstance(end, int):
        raise ValueError(f"config.json: eos_token_id is {end!r}; supported is one id.")
    return {
        "image_shape": tower["image_shape"],
        "patch_size": tower["patch_size"],
        "image_width": tower["width"],
        "image_depth": tower["depth"],
        "image_heads": tower["num_heads"],
        "image_mlp_width": tower["mlp_width"],
        "vocabulary": size(text, "vocab_size", 49408),
        "max_tokens": size(text, "max_position_embeddings", 77),
        "text_width": size(text, "hidden_size", 512),
        "text_depth": size(text, "num_hidden_layers", 12),
        "text_heads": size(text, "num_attention_heads", 8),
        "text_mlp_width": size(text, "intermediate_size", 2048),
        # An id of 2 is a slip of early configurations; they read the largest id.
        "end_token": None if end == 2 else end,
        "num_features": size(config, "projection_dim", 512),
        "norm_epsilon": (tower["norm_epsilon"], number(text, "layer_norm_eps", 1e-5)),
        "activation": (
            tower["activation"],
            activation(text, "hidden_act", "quick_gelu"),
        ),
    }


def clip_image_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `nn.ViT` for that of `CLIPVisionModelWithProjection`.

    Raises:
        ValueError: if a field is not supported; names it.
    """
    architecture(config, ("CLIPVisionModelWithProjection",))
    return {
        **_tower_options(config),
        "num_outputs": size(config, "projection_dim", 512),
        "qkv_bias": True,
        "embed_bias": False,
        "head_bias": False,
        "embed_norm": True,
    }


def clip_maps(model: CLIP) -> dict[str, NameMap]:
    """The names of `transformers`."""
    text = (
        Rule("text_model.embeddings.token_embedding.weight", "text.words.embedding"),
        Rule("text_model.embeddings.position_embedding.weight", "text.positions"),
        *prefixed(
            _BLOCK_RULES,
            theirs="text_model.encoder.layers.{i}.",
            ours=f"text.{BLOCK}",
        ),
        *norm("text_model.final_layer_norm", "text.norm"),
        *linear("text_projection", "text.head.linear"),
    )
    scale = (Rule("logit_scale", "logit_scale"),)
    image = prefixed(_tower_rules(model.image), ours="image.")
    return {
        "transformers": NameMap(
            scale + image + text,
            constants=(
                Constant("vision_model.embeddings.position_ids"),
                Constant("text_model.embeddings.position_ids"),
            ),
        )
    }


def clip_image_maps(model: ViT) -> dict[str, NameMap]:
    """The names of `transformers`."""
    positions = Constant("vision_model.embeddings.position_ids")
    return {"transformers": NameMap(_tower_rules(model), constants=(positions,))}


_BLOCK_RULES = block_rules(
    qkv=tuple(f"self_attn.{part}_proj" for part in "qkv"),
    out="self_attn.out_proj",
    norms=("layer_norm1", "layer_norm2"),
    mlp=("mlp.fc1", "mlp.fc2"),
)


def _tower_rules(tower):
    inside = (
        Rule("embeddings.class_embedding", "token", Reshape((-1,), (1, -1))),
        Rule("embeddings.position_embedding.weight", "positions"),
        *linear("embeddings.patch_embedding", "embed", patches(tower)),
        *norm("pre_layrnorm", "embed_norm"),  # so it is spelled there
        *prefixed(_BLOCK_RULES, theirs="encoder.layers.{i}.", ours=BLOCK),
        *norm("post_layernorm", "norm"),
    )
    return (
        *prefixed(inside, theirs="vision_model."),
        *linear("visual_projection", "head.linear"),
    )


def _tower_options(config):
    height, width = size_pair(config, "image_size", 224)
    return {
        "image_shape": (height, width, size(config, "num_channels", 3)),
        "patch_size": size_pair(config, "patch_size", 32),
        "width": size(config, "hidden_size", 768),
        "depth": size(config, "num_hidden_layers", 12),
        "num_heads": size(config, "num_attention_heads", 12),
        "mlp_width": size(config, "intermediate_size", 3072),
        "norm_epsilon": number(config, "layer_norm_eps", 1e-5),
        "activation": activation(config, "hidden_act", "quick_gelu"),
    }


def _part(config, name):
    """A tower's fields; files of early versions have those that hold in `..._dict`."""
    return {**part(config, name), **part(config, f"{name}_dict")}
