"""A transformer over sequence, fields and places, one axis at a time."""

import itertools
from collections.abc import Mapping, Sequence

import einops
import jax
import jax.numpy as jnp
from flax import nnx

from ensjax.nn.denoiser_net import fourier_features
from ensjax.nn.layers import normal_002
from ensjax.nn.vit import TransformerBlock

AXES = ("space", "field", "sequence")
_TYPES = ("seed", "climatology", "sample")


class AxialDenoiser(nnx.Module):
    """Axial attention over seeds, climatology and the noisy sample.

    Every field of every entry of the sequence (K seeds, the climatology, the sample,
    and one entry for the noise level) is cut into patches; a patch is a token. A block
    looks along one axis: places, fields or the sequence. Seeds have the same embedding,
    so that their order does not matter. The sample's tokens become its output.

    Args:
        num_fields: F.
        space: the grid, `(row, column)` or `(face, row, column)`.
        patch_size: `(rows, columns)` of a patch, within a face.
        levels: which vertical level each field lies on, integers; each level has an
            embedding beside that of the field. `None`: no such embedding.
        width: channels of a token.
        depths: blocks along space, fields and sequence; they take turns as long as
            there are any (their order is not published).
        num_heads: attention heads.
        mlp_width: hidden channels of a block; `None` for 4 `width`.
        num_frequencies: of the noise level.
        qkv_bias: whether queries, keys and values have a bias.
        dtype: of the arithmetic; parameters and outputs are float32.
        remat: whether blocks are computed again for the gradient.
        rngs: stream `params`.

    Raises:
        ValueError: if sizes do not divide.

    Source: Li et al. 2024, Science Advances 10(13), eadk4489 (SEEDS), as far as it is
    published: patches, width, depths, MLP, embeddings. The published configuration has
    113,765,520 parameters here; the paper counts 113,777,296, 11,776 more.

    Example::

        network = AxialDenoiser(8, space=(6, 48, 48), rngs=nnx.Rngs(params=0))
        condition = {"seeds": seeds, "climatology": mean}
        network(x, noise, condition)  # [6, 48, 48, 8] -> [6, 48, 48, 8]
    """

    def __init__(
        self,
        num_fields: int,
        *,
        space: Sequence[int],
        patch_size: Sequence[int] = (12, 12),
        levels: Sequence[int] | None = None,
        width: int = 768,
        depths: Sequence[int] = (6, 4, 6),
        num_heads: int = 12,
        mlp_width: int | None = None,
        num_frequencies: int = 32,
        qkv_bias: bool = True,
        dtype=None,
        remat: bool = False,
        rngs: nnx.Rngs,
    ):
        space, patch_size = tuple(space), tuple(patch_size)
        if len(space) not in (2, 3) or any(
            n % p for n, p in zip(space[-2:], patch_size, strict=True)
        ):
            raise ValueError(
                "space is (row, column) or (face, row, column), which patches must"
                f" tile; got {space} with patches {patch_size}."
            )
        if width % num_heads or len(depths) != 3:
            raise ValueError(
                f"heads must divide the width, and depths are three numbers; got width"
                f" {width}, {num_heads} heads, depths {tuple(depths)}."
            )
        if levels is not None and len(levels) != num_fields:
            raise ValueError(f"{num_fields} fields, but levels of {len(levels)}.")
        self.space, self.patch_size = space, patch_size
        self.num_fields, self.num_frequencies = num_fields, num_frequencies
        self.remat = remat
        faces = space[0] if len(space) == 3 else 1
        rows, columns = (n // p for n, p in zip(space[-2:], patch_size, strict=True))
        size = patch_size[0] * patch_size[1]
        options = dict(dtype=dtype, rngs=rngs)
        self.embed = nnx.Linear(size, width, **options)
        self.noise = nnx.Linear(2 * num_frequencies, width, **options)

        def table(rows):
            return nnx.Param(normal_002(rngs.params(), (rows, width)))

        self.places = table(faces * rows * columns)
        self.fields = table(num_fields)
        self.types = table(len(_TYPES))
        self.level_of_field = None if levels is None else tuple(levels)
        self.levels = None if levels is None else table(max(levels) + 1)
        turns = [
            [axis] * (number < depth)
            for number in range(max(depths))
            for axis, depth in zip(AXES, depths, strict=True)
        ]
        self.axes = tuple(itertools.chain.from_iterable(turns))
        self.blocks = nnx.List(
            TransformerBlock(
                width,
                num_heads,
                4 * width if mlp_width is None else mlp_width,
                qkv_bias=qkv_bias,
                **options,
            )
            for _ in self.axes
        )
        self.norm = nnx.LayerNorm(width, epsilon=1e-6, **options)
        self.head = nnx.Linear(width, size, kernel_init=_zeros, **options)

    def __call__(
        self,
        x: jax.Array,
        noise: jax.Array,
        condition: Mapping[str, jax.Array],
    ) -> jax.Array:
        """`[*space, field]` of one sample.

        Args:
            x: the scaled noisy sample, `[*space, field]`.
            noise: tells the noise level, `[]`.
            condition: "seeds" `[seed, *space, field]` and "climatology"
                `[*space, field]`.

        Raises:
            ValueError: if shapes do not fit; names what.
        """
        shape = (*self.space, self.num_fields)
        seeds, mean = condition["seeds"], condition["climatology"]
        for name, found in (("x", x.shape), ("climatology", mean.shape)):
            if found != shape:
                raise ValueError(f"{name} must be {shape}; got {found}.")
        if seeds.shape[1:] != shape:
            raise ValueError(f"seeds must be [seed, {shape}]; got {seeds.shape}.")
        entries = jnp.concatenate([seeds, mean[None], x[None]])
        types = [0] * seeds.shape[0] + [1, 2]
        tokens = self.embed(self._patches(entries))  # [sequence, field, place, width]
        kinds = self.types[...][jnp.asarray(types)][:, None, None]
        level = self.noise(fourier_features(noise, self.num_frequencies))
        level = jnp.broadcast_to(level, (1, *tokens.shape[1:]))
        tokens = jnp.concatenate([tokens + kinds.astype(tokens.dtype), level])
        where = self.places[...][None] + self._field_embeddings()[:, None]
        tokens = tokens + where[None].astype(tokens.dtype)
        for axis, block in zip(self.axes, self.blocks, strict=True):
            tokens = _along(axis, block, tokens, remat=self.remat)
        output = self.head(self.norm(tokens[-2])).astype(jnp.float32)
        return self._from_patches(output)

    def _field_embeddings(self):
        fields = self.fields[...]
        if self.levels is None:
            return fields
        return fields + self.levels[...][jnp.asarray(self.level_of_field)]

    def _patches(self, x):
        tall, wide = self.patch_size
        return einops.rearrange(
            x.reshape(x.shape[0], -1, *x.shape[-3:]),
            "entry face (row tall) (column wide) field"
            " -> entry field (face row column) (tall wide)",
            tall=tall,
            wide=wide,
        )

    def _from_patches(self, x):
        (tall, wide), (rows, columns) = self.patch_size, self.space[-2:]
        x = einops.rearrange(
            x,
            "field (face row column) (tall wide)"
            " -> face (row tall) (column wide) field",
            row=rows // tall,
            column=columns // wide,
            tall=tall,
            wide=wide,
        )
        return x.reshape(*self.space, self.num_fields)


_zeros = nnx.initializers.zeros_init()
_LAYOUTS = {
    "space": "sequence field space width -> (sequence field) space width",
    "field": "sequence field space width -> (sequence space) field width",
    "sequence": "sequence field space width -> (field space) sequence width",
}


def _along(axis, block, tokens, *, remat):
    sizes = dict(zip(("sequence", "field", "space"), tokens.shape[:3], strict=True))
    sizes.pop(axis)
    there = _LAYOUTS[axis]
    before, after = there.split(" -> ")
    rows = einops.rearrange(tokens, there)
    found = _rematerialised(block, rows) if remat else block(rows)
    return einops.rearrange(found, f"{after} -> {before}", **sizes)


def _rematerialised(block, x):
    # Not `nnx.remat`: it writes parameters back, which it cannot where a batch is made
    # of the network by `jax.vmap`, outside which they were built.
    graph, state = nnx.split(block)

    def call(state, x):
        return nnx.merge(graph, state)(x)

    return jax.checkpoint(call)(state, x)
