"""BERT: a bidirectional encoder of tokens."""

import jax
import jax.numpy as jnp
from flax import nnx

from ensjax.nn.activations import activation_function
from ensjax.nn.attention import Attention, check_tokens
from ensjax.nn.layers import (
    Head,
    dropout_layer,
    maybe,
    normal_002,
    run_block,
    tied_logits,
)

HEADS = ("classes", "words", "pooled", "hidden")


class BERT(nnx.Module):
    """Post-norm transformer that every token reads in both directions.

    Args:
        vocabulary: number of words (token ids).
        width: channels of a token.
        depth: number of blocks.
        num_heads: attention heads.
        mlp_width: hidden channels of each block's MLP; `None` for 4 `width`.
        max_tokens: longest sequence; each position has its own embedding.
        num_token_types: kinds of segments.
        activation: a name in `nn.activations.ACTIVATIONS`; "gelu" is the exact one.
        norm_epsilon: added to the variance in each layer norm.
        head: what is returned: "classes", logits from the pooled first token; "words",
            logits of the word at each position (masked language model), which are read
            off the embedding of the words: one leaf with two uses; "pooled", the first
            token after the pooler's tanh; "hidden", all tokens, without pooler.
        num_outputs: number of classes.
        dropout: rate after the embeddings, each attention and each MLP, and before the
            classes; draws from the stream `dropout`. Attention probabilities are never
            dropped, unlike in the paper.
        dtype: of the arithmetic below the head; parameters and logits are float32.
        remat: whether blocks are computed again for the gradient.
        rngs: streams `params` and, with dropout, `dropout`.

    Raises:
        ValueError: if the heads do not divide the width, or a name is unknown.

    Source: Devlin et al. 2019, arXiv:1810.04805, sections 3 and 3.1 (and appendix A.2);
    the word head is that of the published model code.

    Example::

        model = BERT(vocabulary=1000, num_outputs=2, rngs=nnx.Rngs(params=0))
        logits = model(tokens, mask)  # [batch, token] -> [batch, 2]
    """

    def __init__(
        self,
        *,
        vocabulary: int,
        width: int = 64,
        depth: int = 4,
        num_heads: int = 4,
        mlp_width: int | None = None,
        max_tokens: int = 512,
        num_token_types: int = 2,
        activation: str = "gelu",
        norm_epsilon: float = 1e-12,
        head: str = "classes",
        num_outputs: int = 2,
        dropout: float = 0.0,
        dtype=None,
        remat: bool = False,
        rngs: nnx.Rngs,
    ):
        if head not in HEADS:
            raise ValueError(f"head is one of {', '.join(HEADS)}; got {head!r}.")
        self.max_tokens, self.remat, self.dtype = max_tokens, remat, dtype
        embed = dict(embedding_init=normal_002, dtype=dtype, rngs=rngs)
        self.words = nnx.Embed(vocabulary, width, **embed)
        self.positions = nnx.Param(normal_002(rngs.params(), (max_tokens, width)))
        self.token_types = nnx.Embed(num_token_types, width, **embed)
        options = dict(dtype=dtype, rngs=rngs)
        self.norm = _norm(width, norm_epsilon, **options)
        self.dropout = dropout_layer(dropout, rngs=rngs)
        self.blocks = nnx.List(
            EncoderBlock(
                width,
                num_heads,
                4 * width if mlp_width is None else mlp_width,
                activation=activation,
                norm_epsilon=norm_epsilon,
                dropout=dropout,
                **options,
            )
            for _ in range(depth)
        )
        has_pooler = head in ("classes", "pooled")
        self.pooler = _linear(width, width, **options) if has_pooler else None
        is_classifier = head == "classes"
        self.head_dropout = dropout_layer(dropout if is_classifier else 0.0, rngs=rngs)
        if is_classifier:
            self.head = Head(width, num_outputs, **options)
        elif head == "words":
            self.head = WordHead(width, vocabulary, activation, norm_epsilon, **options)
        else:
            self.head = None

    def __call__(
        self,
        tokens: jax.Array,
        mask: jax.Array | None = None,
        token_types: jax.Array | None = None,
    ) -> jax.Array:
        """What the head gives, float32 where it is logits.

        Args:
            tokens: ids, integers `[batch, token]`; one that is not below `vocabulary`
                makes the outputs NaN. Or a tuple of all arguments, as `fit` and
                `predict` hand them over.
            mask: `[batch, token]`, True or 1 for tokens, False or 0 for padding, which
                may hold any id; what is said at padding means nothing.
            token_types: integers `[batch, token]`; `None` for 0.

        Returns:
            "classes": `[batch, class]`; "words": `[batch, token, word]`; "pooled":
            `[batch, width]`; "hidden": `[batch, token, width]`.

        Raises:
            TypeError: if the tokens are no integers.
            ValueError: if a shape is wrong or sequences exceed `max_tokens`.
        """
        if isinstance(tokens, (tuple, list)):
            tokens, mask, token_types = (*tokens, None, None)[:3]
        x = self.hidden(tokens, mask, token_types)
        if isinstance(self.head, WordHead):
            return self.head(x, self.words)
        if self.pooler is None:
            return x
        pooled = jnp.tanh(self.pooler(x[:, 0]))
        if self.head is None:
            return pooled
        return self.head(maybe(self.head_dropout, pooled))

    def hidden(
        self,
        tokens: jax.Array,
        mask: jax.Array | None = None,
        token_types: jax.Array | None = None,
    ) -> jax.Array:
        """All tokens after the last block, `[batch, token, width]`; see `__call__`."""
        check_tokens(tokens, mask, token_types=token_types)
        num_tokens = tokens.shape[1]
        if num_tokens > self.max_tokens:
            raise ValueError(
                f"sequences have {num_tokens} tokens, but the model was built for at"
                f" most {self.max_tokens} (max_tokens)."
            )
        if token_types is None:
            token_types = jnp.zeros_like(tokens)
        if mask is not None:
            # Padding may hold anything; an id that is no word would spread its NaN.
            tokens = jnp.where(mask.astype(bool), tokens, 0)
            token_types = jnp.where(mask.astype(bool), token_types, 0)
        x = self.words(tokens) + self.token_types(token_types)
        x = x + self.positions[...][:num_tokens].astype(x.dtype)[None]
        x = maybe(self.dropout, self.norm(x))
        for block in self.blocks:
            x = run_block(block, x, mask, remat=self.remat)
        return x


