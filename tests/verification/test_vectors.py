"""Energy and variogram scores, spectra, scores of scales, and the scramble test."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scoringrules

from ensjax import verification as v

GOLDEN = np.array([[0, 1, 2], [1, 1, 1], [2, 0, 1], [0.5, 2, 2.5]], np.float32)
OBSERVED = np.array([0.5, 1, 1.5], np.float32)
GRID = v.SphericalGrid(32, 64, truncation=21)


def test_golden_values(score):
    np.testing.assert_allclose(
        score(v.energy_score(), GOLDEN, OBSERVED), 0.46925, atol=5e-6
    )
    np.testing.assert_allclose(
        score(v.energy_score("fair"), GOLDEN, OBSERVED), 0.23407, atol=5e-6
    )
    np.testing.assert_allclose(
        score(v.variogram_score(), GOLDEN, OBSERVED), 0.08764, atol=5e-6
    )


@pytest.fixture(scope="module")
def vectors():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(5, 6, 7)).astype(np.float32)
    return x, rng.normal(size=(6, 7)).astype(np.float32)


@pytest.mark.parametrize("estimator, name", [("standard", "nrg"), ("fair", "fair")])
def test_they_equal_scoringrules(estimator, name, vectors, score):
    x, y = vectors
    by_case = np.moveaxis(x, 0, 1).astype(float)
    other = scoringrules.es_ensemble(y.astype(float), by_case, estimator=name)
    got = score(v.energy_score(estimator).over(), x, y)
    np.testing.assert_allclose(got, other, rtol=1e-5)
    for tile in (3, 64):
        got = score(v.variogram_score(estimator, tile=tile).over(), x, y)
        other = scoringrules.vs_ensemble(y.astype(float), by_case, estimator=name)
        np.testing.assert_allclose(got, other, rtol=2e-5, atol=1e-5)


def test_one_value_has_its_crps(vectors, score):
    x, y = vectors
    for estimator in ("standard", "fair"):
        np.testing.assert_allclose(
            score(v.energy_score(estimator), x[..., :1], y[..., :1]),
            score(v.crps(estimator), x[..., 0], y[..., 0]),
            rtol=1e-5,
        )


def test_weights_of_places_and_of_pairs(vectors, score):
    x, y = vectors
    weights = np.array([1, 0, 4, 1, 1, 1, 1], np.float32)
    scale = np.sqrt(weights)
    metric = v.energy_score(weights=weights, power=1.5)
    holes = x.copy()
    holes[:, :, 1] = np.nan
    other = v.energy_score(power=1.5)(x * scale, y * scale)
    np.testing.assert_allclose(score(metric, holes, y), other, rtol=1e-5)
    pairs = np.random.default_rng(1).random((7, 7)).astype(np.float32)
    got = score(v.variogram_score(pair_weights=pairs, power=1.0, tile=4).over(), x, y)
    ours = np.abs(x[..., None] - x[..., None, :]).mean(0)
    theirs = np.abs(y[..., None] - y[..., None, :])
    expected = (pairs * (ours - theirs) ** 2).sum((-2, -1))
    np.testing.assert_allclose(got, expected, rtol=1e-4)


def test_members_that_lack_a_value_are_missing_in_that_case(vectors, score):
    x, y = vectors
    holes = x.copy()
    holes[1, 2, 3] = np.nan
    kept = np.delete(x[:, 2], 1, axis=0)
    for metric in (v.energy_score("fair").over(), v.variogram_score("fair").over()):
        got = score(metric, holes, y)
        np.testing.assert_allclose(got[2], metric.over()(kept, y[2]), rtol=1e-5)
    no_truth = y.copy()
    no_truth[0, 0] = np.nan
    assert np.isnan(score(v.energy_score().over(), x, no_truth)[0])
    assert np.isnan(score(v.energy_score("fair").over(), x[:1], y)).all()


def test_inverse_distance_weights():
    weights = v.inverse_distance_weights(
        np.array([0.0, 0.0, 0.0]), np.array([0.0, 1.0, 3.0])
    )
    np.testing.assert_allclose(weights.sum(), 1, rtol=1e-6)
    np.testing.assert_allclose(weights[0, 1] / weights[0, 2], 3, rtol=1e-4)
    assert (np.diag(weights) == 0).all()


@pytest.mark.parametrize(
    "grid",
    [
        v.SphericalGrid(12, 24),
        v.SphericalGrid(17, 24, kind="poles", northward=False),
        v.SphericalGrid(16, 23, kind="cells"),
    ],
)
def test_harmonics_are_orthonormal_and_invert(grid):
    rng = np.random.default_rng(0)
    size = grid.degree + 1
    made = rng.normal(size=(3, size, size)) + 1j * rng.normal(size=(3, size, size))
    made = np.tril(made)
    made[..., 0] = made[..., 0].real
    field = v.from_harmonics(jnp.asarray(made, jnp.complex64), grid)
    assert field.shape == (3, grid.num_latitudes, grid.num_longitudes)
    np.testing.assert_allclose(v.to_harmonics(field, grid), made, atol=5e-5)
    # Parseval: the area mean of squares is the sum of the spectrum.
    area = grid.quadrature() / 2
    mean_square = (np.asarray(field) ** 2).mean(-1) @ area
    power = v.spherical_power(field, grid)
    np.testing.assert_allclose(power.sum(-1), mean_square, rtol=2e-5)


def test_harmonics_are_those_of_scipy():
    scipy = pytest.importorskip("scipy.special")
    if not hasattr(scipy, "sph_harm_y"):
        pytest.skip("scipy is too old for sph_harm_y")
    grid = v.SphericalGrid(10, 20)
    colatitude = np.radians(90 - grid.latitudes())[:, None]
    longitude = 2 * np.pi * np.arange(20)[None] / 20
    for degree, order in ((0, 0), (3, 0), (5, 2), (9, 9)):
        wave = scipy.sph_harm_y(degree, order, colatitude, longitude)
        field = wave.real if order == 0 else 2 * wave.real
        found = np.array(v.to_harmonics(field.astype(np.float32), grid))
        assert abs(found[degree, order] - 1) < 1e-5
        found[degree, order] = 0
        assert np.abs(found).max() < 1e-5


def test_grids_that_alias_are_refused():
    with pytest.raises(ValueError, match="truncation"):
        v.SphericalGrid(16, 64, kind="poles", truncation=8)
    with pytest.raises(ValueError, match="kind"):
        v.SphericalGrid(16, 64, kind="cubed")
    with pytest.raises(ValueError, match="lat, lon"):
        v.spherical_power(np.ones((3, 3)), v.SphericalGrid(16, 32))


@pytest.mark.parametrize("length", [7, 8])
def test_zonal_power_obeys_parseval(length):
    field = np.random.default_rng(0).normal(size=(3, length)).astype(np.float32)
    power = v.zonal_power(field)
    np.testing.assert_allclose(power.sum(-1), (field**2).mean(-1), rtol=1e-5)
    wave = np.cos(2 * np.pi * 2 * np.arange(length) / length).astype(np.float32)
    np.testing.assert_allclose(v.zonal_power(wave)[2], 0.5, rtol=1e-5)


def test_zonal_spectrum_is_energy_along_the_circle():
    field = np.random.default_rng(0).normal(size=(2, 3, 8)).astype(np.float32)
    lat = np.array([0.0, 45.0, 60.0])
    spectrum = v.zonal_spectrum(field, lat)
    around = 2 * np.pi * 6371e3 * np.cos(np.radians(lat))
    np.testing.assert_allclose(
        spectrum.sum(-1), around / 8 * (field**2).sum(-1), rtol=1e-5
    )
    length = v.zonal_wavelength(lat, 8)
    np.testing.assert_allclose(length[:, 2], around / 2000, rtol=1e-5)
    assert np.isinf(length[:, 0]).all()


def test_spectra_of_members_and_of_their_mean(score):
    """White noise: the mean of 4 independent members has a quarter of the power."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4, 400, 16)).astype(np.float32)
    y = rng.normal(size=(400, 16)).astype(np.float32)
    got = score(v.zonal_spectra(), x, y)
    # Of 400 cases: standard error of a ratio 7 % (10 % for the two real modes).
    np.testing.assert_allclose(got.members_ratio, 1, atol=0.3)
    np.testing.assert_allclose(got.mean_ratio, 0.25, atol=0.1)
    expected = np.asarray(v.zonal_power(x)).mean((0, 1))
    np.testing.assert_allclose(got.members, expected, rtol=1e-5)
    decibel = 10 * np.log10(got.members_ratio[1:])
    np.testing.assert_allclose(got.distance, np.sqrt((decibel**2).mean()), rtol=1e-4)
    gone = x.copy()
    gone[2] = np.nan
    fewer = score(v.zonal_spectra(), gone, y)
    expected = np.asarray(v.zonal_power(np.delete(x, 2, axis=0))).mean((0, 1))
    np.testing.assert_allclose(fewer.members, expected, rtol=1e-5)


