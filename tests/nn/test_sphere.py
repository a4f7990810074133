"""Layers on the sphere: against direct sums, under rotations, split by latitude."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import ensjax
from ensjax.mapping import map_members
from ensjax.mesh import make_mesh
from ensjax.nn import SpectralConv, SphericalDenoiser, SphericalForecaster
from ensjax.nn.activations import soft_clamp
from ensjax.nn.sphere import resample
from ensjax.ops import sphere_filters
from ensjax.ops.device_sums import shared_by, sum_over
from ensjax.ops.sphere import (
    SphericalGrid,
    from_real_harmonics,
    harmonic_mask,
    to_real_harmonics,
)
from ensjax.ops.sphere_filters import LocalFilters, local_basis
from ensjax.ops.sphere_split import (
    own_block,
    own_orders,
    split_from_waves,
    split_to_waves,
    whole_rows,
)
from ensjax.planning import read_collectives

GRID = SphericalGrid(8, 16)
POLES = SphericalGrid(9, 16, "poles", northward=False)


def field_of(grid, *channels, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(*grid.shape, *channels)).astype(np.float32)


def summed_directly(filters, field):
    """Every filter at every place, as the definition has it, in float64."""
    grid, target = filters.grid, filters.target
    near = np.pi / 2 - np.radians(grid.latitudes())[:, None]
    area = grid.quadrature()[:, None] * 2 * np.pi / grid.num_longitudes
    east = 2 * np.pi * np.arange(grid.num_longitudes) / grid.num_longitudes
    step = grid.num_longitudes // target.num_longitudes
    found = np.zeros((filters.num_filters, *target.shape))
    for i, lat in enumerate(np.pi / 2 - np.radians(target.latitudes())):
        for j in range(target.num_longitudes):
            basis = local_basis(filters, lat, near, (east - east[j * step])[None])
            weighted = basis * area
            weighted = weighted / weighted[0].sum()
            found[:, i, j] = (weighted * field).sum(axis=(1, 2))
    return found


@pytest.mark.parametrize(
    "filters",
    [
        LocalFilters(GRID),
        LocalFilters(POLES, None, (2, 3), 0.9),
        LocalFilters(POLES, SphericalGrid(6, 8)),
    ],
)
def test_filters_are_sums_over_geodesic_neighbourhoods(filters):
    field = field_of(filters.grid)
    found = filters.apply(field)
    np.testing.assert_allclose(found, summed_directly(filters, field), atol=2e-5)
    ones = filters.apply(np.ones_like(field))
    np.testing.assert_allclose(ones[0], 1, atol=1e-5)  # a mean
    # A row at a pole is one place, whatever its longitude says.
    if filters.grid is POLES and filters.target is POLES:
        flat = np.repeat(field.mean(axis=1, keepdims=True), 16, axis=1)
        at_pole = np.asarray(filters.apply(flat))[0, 0]
        np.testing.assert_allclose(at_pole, at_pole[0], atol=1e-5)


@pytest.mark.parametrize("num_out", [2, 5])
@pytest.mark.parametrize("target", [None, SphericalGrid(6, 8)])
def test_fewer_channels_are_mixed_before_they_are_filtered(target, num_out):
    filters = LocalFilters(POLES, target)
    field = np.moveaxis(field_of(POLES, 4), -1, 0)
    weights = field_of(SphericalGrid(4, filters.num_filters), num_out, seed=1)
    text = jax.jit(filters.apply).lower(field, weights).as_text()
    every = np.einsum("ckij,cko->oij", filters.apply(field), weights)
    np.testing.assert_allclose(filters.apply(field, weights), every, atol=1e-5)
    # Both are a product with the weights; only one makes all filters of all channels.
    rows = (target or POLES).num_latitudes
    filtered = f"tensor<4x{filters.num_filters}x{rows}x2x9xf32>"
    assert (filtered in text) == (num_out > 4)


def test_large_tables_of_filters_are_computed_in_the_program(monkeypatch):
    field = field_of(POLES)
    for filters in (LocalFilters(POLES), LocalFilters(POLES, SphericalGrid(6, 8))):
        constant = filters.apply(field)
        with monkeypatch.context() as patch:
            patch.setattr(sphere_filters, "MOST_CONSTANT", 0)
            np.testing.assert_allclose(filters.apply(field), constant, atol=1e-5)


def test_neighbourhoods_turn_with_the_sphere():
    """A smooth field that is turned over the pole has turned means around its places.

    Quadrature is exact for smooth fields only, hence the bound.
    """
    grid = SphericalGrid(32, 64)
    filters = LocalFilters(grid, None, (1, 1), 0.4)
    lat = np.radians(grid.latitudes())[:, None]
    lon = 2 * np.pi * np.arange(64)[None] / 64
    x, y, z = np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)
    fields = np.stack([x * y, z * x + 0 * lon, x**2 - z**2 + 0 * lon])
    found = np.asarray(filters.apply(fields.astype(np.float32)))[:, 0]
    # All are of degree 2, in which turning mixes orders: one multiplier for them.
    factors = (found * fields).sum(axis=(1, 2)) / (fields**2).sum(axis=(1, 2))
    np.testing.assert_allclose(factors, factors[0], rtol=0.01)
    np.testing.assert_allclose(found, factors[0] * fields, atol=0.02)
    assert 0.8 < factors[0] < 0.95


def test_a_spectral_convolution_is_a_matrix_for_every_degree():
    conv = SpectralConv(POLES, 2, 3, use_bias=True, rngs=nnx.Rngs(0))
    x = field_of(POLES, 2)
    found = conv(x)
    assert found.shape == (9, 16, 3)
    waves = np.asarray(to_real_harmonics(np.moveaxis(x, -1, 0), POLES))
    a = waves[:, 0] - 1j * waves[:, 1]
    kernel = np.asarray(conv.kernel[...])  # [l, part, in, out]
    matrix = kernel[:, 0] + 1j * kernel[:, 1]
    b = np.einsum("lio,ilm->olm", matrix, a)
    expected = from_real_harmonics(np.stack([b.real, -b.imag], axis=1), POLES)
    np.testing.assert_allclose(np.moveaxis(found, -1, 0), expected, atol=2e-5)
    turned = conv(np.roll(x, 3, axis=1))
    np.testing.assert_allclose(turned, np.roll(found, 3, axis=1), atol=2e-5)


def test_real_spectral_weights_treat_all_orders_of_a_degree_alike():
    conv = SpectralConv(GRID, 1, 1, is_complex=False, rngs=nnx.Rngs(1))
    mask = harmonic_mask(GRID)
    waves = np.random.default_rng(1).normal(size=mask.shape) * mask
    x = from_real_harmonics(waves, GRID)[..., None]
    found = to_real_harmonics(conv(x)[..., 0], GRID)
    factors = np.asarray(conv.kernel[...])[:, 0, 0]  # [l, out 1]
    np.testing.assert_allclose(found, waves * factors, atol=1e-5)


def test_another_grid_keeps_what_both_can_hold():
    fine, coarse = SphericalGrid(16, 32), SphericalGrid(8, 16)
    waves = np.random.default_rng(2).normal(size=coarse.wave_shape)
    waves = waves * harmonic_mask(coarse)
    x = np.asarray(from_real_harmonics(waves, coarse))[..., None]
    up = resample(x, coarse, fine)
    assert up.shape == (16, 32, 1)
    np.testing.assert_allclose(resample(up, fine, coarse), x, atol=1e-5)
    conv = SpectralConv(fine, 1, 2, grid_out=coarse, rngs=nnx.Rngs(0))
    assert conv(up).shape == (8, 16, 2) and conv.kernel.shape[0] == 8


def forecaster(axis=None, rngs=None, **options):
    return SphericalForecaster(
        GRID,
        2,
        num_noise_channels=3,
        width=4,
        blocks=("local", "global"),
        kernel_shape=(2, 2),
        knows_latitude=True,
        axis=axis,
        rngs=nnx.Rngs(0) if rngs is None else rngs,
        **options,
    )


def test_a_forecaster_makes_the_next_state_of_one_member():
    x, noise = field_of(GRID, 2), field_of(GRID, 3, seed=1)
    direct, added = forecaster(), forecaster(adds_to_state=True)
    assert direct(noise, x).shape == x.shape
    np.testing.assert_array_equal(added(noise, x), x)  # starts from zeros
    turned = direct(np.roll(noise, 5, axis=1), np.roll(x, 5, axis=1))
    np.testing.assert_allclose(turned, np.roll(direct(noise, x), 5, 1), atol=1e-5)
    assert np.abs(direct(-noise, x) - direct(noise, x)).max() > 1e-3
    with pytest.raises(ValueError, match="noise of 3 channels"):
        direct(None, x)
    with pytest.raises(ValueError, match="state must be"):
        direct(noise, x[..., :1])
    with pytest.raises(ValueError, match="blocks must be words"):
        SphericalForecaster(GRID, 2, blocks=("near",), rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="raise the cutoff"):
        LocalFilters(GRID, SphericalGrid(32, 16), cutoff=0.05)


def test_a_soft_clamp_is_never_negative_and_has_no_corner():
    x = jnp.array([-3.0, 0.0, 0.1, 0.5, 0.75, 4.0])
    np.testing.assert_allclose(
        soft_clamp(x), [0, 0, 0.01, 0.25, 0.5, 3.75], atol=1e-7, rtol=1e-6
    )
    slopes = jax.vmap(jax.grad(soft_clamp))(x + 1e-6)
    np.testing.assert_allclose(slopes, [0, 0, 0.2, 1, 1, 1], atol=1e-4)


def test_a_channel_with_a_floor_stays_above_it():
    x, noise = 2 * field_of(GRID, 2), field_of(GRID, 3, seed=1)
    floor = -0.1  # of -mean / deviation: where there is no water
    plain = forecaster()(noise, x)
    clamped = forecaster(floors=(None, floor))(noise, x)
    np.testing.assert_array_equal(clamped[..., 0], plain[..., 0])
    np.testing.assert_allclose(
        clamped[..., 1], floor + soft_clamp(plain[..., 1] - floor), atol=1e-6
    )
    assert plain[..., 1].min() < floor <= clamped[..., 1].min()
    with pytest.raises(ValueError, match="for each of 2 channels; got 1"):
        forecaster(floors=(0.0,))
    with pytest.raises(ValueError, match="13 levels and of the column; got 2"):
        ensjax.nn.fourcastnet3(water_floors=(0.0, 0.0), rngs=nnx.Rngs(0))


def test_a_truncated_step_leaves_nothing_beyond_the_grids_degree():
    """What a forecast cannot be trained on must not grow: waves beyond the data's."""
    grid = SphericalGrid(8, 16, truncation=3)
    wide = SphericalGrid(8, 16)

    def make(is_truncated):
        return SphericalForecaster(
            grid, 1, width=4, blocks=("local",), kernel_shape=(2, 2),
            adds_to_state=True, is_truncated=is_truncated, rngs=nnx.Rngs(0),
        )  # fmt: skip

    x = field_of(GRID, 1)
    # It starts from zeros: the next state is the state, and its part within degree 3.
    np.testing.assert_array_equal(make(False)(None, x), x)
    waves = to_real_harmonics(jnp.moveaxis(make(True)(None, x), -1, 0), wide)
    before = to_real_harmonics(jnp.moveaxis(x, -1, 0), wide)
    assert np.abs(waves[..., 4:, :]).max() < 1e-5 < np.abs(before[..., 4:, :]).max()
    np.testing.assert_allclose(waves[..., :4, :], before[..., :4, :], atol=1e-5)


