"""Running a cascade so that members are computed only for the rows that reach them.

`run_compacted` gathers the rows that go on between compiled stages, from the host: the
windows decide how many. `run_with_capacity` is one program of fixed shapes: each stage
takes a fixed share of the batch, the rows next to the threshold by rank. (A `lax.cond`
per row saves nothing: under `vmap` both branches are computed.)
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ensjax.combine.cascade.exits import (
    Cascade,
    CascadeOutput,
    add_pools,
    first_output,
    pool_members,
    read_pool,
)
from ensjax.combine.cascade.windows import first_rank
from ensjax.ensemble import Ensemble
from ensjax.group import Group

Model = Ensemble | Group | Callable[[Any], jax.Array]


def run_compacted(
    cascade: Cascade,
    models: Sequence[Model],
    x: Any,
    *,
    batch_size: int = 512,
    smallest: int = 32,
    weights: jax.Array | None = None,
) -> CascadeOutput:
    """The cascade's answers, each stage run on the rows that reach it.

    From the host, a stage at a time: rows that go on are gathered, at most `batch_size`
    at once, and padded to a power of two from `smallest` on (or to `batch_size`), so
    that each stage has a few programs however many rows go on.
    Every row leaves at the stage of the dense form, with its numbers to rounding: the
    last bits of a compiled program may depend on the size of the batch, and so may the
    stage of a row whose confidence lies that near to the end of a window.

    Args:
        cascade: with fitted windows.
        models: of each stage: an `Ensemble`, a `Group`, or a function of inputs that
            gives logits `[member, batch, class]`; it is called as it is, so jit it.
            `cascade.split_members(ensemble)` gives them for one stack.
        x: inputs, leaves `[row, ...]`.
        batch_size: rows at a time.
        smallest: the smallest padded size.
        weights: `[member]` by position, non-negative, as of the `Predictions` that the
            windows were fitted on; None: equal ones. A member of weight 0 is run, and
            changes nothing.

    Returns:
        `CascadeOutput` of `[row, ...]`, NumPy arrays.

    Raises:
        ValueError: if the number of models, of their members, or of rows does not fit,
            or `weights` do not, or they are missing (`cascade.is_weighted`).
    """
    models = _check_models(cascade, models)
    weights = _weights_of_stages(cascade, weights)
    num_rows = _count_rows(x)
    if batch_size < 1 or smallest < 1:
        raise ValueError(
            "batch_size and smallest must be positive; got"
            f" {batch_size} and {smallest}."
        )
    x = jax.tree.map(np.asarray, x)
    rows, pool, output = np.arange(num_rows), None, None
    for stage, model in enumerate(models):
        sizes = functools.partial(
            _padded_size, most=batch_size, smallest=smallest, shards=_data_shards(model)
        )
        parts = []
        for start in range(0, len(rows), batch_size):
            part = rows[start : start + batch_size]
            size = sizes(len(part))
            inputs = jax.tree.map(lambda leaf: _take(leaf, part, size), x)  # noqa: B023
            logits = _logits_of(cascade, stage, model, inputs)
            earlier = None
            if pool is not None:
                at = np.arange(start, start + len(part))
                earlier = jax.tree.map(lambda leaf: _take(leaf, at, size), pool)  # noqa: B023
            result = _add_stage(earlier, logits, weights[stage], cascade.confidence)
            parts.append(
                jax.tree.map(lambda leaf: np.asarray(leaf)[: len(part)], result)  # noqa: B023
            )
        pool, (log_probs, confidence) = jax.tree.map(
            lambda *leaves: np.concatenate(leaves), *parts
        )
        if output is None:
            output = CascadeOutput(log_probs, confidence, np.zeros(num_rows, np.int32))
        else:
            output.log_probs[rows] = log_probs
            output.confidence[rows] = confidence
            output.exit_stage[rows] = stage
        if stage + 1 < len(models):
            going = np.asarray(cascade.goes_on(confidence, stage))
            rows = rows[going]
            pool = jax.tree.map(lambda leaf: leaf[going], pool)  # noqa: B023
            if not len(rows):
                break
    return output


def run_with_capacity(
    cascade: Cascade,
    models: Sequence[Model],
    x: Any,
    *,
    share: float | Sequence[float],
    weights: jax.Array | None = None,
) -> CascadeOutput:
    """The cascade's answers where a fixed share of the batch goes on.

    Exactly ceil(share * batch) rows go on: those whose confidence is next to the
    threshold by rank in the batch, half below it and half above (more on one side at an
    end of the batch); with the exit rule "threshold", the least sure ones. So only the
    windows' thresholds are used, not their ends. Pure, and all shapes are static:

        run = jax.jit(functools.partial(run_with_capacity, share=0.2))
        output = run(cascade, models, x)

    is one program, also on inputs that are split over the mesh axis "data". A window
    fitted on validation rows lets more or fewer rows of a batch go on; here the batch
    decides, so that an answer depends on the rows beside it.

    Args:
        cascade: with fitted windows.
        models: of each stage, as in `run_compacted`. Ensembles and groups are pytrees;
            functions are not, so keep them in the `functools.partial` under `jit`.
        x: inputs of one batch, leaves `[batch, ...]`.
        share: of the batch that reaches each later stage, in (0, 1]: a number, or one
            for each boundary, none larger than the one before.
        weights: `[member]` by position, non-negative, as of the `Predictions` that the
            windows were fitted on; None: equal ones. A member of weight 0 is run, and
            changes nothing.

    Returns:
        `CascadeOutput` of `[batch, ...]`.

    Raises:
        ValueError: if a share is out of range, or the number of models, of their
            members, or of rows does not fit, or `weights` as in `run_compacted`.
    """
    models = _check_models(cascade, models)
    weights = _weights_of_stages(cascade, weights)
    num_rows = _count_rows(x)
    counts = _capacities(share, num_rows, len(models) - 1)
    x = jax.tree.map(jnp.asarray, x)
    pool = _pool(_logits_of(cascade, 0, models[0], x), weights[0], cascade.confidence)
    output = first_output(pool, cascade.confidence)
    rows, confidence = jnp.arange(num_rows), output.confidence
    for stage, (model, count) in enumerate(zip(models[1:], counts), start=1):
        threshold = cascade.windows.threshold[stage - 1]
        if cascade.exit_rule == "threshold":
            threshold = jnp.full_like(threshold, -jnp.inf)
        chosen = next_to_threshold(confidence, threshold, count)
        rows = rows[chosen]
        shards = _data_shards(model)
        size = -(-count // shards) * shards
        inputs = jax.tree.map(lambda leaf: _take(leaf, rows, size), x)  # noqa: B023
        logits = _logits_of(cascade, stage, model, inputs)[:, :count]
        pool = jax.tree.map(lambda leaf: leaf[chosen], pool)  # noqa: B023
        pool = add_pools(pool, _pool(logits, weights[stage], cascade.confidence))
        log_probs, confidence = read_pool(pool, cascade.confidence)
        output = CascadeOutput(
            output.log_probs.at[rows].set(log_probs),
            output.confidence.at[rows].set(confidence),
            output.exit_stage.at[rows].set(stage),
        )
    return output


def next_to_threshold(
    confidence: jax.Array, threshold: jax.Array, count: int
) -> jax.Array:
    """Positions of the `count` rows next to the threshold by rank, int `[count]`.

    They are those with the smallest distance in rank, but taken as a slice of the
    sorted rows: `top_k` of distances would let the order of rows decide between the
    last below and the last above. Among rows of equal confidence that order decides.

    Args:
        confidence: `[batch]`.
        threshold: a scalar.
        count: from 0 to the number of rows.
    """
    order = jnp.argsort(confidence)
    start = first_rank(confidence, threshold, count)
    return jax.lax.dynamic_slice_in_dim(order, start, count)


@functools.partial(jax.jit, static_argnums=3)
def _add_stage(earlier, logits, weights, confidence):
    pool = _pool(logits, weights, confidence)
    if earlier is not None:
        pool = add_pools(earlier, pool)
    return pool, read_pool(pool, confidence)


def _pool(logits, weights, confidence):
    dtype = jnp.promote_types(logits.dtype, jnp.float32)
    weights = jnp.broadcast_to(weights[:, None].astype(dtype), logits.shape[:2])
    return pool_members(logits, confidence, weights)


def _weights_of_stages(cascade, weights):
    """The weights `[member]` of each stage's members."""
    named = [i for stage in cascade.stages for i in stage]
    if weights is None:
        if cascade.is_weighted:
            raise ValueError(
                "the windows were fitted on members of unequal weights, and hold for"
                " their weighted mean; give weights=, [member]."
            )
        weights = jnp.ones(max(named) + 1)
    weights = jnp.asarray(weights, jnp.result_type(float))
    if weights.ndim != 1 or weights.shape[0] <= max(named):
        raise ValueError(
            f"weights must be [member], of {max(named) + 1} members or more; got shape"
            f" {weights.shape}."
        )
    # As in the dense form, a negative weight makes NaN.
    weights = jnp.where(weights < 0, jnp.nan, weights)
    return [weights[np.asarray(stage)] for stage in cascade.stages]


