"""Small models and data that the tests of training share."""

import functools
import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ensjax
from ensjax import nn

IMAGE = (8, 8, 1)
_rng = np.random.default_rng(0)
X = _rng.normal(size=(24, *IMAGE)).astype(np.float32)
Y = _rng.integers(0, 3, 24)


def _mlp(rngs, **options):
    return nn.MLP(in_features=6, hidden=(8,), num_outputs=3, rngs=rngs, **options)


def _cnn(rngs, **options):
    return nn.CNN(
        image_shape=IMAGE,
        features=(4, 8),
        num_pools=1,
        num_outputs=3,
        rngs=rngs,
        **options,
    )


def _vit(rngs):
    return nn.ViT(
        image_shape=IMAGE, width=8, depth=1, num_heads=2, num_outputs=3, rngs=rngs
    )


def _resnet(rngs):
    return nn.ResNet(depth=20, width=4, in_channels=1, num_outputs=3, rngs=rngs)


MODELS = {
    "mlp": _mlp,
    "mlp-batch-norm": lambda rngs: _mlp(rngs, norm="batch"),
    "mlp-dropout": lambda rngs: _mlp(rngs, dropout=0.3),
    "cnn-batch-norm": lambda rngs: _cnn(rngs, norm="batch"),
    "cnn-group-norm": lambda rngs: _cnn(rngs, norm="group"),
    "vit": _vit,
    "resnet-20": _resnet,
}


class Kit(NamedTuple):
    """What a test builds its runs from."""

    models: dict
    mesh: object
    ensemble: object
    data: object
    fit: object
    trained: object
    check_close: object
    check_equal: object


def _mesh(member, data):
    return ensjax.make_mesh(
        member=member, data=data, devices=jax.devices()[: member * data]
    )


@functools.cache
def _initialised(name):
    """The state of members 0 to 15 of a model, and their graph."""
    ensemble = ensjax.Ensemble.init(MODELS[name], num_members=16, mesh=_mesh(1, 1))
    return jax.device_get(ensemble.state), ensemble.graph


def _ensemble(name="mlp", num_members=5, *, mesh=(1, 1), member_ids=None):
    """Members of a model; only the first call for a model compiles."""
    ids = np.arange(num_members) if member_ids is None else np.asarray(member_ids)
    state, graph = _initialised(name)
    rows = jax.tree.map(lambda x: x[ids], state)
    ids = jnp.asarray(ids, jnp.int32)
    return ensjax.Ensemble(rows, ids, graph, _mesh(*mesh)).on_mesh(_mesh(*mesh))


def _data(name="mlp"):
    """Images and labels, or six features of the images for dense models."""
    return (X[:, :6, 0, 0] if name.startswith("mlp") else X), Y


def adam(learning_rate):
    """Adam whose epsilon keeps rounding where a gradient is 0 from growing."""
    return optax.adam(learning_rate, eps=1e-3)


def _fit(ensemble, data, **options):
    defaults = dict(
        loss=ensjax.losses.cross_entropy,
        make_tx=adam,
        hyper=1e-3,
        steps=20,
        batch_size=8,
        steps_per_call=10,
        progress=False,
    )
    return ensjax.fit(ensemble, data, **{**defaults, **options})


def _arrays(tree):
    def plain(x):
        is_key = jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
        return np.asarray(jax.random.key_data(x) if is_key else x)

    tree = tree.state if hasattr(tree, "state") else tree
    return [
        (jax.tree_util.keystr(p), plain(x)) for p, x in jax.tree.leaves_with_path(tree)
    ]


def _check_close(a, b, tolerance=1e-5):
    """Equal leaves to an absolute tolerance; ensembles are compared by their state."""
    for (name, x), (_, y) in zip(_arrays(a), _arrays(b), strict=True):
        np.testing.assert_allclose(x, y, atol=tolerance, rtol=0, err_msg=name)


def _check_equal(a, b):
    """The same bits."""
    for (name, x), (_, y) in zip(_arrays(a), _arrays(b), strict=True):
        np.testing.assert_array_equal(x, y, err_msg=name)


@functools.cache
def _trained(name, num_members, mesh):
    """What `fit` with the defaults makes of a model, once."""
    ensemble = _ensemble(name, num_members, mesh=mesh)
    return _fit(ensemble, _data(name))


@pytest.fixture(scope="session")
def kit():
    """Models, data and a `fit` with small defaults."""
    return Kit(
        MODELS, _mesh, _ensemble, _data, _fit, _trained, _check_close, _check_equal
    )


@pytest.fixture
def runs(monkeypatch):
    """Every `(run, states)` that `fit` made in this test: its programs and states."""
    # `ensjax.train.fit` names the function; the module is found by its full name.
    module = sys.modules["ensjax.train.fit"]
    run_schedule, seen = module.run_schedule, []

    def watched(run, **options):
        states, log = run_schedule(run, **options)
        seen.append((run, states))
        return states, log

    monkeypatch.setattr(module, "run_schedule", watched)
    return seen
