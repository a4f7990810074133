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
from ensjax.weight_space.matching import (
    Matching,
    draw_on_host,
    group_order,
    match_on_host,
    match_weights,
    matched_leaves,
    visit_on_device,
)
from ensjax.weight_space.permutations import PermutationSpec
from ensjax.weight_space.similarity import (
    Layout,
    leaves_in,
    permute_leaves,
)


def match_weights_jointly(
    stacked: Any,
    spec: PermutationSpec,
    *,
    key: jax.Array | None = None,
    solver: str = "auto",
    max_sweeps: int = 100,
) -> Matching:
    """Permutations that bring all members' units near each other's.

        max over P_1 .. P_M of sum over pairs i < j of <P_i theta_i, P_j theta_j>

    First all are matched to member 0, at once. Then each in turn is matched to the mean
    of the others by one pass over the groups, members and groups in random orders drawn
    from `key`, until a round moves none. No step makes the sum smaller.

    The second part is sequential: every device of a mesh holds the whole stack and does
    the same.

    Args:
        stacked: an `Ensemble`, whose parameters are compared, or leaves
            `[member, ...]`, which all are.
        spec: of the ensemble's state, or of the leaves.
        key: of the orders.
        solver: "host", "device" or "auto", as in `match_weights`.
        max_sweeps: rounds at most, and passes over groups in the first part.

    Returns:
        A `Matching`; `before` and `after` are of each member and the mean of the others
        (0 for a member alone, NaN for one that is not finite).

    Raises:
        ValueError: if the spec is not of this tree (names the leaf) or the solver is
            unknown.

    Source: Ainsworth et al. 2023, arXiv:2209.04836, MergeMany, which matches a member
    until it is stable in each turn; here it starts from a match to member 0.
    """
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
    return run(layout, leaves, start.permutations, key, max_sweeps, mesh)


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


def _on_host(layout, leaves, orders, key, max_sweeps, mesh):
    leaves, orders = fetch((leaves, orders))
    leaves, finite = _finite_members(leaves, np)
    members = [[x[i] for x in leaves] for i in range(num_members(orders))]
    found = [{name: x[i] for name, x in orders.items()} for i in range(len(members))]
    draw_groups = draw_on_host(jax.random.fold_in(key, 0), len(layout.groups))
    draw_members = draw_on_host(jax.random.fold_in(key, 1), len(members))

    def permuted(i, orders):
        return permute_leaves(layout, members[i], orders, np)

    def agreements(found):
        own = [permuted(i, orders) for i, orders in enumerate(found)]
        total = [np.sum(x, axis=0) for x in zip(*own)]
        sums = [
            sum(float(np.sum(x * (t - x))) for x, t in zip(mine, total)) for mine in own
        ]
        means = np.array(sums, np.float32) / max(len(members) - 1, 1)
        return jnp.asarray(np.where(finite, means, np.nan))

    identity = [{n: np.arange(x.shape[1]) for n, x in orders.items()} for _ in members]
    before = agreements(identity)
    total = [
        np.sum(x, axis=0) for x in zip(*(permuted(i, o) for i, o in enumerate(found)))
    ]
    sweeps, moved = 0, True
    while moved and sweeps < max_sweeps:
        moved, groups = False, draw_groups(sweeps)
        for i in draw_members(sweeps):
            others = [t - x for t, x in zip(total, permuted(i, found[i]))]
            new, _ = match_on_host(
                layout, others, members[i], found[i], lambda _, g=groups: g, 1
            )
            if new is not found[i]:
                moved, found[i] = True, new
                total = [t + x for t, x in zip(others, permuted(i, new))]
        sweeps += 1
    stacked = {name: np.stack([o[name] for o in found]) for name in orders}
    orders = place(stacked, mesh, jax.P())
    return Matching(orders, before, agreements(found), sweeps)


def _on_device(layout, leaves, orders, key, max_sweeps, mesh):
    job = _JointJob(layout, max_sweeps)
    orders, before, after, sweeps = mesh_program(job, mesh)(leaves, orders, key)
    return Matching(orders, before, after, int(sweeps))


@dataclasses.dataclass(frozen=True)
class _JointJob:
    """The search as one program, the same on every device."""

    layout: Layout
    max_sweeps: int
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
        permute_all = jax.vmap(functools.partial(permute_leaves, layout))

        def visit(member, groups, carry):
            orders, total, moved = carry
            mine = [jnp.take(x, member, axis=0) for x in leaves]
            own = {name: x[member] for name, x in orders.items()}
            others = [t - x for t, x in zip(total, permute_leaves(layout, mine, own))]
            stack = [x[None] for x in mine]

            def step(number, carry):
                own, moved = carry
                own, now = visit_on_device(layout, groups[number], others, stack, own)
                return own, moved | jnp.any(now)

            own, moved = jax.lax.fori_loop(
                0,
                len(layout.groups),
                step,
                ({name: x[None] for name, x in own.items()}, moved),
            )
            orders = {n: x.at[member].set(own[n][0]) for n, x in orders.items()}
            own = {name: x[0] for name, x in own.items()}
            again = permute_leaves(layout, mine, own)
            return orders, [t + x for t, x in zip(others, again)], moved

        def sweep(carry):
            orders, total, _, count = carry
            groups = group_order(group_key, count, len(layout.groups))
            order = group_order(member_key, count, members)
            orders, total, moved = jax.lax.fori_loop(
                0,
                members,
                lambda i, carry: visit(order[i], groups, carry),
                (orders, total, jnp.zeros((), bool)),
            )
            return orders, total, moved, count + 1

        def goes_on(carry):
            return carry[2] & (carry[3] < self.max_sweeps)

        def agreements(orders):
            own = permute_all(leaves, orders)
            total = [jnp.sum(x, axis=0) for x in own]
            parts = [
                jnp.sum((x * (t[None] - x)).reshape(members, -1), axis=1)
                for x, t in zip(own, total)
            ]
            return jnp.where(finite, sum(parts) / max(members - 1, 1), jnp.nan)

        total = [jnp.sum(x, axis=0) for x in permute_all(leaves, orders)]
        start = (orders, total, jnp.ones((), bool), jnp.zeros((), jnp.int32))
        found, _, _, count = jax.lax.while_loop(goes_on, sweep, start)
        identity = {
            name: jnp.broadcast_to(jnp.arange(x.shape[1], dtype=x.dtype), x.shape)
            for name, x in orders.items()
        }
        return found, agreements(identity), agreements(found), count
