"""A member of a stack is the member alone: on any mesh, in any block, in any order."""

import dataclasses
import functools
import itertools

import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ensjax
from ensjax.data import sampling as plans
from ensjax.members import member_key

SLOW = pytest.mark.slow
MODELS = [
    "mlp",
    "mlp-batch-norm",
    "cnn-batch-norm",
    "cnn-group-norm",
    "vit",
]
# Compiling takes seconds for each; the rest of the table is for the slow run.
FAST = [("mlp-batch-norm", (4, 2))]


@pytest.fixture(scope="module")
def alone(kit):
    """A member of a model, trained in an ensemble of one."""

    @functools.cache
    def of(name, member_id):
        ensemble = kit.ensemble(name, member_ids=[member_id])
        return kit.fit(ensemble, kit.data(name))[0]

    return of


@pytest.mark.parametrize(
    "name, mesh",
    [
        case if case in FAST else pytest.param(*case, marks=SLOW)
        for case in itertools.product(MODELS, [(1, 1), (8, 1), (4, 2)])
    ],
)
def test_a_member_in_a_stack_is_the_member_alone(kit, alone, name, mesh):
    # Five members do not divide over eight or four devices: stacks are padded.
    x = kit.data(name)[0]
    trained, _ = kit.trained(name, 5, mesh)
    outputs = ensjax.predict(trained, x)
    for member_id in (1, 4):
        single = alone(name, member_id)
        kit.check_close(trained.select([member_id]), single)
        expected = ensjax.predict(single, x)[0]
        np.testing.assert_allclose(outputs[member_id], expected, atol=1e-5, rtol=0)


def double_cross_entropy(model, batch, key):
    """Cross-entropy in the precision of the model."""
    x, labels = batch
    log_probs = jax.nn.log_softmax(model(x))
    chosen = labels[:, None] == jnp.arange(3)[None]
    return -jnp.where(chosen, log_probs, 0.0).sum(axis=1).mean()


@SLOW
@pytest.mark.parametrize("mesh", [(1, 1), (8, 1), (4, 2)])
def test_a_resnet_in_a_stack_is_the_resnet_alone(kit, mesh):
    # In float64: in float32 most members agree to 4e-6, but in twenty layers of twenty
    # steps a ReLU whose input is within rounding of 0 may switch, and then that member
    # is off by 1e-2. The first gradient is compared in float32 below.
    with jax.enable_x64(True):

        def wide(x):
            return np.float64(x) if np.issubdtype(x.dtype, np.floating) else x

        def trained(ids, mesh):
            ensemble = kit.ensemble("resnet-20", member_ids=ids)
            state = jax.tree.map(wide, jax.device_get(ensemble.state))
            ensemble = dataclasses.replace(ensemble, state=state)
            x, y = kit.data("resnet-20")
            return kit.fit(
                ensemble.on_mesh(kit.mesh(*mesh)),
                (wide(x), y),
                loss=double_cross_entropy,
            )[0]

        stack = trained([0, 1, 2, 3, 4], mesh)
        for member_id in (1, 4):
            single = trained([member_id], (1, 1))
            kit.check_close(stack.select([member_id]), single, tolerance=1e-10)


@SLOW
def test_dropout_of_a_member_in_a_stack_is_that_of_the_member_alone(kit, alone):
    trained, _ = kit.trained("mlp-dropout", 5, (8, 1))
    kit.check_close(trained.select([4]), alone("mlp-dropout", 4))
    # It did drop something: without it, the same member learns other weights.
    plain = kit.trained("mlp", 5, (1, 1))[0]
    kernels = [
        np.asarray(e.params["blocks"][0]["linear"]["kernel"])[4]
        for e in (trained, plain)
    ]
    assert np.abs(kernels[0] - kernels[1]).max() > 1e-3