def test_distance_of_spectra():
    assert v.log_spectral_distance(np.ones(5), np.ones(5)) == 0
    power = np.array([7.0, 10.0, 10.0])
    np.testing.assert_allclose(
        v.log_spectral_distance(power, np.ones(3)), 10.0, rtol=1e-6
    )


def test_pooled_crps_by_hand(score):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(3, 2, 4, 6)), rng.normal(size=(2, 4, 6))
    x, y = x.astype(np.float32), y.astype(np.float32)
    got = score(v.pooled_crps((1, 2), estimator="fair"), x, y)
    np.testing.assert_allclose(got[0], score(v.crps("fair"), x, y), rtol=1e-5)

    def pooled(field, fn):
        return fn(field.reshape(*field.shape[:-2], 2, 2, 3, 2), axis=(-3, -1))

    expected = score(v.crps("fair"), pooled(x, np.mean), pooled(y, np.mean))
    np.testing.assert_allclose(got[1], expected, rtol=1e-5)
    most = score(v.pooled_crps((2,), pool="max"), x, y)
    expected = score(v.crps(), pooled(x, np.max), pooled(y, np.max))
    np.testing.assert_allclose(most[0], expected, rtol=1e-5)
    area = v.cell_weights(np.linspace(-67.5, 67.5, 4))[:, None].astype(np.float32)
    weighted = v.pooled_crps((1,), area_weights=area)(x, y)
    expected = score(v.crps(), x, y, weights=area)
    np.testing.assert_allclose(weighted[0], expected, rtol=1e-5)
    with pytest.raises(ValueError, match="divide"):
        v.pooled_crps((4,))(x, y)


