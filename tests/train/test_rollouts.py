"""Losses of forecasts over several steps: against loops, on meshes, with gaps."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from ensjax import Ensemble, fit, make_mesh
from ensjax.emulate.variational_training import VariationalLoss
from ensjax.emulate.windows import OwnTask
from ensjax.train import NoiseCrps, NoiseOfSteps, PointError, RolloutLoss, WhiteNoise
from ensjax.train.feeds import check_arrays, takes_missing_of
from ensjax.train.kernel_crps import kernel_crps

SITES, TIMES, CASES = 3, 4, 16


class Emulator(nnx.Module):
    """A hidden layer of noise and state, place by place."""

    def __init__(self, rngs):
        self.hidden = nnx.Linear(3, 4, rngs=rngs)
        self.out = nnx.Linear(4, 1, rngs=rngs)

    def __call__(self, noise, state):
        if noise is None:
            noise = jnp.zeros((SITES, 2))
        together = jnp.concatenate([noise, state], axis=-1)
        return state + 0.5 * self.out(jnp.tanh(self.hidden(together)))


def windows(count=CASES, times=TIMES):
    rng = np.random.default_rng(0)
    steps = rng.normal(size=(count, times, SITES, 1)).astype(np.float32)
    return np.cumsum(0.5 * steps, axis=1)


SCORE = NoiseCrps(2, noise=WhiteNoise(2))
LOSS = RolloutLoss(3, SCORE, step_weights=(1.0, 0.5, 0.25))


def mesh(**sizes):
    count = int(np.prod(list(sizes.values()))) if sizes else 1
    return make_mesh(**{"member": 1, **sizes}, devices=jax.devices()[:count])


def trained(loss, mesh, num_networks=2, data=None, **options):
    options = dict(hyper=0.3, steps=3, batch_size=8, make_tx=optax.sgd) | options
    return fit(
        Ensemble.init(Emulator, num_members=num_networks, mesh=mesh),
        windows() if data is None else data,
        loss=loss,
        mesh=mesh,
        progress=False,
        **options,
    )[0]


def weights(ensemble):
    leaves = jax.tree.leaves(ensemble.params)
    return np.concatenate([np.asarray(x).reshape(len(x), -1) for x in leaves], axis=1)


def by_hand(model, loss, window, key):
    """The weighted mean over steps and places, with loops over members and steps."""
    score, states = loss.score, []
    for member in range(score.num_members):
        number = member // 2 if score.centred else member
        sign = -1 if score.centred and member % 2 else 1
        state, own = window[0], []
        for step in range(loss.num_steps):
            step_key = jax.random.fold_in(jax.random.fold_in(key, number), step)
            state = model(sign * score.noise(step_key, state.shape), state)
            own.append(state)
        states.append(jnp.stack(own))
    values = kernel_crps(
        jnp.stack(states),
        window[1 : loss.num_steps + 1],
        estimator=score.estimator,
        alpha=score.alpha,
    )
    step_weights = loss.step_weights or (1.0,) * loss.num_steps
    each = values.mean(axis=tuple(range(1, values.ndim)))
    return jnp.dot(each, jnp.asarray(step_weights)) / sum(step_weights)


def case_loss(loss, model, window, key):
    """The loss of one case by its own key, which `example_keys` would make."""
    sums, totals = loss._of_case(loss_model(loss, model), key, jnp.asarray(window))
    step_weights = jnp.asarray(loss.step_weights or (1.0,) * loss.num_steps)
    return sums @ step_weights / (totals @ step_weights)


def loss_model(loss, model):
    return loss.score.prepare(model) if hasattr(loss.score, "prepare") else model


@pytest.mark.parametrize("remat", [True, False])
@pytest.mark.parametrize(
    "score",
    [SCORE, dataclasses.replace(SCORE, centred=True, num_members=4, estimator="fair")],
)
def test_it_is_the_weighted_sum_of_a_loop_over_members_and_steps(score, remat):
    loss = dataclasses.replace(LOSS, score=score, remat=remat)
    model, key, window = Emulator(nnx.Rngs(0)), jax.random.key(5), windows()[0]

    def gradient(function):
        return nnx.value_and_grad(lambda model: function(model))(model)

    found, slopes = gradient(lambda m: case_loss(loss, m, window, key))
    value, expected = gradient(lambda m: by_hand(m, loss, jnp.asarray(window), key))
    np.testing.assert_allclose(found, value, rtol=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), slopes, expected
    )


def test_a_rollout_of_one_step_trains_as_the_loss_of_pairs():
    """Its noise is that of step 0."""
    first_step = dataclasses.replace(SCORE, noise=_FirstStep(SCORE.noise))
    data = windows(times=2)
    one = weights(trained(RolloutLoss(1, SCORE), mesh()))
    pairs = weights(trained(first_step, mesh(), data=(data[:, 0], data[:, 1])))
    two = weights(trained(RolloutLoss(1, SCORE), mesh(), data=data))
    np.testing.assert_allclose(two, pairs, atol=1e-6)
    assert np.abs(one - two).max() > 1e-4  # windows of 4 times have 3 such pairs


@dataclasses.dataclass(frozen=True)
class _FirstStep:
    noise: WhiteNoise

    def __call__(self, key, shape):
        return self.noise(jax.random.fold_in(key, 0), shape)


@pytest.fixture(scope="module")
def on_one_device():
    """With SGD a wrong factor in the gradient shows."""
    return {count: weights(trained(_of(count), mesh())) for count in (2, 8)}


def _of(count, **options):
    return dataclasses.replace(
        LOSS, score=dataclasses.replace(SCORE, num_members=count, **options)
    )


@pytest.mark.parametrize(
    "count, axis, sizes",
    [
        (2, None, dict(member=2, data=4)),
        (2, "model", dict(member=2, data=2, model=2)),
        (8, "model", dict(member=1, data=1, model=8)),
    ],
)
def test_eight_devices_train_as_one(on_one_device, count, axis, sizes):
    found = weights(trained(_of(count, axis=axis), mesh(**sizes)))
    np.testing.assert_allclose(found, on_one_device[count], atol=3e-6)


@dataclasses.dataclass(frozen=True)
class OwnPairs(NoiseCrps):
    """Each device scores its own member, beside others that have no derivative."""

    factor: float = 1.0

    def elements(self, model, key, target, condition):
        count, number = self.num_members, jax.lax.axis_index(self.axis)
        members = self.members(model, key, target.shape, condition)
        noise = self.noise(jax.random.fold_in(key, number), target.shape)
        own = model(noise, condition)
        # Rounding differs between the two programs that make it.
        members = jax.lax.stop_gradient(members).at[number].set(own)
        distance = jnp.sum(jnp.abs(own[None] - members), axis=0)
        kept = 1 - (1 - self.alpha) / count
        pairs = self.factor * kept * distance / (2 * count * (count - 1))
        return jnp.abs(own - target) / count - pairs


@pytest.mark.parametrize("factor, is_right", [(1.0, False), (2.0, True)])
def test_pairs_of_which_one_side_moves_have_half_the_gradient(
    on_one_device, factor, is_right
):
    """The trap of members on several devices, which the test above would show."""
    score = OwnPairs(8, noise=SCORE.noise, axis="model", factor=factor)
    loss = dataclasses.replace(LOSS, score=score)
    found = weights(trained(loss, mesh(member=1, model=8)))
    error = np.abs(found - on_one_device[8]).max()
    assert error < 3e-6 if is_right else error > 1e-3


def test_networks_of_a_stack_are_each_trained_alone(on_one_device):
    alone = Ensemble.init(Emulator, num_members=2, mesh=mesh()).select([1])
    options = dict(make_tx=optax.sgd, hyper=0.3, steps=3, batch_size=8, mesh=mesh())
    alone, _ = fit(alone, windows(), loss=_of(2), progress=False, **options)
    np.testing.assert_allclose(weights(alone)[0], on_one_device[2][1], atol=1e-6)


def test_the_estimator_may_be_a_hyperparameter():
    """Standard, almost fair and fair losses as one stack, each as it is alone."""
    fair = (0.0, 0.95, 1.0)
    loss = RolloutLoss(2, SCORE, fair_hyper="fair")
    hyper = {"learning_rate": 0.3, "fair": fair}
    stack = trained(loss, mesh(), 3, hyper=hyper, make_tx=_sgd)
    for place, alpha in enumerate(fair):
        score = dataclasses.replace(SCORE, alpha=alpha)
        alone = trained(RolloutLoss(2, score), mesh(), 3)
        np.testing.assert_allclose(
            weights(stack)[place], weights(alone)[place], atol=1e-6
        )


def test_networks_of_a_stack_may_have_data_of_their_own():
    both = np.stack([windows(), 2 * windows()[::-1]], axis=1)  # [window, task, ...]
    loss = RolloutLoss(2, SCORE, task_hyper="task")
    hyper = {"learning_rate": 0.1, "task": (0, 1)}
    stack = trained(loss, mesh(), data=both, hyper=hyper, make_tx=_sgd)
    alone = trained(RolloutLoss(2, SCORE), mesh(), data=both[:, 1].copy(), hyper=0.1)
    np.testing.assert_allclose(weights(stack)[1], weights(alone)[1], atol=1e-6)
    with pytest.raises(ValueError, match=r"windows \[batch, task, time"):
        trained(loss, mesh(), data=both[:, 0, :, :, 0], hyper=hyper, make_tx=_sgd)


def _sgd(hyper):
    return optax.sgd(hyper["learning_rate"])


def test_gaps_have_no_weight_and_no_gradient():
    model, key = Emulator(nnx.Rngs(0)), jax.random.key(5)
    window = jnp.asarray(windows()[0])

    def loss_of(window, loss=LOSS):
        return nnx.value_and_grad(lambda m: case_loss(loss, m, window, key))(model)

    for score in (SCORE, PointError("absolute")):
        loss = dataclasses.replace(LOSS, score=score)
        gap = window.at[2, 1].set(jnp.nan)
        value, slopes = loss_of(gap, loss)
        assert np.isfinite(value) and all(
            np.isfinite(x).all() for x in jax.tree.leaves(slopes)
        )
        # What stands in the gap does not matter.
        weightless = dataclasses.replace(loss, step_weights=(1.0, 0.0, 0.25))
        again = loss_of(window.at[2].set(7.0), weightless)[0]
        np.testing.assert_allclose(
            again, loss_of(gap.at[2].set(jnp.nan), loss)[0], rtol=1e-6
        )
    # A place that is missing at the start is held at the mean, and not scored.
    land = window.at[:, 1].set(jnp.nan)
    value, slopes = loss_of(land)
    mean = window.at[0, 1].set(0.0)
    held = dataclasses.replace(LOSS, element_weights=((1.0,), (0.0,), (1.0,)))
    np.testing.assert_allclose(value, loss_of(mean, held)[0], rtol=1e-6)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(slopes))
    value, slopes = loss_of(jnp.full_like(window, jnp.nan))
    assert np.isnan(value)  # 0 / 0 of this test; the loss says 0
    total, metrics = LOSS(model, jnp.full_like(window, jnp.nan)[None], key)
    assert total == 0 and metrics["first_step"] == 0


def test_a_deterministic_emulator_has_its_error():
    model, window = Emulator(nnx.Rngs(0)), jnp.asarray(windows()[0])
    state, errors = window[0], []
    for step in range(3):
        state = model(None, state)
        errors.append(state - window[step + 1])
    errors = jnp.stack(errors)
    for kind, value in (("squared", errors**2), ("absolute", jnp.abs(errors))):
        found, _ = RolloutLoss(3, PointError(kind))(
            model, window[None], jax.random.key(0)
        )
        np.testing.assert_allclose(found, value.mean(), rtol=1e-6)


def test_noise_that_is_a_process_in_time_is_asked_for_all_steps():
    class Walk:
        def of_steps(self, key, shape, num_steps):
            return jnp.cumsum(jax.random.normal(key, (num_steps, *shape)), axis=0)

    key = jax.random.key(0)
    found = NoiseOfSteps(Walk())(key, (5, SITES, 1))
    np.testing.assert_allclose(
        jnp.diff(found, axis=0), jax.random.normal(key, (5, SITES, 1))[1:], atol=1e-6
    )
    drawn = NoiseOfSteps(WhiteNoise(2))
    few, many = drawn(key, (2, SITES, 1)), drawn(key, (5, SITES, 1))
    assert many.shape == (5, SITES, 2)
    np.testing.assert_array_equal(few, many[:2])


def test_each_step_is_computed_again_on_the_way_back():
    """The states are kept; what is inside of a step is not."""
    width, steps = 64, 32

    class Wide(nnx.Module):
        def __init__(self, rngs):
            self.first = nnx.Linear(1, width, rngs=rngs)
            self.last = nnx.Linear(width, 1, rngs=rngs)

        def __call__(self, noise, state):
            return state + 0.1 * self.last(jnp.tanh(self.first(state)))

    data = jnp.zeros((4, steps + 1, 16, 1))

    def kept(remat):
        loss = RolloutLoss(steps, PointError(), remat=remat)
        graph, params = nnx.split(Wide(nnx.Rngs(0)))

        def value(params):
            return loss(nnx.merge(graph, params), data, jax.random.key(0))[0]

        compiled = jax.jit(jax.grad(value)).lower(params).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    inside = 4 * 4 * steps * 16 * width  # bytes of the hidden layers
    assert kept(False) > inside > 4 * kept(True)


def test_step_weights_are_kept_as_what_can_be_hashed():
    loss = RolloutLoss(2, SCORE, step_weights=[1, np.float32(0.5)])
    assert loss == RolloutLoss(2, SCORE, step_weights=(1.0, 0.5))
    assert hash(loss) == hash(RolloutLoss(2, SCORE, step_weights=(1.0, 0.5)))


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="num_steps must be at least 1"):
        RolloutLoss(0, SCORE)
    with pytest.raises(ValueError, match="one for each of 2 steps; got 1"):
        RolloutLoss(2, SCORE, step_weights=(1.0,))
    with pytest.raises(ValueError, match="not negative, nor all 0"):
        RolloutLoss(2, SCORE, step_weights=(0.0, 0.0))
    with pytest.raises(ValueError, match="fair_hyper is the weight"):
        RolloutLoss(2, PointError(), fair_hyper="fair")
    with pytest.raises(ValueError, match='kind is "squared" or "absolute"'):
        PointError("cubed")
    with pytest.raises(ValueError, match="centred noise comes in pairs"):
        NoiseCrps(3, centred=True)
    with pytest.raises(ValueError, match="needs windows of 5 times or more"):
        trained(RolloutLoss(4, SCORE), mesh())
    with pytest.raises(ValueError, match="must be floating"):
        trained(RolloutLoss(1, SCORE), mesh(), data=np.zeros((8, 3, SITES, 1), int))
    with pytest.raises(ValueError, match=r"windows \[batch, time"):
        trained(RolloutLoss(1, SCORE), mesh(), data=np.zeros((8, 3), np.float32))
    uneven = RolloutLoss(1, SCORE, element_weights=((1.0,), (1.0,)))
    with pytest.raises(ValueError, match="do not broadcast to a state"):
        trained(uneven, mesh())


@pytest.mark.parametrize("make", [RolloutLoss, VariationalLoss])
def test_steps_are_counted_weighed_and_filled_by_numbers(make):
    options = {} if make is VariationalLoss else {"score": SCORE}

    def loss(steps=2, **others):
        return make(num_steps=steps, **others, **options)

    for wrong in (1.5, 2.0, np.nan, True):
        with pytest.raises(ValueError, match=f"and a whole number; got {wrong}"):
            loss(wrong)
    for weights in ((1, np.inf), (np.nan, 1), (1, np.nan), (1, -1), (1e39, 1), (0, 0)):
        with pytest.raises(ValueError, match="step_weights must be finite, not neg"):
            loss(step_weights=weights)
    for fill in (np.nan, np.inf, -np.inf):
        with pytest.raises(ValueError, match="fill must be finite; got"):
            loss(fill=fill)
    assert loss(np.int64(2), fill=1, step_weights=(1, 0)) == loss(
        2, fill=1.0, step_weights=(1.0, 0.0)
    )


@pytest.mark.parametrize("make", [RolloutLoss, VariationalLoss])
def test_elements_are_weighed_by_numbers_of_0_or_more(make):
    options = {} if make is VariationalLoss else {"score": SCORE}

    def loss(weights):
        return make(num_steps=1, element_weights=weights, **options)

    for wrong in (-1.0, np.nan, np.inf, 1e39):
        words = r"not negative; at \(2, 0\) of \[3, 1\] there is"
        with pytest.raises(ValueError, match=words):
            loss(((1.0,), (0.0,), (wrong,)))
    with pytest.raises(ValueError, match=r"of \[2, 1\] elements are all 0"):
        loss(((0.0,), (0.0,)))
    for unhashable in ([[1.0], [2.0]], ([1.0], [2.0]), np.ones((2, 1))):
        with pytest.raises(TypeError, match="must be nested tuples"):
            loss(unhashable)
    assert hash(loss(((1, 0.0), (2.0, 3.0)))) == hash(loss(((1, 0.0), (2.0, 3.0))))


def test_fit_takes_what_the_loss_leaves_out_and_nothing_else():
    """NaN in windows of a rollout trains; infinities, and NaN of other losses, end."""
    data = windows()
    data[:, :, 1] = np.nan
    assert np.isfinite(weights(trained(LOSS, mesh(), data=data))).all()
    data[0, 0, 0] = np.inf
    with pytest.raises(ValueError, match="data holds infinite values"):
        trained(LOSS, mesh(), data=data)
    pairs = windows()[:, 0], windows()[:, 1]
    pairs[1][:, 1] = np.nan
    assert np.isfinite(weights(trained(SCORE, mesh(), data=pairs))).all()
    with pytest.raises(ValueError, match=r"data\[0\] holds NaN .* this loss cannot"):
        trained(SCORE, mesh(), data=pairs[::-1])


def test_what_may_be_missing_follows_the_kind_of_the_data():
    class Pair(NamedTuple):
        given: Any
        target: Any

    nan, one = np.full((2, 3), np.nan, np.float32), np.ones((2, 3), np.float32)
    for pair in (
        (one, nan),
        [one, nan],
        Pair(one, nan),
        ({"a": one}, nan),
        (None, nan),
    ):
        words = takes_missing_of(SCORE, pair)
        assert check_arrays("data", pair, takes_missing=words) == 2
    assert takes_missing_of(SCORE, one) is False
    assert takes_missing_of(OwnTask(LOSS), nan) is True
    assert takes_missing_of(lambda model, batch, key: 0.0, nan) is False
