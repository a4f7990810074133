"""How a reduction runs: blocks of members on each device, then across devices."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from ensjax.blocks import Blocks
from ensjax.mapping import map_local, mesh_program
from ensjax.members import num_members, pad_members
from ensjax.mesh import check_mesh, default_mesh


class Family(NamedTuple):
    """The functions of one kind of reduction, all pure.

    Attributes:
        update: `(state, stacked, mask) -> state`.
        psum: `(state, axis_name) -> state` of all devices along the axis.
        empty: `(state) -> state` of no members, for the same shapes and settings.
    """

    update: Callable[[Any, Any, Any], Any]
    psum: Callable[[Any, str], Any]
    empty: Callable[[Any], Any]


def reduce_stack(
    family: Family, state: Any, stacked: Any, mask: Any, mesh: Mesh | None
) -> Any:
    """`state` with all members of a stack folded in, in one compiled program.

    Each device folds in its own members; no device holds another's.

    Args:
        family: of the reduction.
        state: of one reduction, usually still empty.
        stacked: leaves `[member, ...]`.
        mask: `[member]`: booleans, or weights where the family takes them; or None.
        mesh: from `make_mesh`; all devices by default.
    """
    job = FoldBlocks(None, (("only", family),), None)
    return run_fold(job, {"only": state}, stacked, mask, (), mesh)["only"]


def run_fold(
    job: "FoldBlocks", states: Any, stacked: Any, mask: Any, shared: Any, mesh: Any
) -> Any:
    """Runs the compiled form of `job` on a mesh; see `fold_members`."""
    mesh = default_mesh() if mesh is None else mesh
    check_mesh(mesh)
    mask = None if mask is None else jnp.asarray(mask)
    count = np.int32(num_members(stacked))
    return mesh_program(job, mesh)(states, stacked, mask, count, shared)


@dataclasses.dataclass(frozen=True)
class FoldBlocks:
    """A job for `MeshProgram`: runs `fn` over blocks and folds its values into states.

    Attributes:
        fn: of one member and the shared arguments; None: the stack holds the values.
        families: `(name, family)` of every state.
        block: members of a device whose values exist together; None: all of them.
    """

    fn: Callable[..., Any] | None
    families: tuple[tuple[str, Family], ...]
    block: int | None
    donate: tuple[int, ...] = ()

    def in_specs(self):
        return jax.P(), jax.P("member"), jax.P("member"), jax.P(), jax.P()

    def out_specs(self):
        return jax.P()

    def check(self, mesh, states, stacked, mask, count, shared):
        del mesh, states, count, shared
        members = num_members(stacked)
        if mask is not None and mask.shape != (members,):
            raise ValueError(f"mask must be [member] = ({members},); got {mask.shape}.")

    def prepare(self, mesh, states, stacked, mask, count, shared):
        rows = Blocks(self.block).rows(num_members(stacked), mesh.shape["member"])
        stacked = pad_members(stacked, rows)
        if mask is not None:
            padding = jnp.zeros(rows - mask.shape[0], mask.dtype)
            mask = jnp.concatenate([mask, padding])
        return states, stacked, mask, count, shared

    def local(self, states, stacked, mask, count, shared):
        families = dict(self.families)
        device = jax.lax.axis_index("member")
        rows = num_members(stacked)
        block = rows if self.block is None else self.block
        # What was folded in before counts once: on the first device.
        states = {
            name: jax.tree.map(
                lambda given, empty: jnp.where(device == 0, given, empty),
                state,
                families[name].empty(state),
            )
            for name, state in states.items()
        }

        def fold(states, start, members, kept):
            if kept is None:  # rows behind the last member are padding
                kept = device * rows + start + jnp.arange(block) < count
            values = self._values(members, shared)
            return {
                name: families[name].update(state, values, kept)
                for name, state in states.items()
            }

        if block == rows:
            states = fold(states, 0, stacked, mask)
        else:
            split = jax.tree.map(
                lambda x: x.reshape(rows // block, block, *x.shape[1:]), (stacked, mask)
            )

            def step(carry, xs):
                start, states = carry
                return (start + block, fold(states, start, *xs)), None

            (_, states), _ = jax.lax.scan(step, (0, states), split)
        return {
            name: families[name].psum(state, "member") for name, state in states.items()
        }

    def finish(self, outputs, *args):
        return outputs

    def _values(self, members, shared):
        if self.fn is None:
            return members
        kinds = ("member", *("shared",) * len(shared))
        return map_local(self.fn, kinds=kinds, blocks=Blocks())(members, *shared)


def merge_over_devices(
    merge: Callable[[Any, Any], Any], state: Any, axis_name: str
) -> Any:
    """The states of all devices along an axis, merged in pairs, inside a `shard_map`.

    For states that are no sums. In log2(devices) rounds half of the devices that are
    left send theirs; then the first one's is broadcast. No device ever holds more than
    two states.
    """
    size = jax.lax.axis_size(axis_name)
    index = jax.lax.axis_index(axis_name)
    step = 1
    while step < size:
        pairs = [(i + step, i) for i in range(0, size - step, 2 * step)]
        other = jax.tree.map(lambda x: jax.lax.ppermute(x, axis_name, pairs), state)  # noqa: B023
        receives = (index % (2 * step) == 0) & (index + step < size)
        state = jax.lax.cond(receives, merge, lambda a, b: a, state, other)
        step *= 2

    def broadcast(x):
        number = x.astype(jnp.uint8) if x.dtype == bool else x
        first = jnp.where(index == 0, number, jnp.zeros_like(number))
        return jax.lax.psum(first, axis_name).astype(x.dtype)

    return state if size == 1 else jax.tree.map(broadcast, state)
