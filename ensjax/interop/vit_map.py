"""The vision transformer of `transformers`, as `nn.ViT`."""

from collections.abc import Mapping
from typing import Any

from ensjax.interop.config_fields import (
    activation,
    architecture,
    flag,
    num_labels,
    number,
    size,
    size_pair,
)
from ensjax.interop.name_maps import NameMap, Rule, prefixed
from ensjax.interop.transforms import (
    CONV,
    DENSE,
    Chain,
    Reshape,
    Transform,
    joined_biases,
    joined_dense,
)
from ensjax.nn import ViT


def vit_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `nn.ViT` for a `config.json` of `ViTForImageClassification`.

    Raises:
        ValueError: if a field is not supported; names it.
    """
    architecture(config, ("ViTForImageClassification",))
    return {
        "image_shape": (
            *size_pair(config, "image_size", 224),
            size(config, "num_channels", 3),
        ),
        "patch_size": size_pair(config, "patch_size", 16),
        "width": size(config, "hidden_size", 768),
        "depth": size(config, "num_hidden_layers", 12),
        "num_heads": size(config, "num_attention_heads", 12),
        "mlp_width": size(config, "intermediate_size", 3072),
        "num_outputs": num_labels(config),
        "qkv_bias": flag(config, "qkv_bias", True),
        "norm_epsilon": number(config, "layer_norm_eps", 1e-12),
        "activation": activation(config, "hidden_act", "gelu"),
    }


def vit_maps(model: ViT) -> dict[str, NameMap]:
    """The names of `transformers`, in files and in memory, and those of timm."""
    top = (
        Rule("cls_token", "token", Reshape((1, 1, -1), (1, -1))),
        *linear("patch_embeddings.projection", "embed", patches(model)),
    )
    positions = Reshape((1, *model.positions.shape), model.positions.shape)
    around = (
        *prefixed(
            (*top, Rule("position_embeddings", "positions", positions)),
            theirs="vit.embeddings.",
        ),
        *norm("vit.layernorm", "norm"),
        *linear("classifier", "head.linear"),
    )
    files = block_rules(
        qkv=tuple(f"attention.attention.{part}" for part in ("query", "key", "value")),
        out="attention.output.dense",
        norms=("layernorm_before", "layernorm_after"),
        mlp=("intermediate.dense", "output.dense"),
    )
    memory = block_rules(
        qkv=tuple(f"attention.{part}_proj" for part in "qkv"),
        out="attention.o_proj",
        norms=("layernorm_before", "layernorm_after"),
        mlp=("mlp.fc1", "mlp.fc2"),
    )
    timm = block_rules(
        qkv=("attn.qkv",),
        out="attn.proj",
        norms=("norm1", "norm2"),
        mlp=("mlp.fc1", "mlp.fc2"),
    )
    return {
        "transformers": NameMap(
            around + prefixed(files, theirs="vit.encoder.layer.{i}.", ours=BLOCK)
        ),
        "transformers, in memory": NameMap(
            around + prefixed(memory, theirs="vit.layers.{i}.", ours=BLOCK)
        ),
        "timm": NameMap(
            (
                Rule("cls_token", "token", Reshape((1, 1, -1), (1, -1))),
                Rule("pos_embed", "positions", positions),
                *linear("patch_embed.proj", "embed", patches(model)),
                *prefixed(timm, theirs="blocks.{i}.", ours=BLOCK),
                *norm("norm", "norm"),
                *linear("head", "head.linear"),
            )
        ),
    }


BLOCK = "blocks.{i}."


def block_rules(
    *,
    qkv: tuple[str, ...],
    out: str,
    norms: tuple[str, str],
    mlp: tuple[str, str],
) -> tuple[Rule, ...]:
    """The rules of one `TransformerBlock`; `qkv` are three layers of theirs, or one."""
    names = {kind: tuple(f"{part}.{kind}" for part in qkv) for kind in _KINDS}
    parts = len(qkv)
    return (
        Rule(names["weight"], "qkv.kernel", joined_dense(parts)),
        Rule(names["bias"], "qkv.bias", joined_biases(parts)),
        *linear(out, "out"),
        *norm(norms[0], "norm1"),
        *norm(norms[1], "norm2"),
        *linear(mlp[0], "linear1"),
        *linear(mlp[1], "linear2"),
    )


_KINDS = ("weight", "bias")


def linear(theirs: str, ours: str, transform: Transform = DENSE) -> tuple[Rule, Rule]:
    """The rules of a linear layer; that of the bias is unused where there is none."""
    return (
        Rule(f"{theirs}.weight", f"{ours}.kernel", transform),
        Rule(f"{theirs}.bias", f"{ours}.bias"),
    )


def norm(theirs: str, ours: str) -> tuple[Rule, Rule]:
    """The rules of a layer norm."""
    return (
        Rule(f"{theirs}.weight", f"{ours}.scale"),
        Rule(f"{theirs}.bias", f"{ours}.bias"),
    )


def patches(model: ViT) -> Chain:
    """A convolution whose stride is its size, as the linear layer of patches."""
    inside = (*model.patch_size, model.image_shape[-1])
    return Chain((CONV, Reshape((*inside, -1), (_product(inside), -1))))


def _product(sizes):
    height, width, channels = sizes
    return height * width * channels
