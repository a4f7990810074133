"""`map_members`: how a function of one member runs over the whole stack.

Outside is a `shard_map` that is manual over the mesh ("member", "data", "model");
inside, the local members run all at once (`vmap`), `block` at a time in a compiled
loop, or one after the other unrolled. This is the only module that maps the member
axis, and the only one that jits training and prediction.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh

from ensjax.blocks import Blocks, auto_block, check_unrolled, tracing_at_once
from ensjax.members import num_members, pad_members, trim_members
from ensjax.mesh import (
    check_mesh,
    default_mesh,
    platform,
    tracing_for,
)

# What an argument is fixes both how the mesh splits it and which axis is mapped.
_SPECS = {
    "member": jax.P("member"),
    "batch": jax.P("data"),
    "member_batch": jax.P("member", "data"),
    "shared": jax.P(),
}
_MAPPED_AXES = {"member": 0, "batch": None, "member_batch": 0, "shared": None}


def map_members(
    fn: Callable[..., Any],
    *,
    kinds: Sequence[str],
    out: Any = "member",
    mesh: Mesh | None = None,
    block: int | str | None = "auto",
    unroll: bool = False,
    donate: Sequence[int] = (),
) -> Callable[..., Any]:
    """A compiled function of stacks from a function of one member.

    Args:
        fn: function of one member. It runs inside a manual `shard_map`, so collectives
            over "data" and "model" work in it. It must be hashable; define it once and
            reuse it, since every new function object compiles again.
        kinds: what each positional argument (any pytree) is:
            "member": stacked, `[member, ...]`;
            "batch": split over "data" and the same for all members, `[batch, ...]`;
            "member_batch": both, `[member, batch, ...]`;
            "shared": whole on every device.
        out: "member" or "member_batch", or a tuple of these, one for each output.
        mesh: from `make_mesh`; by default all devices on the member axis.
        block: how many local members run at once; None: all; "auto": a fixed rule of
            platform and shapes (`auto_block`). With an integer the stack is padded to
            whole blocks, and a member's bits do not depend on the other members.
        unroll: run local members one after the other without a compiled loop.
        donate: positions of arguments whose buffers the outputs may take over.

    Returns:
        A callable over stacks. If the number of members does not divide the devices,
        the stack is padded with copies of member 0 that are dropped from the outputs.

    Raises:
        ValueError: at once for an unknown kind; on the call if stacks disagree, or a
            batch does not divide over "data", or more than 16 members are unrolled.

    Example:
        >>> double = map_members(lambda w, x: w * x, kinds=("member", "shared"))
        >>> double(jnp.ones(3), 2.0)
        Array([2., 2., 2.], dtype=float32)
    """
    mesh = default_mesh() if mesh is None else mesh
    check_mesh(mesh)
    kinds = tuple(kinds)
    for kind in kinds:
        if kind not in _SPECS:
            raise ValueError(
                f"Unknown kind {kind!r}; each argument is one of {', '.join(_SPECS)}."
            )
    if not any(_MAPPED_AXES[kind] == 0 for kind in kinds):
        raise ValueError(
            'No argument is stacked: at least one kind must be "member" or'
            ' "member_batch".'
        )
    out = tuple(out) if isinstance(out, list) else out
    for kind in out if isinstance(out, tuple) else (out,):
        if kind not in ("member", "member_batch"):
            raise ValueError(
                f'Outputs are "member" or "member_batch"; got {kind!r}. Reduce over'
                " members with ensjax.reduce."
            )
    job = _MapMembers(fn, kinds, out, Blocks(block, unroll), tuple(donate))
    return mesh_program(job, mesh)


@functools.lru_cache(maxsize=256)
def mesh_program(job: "MeshJob", mesh: Mesh) -> "MeshProgram":
    """The compiled form of a job; made once for each (job, mesh)."""
    return MeshProgram(job, mesh)


class MeshJob(Protocol):
    """A program over the local stacks of each device; hashable and compared by value.

    Training is one: it needs all local members at once, and calls `map_local` for what
    is one member's. `donate` names argument positions whose buffers may be taken over.
    """

    donate: tuple[int, ...]

    def in_specs(self) -> Any:
        """`jax.P` of every argument (or trees of them)."""

    def out_specs(self) -> Any:
        """`jax.P` of every output."""

    def check(self, mesh: Mesh, *args: Any) -> None:
        """Raises `ValueError` for arguments that cannot work."""

    def prepare(self, mesh: Mesh, *args: Any) -> tuple[Any, ...]:
        """The arguments as they enter the `shard_map` (padded)."""

    def local(self, *args: Any) -> Any:
        """What each device computes from its own part."""

    def finish(self, outputs: Any, *args: Any) -> Any:
        """The outputs of the `shard_map` as they are returned (trimmed)."""


class MeshProgram:
    """A jitted `shard_map` of a job: call it, or `lower` it to look at the program."""

    def __init__(self, job: MeshJob, mesh: Mesh):
        self.job, self.mesh = job, mesh
        # check_vma=False: the check rejects scans whose carry starts as zeros, and
        # custom derivatives, in a user's model. What it would catch (sums over "data"
        # that are missing or doubled) is held by equality tests over meshes instead.
        sharded = jax.shard_map(
            job.local,
            mesh=mesh,
            in_specs=job.in_specs(),
            out_specs=job.out_specs(),
            check_vma=False,
        )

        def run(*args):
            with tracing_for(platform(mesh)):
                outputs = sharded(*job.prepare(mesh, *args))
            return job.finish(outputs, *args)

        run.__name__ = type(job).__name__.strip("_")
        self.jitted = jax.jit(run, donate_argnums=job.donate)

    def __call__(self, *args):
        self.job.check(self.mesh, *args)
        return self.jitted(*args)

    def lower(self, *args):
        """The lowered program for arrays or `jax.ShapeDtypeStruct`s; nothing runs."""
        self.job.check(self.mesh, *args)
        return self.jitted.lower(*args)

    def cache_size(self) -> int:
        """How many compiled programs exist (one per set of shapes)."""
        return self.jitted._cache_size()


@dataclasses.dataclass(frozen=True)
class _MapMembers:
    fn: Callable[..., Any]
    kinds: tuple[str, ...]
    out: Any
    blocks: "Blocks"
    donate: tuple[int, ...]

    def in_specs(self):
        return tuple(_SPECS[kind] for kind in self.kinds)

    def out_specs(self):
        return jax.tree.map(lambda kind: _SPECS[kind], self.out)

    def check(self, mesh, *args):
        if len(args) != len(self.kinds):
            raise TypeError(
                f"{len(self.kinds)} arguments were declared ({', '.join(self.kinds)});"
                f" got {len(args)}."
            )
        rows = self._rows(mesh, args)
        check_unrolled(self.blocks, rows // mesh.shape["member"])
        shards = mesh.shape["data"]
        for number, (kind, arg) in enumerate(zip(self.kinds, args, strict=True)):
            axis = {"batch": 0, "member_batch": 1}.get(kind)
            if axis is None:
                continue
            for path, leaf in jax.tree.leaves_with_path(arg):
                shape = jnp.shape(leaf)
                if len(shape) <= axis or shape[axis] % shards:
                    raise ValueError(
                        f"Argument {number}{jax.tree_util.keystr(path)} is {kind!r}"
                        f" with shape {shape}: axis {axis} must be a batch that divides"
                        f" over data={shards} devices."
                    )

    def _rows(self, mesh, args):
        members = _stacked_members(self.kinds, args)
        return self.blocks.rows(members, mesh.shape["member"])

    def prepare(self, mesh, *args):
        rows = self._rows(mesh, args)
        return tuple(
            pad_members(arg, rows) if _MAPPED_AXES[kind] == 0 else arg
            for kind, arg in zip(self.kinds, args, strict=True)
        )

    def local(self, *args):
        return map_local(self.fn, kinds=self.kinds, blocks=self.blocks)(*args)

    def finish(self, outputs, *args):
        return trim_members(outputs, _stacked_members(self.kinds, args))


def _stacked_members(kinds, args) -> int:
    members = None
    for number, (kind, arg) in enumerate(zip(kinds, args, strict=True)):
        if _MAPPED_AXES[kind] != 0 or not jax.tree.leaves(arg):
            continue
        rows = num_members(arg)
        if members not in (None, rows):
            raise ValueError(
                f"Argument {number} holds {rows} members, but an earlier one {members}."
            )
        members = rows
    if members is None:
        raise ValueError("No stacked argument holds an array.")
    return members


def map_local(
    fn: Callable[..., Any],
    *,
    kinds: Sequence[str],
    blocks: Blocks,
    updates_first: bool = False,
) -> Callable[..., Any]:
    """`fn` of one member over the members of this device, to be used in a `shard_map`.

    Where all members are needed at once (joint objectives), a program is written over
    local stacks and calls this for the parts that are one member's.

    Args:
        fn: function of one member.
        kinds: of its arguments, as in `map_members`; here they say what is mapped.
        blocks: how the local members run.
        updates_first: whether the first output replaces the first argument, which both
            are "member" and of the same shapes. A loop over blocks then writes where it
            has read, and the stack exists once.

    Returns:
        A function of local stacks, leaves `[local member, ...]` where mapped; so are
        its outputs.

    Raises:
        ValueError: on the call, if more than 16 members are unrolled, or the local
            members are no whole blocks.
    """
    axes = tuple(_MAPPED_AXES[kind] for kind in kinds)
    mapped = [i for i, axis in enumerate(axes) if axis == 0]
    mapped_fn = jax.vmap(fn, in_axes=axes)

    def vmapped(size, *args):
        with tracing_at_once(size):
            return mapped_fn(*args)

    def run(*args):
        stacks = [args[i] for i in mapped]
        members = num_members(stacks)

        def one(rows):
            return fn(*_with_rows(args, mapped, rows))

        size = _members_at_once(one, stacks, members, blocks)
        if blocks.unroll:
            results = [
                one(jax.tree.map(lambda x: x[i], stacks))  # noqa: B023
                for i in range(members)
            ]
            return jax.tree.map(lambda *leaves: jnp.stack(leaves), *results)
        if size == 1 and members == 1 and blocks.block is not None:
            # As in the loop below, without `vmap`: a member alone has the same bits.
            result = one(jax.tree.map(lambda x: x[0], stacks))
            return jax.tree.map(lambda x: x[None], result)
        if size >= members:
            return vmapped(members, *args)
        loop = _map_in_place if updates_first else jax.lax.map
        if size == 1:
            return loop(one, stacks)
        if members % size:
            raise ValueError(f"{members} local members are not whole blocks of {size}.")
        split = jax.tree.map(
            lambda x: x.reshape(members // size, size, *x.shape[1:]), stacks
        )
        results = loop(
            lambda rows: vmapped(size, *_with_rows(args, mapped, rows)), split
        )
        return jax.tree.map(lambda x: x.reshape(members, *x.shape[2:]), results)

    return run


def _map_in_place(one, stacks):
    """`lax.map` of a function whose first output takes the place of its first row."""
    shapes = jax.eval_shape(one, jax.tree.map(lambda x: x[0], stacks))
    num_rows = jax.tree.leaves(stacks)[0].shape[0]
    others = jax.tree.map(
        lambda x: jnp.zeros((num_rows, *x.shape), x.dtype), tuple(shapes[1:])
    )

    def row_of(tree, i):
        return jax.tree.map(
            lambda x: jax.lax.dynamic_index_in_dim(x, i, 0, keepdims=False), tree
        )

    def put(tree, row, i):
        return jax.tree.map(
            lambda x, y: jax.lax.dynamic_update_index_in_dim(x, y, i, 0), tree, row
        )

    def body(i, carry):
        first, others = carry
        new, *results = one([row_of(first, i), *row_of(stacks[1:], i)])
        return put(first, new, i), put(others, tuple(results), i)

    first, others = jax.lax.fori_loop(0, num_rows, body, (stacks[0], others))
    return (first, *others)


def members_at_once(
    fn: Callable[..., Any], *args: Any, kinds: Sequence[str], blocks: Blocks
) -> int:
    """How many local members `map_local` runs at once; call it where that is called.

    Args:
        fn: function of one member.
        args: its arguments, local stacks where mapped; shapes are enough.
        kinds: of its arguments.
        blocks: how the local members run.
    """
    mapped = [i for i, kind in enumerate(kinds) if _MAPPED_AXES[kind] == 0]
    stacks = [args[i] for i in mapped]
    members = num_members(stacks)

    def one(rows):
        return fn(*_with_rows(args, mapped, rows))

    return min(members, _members_at_once(one, stacks, members, blocks))


def _members_at_once(one, stacks, members, blocks) -> int:
    if blocks.unroll:
        check_unrolled(blocks, members)
        return 1
    size = blocks.block
    if size == "auto":
        size = auto_block(one, stacks, members)
    return members if size is None else size


def _with_rows(args, mapped, rows):
    """The arguments with other values at the mapped places."""
    full = list(args)
    for i, arg in zip(mapped, rows, strict=True):
        full[i] = arg
    return full


def whole_on_each_device(function: Callable[..., Any], *arguments: Any) -> Any:
    """`function(*arguments)`, computed whole by every device of the arguments' mesh.

    For small fits that rounding can steer: no sum is split, so that the order of sums
    is that of one device. It compiles them, so that a call is rounded as in a compiled
    program; inside `shard_map` there is nothing to gather.

    Args:
        function: of arrays; it may close over nothing that is split.
        *arguments: pytrees of arrays, in any layout. They are gathered, hence small.
    """
    arguments = jax.tree.map(jnp.asarray, arguments)
    meshes = [jax.typeof(leaf).sharding.mesh for leaf in jax.tree.leaves(arguments)]
    meshes = [mesh for mesh in meshes if set(mesh.axis_types) == {AxisType.Auto}]

    # What is before and after is compiled apart, so that it does not change the sums.
    def call(*arguments):
        result = function(*jax.lax.optimization_barrier(arguments))
        return jax.lax.optimization_barrier(result)

    if meshes:
        specs = dict(in_specs=jax.P(), out_specs=jax.P())
        call = jax.shard_map(call, mesh=meshes[0], **specs)
    return jax.jit(call)(*arguments)
