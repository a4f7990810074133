"""Whether numbers on disk are weights: factors and quantized numbers are not averaged.

The mean of the factors of products is not the mean of the products, and a quantized
number means nothing without its scale. Both are told by the configurations beside the
weights and by the names of tensors, so that a file alone is told as well.
"""

import os
import re
from collections.abc import Iterable
from pathlib import Path

from ensjax.interop.small_files import read_config
from ensjax.interop.tensor_types import WeightsError

# Factors of LoRA as peft, diffusers, kohya and torchtune write them, then of LoHa,
# LoKr, OFT and IA3.
_FACTORS = re.compile(
    r"(^|[._])lora[._](A|B|a|b|up|down|embedding_A|embedding_B|magnitude_vector)(\.|$)"
    r"|(^|\.)lora_linear_layer\.|(^|\.)(hada|lokr)_w\d|(^|\.)(oft_R|ia3_l)(\.|$)"
)
# GPTQ and AWQ, bitsandbytes, compressed-tensors, HQQ, and eight-bit floats with scales.
_QUANTIZED = re.compile(
    r"(^|\.)(qweight|qzeros|g_idx|W_q|absmax|nested_absmax|quant_map|SCB|weight_packed"
    r"|weight_scale|weight_scale_2|weight_scale_inv|weight_zero_point|scale_weight"
    r"|scaled_fp8)(\.|$)"
)
_MERGE_FACTORS = (
    "the mean of its factors is not the mean of the weights. Merge it into its model"
    " and save that first."
)
_MERGE_BEFORE = (
    "its numbers mean nothing without their scales. Merge the models before they are"
    " quantized."
)


def check_configs(path: str | os.PathLike) -> None:
    """Raises `WeightsError` if a configuration speaks of an adapter or quantization.

    Args:
        path: a folder, or a file, of which the folder is looked at that it lies in.
    """
    given, place = os.fspath(path), Path(path)
    is_folder = place.is_dir()
    folder = place if is_folder else place.parent
    where = "" if is_folder else " beside it"
    if (folder / "adapter_config.json").exists():
        raise WeightsError(
            f"{given} holds a LoRA adapter (adapter_config.json{where}); "
            + _MERGE_FACTORS
        )
    try:
        config = read_config(folder) or {}
    except WeightsError:
        if is_folder:
            raise
        config = {}  # what lies beside a file may be of something else
    parts = (config, *(part for part in config.values() if isinstance(part, dict)))
    for name in ("quantization_config", "compression_config"):
        if any(part.get(name) for part in parts):
            raise WeightsError(
                f"{given} is quantized (config.json{where} has a {name}): "
                + _MERGE_BEFORE
            )


def check_names(given: str, names: Iterable[str]) -> None:
    """Raises `WeightsError` if a tensor's name is that of a factor or of a scale.

    Args:
        given: what holds the tensors, for what is said.
        names: of all tensors.
    """
    for name in names:
        if _FACTORS.search(name):
            raise WeightsError(f"{given} holds the factor {name!r}; " + _MERGE_FACTORS)
        if _QUANTIZED.search(name):
            raise WeightsError(
                f"{given} is quantized (it holds {name!r}): " + _MERGE_BEFORE
            )