def test_a_change_may_be_added_to_a_share_of_the_state():
    x, noise = field_of(GRID, 2), field_of(GRID, 3, seed=1)
    half = forecaster(adds_to_state=True, state_share=0.5)
    np.testing.assert_array_equal(half(noise, x), 0.5 * x)  # starts from zeros
    with pytest.raises(ValueError, match="1 unless adds_to_state; got 0.5"):
        forecaster(state_share=0.5)


def test_a_denoiser_is_the_trunk_told_of_condition_and_level():
    x, condition = field_of(GRID, 2), field_of(GRID, 1, seed=1)
    network = SphericalDenoiser(
        GRID, 2, num_condition_channels=1, num_level_channels=3, width=4,
        blocks=("global",), kernel_shape=(1, 1), rngs=nnx.Rngs(0),
    )  # fmt: skip
    made = network(x, jnp.float32(0.3), condition)
    level = network.embedding(jnp.float32(0.3))
    told = np.concatenate([np.broadcast_to(level, (*GRID.shape, 3)), condition], -1)
    np.testing.assert_allclose(made, network.trunk(told, x), atol=1e-6)
    for other in (network(x, jnp.float32(-1), condition),
                  network(x, jnp.float32(0.3), -condition)):  # fmt: skip
        assert np.abs(other - made).max() > 1e-4
    with pytest.raises(ValueError, match="a condition of 1 channels"):
        network(x, jnp.float32(0), None)


