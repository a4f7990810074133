"""Spherical noise: deviation, memory, spectrum, isotropy, pairs; card level 0."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ensjax.emulate.spherical_noise import SphericalNoise, diffusion_time, of_pair
from ensjax.mapping import map_members
from ensjax.members import member_key
from ensjax.mesh import make_mesh
from ensjax.ops.sphere import SphericalGrid, to_real_harmonics, wave_power

GRID = SphericalGrid(32, 64, truncation=21)
LENGTHS = (500.0, 1000.0, 2000.0, 4000.0)
NOISE = SphericalNoise.of_lengths(GRID, LENGTHS, lambd=(1.0, 0.5, 0.125, 2.0))
DRAWS = 500


@functools.cache
def draws():
    """States now and three steps later, and fields, of members; on the host."""

    @jax.jit
    def run(keys):
        def of_member(key):
            state = NOISE.init(key)
            later = NOISE.step(state, jax.random.fold_in(key, 1))
            for number in (2, 3):
                later = NOISE.step(later, jax.random.fold_in(key, number))
            one = NOISE.step(state, jax.random.fold_in(key, 1))
            return state, one, later, NOISE.to_grid(later)

        return jax.vmap(of_member)(keys)

    return jax.tree.map(np.asarray, run(jax.random.split(jax.random.key(7), DRAWS)))


def test_every_place_has_the_deviation_that_is_asked_for():
    """Of 500 draws; the longest scale has the fewest independent places, about 25."""
    field = draws()[3]
    area = GRID.quadrature() / 2
    variance = (field**2).mean(axis=(0, 2)).T @ area  # about the mean, which is 0
    np.testing.assert_allclose(np.sqrt(variance), 1, atol=0.02)
    # 25 places of 500 draws each: the mean's standard error is below 0.01.
    np.testing.assert_allclose(field.mean(axis=(0, 2)).T @ area, 0, atol=1e-6)
    exact = NOISE.power().sum(axis=1)
    np.testing.assert_allclose(exact, 1, rtol=1e-12)
    twice = SphericalNoise(GRID, NOISE.kt, 1.0, (1.0, 2.0, 0.5, 0.0))
    np.testing.assert_allclose(twice.power().sum(axis=1), (1, 4, 0.25, 0), rtol=1e-12)


def test_a_step_remembers_exp_of_minus_lambda():
    state, one, later, _ = draws()
    for other, steps in ((one, 1), (later, 3)):
        shared = (state * other).sum(axis=(0, 2, 3, 4)) / np.sqrt(
            (state**2).sum(axis=(0, 2, 3, 4)) * (other**2).sum(axis=(0, 2, 3, 4))
        )
        np.testing.assert_allclose(shared, NOISE.memory**steps, atol=0.02)
    np.testing.assert_allclose(NOISE.memory, np.exp([-1, -0.5, -0.125, -2.0]))


def test_the_spectrum_is_that_of_diffusion_and_ends_at_the_truncation():
    power = np.asarray(wave_power(draws()[2])).mean(axis=0)  # [channel, l]
    degree = np.arange(22)
    for channel, kt in enumerate(diffusion_time(LENGTHS)):
        expected = (2 * degree + 1) * np.exp(-kt * degree * (degree + 1))
        expected[0] = 0.0
        expected /= expected.sum()
        np.testing.assert_allclose(NOISE.power()[channel], expected, rtol=1e-10)
        # A degree's power is a chi-square of (2 l + 1) waves and 500 draws.
        error = np.sqrt(2 / ((2 * degree + 1) * DRAWS))
        bound = 4.5 * error * expected + 1e-37  # below it float32 is 0
        assert (np.abs(power[channel] - expected) <= bound).all()
    seen = wave_power(to_real_harmonics(np.moveaxis(draws()[3], -1, 1)[:50], GRID))
    np.testing.assert_allclose(seen, wave_power(draws()[2][:50]), atol=1e-5)


def test_no_latitude_or_longitude_is_special():
    field = draws()[3]
    by_latitude = (field**2).mean(axis=(0, 2))  # [lat, channel]
    # Near a pole a row is a few independent places: about one for the longest scale.
    assert np.abs(by_latitude - 1).max() < 4.5 * np.sqrt(2 / DRAWS)
    by_longitude = (field**2).mean(axis=(0, 1))
    assert np.abs(by_longitude - 1).max() < 4.5 * np.sqrt(2 / DRAWS)
    # Parts and orders of a degree are alike.
    waves = draws()[2][:, 0, :, 5, 1:6] / NOISE.wave_sd()[0, 5]
    assert np.abs((waves**2).mean(axis=0) - 1).max() < 4.5 * np.sqrt(2 / DRAWS)


def run_pair(key, member_id, noise=NOISE):
    pair, sign = of_pair(member_id)
    key = jax.random.fold_in(key, pair)
    return sign * noise.of_steps(key, (32, 64, 2), 3)


def test_centred_pairs_sum_to_nothing_and_pairs_differ():
    key = jax.random.key(3)
    fields = np.asarray(jax.vmap(run_pair, (None, 0))(key, jnp.arange(4)))
    assert fields.shape == (4, 3, 32, 64, 4)
    np.testing.assert_array_equal(fields[0::2], -fields[1::2])
    assert np.abs(fields[0] - fields[2]).max() > 1
    lag = (fields[:, 0] * fields[:, 1]).mean(axis=(0, 1, 2))
    assert lag[2] > lag[0]  # which remembers longer


def test_a_member_is_the_same_alone_and_on_any_mesh():
    def member(member_id):
        return NOISE.of_steps(member_key(0, "sample", member_id), (32, 64, 2), 2)

    alone = np.asarray(jax.jit(member)(5))
    for sizes in (dict(member=1), dict(member=4)):
        run = map_members(member, kinds=("member",), mesh=make_mesh(**sizes), block=1)
        found = np.asarray(run(jnp.arange(4, 8)))
        np.testing.assert_allclose(found[1], alone, atol=1e-6)


def test_the_process_is_a_noise_of_one_step():
    key = jax.random.key(1)
    one = NOISE(key, (32, 64, 2))
    assert one.shape == (32, 64, 4) and one.dtype == jnp.float32
    state = NOISE.init(jax.random.fold_in(key, 0))
    np.testing.assert_allclose(one, NOISE.to_grid(state), atol=1e-6)
    white = SphericalNoise(GRID, (0.0,), np.inf)
    np.testing.assert_array_equal(white.memory, 0)
    np.testing.assert_allclose(white.wave_sd()[0, 1:], white.wave_sd()[0, 1])
    # A length of the planet: exp(-kT l (l + 1)) underflows but for the first degrees.
    wide = SphericalNoise(GRID, (400.0,))
    np.testing.assert_allclose(wide.power()[0, :3], (0, 1, 0), atol=1e-12)


def test_published_lengths_are_those_of_the_published_kt():
    lengths = 50.0 * 2 ** np.arange(8)
    published = 3.0806e-5 * 4.0 ** np.arange(8)
    np.testing.assert_allclose(diffusion_time(lengths), published, rtol=1e-4)


def test_mistakes_are_told():
    with pytest.raises(ValueError, match="kt must hold"):
        SphericalNoise(GRID, ())
    with pytest.raises(ValueError, match="lambd has 2 numbers for 1 channels"):
        SphericalNoise(GRID, (0.1,), (1.0, 2.0))
    with pytest.raises(ValueError, match="sigma must not be negative"):
        SphericalNoise(GRID, (0.1,), 1.0, -1.0)
    with pytest.raises(ValueError, match="positive"):
        diffusion_time((0.0,))
    with pytest.raises(ValueError, match=r"part, l, m\] = \(4, 2, 22, 22\)"):
        NOISE.to_grid(np.zeros((2, 22, 22)))
    with pytest.raises(ValueError, match="grid of"):
        NOISE(jax.random.key(0), (16, 32, 2))
