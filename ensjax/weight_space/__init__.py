"""Mixtures, soups, merges, alignment and barriers: ensembles in weight space.

`mix` is a pure function of a stacked tree; what evaluates models (`sweep`,
`greedy_soup`, `connectivity`, ...) takes an `Ensemble` and is one compiled program on
its mesh.
"""

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
from ensjax.weight_space.learned_soup import LearnedSoup, learned_soup
from ensjax.weight_space.leaves import leaf_names
from ensjax.weight_space.mix import mix, mix_members
from ensjax.weight_space.row_scores import ROW_SCORES
from ensjax.weight_space.soups import Soup, greedy_soup, uniform_soup
from ensjax.weight_space.statistics import recompute_statistics
from ensjax.weight_space.sweep import Sweep, sweep
from ensjax.weight_space.trajectory import (
    EMA,
    LAWA,
    SWA,
    SWAG,
    averaged,
    swag_members,
)

__all__ = [
    "Connectivity",
    "EMA",
    "LAWA",
    "LearnedSoup",
    "Plane",
    "ROW_SCORES",
    "SWA",
    "SWAG",
    "Soup",
    "Sweep",
    "alpha_path",
    "averaged",
    "barrier",
    "connectivity",
    "greedy_soup",
    "leaf_names",
    "learned_soup",
    "mix",
    "mix_members",
    "pair_paths",
    "plane",
    "recompute_statistics",
    "simplex_draws",
    "simplex_grid",
    "swag_members",
    "sweep",
    "uniform_soup",
]
