"""The merging methods by name, and what each of them needs.

All take a tree or an `Ensemble`; see `ensembles.takes_ensembles`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from ensjax.weight_space.averages import average
from ensjax.weight_space.elections import breadcrumbs_ties, dare_ties, della, sce, ties
from ensjax.weight_space.fisher import fisher_merge
from ensjax.weight_space.model_stock import model_stock
from ensjax.weight_space.regmean import regmean
from ensjax.weight_space.spherical import karcher_mean, multislerp, nuslerp, slerp
from ensjax.weight_space.task_vectors import (
    breadcrumbs,
    dare,
    della_linear,
    nearswap,
    task_arithmetic,
)


class MergeMethod(NamedTuple):
    """A merging method and its positional arguments after the stack.

    Attributes:
        merge: the function; its keyword arguments are its knobs.
        base: "needs", "takes" or "" (has none).
        statistics: "fisher", "grams" or "": what it needs of data.
        needs_key: whether it draws at random.
        num_members: how many it merges; `None`: any number.
        leaf_by_leaf: whether merging one leaf at a time is the same, with the method's
            default scope.
        knobs_without_default: keyword arguments that must be given.
    """

    merge: Callable[..., Any]
    base: str = ""
    statistics: str = ""
    needs_key: bool = False
    num_members: int | None = None
    leaf_by_leaf: bool = True
    knobs_without_default: tuple[str, ...] = ()


METHODS = {
    "average": MergeMethod(average),
    "breadcrumbs": MergeMethod(
        breadcrumbs, base="needs", knobs_without_default=("density",)
    ),
    "breadcrumbs_ties": MergeMethod(
        breadcrumbs_ties, base="needs", knobs_without_default=("density",)
    ),
    "dare": MergeMethod(dare, base="needs", needs_key=True),
    "dare_ties": MergeMethod(
        dare_ties, base="needs", needs_key=True, leaf_by_leaf=False
    ),
    "della": MergeMethod(
        della,
        base="needs",
        needs_key=True,
        leaf_by_leaf=False,
        knobs_without_default=("density",),
    ),
    "della_linear": MergeMethod(
        della_linear, base="needs", needs_key=True, knobs_without_default=("density",)
    ),
    "fisher": MergeMethod(fisher_merge, statistics="fisher"),
    "karcher_mean": MergeMethod(karcher_mean, base="takes"),
    "model_stock": MergeMethod(model_stock, base="needs"),
    "multislerp": MergeMethod(multislerp, base="takes"),
    "nearswap": MergeMethod(nearswap, num_members=2, knobs_without_default=("t",)),
    "nuslerp": MergeMethod(nuslerp, base="takes", num_members=2),
    "regmean": MergeMethod(regmean, statistics="grams", leaf_by_leaf=False),
    "sce": MergeMethod(sce, base="needs"),
    "slerp": MergeMethod(slerp, num_members=2),
    "task_arithmetic": MergeMethod(task_arithmetic, base="needs"),
    "ties": MergeMethod(ties, base="needs", leaf_by_leaf=False),
}
