"""Draws on the whole cube: their covariance is the kernel's, whatever the predictor."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import comb

import ensjax
from ensjax import ntk
from ensjax.ntk import two_layer


def implied_covariance(prior, inputs):
    """What the factors say of two inputs: a sum over the subsets that both hold."""
    ones = inputs.sum(axis=1).astype(int) - 1
    overlap = (inputs @ inputs.T).astype(int)
    found = 0
    for size, factor in enumerate(prior.factors):
        factor = np.asarray(factor, np.float64)
        found = found + comb(overlap, size) * (factor @ factor.T)[np.ix_(ones, ones)]
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    "spec",
    [
        ntk.FullyConnected(),
        ntk.FullyConnected(hidden_layers=2, activation="erf", bias_variance=0.1),
    ],
)
@pytest.mark.parametrize("k", [1, 2, 5])
def test_the_factors_are_those_of_the_kernel(k, spec):
    inputs = ntk.cube_inputs(k)
    with jax.enable_x64(True):
        expected = np.asarray(ntk.kernel(spec, np.float64(inputs)).nngp)
    found = implied_covariance(ntk.cube_prior(spec, k), inputs)
    np.testing.assert_allclose(found, expected, atol=2e-7 * expected.max())


@pytest.fixture(scope="module")
def deviations():
    """Of both laws at k = 4, `[draw, law, row, output]`, from the same networks."""
    k = 4
    inputs = ntk.cube_inputs(k)
    ones = inputs.sum(axis=1).astype(int)
    weights = []
    for kind in ("ntk", "readout"):
        law = two_layer.law(k, ones, kind=kind)
        weights.append(np.where(inputs > 0, law.on_one[:, None], law.on_zero[:, None]))
    prior = ntk.cube_prior(ntk.FullyConnected(), k)
    draw = ensjax.map_members(
        ntk.DrawDeviation(2), kinds=("member", "shared", "shared", "shared")
    )
    shared = (0, prior, np.float32(weights))
    return inputs, ones, draw, shared, np.asarray(draw(jnp.arange(8000), *shared))


def test_deviations_have_the_covariance_of_trained_networks(deviations):
    inputs, ones, _, _, drawn = deviations
    overlap = (inputs @ inputs.T).astype(int)
    samples = len(drawn) * drawn.shape[-1]
    for place, kind in enumerate(("ntk", "readout")):
        expected = two_layer.covariance(4, ones[:, None], ones, overlap, kind=kind)
        own = drawn[:, place]
        found = np.einsum("dro,dso->rs", own, own) / samples
        scale = np.diag(expected)
        bound = np.sqrt((scale[:, None] * scale[None] + expected**2) / samples)
        assert (np.abs(found - expected) <= 5 * bound + 1e-12).all()
        assert np.abs(own.mean(axis=(0, 2))).max() < 5 * np.sqrt(scale.max() / samples)
        # Outputs are independent, and training rows are fitted.
        crossed = np.einsum("dr,ds->rs", own[..., 0], own[..., 1]) / len(drawn)
        assert np.abs(crossed).max() < 5 * scale.max() / np.sqrt(len(drawn))
        assert np.abs(own[:, ones == 1]).max() < 1e-6


def test_a_draw_depends_on_its_id_and_the_seed_alone(deviations):
    *_, draw, shared, drawn = deviations
    few = np.asarray(draw(jnp.array([5, 2]), *shared))
    np.testing.assert_allclose(few, drawn[[5, 2]], atol=1e-6)
    other = np.asarray(draw(jnp.array([5]), 1, *shared[1:]))
    assert np.abs(other[0] - drawn[5]).max() > 0.1


def test_outputs_one_after_the_other_are_the_same(monkeypatch):
    prior = ntk.cube_prior(ntk.FullyConnected(), 5)
    together = ntk.DrawPrior(6)(3, 0, prior)
    monkeypatch.setattr("ensjax.ntk.cube._FLOATS_AT_ONCE", 4 * 5 * 2**5)
    apart = ntk.DrawPrior(6)(3, 0, prior)
    np.testing.assert_allclose(apart, together, atol=1e-6)
    assert together.shape == (31, 6)


def test_cubes_that_cannot_be_listed_are_refused():
    with pytest.raises(ValueError, match="for k from 1 to 24; got 30"):
        ntk.cube_prior(ntk.FullyConnected(), 30)
