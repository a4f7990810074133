"""Published architectures written in NumPy from their papers, over tensors by name.

Images are `[batch, channel, height, width]`, as these tensors expect them; everything
is computed in float64.
"""

import math

import numpy as np

erf = np.vectorize(math.erf)
ACTIVATIONS = {
    "gelu": lambda x: 0.5 * x * (1 + erf(x / math.sqrt(2))),
    "gelu_new": lambda x: (
        0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    ),
    "quick_gelu": lambda x: x / (1 + np.exp(-1.702 * x)),
    "relu": lambda x: np.maximum(x, 0),
}


class Names:
    """Tensors below a prefix, in float64."""

    def __init__(self, tensors, prefix=""):
        self.tensors, self.prefix = tensors, prefix

    def __getitem__(self, name):
        return np.asarray(self.tensors[self.prefix + name], np.float64)

    def __contains__(self, name):
        return self.prefix + name in self.tensors

    def below(self, prefix):
        return Names(self.tensors, self.prefix + prefix)

    def linear(self, name, x):
        y = x @ self[f"{name}.weight"].T
        return y + self[f"{name}.bias"] if f"{name}.bias" in self else y

    def norm(self, name, x, epsilon):
        mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
        x = (x - mean) / np.sqrt(var + epsilon)
        return x * self[f"{name}.weight"] + self[f"{name}.bias"]

    def conv(self, name, x, strides=1):
        return convolve(x, self[f"{name}.weight"], strides)

    def batch_norm(self, name, x):
        scale, bias, mean, var = (
            self[f"{name}.{part}"][None, :, None, None]
            for part in ("weight", "bias", "running_mean", "running_var")
        )
        return (x - mean) / np.sqrt(var + 1e-5) * scale + bias


