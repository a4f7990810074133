"""Vision transformer."""

from collections.abc import Sequence

import einops
import jax
import jax.numpy as jnp
from flax import nnx

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

    Patches are cut by a reshape and embedded by a linear layer. Queries, keys and
    values have no bias: that of the keys changes nothing, and its gradient is rounding.

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
        rngs: streams `params` and, with dropout, `dropout`.

    Raises:
        ValueError: if sizes do not divide or `pooling` is unknown.

    Source: Dosovitskiy et al. 2021, arXiv:2010.11929, equations 1 to 4.

    Example::

        model = ViT(image_shape=(32, 32, 3), rngs=nnx.Rngs(params=0))
        logits = model(images)  # [batch, 32, 32, 3] -> [batch, 10]
    """

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
        self.embed = nnx.Linear(
            tall_patch * wide_patch * channels, width, dtype=dtype, rngs=rngs
        )
        self.token = nnx.Param(jnp.zeros((1, width))) if has_token else None
        self.positions = nnx.Param(normal_002(rngs.params(), (num_tokens, width)))
        self.dropout = dropout_layer(dropout, rngs=rngs)
        self.blocks = nnx.List(
            TransformerBlock(
                width,
                num_heads,
                4 * width if mlp_width is None else mlp_width,
                dropout=dropout,
                dtype=dtype,
                rngs=rngs,
            )
            for _ in range(depth)
        )
        self.norm = nnx.LayerNorm(width, dtype=dtype, rngs=rngs)
        self.head = Head(width, num_outputs, dtype=dtype, rngs=rngs)

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
        for block in self.blocks:
            x = run_block(block, x, remat=self.remat)
        x = self.norm(x)
        if self.token is not None:
            return self.head(x[:, 0])
        wide = jnp.promote_types(x.dtype, jnp.float32)
        return self.head(jnp.mean(x, axis=1, dtype=wide))


class TransformerBlock(nnx.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, width, num_heads, mlp_width, *, dropout, dtype, rngs):
        self.num_heads = num_heads
        options = dict(dtype=dtype, rngs=rngs)
        self.norm1 = nnx.LayerNorm(width, **options)
        self.qkv = nnx.Linear(width, 3 * width, use_bias=False, **options)
        self.out = nnx.Linear(width, width, **options)
        self.norm2 = nnx.LayerNorm(width, **options)
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
        attended = jax.nn.dot_product_attention(query, key, value)
        attended = self.out(attended.reshape(batch, num_tokens, width))
        x = x + maybe(self.dropout1, attended)
        y = maybe(self.dropout2, nnx.gelu(self.linear1(self.norm2(x))))
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
