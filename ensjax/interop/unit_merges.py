"""DELLA: merges in which an entry's rank within its unit says how likely it is kept.

A block holds all weights of some units. In PyTorch's layout these lie behind each
other; in Flax's they are columns of a matrix, and the result is put together in memory.
"""

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ensjax.interop.entry_merges import ELECTING
from ensjax.interop.merge_plans import MergePlan
from ensjax.interop.units import Units
from ensjax.weight_space.elections import elect, votes_of
from ensjax.weight_space.pruning import drop_by_rank, name_number
from ensjax.weight_space.task_vectors import add_to_base
from ensjax.weight_space.vectors import weighted_sum

UNIT_METHODS = ("della", "della_linear")


def reads_of_units(plan: MergePlan, name: str) -> int:
    """How often a tensor is read, in PyTorch's layout."""
    del name
    return 2 if plan.method in ELECTING and plan.scope == "global" else 1


def prepare_units(plan: MergePlan) -> dict[str, Any]:
    """The sign of most entries, where it decides on sums of 0."""
    if plan.method not in ELECTING or plan.scope != "global":
        return {}
    votes = 0
    for name in plan.specs:
        for _, arguments in _parts(plan, name):
            votes += int(_votes(*arguments))
    return {"majority": jnp.float32(-1.0 if votes < 0 else 1.0)}


def merged_units(
    plan: MergePlan, known: dict[str, Any], name: str
) -> Iterator[np.ndarray]:
    """One tensor's merged entries in order, `[entry]` in float32, block by block."""
    units = plan.units(name, "output")
    scope = plan.knobs[name].get("scope", "leaf")
    is_electing = plan.method in ELECTING
    majority = known.get("majority")
    whole = None
    if units.outer > 1:
        whole = np.empty((units.outer, units.count, units.inner), np.float32)
    for (first, last), arguments in _parts(plan, name):
        merged = _merge(is_electing, scope, *arguments, majority)
        # [outer * inner, unit], of which the last units are padding
        merged = np.asarray(merged)[:, : last - first]
        merged = merged.reshape(units.outer, units.inner, -1).swapaxes(1, 2)
        if whole is None:
            yield np.ascontiguousarray(merged).reshape(-1)
        else:
            whole[:, first:last] = merged
    if whole is not None:
        yield whole.reshape(-1)


def _parts(plan, name):
    """Units from and to, and what `_merge` is given of them, a block at a time."""
    units = plan.units(name, "output")
    rest = units.outer * units.inner
    if not rest * units.count:
        return
    count = max(min(plan.blocks.size // rest, units.count), 1)
    count = -(-units.count // -(-units.count // count))  # blocks of nearly equal size
    for first in range(0, units.count, count):
        last = min(first + count, units.count)
        rows, origin = _columns(plan.blocks, name, units, first, last)
        wider = ((0, 0), (0, count - (last - first)))
        rows, origin = np.pad(rows, ((0, 0), *wider)), np.pad(origin, wider)
        numbers = np.arange(rest, dtype=np.uint64)[:, None] * np.uint64(units.count)
        numbers = numbers + np.arange(first, first + count, dtype=np.uint64)[None]
        halves = tuple(
            (numbers >> np.uint64(shift)).astype(np.uint32) for shift in (32, 0)
        )
        own = ("density", "epsilon")
        knobs = {knob: plan.per_member(knob, name) for knob in own}
        knobs |= {"weights": plan.weights(name), "lam": plan.knobs[name]["lam"]}
        yield (
            (first, last),
            (
                rows,
                origin,
                (plan.key(), name_number(name), halves),
                knobs,
            ),
        )


def _columns(blocks, name, units: Units, first: int, last: int):
    """Units of all members, `[member, outer * inner, unit]`, and of the base."""
    shape = (units.outer, last - first, units.inner)
    rows = np.empty((len(blocks.members), *shape), np.float32)
    origin = np.empty(shape, np.float32)
    width = units.count * units.inner
    # A unit's entries lie apart: rows of all units are read, and the others dropped.
    step = units.outer if units.outer == 1 else max(blocks.size // width, 1)
    for start in range(0, units.outer, step):
        stop = min(start + step, units.outer)
        if units.outer == 1:
            places = first * units.inner, last * units.inner
            rows[:, 0] = blocks.rows(name, *places).reshape(rows[:, 0].shape)
            origin[0] = blocks.origin(name, *places).reshape(origin[0].shape)
            continue
        places = start * width, stop * width
        cut = np.s_[..., first:last, :]
        whole = (stop - start, units.count, units.inner)
        own = blocks.rows(name, *places).reshape(-1, *whole)
        rows[:, start:stop] = own[cut]
        origin[start:stop] = blocks.origin(name, *places).reshape(whole)[cut]
    rows = rows.swapaxes(-1, -2).reshape(len(rows), -1, last - first)
    return rows, origin.swapaxes(-1, -2).reshape(-1, last - first)


def _thinned(taus, draws, knobs):
    key, number, halves = draws
    ids = jnp.arange(taus[0].shape[0])
    names, numbers = [number], [halves]
    return drop_by_rank(
        names, taus, key, ids, knobs["density"], knobs["epsilon"], numbers
    )


@functools.partial(jax.jit, static_argnums=(0, 1))
def _merge(is_electing, scope, rows, origin, draws, knobs, majority):
    def merged(_, taus):
        thinned = _thinned(taus, draws, knobs)
        if is_electing:
            return elect(thinned, knobs["weights"], scope=scope, majority=majority)
        return [weighted_sum(tau, knobs["weights"]) for tau in thinned]

    return add_to_base(merged, {"x": rows}, {"x": origin}, knobs["lam"])["x"]


@jax.jit
def _votes(rows, origin, draws, knobs):
    thinned = _thinned([rows - origin[None]], draws, knobs)
    return votes_of([jnp.sign(weighted_sum(t, knobs["weights"])) for t in thinned])
