"""Spherical harmonics: known waves, orthonormality, derivatives, s2fft and scipy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from ensjax.ops import circles, legendre, sphere
from ensjax.ops.sphere import SphericalGrid, from_real_harmonics, to_real_harmonics

GRIDS = [
    SphericalGrid(12, 24),
    SphericalGrid(17, 24, kind="poles", northward=False),
    SphericalGrid(16, 23, kind="cells"),
    SphericalGrid(12, 24, truncation=5),
]


def waves_of(rng, grid, *shape):
    return rng.normal(size=(*shape, *grid.wave_shape)) * sphere.harmonic_mask(grid)


@pytest.mark.parametrize("grid", GRIDS)
def test_a_round_trip_and_parseval(grid):
    rng = np.random.default_rng(0)
    made = waves_of(rng, grid, 3)
    with jax.enable_x64(True):
        field = from_real_harmonics(made, grid)
        assert field.shape == (3, *grid.shape) and field.dtype == np.float64
        np.testing.assert_allclose(to_real_harmonics(field, grid), made, atol=1e-12)
    field = from_real_harmonics(made.astype(np.float32), grid)
    found = to_real_harmonics(field, grid)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, made, atol=5e-6)
    # Quadrature counts a pole once, whose row repeats it.
    mean_square = (np.asarray(field) ** 2).mean(-1) @ (grid.quadrature() / 2)
    np.testing.assert_allclose(sphere.wave_power(found).sum(-1), mean_square, rtol=1e-5)


@pytest.mark.parametrize("grid", GRIDS[:3])
def test_waves_that_are_known(grid):
    """The constant, z, x and y, from south to north or the other way."""
    lat = np.radians(grid.latitudes())[:, None]
    lon = 2 * np.pi * np.arange(grid.num_longitudes)[None] / grid.num_longitudes
    known = {
        (0, 0, 0): np.sqrt(4 * np.pi) * np.ones(grid.shape),
        (0, 1, 0): np.sqrt(4 * np.pi / 3) * np.sin(lat) * np.ones_like(lon),
        # The phase (-1)^m, and sqrt(2) of the real form.
        (0, 1, 1): -np.sqrt(4 * np.pi / 3) * np.cos(lat) * np.cos(lon),
        (1, 1, 1): -np.sqrt(4 * np.pi / 3) * np.cos(lat) * np.sin(lon),
    }
    for place, field in known.items():
        scale = np.sqrt(4 * np.pi) if place == (0, 0, 0) else np.sqrt(4 * np.pi / 3)
        expected = np.zeros(grid.wave_shape)
        expected[place] = scale**2
        with jax.enable_x64(True):
            found = to_real_harmonics(field, grid)
        np.testing.assert_allclose(found, expected, atol=1e-12)


def test_the_derivative_is_the_adjoint_and_vmap_the_loop():
    """<to(f), w> = <f, from(w)> in the quadrature: each is the other's derivative."""
    grid = GRIDS[1]
    rng = np.random.default_rng(1)
    field = jnp.asarray(rng.normal(size=(2, *grid.shape)), jnp.float32)
    waves = jnp.asarray(waves_of(rng, grid, 2), jnp.float32)

    def inner(f, w):
        return jnp.sum(to_real_harmonics(f, grid) * w)

    gradient = jax.grad(inner)(field, waves)
    area = grid.quadrature()[:, None] * 2 * np.pi / grid.num_longitudes
    np.testing.assert_allclose(
        gradient, from_real_harmonics(waves, grid) * area[None], atol=2e-6
    )
    with jax.enable_x64(True):
        check_grads(
            lambda w: jnp.sum(jnp.tanh(from_real_harmonics(w, grid))),
            (waves[0].astype(np.float64),),
            order=2,
            modes=("fwd", "rev"),
        )
    mapped = jax.vmap(lambda f: to_real_harmonics(f, grid))(field)
    for one, own in zip(field, mapped, strict=True):
        np.testing.assert_allclose(to_real_harmonics(one, grid), own, atol=1e-6)
    assert not jax.tree.leaves(
        [v for v in jax.make_jaxpr(inner)(field, waves).jaxpr.eqns if _is_complex(v)]
    )


def _is_complex(equation):
    return any(jnp.iscomplexobj(v.aval) for v in equation.outvars)


