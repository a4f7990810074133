"""Shifted test sets: known values of rotation, noise, blur and contrast."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from ensjax.data import shifts

KEY = jax.random.key(5)
IMAGES = np.random.default_rng(1).random((3, 8, 8, 2)).astype(np.float32)


def test_rotation_by_zero_is_the_identity():
    np.testing.assert_array_equal(shifts.rotate(IMAGES, 0.0), IMAGES)


@pytest.mark.parametrize("quarter_turns", [1, 2, 3, 4, -1])
@pytest.mark.parametrize("size", [7, 8])
def test_rotation_by_quarter_turns_is_rot90(quarter_turns, size):
    images = IMAGES[:, :size, :size]
    expected = np.rot90(images, quarter_turns, axes=(1, 2))
    came = shifts.rotate(images, 90.0 * quarter_turns)
    np.testing.assert_allclose(came, expected, atol=5e-6)  # cos(pi / 2) is not 0


@pytest.mark.parametrize("degrees", [15.0, 30.0, -45.0])
def test_rotation_equals_scipy(degrees):
    expected = ndimage.rotate(
        IMAGES,
        degrees,
        axes=(2, 1),
        reshape=False,
        order=1,
        mode="grid-constant",
        cval=0.25,
    )
    expected_other_way = ndimage.rotate(IMAGES, -degrees, axes=(2, 1), reshape=False)
    came = shifts.rotate(IMAGES, degrees, fill=0.25)
    np.testing.assert_allclose(came, expected, atol=5e-6)
    assert np.abs(np.asarray(came) - expected_other_way).max() > 0.1


def test_noise_has_its_standard_deviation_and_is_clipped_to_the_range():
    grey = np.full((4, 50, 50, 1), 0.5, np.float32)
    noisy = np.asarray(shifts.gaussian_noise(grey, 0.1, KEY))
    # 10,000 draws: 4 standard errors of the mean and of the standard deviation.
    assert abs(noisy.mean() - 0.5) < 4 * 0.1 / 100
    assert abs(noisy.std() - 0.1) < 4 * 0.1 / np.sqrt(2 * 10_000)
    strong = np.asarray(shifts.gaussian_noise(grey, 5.0, KEY))
    assert strong.min() == 0.0 and strong.max() == 1.0
    free = np.asarray(shifts.gaussian_noise(grey, 5.0, KEY, value_range=None))
    assert free.min() < -5.0 and free.max() > 5.0


def test_noise_of_an_image_does_not_depend_on_the_others():
    whole = shifts.gaussian_noise(IMAGES, 0.2, KEY)
    np.testing.assert_array_equal(
        shifts.gaussian_noise(IMAGES[:2], 0.2, KEY), whole[:2]
    )
    np.testing.assert_array_equal(shifts.gaussian_noise(IMAGES, 0.0, KEY), IMAGES)
    assert not np.array_equal(whole[0] - IMAGES[0], whole[1] - IMAGES[1])


@pytest.mark.parametrize("sigma", [0.5, 1.3])
@pytest.mark.parametrize("width", [5, 8])
def test_blur_equals_scipy(sigma, width):
    images = IMAGES[:, :, :width]
    sigmas = (0, sigma, sigma, 0)
    expected = ndimage.gaussian_filter(images, sigmas, mode="constant", truncate=4.0)
    came = shifts.gaussian_blur(images, sigma)
    np.testing.assert_allclose(came, expected, atol=1e-6)


def test_contrast_keeps_means_and_shrinks_what_is_around_them():
    came = np.asarray(shifts.lower_contrast(IMAGES, 0.6))
    means = [x.mean(axis=(1, 2), keepdims=True) for x in (IMAGES, came)]
    np.testing.assert_allclose(means[1], means[0], atol=1e-6)
    np.testing.assert_allclose(came - means[1], 0.4 * (IMAGES - means[0]), atol=1e-6)
    flat = np.asarray(shifts.lower_contrast(IMAGES, 1.0))
    np.testing.assert_allclose(flat, np.broadcast_to(means[0], flat.shape), atol=1e-6)


@pytest.mark.parametrize("name", sorted(shifts.SHIFTS))
def test_severity_zero_changes_nothing_and_severities_grow(name):
    severities = shifts.SHIFTS[name].severities
    assert severities[0] == 0.0 and list(severities) == sorted(severities)
    distances = [
        float(jnp.abs(shifts.apply_shift(IMAGES, name, s, KEY) - IMAGES).mean())
        for s in severities
    ]
    assert distances[0] == 0.0 and distances[1] > 0.0


def test_bad_arguments_say_what_was_expected():
    with pytest.raises(ValueError, match="'fog'; known: blur, contrast, noise, rota"):
        shifts.apply_shift(IMAGES, "fog", 1.0, KEY)
    with pytest.raises(ValueError, match=r"\[batch, height.*\(8, 8, 2\)"):
        shifts.rotate(IMAGES[0], 10.0)
    with pytest.raises(ValueError, match="sigma must not be negative; got -1"):
        shifts.gaussian_noise(IMAGES, -1.0, KEY)
    with pytest.raises(ValueError, match="sigma must not be negative; got -1"):
        shifts.gaussian_blur(IMAGES, -1.0)
    with pytest.raises(ValueError, match=r"strength must lie in \[0, 1\]; got 1.5"):
        shifts.lower_contrast(IMAGES, 1.5)
    with pytest.raises(TypeError, match="floating; got uint8"):
        shifts.rotate(IMAGES.astype(np.uint8), 10.0)
