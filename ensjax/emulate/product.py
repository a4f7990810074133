"""Checkpoints x perturbations x starts as one axis of members, split over devices.

A member is (checkpoint, pair, sign, start) and the seed, nothing else: all that it
draws follows from them, so that any member is made again alone. Members run in blocks.
In a block they share one checkpoint, whose parameters are then not copied; or each has
its own, gathered. Either way no more than a block of members exists.

`fold_product` reduces members lead by lead while they run and forgets them, in a memory
that does not depend on how many there are. `run_product` keeps what is seen of them.
With the same block and the same `diagnose` both make the same bits of a member,
whichever members are beside it.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from ensjax.emulate.perturb import NoPerturbation, Start, perturbed
from ensjax.emulate.rollout import Rollout, checked_leads, lead_lengths
from ensjax.mapping import mesh_program
from ensjax.members import member_key, num_members, stack_members
from ensjax.mesh import check_mesh, default_mesh
from ensjax.reduce.devices import Family
from ensjax.reduce.stream import family_of

SHARED = ("block", "member")


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


def product_ids(
    checkpoints: Any, num_pairs: int, starts: Any, *, with_control: bool = False
) -> MemberId:
    """Every checkpoint with every pair and both signs, for every start, `[member]`.

    Starts change slowest, then checkpoints, then pairs, then signs.

    Args:
        checkpoints: ids `[checkpoint]`, or how many: 0, 1, ...
        num_pairs: of each checkpoint; 0: one unperturbed member of each.
        starts: ids `[start]`, or how many.
        with_control: whether the first member of the first checkpoint is unperturbed.

    Raises:
        ValueError: if there is no checkpoint or no start, or pairs are negative.
    """
    checkpoints, starts = (
        np.arange(x) if np.ndim(x) == 0 else np.asarray(x)
        for x in (checkpoints, starts)
    )
    if not checkpoints.size or not starts.size or num_pairs < 0:
        raise ValueError(
            "a product needs a checkpoint, a start and 0 or more pairs; got"
            f" {checkpoints.size}, {starts.size} and {num_pairs}."
        )
    pairs, signs = np.arange(max(num_pairs, 1)), np.array([1, -1])
    if num_pairs == 0:
        signs = np.array([0])
    start, checkpoint, pair, sign = (
        x.reshape(-1).astype(np.int32)
        for x in np.meshgrid(starts, checkpoints, pairs, signs, indexing="ij")
    )
    if with_control:
        is_first = (checkpoint == checkpoints[0]) & (pair == 0) & (sign > 0)
        sign = np.where(is_first, 0, sign)
    return MemberId(checkpoint, pair, sign.astype(np.int32), start)


def identity_key(seed: Any, member: MemberId) -> jax.Array:
    """The key of a pair of one checkpoint and start: both signs have it in common."""
    key = member_key(seed, "sample", member.start)
    return jax.random.fold_in(jax.random.fold_in(key, member.checkpoint), member.pair)


_PERTURBATION, _FORECAST = 0, 1


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["perturb", "floor"],
    meta_fields=["rollout"],
)
@dataclasses.dataclass(frozen=True)
class MemberForecast:
    """The forecast of one member, from its identity to what is seen at leads.

    Attributes:
        rollout: of one member.
        perturb: such as `BredVectors`; a pytree.
        floor: of `perturbed`, `[channel]`, or None.
    """

    rollout: Rollout
    perturb: Any = NoPerturbation()
    floor: Any = None

    def begin(
        self, member: MemberId, model: Any, start: Start, seed: Any
    ) -> tuple[jax.Array, Any]:
        """The key of a member's forecast and the state that it starts from."""
        key = identity_key(seed, member)
        own = jax.random.fold_in(key, _PERTURBATION)
        delta = self.perturb(model, own, start)
        state = perturbed(start.state, delta, member.sign, self.floor)
        run = jax.random.fold_in(jax.random.fold_in(key, _FORECAST), member.sign + 1)
        return run, state


def states_by_lead(make: Callable[[int], Any], num_leads: int) -> Any:
    """States of reductions for every lead, leaves `[lead, ...]`, for `fold_product`.

    Args:
        make: of a position among the leads; returns the states for what is seen of one
            member there, `{name: state}`, or `{diagnostic: {name: state}}`.
        num_leads: how many.

    Example::

        states = states_by_lead(
            lambda lead: member_states(metrics, truth[lead], max_members=7_424), 12
        )
    """
    return stack_members([make(lead) for lead in range(num_leads)])


