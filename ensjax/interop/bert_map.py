"""BERT of `transformers`, as `nn.BERT`."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ensjax.interop.config_fields import (
    activation,
    architecture,
    field,
    num_labels,
    number,
    require,
    size,
)
from ensjax.interop.name_maps import Constant, NameMap, Rule, prefixed
from ensjax.interop.vit_map import BLOCK, linear
from ensjax.nn import BERT
from ensjax.nn.bert import WordHead

# The class that wrote the checkpoint, and the head of ours. What is trained beside the
# word head (the next sentence's) is left aside.
HEADS = {
    "BertForSequenceClassification": "classes",
    "BertForMaskedLM": "words",
    "BertForPreTraining": "words",
    "BertModel": "pooled",
}


def bert_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `nn.BERT` for a `config.json` of one of `HEADS`.

    Rates of dropout, which change nothing in evaluation, are not taken over: give
    `dropout` for more training.

    Raises:
        ValueError: if a field is missing or not supported; names it.
    """
    field(config, "architectures")  # there is no usual one
    head = HEADS[architecture(config, tuple(HEADS))]
    require(config, "position_embedding_type", ("absolute",))
    require(config, "is_decoder", (False,))
    require(config, "add_cross_attention", (False,))
    require(config, "pruned_heads", ({},))
    if head == "words":
        require(config, "tie_word_embeddings", (True,))
    options = {
        "vocabulary": size(config, "vocab_size", 30_522),
        "width": size(config, "hidden_size", 768),
        "depth": size(config, "num_hidden_layers", 12),
        "num_heads": size(config, "num_attention_heads", 12),
        "mlp_width": size(config, "intermediate_size", 3072),
        "max_tokens": size(config, "max_position_embeddings", 512),
        "num_token_types": size(config, "type_vocab_size", 2),
        "activation": activation(config, "hidden_act", "gelu"),
        "norm_epsilon": number(config, "layer_norm_eps", 1e-12),
        "head": head,
    }
    return options | ({"num_outputs": num_labels(config)} if head == "classes" else {})


def bert_maps(model: BERT) -> dict[str, NameMap]:
    """The names of `transformers`: today's, and those of the first conversions.

    A body alone (`BertModel`) is written without the prefix that it has under a head;
    both are read.
    """
    prefixes = (
        {"": "bert."} if model.head is not None else {"": "", ", below a head": "bert."}
    )
    norms = {"": ("weight", "bias"), ", old norms": ("gamma", "beta")}
    return {
        f"transformers{place}{age}": _map(model, prefix, parts)
        for place, prefix in prefixes.items()
        for age, parts in norms.items()
    }


def _map(model, prefix, norm_parts):
    """The rules of one naming; `norm_parts` name the scale and bias of a norm."""

    def norm(theirs, ours):
        scale, bias = norm_parts
        return (
            Rule(f"{theirs}.{scale}", f"{ours}.scale"),
            Rule(f"{theirs}.{bias}", f"{ours}.bias"),
        )

    block = (
        *linear("attention.self.query", "attention.query"),
        *linear("attention.self.key", "attention.key"),
        *linear("attention.self.value", "attention.value"),
        *linear("attention.output.dense", "attention.out"),
        *norm("attention.output.LayerNorm", "norm1"),
        *linear("intermediate.dense", "linear1"),
        *linear("output.dense", "linear2"),
        *norm("output.LayerNorm", "norm2"),
    )
    body = (
        Rule("embeddings.position_embeddings.weight", "positions"),
        Rule("embeddings.token_type_embeddings.weight", "token_types.embedding"),
        *norm("embeddings.LayerNorm", "norm"),
        *prefixed(block, theirs="encoder.layer.{i}.", ours=BLOCK),
        *linear("pooler.dense", "pooler"),
    )
    words = Rule(f"{prefix}embeddings.word_embeddings.weight", "words.embedding")
    head = linear("classifier", "head.linear")
    left_aside = ["embeddings.position_ids"]
    if model.pooler is None:
        left_aside += ["pooler.dense.weight", "pooler.dense.bias"]
    constants = prefixed([Constant(name) for name in left_aside], theirs=prefix)
    if isinstance(model.head, WordHead):
        words = dataclasses.replace(words, tied="cls.predictions.decoder.weight")
        head = (
            *linear("cls.predictions.transform.dense", "head.linear"),
            *norm("cls.predictions.transform.LayerNorm", "head.norm"),
            Rule(
                "cls.predictions.bias", "head.bias", tied="cls.predictions.decoder.bias"
            ),
        )
        constants += (
            Constant("cls.seq_relationship.weight"),
            Constant("cls.seq_relationship.bias"),
        )
    return NameMap((words, *prefixed(body, theirs=prefix), *head), constants)
