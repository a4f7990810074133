"""Linearised members: closed form, training by `fit`, what they keep, mistakes."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ensjax
from ensjax import ntk
from ensjax.ntk.linearised import _outputs

ONE = ensjax.make_mesh(member=1, devices=jax.devices()[:1])
RNG = np.random.default_rng(0)
X = RNG.normal(size=(6, 4)).astype(np.float32)
TARGETS = RNG.normal(size=(6, 2)).astype(np.float32)
OTHERS = RNG.normal(size=(5, 4)).astype(np.float32)
STEPS = 12


def make_mlp(rngs):
    return ensjax.nn.MLP(in_features=4, hidden=(8,), num_outputs=2, rngs=rngs)


def make_cnn(rngs):
    return ensjax.nn.CNN(
        image_shape=(4, 4, 1),
        features=(2,),
        num_pools=1,
        num_outputs=2,
        norm="batch",
        rngs=rngs,
    )


def half_squares(model, batch, key):
    x, y = batch
    return jnp.sum((model(x) - y) ** 2) / 2


def trained(ensemble, x, targets, rate, steps=STEPS, **options):
    return ensjax.fit(
        ensemble,
        (x, targets),
        loss=half_squares,
        make_tx=optax.sgd,
        hyper=rate,
        steps=steps,
        batch_size=len(x),
        progress=False,
        **options,
    )[0]


@pytest.fixture(scope="module")
def members():
    return ensjax.Ensemble.init(make_mlp, num_members=3, seed=0, mesh=ONE)


@pytest.fixture(scope="module")
def training(members):
    return ntk.linear_training(members, X, TARGETS, OTHERS)


@pytest.mark.slow
def test_a_linearised_member_begins_as_the_member_it_is_made_of(members):
    linear = ntk.linearise(members)
    np.testing.assert_allclose(linear(X), members(X), atol=1e-6)
    np.testing.assert_allclose(
        ntk.empirical_ntk(linear, X), ntk.empirical_ntk(members, X), rtol=1e-5
    )
    np.testing.assert_allclose(linear[1](X), members[1](X), atol=1e-6)
    np.testing.assert_allclose(linear.select([2])(X), members(X)[2:], atol=1e-6)
    # Along any direction it is a straight line.
    away = jax.tree.map(lambda x: x + 0.3, linear.params)
    twice = jax.tree.map(lambda x: x + 0.6, linear.params)
    ends = [
        ensjax.Ensemble(
            {**linear.state, "params": p}, linear.member_ids, linear.graph, ONE
        )(X)
        for p in (away, twice)
    ]
    np.testing.assert_allclose(
        ends[1] - members(X), 2 * (ends[0] - members(X)), rtol=1e-4, atol=1e-5
    )


def test_gradient_descent_reaches_the_closed_form(members, training):
    rate = float(1.5 / training.eigenvalues.max())
    fitted = trained(ntk.linearise(members), X, TARGETS, rate)
    closed = ntk.linear_outputs(training, steps=STEPS, learning_rate=rate)
    assert np.abs(closed - members(OTHERS)).max() > 0.1
    np.testing.assert_allclose(fitted(OTHERS), closed, atol=2e-5)


@pytest.mark.slow
def test_convolutions_with_batch_norm_in_evaluation_mode_train_likewise():
    ensemble = ensjax.Ensemble.init(make_cnn, num_members=2, seed=0, mesh=ONE)
    x = RNG.normal(size=(5, 4, 4, 1)).astype(np.float32)
    training = ntk.linear_training(ensemble, x, TARGETS[:5], x)
    rate = float(1 / training.eigenvalues.max())
    fitted = trained(ntk.linearise(ensemble), x, TARGETS[:5], rate, steps=5)
    closed = ntk.linear_outputs(training, steps=5, learning_rate=rate)
    np.testing.assert_allclose(fitted(x), closed, atol=2e-5)


def test_some_parameters_may_stay(members):
    linear = ntk.linearise(members, params="^head")
    assert set(linear.params) == {"head.linear.bias", "head.linear.kernel"}
    training = ntk.linear_training(members, X, TARGETS, OTHERS, params="^head")
    # The readout is linear: the members themselves, of which it alone learns.
    rate = float(1 / training.eigenvalues.max())
    fitted = trained(linear, X, TARGETS, rate)
    closed = ntk.linear_outputs(training, steps=STEPS, learning_rate=rate)
    np.testing.assert_allclose(fitted(OTHERS), closed, atol=2e-5)


def by_eigenvalues(members, training_rows, share):
    """The closed form of one member by float64 algebra."""
    kernel = ntk.empirical_ntk(members, training_rows, outputs="full")
    cross = ntk.empirical_ntk(members, OTHERS, training_rows, outputs="full")
    size = 2 * len(training_rows)
    found = []
    for m in range(len(members)):
        k = np.asarray(kernel[m], float).swapaxes(1, 2).reshape(size, size)
        c = np.asarray(cross[m], float).swapaxes(1, 2).reshape(-1, size)
        values, modes = np.linalg.eigh(k)
        errors = (TARGETS - np.asarray(members(training_rows))[m]).reshape(-1)
        moved = c @ modes @ (share(values) / values * (modes.T @ errors))
        found.append(np.asarray(members(OTHERS))[m] + moved.reshape(-1, 2))
    return np.stack(found)


def test_time_and_convergence_equal_float64_algebra(members, training):
    for schedule, share in (
        (dict(time=0.4), lambda v: -np.expm1(-0.4 * v)),
        (dict(time=0.4, learning_rate=2.0), lambda v: -np.expm1(-0.8 * v)),
        (dict(), np.ones_like),
    ):
        expected = by_eigenvalues(members, X, share)
        found = ntk.linear_outputs(training, **schedule)
        np.testing.assert_allclose(found, expected, atol=1e-3 * np.abs(expected).max())
    np.testing.assert_array_equal(
        ntk.linear_outputs(training, steps=0, learning_rate=0.01), members(OTHERS)
    )


def test_converged_members_interpolate_and_double_rows_do_no_harm(members):
    twice = np.concatenate([X, X])
    targets = np.concatenate([TARGETS, TARGETS])
    training = ntk.linear_training(members, twice, targets, X)
    converged = ntk.linear_outputs(training)
    expected = np.broadcast_to(TARGETS, (3, 6, 2))
    np.testing.assert_allclose(converged, expected, atol=1e-3)


@pytest.mark.slow
def test_members_have_targets_of_their_own_and_stay_alone_on_any_mesh(members):
    targets = np.stack([TARGETS, -TARGETS, 2 * TARGETS])
    found = ntk.linear_outputs(
        ntk.linear_training(
            members.on_mesh(ensjax.make_mesh(member=4, data=2)), X, targets, OTHERS
        ),
        time=1.0,
    )
    for member in (0, 1, 2):
        alone = ntk.linear_training(
            members[member : member + 1], X, targets[member], OTHERS
        )
        expected = ntk.linear_outputs(alone, time=1.0)[0]
        np.testing.assert_allclose(found[member], expected, atol=1e-4)


def test_a_linearised_ensemble_is_saved_and_loaded(members, tmp_path):
    linear = ntk.linearise(members)
    linear.save(tmp_path / "linear")
    again = ensjax.Ensemble.load(tmp_path / "linear", mesh=ONE)
    np.testing.assert_array_equal(again(X), linear(X))


def test_mistakes_are_told_before_any_work(members, training):
    with pytest.raises(ValueError, match=r"targets must be \[train, output\] \(6, 2\)"):
        ntk.linear_training(members, X, TARGETS[:, :1], OTHERS)
    with pytest.raises(ValueError, match=r"x has rows of shape \(3,\)"):
        ntk.linear_training(members, X, TARGETS, OTHERS[:, :3])
    with pytest.raises(ValueError, match="found in the name of no parameter"):
        ntk.linearise(members, params="conv")
    with pytest.raises(TypeError, match="Ensemble.from_apply"):
        ntk.linearise(members.params)
    with pytest.raises(ValueError):
        ntk.linear_outputs(training, time=1.0, steps=3)
    with pytest.raises(ValueError):
        ntk.linear_outputs(training, time=-1.0)
    for wrong, message in (
        (np.full_like(TARGETS, np.nan), "targets must be finite; rows 0, 1"),
        (np.stack([TARGETS, TARGETS * np.inf, TARGETS]), "targets of member 1 must be"),
    ):
        with pytest.raises(ValueError, match=message):
            ntk.linear_training(members, X, wrong, OTHERS)


def test_a_rate_above_a_members_critical_one_is_warned_of(training):
    values = np.asarray(training.eigenvalues)
    critical = 2 / (values.min(axis=1) + values.max(axis=1))
    worst = critical.argmin()
    message = f"above the critical 0.04.* for member {worst} .1 of 3 are"
    between = np.sort(critical)[:2].mean()
    with pytest.warns(UserWarning, match=message):
        ntk.linear_outputs(training, steps=3, learning_rate=between)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ntk.linear_outputs(training, steps=3, learning_rate=0.99 * critical.min())
        ntk.linear_outputs(training, time=3.0, learning_rate=between)


def test_outputs_at_the_start_are_as_precise_as_the_kernels():
    seen = []

    def apply(params, x):
        seen.append(jax.config.jax_default_matmul_precision)
        return x @ params

    ensemble = ensjax.Ensemble.from_apply(apply, jnp.ones((2, 4, 2)))
    _outputs(ensemble, X)
    assert set(seen) == {"highest"}