@pytest.fixture(scope="module")
def sphere():
    """16 members and truth of 60 cases: a common signal and red noise of each, T21."""
    key = jax.random.key(0)
    degree = jnp.arange(22.0)[:, None]
    scale = jnp.where(degree > 0, (degree + 1) ** -2.0, 0.0)

    def noise(purpose, shape):
        parts = jax.random.normal(jax.random.fold_in(key, purpose), (*shape, 22, 22, 2))
        parts = parts * jnp.broadcast_to(scale[..., None], parts.shape)
        imaginary = parts[..., 1].at[..., 0].set(0.0)  # of m = 0
        return v.from_harmonics(jax.lax.complex(parts[..., 0], imaginary), GRID)

    signal = noise(0, (60,))
    members = 0.5 * signal[None] + noise(1, (16, 60))
    return members, 0.5 * signal + noise(2, (60,))


def test_scrambled_members_are_caught_by_scores_of_fields_alone(sphere):
    """Members dealt out anew at every place, which no score of places can notice."""
    members, truth = sphere
    order = jnp.argsort(jax.random.uniform(jax.random.key(9), members.shape), axis=0)
    scrambled = jnp.take_along_axis(members, order, axis=0)
    modes = v.to_harmonics(members, GRID)
    fade = jnp.exp(-jnp.arange(22.0) / 8).reshape(1, 1, 22, 1)
    smooth = v.from_harmonics(modes * fade, GRID)
    mean = members.mean(0, keepdims=True)
    away, wider = smooth - smooth.mean(0, keepdims=True), members - mean
    smooth = mean + away * jnp.sqrt((wider**2).mean() / (away**2).mean())
    near = v.inverse_distance_weights(
        np.repeat(GRID.latitudes()[::4], 8), np.tile(np.arange(8) * 45.0, 8)
    )
    nodal = {
        "crps": v.crps(),
        "spread": v.spread_skill(),
        "ranks": v.rank_histogram(16),
        "brier": v.brier_score((0.2,)),
    }
    fields = {"spectral": v.spectral_crps(GRID), "pooled": v.pooled_crps((8,))}

    @jax.jit
    def score_all(x, y):
        found = {name: m(x, y) for name, m in (nodal | fields).items()}
        # A fraction of the places is enough for the pairs.
        metric = v.variogram_score(vector_axes=2, pair_weights=near)
        few = metric.sums(x[:, :, ::4, ::8], y[:, ::4, ::8])
        return found | {"variogram": metric.finish(few)}

    whole, other, blurred = (score_all(x, truth) for x in (members, scrambled, smooth))
    for name in nodal:
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
            whole[name],
            other[name],
        )
    assert other["spectral"] > 1.3 * whole["spectral"]
    assert other["variogram"] > 1.05 * whole["variogram"]
    assert other["pooled"][0] > 1.02 * whole["pooled"][0]
    # Smoothing hides from scores of places as well, but not from the spectrum.
    np.testing.assert_allclose(blurred["crps"], whole["crps"], rtol=0.02)
    assert blurred["spectral"] > 1.05 * whole["spectral"]
    spectra = jax.jit(v.spherical_spectra(GRID))(members, truth)
    np.testing.assert_allclose(spectra.members_ratio[1:], 1, atol=0.25)
    assert (spectra.mean_ratio[1:] < 0.95).all()


def test_spectral_crps_by_hand(score):
    grid = v.SphericalGrid(6, 9, truncation=2)
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(4, 3, 6, 9)), rng.normal(size=(3, 6, 9))
    x, y = x.astype(np.float32), y.astype(np.float32)
    a, b = (np.abs(v.to_harmonics(f, grid)) / np.sqrt(4 * np.pi) for f in (x, y))
    values = score(v.crps("fair").over(), np.asarray(a), np.asarray(b))
    expected = (values * v.order_weights(grid)).sum((-2, -1)) / (4 * np.pi)
    got = score(v.spectral_crps(grid, "fair").over(), x, y)
    np.testing.assert_allclose(got, expected, rtol=1e-4)