def test_a_network_that_is_told_the_latitude_knows_the_hemispheres():
    x = field_of(GRID, 2)
    for knows in (False, True):
        model = SphericalForecaster(
            GRID, 2, width=4, blocks=("local",), kernel_shape=(1, 1),
            knows_latitude=knows, layer_scale=1.0, rngs=nnx.Rngs(0),
        )  # fmt: skip
        mirrored = np.asarray(model(None, x[::-1]))[::-1]
        is_same = np.abs(mirrored - model(None, x)).max() < 1e-5
        assert is_same != knows


def test_remat_changes_nothing_also_mapped_over_noise():
    x, noise = field_of(GRID, 2), np.stack([field_of(GRID, 3, seed=s) for s in (1, 2)])

    def gradient(model):
        graph, params = nnx.split(model)

        def loss(params):
            model = nnx.merge(graph, params)
            return jnp.sum(jax.vmap(lambda z: model(z, x))(noise) ** 2)

        return jax.jit(jax.grad(loss))(params)

    plain, again = (gradient(forecaster(remat=remat)) for remat in (False, True))
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(again), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * np.abs(a).max())


def test_levels_share_their_encoder_and_decoder():
    model = SphericalForecaster(
        GRID, 5, width=7, levels=(2, 2), level_widths=(3, 1), kernel_shape=(1, 1),
        blocks=("global",), layer_scale=0.0, rngs=nnx.Rngs(0),
    )  # fmt: skip
    x = field_of(GRID, 5)
    found = np.asarray(model(None, x))
    swapped = np.asarray(model(None, x[..., [2, 3, 0, 1, 4]]))
    np.testing.assert_allclose(swapped, found[..., [2, 3, 0, 1, 4]], atol=1e-5)
    with pytest.raises(ValueError, match="are the width"):
        SphericalForecaster(
            GRID, 5, width=8, levels=(2, 2), level_widths=(3, 1), rngs=nnx.Rngs(0)
        )


