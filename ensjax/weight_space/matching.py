"""Weight matching: every member's units in the order of a reference's, from weights.

One group of units after the other is assigned anew with all others held (a coordinate
ascent of the inner product of weights), until no group gains.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from ensjax.ensemble import Ensemble
from ensjax.mapping import mesh_program
from ensjax.members import num_members, pad_members, take_rows, trim_members
from ensjax.mesh import default_mesh, fetch, place
from ensjax.weight_space.assignment import assign_on_device, choose_solver
from ensjax.weight_space.host_matching import (
    draw_on_host,
    match_on_host,
    member_threads,
)
from ensjax.weight_space.permutations import (
    Permutations,
    PermutationSpec,
    identity_permutations,
)
from ensjax.weight_space.similarity import (
    Layout,
    agreement,
    gain,
    layout_of,
    leaves_in,
    similarity,
)


class Matching(NamedTuple):
    """What matching found.

    Attributes:
        permutations: int32 `[member, unit]` by group, for `apply_permutations`.
        before: float32 `[member]`, inner product of each member's weights with those
            that it is matched to, before; matching by activations: the mean correlation
            of matched units.
        after: float32 `[member]`, the same after; never less.
        sweeps: passes over all groups (of all members, where they are matched jointly).
    """

    permutations: Permutations
    before: jax.Array
    after: jax.Array
    sweeps: int


def match_weights(
    stacked: Any,
    spec: PermutationSpec,
    *,
    reference: int | Sequence[int] = 0,
    key: jax.Array | None = None,
    solver: str = "auto",
    max_sweeps: int = 100,
) -> Matching:
    """Permutations that bring each member's units near those of another member.

        max over P of <theta_reference, P theta_m>

    Groups are visited in a random order, drawn anew for each sweep from `key` and the
    same on every machine. All members, or many pairs, are matched at once. Local optima
    exist: residual networks do not always find a planted permutation again.

    Args:
        stacked: an `Ensemble`, whose parameters are compared, or leaves
            `[member, ...]`, which all are.
        spec: of the ensemble's state, or of the leaves.
        reference: the member to which the others are matched, or `[member]`, one for
            each (for the pairs (0, 1), (2, 3): 0, 0, 2, 2). A member that is its own
            reference keeps its order.
        key: of the order of groups.
        solver: of the assignment: "host" (NumPy and SciPy, a thread for each core),
            "device" (one compiled program) or "auto", the faster on this backend.
        max_sweeps: passes over the groups at most.

    Returns:
        A `Matching`, whose `permutations` go to `apply_permutations`.

    Raises:
        ValueError: if the spec is not of this tree (names the leaf), the reference does
            not exist or the solver is unknown.

    Source: Ainsworth et al. 2023, arXiv:2209.04836, algorithm 1; where a leaf holds a
    group on two axes, a step is taken only if the product grows.
    """
    tree, layout, mesh = matched_leaves(stacked, spec)
    members = num_members(tree)
    references = check_references(reference, members)
    key = jax.random.key(0) if key is None else key
    orders = identity_permutations(spec, members)
    if not layout.groups:
        nothing = jnp.zeros(members)
        return Matching(orders, nothing, nothing, 0)
    leaves = leaves_in(layout, tree)
    run = _on_host if choose_solver(solver, mesh) == "host" else _on_device
    return run(layout, leaves, references, orders, key, max_sweeps, mesh)


def check_references(reference: Any, members: int) -> np.ndarray:
    """The reference of each member, `[member]`, or `[1]` if all have the same.

    Raises:
        ValueError: unless it is a member, or as many members as there are.
    """
    found = np.asarray(reference)
    if found.dtype.kind not in "iu" or found.shape not in ((), (members,)):
        raise ValueError(
            f"reference is a member or [member] = ({members},) of them; got"
            f" {reference!r}."
        )
    if found.min() < -members or found.max() >= members:
        raise ValueError(f"reference is one of {members} members; got {reference}.")
    return found.reshape(-1) % members


def matched_leaves(stacked: Any, spec: PermutationSpec) -> tuple[Any, Layout, Mesh]:
    """The tree whose leaves are compared, their layout and the mesh."""
    if isinstance(stacked, Ensemble):
        spec.check(stacked.state)
        layout = layout_of(stacked.state, spec, prefix="params")
        return stacked.state, layout, stacked.mesh
    spec.check(stacked)
    return stacked, layout_of(stacked, spec), default_mesh()


def group_order(key: jax.Array, sweep: Any, count: int) -> jax.Array:
    """The order in which a sweep visits the groups, int32 `[group]`."""
    return jax.random.permutation(jax.random.fold_in(key, sweep), count)


def _on_host(layout, leaves, references, orders, key, max_sweeps, mesh):
    """NumPy and SciPy, a member in each thread; there is nothing to compile."""
    leaves, orders = fetch((leaves, orders))
    members = num_members(orders)
    references = np.broadcast_to(references, members)
    draw = draw_on_host(group_order, key, len(layout.groups))

    def match(member):
        target = [x[references[member]] for x in leaves]
        mine = [x[member] for x in leaves]
        start = {name: order[member] for name, order in orders.items()}
        found, count = match_on_host(layout, target, mine, start, draw, max_sweeps)
        before, after = (
            agreement(layout, target, mine, o, xp=np) for o in (start, found)
        )
        return found, count, before, after

    with member_threads(members) as map_threads:
        found, sweeps, before, after = zip(*map_threads(match, range(members)))
    found = {name: np.stack([own[name] for own in found]) for name in orders}
    orders = place(found, mesh, jax.P())
    return Matching(orders, jnp.asarray(before), jnp.asarray(after), max(sweeps))


def _on_device(layout, leaves, references, orders, key, max_sweeps, mesh):
    each = len(references) > 1
    target = [take_rows(x, references if each else references[0]) for x in leaves]
    job = _MatchJob(layout, max_sweeps, each)
    orders, before, after, sweeps = mesh_program(job, mesh)(target, leaves, orders, key)
    return Matching(orders, before, after, int(np.max(fetch(sweeps))))


def propose_on_device(layout, number, target, leaves, orders, *, each):
    """The best new order of one group of some members, in a program.

    The groups differ in shape, so that each has a branch of its own; the assignment,
    which takes long to compile, is there once, for the largest group: a smaller one is
    padded with units that only go to themselves.

    Args:
        layout: of the leaves.
        number: of the group, traced; the same for all members, since a branch that
            differed between them would run for all.
        target: leaves `[...]`, the same for all members, or `[member, ...]`.
        leaves: `[member, ...]`.
        orders: `[member, unit]` by group; absent groups stay.
        each: whether members have targets of their own.

    Returns:
        Scores and assignments, padded: `[member, unit, unit]` and `[member, unit]`.
    """
    size = max(group.size for group in layout.groups)
    no_score = -1e30

    def score(group):
        def run(orders):
            with jax.default_matmul_precision("highest"):
                scores = jax.vmap(
                    functools.partial(similarity, layout, group),
                    in_axes=(0 if each else None, 0, 0),
                )(target, leaves, orders)
            scores = jnp.where(jnp.isfinite(scores), scores, 0.0)
            more = size - group.size
            padded = jnp.pad(
                scores, ((0, 0), (0, more), (0, more)), constant_values=no_score
            )
            own = jnp.arange(size) >= group.size
            return jnp.where(
                (own[:, None] & jnp.eye(size, dtype=bool))[None], 0.0, padded
            )

        return run

    scores = jax.lax.switch(number, [score(g) for g in layout.groups], orders)
    return scores, assign_on_device(scores)


def _visit(layout, number, target, leaves, orders, *, each):
    """One group assigned anew; the orders, and whether each member's changed."""
    scores, assigned = propose_on_device(
        layout, number, target, leaves, orders, each=each
    )

    def move(group):
        def one(target, leaves, orders, scores, assigned):
            scores = scores[: group.size, : group.size]
            assigned = assigned[: group.size]
            added, rounding = gain(
                layout, group, target, leaves, orders, scores, assigned
            )
            order = orders[group.name]
            order = jnp.where(added > rounding, order[assigned], order)
            return {**orders, group.name: order}, added > rounding

        axes = (0 if each else None, 0, 0, 0, 0)
        return lambda *args: jax.vmap(one, in_axes=axes)(target, leaves, *args)

    moves = [move(g) for g in layout.groups]
    return jax.lax.switch(number, moves, orders, scores, assigned)


