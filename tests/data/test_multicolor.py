"""MultiColor images: their layout, how often patches tell the class, their draws."""

import jax
import numpy as np
import pytest

from ensjax import data
from ensjax.data.multicolor import COLORS

KEY = jax.random.key(7)
LABELS = np.random.default_rng(0).integers(0, 10, 2_000).astype(np.int32)
draw = jax.jit(data.patch_colors)  # with one shape throughout, since it compiles


@pytest.fixture(scope="module")
def colors():
    return jax.jit(data.class_colors)(KEY)


def test_every_patch_has_its_own_permutation_of_ten_colors(colors):
    assert colors.shape == (32, 10)
    np.testing.assert_array_equal(
        np.sort(colors, axis=1), np.tile(np.arange(10), (32, 1))
    )
    assert len({tuple(row) for row in np.asarray(colors).tolist()}) == 32
    few = jax.eval_shape(lambda: data.class_colors(KEY, num_patches=1, num_classes=3))
    assert few.shape == (1, 3)


def test_a_patch_tells_the_class_as_often_as_its_agreement_says(colors):
    told = np.asarray(colors)[:, LABELS].T
    agreement = np.repeat(np.float32([1.0, 0.0, 0.3, 0.7]), 8)
    drawn = np.asarray(draw(KEY, LABELS, colors, agreement))
    rate = (drawn == told).reshape(2_000, 4, 8).mean(axis=(0, 2))
    assert rate[0] == 1
    for found, a in zip(rate[1:], (0.0, 0.3, 0.7)):
        expected = a + (1 - a) / 10  # the class's colour comes up by chance too
        error = np.sqrt(expected * (1 - expected) / 16_000)
        assert abs(found - expected) < 4 * error
    # What is not the class's colour is any of the ten.
    counts = np.bincount(drawn[:, 8:16].ravel(), minlength=10) / 16_000
    np.testing.assert_allclose(counts, 0.1, atol=4 * np.sqrt(0.09 / 16_000))


def test_draws_belong_to_an_images_position_and_key(colors):
    agreement = np.full(32, 0.3, np.float32)
    whole = np.asarray(draw(KEY, LABELS, colors, agreement))
    places = np.random.default_rng(1).permutation(2_000).astype(np.int32)
    moved = draw(KEY, LABELS[places], colors, agreement, positions=places)
    np.testing.assert_array_equal(moved, whole[places])
    other = draw(jax.random.key(8), LABELS, colors, agreement)
    assert (np.asarray(other) != whole).mean() > 0.3


