"""Health policies: what becomes of broken members, and that the others see nothing."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ensjax
from ensjax import nn
from ensjax.train.objectives import ensemble_nll

BAD = [1, 3]
OTHERS = [0, 2, 4]


def make_model(rngs):
    return nn.MLP(in_features=6, hidden=(8,), num_outputs=3, rngs=rngs)


def health(policy, **options):
    if policy == "reseed":
        options["make_model"] = make_model
    return ensjax.Health(policy=policy, **options)


def squares(model, batch, key):
    """Mean squared error, under which a high learning rate makes weights explode."""
    x, y = batch
    return ((model(x) - jax.nn.one_hot(y, 3)) ** 2).mean()


def standardised(model, batch, key):
    """Cross-entropy of features over their standard deviation in the batch."""
    x, y = batch
    return ensjax.losses.cross_entropy(
        model, (x / x.std(axis=0, keepdims=True), y), key
    )


POLICIES = ("freeze", "rollback", "reseed")


def faults(kit):
    """Name -> (ensemble, data, options), each of which breaks the members `BAD`."""
    x, y = kit.data()
    ensemble = kit.ensemble("mlp")
    rates = np.full(5, 1e-3)
    exploding = np.where(np.isin(np.arange(5), BAD), 1e4, rates)
    infinite = np.where(np.isin(np.arange(5), BAD), np.inf, rates)
    # Of the first twelve examples one feature varies, of the others it does not.
    x = np.array(x)
    x[12:, 2] = 1.0
    weights = np.ones((5, 24))
    weights[:, 12:] = np.isin(np.arange(5), BAD)[:, None]
    weights[:, :12] = 1 - weights[:, 12:]
    drawn = dict(sampling="weighted", weights=weights)
    exploding = dict(make_tx=optax.sgd, loss=squares, hyper=exploding)
    return {
        "exploding rate": (ensemble, (x, y), exploding),
        "infinite rate": (ensemble, (x, y), dict(hyper=infinite)),
        "zero variance": (ensemble, (x, y), dict(loss=standardised, **drawn)),
    }


FAULTS = ("exploding rate", "zero variance", "infinite rate")


@pytest.mark.parametrize(
    "policy, fault",
    [
        pytest.param(policy, fault, marks=() if i == j < 2 else pytest.mark.slow)
        for i, policy in enumerate(POLICIES)
        for j, fault in enumerate(FAULTS)
    ],
)
def test_a_fault_of_some_members_changes_no_bit_of_the_others(
    kit, policy, fault, compilations
):
    ensemble, data, options = faults(kit)[fault]
    options = options | dict(health=health(policy), steps_per_call=5, log_every_steps=5)
    healthy = dict(options, hyper=1e-3)
    if "weights" in options:
        weights = np.ones((5, 24))
        weights[:, 12:] = 0
        healthy["weights"] = weights
    jax.clear_caches()
    compilations.clear()
    expected, _ = kit.fit(ensemble, data, **healthy)
    assert "jit(TrainSteps)" in compilations
    compilations.clear()
    trained, log = kit.fit(ensemble, data, **options)
    assert "jit(TrainSteps)" not in compilations
    kit.check_equal(trained.select(OTHERS), expected.select(OTHERS))
    touched = log.frozen_steps >= 0
    if policy != "freeze":
        touched |= (log.recovery_steps >= 0).any(axis=1)
        assert log.recovery_steps.shape == (5, 3)
    assert np.flatnonzero(touched).tolist() == BAD
    for leaf in jax.tree.leaves(trained.params):
        assert np.isfinite(np.asarray(leaf)).all()


def deep_model(rngs):
    return nn.MLP(in_features=6, hidden=(8, 8), num_outputs=3, rngs=rngs)


def with_infinite_best(learning_rate):
    """Adam beside a best value so far, which is infinite at the beginning."""
    adam = optax.adam(learning_rate)

    def init(params):
        return {"adam": adam.init(params), "best": jnp.array([jnp.inf, 0.0])}

    def update(grads, state, params):
        updates, own = adam.update(grads, state["adam"], params)
        return updates, {"adam": own, "best": state["best"]}

    return optax.GradientTransformation(init, update)


@pytest.mark.parametrize(
    "policy, mesh, shard_state, make_tx",
    [
        ("freeze", (1, 1), False, with_infinite_best),
        ("rollback", (1, 1), False, optax.adam),
        pytest.param("reseed", (1, 1), False, optax.adam, marks=pytest.mark.slow),
        pytest.param("freeze", (2, 2), True, optax.adam, marks=pytest.mark.slow),
        pytest.param(
            "rollback", (2, 2), True, with_infinite_best, marks=pytest.mark.slow
        ),
    ],
)
def test_an_optimizer_whose_state_overflows_is_a_fault(
    kit, policy, mesh, shard_state, make_tx, compilations
):
    """At a rate of 1e10 Adam's second moment is infinite, and loss and weights are not.

    Without a look at the optimizer's state these members would seem healthy, and never
    change again. What is infinite there from the beginning is no fault.
    """
    num_members = 4
    mesh = kit.mesh(*mesh)
    ensemble = ensjax.Ensemble.init(deep_model, num_members=num_members, mesh=mesh)
    options = dict(steps=20, steps_per_call=10, log_every_steps=10, make_tx=make_tx)
    options |= dict(shard_state=shard_state)
    own = {"make_model": deep_model} if policy == "reseed" else {}
    unseen = dict(options, health="off")
    guarded = dict(options, health=ensjax.Health(policy=policy, **own))
    rates = np.full(num_members, 1e-3)
    expected, log = kit.fit(ensemble, kit.data(), hyper=rates, **guarded)
    assert (log.frozen_steps == -1).all()
    assert policy == "freeze" or (log.recovery_steps == -1).all()
    rates[BAD] = 1e10
    compilations.clear()
    trained, log = kit.fit(ensemble, kit.data(), hyper=rates, **guarded)
    assert "jit(TrainSteps)" not in compilations
    kit.check_equal(trained.select([0, 2]), expected.select([0, 2]))
    if policy == "freeze":
        assert log.frozen_steps.tolist() == [-1, 0, -1, 0]
        kit.check_equal(trained.select(BAD), ensemble.select(BAD))
    else:
        assert (log.recovery_steps[BAD, 0] == 0).all()
        assert (log.recovery_steps[[0, 2]] == -1).all()
    if make_tx is optax.adam and not shard_state:
        # What is watched is nothing that the loss or the weights would show.
        dead, log = kit.fit(ensemble, kit.data(), hyper=rates, **unseen)
        assert np.isfinite(log.metrics["loss"]).all()
        for leaf in jax.tree.leaves(dead.params):
            assert np.isfinite(np.asarray(leaf)).all()


@pytest.mark.parametrize(
    "mesh, block, shard_state",
    [
        ((1, 1), None, False),
        pytest.param((1, 1), 1, False, marks=pytest.mark.slow),
        pytest.param((4, 2), "auto", False, marks=pytest.mark.slow),
        pytest.param((4, 2), 1, True, marks=pytest.mark.slow),
    ],
)
def test_a_rollback_is_the_state_of_the_last_look_with_a_smaller_rate(
    kit, mesh, block, shard_state
):
    """The steps of the broken call are lost; then the rate is a tenth, by hand."""
    ensemble = kit.ensemble("mlp", 5, mesh=mesh)
    rates = np.where(np.arange(5) == 1, 30.0, 1e-3)

    def breaks_at_twenty(model, batch, key):
        loss, metrics = ensjax.losses.cross_entropy(model, batch, key)
        largest = jnp.abs(model.blocks[0].linear.kernel[...]).max()
        return jnp.where(largest > 20, jnp.nan, loss), metrics

    options = dict(
        loss=breaks_at_twenty,
        make_tx=optax.sgd,
        sampling="independent",
        steps=20,
        steps_per_call=5,
        log_every_steps=5,
        block=block,
        shard_state=shard_state,
    )
    trained, log = kit.fit(
        ensemble, kit.data(), hyper=rates, health="rollback", **options
    )
    recovered = log.recovery_steps[1]
    assert recovered[0] >= 0 and (log.recovery_steps[[0, 2, 3, 4]] == -1).all()
    assert np.isfinite(log.metrics["loss"][-1]).all()
    # By hand: up to the look, then from there with each smaller rate; a broken call is
    # left out, though its batches are drawn.
    by_hand, _ = kit.fit(
        ensemble.select([1]).on_mesh(kit.mesh(1, 1)),
        kit.data(),
        hyper=30.0,
        **options
        | dict(
            make_tx=lambda first_rate: _by_calls(recovered, first_rate),
            loss=ensjax.losses.cross_entropy,
            block=None,
            shard_state=False,
        ),
    )
    kit.check_close(trained.select([1]), by_hand, 1e-4)


def _by_calls(recovered, first_rate):
    """SGD whose rate is that of each call of five steps, 0 in a call that broke."""
    broken = [int(step) for step in recovered if step >= 0]

    def rate(step):
        number = sum((step >= at).astype(jnp.float32) for at in broken)
        inside = sum(
            ((step >= at) & (step < at + 5)).astype(jnp.int32) for at in broken
        )
        return jnp.where(inside > 0, 0.0, first_rate * 0.1**number)

    return optax.sgd(rate)


def test_a_reseeded_member_is_a_new_one_and_learns(kit):
    """From the look on: new weights by (seed, id, number), a new optimizer."""
    ensemble = kit.ensemble("mlp")
    rates = np.full(5, 1e-2)
    state = jax.device_get(ensemble.state)
    kernel = state["params"]["blocks"][0]["linear"]["kernel"]
    weights = np.array(kernel.get_value())
    weights[3, 0, 0] = np.nan  # broken from the start
    kernel.set_value(weights)
    spoilt = dataclasses.replace(ensemble, state=state).on_mesh(ensemble.mesh)
    options = dict(hyper=rates, steps=40, steps_per_call=5, log_every_steps=5)
    trained, log = kit.fit(spoilt, kit.data(), health=health("reseed"), **options)
    assert log.recovery_steps[3].tolist() == [0, -1, -1]
    assert (log.frozen_steps == -1).all()
    assert np.isnan(log.metrics["loss"][0, 3])
    assert log.metrics["loss"][-1, 3] < log.metrics["loss"][1, 3]
    # Another seed of `fit` gives other new weights; the same one, the same bits.
    again, _ = kit.fit(spoilt, kit.data(), health=health("reseed"), **options)
    kit.check_equal(trained, again)
    # Alone, under the same id, it becomes the same model.
    alone, _ = kit.fit(
        spoilt.select([3]),
        kit.data(),
        health=health("reseed"),
        **options | {"hyper": 1e-2},
    )
    kit.check_close(trained.select([3]), alone)


def test_a_member_that_breaks_again_and_again_is_frozen_in_the_end(kit):
    ensemble, data, options = faults(kit)["infinite rate"]
    policy = health("rollback", max_recoveries=2)
    options |= dict(health=policy, steps=20, steps_per_call=5, log_every_steps=5)
    trained, log = kit.fit(ensemble, data, **options)
    assert log.recovery_steps[BAD].tolist() == [[0, 5]] * 2
    assert log.frozen_steps.tolist() == [-1, 10, -1, 10, -1]
    kit.check_equal(trained.select(BAD), ensemble.select(BAD))


@pytest.mark.parametrize(
    "policy", [pytest.param("rollback", marks=pytest.mark.slow), "reseed"]
)
def test_recoveries_survive_a_restart(kit, tmp_path, policy):
    ensemble, data, options = faults(kit)["exploding rate"]
    options |= dict(health=health(policy), steps_per_call=5, log_every_steps=5)
    whole, log = kit.fit(ensemble, data, **options)
    options["checkpoint_dir"] = tmp_path / "run"
    kit.fit(ensemble, data, **options | {"steps": 10})
    resumed, resumed_log = kit.fit(ensemble, data, **options)
    assert resumed_log.resumed_step == 10
    kit.check_equal(resumed, whole)
    np.testing.assert_array_equal(resumed_log.recovery_steps, log.recovery_steps)
    with pytest.raises(ValueError, match="health"):
        kit.fit(ensemble, data, **options | {"health": "freeze"})


@pytest.mark.parametrize(
    "policy", ["rollback", pytest.param("reseed", marks=pytest.mark.slow)]
)
def test_members_of_a_joint_objective_recover(kit, policy):
    ensemble, data, options = faults(kit)["infinite rate"]
    joint = ensjax.Joint(ensemble_nll)
    options |= dict(loss=joint, sampling="shared", health=health(policy))
    _, log = kit.fit(ensemble, data, **options)
    assert log.recovery_steps[BAD].tolist() == [[0, 1, 2]] * 2
    assert log.frozen_steps.tolist() == [-1, 3, -1, 3, -1]


def test_nobody_looks_when_health_is_off(kit):
    ensemble, data, options = faults(kit)["infinite rate"]
    healthy, _ = kit.fit(ensemble, data, **options | {"hyper": 1e-3})
    trained, log = kit.fit(ensemble, data, health="off", **options)
    kit.check_close(trained.select(OTHERS), healthy.select(OTHERS), 1e-6)
    assert not np.isfinite(log.metrics["loss"][-1, BAD]).any()
    assert (log.frozen_steps == -1).all() and log.recovery_steps is None


def test_the_progress_line_says_who_recovered(kit, capsys):
    ensemble, data, options = faults(kit)["exploding rate"]
    kit.fit(ensemble, data, health="rollback", progress=True, **options)
    assert "recovered: 2 of 5 (1, 3)" in capsys.readouterr().out


@pytest.mark.parametrize(
    "options, words",
    [
        (dict(health="freze"), "health is one of freeze, rollback, reseed, off"),
        (dict(health=3), "an ensjax.Health; got int"),
        (dict(health="reseed"), "make_model"),
    ],
)
def test_policies_that_cannot_work_are_refused(kit, options, words):
    with pytest.raises((TypeError, ValueError), match=words):
        kit.fit(kit.ensemble("mlp"), kit.data(), **options)


def test_a_make_model_of_another_architecture_is_refused(kit):
    wide = ensjax.Health(
        policy="reseed",
        make_model=lambda rngs: nn.MLP(
            in_features=6, hidden=(9,), num_outputs=3, rngs=rngs
        ),
    )
    with pytest.raises(ValueError, match=r"bias.*\(9,\).*\(8,\)"):
        kit.fit(kit.ensemble("mlp"), kit.data(), health=wide)
    with pytest.raises(ValueError, match="learning_rate_factor"):
        ensjax.Health(learning_rate_factor=0.0)
    with pytest.raises(ValueError, match="max_recoveries"):
        ensjax.Health(max_recoveries=0)
