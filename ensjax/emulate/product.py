"""Checkpoints x perturbations x starts as one axis of members, split over devices.

A member is (checkpoint, pair, sign, start) and the seed, nothing else: all that it
draws follows from them, so that any member is made again alone. Members run in blocks.
In a block they share one checkpoint, whose parameters are then not copied; or each has
its own, gathered. Either way no more than a block of members exists.

`fold_product` reduces members lead by lead while they run and forgets them: beside
their ids and what a metric of their order keeps (the CRPS: up to a bound that its error
asks for), memory does not depend on how many there are. `run_product` keeps what is
seen of them.
With the same block and the same `diagnose` both make the same bits of a member,
whichever members are beside it.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from ensjax.emulate.gaps import check_no_gaps
from ensjax.emulate.perturb import NoPerturbation, Start, check_floor, perturbed
from ensjax.emulate.product_job import (
    MemberId,
    ProductJob,
    as_ids,
    product_rows,
    state_key,
)
from ensjax.emulate.rollout import Rollout, checked_leads
from ensjax.mapping import mesh_program
from ensjax.members import member_key, num_members, stack_members
from ensjax.mesh import default_mesh
from ensjax.reduce.stream import family_of

SHARED = ("block", "member")


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
        TypeError, ValueError: if ids are no integers of 32 bits, there is no checkpoint
            or no start, or pairs are negative or no whole number.
    """
    if isinstance(num_pairs, bool) or not isinstance(num_pairs, (int, np.integer)):
        raise TypeError(f"num_pairs must be a whole number; got {num_pairs!r}.")
    checkpoints, starts = (
        as_ids(name, np.arange(x) if np.ndim(x) == 0 else x)
        for name, x in (("checkpoint", checkpoints), ("start", starts))
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
        floor: of `perturbed`, `[channel]` or one number, or None.

    Raises:
        ValueError: for a floor that is NaN or infinite above (one that is traced is not
            looked at); in a forecast, for one of other channels than the state's.
    """

    rollout: Rollout
    perturb: Any = NoPerturbation()
    floor: Any = None

    def __post_init__(self):
        check_floor(self.floor)

    def begin(
        self, member: MemberId, model: Any, start: Start, seed: Any
    ) -> tuple[jax.Array, Any]:
        """The key of a member's forecast, and what its rollout carries at the start."""
        key = identity_key(seed, member)
        own = jax.random.fold_in(key, _PERTURBATION)
        delta = self.perturb(model, own, start)
        state = perturbed(start.state, delta, member.sign, self.floor)
        run = jax.random.fold_in(jax.random.fold_in(key, _FORECAST), member.sign + 1)
        return run, self.rollout.begin(run, state)


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

    A member that becomes NaN under way is left out of the scores of `member_states`
    there, and nothing says so: they are of the others alone. A state of
    `verification.init_not_finite` beside theirs counts such members, by lead and
    element.

    Args:
        forecast: of one member.
        members: who runs, `[member]`, in any order.
        states: of `states_by_lead`, empty or of an earlier call. If `diagnose` returns
            a dict, they may be grouped by its names. Ids of `reduce.ExtremeMembers` are
            positions in `members`.
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
            states of another number of leads; says which. For a start that holds NaN,
            with a step that cannot take what is missing (`NetworkStep.fill`); names the
            start and the variable.
        TypeError: if a state is of no known reduction.
    """
    options = dict(
        models=models,
        starts=starts,
        lead_steps=lead_steps,
        block=block,
        seed=seed,
        checkpoint_ids=checkpoint_ids,
        start_ids=start_ids,
        share=share,
        split_models=split_models,
        mesh=mesh,
    )
    program, arguments = fold_program(forecast, members, states, **options)
    return _grouped(states, program(*arguments))


def fold_program(
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
) -> tuple[Any, tuple[Any, ...]]:
    """The program of `fold_product` and its arguments, to look at or to time.

    Arguments, and what raises, as there. `program(*arguments)` runs it, and
    `program.lower(*arguments).compile().memory_analysis()` tells what it takes.
    """
    families, flat = _families(states)
    job = ProductJob(families, _checked_block(block), _checked(share), split_models)
    leads = checked_leads(lead_steps)
    for name, state in flat.items():
        found = num_members(state)
        if found != len(leads):
            raise ValueError(
                f"states {name} are of {found} leads, but lead_steps has {len(leads)}."
                " Make them with states_by_lead."
            )
    rows, kept, _ = product_rows(
        job, members, models, starts, checkpoint_ids, start_ids, mesh
    )
    _check_starts(forecast, starts, rows, start_ids)
    program = mesh_program(job, default_mesh() if mesh is None else mesh)
    given = models, starts, leads, jnp.int32(seed), forecast
    return program, (flat, rows, kept, *given)


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
    job = ProductJob(None, _checked_block(block), _checked(share), split_models)
    leads = checked_leads(lead_steps)
    rows, kept, place = product_rows(
        job, members, models, starts, checkpoint_ids, start_ids, mesh
    )
    _check_starts(forecast, starts, rows, start_ids)
    program = mesh_program(job, default_mesh() if mesh is None else mesh)
    found = program(None, rows, kept, models, starts, leads, jnp.int32(seed), forecast)
    return jax.tree.map(lambda x: x[place], found)


def _check_starts(forecast, starts, rows, start_ids):
    """Raises `ValueError` for a start with NaN that nobody can begin at."""
    breeding = getattr(forecast.perturb, "step", None)
    remedy = "{} a fill, as NetworkStep(graph, fill=0.0), or starts without NaN"
    options = dict(rows=rows.start, ids=start_ids)
    for step, whose in ((forecast.rollout.step, "the step"), (breeding, "breeding")):
        if step is None or getattr(step, "takes_missing", False):
            continue
        seen = starts if step is breeding else starts._replace(history=None)
        check_no_gaps("starts", seen, remedy.format(whose), **options)


def _families(states):
    """`(group, name, family)` of states, and the states by flat names."""
    families, flat = [], {}
    for name, state in states.items():
        grouped = isinstance(state, dict)
        for inner, one in (state if grouped else {name: state}).items():
            group = name if grouped else None
            key = state_key(group, inner)
            families.append((group, inner, family_of(key, one)))
            flat[key] = one
    if not flat:
        raise ValueError("states are empty: there is nothing to fold members into.")
    return tuple(families), flat


def _grouped(states, folded):
    return {
        name: {inner: folded[state_key(name, inner)] for inner in state}
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
