"""How aggregators of quantiles are trained: many of them as one stack, by `ensjax.fit`.

A member of the stack is an aggregator and its settings: which column of the rows it is
trained on (one column for each split of the data), which fold is held out of its
training, which base models it may use, and how crossing is penalised. So penalties,
seeds, folds, splits and subsets of base models are one program.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from ensjax.combine.quantiles.aggregator import QuantileAggregator
from ensjax.combine.quantiles.order import order_quantiles
from ensjax.combine.quantiles.penalty import crossing_penalty
from ensjax.ensemble import Ensemble
from ensjax.graphs import NnxGraph
from ensjax.group import Group, predict
from ensjax.scores.regression import pinball_losses


class Setting(nnx.Variable):
    """What a member of a stack of aggregators is told; it is not trained."""


class AggregatorMember(nnx.Module):
    """An aggregator and its settings, as one member of a stack.

    Args:
        aggregator: what is trained.
    """

    def __init__(self, aggregator: QuantileAggregator):
        size = len(aggregator.levels)
        self.aggregator = aggregator
        self.column = Setting(jnp.zeros((), jnp.int32))
        self.held_out = Setting(jnp.full((), -1, jnp.int32))
        self.base_mask = Setting(jnp.ones(aggregator.num_base, bool))
        self.penalty = Setting(jnp.zeros(()))
        self.margin = Setting(jnp.zeros((size, size)))

    def __call__(self, rows: Mapping[str, jax.Array]) -> jax.Array:
        """Ordered quantiles `[batch, level]` of the member's column of the rows."""
        aggregator = self.aggregator
        levels = jnp.asarray(aggregator.levels)
        return order_quantiles(self.mix(rows), aggregator.order, levels=levels)

    def mix(self, rows: Mapping[str, jax.Array]) -> jax.Array:
        """The same before they are put in order."""
        quantiles = jnp.moveaxis(self.own(rows, "quantiles"), 1, 0)
        quantiles = quantiles[: self.aggregator.num_base]
        mask = jnp.broadcast_to(self.base_mask[...][:, None, None], quantiles.shape)
        if "mask" in rows:
            own = jnp.moveaxis(self.own(rows, "mask"), 1, 0)
            mask &= own[: self.aggregator.num_base]
        is_local = self.aggregator.scope == "local"
        x = self.own(rows, "x") if is_local else None
        return self.aggregator.mix(quantiles, x, mask=mask)

    def own(self, rows: Mapping[str, jax.Array], name: str) -> jax.Array:
        """The member's column of one entry of the rows, `[batch, ...]`."""
        if name not in rows:
            raise ValueError(f"these rows have no {name}; give it to quantile_rows.")
        return jax.lax.dynamic_index_in_dim(
            rows[name], self.column[...], axis=1, keepdims=False
        )


def quantile_rows(
    quantiles: jax.Array,
    targets: jax.Array | None = None,
    *,
    x: jax.Array | None = None,
    mask: jax.Array | None = None,
    fold: jax.Array | None = None,
    sample_weight: jax.Array | None = None,
) -> dict[str, np.ndarray]:
    """Rows for a stack of aggregators, one column; `stack_columns` joins several.

    Args:
        quantiles: of the base models, `[member, batch, level]`.
        targets: `[batch]`; None for rows to predict, or to penalise only. A NaN says
            that the row has no target.
        x: inputs `[batch, feature]`.
        mask: `[member]`, `[member, batch]` or `[member, batch, level]`; what is False
            counts as absent, and may be NaN.
        fold: `[batch]`, integers; a member that holds the fold out ignores its rows.
        sample_weight: `[batch]`, non-negative, of the pinball loss.

    Returns:
        A dict of arrays `[batch, column, ...]`: "quantiles" `[..., member, level]`,
        "targets", "weight", and those of "x", "mask", "fold" that are given.

    Raises:
        ValueError: if a shape does not fit.
    """
    quantiles = np.asarray(quantiles, np.float32)
    if quantiles.ndim != 3:
        raise ValueError(
            f"quantiles must be [member, batch, level]; got shape {quantiles.shape}."
        )
    count = quantiles.shape[1]
    targets = np.full(count, np.nan) if targets is None else np.asarray(targets, float)
    weight = 1.0 if sample_weight is None else np.asarray(sample_weight, float)
    rows = {"targets": targets, "weight": weight * np.ones(count)}
    if x is not None:
        rows["x"] = np.asarray(x, np.float32)
    if fold is not None:
        rows["fold"] = np.asarray(fold, np.int32)
    for name, values in rows.items():
        if len(values) != count or (name != "x" and values.ndim != 1):
            raise ValueError(
                f"{name} must have {count} rows, as quantiles have; got shape"
                f" {values.shape}."
            )
    unknown = np.isnan(targets)
    rows["targets"] = np.where(unknown, 0.0, targets).astype(np.float32)
    rows["weight"] = np.where(unknown, 0.0, rows["weight"]).astype(np.float32)
    if mask is not None:
        mask = np.asarray(mask, bool)
        if mask.shape != quantiles.shape[: mask.ndim] or not mask.ndim:
            raise ValueError(
                "mask must be [member], [member, batch] or [member, batch, level] of"
                f" {quantiles.shape}; got shape {mask.shape}."
            )
        mask = mask.reshape(mask.shape + (1,) * (3 - mask.ndim))
        mask = np.broadcast_to(mask, quantiles.shape)
        quantiles = np.where(mask, quantiles, 0.0)
        rows["mask"] = np.moveaxis(mask, 0, 1)
    rows["quantiles"] = np.moveaxis(quantiles, 0, 1)
    return {name: values[:, None] for name, values in rows.items()}


