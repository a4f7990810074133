"""Learned perturbations of the state: their KL, their training, and what a forecast
may not see."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from scipy import integrate, stats

from ensjax import Ensemble, fit, make_mesh
from ensjax.emulate import variational as v
from ensjax.emulate.variational_training import (
    RECONSTRUCTIONS,
    VariationalLoss,
    VariationalPair,
    emulators_of,
)
from ensjax.nn import GridNet
from ensjax.ops.side_by_side import side_by_side
from ensjax.train import Stage, kernel_crps, train_curriculum

SITES, STATES = 5, 2


class Forecaster(nnx.Module):
    """The newest state and a linear function of both, place by place."""

    def __init__(self, rngs):
        self.linear = nnx.Linear(STATES, 1, rngs=rngs)

    def __call__(self, noise, state, earlier):
        assert noise is None
        return state + 0.1 * self.linear(jnp.concatenate([earlier, state], axis=-1))


def net(rngs):
    return GridNet(2, 2 * STATES, width=4, depth=0, kernel_size=(3,), rngs=rngs)


def make_pair(rngs):
    prior = v.GaussianPerturbation(net(rngs), STATES)
    emulator = v.VariationalForecaster(
        prior, Forecaster(rngs), num_channels=1, step_scale=0.5
    )
    return VariationalPair(emulator, v.GaussianPerturbation(net(rngs), STATES))


def parted(pair, seed=0):
    """The pair with all weights moved, so that no layer is zeros."""
    params = nnx.state(pair, nnx.Param)
    leaves, treedef = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    moved = [
        x + 0.3 * jax.random.normal(k, x.shape)
        for x, k in zip(leaves, keys, strict=True)
    ]
    nnx.update(pair, jax.tree.unflatten(treedef, moved))
    return pair


@pytest.fixture(scope="module")
def pair():
    return parted(make_pair(nnx.Rngs(0)))


def windows(count=16, time=4, seed=0):
    shape = (count, time, SITES, 1)
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def mesh(**sizes):
    count = int(np.prod(list(sizes.values()))) if sizes else 1
    return make_mesh(**{"member": 1, **sizes}, devices=jax.devices()[:count])


LOSS = VariationalLoss(4, kl_weight=0.1)


@pytest.fixture(scope="module")
def value():
    """`value(loss, pair, windows, hyper)`: the loss, its metrics and the gradient."""

    @nnx.jit(static_argnums=0)
    def call(loss, pair, windows, hyper=None):
        def of(pair):
            return loss(pair, windows, jax.random.key(3), hyper=hyper)

        (total, metrics), slopes = nnx.value_and_grad(of, has_aux=True)(pair)
        return total, metrics, slopes

    return call


# The divergence.


def test_kl_by_hand():
    zero, one = jnp.zeros(1), jnp.ones(1)
    standard = v.GaussianField(zero, zero)
    for first, second, expected in (
        (standard, standard, 0.0),
        (v.GaussianField(one, zero), standard, 0.5),
        (standard, v.GaussianField(one, jnp.log(4.0)[None]), np.log(2) - 0.25),
        (v.GaussianField(zero, jnp.log(4.0)[None]), standard, 1.5 - np.log(2)),
    ):
        found = v.gaussian_kl(first, second)
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)


def test_kl_is_the_integral_of_its_definition():
    rng = np.random.default_rng(0)
    for m1, m2, l1, l2 in rng.normal(size=(4, 4)):
        first, second = (stats.norm(m, np.exp(s / 2)) for m, s in ((m1, l1), (m2, l2)))
        expected, _ = integrate.quad(
            lambda x, p=first, q=second: p.pdf(x) * (p.logpdf(x) - q.logpdf(x)), -30, 30
        )
        pair = [
            v.GaussianField(*(jnp.float32(x)[None] for x in row))
            for row in ((m1, l1), (m2, l2))
        ]
        np.testing.assert_allclose(v.gaussian_kl(*pair)[0], expected, rtol=1e-5)


def test_kl_of_shapes_that_differ_is_refused():
    with pytest.raises(ValueError, match="same grid and channels"):
        v.gaussian_kl(
            v.GaussianField(jnp.zeros(2), jnp.zeros(2)),
            v.GaussianField(jnp.zeros(3), jnp.zeros(3)),
        )


# The emulator.


def test_a_new_perturbation_is_small_white_noise():
    field = v.GaussianPerturbation(net(nnx.Rngs(0)), STATES)(jnp.ones((SITES, 2)))
    np.testing.assert_array_equal(field.mean, np.zeros((SITES, STATES)))
    np.testing.assert_array_equal(field.log_variance, np.full((SITES, STATES), -4.0))
    np.testing.assert_allclose(field.sigma, np.exp(-2), rtol=1e-6)


@pytest.mark.parametrize("given, limit", [(100.0, 2.0), (-100.0, -12.0)])
def test_log_variances_stay_within_their_limits(given, limit):
    def network(x):
        return jnp.full((*x.shape[:-1], 4), given)

    field = v.GaussianPerturbation(network, 2)(jnp.ones((3, 2)))
    np.testing.assert_array_equal(field.log_variance, np.full((3, 2), limit))


def test_a_step_by_hand():
    """The forecaster starts from moved states; the next step from those that were."""

    def forecaster(noise, state, earlier):
        return 2 * state + earlier

    prior = v.ConstantPerturbation(2, mean=jnp.array([1.0, 2.0]), log_variance=0.0)
    emulator = v.VariationalForecaster(
        prior, forecaster, num_channels=1, step_scale=0.5
    )
    states = jnp.array([[10.0, 20.0]])
    # Moved by 0.5 (1, 2), and with noise (2, -4) by another (1, -2).
    np.testing.assert_allclose(emulator(None, states), [[20.0, 2 * 21 + 10.5]])
    noise = jnp.array([[2.0, -4.0]])
    np.testing.assert_allclose(emulator(noise, states), [[20.0, 2 * 19 + 11.5]])


def test_states_lie_side_by_side():
    history = jnp.arange(12.0).reshape(2, 3, 2)  # [time, site, channel]
    found = side_by_side(history)
    np.testing.assert_array_equal(found[1], [2, 3, 8, 9])


def test_a_member_is_the_same_whichever_others_are_made(pair):
    start = side_by_side(jnp.asarray(windows()[0, :2]))
    key = jax.random.key(1)

    @jax.jit
    def forecasts(ids):
        return jax.vmap(
            lambda i: v.sample_forecast(pair.emulator, key, i, start, num_steps=3)
        )(ids)

    many, few = forecasts(jnp.arange(4)), forecasts(jnp.array([2, 0]))
    np.testing.assert_allclose(many[jnp.array([2, 0])], few, atol=1e-6)
    noise = jnp.stack(
        [
            v.step_noise(jax.random.fold_in(key, member), step, (2,))
            for member in range(3)
            for step in range(3)
        ]
    )
    assert len(np.unique(np.asarray(noise))) == noise.size


def test_a_constant_perturbation_is_no_function_of_the_state_and_is_not_trained():
    prior = v.ConstantPerturbation(2, log_variance=jnp.array([0.0, -2.0]))
    field = prior(jnp.ones((3, 2)))
    np.testing.assert_array_equal(field.log_variance, [[0.0, -2.0]] * 3)
    assert not jax.tree.leaves(nnx.state(prior, nnx.Param))
    own = v.ConstantSpread(v.ConstantPerturbation(2, mean=3.0), log_variance=-1.0)
    for found, value in zip(own(jnp.ones((3, 2))), (3.0, -1.0), strict=True):
        np.testing.assert_array_equal(found, np.full((3, 2), value))


# The posterior, which a forecast cannot see.


def test_a_forecast_cannot_be_made_of_what_was_trained(pair):
    start = jnp.zeros((SITES, 2))
    with pytest.raises(TypeError, match="VariationalForecaster alone"):
        v.sample_forecast(pair, jax.random.key(0), 0, start, num_steps=1)
    with pytest.raises(TypeError, match="ensemble of VariationalPair"):
        emulators_of(Ensemble.init(net, num_members=1))
    with pytest.raises(TypeError, match="trains a VariationalPair"):
        LOSS(pair.emulator, jnp.asarray(windows(time=3)), jax.random.key(0))


@pytest.fixture(scope="module")
def trained():
    """Two networks after three steps on one device, by number of members and steps."""
    found = {}

    def call(loss, mesh, hyper=None, ids=(0, 1), make=make_pair):
        key = (loss, mesh, str(hyper), ids, make)
        if key not in found:
            ensemble = Ensemble.init(make, member_ids=ids, mesh=mesh)
            found[key] = fit(
                ensemble,
                windows(time=STATES + loss.num_steps),
                loss=loss,
                make_tx=lambda hyper: optax.sgd(0.5),
                hyper={"unused": 1.0} if hyper is None else hyper,
                steps=3,
                batch_size=8,
                mesh=mesh,
                progress=False,
            )
        return found[key]

    return call


def rows(ensemble):
    return np.concatenate(
        [
            np.asarray(x).reshape(x.shape[0], -1)
            for x in jax.tree.leaves(ensemble.params)
        ],
        axis=1,
    )


def test_emulators_hold_nothing_of_the_posterior(trained):
    ensemble, _ = trained(LOSS, mesh())
    emulators = emulators_of(ensemble)
    own = nnx.state(make_pair(nnx.Rngs(0)).emulator, nnx.Param)
    assert rows(emulators).shape[1] == sum(x.size for x in jax.tree.leaves(own))
    names = [jax.tree_util.keystr(p) for p, _ in jax.tree.leaves_with_path(emulators)]
    assert not [name for name in names if "posterior" in name]
    assert isinstance(emulators[0], v.VariationalForecaster)
    assert not hasattr(emulators[0], "posterior")
    # Whatever the posterior is, the forecasts have the same bits.
    spoiled = dataclasses.replace(
        ensemble,
        state={
            **ensemble.state,
            "params": nnx.State(
                {
                    **ensemble.params,
                    "posterior": jax.tree.map(
                        lambda x: jnp.full_like(x, jnp.nan),
                        ensemble.params["posterior"],
                    ),
                }
            ),
        },
    )
    assert np.isnan(rows(spoiled)).any()
    for a, b in zip(rows(emulators_of(spoiled)), rows(emulators), strict=True):
        np.testing.assert_array_equal(a, b)


def test_training_draws_the_members_of_a_forecast(pair, value):
    """And scores them: the metric is the CRPS of what `sample_forecast` makes."""
    loss = VariationalLoss(4, num_steps=2, kl_weight=0.0)
    window = jnp.asarray(windows(1)[0])
    _, metrics, _ = value(loss, pair, window[None])
    key = jax.random.fold_in(jax.random.key(3), 0)  # of example 0
    members = jnp.stack(
        [
            v.sample_forecast(
                pair.emulator, key, i, side_by_side(window[:2]), num_steps=2
            )
            for i in (2, 0, 3, 1)  # in any order
        ]
    )
    scores = kernel_crps(members, window[2:], estimator="fair").mean(axis=(1, 2))
    for step in (1, 2):
        assert float(metrics[f"score_{step}"]) == pytest.approx(
            float(scores[step - 1]), rel=1e-5
        )
        spread = members[:, step - 1].var(axis=0, ddof=1).mean()
        skill = jnp.square(members[:, step - 1].mean(axis=0) - window[1 + step]).mean()
        assert float(metrics[f"ssr_{step}"]) == pytest.approx(
            float(jnp.sqrt(1.25 * spread / skill)), rel=1e-4
        )


# The loss.


def test_the_loss_is_its_parts(pair, value):
    batch = jnp.asarray(windows(time=3))
    total, metrics, _ = value(LOSS, pair, batch)
    assert float(metrics["kl_1"]) > 0.01
    parts = metrics["score_1"] + 0.1 * metrics["kl_1"]
    assert float(total) == pytest.approx(float(parts), rel=1e-6)
    # The divergence is that of the two networks' own answers.
    states = jax.vmap(side_by_side)(batch[:, :2])
    prior = jax.vmap(pair.emulator.prior)(states)
    posterior = jax.vmap(pair.posterior)(jax.vmap(side_by_side)(batch[:, 1:]))
    for word, both in (
        ("prior_posterior", (prior, posterior)),
        ("posterior_prior", (posterior, prior)),
    ):
        loss = dataclasses.replace(LOSS, kl_direction=word)
        found = value(loss, pair, batch)[1]["kl_1"]
        expected = v.gaussian_kl(*both).mean()
        assert float(found) == pytest.approx(float(expected), rel=1e-5)
    assert float(metrics["sigma_1"]) == pytest.approx(
        float(prior.sigma.mean()), rel=1e-5
    )


def test_without_weight_the_divergence_changes_nothing(pair, value):
    """Lambda 0 is the CRPS alone, and the posterior is not pulled at all."""
    batch = jnp.asarray(windows(time=3))
    total, metrics, slopes = value(
        dataclasses.replace(LOSS, kl_weight=0.0), pair, batch
    )
    alone, _, slopes_alone = value(LOSS, VariationalPair(pair.emulator), batch)
    assert float(total) == pytest.approx(float(alone), rel=1e-6)
    assert float(total) == pytest.approx(float(metrics["score_1"]), rel=1e-6)
    for a, b in zip(
        jax.tree.leaves(slopes["emulator"]),
        jax.tree.leaves(slopes_alone["emulator"]),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, atol=1e-6)
    assert not any(np.any(x) for x in jax.tree.leaves(slopes["posterior"]))


@pytest.mark.parametrize("word", RECONSTRUCTIONS)
def test_reconstruction_and_weight_may_be_the_networks_own_numbers(pair, value, word):
    batch = jnp.asarray(windows(time=3))
    own = {"kl_weight": 0.3, "reconstruction": RECONSTRUCTIONS.index(word)}
    loss = dataclasses.replace(LOSS, kl_weight=0.3, reconstruction=word)
    key = jax.random.key(3)
    found, metrics = jax.jit(lambda own: LOSS(pair, batch, key, hyper=own))(own)
    expected, others = jax.jit(lambda: loss(pair, batch, key))()
    assert float(found) == pytest.approx(float(expected), rel=1e-6)
    assert float(metrics["score_1"]) == pytest.approx(
        float(others["score_1"]), rel=1e-6
    )


def test_steps_have_weights_and_may_be_computed_again(pair, value):
    batch = jnp.asarray(windows())
    loss = dataclasses.replace(LOSS, num_steps=2, step_weights=(1.0, 0.5))
    total, metrics, slopes = value(loss, pair, batch)
    assert {"kl_2", "sigma_2", "ssr_2", "score_2"} < set(metrics)
    assert float(metrics["sigma_1"]) != float(metrics["sigma_2"])
    parts = [metrics[f"score_{i}"] + 0.1 * metrics[f"kl_{i}"] for i in (1, 2)]
    mean = (parts[0] + 0.5 * parts[1]) / 1.5
    assert float(total) == pytest.approx(float(mean), rel=1e-6)
    again = value(dataclasses.replace(loss, remat=True), pair, batch)
    for a, b in zip(jax.tree.leaves(again[2]), jax.tree.leaves(slopes), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_members_that_know_the_truth_are_drawn_from_the_posterior(pair, value):
    """With a prior and a posterior that are equal, it makes no difference."""
    batch = jnp.asarray(windows(time=3))
    loss = dataclasses.replace(LOSS, draw_from="posterior")
    same = VariationalPair(*(make_pair(nnx.Rngs(0)).emulator, pair.posterior))
    same.posterior = make_pair(nnx.Rngs(0)).posterior  # both heads are zeros
    np.testing.assert_allclose(
        value(loss, same, batch)[0], value(LOSS, same, batch)[0], rtol=1e-6
    )
    assert abs(value(loss, pair, batch)[0] - value(LOSS, pair, batch)[0]) > 1e-3


def test_truths_that_are_missing_have_no_weight_and_no_gradient(pair, value):
    batch = jnp.asarray(windows(time=3))
    missing = batch.at[:, 2, 1].set(jnp.nan)
    total, _, slopes = value(LOSS, pair, missing)
    assert np.isfinite(total)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(slopes))
    # Channels that have no truth: here of two that are the same, one.
    loss = VariationalLoss(4, num_scored=1)
    twice = jnp.concatenate([batch[:, 2:], batch[:, 2:] + 5.0], axis=-1)
    np.testing.assert_array_equal(
        jnp.isnan(loss._known(twice)), np.isnan(twice) | (np.arange(2) == 1)
    )
    with pytest.raises(ValueError, match="at most the 1 channels"):
        dataclasses.replace(loss, num_scored=2)(pair, batch, jax.random.key(0))
    nothing = batch.at[:, 2].set(jnp.nan)
    _, metrics, slopes = value(dataclasses.replace(LOSS, kl_weight=0.0), pair, nothing)
    assert float(metrics["score_1"]) == 0
    assert not any(np.any(x) for x in jax.tree.leaves(slopes))


def test_elements_have_weights_in_the_score_and_in_the_kl(value):
    """Constant Gaussians and the identity: the loss in closed form.

    One member without noise: score |x_i - y_i|, KL of N(m_i, 1) to N(0, 1) m_i^2 / 2.
    """
    weights = tuple((float(w),) for w in (0.0, 1.0, 2.0, 3.0, 4.0))
    u = np.arange(5.0)

    def still(noise, state, earlier):
        return state

    prior = v.ConstantPerturbation(2, mean=[0.0, 0.5], log_variance=-60.0)
    emulator = v.VariationalForecaster(prior, still, num_channels=1, step_scale=2.0)
    batch = jnp.asarray(windows(3, time=3))
    loss = VariationalLoss(
        1, estimator="standard", kl_weight=0.5, element_weights=weights
    )
    total, metrics = loss(VariationalPair(emulator), batch, jax.random.key(0))
    error = np.abs(np.asarray(batch[:, 1] + 1.0 - batch[:, 2])[..., 0])
    np.testing.assert_allclose(total, np.mean(error @ u / u.sum()), rtol=1e-5)

    # With a posterior, of which the KL depends on the place.
    class Posterior(nnx.Module):
        num_channels = 2

        def __call__(self, x):
            ramp = jnp.broadcast_to(jnp.arange(5.0)[:, None], (5, 2))
            return v.GaussianField(ramp, jnp.full((5, 2), -60.0))

    pair = VariationalPair(
        v.VariationalForecaster(
            v.ConstantPerturbation(2, log_variance=-60.0), still, num_channels=1
        ),
        Posterior(),
    )
    _, metrics = loss(pair, batch, jax.random.key(0))
    kl = 0.5 * np.exp(60.0) * np.sum(u * u**2) / u.sum()
    np.testing.assert_allclose(metrics["kl_1"], kl, rtol=1e-4)
    # Equal weights are none, whatever their size; gaps keep the others' weights.
    even = dataclasses.replace(LOSS, element_weights=((3.0,),))
    own = parted(make_pair(nnx.Rngs(0)))
    np.testing.assert_allclose(
        value(even, own, batch)[0], value(LOSS, own, batch)[0], rtol=1e-5
    )
    gap = batch.at[:, 2, 4].set(jnp.nan)
    found = loss(VariationalPair(emulator), gap, jax.random.key(0))[0]
    expected = np.mean(error[:, :4] @ u[:4] / u[:4].sum())
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    with pytest.raises(ValueError, match=r"element_weights \(2,\) do not broadcast"):
        dataclasses.replace(loss, element_weights=(1.0, 2.0)).check(windows())


def test_states_that_are_missing_are_filled_and_not_trained(pair, value):
    """A start that is NaN at one place, now or earlier: the others train as ever."""
    whole = windows(4, time=3)
    broken = whole.copy()
    broken[:, 0, 2], broken[:, 1, 3] = np.nan, np.nan
    total, metrics, slopes = value(LOSS, pair, broken)
    assert np.isfinite(total) and all(np.isfinite(x) for x in metrics.values())
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(slopes))
    # What the truth says where the start is missing is not looked at.
    other = broken.copy()
    other[:, 2:, [2, 3]] = 100.0
    assert value(LOSS, pair, other)[0] == pytest.approx(float(total))
    filled = np.nan_to_num(broken)
    filled[:, :2, [2, 3]] = 0.0
    filled[:, 2:, [2, 3]] = np.nan
    alone = dataclasses.replace(LOSS, kl_weight=0.0)  # which leaves them out as well
    total = float(value(alone, pair, broken)[0])
    assert value(alone, pair, filled)[0] == pytest.approx(total, rel=1e-5)
    assert metrics["kl_1"] != value(alone, pair, filled)[1]["kl_1"]


def test_windows_are_checked_before_any_stage_is_trained(pair):
    ensemble = Ensemble.init(make_pair, num_members=1)
    LOSS.check(windows(), ensemble)
    longer = dataclasses.replace(LOSS, num_steps=3)
    longer.check(windows())  # as far as it can know
    with pytest.raises(ValueError, match="2 states and 3 truths"):
        longer.check(windows(), ensemble)
    stages = [Stage(1, 1e-3, LOSS), Stage(1, 1e-3, longer)]
    with pytest.raises(ValueError, match="stage 1: windows must be"):
        train_curriculum(ensemble, windows(), stages)


def test_of_longer_windows_a_case_begins_at_a_time_drawn_anew(pair, value):
    """Here all times are the same state, but for one that a case may reach or not."""
    batch = np.tile(windows(64, time=1), (1, 4, 1, 1))
    long, short = (value(LOSS, pair, jnp.asarray(x))[0] for x in (batch, batch[:, :3]))
    assert float(long) == pytest.approx(float(short), rel=1e-6)
    batch[:, 3] += 1e3
    found = float(value(LOSS, pair, jnp.asarray(batch))[1]["score_1"]) / 1e3
    assert 0.3 < found < 0.7  # about half of the cases; 0.19 is three deviations


# Training on several devices, and as a stack.


@pytest.mark.parametrize(
    "sizes", [dict(member=1, data=1, model=8), dict(member=2, data=2, model=2)]
)
def test_eight_devices_train_as_one(trained, sizes):
    """With SGD a wrong factor shows; two steps, so that states are members' own."""
    loss = VariationalLoss(8, num_steps=2, kl_weight=0.1, axis="model")
    alone, log = trained(dataclasses.replace(loss, axis=None), mesh())
    found, log_found = trained(loss, mesh(**sizes))
    np.testing.assert_allclose(rows(found), rows(alone), atol=1e-5)
    for name in ("loss", "kl_2", "ssr_2", "sigma_1"):
        np.testing.assert_allclose(
            log_found.metrics[name], log.metrics[name], rtol=2e-4, err_msg=name
        )


