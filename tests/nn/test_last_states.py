"""Emulators that start from several states: alone, in training, and in a forecast."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import ensjax
from ensjax import nn
from ensjax.emulate import NetworkStep, Rollout
from ensjax.ops.side_by_side import side_by_side
from ensjax.train import NoiseCrps, PointError, RolloutLoss, WhiteNoise
from ensjax.train.identity import describe

SITES, CHANNELS, STEPS = 8, 2, 3
FILL = 0.3


def network(num_noise_channels=2, **options):
    """With weights away from zeros, so that everything that is seen counts."""
    made = nn.LastStates(
        nn.NoiseForecaster(
            CHANNELS,
            num_noise_channels=num_noise_channels,
            num_extra_channels=CHANNELS,
            width=6,
            depth=1,
            kernel_size=(3,),
            rngs=nnx.Rngs(0),
            **options,
        ),
        num_channels=CHANNELS,
    )
    params = nnx.state(made, nnx.Param)
    leaves, tree = jax.tree.flatten(params)
    rng = np.random.default_rng(1)
    moved = [x + 0.3 * rng.normal(size=x.shape).astype(np.float32) for x in leaves]
    nnx.update(made, jax.tree.unflatten(tree, moved))
    return made


def window(times=2 + STEPS):
    rng = np.random.default_rng(2)
    return rng.normal(size=(times, SITES, CHANNELS)).astype(np.float32)


NOISE = np.random.default_rng(3).normal(size=(STEPS, SITES, 2)).astype(np.float32)


def by_hand(made, states, noise, fill=None, is_missing=None):
    """The states after each step, the oldest of which falls out, by a loop."""
    before, now = states
    found = []
    for step in range(STEPS):
        if fill is not None:
            before, now = (jnp.where(is_missing, fill, x) for x in (before, now))
        told = {}
        if made.flags_first_step:
            told = {"is_first": step == 0}
        own = None if noise is None else noise[step]
        before, now = now, made.network(own, now, before, **told)
        found.append(now)
    return jnp.stack(found)


@pytest.mark.parametrize("flags", [False, True])
def test_a_forecast_of_training_is_a_loop_over_states(flags):
    made = network(flags_first_step=flags)
    states = window()[:2]
    expected = by_hand(made, states, NOISE)
    # The older state is looked at, and so is the flag.
    other = by_hand(made, [states[0] + 1, states[1]], NOISE)
    assert np.abs(np.asarray(other - expected)[0]).max() > 1e-2
    start = side_by_side(jnp.asarray(states))
    for remat in (True, False):
        loss = RolloutLoss(STEPS, PointError(), num_states=2, remat=remat)
        found = loss.forecast(made)(NOISE, start)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    one = RolloutLoss(1, PointError(), num_states=2).forecast(made)(NOISE[:1], start)
    np.testing.assert_allclose(one, expected[:1], rtol=1e-5, atol=1e-5)
    graph = ensjax.Ensemble.stack([made])
    step = NetworkStep(graph.graph, lambda key, shape: NOISE[0])
    model = jax.tree.map(lambda x: x[0], graph.state)
    seen = Rollout(step, made.newest)(model, jax.random.key(0), start, [1, STEPS])
    same = by_hand(made, states, [NOISE[0]] * STEPS)
    np.testing.assert_allclose(seen, same[np.array([0, 2])], rtol=1e-5, atol=1e-5)


def test_the_loss_is_of_the_targets_after_the_states():
    made = network(0)
    states = window()
    loss = RolloutLoss(STEPS, PointError("absolute"), num_states=2)
    found, metrics = loss(made, states[None], jax.random.key(0))
    error = np.abs(np.asarray(by_hand(made, states[:2], None)) - states[2:])
    np.testing.assert_allclose(found, error.mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["last_step"], error[-1].mean(), rtol=1e-5)
    # Longer windows begin anywhere: of equal times it does not matter where.
    still = np.repeat(window(1), 2 + STEPS + 4, axis=0)[None]
    values = [loss(made, still[:, :times], jax.random.key(0))[0] for times in (5, 7, 9)]
    np.testing.assert_allclose(values, values[0], rtol=1e-5)


def test_missing_once_is_missing_in_both_states():
    made = network(0)
    states = window()
    states[0, 3, 0] = np.nan  # of the older one alone
    loss = RolloutLoss(STEPS, PointError(), num_states=2, fill=FILL)

    def value(states):
        return nnx.value_and_grad(
            lambda m: loss(m, states[None], jax.random.key(0))[0]
        )(made)

    found, slopes = value(jnp.asarray(states))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(slopes))
    is_missing = np.zeros((SITES, CHANNELS), bool)
    is_missing[3, 0] = True
    after = by_hand(made, states[:2], None, FILL, is_missing)
    error = (np.asarray(after) - states[2:]) ** 2
    np.testing.assert_allclose(found, error[:, ~is_missing].mean(), rtol=1e-5)
    # In a forecast as well.
    graph = ensjax.Ensemble.stack([made])
    model = jax.tree.map(lambda x: x[0], graph.state)
    seen = Rollout(NetworkStep(graph.graph, fill=FILL), made.newest)(
        model, jax.random.key(0), side_by_side(jnp.asarray(states[:2])), [1, 2, 3]
    )
    np.testing.assert_allclose(seen, after, rtol=1e-5, atol=1e-5)


def test_members_of_noise_are_made_of_both_states():
    loss = RolloutLoss(2, NoiseCrps(2, noise=WhiteNoise(2)), num_states=2)
    value, _ = loss(network(), window(4)[None], jax.random.key(0))
    moved = window(4)
    moved[0] += 1.0
    other, _ = loss(network(), moved[None], jax.random.key(0))
    assert np.isfinite(value) and abs(float(other - value)) > 1e-3


def test_what_does_not_fit_is_told():
    made, loss = network(), RolloutLoss(2, NoiseCrps(2, WhiteNoise(2)), num_states=2)
    with pytest.raises(ValueError, match="2 steps from 2 states needs windows of 4"):
        loss.check(window(3)[None])
    with pytest.raises(ValueError, match="starts from 2 states; num_states .* is 1"):
        RolloutLoss(1, loss.score)(made, window(4)[None], jax.random.key(0))
    with pytest.raises(ValueError, match="num_states must be at least 1"):
        RolloutLoss(1, loss.score, num_states=0)
    with pytest.raises(ValueError, match="num_states must be at least 2"):
        nn.LastStates(made.network, num_channels=2, num_states=1)
    with pytest.raises(ValueError, match=r"states must be \[\*space, 4\], 2 states"):
        made(NOISE[0], jnp.zeros((SITES, 2)))
    with pytest.raises(ValueError, match="num_extra_channels must not be negative"):
        nn.NoiseForecaster(1, num_extra_channels=-1, rngs=nnx.Rngs(0))


def test_checkpoints_from_before_are_of_the_same_loss():
    """A setting that the class got later is described where it is not the default."""
    name, fields = describe(RolloutLoss(1, PointError()))
    assert name == "RolloutLoss" and "num_states" not in fields
    assert "task_hyper" in fields
    fields = describe(RolloutLoss(1, PointError(), num_states=2))[1]
    assert fields["num_states"] == 2
