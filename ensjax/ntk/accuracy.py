"""Accuracy against the number of members, for every number in one pass.

Members are made in blocks, folded into running moments and forgotten. Within a block
the mean of the first N is known for every N: devices make parts of the block and share
their sums alone, as in a parallel prefix sum. Memory depends on the block.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from ensjax.blocks import Blocks
from ensjax.mapping import MeshProgram, map_local, mesh_program
from ensjax.members import num_members, pad_members
from ensjax.mesh import check_mesh, default_mesh
from ensjax.ntk.permutations import check_bits
from ensjax.ntk.rounding import round_bits
from ensjax.reduce import (
    Moments,
    init_moments,
    merge_moments,
    psum_moments,
    update_moments,
)

_MOST_MEMBERS = 2**24  # the last of the whole numbers that float32 counts


class Accuracy(NamedTuple):
    """How right the rounded mean of the first N members is, for N = 1, 2, ...

    Attributes:
        rows: share of rows with all bits right, `[member]`.
        bits: share of bits that are right, `[member]`.
        is_exact: whether every bit of every row is right, booleans `[member]`.
        is_finite: of the member itself, booleans `[member]`; one that is not finite is
            left out of all means.
    """

    rows: jax.Array
    bits: jax.Array
    is_exact: jax.Array
    is_finite: jax.Array


def accuracy_by_members(
    fn: Callable[..., jax.Array],
    stacked: Any,
    targets: np.ndarray,
    thresholds: np.ndarray,
    *,
    block: int,
    shared: tuple[Any, ...] = (),
    moments: Moments | None = None,
    mesh: Mesh | None = None,
) -> tuple[Accuracy, Moments]:
    """Accuracy of the mean of the first N members for every N, and their moments.

    One compiled program. Members may be anything that a function makes: draws of an
    infinitely wide network, finite networks that are trained and forgotten, or outputs
    that are stored.

    Args:
        fn: of one member, `fn(row of stacked, *shared) -> outputs [row, output]`. It
            must be hashable; define it once and reuse it.
        stacked: what tells members apart, in their order, leaves `[member, ...]`.
        targets: what is right, booleans or zeros and ones, `[row, output]`.
        thresholds: of the rounding rule, `[row or 1, output or 1]`.
        block: members whose outputs exist together on a device.
        shared: more arguments of `fn`, whole on every device.
        moments: of members that came before, as this function returned them; None at
            the start. Blocks are folded into them with `ensjax.reduce`.
        mesh: from `make_mesh`; all devices by default.

    Returns:
        The accuracy for each N, counting those that came before, and the moments of all
        members (`ensjax.reduce.finish_moments`).

    Raises:
        ValueError: if shapes do not fit, targets are no bits, the block is not
            positive, or there are more members than 2^24, which float32 cannot count.

    Example:
        >>> import jax, jax.numpy as jnp, numpy as np
        >>> from ensjax import ntk
        >>> def member(member_id):
        ...     noise = jax.random.normal(jax.random.key(member_id), (2, 1))
        ...     return jnp.array([[0.5], [-0.5]]) + noise
        >>> accuracy, moments = ntk.accuracy_by_members(
        ...     member, jnp.arange(1000), np.array([[1], [0]]),
        ...     ntk.sign_thresholds(), block=100)
        >>> bool(accuracy.is_exact[-1])
        True
    """
    program, arguments = accuracy_program(
        fn,
        stacked,
        targets,
        thresholds,
        block=block,
        shared=shared,
        moments=moments,
        mesh=mesh,
    )
    return program(*arguments)


def accuracy_program(
    fn: Callable[..., jax.Array],
    stacked: Any,
    targets: np.ndarray,
    thresholds: np.ndarray,
    *,
    block: int,
    shared: tuple[Any, ...] = (),
    moments: Moments | None = None,
    mesh: Mesh | None = None,
) -> tuple[MeshProgram, tuple[Any, ...]]:
    """The program of `accuracy_by_members` and its arguments, before anything runs.

    `program.lower(*arguments).compile()` says what it takes.

    Args:
        fn, stacked, targets, thresholds, block, shared, moments, mesh: as in
            `accuracy_by_members`.

    Raises:
        ValueError: as `accuracy_by_members`.
    """
    if np.ndim(targets) != 2:
        raise ValueError(
            f"targets must be [row, output]; got shape {np.shape(targets)}."
        )
    check_bits(targets, "targets")
    targets = np.asarray(targets) > 0
    if isinstance(block, bool) or not isinstance(block, int) or block < 1:
        raise ValueError(f"block must be a positive integer; got {block!r}.")
    try:
        thresholds = np.broadcast_to(thresholds, targets.shape)
    except ValueError as error:
        raise ValueError(
            f"thresholds {np.shape(thresholds)} must broadcast to the targets"
            f" {targets.shape}."
        ) from error
    mesh = default_mesh() if mesh is None else mesh
    check_mesh(mesh)
    members = num_members(stacked)
    block = min(block, math.ceil(members / mesh.shape["member"]))
    if moments is None:
        like = jax.ShapeDtypeStruct(targets.shape, jnp.float32)
        moments = init_moments(like)
    if members + float(moments.count) > _MOST_MEMBERS:
        raise ValueError(
            f"moments count up to {_MOST_MEMBERS} members in float32; got"
            f" {float(moments.count):.0f} and {members} more. Keep several and merge"
            " their means in float64."
        )
    program = mesh_program(_Score(fn, block, mesh.shape["member"]), mesh)
    count = np.int32(members)
    limits = np.float32(thresholds)
    return program, (moments, stacked, count, targets, limits, tuple(shared))


def members_to_reach(accuracy: np.ndarray, target: float) -> tuple[float, float]:
    """The first N with an accuracy, and the N from which it is never less.

    An accuracy against members is a noisy curve: the first passage is early, and
    says nothing of what comes after it.

    Args:
        accuracy: for N = 1, 2, ..., `[member]`.
        target: such as 0.9.

    Returns:
        Both N; infinite where it is not reached, or lost again at the end.

    Raises:
        ValueError: if there is no member.
    """
    reached = np.asarray(accuracy) >= target
    if reached.ndim != 1 or not reached.size:
        raise ValueError(f"accuracy is [member]; got shape {reached.shape}.")
    first = float(reached.argmax() + 1) if reached.any() else np.inf
    misses = np.flatnonzero(~reached)
    last = misses[-1] + 1 if misses.size else 0
    stays = float(last + 1) if last < reached.size else np.inf
    return first, stays


@dataclasses.dataclass(frozen=True)
class _Score:
    """A job for `MeshProgram`: makes blocks of members and scores every prefix."""

    fn: Callable[..., jax.Array]
    block: int
    devices: int
    donate: tuple[int, ...] = ()

    def in_specs(self):
        return (jax.P(), jax.P("member"), jax.P("member"), *(jax.P(),) * 3)

    def out_specs(self):
        return jax.P("member"), jax.P()

    def check(self, mesh, moments, stacked, count, targets, thresholds, shared):
        del mesh, count, thresholds, shared
        num_members(stacked)
        if moments.mean.shape != targets.shape:
            raise ValueError(
                f"the moments are of members {moments.mean.shape}, but the targets of"
                f" {targets.shape}."
            )

    def prepare(self, mesh, moments, stacked, count, targets, thresholds, shared):
        del mesh
        rows = Blocks(self.block).rows(num_members(stacked), self.devices)
        kept = jnp.arange(rows) < count
        stacked = (pad_members(stacked, rows), kept)
        # A step of all devices takes members that follow each other.
        steps = rows // self.block // self.devices
        stacked, kept = jax.tree.map(
            lambda x: _regrouped(x, steps, self.block), stacked
        )
        return moments, stacked, kept, targets, thresholds, shared

    def local(self, moments, stacked, kept, targets, thresholds, shared):
        kinds = ("member", *("shared",) * len(shared))
        make = map_local(self.fn, kinds=kinds, blocks=Blocks())
        split = jax.tree.map(
            lambda x: x.reshape(-1, self.block, *x.shape[1:]), (stacked, kept)
        )

        def step(moments, xs):
            members, kept = xs
            values = make(members, *shared)
            if values.shape[1:] != targets.shape:
                raise ValueError(
                    f"a member's outputs are {values.shape[1:]}, but the targets are"
                    f" {targets.shape}."
                )
            is_finite = jnp.isfinite(values).all(axis=(1, 2))
            kept = kept & is_finite
            means = _running_means(moments, values, kept)
            right = round_bits(means, thresholds) == targets[None]
            rows = right.all(axis=2)
            accuracy = Accuracy(
                rows.mean(axis=1),
                right.mean(axis=(1, 2)),
                rows.all(axis=1),
                is_finite,
            )
            new = update_moments(init_moments(moments.mean), values, kept)
            return merge_moments(moments, psum_moments(new)), accuracy

        moments, accuracy = jax.lax.scan(step, moments, split)
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), accuracy), moments

    def finish(self, outputs, moments, stacked, *others):
        del moments, others
        accuracy, moments = outputs
        members = num_members(stacked)
        in_order = jax.tree.map(
            lambda x: _regrouped(x, self.devices, self.block), accuracy
        )
        return jax.tree.map(lambda x: x[:members], in_order), moments


def _regrouped(leaf, groups, block):
    """Blocks of members `[groups, others, block]` as `[others, groups, block]`."""
    split = leaf.reshape(groups, -1, block, *leaf.shape[1:])
    return split.swapaxes(0, 1).reshape(leaf.shape)


def _running_means(moments, values, kept):
    """Means of all members up to each of this device's block, `[member, row, output]`.

    Sums are of deviations from the mean so far, which keeps the digits of a mean that
    is small beside the members' spread.
    """
    away = jnp.where(kept[:, None, None], values - moments.mean[None], 0.0)
    # As a product: XLA's cumulative sum takes the square of the block on a CPU.
    up_to = np.tri(len(kept), dtype=np.float32)
    own = jnp.tensordot(up_to, away, 1, precision="highest")
    counts = jnp.cumsum(kept.astype(jnp.float32))
    totals = jax.lax.all_gather((own[-1], counts[-1]), "member")
    is_before = jnp.arange(totals[1].shape[0]) < jax.lax.axis_index("member")
    sums, numbers = (
        jnp.tensordot(is_before.astype(jnp.float32), total, 1, precision="highest")
        for total in totals
    )
    numbers = moments.count + numbers + counts
    return moments.mean[None] + (sums[None] + own) / jnp.maximum(numbers, 1.0).reshape(
        -1, 1, 1
    )
