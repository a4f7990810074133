"""Bred vectors, random perturbations of equal norm, lagged ensembles."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ensjax.emulate.perturb import (
    BredVectors,
    GlobalNorm,
    HemisphericNorm,
    NoPerturbation,
    RandomPerturbation,
    Start,
    bred_amplitude,
    lagged_ensemble,
    perturbed,
    rescale,
)
from ensjax.emulate.product import MemberForecast, product_ids, run_product
from ensjax.emulate.rollout import Rollout

LATITUDES = tuple(np.linspace(90, -90, 19).tolist())  # every 10 degrees
AMPLITUDE = jnp.array([0.5, 2.0])


def field(seed=0, shape=(19, 6, 2)):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def test_the_global_norm_weighs_by_area():
    x = field()
    weights = np.cos(np.radians(LATITUDES))[:, None, None] * np.ones((19, 6, 1))
    weights[[0, -1]] = 0
    expected = np.sqrt((weights * np.asarray(x) ** 2).sum((0, 1)) / weights.sum())
    found = GlobalNorm(LATITUDES)(x)
    np.testing.assert_allclose(found.reshape(2), expected, rtol=1e-5)
    plain = np.sqrt(np.mean(np.asarray(x) ** 2, axis=(0, 1)))
    np.testing.assert_allclose(GlobalNorm()(x).reshape(2), plain, rtol=1e-5)


def test_hemispheric_norms_are_linear_in_between():
    """7 in the north and 3 in the south: 7 beyond 20 N, 5 at the equator."""
    rows = np.where(np.asarray(LATITUDES) > 0, 7.0, 3.0)
    x = jnp.asarray(rows[:, None, None] * np.ones((19, 4, 2)), jnp.float32)
    found = np.asarray(HemisphericNorm(LATITUDES)(x))[:, 0, 0]
    expected = np.interp(LATITUDES, [-20, 20], [3.0, 7.0])
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    backward = HemisphericNorm(LATITUDES[::-1])(x[::-1])
    np.testing.assert_allclose(np.asarray(backward)[::-1, 0, 0], expected, rtol=1e-6)


def test_a_quarter_degree_grid_has_280_rows_in_each_hemisphere():
    latitudes = np.linspace(90, -90, 721)
    x = np.zeros((721, 1, 1), np.float32)
    x[:280], x[441:] = 1, 1e-6
    norm = HemisphericNorm(tuple(latitudes.tolist()))(jnp.asarray(x))
    np.testing.assert_allclose(norm[:280], 1, rtol=1e-6)
    assert float(norm[280, 0, 0]) == 1, "20 N itself is at the end of the tropics"
    assert np.all(np.asarray(norm[281:]) < 1)


def test_rescaling_gives_the_amplitude_and_leaves_zeros():
    x = field().at[..., 1].set(0.0)
    found = rescale(x, AMPLITUDE, GlobalNorm())
    np.testing.assert_allclose(GlobalNorm()(found).reshape(2), [0.5, 0], rtol=1e-5)
    assert not np.any(found[..., 1])
    north = HemisphericNorm(LATITUDES)
    twice = rescale(field(), AMPLITUDE, north)
    size = np.asarray(north(twice))[:, 0]
    np.testing.assert_allclose(size[:7], np.tile(AMPLITUDE, (7, 1)), rtol=1e-5)
    np.testing.assert_allclose(size[-7:], np.tile(AMPLITUDE, (7, 1)), rtol=1e-5)


def test_random_perturbations_have_the_norm_of_bred_ones():
    start = Start(field(1, (12, 2)), field(2, (4, 12, 2)))
    key = jax.random.key(0)
    bred = BredVectors(AMPLITUDE, linear)(MATRIX, key, start)
    drawn = RandomPerturbation(AMPLITUDE)(None, key, start)
    for delta in (bred, drawn):
        np.testing.assert_allclose(GlobalNorm()(delta).reshape(2), AMPLITUDE, rtol=1e-5)
    other = RandomPerturbation(AMPLITUDE)(None, jax.random.key(1), start)
    assert np.all(other != drawn)
    assert not np.any(NoPerturbation()(None, key, start))


# A model that is linear in space, the same for both channels; it grows one vector.
_RNG = np.random.default_rng(3)
_VECTORS = np.linalg.qr(_RNG.normal(size=(12, 12)))[0]
_GROWTH = np.concatenate([[3.0], _RNG.uniform(0.05, 0.5, size=11)])
MATRIX = jnp.asarray(_VECTORS * _GROWTH @ _VECTORS.T, jnp.float32)


def linear(matrix, key, state):
    del key
    return matrix @ state


def test_breeding_a_linear_model_is_power_iteration():
    start = Start(field(1, (12, 2)), field(2, (9, 12, 2)))
    bred = BredVectors(AMPLITUDE, linear, num_cycles=8)
    delta = np.asarray(bred(MATRIX, jax.random.key(0), start))
    fastest = _VECTORS[:, 0]
    for channel, amplitude in enumerate(AMPLITUDE):
        along = abs(delta[:, channel] @ fastest) / np.linalg.norm(delta[:, channel])
        assert along > 0.999
        rms = np.sqrt(np.mean(delta[:, channel] ** 2))
        np.testing.assert_allclose(rms, amplitude, rtol=1e-4)


def times_level(model, key, state):
    """Both channels, and a growth that says which analysis a cycle started from."""
    del key
    return state * (1 + model * jnp.mean(state, keepdims=True))


@pytest.mark.parametrize("aligned, rows", [(True, (1, 2)), (False, (2, 3))])
def test_cycles_start_from_the_analyses_before_the_start(aligned, rows):
    history = field(4, (4, 5, 1)) + jnp.arange(4.0)[:, None, None]
    start = Start(history[-1], history)
    bred = BredVectors(
        jnp.array([0.1]), times_level, num_cycles=2, valid_time_aligned=aligned
    )
    found = bred(jnp.float32(0.3), jax.random.key(0), start)
    delta = 0.1 * jax.random.normal(jax.random.fold_in(jax.random.key(0), 0), (5, 1))
    for row in rows:
        grown = times_level(0.3, None, history[row] + delta)
        grown = grown - times_level(0.3, None, history[row])
        delta = grown * 0.1 / jnp.sqrt(jnp.mean(grown**2))
    np.testing.assert_allclose(found, delta, rtol=1e-3, atol=1e-6)
    with pytest.raises(ValueError, match=f"need a history of {2 + aligned} analyses"):
        bred(0.3, jax.random.key(0), Start(history[-1], history[-1:]))
    with pytest.raises(ValueError, match="got 0"):
        bred(0.3, jax.random.key(0), Start(history[-1]))


def test_channels_that_nothing_perturbs_stay_zero():
    """0 / 0 where a channel's perturbation is zero: seeded in the first one alone."""
    start = Start(field(1, (12, 2)), field(2, (4, 12, 2)))
    bred = BredVectors(AMPLITUDE, linear, seed_channels=(0,))
    delta = np.asarray(bred(MATRIX, jax.random.key(0), start))
    assert not np.any(delta[:, 1])
    assert np.all(np.isfinite(delta))
    assert np.any(delta[:, 0])


