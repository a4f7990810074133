"""References of a network of one step, and the flag of a forecast's first step."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import ensjax
from ensjax import nn
from ensjax.emulate import NetworkStep, Rollout
from ensjax.ops import SphericalGrid, from_real_harmonics, to_real_harmonics
from ensjax.train import NoiseCrps, RolloutLoss, WhiteNoise

SITES, LARGEST = 24, 3
NUM_NOISE = 2
MAKE = {
    "norms": nn.NoiseForecaster,
    "film": nn.ResidualForecaster,
}


def network(kind, seed=0, **options):
    """A small network whose noise and state both matter, with random weights."""
    small = dict(num_noise_channels=NUM_NOISE, width=8, depth=1, kernel_size=(3,))
    made = MAKE[kind](1, rngs=nnx.Rngs(seed), **small | options)
    graph, params = nnx.split(made)
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    new = [
        0.3 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)
    ]
    return nnx.merge(graph, jax.tree.unflatten(tree, new))


def field(shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape)


@pytest.mark.parametrize("space, largest", [((12,), (3,)), ((8, 9), (2, 0))])
def test_waves_up_to_the_largest_stay_and_no_others(space, largest):
    """Against the discrete Fourier transform of NumPy."""
    state = field((*space, 2))
    axes = tuple(range(len(space)))
    modes = np.fft.fftn(np.asarray(state, np.float64), axes=axes)
    for axis, (size, most) in enumerate(zip(space, largest, strict=True)):
        number = np.abs(np.fft.fftfreq(size, 1 / size)) > most
        modes[(slice(None),) * axis + (number,)] = 0
    expected = np.fft.ifftn(modes, axes=axes).real
    truncation = nn.WaveTruncation(largest)
    once = truncation(state)
    np.testing.assert_allclose(once, expected, atol=1e-6)
    np.testing.assert_allclose(truncation(once), once, atol=1e-6)
    np.testing.assert_allclose(truncation(jnp.ones_like(state)), 1, atol=1e-6)


def test_harmonics_up_to_the_truncation_stay_and_no_others():
    fine = SphericalGrid(8, 16)
    coarse = SphericalGrid(8, 16, truncation=3)
    waves = to_real_harmonics(field((2, 8, 16)), fine)
    smooth = from_real_harmonics(waves, fine)  # no wave beyond the grid's own
    kept = nn.HarmonicTruncation(coarse)(jnp.moveaxis(smooth, 0, -1))
    found = to_real_harmonics(jnp.moveaxis(kept, -1, 0), fine)
    expected = jnp.where(jnp.arange(8)[:, None] <= 3, waves, 0)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_latitudes_that_are_split_are_truncated_alike():
    grid = SphericalGrid(8, 16, truncation=3)
    state = field((8, 16, 2))
    mesh = ensjax.make_mesh(member=1, model=2, devices=jax.devices()[:2])
    rows = jax.P("model")
    split = jax.shard_map(
        nn.HarmonicTruncation(grid, "model"), mesh=mesh, in_specs=rows, out_specs=rows
    )
    whole = nn.HarmonicTruncation(grid)(state)
    np.testing.assert_allclose(jax.jit(split)(state), whole, atol=1e-6)


@pytest.mark.parametrize("kind", MAKE)
def test_the_change_is_added_to_the_reference(kind):
    """Of the same parameters, since neither option has any of its own."""
    noise, state = field((SITES, NUM_NOISE), 1), field((SITES, 1), 2)
    truncation = nn.WaveTruncation((LARGEST,))
    plain, truncated = network(kind), network(kind, reference=truncation)
    change = plain(noise, state) - state
    assert float(jnp.abs(change).max()) > 0.1
    np.testing.assert_allclose(
        truncated(noise, state), truncation(state) + change, atol=1e-5
    )


def test_a_spherical_forecaster_adds_to_its_reference():
    grid = SphericalGrid(6, 12)
    truncation = nn.HarmonicTruncation(SphericalGrid(6, 12, truncation=2))
    options = dict(width=4, blocks=("global",), rngs=nnx.Rngs(0))
    new = nn.SphericalForecaster(
        grid, 1, adds_to_state=True, reference=truncation, **options
    )
    state = field((6, 12, 1))
    np.testing.assert_allclose(new(None, state), truncation(state), atol=1e-6)
    with pytest.raises(ValueError, match="needs adds_to_state"):
        nn.SphericalForecaster(grid, 1, reference=truncation, **options)


@functools.cache
def fine_scale_spread(kind, has_reference):
    """Variance over members of the waves beyond the reference's, after each lead."""
    reference = nn.WaveTruncation((LARGEST,)) if has_reference else None
    made = network(kind, step_scale=0.05, reference=reference)
    ensemble = ensjax.Ensemble.stack([made])
    rollout = Rollout(NetworkStep(ensemble.graph, WhiteNoise(NUM_NOISE)))
    model = jax.tree.map(lambda x: x[0], ensemble.state)
    leads = jnp.array([1, 10, 40])
    keys = jax.random.split(jax.random.key(3), 32)
    run = jax.jit(
        jax.vmap(lambda key: rollout(model, key, field((SITES, 1), 4), leads))
    )
    members = np.asarray(run(keys), np.float64)[..., 0]  # [member, lead, site]
    modes = np.fft.rfft(members, axis=-1)[..., LARGEST + 1 :]
    return modes.var(axis=0).mean(axis=-1)


