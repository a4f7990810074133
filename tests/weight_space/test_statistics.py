"""Batch statistics are measured whichever way a module says when they are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import ensjax
from ensjax.weight_space import greedy_soup, recompute_statistics, sweep

X = np.random.default_rng(0).normal(2.0, 3.0, size=(24, 4)).astype(np.float32)
Y = np.arange(24) % 2


class OwnNorm(nnx.BatchNorm):
    """A norm with a call of its own, which says so in turn."""

    def __call__(self, x):
        return 2 * super().__call__(x, use_running_average=True)


class DirectNorm(nnx.BatchNorm):
    """A norm that asks nobody."""

    def __call__(self, x):
        mean, var = self.mean[...][None], self.var[...][None]
        return (x - mean) / jnp.sqrt(var + self.epsilon)


class Plain(nnx.Module):
    """The norm is told by its attribute."""

    kind = nnx.BatchNorm

    def __init__(self, rngs):
        self.norm = self.kind(4, rngs=rngs)
        self.unused = nnx.BatchNorm(4, rngs=rngs)
        self.head = nnx.Linear(4, 2, rngs=rngs)
        self.deterministic = False

    def __call__(self, x):
        return self.head(self.norm(x))


class Told(Plain):
    """The norm is told in the call, whose argument wins over the attribute."""

    def __call__(self, x):
        return self.head(self.norm(x, use_running_average=self.deterministic))


class Subclassed(Plain):
    kind = OwnNorm


class Direct(Plain):
    kind = DirectNorm


class Layers(nnx.Module):
    """Norms of several layers in a row, as one stack."""

    def __init__(self, rngs):
        @nnx.split_rngs(splits=2)
        @nnx.vmap(in_axes=(0,), out_axes=0)
        def make(rngs):
            return Told(rngs)

        self.layers = make(rngs)

    def __call__(self, x):
        @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        def run(x, layer):
            return 3 * layer.norm(x, use_running_average=layer.deterministic)

        return run(x, self.layers)


def ensemble_of(kind):
    mesh = ensjax.make_mesh(member=1, devices=jax.devices()[:1])
    return ensjax.Ensemble.init(kind, num_members=2, seed=0, mesh=mesh)


@pytest.mark.parametrize("kind", [Plain, Told, Subclassed])
def test_statistics_are_those_of_the_data(kind):
    found = recompute_statistics(ensemble_of(kind), X)
    for member in found:
        np.testing.assert_allclose(member.norm.mean[...], X.mean(axis=0), atol=1e-5)
        np.testing.assert_allclose(member.norm.var[...], X.var(axis=0), rtol=1e-5)
        # What the forward does not run has nothing to put right.
        np.testing.assert_array_equal(member.unused.mean[...], 0)
        assert type(member.norm) is kind.kind


def test_statistics_of_a_stack_of_layers_are_measured_in_turn():
    (member, _) = recompute_statistics(ensemble_of(Layers), X)
    mean, var = member.layers.norm.mean[...], member.layers.norm.var[...]
    np.testing.assert_allclose(mean[0], X.mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(mean[1], 0, atol=1e-5)
    np.testing.assert_allclose(var[1], 9, rtol=1e-4)


def test_what_cannot_be_measured_is_named():
    with pytest.raises(ValueError, match="none of the members' nnx.BatchNorm was run"):
        recompute_statistics(ensemble_of(Direct), X)


def test_statistics_that_are_not_finite_are_put_right():
    """Of a running mean that is NaN no share may be kept, be it 0."""
    ensemble = ensemble_of(Told)
    state = jax.tree.map(lambda x: x, ensemble.state)
    norm = state["rest"]["norm"]
    norm["mean"][...], norm["var"][...] = jnp.full((2, 4), jnp.nan), -norm["var"][...]
    broken = ensjax.Ensemble(state, ensemble.member_ids, ensemble.graph, ensemble.mesh)
    found = recompute_statistics(broken, X)
    np.testing.assert_allclose(found[0].norm.mean[...], X.mean(axis=0), atol=1e-5)
    assert np.isfinite(found(X)).all()


def test_sweeps_and_greedy_soups_measure_them_too():
    ensemble = ensemble_of(Told)
    fresh = recompute_statistics(ensemble, X)
    nll = sweep(fresh, np.eye(2), {"all": (X, Y)}).values["weights"]["all"]["nll"]
    found = sweep(ensemble, np.eye(2), {"all": (X, Y)}, statistics=X)
    np.testing.assert_allclose(found.values["weights"]["all"]["nll"], nll, rtol=1e-5)
    soup = greedy_soup(ensemble, (X, Y), score="nll", statistics=X)
    np.testing.assert_allclose(soup.scores[0], nll.min(), rtol=1e-5)
    norm = soup.model[0].norm
    np.testing.assert_allclose(norm.mean[...], X.mean(axis=0), atol=1e-5)
