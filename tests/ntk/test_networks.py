"""Finite networks: parameterisations, rates of the kernel, and the law they follow."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import ensjax
from ensjax import ntk
from ensjax.ntk import two_layer

K = 4
TASK = ntk.permutation_task([2, 0, 3, 1])
INPUTS = ntk.cube_inputs(K)
num_ones = INPUTS.sum(axis=1).astype(int)
KINDS = ("member", *("shared",) * 5)


def make(spec, width=32, **options):
    options = dict(in_features=K, num_outputs=K, rngs=nnx.Rngs(params=0)) | options
    return ntk.WideNetwork(spec, width=width, **options)


def train(spec, width, members, schedule, x=INPUTS):
    run = ensjax.map_members(ntk.TrainNetwork(spec, width, schedule.steps), kinds=KINDS)
    rate = np.float32(schedule.learning_rate)
    ids = np.asarray(members, np.int32)
    return np.asarray(
        run(ids, jnp.int32(0), rate, TASK.train_inputs, TASK.train_targets, x)
    )


@pytest.mark.slow
@pytest.mark.parametrize("parameterisation", ["ntk", "readout", "standard"])
def test_trained_networks_follow_the_law_of_infinite_width(parameterisation):
    spec = ntk.FullyConnected(parameterisation=parameterisation)
    width = 1_024
    schedule = ntk.training_schedule(
        spec, TASK.train_inputs, residual=1e-5, width=width
    )
    outputs = train(spec, width, range(200), schedule)
    kind = "ntk" if parameterisation == "ntk" else "readout"
    targets = TASK.targets(INPUTS)
    for m in (1, 2, 3, 4):
        law = two_layer.law(K, m, kind=kind)
        rows = num_ones == m
        for value, expected in ((True, law.on_one), (False, law.on_zero)):
            chosen = targets[rows] == value
            if not chosen.any():
                continue
            own = outputs[:, rows][:, chosen].mean(axis=1)
            error = own.std(ddof=1) / np.sqrt(len(own))
            # Errors of float32 and of the residual, where nothing varies.
            assert abs(own.mean() - expected) < 4 * error + 3e-5
        variance = outputs[:, rows].var(axis=0, ddof=1).mean()
        assert variance == pytest.approx(float(law.variance), rel=0.1, abs=1e-8)


def scales(parameterisation, **options):
    spec = ntk.FullyConnected(parameterisation=parameterisation, **options)
    return ntk.layer_scales(spec, in_features=9, width=100)


def test_parameterisations_are_numbers_for_each_layer():
    first, last = scales("ntk", weight_variance=4.0)
    assert first[:3] == (2 / 3, 1.0, 1.0) and last[:3] == (0.2, 1.0, 1.0)
    assert [s.rate for s in scales("readout", hidden_layers=2)] == [0, 0, 1]
    first, last = scales("standard", weight_variance=4.0)
    assert first[:3] == (1.0, 2 / 3, 0.04) and last[:3] == (1.0, 0.2, 0.04)
    first, last = scales("mup")
    assert first[:3] == (1 / 3, 1.0, 100.0)
    assert last[:3] == (pytest.approx(0.01), 1.0, 100.0)
    first, _ = scales("standard", bias_variance=0.25)
    assert first[3:] == (1.0, 0.5)
    with pytest.raises(ValueError, match="width must be at least 1; got 0"):
        ntk.layer_scales(ntk.FullyConnected(), in_features=9, width=0)
    for width in (2.5, True):
        with pytest.raises(TypeError, match=f"width must be an integer; got {width}"):
            ntk.layer_scales(ntk.FullyConnected(), in_features=9, width=width)
        with pytest.raises(TypeError, match=f"width must be an integer; got {width}"):
            ntk.TrainNetwork(ntk.FullyConnected(), width, 3)


@pytest.mark.slow
@pytest.mark.parametrize("parameterisation", ["ntk", "standard", "mup"])
def test_the_rate_times_the_gradient_kernel_is_that_of_the_kernel(parameterisation):
    """What a step does to outputs, from Jacobians scaled by each layer's rate."""
    spec = ntk.FullyConnected(
        hidden_layers=2, parameterisation=parameterisation, bias_variance=0.3
    )
    width, x = 512, np.float32(TASK.train_inputs)
    model = make(spec, width, num_outputs=1)
    graph, params = nnx.split(model)
    jacobian = jax.jacobian(lambda p: nnx.merge(graph, p)(x)[:, 0])(params)
    rates = [scale.rate for scale in model.scales]
    found = 0
    for name in ("kernels", "biases"):
        for layer, leaf in jacobian[name].items():
            flat = np.asarray(jax.tree.leaves(leaf)[0]).reshape(K, -1)
            found = found + rates[layer] * flat @ flat.T
    expected = ntk.kernel(dataclasses.replace(spec, width=width), x).ntk
    np.testing.assert_allclose(found, expected, rtol=0.25, atol=0.05)


