"""Denoisers, noise schedules, losses, samplers and likelihoods of diffusion models."""

from ensjax.emulate.diffusion.denoisers import (
    EDM,
    VE,
    ClassifierFreeGuidance,
    Denoiser,
    GaussianDenoiser,
    NetworkDenoiser,
    ObservationGuidance,
    one_denoiser,
)
from ensjax.emulate.diffusion.distillation import (
    DistillationLoss,
    finish_distillation,
    start_distillation,
)
from ensjax.emulate.diffusion.likelihood import (
    FlowLikelihood,
    bits_per_dimension,
    log_likelihoods,
    log_likelihoods_each,
)
from ensjax.emulate.diffusion.losses import DenoisingLoss, denoising_loss
from ensjax.emulate.diffusion.noise import (
    LevelNoise,
    LogNormalNoise,
    RhoNoise,
    UniformTimeNoise,
    VarianceExploding,
    rho_levels,
)
from ensjax.emulate.diffusion.samplers import (
    Churn,
    DPMSolver2S,
    Euler,
    EulerMaruyama,
    FewStep,
    Heun,
)
from ensjax.emulate.diffusion.sampling import (
    SampleCases,
    sample,
    sample_cases,
    sample_each,
)

__all__ = [
    "Churn",
    "ClassifierFreeGuidance",
    "DPMSolver2S",
    "Denoiser",
    "DenoisingLoss",
    "DistillationLoss",
    "EDM",
    "Euler",
    "EulerMaruyama",
    "FewStep",
    "FlowLikelihood",
    "GaussianDenoiser",
    "Heun",
    "LevelNoise",
    "LogNormalNoise",
    "NetworkDenoiser",
    "ObservationGuidance",
    "RhoNoise",
    "SampleCases",
    "UniformTimeNoise",
    "VE",
    "VarianceExploding",
    "bits_per_dimension",
    "denoising_loss",
    "finish_distillation",
    "log_likelihoods",
    "log_likelihoods_each",
    "one_denoiser",
    "rho_levels",
    "sample",
    "sample_cases",
    "sample_each",
    "start_distillation",
]
