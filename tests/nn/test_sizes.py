"""Numbers of parameters, known from papers or by hand; nothing is allocated."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ensjax.nn import CNN, MLP, ResNet, ViT, wide_resnet
from ensjax.nn.vit import cut_patches


def num_params(build, **options):
    model = nnx.eval_shape(lambda: build(**options, rngs=nnx.Rngs(params=0)))
    leaves = jax.tree.leaves(nnx.state(model, nnx.Param))
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves)
    return sum(leaf.size for leaf in leaves)


def test_mlp():
    count = num_params(MLP, in_features=784, hidden=(256, 256), num_outputs=10)
    assert count == 784 * 256 + 256 + 256 * 256 + 256 + 256 * 10 + 10
    # A norm brings a scale and replaces the bias: one more number per unit.
    normed = num_params(MLP, in_features=784, hidden=(256, 256), norm="batch")
    assert normed == count + 2 * 256


def test_cnn_for_28x28_digits():
    convolutions = (9 * 1 * 16 + 16) + (9 * 16 * 32 + 32) + (9 * 32 * 32 + 32)
    assert num_params(CNN) == convolutions + 7 * 7 * 32 * 10 + 10 == 29_738
    normed = num_params(CNN, norm="group", hidden=(64,), pool="avg")
    assert normed == convolutions + 80 + 7 * 7 * 32 * 64 + 2 * 64 + 64 * 10 + 10


@pytest.mark.parametrize(
    "depth, millions",
    [
        (20, 0.27),
        (32, 0.46),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in [(44, 0.66), (56, 0.85), (110, 1.7)]
        ),
    ],
)
def test_resnets_have_the_sizes_of_the_paper(depth, millions):
    # He et al. 2016, table 6.
    count = num_params(ResNet, depth=depth)
    assert count / 1e6 == pytest.approx(millions, abs=0.05 if depth == 110 else 0.006)


def test_resnet_20_by_hand():
    def group(num_in, width):
        return 9 * num_in * width + 5 * 9 * width**2 + 6 * 2 * width

    stem, head = 9 * 3 * 16 + 2 * 16, 64 * 10 + 10
    expected = stem + group(16, 16) + group(16, 32) + group(32, 64) + head
    assert num_params(ResNet, depth=20) == expected == 269_722


@pytest.mark.parametrize(
    "depth, width, millions",
    [(40, 2, 2.2), (40, 4, 8.9), (16, 8, 11.0), (28, 10, 36.5)],
)
def test_wide_resnets_have_the_sizes_of_the_paper(depth, width, millions):
    # Zagoruyko and Komodakis 2016, tables 3 and 5.
    count = num_params(wide_resnet, depth=depth, width=width)
    assert count / 1e6 == pytest.approx(millions, abs=0.06)


def test_wrn_28_10_by_hand():
    def group(num_in, width):
        first = 2 * num_in + 9 * num_in * width + 2 * width + 9 * width**2
        return first + num_in * width + 3 * (4 * width + 18 * width**2)

    body = group(16, 160) + group(160, 320) + group(320, 640)
    expected = 9 * 3 * 16 + body + 2 * 640 + 640 * 10 + 10
    assert num_params(wide_resnet) == expected == 36_479_194


def test_vit_b_16_has_the_known_size_without_its_qkv_biases():
    count = num_params(
        ViT,
        image_shape=(224, 224, 3),
        patch_size=(16, 16),
        width=768,
        depth=12,
        num_heads=12,
        num_outputs=1000,
    )
    assert count == 86_567_656 - 12 * 3 * 768


@pytest.mark.slow
def test_shapes_of_the_full_networks():
    def logits(build, shape, **options):
        def apply():
            return build(**options, rngs=nnx.Rngs(params=0))(jnp.zeros(shape))

        return nnx.eval_shape(apply).shape

    assert logits(wide_resnet, (2, 32, 32, 3)) == (2, 10)
    assert logits(ResNet, (2, 32, 32, 3), depth=20, num_outputs=100) == (2, 100)
    assert logits(CNN, (2, 28, 28, 1)) == (2, 10)
    assert logits(ViT, (2, 28, 28, 1), pooling="mean", num_outputs=3) == (2, 3)


def test_patches_are_cut_row_by_row():
    x = jnp.arange(2 * 4 * 6 * 3.0).reshape(2, 4, 6, 3)
    patches = cut_patches(x, (2, 3))
    assert patches.shape == (2, 4, 18)
    np.testing.assert_array_equal(patches[1, 2], x[1, 2:4, 0:3].ravel())


@pytest.mark.slow
def test_mean_pooling_without_positions_ignores_the_order_of_patches():
    model = ViT(
        image_shape=(4, 8, 1),
        patch_size=(4, 4),
        width=8,
        depth=1,
        num_heads=2,
        pooling="mean",
        rngs=nnx.Rngs(params=0),
    )
    model.positions[...] = jnp.zeros_like(model.positions[...])
    x = jax.random.normal(jax.random.key(0), (1, 4, 8, 1))
    swapped = jnp.concatenate([x[:, :, 4:], x[:, :, :4]], axis=2)
    np.testing.assert_allclose(model(x), model(swapped), atol=1e-6)
