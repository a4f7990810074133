"""States with gaps: forecast as they were trained, or refused before any work."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ensjax import Ensemble, make_mesh, verification
from ensjax.emulate import variational as v
from ensjax.emulate.gaps import check_no_gaps
from ensjax.emulate.perturb import (
    BredVectors,
    GlobalNorm,
    HemisphericNorm,
    NoPerturbation,
    Start,
    rescale,
)
from ensjax.emulate.product import (
    MemberForecast,
    MemberId,
    fold_product,
    fold_program,
    identity_key,
    product_ids,
    run_product,
    states_by_lead,
)
from ensjax.emulate.rollout import NetworkStep, Rollout, SystemStep
from ensjax.emulate.variational_training import VariationalLoss, VariationalPair
from ensjax.ops.side_by_side import missing_places
from ensjax.train import PointError, RolloutLoss, WhiteNoise

SITES, LEADS = 6, (1, 2, 4)
GAP = (2, 1)  # a site and a channel
FILL = 0.25


class Neighbours(nnx.Module):
    """The state, and a layer of it, its neighbours and noise: gaps spread if let."""

    def __init__(self, rngs, num_noise_channels=2):
        self.num_noise_channels = num_noise_channels
        self.linear = nnx.Linear(6 + num_noise_channels, 2, rngs=rngs)

    def __call__(self, noise, state):
        beside = [jnp.roll(state, shift, axis=0) for shift in (-1, 1)]
        known = [] if noise is None else [noise]
        seen = jnp.concatenate([state, *beside, *known], axis=-1)
        return state + 0.3 * jnp.tanh(self.linear(seen))


def plain(rngs):
    return Neighbours(rngs, 0)


def start_states(count=2):
    states = np.random.default_rng(0).normal(size=(count, SITES, 2))
    states = states.astype(np.float32)
    states[0][GAP] = np.nan
    return states


def ensemble(make=Neighbours):
    mesh = make_mesh(member=1, devices=jax.devices()[:1])
    return Ensemble.init(make, num_members=2, seed=3, mesh=mesh)


def product(step, starts, members=None, leads=LEADS, perturb=None, **more):
    networks = ensemble(plain if step.noise is None else Neighbours)
    step = dataclasses.replace(step, graph=networks.graph)
    return run_product(
        MemberForecast(Rollout(step), perturb or NoPerturbation()),
        product_ids(2, 0, [0]) if members is None else members,
        models=networks.state,
        starts=starts,
        lead_steps=leads,
        block=1,
        mesh=make_mesh(member=1, devices=jax.devices()[:1]),
        **more,
    )


@pytest.mark.parametrize("noise", [None, WhiteNoise(2)], ids=["plain", "noise"])
def test_a_forecast_from_a_start_with_gaps_is_that_of_training(noise):
    states = start_states()
    found = product(NetworkStep(None, noise, fill=FILL), Start(states))
    assert np.isfinite(found).all()
    networks = ensemble(plain if noise is None else Neighbours)
    loss = RolloutLoss(4, PointError(), fill=FILL)
    for member in range(2):
        own = None
        if noise is not None:
            key = identity_key(0, MemberId(member, 0, 0, 0))
            key = jax.random.fold_in(jax.random.fold_in(key, 1), 1)
            own = jnp.stack(
                [noise(jax.random.fold_in(key, i), (SITES, 2)) for i in range(4)]
            )
        network = networks[member]
        trained = loss.forecast(network)(own, states[0])
        expected = np.asarray(trained)[np.array(LEADS) - 1]
        np.testing.assert_allclose(found[member], expected, rtol=2e-5, atol=1e-6)
        # What the network says at the gap is not what it is given next.
        kept = loss.forecast(network)(own, jnp.nan_to_num(states[0], nan=FILL))
        assert np.abs(np.asarray(kept)[2:] - np.asarray(trained)[2:]).max() > 1e-3


def test_a_fill_changes_nothing_where_nothing_is_missing():
    states = Start(np.nan_to_num(start_states()))
    for noise in (None, WhiteNoise(2)):
        found = [
            product(NetworkStep(None, noise, fill=fill), states)
            for fill in (None, FILL)
        ]
        np.testing.assert_allclose(*found, rtol=1e-6, atol=1e-6)


def test_the_start_itself_is_seen_as_it_is():
    found = product(NetworkStep(None, None, FILL), Start(start_states()), leads=(0, 1))
    np.testing.assert_array_equal(found[0, 0], start_states()[0])
    assert np.isfinite(found[:, 1]).all()


def test_a_start_with_gaps_and_no_fill_is_refused_before_any_work():
    states = start_states(3)
    states[2, 4, 0] = np.nan
    step = NetworkStep(None)
    words = (
        r"starts\.state of start 0 holds NaN at 1 of 12 .* in variable 1 at \(2, 1\)"
    )
    with pytest.raises(ValueError, match=words + ".* Give the step a fill"):
        product(step, Start(states))
    # Ids, not rows; and of who runs alone.
    ids = dict(start_ids=[70, 80, 90])
    with pytest.raises(ValueError, match=r"of start 90 .* variable 0 at \(4, 0\)"):
        product(step, Start(states), product_ids(2, 0, [80, 90]), **ids)
    assert np.isfinite(
        product(step, Start(jnp.asarray(states)), product_ids(2, 0, [80]), **ids)
    ).all()

    def decay(rate, key, state):
        return rate * state

    def folded(starts, fold=fold_product):
        metrics = (verification.spread_skill(),)
        empty = states_by_lead(
            lambda _: verification.member_states(
                metrics, jnp.zeros((SITES, 2)), max_members=4, rank_error=0
            ),
            1,
        )
        return fold(
            MemberForecast(Rollout(decay)),
            MemberId(0, 0, 0, 0),
            empty,
            models=jnp.ones(1),
            starts=starts,
            lead_steps=(1,),
            block=1,
        )

    with pytest.raises(ValueError, match="start 0 holds NaN"):
        folded(Start(states))
    # A step that says so may begin there; shapes alone are not looked at.
    shape = jax.ShapeDtypeStruct(states.shape, states.dtype)
    folded(Start(shape), fold_program)
    decay.takes_missing = True
    folded(Start(states))


def test_who_has_no_fill_is_told_of_a_history_with_gaps():
    """Breeding reads the history; nothing else does."""
    history = np.zeros((1, 3, SITES, 2), np.float32)
    history[0, 0][GAP] = np.nan
    starts = Start(history[:, -1], history)
    assert np.isfinite(product(NetworkStep(None), starts)).all()
    networks = ensemble(plain)
    bred = BredVectors(jnp.ones(2), NetworkStep(networks.graph), num_cycles=2)
    words = r"starts\.history of start 0 .* \(0, 2, 1\).* Give breeding a fill"
    with pytest.raises(ValueError, match=words):
        product(NetworkStep(None, fill=FILL), starts, perturb=bred)


def test_nothing_is_bred_in_a_gap_and_the_norm_is_of_the_rest():
    networks = ensemble(plain)
    history = np.repeat(start_states(1), 3, axis=0) + np.arange(3)[:, None, None]
    history = history.astype(np.float32)
    amplitude = jnp.array([0.5, 2.0])
    step = NetworkStep(networks.graph, fill=FILL)
    bred = BredVectors(amplitude, step, num_cycles=2)
    model = jax.tree.map(lambda x: x[0], networks.state)
    delta = bred(model, jax.random.key(0), Start(history[-1], history))
    delta = np.asarray(delta)
    assert delta[GAP] == 0
    is_there = ~np.isnan(history[0])
    for channel in range(2):
        known = delta[is_there[:, channel], channel]
        np.testing.assert_allclose(
            np.sqrt(np.mean(known**2)), amplitude[channel], rtol=1e-5
        )
    members = product_ids(2, 1, [0])
    found = product(step, Start(history[None, -1], history[None]), members, (4,), bred)
    assert np.isfinite(found).all()
    assert np.abs(found[0] - found[1]).max() > 0.1, "signs part"


@pytest.mark.parametrize(
    "norm", [GlobalNorm((60.0, 0.0, -60.0)), HemisphericNorm((60.0, 0.0, -60.0))]
)
def test_norms_of_what_is_there(norm):
    """Of equal numbers a norm is that number, whatever is left out."""
    field = jnp.full((3, 4, 2), 7.0)
    is_there = jnp.ones((3, 4, 2), bool).at[0, 1:, 0].set(False)
    found = norm(jnp.where(is_there, field, 1e3), is_there)
    np.testing.assert_allclose(found, jnp.broadcast_to(7.0, found.shape), rtol=1e-6)
    np.testing.assert_array_equal(norm(field), norm(field, jnp.ones_like(is_there)))
    none = rescale(field, jnp.ones(2), norm, is_there=jnp.zeros_like(is_there))
    assert not np.any(none)


def forecaster(noise, state, earlier):
    return 0.7 * state - 0.4 * jnp.roll(earlier, 1, axis=0)


def variational_emulator():
    prior = v.ConstantPerturbation(2, log_variance=-1.0)
    return v.VariationalForecaster(prior, forecaster, num_channels=1)


def test_a_variational_forecast_fills_as_its_training_does():
    """Missing once is missing in both states, at every step."""
    states = np.random.default_rng(1).normal(size=(SITES, 2)).astype(np.float32)
    states[3, 0], states[4, 1] = np.nan, np.nan
    emulator, key = variational_emulator(), jax.random.key(5)
    found = v.sample_forecast(emulator, key, 1, states, num_steps=3, fill=FILL)
    loss = VariationalLoss(2, num_steps=3, fill=FILL, kl_weight=0.0)
    start = jnp.where(missing_places(jnp.isnan(states), 2), jnp.nan, states)
    truth = jnp.zeros((3, SITES, 1))
    own_key = jax.random.fold_in(key, 1)
    trained, *_ = loss._of_member(VariationalPair(emulator), own_key, start, truth)
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found, trained, rtol=1e-5, atol=1e-6)
    # `NetworkStep` has the same places; the noise is its own.
    silent = dataclasses.replace(loss, num_members=1, estimator="standard")
    none = v.ConstantPerturbation(2, log_variance=-200.0)
    still = v.VariationalForecaster(none, forecaster, num_channels=1)
    trained, *_ = silent._of_member(VariationalPair(still), own_key, start, truth)

    class Graph:
        def merge(self, model, train):
            return still

    seen = Rollout(NetworkStep(Graph(), fill=FILL), still.newest)(
        None, key, states, [1, 2, 3]
    )
    np.testing.assert_allclose(seen, trained, rtol=1e-5, atol=1e-6)


def test_a_variational_forecast_without_fill_is_refused():
    states = np.zeros((SITES, 2), np.float32)
    states[GAP] = np.nan
    emulator, key = variational_emulator(), jax.random.key(5)
    words = "states holds NaN at 1 of 12 .* fill=0.0"
    with pytest.raises(ValueError, match=words):
        v.sample_forecast(emulator, key, 0, states, num_steps=2)
    # States that a compiled function holds are known to it.
    known = jnp.asarray(states)
    with pytest.raises(ValueError, match=words):
        jax.jit(lambda key: v.sample_forecast(emulator, key, 0, known, num_steps=2))(
            key
        )


def test_places_of_states_side_by_side():
    is_missing = jnp.array([[True, False, False, False], [False] * 4])
    np.testing.assert_array_equal(missing_places(is_missing, 1), is_missing)
    expected = [[True, False, True, False], [False] * 4]
    np.testing.assert_array_equal(missing_places(is_missing, 2), expected)


def test_what_is_no_array_of_numbers_is_not_looked_at():
    tree = {"n": np.arange(3), "key": jax.random.split(jax.random.key(0), 3)}
    check_no_gaps("starts", tree, "nothing", rows=[0])
    jax.jit(lambda x: check_no_gaps("x", x, "nothing"))(jnp.full(2, jnp.nan))
    with pytest.raises(ValueError, match=r"starts\['x'\] of start 1 holds NaN"):
        check_no_gaps("starts", {"x": np.array([0, np.nan])}, "", rows=[0, 1])


def test_a_fill_is_finite():
    with pytest.raises(ValueError, match="fill must be finite"):
        NetworkStep(None, fill=float("nan"))
    assert not hasattr(SystemStep(None), "takes_missing")
