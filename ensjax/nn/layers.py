"""Layers that the architectures share: convolution, norm, dropout, remat, head."""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from ensjax.ops import Conv

NORMS = (None, "batch", "group", "layer")
MAX_GROUPS = 8

# One object each: initialisers made per layer would make equal graphs unequal.
he_normal = nnx.initializers.he_normal()
normal_002 = nnx.initializers.normal(0.02)


def conv(
    num_in: int,
    num_out: int,
    kernel_size: Sequence[int] = (3, 3),
    *,
    strides: int = 1,
    use_bias: bool,
    dtype,
    conv_form: str,
    rngs: nnx.Rngs,
) -> nnx.Conv:
    """A "SAME" convolution in the form named, initialised for a ReLU after it.

    Source: He et al. 2015, arXiv:1502.01852, equation 10 (variance 2 / fan-in), drawn
    from a normal truncated at two standard deviations.
    """
    return nnx.Conv(
        num_in,
        num_out,
        tuple(kernel_size),
        strides=strides,
        use_bias=use_bias,
        dtype=dtype,
        kernel_init=he_normal,
        conv_general_dilated=Conv(conv_form),
        rngs=rngs,
    )


def norm_layer(norm: str | None, num_features: int, *, dtype, rngs: nnx.Rngs):
    """The norm named, over the last axis; `None` for `None`.

    "batch" keeps running statistics with momentum 0.9; its `axis_name` is `None`, to
    be set while it trains on a batch that is split. "group" has the largest common
    divisor of `num_features` and `MAX_GROUPS` groups. "layer" normalises the channels
    of each position.

    Raises:
        ValueError: if the name is unknown.
    """
    if norm not in NORMS:
        raise ValueError(
            f"norm must be one of {', '.join(map(repr, NORMS))}; got {norm!r}."
        )
    if norm == "batch":
        return nnx.BatchNorm(num_features, momentum=0.9, dtype=dtype, rngs=rngs)
    if norm == "group":
        groups = math.gcd(num_features, MAX_GROUPS)
        return nnx.GroupNorm(num_features, num_groups=groups, dtype=dtype, rngs=rngs)
    if norm == "layer":
        return nnx.LayerNorm(num_features, dtype=dtype, rngs=rngs)
    return None


def dropout_layer(rate: float, *, rngs: nnx.Rngs) -> nnx.Dropout | None:
    """Dropout from the stream `dropout` of `rngs`; `None` for a rate of zero.

    Raises:
        ValueError: if the rate is not in [0, 1).
    """
    if not 0 <= rate < 1:
        raise ValueError(f"dropout must be at least 0 and below 1; got {rate}.")
    return nnx.Dropout(rate, rngs=rngs) if rate else None


def maybe(layer, x: jax.Array) -> jax.Array:
    """`layer(x)`, or `x` where the layer is `None`."""
    return x if layer is None else layer(x)


def run_block(block: nnx.Module, x: jax.Array, *others, remat: bool) -> jax.Array:
    """`block(x)`; with `remat` its activations are computed again for the gradient.

    `others` are further arrays or `None` that the block is called with.
    """
    return _rematerialised(block, x, *others) if remat else block(x, *others)


@nnx.remat
def _rematerialised(block, x, *others):
    return block(x, *others)


class Head(nnx.Module):
    """A linear layer to logits, computed and returned in float32 or wider."""

    def __init__(
        self,
        num_in: int,
        num_outputs: int,
        *,
        use_bias: bool = True,
        dtype,
        rngs: nnx.Rngs,
    ):
        wide = None if dtype is None else jnp.promote_types(dtype, jnp.float32)
        self.linear = nnx.Linear(
            num_in, num_outputs, use_bias=use_bias, dtype=wide, rngs=rngs
        )

    def __call__(self, x):
        # Also where the parameters are narrower, as those of published checkpoints are.
        return self.linear(x.astype(jnp.promote_types(x.dtype, jnp.float32)))


def tied_logits(x: jax.Array, words: nnx.Embed) -> jax.Array:
    """Logits of words as the products with their embeddings, in float32 or wider.

    Args:
        x: `[batch, token, width]`.
        words: the embedding that the model reads its tokens with.

    Returns:
        `[batch, token, word]`.

    Source: Press and Wolf 2017, arXiv:1608.05859, section 3.
    """
    embedding = words.embedding[...]
    dtypes = (x.dtype, embedding.dtype, jnp.float32)
    wide = functools.reduce(jnp.promote_types, dtypes)
    return x.astype(wide) @ embedding.astype(wide).T


def check_images(x: jax.Array, channels: int) -> None:
    """Raises `ValueError` unless `x` is `[batch, height, width, channels]`."""
    if x.ndim != 4 or x.shape[-1] != channels:
        raise ValueError(
            f"images must be [batch, height, width, {channels}]; got shape {x.shape}."
            " A single image becomes a batch of one with x[None], a missing channel"
            " axis is added with x[..., None]."
        )