def loss_and_gradient(state, target, noise, x, *, graph, axis):
    """Of one member: squared errors by area, and power by order, and what it says."""

    def loss(params):
        model = nnx.merge(graph, shared_by(params, axis))
        own = [own_block(jnp.asarray(v), axis, dim=0) for v in (target, noise, x)]
        made = model(own[1], own[2])
        area = own_block(jnp.asarray(GRID.quadrature(), jnp.float32), axis, dim=0)
        error = jnp.sum((made - own[0]) ** 2 * area[:, None, None])
        waves = split_to_waves(jnp.moveaxis(made, -1, 0), GRID, axis)
        share = own_orders(np.arange(1.0, 9, dtype=np.float32), GRID, axis)
        power = jnp.sum(waves**2 * share.reshape(1, 1, 1, -1))
        return sum_over(error + power, axis), made

    (value, made), gradient = jax.value_and_grad(loss, has_aux=True)(state)
    if axis is not None:
        made = jax.lax.all_gather(made, axis, axis=0, tiled=True)
    return value, made, gradient


@functools.cache
def whole_and_split():
    """Results of 2 members on meshes by the devices along "model", and programs."""
    make = functools.partial(forecaster, None)
    ensemble = ensjax.Ensemble.init(lambda rngs: make(rngs=rngs), num_members=2, seed=0)
    target, noise, x = (field_of(GRID, c, seed=s) for s, c in ((3, 2), (4, 3), (5, 2)))
    stacked = jax.tree.map(np.asarray, ensemble.params)
    results, texts = {}, {}
    for member, parts in ((1, 1), (1, 2), (2, 4)):
        axis = None if parts == 1 else "model"
        graph = nnx.split(forecaster(axis))[0]
        run = map_members(
            functools.partial(loss_and_gradient, graph=graph, axis=axis),
            kinds=("member", "shared", "shared", "shared"),
            out=("member", "member", "member"),
            mesh=make_mesh(member=member, model=parts),
        )
        args = (stacked, target, noise, x)
        results[parts] = jax.tree.map(np.asarray, run(*args))
        if parts == 4:
            texts[parts] = run.lower(*args).compile().as_text()
    return results, texts


