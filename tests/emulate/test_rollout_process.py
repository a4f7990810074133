"""Noise that is a process in time: a rollout goes on with it as training does."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ensjax.emulate import NetworkStep, Rollout, SphericalNoise
from ensjax.emulate.perturb import BredVectors, Start
from ensjax.emulate.product import MemberForecast, product_ids, run_product
from ensjax.verification import SphericalGrid

GRID = SphericalGrid(6, 12)
NOISE = SphericalNoise(GRID, kt=(0.05, 0.5), lambd=0.1)


@dataclasses.dataclass(frozen=True)
class Graph:
    """A network whose state is the noise that it was given, times its weight."""

    def merge(self, weight, train):
        del train
        return lambda noise, state: weight * noise[..., :1] + 0 * state


STEP = NetworkStep(Graph(), NOISE)
START = jnp.ones((*GRID.shape, 1))
LEADS = (1, 2, 5)


def test_each_step_has_the_noise_of_the_process():
    key = jax.random.key(3)
    seen = jax.jit(Rollout(STEP))(1.0, key, START, jnp.array(LEADS))
    expected = NOISE.of_steps(key, START.shape, 5)[np.array(LEADS) - 1, ..., :1]
    np.testing.assert_allclose(seen, expected, atol=1e-6)
    draws = jax.vmap(lambda i: Rollout(STEP)(1.0, jax.random.key(i), START, LEADS))
    first, second, _ = np.moveaxis(draws(jnp.arange(64)), 1, 0)
    correlation = np.corrcoef(first.ravel(), second.ravel())[0, 1]
    assert abs(correlation - np.exp(-0.1)) < 0.02


def test_a_member_of_a_product_remembers_and_is_made_again_alone():
    starts = Start(START[None], None)
    members = product_ids(2, 0, 1)
    forecast = MemberForecast(Rollout(STEP))
    options = dict(models=jnp.ones(2), starts=starts, lead_steps=LEADS, block=1)
    both = run_product(forecast, members, **options)
    alone = run_product(forecast, jax.tree.map(lambda x: x[1:], members), **options)
    np.testing.assert_array_equal(both[1], alone[0])
    first, second = both[:, 0].ravel(), both[:, 1].ravel()
    assert np.corrcoef(first, second)[0, 1] > 0.8


def test_bred_vectors_step_with_it():
    bred = BredVectors(jnp.array([0.1]), STEP, num_cycles=1)
    history = jnp.stack([START, START])
    delta = bred(jnp.float32(1.0), jax.random.key(0), Start(START, history))
    assert delta.shape == START.shape  # both steps have the same noise: nothing grows
    np.testing.assert_array_equal(delta, 0.0)


def test_a_process_that_a_forecast_cannot_go_on_with_is_refused():
    class OfSteps:
        def of_steps(self, key, shape, num_steps):
            raise NotImplementedError

    with pytest.raises(TypeError, match="OfSteps has of_steps, .* init, step, to_grid"):
        NetworkStep(Graph(), OfSteps())