def test_a_member_in_a_stack_kept_as_weights_is_the_member_that_is_forgotten():
    spec = ntk.FullyConnected(bias_variance=0.1)
    schedule = ntk.training_schedule(spec, TASK.train_inputs, residual=1e-3)
    data = (TASK.train_inputs, TASK.train_targets)
    job = ntk.network_job(spec, data, width=32, member_ids=(0, 3, 5), schedule=schedule)
    ensemble, log = job.fit(progress=False)
    outputs = train(spec, 32, (5, 0, 3), schedule)[np.array([1, 2, 0])]
    np.testing.assert_allclose(ensemble(INPUTS), outputs, atol=2e-6)
    rows = ensemble(TASK.train_inputs) - TASK.train_targets[None]
    start = job.ensemble()(TASK.train_inputs) - TASK.train_targets[None]
    assert np.abs(rows).mean() < 0.1 * np.abs(start).mean()
    assert (np.asarray(log.frozen_steps) < 0).all()


def test_readouts_leave_the_hidden_layers_alone():
    spec = ntk.FullyConnected(parameterisation="readout")
    schedule = ntk.training_schedule(spec, TASK.train_inputs, residual=1e-2)
    data = (TASK.train_inputs, TASK.train_targets)
    job = ntk.network_job(spec, data, width=16, member_ids=(0, 1), schedule=schedule)
    before, (after, _) = job.ensemble(), job.fit(progress=False)
    moved = jax.tree.map(
        lambda a, b: float(np.abs(np.asarray(a) - np.asarray(b)).max()),
        before.params,
        after.params,
    )
    first, last = jax.tree.leaves(moved)
    assert first == 0 and last > 0.01


def test_the_rate_comes_from_the_kernel_and_one_above_it_is_warned_of():
    spec = ntk.FullyConnected()
    low, high = two_layer.spectrum(8, kind="ntk")
    found = ntk.training_schedule(spec, np.eye(8), residual=1e-5)
    assert found.critical == pytest.approx(2 / (low + high))
    assert found.learning_rate == pytest.approx(0.9 * found.critical)
    assert found.steps == 17  # of the card
    readout = ntk.FullyConnected(parameterisation="readout")
    assert ntk.training_schedule(readout, np.eye(8), residual=1e-5).steps == 31
    with pytest.warns(UserWarning, match=f"above the critical {found.critical:.6g}"):
        rate = 1.1 * found.critical
        ntk.training_schedule(spec, np.eye(8), residual=1e-2, learning_rate=rate)
    with (
        pytest.warns(UserWarning, match="diverges"),
        pytest.raises(ValueError, match="must be below"),
    ):
        rate = 2.1 / high
        ntk.training_schedule(spec, np.eye(8), residual=1e-2, learning_rate=rate)


def test_mean_field_networks_begin_near_zero_and_learn():
    spec = ntk.FullyConnected(parameterisation="mup")
    schedule = ntk.training_schedule(
        spec, TASK.train_inputs, residual=1e-3, fraction=0.45
    )
    outputs = train(spec, 256, range(8), schedule, TASK.train_inputs)
    start = np.asarray(make(spec, 256)(TASK.train_inputs))
    assert np.abs(start).max() < 0.15
    error = np.abs(outputs - TASK.train_targets[None]).mean()
    assert error < 0.02


