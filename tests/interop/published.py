"""Small checkpoints under published names, with random numbers: no package needed."""

import numpy as np

VIT = dict(
    model_type="vit",
    architectures=["ViTForImageClassification"],
    hidden_size=8,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=12,
    image_size=8,
    patch_size=4,
    num_channels=3,
    hidden_act="gelu",
    layer_norm_eps=1e-6,
    id2label={"0": "a", "1": "b", "2": "c"},
)
CLIP = dict(
    model_type="clip",
    projection_dim=6,
    vision_config=dict(
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=12,
        image_size=8,
        patch_size=4,
        num_channels=3,
        hidden_act="quick_gelu",
        layer_norm_eps=1e-5,
    ),
    text_config=dict(
        hidden_size=12,
        num_hidden_layers=1,
        num_attention_heads=3,
        intermediate_size=16,
        vocab_size=20,
        max_position_embeddings=7,
        eos_token_id=15,
        hidden_act="gelu",
        layer_norm_eps=1e-5,
    ),
)


def _filled(shapes, seed):
    rng = np.random.default_rng(seed)
    found = {}
    for name, shape in shapes.items():
        if name.endswith("num_batches_tracked"):
            found[name] = np.asarray(rng.integers(1, 99))
            continue
        values = rng.normal(size=shape).astype(np.float32)
        if name.endswith("running_var"):
            values = 0.5 + np.abs(values)
        elif len(shape) == 4:  # convolutions, so that deep sums keep their size
            values = values / np.float32(np.sqrt(np.prod(shape[1:])))
        found[name] = values
    return found


def _linear(name, num_out, num_in):
    return {f"{name}.weight": (num_out, num_in), f"{name}.bias": (num_out,)}


def _norm(name, width):
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def vit_tensors(seed, config=VIT):
    """As `ViTForImageClassification.save_pretrained` writes them."""
    width, hidden = config["hidden_size"], config["intermediate_size"]
    patch, channels = config["patch_size"], config["num_channels"]
    tokens = (config["image_size"] // patch) ** 2 + 1
    shapes = {
        "vit.embeddings.cls_token": (1, 1, width),
        "vit.embeddings.position_embeddings": (1, tokens, width),
        "vit.embeddings.patch_embeddings.projection.weight": (
            width,
            channels,
            patch,
            patch,
        ),
        "vit.embeddings.patch_embeddings.projection.bias": (width,),
    }
    for i in range(config["num_hidden_layers"]):
        own = f"vit.encoder.layer.{i}."
        for part in ("query", "key", "value"):
            shapes |= _linear(f"{own}attention.attention.{part}", width, width)
        shapes |= _linear(f"{own}attention.output.dense", width, width)
        shapes |= _linear(f"{own}intermediate.dense", hidden, width)
        shapes |= _linear(f"{own}output.dense", width, hidden)
        shapes |= _norm(f"{own}layernorm_before", width)
        shapes |= _norm(f"{own}layernorm_after", width)
    shapes |= _norm("vit.layernorm", width)
    shapes |= _linear("classifier", len(config["id2label"]), width)
    return _filled(shapes, seed)


def _tower(name, config):
    width, hidden = config["hidden_size"], config["intermediate_size"]
    shapes = {}
    for i in range(config["num_hidden_layers"]):
        own = f"{name}.encoder.layers.{i}."
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= _linear(f"{own}self_attn.{part}", width, width)
        shapes |= _linear(f"{own}mlp.fc1", hidden, width)
        shapes |= _linear(f"{own}mlp.fc2", width, hidden)
        shapes |= _norm(f"{own}layer_norm1", width)
        shapes |= _norm(f"{own}layer_norm2", width)
    return shapes


def clip_tensors(seed, config=CLIP):
    """As `CLIPModel.save_pretrained` writes them."""
    image, text = config["vision_config"], config["text_config"]
    width, patch = image["hidden_size"], image["patch_size"]
    tokens = (image["image_size"] // patch) ** 2 + 1
    features = config["projection_dim"]
    shapes = {
        "logit_scale": (),
        "vision_model.embeddings.class_embedding": (width,),
        "vision_model.embeddings.position_embedding.weight": (tokens, width),
        "vision_model.embeddings.patch_embedding.weight": (
            width,
            image["num_channels"],
            patch,
            patch,
        ),
        **_norm("vision_model.pre_layrnorm", width),
        **_tower("vision_model", image),
        **_norm("vision_model.post_layernorm", width),
        "visual_projection.weight": (features, width),
        "text_model.embeddings.token_embedding.weight": (
            text["vocab_size"],
            text["hidden_size"],
        ),
        "text_model.embeddings.position_embedding.weight": (
            text["max_position_embeddings"],
            text["hidden_size"],
        ),
        **_tower("text_model", text),
        **_norm("text_model.final_layer_norm", text["hidden_size"]),
        "text_projection.weight": (features, text["hidden_size"]),
    }
    return _filled(shapes, seed)


def resnet_tensors(seed, *, block="basic", depths=(1, 2), widths=(8, 12), stem=8):
    """As torchvision saves a ResNet's state dict."""
    shapes = {"conv1.weight": (stem, 3, 7, 7), **_batch_norm("bn1", stem)}
    num_in = stem
    for stage, (depth, width) in enumerate(zip(depths, widths), start=1):
        for i in range(depth):
            own = f"layer{stage}.{i}."
            inside = width // 4 if block == "bottleneck" else width
            sizes = (1, 3, 1) if block == "bottleneck" else (3, 3)
            outs = (*[inside] * (len(sizes) - 1), width)
            ins = (num_in, *outs[:-1])
            for layer, (size, out, into) in enumerate(zip(sizes, outs, ins), start=1):
                shapes[f"{own}conv{layer}.weight"] = (out, into, size, size)
                shapes |= _batch_norm(f"{own}bn{layer}", out)
            if num_in != width or (stage > 1 and i == 0):
                shapes[f"{own}downsample.0.weight"] = (width, num_in, 1, 1)
                shapes |= _batch_norm(f"{own}downsample.1", width)
            num_in = width
    return _filled(shapes | _linear("fc", 3, num_in), seed)


def _batch_norm(name, width):
    parts = ("weight", "bias", "running_mean", "running_var")
    return {
        **{f"{name}.{part}": (width,) for part in parts},
        f"{name}.num_batches_tracked": (),
    }
