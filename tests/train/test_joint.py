"""Joint objectives: the gradient of the written-out formula, in every form and mesh."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ensjax
from ensjax.group import Group
from ensjax.train import NegativeCorrelation, ensemble_nll, lower_step

SLOW = pytest.mark.slow
_rng = np.random.default_rng(3)
X = _rng.normal(size=(16, 6)).astype(np.float32)
Y = _rng.integers(0, 3, 16)
TARGETS = _rng.normal(size=(16, 3)).astype(np.float32)
WEIGHTS = _rng.random(16).astype(np.float32)
WHOLE = dict(make_tx=optax.sgd, hyper=1.0, sampling="shared", batch_size=16)
WHOLE |= dict(steps=1, steps_per_call=1)


def dense(params, x):
    """One member; `poison` makes its output NaN where a seventh feature is positive."""
    hidden = jnp.tanh(x[:, :6] @ params["w"])
    outputs = hidden @ params["v"]
    if x.shape[1] > 6:
        is_bad = (x[:, 6] > 0) & (params["poison"] > 0)
        outputs = jnp.where(is_bad[:, None], jnp.nan, outputs)
    return outputs


def members(num_members, mesh):
    rng = np.random.default_rng(1)
    shapes = {"w": (6, 8), "v": (8, 3), "poison": ()}
    params = {
        name: 0.5 * rng.normal(size=(num_members, *shape)).astype(np.float32)
        for name, shape in shapes.items()
    }
    params["poison"] = np.zeros(num_members, np.float32)
    return ensjax.Ensemble.from_apply(dense, params, mesh=mesh)


def weighted_nll(logits, batch, key, mask):
    """A user's own: weighted by example, so that shards add sums and not means."""
    _, labels, weights = batch
    log_probs = jax.nn.log_softmax(logits)
    own = log_probs[:, jnp.arange(len(labels)), labels]
    pooled = jax.nn.logsumexp(own, axis=0)
    total = jax.lax.psum(jnp.sum(-weights * pooled), "data")
    return total / jax.lax.psum(jnp.sum(weights), "data")


# What the objectives are on one device, written out over the stacked outputs.


def nll_formula(outputs):
    probs = jax.nn.softmax(outputs)[:, jnp.arange(16), Y]
    return -jnp.log(probs.mean(axis=0)).mean()


def ncl_formula(outputs):
    own = (outputs - TARGETS[None]) ** 2
    spread = (outputs - outputs.mean(axis=0)[None]) ** 2
    return (own - 0.7 * spread).mean()


def weighted_formula(outputs):
    probs = jax.nn.softmax(outputs)[:, jnp.arange(16), Y]
    return jnp.sum(-WEIGHTS * jnp.log(probs.sum(axis=0))) / WEIGHTS.sum()


OBJECTIVES = {
    "nll": (ensemble_nll, (X, Y), nll_formula),
    "ncl": (NegativeCorrelation(0.7), (X, TARGETS), ncl_formula),
    "weighted": (weighted_nll, (X, Y, WEIGHTS), weighted_formula),
}
FORMS = {
    "twice": dict(recompute=True),
    "tape": dict(recompute=False),
    "by parts": dict(batch_block=4),
}
FAST = {
    ("ncl", "tape", (4, 2)),
    ("weighted", "by parts", (4, 2)),
    ("weighted", "twice", (1, 1)),
}


@pytest.mark.parametrize(
    "objective, form, mesh",
    [
        case if case in FAST else pytest.param(*case, marks=SLOW)
        for case in itertools.product(OBJECTIVES, FORMS, [(1, 1), (8, 1), (4, 2)])
    ],
)
def test_the_gradient_is_that_of_the_formula(kit, objective, form, mesh):
    loss, data, formula = OBJECTIVES[objective]
    # Five members are padded on eight and on four devices.
    ensemble = members(5, kit.mesh(*mesh))
    joint = ensjax.Joint(loss, **FORMS[form])
    trained, log = kit.fit(ensemble, data, loss=joint, **WHOLE)

    def written_out(params):
        return formula(jax.vmap(dense, in_axes=(0, None))(params, X))

    params = jax.device_get(ensemble.params)
    value, gradient = jax.value_and_grad(written_out)(params)
    step = jax.tree.map(lambda a, b: a - b, params, jax.device_get(trained.params))
    kit.check_close(step, jax.device_get(gradient), tolerance=1e-6)
    np.testing.assert_allclose(log.metrics["loss"], [[value] * 5], rtol=1e-5)
    assert np.abs(step["w"]).max() > 1e-3


