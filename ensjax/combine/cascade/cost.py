"""What a cascade costs, by compiled programs, and what larger single models cost."""

import jax
import jax.numpy as jnp
import numpy as np

from ensjax.combine.cascade.runs import Model
from ensjax.ensemble import Ensemble
from ensjax.graphs import Forward
from ensjax.group import Group
from ensjax.mapping import map_members
from ensjax.mesh import make_mesh
from ensjax.scores.rows import row_weights, weighted_mean


def flops_per_row(model: Model, x) -> float:
    """Operations of one stage for one row, as the compiler counts them.

    A multiplication and an addition are two, so that half of it is comparable with
    published multiply-accumulates (MACs); what is not a matrix product is in it, too.
    The body of a loop is counted once, so a member that scans has more.

    Args:
        model: an `Ensemble` or a `Group`, of which one member is compiled and counted
            as often as there are members; or a function of inputs. Its arrays may be
            shapes (`jax.ShapeDtypeStruct`).
        x: inputs of one batch, leaves `[batch, ...]`; shapes are enough.
    """
    if isinstance(model, Group):
        return sum(flops_per_row(ensemble, x) for ensemble in model.ensembles)
    shapes = jax.tree.map(_shape, x)
    rows = jax.tree.leaves(shapes)[0].shape[0]
    if not isinstance(model, Ensemble):
        lowered, members = jax.jit(model).lower(shapes), 1
    else:
        one = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct((1, *leaf.shape[1:]), leaf.dtype),
            model.state,
        )
        # Alone on one device and all at once: no padding, no share, no loop.
        mesh = make_mesh(member=1, devices=model.mesh.devices.reshape(-1)[:1])
        forward = map_members(
            Forward(model.graph),
            kinds=("member", "batch"),
            out="member_batch",
            mesh=mesh,
            block=None,
        )
        lowered, members = forward.lower(one, shapes), model.num_members
    counts = lowered.compile().cost_analysis()
    return members * counts.get("flops", 0.0) / rows


def cascade_cost(
    stage_costs: jax.Array,
    exit_stage: jax.Array,
    *,
    sample_weight: jax.Array | None = None,
) -> jax.Array:
    """Mean cost of a row: each stage's, times the share of rows that reach it, `[...]`.

        cost = sum_s c_s P(exit stage >= s)

    Args:
        stage_costs: `[stage]`, such as operations.
        exit_stage: of `CascadeOutput`, `[..., batch]`.
        sample_weight: `[batch]` or `[..., batch]`, non-negative.

    Raises:
        ValueError: if a shape does not fit, or a row that counts left at a stage that
            has no cost; in a compiled program the mean is then NaN.
    """
    stage_costs, exit_stage = jnp.asarray(stage_costs), jnp.asarray(exit_stage)
    if stage_costs.ndim != 1 or exit_stage.ndim < 1:
        raise ValueError(
            "stage_costs must be [stage] and exit_stage [..., batch]; got shapes"
            f" {stage_costs.shape} and {exit_stage.shape}."
        )
    stage_costs = stage_costs.astype(jnp.promote_types(stage_costs.dtype, jnp.float32))
    if not jnp.issubdtype(exit_stage.dtype, jnp.integer):
        raise ValueError(f"exit_stage must be integers; got {exit_stage.dtype}.")
    num_stages = stage_costs.shape[0]
    weight = row_weights(sample_weight, exit_stage.shape, stage_costs.dtype)
    is_known = (exit_stage >= 0) & (exit_stage < num_stages)
    unknown = ~is_known & (weight != 0)
    if not isinstance(unknown, jax.core.Tracer) and unknown.any():
        raise ValueError(
            f"exit_stage must be from 0 to {num_stages - 1}, the stages that"
            f" stage_costs holds; got {jnp.unique(exit_stage[unknown]).tolist()}."
        )
    spent = jnp.cumsum(stage_costs)[jnp.where(is_known, exit_stage, 0)]
    return weighted_mean(jnp.where(is_known, spent, jnp.nan), weight)


def front_scores(costs: jax.Array, scores: jax.Array, at: jax.Array) -> jax.Array:
    """What a single model of some cost would score: linear in the log of the cost.

    Between neighbours it is interpolated, and beyond the first and the last model the
    line through the nearest two goes on.

    Args:
        costs: of models of growing size, rising, `[model]`.
        scores: of any kind, `[model]`.
        at: costs, `[...]`.

    Returns:
        `[...]`.

    Raises:
        ValueError: if there are fewer than two models, a shape does not fit, or costs
            are not positive and rising (strictly); in a compiled program what comes out
            is then NaN.
    """
    costs, scores = _check_front(costs, scores)
    ends = dict(left="extrapolate", right="extrapolate")
    return jnp.interp(jnp.log(jnp.asarray(at)), jnp.log(costs), scores, **ends)


def front_costs(costs: jax.Array, scores: jax.Array, score: jax.Array) -> jax.Array:
    """The smallest cost at which the line of `front_scores` reaches a score.

    Args:
        costs: of models of growing size, rising, `[model]`.
        scores: `[model]`.
        score: to be reached, `[...]`.

    Returns:
        `[...]`; NaN where the line reaches it nowhere.

    Raises:
        ValueError: as `front_scores`.
    """
    costs, scores = _check_front(costs, scores)
    score = jnp.asarray(score, scores.dtype)[..., None]
    rise = scores[1:] - scores[:-1]
    shape = (1,) * (score.ndim - 1) + rise.shape
    flat = (rise == 0).reshape(shape)
    first = scores[:-1].reshape(shape)
    place = (score - first) / jnp.where(flat, 1.0, rise.reshape(shape))
    place = jnp.where(flat & (score != first), jnp.nan, place)
    segment = jnp.arange(rise.shape[0]).reshape(shape)
    inside = (place >= 0) | (segment == 0)
    inside &= (place <= 1) | (segment == rise.shape[0] - 1)
    log_costs = jnp.log(costs)
    step = (log_costs[1:] - log_costs[:-1]).reshape(shape)
    found = jnp.exp(log_costs[:-1].reshape(shape) + place * step)
    found = jnp.where(inside & ~jnp.isnan(place), found, jnp.inf)
    smallest = jnp.min(found, axis=-1)
    return jnp.where(jnp.isinf(smallest), jnp.nan, smallest)


def _check_front(costs, scores):
    costs, scores = jnp.asarray(costs, jnp.float32), jnp.asarray(scores, jnp.float32)
    if costs.ndim != 1 or costs.shape != scores.shape or costs.shape[0] < 2:
        raise ValueError(
            "costs and scores must be [model] of at least two models; got shapes"
            f" {costs.shape} and {scores.shape}."
        )
    is_rising = (costs[0] > 0) & jnp.all(costs[1:] > costs[:-1])
    if not isinstance(is_rising, jax.core.Tracer) and not is_rising:
        raise ValueError(
            f"costs must be positive and rising; got {costs.tolist()}. Sort the models"
            " by their costs, both arrays alike: scores[np.argsort(costs)]."
        )
    return costs, jnp.where(is_rising, scores, jnp.nan)


def _shape(leaf):
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return leaf
    return jax.ShapeDtypeStruct(np.shape(leaf), jnp.asarray(leaf).dtype)
