"""Weight matching on the host: NumPy and SciPy, threads over members, no compilation.

A member's leaves are kept in their present order, so that a step permutes only those of
the group that moves, and a group's new order is one of its present one.
"""

import contextlib
import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from ensjax.weight_space.assignment import assign_on_host
from ensjax.weight_space.axes import Group
from ensjax.weight_space.permutations import permute_leaf
from ensjax.weight_space.similarity import Layout, gain, permute_leaves, similarity

Leaves = list[np.ndarray]


@contextlib.contextmanager
def member_threads(num_members: int) -> Iterator[Callable]:
    """`map` over members by a thread for each core, BLAS having one in each of them.

    Products of a few hundred units are too short to be split: threads of BLAS wait for
    each other in a loop, and where other processes want the cores a product of 3 ms
    takes 70.
    """
    from threadpoolctl import threadpool_limits  # comes with scikit-learn

    workers = max(1, min(os.cpu_count() or 1, num_members))
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(workers) as pool:
        yield lambda *args: list(pool.map(*args))


def draw_on_host(draw: Callable[[Any, Any, int], Any], key: jax.Array, count: int):
    """`draw(key, sweep, count)` of sweeps as NumPy arrays."""
    return functools.cache(lambda sweep: np.asarray(draw(key, sweep, count)))


def propose(
    layout: Layout, group: Group, target: Sequence[np.ndarray], own: Leaves
) -> tuple[np.ndarray, float] | None:
    """The best new order of one group of a member, or `None` if it gains nothing.

    Args:
        layout: of the leaves.
        group: whose units are assigned anew.
        target: one model's leaves.
        own: the member's leaves in their present order.

    Returns:
        Places `[unit]` in the present order, and the gain that counts as rounding.
    """
    scores = similarity(layout, group, target, own, {}, np)
    assigned = assign_on_host(scores)
    present = {group.name: np.arange(group.size, dtype=np.int32)}
    added, rounding = gain(layout, group, target, own, present, scores, assigned, np)
    return (assigned, rounding) if added > rounding else None


def moved(layout: Layout, group: Group, own: Leaves, assigned: np.ndarray) -> Leaves:
    """A member's leaves after one group has moved; the others are not copied."""
    own = list(own)
    for number in layout.leaves_of(group):
        own[number] = permute_leaf(
            own[number], layout.axes[number], {group.name: assigned}, np
        )
    return own


def match_on_host(
    layout: Layout,
    target: Sequence[np.ndarray],
    leaves: Sequence[np.ndarray],
    orders: Mapping[str, np.ndarray],
    draw: Callable[[int], np.ndarray],
    max_sweeps: int,
) -> tuple[dict[str, np.ndarray], int]:
    """One member's orders after matching to a target, and the number of sweeps.

    A group is assigned again only after one beside it has moved: with the same scores
    it would stay.
    """
    orders, waiting = dict(orders), set(layout.groups)
    own = permute_leaves(layout, leaves, orders, np)
    for sweep in range(max_sweeps):
        for number in draw(sweep):
            group = layout.groups[number]
            if group not in waiting:
                continue
            waiting.discard(group)
            found = propose(layout, group, target, own)
            if found is not None:
                own = moved(layout, group, own, found[0])
                orders[group.name] = orders[group.name][found[0]]
                waiting |= layout.neighbors(group)
        if not waiting:
            return orders, sweep + 1
    return orders, max_sweeps