@pytest.mark.parametrize("block", [1, pytest.param(4, marks=SLOW)])
def test_blocks_and_calls_change_nothing(kit, block):
    options = dict(WHOLE, make_tx=lambda: optax.adam(1e-2, eps=1e-3), hyper=None)
    options |= dict(steps=10, batch_size=8, steps_per_call=5, log_every_steps=5)
    ensemble = members(5, kit.mesh(1, 1))
    joint = ensjax.Joint(ensemble_nll)
    all_at_once, _ = kit.fit(ensemble, (X, Y), loss=joint, **options)
    tape = ensjax.Joint(ensemble_nll, recompute=False)
    in_blocks, _ = kit.fit(ensemble, (X, Y), loss=tape, block=block, **options)
    kit.check_close(all_at_once, in_blocks)


@SLOW
@pytest.mark.parametrize("mesh", [(4, 2), (1, 1)])
def test_a_group_is_trained_as_one_ensemble(kit, mesh):
    ensemble = members(5, kit.mesh(*mesh))
    group = Group((ensemble.select([0, 1]), ensemble.select([2, 3, 4])))
    joint = ensjax.Joint(ensemble_nll)
    one, _ = kit.fit(ensemble, (X, Y), loss=joint, **WHOLE)
    several, log = kit.fit(group, (X, Y), loss=joint, **WHOLE)
    for part, rows in zip(several.ensembles, ([0, 1], [2, 3, 4])):
        kit.check_close(part, one.select(rows), tolerance=1e-6)
    assert log.metrics["member_nll"].shape == (1, 5)


def test_both_passes_of_batch_norm_start_from_the_same_statistics(kit):
    ensemble = kit.ensemble("mlp-batch-norm", 4, mesh=(4, 2))
    options = dict(WHOLE, batch_size=24)
    data = kit.data("mlp")
    joint, _ = kit.fit(ensemble, data, loss=ensjax.Joint(ensemble_nll), **options)
    own, _ = kit.fit(ensemble, data, **options)
    # Statistics of a first step follow from weights and batch, whatever the objective.
    kit.check_close(joint.state["rest"], own.state["rest"], tolerance=1e-6)
    moved = (
        jax.tree.leaves(own.state["rest"])[0]
        - jax.tree.leaves(ensemble.state["rest"])[0]
    )
    assert np.abs(moved).max() > 1e-4


@pytest.mark.parametrize("mesh", [(4, 2), pytest.param((1, 1), marks=SLOW)])
@pytest.mark.parametrize("recompute", [True, pytest.param(False, marks=SLOW)])
def test_a_member_that_is_nan_is_masked_and_spoils_no_other(kit, mesh, recompute):
    poisoned = np.zeros((16, 1), np.float32)
    poisoned[3] = 1  # in the first data shard only: all shards mask the member
    data = (np.concatenate([X, poisoned], axis=1), TARGETS)
    ensemble = members(5, kit.mesh(*mesh))
    params = jax.device_get(ensemble.params)
    params["poison"] = (np.arange(5) == 2).astype(np.float32)
    bad = ensjax.Ensemble.from_apply(dense, params, mesh=ensemble.mesh)
    joint = ensjax.Joint(NegativeCorrelation(0.7), recompute=recompute)
    options = dict(WHOLE, hyper=0.1, steps=4, log_every_steps=1)
    trained, log = kit.fit(bad, data, loss=joint, **options)
    rest = [0, 1, 3, 4]
    without, log_without = kit.fit(ensemble.select(rest), data, loss=joint, **options)
    kit.check_close(trained.select(rest), without, tolerance=1e-6)
    kit.check_equal(trained.select([2]), bad.select([2]))
    assert log.frozen_steps.tolist() == [-1, -1, 0, -1, -1]
    assert np.isnan(log.metrics["loss"][:, 2]).all()
    np.testing.assert_allclose(
        log.metrics["loss"][:, rest], log_without.metrics["loss"], rtol=1e-5
    )


def deep(params, x):
    """Twenty-four layers of width 64."""

    def layer(x, w):
        return jnp.tanh(x @ w), None

    return jax.lax.scan(layer, x, params)[0]


@pytest.mark.slow
def test_two_passes_need_the_tape_of_one_block_only(kit):
    ensemble = ensjax.Ensemble.from_apply(
        deep, jnp.zeros((8, 24, 64, 64)), mesh=kit.mesh(1, 1)
    )
    shapes = (jax.ShapeDtypeStruct((512, 64), jnp.float32),) * 2

    def temporary_bytes(**form):
        lowered = lower_step(
            ensemble,
            shapes,
            loss=ensjax.Joint(NegativeCorrelation(0.5), **form),
            make_tx=optax.sgd,
            hyper=0.1,
            batch_size=512,
            sampling="shared",
            block=1,
        )
        return lowered.compile().memory_analysis().temp_size_in_bytes

    layers = 24 * 512 * 64 * 4  # bytes of one member's tape
    tape = temporary_bytes(recompute=False)
    twice = temporary_bytes(recompute=True)
    parts = temporary_bytes(batch_block=64)
    assert tape > 8 * layers
    assert twice < 0.5 * tape
    assert parts < twice - 0.5 * layers
