"""Joint weight matching: every member near the mean of the others, until none moves."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ensjax.mapping import mesh_program
from ensjax.members import num_members
from ensjax.mesh import fetch, place
from ensjax.weight_space.assignment import choose_solver
from ensjax.weight_space.host_matching import (
    draw_on_host,
    member_threads,
    moved,
    propose,
)
from ensjax.weight_space.matching import (
    Matching,
    group_order,
    match_weights,
    matched_leaves,
    propose_on_device,
)
from ensjax.weight_space.permutations import PermutationSpec, permute_leaf
from ensjax.weight_space.similarity import Layout, gain, leaves_in, permute_leaves


def match_weights_jointly(
    stacked: Any,
    spec: PermutationSpec,
    *,
    key: jax.Array | None = None,
    solver: str = "auto",
    max_sweeps: int = 100,
    tolerance: float = 1e-3,
) -> Matching:
    """Permutations that bring all members' units near each other's.

        max over P_1 .. P_M of sum over pairs i < j of <P_i theta_i, P_j theta_j>

    First all are matched to member 0, at once. Then come rounds of one pass over the
    groups of each member, against the mean of the others, members and groups in random
    orders drawn from `key`. A quarter of the members is assigned at once against the
    same mean; then one after the other moves if, with those before it moved, the sum
    still grows. So no step makes the sum smaller, and where no member can gain alone
    the search ends.

    Gains become small long before they end: of 32 MLPs of width 512 the rounds from
    1e-3 to 1e-4 take as long as all before them, add half a per cent to the sum, and
    change no barrier by more than 0.001 nats.

    In the second part every device of a mesh holds the whole stack and does the same.

    Args:
        stacked: an `Ensemble`, whose parameters are compared, or leaves
            `[member, ...]`, which all are.
        spec: of the ensemble's state, or of the leaves.
        key: of the orders.
        solver: "host", "device" or "auto", as in `match_weights`.
        max_sweeps: rounds at most, and passes over groups in the first part.
        tolerance: the search ends with a round that adds no more than this share of
            the sum; 0: when no member moves.

    Returns:
        A `Matching`; `before` and `after` are of each member and the mean of the others
        (0 for a member alone, NaN for one that is not finite).

    Raises:
        ValueError: if the spec is not of this tree (names the leaf), the solver is
            unknown or the tolerance negative.

    Source: Ainsworth et al. 2023, arXiv:2209.04836, MergeMany, which matches one member
    after the other until it is stable in each turn; here several are assigned at once,
    by one pass, and it starts from a match to member 0.
    """
    if not tolerance >= 0:
        raise ValueError(f"tolerance must be at least 0; got {tolerance}.")
    key = jax.random.key(0) if key is None else key
    tree, layout, mesh = matched_leaves(stacked, spec)
    start = match_weights(
        stacked,
        spec,
        key=jax.random.fold_in(key, 2),
        solver=solver,
        max_sweeps=max_sweeps,
    )
    if not layout.groups:
        return start
    leaves = leaves_in(layout, tree)
    run = _on_host if choose_solver(solver, mesh) == "host" else _on_device
    limits = max_sweeps, float(tolerance)
    return run(layout, leaves, start.permutations, key, limits, mesh)


def _at_once(members: int) -> int:
    """How many members are assigned against the same mean.

    With all of them every second move is refused; with a quarter hardly one, and the
    sum grows as fast as with one.
    """
    return max(1, members // 4)


def _finite_members(leaves, xp):
    """Leaves with zeros for a member that is not finite, and which are, `[member]`.

    Such a member is nothing in the mean, and stays in its order.
    """
    finite = True
    for x in leaves:
        finite &= xp.all(xp.isfinite(x), axis=tuple(range(1, x.ndim)))
    zeroed = [
        xp.where(finite.reshape((-1,) + (1,) * (x.ndim - 1)), x, xp.zeros_like(x))
        for x in leaves
    ]
    return zeroed, finite


def _on_host(layout, leaves, orders, key, limits, mesh):
    leaves, orders = fetch((leaves, orders))
    leaves, finite = _finite_members(leaves, np)
    members = num_members(orders)
    found = {name: np.array(order) for name, order in orders.items()}
    own = [
        permute_leaves(
            layout, [x[i] for x in leaves], {n: x[i] for n, x in orders.items()}, np
        )
        for i in range(members)
    ]
    draw_groups = draw_on_host(
        group_order, jax.random.fold_in(key, 0), len(layout.groups)
    )
    draw_members = draw_on_host(group_order, jax.random.fold_in(key, 1), members)
    squares = sum(_dot(x, x) for mine in own for x in mine)
    max_sweeps, tolerance = limits

    def agreements(each):
        total = [np.sum(x, axis=0) for x in zip(*each)]
        sums = [sum(_dot(x, t - x) for x, t in zip(mine, total)) for mine in each]
        means = np.array(sums, np.float32) / max(members - 1, 1)
        return jnp.asarray(np.where(finite, means, np.nan))

    before = agreements([[x[i] for x in leaves] for i in range(members)])
    sweeps, goes_on = 0, True
    with member_threads(members) as map_threads:
        while goes_on and sweeps < max_sweeps:
            # Summed anew, since differences would collect rounding.
            total, added = [np.sum(x, axis=0) for x in zip(*own)], 0.0
            order = draw_members(sweeps)
            for first in range(0, members, _at_once(members)):
                block = order[first : first + _at_once(members)]
                for number in draw_groups(sweeps):
                    group = layout.groups[number]

                    def assign(i, group=group, total=total):
                        others = [t - x for t, x in zip(total, own[i])]
                        return propose(layout, group, others, own[i])

                    for i, proposal in zip(block, map_threads(assign, block)):
                        if proposal is not None:
                            added += _accept(
                                layout, group, i, proposal, own, total, found
                            )
            value = (sum(_dot(t, t) for t in total) - squares) / 2
            goes_on = added > tolerance * abs(value)
            sweeps += 1
    orders = place(found, mesh, jax.P())
    return Matching(orders, before, agreements(own), sweeps)


def _accept(layout, group, member, proposal, own, total, found) -> float:
    """Moves a member's group in place if the sum grows; what was gained."""
    assigned, rounding = proposal
    numbers = layout.leaves_of(group)
    new = moved(layout, group, own[member], assigned)
    changes = {n: new[n] - own[member][n] for n in numbers}
    gained = sum(_dot(total[n] - own[member][n], changes[n]) for n in numbers)
    if not gained > rounding:
        return 0.0
    own[member] = new
    for n in numbers:
        total[n] += changes[n]
    found[group.name][member] = found[group.name][member][assigned]
    return gained


