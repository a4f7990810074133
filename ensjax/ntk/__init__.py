"""Infinitely wide networks: kernels, the trained ensemble's law, and its members."""

from ensjax.ntk import two_layer
from ensjax.ntk.duals import Dual, DualMoments, erf, identity, relu
from ensjax.ntk.gaussian_process import (
    Predictor,
    covariance,
    critical_learning_rate,
    mean,
    predictor,
    predictor_of_kernels,
    steps_to,
    variance,
    warn_above_critical,
    weights,
)
from ensjax.ntk.infinite_members import (
    InfiniteMembers,
    infinite_members,
    sample_member,
)
from ensjax.ntk.kernels import FullyConnected, Kernels, kernel, kernel_diagonal
from ensjax.ntk.two_layer import Law, law, ntk_law, readout_law

__all__ = [
    "Dual",
    "DualMoments",
    "FullyConnected",
    "InfiniteMembers",
    "Kernels",
    "Law",
    "Predictor",
    "covariance",
    "critical_learning_rate",
    "erf",
    "identity",
    "infinite_members",
    "kernel",
    "kernel_diagonal",
    "law",
    "mean",
    "ntk_law",
    "predictor",
    "predictor_of_kernels",
    "readout_law",
    "relu",
    "sample_member",
    "steps_to",
    "two_layer",
    "variance",
    "warn_above_critical",
    "weights",
]
