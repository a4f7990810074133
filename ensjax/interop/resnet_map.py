"""Residual networks of `transformers` and torchvision, as `nn.ImageNetResNet`."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ensjax.interop.config_fields import (
    architecture,
    field,
    num_labels,
    require,
    size,
    sizes,
)
from ensjax.interop.name_maps import Constant, NameMap, Rule
from ensjax.interop.transforms import CONV
from ensjax.interop.vit_map import linear
from ensjax.nn import ImageNetResNet


def resnet_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `nn.ImageNetResNet` for a `config.json`.

    Raises:
        ValueError: if a field is not supported; names it.
    """
    architecture(config, ("ResNetForImageClassification",))
    require(config, "hidden_act", ("relu",))
    require(config, "layer_type", ("bottleneck", "basic"))
    return {
        "depths": sizes(config, "depths", (3, 4, 6, 3)),
        "widths": sizes(config, "hidden_sizes", (256, 512, 1024, 2048)),
        "block": field(config, "layer_type", "bottleneck"),
        "stem_width": size(config, "embedding_size", 64),
        "first_strides": 2 if config.get("downsample_in_first_stage") else 1,
        "strides_on": "1x1" if config.get("downsample_in_bottleneck") else "3x3",
        "in_channels": size(config, "num_channels", 3),
        "num_outputs": num_labels(config),
    }


def resnet_options_of(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any] | None:
    """The arguments for a checkpoint with torchvision's names, from names and shapes.

    `None` if the names are others. Grouped convolutions (ResNeXt) and wider bottlenecks
    (wide ResNet) then differ in shapes, which are checked when they are read.
    """
    if "conv1.weight" not in shapes or "layer1.0.conv1.weight" not in shapes:
        return None
    is_bottleneck = "layer1.0.conv3.weight" in shapes
    last = "conv3" if is_bottleneck else "conv2"
    depths, widths = [], []
    while f"layer{len(depths) + 1}.0.{last}.weight" in shapes:
        stage = f"layer{len(depths) + 1}"
        depth = 0
        while f"{stage}.{depth}.{last}.weight" in shapes:
            depth += 1
        depths.append(depth)
        widths.append(shapes[f"{stage}.0.{last}.weight"][0])
    return {
        "depths": tuple(depths),
        "widths": tuple(widths),
        "block": "bottleneck" if is_bottleneck else "basic",
        "stem_width": shapes["conv1.weight"][0],
        "in_channels": shapes["conv1.weight"][1],
        "num_outputs": shapes.get("fc.weight", (1000,))[0],
    }


def resnet_maps(model: ImageNetResNet) -> dict[str, NameMap]:
    """The names of `transformers` and of torchvision."""
    stages = range(len(model.stages))
    layers = range(1, 4)
    files = [("resnet.embedder.embedder", "stem")]
    for layer in layers:
        theirs = "resnet.encoder.stages.{s}.layers.{i}.layer." + str(layer - 1)
        files.append((theirs, f"stages.{{s}}.{{i}}.layer{layer}"))
    files.append(
        ("resnet.encoder.stages.{s}.layers.{i}.shortcut", "stages.{s}.{i}.shortcut")
    )
    pairs = [
        (f"{theirs}.convolution", f"{theirs}.normalization", ours)
        for theirs, ours in files
    ]
    vision = [("conv1", "bn1", "stem")]
    for stage in stages:
        inside, ours = f"layer{stage + 1}.{{i}}", f"stages.{stage}.{{i}}"
        vision += [
            (f"{inside}.conv{layer}", f"{inside}.bn{layer}", f"{ours}.layer{layer}")
            for layer in layers
        ]
        shortcut = f"{inside}.downsample"
        vision.append((f"{shortcut}.0", f"{shortcut}.1", f"{ours}.shortcut"))
    return {
        "transformers": _name_map(pairs, "classifier.1"),
        "torchvision": _name_map(vision, "fc"),
    }


def _name_map(pairs, head):
    """Rules of convolutions and their norms, by (convolution, norm, ours)."""
    rules, constants = [*linear(head, "head.linear")], []
    for conv, norm, ours in pairs:
        rules.append(Rule(f"{conv}.weight", f"{ours}.conv.kernel", CONV))
        rules += [
            Rule(f"{norm}.{theirs}", f"{ours}.norm.{mine}")
            for theirs, mine in (
                ("weight", "scale"),
                ("bias", "bias"),
                ("running_mean", "mean"),
                ("running_var", "var"),
            )
        ]
        constants.append(
            Constant(f"{norm}.num_batches_tracked", f"{ours}.norm.mean", np.int64(0))
        )
    return NameMap(tuple(rules), tuple(constants))