@pytest.mark.parametrize("block", [pytest.param(1, marks=SLOW), 4])
@pytest.mark.parametrize(
    "name",
    ["mlp", pytest.param("mlp-dropout", marks=SLOW), pytest.param("vit", marks=SLOW)],
)
def test_with_a_fixed_block_a_dense_member_has_the_bits_of_the_member_alone(
    kit, name, block
):
    ensemble = kit.ensemble(name, 5)
    stack, _ = kit.fit(ensemble, kit.data(name), block=block)
    for i in (0, 2, 4):
        # An ensemble of one is padded to the same block.
        single, _ = kit.fit(ensemble.select([i]), kit.data(name), block=block)
        kit.check_equal(stack.select([i]), single)


WAYS = [dict(block=1), dict(unroll=True), dict(block=None), dict(block=4)]


@pytest.mark.parametrize(
    "way", WAYS[:1] + [pytest.param(w, marks=SLOW) for w in WAYS[1:]]
)
@pytest.mark.parametrize("name", ["mlp", pytest.param("cnn-batch-norm", marks=SLOW)])
def test_every_block_gives_the_same_members(kit, name, way):
    automatic, _ = kit.trained(name, 5, (1, 1))
    other, _ = kit.fit(kit.ensemble(name, 5), kit.data(name), **way)
    kit.check_close(automatic, other)


@pytest.mark.parametrize("name", ["mlp", pytest.param("cnn-batch-norm", marks=SLOW)])
def test_steps_a_call_change_nothing(kit, name):
    ensemble, data = kit.ensemble(name, 5), kit.data(name)
    options = dict(log_every_steps=10, steps=25)
    ten, log_ten = kit.fit(ensemble, data, **options)
    one, log_one = kit.fit(ensemble, data, steps_per_call=1, **options)
    kit.check_close(one, ten)
    kit.check_close(log_one.metrics, log_ten.metrics)
    # The last call of five steps was the same program.
    assert log_ten.steps.tolist() == [10, 20, 25]


TRANSFORMATIONS = {
    "chain": lambda lr: optax.chain(
        optax.clip_by_global_norm(0.1),
        optax.add_decayed_weights(0.1),
        optax.sgd(lr, momentum=0.9),
    ),
    "sgd": lambda lr: optax.sgd(lr),
    "clipped": lambda lr: optax.chain(optax.clip_by_global_norm(0.1), optax.sgd(lr)),
    "decayed": lambda lr: optax.chain(optax.add_decayed_weights(0.1), optax.sgd(lr)),
}


@pytest.mark.parametrize(
    "tx",
    ["chain", *(pytest.param(n, marks=SLOW) for n in ("sgd", "clipped", "decayed"))],
)
def test_optimizers_that_show_a_wrong_factor_agree_on_meshes(kit, tx):
    options = dict(make_tx=TRANSFORMATIONS[tx], hyper=0.1, steps=5, steps_per_call=5)
    data = kit.data()
    one, _ = kit.fit(kit.ensemble("mlp-batch-norm", 4), data, **options)
    split = kit.ensemble("mlp-batch-norm", 4, mesh=(4, 2))
    kit.check_close(one, kit.fit(split, data, **options)[0])


@pytest.mark.parametrize(
    "name",
    [
        "mlp-batch-norm",
        *(pytest.param(n, marks=SLOW) for n in ("cnn-batch-norm", "vit", "resnet-20")),
    ],
)
def test_the_first_gradient_is_that_of_the_member_alone_on_every_mesh(kit, name):
    def first_gradient(ids, mesh):
        before = kit.ensemble(name, member_ids=ids, mesh=mesh)
        options = dict(make_tx=optax.sgd, hyper=1.0, steps=1, steps_per_call=1)
        after, _ = kit.fit(before, kit.data(name), **options)
        before, after = jax.device_get((before.params, after.params))
        return jax.tree.map(lambda a, b: a - b, before, after)

    gradient = first_gradient([0, 1, 2, 3], (1, 1))
    assert max(np.abs(x).max() for x in jax.tree.leaves(gradient)) > 0.01
    for mesh in ((8, 1), (4, 2)):
        kit.check_close(gradient, first_gradient([0, 1, 2, 3], mesh))
    row = jax.tree.map(lambda x: x[2:3], gradient)
    kit.check_close(row, first_gradient([2], (1, 1)))


