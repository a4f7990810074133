"""Averages along training: by hand from the weights, in any program."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ensjax
from ensjax.weight_space import (
    EMA,
    LAWA,
    SWA,
    SWAG,
    averaged,
    lawa_members,
    swag_members,
)

AVERAGES = {
    "ema": EMA(0.8),
    "warm": EMA(0.9, warm_up=True),
    "swa": SWA(start_step=4, every_steps=3),
    "lawa": LAWA(num_checkpoints=3, every_steps=2),
    "swag": SWAG(start_step=2, num_columns=4),
    "diagonal": SWAG(start_step=2, num_columns=0),
}
STEPS, RATE = 12, 0.1
SLOW = pytest.mark.slow
X = np.linspace(-1, 1, 8, dtype=np.float32)


def apply(params, x):
    return params["a"][0] * x + params["b"]


def loss(model, batch, key):
    del key
    x, y = batch
    return jnp.mean(jnp.square(model(x) - y))


def stack(members):
    rng = np.random.default_rng(1)
    return {
        "a": rng.normal(size=(members, 2)).astype(np.float32),
        "b": rng.normal(size=members).astype(np.float32),
    }


def train(members=3, *, steps=STEPS, mesh=None, y=2 * X, **options):
    mesh = mesh or ensjax.make_mesh(member=1, devices=jax.devices()[:1])
    ensemble = ensjax.Ensemble.from_apply(apply, stack(members), mesh=mesh)
    options = dict(averages=AVERAGES, progress=False) | options
    return ensjax.fit(
        ensemble,
        (X, y),
        loss=loss,
        make_tx=optax.sgd,
        hyper=RATE,
        steps=steps,
        batch_size=8,
        **options,
    )


def by_hand(member, members=3):
    """The weights after every step, `[step, 3]`, in float64."""
    start = stack(members)
    a, b = start["a"][member].astype(float), float(start["b"][member])
    weights = []
    for _ in range(STEPS):
        error = a[0] * X + b - 2 * X
        grad = 2 * (error * X).mean(), 2 * error.mean()
        a = a - RATE * np.array([grad[0], 0.0])
        b = b - RATE * grad[1]
        weights.append([*a, b])
    return np.array(weights)


def flat(params):
    return np.concatenate(
        [np.asarray(params["a"]), np.asarray(params["b"])[:, None]], 1
    )


@pytest.fixture(scope="module")
def trained():
    return train()


def test_averages_are_those_of_the_weights_of_every_step(trained):
    ensemble, log = trained
    for member in range(3):
        w = by_hand(member)
        np.testing.assert_allclose(flat(ensemble.params)[member], w[-1], atol=1e-6)
        decays = 0.8 ** np.arange(STEPS)[::-1]
        warm = w[0]
        for t in range(2, STEPS + 1):
            decay = min(0.9, (1 + t) / (10 + t))
            warm = decay * warm + (1 - decay) * w[t - 1]
        expected = {
            "ema": decays @ w / decays.sum(),
            "warm": warm,
            "swa": w[[6, 9]].mean(axis=0),  # after steps 7 and 10
            "lawa": w[[7, 9, 11]].mean(axis=0),
            "swag": w[2:].mean(axis=0),
            "diagonal": w[2:].mean(axis=0),
        }
        for name, average in AVERAGES.items():
            got = flat(averaged(ensemble, average, log.averages[name]).params)[member]
            np.testing.assert_allclose(got, expected[name], atol=2e-6)


@pytest.mark.parametrize("name", ["swag", "diagonal"])
def test_draws_have_the_mean_and_covariance_of_the_gaussian(trained, name):
    ensemble, log = trained
    swag, states = AVERAGES[name], log.averages[name]
    draws = swag_members(ensemble, swag, states, num_samples=4000, seed=3, scale=0.5)
    draws = flat(draws.params).astype(float).reshape(3, 4000, 3)
    for member in range(3):
        w = by_hand(member)[2:]
        mean = w.mean(axis=0)
        so_far = np.cumsum(w, axis=0) / np.arange(1, len(w) + 1)[:, None]
        columns = (w - so_far)[-4:]
        variance = np.maximum((w**2).mean(axis=0) - mean**2, 1e-30)
        shared = columns.T @ columns / 3 if name == "swag" else 0.0
        covariance = 0.5 * (np.diag(variance) + shared)
        spread = np.sqrt(np.diag(covariance))
        error = np.abs(draws[member].mean(axis=0) - mean)
        assert (error <= 4 * spread / np.sqrt(4000) + 1e-6).all()
        got = np.cov(draws[member].T)
        scale = np.outer(spread, spread) + 1e-12
        np.testing.assert_allclose(got / scale, covariance / scale, atol=0.1)


def test_a_draw_depends_on_member_and_number_alone(trained):
    ensemble, log = trained
    swag, states = AVERAGES["swag"], log.averages["swag"]
    many = flat(swag_members(ensemble, swag, states, num_samples=5).params)
    last = jax.tree.map(lambda x: x[2:], states)
    few = flat(swag_members(ensemble[2:], swag, last, num_samples=2).params)
    np.testing.assert_allclose(few, many[10:12], rtol=1e-6)
    still = swag_members(ensemble, swag, states, num_samples=1, scale=0.0)
    mean = averaged(ensemble, swag, states)
    np.testing.assert_array_equal(flat(still.params), flat(mean.params))


def test_the_draws_hold_no_columns_but_each_members_own(trained):
    """The ring was there once for every draw, K times the draws themselves."""
    ensemble, log = trained
    swag, samples = AVERAGES["swag"], 50

    def drawn(states):
        return swag_members(ensemble, swag, states, num_samples=samples).params

    program = jax.make_jaxpr(drawn)(log.averages["swag"])
    sizes = [
        var.aval.size
        for eqn in equations(program.jaxpr)
        for var in eqn.outvars
        if hasattr(var.aval, "size")
    ]
    # Two bits of a key and a number for each entry of the largest leaf drawn.
    assert max(sizes) <= 3 * samples * 2 < 3 * samples * 2 * swag.num_columns


def equations(jaxpr):
    for eqn in jaxpr.eqns:
        yield eqn
        for value in jax.tree.leaves(
            list(eqn.params.values()), is_leaf=lambda x: hasattr(x, "eqns")
        ):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


@pytest.mark.slow
@pytest.mark.parametrize("members, samples", [(3, 5), (1, 3), (2, 9)])
def test_draws_are_the_same_on_more_devices_than_members(trained, members, samples):
    ensemble, log = trained
    states = jax.tree.map(lambda x: x[:members], jax.device_get(log.averages["swag"]))
    few = ensemble[:members]
    expected = swag_members(few, AVERAGES["swag"], states, num_samples=samples)
    many = few.on_mesh(ensjax.make_mesh(member=8))
    found = swag_members(many, AVERAGES["swag"], states, num_samples=samples)
    assert found.member_ids.tolist() == list(range(members * samples))
    np.testing.assert_allclose(flat(found.params), flat(expected.params), rtol=1e-5)


def test_the_checkpoints_of_lawa_are_members(trained):
    ensemble, log = trained
    lawa, states = AVERAGES["lawa"], log.averages["lawa"]
    found = lawa_members(ensemble, lawa, states)
    assert found.member_ids.tolist() == list(range(9))
    expected = np.concatenate([by_hand(m)[[7, 9, 11]] for m in range(3)])
    np.testing.assert_allclose(flat(found.params), expected, atol=2e-6)
    assert found(X).shape == (9, 8)
    mean = flat(averaged(ensemble, lawa, states).params)
    np.testing.assert_allclose(
        flat(found.params).reshape(3, 3, 3).mean(axis=1), mean, atol=1e-6
    )


def test_only_checkpoints_that_were_taken_become_members(trained):
    """A member that was frozen early holds fewer than the others."""
    ensemble, _ = trained
    lawa = AVERAGES["lawa"]
    states = []
    for steps in (3, 12, 5):  # 1, 6 and 2 checkpoints, of which 3 are held
        state = lawa.init({"a": jnp.zeros(2), "b": jnp.float32(0)})
        for step in range(1, steps + 1):
            params = {"a": jnp.full(2, float(step)), "b": jnp.float32(-step)}
            state = lawa.update(state, params)
        states.append(state)
    stacked = ensjax.members.stack_members(states)
    found = lawa_members(ensemble, lawa, stacked)
    assert found.params["b"].tolist() == [-2, -8, -10, -12, -2, -4]
    assert found.member_ids.tolist() == list(range(6))
    states[1] = lawa.init({"a": jnp.zeros(2), "b": jnp.float32(0)})
    with pytest.raises(ValueError, match=r"ids \[1\] has counted"):
        lawa_members(ensemble, lawa, ensjax.members.stack_members(states))
    with pytest.raises(ValueError, match=r"ids \[1\] has counted, so that LAWA holds"):
        averaged(ensemble, lawa, ensjax.members.stack_members(states))


@pytest.mark.parametrize("decay, steps", [(0.9999, 3), (0.99999, 100), (0.5, 40)])
def test_an_average_with_a_long_memory_is_unbiased(decay, steps):
    average, params = EMA(decay), {"w": jnp.float32(3.0)}
    state = average.init(params)
    update = jax.jit(average.update)
    for _ in range(steps):
        state = update(state, params)
    np.testing.assert_allclose(average.mean(state)["w"], 3.0, rtol=1e-6)


@pytest.mark.parametrize("name", ["swa", "swag", "diagonal", "lawa"])
def test_weights_that_do_not_count_leave_no_trace(name):
    average = AVERAGES[name]
    state = average.init({"w": jnp.ones(2)})
    for _ in range(7):
        counts = np.asarray(average.update(state, {"w": jnp.ones(2)})["count"])
        value = 2.0 if counts > state["count"] else np.inf
        state = average.update(state, {"w": jnp.full(2, value)})
    assert state["count"] >= 1
    np.testing.assert_array_equal(average.mean(state)["w"], [2.0, 2.0])
    if "variance" in state:
        np.testing.assert_array_equal(state["variance"]["w"], [0.0, 0.0])


def test_a_member_that_is_seeded_again_keeps_the_step_of_the_run():
    """Else its schedule begins anew, and a late start never comes."""

    def make_model(rngs):
        return ensjax.nn.MLP(in_features=1, num_outputs=1, hidden=(2,), rngs=rngs)

    def breaking(model, batch, key):
        del key
        x, y = batch
        loss = jnp.mean(jnp.square(model(x) - y))
        return jnp.where(model.head.linear.bias[0] > 5.0, jnp.nan, loss)

    ensemble = ensjax.Ensemble.init(make_model, num_members=2, seed=0)
    bias = ensemble.state["params"]["head"]["linear"]["bias"]
    bias[...] = bias[...].at[0].set(10.0)
    averages = {"swa": SWA(start_step=6), "lawa": LAWA(num_checkpoints=2)}
    _, log = ensjax.fit(
        ensemble,
        (X[:, None], X[:, None]),
        loss=breaking,
        make_tx=optax.sgd,
        hyper=0.01,
        steps=8,
        steps_per_call=2,
        log_every_steps=2,
        batch_size=8,
        averages=averages | {"ema": EMA(0.9)},
        health=ensjax.Health(policy="reseed", make_model=make_model),
        progress=False,
    )
    assert log.recovery_steps[0][0] >= 0, log.recovery_steps
    assert log.averages["swa"]["step"].tolist() == [8, 8]
    assert log.averages["swa"]["count"].tolist() == [2, 2]
    assert log.averages["lawa"]["step"].tolist() == [8, 8]
    assert log.averages["lawa"]["count"].tolist() == [6, 8]
    assert log.averages["ema"]["count"].tolist() == [6, 8]


@pytest.mark.parametrize(
    "options", [dict(steps_per_call=4), pytest.param(dict(block=2), marks=SLOW)]
)
def test_the_same_in_blocks_of_members_and_of_steps(trained, options):
    _, log = trained
    _, other = train(**options)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
        log.averages,
        other.averages,
    )


def test_the_same_on_a_mesh_with_split_data(trained):
    _, log = trained
    _, other = train(mesh=ensjax.make_mesh(member=4, data=2))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
        log.averages,
        other.averages,
    )


def test_a_run_that_goes_on_has_the_averages_of_one_that_never_stopped(
    trained, tmp_path
):
    _, log = trained
    options = dict(checkpoint_dir=tmp_path / "c", steps_per_call=4, log_every_steps=4)
    train(steps=8, **options)
    _, other = train(steps=12, **options)
    assert other.resumed_step == 8
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
        log.averages,
        other.averages,
    )
    with pytest.raises(ValueError, match="averages"):
        train(steps=12, **options | dict(averages={"ema": EMA(0.7)}))


def test_a_member_that_breaks_keeps_its_averages_of_the_last_look():
    y = np.stack([2 * X] * 3)

    def breaking(model, batch, key):
        del key
        x, y = batch
        error = jnp.square(model(x) - y)
        return jnp.mean(jnp.where(model.params["b"] > 1.2, jnp.nan, error))

    start = stack(3)
    start["b"] = np.array([0.0, 1.3, 0.5], np.float32)
    ensemble = ensjax.Ensemble.from_apply(apply, start)
    _, log = ensjax.fit(
        ensemble,
        (X, y[0]),
        loss=breaking,
        make_tx=optax.sgd,
        hyper=RATE,
        steps=4,
        batch_size=8,
        averages={"ema": EMA(0.8)},
        progress=False,
    )
    assert log.frozen_steps.tolist() == [-1, 0, -1]
    assert log.averages["ema"]["count"].tolist() == [4, 0, 4]
    assert np.isfinite(log.averages["ema"]["total"]["a"]).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    "average",
    [
        pytest.param(average, id=name, marks=() if name in ("lawa", "swag") else SLOW)
        for name, average in AVERAGES.items()
    ],
)
def test_the_average_of_constant_weights_is_the_weights(average):
    params = {"w": jnp.array([0.1, -3e4], jnp.bfloat16), "n": jnp.int32(3)}
    state = average.init(params)
    assert np.isnan(average.mean(state)["w"]).all() or average == AVERAGES["warm"]
    for _ in range(40):
        state = jax.jit(average.update)(state, params)
    mean = average.mean(state)
    np.testing.assert_allclose(mean["w"], params["w"].astype(float), rtol=1e-6)
    assert int(mean["n"]) == 3


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: EMA(1.0), "decay must be above 0 and below 1"),
        (lambda: SWA(start_step=-1), "start_step must be at least 0"),
        (lambda: LAWA(num_checkpoints=0), "num_checkpoints must be at least 1"),
        (lambda: SWAG(start_step=0, num_columns=1), "or at least 2; got 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_what_is_no_average_is_refused_before_training():
    with pytest.raises(TypeError, match=r"averages\['ema'\] must have init"):
        train(averages={"ema": 0.99})
    with pytest.raises(TypeError, match="a dict of names"):
        train(averages=EMA(0.9))