def windows(x, size, strides, fill=0.0):
    """`[batch, channel, row, column, size, size]`, with half of the size around."""
    pad = ((0, 0), (0, 0), (size // 2,) * 2, (size // 2,) * 2)
    x = np.pad(x, pad, constant_values=fill)
    found = np.lib.stride_tricks.sliding_window_view(x, (size, size), axis=(2, 3))
    return found[:, :, ::strides, ::strides]


def convolve(x, kernel, strides):
    pieces = windows(x, kernel.shape[-1], strides)
    return np.einsum("bcyxhw,ochw->boyx", pieces, kernel)


def attend(query, key, value, num_heads, *, causal=False):
    batch, length, width = query.shape
    query, key, value = (
        x.reshape(batch, length, num_heads, -1).transpose(0, 2, 1, 3)
        for x in (query, key, value)
    )
    scores = query @ key.transpose(0, 1, 3, 2) / math.sqrt(width // num_heads)
    if causal:
        scores = np.where(np.tri(length, dtype=bool), scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return (weights @ value).transpose(0, 2, 1, 3).reshape(batch, length, width)


def embed_patches(x, kernel, bias=0.0):
    """Patches in rows, from the top left, `[batch, patch, width]`."""
    size = kernel.shape[-1]
    batch, channels, height, wide = x.shape
    x = x.reshape(batch, channels, height // size, size, wide // size, size)
    found = np.einsum("bcyhxw,ochw->byxo", x, kernel) + bias
    return found.reshape(batch, -1, kernel.shape[0])


def vit_logits(tensors, config, x):
    """Dosovitskiy et al. 2021, arXiv:2010.11929, equations 1 to 4."""
    epsilon, heads = config["layer_norm_eps"], config["num_attention_heads"]
    names = Names(tensors, "vit.")
    embed = names.below("embeddings.")
    patches = "patch_embeddings.projection"
    x = embed_patches(x, embed[f"{patches}.weight"], embed[f"{patches}.bias"])
    token = np.broadcast_to(embed["cls_token"], (len(x), 1, x.shape[-1]))
    x = np.concatenate([token, x], axis=1) + embed["position_embeddings"]
    for i in range(config["num_hidden_layers"]):
        own = names.below(f"encoder.layer.{i}.")
        y = own.norm("layernorm_before", x, epsilon)
        qkv = (
            own.linear(f"attention.attention.{p}", y) for p in ("query", "key", "value")
        )
        x = x + own.linear("attention.output.dense", attend(*qkv, heads))
        y = own.norm("layernorm_after", x, epsilon)
        y = ACTIVATIONS[config["hidden_act"]](own.linear("intermediate.dense", y))
        x = x + own.linear("output.dense", y)
    return Names(tensors).linear(
        "classifier", names.norm("layernorm", x, epsilon)[:, 0]
    )


def _clip_blocks(names, config, x, causal):
    for i in range(config["num_hidden_layers"]):
        own = names.below(f"encoder.layers.{i}.")
        y = own.norm("layer_norm1", x, config["layer_norm_eps"])
        qkv = (own.linear(f"self_attn.{p}_proj", y) for p in "qkv")
        y = attend(*qkv, config["num_attention_heads"], causal=causal)
        x = x + own.linear("self_attn.out_proj", y)
        y = own.norm("layer_norm2", x, config["layer_norm_eps"])
        y = ACTIVATIONS[config["hidden_act"]](own.linear("mlp.fc1", y))
        x = x + own.linear("mlp.fc2", y)
    return x


def clip_image_features(tensors, config, x):
    """Radford et al. 2021, arXiv:2103.00020, section 2.4; before normalisation."""
    names = Names(tensors, "vision_model.")
    x = embed_patches(x, names["embeddings.patch_embedding.weight"])
    token = np.broadcast_to(
        names["embeddings.class_embedding"], (len(x), 1, x.shape[-1])
    )
    x = np.concatenate([token, x], axis=1)
    x = x + names["embeddings.position_embedding.weight"]
    x = names.norm("pre_layrnorm", x, config["layer_norm_eps"])
    x = _clip_blocks(names, config, x, causal=False)[:, 0]
    x = names.norm("post_layernorm", x, config["layer_norm_eps"])
    return Names(tensors).linear("visual_projection", x)


def clip_text_features(tensors, config, tokens):
    """As `clip_image_features`, of tokens `[text, token]`."""
    names = Names(tensors, "text_model.")
    x = names["embeddings.token_embedding.weight"][tokens]
    x = x + names["embeddings.position_embedding.weight"][: tokens.shape[1]]
    x = _clip_blocks(names, config, x, causal=True)
    end = config["eos_token_id"]
    places = [list(row).index(row.max() if end == 2 else end) for row in tokens]
    x = names.norm("final_layer_norm", x, config["layer_norm_eps"])
    return Names(tensors).linear("text_projection", x[np.arange(len(x)), places])


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def resnet_logits(tensors, depths, x):
    """He et al. 2016, arXiv:1512.03385, table 1, under torchvision's names."""
    names = Names(tensors)
    relu = ACTIVATIONS["relu"]
    x = relu(names.batch_norm("bn1", names.conv("conv1", x, 2)))
    x = windows(x, 3, 2, -np.inf).max(axis=(-2, -1))
    for stage, depth in enumerate(depths, start=1):
        for i in range(depth):
            own = names.below(f"layer{stage}.{i}.")
            strides = 2 if stage > 1 and i == 0 else 1
            is_bottleneck = "conv3.weight" in own
            layers = (1, 2, 3) if is_bottleneck else (1, 2)
            y = x
            for layer in layers:
                own_strides = strides if layer == (2 if is_bottleneck else 1) else 1
                y = own.conv(f"conv{layer}", y, own_strides)
                y = own.batch_norm(f"bn{layer}", y)
                y = y if layer == layers[-1] else relu(y)
            if "downsample.0.weight" in own:
                x = own.conv("downsample.0", x, strides)
                x = own.batch_norm("downsample.1", x)
            x = relu(x + y)
    return names.linear("fc", x.mean(axis=(2, 3)))
