"""REPAIR: statistics of a merged network's hidden layers."""

import dataclasses
import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ensjax import Ensemble
from ensjax.weight_space.repair import repair

_FILE = pathlib.Path(__file__).with_name("alignment_models.py")
_SPEC = importlib.util.spec_from_file_location("alignment_models", _FILE)
models = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(models)

X = jnp.asarray(np.random.default_rng(5).normal(size=(64, 8)), jnp.float32)


def merged(ends, weights):
    weights = np.asarray(weights, np.float32)
    state = jax.tree.map(
        lambda x: jnp.asarray(np.einsum("im,m...->i...", weights, np.asarray(x))),
        ends.state,
    )
    ids = jnp.arange(len(weights), dtype=jnp.int32)
    return dataclasses.replace(ends, state=state, member_ids=ids).on_mesh(ends.mesh)


def hidden_layers(ensemble, member):
    """Pre-activations of an MLP's hidden layers, by a float64 NumPy loop."""
    x, found = np.asarray(X, np.float64), []
    for index in range(2):
        layer = ensemble.params["blocks"][index]["linear"]
        kernel, bias = (
            np.asarray(layer[n][...][member], np.float64) for n in ("kernel", "bias")
        )
        found.append(x @ kernel + bias)
        x = np.maximum(found[-1], 0)
    return found


def test_the_midpoint_has_the_mean_statistics_of_its_ends():
    ends = models.ensemble_of(models.mlp, 3)
    weights = np.array([[0.5, 0.5, 0.0], [0.2, 0.3, 0.5]])
    mended = repair(merged(ends, weights), ends, weights, X)
    of_ends = [hidden_layers(ends, m) for m in range(3)]
    for mixture, row in enumerate(weights):
        for depth, found in enumerate(hidden_layers(mended, mixture)):
            for statistic in (np.mean, np.std):
                expected = sum(
                    w * statistic(layers[depth], axis=0)
                    for w, layers in zip(row, of_ends)
                )
                np.testing.assert_allclose(
                    statistic(found, axis=0), expected, rtol=2e-4, atol=2e-5
                )
    head = [e.params["head"]["linear"]["kernel"][...] for e in (mended, ends)]
    np.testing.assert_allclose(
        head[0], np.einsum("im,m...->i...", weights, head[1]), rtol=1e-5
    )


def test_an_end_is_left_as_it_is():
    ends = models.ensemble_of(models.mlp, 3)
    mended = repair(ends, ends, np.eye(3), X)
    assert models.largest_difference(mended, ends).max() < 1e-5


def test_an_end_of_weight_zero_that_is_not_finite_plays_no_part():
    ends = models.ensemble_of(models.mlp, 3)
    weights = np.array([[0.5, 0.5, 0.0], [0.2, 0.8, 0.0], [1.0, 0.0, 0.0]])
    whole = merged(ends, weights)
    spoilt = jax.tree.map(
        lambda x: x.at[2].set(jnp.nan) if jnp.isdtype(x.dtype, "real floating") else x,
        ends.state,
    )
    mended = repair(whole, dataclasses.replace(ends, state=spoilt), weights, X)
    assert models.largest_difference(mended, repair(whole, ends, weights, X)).max() == 0


@pytest.mark.parametrize("batch_size", [32, 23])  # equal parts; 22, 22 and 20 rows
def test_parts_of_the_rows_give_what_all_rows_give(batch_size):
    ends = models.ensemble_of(models.mlp, 3)
    weights = np.array([[0.5, 0.5, 0.0], [0.2, 0.3, 0.5]])
    middle = merged(ends, weights)
    drifting = X + jnp.arange(64.0)[:, None] / 16
    whole = repair(middle, ends, weights, drifting)
    parts = repair(middle, ends, weights, drifting, batch_size=batch_size)
    assert models.largest_difference(parts, whole).max() < 1e-5
    assert models.largest_difference(parts, middle).max() > 1e-2


def test_no_forward_sees_more_rows_than_a_batch():
    seen = set()

    def apply(params, x):
        seen.add(x.shape[0])
        for name in ("a", "b"):
            layer = params[name]
            x = jax.nn.relu(x @ layer["kernel"] + layer["bias"][None])
        return x @ params["head"]

    rng = np.random.default_rng(0)
    shapes = {"kernel": (2, 8, 8), "bias": (2, 8)}
    params = {
        name: {k: rng.normal(size=s).astype(np.float32) for k, s in shapes.items()}
        for name in ("a", "b")
    } | {"head": rng.normal(size=(2, 8, 3)).astype(np.float32)}
    ends = Ensemble.from_apply(apply, params)
    middle = merged(ends, [[0.5, 0.5]])
    mended = repair(middle, ends, [[0.5, 0.5]], np.asarray(X), batch_size=16)
    assert seen == {16}
    whole = repair(middle, ends, [[0.5, 0.5]], X)
    assert models.largest_difference(mended, whole).max() < 1e-5


def test_errors_say_what_is_expected():
    ends = models.ensemble_of(models.mlp, 2)
    with pytest.raises(ValueError, match=r"\[mixture, member\] = \(2, 2\)"):
        repair(ends, ends, np.ones((1, 2)), X)
    with pytest.raises(ValueError, match="row 1 of weights has the sum 0 and"):
        repair(ends, ends, np.diag([1.0, 0.0]), X)
    with pytest.raises(ValueError, match="at least one row"):
        repair(ends, ends, np.eye(2), X[:0])
    other = models.ensemble_of(models.cnn, 2)
    with pytest.raises(ValueError, match="different architecture"):
        repair(ends, other, np.eye(2), X)
    bare = Ensemble.from_apply(apply_without_bias, {"w": jnp.ones((2, 8, 3))})
    with pytest.raises(ValueError, match="no hidden layer has a bias"):
        repair(bare, bare, np.eye(2), X)


def apply_without_bias(params, x):
    return x @ params["w"]


@pytest.mark.slow
@pytest.mark.parametrize("norm", [None, "layer", "group", "batch"])
def test_convolutions_and_norms_are_repaired(norm):
    ends = models.ensemble_of(lambda r: models.cnn(r, norm=norm), 2)
    x = jnp.asarray(np.random.default_rng(5).normal(size=(32, 8, 8, 1)), jnp.float32)
    middle = merged(ends, [[0.5, 0.5]])
    mended = repair(middle, ends, [[0.5, 0.5]], x)
    assert models.largest_difference(mended, middle).max() > 1e-2
    again = repair(mended, ends, [[0.5, 0.5]], x)
    # What is right already is not changed.
    assert models.largest_difference(again, mended).max() < 1e-4
    same = repair(ends, ends, np.eye(2), x)
    assert models.largest_difference(same, ends).max() < 1e-4
