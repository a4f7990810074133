"""Flax NNX architectures that are used as members."""

from ensjax.nn.axial import (
    AxialDenoiser,
)
from ensjax.nn.bert import (
    BERT,
)
from ensjax.nn.clip import (
    CLIP,
    ClipClassifier,
    clip_image_tower,
    zero_shot_classifier,
    zero_shot_head,
)
from ensjax.nn.cnn import (
    CNN,
)
from ensjax.nn.denoiser_net import (
    ResidualDenoiser,
    UNetDenoiser,
)
from ensjax.nn.forecast_net import (
    ResidualForecaster,
)
from ensjax.nn.grid_net import (
    GridNet,
)
from ensjax.nn.imagenet_resnet import (
    ImageNetResNet,
)
from ensjax.nn.llama import (
    Llama,
)
from ensjax.nn.mlp import (
    MLP,
)
from ensjax.nn.neighbors import (
    NearestNeighbors,
    nearest_rows,
)
from ensjax.nn.noise_inputs import (
    GlobalNoise,
    ProjectedNoise,
)
from ensjax.nn.noise_net import (
    ResidualGenerator,
)
from ensjax.nn.noise_norm import (
    NoiseConditionedBlock,
    NoiseConditionedNorm,
    NoiseForecaster,
    NoiseMlp,
)
from ensjax.nn.one_step import LastStates
from ensjax.nn.recurrent import (
    Recurrent,
)
from ensjax.nn.resnet import (
    ResNet,
    WideResNet,
    wide_resnet,
)
from ensjax.nn.rotary import (
    LinearScaling,
    Llama3Scaling,
)
from ensjax.nn.shifted_conv import (
    ShiftedConv,
)
from ensjax.nn.sphere import (
    LocalSphereConv,
    SpectralConv,
    SphereBlock,
)
from ensjax.nn.spherical_denoiser import SphericalDenoiser
from ensjax.nn.spherical_forecaster import (
    SphericalForecaster,
    fourcastnet3,
    sfno,
)
from ensjax.nn.truncation import (
    HarmonicTruncation,
    WaveTruncation,
)
from ensjax.nn.vit import (
    ViT,
)
from ensjax.nn.window_net import (
    WindowTransformer,
)

__all__ = [
    "AxialDenoiser",
    "BERT",
    "CLIP",
    "CNN",
    "ClipClassifier",
    "GlobalNoise",
    "GridNet",
    "HarmonicTruncation",
    "ImageNetResNet",
    "LastStates",
    "LinearScaling",
    "Llama",
    "Llama3Scaling",
    "LocalSphereConv",
    "MLP",
    "NearestNeighbors",
    "NoiseConditionedBlock",
    "NoiseConditionedNorm",
    "NoiseForecaster",
    "NoiseMlp",
    "ProjectedNoise",
    "Recurrent",
    "ResNet",
    "ResidualDenoiser",
    "ResidualForecaster",
    "ResidualGenerator",
    "ShiftedConv",
    "SpectralConv",
    "SphereBlock",
    "SphericalDenoiser",
    "SphericalForecaster",
    "UNetDenoiser",
    "ViT",
    "WaveTruncation",
    "WideResNet",
    "WindowTransformer",
    "clip_image_tower",
    "fourcastnet3",
    "nearest_rows",
    "sfno",
    "wide_resnet",
    "zero_shot_classifier",
    "zero_shot_head",
]
