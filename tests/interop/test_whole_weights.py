"""Factors of adapters and quantized numbers are refused, as folders and as files."""

import json
import os

import numpy as np
import pytest

from ensjax import interop
from ensjax.interop import WeightsError

safetensors_numpy = pytest.importorskip("safetensors.numpy")

WHOLE = {"q_proj.weight": np.ones((4, 4), np.float32)}
FACTORS = {
    "q_proj.lora_A": np.ones((4, 16), np.float32),
    "q_proj.lora_B": np.ones((16, 4), np.float32),
}
QUANTIZED = {
    "l.weight": np.ones((8, 1), np.uint8),
    "l.absmax": np.ones(2, np.float32),
}
CASES = {
    # Files, the configurations beside them, and what is said.
    "adapter": (FACTORS, {"adapter_config.json": {}}, "LoRA adapter"),
    "adapter by its configuration": (
        WHOLE,
        {"adapter_config.json": {}},
        "LoRA adapter",
    ),
    "adapter by its names": (FACTORS, {}, "holds the factor 'q_proj.lora_A'"),
    "quantized": (
        QUANTIZED,
        {"config.json": {"quantization_config": {"bits": 4}}},
        "is quantized",
    ),
    "quantized by its configuration": (
        WHOLE,
        {"config.json": {"quantization_config": {"bits": 4}}},
        "is quantized .config.json",
    ),
    "quantized by its names": (QUANTIZED, {}, "is quantized .it holds 'l.absmax'"),
}


def write(folder, tensors, configs, name="adapter_model.safetensors"):
    folder.mkdir()
    safetensors_numpy.save_file(tensors, folder / name)
    for config, fields in configs.items():
        (folder / config).write_text(json.dumps(fields))


@pytest.mark.parametrize("form", ["folder", "file", "index"])
@pytest.mark.parametrize("case", CASES)
def test_what_is_no_whole_weight_is_refused(tmp_path, monkeypatch, case, form):
    monkeypatch.chdir(tmp_path)
    tensors, configs, message = CASES[case]
    for name in "ab":
        write(tmp_path / name, tensors, configs)
        if form == "index":
            index = {"weight_map": dict.fromkeys(tensors, "adapter_model.safetensors")}
            (tmp_path / name / "model.safetensors.index.json").write_text(
                json.dumps(index)
            )
    tail = {
        "folder": "",
        "file": "/adapter_model.safetensors",
        "index": "/model.safetensors.index.json",
    }[form]
    places = ["a" + tail, "b" + tail]
    with pytest.raises(WeightsError, match=message):
        interop.merge_folders(places, "out")
    assert not os.path.exists("out")
    with pytest.raises(WeightsError, match=message):
        interop.read_stacked(places)


def test_a_file_in_the_working_directory_has_its_configuration_beside_it(
    tmp_path, monkeypatch
):
    write(tmp_path / "a", WHOLE, {"adapter_config.json": {}}, "model.safetensors")
    monkeypatch.chdir(tmp_path / "a")
    with pytest.raises(WeightsError, match=r"adapter_config.json beside it"):
        interop.open_weights("model.safetensors")


@pytest.mark.parametrize(
    "name",
    [
        "base_model.model.q_proj.lora_B.default.weight",
        "lora_unet_down_blocks_0_to_q.lora_up.weight",
        "lora_unet_down_blocks_0_to_q.lora_down.weight",
        "unet.attn.to_q_lora.down.weight",
        "unet.attn.to_q.lora.up.weight",
        "embed.lora_embedding_A",
        "q_proj.lora_magnitude_vector",
        "lora_unet_a.hada_w1_a",
        "lora_unet_a.lokr_w1",
        "model.layers.0.q_proj.qweight",
        "model.layers.0.q_proj.weight.absmax",
        "model.layers.0.q_proj.weight_scale",
        "model.layers.0.q_proj.weight_scale_inv",
        "model.layers.0.q_proj.SCB",
        "unet.attn.to_q.lora_linear_layer.up.weight",
        "layers.0.attn.q_proj.lora_a.weight",
        "q_proj.W_q",
        "q_proj.weight_zero_point",
        "q_proj.scale_weight",
    ],
)
def test_one_name_is_enough_in_a_file_alone(tmp_path, name):
    place = tmp_path / "x.safetensors"
    safetensors_numpy.save_file({**WHOLE, name: np.ones(2, np.float32)}, place)
    with pytest.raises(WeightsError, match=f"'{name}'"):
        interop.open_weights(place)


def test_like_names_of_whole_weights_are_read(tmp_path):
    names = ("logit_scale", "flora_A", "lora_norm.weight", "a.weight_scales.weight")
    tensors = {name: np.ones(2, np.float32) for name in names}
    safetensors_numpy.save_file(tensors, tmp_path / "x.safetensors")
    with interop.open_weights(tmp_path / "x.safetensors") as opened:
        assert set(opened.specs) == set(names)


def test_what_lies_beside_a_file_may_be_of_something_else(tmp_path):
    write(tmp_path / "a", WHOLE, {"config.json": [1]}, "model.safetensors")
    with interop.open_weights(tmp_path / "a" / "model.safetensors") as opened:
        assert set(opened.specs) == set(WHOLE)
    nested = {"config.json": {"text_config": {"quantization_config": {"bits": 4}}}}
    write(tmp_path / "b", WHOLE, nested, "model.safetensors")
    for place in (tmp_path / "b", tmp_path / "b" / "model.safetensors"):
        with pytest.raises(WeightsError, match="has a quantization_config"):
            interop.open_weights(place)
