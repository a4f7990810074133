"""Small models with random weights, made without compiling their initialisers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from ensjax import Ensemble, make_mesh, nn
from ensjax.weight_space.leaves import leaf_name
from ensjax.weight_space.permutations import permute_leaf


def mlp(rngs, **options):
    options = dict(in_features=8, hidden=(8, 6), num_outputs=3) | options
    return nn.MLP(**options, rngs=rngs)


def cnn(rngs, **options):
    options = dict(image_shape=(8, 8, 1), features=(6, 8), hidden=(7,)) | options
    return nn.CNN(**options, num_outputs=3, rngs=rngs)


def resnet(rngs, **options):
    options = dict(depth=8, width=4, num_outputs=3) | options
    return nn.ResNet(**options, rngs=rngs)


def wide_resnet(rngs):
    return nn.wide_resnet(depth=10, width=1, num_outputs=3, norm="layer", rngs=rngs)


def vit(rngs):
    options = dict(image_shape=(8, 8, 1), width=12, depth=1, num_heads=3)
    return nn.ViT(**options, num_outputs=3, rngs=rngs)


def lstm(rngs):
    return nn.Recurrent(in_features=3, hidden=5, rngs=rngs)


def one_device():
    return make_mesh(member=1, devices=jax.devices()[:1])


def ensemble_of(make_model, num_members, *, seed=0, mesh=None):
    """Members whose weights, scales and statistics are all random."""
    mesh = one_device() if mesh is None else mesh
    shapes = jax.eval_shape(
        lambda: Ensemble.init(make_model, num_members=num_members, mesh=one_device())
    )
    rng = np.random.default_rng(seed)

    def draw(leaf):
        x = rng.normal(size=leaf.shape) / np.sqrt(max(leaf.shape[-2:-1], default=1))
        return jnp.asarray(np.abs(x) + 0.1 if leaf.ndim == 2 else x, leaf.dtype)

    state = jax.tree.map(draw, shapes.state)
    ids = jnp.arange(num_members, dtype=jnp.int32)
    ensemble = dataclasses.replace(shapes, state=state, member_ids=ids)
    return ensemble.on_mesh(mesh)


def copies(ensemble, num_members):
    """Member 0 as every member."""
    state = jax.tree.map(
        lambda x: jnp.asarray(np.repeat(np.asarray(x)[:1], num_members, 0)),
        ensemble.state,
    )
    ids = jnp.arange(num_members, dtype=jnp.int32)
    return dataclasses.replace(ensemble, state=state, member_ids=ids).on_mesh(
        ensemble.mesh
    )


def permuted(ensemble, spec, orders):
    """`apply_permutations` by NumPy, one axis of one leaf after the other."""
    named = dict(spec.leaves)

    def one(path, leaf):
        rows = []
        for i, row in enumerate(np.asarray(leaf)):
            own = {group: np.asarray(order)[i] for group, order in orders.items()}
            rows.append(permute_leaf(row, named[leaf_name(path)], own, np))
        return jnp.asarray(np.stack(rows))

    state = jax.tree.map_with_path(one, ensemble.state)
    return dataclasses.replace(ensemble, state=state).on_mesh(ensemble.mesh)


def random_orders(spec, num_members, *, seed=1, fixed=()):
    """Random permutations by NumPy; those of the members `fixed` are the identity."""
    rng = np.random.default_rng(seed)
    return {
        name: np.stack(
            [
                np.arange(size) if i in fixed else rng.permutation(size)
                for i in range(num_members)
            ]
        ).astype(np.int32)
        for name, size in spec.groups.items()
    }


def largest_difference(a, b):
    """Between the parameters of two ensembles, `[member]`."""
    pairs = zip(jax.tree.leaves(a.params), jax.tree.leaves(b.params))
    gaps = [
        np.abs(np.asarray(x) - np.asarray(y)).reshape(len(x), -1).max(1)
        for x, y in pairs
    ]
    return np.max(gaps, axis=0)
