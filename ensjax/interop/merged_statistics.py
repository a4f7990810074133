"""Batch statistics of a merge: the members' mean, and a word on what is left to do.

Running means and variances are no weights. What a method does with weights (add what
was learned, thin it, scale it) can make a variance negative, and a network that divides
by its root then gives NaN for finite numbers.
"""

from collections.abc import Iterator, Mapping, Sequence

import jax
import numpy as np

from ensjax.interop.merge_plans import MergePlan
from ensjax.interop.tensor_blocks import padded
from ensjax.interop.tensor_choice import TensorChoice
from ensjax.interop.tensor_types import TensorSpec, WeightsError
from ensjax.weight_space.leaves import is_statistic
from ensjax.weight_space.methods import METHODS

# How they are merged: as the mean of the members', or as weights are.
STATISTICS = ("mean", "method")


def merged_statistics(
    plan: MergePlan, spec: TensorSpec, name: str
) -> Iterator[np.ndarray]:
    """One tensor of batch statistics merged, `[entry]` in float32, block by block.

    The method itself is asked, which knows them by their names.

    Args:
        plan: of the merge.
        spec: of the tensor.
        name: one for which `is_statistic` holds.
    """
    own = METHODS[plan.method]
    for start, stop in plan.blocks.ranges(spec):
        rows = padded(plan.blocks.rows(name, start, stop), plan.blocks.size)
        arguments = [{name: rows}]
        if plan.blocks.base is not None:
            origin = plan.blocks.origin(name, start, stop)
            arguments.append({name: padded(origin, plan.blocks.size)})
        if own.statistics == "fisher":
            arguments.append({name: np.ones_like(rows)})  # is of weights alone
        keys = [plan.key()] if own.needs_key else []
        merged = own.merge(*arguments, *keys, **plan.knobs[name])[name]
        yield np.asarray(jax.device_get(merged))[: stop - start]


def check_variances(blocks: Iterator[np.ndarray], name: str) -> Iterator[np.ndarray]:
    """The blocks of a tensor, none of which is a variance below 0.

    Raises:
        WeightsError: if one is; names the tensor.
    """
    is_variance = is_statistic(name) and name.endswith(("var", "variance"))
    for block in blocks:
        if is_variance and (block < 0).any():
            raise WeightsError(
                f"tensor {name!r} is below 0 once merged, but holds variances: the"
                " network would give NaN. Take the members' mean (statistics), and"
                " leave out a member whose own variances are below 0."
            )
        yield block


def note_of_statistics(
    choice: TensorChoice,
    plan: MergePlan,
    statistics: str,
    left_out: Mapping[str, Sequence[int]],
) -> list[str]:
    """What a user should do about batch statistics; empty where there are none.

    Args:
        choice: what becomes of the tensors.
        plan: of the merge.
        statistics: one of `STATISTICS`.
        left_out: places of the members of weight 0, by the name of a tensor.
    """
    merged = [n for n in (*choice.merged, *choice.statistics) if is_statistic(n)]
    copied = [n for n in choice.copied if is_statistic(n)]
    copied = [n for n in copied if choice.copied[n].source.spec(n).is_floating]
    names = merged or copied
    if not names or _is_one_member(plan, left_out):
        return []
    how = {"mean": "the members' mean", "method": "merged as weights are"}[statistics]
    how = how if merged else "copied"
    return [
        f"{len(names)} tensors of batch statistics (such as {names[0]}) are {how}, not"
        " what the merged network has: measure them again on data before it is used"
        " (torch.optim.swa_utils.update_bn(loader, model), or"
        " ensjax.weight_space.recompute_statistics)"
    ]


def _is_one_member(plan, left_out):
    """Whether all other members have weight 0, so that the result is that one."""
    if plan.method not in ("average", "fisher", "slerp", "nuslerp"):
        return False
    out = {tuple(left_out.get(name, ())) for name in plan.knobs}
    return all(len(places) == plan.num_members - 1 for places in out) and len(out) == 1
