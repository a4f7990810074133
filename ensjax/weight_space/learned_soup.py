"""Learned soups: coefficients found by gradient descent on held-out rows.

The gradient of a coefficient is the inner product of the mixture's gradient with the
member's weights, so that no member is ever differentiated through.
"""

import dataclasses
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ensjax.ensemble import Ensemble
from ensjax.graphs import Forward
from ensjax.mapping import map_members, mesh_program
from ensjax.member_arrays import wide_labels
from ensjax.members import num_members, pad_members
from ensjax.mesh import fetch
from ensjax.weight_space.leaves import is_mixed, leaf_names, wide
from ensjax.weight_space.mix import Rows, local_rows, mix_members
from ensjax.weight_space.soups import Soup, check_finite
from ensjax.weight_space.statistics import recompute_statistics

_ALL = ("member", "data")
GRANULARITIES = ("model", "layer", "leaf")


@dataclasses.dataclass(frozen=True)
class LearnedSoup(Soup):
    """A soup whose coefficients were learned.

    Attributes:
        layer_weights: coefficients `[member]` of every layer (or leaf), by its name;
            `weights` is their mean over the layers.
        scale: the factor of the logits that was learned with them; the model does not
            include it.
        losses: `[epoch]`, mean training loss of each pass.
    """

    layer_weights: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    scale: float = 1.0
    losses: np.ndarray | None = None


def learned_soup(
    ensemble: Ensemble,
    data: tuple[Any, Any],
    *,
    granularity: str = "model",
    learning_rate: float = 0.05,
    num_epochs: int = 5,
    batch_size: int = 256,
    seed: int = 0,
    statistics: Any = None,
) -> LearnedSoup:
    """A soup with softmax coefficients that minimise the loss on held-out rows.

        weights = softmax(alpha),  loss = CE(scale * logits(soup), labels)

    by AdamW without decay, from equal coefficients and a scale of 1.

    Args:
        ensemble: M members, usually fine-tuned from one model.
        data: inputs and labels `[row, ...]` that are held out of their training.
        granularity: "model" (one coefficient a member), "layer" (one for all leaves of
            a module, batch statistics among them) or "leaf".
        learning_rate: of AdamW.
        num_epochs: passes over the rows, in a new order each.
        batch_size: rows of a step; the largest not above it that leaves no short batch.
        seed: of the orders.
        statistics: inputs `[row, ...]` on which the soup's batch statistics are
            measured at the end; while it is learned they are mixed as weights are.

    Raises:
        ValueError: if a name is unknown, a number is out of range, a shape does not
            fit, a label is no class, a member is not finite (its coefficient is never
            0; gives the ids), or a loss is not finite.

    Source: Wortsman et al. 2022, Model soups, arXiv:2203.05482, appendix I (learned
    soup; there too with learning rate 0.05, and one coefficient a layer).
    """
    if granularity not in GRANULARITIES:
        raise ValueError(
            f"granularity is one of {', '.join(GRANULARITIES)}; got {granularity!r}."
        )
    if num_epochs < 1 or batch_size < 1 or not learning_rate > 0:
        raise ValueError(
            "num_epochs and batch_size must be at least 1 and learning_rate above 0;"
            f" got {num_epochs}, {batch_size} and {learning_rate}."
        )
    check_finite(ensemble)
    mesh = ensemble.mesh
    names = leaf_names(ensemble.state)
    groups = {"model": lambda name: "model", "layer": layer_of, "leaf": lambda n: n}
    layers = [groups[granularity](name) for name in names]
    mixed = [is_mixed(leaf) for leaf in jax.tree.leaves(ensemble.state)]
    known = list(dict.fromkeys(n for n, is_in in zip(layers, mixed) if is_in))
    places = tuple(known.index(n) if n in known else 0 for n in layers)
    shards = mesh.shape["member"] * mesh.shape["data"]
    size = _batch_size(data, batch_size, shards)
    _check_labels(ensemble, data)
    job = _Learn(
        ensemble.graph,
        ensemble.num_members,
        places,
        len(known),
        float(learning_rate),
        num_epochs,
        size,
    )
    data = jax.tree.map(jnp.asarray, data)
    found = mesh_program(job, mesh)(ensemble.state, data, jnp.uint32(seed))
    share, scale, losses = jax.device_get(found)
    if not np.isfinite(losses).all():
        raise ValueError(
            f"the loss of epoch {np.argmin(np.isfinite(losses))} is"
            f" {losses[~np.isfinite(losses)][0]}, so that nothing was learned: are all"
            " inputs and logits finite, and the learning_rate not too large?"
        )
    per_leaf = {
        f"^{re.escape(name)}$": share[place][None]
        for name, place, is_in in zip(names, places, mixed)
        if is_in
    }
    mean = share.mean(axis=0)
    model = mix_members(ensemble, mean[None], per_leaf=per_leaf)
    if statistics is not None:
        model = recompute_statistics(model, statistics, batch_size=batch_size)
    return LearnedSoup(
        model,
        mean,
        layer_weights=dict(zip(known, share)),
        scale=float(scale),
        losses=np.asarray(losses),
    )


