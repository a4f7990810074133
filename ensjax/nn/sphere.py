"""Layers on the sphere: convolutions by spectrum and by neighbourhood, and their block.

They are functions of one sample `[..., lat, lon, channel]` on a `SphericalGrid`. With
`axis="model"` a sample's latitudes are split over that axis of the mesh, and a layer is
given, and gives, this device's rows; parameters are whole on every device.

Source: Bonev et al. 2023, arXiv:2306.03838 (spherical Fourier neural operators), and
2025, arXiv:2507.12144 (FourCastNet 3).
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from ensjax.ops.sphere import SphericalGrid
from ensjax.ops.sphere_filters import LocalFilters
from ensjax.ops.sphere_split import split_from_waves, split_to_waves

_normal = nnx.initializers.normal(1.0)


class SpectralConv(nnx.Module):
    """A convolution with zonal filters: one matrix for the waves of each degree.

        b_lm = W_l a_lm

    for complex coefficients a_lm of all channels. A real W_l commutes with every
    rotation of the sphere; the imaginary part only with those about the poles.

    Args:
        grid: of the input.
        num_in, num_out: channels.
        grid_out: of the output, whose degree is the largest kept; None: the same.
        is_complex: whether W has an imaginary part, as the published one has.
        use_bias: whether to add one.
        axis: of the mesh, over which latitudes are split, or None.
        dtype: of the product with W; transforms are float32.
        rngs: stream `params`.
    """

    def __init__(
        self,
        grid: SphericalGrid,
        num_in: int,
        num_out: int,
        *,
        grid_out: SphericalGrid | None = None,
        is_complex: bool = True,
        use_bias: bool = False,
        axis: str | None = None,
        dtype=None,
        rngs: nnx.Rngs,
    ):
        self.grid = grid
        self.grid_out = grid if grid_out is None else grid_out
        self.num_in, self.axis, self.dtype = num_in, axis, dtype
        parts = 2 if is_complex else 1
        shape = (self.num_degrees, parts, num_in, num_out)
        scale = (num_in * parts) ** -0.5
        self.kernel = nnx.Param(_normal(rngs.params(), shape) * scale)
        self.bias = nnx.Param(jnp.zeros(num_out)) if use_bias else None

    @property
    def num_degrees(self) -> int:
        """Degrees that have a matrix."""
        return _of_common_degree(self.grid, self.grid_out)[0].degree + 1

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[..., lat out, lon out, num_out]` of `[..., lat, lon, num_in]`.

        Raises:
            ValueError: if the shape does not fit.
        """
        _check_channels(x, self.num_in)
        grid, grid_out = _of_common_degree(self.grid, self.grid_out)
        waves = split_to_waves(jnp.moveaxis(x, -1, -3), grid, self.axis)
        waves = self._mixed(waves)
        field = jnp.moveaxis(split_from_waves(waves, grid_out, self.axis), -3, -1)
        return field if self.bias is None else field + _along(self.bias[...], field)

    def _mixed(self, waves):
        """The matrices times the waves `[..., in, part, l, m]`."""
        kernel = self.kernel[...]
        if self.dtype is not None:
            kernel, waves = kernel.astype(self.dtype), waves.astype(self.dtype)

        def product(part):
            return jnp.einsum(
                "lio,...iplm->...oplm", kernel[:, part], waves,
                precision="highest", preferred_element_type=jnp.float32,
            )  # fmt: skip

        real = product(0)
        if kernel.shape[1] == 1:
            return real
        # A wave is cosine - i sine: i times it is sine + i cosine.
        imaginary = product(1)
        turned = jnp.stack([imaginary[..., 1, :, :], -imaginary[..., 0, :, :]], axis=-3)
        return real + turned


