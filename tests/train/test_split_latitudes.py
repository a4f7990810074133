"""A rollout on the sphere whose latitudes are split is trained as on one device."""

import math

import jax
import numpy as np
import optax
import pytest

import ensjax
from ensjax.emulate import SphericalNoise
from ensjax.nn import SphericalForecaster
from ensjax.ops.sphere import SphericalGrid
from ensjax.train import PointError, RolloutLoss, SphericalCrps

# 7 rows over 4 devices: two on each, and one that is none.
GRID = SphericalGrid(7, 14, "poles")
INNER = SphericalGrid(5, 14)
NOISE = SphericalNoise(GRID, (0.05,), lambd=0.5)


def trained(axis, missing, is_point=False, **sizes):
    """Weights of two networks after 2 steps of SGD, `[member, parameter]`."""

    def make_model(rngs):
        return SphericalForecaster(
            GRID, 2, num_noise_channels=int(not is_point), width=2, inner_grid=INNER,
            blocks=("local", "global"), kernel_shape=(1, 1), axis=axis, rngs=rngs,
        )  # fmt: skip

    devices = jax.devices()[: math.prod(sizes.values())]
    mesh = ensjax.make_mesh(**sizes, devices=devices)
    ensemble = ensjax.Ensemble.init(make_model, num_members=2, seed=0, mesh=mesh)
    score = SphericalCrps(
        3, NOISE, grid=GRID, channel_weights=(1.0, 0.5), latitude_axis=axis
    )
    if is_point:
        score = PointError("absolute", latitude_axis=axis)
    windows = np.random.default_rng(0).normal(size=(4, 3, *GRID.shape, 2))
    windows = windows.astype(np.float32)
    if missing is not None:
        windows[missing] = np.nan
    ensemble, _ = ensjax.train.fit(
        ensemble, windows, loss=RolloutLoss(2, score), batch_size=2, steps=2,
        make_tx=optax.sgd, hyper=0.3, mesh=mesh, progress=False,
    )  # fmt: skip
    leaves = jax.tree.leaves(ensemble.params)
    return np.concatenate([np.asarray(x).reshape(2, -1) for x in leaves], axis=1)


@pytest.mark.parametrize(
    "missing, is_point", [(None, False), ((0, 1, 2, 3), False), (None, True)]
)
def test_latitudes_on_four_devices_train_as_on_one(missing, is_point):
    one = trained(None, missing, is_point, member=1)
    split = trained("model", missing, is_point, member=2, model=4)
    assert np.isfinite(one).all()
    np.testing.assert_allclose(split, one, atol=1e-5)


def test_both_axes_at_once_are_refused():
    with pytest.raises(ValueError, match="got both"):
        SphericalCrps(4, NOISE, grid=GRID, axis="model", latitude_axis="model")
    with pytest.raises(ValueError, match='must be None or "model"'):
        SphericalCrps(4, NOISE, grid=GRID, latitude_axis="data")
