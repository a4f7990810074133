"""One step of `fourcastnet3.py` split by latitude, and one at full size by tracing."""

import dataclasses
import functools
import time

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from flax import nnx

import ensjax
from ensjax.experiment.fields import load_beside
from ensjax.mapping import map_members
from ensjax.ops.device_sums import shared_by
from ensjax.ops.sphere_split import own_block
from ensjax.planning import read_collectives
from ensjax.train import area_crps, wave_crps

cpu_devices = load_beside(__file__, "cpu_devices")
training = load_beside(__file__, "spherical_noise_training")

PARTS = (1, 2, 4)


@dataclasses.dataclass(frozen=True)
class SplitStep:
    """Loss and gradients of one network for one case whose latitudes are split.

    Attributes:
        graph: of the network.
        noise: of its members.
        grid: of its states.
        num_members: M, made by every device for its own rows.
        axis: of the mesh, or None.
    """

    graph: object
    noise: object
    grid: object
    num_members: int
    axis: str | None

    def __call__(self, params, key, window):
        """The loss, and the gradient by the parameters."""

        def loss(params):
            network = nnx.merge(self.graph, shared_by(params, self.axis))
            start, target = (own_block(x, self.axis, dim=0) for x in window)

            def of_member(member):
                field = self.noise(jax.random.fold_in(key, member), window.shape[1:])
                return network(own_block(field, self.axis, dim=0), start)

            made = jax.vmap(of_member)(jnp.arange(self.num_members))
            members, truth = (jnp.moveaxis(x, -1, -3) for x in (made, target))
            places, waves = (
                score(members, truth, self.grid, axis=self.axis)
                for score in (area_crps, wave_crps)
            )
            return jnp.mean(places + 0.1 * waves)

        return jax.value_and_grad(loss)(params)


def split_on(config, window) -> dict[str, np.ndarray]:
    """One step on 1, 2 and 4 of this process's devices.

    Args:
        config: of the run.
        window: two days, `[2, lat, lon, variable]`.

    Returns:
        By number of devices (`devices` `[mesh]`): `loss`; `gradient_off`, the largest
        difference from one device over the largest gradient; `loss_off`, relative; and
        `exchanged_bytes`, of all collectives on a device, and their `collectives`.
    """
    window = jnp.asarray(window)
    found = {name: [] for name in
             ("devices", "loss", "gradient_off", "loss_off", "exchanged_bytes",
              "collectives")}  # fmt: skip
    first = None
    for parts in PARTS:
        axis = None if parts == 1 else "model"
        graph, params = nnx.split(training.make_model(config, nnx.Rngs(0), axis))
        # The last layer starts from zeros, behind which nothing has a gradient.
        params = jax.tree.map(lambda x: x + 0.01, params)
        run = map_members(
            SplitStep(
                graph, training.noise_of(config), training.grid_of(config),
                config.num_members, axis,
            ),
            kinds=("member", "shared", "shared"),
            out=("member", "member"),
            mesh=ensjax.make_mesh(member=1, model=parts),
        )  # fmt: skip
        args = (jax.tree.map(lambda x: np.asarray(x)[None], params),
                jax.random.key(config.seed), window)  # fmt: skip
        loss, gradient = jax.tree.map(np.asarray, run(*args))
        leaves = [leaf for leaf in jax.tree.leaves(gradient)]
        first = (loss, leaves) if first is None else first
        largest = max(np.abs(leaf).max() for leaf in first[1])
        off = max(np.abs(a - b).max() for a, b in zip(leaves, first[1], strict=True))
        text = run.lower(*args).compile().as_text()
        collectives = read_collectives(text, (1, 1, parts))
        found["devices"].append(parts)
        found["loss"].append(loss[0])
        found["loss_off"].append(abs(loss[0] / first[0][0] - 1))
        found["gradient_off"].append(off / largest)
        found["exchanged_bytes"].append(sum(c.result_bytes for c in collectives))
        words = ", ".join(f"{c.count} {c.operation}" for c in collectives)
        found["collectives"].append(words or "none")
    return {name: np.asarray(values) for name, values in found.items()}


def split_steps(config, archive) -> dict[str, np.ndarray]:
    """One step on 1, 2 and 4 devices: `split_on`.

    Where this process has fewer than 4, in one of its own that makes 4 of the CPU.

    Raises:
        RuntimeError: if that process fails; with the end of what it wrote.
    """
    window = training.data.training_windows(config, archive)[0, :2]
    if jax.device_count() >= max(PARTS):
        return split_on(config, window)
    given = (config.to_dict(), window)
    return cpu_devices.in_own_process(__file__, given, max(PARTS))


def full_size_step() -> dict[str, np.ndarray]:
    """Parameters, operations and bytes of one published step, from shapes alone.

    Returns:
        `params`, `flops` and `bytes` of one member's step, before any optimization (of
        the recurrence of the Legendre functions one step counts); `device_flops`, what
        matrix products of this device reach a second; and `seconds`, of 240 steps at
        that rate.
    """
    abstract = nnx.eval_shape(lambda: ensjax.nn.fourcastnet3(rngs=nnx.Rngs(0)))
    graph, params = nnx.split(abstract)
    shape = (721, 1440)
    arguments = (
        params,
        jax.ShapeDtypeStruct((*shape, 11), np.float32),
        jax.ShapeDtypeStruct((*shape, 72), np.float32),
    )
    lowered = jax.jit(lambda p, n, x: nnx.merge(graph, p)(n, x)).lower(*arguments)
    cost = lowered.cost_analysis()
    rate = _device_flops()
    return {
        "params": np.int64(sum(int(np.prod(x.shape)) for x in jax.tree.leaves(params))),
        "flops": np.float64(cost["flops"]),
        "bytes": np.float64(cost["bytes accessed"]),
        "device_flops": np.float64(rate),
        "seconds": np.float64(240 * cost["flops"] / rate),
    }


def _device_flops():
    """Of matrix products in full float32, a second; the best of three.

    In full as the network's transforms and filters are, and on an accelerator so large
    that their time is not that of starting them.
    """
    size, count = (1_024, 1) if jax.default_backend() == "cpu" else (4_096, 16)

    @jax.jit
    def products(a):
        again = functools.partial(jnp.matmul, precision="highest")
        return jax.lax.fori_loop(0, count, lambda _, b: again(a, b), a)

    a = jnp.full((size, size), 1 / size)
    jax.block_until_ready(products(a))
    times = []
    for _ in range(3):
        start = time.perf_counter()
        jax.block_until_ready(products(a))
        times.append(time.perf_counter() - start)
    return count * 2 * size**3 / min(times)


def _split_on(given):
    """`split_on` of what `split_steps` gives."""
    config, window = given
    return split_on(ml_collections.ConfigDict(config), window)


if __name__ == "__main__":
    cpu_devices.answer(_split_on)
