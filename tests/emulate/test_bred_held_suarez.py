"""Bred vectors of the Held-Suarez atmosphere, with a norm of each hemisphere."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ensjax.emulate import (
    BredVectors,
    FieldsStep,
    HeldSuarez,
    HemisphericNorm,
    MemberForecast,
    RandomPerturbation,
    Rollout,
    SphericalNoise,
    Start,
    bred_amplitude,
    product_ids,
)
from ensjax.emulate.trajectories import advance
from ensjax.ops import find_grid

pytest.importorskip("dinosaur")
pytestmark = pytest.mark.slow
SYSTEM = HeldSuarez(num_levels=2, step_minutes=120)
STEP = FieldsStep(SYSTEM, num_steps=3)  # of 6 hours
CYCLES, PAIRS, SPIN_UP_DAYS = 3, 3, 120


@pytest.fixture(scope="module")
def start():
    """A spun-up analysis and those before it, 6 hours apart."""

    @jax.jit
    def run(key):
        def to_next(state, num_steps):
            state = advance(SYSTEM, state, num_steps)
            return state, SYSTEM.fields(state)

        spin_up = SPIN_UP_DAYS * SYSTEM.steps_per_day
        lengths = jnp.array([spin_up] + [STEP.num_steps] * CYCLES)
        return jax.lax.scan(to_next, SYSTEM.start(key), lengths)[1]

    history = run(jax.random.key(0))
    assert np.isfinite(history).all()
    return Start(history[-1], history)


@pytest.fixture(scope="module")
def norm():
    return HemisphericNorm(tuple(SYSTEM.space["lat"].tolist()))


@pytest.fixture(scope="module")
def amplitude(start, norm):
    """A share, as published, of the error of persistence for 6 hours."""
    change = start.history[1:] - start.history[:-1]
    return bred_amplitude(change, norm=norm, share=0.35)


@pytest.fixture(scope="module")
def noise():
    """Of 500 km, of the waves that the atmosphere has."""
    grid = find_grid(SYSTEM.space["lat"], 64, truncation=SYSTEM.truncation)
    channels = len(SYSTEM.channels)
    return SphericalNoise.of_lengths(grid, lengths_km=(500.0,) * channels)


@pytest.fixture(scope="module")
def members(start, norm, amplitude, noise):
    """Starts of centred pairs `[pair, sign, lat, lon, channel]`, bred and random."""
    seeded = (SYSTEM.channels.index("temperature_2"),)
    bred = BredVectors(
        amplitude, STEP, num_cycles=CYCLES, norm=norm, noise=noise, seed_channels=seeded
    )
    drawn = RandomPerturbation(amplitude, norm, noise)
    ids = product_ids(1, PAIRS, 1)

    def states(perturb):
        forecast = MemberForecast(Rollout(STEP), perturb)

        @jax.jit
        def begin(ids, start):
            return jax.vmap(lambda one: forecast.begin(one, None, start, 0)[1])(ids)

        found = np.asarray(begin(ids, start), np.float64)
        return found.reshape(PAIRS, 2, *found.shape[1:])

    return states(bred), states(drawn)


def test_pairs_are_centred_on_the_analysis(start, members):
    plus, minus = members[0][:, 0], members[0][:, 1]
    analysis = np.asarray(start.state, np.float64)
    rounding = 1e-6 * np.abs(analysis).max(axis=(0, 1))
    assert np.all(np.abs(plus + minus - 2 * analysis) < 2 * rounding)
    assert np.all(np.abs(plus - minus).max(axis=(1, 2)) > 100 * rounding)


def test_each_hemisphere_has_the_amplitude(norm, amplitude, members):
    for states in members:
        for plus, minus in states:
            size = np.asarray(norm(jnp.asarray((plus - minus) / 2)))[[0, -1], 0]
            np.testing.assert_allclose(size, np.tile(amplitude, (2, 1)), rtol=2e-3)


def test_bred_vectors_grow_and_are_balanced(start, norm, members):
    """Over a day, in the mean of the log over channels, in either hemisphere.

    Noise of equal norm in every channel is no measure of growth here: its channels do
    not fit each other, and divergence and surface pressure, which are small in a
    balanced state, grow by that more than anything that was bred does.
    """
    bred, drawn = (states[:, 0] for states in members)
    begun = jnp.asarray(np.concatenate([[start.state], bred, drawn]), jnp.float32)
    day = FieldsStep(SYSTEM, SYSTEM.steps_per_day)
    after = jax.jit(jax.vmap(lambda fields: day(None, None, fields)))(begun)

    def size(states):
        """Norms `[member, hemisphere, channel]` of what parts them from the first."""
        return np.asarray(jax.vmap(norm)(states[1:] - states[:1]))[:, [0, -1], 0]

    growth = np.log(size(after) / size(begun)).mean(axis=-1)  # [member, hemisphere]
    assert np.all(growth[:PAIRS] > 0)
    assert np.all(growth[PAIRS:].min(axis=0) > growth[:PAIRS].max(axis=0))
