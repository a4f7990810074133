"""Tangent kernels: laws of infinite width, and kernels of trained members."""

from ensjax.ntk import published, two_layer
from ensjax.ntk.accuracy import Accuracy, accuracy_by_members, members_to_reach
from ensjax.ntk.cube import CubePrior, DrawDeviation, DrawPrior, cube_prior
from ensjax.ntk.cube_members import CubeMembers, cube_members, sample_cube_member
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
    weights,
)
from ensjax.ntk.growth import (
    PowerLaw,
    bootstrap_power_law,
    fit_power_law,
    held_out_errors,
    nearest_law,
)
from ensjax.ntk.infinite_members import InfiniteMembers, infinite_members, sample_member
from ensjax.ntk.kernel_blocks import kernel_blocks
from ensjax.ntk.kernel_similarity import (
    alignment,
    alignment_between_members,
    centred,
    label_kernel,
    relative_change,
)
from ensjax.ntk.kernels import FullyConnected, Kernels, kernel, kernel_diagonal
from ensjax.ntk.linearised import (
    LinearTraining,
    linear_outputs,
    linear_training,
    linearise,
)
from ensjax.ntk.members_needed import (
    log_probability,
    members_by_worst_bit,
    members_for_all,
    members_for_deviation,
    members_for_draws,
    members_for_input,
    union_bound,
)
from ensjax.ntk.networks import (
    HalfSquares,
    LayerScale,
    LayerwiseSGD,
    Schedule,
    TrainNetwork,
    WideNetwork,
    layer_scales,
    network_job,
    training_schedule,
)
from ensjax.ntk.permutations import (
    check_permutation,
    cube_inputs,
    draw_permutation,
    inputs_to_try,
    sample_inputs,
)
from ensjax.ntk.quadrature import dual
from ensjax.ntk.rounding import gaps, midpoint_thresholds, round_bits, sign_thresholds
from ensjax.ntk.schedules import warn_above_critical
from ensjax.ntk.tasks import (
    Rule,
    Task,
    addition_task,
    copy_task,
    multiplication_task,
    permutation_task,
)
from ensjax.ntk.two_layer import Law, law, ntk_law, readout_law
from ensjax.ntk.vector_products import ntk_vector_product

__all__ = [
    "Accuracy",
    "Alignment",
    "CubeMembers",
    "CubePrior",
    "DrawDeviation",
    "DrawPrior",
    "Drift",
    "Dual",
    "DualMoments",
    "FullyConnected",
    "HalfSquares",
    "InfiniteMembers",
    "Kernels",
    "Law",
    "LayerScale",
    "LayerwiseSGD",
    "LinearTraining",
    "PowerLaw",
    "Predictor",
    "Rule",
    "Schedule",
    "Task",
    "TrainNetwork",
    "WideNetwork",
    "accuracy_by_members",
    "addition_task",
    "alignment",
    "alignment_between_members",
    "bootstrap_power_law",
    "centred",
    "check_permutation",
    "copy_task",
    "covariance",
    "critical_learning_rate",
    "cube_inputs",
    "cube_members",
    "cube_prior",
    "draw_permutation",
    "dual",
    "empirical_ntk",
    "erf",
    "fit_power_law",
    "gaps",
    "held_out_errors",
    "identity",
    "infinite_members",
    "inputs_to_try",
    "kernel",
    "kernel_alignment",
    "kernel_blocks",
    "kernel_diagonal",
    "kernel_drift",
    "label_kernel",
    "law",
    "layer_scales",
    "linear_outputs",
    "linear_training",
    "linearise",
    "log_probability",
    "mean",
    "members_by_worst_bit",
    "members_for_all",
    "members_for_deviation",
    "members_for_draws",
    "members_for_input",
    "members_to_reach",
    "midpoint_thresholds",
    "multiplication_task",
    "nearest_law",
    "network_job",
    "ntk_law",
    "ntk_vector_product",
    "permutation_task",
    "predictor",
    "predictor_of_kernels",
    "published",
    "readout_law",
    "relative_change",
    "relu",
    "round_bits",
    "sample_cube_member",
    "sample_inputs",
    "sample_member",
    "sign_thresholds",
    "steps_to",
    "training_schedule",
    "two_layer",
    "union_bound",
    "variance",
    "warn_above_critical",
    "weights",
]
