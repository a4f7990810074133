"""Reductions over members, in one pass and across devices.

A reduction is four pure functions: `init_x` an empty state, `update_x` it with some
members, `merge_x` two states, `finish_x` it into results. Members need never exist
together: blocks of them are folded in one after the other, or on different devices, in
any order. `psum_x` merges the devices' states inside a `shard_map`, `reduce_x` does all
of it for a stack that is there, and `fold_members` for members that a function makes.
"""

from ensjax.reduce.crps import (
    Crps,
    finish_crps,
    init_crps,
    merge_crps,
    psum_crps,
    reduce_crps,
    update_crps,
)
from ensjax.reduce.exceedances import (
    Exceedances,
    finish_exceedances,
    init_exceedances,
    merge_exceedances,
    psum_exceedances,
    reduce_exceedances,
    update_exceedances,
)
from ensjax.reduce.extreme_members import (
    ExtremeMembers,
    finish_extreme_members,
    init_extreme_members,
    merge_extreme_members,
    psum_extreme_members,
    update_extreme_members,
)
from ensjax.reduce.extremes import (
    Extremes,
    finish_extremes,
    init_extremes,
    merge_extremes,
    psum_extremes,
    reduce_extremes,
    update_extremes,
)
from ensjax.reduce.moments import (
    Moments,
    finish_moments,
    init_moments,
    member_mean,
    member_sum,
    member_variance,
    merge_moments,
    psum_moments,
    reduce_moments,
    update_moments,
)
from ensjax.reduce.quantiles import (
    Quantiles,
    finish_quantiles,
    init_quantiles,
    merge_quantiles,
    psum_quantiles,
    reduce_quantiles,
    update_quantiles,
)
from ensjax.reduce.ranks import (
    Ranks,
    finish_ranks,
    init_ranks,
    merge_ranks,
    psum_ranks,
    reduce_ranks,
    update_ranks,
)
from ensjax.reduce.sorted_runs import SortedRuns, rank_error_bound, sketch_size
from ensjax.reduce.stream import fold_members

__all__ = [
    "Crps",
    "Exceedances",
    "ExtremeMembers",
    "Extremes",
    "Moments",
    "Quantiles",
    "Ranks",
    "SortedRuns",
    "finish_crps",
    "finish_exceedances",
    "finish_extreme_members",
    "finish_extremes",
    "finish_moments",
    "finish_quantiles",
    "finish_ranks",
    "fold_members",
    "init_crps",
    "init_exceedances",
    "init_extreme_members",
    "init_extremes",
    "init_moments",
    "init_quantiles",
    "init_ranks",
    "member_mean",
    "member_sum",
    "member_variance",
    "merge_crps",
    "merge_exceedances",
    "merge_extreme_members",
    "merge_extremes",
    "merge_moments",
    "merge_quantiles",
    "merge_ranks",
    "psum_crps",
    "psum_exceedances",
    "psum_extreme_members",
    "psum_extremes",
    "psum_moments",
    "psum_quantiles",
    "psum_ranks",
    "rank_error_bound",
    "reduce_crps",
    "reduce_exceedances",
    "reduce_extremes",
    "reduce_moments",
    "reduce_quantiles",
    "reduce_ranks",
    "sketch_size",
    "update_crps",
    "update_exceedances",
    "update_extreme_members",
    "update_extremes",
    "update_moments",
    "update_quantiles",
    "update_ranks",
]
