"""The modules that hold published weights: sizes, graphs, known values, errors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ensjax.nn import (
    CLIP,
    ClipClassifier,
    ImageNetResNet,
    ViT,
    clip_image_tower,
    zero_shot_classifier,
    zero_shot_head,
)
from ensjax.nn.activations import ACTIVATIONS

SMALL_CLIP = functools.partial(
    CLIP,
    image_shape=(8, 8, 3),
    patch_size=(4, 4),
    image_width=8,
    image_depth=1,
    image_heads=2,
    vocabulary=20,
    max_tokens=6,
    text_width=8,
    text_depth=1,
    text_heads=2,
    num_features=4,
    end_token=9,
)
SMALL = {
    "clip": SMALL_CLIP,
    "resnet": functools.partial(
        ImageNetResNet, depths=(1,), widths=(8,), stem_width=4, num_outputs=3
    ),
}


def rngs():
    return nnx.Rngs(params=0)


@functools.cache
def small_clip():
    return nnx.jit(lambda: SMALL_CLIP(rngs=rngs()))()


@pytest.mark.parametrize(
    "make, count",
    [
        # As torchvision's documentation has them.
        (
            functools.partial(
                ImageNetResNet,
                depths=(2, 2, 2, 2),
                widths=(64, 128, 256, 512),
                block="basic",
            ),
            11_689_512,
        ),
        (ImageNetResNet, 25_557_032),
        pytest.param(
            functools.partial(ImageNetResNet, depths=(3, 4, 23, 3)),
            44_549_160,
            marks=pytest.mark.slow,
        ),
        (
            functools.partial(
                ViT,
                image_shape=(224, 224, 3),
                patch_size=(16, 16),
                width=768,
                depth=12,
                num_heads=12,
                num_outputs=1000,
                qkv_bias=True,
            ),
            86_567_656,
        ),
        # CLIP ViT-B/32, as its weights are published.
        pytest.param(CLIP, 151_277_313, marks=pytest.mark.slow),
    ],
)
def test_published_sizes(make, count):
    model = nnx.eval_shape(lambda: make(rngs=rngs()))
    params = jax.tree.leaves(nnx.state(model, nnx.Param))
    assert sum(leaf.size for leaf in params) == count


@pytest.mark.parametrize("name", list(SMALL))
def test_equal_arguments_give_equal_graphs(name):
    options = dict(dtype=jnp.bfloat16, remat=True)
    graphs = [
        nnx.graphdef(nnx.eval_shape(lambda: SMALL[name](rngs=rngs(), **options)))
        for _ in range(2)
    ]
    assert graphs[0] == graphs[1] and hash(graphs[0]) == hash(graphs[1])


def test_graphs_saved_before_there_were_options_are_those_of_the_defaults():
    make = functools.partial(ViT, image_shape=(8, 8, 1), width=8, num_heads=2)
    model = nnx.eval_shape(lambda: make(depth=1, rngs=rngs()))
    block = model.blocks[0]
    assert not {"activation", "causal"} & set(vars(block))
    assert "embed_norm" not in vars(model)
    assert (block.activation, block.causal, model.embed_norm) == (
        "gelu_tanh",
        False,
        None,
    )


def test_activations_have_their_known_values():
    x = jnp.asarray([-1.0, 0.0, 1.0])
    known = {
        "gelu": [-0.15865525, 0, 0.84134475],  # x times the normal distribution of x
        "gelu_tanh": [-0.15880801, 0, 0.84119199],
        "quick_gelu": [-0.15420423, 0, 0.84579577],  # x / (1 + exp(-1.702 x))
        "relu": [0, 0, 1],
    }
    assert set(known) == set(ACTIVATIONS)
    for name, values in known.items():
        np.testing.assert_allclose(ACTIVATIONS[name](x), values, atol=2e-7)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["clip", "resnet"])
def test_bfloat16_is_near_and_remat_the_same(name):
    if name == "clip":
        x = jnp.linspace(-2, 2, 2 * 8 * 8 * 3).reshape(2, 8, 8, 3)
        x = {"images": x, "tokens": jnp.asarray([[1, 2, 9], [9, 3, 4]])}
    else:
        x = jnp.linspace(-2, 2, 2 * 16 * 16 * 3).reshape(2, 16, 16, 3)

    @functools.partial(jax.jit, static_argnames=("dtype", "remat"))
    def outputs(**options):
        model = SMALL[name](rngs=rngs(), **options)
        model.eval()
        return jax.tree.leaves(model(x))

    plain = outputs(dtype=None, remat=False)
    for a, b in zip(plain, outputs(dtype=None, remat=True), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)
    for a, b in zip(plain, outputs(dtype=jnp.bfloat16, remat=False), strict=True):
        assert b.dtype == jnp.float32
        assert 0 < jnp.max(jnp.abs(a - b)) < 0.05 * jnp.max(jnp.abs(a))


@pytest.mark.slow
def test_what_follows_the_end_of_a_text_is_not_read():
    model = small_clip()
    tokens = jnp.asarray([[3, 4, 9, 1, 1], [3, 4, 9, 19, 9], [3, 5, 9, 1, 1]])
    read = nnx.jit(CLIP.text_features)
    features = read(model, tokens)
    np.testing.assert_array_equal(features[0], features[1])
    assert jnp.max(jnp.abs(features[0] - features[2])) > 1e-3
    np.testing.assert_allclose(jnp.sum(features**2, axis=1), np.ones(3), rtol=1e-6)
    short = read(model, tokens[:1, :3])
    np.testing.assert_allclose(short, features[:1], atol=1e-6)


def test_a_zero_shot_head_by_hand():
    features = jnp.asarray([[[3.0, 0.0], [0.0, 0.5]], [[-2.0, 0.0], [-9.0, 0.0]]])
    # The first class's prompts point along both axes, whatever their lengths.
    expected = 5 * np.asarray([[np.sqrt(0.5), -1], [np.sqrt(0.5), 0]])
    head = zero_shot_head(features, jnp.log(5.0))
    np.testing.assert_allclose(head, expected, rtol=1e-6)
    with pytest.raises(ValueError, match=r"\[class, prompt, feature\]; got shape"):
        zero_shot_head(features[0], jnp.log(5.0))


@pytest.mark.parametrize("remat", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_classifier_of_one_prompt_says_what_clip_says(remat):
    model = nnx.clone(small_clip())
    model.text.remat = remat
    tokens = jnp.asarray([[3, 4, 9], [5, 9, 1], [6, 7, 9]])
    images = jnp.linspace(-1, 1, 4 * 8 * 8 * 3).reshape(4, 8, 8, 3)

    @nnx.jit
    def both(model):
        classifier = zero_shot_classifier(model, tokens[:, None])
        assert isinstance(classifier, ClipClassifier)
        return classifier(images), model.logits_per_image(images, tokens)

    found, expected = both(model)
    np.testing.assert_allclose(found, expected, atol=2e-5)
    with pytest.raises(ValueError, match=r"becomes tokens\[:, None\]"):
        zero_shot_classifier(model, tokens)


@pytest.mark.slow
def test_the_image_tower_of_clip_is_a_vit_without_some_biases():
    tower = clip_image_tower(
        image_shape=(8, 8, 3),
        patch_size=(4, 4),
        width=8,
        depth=1,
        num_heads=2,
        num_features=4,
        rngs=rngs(),
    )
    assert tower.embed.bias is None and tower.head.linear.bias is None
    assert tower.blocks[0].qkv.bias is not None
    assert tower.embed_norm.epsilon == tower.norm.epsilon == 1e-5


@pytest.mark.parametrize(
    "make, match",
    [
        (functools.partial(ImageNetResNet, depths=(1,)), "one number of at least 1"),
        (functools.partial(ImageNetResNet, block="wide"), "block is one of basic"),
        (functools.partial(ImageNetResNet, strides_on="5x5"), "strides_on 3x3 or 1x1"),
        (functools.partial(SMALL_CLIP, text_heads=3), "3 and 8 of the text tower"),
        (functools.partial(SMALL_CLIP, activation="swish"), "one of gelu, gelu_tanh"),
        (functools.partial(ViT, activation="swish"), "activation must be one of"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(make, match):
    with pytest.raises(ValueError, match=match):
        nnx.eval_shape(lambda: make(rngs=rngs()))


def test_inputs_that_do_not_fit_are_refused():
    model = small_clip()
    for wrong in (jnp.ones((1, 8, 8, 3)), {}, {"pixels": jnp.ones((1, 8, 8, 3))}):
        with pytest.raises(ValueError, match="a dict with 'images', 'tokens' or both"):
            model(wrong)
    with pytest.raises(ValueError, match="at most 6 tokens; got 7"):
        model.text_features(jnp.zeros((1, 7), int))
    with pytest.raises(TypeError, match="tokens must be integers"):
        model.text_features(jnp.zeros((1, 5)))
