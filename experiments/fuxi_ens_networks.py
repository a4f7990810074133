"""The networks of `fuxi_ens.py` at full size, whose shapes are planned."""

import math

import jax
import jax.numpy as jnp
from flax import nnx

import ensjax
from ensjax.blocks import inner_jaxprs

NUM_STATES = 2


class TransformerForecaster(nnx.Module):
    """The newest state, and beside it what a transformer over both states adds."""

    def __init__(self, network, scale: float):
        self.network, self.scale = network, scale

    def __call__(self, noise: None, state: jax.Array, earlier: jax.Array) -> jax.Array:
        """One step later, `[latitude, longitude, channel]`."""
        del noise
        both = jnp.concatenate([earlier, state], axis=-1)
        return state + self.scale * self.network(both)


def num_channels(config) -> int:
    """Of one state."""
    archive = config.archive
    upper = len(archive.upper_fields) * archive.num_levels
    return upper + len(archive.surface_fields)


def state_shape(config) -> tuple[int, ...]:
    """`(latitude, longitude, channel)`."""
    return (*config.archive.space, num_channels(config))


def networks(config, scale, rngs):
    """Forecaster, the networks of prior and posterior, and channels of a state."""
    model, channels = config.model, num_channels(config)

    def network(num_out, depth):
        return ensjax.nn.WindowTransformer(
            NUM_STATES * channels,
            num_out,
            space=config.archive.space,
            patch_size=model.patch_size,
            window=model.window,
            width=model.width,
            depth=depth,
            num_heads=model.num_heads,
            dtype=model.dtype,
            remat=model.remat,
            rngs=rngs,
        )

    forecaster = network(channels, model.forecaster_depth)
    both = 2 * NUM_STATES * channels  # means and log variances
    prior, posterior = (network(both, model.perturbation_depth) for _ in range(2))
    return TransformerForecaster(forecaster, scale), prior, posterior, channels


def costs(config, pair: nnx.Module, loss) -> dict[str, float]:
    """What the full size costs, by tracing its shapes; nothing is allocated.

    A compiler counts the body of a loop once, and the blocks are one: here every matrix
    product is counted as often as it is made, a multiplication and an addition as two.

    Args:
        config: of the run.
        pair: shapes of a `VariationalPair`, as `nnx.eval_shape` gives them.
        loss: `VariationalLoss`, on one device.

    Returns:
        "parameters" of "emulator" and "all"; "bytes" of weights, gradients and the two
        moments of Adam in float32; "step_flops" of a training step of one case with all
        members, gradient and what `remat` computes again; and "forecast_flops" of one
        step of one member.
    """
    states = jax.ShapeDtypeStruct(
        (*config.archive.space, NUM_STATES * num_channels(config)), jnp.float32
    )
    time = NUM_STATES + loss.num_steps
    windows = jax.ShapeDtypeStruct((1, time, *state_shape(config)), jnp.float32)
    graph, params, rest = nnx.split(pair, nnx.Param, ...)

    def of_step(params, windows):
        pair = nnx.merge(graph, params, rest)
        return loss(pair, windows, jax.random.key(0))[0]

    def of_forecast(params, states):
        return nnx.merge(graph, params, rest).emulator(states, states)

    def count(module):
        return sum(x.size for x in jax.tree.leaves(nnx.state(module, nnx.Param)))

    step = jax.make_jaxpr(jax.grad(of_step))(params, windows)
    forecast = jax.make_jaxpr(of_forecast)(params, states)
    return {
        "emulator_parameters": count(pair.emulator),
        "parameters": count(pair),
        "bytes": 4 * 4 * count(pair),
        "step_flops": product_flops(step.jaxpr),
        "forecast_flops": product_flops(forecast.jaxpr),
    }


def product_flops(jaxpr) -> int:
    """Operations of all matrix products of a traced function, loops multiplied."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            length = math.prod(shape[axis] for axis in contracted)
            total += 2 * length * equation.outvars[0].aval.size
        times = equation.params["length"] if equation.primitive.name == "scan" else 1
        inner = (product_flops(jaxpr) for jaxpr, _ in inner_jaxprs(equation))
        total += times * sum(inner)
    return total
