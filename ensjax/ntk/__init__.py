"""Infinitely wide networks: kernels, the trained ensemble's law, and its members."""

from ensjax.ntk import two_layer
from ensjax.ntk.alignment import (
    alignment,
    alignment_between_members,
    centred,
    label_kernel,
    relative_change,
)
from ensjax.ntk.drift import Alignment, Drift, kernel_alignment, kernel_drift
from ensjax.ntk.duals import Dual, DualMoments, erf, identity, relu
from ensjax.ntk.empirical import empirical_ntk
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
from ensjax.ntk.linearised import (
    LinearTraining,
    linear_outputs,
    linear_training,
    linearise,
)
from ensjax.ntk.two_layer import Law, law, ntk_law, readout_law
from ensjax.ntk.vector_products import ntk_vector_product

__all__ = [
    "Alignment",
    "Drift",
    "Dual",
    "DualMoments",
    "FullyConnected",
    "InfiniteMembers",
    "Kernels",
    "Law",
    "LinearTraining",
    "Predictor",
    "alignment",
    "alignment_between_members",
    "centred",
    "covariance",
    "critical_learning_rate",
    "empirical_ntk",
    "erf",
    "identity",
    "infinite_members",
    "kernel",
    "kernel_alignment",
    "kernel_diagonal",
    "kernel_drift",
    "label_kernel",
    "law",
    "linear_outputs",
    "linear_training",
    "linearise",
    "mean",
    "ntk_law",
    "ntk_vector_product",
    "predictor",
    "predictor_of_kernels",
    "readout_law",
    "relative_change",
    "relu",
    "sample_member",
    "steps_to",
    "two_layer",
    "variance",
    "warn_above_critical",
    "weights",
]