def grows_in_the_north(model, key, state):
    """Ten times as much there, in a step that also mixes channels."""
    del key
    rows = np.where(np.asarray(LATITUDES) > 0, 10.0, 1.0).astype(np.float32)
    return model * rows[:, None, None] * (state + 0.5 * state[..., ::-1])


@pytest.mark.parametrize("hemispheric", [True, False])
def test_bred_vectors_of_a_sphere_have_their_amplitude_in_both_hemispheres(hemispheric):
    """With one norm for all, the hemisphere that grows takes nearly all of it."""
    norm = HemisphericNorm(LATITUDES) if hemispheric else GlobalNorm(LATITUDES)
    start = Start(field(1), jnp.stack([field(i) for i in range(4)]))
    bred = BredVectors(AMPLITUDE, grows_in_the_north, norm=norm, seed_channels=(0,))
    delta = np.asarray(bred(jnp.float32(1.5), jax.random.key(0), start))
    size = np.asarray(HemisphericNorm(LATITUDES)(delta))[[0, -1], 0]  # north, south
    if hemispheric:
        np.testing.assert_allclose(size, np.tile(AMPLITUDE, (2, 1)), rtol=1e-4)
    else:
        assert np.all(size[1] < 0.01 * size[0])


def noisy(model, key, state):
    return model @ state + 10 * jax.random.normal(key, state.shape)


def test_noise_inside_the_model_is_the_same_in_both_forecasts_of_a_cycle():
    start = Start(field(1, (12, 2)), field(2, (4, 12, 2)))
    key = jax.random.key(0)
    quiet = BredVectors(AMPLITUDE, linear)(MATRIX, key, start)
    loud = BredVectors(AMPLITUDE, noisy)(MATRIX, key, start)
    np.testing.assert_allclose(loud, quiet, rtol=1e-3, atol=1e-4)