def fold_product(
    forecast: MemberForecast,
    members: MemberId,
    states: dict[str, Any],
    *,
    models: Any,
    starts: Start,
    lead_steps: Sequence[int],
    block: int,
    seed: int = 0,
    checkpoint_ids: Any = None,
    start_ids: Any = None,
    share: str = "block",
    split_models: bool = False,
    mesh: Mesh | None = None,
) -> dict[str, Any]:
    """`states` with all members folded in at each lead; none is kept.

    One compiled program, the same for any numbers of steps. Each device takes a block
    of members to the first lead, folds in what is seen of them, goes on to the next,
    and at last takes the next block; then the devices' states are merged.

    Args:
        forecast: of one member.
        members: who runs, `[member]`, in any order.
        states: of `states_by_lead`, empty or of an earlier call. If `diagnose` returns
            a dict, they may be grouped by its names.
        models: parameters `[checkpoint, ...]`, `Ensemble.state` of networks; None for a
            step without parameters.
        starts: leaves `[start, ...]`.
        lead_steps: rising numbers of steps, `[lead]`.
        block: members of a device that run at once.
        seed: of the run.
        checkpoint_ids: of the rows of `models`, `[checkpoint]`; 0, 1, ... by default.
        start_ids: of the rows of `starts`, `[start]`; 0, 1, ... by default.
        share: "block": members of a block have one checkpoint (blocks of a checkpoint
            that are not full are padded); "member": each has parameters of its own.
        split_models: whether each device holds its part of the checkpoints only, and
            runs their members; for share="block".
        mesh: from `make_mesh`; all devices by default.

    Returns:
        The new states, leaves `[lead, ...]`, whole on every device.

    Raises:
        ValueError: for ids that no row has, leads that do not rise, a block below 1, or
            states of another number of leads; says which.
        TypeError: if a state is of no known reduction.
    """
    families, flat = _families(states)
    job = _ProductJob(families, _checked_block(block), _checked(share), split_models)
    leads = checked_leads(lead_steps)
    for name, state in flat.items():
        found = num_members(state)
        if found != len(leads):
            raise ValueError(
                f"states {name} are of {found} leads, but lead_steps has {len(leads)}."
                " Make them with states_by_lead."
            )
    rows, kept, _ = _rows(job, members, models, starts, checkpoint_ids, start_ids, mesh)
    program = mesh_program(job, default_mesh() if mesh is None else mesh)
    folded = program(flat, rows, kept, models, starts, leads, jnp.int32(seed), forecast)
    return _grouped(states, folded)


def run_product(
    forecast: MemberForecast,
    members: MemberId,
    *,
    models: Any,
    starts: Start,
    lead_steps: Sequence[int],
    block: int,
    seed: int = 0,
    checkpoint_ids: Any = None,
    start_ids: Any = None,
    share: str = "block",
    split_models: bool = False,
    mesh: Mesh | None = None,
) -> Any:
    """What is seen of members at leads, leaves `[member, lead, ...]`; all are kept.

    A single member is made again, bit for bit, with the block and `share` of the run
    that it was in: its block is filled with copies.

    Args:
        forecast, members, models, starts, lead_steps, block, seed, checkpoint_ids,
            start_ids, share, split_models, mesh: as in `fold_product`.

    Raises:
        ValueError: as `fold_product`.
    """
    job = _ProductJob(None, _checked_block(block), _checked(share), split_models)
    leads = checked_leads(lead_steps)
    rows, kept, place = _rows(
        job, members, models, starts, checkpoint_ids, start_ids, mesh
    )
    program = mesh_program(job, default_mesh() if mesh is None else mesh)
    found = program(None, rows, kept, models, starts, leads, jnp.int32(seed), forecast)
    return jax.tree.map(lambda x: x[place], found)


class _Rows(NamedTuple):
    """Who runs in each row, and where its parameters and its start are."""

    member: MemberId
    model: Any
    start: Any


@dataclasses.dataclass(frozen=True)
class _ProductJob:
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
        return [(_key(group, name), family) for group, name, family in self.families]

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
            seen = jax.lax.optimization_barrier(jax.vmap(rollout.diagnose)(members))
            if self.families is None:
                return (number + length, members), seen
            states = {
                _key(group, name): family.update(
                    states[_key(group, name)],
                    seen if group is None else seen[group],
                    kept,
                )
                for group, name, family in self.families
            }
            return (number + length, members), states

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


def _rows(job, members, models, starts, checkpoint_ids, start_ids, mesh):
    """Rows in whole blocks, which of them count, and the row of each member."""
    mesh = default_mesh() if mesh is None else mesh
    check_mesh(mesh)
    devices = mesh.shape["member"]
    members = MemberId(
        *(np.atleast_1d(np.asarray(x)).astype(np.int32) for x in members)
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
    rows = _Rows(
        MemberId(*(x[order] for x in members)), model_rows[order], start_rows[order]
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


def _key(group, name):
    return name if group is None else f"{group}/{name}"


def _families(states):
    """`(group, name, family)` of states, and the states by flat names."""
    families, flat = [], {}
    for name, state in states.items():
        grouped = isinstance(state, dict)
        for inner, one in (state if grouped else {name: state}).items():
            group = name if grouped else None
            key = _key(group, inner)
            families.append((group, inner, family_of(key, one)))
            flat[key] = one
    if not flat:
        raise ValueError("states are empty: there is nothing to fold members into.")
    return tuple(families), flat


def _grouped(states, folded):
    return {
        name: {inner: folded[_key(name, inner)] for inner in state}
        if isinstance(state, dict)
        else folded[name]
        for name, state in states.items()
    }


def _checked_block(block):
    if isinstance(block, bool) or not isinstance(block, int) or block < 1:
        raise ValueError(f"block must be a positive integer; got {block!r}.")
    return block


def _checked(share):
    if share not in SHARED:
        raise ValueError(f"share must be one of {', '.join(SHARED)}; got {share!r}.")
    return share
