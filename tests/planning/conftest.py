"""Small training jobs, and a `fit` that is watched."""

import gc
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ensjax import losses, make_mesh, nn
from ensjax.mapping import MeshProgram
from ensjax.train import TrainingJob

IMAGE = (8, 8, 1)
PROGRAMS = {
    "TrainSteps": "training",
    "JointSteps": "training",
    "Evaluate": "evaluation",
    "InitState": "initial state",
}
NUM_EXAMPLES, NUM_HELD_OUT = 96, 32


def _mlp(rngs):
    return nn.MLP(in_features=64, hidden=(8,), num_outputs=3, rngs=rngs)


def _cnn(rngs):
    return nn.CNN(image_shape=IMAGE, features=(4, 8), num_outputs=3, rngs=rngs)


def _resnet(rngs):
    return nn.ResNet(depth=20, width=4, in_channels=1, num_outputs=3, rngs=rngs)


def _vit(rngs):
    return nn.ViT(
        image_shape=IMAGE, width=8, depth=1, num_heads=2, num_outputs=3, rngs=rngs
    )


def _wide_resnet(rngs):
    return nn.wide_resnet(depth=10, width=1, in_channels=1, num_outputs=3, rngs=rngs)


MODELS = {
    "mlp": _mlp,
    "cnn": _cnn,
    "resnet-20": _resnet,
    "vit": _vit,
    "wide-resnet": _wide_resnet,
}


def _images(count, name):
    rng = np.random.default_rng(0)
    shape = (64,) if name == "mlp" else IMAGE
    x = rng.normal(size=(count, *shape)).astype(np.float32)
    return x, rng.integers(0, 3, count)


def _job(name="mlp", num_members=8, mesh=(1, 1), evaluated=True, **options):
    """A job of tiny members; `mesh` is devices along member and data."""
    defaults = dict(
        loss=losses.cross_entropy,
        make_tx=optax.adam,
        steps=6,
        steps_per_call=3,
        batch_size=8,
    )
    if evaluated:
        defaults["evaluation"] = _images(NUM_HELD_OUT, name)
    return TrainingJob(
        make_model=MODELS[name],
        member_ids=tuple(range(num_members)),
        init_seed=0,
        data=_images(NUM_EXAMPLES, name),
        hyper=np.full(num_members, 1e-3, np.float32),
        mesh_sizes=dict(member=mesh[0], data=mesh[1]),
        options=defaults | options,
    )


class Watched(NamedTuple):
    """What one program of `fit` was, and what was on the first device before it ran."""

    name: str
    memory: object
    live_bytes: int


def _live_bytes(device, without):
    gc.collect()
    buffers = {}  # several arrays may be one buffer
    for array in jax.live_arrays():
        if id(array) in without or array.is_deleted():
            continue
        for shard in array.addressable_shards:
            if shard.device == device:
                buffers[shard.data.unsafe_buffer_pointer()] = shard.data.nbytes
    return sum(buffers.values())


@pytest.fixture
def watch_fit(monkeypatch):
    """`watch_fit(job)` runs it, and tells of the programs that were called, in order.

    The memory is of the program of `fit` compiled for the arguments it was called with.
    """

    def watch(job):
        before = {id(x) for x in jax.live_arrays()}
        kept = list(jax.live_arrays())  # so that no id is used again
        calls, original = [], MeshProgram.__call__
        device = job.mesh().devices.flat[0]

        def record(self, *args):
            name = type(self.job).__name__
            traced = any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(args))
            if name in PROGRAMS and not traced:
                compiled = self.jitted.lower(*args).compile()
                live = _live_bytes(device, before)
                calls.append(Watched(name, compiled.memory_analysis(), live))
            return original(self, *args)

        monkeypatch.setattr(MeshProgram, "__call__", record)
        job.fit(progress=False)
        monkeypatch.setattr(MeshProgram, "__call__", original)
        del kept
        return calls

    return watch


def _check_against(planned, calls):
    """The plan's bytes are those of the programs that ran, and of what was there."""
    seen = {}
    for call in calls:
        seen.setdefault(PROGRAMS[call.name], call)
    assert set(seen) == {program.name for program in planned.programs}
    peaks = []
    for program in planned.programs:
        call = seen[program.name]
        memory = call.memory
        ran = (
            memory.argument_size_in_bytes
            + memory.output_size_in_bytes
            + memory.temp_size_in_bytes
            - memory.alias_size_in_bytes
        )
        assert program.program_peak_bytes == pytest.approx(ran, rel=0.05)
        # What was on the device when the program was called: arguments and the rest.
        live = program.argument_bytes + program.beside_bytes
        ahead = planned.arrays["batches read ahead"]
        if ahead and program.name == "training":  # the thread reads as it comes to it
            live -= ahead
            assert 0.95 * live <= call.live_bytes <= 1.05 * (live + ahead)
            continue
        assert live == pytest.approx(call.live_bytes, rel=0.05)
        peaks.append(ran + call.live_bytes - memory.argument_size_in_bytes)
    if not planned.arrays["batches read ahead"]:
        assert planned.peak_bytes == pytest.approx(max(peaks), rel=0.05)


@pytest.fixture(scope="session")
def check_against():
    """`check_against(plan, calls)`, the calls as `watch_fit` gives them."""
    return _check_against


class Kit(NamedTuple):
    """What a test makes its jobs from."""

    job: object
    models: dict
    mesh: object


@pytest.fixture(scope="session")
def kit():
    """Jobs and meshes."""
    return Kit(
        _job,
        MODELS,
        lambda member, data: make_mesh(
            member=member, data=data, devices=jax.devices()[: member * data]
        ),
    )


@pytest.fixture(scope="session")
def scanned_loss():
    """A loss whose layer runs in a loop."""

    def loss(model, batch, key):
        nll, metrics = losses.cross_entropy(model, batch, key)

        def body(x, _):
            return x @ jnp.eye(8), None

        x, _ = jax.lax.scan(body, jnp.ones((8, 8)) * nll, None, length=5)
        return x.mean(), metrics

    return loss