@pytest.mark.parametrize("parts", [2, 4])
def test_a_step_split_by_latitude_is_that_of_one_device(parts):
    """Mesh (member 2, data 1, model 4) and (1, 1, 1): loss, forecast and gradients."""
    results, _ = whole_and_split()
    for one, split in zip(results[1], results[parts], strict=True):
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(split), strict=True):
            scale = np.abs(a).max() + 1e-6
            np.testing.assert_allclose(b / scale, a / scale, atol=1e-5)


def test_a_split_step_exchanges_along_the_model_axis_alone():
    found = read_collectives(whole_and_split()[1][4], (2, 1, 4))
    assert {c.axes for c in found} == {("model",)}
    by_name = {c.operation: c for c in found}
    # Transposes of the Legendre sums, rows at the edges, gradients and the loss; the
    # all-gather is of the forecast that the test looks at.
    assert set(by_name) == {
        "all-to-all", "collective-permute", "all-reduce", "all-gather",
    }  # fmt: skip
    assert by_name["all-gather"].count == 1
    # The spectral block there and back, the loss's waves, and their derivatives.
    assert by_name["all-to-all"].count == 6


def test_a_split_transform_fits_any_number_of_orders():
    """8 latitudes over 4 devices, of 6 orders: two on each, and two that are none."""
    grid = SphericalGrid(8, 16, truncation=5)
    x = field_of(grid)
    mesh = make_mesh(member=1, model=4)

    def there_and_back(_, field):
        waves = split_to_waves(own_block(field, "model", dim=0), grid, "model")
        back = split_from_waves(waves, grid, "model")
        back = jax.lax.all_gather(back, "model", axis=0, tiled=True)
        return jax.lax.all_gather(waves, "model", axis=2, tiled=True), back

    run = map_members(
        there_and_back, kinds=("member", "shared"), out=("member", "member"), mesh=mesh
    )
    waves, back = run(jnp.zeros(1), x)
    expected = to_real_harmonics(x, grid)
    np.testing.assert_allclose(waves[0, ..., :6], expected, atol=1e-5)
    np.testing.assert_array_equal(waves[0, ..., 6:], 0)
    np.testing.assert_allclose(back[0], from_real_harmonics(expected, grid), atol=1e-5)