def test_pairs_are_centred_and_clipped():
    state, delta = field(1), field(2)
    plus, minus = (perturbed(state, delta, sign) for sign in (1, -1))
    np.testing.assert_allclose((plus + minus) / 2, state, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(perturbed(state, delta * jnp.nan, 0), state)
    floor = jnp.array([0.0, -jnp.inf])
    clipped = perturbed(state, delta, -1, floor)
    np.testing.assert_array_equal(clipped[..., 0], np.maximum(minus[..., 0], 0))
    np.testing.assert_array_equal(clipped[..., 1], minus[..., 1])
    for number in (0.0, 0, jnp.float32(0), [0.0, 0.0]):
        clipped = perturbed(state, delta, -1, number)
        np.testing.assert_array_equal(clipped, np.maximum(minus, 0))


@pytest.mark.parametrize("channels, floors", [(1, 2), (2, 1), (2, 3)])
def test_a_floor_is_one_for_each_channel(channels, floors):
    """Two floors of one channel would make two channels of it."""
    state = field(1, (3, channels))
    words = rf"\[channel\] = \({channels},\), .* of the state; got \({floors},\)"
    for call in (perturbed, jax.jit(perturbed)):
        with pytest.raises(ValueError, match=words):
            call(state, state, 1, jnp.zeros(floors))
    starts = Start(state[None])
    forecast = MemberForecast(Rollout(still), floor=jnp.zeros(floors))
    with pytest.raises(ValueError, match=words):
        run_product(
            forecast,
            product_ids(1, 0, 1),
            models=jnp.zeros(1),
            starts=starts,
            lead_steps=(0,),
            block=1,
        )


def still(model, key, state):
    del model, key
    return state


def test_a_floor_is_below_something():
    """One that is traced, or a shape of it, is not looked at."""
    for floor in (np.nan, np.inf, jnp.float32(np.nan)):
        with pytest.raises(ValueError, match="of channel 0 is (nan|inf)"):
            MemberForecast(Rollout(still), floor=floor)
    for floor in (np.array([0.0, np.nan]), jnp.array([-jnp.inf, jnp.inf]), (0, np.nan)):
        with pytest.raises(ValueError, match="or -inf .* channel 1 is (nan|inf)"):
            MemberForecast(Rollout(still), floor=floor)
        with pytest.raises(ValueError, match="of channel 1 is"):
            perturbed(field(1), field(2), 1, floor)
    traced = jax.jit(perturbed)(field(1), field(2), 1, jnp.full(2, jnp.nan))
    assert np.isnan(traced).all()
    shapes = MemberForecast(Rollout(still), floor=jax.ShapeDtypeStruct((2,), float))
    assert jax.tree.map(lambda x: None, shapes).floor is None


def test_the_amplitude_is_a_share_of_the_error():
    errors = field(5, (20, 8, 2)) * jnp.array([[[1.0, 4.0]]])
    expected = 0.35 * np.sqrt(np.mean(np.asarray(errors) ** 2, axis=(0, 1)))
    np.testing.assert_allclose(bred_amplitude(errors), expected, rtol=1e-5)
    with pytest.raises(ValueError, match="must be .case"):
        bred_amplitude(errors[:0])
    for share in (0.0, -1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match=f"positive and finite; got {share}"):
            bred_amplitude(errors, share=share)


def test_the_amplitude_on_a_globe_is_of_the_whole_globe():
    """Rows count by their area, the tropics too."""
    errors = np.ones((3, len(LATITUDES), 4, 1), np.float32)
    is_tropical = np.abs(LATITUDES) <= 20
    errors[:, is_tropical] = 0
    area = np.cos(np.radians(LATITUDES))
    expected = np.sqrt(area[~is_tropical].sum() / area.sum())
    found = bred_amplitude(errors, norm=HemisphericNorm(LATITUDES), share=1.0)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_a_hemisphere_without_anything_does_not_raise_the_tropics():
    field = np.zeros((len(LATITUDES), 4, 1), np.float32)
    field[np.asarray(LATITUDES) > -20] = 1.0
    scaled = rescale(jnp.asarray(field), jnp.array([0.5]), HemisphericNorm(LATITUDES))
    np.testing.assert_allclose(scaled[field == 1], 0.5, rtol=1e-5)


def test_one_channel_of_noise_may_perturb_all():
    noise = RandomPerturbation(
        jnp.array([1.0, 2.0]), noise=lambda key, shape: jnp.ones((*shape[:-1], 1))
    )
    found = noise(None, jax.random.key(0), Start(field(1)))
    np.testing.assert_allclose(found, np.broadcast_to([1.0, 2.0], found.shape))


def test_lagged_members_are_valid_at_the_same_time():
    """Forecasts that say when they started and for when they are."""
    begun, lead = np.meshgrid(np.arange(9), np.arange(7), indexing="ij")
    values = jnp.asarray(np.stack([begun, begun + lead], axis=-1))  # [start, lead, 2]
    found = lagged_ensemble(values)
    assert found.members.shape == (5, 5, 3, 2)
    np.testing.assert_array_equal(found.cases, [2, 3, 4, 5, 6])
    np.testing.assert_array_equal(found.leads, [2, 3, 4])
    valid = found.cases[:, None] + found.leads[None]
    for row, lag in enumerate((-2, -1, 0, 1, 2)):
        np.testing.assert_array_equal(found.members[row, ..., 1], valid)
        begun = np.broadcast_to(found.cases[:, None] + lag, valid.shape)
        np.testing.assert_array_equal(found.members[row, ..., 0], begun)
    with pytest.raises(ValueError, match="on both sides"):
        lagged_ensemble(values[:, :4])
    with pytest.raises(ValueError, match="different integers"):
        lagged_ensemble(values, (0, 0))
    for lags in ((-1.9, 0, 1), (0.0, np.nan), (0.0, np.inf), (), ((0, 1),), "01"):
        with pytest.raises(ValueError, match="different integers"):
            lagged_ensemble(values, lags)
    again = lagged_ensemble(values, np.arange(-2.0, 3.0))  # whole numbers
    np.testing.assert_array_equal(again.members, found.members)


def breed(amplitude, seeds=None, channels=2):
    start = Start(field(1, (12, channels)), field(2, (4, 12, channels)))
    bred = BredVectors(amplitude, linear, seed_channels=seeds)
    return bred(MATRIX, jax.random.key(0), start)


@pytest.mark.parametrize("shape", [(4, 12, 1), (4, 1, 2), (4, 2), (4, 2, 12, 2)])
def test_a_history_is_of_the_states_own_shape(shape):
    """It would be broadcast to the start."""
    bred = BredVectors(AMPLITUDE, still)
    start = Start(field(1, (12, 2)), field(2, shape))
    with pytest.raises(ValueError, match=r"of states \(12, 2\), .*; got \(4, .*\)"):
        bred(None, jax.random.key(0), start)


def test_an_amplitude_that_is_not_known_is_not_looked_at():
    """Traced, or a shape of it; what is seeded may be counted from the end."""
    traced = jax.jit(breed, static_argnums=(1, 2))(AMPLITUDE, (-2,), 2)
    np.testing.assert_allclose(traced, breed(AMPLITUDE, (0,)), rtol=1e-5, atol=1e-6)
    assert np.isnan(jax.jit(breed)(AMPLITUDE * jnp.nan)).all()
    BredVectors(jax.ShapeDtypeStruct((2,), np.float32), linear)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: BredVectors(AMPLITUDE, linear, num_cycles=0), "num_cycles"),
        (lambda: HemisphericNorm((10.0, 0.0, -10.0)), "beyond 20 degrees"),
        (lambda: HemisphericNorm((80.0, 30.0, 0.0)), "beyond 20 degrees"),
        (lambda: GlobalNorm(LATITUDES)(jnp.ones((4, 2))), "19 latitudes"),
        (lambda: rescale(field(), jnp.ones(3), GlobalNorm()), "amplitude must be"),
        (lambda: breed(jnp.ones(2), channels=1), r"\(1,\), .*; got \(2,\)"),
        (lambda: breed(jnp.ones(1)), r"\(2,\), the channels of the start; got \(1,\)"),
        (lambda: breed(jnp.float32(1)), r"got \(\)"),
        (lambda: breed(AMPLITUDE, (0, 2)), "of the 2 channels of the start; got 2"),
        (lambda: breed(AMPLITUDE, (-3,)), "of the 2 channels of the start; got -3"),
        (lambda: breed(jnp.array([1.0, jnp.nan])), "that of channel 1 is nan"),
        (lambda: breed(np.array([-1.0, 1.0])), "that of channel 0 is -1.0"),
        (lambda: RandomPerturbation(jnp.array([jnp.inf])), "that of channel 0 is inf"),
    ],
)
def test_what_does_not_fit_is_said(call, words):
    with pytest.raises(ValueError, match=words):
        call()
