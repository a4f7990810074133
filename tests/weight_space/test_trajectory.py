"""Averages along training: by hand from the weights, in any program."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ensjax
from ensjax.weight_space import EMA, LAWA, SWA, SWAG, averaged, swag_members

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
