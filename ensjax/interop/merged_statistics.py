"""Batch statistics of a merge: the members' mean, whatever becomes of the weights.

Running means and variances are no weights. What a method does with weights (add what
was learned, thin it, scale it) can make a variance negative, and a network that divides
by its root then gives NaN for finite numbers.
"""

import re
from collections.abc import Iterator

import jax
import numpy as np

from ensjax.interop.merge_plans import MergePlan
from ensjax.interop.tensor_blocks import padded
from ensjax.interop.tensor_types import TensorSpec, WeightsError
from ensjax.weight_space.methods import METHODS

# How they are merged: as the mean of the members', or as weights are.
STATISTICS = ("mean", "method")
# By this name a method knows them, whatever they are called in the file.
_STATISTIC = "running_mean"
_VARIANCE = re.compile(r"(^|[./])running_var$|(^|[./])(batch_stats|rest)[./].*var$")


def merged_statistics(
    plan: MergePlan, spec: TensorSpec, name: str
) -> Iterator[np.ndarray]:
    """One tensor of batch statistics merged, `[entry]` in float32, block by block.

    The method itself is asked, which knows them by their names.

    Args:
        plan: of the merge.
        spec: of the tensor.
        name: one of batch statistics.
    """
    own = METHODS[plan.method]
    for start, stop in plan.blocks.ranges(spec):
        rows = padded(plan.blocks.rows(name, start, stop), plan.blocks.size)
        arguments = [{_STATISTIC: rows}]
        if plan.blocks.base is not None:
            origin = plan.blocks.origin(name, start, stop)
            arguments.append({_STATISTIC: padded(origin, plan.blocks.size)})
        if own.statistics == "fisher":
            arguments.append({_STATISTIC: np.ones_like(rows)})  # is of weights alone
        keys = [plan.key()] if own.needs_key else []
        merged = own.merge(*arguments, *keys, **plan.knobs[name])[_STATISTIC]
        yield np.asarray(jax.device_get(merged))[: stop - start]


def check_variances(blocks: Iterator[np.ndarray], name: str) -> Iterator[np.ndarray]:
    """The blocks of a tensor, none of which is a variance below 0.

    Raises:
        WeightsError: if one is; names the tensor.
    """
    is_variance = _VARIANCE.search(name) is not None
    for block in blocks:
        if is_variance and (block < 0).any():
            raise WeightsError(
                f"tensor {name!r} is below 0 once merged, but holds variances: the"
                " network would give NaN. Take the members' mean (statistics), and"
                " leave out a member whose own variances are below 0."
            )
        yield block