def test_the_layout_is_that_of_a_loop_over_blocks_and_quarters():
    rng = np.random.default_rng(0)
    centers = rng.uniform(size=(2, 4, 4, 1)).astype(np.float32)
    patches = rng.integers(0, 10, (2, 32)).astype(np.int32)
    rgb = np.array(list(COLORS.values()), np.float32) / 255
    expected = np.zeros((2, 12, 12, 3), np.float32)
    for n in range(2):
        patch = 0
        for block in range(9):
            top, left = 4 * (block // 3), 4 * (block % 3)
            if block == 4:
                expected[n, 4:8, 4:8] = centers[n]
                continue
            for quarter in range(4):
                i, j = top + 2 * (quarter // 2), left + 2 * (quarter % 2)
                expected[n, i : i + 2, j : j + 2] = rgb[patches[n, patch]]
                patch += 1
    np.testing.assert_array_equal(data.paint_border(centers, patches), expected)
    alike = data.paint_border(centers, patches[:, :1])
    same = data.paint_border(centers, np.repeat(patches[:, :1], 32, axis=1))
    np.testing.assert_array_equal(alike, same)


def test_digits_have_the_cards_sizes_and_training_images_tell_their_class():
    found = data.multicolor_digits(seed=3, test_agreement=0.3)
    assert found.x_train.shape == (1397, 24, 24, 3)
    assert found.x_test.shape == (400, 24, 24, 3)
    again = data.multicolor_digits(seed=3, test_agreement=0.3)
    np.testing.assert_array_equal(found.x_test, again.x_test)
    # Perfectly coloured: all images of a class have one border.
    border = found.x_train.copy()
    border[:, 8:16, 8:16] = 0
    for label in (0, 7):
        own = border[found.y_train == label]
        assert (own == own[:1]).all()
    grey = data.digits(test_size=400, seed=0)
    middle = found.x_test[:, 8:16, 8:16]
    np.testing.assert_array_equal(middle, np.repeat(grey.x_test, 3, axis=-1))
    other = data.multicolor_digits(seed=4, test_agreement=0.3)
    assert (other.x_train[:, :8] != found.x_train[:, :8]).any()


def test_in_the_control_an_image_has_one_draw_for_all_patches():
    table = np.arange(10, dtype=np.int32)[None]
    drawn = np.asarray(draw(KEY, LABELS, table, np.full(1, 0.1, np.float32)))
    assert drawn.shape == (2_000, 1)  # `paint_border` fills all patches with it
    rate = (drawn[:, 0] == LABELS).mean()
    assert abs(rate - 0.19) < 4 * np.sqrt(0.19 * 0.81 / 2_000)


@pytest.mark.slow
def test_the_control_is_painted_in_one_color():
    found = data.multicolor_digits(seed=0, num_patches=1, test_agreement=0.1)
    corner = found.x_test[:, :1, :1]
    is_border = np.ones((24, 24), bool)
    is_border[8:16, 8:16] = False
    assert (found.x_test == corner)[:, is_border].all()
    # Fewer than ten colours would mean that images share their draw.
    assert len(np.unique(corner.reshape(-1, 3), axis=0)) == 10


def test_half_of_the_patches_tell_the_class_in_each_stage(colors):
    told = np.asarray(colors)[:, LABELS].T
    for stage in (0, 1):
        drawn = np.asarray(draw(KEY, LABELS, colors, data.stage_agreement(stage)))
        rate = (drawn == told).mean(axis=0).reshape(2, 16)
        assert (rate[stage] == 1).all()
        assert abs(rate[1 - stage].mean() - 0.1) < 0.01
    np.testing.assert_array_equal(
        data.stage_agreement(0, perfect=0.2, other=0.2), np.full(32, 0.2, np.float32)
    )


def test_images_are_halved_from_their_first_row_and_column():
    grey = data.digits(test_size=400, seed=0)
    found = data.subsampled(grey)
    np.testing.assert_array_equal(found.x_test, grey.x_test[:, ::2, ::2])
    np.testing.assert_array_equal(found.x_train, grey.x_train[:, ::2, ::2])
    with pytest.raises(ValueError, match="step must be at least 1"):
        data.subsampled(grey, 0)


@pytest.mark.slow
def test_mnist_has_forty_two_rows_and_the_papers_split(tmp_path):
    found = data.multicolor_mnist()
    assert found.x_train.shape == (4_000, 42, 42, 3)
    # Files of MNIST's numbers of images, of 2 x 2 pixels.
    rng = np.random.default_rng(0)
    for part, count in (("train", 60_000), ("t10k", 10)):
        images = rng.integers(0, 256, (count, 4, 4)).astype(np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            shape = np.array(array.shape, ">u4").tobytes()
            header = bytes([0, 0, 8, array.ndim]) + shape
            (tmp_path / f"{part}-{kind}-ubyte").write_bytes(header + array.tobytes())
    whole = data.mnist_centers(tmp_path)
    assert whole.x_train.shape == (50_000, 2, 2, 1)
    np.testing.assert_array_equal(whole.test_ids, np.arange(50_000, 60_000))
    np.testing.assert_array_equal(whole.y_test, np.arange(50_000, 60_000) % 10)


def test_mistakes_are_named(colors):
    labels = np.zeros(2, np.int32)
    with pytest.raises(ValueError, match="num_patches is 32, or 1"):
        data.class_colors(KEY, num_patches=8)
    with pytest.raises(ValueError, match="num_classes must be 1 to 10"):
        data.class_colors(KEY, num_classes=11)
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\]"):
        data.patch_colors(KEY, labels, colors, 1.5)
    with pytest.raises(ValueError, match=r"number or \[patch\]"):
        data.patch_colors(KEY, labels, colors, np.zeros(16))
    with pytest.raises(ValueError, match="integers"):
        data.patch_colors(KEY, np.zeros(2), colors, 0.5)
    with pytest.raises(ValueError, match="even side"):
        data.paint_border(np.zeros((2, 7, 7)), np.zeros((2, 32), np.int32))
    with pytest.raises(ValueError, match=r"\[batch, 32\] or \[batch, 1\]"):
        data.paint_border(np.zeros((2, 8, 8)), np.zeros((2, 16), np.int32))
    with pytest.raises(ValueError, match="stage is 0 or 1"):
        data.stage_agreement(2)
