"""Self-attention over tokens, with masks, grouped keys and rotary positions."""

import jax
import jax.numpy as jnp
from flax import nnx

from ensjax.nn.layers import normal_002
from ensjax.nn.rotary import rotate


class Attention(nnx.Module):
    """Multi-head self-attention; several heads may share one key and value.

    Queries, keys and values have a layer each, as in published checkpoints: what is
    done tensor by tensor (trimming, signs, angles between members) means the same on
    the stack as on their files.

    Args:
        width: channels of a token.
        num_heads: heads of the queries.
        num_kv_heads: heads of keys and values; `None` for `num_heads`. Query head i
            looks at key head i // (num_heads / num_kv_heads).
        head_width: channels of a head; `None` for width / num_heads.
        causal: whether a token sees only itself and earlier ones.
        qkv_bias, out_bias: whether the layers have a bias.
        dtype: of the arithmetic; the softmax is computed in float32.
        rngs: stream `params`.

    Raises:
        ValueError: if the heads do not divide.

    Source: Vaswani et al. 2017, arXiv:1706.03762, equation 1; Ainslie et al. 2023,
    arXiv:2305.13245, section 2.2, for heads that share keys and values.
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        *,
        num_kv_heads: int | None = None,
        head_width: int | None = None,
        causal: bool = False,
        qkv_bias: bool = True,
        out_bias: bool = True,
        dtype=None,
        rngs: nnx.Rngs,
    ):
        num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        if min(num_heads, num_kv_heads) < 1 or num_heads % num_kv_heads:
            raise ValueError(
                "the heads of the queries must be a multiple of those of keys and"
                f" values; got {num_heads} and {num_kv_heads}."
            )
        if head_width is None and width % num_heads:
            raise ValueError(
                f"{num_heads} heads must divide the width, {width}; else give"
                " head_width."
            )
        head_width = width // num_heads if head_width is None else head_width
        self.head_width, self.causal = head_width, causal
        options = dict(dtype=dtype, kernel_init=normal_002, rngs=rngs)
        queries, keys = num_heads * head_width, num_kv_heads * head_width
        self.query = nnx.Linear(width, queries, use_bias=qkv_bias, **options)
        self.key = nnx.Linear(width, keys, use_bias=qkv_bias, **options)
        self.value = nnx.Linear(width, keys, use_bias=qkv_bias, **options)
        self.out = nnx.Linear(queries, width, use_bias=out_bias, **options)

    def __call__(
        self,
        x: jax.Array,
        mask: jax.Array | None = None,
        angles: jax.Array | None = None,
    ) -> jax.Array:
        """What every token gathers, `[batch, token, width]`.

        Args:
            x: `[batch, token, width]`.
            mask: `[batch, token]`, True for tokens that others may look at. A token
                that may look at none gets a mean over all, which is finite.
            angles: rotary angles of the tokens, `[token, head_width / 2]`, by which
                queries and keys are turned; see `rotary_angles`.
        """
        query, key, value = (
            layer(x).reshape(*x.shape[:2], -1, self.head_width)
            for layer in (self.query, self.key, self.value)
        )
        if angles is not None:
            query, key = rotate(query, angles), rotate(key, angles)
        keys_mask = None if mask is None else mask.astype(bool)[:, None, None, :]
        attended = jax.nn.dot_product_attention(
            query, key, value, mask=keys_mask, is_causal=self.causal
        )
        return self.out(attended.reshape(*x.shape[:2], -1))


def check_tokens(
    tokens: jax.Array, mask: jax.Array | None = None, **others: jax.Array | None
) -> None:
    """Raises unless `tokens` are integers `[batch, token]` and all else is as large.

    Raises:
        TypeError: if the tokens are no integers.
        ValueError: if a shape is wrong; names the argument.
    """
    if not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise TypeError(f"tokens must be integers; got {tokens.dtype}.")
    if tokens.ndim != 2:
        raise ValueError(
            f"tokens must be [batch, token]; got shape {tokens.shape}. A single"
            " sequence becomes a batch with tokens[None]."
        )
    for name, value in {"mask": mask, **others}.items():
        if value is not None and value.shape != tokens.shape:
            raise ValueError(
                f"{name} must have the shape of the tokens, {tokens.shape}; got"
                f" {value.shape}."
            )
