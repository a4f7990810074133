"""CLIP: an image tower and a text tower into one space, and classifiers made of it."""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from ensjax.nn.attention import check_tokens
from ensjax.nn.layers import Head, normal_002, run_block
from ensjax.nn.vit import TransformerBlock, ViT


class CLIP(nnx.Module):
    """Features of images and of texts, whose products say what belongs together.

    Args:
        image_shape, patch_size: as of `ViT`.
        image_width, image_depth, image_heads, image_mlp_width: of the image tower.
        vocabulary: number of words (token ids).
        max_tokens: longest text; each position has its own embedding.
        text_width, text_depth, text_heads, text_mlp_width: of the text tower.
        end_token: id of the token that ends a text, from whose first place the features
            are read; `None`: from the place of the largest id.
        num_features: dimension of the common space.
        norm_epsilon: of all layer norms; or a pair, of the image and text towers.
        activation: of all MLPs; or a pair.
        dtype: of the arithmetic below the projections; parameters and features are
            float32.
        remat: whether blocks are computed again for the gradient.
        rngs: stream `params`.

    Raises:
        ValueError: if sizes do not divide or the activation is unknown.

    Source: Radford et al. 2021, arXiv:2103.00020, section 2.4 and figure 3; details
    (norm before the blocks, activation) as in the weights that were published.

    Example::

        model = CLIP(image_shape=(32, 32, 3), vocabulary=1000, rngs=nnx.Rngs(params=0))
        logits = model.logits_per_image(images, tokens)  # [image, text]
    """

    def __init__(
        self,
        *,
        image_shape: Sequence[int] = (224, 224, 3),
        patch_size: Sequence[int] = (32, 32),
        image_width: int = 768,
        image_depth: int = 12,
        image_heads: int = 12,
        image_mlp_width: int | None = None,
        vocabulary: int = 49408,
        max_tokens: int = 77,
        text_width: int = 512,
        text_depth: int = 12,
        text_heads: int = 8,
        text_mlp_width: int | None = None,
        end_token: int | None = None,
        num_features: int = 512,
        norm_epsilon: float | tuple[float, float] = 1e-5,
        activation: str | tuple[str, str] = "quick_gelu",
        dtype=None,
        remat: bool = False,
        rngs: nnx.Rngs,
    ):
        image_epsilon, text_epsilon = _pair(norm_epsilon)
        image_activation, text_activation = _pair(activation)
        self.image = clip_image_tower(
            image_shape=image_shape,
            patch_size=patch_size,
            width=image_width,
            depth=image_depth,
            num_heads=image_heads,
            mlp_width=image_mlp_width,
            num_features=num_features,
            norm_epsilon=image_epsilon,
            activation=image_activation,
            dtype=dtype,
            remat=remat,
            rngs=rngs,
        )
        self.text = TextTower(
            vocabulary=vocabulary,
            max_tokens=max_tokens,
            width=text_width,
            depth=text_depth,
            num_heads=text_heads,
            mlp_width=text_mlp_width,
            num_features=num_features,
            end_token=end_token,
            norm_epsilon=text_epsilon,
            activation=text_activation,
            dtype=dtype,
            remat=remat,
            rngs=rngs,
        )
        # The logarithm of 1 / temperature; at first of 1 / .07 as in the paper.
        self.logit_scale = nnx.Param(-jnp.log(jnp.float32(0.07)))

    def __call__(self, x: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Normalised features of what is given, each `[batch, feature]`.

        Args:
            x: "images" `[batch, height, width, channel]`, "tokens" `[batch, token]` or
                both.

        Returns:
            Features under the same names.

        Raises:
            ValueError: if `x` holds something else or nothing.
        """
        if not isinstance(x, Mapping) or not x or set(x) - {"images", "tokens"}:
            what = sorted(x) if isinstance(x, Mapping) else type(x).__name__
            raise ValueError(
                f"CLIP takes a dict with 'images', 'tokens' or both; got {what}."
            )
        towers = {"images": self.image_features, "tokens": self.text_features}
        return {name: towers[name](value) for name, value in x.items()}

    def image_features(self, images: jax.Array) -> jax.Array:
        """Features of unit length, `[image, feature]`."""
        return _normalised(self.image(images))

    def text_features(self, tokens: jax.Array) -> jax.Array:
        """Features of unit length, `[text, feature]`, of tokens `[text, token]`."""
        return _normalised(self.text(tokens))

    def logits_per_image(self, images: jax.Array, tokens: jax.Array) -> jax.Array:
        """exp(logit scale) times the products of features, `[image, text]`."""
        scale = jnp.exp(self.logit_scale[...])
        return scale * self.image_features(images) @ self.text_features(tokens).T


class TextTower(nnx.Module):
    """Causal transformer over tokens, read at the end of the text.

    Args: as of `CLIP`, without `text_`.
    """

    def __init__(
        self,
        *,
        vocabulary: int,
        max_tokens: int,
        width: int,
        depth: int,
        num_heads: int,
        mlp_width: int | None = None,
        num_features: int,
        end_token: int | None = None,
        norm_epsilon: float = 1e-5,
        activation: str = "quick_gelu",
        dtype=None,
        remat: bool = False,
        rngs: nnx.Rngs,
    ):
        if width % num_heads:
            raise ValueError(
                f"heads must divide the width; got {num_heads} and {width} of the text"
                " tower."
            )
        self.max_tokens, self.end_token = max_tokens, end_token
        self.remat, self.dtype = remat, dtype
        self.words = nnx.Embed(
            vocabulary, width, embedding_init=normal_002, dtype=dtype, rngs=rngs
        )
        self.positions = nnx.Param(normal_002(rngs.params(), (max_tokens, width)))
        self.blocks = nnx.List(
            TransformerBlock(
                width,
                num_heads,
                4 * width if mlp_width is None else mlp_width,
                qkv_bias=True,
                norm_epsilon=norm_epsilon,
                activation=activation,
                causal=True,
                dtype=dtype,
                rngs=rngs,
            )
            for _ in range(depth)
        )
        self.norm = nnx.LayerNorm(width, epsilon=norm_epsilon, dtype=dtype, rngs=rngs)
        self.head = Head(width, num_features, use_bias=False, dtype=dtype, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Features `[text, feature]` of token ids `[text, token]`.

        What follows the end token changes nothing, so that texts are filled up with
        any id there (with `end_token=None`, one that is not larger).

        Raises:
            TypeError: if the tokens are no integers.
            ValueError: if they are not `[text, token]` or there are too many.
        """
        check_tokens(tokens)
        if tokens.shape[1] > self.max_tokens:
            raise ValueError(
                f"texts have at most {self.max_tokens} tokens; got {tokens.shape[1]}."
            )
        x = self.words(tokens)
        x = x + self.positions[...][: tokens.shape[1]].astype(x.dtype)[None]
        for block in self.blocks:
            x = run_block(block, x, remat=self.remat)
        marks = tokens if self.end_token is None else tokens == self.end_token
        places = jnp.argmax(marks, axis=1)
        ends = jnp.take_along_axis(x, places[:, None, None], axis=1)[:, 0]
        return self.head(self.norm(ends))


class ClipClassifier(nnx.Module):
    """An image tower, its features at unit length, and a linear head without bias.

    Args:
        image: the tower, from `clip_image_tower` or a `CLIP`.
        kernel: of the head, `[feature, class]`, such as a `zero_shot_head`.

    Source: Wortsman et al. 2022, arXiv:2109.01903, section 2: what is fine-tuned.
    """

    def __init__(self, image: ViT, kernel: jax.Array):
        self.image = image
        self.kernel = nnx.Param(kernel)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits `[batch, class]` of images `[batch, height, width, channel]`."""
        return _normalised(self.image(x)) @ self.kernel[...]


def clip_image_tower(
    *,
    image_shape: Sequence[int],
    patch_size: Sequence[int],
    width: int,
    depth: int,
    num_heads: int,
    mlp_width: int | None = None,
    num_features: int,
    norm_epsilon: float = 1e-5,
    activation: str = "quick_gelu",
    dtype=None,
    remat: bool = False,
    rngs: nnx.Rngs,
) -> ViT:
    """The `ViT` of CLIP, whose outputs are the features before normalisation.

    Patches and the projection have no bias, queries, keys and values have one, and the
    tokens are normalised before the first block.
    """
    return ViT(
        image_shape=image_shape,
        patch_size=patch_size,
        width=width,
        depth=depth,
        num_heads=num_heads,
        mlp_width=mlp_width,
        num_outputs=num_features,
        qkv_bias=True,
        embed_bias=False,
        head_bias=False,
        embed_norm=True,
        norm_epsilon=norm_epsilon,
        activation=activation,
        dtype=dtype,
        remat=remat,
        rngs=rngs,
    )


def zero_shot_head(features: jax.Array, logit_scale: jax.Array) -> jax.Array:
    """The linear head that scores an image by the mean of each class's prompts.

    For a class c with prompts t and text features e,

        kernel_c = exp(logit scale) * m_c / ||m_c||,  m_c = mean_t e(t) / ||e(t)||

    Args:
        features: of the prompts, `[class, prompt, feature]`, of any length.
        logit_scale: the logarithm of the factor, a scalar.

    Returns:
        `[feature, class]`, the kernel for features of unit length.

    Raises:
        ValueError: if `features` is not 3-dimensional.

    Source: Radford et al. 2021, arXiv:2103.00020, section 3.1.4; Wortsman et al. 2022,
    arXiv:2109.01903, section 2.
    """
    if features.ndim != 3:
        raise ValueError(
            f"features must be [class, prompt, feature]; got shape {features.shape}."
        )
    means = _normalised(jnp.mean(_normalised(features), axis=1))
    return jnp.exp(logit_scale) * means.T


def zero_shot_classifier(model: CLIP, tokens: jax.Array) -> ClipClassifier:
    """The classifier that a CLIP makes of descriptions of classes.

    Its logits of an image are those of the image and a class, whose text features are
    the mean over prompts; see `zero_shot_head`. Classes are read one after the other,
    so that the memory is that of one class's prompts.

    Args:
        model: of one member; its image tower is shared.
        tokens: `[class, prompt, token]`; a class with fewer prompts has each of them
            equally often, since equal prompts count equally.

    Raises:
        ValueError: if `tokens` is not 3-dimensional.
    """
    if tokens.ndim != 3:
        raise ValueError(
            f"tokens must be [class, prompt, token]; got shape {tokens.shape}. A single"
            " prompt for each class becomes tokens[:, None]."
        )
    features = jax.lax.map(model.text, tokens)
    return ClipClassifier(model.image, zero_shot_head(features, model.logit_scale[...]))


def _normalised(features):
    wide = features.astype(jnp.promote_types(features.dtype, jnp.float32))
    return wide / jnp.linalg.norm(wide, axis=-1, keepdims=True)


def _pair(value):
    return value if isinstance(value, tuple) else (value, value)