# A member written by hand: no engine, only the plans of ensjax.data.


def dense(params, x):
    """A bare function as a model."""
    return jnp.tanh(x @ params["w"] + params["b"][None]) @ params["v"]


def dense_params(num_members):
    rng = np.random.default_rng(1)
    shapes = {"w": (6, 8), "b": (8,), "v": (8, 3)}
    return {
        name: rng.normal(size=(num_members, *shape)).astype(np.float32) * 0.3
        for name, shape in shapes.items()
    }


def rows_by_hand(sampling, member_id, step, num_examples, batch_size, seed, weights):
    """The rows of one member's batch, by a loop over its positions."""
    per_epoch = num_examples // batch_size
    epoch, first = step // per_epoch, step % per_epoch * batch_size
    if sampling == "weighted":
        key = jax.random.fold_in(member_key(seed, "weighted", member_id), step)
        cumulative = jnp.asarray(plans.accumulate_weights(weights))
        return np.asarray(plans.weighted_rows(key, cumulative, jnp.arange(batch_size)))
    purpose, owner = "order", member_id
    if sampling == "shared":
        purpose, owner = "shared_order", 0
    order = plans.epoch_orders(member_key(seed, purpose, owner), num_examples, epoch, 1)
    rows = np.asarray(order)[0, first : first + batch_size]
    if sampling == "bootstrap":
        key = member_key(seed, "bootstrap", member_id)
        rows = np.asarray(plans.bootstrap_rows(key, num_examples))[rows]
    return rows


def train_by_hand(
    params, data, steps, batch_size, *, sampling, seed, member_id, weights
):
    tx = optax.adam(1e-3, eps=1e-3)
    x, y = map(jnp.asarray, data)

    def loss(params, rows):
        log_probs = jax.nn.log_softmax(dense(params, x[rows]))
        return -log_probs[jnp.arange(len(rows)), y[rows]].mean()

    @jax.jit
    def step(params, state, rows):
        updates, state = tx.update(jax.grad(loss)(params, rows), state, params)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    for number in range(steps):
        rows = rows_by_hand(
            sampling, member_id, number, len(x), batch_size, seed, weights
        )
        params, state = step(params, state, rows)
    return params


@pytest.mark.parametrize("mesh", [(4, 2), pytest.param((1, 1), marks=SLOW)])
@pytest.mark.parametrize(
    "sampling",
    ["bootstrap"]
    + [pytest.param(n, marks=SLOW) for n in ("weighted", "independent", "shared")],
)
def test_every_sampling_is_a_loop_written_by_hand(kit, sampling, mesh):
    params, ids = dense_params(3), [2, 0, 11]
    # 22 examples in batches of 8: two steps an epoch, a rest that is dropped.
    data = tuple(leaf[:22] for leaf in kit.data())
    weights = (
        np.random.default_rng(2).random((3, 22)) if sampling == "weighted" else None
    )
    ensemble = ensjax.Ensemble.from_apply(
        dense, params, member_ids=ids, mesh=kit.mesh(*mesh)
    )
    options = dict(
        sampling=sampling, weights=weights, steps=15, steps_per_call=3, seed=5
    )
    trained, _ = kit.fit(ensemble, data, log_every_steps=3, **options)
    for i, member_id in enumerate(ids):
        expected = train_by_hand(
            jax.tree.map(lambda p: p[i], params),  # noqa: B023
            data,
            15,
            8,
            sampling=sampling,
            seed=5,
            member_id=member_id,
            weights=None if weights is None else weights[i],
        )
        kit.check_close(jax.tree.map(lambda p: p[i], trained.params), expected)  # noqa: B023


