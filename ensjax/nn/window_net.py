"""A transformer over patches of a latitude-longitude grid, which looks in windows."""

from collections.abc import Sequence

import einops
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ensjax.nn.layers import normal_002

_zeros = nnx.initializers.zeros_init()
_FAR = -1e9  # added to the logit of a pair that may not look at each other


class WindowBlock(nnx.Module):
    """Pre-norm attention within windows of a grid of tokens, and an MLP.

    Args:
        width: channels of a token.
        num_heads: attention heads.
        window: `(rows, columns)` of tokens.
        mlp_width: hidden channels.
        dtype: of the arithmetic; the softmax is computed in float32.
        rngs: stream `params`.

    Source: Liu et al. 2021, arXiv:2103.14030, section 3.2 (windows that every second
    block shifts by half of their size).
    """

    def __init__(self, width, num_heads, window, mlp_width, *, dtype, rngs):
        options = dict(dtype=dtype, rngs=rngs)
        self.window, self.num_heads = tuple(window), num_heads
        self.norm1 = nnx.LayerNorm(width, **options)
        self.query = nnx.Linear(width, width, **options)
        self.key_value = nnx.Linear(width, 2 * width, **options)
        self.out = nnx.Linear(width, width, **options)
        self.norm2 = nnx.LayerNorm(width, **options)
        self.up = nnx.Linear(width, mlp_width, **options)
        self.down = nnx.Linear(mlp_width, width, **options)

    def __call__(self, x: jax.Array, is_shifted: jax.Array) -> jax.Array:
        """Tokens `[row, column, width]`; the columns are a ring.

        Args:
            x: tokens.
            is_shifted: whether windows are moved by half of their size, a boolean that
                may be traced.
        """
        shape = x.shape[:2]
        shift = [jnp.where(is_shifted, size // 2, 0) for size in self.window]
        moved = jnp.roll(self.norm1(x), [-s for s in shift], axis=(0, 1))
        found = self._attended(self._windows(moved), self._bias(shape, shift[0]))
        found = jnp.roll(self._from_windows(found, shape), shift, axis=(0, 1))
        x = x + self.out(found)
        return x + self.down(nnx.gelu(self.up(self.norm2(x))))

    def _bias(self, shape, shift):
        """`[window, 1, 1, token, token]`: rows that the shift has put beside each other
        across the poles do not look at each other."""
        rows, columns = shape
        place = (jnp.arange(rows) + shift) // rows
        place = jnp.broadcast_to(place[:, None, None], (rows, columns, 1))
        place = self._windows(place)[..., 0]  # [window, token]
        differs = place[:, :, None] != place[:, None, :]
        return jnp.where(differs, _FAR, 0.0)[:, None]

    def _attended(self, tokens, bias):
        """Tokens `[window, token, width]`, bias `[window, 1, token, token]`."""
        heads = (*tokens.shape[:2], self.num_heads, -1)
        key, value = jnp.split(self.key_value(tokens), 2, axis=-1)
        query = self.query(tokens)
        found = jax.nn.dot_product_attention(
            *(part.reshape(heads) for part in (query, key, value)),
            bias=bias.astype(query.dtype),
        )
        return found.reshape(tokens.shape)

    def _windows(self, x):
        tall, wide = self.window
        return einops.rearrange(
            x,
            "(row tall) (column wide) width -> (row column) (tall wide) width",
            tall=tall,
            wide=wide,
        )

    def _from_windows(self, x, shape):
        tall, wide = self.window
        return einops.rearrange(
            x,
            "(row column) (tall wide) width -> (row tall) (column wide) width",
            row=shape[0] // tall,
            tall=tall,
            wide=wide,
        )


class WindowTransformer(nnx.Module):
    """Patches, blocks that look around in windows, and patches back to the grid.

    It is a function of one sample; a batch is made of it by `jax.vmap`. The blocks are
    one stack that a loop goes through, so that the time to compile does not grow with
    the depth. The last layer starts from zeros.

    Args:
        num_in, num_out: channels of the grid.
        space: the grid, `(latitude, longitude)`; longitudes are a ring.
        patch_size: `(rows, columns)` of a patch, which tile the grid.
        window: `(rows, columns)` of patches, which tile these.
        width: channels of a token.
        depth: number of blocks, an even one: every second looks in shifted windows.
        num_heads: attention heads.
        mlp_width: hidden channels; `None` for 4 `width`.
        dtype: of the arithmetic; parameters and outputs are float32.
        remat: whether a block is computed again for the gradient.
        rngs: stream `params`.

    Raises:
        ValueError: for sizes that do not divide.

    Source: the network of Zhong et al. 2024, arXiv:2405.05925, in its sizes; with plain
    attention and an embedding of each place for the scaled cosines and the bias by
    distance of its blocks.

    Example::

        network = WindowTransformer(156, 312, space=(720, 1440), patch_size=(8, 8),
            window=(18, 18), width=1536, depth=14, num_heads=16, rngs=rngs)
        network(x)  # [720, 1440, 156] -> [720, 1440, 312]
    """

    def __init__(
        self,
        num_in: int,
        num_out: int,
        *,
        space: Sequence[int],
        patch_size: Sequence[int] = (8, 8),
        window: Sequence[int] = (18, 18),
        width: int = 64,
        depth: int = 2,
        num_heads: int = 4,
        mlp_width: int | None = None,
        dtype=None,
        remat: bool = False,
        rngs: nnx.Rngs,
    ):
        sizes = (tuple(space), tuple(patch_size), tuple(window))
        if any(len(size) != 2 for size in sizes) or any(
            n % (p * w) for n, p, w in zip(*sizes, strict=True)
        ):
            raise ValueError(
                "windows of patches must tile the grid; got space"
                f" {sizes[0]}, patches {sizes[1]} and windows of {sizes[2]} of them."
            )
        if width % num_heads or depth < 2 or depth % 2:
            raise ValueError(
                "heads must divide the width, and depth be even and at least 2; got"
                f" width {width}, {num_heads} heads, depth {depth}."
            )
        self.space, self.patch_size, _ = sizes
        self.num_in, self.num_out, self.depth = num_in, num_out, depth
        self.remat = remat
        size = int(np.prod(self.patch_size))
        tokens = tuple(n // p for n, p in zip(self.space, self.patch_size))
        options = dict(dtype=dtype, rngs=rngs)
        self.embed = nnx.Linear(size * num_in, width, **options)
        self.places = nnx.Param(normal_002(rngs.params(), (*tokens, width)))

        def block(key):
            return WindowBlock(
                width,
                num_heads,
                sizes[2],
                4 * width if mlp_width is None else mlp_width,
                dtype=dtype,
                rngs=nnx.Rngs(params=key),
            )

        self.blocks = nnx.vmap(block)(jax.random.split(rngs.params(), depth))
        self.norm = nnx.LayerNorm(width, **options)
        self.head = nnx.Linear(width, size * num_out, kernel_init=_zeros, **options)

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[*space, num_out]` of `[*space, num_in]`, float32.

        Raises:
            ValueError: for another shape.
        """
        if x.shape != (*self.space, self.num_in):
            raise ValueError(
                f"inputs must be {(*self.space, self.num_in)}; got {x.shape}."
            )
        tall, wide = self.patch_size
        tokens = einops.rearrange(
            x, "(r tall) (c wide) d -> r c (tall wide d)", tall=tall, wide=wide
        )
        tokens = self.embed(tokens)
        tokens = tokens + self.places[...].astype(tokens.dtype)
        graph, stacked = nnx.split(self.blocks)

        def step(tokens, row):
            state, is_shifted = row
            return nnx.merge(graph, state)(tokens, is_shifted), None

        step = jax.checkpoint(step, prevent_cse=False) if self.remat else step
        rows = (stacked, jnp.arange(self.depth) % 2 == 1)
        tokens, _ = jax.lax.scan(step, tokens, rows)
        found = self.head(self.norm(tokens))
        found = einops.rearrange(
            found, "r c (tall wide d) -> (r tall) (c wide) d", tall=tall, wide=wide
        )
        return found.astype(jnp.float32)