def _dot(a, b) -> float:
    return float(np.vdot(a, b))


def _on_device(layout, leaves, orders, key, limits, mesh):
    job = _JointJob(layout, *limits)
    orders, before, after, sweeps = mesh_program(job, mesh)(leaves, orders, key)
    return Matching(orders, before, after, int(sweeps))


@dataclasses.dataclass(frozen=True)
class _JointJob:
    """The search as one program, the same on every device."""

    layout: Layout
    max_sweeps: int
    tolerance: float
    donate: tuple[int, ...] = ()

    def in_specs(self):
        return jax.P(), jax.P(), jax.P()

    def out_specs(self):
        return jax.P(), jax.P(), jax.P(), jax.P()

    def check(self, mesh, *args):
        del mesh, args

    def prepare(self, mesh, *args):
        del mesh
        return args

    def finish(self, outputs, *args):
        del args
        return outputs

    def local(self, leaves, orders, key):
        layout = self.layout
        leaves, finite = _finite_members(leaves, jnp)
        group_key, member_key = (jax.random.fold_in(key, i) for i in range(2))
        members = num_members(orders)
        at_once = _at_once(members)
        num_blocks = -(-members // at_once)
        missing = num_blocks * at_once - members
        permute_all = jax.vmap(functools.partial(permute_leaves, layout))

        def visit(block, number, carry):
            own, _, total, _ = carry
            is_member = block < members
            block = jnp.minimum(block, members - 1)
            mine = [jnp.take(x, block, axis=0) for x in own]
            others = [t[None] - x for t, x in zip(total, mine)]
            proposals = propose_on_device(layout, number, others, mine, {}, each=True)
            moves = [_acceptance(layout, group) for group in layout.groups]
            return jax.lax.switch(number, moves, carry, (block, is_member, *proposals))

        def sweep(carry):
            own, orders, _, count = carry
            groups = group_order(group_key, count, len(layout.groups))
            order = group_order(member_key, count, members)
            blocks = jnp.pad(order, (0, missing), constant_values=members)
            blocks = blocks.reshape(num_blocks, at_once)
            total = [jnp.sum(x, axis=0) for x in own]
            own, orders, total, added = jax.lax.fori_loop(
                0,
                num_blocks * len(groups),
                lambda i, carry: visit(
                    blocks[i // len(groups)], groups[i % len(groups)], carry
                ),
                (own, orders, total, jnp.zeros((), jnp.float32)),
            )
            value = (sum(jnp.sum(t**2) for t in total) - squares) / 2
            return own, orders, added > self.tolerance * jnp.abs(value), count + 1

        def goes_on(carry):
            return carry[2] & (carry[3] < self.max_sweeps)

        def agreements(own):
            total = [jnp.sum(x, axis=0) for x in own]
            parts = [
                jnp.sum((x * (t[None] - x)).reshape(members, -1), axis=1)
                for x, t in zip(own, total)
            ]
            return jnp.where(finite, sum(parts) / max(members - 1, 1), jnp.nan)

        squares = sum(jnp.sum(x**2) for x in leaves)
        start = permute_all(leaves, orders), orders, jnp.ones((), bool), jnp.int32(0)
        own, found, _, count = jax.lax.while_loop(goes_on, sweep, start)
        return found, agreements(leaves), agreements(own), count


def _acceptance(layout, group):
    """A function that moves one group of a block's members, one after the other."""
    numbers = layout.leaves_of(group)

    def one(carry, proposal):
        own, orders, total, added = carry
        member, is_member, scores, assigned = proposal
        scores, assigned = scores[: group.size, : group.size], assigned[: group.size]
        mine = [x[member] for x in own]
        others = [t - x for t, x in zip(total, mine)]
        present = {group.name: jnp.arange(group.size, dtype=jnp.int32)}
        hoped, rounding = gain(layout, group, others, mine, present, scores, assigned)
        order = {group.name: assigned}
        new = {n: permute_leaf(mine[n], layout.axes[n], order) for n in numbers}
        gained = sum(jnp.sum(others[n] * (new[n] - mine[n])) for n in numbers)
        moves = is_member & (hoped > rounding) & (gained > rounding)
        own, total, orders = list(own), list(total), dict(orders)
        for n in numbers:
            chosen = jnp.where(moves, new[n], mine[n])
            total[n] = total[n] + (chosen - mine[n])
            own[n] = own[n].at[member].set(chosen)
        old = orders[group.name][member]
        old = jnp.where(moves, old[assigned], old)
        orders[group.name] = orders[group.name].at[member].set(old)
        return (own, orders, total, added + jnp.where(moves, gained, 0.0)), None

    def run(carry, proposals):
        return jax.lax.scan(one, carry, proposals)[0]

    return run
