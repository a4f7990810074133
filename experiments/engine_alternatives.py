"""What `bench_engine` compares: the engine's program, and what one would write instead.

Every alternative trains the same members on the same batches from device-resident data
with Adam and sums up their losses and accuracies. All draw their data orders in every
call, by the engine's own function; `torch.func` alone reads rows that were made before
the clock starts. None but the engine checks health or freezes members.
"""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from ensjax import nn
from ensjax.blocks import Blocks
from ensjax.data import sampling
from ensjax.ensemble import Ensemble
from ensjax.experiment.configs import load_module
from ensjax.mapping import mesh_program
from ensjax.members import member_key, unstack_members
from ensjax.mesh import make_mesh, place
from ensjax.train.assembly import build_programs
from ensjax.train.health import Health
from ensjax.train.losses import cross_entropy

SEED = 0
LEARNING_RATE = 1e-3
EPSILON = 1e-8  # of Adam


@dataclasses.dataclass(frozen=True)
class Workload:
    """One model and its data.

    Attributes:
        name: as `--rows` takes it.
        title: what the table says.
        make_model: `make_model(rngs, conv_form)` -> one member; models without
            convolutions ignore the form.
        example_shape: of one input.
        batch_size: examples per member and step.
        num_examples: rows of the resident data.
        steps_per_call: steps of one call of the compiled program.
        members: ensemble sizes of the full table.
        is_convolutional: whether the target is that of convolutional nets.
    """

    name: str
    title: str
    make_model: Callable[[nnx.Rngs, str], nnx.Module]
    example_shape: tuple[int, ...]
    batch_size: int
    num_examples: int
    steps_per_call: int
    members: tuple[int, ...] = (1, 4, 16)
    is_convolutional: bool = False

    def data(self) -> tuple[jax.Array, jax.Array]:
        """Normal inputs `[example, ...]` and random labels of 10 classes."""
        rng = np.random.default_rng(SEED)
        x = rng.normal(size=(self.num_examples, *self.example_shape))
        labels = rng.integers(0, 10, self.num_examples)
        return jnp.asarray(x, jnp.float32), jnp.asarray(labels, jnp.int32)


def adam(learning_rate: Any) -> optax.GradientTransformation:
    """The optimizer of one member in every alternative."""
    return optax.adam(learning_rate, eps=EPSILON)


def _small_mlp(rngs, conv_form):
    del conv_form
    return nn.MLP(in_features=64, hidden=(64, 64), rngs=rngs)


def _large_mlp(rngs, conv_form):
    del conv_form
    return nn.MLP(in_features=784, hidden=(256, 256), rngs=rngs)


def _cnn(rngs, conv_form):
    return nn.CNN(features=(16, 32, 32), conv_form=conv_form, rngs=rngs)


def _resnet(rngs, conv_form):
    return nn.ResNet(depth=20, conv_form=conv_form, rngs=rngs)


def _vit(rngs, conv_form):
    del conv_form
    return nn.ViT(patch_size=(7, 7), width=64, depth=2, rngs=rngs)


WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload(
            "mlp-small", "MLP 64-64-64-10", _small_mlp, (64,), 8, 1797, 672,
            members=(1, 4, 16, 64),
        ),
        Workload(
            "mlp-large", "MLP 784-256-256-10", _large_mlp, (784,), 128, 4000, 31,
            members=(1, 4, 16, 64),
        ),
        Workload(
            "cnn", "CNN 16-32-32", _cnn, (28, 28, 1), 64, 4000, 20,
            is_convolutional=True,
        ),
        Workload(
            "resnet20", "ResNet-20", _resnet, (32, 32, 3), 32, 1024, 2,
            is_convolutional=True,
        ),
        Workload("vit", "ViT 2 x 64, 16 patches", _vit, (28, 28, 1), 32, 4000, 30),
    )
}  # fmt: skip


@dataclasses.dataclass
class Alternative:
    """A way to make the steps of all members.

    Attributes:
        run: makes `steps_per_call` steps of every member and waits for them.
        params: the trained parameters by now, leaves `[member, ...]`.
        states: all that the engine would save; None for the others.
    """

    run: Callable[[], Any]
    params: Callable[[], Any]
    states: Callable[[], Any] | None = None


def devices_for(num_members: int) -> int:
    """The largest number of devices that the members divide over."""
    numbers = range(1, len(jax.devices()) + 1)
    return max(k for k in numbers if num_members % k == 0)