class EncoderBlock(nnx.Module):
    """norm(x + attention(x)), then norm(x + mlp(x))."""

    def __init__(
        self,
        width,
        num_heads,
        mlp_width,
        *,
        activation,
        norm_epsilon,
        dropout,
        dtype,
        rngs,
    ):
        self.activation = activation_function(activation)
        options = dict(dtype=dtype, rngs=rngs)
        self.attention = Attention(width, num_heads, **options)
        self.norm1 = _norm(width, norm_epsilon, **options)
        self.linear1 = _linear(width, mlp_width, **options)
        self.linear2 = _linear(mlp_width, width, **options)
        self.norm2 = _norm(width, norm_epsilon, **options)
        self.dropout1 = dropout_layer(dropout, rngs=rngs)
        self.dropout2 = dropout_layer(dropout, rngs=rngs)

    def __call__(self, x, mask):
        x = self.norm1(x + maybe(self.dropout1, self.attention(x, mask)))
        y = self.linear2(self.activation(self.linear1(x)))
        return self.norm2(x + maybe(self.dropout2, y))


class WordHead(nnx.Module):
    """Linear layer, activation, norm, then products with the words, and a bias."""

    def __init__(self, width, vocabulary, activation, norm_epsilon, *, dtype, rngs):
        self.activation = activation_function(activation)
        options = dict(dtype=dtype, rngs=rngs)
        self.linear = _linear(width, width, **options)
        self.norm = _norm(width, norm_epsilon, **options)
        self.bias = nnx.Param(jnp.zeros(vocabulary))

    def __call__(self, x, words):
        logits = tied_logits(self.norm(self.activation(self.linear(x))), words)
        return logits + self.bias[...].astype(logits.dtype)[None, None]


def _norm(width, epsilon, *, dtype, rngs):
    # The variance as a mean of squared deviations: trained encoders have a few large
    # channels, where the difference of two means loses digits.
    return nnx.LayerNorm(
        width, epsilon=epsilon, use_fast_variance=False, dtype=dtype, rngs=rngs
    )


def _linear(num_in, num_out, *, dtype, rngs):
    return nnx.Linear(num_in, num_out, dtype=dtype, kernel_init=normal_002, rngs=rngs)
