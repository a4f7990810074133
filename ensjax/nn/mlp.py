"""Multilayer perceptron."""

from collections.abc import Callable, Sequence

import jax
from flax import nnx

from ensjax.nn.layers import (
    Head,
    dropout_layer,
    he_normal,
    maybe,
    norm_layer,
    run_block,
)


class MLP(nnx.Module):
    """Dense layers with an activation after each but the last.

    Args:
        in_features: number of inputs; the trailing axes of an example are flattened.
        hidden: width of each hidden layer.
        num_outputs: number of logits (or regression outputs).
        activation: a function that is defined once, such as `nnx.relu`; a lambda made
            per model would make equal graphs unequal.
        norm: `None`, "batch", "group" or "layer", before the activation; a layer
            before a norm has no bias.
        dropout: rate after each activation; draws from the stream `dropout`.
        dtype: of the hidden layers' arithmetic; parameters are float32.
        remat: whether hidden layers are computed again for the gradient.
        rngs: streams `params` and, with dropout, `dropout`.

    Raises:
        ValueError: if a width is below 1.

    Example::

        model = MLP(in_features=64, hidden=(64, 64), num_outputs=10, rngs=nnx.Rngs(0))
        logits = model(x)  # x [batch, ...] with 64 entries; logits [batch, 10]
    """

    def __init__(
        self,
        *,
        in_features: int,
        hidden: Sequence[int] = (64, 64),
        num_outputs: int = 10,
        activation: Callable[[jax.Array], jax.Array] = nnx.relu,
        norm: str | None = None,
        dropout: float = 0.0,
        dtype=None,
        remat: bool = False,
        rngs: nnx.Rngs,
    ):
        if min((in_features, *hidden, num_outputs)) < 1:
            raise ValueError(
                "in_features, hidden and num_outputs are widths of at least 1; got"
                f" {in_features}, {tuple(hidden)} and {num_outputs}."
            )
        self.in_features = in_features
        self.remat = remat
        widths = (in_features, *hidden)
        self.blocks = nnx.List(
            DenseBlock(
                num_in,
                num_out,
                activation=activation,
                norm=norm,
                dropout=dropout,
                dtype=dtype,
                rngs=rngs,
            )
            for num_in, num_out in zip(widths[:-1], widths[1:])
        )
        self.head = Head(widths[-1], num_outputs, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits `[batch, output]`, float32.

        Raises:
            ValueError: if an example does not have `in_features` entries.
        """
        if x.ndim < 2 or x[0].size != self.in_features:
            raise ValueError(
                f"examples must have {self.in_features} entries behind a batch axis;"
                f" got shape {x.shape}. A single example becomes a batch with x[None]."
            )
        x = x.reshape(x.shape[0], -1)
        for block in self.blocks:
            x = run_block(block, x, remat=self.remat)
        return self.head(x)


class DenseBlock(nnx.Module):
    """Linear, norm, activation, dropout."""

    def __init__(self, num_in, num_out, *, activation, norm, dropout, dtype, rngs):
        self.linear = nnx.Linear(
            num_in,
            num_out,
            use_bias=norm is None,
            dtype=dtype,
            kernel_init=he_normal,
            rngs=rngs,
        )
        self.norm = norm_layer(norm, num_out, dtype=dtype, rngs=rngs)
        self.dropout = dropout_layer(dropout, rngs=rngs)
        self.activation = activation

    def __call__(self, x):
        return maybe(self.dropout, self.activation(maybe(self.norm, self.linear(x))))
