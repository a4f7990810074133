"""Which entries of task vectors are kept: the largest, a band, or some at random.

Task vectors are lists of leaves `[member, ...]` in float32 (`vectors.map_together`). A
member's entries are ranked among its own, so that a stack which is split over members
ranks without communication.
"""

import math
import zlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ensjax.weight_space.vectors import rows_of


def member_knob(
    name: str, value: Any, num_members: int, *, low: float = 0.0, high: float = 1.0
) -> jax.Array:
    """A knob as float32 `[member]`, of one number or one for each member.

    Raises:
        ValueError: if it is of another shape, or known here and not from `low` to
            `high`.
    """
    if np.shape(value) not in ((), (num_members,)):
        raise ValueError(
            f"{name} must be a number or [member] with {num_members} members; got shape"
            f" {np.shape(value)}."
        )
    if not isinstance(value, jax.core.Tracer):
        known = np.asarray(value, np.float64)
        if not ((known >= low) & (known <= high)).all():
            raise ValueError(
                f"{name} must lie from {low:g} to {high:g}; got {known.tolist()}."
            )
    return jnp.broadcast_to(jnp.asarray(value, jnp.float32), (num_members,))


def kth_largest(values: Sequence[jax.Array], counts: jax.Array) -> jax.Array:
    """The `counts[m]`-th largest of each member's values, all leaves together.

    Without a sort: the result is the largest number that at least so many values reach.
    Numbers of at least 0 are ordered as their bits are, and the bits are found one by
    one, in 31 rounds of counting for float32. That is exact, whichever way the leaves
    are split over devices.

    Args:
        values: leaves `[member, ...]`, at least 0.
        counts: `[member]`, from 0 to the number of a member's values.

    Returns:
        `[member]`; infinity where the count is 0.
    """
    dtype = jnp.result_type(*values)
    integer = {4: jnp.int32, 8: jnp.int64}[dtype.itemsize]
    bits = [jax.lax.bitcast_convert_type(v.astype(dtype), integer) for v in values]
    infinity = jax.lax.bitcast_convert_type(jnp.array(jnp.inf, dtype), integer)
    # Counts of more than 2^31 entries are kept in float32, to 1e-7 of them.
    size = sum(v[0].size for v in values)
    number = jnp.int32 if size < 2**31 else jnp.float32
    counts = jnp.asarray(counts, number)

    def reached(bound):
        sums = [
            jnp.sum(
                b >= rows_of(bound, b), axis=tuple(range(1, b.ndim)), dtype=jnp.int32
            )
            for b in bits
        ]
        return sum(s.astype(number) for s in sums) >= counts

    def round_of(found, bit):
        bound = found | jnp.left_shift(jnp.ones((), integer), bit)
        return jnp.where((bound <= infinity) & reached(bound), bound, found), None

    order = jnp.arange(8 * dtype.itemsize - 2, -1, -1, dtype=integer)
    found, _ = jax.lax.scan(round_of, jnp.zeros(counts.shape, integer), order)
    return jax.lax.bitcast_convert_type(found, dtype)


def keep_largest(
    taus: Sequence[jax.Array], density: jax.Array, *, scope: str
) -> list[jax.Array]:
    """Task vectors with all but each member's largest entries set to 0.

    Args:
        taus: leaves `[member, ...]`.
        density: the share that is kept, `[member]`; of n entries the nearest whole
            number to `density * n`, and those equal to the smallest of them.
        scope: "leaf" or "global", whose entries are ranked together.
    """

    def keep(group):
        sizes = [jnp.abs(tau) for tau in group]
        kept = _share(density, group)
        least = kth_largest(sizes, kept)
        # A NaN is no smaller than anything: it stays, and shows in the result.
        return [
            jnp.where(size < rows_of(least, size), 0.0, tau)
            for tau, size in zip(group, sizes)
        ]

    return _by_scope(keep, taus, scope)


def keep_band(
    taus: Sequence[jax.Array], density: jax.Array, top: jax.Array, *, scope: str
) -> list[jax.Array]:
    """Task vectors without each member's largest and smallest entries.

    Args:
        taus: leaves `[member, ...]`.
        density: the share that is kept, `[member]`.
        top: the share of the largest that is dropped, `[member]`; less where otherwise
            fewer than `density` would be left. Entries equal to the largest that is
            kept are kept too.
        scope: "leaf" or "global", whose entries are ranked together.
    """

    def keep(group):
        sizes = [jnp.abs(tau) for tau in group]
        kept = _share(density, group)
        count = sum(tau[0].size for tau in group)
        dropped = jnp.minimum(_share(top, group), count - kept)
        most = kth_largest(sizes, jnp.minimum(dropped + 1, count))
        least = kth_largest(sizes, dropped + kept)
        least = jnp.where(kept > 0, least, jnp.inf)
        return [
            jnp.where(
                (size < rows_of(least, size)) | (size > rows_of(most, size)), 0.0, tau
            )
            for tau, size in zip(group, sizes)
        ]

    return _by_scope(keep, taus, scope)