def test_other_activations_are_given_as_functions():
    with pytest.raises(ValueError, match="'cube' is not known here"):
        make(ntk.FullyConnected(activation=ntk.Dual("cube", None)))
    model = make(
        ntk.FullyConnected(activation=ntk.Dual("cube", None)), activation=jnp.tanh
    )
    assert model(INPUTS).shape == (15, K)
    with pytest.raises(ValueError, match=r"must be \[batch, 4\]; got \(2, 3\)"):
        model(jnp.ones((2, 3)))
    with pytest.raises(ValueError, match="num_outputs must be at least 1; got 0"):
        make(ntk.FullyConnected(), num_outputs=0)


def relu(x):
    """A user's own, with the name of another."""
    return 2**0.5 * jax.nn.relu(x)


OWN_RELU = ntk.dual(relu, kinks=(0.0,))


def test_networks_apply_the_function_of_the_dual_and_not_one_of_its_name():
    """The empirical kernel is the law's; with JAX's relu it would be about half."""
    spec = ntk.FullyConnected(activation=OWN_RELU)
    x = INPUTS[:6]

    def make_model(rngs):
        return make(spec, width=1_024, num_outputs=1, rngs=rngs)

    ensemble = ensjax.Ensemble.init(make_model, num_members=2, seed=0)
    found = np.asarray(ntk.empirical_ntk(ensemble, x)).mean(axis=0)
    np.testing.assert_allclose(found, ntk.kernel(spec, x).ntk, rtol=0.2)


@pytest.mark.parametrize("kept", [False, True])
def test_trained_networks_apply_the_function_of_the_dual(kept):
    """Trained by a function of the same values under another name, they are alike."""

    def lifted(x):
        return 2**0.5 * jax.nn.relu(x)

    outputs = []
    activations = (OWN_RELU, ntk.dual(lifted, kinks=(0.0,)), "relu")
    for activation in activations[: 2 if kept else 3]:
        spec = ntk.FullyConnected(activation=activation)
        schedule = ntk.Schedule(0.2, 3, 1.0)
        if kept:
            data = (TASK.train_inputs, TASK.train_targets)
            options = dict(width=16, member_ids=(0, 1), schedule=schedule)
            ensemble, _ = ntk.network_job(spec, data, **options).fit(progress=False)
            outputs.append(np.asarray(ensemble(INPUTS)))
        else:
            outputs.append(train(spec, 16, (0, 1), schedule))
    np.testing.assert_allclose(outputs[0], outputs[1], atol=1e-6)
    assert np.abs(outputs[0] - outputs[-1]).max() > 0.05 or kept


def test_an_activation_that_contradicts_the_spec_is_refused():
    spec, data = ntk.FullyConnected(), (TASK.train_inputs, TASK.train_targets)
    with pytest.raises(ValueError, match="another function than 'relu' of the spec"):
        make(spec, activation=jnp.tanh)
    with pytest.raises(ValueError, match="its value at 0.06079 is 0.0607903 and not"):
        ntk.TrainNetwork(
            dataclasses.replace(spec, activation=OWN_RELU), 8, 1, jax.nn.relu
        )
    with pytest.raises(ValueError, match="its slope at"):
        make(spec, activation=lambda x: jax.nn.relu(x) + jnp.sin(1e4 * x) * 1e-5)
    with pytest.raises(ValueError, match="another function"):
        schedule = ntk.Schedule(0.2, 3, 1.0)
        ntk.network_job(
            spec,
            data,
            width=8,
            member_ids=(0,),
            schedule=schedule,
            activation=jnp.tanh,
        )
    own = functools.partial(jnp.maximum, 0.0)  # the same function, in other words
    model = jax.jit(lambda: nnx.state(make(spec, activation=own)))()
    assert jax.tree.leaves(model)[0].shape == (K, 32)