@pytest.mark.parametrize("kind", MAKE)
def test_noise_of_fine_scales_is_not_carried_from_step_to_step(kind):
    """What the reference is for. Added to the state, steps of noise pile up."""
    carried = fine_scale_spread(kind, False)
    assert carried[1] > 5 * carried[0] and carried[2] > 15 * carried[0]
    fresh = fine_scale_spread(kind, True)
    np.testing.assert_allclose(fresh[0], carried[0], rtol=1e-3)
    assert np.all(fresh[1:] < 2 * fresh[0])


@pytest.mark.parametrize("kind", MAKE)
def test_the_first_step_is_told_in_rollouts_and_in_training(kind):
    made = network(kind, flags_first_step=True)
    noise, state = field((3, SITES, NUM_NOISE), 1), field((SITES, 1), 2)
    after = [state]
    for step in range(3):
        after.append(made(noise[step], after[-1], is_first=step == 0))
    wrong = made(noise[0], state, is_first=False)
    assert float(jnp.abs(wrong - after[1]).max()) > 1e-2

    loss = RolloutLoss(3, NoiseCrps(2, noise=WhiteNoise(NUM_NOISE)))
    np.testing.assert_allclose(
        loss.forecast(made)(noise, state), jnp.stack(after[1:]), atol=1e-5
    )
    one = RolloutLoss(1, loss.score).forecast(made)(noise[:1], state)
    np.testing.assert_allclose(one[0], after[1], atol=1e-6)

    ensemble = ensjax.Ensemble.stack([made])
    step = NetworkStep(ensemble.graph, lambda key, shape: noise[0])
    model = jax.tree.map(lambda x: x[0], ensemble.state)
    found = Rollout(step)(model, jax.random.key(0), state, jnp.array([1, 3]))
    np.testing.assert_allclose(found[0], after[1], atol=1e-6)
    np.testing.assert_allclose(step(model, jax.random.key(0), state), after[1], 1e-5)
    second = made(noise[0], after[1], is_first=False)
    third = made(noise[0], second, is_first=False)
    np.testing.assert_allclose(found[1], third, atol=1e-5)


@pytest.mark.parametrize("kind", MAKE)
def test_what_does_not_fit_is_refused(kind):
    noise, state = field((SITES, NUM_NOISE), 1), field((SITES, 1), 2)
    with pytest.raises(ValueError, match="is told is_first"):
        network(kind)(noise, state, is_first=True)
    with pytest.raises(ValueError, match="is told is_first"):
        network(kind, flags_first_step=True)(noise, state)
    shorter = network(kind, reference=lambda state: state[1:])
    with pytest.raises(ValueError, match="must keep the shape"):
        shorter(noise, state)
    with pytest.raises(ValueError, match="waves up to 12"):
        network(kind, reference=nn.WaveTruncation((12,)))(noise, state)
    with pytest.raises(ValueError, match="2 axes of space"):
        nn.WaveTruncation((1, 1))(state)
    for wrong in ((), (-1,)):
        with pytest.raises(ValueError, match="one number of 0 or above"):
            nn.WaveTruncation(wrong)
    with pytest.raises(ValueError, match="lat, lon, channel"):
        nn.HarmonicTruncation(SphericalGrid(6, 12))(state)