def test_a_sweep_is_one_stack_and_each_network_as_alone(trained):
    sweep = {
        "kl_weight": (0.0, 0.5),
        "reconstruction": tuple(RECONSTRUCTIONS.index(x) for x in ("crps", "l1")),
    }
    both, _ = trained(LOSS, mesh(), sweep)
    loss = dataclasses.replace(LOSS, kl_weight=0.5, reconstruction="l1")
    alone, _ = trained(loss, mesh(), None, (1,))
    np.testing.assert_allclose(rows(both)[1], rows(alone)[0], atol=1e-6)


class TwoNumbers(nnx.Module):
    """Mean and log variance, the same everywhere."""

    def __init__(self, rngs):
        self.both = nnx.Param(jnp.zeros(2))

    def __call__(self, x):
        return jnp.broadcast_to(self.both[...][None], (*x.shape[:-1], 2))


def make_scalar(rngs):
    """A forecast is the perturbation: members are N(mu, sigma^2)."""
    prior = v.GaussianPerturbation(TwoNumbers(rngs), 1, offset=-1.0)

    def persistence(noise, state, earlier):
        return state

    emulator = v.VariationalForecaster(prior, persistence, num_channels=1, num_states=1)
    return VariationalPair(emulator)


def detached(members, truth):
    """Each device's own members against copies of the others without derivatives."""
    count = len(members)
    error = jnp.mean(jnp.abs(members - truth[None]))
    others = jax.lax.stop_gradient(members)
    distance = jnp.mean(jnp.abs(members[:, None] - others[None]), axis=(2, 3, 4))
    # Of a member from itself, where the derivative of |0| is 1.
    distance = jnp.where(jnp.eye(count, dtype=bool), 0.0, distance)
    return error - distance.sum() / (2 * count * (count - 1))