@dataclasses.dataclass(frozen=True)
class _MatchJob:
    """The whole search as one program; every device matches its own members."""

    layout: Layout
    max_sweeps: int
    each: bool = False  # whether members have targets of their own
    donate: tuple[int, ...] = ()

    def in_specs(self):
        target = jax.P("member") if self.each else jax.P()
        return target, jax.P("member"), jax.P("member"), jax.P()

    def out_specs(self):
        return (jax.P("member"),) * 4

    def check(self, mesh, *args):
        del mesh, args

    def prepare(self, mesh, target, leaves, orders, key):
        devices = mesh.shape["member"]
        rows = -(-num_members(orders) // devices) * devices
        target = pad_members(target, rows) if self.each else target
        return target, *(pad_members(x, rows) for x in (leaves, orders)), key

    def finish(self, outputs, target, leaves, orders, key):
        del target, leaves, key
        members = num_members(orders)
        return *trim_members(outputs[:3], members), outputs[3]

    def local(self, target, leaves, orders, key):
        layout = self.layout

        def sweep(carry):
            orders, _, count = carry
            order = group_order(key, count, len(layout.groups))

            def step(number, carry):
                orders, moved = carry
                orders, now = _visit(
                    layout, order[number], target, leaves, orders, each=self.each
                )
                return orders, moved | jnp.any(now)

            orders, moved = jax.lax.fori_loop(
                0, len(layout.groups), step, (orders, jnp.zeros((), bool))
            )
            return orders, moved, count + 1

        def goes_on(carry):
            return carry[1] & (carry[2] < self.max_sweeps)

        start = (orders, jnp.ones((), bool), jnp.zeros((), jnp.int32))
        axes = (0 if self.each else None, 0, 0)
        agree = functools.partial(
            jax.vmap(functools.partial(agreement, layout), in_axes=axes), target
        )
        found, _, count = jax.lax.while_loop(goes_on, sweep, start)
        return found, agree(leaves, orders), agree(leaves, found), count[None]