def ours(
    workload: Workload,
    num_members: int,
    *,
    steps_per_call: int,
    block: Any = "auto",
    num_devices: int | None = None,
) -> Alternative:
    """The program that `fit` runs, called as `fit` calls it.

    Members are split over as many devices as they divide over (the cores of a CPU),
    where `fit` on the default mesh would pad them; or over `num_devices`.
    """
    most = num_devices or devices_for(num_members)
    mesh = make_mesh(devices=jax.devices()[:most])
    ensemble = _ensemble(workload, num_members, "auto", mesh)
    data = place(workload.data(), mesh, jax.P())
    hypers = (place(jnp.full(num_members, LEARNING_RATE), mesh, jax.P("member")),)
    blocks = Blocks(block)
    init, job = build_programs(
        (ensemble,),
        (ensemble.state,),
        hypers,
        loss=cross_entropy,
        make_tx=adam,
        has_hyper=True,
        sampling="independent",
        batch_size=workload.batch_size,
        num_examples=workload.num_examples,
        augment=None,
        keep_best=False,
        healths=Health.of("freeze").for_stacks((ensemble,)),
        max_steps=steps_per_call,
        weights_kind="shared",
        data_kind="shared",
        blocks=blocks,
        mesh=mesh,
        shard_state=False,
    )
    program = mesh_program(job, mesh)
    held = {"states": init((ensemble.state,), hypers)}
    ids = (ensemble.member_ids,)

    def run():
        states = held["states"]
        for first in range(0, workload.steps_per_call, steps_per_call):
            count = min(steps_per_call, workload.steps_per_call - first)
            states, _ = program(states, hypers, ids, (None,), data, first, count, SEED)
        held["states"] = jax.block_until_ready(states)

    return Alternative(run, lambda: held["states"][0]["params"], lambda: held["states"])


def python_loop(workload: Workload, num_members: int) -> Alternative:
    """One member after the other, one jitted and donated step at a time."""
    step, members, data = _single(workload, num_members, "plain")
    jitted = jax.jit(step, donate_argnums=0)
    draw = jax.jit(functools.partial(draw_rows, workload))

    def run():
        for i in range(num_members):
            leaves, order = members[i], draw(i)
            for _ in range(workload.steps_per_call):
                leaves = jitted(leaves, order, *data)
            members[i] = leaves
        jax.block_until_ready(members)

    return Alternative(run, lambda: step.params(members))


def loop_over_scans(workload: Workload, num_members: int) -> Alternative:
    """One member after the other, all steps in one jitted and donated `lax.scan`."""
    step, members, data = _single(workload, num_members, "auto")
    jitted = jax.jit(_scanned(step, workload), donate_argnums=0)

    def run():
        for i in range(num_members):
            members[i] = jitted(members[i], i, *data)
        jax.block_until_ready(members)

    return Alternative(run, lambda: step.params(members))


def lax_map(workload: Workload, num_members: int) -> Alternative:
    """`lax.map` over members of a `lax.scan` of steps, in one jitted program.

    Convolutions take the engine's form: `lax` ones are 10-25 times slower in a loop.
    """
    step, members, data = _single(workload, num_members, "auto")
    scanned = _scanned(step, workload)

    def mapped(stacked, member_ids, *data):
        return jax.lax.map(lambda xs: scanned(*xs, *data), (stacked, member_ids))

    jitted = jax.jit(mapped, donate_argnums=0)
    held = {"members": [jnp.stack(leaves) for leaves in zip(*members, strict=True)]}
    ids = jnp.arange(num_members)

    def run():
        held["members"] = jax.block_until_ready(jitted(held["members"], ids, *data))

    def params():
        unstacked = zip(*map(list, held["members"]), strict=True)
        return step.params([list(leaves) for leaves in unstacked])

    return Alternative(run, params)


def torch_func(workload: Workload, num_members: int) -> Alternative:
    """`torch.func` over stacked weights (`engine_torch`), on the same kind of device.

    Raises:
        ImportError: where torch is not installed.
    """
    path = Path(__file__).with_name("engine_torch.py")
    steps = load_module(path, "bench").TorchSteps(
        workload.name,
        _named_params(_stacked_params(workload, num_members)),
        [np.asarray(leaf) for leaf in workload.data()],
        np.swapaxes(member_rows(workload, num_members), 0, 1),
        learning_rate=LEARNING_RATE,
        epsilon=EPSILON,
        device="cpu" if jax.default_backend() == "cpu" else "cuda",
    )

    def params():
        stacked = _stacked_params(workload, num_members)
        trained = [
            (path, variable.replace(steps.params[_name(path)].cpu().numpy()))
            for path, variable in nnx.to_flat_state(stacked)
        ]
        return nnx.from_flat_state(trained)

    return Alternative(steps.run, params)


