"""The state of a member split over data shards: its parts, and optimizers on parts."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ensjax
from ensjax.train import lower_step
from ensjax.train.layout import Layout, on_parts

SHARDS = 4
SHAPES = {"w": (64, 32), "wide": (6, 256), "odd": (33, 33), "b": (32,)}


def parameters(seed):
    rng = np.random.default_rng(seed)
    return {
        name: jnp.asarray(rng.normal(size=shape), jnp.float32)
        for name, shape in SHAPES.items()
    }


def layout_of(tree):
    return Layout.of(jax.tree.map(lambda x: x[None], tree), SHARDS)


def test_large_leaves_are_split_along_their_longest_axis_that_divides():
    layout = layout_of(parameters(0))
    axes = dict(zip(sorted(SHAPES), layout.axes, strict=True))
    assert axes == {"b": -1, "odd": -1, "w": 0, "wide": 1}
    assert layout.specs["wide"] == jax.P("member", None, "data")
    assert layout.specs["odd"] == jax.P("member")


def on_shards(fn):
    """`fn` of wholes under `on_parts`, on four shards; and its gathers."""
    mesh = ensjax.make_mesh(member=1, data=SHARDS, devices=jax.devices()[:SHARDS])

    def run(params, opt_state, grads):
        layouts = [layout_of(x) for x in (params, opt_state, grads)]

        def local(*whole):
            parts = [x.split(tree) for x, tree in zip(layouts, whole, strict=True)]
            updated = on_parts(fn, layouts, num_outputs=2)(*parts)
            return [x.gather(tree) for x, tree in zip(layouts, updated)]

        return jax.shard_map(
            local, mesh=mesh, in_specs=jax.P(), out_specs=jax.P(), check_vma=False
        )(params, opt_state, grads)

    return run


def masked(tx):
    return optax.masked(tx, {"w": True, "wide": False, "odd": True, "b": False})


def by_column():
    """A learning rate for each entry of `w`: a constant array of its whole shape."""
    rates = {
        name: np.linspace(0, 1, np.prod(s)).reshape(s) for name, s in SHAPES.items()
    }
    return optax.stateless(
        lambda grads, _: jax.tree.map(lambda g, r: g * r.astype("f"), grads, rates)
    )


def scaled_by_fan_in():
    """Elementwise, but by a number that is another one for a part."""
    return optax.stateless(
        lambda grads, _: jax.tree.map(lambda g: g / g.shape[0] / g.shape[-1], grads)
    )


def scaled_by_a_constant():
    """The same, by a constant array."""
    return optax.stateless(
        lambda grads, _: jax.tree.map(lambda g: g * jnp.float32(1 / g.shape[0]), grads)
    )


ELEMENTWISE = {
    "sgd": optax.sgd(0.1, momentum=0.9, nesterov=True),
    "adamw": optax.adamw(optax.cosine_decay_schedule(0.1, 10), weight_decay=0.1),
    "lion": optax.lion(0.1),
    "rmsprop": optax.rmsprop(0.1, centered=True),
    "clipped": optax.chain(optax.clip(0.5), optax.adam(0.1)),
    "masked": masked(optax.adam(0.1)),
    "every second step": optax.MultiSteps(optax.adam(0.1), 2).gradient_transformation(),
    "injected": optax.inject_hyperparams(optax.adam)(learning_rate=0.1),
}
WHOLE = {
    "clipped by norm": optax.chain(optax.clip_by_global_norm(0.5), optax.adam(0.1)),
    "factored": optax.adafactor(0.1, min_dim_size_to_factor=8),
    "lamb": optax.lamb(0.1),
    "noise": optax.chain(optax.add_noise(0.1, 0.5, key=0), optax.sgd(0.1)),
    "by column": by_column(),
    "scaled by fan-in": scaled_by_fan_in(),
    "scaled by a constant": scaled_by_a_constant(),
    "centred": optax.chain(optax.centralize(), optax.adam(0.1)),
}


@pytest.mark.parametrize(
    "name",
    [
        n
        if n in ("sgd", "adamw", "clipped by norm", "by column", "centred")
        else pytest.param(n, marks=pytest.mark.slow)
        for n in (*ELEMENTWISE, *WHOLE)
    ],
)
def test_every_optimizer_is_exact_on_parts_and_gathers_only_where_it_must(name):
    tx = (ELEMENTWISE | WHOLE)[name]

    def step(params, opt_state, grads):
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    params, grads = parameters(0), parameters(1)
    opt_state = tx.init(params)
    # A second step, from statistics that are not zero.
    params, opt_state = step(params, opt_state, grads)
    expected = step(params, opt_state, parameters(2))
    run = on_shards(step)
    got = jax.jit(run)(params, opt_state, parameters(2))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        if jnp.issubdtype(b.dtype, jnp.floating):  # not the key of the noise
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    gathers = str(jax.make_jaxpr(run)(params, opt_state, grads)).count("all_gather[")
    split = sum(
        axis >= 0 for tree in (params, opt_state) for axis in layout_of(tree).axes
    )
    in_update = gathers - split  # those of `on_shards` itself
    assert (in_update > 0) == (name in WHOLE)


def lowered(shard_state, tx=optax.adam, **options):
    """The program of two wide members a shard of eight."""

    def model(rngs):
        return ensjax.nn.MLP(
            in_features=128, hidden=(256, 256), num_outputs=8, rngs=rngs
        )

    shapes = jax.eval_shape(lambda: ensjax.Ensemble.init(model, num_members=2))
    data = (
        jax.ShapeDtypeStruct((64, 128), jnp.float32),
        jax.ShapeDtypeStruct((64,), jnp.int32),
    )
    return lower_step(
        shapes,
        data,
        loss=ensjax.losses.cross_entropy,
        make_tx=tx,
        hyper=1e-3,
        batch_size=8,
        mesh=ensjax.make_mesh(member=1, data=8),
        shard_state=shard_state,
        **options,
    )


def clipped_adam(learning_rate):
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(learning_rate))


def test_a_step_gathers_the_weights_and_scatters_their_gradient():
    text = lowered(True).as_text()
    # Three kernels are large enough; Adam's moments stay where they are.
    assert text.count("stablehlo.all_gather") == 3
    assert text.count("stablehlo.reduce_scatter") == 3
    # The kernels are reduced no more; whether all parts are finite is.
    reductions = lowered(False).as_text().count("stablehlo.all_reduce")
    assert text.count("stablehlo.all_reduce") == reductions - 3 + 1
    # The norm needs whole gradients: then these, the weights and both moments too.
    assert lowered(True, clipped_adam).as_text().count("stablehlo.all_gather") == 15


@pytest.mark.parametrize("steps", [1, pytest.param(40, marks=pytest.mark.slow)])
def test_a_split_state_takes_less_memory_during_a_call(steps):
    def peak(shard_state):
        options = dict(steps_per_call=steps, keep_best=True, block=None)
        stats = lowered(shard_state, **options).compile().memory_analysis()
        return (
            stats.argument_size_in_bytes
            + stats.output_size_in_bytes
            + stats.temp_size_in_bytes
            - stats.alias_size_in_bytes
        )

    params = 4 * 2 * (128 * 256 + 256 * 256 + 256 * 8)
    # Whole: weights, two moments and the best weights, and what a step needs. Split:
    # an eighth of these, and whole weights and gradients of the step.
    assert peak(False) > 4 * params
    assert peak(True) < peak(False) / 2
