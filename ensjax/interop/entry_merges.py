"""Merges whose every entry depends on the same entry of all members alone.

So do averages and sums of task vectors; and trimming, once it is known how large an
entry must be, and elections, once the majority's sign is. These are found first, in
passes over all that is ranked together.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ensjax.interop.merge_plans import MergePlan
from ensjax.interop.ranks import streamed_kth_largest
from ensjax.interop.tensor_blocks import padded
from ensjax.interop.tensor_types import WeightsError
from ensjax.weight_space.elections import (
    elect,
    merge_selected,
    select,
    shares_of_squares,
    varying_count,
    votes_of,
)
from ensjax.weight_space.methods import METHODS
from ensjax.weight_space.pruning import (
    band_ranks,
    drop_at_random,
    name_number,
    share,
    trim,
)
from ensjax.weight_space.task_vectors import add_to_base
from ensjax.weight_space.vectors import weighted_sum

_WHOLE = ("average", "task_arithmetic", "nearswap", "fisher")
_TRIMMED = ("ties", "breadcrumbs", "breadcrumbs_ties")
_DRAWN = ("dare", "dare_ties")
ELECTING = ("ties", "breadcrumbs_ties", "dare_ties", "della")
ENTRY_METHODS = (*_WHOLE, *_TRIMMED, *_DRAWN, "sce")


def reads_of_entries(plan: MergePlan, name: str) -> int:
    """How often a tensor of the members is read."""
    reads = 1
    if plan.method in _TRIMMED and not _keeps_all(plan):
        reads += 2
    if plan.method in ELECTING and plan.scope == "global":
        reads += 1
    if plan.method == "sce":
        reads += 1 if plan.knobs[name]["density"] >= 1.0 else 3
    return reads


def prepare_entries(plan: MergePlan) -> dict[str, Any]:
    """What must be known of the whole model before an entry is merged.

    Returns:
        By name: "least" and "most", sizes of entries that are kept, `[member]`;
        "majority", the sign of most entries; "lengths" of the Fisher information.
    """
    known: dict[str, Any] = {}
    names = list(plan.specs)
    if plan.method in _TRIMMED and plan.scope == "global":
        known |= _thresholds(plan, names)
    if plan.method in ELECTING and plan.scope == "global":
        votes = 0
        for name in names:
            for start, stop in plan.blocks.ranges(plan.specs[name]):
                arguments = _arguments(plan, known, name, start, stop)
                votes += int(_votes(plan.method, *arguments))
        known["majority"] = jnp.float32(-1.0 if votes < 0 else 1.0)
    if plan.method == "fisher" and plan.knobs[names[0]]["normalize"]:
        assert plan.fisher is not None
        squares = np.zeros(plan.num_members)
        for name in names:
            for start, stop in plan.fisher.ranges(plan.specs[name]):
                rows = plan.fisher.rows(name, start, stop)
                squares += np.einsum("mi,mi->m", rows, rows, dtype=np.float64)
        known["lengths"] = np.sqrt(np.where(squares > 0, squares, 1.0))
    return known


def merged_entries(
    plan: MergePlan, known: dict[str, Any], name: str
) -> Iterator[np.ndarray]:
    """One tensor's merged entries in order, `[entry]` in float32, block by block."""
    if plan.method == "sce":
        yield from _merged_sce(plan, name)
        return
    if plan.method in _TRIMMED and plan.scope == "leaf":
        known = {**known, **_thresholds(plan, [name])}
    for start, stop in plan.blocks.ranges(plan.specs[name]):
        merged = _merge(plan.method, *_arguments(plan, known, name, start, stop))
        yield np.asarray(merged)[: stop - start]


def _arguments(plan, known, name, start, stop):
    """Of `_merge` and `_votes`, for one block."""
    blocks = plan.blocks
    rows = padded(blocks.rows(name, start, stop), blocks.size)
    origin = blocks.origin(name, start, stop)
    origin = None if origin is None else padded(origin, blocks.size)
    knobs = dict(plan.knobs[name])
    # Strings and truths make programs, numbers go into them.
    options = {k: knobs.pop(k) for k in ("scope", "normalize") if k in knobs}
    knobs = {k: np.asarray(v, np.float32) for k, v in knobs.items() if v is not None}
    if plan.method not in _WHOLE:
        knobs["weights"] = plan.weights(name)
    known = dict(known)
    lengths = known.pop("lengths", None)
    if plan.method == "fisher":
        known["fisher"] = _fisher(plan, name, start, stop, lengths)
        options["normalize"] = False  # the lengths are of the whole model
    if plan.method in _DRAWN:
        known["draws"] = (plan.key(), name_number(name), *_halves(start))
    return tuple(options.items()), rows, origin, knobs, known


