"""Likelihoods by the probability flow against those of Gaussians."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import multivariate_normal

import ensjax
from ensjax.emulate import diffusion

MEAN = np.array([0.5, -1.0, 0.2], np.float32)
FACTOR = np.array([[1.0, 0, 0], [0.5, 0.6, 0], [-0.3, 0.4, 0.7]], np.float32)
COVARIANCE = FACTOR @ FACTOR.T
ROWS = np.array([[0.0, 0, 0], [0.5, -1, 0.2], [2, 1, -1], [-1, 0, 3]], np.float32)


@pytest.fixture(scope="module")
def exact():
    return diffusion.GaussianDenoiser.from_covariance(MEAN, COVARIANCE)


def reference(low, rows=ROWS):
    return multivariate_normal(MEAN, COVARIANCE + low**2 * np.eye(3)).logpdf(rows)


def test_the_exact_trace_gives_the_gaussian_density(exact):
    likelihood = diffusion.FlowLikelihood(
        low=0.01, high=20_000.0, num_steps=256, num_probes=None
    )
    found = diffusion.log_likelihoods(exact, ROWS, likelihood=likelihood)
    # The normal density around 0 at `high` leaves z mean / (sd high), about 3e-4.
    np.testing.assert_allclose(found, reference(0.01), atol=5e-4)


def test_the_density_is_that_of_the_data_with_noise_of_the_lowest_level(exact):
    likelihood = diffusion.FlowLikelihood(low=0.7, high=20_000.0, num_probes=None)
    found = diffusion.log_likelihoods(exact, ROWS, likelihood=likelihood)
    np.testing.assert_allclose(found, reference(0.7), atol=5e-4)


def test_probes_estimate_it_without_bias(exact):
    likelihood = diffusion.FlowLikelihood(low=0.01, high=20_000.0, num_probes=1)
    rows = np.repeat(ROWS[2:3], 512, axis=0)
    found = np.asarray(diffusion.log_likelihoods(exact, rows, likelihood=likelihood))
    error = found.std() / np.sqrt(len(rows))
    assert found.std() > 0.01  # the probes differ by row
    assert found.mean() == pytest.approx(reference(0.01)[2], abs=4 * error + 5e-4)


def test_a_diagonal_jacobian_needs_one_probe():
    """v^T J v is the trace for signs v and diagonal J."""
    exact = diffusion.GaussianDenoiser(  # eigenvectors without rounding
        jnp.asarray(MEAN), jnp.array([1.0, 0.5, 2.0]), jnp.eye(3)
    )
    options = dict(low=0.01, high=20_000.0)
    one = diffusion.FlowLikelihood(num_probes=1, **options)
    all_of_it = diffusion.FlowLikelihood(num_probes=None, **options)
    np.testing.assert_allclose(
        diffusion.log_likelihoods(exact, ROWS, likelihood=one),
        diffusion.log_likelihoods(exact, ROWS, likelihood=all_of_it),
        atol=1e-4,
    )


def test_conditions_and_meshes_change_what_they_should(exact):
    likelihood = diffusion.FlowLikelihood(high=1e4, num_steps=64, num_probes=2)
    conditions = jnp.tile(jnp.array([[0.3, 0.0, -0.5]]), (4, 1))
    options = dict(likelihood=likelihood, conditions=conditions)
    found = diffusion.log_likelihoods(exact, ROWS, **options)
    one = ensjax.make_mesh(member=1, devices=jax.devices()[:1])
    same = diffusion.log_likelihoods(exact, ROWS, mesh=one, **options)
    np.testing.assert_allclose(found, same, rtol=1e-5, atol=1e-5)
    moved = diffusion.log_likelihoods(exact, ROWS - conditions, likelihood=likelihood)
    np.testing.assert_allclose(found, moved, atol=3e-3)  # as z mean / high moves


def test_wrong_settings_are_refused():
    with pytest.raises(ValueError, match="num_probes"):
        diffusion.FlowLikelihood(num_probes=0)
    with pytest.raises(ValueError, match="low must be above 0"):
        diffusion.FlowLikelihood(low=2.0, high=1.0)
