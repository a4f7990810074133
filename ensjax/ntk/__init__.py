"""Infinitely wide networks: kernels, the trained ensemble's law, and its members."""

from ensjax.ntk import two_layer
from ensjax.ntk.cube_members import CubeMembers, cube_members, sample_cube_member
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
    weights,
)
from ensjax.ntk.infinite_members import (
    InfiniteMembers,
    infinite_members,
    sample_member,
)
from ensjax.ntk.kernel_blocks import kernel_blocks
from ensjax.ntk.kernels import FullyConnected, Kernels, kernel, kernel_diagonal
from ensjax.ntk.quadrature import dual
from ensjax.ntk.schedules import warn_above_critical
from ensjax.ntk.two_layer import Law, law, ntk_law, readout_law

__all__ = [
    "CubeMembers",
    "Dual",
    "DualMoments",
    "FullyConnected",
    "InfiniteMembers",
    "Kernels",
    "Law",
    "Predictor",
    "covariance",
    "critical_learning_rate",
    "cube_members",
    "dual",
    "erf",
    "identity",
    "infinite_members",
    "kernel",
    "kernel_blocks",
    "kernel_diagonal",
    "law",
    "mean",
    "ntk_law",
    "predictor",
    "predictor_of_kernels",
    "readout_law",
    "relu",
    "sample_cube_member",
    "sample_member",
    "steps_to",
    "two_layer",
    "variance",
    "warn_above_critical",
    "weights",
]
