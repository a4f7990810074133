"""Networks for denoisers: an embedding of the noise level, and blocks that it steers.

They are functions of one sample, `network(x, noise, condition)`, on a closed grid:
`x` is `[*space, channel]`, `noise` a scalar that tells the level (what the
parametrisation makes of it), and the condition `[*space, condition channel]` or None.
A batch is made of it by `jax.vmap`.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from ensjax.nn.layers import maybe, norm_layer
from ensjax.nn.shifted_conv import ShiftedConv


class NoiseEmbedding(nnx.Module):
    """A vector that tells the level of the noise: Fourier features and two layers.

    Args:
        width: channels of the vector.
        num_frequencies: of the features sin(f noise) and cos(f noise); f runs
            geometrically from pi / 4 to 8 pi, since ln(sigma) / 4 moves by about 3.
        dtype: of the arithmetic.
        rngs: stream `params`.
    """

    def __init__(self, width: int, *, num_frequencies: int = 16, dtype=None, rngs):
        self.num_frequencies = num_frequencies
        options = dict(dtype=dtype, rngs=rngs)
        self.linear1 = nnx.Linear(2 * num_frequencies, width, **options)
        self.linear2 = nnx.Linear(width, width, **options)

    def __call__(self, noise: jax.Array) -> jax.Array:
        """`[width]` of a scalar."""
        features = fourier_features(noise, self.num_frequencies)
        return self.linear2(nnx.silu(self.linear1(features)))


def fourier_features(noise: jax.Array, num_frequencies: int) -> jax.Array:
    """Sines and cosines of a scalar, `[2 num_frequencies]`; see `NoiseEmbedding`."""
    frequencies = jnp.asarray(
        [
            math.pi / 4 * 32 ** (i / max(1, num_frequencies - 1))
            for i in range(num_frequencies)
        ],
        jnp.float32,
    )
    angles = jnp.asarray(noise, jnp.float32) * frequencies
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)])


class FilmBlock(nnx.Module):
    """shortcut(x) + conv(act(a * conv(act(norm(x))) + b)), a and b by the embedding.

    The embedding is `[width]`, the same everywhere, or `[*space, width]`.

    Source: Perez et al. 2018, arXiv:1709.07871, equation 2 (FiLM).
    """

    def __init__(
        self,
        num_in: int,
        num_out: int,
        embedding_width: int,
        *,
        kernel_size: Sequence[int],
        padding: str,
        norm: str | None,
        dtype,
        rngs: nnx.Rngs,
    ):
        options = dict(padding=padding, dtype=dtype, rngs=rngs)
        self.norm = norm_layer(norm, num_in, dtype=dtype, rngs=rngs)
        self.conv1 = ShiftedConv(num_in, num_out, kernel_size, **options)
        self.film = nnx.Linear(embedding_width, 2 * num_out, dtype=dtype, rngs=rngs)
        self.conv2 = ShiftedConv(num_out, num_out, kernel_size, **options)
        self.shortcut = (
            None
            if num_in == num_out
            else nnx.Linear(num_in, num_out, dtype=dtype, rngs=rngs)
        )

    def __call__(self, x, embedding):
        y = self.conv1(nnx.gelu(_normed(self.norm, x)))
        scale, shift = jnp.split(self.film(nnx.silu(embedding)), 2, axis=-1)
        y = _along_channels(1 + scale, y) * y + _along_channels(shift, y)
        return maybe(self.shortcut, x) + self.conv2(nnx.gelu(y))


class ResidualDenoiser(nnx.Module):
    """A convolution, residual blocks steered by the noise level, a convolution.

    Args:
        num_channels: of a sample.
        num_condition_channels: of the condition; 0 without one.
        width: channels inside.
        depth: number of blocks.
        kernel_size: taps, one number for each axis of the grid.
        padding: "circular", "lat_lon" or "cubed_sphere".
        embedding_width: of the noise level; `None` for 2 `width`.
        norm: `None`, "group" or "layer" before each block's convolutions.
        dtype: of the arithmetic; parameters and outputs are float32.
        rngs: stream `params`.

    Raises:
        ValueError: for sizes or names that do not fit.

    Example::

        network = ResidualDenoiser(1, num_condition_channels=3, rngs=nnx.Rngs(params=0))
        network(x, noise, condition)  # [40, 1], [], [40, 3] -> [40, 1]
    """

    def __init__(
        self,
        num_channels: int,
        *,
        num_condition_channels: int = 0,
        width: int = 32,
        depth: int = 3,
        kernel_size: Sequence[int] = (5,),
        padding: str = "circular",
        embedding_width: int | None = None,
        norm: str | None = None,
        dtype=None,
        rngs: nnx.Rngs,
    ):
        embedding_width = 2 * width if embedding_width is None else embedding_width
        grid = dict(kernel_size=kernel_size, padding=padding, dtype=dtype, rngs=rngs)
        self.embedding = NoiseEmbedding(embedding_width, dtype=dtype, rngs=rngs)
        self.num_condition_channels = num_condition_channels
        self.stem = ShiftedConv(num_channels + num_condition_channels, width, **grid)
        self.blocks = nnx.List(
            FilmBlock(width, width, embedding_width, norm=norm, **grid)
            for _ in range(depth)
        )
        self.head = ShiftedConv(width, num_channels, zero_init=True, **grid)

    def __call__(
        self, x: jax.Array, noise: jax.Array, condition: jax.Array | None = None
    ) -> jax.Array:
        """`[*space, channel]` of a sample, its noise level and its condition."""
        embedding = self.embedding(noise)
        h = self.stem(with_condition(x, condition, self.num_condition_channels))
        for block in self.blocks:
            h = block(h, embedding)
        return self.head(nnx.gelu(h)).astype(jnp.float32)


class UNetDenoiser(nnx.Module):
    """Residual blocks on ever coarser grids and back, with connections across.

    A coarser grid has the means of two neighbours along every axis, a finer one their
    copies.

    Args:
        num_channels: of a sample.
        num_condition_channels: of the condition; 0 without one.
        widths: channels of each grid, the finest first.
        depth: blocks on each grid, on the way down and on the way back.
        kernel_size: taps, one number for each axis of the grid.
        padding: "circular", "lat_lon" or "cubed_sphere".
        embedding_width: of the noise level; `None` for twice the first width.
        norm: `None`, "group" or "layer".
        dtype: of the arithmetic; parameters and outputs are float32.
        rngs: stream `params`.

    Raises:
        ValueError: for sizes or names that do not fit; on the call, for a grid that
            cannot be halved as often.

    Source: Ronneberger et al. 2015, arXiv:1505.04597; steered by the noise level as in
    Ho et al. 2020, arXiv:2006.11239, appendix B, without attention.
    """

    def __init__(
        self,
        num_channels: int,
        *,
        num_condition_channels: int = 0,
        widths: Sequence[int] = (32, 64, 128),
        depth: int = 2,
        kernel_size: Sequence[int] = (3, 3),
        padding: str = "circular",
        embedding_width: int | None = None,
        norm: str | None = "group",
        dtype=None,
        rngs: nnx.Rngs,
    ):
        widths = tuple(widths)
        if not widths or depth < 1:
            raise ValueError(
                "there is at least one grid and one block on it; got widths ="
                f" {widths}, depth = {depth}."
            )
        embedding_width = 2 * widths[0] if embedding_width is None else embedding_width
        grid = dict(kernel_size=kernel_size, padding=padding, dtype=dtype, rngs=rngs)

        def blocks(num_in, width):
            sizes = [num_in] + [width] * (depth - 1)
            return nnx.List(
                FilmBlock(size, width, embedding_width, norm=norm, **grid)
                for size in sizes
            )

        self.num_axes = len(tuple(kernel_size))
        self.num_condition_channels = num_condition_channels
        self.embedding = NoiseEmbedding(embedding_width, dtype=dtype, rngs=rngs)
        self.stem = ShiftedConv(
            num_channels + num_condition_channels, widths[0], **grid
        )
        self.down = nnx.List(
            blocks(num_in, width)
            for num_in, width in zip((widths[0], *widths[:-1]), widths, strict=True)
        )
        self.up = nnx.List(
            blocks(below + width, width)
            for below, width in zip(widths[:0:-1], widths[-2::-1], strict=True)
        )
        self.norm = norm_layer(norm, widths[0], dtype=dtype, rngs=rngs)
        self.head = ShiftedConv(widths[0], num_channels, zero_init=True, **grid)

    def __call__(
        self, x: jax.Array, noise: jax.Array, condition: jax.Array | None = None
    ) -> jax.Array:
        """`[*space, channel]` of a sample, its noise level and its condition."""
        axes = range(x.ndim - 1 - self.num_axes, x.ndim - 1)
        halvings = len(self.down) - 1
        if any(x.shape[axis] % 2**halvings for axis in axes):
            raise ValueError(
                f"each axis of the grid must be halved {halvings} times; got shape"
                f" {x.shape}."
            )
        embedding = self.embedding(noise)
        h = self.stem(with_condition(x, condition, self.num_condition_channels))
        across = []
        for number, blocks in enumerate(self.down):
            for block in blocks:
                h = block(h, embedding)
            if number < halvings:
                across.append(h)
                h = _halved(h, axes)
        for blocks in self.up:
            for axis in axes:
                h = jnp.repeat(h, 2, axis=axis)
            h = jnp.concatenate([h, across.pop()], axis=-1)
            for block in blocks:
                h = block(h, embedding)
        return self.head(nnx.gelu(_normed(self.norm, h))).astype(jnp.float32)


def with_condition(
    x: jax.Array, condition: jax.Array | None, num_channels: int
) -> jax.Array:
    """A sample and its condition side by side, `[*space, both channels]`.

    Raises:
        ValueError: if the condition is not `[*space, num_channels]`, or there is one
            where there should be none.
    """
    expected = (*x.shape[:-1], num_channels) if num_channels else None
    found = None if condition is None else condition.shape
    if found != expected:
        raise ValueError(
            f"the network was built for a condition of shape {expected} beside a sample"
            f" of shape {x.shape}; got {found}."
        )
    if condition is None:
        return x
    return jnp.concatenate([x, condition.astype(x.dtype)], axis=-1)


def _normed(norm, x):
    # Norms take the first axis for a batch, which one sample does not have.
    return x if norm is None else norm(x[None])[0]


def _along_channels(vector, x):
    return vector.reshape(*(1,) * (x.ndim - vector.ndim), *vector.shape)


def _halved(x, axes):
    for axis in axes:
        pairs = x.reshape(*x.shape[:axis], x.shape[axis] // 2, 2, *x.shape[axis + 1 :])
        x = pairs.mean(axis=axis + 1)
    return x
