"""Which entries of task vectors are kept: the largest, a band, or some at random.

Task vectors are lists of leaves `[member, ...]` in float32 (`vectors.map_together`). A
member's entries are ranked among its own, so that a stack which is split over members
ranks without communication.
"""

import math
import zlib
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.random import threefry_2x32

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


def kth_largest(values: Iterable[jax.Array], counts: jax.Array) -> jax.Array:
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
    values = list(values)
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
        least = kth_largest(map(jnp.abs, group), share(density, _size(group)))
        return [trim(tau, least) for tau in group]

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
        lowest, highest = band_ranks(density, top, _size(group))
        least, most = (kth_largest(sizes, rank) for rank in (lowest, highest))
        return [trim(tau, least, most) for tau in group]

    return _by_scope(keep, taus, scope)


def band_ranks(
    density: jax.Array, top: jax.Array, size: int
) -> tuple[jax.Array, jax.Array]:
    """Ranks `[member]` of the smallest and the largest entry that `keep_band` keeps.

    Rank 1 is the largest of `size` entries; the smallest kept has rank 0, above all,
    where none is kept.
    """
    kept = share(density, size)
    dropped = jnp.minimum(share(top, size), size - kept)
    lowest = jnp.where(kept > 0, dropped + kept, 0)
    return lowest, jnp.minimum(dropped + 1, size)


def trim(tau: jax.Array, least: jax.Array, most: jax.Array | None = None) -> jax.Array:
    """`tau`, `[member, ...]`, with 0 for sizes below `least` or above `most`.

    Both are `[member]`. A NaN is no smaller than anything: it stays, and shows in the
    result.
    """
    size = jnp.abs(tau)
    is_dropped = size < rows_of(least, size)
    if most is not None:
        is_dropped |= size > rows_of(most, size)
    return jnp.where(is_dropped, 0.0, tau)


def share(fraction: jax.Array, size: int) -> jax.Array:
    """How many of `size` entries a fraction `[member]` is, `[member]`."""
    count = jnp.round(fraction * size)
    return count.astype(jnp.int32) if size < 2**31 else count


def _size(group):
    return sum(tau[0].size for tau in group)


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
    numbers: Sequence[Any] | None = None,
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
        numbers: as in `entry_draws`.
    """
    draws = entry_draws(names, taus, key, member_ids, numbers)
    return [_thin(tau, d, rows_of(1.0 - drop, tau)) for tau, d in zip(taus, draws)]


def drop_by_rank(
    names: Sequence[str],
    taus: Sequence[jax.Array],
    key: jax.Array,
    member_ids: jax.Array,
    density: jax.Array,
    epsilon: jax.Array,
    numbers: Sequence[Any] | None = None,
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
        numbers: as in `entry_draws`.
    """
    epsilon = jnp.minimum(epsilon, jnp.minimum(density, 1.0 - density))
    draws = entry_draws(names, taus, key, member_ids, numbers)
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
    numbers: Sequence[Any] | None = None,
) -> list[jax.Array]:
    """Uniform numbers from 0 to 1 for every entry, leaves `[member, ...]`.

    They depend on the key, the member's id, the leaf's name and the entry's number, and
    on nothing else: in a grid over probabilities, a higher one keeps what a lower one
    has kept.

    Args:
        names: dotted names of the leaves, or what `name_number` makes of them.
        taus: leaves `[member, ...]`.
        key: of all members.
        member_ids: integers `[member]`.
        numbers: where `taus` are parts of leaves, the entries' numbers in the whole
            leaf, in row-major order: for each, two uint32 arrays `[...]`, the upper and
            the lower half.

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
        own = jax.random.fold_in(jax.random.fold_in(key, member_id), name_number(name))
        # Numbers in a row: those of more axes are the same, and slow to compile.
        return jax.random.uniform(own, (math.prod(shape),)).reshape(shape)

    def draw_at(member_id, name, upper, lower):
        own = jax.random.fold_in(jax.random.fold_in(key, member_id), name_number(name))
        counts = jnp.concatenate([upper.reshape(-1), lower.reshape(-1)])
        bits = threefry_2x32(jax.random.key_data(own), counts).reshape(2, -1)
        bits = bits[0] ^ bits[1]
        # As JAX does: 23 bits of a number from 1 to 2, less 1.
        ones = jax.lax.bitcast_convert_type(bits >> 9 | 0x3F800000, jnp.float32)
        return (ones - 1.0).reshape(lower.shape)

    if numbers is not None:
        return [
            jax.vmap(lambda i: draw_at(i, name, *pair))(member_ids)  # noqa: B023
            for name, pair in zip(names, numbers, strict=True)
        ]
    return [
        jax.vmap(lambda i: draw(i, name, tau.shape[1:]))(member_ids)  # noqa: B023
        for name, tau in zip(names, taus)
    ]


def name_number(name: Any) -> Any:
    """A number by which draws differ between leaves, uint32; of a number itself."""
    return np.uint32(zlib.crc32(name.encode())) if isinstance(name, str) else name