def _share(fraction, group):
    """How many of a member's entries a fraction `[member]` is, `[member]`."""
    size = sum(tau[0].size for tau in group)
    count = jnp.round(fraction * size)
    return count.astype(jnp.int32) if size < 2**31 else count


def _by_scope(fn, taus, scope):
    if scope == "global":
        return fn(taus)
    return [kept for tau in taus for kept in fn([tau])]


def drop_at_random(
    names: Sequence[str],
    taus: Sequence[jax.Array],
    key: jax.Array,
    member_ids: jax.Array,
    drop: jax.Array,
) -> list[jax.Array]:
    """Task vectors of which each entry is dropped by chance, the others scaled up.

        tau_i z_i / (1 - p),  z_i ~ Bernoulli(1 - p)

    Args:
        names: dotted names of the leaves; a leaf's draws depend on its name, so that
            leaves merged one at a time lose the same entries.
        taus: leaves `[member, ...]`.
        key: of all members; each has its own by its id.
        member_ids: integers `[member]`.
        drop: the probability p, `[member]`.
    """
    draws = entry_draws(names, taus, key, member_ids)
    return [_thin(tau, d, rows_of(1.0 - drop, tau)) for tau, d in zip(taus, draws)]


def drop_by_rank(
    names: Sequence[str],
    taus: Sequence[jax.Array],
    key: jax.Array,
    member_ids: jax.Array,
    density: jax.Array,
    epsilon: jax.Array,
) -> list[jax.Array]:
    """As `drop_at_random`, larger entries being kept with higher probability.

    The probability rises with the rank of an entry's size among the weights of its
    unit, in equal steps from `density - epsilon` to `density + epsilon`, and what is
    kept is divided by it.

    Args:
        names: as in `drop_at_random`.
        taus: leaves `[member, ...]`. The weights of a unit are those of one index of
            the last axis; a leaf with fewer than two axes is one unit.
        key: as in `drop_at_random`.
        member_ids: integers `[member]`.
        density: the mean probability of being kept, `[member]`.
        epsilon: `[member]`; narrowed to what keeps probabilities from 0 to 1.
    """
    epsilon = jnp.minimum(epsilon, jnp.minimum(density, 1.0 - density))
    draws = entry_draws(names, taus, key, member_ids)
    return [
        _thin(
            tau,
            d,
            rows_of(density, tau)
            + rows_of(epsilon, tau) * (2.0 * _unit_ranks(tau) - 1),
        )
        for tau, d in zip(taus, draws)
    ]


def _thin(tau, draws, probability):
    kept = draws < probability
    return jnp.where(kept, tau / jnp.where(kept, probability, 1.0), 0.0)


def _unit_ranks(tau):
    """Ranks of the sizes within each unit, from 0 (smallest) to 1; one entry has 0.5.

    Where sizes are equal the earlier entry ranks lower.
    """
    units = jnp.abs(tau)
    if tau.ndim >= 3:
        units = units.reshape(tau.shape[0], -1, tau.shape[-1])
    else:
        units = units.reshape(tau.shape[0], -1, 1)
    count = units.shape[1]
    if count == 1:
        return jnp.full(tau.shape, 0.5, tau.dtype)
    order = jnp.argsort(units, axis=1, stable=True)
    ranks = jnp.argsort(order, axis=1, stable=True)
    return (ranks / (count - 1)).astype(tau.dtype).reshape(tau.shape)


def entry_draws(
    names: Sequence[str],
    taus: Sequence[jax.Array],
    key: jax.Array,
    member_ids: jax.Array,
) -> list[jax.Array]:
    """Uniform numbers from 0 to 1 for every entry, leaves `[member, ...]`.

    They depend on the key, the member's id and the leaf's name, and on nothing else:
    in a grid over probabilities, a higher one keeps what a lower one has kept.

    Raises:
        TypeError: if `key` is no key of `jax.random.key`.
        ValueError: if it is not a single one, or of another kind than threefry, whose
            numbers under `vmap` are those of one member alone.
    """
    if not jnp.issubdtype(getattr(key, "dtype", np.float32), jax.dtypes.prng_key):
        raise TypeError(f"key must come from jax.random.key; got {type(key).__name__}.")
    if key.shape != () or str(jax.random.key_impl(key)) != "threefry2x32":
        raise ValueError(
            "key must be one threefry key, jax.random.key(seed, impl='threefry2x32');"
            f" got {key.dtype}{list(key.shape)}."
        )

    def draw(member_id, name, shape):
        own = jax.random.fold_in(jax.random.fold_in(key, member_id), _number_of(name))
        # Numbers in a row: those of more axes are the same, and slow to compile.
        return jax.random.uniform(own, (math.prod(shape),)).reshape(shape)

    return [
        jax.vmap(lambda i: draw(i, name, tau.shape[1:]))(member_ids)  # noqa: B023
        for name, tau in zip(names, taus)
    ]


def _number_of(name):
    return np.uint32(zlib.crc32(name.encode()))
