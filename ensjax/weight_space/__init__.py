"""Mixtures, soups, merges, alignment and barriers: ensembles in weight space."""

from ensjax.weight_space.activation_matching import match_activations
from ensjax.weight_space.axes import Concat, Fixed, Group, Product
from ensjax.weight_space.inference import infer_permutations, infer_permutations_of
from ensjax.weight_space.joint_matching import match_weights_jointly
from ensjax.weight_space.matching import Matching, match_weights
from ensjax.weight_space.permutations import (
    PermutationSpec,
    apply_permutations,
    check_permutations,
    fixed_spec,
    identity_permutations,
    inverse_permutations,
    random_permutations,
)
from ensjax.weight_space.repair import repair

__all__ = [
    "Concat",
    "Fixed",
    "Group",
    "Matching",
    "PermutationSpec",
    "Product",
    "apply_permutations",
    "check_permutations",
    "fixed_spec",
    "identity_permutations",
    "infer_permutations",
    "infer_permutations_of",
    "inverse_permutations",
    "match_activations",
    "match_weights",
    "match_weights_jointly",
    "random_permutations",
    "repair",
]
