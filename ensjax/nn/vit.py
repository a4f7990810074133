"""Vision transformer."""

from collections.abc import Sequence

import einops
import jax
import jax.numpy as jnp
from flax import nnx

from ensjax.nn.activations import activation_function
from ensjax.nn.layers import (
    Head,
    check_images,
    dropout_layer,
    maybe,
    normal_002,
    run_block,
)

POOLINGS = ("token", "mean")


class ViT(nnx.Module):
    """Pre-norm transformer over image patches.

    Patches are cut by a reshape and embedded by a linear layer. By default queries,
    keys and values have no bias: that of the keys changes nothing, and its gradient is
    rounding. Published weights have one; the arguments from `qkv_bias` on are for them.

    Args:
        image_shape: `(height, width, channel)`.
        patch_size: `(height, width)` of a patch.
        width: channels of a token.
        depth: number of blocks.
        num_heads: attention heads.
        mlp_width: hidden channels of each block's MLP; `None` for 4 `width`.
        pooling: "token" reads the logits from a class token, "mean" from the mean of
            the patches.
        num_outputs: number of logits.
        dropout: rate after the positions, each attention and each MLP layer; draws
            from the stream `dropout`.
        dtype: of the arithmetic below the head; parameters and logits are float32.
        remat: whether blocks are computed again for the gradient.
        qkv_bias: whether queries, keys and values have a bias.
        embed_bias, head_bias: whether the embedding of patches and the head have one.
        embed_norm: whether the tokens are normalised before the first block (CLIP).
        norm_epsilon: added to the variance in each layer norm.
        activation: of the MLPs, one of `activations.ACTIVATIONS`.
        rngs: streams `params` and, with dropout, `dropout`.

    Raises:
        ValueError: if sizes do not divide, or `pooling` or `activation` is unknown.

    Source: Dosovitskiy et al. 2021, arXiv:2010.11929, equations 1 to 4.

    Example::

        model = ViT(image_shape=(32, 32, 3), rngs=nnx.Rngs(params=0))
        logits = model(images)  # [batch, 32, 32, 3] -> [batch, 10]
    """

    # Graphs that were saved before these could be chosen do not have them.
    embed_norm = None

    def __init__(
        self,
        *,
        image_shape: Sequence[int] = (28, 28, 1),
        patch_size: Sequence[int] = (4, 4),
        width: int = 64,
        depth: int = 4,
        num_heads: int = 4,
        mlp_width: int | None = None,
        pooling: str = "token",
        num_outputs: int = 10,
        dropout: float = 0.0,
        dtype=None,
        remat: bool = False,
        qkv_bias: bool = False,
        embed_bias: bool = True,
        head_bias: bool = True,
        embed_norm: bool = False,
        norm_epsilon: float = 1e-6,
        activation: str = "gelu_tanh",
        rngs: nnx.Rngs,
    ):
        height, wide, channels = image_shape
        tall_patch, wide_patch = patch_size
        if height % tall_patch or wide % wide_patch or width % num_heads:
            raise ValueError(
                "patches must tile the image and heads must divide the width; got"
                f" image {height}x{wide} with patches {tall_patch}x{wide_patch}, and"
                f" width {width} with {num_heads} heads."
            )
        if pooling not in POOLINGS:
            raise ValueError(
                f"pooling must be one of {', '.join(POOLINGS)}; got {pooling!r}."
            )
        self.image_shape = tuple(image_shape)
        self.patch_size = tuple(patch_size)
        self.dtype = dtype
        self.remat = remat
        has_token = pooling == "token"
        num_tokens = (height // tall_patch) * (wide // wide_patch) + has_token
        norm = dict(epsilon=norm_epsilon, dtype=dtype, rngs=rngs)
        self.embed = nnx.Linear(
            tall_patch * wide_patch * channels,
            width,
            use_bias=embed_bias,
            dtype=dtype,
            rngs=rngs,
        )
        self.token = nnx.Param(jnp.zeros((1, width))) if has_token else None
        self.positions = nnx.Param(normal_002(rngs.params(), (num_tokens, width)))
        self.dropout = dropout_layer(dropout, rngs=rngs)
        if embed_norm:
            self.embed_norm = nnx.LayerNorm(width, **norm)
        self.blocks = nnx.List(
            TransformerBlock(
                width,
                num_heads,
                4 * width if mlp_width is None else mlp_width,
                dropout=dropout,
                qkv_bias=qkv_bias,
                norm_epsilon=norm_epsilon,
                activation=activation,
                dtype=dtype,
                rngs=rngs,
            )
            for _ in range(depth)
        )
        self.norm = nnx.LayerNorm(width, **norm)
        self.head = Head(width, num_outputs, use_bias=head_bias, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits `[batch, output]` of images `[batch, height, width, channel]`.

        Raises:
            ValueError: if the images do not have `image_shape`.
        """
        check_images(x, self.image_shape[-1])
        if x.shape[1:] != self.image_shape:
            raise ValueError(
                f"images must have shape {self.image_shape}, as the model was built"
                f" for; got {x.shape[1:]}."
            )
        x = self.embed(cut_patches(x, self.patch_size))  # [batch, token, width]
        if self.token is not None:
            token = jnp.broadcast_to(
                self.token[...].astype(x.dtype), (x.shape[0], 1, x.shape[-1])
            )
            x = jnp.concatenate([token, x], axis=1)
        x = maybe(self.dropout, x + self.positions[...].astype(x.dtype)[None])
        x = maybe(self.embed_norm, x)
        for block in self.blocks:
            x = run_block(block, x, remat=self.remat)
        x = self.norm(x)
        if self.token is not None:
            return self.head(x[:, 0])
        wide = jnp.promote_types(x.dtype, jnp.float32)
        return self.head(jnp.mean(x, axis=1, dtype=wide))


class TransformerBlock(nnx.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)).

    With `causal` a token sees only itself and earlier ones.
    """

    # Graphs that were saved before these could be chosen do not have them.
    activation, causal = "gelu_tanh", False

    def __init__(
        self,
        width,
        num_heads,
        mlp_width,
        *,
        dropout=0.0,
        qkv_bias=False,
        norm_epsilon=1e-6,
        activation="gelu_tanh",
        causal=False,
        dtype,
        rngs,
    ):
        self.num_heads = num_heads
        activation_function(activation)  # raises where it is unknown
        if (activation, causal) != (self.activation, self.causal):
            self.activation, self.causal = activation, causal
        options = dict(dtype=dtype, rngs=rngs)
        self.norm1 = nnx.LayerNorm(width, epsilon=norm_epsilon, **options)
        self.qkv = nnx.Linear(width, 3 * width, use_bias=qkv_bias, **options)
        self.out = nnx.Linear(width, width, **options)
        self.norm2 = nnx.LayerNorm(width, epsilon=norm_epsilon, **options)
        self.linear1 = nnx.Linear(width, mlp_width, **options)
        self.linear2 = nnx.Linear(mlp_width, width, **options)
        self.dropout1 = dropout_layer(dropout, rngs=rngs)
        self.dropout2 = dropout_layer(dropout, rngs=rngs)
        self.dropout3 = dropout_layer(dropout, rngs=rngs)

    def __call__(self, x):
        batch, num_tokens, width = x.shape
        qkv = self.qkv(self.norm1(x))
        qkv = qkv.reshape(batch, num_tokens, 3, self.num_heads, -1)
        query, key, value = (qkv[:, :, i] for i in range(3))
        attended = jax.nn.dot_product_attention(
            query, key, value, is_causal=self.causal
        )
        attended = self.out(attended.reshape(batch, num_tokens, width))
        x = x + maybe(self.dropout1, attended)
        activate = activation_function(self.activation)
        y = maybe(self.dropout2, activate(self.linear1(self.norm2(x))))
        return x + maybe(self.dropout3, self.linear2(y))


def cut_patches(x: jax.Array, patch_size: Sequence[int]) -> jax.Array:
    """Patches in rows, `[batch, patch, patch height * patch width * channel]`."""
    tall, wide = patch_size
    return einops.rearrange(
        x,
        "batch (row tall) (column wide) channel"
        " -> batch (row column) (tall wide channel)",
        tall=tall,
        wide=wide,
    )