def _check_models(cascade, models):
    models = tuple(models)
    if len(models) != cascade.num_stages:
        raise ValueError(
            f"a cascade of {cascade.num_stages} stages runs as many models, such as"
            f" cascade.split_members(ensemble); got {len(models)}."
        )
    return models


def _logits_of(cascade, stage, model, inputs):
    logits, members = model(inputs), len(cascade.stages[stage])
    if logits.ndim != 3 or logits.shape[0] != members:
        raise ValueError(
            f"the model of stage {stage} must give logits [member, batch, class] of"
            f" {members} members; got shape {logits.shape}."
        )
    return logits


def _count_rows(x):
    sizes = {np.shape(leaf)[0] if np.shape(leaf) else 0 for leaf in jax.tree.leaves(x)}
    if len(sizes) != 1 or 0 in sizes:
        raise ValueError(
            "a cascade runs on inputs [row, ...] of one length, at least 1; got lengths"
            f" {sorted(sizes)}."
        )
    return sizes.pop()


def _capacities(share, num_rows, boundaries):
    shares = tuple(share) if isinstance(share, (tuple, list)) else (share,) * boundaries
    if len(shares) != boundaries or not all(0.0 < s <= 1.0 for s in shares):
        raise ValueError(
            f"share must be a number in (0, 1], or {boundaries} of them; got {share}."
        )
    # 0.1 * 30 is 3 + 4e-16 in floating point.
    counts = [math.ceil(s * num_rows - 1e-9 * num_rows) for s in shares]
    if any(later > earlier for earlier, later in zip(counts, counts[1:])):
        raise ValueError(f"a share must not exceed the one before; got {share}.")
    return counts


def _padded_size(count, *, most, smallest, shards):
    size = min(most, max(smallest, 1 << (count - 1).bit_length()))
    return -(-size // shards) * shards


def _data_shards(model):
    if isinstance(model, Group):
        model = model.ensembles[0]
    return model.mesh.shape["data"] if isinstance(model, Ensemble) else 1


def _take(leaf, rows, size):
    """These rows, and copies of the first of them up to `size`."""
    missing = size - len(rows)
    if not missing:
        return leaf[rows]
    module = np if isinstance(rows, np.ndarray) else jnp
    padding = module.broadcast_to(rows[:1], (missing,))
    return leaf[module.concatenate([rows, padding])]
