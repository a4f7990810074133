"""Which examples one member sees, as pure functions that a compiled loop calls.

All of them are written for ONE member: the engine maps them, so M members gather their
rows from one copy of the data. Keys are the member's own; a draw that belongs to an
example is keyed by the example's position in the global batch, so that a plan is the
same on any number of devices.

A key given to one function here is used up by it: derive one key per purpose.
"""

import jax
import jax.numpy as jnp
import numpy as np


def epoch_orders(
    key: jax.Array, num_examples: int, first_epoch: int | jax.Array, num_epochs: int
) -> jax.Array:
    """Random orders of all examples, one for each of `num_epochs` epochs.

    Epoch e's order is keyed by `fold_in(key, e)` alone, so any epoch can be made again
    without those before it.

    Args:
        key: the member's key for orders.
        num_examples: rows of the data, static.
        first_epoch: number of the first epoch; may be traced.
        num_epochs: how many epochs, static.

    Returns:
        `[num_epochs, num_examples]`, int32; each row is a permutation.

    Raises:
        ValueError: if `num_examples` or `num_epochs` is below 1.
    """
    _check_positive("num_examples", num_examples)
    _check_positive("num_epochs", num_epochs)

    def order(epoch):
        return _permutation(jax.random.fold_in(key, epoch), num_examples)

    return jax.vmap(order)(first_epoch + jnp.arange(num_epochs, dtype=jnp.int32))


