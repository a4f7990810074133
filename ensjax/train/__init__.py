"""Training: objectives, the compiled loop, health, early stopping, checkpoints."""

from ensjax.train import losses
from ensjax.train.channel_weights import (
    area_channel_weights,
    change_weights,
    variable_weights,
)
from ensjax.train.curriculum import Stage, StageAdam, stage_rate, train_curriculum
from ensjax.train.evaluation import EarlyStopping
from ensjax.train.fit import fit
from ensjax.train.group_job import GroupJob
from ensjax.train.health import Health
from ensjax.train.history import TrainingLog
from ensjax.train.job import TrainingJob
from ensjax.train.kernel_crps import kernel_crps
from ensjax.train.lowering import lower_step
from ensjax.train.noise_members import NoiseCrps, WhiteNoise
from ensjax.train.objectives import (
    Joint,
    NegativeCorrelation,
    call_on_inputs,
    ensemble_nll,
    masked_mean,
)
from ensjax.train.rollouts import NoiseOfSteps, PointError, RolloutLoss
from ensjax.train.soft_labels import (
    SoftLabels,
    mix_examples,
    mixup_partners,
    mixup_shares,
    smooth_labels,
)
from ensjax.train.spherical_crps import SphericalCrps, area_crps, wave_crps

__all__ = [
    "EarlyStopping",
    "GroupJob",
    "Health",
    "Joint",
    "NegativeCorrelation",
    "NoiseCrps",
    "NoiseOfSteps",
    "PointError",
    "RolloutLoss",
    "SoftLabels",
    "SphericalCrps",
    "Stage",
    "StageAdam",
    "TrainingJob",
    "TrainingLog",
    "WhiteNoise",
    "area_channel_weights",
    "area_crps",
    "call_on_inputs",
    "change_weights",
    "ensemble_nll",
    "fit",
    "kernel_crps",
    "losses",
    "lower_step",
    "masked_mean",
    "mix_examples",
    "mixup_partners",
    "mixup_shares",
    "smooth_labels",
    "stage_rate",
    "train_curriculum",
    "variable_weights",
    "wave_crps",
]