@SLOW
def test_weights_that_all_members_share_are_those_of_each(kit):
    weights = np.arange(24.0)
    ensemble = kit.ensemble("mlp", 3)
    shared, _ = kit.fit(ensemble, kit.data(), sampling="weighted", weights=weights)
    each, _ = kit.fit(
        ensemble, kit.data(), sampling="weighted", weights=np.tile(weights, (3, 1))
    )
    kit.check_close(shared, each)


def noisy(key, example):
    """An example with noise of its own."""
    x, y = example
    return x + jax.random.normal(key, x.shape), y


def noisy_loss(model, batch, key):
    """A loss that draws for every example by its place in the global batch."""
    x, y = batch
    keys = ensjax.losses.example_keys(key, len(x))
    x = x + jax.vmap(lambda k: jax.random.normal(k, x.shape[1:]))(keys)
    return ensjax.losses.cross_entropy(model, (x, y), key)


def test_draws_of_an_example_are_the_same_on_every_mesh(kit):
    draws = dict(augment=noisy, loss=noisy_loss)
    one, _ = kit.fit(kit.ensemble("mlp", 4), kit.data(), **draws)
    split, _ = kit.fit(kit.ensemble("mlp", 4, mesh=(2, 4)), kit.data(), **draws)
    kit.check_close(one, split)


def test_hyperparameters_of_each_member_are_those_of_separate_runs(kit):
    hyper = {"learning_rate": np.array([1e-3, 1e-2, 3e-2]), "decay": (0.0, 0.1, 0.01)}

    def make_tx(hyper):
        return optax.chain(
            optax.add_decayed_weights(hyper["decay"]),
            optax.adam(hyper["learning_rate"], eps=1e-3),
        )

    ensemble = kit.ensemble("mlp", 3)
    together, _ = kit.fit(ensemble, kit.data(), make_tx=make_tx, hyper=hyper)
    for i in range(3):
        own = {name: float(values[i]) for name, values in hyper.items()}
        alone, _ = kit.fit(ensemble.select([i]), kit.data(), make_tx=make_tx, hyper=own)
        kit.check_close(together.select([i]), alone)


def test_ids_decide_and_not_positions(kit, alone):
    trained, _ = kit.trained("mlp", 5, (1, 1))
    ensemble = kit.ensemble("mlp", 5).select([4, 1, 0, 3, 2])
    reordered, _ = kit.fit(ensemble, kit.data())
    kit.check_equal(reordered, trained.select([4, 1, 0, 3, 2]))
    assert reordered.member_ids.tolist() == [4, 1, 0, 3, 2]
    kit.check_close(trained.select([1]), alone("mlp", 1))
    other, _ = kit.fit(kit.ensemble("mlp", 5).with_ids([5, 6, 7, 8, 9]), kit.data())
    with pytest.raises(AssertionError):
        kit.check_close(other, trained, tolerance=2e-4)


@pytest.mark.parametrize("num_members", [1, pytest.param(9, marks=SLOW)])
def test_any_number_of_members_trains_on_eight_devices(kit, num_members):
    whole, log = kit.trained("mlp", num_members, (8, 1))
    kit.check_close(whole, kit.trained("mlp", num_members, (1, 1))[0])
    assert log.metrics["loss"].shape == (2, num_members)
    assert whole.num_members == num_members
    assert log.num_padding == -num_members % 8


def test_what_is_trained_is_left_as_it_is(kit):
    ensemble = kit.ensemble("mlp", 5)
    before = jax.device_get(ensemble.state)
    kit.fit(ensemble, kit.data())
    kit.check_equal(ensemble, before)