@dataclasses.dataclass(frozen=True)
class DetachedLoss:
    """`VariationalLoss` as it would be with others' members without derivatives."""

    num_members: int = 8

    def __call__(self, pair, batch, key):
        noise = jax.random.normal(key, (self.num_members, *batch[:, 1].shape))
        field = pair.emulator.prior(batch[:, 0])
        members = batch[:, 0][None] + jax.vmap(field.at)(noise)
        return detached(members, batch[:, 1])


def test_a_detached_pair_has_half_its_gradient():
    members = jax.random.normal(jax.random.key(0), (4, 6, 1, 1))
    truth = jnp.zeros((6, 1, 1))

    def whole(members):
        return kernel_crps(members, truth, estimator="fair").mean()

    error = jax.grad(lambda x: jnp.abs(x - truth[None]).mean())(members)
    pair = jax.grad(whole)(members) - error
    found = jax.grad(lambda x: detached(x, truth))(members) - error
    np.testing.assert_allclose(found, pair / 2, atol=1e-7)


def test_the_best_spread_is_that_of_the_truth_on_eight_devices_too():
    """A detached pair asks for 0.378 of it (sqrt(1 / 7)), an absolute error for none.

    Members of truths N(0, 1): the expected score sqrt(1 + s^2) - c s / sqrt(2) is least
    at s = 1 for c = 1 and at s = sqrt(1 / 7) for c = 1 / 2.
    """
    data = np.random.default_rng(0).normal(size=(2048, 2, 2, 1)).astype(np.float32)
    data[:, 0] = 0

    def sigma(loss, sizes, hyper):
        on = mesh(**sizes)
        trained, _ = fit(
            Ensemble.init(make_scalar, num_members=2, mesh=on),
            data,
            loss=loss,
            make_tx=lambda hyper: optax.adam(optax.cosine_decay_schedule(0.1, 150)),
            hyper=hyper,
            steps=150,
            batch_size=256,
            mesh=on,
            progress=False,
        )
        both = np.asarray(jax.tree.leaves(trained.params)[0])
        return np.exp((both[:, 1] - 1.0) / 2)

    own = {"reconstruction": tuple(RECONSTRUCTIONS.index(x) for x in ("crps", "l1"))}
    loss = VariationalLoss(8, axis="model")
    crps, l1 = sigma(loss, dict(data=1, model=8), own)
    half = sigma(DetachedLoss(), {}, {"unused": 1.0})
    assert crps == pytest.approx(1.0, abs=0.04)
    np.testing.assert_allclose(half, np.sqrt(1 / 7), atol=0.04)
    assert l1 < 0.2  # and falling