def stack_columns(
    columns: Sequence[Mapping[str, np.ndarray]],
) -> dict[str, np.ndarray]:
    """Rows of several splits side by side, `[batch, column, ...]`.

    Raises:
        ValueError: if they differ in entries or in shape; splits must be equally large.
    """
    columns = list(columns)
    if not columns or any(set(c) != set(columns[0]) for c in columns):
        raise ValueError("columns must be at least one, all with the same entries.")
    return {
        name: np.concatenate([column[name] for column in columns], axis=1)
        for name in columns[0]
    }


def aggregator_ensemble(
    make_aggregator: Callable[[nnx.Rngs], QuantileAggregator],
    *,
    member_ids: Sequence[int],
    column: Any = 0,
    held_out: Any = -1,
    base_mask: Any = True,
    penalty: Any = 0.0,
    margin: Any = 1e-3,
    seed: int = 0,
    mesh: Mesh | None = None,
) -> Ensemble:
    """Aggregators of one architecture as a stack, each with its settings.

    Train it with `fit(ensemble, rows, loss=quantile_loss, evaluation=rows,
    evaluation_loss=quantile_evaluation, early_stopping=...)`; different architectures
    form a `Group`. `predict(ensemble, rows)` gives `[member, batch, level]`.

    Args:
        make_aggregator: builds one aggregator from `nnx.Rngs`.
        member_ids: one id for each member.
        column: of the rows, an integer or `[member]`.
        held_out: the fold that a member is not trained on, an integer or `[member]`;
            -1: none.
        base_mask: which base models a member may use: `[base]` or `[member, base]`.
        penalty: of crossing, a number or `[member]`.
        margin: of the penalty: a number, `[level, level]` or `[member, level, level]`.
        seed: of the initial weights.
        mesh: from `make_mesh`.

    Raises:
        ValueError: if a setting has another shape, or leaves a member no base model.
    """
    ensemble = Ensemble.init(
        _MakeMember(make_aggregator), member_ids=member_ids, seed=seed, mesh=mesh
    )
    settings = {
        "column": column,
        "held_out": held_out,
        "base_mask": base_mask,
        "penalty": penalty,
        "margin": margin,
    }

    def replace(path, leaf):
        name = getattr(path[0], "key", None)
        return _by_member(name, settings[name], leaf) if name in settings else leaf

    rest = jax.tree.map_with_path(replace, ensemble.state["rest"])
    state = {"params": ensemble.state["params"], "rest": rest}
    return dataclasses.replace(ensemble, state=state).on_mesh(ensemble.mesh)