def _permutation(key, num_rows):
    """A random permutation of `num_rows` rows, int32.

    As `jax.random.permutation`, which sorts rows by random keys; but row and key share
    one uint32, since a sort of one operand is several times faster than one of pairs.
    Sorting is repeated until two rows have had at least 20 random bits each: they keep
    their order by a tie with a probability below 1e-6.
    """
    row_bits = max(1, (num_rows - 1).bit_length())
    if row_bits > 24:
        return jax.random.permutation(key, jnp.arange(num_rows, dtype=jnp.int32))
    rounds = -(-20 // (32 - row_bits))
    row_mask = jnp.uint32(2**row_bits - 1)
    rows = jnp.arange(num_rows, dtype=jnp.uint32)
    order = rows.astype(jnp.int32)
    # One axis: the text of a TPU program with more of them cannot be read back.
    draws = jax.random.bits(key, (rounds * num_rows,), jnp.uint32)
    for bits in draws.reshape(rounds, num_rows):
        mixed = jax.lax.sort(bits & ~row_mask | rows, is_stable=False)
        # Ties of one round keep the order of the round before.
        order = order[(mixed & row_mask).astype(jnp.int32)]
    return order


def batch_positions(
    step: int | jax.Array,
    batch_size: int,
    shard_index: int | jax.Array,
    num_shards: int,
    num_examples: int,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Where in its epoch's order one data shard's part of the batch lies.

    An epoch has `num_examples // batch_size` steps; the last `num_examples %
    batch_size` positions of each epoch's order are dropped (other rows every epoch,
    where orders are random). The global batch is split in order over the shards: the
    shards' positions, concatenated, are those of a single shard.

    Args:
        step: number of the training step, from 0; may be traced.
        batch_size: examples of the global batch, static.
        shard_index: this shard's index on the "data" axis; may be traced.
        num_shards: shards of the batch, static.
        num_examples: rows of the data, static.

    Returns:
        `(epoch, positions, batch_positions)`, int32: a scalar; the positions in the
        epoch's order, `[batch_size // num_shards]`; and those in the global batch (what
        `example_keys` and `weighted_rows` take), of the same shape.

    Raises:
        ValueError: if the batch is larger than the data or does not divide over shards.
    """
    _check_positive("batch_size", batch_size)
    _check_positive("num_shards", num_shards)
    if batch_size > num_examples:
        raise ValueError(
            f"batch_size must be at most the {num_examples} examples there are; got"
            f" {batch_size}."
        )
    if batch_size % num_shards:
        raise ValueError(
            f"batch_size must divide over num_shards={num_shards} data shards; got"
            f" {batch_size}. The next that does is {-(-batch_size // num_shards)} x"
            f" {num_shards} = {-(-batch_size // num_shards) * num_shards}."
        )
    steps_per_epoch = num_examples // batch_size
    local_size = batch_size // num_shards
    step = jnp.asarray(step, jnp.int32)
    in_batch = shard_index * local_size + jnp.arange(local_size, dtype=jnp.int32)
    in_batch = in_batch.astype(jnp.int32)
    in_epoch = (step % steps_per_epoch) * batch_size + in_batch
    return step // steps_per_epoch, in_epoch, in_batch


def example_keys(key: jax.Array, positions: jax.Array) -> jax.Array:
    """One key per example, `[len(positions)]`: `fold_in(key, position)`.

    `key` must be new at every step; `positions` are those in the global batch, int32.
    """
    return jax.vmap(lambda position: jax.random.fold_in(key, position))(positions)


def accumulate_weights(weights: np.ndarray, *, name: str = "weights") -> np.ndarray:
    """Cumulative weights for `weighted_rows`, in 32-bit fixed point.

    On the host, in float64, then scaled so that the total is 2^32 - 1. A float32
    running sum of 100,000 weights would be off by percents in single rows, and a
    parallel one is not even monotone. A row whose share of the total is below about
    2^-32 may never be drawn.

    Args:
        weights: `[..., example]`, finite and not negative; any scale.
        name: of the argument, for messages.

    Returns:
        uint32 of the same shape.

    Raises:
        ValueError: if a weight is negative or not finite, or none is positive.
    """
    weights = np.asarray(weights, np.float64)
    if weights.ndim == 0 or weights.shape[-1] == 0:
        raise ValueError(
            f"{name} must be [..., example] with at least one example; got shape"
            f" {weights.shape}."
        )
    if not np.isfinite(weights).all() or (weights < 0).any():
        bad = tuple(np.argwhere(~np.isfinite(weights) | (weights < 0))[0].tolist())
        raise ValueError(
            f"{name} must be finite and not negative; {name}{list(bad)} is"
            f" {weights[bad]}."
        )
    # Dividing by the largest first: the sum of weights near 1e308 would overflow.
    largest = weights.max(axis=-1, keepdims=True)
    if (largest == 0).any():
        raise ValueError(
            f"{name} must hold a positive weight in every row of examples; at least"
            " one row is all zero."
        )
    running = np.cumsum(weights / largest, axis=-1)
    scaled = running / running[..., -1:] * (2**32 - 1)
    return np.round(scaled).astype(np.uint32)


def weighted_rows(
    key: jax.Array, cumulative_weights: jax.Array, positions: jax.Array
) -> jax.Array:
    """Rows drawn with replacement, in proportion to their weights.

    Draw number `position` uses `fold_in(key, position)` alone: it does not depend on
    which other positions are drawn here. A row of weight zero is never drawn, at either
    end neither.

    Args:
        key: the member's key for this step's rows.
        cumulative_weights: `[example]`, from `accumulate_weights` (uint32: shares are
            right to 2^-32 of the total). A float32 running sum is taken too, if it is
            monotone (`np.cumsum` is, `jnp.cumsum` is not): shares are then right to
            2^-23 of the total, which is percents of a row's share at 100,000 rows.
        positions: `[draw]`, positions in the global batch, int32.

    Returns:
        `[draw]`, int32.

    Raises:
        ValueError: if `cumulative_weights` is not `[example]`.
        TypeError: if it is neither uint32 nor floating.
    """
    if cumulative_weights.ndim != 1 or cumulative_weights.shape[0] == 0:
        raise ValueError(
            "cumulative_weights must be [example], of one member; got shape"
            f" {cumulative_weights.shape}."
        )
    dtype = cumulative_weights.dtype
    if dtype != jnp.uint32 and not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(
            f"cumulative_weights must be uint32 (from accumulate_weights) or floating;"
            f" got {dtype}."
        )
    total = cumulative_weights[-1]
    keys = example_keys(key, positions)
    if dtype == jnp.uint32:
        bits = jax.vmap(lambda k: jax.random.bits(k, dtype=jnp.uint32))(keys)
        # The total is 2^32 - 1, so only the largest of 2^32 values is moved.
        targets = jnp.minimum(bits, total - 1)
    else:
        uniform = jax.vmap(lambda k: jax.random.uniform(k, dtype=dtype))(keys)
        # Rounding must not bring a target up to the total: no row lies beyond it.
        last = jnp.nextafter(total, jnp.zeros_like(total))
        targets = jnp.minimum(uniform * total, last)
    # side="right" finds the first row whose running sum exceeds the target; a row of
    # weight zero has its predecessor's sum, so it is never the first.
    rows = jnp.searchsorted(cumulative_weights, targets, side="right")
    return rows.astype(jnp.int32)


def bootstrap_rows(key: jax.Array, num_examples: int) -> jax.Array:
    """`[num_examples]` rows drawn uniformly with replacement, int32: one resample.

    Draw it once per member, with a key that does not depend on the step, and train on
    `rows[order]`.

    Source: Efron 1979, The Annals of Statistics 7(1).
    """
    _check_positive("num_examples", num_examples)
    return jax.random.randint(key, (num_examples,), 0, num_examples, jnp.int32)


def bootstrap_counts(key: jax.Array, num_examples: int) -> jax.Array:
    """How often each row is in the resample that `bootstrap_rows` draws with `key`.

    Returns:
        `[num_examples]`, int32; their sum is `num_examples`.
    """
    rows = bootstrap_rows(key, num_examples)
    return jnp.zeros(num_examples, jnp.int32).at[rows].add(1)


def out_of_bag(counts: jax.Array) -> jax.Array:
    """True for rows that a resample left out, about 1/e of them.

    Args:
        counts: how often each row was drawn, `[..., example]`.

    Returns:
        Booleans `[..., example]`.
    """
    return counts == 0


def poisson_bootstrap_counts(key: jax.Array, num_examples: int) -> jax.Array:
    """Independent Poisson(1) counts, `[num_examples]`, int32.

    The bootstrap of streams: counts need no knowledge of the other rows. Their sum
    varies, with mean and variance `num_examples`.

    Source: Oza and Russell 2001, "Online bagging and boosting", section 2.
    """
    _check_positive("num_examples", num_examples)
    return jax.random.poisson(key, 1.0, (num_examples,), dtype=jnp.int32)


def bayesian_bootstrap_weights(key: jax.Array, num_examples: int) -> jax.Array:
    """Dirichlet(1, ..., 1) weights times `num_examples`, so that their mean is 1.

    Returns:
        `[num_examples]`, float32, all positive: no row is ever left out.

    Source: Rubin 1981, "The Bayesian bootstrap", The Annals of Statistics 9(1).
    """
    _check_positive("num_examples", num_examples)
    draws = jax.random.exponential(key, (num_examples,))
    return draws / jnp.mean(draws)


def _check_positive(name, value):
    if value < 1:
        raise ValueError(f"{name} must be at least 1; got {value}.")
