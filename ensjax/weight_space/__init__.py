"""Mixtures, soups, merges, alignment and barriers: ensembles in weight space."""

from ensjax.weight_space.averages import (
    RunningAverage,
    average,
)
from ensjax.weight_space.elections import (
    breadcrumbs_ties,
    dare_ties,
    della,
    sce,
    ties,
)
from ensjax.weight_space.fisher import (
    fisher_information,
    fisher_merge,
    sampled_fisher_information,
)
from ensjax.weight_space.input_grams import (
    input_grams,
)
from ensjax.weight_space.methods import (
    METHODS,
    MergeMethod,
)
from ensjax.weight_space.model_stock import (
    model_stock,
)
from ensjax.weight_space.regmean import (
    regmean,
)
from ensjax.weight_space.spherical import (
    karcher_mean,
    multislerp,
    nuslerp,
    slerp,
)
from ensjax.weight_space.task_vectors import (
    breadcrumbs,
    dare,
    della_linear,
    nearswap,
    task_arithmetic,
)

__all__ = [
    "METHODS",
    "MergeMethod",
    "RunningAverage",
    "average",
    "breadcrumbs",
    "breadcrumbs_ties",
    "dare",
    "dare_ties",
    "della",
    "della_linear",
    "fisher_information",
    "fisher_merge",
    "input_grams",
    "karcher_mean",
    "model_stock",
    "multislerp",
    "nearswap",
    "nuslerp",
    "regmean",
    "sampled_fisher_information",
    "sce",
    "slerp",
    "task_arithmetic",
    "ties",
]
