"""Llama: a causal decoder of tokens."""

import jax
import jax.numpy as jnp
from flax import nnx

from ensjax.nn.attention import Attention, check_tokens
from ensjax.nn.layers import Head, normal_002, run_block, tied_logits
from ensjax.nn.rotary import Scaling, rotary_angles

HEADS = ("words", "hidden")


class Llama(nnx.Module):
    """Pre-norm transformer that every token reads backwards, for the next word.

    RMS norms, rotary positions, heads that may share keys and values, and gated MLPs;
    no biases unless asked for.

    Args:
        vocabulary: number of words (token ids).
        width: channels of a token.
        depth: number of blocks.
        num_heads: attention heads.
        num_kv_heads: heads of keys and values; `None` for `num_heads`.
        head_width: channels of a head, even; `None` for width / num_heads.
        mlp_width: hidden channels of each block's MLP; `None` for 8/3 `width`.
        norm_epsilon: added to the mean square in each norm.
        rope_theta: base of the rotary wavelengths.
        rope_scaling: `LinearScaling` or `Llama3Scaling` of the rotary frequencies.
        qkv_bias, out_bias, mlp_bias: whether these layers have a bias.
        head: what is returned: "words", logits of the next word at each position, or
            "hidden", the tokens after the last norm.
        tied: whether the logits are read off the embedding of the words, which is then
            one leaf with two uses; else they have weights of their own.
        dtype: of the arithmetic below the head; parameters and logits are float32.
        remat: whether blocks are computed again for the gradient.
        rngs: stream `params`.

    Raises:
        ValueError: if heads do not divide, their width is odd, or `head` is unknown.

    Source: Touvron et al. 2023, arXiv:2302.13971, section 2.2; its norm is Zhang and
    Sennrich 2019, arXiv:1910.07467, equation 4, its MLP the SwiGLU of Shazeer 2020,
    arXiv:2002.05202, equation 6.

    Example::

        model = Llama(vocabulary=1000, rngs=nnx.Rngs(params=0))
        logits = model(tokens)  # [batch, token] -> [batch, token, 1000]
    """

    def __init__(
        self,
        *,
        vocabulary: int,
        width: int = 64,
        depth: int = 4,
        num_heads: int = 4,
        num_kv_heads: int | None = None,
        head_width: int | None = None,
        mlp_width: int | None = None,
        norm_epsilon: float = 1e-6,
        rope_theta: float = 10_000.0,
        rope_scaling: Scaling | None = None,
        qkv_bias: bool = False,
        out_bias: bool = False,
        mlp_bias: bool = False,
        head: str = "words",
        tied: bool = False,
        dtype=None,
        remat: bool = False,
        rngs: nnx.Rngs,
    ):
        if head not in HEADS:
            raise ValueError(f"head is one of {', '.join(HEADS)}; got {head!r}.")
        self.rope_theta, self.rope_scaling = rope_theta, rope_scaling
        self.remat, self.dtype, self.has_logits = remat, dtype, head == "words"
        options = dict(dtype=dtype, rngs=rngs)
        self.words = nnx.Embed(vocabulary, width, embedding_init=normal_002, **options)
        self.blocks = nnx.List(
            DecoderBlock(
                width,
                Attention(
                    width,
                    num_heads,
                    num_kv_heads=num_kv_heads,
                    head_width=head_width,
                    causal=True,
                    qkv_bias=qkv_bias,
                    out_bias=out_bias,
                    **options,
                ),
                8 * width // 3 if mlp_width is None else mlp_width,
                mlp_bias=mlp_bias,
                norm_epsilon=norm_epsilon,
                **options,
            )
            for _ in range(depth)
        )
        self.norm = nnx.RMSNorm(width, epsilon=norm_epsilon, **options)
        self.head_width = width // num_heads if head_width is None else head_width
        rotary_angles(1, self.head_width)  # raises for a width that cannot be turned
        has_own = self.has_logits and not tied
        self.head = (
            Head(width, vocabulary, use_bias=False, **options) if has_own else None
        )

    def __call__(self, tokens: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """Logits of the next word, `[batch, token, word]`, float32; or hidden tokens.

        Args:
            tokens: ids, integers `[batch, token]`; one that is not below `vocabulary`
                makes the outputs NaN. Or a tuple of both arguments, as `fit` and
                `predict` hand them over.
            mask: `[batch, token]`, True or 1 for tokens, False or 0 for padding on
                either side, which may hold any id; what is said at padding means
                nothing. Positions count from the first column, padding or not; only
                their differences matter.

        Raises:
            TypeError: if the tokens are no integers.
            ValueError: if a shape is wrong.
        """
        if isinstance(tokens, (tuple, list)):
            tokens, mask = (*tokens, None)[:2]
        x = self.hidden(tokens, mask)
        if not self.has_logits:
            return x
        return tied_logits(x, self.words) if self.head is None else self.head(x)

    def hidden(self, tokens: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """Tokens after the last norm, `[batch, token, width]`; see `__call__`."""
        check_tokens(tokens, mask)
        if mask is not None:
            # Padding may hold anything; an id that is no word would spread its NaN.
            tokens = jnp.where(mask.astype(bool), tokens, 0)
        angles = rotary_angles(
            tokens.shape[1],
            self.head_width,
            theta=self.rope_theta,
            scaling=self.rope_scaling,
        )
        x = self.words(tokens)
        for block in self.blocks:
            x = run_block(block, x, mask, angles, remat=self.remat)
        return self.norm(x)


class DecoderBlock(nnx.Module):
    """x + attention(norm(x)), then x + down(silu(gate(norm(x))) * up(norm(x)))."""

    def __init__(
        self, width, attention, mlp_width, *, mlp_bias, norm_epsilon, dtype, rngs
    ):
        options = dict(dtype=dtype, rngs=rngs)
        self.norm1 = nnx.RMSNorm(width, epsilon=norm_epsilon, **options)
        self.attention = attention
        self.norm2 = nnx.RMSNorm(width, epsilon=norm_epsilon, **options)
        linear = dict(use_bias=mlp_bias, kernel_init=normal_002, **options)
        self.gate = nnx.Linear(width, mlp_width, **linear)
        self.up = nnx.Linear(width, mlp_width, **linear)
        self.down = nnx.Linear(mlp_width, width, **linear)

    def __call__(self, x, mask, angles):
        x = x + self.attention(self.norm1(x), mask, angles)
        y = self.norm2(x)
        return x + self.down(jax.nn.silu(self.gate(y)) * self.up(y))