def _fisher(plan, name, start, stop, lengths):
    rows = plan.fisher.rows(name, start, stop)
    if rows.min(initial=0.0) < 0:
        row = int(np.argmin(rows.min(axis=1)))
        raise WeightsError(
            f"tensor {name!r} of {plan.fisher.members[row].path} is negative;"
            " Fisher information is at least 0."
        )
    if lengths is not None:
        rows /= lengths[:, None].astype(np.float32)
    return padded(rows, plan.blocks.size)


def _halves(number):
    return np.uint32(number >> 32), np.uint32(number & 0xFFFFFFFF)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _merge(method, options, rows, origin, knobs, known):
    stacked, base = {"x": rows}, {"x": origin}
    options = dict(options)
    if method in _WHOLE:
        arguments = [stacked] if origin is None else [stacked, base]
        if method == "fisher":
            arguments.append({"x": known["fisher"]})
        return METHODS[method].merge(*arguments, **options, **knobs)["x"]

    def merged(_, taus):
        thinned = _thinned(method, taus, knobs, known)
        if method not in ELECTING:
            return [weighted_sum(tau, knobs["weights"]) for tau in thinned]
        scope, majority = options.get("scope", "leaf"), known.get("majority")
        return elect(thinned, knobs["weights"], scope=scope, majority=majority)

    return add_to_base(merged, stacked, base, knobs["lam"])["x"]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _votes(method, options, rows, origin, knobs, known):
    del options
    thinned = _thinned(method, [rows - origin[None]], knobs, known)
    return votes_of([jnp.sign(weighted_sum(t, knobs["weights"])) for t in thinned])


def _thinned(method, taus, knobs, known):
    if method in _TRIMMED:
        if "least" not in known:  # all are kept
            return taus
        return [trim(tau, known["least"], known.get("most")) for tau in taus]
    key, number, upper, lower = known["draws"]
    (tau,) = taus
    members, count = tau.shape
    place = jax.lax.iota(jnp.uint32, count) + lower
    upper = upper + (place < lower).astype(jnp.uint32)
    drop = jnp.broadcast_to(jnp.asarray(knobs["drop"], jnp.float32), (members,))
    ids = jnp.arange(members)
    return drop_at_random([number], taus, key, ids, drop, [(upper, place)])


def _keeps_all(plan):
    knobs = plan.knobs.values()
    return plan.method == "ties" and all(np.min(k["density"]) >= 1.0 for k in knobs)


def _thresholds(plan: MergePlan, names: Sequence[str]) -> dict[str, Any]:
    """Sizes from which, and to which, entries of these tensors are kept, `[member]`."""
    if _keeps_all(plan):
        return {}
    size = sum(plan.specs[name].size for name in names)
    density = plan.per_member("density", names[0])
    if plan.method == "ties":
        ranks = [share(density, size)]
    else:
        ranks = list(band_ranks(density, plan.per_member("gamma", names[0]), size))

    def sizes():
        for name in names:
            for start, stop in plan.blocks.ranges(plan.specs[name]):
                moved = plan.blocks.moved(name, start, stop)
                yield np.abs(moved, out=moved)

    found = streamed_kth_largest(sizes, lambda _: np.stack(ranks))
    return dict(zip(("least", "most"), map(jnp.asarray, found)))


def _merged_sce(plan, name):
    blocks, spec, knobs = plan.blocks, plan.specs[name], plan.knobs[name]
    least = jnp.float32(0.0)

    def moved():
        for start, stop in blocks.ranges(spec):
            yield padded(blocks.moved(name, start, stop), blocks.size)

    if knobs["density"] < 1.0:
        (found,) = streamed_kth_largest(
            lambda: (np.asarray(_variance(tau))[None] for tau in moved()),
            lambda positive: varying_count(positive, knobs["density"])[None],
        )
        least = jnp.asarray(found[0])
    squares = np.zeros(plan.num_members)
    for tau in moved():
        squares += np.asarray(_squares(tau, _variance(tau), least))
    means = jnp.asarray(squares / max(spec.size, 1), jnp.float32)
    for start, stop in blocks.ranges(spec):
        rows = padded(blocks.rows(name, start, stop), blocks.size)
        origin = blocks.origin(name, start, stop)
        tau = rows - padded(origin, blocks.size)[None]
        arguments = (_variance(tau), least, means, knobs["lam"])
        merged = _merge_sce(rows, padded(origin, blocks.size), *arguments)
        yield np.asarray(merged)[: stop - start]


# A program of its own: inside another its last bit could differ, and an entry at the
# threshold would be counted but not kept.
@jax.jit
def _variance(tau):
    return jnp.var(tau, axis=0)


@jax.jit
def _squares(tau, variance, least):
    selected = select(tau, variance, least)
    return jnp.sum(selected * selected, axis=1)


@jax.jit
def _merge_sce(rows, origin, variance, least, means, lam):
    def merged(_, taus):
        weights = shares_of_squares(means)
        return merge_selected([select(t, variance, least) for t in taus], weights)

    return add_to_base(merged, {"x": rows}, {"x": origin}, lam)["x"]
