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
from ensjax.experiment import ConfigError
from ensjax.train.losses import label_log_probs

SCHEDULES = ("joint", "alternating")
NUM_VIEWS = 3
EXPERTS = "experts"  # a gate over the members' probabilities, not their features
KINDS = (*FUSIONS, EXPERTS)


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


class Job(nnx.Variable):
    """Which job's rows choose a member's step; it is not trained."""


class RowFusion(nnx.Module):
    """A fusion of what frozen members say of a row: `(features, logits)`.

    Of "experts" the fusion's weights mix the members' probabilities, and its head is
    not used.
    """

    def __init__(self, config, kind, form, num_classes, *, rngs):
        self.kind = kind
        name = "gated" if kind == EXPERTS else kind
        self.fusion = build_fusion(config, name, form, NUM_VIEWS, num_classes, rngs)
        self.job = Job(jnp.zeros((), jnp.int32))

    def logits_and_weights(self, x):
        """Fused logits `[batch, class]` and weights `[batch, member]`."""
        features, logits = x
        if self.kind != EXPERTS:
            return self.fusion.logits_and_weights(features)
        weights = self.fusion.weights(features)
        return combine.mix_experts(jnp.moveaxis(logits, 1, 0), weights), weights


class FusedNet(nnx.Module):
    """Members and a gated fusion of their features, to be trained together."""

    def __init__(self, config, form, widths, num_classes, *, rngs):
        self.members = nnx.List(
            ViewNet(width, config.hidden, config.features, num_classes, rngs=rngs)
            for width in widths
        )
        self.fusion = build_fusion(
            config, "gated", form, len(widths), num_classes, rngs
        )
        self.job = Job(jnp.zeros((), jnp.int32))

    def all_outputs(self, views):
        """Fused logits, gate weights, members' logits `[member, batch, class]`."""
        features, logits = zip(
            *(net.features_and_logits(x) for net, x in zip(self.members, views))
        )
        return (*self.fusion.logits_and_weights(features), jnp.stack(logits))

    def logits_and_weights(self, views):
        """Fused logits and gate weights."""
        return self.all_outputs(views)[:2]


def forms(config, kind) -> tuple[str, ...]:
    """The forms in which a kind is trained; the choice rows choose one."""
    return tuple(config.gate_forms) if kind in ("gated", EXPERTS) else ("",)


def build_fusion(config, kind, form, num_views, num_classes, rngs):
    """A fusion of `num_views` members' features."""
    options = {"num_heads": config.num_heads} if kind == "attention" else {}
    options |= {"form": form} if kind == "gated" else {}
    return FUSIONS[kind](
        widths=(config.features,) * num_views,
        dim=config.dim,
        num_outputs=num_classes,
        rngs=rngs,
        **options,
    )


def members_at_once(config):
    """`config.block` as the engine takes it: "auto", None (all) or an integer."""
    block = config.block
    if block in ("auto", "all"):
        return "auto" if block == "auto" else None
    if isinstance(block, bool) or not isinstance(block, int) or block < 1:
        raise ConfigError(
            'config.block is "auto", "all" (members at once), or how many members run'
            f" at once, at least 1; got {block!r}."
        )
    return block


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
def fusion_loss(balance):
    """Cross-entropy of the fused logits, and the gate's load imbalance."""

    def loss(model, batch, key):
        del key
        x, labels = batch
        logits, weights = model.logits_and_weights(x)
        penalty = balance * combine.load_imbalance(weights) if balance else 0.0
        entropy = combine.gate_entropy(weights)
        return _nll(logits, labels) + penalty, {"gate_entropy": entropy}

    return loss


def choice_loss(model, batch, key):
    """Cross-entropy on the rows of the model's own job, of `[row, job, ...]`."""
    del key
    x, labels = jax.tree.map(
        lambda leaf: jax.lax.dynamic_index_in_dim(
            leaf, model.job[...], axis=1, keepdims=False
        ),
        batch,
    )
    return _nll(model.logits_and_weights(x)[0], labels)


@dataclasses.dataclass(frozen=True)
class ScheduleLoss:
    """The loss of a `FusedNet` on rows `(views, labels, is_fusion_row)`.

    "joint": the fused and the members' losses on all rows. "alternating": the same on
    the members' rows, for the members alone, and the fused loss on the fusion's rows,
    for the fusion alone; the optimizer takes turns.
    """

    schedule: str
    beta: float
    balance: float

    def __call__(self, model, batch, key):
        del key
        views, labels, is_fusion = batch
        fused, weights, members = model.all_outputs(views)
        nll = -label_log_probs(fused, labels)
        own = -jnp.sum(label_log_probs(members, labels), axis=0)
        penalty = 0.0
        if self.balance:
            penalty = self.balance * combine.load_imbalance(weights)
        if self.schedule == "joint":
            return jnp.mean(nll + self.beta * own) + penalty

        # Each row reaches one side's parameters: the other side is held still there.
        held_members, held_fusion = (nnx.clone(model) for _ in range(2))
        _stop(held_members.members)
        _stop(held_fusion.fusion)
        for_fusion = -label_log_probs(held_members.all_outputs(views)[0], labels)
        for_members = -label_log_probs(held_fusion.all_outputs(views)[0], labels)
        is_member = 1.0 - is_fusion
        member_part = _mean(for_members + self.beta * own, is_member)
        return member_part + _mean(for_fusion, is_fusion) + penalty


@functools.cache
def make_optimizer(schedule):
    """`make_tx(hyper)` of a schedule: Adam and a ridge; for parts that take turns, two.

    The ridge is `l2` times the sum of squares of the parameters, by its gradient.
    """

    def adam(hyper):
        return optax.chain(
            optax.add_decayed_weights(2 * hyper["l2"]),
            optax.adam(hyper["learning_rate"]),
        )

    if schedule == "joint":
        return adam

    def make_tx(hyper):
        def turn(parity):
            return optax.conditionally_mask(
                adam(hyper), lambda step: step % 2 == parity
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