@pytest.mark.slow
def test_a_linen_module_is_the_bare_function_it_is(kit):
    class Dense(flax.linen.Module):
        @flax.linen.compact
        def __call__(self, x):
            x = flax.linen.tanh(flax.linen.Dense(8, name="hidden")(x))
            return flax.linen.Dense(3, use_bias=False, name="head")(x)

    params = dense_params(3)
    named = {
        "params": {
            "hidden": {"kernel": params["w"], "bias": params["b"]},
            "head": {"kernel": params["v"]},
        }
    }
    mesh = kit.mesh(1, 1)
    linen = ensjax.Ensemble.from_apply(Dense().apply, named, mesh=mesh)
    linen, _ = kit.fit(linen, kit.data())
    bare, _ = kit.fit(ensjax.Ensemble.from_apply(dense, params, mesh=mesh), kit.data())
    kernel = linen.params["params"]["hidden"]["kernel"]
    np.testing.assert_allclose(kernel, bare.params["w"], atol=1e-6)


@pytest.mark.parametrize("mesh", [(4, 2), pytest.param((1, 1), marks=SLOW)])
def test_a_group_trains_in_one_program_as_its_ensembles_do_alone(
    kit, compilations, mesh
):
    parts = [
        kit.ensemble("mlp", 3, mesh=mesh),
        kit.ensemble("mlp-batch-norm", member_ids=[10, 11], mesh=mesh),
    ]
    compilations.clear()
    group, log = kit.fit(ensjax.Group(tuple(parts)), kit.data())
    assert compilations.count("jit(TrainSteps)") == 1
    assert log.metrics["loss"].shape == (2, 5)
    for together, part in zip(group.ensembles, parts):
        separate, _ = kit.fit(part, kit.data())
        kit.check_close(together, separate)


WIDE_TX = {
    "clipped adam": lambda lr: optax.chain(
        optax.clip_by_global_norm(0.5), optax.adam(lr, eps=1e-3)
    ),
    "adafactor": lambda lr: optax.adafactor(lr, min_dim_size_to_factor=8),
}


@SLOW
@pytest.mark.parametrize("tx", ["clipped adam", "adafactor"])
@pytest.mark.parametrize("mesh", [(4, 2), pytest.param((1, 8), marks=SLOW)])
def test_a_split_state_trains_as_a_whole_one_and_rests_split(kit, runs, mesh, tx):
    def make_model(rngs):
        return ensjax.nn.MLP(in_features=6, hidden=(64, 64), num_outputs=3, rngs=rngs)

    ensemble = ensjax.Ensemble.init(make_model, num_members=4, mesh=kit.mesh(*mesh))
    options = dict(make_tx=WIDE_TX[tx], hyper=1e-2, evaluation=kit.data())
    options |= dict(early_stopping=ensjax.EarlyStopping(patience=None))
    whole, log_whole = kit.fit(ensemble, kit.data(), **options)
    split, log_split = kit.fit(ensemble, kit.data(), shard_state=True, **options)
    kit.check_close(whole, split)
    kit.check_close(log_whole.evaluations, log_split.evaluations)
    (_, whole_state), (_, split_state) = runs
    for (path, a), b in zip(
        jax.tree.leaves_with_path(whole_state),
        jax.tree.leaves(split_state),
        strict=True,
    ):
        bytes_a, bytes_b = (x.addressable_shards[0].data.nbytes for x in (a, b))
        is_large = a.size // a.shape[0] >= 1024
        assert ("data" in b.sharding.spec) == is_large, jax.tree_util.keystr(path)
        assert bytes_b * (mesh[1] if is_large else 1) == bytes_a


def test_a_pytorch_loader_trains_as_the_arrays_in_its_order(kit):
    torch = pytest.importorskip("torch")
    x, y = kit.data()
    dataset = torch.utils.data.TensorDataset(torch.tensor(x), torch.tensor(y))
    loader = torch.utils.data.DataLoader(dataset, batch_size=8)
    batches = [(x[i : i + 8], y[i : i + 8]) for i in range(0, 24, 8)]
    ensemble = kit.ensemble("mlp", 2)
    trained, _ = kit.fit(ensemble, loader)
    expected, _ = kit.fit(ensemble, batches)
    kit.check_equal(trained, expected)
