"""Mixtures, soups, merges, alignment and barriers: ensembles in weight space.

`mix` is a pure function of a stacked tree; what evaluates models (`sweep`,
`greedy_soup`, `connectivity`, ...) takes an `Ensemble` and is one compiled program on
its mesh. Merging methods (`average`, `ties`, ...) take both: of a tree `[member, ...]`
they give a tree `[...]`, of an `Ensemble` an `Ensemble` of one.
"""

from ensjax.weight_space.activation_matching import match_activations
from ensjax.weight_space.averages import RunningAverage, average
from ensjax.weight_space.axes import Concat, Fixed, Group, Product
from ensjax.weight_space.barrier import (
    Connectivity,
    Plane,
    barrier,
    connectivity,
    plane,
)
from ensjax.weight_space.coefficients import (
    alpha_path,
    pair_paths,
    simplex_draws,
    simplex_grid,
)
from ensjax.weight_space.elections import breadcrumbs_ties, dare_ties, della, sce, ties
from ensjax.weight_space.fisher import (
    fisher_information,
    fisher_merge,
    sampled_fisher_information,
)
from ensjax.weight_space.inference import infer_permutations, infer_permutations_of
from ensjax.weight_space.input_grams import input_grams
from ensjax.weight_space.joint_matching import match_weights_jointly
from ensjax.weight_space.learned_soup import LearnedSoup, learned_soup
from ensjax.weight_space.leaves import leaf_names
from ensjax.weight_space.matching import Matching, match_weights
from ensjax.weight_space.methods import METHODS, MergeMethod
from ensjax.weight_space.mix import mix, mix_members
from ensjax.weight_space.model_stock import model_stock
from ensjax.weight_space.permutations import (
    PermutationSpec,
    apply_permutations,
    check_permutations,
    fixed_spec,
    identity_permutations,
    inverse_permutations,
    random_permutations,
)
from ensjax.weight_space.regmean import regmean
from ensjax.weight_space.repair import repair
from ensjax.weight_space.row_scores import ROW_SCORES
from ensjax.weight_space.soups import Soup, greedy_soup, uniform_soup
from ensjax.weight_space.spherical import karcher_mean, multislerp, nuslerp, slerp
from ensjax.weight_space.statistics import recompute_statistics
from ensjax.weight_space.sweep import Sweep, sweep
from ensjax.weight_space.task_vectors import (
    breadcrumbs,
    dare,
    della_linear,
    nearswap,
    task_arithmetic,
)
from ensjax.weight_space.trajectory import EMA, LAWA, SWA, SWAG
from ensjax.weight_space.trajectory_members import (
    averaged,
    lawa_members,
    swag_members,
)

__all__ = [
    "Concat",
    "Connectivity",
    "EMA",
    "Fixed",
    "Group",
    "LAWA",
    "LearnedSoup",
    "METHODS",
    "Matching",
    "MergeMethod",
    "PermutationSpec",
    "Plane",
    "Product",
    "ROW_SCORES",
    "RunningAverage",
    "SWA",
    "SWAG",
    "Soup",
    "Sweep",
    "alpha_path",
    "apply_permutations",
    "average",
    "averaged",
    "barrier",
    "breadcrumbs",
    "breadcrumbs_ties",
    "check_permutations",
    "connectivity",
    "dare",
    "dare_ties",
    "della",
    "della_linear",
    "fisher_information",
    "fisher_merge",
    "fixed_spec",
    "greedy_soup",
    "identity_permutations",
    "infer_permutations",
    "infer_permutations_of",
    "input_grams",
    "inverse_permutations",
    "karcher_mean",
    "lawa_members",
    "leaf_names",
    "learned_soup",
    "match_activations",
    "match_weights",
    "match_weights_jointly",
    "mix",
    "mix_members",
    "model_stock",
    "multislerp",
    "nearswap",
    "nuslerp",
    "pair_paths",
    "plane",
    "random_permutations",
    "recompute_statistics",
    "regmean",
    "repair",
    "sampled_fisher_information",
    "sce",
    "simplex_draws",
    "simplex_grid",
    "slerp",
    "swag_members",
    "sweep",
    "task_arithmetic",
    "ties",
    "uniform_soup",
]
