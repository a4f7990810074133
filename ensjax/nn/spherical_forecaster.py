"""A network on the sphere that makes the next state of one member.

`fourcastnet3` and `sfno` have published sizes, to be counted by shapes.
"""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ensjax.nn.activations import soft_clamp
from ensjax.nn.repeated_blocks import again_for_gradient
from ensjax.nn.sphere import LocalSphereConv, SpectralConv, SphereBlock, resample
from ensjax.ops.sphere import SphericalGrid
from ensjax.ops.sphere_filters import LocalFilters
from ensjax.ops.sphere_split import own_block, split_from_waves, split_to_waves

BLOCKS = ("local", "global")


class ChannelGroups(nnx.Module):
    """A layer for the variables of every level, the same for all, and one for the rest.

    Channels are the levels' variables, level by level, then the others.

    Args:
        of_level: layer of the variables of one level; None without levels.
        num_levels: how many there are.
        num_level_channels: variables of a level.
        of_rest: layer of the other channels; None if there are none.
    """

    def __init__(self, of_level, num_levels, num_level_channels, of_rest):
        self.of_level, self.num_levels = of_level, num_levels
        self.num_level_channels, self.of_rest = num_level_channels, of_rest

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[lat, lon, channel]` of `[lat, lon, channel]`, in groups of both."""
        first = self.num_levels * self.num_level_channels
        made = []
        if self.of_level is not None:
            levels = x[..., :first].reshape(*x.shape[:-1], self.num_levels, -1)
            found = jnp.moveaxis(self.of_level(jnp.moveaxis(levels, -2, 0)), 0, -2)
            made.append(found.reshape(*found.shape[:-2], -1))
        if self.of_rest is not None:
            made.append(self.of_rest(x[..., first:]))
        return jnp.concatenate(made, axis=-1)


class SphericalForecaster(nnx.Module):
    """`model(noise, state) -> next state` of one member, on a grid of the sphere.

    An encoder, blocks that are local or global (spectral), and a decoder; what the
    noise says is embedded once and comes beside the input of every block. Fields that
    are known beforehand (orography, the sun's height) come with the noise, as further
    channels of it.

    Args:
        grid: of states and noise.
        num_channels: of a state.
        num_noise_channels: of the noise, and of what else is known; 0 for none.
        width: channels inside.
        noise_width: channels of the noise's embedding; None for width // 2.
        blocks: "local" or "global", one word for each.
        inner_grid: of the blocks; None for `grid`. The decoder comes back to `grid` by
            spherical harmonics (the published one: bilinear interpolation).
        kernel_shape: waves of the local filters, see `LocalFilters`; the blocks' have
            twice their default radius if the inner grid is another, as published.
        mlp_ratio: of the blocks.
        layer_scale: where the blocks' scales start.
        knows_latitude: whether it is told the sine of latitude and its square, where
            nothing else that is known tells the hemispheres and the poles.
        adds_to_state: whether the network makes the change of the state instead of the
            state; its last layer then starts from zeros.
        reference: what the change is added to, such as a `HarmonicTruncation` for the
            state's large scales; None for the state itself.
        state_share: of the state, to which the change is added. Training on a few steps
            tells the network nothing of directions that states hardly have: there its
            layers, which grow in proportion for lack of a norm, are as likely to add to
            a small error as to take from it, and at a share of 1 it then grows for
            ever. Less, near the correlation of one step with the next, damps them.
        is_truncated: whether the next state is cut off at the grid's degree. States of
            a spectral simulator have nothing beyond it: training never sees what a
            network does to it, and in a long forecast it may grow without bounds.
        floors: of each channel the least value it may take, or None for one without;
            of water standardised by a mean and a deviation, -mean / deviation. Above
            it, the channel goes through `soft_clamp`. None: no channel has one.
        levels: number of levels, and variables of each, of the first channels, which
            share encoder and decoder; (0, 0) for none.
        level_widths: channels inside of each level and of the rest; `width` is then
            their sum.
        is_complex: of `SpectralConv`.
        axis: of the mesh, over which latitudes are split; states and noise are then
            this device's rows (`ops.sphere_split.own_block`). Any number of latitudes
            fits any number of devices. `train.SphericalCrps(latitude_axis=...)` trains
            it so.
        dtype: of products with weights; parameters and outputs are float32.
        remat: compute blocks again for the gradient; equal ones that follow each other
            are then one loop.
        rngs: stream `params`.

    Raises:
        ValueError: for words or sizes that do not fit.

    Source: Bonev et al. 2025, arXiv:2507.12144 (FourCastNet 3), section on the
    architecture, and its configuration.

    Example::

        grid = SphericalGrid(32, 64)
        model = SphericalForecaster(grid, 2, num_noise_channels=4, rngs=nnx.Rngs(0))
        model(noise, state)  # [32, 64, 4], [32, 64, 2] -> [32, 64, 2]
    """

    # Of the class: a network that was stored before there were these has none.
    reference: Callable[[jax.Array], jax.Array] | None = None
    state_share: float = 1.0
    is_truncated: bool = False
    floors: tuple[float | None, ...] | None = None

    def __init__(
        self,
        grid: SphericalGrid,
        num_channels: int,
        *,
        num_noise_channels: int = 0,
        width: int = 16,
        noise_width: int | None = None,
        blocks: Sequence[str] = ("local", "global", "local", "global"),
        inner_grid: SphericalGrid | None = None,
        kernel_shape: tuple[int, int] = (3, 3),
        mlp_ratio: float = 2.0,
        layer_scale: float = 0.1,
        knows_latitude: bool = False,
        adds_to_state: bool = False,
        reference: Callable[[jax.Array], jax.Array] | None = None,
        state_share: float = 1.0,
        is_truncated: bool = False,
        floors: Sequence[float | None] | None = None,
        levels: tuple[int, int] = (0, 0),
        level_widths: tuple[int, int] | None = None,
        is_complex: bool = True,
        axis: str | None = None,
        dtype=None,
        remat: bool = False,
        rngs: nnx.Rngs,
    ):
        unknown = set(blocks) - set(BLOCKS)
        if unknown or not blocks:
            raise ValueError(
                f"blocks must be words of {', '.join(BLOCKS)}, at least one; got"
                f" {tuple(blocks)}."
            )
        if reference is not None and not adds_to_state:
            raise ValueError(
                "reference is what a change is added to: it needs adds_to_state=True."
            )
        if floors is not None and len(floors) != num_channels:
            raise ValueError(
                f"floors has a number, or None, for each of {num_channels} channels;"
                f" got {len(floors)}."
            )
        if not 0 < state_share <= 1 or (state_share != 1 and not adds_to_state):
            raise ValueError(
                "state_share is above 0 and at most 1, and 1 unless adds_to_state; got"
                f" {state_share}."
            )
        self.is_truncated, self.state_share = is_truncated, state_share
        self.floors = None if floors is None else tuple(floors)
        inner = grid if inner_grid is None else inner_grid
        self.grid, self.inner_grid, self.axis, self.remat = grid, inner, axis, remat
        self.num_channels, self.num_noise_channels = num_channels, num_noise_channels
        self.adds_to_state, self.knows_latitude = adds_to_state, knows_latitude
        self.reference = reference
        noise_width = width // 2 if noise_width is None else noise_width
        num_known = num_noise_channels + 2 * knows_latitude
        noise_width = noise_width if num_known else 0
        here = dict(axis=axis, rngs=rngs)
        down = LocalFilters(grid, inner, kernel_shape)
        # Filters of the blocks reach twice as far where the blocks' grid is coarser.
        around = LocalFilters(inner, None, kernel_shape)
        if inner != grid:
            around = dataclasses.replace(around, cutoff=2 * around.radius)
        up = LocalFilters(grid, None, kernel_shape)
        self.noise_encoder = (
            LocalSphereConv(down, num_known, noise_width, **here)
            if noise_width
            else None
        )
        groups = _groups(num_channels, width, levels, level_widths)
        self.encoder = _grouped(groups, down, is_decoder=False, zero=False, **here)
        mixed = width + noise_width

        def conv(kind):
            if kind == "local":
                return LocalSphereConv(around, mixed, mixed, use_bias=False, **here)
            return SpectralConv(
                inner, mixed, mixed, is_complex=is_complex, dtype=dtype, **here
            )

        self.blocks = nnx.List(
            SphereBlock(
                conv(kind), width, mixed, mlp_ratio=mlp_ratio, layer_scale=layer_scale,
                dtype=dtype, rngs=rngs,
            )
            for kind in blocks
        )  # fmt: skip
        self.decoder = _grouped(groups, up, is_decoder=True, zero=adds_to_state, **here)

    def __call__(self, noise: jax.Array | None, state: jax.Array) -> jax.Array:
        """The next state, float32 `[lat, lon, channel]`.

        Args:
            noise: `[lat, lon, noise channel]`, or None without any.
            state: `[lat, lon, channel]`, standardised.

        Raises:
            ValueError: if the noise or the state has other channels.
        """
        found = None if noise is None else noise.shape
        expected = (*state.shape[:-1], self.num_noise_channels)
        if found != (expected if self.num_noise_channels else None):
            raise ValueError(
                f"the network was built for noise of {self.num_noise_channels} channels"
                f" beside a state {state.shape}; got {found}."
            )
        if state.shape[-1] != self.num_channels:
            raise ValueError(
                f"state must be [lat, lon, {self.num_channels}]; got {state.shape}."
            )
        beside = None
        if self.noise_encoder is not None:
            beside = self.noise_encoder(self._known(noise, state))
        h = self.encoder(state)
        if self.remat:
            h = again_for_gradient(self.blocks, h, beside)
        else:
            for block in self.blocks:
                h = block(h, beside)
        h = resample(h, self.inner_grid, self.grid, axis=self.axis)
        made = self.decoder(h).astype(jnp.float32)
        if self.adds_to_state:
            kept = state if self.reference is None else self.reference(state)
            kept = kept if self.state_share == 1 else self.state_share * kept
            made = kept + made
        if self.is_truncated:
            made = self._truncated(made)
        return made if self.floors is None else self._clamped(made)

    def _truncated(self, state):
        waves = split_to_waves(jnp.moveaxis(state, -1, -3), self.grid, self.axis)
        return jnp.moveaxis(split_from_waves(waves, self.grid, self.axis), -3, -1)

    def _clamped(self, state):
        has_floor = np.array([floor is not None for floor in self.floors])
        floor = np.array([floor or 0.0 for floor in self.floors], np.float32)
        along = (1,) * (state.ndim - 1) + (-1,)
        has_floor, floor = (jnp.asarray(x).reshape(along) for x in (has_floor, floor))
        return jnp.where(has_floor, floor + soft_clamp(state - floor), state)

    def _known(self, noise, state):
        """What is known beside the state, `[lat, lon, channel]`."""
        fields = [] if noise is None else [noise]
        if self.knows_latitude:
            sine = np.sin(np.radians(self.grid.latitudes()))
            told = np.stack([sine, sine**2], axis=-1)[:, None].astype(np.float32)
            told = own_block(jnp.asarray(told), self.axis, dim=0)
            fields.append(jnp.broadcast_to(told, (*state.shape[:-1], 2)))
        return jnp.concatenate(fields, axis=-1)


def _groups(num_channels, width, levels, level_widths):
    """Levels, channels and width of each, channels and width of the rest."""
    count, channels = levels
    rest = num_channels - count * channels
    if not count:
        return 0, 0, 0, num_channels, width
    if rest < 0 or level_widths is None:
        raise ValueError(
            f"levels {levels} need level_widths and no more than {num_channels}"
            f" channels; got {level_widths}."
        )
    if count * level_widths[0] + level_widths[1] != width:
        raise ValueError(
            f"{count} levels of {level_widths[0]} channels and {level_widths[1]} others"
            f" are the width; got {width}."
        )
    return count, channels, level_widths[0], rest, level_widths[1]


def _grouped(groups, filters, *, is_decoder, zero, axis, rngs):
    count, channels, inside, rest, rest_inside = groups

    def conv(outer, inner):
        ends = (inner, outer) if is_decoder else (outer, inner)
        return LocalSphereConv(filters, *ends, zero_init=zero, axis=axis, rngs=rngs)

    return ChannelGroups(
        conv(channels, inside) if count else None,
        count,
        inside if is_decoder else channels,
        conv(rest, rest_inside) if rest else None,
    )


# Of 13 levels of u, v, t, z and q, then 7 variables of the surface: q, and the last.
WATER_CHANNELS = (*range(4, 13 * 5, 5), 71)


def fourcastnet3(
    *,
    water_floors: Sequence[float] | None = None,
    axis: str | None = None,
    dtype=None,
    remat: bool = False,
    rngs: nnx.Rngs,
) -> SphericalForecaster:
    """FourCastNet 3 at its published size, of 710,867,670 parameters; ours 709,930,667.

    72 channels at 0.25 degrees: u, v, t, z and q on 13 levels, then 7 of the surface,
    the last of them the water of the column; 8 channels of noise, and land, orography
    and the sun's height with them.

    Args:
        water_floors: of q on each level and of the column's water, where there is none
            in the units of the states: 0 if they are only divided, -mean / deviation if
            standardised. None: they are not clamped; the published ones are.
        axis, dtype, remat, rngs: of `SphericalForecaster`.

    Raises:
        ValueError: for another number of `water_floors`.

    Source: Bonev et al. 2025, arXiv:2507.12144, and its configuration.
    """
    floors = None
    if water_floors is not None:
        if len(water_floors) != len(WATER_CHANNELS):
            raise ValueError(
                f"water_floors are of q on 13 levels and of the column; got"
                f" {len(water_floors)} numbers."
            )
        of_channel = dict(zip(WATER_CHANNELS, map(float, water_floors), strict=True))
        floors = [of_channel.get(channel) for channel in range(72)]
    return SphericalForecaster(
        SphericalGrid(721, 1440, "poles", northward=False),
        72,
        floors=floors,
        num_noise_channels=8 + 3,
        width=13 * 45 + 56,
        noise_width=36,
        blocks=4 * ("local",) + ("global",) + 4 * ("local",) + ("global",),
        inner_grid=SphericalGrid(360, 720, northward=False),
        levels=(13, 5),
        level_widths=(45, 56),
        axis=axis,
        dtype=dtype,
        remat=remat,
        rngs=rngs,
    )


def sfno(
    *, axis: str | None = None, dtype=None, remat: bool = False, rngs: nnx.Rngs
) -> SphericalForecaster:
    """The deterministic network of Huge Ensembles, of 1.1 billion parameters.

    Eight spectral blocks of 620 channels between 74 channels at 0.25 degrees; they are
    added to the state. A complex number counts as one parameter there: ours are
    1.12 billion so, and 2.23 billion real numbers. The published encoder and decoder
    are pointwise, ours local convolutions.

    Args:
        axis, dtype, remat, rngs: of `SphericalForecaster`.

    Source: Mahesh et al. 2024, arXiv:2408.03100, and its configuration; Bonev et al.
    2023, arXiv:2306.03838.
    """
    return SphericalForecaster(
        SphericalGrid(721, 1440, "poles", northward=False),
        74,
        width=620,
        blocks=8 * ("global",),
        inner_grid=SphericalGrid(360, 720, northward=False),
        adds_to_state=True,
        axis=axis,
        dtype=dtype,
        remat=remat,
        rngs=rngs,
    )
