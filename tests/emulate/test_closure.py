"""The imperfect simulator: its line is the system's, its noise is red and its own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ensjax.emulate.closure import (
    ClosureLorenz96,
    closure_forecasts,
    fit_closure,
)
from ensjax.emulate.lorenz96 import Lorenz96, TwoScaleLorenz96
from ensjax.emulate.trajectories import advance


def test_without_line_and_noise_it_is_the_one_scale_system():
    plain = Lorenz96(num_sites=8, forcing=8.0)
    closed = ClosureLorenz96(num_sites=8, forcing=8.0)
    x = plain.start(jax.random.key(0))
    expected = advance(plain, x, 20)
    found = advance(closed, closed.begin(x, jax.random.key(1)), 20)[0]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_the_line_is_what_the_fast_scale_does_to_the_slow_one():
    system = TwoScaleLorenz96(num_sites=8, num_fast=8)
    closure = fit_closure(
        system, num_trajectories=8, num_states=100, spin_up_steps=1_000, seed=3
    )
    # By the definition, from states of other runs.
    x, y = _states(system)
    pull = y.reshape(*x.shape, 8).sum(-1)  # h c / b = 1
    left = pull - closure.offset - closure.slope * x
    assert abs(left.mean()) < 0.05 * pull.std()
    assert abs(np.corrcoef(left.ravel(), x.ravel())[0, 1]) < 0.1
    assert left.std() == pytest.approx(closure.noise_sd, rel=0.15)
    assert 0 < closure.memory < 1


def _states(system):
    from ensjax.emulate.trajectories import climate_states

    states = climate_states(
        system,
        np.arange(8),
        spin_up_steps=1_000,
        seed=9,
        num_states=50,
        gap_steps=40,
    )
    return tuple(np.asarray(part) for part in states)


def test_the_noise_has_its_deviation_and_memory():
    system = ClosureLorenz96(num_sites=64, noise_sd=0.7, memory=0.8)

    def next_noise(state, _):
        state = system.step(state)
        return state, state[1]

    state = system.begin(jnp.zeros(64), jax.random.key(0))
    _, e = jax.lax.scan(next_noise, state, None, length=400)
    e = np.asarray(e)
    assert e.std() == pytest.approx(0.7, rel=0.03)
    lagged = np.mean(e[1:] * e[:-1]) / np.mean(e**2)
    assert lagged == pytest.approx(0.8, abs=0.02)


def test_a_row_is_the_same_whoever_is_beside_it():
    system = ClosureLorenz96(num_sites=8, noise_sd=0.5, memory=0.5)
    starts = np.random.default_rng(0).normal(2, 3, (5, 8)).astype(np.float32)
    options = dict(lead_steps=(1, 4), seed=0, block=1)
    all_rows = closure_forecasts(system, starts, **options)
    assert all_rows.shape == (5, 2, 8)
    np.testing.assert_array_equal(
        closure_forecasts(system, starts[:2], **options), all_rows[:2]
    )
    assert not np.allclose(
        closure_forecasts(system, starts, **{**options, "seed": 1}), all_rows
    )


@pytest.mark.parametrize(
    "options, word",
    [
        (dict(num_sites=3), "num_sites"),
        (dict(step_length=0.0), "step_length"),
        (dict(noise_sd=-1.0), "noise_sd"),
        (dict(memory=1.0), "memory"),
    ],
)
def test_bad_numbers_are_named(options, word):
    with pytest.raises(ValueError, match=word):
        ClosureLorenz96(**options)


def test_a_step_that_is_no_whole_number_of_the_systems_is_refused():
    with pytest.raises(ValueError, match="whole number"):
        fit_closure(TwoScaleLorenz96(), step_length=0.007)