def _stacked_params(workload, num_members):
    mesh = make_mesh(devices=jax.devices()[:1])
    return _ensemble(workload, num_members, "plain", mesh).params


def _named_params(params):
    flat = nnx.to_flat_state(params)
    return {_name(path): np.array(variable[...]) for path, variable in flat}


def _name(path):
    return ".".join(map(str, path))


def _ensemble(workload, num_members, conv_form, mesh):
    def make_model(rngs):
        return workload.make_model(rngs, conv_form)

    return Ensemble.init(make_model, num_members=num_members, seed=SEED, mesh=mesh)


def draw_rows(workload: Workload, member_id: Any) -> jax.Array:
    """The examples of every step that `ours` makes, `[step, batch]`, of one member."""
    per_epoch = workload.num_examples // workload.batch_size
    num_epochs = -(-workload.steps_per_call // per_epoch)
    key = member_key(SEED, "order", member_id)
    orders = sampling.epoch_orders(key, workload.num_examples, 0, num_epochs)
    orders = orders[:, : per_epoch * workload.batch_size]
    return orders.reshape(-1, workload.batch_size)[: workload.steps_per_call]


def member_rows(workload: Workload, num_members: int) -> np.ndarray:
    """The examples of every step that `ours` makes, `[member, step, batch]`."""
    draw = jax.jit(functools.partial(draw_rows, workload))
    return np.stack([draw(i) for i in range(num_members)])


def _single(workload, num_members, conv_form):
    """The step of one member, and what it works on."""
    mesh = make_mesh(devices=jax.devices()[:1])
    ensemble = _ensemble(workload, num_members, conv_form, mesh)
    states = unstack_members(ensemble.state)
    step = _SingleStep(ensemble.graph.graphdef, states[0], workload.steps_per_call)
    members = [step.init(state) for state in states]
    return step, members, workload.data()


class _SingleStep:
    """An Adam step of one member: a list of arrays in, a list of arrays out.

    A plain list, not an `nnx.State`, since flattening that costs a Python loop more
    than a small step takes.
    """

    def __init__(self, graphdef, state, num_rows):
        self._graphdef, self._num_rows = graphdef, num_rows
        self._tx = adam(LEARNING_RATE)
        self._tree = jax.tree.structure(self._whole(state))

    def _whole(self, state):
        params, rest = state["params"], state["rest"]
        sums = {"loss": jnp.float32(0), "accuracy": jnp.float32(0)}
        return (params, rest, self._tx.init(params), sums, jnp.int32(0))

    def init(self, state):
        """The leaves of one member's state; they are copies, and may be donated."""
        return jax.tree.map(jnp.copy, jax.tree.leaves(self._whole(state)))

    def params(self, members):
        """Parameters of all members, leaves `[member, ...]`."""
        trees = [jax.tree.unflatten(self._tree, leaves)[0] for leaves in members]
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)

    def __call__(self, leaves, rows, x, labels):
        params, rest, opt_state, sums, count = jax.tree.unflatten(self._tree, leaves)
        chosen = rows[count % self._num_rows]

        def loss_and_rest(params):
            model = nnx.merge(self._graphdef, params, rest, copy=True)
            model.train()
            loss, metrics = cross_entropy(model, (x[chosen], labels[chosen]), None)
            metrics = {"loss": loss, **metrics}
            return loss, (nnx.split(model, nnx.Param, ...)[2], metrics)

        grads, (rest, metrics) = jax.grad(loss_and_rest, has_aux=True)(params)
        sums = jax.tree.map(jnp.add, sums, metrics)
        updates, opt_state = self._tx.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        return jax.tree.leaves((params, rest, opt_state, sums, count + 1))


def _scanned(step, workload):
    def scanned(leaves, member_id, x, labels):
        rows = draw_rows(workload, member_id)

        def body(leaves, _):
            return step(leaves, rows, x, labels), None

        return jax.lax.scan(body, leaves, None, length=workload.steps_per_call)[0]

    return scanned


WAYS = {
    "ours": lambda w, members: ours(w, members, steps_per_call=w.steps_per_call),
    "loop": python_loop,
    "lax.map": lax_map,
    "torch.func": torch_func,
    "one step a call": lambda w, members: ours(w, members, steps_per_call=1),
    "loop of scans": loop_over_scans,
}