class LocalSphereConv(nnx.Module):
    """A discrete-continuous convolution: weighted sums of filters around every place.

    Args:
        filters: the basis, and the grids.
        num_in, num_out: channels.
        use_bias: whether to add one.
        zero_init: start from zeros.
        axis: of the mesh, over which latitudes are split, or None.
        rngs: stream `params`.

    Source: Ocampo, Price and McEwen 2022, arXiv:2209.13603, section 4.
    """

    def __init__(
        self,
        filters: LocalFilters,
        num_in: int,
        num_out: int,
        *,
        use_bias: bool = True,
        zero_init: bool = False,
        axis: str | None = None,
        rngs: nnx.Rngs,
    ):
        self.filters, self.num_in, self.axis = filters, num_in, axis
        shape = (num_in, filters.num_filters, num_out)
        kernel = _normal(rngs.params(), shape) * (num_in * filters.num_filters) ** -0.5
        self.kernel = nnx.Param(jnp.zeros(shape) if zero_init else kernel)
        self.bias = nnx.Param(jnp.zeros(num_out)) if use_bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[..., lat out, lon out, num_out]` of `[..., lat, lon, num_in]`.

        Raises:
            ValueError: if the shape does not fit.
        """
        _check_channels(x, self.num_in)
        field = jnp.moveaxis(x, -1, -3)
        made = self.filters.apply(field, self.kernel[...], axis=self.axis)
        made = jnp.moveaxis(made, -3, -1)
        return made if self.bias is None else made + _along(self.bias[...], made)


class SphereBlock(nnx.Module):
    """x + scale * MLP(conv(x and what comes beside it)), without any norm.

    Args:
        conv: `SpectralConv` or `LocalSphereConv`, of all channels that come.
        width: channels of x.
        num_mixed: channels that `conv` gives.
        mlp_ratio: hidden channels of the pointwise MLP, in widths.
        layer_scale: where the scale of each channel starts.
        dtype: of the MLP.
        rngs: stream `params`.

    Source: Bonev et al. 2025, arXiv:2507.12144, and the code that belongs to it.
    """

    def __init__(
        self,
        conv: nnx.Module,
        width: int,
        num_mixed: int,
        *,
        mlp_ratio: float = 2.0,
        layer_scale: float = 0.1,
        dtype=None,
        rngs: nnx.Rngs,
    ):
        self.conv = conv
        hidden = round(mlp_ratio * width)
        self.linear1 = nnx.Linear(num_mixed, hidden, dtype=dtype, rngs=rngs)
        self.linear2 = nnx.Linear(hidden, width, dtype=dtype, rngs=rngs)
        self.scale = nnx.Param(jnp.full(width, layer_scale))

    def __call__(self, x: jax.Array, beside: jax.Array | None = None) -> jax.Array:
        """`[..., lat, lon, width]` of x and `[..., lat, lon, channel]` beside it."""
        both = x if beside is None else jnp.concatenate([x, beside], axis=-1)
        y = self.linear2(nnx.gelu(self.linear1(self.conv(both))))
        return x + _along(self.scale[...], y) * y


def resample(
    x: jax.Array,
    grid: SphericalGrid,
    grid_out: SphericalGrid,
    *,
    axis: str | None = None,
) -> jax.Array:
    """A field `[..., lat, lon, channel]` on another grid, by its spherical harmonics.

    Exact for what both grids can hold; degrees beyond the smaller one are lost.
    """
    if grid == grid_out:
        return x
    grid, grid_out = _of_common_degree(grid, grid_out)
    waves = split_to_waves(jnp.moveaxis(x, -1, -3), grid, axis)
    return jnp.moveaxis(split_from_waves(waves, grid_out, axis), -3, -1)


def _of_common_degree(*grids):
    """The grids, cut off at the largest degree that all of them have."""
    degree = min(grid.degree for grid in grids)
    return [dataclasses.replace(grid, truncation=degree) for grid in grids]


def _along(vector: jax.Array, x: jax.Array) -> jax.Array:
    return vector.reshape((1,) * (x.ndim - 1) + (-1,))


def _check_channels(x: jax.Array, channels: int) -> None:
    if x.ndim < 3 or x.shape[-1] != channels:
        raise ValueError(
            f"a sample must be [..., lat, lon, {channels}]; got shape {x.shape}."
        )


def repeated(kinds: Sequence[str], depth: int) -> tuple[str, ...]:
    """So many names, over and over: `("local", "global")` for 3 ends with "local"."""
    return tuple(kinds[i % len(kinds)] for i in range(depth))
