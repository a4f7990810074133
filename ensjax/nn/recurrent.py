"""Recurrent networks over padded sequences: LSTM, GRU, in one or both directions."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from ensjax.nn.layers import Head, dropout_layer, he_normal, maybe

CELLS = {"gru": nnx.GRUCell, "lstm": nnx.OptimizedLSTMCell}
POOLS = ("last", "mean")
# Not orthogonal, which needs LAPACK's QR: on several CPU devices (jax 0.10.1) it waits
# for ever when a dozen members are initialised together.
_INITIALISERS = {
    "he_normal": he_normal,
    "lecun_normal": nnx.initializers.lecun_normal(),
}


class Recurrent(nnx.Module):
    """A recurrent layer over each sequence, and a linear head on what it says in all.

    What stands behind a sequence's true length is never looked at, also backwards: the
    reverse direction begins at each sequence's own last step. Every sequence is a row
    of its own, with a state that begins at zero.

    Args:
        in_features: numbers of each step; trailing axes of a step are flattened.
        hidden: width of the state of each direction.
        num_outputs: number of logits.
        cell: "lstm" or "gru".
        bidirectional: whether a second cell reads each sequence backwards.
        pool: what the head sees: "last", the state after the last true step of each
            direction, or "mean", the mean of the states over the true steps.
        recurrent_init: of the weights from state to state: "lecun_normal", of variance
            1 / hidden, or "he_normal", of twice that.
        dropout: rate before the head; draws from the stream `dropout`.
        dtype: of the cells' arithmetic; parameters are float32.
        rngs: streams `params` and, with dropout, `dropout`.

    Raises:
        ValueError: for an unknown cell, pool or initialiser.

    Example::

        model = Recurrent(in_features=3, hidden=24, num_outputs=2, rngs=nnx.Rngs(0))
        logits = model((x, lengths))  # x [batch, step, 3], lengths [batch]
    """

    def __init__(
        self,
        *,
        in_features: int,
        hidden: int = 32,
        num_outputs: int = 2,
        cell: str = "lstm",
        bidirectional: bool = False,
        pool: str = "last",
        recurrent_init: str = "lecun_normal",
        dropout: float = 0.0,
        dtype=None,
        rngs: nnx.Rngs,
    ):
        build: Callable[..., Any] = _choose("cell", cell, CELLS)
        if pool not in POOLS:
            raise ValueError(f"pool is one of {', '.join(POOLS)}; got {pool!r}.")
        self.in_features, self.hidden, self.pool = in_features, hidden, pool
        options = dict(
            recurrent_kernel_init=_choose(
                "recurrent_init", recurrent_init, _INITIALISERS
            ),
            dtype=dtype,
            rngs=rngs,
        )
        directions = 2 if bidirectional else 1
        self.cells = nnx.List(
            build(in_features, hidden, **options) for _ in range(directions)
        )
        self.dropout = dropout_layer(dropout, rngs=rngs)
        self.head = Head(directions * hidden, num_outputs, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array | tuple[jax.Array, jax.Array]) -> jax.Array:
        """Logits `[batch, output]`, float32.

        Args:
            x: sequences `[batch, step, ...]`, or a pair of them and of their true
                lengths, integers `[batch]` from 1 to the number of steps. A sequence of
                length 0 gives what the head says of a zero state.

        Raises:
            ValueError: if a step does not have `in_features` entries, or there is not
                one length for each sequence.
        """
        x, lengths = x if isinstance(x, (tuple, list)) else (x, None)
        if x.ndim < 3 or x[0, 0].size != self.in_features:
            raise ValueError(
                f"sequences must be [batch, step, ...] with {self.in_features} entries"
                f" a step; got shape {x.shape}."
            )
        batch, steps = x.shape[:2]
        x = x.reshape(batch, steps, -1)
        if lengths is None:
            lengths = jnp.full(batch, steps)
        elif lengths.shape != (batch,):
            raise ValueError(
                f"lengths must be [batch] = ({batch},), one for each sequence; got"
                f" shape {lengths.shape}."
            )
        # Padding may hold anything: zeros there keep gradients finite as well.
        is_step = jnp.arange(steps)[None] < lengths[:, None]  # [batch, step]
        x = jnp.where(is_step[..., None], x, 0.0)
        pooled = [
            self._run(cell, reverse(x, lengths) if backwards else x, is_step)
            for backwards, cell in enumerate(self.cells)
        ]
        return self.head(maybe(self.dropout, jnp.concatenate(pooled, axis=-1)))

    def _run(self, cell, x, is_step):
        """What the head sees of one direction, `[batch, hidden]`."""
        # Zeros of the type that the cell returns: inside shard_map plain zeros would
        # not vary over the devices as the state does, and a scan refuses that.
        zeros = jnp.zeros_like(cell.dense_i(x[:, 0])[:, : self.hidden])
        is_lstm = isinstance(cell, CELLS["lstm"])
        start = (zeros, zeros) if is_lstm else zeros

        def step(carry, inputs):
            state, total = carry
            x_t, counts = inputs
            new, output = cell(state, x_t)
            counts = counts[:, None]
            state = jax.tree.map(lambda a, b: jnp.where(counts, a, b), new, state)
            return (state, total + jnp.where(counts, output, 0.0)), None

        inputs = (jnp.swapaxes(x, 0, 1), is_step.T)
        (state, total), _ = jax.lax.scan(step, (start, zeros), inputs)
        if self.pool == "mean":
            count = jnp.maximum(jnp.sum(is_step, axis=1), 1)
            return total / count[:, None].astype(total.dtype)
        return state[1] if is_lstm else state


def reverse(x: jax.Array, lengths: jax.Array) -> jax.Array:
    """Sequences `[batch, step, ...]` backwards up to their lengths `[batch]`.

    Step t of a sequence of length n becomes step n - 1 - t; padding stays behind.
    """
    steps = jnp.arange(x.shape[1])[None]
    back = lengths[:, None] - 1 - steps
    index = jnp.where(back >= 0, back, steps)
    return jnp.take_along_axis(x, index.reshape(index.shape + (1,) * (x.ndim - 2)), 1)


def _choose(name, value, known):
    if value not in known:
        raise ValueError(f"{name} is one of {', '.join(known)}; got {value!r}.")
    return known[value]
