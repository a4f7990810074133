"""The program of `product`: blocks of members that go from lead to lead.

Rows are arranged on the host, so that a block has one checkpoint where members share
it, and a device the checkpoints that it holds. What is done with a row is the same
whether values are kept or folded.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ensjax.emulate.rollout import lead_lengths
from ensjax.members import num_members
from ensjax.mesh import check_mesh, default_mesh
from ensjax.reduce.devices import Family
from ensjax.reduce.extreme_members import EXTREME_MEMBERS


class MemberId(NamedTuple):
    """Who a member is; integers, `[member]` or `[]` each.

    Attributes:
        checkpoint: id of the trained model.
        pair: number of the perturbation.
        sign: 1 or -1 (centred pairs); 0: unperturbed.
        start: id of the case, such as a date's number.
    """

    checkpoint: Any
    pair: Any
    sign: Any
    start: Any


def as_ids(name: str, values: Any) -> np.ndarray:
    """Ids as int32, of any shape.

    Raises:
        TypeError: if they are no integers.
        ValueError: if one does not fit: two members would become one.
    """
    ids = np.asarray(values)
    if ids.size and not np.issubdtype(ids.dtype, np.integer):
        raise TypeError(f"{name} ids must be integers; got {ids.dtype}.")
    limits = np.iinfo(np.int32)
    if ids.size and not limits.min <= ids.min() <= ids.max() <= limits.max:
        raise ValueError(
            f"{name} ids must lie from {limits.min} to {limits.max}; got"
            f" {ids.min()} to {ids.max()}. Number them anew."
        )
    return ids.astype(np.int32)


class Rows(NamedTuple):
    """Who runs in each row, its number, and where its parameters and its start are."""

    member: MemberId
    number: Any
    model: Any
    start: Any


@dataclasses.dataclass(frozen=True)
class ProductJob:
    """For `mapping.MeshProgram`: blocks of members, one after the other.

    Attributes:
        families: `(diagnostic or None, name, family)` of the states; None: what is seen
            is kept instead.
        block, share, split_models: of `fold_product`.
    """

    families: tuple[tuple[str | None, str, Family], ...] | None
    block: int
    share: str
    split_models: bool
    donate: tuple[int, ...] = ()

    def in_specs(self):
        models = jax.P("member") if self.split_models else jax.P()
        by_member = jax.P("member")
        return jax.P(), by_member, by_member, models, jax.P(), jax.P(), jax.P(), jax.P()

    def out_specs(self):
        return jax.P("member") if self.families is None else jax.P()

    def check(self, mesh, *args):
        del mesh, args

    def prepare(self, mesh, states, rows, kept, models, *rest):
        if self.split_models:
            models = _padded_models(models, mesh.shape["member"])
        return states, rows, kept, models, *rest

    def finish(self, outputs, *args):
        return outputs

    def local(self, states, rows, kept, models, starts, leads, seed, forecast):
        first = 0
        if self.split_models:
            first = jax.lax.axis_index("member") * num_members(models)
        lengths = lead_lengths(leads)
        blocks = jax.tree.map(
            lambda x: x.reshape(-1, self.block, *x.shape[1:]), (rows, kept)
        )
        if self.families is not None:
            states = self._of_this_device(states)

        def of_block(states, rows_and_kept):
            rows, kept = rows_and_kept
            return self._run_block(
                states, rows, kept, first, models, starts, lengths, seed, forecast
            )

        states, values = jax.lax.scan(of_block, states, blocks)
        if self.families is None:  # [block, lead, member of the block, ...]
            return jax.tree.map(
                lambda x: jnp.moveaxis(x, 1, 2).reshape(
                    kept.shape[0], x.shape[1], *x.shape[3:]
                ),
                values,
            )
        return {
            key: jax.lax.map(lambda s: family.psum(s, "member"), states[key])  # noqa: B023
            for key, family in self._by_key()
        }

    def _by_key(self):
        return [
            (state_key(group, name), family) for group, name, family in self.families
        ]

    def _of_this_device(self, states):
        """What was folded in before counts once: on the first device."""
        device = jax.lax.axis_index("member")
        return {
            key: jax.tree.map(
                lambda given, empty: jnp.where(device == 0, given, empty),
                states[key],
                jax.vmap(family.empty)(states[key]),
            )
            for key, family in self._by_key()
        }

    def _run_block(
        self, states, rows, kept, first, models, starts, lengths, seed, forecast
    ):
        """The states after one block, or what is seen of it, `[lead, member, ...]`."""
        if self.share == "block":
            axis, model = None, _take(models, rows.model[0] - first)
        else:
            axis, model = 0, _take(models, rows.model)
        rollout = forecast.rollout

        def begin(member, model, place):
            return forecast.begin(member, model, _take(starts, place), seed)

        keys, members = jax.vmap(begin, in_axes=(0, axis, 0))(
            rows.member, model, rows.start
        )
        onward = jax.vmap(rollout.onward, in_axes=(axis, 0, 0, None, None))

        def to_next(carry, of_lead):
            number, members = carry
            length, states = of_lead
            members = onward(model, keys, members, number, length)
            # What becomes of the values must not change how they are computed.
            seen = jax.lax.optimization_barrier(jax.vmap(rollout.see)(members))
            if self.families is None:
                return (number + length, members), seen
            folded = {}
            for group, name, family in self.families:
                values = seen if group is None else seen[group]
                if family is EXTREME_MEMBERS:
                    values = values, rows.number
                key = state_key(group, name)
                folded[key] = family.update(states[key], values, kept)
            return (number + length, members), folded

        begun = (jnp.int32(0), members)
        _, found = jax.lax.scan(to_next, begun, (lengths, states))
        return (None, found) if self.families is None else (found, None)


def _take(tree, place):
    return jax.tree.map(lambda x: x[place], tree)


def _padded_models(models, devices):
    """Copies of the first checkpoint fill up the devices; nobody runs them."""
    count = num_members(models)
    extra = -count % devices

    def pad(x):
        copies = jnp.broadcast_to(x[:1], (extra, *x.shape[1:]))
        return jnp.concatenate([x, copies])

    return models if extra == 0 else jax.tree.map(pad, models)


def product_rows(job, members, models, starts, checkpoint_ids, start_ids, mesh):
    """Rows in whole blocks, which of them count, and the row of each member."""
    mesh = default_mesh() if mesh is None else mesh
    check_mesh(mesh)
    devices = mesh.shape["member"]
    members = MemberId(
        *(np.atleast_1d(as_ids(n, x)) for n, x in zip(MemberId._fields, members))
    )
    members = MemberId(*np.broadcast_arrays(*members))
    if members.start.ndim != 1 or not members.start.size:
        raise ValueError(
            f"members must be ids [member], one or more; got {members.start.shape}."
        )
    if not set(np.unique(members.sign)) <= {-1, 0, 1}:
        raise ValueError(f"signs are -1, 0 or 1; got {np.unique(members.sign)}.")
    has_models = bool(jax.tree.leaves(models))
    count = num_members(models) if has_models else None
    model_rows = _places("checkpoint", members.checkpoint, checkpoint_ids, count)
    start_rows = _places("start", members.start, start_ids, num_members(starts))
    per_device = None
    if job.split_models:
        if job.share != "block" or not has_models:
            raise ValueError('split_models needs models, and share="block".')
        per_device = -(-count // devices)
    order, kept = _arranged(
        model_rows if job.share == "block" else np.zeros_like(model_rows),
        job.block,
        devices,
        per_device,
    )
    place = np.empty(members.start.size, np.int64)
    place[order[kept]] = np.flatnonzero(kept)
    rows = Rows(
        MemberId(*(x[order] for x in members)),
        order.astype(np.int32),
        model_rows[order],
        start_rows[order],
    )
    return rows, kept, place


def _places(name, wanted, ids, count):
    """The row of each id."""
    if count is None:
        return np.zeros_like(wanted)
    ids = np.arange(count) if ids is None else np.asarray(ids)
    if ids.shape != (count,) or len(set(ids.tolist())) != count:
        raise ValueError(
            f"{name}_ids must be {count} different integers; got {ids.tolist()}."
        )
    order = np.argsort(ids)
    place = order[np.clip(np.searchsorted(ids[order], wanted), 0, count - 1)]
    unknown = np.unique(wanted[ids[place] != wanted])
    if unknown.size:
        raise ValueError(
            f"members name {name} {unknown[:5].tolist()}, of which there is none; ids"
            f" are {ids[:5].tolist()}{' ...' if count > 5 else ''}."
        )
    return place.astype(np.int32)


def _arranged(groups, block, devices, per_device):
    """Members in blocks of one group, padded by copies: their numbers, who counts.

    Args:
        groups: int `[member]`.
        block: rows of a block.
        devices: rows divide over them, in whole blocks.
        per_device: groups whose rows are on each device; None: anywhere.
    """

    def padded(rows, size):
        kept = np.arange(size) < rows.size
        fill = rows[0] if rows.size else 0
        return np.concatenate([rows, np.full(size - rows.size, fill)]), kept

    def whole(number, unit):
        return max(-(-number // unit), 1) * unit

    parts = [np.flatnonzero(groups == group) for group in np.unique(groups)]
    parts = [padded(rows, whole(rows.size, block)) for rows in parts]
    if per_device is None:
        rows, kept = (np.concatenate(x) for x in zip(*parts))
        extra = whole(rows.size, block * devices) - rows.size
        # Whole blocks of copies, of the last group.
        rows = np.concatenate([rows, np.full(extra, rows[-1])])
        return rows, np.concatenate([kept, np.zeros(extra, bool)])
    owners = np.unique(groups) // per_device
    held = [
        [np.concatenate(x) for x in zip(*own)] if own else [np.zeros(0, int)] * 2
        for own in (
            [part for part, owner in zip(parts, owners) if owner == device]
            for device in range(devices)
        )
    ]
    size = whole(max(rows.size for rows, _ in held), block)
    rows, kept = [], []
    for own, counts in held:
        fill = own[-1] if own.size else 0
        rows.append(np.concatenate([own, np.full(size - own.size, fill)]))
        kept.append(np.concatenate([counts, np.zeros(size - own.size)]).astype(bool))
    return np.concatenate(rows).astype(int), np.concatenate(kept)


def state_key(group, name):
    return name if group is None else f"{group}/{name}"