def _by_member(name, value, leaf):
    """A setting as an array like `leaf`, `[member, ...]`."""
    value, own = np.asarray(value), leaf.shape[1:]
    if value.shape not in (leaf.shape, own, ()):
        raise ValueError(
            f"{name} must be of shape {own} for all members, or {leaf.shape} by"
            f" member; got shape {value.shape}."
        )
    if value.shape != leaf.shape:
        value = np.broadcast_to(value, leaf.shape)
    if name == "base_mask" and not value.any(axis=1).all():
        raise ValueError("base_mask must leave every member a base model.")
    return jnp.asarray(value, leaf.dtype)


@dataclasses.dataclass(frozen=True)
class _MakeMember:
    make_aggregator: Callable[[nnx.Rngs], QuantileAggregator]

    def __call__(self, rngs):
        return AggregatorMember(self.make_aggregator(rngs))


def quantile_loss(model: AggregatorMember, rows: Any, key: jax.Array):
    """Mean pinball loss plus `penalty` times the crossing penalty; for `fit`.

    Both are means over the rows of the batch that the member does not hold out; the
    penalty also counts rows without a target. With `order_in_loss` the pinball loss is
    of the ordered quantiles, the penalty always of those before.

    Args:
        model: a member of `aggregator_ensemble`.
        rows: of `quantile_rows`.
        key: unused.

    Returns:
        The loss, and the metrics "pinball" and "crossing_penalty".
    """
    del key
    aggregator = model.aggregator
    mixed = model.mix(rows)
    allowed = jnp.ones(mixed.shape[0])
    if "fold" in rows:
        allowed = (model.own(rows, "fold") != model.held_out[...]) * 1.0
    ordered = mixed
    levels = jnp.asarray(aggregator.levels)
    if aggregator.order_in_loss:
        ordered = order_quantiles(mixed, aggregator.order, levels=levels)
    targets = model.own(rows, "targets")
    losses = pinball_losses(ordered, targets, levels=levels).mean(axis=-1)
    pinball = _mean_over_batch(losses, model.own(rows, "weight") * allowed)
    penalty = jnp.float32(0.0)
    if len(aggregator.levels) > 1:
        penalty = crossing_penalty(mixed, model.margin[...])
        penalty = _mean_over_batch(penalty, allowed)
    loss = pinball + model.penalty[...] * penalty
    return loss, {"pinball": pinball, "crossing_penalty": penalty}


def quantile_evaluation(model: AggregatorMember, rows: Any, key: jax.Array):
    """Mean pinball loss of the ordered quantiles of the member's column; for `fit`.

    Folds do not matter here. The mean over batches is that over rows if the rows have
    equal weights, or are one batch (`evaluation_batch_size`).
    """
    del key
    targets, levels = model.own(rows, "targets"), jnp.asarray(model.aggregator.levels)
    losses = pinball_losses(model(rows), targets, levels=levels).mean(axis=-1)
    return _mean_over_batch(losses, model.own(rows, "weight"))


def predict_quantiles(
    ensemble: Ensemble | Group,
    rows: Mapping[str, np.ndarray],
    *,
    ordered: bool = True,
    batch_size: int = 512,
) -> jax.Array:
    """Quantiles of every member for its column, `[member, batch, level]` (compiled).

    Args:
        ensemble: of `aggregator_ensemble`, or a `Group` of such.
        rows: of `quantile_rows`.
        ordered: False: as they are before they are put in order.
        batch_size: rows at a time.
    """
    if not ordered:
        parts = ensemble.ensembles if isinstance(ensemble, Group) else (ensemble,)
        mixing = [
            dataclasses.replace(part, graph=_MixGraph(part.graph.graphdef))
            for part in parts
        ]
        ensemble = Group(tuple(mixing))
    return predict(ensemble, dict(rows), batch_size=batch_size)


class _MixGraph(NnxGraph):
    """Members that are called for their quantiles before these are put in order."""

    def merge(self, state, *, train):
        return super().merge(state, train=train).mix


def _mean_over_batch(values, weight):
    """Weighted mean over the global batch, as the mean over data shards sees it."""
    total, shards = jnp.sum(weight), 1.0
    try:
        total = jax.lax.psum(total, "data")
        shards = jax.lax.psum(1.0, "data")
    except NameError:  # outside the mesh, where there is one shard
        pass
    mean = jnp.sum(jnp.where(weight > 0, values, 0.0) * weight)
    return shards * mean / jnp.where(total > 0, total, 1.0)
