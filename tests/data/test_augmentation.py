"""Augmentation of one example: equal to NumPy on the same draws, one draw per key."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ensjax.data import augmentation as aug

KEY = jax.random.key(3)
KEYS = jax.vmap(lambda i: jax.random.fold_in(KEY, i))(jnp.arange(64))
IMAGE = np.random.default_rng(0).random((7, 5, 2)).astype(np.float32)


def test_crop_equals_numpy_with_the_same_offsets():
    for key in KEYS[:8]:
        down, right = np.asarray(jax.random.randint(key, (2,), 0, 5))
        padded = np.full((11, 9, 2), 0.5, np.float32)
        padded[2:-2, 2:-2] = IMAGE
        expected = padded[down : down + 7, right : right + 5]
        came = aug.random_crop(padding=2, fill=0.5)(key, IMAGE)
        np.testing.assert_array_equal(came, expected)


def test_crop_reaches_every_offset():
    image = jnp.arange(1.0, 5.0).reshape(2, 2, 1)
    crops = np.asarray(jax.vmap(lambda k: aug.random_crop(1)(k, image))(KEYS))
    assert len({crop.tobytes() for crop in crops}) == 9


def test_crop_without_padding_is_the_identity():
    np.testing.assert_array_equal(aug.random_crop(padding=0)(KEY, IMAGE), IMAGE)


def test_flip_mirrors_about_half_of_the_keys():
    flipped = []
    for key in KEYS:
        flips = bool(jax.random.bernoulli(key))
        expected = IMAGE[:, ::-1] if flips else IMAGE
        np.testing.assert_array_equal(aug.random_flip()(key, IMAGE), expected)
        flipped.append(flips)
    assert 16 <= sum(flipped) <= 48  # 4 standard deviations of 64 fair coins


@pytest.mark.parametrize("degrees", [-37.0, 0.0, 12.5, 90.0, 200.0])
def test_rotation_equals_a_numpy_loop(degrees):
    height, width, _ = IMAGE.shape
    angle = np.deg2rad(degrees)
    expected = np.full(IMAGE.shape, 0.0)
    for i in range(height):
        for j in range(width):
            down, right = i - (height - 1) / 2, j - (width - 1) / 2
            y = np.cos(angle) * down + np.sin(angle) * right + (height - 1) / 2
            x = np.cos(angle) * right - np.sin(angle) * down + (width - 1) / 2
            for row in range(height):
                for column in range(width):
                    tent = max(0, 1 - abs(y - row)) * max(0, 1 - abs(x - column))
                    expected[i, j] += tent * IMAGE[row, column]
    came = aug.rotate_image(jnp.asarray(IMAGE), degrees)
    np.testing.assert_allclose(came, expected, atol=3e-6)  # coordinates to 1e-6


def test_random_rotation_turns_by_its_own_draw_within_the_limit():
    image = jnp.asarray(IMAGE)
    for key in KEYS[:4]:
        degrees = jax.random.uniform(key, minval=-30.0, maxval=30.0)
        expected = aug.rotate_image(image, degrees)
        came = aug.random_rotation(30.0)(key, image)
        np.testing.assert_allclose(came, expected, atol=1e-6)


def test_noise_adds_the_keys_normal_draw():
    expected = IMAGE + 0.3 * np.asarray(jax.random.normal(KEY, IMAGE.shape))
    came = aug.random_noise(0.3)(KEY, IMAGE)
    np.testing.assert_allclose(came, expected, atol=1e-6)


def test_composition_folds_the_place_into_the_key():
    first, second = aug.random_crop(2), aug.random_noise(0.1)
    once = first(jax.random.fold_in(KEY, 0), IMAGE)
    twice = second(jax.random.fold_in(KEY, 1), once)
    np.testing.assert_array_equal(aug.compose(first, second)(KEY, IMAGE), twice)


@pytest.mark.parametrize(
    "transform",
    [aug.random_crop(3), aug.random_rotation(40.0), aug.random_noise(0.1)],
    ids=repr,
)
def test_each_member_and_example_has_its_own_draw_and_vmap_equals_a_loop(transform):
    augment = aug.augment_images(transform)
    members, batch = 3, 4
    keys = KEYS[: members * batch].reshape(members, batch)
    # Everything is the same image: what differs comes from the keys.
    images = jnp.broadcast_to(IMAGE, (batch, *IMAGE.shape))
    labels = jnp.arange(batch)
    over_batch = jax.vmap(augment, (0, (0, 0)))
    mapped = jax.jit(jax.vmap(over_batch, (0, None)))(keys, (images, labels))
    assert mapped[0].shape == (members, batch, *IMAGE.shape)
    for m in range(members):
        for i in range(batch):
            alone = augment(keys[m, i], (images[i], labels[i]))
            np.testing.assert_allclose(mapped[0][m, i], alone[0], atol=1e-6)
            assert mapped[1][m, i] == i
    results = {
        np.asarray(mapped[0][m, i]).tobytes() for m in range(3) for i in range(4)
    }
    assert len(results) >= 11  # a crop of 49 places may repeat once


class Pair(NamedTuple):
    image: jax.Array
    label: jax.Array


def test_only_the_image_leaf_changes_in_every_structure():
    augment = aug.augment_images(aug.random_noise(0.5))
    expected = augment(KEY, jnp.asarray(IMAGE))
    assert not np.array_equal(expected, IMAGE)
    for example in [(IMAGE, 3), [IMAGE, 3], Pair(IMAGE, 3)]:
        came = augment(KEY, example)
        assert type(came) is type(example) and came[1] == 3
        np.testing.assert_array_equal(came[0], expected)
    came = augment(KEY, {"image": IMAGE, "label": 3, "mask": 1})
    assert came.keys() == {"image", "label", "mask"} and came["label"] == 3
    named = aug.augment_images(aug.random_noise(0.5), image_name="x")
    np.testing.assert_array_equal(named(KEY, {"x": IMAGE})["x"], expected)


def test_equal_settings_are_equal_and_hit_the_jit_cache():
    def build():
        return aug.augment_images(aug.random_crop(padding=2), aug.random_flip())

    assert build() == build() and hash(build()) == hash(build())
    assert build() != aug.augment_images(aug.random_crop(padding=3), aug.random_flip())
    assert aug.random_noise(0.1) != aug.random_rotation(0.1)
    traces = []

    def run(augment, key, image):
        traces.append(augment)
        return augment(key, image)

    jitted = jax.jit(run, static_argnums=0)
    for _ in range(3):
        jitted(build(), KEY, IMAGE)
    assert len(traces) == 1
    assert repr(aug.random_crop(2)) == "random_crop(padding=2, fill=0.0)"


def test_crop_and_flip_gather_no_single_pixels():
    augment = aug.augment_images(aug.random_crop(2), aug.random_flip())
    over_batch = jax.vmap(augment, (0, 0))
    images = jnp.broadcast_to(IMAGE, (4, *IMAGE.shape))
    text = jax.jit(over_batch).lower(KEYS[:4], images).as_text()
    gathers = [line for line in text.splitlines() if '"stablehlo.gather"' in line]
    # One gather at most, and its slices are whole crops.
    assert len(gathers) <= 1
    assert all("slice_sizes = array<i64: 1, 7, 5, 2>" in line for line in gathers)


def test_bad_examples_say_what_was_expected():
    augment = aug.augment_images(aug.random_flip())
    with pytest.raises(ValueError, match=r"\[height, width, channel\].*\(7, 5\)"):
        augment(KEY, (IMAGE[..., 0], 1))
    with pytest.raises(ValueError, match=r"hold 'image'; it holds \['x', 'y'\]"):
        augment(KEY, {"x": IMAGE, "y": 1})
    with pytest.raises(TypeError, match="floating; got uint8"):
        aug.random_noise(0.1)(KEY, IMAGE.astype(np.uint8))
    with pytest.raises(ValueError, match="padding must not be negative; got -1"):
        aug.random_crop(padding=-1)