@pytest.mark.parametrize("length", [7, 8])
def test_circles_by_a_matrix_are_those_of_the_fast_transform(length, monkeypatch):
    field = np.random.default_rng(2).normal(size=(3, length)).astype(np.float32)
    orders = length // 2 + 1

    def both(x):
        waves = sphere.circle_waves(x, orders)
        return waves, sphere.circle_field(waves, length), waves[..., :2]

    waves, back, few = both(field)
    np.testing.assert_allclose(back, field, atol=1e-6)
    modes = np.fft.rfft(field)
    np.testing.assert_allclose(waves[:, 0], modes.real, atol=1e-5)
    np.testing.assert_allclose(waves[:, 1], -modes.imag, atol=1e-5)
    smooth = sphere.circle_field(few, length)
    monkeypatch.setattr(circles, "_MOST_BY_MATRIX", 0)
    for a, b in zip(both(field), (waves, back, few), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6)
    np.testing.assert_allclose(sphere.circle_field(few, length), smooth, atol=1e-6)


@pytest.mark.parametrize(
    "grid", [SphericalGrid(61, 60, "poles"), SphericalGrid(192, 384, northward=False)]
)
def test_large_tables_are_computed_in_the_program(grid, monkeypatch):
    """To degree 29 with poles, and 191, where P_mm is as small as 1e-350 near one."""
    exact = sphere.legendre(grid)
    found = np.asarray(jax.jit(lambda: sphere.legendre_in_program(grid))())
    assert found.shape == exact.shape and found.dtype == np.float32
    # A sum of as many terms as degrees, in float32.
    np.testing.assert_allclose(found, exact, atol=1e-5)
    if grid.degree < 100:
        field = np.random.default_rng(5).normal(size=grid.shape).astype(np.float32)
        constant = to_real_harmonics(field, grid)
        monkeypatch.setattr(legendre, "MOST_CONSTANT", 0)
        np.testing.assert_allclose(to_real_harmonics(field, grid), constant, atol=1e-5)


def test_harmonics_are_those_of_scipy():
    scipy = pytest.importorskip("scipy.special")
    if not hasattr(scipy, "sph_harm_y"):
        pytest.skip("scipy is too old for sph_harm_y")
    grid = SphericalGrid(24, 48, kind="poles")
    colatitude = np.radians(90 - grid.latitudes())[:, None]
    longitude = 2 * np.pi * np.arange(48)[None] / 48
    for degree, order in ((0, 0), (3, 0), (5, 2), (11, 11)):
        wave = scipy.sph_harm_y(degree, order, colatitude, longitude)
        root = np.sqrt(2) if order else 1.0
        for part, field in enumerate((wave.real, wave.imag)):
            if part == 1 and order == 0:
                continue
            expected = np.zeros(grid.wave_shape)
            expected[part, degree, order] = 1.0
            with jax.enable_x64(True):
                found = to_real_harmonics(root * field, grid)
            np.testing.assert_allclose(found, expected, atol=1e-12)


def test_the_transform_is_that_of_s2fft():
    """s2fft 1.5.0, Gauss-Legendre sampling: L rows from the north, 2 L - 1 columns."""
    s2fft = pytest.importorskip("s2fft")
    size = 16
    grid = SphericalGrid(size, 2 * size - 1, northward=False)
    field = np.random.default_rng(3).normal(size=grid.shape)
    # The other package relies on silent broadcasting of ranks.
    with jax.enable_x64(True), jax.numpy_rank_promotion("allow"):
        found = np.asarray(to_real_harmonics(field, grid))
        made = s2fft.forward(field, size, sampling="gl", method="jax", reality=True)
        peer = np.asarray(made)[:, size - 1 :]  # [l, m from 0]
    share = np.where(np.arange(size) == 0, 1.0, np.sqrt(0.5))
    ours = (found[0] - 1j * found[1]) * share
    np.testing.assert_allclose(ours, peer, atol=1e-10)


def test_grids_are_found_by_their_latitudes():
    for grid in GRIDS[:3]:
        found = sphere.find_grid(grid.latitudes(), grid.num_longitudes)
        assert found == grid
    with pytest.raises(ValueError, match="both row 0 and row 1"):
        sphere.find_grid(np.array([90.0, 90.0, 0.0, -90.0]), 8)
    with pytest.raises(ValueError, match="rise or fall"):
        sphere.find_grid(np.array([0.0, 90.0, 45.0]), 8)
    with pytest.raises(ValueError, match="neither Gaussian nor evenly"):
        sphere.find_grid(np.array([0.0, 1.0, 2.0]), 8)


def test_shapes_that_do_not_fit_are_refused():
    grid = GRIDS[0]
    with pytest.raises(ValueError, match=r"lat, lon\] = \(12, 24\)"):
        to_real_harmonics(np.ones((24, 12)), grid)
    with pytest.raises(ValueError, match="part, l, m"):
        from_real_harmonics(np.ones((12, 12)), grid)
    with pytest.raises(ValueError, match="truncation"):
        SphericalGrid(16, 64, kind="poles", truncation=8)
