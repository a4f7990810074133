"""Llama of `transformers`, as `nn.Llama`; and what is built alike: Mistral, Qwen2."""

from collections.abc import Mapping
from typing import Any

from ensjax.interop.config_fields import (
    architecture,
    flag,
    number,
    optional_size,
    part,
    require,
    size,
)
from ensjax.interop.name_maps import Constant, NameMap, Rule, prefixed
from ensjax.interop.vit_map import BLOCK, linear
from ensjax.nn import LinearScaling, Llama, Llama3Scaling
from ensjax.nn.rotary import Scaling


def llama_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `nn.Llama` for a `config.json` of `LlamaForCausalLM`.

    Or of `LlamaModel`, which ends with the hidden tokens.

    Raises:
        ValueError: if a field is missing or not supported; names it.
    """
    bias = flag(config, "attention_bias", False)
    return {
        **_options(config, "Llama"),
        "num_kv_heads": optional_size(config, "num_key_value_heads"),
        "qkv_bias": bias,
        "out_bias": bias,
        "mlp_bias": flag(config, "mlp_bias", False),
    }


def mistral_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `nn.Llama` for that of `MistralForCausalLM`.

    Raises:
        ValueError: as `llama_options`; and for a sliding window.
    """
    window = config.get("sliding_window", 4096)  # what a missing field means there
    if window is not None:
        raise ValueError(
            f"config.json: sliding_window is {window!r}; supported is null, that every"
            " token sees all before it."
        )
    return {
        **_options(config, "Mistral"),
        "num_kv_heads": size(config, "num_key_value_heads"),
    }


def qwen2_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `nn.Llama` for that of `Qwen2ForCausalLM`.

    Raises:
        ValueError: as `llama_options`; and for a sliding window.
    """
    require(config, "use_sliding_window", (False,))
    for kind in config.get("layer_types") or ():
        require({"layer_types": kind}, "layer_types", ("full_attention",))
    return {
        **_options(config, "Qwen2"),
        "num_kv_heads": size(config, "num_key_value_heads"),
        "qkv_bias": True,
    }


def llama_maps(model: Llama) -> dict[str, NameMap]:
    """The names of `transformers`.

    A body alone (`LlamaModel`) is written without the prefix that it has under a head;
    both are read, and a head that is in the file is then left aside.
    """
    if model.has_logits:
        return {"transformers": _map(model, "model.")}
    return {
        "transformers": _map(model, ""),
        "transformers, below a head": _map(model, "model."),
    }


def _map(model, prefix):
    block = (
        *linear("self_attn.q_proj", "attention.query"),
        *linear("self_attn.k_proj", "attention.key"),
        *linear("self_attn.v_proj", "attention.value"),
        *linear("self_attn.o_proj", "attention.out"),
        *linear("mlp.gate_proj", "gate"),
        *linear("mlp.up_proj", "up"),
        *linear("mlp.down_proj", "down"),
        Rule("input_layernorm.weight", "norm1.scale"),
        Rule("post_attention_layernorm.weight", "norm2.scale"),
    )
    is_tied = model.has_logits and model.head is None
    rules = (
        Rule(
            f"{prefix}embed_tokens.weight",
            "words.embedding",
            tied="lm_head.weight" if is_tied else (),
        ),
        *prefixed(block, theirs=f"{prefix}layers.{{i}}.", ours=BLOCK),
        Rule(f"{prefix}norm.weight", "norm.scale"),
        *linear("lm_head", "head.linear"),
    )
    constants = (
        Constant(f"{prefix}layers.{{i}}.self_attn.rotary_emb.inv_freq"),
        Constant(f"{prefix}rotary_emb.inv_freq"),
        *(() if model.has_logits else (Constant("lm_head.weight"),)),
    )
    return NameMap(rules, constants)


def _options(config, family):
    """What the configurations of all three families say in the same words."""
    name = architecture(config, (f"{family}ForCausalLM", f"{family}Model"))
    require(config, "hidden_act", ("silu", "swish"))
    theta, scaling = _rotary(config)
    return {
        "vocabulary": size(config, "vocab_size"),
        "width": size(config, "hidden_size"),
        "depth": size(config, "num_hidden_layers"),
        "num_heads": size(config, "num_attention_heads"),
        "head_width": optional_size(config, "head_dim"),
        "mlp_width": size(config, "intermediate_size"),
        "norm_epsilon": number(config, "rms_norm_eps", 1e-6),
        "rope_theta": theta,
        "rope_scaling": scaling,
        "head": "hidden" if name.endswith("Model") else "words",
        "tied": flag(config, "tie_word_embeddings", False),
    }


def _rotary(config) -> tuple[float, Scaling | None]:
    """Base and scaling of the rotary frequencies, of new configurations and old."""
    name = "rope_parameters" if config.get("rope_parameters") else "rope_scaling"
    given = part(config, name)
    require(config, "partial_rotary_factor", (1.0,))
    theta = number(given, "rope_theta", number(config, "rope_theta", 10_000.0))
    kind = given.get("rope_type") or given.get("type") or "default"
    scaling = None
    if kind == "linear":
        scaling = LinearScaling(float(number(given, "factor")))
    elif kind == "llama3":
        scaling = Llama3Scaling(
            factor=float(number(given, "factor")),
            low=float(number(given, "low_freq_factor")),
            high=float(number(given, "high_freq_factor")),
            original_tokens=size(given, "original_max_position_embeddings"),
        )
    elif kind != "default":
        raise ValueError(
            f"config.json: {name} is of type {kind!r}; supported is 'default' or"
            " 'linear' or 'llama3'."
        )
    require(given, "partial_rotary_factor", (1.0,))
    return float(theta), scaling