@pytest.mark.parametrize("kernel_shape, rows", [((2, 2), 3), ((3, 3), 4)])
def test_blocks_of_another_grid_reach_twice_as_far_as_their_filters(kernel_shape, rows):
    """(waves + 1) half rows of the grid, and twice as many of an inner one."""
    inner = SphericalGrid(6, 16)

    def radius(inner_grid):
        model = SphericalForecaster(
            POLES, 1, width=2, blocks=("local",), inner_grid=inner_grid,
            kernel_shape=kernel_shape, rngs=nnx.Rngs(0),
        )  # fmt: skip
        return model.blocks[0].conv.filters.radius

    assert radius(inner) == pytest.approx(rows * np.pi / 5)
    assert radius(inner) == 2 * LocalFilters(inner, None, kernel_shape).radius
    assert radius(None) == pytest.approx(rows * np.pi / 8 / 2)


def test_any_number_of_latitudes_fits_any_number_of_devices():
    """9 rows with poles, and 6 Gaussian ones of another degree, over 4 devices."""
    grid, inner = SphericalGrid(9, 16, "poles"), SphericalGrid(6, 16)
    assert grid.degree != inner.degree

    def make(axis):
        return SphericalForecaster(
            grid, 2, num_noise_channels=1, width=4, inner_grid=inner, axis=axis,
            kernel_shape=(2, 2), knows_latitude=True, rngs=nnx.Rngs(0),
        )  # fmt: skip

    def gradient(params, noise, x, *, graph, axis):
        def loss(params):
            model = nnx.merge(graph, shared_by(params, axis))
            own = [own_block(v, axis, dim=0) for v in (noise, x)]
            made = model(*own)
            area = own_block(jnp.asarray(grid.quadrature(), jnp.float32), axis, dim=0)
            return sum_over(jnp.sum(made**3 * area[:, None, None]), axis), made

        (value, made), found = jax.value_and_grad(loss, has_aux=True)(params)
        return value, whole_rows(made, axis, dim=0), found

    noise, x = field_of(grid, 1, seed=1), field_of(grid, 2, seed=2)
    results = []
    for parts in (1, 4):
        axis = None if parts == 1 else "model"
        graph, params = nnx.split(make(axis))
        run = map_members(
            functools.partial(gradient, graph=graph, axis=axis),
            kinds=("member", "shared", "shared"),
            out=("member", "member", "member"),
            mesh=make_mesh(member=1, model=parts),
        )
        one = jax.tree.map(lambda leaf: np.asarray(leaf)[None], params)
        value, made, found = run(one, noise, x)
        results.append((value, made[:, :9], found))
    for a, b in zip(*map(jax.tree.leaves, results), strict=True):
        scale = np.abs(a).max()
        np.testing.assert_allclose(b / scale, a / scale, atol=1e-5)


def num_params(make):
    model = nnx.eval_shape(lambda: make(rngs=nnx.Rngs(0)))
    leaves = jax.tree.leaves_with_path(nnx.state(model, nnx.Param))
    return {jax.tree_util.keystr(path): int(np.prod(x.shape)) for path, x in leaves}


def test_published_sizes_by_shapes():
    fcn3 = sum(num_params(ensjax.nn.fourcastnet3).values())
    assert abs(fcn3 / 710_867_670 - 1) < 0.002
    counts = num_params(ensjax.nn.sfno)
    spectral = 8 * 360 * 2 * 620 * 620
    assert sum(counts.values()) - spectral < 0.01 * spectral
    # With a complex number counted as one parameter.
    assert (sum(counts.values()) - spectral / 2) / 1.1e9 == pytest.approx(1, abs=0.03)
