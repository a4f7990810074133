"""Members, fusions and their losses, as `feature_fusion.py` trains them."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from ensjax import combine
from ensjax.combine.learned.fusion import FUSIONS
from ensjax.train.losses import label_log_probs

SCHEDULES = ("joint", "alternating")


class ViewNet(nnx.Module):
    """Two hidden layers and a head; the second one's values are the features."""

    def __init__(self, in_features, hidden, features, num_classes, *, rngs):
        self.first = nnx.Linear(in_features, hidden, rngs=rngs)
        self.second = nnx.Linear(hidden, features, rngs=rngs)
        self.head = nnx.Linear(features, num_classes, rngs=rngs)

    def features_and_logits(self, x):
        features = nnx.relu(self.second(nnx.relu(self.first(x))))
        return features, self.head(features)

    def __call__(self, x):
        return self.features_and_logits(x)[1]


class FusedNet(nnx.Module):
    """Members and a gated fusion of their features, to be trained together."""

    def __init__(self, config, widths, num_classes, *, rngs):
        self.members = nnx.List(
            ViewNet(width, config.hidden, config.features, num_classes, rngs=rngs)
            for width in widths
        )
        self.fusion = build_fusion(config, "gated", len(widths), num_classes, rngs)

    def all_outputs(self, views):
        """Fused logits, gate weights, members' logits `[member, batch, class]`."""
        features, logits = zip(
            *(net.features_and_logits(x) for net, x in zip(self.members, views))
        )
        return (*self.fusion.logits_and_weights(features), jnp.stack(logits))


def build_fusion(config, kind, num_views, num_classes, rngs):
    """A fusion of `num_views` members' features."""
    options = {"num_heads": config.num_heads} if kind == "attention" else {}
    return FUSIONS[kind](
        widths=(config.features,) * num_views,
        dim=config.dim,
        num_outputs=num_classes,
        rngs=rngs,
        **options,
    )


# What is made once for each config: programs are found by the function.


@functools.cache
def member_loss(l2):
    """Cross-entropy and a ridge."""

    def loss(model, batch, key):
        del key
        x, labels = batch
        return _nll(model(x), labels) + l2 * _squares(model)

    return loss


@functools.cache
def fusion_loss(l2, balance):
    """Cross-entropy of the fused logits, a ridge, and the gate's load imbalance."""

    def loss(model, batch, key):
        del key
        x, labels = batch
        logits, weights = model.logits_and_weights(x)
        penalty = balance * combine.load_imbalance(weights) if balance else 0.0
        entropy = combine.gate_entropy(weights)
        total = _nll(logits, labels) + l2 * _squares(model) + penalty
        return total, {"gate_entropy": entropy}

    return loss


@functools.cache
def schedule_loss(schedule, l2, beta, balance):
    """The loss of a `FusedNet` on rows `(views, labels, is_fusion_row)`.

    "joint": the fused and the members' losses on all rows. "alternating": the same on
    the members' rows, for the members alone, and the fused loss on the fusion's rows,
    for the fusion alone; the optimizer takes turns.
    """

    def loss(model, batch, key):
        del key
        views, labels, is_fusion = batch
        fused, weights, members = model.all_outputs(views)
        nll = -label_log_probs(fused, labels)
        own = -jnp.sum(label_log_probs(members, labels), axis=0)
        penalty = l2 * _squares(model)
        if balance:
            penalty += balance * combine.load_imbalance(weights)
        if schedule == "joint":
            return jnp.mean(nll + beta * own) + penalty

        # Each row reaches one side's parameters: the other side is held still there.
        held_members, held_fusion = (nnx.clone(model) for _ in range(2))
        _stop(held_members.members)
        _stop(held_fusion.fusion)
        for_fusion = -label_log_probs(held_members.all_outputs(views)[0], labels)
        for_members = -label_log_probs(held_fusion.all_outputs(views)[0], labels)
        is_member = 1.0 - is_fusion
        member_part = _mean(for_members + beta * own, is_member)
        return member_part + _mean(for_fusion, is_fusion) + penalty

    return loss


@functools.cache
def make_optimizer(schedule):
    """`make_tx(learning_rate)` of a schedule: Adam, for members and fusion in turns."""
    if schedule == "joint":
        return optax.adam

    def make_tx(learning_rate):
        def turn(parity):
            return optax.conditionally_mask(
                optax.adam(learning_rate), lambda step: step % 2 == parity
            )

        def side(params):
            return jax.tree_util.tree_map_with_path(
                lambda path, _: "fusion" if _is_fusion(path) else "members", params
            )

        return optax.multi_transform({"members": turn(0), "fusion": turn(1)}, side)

    return make_tx


def _is_fusion(path):
    return "fusion" in jax.tree_util.keystr(path[:1])


def _stop(module):
    state = nnx.state(module, nnx.Param)
    nnx.update(module, jax.tree.map(jax.lax.stop_gradient, state))


def _nll(logits, labels):
    return -jnp.mean(label_log_probs(logits, labels))


def _mean(values, weight):
    return jnp.sum(values * weight) / jnp.maximum(jnp.sum(weight), 1.0)


def _squares(model):
    leaves = jax.tree.leaves(nnx.state(model, nnx.Param))
    return sum(jnp.sum(leaf**2) for leaf in leaves)


@dataclasses.dataclass(frozen=True)
class Outputs:
    """What a method of one member returns in evaluation mode."""

    graph: Any
    method: str

    def __call__(self, state, x):
        return getattr(self.graph.merge(state, train=False), self.method)(x)