# Bad input.


def test_words_and_numbers_that_do_not_fit_are_refused():
    for options, message in (
        (dict(reconstruction="l2"), "reconstruction must be one of crps, l1, mse"),
        (dict(kl_direction="both"), "kl_direction must be one of"),
        (dict(draw_from="truth"), "draw_from must be one of"),
        (dict(num_scored=0), "num_scored must be at least 1"),
        (dict(num_steps=0), "num_steps must be at least 1"),
        (dict(step_weights=(1.0, 1.0)), "one for each of 1 steps; got 2"),
        (dict(step_weights=(0.0,)), "nor all 0"),
        (dict(kl_weight=-1.0), "kl_weight must not be negative"),
        (dict(num_members=1), "at least two members; got 1"),
        (dict(num_members=2.5), "num_members must be .* a whole number; got 2.5"),
        (dict(num_scored=1.5), "num_scored must be .* a whole number; got 1.5"),
        (dict(axis="data"), 'axis must be None or "model"'),
    ):
        with pytest.raises(ValueError, match=message):
            VariationalLoss(**options)


def test_models_and_windows_that_do_not_fit_are_refused(pair):
    key = jax.random.key(0)
    with pytest.raises(ValueError, match=r"windows must be \[batch, 3 or more"):
        LOSS(pair, jnp.asarray(windows(time=2)), key)
    with pytest.raises(ValueError, match="needs a posterior; it is None"):
        dataclasses.replace(LOSS, draw_from="posterior")(
            VariationalPair(pair.emulator), jnp.asarray(windows(time=3)), key
        )
    with pytest.raises(ValueError, match=r"states must be \[\*space, 2\]"):
        pair.emulator(None, jnp.zeros((SITES, 3)))
    with pytest.raises(ValueError, match=r"noise must be \(5, 2\)"):
        pair.emulator(jnp.zeros((SITES, 1)), jnp.zeros((SITES, 2)))
    prior = pair.emulator.prior
    for options, message in (
        (dict(num_channels=2), "has 4; that of the prior has 2"),
        (dict(num_channels=1, num_states=0), "num_states must be at least 1"),
        (dict(num_channels=1, step_scale=(1.0, 2.0)), "one for each of the 1"),
        (dict(num_channels=1, step_scale=0.0), "one positive number"),
    ):
        with pytest.raises(ValueError, match=message):
            v.VariationalForecaster(prior, pair.emulator.forecaster, **options)
    with pytest.raises(ValueError, match="must lie between its limits"):
        v.GaussianPerturbation(net(nnx.Rngs(0)), 2, offset=-20.0)
    with pytest.raises(ValueError, match=r"must return \(5, 6\)"):
        v.GaussianPerturbation(net(nnx.Rngs(0)), 3)(jnp.zeros((SITES, 2)))
    with pytest.raises(ValueError, match="log_variance must be one number or"):
        v.ConstantPerturbation(2, log_variance=jnp.zeros(3))