def layer_of(name: str) -> str:
    """The layer of a leaf: `params` and the module, also of its batch statistics.

    Args:
        name: of a leaf of an ensemble's state, such as `rest.blocks.0.norm.mean`, whose
            layer is `params.blocks.0.norm`.
    """
    parts = ["params", *name.split(".")[1:-1]]
    if parts[1:2] == ["batch_stats"]:  # the other half of a linen module's variables
        parts[1] = "params"
    return ".".join(parts)


def _batch_size(data, batch_size, shards):
    lengths = {np.shape(x)[:1] for x in jax.tree.leaves(data)}
    if not isinstance(data, tuple) or len(data) != 2 or len(lengths) != 1:
        raise ValueError(
            "data must be a pair of inputs and labels [row, ...] of equal length; got"
            f" lengths {sorted(lengths)}."
        )
    ((count,),) = lengths
    if count < shards:
        raise ValueError(f"data holds {count} rows for {shards} devices.")
    number = math.ceil(count / batch_size)
    return max(count // number // shards, 1) * shards


def _check_labels(ensemble, data):
    """Raises `ValueError` unless labels are integers `[row]`, each a class."""
    x, labels = data
    labels = labels if isinstance(labels, jax.Array) else np.asarray(labels)
    if labels.ndim != 1 or not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(
            "labels must be class numbers, integers [row]; got"
            f" {labels.dtype}{list(labels.shape)}."
        )
    # Shapes alone, within a mesh, since a model may use its axes.
    forward = map_members(
        Forward(ensemble.graph), kinds=("member", "shared"), mesh=ensemble.mesh
    )
    logits = jax.eval_shape(forward.jitted, ensemble.state, x)
    if not hasattr(logits, "shape") or len(logits.shape) != 3:
        raise ValueError(
            "a learned soup needs members with logits [row, class]; their outputs are"
            f" {jax.tree.map(lambda a: list(a.shape[1:]), logits)}."
        )
    known = np.asarray(fetch(labels))
    is_bad = (known < 0) | (known >= logits.shape[-1])
    if is_bad.any():
        raise ValueError(
            f"labels must be classes, 0 to {logits.shape[-1] - 1}; row"
            f" {np.argmax(is_bad)} has {known[is_bad][0]} ({is_bad.sum()} rows in all)."
            " Leave them out."
        )


@dataclasses.dataclass(frozen=True)
class _Learn:
    """State, rows (whole on every device), seed."""

    graph: Any
    num_members: int
    places: tuple[int, ...]
    num_layers: int
    learning_rate: float
    num_epochs: int
    batch_size: int
    donate: tuple[int, ...] = ()

    def in_specs(self):
        return (jax.P("member"), jax.P(), jax.P())

    def out_specs(self):
        return (jax.P(), jax.P(), jax.P())

    def check(self, mesh, *args):
        del mesh, args

    def prepare(self, mesh, state, data, seed):
        devices = mesh.shape["member"]
        rows = math.ceil(num_members(state) / devices) * devices
        return pad_members(state, rows), data, seed

    def local(self, state, data, seed):
        leaves, treedef = jax.tree.flatten(state)
        rows = local_rows(leaves, 0)
        devices = jax.lax.axis_size("member")
        shards = devices * jax.lax.axis_size("data")
        shard = jax.lax.axis_index(_ALL)
        own_rows = self.batch_size // shards
        tx = optax.adamw(self.learning_rate, weight_decay=0.0)

        def soup_of(share):
            return [
                _summed(row, share[place]) if isinstance(row, Rows) else row
                for row, place in zip(rows, self.places)
            ]

        def loss_of(soup, scale, batch):
            cast = [x.astype(leaf.dtype) for x, leaf in zip(soup, leaves)]
            x, labels = batch
            logits = self.graph.merge(treedef.unflatten(cast), train=False)(x)
            losses = optax.softmax_cross_entropy_with_integer_labels(
                scale * logits, wide_labels(labels)
            )
            return jnp.mean(losses)

        def step(carry, index):
            knobs, opt_state = carry
            share, back = jax.vjp(self._share, knobs["alpha"])
            soup = soup_of(share)
            is_in = [isinstance(row, Rows) for row in rows]
            place = jax.lax.dynamic_slice_in_dim(index, shard * own_rows, own_rows)
            batch = jax.tree.map(lambda x: x[place], data)

            def of_floats(floats, scale):
                floats = iter(floats)
                whole = [next(floats) if f else x for f, x in zip(is_in, soup)]
                return loss_of(whole, scale, batch)

            floats = [x for f, x in zip(is_in, soup) if f]
            loss, grads = jax.value_and_grad(of_floats, argnums=(0, 1))(
                floats, knobs["scale"]
            )
            loss, grads = jax.lax.pmean((loss, grads), _ALL)
            of_share = jnp.zeros_like(share)
            floats = iter(grads[0])
            for row, place_of in zip(rows, self.places):
                if isinstance(row, Rows):
                    dots = jnp.tensordot(
                        wide(row.values).reshape(row.values.shape[0], -1),
                        next(floats).reshape(-1),
                        axes=1,
                        precision="highest",
                    )
                    if devices > 1:
                        dots = jax.lax.all_gather(dots, "member", tiled=True)
                    of_share = of_share.at[place_of].add(dots[: self.num_members])
            of_knobs = {"alpha": back(of_share)[0], "scale": grads[1]}
            updates, opt_state = tx.update(of_knobs, opt_state, knobs)
            return (optax.apply_updates(knobs, updates), opt_state), loss

        def epoch(carry, number):
            key = jax.random.fold_in(jax.random.key(seed), number)
            count = jax.tree.leaves(data)[0].shape[0]
            order = jax.random.permutation(key, count)
            steps = count // self.batch_size
            order = order[: steps * self.batch_size].reshape(steps, -1)
            carry, losses = jax.lax.scan(step, carry, order)
            return carry, jnp.mean(losses)

        alpha = jnp.zeros((self.num_layers, self.num_members), jnp.float32)
        knobs = {"alpha": alpha, "scale": jnp.float32(1)}
        (knobs, _), losses = jax.lax.scan(
            epoch, (knobs, tx.init(knobs)), jnp.arange(self.num_epochs)
        )
        return self._share(knobs["alpha"]), knobs["scale"], losses

    def _share(self, alpha):
        return jax.nn.softmax(alpha, axis=-1)

    def finish(self, outputs, *args):
        del args
        return outputs


def _summed(row, share):
    """The soup's leaf on every device, for coefficients `[member]` of all members."""
    count = row.values.shape[0]
    padded = jnp.pad(share, (0, count * jax.lax.axis_size("member") - len(share)))
    start = jax.lax.axis_index("member") * count
    own = jax.lax.dynamic_slice_in_dim(padded, start, count)
    total = row.mixed(own[None])[0]
    return jax.lax.psum(total, "member") if jax.lax.axis_size("member") > 1 else total
