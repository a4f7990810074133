"""CRPS on the sphere: values of verification, the scramble test, split latitudes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ensjax import verification as v
from ensjax.emulate import SphericalNoise
from ensjax.mapping import map_members
from ensjax.mesh import make_mesh
from ensjax.ops.sphere import SphericalGrid, to_real_harmonics
from ensjax.ops.sphere_split import own_block
from ensjax.train import NoiseCrps, RolloutLoss, SphericalCrps, area_crps, wave_crps
from ensjax.train.kernel_crps import crps_of_complex
from ensjax.train.losses import example_keys
from ensjax.train.spherical_crps import KINDS

GRID = SphericalGrid(8, 16, truncation=6)
POLES = SphericalGrid(13, 16, "poles")


def ensemble(grid, members=4, *shape, seed=0):
    rng = np.random.default_rng(seed)
    draw = rng.normal(size=(members + 1, *shape, *grid.shape)).astype(np.float32)
    return draw[1:], draw[0]


@pytest.mark.parametrize("grid", [GRID, POLES])
@pytest.mark.parametrize("fair, word", [(0.0, "standard"), (1.0, "fair")])
def test_values_are_those_of_verification(grid, fair, word):
    members, truth = ensemble(grid, 4, 3)
    score = v.spectral_crps(grid, word).over()(members, truth)
    found = wave_crps(members, truth, grid, fair=fair)
    np.testing.assert_allclose(found, score, rtol=1e-5)
    area = np.broadcast_to(grid.quadrature()[:, None], grid.shape)
    metric = v.crps(word)
    places = [metric(members[:, i], truth[i], weights=area) for i in range(3)]
    found = area_crps(members, truth, grid, fair=fair)
    np.testing.assert_allclose(found, places, rtol=1e-5)


def test_scrambled_members_have_the_same_places_and_other_waves():
    """Members dealt out anew at every place of smooth fields, T21: card level 0."""
    grid = SphericalGrid(32, 64, truncation=21)
    noise = SphericalNoise.of_lengths(grid, (1500.0,))
    keys = jax.random.split(jax.random.key(0), 60 * 9)
    fields = jax.jit(jax.vmap(lambda k: noise(k, (*grid.shape, 1))))(keys)[..., 0]
    fields = np.asarray(fields).reshape(9, 60, *grid.shape)
    members, truth = fields[1:], fields[0]
    rng = np.random.default_rng(1)
    order = np.argsort(rng.uniform(size=members.shape), axis=0)
    scrambled = np.take_along_axis(members, order, axis=0)

    @jax.jit
    def scores(x):
        places = area_crps(x, jnp.asarray(truth), grid)
        return places.mean(), wave_crps(x, jnp.asarray(truth), grid).mean()

    whole, other = scores(members), scores(scrambled)
    assert abs(other[0] / whole[0] - 1) < 1e-6
    assert other[1] > 1.5 * whole[1]


def test_gradients_are_finite_also_where_a_wave_is_nothing():
    members, truth = np.zeros((2, *GRID.shape), np.float32), np.zeros(GRID.shape)
    truth = truth.astype(np.float32)
    found = jax.grad(lambda x: wave_crps(x, truth, GRID))(members)
    assert np.isfinite(found).all()
    members, truth = ensemble(GRID, 3)
    with jax.enable_x64(True):
        x, y = (a.astype(np.float64) for a in (members, truth))
        direction = np.random.default_rng(2).normal(size=x.shape)

        def along(step):
            return wave_crps(x + step * direction, y, GRID)

        numeric = (along(1e-6) - along(-1e-6)) / 2e-6
        exact = jnp.sum(jax.grad(lambda x: wave_crps(x, y, GRID))(x) * direction)
    np.testing.assert_allclose(exact, numeric, rtol=1e-6)


def complex_by_hand(members, truth, grid, fair):
    """The complex score by loops over pairs of members and over waves."""

    def coefficients(field):
        cosine, sine = np.asarray(to_real_harmonics(field, grid), np.float64)
        # a_lm of both orders m and -m share the two real waves of an order m > 0.
        halves = np.where(np.arange(grid.degree + 1) == 0, 1, np.sqrt(0.5))
        return (cosine - 1j * sine) * halves / np.sqrt(4 * np.pi)

    found, own = 0.0, [coefficients(member) for member in members]
    target, count = coefficients(truth), len(members)
    for degree in range(grid.degree + 1):
        for order in range(degree + 1):
            z, w = [c[degree, order] for c in own], target[degree, order]
            error = sum(abs(a - w) for a in z) / count
            pairs = sum(abs(a - b) for a in z for b in z)
            kept = (1 - fair) / count**2
            kept += fair / (count * (count - 1)) if count > 1 else 0
            share = (1 if order == 0 else 2) / (4 * np.pi)
            found += share * (error - kept * pairs / 2)
    return found


@pytest.mark.parametrize("grid", [GRID, POLES])
@pytest.mark.parametrize("count, fair", [(1, 0.0), (2, 1.0), (4, 0.0), (5, 0.95)])
def test_the_complex_score_by_loops(grid, count, fair):
    members, truth = ensemble(grid, count)
    found = wave_crps(members, truth, grid, fair=fair, kind="complex")
    expected = complex_by_hand(members, truth, grid, fair)
    np.testing.assert_allclose(found, expected, rtol=2e-5)


def test_the_complex_score_sees_phases():
    """Of members turned about the axis the moduli are what they were."""
    members, truth = ensemble(GRID, 4)
    turned = np.roll(members, 3, axis=-1)
    for kind, changes in (("modulus", False), ("complex", True)):
        both = [wave_crps(x, truth, GRID, kind=kind) for x in (members, turned)]
        assert (abs(both[0] / both[1] - 1) > 1e-2) == changes
        # The same turn of the truth gives everything back; so does another order.
        again = wave_crps(turned, np.roll(truth, 3, axis=-1), GRID, kind=kind)
        np.testing.assert_allclose(again, both[0], rtol=1e-5)
        other = wave_crps(members[::-1], truth, GRID, kind=kind)
        np.testing.assert_allclose(other, both[0], rtol=1e-5)


def test_gradients_of_the_complex_score():
    members, truth = np.zeros((3, *GRID.shape), np.float32), np.zeros(GRID.shape)

    def score(x, y):
        return wave_crps(x, y, GRID, fair=0.9, kind="complex")

    found = jax.grad(score)(members, truth.astype(np.float32))
    np.testing.assert_array_equal(found, 0)  # equal members are not pushed apart
    members, truth = ensemble(GRID, 3)
    with jax.enable_x64(True):
        x, y = (a.astype(np.float64) for a in (members, truth))
        direction = np.random.default_rng(2).normal(size=x.shape)
        ends = [score(x + step * direction, y) for step in (1e-6, -1e-6)]
        exact = jnp.sum(jax.grad(score)(x, y) * direction)
        numeric = (ends[0] - ends[1]) / 2e-6
    np.testing.assert_allclose(exact, numeric, rtol=1e-6)


def test_complex_numbers_of_one_part_are_real_ones():
    members, truth = np.float32([[1.0], [2.0], [6.0]]), np.float32([3.0])
    both = [np.stack([x, 0 * x], axis) for axis, x in ((1, members), (0, truth))]
    np.testing.assert_allclose(crps_of_complex(*both, 1.0), [2 - 10 / 6], rtol=1e-6)
    # 3 + 4 i and 0, truth 0: 2.5 less a quarter of 5, and less half of it.
    z = np.float32([[[3.0], [4.0]], [[0.0], [0.0]]])
    for fair, value in ((0.0, 1.25), (1.0, 0.0)):
        found = crps_of_complex(z, np.zeros((2, 1), np.float32), fair)
        np.testing.assert_allclose(found, [value], atol=1e-6)
    with pytest.raises(ValueError, match=r"members must be \[member, part 2, ...\]"):
        crps_of_complex(members, truth, 1.0)


def test_the_loss_has_the_complex_score():
    rng = np.random.default_rng(6)
    target, state = rng.normal(size=(2, *GRID.shape, 2)).astype(np.float32)
    key = jax.random.key(1)
    plain, phased = (
        SphericalCrps(4, NOISE, "fair", grid=GRID, spectral_kind=kind) for kind in KINDS
    )
    members = plain.members(shifted, key, target.shape, state)
    fields = [np.moveaxis(np.asarray(x), -1, -3) for x in (members, target)]
    expected = 0.1 * (
        wave_crps(*fields, GRID, kind="complex") - wave_crps(*fields, GRID)
    )
    found = [x.elements(shifted, key, target, state) for x in (plain, phased)]
    found = (found[1] - found[0])[3, 5]
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-6)
    assert np.all(np.abs(expected) > 1e-4)


def scored(member_id, members, truth, *, axis, kind):
    del member_id

    def loss(members):
        own = [own_block(x, axis, dim=x.ndim - 2) for x in (members, truth)]
        options = dict(fair=0.9, axis=axis)
        places = area_crps(*own, GRID, **options)
        waves = wave_crps(*own, GRID, kind=kind, **options)
        return jnp.sum(places + 0.1 * waves)

    value, gradient = jax.value_and_grad(loss)(members)
    # Every device has the derivative by its own rows.
    return value, gradient if axis is None else jax.lax.psum(gradient, axis)


@pytest.mark.parametrize("kind", KINDS)
def test_latitudes_on_1_2_and_4_devices_have_one_loss_and_gradient(kind):
    members, truth = (jnp.asarray(x) for x in ensemble(GRID, 4, 2))
    found = []
    for parts in (1, 2, 4):
        axis = None if parts == 1 else "model"
        run = map_members(
            functools.partial(scored, axis=axis, kind=kind),
            kinds=("member", "shared", "shared"),
            out=("member", "member"),
            mesh=make_mesh(member=1, model=parts),
        )
        found.append(jax.tree.map(np.asarray, run(jnp.arange(1), members, truth)))
    for value, gradient in found[1:]:
        np.testing.assert_allclose(value, found[0][0], rtol=1e-5)
        scale = np.abs(found[0][1]).max()
        np.testing.assert_allclose(gradient / scale, found[0][1] / scale, atol=1e-5)


def shifted(noise, state):
    return 0.5 * state + noise


NOISE = SphericalNoise(GRID, (0.02, 0.1))
SCORE = SphericalCrps(4, NOISE, "fair", grid=GRID, centred=True)


def test_the_loss_of_a_rollout_is_the_sum_of_both_scores():
    rng = np.random.default_rng(3)
    windows = rng.normal(size=(2, 3, *GRID.shape, 2)).astype(np.float32)
    loss = RolloutLoss(2, SCORE)
    key = jax.random.key(0)
    value, _ = jax.jit(lambda w: loss(shifted, w, key))(windows)

    def by_hand(key, window):
        members = []
        for member in range(4):
            own = jax.random.fold_in(key, member // 2)
            noise = NOISE.of_steps(own, window.shape[1:], 2) * (-1) ** member
            states = [window[0]]
            for step in range(2):
                states.append(shifted(noise[step], states[-1]))
            members.append(jnp.stack(states[1:]))
        x, y = (jnp.moveaxis(a, -1, -3) for a in (jnp.stack(members), window[1:]))
        return area_crps(x, y, GRID) + 0.1 * wave_crps(x, y, GRID)

    keys = example_keys(key, 2)
    expected = np.mean([by_hand(k, w) for k, w in zip(keys, windows, strict=True)])
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    zero = SphericalCrps(4, NOISE, "fair", grid=GRID, centred=True, spectral_weight=0)
    less, _ = jax.jit(lambda w: RolloutLoss(2, zero)(shifted, w, key))(windows)
    assert 0 < value - less < 0.1 * value


def test_missing_targets_do_not_count_and_leave_gradients_finite():
    rng = np.random.default_rng(4)
    target = rng.normal(size=(*GRID.shape, 2)).astype(np.float32)
    state = rng.normal(size=target.shape).astype(np.float32)
    holes = target.copy()
    holes[2:4, :, 1] = np.nan
    key = jax.random.key(1)

    def loss(scale, target, weights=None):
        score = SphericalCrps(4, NOISE, grid=GRID, channel_weights=weights)
        return score.elements(lambda n, s: scale * s + n, key, target, state)

    def total(scale, target):
        return loss(scale, target).sum()

    value, slope = jax.value_and_grad(total)(0.5, jnp.asarray(holes))
    assert np.isfinite(value) and np.isfinite(slope)
    whole, found = loss(0.5, target), loss(0.5, holes)
    np.testing.assert_allclose(found[..., 0], whole[..., 0], rtol=1e-6)
    np.testing.assert_array_equal(found[2:4, :, 1], 0)
    # Without the spectral term, by the share of area that is left.
    bare = SphericalCrps(4, NOISE, grid=GRID, spectral_weight=0).elements(
        lambda n, s: 0.5 * s + n, key, target, state
    )
    area = GRID.quadrature()
    share = (6 / 8) / (1 - area[2:4].sum() / 2)
    expected = share * bare[jnp.array([0, 1, 4, 5, 6, 7]), :, 1]
    left = found[jnp.array([0, 1, 4, 5, 6, 7]), :, 1]
    np.testing.assert_allclose(left, expected, rtol=1e-5)
    double = loss(0.5, target, (2.0, 0.0))
    np.testing.assert_allclose(double[..., 0], 2 * whole[..., 0], rtol=1e-6)
    np.testing.assert_array_equal(double[..., 1], 0)


@pytest.mark.parametrize("score", [area_crps, wave_crps])
def test_fields_of_another_grid_or_number_of_members_are_refused(score):
    members, truth = (jnp.asarray(x) for x in ensemble(GRID, 3, 2))
    # With fewer longitudes the sum is over a part of the sphere.
    for own in ((members[..., :12], truth[..., :12]), (members[..., 2:, :],) * 2):
        own = own[0], own[0][0]
        with pytest.raises(ValueError, match=r"lat, lon\] on \(8, 16\); got .*"):
            score(*own, GRID)
    with pytest.raises(ValueError, match=r"members must be \[member, ...\]"):
        score(members, truth[:1], GRID)
    with pytest.raises(ValueError, match="fair CRPS needs at least two members; got 1"):
        score(members[:1], truth, GRID)
    with pytest.raises(ValueError, match="at least one member; got 0"):
        score(members[:0], truth, GRID)
    for fair in (2.0, -0.5, np.float32(np.nan)):
        with pytest.raises(ValueError, match="fair must be from 0 .* got"):
            score(members, truth, GRID, fair=fair)
    with pytest.raises(TypeError, match="must be real; got complex64"):
        score(members + 1j, truth, GRID)
    # Of one member there is the standard score; a traced weight is nobody's to check.
    alone = score(members[:1], truth, GRID, fair=0)
    traced = jax.jit(lambda fair: score(members[:1], truth, GRID, fair=fair))(0.0)
    np.testing.assert_allclose(traced, alone, rtol=1e-6)
    if score is area_crps:
        areas = GRID.quadrature()[:, None] / (2 * GRID.num_longitudes)
        error = np.sum(np.abs(members[0] - truth) * areas, axis=(-2, -1))
        np.testing.assert_allclose(alone, error, rtol=1e-5)


def test_mistakes_are_told():
    with pytest.raises(ValueError, match="must be a SphericalGrid"):
        SphericalCrps(4)
    with pytest.raises(ValueError, match="kind must be one of modulus, complex"):
        SphericalCrps(4, grid=GRID, spectral_kind="phase")
    with pytest.raises(ValueError, match="complex numbers have no order"):
        SphericalCrps(4, grid=GRID, spectral_kind="complex", form="sorted")
    with pytest.raises(ValueError, match="not be negative"):
        SphericalCrps(4, grid=GRID, spectral_weight=-1.0)
    with pytest.raises(ValueError, match="at least two members"):
        SphericalCrps(1, grid=GRID, estimator="fair")
    with pytest.raises(ValueError, match="pairs of members"):
        SphericalCrps(3, grid=GRID, centred=True)
    with pytest.raises(ValueError, match=r"on \(8, 16\)"):
        SCORE.elements(shifted, jax.random.key(0), np.zeros((4, 4, 1)), None)
    assert isinstance(SCORE, NoiseCrps) and hash(SCORE) == hash(SCORE)


def test_channels_are_weighed_by_one_number_each():
    def score(weights):
        return SphericalCrps(4, NOISE, grid=GRID, channel_weights=weights)

    for wrong in (-1.0, np.nan, np.inf):
        words = r"channel_weights must be finite and not negative; at \(1,\) of \[2\]"
        for weights in ((1.0, wrong), [1.0, wrong]):
            with pytest.raises(ValueError, match=words):
                score(weights)
    for weights in ((0.0, 0.0), ()):
        with pytest.raises(ValueError, match="channel_weights of .* are all 0"):
            score(weights)
    for weights in (2.0, ((1.0, 2.0),)):
        with pytest.raises(ValueError, match=r"must be \[channel\], one number for"):
            score(weights)
    first = score((2.0, 0.0))
    for weights in ([2.0, 0.0], np.array([2.0, 0.0]), jnp.array([2.0, 0.0])):
        again = score(weights)
        assert again == first and hash(again) == hash(first)
        assert again.channel_weights == (2.0, 0.0)
    state = np.zeros((*GRID.shape, 2), np.float32)
    for weights in ((1.0,), (1.0, 1.0, 1.0)):
        words = f"one for each of 2 channels of the target; got {len(weights)}"
        with pytest.raises(ValueError, match=words):
            score(weights).elements(shifted, jax.random.key(0), state, state)


def test_where_rows_are_missing_places_count_by_the_area_that_is_left():
    """The mean of the elements' scores is the mean over the area with targets."""
    target = np.random.default_rng(4).normal(size=(*GRID.shape, 1)).astype(np.float32)
    score = SphericalCrps(4, NOISE, grid=GRID, spectral_weight=0)

    def network(noise, condition):
        return noise[..., :1]

    def of(target):
        return score.of_one(network, jax.random.key(0), jnp.asarray(target), None)

    whole = score.elements(network, jax.random.key(0), jnp.asarray(target), None)
    missing = target.copy()
    missing[:2] = np.nan
    area = np.broadcast_to(GRID.quadrature()[:, None, None], target.shape)
    places = np.asarray(whole) / area  # by area before
    expected = np.average(places[2:], weights=area[2:]) / np.average(
        places, weights=area
    )
    np.testing.assert_allclose(of(missing) / of(target), expected, rtol=1e-5)