def test_training_rows_and_targets_of_other_shapes_are_refused():
    """Of targets [1, output] every row would learn the same."""
    spec, schedule = ntk.FullyConnected(), ntk.Schedule(0.2, 3, 1.0)
    net = ntk.TrainNetwork(spec, 8, 1)
    eye, rest = jnp.eye(K), (jnp.int32(0), 0.1)
    for targets in (eye[:1], eye[:3], eye[0]):
        message = re.escape(f"got (4, 4) and {targets.shape}")
        with pytest.raises(ValueError, match=message):
            net(0, *rest, eye, targets, eye)
        with pytest.raises(ValueError, match=message):
            ntk.network_job(
                spec, (eye, targets), width=8, member_ids=(0,), schedule=schedule
            )
    with pytest.raises(ValueError, match=r"x_train must be \[train, feature\]"):
        net(0, *rest, eye[0], eye, eye)
    with pytest.raises(ValueError, match="must not be empty"):
        net(0, *rest, eye[:0], eye[:0], eye)
    with pytest.raises(ValueError, match=r"shape of outputs, \(15, 4\); got \(1, 4\)"):
        ntk.HalfSquares(15)(make(spec), (INPUTS, eye[:1]), None)


def test_a_schedule_that_cannot_be_is_refused():
    spec = ntk.FullyConnected()
    for x in (np.ones((2, 3)), np.array([[1.0, 2], [2, 4]])):
        with pytest.raises(ValueError, match="rows 0 and 1 are most alike"):
            ntk.training_schedule(spec, x, residual=1e-3)
    with pytest.raises(ValueError, match="fraction must be positive; got 0"):
        ntk.training_schedule(spec, np.eye(3), residual=1e-3, fraction=0)
    message = "width must be a positive integer or None; got 0"
    with pytest.raises(ValueError, match=message):
        ntk.training_schedule(spec, np.eye(3), residual=1e-3, width=0)


def bias_of_f1(activation, width, num_members):
    """Mean over ones of inputs with two, minus that of infinite width, and its error.

    What a network of infinite width keeps of its first outputs has mean 0 and is nearly
    all of the spread, so it is taken off.
    """
    spec = ntk.FullyConnected(activation=activation)
    schedule = ntk.training_schedule(spec, TASK.train_inputs, residual=1e-6)
    pairs = INPUTS[num_ones == 2]
    with jax.enable_x64(True):
        predictor = ntk.predictor(spec, TASK.train_inputs, pairs.astype(float))
        weights = np.asarray(ntk.weights(predictor))
    x = np.concatenate([TASK.train_inputs, pairs])
    ids = range(num_members)
    trained = train(spec, width, ids, schedule, x)[:, K:]
    new = train(spec, width, ids, schedule._replace(steps=0), x)
    kept = new[:, K:] - np.einsum("ri,mio->mro", weights, new[:, :K])
    away = (trained - kept - weights @ TASK.train_targets)[:, TASK.targets(pairs)]
    each = away.mean(axis=1)
    return each.mean(), each.std(ddof=1) / np.sqrt(num_members)


@pytest.mark.slow
def test_the_bias_of_width_falls_like_its_root_for_relu_and_itself_for_erf():
    """ReLU units that are off at a basis vector learn nothing: none goes on again."""
    narrow, wide, members = 128, 2_048, 400
    (first, _), (second, error) = (
        bias_of_f1("relu", width, members) for width in (narrow, wide)
    )
    assert second > 5 * error
    assert first / second == pytest.approx(4, rel=0.35)  # the root of 16
    (first, first_error), (second, error) = (
        bias_of_f1("erf", width, members) for width in (narrow, wide)
    )
    assert first > 5 * first_error
    assert abs(second - first / 16) < 4 * np.hypot(error, first_error / 16)
    assert abs(second - first / 4) > 4 * np.hypot(error, first_error / 4)


def test_an_activation_without_a_forward_derivative_is_compared_by_values():
    @jax.custom_vjp
    def relu(x):
        return jnp.maximum(x, 0)

    relu.defvjp(lambda x: (relu(x), x), lambda x, g: (jnp.where(x > 0, g, 0.0),))
    spec = ntk.FullyConnected(activation="relu")
    options = dict(in_features=2, width=4, num_outputs=1, rngs=nnx.Rngs(0))
    ntk.WideNetwork(spec, activation=relu, **options)

    class Unhashable:
        __hash__ = None

        def __call__(self, x):
            return jnp.tanh(x)

    with pytest.raises(ValueError, match="another function than 'relu'"):
        ntk.WideNetwork(spec, activation=Unhashable(), **options)
